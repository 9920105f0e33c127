"""What the docs draw and promise is what the code does."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import verl  # noqa: F401 - loads the plugin
from conftest import PROJECT
from test_cli import LOADED, as_words, help_of

from cfpo_verl import __version__, config
from cfpo_verl.config_groups import names

DOCS = PROJECT / "docs"
# What no help text or page needs to say, and what to write instead (CONTRIBUTING.md, "Style").
UNIDIOMATIC = {
    r"so many": "a number, or its name",
    r"for ever": "forever, for good",
    r"go(es)? on": "continue, resume, keep running",
    r"without a word": "silently",
    r"is whole|whole (checkpoint|run)": "complete",
    r"held against": "compared with, checked against",
    r"hand(s|ed)? on": "pass on, export",
    r"of whose": "one of whose, or another sentence",
    r"(that|where) there is not": "unknown, missing",
    r"to be seen": "visible, shown",
}
PAGES = sorted([*PROJECT.glob("*.md"), *DOCS.glob("*.md"), *PROJECT.glob("examples/**/*.md")])


@pytest.fixture(scope="module")
def drawing():
    return runpy.run_path(str(DOCS / "draw_losses.py"))


def test_curves_have_the_known_weights(drawing):
    ratios = np.array([0.5, 1.0, 1.2, 2.0])

    def weights(name, advantage):
        return drawing["curve"](drawing["LOSSES"][name], advantage, ratios)[1]

    assert weights("CFPO, epsilon 0.2", 1.0) == pytest.approx([3.5, 1, 0, -4])
    assert weights("CFPO, epsilon 0.2", -1.0) == pytest.approx([-1.5, 1, 2, 6])
    assert weights("CFPO, linear tail from 0.4", 1.0) == pytest.approx([3, 1, 0, -1])
    assert weights("PPO clipping, 0.2", 1.0)[[0, 1, 3]] == pytest.approx([1, 1, 0])
    # w = sech(tau (r - 1) / 2)**2
    assert weights("SAPO, tau 1 and 1.05", 1.0) == pytest.approx(1 / np.cosh((ratios - 1) / 2) ** 2)
    assert weights("DRPO, delta 0.1, p_old 0.1", 1.0) == pytest.approx([1.5, 1, 0.8, 0])


def test_the_picture_is_drawn(drawing, tmp_path):
    drawing["draw"](tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_names_every_loss_and_metric():
    page = (DOCS / "losses.md").read_text()
    for loss in names("policy_loss"):
        assert f"| `{loss}` |" in page
    reported = re.findall(r'"((?:actor|cfpo)/\w+)": ', Path(config.__file__).read_text())
    assert len(reported) == 12
    documented = set(re.findall(r"^\| `(actor/[\w/]+)` \|", page, flags=re.MULTILINE))
    # The last one is the adapter's own, for every loss.
    assert documented == {name if name.startswith("actor/") else f"actor/{name}" for name in reported} | {
        "actor/cfpo/skipped_frac"
    }


def unidiomatic(text):
    words = " ".join(text.split())
    return [
        f"{match[0]!r}: write {instead}"
        for pattern, instead in UNIDIOMATIC.items()
        for match in re.finditer(rf"\b({pattern})\b", words, flags=re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_pages_are_idiomatic(page):
    before, style_note, after = page.read_text().partition("| instead of | write |")
    if style_note:  # quotes what not to write on the left
        after = re.sub(r"^\| [^|]+", "", after, flags=re.MULTILINE)
    assert unidiomatic(before + after) == []


@pytest.mark.parametrize("words", [(), *(words for words, _ in LOADED)], ids=as_words)
def test_help_is_idiomatic(words):
    assert unidiomatic(help_of(*words)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]*)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], target


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## (.*)", (PROJECT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    dated = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", version) for version in versions]
    assert all(dated), versions
    assert dated[0][1] == __version__
    assert sorted(dates := [match[2] for match in dated], reverse=True) == dates


def test_the_page_on_own_losses_quotes_the_example():
    page = (DOCS / "extending.md").read_text()
    quoted = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)```$", page, flags=re.MULTILINE | re.DOTALL))
    assert len(quoted) == page.count("```") // 2 - 1  # all but the commands
    example = DOCS.parent / "examples" / "own_loss"
    assert quoted == {path: (example / path).read_text() for path in quoted}
    files = {path.relative_to(example).as_posix() for path in example.rglob("*.*") if "__" not in str(path)}
    assert quoted.keys() == files - {"README.md"}
