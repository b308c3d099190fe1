"""What each host of a pool is entitled to when all together want more than there is, and who gives back first.

Weighted max-min fairness with floors: nobody gets more than it wants, nobody less than its reservation (as far
as it wants that much), and all others stand at the same level, pages by weight. Shares are whole extents; integers
decide.
No kernel counterpart: a fabric manager of CXL 3.0 is free in how it divides a dynamic capacity device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Fixed point of the level, in extents a weight.
_LEVEL_BITS = 20
_SCALE = 1 << _LEVEL_BITS

#: Who is asked first to give back, among hosts that hold more than they are entitled to.
GIVE_BACK_POLICIES = ("none", "over-share", "coldest", "largest", "round-robin")


@dataclass(frozen=True, slots=True)
class Claim:
    """What enters a host's share; all in extents but the weight."""

    wants: int  # all that it would hold if it could
    floor: int  # its reservation
    weight: int

    def at(self, level: int) -> int:
        """Its share when the level stands there."""
        return max(min(self.floor, self.wants), min(self.wants, (level * self.weight) >> _LEVEL_BITS))


def shares(claims: Mapping[str, Claim], extents: int) -> dict[str, int]:
    """Extents that each host is entitled to. The floors together must fit; what a whole level leaves over goes, by
    name, to those who would have one more extent at the next level.
    """
    names = sorted(claims)
    low, high = 0, (extents + 1) << _LEVEL_BITS
    while low < high:
        middle = (low + high + 1) // 2
        if sum(claims[name].at(middle) for name in names) <= extents:
            low = middle
        else:
            high = middle - 1
    found = {name: claims[name].at(low) for name in names}
    left = extents - sum(found.values())
    short = [name for name in names if claims[name].at(low + 1) > found[name]]
    for name in short[:left]:
        found[name] += 1
    return found


@dataclass(frozen=True, slots=True)
class Holder:
    """A host that holds more than its share."""

    host: str
    held: int
    over: int
    weight: int
    #: Accesses to what it holds in the last epoch that it told of.
    accesses: int


def give_back_order(policy: str, holders: list[Holder], after: str) -> list[Holder]:
    """Who is asked first; equals go by name. `after`: who was asked last, for `round-robin`."""
    by_name = sorted(holders, key=lambda holder: holder.host)
    match policy:
        case "none":
            return []
        case "over-share":
            return sorted(by_name, key=lambda holder: -(holder.over * _SCALE // holder.weight))
        case "coldest":
            return sorted(by_name, key=lambda holder: holder.accesses * _SCALE // holder.held)
        case "largest":
            return sorted(by_name, key=lambda holder: -holder.held)
        case "round-robin":
            return sorted(by_name, key=lambda holder: holder.host <= after)
    raise ValueError(f"no policy {policy!r}")
