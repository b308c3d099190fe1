"""The inline runtime: all participants in this process, stepped one after the other in the order of names.

The default, and what a debugger wants. Messages are packed and unpacked as on Ray, so that a participant that
works here works there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from privmem.cluster.plan import Plan
from privmem.cluster.runtime.base import Seat, StepResult, load_build, take_seat
from privmem.scheduler.messages import Packet
from privmem.scheduler.participant import Clock


class InlineRuntime:
    """See `base.Runtime`."""

    def __init__(self) -> None:
        self.seats: dict[str, Seat] = {}

    def start(self, plan: Plan, build: str) -> None:
        """Build all participants."""
        builder = load_build(build)
        entries = sorted(plan.participants, key=lambda entry: entry.name)
        self.seats = {entry.name: take_seat(entry, builder, plan.resources) for entry in entries}

    def step(self, clock: Clock, inboxes: Mapping[str, list[Packet]]) -> dict[str, StepResult]:
        """Step those named, in the order of names."""
        return {name: self.seats[name].step(inboxes[name], clock) for name in sorted(inboxes)}

    def snapshots(self) -> dict[str, dict[str, Any]]:
        """Of all participants."""
        return {name: seat.snapshot() for name, seat in self.seats.items()}

    def restore(self, snapshots: Mapping[str, dict[str, Any]]) -> None:
        """Restore all participants."""
        for name, seat in self.seats.items():
            seat.restore(snapshots[name])

    def digests(self) -> dict[str, str]:
        """Of all participants."""
        return {name: seat.digest() for name, seat in self.seats.items()}

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Of all participants."""
        return {name: seat.participant.summary() for name, seat in self.seats.items()}

    def validate(self) -> None:
        """All participants."""
        for seat in self.seats.values():
            seat.participant.validate()

    def describe(self) -> str:
        """Nothing: they live here."""
        return ""

    def stop(self) -> None:
        """Let go of the participants."""
        self.seats = {}
