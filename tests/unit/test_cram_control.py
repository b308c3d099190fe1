"""The service in a run: what a driver does with its device's reports, states, and how long its worker takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privmem.nodeagent.host import written
from privmem.nodeagent.host.costs import SWAP_WRITE_NS
from privmem.nodeagent.host.cram import control, in_place
from privmem.nodeagent.host.cram.service import CramNode, Generation
from privmem.nodeagent.host.drivers.cramdax import CramDax
from privmem.nodeagent.host.fault import FAULT_SIGBUS, handle_fault
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.nodeagent.host.swap import swapon
from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.messages import CapacityReport

D, C = 0, 1
F1, F3 = "private-zonelist", "private-zonelist-per-node"
SLICE_NS = 250_000
PAGEOUT = 21


class Bench:
    """A host with 2048 pages of compressed RAM whose device shows twice what it has."""

    def __init__(self, design: str, resident: int = 0) -> None:
        boot = [NodeBoot(D, 4096, cpus=(0,)), NodeBoot(C, 2048, kind="compressed-ram", by_device=True)]
        knobs = Sysctl(NumaBalancing(mode=0), demotion_enabled=False)
        self.kernel = Kernel(boot, ((10, 20), (20, 10)), design, knobs)
        self.memory = self.kernel.memory
        swapon(self.memory, 4096)
        assert CramDax(self.kernel, C, 2000).write("state", "online") == 0
        self.cram.controlled = True
        self.process = self.kernel.spawn()
        self.addr = self.process.mmap(max(1, resident) * PAGE_SIZE)
        if resident:
            self.process.touch(self.addr, resident * PAGE_SIZE, write=True)
            self.process.madvise(self.addr, resident * PAGE_SIZE, PAGEOUT)
        self.memory.nodes[C].credit_pages = 1000
        self.now_ns = 0
        self.memory.take_charge()

    @property
    def cram(self) -> CramNode:
        return self.memory.cram.nodes[C]

    def hear(self, **numbers: Any) -> None:
        fields = {"count": 0, "room_pages": 500, "capacity_pages": 2048, "ratio": 2000, "used_bytes": 0}
        report = CapacityReport("d", 0, **(fields | {"low": False} | numbers))
        control.hear(self.memory, self.memory.nodes[C], report)

    def slice(self) -> None:
        self.memory.now_ns = self.now_ns
        control.work(self.memory, self.now_ns, self.now_ns + SLICE_NS, lambda nid: False)
        self.now_ns += SLICE_NS

    @property
    def state(self) -> control.State:
        return control.state_of(self.memory, self.cram)


def test_room_is_what_the_report_says_less_what_has_come_since():
    bench = Bench(F1)
    node = bench.memory.nodes[C]
    node.unacknowledged_pages = 70
    bench.hear(count=60, room_pages=40)
    assert (node.store_room_pages, bench.state) == (30, control.State.NORMAL)
    node.unacknowledged_pages += 30
    assert bench.state is control.State.REFUSING


@pytest.mark.parametrize(
    ("ratio", "real", "target"), [(2000, 2000, 0), (9000, 2000, 0), (1500, 1500, 512), (750, 1000, 1024)]
)
def test_f1_goes_by_the_ratio_and_closes_until_the_balloon_has_its_size(ratio, real, target):
    bench = Bench(F1)
    bench.hear(ratio=ratio)
    assert (bench.cram.real_ratio, bench.cram.target_pages) == (real, target)
    assert bench.state is (control.State.CLOSED if target else control.State.NORMAL)
    bench.slice()  # free pages are taken at once
    assert bench.cram.balloon_pages == target
    assert bench.state is (control.State.PRESSURE if target else control.State.NORMAL)
    bench.hear(ratio=2000)
    bench.slice()
    assert (bench.cram.balloon_pages, bench.state) == (0, control.State.NORMAL)
    bench.kernel.validate()


def test_f3_goes_by_the_capacity_and_is_withdrawn_while_the_device_is_low():
    bench = Bench(F3)
    bench.hear(capacity_pages=1600)
    bench.slice()
    assert (bench.cram.balloon_pages, bench.state) == (512, control.State.PRESSURE)
    bench.hear(capacity_pages=1600, low=True)
    assert bench.state is control.State.CLOSED and not bench.cram.gate.alloc_allowed
    bench.hear(capacity_pages=2048)
    bench.slice()
    assert (bench.cram.balloon_pages, bench.state) == (0, control.State.NORMAL)


@pytest.mark.parametrize("design", [F1, F3])
def test_the_worker_takes_as_long_as_its_writes_to_swap(design):
    bench = Bench(design, resident=2000)
    filled = bench.memory.nodes[C].managed_pages - bench.memory.nodes[C].free_pages
    assert filled > 1900
    bench.process.madvise(bench.addr, PAGE_SIZE, PAGEOUT)
    fill_general_memory(bench)
    bench.hear(ratio=1500, capacity_pages=1500, low=True)
    bench.slice()
    swapped = bench.memory.vmstat.count["pswpout"]
    first = bench.cram.balloon_pages
    assert swapped > 0 and bench.cram.busy_until_ns >= swapped * SWAP_WRITE_NS > SLICE_NS
    assert bench.memory.charge_ns == 0  # nobody else pays
    while bench.now_ns + SLICE_NS < bench.cram.busy_until_ns:
        bench.slice()
    assert (bench.memory.vmstat.count["pswpout"], bench.cram.balloon_pages) == (swapped, first)
    for _ in range(400):
        bench.slice()
    assert bench.cram.balloon_pages >= 512
    bench.kernel.validate()


def fill_general_memory(bench: Bench) -> None:
    """So that occupants of a block find no other place."""
    free = bench.memory.nodes[D].free_pages - bench.memory.nodes[D].wmark.high_pages
    other = bench.kernel.spawn()
    addr = other.mmap(free * PAGE_SIZE)
    other.touch(addr, free * PAGE_SIZE, write=True)
    bench.memory.take_charge()
    bench.memory.vmstat.count["pswpout"] = 0


def test_time_counts_in_the_state_of_each_slice():
    bench = Bench(F1)
    bench.slice()
    bench.hear(ratio=1500)
    bench.slice()
    bench.slice()
    bench.memory.nodes[C].credit_pages = 0
    bench.slice()
    assert bench.cram.state_ns == [SLICE_NS] * 4  # normal, closed, pressure, refusing
    assert bench.cram.usable_least_pages == 1536
    assert control.sample(bench.memory, bench.cram)["closed_ns"] == SLICE_NS


def test_a_refused_page_is_lost_and_its_frame_is_out_of_use():
    bench = Bench(F1, resident=40)
    task = bench.process.task
    vpn = bench.addr // PAGE_SIZE + 3
    slot = task.mm.find(vpn).slot_of(vpn)
    node = bench.memory.nodes[C]
    pfn = int(bench.memory.page_table.pte[slot]) >> PTE_PFN_SHIFT
    rows = control.lose(bench.memory, node, np.array([pfn - node.start_pfn], np.int32))
    assert rows == [
        [bench.memory.now_ns, C, pfn - node.start_pfn, slot, int(bench.memory.frames.version[pfn])]
    ]
    assert handle_fault(bench.memory, task, vpn, is_write=False) == FAULT_SIGBUS
    assert bench.memory.high_order.poisoned == {pfn: 1}
    assert bench.memory.vmstat.count["cram_refused_accepted"] == 1
    assert in_place.uncontrolled(bench.memory) == []
    bench.kernel.validate()


def test_written_pages_take_the_phase_of_the_time_of_the_look():
    bench = Bench(F1, resident=8)
    memory = bench.memory
    slot = bench.process.task.mm.vmas[0].slot
    region = memory.page_table.find(slot)
    memory.page_table.content_phases = {region.source: [1000, 2000]}
    pfns = (memory.page_table.pte[slot : slot + 3] >> PTE_PFN_SHIFT).astype(np.int64)
    before = memory.frames.version[pfns].tolist()
    memory.now_ns = 1500
    written.advance(memory, pfns, np.array([1, 0, 1], np.uint16))
    expected = [(1 << 12) + before[0] + 1, before[1], (1 << 12) + before[2] + 1]
    assert memory.frames.version[pfns].tolist() == expected
    memory.now_ns = 2000
    written.advance(memory, pfns[:1], np.ones(1, np.uint16))
    assert int(memory.frames.version[pfns[0]]) == (2 << 12) + before[0] + 2


def test_its_state_survives_a_snapshot():
    bench, other = Bench(F1), Bench(F1)
    bench.hear(ratio=1500)
    bench.slice()
    other.memory.restore(bench.memory.snapshot())
    assert other.cram == bench.cram and other.memory.cram.generation is Generation.F1
    assert other.cram.state_ns == [0, 0, SLICE_NS, 0]
