"""Draw plots with matplotlib: as SVG with the colours of the page, and as PNG and SVG files."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator

from cfpo_verl.files import replacing
from cfpo_verl.report.plots import Plot
from cfpo_verl.report.statistics import Band, thin

# Distinguishable with colour-vision deficiencies and dark enough on white; further lines reuse them, dashed.
COLOURS = ("#2563eb", "#d9480f", "#0f766e", "#9333ea", "#b45309", "#be185d", "#4d7c0f", "#475569")
INK, MUTED, GRID = "#1f2937", "#6b7280", "#d7dce3"
PHASE_COLOURS = {
    "generate": "#4c78a8",
    "reward": "#e45756",
    "old log-probabilities": "#72b7b2",
    "reference": "#b279a2",
    "values": "#ff9da6",
    "advantages": "#9d755d",
    "update critic": "#eeca3b",
    "update actor": "#f58518",
    "synchronise weights": "#54a24b",
    "validate": "#8c9eb5",
    "save": "#5f6b7a",
    "other": "#bab0ac",
}
_STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "svg.hashsalt": "cfpo-verl",  # so that the same data give the same file
}
_PAGE_SIZE_INCHES = (4.6, 2.75)
# Left, right, bottom and top of the axes, as fractions of the picture.
FRAME = (0.125, 0.985, 0.155, 0.965)
_MOST_MARKERS = 40
# More points than pixels would only make the page heavy.
_MOST_POINTS = 400


def _compact(value: float, _position: object = None) -> str:
    """Format a tick label in few characters.

    Example:
        >>> _compact(0.25), _compact(12500), _compact(0.00002)
        ('0.25', '12.5k', '2e-05')
    """
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def draw(axes: Axes, plot: Plot) -> None:
    """Draw one plot without its title and legend."""
    if plot.linear_below is not None:
        axes.set_yscale("symlog", linthresh=_power_below(plot.linear_below))
    for line in plot.lines:
        colour, style = COLOURS[line.number % len(COLOURS)], "-" if line.number < len(COLOURS) else "--"
        for points in line.runs:
            table = np.array(points, dtype=float)
            steps, values = thin(table[:, 0], table[:, 1], _MOST_POINTS)
            axes.plot(steps, _finite(values), color=colour, alpha=0.3, linewidth=0.8, gid=f"{line.number}-run")
        x, mean, low, high = (_finite(column) for column in _columns(line.band))
        if not np.array_equal(low, high, equal_nan=True):
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0, gid=f"{line.number}-band")
        marker = "o" if len(x) <= _MOST_MARKERS else None
        axes.plot(
            x,
            mean,
            style,
            color=colour,
            linewidth=1.8,
            marker=marker,
            markersize=3,
            label=line.label,
            gid=f"{line.number}-mean",
        )
    for mark in plot.marks:
        colour = COLOURS[mark.number % len(COLOURS)]
        axes.axvline(mark.step, color=colour, linestyle=(0, (3, 3)), linewidth=1.2, gid=f"{mark.number}-mark")
    axes.set_xlabel(plot.x_label)
    axes.grid(axis="y")
    axes.margins(x=0.02)
    axes.tick_params(length=0)
    if plot.is_log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_compact))
    if plot.linear_below is not None:
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=_power_below(plot.linear_below)))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_compact))
    axes.minorticks_off()


def _columns(band: Band) -> list[np.ndarray]:
    """Return steps, mean, low and high of a band; a long one is smooth, so that every n-th point suffices."""
    every = max(len(band.steps) // _MOST_POINTS, 1)
    return [column[::every] for column in (band.steps, band.mean, band.low, band.high)]


def _power_below(value: float) -> float:
    return 10.0 ** math.floor(math.log10(value))


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Turn infinities into NaN, which is drawn as a gap."""
    array = np.asarray(values, dtype=float)
    return np.where(np.isfinite(array), array, np.nan)


def draw_phases(axes: Axes, times_s: Mapping[str, Mapping[str, float]]) -> None:
    """Draw a bar for each group, divided into the phases of a step.

    Args:
        axes: Where to draw.
        times_s: {group: {phase: seconds}}.
    """
    labels = list(times_s)
    starts = np.zeros(len(labels))
    for phase in (phase for phase in PHASE_COLOURS if any(phase in times for times in times_s.values())):
        widths = np.array([times_s[label].get(phase, 0.0) for label in labels])
        axes.barh(range(len(labels)), widths, left=starts, height=0.6, color=PHASE_COLOURS[phase], label=phase)
        starts += widths
    axes.set_yticks(range(len(labels)), [_shortened(label) for label in labels], color=INK)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set_xlabel("seconds per step")
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _shortened(label: str, most: int = 22) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def page_svg(plot: Plot) -> tuple[str, dict[str, object]]:
    """Return the SVG of a plot for the page, and the data with which its script shows values under the pointer."""
    with mpl.rc_context({**_STYLE, "svg.fonttype": "none"}):
        figure = Figure(figsize=_PAGE_SIZE_INCHES)
        axes = figure.subplots()
        left, right, bottom, top = FRAME
        figure.subplots_adjust(left=left, right=right, bottom=bottom, top=top)
        draw(axes, plot)
        svg = _svg(figure)
        x_limits = [math.log2(limit) for limit in axes.get_xlim()] if plot.is_log_x else list(axes.get_xlim())
    series = []
    for line in plot.lines:
        columns = dict(zip(("x", "y", "low", "high"), _columns(line.band), strict=True))
        values = {name: [_rounded(value) for value in column] for name, column in columns.items()}
        steps = [int(step) for step in columns["x"]]
        series.append({"group": line.number, "label": line.label, **values, "x": steps})
    return svg, {
        "frame": FRAME,
        "xLimits": x_limits,
        "isLogX": plot.is_log_x,
        "xLabel": "k" if plot.is_log_x else "step",
        "series": series,
        "marks": [{"group": mark.number, "x": mark.step, "text": mark.text} for mark in plot.marks],
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def phases_svg(times_s: Mapping[str, Mapping[str, float]]) -> str:
    """Return the SVG of the time per phase for the page, without its legend."""
    with mpl.rc_context({**_STYLE, "svg.fonttype": "none"}):
        figure = Figure(figsize=(_PAGE_SIZE_INCHES[0], 0.75 + 0.45 * len(times_s)), layout="constrained")
        draw_phases(figure.subplots(), times_s)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    """Return a figure as an SVG element whose colours and groups the page's style sheet and script can address."""
    text = io.StringIO()
    figure.savefig(
        text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--series-{number})")
    for colour, name in ((INK, "ink"), (MUTED, "muted"), (GRID, "line")):
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r'<g id="(\d+)-(run|band|mean|mark)"', r'<g data-group="\1" class="\2"', svg)
    # Other ids of matplotlib would be repeated in each picture of the page.
    svg = re.sub(r'<g id="(?!m[0-9a-f]{10})[\w.]+"', "<g", svg)
    return re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)


def save_overview(
    plots: Sequence[Plot], times_s: Mapping[str, Mapping[str, float]], title: str, paths: Sequence[Path]
) -> None:
    """Save all plots in one picture, once for each path; the suffix decides the format."""
    count = len(plots) + bool(times_s)
    columns = min(3, max(count, 1))
    rows = max(math.ceil(count / columns), 1)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.3 * columns, 2.9 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, plot in zip(grid.flat, plots, strict=False):
            draw(axes, plot)
            axes.set_title(plot.title)
        for axes in list(grid.flat)[len(plots) :]:
            axes.set_axis_off()
        if times_s:
            axes = grid.flat[len(plots)]
            axes.set_axis_on()
            draw_phases(axes, times_s)
            margin = max(4 - len(times_s), 1) / 2  # few bars in a large panel would be thick
            axes.set_ylim(len(times_s) - 1 + margin, -margin)
            axes.set_title("Time per phase")
            axes.legend(fontsize=7, ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.2))
        if count == 0:
            grid[0][0].text(0.5, 0.5, "no step has finished yet", ha="center", transform=grid[0][0].transAxes)
        handles = {
            line.get_label(): line for axes in grid.flat for line in axes.lines if not line.get_label().startswith("_")
        }
        if len(handles) > 1:
            figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=4, frameon=False)
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        for path in paths:
            figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def save_each(plots: Sequence[Plot], times_s: Mapping[str, Mapping[str, float]], folder: Path) -> list[Path]:
    """Save each plot as a PNG and an SVG file, and return the files."""
    written = []
    with mpl.rc_context(_STYLE):
        for plot in plots:
            figure = Figure(figsize=(4.6, 3.0), layout="constrained")
            axes = figure.subplots()
            draw(axes, plot)
            axes.set_title(plot.title)
            if len(plot.lines) > 1:
                axes.legend(frameon=False, fontsize=8)
            written += _save(figure, folder / re.sub(r"[^\w.@-]", "_", plot.key))
        if times_s:
            figure = Figure(figsize=(4.6, 1.9 + 0.45 * len(times_s)), layout="constrained")
            draw_phases(figure.subplots(), times_s)
            figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
            written += _save(figure, folder / "phases")
    return written


def _save(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".svg")]
    for path in paths:
        with replacing(path) as unfinished:
            figure.savefig(unfinished, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths
