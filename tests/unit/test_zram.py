"""What our codecs make of pages, beside what the zram of a real kernel made of the same ones (tools/zram)."""

from __future__ import annotations

import importlib
import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from privmem.nodeagent.content import is_same_filled
from privmem.nodeagent.device import size_classes

ROOT = Path(__file__).resolve().parents[2]
RECORDED: dict[str, Any] = json.loads((ROOT / "tests/data/linux_zram.json").read_text())
LEVELS = ("lz4", "zstd")
CASES = [(name, codec) for name in RECORDED["sets"] for codec in LEVELS]


@cache
def tool(name: str = "page_sets") -> ModuleType:
    """A module of tools/zram."""
    sys.path.insert(0, str(ROOT / "tools" / "zram"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def page_sets() -> dict[str, np.ndarray]:
    return tool("compare").pages()  # type: ignore[no-any-return]


def lengths(name: str, codec: str) -> np.ndarray:
    """Stored bytes of each page of a set."""
    return tool("compare").lengths(name, codec)  # type: ignore[no-any-return]


def test_the_pages_are_those_that_were_recorded() -> None:
    now = {name: (len(pages), tool().digest(pages)) for name, pages in page_sets().items()}
    assert now == {name: (row["pages"], row["sha256"]) for name, row in RECORDED["sets"].items()}


@pytest.mark.parametrize(("name", "codec"), CASES)
def test_compressed_bytes_are_zrams_within_2_percent(name: str, codec: str) -> None:
    zram = RECORDED["sets"][name][codec]
    ours = int(size_classes.kept_bytes(lengths(name, codec)).sum())
    assert abs(ours - zram["compr_data_size"]) * 100 <= 2 * zram["compr_data_size"]


@pytest.mark.parametrize("codec", LEVELS)
def test_totals_are_zrams_within_1_percent(codec: str) -> None:
    """Over all sets: compressed bytes, and memory with zsmalloc's classes."""
    kept = sum(int(size_classes.kept_bytes(lengths(name, codec)).sum()) for name in page_sets())
    used = sum(size_classes.used_bytes(lengths(name, codec)) for name in page_sets())
    for ours, column in ((kept, "compr_data_size"), (used, "mem_used_total")):
        zram = sum(row[codec][column] for row in RECORDED["sets"].values())
        assert abs(ours - zram) * 100 <= zram


@pytest.mark.parametrize(("name", "codec"), CASES)
def test_memory_of_a_set_is_zrams_within_3_percent(name: str, codec: str) -> None:
    zram = RECORDED["sets"][name][codec]["mem_used_total"]
    assert abs(size_classes.used_bytes(lengths(name, codec)) - zram) * 100 <= 3 * zram


@pytest.mark.parametrize("name", RECORDED["sets"])
def test_same_filled_pages_are_exactly_zrams(name: str) -> None:
    ours = int(is_same_filled(page_sets()[name]).sum())
    assert {RECORDED["sets"][name][a]["same_pages"] for a in ("lz4", "lzo-rle", "zstd")} == {ours}


def test_the_page_has_the_table() -> None:
    """When this fails: `python tools/zram/compare.py`."""
    page = (ROOT / "docs" / "validation.md").read_text()
    assert [row for row in tool("compare").table() if row not in page] == []


def test_classes_of_zsmalloc() -> None:
    """With pages of 4 KiB: 255 sizes, the first four, the last that is no whole page, where raw pages begin."""
    classes = size_classes.size_classes()
    assert len(classes) == 255
    assert classes[:4] == [(32, 1, 128), (48, 3, 256), (64, 1, 64), (80, 1, 51)]
    assert sorted({c for c in classes if c[0] >= 3264}) == [(3264, 4, 5), (4096, 1, 1)]
    assert size_classes.HUGE_BYTES == 3257


def test_what_pages_take_in_classes() -> None:
    one = np.array([1, 24, 25, 3256, 3257, 4096, 0])
    assert size_classes.kept_bytes(one).tolist() == [1, 24, 25, 3256, 4096, 4096, 0]
    assert size_classes.used_bytes(np.array([24] * 128)) == 4096
    assert size_classes.used_bytes(np.array([24] * 129)) == 2 * 4096
    assert size_classes.used_bytes(one) == (1 + 3 + 4 + 2) * 4096
    assert size_classes.used_bytes(np.array([0, 0])) == 0
