"""Synthetic run folders and evaluations for the tests of reports: shapes and failures that a real run has rarely."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

HOSTILE = "</script><script>document.title='taken over'</script><img src=x onerror=\"document.title='taken over'\">"


def config(loss: str = "cfpo", seed: int = 0, **others: Any) -> dict[str, Any]:
    """A config with the keys that reports look at, as verl's resolved configs have them."""
    return {
        "seed": seed,
        "run_dir": f"/somewhere/runs/{loss}_seed{seed}",
        "actor_rollout_ref": {
            "actor": {"policy_loss": {"loss_mode": loss, "epsilon": 0.2}, "optim": {"lr": 1e-4}},
            "model": {"path": f"models/quickstart_seed{seed}"},
        },
        "trainer": {"total_training_steps": 20, "experiment_name": f"{loss}_seed{seed}"},
        **others,
    }


def metrics(step: int, reward: float, loss: str = "cfpo", **others: Any) -> dict[str, Any]:
    """The metrics of one step, under verl's names."""
    values = {
        "critic/score/mean": reward,
        "actor/ppo_kl": 0.01 + step / 1e4,
        "actor/entropy": 0.5 - step / 100,
        "actor/pg_clipfrac": 0.02 + step / 1e3,
        "actor/grad_norm": 1.0 + step % 3,
        "response_length/mean": 100.0 + step,
        "response_length/clip_ratio": 0.1,
        "perf/throughput": 700.0 - step,
        "timing_s/step": 5.0,
        "timing_s/gen": 3.0,
        "timing_s/update_actor": 1.5,
    }
    if loss == "cfpo":
        values["actor/cfpo/ratio_deviation"] = 0.03 + step / 1e3
        values["actor/cfpo/noise_floor_min"] = 1e-6
        values["actor/cfpo/noise_floor_p99_min"] = 5e-6
    return values | others


def write_run(
    folder: Path, by_step: Mapping[int, Mapping[str, Any]], settings: Mapping[str, Any] | None = None
) -> Path:
    """A run folder with one attempt."""
    folder.mkdir(parents=True)
    (folder / "metrics.1.jsonl").write_text(lines(by_step))
    if settings is not None:
        (folder / "config.1.yaml").write_text(yaml.safe_dump(dict(settings)))
    return folder


def lines(by_step: Mapping[int, Mapping[str, Any]]) -> str:
    """What verl's `file` logger writes."""
    return "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in by_step.items())


def steps(rewards: Sequence[float], loss: str = "cfpo") -> dict[int, dict[str, Any]]:
    """Metrics of steps from 1 on, with validation before, in the middle and at the end."""
    name = "val-core/arithmetic/acc/mean@4"
    found = {step: metrics(step, reward, loss) for step, reward in enumerate(rewards, start=1)}
    found[len(rewards) // 2][name] = rewards[len(rewards) // 2]
    found[len(rewards)][name] = rewards[-1]
    return {0: {name: rewards[0]}, **found}


def write_dump(folder: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Responses as verl writes them to trainer.validation_data_dir."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(
        json.dumps({"step": step, "uid": f"{n}", **row}, ensure_ascii=False) + "\n" for n, row in enumerate(rows)
    )
    (folder / f"{step}.jsonl").write_text(text)


def write_evaluation(folder: Path, name: str, run_dir: Path | None = None) -> Path:
    """An evaluation of `cfpo-verl eval`, with the keys and columns that it has."""
    folder.mkdir(parents=True)
    number = {"value": 0.75, "low": 0.6, "high": 0.9, "interval": "bootstrap"}
    curve = {
        "k": [1, 2, 3, 4],
        "value": [0.5, 0.6, 0.7, 0.75],
        "low": [0.4, 0.5, 0.6, 0.65],
        "high": [0.6, 0.7, 0.8, 0.85],
    }
    metrics_of_set = {"avg@4": number, "pass@1": number, "pass@4": number, "maj@4": number, "format_rate": number}
    summary = {
        "format": 1,
        "name": name,
        "model": {"path": "exported", "given": "x", "run_dir": str(run_dir) if run_dir else None, "step": 20},
        "generation": {"n": 4, "temperature": 0.6, "max_tokens": 64, "seed": 0},
        "sets": {"arithmetic": {"problems": 2, "samples": 4, "metrics": metrics_of_set, "pass_at_k": curve}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [
        {"set": "arithmetic", "problem": "3+4=", "prompt": "3+4=", "response": f"{it}", "gold": "7", "answer": f"{it}"}
        | {"score": float(it == 7)}
        for it in (7, 7, 8, 7)
    ]
    rows.append({**rows[0], "response": f"no answer {HOSTILE}", "answer": None, "score": 0.0})
    pd.DataFrame(rows).to_parquet(folder / "generations.parquet")
    return folder
