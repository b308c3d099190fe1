"""Latency of a device: idle, and under load. All integer.

Defaults by class, each with its source. S: read in the source itself; N: from notes that cite page or section;
M: measured by us; V: a vendor's claim; choice: no published figure was found.

| class | idle latency | bandwidth, each way | latency under load |
| --- | --- | --- | --- |
| dram | 106 ns (a) | 270 GB/s (a) | DDR5_CURVE (b) |
| cxl | 192 ns (a) | 83 GB/s (a) | CXL_CURVE (b) |
| compressed-ram | as cxl, and decompression (c) | as cxl | as cxl |
| gpu | 198 ns (d) | 297 GB/s read, 375 GB/s written (e) | HBM2_CURVE (b) |
| nic | as cxl (c) | 50 GB/s: a 400 Gb/s port (c) | as cxl |
| slow-distributed | 3000 ns (f) | 12.5 GB/s: a 100 Gb/s port that all hosts share (c) | queue of that port (g) |

(a) Nomad (OSDI'24), Table 1, platform D (AMD Genoa, Micron CXL memory on x4): 391 and 712 cycles at 3.7 GHz; S.
(b) Mess (MICRO'24), see nodeagent/latency_curve.py; S.
(c) choice; for compressed RAM: an expander behind the same link.
(d) HBM2 of an A64FX at rest, 112 ns (Mess; S), and what the link of cxl adds to dram; choice.
(e) NVLink-C2C of a GH200, device to host and host to device (STREAM; Schieffer et al., ICPP'24, as reported; N).
(f) RDMA read of about 3 us (vendor slide); V.
(g) M/D/1, transfers of 4 KiB; the shape is textbook, the end at five times idle a choice.

Bandwidths of the table are those of reads but for gpu; writes have as much of their own: choice. Writes take as
long as reads: choice.

Decompression of a 4 KiB page in software takes 3.1 us (lz4) or 6.2 us (zstd) on one x86 core (M). An expander
decompresses in hardware; what the open expander design states is work, not time: 64 bytes of a 2:1 page cost
up to 32 line reads when its block cache misses (OCP; S). DECOMPRESS_NS takes a third of the software's time:
choice. It is added to every access that the block cache does not answer (block_cache.py): a write of less than a
block needs the block first. The engine is not what saturates, so load does not inflate it: choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from privmem.nodeagent.latency_curve import (
    CXL_CURVE,
    DDR5_CURVE,
    HBM2_CURVE,
    Curve,
    loaded_latency_ns,
    queue_curve,
)
from privmem.scheduler.abi import PAGE_SIZE

_GB = 1_000_000_000
_S_NS = 1_000_000_000

DECOMPRESS_NS = {"lz4": 1000, "none": 0, "zstd": 2000}


def _class(idle_ns: int, read: int, write: int, curve: Curve) -> dict[str, Any]:
    return {"latency_ns": idle_ns, "read_bandwidth": read, "write_bandwidth": write, "curve": curve}


_PORT = 12_500_000_000
CLASS_TIMING: dict[str, dict[str, Any]] = {
    "dram": _class(106, 270 * _GB, 270 * _GB, DDR5_CURVE),
    "cxl": _class(192, 83 * _GB, 83 * _GB, CXL_CURVE),
    "compressed-ram": _class(192, 83 * _GB, 83 * _GB, CXL_CURVE),
    "gpu": _class(198, 297 * _GB, 375 * _GB, HBM2_CURVE),
    "nic": _class(192, 50 * _GB, 50 * _GB, CXL_CURVE),
    "slow-distributed": _class(3000, _PORT, _PORT, queue_curve(PAGE_SIZE * _S_NS // _PORT, 3000)),
}


def class_timing(device_class: str, codec: str | None = None) -> dict[str, Any]:
    """Defaults of a class as the plain "timing" of a device's spec; bandwidths in bytes per second."""
    base = CLASS_TIMING[device_class]
    return {
        "read_ns": base["latency_ns"],
        "write_ns": base["latency_ns"],
        "decompress_ns": DECOMPRESS_NS[codec] if codec is not None else 0,
        "read_bandwidth": base["read_bandwidth"],
        "write_bandwidth": base["write_bandwidth"],
        "curve": [list(point) for point in base["curve"]],
    }


def access_latencies_ns(
    timing: dict[str, Any],
    moved_bytes: Sequence[int] = (0, 0),
    epoch_ns: int = 1,
    before_ns: Sequence[int] | None = None,
) -> tuple[int, int]:
    """(read, write) latency after an epoch that moved these bytes (read, written) at the latencies of `before_ns`;
    idle by default.
    """
    extra = timing["decompress_ns"]
    read, write = (
        extra
        + loaded_latency_ns(
            timing[f"{way}_ns"],
            moved_bytes[at],
            epoch_ns,
            timing[f"{way}_bandwidth"],
            timing["curve"],
            None if before_ns is None else before_ns[at] - extra,
            extra,
        )
        for at, way in enumerate(("read", "write"))
    )
    return read, write
