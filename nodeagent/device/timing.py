"""Latency of a device: idle, and under load.

Defaults by class, with their source; S: read in the source, M: measured by us, choice: no published figure
was found.

| class | latency | bandwidth | source |
| --- | --- | --- | --- |
| dram | 106 ns | 270 GB/s | Nomad, Table 1, platform D (AMD Genoa): 391 cycles at 3.7 GHz; S |
| cxl | 192 ns | 83 GB/s | the same, Micron CXL memory: 712 cycles; S |
| compressed-ram | cxl, and decompression | cxl | as an expander behind the same link |
| slow-distributed | 3000 ns | 12.5 GB/s | RDMA read about 3 us (vendor slide, S); one 100 Gb/s port: choice |

Decompression of a 4 KiB page: lz4 3.1 us, zstd 6.2 us in software on one x86 core (M). A hardware engine is
faster by a factor that no source gives; DECOMPRESS_NS takes a third of the software's time: choice. Write
latency equals read latency: choice.

Loaded latency: thousandths of the idle latency by utilisation in percent. The shape is that of an open queue
up to the five-fold inflation that Colloid reports for a contended default tier (section 2); choice between
those points.
"""

from __future__ import annotations

from typing import Any

_GB = 1_000_000_000
DECOMPRESS_NS = {"lz4": 1000, "zstd": 2000}

CLASS_TIMING: dict[str, dict[str, int]] = {
    "dram": {"latency_ns": 106, "bandwidth": 270 * _GB},
    "cxl": {"latency_ns": 192, "bandwidth": 83 * _GB},
    "compressed-ram": {"latency_ns": 192, "bandwidth": 83 * _GB},
    "slow-distributed": {"latency_ns": 3000, "bandwidth": 12_500_000_000},
}

LOADED_LATENCY = ((0, 1000), (30, 1050), (50, 1200), (70, 1600), (80, 2000), (90, 3000), (100, 5000))


def class_timing(device_class: str, codec: str | None = None) -> dict[str, Any]:
    """Defaults of a class as the plain "timing" of a device's spec."""
    base = CLASS_TIMING[device_class]
    extra = DECOMPRESS_NS[codec] if codec is not None else 0
    return {
        "read_ns": base["latency_ns"],
        "write_ns": base["latency_ns"],
        "decompress_ns": extra,
        "read_bandwidth": base["bandwidth"],  # bytes per second
        "write_bandwidth": base["bandwidth"],
        "curve": [list(point) for point in LOADED_LATENCY],
    }


def inflation_permille(curve: list[list[int]], utilisation_percent: int) -> int:
    """The curve at a utilisation, linear between its points; beyond its last one the last value."""
    before = curve[0]
    for point in curve:
        if utilisation_percent <= point[0]:
            span = point[0] - before[0]
            rise = (point[1] - before[1]) * (utilisation_percent - before[0])
            return before[1] + (rise // span if span else 0)
        before = point
    return before[1]


def loaded_ns(idle_ns: int, moved_bytes: int, epoch_ns: int, bandwidth: int, curve: list[list[int]]) -> int:
    """Latency after an epoch in which so many bytes were moved, `bandwidth` in bytes per second."""
    percent = moved_bytes * _GB * 100 // (bandwidth * epoch_ns)
    return idle_ns * inflation_permille(curve, percent) // 1000
