"""Isolation designs by name. A design is added by one module and one line here."""

from __future__ import annotations

from difflib import get_close_matches

from privmem.scheduler.isolation.design import Design, Service
from privmem.scheduler.isolation.private_zonelist import PrivateZonelist

__all__ = ["DEFAULT_DESIGN", "DESIGNS", "Design", "Service", "get_design", "unknown_design"]

DEFAULT_DESIGN = "private-zonelist"

DESIGNS: dict[str, Design] = {design.name: design for design in (PrivateZonelist(),)}


def get_design(name: str) -> Design:
    """The design of this name. Raises KeyError with a sentence that lists the names and the nearest one."""
    if name not in DESIGNS:
        raise KeyError(unknown_design(name))
    return DESIGNS[name]


def unknown_design(name: str) -> str:
    """What to tell somebody who asked for a design that does not exist."""
    near = get_close_matches(name, DESIGNS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no isolation design {name!r} (known: {', '.join(sorted(DESIGNS))}){hint}"
