"""The first generation of the compressed RAM service: pressure, flushing, and its CXL driver."""

import errno

import pytest

from privmem.nodeagent.host.cram import pressure
from privmem.nodeagent.host.cram.service import FLUSH_DEFERRED, FLUSH_FULL, FLUSH_NONE, FLUSH_RESOLVED
from privmem.nodeagent.host.drivers import cxl_compression
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PTE_PFN_SHIFT
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.nodeagent.host.swap import swapon
from privmem.scheduler import plain
from privmem.scheduler.abi import PAGE_SHIFT, PAGE_SIZE

D, C = 0, 1
NR = 16


@pytest.fixture
def kernel():
    nodes = [NodeBoot(D, 4096, cpus=(0,)), NodeBoot(C, 4096, kind="compressed-ram", by_device=True)]
    kernel = Kernel(nodes, ((10, 20), (20, 10)), "gfp-private", Sysctl(NumaBalancing(mode=0)))
    swapon(kernel.memory, 4096, synchronous=False, page_cluster=0)
    assert cxl_compression.probe(kernel, C, payload_bytes=40) == 0  # two entries a buffer
    yield kernel
    kernel.validate()


def frames(kernel, process, addr):
    vma = process.task.mm.find(addr >> PAGE_SHIFT)
    return (kernel.memory.page_table.pte[vma.slot : vma.slot + NR] >> PTE_PFN_SHIFT).tolist()


def filled(kernel):
    process = kernel.spawn()
    addr = process.mmap(NR * PAGE_SIZE)
    process.touch(addr, NR * PAGE_SIZE, write=True)
    return process, addr


def placed(kernel):
    process, addr = filled(kernel)
    assert pressure.migrate_to(kernel.memory, C, frames(kernel, process, addr)) == 0
    assert process.where(addr, NR * PAGE_SIZE) == [C] * NR
    return process, addr


def test_pressure_keeps_pages_out_only_when_it_is_full(kernel):
    process, addr = filled(kernel)
    memory, here = kernel.memory, frames(kernel, process, addr)
    assert pressure.set_pressure(memory, C, 1001) == 0
    assert memory.cram.nodes[C].pressure == 1000
    assert pressure.migrate_to(memory, C, here) == -errno.ENOSPC
    assert pressure.set_pressure(memory, C, 999) == 0
    assert memory.cram.boost_pages(C, 4096) == 4091
    assert pressure.migrate_to(memory, C, here) == 0
    assert pressure.set_pressure(memory, D, 1) == pressure.migrate_to(memory, D, here) == -errno.ENODEV


def test_kswapd_works_up_to_the_boost(kernel):
    process, addr = placed(kernel)
    pressure.set_pressure(kernel.memory, C, 1000)
    kernel.kswapd(C)
    assert process.where(addr, NR * PAGE_SIZE) == [None] * NR
    assert kernel.memory.swap.free_pages == 4096 - NR


@pytest.mark.parametrize(
    ("answer", "buffers", "counts"),
    [
        (FLUSH_RESOLVED, 0, (0, 16, 0)),
        (FLUSH_DEFERRED, 0, (16, 0, 0)),
        (FLUSH_FULL, 0, (0, 0, 16)),
        (FLUSH_NONE, 0, (0, 0, 16)),
        (FLUSH_NONE, 2, (6, 0, 10)),
    ],
)
def test_what_becomes_of_freed_pages(kernel, answer, buffers, counts):
    process, addr = placed(kernel)
    cram = kernel.memory.cram.nodes[C]
    cram.flush_answer, cram.buffer_entries = answer, buffers
    free = kernel.memory.nodes[C].free_pages
    process.munmap(addr, NR * PAGE_SIZE)
    assert (len(cram.deferred), cram.trimmed_pages, cram.zeroed_pages) == counts
    assert kernel.memory.nodes[C].free_pages == free + NR - counts[0]
    kernel.validate()
    snapshot = kernel.memory.snapshot()
    kernel.memory.restore(kernel.memory.snapshot())
    assert plain.digest(kernel.memory.snapshot()) == plain.digest(snapshot)
    assert cxl_compression.release_deferred(kernel.memory, kernel.memory.cram.nodes[C]) == counts[0]
    assert kernel.memory.nodes[C].free_pages == free + NR


def test_a_device_that_does_not_zero_is_waited_for(kernel):
    process, addr = placed(kernel)
    memory, cram = kernel.memory, kernel.memory.cram.nodes[C]
    cram.media_fails = True
    process.munmap(addr, NR * PAGE_SIZE)
    assert [cxl_compression.poll(memory, cram, 29), cxl_compression.poll(memory, cram, 1)] == [0, 6]
    assert (cram.deferred, cram.zeroed_pages, cram.trimmed_pages) == ([], 16, 0)


def test_probe_and_interrupts():
    nodes = [NodeBoot(D, 4096, cpus=(0,)), NodeBoot(C, 4096, kind="compressed-ram", by_device=True)]
    kernel = Kernel(nodes, ((10, 20), (20, 10)), "gfp-private", Sysctl(NumaBalancing(mode=0)))
    probe, interrupt = cxl_compression.probe, cxl_compression.interrupt
    assert probe(kernel, C, has_ram=False) == -errno.ENODEV
    assert probe(kernel, C, (256 << 20) - 1) == -errno.ENOSPC
    assert interrupt(kernel.memory, C, 12) == -errno.ENODEV
    assert probe(kernel, C, 256 << 20) == 0
    found = []
    for vector in (12, 13, 14):
        found.append((interrupt(kernel.memory, C, vector), kernel.memory.cram.nodes[C].pressure))
    assert found == [(0, 1000), (0, 0), (-errno.EINVAL, 0)]
    assert cxl_compression.buffer_entries(4096) == 255


def test_registering_is_for_the_owner_of_a_private_node(kernel):
    plug = kernel.hotplug
    register, unregister = pressure.register_private_node, pressure.unregister_private_node
    assert [register(plug, D, "cxl1"), register(plug, 9, "cxl1")] == [-errno.EINVAL] * 2
    assert [register(plug, C, "cxl1"), register(plug, C, "other")] == [0, -errno.EBUSY]
    assert [unregister(plug, 9), unregister(plug, C), unregister(plug, C)] == [
        -errno.EINVAL,
        0,
        -errno.ENODEV,
    ]
    assert [register(plug, C, "other"), register(plug, C, "cxl1")] == [-errno.EBUSY, 0]


def test_removal_tries_for_a_minute(kernel):
    process, addr = placed(kernel)
    process.pin(addr, PAGE_SIZE, write=False, longterm=False)
    assert cxl_compression.remove(kernel, C) == -errno.EBUSY
    assert kernel.memory.cram.nodes[C].offline_tries == 60
    process.unpin()
    assert cxl_compression.remove(kernel, C) == 1
    assert process.where(addr, NR * PAGE_SIZE) == [D] * NR
    assert kernel.hotplug.state(C) == "unplugged"
