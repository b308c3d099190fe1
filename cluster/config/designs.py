"""Names of the isolation designs that a configuration may ask for: those of `privmem.scheduler.isolation`."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic.json_schema import JsonSchemaValue

from privmem.cluster.config.fields import Leaf, nearest, refused
from privmem.scheduler.isolation import ALIASES, DESIGNS, get_design


@dataclass(frozen=True, slots=True)
class DesignName(Leaf):
    """Name of an isolation design; other names for one (`caps:c`, `F1`) become the one that it goes by."""

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or value not in (*DESIGNS, *ALIASES):
            raise refused(nearest(value, [*DESIGNS, *ALIASES]))
        return get_design(value).name

    def describe(self) -> str:
        return ", ".join(DESIGNS)

    def schema(self) -> JsonSchemaValue:
        return {"type": "string", "enum": [*DESIGNS, *ALIASES]}

    def filler(self) -> str:
        return next(iter(DESIGNS))
