"""cfpo_verl.rewards: scores, verl's own reward loop, and failures of the verifier."""

import ast
import asyncio
import inspect
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tensordict import TensorDict

from cfpo_verl import rewards
from cfpo_verl.data_prep.sources import SOURCES
from cfpo_verl.data_sources import DATA_SOURCES, data_source
from cfpo_verl.rewards import canary, compute_score, compute_score_async, unfit_gold, verifier
from cfpo_verl.rewards.workers import Decision, Limits

MATH = "HuggingFaceH4/MATH-500"
DIAGNOSTICS = {"has_answer", "fast_path", "timed_out", "verify_seconds"}
# Undecidable in practice: an expansion with millions of terms.
POISON = (r"\boxed{(a+b+c+d+f+g)^{60}\sin x}", r"(a+b+c+d+f+g)^{59}(a+b+c+d+f+g+x)\sin x")


@pytest.mark.parametrize(
    ("source", "response", "gold", "score"),
    [
        # Bare answers of generated problems.
        ("arithmetic", "12", "12", 1),
        ("arithmetic", " 12\n", "12", 1),
        ("arithmetic", "012", "12", 1),
        ("arithmetic", "1,234", "1234", 1),
        ("arithmetic", "so 3 + 4 is 7\n#### 7", "7", 1),
        ("arithmetic", "13", "12", 0),
        ("arithmetic", "12?", "12", 0),
        ("arithmetic", "maybe 12", "12", 0),
        ("arithmetic", "12 or 13", "12", 0),
        ("arithmetic", "12 or so", "12", 0),
        ("arithmetic", "12 13", "12", 0),
        ("arithmetic", "3", "-3", 0),
        ("arithmetic", "1,23", "123", 0),
        ("arithmetic", "", "12", 0),
        ("arithmetic", "#### 7 #### 8", "7", 0),
        # GSM8K.
        ("openai/gsm8k", "#### $18", "18", 1),
        ("openai/gsm8k", "The answer is 18.", "18", 1),
        ("openai/gsm8k", r"So \boxed{18}.", "18", 1),
        ("openai/gsm8k", "18", "18", 0),
        # MATH and others.
        (MATH, r"so \boxed{\frac{1}{2}}", "0.5", 1),
        (MATH, r"So $\boxed{\left( 3, \dfrac{\pi}{2} \right)}$.", r"\left( 3, \frac{\pi}{2} \right)", 1),
        (MATH, r"\frac{1}{2}", r"\frac{1}{2}", 0),
        (MATH, r"It is \boxed{3} or \boxed{4}.", "4", 0),
        (MATH, r"It is \boxed{-2} or \boxed{1}.", "1, -2", 1),
        (MATH, r"<think>\boxed{4}</think> \boxed{5}", "4", 0),
        (MATH, r"<think>\boxed{4}", "4", 0),
        ("math_dapo", "Answer: $34$", "34", 1),
        ("aime2027", r"\boxed{034}", "34", 1),
        ("minerva_math", r"\boxed{1.61}", "1.6", 1),
        (MATH, r"\boxed{1.61}", "1.6", 0),
        ("a name that nobody knows", r"\boxed{1}", "1", 1),
        # Decided by a worker process.
        (MATH, r"\boxed{\frac{\cos x}{\sin x}}", r"\cot x", 1),
        (MATH, r"\boxed{\frac{\sin x}{\cos x}}", r"\cot x", 0),
    ],
)
def test_scores(source, response, gold, score):
    assert compute_score(source, response, gold) == {"score": score, "acc": score}
    assert asyncio.run(compute_score_async(source, response, gold)) == {"score": score, "acc": score}


def test_takes_whatever_else_verl_passes():
    assert compute_score("s", r"\boxed{1}", "1", {"index": 0}, reward_router_address=None)["score"] == 1.0


def test_diagnostics_are_further_keys():
    scores = compute_score(MATH, r"\boxed{1}", "1", diagnostics=True)
    assert set(scores) == {"score", "acc", *DIAGNOSTICS}
    assert (scores["has_answer"], scores["fast_path"], scores["timed_out"]) == (1, 1, 0)
    assert 0 <= scores["verify_seconds"] < 10
    assert compute_score(MATH, "1", "1", diagnostics=True)["has_answer"] == 0
    assert compute_score(MATH, r"\boxed{\tan x}", r"\cot x", diagnostics=True)["fast_path"] == 0
    for value in scores.values():
        assert type(value) is float


def test_what_takes_too_long_is_wrong_and_said_to_be():
    scores = compute_score(MATH, *POISON, diagnostics=True, deadline_s=0.5)
    assert (scores["score"], scores["timed_out"], scores["has_answer"]) == (0, 1, 1)


def test_the_problem_decides_what_is_an_echo_and_what_is_a_unit():
    gold = r"\frac{\sqrt{3}}{3}"
    assert compute_score(MATH, r"\boxed{\frac{1}{\sqrt{3}}}", gold)["score"] == 1
    problem = r"Rationalize $\frac{1}{\sqrt{3}}$."
    assert compute_score(MATH, r"\boxed{\frac{1}{\sqrt{3}}}", gold, {"problem": problem})["score"] == 0
    echo = r"\boxed{\frac{\cos x}{\sin x}}"
    assert compute_score(MATH, echo, r"\cot x", {"question": r"Simplify $\frac{\cos x}{\sin x}$"})["score"] == 0
    apples = r"\boxed{12\text{ apples}}"
    assert compute_score(MATH, apples, "12", {"problem": "How many apples has she?"})["score"] == 1
    assert compute_score(MATH, apples, "12", {"problem": "How many pears has she?"})["score"] == 0
    # Words that change a number do not name what is counted.
    problem = {"problem": "How many thousand apples, not pears, has she? Half of them, plus two dozen."}
    for words in ("thousand", "not", "half", "dozen", "plus two", "pears"):
        assert compute_score(MATH, rf"\boxed{{12\text{{ {words}}}}}", "12", problem)["score"] == 0
    assert compute_score(MATH, apples, "12", problem)["score"] == 1


@pytest.mark.parametrize("extra_info", [None, {}, {"problem": None}, {"problem": 3}, {"question": ""}])
def test_a_row_without_its_problem_is_scored(extra_info):
    assert compute_score(MATH, r"\boxed{1}", "1", extra_info)["score"] == 1


def test_the_same_question_is_asked_once():
    checker = verifier.verifier_for(Limits())
    before = checker.counts["remembered"]
    responses = [(rf"Try {number}: \boxed{{\frac{{\cos z}}{{\sin z}}+7}}", r"\cot z+7") for number in range(10)]

    async def score_all():
        return await asyncio.gather(*(compute_score_async(MATH, *pair) for pair in responses))

    assert [scores["score"] for scores in asyncio.run(score_all())] == [1] * 10
    assert checker.counts["remembered"] == before + 9


def test_one_of_many_that_is_cancelled_does_not_cancel_the_others():
    async def score_two():
        pair = (r"\boxed{\frac{\cos q}{\sin q}+8}", r"\cot q+8")
        first, second = (asyncio.create_task(compute_score_async(MATH, *pair)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(score_two())["score"] == 1


def test_an_error_of_ours_ends_no_run(monkeypatch, caplog):
    def broken(*_arguments):
        raise ZeroDivisionError("on purpose")

    checker = verifier.verifier_for(Limits())  # runs its canary, before the next line breaks what that needs
    monkeypatch.setattr(verifier, "extract_answer", broken)
    monkeypatch.setattr(checker, "counts", type(checker.counts)())
    for _ in range(3):
        assert compute_score(MATH, r"\boxed{1}", "1") == {"score": 0, "acc": 0}
    assert checker.counts["errors"] == 3
    assert caplog.text.count("ZeroDivisionError: on purpose") == 1


def test_what_was_not_decided_is_asked_anew(monkeypatch):
    made = verifier.Verifier(Limits())
    decisions = [Decision(False, timed_out=True), Decision(True)]
    monkeypatch.setattr(made.workers, "submit", lambda *_job: finished(decisions.pop(0)))
    results = [made.finish(made.start(MATH, r"\boxed{\tan x}", r"\cot x", None)) for _ in range(3)]
    assert [(result.timed_out, result.is_correct) for result in results] == [
        (True, False),
        (False, True),
        (False, True),
    ]


def test_what_a_library_raises_is_counted_and_shown_once(monkeypatch, caplog):
    made = verifier.Verifier(Limits())
    raised = Decision(False, error="TypeError: on purpose")
    monkeypatch.setattr(made.workers, "submit", lambda *_job: finished(raised))
    for _ in range(3):
        result = made.finish(made.start(MATH, r"\boxed{\tan x}", r"\cot x", None))
        assert (result.is_correct, result.timed_out) == (False, False)
    assert made.counts["raised"] == 3
    assert caplog.text.count("TypeError: on purpose; it scores 0") == 1


def test_counters_are_logged_now_and_then(monkeypatch, caplog):
    checker = verifier.Verifier(Limits())
    with caplog.at_level(logging.INFO, logger="cfpo_verl.rewards.verifier"):
        for _ in range(63):
            checker.count(verifier.Result(is_correct=True, has_answer=True))
        assert caplog.text == ""
        checker.count(verifier.Result(is_correct=False, has_answer=False, fast_path=False, timed_out=True))
        assert (
            "scored 64, correct 63, no_answer 1, fast_path 63, remembered 0, timed_out 1, raised 0, errors 0"
            in caplog.text
        )
        for _ in range(64):
            checker.count(verifier.Result(is_correct=True, has_answer=True))
        assert caplog.text.count("scored") == 2


# The canary.


def test_the_canary_covers_both_paths_and_both_verdicts():
    verdicts = {
        (
            bool(score),
            compute_score(source, response, gold, diagnostics=True)["fast_path"],
        )
        for source, response, gold, score in canary.CASES
    }
    assert verdicts == {(True, 1), (True, 0), (False, 1), (False, 0)}


def test_a_verifier_whose_workers_cannot_decide_does_not_start(run_python):
    code = """
from cfpo_verl.rewards import compute_score
compute_score("openai/gsm8k", "#### 7", "7", deadline_s=1e-6)
"""
    result = run_python(code)
    assert result.returncode == 1
    assert "CanaryError: reward canary: the response" in result.stderr
    assert "the comparison exceeded its time or memory limit" in result.stderr
    assert "reward_kwargs.deadline_s" in result.stderr


@pytest.mark.parametrize("case", range(len(canary.CASES)))
def test_the_canary_notices_every_verdict_that_is_off(monkeypatch, case):
    class Lying(verifier.Verifier):
        def finish(self, asked):
            result = super().finish(asked)
            self.counts["finished"] += 1
            lie = self.counts["finished"] == case + 1
            return verifier.Result(result.is_correct != lie, has_answer=True)

    lying = Lying(Limits())
    monkeypatch.setattr(
        lying.workers, "submit", lambda answer, *_others: finished(Decision(r"\cos x}{" in answer or "+ 6" in answer))
    )
    with pytest.raises(canary.CanaryError, match=r"scores [01] instead of [01]"):
        canary.check(lying.verify)


def finished(result):
    from concurrent.futures import Future

    future = Future()
    future.set_result(result)
    return future


# Names of data sources.


def verl_dispatch_names():
    """All names that verl's default_compute_score compares data_source with."""
    from verl.utils import reward_score

    tree = ast.parse(inspect.getsource(reward_score.default_compute_score))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "data_source":
            names |= {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "data_source.startswith":
            names |= {f"{argument.value}24" for argument in node.args}
    return names


def test_the_table_has_every_name_of_verl_and_of_data_preparation():
    names = verl_dispatch_names()
    assert {"openai/gsm8k", "math_dapo", "aime24", "numina_olympiads", "codecontests", "searchR1_nq"} <= names
    names |= {source.data_source for source in SOURCES.values()} | {"arithmetic", "few_shot_sums", "reasoning_gym"}
    assert {name for name in names if data_source(name).name != name} == set()
    assert data_source("aime2031").answer == "number"


@pytest.mark.parametrize("name", DATA_SOURCES)
def test_every_name_is_scored_as_its_row_says(name):
    source = data_source(name)
    if source.answer == "unsupported":
        assert "no comparison of final answers" in unfit_gold(name, "1")
        return
    assert unfit_gold(name, "12") is None
    assert compute_score(name, r"So \boxed{12}.", "12")["score"] == 1
    assert compute_score(name, r"So \boxed{13}.", "12")["score"] == 0
    by_fallback = {"hashes": "so\n#### 12", "answer_line": "The answer is 12.", "whole": "12"}
    for fallback, response in by_fallback.items():
        assert compute_score(name, response, "12")["score"] == (fallback in source.fallbacks), fallback
    assert (unfit_gold(name, r"\frac{1}{2}") is None) == (source.answer == "expression")
    assert compute_score(name, r"\boxed{1.51}", "1.5")["score"] == (source.relative_tolerance > 0)


@pytest.mark.parametrize("gold", ["", "x", "12 apples", "nan"])
def test_a_gold_answer_that_must_be_a_number(gold):
    assert unfit_gold("arithmetic", gold) == "must be a plain number"


@pytest.mark.parametrize("gold", ["", " ", "$$", ".", "(1, )"])
def test_a_gold_expression_must_be_one(gold):
    assert unfit_gold(MATH, gold) == "must be an answer that the reward scores 1 against itself"


# In verl's reward loop.


class Words:
    """A tokenizer of one token per character."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(int(one)) for one in ids)


def reward_manager(name, **reward_kwargs):
    from verl.trainer.ppo.reward import load_reward_manager

    config = OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": {
                    "path": "pkg://cfpo_verl.rewards",
                    "name": name,
                    "reward_kwargs": reward_kwargs,
                },
                "reward_manager": {"source": "register", "name": "naive"},
            },
        }
    )
    return load_reward_manager(config, Words())


def row(source, response, gold):
    from verl import DataProto

    ids = torch.tensor([[ord(character) for character in response]])
    batch = TensorDict({"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1)
    values = {"data_source": source, "reward_model": {"ground_truth": gold}, "extra_info": {"problem": "Find it."}}
    return DataProto(batch, {key: np.array([value], dtype=object) for key, value in values.items()})


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_through_verls_reward_manager(name):
    rows = [
        (MATH, r"\boxed{\frac{\cos x}{\sin x}}", r"\cot x"),
        (MATH, r"\boxed{\frac{\sin x}{\cos x}}", r"\cot x"),
        ("openai/gsm8k", "#### 7", "7"),
        ("openai/gsm8k", "#### 8", "7"),
    ]

    async def score_all():
        manager = reward_manager(name)
        assert manager.is_async_reward_score == name.endswith("async")
        return await asyncio.gather(*(manager.run_single(row(*each)) for each in rows))

    results = asyncio.run(score_all())
    assert [result["reward_score"] for result in results] == [1, 0, 1, 0]
    assert {frozenset(result["reward_extra_info"]) for result in results} == {frozenset({"score", "acc"})}


def test_reward_kwargs_reach_the_verifier():
    async def score():
        return await reward_manager("compute_score_async", diagnostics=True).run_single(row(MATH, r"\boxed{1}", "1"))

    assert set(asyncio.run(score())["reward_extra_info"]) == {"score", "acc", *DIAGNOSTICS}


def test_waiting_for_a_worker_holds_no_thread_of_the_reward_loop():
    """The loop's thread pool also decodes: plain functions block it with as many slow answers as it has threads."""

    async def score(name):
        manager = reward_manager(name, deadline_s=1.0)
        threads = min(32, (os.cpu_count() or 1) + 4)
        slow = [
            asyncio.create_task(manager.run_single(row(MATH, POISON[0].replace("}", f"+{number}}}", 1), POISON[1])))
            for number in range(threads)
        ]
        await asyncio.sleep(0.3)  # until all of them wait for workers
        quick = asyncio.create_task(manager.run_single(row("openai/gsm8k", "#### 7", "7")))
        _done, pending = await asyncio.wait({quick, *slow}, return_when=asyncio.FIRST_COMPLETED)
        is_first = quick not in pending
        results = await asyncio.gather(*slow, quick)
        assert [result["reward_score"] for result in results] == [0] * threads + [1]
        return is_first

    assert asyncio.run(score("compute_score_async"))
    assert not asyncio.run(score("compute_score"))


def test_verls_loader_finds_it():
    from verl.utils.import_utils import load_extern_object

    assert load_extern_object("pkg://cfpo_verl.rewards", "compute_score") is compute_score


# No response may end a run.

PIECES = [
    *[
        r"\boxed{",
        r"\boxed",
        r"\fbox{",
        r"\frac{",
        r"\frac",
        r"\sqrt{",
        r"\sqrt[",
        r"\text{",
        r"\text",
        r"\left(",
        r"\right]",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\\",
        r"&",
        r"\pm",
        r"\cup",
        r"\in",
        r"\le",
        r"\infty",
        r"\pi",
        r"\circ",
        r"\{",
        r"\}",
        r"\%",
        r"\$",
        r"\,",
        r"\!",
        r"\cdot",
        r"\times",
        r"\binom{",
        r"\over",
        r"\overline{3}",
        r"\mathrm{",
        r"\prime",
        r"{",
        r"}",
        r"(",
        r")",
        r"[",
        r"]",
        r"^",
        r"_",
        r"^{",
        r"_{",
        r"$",
        r"$$",
        r"%",
        r"=",
        r"<",
        r">",
        r"|",
        r"!",
        r"'",
        r",",
        r";",
        r":",
        r".",
        r"0",
        r"1",
        r"12",
        r"1,234",
        r"0.5",
        r".",
        r"1e9",
        r"-",
        r"+",
        r"*",
        r"/",
        r"x",
        r"i",
        r"e",
        r"and",
        r"or",
        r"<think>",
        r"</think>",
        r"####",
    ],
    *(
        " ",
        "\n",
        "\t",
        "\0",
        "The answer is ",
        "Answer:",
        " cm",
        " apples",
        "\u00b0",
        "\u00bd",
        "\u2212",
        "\u0661",
        "\uff11",
    ),
    *("\U0001f3b2", "\ud800"),
]
SOUP = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


@pytest.mark.parametrize(("answer", "gold"), [("x^{1/0}", "x"), ("2^{20000}", "2^{20000}"), ("0^{-1}x", "x")])
def test_arithmetic_that_has_no_value_is_no_error(answer, gold):
    checker = verifier.verifier_for(Limits())
    before = checker.counts["errors"]
    compute_score(MATH, rf"\boxed{{{answer}}}", gold)
    unfit_gold(MATH, answer)
    assert checker.counts["errors"] == before


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "3000")), suppress_health_check=list(HealthCheck))
@given(st.sampled_from([*DATA_SOURCES, "?"]), SOUP, SOUP, st.none() | SOUP)
def test_no_string_is_an_error_or_takes_longer_than_its_deadline(source, response, gold, problem):
    checker = verifier.verifier_for(Limits())
    for answer in (response, rf"\boxed{{{response}}}", rf"\boxed{{{gold}}}"):
        scores = compute_score(source, answer, gold, {"problem": problem}, diagnostics=True)
        assert set(scores) == {"score", "acc", *DIAGNOSTICS}
        assert scores["score"] in (0.0, 1.0)
        assert all(math.isfinite(value) for value in scores.values())
        # Two deadlines of two seconds each for two workers, plus a margin for a busy machine.
        assert scores["verify_seconds"] < 20
    assert unfit_gold(source, gold) in (None, unfit_gold(source, gold))
    assert checker.counts["errors"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "{" * 100_000,
        "\\" * 100_000,
        "(" * 50_000 + ")" * 50_000,
        r"\frac" * 20_000,
        r"\boxed{" * 20_000,
        r"\boxed{" * 5_000 + "}" * 5_000,
        r"\text{" * 20_000,
        "1," * 50_000,
        "$" * 100_000,
        " " * 100_000,
        "answer is " * 10_000,
        "####" * 25_000,
        "1" * 100_000,
        r"\left" * 20_000,
        "a" * 100_000,
        "=" * 100_000,
        ". " * 50_000,
        "\n" * 100_000,
        "answer" + " " * 100_000,
        r"answer: \(x" + r"\)" * 50_000 + "a",
        r"\boxed{" * 12_500 + "}" * 12_500,
        "+".join(f"{prime}^{{-{39_999 // prime.bit_length()}}}" for prime in (3, 5, 7, 11, 13, 17, 19, 23, 29, 31) * 7),
    ],
    ids=lambda text: f"{text[:12]!r}",
)
def test_long_strings_cost_linear_time(text):
    """A hundred thousand characters anywhere; quadratic time would take minutes."""
    for answer in (text, rf"\boxed{{{text}}}", rf"The answer is {text}", rf"\boxed{{{text[:990]}}}"):
        scores = compute_score(MATH, answer, "12", {"problem": text}, diagnostics=True)
        assert scores["score"] == 0
        assert scores["verify_seconds"] < 10
    unfit_gold(MATH, text)


def test_the_reward_module_does_not_import_the_stack(run_python):
    """Workers and data preparation import it; torch and verl would cost each of them seconds and memory."""
    result = run_python("import sys, cfpo_verl.rewards; print(sorted({'torch', 'verl', 'ray'} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stderr


def test_close_ends_the_workers_of_this_process():
    compute_score(MATH, r"\boxed{1}", "1")
    rewards.close()
    assert verifier._verifiers == {}
    assert compute_score(MATH, r"\boxed{1}", "1")["score"] == 1
    assert Path(rewards.__file__).exists()
