"""Time decontamination and deduplication against straightforward versions, in one run.

    python -m benchmarks.data                                  # 220,000 rows to decontaminate, 1,800,000 to deduplicate
    python -m benchmarks.data --rows 20000 --gsm8k gsm8k_train.jsonl --out a.json

The problems are generated stories about money of about 80 words, and the questions of a GSM8K file if one is given,
repeated as often as needed, each time after another generated sentence. The straightforward version keeps the runs of
words of the evaluation problems as tuples in a set and looks up each run of each row, in a loop over a pandas frame.
It splits texts into the same words, has no rule for instructions (these files have none), and keeps all rows in
memory.

Deduplication is `prepare` of DAPO-Math-17k: read, find repeated rows, extract, check, write. The straightforward
version reads the same file into a pandas frame, takes problem and answer out of the nested columns, and drops
duplicates; it neither checks nor writes.
"""

import argparse
import json
import platform
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.tables import print_rows
from cfpo_verl.data_prep import dapo_math_17k
from cfpo_verl.data_prep.decontaminate import NGRAM_WORDS, decontaminate
from cfpo_verl.data_prep.prepare import prepare
from cfpo_verl.data_prep.schema import SCHEMA, Problem, to_row
from cfpo_verl.data_prep.text import words

_BATCH_ROWS = 10000
# One in this many rows of the training file is a copy of an evaluation problem.
_COPY_EVERY = 100

# Random names, so that stories rarely share eight consecutive words.
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_SENTENCES = [
    "On {day} {name} went to the {place} and paid ${a} for {b} {things}.",
    "A friend called {other} brought {c} more {things} and sold {d} of them for {place}.",
    "Each of the {things} left for {other} was worth {e} cents to {name}.",
    "{other} then gave {a} percent of the {things} to a neighbour at the {place}.",
    "There were {b} boxes of {name}, every box had room for {c} {things} and one {other_things}.",
    "After {d} hours {name} had walked {e} kilometers, back to the {place}.",
    "The price of {other_things} rose by {a} dollars, while {things} stayed at {b} dollars.",
    "{name} promised {other} to buy {c} {other_things} every {day} for {d} weeks.",
]
_QUESTIONS = [
    "How many {things} does {name} have now?",
    "How much money did {other} spend on {things} altogether?",
    "What is the total number of {things} and {other_things}?",
]


def story(generator: random.Random) -> str:
    """Return a generated word problem of about 80 words."""
    slots = {slot: "".join(generator.sample(_SYLLABLES, 3)) for slot in ("name", "other", "place")}
    slots |= {slot: "".join(generator.sample(_SYLLABLES, 3)) + "s" for slot in ("things", "other_things")}
    slots |= {letter: str(generator.randrange(2, 10000)) for letter in "abcde"}
    parts = [*generator.sample(_SENTENCES, 5), generator.choice(_QUESTIONS)]
    return " ".join(part.format(day=generator.choice(_DAYS), **slots) for part in parts)


def training_problems(rows: int, evaluation: list[str], real: list[str], seed: int) -> Iterator[str]:
    """Yield problems: one in a hundred a copy of an evaluation problem, else alternately a real one and a story."""
    generator = random.Random(seed)
    for row in range(rows):
        if row % _COPY_EVERY == 0:
            yield generator.choice(evaluation)
        elif real and row % 2:
            yield f"{story(generator).split('.')[0]}. {real[row // 2 % len(real)]}"
        else:
            yield story(generator)


def write_problems(path: Path, problems: Iterator[str]) -> Path:
    """Write problems to a parquet file in verl's schema, in batches."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        rows = []
        for index, problem in enumerate(problems):
            rows.append(to_row(Problem(problem, "0"), "benchmark", "math", "train", index))
            if len(rows) == _BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return path


def plain_decontaminate(train: Path, evaluation: Path, out: Path) -> int:
    """Decontaminate the straightforward way; return the number of rows left out."""

    def runs(row: Any) -> set[tuple[str, ...]]:
        found = words(row.prompt[-1]["content"])
        return {tuple(found[start : start + NGRAM_WORDS]) for start in range(max(1, len(found) - NGRAM_WORDS + 1))}

    known = set().union(*map(runs, pd.read_parquet(evaluation).itertuples()))
    frame = pd.read_parquet(train)
    clean = frame[[runs(row).isdisjoint(known) for row in frame.itertuples()]]
    clean.to_parquet(out)
    return len(frame) - len(clean)


def measure(rows: int, evaluation_rows: int, real: list[str]) -> list[dict[str, Any]]:
    """Return one row per version and size, after checking that both versions leave out the same number of rows.

    `time_ratio` is relative to cfpo_verl on the same rows, `growth` to the same version on a tenth of the rows.
    """
    generator = random.Random(0)
    evaluation_problems = [story(generator) for _ in range(evaluation_rows)]
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        evaluation = write_problems(folder / "evaluation.parquet", iter(evaluation_problems))
        for size in (rows // 10, rows):
            train = write_problems(
                folder / f"train_{size}.parquet", training_problems(size, evaluation_problems, real, seed=1)
            )
            start = time.perf_counter()
            report = decontaminate(train, [evaluation], folder / "clean.parquet")
            elapsed = time.perf_counter() - start
            results.append(result("cfpo_verl", size, elapsed, len(report.removed)))
            start = time.perf_counter()
            removed = plain_decontaminate(train, evaluation, folder / "plain.parquet")
            elapsed = time.perf_counter() - start
            if removed != len(report.removed):
                raise AssertionError(f"of {size} rows {len(report.removed)} left out, by the plain version {removed}")
            results.append(result("plain", size, elapsed, removed))
    for row in results:
        ours = {other["rows"]: other["time_s"] for other in results if other["version"] == "cfpo_verl"}
        row["time_ratio"] = row["time_s"] / ours[row["rows"]]
        row["growth"] = row["time_s"] / next(other["time_s"] for other in results if other["version"] == row["version"])
    return results


def write_dapo(path: Path, rows: int, distinct: int) -> Path:
    """Write rows in the columns of the public DAPO file, drawn from `distinct` different ones."""
    generator, draw = random.Random(0), np.random.default_rng(0)
    problems = [story(generator) for _ in range(distinct)]
    prompts = pa.array([dapo_math_17k.BEFORE + problem + dapo_math_17k.AFTER for problem in problems])
    answers = pa.array([str(number) for number in range(distinct)])
    writer = None
    for start in range(0, rows, 100_000):
        count = min(100_000, rows - start)
        chosen = pa.array(draw.integers(0, distinct, count))
        message = pa.StructArray.from_arrays([pa.array(["user"] * count), prompts.take(chosen)], ["role", "content"])
        style = pa.array(["rule-lighteval/MATH_v2"] * count)
        batch = pa.RecordBatch.from_arrays(
            [
                pa.array(["math_dapo"] * count),
                pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), message),
                pa.array(["MATH"] * count),
                pa.StructArray.from_arrays([answers.take(chosen), style], ["ground_truth", "style"]),
                pa.StructArray.from_arrays([chosen.cast(pa.string())], ["index"]),
            ],
            ["data_source", "prompt", "ability", "reward_model", "extra_info"],
        )
        writer = writer or pq.ParquetWriter(path, batch.schema)
        writer.write_batch(batch)
    writer.close()
    return path


def plain_deduplicate(path: Path) -> int:
    """Deduplicate the straightforward way; return the number of rows left."""
    frame = pd.read_parquet(path, columns=["prompt", "reward_model"])
    frame["problem"] = [prompt[0]["content"] for prompt in frame["prompt"]]
    frame["answer"] = [reward_model["ground_truth"] for reward_model in frame["reward_model"]]
    return len(frame.drop_duplicates(["problem", "answer"]))


def measure_deduplication(rows: int, distinct: int) -> list[dict[str, Any]]:
    """Return one row per version and size; `growth` is relative to the same version on a tenth of the rows."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in (rows // 10, rows):
            path = write_dapo(folder / f"dapo_{size}.parquet", size, distinct)
            for version, run in (
                ("cfpo_verl", lambda path=path: prepare(dapo_math_17k.SOURCE, folder, str(path))[1].rows_out),
                ("plain", lambda path=path: plain_deduplicate(path)),
            ):
                start = time.perf_counter()
                left = run()
                results.append(result(version, size, time.perf_counter() - start, size - left))
    peers = {(row["version"], row["rows"]): row["time_s"] for row in results}
    for row in results:
        row["time_ratio"] = row["time_s"] / peers["cfpo_verl", row["rows"]]
        row["growth"] = row["time_s"] / peers[row["version"], rows // 10]
    return results


def result(version: str, rows: int, elapsed_s: float, removed: int) -> dict[str, Any]:
    """Return a row of the table."""
    return {
        "version": version,
        "rows": rows,
        "removed": removed,
        "time_s": elapsed_s,
        "rows_per_s": round(rows / elapsed_s),
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=220_000, help="rows of the training file (default: %(default)s)")
    parser.add_argument("--evaluation-rows", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--dapo-rows", type=int, default=1_800_000, help="rows to deduplicate (default: %(default)s)")
    parser.add_argument("--gsm8k", type=Path, help="GSM8K .jsonl file whose questions are mixed in")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/data.json"), help="default: %(default)s")
    arguments = parser.parse_args()
    if min(arguments.rows, arguments.dapo_rows) < 1000:
        parser.error(f"--rows and --dapo-rows must be at least 1000, got {arguments.rows} and {arguments.dapo_rows}")
    lines = arguments.gsm8k.read_text(encoding="utf-8").splitlines() if arguments.gsm8k else []
    results = measure(arguments.rows, arguments.evaluation_rows, [json.loads(line)["question"] for line in lines])
    print_rows(results, f"decontamination against {arguments.evaluation_rows} problems")
    deduplication = measure_deduplication(arguments.dapo_rows, min(17_398, arguments.dapo_rows // 10))
    print_rows(deduplication, "deduplication of rows in DAPO's columns")
    # Of the whole process: both versions and both parts together.
    print(f"peak memory of all of this: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB")
    arguments.out.write_text(
        json.dumps(
            {
                "cores": psutil.cpu_count(),
                "processor": platform.processor() or platform.machine(),
                "evaluation_rows": arguments.evaluation_rows,
                "decontamination": results,
                "deduplication": deduplication,
            },
            indent=1,
        )
    )
    print(arguments.out)


if __name__ == "__main__":
    main()
