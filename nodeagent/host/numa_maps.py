"""The text of /proc/<pid>/numa_maps: for each VMA its policy, and on which nodes its pages are.

Models `show_numa_map`, `gather_stats` (fs/proc/task_mmu.c) and `mpol_to_str` (mm/mempolicy.c) of Linux 6.1.
Pages of a hugetlb mapping are counted as huge pages, those of a transparent huge page one by one. Private
nodes count as any, whoever may ask for their pages otherwise. `swap=` is ours: entries of pages that are on
swap only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from privmem.nodeagent.host.filemap import vma_policy
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import (
    PG_ACTIVE,
    PG_DIRTY,
    PG_SWAPCACHE,
    PG_UNEVICTABLE,
    PTE_DIRTY,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import VMA_ANON, Vma
from privmem.nodeagent.host.pagecache import FILE, HUGETLB
from privmem.nodeagent.host.swap_area import is_swap_entry
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import MPOL_F_RELATIVE_NODES, MPOL_F_STATIC_NODES, PAGE_SHIFT, Mpol
from privmem.scheduler.mempolicy import Mempolicy

_MODES = {
    Mpol.DEFAULT: "default",
    Mpol.PREFERRED: "prefer",
    Mpol.BIND: "bind",
    Mpol.INTERLEAVE: "interleave",
    Mpol.LOCAL: "local",
    Mpol.PREFERRED_MANY: "prefer (many)",
    Mpol.WEIGHTED_INTERLEAVE: "weighted interleave",
}


@dataclass(slots=True)
class _Stats:
    """`struct numa_maps`."""

    pages: int = 0
    anon: int = 0
    active: int = 0
    mapcount_max: int = 0
    dirty: int = 0
    swapcache: int = 0
    swap: int = 0
    nodes: dict[int, int] = field(default_factory=dict)


def numa_maps(memory: Memory, task: Task) -> str:
    """All lines."""
    return "".join(f"{line(memory, task, vma)}\n" for vma in task.mm.vmas)


def line(memory: Memory, task: Task, vma: Vma) -> str:
    """`show_numa_map` of one VMA."""
    policy = vma_policy(memory, vma, vma.start) or task.policy
    words = [f"{vma.start << PAGE_SHIFT:08x}", policy_text(policy)]
    huge = False
    if vma.kind != VMA_ANON:
        holder = memory.page_cache.of(vma.object_id)
        huge = holder.kind == HUGETLB
        words.append(f"file=/{holder.name}" + ("" if holder.kind == FILE else "\\040(deleted)"))
    if huge:
        words.append("huge")
    stats = _gather(memory, vma, HPAGE_PAGES if huge else 1)
    if stats.pages:
        words += _numbers(stats, huge)
    if stats.swap:
        words.append(f"swap={stats.swap}")
    return " ".join(words)


def policy_text(policy: Mempolicy | None) -> str:
    """`mpol_to_str`: `bind:0,3`, `interleave=relative:0-1`."""
    if policy is None:
        return _MODES[Mpol.DEFAULT]
    text = _MODES[policy.mode]
    if policy.flags & MPOL_F_STATIC_NODES:
        text += "=static"
    elif policy.flags & MPOL_F_RELATIVE_NODES:
        text += "=relative"
    nodes = 0 if policy.mode == Mpol.LOCAL else policy.nodes
    return f"{text}:{nodemask.format_list(nodes)}" if nodes else text


def _gather(memory: Memory, vma: Vma, step: int) -> _Stats:
    """`gather_pte_stats`; of a huge page of a pool (`step` pages) its first page."""
    stats = _Stats()
    frames, table = memory.frames, memory.page_table
    for entry in table.pte[vma.slot : vma.slot + vma.nr_pages : step].tolist():
        if is_swap_entry(entry):
            stats.swap += 1
        if not entry & PTE_PRESENT:
            continue
        pfn = entry >> PTE_PFN_SHIFT
        flags, nid = int(frames.flags[pfn]), frames.nid_of(pfn)
        stats.pages += 1
        stats.nodes[nid] = stats.nodes.get(nid, 0) + 1
        stats.dirty += int(bool(entry & PTE_DIRTY or flags & PG_DIRTY))
        stats.swapcache += int(bool(flags & PG_SWAPCACHE))
        stats.active += int(bool(flags & (PG_ACTIVE | PG_UNEVICTABLE)))
        stats.anon += int(not memory.is_object_page(pfn))
        count, slot = 0, int(frames.rmap[pfn])
        while slot:
            count, slot = count + 1, int(table.rmap_next[slot])
        stats.mapcount_max = max(stats.mapcount_max, count)
    return stats


def _numbers(stats: _Stats, huge: bool) -> list[str]:
    shown = [("anon", stats.anon, stats.anon > 0), ("dirty", stats.dirty, stats.dirty > 0)]
    shown.append(("mapped", stats.pages, stats.pages not in (stats.anon, stats.dirty)))
    shown.append(("mapmax", stats.mapcount_max, stats.mapcount_max > 1))
    shown.append(("swapcache", stats.swapcache, stats.swapcache > 0))
    shown.append(("active", stats.active, stats.active < stats.pages and not huge))
    words = [f"{name}={value}" for name, value, matters in shown if matters]
    words += [f"N{nid}={stats.nodes[nid]}" for nid in sorted(stats.nodes)]
    return [*words, f"kernelpagesize_kB={2048 if huge else 4}"]
