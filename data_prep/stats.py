"""Statistics of a parquet file, and a plot of its lengths."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfpo_verl.data_prep.schema import DataError, check_file, holds_null, read_batches
from cfpo_verl.files import replacing
from cfpo_verl.rewards.answers import parse_number

BATCH_ROWS = 20_000


@dataclass
class Stats:
    """Counts and lengths of the rows of one data source.

    Args:
        rows: Number of rows.
        prompt_lengths: {length: rows}, in tokens where a tokenizer was given, else in characters.
        numeric_answers: Rows whose answer is a plain number.
        answer_lengths: {length in characters: rows}.
    """

    rows: int = 0
    prompt_lengths: Counter[int] = field(default_factory=Counter)
    numeric_answers: int = 0
    answer_lengths: Counter[int] = field(default_factory=Counter)


def collect(path: Path, count_tokens: Callable[[Sequence[dict[str, str]]], int] | None) -> dict[str, Stats]:
    """Return {data source: stats} of a file, read in batches.

    Raises:
        DataError: If verl could not read the file, or a value is not text.
    """
    check_file(path)
    found: dict[str, Stats] = {}
    columns = ["data_source", "prompt", "reward_model"]
    rows = (row for batch in read_batches(path, BATCH_ROWS, columns) for row in batch.to_pylist())
    for number, row in enumerate(rows):
        source, gold = row["data_source"], row["reward_model"] and row["reward_model"]["ground_truth"]
        if holds_null(row) or not all(isinstance(text, str) for text in (source, gold, *_contents(row))):
            raise DataError(
                f"{path}, row {number}: has a null, or a value that is not text. "
                f"See which with: cfpo-verl data validate {path}"
            )
        stats = found.setdefault(source, Stats())
        stats.rows += 1
        length = count_tokens(row["prompt"]) if count_tokens else sum(map(len, _contents(row)))
        stats.prompt_lengths[length] += 1
        stats.numeric_answers += parse_number(gold) is not None
        stats.answer_lengths[len(gold)] += 1
    return dict(sorted(found.items()))


def _contents(row: Mapping[str, Any]) -> list[Any]:
    return [message and message["content"] for message in row["prompt"] or ()]


def quantile(counts: Counter[int], share: float) -> int:
    """Return the smallest length that is not exceeded in at least this share of the rows.

    Example:
        >>> quantile(Counter({10: 3, 20: 1}), 0.5), quantile(Counter({10: 3, 20: 1}), 1.0)
        (10, 20)
    """
    wanted, seen = share * counts.total(), 0
    for length in sorted(counts):
        seen += counts[length]
        if seen >= wanted:
            return length
    return 0


def draw(found: dict[str, Stats], unit: str, path: Path) -> None:
    """Draw histograms of prompt and answer lengths as PNG.

    Args:
        found: {data source: stats}.
        unit: Unit of the prompt lengths, "tokens" or "characters".
        path: The file to write.

    Raises:
        FileError: If the system refuses to write it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, title, lengths in (
        (panels[0], f"Prompt, {unit}", [stats.prompt_lengths for stats in found.values()]),
        (panels[1], "Gold answer, characters", [stats.answer_lengths for stats in found.values()]),
    ):
        axes.hist(
            [list(counts) for counts in lengths],
            weights=[list(counts.values()) for counts in lengths],
            bins=40,
            stacked=True,
            label=list(found),
        )
        axes.set_title(title)
        axes.set_ylabel("rows")
    panels[0].legend(fontsize="small")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")
