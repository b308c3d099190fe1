"""The overload of a compressed device on Ray, packed and not: the same as on the inline runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from privmem.cluster.assembly import make_plan
from privmem.cluster.config import load_config
from privmem.cluster.engine import Engine, RunResult
from privmem.cluster.plan import Plan
from privmem.cluster.runtime import make_runtime
from privmem.cluster.runtime.base import DEFAULT_BUILD

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_instance")]

OVERLOAD = Path(__file__).parents[1] / "simulation" / "overload.yaml"


def run_on(name: str, plan: Plan, **options: Any) -> RunResult:
    runtime = make_runtime(name, **options)
    try:
        runtime.start(plan, DEFAULT_BUILD)
        engine = Engine(plan, runtime)
        engine.run()
        return engine.result()
    finally:
        runtime.stop()


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Until the contents are incompressible and pages are being lost."""
    return make_plan(load_config(OVERLOAD, ["engine.duration=40ms"]))


@pytest.fixture(scope="module")
def inline(plan: Plan) -> RunResult:
    result = run_on("inline", plan)
    assert result.summary["hosts"]["open"]["vmstat"]["cram_refused_accepted"] > 0
    return result


@pytest.mark.parametrize("pack", [1, 4])
def test_the_overload_is_that_of_inline(plan: Plan, inline: RunResult, pack: int) -> None:
    assert run_on("ray", plan, pack=pack) == inline
