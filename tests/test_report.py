"""cfpo_verl.report: the right metrics under the right titles, drawn, tabulated and written by the command."""

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import clean_environment
from matplotlib.figure import Figure
from report_runs import HOSTILE, config, lines, metrics, steps, write_dump, write_evaluation, write_run

from cfpo_verl.files import FileError
from cfpo_verl.report import figure
from cfpo_verl.report.build import collect
from cfpo_verl.report.grouping import Group
from cfpo_verl.report.metrics import CURVES, VALIDATION, phase_times_s
from cfpo_verl.report.page import render
from cfpo_verl.report.table import final_numbers, summarise, to_markdown

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
        "Validation accuracy: arithmetic": ["0-2", "0.2", "0.8", "0.5"],
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


def test_phases_add_up_to_the_step_and_validation_comes_on_top():
    first = {"timing_s/step": 5.0, "timing_s/gen": 3.0, "timing_s/update_actor": 1.0, "timing_s/agent_loop/max": 9.0}
    second = {**first, "timing_s/testing": 4.0}
    assert phase_times_s({0: {"timing_s/testing": 9.0}, 1: first, 2: second}) == {
        "generate": 3.0,
        "update actor": 1.0,
        "validate": 2.0,
        "other": 1.0,
    }
    assert phase_times_s(VANILLA) == {}


@pytest.fixture
def runs(tmp_path):
    """Two seeds of CFPO, one vanilla run that collapses, one CFPO run that has just begun."""
    rewards = [0.2 + step / 40 for step in range(20)]
    folders = [
        write_run(tmp_path / "cfpo_seed0", steps(rewards), config("cfpo", 0)),
        write_run(tmp_path / "cfpo_seed1", steps([reward + 0.1 for reward in rewards]), config("cfpo", 1)),
        write_run(tmp_path / "vanilla_seed0", steps([0.5] * 10 + [0.0] * 10, "vanilla"), config("vanilla", 0)),
        write_run(tmp_path / "cfpo_seed2", {1: metrics(1, 0.9)}, config("cfpo", 2)),
    ]
    return folders


def test_groups_are_drawn_with_mean_and_band(runs):
    report = collect(runs, 10)
    assert [(it.label, it.runs) for it in report.groups] == [
        ("cfpo", ("cfpo_seed0", "cfpo_seed1", "cfpo_seed2")),
        ("vanilla", ("vanilla_seed0",)),
    ]
    assert report.behind == ["cfpo_seed2"]
    plots = {plot.key: plot for plot in report.plots}
    assert set(plots) == {curve.key for curve in CURVES} - {"validation"} | {"validation_arithmetic"}
    cfpo, vanilla = plots["reward"].lines
    assert cfpo.band.steps.tolist() == list(range(1, 21))
    assert (cfpo.band.low[0], cfpo.band.mean[0], cfpo.band.high[0]) == pytest.approx((0.2, 0.25, 0.3))
    assert len(cfpo.runs) == 3
    assert vanilla.runs == ()
    assert plots["validation_arithmetic"].lines[0].band.steps.tolist() == [0, 10, 20]
    assert plots["ratio_deviation"].missing == ("vanilla",)
    assert [(mark.step, mark.number) for mark in plots["reward"].marks] == [(13, 1)]
    assert [plot.key for plot in report.plots if plot.marks] == ["reward"]
    assert report.times_s["cfpo"] == {"generate": 3.0, "update actor": 1.5, "other": 0.5}


def test_figure_draws_what_the_plot_has(runs, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_args, **_kwargs: saved.append(self))
    report = collect(runs, 10)
    figure.save_overview(report.plots, report.times_s, report.title, [tmp_path / "x.png"])
    axes = {it.get_title(loc="left"): it for it in saved[0].axes}
    assert [title for title in axes if title] == [plot.title for plot in report.plots] + ["Time per phase"]
    drawn = {line.get_label(): line for line in axes["Training reward"].lines if not line.get_label().startswith("_")}
    assert drawn["cfpo"].get_ydata()[0] == pytest.approx(0.25)
    assert drawn["vanilla"].get_ydata()[-1] == 0.0
    assert drawn["cfpo"].get_color() != drawn["vanilla"].get_color()
    [band] = axes["Training reward"].collections
    assert band.get_paths()[0].get_extents().ymax == pytest.approx(0.2 + 19 / 40 + 0.1)
    widths = [bar.get_width() for bar in axes["Time per phase"].patches]
    assert sorted(widths) == [0.5, 0.5, 1.5, 1.5, 3.0, 3.0]


def test_values_of_different_size_get_a_logarithmic_axis(tmp_path):
    spike = steps([0.5] * 20)
    spike[7]["actor/grad_norm"] = 1e6
    plots = {plot.key: plot for plot in collect([write_run(tmp_path / "run", spike)], 10).plots}
    assert [key for key, plot in plots.items() if plot.linear_below is not None] == ["grad_norm"]
    for key, scale in (("grad_norm", "symlog"), ("reward", "linear")):
        axes = Figure().subplots()
        figure.draw(axes, plots[key])
        assert axes.get_yscale() == scale


def test_final_numbers_count_seeds_and_not_a_run_that_has_just_begun(runs):
    report = collect(runs, 10)
    rows = final_numbers({name: run.metrics for name, run in report.runs.items()}, report.groups)
    numbers = {row.title: row.cells for row in rows}
    cfpo, vanilla = numbers["Training reward"]
    # The last two of twenty steps: 0.6625 and 0.7625 in the two seeds.
    assert (cfpo.mean, cfpo.count) == (pytest.approx(0.7125), 2)
    assert cfpo.low < 0.6625
    assert cfpo.high > 0.7625
    assert (vanilla.mean, vanilla.count) == (0.0, 1)
    assert numbers["Validation accuracy: arithmetic"][0].mean == pytest.approx((0.675 + 0.775) / 2)
    assert numbers["Ratio deviation, mean |r - 1|"][1] is None


def test_validation_counts_with_its_last_measurement():
    name = "val-core/a/acc/mean@1"
    metrics_by_step = {step: {name: step / 100, "critic/score/mean": step / 100} for step in range(1, 41)}
    rows = final_numbers({"run": metrics_by_step}, [Group("x", ("run",), ("run",))])
    # Of the reward the mean of the last four of forty.
    assert {row.title: row.cells[0].mean for row in rows} == {
        "Validation accuracy: a": 0.4,
        "Training reward": pytest.approx(0.385),
    }


class Elements(HTMLParser):
    """Counts elements, and keeps their text outside scripts."""

    def __init__(self):
        super().__init__()
        self.names, self.text, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [name for name, _value in attrs]

    def handle_data(self, data):
        if self.names and self.names[-1] not in ("script", "style"):
            self.text.append(data)


def parse(html):
    elements = Elements()
    elements.feed(html)
    return elements


def test_texts_from_files_cannot_become_html(tmp_path):
    settings = config(**{HOSTILE: HOSTILE})
    settings["trainer"]["validation_data_dir"] = "validation"
    folder = write_run(
        tmp_path / "<img src=x>", steps([0.5] * 20) | {21: {f"val-core/{HOSTILE}/acc/mean@1": 0.5}}, settings
    )
    (folder / "versions.1.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (folder / "log.1.txt").write_text(f"Traceback (most recent call last):\n{HOSTILE}")
    rows = [{"input": HOSTILE, "output": f"\ud800 {HOSTILE}", "gts": HOSTILE, "pred": HOSTILE, "score": float("nan")}]
    (folder / "validation").mkdir()
    (folder / "validation" / "1.jsonl").write_text(json.dumps(rows[0]))
    evaluation = write_evaluation(tmp_path / "evaluation", HOSTILE)
    other = write_run(tmp_path / "other", steps([0.5] * 20), config(**{HOSTILE: f"{HOSTILE} too"}))
    report = collect([folder, other, evaluation], 10)
    assert HOSTILE[:10] in report.groups[0].label
    html = render(report)
    elements = parse(html)
    assert elements.names.count("script") == 2
    assert "img" not in elements.names
    assert "onerror" not in elements.attributes
    assert sum(HOSTILE in text for text in elements.text) >= 3
    data = json.loads(html.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    [response] = [it for it in data["responses"] if it["source"] == "validation"]
    assert (response["text"], response["score"]) == (f"\ud800 {HOSTILE}", None)


def test_page_loads_nothing(runs):
    html = render(collect(runs, 10))
    assert "default-src 'none'" in html
    for text in ("http://", "https://", "url(", "@import"):
        # Links within the page, as of a marker, load nothing.
        assert text not in html.replace("url(#", ""), text


def test_long_texts_lose_their_middle(tmp_path):
    settings = config()
    settings["trainer"]["validation_data_dir"] = "validation"
    folder = write_run(tmp_path / "run", steps([0.5] * 20), settings)
    write_dump(
        folder / "validation", 1, [{"input": "q", "output": f"begin{'x' * 50_000}end", "gts": "1", "score": 1.0}]
    )
    html = render(collect([folder], 10))
    assert "begin" in html
    assert "44008 characters left out" in html
    assert "xend" in html


def test_same_data_same_figures(runs):
    first, second = (figure.page_svg(collect(runs, 10).plots[0]) for _ in range(2))
    assert first == second


def test_command_writes_page_pictures_and_table(run_script, tmp_path):
    write_run(tmp_path / "cfpo", CFPO)
    write_run(tmp_path / "vanilla", VANILLA)
    result = run_script("report", "cfpo", "vanilla", "--out", "compare.png", "--figures", "figures")
    assert result.returncode == 0, result.stderr
    assert "Training reward" in result.stdout
    assert "cfpo: too short to judge (2 of 8 steps)" in result.stdout
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "| vanilla | Training reward | 1-1 | 0.5 | 0.5 | 0.5 |" in (tmp_path / "compare.md").read_text()
    assert "</svg>" in (tmp_path / "compare.svg").read_text()
    assert "</html>" in (tmp_path / "compare.html").read_text()
    assert {"reward.png", "reward.svg", "kl.png"} <= {path.name for path in (tmp_path / "figures").iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        f"compare.{ending}" for ending in ("html", "md", "png", "svg")
    ]


def test_command_draws_a_run_that_diverged(run_cli, tmp_path):
    write_run(tmp_path / "cfpo", {1: {"critic/score/mean": 0.5, "actor/ppo_kl": None}})
    result = run_cli("report", "cfpo", "--out", "diverged_0.1")
    assert result.returncode == 0, result.stderr
    assert "nan" in result.stdout
    assert "cfpo: not a number at step 1" in result.stdout
    assert {path.name for path in tmp_path.glob("diverged_0.1.*")} == {
        f"diverged_0.1.{ending}" for ending in ("html", "md", "png", "svg")
    }


def test_command_shows_a_run_before_its_first_step(run_cli, tmp_path):
    write_run(tmp_path / "cfpo", {}, config())
    result = run_cli("report", "cfpo")
    assert result.returncode == 0, result.stderr
    assert "no step has finished yet" in (tmp_path / "cfpo" / "report.html").read_text()


def test_command_puts_a_single_runs_report_into_its_folder(run_cli, tmp_path):
    write_run(tmp_path / "cfpo", CFPO)
    assert run_cli("report", "cfpo").returncode == 0
    assert {"report.html", "report.png", "report.svg", "report.md"} <= {
        path.name for path in (tmp_path / "cfpo").iterdir()
    }


@pytest.mark.parametrize("argument", ["nowhere", "empty"])
def test_command_names_a_folder_that_is_no_run(run_cli, tmp_path, argument):
    (tmp_path / "empty").mkdir()
    result = run_cli("report", argument)
    assert result.returncode == 2
    assert f"cfpo-verl report: {argument}: no metrics" in result.stderr
    assert not list(tmp_path.rglob("report.*"))


def test_command_names_an_output_that_cannot_be_written(run_cli, tmp_path):
    write_run(tmp_path / "cfpo", CFPO)
    (tmp_path / "file").write_text("")
    for arguments in (["--out", "file/x"], ["--out", "x", "--figures", "file/figures"]):
        result = run_cli("report", "cfpo", *arguments)
        assert result.returncode == 2
        assert "cfpo-verl report: file" in result.stderr
        assert "cannot be written (" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_failed_report_leaves_the_one_before(tmp_path, monkeypatch):
    from cfpo_verl.report import build

    folder = write_run(tmp_path / "cfpo", CFPO)
    report = collect([folder], 10)
    build.write(report, tmp_path / "report", None, None)
    before = (tmp_path / "report.html").read_text()

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(figure, "save_overview", fail)
    with pytest.raises(FileError, match=r"report: cannot be written \(disk full\)"):
        build.write(report, tmp_path / "report", None, 5)
    assert (tmp_path / "report.html").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        f"report.{ending}" for ending in ("html", "md", "png", "svg")
    ]


def watching(folder, cwd):
    script = Path(sys.executable).with_name("cfpo-verl")
    command = [script, "report", folder, "--watch", "--every-s", "1"]
    return subprocess.Popen(
        command, cwd=cwd, env=clean_environment({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def test_watch_rewrites_the_page_until_the_run_has_finished(tmp_path):
    by_step = steps([0.5] * 20)
    folder = write_run(tmp_path / "cfpo", {step: by_step[step] for step in range(10)}, config())
    page = folder / "report.html"
    process = watching(folder, tmp_path)
    try:
        wait_for(page.exists)
        assert "step 9 of 20" in page.read_text()
        assert '"refreshS": 1.0' in page.read_text()
        with (folder / "metrics.1.jsonl").open("a") as file:
            file.write(lines({step: by_step[step] for step in range(10, 21)}))
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()
    assert "step 20 of 20" in page.read_text()
    assert '"refreshS": null' in page.read_text()


def test_watch_ends_with_ctrl_c(tmp_path):
    folder = write_run(tmp_path / "cfpo", {1: metrics(1, 0.5)}, config())
    process = watching(folder, tmp_path)
    try:
        wait_for((folder / "report.html").exists)
        time.sleep(0.5)  # it is then waiting, not writing
        os.kill(process.pid, signal.SIGINT)
        _output, error = process.communicate(timeout=30)
        assert process.returncode == 0
        assert f"stopped; the last report is {folder / 'report'}.html" in error
    finally:
        process.kill()


def test_many_steps_stay_small(tmp_path):
    rng = np.random.default_rng(0)
    by_step = {step: metrics(step, float(rng.random())) for step in range(95_001, 100_001)}
    by_step[97_777]["critic/score/mean"] = 9.0
    report = collect([write_run(tmp_path / "long", by_step, config())], 10)
    svg, frame = figure.page_svg(report.plots[0])
    assert frame["series"][0]["x"][:2] == [95_001, 95_013]
    # The peak of a single step is still there.
    assert [points for points in report.plots[0].lines[0].runs[0] if points[1] == 9.0] == [(97_777, 9.0)]
    axes = Figure().subplots()
    figure.draw(axes, report.plots[0])
    assert max(max(line.get_ydata()) for line in axes.lines) == 9.0
    assert len(frame["series"][0]["x"]) <= 500
    assert len(svg) < 40_000
