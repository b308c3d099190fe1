"""Seeds: fixed for ever, apart from each other."""

from __future__ import annotations

import pytest

from privmem.cluster.seeds import derive_seed


def test_known_values() -> None:
    # Any change of these changes the digest of every run.
    assert derive_seed(1, "h0/db") == 8940837215250361764


def test_seeds_differ_by_run_and_name() -> None:
    seeds = {derive_seed(run, f"h{n}") for run in range(50) for n in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_wrong_seeds_are_refused() -> None:
    for seed in (-1, 1 << 63):
        with pytest.raises(ValueError, match="is not in"):
            derive_seed(seed, "x")
