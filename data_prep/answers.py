"""Read problems and final answers from the columns of a source. Where there is none, `Dropped` says why."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from cfpo_verl.data_prep.schema import Problem
from cfpo_verl.data_prep.source import Dropped
from cfpo_verl.rewards.answers import canonical_answer, parse_number
from cfpo_verl.rewards.extract import last_boxed


def after_hashes(solution: Any) -> str:
    """Return the number after the last `####`, GSM8K's marker, without thousands commas.

    Raises:
        Dropped: If there is none.
    """
    _before, marker, after = _text(solution).rpartition("####")
    number = parse_number(after) if marker else None
    if number is None:
        raise Dropped("no number after ####")
    return str(number)


def in_last_box(solution: Any) -> str:
    r"""Return the content of the last balanced `\boxed{...}`.

    Raises:
        Dropped: If there is none, or it is empty.
    """
    boxed = last_boxed(_text(solution))
    if boxed is None:
        raise Dropped("no boxed answer")
    if not canonical_answer(boxed):
        raise Dropped("empty answer")
    return boxed


def _text(solution: Any) -> str:
    if not isinstance(solution, str):
        raise Dropped("no answer")
    return solution


def stated(answer: Any) -> str:
    """Return the answer from a column of its own, without enclosing dollar signs.

    A float that is a whole number, such as 27.0, is written as 27.

    Raises:
        Dropped: If it is empty.
    """
    if answer is None:
        raise Dropped("no answer")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    text = re.sub(r"^\$(.*)\$$", r"\1", str(answer).strip(), flags=re.DOTALL).strip()
    if not canonical_answer(text):
        raise Dropped("empty answer")
    return text


def number(answer: Any) -> str:
    """Return a stated answer that is a plain number, without thousands commas.

    Raises:
        Dropped: If it is not one.
    """
    value = parse_number(stated(answer))
    if value is None:
        raise Dropped("answer is not a plain number")
    return str(value)


def asked(problem: Any) -> str:
    """Return the text of a problem.

    Raises:
        Dropped: If it is empty.
    """
    if not isinstance(problem, str) or not problem.strip():
        raise Dropped("empty problem")
    return problem.strip()


def columns(
    problem: str, answer: str, read_answer: Callable[[Any], str], source_id: str | None = None
) -> Callable[[Mapping[str, Any]], Problem]:
    """Return `to_problem` for a source with one column for the problem and one for the answer.

    Args:
        problem: Name of the column with the problem.
        answer: Name of the column with the answer, or with a solution that ends in it.
        read_answer: One of the functions above.
        source_id: Name of the column with an id, which may be missing.
    """

    def to_problem(row: Mapping[str, Any]) -> Problem:
        found = row.get(source_id) if source_id else None
        return Problem(asked(row[problem]), read_answer(row[answer]), "" if found is None else str(found))

    return to_problem
