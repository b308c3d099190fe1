"""The calls by which drivers claim nodes, one by one, in each version of the series."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

from privmem.cluster.litmus.values import FEATURES
from privmem.cluster.litmus.world import World, check
from privmem.scheduler import nodemask
from privmem.scheduler.abi import Feature
from privmem.scheduler.isolation import claims
from privmem.scheduler.isolation.claims import Answer, Held, NodeFacts, Ops
from privmem.scheduler.isolation.design import Claim

Values = dict[str, Any]

_ALL_FEATURES = Feature(sum(FEATURES.values()))


def _facts(world: World, node: int) -> NodeFacts:
    memory = world.kernel.memory
    there = node in memory.nodes
    pages = memory.nodes[node].managed_pages if there else 0
    private = bool(pages) and node in world.kernel.hotplug.claims
    return NodeFacts(there, bool(pages) and not private, private, "early" not in world.taken)


def _answer(world: World, node: int, answer: Answer) -> None:
    check(answer.error)
    _hold(world, node, answer.held)


def _hold(world: World, node: int, held: Held | None) -> None:
    """What these calls hold is the claim that hotplug and everybody else sees."""
    world.held[node] = held
    world.kernel.hotplug.take_claim(node, Claim(held.owner, held.features) if held else None)


def _held(world: World, node: int) -> Held | None:
    """What is held by these calls, or by the driver that brought the node."""
    if node in world.held:
        return world.held[node]
    claim = world.kernel.hotplug.claims.get(node)
    return Held(claim.owner, claim.features) if claim else None


def _register(world: World, _actor: str, values: Values) -> None:
    node = values["nodeid"]
    owner = None if values["word"] == "nobody" else values["word"]
    if "early" in values:
        world.taken["early"] = []
    label, held, facts = world.kernel.design.label, _held(world, node), _facts(world, node)
    mask, bits = values.get("features", Feature.NONE), world.kernel.design.grant(_ALL_FEATURES)
    if label.startswith("caps"):
        bits |= Feature.PUBLIC if label == "caps-c" else Feature.NONE
        check(claims.cpu_error(label, nodemask.has(world.kernel.memory.topology.with_cpus, node)))
        _answer(world, node, claims.register_caps(held, owner, mask, bits, facts))
    elif label.startswith("F"):
        refused = Answer(-errno.EINVAL, held)
        _answer(world, node, claims.claim_features(held, owner, mask, bits, facts) if owner else refused)
    else:
        _answer(world, node, claims.register(held, owner, facts))


def _unregister(world: World, _actor: str, values: Values) -> str | None:
    """`waits` while temporary references are held; the last one that is put back completes it."""
    node = values["nodeid"]
    held = _held(world, node)
    if world.kernel.design.label.startswith("F"):
        ranges = len(world.kernel.hotplug.ranges.get(node, ()))
        _answer(world, node, claims.release_features(held, ranges, _facts(world, node)))
        return None
    answer = claims.unregister(held, _facts(world, node))
    if not answer.error and held is not None and held.references:
        world.taken[f"unregister {node}"] = []
        return "waits"
    _answer(world, node, answer)
    return None


def _ops(values: Values) -> Ops:
    calls = values.get("calls", ())
    return Ops(
        values["word"],
        values.get("flags", Feature.USER_WRITE),
        "migrate_to" in calls,
        "folio_migrate" in calls,
    )


def _set_ops(world: World, _actor: str, values: Values) -> None:
    node = values["nodeid"]
    ops = None if values["word"] == "nothing" else _ops(values)
    _answer(world, node, claims.set_ops(_held(world, node), ops, _facts(world, node)))
    world.kernel.memory.callbacks.keeps.pop(node, None)
    if "free_folio" in values.get("calls", ()):
        world.kernel.memory.callbacks.keeps[node] = False


def _clear_ops(world: World, _actor: str, values: Values) -> None:
    node = values["nodeid"]
    held = _held(world, node)
    installed = held.ops if held and held.ops and held.ops.name == values["word"] else Ops(values["word"])
    _answer(world, node, claims.clear_ops(held, installed))
    world.kernel.memory.callbacks.keeps.pop(node, None)


def _reference(world: World, _actor: str, values: Values) -> None:
    node = values["nodeid"]
    held = _held(world, node)
    if held is None:
        raise OSError(errno.ENODEV, "ENODEV")
    left = held.references + (1 if "get" in values else -1)
    waited = not left and world.taken.pop(f"unregister {node}", None) is not None
    _hold(world, node, None if waited else replace(held, references=left))


VERBS = [
    (
        "register NODEID for WORD [with FEATURES] [early]",
        _register,
        "the register call of the design's version, which brings no memory; `nobody` is no owner, early: "
        "before the subsystem is up",
    ),
    ("unregister NODEID", _unregister, "the unregister call; `waits` while references are held"),
    (
        "set_ops NODEID WORD [flags FLAGS] [calls CALLS]",
        _set_ops,
        "first version: install ops of this name with flags (migration, mempolicy, protect_write, ...) and "
        "callbacks (migrate_to,folio_migrate, ...); `nothing` is no ops",
    ),
    ("clear_ops NODEID WORD", _clear_ops, "take the ops of this name away"),
    ("get|put reference NODEID", _reference, "a temporary reference to a claim"),
]
