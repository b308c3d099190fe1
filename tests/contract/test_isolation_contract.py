"""What every isolation design and variant must keep, on random machines and on a fixed one.

What is expected is said from what a request means, never by asking the design again: ordinary requests stay on
general nodes, nobody gets memory that is not there or that a cpuset withholds, and exactly those leaks exist
that are known of a design.
"""

import errno
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.scheduler import cpuset, mempolicy, nodemask
from privmem.scheduler.abi import Feature, Mpol, Reason
from privmem.scheduler.isolation import DESIGNS, Claim, Service
from privmem.scheduler.tiers import build_tiers
from privmem.scheduler.topology import HostTopology, NodeTopology
from privmem.scheduler.zonelist import AllocRequest, ZonelistKind

OPENABLE = ~Feature.PUBLIC
EVERY = pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)

#: Nobody on whose behalf these are made has asked for private memory.
ORDINARY = (
    Reason.FAULT,
    Reason.PAGECACHE,
    Reason.PROMOTION,
    Reason.KERNEL,
    Reason.HOTPLUG,
    Reason.SLAB,
)


@st.composite
def machines(draw):
    """(nodes of a machine, distances), with wishes instead of features for private nodes."""
    count = draw(st.integers(1, 6))
    nodes = []
    for nid in sorted(draw(st.sets(st.integers(0, 9), min_size=count, max_size=count))):
        private = bool(nodes) and draw(st.booleans())
        nodes.append(
            NodeTopology(
                nid,
                cpus=() if private else (nid,),
                private=private,
                features=Feature(draw(st.integers(0, (1 << 22) - 1))) & OPENABLE if private else Feature.ALL,
                zone=draw(st.sampled_from(["normal", "movable"])) if private else "normal",
                adistance=draw(st.sampled_from([256, 576, 1152, 2880])),
                span_pages=draw(st.sampled_from([0, 1, 1])) if nodes else 1,
            )
        )
    far = draw(st.lists(st.integers(11, 60), min_size=count * count, max_size=count * count))
    distances = tuple(
        tuple(10 if a == b else far[min(a, b) * count + max(a, b)] for b in range(count))
        for a in range(count)
    )
    return tuple(nodes), distances


def under(design, machine):
    """The machine as the design lets drivers claim its nodes: masks that it refuses are not asked for."""
    nodes, distances = machine
    granted = []
    for node in nodes:
        if node.private:
            features = design.grant(node.features)
            if design.claim_error(features):
                features = Feature.NONE
            node = NodeTopology(
                node.nid, (), True, features, node.zone, node.adistance, node.device, node.span_pages
            )
        granted.append(node)
    return HostTopology(tuple(granted), distances)


FIXED = (
    tuple(
        NodeTopology(
            nid, (nid,) if nid < 2 else (), nid >= 2, features, zone, 576 if nid < 2 else 2880, "", 1
        )
        for nid, features, zone in (
            (0, Feature.ALL, "normal"),
            (1, Feature.ALL, "normal"),
            (2, Feature.RECLAIM | Feature.DEMOTION | Feature.USER_NUMA | Feature.USER_WRITE, "movable"),
            (3, Feature.RECLAIM | Feature.DEMOTION, "movable"),
            (4, Feature.USER_WRITE, "normal"),
        )
    ),
    tuple(tuple(10 if a == b else 20 + abs(a - b) for b in range(5)) for a in range(5)),
)


@st.composite
def requests(draw, topology):
    return AllocRequest(
        draw(st.sampled_from(topology.nids)),
        draw(st.none() | st.integers(0, topology.online)),
        draw(st.sampled_from(list(Reason))),
        this_node=draw(st.booleans()),
        movable=draw(st.booleans()),
        private=draw(st.booleans()),
    )


def all_requests(topology, movable=(True,)):
    """Every reason, start and flag, with no mask and with a few: general, private, mixed, all."""
    some = nodemask.of(list(nodemask.nodes(topology.private))[:1])
    masks = [None, topology.public, some, some | topology.public, topology.private, topology.online]
    for reason, nid, mask, this, private, moves in product(
        Reason, topology.nids, masks, (False, True), (False, True), movable
    ):
        yield AllocRequest(nid, mask, reason, this_node=this, movable=moves, private=private)


def check_request(design, topology, lists, request, mems):
    """Whatever is asked, by whomever."""
    reached = design.candidates(topology, lists, request, mems)
    assert isinstance(design.kind(topology, request), ZonelistKind)
    assert design.rule(topology, request)
    assert len(set(reached)) == len(reached)
    allowed = topology.memory
    allowed &= -1 if request.nodemask is None else request.nodemask
    allowed &= 1 << request.nid if request.this_node else -1
    allowed &= -1 if request.movable else topology.normal_zone
    if mems is not None:
        allowed &= design.policy_nodes(topology).reach(mems) | (
            0 if design.cpuset_nodes(topology).inert == 0 else topology.private
        )
    assert nodemask.is_subset(nodemask.of(reached), allowed)
    for nid in nodemask.nodes(topology.private):
        assert design.invited(request, topology.node(nid)) in (True, False)
    if not request.private and not request.this_node:
        assert not nodemask.of(reached) & topology.private
    # From where the walk starts, among nodes of one kind, the nearer one comes first.
    for group in (topology.public, topology.private):
        mine = [nid for nid in reached if nodemask.has(group, nid)]
        start = request.nid if request.nid in topology.nids else mine[0]
        if request.nodemask is None or nodemask.has(request.nodemask, start):
            distances = [topology.distance(start, nid) for nid in mine]
            assert distances == sorted(distances)


@EVERY
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_request_on_any_machine(design, data):
    topology = under(design, data.draw(machines()))
    lists = design.zonelists(topology)
    for _ in range(10):
        request = data.draw(requests(topology))
        mems = data.draw(st.none() | st.integers(0, topology.online))
        check_request(design, topology, lists, request, mems)


@EVERY
def test_every_request_on_the_fixed_machine(design):
    topology = under(design, FIXED)
    lists = design.zonelists(topology)
    for request in all_requests(topology, movable=(True, False)):
        check_request(design, topology, lists, request, None)


@EVERY
@given(st.data())
@settings(max_examples=20, deadline=None)
def test_what_nobody_asked_for_is_reached_by_nobody(design, data):
    """Ordinary requests without THISNODE, with any node and mask; and fallback lists without the flag."""
    topology = under(design, data.draw(machines()))
    lists = design.zonelists(topology)
    for reason in ORDINARY:
        request = AllocRequest(
            data.draw(st.sampled_from(topology.nids)),
            data.draw(st.none() | st.integers(0, topology.online)),
            reason,
        )
        reached = design.candidates(topology, lists, request, None)
        assert not nodemask.of(reached) & topology.private
        if topology.public and request.nodemask is None:
            assert nodemask.of(reached) == topology.public
        assert not any(design.invited(request, node) for node in topology.nodes if node.private)


def leaks(design, topology):
    """(reason, whether it carried THISNODE, whether it asked for private memory) of all uninvited landings."""
    lists = design.zonelists(topology)
    found = set()
    for request in all_requests(topology):
        for nid in design.candidates(topology, lists, request, None):
            node = topology.node(nid)
            if node.private and not design.invited(request, node):
                found.add((request.reason, request.this_node, request.private))
    return found


#: Reasons of a task that runs under its own policy or marker: what they ask for private memory, a user wanted.
USERS = {Reason.POLICY, Reason.SWAPIN, Reason.PAGETABLE, Reason.USER_MOVE}
OWNERS = {Reason.OWNER, Reason.CONTIG, Reason.NETWORK}


def known_leaks(name):
    """What is known to leak, by design, when callers may ask for anything: who, and how."""
    everyone = set(Reason)
    if name == "gfp-private":
        # The flag is open to whoever passes it: reasons that have no business there, nodes that did not opt in.
        # The slab allocator drops it; moves and demotion that name a node go by that node's bits.
        flagged = everyone - {Reason.SLAB} - OWNERS
        return {(reason, False, True) for reason in flagged} | {
            (reason, True, True) for reason in flagged - {Reason.USER_MOVE, Reason.DEMOTION}
        }
    if name == "no-fallback":
        # THISNODE is open to whoever sets it, and so is the mark of a policy on one node.
        this_node = {(reason, True, private) for reason in everyone for private in (False, True)}
        this_node -= {(reason, True, True) for reason in OWNERS}
        return this_node | {(reason, False, True) for reason in everyone - OWNERS}
    if name == "no-fallback:task":
        # The marker opens the door for whatever the task asks while it has it, nested allocations included.
        return {(reason, this, True) for reason in everyone - OWNERS for this in (False, True)}
    if name == "private-zonelist-per-node":
        return set()
    # A union list is confined by what the request names and by nothing else: an owner that forgets THISNODE goes
    # on to other devices' nodes; whoever selects the list without having checked the node's features gets it.
    doors = USERS | {Reason.DEMOTION, Reason.HUGETLB}
    doors |= {"caps:b": {Reason.COLLAPSE}, "caps": {Reason.COLLAPSE, Reason.KSM}}.get(name, set())
    return {(reason, this, True) for reason in doors for this in (False, True)} | {
        (reason, False, True) for reason in OWNERS
    }


@EVERY
def test_exactly_the_known_leaks(design):
    assert leaks(design, under(design, FIXED)) == known_leaks(design.name)


#: What parts of the kernel really ask for, as far as no policy is involved, for a node P.
ACTIVITIES = {
    "page fault near P": {"reason": Reason.FAULT},
    "page cache fill": {"reason": Reason.PAGECACHE},
    "alloc_pages_node(P)": {"reason": Reason.KERNEL},
    "THISNODE by a walker of possible nodes": {"reason": Reason.KERNEL, "this_node": True},
    "kmalloc_node(P)": {"reason": Reason.SLAB, "this_node": True},
    "per-node structures at hotplug": {"reason": Reason.HOTPLUG},
    "huge page pool of P": {"reason": Reason.HUGETLB, "this_node": True},
    "contiguous search by a walker of online nodes": {"reason": Reason.CONTIG, "this_node": True},
    "owner, THISNODE": {"reason": Reason.OWNER, "this_node": True, "private": True},
    "owner, preferred node only": {"reason": Reason.OWNER, "private": True},
    "contiguous range for the owner": {"reason": Reason.CONTIG, "this_node": True, "private": True},
    "message buffers of the device": {"reason": Reason.NETWORK, "this_node": True, "private": True},
}


@EVERY
def test_what_leaks_of_what_the_kernel_really_does(design):
    """P did not opt in to anything; a leak is a page on a private node that nobody invited."""
    topology = under(design, FIXED)
    lists = design.zonelists(topology)
    closed = 4
    leaking = []
    for name, what in ACTIVITIES.items():
        request = AllocRequest(closed, **what)
        reached = design.candidates(topology, lists, request, None)
        private = [topology.node(n) for n in reached if nodemask.has(topology.private, n)]
        if any(not design.invited(request, node) for node in private):
            leaking.append(name)
    union = ["owner, preferred node only"]
    expected = {
        "gfp-private": [],  # claimed on the list, but no list holds a second private node
        "no-fallback": [
            "THISNODE by a walker of possible nodes",
            "kmalloc_node(P)",
            "huge page pool of P",
            "contiguous search by a walker of online nodes",
        ],
        "no-fallback:task": [],
        "private-zonelist-per-node": [],
    }
    assert leaking == expected.get(design.name, union)


@EVERY
@given(machines())
@settings(max_examples=5, deadline=None)
def test_no_other_leak_on_any_machine(design, machine):
    nodes, distances = machine
    topology = under(design, (nodes[:4], tuple(row[:4] for row in distances[:4])))
    assert leaks(design, topology) <= known_leaks(design.name)


@EVERY
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_policy_that_is_accepted_never_takes_its_task_to_a_closed_node(design, data):
    """Through set_mempolicy, rebinds over random cpusets, and faults: only invited pages, in the cpuset, and
    always some node to try.
    """
    topology = under(design, data.draw(machines()))
    lists = design.zonelists(topology)
    rules, groups = design.policy_nodes(topology), design.cpuset_nodes(topology)
    mems = groups.top
    mode = data.draw(st.sampled_from(list(Mpol)[:6]))
    flags = data.draw(st.sampled_from([0, 0, 1 << 15, 1 << 14]))
    error, policy = mempolicy.new_policy(
        mode | flags, data.draw(st.integers(0, topology.online)), mems, rules
    )
    assert error in (0, -errno.EINVAL)
    group = cpuset.Cpuset.inheriting(mems)
    for _ in range(3):
        check_fault(design, topology, lists, policy, group.effective)
        change = cpuset.write_mems(group, data.draw(st.integers(0, topology.online)), mems, groups)
        group = change.cpuset
        policy = cpuset.rebind_task(policy, change, rules)
    check_fault(design, topology, lists, policy, group.effective)


def check_fault(design, topology, lists, policy, mems):
    rules = design.policy_nodes(topology)
    local = topology.cpu_nodes[0]
    turns = list(nodemask.nodes(policy.nodes)) if policy is not None and policy.nodes else [local]
    for turn in turns:
        request = mempolicy.request(policy, local, rules.reach(mems), turn)
        reached = design.candidates(topology, lists, request, mems)
        private = nodemask.of(reached) & topology.private
        assert all(design.invited(request, topology.node(nid)) for nid in nodemask.nodes(private))
        if policy is not None and policy.mode in (Mpol.BIND, Mpol.INTERLEAVE):
            held = policy.nodes & ~rules.ungoverned
            assert nodemask.is_subset(held, mems)
            assert reached
        if policy is not None:
            assert bool(policy.flags & mempolicy.MPOL_F_PRIVATE) == bool(policy.nodes & topology.private)


@EVERY
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_cpusets_always_keep_ordinary_memory(design, data):
    topology = under(design, data.draw(machines()))
    rules = design.cpuset_nodes(topology)
    group = cpuset.Cpuset.inheriting(rules.top)
    request = AllocRequest(topology.cpu_nodes[0], None, Reason.FAULT)
    lists = design.zonelists(topology)
    for _ in range(4):
        wanted = data.draw(st.integers(0, topology.online))
        change = cpuset.write_mems(group, wanted, rules.top, rules, populated=False)
        assert change.error in (0, -errno.EINVAL)
        group = change.cpuset
        assert group.effective and nodemask.is_subset(group.effective, rules.top)
        assert design.candidates(topology, lists, request, group.effective)


@EVERY
@given(st.integers(0, (1 << 23) - 1))
@settings(max_examples=50)
def test_grants_and_claims_agree(design, wish):
    granted = design.grant(Feature(wish) & OPENABLE)
    assert design.grant(granted) == granted
    assert not granted & Feature.PUBLIC
    error = design.claim_error(granted)
    assert error in (0, -errno.EINVAL)
    claim = Claim("driver", granted)
    assert design.reclaim_error(None, False, claim) == 0
    assert design.reclaim_error(None, True, claim) == -errno.EBUSY
    assert design.reclaim_error(claim, True, claim) == 0
    other = Claim("driver", granted ^ Feature.RECLAIM)
    assert design.reclaim_error(claim, False, other) in (0, -errno.EBUSY)
    assert design.claim_error(Feature.PUBLIC | Feature.DEMOTION) == -errno.EINVAL


@EVERY
@given(machines())
@settings(max_examples=20, deadline=None)
def test_services_and_states(design, machine):
    topology = under(design, machine)
    for node, service in product(topology.nodes, Service):
        answer = design.allows(service, node)
        assert answer in (True, False)
        assert answer or node.private
    assert not any(design.allows(Service.KHUGEPAGED, n) for n in topology.nodes if n.private)
    states = design.node_states(topology)
    assert nodemask.is_subset(states["has_memory"], topology.memory)
    assert nodemask.is_subset(topology.public, states["has_memory"])
    told = [mask for name, mask in states.items() if name != "has_memory"]
    assert topology.private in told or topology.public in told
    assert nodemask.is_subset(design.move_targets(topology), topology.memory)
    tiered = nodemask.of(
        n for n in nodemask.nodes(topology.memory) if design.allows(Service.TIER, topology.node(n))
    )
    assert nodemask.of(build_tiers(topology, tiered).targets) == tiered


@EVERY
def test_a_machine_without_private_nodes_is_linux(design):
    nodes, distances = FIXED
    plain = tuple(NodeTopology(n.nid, n.cpus, span_pages=1) for n in nodes)
    topology = HostTopology(plain, distances)
    lists = design.zonelists(topology)
    for request in all_requests(topology):
        if request.private:
            continue
        start = lists.nofallback if request.this_node else lists.fallback
        expected = [n for n in start[request.nid] if request.nodemask is None or request.nodemask >> n & 1]
        assert list(design.candidates(topology, lists, request, None)) == expected
    assert design.policy_nodes(topology).memory == design.move_targets(topology) == topology.memory
    assert design.cpuset_nodes(topology).top == topology.memory
