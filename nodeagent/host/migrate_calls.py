"""migrate_pages: all pages of a process from some nodes to others; cpusets use it too.

Models `kernel_migrate_pages` and `do_migrate_pages` (mm/mempolicy.c) of Linux 6.1. Calls return 0 or more
pages that could not move, or a negative errno.
"""

from __future__ import annotations

import errno

from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.task import Task
from privmem.nodeagent.host.user_moves import migrate, queue_pages, to_node
from privmem.scheduler import nodemask
from privmem.scheduler.abi import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL


def migrate_pages(
    memory: Memory, caller: Task, old_nodes: int, new_nodes: int, task: Task | None = None
) -> int:
    """`kernel_migrate_pages` of another task, or of the caller itself. -EPERM for a task that the caller may
    not look into, and, without CAP_SYS_NICE, for a node that the task may not use; -EINVAL when the caller
    may use none.
    """
    task = task or caller
    if task is not caller and not caller.root:
        return -errno.EPERM
    if new_nodes & ~task.reach and not caller.root:
        return -errno.EPERM
    new_nodes &= caller.reach
    if not new_nodes:
        return -errno.EINVAL
    return do_migrate_pages(memory, task, old_nodes, new_nodes, caller.root, caller.reach)


def do_migrate_pages(
    memory: Memory, task: Task, old_nodes: int, new_nodes: int, move_all: bool, mems: int | None
) -> int:
    """Move a task's pages so that their relative places on `old_nodes` are kept on `new_nodes`: how many
        could not be isolated, or -ENOMEM when a node has no more memory.

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
    while left and busy >= 0:
        source, target = next_move(old_nodes, new_nodes, left)
        if source < 0:
            break
        task.migrating = (old_nodes, new_nodes, left, busy)
        moved = _migrate_to_node(memory, task, source, target, move_all, mems)
        busy = busy + moved if moved >= 0 else moved
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
    stuck, queued = queue_pages(memory, task, start, end, 1 << source, flags, holes=True)
    context = to_node(task, target, mems)
    error = migrate(memory, [pfn for pfn, _ in queued], [context] * len(queued))
    return error or (stuck if task.resolver.linux.folio_mempolicy else 0)
