"""No module imports, directly or through others, a module that imports it."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import PACKAGE_FILES, PROJECT

from cfpo_verl.cli import COMMANDS


def module_of(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path.read_text() for path in PACKAGE_FILES}


def imports(name: str, tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield (importer, imported) for every import, those inside functions and for type checkers included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            # Runs in a module of another name, which nobody imports.
            yield from imports(f"{name}.__main__", ast.Module(node.body, []))
        elif isinstance(node, ast.Import):
            yield from ((name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((name, f"{node.module}.{alias.name}") for alias in node.names)
        else:
            yield from imports(name, node)


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    found = defaultdict(set)
    for name, source in sources.items():
        for importer, imported in imports(name, ast.parse(source)):
            # What is imported is a module, or a name in one.
            module = imported if imported in sources else imported.rpartition(".")[0]
            if module in sources and module != name:
                found[importer].add(module)
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Return the modules of a circle, first and last the same; empty if there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def test_modules_import_each_other_in_one_direction():
    edges = graph(SOURCES)
    # The table of commands imports by name.
    edges["cfpo_verl.cli"] |= {entry.module for entry in COMMANDS.values()}
    assert len(edges) > 100
    assert {"cfpo_verl.doctor", "cfpo_verl.composing"} <= edges["cfpo_verl.train"]
    found = circle(edges)
    assert found == [], " -> ".join(found)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("from a import x", {"a", "b"}),
        ("def f():\n    import a", {"a", "b"}),
        ("if TYPE_CHECKING:\n    from a import X", {"a", "b"}),
        ("if __name__ == '__main__':\n    from a import x", set()),
        ("import c", set()),
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(second, expected):
    assert set(circle(graph({"a": "from b import y", "b": second, "c": ""}))) == expected
