"""The configuration of a run as typed, frozen models: what each field is, may be, and is when left out.

Attributes carry their unit last (`capacity_bytes`, `epoch_ns`, `write_share_permille`); the YAML key is the
attribute's name without it (`capacity: 64MiB`), because there the value carries the unit. Kernel knobs have
the kernel's names and, as defaults, those of Linux 6.1 with their source file. Rules that span several
fields are in `checks.py`, not here: a model must exist for its neighbours to be checked, and all mistakes
of a file are reported at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, PrivateAttr, model_validator

from privmem.cluster.config.base import (
    BANDWIDTH,
    CAPACITY,
    CAPACITY_MAX_BYTES,
    GIB,
    LATENCY,
    MIB,
    MS_NS,
    NODE_ID,
    PERIOD,
    S_NS,
    SEED,
    TIB,
    US_NS,
    Model,
)
from privmem.cluster.config.designs import DesignName
from privmem.cluster.config.fields import Name, OneOf, Permille, Whole, size, time
from privmem.cluster.config.workload_models import (
    ContentConfig,
    GeneratorContent,
    ReplayWorkload,
    WorkloadConfig,
)
from privmem.scheduler.abi import MAX_NUMNODES, PAGE_SIZE, PAGEBLOCK_ORDER
from privmem.scheduler.isolation import DEFAULT_DESIGN

if TYPE_CHECKING:
    from privmem.cluster.plugins import PluginClass

#: Linux `pageblock_order` 9: 512 pages of 4 KiB.
EXTENT_DEFAULT_BYTES = PAGE_SIZE << PAGEBLOCK_ORDER
#: Linux `LOCAL_DISTANCE`: a node to itself.
LOCAL_DISTANCE = 10
#: Linux `REMOTE_DISTANCE`: two nodes that nothing is said about.
REMOTE_DISTANCE = 20
#: Largest distance: the ACPI SLIT keeps a byte, and 255 means unreachable.
DISTANCE_MAX = 254
CPUS_MAX = 1024

# --- devices


class RemovalConfig(Model):
    """A pooled device takes memory back by force."""

    at_ns: Annotated[int, time(0, 86_400 * S_NS)] = Field(description="When; the host hears an epoch later.")
    host: str = Field(description="From whom.")
    size_bytes: Annotated[int, size(PAGE_SIZE, TIB)] = Field(
        description="How much at least, in whole extents, those granted last first; all, if the host holds less."
    )


class _Device(Model):
    """What devices of every class have."""

    device_class: str = Field(alias="class")  # stated by each class; here for its place, the first
    capacity_bytes: Annotated[int, CAPACITY] = Field(
        description="Physical memory; a multiple of the 4 KiB page."
    )
    pooled: bool = Field(
        default=False,
        description="Whether nodes of several hosts share it. Only a device under `devices` can be pooled.",
    )
    extent_bytes: Annotated[int, size(PAGE_SIZE, TIB)] = Field(
        default=EXTENT_DEFAULT_BYTES,
        description="What a pooled device grants to a host at once: a power of two that divides the "
        "capacity. The "
        "default is one pageblock (Linux `pageblock_order` 9 on x86-64).",
    )
    quotas_bytes: dict[str, Annotated[int, size(0, CAPACITY_MAX_BYTES)]] = Field(
        default_factory=dict,
        description="Most that a host may hold of a pooled device, by host name. A host without one may hold "
        "all of it.",
    )
    reservations_bytes: dict[str, Annotated[int, size(0, CAPACITY_MAX_BYTES)]] = Field(
        default_factory=dict,
        description="What a host can have of a pooled device at any time, by host name: kept back from all "
        "others while it does not hold it. Whole extents, together no more than the capacity.",
    )
    weights: dict[str, Annotated[int, Whole(1, 1_000_000)]] = Field(
        default_factory=dict,
        description="Shares of a pooled device when hosts want more than there is, by host name; 1 for a host "
        "without one. Without weights and `give_back`, who comes first is served first.",
    )
    give_back: Literal["none", "over-share", "coldest", "largest", "round-robin"] = Field(
        default="none",
        description="Which hosts above their share of a pooled device are asked first to give extents back "
        "when one below its share was refused: those farthest above it by weight, those that access "
        "theirs least, those that hold most, or all in turn; `none`: nobody is asked.",
    )
    request_bytes: Annotated[int, size(PAGE_SIZE, TIB)] | None = Field(
        default=None,
        description="What a host asks a pooled device for at once, in whole extents; it may get less, and in "
        "several pieces. When left out, one extent.",
    )
    removals: tuple[RemovalConfig, ...] = Field(
        default=(),
        description="Forced removals: the pooled device takes extents back from a host, whose residents move "
        "away; pages that cannot move are lost and reported, and processes that map one are killed.",
    )
    read_latency_ns: Annotated[int, LATENCY] | None = Field(
        default=None, description="Latency of a read from the idle device; when left out, that of the class."
    )
    write_latency_ns: Annotated[int, LATENCY] | None = Field(
        default=None, description="Latency of a write to the idle device; when left out, that of the class."
    )
    read_bandwidth_bytes_per_s: Annotated[int, BANDWIDTH] | None = Field(
        default=None, description="What can be read each second; when left out, that of the class."
    )
    write_bandwidth_bytes_per_s: Annotated[int, BANDWIDTH] | None = Field(
        default=None, description="What can be written each second; when left out, that of the class."
    )
    loaded_latency: (
        tuple[tuple[Annotated[int, Whole(0, 100)], Annotated[int, Whole(1000, 1_000_000)]], ...] | None
    ) = Field(
        default=None,
        description="Latency under load: pairs of the utilisation in percent of the bandwidth, rising from "
        "0, and the latency in thousandths of the idle one, never falling; when left out, that of the class.",
    )


class PlainDevice(_Device):
    """Memory that keeps what it is given as it is."""

    device_class: Literal["dram", "cxl", "gpu", "nic", "slow-distributed"] = Field(
        alias="class", description="Device class; it sets the timing that is not given here."
    )


class CompressedRam(_Device):
    """Memory with a compression engine in front: it shows hosts more than it has."""

    device_class: Literal["compressed-ram"] = Field(
        alias="class", description="Device class; it sets the timing that is not given here."
    )
    perceived_bytes: Annotated[int, CAPACITY] = Field(
        description="Memory that the hosts see; a multiple of the 4 KiB page, at least the capacity."
    )
    codec: Annotated[str, OneOf("codec", ("lz4", "none", "zstd"))] = Field(
        default="lz4",
        description="Compression codec; `none` saves on same-filled pages only.",
    )
    level: Annotated[int, Whole(-65537, 22)] | None = Field(
        default=None,
        description="Level of the codec, up to 12 with lz4 (LZ4 HC from 3 on) and 22 with zstd; below 0 it "
        "accelerates, 0 is none. When left out, the codec's fast one. Linux's zram has lz4 at 1, zstd at 3.",
    )
    granule_bytes: Annotated[int, size(16, PAGE_SIZE)] = Field(
        default=64,
        description="Unit in which physical memory is handed to compressed blocks; a power of two. The "
        "default is a cache line.",
    )
    block_bytes: Annotated[int, size(512, PAGE_SIZE)] = Field(
        default=PAGE_SIZE,
        description="What is compressed on its own; a power of two, at least the granule. The default is a "
        "page.",
    )
    keep_bytes: bool = Field(
        default=False,
        alias="keep_bytes",
        description="Whether the device keeps the bytes of recorded and generated pages too, and checks them "
        "when it gives them back; literal pages are kept always. Costs memory and time of the machine that "
        "runs this, and changes no figure.",
    )
    decompress_latency_ns: Annotated[int, time(0, S_NS)] | None = Field(
        default=None, description="What (de)compression adds to an access; when left out, that of the codec."
    )
    low_threshold_permille: Annotated[int, Permille(1, 900)] = Field(
        default=125,
        description="Share of its memory that is free: below it, the device tells a host whose service listens "
        "that it is low, and what it says it can hold leaves as much out.",
    )
    high_threshold_permille: Annotated[int, Permille(1, 1000)] = Field(
        default=250,
        description="Share of its memory that is free: above it, the device is low no more; more than "
        "`low_threshold`.",
    )
    block_cache_bytes: Annotated[int, size(0, CAPACITY_MAX_BYTES)] = Field(
        default=0,
        description="Blocks that the device keeps decompressed; an access that finds its page there does not "
        "wait for decompression. A multiple of the 4 KiB page; hosts that share the device share it evenly.",
    )


class PluginDevice(_Device):
    """Memory of a class that a plug-in brings (docs/plugins.md)."""

    device_class: Literal["plugin"] = Field(
        alias="class", description="A class of a user's own, from a file that `--plugin` names."
    )
    plugin: Annotated[str, Name()] = Field(description="Name of the class.")
    options: dict[Annotated[str, Name()], Annotated[int, Whole(0, 1 << 53)]] = Field(
        default_factory=dict,
        description="Numbers that the class takes beyond the fields of every device.",
    )


DeviceConfig: TypeAlias = PlainDevice | CompressedRam | PluginDevice
AnyDevice: TypeAlias = Annotated[DeviceConfig, Field(discriminator="device_class")]

# --- hosts

FeatureName: TypeAlias = Literal[
    "reclaim",
    "demotion",
    "user_numa",
    "user_write",
    "migration",
    "numa_balancing",
    "compaction",
    "longterm_pin",
    "contig_alloc",
    "hotunplug",
    "ksm",
    "collapse",
    "damon",
    "hugetlb",
]


class NodeConfig(Model):
    """A memory node of a host."""

    id: Annotated[int, NODE_ID] = Field(description="Node id, unique on its host.")
    memory: AnyDevice | None = Field(
        default=None,
        description="A device of its own, described in place and named HOST.nID. Either this or `device`.",
    )
    device: str | None = Field(
        default=None, description="Name of a device under `devices`. Either this or `memory`."
    )
    cpus: tuple[Annotated[int, Whole(0, CPUS_MAX - 1)], ...] = Field(
        default=(), description="CPUs of this node."
    )
    via: Annotated[int, NODE_ID] | None = Field(
        default=None,
        description="Node through which it is reached: its distance to any other is that of `via`, plus "
        "`hop`.",
    )
    hop: Annotated[int, Whole(1, DISTANCE_MAX - LOCAL_DISTANCE)] | None = Field(
        default=None, description="Distance that it adds to that of `via`."
    )
    link_latency_ns: Annotated[int, time(0, S_NS)] = Field(
        default=0,
        description="What switches and ports on the way to the device add to an access. The latency of a class "
        "includes one direct link.",
    )
    link_bandwidth_bytes_per_s: Annotated[int, BANDWIDTH] | None = Field(
        default=None,
        description="What this host's link to the device can carry each way, whatever the device can; needs a "
        "`link_latency`. No bound when left out.",
    )
    private: bool = Field(
        default=False,
        description="Whether the node is closed to all that does not ask as the isolation design demands.",
    )
    features: tuple[FeatureName, ...] = Field(
        default=(),
        description="What core mm may do with a private node: `reclaim` its pages, use it as a `demotion` "
        "target or source (needs `reclaim`), name it in policies and moves (`user_numa`), write to its "
        "pages in place (`user_write`; without it the node is write-fenced). The others are services that "
        "only some isolation designs have a bit for; a design grants those that it knows.",
    )
    owner_demotes: bool = Field(
        default=False,
        description="Whether the owner of a private node takes cold pages of ordinary nodes that are short of "
        "memory, by requests of its own: deliberate tiering under every isolation design.",
    )
    owner_period_ns: Annotated[int, PERIOD] = Field(
        default=100 * MS_NS,
        description="How often the owner of a pooled private node, or of one with `owner_demotes`, looks at "
        "accessed bits; pages accessed in two periods in a row go home.",
    )
    service: Literal["lease", "v4", "F1", "F3"] = Field(
        default="lease",
        description="How compressed RAM is kept from overflowing. `lease`: the device promises room for so many "
        "pages as surely fit, and no more come. A generation of the kernel's compressed RAM service: the device "
        "reports when an epoch is over, and pressure (`v4`), a balloon by ratio (`F1`) or by capacity (`F3`) and "
        "the gate follow; the isolation design must be able to carry it, and all compressed nodes of a host have "
        "the same.",
    )
    write_control: bool = Field(
        default=True,
        description="false, for a compressed node with the feature `user_write` and a service: its pages are "
        "written in place, and the device has to refuse what it no longer has room for. Such pages are lost.",
    )


class SysctlConfig(Model):
    """Kernel knobs of a host."""

    numa_balancing: Annotated[int, Whole(0, 2)] = Field(
        default=0,
        description="0 off, 1 NUMA balancing, 2 memory tiering (hot pages are promoted). Linux 6.1 "
        "`kernel.numa_balancing`, kernel/sched/core.c.",
    )
    demotion_enabled: bool = Field(
        default=False,
        description="Whether reclaim demotes to a lower tier. Linux 6.1 "
        "`/sys/kernel/mm/numa/demotion_enabled`, mm/memory-tiers.c.",
    )
    watermark_scale_factor: Annotated[int, Whole(1, 3000)] = Field(
        default=10,
        description="Distance between watermarks, in 1/10000 of the zone. Linux 6.1 "
        "`vm.watermark_scale_factor`, mm/page_alloc.c.",
    )
    min_free_kbytes: Annotated[int, Whole(0, 1 << 32)] | None = Field(
        default=None,
        alias="min_free_kbytes",
        description="Free memory behind the min watermarks, in KiB; when left out, what Linux 6.1 computes "
        "from the size of memory (`calculate_min_free_kbytes`, mm/page_alloc.c).",
    )
    numa_balancing_scan_period_min_ns: Annotated[int, PERIOD] = Field(
        default=S_NS,
        description="Shortest time in which the scan covers `numa_balancing_scan_size`. Linux 6.1 "
        "`sysctl_numa_balancing_scan_period_min`, kernel/sched/fair.c.",
    )
    numa_balancing_scan_size_bytes: Annotated[int, size(PAGE_SIZE, TIB)] = Field(
        default=256 * MIB,
        description="Memory that one scan period marks for hint faults. Linux 6.1 "
        "`sysctl_numa_balancing_scan_size`, kernel/sched/fair.c.",
    )
    numa_balancing_hot_threshold_ns: Annotated[int, PERIOD] = Field(
        default=S_NS,
        description="A page is hot when its hint fault comes within this time of the scan. Linux 6.1 "
        "`sysctl_numa_balancing_hot_threshold`, kernel/sched/fair.c.",
    )
    numa_balancing_promote_rate_limit_bytes_per_s: Annotated[int, BANDWIDTH] = Field(
        default=64 * GIB,
        description="Most that is promoted each second. Linux 6.1 `sysctl_numa_balancing_promote_rate_limit` "
        "(65536, in units of 1 MiB), kernel/sched/fair.c.",
    )


class PolicyConfig(Model):
    """Memory policy of a process, as `set_mempolicy` takes it."""

    mode: Literal["default", "local", "bind", "preferred", "preferred_many", "interleave"] = Field(
        default="default", description="Mode, named as the kernel's MPOL_ constants."
    )
    nodes: tuple[Annotated[int, NODE_ID], ...] = Field(
        default=(), description="Nodes of the mode; `default` and `local` take none."
    )
    flags: tuple[Literal["static_nodes", "relative_nodes"], ...] = Field(
        default=(), description="MPOL_F_STATIC_NODES or MPOL_F_RELATIVE_NODES."
    )


class ProcessConfig(Model):
    """A process: where it runs, how fast it goes, what it touches."""

    name: Annotated[str, Name()] = Field(description="Name, unique on its host.")
    cpu: Annotated[int, Whole(0, CPUS_MAX - 1)] = Field(default=0, description="CPU that it runs on.")
    threads: Annotated[int, Whole(1, 256)] = Field(
        default=1, description="Accesses in flight at once; they divide the latency of each."
    )
    think_ns: Annotated[int, time(0, S_NS)] = Field(default=0, description="CPU time between two accesses.")
    start_ns: Annotated[int, time(0, 86_400 * S_NS)] = Field(default=0, description="When it begins.")
    stop_ns: Annotated[int, time(0, 86_400 * S_NS)] = Field(
        default=0,
        description="When it exits, whatever is left to do, and its memory is free again; 0s: never.",
    )
    sigbus: Literal["kill", "recover"] = Field(
        default="kill",
        description="What becomes of it when it touches a page that was lost: it is killed, or it handles the "
        "signal, maps a new page there and goes on.",
    )
    policy: PolicyConfig = Field(default=PolicyConfig(), description="Memory policy of the process.")
    workload: Annotated[WorkloadConfig, Field(discriminator="kind")] = Field(description="Its page accesses.")
    content: Annotated[ContentConfig, Field(discriminator="kind")] = Field(
        default=GeneratorContent(kind="generator"),
        description="What its pages hold. When left out: `recording` for a replay, `generator` for the "
        "others.",
    )

    @model_validator(mode="before")
    @classmethod
    def _content_of_the_workload(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "content" in value:
            return value
        workload = value.get("workload")
        replay = isinstance(workload, dict) and workload.get("kind") == "replay"
        return {**value, "content": {"kind": "recording" if replay else "generator"}}


class HostConfig(Model):
    """One emulated Linux, or with `count` several equal ones."""

    name: Annotated[str, Name()] = Field(
        description="Name, unique in the run; with `count`, what stands before the number."
    )
    count: Annotated[int, Whole(1, 1024)] | None = Field(
        default=None,
        description="So many equal hosts, named NAME0, NAME1, ...; when left out, one named NAME.",
    )
    cpus: Annotated[int, Whole(1, CPUS_MAX)] = Field(description="Number of CPUs: they are 0 to `cpus` - 1.")
    nodes: Annotated[tuple[NodeConfig, ...], Field(min_length=1, max_length=MAX_NUMNODES)] = Field(
        description="Its memory nodes; every CPU belongs to one of them."
    )
    distances: tuple[tuple[Annotated[int, Whole(LOCAL_DISTANCE, DISTANCE_MAX)], ...], ...] | None = Field(
        default=None,
        description="Node distances, rows and columns in the order of `nodes`: 10 to itself, above 10 to "
        "others; instead of `via` and `hop`. When both are left out, nodes are 20 apart (Linux "
        "`REMOTE_DISTANCE`).",
    )
    swap_bytes: Annotated[int, size(0, 256 * GIB)] = Field(
        default=0,
        description="Size of its swap area, on an SSD, without readahead (`vm.page_cluster` 0); a multiple of the "
        "4 KiB page, 0: none.",
    )
    sysctl: SysctlConfig = Field(default=SysctlConfig(), description="Kernel knobs.")
    processes: tuple[ProcessConfig, ...] = Field(default=(), description="What runs on it.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the emulated hosts that this entry stands for."""
        return (self.name,) if self.count is None else tuple(f"{self.name}{n}" for n in range(self.count))


# --- the run


class EngineConfig(Model):
    """How the run is cut in time."""

    duration_ns: Annotated[int, time(US_NS, 86_400 * S_NS)] = Field(
        description="Most virtual time that the run takes; it ends earlier when every process has ended."
    )
    epoch_ns: Annotated[int, PERIOD] = Field(
        default=5 * MS_NS, description="Hosts run on their own for so long before they meet."
    )
    slice_ns: Annotated[int, PERIOD] = Field(
        default=250 * US_NS, description="Processes of one host take turns of this length within an epoch."
    )


class ResultsConfig(Model):
    """What a run writes down."""

    sample_every: Annotated[int, Whole(1, 1_000_000)] = Field(
        default=1, description="Epochs between two samples of the time series."
    )


class Config(Model):
    """A whole run."""

    schema_version: Annotated[int, Whole(1, 1)] = Field(alias="schema", description="Version of this format.")
    name: Annotated[str, Name()] = Field(description="Name of the run.")
    seed: Annotated[int, SEED] = Field(default=0, description="Seed of the whole run.")
    design: Annotated[str, DesignName()] = Field(
        default=DEFAULT_DESIGN, description="Isolation design: who reaches a private node."
    )
    engine: EngineConfig = Field(description="Time.")
    results: ResultsConfig = Field(default=ResultsConfig(), description="Results.")
    devices: dict[Annotated[str, Name()], AnyDevice] = Field(
        default_factory=dict, description="Devices that nodes name: pooled ones, and dedicated ones."
    )
    hosts: Annotated[tuple[HostConfig, ...], Field(min_length=1, max_length=1024)] = Field(
        description="The emulated hosts."
    )

    _folder: Path = PrivateAttr(default_factory=Path)
    _plugins: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def plugins(self) -> dict[str, PluginClass]:
        """Device classes of plug-ins that were loaded with it."""
        return self._plugins

    @property
    def folder(self) -> Path:
        """Folder of the file that it was loaded from: recordings are relative to it."""
        return self._folder

    def recording_path(self, workload: ReplayWorkload) -> Path:
        """Where the recording of a replay is."""
        return self._folder / workload.recording


def device_of(config: Config, node: NodeConfig) -> DeviceConfig | None:
    """The device that backs a node; None only before the checks, which refuse a node without one."""
    return node.memory if node.memory is not None else config.devices.get(node.device or "")


def class_name(device: DeviceConfig) -> str:
    """The class of a device, a plug-in's own one too."""
    return device.plugin if isinstance(device, PluginDevice) else device.device_class


def seen_bytes(device: DeviceConfig) -> int:
    """Memory that hosts see of a device."""
    return device.perceived_bytes if isinstance(device, CompressedRam) else device.capacity_bytes
