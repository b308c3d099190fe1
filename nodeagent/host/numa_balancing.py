"""NUMA balancing in memory-tiering mode: hint faults promote pages that are hot on a slow node.

Models Linux 6.1: `task_numa_work` (the scanner), `do_numa_page`, `should_numa_migrate_memory` with
`numa_balancing = 2`, `numamigrate_isolate_page`. A page of a lower tier loses its access right at a scan; if
it is accessed again within the hot threshold, and the promotion rate limit allows, it moves to the faulting
CPU's node, provided that node stays above its high watermark; otherwise kswapd there is woken to make room.
Private nodes are never scanned (feature series from F1 on). Left out: mode 1, the automatic adjustment of the
threshold, adaptive scan periods.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host import _numa_kernel as numa_kernel
from privmem.nodeagent.host.costs import HINT_FAULT_NS
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PROTNONE
from privmem.nodeagent.host.memory import Memory, NumaBalancing
from privmem.nodeagent.host.migrate import migrate_cost_ns, migrate_isolated, room_pages
from privmem.nodeagent.host.reclaim import wake_kswapd
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import MAX_NUMNODES, PAGE_SIZE, Reason

_MS = 1_000_000
_SECOND_NS = 1_000_000_000


def scan(memory: Memory, task: Task, knobs: NumaBalancing) -> None:
    """`task_numa_work`: when the task's scan period is over, take the access right from its next stretch of
    memory.
    """
    if not knobs.tiering or memory.now_ns < task.next_scan_ns:
        return
    task.next_scan_ns = memory.now_ns + knobs.scan_period_ns
    scan_node = np.zeros(MAX_NUMNODES, dtype=np.uint8)
    for nid, node in memory.nodes.items():
        scan_node[nid] = not node.private and nid not in memory.top_tier
    left = knobs.scan_size_bytes // PAGE_SIZE
    ranges = [(v.start, v.end) for v in task.mm.vmas]
    for start, end in [*ranges, *ranges]:
        start = max(start, task.scan_vpn)
        if start >= end or left <= 0:
            continue
        end = min(end, start + left)
        for vma in task.mm.in_range(start, end):
            changed = numa_kernel.protect_range(
                memory.page_table.pte,
                vma.slot,
                vma.slot + vma.nr_pages,
                memory.frames.node_of_section,
                scan_node,
                memory.frames.scan_ms,
                memory.now_ns // _MS & 0xFFFF,
            )
            memory.vmstat.add("numa_pte_updates", changed)
        left -= end - start
        task.scan_vpn = end
        if ranges and end >= ranges[-1][1]:
            task.scan_vpn = 0
            break


def hint_fault(memory: Memory, task: Task, slot: int, knobs: NumaBalancing) -> int:
    """`do_numa_page`: give the access right back, and promote the page if it is hot. Returns ns."""
    pte = memory.page_table.pte
    pte[slot] &= np.uint32(0xFFFFFFFF ^ PTE_PROTNONE)
    pfn = int(pte[slot]) >> PTE_PFN_SHIFT
    source = memory.nodes[memory.frames.nid_of(pfn)]
    target = memory.nodes[task.cpu_nid]
    memory.vmstat.add("numa_hint_faults")
    if source is target:
        memory.vmstat.add("numa_hint_faults_local")
        return HINT_FAULT_NS
    if source.private or not _is_hot(memory, pfn, knobs):
        return HINT_FAULT_NS
    memory.vmstat.add("pgpromote_candidate")
    if not _rate_allows(memory, knobs):
        return HINT_FAULT_NS
    if target.free_pages <= target.wmark.high_pages or not room_pages(target):
        wake_kswapd(memory, target)
        memory.vmstat.add("pgmigrate_fail")
        return HINT_FAULT_NS
    memory.lru_del(pfn)
    migrate_isolated(memory, np.array([pfn], dtype=np.int32), source, target, Reason.PROMOTION)
    memory.vmstat.add("pgpromote_success")
    return HINT_FAULT_NS + migrate_cost_ns(source, target)


def _is_hot(memory: Memory, pfn: int, knobs: NumaBalancing) -> bool:
    """The time from the scan to the fault is under the threshold; both in ms modulo 2**16 as in the kernel's
    cpupid.
    """
    waited_ms = (memory.now_ns // _MS - int(memory.frames.scan_ms[pfn])) & 0xFFFF
    return waited_ms * _MS < knobs.hot_threshold_ns


def _rate_allows(memory: Memory, knobs: NumaBalancing) -> bool:
    """`numa_promotion_rate_limit`: candidates of the running second stay under the limit."""
    if memory.now_ns - memory.rate_window_ns >= _SECOND_NS:
        memory.rate_window_ns = memory.now_ns
        memory.rate_window_start = memory.vmstat.count["pgpromote_candidate"]
    candidates = memory.vmstat.count["pgpromote_candidate"] - memory.rate_window_start
    return candidates * PAGE_SIZE <= knobs.promote_rate_limit
