"""The config of a run, from overrides or a saved file.

verl is not imported here, because it selects its platform at import.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

import cfpo_verl.resolvers  # noqa: F401 - registers the resolvers of our config files
from cfpo_verl.compat import SUPPORTED_VERL
from cfpo_verl.config_groups import names
from cfpo_verl.errors import UserError, first_line
from cfpo_verl.files import yaml_problem


class ConfigError(UserError):
    """The overrides or the file are not a valid config; the message names the key and the remedy."""


def verl_config_dir() -> str:
    """Find verl's YAML files without importing verl.

    Raises:
        ConfigError: If verl is not installed.
    """
    spec = find_spec("verl")
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"verl is not installed. pip install 'verl[vllm]{SUPPORTED_VERL}'; on a CPU, see requirements/cpu.txt"
        )
    return str(Path(spec.origin).parent / "trainer" / "config")


# Used in hydra_configs/train.yaml.
OmegaConf.register_new_resolver("verl_config_dir", verl_config_dir, replace=True)


def compose(overrides: Sequence[str]) -> DictConfig:
    """Compose the config of a run, as Hydra does for `cfpo-verl train`.

    Args:
        overrides: Hydra overrides, among them experiment=NAME.

    Raises:
        ConfigError: If no experiment is given, or an override is invalid.
    """
    with explained(overrides):
        return _compose(overrides)


def _compose(overrides: Sequence[str]) -> DictConfig:
    with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
        return hydra.compose("train", overrides=list(overrides))


def choices(group: str) -> list[str]:
    """Return the members of a config group such as "algo", including those of other packages."""
    with hydra.initialize_config_module("cfpo_verl.hydra_configs", version_base=None):
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


@contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf about the overrides into a ConfigError with a remedy.

    Raises:
        ConfigError: If an override is invalid.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(str(error), overrides)) from error
    except yaml.YAMLError as error:
        # The text of the error names the config file and the line.
        raise ConfigError(str(error)) from error
    except ValueError as error:
        # Hydra's error for a number where the name of a config file belongs, such as updates=4.
        if not str(error).startswith("Config group override"):
            raise
        raise ConfigError(f"{error}. For example updates=x4, topology=1x8") from error


def _explain(message: str, overrides: Sequence[str]) -> str:
    """Return the message of an error, with better advice than Hydra's where there is one."""
    experiment = [override for override in overrides if override.startswith("experiment=")]
    if message.startswith("You must specify 'experiment'"):
        return f"no experiment is given. Add experiment=NAME, one of: {', '.join(names('experiment'))}"
    # Hydra suggests adding an unknown key with +; mostly it is misspelt.
    refused = re.search(r"Could not override '([^']+)'", message)
    if refused is None or not experiment:
        return message
    # Another loss has other options.
    chosen = [override for override in overrides if re.fullmatch(r"(algo|policy_loss)=\w+", override)]
    config = _compose([*experiment, *chosen])

    def keys(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [prefix, *(key for name, value in node.items() for key in keys(value, f"{prefix}.{name}"))]

    known = [key.lstrip(".") for key in keys(OmegaConf.to_container(config), "")]
    close = difflib.get_close_matches(refused[1], known, n=3, cutoff=0.8)
    return f"there is no key {refused[1]!r}. Did you mean: {', '.join(close)}?" if close else message


def read_config(file: Path, overrides: Sequence[str]) -> DictConfig:
    """Read a resolved config, such as RUN_DIR/config.1.yaml, and override some of its keys.

    Raises:
        ConfigError: If the file is not the config of a run, or an override is invalid.
    """
    try:
        config = OmegaConf.load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {file}{yaml_problem(error)}") from error
    except OmegaConfBaseException as error:  # such as an interpolation that is not closed
        raise ConfigError(f"--config {file}: {first_line(error)}") from error
    if not isinstance(config, DictConfig) or "run_dir" not in config or "trainer" not in config:
        raise ConfigError(f"--config {file}: not the config of a run, such as RUN_DIR/config.1.yaml")
    invalid = [override for override in overrides if "=" not in override or override.startswith(("-", "+", "~"))]
    if invalid:
        raise ConfigError(f"{invalid[0]}: with --config give KEY=VALUE, where KEY is in the file")
    OmegaConf.set_struct(config, True)
    for override in overrides:
        try:
            config.merge_with_dotlist([override])
        except (ConfigAttributeError, ConfigKeyError) as error:
            raise ConfigError(f"--config {file}: there is no key {error.full_key!r} in it") from error
        except OmegaConfBaseException as error:
            raise ConfigError(f"--config {file}: {error.full_key}: {first_line(error)}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{override}: the value is not YAML. Quote it, as in 'KEY=\"VALUE\"'") from error
    return config


def resolved_yaml(config: DictConfig) -> str:
    """Return a config as YAML, with its interpolations resolved.

    Raises:
        ConfigError: If one cannot be resolved.
    """
    try:
        return OmegaConf.to_yaml(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {first_line(error)}") from error
