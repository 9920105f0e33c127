"""Run two real steps of every algorithm of the group `algo` on the CPU and write docs/algorithms.md's table.

    python -m benchmarks.algorithms                  # all of them, about two minutes each
    python -m benchmarks.algorithms cfpo grpo dapo   # some; rows of the others are left as they are

Each is `cfpo-verl train experiment=cpu_quickstart algo=NAME backend=cpu policy_model=tiny`: Ray, a vLLM server, the
FSDP2 actor, 32 prompts x 8 responses and four optimiser steps per rollout. What is measured goes to
docs/algorithms.json, and the page is made from that file. One verl run at a time fits on two cores.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.tables import replace_block
from cfpo_verl.config_groups import names
from cfpo_verl.run_dir import read_metrics
from cfpo_verl.terminal import App

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs" / "algorithms.md"
MEASURED = PROJECT / "docs" / "algorithms.json"
BEGIN, END = "<!-- begin: python -m benchmarks.algorithms -->", "<!-- end -->"

STEPS = 2
# Metrics of the trainer and how the table calls them. A loss that does not report one has an empty cell.
COLUMNS = {
    "critic/score/mean": "reward",
    "actor/cfpo/ratio_deviation": "mean abs(r - 1)",
    "actor/ppo_kl": "KL to old policy",
    "actor/pg_clipfrac": "clip fraction",
    "actor/kl_loss": "reference KL, in the loss",
    "actor/reward_kl_penalty": "in the reward",
    "training/filter_groups/evicted_samples": "groups replaced",
    "actor/grad_norm": "gradient norm",
    "timing_s/step": "seconds",
}
# What a run must have done to count as one that trains.
NECESSARY = ("critic/score/mean", "actor/grad_norm", "timing_s/step")


def prepare() -> None:
    """Make the data and the tiny model of the quickstart, unless they are there."""
    script = Path(sys.executable).with_name("cfpo-verl")
    data = Path("data/arithmetic")
    subprocess.run([script, "data", "prepare", "arithmetic", "--out", data], check=True, stdout=sys.stderr)
    files = ["--train", data / "train.parquet", "--held-out", data / "test.parquet"]
    subprocess.run([script, "warmup", *files, "--out", "models/quickstart_seed0"], check=True, stdout=sys.stderr)


def run(algo: str) -> dict[int, dict[str, Any]]:
    """Train two steps and return the metrics of each.

    Raises:
        RuntimeError: If the run failed, or a step has not got its metrics.
    """
    folder = Path("runs/algorithms") / algo
    shutil.rmtree(folder, ignore_errors=True)
    script = Path(sys.executable).with_name("cfpo-verl")
    chosen = ["experiment=cpu_quickstart", f"algo={algo}", "backend=cpu", "policy_model=tiny", f"run_dir={folder}"]
    short = [f"trainer.total_training_steps={STEPS}", "trainer.val_before_train=false", "trainer.test_freq=-1"]
    done = subprocess.run([script, "train", *chosen, *short], stdout=sys.stderr, check=False)
    if done.returncode:
        raise RuntimeError(f"algo={algo}: the run ended with status {done.returncode}; see {folder}")
    metrics = read_metrics(folder)
    missing = [name for step in range(1, STEPS + 1) for name in NECESSARY if name not in metrics.get(step, {})]
    if missing:
        raise RuntimeError(f"algo={algo}: no {', '.join(missing)} in the metrics of {folder}")
    return {step: {name: metrics[step].get(name) for name in COLUMNS} for step in range(1, STEPS + 1)}


def table(measured: dict[str, dict[str, dict[str, float | None]]]) -> str:
    """Return the markdown table: one row for each algorithm and step."""
    header = ["`algo`", "step", *COLUMNS.values()]
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |"]
    for algo, steps in sorted(measured.items()):
        for step, values in sorted(steps.items()):
            cells = ["" if (value := values.get(name)) is None else f"{value:.3g}" for name in COLUMNS]
            lines.append(f"| `{algo}` | {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


app = App()


@app.command()
def _main(
    algorithms: Annotated[list[str] | None, typer.Argument(help="Algorithms to run; all by default.")] = None,
) -> None:
    """Train two real steps with every algorithm on the CPU and write the table of docs/algorithms.md.

    It takes about two minutes each. Rows of algorithms that are not run stay as they are.
    """
    chosen = algorithms or names("algo")
    unknown = sorted(set(chosen) - set(names("algo")))
    if unknown:
        raise typer.BadParameter(f"no algorithm called {unknown[0]!r}. Choose one of: {', '.join(names('algo'))}")
    prepare()
    failed = []
    for algo in chosen:
        print(f"algo={algo}", file=sys.stderr, flush=True)
        measured = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
        try:
            measured[algo] = {str(step): values for step, values in run(algo).items()}
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed.append(algo)
            continue
        MEASURED.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
        replace_block(PAGE, BEGIN, END, table(measured))
        print(f"{algo}: done")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    app()
