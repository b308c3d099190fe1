"""Pages that a device reports as hot: a ring of 1024 frames, and their promotion (caps, F1).

A report that finds the ring full is dropped; nobody waits. Promotion stays within the rate limit of NUMA
balancing's promotions (`promote_rate_limit`, a second at a time), and a page moves to the general node that
is nearest to its own.
"""

from __future__ import annotations

from privmem.nodeagent.host.cram import fence
from privmem.nodeagent.host.cram.service import Generation
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_LRU
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.numa_balancing import rate_allows
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.scheduler.abi import Reason
from privmem.scheduler.zonelist import AllocRequest

RING_ENTRIES = 1024


def report_hot(memory: Memory, pfns: list[int]) -> int:
    """A device's reports: how many were dropped, because the ring was full or there is none (v4, F3)."""
    service = memory.cram
    room = RING_ENTRIES - len(service.hot) if service.generation is Generation.F1 else 0
    taken = pfns[:room]
    service.hot += taken
    dropped = len(pfns) - len(taken)
    service.hot_dropped += dropped
    memory.vmstat.add("cram_hot_dropped", dropped)
    return dropped


def promote_hot(memory: Memory) -> int:
    """The worker empties the ring as far as the rate limit lets it: how many pages moved."""
    service = memory.cram
    moved = 0
    while service.hot:
        pfn = service.hot[0]
        if not _is_resident(memory, pfn):
            service.hot.pop(0)
            continue
        if not rate_allows(memory, memory.numa_balancing):
            break
        service.hot.pop(0)
        moved += int(fence.promote(memory, pfn, _context(memory, pfn)) >= 0)
    memory.vmstat.add("pgpromote_success", moved)
    return moved


def _is_resident(memory: Memory, pfn: int) -> bool:
    """Whether the frame still holds a page of compressed RAM that can move."""
    if not 0 <= pfn < memory.frames.nr_frames or not memory.is_cram(memory.frames.nid_of(pfn)):
        return False
    wanted = PG_ALLOCATED | PG_LRU
    return int(memory.frames.flags[pfn]) & wanted == wanted


def _context(memory: Memory, pfn: int) -> AllocContext:
    request = AllocRequest(memory.frames.nid_of(pfn), None, Reason.PROMOTION)
    resolution = memory.resolver.resolve(request, None)
    return AllocContext(
        resolution.zones,
        Reason.PROMOTION,
        uninvited=resolution.uninvited,
        request=request,
        may_reclaim=False,
    )
