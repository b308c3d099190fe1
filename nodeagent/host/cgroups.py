"""Control groups of an emulated Linux: the tree of cpusets, and what a change does to the tasks in them.

Models the memory half of `kernel/cgroup/cpuset.c`, Linux 6.1, in version 2 (the default) and version 1 of cgroups:
writing `cpuset.mems`, attaching a task, and what hotplug does. The rules are in scheduler/cpuset.py; here tasks are
rebound and pages moved. Left out: all other controllers, threads that are in another group than their process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from privmem.nodeagent.host import syscalls
from privmem.nodeagent.host.memory import Memory
from privmem.scheduler import cpuset
from privmem.scheduler.cpuset import Cpuset, CpusetNodes, MemsChange

if TYPE_CHECKING:
    from privmem.nodeagent.host.process import Process
    from privmem.nodeagent.host.task import Task


@dataclass(slots=True)
class Cgroup:
    """A control group: its cpuset, and where it hangs."""

    name: str
    parent: str
    cpuset: Cpuset
    #: `cpuset.memory_migrate` of version 1; version 2 always moves pages.
    memory_migrate: bool = False


class Cgroups:
    """The tree. The top group has the empty name. `processes` is the kernel's table, shared with it."""

    def __init__(self, memory: Memory, processes: dict[int, Process], legacy: bool) -> None:
        self.memory = memory
        self.processes = processes
        #: Version 1 of cgroups.
        self.legacy = legacy
        everything = self.rules.top
        self.groups = {"": Cgroup("", "", Cpuset(everything, everything))}

    @property
    def rules(self) -> CpusetNodes:
        """What the isolation design says, for the nodes that are there now."""
        return self.memory.resolver.cpuset_nodes

    def create(self, name: str, parent: str = "") -> Cgroup:
        """`mkdir`: in version 2 all of the parent's nodes are in effect, in version 1 none."""
        above = self.groups[parent].cpuset.effective
        group = Cgroup(name, parent, Cpuset.empty() if self.legacy else Cpuset.inheriting(above))
        self.groups[name] = group
        self.memory.memcg.create(name, parent)
        return group

    def tasks_of(self, name: str) -> list[Task]:
        """Living tasks of a group, by pid."""
        return [p.task for p in self.processes.values() if p.cgroup == name and not p.exited]

    def write_mems(self, name: str, requested: int) -> int:
        """Write `cpuset.mems`: 0 or a negative errno; tasks in it and below are rebound, and their pages move."""
        group, populated = self.groups[name], bool(self.tasks_of(name))
        parent = self.groups[group.parent].cpuset
        if self.legacy:
            below = [g.cpuset for g in self.groups.values() if g.name and g.parent == name]
            change = cpuset.write_mems_v1(
                group.cpuset, requested, parent, below, self.rules, populated=populated
            )
        else:
            change = cpuset.write_mems(
                group.cpuset, requested, parent.effective, self.rules, populated=populated
            )
        if change.error:
            return change.error
        self._apply({name: change})
        if not self.legacy:
            self._apply(cpuset.update_below(self._cpusets(), self._parents(), name, self.rules))
        return 0

    def attach(self, process: Process, name: str) -> int:
        """Write `cgroup.procs`: the process takes the group's mems, its pages follow (`cpuset_attach`)."""
        group = self.groups[name]
        error = cpuset.attach_error(group.cpuset, self.legacy)
        if not error:
            process.cgroup = name
            self.memory.memcg.attach(process.pid, name)
            self._move(process.task, group)
        return error

    def hotplug(self) -> None:
        """`cpuset_hotplug_workfn`: memory came or went."""
        outcome = cpuset.hotplug(self._cpusets(), self._parents(), "", self.rules, self.legacy)
        for name, ancestor in outcome.evicted.items():
            for process in self.processes.values():
                if process.cgroup == name and not process.exited:
                    process.cgroup = ancestor
                    self.memory.memcg.attach(process.pid, ancestor)
        self._apply(outcome.changes)
        for ancestor in dict.fromkeys(outcome.evicted.values()):
            for task in self.tasks_of(ancestor):
                self._move(task, self.groups[ancestor])

    # -- inside

    def _cpusets(self) -> dict[str, Cpuset]:
        return {name: group.cpuset for name, group in self.groups.items()}

    def _parents(self) -> dict[str, str]:
        return {name: group.parent for name, group in self.groups.items() if name}

    def _apply(self, changes: dict[str, MemsChange]) -> None:
        """Take over changed cpusets, in their order; the top cpuset never moves pages."""
        for name, change in changes.items():
            group = self.groups[name]
            group.cpuset = change.cpuset
            if change.rebinds:
                self._rebind(self.tasks_of(name), change, migrate=bool(name) and self._migrates(group))

    def _migrates(self, group: Cgroup) -> bool:
        return group.memory_migrate or not self.legacy

    def _move(self, task: Task, group: Cgroup) -> None:
        """A task that comes into a group takes its effective mems, for its mappings too."""
        mems = group.cpuset.effective
        if task.mems_allowed != mems:
            change = MemsChange(0, Cpuset(mems, mems), True, task.mems_allowed)
            self._rebind([task], change, migrate=self._migrates(group))

    def _rebind(self, tasks: list[Task], change: MemsChange, migrate: bool) -> None:
        if migrate:
            syscalls.apply_mems(self.memory, tasks, change)
        else:
            syscalls.rebind_tasks(tasks, change)
