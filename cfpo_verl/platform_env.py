"""The environment variables of a platform, read from its config group, which is the only place that has them."""

from importlib.resources import files

from omegaconf import OmegaConf


def platform_env(platform: str) -> dict[str, str]:
    """Return {variable: value} of `hydra_configs/platform/<platform>.yaml`.

    Raises:
        ValueError: If there is no such platform.
    """
    folder = files("cfpo_verl.hydra_configs") / "platform"
    known = sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))
    if platform not in known:
        raise ValueError(f"no platform called {platform!r}. Choose one of: {', '.join(known)}")
    config = OmegaConf.create((folder / f"{platform}.yaml").read_text())
    variables = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    return {str(name): str(value) for name, value in variables.items()}
