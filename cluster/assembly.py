"""From a validated configuration to a plan, and from a plan's entries to participants.

`make_plan` opens recordings and works out everything that participants must agree on: names, node specs,
device specs, boot extents, the table of content sources. `build` makes one participant, on whatever machine
it is called.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from privmem.cluster.config import config_to_plain
from privmem.cluster.config.models import (
    CompressedRam,
    Config,
    DeviceConfig,
    HostConfig,
    NodeConfig,
    PluginDevice,
    ProcessConfig,
    class_name,
    seen_bytes,
)
from privmem.cluster.config.topology import device_name, host_topology
from privmem.cluster.config.workload_models import (
    ContentConfig,
    GeneratorContent,
    GpuWorkload,
    HotSetWorkload,
    MessagesWorkload,
    ReplayWorkload,
    ScanWorkload,
    ZipfWorkload,
)
from privmem.cluster.plan import DEVICE, HOST, SCHEDULER, ParticipantPlan, Plan
from privmem.cluster.plugins import make_device
from privmem.cluster.seeds import derive_seed
from privmem.cluster.traces import open_trace
from privmem.cluster.workloads import open_stream
from privmem.nodeagent.device.device import initial_credit_pages
from privmem.nodeagent.device.timing import class_timing
from privmem.nodeagent.host.host import Host
from privmem.scheduler import nodemask
from privmem.scheduler.abi import (
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    PAGE_SIZE,
    Mpol,
)
from privmem.scheduler.participant import Participant
from privmem.scheduler.placement import Scheduler

SCHEDULER_NAME = "scheduler"
#: Device classes whose device keeps the content of pages, rather than the host that stores to it in place.
_STORING = ("compressed-ram", "slow-distributed")
_MODES = {
    "default": Mpol.DEFAULT,
    "local": Mpol.LOCAL,
    "bind": Mpol.BIND,
    "preferred": Mpol.PREFERRED,
    "preferred_many": Mpol.PREFERRED_MANY,
    "interleave": Mpol.INTERLEAVE,
}
_FLAGS = {"static_nodes": MPOL_F_STATIC_NODES, "relative_nodes": MPOL_F_RELATIVE_NODES}


def build(entry: ParticipantPlan, resources: dict[str, np.ndarray]) -> Participant:
    """One participant of a plan. `resources` holds at least the arrays that the entry names."""
    if entry.kind == SCHEDULER:
        return Scheduler(entry.spec)
    if entry.kind == DEVICE:
        return make_device(entry.spec, resources)
    streams = [open_stream(spec, resources) for spec in entry.spec["streams"]]
    return Host(entry.spec, streams, resources)


def make_plan(config: Config, story_events: int = 0) -> Plan:
    """The plan of a configuration. Opens every recording; raises TraceError for one that is damaged.

    `story_events`: most events that each host keeps of the story of its pages, which changes nothing else.
    """
    return _Assembly(config, story_events).plan()


def host_address(name: str) -> str:
    """Where a host's messages go."""
    return f"host/{name}"


def device_address(name: str) -> str:
    """Where a device's messages go."""
    return f"device/{name}"


class _Assembly:
    """The tables that grow while a configuration is walked."""

    def __init__(self, config: Config, story_events: int) -> None:
        self.config = config
        self.story_events = story_events
        self.resources: dict[str, np.ndarray] = {}
        #: Content sources of the run; a page names one by its position here plus one (0 is the zero page).
        self.sources: list[dict[str, Any]] = []
        self._source_ids: dict[str, int] = {}
        self._recordings: dict[str, dict[str, Any]] = {}
        #: Device name -> its configuration and the nodes that it backs: (host address, node).
        self.devices: dict[str, DeviceConfig] = dict(config.devices)
        self.backs: dict[str, list[tuple[str, NodeConfig]]] = {name: [] for name in config.devices}
        self._name_devices()

    def _name_devices(self) -> None:
        for host in self.config.hosts:
            for name in host.names:
                for node in host.nodes:
                    device = device_name(node, name)
                    if node.memory is not None:
                        self.devices[device] = node.memory
                    self.backs.setdefault(device, []).append((host_address(name), node))

    def plan(self) -> Plan:
        hosts = [self._host(host, name) for host in self.config.hosts for name in host.names]
        hosts = [self._with_contents(host) for host in hosts]
        devices = [self._device(name) for name in sorted(self.devices) if self.backs[name]]
        entries = [self._scheduler(), *devices, *hosts]
        return Plan(
            name=self.config.name,
            seed=self.config.seed,
            epoch_ns=self.config.engine.epoch_ns,
            duration_ns=self.config.engine.duration_ns,
            participants=tuple(sorted(entries, key=lambda e: e.name)),
            resources=self.resources,
            identity={
                "plugins": {name: found.plugin.digest for name, found in self.config.plugins.items()},
                "config": self._config_by_content(),
                "resources": {name: _fingerprint(array) for name, array in self.resources.items()},
            },
        )

    def _config_by_content(self) -> dict[str, Any]:
        """The configuration with recordings named by their place among the resources: where a file lies is not
        part of what a run is.
        """
        plain = config_to_plain(self.config)
        for host in plain["hosts"]:
            for process in host["processes"]:
                workload = process["workload"]
                if workload["kind"] == "replay":
                    workload["recording"] = self._recordings[workload["recording"]]["accesses"]
        return plain

    # -- hosts

    def _host(self, host: HostConfig, name: str) -> ParticipantPlan:
        streams, programs, needed = [], [], []
        for number, process in enumerate(host.processes):
            stream, source = self._workload(process, name)
            streams.append(stream)
            needed += [v for k, v in stream.items() if k == "accesses" and isinstance(v, str)]
            programs.append(
                {
                    "name": process.name,
                    "pid": number + 1,
                    "cpu": process.cpu,
                    "threads": process.threads,
                    "think_ns": process.think_ns,
                    "start_ns": process.start_ns,
                    "stop_ns": process.stop_ns,
                    "recovers": process.sigbus == "recover",
                    "source": source,
                    "policy": _policy(process),
                    **_calls(stream),
                }
            )
        spec = {
            "name": host_address(name),
            "scheduler": SCHEDULER_NAME,
            "slice_ns": self.config.engine.slice_ns,
            "sample_every": self.config.results.sample_every,
            "design": self.config.design,
            "topology": host_topology(self.config, host, name).to_spec(),
            "nodes": [self._node(node, name) for node in host.nodes],
            "sysctl": _sysctl(host),
            "swap_pages": host.swap_bytes // PAGE_SIZE,
            "programs": programs,
            "streams": streams,
            **({"story": self.story_events} if self.story_events else {}),
        }
        return ParticipantPlan(host_address(name), HOST, spec, tuple(sorted(set(needed))))

    def _with_contents(self, host: ParticipantPlan) -> ParticipantPlan:
        """A host whose programs have literal pages makes their bytes itself."""
        numbers = {program["source"] for program in host.spec["programs"]} - {0}
        phases = {number: self.sources[number - 1].get("phases", []) for number in sorted(numbers)}
        if any(phases.values()):
            starts = [[number, [at_ns for at_ns, _ in of]] for number, of in phases.items() if of]
            host = replace(host, spec=host.spec | {"content_phases": starts})
        if not any("literal" in self.sources[number - 1] for number in numbers):
            return host
        needed = {v for s in self.sources for k, v in s.items() if k in ("rows", "table")}
        spec = host.spec | {"content": self.sources}
        return replace(host, spec=spec, resources=tuple(sorted({*host.resources, *needed})))

    def _node(self, node: NodeConfig, name: str) -> dict[str, Any]:
        behind = device_name(node, name)
        device = self.devices[behind]
        timing = self._timing(device)
        spec = self._device_spec(behind)
        return {
            "nid": node.id,
            "device": device_address(behind),
            "span_pages": seen_bytes(device) // PAGE_SIZE,
            "boot_pages": 0 if device.pooled else seen_bytes(device) // PAGE_SIZE,
            "read_ns": timing["read_ns"] + timing["decompress_ns"],
            "write_ns": timing["write_ns"] + timing["decompress_ns"],
            "stores": spec["stores"],
            "compressed": device.device_class == "compressed-ram",
            "pooled": device.pooled,
            "extent_pages": device.extent_bytes // PAGE_SIZE if device.pooled else 0,
            "credit_pages": initial_credit_pages(spec, host_address(name)) if spec["stores"] else 0,
            "cache_pages": _cache_pages(device) // max(1, len(spec["hosts"])),
            "decompress_ns": timing["decompress_ns"],
            "link_ns": node.link_latency_ns,
            "link_bandwidth": node.link_bandwidth_bytes_per_s or 0,
            "request_pages": (device.request_bytes or 0) // PAGE_SIZE,
            "report_use": device.give_back == "coldest",
            **_owner(node, device),
            **_service(node, device),
        }

    # -- workloads and contents

    def _workload(self, process: ProcessConfig, host: str) -> tuple[dict[str, Any], int]:
        """(stream spec, content source) of a process."""
        workload = process.workload
        if isinstance(workload, ReplayWorkload):
            recording = self._recording(workload)
            stream = {
                "kind": "replay",
                "nr_pages": recording["nr_pages"],
                "accesses": recording["accesses"],
                "repeat": workload.repeat,
                "start": workload.start,
            }
            if isinstance(process.content, GeneratorContent):
                return stream, self._generator(process.content)
            return stream, self._source(recording["image"] | _literally(process.content))
        stream = _synthetic(workload)
        stream["seed"] = derive_seed(self.config.seed, f"{host}/{process.name}/{workload.seed}")
        assert isinstance(process.content, GeneratorContent)
        return stream, self._generator(process.content)

    def _recording(self, workload: ReplayWorkload) -> dict[str, Any]:
        """Load a recording once; its arrays are named by its number."""
        key = workload.recording
        if key not in self._recordings:
            trace = open_trace(self.config.recording_path(workload))
            rows, table = trace.images()
            name = f"recording-{len(self._recordings)}"
            names = {part: f"{name}/{part}" for part in ("accesses", "rows", "table")}
            self.resources[names["accesses"]] = trace.accesses()
            self.resources[names["rows"]] = rows
            self.resources[names["table"]] = table
            self._recordings[key] = {
                "nr_pages": trace.header.nr_pages,
                "accesses": names["accesses"],
                "image": {"kind": "image", "rows": names["rows"], "table": names["table"]},
            }
        return self._recordings[key]

    def _generator(self, content: GeneratorContent) -> int:
        spec = {
            "kind": "generator",
            "seed": derive_seed(self.config.seed, f"content/{content.seed}"),
            "zero_permille": content.zero_share_permille,
            "random_bytes": content.random_bytes,
            "changed_bytes": content.changed_bytes,
        }
        if content.phases:
            spec["phases"] = [[phase.at_ns, phase.random_bytes] for phase in content.phases]
        return self._source(spec | _literally(content))

    def _source(self, spec: dict[str, Any]) -> int:
        key = repr(sorted(spec.items()))
        if key not in self._source_ids:
            self.sources.append(spec)
            self._source_ids[key] = len(self.sources)
        return self._source_ids[key]

    # -- devices

    def _device(self, name: str) -> ParticipantPlan:
        needed = [v for s in self.sources for k, v in s.items() if k in ("rows", "table")]
        spec = self._device_spec(name)
        spec["content"] = self.sources if spec["stores"] else []
        return ParticipantPlan(device_address(name), DEVICE, spec, tuple(needed) if spec["stores"] else ())

    def _device_spec(self, name: str) -> dict[str, Any]:
        device = self.devices[name]
        users = self.backs[name]
        pages = seen_bytes(device) // PAGE_SIZE
        compression = None
        if isinstance(device, CompressedRam):
            compression = {
                "codec": device.codec,
                "level": device.level,
                "block": device.block_bytes,
                "granule": device.granule_bytes,
            }
        return {
            "name": device_address(name),
            "device": name,
            "class": class_name(device),
            "capacity_pages": pages,
            "physical_bytes": device.capacity_bytes,
            "extent_pages": device.extent_bytes // PAGE_SIZE if device.pooled else pages,
            "pooled": device.pooled,
            "hosts": sorted({host for host, _ in users}),
            "boot_extents": [] if device.pooled else [[users[0][0], users[0][1].id, 0, pages]],
            "timing": self._timing(device),
            "compression": compression,
            "stores": self._stores(device),
            "scheduler": SCHEDULER_NAME,
            "sample_every": self.config.results.sample_every,
            "keep_bytes": isinstance(device, CompressedRam) and device.keep_bytes,
            **_thresholds(device, [node for _, node in users]),
            **self._plugin(device),
        }

    def _plugin(self, device: DeviceConfig) -> dict[str, Any]:
        if not isinstance(device, PluginDevice):
            return {}
        return {"plugin": self.config.plugins[device.plugin].spec(), "options": dict(device.options)}

    def _stores(self, device: DeviceConfig) -> bool:
        if isinstance(device, PluginDevice):
            return self.config.plugins[device.plugin].device_class.stores
        return device.device_class in _STORING

    def _timing(self, device: DeviceConfig) -> dict[str, Any]:
        """Timing of the class, with what the configuration sets of its own."""
        if isinstance(device, PluginDevice):
            timing = self.config.plugins[device.plugin].device_class.timing()
        else:
            codec = device.codec if isinstance(device, CompressedRam) else None
            timing = class_timing(device.device_class, codec)
        return timing | _own_timing(device)

    def _scheduler(self) -> ParticipantPlan:
        pooled = {name: device for name, device in self.devices.items() if device.pooled and self.backs[name]}
        devices = {
            name: {
                "capacity_pages": seen_bytes(device) // PAGE_SIZE,
                "extent_pages": device.extent_bytes // PAGE_SIZE,
                "pooled": True,
                "quota_pages": {host_address(h): b // PAGE_SIZE for h, b in device.quotas_bytes.items()},
                "reserved_pages": {
                    host_address(h): b // PAGE_SIZE for h, b in device.reservations_bytes.items()
                },
                "weights": {host_address(h): weight for h, weight in device.weights.items()},
                "give_back": device.give_back,
                "removals": [
                    [r.at_ns, host_address(r.host), r.size_bytes // PAGE_SIZE] for r in device.removals
                ],
                "granted": {},
            }
            for name, device in sorted(pooled.items())
        }
        hosts = [host_address(name) for host in self.config.hosts for name in host.names]
        spec = {"name": SCHEDULER_NAME, "hosts": hosts, "devices": devices}
        planned = any(device["removals"] for device in devices.values())
        return ParticipantPlan(SCHEDULER_NAME, SCHEDULER, spec, wakes=planned)


def _literally(content: ContentConfig) -> dict[str, bool]:
    return {"literal": True} if content.literal else {}


def _service(node: NodeConfig, device: DeviceConfig) -> dict[str, Any]:
    """Fields of NodeSpec for a compressed node whose device reports to the host's service."""
    if node.service == "lease":
        return {}
    nominal = seen_bytes(device) * 1000 // device.capacity_bytes
    return {"service": node.service, "nominal_ratio": nominal}


def _thresholds(device: DeviceConfig, nodes: list[NodeConfig]) -> dict[str, Any]:
    """When a device that reports is low, and when no more, in bytes that are free."""
    if not isinstance(device, CompressedRam) or all(node.service == "lease" for node in nodes):
        return {}
    shares = (device.low_threshold_permille, device.high_threshold_permille)
    return {"thresholds": [device.capacity_bytes * share // 1000 for share in shares]}


def _own_timing(device: DeviceConfig) -> dict[str, Any]:
    own = {
        "read_ns": device.read_latency_ns,
        "write_ns": device.write_latency_ns,
        "read_bandwidth": device.read_bandwidth_bytes_per_s,
        "write_bandwidth": device.write_bandwidth_bytes_per_s,
        "decompress_ns": device.decompress_latency_ns if isinstance(device, CompressedRam) else None,
        "curve": None if device.loaded_latency is None else [list(point) for point in device.loaded_latency],
    }
    return {name: value for name, value in own.items() if value is not None}


def _cache_pages(device: DeviceConfig) -> int:
    return device.block_cache_bytes // PAGE_SIZE if isinstance(device, CompressedRam) else 0


def _synthetic(workload: Any) -> dict[str, Any]:
    """The stream spec of a synthetic workload: pages for bytes, and counts for shares of pages."""
    nr_pages = workload.size_bytes // PAGE_SIZE
    spec = {
        "kind": workload.kind,
        "nr_pages": nr_pages,
        "write_permille": workload.write_share_permille,
    }
    match workload:
        case GpuWorkload():
            dma_pages = workload.dma_bytes // PAGE_SIZE
            return spec | {
                "nid": workload.node,
                "nr_pages": nr_pages + dma_pages,
                "buffer_pages": nr_pages,
                "window_pages": workload.window_bytes // PAGE_SIZE,
                "dma_pages": dma_pages,
                "launches": workload.launches,
                "launch_accesses": workload.launch_accesses,
            }
        case MessagesWorkload():
            return spec | {
                "nid": -1 if workload.node is None else workload.node,
                "messages": workload.messages,
                "message_pages": workload.message_bytes // PAGE_SIZE,
                "message_accesses": workload.message_accesses,
                "in_flight": workload.in_flight,
                "burst": workload.burst,
                "burst_every": workload.burst_every,
            }
    spec["accesses"] = workload.accesses
    match workload:
        case ZipfWorkload():
            spec["theta_permille"] = workload.theta_permille
        case ScanWorkload():
            spec["stride_pages"] = workload.stride_pages
        case HotSetWorkload():
            spec["hot_pages"] = max(1, nr_pages * workload.hot_share_permille // 1000)
            spec["hot_access_permille"] = workload.hot_access_share_permille
            spec["period_accesses"] = workload.period_accesses
            spec["move_pages"] = workload.move_pages
    return spec


def _owner(node: NodeConfig, device: DeviceConfig) -> dict[str, Any]:
    """What the owner of a private node does with accessed bits."""
    if not node.private or not (device.pooled or node.owner_demotes):
        return {}
    return {"owner_period_ns": node.owner_period_ns, "owner_demotes": node.owner_demotes}


def _calls(stream: dict[str, Any]) -> dict[str, Any]:
    """What a program with such a stream asks of drivers in between: told by the same spec."""
    if stream["kind"] not in ("gpu", "messages"):
        return {}
    return {
        "calls": {name: value for name, value in stream.items() if name not in ("seed", "write_permille")}
    }


def _policy(process: ProcessConfig) -> list[int]:
    """[mode with flags, node mask], as set_mempolicy takes them."""
    mode = int(_MODES[process.policy.mode])
    for flag in process.policy.flags:
        mode |= _FLAGS[flag]
    return [mode, nodemask.of(process.policy.nodes)]


def _sysctl(host: HostConfig) -> dict[str, Any]:
    knobs = host.sysctl
    return {
        "demotion_enabled": knobs.demotion_enabled,
        "watermark_scale_factor": knobs.watermark_scale_factor,
        "min_free_kbytes": knobs.min_free_kbytes,
        "numa_balancing": {
            "mode": knobs.numa_balancing,
            "scan_period_ns": knobs.numa_balancing_scan_period_min_ns,
            "scan_size_bytes": knobs.numa_balancing_scan_size_bytes,
            "hot_threshold_ns": knobs.numa_balancing_hot_threshold_ns,
            "promote_rate_limit": knobs.numa_balancing_promote_rate_limit_bytes_per_s,
        },
    }


def _fingerprint(array: np.ndarray) -> str:
    """What an array contributes to the run's identity."""
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()
