"""The doctor as a whole: what `cfpo-verl train` refuses with exit status 2, and what `cfpo-verl doctor` shows."""

import io
import json
import re
import tempfile

import pytest
from conftest import PROJECT
from doctor_configs import failed, gpu_config, quickstart

from cfpo_verl import doctor, train
from cfpo_verl.doctor import report
from cfpo_verl.doctor.finding import Finding


@pytest.fixture
def model(tmp_path):
    """A folder that looks like a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


def refused(run_cli, tmp_path, *overrides, **env):
    """Run the command in an empty folder and return its message, having seen that it left nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    result = run_cli("train", "experiment=cpu_quickstart", *overrides, **env)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.endswith("Nothing was started.\n")
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
    return result.stderr


def test_all_quick_problems_are_reported_together(run_cli, tmp_path):
    message = refused(run_cli, tmp_path, "run_dir=/proc/nowhere")
    assert "data.train_files: data/arithmetic/train.parquet: no such file. Write one with: cfpo-verl data" in message
    assert "data.val_files: data/arithmetic/test.parquet: no such file" in message
    assert "actor_rollout_ref.model.path: ./models/quickstart_seed0 is not a model folder" in message
    assert "run_dir: /proc is not writable (No such file or directory). Choose another one with run_dir=PATH" in message


def test_misspelt_key(run_cli, tmp_path):
    message = refused(run_cli, tmp_path, "data.trian_files=x")
    assert "there is no key 'data.trian_files'. Did you mean: data.train_files" in message


def test_misspelt_loss_option(run_cli, tmp_path):
    message = refused(run_cli, tmp_path, "actor_rollout_ref.actor.policy_loss.epsilom=0.1")
    assert "Did you mean: actor_rollout_ref.actor.policy_loss.epsilon" in message


def test_unknown_group_members(run_cli, tmp_path):
    message = refused(run_cli, tmp_path, "policy_loss=ppo")
    assert "Could not find 'policy_loss/ppo'" in message
    assert {"\tcfpo", "\tcfpo_sequence", "\tdrpo", "\tvanilla"} <= set(message.split("\n"))
    result = run_cli("train", "experiment=nope")
    assert result.returncode == 2
    assert "Could not find 'experiment/nope'" in result.stderr
    assert "cpu_quickstart" in result.stderr


def test_no_experiment(run_cli):
    result = run_cli("train")
    assert result.returncode == 2
    assert "no experiment is given. Add experiment=NAME, one of: cpu_quickstart" in result.stderr


def test_problems_that_need_verl_are_reported_together(run_script, tmp_path, arithmetic_files, model):
    train_file, val_file = arithmetic_files
    overrides = [
        f"data.train_files={train_file}",
        f"data.val_files={val_file}",
        f"actor_rollout_ref.model.path={model}",
    ]
    overrides += ["actor_rollout_ref.actor.policy_loss.epsilon=abc"]
    message = refused(run_script, tmp_path, *overrides, VERL_USE_EXTERNAL_PLUGINS="none")
    assert "policy_loss.epsilon must be a number, got 'abc' (str). Set it with" in message
    assert "policy_loss.loss_mode=cfpo is not in verl's registry in a fresh process" in message
    assert "VERL_USE_EXTERNAL_PLUGINS=none disables it: unset that variable" in message


def test_the_checks_have_names_of_their_own():
    names = [check.name for check in doctor.CHECKS]
    assert len(set(names)) == len(names)


def test_the_page_has_a_row_for_each_check():
    page = (PROJECT / "docs" / "doctor.md").read_text()
    assert re.findall(r"^\| ([a-z' ]+) \| (?!looks)", page, flags=re.MULTILINE) == [
        check.name for check in doctor.CHECKS
    ]


def test_help_has_examples(run_cli):
    result = run_cli("doctor", "--help")
    assert result.returncode == 0
    assert "cfpo-verl doctor experiment=cpu_quickstart\n" in result.stdout
    assert run_cli("doctor").returncode == 2


def test_every_check_reports_in_its_place(arithmetic_files, monkeypatch):
    """All checks, on a config with several faults; the slow one is left out."""
    checks = [check for check in doctor.CHECKS if check.name != "plugin"]
    monkeypatch.setattr(doctor, "CHECKS", tuple(checks))
    train_file, val_file = arithmetic_files
    config = quickstart(f"data.train_files={train_file}", f"data.val_files={val_file}", "data.train_batch_size=96")
    found = doctor.examine(config)
    assert list(dict.fromkeys(finding.check for finding in found)) == [check.name for check in checks]
    failures = {finding.check for finding in doctor.failures(found)}
    assert failures == {"steps", "model"}
    elsewhere = {finding.check for finding in doctor.examine(config, elsewhere=True)}
    assert {check.name for check in checks if check.about == "machine"} & elsewhere == set()
    assert {"data", "model", "batches"} <= elsewhere


def test_a_check_that_breaks_is_a_failure():
    def broken(_config):
        yield from ()
        raise TypeError("no number")

    [finding] = doctor._make(doctor.Check("broken", broken), quickstart())
    assert (finding.status, finding.check) == ("failed", "broken")
    assert re.fullmatch(r"could not be checked \(TypeError: no number, in test_doctor.py line \d+\)", finding.found)


def test_garbage_in_the_config_is_reported_and_not_raised(monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", tuple(check for check in doctor.CHECKS if check.name != "plugin"))
    config = gpu_config("data.train_batch_size=abc", "actor_rollout_ref.rollout.n=null", "trainer.nnodes=null")
    messages = failed(doctor.examine(config))
    assert any(message.startswith("verl refuses the config") for message in messages)


def test_train_refuses_every_failure(monkeypatch):
    found = [Finding("failed", "a is wrong", "Do b"), Finding("warning", "c", "d"), Finding("failed", "e", "f")]
    monkeypatch.setattr(doctor, "examine", lambda _config, nodes: found)
    monkeypatch.setattr(doctor, "worker_env", lambda _config: {})  # this process goes on with other tests
    with pytest.raises(train.RefusedError, match=r"^a is wrong\. Do b\ne\. f$"):
        train.train(quickstart())


def test_a_table_shows_messages_as_they_are():
    text = io.StringIO()
    report.print_table([Finding("failed", "pip install 'verl[vllm]'", "set [/a] to [b]", "packages")], text)
    assert "pip install 'verl[vllm]'" in text.getvalue()
    assert "set [/a] to [b]" in text.getvalue()
    assert text.getvalue().endswith("1 failed, 0 warning, 0 ok\n")


def test_a_table_shows_a_long_path_whole():
    text = io.StringIO()
    report.print_table([Finding("failed", "x" * 200, "Choose another one", "paths")], text)
    assert text.getvalue().count("x") == 200


def test_doctor_by_hand(run_script, tmp_path, arithmetic_files, model):
    train_file, val_file = arithmetic_files
    overrides = [
        f"data.train_files={train_file}",
        f"data.val_files={val_file}",
        f"actor_rollout_ref.model.path={model}",
    ]
    before = sorted(tmp_path.rglob("*"))
    with tempfile.TemporaryDirectory(dir="/tmp") as no_cluster:  # a short path, as Ray's sockets want
        result = run_script("doctor", "experiment=cpu_quickstart", *overrides, "--json", RAY_TMPDIR=no_cluster)
    assert result.returncode == 1
    found = json.loads(result.stdout)  # nothing else on stdout
    assert [it["check"] for it in found if it["status"] == "failed"] == ["prompts"]  # the model has no tokenizer
    assert {it["check"] for it in found} == {check.name for check in doctor.CHECKS}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("status", "exit_status"), [("failed", 2), ("warning", 0)])
def test_a_dry_run_prints_config_and_table_and_starts_nothing(monkeypatch, capsys, status, exit_status):
    monkeypatch.setattr(doctor, "examine", lambda _config, nodes: [Finding(status, "a is wrong", "Do b", "mine")])
    monkeypatch.setattr(doctor, "worker_env", lambda _config: {})  # this process goes on with other tests
    overrides = ["experiment=cpu_quickstart", "--dry-run", "actor_rollout_ref.actor.policy_loss.epsilon=0.1"]
    assert train.main(overrides) == exit_status
    printed = capsys.readouterr()
    assert "epsilon: 0.1" in printed.out
    assert "experiment_name: cpu_quickstart_cfpo_seed0" in printed.out  # resolved
    assert "a is wrong" in printed.out.partition("experiment_name")[2]
    assert ("Nothing was started." in printed.err) == (exit_status == 2)


def test_bad_arguments_of_doctor(run_cli):
    for arguments, message in (
        (["experiment=nope"], "Could not find 'experiment/nope'"),
        (["experiment=cpu_quickstart", "data.trian_files=x"], "Did you mean: data.train_files"),
        (
            ["experiment=cpu_quickstart", "--jsno"],
            "no such option: --jsno",
        ),
    ):
        result = run_cli("doctor", *arguments)
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize("command", ["train", "doctor"])
def test_an_antlr_that_hydra_cannot_use_is_named_before_hydra_is_imported(run_script, tmp_path, command):
    # A fake at the edge of what this machine has: only the version that the metadata reports.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nreal = m.version\n"
        "m.version = lambda name: '4.13.2' if name == 'antlr4-python3-runtime' else real(name)\n"
    )
    result = run_script(command, "experiment=cpu_quickstart", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert "antlr4-python3-runtime is 4.13.2, and Hydra's parser needs ==4.9.*" in result.stderr
