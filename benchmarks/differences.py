"""Compose every file of the group `algo` and write docs/algorithms.md's table of what each sets otherwise than CFPO.

    python -m benchmarks.differences           # seconds

Nothing is trained. tests/test_algorithms.py fails if the table and the configs disagree.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from benchmarks.combinations import Compose, composing
from benchmarks.tables import replace_block
from cfpo_verl.config_groups import names
from cfpo_verl.report.grouping import flatten

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


def differences(one: DictConfig, other: DictConfig) -> dict[str, tuple[str | None, str | None]]:
    """Return what each of two configs has for every key that differs, as JSON, None if it has no such key.

    Names of runs are left out.
    """
    left, right = (flatten(OmegaConf.to_container(config, resolve=True)) for config in (one, other))  # type: ignore[arg-type]
    return {
        key: (left.get(key), right.get(key))
        for key in sorted((left.keys() | right.keys()) - NAMES)
        if left.get(key) != right.get(key)
    }


def table(compose: Compose) -> str:
    """Return the markdown table: a row for each key in which an algorithm differs from CFPO."""
    base = compose(f"experiment={EXPERIMENT}", f"algo={BASE}")
    lines = [f"| `algo` | key | `{BASE}` | there |", "| --- | --- | --- | --- |"]
    for algo in names("algo"):
        found = differences(base, compose(f"experiment={EXPERIMENT}", f"algo={algo}"))
        lines += [f"| `{algo}` | `{key}` | {_cell(ours)} | {_cell(theirs)} |" for key, (ours, theirs) in found.items()]
    return "\n".join(lines)


def _cell(value: str | None) -> str:
    return "" if value is None else f"`{value}`"


def main() -> None:
    """Write the table."""
    with composing() as compose:
        replace_block(PAGE, BEGIN, END, table(compose))


if __name__ == "__main__":
    main()
