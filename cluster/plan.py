"""A run, spelled out as plain data: who takes part, with which spec and which arrays. Made by `assembly.py`,
run by the engine.

A plan is what crosses machines: every field is plain data (`privmem.scheduler.plain`), so that a runtime can
build each participant wherever it likes with `privmem.cluster.assembly.build`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

HOST = "host"
DEVICE = "device"
SCHEDULER = "scheduler"


@dataclass(frozen=True, slots=True)
class ParticipantPlan:
    """One participant."""

    #: "scheduler", "host/NAME" or "device/NAME": the address of its messages, unique in the run.
    name: str
    kind: str  # HOST, DEVICE or SCHEDULER
    spec: dict[str, Any]
    #: Names of the arrays (in `Plan.resources`) that its constructor needs: traces, page images.
    resources: tuple[str, ...] = ()
    #: Whether it has something to do before anybody asks: it waits for the horizon from the start.
    wakes: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    name: str
    seed: int
    epoch_ns: int
    duration_ns: int
    participants: tuple[ParticipantPlan, ...]
    resources: dict[str, np.ndarray] = field(default_factory=dict)
    #: What the digest depends on: configuration, seed, schema and codec versions. Plain data.
    identity: dict[str, Any] = field(default_factory=dict)
