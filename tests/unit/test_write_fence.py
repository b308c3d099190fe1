"""Nothing writes a page of compressed RAM in place: each path of the kernel that takes a user page for writing."""

import errno

import pytest

from privmem.nodeagent.host import file_io, user_copy
from privmem.nodeagent.host.drivers.cramdax import CramDax
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.scheduler.abi import PAGE_SHIFT, PAGE_SIZE

D, C = 0, 1
PAGEOUT = 21
NR = 8


@pytest.fixture(params=["caps", "private-zonelist", "private-zonelist-per-node"])
def kernel(request):
    nodes = [NodeBoot(D, 4096, cpus=(0,)), NodeBoot(C, 4096, kind="compressed-ram", by_device=True)]
    kernel = Kernel(nodes, ((10, 20), (20, 10)), request.param, Sysctl(NumaBalancing(mode=0)))
    assert CramDax(kernel, C, 1000).write("state", "online") == 0
    yield kernel
    kernel.validate()


def placed(kernel):
    process = kernel.spawn()
    addr = process.mmap(NR * PAGE_SIZE)
    process.touch(addr, NR * PAGE_SIZE, write=True)
    process.madvise(addr, NR * PAGE_SIZE, PAGEOUT)
    assert process.where(addr, NR * PAGE_SIZE) == [C] * NR
    return process, addr


@pytest.mark.parametrize("path", [user_copy.copy_to_user, user_copy.direct_read, user_copy.poke])
def test_data_that_goes_into_a_buffer_promotes_it(kernel, path):
    process, addr = placed(kernel)
    assert path(kernel.memory, process.task, addr >> PAGE_SHIFT, 3) == 3
    assert process.where(addr, NR * PAGE_SIZE) == [D] * 3 + [C] * 5
    assert kernel.memory.cram.promote_count == 3


def test_data_that_comes_out_of_a_buffer_does_not(kernel):
    process, addr = placed(kernel)
    assert user_copy.copy_from_user(kernel.memory, process.task, addr >> PAGE_SHIFT, NR) == NR
    assert process.where(addr, NR * PAGE_SIZE) == [C] * NR


def test_a_debugger_writes_to_what_its_owner_may_only_read(kernel):
    process, addr = placed(kernel)
    process.mprotect(addr, NR * PAGE_SIZE, 1)
    child = process.fork()
    at = addr >> PAGE_SHIFT
    assert user_copy.copy_to_user(kernel.memory, process.task, at, 1) == -errno.EFAULT
    assert user_copy.poke(kernel.memory, child.task, at, 1) == 1  # shared with the parent: a copy
    assert (process.where(addr, PAGE_SIZE), child.where(addr, PAGE_SIZE)) == ([C], [D])
    child.exit()
    assert user_copy.poke(kernel.memory, process.task, at + 1, 1) == 1
    assert process.where(addr, 2 * PAGE_SIZE) == [C, D]
    with pytest.raises(Exception, match="no right"):
        process.touch(addr + PAGE_SIZE, PAGE_SIZE, write=True)


@pytest.mark.parametrize(("drops", "promoted"), [(False, 2), (True, 1)])
def test_write_drops_what_nobody_maps_in_the_later_branch(drops, promoted):
    nodes = [NodeBoot(D, 4096, cpus=(0,)), NodeBoot(C, 4096, kind="compressed-ram", by_device=True)]
    kernel = Kernel(nodes, ((10, 20), (20, 10)), "private-zonelist", Sysctl(NumaBalancing(mode=0)))
    assert CramDax(kernel, C, 1000).write("state", "online") == 0
    kernel.memory.cram.drops_on_write = drops
    held = kernel.create_file("f", NR)
    process = kernel.spawn()
    file = process.open(held)
    addr = process.mmap(NR * PAGE_SIZE, shared=True, file=held)
    process.touch(addr, NR * PAGE_SIZE, write=False)
    process.madvise(addr, NR * PAGE_SIZE, PAGEOUT)
    process.munmap(addr, 4 * PAGE_SIZE)
    assert {kernel.memory.frames.nid_of(pfn) for pfn in held.pages.values()} == {C}
    assert file_io.write(kernel.memory, process.task, file, 0, 1) == 1  # nobody maps it
    assert file_io.write(kernel.memory, process.task, file, 4, 1) == 1
    assert [kernel.memory.frames.nid_of(held.pages[at]) for at in range(NR)] == [D, C, C, C, D, C, C, C]
    assert kernel.memory.cram.promote_count == promoted
    snapshot = kernel.memory.snapshot()
    kernel.memory.restore(snapshot)
    assert kernel.memory.cram.drops_on_write is drops
    kernel.validate()
