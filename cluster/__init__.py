"""The emulator that a user runs, and the public API of privmem.

Names are loaded when they are first asked for, so that `privmem --help` need not wait for numba.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Config": "config",
    "Emulation": "api",
    "load_config": "config",
    "load_results": "results",
    "run": "api",
}

__all__ = ["Config", "Emulation", "load_config", "load_results", "run"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"privmem.cluster has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"privmem.cluster.{_WHERE[name]}"), name)
