"""Where leaf page tables come from: the task's policy, and what cpusets and zones leave of it."""

import pytest
from kernel_box import D0, D1, HUGE, VPN, Box, P

from privmem.nodeagent.host import numa_syscalls, pagetables
from privmem.scheduler.abi import Mpol


def tables(box):
    return [pagetables.on_node(box.memory, nid) for nid in (D0, D1, P)]


def box_with_policy(mode, nodes, **how):
    box = Box(**how)
    box.memory.account_pagetables = True
    assert numa_syscalls.set_mempolicy(box.task, mode, nodes) == 0
    return box


@pytest.mark.parametrize("design", ["caps:a", "caps:b", "caps", "private-zonelist"])
def test_a_bind_to_a_node_with_a_kernel_zone_binds_page_tables(design):
    # Whether cpusets govern the node or not.
    box = box_with_policy(Mpol.BIND, 1 << P, design=design, zone="normal")
    box.map(8)
    assert box.touch(8) == 0
    assert tables(box) == [0, 0, 1]


def test_a_bind_to_a_movable_node_does_not():
    box = box_with_policy(Mpol.BIND, 1 << P)
    box.map(8)
    assert box.touch(8) == 0
    assert tables(box) == [1, 0, 0]


def test_interleaving_takes_turns_for_page_tables_too():
    box = box_with_policy(Mpol.INTERLEAVE, 1 << D0 | 1 << D1)
    box.map(4 * HUGE)
    for block in range(4):
        assert box.touch(1, VPN + block * HUGE) == 0
    assert tables(box) == [2, 2, 0]
