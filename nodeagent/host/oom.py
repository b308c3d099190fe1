"""The OOM killer: when neither reclaim nor the pool can help, the largest task goes.

Models mm/oom_kill.c of Linux 6.1: `constrained_alloc`, `oom_cpuset_eligible` with `mempolicy_in_oom_domain`,
`oom_badness` and the choice of the task with most points, the youngest among equals. Points are resident and
swapped pages, and `oom_score_adj` thousandths of the memory in question, to which a private node adds only where
the design says so (`Service.OOM_MEMORY`). A task that runs can be chosen even when it has no page, as in the
kernel. Left out: page tables in the points, `oom_kill_allocating_task`, killing whole groups, the reaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from privmem.nodeagent.host.fault import unmap_range
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.page_alloc import AllocContext
from privmem.nodeagent.host.program import Program
from privmem.nodeagent.host.story import node_words
from privmem.nodeagent.host.swap_area import swap_entries
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGE_SHIFT, Mpol, Reason
from privmem.scheduler.isolation import Service

#: `OOM_SCORE_ADJ_MIN`: such a task is never killed.
ADJ_MIN = -1000
#: Requests of these kinds go without, rather than have somebody killed.
_NEVER = frozenset(
    {Reason.OWNER, Reason.CONTIG, Reason.DEMOTION, Reason.PROMOTION, Reason.COLLAPSE, Reason.HUGETLB}
)


class Constraint(IntEnum):
    """`enum oom_constraint`."""

    NONE = 0
    CPUSET = 1
    MEMORY_POLICY = 2
    MEMCG = 3


@dataclass(frozen=True, slots=True)
class OomControl:
    """`struct oom_control`: what memory could not be had, and who can give it back."""

    constraint: Constraint = Constraint.NONE
    #: With MEMORY_POLICY: nodes of the request's mask; with CPUSET: those of the cpuset.
    nodes: int = 0
    #: With MEMCG: the group whose limit was hit.
    memcg: int = 0

    def __str__(self) -> str:
        """Whose memory ran out, in words."""
        nodes = node_words(tuple(nodemask.nodes(self.nodes)))
        return {
            Constraint.NONE: "no node has memory left",
            Constraint.CPUSET: f"a cpuset confines the request to {nodes}",
            Constraint.MEMORY_POLICY: f"a policy confines the request to {nodes}",
            Constraint.MEMCG: "its memory control group is over the limit",
        }[self.constraint]


def tell(memory: Memory, victim: Task, control: OomControl) -> None:
    """The story hears who was killed, and why one of those."""
    if memory.story is not None:
        pages = task_pages(memory, victim)
        memory.story.killed(victim.mm.mm_id, f": {control}, and this one has most points ({pages} pages)")


def log_lines(memory: Memory, victim: Task, control: OomControl) -> list[str]:
    """`dump_oom_summary` and `__oom_kill_process`, cut to what is modelled."""
    constraint = "NONE" if not control.constraint else control.constraint.name
    nodes = nodemask.format_list(control.nodes) if control.nodes else "(null)"
    mems = nodemask.format_list(victim.mems_allowed)
    where = (
        f"oom-kill:constraint=CONSTRAINT_{constraint},nodemask={nodes},mems_allowed={mems},pid={victim.pid}"
    )
    kilobytes = task_pages(memory, victim) << (PAGE_SHIFT - 10)
    cause = "Memory cgroup out of memory" if control.constraint is Constraint.MEMCG else "Out of memory"
    return [where, f"{cause}: Killed process {victim.pid} rss:{kilobytes}kB"]


def may_kill(ctx: AllocContext) -> bool:
    """`__alloc_pages_may_oom`: not for a request that is confined to one node by THISNODE, nor for one that has
    something else to fall back on.
    """
    confined = ctx.request is not None and ctx.request.this_node
    return ctx.may_oom and ctx.may_reclaim and not confined and ctx.reason not in _NEVER


def constrained_alloc(memory: Memory, ctx: AllocContext | None, mems_allowed: int) -> OomControl:
    """`constrained_alloc` of the request that failed, by a task with these mems."""
    if memory.failed_memcg:
        return OomControl(Constraint.MEMCG, memcg=memory.failed_memcg)
    request = None if ctx is None else ctx.request
    everything = memory.topology.memory
    if request is None or request.this_node:
        return OomControl()
    if request.nodemask is not None and everything & ~request.nodemask:
        return OomControl(Constraint.MEMORY_POLICY, request.nodemask)
    if memory.resolver.candidates(request, None) != memory.resolver.candidates(request, mems_allowed):
        return OomControl(Constraint.CPUSET, mems_allowed)
    return OomControl()


def is_eligible(memory: Memory, task: Task, control: OomControl) -> bool:
    """Whether killing a task can help."""
    if control.constraint is Constraint.MEMCG:
        return bool(memory.memcg.below(control.memcg)[memory.memcg.of_pid.get(task.pid, 0)])
    if control.constraint is Constraint.MEMORY_POLICY:
        return in_domain(task, oom_nodes(memory, control.nodes))
    if control.constraint is Constraint.CPUSET:
        return bool(task.mems_allowed & control.nodes)
    return True


def oom_nodes(memory: Memory, nodes: int) -> int:
    """Of the nodes that ran out, those whose users may be asked to go: a private node only where its memory counts
    (v4: with RECLAIM and DEMOTION). When no other ran out there is nobody else to ask.
    """
    counted = (nid for nid in nodemask.nodes(nodes) if memory.resolver.allows(Service.OOM_MEMORY, nid))
    return nodemask.of(counted) or nodes


def in_domain(task: Task, nodes: int) -> bool:
    """`mempolicy_in_oom_domain`: whether killing a task can free memory of the nodes that a policy confined the
    failing request to. Only a bind to other nodes says that it cannot.
    """
    if task.policy is None or task.policy.mode != Mpol.BIND:
        return True
    return bool(task.policy.nodes & nodes)


def total_pages(memory: Memory, control: OomControl) -> int:
    """`oc->totalpages`: the memory in question, with swap."""
    if control.constraint is Constraint.MEMCG:
        return memory.memcg.max_pages[control.memcg] or 1
    nodes = control.nodes if control.constraint else memory.topology.memory
    counted = [
        memory.nodes[nid].managed_pages
        for nid in nodemask.nodes(nodes & memory.topology.memory)
        if memory.resolver.allows(Service.OOM_MEMORY, nid)
    ]
    return sum(counted) + memory.swap.nr_pages


def task_pages(memory: Memory, task: Task) -> int:
    """Resident and swapped pages of a task."""
    pages = 0
    for vma in task.mm.vmas:
        entries = memory.page_table.pte[vma.slot : vma.slot + vma.nr_pages]
        pages += int(np.count_nonzero(entries & np.uint32(PTE_PRESENT)))
        pages += len(swap_entries(entries)) if memory.swap.nr_pages else 0
    return pages


def has_pages_on(memory: Memory, task: Task, nid: int) -> bool:
    """Whether a task maps a page of a node."""
    node = memory.nodes[nid]
    for vma in task.mm.vmas:
        entries = memory.page_table.pte[vma.slot : vma.slot + vma.nr_pages]
        pfns = entries[entries & np.uint32(PTE_PRESENT) != 0] >> PTE_PFN_SHIFT
        if np.any((pfns >= node.start_pfn) & (pfns < node.start_pfn + node.spec.span_pages)):
            return True
    return False


def badness(memory: Memory, task: Task, total: int) -> int | None:
    """`oom_badness`: points of a task; None for one that must not be killed."""
    if task.oom_score_adj == ADJ_MIN:
        return None
    return task_pages(memory, task) + task.oom_score_adj * total // 1000


def select_victim(memory: Memory, tasks: Sequence[Task], control: OomControl) -> Task | None:
    """`select_bad_process` among living tasks, oldest first."""
    total = total_pages(memory, control)
    chosen: Task | None = None
    most = 0
    for task in tasks:
        points = badness(memory, task, total) if is_eligible(memory, task, control) else None
        if points is not None and (chosen is None or points >= most):
            chosen, most = task, points
    return chosen


def kill_largest(memory: Memory, programs: list[Program], on_nid: int = -1) -> bool:
    """`out_of_memory` for the programs of a host: the victim's memory is free at once. With `on_nid` only those
    that have pages on a node; false when there is none.
    """
    alive = [p for p in programs if not p.killed and (not p.ended or task_pages(memory, p.task))]
    alive = [p for p in alive if on_nid < 0 or has_pages_on(memory, p.task, on_nid)]
    if not alive:
        return False
    alive.sort(key=lambda p: p.spec.pid)
    failed = memory.failed if on_nid < 0 else None
    asker = next((p for p in alive if failed is not None and p.spec.pid == failed.owner), alive[0])
    control = constrained_alloc(memory, failed, asker.task.mems_allowed) if on_nid < 0 else OomControl()
    task = select_victim(memory, [p.task for p in alive], control) or asker.task
    victim = next(p for p in alive if p.task is task)
    tell(memory, task, control)
    for vma in victim.task.mm.vmas:
        unmap_range(memory, vma)
    victim.release(memory)
    victim.ended = victim.killed = True
    memory.vmstat.add("oom_kill")
    return True
