"""Whole runs in which a compressed device overflows: nothing is lost or written in place while stores are
controlled, pages are lost when they are not, and the service goes through its states and back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privmem.cluster.assembly import make_plan
from privmem.cluster.config import load_config
from privmem.cluster.engine import Engine, RunResult
from privmem.cluster.plan import Plan
from privmem.cluster.runtime.base import DEFAULT_BUILD
from privmem.cluster.runtime.inline import InlineRuntime
from privmem.cluster.workloads import open_stream
from privmem.nodeagent.device.device import Device
from privmem.nodeagent.host import literal
from privmem.nodeagent.host.host import Host
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD, PTE_PRESENT
from privmem.nodeagent.host.swap_area import swap_entries

OVERLOAD = Path(__file__).with_name("overload.yaml")
SERVED = ("balloon", "capacity")
MS_NS = 1_000_000
#: When contents turn incompressible.
CHANGE_NS = 25 * MS_NS


def engine_of(plan: Plan, validate: bool = False) -> tuple[Engine, InlineRuntime]:
    runtime = InlineRuntime()
    runtime.start(plan, DEFAULT_BUILD)
    return Engine(plan, runtime, validate=validate), runtime


def plan_of(*overrides: str) -> Plan:
    return make_plan(load_config(OVERLOAD, overrides))


def edited(tmp_path: Path, hosts: list[str], **more: Any) -> Plan:
    """The plan of some of its hosts, with other fields of the file; `more` of `node` go into compressed nodes."""
    config = yaml.safe_load(OVERLOAD.read_text())
    config["hosts"] = [host for host in config["hosts"] if host["name"] in hosts]
    for host in config["hosts"]:
        host["nodes"][1] |= more.get("node", {})
        host["processes"][0] |= more.get("process", {})
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(config | more.get("run", {})))
    return make_plan(load_config(file))


class Run:
    """A run that is over, with its participants."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        engine, self.runtime = engine_of(plan)
        engine.run()
        self.result: RunResult = engine.result()
        self.rows = [row for sample in engine.samples if sample.table == "cram" for row in sample.rows]

    def host(self, name: str) -> Host:
        return self.runtime.seats[f"host/{name}"].participant

    def device(self, name: str) -> Device:
        return self.runtime.seats[f"device/{name}.n1"].participant

    def summary(self, name: str) -> dict[str, Any]:
        return self.result.summary["hosts"][name]

    def service(self, name: str) -> dict[str, Any]:
        return self.summary(name)["nodes"][1]["service"]

    def series(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["host"] == f"host/{name}"]


@pytest.fixture(scope="module")
def overload() -> Run:
    return Run(plan_of())


def touched_pages(run: Run, name: str) -> np.ndarray:
    """Pages of the program that it accessed: what its stream gives, as far as it came."""
    program = run.host(name).programs[0]
    spec = next(entry.spec for entry in run.plan.participants if entry.name == f"host/{name}")
    accesses = np.zeros(program.accesses_done, dtype=np.uint32)
    assert open_stream(spec["streams"][0], {}).fill(accesses) == len(accesses)
    return np.unique(accesses >> 1)


def mapped_pages(run: Run, name: str) -> np.ndarray:
    """Pages that have a frame, or a slot of the swap area."""
    host = run.host(name)
    slot = host.programs[0].slot
    entries = host.memory.page_table.pte[slot : slot + host.programs[0].stream.nr_pages]
    there = entries & np.uint32(PTE_PRESENT) != 0
    there[swap_entries(entries)] = True
    return np.flatnonzero(there)


@pytest.mark.parametrize("name", SERVED)
def test_the_service_loses_no_page(overload, name):
    assert np.array_equal(mapped_pages(overload, name), touched_pages(overload, name))
    assert len(touched_pages(overload, name)) > 2000
    vmstat = overload.summary(name)["vmstat"]
    assert [vmstat[e] for e in ("cram_refused_accepted", "sigbus", "oom_kill", "cram_oom")] == [0] * 4
    control = overload.device(name).control
    assert (control.refused_pages, control.refused_accepted_pages) == (0, 0)


@pytest.mark.parametrize("name", [*SERVED, "open"])
def test_the_device_holds_what_the_host_says_is_there(overload, name):
    memory = overload.host(name).memory
    node = memory.nodes[1]
    flags = memory.frames.flags[node.start_pfn : node.start_pfn + node.spec.span_pages]
    dpa = np.flatnonzero(flags & (PG_ALLOCATED | PG_HELD) == PG_ALLOCATED)
    source, index = literal.described(memory, dpa + node.start_pfn)
    store = overload.device(name).store
    kept = [column.tolist() for column in store.load(dpa)[:3]]
    assert kept == [source.tolist(), index.tolist(), memory.frames.version[dpa + node.start_pfn].tolist()]
    assert store.stored_pages == len(dpa) > 1000


@pytest.mark.parametrize("name", SERVED)
def test_no_page_is_written_in_place_behind_the_fence(overload, name):
    nodes = overload.summary(name)["nodes"]
    assert (nodes[1]["writes"], overload.service(name)["written_in_place_pages"]) == (0, 0)
    assert nodes[1]["reads"] > 0 and overload.summary(name)["vmstat"]["pgpromote_fence"] > 1000


@pytest.mark.parametrize("name", SERVED)
def test_it_goes_through_its_states_and_back(overload, name):
    service, rows = overload.service(name), overload.series(name)
    spent_ns = [service[f"{state}_ns"] for state in ("normal", "pressure", "closed", "refusing")]
    assert all(spent_ns) and sum(spent_ns) == 110 * MS_NS
    before = [row for row in rows if row["time_ns"] <= CHANGE_NS]
    assert {row["usable_pages"] for row in before} == {1536}
    assert before[-1]["pressure_ns"] == before[-1]["closed_ns"] == 0
    assert service["usable_least_pages"] <= 1536 * 45 // 100
    assert rows[-1]["usable_pages"] == 1536 and rows[-1]["balloon_pages"] == 0
    assert (
        rows[-1]["pressure_ns"] == rows[-5]["pressure_ns"] and rows[-1]["closed_ns"] == rows[-5]["closed_ns"]
    )


@pytest.mark.parametrize("name", SERVED)
def test_it_overcommits_and_never_uses_more_than_there_is(overload, name):
    rows, physical = overload.series(name), 2 << 20
    assert max(row["resident_pages"] for row in rows) * 4096 > 2.5 * physical
    assert max(row["device_used_bytes"] for row in rows) < physical


def test_writes_in_place_lose_pages(overload):
    host, control = overload.summary("open"), overload.device("open").control
    lost = host["vmstat"]["cram_refused_accepted"]
    assert lost == control.refused_accepted_pages == len(host["lost_pages"]) > 50
    assert control.refused_pages == 0  # what came anew had room: only what was accepted was refused
    assert host["nodes"][1]["writes"] > 10_000 and host["vmstat"]["sigbus"] > 50
    assert all(time_ns > CHANGE_NS and row[:2] == [1, "tenant"] for time_ns, *row in told(host))
    assert overload.service("open")["write_control"] is False


def told(host: dict[str, Any]) -> list[list[Any]]:
    """[time_ns, node, process] of what was lost."""
    return [[time_ns, nid, process] for time_ns, nid, _, process, *_ in host["lost_pages"]]


def test_who_touches_a_lost_page_and_does_not_handle_it_is_killed(tmp_path):
    run = Run(edited(tmp_path, ["open"], process={"sigbus": "kill"}))
    host = run.summary("open")
    assert host["processes"]["tenant"]["killed"] and host["vmstat"]["sigbus"] == 1
    assert not run.host("open").memory.page_table.pte[1:].any()


def test_literal_pages_come_back_byte_for_byte(tmp_path):
    content = yaml.safe_load(OVERLOAD.read_text())["hosts"][0]["processes"][0]["content"]
    run = Run(edited(tmp_path, ["balloon"], process={"content": content | {"literal": True}}))
    vmstat = run.summary("balloon")["vmstat"]
    assert vmstat["literal_sent"] == vmstat["demote_compressed"] > 5000
    # A page that came back with other bytes ends the run; the last ones are still on their way.
    assert vmstat["literal_returned"] > 0.9 * (
        vmstat["literal_sent"] - run.device("balloon").store.stored_pages
    )
    assert run.device("balloon").control.refused_accepted_pages == 0


def test_the_first_generation_by_two_thresholds(tmp_path):
    features = ["reclaim", "demotion", "migration", "numa_balancing"]
    node = {"service": "v4", "features": features}
    run = Run(edited(tmp_path, ["balloon"], node=node, run={"design": "gfp-private"}))
    service = run.service("balloon")
    assert (
        service["closed_ns"] > 0 and service["pressure_ns"] == 0
    )  # its driver knows full pressure, and none
    assert {row["pressure"] for row in run.series("balloon")} == {0, 1000}
    assert run.series("balloon")[-1]["pressure"] == 0
    assert np.array_equal(mapped_pages(run, "balloon"), touched_pages(run, "balloon"))
    assert run.summary("balloon")["nodes"][1]["writes"] == 0


def test_the_same_again_and_stopped_and_gone_on(overload):
    plan = plan_of()
    engine, runtime = engine_of(plan, validate=True)
    for _ in range(18):  # in the midst of it: balloons are filling, pages were lost
        engine.run_epoch()
    kept = engine.snapshot()
    runtime.stop()
    engine, runtime = engine_of(plan)
    engine.restore(kept)
    engine.run()
    assert engine.result().digest == overload.result.digest
    runtime.stop()


@pytest.mark.full
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    service=st.sampled_from(["F1", "F3"]),
    epoch_us=st.sampled_from([500, 1000, 2000, 5000]),
    low=st.integers(10, 400),
    threads=st.integers(1, 6),
    writes=st.integers(0, 1000),
    random_bytes=st.integers(0, 4096),
    seed=st.integers(0, 1000),
)
def test_no_overload_loses_under_write_control(
    tmp_path_factory, service, epoch_us, low, threads, writes, random_bytes, seed
):
    """Whatever the device's reserve, the period of its reports, and what the program does."""
    config = yaml.safe_load(OVERLOAD.read_text())
    name = {"F1": "balloon", "F3": "capacity"}[service]
    (host,) = config["hosts"] = [host for host in config["hosts"] if host["name"] == name]
    config |= {"seed": seed, "engine": {"duration": "60ms", "epoch": f"{epoch_us}us", "slice": "250us"}}
    host["nodes"][1]["memory"] |= {"low_threshold": low / 1000, "high_threshold": low / 1000 + 0.1}
    host["processes"][0]["threads"] = threads
    host["processes"][0]["workload"]["write_share"] = writes / 1000
    host["processes"][0]["content"]["random_bytes"] = random_bytes
    file = tmp_path_factory.mktemp("overload") / "c.yaml"
    file.write_text(yaml.safe_dump(config))
    run = Run(make_plan(load_config(file)))
    assert np.array_equal(mapped_pages(run, name), touched_pages(run, name))
    vmstat = run.summary(name)["vmstat"]
    assert [vmstat[e] for e in ("cram_refused_accepted", "sigbus", "oom_kill", "cram_oom")] == [0] * 4
    assert run.device(name).control.refused_pages == 0
    assert run.summary(name)["nodes"][1]["writes"] == 0
