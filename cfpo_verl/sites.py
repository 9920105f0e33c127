"""Facts about a site's machines, read from a config group, and a run's config adapted to them."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from cfpo_verl.composing import verl_config_dir
from cfpo_verl.demands import RAY_COUNTS, gpus_needed
from cfpo_verl.errors import UserError
from cfpo_verl.files import reading

VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
INTERFACE = re.compile(r"[\w.@-]{1,15}", re.ASCII)


class JobError(UserError):
    """A job cannot be rendered, submitted or found; the message names the value, the rule and the way out."""


@dataclass(frozen=True)
class Group:
    """A config group that holds facts about a site.

    Args:
        name: Name of the group and of its node in a composed config.
        facts: Dataclass with a field and a default for each key; a field may be a dataclass itself.
        command: Command whose subcommand `example` prints a template of the site's file.
        check: Returns one message for each invalid value, with the rule and the way out.
    """

    name: str
    facts: type
    command: str
    check: Callable[[Any], list[str]]


def read(group: Group, config: DictConfig) -> Any:
    """Remove a group's node from a composed config and return it as a validated dataclass.

    Raises:
        JobError: If a key is unknown, or a value is invalid or has the wrong type.
    """
    with open_dict(config):
        node = config.pop(group.name) or OmegaConf.create()
    with _explained(group):
        facts = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(group.facts), node))
    _check_texts(facts, group.name)
    if problems := group.check(facts):
        raise JobError("\n".join(problems))
    return facts


def _check_texts(facts: Any, prefix: str) -> None:
    """Reject nested values in mappings of texts, which OmegaConf accepts."""
    for each in fields(facts):
        value, place = getattr(facts, each.name), f"{prefix}.{each.name}"
        for key, text in value.items() if each.type == dict[str, str] else ():
            if not isinstance(text, str):
                raise JobError(f"{place}.{key}={text!r}: give a text")


@contextmanager
def _explained(group: Group, key: Any = None) -> Iterator[None]:
    """Turn OmegaConf's errors about facts into errors that name the key, the given one where OmegaConf names none."""
    try:
        yield
    except OmegaConfBaseException as error:
        key = error.full_key or error.key or key
        check_key(group, str(key).partition("[")[0])
        raise JobError(f"{group.name}.{key}: {str(error.msg or error).splitlines()[0]}") from error


def check_key(group: Group, key: str) -> None:
    """Reject an unknown key.

    Raises:
        JobError: If the key is unknown; the message suggests a similar one.
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
    raise JobError(f"{group.name}.{key}: unknown key. {meant}Known keys: {', '.join(known)}")


def choose(group: Group, overrides: Sequence[str], config_dir: Path) -> list[str]:
    """Replace GROUP=NAME by overrides that load the site's file, and add its folder to Hydra's search path.

    Args:
        group: The group.
        overrides: The overrides from the command line.
        config_dir: Folder that contains GROUP/NAME.yaml.

    Raises:
        JobError: If the site's file is missing or not valid YAML, or a key is unknown.
    """
    chosen = []
    for override in overrides:
        if override.startswith(f"{group.name}."):
            check_key(group, override.removeprefix(f"{group.name}.").partition("=")[0])
        name = override.removeprefix(f"{group.name}=")
        if name == override:
            chosen.append(override)
            continue
        if name != "example":
            _check_file(group, name, config_dir.absolute() / group.name)
        # The example states the default of every key.
        chosen.append(f"+{group.name}=[example]" if name == "example" else f"+{group.name}=[example,{name}]")
    return [*chosen, f"hydra.searchpath=['file://{verl_config_dir()}','file://{config_dir.absolute()}']"]


def _check_file(group: Group, name: str, folder: Path) -> None:
    """Check that a site's file exists and has valid keys, since errors after composing cannot name the file.

    Raises:
        JobError: With the file, and the line or the key.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        found = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise JobError(
            f"{group.name}={name}: there is no file {path} (found: {found}). Create it with `{group.command} "
            f"example > {group.name}/{name}.yaml`, or choose another folder with --config-dir"
        )
    try:
        with reading(path):
            content = OmegaConf.load(path)
    except MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise JobError(f"{path}:{line} not valid YAML ({error.problem})") from error
    except YAMLError as error:
        raise JobError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, DictConfig):
        raise JobError(f"{path}: not a mapping of keys to values. See `{group.command} example`")
    content.pop("defaults", None)  # Hydra's
    try:
        for key in map(str, content):
            with _explained(group, key):
                OmegaConf.merge(OmegaConf.structured(group.facts), OmegaConf.masked_copy(content, key))
    except JobError as error:
        raise JobError(f"{path}: {error}") from error


def check_chosen(group: Group, overrides: Sequence[str]) -> None:
    """Reject overrides that choose no site.

    Raises:
        JobError: If there is no GROUP=NAME; the message says how to create a site file.
    """
    if not any(override.startswith(f"{group.name}=") for override in overrides):
        raise JobError(
            f"no {group.name} is chosen. Create a file with `{group.command} example > {group.name}/mysite.yaml`, "
            f"fill it in, and add {group.name}=mysite"
        )


def join_ray(config: DictConfig) -> int | None:
    """Change a config to join a running Ray cluster; return the CPUs per node the config requested, or None.

    Raises:
        JobError: If ray_kwargs.ray_init is null.
    """
    ray_init = config.ray_kwargs.ray_init
    if ray_init is None:
        raise JobError("ray_kwargs.ray_init=null: give a mapping of ray.init's arguments, or leave it as it is")
    ray_cpus = ray_init.get("num_cpus")
    with open_dict(config):
        # ray.init rejects these when it joins a cluster; they are passed to `ray start` instead.
        for key in RAY_COUNTS:
            ray_init.pop(key, None)
    return ray_cpus


def run_dir_of(config: DictConfig) -> str:
    """Return a config's run folder.

    Raises:
        JobError: If it is null or empty.
    """
    if config.run_dir in (None, ""):
        raise JobError("run_dir is not set. Give the folder of the run, for example run_dir=runs/first")
    return str(config.run_dir)


def count_nodes(config: DictConfig) -> int:
    """Return the number of nodes, with n_gpus_per_node GPUs each, that all resource pools of a run need together.

    Raises:
        JobError: If the GPUs that the run needs do not fill whole nodes.
    """
    for key in ("nnodes", "n_gpus_per_node"):
        value = config.trainer[key]
        if not isinstance(value, int) or value < 1:
            raise JobError(f"trainer.{key}={value}: give a whole number above 0")
    per_node, needed = config.trainer.n_gpus_per_node, gpus_needed(config)
    if needed % per_node:
        raise JobError(
            f"the run needs {needed} GPUs in all its pools, not a multiple of trainer.n_gpus_per_node={per_node}. "
            "Choose pools that fill whole nodes"
        )
    return int(needed // per_node)


# On slow file systems, workers may take long to import. The others switch off Ray's uv hook and its usage statistics.
RAY_ENVIRONMENT = {
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
