"""Description of a public data set, and the templates of its prompts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cfpo_verl.data_prep.schema import DataError, Problem

TEMPLATES = {
    "plain": "{problem}",
    "hashes": "{problem}\nThink step by step, then write the final answer, a plain number, after ####.",
    "boxed": "{problem}\nThink step by step, then write the final answer in \\boxed{{}}.",
}


class Dropped(Exception):
    """A row is left out; the message is the reason that is counted."""


@dataclass(frozen=True)
class Source:
    """A public data set.

    Args:
        name: Name on the command line.
        data_source: Its name in the rows; a key of `cfpo_verl.data_sources.DATA_SOURCES`.
        hub_id: Id on the Hugging Face hub.
        licence: Licence as the owner states it.
        columns: The columns that `to_problem` reads. Rows that are equal in all of them are repeated rows.
        to_problem: Turns a row into a problem, or raises `Dropped`. Gets only `columns` and `optional_columns`.
        splits: Names of the splits on the hub.
        hub_config: Name of the configuration on the hub.
        revision: Git revision on the hub. main unless a fixed one was checked.
        evaluation_only: Whether it is a benchmark, which must not be trained on.
        template: Default template of the prompts, a key of `TEMPLATES`.
        excludes: A data set whose problems are left out.
        optional_columns: Columns that `to_problem` reads where they exist, such as ids; they do not distinguish rows.
    """

    name: str
    data_source: str
    hub_id: str
    licence: str
    columns: tuple[str, ...]
    to_problem: Callable[[Mapping[str, Any]], Problem]
    splits: tuple[str, ...] = ("train",)
    hub_config: str | None = None
    revision: str = "main"
    evaluation_only: bool = False
    template: str = "boxed"
    optional_columns: tuple[str, ...] = ()
    excludes: "Source | None" = None


def template_text(template: str) -> str:
    """Return the text of a named template, or the given text.

    Raises:
        DataError: If it is neither a known name nor a format string with `{problem}`.
    """
    text = TEMPLATES.get(template, template)
    try:
        formatted = text.format(problem="\0")
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"prompt template {template!r} cannot be filled in ({error!r}). "
            "Double all braces other than those of {problem}"
        ) from error
    if "\0" not in formatted:
        raise DataError(
            f"prompt template {template!r} is neither one of {', '.join(TEMPLATES)} nor a text with {{problem}} in it"
        )
    return text
