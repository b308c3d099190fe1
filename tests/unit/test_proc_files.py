"""Files of /proc, a node's vmstat, memory groups, and the owner's word on pages at hot-unplug."""

import errno

import pytest

from privmem.nodeagent.host.drivers.dax_test import DaxTest, parse_features
from privmem.nodeagent.host.hotplug import Hotplug
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.process import Signalled
from privmem.scheduler.abi import Feature, Mpol
from privmem.scheduler.isolation.design import Claim

D0, P, Q = range(3)
USER = Feature.USER_NUMA | Feature.RECLAIM | Feature.USER_WRITE
PAGE = 4096


@pytest.fixture
def kernel():
    kernel = Kernel(
        [
            NodeBoot(D0, 1024, cpus=(0,)),
            NodeBoot(P, 256, private=True, wish=USER, zone="movable"),
            NodeBoot(Q, 256, private=True, zone="movable", online=False),
        ],
        ((10, 30, 40), (30, 10, 50), (40, 50, 10)),
    )
    yield kernel
    kernel.validate()


def bound(kernel, nr=8):
    process = kernel.spawn()
    addr = process.mmap(nr * PAGE)
    process.mbind(addr, nr * PAGE, Mpol.BIND, [P])
    process.touch(addr, nr * PAGE)
    return process, addr


def test_what_memory_there_is(kernel):
    files = kernel.sysfs
    start = kernel.memory.nodes[P].start_pfn << 12
    core = f"LOAD 0x0 0x400000\nLOAD {start:#x} 0x100000"
    ram = f"00000000-003fffff : System RAM\n{start:08x}-{start + 0xFFFFF:08x} : System RAM (driver1)"
    assert (files.read("/proc/kcore"), files.read("/proc/iomem")) == (core, ram)
    assert kernel.offline(P) == 0
    assert (files.read("/proc/kcore"), files.read("/proc/iomem")) == ("LOAD 0x0 0x400000", ram)
    assert kernel.unplug(P) == 0
    assert files.read("/proc/iomem") == "00000000-003fffff : System RAM"
    assert files.write("/proc/iomem", "") == -errno.EACCES


def test_sums_and_counters(kernel):
    bound(kernel)
    assert kernel.sysfs.read("/proc/meminfo").split("\n")[0] == f"MemTotal: {(1024 + 256) * 4} kB"
    lines = kernel.sysfs.read(f"/sys/devices/system/node/node{P}/vmstat").split("\n")
    assert lines[:12] == [
        "nr_free_pages 248",
        "nr_inactive_anon 8",
        "nr_active_anon 0",
        "nr_inactive_file 0",
        "nr_active_file 0",
        "nr_unevictable 0",
        "nr_anon_pages 8",
        "nr_mapped 0",
        "nr_file_pages 0",
        "nr_shmem 0",
        "nr_page_table_pages 0",
        "nr_anon_transparent_hugepages 0",
    ]
    assert lines[12].startswith("numa_hit ")
    assert kernel.sysfs.read("/sys/devices/system/node/node9/vmstat") == -errno.ENOENT


def test_files_of_a_process(kernel):
    process, addr = bound(kernel)
    process.mlock(addr, 4 * PAGE)
    folder = f"/proc/{process.pid}/"
    assert kernel.sysfs.read(folder + "status") == (
        f"Pid: {process.pid}\nVmSize: 32 kB\nVmLck: 16 kB\nVmRSS: 32 kB\nVmSwap: 0 kB\nMems_allowed_list: 0-1"
    )
    assert kernel.sysfs.read(folder + "numa_maps") == process.numa_maps()
    assert kernel.sysfs.read(folder + "cgroup") == "0::/"
    process.exit()
    assert kernel.sysfs.read(folder + "status") == -errno.ENOENT


def test_memory_groups(kernel):
    plug, claim = kernel.hotplug, Claim("np1", USER)
    assert [plug.register_group(Q), plug.register_group(P), plug.register_group(9)] == [0, 1, -errno.EINVAL]
    assert [plug.add_private_memory(Q, claim, 0, 64, group) for group in (7, 1)] == [-errno.EINVAL] * 2
    assert Q not in plug.claims
    assert plug.add_private_memory(Q, claim, 0, 64, 0) == 0


def test_an_owner_keeps_residents_on_its_device(kernel):
    process, addr = bound(kernel)
    kernel.hotplug.keeps_residents[P] = True
    assert kernel.offline(P) == -errno.EBUSY
    assert process.where(addr, 8 * PAGE) == [P] * 8
    assert kernel.log == [
        "memory offlining [mem 0x08000000-0x080fffff] failed due to unmovable page (node 1)"
    ]
    again = Hotplug(kernel.memory)
    kernel.hotplug.register_group(Q)
    again.restore(kernel.hotplug.snapshot())
    assert (again.keeps_residents, again.groups) == ({P: True}, {0: Q})
    kernel.hotplug.keeps_residents[P] = False
    assert kernel.offline(P) == 0
    assert process.where(addr, 8 * PAGE) == [D0] * 8


def test_the_log_names_who_was_killed_and_for_which_nodes(kernel):
    process = kernel.spawn()
    addr = process.mmap(300 * PAGE)
    process.set_mempolicy(Mpol.BIND, [P])
    with pytest.raises(Signalled):
        process.touch(addr, 300 * PAGE)
    assert kernel.log == [
        "oom-kill:constraint=CONSTRAINT_MEMORY_POLICY,nodemask=1,mems_allowed=0-1,pid=1",
        "Out of memory: Killed process 1 rss:896kB",
    ]


def test_the_contiguous_control_is_an_attribute(kernel):
    device = DaxTest(kernel, P)
    assert device.read("contig") == "none"
    assert device.write("contig", "range 0 16") == 0
    assert (device.read("contig"), device.write("contig", "free")) == (str(P), 0)


def test_the_general_marker_by_its_names():
    names = ("public", "fallback", "common,reclaim")
    assert [parse_features(n) for n in names] == [
        Feature.PUBLIC,
        Feature.PUBLIC,
        Feature.PUBLIC | Feature.RECLAIM,
    ]
    assert parse_features("public,common") is None


def test_zoneinfo_lists_the_zones_of_nodes_with_memory(kernel):
    text = kernel.sysfs.read("/proc/zoneinfo")
    assert [line for line in text.split("\n") if line.startswith("Node")] == [
        "Node 0, zone Normal",
        "Node 1, zone Movable",
    ]
    assert text.endswith("  pages free 256\n  min 32\n  low 36\n  high 40\n  spanned 256\n  managed 256")


def test_the_oom_score_is_adjusted(kernel):
    process, _ = bound(kernel)
    path, files = f"/proc/{process.pid}/oom_score_adj", kernel.sysfs
    assert files.read(path) == "0"
    assert [files.write(path, text) for text in ("-1000", "1001", "-1001", "1.5", "")] == [0] + [
        -errno.EINVAL
    ] * 4
    assert (files.read(path), process.task.oom_score_adj, process.fork().task.oom_score_adj) == (
        "-1000",
        -1000,
        -1000,
    )
    process.exit()
    assert (files.read(path), files.write(path, "0")) == (-errno.ENOENT, -errno.ENOENT)
