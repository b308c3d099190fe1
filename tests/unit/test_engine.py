"""The round engine: whole runs of the fake rack inline, and each delivery rule with scripted participants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import fake_rack
import pytest

from privmem.cluster.engine import Engine, headline, run_identity
from privmem.cluster.errors import ConfigError, InvariantError, ProtocolError
from privmem.cluster.plan import DEVICE, HOST, ParticipantPlan, Plan
from privmem.cluster.rounds import first_difference
from privmem.cluster.runtime import make_runtime
from privmem.cluster.runtime.base import Seat, StepResult, load_build
from privmem.cluster.runtime.inline import InlineRuntime
from privmem.cluster.runtime.installed import codec_versions
from privmem.scheduler import plain
from privmem.scheduler.messages import (
    RESULTS,
    Body,
    DeviceReport,
    EpochBegin,
    ExtentGranted,
    ExtentRefused,
    Message,
    Packet,
    RequestExtent,
    Sample,
    Traffic,
    encode,
)
from privmem.scheduler.participant import Clock, Mailer, Outbox


def run_fakes(runtime: InlineRuntime | None = None, **wish: Any) -> Engine:
    plan = fake_rack.make_plan(**wish)
    runtime = runtime or InlineRuntime()
    runtime.start(plan, fake_rack.BUILD)
    engine = Engine(plan, runtime, validate=True)
    engine.run()
    return engine


class BackwardRuntime(InlineRuntime):
    """Steps in the opposite order and answers in it, as Ray may."""

    def step(self, clock: Clock, inboxes: Any) -> dict[str, StepResult]:
        return {name: self.seats[name].step(inboxes[name], clock) for name in sorted(inboxes, reverse=True)}


class UnsortedRuntime(InlineRuntime):
    """The planted mistake: delivers in another order than that of (time_ns, sender, seq)."""

    def step(self, clock: Clock, inboxes: Any) -> dict[str, StepResult]:
        return super().step(clock, {name: inbox[::-1] for name, inbox in inboxes.items()})


def test_same_digest_twice_and_another_one_for_another_seed() -> None:
    first, second, other = run_fakes(), run_fakes(), run_fakes(seed=2)
    assert first.digest() == second.digest() != other.digest()
    assert first.rounds == second.rounds
    assert first.progress.epochs == 6
    assert first.result().summary["accesses"] == 3 * 60


def test_digest_does_not_depend_on_who_answers_first() -> None:
    assert run_fakes(BackwardRuntime()).digest() == run_fakes().digest()


def test_delivery_out_of_order_is_found_and_named() -> None:
    right, wrong = run_fakes(), run_fakes(UnsortedRuntime())
    found = first_difference(right.rounds, wrong.rounds)
    assert found is not None
    assert (found.epoch, found.participant, found.what) == (
        0,
        "device/pool",
        "its messages or state differ",
    )
    same = [a == b for a, b in zip(right.rounds.rounds, wrong.rounds.rounds, strict=False)]
    assert same.index(False) == found.number > 0
    assert right.digest() != wrong.digest()


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_restored_run_ends_as_the_undisturbed_one(stop_after: int) -> None:
    plan = fake_rack.make_plan()
    engine = Engine(plan, InlineRuntime())
    engine.runtime.start(plan, fake_rack.BUILD)
    for _ in range(stop_after):
        engine.run_epoch()
    snapshot = plain.unpack(*plain.pack(engine.snapshot()))
    engine.run_epoch()  # what the first run does now must not reach the second

    resumed = Engine(plan, InlineRuntime())
    resumed.runtime.start(plan, fake_rack.BUILD)
    resumed.restore(snapshot)
    resumed.run()
    undisturbed = run_fakes()
    assert resumed.rounds == undisturbed.rounds
    assert resumed.samples == undisturbed.samples
    assert resumed.result() == undisturbed.result()


def test_digest_depends_on_the_identity() -> None:
    plan = fake_rack.make_plan()
    digests = set()
    for one in (plan, replace(plan, identity={"fake": 2}), replace(plan, name="other")):
        runtime = InlineRuntime()
        runtime.start(one, fake_rack.BUILD)
        engine = Engine(one, runtime)
        engine.run()
        digests.add(engine.digest())
    assert len(digests) == 3
    assert run_identity(plan) == {
        "digest_schema": 1,
        "message_schema": 2,
        "name": "fake",
        "seed": 1,
        "epoch_ns": 1000,
        "duration_ns": 1 << 40,
        "codecs": codec_versions(),
        "fake": 1,
    }


class Scripted:
    """Does in its n-th step what the n-th function of its script says; records what it saw."""

    def __init__(self, name: str, script: list[Callable[[Scripted, Clock], Outbox]]) -> None:
        self.name = name
        self.script = script
        self.mail = Mailer(name)
        self.seen: list[tuple[int, int, list[str]]] = []  # (epoch, horizon, kinds of messages)
        self.validated = 0

    def step(self, inbox: list[Message], clock: Clock) -> Outbox:
        kinds = [type(message.body).__name__ for message in inbox]
        self.seen.append((clock.epoch, clock.horizon_ns, kinds))
        does = self.script.pop(0) if self.script else idle()
        return does(self, clock)

    def snapshot(self) -> dict[str, Any]:
        return {"steps": len(self.seen)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        raise NotImplementedError

    def counters(self) -> dict[str, int]:
        return {"steps": len(self.seen)}

    def summary(self) -> dict[str, Any]:
        return {}

    def validate(self) -> None:
        self.validated += 1


Does = Callable[[Scripted, Clock], Outbox]


def idle(*, finished: bool = True) -> Does:
    return lambda me, clock: Outbox(me.mail.take(), clock.end_ns, finished=finished)


def send(*letters: tuple[str, int, Body], reached_ns: int | None = None, finished: bool = False) -> Does:
    def does(me: Scripted, clock: Clock) -> Outbox:
        for to, time_ns, body in letters:
            me.mail.send(to, time_ns, body)
        reached = clock.end_ns if reached_ns is None else reached_ns
        return Outbox(me.mail.take(), reached, finished=finished)

    return does


def engine_of(hosts: dict[str, list[Does]], devices: dict[str, list[Does]] | None = None, epochs: int = 3):
    """An engine over scripted hosts and devices, with epochs of 100 ns; and the participants by name."""
    scripts = [(n, HOST, s) for n, s in hosts.items()] + [(n, DEVICE, s) for n, s in (devices or {}).items()]
    entries = tuple(ParticipantPlan(name, kind, {}) for name, kind, _ in scripts)
    runtime = InlineRuntime()
    actors = {name: Scripted(name, list(script)) for name, _, script in scripts}
    runtime.seats = {name: Seat(actor) for name, actor in actors.items()}
    return Engine(Plan("scripted", 0, 100, 100 * epochs, entries), runtime), actors


REQUEST = RequestExtent("d", 1, 1)
REFUSAL = ExtentRefused("d", "a", 1, 12)
REPORT = DeviceReport("d", 0, 1, 1, 1, 1)


def test_a_host_that_waits_is_answered_in_the_same_epoch_one_at_the_end_in_the_next() -> None:
    engine, who = engine_of(
        {"a": [send(("d", 30, REQUEST), reached_ns=30)], "b": [idle(finished=False)]},
        {"d": [send(("a", 30, REFUSAL), ("b", 30, REPORT))]},
    )
    engine.run()
    assert who["a"].seen == [(0, 0, ["EpochBegin"]), (0, 30, ["ExtentRefused"])]
    assert who["b"].seen == [(0, 0, ["EpochBegin"]), (1, 100, ["DeviceReport", "EpochBegin"])]


def test_a_device_closes_the_epoch_when_all_hosts_are_at_its_end() -> None:
    traffic = Traffic(0, 1, 1)
    engine, who = engine_of(
        {
            "a": [send(("d", 30, REQUEST), reached_ns=30), idle()],
            "b": [send(("d", 100, traffic), ("e", 100, traffic), finished=True)],
        },
        {"d": [send(("a", 30, REFUSAL))], "e": [], "f": []},
    )
    engine.run()
    # d and e got b's traffic when a stood at 30; both are stepped once more when a has come to the end.
    assert who["d"].seen == [(0, 30, ["RequestExtent", "Traffic"]), (0, 100, [])]
    assert who["e"].seen == [(0, 30, ["Traffic"]), (0, 100, [])]
    assert who["f"].seen == []
    assert who["a"].seen == [(0, 0, ["EpochBegin"]), (0, 30, ["ExtentRefused"])]


def test_a_device_that_saw_the_end_with_its_last_message_is_not_stepped_again() -> None:
    engine, who = engine_of({"a": [send(("d", 100, Traffic(0, 1, 1)), finished=True)]}, {"d": [], "e": []})
    engine.run()
    assert who["d"].seen == [(0, 100, ["Traffic"])]
    assert who["e"].seen == []


def test_the_horizon_counts_messages_that_a_device_may_relay() -> None:
    engine, who = engine_of(
        {"a": [send(("d", 20, Traffic(0, 1, 1)), ("e", 60, Traffic(0, 1, 1)), finished=True)]},
        {"d": [send(("e", 20, REFUSAL))], "e": []},
    )
    engine.run()
    assert who["e"].seen == [(0, 20, ["Traffic"]), (0, 20, ["ExtentRefused"]), (0, 100, [])]


def test_who_waits_for_the_horizon_is_stepped_when_it_rises() -> None:
    def waits(me: Scripted, clock: Clock) -> Outbox:
        return Outbox([], clock.end_ns, waits_for_horizon=True)

    engine, who = engine_of(
        {
            "a": [send(("d", 30, REQUEST), reached_ns=30), send(("d", 60, REQUEST), reached_ns=60), idle()],
            "b": [send(("w", 70, REQUEST), finished=True)],
        },
        {"d": [send(("a", 30, REFUSAL)), send(("a", 60, REFUSAL))], "w": [waits, waits, idle()]},
    )
    engine.run()
    assert who["w"].seen == [(0, 30, ["RequestExtent"]), (0, 60, []), (0, 100, [])]


def test_finished_hosts_sleep_until_there_is_mail() -> None:
    engine, who = engine_of(
        {
            "a": [send(("d", 100, Traffic(0, 1, 1)), finished=True)],
            "b": [idle(finished=False), idle(finished=False), idle()],
        },
        {"d": [send(("a", 100, REPORT))]},
    )
    engine.run()
    assert who["a"].seen == [(0, 0, ["EpochBegin"]), (1, 100, ["DeviceReport"])]
    assert [epoch for epoch, _, _ in who["b"].seen] == [0, 1, 2]


def test_run_ends_with_the_duration_or_when_all_hosts_have_finished() -> None:
    engine, _ = engine_of({"a": [idle(finished=False)] * 9}, epochs=4)
    engine.run()
    assert (engine.progress.epochs, engine.progress.virtual_ns) == (4, 400)
    engine, _ = engine_of({"a": [idle(finished=False), idle()]}, epochs=4)
    engine.run()
    assert (engine.progress.epochs, engine.progress.virtual_ns) == (2, 200)


def test_the_last_epoch_is_cut_at_the_duration() -> None:
    engine, _ = engine_of({"a": [idle(finished=False)] * 9}, epochs=2)
    engine.plan = replace(engine.plan, duration_ns=150)
    engine.run()
    assert (engine.progress.epochs, engine.progress.virtual_ns) == (2, 150)


def test_deadlock_names_who_waits() -> None:
    engine, _ = engine_of({"a": [send(reached_ns=40)], "b": []})
    with pytest.raises(InvariantError) as caught:
        engine.run()
    assert str(caught.value) == (
        "deadlock in epoch 0: no message is on its way, but a at 40 ns did not reach 100 ns"
    )


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ([send(("nobody", 1, REQUEST))], "a sent a message to the unknown 'nobody'"),
        ([send(("engine", 1, REQUEST))], "a sent a message to the unknown 'engine'"),
        ([send((RESULTS, 1, REQUEST))], "a sent a RequestExtent to the results"),
        ([send(reached_ns=101)], "a ran to 101 ns, beyond 100 ns"),
        (
            [idle(finished=False), send(("d", 99, REQUEST))],
            "a went back to 99 ns, but had reached 100 ns",
        ),
        ([idle(finished=False), send(reached_ns=99)], "a went back to 99 ns, but had reached 100 ns"),
    ],
)
def test_broken_promises_are_told(script: list[Does], text: str) -> None:
    engine, _ = engine_of({"a": script}, {"d": []})
    with pytest.raises(ProtocolError) as caught:
        engine.run()
    assert str(caught.value) == text


def test_messages_are_numbered_and_ones_own() -> None:
    def forges(me: Scripted, clock: Clock) -> Outbox:
        return Outbox([Message(1, "b", 0, "d", REQUEST)], clock.end_ns)

    def repeats(me: Scripted, clock: Clock) -> Outbox:
        return Outbox([Message(1, "a", 0, "d", REQUEST)] * 2, clock.end_ns)

    for does in (forges, repeats):
        engine, _ = engine_of({"a": [does]}, {"d": []})
        with pytest.raises(ProtocolError, match="expected its own"):
            engine.run()


def test_samples_are_kept_and_not_delivered() -> None:
    rows = [{"host": "a", "accesses": 7}]
    engine, _ = engine_of({"a": [send((RESULTS, 100, Sample("host", rows)), finished=True)]})
    engine.run()
    assert engine.samples == [Sample("host", rows)]
    assert engine.progress.accesses == {"a": 7}


def test_validation_on_request_and_at_the_end() -> None:
    engine, who = engine_of({"a": [idle(finished=False), idle()]})
    engine.run()
    assert who["a"].validated == 0
    engine.result()
    assert who["a"].validated == 1
    engine, who = engine_of({"a": [idle(finished=False), idle()]})
    engine.validate = True
    engine.run()
    assert who["a"].validated == 2


def test_inbox_arrays_are_read_only_and_no_longer_the_senders() -> None:
    plan = fake_rack.make_plan()
    runtime = InlineRuntime()
    runtime.start(plan, fake_rack.BUILD)
    host = runtime.seats["host/h0"].participant
    assert isinstance(host, fake_rack.FakeHost)
    assert not host.table.flags.writeable
    sent: list[Packet] = []
    clock = Clock(0, 0, 1 << 30, 0)
    inbox: list[Packet] = []
    while not any(packet.arrays for packet in sent):
        sent = runtime.step(clock, {"host/h0": inbox})["host/h0"].packets
        grant = ExtentGranted("device/pool", "host/h0", 1, 0, 4)
        inbox = [encode(Message(0, "device/pool", 0, "host/h0", grant))]
    runtime.step(clock, {"device/pool": [packet for packet in sent if packet.to == "device/pool"]})
    assert {
        array.flags.writeable for packet in sent if packet.to != "scheduler" for array in packet.arrays
    } == {False}
    assert {array.flags.owndata for packet in sent for array in packet.arrays} == {True}


def test_names_are_checked() -> None:
    with pytest.raises(ConfigError, match="--runtime: found 'rey'; allowed: inline, ray"):
        make_runtime("rey")
    with pytest.raises(ConfigError, match="there is no participant builder 'fake_rack:nothing'"):
        load_build("fake_rack:nothing")
    entries = (ParticipantPlan("a", HOST, {}), ParticipantPlan("a", HOST, {}))
    with pytest.raises(InvariantError):
        Engine(Plan("x", 0, 1, 1, entries), InlineRuntime())


def test_epoch_begin_comes_from_the_engine() -> None:
    seen: list[Message] = []

    class Host(Scripted):
        def step(self, inbox: list[Message], clock: Clock) -> Outbox:
            seen.extend(inbox)
            return super().step(inbox, clock)

    engine, _ = engine_of({"a": [], "b": []}, epochs=2)
    for name in ("a", "b"):
        engine.runtime.seats[name] = Seat(Host(name, [idle(finished=False)] * 2))
    engine.run()
    assert [(m.time_ns, m.sender, m.seq, m.to, m.body) for m in seen] == [
        (0, "engine", 0, "a", EpochBegin(0)),
        (0, "engine", 1, "b", EpochBegin(0)),
        (100, "engine", 2, "a", EpochBegin(1)),
        (100, "engine", 3, "b", EpochBegin(1)),
    ]


def test_headline_adds_up_hosts_and_compressing_devices() -> None:
    hosts = {"a": {"vmstat": {"pgfault": 2, "pgfree": 1}}, "b": {"vmstat": {"pgfault": 3}}}
    devices = {
        "x": {"codec": "lz4", "logical_bytes": 900, "used_bytes": 300},
        "y": {"codec": "lz4", "logical_bytes": 0, "used_bytes": 60},
        "z": {"logical_bytes": 9000, "used_bytes": 9000},
    }
    assert headline(hosts, devices) == {"pgfault": 5, "pgfree": 1, "compression_ratio": 2.5}
    assert headline({}, {"x": devices["x"] | {"used_bytes": 0}}) == {}
