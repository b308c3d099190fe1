"""What the engine asks of a host, a device or the scheduler: take an inbox, take one step, give an outbox
(sans-IO).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from privmem.scheduler.messages import Body, Message


@dataclass(frozen=True, slots=True)
class Clock:
    """Virtual time as the engine hands it to a step; all in nanoseconds since the start of the run."""

    epoch: int
    start_ns: int
    end_ns: int
    #: No host can still send a message with a time before this: contended requests up to it may be settled.
    horizon_ns: int


@dataclass(slots=True)
class Outbox:
    """What a step gives back."""

    messages: list[Message]
    #: Virtual time that the participant has reached; `clock.end_ns` when it has nothing left to do in the
    #: epoch.
    reached_ns: int
    #: True when the participant holds requests that it may settle only once the horizon moves: step it again
    #: then.
    waits_for_horizon: bool = False
    #: True when the participant has no work in any later epoch either (hosts: all processes ended).
    finished: bool = False


class Participant(Protocol):
    """A host, a device, or the scheduler. Pure: no clock, no I/O, no randomness but its own seeded
    generators.
    """

    name: str

    def step(self, inbox: list[Message], clock: Clock) -> Outbox:
        """Handle the whole inbox (sorted by time, sender, seq) and go as far as it can in this epoch."""

    def snapshot(self) -> dict[str, Any]:
        """The whole state as plain data (see `plain.py`); equal states give equal snapshots."""

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot that a participant of the same spec made."""

    def counters(self) -> dict[str, int]:
        """Cheap numbers that change whenever the state does; they feed the digest of each round."""

    def summary(self) -> dict[str, Any]:
        """Plain data for `summary.json`."""

    def validate(self) -> None:
        """Raise InvariantError unless all counters equal a recount of the state."""


@dataclass(slots=True)
class Mailer:
    """Numbers and collects the messages that one participant sends."""

    sender: str
    seq: int = 0
    pending: list[Message] = field(default_factory=list)

    def send(self, to: str, time_ns: int, body: Body) -> None:
        """Queue one message; it leaves with the outbox of the present step."""
        self.pending.append(Message(time_ns, self.sender, self.seq, to, body))
        self.seq += 1

    def take(self) -> list[Message]:
        """The messages of this step; the queue is empty afterwards."""
        sent, self.pending = self.pending, []
        return sent
