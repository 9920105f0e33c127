"""The command line of `cfpo-verl train`: options, errors, exit status. tests/test_stack.py trains."""

import os
from unittest import mock

import pytest

from cfpo_verl import doctor, run_dir, train
from cfpo_verl.composing import compose, resolved_yaml
from cfpo_verl.errors import UserError

QUICKSTART = "experiment=cpu_quickstart"


@pytest.fixture(autouse=True)
def _environment():
    """The command sets variables for verl, which the tests after these must not see."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def saved(tmp_path):
    """The resolved config of the quickstart, as a run leaves it."""
    (tmp_path / "saved.yaml").write_text(resolved_yaml(compose([QUICKSTART])))
    return "saved.yaml"


@pytest.mark.parametrize("form", [["--config={}"], ["--config", "{}"]])
def test_a_saved_config_is_given_in_either_form(saved, capsys, monkeypatch, form):
    monkeypatch.setattr(doctor, "examine", lambda config, nodes: [])
    assert train.main([*(word.format(saved) for word in form), "seed=7", "--dry-run"]) == 0
    assert "\nseed: 7\n" in f"\n{capsys.readouterr().out}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([QUICKSTART, "--ray=true"], "--ray takes no value, got --ray=true. Give --ray alone"),
        ([QUICKSTART, "--dry-run=yes"], "--dry-run takes no value, got --dry-run=yes. Give --dry-run alone"),
        ([QUICKSTART, "seed=0,1", "--multirun", "--dry-run"], "--dry-run and --multirun cannot be combined"),
        ([QUICKSTART, "seed=0,1", "-m", "--ray"], "--ray and -m cannot be combined. Give one run at a time"),
        ([QUICKSTART, "--cfg", "job", "--dry-run"], "--dry-run and --cfg cannot be combined. Leave one of them out"),
        (["--config"], "--config: expected one argument. Give --config FILE"),
        (["--config", "--dry-run"], "--config: expected one argument. Give --config FILE"),
        (["--config", "saved.yaml", "seed=${x"], "--config saved.yaml: seed: no viable alternative"),
        (["--config", "."], "--config .: cannot be read"),
        (["--config", "saved.yaml", "run_dir=[1"], "run_dir=[1: the value is not YAML"),
        ([QUICKSTART, "seed=[1"], "no viable alternative at input '[1'"),
        ([QUICKSTART, "seed=[1", "--dry-run"], "no viable alternative at input '[1'"),
        ([QUICKSTART, "data.train_batch_size=999", "--dry-run"], "999 cannot be divided into 4 equal parts"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused_with_status_2(saved, capsys, arguments, message):
    assert train.main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("cfpo-verl train: ")
    assert message in errors
    assert errors.endswith("Nothing was started.\n")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run_dir: a\ntrainer: [\n", ", line 3: not YAML (expected the node content, but found '<stream end>')"),
        ("run_dir: a\nrun_dir: b\n", ", line 2: not YAML (found duplicate key run_dir)"),
        ("run_dir: ${a\ntrainer: {}\n", ": no viable alternative at input '${a'"),
        ("no config", ": not the config of a run"),
    ],
)
def test_a_broken_file_is_named_with_its_line(text, message, tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text(text)
    assert train.main(["--config", "broken.yaml"]) == 2
    assert f"--config broken.yaml{message}" in capsys.readouterr().err


BUG = """
import sys
from cfpo_verl import cli, train
def bug(config, nodes):
    raise KeyError("no such thing")
train.train = bug
sys.argv = ["cfpo-verl", "train", "experiment=cpu_quickstart", *{flags}]
cli.main()
"""


@pytest.mark.parametrize("flags", [[], ["--multirun"], ["seed=0,1", "--multirun"]])
def test_a_bug_ends_with_a_traceback_and_a_request_for_a_report(flags, run_forked):
    result = run_forked(BUG.format(flags=flags))
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    *_, error, request = result.stderr.splitlines()
    assert error == "KeyError: 'no such thing'"
    assert request.startswith("cfpo-verl train: this is a bug in cfpo_verl. Please report it")
    assert "Nothing was started." not in result.stderr


class LateError(UserError):
    exit_status = 1


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (UserError("a is 3. Set a=2"), 2, "cfpo-verl train: a is 3. Set a=2\nNothing was started.\n"),
        (LateError("a is 3. Set a=2"), 1, "cfpo-verl train: a is 3. Set a=2\n"),
        (KeyboardInterrupt(), 130, "cfpo-verl train: interrupted; all processes it had started have ended\n"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--multirun"]])
def test_how_a_run_ends(error, status, shown, flags, monkeypatch, capsys):
    def fail(_config, _nodes):
        raise error

    monkeypatch.setattr(train, "train", fail)
    try:
        ended = train.main([QUICKSTART, *flags])
    except SystemExit as exit_:
        ended = exit_.code
    assert ended == status
    assert capsys.readouterr().err.endswith(shown)


def test_files_of_a_run_folder_that_cannot_be_read(tmp_path):
    """Folders in the place of files: the system refuses those to root too."""
    (tmp_path / "stop_requested").mkdir()
    with pytest.raises(UserError, match=r"stop_requested: cannot be read \(Is a directory\)"):
        run_dir.take_stop_request(tmp_path)
    (tmp_path / "metrics.1.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.1\.jsonl: cannot be read \(Is a directory\)"):
        run_dir.read_metrics(tmp_path)
