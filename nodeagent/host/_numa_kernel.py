"""Taking access rights away, compiled: the scanner of NUMA balancing (`change_prot_numa` in Linux 6.1)."""

from __future__ import annotations

import numpy as np
from numba import njit

from privmem.nodeagent.host.layout import PG_OBJECT, PTE_PFN_SHIFT, PTE_PRESENT, PTE_PROTNONE
from privmem.scheduler.abi import SECTION_SHIFT


@njit(cache=True)
def protect_range(
    pte, start, end, private, flags, rmap, rmap_next, node_of_section, scan_node, scan_ms, now_ms
):
    """Mark the present entries of slots [start, end) whose node has scan_node[nid] set; stamp their frames
    with `now_ms`. In a `private` mapping pages that anybody else has too are passed over (copy-on-write).

    Returns how many entries were changed.
    """
    changed = 0
    for slot in range(start, end):
        entry = pte[slot]
        if entry & np.uint32(PTE_PRESENT | PTE_PROTNONE) != np.uint32(PTE_PRESENT):
            continue
        pfn = np.int64(entry) >> PTE_PFN_SHIFT
        if private and (flags[pfn] & np.uint16(PG_OBJECT) or rmap_next[rmap[pfn]] != 0):
            continue
        if scan_node[node_of_section[pfn >> SECTION_SHIFT]]:
            pte[slot] = entry | np.uint32(PTE_PROTNONE)
            scan_ms[pfn] = np.uint16(now_ms)
            changed += 1
    return changed
