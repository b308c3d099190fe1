"""Memory control groups on one emulated kernel: charges, limits, memory.reclaim, and their files."""

import errno

import pytest

from privmem.nodeagent.host import memcg
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.process import Signalled
from privmem.nodeagent.host.swap import swapon
from privmem.scheduler.abi import Feature, Mpol

D0, P = range(2)
PAGE = 4096
DISTANCES = ((10, 30), (30, 10))
OPEN = Feature.USER_NUMA | Feature.RECLAIM | Feature.USER_WRITE


def kernel(wish=OPEN, swap_pages=512):
    nodes = [NodeBoot(D0, 1024, (0,)), NodeBoot(P, 256, private=True, wish=wish, zone="movable")]
    host = Kernel(nodes, DISTANCES, "private-zonelist")
    if swap_pages:
        swapon(host.memory, swap_pages)
    host.create_cgroup("a")
    host.create_cgroup("b", "a")
    return host


def mapped(process, nr_pages, bind=None):
    """Address of anonymous memory, written."""
    addr = process.mmap(nr_pages * PAGE)
    if bind is not None:
        process.mbind(addr, nr_pages * PAGE, Mpol.BIND, [bind])
    process.touch(addr, nr_pages * PAGE)
    return addr


def usage(host):
    tree = host.memory.memcg
    return dict(zip(tree.names, tree.usage, strict=True))


def read(host, name):
    return host.sysfs.read(f"/sys/fs/cgroup/{name}")


def write(host, name, text):
    return host.sysfs.write(f"/sys/fs/cgroup/{name}", text)


def test_a_page_is_charged_to_its_group_and_those_above():
    host = kernel()
    task = host.spawn(0, "b")
    addr = mapped(task, 20)
    assert usage(host) == {"": 0, "a": 20, "b": 20}
    assert host.attach(task, "") == 0
    mapped(task, 5)  # the root counts nothing, and what was charged stays where it is
    assert usage(host) == {"": 0, "a": 20, "b": 20}
    task.munmap(addr, 8 * PAGE)
    assert usage(host) == {"": 0, "a": 12, "b": 12}
    assert read(host, "b/memory.current") == str(12 * PAGE)


def test_a_child_pays_into_its_parents_group():
    host = kernel()
    parent = host.spawn(0, "a")
    addr = mapped(parent, 4)
    child = parent.fork()
    child.touch(addr, 4 * PAGE)  # copies
    assert usage(host) == {"": 0, "a": 8, "b": 0}


def test_a_moved_page_stays_charged():
    host = kernel()
    task = host.spawn(0, "a")
    addr = mapped(task, 4)
    task.move_pages([addr + i * PAGE for i in range(4)], [P] * 4)
    assert usage(host)["a"] == 4
    assert memcg.numa_stat(host.memory, "a") == {"anon": {D0: 0, P: 4}, "file": {D0: 0, P: 0}}
    assert read(host, "a/memory.numa_stat") == f"anon N0=0 N1={4 * PAGE}\nfile N0=0 N1=0"


def test_memory_reclaim_swaps_on_private_nodes_too():
    host = kernel()
    task, other = host.spawn(0, "b"), host.spawn(0)
    addr, kept = mapped(task, 64, P), mapped(other, 64, P)
    assert write(host, "a/memory.reclaim", "256K") == 0
    assert usage(host)["a"] == 0
    assert task.where(addr, 64 * PAGE) == [None] * 64
    assert other.where(kept, 64 * PAGE) == [P] * 64  # not the group's
    assert host.memory.vmstat.count["pswpout"] == 64


def test_memory_reclaim_leaves_a_node_without_reclaim():
    host = kernel(wish=Feature.USER_NUMA | Feature.USER_WRITE)
    task = host.spawn(0, "a")
    addr = mapped(task, 64, P)
    assert write(host, "a/memory.reclaim", "256K") == -errno.EAGAIN
    assert task.where(addr, 64 * PAGE) == [P] * 64


def test_a_limit_is_kept_by_reclaim():
    host = kernel()
    assert write(host, "a/memory.max", "128K") == 0
    task = host.spawn(0, "b")
    addr = mapped(task, 100)
    assert usage(host)["a"] <= 32
    assert sum(where is not None for where in task.where(addr, 100 * PAGE)) == usage(host)["b"]
    assert host.memory.memcg.events[1]["max"] > 0
    assert host.memory.memcg.events[1]["oom_kill"] == 0


def test_a_limit_without_swap_kills_in_the_group_only():
    host = kernel(swap_pages=0)
    bystander, task = host.spawn(0), host.spawn(0, "b")
    mapped(bystander, 200)
    assert write(host, "a/memory.max", "128K") == 0
    with pytest.raises(Signalled):
        mapped(task, 33)
    assert not bystander.exited
    assert host.memory.memcg.events[1] == {"max": 17, "oom": 1, "oom_kill": 1}
    assert "CONSTRAINT_MEMCG" in "\n".join(host.log)


def test_a_lower_limit_reclaims_at_once():
    host = kernel()
    mapped(host.spawn(0, "a"), 64)
    assert write(host, "a/memory.max", str(16 * PAGE)) == 0
    assert usage(host)["a"] <= 16
    assert read(host, "a/memory.max") == str(16 * PAGE)
    assert write(host, "a/memory.max", "max") == 0
    assert read(host, "a/memory.max") == "max"


@pytest.mark.parametrize(
    ("text", "pages"),
    [("4096", 1), ("8k", 2), ("1M", 256), ("1g", 1 << 18), ("4095", 0), ("max", None)],
)
def test_sizes(text, pages):
    assert memcg.parse_bytes(text) == pages


@pytest.mark.parametrize("text", ["", "-1", "1x", "4.5K", "K"])
def test_no_sizes(text):
    assert memcg.parse_bytes(text) == -errno.EINVAL


def test_the_tree_is_kept_in_snapshots():
    host = kernel()
    mapped(host.spawn(0, "b"), 6)
    tree = host.memory.memcg
    other = type(tree)(0)
    other.restore(tree.snapshot())
    assert (other.usage, other.of_pid) == (tree.usage, tree.of_pid)
    assert other.of_frame.tolist() == tree.of_frame.tolist()
    assert other.below(1).tolist() == [False, True, True]
