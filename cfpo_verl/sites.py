"""What a site says about its machines, in a config group of its own, and a run's config made ready for them."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cfpo_verl.composing import verl_config_dir
from cfpo_verl.demands import RAY_COUNTS, gpus_needed
from cfpo_verl.errors import UserError

# Names of environment variables, and of network interfaces.
VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
INTERFACE = re.compile(r"[\w.@-]{1,15}", re.ASCII)


class JobError(UserError):
    """A job cannot be rendered, submitted or found; the message names the value, the rule and the way out."""


@dataclass(frozen=True)
class Group:
    """A config group with facts about a site.

    Args:
        name: Of the group, and of its node in a composed config.
        facts: Dataclass with a field, and a default, for each key; fields may be dataclasses themselves.
        command: Whose subcommand `example` prints a file to fill in.
        check: Returns a line for each value that makes no sense, with the rule and the way out.
    """

    name: str
    facts: type
    command: str
    check: Callable[[Any], list[str]]


def read(group: Group, config: DictConfig) -> Any:
    """Take a group's node out of a composed config and return it as its dataclass, checked.

    Raises:
        JobError: If a key is unknown, or a value is of another type or makes no sense.
    """
    with open_dict(config):
        node = config.pop(group.name) or OmegaConf.create()
    try:
        facts = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(group.facts), node))
    except OmegaConfBaseException as error:
        key = error.full_key or str(error.key)
        check_key(group, key)
        raise JobError(f"{group.name}.{key}: {str(error.msg).splitlines()[0]}") from error
    if problems := group.check(facts):
        raise JobError("\n".join(problems))
    return facts


def check_key(group: Group, key: str) -> None:
    """Refuse a key that there is not.

    Raises:
        JobError: With the key that was probably meant.
    """
    within, leaf, rest = group.facts, *key.partition(".")[::2]
    types: dict[str, Any] = {each.name: each.type for each in fields(within)}
    if rest and is_dataclass(types.get(leaf)):
        within, leaf = types[leaf], rest
    known = [each.name for each in fields(within)]
    if leaf in known:
        return
    close = difflib.get_close_matches(leaf, known, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    raise JobError(f"{group.name}.{key}: there is no such key. {meant}Known: {', '.join(known)}")


def choose(group: Group, overrides: Sequence[str], config_dir: Path) -> list[str]:
    """Replace GROUP=NAME by what composes the site's file, and add the folder that it is in.

    Args:
        group: The group.
        overrides: As they were given.
        config_dir: Has a folder of the group's name with the site's own file.

    Raises:
        JobError: If there is no such file, or no such key.
    """
    chosen = []
    for override in overrides:
        if override.startswith(f"{group.name}."):
            check_key(group, override.removeprefix(f"{group.name}.").partition("=")[0])
        name = override.removeprefix(f"{group.name}=")
        if name == override:
            chosen.append(override)
            continue
        here = config_dir.absolute() / group.name
        if name != "example" and not (here / f"{name}.yaml").is_file():
            found = ", ".join(sorted(file.stem for file in here.glob("*.yaml"))) or "none"
            raise JobError(
                f"{group.name}={name}: there is no {here / name}.yaml (there: {found}). Make it with `{group.command} "
                f"example > {name}.yaml`, or name another folder with --config-dir"
            )
        # The example has every key with the value that holds if a site says nothing.
        chosen.append(f"+{group.name}=[example]" if name == "example" else f"+{group.name}=[example,{name}]")
    return [*chosen, f"hydra.searchpath=['file://{verl_config_dir()}','file://{config_dir.absolute()}']"]


def check_chosen(group: Group, overrides: Sequence[str]) -> None:
    """Refuse overrides that choose no site.

    Raises:
        JobError: With the way to make one.
    """
    if not any(override.startswith(f"{group.name}=") for override in overrides):
        raise JobError(
            f"no {group.name} is chosen. Copy the example with `{group.command} example > {group.name}/mysite.yaml`, "
            f"fill it in, and add {group.name}=mysite"
        )


def join_ray(config: DictConfig) -> int | None:
    """Change a config to join a Ray cluster, and return the logical CPUs that it asks of each node, if it does."""
    ray_init = config.ray_kwargs.ray_init
    ray_cpus = ray_init.get("num_cpus")
    with open_dict(config):
        # ray.init refuses them where it joins a cluster; there `ray start` gets them.
        for key in RAY_COUNTS:
            ray_init.pop(key, None)
    return ray_cpus


def count_nodes(config: DictConfig) -> int:
    """Count the nodes of n_gpus_per_node GPUs that all of a run's pools take together.

    Raises:
        JobError: If the GPUs that the run needs do not make whole nodes.
    """
    per_node, needed = config.trainer.n_gpus_per_node, gpus_needed(config)
    if needed % per_node:
        raise JobError(
            f"the run needs {needed} GPUs in all its pools, which are no whole nodes with "
            f"trainer.n_gpus_per_node={per_node}"
        )
    return int(needed // per_node)


# Slow file systems: workers may take long to import. The others keep Ray from doing what nobody asked for.
RAY_ENVIRONMENT = {
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
