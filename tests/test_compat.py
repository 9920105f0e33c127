"""cfpo_verl.compat: which versions are accepted, and that everything we use of verl and vLLM is there."""

import ast
import json
from importlib.metadata import version
from pathlib import Path

import pytest

from cfpo_verl import compat
from cfpo_verl.compat import UnsupportedAntlrError, UnsupportedVerlError, Use, check_antlr_version, check_verl_version

PACKAGE = Path(compat.__file__).parent


@pytest.mark.parametrize("version", ["0.9.1", "0.9.2", "0.9.10"])
def test_accepts_the_tested_range(version):
    assert check_verl_version(version) == version


@pytest.mark.parametrize("version", ["0.9.0", "0.10.0", "0.10.0.dev0", "1.0"])
def test_refuses_other_versions_naming_the_range(version):
    with pytest.raises(UnsupportedVerlError, match=rf"verl {version} is not supported.*<0.10,>=0.9.1.*pip install"):
        check_verl_version(version)


@pytest.mark.parametrize(("installed", "is_right"), [("4.9.3", True), ("4.7.2", False), ("4.13.2", False)])
def test_antlr(monkeypatch, installed, is_right):
    monkeypatch.setattr(compat, "version", lambda _name: installed)
    if is_right:
        check_antlr_version()
    else:
        with pytest.raises(UnsupportedAntlrError, match=rf"antlr4-python3-runtime is {installed}, and Hydra's parser"):
            check_antlr_version()


@pytest.fixture(scope="module")
def described():
    """The description of the installed packages, from a fresh process as `python -m cfpo_verl.compat` makes it."""
    return compat._described_by_subprocess(None)


def test_everything_that_we_use_is_there(described):
    assert described["missing"] == []
    assert described["verl"] == version("verl")
    assert set(described["uses"]) == {use.key for use in compat.USES}


def test_every_import_of_ours_is_listed():
    """A use that is not in the list is one that an upgrade breaks unseen."""
    listed = {(use.module, use.attribute.split(".")[0]) for use in compat.USES}
    unlisted = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("verl", "vllm"):
                # `from package import module` names a module of which something is listed.
                unlisted += [
                    f"{path.name}: {node.module}.{name.name}"
                    for name in node.names
                    if (node.module, name.name) not in listed
                    and not any(module == f"{node.module}.{name.name}" for module, _attribute in listed)
                ]
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names if name.name.split(".")[0] in ("verl", "vllm")]
                unlisted += [f"{path.name}: {name}" for name in names if name not in {module for module, _ in listed}]
    assert unlisted == []


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (Use("json", "dumpz", "x", "y"), "json.dumpz: module 'json' has no attribute 'dumpz'"),
        (Use("no_such_module", "f", "x", "y"), "No module named 'no_such_module'"),
        (Use("json", "loads.__wrapped__", "x", "y"), "has no attribute '__wrapped__'"),
        (Use("os.path", "join", "x", "y", ("a", "b")), "os.path.join: no parameter b in"),
        (Use("json", "", "x", "y", word="yaml_loads"), "json mentions yaml_loads: it does not"),
    ],
)
def test_what_is_gone_is_named(use, message):
    with pytest.raises(LookupError) as error:
        compat.describe(use)
    assert message in str(error.value)
    _described, missing = compat.describe_all([use])
    assert missing[0].endswith("(used by cfpo_verl.x: y)")


def test_signatures():
    assert compat.describe(Use("json", "loads", "x", "y", ("cls", "anything"))).startswith("(s, cls, ")  # takes any
    assert compat.describe(Use("sys", "path", "x", "y")) == "list"


def test_what_changed():
    before = {"a": "(x)", "b": "(x)", "c": "int"}
    assert compat.compare(before, {"a": "(x, y)", "c": "int"}) == ["a was (x), is (x, y)"]


def test_another_verl_in_a_folder(tmp_path, monkeypatch, capsys):
    """Two descriptions as the fresh processes give them: the newer verl lacks one thing and has another changed."""
    first, second, *others = [use.key for use in compat.USES]
    now = dict.fromkeys((first, second, *others), "(x)")
    newer = {**now, second: "(x, y)"}
    newer.pop(first)
    answers = {None: {"verl": "0.9.1", "uses": now, "missing": []}}
    answers[str(tmp_path)] = {"verl": "0.11.0", "uses": newer, "missing": [f"{first}: gone away"]}
    monkeypatch.setattr(compat, "_described_by_subprocess", answers.__getitem__)
    assert compat.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert f"verl 0.11.0: {len(now) - 1} of {len(now)} uses are there" in printed
    assert f"gone: {first}: gone away" in printed
    assert f"{second} was (x), is (x, y)" in printed
    assert compat.main([]) == 0


def test_a_folder_comes_first(tmp_path):
    """A verl in a folder, of which nothing is left but its name."""
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").write_text("")
    (tmp_path / "verl-0.99.0.dist-info").mkdir()
    (tmp_path / "verl-0.99.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: verl\nVersion: 0.99.0\n")
    found = json.loads(json.dumps(compat._described_by_subprocess(str(tmp_path))))
    assert found["verl"] == "0.99.0"
    assert any("verl.trainer.ppo.core_algos.agg_loss" in line for line in found["missing"])
    assert any("experiment=cpu_quickstart does not compose" in line for line in found["missing"])
