"""The machine of a litmus test: nodes by name, files, cgroups and switches, and the emulated Linux made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from privmem.cluster.config.tree import Problem, Tree, found
from privmem.cluster.config.units import UnitError, parse_size
from privmem.cluster.litmus.grammar import Misread, nearest
from privmem.cluster.litmus.values import FEATURES, HUGE_PAGES, feature_named
from privmem.nodeagent.host.cram.service import Generation, can_carry
from privmem.nodeagent.host.kernel import Kernel, NodeBoot
from privmem.nodeagent.host.memory import NumaBalancing, Sysctl
from privmem.nodeagent.host.swap import swapon
from privmem.scheduler.abi import PAGE_SIZE, Feature
from privmem.scheduler.tiers import ADISTANCE_BY_CLASS, ADISTANCE_DAX
from privmem.scheduler.topology import LOCAL_DISTANCE, ZONE_MOVABLE, ZONE_NORMAL
from privmem.scheduler.versions import LINUX_6_1, KernelVersion

#: Bounds, so that a file cannot ask for a day's work.
NODES_MAX = 16
PAGES_MAX = 1 << 18
FILE_PAGES_MAX = 1 << 16

#: Distance between two nodes when nobody says: general ones, and to a private one.
GENERAL_DISTANCE = 20
PRIVATE_DISTANCE = 30

_NODE_KEYS = ("memory", "cpus", "private", "class", "zone", "adistance", "distance", "plugged", "cram")
_MACHINE_KEYS = ("nodes", "files", "cgroups", "distances", "sysctl", "cgroup_version", "cmdline", "linux")
#: Switches, sizes in pages and numbers of `sysctl`.
_SWITCHES = ("demotion", "pagetables", "zero_page", "swap_in_ram", "dropwrite")
_SIZES = ("readahead", "fault_around", "swap")
_NUMBERS = ("numa_balancing", "swappiness", "page_cluster", "watermark_scale_factor", "min_free_kbytes")
_SYSCTL_KEYS = (*_SWITCHES, *_SIZES, *_NUMBERS, "thp", "cram_generation")
_GENERATIONS = tuple(str(generation) for generation in Generation)
_CLASSES = sorted(ADISTANCE_BY_CLASS)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a litmus test runs on."""

    nodes: dict[str, NodeBoot]
    distances: tuple[tuple[int, ...], ...]
    #: File name -> pages; cgroup name -> parent.
    files: dict[str, int] = field(default_factory=dict)
    cgroups: dict[str, str] = field(default_factory=dict)
    sysctl: dict[str, Any] = field(default_factory=dict)
    cgroup_v1: bool = False
    #: The kernel's command line, and whose rules it follows where versions of Linux differ.
    cmdline: str = ""
    linux: KernelVersion = LINUX_6_1
    #: Nodes of compressed RAM, with the nominal ratio of their device, in thousandths.
    cram: dict[str, int] = field(default_factory=dict)

    @property
    def nids(self) -> dict[str, int]:
        """Node name -> id."""
        return {name: node.nid for name, node in self.nodes.items()}

    def boot(self, design: str) -> Kernel:
        """A fresh kernel under a design."""
        knobs = Sysctl(
            NumaBalancing(mode=self.sysctl.get("numa_balancing", 0)),
            demotion_enabled=self.sysctl.get("demotion", False),
            linux=self.linux,
            # One access brings one page, unless the file says otherwise; Linux's own are 32 and 16 pages.
            readahead_pages=self.sysctl.get("readahead", 0),
            fault_around_pages=self.sysctl.get("fault_around", 1),
            zero_page=self.sysctl.get("zero_page", True),
            swappiness=self.sysctl.get("swappiness", 60),
            watermark_scale_factor=self.sysctl.get("watermark_scale_factor", 10),
            min_free_kbytes=self.sysctl.get("min_free_kbytes"),
        )
        kernel = Kernel(self.nodes.values(), self.distances, design, knobs, self.cgroup_v1, self.cmdline)
        kernel.memory.cram.drops_on_write = self.sysctl.get("dropwrite", False)
        kernel.memory.account_pagetables = self.sysctl.get("pagetables", False)
        kernel.memory.high_order.thp.enabled = self.sysctl.get("thp", "madvise")
        wanted = Generation(self.sysctl.get("cram_generation", kernel.memory.cram.generation))
        if can_carry(kernel.design.label, wanted):
            kernel.memory.cram.generation = wanted
        if self.sysctl.get("swap"):
            in_ram, cluster = self.sysctl.get("swap_in_ram", False), self.sysctl.get("page_cluster", 0)
            swapon(kernel.memory, self.sysctl["swap"], synchronous=in_ram, page_cluster=cluster)
        for name, pages in self.files.items():
            kernel.create_file(name, pages)
        for name, parent in self.cgroups.items():
            kernel.create_cgroup(name, parent)
        return kernel


class Reader:
    """Reads a machine from a tree and gathers what is wrong with it."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def read(self, tree: Tree) -> Machine | None:
        """The machine, or None when something is wrong."""
        top = self._mapping(tree, "machine", _MACHINE_KEYS)
        nodes: dict[str, NodeBoot] = {}
        distances: dict[str, dict[str, int]] = {}
        trees = self._mapping(top.get("nodes"), "machine.nodes") if "nodes" in top else {}
        if not 0 < len(trees) <= NODES_MAX:
            self._wrong(
                top.get("nodes", tree), "machine.nodes", f"{len(trees)} nodes", f"1 to {NODES_MAX} nodes"
            )
        for nid, (name, below) in enumerate(trees.items()):
            if not name.isidentifier():
                self._wrong(
                    below, f"machine.nodes.{name}", f"the name {name!r}", "a name of letters and digits"
                )
            nodes[name] = self._node(below, f"machine.nodes.{name}", nid, distances.setdefault(name, {}))
        matrix = self._matrix(nodes, distances)
        if "distances" in top:
            matrix = self._given_matrix(top["distances"], len(nodes))
        for name, row in distances.items():
            for other in row:
                if other not in nodes and other != "*":
                    where = trees[name]
                    self._wrong(
                        where, f"machine.nodes.{name}.distance", f"the node {other!r}", ", ".join(nodes)
                    )
        files = self._sizes(top.get("files"), "machine.files")
        cgroups = self._cgroups(top.get("cgroups"))
        sysctl = self._sysctl(top.get("sysctl"))
        version = self._word(top.get("cgroup_version"), "machine.cgroup_version", ("1", "2"), "2")
        cmdline = str(top["cmdline"].value) if "cmdline" in top else ""
        linux = self._linux(top.get("linux"))
        cram = self._cram(trees)
        cpus = [cpu for node in nodes.values() for cpu in node.cpus]
        if len(set(cpus)) != len(cpus) or not cpus:
            self._wrong(tree, "machine.nodes", f"CPUs {cpus}", "each CPU on one node, and at least one CPU")
        return (
            None
            if self.problems
            else Machine(nodes, matrix, files, cgroups, sysctl, version == "1", cmdline, linux, cram)
        )

    # -- parts

    def _node(self, tree: Tree, path: str, nid: int, distance: dict[str, int]) -> NodeBoot:
        keys = self._mapping(tree, path, _NODE_KEYS)
        private, wish = self._private(keys.get("private"), path)
        is_cram = "cram" in keys and keys["cram"].value is not False
        kind = self._word(
            keys.get("class"), f"{path}.class", _CLASSES, "compressed-ram" if is_cram else "dram"
        )
        adistance = ADISTANCE_DAX if private and "class" not in keys else ADISTANCE_BY_CLASS[kind]
        zones = (ZONE_NORMAL, ZONE_MOVABLE)
        default_zone = ZONE_MOVABLE if private else ZONE_NORMAL
        distance.update(self._distance(keys.get("distance"), f"{path}.distance"))
        return NodeBoot(
            nid=nid,
            pages=self._pages(keys.get("memory"), f"{path}.memory", 1024, PAGES_MAX),
            cpus=self._cpus(keys.get("cpus"), f"{path}.cpus"),
            private=private and not is_cram,
            wish=wish,
            zone=self._word(keys.get("zone"), f"{path}.zone", zones, default_zone),
            adistance=self._int(keys.get("adistance"), f"{path}.adistance", adistance),
            kind=kind,
            online=self._bool(keys.get("plugged"), f"{path}.plugged", True),
            by_device=is_cram,
        )

    def _cram(self, nodes: Mapping[str, Tree]) -> dict[str, int]:
        """Nominal ratios of the nodes with `cram:`; true is 1.00."""
        ratios: dict[str, int] = {}
        for name, tree in nodes.items():
            below = tree.value.get("cram") if isinstance(tree.value, dict) else None
            if below is None or below.value is False:
                continue
            ratios[name] = (
                1000 if below.value is True else self._int(below, f"machine.nodes.{name}.cram", 1000)
            )
            if ratios[name] < 1000:
                allowed = "true, or the nominal ratio in thousandths, from 1000 on"
                self._wrong(below, f"machine.nodes.{name}.cram", found(below), allowed)
        return ratios

    def _private(self, tree: Tree | None, path: str) -> tuple[bool, Feature]:
        if tree is None or tree.value is False:
            return False, Feature.NONE
        if tree.value is True:
            return True, Feature.NONE
        mask = Feature.NONE
        if not isinstance(tree.value, list):
            self._wrong(tree, f"{path}.private", found(tree), "a list of features, or true")
            return True, mask
        for item in tree.value:
            feature = feature_named(str(item.value))
            if feature is None:
                known = ", ".join(FEATURES)
                hint = nearest(str(item.value), list(FEATURES))
                self._wrong(item, f"{path}.private", found(item), known + hint)
            else:
                mask |= feature
        return True, mask

    def _cpus(self, tree: Tree | None, path: str) -> tuple[int, ...]:
        if tree is None:
            return ()
        items = tree.plain() if isinstance(tree.value, list) else (tree.value,)
        if not all(isinstance(cpu, int) and 0 <= cpu < 1024 for cpu in items):
            self._wrong(tree, path, found(tree), "a list of CPU numbers")
            return ()
        return tuple(items)

    def _distance(self, tree: Tree | None, path: str) -> dict[str, int]:
        """To all others, or by node."""
        if tree is None:
            return {}
        if isinstance(tree.value, dict):
            return {name: self._one_distance(below, f"{path}.{name}") for name, below in tree.value.items()}
        return {"*": self._one_distance(tree, path)}

    def _one_distance(self, tree: Tree, path: str) -> int:
        if not _is_distance(tree.value):
            self._wrong(
                tree, path, found(tree), f"a number from {LOCAL_DISTANCE} to 254, or one for each node"
            )
            return LOCAL_DISTANCE
        return int(str(tree.value))

    def _matrix(
        self, nodes: Mapping[str, NodeBoot], given: Mapping[str, Mapping[str, int]]
    ) -> tuple[tuple[int, ...], ...]:
        """A distance that either side names; the larger of both general ones; else by kind."""
        rows = []
        for a, one in nodes.items():
            row = []
            for b, other in nodes.items():
                if a == b:
                    row.append(LOCAL_DISTANCE)
                    continue
                named = given.get(a, {}).get(b) or given.get(b, {}).get(a)
                wide = [given[n]["*"] for n in (a, b) if "*" in given.get(n, {})]
                private = one.private or other.private or one.by_device or other.by_device
                default = PRIVATE_DISTANCE if private else GENERAL_DISTANCE
                row.append(named or max(wide, default=default))
            rows.append(tuple(row))
        return tuple(rows)

    def _given_matrix(self, tree: Tree, nr_nodes: int) -> tuple[tuple[int, ...], ...]:
        """The SLIT, a row for each node in the order of `nodes`."""
        rows = tree.plain() if isinstance(tree.value, list) else ()
        fits = len(rows) == nr_nodes and all(
            isinstance(row, tuple) and len(row) == nr_nodes and all(_is_distance(d) for d in row)
            for row in rows
        )
        if not fits or any(row[at] != LOCAL_DISTANCE for at, row in enumerate(rows)):
            allowed = (
                f"{nr_nodes} rows of {nr_nodes} numbers from 11 to 254, {LOCAL_DISTANCE} for the node itself"
            )
            self._wrong(tree, "machine.distances", found(tree), allowed)
            return ()
        return rows

    def _sizes(self, tree: Tree | None, path: str) -> dict[str, int]:
        if tree is None:
            return {}
        trees = self._mapping(tree, path)
        return {name: self._pages(t, f"{path}.{name}", 64, FILE_PAGES_MAX) for name, t in trees.items()}

    def _cgroups(self, tree: Tree | None) -> dict[str, str]:
        """name: parent, "" for the root; a list is a list of children of the root."""
        if tree is None:
            return {}
        if isinstance(tree.value, list):
            return {str(item.value): "" for item in tree.value}
        groups: dict[str, str] = {}
        for name, below in self._mapping(tree, "machine.cgroups").items():
            parent = "" if below.value is None else str(below.value)
            if parent and parent not in groups:
                self._wrong(
                    below, f"machine.cgroups.{name}", f"the parent {parent!r}", "a cgroup named above"
                )
            groups[name] = parent
        return groups

    def _sysctl(self, tree: Tree | None) -> dict[str, Any]:
        if tree is None:
            return {}
        values: dict[str, Any] = {}
        for key, below in self._mapping(tree, "machine.sysctl", _SYSCTL_KEYS).items():
            path = f"machine.sysctl.{key}"
            if key in _SWITCHES:
                values[key] = self._bool(below, path, False)
            elif key in _NUMBERS:
                values[key] = self._int(below, path, 0)
            elif key == "cram_generation":
                values[key] = self._word(below, path, _GENERATIONS, "F1")
            elif key == "thp":
                values[key] = self._word(below, path, ("always", "madvise", "never"), "madvise")
            else:
                values[key] = self._pages(below, path, 0, PAGES_MAX)
        return values

    def _linux(self, tree: Tree | None) -> KernelVersion:
        if tree is None:
            return LINUX_6_1
        try:
            return KernelVersion.parse(str(tree.value))
        except ValueError:
            self._wrong(
                tree, "machine.linux", found(tree), 'a version in quotes, such as "6.12", from 6.1 on'
            )
            return LINUX_6_1

    # -- scalars

    def _mapping(self, tree: Tree | None, path: str, known: tuple[str, ...] = ()) -> dict[str, Tree]:
        if tree is None or not isinstance(tree.value, dict):
            self._wrong(tree or Tree(1, None), path, found(tree), "a mapping")
            return {}
        for key, below in tree.value.items():
            if known and key not in known:
                allowed = ", ".join(known) + nearest(key, known)
                self.problems.append(Problem(below.key_line, f"found {key!r}; allowed: {allowed}", path))
        return {key: below for key, below in tree.value.items() if not known or key in known}

    def _pages(self, tree: Tree | None, path: str, default: int, most: int) -> int:
        """A size, or `64 pages`."""
        if tree is None:
            return default
        text = str(tree.value)
        words = text.split()
        pages = -1
        if len(words) == 2 and words[0].isdecimal() and words[1] in ("page", "pages") and len(words[0]) < 12:
            pages = int(words[0])
        elif isinstance(tree.value, str):
            try:
                pages = -(-parse_size(text) // PAGE_SIZE)
            except UnitError:
                pages = -1
        if not 0 <= pages <= most:
            allowed = f"a size such as 64 pages or 2MiB, at most {most} pages ({most // HUGE_PAGES * 2} MiB)"
            self._wrong(tree, path, found(tree), allowed)
            return default
        return pages

    def _int(self, tree: Tree | None, path: str, default: int) -> int:
        if tree is None:
            return default
        if isinstance(tree.value, bool) or not isinstance(tree.value, int) or not 0 <= tree.value < 1 << 20:
            self._wrong(tree, path, found(tree), "a whole number")
            return default
        return tree.value

    def _bool(self, tree: Tree | None, path: str, default: bool) -> bool:
        if tree is None:
            return default
        if not isinstance(tree.value, bool):
            self._wrong(tree, path, found(tree), "true or false")
            return default
        return tree.value

    def _word(self, tree: Tree | None, path: str, allowed: tuple[str, ...] | list[str], default: str) -> str:
        if tree is None:
            return default
        if str(tree.value) not in allowed:
            hint = nearest(str(tree.value), list(allowed))
            self._wrong(tree, path, found(tree), ", ".join(allowed) + hint)
            return default
        return str(tree.value)

    def _wrong(self, tree: Tree, path: str, what: str, allowed: str) -> None:
        self.problems.append(Problem(tree.line, f"found {what}; allowed: {allowed}", path))


def _is_distance(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and LOCAL_DISTANCE <= value <= 254


__all__ = ["Machine", "Misread", "Reader"]
