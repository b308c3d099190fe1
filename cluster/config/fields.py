"""Types of configuration fields: what each accepts, in which words it says so, and how it is written back.

Every leaf type is an annotation on `int` or `str` that pydantic asks for a validator and a JSON schema. A
refused value carries no text of its own but a hint (the nearest thing that would be accepted):
`problems.py` writes the one line from the value found, `describe()` and the hint, so that all messages read
alike.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from privmem.cluster.config.units import RATE, SIZE, TIME, Family, UnitError

#: Type of the pydantic error that every class below raises; its context is {"hint": text or ""}.
REFUSED = "privmem_refused"


def refused(hint: str = "") -> PydanticCustomError:
    """The error of a value that the field does not take."""
    return PydanticCustomError(REFUSED, "refused", {"hint": hint})


def wrong(what: str, allowed: str, hint: str = "") -> str:
    """The text of every mistake."""
    return f"found {what}; allowed: {allowed}" + (f"; did you mean {hint}?" if hint else "")


def nearest(name: object, known: list[str]) -> str:
    """The known name that `name` probably misspells, or nothing."""
    folded = {item.lower(): item for item in known}
    close = difflib.get_close_matches(str(name).lower(), list(folded), n=1, cutoff=0.6)
    return folded[close[0]] if close else ""


class Leaf:
    """Base of the annotations; subclasses say `parse`, `describe`, `schema` and, where it is not itself,
    `plain`.
    """

    def parse(self, value: object) -> Any:
        """The typed value; raises `refused()`."""
        raise NotImplementedError

    def plain(self, value: Any) -> Any:
        """The value as a configuration file writes it."""
        return value

    def describe(self) -> str:
        """What is allowed, in words."""
        raise NotImplementedError

    def schema(self) -> JsonSchemaValue:
        """JSON schema of what is allowed."""
        raise NotImplementedError

    def filler(self) -> Any:
        """Some accepted value, as a file would write it: stands in for a wrong one while the rest is
        checked.
        """
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(self.plain, when_used="json"),
        )

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return self.schema()


@dataclass(frozen=True, slots=True)
class Quantity(Leaf):
    """An integer written with a unit."""

    family: Family
    low: int
    high: int

    def parse(self, value: object) -> int:
        try:
            parsed = self.family.parse(value)
        except UnitError as error:
            raise refused(error.hint) from None
        if not self.low <= parsed <= self.high:
            raise refused()
        return parsed

    def plain(self, value: int) -> str:
        return self.family.format(value)

    def describe(self) -> str:
        low, high = self.family.format(self.low), self.family.format(self.high)
        fits = self.low <= self.family.parse(self.family.example) <= self.high
        return f"{self.family.noun} such as {self.family.example if fits else high}, from {low} to {high}"

    def schema(self) -> JsonSchemaValue:
        units = "|".join(re.escape(unit) for unit in self.family.units)
        return {
            "type": "string",
            "pattern": rf"^\d+(\.\d+)?[ \t]*({units})$",
            "examples": [self.family.example],
        }

    def filler(self) -> str:
        return self.plain(self.low)


def size(low: int, high: int) -> Quantity:
    """Annotation of a field in bytes."""
    return Quantity(SIZE, low, high)


def time(low: int, high: int) -> Quantity:
    """Annotation of a field in nanoseconds."""
    return Quantity(TIME, low, high)


def rate(low: int, high: int) -> Quantity:
    """Annotation of a field in bytes per second."""
    return Quantity(RATE, low, high)


@dataclass(frozen=True, slots=True)
class Whole(Leaf):
    """A whole number without a unit: an id, a count, a kernel knob. `true` is not 1, and `2.0` is not 2."""

    low: int
    high: int

    def parse(self, value: object) -> int:
        if type(value) is float and value.is_integer():
            raise refused(f"{value:.0f}")
        if type(value) is not int or not self.low <= value <= self.high:
            raise refused()
        return value

    def describe(self) -> str:
        if self.high - self.low < 3:
            return ", ".join(str(number) for number in range(self.low, self.high + 1))
        return f"a whole number from {self.low} to {self.high}"

    def schema(self) -> JsonSchemaValue:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def filler(self) -> int:
        return self.low


@dataclass(frozen=True, slots=True)
class Permille(Leaf):
    """A number with at most three decimals, kept as thousandths: what decides is an integer (DESIGN,
    section 3).
    """

    low: int
    high: int

    def parse(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refused()
        if not -1e9 < value < 1e9:  # also refuses nan, and infinity before round() would fail on it
            raise refused()
        permille = round(value * 1000)
        # A double near a thousandth is off by far less than this; a fourth decimal is off by far more.
        if abs(value * 1000 - permille) > 1e-6:
            raise refused(f"{permille / 1000:g}")
        if not self.low <= permille <= self.high:
            raise refused()
        return permille

    def plain(self, value: int) -> float:
        return value / 1000

    def describe(self) -> str:
        low, high = f"{self.low / 1000:g}", f"{self.high / 1000:g}"
        return f"a number from {low} to {high} with at most three decimals"

    def schema(self) -> JsonSchemaValue:
        return {"type": "number", "minimum": self.low / 1000, "maximum": self.high / 1000}

    def filler(self) -> float:
        return self.low / 1000


@dataclass(frozen=True, slots=True)
class Name(Leaf):
    """A name of the user's: of a run, host, process or device. It ends up in file names and message
    addresses.
    """

    length_max: int = 48

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(self._pattern(), value):
            raise refused()
        return value

    def describe(self) -> str:
        return f"a name of at most {self.length_max} letters, digits, '-' and '_' that starts with a letter"

    def schema(self) -> JsonSchemaValue:
        return {"type": "string", "pattern": f"^{self._pattern()}$"}

    def filler(self) -> str:
        return "unnamed"

    def _pattern(self) -> str:
        return rf"[A-Za-z][A-Za-z0-9_-]{{0,{self.length_max - 1}}}"


@dataclass(frozen=True, slots=True)
class OneOf(Leaf):
    """A word out of a fixed list; `noun` says what the words are."""

    noun: str
    words: tuple[str, ...]

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise refused(nearest(value, list(self.words)))
        return value

    def describe(self) -> str:
        return ", ".join(self.words)

    def schema(self) -> JsonSchemaValue:
        return {"type": "string", "enum": list(self.words)}

    def filler(self) -> str:
        return self.words[0]


@dataclass(frozen=True, slots=True)
class FilePath(Leaf):
    """A path of a file, relative to the configuration's folder unless absolute."""

    suffix: str

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or not value or "\0" in value or len(value) > 1024:
            raise refused()
        return value

    def describe(self) -> str:
        return f"the path of a {self.suffix} file, relative to this file's folder"

    def schema(self) -> JsonSchemaValue:
        return {"type": "string", "minLength": 1, "maxLength": 1024}

    def filler(self) -> str:
        return f"none{self.suffix}"
