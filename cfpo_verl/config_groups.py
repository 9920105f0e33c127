"""Read our config groups without composing a config."""

from importlib.resources import files

from omegaconf import OmegaConf

from cfpo_verl.demands import worker_variables
from cfpo_verl.errors import UserError


def names(group: str) -> list[str]:
    """Return the choices of a config group, for example "experiment"."""
    folder = files("cfpo_verl.hydra_configs") / group
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def platform_env(platform: str) -> dict[str, str]:
    """Return the environment variables of a platform, which are defined only in its config file.

    Raises:
        UserError: If there is no such platform.
    """
    if platform not in names("platform"):
        raise UserError(f"no platform called {platform!r}. Choose one of: {', '.join(names('platform'))}")
    config = OmegaConf.create((files("cfpo_verl.hydra_configs") / "platform" / f"{platform}.yaml").read_text())
    return worker_variables(config)
