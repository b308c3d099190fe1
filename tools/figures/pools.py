"""What pools do under contention, and what they save: prints the figures of docs/experiments.md.

python tools/figures/pools.py fairness
python tools/figures/pools.py pond
python tools/figures/pools.py sensitivity
python tools/figures/pools.py pond-config 8
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pond_demand import DAY_MS, DAYS, SERVER_PAGES, Demand, pond_text

from privmem.cluster import Emulation, run
from privmem.cluster.config import load_config
from privmem.cluster.results.intervals import tracks_of

EXPERIMENTS = Path(__file__).resolve().parents[2] / "configs" / "experiments"
#: Shares are those of the second half of the run: the first one is for hosts to come to them.
SETTLED = 0.5
#: Servers of the two runs, and what Pond's abstract and its readers say that it saves.
SMALLER, LARGER = 8, 16
PUBLISHED = (0.07, 0.09)
#: How far the saving, as emulated, may be from the same in whole extents, by arithmetic.
BOUND = 0.003


def held_pages(result: Emulation, device: str) -> dict[str, float]:
    """Mean pages that each host held of a pooled device, over the second half of the run."""
    nids = {
        name: nid
        for name, host in result.summary["hosts"].items()
        for nid, node in host["nodes"].items()
        if node["device"] == f"device/{device}"
    }
    from_ns = result.summary["virtual_ns"] * SETTLED
    seen: dict[str, list[int]] = {name: [] for name in nids}
    for row in result.tables["host_node"].to_pylist():
        if row["nid"] == nids.get(row["host"]) and row["time_ns"] >= from_ns:
            seen[row["host"]].append(row["present_pages"])
    return {name: sum(pages) / len(pages) for name, pages in seen.items()}


def fairness() -> list[str]:
    """Shares of an overloaded pool beside the weights."""
    file = EXPERIMENTS / "fairness.yaml"
    weights = load_config(file).devices["pool"].weights
    result = run(file)
    pool: dict[str, Any] = result.summary["scheduler"]["devices"]["pool"]
    held = held_pages(result, "pool")
    lines = [f"digest {result.digest}", "", "host  weight  due     held    distance  refused"]
    for name, pages in held.items():
        due = weights[name] / sum(weights.values())
        share = pages / sum(held.values())
        refused = pool["refused"][f"host/{name}"]
        lines.append(
            f"{name:4} {weights[name]:7} {due:7.2%} {share:7.2%} {100 * (share / due - 1):+8.1f} % {refused:8}"
        )
    kills = sum(host["vmstat"]["oom_kill"] for host in result.summary["hosts"].values())
    mean_pages = sum(held.values())
    lines += [
        "",
        f"in use {mean_pages / pool['capacity_pages']:.1%} of the pool; {sum(pool['refused'].values())} refusals, "
        f"{pool['reclaims']} times asked back, {pool['lost_pages']} pages lost, {kills} processes killed",
    ]
    return lines


@dataclass(frozen=True, slots=True)
class Emulated:
    """What came of a run of the experiment, in pages."""

    #: The most that hosts held of the pool at once, which is how large the pool must be.
    pool: int
    #: Means over the time in which every server is in one of its days: in use; free, on a host.
    used: float
    free: float


def emulated(hosts: int) -> Emulated:
    """Run the experiment with so many servers."""
    with tempfile.TemporaryDirectory() as folder:
        file = EXPERIMENTS / "pond.yaml"
        if hosts != LARGER:
            file = Path(folder, "pond.yaml")
            file.write_text(pond_text(Demand(hosts)), encoding="utf-8")
        result = run(file)
    kills = sum(host["vmstat"]["oom_kill"] for host in result.summary["hosts"].values())
    pool = result.summary["scheduler"]["devices"]["pool"]
    if kills or sum(pool["refused"].values()):
        raise SystemExit(f"{kills} processes killed: the pool was too small, and the figures mean nothing")
    times_ns = np.arange(2 * DAY_MS, DAYS * DAY_MS) * 1_000_000
    present, free = np.zeros(len(times_ns)), np.zeros(len(times_ns))
    for track in tracks_of(result.tables["host_node"], ("host", "nid")).values():
        present += track.at(times_ns, "present_pages")
        free += track.at(times_ns, "free_pages")
    return Emulated(int(pool["peak_total_pages"]), float((present - free).mean()), float(free.mean()))


def pond() -> list[str]:
    """DRAM saved, as emulated and by arithmetic, beside Pond's; what is stranded; then the range of the model."""
    with ProcessPoolExecutor(2, get_context("spawn")) as workers:
        found = dict(zip((LARGER, SMALLER), workers.map(emulated, (LARGER, SMALLER)), strict=True))
    saving = [
        "servers  all local  own + pool, emulated  saved   in extents  of demand alone   Pond      distance"
    ]
    stranding = ["servers  stranded: all local  own + pool  of it free on hosts  in the pool, nobody's"]
    for hosts in (SMALLER, LARGER):
        demand, made = Demand(hosts), found[hosts]
        saved, alone = demand.saved(made.pool), demand.saved(demand.pool_pages())
        in_extents = demand.saved(demand.held_pages())
        end = min(max(saved, PUBLISHED[0]), PUBLISHED[1])
        whole, parts = hosts * SERVER_PAGES, hosts * demand.local_pages + made.pool
        saving.append(
            f"{hosts:7} {whole // 256:6} MiB {parts / 256:17.1f} MiB {saved:7.2%} {in_extents:11.2%} {alone:16.2%} "
            f"  7 to 9 % {100 * (saved - end):+6.1f} points"
        )
        if abs(in_extents - saved) > BOUND:
            saving.append(f"        NOT within the stated bound of {100 * BOUND:.1f} points")
        nobodys = parts - made.used - made.free
        stranding.append(
            f"{hosts:7} {1 - made.used / whole:20.1%} {1 - made.used / parts:11.1%} "
            f"{made.free / parts:20.1%} {nobodys / parts:22.1%}"
        )
    return [*saving, "", *stranding, "", *sensitivity()]


RANGE = (2, 4, 8, 12, 16, 32)
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("stranded at most 15 %", {"stranded_max": 0.15}),
    ("stranded at most 20 %", {"stranded_max": 0.20}),
    ("as in the experiment", {}),
    ("stranded at most 30 %", {"stranded_max": 0.30}),
    ("30 days", {"days": 30}),
    ("300 days", {"days": 300}),
    ("70 % of memory local", {"local": 0.7}),
    ("80 % of memory local", {"local": 0.8}),
    ("90 % of memory local", {"local": 0.9}),
)
DRAWS = 200


def sensitivity() -> list[str]:
    """By arithmetic alone: what the model saves in the median of many draws, and in nine of ten."""
    head = "".join(f"{hosts:9} servers" for hosts in RANGE)
    lines = [f"saved, median of {DRAWS} draws (nine of ten draws lie between)", f"{'':22}{head}"]
    for text, options in VARIANTS:
        cells = []
        for hosts in RANGE:
            draws = [Demand(hosts, **options, seed=seed) for seed in range(DRAWS)]
            low, middle, high = 100 * np.quantile([d.saved(d.pool_pages()) for d in draws], (0.05, 0.5, 0.95))
            cells.append(f"{middle:6.1f} ({low:4.1f}-{high:4.1f})")
        lines.append(f"{text:22}{' '.join(cells)}")
    for hosts in (SMALLER, LARGER):
        one = Demand(hosts).pool_pages()
        as_bad = sum(Demand(hosts, seed=seed).pool_pages() >= one for seed in range(DRAWS))
        saved = Demand(hosts).saved(one)
        lines.append(
            f"the experiment's draw, {hosts} servers: {saved:.1%}; {as_bad} of {DRAWS} draws save no more"
        )
    return lines


def main() -> None:
    """Print what was asked for."""
    chosen = {"fairness": fairness, "pond": pond, "sensitivity": sensitivity}
    match sys.argv[1:]:
        case [name] if name in chosen:
            print("\n".join(chosen[name]()))
        case ["pond-config", hosts]:
            print(pond_text(Demand(int(hosts))), end="")
        case _:
            raise SystemExit(f"usage: pools.py {' | '.join(chosen)} | pond-config SERVERS")


if __name__ == "__main__":
    main()
