"""cfpo_verl.upstream: everything that we use of verl, vLLM and the private parts of others is there."""

import ast
import json
from importlib.metadata import version

import pytest
from conftest import PACKAGE_FILES, PROJECT
from typer.testing import CliRunner

from cfpo_verl import upstream
from cfpo_verl.upstream import Use


@pytest.fixture(scope="module")
def described():
    """The description of the installed packages, from a fresh process as `python -m cfpo_verl.compat` makes it."""
    return upstream._described_by_subprocess(None)


def test_everything_that_we_use_is_there(described):
    assert described["missing"] == []
    assert described["verl"] == version("verl")
    assert set(described["uses"]) == {use.key for use in upstream.USES}


def test_every_import_of_ours_is_listed():
    """A use that is not in the list is one that an upgrade breaks unseen."""
    listed = {(use.module, use.attribute.split(".")[0]) for use in upstream.USES}
    unlisted = []
    for path in PACKAGE_FILES:
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


def test_every_private_name_of_others_is_listed():
    """A module or an attribute with an underscore, of a package that is not ours."""
    listed = {use.key for use in upstream.USES}
    found = set()
    for path in [*PACKAGE_FILES, *(PROJECT / "benchmarks").glob("*.py")]:
        tree = ast.parse(path.read_text())
        modules = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("cfpo_verl", "benchmarks")):
                names = {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
            elif isinstance(node, ast.Import):
                names = {name.asname or name.name: name.name for name in node.names}
            else:
                continue
            modules |= names
            found |= {name for name in names.values() if is_private(name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and isinstance(node.value, ast.Name):
                found |= {f"{modules[node.value.id]}.{node.attr}"} if node.value.id in modules else set()
    found.discard("os._exit")  # public, and documented
    assert {name for name in found if not any(key.startswith(name) for key in listed)} == set()
    assert {"multiprocessing.forkserver._forkserver", "ray._private.utils.get_num_cpus"} <= found


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


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
        upstream.describe(use)
    assert message in str(error.value)
    _described, missing = upstream.describe_all([use])
    assert missing[0].endswith("(used by cfpo_verl.x: y)")


def test_signatures():
    assert upstream.describe(Use("json", "loads", "x", "y", ("cls", "anything"))).startswith("(s, cls, ")  # takes any
    assert upstream.describe(Use("sys", "path", "x", "y")) == "list"


def test_what_changed():
    before = {"a": "(x)", "b": "(x)", "c": "int"}
    assert upstream.compare(before, {"a": "(x, y)", "c": "int"}) == ["a was (x), is (x, y)"]


def test_another_verl_in_a_folder(tmp_path, monkeypatch):
    """Two descriptions as the fresh processes give them: the newer verl lacks one thing and has another changed."""
    first, second, *others = [use.key for use in upstream.USES]
    now = dict.fromkeys((first, second, *others), "(x)")
    newer = {**now, second: "(x, y)"}
    newer.pop(first)
    answers = {None: {"verl": "0.9.1", "uses": now, "missing": []}}
    answers[tmp_path] = {"verl": "0.11.0", "uses": newer, "missing": [f"{first}: gone away"]}
    monkeypatch.setattr(upstream, "_described_by_subprocess", answers.__getitem__)
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").write_text("")
    result = CliRunner().invoke(upstream.app, [str(tmp_path)])
    assert result.exit_code == 1
    printed = result.stdout
    assert f"verl 0.11.0: {len(now) - 1} of {len(now)} uses are there" in printed
    assert f"gone: {first}: gone away" in printed
    assert f"{second} was (x), is (x, y)" in printed
    assert CliRunner().invoke(upstream.app, []).exit_code == 0


def test_a_folder_without_verl_is_refused(tmp_path):
    """It would compare the installed verl with itself."""
    result = CliRunner().invoke(upstream.app, [str(tmp_path)])
    assert result.exit_code == 2
    assert f"{tmp_path}: no package verl here" in result.stderr


def test_a_folder_comes_first(tmp_path):
    """A verl in a folder, of which nothing is left but its name."""
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").write_text("")
    (tmp_path / "verl-0.99.0.dist-info").mkdir()
    (tmp_path / "verl-0.99.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: verl\nVersion: 0.99.0\n")
    found = json.loads(json.dumps(upstream._described_by_subprocess(tmp_path)))
    assert found["verl"] == "0.99.0"
    assert any("verl.trainer.ppo.core_algos.agg_loss" in line for line in found["missing"])
    assert any("experiment=cpu_quickstart does not compose" in line for line in found["missing"])


@pytest.mark.parametrize("use", upstream.USES, ids=lambda use: use.key)
def test_a_use_names_modules_that_exist_and_mention_it(use):
    """Whoever adapts to another version looks there."""
    # BucketedWeightReceiver of BucketedWeightReceiver.__init__.
    named = [name for name in use.attribute.split(".") if not name.startswith("__")]
    mentioned = (named[-1], use.module.removesuffix(".__main__"))
    for where in use.where.split(", "):
        place = PROJECT / ("" if where.startswith("benchmarks.") else "cfpo_verl") / where.replace(".", "/")
        files = [place.with_name(f"{place.name}.py"), place.with_name(f"{place.name}.yaml"), place / "__init__.py"]
        texts = [file.read_text() for file in files if file.is_file()]
        assert texts, f"no module {where}"
        if use.attribute:
            assert any(name in text for name in mentioned for text in texts), f"{where} does not mention {use.key}"
