"""One emulated Linux without rounds: nodes, hotplug, cgroups and processes whose system calls are Python methods.

What litmus tests, the isolation audit, the oracle and tests written in Python run on. It is the same memory
management as that of the host participant (host.py); here nobody else's time passes, and what the kernel's own
threads do happens when it is asked for. All devices answer at once and never refuse.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from privmem.nodeagent.host import (
    compaction,
    filemap,
    khugepaged,
    ksm,
    memcg,
    numa_balancing,
    oom,
    policy_calls,
    proc_files,
    syscalls,
    sysctl_files,
)
from privmem.nodeagent.host.audit import validate_memory
from privmem.nodeagent.host.cgroups import Cgroup, Cgroups
from privmem.nodeagent.host.cmdline import apply_command_line
from privmem.nodeagent.host.cram import worker
from privmem.nodeagent.host.drivers.owner import OwnerPages
from privmem.nodeagent.host.high_order_files import add_files
from privmem.nodeagent.host.hotplug import Hotplug, possible_mask
from privmem.nodeagent.host.layout import PG_HELD
from privmem.nodeagent.host.memory import Memory, NodeSpec, NumaBalancing, Sysctl
from privmem.nodeagent.host.memory_failure import Failure, memory_failure
from privmem.nodeagent.host.node_counts import meminfo_pages
from privmem.nodeagent.host.pagecache import MemObject
from privmem.nodeagent.host.process import Process
from privmem.nodeagent.host.reclaim import run_kswapd
from privmem.nodeagent.host.sysfs import Files, kilobytes
from privmem.nodeagent.host.task import Task
from privmem.nodeagent.host.wake import may_reclaim
from privmem.scheduler import mempolicy, nodemask
from privmem.scheduler.abi import Feature
from privmem.scheduler.isolation import DEFAULT_DESIGN, Design
from privmem.scheduler.isolation.design import Claim
from privmem.scheduler.tiers import ADISTANCE_DRAM
from privmem.scheduler.topology import ZONE_MOVABLE, ZONE_NORMAL, HostTopology, NodeTopology

#: More time than any kernel thread needs to come to rest.
_LONG_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class NodeBoot:
    """A node that the machine can have."""

    nid: int
    pages: int
    cpus: tuple[int, ...] = ()
    #: Claimed by a driver, and with which wishes (the design grants its own bits of them).
    private: bool = False
    wish: Feature = Feature.NONE
    zone: str = ZONE_NORMAL
    adistance: int = ADISTANCE_DRAM
    #: Device class, for reports.
    kind: str = "dram"
    #: Whether its memory is there from the start; a driver brings it otherwise.
    online: bool = True
    #: Whether a device driver of its own brings it (compressed RAM), so that it is not there at boot.
    by_device: bool = False
    read_ns: int = 100
    write_ns: int = 100


class Kernel:
    """See the module's docstring. `distances` is the SLIT in the order of `nodes`."""

    def __init__(
        self,
        nodes: Iterable[NodeBoot],
        distances: tuple[tuple[int, ...], ...],
        design: str = DEFAULT_DESIGN,
        sysctl: Sysctl | None = None,
        cgroup_v1: bool = False,
        cmdline: str = "",
    ) -> None:
        self.boot = {node.nid: node for node in nodes}
        knobs = sysctl or Sysctl(NumaBalancing(mode=0), demotion_enabled=False)
        topology = HostTopology(tuple(_at_boot(n) for n in self.boot.values()), distances)
        specs = [_backing(node) for node in self.boot.values()]
        self._run_on(Memory(topology, specs, knobs, design), cgroup_v1)
        for node in self.boot.values():
            if node.private and node.online:
                self._boot_private(node)
        self.cmdline = cmdline
        apply_command_line(self, cmdline)
        self.memory_changed()

    @classmethod
    def over(cls, memory: Memory, nodes: Iterable[NodeBoot], first_pid: int) -> Kernel:
        """A kernel over memory that is in use already, that of a host in a run: its private nodes are claimed with
        the features that they have, its processes begin with `first_pid`.
        """
        kernel = cls.__new__(cls)
        kernel.boot = {node.nid: node for node in nodes}
        kernel._run_on(memory, cgroup_v1=False)
        kernel._next_pid = first_pid
        for nid in nodemask.nodes(memory.topology.private):
            features = memory.topology.node(nid).features
            kernel.hotplug.claims[nid] = Claim(driver_name(nid), features)
        return kernel

    def _run_on(self, memory: Memory, cgroup_v1: bool) -> None:
        """All that a kernel has beside its memory, with nothing running yet."""
        self.memory = memory
        self.cmdline = ""
        #: Lines of the kernel's log (`dmesg`).
        self.log: list[str] = []
        self.hotplug = Hotplug(self.memory, self.log)
        self.files: dict[str, MemObject] = {}
        self.processes: dict[int, Process] = {}
        self.sysfs = Files(self)
        add_files(self)
        memcg.add_files(self)
        policy_calls.add_files(self)
        proc_files.add_files(self)
        sysctl_files.add_files(self)
        worker.add_files(self)
        self.owners = OwnerPages(self.memory)
        #: Stretches of memory that were advised MADV_MERGEABLE.
        self.mergeable: list[ksm.Area] = []
        self._next_pid = 1
        self.cgroup_tree = Cgroups(self.memory, self.processes, cgroup_v1)
        self.cgroups = self.cgroup_tree.groups
        self._memory_before = self.memory.topology.memory

    def _boot_private(self, node: NodeBoot) -> None:
        claim = Claim(driver_name(node.nid), self.design.grant(node.wish))
        error = self.hotplug.add_private_memory(node.nid, claim, 0, node.pages)
        if error:
            features = ", ".join(str(bit.name).lower() for bit in claim.features) or "no feature"
            hint = (
                "; a node that users may bind to needs user_write" if self._fenced_and_bindable(claim) else ""
            )
            raise OSError(
                -error, f"node {node.nid}: {self.design.name} refuses a claim with {features}{hint}"
            )
        self.hotplug.online(node.nid, node.zone)

    def _fenced_and_bindable(self, claim: Claim) -> bool:
        """Whether the first version's rule, that policies exclude the write fence, refuses this claim."""
        opened = replace(claim, features=claim.features | Feature.USER_WRITE)
        return Feature.USER_NUMA in claim.features and not self.design.claim_error(opened.features)

    @property
    def design(self) -> Design:
        """The isolation design in force."""
        return self.memory.resolver.design

    # -- processes and cgroups

    def spawn(self, cpu: int = 0, cgroup: str = "") -> Process:
        """A new process without mappings, in a cgroup."""
        task = Task(self._next_pid, cpu, self.memory.resolver)
        task.mems_allowed = self.cgroups[cgroup].cpuset.effective
        return self._adopt(task, cgroup)

    def forked(self, parent: Process) -> Process:
        """`fork`: see syscalls.fork."""
        return self._adopt(syscalls.fork(self.memory, parent.task, self._next_pid), parent.cgroup)

    def _adopt(self, task: Task, cgroup: str) -> Process:
        process = Process(self, task, cgroup)
        self.processes[task.pid] = process
        self.memory.memcg.attach(task.pid, cgroup)
        self._next_pid += 1
        return process

    def attach(self, process: Process, cgroup: str) -> int:
        """Write `cgroup.procs`: 0 or a negative errno."""
        return self.cgroup_tree.attach(process, cgroup)

    def hold(self, pfn: int) -> None:
        """A page that the kernel took for itself: on no LRU list, moved by nobody."""
        self.memory.frames.flags[pfn] |= np.uint16(PG_HELD)

    def create_cgroup(self, name: str, parent: str = "") -> Cgroup:
        """`mkdir` below /sys/fs/cgroup."""
        return self.cgroup_tree.create(name, parent)

    def write_mems(self, name: str, nodes: Iterable[int]) -> int:
        """Write `cpuset.mems` of a cgroup: 0 or a negative errno; tasks below are rebound, pages move."""
        return self.cgroup_tree.write_mems(name, nodemask.of(nodes))

    def tasks_of(self, cgroup: str) -> list[Task]:
        """Living tasks of a cgroup, by pid."""
        return self.cgroup_tree.tasks_of(cgroup)

    # -- files

    def create_file(self, name: str, nr_pages: int, source: int = 0) -> MemObject:
        """A file of this many pages, none of them cached."""
        self.files[name] = self.memory.page_cache.create_file(name, nr_pages, source)
        return self.files[name]

    def sync(self) -> None:
        """`sync(2)`."""
        filemap.sync(self.memory)

    def drop_caches(self) -> int:
        """`echo 1 > /proc/sys/vm/drop_caches`; how many pages went."""
        return filemap.drop_caches(self.memory)

    # -- the kernel's threads

    def kswapd(self, nid: int | None = None, wake: bool = False) -> None:
        """Let kswapd of one node, or of all, work until it rests. `wake`: even when nobody woke it; a private node
        without RECLAIM has none.
        """
        for node in self.memory.nodes.values() if nid is None else [self.memory.nodes[nid]]:
            node.kswapd_awake |= wake and may_reclaim(self.memory, node)
            run_kswapd(self.memory, node, _LONG_NS)

    def numa_scan(self, process: Process) -> None:
        """`task_numa_work` of a process, as if its scan period were over."""
        process.task.next_scan_ns = 0
        numa_balancing.scan(self.memory, process.task, self.memory.numa_balancing)

    def set_numa_balancing(self, mode: int) -> None:
        """Write kernel.numa_balancing: 0 off, 1 balancing, 2 memory tiering."""
        self.memory.numa_balancing = replace(self.memory.numa_balancing, mode=mode)

    def khugepaged(self, nr_pages: int | None = None) -> int:
        """One scan of khugepaged (default: `pages_to_scan`); how many huge pages it made."""
        tasks = [p.task for p in self.processes.values() if not p.exited]
        return khugepaged.khugepaged(self.memory, tasks, nr_pages)

    def kcompactd(self, nid: int, order: int) -> int:
        """kcompactd of a node, woken for free blocks of an order; how many pages it moved."""
        return compaction.kcompactd(self.memory, nid, order)

    def memory_failure(self, pfn: int) -> Failure:
        """A hardware error in a frame; the owner of a private node is told."""
        nr_frames = self.memory.frames.nr_frames
        claim = self.hotplug.claims.get(self.memory.frames.nid_of(pfn)) if 0 <= pfn < nr_frames else None
        return memory_failure(self.memory, pfn, claim.owner if claim else "")

    def merge_pages(self) -> int:
        """One full scan of ksmd; how many pages went for an equal one."""
        tasks = [p.task for p in self.processes.values() if not p.exited]
        return ksm.scan(self.memory, tasks, self.mergeable)

    def advance(self, time_ns: int) -> None:
        """Let virtual time pass."""
        self.memory.now_ns += time_ns

    def out_of_memory(self, process: Process) -> Process | None:
        """The OOM killer for a fault of `process`; the victim, or None when there is nobody to kill."""
        failed = self.memory.failed
        if failed is not None and not self.memory.failed_memcg and not oom.may_kill(failed):
            return None
        control = oom.constrained_alloc(self.memory, failed, process.task.mems_allowed)
        return self._kill(control)

    def _kill(self, control: oom.OomControl) -> Process | None:
        """`oom_kill_process` of whom the OOM killer chooses; a process without memory is as good as dead."""
        alive = [p for p in self.processes.values() if not p.exited and oom.task_pages(self.memory, p.task)]
        return self._die([p.task for p in alive], control)

    def _die(self, candidates: list[Task], control: oom.OomControl) -> Process | None:
        task = oom.select_victim(self.memory, candidates, control)
        if task is None:
            return None
        oom.tell(self.memory, task, control)
        self.log += oom.log_lines(self.memory, task, control)
        victim = self.processes[task.pid]
        self.memory.vmstat.add("oom_kill")
        if control.memcg:
            self.memory.memcg.events[control.memcg]["oom_kill"] += 1
        victim.killed = True
        victim.die()
        return victim

    def cram_worker(self) -> None:
        """Let the compressed RAM service's worker come to rest."""
        if self.memory.cram.nodes:
            worker.run(self.memory, self.kill_on)

    def kill_on(self, nid: int) -> bool:
        """Somebody with pages on a node dies: whoever has most points of those."""
        here = [
            p.task
            for p in self.processes.values()
            if not p.exited and oom.has_pages_on(self.memory, p.task, nid)
        ]
        return self._die(here, oom.OomControl()) is not None

    def write_memory_max(self, name: str, nr_pages: int | None) -> int:
        """Write `memory.max` of a cgroup, in pages: what is over it is reclaimed, then processes of it die."""
        tree = self.memory.memcg
        error = memcg.set_max(self.memory, name, nr_pages)
        group = tree.names.index(name)
        control = oom.OomControl(oom.Constraint.MEMCG, memcg=group)
        while nr_pages is not None and tree.usage[group] > nr_pages and self._kill(control):
            pass
        return error

    # -- hotplug

    def memory_changed(self) -> None:
        """Memory came or went: policies forget what is gone if the design says so, and cpusets follow
        (`cpuset_hotplug_workfn`).
        """
        gone = self._memory_before & ~self.memory.topology.memory
        self._memory_before = self.memory.topology.memory
        if gone and self.design.scrubs_policies:
            self._scrub(gone)
        self.cgroup_tree.hotplug()

    def _scrub(self, gone: int) -> None:
        """Policies forget nodes whose memory is gone, also those that a user mask still names."""
        for process in self.processes.values():
            task = process.task
            task.policy = mempolicy.without_nodes(task.policy, gone)
            task.mm.vmas = [replace(v, policy=mempolicy.without_nodes(v.policy, gone)) for v in task.mm.vmas]
        for _, holder in sorted(self.memory.page_cache.objects.items()):
            kept = [
                (low, high, mempolicy.without_nodes(policy, gone)) for low, high, policy in holder.policies
            ]
            holder.policies = [(low, high, policy) for low, high, policy in kept if policy is not None]

    def plug(self, nid: int, wish: Feature | None = None, owner: str = "", zone: str = ZONE_MOVABLE) -> int:
        """A driver brings a node's memory: claim with `wish` (default: the node's own), add, online."""
        node = self.boot[nid]
        features = self.design.grant(node.wish if wish is None else wish)
        claim = Claim(owner or driver_name(nid), features)
        error = self.hotplug.add_private_memory(nid, claim, 0, node.pages)
        if not error:
            error = self.hotplug.online(nid, zone)
        self.memory_changed()
        return error

    def online(self, nid: int, zone: str = ZONE_MOVABLE) -> int:
        """All ranges that were added to the node go online by their `state` files; 0 or a negative errno, -EINVAL
        when all are online already (`memory_block_change_state`; a driver's `online_pages` does not mind).
        """
        error = self.hotplug.block_state_error(nid, online=False) or self.hotplug.online(nid, zone)
        self.memory_changed()
        return error

    def offline(self, nid: int, start: int | None = None) -> int:
        """All memory of the node goes offline by its `state` files, or the range that begins at a page of it; 0,
        -EBUSY, or -EINVAL when none is online.
        """
        error = self.hotplug.block_state_error(nid, online=True, start=start)
        error = error or self.hotplug.offline(nid, start)
        self.memory_changed()
        return error

    def unplug(self, nid: int) -> int:
        """Offline and remove all memory of the node: 0 or a negative errno."""
        error = self.hotplug.remove(nid)
        self.memory_changed()
        return error

    # -- looking

    def node_states(self) -> dict[str, int]:
        """/sys/devices/system/node: file name -> mask."""
        topology = self.memory.topology
        return {
            "possible": possible_mask(self.memory),
            "online": topology.memory | topology.with_cpus,
            "has_cpu": topology.with_cpus,
            "has_normal_memory": topology.normal_zone,
            **self.design.node_states(topology),
        }

    def meminfo(self, nid: int) -> dict[str, int]:
        """/sys/devices/system/node/nodeN/meminfo, in kB."""
        return {name: kilobytes(value) for name, value in meminfo_pages(self.memory, nid).items()}

    def tiers(self) -> dict[int, int]:
        """/sys/devices/virtual/memory_tiering: tier number -> mask of its nodes."""
        return dict(self.memory.resolver.tiers(self.memory.demotion_enabled, 0).tiers)

    def validate(self) -> None:
        """Raise InvariantError unless everything equals a recount."""
        validate_memory(self.memory)


def driver_name(nid: int) -> str:
    """The owner of a node when nobody says otherwise."""
    return f"driver{nid}"


def _at_boot(node: NodeBoot) -> NodeTopology:
    """Before any driver has run: private memory is not there yet."""
    there = node.online and not node.private and not node.by_device
    pages = node.pages if there else 0
    return NodeTopology(node.nid, node.cpus, False, Feature.ALL, node.zone, node.adistance, "", pages)


def _backing(node: NodeBoot) -> NodeSpec:
    return NodeSpec(
        nid=node.nid,
        device=f"device/n{node.nid}",
        span_pages=node.pages,
        boot_pages=node.pages if node.online and not node.private and not node.by_device else 0,
        read_ns=node.read_ns,
        write_ns=node.write_ns,
        stores=False,
        compressed=node.kind == "compressed-ram",
        pooled=False,
        extent_pages=0,
        credit_pages=0,
    )
