"""Cpusets: on which nodes a group of tasks may have memory, and what a change does to their policies.

Models the memory half of cgroup v2 `cpuset.mems` as in `kernel/cgroup/cpuset.c`, Linux 6.1:
`update_nodemask`, `update_nodemasks_hier`, `cpuset_change_task_nodemask`, `update_tasks_nodemask`. In v2 a
change moves pages along (CS_MEMORY_MIGRATE is always set on the default hierarchy). Which private nodes may
be named is the isolation design's rule and comes in as `CpusetNodes`. Left out: v1, exclusive cpusets,
partitions, the CPU half.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace

from privmem.scheduler import mempolicy, nodemask
from privmem.scheduler.mempolicy import Mempolicy, PolicyNodes


@dataclass(frozen=True, slots=True)
class CpusetNodes:
    """Which nodes a write to `cpuset.mems` may name, under an isolation design."""

    #: Nodes that may be named at all; another one is EINVAL.
    namable: int
    #: At least one of these must be among the named ones (EINVAL otherwise); 0 asks for none.
    must_keep: int = 0
    #: General nodes: when a request names nodes but none of these, the parent's are added to what is granted.
    adds_general: int = 0
    #: Nodes that may be named and never take effect.
    inert: int = 0
    #: Nodes whose pages move along when a cpuset's mems change, and to which they move.
    migrates: int = -1

    @property
    def top(self) -> int:
        """What the top cpuset has in effect."""
        return self.namable & ~self.inert


@dataclass(frozen=True, slots=True)
class Cpuset:
    """The memory side of one cpuset."""

    #: What was written (`mems_allowed`); empty means "as the parent".
    requested: int
    #: What tasks get (`effective_mems`).
    effective: int

    @staticmethod
    def inheriting(parent_effective: int) -> Cpuset:
        """A fresh v2 cpuset: nothing requested, all of the parent's nodes in effect."""
        return Cpuset(0, parent_effective)


@dataclass(frozen=True, slots=True)
class MemsChange:
    """What follows from a write to `cpuset.mems`. With an errno nothing else changed."""

    error: int
    cpuset: Cpuset
    #: Tasks of the cpuset are rebound and their pages moved from `old_effective` to `cpuset.effective`.
    rebinds: bool = False
    old_effective: int = 0


def write_mems(
    cpuset: Cpuset, requested: int, parent_effective: int, rules: CpusetNodes, populated: bool = True
) -> MemsChange:
    """`update_nodemask` and `update_nodemasks_hier` for one cpuset below `parent_effective`.

    A cpuset with tasks (`populated`) that once had mems cannot be emptied again: ENOSPC (`validate_change`).
    """
    if not nodemask.is_subset(requested, rules.namable):
        return MemsChange(-errno.EINVAL, cpuset)
    if requested and rules.must_keep and not requested & rules.must_keep:
        return MemsChange(-errno.EINVAL, cpuset)
    if requested == cpuset.requested:
        return MemsChange(0, cpuset)
    if populated and cpuset.requested and not requested:
        return MemsChange(-errno.ENOSPC, cpuset)
    effective = effective_mems(requested, parent_effective, rules)
    changed = replace(cpuset, requested=requested, effective=effective)
    return MemsChange(0, changed, effective != cpuset.effective, cpuset.effective)


def effective_mems(requested: int, parent_effective: int, rules: CpusetNodes) -> int:
    """`update_nodemasks_hier` in v2: what a cpuset gets of its parent's nodes; all of them if nothing is left."""
    granted = requested & parent_effective & ~rules.inert
    if granted and rules.adds_general and not granted & rules.adds_general:
        granted |= parent_effective & rules.adds_general
    return granted or parent_effective & ~rules.inert or parent_effective


def rebind_task(policy: Mempolicy | None, change: MemsChange, rules: PolicyNodes) -> Mempolicy | None:
    """`cpuset_change_task_nodemask`: the task's own policy takes the effective mems."""
    return mempolicy.rebind(policy, change.cpuset.effective, rules) if change.rebinds else policy


def rebind_vma(policy: Mempolicy | None, change: MemsChange, rules: PolicyNodes) -> Mempolicy | None:
    """`mpol_rebind_mm`: VMA policies take the mems as *requested* (6.1 passes `cs->mems_allowed`, not the
    effective ones).

    An empty request would leave a policy with no node; it is read as the effective mems.
    """
    mems = change.cpuset.requested or change.cpuset.effective
    return mempolicy.rebind(policy, mems, rules) if change.rebinds else policy
