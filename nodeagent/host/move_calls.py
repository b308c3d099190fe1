"""move_pages: where pages are, and to which node each of them shall go.

Models `do_pages_stat` and `do_pages_move` (mm/migrate.c) of Linux 6.1. Pages for the same node that follow
each other move together; a page that needs no move, or cannot be moved, ends such a run.
"""

from __future__ import annotations

import errno

import numpy as np

from privmem.nodeagent.host import hugetlb_move, thp_migrate
from privmem.nodeagent.host.high_order import HPAGE_PAGES
from privmem.nodeagent.host.layout import (
    PG_LRU,
    PTE_PFN_SHIFT,
    PTE_PRESENT,
    PTE_PROTNONE,
    PTE_SWAP,
    PTE_ZERO,
)
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import VMA_ANON, Vma
from privmem.nodeagent.host.task import Task
from privmem.nodeagent.host.user_moves import MF_MOVES, may_look, migrate, to_node, why_not
from privmem.scheduler import nodemask
from privmem.scheduler.abi import MPOL_MF_MOVE_ALL, SECTION_SHIFT
from privmem.scheduler.isolation import Service

#: Status of a page that move_pages did not come to: the kernel leaves the user's array as it was.
STATUS_UNSET = -999


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
    """What is said of a page that is not there: 6.1 says -EFAULT in private anonymous memory, newer kernels
    say -ENOENT everywhere.
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
    if not may_look(memory, task, pfn):
        return -errno.ENOENT, pfn
    return memory.frames.nid_of(pfn), pfn


def move_pages(
    memory: Memory, caller: Task, vpns: list[int], nodes: list[int], flags: int, task: Task | None = None
) -> tuple[int, list[int]]:
    """`kernel_move_pages` of pages of another task, or of the caller's: (0 or a negative errno, status of
        each page).

    -EPERM for MPOL_MF_MOVE_ALL without CAP_SYS_NICE, and for a task that the caller may not look into. At a node
    that is no target the call ends with -ENODEV or -EACCES, at a page for which its node has no memory with
    -ENOMEM: what was queued until then has moved as far as memory went, and a page of a run that was cut short
    has no status.
    """
    task = task or caller
    status = [STATUS_UNSET] * len(vpns)
    if flags & ~MF_MOVES:
        return -errno.EINVAL, status
    if not caller.root and (flags & MPOL_MF_MOVE_ALL or task is not caller):
        return -errno.EPERM, status
    memory.lru_batches.drain_all()
    run = _Run(memory, task, status, caller.reach)
    for position, (vpn, nid) in enumerate(zip(vpns, nodes, strict=True)):
        error = _target_error(task, nid)
        if error:
            run.flush(position)
            return error, status
        if run.nid not in (None, nid):
            error = run.flush(position)
            if error:
                return error, status
        answer = run.add(position, vpn, nid, bool(flags & MPOL_MF_MOVE_ALL))
        if answer is None:
            continue
        status[position] = answer
        error = run.flush(position)
        if error:
            return error, status
    return run.flush(len(vpns)), status


class _Run:
    """Pages that follow each other and go to the same node (`pagelist` of `do_pages_move`)."""

    def __init__(self, memory: Memory, task: Task, status: list[int], mems: int) -> None:
        self.memory = memory
        self.task = task
        self.status = status
        #: Where the caller may allocate.
        self.mems = mems
        self.nid: int | None = None
        self.start = 0
        self.frames: dict[int, None] = {}

    def add(self, position: int, vpn: int, nid: int, move_all: bool) -> int | None:
        """`add_page_for_migration`: None when the page is queued, else its status."""
        memory, task = self.memory, self.task
        answer, pfn = _status(memory, task, vpn)
        story = memory.story
        if answer < 0 or answer == nid:
            if story is not None and answer == -errno.ENOENT and pfn >= 0:
                story.stayed(pfn, f"ENOENT: {why_not(memory, task, pfn)}")
            return answer
        if not (move_all or memory.mapped_once(pfn)):
            if story is not None:
                story.stayed(pfn, "EACCES: mapped more than once, and not MPOL_MF_MOVE_ALL")
            return -errno.EACCES
        whole = thp_migrate.page_of(memory, pfn)
        if hugetlb_move.is_pool_page(memory, pfn):
            if pfn % HPAGE_PAGES:
                return -errno.EACCES  # a part that is not the first (6.1)
            ready = hugetlb_move.may_isolate(memory, pfn)
        else:
            ready = bool(np.all(memory.frames.flags[whole] & PG_LRU))
        if pfn in self.frames or not ready:
            if story is not None and pfn not in self.frames:
                story.stayed(pfn, f"EBUSY: {why_not(memory, task, pfn)}")
            return -errno.EBUSY
        if not self.frames:
            self.nid, self.start = nid, position
        self.frames.update(dict.fromkeys(whole))
        return None

    def flush(self, position: int) -> int:
        """`move_pages_and_store_status` of the pages before `position`: 0 or -ENOMEM."""
        nid, frames = self.nid, list(self.frames)
        self.nid, self.frames = None, {}
        if nid is None:
            return 0
        context = to_node(self.task, nid, self.mems)
        error = migrate(self.memory, frames, [context] * len(frames))
        if not error:
            self.status[self.start : position] = [nid] * (position - self.start)
        return error


def _target_error(task: Task, nid: int) -> int:
    if nid < 0 or not nodemask.has(task.resolver.design.move_targets(task.resolver.topology), nid):
        return -errno.ENODEV
    return 0 if nodemask.has(task.reach, nid) else -errno.EACCES
