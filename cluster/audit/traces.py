"""What a service leaves on a page that it works on without moving it, seen in the frame and page tables.

Looked at is the state of each frame of a private node before and after an activity: its pins, the list it is
on, its entry in the swap cache, the access right and the accessed bit of the entries that map it. The designs
are not asked. A frame that another page uses afterwards is none of these: it counts as one that left and one
that came. Left out: services that read a page and change nothing (a scan of ksmd that finds no equal page),
and what is done and undone within one activity (a page isolated and put back).
"""

from __future__ import annotations

from dataclasses import dataclass

from privmem.nodeagent.host.layout import (
    PG_ACTIVE,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    PTE_ACCESSED,
    PTE_PROTNONE,
)
from privmem.nodeagent.host.memory import Memory

PINNED, LOCKED, HINTED, SWAPPED, MERGED, AGED = (
    "pinned",
    "mlocked",
    "hinted",
    "in swap cache",
    "merged",
    "aged",
)


@dataclass(frozen=True, slots=True)
class PageState:
    """One frame in use, as its services left it."""

    pins: int
    flags: int
    #: All flags of the entries that map it, and how many entries do.
    entries: int
    mappings: int
    #: When NUMA balancing last took the access right.
    scan_ms: int


def state_of(memory: Memory, pfn: int) -> PageState:
    """As it is now."""
    entries = mappings = 0
    slot = int(memory.frames.rmap[pfn])
    while slot:
        entries |= int(memory.page_table.pte[slot]) & (PTE_ACCESSED | PTE_PROTNONE)
        mappings += 1
        slot = int(memory.page_table.rmap_next[slot])
    pins = memory.high_order.pins.get(pfn, 0)
    flags = int(memory.frames.flags[pfn])
    return PageState(pins, flags, entries, mappings, int(memory.frames.scan_ms[pfn]))


def worked_on(before: PageState, now: PageState) -> list[str]:
    """Which services have left a trace since."""
    gained, lost = now.flags & ~before.flags, before.flags & ~now.flags
    found = []
    if now.pins > before.pins:
        found.append(PINNED)
    if gained & PG_UNEVICTABLE:
        found.append(LOCKED)
    if now.entries & ~before.entries & PTE_PROTNONE or now.scan_ms != before.scan_ms:
        found.append(HINTED)
    if gained & PG_SWAPCACHE:
        found.append(SWAPPED)
    if now.mappings > before.mappings:
        found.append(MERGED)
    cleared = before.entries & ~now.entries & PTE_ACCESSED
    if not found and now.mappings and (cleared or lost & PG_ACTIVE):
        found.append(AGED)
    return found
