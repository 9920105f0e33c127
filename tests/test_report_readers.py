"""cfpo_verl.report.readers: every source of runs and responses, whole, torn, half-finished and wrong."""

import json
import math
import os
import time

import pandas as pd
import pytest
from report_runs import HOSTILE, config, lines, metrics, steps, write_dump, write_evaluation, write_run

from cfpo_verl.files import FileError
from cfpo_verl.report.readers import read
from cfpo_verl.report.readers.responses import choose
from cfpo_verl.report.run import ReportError, Response
from cfpo_verl.run_dir import RunDirError


def read_one(path, responses=100):
    [run], evaluations = read([path], responses)
    assert evaluations == []
    return run


def test_run_folder(tmp_path):
    folder = write_run(tmp_path / "cfpo_seed0", steps([0.5] * 20), config())
    (folder / "versions.1.json").write_text('{"verl": "0.9.1", "vllm": null}')
    run = read_one(folder)
    assert (run.name, run.origin, run.last_step) == ("cfpo_seed0", "run folder", 20)
    assert run.config["actor_rollout_ref.actor.policy_loss.loss_mode"] == "cfpo"
    assert run.versions == {"verl": "0.9.1", "vllm": None}
    assert (run.state.name, run.state.detail) == ("finished", "step 20 of 20")
    assert run.notes == ()


def test_torn_last_line_is_left_out_with_a_note(tmp_path):
    folder = write_run(tmp_path / "run", steps([0.5] * 10), config())
    whole = lines({11: {"val-core/数学/acc/mean@4": 0.5}}).replace("\\u6570", "数").encode()
    with (folder / "metrics.1.jsonl").open("ab") as file:
        file.write(whole[: whole.index("数".encode()) + 1])  # within a character
    run = read_one(folder)
    assert run.last_step == 10
    assert run.notes == ("metrics.1.jsonl: the last line was cut off while it was written, and is left out",)


def test_several_attempts_are_one_run(tmp_path):
    folder = write_run(tmp_path / "run", steps([0.5] * 10), config())
    (folder / "metrics.2.jsonl").write_text(lines({step: metrics(step, 0.9) for step in range(7, 21)}))
    (folder / "config.2.yaml").write_text((folder / "config.1.yaml").read_text().replace("lr: 0.0001", "lr: 0.001"))
    run = read_one(folder)
    assert run.config["actor_rollout_ref.actor.optim.lr"] == "0.001"
    assert [values["critic/score/mean"] for step, values in run.metrics.items() if step in (6, 7, 20)] == [
        0.5,
        0.9,
        0.9,
    ]
    assert run.notes == (
        "attempt 2 begins at step 7 and replaces the steps up to 10 of earlier attempts",
        "the config of the last attempt differs from an earlier one in actor_rollout_ref.actor.optim.lr",
    )


def age(folder, age_s):
    for file in folder.iterdir():
        os.utime(file, (time.time() - age_s,) * 2)


@pytest.mark.parametrize(
    ("age_s", "log", "name", "detail"),
    [
        (30, None, "in progress", "step 10 of 20, written 30 s ago"),
        (3600, None, "stopped", "step 10 of 20, last written 60 min ago"),
        (
            3600,
            "(WorkerDict pid=1) Traceback (most recent call last):\n(WorkerDict pid=1) KeyError: 1\n",
            "stopped",
            None,
        ),
        (
            3600,
            'Traceback (most recent call last):\n  File "a.py", line 1\nRuntimeError: CUDA out of memory\n',
            "crashed",
            "step 10 of 20: RuntimeError: CUDA out of memory",
        ),
        (3600, "(TaskRunner pid=1) ('Final validation metrics: '\n", "finished", "step 10 of 20"),
    ],
)
def test_state_of_a_run_that_has_not_got_to_its_end(tmp_path, age_s, log, name, detail):
    folder = write_run(tmp_path / "run", steps([0.5] * 10), config())
    if log is not None:
        (folder / "log.1.txt").write_text("x" * 100_000 + "\n" + log)
    age(folder, age_s)
    state = read_one(folder).state
    assert state.name == name
    assert detail in (None, state.detail)


def test_slow_steps_may_be_silent_for_longer(tmp_path):
    folder = write_run(tmp_path / "run", {1: metrics(1, 0.5, **{"timing_s/step": 1000.0})}, config())
    age(folder, 3600)
    assert read_one(folder).state.name == "in progress"


def test_a_run_without_a_step_is_shown_as_such(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.1.yaml").write_text("a: [broken")
    run = read_one(folder)
    assert run.metrics == {}
    assert run.state.name == "in progress"
    assert run.notes[0] == "no step has finished yet"
    assert run.notes[1].startswith("config.1.yaml cannot be read")


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    folder = write_run(tmp_path / "run", steps([0.5] * 3))
    (folder / "metrics.1.jsonl").write_text("{\n" + lines({1: {}}))
    with pytest.raises(RunDirError, match=r"metrics\.1\.jsonl, line 1: not a metrics record"):
        read([folder], 10)


def test_words_among_the_metrics_are_left_out_with_a_note(tmp_path):
    records = lines({1: {"critic/score/mean": "good", "actor/entropy": 0.5}})
    folder = write_run(tmp_path / "run", {})
    for path in (folder / "metrics.1.jsonl", tmp_path / "experiment.jsonl"):
        path.write_text(records)
    for path in (folder, tmp_path / "experiment.jsonl"):
        run = read_one(path)
        assert run.metrics == {1: {"actor/entropy": 0.5}}
        assert run.notes == ("values that are not numbers are left out: critic/score/mean",)


def test_a_file_that_the_system_refuses_to_read_is_named(tmp_path, monkeypatch):
    """A fake at the edge: permissions do not stop root."""
    folder = write_run(tmp_path / "run", steps([0.5] * 3), config())

    def refuse(file, *_arguments, **_others):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(FileError, match=r"metrics\.1\.jsonl: cannot be read \(Permission denied\)"):
        read([folder], 10)


def test_file_of_verls_file_logger(tmp_path):
    (tmp_path / "experiment.jsonl").write_text(lines(steps([0.5] * 3)) + '{"step":')
    run = read_one(tmp_path / "experiment.jsonl")
    assert (run.name, run.last_step, len(run.notes)) == ("experiment", 3, 1)


def write_events(folder, by_step):
    from torch.utils.tensorboard import SummaryWriter  # what verl's logger uses

    with SummaryWriter(str(folder)) as writer:
        for step, values in by_step.items():
            for name, value in values.items():
                writer.add_scalar(name, value, step)


def test_tensorboard_files(tmp_path):
    write_events(tmp_path / "project" / "cfpo", steps([0.25] * 12))
    write_events(tmp_path / "project" / "vanilla", {step: {"critic/score/mean": 0.5} for step in range(10_500)})
    runs, _evaluations = read([tmp_path / "project"], 10)
    found = {run.name: run for run in runs}
    assert {name: (run.origin, run.last_step) for name, run in found.items()} == {
        "cfpo": ("TensorBoard", 12),
        "vanilla": ("TensorBoard", 10_499),
    }
    assert len(found["vanilla"].metrics) == 10_500  # TensorBoard's own default keeps a sample of 10,000
    assert found["cfpo"].metrics[12]["critic/score/mean"] == 0.25
    [file] = (tmp_path / "project" / "cfpo").iterdir()
    assert read_one(file).last_step == 12


def test_tensorboard_of_a_resumed_run_takes_the_later_attempt(tmp_path):
    write_events(tmp_path / "run", steps([0.25] * 12))
    time.sleep(1.1)  # the time in seconds is in the file's name and decides the order
    write_events(tmp_path / "run", {step: metrics(step, 0.75) for step in range(9, 16)})
    values = {step: it["critic/score/mean"] for step, it in read_one(tmp_path / "run").metrics.items() if step}
    assert values == dict.fromkeys(range(1, 9), 0.25) | dict.fromkeys(range(9, 16), 0.75)


def test_torn_tensorboard_file(tmp_path):
    write_events(tmp_path / "run", steps([0.25] * 12))
    [file] = (tmp_path / "run").iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    assert read_one(tmp_path / "run").last_step == 12


HISTORY = pd.DataFrame(
    {
        "_step": [0, 1, 2],
        "_runtime": [1.0, 2.0, 3.0],
        "_timestamp": [1.0, 2.0, 3.0],
        "critic/score/mean": [None, 0.25, 0.5],
        "val/generations": [None, "a table", None],
        "actor/grad_norm": [None, "NaN", "Infinity"],
        "is_good": [True, False, True],
    }
)


@pytest.mark.parametrize("form", ["csv", "json", "records.json", "jsonl", "parquet"])
def test_wandb_history(tmp_path, form):
    path = tmp_path / f"cfpo.{form}"
    if form == "csv":
        HISTORY.to_csv(path)  # with the index as a first column, as people do
    elif form == "json":
        HISTORY.to_json(path)
    elif form == "records.json":
        HISTORY.to_json(path, orient="records")
    elif form == "jsonl":
        HISTORY.to_json(path, orient="records", lines=True)
    else:
        HISTORY.to_parquet(path)
    run = read_one(path)
    assert (run.name, run.origin) == (path.stem, "W&B history")
    assert [run.metrics[step]["critic/score/mean"] for step in (1, 2)] == [0.25, 0.5]
    assert "critic/score/mean" not in run.metrics.get(0, {})
    assert run.metrics[2]["actor/grad_norm"] == math.inf
    names = {name for values in run.metrics.values() for name in values}
    assert not names & {"_step", "_runtime", "_timestamp", "val/generations", "is_good"}


def test_wandb_charts_of_several_runs_are_put_together(tmp_path):
    columns = ["Step"]
    columns += [f"{run} - critic/score/mean{end}" for run in ("cfpo - a", "vanilla") for end in ("", "__MIN", "__MAX")]
    pd.DataFrame([[1, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2], [2, 0.3, 0.3, 0.3, None, None, None]], columns=columns).to_csv(
        tmp_path / "reward.csv", index=False
    )
    pd.DataFrame([[1, 0.5]], columns=["Step", "vanilla - actor/entropy"]).to_csv(tmp_path / "entropy.csv", index=False)
    runs, _evaluations = read([tmp_path / "reward.csv", tmp_path / "entropy.csv"], 10)
    assert {run.name: run.metrics for run in runs} == {
        "cfpo - a": {1: {"critic/score/mean": 0.1}, 2: {"critic/score/mean": 0.3}},
        "vanilla": {1: {"critic/score/mean": 0.2, "actor/entropy": 0.5}},
    }
    assert runs[0].notes == ("has only the exported charts: reward.csv, entropy.csv",)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("time.csv", "Relative Time (Wall),a - b\n1,2\n", "exported over Relative Time .* x axis to Step"),
        ("summary.csv", "Name,State,critic/score/mean\nx,finished,0.5\n", "has the column _step.*this has Name, State"),
        ("broken.json", "{", "not a table: not JSON"),
        ("torn.jsonl", '{"_step": 1, "x": 2}\n{"_st', "not a table: not JSON"),
        ("torn.parquet", "PAR1 and no more", "not a table"),
        ("ragged.csv", "_step,x\n1,2\n1,2,3\n", "not a table that can be read"),
        ("latin.csv", "_step,x\n1,\udce4\n", "not a table that can be read"),
        ("number.json", "5", "not a table"),
        ("endless.json", '[{"_step": "Infinity", "x": 1}, {"_step": "NaN", "x": 1}]', "no row has a number"),
        ("empty.csv", "", "not a table"),
        ("words.csv", "_step,x\n1,abc\n", "no row has a number"),
        ("steps.csv", "_step,x\nabc,1\n", "no row has a number"),
        ("list.json", "[1, 2]", "has the column _step"),
        ("notes.txt", "hello", "no metrics here. Give a run folder"),
    ],
)
def test_other_tables_are_refused_with_the_way_out(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, errors="surrogateescape")
    line = r", line \d" if "JSON" in message else ""
    with pytest.raises(ReportError, match=f"{name}{line}: .*(?:{message})"):
        read([tmp_path / name], 10)


def test_evaluation(tmp_path):
    folder = write_evaluation(tmp_path / "evals" / "x", "cfpo", tmp_path / "run")
    for path in (folder, folder / "summary.json"):
        _runs, [evaluation] = read([path], 100)
        assert (evaluation.name, evaluation.run_dir, evaluation.step) == ("cfpo", tmp_path / "run", 20)
        assert evaluation.sets["arithmetic"]["metrics"]["avg@4"]["low"] == 0.6
        assert len(evaluation.responses) == 5
        assert [it.is_right for it in evaluation.responses] == [True, False, True, False, True]
        assert {it.answer for it in evaluation.responses} == {"7", "8", None}
    (folder / "generations.parquet").write_text("torn")
    _runs, [evaluation] = read([folder], 100)
    assert evaluation.notes[0].startswith("generations.parquet cannot be read")
    (folder / "generations.parquet").unlink()
    _runs, [evaluation] = read([folder], 100)
    assert evaluation.notes == ("generations.parquet is not beside the summary, so its responses are not shown",)


def test_evaluation_of_another_format_is_refused(tmp_path):
    folder = write_evaluation(tmp_path / "x", "cfpo")
    (folder / "summary.json").write_text('{"format": 2, "sets": {}}')
    with pytest.raises(ReportError, match="format 2, but this version reads format 1"):
        read([folder], 10)
    (folder / "summary.json").write_text('{"format": 1, "sets": {"a": {"metrics": {"avg@1": {"value": 0.5}}}}}')
    with pytest.raises(ReportError, match=r"a set lacks a part of format 1 \(KeyError\('low'\)\)"):
        read([folder], 10)
    (folder / "summary.json").write_text("{")
    with pytest.raises(ReportError, match="not JSON"):
        read([folder], 10)


def row(output, score, **others):
    return {"input": "1+1=", "output": output, "gts": "2", "score": score, **others}


def test_responses_that_verl_writes(tmp_path):
    settings = config()
    settings["trainer"] |= {
        "rollout_data_dir": "elsewhere/rollouts",
        "validation_data_dir": str(tmp_path / "validation"),
    }
    folder = write_run(tmp_path / "run", steps([0.5] * 20), settings)
    for step in (1, 2, 3, 4, 20):
        write_dump(folder / "rollouts", step, [row(f"r{step}", 1.0), row("3", 0.0)])  # moved along with the run
    write_dump(tmp_path / "validation", 10, [row(HOSTILE, -1.0, acc=True, pred="2"), row("5", 0.9, acc=False)])
    with (tmp_path / "validation" / "10.jsonl").open("a") as file:
        file.write('{"input": "1')
    run = read_one(folder)
    assert [(it.source, it.step, it.text, it.is_right, it.answer) for it in run.responses] == [
        ("validation", 10, HOSTILE, True, "2"),
        ("validation", 10, "5", False, None),
        ("training", 20, "r20", True, None),
        ("training", 20, "3", False, None),
        ("training", 3, "r3", True, None),
        ("training", 3, "3", False, None),
        ("training", 1, "r1", True, None),
        ("training", 1, "3", False, None),
    ]
    assert run.notes == ("validation/10.jsonl, line 3: not a response, left out",)


def test_choice_is_half_right_as_far_as_there_is():
    def responses(right, wrong):
        return [Response("x", 1, "", "", "", None, float(n < right), n < right) for n in range(right + wrong)]

    def chosen(right, wrong, count):
        found = choose(responses(right, wrong), count)
        return sum(it.is_right for it in found), sum(not it.is_right for it in found)

    assert chosen(50, 50, 10) == (5, 5)
    assert chosen(50, 2, 10) == (8, 2)
    assert chosen(1, 50, 10) == (1, 9)
    assert chosen(2, 2, 10) == (2, 2)
    assert chosen(0, 0, 10) == (0, 0)
    assert chosen(9, 9, 1) == (1, 0)
    assert chosen(9, 9, 0) == (0, 0)
    numbered = [Response("x", n, "", "", "", None, 1.0, True) for n in range(50)]
    assert choose(numbered, 5) == choose(numbered, 5) != numbered[:5]


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        write_run(tmp_path / parent / "run", steps([0.5] * 3))
    runs, _evaluations = read([tmp_path / "a" / "run", tmp_path / "b" / "run"], 10)
    assert [run.name for run in runs] == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]
    runs, _evaluations = read([tmp_path / "a" / "run"] * 2, 10)
    assert len({run.name for run in runs}) == 2
    evaluations = [write_evaluation(tmp_path / "evals" / parent, "same") for parent in ("a", "b")]
    _runs, found = read(evaluations, 10)
    assert [it.name for it in found] == [str(folder) for folder in evaluations]


def test_a_folder_of_runs_is_refused_with_their_names(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, steps([0.5] * 3))
    write_events(tmp_path / "runs" / "a" / "tensorboard", steps([0.5] * 3))
    with pytest.raises(ReportError, match=f"run folders. Give {tmp_path}/runs/a {tmp_path}/runs/b"):
        read([tmp_path / "runs"], 10)


def test_a_file_of_settings_is_no_evaluation(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"sets": 1}))
    with pytest.raises(ReportError):
        read([tmp_path / "x.json"], 10)
