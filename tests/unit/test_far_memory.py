"""Slow distributed memory under its owner: cold pages go there, hot ones come home, nothing falls back."""

from __future__ import annotations

import pytest

from privmem.cluster.assembly import make_plan
from privmem.cluster.audit.under_load import LoadedRun
from privmem.cluster.config import load_config
from privmem.cluster.errors import ConfigError
from privmem.scheduler.isolation import select_designs

DESIGNS = [design.name for design in select_designs("all")]
TEXT = """
schema: 1
name: far
engine: {duration: 20ms, epoch: 500us, slice: 100us}
devices:
  far: {class: slow-distributed, capacity: 4MiB, pooled: true, extent: 128KiB}
hosts:
  - name: h
    cpus: 1
    nodes:
      - {id: 0, memory: {class: dram, capacity: 1MiB}, cpus: [0]}
      - {id: 1, device: far, via: 0, hop: 60, private: true, features: [user_write], owner_demotes: true,
         owner_period: 200us}
    processes:
      - {name: p, think: 2us, workload: {kind: hotset, size: 1536KiB, accesses: 1000000, hot_share: 0.1,
         period_accesses: 4000}}
"""


def run_of(tmp_path, design, *overrides):
    path = tmp_path / "far.yaml"
    path.write_text(TEXT)
    return LoadedRun(make_plan(load_config(path, overrides, design=design)))


@pytest.mark.parametrize("design", DESIGNS)
def test_the_owner_takes_cold_pages_and_brings_hot_ones_home(tmp_path, design):
    """No reclaim and no demotion reach the node, under any design; the owner asks for its own memory."""
    run = run_of(tmp_path, design)
    while not run.engine.done:
        run.epoch()
    (host,) = run.hosts
    count = host.memory.vmstat.count
    assert count["pgdemote_owner"] > count["pgpromote_owner"] > 10
    assert (count["pgdemote_kswapd"], count["pgdemote_direct"], count["pgleak"], count["oom_kill"]) == (
        0,
        0,
        0,
        0,
    )
    node = host.memory.nodes[1]
    assert node.managed_pages - node.free_pages == count["pgdemote_owner"] - count["pgpromote_owner"]
    assert host.programs[0].accesses_done > 5000


def test_hot_pages_are_home_when_the_hot_range_rests(tmp_path):
    run = run_of(tmp_path, "private-zonelist", "hosts.0.processes.0.workload.move_pages=0")
    while not run.engine.done:
        run.epoch()
    (host,) = run.hosts
    before = host.memory.nr_accesses.sum(axis=1)[:2]
    assert before[0] > 8 * before[1]


def test_without_its_owner_nothing_comes(tmp_path):
    run = run_of(tmp_path, "private-zonelist", "hosts.0.nodes.1.owner_demotes=false")
    while not run.engine.done:
        run.epoch()
    (host,) = run.hosts
    assert host.memory.vmstat.count["oom_kill"] == 1
    assert host.memory.nodes[1].managed_pages == 0


def test_an_owner_of_a_public_node_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"owner_demotes: found an owner of a public node"):
        run_of(tmp_path, "private-zonelist", "hosts.0.nodes.1.private=false", "hosts.0.nodes.1.features=[]")
