"""Files and system calls of huge pages, pools, compaction, pins; the contiguous control of the test device."""

import errno
import signal

import pytest
from kernel_box import D0, D1, HUGE, P, Q, boot

from privmem.nodeagent.host.drivers.contig_control import ContigControl
from privmem.nodeagent.host.drivers.dax_test import DaxTest
from privmem.nodeagent.host.madvise import MADV_COLLAPSE, MADV_HUGEPAGE, MADV_NOHUGEPAGE
from privmem.nodeagent.host.process import Signalled
from privmem.scheduler.abi import Mpol

PAGE = 4096
BIG = HUGE * PAGE
NODE = "/sys/devices/system/node/node"
THP = "/sys/kernel/mm/transparent_hugepage/"


@pytest.fixture
def kernel():
    kernel = boot()
    yield kernel
    kernel.validate()


def test_thp_files(kernel):
    files = kernel.sysfs
    assert files.read(THP + "enabled") == "always [madvise] never"
    assert files.write(THP + "enabled", "sometimes") == -errno.EINVAL
    assert files.write(THP + "enabled", "always") == 0
    assert files.read(THP + "enabled") == "[always] madvise never"
    assert files.write(THP + "defrag", "defer") == 0
    assert files.read(THP + "defrag") == "always [defer] defer+madvise madvise never"
    assert [files.read(THP + "khugepaged/" + n) for n in ("pages_to_scan", "max_ptes_none", "defrag")] == [
        "4096",
        "511",
        "1",
    ]
    answers = [("max_ptes_none", "512"), ("pages_to_scan", "0"), ("max_ptes_none", "0"), ("defrag", "0")]
    assert [files.write(THP + "khugepaged/" + n, text) for n, text in answers] == [-errno.EINVAL] * 2 + [0, 0]
    assert kernel.memory.high_order.thp.khugepaged_defrag is False


def test_huge_pages_by_madvise(kernel):
    process = kernel.spawn()
    addr = process.mmap(4 * BIG)
    process.madvise(addr, BIG, MADV_HUGEPAGE)
    process.touch(addr, BIG)
    assert process.anon_huge_pages() == HUGE
    process.touch(addr + BIG, 3 * BIG)
    process.madvise(addr + BIG, BIG, MADV_COLLAPSE)
    assert process.anon_huge_pages() == 2 * HUGE
    process.madvise(addr + 2 * BIG, BIG, MADV_HUGEPAGE)
    assert kernel.khugepaged() == 1
    process.madvise(addr + 3 * BIG, BIG, MADV_NOHUGEPAGE)
    with pytest.raises(OSError, match="EINVAL"):
        process.madvise(addr + 3 * BIG, BIG, MADV_COLLAPSE)
    assert process.anon_huge_pages() == 3 * HUGE


@pytest.mark.parametrize(("nid", "answer"), [(D0, 0), (P, 0), (Q, -errno.EINVAL), (9, -errno.ENOENT)])
def test_compact_files(kernel, nid, answer):
    assert kernel.sysfs.write(f"{NODE}{nid}/compact", "1") == answer
    assert kernel.sysfs.read(f"{NODE}{nid}/compact") == -errno.EIO
    assert kernel.sysfs.write("/proc/sys/vm/compact_memory", "1") == 0
    assert kernel.sysfs.write("/proc/sys/vm/compact_memory", "one") == -errno.EINVAL
    assert kernel.kcompactd(D0, 9) == 0


def test_fragmentation_files(kernel):
    assert kernel.sysfs.read("/proc/buddyinfo").splitlines()[2] == (
        "Node 2, zone  Movable " + "     0 " * 10 + "     2"
    )
    rows = kernel.sysfs.read("/sys/kernel/debug/extfrag/extfrag_index").splitlines()
    assert rows[2] == "Node 2: " + " ".join(["-1.000"] * 11)
    rows = kernel.sysfs.read("/sys/kernel/debug/extfrag/unusable_index").splitlines()
    assert rows[3] == "Node 3: " + " ".join(["0.000"] * 11)


def test_pool_files(kernel):
    files = kernel.sysfs
    pool = "/hugepages/hugepages-2048kB/"
    assert files.write(f"{NODE}{P}{pool}nr_hugepages", "2") == 0
    assert files.write(f"{NODE}{Q}{pool}nr_hugepages", "2") == 0
    assert [files.read(f"{NODE}{n}{pool}nr_hugepages") for n in range(5)] == [
        "0",
        "0",
        "2",
        "0",
        -errno.ENOENT,
    ]
    assert files.write("/proc/sys/vm/nr_hugepages", "4") == 0
    assert files.read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages") == "4"
    assert [files.read(f"{NODE}{n}{pool}free_hugepages") for n in range(4)] == ["1", "1", "2", "0"]
    assert files.write("/proc/sys/vm/nr_hugepages", "-1") == -errno.EINVAL
    assert files.read("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages") == "0"
    assert files.write(f"{NODE}9{pool}nr_hugepages", "2") == -errno.ENOENT
    process = kernel.spawn()
    addr = process.mmap_hugetlb(2 * BIG)
    assert files.read("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages") == "2"
    process.touch(addr, BIG)
    assert process.where(addr, 2 * BIG) == [D0] * HUGE + [None] * HUGE
    assert files.write("/proc/sys/vm/nr_hugepages", "0") == 0
    assert files.read("/sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages") == "2"
    assert sum(int(files.read(f"{NODE}{n}{pool}surplus_hugepages")) for n in range(4)) == 2
    process.exit()
    assert files.read("/proc/sys/vm/nr_hugepages") == "0"
    with pytest.raises(OSError, match="ENOMEM"):
        kernel.spawn().mmap_hugetlb(BIG)


def test_a_bind_to_a_private_pool(kernel):
    kernel.sysfs.write(f"{NODE}{P}/hugepages/hugepages-2048kB/nr_hugepages", "1")
    process = kernel.spawn()
    addr = process.mmap_hugetlb(BIG)
    with pytest.raises(Signalled) as caught:  # the default policy does not reach the page
        process.touch(addr, BIG)
    assert caught.value.signal == signal.SIGBUS
    process.mbind(addr, BIG, Mpol.BIND, [P])
    process.touch(addr, BIG)
    assert process.where(addr, BIG) == [P] * HUGE


def test_offline_waits_for_pins_and_dissolves_free_pool_pages(kernel):
    kernel.sysfs.write(f"{NODE}{P}/hugepages/hugepages-2048kB/nr_hugepages", "1")
    process = kernel.spawn()
    addr = process.mmap(PAGE)
    process.mbind(addr, PAGE, Mpol.BIND, [P])
    process.touch(addr, PAGE)
    assert process.pin(addr, PAGE, longterm=False) == 1
    assert kernel.offline(P) == -errno.EBUSY
    assert process.unpin(addr, PAGE) == 1
    assert kernel.offline(P) == 0
    assert kernel.sysfs.read("/proc/sys/vm/nr_hugepages") == "0"
    assert process.where(addr, PAGE) == [D0]


def test_pins_end_with_the_process(kernel):
    free = kernel.memory.nodes[D0].free_pages
    process = kernel.spawn()
    addr = process.mmap(4 * PAGE)
    assert process.pin(addr, 4 * PAGE) == 4
    with pytest.raises(OSError, match="EFAULT"):
        process.pin(addr + 4 * PAGE, PAGE)
    process.exit()
    assert not kernel.memory.high_order.pins
    assert kernel.memory.nodes[D0].free_pages == free


def test_hard_offline_tells_the_owner(kernel):
    files = kernel.sysfs
    start = kernel.memory.nodes[P].start_pfn
    assert files.write("/sys/devices/system/memory/hard_offline_page", hex(start << 12)) == 0
    assert files.write("/sys/devices/system/memory/hard_offline_page", str(start << 12)) == -133
    assert files.write("/sys/devices/system/memory/hard_offline_page", "0x") == -errno.EINVAL
    assert files.write("/sys/devices/system/memory/hard_offline_page", str(1 << 60)) == -errno.ENXIO
    assert kernel.memory_failure(start + 1).told == f"driver{P}"
    assert kernel.memory_failure(kernel.memory.nodes[D1].start_pfn).told == ""


def test_contiguous_control(kernel):
    control = ContigControl(DaxTest(kernel, P))
    writes = [
        ("range 0 512", 0),
        ("range 512 1", -errno.EBUSY),
        ("ranges 512 1", -errno.EINVAL),
        ("range 512", -errno.EINVAL),
        ("", -errno.EINVAL),
        ("free", 0),
        ("free", -errno.EINVAL),
        ("range 1 2048", -errno.ERANGE),
        ("search 2049", -errno.ERANGE),
        ("search 0", -errno.EINVAL),
        ("search 512", 0),
    ]
    assert [(text, control.write(text)) for text, _ in writes] == writes
    assert control.nid == P
    assert control.write("free") == 0
    assert control.nid == -1
    assert control.write("plain 512") in (0, -errno.ENOMEM)
    assert control.nid != P


def test_contiguous_control_without_memory_and_without_a_node(kernel):
    process = kernel.spawn()
    kernel.owners.alloc("somebody", P)
    control = ContigControl(DaxTest(kernel, P))
    assert control.write("search 2048") == -errno.ENOMEM
    kernel.memory.high_order.thp.enabled = "never"
    assert process.anon_huge_pages() == 0
    kernel.unplug(Q)
    gone = ContigControl(DaxTest(kernel, Q))
    assert gone.write("range 0 4") == -errno.ENXIO


def test_meminfo_counts_huge_pages(kernel):
    kernel.sysfs.write(f"{NODE}{P}/hugepages/hugepages-2048kB/nr_hugepages", "2")
    process = kernel.spawn()
    addr = process.mmap(BIG)
    process.madvise(addr, BIG, MADV_HUGEPAGE)
    process.mbind(addr, BIG, Mpol.BIND, [P])
    process.touch(addr, PAGE)
    process.fork()  # two mappings of one page
    lines = kernel.sysfs.read(f"{NODE}{P}/meminfo").splitlines()
    assert lines[-4:] == [
        "Node 2 AnonHugePages: 2048 kB",
        "Node 2 HugePages_Total: 2",
        "Node 2 HugePages_Free: 2",
        "Node 2 HugePages_Surp: 0",
    ]
    assert "Node 0 AnonHugePages: 0 kB" in kernel.sysfs.read(f"{NODE}{D0}/meminfo")
