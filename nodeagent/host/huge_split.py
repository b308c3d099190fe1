"""What takes the mapping of a huge page apart: called wherever a part of one is treated by itself.

Models `__split_huge_pmd`, `zap_huge_pmd`, `split_huge_page` and `copy_huge_pmd` of Linux 6.1 over the records of
high_order.HugeMaps: the entries are single ones anyway, so all that goes is the record. Beside the modules that
move and unmap pages, which thp.py itself needs.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT
from privmem.nodeagent.host.memory import Memory


def split(memory: Memory, slot: int, nr_pages: int = 1) -> None:
    """`__split_huge_pmd` of the huge mappings that have a page in these slots and one outside of them."""
    maps = memory.high_order.huge_maps
    for first in maps.overlapping(slot, nr_pages) if len(maps) else ():
        if first < slot or first + HPAGE_PAGES > slot + nr_pages:
            maps.remove(first)
            memory.vmstat.add("thp_split_pmd")


def zap(memory: Memory, slot: int, nr_pages: int) -> None:
    """`zap_huge_pmd`: all pages of these slots go, and entries that remember lost ones; a huge mapping that also
    has other pages is split first.
    """
    poison = memory.high_order.poison_slots
    for bad in [s for s in poison if slot <= s < slot + nr_pages]:
        del poison[bad]
    split(memory, slot, nr_pages)
    maps = memory.high_order.huge_maps
    for first in maps.overlapping(slot, nr_pages) if len(maps) else ():
        maps.remove(first)


def split_frames(memory: Memory, pfns: np.ndarray) -> None:
    """`split_huge_page` of the huge pages that these frames belong to: every mapping of them is split."""
    maps = memory.high_order.huge_maps
    if not len(maps):
        return
    rmap_next = memory.page_table.rmap_next
    pages: dict[int, None] = {}
    for slot in memory.frames.rmap[pfns].tolist():
        while slot:
            for first in maps.overlapping(slot):
                pages[int(memory.page_table.pte[first]) >> PTE_PFN_SHIFT] = None
                maps.remove(first)
                memory.vmstat.add("thp_split_pmd")
            slot = int(rmap_next[slot])
    memory.vmstat.add("thp_split_page", len(pages))


def copy_maps(memory: Memory, slot: int, nr_pages: int, new_slot: int) -> None:
    """`copy_huge_pmd` at fork: the child maps as one what the parent maps as one; a border splits both. Entries
    that remember a lost page are copied too.
    """
    poison = memory.high_order.poison_slots
    for bad in [s for s in poison if slot <= s < slot + nr_pages]:
        poison[new_slot + bad - slot] = poison[bad]
    split(memory, slot, nr_pages)
    maps = memory.high_order.huge_maps
    for first in maps.overlapping(slot, nr_pages) if len(maps) else ():
        maps.add(new_slot + first - slot)
