"""Public data sets: the real files with their exact counts, hand-made rows in their columns, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import clean_environment, shared_data

from cfpo_verl.data_prep import dapo_math_17k, gsm8k, math_minus_500, reading
from cfpo_verl.data_prep.prepare import Options, prepare
from cfpo_verl.data_prep.schema import SCHEMA, DataError, Problem
from cfpo_verl.data_prep.source import Source
from cfpo_verl.data_prep.sources import SOURCES
from cfpo_verl.data_prep.writing import sha256
from cfpo_verl.data_sources import DATA_SOURCES
from cfpo_verl.files import FileError
from cfpo_verl.rewards import compute_score


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def golds(path: Path) -> list[str]:
    return [row["reward_model"]["ground_truth"] for row in rows_of(path)]


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


OLYMPIAD_DROPPED = {
    "answer in words": 1,
    "answer with an error tolerance": 1,
}


@pytest.mark.parametrize(
    ("name", "file", "rows", "dropped"),
    [
        ("gsm8k", "gsm8k_train", 7472, {"near duplicate": 1}),
        ("gsm8k", "gsm8k_test", 1319, {}),
        ("hendrycks_math", "math_test", 4996, {"near duplicate": 4}),
        ("math500", "math500", 500, {}),
        ("aime24", "aime24", 30, {}),
        ("amc23", "amc23", 40, {}),
        ("minerva_math", "minerva_math", 272, {}),
        ("olympiadbench", "olympiadbench", 673, OLYMPIAD_DROPPED),
    ],
)
def test_real_files_lose_no_row_unaccounted(tmp_path, name, file, rows, dropped):
    path, account = prepare(SOURCES[name], tmp_path, str(shared_data(f"{file}.jsonl")))
    assert (account.rows_out, account.dropped) == (rows, dropped)
    assert account.rows_in == rows + sum(dropped.values())
    written = rows_of(path)
    assert pq.read_schema(path).equals(SCHEMA)
    assert len({row["extra_info"]["uid"] for row in written}) == rows
    assert [row["extra_info"]["index"] for row in written] == list(range(rows))
    for row in written:
        gold = row["reward_model"]["ground_truth"]
        assert compute_score(row["data_source"], rf"\boxed{{{gold}}}", gold)["score"] == 1
        assert row["extra_info"]["problem"] in row["prompt"][0]["content"]


def test_math_without_math_500(tmp_path):
    options = Options(split="test", exclude=str(shared_data("math500.jsonl")))
    path, account = prepare(math_minus_500.SOURCE, tmp_path, str(shared_data("math_test.jsonl")), options)
    assert (account.rows_out, account.dropped) == (4497, {"excluded": 500, "near duplicate": 3})
    assert json.loads(path.with_suffix(".manifest.json").read_text())["arguments"]["exclude"] == "math500.jsonl"
    evaluation, _account = prepare(SOURCES["math500"], tmp_path / "500", str(shared_data("math500.jsonl")))
    uids = [{row["extra_info"]["uid"] for row in rows_of(file)} for file in (path, evaluation)]
    assert not uids[0] & uids[1]


def test_boxed_answers_of_math_are_those_that_math_500_states(tmp_path):
    """The last balanced box of the solution, against the answers that the owners of MATH-500 extracted."""
    stated = {row["problem"]: row["answer"] for row in map(json.loads, shared_data("math500.jsonl").open())}
    origin = str(shared_data("math_test.jsonl"))
    path, _account = prepare(SOURCES["hendrycks_math"], tmp_path, origin, Options(near_duplicates=0))
    found = {row["extra_info"]["problem"]: row["reward_model"]["ground_truth"] for row in rows_of(path)}
    different = [
        (found[problem.strip()], answer)
        for problem, answer in stated.items()
        if not compute_score("HuggingFaceH4/MATH-500", rf"\boxed{{{found[problem.strip()]}}}", answer)["score"]
    ]
    assert different == []


# Rows in the columns of each source that has no file here, and the answers they must give.
SAMPLES = {
    "dapo_math_17k": (
        [
            {
                "data_source": "math_dapo",
                "prompt": [{"role": "user", "content": f"{dapo_math_17k.BEFORE}{text}{dapo_math_17k.AFTER}"}],
                "ability": "MATH",
                "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
                "extra_info": {"index": index},
            }
            for text, answer, index in [
                ("What is 1+1?", "2", "a"),
                ("What is 1+2?", "3", "b"),
                ("What is 1+1?", "2", "a"),
            ]
        ],
        ["2", "3"],
        {"repeated row": 1},
    ),
    "openr1_math_220k": (
        [
            {"problem": "Half of 1?", "solution": "...", "answer": r"\frac{1}{2}", "uuid": "u1", "source": "olympiads"},
            {"problem": "Prove it.", "solution": "...", "answer": "", "uuid": "u2", "source": "olympiads"},
        ],
        [r"\frac{1}{2}"],
        {"empty answer": 1},
    ),
    "deepscaler": (
        [{"problem": "Half of 1?", "answer": r"$\frac{1}{2}$", "solution": ""}],
        [r"\frac{1}{2}"],
        {},
    ),
    "numina_math_cot": (
        [
            {"source": "cn_k12", "problem": "Half of 1?", "solution": r"It is \boxed{\frac{1}{2}}.", "messages": []},
            {"source": "olympiads", "problem": "Prove it.", "solution": "Clear.", "messages": []},
            {"source": "olympiads", "problem": "Find it.", "solution": r"\boxed{ }", "messages": []},
        ],
        [r"\frac{1}{2}"],
        {"no boxed answer": 1, "empty answer": 1},
    ),
    "big_math": (
        [
            {"problem": "1+1?", "answer": "2", "source": "orca_math", "domain": ["x"], "llama8b_solve_rate": 0.5},
            {"problem": " ", "answer": "2", "source": "orca_math", "domain": ["x"], "llama8b_solve_rate": None},
            {"problem": "?", "answer": "(1, )", "source": "x", "domain": ["x", "y"], "llama8b_solve_rate": 1.0},
        ],
        ["2"],
        {"empty problem": 1, "answer must be an answer that the reward scores 1 against itself": 1},
    ),
    "aime25": (
        [{"problem": "Find m+n.", "answer": "070", "id": "0"}, {"problem": "Find it.", "answer": "x", "id": "1"}],
        ["70"],
        {"answer is not a plain number": 1},
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_sources_without_a_file_here_read_their_own_columns(tmp_path, name, suffix):
    raw, expected, dropped = SAMPLES[name]
    origin = tmp_path / f"raw{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(raw), origin)
    elif suffix == ".json":
        origin.write_text(json.dumps(raw))
    else:
        write_jsonl(origin, raw)
    path, account = prepare(SOURCES[name], tmp_path / "out", str(origin))
    assert golds(path) == expected
    assert account.dropped == dropped
    if name != "numina_math_cot":
        assert {row["data_source"] for row in rows_of(path)} == {SOURCES[name].data_source}


def test_numina_problems_have_verls_names_where_it_has_one(tmp_path):
    raw = [
        {"source": source, "problem": f"{source}?", "solution": r"\boxed{1}"}
        for source in ("cn_k12", "orca_math", "amc_aime")
    ]
    path, _account = prepare(SOURCES["numina_math_cot"], tmp_path, write_jsonl(tmp_path / "a.jsonl", raw))
    names = [row["data_source"] for row in rows_of(path)]
    assert names == ["numina_cn_k12", "AI-MO/NuminaMath-CoT", "numina_amc_aime"]


def test_every_source_is_tested_and_known_to_the_reward():
    real = {"gsm8k", "hendrycks_math", "math_minus_500", "math500", "aime24", "amc23", "minerva_math", "olympiadbench"}
    assert real | set(SAMPLES) == set(SOURCES)
    assert {known.data_source for known in SOURCES.values()} <= set(DATA_SOURCES)
    assert all(known.name == name for name, known in SOURCES.items())


def test_dapo_conversations_of_several_turns_are_left_out(tmp_path):
    [row, *_others] = SAMPLES["dapo_math_17k"][0]
    turns = {**row, "prompt": [*row["prompt"], {"role": "assistant", "content": "2"}]}
    _path, account = prepare(SOURCES["dapo_math_17k"], tmp_path, write_jsonl(tmp_path / "a.jsonl", [row, turns]))
    assert account.dropped == {"not a single message": 1}


def test_white_space_around_problems_is_dropped(tmp_path):
    path, _account = prepare(gsm8k.SOURCE, tmp_path, write_jsonl(tmp_path / "a.jsonl", gsm_rows((" A?\n", "1"))))
    assert rows_of(path)[0]["extra_info"]["problem"] == "A?"


def test_dapo_prompts_lose_their_instructions(tmp_path):
    path, _account = prepare(
        SOURCES["dapo_math_17k"], tmp_path, write_jsonl(tmp_path / "a.jsonl", SAMPLES["dapo_math_17k"][0])
    )
    assert rows_of(path)[0]["extra_info"]["problem"] == "What is 1+1?"


def test_floats_that_are_whole_numbers_are_written_as_such(tmp_path):
    raw = [{"problem": "a", "answer": 27.0}, {"problem": "b", "answer": 2.5}, {"problem": "c", "answer": -1.0}]
    path, _account = prepare(SOURCES["amc23"], tmp_path, write_jsonl(tmp_path / "a.jsonl", raw))
    assert golds(path) == ["27", "2.5", "-1"]


def test_units_of_olympiadbench_become_part_of_the_question(tmp_path):
    row = {"error": None, "final_answer": ["$5$"]}
    raw = [{**row, "question": "How far?", "context": "A train.", "unit": "km", "id": 7}]
    path, _account = prepare(SOURCES["olympiadbench"], tmp_path, write_jsonl(tmp_path / "a.jsonl", raw))
    [written] = rows_of(path)
    assert written["extra_info"]["problem"] == "A train.\nHow far?\nGive the answer in the unit km, without the unit."
    assert (written["extra_info"]["source_id"], golds(path)) == ("7", ["5"])


GOOD = b'{"question": "q", "answer": "#### 1"}\n'


def gsm_rows(*pairs: tuple[str, str]) -> list[dict]:
    return [{"question": question, "answer": f"so\n#### {answer}"} for question, answer in pairs]


def test_repeated_and_contradicting_problems_are_left_out_and_counted(tmp_path):
    raw = gsm_rows(("A?", "1"), ("B?", "2"), ("A?", "1"), ("a?  ", "1"), ("C?", "3"), ("B?", "5"), ("D?", "4"))
    path, account = prepare(gsm8k.SOURCE, tmp_path, write_jsonl(tmp_path / "a.jsonl", raw))
    assert golds(path) == ["1", "3", "4"]
    assert account.dropped == {
        "repeated row": 1,
        "repeated problem": 2,
        "contradictory answers": 1,
    }
    assert [row["extra_info"]["index"] for row in rows_of(path)] == [0, 1, 2]


def test_rows_are_the_same_only_if_all_their_columns_are(tmp_path):
    """Also across batches, and where a value moves from one column to the next."""
    raw = [
        {"prompt": [{"role": "user", "content": a}], "reward_model": {"ground_truth": b, "style": "x"}}
        for a, b in [("1", "2"), ("2", "1"), ("12", "2"), ("1", "22"), ("1", "2")]
    ]
    pq.write_table(pa.Table.from_pylist(raw), tmp_path / "a.parquet", row_group_size=2)
    _path, account = prepare(SOURCES["dapo_math_17k"], tmp_path / "out", str(tmp_path / "a.parquet"))
    # "1" has the answers 2 and 22: left out as contradicting, its second row as the same problem.
    assert account.dropped == {
        "repeated row": 1,
        "repeated problem": 1,
        "contradictory answers": 1,
    }
    assert account.rows_out == 2


def test_rows_are_hashed_twice_by_content():
    batch = pa.RecordBatch.from_pylist([{"a": "x", "b": 1}, {"a": "x", "b": 2}, {"a": "x", "b": 1}])
    first, second = reading.row_hashes(batch)
    assert first[0] == first[2] != first[1]
    assert second[0] == second[2] != second[1]
    assert first[0] != second[0]


def test_a_row_hashes_the_same_whatever_stands_beside_it():
    rows = [{"p": ["x"]}, {"p": ["x", "y"]}, {"p": []}, {"p": None}, {"p": ["y", "x"]}, {"p": [None]}]
    kind = pa.schema([("p", pa.list_(pa.string()))])
    together = reading.row_hashes(pa.RecordBatch.from_pylist(rows, schema=kind))[0]
    alone = [reading.row_hashes(pa.RecordBatch.from_pylist([row], schema=kind))[0][0] for row in rows]
    assert together == alone
    assert len(set(alone)) == len(rows)


def test_optional_columns_that_come_late_are_read(tmp_path):
    raw = [{"problem": "a", "answer": "1"}, {"problem": "b", "answer": "2", "unique_id": "u"}]
    path, _account = prepare(SOURCES["math500"], tmp_path, write_jsonl(tmp_path / "a.jsonl", raw))
    assert [row["extra_info"]["source_id"] for row in rows_of(path)] == ["", "u"]


def test_problems_that_differ_in_their_context_are_different(tmp_path):
    row = {"error": None, "final_answer": ["3"], "unit": None}
    raw = [{**row, "question": "Find it.", "context": context} for context in ("Let x=1.", "Let y=2.", None)]
    _path, account = prepare(SOURCES["olympiadbench"], tmp_path, write_jsonl(tmp_path / "a.jsonl", raw))
    assert account.rows_out == 3


def test_answers_that_the_reward_takes_for_the_same_do_not_contradict(tmp_path):
    raw = [
        {"problem": "a", "answer": r"\dfrac12"},
        {"problem": "a", "answer": r"\frac12"},
        {"problem": "b", "answer": "2"},
    ]
    raw.append({"problem": "b", "answer": "2.0"})
    path, account = prepare(SOURCES["math500"], tmp_path, write_jsonl(tmp_path / "a.jsonl", raw))
    assert golds(path) == [r"\dfrac12", "2"]
    assert account.dropped == {"repeated problem": 2}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gsm8k", {"question": "q", "answer": None}),
        ("gsm8k", {"question": "q", "answer": 3}),
        ("dapo_math_17k", {"prompt": [{"role": "user", "content": "q"}], "reward_model": None}),
        ("dapo_math_17k", {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"style": "rule"}}),
        ("minerva_math", {"problem": "q", "solution": None}),
        ("big_math", {"problem": "q", "answer": None}),
        (
            "olympiadbench",
            {
                "question": "q",
                "final_answer": None,
                "is_multiple_answer": False,
                "answer_type": "Numerical",
                "error": None,
                "context": None,
                "unit": None,
            },
        ),
    ],
)
def test_rows_without_an_answer_are_counted(tmp_path, name, row):
    with pytest.raises(DataError, match=r"none of the 1 rows can be used \(1 no answer\)"):
        prepare(SOURCES[name], tmp_path / "out", write_jsonl(tmp_path / "a.jsonl", [row]))


@pytest.mark.parametrize("prompt", ["q", None, [], [None], [{"role": "user", "content": 3}]])
def test_a_prompt_that_is_no_message_is_counted(tmp_path, prompt):
    origin = write_jsonl(tmp_path / "a.jsonl", [{"prompt": prompt, "reward_model": {"ground_truth": "1"}}])
    with pytest.raises(DataError, match=r"none of the 1 rows can be used \(1 not a single message\)"):
        prepare(SOURCES["dapo_math_17k"], tmp_path / "out", origin)


def test_olympiadbench_takes_numbers_for_texts(tmp_path):
    row = {"question": "q", "final_answer": [3], "error": None, "context": 5, "unit": 7}
    path, _account = prepare(SOURCES["olympiadbench"], tmp_path / "out", write_jsonl(tmp_path / "a.jsonl", [row]))
    assert golds(path) == ["3"]


def test_a_row_that_cannot_be_excluded_is_named(tmp_path):
    origin = write_jsonl(tmp_path / "a.jsonl", [{"problem": "q", "solution": r"\boxed{1}"}])
    exclude = write_jsonl(tmp_path / "b.jsonl", [{"problem": "r", "answer": "1"}, {"problem": "", "answer": "1"}])
    with pytest.raises(DataError, match=r"b\.jsonl, row 1: cannot be excluded \(empty problem\)"):
        prepare(SOURCES["math_minus_500"], tmp_path / "out", origin, Options(exclude=exclude))
    assert not (tmp_path / "out").exists()


def test_blank_lines_are_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n  \n" + GOOD.replace(b'"q"', b'"r"'))
    assert prepare(gsm8k.SOURCE, tmp_path / "out", str(tmp_path / "a.jsonl"))[1].rows_in == 2


def test_batches_change_nothing(tmp_path, monkeypatch):
    raw = gsm_rows(*((f"Question {number % 37}?", str(number % 37 + (number == 73))) for number in range(100)))
    origin = write_jsonl(tmp_path / "a.jsonl", raw)
    whole, account = prepare(gsm8k.SOURCE, tmp_path / "whole", origin)
    monkeypatch.setattr(reading, "BATCH_ROWS", 7)
    monkeypatch.setattr("cfpo_verl.data_prep.prepare.BATCH_ROWS", 5)
    cut, cut_account = prepare(gsm8k.SOURCE, tmp_path / "cut", origin)
    assert rows_of(whole) == rows_of(cut)
    assert account == cut_account
    assert account.rows_out == 36
    first, _account = prepare(gsm8k.SOURCE, tmp_path / "first", origin, Options(limit=12))
    assert rows_of(first) == rows_of(whole)[:12]


@pytest.mark.stack
def test_ray_gives_the_same_rows_and_the_same_account(tmp_path, monkeypatch):
    """Several row groups and batches, with repeated, contradicting and unusable rows among them."""
    for module in ("reading", "extracting", "prepare"):
        monkeypatch.setattr(f"cfpo_verl.data_prep.{module}.BATCH_ROWS", 16)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {number % 37} + 1?"}],
            "reward_model": {
                "ground_truth": "x" if number % 37 == 5 else str(number % 37 + (number == 73)),
                "style": "",
            },
        }
        for number in range(200)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=30)
    origin = str(tmp_path / "a.parquet")
    here, account = prepare(SOURCES["dapo_math_17k"], tmp_path / "here", origin)
    there, other_account = prepare(SOURCES["dapo_math_17k"], tmp_path / "there", origin, engine="ray")
    assert account == other_account
    assert account.rows_out == 35
    assert set(account.dropped) == {
        "repeated row",
        "repeated problem",
        "answer is not a plain number",
        "contradictory answers",
    }
    assert here.read_bytes() == there.read_bytes()
    with pytest.raises(DataError, match="column 'question' is missing"):
        prepare(gsm8k.SOURCE, tmp_path / "out", origin, engine="ray")


@pytest.mark.parametrize(
    ("engine", "name", "message"),
    [
        ("ray", "a.jsonl", "the engine ray reads parquet files and folders of them"),
        ("ray", "nowhere.parquet", "nowhere.parquet: no such file"),
        ("spark", "a.jsonl", "engine must be local or ray, got 'spark'"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(tmp_path, engine, name, message):
    write_jsonl(tmp_path / "a.jsonl", gsm_rows(("A?", "1")))
    with pytest.raises(DataError, match=message):
        prepare(gsm8k.SOURCE, tmp_path / "out", str(tmp_path / name), engine=engine)


def test_the_same_input_gives_the_same_bytes_and_a_manifest(tmp_path):
    origin = write_jsonl(tmp_path / "a.jsonl", gsm_rows(("A?", "1"), ("B?", "2"), ("B?", "2")))
    first, second = (prepare(gsm8k.SOURCE, tmp_path / name, origin, Options(seed=3))[0] for name in ("x", "y"))
    assert first.read_bytes() == second.read_bytes()
    manifests = [path.with_suffix(".manifest.json").read_text() for path in (first, second)]
    assert manifests[0] == manifests[1]
    manifest = json.loads(manifests[0])
    assert manifest["rows_in"] == 3
    assert manifest["rows_out"] == 2
    assert manifest["dropped"] == {"repeated row": 1}
    assert manifest["sha256_in"] == sha256(Path(origin))
    assert manifest["sha256_out"] == sha256(first)
    assert (manifest["licence"], manifest["origin"], manifest["arguments"]["seed"]) == ("MIT", "a.jsonl", 3)
    assert sorted(path.name for path in first.parent.iterdir()) == ["train.manifest.json", "train.parquet"]


def test_seed_shuffles_and_limit_cuts(tmp_path):
    origin = write_jsonl(tmp_path / "a.jsonl", gsm_rows(*((f"Q{number}?", str(number)) for number in range(50))))

    def prepared(name, **options):
        path, account = prepare(gsm8k.SOURCE, tmp_path / name, origin, Options(**options))
        return golds(path), account

    plain, _account = prepared("plain")
    shuffled, _account = prepared("shuffled", seed=1)
    assert plain == [str(number) for number in range(50)]
    assert shuffled != plain
    assert sorted(shuffled) == sorted(plain)
    cut, account = prepared("cut", seed=1, limit=8)
    assert cut == shuffled[:8]
    assert account.dropped == {"beyond the limit": 42}


def test_near_duplicates_are_left_out_of_training_data(tmp_path):
    long = (
        "A farmer in a small village has {} apples in the old barn and gives {} of them to his neighbour. {} are left?"
    )
    raw = gsm_rows(
        (long.format(9, 3, "How many"), "6"),
        (long.format(9, 3, "How many apples"), "6"),
        (long.format(9, 4, "How many"), "5"),  # other numbers
        (long.format(9, 3, "So how many"), "7"),  # another answer
    )
    origin = write_jsonl(tmp_path / "a.jsonl", raw)
    for options in (Options(), Options(near_duplicates=0.7)):
        path, account = prepare(gsm8k.SOURCE, tmp_path / "out", origin, options)
        assert golds(path) == ["6", "5", "7"]
        assert account.dropped == {"near duplicate": 1}
    assert prepare(gsm8k.SOURCE, tmp_path / "out", origin, Options(near_duplicates=0))[1].dropped == {}
    evaluation = replace(gsm8k.SOURCE, evaluation_only=True)
    assert prepare(evaluation, tmp_path / "out", origin)[1].dropped == {}


def test_a_near_duplicate_of_a_contradicted_problem_stays(tmp_path):
    long = "A farmer in a small village has 9 apples in the old barn and gives 3 of them to his neighbour. {} are left?"
    raw = gsm_rows(
        (long.format("How many"), "6"), (long.format("How many apples"), "6"), (long.format("how many"), "5")
    )
    origin = write_jsonl(tmp_path / "a.jsonl", raw)
    path, account = prepare(gsm8k.SOURCE, tmp_path / "out", origin, Options(near_duplicates=0.7))
    assert [row["extra_info"]["problem"] for row in rows_of(path)] == [long.format("How many apples")]
    assert "near duplicate" not in account.dropped


def test_prompts_follow_a_template(tmp_path):
    origin = write_jsonl(tmp_path / "a.jsonl", gsm_rows(("A {x}?", "1")))
    for template, expected in [
        (None, "A {x}?\nThink step by step, then write the final answer, a plain number, after ####."),
        ("plain", "A {x}?"),
        ("boxed", "A {x}?\nThink step by step, then write the final answer in \\boxed{}."),
        ("Q: {problem} {{}}", "Q: A {x}? {}"),
    ]:
        path, _account = prepare(gsm8k.SOURCE, tmp_path / "out", origin, Options(prompt_template=template))
        [row] = rows_of(path)
        assert row["prompt"] == [{"role": "user", "content": expected}]
        assert row["extra_info"]["problem"] == "A {x}?"


def test_uid_depends_on_problem_and_answer_only(tmp_path):
    def uids(name, rows, **options):
        origin = write_jsonl(tmp_path / name, rows)
        path, _account = prepare(gsm8k.SOURCE, tmp_path / f"{name}.out", origin, Options(**options))
        return [row["extra_info"]["uid"] for row in rows_of(path)]

    first = uids("a.jsonl", gsm_rows(("A?", "1"), ("B?", "2")))
    assert uids("b.jsonl", gsm_rows(("b? ", "2"), ("A?", "1")), prompt_template="plain", split="x") == first[::-1]
    assert set(first).isdisjoint(uids("c.jsonl", gsm_rows(("A?", "2"), ("B?", "1"))))


def test_long_prompts_are_measured_with_the_chat_template(tmp_path):
    from cfpo_verl import warmup

    tokenizer = warmup.train_tokenizer(["A?"], 300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    origin = write_jsonl(tmp_path / "a.jsonl", gsm_rows(("A?", "1"), ("A" * 50, "2")))
    options = Options(prompt_template="plain", tokenizer=str(tmp_path / "tokenizer"), max_prompt_tokens=10)
    path, account = prepare(gsm8k.SOURCE, tmp_path / "out", origin, options)
    assert golds(path) == ["1"]
    assert account.dropped == {"prompt longer than 10 tokens": 1}
    messages = [{"role": "user", "content": "A?"}]
    length = len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    for limit, rows in [(length, 1), (length - 1, 0)]:
        short = Options(prompt_template="plain", tokenizer=str(tmp_path / "tokenizer"), max_prompt_tokens=limit)
        if rows:
            assert prepare(gsm8k.SOURCE, tmp_path / "out", origin, short)[1].rows_out == rows
        else:
            with pytest.raises(DataError, match="none of the 2 rows can be used"):
                prepare(gsm8k.SOURCE, tmp_path / "out", origin, short)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + b"{broken\n", "a.jsonl, line 2: not JSON"),
        ("a.jsonl", GOOD + b'"text"\n', "a.jsonl, line 2: a row must be a JSON object, is str"),
        ("a.jsonl", b'{"question": "q"}\n', r"a.jsonl, line 1: column 'answer' is missing \(found: question\)"),
        ("a.jsonl", b'{"question": "q\xff", "answer": "#### 1"}\n', r"a.jsonl: not UTF-8 \(byte 15"),
        ("a.jsonl", b"", r"none of the 0 rows can be used \(there are none\)"),
        (
            "a.jsonl",
            b'{"question": "q", "answer": "1"}\n',
            r"none of the 1 rows can be used \(1 no number after ####\)",
        ),
        (
            "a.jsonl",
            GOOD + b'{"question": "q", "answer": 1}\n',
            "a column has values of different or unsupported types",
        ),
        ("a.jsonl", b'{"question": "q", "answer": "\\ud800"}\n', "different or unsupported types"),
        ("a.json", b'[{"question": "q",\n "answer": }]', "a.json, line 2: not JSON"),
        ("a.json", b'{"question": "q"}', "a.json: must be a list of rows, is a dict"),
        ("a.parquet", b"PAR1 torn", "a.parquet: not a whole parquet file"),
        ("a.csv", b"question,answer\n", "a.csv: only .jsonl, .json and .parquet files are read"),
    ],
)
def test_bad_files_are_named_and_leave_nothing_behind(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(gsm8k.SOURCE, tmp_path / "out", str(tmp_path / name))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_truncated_parquet_keeps_the_old_output(tmp_path):
    raw = pa.Table.from_pylist(gsm_rows(*((f"Q{number}", "1") for number in range(1000))))
    pq.write_table(raw, tmp_path / "a.parquet", row_group_size=100)
    path, _account = prepare(gsm8k.SOURCE, tmp_path / "out", str(tmp_path / "a.parquet"))
    before = path.read_bytes()
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a whole parquet file"):
        prepare(gsm8k.SOURCE, tmp_path / "out", str(tmp_path / "a.parquet"))
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    """A fake at the edge: no disk is filled, the writer fails as it would on a full one."""

    def full(_writer, _table):
        raise OSError(28, "No space left on device")

    origin = write_jsonl(tmp_path / "a.jsonl", gsm_rows(("A?", "1")))
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(FileError, match=r"out: cannot be written \(No space left on device\)"):
        prepare(gsm8k.SOURCE, tmp_path / "out", origin)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_missing_files_are_named(tmp_path, suffix):
    with pytest.raises(DataError, match=rf"nowhere{suffix}: no such file"):
        prepare(gsm8k.SOURCE, tmp_path, str(tmp_path / f"nowhere{suffix}"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"prompt_template": "no place"}, "neither one of plain, hashes, boxed nor a text with {problem}"),
        ({"prompt_template": "{problem} {x}"}, "Double all braces other than those of {problem}"),
        ({"prompt_template": "{problem.x}"}, "Double all braces other than those of {problem}"),
        ({"prompt_template": "{problem[x]}"}, "Double all braces other than those of {problem}"),
        ({"split": "a/b"}, "split must be a file name without folders, got 'a/b'"),
        ({"prompt_template": "{problem} {"}, "Double all braces other than those of {problem}"),
        ({"tokenizer": "t"}, "go together: give both or none"),
        ({"max_prompt_tokens": 5}, "go together: give both or none"),
        ({"tokenizer": "./nowhere", "max_prompt_tokens": 5}, "tokenizer ./nowhere: cannot be loaded"),
        ({"near_duplicates": -0.1}, "near_duplicates must be at least 0 and at most 1, got -0.1"),
        ({"near_duplicates": 1.1}, "near_duplicates must be at least 0 and at most 1, got 1.1"),
        ({"exclude": "a.jsonl"}, "gsm8k excludes nothing, got exclude=a.jsonl"),
    ],
)
def test_options_without_meaning_are_refused_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        prepare(gsm8k.SOURCE, tmp_path / "out", str(tmp_path / "nowhere.jsonl"), Options(**options))
    assert not (tmp_path / "out").exists()


def test_the_hub_is_asked_for_the_stated_revision(tmp_path, monkeypatch):
    """A fake at the edge: there is no hub here, so the function that asks it is replaced."""
    import datasets

    asked = {}

    def load_dataset(hub_id, configuration, **options):
        asked.update(options, hub_id=hub_id, configuration=configuration)
        return datasets.Dataset.from_list(gsm_rows(("A?", "1"), ("B?", "2")))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    path, _account = prepare(gsm8k.SOURCE, tmp_path, options=Options(split="test"))
    assert golds(path) == ["1", "2"]
    assert asked == {"hub_id": "openai/gsm8k", "configuration": "main", "split": "test", "revision": "main"}
    assert json.loads((tmp_path / "test.manifest.json").read_text())["revision"] == "main"
    prepare(gsm8k.SOURCE, tmp_path, "someone/gsm8k")
    assert asked == {"hub_id": "someone/gsm8k", "configuration": None, "split": "train", "revision": None}


def test_a_hub_that_cannot_be_reached_is_an_error(run_script, tmp_path):
    result = run_script("data", "prepare", "gsm8k", "--out", "out", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert result.returncode == 2
    assert (
        "openai/gsm8k: neither a local .jsonl, .json or .parquet file nor a data set that can be loaded from the hub"
        in result.stderr
    )


def test_the_command_and_the_script_are_the_same(run_cli, tmp_path):
    origin = write_jsonl(tmp_path / "a.jsonl", gsm_rows(("A?", "1"), ("B?", "x")))
    result = run_cli("data", "prepare", "gsm8k", "--out", "command", "--source", origin)
    assert (result.returncode, result.stdout) == (0, "command/train.parquet\n"), result.stderr
    assert "1 rows left out: no number after ####" in result.stderr
    assert "1 of 2 rows" in result.stderr
    script = Path(gsm8k.__file__)
    arguments = [sys.executable, str(script), "--out", str(tmp_path / "script"), "--source", origin]
    result = subprocess.run(arguments, env=clean_environment({}), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    contents = [(tmp_path / name / "train.parquet").read_bytes() for name in ("command", "script")]
    assert contents[0] == contents[1]


def test_an_output_that_cannot_be_written_is_an_error(run_cli, tmp_path):
    """A file where the folder should be: permissions do not stop root."""
    origin = write_jsonl(tmp_path / "a.jsonl", gsm_rows(("A?", "1")))
    result = run_cli("data", "prepare", "gsm8k", "--out", f"{origin}/out", "--source", origin)
    assert result.returncode == 2
    assert f"cfpo-verl data prepare gsm8k: {origin}/out: cannot be written (Not a directory)" in result.stderr


def test_the_command_reports_errors_and_lists_sources(run_cli):
    result = run_cli("data", "prepare", "gsm8k", "--out", "out", "--source", "nowhere.jsonl")
    assert result.returncode == 2
    assert result.stderr.strip().endswith("cfpo-verl data prepare gsm8k: nowhere.jsonl: no such file")
    listed = run_cli("data", "list").stdout
    assert all(name in listed for name in SOURCES)


def test_a_source_reads_only_its_columns(tmp_path):
    seen = []

    def to_problem(row):
        seen.append(set(row))
        return Problem(row["a"], "1")

    made_up = Source("x", "arithmetic", "x/x", "MIT", ("a",), to_problem, optional_columns=("b", "c"))
    prepare(made_up, tmp_path, write_jsonl(tmp_path / "a.jsonl", [{"a": "q", "b": 1, "z": 2}]))
    assert seen == [{"a", "b", "c"}]
