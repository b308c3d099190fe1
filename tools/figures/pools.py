"""What pools do under contention: prints the figures of docs/validation.md.

python tools/figures/pools.py fairness
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from privmem.cluster import Emulation, run
from privmem.cluster.config import load_config

EXPERIMENTS = Path(__file__).resolve().parents[2] / "configs" / "experiments"
#: Shares are those of the second half of the run: the first one is for hosts to come to them.
SETTLED = 0.5


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


def main() -> None:
    """Print what was asked for."""
    chosen = {"fairness": fairness}
    if len(sys.argv) != 2 or sys.argv[1] not in chosen:
        raise SystemExit(f"usage: pools.py {' | '.join(chosen)}")
    print("\n".join(chosen[sys.argv[1]]()))


if __name__ == "__main__":
    main()
