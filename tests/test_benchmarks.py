"""The benchmarks still run; their figures are for `docs/performance.md`, not for tests."""

import json
import subprocess
import sys

from conftest import in_checkout, shared_data


def run(benchmark: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments]
    return subprocess.run(command, env=in_checkout({}), capture_output=True, text=True)


def test_losses_and_advantages_are_compared_with_verls(tmp_path):
    out = tmp_path / "losses.json"
    result = run("losses", "--shapes", "4x16", "--advantage-shapes", "16x8", "--seconds", "0.05", "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert "cfpo_sequence" in result.stdout
    found = json.loads(out.read_text())
    losses = {row["loss"]: row for row in found["losses"] if row["device"] == "cpu"}
    assert losses["vanilla"]["time_ratio"] == losses["vanilla"]["memory_ratio"] == 1
    assert (losses["vanilla"]["synchronisations"], losses["cfpo"]["synchronisations"]) == (3, 1)
    # Deterministic, unlike times: what torch held beyond the batch of 4 * 16 floats.
    assert losses["cfpo"]["peak_extra_mb"] < losses["vanilla"]["peak_extra_mb"]
    estimators = {row["estimator"]: row["time_ratio"] for row in found["advantages"]}
    assert min(estimators["grpo"], estimators["grpo_vectorized"]) == 1
    assert set(estimators) >= {"cfpo_grpo", "cfpo_dr_grpo", "cfpo_rloo"}


def test_imports_are_compared_with_and_without_the_plugin(tmp_path):
    out = tmp_path / "imports.json"
    result = run("imports", "--rounds", "1", "--out", str(out))
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [(row["process"], row["plugin"]) for row in rows] == [
        (process, plugin) for process in ("no loss", "losses") for plugin in ("no", "yes")
    ]
    # Deterministic, unlike times: the plugin loads a few modules of ours, and libraries only with the losses.
    light, full = (rows[1]["modules"] - rows[0]["modules"], rows[3]["modules"] - rows[2]["modules"])
    assert 0 < light < full + 10
    assert light < 60


def test_a_shape_that_is_none_is_refused():
    result = run("losses", "--shapes", "64")
    assert result.returncode == 2
    assert "a shape is RESPONSESxTOKENS, for example 64x4096, got '64'" in result.stderr


def test_decontamination_is_compared_with_the_straightforward_version(tmp_path):
    out = tmp_path / "data.json"
    result = run("data", "--rows", "2000", "--evaluation-rows", "50", "--dapo-rows", "2000", "--out", str(out))
    assert result.returncode == 0, result.stderr
    rows = json.loads(out.read_text())["decontamination"]
    assert [(row["version"], row["rows"]) for row in rows] == [
        ("cfpo_verl", 200),
        ("plain", 200),
        ("cfpo_verl", 2000),
        ("plain", 2000),
    ]
    assert all(row["removed"] >= row["rows"] / 100 for row in rows)


def test_the_reward_is_compared_with_its_peers(tmp_path):
    out = tmp_path / "rewards.json"
    sizes = [
        "--golds",
        "5",
        "--others",
        "3",
        "--groups",
        "5",
        "--rounds",
        "1",
        "--batch",
        "16",
        "--poison-responses",
        "100",
    ]
    data = shared_data("math_test.jsonl").parent
    result = run("rewards", "--data", str(data), *sizes, "--out", str(out))
    assert result.returncode == 0, result.stderr[-5000:]
    found = json.loads(out.read_text())
    assert [row["not_itself"] for row in found["agreement"]["sets"]] == [0] * 6
    rewards = {row["reward"]: row for row in found["speed"]["rewards"]}
    assert set(rewards) >= {"cfpo_verl", "math_verify", "verl math_verify", "verl math_dapo", "verl math_reward"}
    assert rewards["cfpo_verl"]["accuracy_%"] == 100
    assert found["batch"]["accuracy_%"] == 100
    poison = found["poison"]
    assert poison["right_scored_1"] == poison["right"] == 99
    assert poison["poison_scored_1"] == 0


def test_the_metrics_of_an_evaluation_are_compared_with_verls(tmp_path):
    out = tmp_path / "evaluation.json"
    result = run("evaluation", "--problems", "20", "--pass-problems", "3", "--pass-samples", "16", "--out", str(out))
    assert result.returncode == 0, result.stderr[-5000:]
    found = json.loads(out.read_text())
    ours, theirs = found["metrics"]
    assert (ours["version"], theirs["version"]) == ("cfpo_verl", "verl")
    # Without randomness: best of all n is known, and verl draws with replacement.
    assert ours["bias"] == 0
    assert theirs["bias"] < -0.001
    assert [row["version"] for row in found["pass_at_k"]] == ["cfpo_verl", "published"]
