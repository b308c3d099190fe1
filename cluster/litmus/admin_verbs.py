"""What an administrator and a node's driver do in a litmus test: files, hotplug, cgroups, devices, the owner."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

from privmem.cluster.litmus.values import FEATURES
from privmem.cluster.litmus.world import Stuck, World, check
from privmem.nodeagent.host import contig
from privmem.nodeagent.host.drivers.anondax import AnonDax
from privmem.nodeagent.host.drivers.dax_test import DaxTest
from privmem.nodeagent.host.kernel import driver_name
from privmem.scheduler.abi import PAGE_SHIFT, Feature
from privmem.scheduler.isolation import claims
from privmem.scheduler.isolation.claims import Answer, Held, NodeFacts, Ops
from privmem.scheduler.isolation.design import Claim
from privmem.scheduler.topology import ZONE_MOVABLE, ZONE_NORMAL

Values = dict[str, Any]


def _write(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.sysfs.write(world.path(values["word"]), values["text"]))


def _read(world: World, _actor: str, values: Values) -> str:
    text = world.kernel.sysfs.read(world.path(values["word"]))
    if isinstance(text, int):
        check(text)
    return str(text)


def _plug(world: World, _actor: str, values: Values) -> None:
    zone = ZONE_NORMAL if "kernel_zone" in values else ZONE_MOVABLE
    wish: Feature | None = values.get("features")
    check(world.kernel.plug(values["node"], wish, owner=values.get("word", ""), zone=zone))


def _online(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.online(values["node"], ZONE_NORMAL if "kernel_zone" in values else ZONE_MOVABLE))


def _offline(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.offline(values["node"]))


def _unplug(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.unplug(values["node"]))


def _cgroup(world: World, _actor: str, values: Values) -> None:
    world.kernel.create_cgroup(values["word"], values.get("cgroup", ""))


def _mems(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.write_mems(values["cgroup"], values["nodes"]))


def _demotion(world: World, _actor: str, values: Values) -> None:
    text = "1" if "on" in values else "0"
    check(world.kernel.sysfs.write("/sys/kernel/mm/numa/demotion_enabled", text))


def _drop_caches(world: World, _actor: str, _values: Values) -> int:
    world.kernel.sync()
    return world.kernel.drop_caches()


def _hugepages(world: World, _actor: str, values: Values) -> None:
    node = values.get("node")
    where = "/sys/kernel/mm" if node is None else f"/sys/devices/system/node/node{node}"
    path = f"{where}/hugepages/hugepages-2048kB/nr_hugepages"
    check(world.kernel.sysfs.write(path, str(values["number"])))


def _compact(world: World, _actor: str, values: Values) -> None:
    check(world.kernel.sysfs.write(f"/sys/devices/system/node/node{values['node']}/compact", "1"))


# -- drivers


def _dax_test(world: World, _actor: str, values: Values) -> None:
    first, nr = values.get("first", 0), values.get("number")
    device = DaxTest(world.kernel, values["node"], first, nr)
    device.owner = values.get("word", device.owner)
    world.devices[values["result"]] = device


def _anondax(world: World, _actor: str, values: Values) -> None:
    world.devices[values["result"]] = AnonDax(world.kernel, values["node"])


def _set(world: World, _actor: str, values: Values) -> None:
    device = world.devices[values["device"]]
    if not isinstance(device, DaxTest):
        raise Stuck("only a dax_test device has attributes")
    check(device.write(values["word"], values["text"]))


def _get(world: World, _actor: str, values: Values) -> str:
    device = world.devices[values["device"]]
    text = device.read(values["word"]) if isinstance(device, DaxTest) else None
    if text is None:
        raise OSError(errno.ENOENT, "ENOENT")
    return world.node_name(int(text)) if values["word"] == "contig" and text.isdecimal() else text


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


def _keep(world: World, _actor: str, values: Values) -> None:
    world.kernel.owners.keeps[values["node"]] = "keep" in values


def _residents(world: World, _actor: str, values: Values) -> None:
    world.kernel.hotplug.keeps_residents[values["node"]] = "keep" in values


def _memory_group(world: World, _actor: str, values: Values) -> int:
    return check(world.kernel.hotplug.register_group(values["node"]))


def _add_memory(world: World, _actor: str, values: Values) -> None:
    """A range, offline; `without owner` is nobody's, else the node's driver claims it with the node's wishes."""
    kernel, node = world.kernel, values["node"]
    boot = kernel.boot[node]
    features = kernel.design.grant(values.get("features", boot.wish))
    owner = Claim(values.get("word", driver_name(node)), features)
    claim = None if "without" in values else owner
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


_ALL_FEATURES = Feature(sum(FEATURES.values()))


# -- the calls of the first version, and of caps-c, by which drivers claim a node


def _facts(world: World, node: int) -> NodeFacts:
    memory = world.kernel.memory
    there = node in memory.nodes
    pages = memory.nodes[node].managed_pages if there else 0
    private = bool(pages) and node in world.kernel.hotplug.claims
    return NodeFacts(there, bool(pages) and not private, private, "early" not in world.taken)


def _answer(world: World, node: int, answer: Answer) -> None:
    check(answer.error)
    world.held[node] = answer.held


def _held(world: World, node: int) -> Held | None:
    """What is held by these calls, or by the driver that brought the node."""
    if node in world.held:
        return world.held[node]
    claim = world.kernel.hotplug.claims.get(node)
    return Held(claim.owner, claim.features) if claim else None


def _register(world: World, _actor: str, values: Values) -> None:
    node = values["number"]
    owner = None if values["word"] == "nobody" else values["word"]
    if "early" in values:
        world.taken["early"] = []
    if world.kernel.design.label.startswith("caps"):
        mask, facts = values.get("features", Feature.NONE), _facts(world, node)
        bits = world.kernel.design.grant(_ALL_FEATURES)
        _answer(world, node, claims.register_caps(_held(world, node), owner, mask, bits, facts))
    else:
        _answer(world, node, claims.register(_held(world, node), owner, _facts(world, node)))


def _unregister(world: World, _actor: str, values: Values) -> str | None:
    """`waits` while temporary references are held; the last one that is put back completes it."""
    node = values["number"]
    held = _held(world, node)
    answer = claims.unregister(held, _facts(world, node))
    if not answer.error and held is not None and held.references:
        world.taken[f"unregister {node}"] = []
        return "waits"
    _answer(world, node, answer)
    return None


def _ops(values: Values) -> Ops:
    calls = values.get("text", "").split()
    return Ops(
        values["word"], values.get("features", Feature.NONE), "migrate_to" in calls, "folio_migrate" in calls
    )


def _set_ops(world: World, _actor: str, values: Values) -> None:
    node = values["number"]
    ops = None if values["word"] == "nothing" else _ops(values)
    _answer(world, node, claims.set_ops(_held(world, node), ops, _facts(world, node)))


def _clear_ops(world: World, _actor: str, values: Values) -> None:
    node = values["number"]
    held = _held(world, node)
    installed = held.ops if held and held.ops and held.ops.name == values["word"] else Ops(values["word"])
    _answer(world, node, claims.clear_ops(held, installed))


def _reference(world: World, _actor: str, values: Values) -> None:
    node = values["number"]
    held = _held(world, node)
    if held is None:
        raise OSError(errno.ENODEV, "ENODEV")
    left = held.references + (1 if "get" in values else -1)
    waited = not left and world.taken.pop(f"unregister {node}", None) is not None
    world.held[node] = None if waited else replace(held, references=left)


CONTIG_RANGE = (
    "alloc_contig_range NODE SIZE [from FIRST:NUMBER] [private]",
    _contig_range,
    "take these frames, counted from the node's first: for `driver` as the owner's; "
    "private: with the latest version's flag",
)

VERBS = [
    ("write WORD TEXT", _write, "write a file; paths may have names: /proc/A/..., .../node/nodeP/..."),
    ("cat WORD", _read, "read such a file"),
    (
        "plug NODE [features FEATURES] [owner WORD] [kernel_zone]",
        _plug,
        "a driver claims the node with its wishes, adds its memory and puts it online (movable)",
    ),
    ("online NODE [kernel_zone]", _online, "put added memory online again"),
    ("offline NODE", _offline, "all memory of the node goes offline; its pages move out"),
    ("unplug NODE", _unplug, "offline, and remove"),
    ("cgroup WORD [in CGROUP]", _cgroup, "make a cgroup"),
    ("mems CGROUP NODES", _mems, "write cpuset.mems"),
    ("demotion on|off", _demotion, "/sys/kernel/mm/numa/demotion_enabled"),
    ("drop_caches", _drop_caches, "sync, and forget clean page cache that nobody maps: pages dropped"),
    ("hugepages [NODE] NUMBER", _hugepages, "size of the huge page pool: the global file, or a node's"),
    ("compact NODE", _compact, "write to the node's compact file"),
]

DRIVER_VERBS = [
    (
        "dax_test NODE [from FIRST:NUMBER] [pages NUMBER] [owner WORD]",
        _dax_test,
        "`dev = dax_test P`: the series' test device; attributes state (online, online_kernel, offline, "
        "unplugged), memory_features (names, a mask, or all), adistance, contig (range START PAGES, "
        "search PAGES, plain PAGES, free)",
    ),
    ("anondax NODE", _anondax, "`dev = anondax P`: the latest version's shared anonymous device"),
    ("set DEVICE WORD TEXT", _set, "write an attribute of a test device"),
    ("get DEVICE WORD", _get, "read one"),
    ("kill DEVICE", _kill, "unbind an anondax device"),
    (
        "alloc NODE [NUMBER] [preferred]",
        _alloc,
        "the owner takes pages of its node; preferred: without THISNODE",
    ),
    ("keep|give freed pages of NODE", _keep, "the owner's free_folio keeps freed pages, or lets them go"),
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
    (
        "register NUMBER for WORD [with FEATURES] [early]",
        _register,
        "the register call of the first version or of caps-c, for a node number; `nobody` is no owner",
    ),
    ("unregister NUMBER", _unregister, "the unregister call of the first version"),
    (
        "set_ops NUMBER WORD [flags FEATURES] [calls TEXT]",
        _set_ops,
        "install ops of this name with flags and callbacks; `nothing` is no ops",
    ),
    ("clear_ops NUMBER WORD", _clear_ops, "take the ops of this name away"),
    ("get|put reference NUMBER", _reference, "a temporary reference to a claim"),
]
