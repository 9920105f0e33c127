"""data_prep.decontaminate: which problems share words with an evaluation problem, and the file without them."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import shared_data
from hypothesis import given
from hypothesis import strategies as st

from cfpo_verl.data_prep import decontaminate as module
from cfpo_verl.data_prep import gsm8k
from cfpo_verl.data_prep.decontaminate import EvaluationIndex, Match, decontaminate, read_problem_texts
from cfpo_verl.data_prep.prepare import Options, prepare
from cfpo_verl.data_prep.schema import DataError
from cfpo_verl.data_prep.text import words

INSTRUCTION = "Think step by step, then write the final answer, a plain number, after ####."


def table_of(texts: list[str], problems: list[str | None] | None = None) -> pa.Table:
    rows = []
    for index, text in enumerate(texts):
        extra = {"index": index, "split": "train"} | ({"problem": problems[index]} if problems else {})
        rows.append(
            {
                "data_source": "s",
                "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(index)},
                "extra_info": extra,
            }
        )
    return pa.Table.from_pylist(rows)


def written(path: Path, texts: list[str], problems: list[str | None] | None = None) -> Path:
    pq.write_table(table_of(texts, problems), path)
    return path


def in_order(count: int, start: int = 0) -> str:
    return " ".join(f"w{chr(97 + n % 26)}{'x' * (n // 26)}" for n in range(start, start + count))


def first_match(index: EvaluationIndex, text: str) -> Match | None:
    return index.first_matches([text])[0]


def test_eight_words_in_a_row_are_a_match_and_seven_are_none():
    index = EvaluationIndex([["nothing of it"], ["other", in_order(20)]])
    assert first_match(index, f"See: {in_order(8, 5).upper()}, then.") == Match(1, 1, in_order(8, 5))
    assert first_match(index, f"see {in_order(7, 5)} then") is None
    # Eight words, but not in a row.
    assert first_match(index, f"see {in_order(4, 5)} then {in_order(4, 9)}") is None


def test_runs_do_not_reach_from_one_problem_into_the_next():
    index = EvaluationIndex([[in_order(10), in_order(10, 10)]])
    assert first_match(index, in_order(8, 6)) is None
    assert index.first_matches([in_order(4), in_order(4, 4)]) == [None, None]


@pytest.mark.parametrize("n", [1, 2, 8])
def test_short_problems_are_compared_as_a_whole(n):
    short = in_order(n - 1) if n > 1 else "a"
    index = EvaluationIndex([[in_order(30, 40), short]], n)
    if n > 1:
        assert first_match(index, f"${short}$?") == Match(0, 1, short)
        assert first_match(index, f"{short} {short}") is None
    assert first_match(index, "") is None
    assert first_match(index, "+ ?") is None


def test_numbers_matter_and_formatting_does_not():
    index = EvaluationIndex([[r"What is the value of $\dfrac{1}{2}\,x + 1,\!000$?", "1+2="]])
    assert first_match(index, r"what is the value of \(\frac{1}{2}x+1000\)") is not None
    assert first_match(index, r"What is the value of $\dfrac{1}{3}\,x + 1,\!000$?") is None
    assert (first_match(index, "1 + 2 =") or Match(9, 9, "")).index == 1
    assert first_match(index, "1+3=") is None


def test_the_first_words_of_the_text_and_the_first_problem_are_named():
    index = EvaluationIndex([[in_order(30, 60), in_order(9, 20)], [in_order(9, 20), in_order(9)]])
    assert first_match(index, f"{in_order(8)} {in_order(8, 20)}") == Match(1, 1, in_order(8))
    assert first_match(index, in_order(8, 20)) == Match(0, 1, in_order(8, 20))
    assert first_match(EvaluationIndex([["a b", "c d"], ["c d"]]), "c d") == Match(0, 1, "c d")


def test_an_instruction_is_no_evidence_nor_is_what_stands_next_to_it():
    evaluation = [f"{n}+{n + 20}=\n{INSTRUCTION}" for n in range(9)]
    evaluation.append(f"{in_order(9)}\n{INSTRUCTION}")
    index = EvaluationIndex([evaluation])
    assert first_match(index, f"{in_order(9, 30)} {INSTRUCTION}") is None
    assert first_match(index, f"3+24=\n{INSTRUCTION}") is None
    assert first_match(index, f"3+23=\n{INSTRUCTION}") == Match(0, 3, "3 23")
    assert first_match(index, INSTRUCTION) is None
    assert first_match(index, f"{in_order(9)} {INSTRUCTION}") == Match(0, 9, in_order(8))
    # Without the instruction too: what is left is compared.
    assert first_match(index, "3+23=") == Match(0, 3, "3 23")


@pytest.mark.parametrize(("sharing", "of", "ignored"), [(2, 5, False), (3, 14, True), (3, 15, False), (4, 15, True)])
def test_what_more_than_a_fifth_and_three_problems_share_is_an_instruction(sharing, of, ignored):
    shared = in_order(8)
    problems = [f"{in_order(9, 40 + 10 * n)} {shared if n < sharing else ''}" for n in range(of)]
    # Copies of one problem make no instruction.
    index = EvaluationIndex([problems + problems[:1] * 100])
    assert (first_match(index, f"so {shared} so") is None) == ignored


@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=12), max_size=6),
    st.lists(st.lists(st.sampled_from("abcde"), max_size=12), max_size=4),
    st.integers(1, 5),
)
def test_it_finds_what_comparing_all_words_finds(train, evaluation, n):
    def runs(text: list[str]) -> list[tuple[str, ...]]:
        return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)] or [tuple(text)]

    # Two problems have no instruction: the rule needs three.
    evaluation = evaluation[:2]
    expected: list[Match | None] = []
    for text in train:
        hits = [
            Match(0, number, " ".join(run))
            for run in runs(text)
            for number, problem in enumerate(evaluation)
            if run and run in runs(problem) and (len(text) < n) == (len(problem) < n)
        ]
        expected.append(hits[0] if hits else None)
    found = EvaluationIndex([[" ".join(problem) for problem in evaluation]], n).first_matches(
        list(map(" ".join, train))
    )
    assert found == expected


@pytest.mark.parametrize("n", [0, -1])
def test_runs_of_no_words_are_refused(tmp_path, n):
    train = written(tmp_path / "train.parquet", [in_order(9)])
    evaluation = written(tmp_path / "test.parquet", [in_order(9, 20)])
    with pytest.raises(ValueError, match="n must be at least 1"):
        EvaluationIndex([], n)
    with pytest.raises(DataError, match=f"words must be at least 1, got {n}"):
        decontaminate(train, [evaluation], tmp_path / "out.parquet", n)
    assert not (tmp_path / "out.parquet").exists()


def test_rows_are_left_out_and_the_rest_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_ROWS", 3)
    texts = [in_order(12, 20 * n) for n in range(8)]
    table = table_of(texts).append_column("level", pa.array(range(8), pa.int16())).replace_schema_metadata({"a": "b"})
    pq.write_table(table, tmp_path / "train.parquet")
    first = written(tmp_path / "one.parquet", ["7 * 6", in_order(9, 43)])
    second = written(tmp_path / "two.parquet", [in_order(30, 122)])
    told: list[tuple[int, int]] = []
    out = tmp_path / "new" / "clean.parquet"
    report = decontaminate(
        tmp_path / "train.parquet", [first, second], out, on_progress=lambda done, rows: told.append((done, rows))
    )
    kept = [0, 1, 3, 4, 5]
    expected = pq.read_table(tmp_path / "train.parquet").take(kept)
    result = pq.read_table(out)
    assert result.schema.equals(expected.schema, check_metadata=True)
    assert result.to_pylist() == expected.to_pylist()
    assert told == [(3, 8), (6, 8), (8, 8)]
    assert (report.rows, report.n) == (8, 8)
    removed = [(row.index, row.evaluation_file, row.evaluation_index, row.shared) for row in report.removed]
    assert removed == [
        (2, str(first), 1, in_order(8, 43)),
        (6, str(second), 0, in_order(8, 122)),
        (7, str(second), 0, in_order(8, 140)),
    ]
    assert json.loads((tmp_path / "new" / "clean.contaminated.json").read_text()) == {
        "train": str(tmp_path / "train.parquet"),
        "against": [str(first), str(second)],
        "n": 8,
        "rows": 8,
        "removed": [
            {
                "index": row.index,
                "text": texts[row.index][:200],
                "evaluation_file": row.evaluation_file,
                "evaluation_index": row.evaluation_index,
                "shared": row.shared,
            }
            for row in report.removed
        ],
    }
    names = ["clean.contaminated.json", "clean.manifest.json", "clean.parquet"]
    assert sorted(path.name for path in out.parent.iterdir()) == names


def test_the_problem_is_compared_where_there_is_one_and_else_the_last_message(tmp_path):
    path = written(tmp_path / "a.parquet", ["prompt one", "prompt two"], ["problem one", None])
    assert read_problem_texts(path) == ["problem one", "prompt two"]
    assert read_problem_texts(written(tmp_path / "b.parquet", ["prompt one", "prompt two"])) == [
        "prompt one",
        "prompt two",
    ]
    pq.write_table(table_of(["prompt one"]).drop_columns(["extra_info"]), tmp_path / "c.parquet")
    assert read_problem_texts(tmp_path / "c.parquet") == ["prompt one"]


def test_a_file_can_be_replaced_by_itself(tmp_path):
    train = written(tmp_path / "train.parquet", [in_order(9), in_order(9, 20)])
    decontaminate(train, [written(tmp_path / "test.parquet", [in_order(9)])], train)
    assert read_problem_texts(train) == [in_order(9, 20)]


def test_no_evaluation_file_removes_nothing(tmp_path):
    train = written(tmp_path / "train.parquet", [in_order(9), ""])
    assert decontaminate(train, [], tmp_path / "out.parquet").removed == ()
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(train))


@pytest.mark.parametrize("broken", ["train.parquet", "test.parquet"])
@pytest.mark.parametrize("how", ["missing", "no parquet", "no prompt", "no rows"])
def test_a_file_that_cannot_be_used_is_named_and_the_old_output_stays(tmp_path, broken, how):
    train = written(tmp_path / "train.parquet", [in_order(9)])
    evaluation = written(tmp_path / "test.parquet", [in_order(9, 20)])
    out = tmp_path / "out.parquet"
    decontaminate(train, [evaluation], out)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out*")}
    path = tmp_path / broken
    if how == "missing":
        path.unlink()
    elif how == "no parquet":
        path.write_text("PAR1")
    elif how == "no prompt":
        pq.write_table(table_of(["a"]).drop_columns(["prompt"]), path)
    else:
        pq.write_table(table_of(["a"]).slice(0, 0), path)
    with pytest.raises(DataError, match=broken):
        decontaminate(train, [evaluation], out)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out*")} == before


def test_a_failure_on_the_way_leaves_the_old_output(tmp_path):
    train = written(tmp_path / "train.parquet", [in_order(9)])
    evaluation = written(tmp_path / "test.parquet", [in_order(9, 20)])
    out = tmp_path / "out.parquet"
    decontaminate(train, [evaluation], out)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out*")}

    def fail(_done: int, _rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decontaminate(train, [evaluation], out, n=7, on_progress=fail)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out*")} == before


def test_nothing_left_and_overwriting_the_evaluation_are_refused(tmp_path):
    train = written(tmp_path / "train.parquet", [in_order(9)])
    evaluation = written(tmp_path / "test.parquet", [in_order(9)])
    with pytest.raises(DataError, match=r"each of the 1 rows shares words with .*test.parquet"):
        decontaminate(train, [evaluation], tmp_path / "out.parquet")
    with pytest.raises(DataError, match="is an evaluation file and would be overwritten"):
        decontaminate(train, [evaluation], tmp_path / "x" / ".." / "test.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"train.parquet", "test.parquet"}


def test_a_hundred_thousand_runs_meet_by_chance_in_none():
    generator = random.Random(0)
    texts = [" ".join(generator.choices(["one", "two", "three"], k=100)) for _ in range(1000)]
    known, others = texts[:500], texts[500:]
    runs = {tuple(found[start : start + 12]) for found in map(words, known) for start in range(89)}
    expected = [any(tuple(found[start : start + 12]) in runs for start in range(89)) for found in map(words, others)]
    found = EvaluationIndex([known], 12).first_matches(others)
    assert [match is not None for match in found] == expected
    assert 0 < sum(expected) < 500


def problems(name: str, column: str) -> list[str]:
    return [json.loads(line)[column] for line in shared_data(name).read_text(encoding="utf-8").splitlines()]


# Looked at by eye: at 8 words 5 of GSM8K's 94 are a problem with other numbers or words, the others share a phrase such
# as "how many pages does he need to read". At 13 words 3 of 4 are such problems.
@pytest.mark.parametrize("compared", ["problem", "prompt"])
@pytest.mark.parametrize(("n", "removed"), [(8, 94), (13, 4)])
def test_gsm8k_shares_phrases_and_few_problems(tmp_path, n, removed, compared):
    paths = []
    for split in ("train", "test"):
        origin = str(shared_data(f"gsm8k_{split}.jsonl"))
        path, _account = prepare(gsm8k.SOURCE, tmp_path, origin, Options(split=split))
        if compared == "prompt":
            table = pq.read_table(path)
            assert table.column("prompt")[0].as_py()[-1]["content"] != read_problem_texts(path)[0]
            pq.write_table(table.drop_columns(["extra_info"]), path)
        paths.append(path)
    report = decontaminate(paths[0], paths[1:], tmp_path / "clean.parquet", n)
    assert len(report.removed) == removed
    assert pq.read_metadata(tmp_path / "clean.parquet").num_rows == 7472 - removed


@pytest.mark.parametrize(("n", "removed"), [(8, 505), (13, 92)])
def test_math_shares_templates(n, removed):
    evaluation = problems("math500.jsonl", "problem")
    known = set(evaluation)
    train = [problem for problem in problems("math_test.jsonl", "problem") if problem not in known]
    assert len(train) == 4500
    assert sum(match is not None for match in EvaluationIndex([evaluation], n).first_matches(train)) == removed


def test_a_copy_of_an_evaluation_problem_is_found_in_every_real_set():
    for name, column in (
        ("gsm8k_test.jsonl", "question"),
        ("math500.jsonl", "problem"),
        ("aime24.jsonl", "problem"),
        ("amc23.jsonl", "problem"),
        ("minerva_math.jsonl", "problem"),
        ("olympiadbench.jsonl", "question"),
    ):
        texts = problems(name, column)
        matches = EvaluationIndex([texts]).first_matches([f"  {text.upper()} " for text in texts])
        assert [text for text, match in zip(texts, matches, strict=True) if match is None] == []
