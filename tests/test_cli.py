"""The console script: help with examples, results on stdout, errors with exit status 2."""

import pytest

from cfpo_verl.data_prep.schema import read_problems


@pytest.mark.parametrize(
    "command",
    [
        *(["train"], ["env"], ["warmup"], ["report"], ["export"]),
        *(["eval", "run"], ["eval", "score"], ["eval", "compare"]),
        *(["data", "prepare", "arithmetic"], ["data", "prepare", "gsm8k"]),
    ],
    ids=" ".join,
)
def test_help_has_an_example(run_cli, command):
    result = run_cli(*command, "--help")
    assert result.returncode == 0
    assert "xample" in result.stdout
    assert "cfpo-verl " + " ".join(command) in " ".join(result.stdout.split())


def test_help_does_not_import_torch(run_python):
    result = run_python("import sys, cfpo_verl.cli; print('torch' in sys.modules, 'verl' in sys.modules)")
    assert result.stdout.split() == ["False", "False"]


def test_prepare_prints_the_files(run_script, tmp_path):
    result = run_script(
        "data", "prepare", "arithmetic", "--out", "data", "--operands", 2, "--held-out", 10, "--seed", 3
    )
    assert result.stdout.split() == ["data/train.parquet", "data/test.parquet"]
    assert len(read_problems(tmp_path / "data" / "test.parquet")) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "prepare", "arithmetic", "--out", "d", "--operands", "9"], "operands must be between 2 and 5, got 9"),
        (["data", "prepare", "gsm8k", "--out", "d", "--source", "x.jsonl"], "x.jsonl: no such file"),
        (["env", "tpu"], "no platform called 'tpu'. Choose one of: cpu"),
        (["warmup", "--train", "x.parquet", "--held-out", "y.parquet", "--out", "m"], "x.parquet: no such file"),
    ],
    ids=lambda value: "-".join(value[:3]) if isinstance(value, list) else "",
)
def test_bad_input_is_named(run_script, tmp_path, arguments, message):
    result = run_script(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
