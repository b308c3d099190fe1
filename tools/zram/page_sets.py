"""The pages that are given to zram and to the codecs of the emulator: recorded ones, and generated mixes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from privmem.cluster.traces import open_trace
from privmem.nodeagent.content import ContentTable

RECORDINGS = Path(__file__).resolve().parents[2] / "configs" / "recordings"
#: Made-up pages: what of a page does not compress, of a thousand pages how many are zeros, and the version.
MIXES = {"text": (0, 0, 0), "quarter": (1024, 100, 0), "half": (2048, 0, 3), "hard": (3000, 50, 16)}
MIX_PAGES = 2000


def page_sets() -> dict[str, np.ndarray]:
    """Name -> pages, uint8[n, 4096]. Of a recording every distinct page once, and all pages of its first image."""
    sets: dict[str, np.ndarray] = {}
    for path in sorted(RECORDINGS.glob("*.pmtrace")):
        rows, table = open_trace(path).images()
        sets[f"{path.stem}-distinct"] = rows
        sets[f"{path.stem}-image"] = rows[table[0]]
    for name, (random_bytes, zero_permille, version) in MIXES.items():
        spec = {"kind": "generator", "seed": 11, "changed_bytes": 64}
        content = ContentTable([spec | {"random_bytes": random_bytes, "zero_permille": zero_permille}], {})
        source = np.full(MIX_PAGES, 1, np.uint16)
        versions = np.full(MIX_PAGES, version, np.uint16)
        sets[f"mix-{name}"] = content.pages(source, np.arange(MIX_PAGES, dtype=np.uint32), versions)
    return sets


def digest(pages: np.ndarray) -> str:
    """SHA-256 of the pages, one after the other."""
    return hashlib.sha256(np.ascontiguousarray(pages).data).hexdigest()
