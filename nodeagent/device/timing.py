"""Latency of a device: idle, and under load. All integer.

Defaults by class, each with its source. S: read in the source itself; N: from notes that cite page or section;
M: measured by us; choice: no published figure was found.

| class | idle latency | bandwidth, each way | source |
| --- | --- | --- | --- |
| dram | 106 ns | 270 GB/s | Nomad (OSDI'24), Table 1, platform D (AMD Genoa): 391 cycles at 3.7 GHz; S |
| cxl | 192 ns | 83 GB/s | the same table and platform, Micron CXL memory on x4: 712 cycles; S |
| compressed-ram | as cxl, and decompression | as cxl | an expander behind the same link; choice |
| slow-distributed | 3000 ns | 12.5 GB/s | RDMA read ~3 us (vendor slide; S); one shared 100 Gb/s port; choice |

The table's bandwidth is that of reads; writes have as much of their own: choice. Writes take as long as reads:
choice. gpu and nic have no figures yet.

Decompression of a 4 KiB page in software takes 3.1 us (lz4) or 6.2 us (zstd) on one x86 core (M). An expander
decompresses in hardware; what the open expander design states is work, not time: 64 bytes of a 2:1 page cost
up to 32 line reads when its block cache misses (OCP; S). DECOMPRESS_NS takes a third of the software's time:
choice. It is added to every access: a write of less than a block needs the block first. The engine is not
what saturates, so load does not inflate it: choice.

Loaded latency is that of a queue, from published ends: unloaded at rest, five times at saturation (a contended
default tier; Colloid, SOSP'24, section 2; N); the points between are a choice. Beyond saturation it stays
there: more bytes than the bandwidth allows may pass in an epoch, and the report shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_GB = 1_000_000_000
_S_NS = 1_000_000_000

DECOMPRESS_NS = {"lz4": 1000, "none": 0, "zstd": 2000}

CLASS_TIMING: dict[str, dict[str, int]] = {
    "dram": {"latency_ns": 106, "bandwidth": 270 * _GB},
    "cxl": {"latency_ns": 192, "bandwidth": 83 * _GB},
    "compressed-ram": {"latency_ns": 192, "bandwidth": 83 * _GB},
    "slow-distributed": {"latency_ns": 3000, "bandwidth": 12_500_000_000},
}

#: (utilisation of the bandwidth in percent, latency in thousandths of the idle one), rising from 0 percent.
LOADED_LATENCY = ((0, 1000), (30, 1050), (50, 1200), (70, 1600), (80, 2000), (90, 3000), (100, 5000))


def class_timing(device_class: str, codec: str | None = None) -> dict[str, Any]:
    """Defaults of a class as the plain "timing" of a device's spec; bandwidths in bytes per second."""
    base = CLASS_TIMING[device_class]
    return {
        "read_ns": base["latency_ns"],
        "write_ns": base["latency_ns"],
        "decompress_ns": DECOMPRESS_NS[codec] if codec is not None else 0,
        "read_bandwidth": base["bandwidth"],
        "write_bandwidth": base["bandwidth"],
        "curve": [list(point) for point in LOADED_LATENCY],
    }


def inflation_permille(curve: Sequence[Sequence[int]], utilisation_permille: int) -> int:
    """The curve at a utilisation, linear between its points; beyond its last one the last value."""
    before = curve[0]
    for point in curve[1:]:
        if utilisation_permille < point[0] * 10:
            span = (point[0] - before[0]) * 10
            into = max(0, utilisation_permille - before[0] * 10)
            return before[1] + (point[1] - before[1]) * into // span
        before = point
    return before[1]


def loaded_latency_ns(
    base_ns: int, bytes_in_epoch: int, epoch_ns: int, bandwidth: int, curve: Sequence[Sequence[int]]
) -> int:
    """Latency after an epoch in which so many bytes were moved; `bandwidth` in bytes per second."""
    utilisation_permille = bytes_in_epoch * _S_NS * 1000 // (bandwidth * epoch_ns)
    return base_ns * inflation_permille(curve, utilisation_permille) // 1000


def access_latencies_ns(timing: dict[str, Any], moved_bytes: Sequence[int], epoch_ns: int) -> tuple[int, int]:
    """(read, write) latency after an epoch that moved these bytes (read, written). Idle: access_latencies_ns(t,
    (0, 0), 1).
    """
    read, write = (
        timing["decompress_ns"]
        + loaded_latency_ns(timing[f"{way}_ns"], moved, epoch_ns, timing[f"{way}_bandwidth"], timing["curve"])
        for way, moved in zip(("read", "write"), moved_bytes, strict=True)
    )
    return read, write
