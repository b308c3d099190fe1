"""A small emulated Linux with one task, two general and two private nodes, for tests of huge pages and the like."""

from __future__ import annotations

from privmem.nodeagent.host import hugetlb_map, numa_syscalls, syscalls, thp
from privmem.nodeagent.host.audit import validate_memory
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT
from privmem.scheduler import plain
from privmem.scheduler.abi import Feature, Mpol

D0, D1, P, Q = range(4)
USER = Feature.USER_NUMA | Feature.RECLAIM | Feature.USER_WRITE
HUGE = 512
VPN = 1 << 20


def boot(design="private-zonelist", wish=USER, zone="movable", p_pages=4 * HUGE):
    return Kernel(
        [
            NodeBoot(D0, 16 * HUGE, cpus=(0,)),
            NodeBoot(D1, 16 * HUGE, cpus=(1,)),
            NodeBoot(P, p_pages, private=True, wish=wish, zone=zone),
            NodeBoot(Q, 4 * HUGE, private=True, wish=Feature.USER_WRITE),
        ],
        ((10, 20, 30, 40), (20, 10, 30, 40), (30, 30, 10, 50), (40, 40, 50, 10)),
        design,
    )


class Box:
    """A kernel with one task."""

    #: Every wish that a driver of a private node can have.
    EVERYTHING = Feature(0x3FFFFF & ~int(Feature.PUBLIC))

    def __init__(self, **how):
        self.kernel = boot(**how)
        self.memory = self.kernel.memory
        self.task = self.kernel.spawn(0).task
        self.free_at_boot = {nid: node.free_pages for nid, node in self.memory.nodes.items()}
        self._counted = dict(self.memory.vmstat.count)

    def map(self, nr, at=VPN, huge=False):
        assert syscalls.mmap_anon(self.memory, self.task, at, nr) == 0
        if huge:
            assert thp.madvise(self.memory, self.task, at, nr, huge=True) == 0
        return at

    def touch(self, nr, at=VPN, write=True, task=None):
        error = syscalls.touch(self.memory, task or self.task, at, nr, write)
        validate_memory(self.memory)
        return error

    def bind(self, nid, nr, at=VPN, flags=0):
        return numa_syscalls.mbind(self.memory, self.task, at, nr, Mpol.BIND, 1 << nid, flags)

    def nids(self, nr, at=VPN):
        memory = self.memory
        vma = self.task.mm.find(at)
        entries = memory.page_table.pte[vma.slot_of(at) : vma.slot_of(at) + nr]
        return [memory.frames.nid_of(int(e) >> PTE_PFN_SHIFT) if e else None for e in entries]

    def pfn(self, vpn=VPN, task=None):
        vma = (task or self.task).mm.find(vpn)
        return int(self.memory.page_table.pte[vma.slot_of(vpn)]) >> PTE_PFN_SHIFT

    def count(self, *events):
        """Events since the boot."""
        return [self.memory.vmstat.count[event] - self._counted[event] for event in events]

    def round_trip(self):
        before = plain.digest(self.memory.snapshot())
        self.memory.restore(self.memory.snapshot())
        assert plain.digest(self.memory.snapshot()) == before
        validate_memory(self.memory)


def fill_node(box, nid, nr):
    """Bind and touch so many pages there."""
    at = 1 << 30
    box.map(nr, at)
    assert box.bind(nid, nr, at) == 0
    assert box.touch(nr, at) == 0
    return at


def hugetlb_mmap(box, nr, private=True, at=VPN):
    holder = hugetlb_map.create(box.memory, box.task, nr, private)
    if isinstance(holder, int):
        return holder
    return syscalls.mmap_object(box.memory, box.task, at, nr, holder, private)
