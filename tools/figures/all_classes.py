"""What each isolation design makes of the machine with every class of memory: docs/experiments.md has the table.

python tools/figures/all_classes.py [DESIGN ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from privmem.cluster.assembly import make_plan
from privmem.cluster.config import load_config
from privmem.cluster.engine import Engine
from privmem.cluster.runtime.base import DEFAULT_BUILD
from privmem.cluster.runtime.inline import InlineRuntime
from privmem.scheduler.isolation import get_design, select_designs

CONFIG = Path(__file__).parents[2] / "configs" / "experiments" / "all_classes.yaml"

#: Row of the table: counters that it adds up over the hosts.
COUNTERS = {
    "demoted by reclaim": ("pgdemote_kswapd", "pgdemote_direct"),
    "  to compressed RAM": ("demote_compressed",),
    "  to slow memory": ("demote_pooled",),
    "taken by slow memory's owner": ("pgdemote_owner",),
    "  brought home": ("pgpromote_owner",),
    "promoted from CXL by hint faults": ("pgpromote_success",),
    "promoted by writes to compressed RAM": ("pgpromote_fence",),
    "moved onto the GPU's node": ("driver_migrate_in",),
    "  and back": ("driver_migrate_back",),
    "  left out for want of room": ("driver_migrate_fail",),
    "DMA buffers that may not be pinned there": ("longterm_pin_fail",),
    "message buffers on the accelerator": ("netbuf_device",),
    "  in DRAM": ("netbuf_fallback",),
    "extents granted": ("extents_granted",),
    "pages where nobody invited them": ("pgleak",),
    "processes killed": ("oom_kill",),
}


def figures(design: str) -> dict[str, str]:
    """A column of the table."""
    plan = make_plan(load_config(CONFIG, design=design))
    runtime = InlineRuntime()
    runtime.start(plan, DEFAULT_BUILD)
    engine = Engine(plan, runtime, validate=True)
    engine.run()
    summary = engine.result().summary
    runtime.stop()
    hosts: list[dict[str, Any]] = list(summary["hosts"].values())
    column = {
        row: str(sum(host["vmstat"][name] for host in hosts for name in names))
        for row, names in COUNTERS.items()
    }
    for name in hosts[0]["processes"]:
        done = sum(host["processes"][name]["accesses"] for host in hosts)
        column[f"accesses of {name}, thousands"] = f"{done // 1000}"
    return column


def main(designs: list[str]) -> None:
    """Print the table."""
    columns = {design: figures(design) for design in designs}
    labels = [get_design(design).label for design in designs]
    rows = [["", *labels], *([row, *(columns[d][row] for d in designs)] for row in columns[designs[0]])]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True)),
                ]
            )
        )


if __name__ == "__main__":
    main(sys.argv[1:] or [design.name for design in select_designs("all")])
