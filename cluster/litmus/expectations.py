"""What litmus tests expect: subjects of `expect`, the outcome of a step, and values that differ by design."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from privmem.cluster.config.tree import Problem, Tree, found
from privmem.cluster.litmus.grammar import Misread, Pattern, match, nearest, pattern
from privmem.cluster.litmus.process_verbs import nodes_text, policy_text
from privmem.cluster.litmus.values import TYPES, Names, RangeRef
from privmem.cluster.litmus.world import Stuck, World
from privmem.nodeagent.host import pagetables
from privmem.nodeagent.host.drivers.dax_test import format_features
from privmem.nodeagent.host.layout import PG_ALLOCATED, PG_UNINVITED
from privmem.nodeagent.host.vmstat import EVENTS
from privmem.scheduler import nodemask
from privmem.scheduler.isolation import ALIASES, DESIGNS
from privmem.scheduler.zonelist import ZonelistKind

#: Outcomes of a step that are no errno.
SIGNALS = ("SIGSEGV", "SIGBUS", "SIGKILL")
OK = "ok"
ELSE = "else"
ANY = "any of"

_COMPARISON = re.compile(r"(>=|<=|>|<|!=)\s*(-?\d+)")


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that can be looked at."""

    pattern: Pattern
    look: Callable[[World, dict[str, Any]], Any]
    doc: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of an `expect`: what to look at, and what it must be."""

    line: int
    text: str
    subject: Subject
    values: dict[str, Any]
    wanted: Tree

    def check(self, world: World, design: str) -> str:
        """Nothing when it holds, else why not."""
        chosen = choose(self.wanted, design)
        if chosen is None:
            return ""
        wanted = chosen.plain()
        if self.subject.pattern.verb == "no page of":
            wanted = {"nodes": wanted}
            got = self.subject.look(world, self.values | wanted)
            return f"{self.text}: {got}" if got else ""
        got = self.subject.look(world, self.values)
        if agrees(got, wanted):
            return ""
        return f"{self.text}: expected {shown(wanted)}, got {shown(got)}"


# -- values


def is_by_design(tree: Tree) -> bool:
    """Whether a value is a table of designs."""
    if not isinstance(tree.value, dict) or not tree.value:
        return False
    return any(key in DESIGNS or key in ALIASES for key in tree.value) or set(tree.value) == {ELSE}


def choose(tree: Tree, design: str) -> Tree | None:
    """The value for a design: its own, its family's, `else`; None when the file says nothing about it."""
    if not is_by_design(tree):
        return tree
    table = {ALIASES.get(key, key): below for key, below in _items(tree)}
    family = design.split(":")[0]
    for key in (design, family, ELSE):
        if key in table:
            return table[key]
    return None


def _items(tree: Tree) -> list[tuple[str, Tree]]:
    return list(tree.value.items()) if isinstance(tree.value, dict) else []


def agrees(got: Any, wanted: Any) -> bool:
    """Whether what was seen is what was wanted: equal, a comparison such as `>= 3`, one of `any of`, text with
    `...` for anything.
    """
    if isinstance(wanted, dict) and set(wanted) == {ANY}:
        return any(agrees(got, each) for each in wanted[ANY])
    if isinstance(wanted, dict) and isinstance(got, dict):
        return all(agrees(got.get(key, 0), value) for key, value in wanted.items()) and not any(
            value for key, value in got.items() if key not in wanted
        )
    if isinstance(wanted, tuple):
        return isinstance(got, list | tuple) and [str(g) for g in got] == [str(w) for w in wanted]
    if isinstance(wanted, str) and isinstance(got, int) and not isinstance(got, bool):
        match_ = _COMPARISON.fullmatch(wanted.strip())
        return bool(match_) and _compare(got, match_[1], int(match_[2])) if match_ else str(got) == wanted
    if isinstance(wanted, bool) or isinstance(got, bool):
        return got is wanted
    if isinstance(got, list):
        return wanted in (None, "none", "-") if not got else [str(wanted)] == [str(g) for g in got]
    if isinstance(wanted, str) and "..." in wanted and isinstance(got, str):
        parts = [re.escape(part) for part in wanted.split("...")]
        return re.fullmatch(".*".join(parts), got, re.DOTALL) is not None
    if wanted is None or wanted == "none":
        return got in (None, "", "none", 0)
    return str(got) == str(wanted)


def _compare(got: int, sign: str, bound: int) -> bool:
    return {
        ">": got > bound,
        ">=": got >= bound,
        "<": got < bound,
        "<=": got <= bound,
        "!=": got != bound,
    }[sign]


def shown(value: Any) -> str:
    """A value in a message."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "nothing" if value is None or value == "" else str(value)


# -- outcomes of steps


def check_outcome(tree: Tree, nodes: Collection[str] = ()) -> list[Problem]:
    """What is wrong with the expected outcome of a step on a machine with these nodes."""
    problems = []
    for word in _outcome_words(tree):
        text = str(word.value)
        if (
            len(text) > 3
            and text.isupper()
            and text.isalpha()
            and text not in errno.errorcode.values()
            and text not in SIGNALS
            and text not in nodes
        ):
            known = [*errno.errorcode.values(), *SIGNALS]
            problems.append(
                Problem(word.line, f"found {text!r}; allowed: an errno name{nearest(text, known)}", "expect")
            )
    if isinstance(tree.value, dict):
        for key, below in tree.value.items():
            if key not in DESIGNS and key not in ALIASES and key not in (ELSE, ANY):
                names = [*DESIGNS, *ALIASES, ELSE, ANY]
                text = f"found {key!r}; allowed: designs, else, any of{nearest(key, names)}"
                problems.append(Problem(below.key_line, text, "expect"))
    return problems


def _outcome_words(tree: Tree) -> list[Tree]:
    if isinstance(tree.value, dict):
        return [word for below in tree.value.values() for word in _outcome_words(below)]
    if isinstance(tree.value, list):
        return [word for below in tree.value for word in _outcome_words(below)]
    return [tree]


def outcome_agrees(error: str, result: Any, wanted: Any) -> bool:
    """`error`: the name of an errno or signal, empty when the step went well with `result`."""
    if isinstance(wanted, dict) and set(wanted) == {ANY}:
        return any(outcome_agrees(error, result, each) for each in wanted[ANY])
    if error:
        return str(wanted) == error
    if wanted == OK:
        return True
    return agrees("" if result is None else result, wanted)


# -- what can be looked at


def _frames_of(world: World, values: dict[str, Any]) -> list[int | None]:
    """Node of each page of a range or of a file's cache."""
    ref: RangeRef = values["range"]
    memory = world.kernel.memory
    if ref.is_file:
        file = world.kernel.files.get(ref.name) or world.opened[ref.name]
        last = file.nr_pages if ref.last is None else ref.last
        return [
            memory.frames.nid_of(file.pages[index]) if index in file.pages else None
            for index in range(ref.first, last)
        ]
    mapped = world.mapping("", ref)
    return world.process(mapped.process).where(mapped.addr, mapped.length)


def nodes_of(world: World, values: dict[str, Any]) -> list[str | None]:
    """Name of the node of each page of a range, None for one that is not there."""
    return [None if nid is None else world.node_name(nid) for nid in _frames_of(world, values)]


def _pages(world: World, values: dict[str, Any]) -> dict[str, int]:
    nodes = [nid for nid in _frames_of(world, values) if nid is not None]
    return {world.node_name(nid): nodes.count(nid) for nid in sorted(set(nodes))}


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
    return world.counter(values["word"])


def _node_state(world: World, values: dict[str, Any]) -> list[str] | str:
    states = world.kernel.node_states()
    if values["word"] not in states:
        return "absent"
    return [world.node_name(nid) for nid in nodemask.nodes(states[values["word"]])]


def _free_pages(world: World, values: dict[str, Any]) -> int:
    return world.kernel.memory.nodes[values["node"]].free_pages


def _total_pages(world: World, values: dict[str, Any]) -> int:
    return world.kernel.memory.nodes[values["node"]].managed_pages


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
    text = world.kernel.sysfs.read(values["word"])
    return errno.errorcode.get(-text, str(text)) if isinstance(text, int) else text


def _log(world: World, _values: dict[str, Any]) -> str:
    return "\n".join(world.kernel.log)


def _owner(world: World, values: dict[str, Any]) -> str | None:
    claim = world.kernel.hotplug.claims.get(values["node"])
    return claim.owner if claim else None


def _registered(world: World, values: dict[str, Any]) -> str | None:
    held = world.held.get(values["number"])
    return held.owner if held else None


def _installed(world: World, values: dict[str, Any]) -> str | None:
    held = world.held.get(values["number"])
    return held.ops.name if held and held.ops else None


def _callbacks(world: World, _values: dict[str, Any]) -> int:
    return world.kernel.owners.free_calls


def _pagetables(world: World, values: dict[str, Any]) -> int:
    return pagetables.on_node(world.kernel.memory, values["node"])


def _features(world: World, values: dict[str, Any]) -> list[str]:
    claim = world.kernel.hotplug.claims.get(values["node"])
    text = format_features(claim.features) if claim else "none"
    return [] if text == "none" else text.split(",")


def _state(world: World, values: dict[str, Any]) -> str:
    return world.kernel.hotplug.state(values["node"])


def _private(world: World, _values: dict[str, Any]) -> list[str]:
    return nodes_text(world, world.kernel.memory.topology.private).split(",")


def _huge(world: World, values: dict[str, Any]) -> int:
    return world.process(values["process"]).anon_huge_pages() // 512


def _hugepages(world: World, values: dict[str, Any]) -> int:
    name = "free_hugepages" if "free" in values else "nr_hugepages"
    path = f"/sys/devices/system/node/node{values['node']}/hugepages/hugepages-2048kB/{name}"
    text = world.kernel.sysfs.read(path)
    return 0 if isinstance(text, int) else int(text)


SUBJECTS: tuple[Subject, ...] = tuple(
    Subject(pattern(text), look, doc)
    for text, look, doc in (
        (
            "pages of RANGE",
            _pages,
            "node: how many present pages of a mapping, or cached ones of a file; others none",
        ),
        ("absent pages of RANGE", _absent, "pages that are not present (or not cached)"),
        ("no page of RANGE on", _no_page, "the value is a node, or a list of nodes"),
        ("soft|hard faults of PROCESS", _faults, "since the last mark"),
        ("vmstat WORD", _vmstat, "a counter of /proc/vmstat, since the last mark"),
        (
            "node state WORD",
            _node_state,
            "nodes of has_memory, has_private_memory, ...; `absent` if there is no such file",
        ),
        ("state of NODE", _state, "online, offline or unplugged"),
        ("free pages of NODE", _free_pages, "free pages of the node"),
        ("total pages of NODE", _total_pages, "managed pages of the node"),
        ("used pages of NODE", _used_pages, "allocated pages of the node, whoever holds them"),
        ("leaks", _leaks, "node: pages that landed there uninvited; 0 for none"),
        ("policy of PROCESS", _policy, "`bind P`"),
        ("policy at RANGE", _policy_at, "the policy in force at an address"),
        ("mems of WORD", _mems, "effective mems of a cgroup, or of a process"),
        ("requested mems of WORD", _mems, "what was written to cpuset.mems"),
        ("tier of NODE", _tier, "number of its memory tier, or none"),
        ("demotion targets of NODE", _demotion_targets, "in the order in which they are tried"),
        ("fallback|thisnode|private list of NODE", _list, "the zonelist"),
        ("min|low|high|promo watermark of NODE", _watermark, "in pages"),
        ("fate of PROCESS", _is_alive, "alive, ended, killed"),
        ("text of WORD", _file_text, "a file of /sys, /proc or the cgroup tree; `...` stands for anything"),
        ("log", _log, "the kernel's log; `...` stands for anything"),
        ("owner of NODE", _owner, "who claimed the node, or none"),
        ("features of NODE", _features, "of the claim"),
        ("registered owner of NUMBER", _registered, "by the register calls, of a node number"),
        ("ops of NUMBER", _installed, "name of the ops installed by set_ops"),
        ("free_folio calls", _callbacks, "how often an owner's free_folio ran"),
        ("page tables on NODE", _pagetables, "pages of page tables (sysctl `pagetables: true`)"),
        ("private nodes", _private, "nodes that are private now"),
        ("huge pages of PROCESS", _huge, "transparent huge pages that it maps"),
        ("total|free hugepages of NODE", _hugepages, "of the pool, 2 MiB each"),
    )
)


def parse(text: str, value: Tree, names: Names) -> Claim:
    """Read one line of an `expect`. Raises Misread."""
    subject, values = find_subject(text, names)
    _check_value(subject, value, names)
    return Claim(value.key_line or value.line, text, subject, values, value)


def look(world: World, text: str, names: Names) -> Any:
    """What a subject is now. Raises Misread."""
    subject, values = find_subject(text, names)
    return subject.look(world, values)


def find_subject(text: str, names: Names) -> tuple[Subject, dict[str, Any]]:
    """The subject that a text means, and its values. Raises Misread."""
    words: Sequence[str] = shlex.split(text)
    first_error: Misread | None = None
    for subject in SUBJECTS:
        if not words or words[0] not in subject.pattern.elements[0].literals:
            continue
        try:
            values = match(subject.pattern, words, TYPES, names)
        except Misread as error:
            first_error = first_error or error
            continue
        if subject.pattern.text == "vmstat WORD" and values["word"] not in EVENTS:
            raise Misread(
                f"found the counter {values['word']!r}; allowed: {', '.join(EVENTS)}"
                f"{nearest(values['word'], EVENTS)}"
            )
        return subject, values
    if first_error:
        raise first_error
    known = [s.pattern.text for s in SUBJECTS]
    raise Misread(f"found {text!r}; allowed: {'; '.join(known)}{nearest(text, known)}")


def _check_value(subject: Subject, value: Tree, names: Names) -> None:
    """Nodes in the value must exist."""
    tables = [below for _, below in _items(value)] if is_by_design(value) else [value]
    node_valued = ("pages of RANGE", "no page of RANGE on", "leaks", "demotion targets of NODE")
    if subject.pattern.text not in node_valued:
        return
    for table in tables:
        words: list[str] = []
        if isinstance(table.value, dict):
            words = [key for key in table.value if key != ANY]
        elif isinstance(table.value, list):
            words = [str(item.value) for item in table.value]
        elif isinstance(table.value, str):
            words = [table.value]
        for word in words:
            if word not in names.nodes and word not in ("none", "-", OK):
                known = ", ".join(names.nodes)
                raise Misread(f"found the node {word!r}; allowed: {known}{nearest(word, list(names.nodes))}")
    if any(table.value is None for table in tables):
        raise Misread(f"found {found(None)}; allowed: a value")
