"""Evaluations from sets and a model to output files. Only vLLM is faked; test_end_to_end.py runs the real one."""

import json
import os
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import verl  # noqa: F401  before an evaluation sets the environment in which it would choose the CPU platform
from conftest import shared_data
from parquet_rows import write_rows
from typer.testing import CliRunner

from cfpo_verl import warmup
from cfpo_verl.config_groups import platform_env
from cfpo_verl.data_prep.arithmetic import make_problems
from cfpo_verl.data_prep.schema import SCHEMA as ROWS
from cfpo_verl.data_prep.schema import DataError, Problem, to_row
from cfpo_verl.errors import UserError
from cfpo_verl.evaluation import models, running, scoring, store, summary
from cfpo_verl.evaluation.cli import app
from cfpo_verl.evaluation.comparison import compare
from cfpo_verl.evaluation.engine import Finished, Progress, Request, drive
from cfpo_verl.evaluation.foreign import read_responses
from cfpo_verl.evaluation.sets import EvaluationError, read_set, resolve

OPTIONS = running.RunOptions(n=4, max_tokens=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model, of which only tokenizer and config are used."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = warmup.train_tokenizer(["3+4=7"], vocabulary=268)
    config = warmup.WarmupConfig(hidden_size=32, layers=1, heads=2)
    warmup.save(folder, warmup.build_model(tokenizer, config), tokenizer, [], {})
    return folder


@pytest.fixture
def sums(tmp_path):
    problems = make_problems(operands=2, seed=0)[:6]
    rows = [to_row(problem, "arithmetic", "math", "test", index) for index, problem in enumerate(problems)]
    return write_rows(tmp_path / "sums" / "test.parquet", rows)


class FakeEngine:
    """Replaces vLLM: answers every third request correctly, and can fail midway."""

    def __init__(self, dies_after=None):
        self.asked: list[Request] = []
        self.dies_after = dies_after

    def __call__(self, settings, requests):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(settings.model)
        self.asked += requests
        self.settings = settings
        yield Progress()
        for number, request in enumerate(requests):
            if number == self.dies_after:
                raise RuntimeError("out of memory\nwhile doing the last thing")
            prompt = tokenizer.decode(request.prompt_token_ids, skip_special_tokens=True)
            total = sum(map(int, prompt.strip("=").split("+")))
            text = [str(total), "nothing", str(total + 1)][request.seed % 3]
            tokens = [*tokenizer.encode(text), tokenizer.eos_token_id]
            reason = "length" if text == "nothing" else "stop"
            yield Progress([Finished(request.key, tokens, reason)], len(tokens))


@pytest.fixture
def engine(monkeypatch):
    for variable, value in platform_env("cpu").items():
        monkeypatch.setenv(variable, value)  # as an evaluation does, for this test only

    def use(**kwargs):
        made = FakeEngine(**kwargs)
        monkeypatch.setattr(running, "generate_here", made)
        return made

    return use


def test_names_are_the_groups_of_training_and_paths_are_paths(tmp_path):
    assert {name: str(path) for name, path in resolve("aime24, math500,mine/x.parquet").items()} == {
        "aime24": "data/aime24/train.parquet",
        "math500": "data/math500/test.parquet",
        "x": "mine/x.parquet",
    }
    assert len(resolve("math_suite")) == 6
    assert list(resolve("math_suite,aime24")) == list(resolve("math_suite"))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("aime2024", "no set called 'aime2024'. Choose from: aime24, aime25"),
        ("", "--sets must name at least one set"),
        ("a/x.parquet,b/x.parquet", "a/x.parquet and b/x.parquet would both be called x: rename one"),
    ],
)
def test_a_set_that_is_none_is_named(sets, message):
    with pytest.raises(EvaluationError, match=message):
        resolve(sets)


def test_a_missing_set_comes_with_the_command_that_writes_it(tmp_path):
    with pytest.raises(DataError, match=r"no such file. Write it with: cfpo-verl data prepare aime24 --out .*aime24"):
        read_set("aime24", tmp_path / "aime24" / "train.parquet")


def test_a_gold_answer_that_nothing_can_match_is_refused(tmp_path):
    row = to_row(Problem("What?", "unclear"), "aime24", "math", "test", 0)
    with pytest.raises(EvaluationError, match="row 0: gold answer 'unclear' of aime24 must be a plain number"):
        read_set("x", write_rows(tmp_path / "x.parquet", [row]))


def test_repeated_problems_and_files_without_uid(tmp_path):
    rows = [to_row(Problem("1+1=", "2"), "arithmetic", "math", "test", index) for index in range(2)]
    for row in rows:
        row["extra_info"]["uid"] = ""
    found = read_set("x", write_rows(tmp_path / "x.parquet", rows)).problems
    assert found[1].uid == f"{found[0].uid}#2"
    table = pa.Table.from_pylist(rows, schema=ROWS).drop_columns(["extra_info"])
    pq.write_table(table, tmp_path / "bare.parquet")
    [bare, _again] = read_set("x", tmp_path / "bare.parquet").problems
    assert bare.uid == found[0].uid  # computed as in `data prepare`
    assert read_set("x", tmp_path / "bare.parquet", limit=1).problems == [bare]


def test_a_whole_evaluation(model, sums, tmp_path, engine):
    made = engine()
    found = running.run(str(model), str(sums), tmp_path / "out", None, None, OPTIONS)
    assert len(made.asked) == 24
    table = store.read_generations(tmp_path / "out")
    assert list(table.columns) == store.SCHEMA.names
    assert pq.read_schema(tmp_path / "out" / "generations.parquet").equals(store.SCHEMA, check_metadata=False)
    assert table["sample"].tolist() == [0, 1, 2, 3] * 6
    assert table["index"].tolist() == [problem for problem in range(6) for _ in range(4)]
    # The end-of-sequence token is counted, but is not in the text.
    right = table[table["score"] == 1]
    assert 0 < len(right) < 24
    assert not table["response"].str.contains("<|", regex=False).any()
    assert (right["response"] == right["gold"]).all()
    assert (right["response_tokens"] == right["gold"].str.len() + 1).all()
    assert right["prompt"].str.match(r"^<\|user\|>\d\+\d=<\|end\|><\|assistant\|>$").all()
    assert set(table["finish_reason"]) == {"stop", "length"}
    metrics = found["sets"]["sums"]["metrics"]
    assert metrics["avg@4"]["value"] == pytest.approx(table["score"].mean())
    assert metrics["truncation_rate"]["value"] == pytest.approx((table["finish_reason"] == "length").mean())
    assert metrics["response_tokens"]["value"] == pytest.approx(table["response_tokens"].mean())
    assert found["name"] == "tiny"
    assert found["template"]["first_prompt"] == table["prompt"][0]
    assert found["versions"]["verl"]
    assert found["generation"]["max_model_len"] == made.settings.max_model_len == 7 + 8
    assert found["timing"]["response_tokens"] == table["response_tokens"].sum()
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == found
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "generations.parquet",
        "summary.json",
        "settings.json",
        "log.txt",
    }


def test_seeds_are_of_problem_and_sample_alone(model, sums, tmp_path, engine):
    engine()
    running.run(str(model), str(sums), tmp_path / "a", None, None, OPTIONS)
    other = running.RunOptions(n=2, max_tokens=8, limit=3)
    running.run(str(model), str(sums), tmp_path / "b", None, None, other)
    key = ["set", "uid", "sample"]
    tables = [store.read_generations(tmp_path / name).set_index(key) for name in ("a", "b")]
    both = tables[0].join(tables[1], rsuffix="_b", how="inner")
    assert len(both) == 6
    assert (both["seed"] == both["seed_b"]).all()
    assert tables[0]["seed"].is_unique
    assert running.response_seed(1, "a", 0) != running.response_seed(0, "a", 0)


def test_what_is_finished_when_the_engine_dies_is_not_generated_again(model, sums, tmp_path, engine):
    out = tmp_path / "out"
    engine(dies_after=10)
    with pytest.raises(
        running.GenerationError,
        match=r"while doing the last thing(?s:.*)10 responses are kept; run the same command again",
    ):
        running.run(str(model), str(sums), out, None, None, OPTIONS)
    assert not (out / "summary.json").exists()
    lines = (out / "responses.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 10
    # As if the process had been killed while writing a line.
    (out / "responses.jsonl").write_text("".join(lines) + lines[0][:20])
    second = engine()
    found = running.run(str(model), str(sums), out, None, None, OPTIONS)
    assert len(second.asked) == 14
    assert found["timing"]["response_tokens"] < store.read_generations(out)["response_tokens"].sum()

    engine()
    whole = running.run(str(model), str(sums), tmp_path / "whole", None, None, OPTIONS)
    assert found["sets"] == whole["sets"]
    pd.testing.assert_frame_equal(store.read_generations(out), store.read_generations(tmp_path / "whole"))


def test_more_responses_and_sets_may_be_asked_for_later_and_fewer_not(model, sums, tmp_path, engine):
    out = tmp_path / "out"
    engine()
    running.run(str(model), str(sums), out, None, None, OPTIONS)
    more = engine()
    other = write_rows(
        tmp_path / "others" / "test.parquet", [to_row(Problem("8+9=", "17"), "arithmetic", "math", "test", 0)]
    )
    grown = running.RunOptions(n=6, max_tokens=8)
    found = running.run(str(model), f"{sums},{other}", out, None, None, grown)
    assert len(more.asked) == 6 * 2 + 6
    assert {name: (each["problems"], each["samples"]) for name, each in found["sets"].items()} == {
        "sums": (6, 6),
        "others": (1, 6),
    }
    again = engine()
    assert running.run(str(model), f"{sums},{other}", out, None, None, grown)["timing"] is None
    assert again.asked == []
    with pytest.raises(EvaluationError, match=r"already has 14 responses beyond those requested.*may only grow"):
        running.run(str(model), f"{sums},{other}", out, None, None, OPTIONS)
    with pytest.raises(EvaluationError, match=r"already has 6 responses beyond those requested.*in others"):
        running.run(str(model), str(sums), out, None, None, grown)
    # A refused smaller request loses nothing.
    assert len(store.read_generations(out)) == 42
    assert set(json.loads((out / "settings.json").read_text())["sets"]) == {"sums", "others"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 0.5}, "temperature was 1.0, is 0.5"),
        ({"max_tokens": 9}, "max_tokens was 8, is 9"),
        ({"seed": 1}, "seed was 0, is 1"),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            "chat_template_kwargs.enable_thinking was None, is False",
        ),
    ],
)
def test_an_evaluation_goes_on_only_as_it_was_begun(model, sums, tmp_path, engine, changed, message):
    engine(dies_after=1)
    with pytest.raises(running.GenerationError):
        running.run(str(model), str(sums), tmp_path / "out", None, None, OPTIONS)
    engine()
    options = running.RunOptions(**{"n": 4, "max_tokens": 8, **changed})
    with pytest.raises(
        EvaluationError, match=f"was started with other settings: .*{message}.*Give another --out, or delete it"
    ):
        running.run(str(model), str(sums), tmp_path / "out", None, None, options)


def test_another_model_or_set_in_the_same_place_is_noticed(model, sums, tmp_path, engine):
    import shutil

    engine()
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    running.run(str(copy), str(sums), tmp_path / "out", None, None, OPTIONS)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(EvaluationError, match="model_fingerprint was"):
        running.run(str(copy), str(sums), tmp_path / "out", None, None, OPTIONS)
    content[-1] ^= 1
    weights.write_bytes(content)
    running.run(str(copy), str(sums), tmp_path / "out", None, None, OPTIONS)
    write_rows(sums, [to_row(Problem("8+9=", "17"), "arithmetic", "math", "test", 0)])
    with pytest.raises(EvaluationError, match=r"sets.sums was"):
        running.run(str(copy), str(sums), tmp_path / "out", None, None, OPTIONS)


def test_the_fingerprint_reads_both_ends_of_large_files(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_EDGE_BYTES", 16)
    found = set()
    for content in (bytes(100), b"1" + bytes(99), bytes(99) + b"1", bytes(101)):
        (tmp_path / "model.safetensors").write_bytes(content)
        found.add(models.fingerprint(str(tmp_path), None))
    assert len(found) == 4
    assert models.fingerprint("org/name", "abc") == "org/name@abc"


def test_two_at_once_in_one_folder_are_refused(model, sums, tmp_path, engine):
    engine(dies_after=1)
    out = tmp_path / "out"
    with pytest.raises(running.GenerationError):
        running.run(str(model), str(sums), out, None, None, OPTIONS)
    engine()
    with store.appending(out), pytest.raises(EvaluationError, match="another process is writing to it"):
        running.run(str(model), str(sums), out, None, None, OPTIONS)


def test_a_folder_of_something_else_is_left_alone(model, sums, tmp_path, engine):
    engine()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(EvaluationError, match="already exists and is not an evaluation to resume"):
        running.run(str(model), str(sums), tmp_path / "out", None, None, OPTIONS)


def test_a_response_that_does_not_fit_is_refused_before_vllm_starts(model, sums, tmp_path, engine):
    made = engine()
    with pytest.raises(EvaluationError, match=r"longest prompt has 7 tokens.*more than the context length 512"):
        running.run(str(model), str(sums), tmp_path / "out", None, None, running.RunOptions(max_tokens=506))
    assert made.asked == []
    assert not (tmp_path / "out").exists()
    running.run(str(model), str(sums), tmp_path / "out", None, None, running.RunOptions(max_tokens=505))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"n": 0}, "--n must be at least 1, got 0"),
        ({"temperature": -1.0}, "--temperature must be 0 or more, got -1.0"),
        ({"temperature": 0.0}, "with --temperature 0 all responses are identical: give --n 1, not 8"),
        ({"top_p": 0.0}, "--top-p must be above 0 and at most 1, got 0.0"),
        ({"top_k": 0}, "--top-k must be -1 for all tokens, or at least 1, got 0"),
        ({"max_tokens": 0}, "--max-tokens must be at least 1, got 0"),
        ({"data_parallel": 0}, "--data-parallel must be at least 1, got 0"),
    ],
)
def test_an_option_out_of_range_is_named(option, message):
    with pytest.raises(EvaluationError, match=message):
        running.RunOptions(**option)


def test_engines_are_kept_busy_and_none_gets_more_than_its_share():
    """Three engines that finish one request at a time, the first one three times as fast."""
    queues: list[list[int]] = [[], [], []]
    largest = [0, 0, 0]
    clock = [0.0, 0.0, 0.0]

    def start(engine, batch):
        queues[engine] += [request.key for request in batch]
        largest[engine] = max(largest[engine], len(queues[engine]))
        clock[engine] += 1 if engine == 0 else 3
        return (clock[engine], engine)

    def wait(handles):
        handle = min(handles)
        key = queues[handle[1]].pop(0)
        return handle, Progress([Finished(key, [0], "stop")], 1)

    reports = list(drive(3, start, wait, [Request(key, [1], 0) for key in range(50)], in_flight=4))
    assert sorted(report.finished[0].key for report in reports) == list(range(50))
    assert largest == [4, 4, 4]
    assert max(clock) - min(clock) <= 3 * 4


@pytest.mark.stack
def test_more_engines_than_the_cluster_has_are_refused(run_python):
    result = run_python(
        """
from cfpo_verl.evaluation.engine import EngineSettings, generate_on_cluster
from cfpo_verl.evaluation.sets import EvaluationError
settings = EngineSettings("m", "float32", 8, 1, 0.9, 8, True, False, 1.0, 1.0, -1, 4)
for env, name in (({"A": "b"}, "CPU"), ({}, "GPU")):
    try:
        next(generate_on_cluster(settings, [], 9999, env))
    except EvaluationError as error:
        assert f"--data-parallel 9999 needs 9999 {name}s, but the Ray cluster has " in str(error), error
        print("refused")
    import ray
    ray.shutdown()
""",
        RAY_ADDRESS="local",
    )
    assert result.stdout.split().count("refused") == 2, result.stderr[-3000:]


def test_scores_answers_and_votes():
    rows = [
        ("openai/gsm8k", "It is \\boxed{0.5}.", "\\frac12", ""),
        ("openai/gsm8k", "It is 3.", "3", ""),  # no answer in the form of this data source
        ("arithmetic", "7", "8", ""),
        ("arithmetic", "7.0", "8", ""),
        ("my/own", "The answer is 4", "4", ""),
    ]
    table = pd.DataFrame(rows, columns=["data_source", "response", "gold", "problem"])
    seen = []
    scored = scoring.score(table, seen.append)
    assert scored["score"].tolist() == [1, 0, 0, 0, 1]
    assert scored["answer"].isna().tolist() == [False, True, False, False, False]
    assert scored["vote"][2] == scored["vote"][3]
    assert sum(seen) == 5


def generations(scores, votes, set_name="x", **columns):
    """Return rows of generations.parquet with the given scores and votes per problem."""
    rows = [
        {"set": set_name, "uid": f"u{p}", "sample": s, "score": float(score), "vote": vote, "answer": vote}
        for p, (of_problem, voted) in enumerate(zip(scores, votes, strict=True))
        for s, (score, vote) in enumerate(zip(of_problem, voted, strict=True))
    ]
    known = {"finish_reason": "stop", "response_tokens": 3}
    return pd.DataFrame(rows).assign(**{**known, **columns})


def test_votes_are_counted_by_answer_and_all_right_ones_together():
    table = generations(
        [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
        [["1/2", "0.5", "3", "3"], ["3", "4", None, "4"], ["7", "7", "7", "7"]],
    )
    [(name, counts)] = summary.count(table)
    assert name == "x"
    assert counts.votes.tolist() == [[2, 2, 0], [0, 1, 2], [4, 0, 0]]
    assert counts.correct.tolist() == [2, 0, 4]
    found = summary.summarise(table)["x"]
    assert (found["problems"], found["samples"]) == (3, 4)
    assert found["metrics"]["maj@4"]["value"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert found["metrics"]["avg@4"]["value"] == pytest.approx(0.5)
    assert found["metrics"]["pass@2"]["value"] == pytest.approx((5 / 6 + 0 + 1) / 3)
    assert found["metrics"]["format_rate"]["value"] == pytest.approx((1 + 0.75 + 1) / 3)
    assert found["metrics"]["pass@4"]["interval"] == "exact"
    assert found["pass_at_k"]["k"] == [1, 2, 3, 4]
    assert found["pass_at_k"]["value"][1] == found["metrics"]["pass@2"]["value"]
    assert list(found["metrics"]) == [
        "avg@4",
        *("pass@1", "pass@2", "pass@4", "maj@1", "maj@2", "maj@4"),
        *("format_rate", "truncation_rate", "response_tokens"),
    ]


def test_the_votes_of_interleaved_problems_are_theirs():
    table = generations([[0, 0], [0, 0]], [["a", "a"], ["a", "b"]]).sort_values("sample", kind="stable")
    [(_name, counts)] = summary.count(table)
    assert counts.votes.tolist() == [[0, 2, 0], [0, 1, 1]]


def test_what_is_not_known_has_no_metric():
    found = summary.summarise(generations([[0, 0]], [[None, None]], finish_reason=None, response_tokens=None))
    metrics = found["x"]["metrics"]
    assert {"truncation_rate", "response_tokens"}.isdisjoint(metrics)
    assert metrics["maj@2"]["value"] == 0


def test_problems_with_fewer_responses_than_others_are_named():
    table = generations([[0, 0], [1, 1]], [["a", "a"], ["b", "b"]]).iloc[:3]
    with pytest.raises(summary.UnevenError, match="problem u1 has 1 responses and problem u0 has 2"):
        summary.summarise(table)


def test_sampled_majorities_state_their_error():
    table = generations([[1] * 40 + [0] * 40], [["7"] * 40 + ["8"] * 40])
    metrics = summary.summarise(table)["x"]["metrics"]
    assert metrics["maj@64"]["standard_error"] > 0
    assert metrics["maj@80"]["standard_error"] is None
    assert list(metrics)[1:9] == [f"pass@{k}" for k in (1, 2, 4, 8, 16, 32, 64, 80)]


def test_generations_of_verl_are_scored(tmp_path):
    """The columns that verl's generation writes: its data and a list of responses per problem."""
    rows = [to_row(Problem(f"{a}+1=", str(a + 1)), "arithmetic", "math", "test", a) for a in range(3)]
    table = pa.Table.from_pylist(rows, schema=ROWS).to_pandas()
    table["responses"] = [["1", "2"], ["2", "2"], ["nothing", ""]]
    table.to_parquet(tmp_path / "made.parquet")
    found = running.score(tmp_path / "made.parquet", tmp_path / "out", None)
    assert found["name"] == "made"
    [(name, metrics)] = found["sets"].items()
    assert (name, metrics["problems"], metrics["samples"]) == ("arithmetic", 3, 2)
    assert metrics["metrics"]["avg@2"]["value"] == pytest.approx((0.5 + 1 + 0) / 3)
    scored = store.read_generations(tmp_path / "out")
    assert scored["index"].tolist() == [0, 0, 1, 1, 2, 2]
    assert scored["uid"].tolist()[::2] == [row["extra_info"]["uid"] for row in rows]
    assert scored["finish_reason"].isna().all()
    with pytest.raises(EvaluationError, match="out: already exists"):
        running.score(tmp_path / "made.parquet", tmp_path / "out", None)


def test_our_own_generations_are_scored_the_same(model, sums, tmp_path, engine):
    engine()
    first = running.run(str(model), str(sums), tmp_path / "a", None, None, OPTIONS)
    second = running.score(tmp_path / "a" / "generations.parquet", tmp_path / "b", "again")
    assert second["sets"]["sums"]["metrics"] == first["sets"]["sums"]["metrics"]
    pd.testing.assert_frame_equal(store.read_generations(tmp_path / "a"), store.read_generations(tmp_path / "b"))


def test_the_least_that_can_be_scored(tmp_path):
    pd.DataFrame({"response": ["#### 3", None], "gold": [3, 4], "data_source": "openai/gsm8k"}).to_parquet(
        tmp_path / "x.parquet"
    )
    table = read_responses(tmp_path / "x.parquet")
    assert table["uid"].nunique() == 2
    assert table["response"].tolist() == ["#### 3", ""]
    assert table["set"].unique().tolist() == ["openai_gsm8k"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["3"]}, "column 'response' is missing. Needed: .* Found: text"),
        ({"response": ["3"], "gold": ["3"]}, "column 'data_source' is missing"),
        ({"response": [], "gold": [], "data_source": []}, "there are no rows"),
        ({"response": ["3", "4"], "gold": ["3", None], "data_source": "a"}, "row 1: the gold answer is missing"),
        ({"response": ["3"], "reward_model": [{"gold": "3"}], "data_source": "a"}, "row 0: the gold answer is missing"),
        ({"responses": [["3", "4"], ["5", "6"]], "gold": ["3", "4"], "data_source": ["a", None]}, "row 1: data_source"),
        ({"response": ["3"], "gold": ["3"], "data_source": [7]}, "row 0: data_source must be text, got 7"),
        ({"response": ["3"], "gold": ["3"], "data_source": ["a"], "uid": [1.5]}, "row 0: uid must be text, got 1.5"),
        (
            {"response": ["3"], "gold": ["3"], "data_source": ["a"], "sample": ["x"]},
            r"a column is not of the type in docs/evaluation.md .*'x'.*column sample",
        ),
        (
            {"response": ["3"] * 3, "gold": ["3", "3", "4"], "data_source": "a", "uid": ["p", "p", "q"]},
            r"x.parquet: a: problem q has 1 responses and problem p has 2",
        ),
    ],
)
def test_what_a_file_lacks_is_named(tmp_path, columns, message):
    pd.DataFrame(columns).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(EvaluationError, match=message):
        read_responses(tmp_path / "x.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"a,b\n1,2\n"])
def test_a_file_of_another_format_is_named(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(EvaluationError, match=r"x.parquet: not a parquet file"):
        read_responses(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prompt", None, "row 1: prompt must be a list of messages"),
        ("prompt", [], "row 1: prompt must be a list of messages"),
        ("prompt", [{"role": "user", "content": None}], "row 1: prompt must be a list of messages"),
        ("reward_model", {"style": "rule", "ground_truth": None}, "row 1: there is no ground_truth"),
        ("data_source", None, "row 1: data_source must be text, got None"),
    ],
)
def test_a_row_of_a_set_without_what_is_needed_is_named(tmp_path, column, value, message):
    rows = [to_row(Problem(f"{a}+1=", str(a + 1)), "arithmetic", "math", "test", a) for a in range(2)]
    rows[1][column] = value
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=f"x.parquet, {message}"):
        read_set("x", tmp_path / "x.parquet")


@pytest.fixture
def two(model, sums, tmp_path, engine):
    """Two evaluations; the second has different responses, and half as many."""
    engine()
    running.run(str(model), str(sums), tmp_path / "a", None, None, OPTIONS)
    running.run(str(model), str(sums), tmp_path / "b", None, None, running.RunOptions(n=2, max_tokens=8, seed=5))
    return tmp_path / "a", tmp_path / "b"


def test_a_comparison_pairs_problems(two):
    rows, notes = compare(*two)
    assert notes == []
    assert [row.metric for row in rows] == [
        *("avg", "pass@1", "pass@2", "maj@1", "maj@2"),
        *("format_rate", "truncation_rate", "response_tokens"),
    ]
    means = [store.read_generations(folder).groupby("uid", sort=False)["score"].mean() for folder in two]
    row = rows[0]
    assert row.problems == 6
    assert row.paired.difference == pytest.approx((means[1] - means[0]).mean())
    assert row.paired.better == (means[1] > means[0]).sum()
    assert list(row.as_dict()) == [
        *("set", "metric", "problems", "first", "second"),
        *("difference", "low", "high", "better", "worse", "equal", "p_value"),
    ]


def test_a_comparison_leaves_out_and_tells_what_is_not_shared(two, model, sums, tmp_path):
    options = running.RunOptions(n=2, max_tokens=8, limit=4, temperature=0.5)
    running.run(str(model), str(sums), tmp_path / "c", None, None, options)
    rows, notes = compare(two[0], tmp_path / "c")
    assert rows[0].problems == 4
    assert "generation.temperature differs: 1.0 and 0.5" in notes
    assert "sums: the evaluations have 6 and 4 problems and share 4; the others are left out" in notes
    assert compare(two[0], two[0])[0][0].paired.equal == 6


def test_nothing_shared_is_an_error(two, tmp_path):
    pd.DataFrame({"response": ["3"], "gold": ["3"], "data_source": "arithmetic"}).to_parquet(tmp_path / "x.parquet")
    running.score(tmp_path / "x.parquet", tmp_path / "x", None)
    with pytest.raises(EvaluationError, match="share no problem: sets sums, and arithmetic"):
        compare(two[0], tmp_path / "x")
    with pytest.raises(EvaluationError, match=r"not a finished evaluation.*no evaluation was begun here"):
        compare(two[0], tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", b'{"sets": {', "summary.json, line 1: not JSON"),
        ("summary.json", b"\xff", "summary.json: cannot be read: not UTF-8"),
        ("summary.json", b"[]", "summary.json: must hold a JSON object, not list"),
        ("summary.json", b'{"name": "a"}', "summary.json: not the summary of an evaluation, 'sets' must be"),
        (
            "summary.json",
            b'{"name": "a", "sets": {"x": {"problems": 1, "samples": 2, "metrics": {"avg@2": 1}}}}',
            "avg@2 of x must have value, low and high",
        ),
        ("generations.parquet", b"PAR1", "generations.parquet: not a parquet file"),
        ("generations.parquet", pd.DataFrame({"set": ["x"]}).to_parquet(), "'uid' is missing"),
    ],
)
def test_a_torn_or_foreign_file_of_an_evaluation_is_named(two, file, content, message):
    (two[1] / file).write_bytes(content)
    result = CliRunner().invoke(app, ["compare", *map(str, two)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{two[1] / file}" in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("settings.json", '{"sets": ', "settings.json, line 1: not JSON"),
        ("settings.json", "{}", "settings.json: not the settings of an evaluation"),
        ("responses.jsonl", "not JSON\n", "responses.jsonl, line 2: not a finished response .*Delete the line"),
        ("responses.jsonl", '{"set": "sums"}\n', "responses.jsonl, line 2: not a finished response .*KeyError: 'uid'"),
        ("responses.jsonl", "3\n", "responses.jsonl, line 2: not a finished response"),
    ],
)
def test_an_evaluation_with_a_torn_file_is_not_resumed(model, sums, tmp_path, engine, file, content, message):
    engine(dies_after=1)
    with pytest.raises(running.GenerationError):
        running.run(str(model), str(sums), tmp_path / "out", None, None, OPTIONS)
    with (tmp_path / "out" / file).open("a" if file.endswith("l") else "w") as opened:
        opened.write(content)
    engine()
    with pytest.raises(UserError, match=message):
        running.run(str(model), str(sums), tmp_path / "out", None, None, OPTIONS)


def test_a_bug_of_ours_is_a_traceback(two, model, sums, tmp_path, engine, monkeypatch):
    def fail(*_arguments):
        raise ValueError("zip() argument 2 is shorter than argument 1")

    engine()
    arguments = ["run", str(model), "--sets", str(sums), "--max-tokens", "8", "--out"]
    with monkeypatch.context() as patched:
        patched.setattr(store, "append", fail)  # inside the loop around the engine
        generating = CliRunner().invoke(app, [*arguments, str(tmp_path / "out")])
    with monkeypatch.context() as patched:
        patched.setattr(summary, "per_problem", fail)
        comparing = CliRunner().invoke(app, ["compare", *map(str, two)])
    for result in (generating, comparing):
        assert result.exit_code == 1
        assert "Traceback (most recent call last)" in result.stderr
        assert "ValueError: zip() argument 2 is shorter" in result.stderr
        assert "this is a bug in cfpo_verl" in result.stderr
    assert CliRunner().invoke(app, [*arguments, str(tmp_path / "out")]).exit_code == 0


def test_a_model_that_cannot_be_loaded_is_named(model, sums, tmp_path, engine):
    import shutil

    engine()
    shutil.copytree(model, tmp_path / "torn")
    (tmp_path / "torn" / "tokenizer.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"torn: the model cannot be loaded \(.+\)"):
        running.run(str(tmp_path / "torn"), str(sums), tmp_path / "out", None, None, OPTIONS)
    shutil.copytree(model, tmp_path / "strict")
    (tmp_path / "strict" / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(EvaluationError, match=r"strict: the chat template fails on a prompt \(roles must alternate\)"):
        running.run(str(tmp_path / "strict"), str(sums), tmp_path / "out", None, None, OPTIONS)


def test_prompts_are_those_of_verls_agent_loop(run_forked, model, sums, tmp_path):
    """An agent loop of verl and an evaluation build the same tokens, with a template that takes an argument."""
    import shutil

    model = shutil.copytree(model, tmp_path / "switched")
    with (model / "chat_template.jinja").open("a") as template:
        template.write("{% if some_switch == 'on' %}switched on{% endif %}")
    code = f"""
import asyncio, json
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils import hf_tokenizer
from verl.utils.dataset.rl_dataset import RLHFDataset
from cfpo_verl.evaluation.prompts import load_prompter
from cfpo_verl.evaluation.sets import read_set
from pathlib import Path

kwargs = {{"some_switch": "on"}}
rollout = {{"prompt_length": 64, "response_length": 8}}
config = OmegaConf.create({{"actor_rollout_ref": {{"rollout": rollout}}}})
data = OmegaConf.create({{"apply_chat_template_kwargs": kwargs}})
async def theirs(messages):
    loop = SingleTurnAgentLoop(
        DictConfigWrap(config), None, hf_tokenizer({str(model)!r}), None, RLHFDataset, DictConfigWrap(data), "qwen2"
    )
    return await loop.ct_build_initial_tokens(messages)
prompter = load_prompter({str(model)!r}, kwargs)
problems = read_set("sums", Path({str(sums)!r})).problems
ours = [prompter.encode(problem.messages) for problem in problems]
assert prompter.decode(ours[0]).endswith("switched on"), prompter.decode(ours[0])
print(json.dumps([ours, [list(asyncio.run(theirs(problem.messages))) for problem in problems]]))
"""
    result = run_forked(code, VERL_PLATFORM="cpu")
    assert result.returncode == 0, result.stderr[-3000:]
    ours, theirs = json.loads(result.stdout.splitlines()[-1])
    assert len(ours) == 6
    assert ours == theirs


def test_a_model_without_a_chat_template_is_refused(model, sums, tmp_path, engine):
    import shutil

    engine()
    shutil.copytree(model, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(EvaluationError, match="the tokenizer has no chat template"):
        running.run(str(tmp_path / "bare"), str(sums), tmp_path / "out", None, None, OPTIONS)


def test_math500_as_prepared_can_be_evaluated(tmp_path, run_cli):
    source = shared_data("math500.jsonl")
    assert run_cli("data", "prepare", "math500", "--out", "data/math500", "--source", source).returncode == 0
    found = read_set("math500", tmp_path / "data" / "math500" / "test.parquet")
    assert len(found.problems) > 490
    assert found.problems[0].problem in found.problems[0].messages[-1]["content"]
    assert len({problem.uid for problem in found.problems}) == len(found.problems)


def test_the_command_line_says_what_is_wrong(run_cli, tmp_path):
    for arguments, message in (
        (["eval", "run", "m", "--sets", "nope", "--out", "o"], "cfpo-verl eval run: no set called 'nope'"),
        (["eval", "run", "m", "--sets", "aime24", "--out", "o", "--n", "0"], "--n must be at least 1, got 0"),
        (["eval", "run", "m", "--sets", "aime24", "--out", "o"], "data prepare aime24 --out data/aime24"),
        (
            ["eval", "run", "m", "--sets", "aime24", "--out", "o", "--chat-template-kwargs", "[]"],
            "--chat-template-kwargs must be a JSON object, got []",
        ),
        (["eval", "score", "x.parquet", "--out", "o"], "x.parquet: cannot be read (No such file or directory)"),
        (["eval", "compare", "a", "b"], "a: not a finished evaluation"),
    ):
        result = run_cli(*arguments)
        assert result.returncode == 2, result.stderr
        assert message in " ".join(result.stderr.split())
        assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_score_and_compare_from_the_command_line(run_cli, run_script, tmp_path):
    for name, responses in (("a", ["1", "5"]), ("b", ["1", "2"])):
        frame = pd.DataFrame(
            {"response": responses, "gold": ["1", "2"], "data_source": "arithmetic", "uid": ["p", "q"]}
        )
        frame.to_parquet(tmp_path / f"{name}.parquet")
        result = run_cli("eval", "score", f"{name}.parquet", "--out", name)
        assert result.returncode == 0, result.stderr
        assert "avg@1" in result.stdout
    result = run_script("eval", "compare", "a", "b")
    assert result.returncode == 0
    assert "+0.500" in result.stdout
    assert "1 / 0 / 1" in result.stdout
    rows = json.loads(run_cli("eval", "compare", "a", "b", "--json").stdout)
    assert rows[0]["difference"] == 0.5
    assert rows[0]["metric"] == "avg"


def test_output_of_processes_goes_to_the_log_and_the_bar_to_the_terminal(tmp_path):
    code = """
import os, subprocess, sys
from pathlib import Path
from cfpo_verl.evaluation.terminal import output_to
with output_to(Path("log.txt")) as terminal:
    print("of python")
    subprocess.run(["sh", "-c", "echo of a child; echo its error >&2"])
    print("bar", file=terminal, flush=True)
print("after")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("after\n", "bar\n")
    log = (tmp_path / "log.txt").read_text()
    assert all(text in log for text in ("of python", "of a child", "its error"))


def test_a_run_folder_says_how_its_model_is_asked():
    config = {"data": {"apply_chat_template_kwargs": {"enable_thinking": False}, "max_response_length": 8}}
    found = models.EvalModel("exported", "runs/a", "runs/a", 2, config)
    assert found.chat_template_kwargs == {"enable_thinking": False}
    assert found.name == "a"
    assert models.EvalModel("org/name", "org/name").chat_template_kwargs == {}
