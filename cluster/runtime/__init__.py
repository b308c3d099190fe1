"""Runtimes by name. A runtime's module is imported when it is asked for: Ray takes a second to import."""

from __future__ import annotations

import importlib
from typing import Any

from privmem.cluster.errors import ConfigError
from privmem.cluster.runtime.base import Runtime

#: Name -> module and class.
RUNTIMES: dict[str, tuple[str, str]] = {
    "inline": ("privmem.cluster.runtime.inline", "InlineRuntime"),
    "ray": ("privmem.cluster.runtime.on_ray", "RayRuntime"),
}

DEFAULT_RUNTIME = "inline"


def make_runtime(name: str, **options: Any) -> Runtime:
    """A runtime that is not started yet; `options` go to its constructor."""
    if name not in RUNTIMES:
        raise ConfigError(f"--runtime: found {name!r}; allowed: {', '.join(RUNTIMES)}")
    module, kind = RUNTIMES[name]
    runtime: Runtime = getattr(importlib.import_module(module), kind)(**options)
    return runtime
