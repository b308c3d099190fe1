"""The memory of one host: nodes with their zone, LRU lists and counters, over one frame table and one page
table.

This is the state that fault, page_alloc, reclaim and migrate work on (`pglist_data`, `struct zone`,
`lruvec`). One zone a node: Normal for memory that the kernel may use itself, Movable for what came by
hotplug.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from privmem.nodeagent.buddy import Buddy
from privmem.nodeagent.host import _lru_kernel as lru_kernel
from privmem.nodeagent.host.block_cache import BlockCaches
from privmem.nodeagent.host.cram.service import CramService, default_generation
from privmem.nodeagent.host.frames import FrameTable
from privmem.nodeagent.host.high_order import HighOrder
from privmem.nodeagent.host.kernel_pages import KernelPages
from privmem.nodeagent.host.layout import LRU_UNEVICTABLE, NIL, NR_LRU_LISTS, PG_LRU, PG_OBJECT
from privmem.nodeagent.host.link import Link
from privmem.nodeagent.host.literal import LiteralPages
from privmem.nodeagent.host.locked_slots import LockedSlots
from privmem.nodeagent.host.lru_batches import LruBatches
from privmem.nodeagent.host.memcg_tree import MemcgTree
from privmem.nodeagent.host.mm import PageTable
from privmem.nodeagent.host.node_callbacks import NodeCallbacks
from privmem.nodeagent.host.outgoing import Outgoing
from privmem.nodeagent.host.pagecache import PageCache
from privmem.nodeagent.host.resolve import Resolver
from privmem.nodeagent.host.story import Story
from privmem.nodeagent.host.swap_area import SwapArea
from privmem.nodeagent.host.vmstat import Vmstat
from privmem.scheduler import nodemask
from privmem.scheduler.abi import MAX_NUMNODES, Reason
from privmem.scheduler.isolation import DEFAULT_DESIGN, Service
from privmem.scheduler.topology import HostTopology
from privmem.scheduler.versions import LINUX_6_1, KernelVersion
from privmem.scheduler.watermark import Watermarks, host_watermarks

if TYPE_CHECKING:
    from privmem.nodeagent.host.page_alloc import AllocContext

# Columns of `Memory.numastat`, as in /sys/devices/system/node/nodeN/numastat.
NUMA_HIT, NUMA_MISS, NUMA_FOREIGN, INTERLEAVE_HIT, LOCAL_NODE, OTHER_NODE = range(6)
NUMASTAT = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """How a node of this host is backed; placement facts are in its `HostTopology` entry."""

    nid: int
    device: str  # participant name of the device
    span_pages: int  # most pages that the node can have on this host
    boot_pages: int  # online from the start
    read_ns: int  # unloaded latencies
    write_ns: int
    stores: bool  # the device keeps the content of the pages (compressed, slow distributed memory)
    compressed: bool
    pooled: bool  # memory comes and goes by extents
    extent_pages: int
    credit_pages: int  # pages that a storing device takes before its first answer
    cache_pages: int = 0  # lines of its block cache that are this host's
    decompress_ns: int = 0  # part of the latencies that the block cache saves
    link_ns: int = 0  # see link.py
    link_bandwidth: int = 0
    request_pages: int = 0  # what the host asks a pool for at once; 0 for one extent
    report_use: bool = False  # the pool hears how often its memory is accessed
    owner_period_ns: int = 0  # how often its owner looks at accessed bits (far_memory.py); 0 for never
    owner_demotes: bool = False  # whether the owner also takes cold pages of ordinary nodes
    service: str = ""  # generation of the compressed RAM service that its device reports to; none: leased
    nominal_ratio: int = 0  # thousandths of what a compressed device shows against what it has


@dataclass(frozen=True, slots=True)
class NumaBalancing:
    """Knobs of NUMA balancing, under their sysctl or debugfs names."""

    mode: int = 2  # kernel.numa_balancing; 2 is memory tiering
    scan_period_ns: int = 1_000_000_000  # sched/numa_balancing/scan_period_min_ms
    scan_size_bytes: int = 256 << 20  # sched/numa_balancing/scan_size_mb
    hot_threshold_ns: int = 1_000_000_000  # sched/numa_balancing/hot_threshold_ms
    promote_rate_limit: int = 65536 << 20  # numa_balancing_promote_rate_limit_MBps, here bytes per second

    @property
    def tiering(self) -> bool:
        return self.mode == 2


@dataclass(frozen=True, slots=True)
class Sysctl:
    """Kernel knobs of a host; defaults are those of Linux 6.1, but for demotion, which is off there."""

    numa_balancing: NumaBalancing
    demotion_enabled: bool = True  # /sys/kernel/mm/numa/demotion_enabled
    swappiness: int = 60  # vm.swappiness, 0 to 200
    watermark_scale_factor: int = 10  # vm.watermark_scale_factor
    min_free_kbytes: int | None = None  # vm.min_free_kbytes; None is what the kernel computes
    #: Readahead of files (`read_ahead_kb` of the disk, 32 pages in Linux), and pages that a read fault maps around
    #: itself (`fault_around_bytes`, 16 in Linux). Off for workloads, which do not use files.
    readahead_pages: int = 0
    fault_around_pages: int = 1
    #: Whether a read of untouched anonymous memory maps the zero page. Off for workloads, whose pages hold data.
    zero_page: bool = False
    linux: KernelVersion = LINUX_6_1  # no knob of the kernel: whose rules it follows where versions differ


class Node:
    """A node and its one zone."""

    def __init__(self, spec: NodeSpec, start_pfn: int, buddy: Buddy) -> None:
        self.spec = spec
        self.nid = spec.nid
        self.private = False
        #: User stores must not reach the node in place: pages are mapped read-only, a write fault promotes.
        self.fenced = False
        self.start_pfn = start_pfn
        self.buddy = buddy
        self.managed_pages = 0
        self.wmark = Watermarks(0, 0, 0, 0)
        self.kswapd_awake = False
        #: Its owner lets no page migrate here: no demotion comes (compressed RAM service, `migration_blocked`).
        self.migration_blocked = False
        #: Who set the no-allocation mark of the zone: only he takes frames then; empty for nobody.
        self.no_alloc_owner = ""
        #: Frames that its compressed RAM service keeps from everybody: no part of what is managed.
        self.balloon_pages = 0
        #: Latency of a read, a write as the device reported it last.
        self.device_ns = [spec.read_ns, spec.write_ns]
        self.link = Link(spec.link_ns, spec.link_bandwidth)
        #: Pages that the storing device still takes for certain (see messages.PagesStored).
        self.credit_pages = spec.credit_pages
        self.unacknowledged_pages = 0
        #: Extents that the host holds of a pooled device: (start, pages), in device pages, in order of
        #: arrival.
        self.extents: list[tuple[int, int]] = []
        #: When its owner looks at accessed bits next.
        self.next_sample_ns = 0
        #: After a refusal, no further request before this time.
        self.refused_until_ns = 0
        self.migrated_read_bytes = 0
        self.migrated_write_bytes = 0

    @property
    def read_ns(self) -> int:
        """What a read costs now: the device and the way there."""
        return self.device_ns[0] + self.link.added_ns[0]

    @property
    def write_ns(self) -> int:
        return self.device_ns[1] + self.link.added_ns[1]

    @property
    def usable_pages(self) -> int:
        """`MemTotal` of the node: what is managed, without the balloon."""
        return self.managed_pages - self.balloon_pages

    @property
    def free_pages(self) -> int:
        return self.buddy.free_pages

    @property
    def store_room_pages(self) -> int:
        """How many pages the device is certain to take now."""
        return self.credit_pages - self.unacknowledged_pages

    def can_grow(self, now_ns: int) -> bool:
        """Whether asking the pool for an extent makes sense."""
        grown = sum(pages for _, pages in self.extents) + self.spec.extent_pages
        return self.spec.pooled and now_ns >= self.refused_until_ns and grown <= self.spec.span_pages


class Memory:
    """All memory of a host."""

    def __init__(
        self, topology: HostTopology, specs: list[NodeSpec], knobs: Sysctl, design: str = DEFAULT_DESIGN
    ) -> None:
        self.resolver = Resolver(topology, design, knobs.linux)
        self.frames = FrameTable({s.nid: s.span_pages for s in specs})
        self.page_table = PageTable()
        self.page_cache = PageCache(knobs.readahead_pages)
        self.lru_batches = LruBatches(knobs.linux.folio_batch_pages)
        self.locked_slots = LockedSlots()
        self.swap = SwapArea()
        self.memcg = MemcgTree(self.frames.nr_frames)
        self.cram = CramService(default_generation(self.resolver.design.label))
        #: What owners of nodes say when the kernel asks (v4).
        self.callbacks = NodeCallbacks()
        #: Huge mappings, pools, contiguous ranges, pins, poison.
        self.high_order = HighOrder()
        self.vmstat = Vmstat()
        self.knobs = knobs
        self.now_ns = 0
        #: Time of kernel work done on behalf of whoever faults, not yet charged to him (direct reclaim).
        self.charge_ns = 0
        self.demotion_enabled = knobs.demotion_enabled
        self.numa_balancing = knobs.numa_balancing
        #: Start of the running second of the promotion rate limit, and the candidates counted before it.
        self.rate_window_ns = 0
        self.rate_window_start = 0
        #: Frame that whoever allocates now has a reference to; -1 for none. No state: it ends with the allocation.
        self.in_use = -1
        #: Set by a fault that found no memory, taken back by the OOM killer.
        self.out_of_memory = False
        #: Node -> demotion targets in the order in which they are tried; nodes of the fastest tier.
        self.demotion_targets: dict[int, tuple[int, ...]] = {}
        #: How many of them are equally near, and how often one of those was chosen.
        self.demotion_preferred: dict[int, int] = {}
        self.demotion_turn = -1
        self.top_tier: frozenset[int] = frozenset()
        lists = NR_LRU_LISTS * MAX_NUMNODES
        self.lru_head = np.full(lists, NIL, dtype=np.int32)
        self.lru_tail = np.full(lists, NIL, dtype=np.int32)
        self.lru_size = np.zeros(lists, dtype=np.int64)
        #: Evictions and activations of a node's file pages: the clock of refault distances (mm/workingset.c).
        self.nonresident_age = np.zeros(MAX_NUMNODES, dtype=np.int64)
        self.numastat = np.zeros((MAX_NUMNODES, len(NUMASTAT)), dtype=np.int64)
        #: Accesses by node: reads, writes.
        self.nr_accesses = np.zeros((MAX_NUMNODES, 2), dtype=np.int64)
        self.block_caches = BlockCaches(specs)
        self.outgoing, self.literal = Outgoing(), LiteralPages()
        self.kernel_pages = KernelPages()
        #: Who wants to hear what happens to pages (story.py).
        self.story: Story | None = None
        #: The last request that found no page: what the OOM killer is told of.
        self.failed: AllocContext | None = None
        #: The memory cgroup whose limit refused it; 0 for none.
        self.failed_memcg = 0
        #: Whether page tables take memory (pagetables.py).
        self.account_pagetables = False
        self.nodes: dict[int, Node] = {}
        for spec in sorted(specs, key=lambda s: s.nid):
            self._add_node(spec)
        self.take_topology(topology)

    @property
    def topology(self) -> HostTopology:
        """Nodes and distances as they are now."""
        return self.resolver.topology

    def take_topology(self, topology: HostTopology) -> None:
        """A node came, went or changed its features: zonelists, tiers and watermarks are made anew."""
        self.resolver.rebuild(topology)
        for nid, node in self.nodes.items():
            node.private = topology.node(nid).private
            node.fenced = not self.resolver.allows(Service.USER_WRITE, nid)
        self.setup_tiers()
        self.setup_watermarks()

    def setup_tiers(self) -> None:
        """`establish_demotion_targets`, for the switch as it is now."""
        terminal = nodemask.of(nid for nid in self.nodes if self.is_cram(nid))
        table = self.resolver.tiers(self.demotion_enabled, terminal)
        self.demotion_targets = {nid: self.resolver.demotion_targets(table, nid) for nid in self.nodes}
        self.demotion_preferred = {nid: len(table.targets.get(nid, ())) for nid in self.nodes}
        self.top_tier = frozenset(nodemask.nodes(table.toptier))

    def is_cram(self, nid: int) -> bool:
        """Whether a node is compressed RAM, by its device or because it is registered with the service."""
        return self.nodes[nid].spec.compressed or self.cram.owns(nid)

    def next_demotion_nodes(self, nid: int) -> tuple[int, ...]:
        """`next_demotion_node` and the nodes that follow it. Where the kernel draws among equally near targets,
        they take turns.
        """
        targets = self.demotion_targets.get(nid, ())
        equals = min(self.demotion_preferred.get(nid, 0), len(targets))
        if equals < 2:
            return targets
        self.demotion_turn += 1
        turn = self.demotion_turn % equals
        return (*targets[turn:equals], *targets[:turn], *targets[equals:])

    def _add_node(self, spec: NodeSpec) -> None:
        start = self.frames.start_pfn[spec.nid]
        frames = self.frames
        buddy = Buddy(start, start + spec.span_pages, frames.next_, frames.prev, frames.block_order)
        node = Node(spec, start, buddy)
        self.nodes[spec.nid] = node
        if spec.boot_pages:
            self.online(node, 0, spec.boot_pages)

    def online(self, node: Node, start: int, nr_pages: int) -> None:
        """`online_pages`: device pages [start, start + nr_pages) become free memory of the node."""
        node.buddy.add_range(node.start_pfn + start, nr_pages)
        node.managed_pages += nr_pages
        if node.spec.pooled:
            node.extents.append((start, nr_pages))

    def offline(self, node: Node, start: int, nr_pages: int) -> bool:
        """`offline_pages` of a range without a single page in use; False when there is one."""
        if not node.buddy.remove_range(node.start_pfn + start, nr_pages):
            return False
        node.managed_pages -= nr_pages
        node.extents.remove((start, nr_pages))
        return True

    def setup_watermarks(self) -> None:
        """`setup_per_zone_wmarks`: after boot and after each hotplug."""
        managed = {nid: node.usable_pages for nid, node in self.nodes.items()}
        movable = self.topology.memory & ~self.topology.normal_zone
        scale, min_free = self.knobs.watermark_scale_factor, self.knobs.min_free_kbytes
        for nid, wmark in host_watermarks(managed, movable, scale, min_free).items():
            self.nodes[nid].wmark = wmark

    def take_charge(self) -> int:
        """Kernel time to be charged to the faulting task now."""
        charge, self.charge_ns = self.charge_ns, 0
        return charge

    def mapped_once(self, pfn: int) -> bool:
        """Whether exactly one page-table entry maps the frame."""
        slot = int(self.frames.rmap[pfn])
        return slot != 0 and int(self.page_table.rmap_next[slot]) == 0

    def is_object_page(self, pfn: int) -> bool:
        """Whether the frame belongs to a file or shared-memory object."""
        return bool(self.frames.flags[pfn] & PG_OBJECT)

    def object_moved(self, old_pfn: int, new_pfn: int) -> None:
        """A page of an object is in another frame now; the frame table already says so."""
        frames = self.frames
        object_id, index = int(frames.object_id[new_pfn]), int(frames.object_index[new_pfn])
        self.page_cache.moved(object_id, index, old_pfn, new_pfn)

    def object_content(self, pfn: int) -> tuple[int, int]:
        """(source, index) of what a page of an object holds."""
        holder = self.page_cache.of(int(self.frames.object_id[pfn]))
        return holder.source, int(self.frames.object_index[pfn])

    # -- LRU

    def lru_arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that the LRU kernel takes, in its order."""
        f = self.frames
        return self.lru_head, self.lru_tail, self.lru_size, f.next_, f.prev, f.flags

    def rmap_arrays(self) -> tuple[np.ndarray, ...]:
        """The reverse map's arrays, in the kernel's order."""
        return self.frames.rmap, self.page_table.rmap_next, self.page_table.pte

    def lru_add(self, pfn: int) -> None:
        """`folio_add_lru`."""
        base = self.frames.nid_of(pfn) * NR_LRU_LISTS
        lru = lru_kernel.lru_of(base, self.frames.flags[pfn])
        lru_kernel.lru_add(lru, pfn, *self.lru_arrays())

    def lru_del(self, pfn: int) -> None:
        """`lruvec_del_folio`; nothing for a frame that is on no list (held)."""
        if not self.frames.flags[pfn] & np.uint16(PG_LRU):
            return
        base = self.frames.nid_of(pfn) * NR_LRU_LISTS
        lru = lru_kernel.lru_of(base, self.frames.flags[pfn])
        lru_kernel.lru_del(lru, pfn, *self.lru_arrays())

    def lru_sizes(self, nid: int) -> list[int]:
        """Frames on (inactive anon, active anon, inactive file, active file)."""
        first = nid * NR_LRU_LISTS
        return [int(n) for n in self.lru_size[first : first + LRU_UNEVICTABLE]]

    def nr_unevictable(self, nid: int) -> int:
        """`Unevictable` of the node's meminfo, in pages: mlocked ones."""
        return int(self.lru_size[nid * NR_LRU_LISTS + LRU_UNEVICTABLE])

    # -- snapshots

    def snapshot(self) -> dict[str, Any]:
        return {
            "frames": self.frames.snapshot(),
            "page_table": self.page_table.snapshot(),
            "page_cache": self.page_cache.snapshot(),
            "lru_batches": self.lru_batches.snapshot(),
            "locked_slots": self.locked_slots.snapshot(),
            "swap": self.swap.snapshot(),
            "memcg": self.memcg.snapshot(),
            "high_order": self.high_order.snapshot(),
            "cram": self.cram.snapshot(),
            **self.callbacks.snapshot(),
            "vmstat": dict(self.vmstat.count),
            "now_ns": self.now_ns,
            "charge_ns": self.charge_ns,
            "demotion_turn": self.demotion_turn,
            "rate_window": [self.rate_window_ns, self.rate_window_start],
            "lru_head": self.lru_head.copy(),
            "lru_tail": self.lru_tail.copy(),
            "lru_size": self.lru_size.copy(),
            "nonresident_age": self.nonresident_age.copy(),
            "numastat": self.numastat.copy(),
            "nr_accesses": self.nr_accesses.copy(),
            "block_caches": self.block_caches.snapshot(),
            "outgoing": self.outgoing.snapshot(),
            "literal": self.literal.snapshot(),
            "interleave_weights": dict(sorted(self.resolver.weights.items())),
            "kernel_pages": self.kernel_pages.snapshot(),
            "nodes": {nid: _node_snapshot(node) for nid, node in self.nodes.items()},
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.frames.restore(snapshot["frames"])
        self.page_table.restore(snapshot["page_table"])
        self.page_cache.restore(snapshot["page_cache"])
        self.lru_batches.restore(snapshot["lru_batches"])
        self.locked_slots.restore(snapshot["locked_slots"])
        self.swap.restore(snapshot["swap"])
        self.memcg.restore(snapshot["memcg"])
        self.high_order.restore(snapshot["high_order"])
        self.cram.restore(snapshot["cram"])
        self.callbacks.restore(snapshot)
        self.vmstat.restore(snapshot["vmstat"])
        self.now_ns = snapshot["now_ns"]
        self.charge_ns = snapshot["charge_ns"]
        self.demotion_turn = snapshot["demotion_turn"]
        self.rate_window_ns, self.rate_window_start = snapshot["rate_window"]
        for name in ("lru_head", "lru_tail", "lru_size", "nonresident_age", "numastat", "nr_accesses"):
            getattr(self, name)[:] = snapshot[name]
        self.outgoing.restore(snapshot["outgoing"])
        self.literal.restore(snapshot["literal"])
        self.block_caches.restore(snapshot["block_caches"])
        self.resolver.weights = {int(nid): int(w) for nid, w in snapshot["interleave_weights"].items()}
        self.kernel_pages.restore(snapshot["kernel_pages"])
        for nid, node in self.nodes.items():
            _node_restore(node, snapshot["nodes"][nid])
        self.setup_watermarks()


_NODE_NUMBERS = (
    "managed_pages",
    "kswapd_awake",
    "migration_blocked",
    "no_alloc_owner",
    "balloon_pages",
    "credit_pages",
    "unacknowledged_pages",
    "refused_until_ns",
    "next_sample_ns",
    "migrated_read_bytes",
    "migrated_write_bytes",
)


def _node_snapshot(node: Node) -> dict[str, Any]:
    numbers = {name: getattr(node, name) for name in _NODE_NUMBERS}
    lists = {"extents": [list(e) for e in node.extents], "device_ns": list(node.device_ns)}
    return numbers | lists | {"link": node.link.snapshot(), "buddy": node.buddy.lists_snapshot()}


def _node_restore(node: Node, snapshot: dict[str, Any]) -> None:
    for name in _NODE_NUMBERS:
        setattr(node, name, snapshot[name])
    node.extents = [(int(a), int(b)) for a, b in snapshot["extents"]]
    node.device_ns = list(snapshot["device_ns"])
    node.link.restore(snapshot["link"])
    node.buddy.lists_restore(snapshot["buddy"])


def note_origin(memory: Memory, pfn: int, reason: Reason, owner: int) -> None:
    """Every page remembers where it came from, for whom, and why (DESIGN, section 1)."""
    frames = memory.frames
    frames.reason[pfn] = int(reason)
    frames.origin_nid[pfn] = frames.nid_of(pfn)
    frames.owner[pfn] = owner
