"""Quantities as people write them (`64MiB`, `250 us`, `12GiB/s`) to integers and back.

Integers out, always: bytes, nanoseconds, bytes per second. Arithmetic is exact (`fractions`), so `1.5us` is
1500 ns and `0.3ns` is refused, never rounded. A bare number is refused: `capacity: 64` would be a guess.
Formatting picks the largest unit that keeps a whole number, so a formatted quantity parses back to the same
integer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

#: Above any quantity that fits the int64 of the compiled code.
QUANTITY_MAX = (1 << 63) - 1

_SIZE_UNITS = {
    "B": 1,
    "kB": 1000,
    "KiB": 1 << 10,
    "MB": 1000**2,
    "MiB": 1 << 20,
    "GB": 1000**3,
    "GiB": 1 << 30,
    "TB": 1000**4,
    "TiB": 1 << 40,
}
_TIME_UNITS = {"ns": 1, "us": 1000, "ms": 1000**2, "s": 1000**3}
_RATE_UNITS = {f"{unit}/s": factor for unit, factor in _SIZE_UNITS.items()}

_NUMBER_AND_UNIT = re.compile(r"([+-]?)(\d{1,30}(?:\.\d{1,30})?)[ \t]*([^\s\d.].{0,15})?", re.ASCII)


class UnitError(ValueError):
    """The text is no quantity of this family; `hint` is what was probably meant, or empty."""

    def __init__(self, hint: str = "") -> None:
        super().__init__(hint)
        self.hint = hint


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Units of one kind of quantity."""

    noun: str  # with its article, as messages say it
    example: str
    units: Mapping[str, int]
    #: Units that formatting uses, largest first; binary ones only, since Linux sizes are binary.
    formats: tuple[str, ...]

    def parse(self, text: object) -> int:
        """The integer that `text` means. Raises UnitError for anything but a number with a known unit."""
        if not isinstance(text, str):
            raise UnitError()
        match = _NUMBER_AND_UNIT.fullmatch(text.strip())
        if match is None:
            raise UnitError()
        sign, number, unit = match.groups()
        factor = self.units.get(unit or "")
        if factor is None:
            raise UnitError(self._hint(number, unit or ""))
        value = Fraction(number) * factor
        if sign == "-" or value.denominator != 1 or value > QUANTITY_MAX:
            raise UnitError()
        return int(value)

    def format(self, value: int) -> str:
        """`value` in the largest unit that keeps it a whole number; `parse` gives it back."""
        if value == 0:
            return f"0{self.formats[-1]}"
        for unit in self.formats:
            if value % self.units[unit] == 0:
                return f"{value // self.units[unit]}{unit}"
        raise AssertionError("the last format unit is 1")

    def _hint(self, number: str, unit: str) -> str:
        """The unit in another case (`mib`), or a letter that stands for a binary unit (`M`)."""
        folded = unit.lower()
        for known in self.units:
            if folded == known.lower():
                return number + known
        short, slash, second = folded.partition("/")
        for known in self.units:
            if known.lower() == f"{short}ib{slash}{second}":
                return number + known
        return number + "us" if folded in ("µs", "usec") and "us" in self.units else ""


SIZE = Family("a size", "64MiB", _SIZE_UNITS, ("TiB", "GiB", "MiB", "KiB", "B"))
TIME = Family("a time", "250us", _TIME_UNITS, ("s", "ms", "us", "ns"))
RATE = Family(
    "a rate",
    "12GiB/s",
    _RATE_UNITS,
    ("TiB/s", "GiB/s", "MiB/s", "GB/s", "MB/s", "KiB/s", "kB/s", "B/s"),
)


def parse_size(text: object) -> int:
    """Bytes."""
    return SIZE.parse(text)


def parse_time(text: object) -> int:
    """Nanoseconds."""
    return TIME.parse(text)


def parse_rate(text: object) -> int:
    """Bytes per second."""
    return RATE.parse(text)


def format_size(size_bytes: int) -> str:
    """As `parse_size` reads it."""
    return SIZE.format(size_bytes)


def format_time(time_ns: int) -> str:
    """As `parse_time` reads it."""
    return TIME.format(time_ns)


def format_rate(bytes_per_s: int) -> str:
    """As `parse_rate` reads it."""
    return RATE.format(bytes_per_s)
