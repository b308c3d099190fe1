"""Memory policies: errno, contextualising, rebinding, requests, and get_mempolicy's answers."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privmem.scheduler import nodemask
from privmem.scheduler.abi import MPOL_F_RELATIVE_NODES as RELATIVE
from privmem.scheduler.abi import MPOL_F_STATIC_NODES as STATIC
from privmem.scheduler.abi import Mpol, Reason
from privmem.scheduler.mempolicy import (
    IL_PREV_NONE,
    MPOL_F_NUMA_BALANCING,
    MPOL_F_PRIVATE,
    Mempolicy,
    PolicyNodes,
    balances,
    home_node_error,
    interleave_next,
    misplaced,
    new_policy,
    offset_il_node,
    rebind,
    relative_nodemask,
    request,
    shown_mode,
    shown_nodes,
    weight_error,
    weighted_interleave_next,
    weighted_interleave_nid,
    with_home_node,
)
from privmem.scheduler.zonelist import AllocRequest

ALL = 0b1111
RULES = PolicyNodes(memory=ALL)
EINVAL = (-errno.EINVAL, None)
masks = st.integers(0, 63)


def make(mode, nodes, mems=ALL, rules=RULES):
    error, policy = new_policy(mode, nodes, mems, rules)
    assert error == 0 and policy is not None
    return policy


@pytest.mark.parametrize(
    ("mode", "nodes"),
    [
        (Mpol.DEFAULT, 0b1),
        (Mpol.LOCAL, 0b1),
        (Mpol.LOCAL | STATIC, 0),
        (Mpol.PREFERRED | STATIC, 0),
        (Mpol.PREFERRED | RELATIVE, 0),
        (Mpol.BIND, 0),
        (Mpol.INTERLEAVE, 0),
        (Mpol.PREFERRED_MANY, 0),
        (Mpol.BIND, 0b10000),  # no such node: nothing is left
        (Mpol.BIND | STATIC | RELATIVE, 0b1),
        (Mpol.INTERLEAVE | MPOL_F_NUMA_BALANCING, 0b1),
        (6, 0b1),  # weighted interleave is not of 6.1
        (-1, 0b1),
    ],
)
def test_refused(mode, nodes):
    assert new_policy(mode, nodes, ALL, RULES) == EINVAL


def test_default_is_no_object():
    assert new_policy(Mpol.DEFAULT, 0, ALL, RULES) == (0, None)
    assert new_policy(Mpol.DEFAULT | STATIC, 0, ALL, RULES) == (0, None)


def test_preferred_without_nodes_is_local():
    assert make(Mpol.PREFERRED, 0) == Mempolicy(Mpol.LOCAL, 0, 0, 0)


def test_preferred_takes_the_first_node():
    assert make(Mpol.PREFERRED, 0b1100) == Mempolicy(Mpol.PREFERRED, 0, 0b0100, ALL)


def test_nodes_are_cut_to_the_cpuset():
    assert make(Mpol.BIND, 0b1101, mems=0b0111) == Mempolicy(Mpol.BIND, 0, 0b0101, 0b0111)
    assert new_policy(Mpol.BIND, 0b1000, 0b0111, RULES) == EINVAL


def test_relative_nodes_are_positions():
    policy = make(Mpol.BIND | RELATIVE, 0b100100, mems=0b1010)
    assert policy == Mempolicy(Mpol.BIND, RELATIVE, 0b1010, 0b100100)


@given(masks, masks)
def test_relative_nodemask_by_counting(user, mems):
    members = list(nodemask.nodes(mems))
    expected = {members[n % len(members)] for n in nodemask.nodes(user)} if members else set()
    assert set(nodemask.nodes(relative_nodemask(user, mems))) == expected


def test_private_nodes_are_for_bind_only():
    rules = PolicyNodes(memory=0b0111, bind_only=0b0100)
    assert make(Mpol.BIND, 0b0100, rules=rules).nodes == 0b0100
    assert make(Mpol.BIND, 0b1001, rules=rules).nodes == 0b0001  # node 3 did not opt in
    assert make(Mpol.INTERLEAVE, 0b0101, rules=rules).nodes == 0b0001
    assert new_policy(Mpol.INTERLEAVE, 0b0100, ALL, rules) == EINVAL
    assert new_policy(Mpol.BIND, 0b1000, ALL, rules) == EINVAL


def test_designs_may_refuse_instead_of_narrowing():
    whole = PolicyNodes(memory=0b0111, refused=0b1000)
    assert new_policy(Mpol.BIND, 0b1001, ALL, whole) == EINVAL
    strict = PolicyNodes(memory=0b0111, bind_only=0b0100, refused_unless_bind=0b0100)
    assert new_policy(Mpol.INTERLEAVE, 0b0101, ALL, strict) == EINVAL
    assert make(Mpol.BIND, 0b0101, rules=strict).nodes == 0b0101


def test_rebind_remaps_and_is_not_undone():
    bound = make(Mpol.BIND, 0b0011)
    moved = rebind(bound, 0b1100, RULES)
    assert moved == Mempolicy(Mpol.BIND, 0, 0b1100, 0b1100)
    narrowed = rebind(moved, 0b0001, RULES)
    assert narrowed == Mempolicy(Mpol.BIND, 0, 0b0001, 0b0001)
    assert rebind(narrowed, ALL, RULES) == Mempolicy(Mpol.BIND, 0, 0b0001, ALL)


def test_static_returns_to_its_nodes():
    static = make(Mpol.BIND | STATIC, 0b0110)
    away = rebind(static, 0b1001, RULES)
    assert away == Mempolicy(Mpol.BIND, STATIC, 0b1001, 0b0110)  # nothing left: all of the cpuset
    assert rebind(away, 0b0111, RULES) == static


def test_relative_is_derived_again_from_the_user_mask():
    relative = make(Mpol.INTERLEAVE | RELATIVE, 1 << 8, mems=0b0111)
    assert relative.nodes == 0b0100  # 8 mod 3
    assert rebind(relative, 0b1010, RULES) == Mempolicy(Mpol.INTERLEAVE, RELATIVE, 0b0010, 1 << 8)


def test_preferred_keeps_its_node_and_forgets_the_user_mask():
    """6.1's mpol_rebind_preferred writes the union `w` whatever the flags: get_mempolicy then shows the
    mems.
    """
    static = make(Mpol.PREFERRED | STATIC, 0b0110)
    assert (static.nodes, shown_nodes(static)) == (0b0010, 0b0110)
    after = rebind(static, 0b1001, RULES)
    assert after == Mempolicy(Mpol.PREFERRED, STATIC, 0b0010, 0b1001)
    assert shown_nodes(after) == 0b1001


def test_rebind_leaves_default_local_and_unchanged_mems_alone():
    local = make(Mpol.LOCAL, 0)
    bound = make(Mpol.BIND, 0b0011)
    assert rebind(None, 0b1, RULES) is None
    assert rebind(local, 0b1, RULES) is local
    assert rebind(bound, ALL, RULES) is bound


def test_rebind_gives_private_nodes_to_bind_only():
    rules = PolicyNodes(memory=ALL, bind_only=0b1000)
    mems, after = 0b0011, 0b1001
    assert rebind(make(Mpol.BIND, 0b0010, mems, rules), after, rules).nodes == 0b1000
    assert rebind(make(Mpol.INTERLEAVE, 0b0010, mems, rules), after, rules).nodes == 0b0001


def test_requests():
    def ask(mode, nodes, mems=ALL, **rest):
        return request(make(mode, nodes), 1, mems, **rest)

    assert request(None, 1, ALL) == AllocRequest(1, None, Reason.FAULT)
    assert ask(Mpol.LOCAL, 0) == AllocRequest(1, None, Reason.FAULT)
    assert ask(Mpol.PREFERRED, 0b1100) == AllocRequest(2, None, Reason.POLICY)
    assert ask(Mpol.BIND, 0b1100) == AllocRequest(1, 0b1100, Reason.POLICY)
    assert ask(Mpol.PREFERRED_MANY, 0b1100) == AllocRequest(1, 0b1100, Reason.POLICY, retry_unmasked=True)
    assert ask(Mpol.INTERLEAVE, 0b1100, interleave_nid=3) == AllocRequest(3, None, Reason.POLICY)


def test_bind_outside_the_cpuset_does_not_bind():
    bound = make(Mpol.BIND, 0b1100)
    assert request(bound, 1, 0b0011).nodemask is None
    assert request(bound, 1, 0b0110).nodemask == 0b1100


def test_bind_to_movable_nodes_does_not_bind_kernel_pages():
    bound = make(Mpol.BIND, 0b1000)
    assert request(bound, 1, ALL, movable=False, normal_zone=0b0111).nodemask is None
    assert request(bound, 1, ALL, movable=True, normal_zone=0b0111).nodemask == 0b1000


def test_home_node_starts_the_walk():
    bound = Mempolicy(Mpol.BIND, 0, 0b1100, ALL, home_node=3)
    assert request(bound, 0, ALL).nid == 3


def test_interleave_counter_takes_turns():
    policy = make(Mpol.INTERLEAVE, 0b1101)
    turns, il_prev = [], IL_PREV_NONE
    for _ in range(5):
        nid, il_prev = interleave_next(policy, il_prev)
        turns.append(nid)
    assert turns == [0, 2, 3, 0, 2]


@given(st.integers(1, 63), st.integers(0, 1 << 40))
def test_offset_interleave(nodes, offset):
    policy = Mempolicy(Mpol.INTERLEAVE, 0, nodes, ALL)
    members = list(nodemask.nodes(nodes))
    assert offset_il_node(policy, offset, 0) == members[offset % len(members)]


def test_what_get_mempolicy_shows():
    assert (shown_mode(None), shown_nodes(None)) == (0, 0)
    static = make(Mpol.BIND | STATIC, 0b10110)
    assert (shown_mode(static), shown_nodes(static)) == (2 | STATIC, 0b10110)
    assert shown_nodes(make(Mpol.BIND, 0b10110)) == 0b0110
    assert (shown_mode(make(Mpol.PREFERRED, 0)), shown_nodes(make(Mpol.PREFERRED, 0))) == (4, 0)


def test_spec_round_trip():
    policy = make(Mpol.BIND | STATIC, 0b0110)
    assert Mempolicy.from_spec(policy.to_spec()) == policy


# -- private nodes

D0, D1, P, Q = 0b0001, 0b0010, 0b0100, 0b1000
GOVERNED = PolicyNodes(memory=D0 | D1 | P, private=P, bind_only=P, uncounted=Q)
FREE = PolicyNodes(memory=D0 | D1 | P, private=P, bind_only=P, ungoverned=P, uncounted=Q)


def test_a_policy_with_a_private_node_is_marked_and_asks_for_private_memory():
    bound = make(Mpol.BIND, D0 | P, rules=GOVERNED)
    assert bound == Mempolicy(Mpol.BIND, MPOL_F_PRIVATE, D0 | P, ALL)
    assert request(bound, 0, ALL) == AllocRequest(0, D0 | P, Reason.POLICY, private=True)
    assert (shown_mode(bound), bound.stores_user_nodemask) == (Mpol.BIND, False)
    assert make(Mpol.BIND, D0, rules=GOVERNED).flags == 0
    assert new_policy(Mpol.BIND | MPOL_F_PRIVATE, D0, ALL, GOVERNED) == EINVAL  # no user gives the mark


def test_a_marked_policy_that_does_not_bind_is_an_ordinary_request():
    bound = make(Mpol.BIND, P, rules=GOVERNED)
    assert request(bound, 1, D0 | D1) == AllocRequest(1, None, Reason.POLICY)
    assert request(bound, 1, ALL, movable=False, normal_zone=D0 | D1) == AllocRequest(
        1, None, Reason.POLICY, movable=False
    )


def test_alone_and_refused():
    rules = PolicyNodes(memory=D0 | D1 | P, private=P, bind_only=P, alone=P, refused=Q)
    assert make(Mpol.BIND, P, rules=rules).nodes == P
    assert new_policy(Mpol.BIND, D0 | P, ALL, rules) == EINVAL
    assert new_policy(Mpol.BIND, D0 | Q, ALL, rules) == EINVAL
    named = new_policy(Mpol.BIND | RELATIVE, 1 << 3, ALL, rules)[1]  # a position, not node 3
    assert named.nodes == D0


def test_modes_other_than_bind_may_be_refused():
    rules = PolicyNodes(memory=ALL, private=P, bind_only=P, refused_unless_bind=P | Q)
    assert new_policy(Mpol.INTERLEAVE, D0 | P, ALL, rules) == EINVAL
    assert new_policy(Mpol.PREFERRED, D0 | Q, ALL, rules) == EINVAL
    assert make(Mpol.BIND, D0 | P, rules=rules).nodes == D0 | P


def test_rebind_may_hand_over_an_opted_in_node_with_its_mark():
    bound = make(Mpol.BIND, D1, D0 | D1, GOVERNED)
    assert rebind(bound, D0 | P, GOVERNED) == Mempolicy(Mpol.BIND, MPOL_F_PRIVATE, P, D0 | P)


def test_rebind_never_lands_on_a_closed_node():
    """R1 of the rebind gate: P is swapped for Q, which takes its position."""
    bound = make(Mpol.BIND, P, D0 | P, GOVERNED)
    assert rebind(bound, D0 | Q, GOVERNED) == Mempolicy(Mpol.BIND, 0, D0, D0 | Q)
    interleaved = make(Mpol.INTERLEAVE, D0 | D1, D0 | D1, GOVERNED)
    assert rebind(interleaved, D0 | P, GOVERNED).nodes == D0


def test_a_drivers_policy_is_carried_while_the_cpuset_has_the_node():
    """R2 and R3: it is not moved onto P when the cpuset grows, and binds to nothing once Q has gone."""
    driver = Mempolicy(Mpol.BIND, MPOL_F_PRIVATE, Q, D0 | Q)
    assert rebind(driver, D0 | P | Q, GOVERNED).nodes == Q
    gone = rebind(driver, D0, GOVERNED)
    assert gone == Mempolicy(Mpol.BIND, 0, 0, D0)
    assert request(gone, 0, D0) == AllocRequest(0, None, Reason.POLICY)


def test_closed_nodes_are_no_positions():
    relative = make(Mpol.BIND | RELATIVE, 1 << 2, D0 | D1 | Q, GOVERNED)
    assert relative.nodes == D0  # 2 mod 2
    eight = make(Mpol.BIND | RELATIVE, 1 << 8, D0 | D1 | P, GOVERNED)
    assert eight.nodes == P  # 8 mod 3
    assert rebind(eight, D1 | P, GOVERNED).nodes == D1  # 8 mod 2
    assert rebind(eight, D0 | D1 | P | Q, GOVERNED).nodes == P


def test_static_comes_back_and_default_does_not():
    for flag, after in ((STATIC, D1), (0, D0)):
        bound = make(Mpol.BIND | flag, D1, D0 | D1, GOVERNED)
        away = rebind(bound, D0, GOVERNED)
        assert away.nodes == D0
        assert rebind(away, D0 | D1, GOVERNED).nodes == after


def test_nodes_that_no_cpuset_governs():
    bound = make(Mpol.BIND, P, D0, FREE)
    assert bound == Mempolicy(Mpol.BIND, MPOL_F_PRIVATE, P, D0)
    assert rebind(bound, D0 | D1, FREE).nodes == P
    assert request(bound, 0, FREE.reach(D0)).nodemask == P
    assert request(bound, 0, D0).nodemask is None
    both = make(Mpol.BIND, D0 | P, D0, FREE)
    assert rebind(both, D1, FREE).nodes == D1 | P
    relative = make(Mpol.BIND | RELATIVE, 1 << 1, D0, FREE)  # positions: D0 and P
    assert (relative.nodes, rebind(relative, D1, FREE).nodes) == (P, P)
    assert rebind(relative, D0 | D1, FREE).nodes == D1
    assert new_policy(Mpol.BIND, D1, D0, FREE) == EINVAL  # general nodes stay governed
    assert (FREE.shown_mems(D0), GOVERNED.shown_mems(D0)) == (D0 | P, D0)


def test_what_is_shown_of_the_mems():
    rules = PolicyNodes(memory=D0 | P, private=P, shown=~Q)
    assert rules.shown_mems(ALL) == D0 | D1 | P


# -- Linux 6.9, 5.17

WEIGHTED = PolicyNodes(memory=ALL, weighted=True)


def test_weighted_interleave_needs_a_new_kernel():
    assert new_policy(Mpol.WEIGHTED_INTERLEAVE, D0 | D1, ALL, RULES) == EINVAL
    assert make(Mpol.WEIGHTED_INTERLEAVE, D0 | D1, rules=WEIGHTED).nodes == D0 | D1
    assert new_policy(7, D0, ALL, WEIGHTED) == EINVAL
    assert rebind(make(Mpol.WEIGHTED_INTERLEAVE, D1, rules=WEIGHTED), D0, WEIGHTED).nodes == D0


def test_weighted_turns_by_counter():
    policy = make(Mpol.WEIGHTED_INTERLEAVE, D0 | D1 | Q, rules=WEIGHTED)
    weights, state, turns = {0: 3, 3: 2}, (IL_PREV_NONE, 0), []
    for _ in range(8):
        nid, *state = weighted_interleave_next(policy, *state, weights)
        turns.append(nid)
    assert turns == [0, 0, 0, 1, 3, 3, 0, 0]
    moved = make(Mpol.WEIGHTED_INTERLEAVE, D1, rules=WEIGHTED)
    assert weighted_interleave_next(moved, 0, 1, weights) == (1, 1, 0)  # its node has gone


def test_weighted_turns_by_offset():
    policy = make(Mpol.WEIGHTED_INTERLEAVE, D0 | D1 | Q, rules=WEIGHTED)
    weights = {0: 3, 3: 2}
    assert [weighted_interleave_nid(policy, n, 1, weights) for n in range(8)] == [0, 0, 0, 1, 3, 3, 0, 0]
    assert weighted_interleave_nid(Mempolicy(Mpol.WEIGHTED_INTERLEAVE, 0, 0, ALL), 5, 1, weights) == 1


def test_weights():
    answers = {text: weight_error(text) for text in ("", "0", "1", "255", "256", "-1", "x", "1.5")}
    assert [text for text, error in answers.items() if not error] == ["", "0", "1", "255"]
    assert set(answers.values()) == {0, -errno.EINVAL}


def test_home_nodes():
    bound = make(Mpol.BIND, D0 | D1)
    assert with_home_node(bound, 1) == (0, Mempolicy(Mpol.BIND, 0, D0 | D1, ALL, home_node=1))
    interleaved = make(Mpol.INTERLEAVE, D0)
    assert with_home_node(interleaved, 1) == (-errno.EOPNOTSUPP, interleaved)
    rules = PolicyNodes(memory=ALL, no_home=P)
    assert [home_node_error(nid, D0 | P, rules) for nid in (0, 1, 2, -1)] == [0, *[-errno.EINVAL] * 3]


def test_numa_balancing_of_pages_under_a_policy():
    bound = make(Mpol.BIND | MPOL_F_NUMA_BALANCING, D0 | D1)
    assert [balances(p) for p in (None, bound, make(Mpol.BIND, D0), make(Mpol.LOCAL, 0))] == [
        True,
        True,
        False,
        False,
    ]
    assert [misplaced(bound, 0, cpu) for cpu in (0, 1, 2)] == [-1, 1, -1]
    assert misplaced(None, 0, 2) == 2
    assert misplaced(make(Mpol.BIND, D0 | D1), 0, 1) == -1
