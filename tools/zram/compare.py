"""Pages that a real zram was given, compressed by the emulator, beside what zram made of them: prints the table of
docs/validation.md.

python tools/zram/compare.py
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from page_sets import page_sets

from privmem.nodeagent.device import size_classes
from privmem.nodeagent.device.compression import CompressionEngine

RECORDING = Path(__file__).resolve().parents[2] / "tests" / "data" / "linux_zram.json"
#: zram's levels: `lz4_compress_default`, and ZSTD_DEF_LEVEL of crypto/zstd.c.
LEVELS = {"lz4": 1, "zstd": 3}


@cache
def pages() -> dict[str, np.ndarray]:
    """The sets by name."""
    return page_sets()


@cache
def lengths(name: str, codec: str) -> np.ndarray:
    """Stored bytes of each page of a set."""
    made = CompressionEngine({"codec": codec, "level": LEVELS[codec], "block": 4096, "granule": 64})
    sizes: np.ndarray = made.compress(pages()[name])[0].sum(axis=1)
    return sizes


def _cells(zram: int, ours: int) -> str:
    return f"{zram} | {ours} | {100 * (ours / zram - 1):+.2f} %"


def table() -> list[str]:
    """A row a set and codec, and one of the sums."""
    recorded: dict[str, Any] = json.loads(RECORDING.read_text())["sets"]
    sums = {codec: np.zeros(4, dtype=np.int64) for codec in LEVELS}
    lines = [
        "| set | codec | `compr_data_size` | ours | distance | `mem_used_total` | ours, in size classes | distance "
        "| raw pages, zram / ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, zram in recorded.items():
        for codec in LEVELS:
            sizes, row = lengths(name, codec), zram[codec]
            kept, used = int(size_classes.kept_bytes(sizes).sum()), size_classes.used_bytes(sizes)
            raw = int((sizes >= size_classes.HUGE_BYTES).sum())
            data, memory = _cells(row["compr_data_size"], kept), _cells(row["mem_used_total"], used)
            lines.append(f"| `{name}` | {codec} | {data} | {memory} | {row['huge_pages']} / {raw} |")
            sums[codec] += (row["compr_data_size"], kept, row["mem_used_total"], used)
    for codec, (zram_kept, kept, zram_used, used) in sums.items():
        lines.append(f"| all | {codec} | {_cells(zram_kept, kept)} | {_cells(zram_used, used)} | |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
