r"""Compare the reward with math-verify and verl's own reward functions: verdicts and cost, in one run.

    python -m benchmarks.rewards                                   # all parts
    python -m benchmarks.rewards --parts speed --rounds 5 --out a.json

agreement: compares gold answers of six public sets with themselves and with gold answers of other problems of the same
set, and our verdicts with those of math-verify at its default settings.

speed: CPU seconds per response, including those of worker processes, after warm-up. Every round has different problems,
so that no result is cached from an earlier one. Scorers are called as in training: all get whole responses, ours also
the row's problem. gsm8k only looks after `####`, which these responses do not have.

batch: wall-clock time of a batch scored as in the reward loop, all at once in one process.

poison: the same with correct answers, except one in a hundred that is as expensive as possible to compare.

The data are .jsonl files as published. Responses are sentences from MATH's solutions followed by a boxed answer. Four
in five problems have plain numbers as answers. Half of the 8 responses to a problem are correct, one in four of these
written differently from the gold answer. Each part runs in its own process, so that they share no memory.
"""

import argparse
import asyncio
import itertools
import json
import logging
import multiprocessing
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from pebble import ProcessPool
from rich.markup import escape
from rich.progress import track

from benchmarks.tables import print_rows
from cfpo_verl.data_prep.answers import stated
from cfpo_verl.data_sources import data_source
from cfpo_verl.errors import UserError
from cfpo_verl.rewards import compute_score, compute_score_async
from cfpo_verl.rewards.answers import canonical_answer, parse_number, read
from cfpo_verl.rewards.compare import compare
from cfpo_verl.rewards.extract import extract_answer, last_boxed

_MATH = "lighteval/MATH"
# Name of the set: file, data source, and function that returns the gold answer of a row.
_SETS: dict[str, tuple[str, str, Callable[[dict[str, Any]], str | None]]] = {
    "MATH-500": ("math500.jsonl", "HuggingFaceH4/MATH-500", lambda row: row["answer"]),
    "MATH test": ("math_test.jsonl", _MATH, lambda row: last_boxed(row["solution"])),
    "AIME 2024": ("aime24.jsonl", "aime24", lambda row: str(row["answer"])),
    "AMC 2023": ("amc23.jsonl", "amc23", lambda row: str(row["answer"])),
    "Minerva": ("minerva_math.jsonl", "minerva_math", lambda row: last_boxed(row["solution"])),
    # Without dollar signs, as in training.
    "OlympiadBench": ("olympiadbench.jsonl", "olympiadbench", lambda row: stated(", ".join(row["final_answer"]))),
}
_THEIR_DEADLINE_S = 10
_SHOWN = 40

_GROUP = 8
_SHORT, _LONG = (300, 300), (7000, 8000)  # characters before the answer; the long ones are about 2,048 tokens
_POISON_EVERY = 100
_SAMPLE_EVERY_S = 0.05


def gold_answers(data: Path, name: str, limit: int | None) -> list[str]:
    """Return the gold answers of the first `limit` problems of a set."""
    file, _source, gold_of = _SETS[name]
    golds = [gold_of(row) for row in read_rows(data / file)[:limit]]
    return [gold for gold in golds if gold is not None]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a .jsonl file."""
    # Not splitlines, which would also split at Unicode separators inside strings.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def boxed(answer: str) -> str:
    r"""Return a response that consists of a box only."""
    return rf"\boxed{{{answer}}}"


# Agreement with math-verify.


def measure_agreement(data: Path, limit: int | None, others: int) -> dict[str, Any]:
    """Return counts per set, the gold answers that do not score 1 against themselves, and the disagreements.

    `equal` counts the pairs that both verifiers call equal, `only_ours` and `only_theirs` those that one of them does.
    Timeouts and errors are those of math-verify.
    """
    rows, own, disagreements = [], [], []
    for name in track(_SETS, description="agreement"):
        source = _SETS[name][1]
        golds = gold_answers(data, name, limit)
        scores = score_at_once([(source, boxed(gold), gold, None) for gold in golds])
        failed = [gold for gold, score in zip(golds, scores, strict=True) if score["score"] != 1]
        own += [{"set": name, "gold": gold} for gold in failed]
        # Many problems have gold answers such as 2: compare each pair once and count it as often as it is drawn.
        pairs = Counter(pairs_of(golds, others, random.Random(0)))
        ours = score_at_once([(source, boxed(answer), gold, None) for gold, answer in pairs])
        theirs = their_verdicts(list(pairs))
        counts: Counter[str] = Counter()
        for (pair, times), score, their in zip(pairs.items(), ours, theirs, strict=True):
            our = "equal" if score["score"] == 1 else "different"
            counts[f"{our} {their}"] += times
            if our != their:
                disagreements.append({"set": name, "gold": pair[0], "answer": pair[1], "ours": our, "theirs": their})
        rows.append(
            {
                "set": name,
                "golds": len(golds),
                "not_itself": len(failed),
                "pairs": pairs.total(),
                "agree": counts["equal equal"] + counts["different different"],
                "equal": counts["equal equal"],
                "only_ours": counts["equal different"],
                "only_theirs": counts["different equal"],
                "timeouts": counts["equal timeout"] + counts["different timeout"],
                "errors": counts["equal error"] + counts["different error"],
            }
        )
    return {"sets": rows, "not_itself": own, "disagreements": disagreements}


def pairs_of(golds: Sequence[str], others: int, generator: random.Random) -> Iterator[tuple[str, str]]:
    """Yield pairs of each gold answer with those of other problems, except identical texts."""
    for index, gold in enumerate(golds):
        drawn = generator.sample(range(len(golds)), min(others + 1, len(golds)))
        chosen = [other for other in drawn if other != index][:others]
        yield from ((gold, golds[other]) for other in chosen if golds[other] != gold)


def their_verdicts(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return math-verify's verdict for each pair (gold, answer): equal, different, timeout or error."""
    by_gold: dict[str, list[str]] = {}
    for gold, answer in pairs:
        by_gold.setdefault(gold, []).append(answer)
    found: dict[tuple[str, str], str] = {}
    # Its own timeouts are signals, which need the main thread of a process. They do not interrupt a long
    # multiplication, so the pool has a timeout too.
    with ProcessPool(max_workers=os.cpu_count() or 1, context=multiprocessing.get_context("forkserver")) as pool:

        def schedule(gold: str, answers: list[str]) -> "Future[list[str]]":
            return pool.schedule(verify_by_math_verify, args=(gold, answers), timeout=_THEIR_DEADLINE_S)

        chunks = {gold: schedule(gold, answers) for gold, answers in by_gold.items()}
        alone: list[tuple[str, str]] = []
        for gold, answers in by_gold.items():
            try:
                found.update({(gold, answer): v for answer, v in zip(answers, chunks[gold].result(), strict=True)})
            except Exception:  # one answer timed out: compare each of them separately
                alone += [(gold, answer) for answer in answers]
        single = {pair: schedule(pair[0], [pair[1]]) for pair in alone}
        for pair, future in single.items():
            try:
                found[pair] = future.result()[0]
            except TimeoutError:
                found[pair] = "timeout"
            except Exception:  # the process died
                found[pair] = "error"
    return [found[pair] for pair in pairs]


def verify_by_math_verify(gold: str, answers: list[str]) -> list[str]:
    """Compare answers with a gold answer using math-verify's defaults. Runs in a worker process."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    verdicts = []
    for answer in answers:
        try:
            equal = verify(parse(f"${gold}$"), parse(boxed(answer)))
            verdicts.append("equal" if equal else "different")
        except Exception:  # any exception is counted as an error
            verdicts.append("error")
    return verdicts


# Responses.


class TooFewProblemsError(UserError):
    """More problems are requested than there are."""


@dataclass(frozen=True)
class Problem:
    """A problem of MATH with its gold answer."""

    question: str
    gold: str


@dataclass(frozen=True)
class Response:
    """A response to a problem.

    Args:
        text: Text of the response.
        problem: Its problem.
        kind: "same" for the text of the gold answer, "other form", "wrong", or the kind of poison.
    """

    text: str
    problem: Problem
    kind: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is correct by construction."""
        return self.kind in ("same", "other form")

    def row(self) -> tuple[str, str, str, dict[str, str]]:
        """Return the arguments for a reward function."""
        return _MATH, self.text, self.problem.gold, {"problem": self.problem.question}


@dataclass(frozen=True)
class Material:
    """Material for responses: problems with numeric answers, problems with other answers, and sentences."""

    numbers: list[Problem]
    expressions: list[Problem]
    sentences: list[str]

    @classmethod
    def of(cls, data: Path) -> "Material":
        """Read it from MATH."""
        rows = read_rows(data / _SETS["MATH test"][0])
        problems = [
            Problem(row["problem"], gold)
            for row in rows
            if (gold := last_boxed(row["solution"])) and canonical_answer(gold)
        ]
        random.Random(0).shuffle(problems)
        sentences = [
            part for row in rows for part in re.split(r"(?<=[.!?])\s+|\n\n+", row["solution"]) if _is_whole(part)
        ]
        numbers = [problem for problem in problems if parse_number(problem.gold) is not None]
        return cls(numbers, [problem for problem in problems if parse_number(problem.gold) is None], sentences)

    def problems(self, groups: int, skip: int = 0) -> list[Problem]:
        """Return problems, four in five with a number as answer, after skipping those of `skip` groups."""
        few = groups // 5
        chosen = self.numbers[skip - skip // 5 :][: groups - few] + self.expressions[skip // 5 :][:few]
        if len(chosen) < groups:
            raise TooFewProblemsError(
                f"MATH has fewer than {skip + groups} problems of which four in five have plain numbers as answers"
            )
        return chosen

    def working(self, characters: tuple[int, int], generator: random.Random) -> str:
        """Return consecutive sentences with about this many characters in total, between a minimum and a maximum."""
        most, start = generator.randint(*characters), generator.randrange(len(self.sentences))
        parts: list[str] = []
        length = 0
        while True:
            sentence = self.sentences[(start + len(parts)) % len(self.sentences)]
            length += len(sentence) + 1
            if length > most:
                return " ".join(parts)
            parts.append(sentence)

    def response(
        self, problem: Problem, answer: str, kind: str, characters: tuple[int, int], generator: random.Random
    ) -> Response:
        """Return a response: sentences followed by the boxed answer."""
        text = f"{self.working(characters, generator)}\nTherefore the answer is ${boxed(answer)}$."
        return Response(text, problem, kind)

    def group(
        self, problem: Problem, right: int, characters: tuple[int, int], generator: random.Random
    ) -> list[Response]:
        """Return the responses to a problem: `right` correct ones, and the others with one of three wrong answers."""
        forms = other_forms(problem.gold)
        answers = [(generator.choice(forms), "other form") for _ in range(right // 4)]
        answers += [(problem.gold, "same")] * (right - len(answers))
        wrong = self.wrong_answers(problem, generator) if right < _GROUP else []
        answers += [(generator.choice(wrong), "wrong") for _ in range(_GROUP - right)]
        generator.shuffle(answers)
        return [self.response(problem, answer, kind, characters, generator) for answer, kind in answers]

    def wrong_answers(self, problem: Problem, generator: random.Random) -> list[str]:
        """Return three wrong answers: gold answers of similar problems, and for a number its neighbours."""
        number = parse_number(problem.gold)
        answers = [] if number is None else [str(number + 1), str(number - 1)]
        known = {canonical_answer(answer) for answer in (problem.gold, *answers)}
        while len(answers) < 3:
            other = generator.choice(self.expressions if number is None else self.numbers).gold
            if canonical_answer(other) not in known:
                known.add(canonical_answer(other))
                answers.append(other)
        return answers


def _is_whole(text: str) -> bool:
    """Return whether a sentence has only complete formulas and no box."""
    pairs = (("{", "}"), (r"\[", r"\]"), (r"\begin", r"\end"))
    return (
        20 <= len(text) <= 200
        and not re.search(r"\\f?box|\[/?asy|####", text)
        and text.count("$") % 2 == 0
        and all(text.count(begin) == text.count(end) for begin, end in pairs)
    )


def other_forms(gold: str) -> list[str]:
    r"""Return other spellings of an answer, at least one.

    Example:
        >>> other_forms(r"\frac{3}{4}")
        [' \\frac{3}{4} ', '\\dfrac{3}{4}', '0.75']
    """
    forms = [
        f" {gold} ",
        re.sub(r"\\frac(?![A-Za-z])", r"\\dfrac", gold),
        re.sub(r"\s*,\s*(?=[^\d!]|\d\b)", ", ", gold),
    ]
    if r"\left(" in gold:
        forms.append(gold.replace(r"\left(", "(").replace(r"\right)", ")"))
    elif r"\left" not in gold and gold.count("(") == gold.count(")"):
        forms.append(gold.replace("(", r"\left(").replace(")", r"\right)"))
    fraction = re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", gold)
    if fraction and not set(prime_factors(int(fraction[3]))) - {2, 5}:
        forms.append(fraction[1] + str(Decimal(fraction[2]) / Decimal(fraction[3])))
    if re.fullmatch(r"-?\d+", gold):
        forms += [f"{gold}.0", f"{int(gold):,}"]
    return [form for form in dict.fromkeys(forms) if form != gold]


def prime_factors(number: int) -> Iterator[int]:
    """Yield the prime factors of a number."""
    divisor = 2
    while number > 1:
        if number % divisor == 0:
            yield divisor
            number //= divisor
        else:
            divisor += 1


# Speed.


def scorers() -> dict[str, Callable[[Response], bool]]:
    """Return {name: function from a response to whether it is correct} for all reward functions."""
    from math_verify import parse, verify
    from verl.utils.reward_score import gsm8k, math_dapo, math_reward
    from verl.utils.reward_score import math_verify as verl_math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return {
        "cfpo_verl": lambda response: compute_score(*response.row())["score"] == 1,
        "math_verify": lambda response: bool(verify(parse(f"${response.problem.gold}$"), parse(response.text))),
        "verl math_verify": lambda response: verl_math_verify.compute_score(response.text, response.problem.gold) == 1,
        "verl math_dapo": lambda response: bool(math_dapo.compute_score(response.text, response.problem.gold)["acc"]),
        "verl math_reward": lambda response: math_reward.compute_score(response.text, response.problem.gold) == 1,
        "verl gsm8k": lambda response: gsm8k.compute_score(response.text, response.problem.gold) == 1,
    }


def measure_speed(material: Material, groups: int, rounds: int) -> dict[str, Any]:
    """Return one row per reward function, and the wrong verdicts of ours."""
    functions = scorers()
    generator = random.Random(1)
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    verdicts: dict[str, list[bool]] = {name: [] for name in names}
    responses: list[Response] = []
    for problem in material.problems(1, skip=rounds * groups):
        for response in material.group(problem, _GROUP // 2, _SHORT, generator):
            for function in functions.values():  # starts the worker processes
                function(response)
    for round_ in track(range(rounds), description="speed"):
        batch = [
            response
            for problem in material.problems(groups, skip=round_ * groups)
            for response in material.group(problem, _GROUP // 2, _SHORT, generator)
        ]
        responses += batch
        for name in generator.sample(names, len(names)):
            start = processor_s()
            verdicts[name] += [functions[name](response) for response in batch]
            times[name].append((processor_s() - start) / len(batch))
    right = [response.is_right for response in responses]
    rows = []
    for name in names:
        ratios = [theirs / own for theirs, own in zip(times["math_verify"], times[name], strict=True)]
        rows.append(
            {
                "reward": name,
                "per_s_and_core": round(1 / statistics.median(times[name])),
                "ratio": statistics.median(ratios),
                "same_as_ours_%": share(map(bool.__eq__, verdicts[name], verdicts["cfpo_verl"])),
                "accuracy_%": share(map(bool.__eq__, verdicts[name], right)),
                "right_missed_%": share(
                    not verdict for verdict, truth in zip(verdicts[name], right, strict=True) if truth
                ),
                "wrong_taken_%": share(
                    verdict for verdict, truth in zip(verdicts[name], right, strict=True) if not truth
                ),
            }
        )
    return {
        "responses": len(responses),
        "rounds": rounds,
        "rewards": rows,
        "mistakes": mistakes(responses, verdicts["cfpo_verl"]),
    }


def processor_s() -> float:
    """Return the CPU seconds of this process and all its descendants, including ended ones."""
    # The times of ended processes are included in those of the processes that waited for them.
    own = os.times()
    seconds = time.process_time() + own.children_user + own.children_system
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:4])
    return seconds


def share(values: Any) -> float:
    """Return the percentage of true values."""
    values = list(values)
    return 100 * sum(values) / len(values)


def mistakes(responses: Sequence[Response], verdicts: Sequence[bool]) -> list[dict[str, str]]:
    """Return the distinct answers with wrong verdicts."""
    wrong = {
        (response.kind, response.problem.gold, last_boxed(response.text) or "")
        for response, verdict in zip(responses, verdicts, strict=True)
        if verdict != response.is_right
    }
    return [{"kind": kind, "gold": gold, "answer": answer[:200]} for kind, gold, answer in sorted(wrong)]


# A whole batch.


def score_at_once(rows: Sequence[tuple[Any, ...]], **options: Any) -> list[dict[str, float]]:
    """Score rows of (data source, response, gold, extra_info) concurrently."""

    async def score() -> list[dict[str, float]]:
        return await asyncio.gather(*(compute_score_async(*row, **options) for row in rows))

    return asyncio.run(score())


@contextmanager
def sampling_memory() -> Iterator[dict[str, float]]:
    """Measure peak resident memory in MiB: of this process, and the largest of its descendants."""
    peaks = {"process_mb": 0.0, "worker_mb": 0.0}
    stop = threading.Event()

    def sample() -> None:
        this = psutil.Process()
        while True:
            peaks["process_mb"] = max(peaks["process_mb"], this.memory_info().rss / 2**20)
            for process in this.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    peaks["worker_mb"] = max(peaks["worker_mb"], process.memory_info().rss / 2**20)
            if stop.wait(_SAMPLE_EVERY_S):
                break

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def warm_up() -> None:
    """Start the worker processes: the first call scores known answers, some of them in workers."""
    compute_score(_MATH, boxed("1"), "1")


def measure_batch(material: Material, size: int) -> dict[str, Any]:
    """Return the time and memory of one batch of long responses."""
    generator = random.Random(2)
    responses = [
        response
        for problem in material.problems(size // _GROUP)
        for response in material.group(problem, _GROUP // 2, _LONG, generator)
    ]
    warm_up()
    held_mb = psutil.Process().memory_info().rss / 2**20
    with sampling_memory() as peaks:
        start = time.perf_counter()
        scores = score_at_once([response.row() for response in responses], diagnostics=True)
        elapsed_s = time.perf_counter() - start
    verdicts = [score["score"] == 1 for score in scores]
    return {
        "responses": len(responses),
        "characters": round(statistics.mean(len(response.text) for response in responses)),
        "time_s": elapsed_s,
        "process_mb_before": held_mb,
        **peaks,
        "by_workers": sum(score["fast_path"] == 0 for score in scores),
        "timed_out": sum(score["timed_out"] == 1 for score in scores),
        "accuracy_%": share(map(bool.__eq__, verdicts, (response.is_right for response in responses))),
        "mistakes": mistakes(responses, verdicts),
    }


# Poison: pairs of an answer and a gold answer that are as expensive as possible to compare. None is correct.


def _nested(before: str, inside: str, after: str, depth: int) -> str:
    return before * depth + inside + after * depth


def _sines(count: int) -> list[str]:
    return [rf"\sin(@x+{k})" for k in range(count)]


def _in_sets(items: list[str]) -> str:
    text = ", ".join(items)
    for depth in range(6):
        text = rf"\{{{text}\}}, {depth}"
    return text


def _matrix(name: str) -> str:
    cells = " & ".join(rf"\{name}(@x+{k})" for k in range(40))
    return rf"\begin{{pmatrix}} {cells} \end{{pmatrix}}"


# @ and @@ stand for a number and its successor, so that no result is cached.
_POISON = {
    "tower of powers": (r"9^{9^{9^{9}}}+@", r"9^{9^{9^{9}}}-@"),
    "tower over a variable": (r"x^{9^{9^{9}}}+@", r"x^{9^{9^{9}}}-@"),
    "exponents with variables": (r"x^{y^{z^{x^{y+@}}}}", r"x^{y^{z^{y^{x+@}}}}"),
    "power of a power": (r"((x+y)^{999}+@)^{999}", r"((x+y)^{999}-@)^{999}"),
    "factorial": (r"10000@!", r"10000@@!"),
    "factorial of a factorial": (r"(((@+9)!)!)!", r"(((@+10)!)!)!"),
    "factorial with a variable": (r"(x+10000@)!", r"(x+10000@@)!"),
    "binomial": (r"\binom{10000@}{5000000}", r"\binom{10000@@}{5000000}"),
    "braces": (_nested("{", "x+@", "}", 190), "x-@"),
    "parentheses": (_nested("(", r"\sin x+@", ")", 190), r"\sin x-@"),
    "roots in roots": (_nested(r"\sqrt{x+", "@", "}", 40), _nested(r"\sqrt{x+", "@@", "}", 40)),
    "roots of numbers": (_nested(r"\sqrt{2+", "@", "}", 28), _nested(r"\sqrt{2+", "@@", "}", 28)),
    "fractions": (_nested(r"\frac{1}{\sin x+", "@", "}", 22), _nested(r"\frac{1}{\sin x+", "@@", "}", 22)),
    "absolute values": (_nested("|x-", "@", "|", 90), _nested("|x-", "@@", "|", 90)),
    "expansion": (r"(a+b+c+d)^{500}+\sqrt{a}+@", r"(a+b+c+d)^{500}+\sqrt{a}-@"),
    "expansion of two": (
        r"(a+b+c+d)^{500}(a-b+c-d)^{499}e^{a}+@",
        r"(a+b+c+d)^{499}(a-b+c-d)^{500}e^{a}-@",
    ),
    "quotient": (r"\frac{x^{9999}-1}{x^{@}-1}+\sqrt{x}", r"\frac{x^{9998}-1}{x^{@}-1}+\sqrt{x}"),
    "sines": (r"\sin(10^{40}x)\cos^{@}(x)+\tan^{99}(x)", r"\cos(10^{40}x)\sin^{@}(x)+\tan^{99}(x)"),
    "sine of a sum": (
        r"\sin(900x+@y)-\cos(900y)^{80}",
        r"\sin(900x)\cos(@y)+\cos(900x)\sin(@y)-\sin(900y)^{80}",
    ),
    "sine of a large number": (r"\sin(@^{9999})", r"\sin(@^{9998})"),
    "sum": (r"\sum_{k=1}^{10^{12}}\frac{@}{k^{3}+k}", r"\sum_{k=1}^{10^{12}}\frac{@@}{k^{3}+k}"),
    "product": (r"\prod_{k=1}^{10^{12}}(x+\frac{@}{k})", r"\prod_{k=1}^{10^{12}}(x+\frac{@@}{k})"),
    "integral": (r"\int_0^1 x^x\sin(x^{@})e^{-x^3}dx", r"\int_0^1 x^x\cos(x^{@})e^{-x^3}dx"),
    "limit": (
        r"\lim_{x\to 0}\frac{\sin^{99}(x)-x^{99}}{x^{@}}",
        r"\lim_{x\to 0}\frac{\tan^{99}(x)-x^{99}}{x^{@}}",
    ),
    "equation": (r"x^{17}+y^{13}+\sin(xy)=\sqrt{x+y+@}", r"x^{13}+y^{17}+\sin(xy)=\sqrt{x+y+@}"),
    "inequality": (r"x^{9}+\sin x+@<e^{x}", r"x^{9}+\sin x-@<e^{x}"),
    "number": ("10^{10^{@}}", "10^{10^{@@}}"),
    "number with an exponent": ("1e99999@", "1e99999@@"),
    "digits": ("7" * 100_000 + "@", "7" * 900 + "@"),
    "logarithm": (r"\log_{@}(7^{9999999}+x)", r"\log_{@}(7^{9999998}+x)"),
    "list": (", ".join(_sines(60)), ", ".join([*_sines(59)[::-1], r"\cos(x)"])),
    "sets in sets": (_in_sets(_sines(50)), _in_sets([*_sines(49)[::-1], r"\cos(x)"])),
    "long list": ("@, " + ", ".join(map(str, range(20_000))), "@, " + ", ".join(map(str, range(250)))),
    "matrix": (_matrix("sin"), _matrix("cos")),
    "plus and minus": (r"\pm x" * 190 + "@", r"\pm x" * 190 + "@@"),
    "signs": ("-" * 100_000 + "@x", "@x+1"),
    "long sum": ("x+" * 50_000 + "@", "50000x+@@"),
    "spaces": ("x" + " " * 100_000 + "@", "x+@"),
    "words": (r"\text{" + "ab " * 33_000 + "@}", "ab @"),
    "open boxes": (r"\boxed{" * 4000 + "@", "@@"),
    "boxes in boxes": (_nested(r"\boxed{", "@", "}", 4000), "@@"),
    "boxes in a row": ("".join(rf" \boxed{{@{k}}}" for k in range(3000)), "@"),
    # An open brace hides the box around it, so that the last line with "answer" is used.
    "no box, brackets": ("{\nThe answer is \\(@" + r"\)" * 16_000 + "x", "@"),
    "no box, spaces": ("{\nThe answer" + " " * 32_000 + "@ is this", "@"),
    "no box, stars": ("{\n" + "answer**" * 4000 + "@", "@"),
    "open brackets": (r"\left(\frac{" * 30 + "@", "@"),
    "garbage": ("".join(random.Random(0).choices(r"\{}[]()^_$&,.-+=<>|!fracsqrtx1 ", k=900)) + "@", "x"),
    "null bytes": ("\0" * 1000 + "@", "@"),
    "other digits": ("\N{ARABIC-INDIC DIGIT ONE}@", "1@"),
}


def poison(material: Material, kind: str, number: int, generator: random.Random) -> Response:
    """Return a poisonous response, different for each number."""
    answer, gold = (text.replace("@@", str(number + 1)).replace("@", str(number)) for text in _POISON[kind])
    return material.response(Problem("Find it.", gold), answer, kind, _SHORT, generator)


def poisoned(material: Material, size: int) -> list[Response]:
    """Return correct responses, except one in a hundred that is poison, cycling through the kinds."""
    generator = random.Random(3)
    count = size // _POISON_EVERY
    problems = material.problems(-(-(size - count) // _GROUP))
    responses = [response for problem in problems for response in material.group(problem, _GROUP, _SHORT, generator)][
        : size - count
    ]
    kinds = itertools.cycle(_POISON)
    responses += [poison(material, next(kinds), number, generator) for number in range(100, 100 + count)]
    generator.shuffle(responses)
    return responses


def seconds_here(response: Response) -> float:
    """Return the CPU seconds for which a response blocks the event loop of this process."""
    start = time.thread_time()
    answer = extract_answer(response.text, data_source(_MATH).fallbacks)
    if answer is not None:
        compare(read(answer), read(response.problem.gold))
    return time.thread_time() - start


def measure_poison(material: Material, size: int) -> dict[str, Any]:
    """Return the time and memory of a batch with poison, and the results for each kind."""
    responses = poisoned(material, size)
    warm_up()
    with sampling_memory() as peaks:
        start = time.perf_counter()
        scores = score_at_once([response.row() for response in responses], diagnostics=True)
        elapsed_s = time.perf_counter() - start
    pairs = list(zip(responses, scores, strict=True))
    right = [score for response, score in pairs if response.is_right]
    poisonous = [(response.kind, score) for response, score in pairs if not response.is_right]
    kinds = []
    for kind in dict.fromkeys(kind for kind, _score in poisonous):
        of_kind = [score for other, score in poisonous if other == kind]
        kinds.append(
            {
                "kind": kind,
                "responses": len(of_kind),
                "by_workers": sum(score["fast_path"] == 0 for score in of_kind),
                "timed_out": sum(score["timed_out"] == 1 for score in of_kind),
                "scored_1": sum(score["score"] == 1 for score in of_kind),
                "here_ms": 1e3 * seconds_here(poison(material, kind, 99, random.Random(0))),
            }
        )
    return {
        "time_s": elapsed_s,
        "right": len(right),
        "right_scored_1": sum(score["score"] == 1 for score in right),
        "right_timed_out": sum(score["timed_out"] == 1 for score in right),
        "poison": len(poisonous),
        "poison_scored_1": sum(score["score"] == 1 for _kind, score in poisonous),
        "poison_timed_out": sum(score["timed_out"] == 1 for _kind, score in poisonous),
        **peaks,
        "kinds": sorted(kinds, key=lambda row: row["kind"]),
        "mistakes": mistakes(responses, [score["score"] == 1 for score in scores]),
    }


# The command.

_PARTS = ("agreement", "speed", "batch", "poison")


def measure(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one part of the benchmark and print its results."""
    if part == "agreement":
        found = measure_agreement(arguments.data, arguments.golds, arguments.others)
        print_rows(found["sets"], f"agreement with math-verify: gold answers against {arguments.others} others")
        show(found["not_itself"], "gold answers that do not score 1 against themselves")
        show(found["disagreements"], "disagreements")
        return found
    material = Material.of(arguments.data)
    if part == "speed":
        found = measure_speed(material, arguments.groups, arguments.rounds)
        print_rows(found["rewards"], f"speed: {found['responses']} responses in {found['rounds']} rounds")
    elif part == "batch":
        found = measure_batch(material, arguments.batch)
        print_rows(figures(found), "batch of long responses, all at once")
    else:
        found = measure_poison(material, arguments.poison_responses)
        print_rows(found["kinds"], "kinds of poison")
        print_rows(figures(found), "batch with poison")
    show(found["mistakes"], "wrong verdicts of ours")
    return found


def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per figure."""
    return [{"figure": name, "value": value} for name, value in found.items() if not isinstance(value, list)]


def show(rows: Sequence[dict[str, str]], title: str) -> None:
    """Print the first rows of a list of texts, if any."""
    if rows:
        shown = [{name: escape(text[:36]) for name, text in row.items()} for row in rows[:_SHOWN]]
        print_rows(shown, title if len(rows) == len(shown) else f"{title}: the first {len(shown)} of {len(rows)}")


def parts_of(text: str) -> list[str]:
    """Parse agreement,speed."""
    parts = text.split(",")
    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"parts are {', '.join(_PARTS)}, got {unknown[0]!r}")
    return list(dict.fromkeys(parts))


def main() -> None:
    """Run the benchmark, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: %(default)s")
    parser.add_argument(
        "--parts", type=parts_of, default=list(_PARTS), help="comma-separated parts to run (default: all)"
    )
    parser.add_argument("--golds", type=int, help="agreement: gold answers per set (default: all)")
    parser.add_argument(
        "--others", type=int, default=20, help="agreement: other answers per gold answer (default: %(default)s)"
    )
    parser.add_argument(
        "--groups", type=int, default=500, help="speed: groups of 8 responses per round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="speed: number of rounds (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8192, help="batch: number of responses (default: %(default)s)")
    parser.add_argument(
        "--poison-responses", type=int, default=10_000, help="poison: number of responses (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/rewards.json"), help="default: %(default)s")
    arguments = parser.parse_args()
    least = {"golds": 2, "others": 1, "groups": 1, "rounds": 1, "batch": _GROUP, "poison_responses": _POISON_EVERY}
    for name, smallest in least.items():
        value = getattr(arguments, name)
        if value is not None and value < smallest:
            parser.error(f"--{name.replace('_', '-')} must be at least {smallest}, got {value}")
    missing = [file for file, _source, _gold in _SETS.values() if not (arguments.data / file).is_file()]
    if missing:
        parser.error(f"--data must be a folder with {', '.join(missing)}, got {arguments.data}")
    found = {
        "cores": psutil.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("math-verify", "sympy", "verl")},
    }
    if len(arguments.parts) == 1:
        [part] = arguments.parts
        try:
            found[part] = measure(part, arguments)
        except TooFewProblemsError as error:
            parser.error(str(error))
    else:
        for part in arguments.parts:
            command = [sys.executable, "-m", "benchmarks.rewards", *sys.argv[1:], "--parts", part]
            status = subprocess.run(command, check=False).returncode
            if status:  # the part has printed the reason
                sys.exit(status)
            found[part] = json.loads(arguments.out.read_text(encoding="utf-8"))[part]
    arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
