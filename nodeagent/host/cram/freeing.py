"""What happens to a page of compressed RAM when its last user lets go of it.

In the later generations (F1, F3) the page is overwritten with zeros before the buddy has it again, so that
the device drops what it stored; devices that keep content themselves are told by message besides
(outgoing.py). Frames of the balloon come back without: they were trimmed when they were taken. In the first
generation (v4) the owner's flush callback says what becomes of the page, or the driver's buffers do
(drivers/cxl_compression.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privmem.nodeagent.host.cram.service import (
    FLUSH_DEFERRED,
    FLUSH_FULL,
    FLUSH_RESOLVED,
    CramNode,
    Generation,
)
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD

#: Buffers of freed pages for each CPU: the active one, the one that is being flushed, and a spare one.
BUFFERS = 3

if TYPE_CHECKING:
    from privmem.nodeagent.host.memory import Memory, Node


def freed(memory: Memory, node: Node, pfns: np.ndarray) -> np.ndarray:
    """Frames of a registered node are being freed: those that go to the buddy now, still with their flags."""
    cram = memory.cram.nodes[node.nid]
    if memory.cram.generation is Generation.V4:
        return _ask_owner(memory, cram, pfns)
    given_up = int(np.count_nonzero(memory.frames.flags[pfns] & np.uint16(PG_HELD) == 0))
    cram.zeroed_pages += given_up
    if cram.room_pages >= 0:
        cram.room_pages += given_up
    return pfns


def _ask_owner(memory: Memory, cram: CramNode, pfns: np.ndarray) -> np.ndarray:
    """`free_folio` of the first generation: pages that the driver does not keep go to the buddy, forgotten by the
    device or overwritten with zeros.
    """
    used = memory.frames.flags[pfns] & np.uint16(PG_HELD) == 0
    mine = pfns[used]
    answer = cram.flush_answer
    kept = mine[:0]
    if cram.buffer_entries and not cram.gate.migration_blocked:  # a driver that goes waits for nothing new
        kept = mine[: max(0, BUFFERS * cram.buffer_entries - len(cram.deferred))]
        answer = FLUSH_FULL
    elif answer == FLUSH_DEFERRED:
        kept = mine
    rest = len(mine) - len(kept)
    if answer == FLUSH_RESOLVED:
        cram.trimmed_pages += rest
    else:
        cram.zeroed_pages += rest
    if len(kept):
        cram.deferred += kept.tolist()
        memory.frames.flags[kept] = np.uint16(PG_ALLOCATED | PG_HELD)
        memory.lru_batches.forget(kept)
        if memory.memcg.active:
            memory.memcg.uncharge(kept)
    return pfns[~np.isin(pfns, kept)]
