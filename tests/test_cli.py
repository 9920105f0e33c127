"""The console script: help with examples, results on stdout, errors with exit status 2."""

import itertools

import pytest
from typer.testing import CliRunner

from cfpo_verl import cli
from cfpo_verl.data_prep.schema import read_problems


def walk(words, command):
    """Yield every command below this one, as the words that name it and the command itself."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk((*words, name), inner)


# Imports what `cfpo-verl COMMAND` imports.
LOADED = [found for name in cli.COMMANDS for found in walk((name,), cli._load(name))]
# Its arguments are Hydra's, and so is its help.
TYPED = [(words, command) for words, command in LOADED if words != ("train",)]
GROUPS = [(), *(words for words, command in LOADED if hasattr(command, "commands"))]


def as_words(value):
    return " ".join(value) or "cfpo-verl" if isinstance(value, tuple) else ""


def help_of(*words):
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, [*words, "--help"], prog_name="cfpo-verl")
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("words", [(), *(words for words, _ in LOADED)], ids=as_words)
def test_help_ends_with_examples_that_can_be_copied(words):
    lines = help_of(*words).splitlines()
    assert lines[0].startswith(("Usage: cfpo-verl " + " ".join(words)).strip())
    [first] = [number for number, line in enumerate(lines, start=1) if line.strip() in ("Example:", "Examples:")]
    examples = list(itertools.takewhile(bool, (line.strip() for line in lines[first:])))
    assert examples
    # A whole command on each line; words of a line that was wrapped would name no command.
    assert all(("cfpo-verl " + " ".join(words)).strip() in example for example in examples)


@pytest.mark.parametrize(("words", "command"), TYPED, ids=as_words)
def test_every_command_and_option_is_described(words, command):
    for text in (command.help, *(parameter.help for parameter in command.params)):
        assert text
        assert text.strip().endswith(".")


@pytest.mark.parametrize("words", GROUPS, ids=as_words)
def test_no_summary_of_a_command_is_cut_off(words):
    listed = help_of(*words).partition("\nCommands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(listed) >= 2
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.parametrize("words", [(), ("train",), ("eval", "run"), ("data", "prepare", "gsm8k")], ids=as_words)
def test_the_console_script_has_the_same_help(run_cli, words):
    result = run_cli(*words, "--help")
    assert result.returncode == 0
    assert result.stdout.split() == help_of(*words).split()  # lines may be of other lengths
    assert result.stderr == ""


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
