"""Quantities: what is read, what is refused, and that what is written reads back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privmem.cluster.config.units import (
    QUANTITY_MAX,
    RATE,
    SIZE,
    TIME,
    Family,
    UnitError,
    format_rate,
    format_size,
    format_time,
    parse_rate,
    parse_size,
    parse_time,
)

FAMILIES = {"size": SIZE, "time": TIME, "rate": RATE}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0B", 0),
        ("1B", 1),
        ("4KiB", 4096),
        ("4 KiB", 4096),
        ("  4 KiB ", 4096),
        ("4kB", 4000),
        ("1.5KiB", 1536),
        ("0.5MiB", 512 * 1024),
        ("2MB", 2_000_000),
        ("3GiB", 3 << 30),
        ("3GB", 3_000_000_000),
        ("1TiB", 1 << 40),
        ("1TB", 10**12),
        ("+7B", 7),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("80 ns", 80), ("1.5us", 1500), ("5ms", 5_000_000), ("2s", 2_000_000_000), ("0ns", 0), ("0.001us", 1)],
)
def test_times(text: str, expected: int) -> None:
    assert parse_time(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("12GiB/s", 12 << 30), ("22.4 GB/s", 22_400_000_000), ("1B/s", 1), ("64MiB/s", 64 << 20)],
)
def test_rates(text: str, expected: int) -> None:
    assert parse_rate(text) == expected


@pytest.mark.parametrize(
    ("family", "value", "hint"),
    [
        ("size", 64, ""),
        ("size", 64.0, ""),
        ("size", True, ""),
        ("size", None, ""),
        ("size", "64", ""),
        ("size", "", ""),
        ("size", "MiB", ""),
        ("size", "-4MiB", ""),
        ("size", "0.3B", ""),
        ("size", "1e3KiB", ""),
        ("size", "4MiB5", ""),
        ("size", "4 M iB", ""),
        ("size", "9999999TiB", ""),
        ("size", "٤KiB", ""),
        ("size", "4mib", "4MiB"),
        ("size", "4Kb", "4kB"),
        ("size", "4M", "4MiB"),
        ("size", "1.5g", "1.5GiB"),
        ("size", "4MiB/s", ""),
        ("time", "0.5ns", ""),
        ("time", "5 MS", "5ms"),
        ("time", "5µs", "5us"),
        ("time", "5min", ""),
        ("rate", "12GiB", ""),
        ("rate", "12gib/s", "12GiB/s"),
        ("rate", "12G/s", "12GiB/s"),
    ],
)
def test_refused_with_a_hint(family: str, value: object, hint: str) -> None:
    with pytest.raises(UnitError) as caught:
        FAMILIES[family].parse(value)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (format_size(8 << 20), "8MiB"),
        (format_size(1500), "1500B"),
        (format_size(0), "0B"),
        (format_size((1 << 40) + 1024), "1073741825KiB"),
        (format_time(250_000), "250us"),
        (format_time(1_000_000_001), "1000000001ns"),
        (format_rate(64 << 30), "64GiB/s"),
        (format_rate(22_400_000_000), "22400MB/s"),
    ],
)
def test_written_in_the_largest_unit_that_is_whole(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@settings(deadline=None)
@given(value=st.integers(0, QUANTITY_MAX))
def test_what_is_written_reads_back(family: Family, value: int) -> None:
    assert family.parse(family.format(value)) == value


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_any_text_is_a_quantity_or_refused(family: Family, text: str) -> None:
    try:
        value = family.parse(text)
    except UnitError:
        return
    assert 0 <= value <= QUANTITY_MAX
