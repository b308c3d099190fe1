"""The pytest plugin that comes with privmem: litmus files as tests, and fixtures for tests of placement rules.

def test_nothing_spills(privmem_machine):
    machine = privmem_machine("standard", design="caps")
    assert machine.do("A: set_mempolicy bind P") is None

def test_nobody_dies(privmem_run):
    summary = privmem_run("rack.yaml", overrides=["engine.duration=10ms"]).summary
    assert summary["headline"]["oom_kill"] == 0

Files named `*.litmus.yaml`, and every `*.yaml` below a folder `litmus`, are collected: one test a file and
design, of the designs of `--privmem-design` those that the file is about. Nothing of privmem is imported before it
is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from privmem.cluster.api import Emulation
    from privmem.cluster.litmus import Script
    from privmem.cluster.litmus.bench import Bench

SUFFIX = ".litmus.yaml"
FOLDER = "litmus"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--privmem-design`."""
    parser.getgroup("privmem").addoption(
        "--privmem-design",
        default="all",
        metavar="NAMES",
        help="isolation designs of litmus tests, with commas between; all (default): one of each family; every",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse designs that do not exist before anything is collected."""
    if config.getoption("privmem_design") != "all":
        _designs(config)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Litmus files; not the machines that lie beside them."""
    if file_path.suffix != ".yaml":
        return None
    root = parent.config.rootpath
    inside = file_path.relative_to(root) if file_path.is_relative_to(root) else Path(*file_path.parts[-2:])
    folders = inside.parts[:-1]
    if not file_path.name.endswith(SUFFIX) and (FOLDER not in folders or "machines" in folders):
        return None
    collector: pytest.Collector = LitmusFile.from_parent(parent, path=file_path)
    return collector


class LitmusFile(pytest.File):
    """One litmus file: a test for each design that it is about."""

    def collect(self) -> Iterator[LitmusTest]:
        from privmem.cluster.errors import ConfigError
        from privmem.cluster.litmus import load_script
        from privmem.cluster.litmus.runner import applies

        try:
            script = load_script(self.path)
        except ConfigError as error:
            raise self.CollectError(str(error)) from None
        for design in _designs(self.config):
            if applies(script, design):
                yield LitmusTest.from_parent(self, name=design, script=script)


class LitmusFailure(Exception):
    """A litmus test did not hold; the text gives every reason."""


class LitmusTest(pytest.Item):
    """One litmus file under one design."""

    def __init__(self, *, script: Script, **options: Any) -> None:
        super().__init__(**options)
        self.script = script

    def runtest(self) -> None:
        """Run it."""
        from privmem.cluster.litmus import run_script

        result = run_script(self.script, self.name)
        if result.reasons:
            result = run_script(self.script, self.name, story=True)
            lines = [f"{self.script.title} [{self.name}]"]
            for reason, story in zip(result.reasons, result.stories, strict=True):
                lines += [reason, *(f"  | {line}" for line in story)]
            raise LitmusFailure("\n".join(lines))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The reasons alone; a traceback only for what should not happen."""
        if isinstance(excinfo.value, LitmusFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where and what."""
        return self.path, 0, f"{self.path.name} [{self.name}]"


def _designs(config: pytest.Config) -> list[str]:
    from privmem.scheduler.isolation import select_designs

    try:
        return [design.name for design in select_designs(config.getoption("privmem_design"))]
    except KeyError as error:
        raise pytest.UsageError(f"--privmem-design: {error.args[0]}") from None


@pytest.fixture
def privmem_machine() -> Iterator[Callable[..., Bench]]:
    """`privmem.cluster.litmus.bench.Bench`: machines of litmus tests, for tests in Python. All state of each is
    recounted when the test is over.
    """
    from privmem.cluster.litmus.bench import Bench

    made: list[Bench] = []

    def boot(machine: Any = "standard", design: str = "private-zonelist") -> Bench:
        made.append(Bench(machine, design))
        return made[-1]

    yield boot
    for bench in made:
        bench.validate()


@pytest.fixture(scope="session")
def privmem_run() -> Callable[..., Emulation]:
    """`privmem.cluster.run`, inline, with every invariant recounted after each epoch."""
    from privmem.cluster.api import run

    def run_checked(config: Any, **options: Any) -> Emulation:
        return run(config, **{"validate": True, **options})

    return run_checked


@pytest.fixture(scope="session")
def privmem_ray() -> Iterator[Callable[..., Emulation]]:
    """The same on one private local Ray instance, started once for the session and stopped after it."""
    from privmem.cluster.api import run
    from privmem.cluster.runtime.on_ray import private_instance

    with private_instance():

        def run_on_ray(config: Any, **options: Any) -> Emulation:
            return run(config, **{"runtime": "ray", **options})

        yield run_on_ray
