"""Why a call about memory policies or moves was refused, in words: for the story of a page (story.py).

Asks the same rules in the same order as `mempolicy.new_policy` and `numa_syscalls`, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from privmem.nodeagent.host.story import node_words
from privmem.nodeagent.host.task import Task
from privmem.scheduler import mempolicy, nodemask
from privmem.scheduler.abi import Mpol


def policy_refusal(task: Task, mode_arg: int, user_nodes: int) -> str:
    """Why set_mempolicy or mbind answered EINVAL for this mode and mask; empty when the mask is not to blame."""
    rules = task.resolver.policy_nodes
    error, mode, flags = mempolicy.sanitize_mode(mode_arg, rules.weighted)
    if error:
        return "the mode is unknown, or its flags exclude each other"
    error, policy = mempolicy.mpol_new(mode, flags, user_nodes)
    if error:
        return f"the mode {mode.name.lower()} does not go with {_mask(user_nodes)} and these flags"
    if policy is None or not mempolicy.set_nodemask(policy, user_nodes, task.mems_allowed, rules)[0]:
        return ""
    design = task.resolver.design.name
    closed = user_nodes & task.resolver.topology.private & ~rules.memory
    reasons = []
    if user_nodes & rules.refused:
        reasons.append(f"{design}: {_mask(user_nodes & rules.refused)} may not be named by a policy")
    elif closed:
        reasons.append(f"{design}: private {_mask(closed)} not opted in to policies")
    if mode != Mpol.BIND and user_nodes & (rules.refused_unless_bind | rules.bind_only):
        only = user_nodes & (rules.refused_unless_bind | rules.bind_only)
        reasons.append(f"{design}: {_mask(only)} may be named by a bind only")
    if user_nodes & rules.alone and nodemask.weight(user_nodes) > 1:
        reasons.append(f"{design}: private {_mask(user_nodes & rules.alone)} may be bound to alone only")
    outside = user_nodes & rules.memory & ~rules.reach(task.mems_allowed)
    if outside:
        reasons.append(f"{_mask(outside)} outside of the cpuset's mems {_mask(task.mems_allowed)}")
    empty = user_nodes & ~task.resolver.topology.memory
    if empty:
        reasons.append(f"{_mask(empty)} without memory")
    return "; ".join(reasons) or "no node of the mask is left"


def move_refusal(task: Task, nodes: Iterable[int]) -> str:
    """Why move_pages stopped: ENODEV for a node that is no target, EACCES for one outside of the cpuset."""
    targets = task.resolver.design.move_targets(task.resolver.topology)
    for nid in nodes:
        if nid < 0 or not nodemask.has(targets, nid):
            return f"{task.resolver.design.name}: users may not move pages to node {nid}"
        if not nodemask.has(task.reach, nid):
            return f"node {nid} outside of the cpuset's mems {_mask(task.mems_allowed)}"
    return ""


def _mask(nodes: int) -> str:
    return node_words(tuple(nodemask.nodes(nodes)))
