"""Literal pages come back byte for byte from compress, migrate, trim and refill."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def benchmark() -> ModuleType:
    """benchmarks/compression.py."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("compression")
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize(("codec", "level"), [("lz4", None), ("lz4", 9), ("none", None), ("zstd", 3)])
def test_a_thousand_pages_come_back(codec: str, level: int | None) -> None:
    """Through devices that are filled twice, and a half."""
    assert benchmark().round_trip(1000, codec, level, device_pages=400) == 1000


def test_the_pages_all_differ_but_for_those_of_one_word() -> None:
    pages = benchmark().literal_pages(1000, 640, benchmark().recorded_pages())
    same = [page.tobytes() == page[:8].tobytes() * 512 for page in pages]
    assert sum(same) == 40
    assert len({page.tobytes() for page in pages[~np.array(same)]}) == 600


def test_a_wrong_byte_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second device, after its checksum."""
    made = benchmark()
    load = made.PageStore.load

    def bent(store: object, dpa: np.ndarray) -> tuple[np.ndarray, ...]:
        *columns, pages = load(store, dpa)
        pages[0, 77] ^= 1
        return (*columns, pages)

    monkeypatch.setattr(made.PageStore, "load", bent)
    with pytest.raises(AssertionError):
        made.round_trip(10, "lz4", None, device_pages=10)


@pytest.mark.full
@pytest.mark.timeout(900)  # a busy machine is not a fault of the code
def test_a_million_pages_come_back() -> None:
    assert benchmark().round_trip(1_000_000, "lz4", None) == 1_000_000
