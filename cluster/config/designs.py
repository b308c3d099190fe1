"""Names of the isolation designs that a configuration may ask for; the family itself is
`privmem.scheduler.isolation`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic.json_schema import JsonSchemaValue

from privmem.cluster.config.fields import Leaf, nearest, refused
from privmem.scheduler import isolation


def known_designs() -> list[str]:
    """Every accepted name, with a variant after a colon where there is one."""
    return list(getattr(isolation, "DESIGNS", ("private-zonelist",)))


@dataclass(frozen=True, slots=True)
class DesignName(Leaf):
    """Name of an isolation design."""

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or value not in known_designs():
            raise refused(nearest(value, known_designs()))
        return value

    def describe(self) -> str:
        return ", ".join(known_designs())

    def schema(self) -> JsonSchemaValue:
        return {"type": "string", "enum": known_designs()}

    def filler(self) -> str:
        return known_designs()[0]
