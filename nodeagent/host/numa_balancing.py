"""NUMA balancing in memory-tiering mode: hint faults promote pages that are hot on a slow node.

Models Linux 6.1: `task_numa_work` (the scanner), `do_numa_page`, `should_numa_migrate_memory` with
`numa_balancing = 2`, `numamigrate_isolate_page`. A page of a lower tier loses its access right at a scan; if
it is accessed again within the hot threshold, and the promotion rate limit allows, it moves to the faulting
CPU's node, provided that node stays above its high watermark; otherwise kswapd there is woken to make room.
Private nodes are never scanned unless the design has a bit for it. Mode 1 moves any page to the CPU that uses
it. Left out: the filter over two faults, which matters for pages that several tasks use, the automatic
adjustment of the threshold, adaptive scan periods; the rate limit is one a host, the kernel has one a node.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host import _numa_kernel as numa_kernel
from privmem.nodeagent.host.costs import HINT_FAULT_NS
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PROTNONE
from privmem.nodeagent.host.memory import Memory, Node, NumaBalancing
from privmem.nodeagent.host.migrate import migrate_cost_ns, migrate_isolated, room_pages
from privmem.nodeagent.host.mm import VMA_OBJECT, Vma
from privmem.nodeagent.host.pagecache import SHMEM
from privmem.nodeagent.host.task import Task
from privmem.nodeagent.host.wake import wake_kswapd
from privmem.scheduler import mempolicy
from privmem.scheduler.abi import MAX_NUMNODES, PAGE_SHIFT, PAGE_SIZE, Reason
from privmem.scheduler.isolation import Service

#: `NUMA_BALANCING_NORMAL`: pages follow the CPUs that use them, on every node.
BALANCING = 1

_MS = 1_000_000
_SECOND_NS = 1_000_000_000
#: Address space that one scan passes at most, in scan sizes (`virtpages`).
_VIRTUAL_SHARE = 8
#: Free memory above the promo watermark that is plenty on any node: 1 GiB.
_PLENTY_PAGES = 1 << 30 >> PAGE_SHIFT


def scan(memory: Memory, task: Task, knobs: NumaBalancing) -> None:
    """`task_numa_work`: when the task's scan period is over, take the access right from its next stretch of
    memory.

    Only stretches in which an entry was changed count against the scan size; eight times as much address
    space is the limit. The scan begins anew when it has come to the end of the address space.
    """
    if not knobs.mode or memory.now_ns < task.next_scan_ns:
        return
    task.next_scan_ns = memory.now_ns + knobs.scan_period_ns
    left = knobs.scan_size_bytes // PAGE_SIZE
    left_virtual = left * _VIRTUAL_SHARE
    start = task.scan_vpn
    ahead = [vma for vma in task.mm.vmas if vma.end > start]
    if not ahead:
        start, ahead = 0, task.mm.vmas
    for vma in ahead:
        if not _follows_the_task(memory, task, vma):
            continue
        start = max(start, vma.start)
        while start < vma.end:
            if left <= 0 or left_virtual <= 0:
                task.scan_vpn = start
                return
            end = min(start + left, vma.end)
            changed = _protect(memory, vma.cut(start, end))
            left -= end - start if changed else 0
            left_virtual -= end - start
            start = end
    task.scan_vpn = 0


def _protect(memory: Memory, part: Vma) -> int:
    """`change_prot_numa`. Returns how many entries lost their access right."""
    scan_node = np.zeros(MAX_NUMNODES, dtype=np.uint8)
    for nid in memory.nodes:
        slow = memory.numa_balancing.mode == BALANCING or nid not in memory.top_tier
        scan_node[nid] = slow and memory.resolver.allows(Service.NUMA_BALANCING, nid)
    changed = numa_kernel.protect_range(
        memory.page_table.pte,
        part.slot,
        part.slot + part.nr_pages,
        part.private,
        memory.frames.flags,
        memory.frames.rmap,
        memory.page_table.rmap_next,
        memory.frames.node_of_section,
        scan_node,
        memory.frames.scan_ms,
        memory.now_ns // _MS & 0xFFFF,
    )
    memory.vmstat.add("numa_pte_updates", int(changed))
    return int(changed)


def _follows_the_task(memory: Memory, task: Task, vma: Vma) -> bool:
    """`vma_policy_mof`, and what `task_numa_work` skips besides: shared memory and files mapped for reading."""
    if vma.kind == VMA_OBJECT and (not vma.writable or memory.page_cache.of(vma.object_id).kind == SHMEM):
        return False
    return mempolicy.balances(vma.policy or task.policy)


def hint_fault(memory: Memory, task: Task, vma: Vma, slot: int, knobs: NumaBalancing) -> int:
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
    if not memory.resolver.allows(Service.NUMA_BALANCING, source.nid) or not _follows_the_task(
        memory, task, vma
    ):
        return HINT_FAULT_NS
    if mempolicy.misplaced(vma.policy or task.policy, source.nid, target.nid) < 0:
        return HINT_FAULT_NS
    if not _should_migrate(memory, pfn, target, knobs):
        return HINT_FAULT_NS
    if target.free_pages <= target.wmark.high_pages + 1 or not room_pages(target):
        wake_kswapd(memory, target)
        memory.vmstat.add("pgmigrate_fail")
        return HINT_FAULT_NS
    memory.lru_del(pfn)
    one = np.array([pfn], dtype=np.int32)
    migrate_isolated(memory, one, source, target, Reason.PROMOTION, target.nid, task.cpu_nid)
    memory.vmstat.add("numa_pages_migrated" if knobs.mode == BALANCING else "pgpromote_success")
    return HINT_FAULT_NS + migrate_cost_ns(source, target)


def _should_migrate(memory: Memory, pfn: int, target: Node, knobs: NumaBalancing) -> bool:
    """`should_numa_migrate_memory`. Mode 1: a fault of the one task that uses the page moves it at once. Mode 2,
    for a page of a slow node: any page while the target has plenty of room (`pgdat_free_space_enough`), hot
    ones within the rate limit otherwise.
    """
    if knobs.mode == BALANCING:
        return True
    enough = target.wmark.promo_pages + max(_PLENTY_PAGES, target.managed_pages >> 4)
    if target.free_pages > enough:
        return True
    return _is_hot(memory, pfn, knobs) and rate_allows(memory, knobs)


def _is_hot(memory: Memory, pfn: int, knobs: NumaBalancing) -> bool:
    """The time from the scan to the fault is under the threshold; both in ms modulo 2**16 as in the kernel's
    cpupid.
    """
    waited_ms = (memory.now_ns // _MS - int(memory.frames.scan_ms[pfn])) & 0xFFFF
    return waited_ms * _MS < knobs.hot_threshold_ns


def rate_allows(memory: Memory, knobs: NumaBalancing) -> bool:
    """`numa_promotion_rate_limit`: counts a candidate; those of the running second stay under the limit."""
    memory.vmstat.add("pgpromote_candidate")
    if memory.now_ns - memory.rate_window_ns > _SECOND_NS:
        memory.rate_window_ns = memory.now_ns
        memory.rate_window_start = memory.vmstat.count["pgpromote_candidate"]
    candidates = memory.vmstat.count["pgpromote_candidate"] - memory.rate_window_start
    return candidates < knobs.promote_rate_limit // PAGE_SIZE
