"""The recorded machine: an emulated host of four nodes with one task, and a method for each op.

What it is made of is in docs/oracle.md. Each method returns what stands after the op's name in its result line.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import numpy as np

from privmem.cluster.errors import PrivmemError
from privmem.cluster.oracle.ops import FILE_PAGES, REGION_PAGES, Op
from privmem.cluster.oracle.recording import SETTINGS, Program
from privmem.nodeagent.host import (
    file_io,
    filemap,
    madvise,
    memcg,
    migrate_calls,
    mlock,
    move_calls,
    mprotect,
    mremap,
    numa_syscalls,
    policy_calls,
    swap,
    syscalls,
)
from privmem.nodeagent.host.fault import FAULT_SIGBUS
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD, PTE_PRESENT, PTE_ZERO
from privmem.nodeagent.host.memory import Memory, NodeSpec, NumaBalancing, Sysctl
from privmem.nodeagent.host.page_alloc import release_frames
from privmem.nodeagent.host.pagecache import OpenFile
from privmem.nodeagent.host.swap_area import is_swap_entry
from privmem.nodeagent.host.task import Task
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGE_SHIFT
from privmem.scheduler.cpuset import Cpuset
from privmem.scheduler.tiers import ADISTANCE_DAX, ADISTANCE_DRAM
from privmem.scheduler.topology import ZONE_MOVABLE, ZONE_NORMAL, HostTopology, NodeTopology
from privmem.scheduler.versions import LINUX_6_1, KernelVersion

_NODE_PAGES = (256 << 20) >> 12
_DISTANCES = ((10, 20, 30, 40), (20, 10, 20, 30), (30, 20, 10, 20), (40, 30, 20, 10))
_ALL_MEMS = 0b1111
_NODES_WITH_CPU = 2
#: The cgroup of the task.
_GROUP = "t"
_FIRST_VPN = 0x1000_0000_0000 >> 12
#: Settings of a machine that may have any value.
_FREE_SETTINGS = ("read_ahead_kb", "fault_around_bytes", "page_cluster", "slow_nodes", "demotion_enabled")
#: Pages of the swap area that a machine with `swap: ram` has.
_SWAP_PAGES = (32 << 20) >> PAGE_SHIFT
#: The kernels of which there are recordings.
_VERSIONS = (LINUX_6_1, KernelVersion(6, 12))
_SIGNALS = {0: 0, FAULT_SIGBUS: int(signal.SIGBUS), -errno.EFAULT: int(signal.SIGSEGV)}
#: Ops whose name is not that of their method, which Python or another op has taken.
_METHODS = {"try": "access", "moves": "move"}


class NotEmulated(PrivmemError):
    """A recorded program asks for something that the emulator cannot do."""


def _topology(slow_nodes: int) -> HostTopology:
    nodes = []
    for nid in range(len(_DISTANCES)):
        slow = nid >= len(_DISTANCES) - slow_nodes
        node = NodeTopology(
            nid,
            cpus=(nid,) if nid < _NODES_WITH_CPU else (),
            zone=ZONE_MOVABLE if slow else ZONE_NORMAL,
            adistance=ADISTANCE_DAX if slow else ADISTANCE_DRAM,
            span_pages=_NODE_PAGES,
        )
        nodes.append(node)
    return HostTopology(tuple(nodes), _DISTANCES)


def _specs() -> list[NodeSpec]:
    return [
        NodeSpec(
            nid=nid,
            device=f"device/n{nid}",
            span_pages=_NODE_PAGES,
            boot_pages=_NODE_PAGES,
            read_ns=100,
            write_ns=100,
            stores=False,
            compressed=False,
            pooled=False,
            extent_pages=0,
            credit_pages=0,
        )
        for nid in range(len(_DISTANCES))
    ]


def run_lengths(values: Iterable[int]) -> str:
    """`2*8,-14*3`: eight times 2, then three times -14."""
    return ",".join(f"{value}*{len(list(group))}" for value, group in groupby(values))


def vpn_of(region: int, offset: int = 0) -> int:
    """Virtual page number of a region's page. It matters: interleaving over anonymous memory goes by it."""
    return _FIRST_VPN + region * REGION_PAGES + offset


def linux_of(program: Program) -> KernelVersion:
    """The version of Linux that ran a program. Raises NotEmulated."""
    try:
        return KernelVersion.parse(program.kernel)
    except ValueError as error:
        raise NotEmulated(str(error)) from None


def check_emulated(program: Program) -> None:
    """Raises NotEmulated for a program of a kernel or a machine that the emulator cannot be."""
    if linux_of(program) not in _VERSIONS:
        versions = " and ".join(str(version) for version in _VERSIONS)
        raise NotEmulated(f"Linux {program.kernel}; this emulator is Linux {versions}")
    for name, value in program.machine.items():
        if (name, value) == ("swap", "ram"):
            continue
        if value != SETTINGS[name] and name not in _FREE_SETTINGS:
            raise NotEmulated(f"a machine with {name} {value}")


class Machine:
    """The machine with one fresh task. `first_inodes`: by CPU, the number of the next shared mapping's inode;
    `linux`: the kernel that it runs; `settings`: what is different from the usual machine.
    """

    def __init__(
        self,
        first_inodes: Mapping[int, int] | None = None,
        linux: KernelVersion = LINUX_6_1,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = SETTINGS | dict(settings or {})
        knobs = Sysctl(
            NumaBalancing(mode=0),
            demotion_enabled=bool(chosen["demotion_enabled"]),
            readahead_pages=int(chosen["read_ahead_kb"]) >> 2,
            fault_around_pages=int(chosen["fault_around_bytes"]) >> PAGE_SHIFT,
            zero_page=True,
            linux=linux,
        )
        self.memory = Memory(_topology(int(chosen["slow_nodes"])), _specs(), knobs)
        if chosen["swap"] == "ram":
            page_cluster = int(chosen["page_cluster"])
            swap.swapon(self.memory, _SWAP_PAGES - 1, synchronous=True, page_cluster=page_cluster)
        self.task = Task(1, 0, self.memory.resolver)
        self.memory.memcg.create(_GROUP)
        self.memory.memcg.attach(1, _GROUP)
        self.group = Cpuset(_ALL_MEMS, _ALL_MEMS)
        cache = self.memory.page_cache
        cache.next_ino.update(first_inodes or {})
        #: The child of `hold`, and what `fill` took: node, frames.
        self.held: Task | None = None
        self.filled: list[tuple[int, np.ndarray]] = []
        self.files = [cache.create_file(f"f{n}", pages) for n, pages in enumerate(FILE_PAGES)]

    def run(self, op: Op) -> str:
        """Do one op; its result line. Raises NotEmulated."""
        method = getattr(self, _METHODS.get(op.name, op.name), None)
        if method is None:
            raise NotEmulated(f"the op {op.name}")
        return f"{op.name} {method(*op.args)}"

    # -- the task and its address space

    def cpu(self, cpu: int) -> int:
        self.task.cpu = cpu
        return 0

    def mmap(self, region: int, pages: int, kind: str) -> int:
        call = syscalls.mmap_anon if kind == "pa" else syscalls.mmap_shared
        return call(self.memory, self.task, vpn_of(region), pages)

    def munmap(self, region: int, offset: int, pages: int) -> int:
        return syscalls.munmap(self.memory, self.task, vpn_of(region, offset), pages)

    def touch(self, region: int, offset: int, pages: int, how: str) -> int:
        return syscalls.touch(self.memory, self.task, vpn_of(region, offset), pages, how == "w")

    def madvise(self, region: int, offset: int, pages: int, advice: int) -> int:
        return madvise.madvise(self.memory, self.task, vpn_of(region, offset), pages, advice)

    def protect(self, region: int, offset: int, pages: int, rights: str) -> int:
        prot = (mprotect.PROT_READ if "r" in rights else 0) | (mprotect.PROT_WRITE if "w" in rights else 0)
        return mprotect.mprotect(self.memory, self.task, vpn_of(region, offset), pages, prot)

    def mremap(self, region: int, offset: int, pages: int, to: int, to_offset: int, to_pages: int) -> int:
        """Resized in place, or brought to an offset of a region."""
        start, target = vpn_of(region, offset), vpn_of(to, to_offset)
        flags = mremap.MREMAP_MAYMOVE | mremap.MREMAP_FIXED if start != target else 0
        return min(0, mremap.mremap(self.memory, self.task, start, pages, to_pages, flags, target))

    def mlock(self, region: int, offset: int, pages: int, flags: int) -> int:
        return mlock.mlock(self.memory, self.task, vpn_of(region, offset), pages, flags)

    def munlock(self, region: int, offset: int, pages: int) -> int:
        return mlock.munlock(self.memory, self.task, vpn_of(region, offset), pages)

    def forkwrite(self, region: int, offset: int, pages: int) -> str:
        child = syscalls.fork(self.memory, self.task, 2)
        error = syscalls.touch(self.memory, child, vpn_of(region, offset), pages, True)
        found = self._where(child, region, offset, pages)
        syscalls.exit_task(self.memory, child)
        return f"{error} | child where {found}"

    def setpol(self, mode: int, nodes: int) -> int:
        return numa_syscalls.set_mempolicy(self.task, mode, nodes)

    def mbind(self, region: int, offset: int, pages: int, mode: int, nodes: int, flags: int) -> int:
        start = vpn_of(region, offset)
        return numa_syscalls.mbind(self.memory, self.task, start, pages, mode, nodes, flags)

    def access(self, region: int, offset: int, pages: int, how: str) -> str:
        """Each page, whatever became of the one before: 0, or the signal."""
        errors = [self.touch(region, at, 1, how) for at in range(offset, offset + pages)]
        return run_lengths(_SIGNALS.get(error, error) for error in errors)

    def ptes(self, region: int, offset: int, pages: int) -> str:
        """Entries of the page table: 1 where there is a page."""
        found = []
        for vpn in range(vpn_of(region, offset), vpn_of(region, offset + pages)):
            vma = self.task.mm.find(vpn)
            entry = int(self.memory.page_table.pte[vma.slot_of(vpn)]) if vma else 0
            found.append(2 if is_swap_entry(entry) else int(bool(entry & PTE_PRESENT) or entry == PTE_ZERO))
        return run_lengths(found)

    def hold(self) -> int:
        self.held = syscalls.fork(self.memory, self.task, 3)
        return 0

    def release(self) -> int:
        if self.held is not None:
            syscalls.exit_task(self.memory, self.held)
        self.held = None
        return 0

    # -- policies, and moving pages

    def where(self, region: int, offset: int, pages: int) -> str:
        return self._where(self.task, region, offset, pages)

    def _where(self, task: Task, region: int, offset: int, pages: int) -> str:
        return f"0 {run_lengths(move_calls.query_range(self.memory, task, vpn_of(region, offset), pages))}"

    def order(self, region: int, offset: int, pages: int) -> str:
        """Nodes of the pages in order of their first appearance."""
        found = move_calls.query_range(self.memory, self.task, vpn_of(region, offset), pages)
        nodes = dict.fromkeys(nid for nid in found if nid >= 0)
        return f"0 {','.join(map(str, nodes)) or '-'}"

    def homenode(self, region: int, offset: int, pages: int, nid: int, flags: int) -> int:
        start = vpn_of(region, offset)
        return policy_calls.set_mempolicy_home_node(self.memory, self.task, start, pages, nid, flags)

    def weight(self, nid: int, weight: int) -> int:
        return policy_calls.write_weight(self.memory, nid, str(weight))

    def move(self, region: int, offset: int, pages: int, nodes: int | tuple[int, ...], flags: int) -> str:
        start = vpn_of(region, offset)
        turns = (nodes,) if isinstance(nodes, int) else nodes
        targets = [turns[at % len(turns)] for at in range(pages)]
        vpns = list(range(start, start + pages))
        error, status = move_calls.move_pages(self.memory, self.task, vpns, targets, flags)
        return f"{error} {run_lengths(status)}"

    def migrate(self, old: int, new: int) -> int:
        return migrate_calls.migrate_pages(self.memory, self.task, old, new)

    def getpol(self) -> str:
        return _policy_line(numa_syscalls.get_mempolicy(self.memory, self.task))

    def getpolat(self, region: int, offset: int) -> str:
        flags = numa_syscalls.MPOL_F_ADDR
        return _policy_line(
            numa_syscalls.get_mempolicy(self.memory, self.task, vpn_of(region, offset), flags)
        )

    def query(self, flags: int) -> str:
        return _policy_line(numa_syscalls.get_mempolicy(self.memory, self.task, None, flags))

    def queryat(self, flags: int, region: int, offset: int) -> str:
        vpn = vpn_of(region, offset)
        return _policy_line(numa_syscalls.get_mempolicy(self.memory, self.task, vpn, flags))

    def allowed(self) -> str:
        flags = numa_syscalls.MPOL_F_MEMS_ALLOWED
        error, _, nodes = numa_syscalls.get_mempolicy(self.memory, self.task, None, flags)
        return f"{error} {nodemask.format_list(nodes, ranges=False)}"

    def cpuset(self, nodes: int) -> int:
        tasks = [self.task] if self.held is None else [self.task, self.held]
        change = syscalls.write_cpuset_mems(self.memory, tasks, self.group, nodes, _ALL_MEMS)
        self.group = change.cpuset
        return change.error

    # -- files

    def fmap(self, region: int, file: int, pages: int, kind: str) -> int:
        holder, start = self.files[file], vpn_of(region)
        return syscalls.mmap_object(self.memory, self.task, start, pages, holder, kind == "fp")

    def fread(self, file: int, offset: int, pages: int) -> int:
        return filemap.read_pages(self.memory, self.task, self.files[file], offset, pages)

    def faults(self, region: int, offset: int, pages: int, how: str) -> str:
        soft, hard = self.task.min_flt, self.task.maj_flt
        error = self.touch(region, offset, pages, how)
        return str(error) if error else f"{self.task.min_flt - soft} {self.task.maj_flt - hard}"

    def freadv(self, file: int, offset: int, pages: int) -> int:
        return file_io.read(self.memory, self.task, self._opened(file), offset, pages)

    def fwrite(self, file: int, offset: int, pages: int) -> int:
        opened = self._opened(file)
        wrote = [file_io.write(self.memory, self.task, opened, offset + at, 1) for at in range(pages)]
        return sum(wrote)

    def fadvise(self, file: int, offset: int, pages: int, advice: int) -> int:
        return file_io.fadvise(self.memory, self.task, self._opened(file), offset, pages, advice)

    def _opened(self, file: int) -> OpenFile:
        return self.memory.page_cache.opened(self.files[file])

    def cached(self, file: int, offset: int, pages: int) -> str:
        """The node of each page of a file; -2 where it is not cached."""
        frames = self.files[file].pages
        node_of = self.memory.frames.nid_of
        indexes = range(offset, offset + pages)
        return run_lengths(node_of(frames[at]) if at in frames else -errno.ENOENT for at in indexes)

    def incore(self, file: int, offset: int, pages: int) -> str:
        return run_lengths(int(at in self.files[file].pages) for at in range(offset, offset + pages))

    def sync(self) -> int:
        filemap.sync(self.memory)
        return 0

    def drop(self) -> int:
        filemap.sync(self.memory)
        filemap.drop_caches(self.memory, self.task.cpu)
        return 0

    # -- pressure

    def fill(self, nid: int, left: int) -> int:
        """Somebody holds memory of a node, so that so many pages are free above the high watermark."""
        node = self.memory.nodes[nid]
        frames = node.buddy.alloc_bulk(max(0, node.free_pages - node.wmark.high_pages - left))
        self.memory.frames.flags[frames] = PG_ALLOCATED | PG_HELD
        self.filled.append((nid, frames))
        return 0

    def demotion(self, switch: str) -> int:
        self.memory.demotion_enabled = switch == "on"
        self.memory.setup_tiers()
        return 0

    def reclaim(self, pages: int) -> int:
        self.memory.lru_batches.drain_all()
        return memcg.memory_reclaim(self.memory, _GROUP, pages)

    def unfill(self) -> int:
        while self.filled:
            nid, frames = self.filled.pop()
            release_frames(self.memory, self.memory.nodes[nid], frames)
        return 0


def _policy_line(answer: tuple[int, int, int]) -> str:
    error, mode, nodes = answer
    return f"{error} {mode} {nodemask.format_list(nodes, ranges=False)}"
