"""Random programs with huge pages, pools, contiguous ranges, pins, compaction and hardware errors, by design.

After every step all books are recounted; what is pinned and mapped stays in its frame; nothing is on a private
node uninvited but where the design leaks; and every huge page of a pool is accounted for.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from privmem.nodeagent.host import contig
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT, PTE_PRESENT
from privmem.nodeagent.host.madvise import MADV_COLLAPSE, MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.nodeagent.host.process import Process, Signalled
from privmem.scheduler import plain
from privmem.scheduler.abi import PAGE_SIZE, Feature, Mpol
from privmem.scheduler.isolation import DESIGNS

D0, D1, P, Q = range(4)
HUGE = 512
PAGES = {D0: 9 * HUGE, D1: 5 * HUGE, P: 4 * HUGE, Q: 2 * HUGE}
WISHES = {P: Feature(0x3FFFFF & ~int(Feature.PUBLIC)), Q: Feature.USER_WRITE}
DISTANCES = ((10, 20, 30, 40), (20, 10, 30, 40), (30, 30, 10, 50), (40, 40, 50, 10))
AREA_PAGES = 2 * HUGE + 40
AREAS = tuple((0x4000 + n * 0x1000) * PAGE_SIZE for n in range(3))
POOLS = "/sys/devices/system/node/node{}/hugepages/hugepages-2048kB/nr_hugepages"
#: Errors that a random call may meet; any other one is a fault of the emulator.
EXPECTED = {
    errno.EINVAL, errno.ENOMEM, errno.EFAULT, errno.EIO, errno.ENODEV, errno.EACCES, errno.EBUSY, errno.ESRCH,
    errno.EAGAIN, errno.EPERM,
}  # fmt: skip


class Machine:
    """One kernel under random calls."""

    def __init__(self, design: str, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.design = design
        nodes = [
            NodeBoot(
                nid,
                pages,
                cpus=(nid,) if nid < P else (),
                private=nid in WISHES,
                wish=WISHES.get(nid, Feature.NONE),
                zone="movable" if nid in WISHES else "normal",
            )
            for nid, pages in PAGES.items()
        ]
        knobs = Sysctl(
            NumaBalancing(mode=0), demotion_enabled=rng.random() < 0.5, zero_page=rng.random() < 0.5
        )
        self.kernel = Kernel(nodes, DISTANCES, design, knobs)
        self.memory = self.kernel.memory
        thp = self.memory.high_order.thp
        thp.enabled = rng.choice(["always", "madvise"])
        thp.defrag = rng.choice(["always", "madvise", "never"])
        #: What a pinned frame is mapped at, while it is.
        self.placed: dict[int, int] = {}

    # -- choices

    def process(self) -> Process:
        living = [p for p in self.kernel.processes.values() if not p.exited]
        if not living or (len(living) < 4 and self.rng.random() < 0.05):
            process = self.kernel.spawn(self.rng.randrange(2))
            for area in AREAS[:2]:
                process.mmap(AREA_PAGES * PAGE_SIZE, addr=area)
            return process
        return self.rng.choice(living)

    def stretch(self) -> tuple[int, int]:
        rng = self.rng
        at = rng.choice([0, 0, 0, 1, 100, HUGE, HUGE + 5])
        nr = rng.choice([1, 3, 40, HUGE, HUGE, HUGE + 7, 2 * HUGE])
        return rng.choice(AREAS) + at * PAGE_SIZE, min(nr, AREA_PAGES - at) * PAGE_SIZE

    def attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call that may fail in a way that a user would see."""
        try:
            return call(*args, **kwargs)
        except OSError as failure:
            assert failure.errno in EXPECTED, failure
        except Signalled:
            pass
        return None

    # -- steps

    def map(self) -> None:
        rng, process = self.rng, self.process()
        area = rng.choice(AREAS)
        match rng.randrange(4):
            case 0:
                self.attempt(process.mmap, AREA_PAGES * PAGE_SIZE, addr=area)
            case 1:
                self.attempt(process.mmap, AREA_PAGES * PAGE_SIZE, shared=True, addr=area)
            case 2:
                size = rng.choice([1, 2]) * HUGE * PAGE_SIZE
                self.attempt(process.mmap_hugetlb, size, rng.random() < 0.4, rng.random() < 0.2, area)
            case _:
                self.attempt(process.munmap, *self.stretch())

    def touch(self) -> None:
        self.attempt(self.process().touch, *self.stretch(), self.rng.random() < 0.7)

    def advise(self) -> None:
        advice = self.rng.choice(
            [MADV_DONTNEED, MADV_HUGEPAGE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE, MADV_COLLAPSE]
        )
        self.attempt(self.process().madvise, *self.stretch(), advice)

    def live(self) -> None:
        living = sum(not p.exited for p in self.kernel.processes.values())
        if living < 4 and self.rng.random() < 0.7:
            self.attempt(self.process().fork)
        elif self.rng.random() < 0.3:
            self.process().exit()

    def place(self) -> None:
        rng, process = self.rng, self.process()
        addr, length = self.stretch()
        nid = rng.choice([D0, D1, P, P, Q])
        match rng.randrange(3):
            case 0:
                self.attempt(process.mbind, addr, length, Mpol.BIND, [nid], rng.randrange(8))
            case 1:
                addrs = [addr + n * PAGE_SIZE for n in range(rng.randrange(1, 6))]
                self.attempt(process.move_pages, addrs, [nid] * len(addrs), rng.choice([2, 4]))
            case _:
                self.attempt(process.migrate_pages, [rng.choice([D0, D1, P])], [nid])

    def pin(self) -> None:
        rng, process = self.rng, self.process()
        if rng.random() < 0.4:
            process.unpin()
            return
        addr, _ = self.stretch()
        self.attempt(
            process.pin, addr, rng.randrange(1, 6) * PAGE_SIZE, rng.random() < 0.7, rng.random() < 0.5
        )

    def daemons(self) -> None:
        nid = self.rng.choice(list(PAGES))
        match self.rng.randrange(3):
            case 0:
                self.kernel.khugepaged(self.rng.choice([HUGE, 20 * HUGE]))
            case 1:
                path = f"/sys/devices/system/node/node{nid}/compact"
                assert self.kernel.sysfs.write(path, "1") in (0, -errno.EINVAL)
            case _:
                self.kernel.kswapd(nid, wake=True)

    def pool(self) -> None:
        nid = self.rng.choice([None, None, *PAGES])
        path = "/proc/sys/vm/nr_hugepages" if nid is None else POOLS.format(nid)
        assert self.kernel.sysfs.write(path, str(self.rng.choice([0, 1, 2, 4]))) in (0, -errno.ENOENT)

    def ranges(self) -> None:
        rng, memory = self.rng, self.memory
        nid, nr, private = rng.choice(list(PAGES)), rng.choice([1, 64, 100, HUGE]), rng.random() < 0.5
        match rng.randrange(3):
            case 0:
                first = memory.nodes[nid].start_pfn + rng.randrange(PAGES[nid])
                answer = contig.alloc_contig_range(memory, first, nr, "somebody", private)
                assert -answer in {0, errno.EINVAL, errno.EBUSY, errno.EPERM, errno.ENOMEM}
            case 1:
                contig.alloc_contig_pages(memory, nr, nid, None, "somebody", rng.random() < 0.5, private)
            case _:
                for first in sorted(memory.high_order.ranges)[:3]:
                    contig.free_contig_range(memory, first)

    def errors(self) -> None:
        if len(self.memory.high_order.poisoned) < 3 and self.rng.random() < 0.2:
            nid = self.rng.choice(list(PAGES))
            self.kernel.memory_failure(self.memory.nodes[nid].start_pfn + self.rng.randrange(PAGES[nid]))

    def hotplug(self) -> None:
        nid = self.rng.choice([P, Q])
        if self.rng.random() < 0.3:
            assert self.kernel.offline(nid) in (0, -errno.EBUSY, -errno.EINVAL)
            assert self.kernel.online(nid) in (0, -errno.EINVAL)

    def checkpoint(self) -> None:
        if self.rng.random() < 0.3:
            before = plain.digest(self.memory.snapshot())
            self.memory.restore(self.memory.snapshot())
            assert plain.digest(self.memory.snapshot()) == before

    def step(self) -> None:
        steps = [
            self.map,
            self.touch,
            self.touch,
            self.touch,
            self.advise,
            self.advise,
            self.live,
            self.place,
        ]
        steps += [self.place, self.pin, self.daemons, self.pool, self.ranges, self.errors, self.hotplug]
        self.rng.choice([*steps, self.checkpoint])()
        self.check()

    # -- what must hold

    def check(self) -> None:
        self.kernel.validate()
        memory = self.memory
        high = memory.high_order
        if self.design != "no-fallback":
            assert memory.vmstat.count["pgleak"] == 0
        table = memory.page_table
        placed: dict[int, int] = {}
        for pid in sorted(high.pins_of):
            for pfn in high.pins_of[pid]:
                slot = int(memory.frames.rmap[pfn])
                if slot:
                    placed[pfn] = slot
                before = self.placed.get(pfn)
                if before and int(table.pte[before]) & PTE_PRESENT and slot and not table.rmap_next[slot]:
                    assert int(table.pte[slot]) >> PTE_PFN_SHIFT == pfn
        self.placed = placed
        for pool in high.pools.values():
            for nid in memory.nodes:
                assert 0 <= pool.surplus.get(nid, 0) <= pool.nr.get(nid, 0)
                assert len(pool.free.get(nid, ())) <= pool.nr.get(nid, 0)


def play(design: str, seed: int, steps: int) -> Machine:
    machine = Machine(design, seed)
    for _ in range(steps):
        machine.step()
    return machine


@pytest.mark.parametrize("design", sorted(DESIGNS))
def test_random_programs(design):
    for seed in range(2):
        play(design, seed, 60)


def test_the_same_seed_gives_the_same_host():
    assert play("caps", 5, 40).memory.vmstat.count == play("caps", 5, 40).memory.vmstat.count


@pytest.mark.full
@pytest.mark.parametrize("design", sorted(DESIGNS))
def test_many_random_programs(design):
    for seed in (*range(100, 120), 156, 157):
        play(design, seed, 150)
