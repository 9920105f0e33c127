"""cfpo_verl.terminal: how commands end. What a user can mend is a message, everything else a traceback."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import PACKAGE_FILES
from typer.testing import CliRunner

from cfpo_verl.errors import UserError
from cfpo_verl.terminal import WIDTH, App, wide_console

# Failures that are results, in processes or code of others: verl, Hydra, OmegaConf and Ray must get them as they are.
NOT_FOR_USERS = {"RunEndedError", "NonFiniteError", "RewardError", "GroupError", "NotAlgebra", "Dropped"}


class LateError(UserError):
    exit_status = 1


def outcome(error):
    app = App("Fail.")

    @app.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(app, [], prog_name="tool fail")


@pytest.mark.parametrize(("error", "status"), [(UserError("a is 3. Set a=2"), 2), (LateError("a is 3. Set a=2"), 1)])
def test_an_error_of_the_users_is_a_message(error, status):
    result = outcome(error)
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", "tool fail: a is 3. Set a=2\n")


@pytest.mark.parametrize("error", [ValueError("zip() argument 2 is shorter"), OSError(2, "none", "x"), KeyError("a")])
def test_a_bug_is_a_traceback_and_a_request_for_a_report(error):
    result = outcome(error)
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert f"{type(error).__name__}: {error}" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("tool fail: this is a bug in cfpo_verl")
    assert "report it" in result.stderr


def test_a_reader_that_ends_first_is_no_bug():
    """As `head` does. The pipe of a worker process that ends is still one."""
    script = Path(sys.executable).with_name("cfpo-verl")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        result = subprocess.run([script, "k8s", "example"], stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "")
    assert "this is a bug" in outcome(BrokenPipeError(32, "Broken pipe")).stderr


def test_ctrl_c():
    result = outcome(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "tool fail: interrupted\n")


def test_exits_and_bad_options_are_left_to_typer():
    assert outcome(typer.Exit(7)).exit_code == 7
    assert outcome(SystemExit(9)).exit_code == 9
    refused = outcome(typer.BadParameter("no such thing"))
    assert refused.exit_code == 2
    assert "no such thing" in refused.stderr
    assert "bug" not in refused.stderr


def test_every_error_of_ours_has_the_one_base():
    errors, bases = set(), {"UserError": {"Exception"}}
    for path in PACKAGE_FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                if node.name.endswith("Error") or any(name.endswith(("Error", "Exception")) for name in names):
                    errors.add(node.name)
                    bases[node.name] = names

    def is_for_users(name):
        return name == "UserError" or any(is_for_users(base) for base in bases.get(name, ()))

    assert {name for name in errors if not is_for_users(name)} == NOT_FOR_USERS


def test_commands_catch_nothing_but_errors_of_users():
    """Nowhere is a ValueError or the like of our own code turned into a message."""
    caught = set()
    for path in [path for path in PACKAGE_FILES if path.name in ("cli.py", "commands.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                caught |= {ast.unparse(kind) for kind in kinds if kind is not None}
    assert caught <= {"KeyboardInterrupt", "UnsupportedAntlrError", "json.JSONDecodeError", "RunDirError", "FileError"}


def test_tables_are_wide_where_there_is_no_terminal(tmp_path):
    with (tmp_path / "out").open("w") as file:
        assert wide_console(file).width == WIDTH
