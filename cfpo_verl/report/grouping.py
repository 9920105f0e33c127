"""Group runs that differ only in their seed, and compare the configs of runs."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A run counts in the mean of its group from this fraction of the steps of the furthest run on.
COUNTED_SHARE = 0.9

FlatConfig = Mapping[str, str]

# Keys that do not change the training: seeds, names, paths, logging, checkpoints, how a batch is split for a GPU.
_IRRELEVANT = re.compile(
    r"(.*\.)?(\w+_)?seed|run_dir|ray_kwargs\..*|.*\.rollout\.trace\..*|"
    r".*micro_batch_size\w*|.*max_token_len\w*|.*gpu_memory_utilization|"
    r"trainer\.(project_name|experiment_name|logger|default_local_dir|rollout_data_dir|validation_data_dir|"
    r"log_val_generations|resume_mode|resume_from_path|save_freq|max_actor_ckpt_to_keep|max_critic_ckpt_to_keep)"
)
_SEED_IN_TEXT = re.compile(r"[_-]?seed[_=-]?\d+", re.IGNORECASE)
_SECRET = re.compile(r"(^|\.|_)(api_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return {dotted key: value as JSON} of all leaves; values whose key names a secret are left out.

    Example:
        >>> flatten({"trainer": {"logger": ["file"], "nnodes": 1}, "wandb_api_key": "abc"})
        {'trainer.logger': '["file"]', 'trainer.nnodes': '1', 'wandb_api_key': '(left out)'}
    """
    flat: dict[str, str] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        elif _SECRET.search(key) and value is not None:
            flat[key] = "(left out)"
        else:
            flat[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return flat


def without_seed(text: str) -> str:
    """Remove the seed from a name or path.

    Example:
        >>> without_seed("models/quickstart_seed3")
        'models/quickstart'
    """
    return _SEED_IN_TEXT.sub("", text)


def is_relevant(key: str) -> bool:
    """Return whether a key of the config changes the training, unlike seeds, names and paths."""
    return _IRRELEVANT.fullmatch(key) is None


def _comparable(flat: FlatConfig) -> dict[str, str]:
    """Return the part of a config that is equal in runs of the same experiment."""
    folder = flat.get("run_dir", "")
    return {
        key: without_seed(value.replace(folder, "") if folder else value)
        for key, value in flat.items()
        if is_relevant(key)
    }


def differences(configs: Mapping[str, FlatConfig]) -> dict[str, dict[str, str | None]]:
    """Return {key: {run: value, None where it has no such key}} for every key in which runs differ.

    Keys that change the training come first.
    """
    keys = dict.fromkeys(key for flat in configs.values() for key in flat)
    found = {key: {run: flat.get(key) for run, flat in configs.items()} for key in keys}
    differing = {key: values for key, values in found.items() if len(set(values.values())) > 1}
    return dict(sorted(differing.items(), key=lambda item: not is_relevant(item[0])))


@dataclass(frozen=True)
class Group:
    """Runs of one experiment with different seeds.

    Args:
        label: The loss, and the keys in which it differs from other groups of the same loss.
        runs: Names of its runs.
        counted: The runs that the mean is taken over.
    """

    label: str
    runs: tuple[str, ...]
    counted: tuple[str, ...]


def counted(last_steps: Mapping[str, int]) -> tuple[str, ...]:
    """Return the runs that have completed at least `COUNTED_SHARE` of the steps of the furthest one.

    A run that has just begun, or that crashed, would distort the mean.

    Example:
        >>> counted({"seed0": 20, "seed1": 19, "seed2": 3})
        ('seed0', 'seed1')
    """
    least = COUNTED_SHARE * max(last_steps.values())
    return tuple(name for name, step in last_steps.items() if step >= least)


def group_runs(configs: Mapping[str, FlatConfig | None], last_steps: Mapping[str, int]) -> list[Group]:
    """Group runs whose configs agree in all keys that change the training.

    Args:
        configs: {run: config}. Runs without a config are grouped by their names without seeds.
        last_steps: {run: its last step}.

    Returns:
        Groups in the order of their first runs. Labels of groups with the same loss include the keys that differ.
    """
    members: dict[tuple[Any, ...], list[str]] = {}
    for name, flat in configs.items():
        identity = (without_seed(name),) if flat is None else tuple(sorted(_comparable(flat).items()))
        members.setdefault(identity, []).append(name)
    firsts = [runs[0] for runs in members.values()]
    losses = {name: _loss(name, configs[name]) for name in firsts}
    groups = []
    for runs in members.values():
        alike = {
            name: _comparable(flat) for name in firsts if losses[name] == losses[runs[0]] and (flat := configs[name])
        }
        label = _label(losses[runs[0]], runs[0], alike)
        groups.append(Group(label, tuple(runs), counted({name: last_steps[name] for name in runs})))
    return groups


def _loss(name: str, flat: FlatConfig | None) -> str:
    return without_seed(name) if flat is None else flat.get("actor_rollout_ref.actor.policy_loss.loss_mode", "vanilla")


def _brief(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _label(loss: str, run: str, alike: Mapping[str, FlatConfig], most: int = 3) -> str:
    """Return the loss with the values of the first `most` keys in which groups of this loss differ."""
    if run not in alike or len(alike) < 2:
        return loss
    keys = list(differences(alike))
    shown = dict.fromkeys(
        f"{_brief(key.rpartition('.')[2])}={_brief(alike[run].get(key, 'none'))}" for key in keys[:most]
    )
    return f"{loss}, {', '.join(shown)}{', ...' if len(keys) > most else ''}"
