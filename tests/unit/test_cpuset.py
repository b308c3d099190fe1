"""Cpusets: what a write to cpuset.mems answers and changes."""

import errno

import pytest

from privmem.scheduler.abi import Mpol
from privmem.scheduler.cpuset import (
    Cpuset,
    CpusetNodes,
    Hotplugged,
    MemsChange,
    attach_error,
    effective_mems,
    hotplug,
    rebind_task,
    rebind_vma,
    update_below,
    write_mems,
    write_mems_v1,
)
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


# -- what designs say


@pytest.mark.parametrize(
    ("requested", "parent", "effective"),
    [
        (0b1000, 0b1011, 0b1011),  # the granted private node, and the parent's general ones
        (0b1001, 0b1011, 0b1001),
        (0b1000, 0b0011, 0b0011),  # not granted: as the parent
        (0b0001, 0b1011, 0b0001),
        (0, 0b1011, 0b1011),
    ],
)
def test_a_request_for_private_nodes_alone_is_kept_and_completed(requested, parent, effective):
    rules = CpusetNodes(namable=0b1111, adds_general=0b0011)
    assert effective_mems(requested, parent, rules) == effective
    change = write_mems(Cpuset.inheriting(parent), requested, parent, rules)
    assert change.cpuset == Cpuset(requested, effective)


def test_inert_nodes_are_stored_and_never_take_effect():
    rules = CpusetNodes(namable=0b1111, inert=0b1000, memory=0b1011)
    assert rules.top == 0b0011
    fresh = Cpuset.inheriting(0b0011)
    assert write_mems(fresh, 0b1001, 0b0011, rules).cpuset == Cpuset(0b1001, 0b0001)
    assert write_mems(fresh, 0b1000, 0b0011, rules).cpuset == Cpuset(0b1000, 0b0011)


def test_nodes_without_memory_may_be_named_ahead():
    rules = CpusetNodes(namable=0b1111, memory=0b0011)
    assert rules.top == 0b0011
    assert write_mems(Cpuset.inheriting(0b0011), 0b0101, 0b0011, rules).cpuset == Cpuset(0b0101, 0b0001)


# -- v1


V1 = CpusetNodes(namable=0b1111, memory=0b0111, adds_general=0b0011)
TOP = Cpuset(0b0111, 0b0111)


def v1(requested, cpuset=None, parent=TOP, children=(), populated=True, rules=V1):
    return write_mems_v1(cpuset or Cpuset.empty(), requested, parent, children, rules, populated)


def test_a_fresh_v1_cpuset_is_empty_and_takes_no_task():
    assert attach_error(Cpuset.empty(), legacy=True) == -errno.ENOSPC
    assert attach_error(Cpuset.empty(), legacy=False) == 0
    assert v1(0b0011) == MemsChange(0, Cpuset(0b0011, 0b0011), rebinds=True)
    assert attach_error(Cpuset(0b0011, 0b0011), legacy=True) == 0


def test_v1_requests_are_bounded_by_memory_parent_and_children():
    mine = Cpuset(0b0011, 0b0011)
    assert v1(0b1001).error == -errno.EINVAL  # no memory there
    assert v1(0b0111, mine, parent=Cpuset(0b0011, 0b0011)).error == -errno.EACCES
    assert v1(0b0001, mine, children=[Cpuset(0b0010, 0b0010)]).error == -errno.EBUSY
    assert v1(0, mine).error == -errno.ENOSPC
    assert v1(0, mine, populated=False).cpuset == Cpuset.empty()
    assert v1(0b0011, mine) == MemsChange(0, mine)


def test_v1_private_nodes_alone_have_no_space():
    assert v1(0b0100).error == -errno.ENOSPC
    assert v1(0b0100, rules=CpusetNodes(0b0111, must_keep=0b0011)).error == -errno.EINVAL
    assert v1(0b0101).cpuset == Cpuset(0b0101, 0b0101)


# -- hierarchies

PARENTS = {"a": "", "b": "a", "c": "b", "d": ""}


def test_a_change_goes_down_as_far_as_it_is_one():
    cpusets = {
        "": Cpuset(PARENT, PARENT),
        "a": Cpuset(0b0011, 0b0011),  # was all
        "b": Cpuset(0b0110, 0b0110),
        "c": Cpuset(0b0110, 0b0110),
        "d": Cpuset(0, PARENT),
    }
    b, c = (
        MemsChange(0, Cpuset(0b0110, 0b0010), True, 0b0110),
        MemsChange(0, Cpuset(0b0110, 0b0010), True, 0b0110),
    )
    assert update_below(cpusets, PARENTS, "a", RULES) == {"b": b, "c": c}
    assert list(update_below(cpusets, PARENTS, "a", RULES)) == ["b", "c"]
    same = cpusets | {"b": Cpuset(0b0011, 0b0011), "c": Cpuset(0b1000, 0b0110)}
    assert update_below(same, PARENTS, "a", RULES) == {}  # below b nobody looks


def test_hotplug_in_v2_keeps_requests():
    cpusets = {
        "": Cpuset(0b0011, 0b0011),
        "a": Cpuset(0b0110, 0b0010),
        "b": Cpuset(0b0100, 0b0010),
        "c": Cpuset(0, 0b0010),
        "d": Cpuset(0b0001, 0b0001),
    }
    came = hotplug(cpusets, PARENTS, "", CpusetNodes(namable=PARENT, memory=0b0111))
    assert {name: change.cpuset for name, change in came.changes.items()} == {
        "": Cpuset(0b0111, 0b0111),
        "a": Cpuset(0b0110, 0b0110),
        "b": Cpuset(0b0100, 0b0100),
        "c": Cpuset(0, 0b0100),
    }
    assert list(came.changes) == ["", "a", "b", "c"]
    assert came.changes["a"] == MemsChange(0, Cpuset(0b0110, 0b0110), True, 0b0010)
    after = cpusets | {name: change.cpuset for name, change in came.changes.items()}
    went = hotplug(after, PARENTS, "", CpusetNodes(namable=PARENT, memory=0b0011))
    assert after | {name: change.cpuset for name, change in went.changes.items()} == cpusets
    assert went.evicted == {}


def test_hotplug_in_v1_takes_nodes_for_good_and_evicts_tasks():
    cpusets = {
        "": Cpuset(0b0111, 0b0111),
        "a": Cpuset(0b0110, 0b0110),
        "b": Cpuset(0b0110, 0b0110),
        "c": Cpuset(0b0100, 0b0100),
        "d": Cpuset(0b0001, 0b0001),
    }
    rules = CpusetNodes(namable=PARENT, memory=0b0101)
    went = hotplug(cpusets, PARENTS, "", rules, legacy=True)
    assert went.changes["a"] == MemsChange(0, Cpuset(0b0100, 0b0100), True, 0b0110)
    assert went.evicted == {}
    private = CpusetNodes(namable=PARENT, memory=0b0101, adds_general=0b0001)
    went = hotplug(cpusets, PARENTS, "", private, legacy=True)
    assert went.evicted == {"a": "", "b": "", "c": ""}
    assert went.changes["c"] == MemsChange(0, Cpuset.empty(), False, 0b0100)
    back = hotplug(cpusets | {n: c.cpuset for n, c in went.changes.items()}, PARENTS, "", V1, legacy=True)
    assert list(back.changes) == [""]


def test_nothing_changes_nothing():
    cpusets = {"": Cpuset(PARENT, PARENT), "a": Cpuset(0b0011, 0b0011)}
    assert hotplug(cpusets, {"a": ""}, "", RULES) == Hotplugged({}, {})
