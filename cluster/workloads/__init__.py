"""Workloads by kind: what processes access. A kind is one class in `streams.py` and one line here."""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.cluster.errors import ConfigError
from privmem.cluster.workloads.streams import Gpu, HotSet, Messages, Replay, Scan, Stream, Uniform, Zipf

WORKLOADS: dict[str, type[Zipf | Uniform | Scan | HotSet | Gpu | Messages | Replay]] = {
    "zipf": Zipf,
    "uniform": Uniform,
    "scan": Scan,
    "hotset": HotSet,
    "gpu": Gpu,
    "messages": Messages,
    "replay": Replay,
}


def open_stream(spec: dict[str, Any], resources: dict[str, np.ndarray]) -> Stream:
    """The access stream of a plain spec, which "kind" names; `resources` holds the arrays that it names.

    Raises ConfigError for a value out of range, TraceError for a recording that does not fit.
    """
    kind = WORKLOADS.get(spec["kind"])
    if kind is None:
        raise ConfigError(f"workload {spec['kind']!r}: unknown; allowed: {', '.join(WORKLOADS)}")
    return kind(spec, resources)
