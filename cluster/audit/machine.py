"""The machine of an audit: one host of a configuration, with residents on each of its private nodes."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace

import numpy as np

from privmem.cluster.audit.traces import PageState, state_of, worked_on
from privmem.cluster.config.checks_design import wished_features
from privmem.cluster.config.distances import distance_matrix
from privmem.cluster.config.models import Config, class_name, seen_bytes
from privmem.cluster.config.topology import adistance_of, backing_device
from privmem.cluster.errors import ConfigError
from privmem.nodeagent.host.drivers.dax_test import DaxTest
from privmem.nodeagent.host.drivers.owner import owner_context
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_HELD, PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.nodeagent.host.migrate import move_to_frames
from privmem.nodeagent.host.page_alloc import alloc_page
from privmem.nodeagent.host.process import Process
from privmem.nodeagent.host.story import Story
from privmem.scheduler.abi import PAGE_SHIFT, PAGE_SIZE, Reason
from privmem.scheduler.topology import ZONE_MOVABLE, ZONE_NORMAL

#: Pages that an application of each private node's owner has there when an activity begins.
RESIDENT_PAGES = 32


@dataclass(frozen=True, slots=True)
class AuditMachine:
    """Nodes and distances of the host that is audited."""

    nodes: tuple[NodeBoot, ...]
    distances: tuple[tuple[int, ...], ...]

    @property
    def private(self) -> tuple[NodeBoot, ...]:
        """The private nodes, by id."""
        return tuple(node for node in self.nodes if node.private)

    @property
    def public(self) -> tuple[NodeBoot, ...]:
        """The general nodes that have a CPU come first."""
        return tuple(sorted((n for n in self.nodes if not n.private), key=lambda n: (not n.cpus, n.nid)))

    def with_zone(self, zone: str) -> AuditMachine:
        """The same with all private memory in this zone."""
        nodes = tuple(replace(n, zone=zone) if n.private else n for n in self.nodes)
        return replace(self, nodes=nodes)


def machine_of(config: Config) -> AuditMachine:
    """The first host of a configuration. Raises ConfigError when it has too few general or private nodes."""
    host = config.hosts[0]
    order = sorted(range(len(host.nodes)), key=lambda at: host.nodes[at].id)
    matrix = distance_matrix(host)
    nodes = []
    for at in order:
        node = host.nodes[at]
        device = backing_device(config, node)
        nodes.append(
            NodeBoot(
                nid=node.id,
                pages=seen_bytes(device) // PAGE_SIZE,
                cpus=tuple(sorted(node.cpus)),
                private=node.private,
                wish=wished_features(node),
                zone=ZONE_NORMAL if not node.private else ZONE_MOVABLE,
                adistance=adistance_of(config, device),
                kind=class_name(device),
            )
        )
    machine = AuditMachine(tuple(nodes), tuple(tuple(matrix[a][b] for b in order) for a in order))
    if not machine.private or len(machine.public) < 2:
        raise ConfigError(
            "the first host must have at least two general nodes and one private node to be audited"
        )
    return machine


class Scene:
    """A freshly booted machine under a design, and the pages that were there when the activity began."""

    def __init__(
        self, machine: AuditMachine, design: str, *, demotion: bool = True, balancing: int = 0
    ) -> None:
        self.machine = machine
        knobs = Sysctl(NumaBalancing(mode=balancing), demotion_enabled=demotion)
        self.kernel = Kernel(machine.nodes, machine.distances, design, knobs)
        self.kernel.memory.story = Story(self.kernel.memory)
        self.private = {node.nid: node for node in machine.private}
        self.home, self.away = machine.public[0], machine.public[1]
        #: Node -> the application of its owner, and the address of its memory there.
        self.residents: dict[int, tuple[Process, int]] = {}
        #: Frames in use on each private node when what is judged began.
        self.before: dict[int, set[int]] = {}
        #: Those of them that the kernel or a driver held.
        self.held_before: dict[int, set[int]] = {}
        #: How their frames were, to see who works on them in place.
        self.states_before: dict[int, PageState] = {}
        #: Node -> pages that the kernel reckoned with, or kept from their owner, with no trace on the frames.
        self.reckoned: dict[int, int] = {}

    def settle(self) -> None:
        """Residents on every private node, by the owner's own mapping of its device."""
        for nid in self.private:
            self.settle_one(nid)
        self.begin()

    def begin(self) -> None:
        """What is in use now was put there by the audit itself."""
        self.before = self.frames()
        self.held_before = self.frames(PG_HELD)
        self.states_before = {
            pfn: state_of(self.kernel.memory, pfn) for frames in self.before.values() for pfn in frames
        }

    def traces(self, nid: int, stayed: set[int]) -> dict[int, list[str]]:
        """Of the frames that hold the page that they held before: which services worked on them in place."""
        memory = self.kernel.memory
        found = {pfn: worked_on(self.states_before[pfn], state_of(memory, pfn)) for pfn in sorted(stayed)}
        return {pfn: services for pfn, services in found.items() if services}

    def taken_over(self, nid: int) -> set[int]:
        """Frames in use before that the kernel or a driver holds now: what was in them had to go."""
        held = (self.before[nid] & self.frames(PG_HELD)[nid]) - self.held_before[nid]
        return held - self.of_device(nid)  # pinned pages are held too, and still whose they were

    def frames(self, flag: int = PG_ALLOCATED) -> dict[int, set[int]]:
        """Frames in use on each private node, or with another flag."""
        memory = self.kernel.memory
        found = {}
        for nid in self.private:
            node = memory.nodes[nid]
            flags = memory.frames.flags[node.start_pfn : node.start_pfn + node.spec.span_pages]
            found[nid] = set((np.flatnonzero(flags & np.uint16(flag)) + node.start_pfn).tolist())
        return found

    def of_device(self, nid: int) -> set[int]:
        """Frames that mappings of the node's own device hold: asked for by its owner."""
        memory = self.kernel.memory
        found: set[int] = set()
        for process in self.kernel.processes.values():
            for vma in process.task.mm.vmas:
                if vma.device_nid == nid:
                    entries = memory.page_table.pte[vma.slot : vma.slot + vma.nr_pages]
                    present = entries[entries & np.uint32(PTE_PRESENT) != 0]
                    found |= set((present >> np.uint32(PTE_PFN_SHIFT)).tolist())
        return found

    def settle_one(self, nid: int) -> None:
        """The application of one node's owner touches its memory."""
        process = self.kernel.spawn(self.home.cpus[0])
        addr = self.map_device(process, nid, RESIDENT_PAGES)
        process.touch(addr, RESIDENT_PAGES * PAGE_SIZE, write=False)
        self.residents[nid] = (process, addr)

    def map_device(self, process: Process, nid: int, nr_pages: int, aligned: bool = False) -> int:
        """Map the device of a node, as its driver allows its own application."""
        device = DaxTest(self.kernel, nid)
        start = process.free_address(2 * nr_pages)
        if aligned:
            start = -(-start // nr_pages) * nr_pages
        error = device.mmap(process.task, start, nr_pages)
        if error:
            raise OSError(-error, errno.errorcode.get(-error, ""))
        return start << PAGE_SHIFT

    def moved_in(self, nid: int, nr_pages: int, aligned: bool = False) -> tuple[Process, int]:
        """Ordinary anonymous memory of a process that the node's own driver moved onto its node: what a driver
        does for its tenants, under every design. Unlike its device's mapping, all services may look at it.
        """
        process = self.user()
        addr = self.area(process, 2 * nr_pages)
        if aligned:
            addr = -(-addr // (nr_pages * PAGE_SIZE)) * nr_pages * PAGE_SIZE
        self.move_in(process, addr, min(nr_pages, 2 * RESIDENT_PAGES), nid)
        return process, addr

    def move_in(self, process: Process, addr: int, nr_pages: int, nid: int) -> None:
        """Touch pages, and move them onto the node by its driver's own requests."""
        process.touch(addr, nr_pages * PAGE_SIZE)
        memory = self.kernel.memory
        memory.lru_batches.drain_all()
        for vpn in range(addr >> PAGE_SHIFT, (addr >> PAGE_SHIFT) + nr_pages):
            vma = process.task.mm.find(vpn)
            assert vma is not None
            old = int(memory.page_table.pte[vma.slot_of(vpn)]) >> PTE_PFN_SHIFT
            new = alloc_page(memory, owner_context(memory, nid))
            if new < 0:
                raise OSError(-new, errno.errorcode.get(-new, ""))
            memory.lru_del(old)
            frames = np.array([old], dtype=np.int32), np.array([new], dtype=np.int32)
            move_to_frames(memory, *frames, Reason.OWNER)

    def user(self, cpu: int | None = None) -> Process:
        """An ordinary process."""
        return self.kernel.spawn(self.home.cpus[0] if cpu is None else cpu)

    def area(self, process: Process, nr_pages: int) -> int:
        """Anonymous memory of a process, not touched yet."""
        return process.mmap(nr_pages * PAGE_SIZE)
