"""Random programs on one emulated Linux under every isolation design: system calls, hotplug and pressure, with the
invariants checked after each step.

What must hold is said here in terms of what users and drivers asked for, never by asking the design again: each
page on exactly one node, no page where nobody who may invited it, counters equal to a recount, no lost and no
doubled frame.
"""

import errno
import functools
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, core, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from privmem.nodeagent.host import madvise, memcg
from privmem.nodeagent.host.drivers.owner import OwnerPages
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_UNINVITED, PTE_PFN_SHIFT, PTE_PRESENT, PTE_WRITABLE
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.nodeagent.host.process import Signalled
from privmem.nodeagent.host.swap import swapon
from privmem.scheduler import plain
from privmem.scheduler.abi import Feature, Mpol, Reason
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.isolation import DESIGNS

D0, D1, USER, CLOSED, FENCED = range(5)
PAGES = {D0: 256, D1: 192, USER: 96, CLOSED: 64, FENCED: 64}
WISHES = {
    USER: Feature.USER_NUMA | Feature.RECLAIM | Feature.USER_WRITE,
    CLOSED: Feature.USER_WRITE,
    FENCED: Feature.RECLAIM | Feature.DEMOTION,
}
PRIVATE = tuple(WISHES)
DISTANCES = (
    (10, 20, 30, 30, 40),
    (20, 10, 30, 40, 40),
    (30, 30, 10, 50, 50),
    (30, 40, 50, 10, 50),
    (40, 40, 50, 50, 10),
)
PAGE = 4096
AREA_PAGES = 24
AREAS = tuple((0x4000 + n * 0x100) * PAGE for n in range(4))
FILE_PAGES = 32

#: Why a page may be on a private node: whoever caused it must have been let in by this wish of the node.
DOORS = {
    Reason.POLICY: Feature.USER_NUMA,
    Reason.USER_MOVE: Feature.USER_NUMA,
    Reason.SWAPIN: Feature.USER_NUMA,
    Reason.DEMOTION: Feature.DEMOTION,
    Reason.OWNER: Feature.NONE,
    Reason.CONTIG: Feature.NONE,
}
#: Errors that a random call may meet; any other one is a fault of the emulator.
EXPECTED = {
    errno.EINVAL, errno.ENOMEM, errno.EFAULT, errno.EIO, errno.ENODEV, errno.EACCES, errno.ENOSPC, errno.EBUSY,
    errno.ESRCH, errno.EEXIST, errno.EAGAIN, errno.EPERM,
}  # fmt: skip

ADVICE = [
    madvise.MADV_NORMAL, madvise.MADV_RANDOM, madvise.MADV_WILLNEED, madvise.MADV_FREE, madvise.MADV_COLD,
    madvise.MADV_PAGEOUT, madvise.MADV_PAGEOUT, madvise.MADV_POPULATE_READ, madvise.MADV_POPULATE_WRITE,
]  # fmt: skip

#: What a step is, for the count of what ran.
KINDS = ("system call", "hotplug", "pressure event", "driver call", "checkpoint")

masks = st.sets(st.sampled_from(list(PAGES)), max_size=4)
areas = st.sampled_from(AREAS)
modes = st.sampled_from([int(m) for m in Mpol if m <= Mpol.PREFERRED_MANY])
mode_flags = st.sampled_from([0, 0, 0, 1 << 15, 1 << 14])


def step(kind, **strategies):
    """A rule whose executions are counted, so that a run can say what it did."""

    def decorate(function):
        @functools.wraps(function)
        def counted(self, **values):
            self.done[kind] += 1
            function(self, **values)

        return rule(**strategies)(counted)

    return decorate


class Machine(RuleBasedStateMachine):
    """The rules; a subclass a design says which."""

    design = "private-zonelist"
    done: Counter[str] = Counter()

    @initialize(demotion=st.booleans(), swap=st.sampled_from([0, 40, 400]), readahead=st.sampled_from([0, 8]))
    def boot(self, demotion, swap, readahead):
        nodes = [
            NodeBoot(
                nid,
                pages,
                cpus=(nid,) if nid < USER else (),
                private=nid in WISHES,
                wish=WISHES.get(nid, Feature.NONE),
                zone="movable" if nid in WISHES else "normal",
                adistance=2880 if nid in WISHES else 576,
                kind="compressed-ram" if nid == FENCED else "dram",
            )
            for nid, pages in PAGES.items()
        ]
        knobs = Sysctl(NumaBalancing(mode=0), demotion_enabled=demotion, readahead_pages=readahead)
        self.kernel = Kernel(nodes, DISTANCES, self.design, knobs)
        if swap:
            assert swapon(self.kernel.memory, swap, page_cluster=3) == 0
        self.owners = OwnerPages(self.kernel.memory)
        self.file = self.kernel.create_file("f", FILE_PAGES)
        self.kernel.create_cgroup("tenant")
        self.furnish(self.kernel.spawn(0))
        self.furnish(self.kernel.spawn(1, "tenant"))

    def furnish(self, process):
        """One mapping of each kind, some pages touched: so that most random calls meet something."""
        for area, shared, file in zip(
            AREAS, (False, True, True, False), (None, None, self.file, self.file), strict=True
        ):
            process.mmap(AREA_PAGES * PAGE, shared=shared, file=file, addr=area)
            self.attempt(process.touch, area, AREA_PAGES // 2 * PAGE, not file)
        return process

    def alive(self, pick):
        """One of the living processes, a new one when there is none."""
        living = [p for p in self.kernel.processes.values() if not p.exited]
        return living[pick % len(living)] if living else self.furnish(self.kernel.spawn(pick % 2, "tenant"))

    def attempt(self, call, *args, **kwargs):
        """A call that may fail in a way that a user would see."""
        try:
            return call(*args, **kwargs)
        except OSError as failure:
            assert failure.errno in EXPECTED, failure
        except Signalled:
            pass
        self.done["error or signal"] += 1
        return None

    # -- processes

    @step("system call", pick=st.integers(0, 9))
    def fork(self, pick):
        if sum(not p.exited for p in self.kernel.processes.values()) < 6:
            self.attempt(self.alive(pick).fork)

    @step("system call", pick=st.integers(0, 9))
    def exit(self, pick):
        self.alive(pick).exit()

    @step("system call", pick=st.integers(0, 9), area=areas, shared=st.booleans())
    def mmap(self, pick, area, shared):
        self.attempt(self.alive(pick).mmap, AREA_PAGES * PAGE, shared=shared, addr=area)

    @step("system call", pick=st.integers(0, 9), area=areas, shared=st.booleans())
    def map_file(self, pick, area, shared):
        self.attempt(self.alive(pick).mmap, AREA_PAGES * PAGE, shared=shared, file=self.file, addr=area)

    @step("system call", pick=st.integers(0, 9), area=areas, at=st.integers(0, 20), nr=st.integers(1, 12))
    def munmap(self, pick, area, at, nr):
        self.attempt(self.alive(pick).munmap, area + at * PAGE, nr * PAGE)

    @step(
        "system call",
        pick=st.integers(0, 9),
        area=areas,
        at=st.integers(0, 20),
        nr=st.integers(12, 24),
        write=st.booleans(),
    )
    def touch(self, pick, area, at, nr, write):
        self.attempt(self.alive(pick).touch, area + at * PAGE, nr * PAGE, write)

    @step("system call", pick=st.integers(0, 9), area=areas, nr=st.integers(12, 24))
    def dontneed(self, pick, area, nr):
        self.attempt(self.alive(pick).madvise, area, nr * PAGE, 4)

    @step("system call", pick=st.integers(0, 9), cpu=st.integers(0, 1))
    def affinity(self, pick, cpu):
        self.alive(pick).sched_setaffinity(cpu)

    @step("pressure event", pick=st.integers(0, 9), nr=st.integers(2, 5))
    def hog(self, pick, nr):
        """More memory than nodes have left: pressure."""
        process = self.alive(pick)
        for n in range(nr):
            area = (0x8000 + n * 0x100) * PAGE
            self.attempt(process.mmap, 128 * PAGE, addr=area)
            self.attempt(process.touch, area, 128 * PAGE)

    @step(
        "system call",
        pick=st.integers(0, 9),
        area=areas,
        nr=st.integers(12, 24),
        advice=st.sampled_from(ADVICE),
    )
    def madvise(self, pick, area, nr, advice):
        self.attempt(self.alive(pick).madvise, area, nr * PAGE, advice)

    @step(
        "system call",
        pick=st.integers(0, 9),
        area=areas,
        at=st.integers(0, 12),
        nr=st.integers(1, 12),
        how=st.integers(0, 2),
    )
    def mlock(self, pick, area, at, nr, how):
        process = self.alive(pick)
        if how:
            self.attempt(process.mlock, area + at * PAGE, nr * PAGE, how == 2)
        else:
            self.attempt(process.munlock, area + at * PAGE, nr * PAGE)

    @step(
        "system call",
        pick=st.integers(0, 9),
        area=areas,
        at=st.integers(0, 12),
        nr=st.integers(1, 12),
        prot=st.integers(0, 3),
    )
    def mprotect(self, pick, area, at, nr, prot):
        self.attempt(self.alive(pick).mprotect, area + at * PAGE, nr * PAGE, prot)

    @step(
        "system call",
        pick=st.integers(0, 9),
        area=areas,
        to=areas,
        old=st.integers(1, 24),
        new=st.integers(1, 24),
        flags=st.sampled_from([0, 1, 1, 3, 5]),
    )
    def mremap(self, pick, area, to, old, new, flags):
        where = {"new_addr": to + 0x30 * PAGE} if flags & 2 else {}
        self.attempt(self.alive(pick).mremap, area, old * PAGE, new * PAGE, flags, **where)

    @step(
        "system call",
        pick=st.integers(0, 9),
        area=areas,
        nr=st.integers(1, 6),
        write=st.booleans(),
        longterm=st.booleans(),
    )
    def pin(self, pick, area, nr, write, longterm):
        self.attempt(self.alive(pick).pin, area, nr * PAGE, write, longterm)

    @step("system call", pick=st.integers(0, 9))
    def unpin(self, pick):
        self.alive(pick).unpin()

    @step(
        "system call",
        pick=st.integers(0, 9),
        at=st.integers(0, FILE_PAGES - 1),
        nr=st.integers(1, 12),
        write=st.booleans(),
    )
    def read_or_write(self, pick, at, nr, write):
        process = self.alive(pick)
        file = process.open(self.file)
        self.attempt(process.write if write else process.read, file, nr * PAGE, at * PAGE)
        process.close(file)

    @step("pressure event", limit=st.sampled_from([None, 40, 80, 160]))
    def memory_max(self, limit):
        self.kernel.write_memory_max("tenant", limit)

    @step("pressure event", nr=st.integers(1, 40))
    def memory_reclaim(self, nr):
        assert memcg.memory_reclaim(self.kernel.memory, "tenant", nr) in (0, -errno.EAGAIN)

    # -- policies

    @step("system call", pick=st.integers(0, 9), mode=modes, flags=mode_flags, nodes=masks)
    def set_mempolicy(self, pick, mode, flags, nodes):
        self.attempt(self.alive(pick).set_mempolicy, mode | flags, nodes)

    @step(
        "system call",
        pick=st.integers(0, 9),
        area=areas,
        nr=st.integers(12, 24),
        mode=modes,
        flags=mode_flags,
        nodes=masks,
        how=st.integers(0, 7),
    )
    def mbind(self, pick, area, nr, mode, flags, nodes, how):
        self.attempt(self.alive(pick).mbind, area, nr * PAGE, mode | flags, nodes, how)

    @step(
        "system call",
        pick=st.integers(0, 9),
        area=areas,
        nr=st.integers(12, 24),
        nid=st.sampled_from(list(PAGES)),
    )
    def move_pages(self, pick, area, nr, nid):
        addrs = [area + n * PAGE for n in range(nr)]
        self.attempt(self.alive(pick).move_pages, addrs, [nid] * nr)

    @step("system call", pick=st.integers(0, 9), old=masks, new=masks)
    def migrate_pages(self, pick, old, new):
        self.attempt(self.alive(pick).migrate_pages, old, new)

    @step("system call", nodes=masks)
    def cpuset(self, nodes):
        error = self.kernel.write_mems("tenant", nodes)
        assert error <= 0 and -error in {0, *EXPECTED}

    # -- the kernel and its drivers

    @step("pressure event")
    def drop_caches(self):
        self.kernel.sync()
        self.kernel.drop_caches()

    @step("pressure event", wake=st.booleans())
    def kswapd(self, wake):
        self.kernel.kswapd(wake=wake)

    @step("hotplug", nid=st.sampled_from(PRIVATE))
    def plug(self, nid):
        assert self.kernel.plug(nid) in (0, -errno.EEXIST, -errno.EBUSY)

    @step("hotplug", nid=st.sampled_from(PRIVATE))
    def online(self, nid):
        assert self.kernel.online(nid) in (0, -errno.ENODEV, -errno.EINVAL)

    @step("hotplug", nid=st.sampled_from(PRIVATE))
    def offline(self, nid):
        assert self.kernel.offline(nid) in (0, -errno.EBUSY, -errno.ENODEV, -errno.EINVAL)

    @step("hotplug", nid=st.sampled_from(PRIVATE))
    def unplug(self, nid):
        assert self.kernel.unplug(nid) in (0, -errno.EBUSY, -errno.EINVAL)

    @step("driver call", nid=st.sampled_from(PRIVATE), nr=st.integers(1, 16))
    def owner_takes(self, nid, nr):
        for _ in range(nr):
            if self.owners.alloc("owner", nid) < 0:
                break

    @precondition(lambda self: self.owners.held)
    @step("driver call", nr=st.integers(1, 32))
    def owner_gives(self, nr):
        for pfn in sorted(self.owners.held)[:nr]:
            self.owners.free(pfn)

    @step("checkpoint")
    def checkpoint(self):
        memory = self.kernel.memory
        before = plain.digest(memory.snapshot())
        memory.restore(memory.snapshot())
        assert plain.digest(memory.snapshot()) == before

    # -- what must hold

    @invariant()
    def books_are_right(self):
        self.kernel.validate()
        memory = self.kernel.memory
        flags = memory.frames.flags
        allocated = np.count_nonzero(flags & PG_ALLOCATED)
        assert allocated == memory.vmstat.count["pgalloc"] - memory.vmstat.count["pgfree"]
        for node in memory.nodes.values():
            here = flags[node.start_pfn : node.start_pfn + node.spec.span_pages]
            assert np.count_nonzero(here & PG_ALLOCATED) + node.free_pages == node.managed_pages

    @invariant()
    def private_nodes_hold_only_what_was_invited(self):
        memory = self.kernel.memory
        frames = memory.frames
        for nid in PRIVATE:
            node = memory.nodes[nid]
            here = slice(node.start_pfn, node.start_pfn + node.spec.span_pages)
            used = frames.flags[here] & PG_ALLOCATED != 0
            if self.kernel.hotplug.state(nid) != "online":
                assert not used.any()
                continue
            for value in np.unique(frames.reason[here][used]).tolist():
                doors = self.doors(Reason(value))
                assert any(WISHES[nid] & door == door for door in doors), (nid, Reason(value).name)
            assert not np.any(frames.flags[here] & PG_UNINVITED)

    def doors(self, reason):
        """The wishes of a node that let pages for this reason in, one of which is enough."""
        moved_by_user = reason in (Reason.POLICY, Reason.USER_MOVE)
        if self.design.startswith("no-fallback") and moved_by_user:
            return [Feature.NONE]  # that design's door opens to everyone who names the node
        if self.design == "gfp-private" and reason is Reason.USER_MOVE:
            return [Feature.USER_NUMA, Feature.DEMOTION]  # whatever supplies `migrate_to`
        if self.design == "gfp-private" and reason is Reason.PAGECACHE:
            return [Feature.USER_NUMA]  # a fault in a mapped file, by the mapping's policy
        return [DOORS[reason]] if reason in DOORS else []

    @invariant()
    def fences_hold(self):
        """No writable mapping of a page of the fenced node."""
        memory = self.kernel.memory
        node = memory.nodes[FENCED]
        pte = memory.page_table.pte[: memory.page_table.nr_slots]
        pfn = (pte >> PTE_PFN_SHIFT).astype(np.int64) - node.start_pfn
        open_ = (pte & PTE_PRESENT != 0) & (pte & PTE_WRITABLE != 0)
        assert not np.any(open_ & (pfn >= 0) & (pfn < node.spec.span_pages))


def run(design, examples, steps):
    """Always the same programs, unless `pytest --hypothesis-seed=N` asks for others; prints what ran."""
    done: Counter[str] = Counter()
    machine = type("Machine", (Machine,), {"design": design, "done": done})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=core.global_force_seed is None,
            database=None,
            phases=(Phase.explicit, Phase.generate),  # shrinking takes minutes; the last steps tell enough
            suppress_health_check=list(HealthCheck),
        ),
    )
    kinds = ", ".join(f"{done[kind]} {kind}s" for kind in KINDS)
    print(f"{design}: {examples} programs, {sum(done[kind] for kind in KINDS)} steps: {kinds}")
    print(f"{design}: {done['error or signal']} calls ended with an error or a signal")
    return done


def lose_a_frame(machine):
    machine.kernel.memory.nodes[D0].buddy.alloc(0)


def count_one_too_many(machine):
    machine.kernel.memory.vmstat.add("pgfree")


def place_where_nobody_may(machine):
    """A page of its owner is taken for one of a policy, on the node that opted in to nothing."""
    machine.kernel.memory.frames.reason[machine.owners.alloc("owner", CLOSED)] = int(Reason.POLICY)


def keep_on_a_node_that_goes(machine):
    machine.owners.alloc("owner", CLOSED)
    machine.kernel.hotplug.state = lambda nid: "offline"


@pytest.mark.parametrize(
    ("damage", "seen_by"),
    [
        (lose_a_frame, "books_are_right"),
        (count_one_too_many, "books_are_right"),
        (place_where_nobody_may, "private_nodes_hold_only_what_was_invited"),
        (keep_on_a_node_that_goes, "private_nodes_hold_only_what_was_invited"),
    ],
)
def test_invariants_see_planted_faults(damage, seen_by):
    machine = Machine()
    machine.boot(demotion=False, swap=0, readahead=0)
    getattr(machine, seen_by)()
    damage(machine)
    with pytest.raises((AssertionError, InvariantError)):
        getattr(machine, seen_by)()


@pytest.mark.parametrize("design", sorted(DESIGNS))
def test_random_programs(design):
    run(design, examples=8, steps=50)


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("design", [design for design in sorted(DESIGNS) if ":" not in design])
def test_many_random_programs(design):
    done = run(design, examples=240, steps=100)
    assert sum(done[kind] for kind in KINDS) >= 20_000
    assert min(done[kind] for kind in KINDS) >= 400
