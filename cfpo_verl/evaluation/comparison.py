"""Compare two evaluations problem by problem."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfpo_verl.evaluation import store, summary
from cfpo_verl.evaluation.intervals import Paired, compare_paired
from cfpo_verl.evaluation.sets import EvaluationError


@dataclass(frozen=True)
class Row:
    """One metric of one set.

    Args:
        set: Name of the set.
        metric: Name of the metric; "avg" for avg@n, since the two evaluations may have different n.
        problems: Number of problems in both evaluations.
        first: Mean over these problems in the first evaluation.
        second: Mean over these problems in the second evaluation.
        paired: Paired comparison, second minus first.
    """

    set: str
    metric: str
    problems: int
    first: float
    second: float
    paired: Paired

    def as_dict(self) -> dict[str, Any]:
        """Return all fields in one flat dictionary."""
        row = asdict(self)
        paired = row.pop("paired")
        return {**row, **paired}


def compare(first: Path, second: Path) -> tuple[list[Row], list[str]]:
    """Compare two finished evaluations on the problems they share.

    Args:
        first: Folder of the first evaluation.
        second: Folder of the second evaluation.

    Returns:
        One row per set and metric, and notes on differences that make the comparison unfair.

    Raises:
        EvaluationError: If either is not finished, or they share no problem.
    """
    tables = [store.read_generations(folder) for folder in (first, second)]
    counted = []
    for folder, table in zip((first, second), tables, strict=True):
        try:
            counted.append(dict(summary.count(table)))
        except summary.UnevenError as error:
            raise EvaluationError(f"{folder / store.GENERATIONS}: {error}") from error
    shared = [name for name in counted[0] if name in counted[1]]
    rows: list[Row] = []
    notes = list(differences(*(store.read_summary(folder) for folder in (first, second))))
    for name in shared:
        one, other = counted[0][name], counted[1][name]
        places = {uid: place for place, uid in enumerate(other.uids)}
        of_one = [place for place, uid in enumerate(one.uids) if uid in places]
        of_other = [places[uid] for uid in one.uids if uid in places]
        if len(of_one) < max(len(one.uids), len(other.uids)):
            notes.append(
                f"{name}: the evaluations have {len(one.uids)} and {len(other.uids)} problems and share {len(of_one)}; "
                "the others are left out"
            )
        if of_one:
            ks = sorted(set(one.ks()) & set(other.ks()))
            rows += _rows(name, (one, other), (np.array(of_one), np.array(of_other)), ks)
    if not rows:
        names = [", ".join(counts) for counts in counted]
        raise EvaluationError(f"{first} and {second} share no problem: sets {names[0]}, and {names[1]}")
    return rows, notes


def _rows(name: str, counts: tuple[Any, Any], places: tuple[Any, Any], ks: list[int]) -> Iterator[Row]:
    values = []
    for of_model, place in zip(counts, places, strict=True):
        metrics, _errors = summary.per_problem(of_model, ks)
        values.append({_without_n(metric, of_model.samples): value[place] for metric, value in metrics.items()})
    for metric in values[0]:
        if metric in values[1]:
            one, other = values[0][metric], values[1][metric]
            yield Row(name, metric, len(one), float(one.mean()), float(other.mean()), compare_paired(one, other))


def _without_n(metric: str, samples: int) -> str:
    return "avg" if metric == f"avg@{samples}" else metric


# Settings that may differ in a fair comparison.
_FREE = {
    "n",
    "seed",
    "tensor_parallel_size",
    "data_parallel",
    "max_model_len",
    "max_num_seqs",
    "gpu_memory_utilization",
}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note for each setting of generation or scoring in which two summaries differ."""
    for part in ("generation", "template", "scoring"):
        one, other = first.get(part) or {}, second.get(part) or {}
        for key in sorted({*one, *other} - _FREE):
            if one.get(key) != other.get(key):
                yield f"{part}.{key} differs: {_shown(one.get(key))} and {_shown(other.get(key))}"
    for name in sorted({*first["sets"]} & {*second["sets"]}):
        if first["sets"][name].get("sha256") != second["sets"][name].get("sha256"):
            yield f"{name}: the files differ"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else f"{text[:56]}..."
