"""One run from a plan to its results folder: start, epochs, checkpoints, results, and an orderly end whatever
happens.

The folder appears when all participants stand, so a run that cannot start leaves nothing behind. After that it
always says how the run ended: complete, interrupted, failed; or running, when it was killed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from privmem.cluster import folder as folders
from privmem.cluster.checkpoint import FOLDER, read_newest, write_checkpoint
from privmem.cluster.engine import Engine, RunResult
from privmem.cluster.errors import ConfigError, PrivmemError
from privmem.cluster.folder import RunFolder, RunRecord
from privmem.cluster.interrupt import Interrupts
from privmem.cluster.plan import Plan
from privmem.cluster.progress import Display, compiled_before, span
from privmem.cluster.runtime import DEFAULT_RUNTIME, make_runtime
from privmem.cluster.runtime.base import DEFAULT_BUILD, Runtime
from privmem.cluster.runtime.installed import source_hash

ROUNDS_FILE = "rounds.bin"

#: Writes the results of a run into its folder.
Write = Callable[[Path, RunResult], None]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says about how to run; none of it changes the result."""

    runtime: str = DEFAULT_RUNTIME
    address: str | None = None
    pack: int = 1
    checkpoint_every: int = 0
    validate: bool = False
    quiet: bool = False
    #: `module:function` that builds participants.
    build: str = DEFAULT_BUILD


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    result: RunResult
    path: Path
    interrupted: bool


class Runner:
    """Carries one plan through. `out` is a folder for a new run; `resumed` the folder of one to go on with."""

    def __init__(self, plan: Plan, record: RunRecord, options: RunOptions, write: Write) -> None:
        self.plan = plan
        self.record = record
        self.options = options
        self.write = write
        self.display = Display(quiet=options.quiet)
        self.interrupts = Interrupts()
        self.source = source_hash()
        self.engine: Engine | None = None

    def run(self, out: Path | None = None, resumed: RunFolder | None = None) -> Outcome:
        """The whole run. Raises KeyboardInterrupt when it was interrupted before anything was there to keep."""
        folders.check_out(out)
        runtime = self._make_runtime()
        with self.interrupts:
            try:
                engine = self._start(runtime, resumed)
                folder = resumed or folders.create(out, self.plan.name)
                try:
                    return self._run_in(folder, engine)
                finally:
                    if resumed is None:
                        folder.release()
            except OSError as error:
                what = error.filename or "the run's folder"
                raise ConfigError(f"{what}: cannot be written: {error.strerror or error}") from error
            except KeyboardInterrupt:
                self.display.say("interrupted before the run began")
                raise
            finally:
                self.interrupts.deaf()
                self.display.clear()
                runtime.stop()

    def _make_runtime(self) -> Runtime:
        if self.options.runtime == "ray":
            return make_runtime("ray", address=self.options.address, pack=self.options.pack)
        return make_runtime(self.options.runtime)

    def _start(self, runtime: Runtime, resumed: RunFolder | None) -> Engine:
        if self.options.runtime == "ray":
            self.display.waiting("joining Ray" if self.options.address else "starting Ray")
        compiled = compiled_before()
        if not compiled and self.options.runtime != "ray":
            self.display.waiting("compiling (first run only)")
        runtime.start(self.plan, self.options.build)
        self.interrupts.install()
        where = runtime.describe()
        if where:
            self.display.say(where)
        engine = Engine(self.plan, runtime, validate=self.options.validate, after_round=self._after_round)
        if resumed is not None:
            self._restore(engine, resumed)
        if not compiled and self.options.runtime == "ray":
            self.display.waiting("compiling (first run only)")
        return engine

    def _restore(self, engine: Engine, resumed: RunFolder) -> None:
        header = read_newest(resumed.path / FOLDER, engine.identity, self.display.say)
        if header is None:
            self.display.say("no checkpoint yet: starting from the beginning")
            return
        if header["source"] != self.source:
            self.display.say("note: privmem's source has changed since the checkpoint was written")
        engine.restore(header["snapshot"])
        self.display.say(f"going on from epoch {engine.epoch}, {span(engine.progress.virtual_ns)}")

    def _after_round(self, engine: Engine) -> None:
        at_ns = engine.rounds.rounds[-1].horizon_ns
        self.display.update(at_ns, self.plan.duration_ns, sum(engine.progress.accesses.values()))

    def _run_in(self, folder: RunFolder, engine: Engine) -> Outcome:
        self.record.status = folders.RUNNING
        folder.write(self.record)
        self.interrupts.patient()
        self.display.begin(sum(engine.progress.accesses.values()))
        at_boundary = False
        try:
            self._epochs(folder, engine)
            at_boundary = True
        except KeyboardInterrupt:
            pass
        except Exception:
            self.interrupts.deaf()
            self._keep_what_is_there(folder, engine)
            raise
        self.interrupts.deaf()
        if at_boundary and not engine.done:
            self._checkpoint(folder, engine)
        result = engine.result() if at_boundary else engine.partial_result()
        self._keep(folder, result)
        return Outcome(result, folder.path, not engine.done)

    def _epochs(self, folder: RunFolder, engine: Engine) -> None:
        every = self.options.checkpoint_every
        while not engine.done and not self.interrupts.asked:
            engine.run_epoch()
            if every and engine.epoch % every == 0 and not engine.done:
                self._checkpoint(folder, engine)

    def _checkpoint(self, folder: RunFolder, engine: Engine) -> None:
        write_checkpoint(folder.path / FOLDER, engine.snapshot(), engine.identity, self.source)

    def _keep(self, folder: RunFolder, result: RunResult) -> None:
        (folder.path / ROUNDS_FILE).write_bytes(result.rounds.pack())
        self.write(folder.path, result)
        self.record.status, self.record.digest = result.status, result.digest
        folder.write(self.record)

    def _keep_what_is_there(self, folder: RunFolder, engine: Engine) -> None:
        """After a failure, which must stay the error that the user sees."""
        self.record.status = folders.FAILED
        with contextlib.suppress(OSError, PrivmemError):
            result = engine.partial_result()
            (folder.path / ROUNDS_FILE).write_bytes(result.rounds.pack())
            folder.write(self.record)
        print(f"the run failed; what it left is in {folder.path}", file=sys.stderr)
