"""One emulated Linux without rounds: hotplug with claims, cgroups, its files, and the drivers that bring nodes."""

import errno

import pytest

from privmem.nodeagent.host.drivers.anondax import AnonDax
from privmem.nodeagent.host.drivers.dax_test import DaxTest, format_features, parse_features
from privmem.nodeagent.host.fault import FAULT_SIGBUS
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.layout import PG_HELD
from privmem.nodeagent.host.process import Signalled
from privmem.scheduler.abi import Feature, Mpol
from privmem.scheduler.isolation.design import Claim
from privmem.scheduler.topology import ZONE_NORMAL

D0, D1, P, Q = range(4)
USER = Feature.USER_NUMA | Feature.RECLAIM | Feature.USER_WRITE
PAGE = 4096
SYS = "/sys/devices/system/node/"


@pytest.fixture
def kernel():
    return Kernel(
        [
            NodeBoot(D0, 1024, cpus=(0,)),
            NodeBoot(D1, 1024, cpus=(1,)),
            NodeBoot(P, 256, private=True, wish=USER, zone="movable"),
            NodeBoot(Q, 256, private=True, zone="movable", online=False),
        ],
        ((10, 20, 30, 40), (20, 10, 30, 40), (30, 30, 10, 50), (40, 40, 50, 10)),
    )


def bound(kernel, nid, nr=8):
    """A process with `nr` pages bound to a node and touched; its address."""
    process = kernel.spawn()
    addr = process.mmap(nr * PAGE)
    process.mbind(addr, nr * PAGE, Mpol.BIND, [nid])
    process.touch(addr, nr * PAGE)
    return process, addr


def test_states_follow_hotplug(kernel):
    states = lambda: {n: kernel.sysfs.read(SYS + n) for n in ("possible", "has_memory", "has_public_memory")}  # noqa: E731
    assert states() == {"possible": "0-3", "has_memory": "0-2", "has_public_memory": "0-1"}
    assert kernel.plug(Q) == 0
    assert states() == {"possible": "0-3", "has_memory": "0-3", "has_public_memory": "0-1"}
    assert kernel.hotplug.state(Q) == "online"
    assert kernel.unplug(Q) == 0
    assert states() == {"possible": "0-3", "has_memory": "0-2", "has_public_memory": "0-1"}
    assert kernel.hotplug.state(Q) == "unplugged"
    assert Q not in kernel.hotplug.claims


def test_a_claim_alone_changes_no_state(kernel):
    before = kernel.node_states()
    assert kernel.hotplug.claim(Q, Claim("np1", USER)) == 0
    assert kernel.node_states() == before
    assert kernel.hotplug.claim(Q, Claim("np2", Feature.NONE)) == -errno.EBUSY
    assert kernel.hotplug.claims[Q] == Claim("np1", USER)
    assert kernel.hotplug.release(P) == -errno.EBUSY
    assert kernel.hotplug.release(Q) == 0
    assert kernel.hotplug.claim(9, Claim("np1", USER)) == -errno.EINVAL


def test_adding_memory_without_an_owner(kernel):
    assert kernel.hotplug.add_private_memory(Q, None, 0, 64) == -errno.EINVAL
    assert kernel.hotplug.claims.keys() == {P}
    bad = Claim("np1", Feature.DEMOTION)
    assert kernel.hotplug.add_private_memory(Q, bad, 0, 64) == -errno.EINVAL
    assert kernel.hotplug.add_private_memory(Q, Claim("np1", USER), 0, 257) == -errno.EINVAL
    assert kernel.hotplug.claims.keys() == {P}  # a claim whose range failed is undone
    assert kernel.hotplug.add_memory(P, 0, 64) == -errno.EBUSY


def test_two_ranges_share_a_claim(kernel):
    plug, claim = kernel.hotplug, Claim("np1", USER)
    assert plug.add_private_memory(Q, claim, 0, 128) == 0
    assert plug.add_private_memory(Q, claim, 64, 128) == -errno.EEXIST
    assert plug.add_private_memory(Q, claim, 128, 128) == 0
    assert plug.online(Q) == 0
    assert kernel.memory.nodes[Q].managed_pages == 256
    assert plug.remove(Q, 0) == -errno.EBUSY  # this range is gone, the claim is kept
    assert kernel.memory.nodes[Q].managed_pages == 128
    assert plug.claims[Q] == claim
    assert plug.remove(Q, 128) == 0
    assert Q not in plug.claims
    assert plug.remove(Q) == -errno.EINVAL


def test_offline_moves_residents_out(kernel):
    process, addr = bound(kernel, P)
    assert kernel.offline(P) == 0
    assert process.where(addr, 8 * PAGE) == [D0] * 8
    assert kernel.hotplug.state(P) == "offline"
    assert kernel.online(P) == 0
    process.touch(process.mmap(PAGE, addr=addr), PAGE)
    assert process.where(addr, PAGE) == [D0]  # the old bind does not come back with the node
    process.mbind(addr, PAGE, Mpol.BIND, [P])  # a fresh one does
    kernel.validate()


def test_offline_fails_over_held_pages(kernel):
    pfn = kernel.owners.alloc("driver", P)
    assert kernel.memory.frames.flags[pfn] & PG_HELD
    assert kernel.offline(P) == -errno.EBUSY
    assert kernel.hotplug.state(P) == "online"
    kernel.validate()
    kernel.owners.free(pfn)
    assert kernel.offline(P) == 0


def test_the_owner_takes_and_keeps_pages(kernel):
    owners, callbacks = kernel.owners, kernel.memory.callbacks
    total = kernel.memory.nodes[P].free_pages
    pfn = owners.alloc("driver", P)
    callbacks.keeps[P] = True
    owners.free(pfn)
    assert (callbacks.free_calls[P], kernel.memory.nodes[P].free_pages) == (1, total - 1)
    callbacks.keeps[P] = False
    other = owners.alloc("driver", P)
    owners.free(other)
    assert (callbacks.free_calls[P], kernel.memory.nodes[P].free_pages) == (2, total - 1)


def test_cgroups_inherit(kernel):
    kernel.create_cgroup("a")
    kernel.create_cgroup("b", "a")
    read = kernel.sysfs.read
    assert kernel.sysfs.write("/sys/fs/cgroup/a/cpuset.mems", "0,2") == 0
    assert read("/sys/fs/cgroup/b/cpuset.mems.effective") == "0,2"
    assert read("/sys/fs/cgroup/b/cpuset.mems") == ""
    assert kernel.sysfs.write("/sys/fs/cgroup/b/cpuset.mems", "2") == -errno.EINVAL  # private alone
    assert kernel.sysfs.write("/sys/fs/cgroup/b/cpuset.mems", "0-9x") == -errno.EINVAL
    assert kernel.sysfs.write("/sys/fs/cgroup/cpuset.mems", "0") == -errno.EACCES
    assert kernel.unplug(P) == 0
    assert read("/sys/fs/cgroup/b/cpuset.mems.effective") == "0"
    process = kernel.spawn(cgroup="b")
    assert process.get_mempolicy(flags=4) == (0, {0})


def test_files(kernel):
    sysfs = kernel.sysfs
    assert sysfs.read(SYS + "node2/meminfo").splitlines()[:2] == [
        "Node 2 MemTotal: 1024 kB",
        "Node 2 MemFree: 1024 kB",
    ]
    assert sysfs.read(SYS + "node3/meminfo") == -errno.ENOENT
    assert sysfs.read(SYS + "node0/distance") == "10 20 30 40"
    assert sysfs.write("/sys/kernel/mm/numa/demotion_enabled", "maybe") == -errno.EINVAL
    assert sysfs.write("/sys/kernel/mm/numa/demotion_enabled", "1") == 0
    assert sysfs.read("/sys/kernel/mm/numa/demotion_enabled") == "true"
    assert sysfs.write("/proc/vmstat", "1") == -errno.EACCES
    assert sysfs.write("/proc/nothing", "1") == -errno.ENOENT
    assert sysfs.write("/proc/sys/kernel/numa_balancing", "3") == -errno.EINVAL
    assert sysfs.write("/proc/sys/kernel/numa_balancing", "2") == 0
    assert sysfs.read("/proc/sys/kernel/numa_balancing") == "2"
    assert sysfs.read("/sys/devices/virtual/memory_tiering/memory_tier4/nodelist") == "0-1"
    assert sysfs.read("/sys/devices/virtual/memory_tiering/memory_tier22/nodelist") == -errno.ENOENT


def test_features_as_text():
    assert parse_features("reclaim,demotion") == Feature.RECLAIM | Feature.DEMOTION
    assert parse_features("0x182") == Feature.RECLAIM | Feature.USER_NUMA | Feature.USER_WRITE
    assert [parse_features(t) for t in ("bogus", "reclaim,reclaim", "0x", "0x1000")] == [None] * 4
    assert parse_features("none") == Feature.NONE
    assert parse_features(format_features(USER)) == USER


def test_the_test_device(kernel):
    device = DaxTest(kernel, Q)
    assert device.read("memory_features") == "all"
    assert device.write("adistance", "256") == -errno.ENOENT  # an ordinary device has none
    assert device.write("memory_features", "reclaim,nonsense") == -errno.EINVAL
    assert device.write("memory_features", "demotion,user_numa") == 0  # the dependency is asked at online
    assert [device.write("adistance", text) for text in ("0", "-5", "near", "256")] == [-errno.EINVAL] * 3 + [
        0
    ]
    assert device.write("state", "online") == -errno.EINVAL
    assert device.read("state") == "unplugged"
    assert device.write("memory_features", "reclaim,demotion,user_numa,user_write") == 0
    assert device.read("adistance") == "2880"
    assert device.write("adistance", "256") == 0
    assert device.write("state", "online_kernel") == 0
    assert kernel.memory.topology.node(Q).zone == ZONE_NORMAL
    assert kernel.tiers() == {4: 0b11, 2: 1 << Q}
    assert device.write("memory_features", "all") == -errno.EBUSY
    assert device.write("adistance", "300") == -errno.EBUSY
    assert device.write("state", "asleep") == -errno.EINVAL
    assert device.write("state", "unplugged") == 0
    assert kernel.node_states()["has_memory"] == 0b111


def test_an_ordinary_device(kernel):
    device = DaxTest(kernel, Q)
    assert device.write("state", "online") == 0
    assert kernel.node_states()["has_public_memory"] == 0b1011
    process, addr = bound(kernel, Q)
    assert process.where(addr, PAGE) == [Q]


def test_two_devices_on_one_node(kernel):
    first, second = DaxTest(kernel, Q, 0, 128), DaxTest(kernel, Q, 128, 128)
    assert first.write("memory_features", "reclaim") == 0
    assert second.write("memory_features", "user_numa") == 0
    assert first.write("state", "online") == 0
    assert second.write("state", "online") == -errno.EBUSY  # another mask than the claim's
    assert kernel.hotplug.claims[Q].features == Feature.RECLAIM
    assert second.write("memory_features", "reclaim") == 0
    assert second.write("state", "online") == 0
    assert kernel.memory.nodes[Q].managed_pages == 256


def test_the_devices_mapping(kernel):
    device = DaxTest(kernel, Q)
    process = kernel.spawn()
    assert device.mmap(process.task, 100, 8) == -errno.ENXIO
    assert device.write("memory_features", "user_write") == 0
    assert device.write("state", "online") == 0
    assert device.mmap(process.task, 100, 8, shared=True) == -errno.EINVAL
    assert device.mmap(process.task, 100, 8) == 0
    process.touch(100 * PAGE, 8 * PAGE)
    assert process.where(100 * PAGE, 8 * PAGE) == [Q] * 8
    assert [v.no_huge for v in process.task.mm.vmas] == [True]
    kernel.validate()


def test_anondax(kernel):
    device = AnonDax(kernel, P)
    process = kernel.spawn()
    first, second = device.open(), device.open()
    assert device.mmap(process.task, first, 100, 8, 0, shared=False) == -errno.EINVAL
    assert device.mmap(process.task, first, 100, 8, 250, shared=True) == -errno.EINVAL
    for at, opened in ((100, first), (200, first), (300, second)):
        assert device.mmap(process.task, opened, at, 8, 0, shared=True) == 0
        process.touch(at * PAGE, 8 * PAGE)
    child = process.fork()
    child.touch(100 * PAGE, 8 * PAGE)
    assert child.where(100 * PAGE, 8 * PAGE) == [P] * 8
    assert kernel.memory.nodes[P].free_pages == 256 - 16  # two mappings of one open share, two opens do not
    kernel.validate()
    third = device.open()
    assert device.mmap(process.task, third, 1000, 256, 0, shared=True) == 0
    with pytest.raises(Signalled, match="SIGBUS"):
        process.touch(1000 * PAGE, 256 * PAGE)
    assert not process.exited  # nobody is killed
    assert FAULT_SIGBUS == -errno.ENXIO
    process.exit()
    child.exit()
    kernel.validate()
    assert device.kill() == 0
    assert device.open() == -errno.ENXIO
