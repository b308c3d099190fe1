"""Programs that deal with devices: a GPU's driver moves and pins, message buffers, on one small host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from privmem.cluster.assembly import make_plan
from privmem.cluster.config import load_config
from privmem.cluster.engine import Engine
from privmem.cluster.errors import ConfigError
from privmem.cluster.runtime.base import DEFAULT_BUILD
from privmem.cluster.runtime.inline import InlineRuntime
from privmem.nodeagent.host import pins
from privmem.nodeagent.host.host import Host
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PRESENT
from privmem.scheduler import plain

TEXT = """
schema: 1
name: devices
engine: {duration: 500ms, epoch: 1ms, slice: 100us}
devices:
  pool: {class: gpu, capacity: 1MiB, pooled: true, extent: 64KiB}
hosts:
  - name: h
    cpus: 1
    nodes:
      - {id: 0, memory: {class: dram, capacity: 2MiB}, cpus: [0]}
      - {id: 1, memory: {class: gpu, capacity: 512KiB}, private: true, via: 0, hop: 30,
         features: [user_numa, user_write, migration, longterm_pin]}
      - {id: 2, memory: {class: nic, capacity: 256KiB}, private: true, features: [user_write], via: 0, hop: 20}
      - {id: 3, memory: {class: nic, capacity: 256KiB}, private: true, features: [user_write], via: 0, hop: 40}
      - {id: 4, device: pool, private: true, features: [user_write], via: 0, hop: 50}
    processes: [{name: p, workload: %s}]
"""
GPU = "{kind: gpu, node: 1, size: 512KiB, window: 128KiB, dma: 64KiB, launches: 6, launch_accesses: 500}"
MESSAGES = (
    "{kind: messages, node: 2, size: 64KiB, messages: 400, message: 8KiB, in_flight: 4, "
    "burst: 40, burst_every: 200}"
)


class Rig:
    """An engine on the host, epoch by epoch, recounted after each."""

    def __init__(
        self, folder: Path, workload: str, design: str = "", overrides: tuple[str, ...] = ()
    ) -> None:
        path = folder / "devices.yaml"
        path.write_text(TEXT % workload)
        self.plan = make_plan(load_config(path, overrides, design=design or None))
        self.runtime = InlineRuntime()
        self.runtime.start(self.plan, DEFAULT_BUILD)
        self.engine = Engine(self.plan, self.runtime, validate=True)

    @property
    def host(self) -> Host:
        host = self.runtime.seats["host/h"].participant
        assert isinstance(host, Host)
        return host

    @property
    def vm(self) -> dict[str, int]:
        return self.host.memory.vmstat.count

    @property
    def figures(self) -> dict[str, Any]:
        return self.host.summary()["processes"]["p"]["calls"]

    def used(self) -> dict[int, int]:
        nodes = self.host.memory.nodes.values()
        return {node.nid: node.managed_pages - node.free_pages for node in nodes}

    def until(self, condition) -> None:
        while not condition(self):
            assert not self.engine.done
            self.engine.run_epoch()

    def nids(self) -> list[int]:
        """The node of each page of the program; -1 where there is none."""
        memory, program = self.host.memory, self.host.programs[0]
        entries = memory.page_table.pte[program.slot : program.slot + program.stream.nr_pages].tolist()
        return [memory.frames.nid_of(e >> PTE_PFN_SHIFT) if e & PTE_PRESENT else -1 for e in entries]


@pytest.fixture
def rig(tmp_path):
    def make(workload: str, design: str = "", *overrides: str) -> Rig:
        return Rig(tmp_path, workload, design, overrides)

    return make


# -- a GPU


def test_the_driver_moves_the_part_of_each_launch_onto_its_node_and_back(rig):
    r = rig(GPU, "caps", "engine.epoch=20us", "engine.slice=20us")
    r.until(lambda r: 1 in r.nids()[:32])
    assert r.nids() == [1] * 32 + [-1] * 96 + [1] * 16
    r.until(lambda r: 1 in r.nids()[32:64])
    assert r.nids() == [0] * 32 + [1] * 32 + [-1] * 64 + [1] * 16
    r.engine.run()
    assert r.nids() == [0] * 128 + [1] * 16
    assert r.figures == {
        "launches": 6,
        "pages_in": 6 * 32,
        "pages_back": 6 * 32,
        "pages_left_out": 0,
        "dma_pinned_on_node": 16,
        "dma_pinned_elsewhere": 0,
    }
    assert r.host.programs[0].accesses_done == 6 * (500 + 2 * 32)
    assert (r.vm["driver_migrate_in"], r.vm["driver_migrate_back"], r.vm["pgleak"]) == (192, 192, 0)


@pytest.mark.parametrize(
    ("design", "in_place"),
    [
        ("gfp-private", 16),
        ("no-fallback", 16),
        ("caps", 16),
        ("private-zonelist", 0),
        ("private-zonelist-per-node", 0),
    ],
)
def test_dma_buffers_are_pinned_on_the_node_where_the_design_has_the_bit(rig, design, in_place):
    r = rig(GPU, design)
    r.until(lambda r: r.figures["launches"])
    assert (r.figures["dma_pinned_on_node"], r.figures["dma_pinned_elsewhere"]) == (in_place, 16 - in_place)
    assert r.vm["longterm_pin_fail"] == 16 - in_place
    dma = r.nids()[128:]
    assert dma == [1 if in_place else 0] * 16
    memory = r.host.memory
    assert len(memory.high_order.pins) == 16
    assert all(pins.is_pinned(memory, pfn) for pfn in memory.high_order.pins)
    r.engine.run()
    assert memory.high_order.pins == {}
    assert (r.vm["nr_foll_pin_acquired"], r.vm["nr_foll_pin_released"]) == (16, 16)


def test_pages_without_room_on_the_node_stay_out(rig):
    """The node has 128 pages: 32 are behind its min watermark, 16 are pinned, so 80 of a window of 128 fit."""
    r = rig(GPU.replace("window: 128KiB", "window: 512KiB"), "caps")
    r.engine.run()
    assert r.figures["pages_left_out"] == r.vm["driver_migrate_fail"] == 6 * 48
    assert r.figures["pages_in"] == r.figures["pages_back"] == 6 * 80


def test_a_process_that_exits_leaves_nothing_pinned(rig):
    r = rig(GPU, "caps", "hosts.0.processes.0.stop=2ms")
    r.until(lambda r: r.host.programs[0].exited)
    assert r.host.memory.high_order.pins == {}
    assert r.used() == dict.fromkeys(range(5), 0)


def test_numa_balancing_leaves_the_node_alone(rig):
    knobs = ("hosts.0.sysctl.numa_balancing=1", "hosts.0.sysctl.numa_balancing_scan_period_min=1ms")
    r = rig(GPU, "caps", *knobs)
    r.engine.run()
    assert r.vm["numa_pte_updates"] > 0
    assert r.vm["numa_pages_migrated"] == 0
    assert r.figures["pages_back"] == 6 * 32


def test_a_pooled_node_gets_its_extents_in_the_midst_of_a_call(rig):
    """The call is made again where the pool has answered: nothing is moved or pinned twice."""
    r = rig(GPU.replace("node: 1", "node: 4"), "caps")
    r.until(lambda r: r.figures["launches"])
    assert r.vm["extents_granted"] > 0
    assert r.vm["nr_foll_pin_acquired"] == 16
    r.engine.run()
    # Nobody opted in to pins there: the driver took the DMA buffers back as well.
    assert (r.figures["pages_in"], r.figures["pages_back"]) == (6 * 32, 6 * 32 + 16)
    assert r.figures["dma_pinned_elsewhere"] == 16


# -- messages


def test_messages_are_on_the_device_and_a_burst_overflows_to_local_memory_only(rig):
    r = rig(MESSAGES, "", "engine.epoch=100us", "engine.slice=50us")
    r.until(lambda r: r.figures["messages"] > 60)
    assert r.used()[2] == 4 * 2
    r.engine.run()
    by_node = r.figures["buffers_by_node"]
    assert by_node.keys() == {0, 2}
    assert sum(by_node.values()) == 400 * 2
    # 48 pages are above the min watermark, 24 messages: in each of two bursts 16 of two pages are elsewhere.
    assert by_node[0] == r.vm["netbuf_fallback"] == 2 * 16 * 2
    assert by_node[2] == r.vm["netbuf_device"]
    assert r.figures["messages_in_flight_max"] == 40
    assert r.vm["allocstall"] == r.vm["pgleak"] == 0
    assert r.used() == {0: 16, 1: 0, 2: 0, 3: 0, 4: 0}


def test_a_device_without_memory_has_its_messages_in_local_memory(rig):
    r = rig(MESSAGES.replace("node: 2, ", ""))
    r.engine.run()
    assert r.figures["buffers_by_node"] == {0: 800}


def test_nothing_ever_goes_the_other_way(rig):
    """Local memory is full before the device's is, and a program is killed rather than given a buffer's node."""
    small = MESSAGES.replace("size: 64KiB", "size: 4MiB").replace("messages: 400", "messages: 2000")
    r = rig(small)
    r.engine.run()
    assert r.vm["oom_kill"] == 1
    assert r.used() == dict.fromkeys(range(5), 0)
    assert r.host.memory.nr_accesses[1:].sum() == 0


def test_a_message_that_no_memory_is_left_for_is_dropped(rig):
    r = rig(MESSAGES.replace("burst: 40", "burst: 190").replace("message: 8KiB", "message: 16KiB"))
    r.engine.run()
    dropped = r.figures["messages_dropped"]
    assert dropped == r.vm["netbuf_fail"] > 0
    assert sum(r.figures["buffers_by_node"].values()) == 4 * (400 - dropped)
    assert r.used() == {0: 16, 1: 0, 2: 0, 3: 0, 4: 0}


# -- both


@pytest.mark.parametrize("workload", [GPU, GPU.replace("node: 1", "node: 4"), MESSAGES])
def test_a_snapshot_goes_on_where_it_was_taken(rig, workload):
    one = rig(workload, "caps", "engine.epoch=100us")
    one.until(lambda r: r.engine.epoch == 13)
    snapshot = plain.unpack(*plain.pack(one.engine.snapshot()))
    one.engine.run()
    other = rig(workload, "caps", "engine.epoch=100us")
    other.engine.restore(snapshot)
    other.engine.run()
    assert other.engine.digest() == one.engine.digest()


@pytest.mark.parametrize(
    ("workload", "said"),
    [
        (GPU.replace("node: 1", "node: 0"), "node: found 0, not a private node of this host; allowed: 1, 2, 3, 4"),
        (GPU.replace("dow: 128KiB", "dow: 96KiB"), "window: found 96KiB; allowed: a part of the size, 512KiB"),
        (GPU.replace("dma: 64KiB", "dma: 5KiB"), "dma: found 5KiB; allowed: a multiple of the 4KiB page"),
        (GPU.replace("size: 512KiB", "size: 511KiB"), "size: found 511KiB; allowed: a multiple of the 4KiB page"),
        (MESSAGES.replace("burst: 40", "burst: 201"), "burst: found 201 messages; allowed: at most every 200"),
        (MESSAGES.replace("node: 2", "node: 9"), "node: found 9, not a private node of this host"),
        (MESSAGES.replace("message: 8KiB", "message: 5000B"), "message: found 5000B; allowed: a multiple of"),
    ],
)  # fmt: skip
def test_mistakes_are_named(rig, workload, said):
    with pytest.raises(ConfigError) as caught:
        rig(workload)
    assert f"hosts.0.processes.0.workload.{said}" in str(caught.value)
