"""The rules of the house, held by the machine: layers, purity, function and module length, the package list."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("scheduler", "nodeagent", "cluster")
FILES = sorted(p for layer in LAYERS for p in (ROOT / layer).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
#: Modules that rules and models must not import: they would bring in the clock, I/O, chance or the
#: environment.
IMPURE = {
    "os",
    "io",
    "time",
    "random",
    "logging",
    "pathlib",
    "socket",
    "subprocess",
    "threading",
    "datetime",
    "secrets",
}
FUNCTION_LINES_MAX = 60
#: Modules of the isolation package that no design owns, and all may build on.
SHARED_BY_DESIGNS = {"__init__", "boot", "claims", "design", "lists", "structural"}
MODULE_LINES_MAX = 600


def name_of(path: Path) -> str:
    return "privmem." + ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports_of(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(path: Path, source: str) -> list[str]:
    """Every broken import rule of one file."""
    me, tree = name_of(path), ast.parse(source)
    banned = {"pickle": "pickle is banned"}
    if me.startswith("privmem.scheduler"):
        banned |= {
            "privmem.nodeagent": "a rule imports a model",
            "privmem.cluster": "a rule imports the emulator",
        }
    if me.startswith("privmem.nodeagent"):
        banned |= {"privmem.cluster": "a model imports the emulator"}
    if not me.startswith("privmem.cluster"):
        banned |= dict.fromkeys(IMPURE, "rules and models are pure")
    if me.startswith("privmem.nodeagent.host"):
        banned["privmem.nodeagent.device"] = "hosts and devices meet only through messages"
    if me.startswith("privmem.nodeagent.device"):
        banned["privmem.nodeagent.host"] = "hosts and devices meet only through messages"
    if me != "privmem.cluster.runtime.on_ray":
        banned["ray"] = "ray is imported by the Ray runtime alone"
    designs = {p.stem for p in (ROOT / "scheduler/isolation").glob("*.py")} - SHARED_BY_DESIGNS
    if path.parent.name == "isolation" and path.stem in designs:
        for other in designs - {path.stem}:
            banned[f"privmem.scheduler.isolation.{other}"] = "isolation designs do not know each other"
    bad = [
        f"{path.name} imports {name}: {why}"
        for name in sorted(imports_of(tree))
        for prefix, why in banned.items()
        if name == prefix or name.startswith(prefix + ".")
    ]
    if not me.startswith("privmem.cluster"):
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("hash", "open", "print")
            ):
                bad.append(f"{path.name}:{node.lineno} calls {node.func.id}()")
    return bad


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_and_length(path: Path) -> None:
    source = path.read_text()
    assert violations(path, source) == []
    assert len(source.splitlines()) <= MODULE_LINES_MAX
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []
    if path.name != "__init__.py" or source.strip():
        assert ast.get_docstring(ast.parse(source)), "no module docstring"


_MEET = "hosts and devices meet only through messages"


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("scheduler/x.py", "import time", "time: rules and models are pure"),
        (
            "scheduler/x.py",
            "import privmem.nodeagent.buddy",
            "privmem.nodeagent.buddy: a rule imports a model",
        ),
        ("nodeagent/host/x.py", "import privmem.nodeagent.device.y", f"privmem.nodeagent.device.y: {_MEET}"),
        ("cluster/engine.py", "import ray", "ray: ray is imported by the Ray runtime alone"),
        ("cluster/checkpoint.py", "import pickle", "pickle: pickle is banned"),
    ],
)
def test_a_broken_rule_is_seen(path: str, source: str, expected: str) -> None:
    assert violations(ROOT / path, source) == [f"{Path(path).name} imports {expected}"]


def test_an_impure_call_is_seen() -> None:
    assert violations(ROOT / "nodeagent/x.py", "hash(1)") == ["x.py:1 calls hash()"]


def test_every_package_is_listed() -> None:
    """An unlisted sub-package is missing from the wheel, and an editable install hides it."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {name_of(p.parent / "x")[: -len(".x")] for p in FILES if p.name == "__init__.py"}
    assert listed == folders | {"privmem.configs"}
    for folder in folders:
        assert (ROOT / Path(*folder.split(".")[1:]) / "py.typed").exists(), f"{folder} has no py.typed"


def test_tests_do_not_sleep() -> None:
    sleeping = [
        str(p.relative_to(ROOT)) for p in TESTS if p != Path(__file__) and "time.sleep(" in p.read_text()
    ]
    assert sleeping == []
