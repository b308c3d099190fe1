"""The first generation of compressed RAM in a litmus test: pressure, its CXL driver, and what shows of them."""

from __future__ import annotations

from typing import Any

from privmem.cluster.litmus import callback_verbs
from privmem.cluster.litmus.world import Stuck, World, check
from privmem.nodeagent.host import node_callbacks
from privmem.nodeagent.host.cram import pressure
from privmem.nodeagent.host.cram.service import (
    FLUSH_DEFERRED,
    FLUSH_FULL,
    FLUSH_NONE,
    FLUSH_RESOLVED,
    CramNode,
    Generation,
)
from privmem.nodeagent.host.drivers import cxl_compression
from privmem.nodeagent.host.wake import may_reclaim

Values = dict[str, Any]

_ANSWERS = {"resolved": FLUSH_RESOLVED, "deferred": FLUSH_DEFERRED, "full": FLUSH_FULL, "none": FLUSH_NONE}


def is_first(world: World) -> bool:
    """Whether the first generation of the service runs."""
    return world.kernel.memory.cram.generation is Generation.V4


def _node(world: World, nid: int) -> CramNode:
    cram = world.kernel.memory.cram.nodes.get(nid)
    if cram is None:
        raise Stuck(f"{world.node_name(nid)} is not registered with the compressed RAM service")
    return cram


def register(world: World, nid: int, owner: str | None) -> None:
    """The first generation's call, for a node that is private already; by its owner unless another is named."""
    claim = world.kernel.hotplug.claims.get(nid)
    error = pressure.register_private_node(
        world.kernel.hotplug, nid, owner or (claim.owner if claim else "driver")
    )
    world.kernel.memory_changed()
    check(error)


def unregister(world: World, nid: int) -> None:
    """And back; the memory stays."""
    error = pressure.unregister_private_node(world.kernel.hotplug, nid)
    world.kernel.memory_changed()
    check(error)


def _set_pressure(world: World, _actor: str, values: Values) -> None:
    check(pressure.set_pressure(world.kernel.memory, values["nodeid"], values["number"]))


def _migrate_to(world: World, _actor: str, values: Values) -> int:
    return migrate_to(world, values["nodeid"], values)


def migrate_to(world: World, nid: int, values: Values) -> int:
    """The frames of a range go to a node: how many stayed."""
    frames = [pfn for pfn in dict.fromkeys(world.frames(values["range"])) if pfn is not None]
    cram = world.kernel.memory.cram.nodes.get(nid)
    if cram is not None:
        cram.full_after_pages = values.get("after", 0)
    return check(pressure.migrate_to(world.kernel.memory, nid, frames))


def _flush(world: World, _actor: str, values: Values) -> None:
    answer = next(number for word, number in _ANSWERS.items() if word in values)
    _node(world, values["of"]).flush_answer = answer


def _release(world: World, _actor: str, values: Values) -> int:
    return cxl_compression.release_deferred(world.kernel.memory, _node(world, values["node"]))


def _probe(world: World, _actor: str, values: Values) -> None:
    has_ram, payload = "without_ram" not in values, values.get("payload", 4096)
    check(cxl_compression.probe(world.kernel, values["node"], values.get("region"), has_ram, payload))


def _interrupt(world: World, _actor: str, values: Values) -> None:
    check(cxl_compression.interrupt(world.kernel.memory, values["node"], values["number"]))


def _media(world: World, _actor: str, values: Values) -> None:
    _node(world, values["of"]).media_fails = "fail" in values


def _poll(world: World, _actor: str, values: Values) -> int:
    return cxl_compression.poll(world.kernel.memory, _node(world, values["node"]), values.get("length", 1))


def _remove(world: World, _actor: str, values: Values) -> int:
    return check(
        cxl_compression.remove(
            world.kernel, values["node"], values.get("tries", cxl_compression.OFFLINE_TRIES)
        )
    )


DRIVER_VERBS = [
    *callback_verbs.DRIVER_VERBS,
    (
        "set_pressure NODEID NUMBER",
        _set_pressure,
        "v4: 0 to 1000; raises the mark up to which kswapd frees pages of the node, and at 1000 keeps pages out",
    ),
    (
        "flush of OF:NODE answers resolved|deferred|full|none",
        _flush,
        "v4: what the flush callback says (0, 1, 2) when a page is freed; none: there is no callback, as at first",
    ),
    ("release deferred pages of NODE", _release, "the driver drops the pages that it kept: how many"),
    (
        "cxl_compression NODE [region REGION:SIZE] [without_ram] [payload PAYLOAD:NUMBER]",
        _probe,
        "v4: the CXL compression driver probes the node's device, and brings it up if need be; from then on freed "
        "pages wait in its three buffers of (payload - 8) / 16 entries until the device has zeroed them",
    ),
    (
        "interrupt NODE NUMBER",
        _interrupt,
        "v4: vector 12 (low threshold: pressure 1000), 13 (high threshold: 0)",
    ),
    (
        "media operations of OF:NODE work|fail",
        _media,
        "whether the device zeroes pages when it is told to, which it is after each step (`stop cram worker`)",
    ),
    (
        "poll NODE [for LENGTH:NUMBER]",
        _poll,
        "the flush worker, a second or so many later: pages given back",
    ),
    (
        "remove cxl_compression NODE [tries TRIES:NUMBER]",
        _remove,
        "take the device away; tries once a second, 60 times: at which try its memory went, or EBUSY",
    ),
]

KERNEL_VERBS = [
    (
        "migrate_to NODEID RANGE [full_after AFTER:NUMBER]",
        _migrate_to,
        "v4: the service's callback is given pages for its node: how many stayed where they were (0: all went); "
        "full_after: the device reports full pressure after so many pages",
    ),
]


def _pressure(world: World, values: Values) -> int:
    return _node(world, values["node"]).pressure


def _boost(world: World, values: Values) -> int:
    memory, nid = world.kernel.memory, values["node"]
    return node_callbacks.boost_pages(memory, memory.nodes[nid])


def _kswapd(world: World, values: Values) -> str:
    node = world.kernel.memory.nodes[values["node"]]
    if not node.managed_pages or not may_reclaim(world.kernel.memory, node):
        return "none"
    return "awake" if node.kswapd_awake else "asleep"


def _deferred(world: World, values: Values) -> int:
    return len(_node(world, values["node"]).deferred)


def _tries(world: World, values: Values) -> int:
    return _node(world, values["node"]).offline_tries


SUBJECTS = [
    *callback_verbs.SUBJECTS,
    ("pressure of NODE", _pressure, "v4: 0 to 1000"),
    ("boost of NODE", _boost, "v4: what its owner set, or managed pages x pressure / 1000"),
    ("kswapd of NODE", _kswapd, "none, asleep or awake; it works when it is let (`kernel: kswapd`)"),
    (
        "deferred pages of NODE",
        _deferred,
        "v4: freed pages that the driver keeps until the device forgot them",
    ),
    ("offline tries of NODE", _tries, "of a driver that is being removed"),
]
