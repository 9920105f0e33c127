"""The page of cfpo_verl.report in a real headless Chromium: wide and narrow, light and dark."""

import os
import shutil

import pytest
from conftest import skip_unless_ci
from report_runs import HOSTILE, config, metrics, steps, write_dump, write_evaluation, write_run

from cfpo_verl.report.build import collect
from cfpo_verl.report.page import render

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        skip_unless_ci("needs Debian's chromium: `make system-deps` installs it as root")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=os.getuid() != 0)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A page with everything: seeds, a collapse, a run in progress, hostile texts, long names, evaluations."""
    folder = tmp_path_factory.mktemp("page")
    rewards = [0.2 + step / 40 for step in range(20)]
    extra = {"note": "long_value_" * 30, HOSTILE: HOSTILE}
    runs = []
    for loss, seed, values in (
        ("cfpo", 0, rewards),
        ("cfpo", 1, rewards[::-1]),
        ("vanilla", 0, [0.5] * 10 + [0.0] * 10),
    ):
        settings = config(loss, seed, **extra)
        settings["trainer"]["validation_data_dir"] = "validation"
        run = write_run(
            folder / f"{loss}_with_a_long_name_that_has_no_space_in_it_seed{seed}", steps(values, loss), settings
        )
        rows = [
            {"input": f"{n}+1=", "output": f"{n + n % 2}", "gts": f"{n + 1}", "score": float(n % 2)} for n in range(20)
        ]
        rows.append({"input": "needle+1=", "output": f"Needle {HOSTILE}", "gts": "x" * 900, "score": 0.0})
        write_dump(run / "validation", 20, rows)
        runs.append(run)
    runs.append(write_run(folder / "cfpo_just_begun", {1: metrics(1, 0.3)}, config("cfpo", 7, **extra)))
    evaluations = [
        write_evaluation(folder / name, name, run) for name, run in (("eval_cfpo", runs[0]), ("eval_other", None))
    ]
    file = folder / "report.html"
    file.write_text(render(collect([*runs, *evaluations], 100)), encoding="utf-8", errors="replace")
    return file


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in ("light", "dark")], ids="-".join)
def opened(request, browser, page_file, tmp_path):
    """The opened page, and what it asked for or complained of; a screenshot is left in the test's folder."""
    width, scheme = request.param
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=width == "phone")
    page = context.new_page()
    events = []
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("request", lambda asked: events.append(asked.url))
    page.goto(page_file.as_uri())
    yield page, events, scheme
    page.screenshot(path=tmp_path / f"{width}_{scheme}.png", full_page=True)
    context.close()


# For each figure: its size, and how long and wide its lines and bands are.
FIGURES = """figures => figures.map(figure => {
    const svg = figure.querySelector("svg").getBoundingClientRect();
    const found = selector => [...figure.querySelectorAll(selector)];
    return {
        key: figure.id.replace("figure-", ""),
        width: svg.width,
        height: svg.height,
        paths: found("svg .mean > path, svg .band path").map(it => it.getTotalLength()),
        lines: found("svg .mean > path").map(it => it.getBoundingClientRect().width),
        shapes: found("svg path").length,
    };
})"""

# Elements whose right edge is outside the window, other than within what scrolls by itself.
OVERFLOWING = """() => [...document.querySelectorAll("body *")]
    .filter(it => !it.closest(".scroll, nav, svg, [hidden]") && it.getBoundingClientRect().right > innerWidth + 1)
    .map(it => it.outerHTML.slice(0, 100))"""

# The smallest contrast of a text with what is behind it (WCAG 2.1), and that text.
CONTRAST = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const linear = it => it <= 0.03928 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4;
    const luminance = colour => colour.slice(0, 3).map(it => linear(it / 255))
        .reduce((sum, it, place) => sum + it * [0.2126, 0.7152, 0.0722][place], 0);
    const behind = it => {
        const colour = rgb(getComputedStyle(it).backgroundColor);
        return colour[3] === 0 ? behind(it.parentElement) : colour;
    };
    const texts = "h1, h2, h3, p, small, dd, dt, th, td, a, button, .badge, pre, summary, svg text";
    return [...document.querySelectorAll(texts)].map(it => {
        const style = getComputedStyle(it);
        const front = luminance(rgb(it.closest("svg") ? style.fill : style.color));
        const back = luminance(behind(it.closest(".canvas") || it));
        return [(Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05), it.outerHTML.slice(0, 120)];
    }).reduce((a, b) => a[0] < b[0] ? a : b);
}"""

CURVES = ["reward", "validation_arithmetic", "kl", "entropy", "ratio_deviation", "past_optimum", "grad_norm"]
CURVES += ["noise_floor", "noise_floor_p99"]
CURVES += ["response_length", "cut_off", "throughput", "step_time", "pass_at_k_arithmetic"]


def test_every_figure_is_drawn(opened):
    page, _events, _scheme = opened
    found = {it["key"]: it for it in page.eval_on_selector_all("figure", FIGURES)}
    assert set(found) == {*CURVES, "phases"}
    assert found["phases"]["shapes"] >= 6  # three phases of two groups
    for key, it in found.items():
        assert it["width"] > 250, key
        assert it["height"] > 60, key
    for key in CURVES:
        assert len(found[key]["lines"]) == (1 if key.startswith(("ratio", "noise")) else 2), key
        assert min(found[key]["lines"]) > 100, key
        assert min(found[key]["paths"]) > 0, key
    marks = page.locator("#figure-reward .mark path")
    assert [marks.nth(n).bounding_box()["height"] > 50 for n in range(marks.count())] == [True]


def test_nothing_overflows(opened):
    page, _events, _scheme = opened
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(OVERFLOWING) == []
    page.locator("summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_texts_can_be_read_in_both_schemes(opened):
    page, _events, scheme = opened
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    contrast, element = page.evaluate(CONTRAST)
    assert contrast >= 4.5, element


def test_search_filters_and_marks(opened):
    page, _events, _scheme = opened
    cards = page.locator(".response")
    assert cards.count() == 12
    page.locator("#more").click()
    assert cards.count() == 24
    page.locator("#search").fill("NEEDLE taken")
    assert cards.count() == 3
    assert page.locator("#count").inner_text().startswith("3 of ")
    assert page.locator(".response mark").first.inner_text().lower() == "needle"
    # As it was written: shown and not run.
    assert HOSTILE in cards.first.inner_text()
    page.locator("#filter-run").select_option(index=1)
    assert cards.count() == 1
    page.locator("#filter-right").select_option("right")
    assert cards.count() == 0
    page.locator("#search").fill("")
    assert set(page.locator(".response .badge").all_inner_texts()) == {"right"}
    page.locator("#filter-run").select_option("")
    page.locator("#filter-source").select_option("arithmetic")
    assert cards.count() == 6  # three right ones in each of two evaluations


def test_values_are_shown_under_the_pointer_and_groups_can_be_hidden(opened):
    page, _events, _scheme = opened
    canvas = page.locator("#figure-reward .canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    # The last step is at the right edge of the axes.
    page.mouse.move(box["x"] + 0.97 * box["width"], box["y"] + 0.5 * box["height"])
    tooltip = page.locator("#tooltip")
    assert tooltip.inner_text().splitlines()[0] == "step 20"
    assert "vanilla" in tooltip.inner_text()
    # The mean of 0.675 and 0.2, the last rewards of the two seeds.
    assert "0.4375" in tooltip.inner_text()
    line = page.locator('#figure-reward [data-group="1"].mean')
    assert line.is_visible()
    page.locator('[data-toggle="1"]').click()
    assert not line.is_visible()
    assert page.locator('#figure-reward [data-group="0"].mean').is_visible()
    canvas.hover()
    assert "vanilla" not in tooltip.inner_text()


def test_nothing_is_asked_for_run_or_complained_of(opened, page_file):
    page, events, _scheme = opened
    page.locator("#search").fill("needle")
    page.locator("summary").first.click()
    assert events == [page_file.as_uri()]
    assert "taken over" not in page.title()
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_its_policy_stops_a_script_that_is_not_its_own(browser, page_file, tmp_path):
    file = tmp_path / "changed.html"
    file.write_text(page_file.read_text().replace("</main>", "</main><script>document.title = 'taken over'</script>"))
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.locator("script").count() == 3
    assert "taken over" not in page.title()
    page.close()


def test_a_page_of_a_run_that_goes_on_reloads_itself_unless_one_reads(browser, page_file, tmp_path):
    run = page_file.parent / "cfpo_just_begun"
    file = tmp_path / "watched.html"
    file.write_text(render(collect([run, page_file.parent / "eval_other"], 10), refresh_s=0.3))
    page = browser.new_page()
    loads = []
    page.on("load", lambda _page: loads.append(1))
    page.goto(file.as_uri())
    page.wait_for_event("load", timeout=10_000)
    page.locator("#search").fill("7")
    count = len(loads)
    page.wait_for_timeout(1000)
    assert len(loads) == count
    page.close()
