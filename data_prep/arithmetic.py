"""Generated sums, such as `3+4+5=` -> `12`: endless, seeded, verifiable, learnt by a tiny model in seconds."""

import itertools
import random
from pathlib import Path

from cfpo_verl.data_prep.schema import Problem, to_row, write_rows

DATA_SOURCE = "arithmetic"


def make_problems(operands: int, seed: int) -> list[Problem]:
    """Return every sum of `operands` one-digit numbers once, in an order drawn from `seed`.

    Raises:
        ValueError: If there are fewer than 2 or more than 5 operands (10**operands problems are made).
    """
    if not 2 <= operands <= 5:
        raise ValueError(f"operands must be between 2 and 5, got {operands}")
    problems = [
        Problem(question="+".join(map(str, terms)) + "=", answer=str(sum(terms)))
        for terms in itertools.product(range(10), repeat=operands)
    ]
    random.Random(seed).shuffle(problems)
    return problems


def prepare(out: Path, operands: int, held_out: int, seed: int) -> list[Path]:
    """Write `train.parquet` and `test.parquet`, which share no problem.

    Args:
        out: Folder for the two files.
        operands: Number of one-digit terms in each sum.
        held_out: Number of problems in the test file.
        seed: Decides the order, and so which problems are held out.

    Returns:
        The two paths, train first.

    Raises:
        ValueError: If the held-out problems leave none to train on.
    """
    problems = make_problems(operands, seed)
    if not 0 < held_out < len(problems):
        raise ValueError(f"held_out must be between 1 and {len(problems) - 1}, got {held_out}")
    splits = {"train": problems[held_out:], "test": problems[:held_out]}
    return [
        write_rows(
            out / f"{split}.parquet",
            [to_row(problem, DATA_SOURCE, "math", split, index) for index, problem in enumerate(rows)],
        )
        for split, rows in splits.items()
    ]
