"""Topology: masks, lookups, and what it refuses."""

import pytest

from privmem.scheduler.abi import Feature
from privmem.scheduler.errors import InvariantError
from privmem.scheduler.topology import HostTopology, NodeTopology

SPEC = {
    "nodes": [
        {"nid": 0, "cpus": [0, 1], "span_pages": 2048, "device": "device/h0.n0"},
        {"nid": 1, "span_pages": 2048, "adistance": 1152},
        {"nid": 2, "span_pages": 1024, "private": True, "features": 0x6, "adistance": 2880},
        {"nid": 5, "cpus": [2]},
    ],
    "distances": [[10, 24, 34, 20], [24, 10, 20, 44], [34, 20, 10, 54], [20, 44, 54, 10]],
}


def test_masks():
    t = HostTopology.from_spec(SPEC)
    assert (t.online, t.memory, t.private, t.public) == (0b100111, 0b111, 0b100, 0b011)
    assert (t.with_cpus, t.cpu_nodes, t.normal_zone, t.cpus) == (0b100001, (0, 5), 0b011, (0, 1, 2))


def test_lookups():
    t = HostTopology.from_spec(SPEC)
    assert t.distance(5, 2) == 54
    assert [t.node_of_cpu(c) for c in (0, 1, 2)] == [0, 0, 5]
    assert t.node(2).features == Feature.RECLAIM | Feature.DEMOTION
    assert t.with_feature(Feature.DEMOTION) == 0b111
    assert t.with_feature(Feature.USER_NUMA) == 0b011


def test_spec_round_trip():
    t = HostTopology.from_spec(SPEC)
    assert HostTopology.from_spec(t.to_spec()).to_spec() == t.to_spec()


def test_nodes_by_distance_without_own_memory():
    assert HostTopology.from_spec(SPEC).nodes_by_distance(5) == (0, 1, 2)
    assert HostTopology.from_spec(SPEC).nodes_by_distance(1) == (1, 2, 0)


def test_penalties_break_ties():
    """find_next_best_node: at equal distance a headless node beats one with CPUs, a higher id beats a
    lower.
    """
    nodes = tuple(NodeTopology(n, cpus=(n,) if n == 2 else (), span_pages=1) for n in range(4))
    flat = tuple(tuple(10 if a == b else 20 for a in range(4)) for b in range(4))
    t = HostTopology(nodes, flat)
    assert t.nodes_by_distance(1) == (1, 3, 0, 2)


@pytest.mark.parametrize(
    ("nodes", "distances", "text"),
    [
        ((NodeTopology(1), NodeTopology(0)), ((10, 20), (20, 10)), "ascending"),
        ((NodeTopology(0), NodeTopology(0)), ((10, 20), (20, 10)), "distinct"),
        ((NodeTopology(0), NodeTopology(64)), ((10, 20), (20, 10)), "below 64"),
        ((NodeTopology(0, (1,)), NodeTopology(1, (1,))), ((10, 20), (20, 10)), "two nodes"),
        ((NodeTopology(0), NodeTopology(1)), ((10, 20),), "2 by 2"),
        ((NodeTopology(0, zone="dma"),), ((10,),), "zone 'dma'"),
        ((NodeTopology(0, private=True),), ((10,),), "PUBLIC"),
        ((), (), "distinct"),
    ],
)
def test_refuses(nodes, distances, text):
    with pytest.raises(InvariantError, match=text):
        HostTopology(nodes, distances)
