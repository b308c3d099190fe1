"""What drivers do in a litmus test: test devices, and the owner of a node."""

from __future__ import annotations

import errno
from typing import Any

from privmem.cluster.litmus.world import Stuck, World, check
from privmem.nodeagent.host import contig
from privmem.nodeagent.host.drivers.anondax import AnonDax
from privmem.nodeagent.host.drivers.dax_test import DaxTest
from privmem.scheduler.abi import PAGE_SHIFT, Feature
from privmem.scheduler.isolation.design import Claim

Values = dict[str, Any]


def _dax_test(world: World, _actor: str, values: Values) -> None:
    first, nr = values.get("first", 0), values.get("number")
    device = DaxTest(world.kernel, values["node"], first, nr)
    device.owner = values.get("word", device.owner)
    world.devices[values["result"]] = device


def _anondax(world: World, _actor: str, values: Values) -> None:
    world.devices[values["result"]] = AnonDax(world.kernel, values["node"])


def _set(world: World, _actor: str, values: Values) -> None:
    device = world.devices[values["device"]]
    if isinstance(device, AnonDax):
        raise Stuck("only a dax_test or cramdax device has attributes")
    text = str(world.machine.nids.get(values["text"], values["text"]))
    check(device.write(values["word"], text if values["word"] == "bind_node" else values["text"]))


def _get(world: World, _actor: str, values: Values) -> str:
    device = world.devices[values["device"]]
    text = None if isinstance(device, AnonDax) else device.read(values["word"])
    if text is None:
        raise OSError(errno.ENOENT, "ENOENT")
    is_node = values["word"] in ("contig", "bind_node") and text.isdecimal()
    return world.node_name(int(text)) if is_node else text


def _bind(world: World, _actor: str, values: Values) -> None:
    """The driver's probe brings the memory online, its removal takes it away."""
    device = world.devices[values["device"]]
    if not isinstance(device, AnonDax):
        check(device.write("state", "online" if "bind" in values else "unplugged"))
    else:
        check(device.revive() if "bind" in values else device.kill())


def _kill(world: World, _actor: str, values: Values) -> None:
    device = world.devices[values["device"]]
    if not isinstance(device, AnonDax):
        raise Stuck("only an anondax device is killed")
    check(device.kill())


def _alloc(world: World, _actor: str, values: Values) -> str:
    """The owner takes pages; where the last one came from."""
    kernel, node = world.kernel, values["node"]
    claim = kernel.hotplug.claims.get(node)
    owner = claim.owner if claim else "driver"
    taken = world.taken.setdefault(values["result"] or f"pages of {world.node_name(node)}", [])
    nid = node
    for _ in range(values.get("number", 1)):
        pfn = check(kernel.owners.alloc(owner, node, this_node="preferred" not in values))
        taken.append(pfn)
        nid = kernel.memory.frames.nid_of(pfn)
    return world.node_name(nid)


def _free(world: World, _actor: str, values: Values) -> int:
    taken = world.taken.get(f"pages of {world.node_name(values['node'])}", [])
    for pfn in taken:
        world.kernel.owners.free(pfn)
    count = len(taken)
    taken.clear()
    return count


def _residents(world: World, _actor: str, values: Values) -> None:
    world.kernel.hotplug.keeps_residents[values["node"]] = "keep" in values


def _memory_group(world: World, _actor: str, values: Values) -> int:
    return check(world.kernel.hotplug.register_group(values["node"]))


def _add_memory(world: World, _actor: str, values: Values) -> None:
    """A range, offline; `without owner` is nobody's, else the node's driver claims it with the node's wishes."""
    kernel, node = world.kernel, values["node"]
    boot = kernel.boot[node]
    claim = None if "without" in values else world.claim_of(node, values)
    nr_pages = values["size"] >> PAGE_SHIFT if "size" in values else boot.pages
    first, group = values.get("first", 0), values.get("group")
    check(kernel.hotplug.add_private_memory(node, claim, first, nr_pages, group))


def _contig_range(world: World, actor: str, values: Values) -> str:
    """alloc_contig_range: that the owner asks is known in all versions; in F3 the call must say so by its flag."""
    memory, node = world.kernel.memory, values["node"]
    first = memory.nodes[node].start_pfn + values.get("first", 0)
    implied = actor == "driver" and world.kernel.design.label != "F3"
    private = "private" in values or implied
    check(contig.alloc_contig_range(memory, first, values["size"] >> PAGE_SHIFT, actor, private))
    return world.node_name(memory.frames.nid_of(first))


def _claim(world: World, _actor: str, values: Values) -> None:
    features = world.kernel.design.grant(values.get("features", Feature.NONE))
    check(world.kernel.hotplug.claim(values["node"], Claim(values["word"], features)))


def _release(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.hotplug.release(values["node"]))


CONTIG_RANGE = (
    "alloc_contig_range NODE SIZE [from FIRST:NUMBER] [private]",
    _contig_range,
    "take these frames, counted from the node's first: for `driver` as the owner's; "
    "private: with the latest version's flag",
)

VERBS = [
    (
        "dax_test NODE [from FIRST:NUMBER] [pages NUMBER] [owner WORD]",
        _dax_test,
        "`dev = dax_test P`: the series' test device; attributes state (online, online_kernel, offline, "
        "unplugged), memory_features (names, a mask, or all), adistance, contig (range START PAGES, "
        "search PAGES, plain PAGES, free), bind_node",
    ),
    ("anondax NODE", _anondax, "`dev = anondax P`: the latest version's shared anonymous device"),
    ("set DEVICE WORD TEXT", _set, "write an attribute of a test device"),
    ("get DEVICE WORD", _get, "read one"),
    ("bind|unbind DEVICE", _bind, "the driver is bound to it and brings its memory online, or goes with it"),
    ("kill DEVICE", _kill, "unbind an anondax device"),
    (
        "alloc NODE [NUMBER] [thisnode|preferred]",
        _alloc,
        "the owner takes pages of its node, with THISNODE; preferred: without",
    ),
    (
        "add memory of NODE [from FIRST:NUMBER] [SIZE] [owner WORD] [without owner] [features FEATURES] "
        "[group GROUP:NUMBER]",
        _add_memory,
        "claim the node and add a range of private memory, offline (`admin: online NODE`); in a memory group",
    ),
    ("memory_group NODE", _memory_group, "register a memory group: its number"),
    (
        "keep|move residents of NODE",
        _residents,
        "whether pages that are there stay (and offline fails), or are moved out when memory goes offline",
    ),
    CONTIG_RANGE,
    ("free NODE", _free, "and gives them all back: how many"),
    ("claim NODE as WORD [with FEATURES]", _claim, "claim a node without bringing memory"),
    ("release NODE", _release, "give the claim back"),
]
