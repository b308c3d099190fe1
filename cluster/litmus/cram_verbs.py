"""Compressed RAM in a litmus test: its test device, the service's calls and knobs, and what shows of it."""

from __future__ import annotations

import errno
from typing import Any

from privmem.cluster.litmus import pressure_verbs
from privmem.cluster.litmus.values import RangeRef
from privmem.cluster.litmus.world import Stuck, World, check
from privmem.nodeagent.host.cram import balloon, capacity, gate, hot_ring, placement, registration
from privmem.nodeagent.host.cram.service import RATIO_ONE, CramNode
from privmem.nodeagent.host.drivers.cramdax import CramDax, fenced_features
from privmem.nodeagent.host.layout import PG_LRU

Values = dict[str, Any]


# -- the device and the service's calls


def _cramdax(world: World, _actor: str, values: Values) -> None:
    world.devices[values["result"]] = CramDax(world.kernel, values["node"], values.get("ratio", RATIO_ONE))


def _ranges(text: str) -> list[tuple[int, int]]:
    """`0+512,512+512`: first page and number of pages; `-` for none."""
    parts = [] if text in ("-", "none") else text.split(",")
    found = []
    for part in parts:
        start, plus, pages = part.partition("+")
        if not (plus and start.isdecimal() and pages.isdecimal()):
            raise Stuck(f"found the ranges {text!r}; allowed: FIRST+PAGES,FIRST+PAGES, or - for none")
        found.append((int(start), int(pages)))
    return found


def _register(world: World, _actor: str, values: Values) -> None:
    kernel, nid = world.kernel, values["nodeid"]
    if pressure_verbs.is_first(world):
        pressure_verbs.register(world, nid, values.get("owner"))
        return
    features = registration.usual_features(kernel.memory.cram.generation)
    if "word" in values:
        named = fenced_features(values["word"].replace("common", "public").replace("fallback", "public"))
        if named is None:  # a bit that the version does not know
            raise OSError(errno.EINVAL, "EINVAL")
        features = named
    pages = kernel.boot[nid].pages if nid in kernel.boot else 1
    ranges = _ranges(values["ranges"]) if "ranges" in values else [(0, pages)]
    owner = values.get("owner", f"driver{nid}")
    ratio = values.get("ratio", RATIO_ONE)
    check(registration.cram_register(kernel.hotplug, nid, ranges, features, owner, ratio))
    kernel.memory_changed()


def _unregister(world: World, _actor: str, values: Values) -> None:
    if pressure_verbs.is_first(world):
        pressure_verbs.unregister(world, values["nodeid"])
        return
    ranges = _ranges(values["ranges"]) if "ranges" in values else None
    error = registration.cram_unregister(world.kernel.hotplug, values["nodeid"], ranges)
    world.kernel.memory_changed()
    check(error)


def _unloading(world: World, _actor: str, values: Values) -> None:
    world.kernel.memory.cram.unloading = "begin" in values


def _set_capacity(world: World, _actor: str, values: Values) -> None:
    check(capacity.set_capacity(world.kernel.memory, values["nodeid"], values["number"]))


def _set_ratio(world: World, _actor: str, values: Values) -> None:
    check(capacity.set_compression_ratio(world.kernel.memory, values["nodeid"], values["number"]))


def _set_no_alloc(world: World, _actor: str, values: Values) -> None:
    owner = values.get("word", "")
    check(gate.set_no_alloc(world.kernel.memory, values["nodeid"], "on" in values, owner))


def _debug(world: World, _actor: str, values: Values) -> None:
    """A verb of the debug file."""
    verb = next(word for word in _DEBUG_VERBS if word in values)
    number = f" {values['number']}" if "number" in values else ""
    check(world.kernel.sysfs.write("/sys/kernel/debug/cram/control", f"{verb} {values['node']}{number}"))


_DEBUG_VERBS = ("inflate", "deflate", "block", "unblock", "noalloc", "allow", "demote")


def _trim(world: World, _actor: str, values: Values) -> None:
    """How the driver's trim callback answers from now on."""
    cram = _cram(world, values["node"])
    word = next(word for word in ("EAGAIN", "EBUSY", "ok") if word in values)
    cram.trim_error = 0 if word == "ok" else -getattr(errno, word)
    cram.trim_failures = 0 if word == "ok" else values.get("calls", 1 << 30)
    cram.trim_bad_pages = values.get("pages", 1)


def _room(world: World, _actor: str, values: Values) -> None:
    """A device whose control path tells the host nothing."""
    _cram(world, values["node"]).room_pages = values["number"]


def _report_hot(world: World, _actor: str, values: Values) -> int:
    """The device reports the pages of a range, in order; how many reports were dropped."""
    frames = [pfn for pfn in world.frames(values["range"]) if pfn is not None]
    number = values.get("number", len(frames))
    reports = [frames[at % len(frames)] for at in range(number)] if frames else []
    return hot_ring.report_hot(world.kernel.memory, reports)


DRIVER_VERBS = [
    (
        "cramdax NODE [ratio RATIO:NUMBER]",
        _cramdax,
        "`dev = cramdax P`: the test device of compressed RAM; attributes state (online, offline, unplugged), "
        "memory_features (reclaim, write_fence, compaction), zratio, compression_ratio (thousandths), "
        "balloon_target (pages), no_alloc (0, 1), trim_count. A node with `cram:` has one, of its own name",
    ),
    (
        "cram_register NODEID [with WORD] [ranges RANGES:WORD] [owner OWNER:WORD] [ratio RATIO:NUMBER]",
        _register,
        "claim the node, add its ranges (`0+512,512+512`, `-` for none; default: all) and put them online; the "
        "features' names have the fence as a bit, `reclaim,write_fence`; v4: register a node that is private and "
        "online, by its owner unless another is named",
    ),
    ("cram_unregister NODEID [ranges RANGES:WORD]", _unregister, "and back"),
    ("begin|end unloading cram", _unloading, "while its module is being unloaded nobody registers"),
    ("cram_set_capacity NODEID NUMBER", _set_capacity, "pages that the device can hold now"),
    ("cram_set_compression_ratio NODEID NUMBER", _set_ratio, "the ratio that it reaches now, in thousandths"),
    (
        "cram_set_no_alloc NODEID on|off [as WORD]",
        _set_no_alloc,
        "withdraw the node, or allow it again; as: an owner other than the one that registered",
    ),
    (
        "cram inflate|deflate|block|unblock|noalloc|allow|demote NODE [NUMBER]",
        _debug,
        "a verb of the debug file: so many pages more or fewer in the balloon; the test block; the gate; demote "
        "pages of a general node",
    ),
    (
        "trim of NODE answers ok|EAGAIN|EBUSY [calls CALLS:NUMBER] [pages PAGES:NUMBER]",
        _trim,
        "the trim callback fails so many calls (default: all from now on); EAGAIN: for so many pages (1) of each",
    ),
    (
        "device of NODE has room for NUMBER",
        _room,
        "pages that it can still store, which its control path does not tell; what comes on top is poisoned",
    ),
    (
        "report hot RANGE [NUMBER]",
        _report_hot,
        "the device reports these pages as hot, over and over up to a number: how many reports were dropped",
    ),
]


# -- the kernel's part


def _demote(world: World, _actor: str, values: Values) -> int:
    """Pages of a range that compressed RAM took."""
    memory = world.kernel.memory
    memory.lru_batches.drain_all()
    frames = [pfn for pfn in dict.fromkeys(world.frames(values["range"])) if pfn is not None]
    offered = [pfn for pfn in frames if int(memory.frames.flags[pfn]) & PG_LRU]
    offered = [pfn for pfn in offered if placement.eligible(memory, pfn)]
    if pressure_verbs.is_first(world):
        homes = {memory.frames.nid_of(pfn) for pfn in offered}
        target = placement.nearest(memory, min(homes)) if homes else None
        return 0 if target is None else len(offered) - pressure_verbs.migrate_to(world, target.nid, values)
    for pfn in offered:
        memory.lru_del(pfn)
    stayed, _ = placement.demote(memory, offered)
    placement.put_back(memory, stayed)
    return len(offered) - len(stayed)


def _migrate_balloon(world: World, _actor: str, values: Values) -> None:
    cram = _cram(world, values["of"])
    if not cram.balloon:
        raise Stuck("the balloon is empty")
    locked = "locked" in values
    check(balloon.migrate_page(world.kernel.memory, cram.balloon[0][0], values["to"], locked))


def _worker(world: World, _actor: str, values: Values) -> None:
    if "run" in values:
        world.kernel.cram_worker()
    else:
        world.cram_worker = "start" in values


def _round(world: World, _actor: str, values: Values) -> int:
    """One round of convergence: pages that the balloon gained or gave back."""
    return balloon.converge_round(world.kernel.memory, _cram(world, values["node"]), world.kernel.kill_on)


KERNEL_VERBS = [
    ("demote RANGE", _demote, "compressed RAM is offered the pages of a range: how many it took"),
    (
        "migrate balloon page of OF:NODE to TO:NODE [locked]",
        _migrate_balloon,
        "something wants the first frame of the balloon, and has a place for it on a node",
    ),
    (
        "run|stop|start cram worker",
        _worker,
        "the service's worker, which comes to rest after each step unless it is stopped",
    ),
    ("cram round NODE", _round, "one round of the balloon: pages gained or given back"),
]


# -- looking


def _cram(world: World, nid: int) -> CramNode:
    cram = world.kernel.memory.cram.nodes.get(nid)
    if cram is None:
        raise Stuck(f"{world.node_name(nid)} is not registered with the compressed RAM service")
    return cram


def _balloon(world: World, values: Values) -> int:
    return world.kernel.memory.nodes[values["node"]].balloon_pages


def _target(world: World, values: Values) -> int:
    return _cram(world, values["node"]).target_pages


def _cutoff(world: World, values: Values) -> int:
    return capacity.cutoff_pages(_cram(world, values["node"]))


def _gate(world: World, values: Values) -> str:
    """The words that close it."""
    words = _cram(world, values["node"]).gate
    closed = [] if words.alloc_allowed else ["withdrawn"]
    others = ("migration_blocked", "converge_block", "test_block", "full_pressure")
    closed += [name for name in others if getattr(words, name)]
    return ", ".join(closed) or "open"


def _registered(world: World, _values: Values) -> list[str]:
    return [world.node_name(nid) for nid in world.kernel.memory.cram.nodes]


def _trimmed(world: World, values: Values) -> int:
    cram = _cram(world, values["node"])
    return cram.trimmed_pages if "trimmed" in values else cram.zeroed_pages


def _placed(world: World, values: Values) -> int:
    cram = _cram(world, values["node"])
    return cram.placed_pages if "placed" in values else cram.refused_pages


def _promoted(world: World, values: Values) -> int:
    service = world.kernel.memory.cram
    return service.promote_fail if "fail" in values else service.promote_count


def _hot_reports(world: World, _values: Values) -> int:
    return len(world.kernel.memory.cram.hot)


def _changed(world: World, values: Values) -> int:
    """Pages whose content is another than at the last mark."""
    ref: RangeRef = values["range"]
    owner = "" if ref.is_file else world.mapping("", ref).process
    before = world.contents_base.get((owner, ref.name))
    if before is None:
        raise Stuck(f"there was no {ref} at the last `kernel: mark`")
    now = world.contents(ref)
    return sum(a != b for a, b in zip(before[ref.first :], now, strict=False))


def _mark_of(world: World, values: Values) -> str:
    return world.kernel.memory.nodes[values["node"]].no_alloc_owner or "nobody"


SUBJECTS = [
    (
        "changed pages of RANGE",
        _changed,
        "pages whose content is not what it was at the last `kernel: mark`: lost, or written since (of a page that "
        "was dirty already at the mark a store is not seen); 0 is data intact",
    ),
    ("balloon pages of NODE", _balloon, "what the balloon holds now"),
    ("balloon target of NODE", _target, "what it is to hold"),
    ("cutoff of NODE", _cutoff, "pages that may be in use: all but the target of the balloon"),
    (
        "gate of NODE",
        _gate,
        "open, or the words that close it: withdrawn, migration_blocked, converge_block, test_block, "
        "full_pressure (v4)",
    ),
    ("no_alloc owner of NODE", _mark_of, "who set the no-allocation mark of the zone, or nobody"),
    ("cram nodes", _registered, "nodes that are registered, in order"),
    (
        "trimmed|zeroed pages of NODE",
        _trimmed,
        "of frames given up: told to the device, overwritten with zeros",
    ),
    ("placed|refused pages of NODE", _placed, "that the service's own entry took, or had no room for"),
    ("cram promote count|fail", _promoted, "pages promoted because they were written or hot; failures"),
    ("hot reports", _hot_reports, "that nobody has looked at yet"),
]
