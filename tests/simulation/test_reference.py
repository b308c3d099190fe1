"""With one event per epoch the engine's rounds must give what a plain sequential run gives."""

from __future__ import annotations

import fake_rack
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.cluster.engine import Engine
from privmem.cluster.plan import Plan
from privmem.cluster.reference import SequentialRun
from privmem.cluster.runtime.inline import InlineRuntime
from privmem.scheduler import plain


def by_engine(plan: Plan) -> dict[str, str]:
    runtime = InlineRuntime()
    runtime.start(plan, fake_rack.BUILD)
    Engine(plan, runtime).run()
    return {name: plain.digest(seat["state"]) for name, seat in runtime.snapshots().items()}


def sequentially(plan: Plan) -> dict[str, str]:
    run = SequentialRun(plan, fake_rack.build)
    run.run()
    return {name: plain.digest(state) for name, state in run.states().items()}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1 << 62), hosts=st.integers(1, 5))
def test_one_event_per_epoch_equals_the_sequential_run(seed: int, hosts: int) -> None:
    # The fake hosts have one event in each gap of 100 ns.
    plan = fake_rack.make_plan(seed=seed, hosts=hosts, events=30, gap_ns=100, epoch_ns=100)
    assert by_engine(plan) == sequentially(plan)


def test_many_events_per_epoch_differ() -> None:
    """So the test above can fail: what a device reports at the end of an epoch steers the fake hosts."""
    short, long = (fake_rack.make_plan(epoch_ns=epoch_ns) for epoch_ns in (100, 1000))
    assert by_engine(short) != by_engine(long)
