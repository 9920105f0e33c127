"""Generated reasoning tasks of Reasoning Gym: its questions and answers, never its scorers, which give partial credit.

Needs `pip install reasoning-gym`. Stojanovski et al., "Reasoning Gym", 2025, arXiv:2505.24760.
"""

from pathlib import Path

from cfpo_verl.data_prep.schema import DataError, Problem
from cfpo_verl.data_prep.writing import write_train_and_test

DATA_SOURCE = "reasoning_gym"


def make_problems(task: str, count: int, seed: int) -> list[Problem]:
    """Return `count` different problems of a task, in an order drawn from `seed`.

    Raises:
        DataError: If the package is missing, does not know the task, or gives too few distinct problems.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise DataError(f"reasoning_gym cannot be imported ({error}). Install it: pip install reasoning-gym") from error
    if count < 1:
        raise DataError(f"count must be at least 1, got {count}")
    try:
        # Some tasks repeat problems: twice as many usually contain enough distinct ones.
        entries = reasoning_gym.create_dataset(task, size=2 * count, seed=seed)
    except ValueError as error:
        raise DataError(f"task {task!r}: {error}. The tasks are listed in reasoning_gym.factory.DATASETS") from error
    found: dict[str, Problem] = {}
    for entry in entries:
        if entry["answer"] is not None and str(entry["answer"]).strip():
            problem = Problem(entry["question"].strip(), str(entry["answer"]).strip(), task)
            found.setdefault(problem.question, problem)
        if len(found) == count:
            return list(found.values())
    raise DataError(f"task {task!r} gave only {len(found)} distinct problems, {count} are needed. Ask for fewer")


def prepare(out: Path, task: str, count: int, held_out: int, seed: int) -> list[Path]:
    """Write `train.parquet` with `count` problems and `test.parquet` with `held_out` others.

    Returns:
        The two paths, train first.

    Raises:
        DataError: See `make_problems`.
    """
    problems = make_problems(task, count + held_out, seed)
    arguments = {"task": task, "count": count, "held_out": held_out, "seed": seed}
    return write_train_and_test(out, problems, held_out, DATA_SOURCE, arguments)


if __name__ == "__main__":
    from cfpo_verl.cli import run_script

    run_script("data", "prepare", "reasoning-gym")
