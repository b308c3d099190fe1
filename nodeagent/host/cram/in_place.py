"""A compressed node without write control: stores reach it in place, and its device hears of them.

No generation of the service allows this. It is what a driver would have that grants USER_WRITE on memory that
compresses: pages are mapped with the right to write, nothing faults, and what a page takes on the device changes
under it, when nobody can be refused any more. Here the device sees what was written in an epoch at its end, each
page once: in between, stores are in the CPU's caches.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host import _lru_kernel as lru_kernel
from privmem.nodeagent.host import written
from privmem.nodeagent.host.cram.service import CramNode
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import store_content


def uncontrolled(memory: Memory) -> list[CramNode]:
    """The nodes without write control."""
    return [
        cram for cram in memory.cram.nodes.values() if cram.controlled and not memory.nodes[cram.nid].fenced
    ]


def send_written(memory: Memory) -> None:
    """The end of an epoch: pages of these nodes that were written go to their devices again."""
    for cram in uncontrolled(memory):
        _send(memory, cram)


def _send(memory: Memory, cram: CramNode) -> None:
    node = memory.nodes[cram.nid]
    flags = memory.frames.flags[node.start_pfn : node.start_pfn + node.spec.span_pages]
    used = np.flatnonzero(flags & np.uint16(PG_ALLOCATED | PG_HELD) == PG_ALLOCATED) + node.start_pfn
    pfns = used.astype(np.int32)
    dirty = np.zeros(len(pfns), dtype=np.uint16)
    lru_kernel.collect_dirty(pfns, len(pfns), dirty, memory.frames.flags, *memory.rmap_arrays())
    changed = pfns[dirty != 0]
    if not len(changed):
        return
    written.advance(memory, changed, np.ones(len(changed), dtype=np.uint16))
    store_content(memory, node, changed)
    node.unacknowledged_pages -= len(changed)  # they have a place
    cram.written_in_place_pages += len(changed)
    memory.vmstat.add("cram_written_in_place", len(changed))
