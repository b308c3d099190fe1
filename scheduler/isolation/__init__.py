"""Isolation designs by name. A design is added by one module and one line here.

The default variant of a family has the family's name (`caps` is caps-c, `private-zonelist` is F1); others
come after a colon. Every name that the series or our own documents use for one is understood (`ALIASES`).
"""

from __future__ import annotations

from difflib import get_close_matches

from privmem.scheduler.isolation import caps, private_zonelist
from privmem.scheduler.isolation.design import Claim, Design, Service
from privmem.scheduler.isolation.gfp_private import GfpPrivate
from privmem.scheduler.isolation.no_fallback import NoFallback
from privmem.scheduler.isolation.private_zonelist_per_node import PrivateZonelistPerNode

__all__ = [
    "ALIASES",
    "DEFAULT_DESIGN",
    "DESIGNS",
    "Claim",
    "Design",
    "Service",
    "default_designs",
    "get_design",
    "select_designs",
    "unknown_design",
]

DEFAULT_DESIGN = "private-zonelist"

_ALL: tuple[Design, ...] = (
    GfpPrivate(),
    NoFallback(),
    NoFallback(marker=True),
    *caps.VARIANTS,
    *private_zonelist.VARIANTS,
    PrivateZonelistPerNode(),
)

#: Every variant, in the order of the series' history.
DESIGNS: dict[str, Design] = {design.name: design for design in _ALL}

#: Other names of designs: their variant spelled out, and the labels of the series' versions.
ALIASES: dict[str, str] = {
    "caps:c": "caps",
    "private-zonelist:F1": "private-zonelist",
    "private-zonelist:F3": "private-zonelist-per-node",
    "gfp-private:v4": "gfp-private",
    **{design.label: design.name for design in reversed(_ALL)},
}


def get_design(name: str) -> Design:
    """The design of this name. Raises KeyError with a sentence that lists the names and the nearest one."""
    design = DESIGNS.get(ALIASES.get(name, name))
    if design is None:
        raise KeyError(unknown_design(name))
    return design


def unknown_design(name: str) -> str:
    """What to tell somebody who asked for a design that does not exist."""
    near = get_close_matches(name, [*DESIGNS, *ALIASES], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no isolation design {name!r} (known: {', '.join(DESIGNS)}){hint}"


def default_designs() -> list[Design]:
    """The default variant of each family."""
    return [design for design in _ALL if ":" not in design.name]


def select_designs(text: str) -> list[Design]:
    """The designs that a user asks for: `all` is the default variant of each of the five, `every` is every
    variant, otherwise names with commas between them. Raises KeyError with a sentence.
    """
    chosen: dict[str, Design] = {}
    for part in text.split(","):
        name = part.strip()
        if name == "all":
            found = default_designs()
        elif name == "every":
            found = list(_ALL)
        elif not name:
            raise KeyError(f"{text!r} names no isolation design (known: all, every, {', '.join(DESIGNS)})")
        else:
            found = [get_design(name)]
        chosen.update({design.name: design for design in found})
    return list(chosen.values())
