"""Zonelists: order, node load, and the walk."""

from hypothesis import given
from hypothesis import strategies as st

from privmem.scheduler.abi import Reason
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import (
    AllocRequest,
    ZonelistKind,
    Zonelists,
    candidates,
    first_zones,
    node_orders,
)


def machine(nr, distances, cpus=(), movable=()):
    nodes = tuple(
        NodeTopology(
            n, cpus=(n,) if n in cpus else (), span_pages=1, zone="movable" if n in movable else "normal"
        )
        for n in range(nr)
    )
    return HostTopology(nodes, tuple(tuple(row) for row in distances))


ORACLE = machine(4, [[10, 20, 30, 40], [20, 10, 20, 30], [30, 20, 10, 20], [40, 30, 20, 10]], cpus=(0, 1))
FLAT = machine(4, [[10 if a == b else 20 for b in range(4)] for a in range(4)])


def test_oracle_machine():
    assert node_orders(ORACLE, range(4), 0b1111) == {
        0: (0, 1, 2, 3),
        1: (1, 2, 0, 3),
        2: (2, 3, 1, 0),
        3: (3, 2, 1, 0),
    }


def test_load_spreads_the_first_choice_of_equals():
    """Linux 6.1 adds one load to the first node of a distance group, so that lists do not all begin with
    the same.
    """
    assert node_orders(FLAT, range(4), 0b1111) == {
        0: (0, 1, 2, 3),
        1: (1, 2, 3, 0),
        2: (2, 3, 0, 1),
        3: (3, 0, 1, 2),
    }


def test_two_sockets_do_not_fall_back_to_the_same_expander_first():
    """Node 0 took node 2 first, so node 1 begins with node 3, although both are equally near."""
    flat = [[10 if a == b else 20 for b in range(4)] for a in range(4)]
    orders = node_orders(machine(4, flat, cpus=(0, 1)), (0, 1), 0b1111)
    assert orders == {0: (0, 2, 3, 1), 1: (1, 3, 2, 0)}


def test_start_outside_the_members():
    assert node_orders(ORACLE, (0,), 0b1110) == {0: (1, 2, 3)}


def distances_of(nr):
    row = st.lists(st.integers(11, 60), min_size=nr, max_size=nr)
    return st.lists(row, min_size=nr, max_size=nr)


@given(st.integers(1, 6).flatmap(distances_of), st.integers(0, 63), st.integers(0, 63))
def test_orders_hold_each_member_once_and_never_turn_back(rows, members, cpus):
    nr = len(rows)
    rows = [[10 if a == b else d for b, d in enumerate(row)] for a, row in enumerate(rows)]
    t = machine(nr, rows, cpus=[n for n in range(nr) if cpus >> n & 1])
    members &= (1 << nr) - 1
    for start, order in node_orders(t, range(nr), members).items():
        assert sorted(order) == [n for n in range(nr) if members >> n & 1]
        near = [t.proximity(start, n) for n in order if n != start]
        assert near == sorted(near)
        assert start not in order or order[0] == start


def test_walks():
    order = (1, 2, 0, 3)
    assert first_zones(order, None) == order
    assert first_zones(order, 0b1001) == (0, 3)
    t = machine(4, ORACLE.distances, movable=(2, 3))
    assert candidates(t, order, AllocRequest(1)) == order
    assert candidates(t, order, AllocRequest(1, 0b0111), mems_allowed=0b1110) == (1, 2)
    assert candidates(t, order, AllocRequest(1, reason=Reason.KERNEL, movable=False)) == (1, 0)
    assert candidates(t, order, AllocRequest(2, this_node=True)) == (2,)
    assert candidates(t, (), AllocRequest(2, this_node=True)) == ()


def test_second_try_of_preferred_many():
    request = AllocRequest(1, 0b10, Reason.POLICY, retry_unmasked=True)
    assert request.unmasked() == AllocRequest(1, None, Reason.POLICY)


def test_a_node_without_a_list_has_the_empty_one():
    lists = Zonelists({0: (0, 1)}, {0: (0,)}, {0: (0, 1, 2)})
    assert [lists.of(kind, 0) for kind in ZonelistKind] == [(0, 1), (0,), (0, 1, 2)]
    assert lists.of(ZonelistKind.NOFALLBACK, 2) == ()
