"""The OOM killer: when neither reclaim nor the pool can help, the largest program goes.

Models `oom_badness` of Linux 6.1 without oom_score_adj: the task with the most resident pages; the lower pid
among equals. A task that runs can be chosen even when it has no page, as in the kernel: where memory is held
by what no program owns, killing ends the tasks that ask for more.
"""

from __future__ import annotations

import numpy as np

from privmem.nodeagent.host.fault import unmap_range
from privmem.nodeagent.host.layout import PTE_PRESENT
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.program import Program
from privmem.nodeagent.host.task import Task
from privmem.scheduler.abi import Mpol


def kill_largest(memory: Memory, programs: list[Program]) -> None:
    """`oom_kill_process`: the victim's memory is free at once."""
    alive = [p for p in programs if not p.killed and (not p.ended or _resident_pages(memory, p))]
    victim = max(alive, key=lambda p: (_resident_pages(memory, p), -p.spec.pid))
    for vma in victim.task.mm.vmas:
        unmap_range(memory, vma)
    victim.ended = victim.killed = True
    memory.vmstat.add("oom_kill")


def _resident_pages(memory: Memory, program: Program) -> int:
    pte = memory.page_table.pte
    return sum(
        int(np.count_nonzero(pte[v.slot : v.slot + v.nr_pages] & np.uint32(PTE_PRESENT)))
        for v in program.task.mm.vmas
    )


def in_domain(task: Task, nodes: int | None) -> bool:
    """`mempolicy_in_oom_domain`: whether killing a task can free memory of the nodes that a policy confined the
    failing request to. Only a bind to other nodes says that it cannot.
    """
    if nodes is None or task.policy is None or task.policy.mode != Mpol.BIND:
        return True
    return bool(task.policy.nodes & nodes)
