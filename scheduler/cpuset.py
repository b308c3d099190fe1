"""Cpusets: on which nodes a group of tasks may have memory, and what a change does to their policies.

Models the memory half of cpusets as in `kernel/cgroup/cpuset.c`, Linux 6.1, for cgroup v2 and v1:
`update_nodemask`, `validate_change`, `update_nodemasks_hier`, `hotplug_update_tasks` (and `_legacy`),
`remove_tasks_in_empty_cpuset`, `cpuset_change_task_nodemask`. Which private nodes may be named, and what takes
effect of them, is the isolation design's rule and comes in as `CpusetNodes`. Left out: exclusive cpusets,
partitions, the CPU half.

The two versions differ. In v2 any possible node may be requested, what the parent does not have takes no
effect, an empty result means all of the parent's, and pages always move along (CS_MEMORY_MIGRATE is set on the
default hierarchy). In v1 a cpuset is a subset of its parent at all times, starts empty, loses nodes for good
when they are unplugged, and moves pages only when its `memory_migrate` file says so.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from privmem.scheduler import mempolicy, nodemask
from privmem.scheduler.mempolicy import Mempolicy, PolicyNodes


@dataclass(frozen=True, slots=True)
class CpusetNodes:
    """Which nodes a write to `cpuset.mems` may name under an isolation design, and what comes of it."""

    #: Nodes that may be named at all; another one is EINVAL.
    namable: int
    #: At least one of these must be among the named ones (EINVAL otherwise); 0 asks for none.
    must_keep: int = 0
    #: General nodes that the design adds: a v2 request that grants none of them gets the parent's as well; a
    #: v1 request without one is ENOSPC. 0: it adds none.
    adds_general: int = 0
    #: Nodes that may be named and never take effect: the top cpuset does not have them.
    inert: int = 0
    #: Nodes whose pages move along when a cpuset's mems change, and to which they move.
    migrates: int = -1
    #: Nodes that have memory now, when more can be named than those.
    memory: int = -1

    @property
    def top(self) -> int:
        """What the top cpuset has in effect: all nodes with memory that cpusets are about."""
        return (self.namable if self.memory < 0 else self.memory) & ~self.inert


@dataclass(frozen=True, slots=True)
class Cpuset:
    """The memory side of one cpuset."""

    #: What was written (`mems_allowed`); in v2 empty means "as the parent".
    requested: int
    #: What tasks get (`effective_mems`).
    effective: int

    @staticmethod
    def inheriting(parent_effective: int) -> Cpuset:
        """A fresh v2 cpuset: nothing requested, all of the parent's nodes in effect."""
        return Cpuset(0, parent_effective)

    @staticmethod
    def empty() -> Cpuset:
        """A fresh v1 cpuset: no node, until one is written."""
        return Cpuset(0, 0)


@dataclass(frozen=True, slots=True)
class MemsChange:
    """What follows for one cpuset. With an errno nothing else changed."""

    error: int
    cpuset: Cpuset
    #: Tasks of the cpuset are rebound and their pages moved from `old_effective` to `cpuset.effective`.
    rebinds: bool = False
    old_effective: int = 0


@dataclass(frozen=True, slots=True)
class Hotplugged:
    """What memory that came or went does to all cpusets."""

    #: By name, parents before children.
    changes: dict[str, MemsChange]
    #: v1 cpusets that have become empty, and the ancestor to which their tasks go.
    evicted: dict[str, str] = field(default_factory=dict)


# -- writing cpuset.mems


def write_mems(
    cpuset: Cpuset, requested: int, parent_effective: int, rules: CpusetNodes, populated: bool = True
) -> MemsChange:
    """`update_nodemask` in v2, for one cpuset below `parent_effective`.

    A cpuset with tasks (`populated`) that once had mems cannot be emptied again: ENOSPC (`validate_change`).
    """
    error = _naming_error(requested, rules)
    if error:
        return MemsChange(error, cpuset)
    if requested == cpuset.requested:
        return MemsChange(0, cpuset)
    if populated and cpuset.requested and not requested:
        return MemsChange(-errno.ENOSPC, cpuset)
    return _change(cpuset, requested, effective_mems(requested, parent_effective, rules))


def write_mems_v1(
    cpuset: Cpuset,
    requested: int,
    parent: Cpuset,
    children: Iterable[Cpuset],
    rules: CpusetNodes,
    populated: bool = True,
) -> MemsChange:
    """`update_nodemask` in v1: only nodes with memory can be named; parent and children bound the request.

    EBUSY when a child has a node that would go, EACCES for a node that the parent does not have
    (`validate_change_legacy`).
    """
    error = _naming_error(requested, rules) or (-errno.EINVAL if requested & ~rules.top else 0)
    if error:
        return MemsChange(error, cpuset)
    if requested and rules.adds_general and not requested & rules.adds_general:
        return MemsChange(-errno.ENOSPC, cpuset)
    if requested == cpuset.requested:
        return MemsChange(0, cpuset)
    if any(not nodemask.is_subset(child.requested, requested) for child in children):
        return MemsChange(-errno.EBUSY, cpuset)
    if not nodemask.is_subset(requested, parent.effective):
        return MemsChange(-errno.EACCES, cpuset)
    if populated and cpuset.requested and not requested:
        return MemsChange(-errno.ENOSPC, cpuset)
    return _change(cpuset, requested, requested)


def _naming_error(requested: int, rules: CpusetNodes) -> int:
    if not nodemask.is_subset(requested, rules.namable):
        return -errno.EINVAL
    if requested and rules.must_keep and not requested & rules.must_keep:
        return -errno.EINVAL
    return 0


def _change(cpuset: Cpuset, requested: int, effective: int) -> MemsChange:
    changed = replace(cpuset, requested=requested, effective=effective)
    return MemsChange(0, changed, effective != cpuset.effective, cpuset.effective)


def attach_error(cpuset: Cpuset, legacy: bool) -> int:
    """`cpuset_can_attach`: a v1 cpuset without nodes takes no task (ENOSPC)."""
    return -errno.ENOSPC if legacy and not cpuset.effective else 0


def effective_mems(requested: int, parent_effective: int, rules: CpusetNodes) -> int:
    """What a v2 cpuset gets of its parent's nodes; all of them if nothing is left of its request."""
    granted = requested & parent_effective
    if granted and rules.adds_general and not granted & rules.adds_general:
        granted |= parent_effective & rules.adds_general
    return granted or parent_effective


# -- hierarchies: cpusets by name, and the name of each one's parent


def update_below(
    cpusets: Mapping[str, Cpuset], parents: Mapping[str, str], name: str, rules: CpusetNodes
) -> dict[str, MemsChange]:
    """`update_nodemasks_hier` in v2 below a cpuset whose effective mems are new: what changes, parents first.

    A subtree whose top stays as it was is skipped. (In v1 no child can be affected.)
    """
    changes: dict[str, MemsChange] = {}
    effective = {name: cpusets[name].effective}
    for child in _descendants(parents, name):
        above = effective.get(parents[child])
        if above is None:
            continue
        old = cpusets[child]
        new = effective_mems(old.requested, above, rules)
        if new != old.effective:
            changes[child] = _change(old, old.requested, new)
            effective[child] = new
    return changes


def hotplug(
    cpusets: Mapping[str, Cpuset],
    parents: Mapping[str, str],
    top: str,
    rules: CpusetNodes,
    legacy: bool = False,
) -> Hotplugged:
    """`cpuset_hotplug_workfn`: memory came or went; `rules` are those of the nodes as they are now.

    The top cpuset takes all nodes. In v2 the others keep their requests and get what is there of them; in v1
    they lose what went, and one without any node left hands its tasks to the nearest ancestor that has one.
    """
    after = {top: replace(cpusets[top], requested=rules.top, effective=rules.top)}
    changes: dict[str, MemsChange] = {}
    evicted: dict[str, str] = {}
    if cpusets[top].effective != rules.top:
        changes[top] = MemsChange(0, after[top], True, cpusets[top].effective)
    for name in _descendants(parents, top):
        old, above = cpusets[name], after[parents[name]]
        if legacy:
            left = old.requested & above.effective
            if rules.adds_general and not left & rules.adds_general:
                left = 0
            new = Cpuset(left, left)
            if old.effective and not left:
                evicted[name] = _nearest_with_nodes(after, parents, name)
        else:
            new = replace(old, effective=effective_mems(old.requested, above.effective, rules))
        after[name] = new
        if new.effective != old.effective:
            changes[name] = MemsChange(0, new, name not in evicted, old.effective)
    return Hotplugged(changes, evicted)


def _nearest_with_nodes(after: Mapping[str, Cpuset], parents: Mapping[str, str], name: str) -> str:
    """`remove_tasks_in_empty_cpuset`: the top cpuset always has some."""
    ancestor = parents[name]
    while not after[ancestor].effective:
        ancestor = parents[ancestor]
    return ancestor


def _descendants(parents: Mapping[str, str], name: str) -> Iterator[str]:
    """All below, parents before children, in the order in which they were made."""
    for child, parent in parents.items():
        if parent == name and child != name:
            yield child
            yield from _descendants(parents, child)


# -- what a change does to policies


def rebind_task(policy: Mempolicy | None, change: MemsChange, rules: PolicyNodes) -> Mempolicy | None:
    """`cpuset_change_task_nodemask`: the task's own policy takes the effective mems."""
    return mempolicy.rebind(policy, change.cpuset.effective, rules) if change.rebinds else policy


def rebind_vma(policy: Mempolicy | None, change: MemsChange, rules: PolicyNodes) -> Mempolicy | None:
    """`mpol_rebind_mm`: VMA policies take the mems as *requested* (6.1 passes `cs->mems_allowed`, not the
    effective ones).

    A request that is empty or holds no node on which policies may place would leave a policy with no node; it
    is read as the effective mems, and so is one that names only private nodes.
    """
    requested = change.cpuset.requested
    general = requested & rules.memory & ~rules.private
    return (
        mempolicy.rebind(policy, requested if general else change.cpuset.effective, rules)
        if change.rebinds
        else policy
    )
