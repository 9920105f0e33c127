"""Responses that verl writes during training (`trainer.rollout_data_dir`, `trainer.validation_data_dir`)."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cfpo_verl.report.run import Response

# Keys of verl's trainer, and our names for their responses.
_DUMPS = {"validation_data_dir": "validation", "rollout_data_dir": "training"}


def dump_folders(run_dir: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """Return {kind: folder} of the responses that verl has written.

    A path in the config is relative to where the run was started, but runs are moved and copied: a folder of that name
    in the run folder comes first.
    """
    trainer = config.get("trainer")
    found: dict[str, Path] = {}
    for key, kind in _DUMPS.items():
        value = trainer.get(key) if isinstance(trainer, Mapping) else None
        if isinstance(value, str):
            places = [place for place in (run_dir / Path(value).name, Path(value)) if place.is_dir()]
            found.update({kind: places[0]} if places else {})
    return found


def read_dumps(folders: Mapping[str, Path], count: int, notes: list[str]) -> list[Response]:
    """Read a sample from the first, middle and last step of each kind, half of it right if possible.

    Not from all steps: a run has thousands of files, each with a whole batch.

    Args:
        folders: {kind: folder with <step>.jsonl}.
        count: Total number of responses.
        notes: A remark for each line that is left out is added here.
    """
    files = [
        (kind, file)
        for kind, folder in folders.items()
        for file in _spread(
            sorted((file for file in folder.glob("*.jsonl") if file.stem.isdigit()), key=lambda file: int(file.stem))
        )
    ]
    found: list[Response] = []
    for kind, file in files:
        found.extend(choose(_read_dump(kind, file, notes), max(count // len(files), 1)))
    return found


def _spread(files: Sequence[Path]) -> list[Path]:
    """Return the last, the middle and the first."""
    last = len(files) - 1
    return [files[place] for place in sorted({0, last // 2, last}, reverse=True)] if files else []


def _read_dump(kind: str, file: Path, notes: list[str]) -> list[Response]:
    found = []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            found.append(
                Response(
                    kind,
                    int(row.get("step", file.stem)),
                    str(row["input"]),
                    str(row["output"]),
                    "" if row.get("gts") is None else str(row["gts"]),
                    None if row.get("pred") is None else str(row["pred"]),
                    float(row["score"]),
                    float(row.get("acc", row["score"])) > 0.5,
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            notes.append(f"{file.parent.name}/{file.name}, line {number}: not a response, left out")
    return found


def choose(found: Iterable[Response], count: int) -> list[Response]:
    """Choose at most `count` responses at random, alternately right and wrong ones if possible; always the same ones.

    The first ones of a file would not be typical: files are sorted by problem.
    """
    rng = random.Random(0)
    right, wrong = _shuffled(found, True, rng), _shuffled(found, False, rng)
    from_right = min(len(right), max(count - count // 2, count - len(wrong)))
    turns = zip_longest(right[:from_right], wrong[: count - from_right])
    return [response for pair in turns for response in pair if response is not None]


def _shuffled(found: Iterable[Response], is_right: bool, rng: random.Random) -> list[Response]:
    kept = [response for response in found if response.is_right == is_right]
    rng.shuffle(kept)
    return kept
