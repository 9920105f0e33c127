"""List and search the experiments of `hydra_configs/experiment` without composing them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cfpo_verl.config_groups import names

# Trainers that generate on as many nodes again as the topology has.
_TWICE = ("one_step_off", "fully_async")


@dataclass(frozen=True)
class Experiment:
    """The choices and the description of an experiment.

    Args:
        name: NAME in experiment=NAME.
        description: First comment of its file.
        choices: {config group: chosen file}.
        model: Hub id or path of the model.
        gpus: Total number of GPUs, 0 on a CPU.
    """

    name: str
    description: str
    choices: dict[str, str]
    model: str
    gpus: int

    def has(self, word: str) -> bool:
        """Return whether the name, a choice, the model, the GPUs or the description has a word with this beginning.

        Example:
            >>> experiment = Experiment("math", "Sums.", {"backend": "fsdp2"}, "Qwen/Qwen3-1.7B", 8)
            >>> experiment.has("8gpu"), experiment.has("1.7b"), experiment.has("7b")
            (True, True, False)
        """
        texts = (self.name, self.description, *self.choices.values(), self.model, f"{self.gpus}gpu {self.gpus} GPUs")
        return re.search(rf"(?<![a-z0-9.]){re.escape(word.lower())}", "\n".join(texts).lower()) is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the experiment as plain data."""
        return asdict(self)


def find(words: Sequence[str] = ()) -> list[Experiment]:
    """Return the experiments that match all words, sorted by GPUs and name."""
    found = [_read(name) for name in names("experiment")]
    return sorted(
        (experiment for experiment in found if all(experiment.has(word) for word in words)),
        key=lambda experiment: (experiment.gpus, experiment.name),
    )


def peak_memory_gb(name: str) -> float | None:
    """Compose an experiment and return the estimated peak memory of a GPU in GB, None if it cannot be estimated."""
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
    """Yield (group, chosen file) from an experiment's defaults list, after those of the experiment that it extends."""
    for entry in yaml.safe_load(_text("experiment", name))["defaults"]:
        if isinstance(entry, str):
            if entry != "_self_" and not entry.startswith("/"):
                yield from _choices(entry)
        else:
            [(group, chosen)] = entry.items()
            yield str(group).removeprefix("override ").removeprefix("/"), str(chosen)


def _own_path(group: str, name: str) -> str:
    """Return the model's path that a file sets, or "" if it sets none."""
    # Not resolved, since it may refer to keys of other files.
    data = yaml.safe_load(_text(group, name))
    return str(data.get("actor_rollout_ref", {}).get("model", {}).get("path", ""))


@cache
def _text(group: str, name: str) -> str:
    return (files("cfpo_verl.hydra_configs") / group / f"{name}.yaml").read_text()
