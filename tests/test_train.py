"""The command line of `cfpo-verl train`: what is its own, and what is Hydra's. tests/test_stack.py trains."""

import os
from unittest import mock

import pytest

from cfpo_verl import doctor, train
from cfpo_verl.composing import compose, resolved_yaml

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
        ([QUICKSTART, "--ray=true"], "--ray=true: --ray takes no value"),
        ([QUICKSTART, "--dry-run=yes"], "--dry-run=yes: --dry-run takes no value"),
        ([QUICKSTART, "seed=0,1", "--multirun", "--dry-run"], "--dry-run and --multirun cannot be combined"),
        ([QUICKSTART, "seed=0,1", "-m", "--ray"], "--ray and -m cannot be combined. Check one point at a time"),
        ([QUICKSTART, "--cfg", "job", "--dry-run"], "--dry-run and --cfg cannot be combined. Leave one of them out"),
        (["--config"], "--config: expected one argument"),
        (["--config", "."], "--config .: cannot be read"),
        (["--config", "saved.yaml", "run_dir=[1"], "run_dir=[1: a value is not YAML"),
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


def test_a_file_that_is_broken_yaml_is_named_with_its_line(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("run_dir: a\ntrainer: [\n")
    assert train.main(["--config", "broken.yaml"]) == 2
    errors = capsys.readouterr().err
    assert "--config broken.yaml: cannot be read" in errors
    assert "line 3" in errors
