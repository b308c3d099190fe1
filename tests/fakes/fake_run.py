"""A command line for runs of the fake rack, for tests that kill, interrupt and resume a process:

python fake_run.py DIR '{"runtime": "ray", "plan": {...}, "die_at_epoch": 7, ...}'

`DIR` that holds a run is resumed. `signal_at_epoch` sends the process SIGINT (or `signals`) after that epoch's
first round, `die_at_epoch` SIGKILL.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import fake_rack

from privmem.cluster.engine import Engine, RunResult
from privmem.cluster.errors import PrivmemError
from privmem.cluster.folder import RUN_FILE, RunFolder, RunRecord, read_record
from privmem.cluster.runner import Runner, RunOptions


class SignallingRunner(Runner):
    """Sends this process a signal in the middle of an epoch."""

    at_epoch: dict[int, list[int]] = {}

    def _after_round(self, engine: Engine) -> None:
        super()._after_round(engine)
        for number in self.at_epoch.pop(engine.epoch, []):
            # To this thread: one for the process may go to another, and two that wait there count as one.
            signal.pthread_kill(threading.get_ident(), number)


def write(path: Path, result: RunResult) -> None:
    (path / "summary.json").write_text(json.dumps(result.summary))


def main(path: Path, wish: dict[str, Any]) -> int:
    plan = fake_rack.make_plan(**wish.get("plan", {}))
    resumed = (path / RUN_FILE).exists()
    record = read_record(path) if resumed else RunRecord(plan.name, wish.get("plan", {}), str(path))
    options = RunOptions(
        runtime=wish.get("runtime", "inline"),
        pack=wish.get("pack", 1),
        address=wish.get("address"),
        checkpoint_every=wish.get("checkpoint_every", 0),
        build=fake_rack.BUILD,
    )
    runner = SignallingRunner(plan, record, options, write)
    runner.at_epoch = {}
    if "die_at_epoch" in wish:
        runner.at_epoch[wish["die_at_epoch"]] = [signal.SIGKILL]
    if "signal_at_epoch" in wish:
        runner.at_epoch[wish["signal_at_epoch"]] = wish.get("signals", [signal.SIGINT])
    try:
        outcome = runner.run(None if resumed else path, RunFolder(path) if resumed else None)
    except PrivmemError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"digest: {outcome.result.digest}")
    return 130 if outcome.interrupted else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
