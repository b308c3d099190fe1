"""Pages of a node by what they are used for: lines of its `vmstat` and `meminfo`.

Models the counters of `enum node_stat_item` that `node_read_meminfo` (drivers/base/node.c, Linux 6.1) prints:
NR_ANON_MAPPED (mapped anonymous pages, those of a huge page one by one), NR_FILE_MAPPED, NR_FILE_PAGES (page
cache with shared memory, and the swap cache), NR_SHMEM, NR_ANON_THPS. They are counted when somebody looks.
Pages that a driver or the kernel holds are none of these, nor are those of the huge page pool. Left out: slab,
kernel stacks, writeback, KReclaimable.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host import pagetables, thp
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import (
    PG_ALLOCATED,
    PG_FILE,
    PG_HELD,
    PG_OBJECT,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
)
from privmem.nodeagent.host.memory import Memory


def node_page_state(memory: Memory, nid: int) -> dict[str, int]:
    """Counter -> pages."""
    node = memory.nodes[nid]
    span = slice(node.start_pfn, node.start_pfn + node.spec.span_pages)
    flags = memory.frames.flags[span]
    of_users = (flags & np.uint16(PG_ALLOCATED | PG_HELD)) == PG_ALLOCATED
    mapped = memory.frames.rmap[span] != 0
    cached = (flags & np.uint16(PG_OBJECT)) != 0
    shmem = cached & ((flags & np.uint16(PG_FILE)) == 0)
    swapcache = ~cached & ((flags & np.uint16(PG_SWAPCACHE)) != 0)
    inactive_anon, active_anon, inactive_file, active_file = memory.lru_sizes(nid)
    return {
        "nr_free_pages": node.free_pages,
        "nr_inactive_anon": inactive_anon,
        "nr_active_anon": active_anon,
        "nr_inactive_file": inactive_file,
        "nr_active_file": active_file,
        "nr_unevictable": _count((flags & np.uint16(PG_UNEVICTABLE)) != 0),
        "nr_anon_pages": _count(of_users & mapped & ~cached),
        "nr_mapped": _count(of_users & mapped & cached),
        "nr_file_pages": _count(of_users & (cached | swapcache)),
        "nr_shmem": _count(of_users & shmem),
        "nr_page_table_pages": pagetables.on_node(memory, nid),
        "nr_anon_transparent_hugepages": thp.anon_huge_pages_of(memory, nid) // HPAGE_PAGES,
    }


def meminfo_pages(memory: Memory, nid: int) -> dict[str, int]:
    """Line of `nodeN/meminfo` -> pages."""
    node = memory.nodes[nid]
    state = node_page_state(memory, nid)
    return {
        "MemTotal": node.usable_pages,
        "MemFree": node.free_pages,
        "MemUsed": node.usable_pages - node.free_pages,
        "Active": state["nr_active_anon"] + state["nr_active_file"],
        "Inactive": state["nr_inactive_anon"] + state["nr_inactive_file"],
        "Active(anon)": state["nr_active_anon"],
        "Inactive(anon)": state["nr_inactive_anon"],
        "Active(file)": state["nr_active_file"],
        "Inactive(file)": state["nr_inactive_file"],
        "Unevictable": state["nr_unevictable"],
        "FilePages": state["nr_file_pages"],
        "Mapped": state["nr_mapped"],
        "AnonPages": state["nr_anon_pages"],
        "Shmem": state["nr_shmem"],
        "PageTables": state["nr_page_table_pages"],
        "AnonHugePages": state["nr_anon_transparent_hugepages"] * HPAGE_PAGES,
    }


def _count(which: np.ndarray) -> int:
    return int(np.count_nonzero(which))
