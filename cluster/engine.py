"""The round engine: one virtual time, one order of messages, whatever carries them (DESIGN, section 3).

A run is cut into epochs, an epoch into rounds. In a round every participant that has something to do takes
one step on its whole inbox; then all messages of the round are sorted by (time_ns, sender, seq) and wait for
the next round. The rules below look at virtual state only, never at who answered first:

- Round 0 of an epoch steps every host that has not finished (an EpochBegin is in its inbox), and every host
  for which a message was left over. Hosts that are not stepped in it sleep through the epoch.
- A message to a device or the scheduler is delivered in the next round. So is one to a host that stands
  within the epoch (it waits there for an answer). A host that has reached the epoch's end gets it in round 0
  of the next epoch: nothing could make it run earlier, and one step an epoch costs less than several.
- The horizon is the least time that any host has reached (hosts that sleep count as at the epoch's end) and
  that any message to a device or the scheduler bears which is delivered in this round: what it causes may be
  as early. Who waits for the horizon is stepped again when it has risen since its last step.
- Devices and the scheduler close the epoch: one that was stepped in it is stepped once more, with an empty
  inbox if need be, when the horizon is the epoch's end, unless its last step saw that already.
- The epoch is over when nobody has anything to do. A host that is not at the end then waits for an answer
  that nobody will send: InvariantError.

What the engine leaves out: it never looks into a body, except those of samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from privmem.cluster.errors import InvariantError, ProtocolError
from privmem.cluster.plan import HOST, Plan
from privmem.cluster.rounds import RoundsLog
from privmem.cluster.runtime.base import HASH_BYTES, Runtime, StepResult
from privmem.cluster.runtime.installed import codec_versions
from privmem.scheduler import plain
from privmem.scheduler.messages import (
    RESULTS,
    SCHEMA_VERSION,
    EpochBegin,
    Message,
    Packet,
    Sample,
    decode,
    encode,
    pack_batch,
    unpack_batch,
)
from privmem.scheduler.participant import Clock

#: Sender of EpochBegin.
ENGINE = "engine"
#: Version of the digest: what enters it, and in which order.
DIGEST_SCHEMA = 1
#: More rounds than this in one epoch mean that participants talk without virtual time passing.
ROUNDS_PER_EPOCH_MAX = 1 << 20

COMPLETE = "complete"
INTERRUPTED = "interrupted"


@dataclass(slots=True)
class RunResult:
    """What a run leaves: handed to `cluster.results`."""

    name: str
    status: str  # COMPLETE or INTERRUPTED
    #: Hex; empty for an interrupted run, whose state depends on when that was.
    digest: str
    #: What the digest depends on, plain data.
    identity: dict[str, Any]
    #: `summary.json`.
    summary: dict[str, Any]
    #: All samples, in the order of (round, time_ns, sender, seq).
    samples: list[Sample]
    rounds: RoundsLog


@dataclass(slots=True)
class Progress:
    """How far a run has come; only `accesses` depends on sampling."""

    virtual_ns: int = 0
    epochs: int = 0
    rounds: int = 0
    #: By host, as of its last sample.
    accesses: dict[str, int] = field(default_factory=dict)

    def count_accesses(self, sample: Sample) -> None:
        """Take what the progress display needs from a sample."""
        if sample.table == "host":
            for row in sample.rows:
                self.accesses[row["host"]] = int(row["accesses"])


def run_identity(plan: Plan) -> dict[str, Any]:
    """What the digest of this plan's run depends on."""
    return {
        "digest_schema": DIGEST_SCHEMA,
        "message_schema": SCHEMA_VERSION,
        "name": plan.name,
        "seed": plan.seed,
        "epoch_ns": plan.epoch_ns,
        "duration_ns": plan.duration_ns,
        "codecs": codec_versions(),
        **plan.identity,
    }


class Engine:
    """Drives the participants of a plan, which a runtime has started. See the module docstring."""

    def __init__(
        self,
        plan: Plan,
        runtime: Runtime,
        *,
        validate: bool = False,
        after_round: Callable[[Engine], None] | None = None,
    ) -> None:
        self.plan = plan
        self.runtime = runtime
        self.validate = validate
        self.after_round = after_round
        self.names = sorted(entry.name for entry in plan.participants)
        self.hosts = sorted(entry.name for entry in plan.participants if entry.kind == HOST)
        if len(set(self.names)) != len(self.names) or {ENGINE, RESULTS} & set(self.names):
            raise InvariantError("the plan's participants do not have names of their own")
        self.identity = run_identity(plan)
        self.progress = Progress()
        self.samples: list[Sample] = []
        self.rounds = RoundsLog(self.names, plain.digest(self.identity))
        #: Epoch that runs now, or next.
        self.epoch = 0
        self.finished = dict.fromkeys(self.hosts, False)
        #: Sorted; between epochs these are messages to hosts.
        self.in_flight: list[Packet] = []
        self.next_seq = dict.fromkeys(self.names, 0)
        self.running = dict.fromkeys(self.names, bytes(HASH_BYTES))
        #: Who waits for the horizon to rise, and the horizon that each participant saw last.
        self.waits = {entry.name: entry.wakes for entry in plan.participants}
        self.seen_ns = dict.fromkeys(self.names, -1)

    # -- epochs

    @property
    def done(self) -> bool:
        """Every host has finished, or the duration is over."""
        at_end = self.progress.virtual_ns >= self.plan.duration_ns
        return at_end or (bool(self.hosts) and all(self.finished.values()))

    def run(self) -> None:
        """All epochs that are left."""
        while not self.done:
            self.run_epoch()

    def run_epoch(self) -> None:
        """One epoch. Between epochs, and only there, `snapshot` may be taken."""
        start_ns = self.epoch * self.plan.epoch_ns
        end_ns = min(start_ns + self.plan.epoch_ns, self.plan.duration_ns)
        self._announce(start_ns)
        awake = {packet.to for packet in self.in_flight}
        reached = {host: start_ns if host in awake else end_ns for host in self.hosts}
        stepped: set[str] = set()
        for _ in range(ROUNDS_PER_EPOCH_MAX):
            clock = Clock(self.epoch, start_ns, end_ns, self._horizon_ns(reached, end_ns))
            inboxes = self._inboxes(clock, reached, stepped)
            if not inboxes:
                break
            self._round(clock, inboxes, reached)
            stepped |= inboxes.keys()
        else:
            raise InvariantError(f"epoch {self.epoch} does not end: {ROUNDS_PER_EPOCH_MAX} rounds")
        self._must_be_at_end(reached, end_ns)
        self.epoch += 1
        self.progress.virtual_ns = end_ns
        self.progress.epochs = self.epoch
        if self.validate:
            self.runtime.validate()

    def _announce(self, start_ns: int) -> None:
        """Put the epoch's beginning into the inbox of each host that has not finished."""
        begin = EpochBegin(self.epoch)
        seq = self.epoch * len(self.hosts)
        for number, host in enumerate(self.hosts):
            if not self.finished[host]:
                self.in_flight.append(encode(Message(start_ns, ENGINE, seq + number, host, begin)))
        self.in_flight.sort(key=lambda packet: packet.key)

    def _must_be_at_end(self, reached: Mapping[str, int], end_ns: int) -> None:
        stuck = [f"{host} at {at_ns} ns" for host, at_ns in reached.items() if at_ns < end_ns]
        if stuck:
            waiting = [name for name in self.names if self.waits[name]]
            also = f"; {', '.join(waiting)} wait for the horizon" if waiting else ""
            raise InvariantError(
                f"deadlock in epoch {self.epoch}: no message is on its way, but "
                f"{', '.join(stuck)} did not reach {end_ns} ns{also}"
            )

    # -- rounds

    def _horizon_ns(self, reached: Mapping[str, int], end_ns: int) -> int:
        relayed = [packet.time_ns for packet in self.in_flight if packet.to not in reached]
        return min([end_ns, *reached.values(), *relayed])

    def _inboxes(
        self, clock: Clock, reached: Mapping[str, int], stepped: set[str]
    ) -> dict[str, list[Packet]]:
        """Who takes a step in this round, and on what; takes what is delivered out of `in_flight`."""
        inboxes: dict[str, list[Packet]] = {}
        kept: list[Packet] = []
        for packet in self.in_flight:
            if reached.get(packet.to, clock.start_ns) < clock.end_ns:
                inboxes.setdefault(packet.to, []).append(packet)
            else:
                kept.append(packet)
        self.in_flight = kept
        for name in self.names:
            if clock.horizon_ns <= self.seen_ns[name]:
                continue
            closes = name in stepped and name not in reached and clock.horizon_ns == clock.end_ns
            if self.waits[name] or closes:
                inboxes.setdefault(name, [])
        return inboxes

    def _round(self, clock: Clock, inboxes: dict[str, list[Packet]], reached: dict[str, int]) -> None:
        results = self.runtime.step(clock, inboxes)
        if results.keys() != inboxes.keys():
            raise InvariantError("the runtime did not step those that it was asked to")
        for name in sorted(results):
            result = results[name]
            self._check(name, result, clock, reached.get(name))
            self.waits[name] = result.waits_for_horizon
            self.seen_ns[name] = clock.horizon_ns
            self.running[name] = result.running_hash
            if name in reached:
                reached[name] = result.reached_ns
                self.finished[name] = result.finished
        self._route([packet for result in results.values() for packet in result.packets])
        hashes = {name: result.running_hash for name, result in results.items()}
        self.rounds.append(self.progress.rounds, clock.epoch, clock.horizon_ns, hashes)
        self.progress.rounds += 1
        if self.after_round is not None:
            self.after_round(self)

    def _check(self, name: str, result: StepResult, clock: Clock, before_ns: int | None) -> None:
        """What a participant promises by taking part: it numbers its messages, and hosts keep to time."""
        for packet in result.packets:
            if packet.sender != name or packet.seq < self.next_seq[name]:
                raise ProtocolError(
                    f"{name} sent message {packet.seq} of {packet.sender}, "
                    f"expected its own {self.next_seq[name]}"
                )
            self.next_seq[name] = packet.seq + 1
        if before_ns is None:
            return
        early = min((packet.time_ns for packet in result.packets), default=result.reached_ns)
        if min(early, result.reached_ns) < before_ns:
            raise ProtocolError(
                f"{name} went back to {min(early, result.reached_ns)} ns, but had reached {before_ns} ns"
            )
        if result.reached_ns > clock.end_ns:
            raise ProtocolError(f"{name} ran to {result.reached_ns} ns, beyond {clock.end_ns} ns")

    def _route(self, packets: list[Packet]) -> None:
        packets.sort(key=lambda packet: packet.key)
        for packet in packets:
            if packet.to == RESULTS:
                self._keep_sample(packet)
            elif packet.to in self.next_seq:
                self.in_flight.append(packet)
            else:
                raise ProtocolError(f"{packet.sender} sent a message to the unknown {packet.to!r}")
        self.in_flight.sort(key=lambda packet: packet.key)

    def _keep_sample(self, packet: Packet) -> None:
        body = decode(packet).body
        if not isinstance(body, Sample):
            raise ProtocolError(f"{packet.sender} sent a {type(body).__name__} to the results")
        self.samples.append(body)
        self.progress.count_accesses(body)

    # -- results

    def digest(self) -> str:
        """The digest of the state that the run is in; of the run, once it is done."""
        running = hashlib.blake2b(digest_size=16, person=b"privmem-run")
        plain.update_hash(running, plain.pack(self.identity))
        digests = self.runtime.digests()
        plain.update_hash(running, plain.pack([[name, digests[name]] for name in self.names]))
        return running.hexdigest()

    def result(self) -> RunResult:
        """Validate all participants and gather what the run leaves. Interrupted, unless the run is done."""
        self.runtime.validate()
        digest = self.digest() if self.done else ""
        summary = self._summary(digest, self.runtime.summaries())
        status = COMPLETE if self.done else INTERRUPTED
        return RunResult(self.plan.name, status, digest, self.identity, summary, self.samples, self.rounds)

    def partial_result(self) -> RunResult:
        """What can be said without asking the participants, who may stand in the middle of a step."""
        summary = self._summary("", {})
        return RunResult(self.plan.name, INTERRUPTED, "", self.identity, summary, self.samples, self.rounds)

    def _summary(self, digest: str, summaries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        by_kind: dict[str, dict[str, Any]] = {}
        for entry in sorted(self.plan.participants, key=lambda e: e.name):
            if entry.name in summaries:
                short = entry.name.removeprefix(f"{entry.kind}/")
                by_kind.setdefault(entry.kind, {})[short] = summaries[entry.name]
        return {
            "schema": 1,
            "name": self.plan.name,
            "seed": self.plan.seed,
            "status": COMPLETE if self.done else INTERRUPTED,
            "digest": digest,
            "identity": self.identity,
            "virtual_ns": self.progress.virtual_ns,
            "epochs": self.progress.epochs,
            "rounds": self.progress.rounds,
            "accesses": accesses_of(by_kind.get("host", {})) or sum(self.progress.accesses.values()),
            "headline": headline(by_kind.get("host", {}), by_kind.get("device", {})),
            "hosts": by_kind.get("host", {}),
            "devices": by_kind.get("device", {}),
            "scheduler": by_kind.get("scheduler", {}).get("scheduler", {}),
        }

    # -- state

    def snapshot(self) -> dict[str, Any]:
        """Engine and participants as plain data, between two epochs."""
        return {
            "epoch": self.epoch,
            "virtual_ns": self.progress.virtual_ns,
            "rounds": self.progress.rounds,
            "accesses": dict(self.progress.accesses),
            "finished": dict(self.finished),
            "in_flight": list(pack_batch(self.in_flight)),
            "next_seq": dict(self.next_seq),
            "running": dict(self.running),
            "waits": dict(self.waits),
            "seen_ns": dict(self.seen_ns),
            "samples": [[sample.table, sample.rows] for sample in self.samples],
            "rounds_log": self.rounds.pack(),
            "participants": self.runtime.snapshots(),
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from a snapshot of a run of the same plan; the runtime must be started."""
        self.runtime.restore(snapshot["participants"])
        self.epoch = snapshot["epoch"]
        self.progress = Progress(
            snapshot["virtual_ns"], self.epoch, snapshot["rounds"], dict(snapshot["accesses"])
        )
        header, arrays = snapshot["in_flight"]
        self.in_flight = unpack_batch((header, arrays))
        for name in ("finished", "next_seq", "running", "waits", "seen_ns"):
            setattr(self, name, dict(snapshot[name]))
        self.samples = [Sample(table, rows) for table, rows in snapshot["samples"]]
        self.rounds = RoundsLog.unpack(snapshot["rounds_log"], "rounds log of the checkpoint")


def accesses_of(hosts: Mapping[str, dict[str, Any]]) -> int:
    """Accesses of all processes of all hosts."""
    return sum(
        int(process.get("accesses", 0))
        for host in hosts.values()
        for process in host.get("processes", {}).values()
    )


def headline(
    hosts: Mapping[str, dict[str, Any]], devices: Mapping[str, dict[str, Any]]
) -> dict[str, int | float]:
    """The vmstat counters of all hosts together, and the compression ratio of all devices that compress."""
    total: dict[str, int | float] = {}
    for host in hosts.values():
        for counter, count in host.get("vmstat", {}).items():
            total[counter] = total.get(counter, 0) + int(count)
    engines = [device for device in devices.values() if "codec" in device]
    used = sum(device["used_bytes"] for device in engines)
    if used:
        total["compression_ratio"] = round(sum(device["logical_bytes"] for device in engines) / used, 3)
    return total
