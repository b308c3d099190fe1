"""The registry of isolation designs, and by design: who reaches a private node, who is invited, what is named."""

import errno
from itertools import product

import pytest

from privmem.scheduler import mempolicy, nodemask
from privmem.scheduler.abi import Feature, Mpol, Reason
from privmem.scheduler.isolation import (
    ALIASES,
    DEFAULT_DESIGN,
    DESIGNS,
    Claim,
    Service,
    get_design,
    select_designs,
)
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import AllocRequest, ZonelistKind

D0, D1, USERP, CRAMP, BAREP = range(5)
ALL = 0b11111
PRIVATE = 0b11100
WISHES = {
    USERP: Feature.RECLAIM | Feature.DEMOTION | Feature.USER_NUMA | Feature.USER_WRITE,
    CRAMP: Feature.RECLAIM | Feature.DEMOTION,
    BAREP: Feature.USER_WRITE,
}
ADDITIVE = ["caps", "private-zonelist:F0", "private-zonelist", "private-zonelist:F2"]
LISTED = ["caps:a", "caps:b", *ADDITIVE]


def host(design, wishes=WISHES):
    nodes = [NodeTopology(nid, cpus=(nid,), span_pages=1) for nid in (D0, D1)]
    for nid, wish in wishes.items():
        features = design.grant(wish)
        nodes.append(
            NodeTopology(nid, private=True, features=features, zone="movable", span_pages=1, adistance=2880)
        )
    distances = tuple(tuple(10 if a == b else 20 + abs(a - b) for a in range(5)) for b in range(5))
    return HostTopology(tuple(nodes), distances)


class Asked:
    """A design with the host above: what it answers."""

    def __init__(self, name, wishes=WISHES):
        self.design = get_design(name)
        self.topology = host(self.design, wishes)
        self.lists = self.design.zonelists(self.topology)
        self.policy_nodes = self.design.policy_nodes(self.topology)

    def reached(self, request, mems_allowed=None):
        return self.design.candidates(self.topology, self.lists, request, mems_allowed)

    def policy(self, mode, nodes, mems=ALL):
        error, policy = mempolicy.new_policy(mode, nodes, mems, self.policy_nodes)
        return error or policy.nodes

    def fault(self, mode, nodes, mems=ALL, cpu_nid=D0, turn=-1):
        error, policy = mempolicy.new_policy(mode, nodes, mems, self.policy_nodes)
        assert not error
        return self.reached(mempolicy.request(policy, cpu_nid, mems, turn), mems)

    def invited(self, request, nid):
        return self.design.invited(request, self.topology.node(nid))


# -- names


def test_registry():
    assert list(DESIGNS) == [
        "gfp-private",
        "no-fallback",
        "no-fallback:task",
        "caps:a",
        "caps:b",
        "caps",
        "private-zonelist:F0",
        "private-zonelist",
        "private-zonelist:F2",
        "private-zonelist-per-node",
    ]
    assert all(get_design(name).name == name for name in DESIGNS)
    assert {get_design(alias).name for alias in ALIASES} <= set(DESIGNS)
    assert [get_design(n).label for n in ("caps:c", "F1", "v4", "nofb", "F3")] == [
        "caps-c",
        "F1",
        "v4",
        "nofb",
        "F3",
    ]
    assert DEFAULT_DESIGN in DESIGNS


def test_an_unknown_design_is_told_with_the_nearest_name():
    with pytest.raises(KeyError, match=r"'private-zonlist' \(known: gfp-private, .*mean 'private-zonelist'"):
        get_design("private-zonlist")
    with pytest.raises(KeyError, match=r"no isolation design 'capz' .*did you mean 'caps'"):
        select_designs("all,capz")
    with pytest.raises(KeyError, match="names no isolation design"):
        select_designs("caps,")


def test_selecting():
    def names(text):
        return [design.name for design in select_designs(text)]

    five = ["gfp-private", "no-fallback", "caps", "private-zonelist", "private-zonelist-per-node"]
    assert names("all") == five
    assert names("every") == list(DESIGNS)
    assert names("F1, caps:c,private-zonelist") == ["private-zonelist", "caps"]
    assert names("caps:b,all") == ["caps:b", *five]


# -- lists


@pytest.mark.parametrize("name", [*LISTED, "private-zonelist-per-node"])
def test_ordinary_lists_have_no_private_node(name):
    lists = Asked(name).lists
    assert lists.fallback == {0: (0, 1), 1: (1, 0), 2: (1, 0), 3: (1, 0), 4: (1, 0)}
    assert lists.nofallback == {0: (0,), 1: (1,)}


@pytest.mark.parametrize("name", LISTED)
def test_the_private_list_is_a_union(name):
    assert Asked(name).lists.private == {
        0: (0, 1, 2, 3, 4),
        1: (1, 2, 3, 0, 4),
        2: (2, 3, 4, 1, 0),
        3: (3, 4, 2, 1, 0),
        4: (4, 3, 2, 1, 0),
    }


def test_lists_of_the_others():
    assert Asked("private-zonelist-per-node").lists.private == {2: (2,), 3: (3,), 4: (4,)}
    v4, nofb = Asked("gfp-private").lists, Asked("no-fallback").lists
    assert v4.fallback == {0: (0, 1), 1: (1, 0), 2: (2, 1, 0), 3: (3, 1, 0), 4: (4, 1, 0)}
    assert nofb.fallback == {0: (0, 1), 1: (1, 0), 2: (1, 0), 3: (1, 0), 4: (1, 0)}
    assert v4.nofallback == nofb.nofallback == {nid: (nid,) for nid in range(5)}
    assert v4.private == nofb.private == {}


# -- who reaches a private node


@pytest.mark.parametrize("name", DESIGNS)
def test_no_ordinary_request_reaches_a_private_node(name):
    """Whatever preferred node and mask, without THISNODE and without asking for private memory."""
    asked = Asked(name)
    for reason, nid, mask in product(Reason, range(5), [None, *range(32)]):
        assert set(asked.reached(AllocRequest(nid, mask, reason))) <= {D0, D1}


@pytest.mark.parametrize("name", sorted(set(DESIGNS) - {"no-fallback"}))
def test_this_node_alone_opens_nothing(name):
    asked = Asked(name)
    for reason in (Reason.FAULT, Reason.KERNEL, Reason.SLAB, Reason.CONTIG, Reason.OWNER, Reason.HOTPLUG):
        assert asked.reached(AllocRequest(BAREP, None, reason, this_node=True)) == ()


def test_without_a_flag_this_node_is_everybodys_door():
    asked = Asked("no-fallback")
    uninvited = [
        reason.name
        for reason in Reason
        if asked.reached(AllocRequest(BAREP, None, reason, this_node=True)) == (BAREP,)
        and not asked.invited(AllocRequest(BAREP, None, reason, this_node=True), BAREP)
    ]
    assert {"SLAB", "HUGETLB", "CONTIG", "KERNEL", "HOTPLUG"} <= set(uninvited)


@pytest.mark.parametrize("name", DESIGNS)
def test_the_owner_reaches_its_node_and_is_invited(name):
    asked = Asked(name)
    for nid, reason in product((USERP, CRAMP, BAREP), (Reason.OWNER, Reason.CONTIG)):
        request = AllocRequest(nid, None, reason, this_node=True, private=True)
        assert asked.reached(request) == (nid,)
        assert asked.invited(request, nid)
        assert not any(asked.invited(request, other) for other in (USERP, CRAMP, BAREP) if other != nid)
        assert not asked.invited(AllocRequest(nid, None, reason, this_node=True), nid)  # it must ask


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("gfp-private", (3, 1, 0)),
        ("no-fallback", (3,)),
        ("no-fallback:task", (3,)),
        *((name, (3, 4, 2, 1, 0)) for name in LISTED),
        ("private-zonelist-per-node", ()),
    ],
)
def test_an_owner_that_forgets_this_node(name, reached):
    """Where a union list or a flag lets it go on, it may end on another device's node, uninvited."""
    asked = Asked(name)
    request = AllocRequest(CRAMP, None, Reason.OWNER, private=True)
    assert asked.reached(request) == reached
    assert [nid for nid in reached if asked.invited(request, nid)] == [n for n in reached if n == CRAMP]


@pytest.mark.parametrize("name", DESIGNS)
def test_moves_and_demotion_go_by_the_target(name):
    asked = Asked(name)

    def one(nid, reason):
        request = AllocRequest(nid, None, reason, this_node=True)
        return asked.reached(request) == (nid,) and asked.invited(request, nid)

    moved = [n for n in (USERP, CRAMP, BAREP) if one(n, Reason.USER_MOVE)]
    demoted = [n for n in (USERP, CRAMP, BAREP) if one(n, Reason.DEMOTION)]
    if name == "private-zonelist-per-node":
        assert (moved, demoted) == ([], [])
    elif name == "gfp-private":  # MIGRATION comes with DEMOTION: both need the callbacks
        assert (moved, demoted) == ([USERP, CRAMP], [USERP, CRAMP])
    else:
        assert (moved, demoted) == ([USERP], [USERP, CRAMP])


# -- policies


@pytest.mark.parametrize("name", DESIGNS)
def test_binds_to_general_nodes_stay_on_the_ordinary_list(name):
    asked = Asked(name)
    request = AllocRequest(D0, 0b00011, Reason.POLICY)
    assert asked.design.kind(asked.topology, request) is ZonelistKind.FALLBACK
    assert asked.fault(Mpol.BIND, 0b00011) == (D0, D1)


EINVAL = -errno.EINVAL
U, Q, D = 1 << USERP, 1 << BAREP, 1 << D0
SOFT = (Mpol.PREFERRED, Mpol.PREFERRED_MANY, Mpol.INTERLEAVE)


@pytest.mark.parametrize(
    ("name", "bind_u", "bind_du", "bind_dq", "soft_u", "soft_du", "soft_dq"),
    [
        ("gfp-private", U, D | U, EINVAL, U, D | U, EINVAL),
        ("no-fallback", U, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL),
        ("caps:a", U, D | U, D, EINVAL, D, D),
        ("caps:b", U, D | U, D, EINVAL, D, D),
        ("caps", U, D | U, D, EINVAL, EINVAL, EINVAL),
        ("private-zonelist:F0", U, D | U, D, EINVAL, D, D),
        ("private-zonelist", U, D | U, D, EINVAL, D, D),
        ("private-zonelist:F2", U, D | U, D, EINVAL, D, D),
        ("private-zonelist-per-node", EINVAL, D, D, EINVAL, D, D),
    ],
)
def test_naming_in_policies(name, bind_u, bind_du, bind_dq, soft_u, soft_du, soft_dq):
    asked = Asked(name)
    assert asked.policy(Mpol.BIND, Q) == EINVAL
    assert [asked.policy(Mpol.BIND, nodes) for nodes in (U, D | U, D | Q)] == [bind_u, bind_du, bind_dq]
    for mode in SOFT:
        got = [asked.policy(mode, nodes) for nodes in (U, D | U, D | Q)]
        expected = [soft_u, soft_du, soft_dq]
        if mode is Mpol.PREFERRED:  # takes the first node of what is left
            expected = [e if e < 0 else 1 << nodemask.first(e) for e in expected]
        assert got == expected


@pytest.mark.parametrize("name", sorted(set(DESIGNS) - {"private-zonelist-per-node"}))
def test_a_bind_reaches_the_private_node_and_is_invited(name):
    asked = Asked(name)
    assert asked.fault(Mpol.BIND, U) == (USERP,)
    request = AllocRequest(D0, U, Reason.POLICY, private=True)
    assert asked.invited(request, USERP)
    assert not asked.invited(request, CRAMP)


@pytest.mark.parametrize("name", LISTED)
def test_bind_to_general_and_private_nodes_walks_by_distance(name):
    assert Asked(name).fault(Mpol.BIND, D | U) == (D0, USERP)
    assert Asked(name).fault(Mpol.BIND, D | U, cpu_nid=D1) == (USERP, D0)


def test_v4_walks_the_list_of_a_node_of_the_mask():
    """The lists of general nodes omit private ones; a mask without the CPU's node starts at its first node."""
    asked = Asked("gfp-private")
    assert asked.fault(Mpol.BIND, D | U) == (D0,)
    assert asked.fault(Mpol.BIND, D | U, cpu_nid=D1) == (D0,)
    assert asked.fault(Mpol.BIND, 1 << D1 | U, cpu_nid=D0) == (D1,)
    assert asked.fault(Mpol.INTERLEAVE, D | U, turn=USERP) == (USERP, D1, D0)
    assert asked.fault(Mpol.PREFERRED, U) == (USERP, D1, D0)


def test_v4_slab_never_takes_a_private_page():
    asked = Asked("gfp-private")
    for nid, this_node in product(range(5), (False, True)):
        request = AllocRequest(nid, None, Reason.SLAB, this_node=this_node, private=True)
        assert set(asked.reached(request)) <= {D0, D1}


def test_the_page_cache_follows_a_marked_policy_only_behind_the_flag():
    reached = {
        name: Asked(name).reached(AllocRequest(D0, U, Reason.PAGECACHE, private=True)) for name in DESIGNS
    }
    assert {name for name, nids in reached.items() if USERP in nids} >= {"gfp-private"}
    for name in [*LISTED, "private-zonelist-per-node"]:
        assert reached[name] == ()


# -- cpusets, moves


@pytest.mark.parametrize(
    ("name", "namable", "top", "must_keep", "adds_general"),
    [
        ("gfp-private", ALL, ALL, 0b11, 0),
        ("no-fallback", ALL, 0b11, 0, 0),
        ("caps:a", ALL, 0b11, 0, 0),
        ("caps:b", ALL, 0b11, 0, 0),
        ("caps", 0b111, ALL, 0b11, 0),
        ("private-zonelist:F0", 0b111, ALL, 0b11, 0),
        ("private-zonelist", 0b111, ALL, 0b11, 0),
        ("private-zonelist:F2", 0b111, ALL, 0, 0b11),
        ("private-zonelist-per-node", ALL, ALL, 0, 0b11),
    ],
)
def test_cpusets(name, namable, top, must_keep, adds_general):
    asked = Asked(name)
    rules = asked.design.cpuset_nodes(asked.topology)
    assert (rules.namable, rules.top) == (namable, top)
    assert (rules.must_keep, rules.adds_general, rules.migrates) == (must_keep, adds_general, 0b11)


def test_move_targets():
    targets = {name: Asked(name).design.move_targets(Asked(name).topology) for name in DESIGNS}
    assert targets == {
        **dict.fromkeys(DESIGNS, 0b111),
        "gfp-private": 0b1111,
        "private-zonelist-per-node": 0b11,
    }


def test_users_reach_what_they_may_move_to_where_cpusets_do_not_govern():
    # caps-a keeps policies and moves apart: a node for moves alone is in no policy, and in no cpuset's power.
    asked = Asked("caps:a", {USERP: Feature.MIGRATION, CRAMP: Feature.USER_NUMA, BAREP: Feature.NONE})
    rules = asked.design.policy_nodes(asked.topology)
    assert (rules.memory, rules.reach(1 << D0)) == (
        1 << D0 | 1 << D1 | 1 << CRAMP,
        1 << D0 | 1 << USERP | 1 << CRAMP,
    )


# -- services


def services(name):
    """Service -> private nodes that take part; USERP wishes for everything here."""
    asked = Asked(
        name, {USERP: ~Feature.PUBLIC, CRAMP: Feature.RECLAIM | Feature.DEMOTION, BAREP: Feature.NONE}
    )
    assert all(asked.design.allows(s, asked.topology.node(n)) for s in Service for n in (D0, D1))
    return {
        service: [n for n in (USERP, CRAMP, BAREP) if asked.design.allows(service, asked.topology.node(n))]
        for service in Service
    }


def test_services_of_f1():
    everyone, reclaimed, user = [USERP, CRAMP, BAREP], [USERP, CRAMP], [USERP]
    assert services("private-zonelist") == {
        **{service: [] for service in Service},
        **dict.fromkeys((Service.RECLAIM, Service.COMPACTION, Service.DISPLACE), reclaimed),
        **dict.fromkeys((Service.OOM_MEMORY, Service.MADVISE, Service.TIER), reclaimed),
        **dict.fromkeys((Service.DEMOTION_TARGET, Service.DEMOTION_SOURCE), reclaimed),
        **dict.fromkeys((Service.USER_MOVE, Service.USER_WRITE, Service.HUGETLB), user),
        **dict.fromkeys((Service.HOTUNPLUG, Service.MLOCK), everyone),
    }


def test_services_that_v4_never_gives():
    never = {service for service, nids in services("gfp-private").items() if not nids}
    assert never == {
        Service.DEMOTION_SOURCE,
        Service.HUGETLB,
        Service.KSM,
        Service.KHUGEPAGED,
        Service.COLLAPSE,
        Service.MADVISE,
        Service.MLOCK,
    }


@pytest.mark.parametrize("name", DESIGNS)
def test_nobody_gives_private_memory_to_khugepaged(name):
    assert services(name)[Service.KHUGEPAGED] == []


def test_bits_that_only_some_versions_have():
    having = {
        service: [name for name in DESIGNS if USERP in services(name)[service]]
        for service in (
            Service.NUMA_BALANCING,
            Service.LONGTERM_PIN,
            Service.COLLAPSE,
            Service.KSM,
            Service.DAMON,
        )
    }
    assert having == {
        Service.NUMA_BALANCING: [
            "gfp-private", "no-fallback", "no-fallback:task", "caps:b", "caps", "private-zonelist:F0",
        ],
        Service.LONGTERM_PIN: [
            "gfp-private", "no-fallback", "no-fallback:task", "caps:a", "caps:b", "caps", "private-zonelist:F0",
        ],
        Service.COLLAPSE: ["caps:b", "caps"],
        Service.KSM: ["caps"],
        Service.DAMON: ["gfp-private", "caps"],
    }  # fmt: skip


# -- claims


@pytest.mark.parametrize(
    ("name", "features", "error"),
    [
        *((name, Feature.DEMOTION, EINVAL) for name in LISTED),
        *((name, Feature.DEMOTION | Feature.RECLAIM, 0) for name in LISTED),
        ("gfp-private", Feature.DEMOTION, 0),
        ("gfp-private", Feature.USER_NUMA | Feature.USER_WRITE, EINVAL),
        ("gfp-private", Feature.USER_NUMA | Feature.USER_WRITE | Feature.MIGRATION, 0),
        ("gfp-private", Feature.USER_NUMA | Feature.MIGRATION, EINVAL),
        ("gfp-private", Feature.NUMA_BALANCING, EINVAL),
        ("gfp-private", Feature.COMPACTION, EINVAL),
        ("gfp-private", Feature.RECLAIM, 0),
        ("gfp-private", Feature.LONGTERM_PIN, 0),
        ("private-zonelist", Feature.USER_NUMA, 0),
        ("private-zonelist", Feature.ALL, EINVAL),
        ("private-zonelist", Feature.ALL & ~Feature.PUBLIC, 0),
        ("private-zonelist", Feature.COMPACTION, EINVAL),
        ("private-zonelist:F2", Feature.COMPACTION | Feature.CONTIG_ALLOC, 0),
        ("private-zonelist-per-node", Feature.RECLAIM | Feature.COMPACTION, 0),
        ("private-zonelist-per-node", Feature.USER_NUMA, EINVAL),
        ("caps", Feature.PUBLIC | Feature.RECLAIM, EINVAL),
    ],
)
def test_masks(name, features, error):
    assert get_design(name).claim_error(features) == error


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("wish", [Feature.NONE, WISHES[USERP], WISHES[CRAMP], ~Feature.PUBLIC])
def test_what_is_granted_may_be_claimed(name, wish):
    design = get_design(name)
    assert design.claim_error(design.grant(wish)) == 0
    assert design.grant(design.grant(wish)) == design.grant(wish)


BUSY = -errno.EBUSY
A, B = Feature.RECLAIM, Feature.RECLAIM | Feature.USER_WRITE


@pytest.mark.parametrize(
    ("name", "same_same", "same_other", "other_same"),
    [
        *((name, 0, 0, BUSY) for name in ("gfp-private", "no-fallback", "no-fallback:task")),
        *((name, 0, BUSY, BUSY) for name in ("caps:a", "caps:b", "caps")),
        *((name, 0, BUSY, 0) for name in ("private-zonelist:F0", "private-zonelist", "private-zonelist:F2")),
        ("private-zonelist-per-node", 0, BUSY, 0),
    ],
)
def test_claims_on_a_claimed_node(name, same_same, same_other, other_same):
    claim = get_design(name).reclaim_error
    held = Claim("x", A)
    assert [claim(held, True, Claim("x", A)), claim(held, False, Claim("x", B))] == [same_same, same_other]
    assert claim(held, False, Claim("y", A)) == other_same
    assert [claim(None, False, held), claim(None, True, held)] == [0, BUSY]


# -- what is told


def test_rules_are_sentences():
    def told(name, *request, **rest):
        asked = Asked(name)
        return asked.design.rule(asked.topology, AllocRequest(*request, **rest))

    assert told("private-zonelist", BAREP, None, Reason.SLAB, this_node=True) == (
        "no-fallback zonelist of node 4 (no node); private node 4 out of reach: ordinary lists hold general "
        "nodes only, and a request for SLAB has no other"
    )
    assert told("private-zonelist", D0, U, Reason.POLICY, private=True) == (
        "private zonelist of node 0 (nodes 0 1 2 3 4), confined by the nodemask"
    )
    assert told("no-fallback", BAREP, None, Reason.SLAB, this_node=True) == (
        "no-fallback zonelist of node 4 (node 4), opened by naming the node"
    )
    assert told("gfp-private", BAREP, None, Reason.KERNEL) == (
        "fallback zonelist of node 4 (nodes 4 1 0); private node 4 out of reach: the request lacks __GFP_PRIVATE"
    )
    assert told("private-zonelist-per-node", BAREP, None, Reason.OWNER, private=True) == (
        "private zonelist of node 4: refused, the request lacks THISNODE"
    )
