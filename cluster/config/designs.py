"""Names of the isolation designs that a configuration may ask for: those of `privmem.scheduler.isolation`."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic.json_schema import JsonSchemaValue

from privmem.cluster.config.fields import Leaf, nearest, refused
from privmem.scheduler.isolation import DESIGNS


@dataclass(frozen=True, slots=True)
class DesignName(Leaf):
    """Name of an isolation design."""

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or value not in DESIGNS:
            raise refused(nearest(value, list(DESIGNS)))
        return value

    def describe(self) -> str:
        return ", ".join(DESIGNS)

    def schema(self) -> JsonSchemaValue:
        return {"type": "string", "enum": list(DESIGNS)}

    def filler(self) -> str:
        return next(iter(DESIGNS))
