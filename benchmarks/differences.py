"""Compose every file of the group `algo` and write docs/algorithms.md's table of what each sets otherwise than CFPO.

    python -m benchmarks.differences           # seconds

Nothing is trained. tests/test_algorithms.py fails if the table and the configs disagree.
"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from benchmarks.combinations import Compose, composing
from cfpo_verl.config_groups import names

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"
BEGIN, END = "<!-- begin: python -m benchmarks.differences -->", "<!-- end of differences -->"

# Responses have at most 1,024 tokens in it, which the length penalty follows.
EXPERIMENT = "gsm8k_1gpu"
BASE = "cfpo"

# Keys that follow from the name of the algorithm and its loss, and decide nothing but where a run is kept.
NAMES = frozenset(
    (
        "actor_rollout_ref.rollout.trace.experiment_name",
        "loss_label",
        "run_dir",
        "run_label",
        "trainer.default_local_dir",
        "trainer.experiment_name",
    )
)
# A key that one of two configs does not have.
ABSENT = "not a key"


def flat(node: Any, name: str = "") -> dict[str, Any]:
    """Return the value of every key below a node, by its dotted name. Lists are values."""
    if not isinstance(node, dict) or not node:
        return {name: node}
    return {
        key: value
        for child, below in node.items()
        for key, value in flat(below, f"{name}.{child}" if name else child).items()
    }


def differences(one: DictConfig, other: DictConfig) -> dict[str, tuple[Any, Any]]:
    """Return what each of two configs has for every key that differs, names of runs left out."""
    left, right = (flat(OmegaConf.to_container(config, resolve=True)) for config in (one, other))
    return {
        key: (left.get(key, ABSENT), right.get(key, ABSENT))
        for key in sorted((left.keys() | right.keys()) - NAMES)
        if left.get(key, ABSENT) != right.get(key, ABSENT)
    }


def table(compose: Compose) -> str:
    """Return the markdown table: a row for each key in which an algorithm differs from CFPO."""
    base = compose(f"experiment={EXPERIMENT}", f"algo={BASE}")
    lines = [f"| `algo` | key | `{BASE}` | there |", "| --- | --- | --- | --- |"]
    for algo in names("algo"):
        found = differences(base, compose(f"experiment={EXPERIMENT}", f"algo={algo}"))
        lines += [f"| `{algo}` | `{key}` | {_cell(ours)} | {_cell(theirs)} |" for key, (ours, theirs) in found.items()]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "" if value == ABSENT else f"`{json.dumps(value).strip(chr(34))}`"


def main() -> None:
    """Write the table."""
    before, _begin, rest = PAGE.read_text().partition(BEGIN)
    with composing() as compose:
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(compose)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
