"""Whole runs of a small rack: all that the main job promises, on real hosts and devices, inline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from privmem.cluster.assembly import build, make_plan
from privmem.cluster.config import load_config
from privmem.cluster.engine import Engine, RunResult
from privmem.cluster.errors import ConfigError
from privmem.cluster.plan import Plan
from privmem.cluster.reference import SequentialRun
from privmem.cluster.runtime.base import DEFAULT_BUILD
from privmem.cluster.runtime.inline import InlineRuntime
from privmem.cluster.traces import TraceHeader, distinct_rows, write_trace
from privmem.scheduler import plain

RACK = Path(__file__).with_name("rack.yaml")


def rack_plan(*overrides: str, seed: int | None = None) -> Plan:
    return make_plan(load_config(RACK, overrides, seed))


def run(plan: Plan, *, validate: bool = False) -> RunResult:
    runtime = InlineRuntime()
    runtime.start(plan, DEFAULT_BUILD)
    engine = Engine(plan, runtime, validate=validate)
    engine.run()
    result = engine.result()
    runtime.stop()
    return result


@pytest.fixture(scope="module")
def plain_run() -> RunResult:
    return run(rack_plan(), validate=True)


def test_every_way_up_and_down_is_taken(plain_run):
    headline = plain_run.summary["headline"]
    for event in (
        "pgdemote_kswapd",
        "pgdemote_direct",
        "demote_compressed",
        "demote_pooled",
        "pgpromote_success",
        "pgpromote_fence",
        "extents_granted",
    ):
        assert headline[event] > 0, event
    assert all(host["vmstat"]["extents_granted"] > 0 for host in plain_run.summary["hosts"].values())
    ratios = [d["ratio"] for d in plain_run.summary["devices"].values() if d["class"] == "compressed-ram"]
    assert all(ratio > 1.5 for ratio in ratios)
    assert plain_run.summary["accesses"] == 4 * 60000


def test_pages_of_hosts_and_devices_agree(plain_run):
    """What a host has on a storing node is what the device stores for it: none lost, none doubled."""
    on_nodes: dict[str, int] = {}
    for host in plain_run.summary["hosts"].values():
        for node in host["nodes"].values():
            used = node["present_pages"] - node["free_pages"]
            on_nodes[node["device"]] = on_nodes.get(node["device"], 0) + used
    for name, device in plain_run.summary["devices"].items():
        if device["class"] in ("compressed-ram", "slow-distributed"):
            assert device["stored_pages"] == on_nodes[f"device/{name}"]
    pool = plain_run.summary["devices"]["pool"]
    granted = plain_run.summary["scheduler"]["devices"]["pool"]["granted_pages"]
    assert sum(granted.values()) == pool["granted_pages"]


def test_nothing_is_on_a_node_that_its_features_forbid():
    """The compressed node without the feature DEMOTION stays empty, though every other node is full."""
    closed = "hosts.0.nodes.2.features=[reclaim]"
    summary = run(rack_plan(closed), validate=True).summary
    for host in summary["hosts"].values():
        assert host["nodes"][2]["free_pages"] == host["nodes"][2]["present_pages"]
        assert host["vmstat"]["demote_compressed"] == 0
        assert host["vmstat"]["demote_pooled"] > 0


def test_same_seed_same_digest(plain_run):
    again = run(rack_plan())
    assert again.digest == plain_run.digest
    assert again.rounds.pack() == plain_run.rounds.pack()


def test_another_seed_another_digest(plain_run):
    assert run(rack_plan(seed=6)).digest != plain_run.digest


def test_with_one_event_an_epoch_the_engine_is_the_sequential_reference():
    """50 ns hold no more than one access; the rounds then do what a plain loop over time does."""
    small = [f"hosts.0.nodes.{nid}.memory.capacity=256KiB" for nid in (0, 1, 2)]
    plan = replace(rack_plan(*small), epoch_ns=50, duration_ns=250_000)
    runtime = InlineRuntime()
    runtime.start(plan, DEFAULT_BUILD)
    engine = Engine(plan, runtime)
    engine.run()
    reference = SequentialRun(plan, build)
    reference.run()
    assert {name: seat["state"] for name, seat in digested(runtime.snapshots()).items()} == {
        name: plain.digest(state) for name, state in reference.states().items()
    }
    headline = engine.result().summary["headline"]
    assert headline["pgfault"] > 400
    assert headline["extents_granted"] > 0


def digested(snapshots: dict[str, dict]) -> dict[str, dict]:
    return {name: seat | {"state": plain.digest(seat["state"])} for name, seat in snapshots.items()}


#: How far a headline figure may move when the epoch is halved.
EPOCH_BOUND_PERCENT = 10


def test_halving_the_epoch_moves_the_headline_figures_little(plain_run):
    halved = run(rack_plan("engine.epoch=500us")).summary
    whole = plain_run.summary
    moved = {}
    for event in ("pgfault", "demote_compressed", "pgpromote_fence", "pgmigrate_success"):
        before, after = whole["headline"][event], halved["headline"][event]
        moved[event] = 100 * abs(after - before) / before
    before, after = (
        sum(p["time_ns"] for h in s["hosts"].values() for p in h["processes"].values())
        for s in (whole, halved)
    )
    moved["time_ns"] = 100 * abs(after - before) / before
    assert max(moved.values()) < EPOCH_BOUND_PERCENT, moved


def test_where_a_recording_lies_is_not_part_of_a_run(tmp_path):
    """Neither is how its path is spelled; what it holds is."""
    accesses = np.array([page << 1 | 1 for page in range(40)] * 5, dtype=np.uint32)
    digests = []
    for name, first in (("one.pmtrace", 0), ("sub/two.pmtrace", 0), ("three.pmtrace", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        recorded = np.concatenate([accesses, accesses[:first]])
        header = TraceHeader(name="t", nr_pages=40, image_at=(0,))
        write_trace(tmp_path / name, header, recorded, distinct_rows([np.zeros((40, 4096), dtype=np.uint8)]))
        text = RACK.read_text().split("    processes:")[0]
        process = f"{{name: p, workload: {{kind: replay, recording: {name}}}}}"
        (tmp_path / "rack.yaml").write_text(f"{text}    processes: [{process}]\n")
        digests.append(run(make_plan(load_config(tmp_path / "rack.yaml"))).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_trace_without_page_contents_needs_others(tmp_path):
    write_trace(tmp_path / "t.pmtrace", TraceHeader(name="t", nr_pages=4), np.zeros(9, dtype=np.uint32))
    text = RACK.read_text().split("    processes:")[0]
    replay = "workload: {kind: replay, recording: t.pmtrace}"
    rack = tmp_path / "rack.yaml"
    rack.write_text(f"{text}    processes: [{{name: p, {replay}}}]\n")
    with pytest.raises(ConfigError, match=r"found 't\.pmtrace', which holds no pages"):
        make_plan(load_config(rack))
    rack.write_text(f"{text}    processes: [{{name: p, {replay}, content: {{kind: generator}}}}]\n")
    assert run(make_plan(load_config(rack))).summary["accesses"] == 2 * 9


LITERAL = (
    "hosts[h].processes[zipf].content.literal=true",
    "hosts[h].processes[hotset].content.literal=true",
)


def test_literal_pages_take_every_way_and_change_no_figure(plain_run):
    """Bytes go down to the compressed devices and to the pool, and come back; all else is as with descriptions."""
    literal = run(rack_plan(*LITERAL), validate=True)
    for host, described in plain_run.summary["hosts"].items():
        counted = dict(literal.summary["hosts"][host]["vmstat"])
        sent, returned = counted.pop("literal_sent"), counted.pop("literal_returned")
        assert sent > returned > 100
        assert counted.items() <= described["vmstat"].items()
        assert literal.summary["hosts"][host]["nodes"] == described["nodes"]
    for device, described in plain_run.summary["devices"].items():
        for figure in ("ratio", "ratio_in", "used_bytes", "pages_in"):
            assert literal.summary["devices"][device].get(figure) == described.get(figure), (device, figure)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_other_codecs_and_kept_bytes(codec, plain_run):
    """With bytes kept and checked, literal ones of one process among them."""
    memory = "hosts[h].nodes[2].memory"
    made = run(
        rack_plan(f"{memory}.codec={codec}", f"{memory}.keep_bytes=true", LITERAL[0]),
        validate=True,
    )
    assert all(host["vmstat"]["literal_returned"] > 0 for host in made.summary["hosts"].values())
    ratios = [d["ratio"] for d in made.summary["devices"].values() if d["class"] == "compressed-ram"]
    assert all(ratio >= 1 and (ratio > 1.5) == (codec == "zstd") for ratio in ratios)
