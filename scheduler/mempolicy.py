"""Memory policies: what set_mempolicy and mbind accept, and where a page of a policy goes.

Models `mm/mempolicy.c` of Linux 6.1: `sanitize_mpol_flags`, `mpol_new`, `mpol_set_nodemask`,
`mpol_rebind_*`, `policy_node`, `policy_nodemask`, `interleave_nodes`, `offset_il_node`, `do_get_mempolicy`.
Results are values: an errno is negative, as in the kernel. MPOL_WEIGHTED_INTERLEAVE is as in Linux 6.9, and
refused unless `PolicyNodes.weighted` says that the kernel is new enough. Left out: huge pages.

Private nodes come in through `PolicyNodes`, which the isolation design makes: no design is known here.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from privmem.scheduler import nodemask
from privmem.scheduler.abi import (
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_MODE_FLAGS,
    Mpol,
    Reason,
)
from privmem.scheduler.zonelist import AllocRequest

NUMA_NO_NODE = -1

#: `MPOL_F_NUMA_BALANCING` (Linux 5.12): accepted with MPOL_BIND only, whose pages NUMA balancing then moves among
#: the nodes of the policy.
MPOL_F_NUMA_BALANCING = 1 << 13
_MODE_FLAGS = MPOL_MODE_FLAGS | MPOL_F_NUMA_BALANCING

#: Internal mark of a policy that holds a private node (the series' MPOL_F_PRIVATE): never taken from a user nor
#: shown to one. It is what makes a fault ask for private memory.
MPOL_F_PRIVATE = 1 << 5

INTERLEAVES = (Mpol.INTERLEAVE, Mpol.WEIGHTED_INTERLEAVE)
#: Modes whose nodes follow the cpuset (`mpol_rebind_nodemask`).
_REBOUND = (Mpol.BIND, *INTERLEAVES)

#: `il_prev` of a task whose interleaving starts anew (the kernel's MAX_NUMNODES - 1): the next node is the
#: first one.
IL_PREV_NONE = 1 << 16


@dataclass(frozen=True, slots=True)
class PolicyNodes:
    """What a policy may be about on a host under its isolation design: masks that the design makes from the
    topology.
    """

    #: Nodes that a policy may place on: general nodes and those private nodes that opted in.
    memory: int
    #: Private members of `memory`: a policy that holds one is marked.
    private: int = 0
    #: Members of `memory` that only MPOL_BIND may keep; other modes lose them silently.
    bind_only: int = 0
    #: Members of `memory` that MPOL_BIND may hold alone only, EINVAL otherwise; a rebind drops them first.
    alone: int = 0
    #: Nodes whose mention is refused with EINVAL, whatever else is named.
    refused: int = 0
    #: Nodes whose mention in a mode other than MPOL_BIND is refused with EINVAL.
    refused_unless_bind: int = 0
    #: Members of `memory` that no cpuset governs: policies may hold them whatever the cpuset's mems are.
    ungoverned: int = 0
    #: Private nodes that did not opt in: no positions when a policy is remapped, though a cpuset may hold them,
    #: and never its destination. A driver's own policy keeps one as long as the cpuset does.
    uncounted: int = 0
    #: Nodes that get_mempolicy with MPOL_F_MEMS_ALLOWED may show.
    shown: int = -1
    #: Nodes that cannot be the home of a policy.
    no_home: int = 0
    #: Whether MPOL_WEIGHTED_INTERLEAVE exists (Linux 6.9).
    weighted: bool = False

    def reach(self, mems: int) -> int:
        """The nodes that policies of a task with these mems may use: cpusets do not govern all of them."""
        return mems | self.ungoverned

    def shown_mems(self, mems: int) -> int:
        """What get_mempolicy with MPOL_F_MEMS_ALLOWED answers."""
        return self.reach(mems) & self.shown


@dataclass(frozen=True, slots=True)
class Mempolicy:
    """`struct mempolicy`. The default policy is None, never an object."""

    mode: Mpol
    flags: int
    #: Nodes in effect: the user's, contextualised to the cpuset.
    nodes: int
    #: The kernel's union `w`: with a mode flag the user's mask as given (`user_nodemask`), else the
    #: cpuset's mems at the last (re)bind (`cpuset_mems_allowed`). One field on purpose:
    #: `mpol_rebind_preferred` writes the union without looking at the flags, and get_mempolicy shows it.
    w: int
    home_node: int = NUMA_NO_NODE

    @property
    def stores_user_nodemask(self) -> bool:
        """`mpol_store_user_nodemask`."""
        return bool(self.flags & _MODE_FLAGS)

    def to_spec(self) -> list[int]:
        """Plain form, inverse of `from_spec`."""
        return [int(self.mode), self.flags, self.nodes, self.w, self.home_node]

    @staticmethod
    def from_spec(spec: list[Any]) -> Mempolicy:
        """From `to_spec`'s list."""
        mode, flags, nodes, w, home_node = spec
        return Mempolicy(Mpol(mode), flags, nodes, w, home_node)


def new_policy(mode_arg: int, user_nodes: int, mems: int, rules: PolicyNodes) -> tuple[int, Mempolicy | None]:
    """`sanitize_mpol_flags`, `mpol_new` and `mpol_set_nodemask`: (0, policy; None is the default) or
    (-errno, None).

    `mode_arg` is the system call's argument with its flags, `mems` the task's effective cpuset mems.
    """
    error, mode, flags = sanitize_mode(mode_arg, rules.weighted)
    if error:
        return error, None
    error, policy = mpol_new(mode, flags, user_nodes)
    if error or policy is None:
        return error, None
    return set_nodemask(policy, user_nodes, mems, rules)


def sanitize_mode(mode_arg: int, weighted: bool = False) -> tuple[int, Mpol, int]:
    """`sanitize_mpol_flags`: (0, mode, flags) or (-EINVAL, DEFAULT, 0). `weighted`: see PolicyNodes."""
    refused = (-errno.EINVAL, Mpol.DEFAULT, 0)
    flags = mode_arg & _MODE_FLAGS
    mode = mode_arg & ~_MODE_FLAGS
    if not 0 <= mode <= (Mpol.WEIGHTED_INTERLEAVE if weighted else Mpol.PREFERRED_MANY):
        return refused
    if flags & MPOL_F_STATIC_NODES and flags & MPOL_F_RELATIVE_NODES:
        return refused
    if flags & MPOL_F_NUMA_BALANCING and mode != Mpol.BIND:
        return refused
    return 0, Mpol(mode), flags


def mpol_new(mode: Mpol, flags: int, user_nodes: int) -> tuple[int, Mempolicy | None]:
    """`mpol_new`: a policy that does not know its nodes yet; EINVAL when mode, flags and mask do not fit
    together.
    """
    if mode == Mpol.DEFAULT:
        return (-errno.EINVAL if user_nodes else 0), None
    if mode == Mpol.LOCAL:
        if user_nodes or flags & MPOL_MODE_FLAGS:
            return -errno.EINVAL, None
    elif mode == Mpol.PREFERRED and not user_nodes:
        if flags & MPOL_MODE_FLAGS:
            return -errno.EINVAL, None
        mode = Mpol.LOCAL
    elif not user_nodes:
        return -errno.EINVAL, None
    return 0, Mempolicy(mode, flags, 0, 0)


def set_nodemask(
    policy: Mempolicy, user_nodes: int, mems: int, rules: PolicyNodes
) -> tuple[int, Mempolicy | None]:
    """`mpol_set_nodemask`: fit the user's mask to the cpuset; EINVAL when nothing is left."""
    if policy.mode == Mpol.LOCAL:
        return 0, policy
    nodes = _contextualise(policy, user_nodes, (mems | rules.ungoverned) & rules.memory)
    # With RELATIVE the user's bits are positions, and name whatever nodes are there.
    named = nodes if policy.flags & MPOL_F_RELATIVE_NODES else user_nodes
    if named & rules.refused:
        return -errno.EINVAL, None
    if policy.mode != Mpol.BIND:
        if named & rules.refused_unless_bind:
            return -errno.EINVAL, None
        nodes &= ~rules.bind_only
    if not nodes or (nodes & rules.alone and nodemask.weight(nodes) > 1):
        return -errno.EINVAL, None
    if policy.mode == Mpol.PREFERRED:
        nodes = 1 << nodemask.first(nodes)
    stored = user_nodes if policy.stores_user_nodemask else mems
    return 0, _marked(replace(policy, nodes=nodes, w=stored), rules)


def _marked(policy: Mempolicy, rules: PolicyNodes) -> Mempolicy:
    """The mark follows the nodes in effect."""
    marked = policy.nodes & (rules.private | rules.uncounted)
    flags = policy.flags & ~MPOL_F_PRIVATE | (MPOL_F_PRIVATE if marked else 0)
    return replace(policy, flags=flags)


def _contextualise(policy: Mempolicy, user_nodes: int, context: int) -> int:
    if policy.flags & MPOL_F_RELATIVE_NODES:
        return relative_nodemask(user_nodes, context)
    return user_nodes & context


def relative_nodemask(user_nodes: int, relative_to: int) -> int:
    """`mpol_relative_nodemask`: bit n is the n-th node (modulo their number) of `relative_to`."""
    size = nodemask.weight(relative_to)
    return nodemask.onto(nodemask.fold(user_nodes, size), relative_to) if size else 0


def rebind(policy: Mempolicy | None, mems: int, rules: PolicyNodes) -> Mempolicy | None:
    """`mpol_rebind_policy`: the policy after its task's cpuset got `mems`.

    MPOL_PREFERRED and PREFERRED_MANY keep their nodes (6.1 only notes the new mems, over a stored user mask
    as well). A remap never lets a mode other than BIND gain a `bind_only` node, nor any policy a node that is
    not in `memory`. Nodes that no cpuset governs stay as they are; a driver's own policy on a node that did not
    opt in is carried along while the cpuset has the node, and binds to nothing afterwards.
    """
    if policy is None or policy.mode == Mpol.LOCAL:
        return policy
    if not policy.stores_user_nodemask and policy.w == mems:
        return policy
    if policy.mode not in _REBOUND:
        return replace(policy, w=mems)
    reach = rules.reach(mems)
    apart = rules.ungoverned | rules.uncounted
    stored, carried = policy.w, policy.nodes & rules.uncounted & mems
    if policy.flags & MPOL_F_STATIC_NODES:
        nodes = policy.w & reach
    elif policy.flags & MPOL_F_RELATIVE_NODES:
        nodes = relative_nodemask(policy.w, reach & rules.memory)
    else:
        nodes = nodemask.remap(policy.nodes & ~apart, policy.w & ~apart, mems & ~apart)
        stored, carried = mems, carried | policy.nodes & rules.ungoverned
    keeps = rules.memory if policy.mode == Mpol.BIND else rules.memory & ~rules.bind_only
    nodes &= keeps
    if not nodes and policy.nodes & ~apart:
        nodes = mems & keeps & ~rules.bind_only or mems & keeps
    nodes |= carried
    if nodes & ~rules.alone and nodemask.weight(nodes) > 1:
        nodes &= ~rules.alone
    return _marked(replace(policy, nodes=nodes, w=stored), rules)


def without_nodes(policy: Mempolicy | None, gone: int) -> Mempolicy | None:
    """A policy that forgets these nodes; one that named nothing else becomes the default."""
    if policy is None or policy.mode == Mpol.LOCAL or not (policy.nodes | policy.w) & gone:
        return policy
    nodes = policy.nodes & ~gone
    return replace(policy, nodes=nodes, w=policy.w & ~gone) if nodes else None


def request(
    policy: Mempolicy | None,
    local_nid: int,
    mems: int,
    interleave_nid: int = NUMA_NO_NODE,
    movable: bool = True,
    normal_zone: int = -1,
) -> AllocRequest:
    """`policy_node` and `policy_nodemask`: what the allocator is asked for under a policy.

    `local_nid` is the CPU's node, `mems` what the task's policies may use (`PolicyNodes.reach`). With
    MPOL_INTERLEAVE the caller worked out the turn (`offset_il_node` or `interleave_nodes`, with their weighted
    forms). `normal_zone` are the nodes that take unmovable pages: a
    policy on movable-only nodes does not bind those (`apply_policy_zone`). A marked policy asks for private
    memory; where it does not bind, the request is an ordinary one.
    """
    if policy is None or policy.mode == Mpol.LOCAL:
        return AllocRequest(local_nid, None, Reason.FAULT, movable=movable)
    marked = bool(policy.flags & MPOL_F_PRIVATE)
    nid, mask, retry = local_nid, None, False
    if policy.mode in INTERLEAVES:
        nid = interleave_nid
    elif policy.mode == Mpol.PREFERRED:
        nid = nodemask.first(policy.nodes)
    else:
        nid = policy.home_node if policy.home_node != NUMA_NO_NODE else local_nid
        retry = policy.mode == Mpol.PREFERRED_MANY
        binds = retry or (policy.nodes & mems and (movable or policy.nodes & normal_zone))
        mask = policy.nodes if binds else None
        marked = marked and bool(binds)
    return AllocRequest(nid, mask, Reason.POLICY, movable=movable, private=marked, retry_unmasked=retry)


def interleave_next(policy: Mempolicy, il_prev: int) -> tuple[int, int]:
    """`interleave_nodes`: (node of this turn, the task's new `il_prev`)."""
    nid = nodemask.next_in(il_prev, policy.nodes)
    return nid, nid


def offset_il_node(policy: Mempolicy, offset: int, local_nid: int) -> int:
    """`offset_il_node`: the node of page `offset` of an interleaved range. (6.1 takes the offset's low 32 bits.)"""
    size = nodemask.weight(policy.nodes)
    if size == 0:
        return local_nid
    return nodemask.nth(policy.nodes, offset % size)


# -- weighted interleaving (Linux 6.9)

#: Weights of `/sys/kernel/mm/mempolicy/weighted_interleave/nodeN`; a node without one has the default.
WEIGHT_DEFAULT, WEIGHT_MAX = 1, 255

Weights = Mapping[int, int]


def weight_error(text: str) -> int:
    """`node_store`: 0 for a weight that the file takes (empty or 0 for the default), -EINVAL otherwise."""
    if text == "":
        return 0
    return 0 if text.isascii() and text.isdecimal() and int(text) <= WEIGHT_MAX else -errno.EINVAL


def weighted_interleave_next(
    policy: Mempolicy, il_prev: int, il_weight: int, weights: Weights
) -> tuple[int, int, int]:
    """`weighted_interleave_nodes`: (node of this turn, the task's new `il_prev`, what is left of its weight)."""
    nid = il_prev
    if not il_weight or not nodemask.has(policy.nodes, nid):
        nid = nodemask.next_in(nid, policy.nodes)
        il_weight = weights.get(nid, WEIGHT_DEFAULT)
    return nid, nid, il_weight - 1


def weighted_interleave_nid(policy: Mempolicy, offset: int, local_nid: int, weights: Weights) -> int:
    """`weighted_interleave_nid`: the node of page `offset` of a range, which repeats after the sum of weights."""
    if not policy.nodes:
        return local_nid
    shares = [(nid, weights.get(nid, WEIGHT_DEFAULT)) for nid in nodemask.nodes(policy.nodes)]
    target = offset % sum(share for _, share in shares)
    for nid, share in shares:
        if target < share:
            return nid
        target -= share
    raise AssertionError("the offset is below the sum")


# -- home nodes (Linux 5.17)


def home_node_error(nid: int, online: int, rules: PolicyNodes) -> int:
    """`set_mempolicy_home_node`: the node must be online, and one that the design lets be a home."""
    return 0 if nodemask.has(online & ~rules.no_home, nid) else -errno.EINVAL


def with_home_node(policy: Mempolicy, nid: int) -> tuple[int, Mempolicy]:
    """The policy of one VMA with a home node: only MPOL_BIND and PREFERRED_MANY have one, EOPNOTSUPP else."""
    if policy.mode not in (Mpol.BIND, Mpol.PREFERRED_MANY):
        return -errno.EOPNOTSUPP, policy
    return 0, replace(policy, home_node=nid)


# -- NUMA balancing


def balances(policy: Mempolicy | None) -> bool:
    """`vma_policy_mof`: NUMA balancing may work on pages under this policy. The default policy lets it; one that
    somebody set does so with MPOL_F_NUMA_BALANCING only.
    """
    return policy is None or bool(policy.flags & MPOL_F_NUMA_BALANCING)


def misplaced(policy: Mempolicy | None, page_nid: int, cpu_nid: int) -> int:
    """`mpol_misplaced`: the node to which a page that a CPU used should move, -1 for none. Towards that CPU, and
    under a policy only to a node that it holds.
    """
    if page_nid == cpu_nid or not balances(policy):
        return -1
    return cpu_nid if policy is None or nodemask.has(policy.nodes, cpu_nid) else -1


# -- what get_mempolicy shows


def shown_mode(policy: Mempolicy | None) -> int:
    """The mode word that get_mempolicy answers."""
    return 0 if policy is None else int(policy.mode) | (policy.flags & _MODE_FLAGS)


def shown_nodes(policy: Mempolicy | None) -> int:
    """The mask that get_mempolicy answers: the user's when it was stored (`get_policy_nodemask` otherwise)."""
    if policy is None:
        return 0
    if policy.stores_user_nodemask:
        return policy.w
    return 0 if policy.mode == Mpol.LOCAL else policy.nodes
