"""Whole runs of hosts that overload a pool: refusals that they handle, no hang, no loss, and the same again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privmem.cluster.assembly import make_plan
from privmem.cluster.config import load_config
from privmem.cluster.engine import Engine, RunResult
from privmem.cluster.plan import Plan
from privmem.cluster.runtime.base import DEFAULT_BUILD
from privmem.cluster.runtime.inline import InlineRuntime
from privmem.scheduler.pool_shares import GIVE_BACK_POLICIES

POOLS = Path(__file__).with_name("pools.yaml")
PAGES = 512  # of each host's process


def plan_of(*overrides: str, seed: int | None = None) -> Plan:
    return make_plan(load_config(POOLS, overrides, seed))


def engine_of(plan: Plan) -> tuple[Engine, InlineRuntime]:
    runtime = InlineRuntime()
    runtime.start(plan, DEFAULT_BUILD)
    return Engine(plan, runtime, validate=True), runtime


def run(plan: Plan) -> RunResult:
    engine, runtime = engine_of(plan)
    engine.run()
    result = engine.result()
    runtime.stop()
    return result


def pool_of(result: RunResult) -> dict:
    return result.summary["scheduler"]["devices"]["pool"]


def used_pages(host: dict) -> int:
    return sum(node["present_pages"] - node["free_pages"] for node in host["nodes"].values())


def assert_nothing_lost(result: RunResult) -> None:
    """Every host has every page that its process touched, and nobody was killed."""
    for host in result.summary["hosts"].values():
        assert used_pages(host) == host["vmstat"]["pgfault"] - host["vmstat"]["numa_hint_faults"]
        assert [host["vmstat"][e] for e in ("oom_kill", "extent_kill", "extent_pages_lost")] == [0, 0, 0]
        assert host["vmstat"]["extents_requested"] > 0
    held = {name: n["nodes"][1]["present_pages"] for name, n in result.summary["hosts"].items()}
    assert sum(held.values()) <= pool_of(result)["capacity_pages"]


@pytest.fixture(scope="module")
def overload() -> RunResult:
    return run(plan_of())


def test_overload_uses_every_way_and_loses_nothing(overload):
    pool = pool_of(overload)
    assert all(refusals > 0 for refusals in pool["refused"].values())
    assert pool["partial_grants"] > 0 and pool["reclaims"] > 2 and pool["reclaimed_pages"] > 0
    taken = {name: host["vmstat"]["extents_taken"] for name, host in overload.summary["hosts"].items()}
    assert taken == {"h0": 0, "h1": 4, "h2": 1}
    assert_nothing_lost(overload)


def test_the_same_again(overload):
    assert run(plan_of()).digest == overload.digest
    assert run(plan_of(seed=4)).digest != overload.digest


def test_stopped_and_gone_on_is_the_same(overload):
    plan = plan_of()
    engine, runtime = engine_of(plan)
    for _ in range(45):
        engine.run_epoch()
    kept = engine.snapshot()
    runtime.stop()
    engine, runtime = engine_of(plan)
    engine.restore(kept)
    engine.run()
    assert engine.result().digest == overload.digest
    runtime.stop()


def test_pages_without_a_place_are_lost_by_force_alone_and_each_is_told():
    small = ("hosts.0.nodes.2.memory.capacity=1280KiB", "engine.duration=60ms")
    result = run(plan_of(*small, "devices.pool.removals=[{at: 40ms, host: h1, size: 2MiB}]"))
    hosts = result.summary["hosts"]
    lost = hosts["h1"]["lost_pages"]
    assert hosts["h1"]["vmstat"]["extent_pages_lost"] == len(lost) > 0
    assert all(time_ns == 40_000_000 and nid == 1 for time_ns, nid, *_ in lost)
    assert len({row[4] for row in lost}) == len(lost)
    assert hosts["h1"]["processes"]["hungry"]["killed"]
    assert {name: host["vmstat"]["extent_kill"] for name, host in hosts.items()} == {
        "h0": 0,
        "h1": 1,
        "h2": 0,
    }
    assert pool_of(result)["lost_pages"] == len(lost)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    policy=st.sampled_from(GIVE_BACK_POLICIES),
    weights=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    reserved=st.integers(0, 10),
    request=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_no_overload_hangs_or_loses(policy, weights, reserved, request, seed):
    overrides = [
        f"devices.pool.give_back={policy}",
        f"devices.pool.weights={{h0: {weights[0]}, h1: {weights[1]}, h2: {weights[2]}}}",
        f"devices.pool.reservations={{h0: {64 * reserved}KiB, h1: {64 * reserved}KiB}}",
        f"devices.pool.request={64 * request}KiB",
        "engine.duration=30ms",
        "devices.pool.removals=[{at: 12ms, host: h1, size: 256KiB}]",
    ]
    assert_nothing_lost(run(plan_of(*overrides, seed=seed)))
