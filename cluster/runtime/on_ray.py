"""The Ray runtime: the same seats as inline, in actor processes. The only file that imports ray.

Each participant has an actor of its own, or up to `pack` of a kind share one. A round is one call per actor,
which carries the inboxes of all its participants as one packed batch. Actors ask for no CPUs, so that any
number of them fits a machine, and are spread over the machines that there are.

Without an address it starts a private instance that no other program joins, and ends it; with one it joins
that cluster as a guest and leaves nothing but its own traces behind. A process that is connected to Ray already
(a notebook, a test session) keeps its connection.

An actor that dies ends the run with ParticipantLost; rebuilding it from a checkpoint is left out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from privmem.cluster import errors
from privmem.cluster.errors import ConfigError, InvariantError, ParticipantLost, PrivmemError
from privmem.cluster.plan import ParticipantPlan, Plan
from privmem.cluster.runtime.base import Seat, StepResult, load_build, take_seat
from privmem.cluster.runtime.installed import differences, installed
from privmem.cluster.runtime.reaper import Reaper
from privmem.scheduler import plain
from privmem.scheduler.messages import Packet, pack_batch, unpack_batch
from privmem.scheduler.participant import Clock

#: A TCP connection to a cluster that is there takes milliseconds; Ray itself would try for a minute.
CONNECT_TIMEOUT_S = 5
#: Object store of a private instance, beside what the resources take: messages of one round.
OBJECT_STORE_BYTES = 256 << 20
#: Read by Ray when it starts. No usage report is sent; no hint about accelerators is printed.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class SeatsActor:
    """What runs in an actor process: some seats, called with packed plain data and answering with it."""

    def __init__(self) -> None:
        self.seats: dict[str, Seat] = {}

    def installed(self) -> plain.Packed:
        """Address and Ray node of the machine where this actor runs, and what is installed there."""
        return _answer(lambda: [*_machine(), installed()])

    def build(self, packed: plain.Packed, build: str, *arrays: np.ndarray) -> plain.Packed:
        """Build participants; `arrays` are the resources that the packed names list, in that order."""
        return _answer(lambda: self._build(packed, build, arrays))

    def _build(self, packed: plain.Packed, build: str, arrays: tuple[np.ndarray, ...]) -> None:
        rows, names = plain.unpack(*packed)
        resources = dict(zip(names, arrays, strict=True))
        builder = load_build(build)
        for name, kind, spec, wanted in rows:
            entry = ParticipantPlan(name, kind, spec, tuple(wanted))
            self.seats[name] = take_seat(entry, builder, resources)

    def step(self, packed: plain.Packed) -> plain.Packed:
        """One step of each participant that has an inbox in `packed`."""
        return _answer(lambda: self._step(packed))

    def _step(self, packed: plain.Packed) -> list[Any]:
        clock, inboxes = plain.unpack(*packed)
        rows = []
        for name, inbox in inboxes:
            result = self.seats[name].step(unpack_batch(tuple(inbox)), Clock(*clock))
            sent = list(pack_batch(result.packets))
            flags = [result.waits_for_horizon, result.finished]
            rows.append([name, sent, result.reached_ns, *flags, result.running_hash])
        return rows

    def restore(self, packed: plain.Packed) -> plain.Packed:
        """Restore each participant that `packed` names."""
        return _answer(lambda: self._restore(packed))

    def _restore(self, packed: plain.Packed) -> None:
        for name, snapshot in plain.unpack(*packed).items():
            self.seats[name].restore(snapshot)

    def ask(self, what: str) -> plain.Packed:
        """Snapshot, digest, summary or validation of all participants here, by name."""
        return _answer(lambda: {name: _QUESTIONS[what](seat) for name, seat in self.seats.items()})


_QUESTIONS: dict[str, Callable[[Seat], Any]] = {
    "snapshot": lambda seat: seat.snapshot(),
    "digest": lambda seat: seat.digest(),
    "summary": lambda seat: seat.participant.summary(),
    "validate": lambda seat: seat.participant.validate(),
}


@contextlib.contextmanager
def private_instance(object_store_bytes: int = OBJECT_STORE_BYTES) -> Iterator[Reaper]:
    """A Ray instance on this machine that no other program joins; nothing of it remains, however it ends.

    Ray runtimes that are started in this process meanwhile use it, rather than start one each.
    """
    folder = tempfile.mkdtemp(prefix="privmem-ray-")
    reaper = Reaper(folder)
    try:
        _init(
            address="local",
            include_dashboard=False,
            object_store_memory=object_store_bytes,
            _temp_dir=folder,
        )
        reaper.watch_children()
        yield reaper
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        reaper.dismiss()


def _init(**options: Any) -> None:
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    ray.init(
        namespace=f"privmem-{uuid.uuid4().hex}",
        log_to_driver=False,
        logging_level=logging.FATAL,
        **options,
    )


class RayRuntime:
    """See `base.Runtime`."""

    def __init__(self, address: str | None = None, pack: int = 1) -> None:
        if pack < 1:
            raise ConfigError(f"--pack: found {pack}; allowed: 1 or more participants in a process")
        self.address = address
        self.pack = pack
        #: Names of the participants in each actor, and its handle.
        self.actors: list[tuple[list[str], Any]] = []
        #: Ends the connection to Ray that this runtime made; nothing to end when it found one.
        self._exit = contextlib.ExitStack()
        self._reaper: Reaper | None = None
        #: Ray nodes that carry participants.
        self._nodes: set[str] = set()

    # -- start and stop

    def start(self, plan: Plan, build: str) -> None:
        """Start Ray or connect to it, start the actors, compare what is installed, build the participants."""
        mine = installed()
        self._connect(sum(array.nbytes for array in plan.resources.values()))
        groups = list(_groups(plan, self.pack))
        actors = _place_actors(len(groups))
        self.actors = [([e.name for e in group], actor) for group, actor in zip(groups, actors, strict=True)]
        self._compare_installed(mine)
        if self._reaper is not None:
            self._reaper.watch_children()
        put = {name: ray.put(np.ascontiguousarray(array)) for name, array in plan.resources.items()}
        calls = []
        for group, (names, actor) in zip(groups, self.actors, strict=True):
            wanted = sorted({name for entry in group for name in entry.resources})
            rows = [[e.name, e.kind, e.spec, list(e.resources)] for e in group]
            refs = [put[name] for name in wanted]
            calls.append((names, actor.build.remote(plain.pack([rows, wanted]), build, *refs)))
        _collect(calls)

    def _connect(self, resource_bytes: int) -> None:
        if ray.is_initialized():
            if self.address is not None:
                raise ConfigError("--address: this process is connected to a Ray cluster already")
            return
        if self.address is None:
            instance = private_instance(OBJECT_STORE_BYTES + 2 * resource_bytes)
            self._reaper = self._exit.enter_context(instance)
            return
        _must_answer(self.address)
        self._exit.callback(ray.shutdown)
        try:
            _init(address=self.address)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise ConfigError(f"--address: {self.address} did not let us join: {error}") from error

    def _compare_installed(self, mine: dict[str, Any]) -> None:
        problems = []
        for names, answer in _collect([(n, actor.installed.remote()) for n, actor in self.actors]):
            machine, node, theirs = answer
            self._nodes.add(node)
            found = differences(mine, theirs)
            if found:
                problems.append(f"machine {machine} ({', '.join(names)}): {'; '.join(found)}")
        if problems:
            raise ConfigError(sorted(problems))

    def stop(self) -> None:
        """Kill the actors; end a private instance, leave a cluster that was there before."""
        actors, self.actors = self.actors, []
        if ray.is_initialized():
            for _, actor in actors:
                with contextlib.suppress(RayError, RuntimeError, ValueError):
                    ray.kill(actor)
        self._reaper = None
        self._exit.close()

    def describe(self) -> str:
        """How many processes on how many nodes."""
        participants = sum(len(names) for names, _ in self.actors)
        return f"{participants} participants in {len(self.actors)} processes on {len(self._nodes)} Ray nodes"

    # -- rounds

    def step(self, clock: Clock, inboxes: Mapping[str, list[Packet]]) -> dict[str, StepResult]:
        """One call for each actor of which a participant is to be stepped, all in flight together."""
        calls = []
        for names, actor in self.actors:
            here = [[name, list(pack_batch(inboxes[name]))] for name in names if name in inboxes]
            if here:
                packed = plain.pack([list(astuple(clock)), here])
                calls.append((names, actor.step.remote(packed)))
        return {
            name: StepResult(unpack_batch(tuple(sent)), reached_ns, waits, finished, running_hash)
            for _, rows in _collect(calls)
            for name, sent, reached_ns, waits, finished, running_hash in rows
        }

    def snapshots(self) -> dict[str, dict[str, Any]]:
        """Of all participants."""
        return self._ask("snapshot")

    def digests(self) -> dict[str, str]:
        """Of all participants."""
        return self._ask("digest")

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Of all participants."""
        return self._ask("summary")

    def validate(self) -> None:
        """All participants."""
        self._ask("validate")

    def restore(self, snapshots: Mapping[str, dict[str, Any]]) -> None:
        """Restore all participants."""
        calls = []
        for names, actor in self.actors:
            packed = plain.pack({name: dict(snapshots[name]) for name in names})
            calls.append((names, actor.restore.remote(packed)))
        _collect(calls)

    def _ask(self, what: str) -> dict[str, Any]:
        answers = _collect([(names, actor.ask.remote(what)) for names, actor in self.actors])
        together = {name: value for _, answer in answers for name, value in answer.items()}
        return {name: together[name] for name in sorted(together)}


def _machine() -> tuple[str, str]:
    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return str(address), str(ray.get_runtime_context().get_node_id())


def _place_actors(count: int) -> list[Any]:
    """Actors over the living nodes in turn. Ray's own SPREAD may put all of them on one node when it has not yet
    heard of the others.
    """
    alive: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = sorted(node["NodeID"] for node in alive if node["Alive"])
    actor_class = ray.remote(SeatsActor)
    return [
        actor_class.options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(nodes[number % len(nodes)], soft=False),
        ).remote()
        for number in range(count)
    ]


def _groups(plan: Plan, pack: int) -> Iterable[list[ParticipantPlan]]:
    """Participants that share an actor: up to `pack` of a kind, in the order of names."""
    for kind in sorted({entry.kind for entry in plan.participants}):
        entries = sorted((e for e in plan.participants if e.kind == kind), key=lambda e: e.name)
        for at in range(0, len(entries), pack):
            yield entries[at : at + pack]


def _answer(work: Callable[[], Any]) -> plain.Packed:
    """Our exceptions cross as plain data: as objects they would have to be pickled."""
    try:
        return plain.pack([None, work()])
    except PrivmemError as error:
        return plain.pack([type(error).__name__, str(error)])


def _collect(calls: list[tuple[list[str], Any]]) -> list[tuple[list[str], Any]]:
    """The answers to calls, in their order. Raises what a participant raised; ParticipantLost when one died."""
    answers = []
    for names, ref in calls:
        try:
            answer = plain.unpack(*ray.get(ref))
        except RayTaskError as error:
            raise InvariantError(f"{', '.join(names)}: {error.cause!r}\n{error}") from None
        except RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ParticipantLost(
                f"{', '.join(names)}: the process that carried it is gone: {lines[0]}"
            ) from None
        if len(answer) == 2 and isinstance(answer[0], str) and answer[0] in errors.__all__:
            raise getattr(errors, answer[0])(answer[1])
        answers.append((names, answer[1]))
    return answers


def _must_answer(address: str) -> None:
    """Raise ConfigError unless somebody listens at HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--address: found {address!r}; allowed: HOST:PORT of a Ray cluster's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(f"--address: nobody answers at {address}: {error.strerror or error}") from None
