"""The NUMA system calls: set_mempolicy, mbind, get_mempolicy, move_pages, migrate_pages.

Models `do_set_mempolicy`, `do_mbind`, `queue_pages_range`, `do_get_mempolicy`, `do_migrate_pages`
(mm/mempolicy.c) and `do_pages_move`, `do_pages_stat` (mm/migrate.c) of Linux 6.1, as root. Calls return 0
or a negative errno (move_pages also a positive number of pages that could not move). Which private nodes
may be named, be moved to, or be looked into is the isolation design's answer.

A page's new place under mbind is worked out for the address at which it was queued; the kernel looks for
the first VMA at or after the range's start that maps it, which is the same one unless the range maps an
object twice.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np

from privmem.nodeagent.host import huge_split, thp_migrate
from privmem.nodeagent.host.fault import handle_fault
from privmem.nodeagent.host.filemap import vma_policy, vma_request
from privmem.nodeagent.host.layout import PG_LRU, PTE_PFN_SHIFT, PTE_PRESENT, PTE_PROTNONE, PTE_SWAP, PTE_ZERO
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.migrate import move_to_frames
from privmem.nodeagent.host.mm import VMA_ANON, VMA_OBJECT, Vma
from privmem.nodeagent.host.page_alloc import AllocContext, alloc_page, free_unused_page
from privmem.nodeagent.host.pagecache import SHMEM
from privmem.nodeagent.host.task import Task
from privmem.scheduler import mempolicy, nodemask
from privmem.scheduler.abi import (
    MAX_NUMNODES,
    MPOL_MF_MOVE,
    MPOL_MF_MOVE_ALL,
    MPOL_MF_STRICT,
    SECTION_SHIFT,
    Mpol,
    Reason,
)
from privmem.scheduler.isolation import Service
from privmem.scheduler.mempolicy import IL_PREV_NONE, Mempolicy
from privmem.scheduler.zonelist import AllocRequest

MPOL_F_NODE = 1
MPOL_F_ADDR = 2
MPOL_F_MEMS_ALLOWED = 4

_MF_MOVES = MPOL_MF_MOVE | MPOL_MF_MOVE_ALL
_MF_VALID = MPOL_MF_STRICT | _MF_MOVES

#: Status of a page that move_pages did not come to: the kernel leaves the user's array as it was.
STATUS_UNSET = -999

Queued = list[tuple[int, int]]  # (page frame, virtual page at which it was found)


def set_mempolicy(task: Task, mode_arg: int, user_nodes: int) -> int:
    """`do_set_mempolicy`."""
    rules = task.resolver.policy_nodes
    error, policy = mempolicy.new_policy(mode_arg, user_nodes, task.mems_allowed, rules)
    if error:
        return error
    task.policy = policy
    if policy is not None and policy.mode in mempolicy.INTERLEAVES:
        task.il_prev, task.il_weight = IL_PREV_NONE, 0
    return 0


def get_mempolicy(memory: Memory, task: Task, vpn: int | None = None, flags: int = 0) -> tuple[int, int, int]:
    """`do_get_mempolicy`: (errno, mode or node, node mask). An address goes with MPOL_F_ADDR."""
    refused = (-errno.EINVAL, 0, 0)
    if flags & ~(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED):
        return refused
    if flags & MPOL_F_MEMS_ALLOWED:
        shown = task.resolver.policy_nodes.shown_mems(task.mems_allowed)
        return refused if flags != MPOL_F_MEMS_ALLOWED else (0, 0, shown)
    if vpn is not None and not flags & MPOL_F_ADDR:
        return refused
    if vpn is None and flags & MPOL_F_ADDR:
        return -errno.EFAULT, 0, 0  # nothing is mapped at address 0
    policy = task.policy
    if vpn is not None:
        vma = task.mm.find(vpn)
        if vma is None:
            return -errno.EFAULT, 0, 0
        policy = vma_policy(memory, vma, vpn)
    word = mempolicy.shown_mode(policy)
    if flags & MPOL_F_NODE:
        if vpn is not None:
            word = _node_at(memory, task, vpn)
        elif policy is not None and policy.mode == Mpol.INTERLEAVE:
            word = nodemask.next_in(task.il_prev, policy.nodes)
        elif policy is not None and policy.mode == Mpol.WEIGHTED_INTERLEAVE:
            word = task.il_prev if task.il_weight else nodemask.next_in(task.il_prev, policy.nodes)
        else:
            return refused
        if word < 0:
            return word, 0, 0
    return 0, word, mempolicy.shown_nodes(policy)


def _node_at(memory: Memory, task: Task, vpn: int) -> int:
    """`lookup_node`: the node of the page at an address; it is faulted in."""
    while True:
        vma = task.mm.find(vpn)
        if vma is None:
            return -errno.EFAULT
        entry = int(memory.page_table.pte[vma.slot_of(vpn)])
        if entry & PTE_PRESENT:
            return memory.frames.nid_of(entry >> PTE_PFN_SHIFT)
        if entry == PTE_ZERO:  # part of the kernel's image
            return nodemask.first(memory.topology.public)
        took = handle_fault(memory, task, vpn, is_write=False)
        if took < 0:
            return took


# -- mbind


def mbind(
    memory: Memory, task: Task, start: int, nr_pages: int, mode_arg: int, user_nodes: int, flags: int
) -> int:
    """`do_mbind` over pages [start, start + nr_pages)."""
    weighted = task.resolver.policy_nodes.weighted
    error, mode, mode_flags = mempolicy.sanitize_mode(mode_arg, weighted)
    if error or flags & ~_MF_VALID:
        return -errno.EINVAL
    if mode == Mpol.DEFAULT:
        flags &= ~MPOL_MF_STRICT
    if nr_pages == 0:
        return 0
    error, policy = mempolicy.mpol_new(mode, mode_flags, user_nodes)
    if error:
        return error
    if flags & _MF_MOVES:
        memory.lru_batches.drain_all()
    if policy is not None:
        rules = task.resolver.policy_nodes
        error, policy = mempolicy.set_nodemask(policy, user_nodes, task.mems_allowed, rules)
        if error:
            return error
    end = start + nr_pages
    # The mask as the user gave it says which pages are misplaced, even when the policy reads it as positions.
    wrong = ~user_nodes
    found, queued = _queue_pages(memory, task, start, end, wrong, flags, holes=policy is None)
    if found < 0:
        return found
    _bind_range(memory, task, start, end, policy)
    base = _first_turn(memory, task, queued)
    contexts = [_policy_context(memory, task, vpn, base) for _, vpn in queued]
    failed = _migrate(memory, [pfn for pfn, _ in queued], contexts)
    return -errno.EIO if (found or failed) and flags & MPOL_MF_STRICT else 0


def _queue_pages(
    memory: Memory, task: Task, start: int, end: int, nodes: int, flags: int, holes: bool
) -> tuple[int, Queued]:
    """`queue_pages_range`: pages on `nodes` (a mask, possibly of infinite width), in order of address.

    Returns -EFAULT for a hole (unless `holes`), -EIO for a misplaced page that only STRICT asked about, else how
    many pages cannot be isolated, those that are met a second time included; and the pages to move.
    """
    parts = task.mm.in_range(start, end)
    queued: Queued = []
    if not parts:
        return -errno.EFAULT, queued
    seen: dict[int, int] = {}
    stuck = 0
    vpn = start
    for position, part in enumerate(parts):
        last = position + 1 == len(parts)
        hole_after = part.end != (end if last else parts[position + 1].start)
        if not holes and (part.start != vpn or hole_after):
            return -errno.EFAULT, queued
        vpn = part.end
        if not flags & _MF_VALID:
            continue
        for pfn, at in _pages_on(memory, part, nodes):
            if not flags & _MF_MOVES:
                return -errno.EIO, queued
            if not (flags & MPOL_MF_MOVE_ALL or memory.mapped_once(pfn)):
                if memory.story is not None:
                    memory.story.stayed(pfn, "mapped more than once, and MPOL_MF_MOVE_ALL was not asked for")
                continue
            if pfn in seen or not _may_isolate(memory, task, pfn):
                if memory.story is not None and pfn not in seen:
                    memory.story.stayed(pfn, _why_not(memory, task, pfn))
                stuck += 1
                continue
            seen[pfn] = at
            queued.append((pfn, at))
    return stuck, queued


def _pages_on(memory: Memory, part: Vma, nodes: int) -> Queued:
    """Present pages of a VMA part that are on a node of the mask."""
    entries = memory.page_table.pte[part.slot : part.slot + part.nr_pages]
    present = np.flatnonzero(entries & np.uint32(PTE_PRESENT))
    pfns = (entries[present] >> np.uint32(PTE_PFN_SHIFT)).astype(np.int64)
    wanted = np.array([bool(nodes >> nid & 1) for nid in range(MAX_NUMNODES)])
    on = wanted[memory.frames.node_of_section[pfns >> SECTION_SHIFT]]
    return list(zip(pfns[on].tolist(), (present[on] + part.start).tolist(), strict=True))


def _may_isolate(memory: Memory, task: Task, pfn: int) -> bool:
    """`isolate_lru_page`, and the right to move a page off a private node."""
    return bool(memory.frames.flags[pfn] & PG_LRU) and _may_look(memory, task, pfn)


def _why_not(memory: Memory, task: Task, pfn: int) -> str:
    """Why a page is not isolated, for its story."""
    if not _may_look(memory, task, pfn):
        return f"{task.resolver.design.name}: user calls may not handle pages of this private node"
    return "on no LRU list (pinned, held, or in use by the kernel)"


def _may_look(memory: Memory, task: Task, pfn: int) -> bool:
    """Whether the user calls may handle pages of the frame's node at all (a private node may withhold
    them).
    """
    node = task.resolver.topology.node(memory.frames.nid_of(pfn))
    return task.resolver.design.allows(Service.USER_MOVE, node)


def _bind_range(memory: Memory, task: Task, start: int, end: int, policy: Mempolicy | None) -> None:
    """`mbind_range`: VMAs that have an equal policy stay as they are, shared policies of their objects
    included.
    """
    parts = []
    for part in task.mm.in_range(start, end):
        if not _equal(part.policy, policy):
            huge_split.split(memory, part.slot, part.nr_pages)
            if part.kind == VMA_OBJECT:
                holder = memory.page_cache.of(part.object_id)
                if holder.kind == SHMEM:
                    holder.set_policy(part.index, part.index + part.nr_pages, policy)
            part = replace(part, policy=policy)
        parts.append(part)
    task.mm.replace_range(start, end, parts)


def _equal(one: Mempolicy | None, other: Mempolicy | None) -> bool:
    """`__mpol_equal`: the stored user mask counts, the cpuset's mems do not."""
    if one is None or other is None:
        return one is other
    if (one.mode, one.flags, one.home_node) != (other.mode, other.flags, other.home_node):
        return False
    return (not one.stores_user_nodemask or one.w == other.w) and one.nodes == other.nodes


def _first_turn(memory: Memory, task: Task, queued: Queued) -> int:
    """Where turns of interleaving begin for pages that mbind moves: with the inode number of the shared memory that
    the first page belongs to, and for pages behind it as well (6.7); 6.1 forgets it.
    """
    vma = task.mm.find(queued[0][1]) if queued and task.resolver.linux.folio_mempolicy else None
    if vma is None or vma.kind != VMA_OBJECT:
        return 0
    holder = memory.page_cache.of(vma.object_id)
    return holder.ino if holder.kind == SHMEM else 0


def _policy_context(memory: Memory, task: Task, vpn: int, first_turn: int) -> AllocContext:
    """`new_page`: where the policy in force at an address wants the page."""
    vma = task.mm.find(vpn)
    assert vma is not None  # it was queued from there
    request, interleave = vma_request(memory, task, vma, vpn, first_turn)
    return task.context_of(replace(request, reason=Reason.USER_MOVE), interleave)


# -- moving pages


def _migrate(memory: Memory, pfns: list[int], contexts: list[AllocContext]) -> int:
    """`migrate_pages`: each frame to a new one from its context. Returns how many found no place and stay.

    The pages are isolated first, out of reach of the reclaim that the allocations may start. On NeedsExtent
    those that have a new frame have moved, and the others are where they were: the call, made again, finds only
    these.
    """
    pfns, contexts = thp_migrate.move_whole(memory, pfns, contexts)
    for pfn in pfns:
        memory.lru_del(pfn)
    pairs: list[tuple[int, int]] = []
    taken: dict[int, int] = {}
    try:
        for pfn, context in zip(pfns, contexts, strict=True):
            new = _target_frame(memory, context, taken)
            if new >= 0:
                pairs.append((pfn, new))
    finally:
        moving = dict(pairs)
        for pfn in pfns:
            if pfn not in moving:
                memory.lru_add(pfn)
        _move_pairs(memory, pairs)
    return len(pfns) - len(pairs)


def _move_pairs(memory: Memory, pairs: list[tuple[int, int]]) -> None:
    """Move pages (old frame, new frame) in runs from one node to another."""
    nid_of = memory.frames.nid_of
    run: list[tuple[int, int]] = []
    for pair in pairs:
        if run and (nid_of(run[0][0]), nid_of(run[0][1])) != (nid_of(pair[0]), nid_of(pair[1])):
            _move_run(memory, run)
            run = []
        run.append(pair)
    if run:
        _move_run(memory, run)


def _target_frame(memory: Memory, context: AllocContext, taken: dict[int, int]) -> int:
    """A new frame, or a negative errno; a storing node gives no more than its device surely takes."""
    new = alloc_page(memory, context)
    if new < 0:
        return new
    node = memory.nodes[memory.frames.nid_of(new)]
    if node.spec.stores and taken.get(node.nid, 0) >= node.store_room_pages:
        free_unused_page(memory, new)
        return -errno.ENOMEM
    taken[node.nid] = taken.get(node.nid, 0) + 1
    return new


def _move_run(memory: Memory, run: list[tuple[int, int]]) -> None:
    old = np.array([pfn for pfn, _ in run], dtype=np.int32)
    new = np.array([pfn for _, pfn in run], dtype=np.int32)
    move_to_frames(memory, old, new, Reason.USER_MOVE)


def _to_node(task: Task, nid: int, mems: int | None) -> AllocContext:
    """`alloc_migration_target` with THISNODE."""
    request = AllocRequest(nid, None, Reason.USER_MOVE, this_node=True)
    resolution = task.resolver.resolve(request, mems)
    return replace(task.context_of(request), zones=resolution.zones, uninvited=resolution.uninvited)


def migrate_pages(memory: Memory, task: Task, old_nodes: int, new_nodes: int) -> int:
    """`kernel_migrate_pages` of a task by itself. Returns pages that could not move, or a negative errno."""
    new_nodes &= task.reach
    if not new_nodes:
        return -errno.EINVAL
    return do_migrate_pages(memory, task, old_nodes, new_nodes, True, task.reach)


def do_migrate_pages(
    memory: Memory, task: Task, old_nodes: int, new_nodes: int, move_all: bool, mems: int | None
) -> int:
    """Move a task's pages so that their relative places on `old_nodes` are kept on `new_nodes`.

    May raise NeedsExtent between two phases or in one. Made again, it goes on with that phase: what an earlier
    one moved may be on a node that a later one empties.
    """
    busy = migrate_phases(memory, task, old_nodes, new_nodes, move_all, mems)
    task.migrating = None
    return busy


def migrate_phases(
    memory: Memory, task: Task, old_nodes: int, new_nodes: int, move_all: bool, mems: int | None
) -> int:
    """`do_migrate_pages` of one of several tasks: that it is done stays known, until the caller forgets it."""
    memory.lru_batches.drain_all()
    left, busy = old_nodes, 0
    if task.migrating is not None and task.migrating[:2] == (old_nodes, new_nodes):
        _, _, left, busy = task.migrating
    while left:
        source, target = next_move(old_nodes, new_nodes, left)
        if source < 0:
            break
        task.migrating = (old_nodes, new_nodes, left, busy)
        busy += _migrate_to_node(memory, task, source, target, move_all, mems)
        left &= ~(1 << source)
    task.migrating = (old_nodes, new_nodes, 0, busy)
    return busy


def next_move(old_nodes: int, new_nodes: int, left: int) -> tuple[int, int]:
    """A node of `left` and where its pages go: preferably a node that no page still has to leave; (-1, 0)
    for none.
    """
    source, target = -1, 0
    same_size = nodemask.weight(old_nodes) == nodemask.weight(new_nodes)
    for nid in nodemask.nodes(left):
        if not same_size and nodemask.has(new_nodes, nid):
            continue
        goal = nodemask.remap_node(nid, old_nodes, new_nodes)
        if goal == nid:
            continue
        source, target = nid, goal
        if not nodemask.has(left, goal):
            break
    return source, target


def _migrate_to_node(
    memory: Memory, task: Task, source: int, target: int, move_all: bool, mems: int | None
) -> int:
    if not task.mm.vmas or not nodemask.has(task.resolver.topology.memory, source):
        return 0
    start, end = task.mm.vmas[0].start, task.mm.vmas[-1].end
    flags = MPOL_MF_MOVE_ALL if move_all else MPOL_MF_MOVE
    stuck, queued = _queue_pages(memory, task, start, end, 1 << source, flags, holes=True)
    context = _to_node(task, target, mems)
    failed = _migrate(memory, [pfn for pfn, _ in queued], [context] * len(queued))
    return failed + (stuck if task.resolver.linux.folio_mempolicy else 0)


def query_pages(memory: Memory, task: Task, vpns: list[int]) -> list[int]:
    """move_pages without nodes (`do_pages_stat`): the node of each page, or a negative errno."""
    return [_status(memory, task, vpn)[0] for vpn in vpns]


def query_range(memory: Memory, task: Task, start: int, nr_pages: int) -> list[int]:
    """`query_pages` of consecutive pages; the same answers, faster."""
    answers = np.full(nr_pages, -errno.EFAULT, dtype=np.int64)
    hidden = [nid for nid in nodemask.nodes(task.resolver.topology.private) if not _may_look_at(task, nid)]
    for part in task.mm.in_range(start, start + nr_pages):
        entries = memory.page_table.pte[part.slot : part.slot + part.nr_pages]
        present = entries & np.uint32(PTE_PRESENT) != 0
        pfns = np.where(present, entries >> np.uint32(PTE_PFN_SHIFT), 0).astype(np.int64)
        nids = memory.frames.node_of_section[pfns >> SECTION_SHIFT]
        nids = np.where(np.isin(nids, hidden), -errno.ENOENT, nids)
        absent = np.where(entries & np.uint32(PTE_SWAP) != 0, -errno.ENOENT, _absent(task, part))
        found = np.where(present, nids, absent)
        found[_without_rights(task, part, entries)] = -errno.ENOENT
        answers[part.start - start : part.end - start] = found
    return [int(answer) for answer in answers]


def _may_look_at(task: Task, nid: int) -> bool:
    return task.resolver.design.allows(Service.USER_MOVE, task.resolver.topology.node(nid))


def _without_rights(task: Task, vma: Vma, entries: np.ndarray) -> np.ndarray:
    """Entries at which there is something without the right to access it, which 6.1 does not look into
    (`gup_can_follow_protnone`): of PROT_NONE mappings, and those that NUMA balancing has taken.
    """
    if task.resolver.linux.follows_protnone:
        return np.zeros(len(entries), dtype=bool)
    present = (entries & np.uint32(PTE_PRESENT)) != 0
    if vma.accessible:
        return present & ((entries & np.uint32(PTE_PROTNONE)) != 0)
    return present | (entries == PTE_ZERO)


def _absent(task: Task, vma: Vma) -> int:
    """What is said of a page that is not there: 6.1 says -EFAULT in private anonymous memory, newer kernels say
    -ENOENT everywhere.
    """
    private = vma.kind == VMA_ANON and not task.resolver.linux.absent_is_enoent
    return -errno.EFAULT if private else -errno.ENOENT


def _status(memory: Memory, task: Task, vpn: int) -> tuple[int, int]:
    """(node or negative errno, frame) of one page, by `follow_page` with FOLL_DUMP.

    Linux 6.1 says -EFAULT for a page that is not there in anonymous memory, -ENOENT in other mappings;
    newer kernels say -ENOENT for both.
    """
    vma = task.mm.find(vpn)
    if vma is None:
        return -errno.EFAULT, -1
    entry = int(memory.page_table.pte[vma.slot_of(vpn)])
    if _without_rights(task, vma, np.array([entry]))[0]:
        return -errno.ENOENT, -1
    if not entry & PTE_PRESENT:
        return -errno.ENOENT if entry & PTE_SWAP else _absent(task, vma), -1
    pfn = entry >> PTE_PFN_SHIFT
    if not _may_look(memory, task, pfn):
        return -errno.ENOENT, pfn
    return memory.frames.nid_of(pfn), pfn


def move_pages(
    memory: Memory, task: Task, vpns: list[int], nodes: list[int], flags: int
) -> tuple[int, list[int]]:
    """`do_pages_move`: (0, a negative errno, or the number of pages that could not move; status of each
    page).

    Stops at the first page whose node is impossible; what was queued until then has moved.
    """
    status = [STATUS_UNSET] * len(vpns)
    if flags & ~_MF_MOVES:
        return -errno.EINVAL, status
    memory.lru_batches.drain_all()
    error = 0
    queued: list[tuple[int, int, int]] = []  # position, frame, node
    seen: dict[int, int] = {}
    for position, (vpn, nid) in enumerate(zip(vpns, nodes, strict=True)):
        error = _target_error(task, nid)
        if error:
            break
        answer, pfn = _status(memory, task, vpn)
        if answer >= 0 and answer != nid:
            if not (flags & MPOL_MF_MOVE_ALL or memory.mapped_once(pfn)):
                answer = -errno.EACCES
                if memory.story is not None:
                    memory.story.stayed(pfn, "EACCES: mapped more than once, and not MPOL_MF_MOVE_ALL")
            elif pfn in seen or not np.all(memory.frames.flags[thp_migrate.page_of(memory, pfn)] & PG_LRU):
                answer = -errno.EBUSY
                if memory.story is not None and pfn not in seen:
                    memory.story.stayed(pfn, f"EBUSY: {_why_not(memory, task, pfn)}")
            else:
                for part in thp_migrate.page_of(memory, pfn):
                    seen[part] = position
                    queued.append((position, part, nid))
                continue
        if memory.story is not None and answer == -errno.ENOENT and pfn >= 0:
            memory.story.stayed(pfn, f"ENOENT: {_why_not(memory, task, pfn)}")
        status[position] = answer
    contexts = [_to_node(task, nid, task.mems_allowed) for _, _, nid in queued]
    failed = _migrate(memory, [pfn for _, pfn, _ in queued], contexts)
    for position, _, _ in queued:
        status[position] = _status(memory, task, vpns[position])[0]
    return error or failed, status


def _target_error(task: Task, nid: int) -> int:
    if nid < 0 or not nodemask.has(task.resolver.design.move_targets(task.resolver.topology), nid):
        return -errno.ENODEV
    return 0 if nodemask.has(task.reach, nid) else -errno.EACCES
