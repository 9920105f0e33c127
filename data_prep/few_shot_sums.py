"""Generated sums with worked examples before them, as plain text for a pretrained model to continue.

A prompt is `12 + 7 = 19` and three more such lines, then `30 + 4 =`; the answer completes the last line.
"""

import random
from pathlib import Path

from cfpo_verl.data_prep.schema import DataError, Problem
from cfpo_verl.data_prep.writing import write_train_and_test

DATA_SOURCE = "few_shot_sums"


def make_problems(count: int, largest: int, shots: int, seed: int) -> list[Problem]:
    """Return `count` problems with distinct final sums, in an order drawn from `seed`.

    Args:
        count: Number of problems.
        largest: Largest term; both terms are drawn from 1 to this.
        shots: Worked examples before each sum; the sum itself is never among them.
        seed: Seed for the problems and the worked examples.

    Raises:
        DataError: If `shots` is out of range.
    """
    pairs = [(a, b) for a in range(1, largest + 1) for b in range(1, largest + 1)]
    if not 0 <= shots < len(pairs):
        raise DataError(f"shots must be between 0 and {len(pairs) - 1}, got {shots}")
    generator = random.Random(seed)
    problems = []
    for pair in generator.sample(pairs, count):
        examples = generator.sample([other for other in pairs if other != pair], shots)
        lines = [f"{a} + {b} = {a + b}\n" for a, b in examples]
        problems.append(Problem("".join(lines) + f"{pair[0]} + {pair[1]} =", str(sum(pair))))
    return problems


def prepare(out: Path, count: int, held_out: int, largest: int, shots: int, seed: int) -> list[Path]:
    """Write `train.parquet` with `count` problems and `test.parquet` with `held_out` others.

    Returns:
        The two paths, train first.

    Raises:
        DataError: If there are too few different sums, or `shots` is out of range.
    """
    different = max(largest, 0) ** 2
    if count < 1 or held_out < 1 or count + held_out > different:
        raise DataError(
            f"count ({count}) and held_out ({held_out}) must be at least 1, and together at most the {different} "
            f"different sums of two terms up to {largest}"
        )
    problems = make_problems(count + held_out, largest, shots, seed)
    arguments = {"count": count, "held_out": held_out, "largest": largest, "shots": shots, "seed": seed}
    return write_train_and_test(out, problems, held_out, DATA_SOURCE, arguments)


if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", "few-shot-sums")
