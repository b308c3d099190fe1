"""kswapd and direct reclaim: aging the LRU lists, and taking away what is cold.

Models mm/vmscan.c of Linux 6.1: `balance_pgdat`, `shrink_node`, `get_scan_count`, `inactive_is_low`,
`demote_folio_list`. A cold page goes to the first demotion target with room: the preferred ones of the next
tier, which take turns, then any node of a lower tier (`alloc_demote_page` and its allowed mask). What finds no
place there is dropped or swapped out (shrink.py). Rounds of SWAP_CLUSTER_MAX pages stand for the priorities of
a scan. Under a boosted watermark kswapd neither swaps nor writes back, unless the owner of the node says so
(node_callbacks.py), and takes no anonymous page but for demotion. Left out: the multi-generational LRU; memory
cgroups are in memcg.py.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from privmem.nodeagent.host import _lru_kernel as lru_kernel
from privmem.nodeagent.host.costs import SCAN_NS
from privmem.nodeagent.host.cram import placement
from privmem.nodeagent.host.layout import (
    LRU_INACTIVE_ANON,
    LRU_INACTIVE_FILE,
    NIL,
    NR_LRU_LISTS,
    PG_FILE,
    PG_OBJECT,
)
from privmem.nodeagent.host.memory import Memory, Node
from privmem.nodeagent.host.migrate import migrate_cost_ns, migrate_isolated, room_pages
from privmem.nodeagent.host.node_callbacks import ReclaimPolicy, boost_pages, reclaim_policy
from privmem.nodeagent.host.page_alloc import NeedsExtent
from privmem.nodeagent.host.pagecache import SHMEM
from privmem.nodeagent.host.shrink import DIRECT, KSWAPD, ScanControl, shrink_pages
from privmem.nodeagent.host.wake import may_reclaim, wake_kswapd
from privmem.scheduler.abi import PAGE_SHIFT, Reason

#: Pages that one round of reclaim is after; Linux `SWAP_CLUSTER_MAX`.
SWAP_CLUSTER_MAX = 32


def run_kswapd(memory: Memory, node: Node, budget_ns: int) -> int:
    """Let the node's kswapd work until it is balanced, makes no progress, or the time is used up. Returns ns
    used.

    Raises NeedsExtent when a demotion must wait for the pool; calling it again then goes on.
    """
    spent = 0
    fruitless = 0
    while node.kswapd_awake and spent < budget_ns:
        mark = node.wmark.promo_pages if memory.numa_balancing.tiering else node.wmark.high_pages
        if node.free_pages > mark + boost_pages(memory, node):
            node.kswapd_awake = False
            break
        policy = reclaim_policy(memory, node.nid) if node.free_pages > mark else None
        taken, looked, cost = shrink_node(memory, node, KSWAPD, policy)
        spent += cost
        fruitless = 0 if taken else fruitless + looked
        if not looked or fruitless > 2 * sum(memory.lru_sizes(node.nid)):
            node.kswapd_awake = False  # as after MAX_RECLAIM_RETRIES failures: sleeps until woken
    if not node.kswapd_awake and not reclaim_policy(memory, node.nid).managed_watermarks:
        memory.callbacks.boost_pages.pop(node.nid, None)  # the cycle is over: generic code zeroes the boost
    return spent


def direct_reclaim(memory: Memory, zones: tuple[int, ...]) -> int:
    """`try_to_free_pages`: one pass over the candidate nodes; returns pages freed. Charges the caller.

    Looks at every list once at the most, in growing steps, until it has freed SWAP_CLUSTER_MAX pages.
    """
    freed = 0
    for nid in zones:
        node = memory.nodes[nid]
        if not may_reclaim(memory, node):
            continue
        looked_total = 0
        while freed < SWAP_CLUSTER_MAX and looked_total <= sum(memory.lru_sizes(nid)):
            taken, looked, cost = shrink_node(memory, node, DIRECT)
            memory.charge_ns += cost
            freed += taken
            looked_total += looked
            if not looked:
                break
    return freed


def shrink_node(
    memory: Memory, node: Node, who: str, boosted: ReclaimPolicy | None = None
) -> tuple[int, int, int]:
    """One round on a node's lists. Returns (pages freed, pages looked at, ns). `boosted`: only the boost of its
    watermark asks for it, and so it may do no more than this.

    Anonymous pages are looked at only when a demotion target or the swap area has room for them.
    """
    sc = ScanControl(who)
    if boosted is not None:
        sc.may_swap, sc.writes_files = boosted.may_swap, boosted.may_writepage
    targets = targets_with_room(memory, node, sc)
    swaps = sc.may_swap and memory.swap.free_pages > 0
    takes_anon = bool(targets) or swaps or placement.can_take(memory, node.nid)
    anon, file = _scan_counts(memory, node, takes_anon)
    if memory.story is not None:
        memory.story.part = f"{who} reclaim of node {node.nid}"
    freed = looked = 0
    for lru, nr_scan in ((LRU_INACTIVE_ANON, anon), (LRU_INACTIVE_FILE, file)):
        if nr_scan:
            gone, seen = _shrink_lists(memory, node, lru, nr_scan, targets, sc)
            freed += gone
            looked += seen
    if memory.story is not None:
        memory.story.part = ""
    return freed, looked, looked * SCAN_NS + sc.cost_ns


def _scan_counts(memory: Memory, node: Node, may_take_anon: bool) -> tuple[int, int]:
    """`get_scan_count`: how many anonymous and file pages to look at in a round, by the sizes of the lists and
    `vm.swappiness`; only file pages while there are enough inactive ones.
    """
    inactive_anon, active_anon, inactive_file, active_file = memory.lru_sizes(node.nid)
    anon, file = inactive_anon + active_anon, inactive_file + active_file
    if not may_take_anon or not anon:
        return 0, SWAP_CLUSTER_MAX if file else 0
    if not file:
        return SWAP_CLUSTER_MAX, 0
    base = node.nid * NR_LRU_LISTS
    if inactive_file >= SWAP_CLUSTER_MAX and not _inactive_is_low(memory, base + LRU_INACTIVE_FILE):
        return 0, SWAP_CLUSTER_MAX
    swappiness = memory.knobs.swappiness
    of_anon, of_file = swappiness * anon, (200 - swappiness) * file
    share = SWAP_CLUSTER_MAX * of_anon // (of_anon + of_file)
    return share, SWAP_CLUSTER_MAX - share


def _shrink_lists(
    memory: Memory, node: Node, inactive: int, nr_scan: int, targets: list[Node], sc: ScanControl
) -> tuple[int, int]:
    """`shrink_list` of an active list and its inactive one. Returns (pages freed, pages looked at)."""
    lists = node.nid * NR_LRU_LISTS + inactive
    lru, rmap = memory.lru_arrays(), memory.rmap_arrays()
    looked = 0
    if _inactive_is_low(memory, lists):
        looked = lru_kernel.shrink_active(lists + 1, nr_scan, *lru, *rmap)
        memory.vmstat.add("pgdeactivate", looked)
    victims = np.empty(SWAP_CLUSTER_MAX, dtype=np.int32)
    scanned, nr, activated = lru_kernel.isolate_inactive(lists, nr_scan, victims, nr_scan, *lru, *rmap)
    memory.vmstat.add(f"pgscan_{sc.who}", scanned)
    memory.vmstat.add("pgactivate", activated)
    return take_victims(memory, node, victims[:nr], targets, sc), looked + scanned


def take_victims(
    memory: Memory, node: Node, victims: np.ndarray, targets: list[Node], sc: ScanControl
) -> int:
    """`shrink_folio_list`: demote isolated pages, drop or swap out those that find no place. How many went."""
    moved, left = _demote(memory, node, victims, targets, sc)
    offered = left.tolist()
    stayed, cost_ns = placement.demote_reclaimed(memory, offered)
    sc.cost_ns += cost_ns
    moved += len(offered) - len(stayed)
    memory.vmstat.add(f"pgdemote_{sc.who}", moved)
    freed = moved + _take_away(memory, node, np.array(stayed, dtype=np.int32), sc)
    memory.vmstat.add(f"pgsteal_{sc.who}", freed)
    return freed


def _take_away(memory: Memory, node: Node, pfns: np.ndarray, sc: ScanControl) -> int:
    """What was not demoted is dropped or swapped out; without swap, pages that would need it go back."""
    if not len(pfns):
        return 0
    if not memory.swap.nr_pages:
        needs_swap = memory.frames.flags[pfns] & PG_FILE == 0
        back = pfns[needs_swap]
        lru_kernel.putback(back, len(back), node.nid * NR_LRU_LISTS, *memory.lru_arrays())
        pfns = pfns[~needs_swap]
    return shrink_pages(memory, pfns.tolist(), sc)


def _inactive_is_low(memory: Memory, inactive_list: int) -> bool:
    """`inactive_is_low`: the inactive list should hold at least 1/ratio of the active one, ratio = sqrt(10 *
    GiB).
    """
    inactive = int(memory.lru_size[inactive_list])
    active = int(memory.lru_size[inactive_list + 1])
    gib = (inactive + active) >> (30 - PAGE_SHIFT)
    ratio = isqrt(10 * gib) if gib else 1
    return inactive * ratio < active


def targets_with_room(memory: Memory, node: Node, sc: ScanControl) -> list[Node]:
    """Demotion targets that can take at least a round's worth together, in order.

    Raises NeedsExtent when they cannot, and a pooled one could if it grew. Compressed RAM counts only when
    all the next victims may go there.
    """
    if not memory.demotion_enabled:
        return []
    found: list[Node] = []
    room = 0
    objects = _objects_next(memory, node)
    order = memory.next_demotion_nodes(node.nid)
    sc.preferred_nid = order[0] if order else -1
    for nid in order:
        target = memory.nodes[nid]
        if target.migration_blocked or target.no_alloc_owner:
            continue
        here = room_pages(target)
        if here + room < SWAP_CLUSTER_MAX and target.can_grow(memory.now_ns) and _short_of_frames(target):
            raise NeedsExtent(nid)
        if here:
            found.append(target)
            room += 0 if objects and memory.is_cram(nid) else here
        else:
            wake_kswapd(memory, target)
        if room >= SWAP_CLUSTER_MAX:
            break
    return found


def _short_of_frames(target: Node) -> bool:
    """Whether it is for want of frames that no more pages may come, rather than of its device's promise."""
    return not target.spec.stores or target.store_room_pages > room_pages(target)


def _objects_next(memory: Memory, node: Node) -> bool:
    """Whether pages of shared memory are among the next victims."""
    if not any(holder.kind == SHMEM and holder.pages for holder in memory.page_cache.objects.values()):
        return False
    pfn = int(memory.lru_tail[node.nid * NR_LRU_LISTS + LRU_INACTIVE_ANON])
    for _ in range(SWAP_CLUSTER_MAX):
        if pfn == NIL:
            return False
        if memory.is_object_page(pfn):
            return True
        pfn = int(memory.frames.prev[pfn])
    return False


def _demote(
    memory: Memory, node: Node, victims: np.ndarray, targets: list[Node], sc: ScanControl
) -> tuple[int, np.ndarray]:
    """`demote_folio_list`: victims fill the targets in order. Returns how many moved, and what found no place."""
    moved = 0
    left = victims
    for target in targets:
        if not len(left):
            break
        chosen = np.flatnonzero(_eligible(memory, left, target))[: room_pages(target)]
        if not len(chosen):
            continue
        here = left[chosen]
        new = migrate_isolated(memory, here, node, target, Reason.DEMOTION, sc.preferred_nid, node.nid)
        placement.stored(memory, target.nid, new)
        if target.free_pages <= target.wmark.low_pages:
            wake_kswapd(memory, target)
        if memory.is_cram(target.nid):
            memory.vmstat.add("demote_compressed", len(here))
        if target.spec.pooled:
            memory.vmstat.add("demote_pooled", len(here))
        moved += len(here)
        sc.cost_ns += len(here) * migrate_cost_ns(node, target)
        left = np.delete(left, chosen)
    return moved, left


def _eligible(memory: Memory, pfns: np.ndarray, target: Node) -> np.ndarray:
    """Compressed RAM takes private anonymous pages only (compressed RAM service, F3: anonymous, swap-backed), and
    clean pages of files where its service does (F1).
    """
    if not memory.is_cram(target.nid):
        return np.ones(len(pfns), dtype=bool)
    anon: np.ndarray = (memory.frames.flags[pfns] & PG_OBJECT) == 0
    if memory.cram.owns(target.nid):
        for at in np.flatnonzero(~anon).tolist():
            anon[at] = placement.is_clean_file_page(memory, int(pfns[at]))
    return anon
