"""Generated sums, such as `3+4+5=` -> `12`: seeded, verifiable, and learnt by a tiny model in seconds."""

import itertools
import random
from pathlib import Path

from cfpo_verl.data_prep.schema import DataError, Problem
from cfpo_verl.data_prep.writing import write_train_and_test

DATA_SOURCE = "arithmetic"


def make_problems(operands: int, seed: int) -> list[Problem]:
    """Return every sum of `operands` one-digit numbers once, in an order drawn from `seed`.

    Raises:
        DataError: If there are fewer than 2 or more than 5 operands (10**operands problems are made).
    """
    if not 2 <= operands <= 5:
        raise DataError(f"operands must be between 2 and 5, got {operands}")
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
        seed: Seed for the order, which decides which problems are held out.

    Returns:
        The two paths, train first.

    Raises:
        DataError: If `operands` is out of range, or the held-out problems leave none to train on.
    """
    arguments = {"operands": operands, "held_out": held_out, "seed": seed}
    return write_train_and_test(out, make_problems(operands, seed), held_out, DATA_SOURCE, arguments)


if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", "arithmetic")
