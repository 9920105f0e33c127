"""Find and read the sets of problems of an evaluation."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from cfpo_verl.config_groups import names
from cfpo_verl.data_prep.schema import DataError, check_file, holds_null
from cfpo_verl.data_prep.text import fingerprint, normalise
from cfpo_verl.data_prep.writing import sha256
from cfpo_verl.errors import UserError
from cfpo_verl.files import reading
from cfpo_verl.rewards import unfit_gold


class EvaluationError(UserError):
    """An option or a file of an evaluation is invalid; the message names the value, the rule and the way out."""


@dataclass(frozen=True)
class EvalProblem:
    """One problem of a set.

    Args:
        index: Index in the set, from 0.
        uid: Identifies problem and gold answer, independently of the prompt.
        data_source: Name of the data source, by which the verifier chooses its rules.
        problem: Text of the problem; "" if the file has it only as part of the prompt.
        gold: The gold answer.
        messages: Messages of the prompt, as in training.
    """

    index: int
    uid: str
    data_source: str
    problem: str
    gold: str
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class EvalSet:
    """A set of problems.

    Args:
        name: Name in results.
        file: Path of its parquet file.
        sha256: SHA-256 of that file.
        problems: The problems, in the order of the file.
    """

    name: str
    file: Path
    sha256: str
    problems: list[EvalProblem]


def resolve(sets: str) -> dict[str, Path]:
    """Return {name: parquet file} for the value of --sets.

    Args:
        sets: Comma-separated names of the config group `eval_sets`, some of which have several files, and paths of
            parquet files.

    Raises:
        EvaluationError: If a name is unknown, or two files have the same name.
    """
    found: dict[str, Path] = {}
    for word in filter(None, map(str.strip, sets.split(","))):
        if word.endswith(".parquet"):
            paths = [Path(word)]
        elif word in names("eval_sets"):
            text = (files("cfpo_verl.hydra_configs") / "eval_sets" / f"{word}.yaml").read_text()
            paths = [Path(path) for path in OmegaConf.create(text).data.val_files]
        else:
            raise EvaluationError(
                f"no set called {word!r}. Choose from: {', '.join(names('eval_sets'))}; or give a parquet file"
            )
        for path in paths:
            name = _set_name(path)
            if found.setdefault(name, path) != path:
                raise EvaluationError(f"{found[name]} and {path} would both be called {name}: rename one")
    if not found:
        raise EvaluationError(f"--sets must name at least one set, got {sets!r}")
    return found


def _set_name(path: Path) -> str:
    """Return the name of the folder for a file named after its split, else the name of the file.

    Example:
        >>> _set_name(Path("data/aime24/train.parquet")), _set_name(Path("mine.parquet"))
        ('aime24', 'mine')
    """
    is_split = path.stem in ("train", "test", "validation", "val", "dev")
    return path.absolute().parent.name if is_split else path.stem


def read_set(name: str, file: Path, limit: int | None = None) -> EvalSet:
    """Read a set from a parquet file in verl's schema.

    Args:
        name: Name of the set.
        file: The file.
        limit: Maximum number of problems, taken from the beginning; None for all.

    Raises:
        DataError: If the file is not in verl's schema, or a row lacks a value.
        EvaluationError: If no response could match a gold answer.
    """
    try:
        check_file(file)
    except DataError:
        if file.exists():
            raise
        raise DataError(
            f"{file}: no such file. Write it with: cfpo-verl data prepare {name} --out {file.parent}"
        ) from None
    try:
        with reading(file):
            columns = [column for column in pq.read_schema(file).names if column in _READ]
            rows = pq.read_table(file, columns=columns).slice(0, limit).to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    seen: Counter[str] = Counter()
    problems = []
    for index, row in enumerate(rows):
        wrong = _why_unusable(row)
        if wrong:
            raise DataError(f"{file}, row {index}: {wrong}")
        problem = _problem(index, row)
        unfit = unfit_gold(problem.data_source, problem.gold)
        if unfit:
            raise EvaluationError(f"{file}, row {index}: gold answer {problem.gold!r} of {problem.data_source} {unfit}")
        seen[problem.uid] += 1
        if seen[problem.uid] > 1:  # count a repeated problem as another problem
            problem = EvalProblem(**{**vars(problem), "uid": f"{problem.uid}#{seen[problem.uid]}"})
        problems.append(problem)
    return EvalSet(name, file, sha256(file), problems)


_READ = ("data_source", "prompt", "reward_model", "extra_info")


def _why_unusable(row: Mapping[str, Any]) -> str | None:
    if not isinstance(row["data_source"], str):
        return f"data_source must be text, got {row['data_source']!r}"
    if not row["prompt"] or holds_null(row["prompt"]):
        return "prompt must be a list of messages with role and content"
    return "there is no ground_truth in reward_model" if holds_null(row["reward_model"]) else None


def _problem(index: int, row: dict[str, Any]) -> EvalProblem:
    info = row.get("extra_info")
    info = info if isinstance(info, dict) else {}
    messages = [{"role": message["role"], "content": message["content"]} for message in row["prompt"]]
    gold = str(row["reward_model"]["ground_truth"])
    text = str(info.get("problem") or info.get("question") or "")
    uid = str(info.get("uid") or "") or fingerprint(normalise(text or messages[-1]["content"]), normalise(gold))
    return EvalProblem(index, uid, row["data_source"], text, gold, messages)


def read_sets(sets: str, limit: int | None = None) -> list[EvalSet]:
    """Read all sets of --sets; see `resolve` and `read_set`."""
    return [read_set(name, file, limit) for name, file in resolve(sets).items()]
