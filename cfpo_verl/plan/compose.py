"""Glue: the config that `cfpo-verl train` would run with the same overrides."""

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

# Registers the resolver that finds verl's YAML files.
import cfpo_verl.train  # noqa: F401
from cfpo_verl.config_groups import names
from cfpo_verl.plan.errors import PlanError


def compose(overrides: list[str]) -> DictConfig:
    """Compose the config.

    Args:
        overrides: experiment=NAME and any other of Hydra's overrides.

    Raises:
        PlanError: If there is no experiment among them, or Hydra refuses them.
    """
    if not any(override.lstrip("+").startswith("experiment=") for override in overrides):
        raise PlanError(f"no experiment. Give experiment=NAME, one of: {', '.join(names('experiment'))}")
    try:
        with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
            return hydra.compose("train", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise PlanError(str(error)) from error
