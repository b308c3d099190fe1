"""A plain sequential run of the same participants: no rounds, no batches, no packing.

It is what the engine is held against: when epochs are so short that no host does more than one thing in
them, the engine's result must equal this one. Hosts go one at a time, always the one that has reached the
least time (the first name among equals). A message to a device or the scheduler is handled when no host can
still send an earlier one, so they see strict virtual time, where the engine's rounds only sort what arrives
together. A message to a host lies in its inbox until the host is stepped: at once if it stands within the
epoch and waits, else when the next epoch begins.

The clock stays cut into epochs, because participants close them (traffic, loaded latencies, samples). With
longer epochs the two may differ, by as much as the epoch is a modelling error.
"""

from __future__ import annotations

from typing import Any

from privmem.cluster.errors import InvariantError
from privmem.cluster.plan import HOST, Plan
from privmem.cluster.runtime.base import Build, read_only
from privmem.scheduler.messages import RESULTS, EpochBegin, Message, Sample
from privmem.scheduler.participant import Clock, Participant


class SequentialRun:
    """One run, from `run()` to `states()`."""

    def __init__(self, plan: Plan, build: Build) -> None:
        self.plan = plan
        self.participants: dict[str, Participant] = {
            entry.name: build(entry, read_only(plan.resources, entry.resources))
            for entry in plan.participants
        }
        self.hosts = sorted(entry.name for entry in plan.participants if entry.kind == HOST)
        self.services = sorted(set(self.participants) - set(self.hosts))
        self.finished = dict.fromkeys(self.hosts, False)
        self.inboxes: dict[str, list[Message]] = {name: [] for name in self.participants}
        self.reached = dict.fromkeys(self.hosts, 0)
        self.waits = {entry.name: entry.wakes for entry in plan.participants if entry.kind != HOST}
        self.seen_ns = dict.fromkeys(self.services, -1)
        self.samples: list[Sample] = []
        self.epoch = 0

    def run(self) -> None:
        """To the end."""
        end_ns = 0
        while end_ns < self.plan.duration_ns and not all(self.finished.values()):
            start_ns = end_ns
            end_ns = min(start_ns + self.plan.epoch_ns, self.plan.duration_ns)
            self._run_epoch(start_ns, end_ns)
            self.epoch += 1

    def states(self) -> dict[str, Any]:
        """Snapshot of every participant."""
        return {name: self.participants[name].snapshot() for name in sorted(self.participants)}

    def _run_epoch(self, start_ns: int, end_ns: int) -> None:
        for number, host in enumerate(self.hosts):
            if not self.finished[host]:
                begin = Message(start_ns, "engine", number, host, EpochBegin(self.epoch))
                self.inboxes[host].append(begin)
            self.reached[host] = start_ns if self.inboxes[host] else end_ns
        touched: set[str] = set()
        while True:
            clock = Clock(self.epoch, start_ns, end_ns, min(self.reached.values()))
            service = self._next_service(clock, touched)
            if service is not None:
                touched.add(service)
                self._step_service(service, clock)
                continue
            ready = self._next_host(end_ns)
            if ready is None:
                break
            self._step_host(ready, clock)
        if any(reached < end_ns for reached in self.reached.values()):
            raise InvariantError(f"deadlock in epoch {self.epoch}: {self.reached}")

    def _next_service(self, clock: Clock, touched: set[str]) -> str | None:
        """Who has the earliest message that is due; else who waits for the horizon or has to close."""
        due = [
            (message.time_ns, message.sender, message.seq, service)
            for service in self.services
            for message in self.inboxes[service]
            if message.time_ns <= clock.horizon_ns
        ]
        if due:
            return min(due)[3]
        for service in self.services:
            closes = service in touched and clock.horizon_ns == clock.end_ns
            if (self.waits[service] or closes) and clock.horizon_ns > self.seen_ns[service]:
                return service
        return None

    def _step_service(self, name: str, clock: Clock) -> None:
        inbox = sorted(self.inboxes[name], key=lambda m: (m.time_ns, m.sender, m.seq))
        due = [message for message in inbox if message.time_ns <= clock.horizon_ns]
        self.inboxes[name] = inbox[len(due) :]
        outbox = self.participants[name].step(due, clock)
        self.waits[name], self.seen_ns[name] = outbox.waits_for_horizon, clock.horizon_ns
        self._post(outbox.messages)

    def _next_host(self, end_ns: int) -> str | None:
        ready = [(self.reached[h], h) for h in self.hosts if self.reached[h] < end_ns and self.inboxes[h]]
        return min(ready)[1] if ready else None

    def _step_host(self, name: str, clock: Clock) -> None:
        inbox = sorted(self.inboxes[name], key=lambda m: (m.time_ns, m.sender, m.seq))
        self.inboxes[name] = []
        outbox = self.participants[name].step(inbox, clock)
        self.reached[name], self.finished[name] = outbox.reached_ns, outbox.finished
        self._post(outbox.messages)

    def _post(self, messages: list[Message]) -> None:
        for message in messages:
            if message.to != RESULTS:
                self.inboxes[message.to].append(message)
            elif isinstance(message.body, Sample):
                self.samples.append(message.body)
