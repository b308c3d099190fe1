"""Prints what a recording is like: its size, writes, working set, how well pages compress, how much they change.

python measure.py redis.pmtrace ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import lz4.block
import numpy as np

from privmem.cluster.traces import PAGE_BYTES, open_trace

_SPAN = 100_000


def main() -> int:
    """One paragraph for each file."""
    for path in sys.argv[1:]:
        trace = open_trace(path)
        header, accesses = trace.header, trace.accesses()
        rows, table = trace.images()
        packed = np.array([min(PAGE_BYTES, len(lz4.block.compress(row, store_size=False))) for row in rows])
        spans = [
            len(np.unique(accesses[at : at + _SPAN] >> 1))
            for at in range(0, len(accesses) - _SPAN + 1, _SPAN)
        ]
        first = packed[table[0]]
        changed = [(table[image] != table[image - 1]).mean() for image in range(1, len(table))]
        print(f"{header.name}: {Path(path).stat().st_size} bytes")
        print(f"  pages {header.nr_pages}, blanked {header.blanked_pages}, distinct bodies {header.nr_rows}")
        print(f"  accesses {header.nr_accesses}, write share {(accesses & 1).mean():.3f}")
        print(
            f"  pages in each {_SPAN} accesses: {min(spans)} to {max(spans)}, median {int(np.median(spans))}"
        )
        print(f"  lz4, image 0, page by page: {PAGE_BYTES * len(first) / first.sum():.2f}")
        print(f"  pages that compress to over 3/4 in image 0: {(first > PAGE_BYTES * 3 // 4).mean():.3f}")
        print(f"  pages changed from image to image: {', '.join(f'{share:.3f}' for share in changed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
