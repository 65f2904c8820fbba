"""Who may import whom, read from the sources: no circles, and nothing heavy on the box."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from clipsam.runtime.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime", "export", "research")
# What the box does not have. A backend imports its own library when a session is opened.
HEAVY = {"torch", "torchvision", "onnx", "onnxscript", "open_clip", "segment_anything", "PIL"}
Graph = dict[str, set[str]]


@cache
def sources() -> dict[str, Path]:
    """Every module of the packages: its dotted name without `clipsam`, and its file."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports, also inside functions; `from a import b` gives both."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text()) for name, path in sources().items()}


def module_of(name: str, modules: dict[str, ast.Module]) -> str | None:
    """The module of ours that an imported name is or lies in."""
    name = name.removeprefix("clipsam.")
    return next((n for n in (name, name.rpartition(".")[0]) if n in modules), None)


def graph_of(modules: dict[str, ast.Module]) -> Graph:
    """module -> the modules of ours that it imports."""
    graph: Graph = {}
    for name, tree in modules.items():
        ours = (n for n in imported(tree) if n.startswith("clipsam."))
        graph[name] = {found for n in ours if (found := module_of(n, modules))} - {name}
    return graph


def circle(graph: Graph) -> list[str]:
    """The members of one circle, or nothing."""
    left = {node: set(edges) for node, edges in graph.items()}
    while leaves := [node for node, edges in left.items() if not edges & left.keys()]:
        for node in leaves:
            del left[node]
    if not left:
        return []
    path = [next(iter(left))]  # every node that is left leads on to another
    while (after := next(iter(sorted(left[path[-1]] & left.keys())))) not in path:
        path.append(after)
    return path[path.index(after) :]


def siblings(graph: Graph, parent: str) -> Graph:
    """The graph of what lies directly in the folder `parent` ("": the packages themselves)."""
    inside = f"{parent}." if parent else ""

    def child(name: str) -> str:
        return name.removeprefix(inside).partition(".")[0]

    seen: Graph = {}
    for name, edges in graph.items():
        if name.startswith(inside):
            others = {child(edge) for edge in edges if edge.startswith(inside)}
            seen.setdefault(child(name), set()).update(others - {child(name)})
    return seen


def folders() -> list[str]:
    parents = {path.parent.relative_to(ROOT) for path in sources().values()}
    return ["", *sorted(".".join(parent.parts) for parent in parents)]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(trees())


def test_no_files_import_each_other_in_a_circle(graph: Graph) -> None:
    assert len(graph) > 100
    assert circle(graph) == []


@pytest.mark.parametrize("parent", folders())
def test_no_siblings_of_a_folder_import_each_other_in_a_circle(graph: Graph, parent: str) -> None:
    assert circle(siblings(graph, parent)) == []


def test_the_runtime_imports_neither_research_nor_export(graph: Graph) -> None:
    wrong = {
        (name, edge)
        for name, edges in graph.items()
        for edge in edges
        if name.partition(".")[0] == "runtime" != edge.partition(".")[0]
    }
    assert wrong == set()


def test_the_runtime_imports_nothing_heavy_not_even_inside_a_function() -> None:
    wrong = {
        (name, other)
        for name, tree in trees().items()
        if name.partition(".")[0] == "runtime"
        for other in imported(tree)
        if other.partition(".")[0] in HEAVY
    }
    assert wrong == set()


def test_every_command_is_a_module_with_a_main() -> None:
    for command in COMMANDS.values():
        assert callable(importlib.import_module(f"clipsam.{command.module}").main)


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("import clipsam.b", {"b"}),
        ("from clipsam.b import thing", {"b"}),
        ("from clipsam import b", {"b"}),
        ("def f():\n    from clipsam.b import thing", {"b"}),
        ("import numpy\nname = 'clipsam.b'", set()),
    ],
)
def test_the_check_sees_an_import(code: str, seen: set[str]) -> None:
    modules = {"a": ast.parse(code), "b": ast.parse("")}
    assert graph_of(modules)["a"] == seen


def test_the_check_finds_circles() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    looped: Graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert sorted(circle(looped)) == ["a", "b", "c"]
    across: Graph = {"p.x.m": {"p.y.n"}, "p.y.n": set(), "p.y.o": {"p.x.k"}, "p.x.k": set()}
    assert circle(across) == []  # no files, but the folders
    assert sorted(circle(siblings(across, "p"))) == ["x", "y"]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_files_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.{},-]*)`", (ROOT / page).read_text())
    missing = []
    for name in named:
        start, _, rest = name.partition("{")
        choices, _, end = rest.partition("}")
        for choice in choices.split(","):
            made = "NAME" in name or name.startswith("build/")
            if not made and not (ROOT / f"{start}{choice}{end}").exists():
                missing.append(f"{start}{choice}{end}")
    assert len(named) > 5
    assert missing == []
