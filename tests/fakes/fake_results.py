"""What a run of a small rack leaves, made up: a summary and samples that agree with each other."""

from __future__ import annotations

from typing import Any

from privmem.scheduler.messages import Sample

EPOCH_NS = 5_000_000
NUMASTAT = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
CLASSES = ("dram", "compressed-ram", "slow-distributed")


def summary_of(hosts: int = 2, epochs: int = 4) -> dict[str, Any]:
    """Hosts h0, h1, ... with DRAM, compressed RAM and a share of `pool`."""
    names = [f"h{number}" for number in range(hosts)]
    devices = {f"{name}.n{nid}": _device(CLASSES[nid]) for name in names for nid in (0, 1)}
    granted = {f"host/{name}": 512 * (number + 1) for number, name in enumerate(names)}
    devices["pool"] = _device(CLASSES[2]) | {"pooled": True, "granted_by_host": granted}
    return {
        "schema": 1,
        "name": "fake",
        "seed": 7,
        "status": "complete",
        "digest": "0123456789abcdef" * 2,
        "identity": {"seed": 7, "config": {"name": "fake"}, "resources": {}},
        "virtual_ns": epochs * EPOCH_NS,
        "epochs": epochs,
        "rounds": 3 * epochs,
        "accesses": 3000 * hosts,
        "headline": {"pgfault": 40 * hosts},
        "hosts": {name: _host(name) for name in names},
        "devices": devices,
        "scheduler": {"requests": hosts, "devices": {"pool": {"granted_pages": granted}}},
    }


def samples_of(hosts: int = 2, epochs: int = 4) -> list[Sample]:
    """Samples of each epoch; the scheduler's come in every second one, as it is not always asked."""
    samples = []
    for epoch in range(epochs):
        when = {"epoch": epoch, "time_ns": (epoch + 1) * EPOCH_NS}
        for number in range(hosts):
            host = when | {"host": f"host/h{number}"}
            counts = {"accesses": 750 * (epoch + 1), "access_ns": 150_000 * (epoch + 1), "fault_ns": 1000}
            counts |= {"pgfault": 10 * (epoch + 1), "pgpromote_fence": epoch, "pgdemote_kswapd": 5 * epoch}
            samples.append(Sample("host", [host | counts]))
            nodes = [host | {"nid": nid} | _node(nid, epoch + 1) for nid in range(3)]
            samples.append(Sample("host_node", nodes))
            if epoch % 2:
                grant = {"device": "pool", "granted_pages": 256 * (number + 1), "refused": 0}
                grant["entitled_pages"] = 384
                samples.append(Sample("scheduler", [host | grant]))
            for nid in (0, 1):
                numbers = _stored(CLASSES[nid]) | {"read_bytes": 4096 * (epoch + 1), "write_bytes": 64}
                device = when | {"device": f"h{number}.n{nid}"} | numbers | {"read_ns": 100, "write_ns": 90}
                samples.append(Sample("device", [device]))
    return samples


def _host(name: str) -> dict[str, Any]:
    vmstat = {"pgfault": 40, "pgdemote_kswapd": 15, "pgdemote_direct": 5, "demote_compressed": 12}
    vmstat |= {"demote_pooled": 3, "pgpromote_fence": 3, "pgpromote_success": 0, "extents_granted": 2}
    devices = (f"device/{name}.n0", f"device/{name}.n1", "device/pool")
    nodes = {
        nid: _node(nid, 4) | {"device": device, "private": nid > 0} for nid, device in enumerate(devices)
    }
    process = {"accesses": 3000, "access_ns": 600_000, "fault_ns": 1000, "time_ns": 601_000, "ended": True}
    return {"vmstat": vmstat, "nodes": nodes, "processes": {"db": process | {"killed": False}}}


def _node(nid: int, epochs: int) -> dict[str, int]:
    numbers = {"present_pages": 2048, "free_pages": 1024 >> nid, "accesses": (600, 100, 50)[nid] * epochs}
    return numbers | dict.fromkeys(NUMASTAT, 0) | ({"numa_hit": 30, "local_node": 30} if nid == 0 else {})


def _device(device_class: str) -> dict[str, Any]:
    fixed = {"class": device_class, "pooled": False, "granted_by_host": {}, "same_filled_pages": 0}
    stores = device_class != "dram"
    ratio = {"ratio": 2.5} if device_class == "compressed-ram" else {}
    return fixed | _stored(device_class) | {"pages_stored": 12 if stores else 0} | ratio


def _stored(device_class: str) -> dict[str, int]:
    pages, used = {"dram": (0, 0), "compressed-ram": (10, 16_384), "slow-distributed": (10, 40_960)}[
        device_class
    ]
    capacity = {"capacity_bytes": 8 << 20}
    compressed = {"compressed_bytes": used - 100 if device_class == "compressed-ram" else 0}
    return {"stored_pages": pages, "logical_bytes": 4096 * pages, "used_bytes": used} | compressed | capacity
