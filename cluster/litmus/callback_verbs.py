"""Callbacks of a node's owner in a litmus test (v4): `free_folio`, `folio_migrate`, `reclaim_policy`."""

from __future__ import annotations

import errno
from typing import Any

from privmem.cluster.litmus.world import World, check
from privmem.nodeagent.host import node_callbacks
from privmem.nodeagent.host.drivers.owner import give_back_kept
from privmem.nodeagent.host.node_callbacks import Migrated, ReclaimPolicy
from privmem.nodeagent.host.wake import wake_kswapd

Values = dict[str, Any]


def _owned(world: World, nid: int) -> None:
    """EOPNOTSUPP in versions without callbacks, ENODEV for a node that no driver has claimed."""
    if not node_callbacks.has_ops(world.kernel.memory):
        check(-errno.EOPNOTSUPP)
    if nid not in world.kernel.hotplug.claims:
        check(-errno.ENODEV)


def _policy(world: World, _actor: str, values: Values) -> None:
    nid = values["node"]
    _owned(world, nid)
    world.kernel.memory.callbacks.policy[nid] = ReclaimPolicy(
        "may_swap" in values, "may_writepage" in values, "managed_watermarks" in values
    )


def _boost(world: World, _actor: str, values: Values) -> None:
    memory, nid = world.kernel.memory, values["node"]
    _owned(world, nid)
    memory.callbacks.boost_pages[nid] = values["number"]
    wake_kswapd(memory, memory.nodes[nid])


def _keep(world: World, _actor: str, values: Values) -> None:
    _owned(world, values["node"])
    world.kernel.memory.callbacks.keeps[values["node"]] = "keep" in values


def _give_back(world: World, _actor: str, values: Values) -> int:
    _owned(world, values["node"])
    return give_back_kept(world.kernel.memory, values["node"])


def _calls(world: World, values: Values) -> int:
    calls = world.kernel.memory.callbacks.free_calls
    return calls.get(values["node"], 0) if "node" in values else sum(calls.values())


def _seen(world: World, values: Values) -> int:
    seen = world.kernel.memory.callbacks.migrated.get(values["node"], Migrated())
    if "locked" in values:
        return seen.locked
    if "copied" in values:
        return seen.copied
    return seen.mapped if "mapped" in values else seen.calls


DRIVER_VERBS = [
    (
        "keep|give freed pages of NODE",
        _keep,
        "v4: the owner's free_folio keeps freed pages of its node, users' too, or lets them go",
    ),
    ("release kept pages of NODE", _give_back, "v4: and back to the buddy with those that it kept: how many"),
    (
        "reclaim_policy of NODE enables [nothing|may_swap|may_writepage|managed_watermarks]...",
        _policy,
        "v4: what the owner's callback says at the start of a cycle; managed_watermarks: the boost stays after it",
    ),
    (
        "boost NODE NUMBER",
        _boost,
        "v4: the owner raises the watermarks of its node by so many pages, and wakes kswapd",
    ),
]

SUBJECTS = [
    ("free_folio calls [of NODE]", _calls, "v4: pages for which an owner's free_folio ran"),
    (
        "folio_migrate calls [locked|copied|mapped] of NODE",
        _seen,
        "v4: folios that left the node with a call of the owner's callback; those that it found, with their "
        "destination, locked, copied, or mapped again already",
    ),
]
