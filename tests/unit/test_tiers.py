"""Tiers: numbers, demotion targets, and who belongs."""

from hypothesis import given
from hypothesis import strategies as st

from privmem.scheduler import nodemask
from privmem.scheduler.abi import Feature
from privmem.scheduler.tiers import ADISTANCE_BY_CLASS, build_tiers, members, tier_number
from privmem.scheduler.topology import HostTopology, NodeTopology

DEMOTABLE = Feature.RECLAIM | Feature.DEMOTION


def rack_host(cram=DEMOTABLE, pool=DEMOTABLE):
    """DRAM with CPUs, CXL, compressed RAM behind it, a slow pool."""
    by = ADISTANCE_BY_CLASS
    nodes = (
        NodeTopology(0, cpus=(0,), span_pages=1, adistance=by["dram"]),
        NodeTopology(1, span_pages=1, adistance=by["cxl"]),
        NodeTopology(2, private=True, features=cram, span_pages=1, adistance=by["compressed-ram"]),
        NodeTopology(3, private=True, features=pool, span_pages=1, adistance=by["slow-distributed"]),
    )
    return HostTopology(nodes, ((10, 24, 34, 70), (24, 10, 20, 84), (34, 20, 10, 94), (70, 84, 94, 10)))


def test_tier_numbers():
    numbers = {name: tier_number(adistance) for name, adistance in ADISTANCE_BY_CLASS.items()}
    assert numbers == {"dram": 4, "gpu": 6, "cxl": 9, "nic": 11, "compressed-ram": 22, "slow-distributed": 45}


def test_chain():
    table = build_tiers(rack_host())
    assert table.tiers == ((4, 0b0001), (9, 0b0010), (22, 0b0100), (45, 0b1000))
    assert table.targets == {0: (1,), 1: (2,), 2: (3,), 3: ()}
    assert table.allowed == {0: 0b1110, 1: 0b1100, 2: 0b1000, 3: 0}
    assert table.toptier == 0b0001
    assert [table.tier_of(n) for n in range(4)] == [4, 9, 22, 45]


def test_private_node_without_demotion_belongs_to_no_tier():
    host = rack_host(cram=Feature.RECLAIM)
    assert members(host) == 0b1011
    table = build_tiers(host)
    assert table.tier_of(2) is None
    assert table.targets == {0: (1,), 1: (3,), 3: ()}


def test_demotion_switched_off():
    table = build_tiers(rack_host(), demotion=False)
    assert table.targets == {0: (), 1: (), 2: (), 3: ()}
    assert table.allowed == {0: 0, 1: 0, 2: 0, 3: 0}


def machine(distances, adistances, cpus):
    nodes = tuple(
        NodeTopology(n, cpus=(n,) if n in cpus else (), span_pages=1, adistance=a)
        for n, a in enumerate(adistances)
    )
    return HostTopology(nodes, tuple(tuple(row) for row in distances))


def test_equally_near_targets_are_all_preferred():
    """Two sockets with a memory-only node each, as in the example of mm/memory-tiers.c."""
    near = [[10, 20, 20, 20], [20, 10, 20, 20], [20, 20, 10, 20], [20, 20, 20, 10]]
    table = build_tiers(machine(near, [576, 576, 2880, 2880], (0, 1)))
    assert table.targets == {0: (2, 3), 1: (2, 3), 2: (), 3: ()}
    near[0][3] = near[1][2] = 30
    table = build_tiers(machine(near, [576, 576, 2880, 2880], (0, 1)))
    assert table.targets == {0: (2,), 1: (3,), 2: (), 3: ()}


def test_toptier_reaches_down_to_the_last_cpus():
    flat = [[10 if a == b else 20 for b in range(3)] for a in range(3)]
    assert build_tiers(machine(flat, [256, 576, 2880], (1,))).toptier == 0b011
    assert build_tiers(machine(flat, [256, 576, 2880], ())).toptier == 0b111


@given(st.lists(st.integers(1, 6000), min_size=1, max_size=7), st.integers(0, 127))
def test_demotion_only_goes_down(adistances, cpus):
    nr = len(adistances)
    flat = [[10 if a == b else 20 for b in range(nr)] for a in range(nr)]
    table = build_tiers(machine(flat, adistances, [n for n in range(nr) if cpus >> n & 1]))
    numbers = sorted({tier_number(a) for a in adistances})
    assert [number for number, _ in table.tiers] == numbers
    for nid in range(nr):
        own = tier_number(adistances[nid])
        lower = [n for n in range(nr) if tier_number(adistances[n]) > own]
        assert list(nodemask.nodes(table.allowed[nid])) == lower
        following = min((tier_number(adistances[n]) for n in lower), default=None)
        assert sorted(table.targets[nid]) == [n for n in lower if tier_number(adistances[n]) == following]
