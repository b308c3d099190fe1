"""Latency at rest and under load by device class, beside published figures: prints docs/latency.md.

    python tools/figures/latency.py > docs/latency.md

Every figure of ours is measured: a configuration with one host is run, in which a number of accesses is in flight
to one node at any time, and the mean latency and the bandwidth are read off its time series.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from privmem.cluster import run

LINE_BYTES = 64
#: Accesses in flight of the sweep, and of the last point, which saturates every class.
IN_FLIGHT = (1, 16, 64, 128, 192, 256, 320, 384, 448, 512, 768, 1024, 1280, 1536, 2048)
SATURATED = 4096
THREADS_MAX = 256


def configuration(device_class: str, in_flight: int) -> dict[str, Any]:
    """One host with DRAM (node 0) and, unless that is the class, a node 1 of the class that processes bind to."""
    nodes: list[dict[str, Any]] = [{"id": 0, "memory": {"class": "dram", "capacity": "1MiB"}, "cpus": [0]}]
    if device_class != "dram":
        memory = {"class": device_class, "capacity": "1MiB"}
        if device_class == "compressed-ram":
            memory["perceived"] = "1MiB"
        node: dict[str, Any] = {"id": 1, "memory": memory, "via": 0, "hop": 14}
        if device_class != "cxl":
            node |= {"private": True, "features": ["user_numa", "user_write"]}
        nodes.append(node)
    sizes = [THREADS_MAX] * (in_flight // THREADS_MAX) + [in_flight % THREADS_MAX] * bool(
        in_flight % THREADS_MAX
    )
    processes = [
        {
            "name": f"p{at}",
            "threads": threads,
            "policy": {"mode": "bind", "nodes": [nodes[-1]["id"]]},
            "workload": {"kind": "uniform", "size": "16KiB", "accesses": 1_000_000_000},
        }
        for at, threads in enumerate(sizes)
    ]
    engine = {"duration": "2ms", "epoch": "100us", "slice": "100us"}
    host = {"name": "h", "cpus": 1, "nodes": nodes, "processes": processes}
    return {"schema": 1, "name": "latency", "engine": engine, "hosts": [host]}


@cache
def measured(device_class: str, in_flight: int) -> tuple[float, float]:
    """(ns an access, GB/s) over the last quarter of a run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "latency.yaml"
        file.write_text(yaml.safe_dump(configuration(device_class, in_flight)))
        rows = run(file).tables["host"].to_pylist()
    first, last = rows[-6], rows[-1]
    accesses = last["accesses"] - first["accesses"]
    ns = (last["access_ns"] - first["access_ns"]) / accesses
    return ns, accesses * LINE_BYTES / (last["time_ns"] - first["time_ns"])


def idle_ns(device_class: str) -> float:
    return measured(device_class, 1)[0]


def peak_gb_s(device_class: str) -> float:
    return measured(device_class, SATURATED)[1]


def compressed_idle_ns() -> float:
    """What a read of a compressed page takes that the device's block cache does not have; nobody may bind to such a
    node, so it is the latency that its host books.
    """
    config = configuration("compressed-ram", 1)
    (host,) = config["hosts"]
    host["nodes"][1]["features"] = ["reclaim", "demotion"]
    del host["processes"][0]["policy"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "latency.yaml"
        file.write_text(yaml.safe_dump(config))
        rows = run(file).tables["host_node"].to_pylist()
    return float(next(row["read_ns"] for row in reversed(rows) if row["nid"] == 1))


def inflation(device_class: str, share: float) -> float:
    """Latency over that at rest where a share of the peak bandwidth is used; linear between the sweep's points."""
    points = [measured(device_class, n) for n in (*IN_FLIGHT, SATURATED)]
    peak, idle = peak_gb_s(device_class), idle_ns(device_class)
    before = (idle, 0.0)
    for ns, gb_s in points:
        if gb_s >= share * peak:
            part = (share * peak - before[1]) / (gb_s - before[1])
            return (before[0] + part * (ns - before[0])) / idle
        before = (ns, gb_s)
    return before[0] / idle


def worst(device_class: str) -> float:
    """Latency at saturation over that at rest, by the class's curve: more accesses in flight only wait longer."""
    from privmem.nodeagent.device.timing import CLASS_TIMING

    return float(CLASS_TIMING[device_class]["curve"][-1][1]) / 1000


@dataclass(frozen=True, slots=True)
class Row:
    """A published figure, or range, and ours."""

    what: str
    source: str
    low: float
    high: float
    ours: float
    unit: str = ""

    @property
    def distance(self) -> float:
        """From the nearer end of the range, relative to it; 0 within."""
        if self.low <= self.ours <= self.high:
            return 0.0
        end = self.low if self.ours < self.low else self.high
        return (self.ours - end) / end

    def __str__(self) -> str:
        published = " to ".join(dict.fromkeys((_figure(self.low), _figure(self.high))))
        unit = f" {self.unit}" if self.unit else ""
        distance = f"{self.distance:+.1%}".replace("-0.0%", "+0.0%")
        if self.low < self.high and not self.distance:
            distance = "within"
        return (
            f"| {self.what} | {self.source} | {published}{unit} | {_figure(self.ours)}{unit} | {distance} |"
        )


def _figure(value: float) -> str:
    """Four digits at most: nobody published more."""
    return f"{value:.4g}"


def setting() -> list[Row]:
    """Figures that the model was given: that ours agree shows that what was put in comes out."""
    nomad = "Nomad, Table 1, platform D (cycles by clock); S"
    rows = [
        Row("DRAM at rest", nomad, 391 / 3.7, 391 / 3.7, idle_ns("dram"), "ns"),
        Row("CXL memory at rest", nomad, 712 / 3.7, 712 / 3.7, idle_ns("cxl"), "ns"),
        Row("DRAM, peak of reads", nomad, 270, 270, peak_gb_s("dram"), "GB/s"),
        Row("CXL memory, peak of reads", nomad, 83, 83, peak_gb_s("cxl"), "GB/s"),
        Row("RDMA read", "vendor slide; V", 3000, 3000, idle_ns("slow-distributed"), "ns"),
        Row("GPU memory read by the CPU, peak", "GH200, NVLink-C2C; N", 297, 297, peak_gb_s("gpu"), "GB/s"),
    ]
    for name, share, times in (
        ("dram", 0.50, 1.148), ("dram", 0.80, 1.412), ("dram", 0.95, 1.906),
        ("cxl", 0.43, 1.032), ("cxl", 0.87, 1.123), ("gpu", 0.50, 1.142), ("gpu", 0.88, 1.404),
    ):  # fmt: skip
        source = {"dram": "Graviton3 DDR5", "cxl": "CXL expander", "gpu": "A64FX HBM2"}[name]
        rows.append(
            Row(
                f"{name}: at {share:.0%} of the peak, over rest",
                f"Mess, {source}; S",
                times,
                times,
                inflation(name, share),
            )
        )
    return rows


def testing() -> list[Row]:
    """Figures that nothing was fitted to."""
    dram, cxl = idle_ns("dram"), idle_ns("cxl")
    rows = [
        Row("DRAM at rest", "Pond, Fig. 4, both machines; N", 78, 115, dram, "ns"),
        Row("DRAM at rest", "notes on tiering; N", 80, 100, dram, "ns"),
        Row("DRAM at rest", "Colloid; N", 70, 70, dram, "ns"),
        Row("far memory at rest", "Pond, Fig. 4, both machines, other socket; N", 142, 255, cxl, "ns"),
        Row("far memory at rest", "Colloid, other socket; N", 135, 135, cxl, "ns"),
        Row("CXL memory at rest", "notes on tiering; N", 170, 250, cxl, "ns"),
        Row("CXL memory at rest", "Melody, abstract; S", 140, 410, cxl, "ns"),
        Row("what CXL adds, pool of 8 to 16 sockets", "Pond; N", 70, 90, cxl - dram, "ns"),
        Row("what CXL adds", "TPP (Meta); N", 50, 100, cxl - dram, "ns"),
        Row("far over near memory", "Pond, Fig. 4, first machine; N", 1.82, 1.82, cxl / dram),
        Row("far over near memory", "Pond, Fig. 4, second machine; N", 2.22, 2.22, cxl / dram),
        Row("far over near memory", "Colloid; N", 135 / 70, 135 / 70, cxl / dram),
        Row("CXL over DRAM, three cards", "Wang et al., arXiv 2405.14209, a summary; S", 2, 5, cxl / dram),
        Row("CXL over DRAM, FPGA", "Nomad, Table 1, platform A; S", 854 / 316, 854 / 316, cxl / dram),
        Row("CXL over DRAM, FPGA", "Nomad, Table 1, platform B; S", 737 / 226, 737 / 226, cxl / dram),
    ]
    for gb_s, ns in ((24.9, 74.8), (51.6, 81.7), (74.8, 98.5), (90.6, 122.8), (95.9, 137.5)):
        what = f"DRAM at {gb_s / 101:.0%} of the peak, over rest"
        rows.append(
            Row(what, "Mess, Skylake DDR4, 78 % reads; S", ns / 66, ns / 66, inflation("dram", gb_s / 101))
        )
    for gb_s, ns in ((21.33, 120.5), (33.66, 133.6), (39.97, 148.1)):
        what = f"CXL at {gb_s / 43.65:.0%} of the peak, over rest"
        rows.append(
            Row(
                what,
                "Mess, the same expander, 58 % reads; S",
                ns / 107.4,
                ns / 107.4,
                inflation("cxl", gb_s / 43.65),
            )
        )
    rows += [
        Row("DRAM under contention, over rest", "Colloid, up to; N", 5, 5, worst("dram")),
        Row("contended DRAM over CXL at rest", "Colloid, abstract; S", 2.5, 2.5, worst("dram") * dram / cxl),
    ]
    return rows


HEAD = """# Latency: published figures and ours

Printed by `python tools/figures/latency.py`. Ours are measured: one host keeps a number of accesses in flight
to one node; mean latency and bandwidth come from the time series of the run. Distance is from the nearer end
of a published range. How far a published figure can be trusted: S, read in the source; N, from notes that
cite page or section; V, a vendor's claim. Defaults: `nodeagent/device/timing.py`, `nodeagent/latency_curve.py`.

Sources: Nomad (OSDI'24), Mess (MICRO'24), Pond (ASPLOS'23), TPP (ASPLOS'23), Colloid (SOSP'24), Melody (ASPLOS'25),
Wang et al. (arXiv 2405.14209), GH200 (Schieffer et al., ICPP'24).
"""
TABLE = "| figure | source | published | ours | distance |\n| --- | --- | --- | --- | --- |"
REMARKS = """\
Nothing was fitted to these. Rows of Mess are of another machine (DRAM) or other traffic (CXL) than what set the
curves, but of the same authors and method; those of Nomad's platforms A and B are of the same table. All others
are sources that the model does not know.

What the table says. What a CXL device adds is within both published ranges. Latency at rest is that of one machine:
Nomad's own table spans 64 to 150 ns for DRAM, and Colloid's machine has 70 where ours has 106, so the ratio of far
to near memory says more. It is within a tenth of Pond's first machine, of Colloid and of the best of three cards, a
fifth below Pond's second machine, and far below cards with FPGA controllers, which are slower than the ASIC that
the class stands for: set `read_latency` for those. Under load, distances stay within a sixth, but for Colloid's:
its contended default tier reaches five times its latency, the machine whose curve we use three. Its threads write
as well, and the curve of mixed traffic on the same machine (58 % reads) reaches 4.9. Whoever studies contention
should set `loaded_latency`, and see which conclusions depend on it.

Not modelled: that traffic to CXL memory takes bandwidth from DRAM, up to 81 % of it (arXiv 2503.17864, abstract;
S)."""


def classes() -> str:
    """What sets and what tests each class, as a table."""
    nomad, far = "Nomad, platform D", "Pond, TPP, Colloid, Melody, Wang et al.; Mess, 58 % reads"
    port = "peak: a 100 Gb/s port; queue (choice)"
    rows = (
        ("dram", idle_ns("dram"), nomad, "Mess, DDR5", "Pond, Colloid, notes; Mess, DDR4"),
        ("cxl", idle_ns("cxl"), nomad, "Mess, CXL, 90 % reads", far),
        ("compressed-ram, lz4", compressed_idle_ns(), "as cxl, and decompression (choice)", "as cxl", "nothing"),
        ("gpu", idle_ns("gpu"), "choice", "peak: GH200; curve: Mess, HBM2", "nothing"),
        ("nic", idle_ns("nic"), "as cxl (choice)", "peak: a 400 Gb/s port; curve as cxl (choice)", "nothing"),
        ("slow-distributed", idle_ns("slow-distributed"), "vendor slide", port, "nothing"),
    )  # fmt: skip
    lines = [
        "| class | at rest | set by | under load, set by | tested by |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {_figure(ns)} ns | {idle} | {load} | {tests} |" for name, ns, idle, load, tests in rows
    ]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    sets, tests = ("\n".join(map(str, rows)) for rows in (setting(), testing()))
    return (
        f"{HEAD}\n## By class\n\nThat nothing tests a class means: no other published figure was at hand.\n\n"
        f"{classes()}\n\n## Figures that set the model\n\n"
        f"That ours agree shows only that what was put in comes out.\n\n"
        f"{TABLE}\n{sets}\n\n## Figures that test it\n\n{TABLE}\n{tests}\n\n{REMARKS}\n\n"
        f"## Latency against bandwidth\n\n{sweep()}"
    )


def sweep() -> str:
    """Accesses in flight by class: ns and GB/s."""
    classes = ("dram", "cxl", "gpu", "nic", "slow-distributed")
    lines = ["| in flight | " + " | ".join(classes) + " |", "| --- |" + " --- |" * len(classes)]
    for n in (*IN_FLIGHT, SATURATED):
        cells = [f"{ns:.0f} ns, {gb_s:.3g} GB/s" for ns, gb_s in (measured(name, n) for name in classes)]
        lines.append(f"| {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
