"""What a running litmus test holds: a kernel, and what the script's names stand for by now."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from privmem.cluster.litmus.machine import Machine
from privmem.cluster.litmus.values import RangeRef
from privmem.nodeagent.host.drivers.anondax import AnonDax
from privmem.nodeagent.host.drivers.cramdax import CramDax
from privmem.nodeagent.host.drivers.dax_test import DaxTest
from privmem.nodeagent.host.kernel import Kernel, driver_name
from privmem.nodeagent.host.layout import PG_DIRTY, PTE_DIRTY, PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.memory import Memory
from privmem.nodeagent.host.pagecache import MemObject, OpenFile
from privmem.nodeagent.host.process import Process
from privmem.nodeagent.host.swap_area import is_swap_entry
from privmem.nodeagent.host.task import Task
from privmem.nodeagent.host.vmstat import GAUGES
from privmem.scheduler.abi import PAGE_SHIFT, PAGE_SIZE
from privmem.scheduler.isolation.claims import Held
from privmem.scheduler.isolation.design import Claim

_NODES = "/sys/devices/system/node/"
_GROUPS = "/sys/fs/cgroup/"


class Stuck(Exception):
    """A step makes no sense where it stands (a mapping that was never made); says why."""


@dataclass(slots=True)
class Mapped:
    """A mapping by name."""

    process: str
    addr: int
    length: int


@dataclass(slots=True)
class World:
    """The state of one run of a script under one design."""

    machine: Machine
    kernel: Kernel
    #: Where processes start: name -> (cpu, cgroup).
    starts: dict[str, tuple[int, str]]
    processes: dict[str, Process] = field(default_factory=dict)
    #: (process, name) -> mapping.
    mappings: dict[tuple[str, str], Mapped] = field(default_factory=dict)
    devices: dict[str, DaxTest | AnonDax | CramDax] = field(default_factory=dict)
    opened: dict[str, MemObject] = field(default_factory=dict)
    #: Open files that the script gave a name.
    handles: dict[str, OpenFile] = field(default_factory=dict)
    #: Frames that drivers and the kernel took, by the name that the script gave them.
    taken: dict[str, list[int]] = field(default_factory=dict)
    #: What the register calls of litmus tests hold, by node number.
    held: dict[int, Held | None] = field(default_factory=dict)
    #: Counters at the last `mark`.
    base: dict[str, int] = field(default_factory=dict)
    frames_base: dict[tuple[str, str], list[int | None]] = field(default_factory=dict)
    contents_base: dict[tuple[str, str], list[int | None]] = field(default_factory=dict)
    #: Whether the compressed RAM service's worker comes to rest after each step.
    cram_worker: bool = True
    numastat_base: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @staticmethod
    def boot(machine: Machine, starts: dict[str, tuple[int, str]], design: str) -> World:
        """A fresh kernel; declared processes are there from the start."""
        world = World(machine, machine.boot(design), starts)
        world._boot_cram()
        for name in starts:
            world.process(name)
        world.mark()
        return world

    def mark(self) -> None:
        """Counters count from here on."""
        self.base = dict(self.kernel.memory.vmstat.count)
        self.numastat_base = self.kernel.memory.numastat.copy()
        for process in self.processes.values():
            process.mark_faults()
        for owner, name in self.mappings:
            self.frames_base[owner, name] = self.frames(RangeRef(name, owner))
            self.contents_base[owner, name] = self.contents(RangeRef(name, owner))
        for name in [*self.kernel.files, *self.opened]:
            self.frames_base["", name] = self.frames(RangeRef(name, is_file=True))
            self.contents_base["", name] = self.contents(RangeRef(name, is_file=True))

    def frames(self, ref: RangeRef) -> list[int | None]:
        """Frame of each page of a range, or of a file's cache; None for one that is not there."""
        memory = self.kernel.memory
        if ref.is_file:
            file = self.file(ref.name)
            last = file.nr_pages if ref.last is None else ref.last
            return [file.pages.get(index) for index in range(ref.first, last)]
        mapped = self.mapping("", ref)
        mm = self.process(mapped.process).task.mm
        found: list[int | None] = []
        for vpn in range(mapped.addr >> PAGE_SHIFT, (mapped.addr + mapped.length) >> PAGE_SHIFT):
            vma = mm.find(vpn)
            entry = int(memory.page_table.pte[vma.slot_of(vpn)]) if vma else 0
            found.append(entry >> PTE_PFN_SHIFT if entry & PTE_PRESENT else None)
        return found

    def contents(self, ref: RangeRef) -> list[int | None]:
        """Version of the content of each page, in memory or on swap; None for one that nobody has written."""
        memory, area = self.kernel.memory, self.kernel.memory.swap
        found: list[int | None] = []
        if ref.is_file:
            file = self.file(ref.name)
            last = file.nr_pages if ref.last is None else ref.last
            for index in range(ref.first, last):
                pfn, slot = file.pages.get(index), file.swapped.get(index)
                on_swap = int(area.version[slot]) if slot else None
                found.append(version_of(memory, pfn) if pfn is not None else on_swap)
            return found
        mapped = self.mapping("", ref)
        mm = self.process(mapped.process).task.mm
        for vpn in range(mapped.addr >> PAGE_SHIFT, (mapped.addr + mapped.length) >> PAGE_SHIFT):
            vma = mm.find(vpn)
            entry = int(memory.page_table.pte[vma.slot_of(vpn)]) if vma else 0
            if entry & PTE_PRESENT:
                found.append(version_of(memory, entry >> PTE_PFN_SHIFT))
            else:
                found.append(int(area.version[entry >> PTE_PFN_SHIFT]) if is_swap_entry(entry) else None)
        return found

    def counter(self, name: str) -> int:
        """A vmstat counter since the last mark; one that says how much there is, as it is."""
        if name in GAUGES:
            return self.kernel.memory.vmstat.count[name]
        return self.kernel.memory.vmstat.count[name] - self.base.get(name, 0)

    def _boot_cram(self) -> None:
        """The devices of nodes with `cram:`, each under its node's name."""
        for name, ratio in self.machine.cram.items():
            node = self.machine.nodes[name]
            device = CramDax(self.kernel, node.nid, ratio)
            self.devices[name] = device
            if node.online:
                check(device.write("state", "online"))

    def settle(self) -> None:
        """Between two steps the compressed RAM service's worker has time enough."""
        if self.cram_worker:
            self.kernel.cram_worker()

    @property
    def first_cpu(self) -> int:
        """Where processes start when nobody says otherwise."""
        return min(cpu for node in self.machine.nodes.values() for cpu in node.cpus)

    def process(self, name: str) -> Process:
        """The process of this name; made at its first use, on the first CPU."""
        if name not in self.processes:
            cpu, cgroup = self.starts.get(name, (self.first_cpu, ""))
            self.processes[name] = self.kernel.spawn(cpu, cgroup)
        return self.processes[name]

    def file(self, name: str) -> MemObject:
        """The file of this name, or behind an open file of this name."""
        if name in self.handles:
            return self.kernel.memory.page_cache.of(self.handles[name].object_id)
        found = self.kernel.files.get(name) or self.opened.get(name)
        if found is None:
            raise Stuck(f"there is no file {name} yet")
        return found

    def open_file(self, name: str) -> OpenFile:
        """The open file of this name; a file's own one for those who did not open it."""
        return self.handles.get(name) or self.kernel.memory.page_cache.opened(self.file(name))

    def task(self, name: str) -> Task:
        """The task of a living process, for calls that take one. Raises OSError for one that has ended."""
        process = self.process(name)
        if process.exited:
            raise OSError(errno.ESRCH, "the process has ended")
        return process.task

    def mapping(self, actor: str, ref: RangeRef) -> Mapped:
        """The mapping that a reference means, cut to its pages."""
        owner = ref.owner or actor
        if not owner:
            owners = [process for process, name in self.mappings if name == ref.name]
            if len(owners) != 1:
                raise Stuck(
                    f"{ref.name} is a mapping of {', '.join(owners) or 'nobody'}: say whose, as in A.{ref.name}"
                )
            owner = owners[0]
        whole = self.mappings.get((owner, ref.name))
        if whole is None:
            raise Stuck(f"{owner} has no mapping {ref.name} yet")
        last = whole.length // PAGE_SIZE if ref.last is None else ref.last
        return Mapped(owner, whole.addr + ref.first * PAGE_SIZE, max(0, last - ref.first) * PAGE_SIZE)

    def claim_of(self, nid: int, values: dict[str, Any]) -> Claim:
        """Who brings a node and with which features: as a command says, as was registered, as the machine says."""
        kernel = self.kernel
        held = kernel.hotplug.claims.get(nid)
        owner = values.get("word") or (held.owner if held else driver_name(nid))
        wish = values.get("features", kernel.boot[nid].wish)
        if "features" not in values and held is not None and held.features:
            return Claim(owner, held.features)
        return Claim(owner, kernel.design.grant(wish))

    def path(self, text: str) -> str:
        """The path of a file where names stand for ids: /proc/A/status, .../node/nodeP/meminfo."""
        head, _, rest = text.removeprefix("/proc/").partition("/")
        if text.startswith("/proc/") and rest and head in self.processes:
            return f"/proc/{self.processes[head].pid}/{rest}"
        below = text.removeprefix(_NODES)
        head, slash, rest = below.partition("/")
        if below != text and head.removeprefix("node") in self.machine.nids:
            return f"{_NODES}node{self.machine.nids[head.removeprefix('node')]}{slash}{rest}"
        return self._group_path(text) if text.startswith(_GROUPS) else text

    def _group_path(self, text: str) -> str:
        """A file of a cgroup below others, or below a controller's folder of version 1."""
        *folders, file = text.removeprefix(_GROUPS).split("/")
        groups = self.kernel.cgroups
        if self.kernel.cgroup_tree.legacy and folders and folders[0] in ("cpuset", "memory"):
            del folders[0]
        parents = ["", *folders]
        if all(g in groups and groups[g].parent == above for above, g in zip(parents, folders, strict=False)):
            return _GROUPS + "/".join([*folders[-1:], file])
        return text

    def node_name(self, nid: int) -> str:
        """The script's name of a node."""
        for name, node in self.machine.nodes.items():
            if node.nid == nid:
                return name
        return str(nid)

    def status_text(self, status: int) -> str:
        """A node or a negative errno, as scripts write them."""
        if status >= 0:
            return self.node_name(status)
        return errno.errorcode.get(-status, str(status))


def check(result: int) -> int:
    """A call's result, or OSError for a negative errno."""
    if result < 0:
        raise OSError(-result, errno.errorcode.get(-result, str(result)))
    return result


def version_of(memory: Memory, pfn: int) -> int:
    """Version of what a frame holds; one that was written since somebody looked is at its next."""
    written = bool(int(memory.frames.flags[pfn]) & PG_DIRTY)
    slot = int(memory.frames.rmap[pfn])
    while slot and not written:
        written = bool(int(memory.page_table.pte[slot]) & PTE_DIRTY)
        slot = int(memory.page_table.rmap_next[slot])
    return int(memory.frames.version[pfn]) + int(written)


def run_lengths(items: list[str]) -> str:
    """`P*4 ENOENT`: how lists of statuses are written."""
    parts: list[tuple[str, int]] = []
    for item in items:
        if parts and parts[-1][0] == item:
            parts[-1] = (item, parts[-1][1] + 1)
        else:
            parts.append((item, 1))
    return " ".join(item if count == 1 else f"{item}*{count}" for item, count in parts)
