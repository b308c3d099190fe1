"""Cgroups, the command line and later policy calls, on one emulated kernel."""

import errno

import pytest

from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.scheduler.abi import MPOL_F_STATIC_NODES, Feature, Mpol
from privmem.scheduler.versions import KernelVersion

D0, D1, P, Q = range(4)
PAGE = 4096
FAR = 25
USER = Feature.USER_NUMA | Feature.RECLAIM | Feature.USER_WRITE


def kernel(design="private-zonelist", private=True, **rest):
    nodes = [
        NodeBoot(D0, 1024, (0,)),
        NodeBoot(D1, 1024, (1,)),
        NodeBoot(P, 1024, private=private, wish=USER, zone="movable", adistance=2880),
        NodeBoot(Q, 1024, private=private, wish=Feature.USER_WRITE, zone="movable", adistance=2880),
    ]
    distances = tuple(tuple(10 if a == b else FAR for a in range(4)) for b in range(4))
    return Kernel(nodes, distances, design, **rest)


def mems(host, name=""):
    group = host.cgroups[name].cpuset
    return group.requested, group.effective


# -- version 2


def test_a_change_reaches_the_groups_below_and_their_tasks():
    host = kernel()
    host.create_cgroup("a")
    host.create_cgroup("b", "a")
    task = host.spawn(0, "b")
    task.set_mempolicy(Mpol.BIND, [D1])
    addr = task.mmap(4 * PAGE)
    task.touch(addr, 2 * PAGE)
    assert task.where(addr, 2 * PAGE) == [D1, D1]
    assert host.write_mems("a", [D0, P]) == 0
    assert mems(host, "b") == (0, 0b0101)
    assert task.where(addr, 2 * PAGE) == [D0, D0]  # pages move among general nodes
    task.touch(addr + 2 * PAGE, 2 * PAGE)
    assert task.where(addr, 4 * PAGE) == [D0, D0, P, P]  # the policy was handed P


def test_joining_a_group_rebinds_and_moves():
    host = kernel()
    host.create_cgroup("a")
    assert host.write_mems("a", [D1]) == 0
    task = host.spawn(0)
    addr = task.mmap(PAGE)
    task.touch(addr, PAGE)
    assert host.attach(task, "a") == 0
    assert (task.cgroup, task.task.mems_allowed) == ("a", 1 << D1)
    assert task.where(addr, PAGE) == [D1]


def test_requests_wait_for_memory_that_comes_later():
    host = kernel("private-zonelist:F2")
    host.create_cgroup("a")
    assert host.unplug(P) == 0
    assert host.write_mems("a", [P]) == 0
    assert mems(host, "a") == (1 << P, 0b1011)
    assert host.plug(P) == 0
    assert mems(host, "a") == (1 << P, 0b0111)


@pytest.mark.parametrize(
    ("design", "error"), [("caps", -errno.EINVAL), ("private-zonelist", -errno.EINVAL), ("F2", 0), ("F3", 0)]
)
def test_a_private_node_alone(design, error):
    host = kernel(design)
    host.create_cgroup("a")
    assert host.write_mems("a", [P]) == error
    assert mems(host, "a")[1] == (0b1111 if error else 0b0111)


def test_closed_nodes_are_refused_or_kept_by_version():
    answers = {}
    for design in ("caps", "private-zonelist", "private-zonelist:F2", "F3", "caps:b"):
        host = kernel(design)
        host.create_cgroup("a")
        answers[design] = (host.write_mems("a", [D0, Q]), mems(host, "a")[1])
    assert answers == {
        "caps": (-errno.EINVAL, 0b1111),
        "private-zonelist": (-errno.EINVAL, 0b1111),
        "private-zonelist:F2": (-errno.EINVAL, 0b1111),
        "F3": (0, 0b1001),
        "caps:b": (0, 0b0001),
    }


def test_a_bind_does_not_follow_its_position_onto_a_closed_node():
    """D1 is swapped for Q, which takes its position: the policy collapses to the general node that is left."""
    host = kernel("private-zonelist-per-node")
    host.create_cgroup("a")
    assert host.write_mems("a", [D0, D1]) == 0
    task = host.spawn(0, "a")
    addr = task.mmap(2 * PAGE)
    task.mbind(addr, 2 * PAGE, Mpol.BIND, [D1])
    task.touch(addr, PAGE)
    assert host.write_mems("a", [D0, Q]) == 0
    assert task.get_mempolicy(addr, 2) == (Mpol.BIND, {D0})
    task.touch(addr, 2 * PAGE)
    assert task.where(addr, 2 * PAGE) == [D0, D0]


def test_pages_stay_on_a_private_node_that_leaves_the_cpuset():
    host = kernel()
    host.create_cgroup("a")
    assert host.write_mems("a", [D0, P]) == 0
    task = host.spawn(0, "a")
    addr = task.mmap(2 * PAGE)
    task.mbind(addr, 2 * PAGE, Mpol.BIND, [P])
    task.touch(addr, PAGE)
    assert host.write_mems("a", [D0]) == 0
    assert task.get_mempolicy(addr, 2) == (Mpol.BIND, {D0})
    task.touch(addr, 2 * PAGE)
    assert task.where(addr, 2 * PAGE) == [P, D0]


def test_caps_b_binds_whatever_the_cpuset_says():
    host = kernel("caps:b")
    host.create_cgroup("a")
    assert host.write_mems("a", [D0]) == 0
    task = host.spawn(0, "a")
    addr = task.mmap(2 * PAGE)
    task.mbind(addr, PAGE, Mpol.BIND, [P])
    assert host.write_mems("a", [D0, D1]) == 0
    task.touch(addr, 2 * PAGE)
    assert task.where(addr, 2 * PAGE) == [P, D0]
    assert task.get_mempolicy(None, 4) == (0, {D0, D1, P})
    assert task.move_pages([addr + PAGE], [P]) == [P]
    assert host.write_mems("a", [D0]) == 0
    with pytest.raises(OSError, match="EINVAL"):
        task.mbind(addr, PAGE, Mpol.BIND, [D1])


# -- version 1


def test_v1_starts_empty_and_is_bounded():
    host = kernel("private-zonelist:F2", cgroup_v1=True)
    host.create_cgroup("a")
    task = host.spawn(0)
    assert host.attach(task, "a") == -errno.ENOSPC
    assert host.write_mems("a", [P]) == -errno.ENOSPC
    assert host.write_mems("a", [D1, P]) == 0
    assert host.attach(task, "a") == 0
    host.create_cgroup("b", "a")
    assert host.write_mems("b", [D0]) == -errno.EACCES
    assert host.write_mems("b", [P, D1]) == 0
    assert host.write_mems("a", [D1]) == -errno.EBUSY


def test_v1_moves_pages_only_when_told():
    host = kernel(cgroup_v1=True)
    host.create_cgroup("a")
    assert host.write_mems("a", [D0, D1]) == 0
    task = host.spawn(0, "a")
    addr = task.mmap(PAGE)
    task.touch(addr, PAGE)
    path = "/sys/fs/cgroup/a/cpuset.memory_migrate"
    assert host.write_mems("a", [D1]) == 0
    assert task.where(addr, PAGE) == [D0]
    assert [host.sysfs.read(path), host.sysfs.write(path, "x"), host.sysfs.write(path, "1")] == [
        "0",
        -errno.EINVAL,
        0,
    ]
    assert host.write_mems("a", [D0]) == 0
    assert host.write_mems("a", [D1]) == 0
    assert task.where(addr, PAGE) == [D1]
    assert kernel().sysfs.read(path) == -errno.ENOENT


def test_v1_tasks_of_a_group_without_general_memory_go_to_the_ancestor():
    host = kernel("private-zonelist:F2", private=False, cgroup_v1=True)
    host.create_cgroup("a")
    assert host.write_mems("a", [P]) == 0  # an ordinary node here
    task = host.spawn(0, "a")
    task.set_mempolicy(Mpol.BIND, [P])
    assert host.unplug(P) == 0
    assert mems(host, "a") == (0, 0)
    assert (task.cgroup, task.task.mems_allowed) == ("", 0b1011)
    addr = task.mmap(PAGE)
    task.touch(addr, PAGE)
    assert task.where(addr, PAGE) == [D0]


# -- policies forget memory that is gone


@pytest.mark.parametrize("design", ["private-zonelist", "caps", "caps:b", "private-zonelist:F2"])
@pytest.mark.parametrize("flag", [0, MPOL_F_STATIC_NODES])
def test_a_bind_does_not_come_back_with_the_memory(design, flag):
    host = kernel(design)
    task = host.spawn(0)
    own, shared = task.mmap(2 * PAGE), task.mmap(2 * PAGE, shared=True)
    for addr in (own, shared):
        task.mbind(addr, 2 * PAGE, Mpol.BIND | flag, [P])
    assert host.unplug(P) == 0
    assert [task.get_mempolicy(addr, 2) for addr in (own, shared)] == [(0, set())] * 2
    assert host.plug(P) == 0
    for addr in (own, shared):
        task.touch(addr, PAGE)
        assert task.where(addr, PAGE) == [D0]


# -- home nodes and weights


def test_home_nodes():
    host = kernel()
    task = host.spawn(0)
    addr = task.mmap(4 * PAGE)
    with pytest.raises(OSError, match="ENOENT"):
        task.set_mempolicy_home_node(addr, PAGE, D1)
    task.mbind(addr, 2 * PAGE, Mpol.BIND, [D0, D1])
    task.mbind(addr + 2 * PAGE, PAGE, Mpol.INTERLEAVE, [D0])
    with pytest.raises(OSError, match="ENOTSUP"):
        task.set_mempolicy_home_node(addr, 4 * PAGE, D1)
    task.touch(addr, 2 * PAGE)
    assert task.where(addr, 2 * PAGE) == [D1, D1]  # those before the refusal have their home
    for node, flags in ((7, 0), (D1, 1)):
        with pytest.raises(OSError, match="EINVAL"):
            task.set_mempolicy_home_node(addr, PAGE, node, flags)


def test_shared_memory_has_a_home_for_all_who_map_it():
    """As recorded: the call goes to `vma_replace_policy`, and so to the shared policy of the object."""
    task = kernel().spawn(0)
    addr = task.mmap(2 * PAGE, shared=True)
    task.mbind(addr, 2 * PAGE, Mpol.PREFERRED_MANY, [D0, D1])
    task.set_mempolicy_home_node(addr + PAGE, PAGE, D1)
    task.touch(addr, 2 * PAGE)
    assert task.where(addr, 2 * PAGE) == [D0, D1]


@pytest.mark.parametrize("design", ["caps", "caps:b", "private-zonelist", "gfp-private"])
def test_a_private_home_gets_no_page(design):
    host = kernel(design)
    task = host.spawn(0)
    addr = task.mmap(PAGE)
    task.mbind(addr, PAGE, Mpol.BIND, [D0])
    task.set_mempolicy_home_node(addr, PAGE, P)
    task.touch(addr, PAGE)
    assert task.where(addr, PAGE) == [D0]


def test_f3_has_no_private_home():
    task = kernel("F3").spawn(0)
    addr = task.mmap(PAGE)
    task.mbind(addr, PAGE, Mpol.BIND, [D0])
    with pytest.raises(OSError, match="EINVAL"):
        task.set_mempolicy_home_node(addr, PAGE, P)


def test_weighted_interleave():
    host = kernel(sysctl=Sysctl(NumaBalancing(mode=0), False, linux=KernelVersion.parse("6.12")))
    folder = "/sys/kernel/mm/mempolicy/weighted_interleave/"
    assert [host.sysfs.write(folder + "node0", "3"), host.sysfs.write(folder + "node0", "256")] == [
        0,
        -errno.EINVAL,
    ]
    assert [host.sysfs.read(folder + f"node{nid}") for nid in (0, 1, 9)] == ["3", "1", -errno.ENOENT]
    task = host.spawn(0)
    addr = task.mmap(8 * PAGE)
    task.mbind(addr, 8 * PAGE, Mpol.WEIGHTED_INTERLEAVE, [D0, D1])
    task.touch(addr, 8 * PAGE)
    assert sorted(task.where(addr, 8 * PAGE)) == [D0] * 6 + [D1] * 2
    saved = host.memory.snapshot()
    host.sysfs.write(folder + "node0", "0")
    assert host.sysfs.read(folder + "node0") == "1"
    host.memory.restore(saved)
    assert host.sysfs.read(folder + "node0") == "3"


def test_older_kernels_have_neither_mode_nor_files():
    host = kernel()
    assert host.sysfs.read("/sys/kernel/mm/mempolicy/weighted_interleave/node0") == -errno.ENOENT
    with pytest.raises(OSError, match="EINVAL"):
        host.spawn(0).set_mempolicy(Mpol.WEIGHTED_INTERLEAVE, [D0])


def test_versions():
    assert str(KernelVersion.parse("6.12.117")) == "6.12"
    assert KernelVersion.parse("6.9") < KernelVersion.parse("6.12")
    for text in ("6", "5.19", "six.1", "6.x"):
        with pytest.raises(ValueError, match=r"Linux"):
            KernelVersion.parse(text)


# -- the command line


def test_boot_memory_becomes_private():
    host = kernel(private=False, cmdline="quiet private_node=2,0x182 private_node=3")
    assert host.node_states()["has_public_memory"] == 0b0011
    assert host.node_states()["has_user_memory"] == 0b0111
    assert host.log == [
        "private_node=2,0x182: node 2 is private, features 0x182",
        "private_node=3: node 3 is private, features 0x0",
    ]
    assert (
        host.plug(P, Feature.NONE) == -errno.EBUSY
    )  # its mask is fixed: no driver can claim it with another one
    task = host.spawn(0)
    addr = task.mmap(PAGE)
    task.mbind(addr, PAGE, Mpol.BIND, [P])
    task.touch(addr, PAGE)
    assert task.where(addr, PAGE) == [P]


def test_an_area_for_dma_keeps_a_node_ordinary():
    host = kernel(private=False, cmdline="numa_cma=2:64K hugetlb_cma=3:64K private_node=2 private_node=3")
    assert host.node_states()["has_public_memory"] == 0b0111
    assert host.log[0] == "private_node=2: refused: node 2 has a contiguous area for DMA (CMA)"


@pytest.mark.parametrize(
    ("design", "text", "private"),
    [
        ("private-zonelist:F2", "private_node=2,user,reclaim", 0b0100),
        ("private-zonelist:F2", "private_node=2,bogus", 0),
        ("private-zonelist", "private_node=0", 0),
        ("private-zonelist", "private_node=2 kho=on", 0),
        ("caps", "private_node=2,2", 0b0100),
        ("caps:b", "private_node=2", 0),
        ("gfp-private", "private_node=2", 0),
    ],
)
def test_the_parameter_by_version(design, text, private):
    host = kernel(design, private=False, cmdline=text)
    assert host.memory.topology.private == private
    assert len(host.log) == 1


def test_a_bind_may_leave_its_pages_to_numa_balancing():
    """Plain balancing moves a page under MPOL_F_NUMA_BALANCING towards its user, among the policy's nodes."""
    for flag, place in ((1 << 13, D1), (0, D0)):
        host = kernel()
        host.set_numa_balancing(1)
        task = host.spawn(0)
        addr = task.mmap(PAGE)
        task.mbind(addr, PAGE, Mpol.BIND | flag, [D0, D1])
        task.touch(addr, PAGE)
        task.sched_setaffinity(1)
        for _ in range(4):
            host.numa_scan(task)
            task.touch(addr, PAGE)
        assert task.where(addr, PAGE) == [place]


def test_masks_are_shown_where_the_version_has_the_file():
    path = "/sys/kernel/debug/node/mem_features"
    assert kernel().sysfs.read(path) == "0 0x187\n1 0x187\n2 0x182\n3 0x100"
    assert kernel("F2").sysfs.read(path) == -errno.ENOENT
    states = kernel("caps").node_states()
    assert [states[f"has_{kind}memory"] for kind in ("", "fallback_", "user_")] == [0b1111, 0b0011, 0b0111]
