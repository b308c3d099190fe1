"""The driver of a GPU whose memory is a private node on a coherent link, as a program that computes there sees it.

Models what such drivers do with `migrate_vma_setup`, `migrate_vma_pages` (mm/migrate_device.c, Linux 6.1) and the
owner's allocation call: before a kernel is launched the part of the buffers that it works on moves onto the node,
afterwards back to where the task's policy puts it (`migrate_to_ram`); pages for which there is no room stay. DMA
buffers are allocated on the node and pinned there with FOLL_LONGTERM; where the isolation design has no such pin
the driver takes them back, and they are pinned in ordinary memory. Left out: the GPU's own page tables and faults,
its caches, command queues; a kernel's accesses cost what they cost the task's CPU over the link.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from privmem.nodeagent.host import pins
from privmem.nodeagent.host.costs import FAULT_NS
from privmem.nodeagent.host.drivers.owner import owner_context
from privmem.nodeagent.host.fault import handle_fault, map_page
from privmem.nodeagent.host.layout import PG_LRU, PG_OBJECT, PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import migrate_cost_ns, move_to_frames
from privmem.nodeagent.host.mm import Vma
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import Reason
from privmem.scheduler.errors import InvariantError

#: After the last call there is none before any access.
NO_CALL = 1 << 62
FIGURES = (
    "launches",
    "pages_in",
    "pages_back",
    "pages_left_out",
    "dma_pinned_on_node",
    "dma_pinned_elsewhere",
)


class GpuCalls:
    """What one program asks of the driver, in order: set up, then before and after each launch, then tear down.

    `spec`: nid; window_pages and buffer_pages, the part of a launch and all of them; dma_pages behind them;
    launches, launch_accesses. The stream `gpu` of `cluster/workloads` makes the accesses in between: it fills the
    part, runs the kernel on it, and reads it.
    """

    def __init__(self, spec: dict[str, Any], name: str, task: Task, base_vpn: int) -> None:
        self.spec = spec
        self.name = name
        self.task = task
        self.base_vpn = base_vpn
        self.nid: int = spec["nid"]
        #: How many of the calls were made.
        self.number = 0
        self.figures = dict.fromkeys(FIGURES, 0)

    @property
    def next_at(self) -> int:
        """Before which access the next call comes: 0, and so on; NO_CALL when there is none."""
        spec = self.spec
        period = 2 * spec["window_pages"] + spec["launch_accesses"]
        launch, is_back = divmod(self.number - 1, 2)
        if self.number == 0:
            return 0
        if launch < spec["launches"]:
            return int(launch * period + spec["window_pages"] + is_back * spec["launch_accesses"])
        return int(launch * period) if not is_back else NO_CALL

    def call(self, memory: Memory) -> int:
        """Make the next call; the time that it takes. May raise NeedsExtent: then it is simply made again."""
        memory.lru_batches.drain_all()
        launch, is_back = divmod(self.number - 1, 2)
        if self.number == 0:
            self._set_up(memory)
        elif launch == self.spec["launches"]:
            self.release(memory)
        elif is_back:
            self._migrate(memory, *self._window(launch), away=True)
        else:
            self._launch(memory, launch)
        self.number += 1
        return memory.take_charge()

    def release(self, memory: Memory) -> None:
        """The device file is closed: nothing is pinned any more."""
        pins.unpin_user_pages(memory, self.task)

    # -- the calls

    def _set_up(self, memory: Memory) -> None:
        """DMA buffers on the node, pinned; in ordinary memory where they may not be pinned on it."""
        start, nr_pages = self.base_vpn + self.spec["buffer_pages"], self.spec["dma_pages"]
        if not nr_pages:
            return
        for vpn in range(start, start + nr_pages):
            if self._frame_at(memory, vpn) < 0:
                self._dma_page(memory, vpn)
        done = pins.pin_user_pages(memory, self.task, start, nr_pages)
        if done < 0:
            memory.vmstat.add("longterm_pin_fail", nr_pages)
            self._migrate(memory, start, nr_pages, away=True)
            done = pins.pin_user_pages(memory, self.task, start, nr_pages)
        nids = [memory.frames.nid_of(self._frame_at(memory, start + n)) for n in range(max(done, 0))]
        self.figures["dma_pinned_on_node"] = nids.count(self.nid)
        self.figures["dma_pinned_elsewhere"] = len(nids) - nids.count(self.nid)

    def _dma_page(self, memory: Memory, vpn: int) -> None:
        """One page of a DMA buffer: on the node, or where the task's policy says when the node is full."""
        pfn = alloc_page(memory, self._owner_context(memory))
        if pfn < 0:
            memory.charge_ns += max(0, handle_fault(memory, self.task, vpn, is_write=True))
            return
        map_page(memory, self._vma(vpn).slot_of(vpn), pfn, writable=True, dirty=True)
        memory.charge_ns += FAULT_NS

    def _launch(self, memory: Memory, launch: int) -> None:
        start, nr_pages = self._window(launch)
        self._migrate(memory, start, nr_pages, away=False)
        left = nr_pages - self._on_node(memory, start, nr_pages)
        memory.vmstat.add("driver_migrate_fail", left)
        self.figures["launches"] += 1
        self.figures["pages_left_out"] += left

    def _window(self, launch: int) -> tuple[int, int]:
        """(first page, pages) that a launch works on."""
        pages = self.spec["window_pages"]
        return self.base_vpn + launch % (self.spec["buffer_pages"] // pages) * pages, pages

    def _on_node(self, memory: Memory, start: int, nr_pages: int) -> int:
        frames = [self._frame_at(memory, vpn) for vpn in range(start, start + nr_pages)]
        return sum(pfn >= 0 and memory.frames.nid_of(pfn) == self.nid for pfn in frames)

    def _migrate(self, memory: Memory, start: int, nr_pages: int, *, away: bool) -> None:
        """Move what is there of these pages onto the node, or `away` from it, as far as there is room. On
        NeedsExtent those that have a new frame have moved; the call, made again, finds the others.
        """
        left = [
            (vpn, pfn)
            for vpn in range(start, start + nr_pages)
            if (pfn := self._frame_at(memory, vpn)) >= 0
            and (memory.frames.nid_of(pfn) == self.nid) == away
            and memory.frames.flags[pfn] & (PG_LRU | PG_OBJECT) == PG_LRU
        ]
        for _, pfn in left:
            memory.lru_del(pfn)
        pairs: list[tuple[int, int]] = []
        try:
            for vpn, pfn in left:
                away_context = self.task.alloc_context(self._vma(vpn), vpn) if away else None
                new = alloc_page(memory, away_context or self._owner_context(memory))
                if new < 0:
                    break
                pairs.append((pfn, new))
        finally:
            for _, pfn in left[len(pairs) :]:
                memory.lru_add(pfn)
            self._move(memory, pairs)
            memory.vmstat.add("driver_migrate_back" if away else "driver_migrate_in", len(pairs))
            self.figures["pages_back" if away else "pages_in"] += len(pairs)

    def _move(self, memory: Memory, pairs: list[tuple[int, int]]) -> None:
        """`migrate_vma_pages`, in runs from one node to another; the time is charged to whoever runs now."""
        nid_of = memory.frames.nid_of
        for (source, target), run in groupby(pairs, key=lambda pair: (nid_of(pair[0]), nid_of(pair[1]))):
            old, new = (np.array(frames, dtype=np.int32) for frames in zip(*run, strict=True))
            move_to_frames(memory, old, new, Reason.OWNER)
            memory.charge_ns += len(old) * migrate_cost_ns(memory.nodes[source], memory.nodes[target])

    def _owner_context(self, memory: Memory) -> AllocContext:
        return replace(owner_context(memory, self.nid), owner=self.task.pid)

    def _vma(self, vpn: int) -> Vma:
        vma = self.task.mm.find(vpn)
        if vma is None:
            raise InvariantError(f"{self.name}: page {vpn} of its buffers is not mapped")
        return vma

    def _frame_at(self, memory: Memory, vpn: int) -> int:
        """The frame that is mapped at a page, or -1."""
        entry = int(memory.page_table.pte[self._vma(vpn).slot_of(vpn)])
        return entry >> PTE_PFN_SHIFT if entry & PTE_PRESENT else -1

    # -- state

    def snapshot(self) -> dict[str, Any]:
        """Plain form."""
        return {"number": self.number, "figures": dict(self.figures)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot."""
        self.number = snapshot["number"]
        self.figures = dict(snapshot["figures"])
