"""What a parquet file holds: numbers for a table, and a picture of lengths."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from cfpo_verl.data_prep.schema import DataError, check_file, holds_null
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
        DataError: If verl could not read the file.
    """
    check_file(path)
    found: dict[str, Stats] = {}
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=["data_source", "prompt", "reward_model"]):
            for row in batch.to_pylist():
                if holds_null(row):
                    raise DataError(f"{path}: holds nulls. See where with: cfpo-verl data validate {path}")
                stats = found.setdefault(row["data_source"], Stats())
                stats.rows += 1
                characters = sum(len(message["content"]) for message in row["prompt"])
                stats.prompt_lengths[count_tokens(row["prompt"]) if count_tokens else characters] += 1
                gold = row["reward_model"]["ground_truth"]
                stats.numeric_answers += parse_number(gold) is not None
                stats.answer_lengths[len(gold)] += 1
    return dict(sorted(found.items()))


def quantile(counts: Counter[int], share: float) -> int:
    """Return the smallest length that at least this share of the rows does not exceed.

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
        unit: Of the prompt lengths, "tokens" or "characters".
        path: The file to write.
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
    figure.savefig(path, dpi=110, format="png")
