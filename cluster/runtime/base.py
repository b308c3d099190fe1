"""What the engine asks of a runtime, and the seat that a participant has in any of them.

A runtime starts participants somewhere, hands them their inboxes and brings back their outboxes. All that
happens to a participant happens in its `Seat`, whichever runtime it is in: messages are unpacked and packed,
and the step enters the participant's running hash, in the process where the participant lives.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from privmem.cluster.errors import ConfigError
from privmem.cluster.plan import ParticipantPlan, Plan
from privmem.scheduler import plain
from privmem.scheduler.messages import Packet, decode, encode
from privmem.scheduler.participant import Clock, Participant

#: Makes one participant of a plan from its entry and the arrays that the entry names.
Build: TypeAlias = Callable[[ParticipantPlan, dict[str, np.ndarray]], Participant]

#: `module:function` of the builder of real runs.
DEFAULT_BUILD = "privmem.cluster.assembly:build"

#: Bytes of a running hash; the rounds log keeps the first `ROUND_HASH_BYTES` of it.
HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one participant's step gave back; see `participant.Outbox`."""

    packets: list[Packet]
    reached_ns: int
    waits_for_horizon: bool
    finished: bool
    #: The participant's running hash after this step.
    running_hash: bytes


class Runtime(Protocol):
    """Where participants live. Every method but `start` and `stop` needs a started runtime."""

    def start(self, plan: Plan, build: str) -> None:
        """Build all participants; `build` names the builder as `module:function`."""

    def step(self, clock: Clock, inboxes: Mapping[str, list[Packet]]) -> dict[str, StepResult]:
        """Step each participant that `inboxes` names once, with its (sorted) inbox."""

    def snapshots(self) -> dict[str, dict[str, Any]]:
        """`Seat.snapshot` of every participant."""

    def restore(self, snapshots: Mapping[str, dict[str, Any]]) -> None:
        """`Seat.restore` of every participant."""

    def digests(self) -> dict[str, str]:
        """`Seat.digest` of every participant."""

    def summaries(self) -> dict[str, dict[str, Any]]:
        """`Participant.summary` of every participant."""

    def validate(self) -> None:
        """`Participant.validate` of every participant. Raises InvariantError."""

    def describe(self) -> str:
        """Where the participants live, for the user; empty when there is nothing to say."""

    def stop(self) -> None:
        """End everything that `start` started; may be called at any time, and twice."""


class Seat:
    """One participant and its running hash."""

    def __init__(self, participant: Participant) -> None:
        self.participant = participant
        self.running_hash = bytes(HASH_BYTES)

    def step(self, packets: list[Packet], clock: Clock) -> StepResult:
        """One step. The arrays of an inbox are read-only, as Ray's are, so that no runtime hides a write."""
        for packet in packets:
            for array in packet.arrays:
                array.flags.writeable = False
        outbox = self.participant.step([decode(packet) for packet in packets], clock)
        sent = [_own_arrays(encode(message)) for message in outbox.messages]
        reached_ns = int(outbox.reached_ns)
        flags = (outbox.waits_for_horizon, outbox.finished)
        self._hash(sent, [clock.epoch, reached_ns, *flags, self.participant.counters()])
        return StepResult(sent, reached_ns, *flags, self.running_hash)

    def _hash(self, sent: list[Packet], state: list[Any]) -> None:
        """Chain, rather than keep one hash object open: a chain can be written to a checkpoint."""
        running = hashlib.blake2b(self.running_hash, digest_size=HASH_BYTES)
        for p in sent:
            plain.update_hash(running, (plain.pack([p.time_ns, p.seq, p.to, p.header])[0], p.arrays))
        plain.update_hash(running, plain.pack(state))
        self.running_hash = running.digest()

    def snapshot(self) -> dict[str, Any]:
        """Running hash and state: what a checkpoint keeps of the participant."""
        return {"hash": self.running_hash, "state": self.participant.snapshot()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take over what `snapshot` gave, also of another process. The participant gets arrays of its own."""
        header, arrays = plain.pack(snapshot["state"])
        state = plain.unpack(header, [array.copy() for array in arrays])
        self.running_hash = bytes(snapshot["hash"])
        self.participant.restore(state)

    def digest(self) -> str:
        """Hex digest of the running hash and the whole state. A story of pages that is kept beside the state is
        left out: it changes nothing.
        """
        whole = self.snapshot()
        whole["state"] = {key: value for key, value in whole["state"].items() if key != "story"}
        return plain.digest(whole)


def load_build(name: str) -> Build:
    """The builder that `module:function` names."""
    module, _, function = name.partition(":")
    try:
        build: Build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"there is no participant builder {name!r}: {error}") from error
    return build


def read_only(resources: Mapping[str, np.ndarray], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Views of the named arrays that nobody can write through: resources are shared by participants."""
    views = {}
    for name in names:
        view = resources[name].view()
        view.flags.writeable = False
        views[name] = view
    return views


def take_seat(entry: ParticipantPlan, build: Build, resources: Mapping[str, np.ndarray]) -> Seat:
    """Build a participant of a plan and give it its seat."""
    participant = build(entry, read_only(resources, entry.resources))
    if participant.name != entry.name:
        raise ConfigError(f"the builder made {participant.name!r} of the plan's {entry.name!r}")
    return Seat(participant)


def _own_arrays(packet: Packet) -> Packet:
    """The packet with arrays of its own: a participant may go on to change the arrays that it sent from."""
    arrays = [array.copy() for array in packet.arrays]
    return Packet(packet.time_ns, packet.sender, packet.seq, packet.to, packet.header, arrays)
