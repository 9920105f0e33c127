"""cfpo-verl data validate, mix and stats: on files of this project and on broken ones."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_rows import write_rows
from typer.testing import CliRunner

from cfpo_verl.data_prep import cli, mix, stats, validate
from cfpo_verl.data_prep.decontaminate import decontaminate, read_problem_texts
from cfpo_verl.data_prep.mix import Part
from cfpo_verl.data_prep.prepare import prepare
from cfpo_verl.data_prep.schema import SCHEMA, DataError, Problem, read_problems, to_row
from cfpo_verl.data_prep.sources import SOURCES
from cfpo_verl.data_prep.tokens import token_counter
from cfpo_verl.data_prep.writing import sha256
from cfpo_verl.warmup import train_tokenizer


def make_rows(count: int, name: str = "a", data_source: str = "arithmetic") -> list[dict]:
    return [
        to_row(Problem(f"{name}{number}", str(number)), data_source, "math", "train", number) for number in range(count)
    ]


def problems_of(path, count_tokens=None, max_tokens=0) -> list[str]:
    return validate.validate(path, count_tokens, max_tokens)


def test_what_this_project_writes_is_valid(arithmetic_files):
    assert [problems_of(path) for path in arithmetic_files] == [[], []]


def changed(tmp_path, **changes):
    """Write three rows, the second of which is changed, with whatever types that gives."""
    rows = make_rows(3)
    for column, value in changes.items():
        rows[1][column] = value
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data_source": "gsm8k"},
            "row 1, column data_source: 'gsm8k' is not known to the reward. Known are: arithmetic,",
        ),
        ({"data_source": None}, "row 1, column data_source: is null"),
        ({"ability": None}, "row 1, column ability: is null"),
        ({"prompt": [None]}, "row 1, column prompt: is null or contains a null"),
        (
            {"prompt": [{"role": "banana", "content": "x"}]},
            "must end with role user, after system, user or assistant; has ['banana']",
        ),
        ({"reward_model": {"style": "rule", "ground_truth": None}}, "row 1, column reward_model: is null"),
        ({"prompt": []}, "row 1, column prompt: is empty"),
        ({"prompt": [{"role": "user", "content": " "}]}, "row 1, column prompt: is empty"),
        (
            {"reward_model": {"style": "rule", "ground_truth": "x"}},
            "row 1, column reward_model: ground_truth 'x' must be a plain number",
        ),
        ({"extra_info": make_rows(1)[0]["extra_info"]}, "is also that of row 0: the same problem twice"),
        ({"extra_info": {**make_rows(2)[1]["extra_info"], "uid": ""}}, "row 1, column extra_info: uid is empty"),
    ],
)
def test_a_bad_row_is_named_with_file_row_and_column(tmp_path, changes, message):
    [problem] = problems_of(changed(tmp_path, **changes))
    assert message in problem
    assert problem.startswith(str(tmp_path / "a.parquet"))


def test_long_prompts_are_named(tmp_path):
    path = write_rows(tmp_path / "a.parquet", make_rows(11))
    [problem] = problems_of(path, lambda messages: len(messages[0]["content"]), 2)
    assert problem.endswith("row 10, column prompt: has 3 tokens, more than 2")


def test_many_problems_of_one_kind_are_counted(tmp_path):
    path = write_rows(tmp_path / "a.parquet", make_rows(10, data_source="unheard"))
    problems = problems_of(path)
    assert len(problems) == 4
    assert problems[-1].endswith("and 7 more rows like the last one")


@pytest.mark.parametrize("column", SCHEMA.names)
def test_missing_columns_and_wrong_types_are_named(tmp_path, column):
    table = pa.Table.from_pylist(make_rows(1), schema=SCHEMA)
    pq.write_table(table.drop_columns([column]), tmp_path / "a.parquet")
    [problem] = problems_of(tmp_path / "a.parquet")
    assert f"column {column!r} is missing" in problem
    pq.write_table(table.drop_columns([column]).append_column(column, pa.array([1])), tmp_path / "a.parquet")
    [problem] = problems_of(tmp_path / "a.parquet")
    assert f"column {column!r} must be " in problem


def test_wider_types_and_more_columns_are_fine(tmp_path):
    table = pa.Table.from_pylist(make_rows(2), schema=SCHEMA)
    source = table["data_source"].cast(pa.large_string())
    table = (
        table.drop_columns(["data_source"]).append_column("data_source", source).append_column("x", pa.array([1, 2]))
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert problems_of(tmp_path / "a.parquet") == []


def test_validate_command(run_script, tmp_path):
    good, bad = write_rows(tmp_path / "good.parquet", make_rows(2)), changed(tmp_path, data_source="x")
    assert run_script("data", "validate", good).stdout == "1 files are fit for training\n"
    result = run_script("data", "validate", good, bad, tmp_path / "none.parquet")
    assert result.returncode == 2
    assert "a.parquet, row 1, column data_source: 'x' is not known" in result.stderr
    assert "none.parquet: no such file" in result.stderr
    assert "go together" in run_script("data", "validate", good, "--tokenizer", "x").stderr


def test_decontaminate_command(run_script, tmp_path):
    shared = "the quick brown fox jumps over the lazy dog today"
    rows = [*make_rows(3), to_row(Problem(f"Why, {shared}, is it so?", "1"), "arithmetic", "math", "train", 3)]
    train = write_rows(tmp_path / "train.parquet", rows)
    test = write_rows(
        tmp_path / "test.parquet", [to_row(Problem(f"See {shared}!", "2"), "arithmetic", "math", "test", 0)]
    )
    result = run_script("data", "decontaminate", train, "--against", test, "--out", "clean.parquet")
    assert (result.returncode, result.stdout) == (0, "clean.parquet\n"), result.stderr
    assert "1 of 4 rows left out, see clean.contaminated.json" in result.stderr
    assert "the quick brown fox jumps over the lazy" in result.stderr
    assert len(pq.read_table(tmp_path / "clean.parquet")) == 3
    manifest = json.loads((tmp_path / "clean.manifest.json").read_text())
    assert (manifest["rows_in"], manifest["rows_out"], manifest["words"]) == (4, 3, 8)
    assert manifest["sha256_out"] == sha256(tmp_path / "clean.parquet")
    assert run_script("data", "decontaminate", train, "--against", "none.parquet", "--out", "x.parquet").returncode == 2
    assert (
        run_script("data", "decontaminate", train, "--against", test, "--out", "x.parquet", "--words", "0").returncode
        == 2
    )


@pytest.mark.parametrize(
    ("sizes", "weights", "rows", "expected"),
    [
        ([100, 100], [0.7, 0.3], 10, [7, 3]),
        ([100, 100], [7, 3], None, [99, 43]),
        ([10, 100], [0.5, 0.5], None, [10, 10]),
        ([100, 100, 100], [1, 1, 1], 10, [4, 3, 3]),
        ([3], [2], None, [3]),
    ],
)
def test_shares(sizes, weights, rows, expected):
    assert mix.shares(sizes, weights, rows) == expected


def test_a_part_that_is_too_small_is_named():
    with pytest.raises(DataError, match=r"part 2 has 5 rows, but its share of 100 is 30\. Ask for fewer rows"):
        mix.shares([100, 5], [0.7, 0.3], 100)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(DataError, match="the share of part 2 in 10 rows rounds to 0"):
        mix.shares([100, 100], [1, 1e-5], 10)


def test_mixing_draws_each_row_once_in_an_order_of_the_seed(tmp_path):
    a, b = (write_rows(tmp_path / f"{name}.parquet", make_rows(40, name)) for name in "ab")

    def mixed(name, seed):
        mix.mix([Part(a, 3), Part(b, 1)], tmp_path / name, 40, seed)
        return [
            (row["extra_info"]["index"], row["extra_info"]["problem"])
            for row in pq.read_table(tmp_path / name).to_pylist()
        ]

    first = mixed("x.parquet", 0)
    assert [index for index, _problem in first] == list(range(40))
    assert Counter(problem[0] for _index, problem in first) == {"a": 30, "b": 10}
    assert len(set(first)) == 40
    assert "b" in {problem[0] for _index, problem in first[:20]}  # else one part follows the other
    assert mixed("y.parquet", 0) == first != mixed("z.parquet", 1)
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()
    manifest = json.loads((tmp_path / "x.manifest.json").read_text())
    assert [part["rows"] for part in manifest["mixed_from"]] == [30, 10]
    assert manifest["rows_out"] == 40
    assert problems_of(tmp_path / "x.parquet") == []


@pytest.mark.parametrize(
    "text", ["a.parquet", "a.parquet:", "a.parquet:x", "a.parquet:0", "a.parquet:-1", ":1", "a:inf"]
)
def test_parts_without_a_weight_are_refused(text):
    with pytest.raises(DataError, match="a part is FILE:WEIGHT with a weight greater than 0"):
        Part.parse(text)


def test_mix_command(run_script, tmp_path):
    a, b = (write_rows(tmp_path / f"{name}.parquet", make_rows(10, name)) for name in "ab")
    result = run_script("data", "mix", f"{a}:0.5", f"{b}:0.5", "--out", "m.parquet", "--rows", "8")
    assert (result.returncode, result.stdout) == (0, "m.parquet\n"), result.stderr
    assert f"4 rows from {a}" in result.stderr
    for arguments, message in [
        ([f"{a}:1", f"{a}:1"], "a file is given twice"),
        ([f"{a}:1", "none.parquet:1"], "none.parquet: no such file"),
        ([f"{a}:1", "--rows", "0"], "rows must be at least 1, got 0"),
        ([f"{a}:1", "--rows", "11"], "part 1 has 10 rows, but its share of 11 is 11"),
    ]:
        result = run_script("data", "mix", *arguments, "--out", "n.parquet")
        assert result.returncode == 2
        assert message in result.stderr
    assert not (tmp_path / "n.parquet").exists()


def test_mixing_a_file_of_another_schema_names_the_way_out(tmp_path):
    pq.write_table(pa.Table.from_pylist(make_rows(2), schema=SCHEMA).drop_columns(["ability"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"is not in this project's schema .* cfpo-verl data validate"):
        mix.mix([Part(tmp_path / "a.parquet", 1)], tmp_path / "b.parquet", None, 0)


def test_stats_count_lengths_and_kinds_of_answers(tmp_path):
    rows = [*make_rows(11), to_row(Problem("long question", "x"), "reasoning_gym", "math", "train", 0)]
    path = write_rows(tmp_path / "a.parquet", rows)
    found = stats.collect(path, None)
    assert list(found) == ["arithmetic", "reasoning_gym"]
    assert found["arithmetic"].rows == found["arithmetic"].numeric_answers == 11
    assert found["arithmetic"].prompt_lengths == {2: 10, 3: 1}
    assert found["reasoning_gym"].numeric_answers == 0
    assert [stats.quantile(found["arithmetic"].prompt_lengths, share) for share in (0.5, 0.9, 0.99, 1)] == [2, 2, 3, 3]


def test_stats_of_a_file_with_nulls_name_the_way_out(tmp_path):
    path = changed(tmp_path, prompt=[None])
    with pytest.raises(DataError, match=r"a\.parquet, row 1: has a null.*See which with: cfpo-verl data validate"):
        stats.collect(path, None)


def test_stats_of_other_values_than_texts_name_the_row(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{**row, "prompt": [{"role": "user", "content": 3}]} for row in make_rows(2)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 0: has a null, or a value that is not text"):
        stats.collect(path, None)


def torn(tmp_path):
    """Write a file whose footer is whole and whose rows are not."""
    path = write_rows(tmp_path / "torn.parquet", make_rows(500))
    content = bytearray(path.read_bytes())
    content[4:2000] = b"x" * 1996
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda path, out: stats.collect(path, None), id="stats"),
        pytest.param(lambda path, out: mix.mix([Part(path, 1)], out, None, 0), id="mix"),
        pytest.param(lambda path, out: decontaminate(path, [], out), id="decontaminate"),
        pytest.param(lambda path, out: read_problems(path), id="read_problems"),
        pytest.param(lambda path, out: prepare(SOURCES["dapo_math_17k"], out, str(path)), id="prepare"),
    ],
)
def test_a_torn_file_is_named_and_nothing_is_written(tmp_path, use):
    path = torn(tmp_path)
    with pytest.raises(DataError, match=r"torn\.parquet: not a whole parquet file"):
        use(path, tmp_path / "new" / "out.parquet")
    assert not list(tmp_path.glob("new/*"))


def test_validate_names_a_torn_file_too(tmp_path):
    assert "torn.parquet: not a whole parquet file" in problems_of(torn(tmp_path))[-1]


@pytest.mark.parametrize("columns", [{"data_source": None}, {"reward_model": {"style": "rule", "ground_truth": None}}])
def test_mixing_a_file_with_nulls_names_the_way_out(tmp_path, columns):
    path = changed(tmp_path, **columns)
    with pytest.raises(DataError, match=r"a\.parquet: is not in this project's schema .* cfpo-verl data validate"):
        mix.mix([Part(path, 1)], tmp_path / "b.parquet", None, 0)


def test_a_prompt_without_text_is_named(tmp_path):
    path = changed(tmp_path, prompt=[{"role": "user", "content": None}])
    with pytest.raises(DataError, match=r"a\.parquet, row 1: the prompt or the ground truth is not text"):
        read_problems(path)
    with pytest.raises(DataError, match=r"a\.parquet: a prompt is null, empty or not text"):
        read_problem_texts(
            changed(tmp_path, prompt=[None], extra_info={**make_rows(1)[0]["extra_info"], "problem": None})
        )


def outcome(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], prog_name="cfpo-verl data")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = write_rows(tmp_path / "a.parquet", make_rows(5))
    (tmp_path / "file").write_text("")
    for arguments in (
        ["stats", path, "--out", tmp_path / "file" / "x.png"],
        ["mix", f"{path}:1", "--out", tmp_path / "file" / "x.parquet"],
        ["decontaminate", path, "--against", path, "--out", tmp_path / "file" / "x.parquet"],
        ["prepare", "arithmetic", "--operands", "2", "--held-out", "9", "--out", tmp_path / "file"],
        ["prepare", "arithmetic", "--operands", "2", "--held-out", "9", "--out", "/proc/none"],
    ):
        result = outcome(*arguments)
        assert result.exit_code == 2, result.stderr
        assert "cannot be written" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_bug_of_ours_is_not_taken_for_a_mistake_of_the_users(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.parquet", make_rows(5))

    def broken(*_arguments):
        raise ValueError("zip() argument 2 is shorter than argument 1")

    monkeypatch.setattr(stats, "quantile", broken)
    result = outcome("stats", path)
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "ValueError: zip() argument 2 is shorter than argument 1" in result.stderr
    assert "this is a bug in cfpo_verl" in result.stderr.splitlines()[-1]


def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(DataError, match=r"tokenizer .*model: cannot be loaded"):
        token_counter(str(folder))
    tokenizer = train_tokenizer(["1+2="], 300)
    for template, message in (
        (None, "has no chat template"),
        ("{{ raise_exception('no system role') }}", r"its chat template refuses the prompt .*\(no system role\)"),
    ):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        if template is None:
            (folder / "chat_template.jinja").unlink(missing_ok=True)
        with pytest.raises(DataError, match=f"tokenizer .*model: {message}"):
            token_counter(str(folder))([{"role": "user", "content": "1+2="}])
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer .*model: cannot be loaded"):
        token_counter(str(folder))


def test_stats_command_prints_and_draws(run_script, tmp_path):
    path = write_rows(tmp_path / "a.parquet", make_rows(5))
    result = run_script("data", "stats", path)
    assert result.returncode == 0, result.stderr
    assert "arithmetic" in result.stdout
    assert (tmp_path / "a.lengths.png").read_bytes().startswith(b"\x89PNG")
    assert run_script("data", "stats", "none.parquet").returncode == 2
