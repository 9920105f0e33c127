"""Evaluations of `cfpo-verl eval`: a folder with summary.json and generations.parquet."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from cfpo_verl.errors import first_line
from cfpo_verl.report.readers.responses import choose
from cfpo_verl.report.run import Evaluation, ReportError, Response

_FORMAT = 1
_COLUMNS = ["set", "problem", "prompt", "response", "gold", "answer", "score"]


def _summary_file(path: Path) -> Path:
    return path / "summary.json" if path.is_dir() else path


def accepts(path: Path) -> bool:
    """Return whether this is a summary, or a folder with one."""
    file = _summary_file(path)
    if file.suffix != ".json" or not file.is_file():
        return False
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return path.is_dir()  # a broken summary.json is an error to report; another file may be something else
    return isinstance(summary, dict) and isinstance(summary.get("sets"), dict)


def read(path: Path, response_count: int) -> Evaluation:
    """Read an evaluation with a sample of its responses.

    Raises:
        ReportError: If the summary is broken, of another format or incomplete.
    """
    file = _summary_file(path)
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{file}: not JSON ({error}). Run `cfpo-verl eval` again") from error
    if summary.get("format") != _FORMAT:
        raise ReportError(f"{file}: format {summary.get('format')!r}, but this version reads format {_FORMAT}")
    try:
        _check(summary["sets"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{file}: a set lacks a part of format {_FORMAT} ({error!r}). Run `cfpo-verl eval` again"
        ) from error
    model = summary.get("model") or {}
    notes: list[str] = []
    run_dir, step = model.get("run_dir"), model.get("step")
    return Evaluation(
        str(summary.get("name") or file.parent.name),
        Path(run_dir) if run_dir else None,
        step,
        summary["sets"],
        tuple(_read_responses(file.with_name("generations.parquet"), response_count, step, notes)),
        tuple(notes),
        _settings(summary.get("generation")),
        file.parent,
    )


def _check(sets: dict[str, Any]) -> None:
    """Raise if a set lacks a part that the page shows."""
    for found in sets.values():
        for metric in found["metrics"].values():
            for key in ("value", "low", "high"):
                float(metric[key])
        curve = found["pass_at_k"]
        if len({len(curve[key]) for key in ("k", "value", "low", "high")}) != 1:
            raise ValueError("pass_at_k has columns of different length")


def _settings(generation: dict[str, Any] | None) -> str:
    shown = ("n", "temperature", "top_p", "top_k", "max_tokens", "seed")
    return ", ".join(f"{name} {generation[name]}" for name in shown if name in generation) if generation else ""


def _read_responses(file: Path, count: int, step: int | None, notes: list[str]) -> list[Response]:
    if not file.is_file():
        notes.append(f"{file.name} is not beside the summary, so its responses are not shown")
        return []
    try:
        table = pd.read_parquet(file, columns=_COLUMNS)
    except (ValueError, OSError, pa.ArrowException) as error:  # from pandas and pyarrow
        notes.append(f"{file.name} cannot be read ({first_line(error)}), so its responses are not shown")
        return []
    found: list[Response] = []
    for name, rows in table.groupby("set", sort=False):
        responses = [
            Response(
                str(name),
                step,
                str(row.prompt or row.problem or ""),
                str(row.response),
                str(row.gold),
                None if pd.isna(row.answer) else str(row.answer),
                float(row.score),
                row.score > 0.5,
            )
            for row in rows.itertuples()
        ]
        found.extend(choose(responses, max(count // table["set"].nunique(), 1)))
    return found
