"""Every class of memory at once on Ray, packed and not: the digest of the inline run."""

from __future__ import annotations

from pathlib import Path

import pytest

from privmem.cluster.assembly import make_plan
from privmem.cluster.config import load_config
from privmem.cluster.engine import Engine, RunResult
from privmem.cluster.plan import Plan
from privmem.cluster.runtime import make_runtime
from privmem.cluster.runtime.base import DEFAULT_BUILD

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_instance")]

CONFIG = Path(__file__).parents[2] / "configs" / "experiments" / "all_classes.yaml"


def result_on(name: str, plan: Plan, **options: int) -> RunResult:
    runtime = make_runtime(name, **options)
    try:
        runtime.start(plan, DEFAULT_BUILD)
        engine = Engine(plan, runtime)
        engine.run()
        return engine.result()
    finally:
        runtime.stop()


@pytest.mark.parametrize(("design", "pack"), [("caps", 1), ("private-zonelist-per-node", 4)])
def test_digest_and_counters_are_those_of_inline(design: str, pack: int) -> None:
    plan = make_plan(load_config(CONFIG, ["engine.duration=12ms"], design=design))
    assert result_on("ray", plan, pack=pack) == result_on("inline", plan)
