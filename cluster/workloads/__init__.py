"""Workloads by name: what programs access. A kind is added by one class and one line here."""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.cluster.workloads.streams import HotSet, Replay, Scan, Uniform, Zipf

WORKLOADS: dict[str, type[Zipf | Uniform | Scan | HotSet | Replay]] = {
    "zipf": Zipf,
    "uniform": Uniform,
    "scan": Scan,
    "hotset": HotSet,
    "replay": Replay,
}


def open_stream(
    spec: dict[str, Any], resources: dict[str, np.ndarray]
) -> Zipf | Uniform | Scan | HotSet | Replay:
    """The access stream of a plain spec, whose "kind" names the class."""
    return WORKLOADS[spec["kind"]](spec, resources)
