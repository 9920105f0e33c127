"""The experiments of `hydra_configs/experiment`, as a list that can be searched without composing any of them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cfpo_verl.config_groups import names

# Trainers for which the nodes that generate come on top of the topology.
_TWICE = ("one_step_off", "fully_async")


@dataclass(frozen=True)
class Experiment:
    """What an experiment chooses, and what its file says of it.

    Args:
        name: For experiment=NAME.
        description: The first comment of its file.
        choices: {config group: file chosen in it}.
        model: Hub id or path of the model.
        gpus: GPUs in all, 0 if none is used.
    """

    name: str
    description: str
    choices: dict[str, str]
    model: str
    gpus: int

    def has(self, word: str) -> bool:
        """Say whether a word begins one of the name, a choice, the model, the GPUs or the description, in any case.

        Example:
            >>> experiment = Experiment("math", "Sums.", {"backend": "fsdp2"}, "Qwen/Qwen3-1.7B", 8)
            >>> experiment.has("8gpu"), experiment.has("1.7b"), experiment.has("7b")
            (True, True, False)
        """
        texts = (self.name, self.description, *self.choices.values(), self.model, f"{self.gpus}gpu {self.gpus} GPUs")
        return re.search(rf"(?<![a-z0-9.]){re.escape(word.lower())}", "\n".join(texts).lower()) is not None

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)


def find(words: Sequence[str] = ()) -> list[Experiment]:
    """Return the experiments that have all of the words, sorted by GPUs and name."""
    found = [_read(name) for name in names("experiment")]
    return sorted(
        (experiment for experiment in found if all(experiment.has(word) for word in words)),
        key=lambda experiment: (experiment.gpus, experiment.name),
    )


def peak_memory_gb(name: str) -> float | None:
    """Compose an experiment and return the estimated peak of one GPU in GB, None if docs/plan.md does not cover it."""
    from cfpo_verl.composing import compose
    from cfpo_verl.plan import PlanError, memory_per_gpu_gb

    try:
        parts = memory_per_gpu_gb(compose([f"experiment={name}"]))
    except PlanError:
        return None
    return max(size for part, size in parts.items() if part.endswith("/total"))


def _read(name: str) -> Experiment:
    text = _text("experiment", name)
    choices = dict(_choices(name))
    nodes, per_node = (int(number) for number in choices["topology"].split("x"))
    gpus = 0 if choices["backend"] == "cpu" else nodes * per_node * (2 if choices["updates"] in _TWICE else 1)
    model = _own_path("experiment", name) or _own_path("policy_model", choices["policy_model"])
    comments = [line[2:] for line in text.splitlines() if line.startswith("# ") and not line.startswith("# @package")]
    return Experiment(name, comments[0], choices, model, gpus)


def _choices(name: str) -> Iterator[tuple[str, str]]:
    """Yield (group, chosen file) as an experiment's defaults list has them, those of the one it builds on first."""
    for entry in yaml.safe_load(_text("experiment", name))["defaults"]:
        if isinstance(entry, str):
            if entry != "_self_" and not entry.startswith("/"):
                yield from _choices(entry)
        else:
            [(group, chosen)] = entry.items()
            yield str(group).removeprefix("override ").removeprefix("/"), str(chosen)


def _own_path(group: str, name: str) -> str:
    """Return the model's path that a file sets, or "" if it sets none."""
    # Not resolved: it may refer to keys of other files.
    data = yaml.safe_load(_text(group, name))
    return str(data.get("actor_rollout_ref", {}).get("model", {}).get("path", ""))


@cache
def _text(group: str, name: str) -> str:
    return (files("cfpo_verl.hydra_configs") / group / f"{name}.yaml").read_text()
