"""mmap, mprotect, mremap, mlock and populate as a process sees them: places, errno values, entries, lists."""

import contextlib
import errno
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.nodeagent.host import mlock, mmap
from privmem.nodeagent.host.audit import validate_memory
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PG_UNEVICTABLE, PTE_PFN_SHIFT, PTE_PRESENT, PTE_WRITABLE
from privmem.nodeagent.host.locked_slots import LockedSlots
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.nodeagent.host.mlock import MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT
from privmem.nodeagent.host.mprotect import PROT_NONE, PROT_READ, PROT_WRITE
from privmem.nodeagent.host.mremap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE
from privmem.nodeagent.host.process import Signalled
from privmem.scheduler import plain
from privmem.scheduler.abi import Feature, Mpol

D0, D1, P = range(3)
PAGE = 4096
RW = PROT_READ | PROT_WRITE
AT = 0x2000_0000
BASE = mmap.MMAP_BASE * PAGE


def boot(design="private-zonelist", wish=Feature.USER_NUMA | Feature.USER_WRITE, **knobs):
    nodes = [
        NodeBoot(D0, 2048, cpus=(0,)),
        NodeBoot(D1, 2048, cpus=(1,)),
        NodeBoot(P, 512, private=True, wish=wish, zone="movable"),
    ]
    distances = ((10, 20, 30), (20, 10, 30), (30, 30, 10))
    return Kernel(nodes, distances, design, Sysctl(NumaBalancing(mode=0), demotion_enabled=False, **knobs))


@pytest.fixture
def kernel():
    made = boot(zero_page=True)
    free = {nid: node.free_pages for nid, node in made.memory.nodes.items()}
    yield made
    made.validate()
    for process in made.processes.values():
        process.die()
    made.sync()
    made.drop_caches()
    made.validate()
    assert {nid: node.free_pages for nid, node in made.memory.nodes.items()} == free
    assert (made.memory.locked_slots.ranges, made.memory.page_table.regions) == ([], [])


@pytest.fixture
def process(kernel):
    return kernel.spawn()


def refused(number):
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


def signalled(number):
    return pytest.raises(Signalled, match=signal.Signals(number).name)


def entries(process, addr, nr):
    """Of each page: - nothing, r, or w."""
    memory = process.kernel.memory
    found = ""
    for vpn in range(addr // PAGE, addr // PAGE + nr):
        vma = process.task.mm.find(vpn)
        entry = int(memory.page_table.pte[vma.slot_of(vpn)])
        found += "-" if not entry & PTE_PRESENT else "w" if entry & PTE_WRITABLE else "r"
    return found


def frames(process, addr, nr):
    table, mm = process.kernel.memory.page_table, process.task.mm
    vpns = range(addr // PAGE, addr // PAGE + nr)
    return [int(table.pte[mm.find(vpn).slot_of(vpn)]) >> PTE_PFN_SHIFT for vpn in vpns]


def mlocked(process, addr, nr):
    flags = process.kernel.memory.frames.flags
    return [bool(flags[pfn] & PG_UNEVICTABLE) for pfn in frames(process, addr, nr)]


def faults(process, addr, nr, write=True):
    process.mark_faults()
    process.touch(addr, nr * PAGE, write)
    return process.faults_since_mark()


# -- mmap


def test_the_kernel_chooses_the_lowest_gap(process):
    assert process.mmap(3 * PAGE) == BASE
    assert process.mmap(PAGE) == BASE + 3 * PAGE
    process.munmap(BASE + PAGE, PAGE)
    assert process.mmap(2 * PAGE) == BASE + 4 * PAGE
    assert process.mmap(PAGE) == BASE + PAGE


def test_a_wish_is_taken_where_there_is_room(process):
    assert process.mmap(2 * PAGE, addr=AT + 17, fixed=False) == AT
    assert process.mmap(2 * PAGE, addr=AT + PAGE, fixed=False) == BASE
    assert process.mmap(PAGE, addr=4 * PAGE, fixed=False) == BASE + 2 * PAGE


def test_a_fixed_mapping_replaces_what_was_there_unless_it_must_not(process):
    process.mmap(4 * PAGE, addr=AT)
    process.touch(AT, 4 * PAGE)
    with refused(errno.EEXIST):
        process.mmap(2 * PAGE, addr=AT + 3 * PAGE, flags=mmap.MAP_FIXED_NOREPLACE)
    assert process.mmap(2 * PAGE, addr=AT + PAGE) == AT + PAGE
    assert process.where(AT, 4 * PAGE) == [D0, None, None, D0]
    assert process.mmap(PAGE, addr=AT + 4 * PAGE, flags=mmap.MAP_FIXED_NOREPLACE) == AT + 4 * PAGE


@pytest.mark.parametrize(
    ("how", "number"),
    [
        ({"length": 0}, errno.EINVAL),
        ({"length": -PAGE}, errno.EINVAL),
        ({"length": PAGE, "addr": AT + 1}, errno.EINVAL),
        ({"length": PAGE, "offset": 100}, errno.EINVAL),
        ({"length": 1 << 50}, errno.ENOMEM),
        ({"length": 2 * PAGE, "addr": 0x7FFF_FFFF_E000}, errno.ENOMEM),
        ({"length": PAGE, "flags": mmap.MAP_SHARED_VALIDATE}, errno.EINVAL),
    ],
)
def test_mappings_that_are_refused(process, how, number):
    with refused(number):
        process.mmap(**how)
    assert process.task.mm.vmas == []


def test_files_are_mapped_as_they_are_open(kernel, process):
    kernel.create_file("f", 8)
    reader, writer = process.open("f", "r"), process.open("f", "w")
    with refused(errno.EACCES):
        process.mmap(8 * PAGE, shared=True, file=reader)
    with refused(errno.EACCES):
        process.mmap(8 * PAGE, file=writer)
    with refused(errno.EOPNOTSUPP):
        process.mmap(8 * PAGE, file=reader, shared=True, flags=mmap.MAP_SHARED_VALIDATE | 0x80000)
    private = process.mmap(8 * PAGE, file=reader)
    process.touch(private, 8 * PAGE)
    shared = process.mmap(8 * PAGE, shared=True, file=reader, prot=PROT_READ)
    process.touch(shared, 8 * PAGE, write=False)
    with refused(errno.EACCES):
        process.mprotect(shared, 8 * PAGE, RW)
    assert (entries(process, private, 8), entries(process, shared, 8)) == ("w" * 8, "r" * 8)
    process.close(reader)
    assert reader.file_id in kernel.memory.page_cache.open_files
    process.munmap(private, 8 * PAGE)
    process.munmap(shared, 8 * PAGE)
    assert reader.file_id not in kernel.memory.page_cache.open_files


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ({}, "----"),
        ({"flags": mmap.MAP_NORESERVE}, "----"),
        ({"flags": mmap.MAP_POPULATE}, "wwww"),
        ({"flags": mmap.MAP_POPULATE | mmap.MAP_NONBLOCK}, "----"),
        ({"flags": mmap.MAP_POPULATE, "prot": PROT_NONE}, "----"),
        ({"flags": mmap.MAP_POPULATE, "shared": True}, "wwww"),
        ({"flags": mmap.MAP_LOCKED}, "wwww"),
    ],
)
def test_populate(process, how, found):
    assert entries(process, process.mmap(4 * PAGE, **how), 4) == found


def test_populate_does_not_mind_the_end_of_a_file(kernel, process):
    file = kernel.create_file("f", 2)
    assert entries(process, process.mmap(4 * PAGE, file=file, flags=mmap.MAP_POPULATE), 4) == "ww--"


def test_an_untouched_page_reads_as_the_zero_page(kernel, process):
    addr = process.mmap(4 * PAGE)
    free = kernel.memory.nodes[D0].free_pages
    assert (faults(process, addr, 4, write=False), faults(process, addr, 4, write=False)) == ((4, 0), (0, 0))
    assert kernel.memory.nodes[D0].free_pages == free
    assert process.move_pages([addr]) == [-errno.EFAULT]
    child = process.fork()
    assert faults(child, addr, 4, write=False) == (0, 0)
    assert (faults(process, addr, 2), process.where(addr, 4 * PAGE)) == ((2, 0), [D0, D0, None, None])
    assert child.where(addr, 4 * PAGE) == [None] * 4
    process.madvise(addr, 4 * PAGE, 4)
    assert faults(process, addr, 4, write=False) == (4, 0)


# -- mprotect


def test_rights_are_looked_at_on_every_access(process):
    addr = process.mmap(6 * PAGE)
    process.touch(addr, 6 * PAGE)
    process.mprotect(addr, 2 * PAGE, PROT_READ)
    process.mprotect(addr + 2 * PAGE, 2 * PAGE, PROT_NONE)
    process.touch(addr, 2 * PAGE, write=False)
    process.touch(addr + 4 * PAGE, 2 * PAGE)
    for at, write in ((0, True), (2, False), (2, True)):
        with signalled(signal.SIGSEGV):
            process.touch(addr + at * PAGE, PAGE, write)
    assert len(process.task.mm.vmas) == 3
    process.mprotect(addr, 6 * PAGE, RW)
    process.touch(addr, 6 * PAGE)
    assert len(process.task.mm.vmas) == 1


def test_reading_needs_any_right_on_this_machine(process):
    addr = process.mmap(PAGE, prot=PROT_WRITE)
    process.touch(addr, PAGE, write=False)
    process.touch(addr, PAGE)


def test_only_a_page_of_one_process_becomes_writable_in_place(process):
    addr = process.mmap(4 * PAGE)
    process.touch(addr, 2 * PAGE)
    process.touch(addr + 2 * PAGE, PAGE, write=False)
    process.mprotect(addr, 4 * PAGE, PROT_READ)
    assert entries(process, addr, 4) == "rr--"
    process.mprotect(addr, 4 * PAGE, RW)
    assert entries(process, addr, 4) == "ww--"
    process.fork().exit()
    process.mprotect(addr, 4 * PAGE, PROT_READ)
    process.mprotect(addr, 4 * PAGE, RW)
    assert entries(process, addr, 4) == "rr--"
    before = frames(process, addr, 2)
    assert (faults(process, addr, 2), frames(process, addr, 2)) == ((2, 0), before)


def test_shared_memory_becomes_writable_and_a_clean_file_does_not(kernel, process):
    file = kernel.create_file("f", 4)
    memory, mapped = process.mmap(4 * PAGE, shared=True), process.mmap(4 * PAGE, shared=True, file=file)
    for addr in (memory, mapped):
        process.touch(addr, 2 * PAGE)
        process.touch(addr + 2 * PAGE, 2 * PAGE, write=False)
        process.mprotect(addr, 4 * PAGE, PROT_READ)
        process.mprotect(addr, 4 * PAGE, RW)
    assert (entries(process, memory, 4), entries(process, mapped, 4)) == ("wwww", "wwrr")


@pytest.mark.parametrize("shared", [False, True])
def test_a_write_fenced_page_is_never_opened_in_place(shared):
    kernel = boot(wish=Feature.USER_NUMA)
    process = kernel.spawn()
    addr = process.mmap(2 * PAGE, shared=shared)
    process.touch(addr, 2 * PAGE)
    process.move_pages([addr], [P])
    assert (process.where(addr, 2 * PAGE), entries(process, addr, 2)) == ([P, D0], "rw")
    process.mprotect(addr, 2 * PAGE, PROT_READ)
    process.mprotect(addr, 2 * PAGE, RW)
    assert entries(process, addr, 2) == "rw"
    process.touch(addr, 2 * PAGE)
    assert process.where(addr, 2 * PAGE) == [D0, D0]
    kernel.validate()


@pytest.mark.parametrize(
    ("addr", "nr", "prot", "number", "rights"),
    [
        (AT, 4, RW | 64, errno.EINVAL, "wwww"),
        (AT + 1, 4, PROT_READ, errno.EINVAL, "wwww"),
        (AT, 6, PROT_READ, errno.ENOMEM, "rrrr"),  # what lies before the hole is done
        (AT - PAGE, 6, PROT_READ, errno.ENOMEM, "wwww"),
        (AT + 8 * PAGE, 1, PROT_READ, errno.ENOMEM, "wwww"),
    ],
)
def test_protections_that_are_refused(process, addr, nr, prot, number, rights):
    process.mmap(4 * PAGE, addr=AT)
    process.touch(AT, 4 * PAGE)
    with refused(number):
        process.mprotect(addr, nr * PAGE, prot)
    assert entries(process, AT, 4) == rights
    process.mprotect(AT, 0, PROT_NONE)
    assert entries(process, AT, 4) == rights


def test_pages_without_rights_are_hidden_from_move_pages(process):
    addr = process.mmap(4 * PAGE)
    process.touch(addr, 2 * PAGE)
    process.touch(addr + 2 * PAGE, PAGE, write=False)
    process.mprotect(addr, 4 * PAGE, PROT_NONE)
    pages = [addr + at * PAGE for at in range(4)]
    assert process.move_pages(pages) == [-errno.ENOENT] * 3 + [-errno.EFAULT]
    assert process.move_pages(pages[:1], [D1]) == [-errno.ENOENT]
    process.mprotect(addr, 4 * PAGE, PROT_READ)
    assert process.move_pages(pages) == [D0, D0, -errno.EFAULT, -errno.EFAULT]


# -- mremap


def test_pages_keep_their_frames_when_they_move(process):
    addr = process.mmap(4 * PAGE, addr=AT)
    process.mbind(addr, 2 * PAGE, Mpol.BIND, [D1])
    process.touch(addr, 4 * PAGE)
    before = frames(process, addr, 4)
    with refused(errno.EFAULT):  # two VMAs: the policies differ
        process.mremap(addr, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT + 0x100000)
    there = process.mremap(addr, 2 * PAGE, 3 * PAGE)
    assert there == BASE
    process.touch(there, 3 * PAGE)
    assert process.where(there, 3 * PAGE) == [D1] * 3
    assert frames(process, there, 2) + frames(process, addr + 2 * PAGE, 2) == before
    with signalled(signal.SIGSEGV):
        process.touch(addr, PAGE)


def test_growing_and_shrinking_in_place(process):
    addr = process.mmap(2 * PAGE)
    process.touch(addr, 2 * PAGE)
    assert process.mremap(addr, 2 * PAGE, 5 * PAGE, 0) == addr
    process.touch(addr, 5 * PAGE)
    assert process.mremap(addr, 5 * PAGE, PAGE, 0) == addr
    with signalled(signal.SIGSEGV):
        process.touch(addr + PAGE, PAGE)
    process.mmap(PAGE, addr=addr + PAGE)
    with refused(errno.ENOMEM):
        process.mremap(addr, PAGE, 2 * PAGE, 0)
    assert process.mremap(addr, PAGE, 2 * PAGE) == addr + 2 * PAGE


def test_a_moved_page_interleaves_by_its_old_number(process):
    process.set_mempolicy(Mpol.INTERLEAVE, [D0, D1])
    addr = process.mmap(4 * PAGE, addr=AT)
    process.touch(addr, 2 * PAGE)
    there = process.mremap(addr, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT + 0x100000 + PAGE)
    process.touch(there, 4 * PAGE)
    assert process.where(there, 4 * PAGE) == [D0, D1, D0, D1]


def test_files_and_the_left_mapping(kernel, process):
    file = kernel.create_file("f", 8)
    addr = process.mmap(4 * PAGE, shared=True, file=file, offset=2 * PAGE)
    process.touch(addr, 4 * PAGE)
    there = process.mremap(addr, 4 * PAGE, 6 * PAGE)
    process.touch(there, 6 * PAGE, write=False)
    assert sorted(file.pages) == [2, 3, 4, 5, 6, 7]
    again = process.mremap(there, 0, 2 * PAGE)
    process.touch(again, 2 * PAGE, write=False)
    assert frames(process, again, 2) == frames(process, there, 2)
    memory = process.mmap(4 * PAGE)
    process.touch(memory, 4 * PAGE)
    moved = process.mremap(memory, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
    assert (process.where(moved, 4 * PAGE), process.where(memory, 4 * PAGE)) == ([D0] * 4, [None] * 4)
    process.touch(memory, 4 * PAGE)
    process.munmap(again, 2 * PAGE)
    process.munmap(there, 6 * PAGE)
    assert file.vma_pages == 0


@pytest.mark.parametrize(
    ("old", "new", "flags", "to", "number"),
    [
        (4, 0, MREMAP_MAYMOVE, 0, errno.EINVAL),
        (4, 4, 8, 0, errno.EINVAL),
        (4, 4, MREMAP_FIXED, AT + 0x100000, errno.EINVAL),
        (4, 4, MREMAP_DONTUNMAP, 0, errno.EINVAL),
        (4, 8, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, errno.EINVAL),
        (4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, AT + 2 * PAGE, errno.EINVAL),  # onto itself
        (4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, 0x7FFF_FFFF_F000, errno.EINVAL),
        (8, 9, MREMAP_MAYMOVE, 0, errno.EFAULT),
        (0, 4, MREMAP_MAYMOVE, 0, errno.EINVAL),  # a second mapping of private memory
        (4, 8, 0, 0, errno.ENOMEM),
    ],
)
def test_moves_that_are_refused(process, old, new, flags, to, number):
    process.mmap(4 * PAGE, addr=AT)
    process.mmap(PAGE, addr=AT + 4 * PAGE, prot=PROT_READ)
    with refused(number):
        process.mremap(AT, old * PAGE, new * PAGE, flags, to)
    with refused(errno.EFAULT):
        process.mremap(AT - PAGE, PAGE, PAGE, flags=MREMAP_MAYMOVE)


# -- mlock


def test_locked_pages_are_unevictable_until_the_last_lock_goes(kernel, process):
    addr = process.mmap(6 * PAGE, shared=True)
    process.touch(addr, 2 * PAGE)
    process.mlock(addr, 4 * PAGE)
    assert mlocked(process, addr, 4) == [True] * 4
    assert kernel.memory.nr_unevictable(D0) == 4
    child = process.fork()
    child.touch(addr, 6 * PAGE)
    child.mlock(addr, 6 * PAGE)
    process.munlock(addr, 2 * PAGE)
    assert mlocked(child, addr, 6) == [True] * 6
    child.munlock(addr, 6 * PAGE)
    assert mlocked(child, addr, 6) == [False, False, True, True, False, False]
    process.exit()
    assert (mlocked(child, addr, 6), kernel.memory.nr_unevictable(D0)) == ([False] * 6, 0)


def test_locks_follow_copies_moves_and_new_addresses(kernel, process):
    addr = process.mmap(2 * PAGE)
    process.mlock(addr, 2 * PAGE)
    process.move_pages([addr], [D1])
    assert (process.where(addr, 2 * PAGE), mlocked(process, addr, 2)) == ([D1, D0], [True, True])
    child = process.fork()
    child.touch(addr, PAGE)
    assert (mlocked(child, addr, 2), mlocked(process, addr, 2)) == ([False, True], [True, True])
    process.touch(addr + PAGE, PAGE)
    assert (mlocked(child, addr, 2), mlocked(process, addr, 2)) == ([False, False], [True, True])
    there = process.mremap(addr, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT)
    assert mlocked(process, there, 3) == [True] * 3
    assert kernel.memory.nr_unevictable(D0) + kernel.memory.nr_unevictable(D1) == 3


def test_a_lock_on_fault_waits_for_the_fault(process):
    addr = process.mmap(4 * PAGE)
    process.touch(addr, PAGE)
    process.mlock(addr, 4 * PAGE, on_fault=True)
    assert entries(process, addr, 4) == "w---"
    process.touch(addr, 2 * PAGE)
    assert mlocked(process, addr, 2) == [True, True]
    process.mprotect(addr, 4 * PAGE, PROT_NONE)
    process.mlock(addr, 4 * PAGE, on_fault=True)
    with refused(errno.ENOMEM):
        process.mlock(addr, 4 * PAGE)


def test_locked_private_memory_that_becomes_writable_needs_no_fault(process):
    addr = process.mmap(4 * PAGE)
    process.touch(addr, 2 * PAGE)
    process.mprotect(addr, 4 * PAGE, PROT_READ)
    process.mlock(addr, 4 * PAGE)
    assert entries(process, addr, 4) == "rr--"  # the zero page needs no frame
    process.mprotect(addr, 4 * PAGE, RW)
    assert (entries(process, addr, 4), faults(process, addr, 4)) == ("wwww", (0, 0))


@pytest.mark.parametrize(
    ("at", "nr", "number", "locked"),
    [
        (0, 8, errno.ENOMEM, [True] * 4 + [False] * 2),
        (4, 4, errno.ENOMEM, [False] * 6),
        (0, 6, errno.ENOMEM, [True] * 4 + [False] * 2),
        (20, 1, errno.ENOMEM, [False] * 6),
    ],
)
def test_locks_over_holes(process, at, nr, number, locked):
    """Pages 0 to 3 and 5, 6 are mapped; those before the hole are locked, but not faulted in."""
    process.mmap(4 * PAGE, addr=AT)
    process.mmap(2 * PAGE, addr=AT + 5 * PAGE)
    with refused(number):
        process.mlock(AT + at * PAGE, nr * PAGE)
    assert entries(process, AT, 4) == "----"
    process.touch(AT, 4 * PAGE)
    process.touch(AT + 5 * PAGE, 2 * PAGE)
    assert mlocked(process, AT, 4) + mlocked(process, AT + 5 * PAGE, 2) == locked
    with refused(number):
        process.munlock(AT + at * PAGE, nr * PAGE)
    assert not any(mlocked(process, AT, 4) + mlocked(process, AT + 5 * PAGE, 2))


def test_mlock_takes_whole_pages_and_knows_its_flags(kernel, process):
    addr = process.mmap(4 * PAGE)
    process.mlock(addr + PAGE + 100, PAGE)
    assert entries(process, addr, 4) == "-ww-"
    assert mlock.mlock(kernel.memory, process.task, addr // PAGE, 1, 2) == -errno.EINVAL
    with refused(errno.EINVAL):
        process.madvise(addr, 4 * PAGE, 4)


def test_mlockall(process):
    first = process.mmap(2 * PAGE)
    process.mlockall(MCL_CURRENT)
    second = process.mmap(2 * PAGE)
    assert (entries(process, first, 2), entries(process, second, 2)) == ("ww", "--")
    process.mlockall(MCL_FUTURE)
    third = process.mmap(2 * PAGE)
    assert (entries(process, second, 2), mlocked(process, third, 2)) == ("--", [True, True])
    process.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    fourth = process.mmap(2 * PAGE)
    assert (entries(process, second, 2), entries(process, fourth, 2)) == ("--", "--")
    process.touch(fourth, PAGE)
    assert mlocked(process, fourth, 1) == [True]
    process.munlockall()
    process.touch(fourth, 2 * PAGE)
    assert mlocked(process, first, 2) + mlocked(process, fourth, 2) == [False] * 4
    assert entries(process, process.mmap(PAGE), 1) == "-"
    for flags in (0, 8, MCL_ONFAULT):
        with refused(errno.EINVAL):
            process.mlockall(flags)


@pytest.mark.parametrize(("design", "locked"), [("gfp-private", [False]), ("caps", [True])])
def test_whether_private_pages_are_locked_is_the_designs_answer(design, locked):
    kernel = boot(design)
    process = kernel.spawn()
    addr = process.mmap(PAGE)
    process.mbind(addr, PAGE, Mpol.BIND, [P])
    process.mlock(addr, PAGE)
    assert (process.where(addr, PAGE), mlocked(process, addr, 1)) == ([P], locked)
    process.mbind(addr, PAGE, Mpol.BIND, [D0], 2)
    assert (process.where(addr, PAGE), mlocked(process, addr, 1)) == ([D0], [True])
    kernel.validate()


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove"]), st.integers(1, 30), st.integers(1, 9)), max_size=20
    )
)
def test_locked_slots_against_a_set(changes):
    locked, naive = LockedSlots(), set()
    for name, slot, nr in changes:
        getattr(locked, name)(slot, nr)
        naive = naive | set(range(slot, slot + nr)) if name == "add" else naive - set(range(slot, slot + nr))
        assert {slot for slot in range(45) if locked.covers(slot)} == naive
        ends = [edge for low, high in locked.ranges for edge in (low, high)]
        assert ends == sorted(set(ends))
    copy = LockedSlots()
    copy.restore(locked.snapshot())
    assert copy.ranges == locked.ranges


# -- everything at once

RANGE = st.tuples(st.integers(0, 3), st.integers(0, 11), st.integers(1, 12))
OPS = st.one_of(
    st.tuples(st.just("touch"), RANGE, st.booleans()),
    st.tuples(st.just("protect"), RANGE, st.sampled_from([PROT_NONE, PROT_READ, RW])),
    st.tuples(st.just("lock"), RANGE, st.booleans()),
    st.tuples(st.just("unlock"), RANGE),
    st.tuples(st.just("remap"), RANGE, st.integers(0, 12), st.sampled_from([1, 3, 5])),
    st.tuples(st.just("unmap"), RANGE),
    st.tuples(st.just("map"), RANGE, st.booleans()),
    st.tuples(st.just("bind"), RANGE, st.sampled_from([D0, D1, P])),
    st.tuples(st.just("forget"), RANGE),
    st.tuples(st.just("fork"), RANGE),
    st.tuples(st.just("all"), st.integers(0, 7)),
)


def play(kernel, process, op):
    name, *args = op
    region, offset, nr = args[0] if isinstance(args[0], tuple) else (0, 0, 1)
    addr, length = AT + (region * 32 + offset) * PAGE, nr * PAGE
    calls = {
        "touch": lambda: process.touch(addr, length, args[1]),
        "protect": lambda: process.mprotect(addr, length, args[1]),
        "lock": lambda: process.mlock(addr, length, args[1]),
        "unlock": lambda: process.munlock(addr, length),
        "remap": lambda: process.mremap(addr, length, args[1] * PAGE, args[2], AT + 0x100000 + offset * PAGE),
        "unmap": lambda: process.munmap(addr, length),
        "map": lambda: process.mmap(length, shared=args[1], addr=addr),
        "bind": lambda: process.mbind(addr, length, Mpol.BIND, [args[1]], 3),
        "forget": lambda: process.madvise(addr, length, 4),
        "fork": lambda: child(process, addr, length),
        "all": lambda: process.mlockall(args[0]),
    }
    with contextlib.suppress(OSError, Signalled):
        calls[name]()


def child(process, addr, length):
    born = process.fork()
    try:
        born.touch(addr, length)
    finally:
        validate_memory(process.kernel.memory)
        born.exit()


@settings(max_examples=80, deadline=None)
@given(st.lists(OPS, max_size=25))
def test_any_sequence_keeps_the_books(sequence):
    kernel = boot(zero_page=True, fault_around_pages=4, readahead_pages=8)
    process = kernel.spawn()
    file = kernel.create_file("f", 12)
    process.mmap(12 * PAGE, addr=AT)
    process.mmap(12 * PAGE, shared=True, addr=AT + 32 * PAGE)
    process.mmap(12 * PAGE, shared=True, file=file, addr=AT + 64 * PAGE)
    process.mmap(12 * PAGE, file=file, addr=AT + 96 * PAGE)
    for op in sequence:
        play(kernel, process, op)
        kernel.validate()
        check_locks(kernel, process)
    other = boot(zero_page=True, fault_around_pages=4, readahead_pages=8)
    other.memory.restore(plain.unpack(*plain.pack(kernel.memory.snapshot())))
    other.validate()
    assert plain.digest(other.memory.snapshot()) == plain.digest(kernel.memory.snapshot())
    process.exit()
    kernel.validate()


def check_locks(kernel, process):
    """Unevictable is what a locked mapping maps, and nothing else; slots are locked as their VMAs are."""
    locked = {}
    for vma in process.task.mm.vmas:
        assert kernel.memory.locked_slots.covers(vma.slot) == vma.locked
        start = vma.start * PAGE
        for pfn, what in zip(
            frames(process, start, vma.nr_pages), entries(process, start, vma.nr_pages), strict=True
        ):
            if what != "-":
                locked[pfn] = locked.get(pfn, False) or vma.locked
    flags = kernel.memory.frames.flags
    assert {pfn: bool(flags[pfn] & PG_UNEVICTABLE) for pfn in locked} == locked
