"""What an `expect` of a litmus test can look at: a table of subjects, and a function for each."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from privmem.cluster.litmus import cram_verbs, pressure_verbs
from privmem.cluster.litmus.grammar import Pattern, pattern
from privmem.cluster.litmus.process_verbs import policy_text
from privmem.cluster.litmus.values import RangeRef
from privmem.cluster.litmus.world import Stuck, World
from privmem.nodeagent.host import memcg, pagetables, proc_files
from privmem.nodeagent.host.drivers.dax_test import format_features
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_DIRTY, PG_UNEVICTABLE, PG_UNINVITED, PTE_DIRTY
from privmem.nodeagent.host.memory import NUMASTAT
from privmem.nodeagent.host.swap_area import swap_entries
from privmem.scheduler import nodemask
from privmem.scheduler.abi import PAGE_SHIFT
from privmem.scheduler.zonelist import ZonelistKind


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that can be looked at."""

    pattern: Pattern
    look: Callable[[World, dict[str, Any]], Any]
    doc: str


def _frames_of(world: World, values: dict[str, Any]) -> list[int | None]:
    """Node of each page of a range or of a file's cache."""
    ref: RangeRef = values["range"]
    memory = world.kernel.memory
    if ref.is_file:
        file = world.file(ref.name)
        last = file.nr_pages if ref.last is None else ref.last
        return [
            memory.frames.nid_of(file.pages[index]) if index in file.pages else None
            for index in range(ref.first, last)
        ]
    mapped = world.mapping("", ref)
    return world.process(mapped.process).where(mapped.addr, mapped.length)


def _swapped(world: World, values: dict[str, Any]) -> int:
    ref: RangeRef = values["range"]
    if ref.is_file:
        file = world.file(ref.name)
        return sum(ref.first <= index < (ref.last or file.nr_pages) for index in file.swapped)
    mapped = world.mapping("", ref)
    start, nr_pages = mapped.addr >> PAGE_SHIFT, mapped.length >> PAGE_SHIFT
    count = 0
    for part in world.process(mapped.process).task.mm.in_range(start, start + nr_pages):
        if part.object_id:
            swapped = world.kernel.memory.page_cache.of(part.object_id).swapped
            count += sum(part.index <= index < part.index + part.nr_pages for index in swapped)
        pte = world.kernel.memory.page_table.pte[part.slot : part.slot + part.nr_pages]
        count += len(swap_entries(pte))
    return count


def _dirty(world: World, values: dict[str, Any]) -> int:
    """Pages that are written and not written back: marked so themselves, or by an entry of the page table."""
    memory, ref = world.kernel.memory, values["range"]
    pages = world.file(ref.name).pages if ref.is_file else {}
    count = 0
    for index, pfn in pages.items():
        if not ref.first <= index < (ref.last or index + 1):
            continue
        dirty = bool(memory.frames.flags[pfn] & PG_DIRTY)
        slot = int(memory.frames.rmap[pfn])
        while slot:
            dirty |= bool(int(memory.page_table.pte[slot]) & PTE_DIRTY)
            slot = int(memory.page_table.rmap_next[slot])
        count += dirty
    return count


def _free_swap(world: World, _values: dict[str, Any]) -> int:
    return world.kernel.memory.swap.free_pages


def _resident(world: World, values: dict[str, Any]) -> int:
    return world.process(values["process"]).resident_pages()


def _mappings(world: World, values: dict[str, Any]) -> int:
    return len(world.process(values["process"]).task.mm.vmas)


def _numa_maps(world: World, values: dict[str, Any]) -> str:
    return world.process(values["process"]).numa_maps()


def _meminfo(world: World, values: dict[str, Any]) -> int:
    numbers = world.kernel.meminfo(values["node"])
    if values["word"].startswith("HugePages_"):  # huge pages, not kB
        text = str(world.kernel.sysfs.read(f"/sys/devices/system/node/node{values['node']}/meminfo"))
        numbers |= {name: int(count) for name, count in re.findall(r"(HugePages_\w+): (\d+)", text)}
    if values["word"] not in numbers:
        raise Stuck(f"meminfo has no {values['word']}; it has {', '.join(numbers)}")
    return numbers[values["word"]]


def _numastat(world: World, values: dict[str, Any]) -> int:
    if values["word"] not in NUMASTAT:
        raise Stuck(f"numastat has no {values['word']}; it has {', '.join(NUMASTAT)}")
    at = values["node"], NUMASTAT.index(values["word"])
    return int(world.kernel.memory.numastat[at] - world.numastat_base[at])


def _unevictable(world: World, values: dict[str, Any]) -> int:
    node = world.kernel.memory.nodes[values["node"]]
    flags = world.kernel.memory.frames.flags[node.start_pfn : node.start_pfn + node.spec.span_pages]
    return int(np.count_nonzero(flags & PG_UNEVICTABLE))


def nodes_of(world: World, values: dict[str, Any]) -> list[str | None]:
    """Name of the node of each page of a range, None for one that is not there."""
    return [None if nid is None else world.node_name(nid) for nid in _frames_of(world, values)]


def _pages(world: World, values: dict[str, Any]) -> dict[str, int]:
    nodes = [nid for nid in _frames_of(world, values) if nid is not None]
    return {world.node_name(nid): nodes.count(nid) for nid in sorted(set(nodes))}


def _shared(world: World, values: dict[str, Any]) -> int:
    one, other = world.frames(values["one"]), world.frames(values["other"])
    return sum(a is not None and a == b for a, b in zip(one, other, strict=False))


def _moved(world: World, values: dict[str, Any]) -> int:
    ref: RangeRef = values["range"]
    owner = "" if ref.is_file else world.mapping("", ref).process
    before = world.frames_base.get((owner, ref.name))
    if before is None:
        raise Stuck(f"there was no {ref} at the last `kernel: mark`")
    now = world.frames(ref)
    return sum(
        a is not None and b is not None and a != b for a, b in zip(before[ref.first :], now, strict=False)
    )


def _pinned(world: World, values: dict[str, Any]) -> int:
    pins = world.kernel.memory.high_order.pins_of
    held = {pfn for pid in sorted(pins) for pfn in pins[pid]}
    return sum(pfn in held for pfn in world.frames(values["range"]))


def _absent(world: World, values: dict[str, Any]) -> int:
    return _frames_of(world, values).count(None)


def _no_page(world: World, values: dict[str, Any]) -> str:
    """Empty when no page of the range is on the nodes, else where some are."""
    wanted = values["nodes"]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [n for n in names if n not in world.machine.nodes]
    if unknown:
        raise Stuck(f"there is no node {', '.join(map(str, unknown))}")
    here = _pages(world, values)
    return ", ".join(f"{here[name]} on {name}" for name in names if here.get(name))


def _faults(world: World, values: dict[str, Any]) -> int:
    soft, hard = world.process(values["process"]).faults_since_mark()
    return hard if "hard" in values else soft


def _vmstat(world: World, values: dict[str, Any]) -> int:
    more = values.get("more")
    return world.counter(values["word"]) + (world.counter(more) if more else 0)


def _node_vmstat(world: World, values: dict[str, Any]) -> int:
    text = world.kernel.sysfs.read(f"/sys/devices/system/node/node{values['node']}/vmstat")
    numbers = dict(line.split() for line in text.splitlines()) if isinstance(text, str) else {}
    if values["word"] not in numbers:
        raise Stuck(f"the node's vmstat has no {values['word']}; it has {', '.join(numbers) or 'nothing'}")
    return int(numbers[values["word"]])


def _node_state(world: World, values: dict[str, Any]) -> list[str] | str:
    states = world.kernel.node_states()
    if values["word"] not in states:
        return "absent"
    return [world.node_name(nid) for nid in nodemask.nodes(states[values["word"]])]


def _free_pages(world: World, values: dict[str, Any]) -> int:
    return world.kernel.memory.nodes[values["node"]].free_pages


def _total_pages(world: World, values: dict[str, Any]) -> int:
    return world.kernel.memory.nodes[values["node"]].usable_pages


def _used_pages(world: World, values: dict[str, Any]) -> int:
    node = world.kernel.memory.nodes[values["node"]]
    flags = world.kernel.memory.frames.flags[node.start_pfn : node.start_pfn + node.spec.span_pages]
    return int(np.count_nonzero(flags & PG_ALLOCATED))


def _leaks(world: World, values: dict[str, Any]) -> dict[str, int] | int:
    flags = world.kernel.memory.frames.flags
    counts = {
        world.node_name(nid): int(
            np.count_nonzero(flags[node.start_pfn : node.start_pfn + node.spec.span_pages] & PG_UNINVITED)
        )
        for nid, node in world.kernel.memory.nodes.items()
    }
    return {name: count for name, count in counts.items() if count} or 0


def _policy(world: World, values: dict[str, Any]) -> str:
    process = world.process(values["process"])
    return policy_text(world, *process.get_mempolicy())


def _policy_at(world: World, values: dict[str, Any]) -> str:
    mapped = world.mapping("", values["range"])
    return policy_text(world, *world.process(mapped.process).get_mempolicy(mapped.addr, 2))


def _mems(world: World, values: dict[str, Any]) -> list[str]:
    name = values["word"]
    if name in world.kernel.cgroups:
        group = world.kernel.cgroups[name].cpuset
        mask = group.requested if "requested" in values else group.effective
    elif name in world.processes:
        mask = world.process(name).task.mems_allowed
    else:
        raise Stuck(f"{name} is neither a cgroup nor a process")
    return [world.node_name(nid) for nid in nodemask.nodes(mask)]


def _tier(world: World, values: dict[str, Any]) -> int | None:
    for number, mask in world.kernel.tiers().items():
        if nodemask.has(mask, values["node"]):
            return number
    return None


def _demotion_targets(world: World, values: dict[str, Any]) -> list[str]:
    return [world.node_name(nid) for nid in world.kernel.memory.demotion_targets.get(values["node"], ())]


def _list(world: World, values: dict[str, Any]) -> list[str]:
    kinds = {
        "fallback": ZonelistKind.FALLBACK,
        "thisnode": ZonelistKind.NOFALLBACK,
        "nofallback": ZonelistKind.NOFALLBACK,
        "private": ZonelistKind.PRIVATE,
    }
    kind = next(kinds[word] for word in kinds if word in values)
    return [world.node_name(nid) for nid in world.kernel.memory.resolver.lists.of(kind, values["node"])]


def _watermark(world: World, values: dict[str, Any]) -> int:
    wmark = world.kernel.memory.nodes[values["node"]].wmark
    name = next(word for word in ("min", "low", "high", "promo") if word in values)
    return int(getattr(wmark, f"{name}_pages"))


def _is_alive(world: World, values: dict[str, Any]) -> str:
    process = world.process(values["process"])
    return "killed" if process.killed else ("ended" if process.exited else "alive")


def _file_text(world: World, values: dict[str, Any]) -> str | int:
    text = world.kernel.sysfs.read(world.path(values["word"]))
    return errno.errorcode.get(-text, str(text)) if isinstance(text, int) else text


_BY_NODE = {
    "lru_gen": "/sys/kernel/debug/lru_gen",
    "zoneinfo": "/proc/zoneinfo",
    "buddyinfo": "/proc/buddyinfo",
}


def _nodes_in(world: World, values: dict[str, Any]) -> list[str]:
    if "kcore" in values:
        mask = proc_files.ProcFiles(world.kernel).covered()
    else:
        path = next(path for word, path in _BY_NODE.items() if word in values)
        text = str(world.kernel.sysfs.read(path))
        mask = nodemask.of(int(number) for number in re.findall(r"\bnode\s+(\d+)", text, re.IGNORECASE))
    return [world.node_name(nid) for nid in nodemask.nodes(mask)]


def _numa_stat(world: World, values: dict[str, Any]) -> int:
    kinds = memcg.numa_stat(world.kernel.memory, values["cgroup"])
    if values["word"] not in kinds:
        raise Stuck(f"memory.numa_stat has no {values['word']}; it has {', '.join(kinds)}")
    return kinds[values["word"]].get(values["node"], 0)


def _cgroup_of(world: World, values: dict[str, Any]) -> str:
    return world.process(values["process"]).cgroup or "root"


def _members(world: World, values: dict[str, Any]) -> list[str]:
    inside = {task.pid for task in world.kernel.tasks_of(values["cgroup"])}
    return [name for name, process in world.processes.items() if process.pid in inside]


def _log(world: World, _values: dict[str, Any]) -> str:
    return "\n".join(world.kernel.log)


def _owner(world: World, values: dict[str, Any]) -> str | None:
    claim = world.kernel.hotplug.claims.get(values["node"])
    return claim.owner if claim else None


def _registered(world: World, values: dict[str, Any]) -> str | None:
    held = world.held.get(values["nodeid"])
    return held.owner if held else None


def _installed(world: World, values: dict[str, Any]) -> str | None:
    held = world.held.get(values["nodeid"])
    return held.ops.name if held and held.ops else None


def _pagetables(world: World, values: dict[str, Any]) -> int:
    return pagetables.on_node(world.kernel.memory, values["node"])


def _features(world: World, values: dict[str, Any]) -> list[str]:
    claim = world.kernel.hotplug.claims.get(values["node"])
    text = format_features(claim.features) if claim else "none"
    return [] if text == "none" else text.split(",")


def _state(world: World, values: dict[str, Any]) -> str:
    return world.kernel.hotplug.state(values["node"])


def _private(world: World, _values: dict[str, Any]) -> list[str]:
    return [world.node_name(nid) for nid in nodemask.nodes(world.kernel.memory.topology.private)]


def _huge(world: World, values: dict[str, Any]) -> int:
    return world.process(values["process"]).anon_huge_pages() // 512


def _hugepages(world: World, values: dict[str, Any]) -> int:
    name = "free_hugepages" if "free" in values else "nr_hugepages"
    path = f"/sys/devices/system/node/node{values['node']}/hugepages/hugepages-2048kB/{name}"
    text = world.kernel.sysfs.read(path)
    return 0 if isinstance(text, int) else int(text)


#: Mask files of /sys/devices/system/node in any version of the series.
STATE_FILES = (
    "possible",
    "online",
    "has_cpu",
    "has_normal_memory",
    "has_memory",
    "has_private_memory",
    "has_fallback_memory",
    "has_public_memory",
    "has_user_memory",
    "has_common_memory",
)

SUBJECTS: tuple[Subject, ...] = tuple(
    Subject(pattern(text), look, doc)
    for text, look, doc in (
        (
            "pages of RANGE",
            _pages,
            "node: how many present pages of a mapping, or cached ones of a file; others none",
        ),
        ("pages shared by ONE:RANGE and OTHER:RANGE", _shared, "how many are the same frames, page by page"),
        ("moved pages of RANGE", _moved, "pages that are in another frame than at the last `kernel: mark`"),
        ("pinned pages of RANGE", _pinned, "pages that a device has pinned"),
        ("absent pages of RANGE", _absent, "pages that are not present (or not cached)"),
        ("swapped pages of RANGE", _swapped, "pages that are on swap"),
        ("dirty pages of RANGE", _dirty, "of a file: cached pages that are written and not written back"),
        ("free swap", _free_swap, "free slots of the swap area"),
        ("resident pages of PROCESS", _resident, "VmRSS"),
        ("mappings of PROCESS", _mappings, "how many VMAs it has"),
        ("numa_maps of PROCESS", _numa_maps, "/proc/PID/numa_maps; `...` stands for anything"),
        ("meminfo WORD of NODE", _meminfo, "a line of the node's meminfo, in kB"),
        ("numastat WORD of NODE", _numastat, "a line of the node's numastat, since the last mark"),
        ("unevictable pages of NODE", _unevictable, "mlocked pages"),
        ("no page of RANGE on", _no_page, "the value is a node, or a list of nodes"),
        ("soft|hard faults of PROCESS", _faults, "since the last mark"),
        (
            "vmstat WORD [+ MORE:WORD]",
            _vmstat,
            "a counter of /proc/vmstat, or two together, since the last mark",
        ),
        (
            "node vmstat WORD of NODE",
            _node_vmstat,
            "a line of the node's vmstat: nr_free_pages, nr_inactive_anon, ..., numa_hit, ...",
        ),
        (
            "node state WORD",
            _node_state,
            "nodes of possible, online, has_cpu, has_memory, has_private_memory, has_fallback_memory, "
            "has_public_memory, has_user_memory, has_common_memory; `absent` where the version has no such file",
        ),
        ("state of NODE", _state, "online, offline or unplugged"),
        ("free pages of NODE", _free_pages, "free pages of the node"),
        ("total pages of NODE", _total_pages, "managed pages of the node: MemTotal, without a balloon"),
        ("used pages of NODE", _used_pages, "allocated pages of the node, whoever holds them"),
        ("leaks", _leaks, "node: pages that landed there uninvited; 0 for none"),
        ("policy of PROCESS", _policy, "`bind P`"),
        ("policy at RANGE", _policy_at, "the policy in force at an address"),
        ("mems of WORD", _mems, "effective mems of a cgroup, or of a process"),
        ("requested mems of WORD", _mems, "what was written to cpuset.mems"),
        ("tier of NODE", _tier, "number of its memory tier, or none"),
        ("demotion targets of NODE", _demotion_targets, "in the order in which they are tried"),
        (
            "fallback|thisnode|nofallback|private list of NODE",
            _list,
            "the zonelist; thisnode: the no-fallback one",
        ),
        ("min|low|high|promo watermark of NODE", _watermark, "in pages"),
        ("fate of PROCESS", _is_alive, "alive, ended, killed"),
        (
            "text of WORD",
            _file_text,
            "a file; paths may have names: /proc/A/status, .../node/nodeP/meminfo; `...` stands for anything",
        ),
        (
            "nodes in kcore|lru_gen|zoneinfo|buddyinfo",
            _nodes_in,
            "whose memory /proc/kcore covers, or that debugfs lru_gen or a file of /proc lists",
        ),
        (
            "numa_stat WORD of CGROUP on NODE",
            _numa_stat,
            "pages of memory.numa_stat: anon or file; the file itself is in bytes",
        ),
        ("cgroup of PROCESS", _cgroup_of, "where it is; `root` at the top"),
        ("processes in CGROUP", _members, "the living ones"),
        ("log", _log, "the kernel's log; `...` stands for anything"),
        ("owner of NODE", _owner, "who claimed the node, or none"),
        ("features of NODE", _features, "of the claim"),
        ("registered owner of NODEID", _registered, "by the register calls, of a node number"),
        ("ops of NODEID", _installed, "name of the ops installed by set_ops"),
        ("page tables on NODE", _pagetables, "pages of page tables (sysctl `pagetables: true`)"),
        ("private nodes", _private, "nodes that are private now"),
        ("huge pages of PROCESS", _huge, "transparent huge pages that it maps"),
        ("total|free hugepages of NODE", _hugepages, "of the pool, 2 MiB each"),
        *cram_verbs.SUBJECTS,
        *pressure_verbs.SUBJECTS,
    )
)
