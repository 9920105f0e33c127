"""data_prep: what is written can be trained on, and what cannot is refused by name."""

import json
import random
import subprocess
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_rows import write_rows

from cfpo_verl.data_prep import arithmetic, few_shot_sums, reasoning_gym_tasks
from cfpo_verl.data_prep.schema import SCHEMA, DataError, Problem, check_file, read_problems, to_row
from cfpo_verl.data_prep.text import fingerprint


def test_rows_have_verls_schema(tmp_path):
    path = write_rows(tmp_path / "a.parquet", [to_row(Problem("1+2=", "3"), "arithmetic", "math", "train", 7)])
    assert pq.read_schema(path).equals(SCHEMA)
    assert pq.read_table(path).to_pylist() == [
        {
            "data_source": "arithmetic",
            "prompt": [{"role": "user", "content": "1+2="}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "3"},
            "extra_info": {
                "index": 7,
                "split": "train",
                "source_id": "",
                "problem": "1+2=",
                "uid": fingerprint("1+2=", "3"),
            },
        }
    ]
    assert read_problems(path) == [Problem("1+2=", "3")]


GOOD_ROW = to_row(Problem("q", "1"), "s", "math", "train", 0)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([], id="none"),
        pytest.param([{**GOOD_ROW, "data_source": None}], id="null"),
        pytest.param([{**GOOD_ROW, "reward_model": {"style": "rule", "ground_truth": None}}], id="inner-null"),
        pytest.param([{**GOOD_ROW, "prompt": "1+1="}], id="prompt-is-text"),
    ],
)
def test_bad_rows_leave_no_file_behind(tmp_path, rows):
    with pytest.raises(DataError):
        write_rows(tmp_path / "a.parquet", rows)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = write_rows(tmp_path / "a.parquet", [to_row(Problem("1+2=", "3"), "arithmetic", "math", "train", 0)])
    before = path.read_bytes()
    with pytest.raises(DataError):
        write_rows(path, [])
    assert path.read_bytes() == before


def test_arithmetic_covers_every_sum_once_and_splits_share_none(tmp_path):
    train, test = map(read_problems, arithmetic.prepare(tmp_path, operands=2, held_out=30, seed=0))
    assert (len(train), len(test)) == (70, 30)
    questions = {problem.question for problem in train + test}
    assert len(questions) == 100
    for problem in train + test:
        assert eval(problem.question.rstrip("=")) == int(problem.answer)


def test_arithmetic_is_seeded(tmp_path):
    same, again, other = (
        arithmetic.prepare(tmp_path / name, operands=2, held_out=30, seed=seed)[1].read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert same == again != other


@pytest.mark.parametrize(("operands", "held_out"), [(1, 1), (6, 1), (2, 0), (2, 100)])
def test_arithmetic_refuses_impossible_sizes(tmp_path, operands, held_out):
    with pytest.raises(DataError, match="must be between"):
        arithmetic.prepare(tmp_path, operands=operands, held_out=held_out, seed=0)


def test_few_shot_sums_ask_for_a_sum_that_is_not_among_the_examples(tmp_path):
    train, test = map(read_problems, few_shot_sums.prepare(tmp_path, count=40, held_out=9, largest=7, shots=4, seed=0))
    assert (len(train), len(test)) == (40, 9)
    asked = set()
    for problem in train + test:
        *examples, question = problem.question.splitlines()
        assert len(examples) == 4
        for example in examples:
            left, right = example.split(" = ")
            assert eval(left) == int(right)
        assert eval(question.removesuffix(" =")) == int(problem.answer)
        assert question.removesuffix(" =") not in {example.split(" = ")[0] for example in examples}
        asked.add(question)
    assert len(asked) == 49


@pytest.mark.parametrize(("count", "held_out"), [(0, 9), (40, 0), (41, 9)])
def test_few_shot_sums_refuse_impossible_sizes(tmp_path, count, held_out):
    message = rf"count \({count}\) and held_out \({held_out}\) must be at least 1, and together at most the 49"
    with pytest.raises(DataError, match=message):
        few_shot_sums.prepare(tmp_path, count=count, held_out=held_out, largest=7, shots=4, seed=0)


def valid_table() -> pa.Table:
    return pa.Table.from_pylist([to_row(Problem("1+2=", "3"), "arithmetic", "math", "train", 0)], schema=SCHEMA)


@pytest.mark.parametrize("column", ["data_source", "prompt", "reward_model"])
def test_check_names_the_missing_column(tmp_path, column):
    pq.write_table(valid_table().drop_columns([column]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a.parquet: column '{column}' is missing \(found: .*\). Write one with"):
        check_file(tmp_path / "a.parquet")


def test_check_names_the_missing_field(tmp_path):
    table = valid_table().drop_columns(["reward_model"]).append_column("reward_model", pa.array(["3"]))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'reward_model' must be a struct with ground_truth, is string"):
        check_file(tmp_path / "a.parquet")


def test_check_names_a_prompt_that_is_text(tmp_path):
    table = valid_table().drop_columns(["prompt"]).append_column("prompt", pa.array(["1+2="]))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'prompt' must be a list of structs with role and content, is string"):
        check_file(tmp_path / "a.parquet")


def test_check_looks_for_the_prompt_where_verl_does(tmp_path):
    pq.write_table(valid_table().rename_columns({"prompt": "question"}), tmp_path / "a.parquet")
    assert check_file(tmp_path / "a.parquet", prompt_key="question") == 1


def test_check_names_an_empty_a_broken_and_a_missing_file(tmp_path):
    pq.write_table(valid_table().slice(0, 0), tmp_path / "empty.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    for name, message in (("empty", "has no rows"), ("broken", "not a parquet file"), ("missing", "no such file")):
        with pytest.raises(DataError, match=rf"{name}.parquet: .*{message}"):
            check_file(tmp_path / f"{name}.parquet")


def test_check_allows_more_columns(tmp_path):
    pq.write_table(valid_table().append_column("level", pa.array([5])), tmp_path / "a.parquet")
    assert check_file(tmp_path / "a.parquet") == 1


@pytest.fixture
def gym(monkeypatch):
    """A fake at the edge: the package is an optional extra with dependencies that are built from source."""
    module = types.ModuleType("reasoning_gym")

    def create_dataset(task, size, seed):
        if task != "sums":
            raise ValueError(f"Dataset '{task}' not registered")
        numbers = random.Random(seed).choices(range(20), k=size)
        return [{"question": f" {n}+1= ", "answer": str(n + 1) if n else None, "metadata": {}} for n in numbers]

    module.create_dataset = create_dataset
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)


def test_reasoning_gym_gives_different_problems_with_answers(gym, tmp_path):
    paths = reasoning_gym_tasks.prepare(tmp_path, task="sums", count=6, held_out=3, seed=0)
    train, test = map(read_problems, paths)
    assert (len(train), len(test)) == (6, 3)
    assert len({problem.question for problem in train + test}) == 9
    assert all(eval(problem.question.rstrip("=")) == int(problem.answer) != 1 for problem in train + test)
    again = reasoning_gym_tasks.prepare(tmp_path / "again", task="sums", count=6, held_out=3, seed=0)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


@pytest.mark.parametrize(
    ("task", "count", "message"),
    [
        ("prods", 3, "task 'prods': Dataset 'prods' not registered"),
        ("sums", 40, r"task 'sums' gave only 19 distinct problems, 41 are needed\. Ask for fewer"),
        ("sums", -1, "count must be at least 1, got 0"),
    ],
)
def test_reasoning_gym_names_what_it_cannot_give(gym, tmp_path, task, count, message):
    with pytest.raises(DataError, match=message):
        reasoning_gym_tasks.prepare(tmp_path, task=task, count=count, held_out=1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_reasoning_gym_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match="Install it: pip install reasoning-gym"):
        reasoning_gym_tasks.make_problems("chain_sum", 1, 0)


def test_the_real_reasoning_gym(tmp_path):
    pytest.importorskip("reasoning_gym", reason="needs the optional extra reasoning-gym")
    train, _test = map(read_problems, reasoning_gym_tasks.prepare(tmp_path, "chain_sum", 20, 5, 0))
    assert all(problem.answer.lstrip("-").isdigit() for problem in train)


@pytest.mark.parametrize("module", [arithmetic, few_shot_sums])
def test_generated_problems_are_written_by_scripts_too(module, tmp_path):
    command = [sys.executable, module.__file__, "--out", str(tmp_path), "--held-out", "5"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert check_file(tmp_path / "test.parquet") == 5


def test_generated_files_have_manifests(tmp_path):
    train, _test = arithmetic.prepare(tmp_path, operands=2, held_out=30, seed=5)
    manifest = json.loads(train.with_suffix(".manifest.json").read_text())
    assert (manifest["source"], manifest["generated"], manifest["rows_out"]) == ("arithmetic", True, 70)
    assert manifest["arguments"] == {"operands": 2, "held_out": 30, "seed": 5}
