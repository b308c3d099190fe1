"""The NUMA system calls where the recorded programs do not reach: private nodes, holes, forks, failures,
random sequences.
"""

import errno
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.nodeagent.host import filemap, madvise
from privmem.nodeagent.host import migrate_calls as migrating
from privmem.nodeagent.host import move_calls as moves
from privmem.nodeagent.host import numa_syscalls as numa
from privmem.nodeagent.host import syscalls as calls
from privmem.nodeagent.host.audit import validate_memory
from privmem.nodeagent.host.fault import FAULT_SIGBUS
from privmem.nodeagent.host.memory import Memory, NodeSpec, NumaBalancing, Sysctl
from privmem.nodeagent.host.page_alloc import NeedsExtent
from privmem.nodeagent.host.task import Task
from privmem.scheduler import plain
from privmem.scheduler.abi import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_STRICT, Feature, Mpol
from privmem.scheduler.cpuset import Cpuset, MemsChange
from privmem.scheduler.topology import HostTopology, NodeTopology

D0, D1, USER, CRAM = range(4)
FEATURES = {
    USER: Feature.RECLAIM | Feature.USER_NUMA | Feature.USER_WRITE,
    CRAM: Feature.RECLAIM | Feature.DEMOTION,
}
PAGES = {D0: 512, D1: 512, USER: 64, CRAM: 64}
TOPOLOGY = HostTopology(
    tuple(
        NodeTopology(
            nid,
            cpus=(nid,) if nid < 2 else (),
            private=nid in FEATURES,
            features=FEATURES.get(nid, Feature.ALL),
            zone="movable" if nid in FEATURES else "normal",
            span_pages=PAGES[nid],
        )
        for nid in range(4)
    ),
    ((10, 20, 30, 40), (20, 10, 30, 40), (30, 30, 10, 40), (40, 40, 40, 10)),
)
EVERY = MPOL_MF_MOVE_ALL


class Box:
    """A host with one task, without a participant around it."""

    def __init__(self, pooled=None, boot_pages=0):
        specs = [
            NodeSpec(nid, f"device/{nid}", PAGES[nid], PAGES[nid], 100, 100, False, False, False, 0, 0)
            for nid in range(4)
        ]
        if pooled is not None:
            specs[pooled] = replace(specs[pooled], pooled=True, boot_pages=boot_pages, extent_pages=32)
        self.memory = Memory(TOPOLOGY, specs, Sysctl(NumaBalancing(mode=0), demotion_enabled=False))
        self.task = Task(1, 0, self.memory.resolver)

    def where(self, start, nr_pages, task=None):
        return moves.query_range(self.memory, task or self.task, start, nr_pages)

    def bind(self, start, nr_pages, mode, nodes, flags=0):
        return numa.mbind(self.memory, self.task, start, nr_pages, mode, nodes, flags)

    def write(self, start, nr_pages, task=None):
        return calls.touch(self.memory, task or self.task, start, nr_pages, True)

    def used(self, nid):
        node = self.memory.nodes[nid]
        return node.managed_pages - node.free_pages


@pytest.fixture
def box():
    made = Box()
    yield made
    validate_memory(made.memory)
    calls.exit_task(made.memory, made.task)
    validate_memory(made.memory)
    cached = sum(len(holder.pages) for holder in made.memory.page_cache.objects.values())
    assert sum(made.used(nid) for nid in range(4)) == cached


def grow(box, nid):
    """The pool grants the node its next extent."""
    node = box.memory.nodes[nid]
    box.memory.online(node, node.managed_pages, 32)
    box.memory.setup_watermarks()


CALLS = [
    lambda box: box.bind(0, 40, Mpol.BIND, 1 << USER, MPOL_MF_MOVE | MPOL_MF_STRICT),
    lambda box: moves.move_pages(box.memory, box.task, list(range(40)), [USER] * 40, MPOL_MF_MOVE)[0],
    lambda box: migrating.migrate_pages(box.memory, box.task, 1 << D0, 1 << USER),
]


@pytest.mark.parametrize("call", CALLS, ids=["mbind", "move_pages", "migrate_pages"])
def test_a_move_that_needs_an_extent_goes_on_where_it_stopped(call):
    box = Box(pooled=USER, boot_pages=32)
    calls.mmap_anon(box.memory, box.task, 0, 40)
    box.write(0, 40)
    with pytest.raises(NeedsExtent) as needs:
        call(box)
    assert needs.value.nid == USER
    room = 32 - box.memory.nodes[USER].wmark.low_pages
    assert box.where(0, 40) == [USER] * room + [D0] * (40 - room)
    assert box.used(USER) == room
    validate_memory(box.memory)
    grow(box, USER)
    assert call(box) == 0
    assert box.where(0, 40) == [USER] * 40
    count = box.memory.vmstat.count
    assert (count["pgalloc"], count["pgfree"], count["pgmigrate_success"]) == (80, 40, 40)


def box_between_two_phases():
    """Two tasks with 40 pages on node 0 and 10 on node 1 each; 1 goes to USER first, then 0 to 1, which is too
    small.
    """
    box = Box(pooled=D1, boot_pages=32)
    tasks = [box.task, Task(2, 0, box.memory.resolver)]
    for task in tasks:
        calls.mmap_anon(box.memory, task, 0, 50)
        box.write(0, 40, task)
        numa.set_mempolicy(task, Mpol.BIND, 1 << D1)
        box.write(40, 10, task)
        numa.set_mempolicy(task, Mpol.DEFAULT, 0)
    return box, tasks


OLD, NEW = 1 << D0 | 1 << D1, 1 << D1 | 1 << USER


def until_done(box, call):
    waits = 0
    while True:
        try:
            return waits, call()
        except NeedsExtent as needs:
            assert needs.nid == D1
            grow(box, D1)
            waits += 1


def test_migrate_pages_does_not_repeat_a_finished_phase():
    box, (task, _) = box_between_two_phases()
    with pytest.raises(NeedsExtent):
        migrating.migrate_pages(box.memory, task, OLD, NEW)
    assert task.migrating == (OLD, NEW, 1 << D0, 0)
    copy = Task(1, 0, box.memory.resolver)
    copy.restore(plain.unpack(*plain.pack(task.snapshot())))
    assert copy.migrating == task.migrating
    assert D1 in box.where(0, 40)  # a repeated first phase would take these on to USER
    assert until_done(box, lambda: migrating.migrate_pages(box.memory, task, OLD, NEW)) == (1, 0)
    assert (task.migrating, box.where(0, 50)) == (None, [D1] * 40 + [USER] * 10)
    assert box.memory.vmstat.count["pgmigrate_success"] == 50


def test_a_cpuset_of_several_tasks_goes_on_where_it_stopped():
    box, tasks = box_between_two_phases()
    box.memory.resolver.cpuset_nodes = replace(box.memory.resolver.cpuset_nodes, migrates=-1)
    change = MemsChange(0, Cpuset(NEW, NEW), True, OLD)
    waits, _ = until_done(box, lambda: calls.apply_mems(box.memory, tasks, change))
    assert waits == 2
    for task in tasks:
        assert (task.migrating, task.mems_allowed) == (None, NEW)
        assert box.where(0, 50, task) == [D1] * 40 + [USER] * 10
    assert box.memory.vmstat.count["pgmigrate_success"] == 100


@pytest.mark.parametrize(
    ("old", "new", "moves"),
    [
        (0b011100, 0b111000, [(4, 5), (3, 4), (2, 3)]),  # the examples of do_migrate_pages' comment
        (0b11111111, 0b111000, [(7, 4), (6, 3), (2, 5), (1, 4), (0, 3)]),
        (0b0011, 0b0011, []),
        (0b0011, 0b0001, [(1, 0)]),
        (0, 0b0001, []),
    ],
)
def test_migrate_pages_keeps_relative_places(old, new, moves):
    made, left = [], old
    while left:
        source, target = migrating.next_move(old, new, left)
        if source < 0:
            break
        made.append((source, target))
        left &= ~(1 << source)
    assert made == moves


def test_default_policy_never_reaches_a_private_node(box):
    calls.mmap_anon(box.memory, box.task, 0, 600)
    assert box.write(0, 600) == 0
    assert (box.used(USER), box.used(CRAM)) == (0, 0)


def test_bind_to_an_opted_in_private_node(box):
    calls.mmap_anon(box.memory, box.task, 0, 16)
    assert box.bind(0, 8, Mpol.BIND, 1 << USER) == 0
    box.write(0, 16)
    assert box.where(0, 16) == [USER] * 8 + [D0] * 8


def test_bind_to_a_node_that_did_not_opt_in_is_refused(box):
    calls.mmap_anon(box.memory, box.task, 0, 4)
    assert box.bind(0, 4, Mpol.BIND, 1 << CRAM) == -errno.EINVAL
    assert numa.set_mempolicy(box.task, Mpol.INTERLEAVE, 1 << USER) == -errno.EINVAL
    assert numa.set_mempolicy(box.task, Mpol.INTERLEAVE, 1 << USER | 1 << D1) == 0
    assert numa.get_mempolicy(box.memory, box.task) == (0, Mpol.INTERLEAVE, 1 << D1)


def test_mbind_moves_onto_a_private_node(box):
    calls.mmap_anon(box.memory, box.task, 0, 8)
    box.write(0, 8)
    assert box.bind(0, 8, Mpol.BIND, 1 << USER, MPOL_MF_MOVE | MPOL_MF_STRICT) == 0
    assert box.where(0, 8) == [USER] * 8


def test_strict_reports_what_found_no_room(box):
    calls.mmap_anon(box.memory, box.task, 0, 100)
    box.write(0, 100)
    assert box.bind(0, 100, Mpol.BIND, 1 << USER, MPOL_MF_MOVE | MPOL_MF_STRICT) == -errno.EIO
    placed = box.where(0, 100)
    assert set(placed) == {D0, USER}
    assert placed.count(USER) == box.used(USER)


def test_move_pages_to_and_from_private_nodes(box):
    calls.mmap_anon(box.memory, box.task, 0, 4)
    box.write(0, 4)
    vpns = list(range(4))
    assert moves.move_pages(box.memory, box.task, vpns, [USER] * 4, MPOL_MF_MOVE) == (0, [USER] * 4)
    assert moves.move_pages(box.memory, box.task, vpns, [D1] * 4, MPOL_MF_MOVE) == (0, [D1] * 4)
    unset = [moves.STATUS_UNSET] * 4
    assert moves.move_pages(box.memory, box.task, vpns, [CRAM] * 4, MPOL_MF_MOVE) == (-errno.ENODEV, unset)
    assert moves.move_pages(box.memory, box.task, vpns, [9] * 4, MPOL_MF_MOVE) == (-errno.ENODEV, unset)
    assert moves.move_pages(box.memory, box.task, vpns, [D0] * 4, 1) == (-errno.EINVAL, unset)


def test_move_pages_stops_at_the_first_impossible_node(box):
    calls.mmap_anon(box.memory, box.task, 0, 3)
    box.write(0, 3)
    answer = moves.move_pages(box.memory, box.task, [0, 1, 2], [D1, CRAM, D1], MPOL_MF_MOVE)
    assert answer == (-errno.ENODEV, [D1, moves.STATUS_UNSET, moves.STATUS_UNSET])
    assert box.where(0, 3) == [D1, D0, D0]


def test_status_of_what_is_not_there(box):
    calls.mmap_anon(box.memory, box.task, 0, 2)
    calls.mmap_shared(box.memory, box.task, 10, 2)
    assert box.where(0, 12) == [-errno.EFAULT] * 10 + [-errno.ENOENT] * 2
    assert moves.query_pages(box.memory, box.task, list(range(12))) == box.where(0, 12)


def test_shared_pages_stay_without_move_all(box):
    calls.mmap_anon(box.memory, box.task, 0, 4)
    box.write(0, 4)
    child = calls.fork(box.memory, box.task, 2)
    assert box.bind(0, 4, Mpol.BIND, 1 << D1, MPOL_MF_MOVE | MPOL_MF_STRICT) == 0
    assert box.where(0, 4) == [D0] * 4
    assert moves.move_pages(box.memory, box.task, [0], [D1], MPOL_MF_MOVE) == (0, [-errno.EACCES])
    assert box.bind(0, 4, Mpol.BIND, 1 << D1, EVERY) == 0
    assert box.where(0, 4) == box.where(0, 4, child) == [D1] * 4
    calls.exit_task(box.memory, child)


def test_fork_copies_on_write_only(box):
    calls.mmap_anon(box.memory, box.task, 0, 4)
    calls.mmap_shared(box.memory, box.task, 10, 4)
    box.write(0, 4)
    box.write(10, 4)
    child = calls.fork(box.memory, box.task, 2)
    assert box.used(D0) == 8
    assert box.where(10, 4, child) == [-errno.ENOENT] * 4
    child.cpu = 1
    box.write(0, 2, child)
    box.write(10, 4, child)
    assert box.where(0, 4, child) == [D1, D1, D0, D0]
    assert box.where(0, 4) == [D0] * 4
    assert box.where(10, 4, child) == [D0] * 4
    calls.exit_task(box.memory, child)
    assert (box.used(D0), box.used(D1)) == (8, 0)


@pytest.mark.parametrize(
    ("start", "nr_pages", "mode", "answer"),
    [
        (0, 8, Mpol.BIND, 0),
        (0, 12, Mpol.BIND, -errno.EFAULT),  # a hole after the mapping
        (4, 20, Mpol.BIND, -errno.EFAULT),  # a hole in the middle
        (15, 9, Mpol.BIND, -errno.EFAULT),  # a hole before
        (15, 9, Mpol.DEFAULT, 0),  # the default policy does not mind holes
        (10, 2, Mpol.DEFAULT, -errno.EFAULT),  # nothing at all
        (0, 0, Mpol.BIND, 0),
    ],
)
def test_mbind_and_holes(box, start, nr_pages, mode, answer):
    calls.mmap_anon(box.memory, box.task, 0, 8)
    calls.mmap_anon(box.memory, box.task, 16, 8)
    assert box.bind(start, nr_pages, mode, 0b10 if mode else 0) == answer


def test_munmap_in_the_middle_and_reuse(box):
    calls.mmap_anon(box.memory, box.task, 0, 12)
    box.write(0, 12)
    assert calls.munmap(box.memory, box.task, 4, 4) == 0
    assert box.used(D0) == 8
    assert calls.touch(box.memory, box.task, 0, 12, False) == -errno.EFAULT
    assert madvise.madvise_dontneed(box.memory, box.task, 0, 12) == -errno.ENOMEM
    assert box.used(D0) == 0
    calls.mmap_anon(box.memory, box.task, 4, 4)
    assert box.write(0, 12) == 0


def test_shared_memory_goes_with_its_last_mapping(box):
    calls.mmap_shared(box.memory, box.task, 0, 8)
    box.write(0, 8)
    child = calls.fork(box.memory, box.task, 2)
    calls.munmap(box.memory, box.task, 0, 8)
    assert box.used(D0) == 8
    calls.exit_task(box.memory, child)
    assert box.used(D0) == 0
    assert box.memory.page_cache.objects == {}


def test_page_cache_ignores_a_bind_to_private_nodes(box):
    file = box.memory.page_cache.create_file("f", 8)
    assert numa.set_mempolicy(box.task, Mpol.BIND, 1 << USER) == 0
    assert filemap.read_pages(box.memory, box.task, file, 0, 8) == 8
    assert (box.used(D0), box.used(USER)) == (8, 0)


def test_reading_past_the_end(box):
    file = box.memory.page_cache.create_file("f", 8)
    assert filemap.read_pages(box.memory, box.task, file, 6, 8) == 2
    calls.mmap_object(box.memory, box.task, 0, 10, file, private=False)
    assert box.write(0, 10) == FAULT_SIGBUS


def test_the_seeds_story(box):
    """A reads a file; B maps it and binds it to a private node: its faults are soft, and on the wrong node."""
    file = box.memory.page_cache.create_file("f", 8)
    filemap.read_pages(box.memory, box.task, file, 0, 8)
    other = Task(2, 1, box.memory.resolver)
    calls.mmap_object(box.memory, other, 0, 8, file, private=False)
    assert numa.mbind(box.memory, other, 0, 8, Mpol.BIND, 1 << USER, 0) == 0
    assert calls.touch(box.memory, other, 0, 8, False) == 0
    assert box.where(0, 8, other) == [D0] * 8
    assert (box.memory.vmstat.count["pgfault"], box.memory.vmstat.count["pgmajfault"]) == (8, 0)
    calls.exit_task(box.memory, other)


def test_get_mempolicy_flags(box):
    calls.mmap_anon(box.memory, box.task, 0, 4)
    box.bind(0, 4, Mpol.BIND, 0b10)
    numa.set_mempolicy(box.task, Mpol.INTERLEAVE, 0b11)
    get = numa.get_mempolicy
    assert get(box.memory, box.task, 0, numa.MPOL_F_ADDR) == (0, Mpol.BIND, 0b10)
    assert get(box.memory, box.task, 0, numa.MPOL_F_ADDR | numa.MPOL_F_NODE) == (0, D1, 0b10)
    assert get(box.memory, box.task, None, numa.MPOL_F_NODE) == (0, D0, 0b11)
    assert get(box.memory, box.task, None, numa.MPOL_F_MEMS_ALLOWED) == (0, 0, 0b0111)
    assert get(box.memory, box.task, 99, numa.MPOL_F_ADDR) == (-errno.EFAULT, 0, 0)
    assert get(box.memory, box.task, None, numa.MPOL_F_ADDR) == (-errno.EFAULT, 0, 0)  # as recorded
    for vpn, flags in ((None, 8), (0, 0), (None, 5)):
        assert get(box.memory, box.task, vpn, flags) == (-errno.EINVAL, 0, 0)


def test_cpuset_moves_pages_and_may_hand_a_private_node_to_a_tenant_that_never_named_it(box):
    """mems {D0,D1} -> {D0,USER} remaps bind {D1} to {USER}: an intended side effect of opting in. Pages that are
    there already move among general nodes only.
    """
    calls.mmap_anon(box.memory, box.task, 0, 8)
    group = Cpuset(0b0011, 0b0011)
    box.task.mems_allowed = 0b0011
    box.bind(0, 8, Mpol.BIND, 1 << D1)
    box.write(0, 4)
    change = calls.write_cpuset_mems(box.memory, [box.task], group, 1 << D0 | 1 << USER, 0b0111)
    assert (change.error, change.cpuset) == (0, Cpuset(0b0101, 0b0101))
    box.write(4, 4)
    assert box.where(0, 8) == [D0] * 4 + [USER] * 4
    refused = calls.write_cpuset_mems(box.memory, [box.task], change.cpuset, 1 << USER, 0b0111)
    assert refused.error == -errno.EINVAL


REGION_PAGES = 12
spots = st.tuples(st.integers(0, 3), st.integers(0, REGION_PAGES - 1), st.integers(1, REGION_PAGES))
masks = st.integers(0, 15)
modes = st.sampled_from([*range(6), *(m | 1 << 15 for m in range(6)), *(m | 1 << 14 for m in range(6))])
ops = st.one_of(
    st.tuples(st.just("write"), spots),
    st.tuples(st.just("read"), spots),
    st.tuples(st.just("bind"), spots, modes, masks, st.integers(0, 7)),
    st.tuples(st.just("policy"), modes, masks),
    st.tuples(st.just("move"), spots, st.integers(0, 4), st.sampled_from([0, 2, 4])),
    st.tuples(st.just("migrate"), masks, masks),
    st.tuples(st.just("unmap"), spots),
    st.tuples(st.just("forget"), spots),
    st.tuples(st.just("fork"), spots),
    st.tuples(st.just("cpuset"), masks),
    st.tuples(st.just("drop")),
    st.tuples(st.just("cpu"), st.integers(0, 1)),
)


def play(box, group, op):
    memory, task = box.memory, box.task
    name, *args = op
    if name in ("write", "read", "bind", "move", "unmap", "forget", "fork"):
        region, offset, nr_pages = args[0]
        start = region * REGION_PAGES * 2 + offset
    if name in ("write", "read"):
        calls.touch(memory, task, start, nr_pages, name == "write")
    elif name == "bind":
        box.bind(start, nr_pages, *args[1:])
    elif name == "policy":
        numa.set_mempolicy(task, *args)
    elif name == "move":
        moves.move_pages(memory, task, list(range(start, start + nr_pages)), [args[1]] * nr_pages, args[2])
    elif name == "migrate":
        migrating.migrate_pages(memory, task, *args)
    elif name == "unmap":
        calls.munmap(memory, task, start, nr_pages)
    elif name == "forget":
        madvise.madvise_dontneed(memory, task, start, nr_pages)
    elif name == "fork":
        child = calls.fork(memory, task, 2)
        calls.touch(memory, child, start, nr_pages, True)
        validate_memory(memory)
        calls.exit_task(memory, child)
    elif name == "cpuset":
        group = calls.write_cpuset_mems(memory, [task], group, args[0], 0b0111).cpuset
    elif name == "drop":
        filemap.sync(memory)
        filemap.drop_caches(memory)
    else:
        task.cpu = args[0]
    return group


@settings(max_examples=60, deadline=None)
@given(st.lists(ops, max_size=20))
def test_any_sequence_keeps_the_books_and_the_fences(sequence):
    box = Box()
    memory, task = box.memory, box.task
    file = memory.page_cache.create_file("f", REGION_PAGES)
    calls.mmap_anon(memory, task, 0, REGION_PAGES)
    calls.mmap_shared(memory, task, 2 * REGION_PAGES, REGION_PAGES)
    calls.mmap_object(memory, task, 4 * REGION_PAGES, REGION_PAGES, file, private=False)
    calls.mmap_object(memory, task, 6 * REGION_PAGES, REGION_PAGES, file, private=True)
    group = Cpuset(0b0111, 0b0111)
    for op in sequence:
        group = play(box, group, op)
    validate_memory(memory)
    assert box.used(CRAM) == 0
    copy = Box()
    copy.memory.restore(plain.unpack(*plain.pack(memory.snapshot())))
    copy.task.restore(plain.unpack(*plain.pack(task.snapshot())))
    validate_memory(copy.memory)
    assert plain.digest(copy.memory.snapshot()) == plain.digest(memory.snapshot())
    assert copy.where(0, 8 * REGION_PAGES) == box.where(0, 8 * REGION_PAGES)
