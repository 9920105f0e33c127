"""cfpo_verl.report: the right metrics under the right titles, drawn and tabulated."""

import json

import pytest

from cfpo_verl.report.figure import draw
from cfpo_verl.report.metrics import CURVES, VALIDATION
from cfpo_verl.report.table import summarise, to_markdown

CFPO = {
    0: {"val-core/arithmetic/acc/mean@4": 0.2},
    1: {"critic/score/mean": 0.25, "actor/cfpo/ratio_deviation": 0.04, "actor/ppo_kl": 0.01, "timing_s/step": 7.0},
    2: {"critic/score/mean": 0.75, "actor/cfpo/ratio_deviation": 0.02, "actor/ppo_kl": 0.03, "timing_s/step": 5.0}
    | {"val-core/arithmetic/acc/mean@4": 0.8, "val-core/arithmetic/acc/best@4/mean": 0.9},
}
VANILLA = {
    1: {"critic/score/mean": 0.5, "actor/pg_clipfrac": 0.1, "actor/pg_clipfrac_lower": 0.0, "actor/entropy": 1.5},
}


def titles_and_values(rows):
    return {row[0]: row[1:] for row in rows}


def test_table_gives_first_last_and_mean():
    header, rows = summarise({"cfpo": CFPO})
    assert header == ["Metric", "Steps", "First", "Last", "Mean"]
    assert titles_and_values(rows) == {
        "Training reward": ["1-2", "0.25", "0.75", "0.5"],
        "Validation accuracy": ["0-2", "0.2", "0.8", "0.5"],
        "KL to old policy (nats)": ["1-2", "0.01", "0.03", "0.02"],
        "Ratio deviation, mean |r - 1|": ["1-2", "0.04", "0.02", "0.03"],
        "Step time (s)": ["1-2", "7", "5", "6"],
    }


def test_table_of_several_runs_puts_them_side_by_side():
    header, rows = summarise({"cfpo": CFPO, "vanilla": VANILLA})
    assert header[0] == "Run"
    assert [row[:2] for row in rows[:2]] == [["cfpo", "Training reward"], ["vanilla", "Training reward"]]


def test_markdown_is_a_table():
    assert to_markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_validation_takes_the_mean_over_samples_only():
    assert list(VALIDATION.points(CFPO)) == ["val-core/arithmetic/acc/mean@4"]


def panels(monkeypatch, runs, tmp_path):
    """Draw, and return {title: [(label, steps, values)]} of the figure that was saved."""
    from matplotlib.figure import Figure

    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_args, **_kwargs: saved.append(self))
    draw(runs, tmp_path / "report.png")
    [figure] = saved
    return {
        axes.get_title(): [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
        for axes in figure.axes
    }


def test_figure_overlays_runs(monkeypatch, tmp_path):
    drawn = panels(monkeypatch, {"cfpo": CFPO, "vanilla": VANILLA}, tmp_path)
    assert list(drawn) == [curve.title for curve in CURVES]
    assert drawn["Training reward"] == [("cfpo", [1, 2], [0.25, 0.75]), ("vanilla", [1], [0.5])]
    assert drawn["Validation accuracy"] == [("cfpo", [0, 2], [0.2, 0.8])]
    assert drawn["Share of tokens past the clip edge"] == [("vanilla", [1], [0.1])]
    assert drawn["Ratio deviation, mean |r - 1|"] == [("cfpo", [1, 2], [0.04, 0.02])]


def test_figure_names_data_sources_where_a_run_has_several(monkeypatch, tmp_path):
    run = {1: {"val-core/openai/gsm8k/acc/mean@1": 0.5, "val-core/arithmetic/acc/mean@1": 0.25}}
    drawn = panels(monkeypatch, {"cfpo": run}, tmp_path)
    assert [label for label, *_ in drawn["Validation accuracy"]] == ["cfpo: openai/gsm8k", "cfpo: arithmetic"]


def write_run(folder, run):
    folder.mkdir()
    lines = [json.dumps({"step": step, "data": data}) + "\n" for step, data in run.items()]
    (folder / "metrics.1.jsonl").write_text("".join(lines))


def test_command_writes_figure_and_table(run_cli, tmp_path):
    write_run(tmp_path / "cfpo", CFPO)
    write_run(tmp_path / "vanilla", VANILLA)
    result = run_cli("report", "cfpo", "vanilla", "--out", "compare.png")
    assert result.returncode == 0, result.stderr
    assert "Training reward" in result.stdout
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "| vanilla | Training reward | 1-1 | 0.5 | 0.5 | 0.5 |" in (tmp_path / "compare.md").read_text()


def test_command_draws_a_run_that_diverged(run_cli, tmp_path):
    write_run(tmp_path / "cfpo", {1: {"critic/score/mean": 0.5, "actor/ppo_kl": None}})
    result = run_cli("report", "cfpo", "--out", "diverged")
    assert result.returncode == 0, result.stderr
    assert "nan" in result.stdout
    assert (tmp_path / "diverged.png").exists()
    assert (tmp_path / "diverged.md").exists()


def test_command_puts_a_single_runs_report_into_its_folder(run_cli, tmp_path):
    write_run(tmp_path / "cfpo", CFPO)
    assert run_cli("report", "cfpo").returncode == 0
    assert {"report.png", "report.md"} <= {path.name for path in (tmp_path / "cfpo").iterdir()}


@pytest.mark.parametrize("argument", ["nowhere", "empty"])
def test_command_names_a_folder_that_is_no_run(run_cli, tmp_path, argument):
    (tmp_path / "empty").mkdir()
    result = run_cli("report", argument)
    assert result.returncode == 2
    assert f"cfpo-verl report: {argument}: no metrics" in result.stderr
    assert not list(tmp_path.rglob("report.*"))
