"""From training to a model that is handed on: train with CFPO and with GSPO, evaluate, compare, report, export.

Everything is real: verl, Ray, vLLM, verl's merger, transformers. The task and the batches are those of test_stack.py.
"""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from conftest import clean_environment
from transformers import AutoModelForCausalLM, AutoTokenizer

from cfpo_verl.evaluation import store

pytestmark = pytest.mark.stack

N = 8
# In the environment of everything that the test starts, so that it is found among the processes of others.
MARK = "CFPO_VERL_END_TO_END"


def cfpo_verl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("cfpo-verl")), *arguments]
    # Not into a cluster of somebody else that runs on this machine.
    env = clean_environment({"RAY_ADDRESS": "local", MARK: str(folder)})
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-5000:]
    assert left_running(folder) == []
    return result


def left_running(folder: Path) -> list[str]:
    """Return the processes that were started for the test and are still there."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder):
                found.append(process.name())
    return found


def test_train_evaluate_compare_report_export(workplace, finished, finished_gspo):
    # Trained already, for other tests too.
    cfpo_run, gspo_run = finished[0], finished_gspo[0]
    assert finished[1].returncode == finished_gspo[1].returncode == 0
    runs = {"cfpo": cfpo_run, "gspo": gspo_run}

    sets = ["--sets", "arithmetic", "--n", str(N)]
    shown = cfpo_verl(workplace, "eval", "run", str(cfpo_run), *sets, "--out", "evals/cfpo")
    assert f"pass@{N}" in shown.stdout
    assert "tokens/s" in shown.stderr
    # Two engines, as on a cluster.
    cfpo_verl(workplace, "eval", "run", "runs/gspo", *sets, "--out", "evals/gspo", "--data-parallel", "2")

    given = {"cfpo": str(cfpo_run), "gspo": "runs/gspo"}
    for name in ("cfpo", "gspo"):
        summary = json.loads((workplace / "evals" / name / "summary.json").read_text())
        assert summary["model"] == {
            "path": str(runs[name] / "exported" / "global_step_3"),
            "given": given[name],
            "run_dir": str(runs[name]),
            "step": 3,
        }
        # As in the run, where nobody has said otherwise.
        assert (summary["generation"]["max_tokens"], summary["generation"]["temperature"]) == (8, 1.0)
        table = store.read_generations(workplace / "evals" / name)
        assert table.groupby("uid").size().tolist() == [N] * 16
        # The model says 7 now and then, which is right for every problem.
        assert 0 < table["score"].mean() < 1
        assert table["response"].nunique() > 4
        assert set(table["finish_reason"]) == {"stop", "length"}
        assert (table["response_tokens"] <= 8).all()
        assert (table["response_tokens"][table["finish_reason"] == "length"] == 8).all()

    rows = json.loads(cfpo_verl(workplace, "eval", "compare", "evals/gspo", "evals/cfpo", "--json").stdout)
    assert (rows[0]["set"], rows[0]["metric"], rows[0]["problems"]) == ("arithmetic", "avg", 16)
    assert rows[0]["low"] <= rows[0]["difference"] <= rows[0]["high"]
    assert rows[0]["better"] + rows[0]["worse"] + rows[0]["equal"] == 16

    cfpo_verl(workplace, "report", str(cfpo_run), "runs/gspo", "evals/cfpo", "evals/gspo", "--out", "compare")
    page = (workplace / "compare.html").read_text()
    for what in ("Training reward", "Validation accuracy", "gspo", "stable", f"avg@{N}"):
        assert what in page

    cfpo_verl(workplace, "export", str(cfpo_run), "--out", "models/cfpo", "--evaluation", "evals/cfpo")
    model = AutoModelForCausalLM.from_pretrained(workplace / "models" / "cfpo", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(workplace / "models" / "cfpo")
    check = json.loads((workplace / "models" / "cfpo" / "export.json").read_text())["check"]
    tokens = torch.tensor([tokenizer.encode(check["prompt"])])
    said = model.generate(tokens, max_new_tokens=16, do_sample=False)[0, tokens.shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == check["continuation"]
    assert check["merge_difference"] < 1e-5
    assert f"| arithmetic | 16 | avg@{N} |" in (workplace / "models" / "cfpo" / "README.md").read_text()
