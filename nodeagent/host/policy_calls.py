"""Home nodes and the weights of interleaving: calls and files about memory policies that came after Linux 5.16.

Models `set_mempolicy_home_node` (Linux 5.17, mm/mempolicy.c of 6.1) and the files of weighted interleaving
(`/sys/kernel/mm/mempolicy/weighted_interleave/nodeN`, Linux 6.9), which exist only when the host follows a kernel
that has them.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from privmem.nodeagent.host import hugetlb_map
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.mm import VMA_OBJECT, Vma
from privmem.nodeagent.host.pagecache import SHMEM
from privmem.nodeagent.host.task import Task
from privmem.scheduler import mempolicy, nodemask
from privmem.scheduler.mempolicy import Mempolicy

if TYPE_CHECKING:
    from privmem.nodeagent.host.kernel import Kernel

_WEIGHTS = "/sys/kernel/mm/mempolicy/weighted_interleave/"


def set_mempolicy_home_node(
    memory: Memory, task: Task, start: int, nr_pages: int, nid: int, flags: int = 0
) -> int:
    """`set_mempolicy_home_node` over pages [start, start + nr_pages): 0 or a negative errno.

    EINVAL for flags and for a node that cannot be a home. Parts without a policy are passed over; -ENOENT when
    no part had one, -EOPNOTSUPP at the first whose mode has no home. Parts before it keep their new home.
    """
    topology = task.resolver.topology
    online = topology.memory | topology.with_cpus
    if flags or mempolicy.home_node_error(nid, online, task.resolver.policy_nodes):
        return -errno.EINVAL
    if nr_pages == 0:
        return 0
    end = start + nr_pages
    error = -errno.ENOENT
    parts: list[Vma] = []
    stopped = False
    for part in task.mm.in_range(start, end):
        if part.policy is not None and not stopped:
            error, policy = mempolicy.with_home_node(part.policy, nid)
            if not error and hugetlb_map.cuts_a_page(memory, task, part.start, part.end):
                error, policy = -errno.EINVAL, part.policy
            stopped = error != 0
            part = replace_policy(memory, part, policy)
        parts.append(part)
    task.mm.replace_range(start, end, parts)
    return error


def replace_policy(memory: Memory, part: Vma, policy: Mempolicy | None) -> Vma:
    """`vma_replace_policy`: a VMA, or part of one, under another policy; shared memory keeps it for its
    object too.
    """
    if part.kind == VMA_OBJECT:
        holder = memory.page_cache.of(part.object_id)
        if holder.kind == SHMEM:
            holder.set_policy(part.index, part.index + part.nr_pages, policy)
    return replace(part, policy=policy)


def write_weight(memory: Memory, nid: int, text: str) -> int:
    """`node_store`: a weight from 1 to 255; 0 and nothing give the default back."""
    error = mempolicy.weight_error(text)
    if error:
        return error
    weights = memory.resolver.weights
    if text and int(text):
        weights[nid] = int(text)
    else:
        weights.pop(nid, None)
    return 0


def read_weight(memory: Memory, nid: int) -> int:
    """`node_show`."""
    return memory.resolver.weights.get(nid, mempolicy.WEIGHT_DEFAULT)


def add_files(kernel: Kernel) -> None:
    """The files of one kernel, if it has them."""
    memory = kernel.memory
    if not memory.resolver.linux.weighted_interleave:
        return

    def read(text: str) -> str | int:
        nid = int(text)
        there = nodemask.has(memory.topology.memory, nid)
        return str(read_weight(memory, nid)) if there else -errno.ENOENT

    def write(text: str, value: str) -> int:
        nid = int(text)
        there = nodemask.has(memory.topology.memory, nid)
        return write_weight(memory, nid, value) if there else -errno.ENOENT

    kernel.sysfs.add(_WEIGHTS + r"node(\d+)", read, write)
