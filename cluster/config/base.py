"""What all models of the configuration are made of: their base class, limits, and kinds of fields."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from privmem.cluster.config.fields import Permille, Whole, rate, size, time
from privmem.scheduler.abi import MAX_NUMNODES

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
US_NS, MS_NS, S_NS = 1000, 1000**2, 1000**3

#: Page numbers are int32 all over: 2**30 pages are 4 TiB, and the nodes of a host together
#: stay within it too.
CAPACITY_MAX_BYTES = 4 * TIB
#: Room for the watermarks of a zone, with something left to allocate.
CAPACITY_MIN_BYTES = 256 * KIB
SEED_MAX = (1 << 63) - 1
COUNT_MAX = 1 << 62

CAPACITY = size(CAPACITY_MIN_BYTES, CAPACITY_MAX_BYTES)
LATENCY = time(1, S_NS)
BANDWIDTH = rate(MIB, 16 * TIB)
PERIOD = time(US_NS, 3600 * S_NS)
SEED = Whole(0, SEED_MAX)
COUNT = Whole(1, COUNT_MAX)
NODE_ID = Whole(0, MAX_NUMNODES - 1)
SHARE = Permille(0, 1000)

_UNITS = ("_bytes_per_s", "_bytes", "_ns", "_permille")


def yaml_key(attribute: str) -> str:
    """The YAML key of an attribute: its name without the unit."""
    for unit in _UNITS:
        if attribute.endswith(unit):
            return attribute.removesuffix(unit)
    return attribute


class Model(BaseModel):
    """Base of all: unknown keys are mistakes, values are not coerced, nothing changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=yaml_key)
