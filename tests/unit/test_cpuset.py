"""Cpusets: what a write to cpuset.mems answers and changes."""

import errno

from privmem.scheduler.abi import Mpol
from privmem.scheduler.cpuset import Cpuset, CpusetNodes, MemsChange, rebind_task, rebind_vma, write_mems
from privmem.scheduler.mempolicy import Mempolicy, PolicyNodes

PARENT = 0b1111
RULES = CpusetNodes(namable=PARENT)
POLICY = PolicyNodes(memory=PARENT)


def test_fresh_cpuset_has_all_of_its_parent():
    assert Cpuset.inheriting(PARENT) == Cpuset(0, PARENT)


def test_narrowing():
    change = write_mems(Cpuset.inheriting(PARENT), 0b0011, PARENT, RULES)
    assert change == MemsChange(0, Cpuset(0b0011, 0b0011), rebinds=True, old_effective=PARENT)


def test_unknown_node_is_refused_and_changes_nothing():
    cpuset = Cpuset(0b0011, 0b0011)
    assert write_mems(cpuset, 0b10001, PARENT, RULES) == MemsChange(-errno.EINVAL, cpuset)


def test_empty_and_disjoint_requests_inherit():
    cpuset = Cpuset(0b0011, 0b0011)
    assert write_mems(cpuset, 0, PARENT, RULES, populated=False).cpuset == Cpuset(0, PARENT)
    assert write_mems(cpuset, 0b1000, 0b0111, RULES).cpuset == Cpuset(0b1000, 0b0111)


def test_a_cpuset_with_tasks_cannot_be_emptied():
    cpuset = Cpuset(0b0011, 0b0011)
    assert write_mems(cpuset, 0, PARENT, RULES) == MemsChange(-errno.ENOSPC, cpuset)
    fresh = Cpuset.inheriting(PARENT)
    assert write_mems(fresh, 0, PARENT, RULES) == MemsChange(0, fresh)


def test_same_effective_nodes_rebind_nothing():
    full = write_mems(Cpuset.inheriting(PARENT), PARENT, PARENT, RULES)
    assert full == MemsChange(0, Cpuset(PARENT, PARENT), rebinds=False, old_effective=PARENT)
    assert not write_mems(full.cpuset, PARENT, PARENT, RULES).rebinds


def test_private_nodes_never_alone():
    rules = CpusetNodes(namable=0b1011, must_keep=0b0011)
    fresh = Cpuset.inheriting(0b0011)
    assert write_mems(fresh, 0b1000, PARENT, rules).error == -errno.EINVAL
    assert write_mems(fresh, 0b0101, PARENT, rules).error == -errno.EINVAL
    assert write_mems(fresh, 0b1001, PARENT, rules).cpuset == Cpuset(0b1001, 0b1001)


def test_tasks_are_rebound_to_effective_and_vmas_to_requested_mems():
    change = write_mems(Cpuset(PARENT, 0b0111), 0b1010, 0b0111, RULES)
    assert change.cpuset == Cpuset(0b1010, 0b0010)
    bound = Mempolicy(Mpol.BIND, 0, 0b0011, 0b0111)
    assert rebind_task(bound, change, POLICY) == Mempolicy(Mpol.BIND, 0, 0b0010, 0b0010)
    assert rebind_vma(bound, change, POLICY) == Mempolicy(Mpol.BIND, 0, 0b1010, 0b1010)


def test_an_unchanged_cpuset_rebinds_no_policy():
    bound = Mempolicy(Mpol.BIND, 0, 0b0011, 0b0111)
    change = MemsChange(-errno.EINVAL, Cpuset(PARENT, PARENT))
    assert rebind_task(bound, change, POLICY) is bound
    assert rebind_vma(bound, change, POLICY) is bound
