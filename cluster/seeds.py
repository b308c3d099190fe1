"""Seeds: every generator of a run gets its own, derived from the run's seed and a name.

Two generators with different names are independent, and adding one disturbs no other. Python's `hash()` is
not used: it differs from process to process.
"""

from __future__ import annotations

import hashlib

#: Seeds fit an int64 and are never negative: numba, YAML and Parquet all take them as they are.
SEED_BITS = 63


def derive_seed(run_seed: int, name: str) -> int:
    """The seed of the generator `name` in a run with the seed `run_seed`: an integer in [0, 2**63)."""
    if not 0 <= run_seed < 1 << SEED_BITS:
        raise ValueError(f"the seed {run_seed} is not in [0, 2**{SEED_BITS})")
    running = hashlib.blake2b(digest_size=8, person=b"privmem-seed")
    running.update(run_seed.to_bytes(8, "little"))
    running.update(name.encode())
    return int.from_bytes(running.digest(), "little") >> (64 - SEED_BITS)
