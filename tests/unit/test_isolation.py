"""The registry, and private-zonelist (F1): who reaches a private node."""

import errno
from itertools import product

import pytest

from privmem.scheduler import mempolicy
from privmem.scheduler.abi import Feature, Mpol, Reason
from privmem.scheduler.isolation import DEFAULT_DESIGN, DESIGNS, Service, get_design, private_zonelist
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import AllocRequest, ZonelistKind

USER = Feature.RECLAIM | Feature.DEMOTION | Feature.USER_NUMA | Feature.USER_WRITE
CRAM = Feature.RECLAIM | Feature.DEMOTION
BARE = Feature.RECLAIM

F1 = get_design(DEFAULT_DESIGN)
D0, D1, USERP, CRAMP, BAREP = range(5)


def host():
    nodes = (
        NodeTopology(D0, cpus=(0,), span_pages=1),
        NodeTopology(D1, cpus=(1,), span_pages=1),
        NodeTopology(USERP, private=True, features=USER, zone="movable", span_pages=1, adistance=2880),
        NodeTopology(CRAMP, private=True, features=CRAM, zone="movable", span_pages=1, adistance=2880),
        NodeTopology(BAREP, private=True, features=BARE, zone="movable", span_pages=1, adistance=2880),
    )
    return HostTopology(
        nodes, tuple(tuple(10 if a == b else 20 + abs(a - b) for a in range(5)) for b in range(5))
    )


TOPOLOGY = host()
LISTS = F1.zonelists(TOPOLOGY)


def reached(request, mems_allowed=None):
    return F1.candidates(TOPOLOGY, LISTS, request, mems_allowed)


def test_registry():
    assert list(DESIGNS) == ["private-zonelist"]
    with pytest.raises(KeyError, match=r"known: private-zonelist.*did you mean 'private-zonelist'"):
        get_design("private-zonlist")


@pytest.mark.parametrize(
    ("features", "error"),
    [
        (USER, 0),
        (CRAM, 0),
        (BARE, 0),
        (Feature.NONE, 0),
        (Feature.DEMOTION, -errno.EINVAL),
        (Feature.ALL, -errno.EINVAL),
        (Feature.USER_NUMA | Feature.USER_WRITE, 0),
    ],
)
def test_claims(features, error):
    assert F1.claim_error(features) == error


def test_lists():
    assert LISTS.fallback == {0: (0, 1), 1: (1, 0), 2: (1, 0), 3: (1, 0), 4: (1, 0)}
    assert LISTS.nofallback == {0: (0,), 1: (1,)}
    assert sorted(LISTS.private[0]) == [0, 1, 2, 3, 4]
    assert LISTS.private[CRAMP][0] == CRAMP


def test_no_ordinary_request_reaches_a_private_node():
    """Whatever nid, mask and THISNODE: reasons without a door see general nodes only."""
    doors = set(private_zonelist._DOORS)
    for reason, nid, mask, this_node in product(Reason, range(5), [None, *range(32)], (False, True)):
        if reason in doors:
            continue
        assert set(reached(AllocRequest(nid, mask, reason, this_node))) <= {D0, D1}


def test_preferring_a_private_node_is_not_enough():
    for reason in Reason:
        assert set(reached(AllocRequest(USERP, None, reason))) <= {D0, D1}


def test_this_node_on_a_private_node_finds_nothing():
    assert reached(AllocRequest(USERP, None, Reason.FAULT, this_node=True)) == ()
    assert reached(AllocRequest(USERP, None, Reason.KERNEL, this_node=True)) == ()


def test_doors_open_by_feature():
    def one(nid, reason):
        return reached(AllocRequest(nid, 1 << nid, reason, this_node=True))

    assert [one(n, Reason.POLICY) for n in (USERP, CRAMP, BAREP)] == [(USERP,), (), ()]
    assert [one(n, Reason.USER_MOVE) for n in (USERP, CRAMP, BAREP)] == [(USERP,), (), ()]
    assert [one(n, Reason.DEMOTION) for n in (USERP, CRAMP, BAREP)] == [(USERP,), (CRAMP,), ()]
    assert [one(n, Reason.OWNER) for n in (USERP, CRAMP, BAREP)] == [(USERP,), (CRAMP,), (BAREP,)]


def test_a_bind_to_general_nodes_stays_on_the_ordinary_list():
    request = AllocRequest(D0, 0b00011, Reason.POLICY)
    assert F1.kind(TOPOLOGY, request) is ZonelistKind.FALLBACK
    one = AllocRequest(D0, None, Reason.USER_MOVE, this_node=True)
    assert F1.kind(TOPOLOGY, one) is ZonelistKind.NOFALLBACK


def test_bind_to_general_and_private_nodes_walks_by_distance():
    _, policy = mempolicy.new_policy(Mpol.BIND, 0b00101, 0b11111, F1.policy_nodes(TOPOLOGY))
    request = mempolicy.request(policy, D0, 0b11111)
    assert F1.kind(TOPOLOGY, request) is ZonelistKind.PRIVATE
    assert reached(request, 0b11111) == (D0, USERP)


@pytest.mark.parametrize(
    ("mode", "named", "expected"),
    [
        (Mpol.BIND, 1 << USERP, (0, 1 << USERP)),
        (Mpol.BIND, 1 << CRAMP, (-errno.EINVAL, None)),
        (Mpol.BIND, 1 << D0 | 1 << CRAMP, (0, 1 << D0)),
        (Mpol.INTERLEAVE, 1 << USERP, (-errno.EINVAL, None)),
        (Mpol.INTERLEAVE, 1 << D0 | 1 << USERP, (0, 1 << D0)),
        (Mpol.PREFERRED, 1 << USERP, (-errno.EINVAL, None)),
        (Mpol.PREFERRED, 1 << USERP | 1 << D1, (0, 1 << D1)),
        (Mpol.PREFERRED_MANY, 1 << D1 | 1 << USERP, (0, 1 << D1)),
    ],
)
def test_naming_in_policies(mode, named, expected):
    error, policy = mempolicy.new_policy(mode, named, 0b11111, F1.policy_nodes(TOPOLOGY))
    assert (error, policy.nodes if policy else None) == expected


def test_cpusets_and_moves():
    assert F1.cpuset_nodes(TOPOLOGY).namable == 0b00111
    assert F1.cpuset_nodes(TOPOLOGY).must_keep == 0b00011
    assert F1.move_targets(TOPOLOGY) == 0b00111


def test_services():
    allowed = {
        service: [node.nid for node in TOPOLOGY.nodes if F1.allows(service, node)] for service in Service
    }
    assert allowed == {
        Service.RECLAIM: [D0, D1, USERP, CRAMP, BAREP],
        Service.DEMOTION_TARGET: [D0, D1, USERP, CRAMP],
        Service.DEMOTION_SOURCE: [D0, D1, USERP, CRAMP],
        Service.NUMA_BALANCING: [D0, D1],
        Service.USER_MOVE: [D0, D1, USERP],
        Service.USER_WRITE: [D0, D1, USERP],
    }
