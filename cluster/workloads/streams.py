"""Access streams: what a process touches, in order. Hosts take them by the protocol of
`nodeagent/host/program.py`.

A stream is made from a plain spec and keeps one number as its state: how many accesses it has given. So what
it gives does not depend on how much is asked for at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.cluster.workloads import _workload_kernel as kernel
from privmem.cluster.workloads.zipf import scatter, zipf_table

Resources = dict[str, np.ndarray]


class _Counted:
    """What all streams share: a total, and how many accesses were given."""

    def __init__(self, nr_pages: int, total: int) -> None:
        self.nr_pages = nr_pages
        self.total = total
        self.given = 0

    def fill(self, out: np.ndarray) -> int:
        """Write the next accesses, `page << 1 | is_write`, and return how many; 0 at the end."""
        count = min(len(out), self.total - self.given)
        if count:
            with np.errstate(over="ignore"):  # the generators wrap on purpose
                self._generate(out, count)
            self.given += count
        return count

    def _generate(self, out: np.ndarray, count: int) -> None:
        raise NotImplementedError

    def snapshot(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"given": self.given}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot."""
        self.given = snapshot["given"]


class _Synthetic(_Counted):
    def __init__(self, spec: dict[str, Any], _resources: Resources) -> None:
        super().__init__(spec["nr_pages"], spec["accesses"])
        self.spec = spec
        self.seed = np.uint64(spec["seed"])
        self.write_permille: int = spec["write_permille"]


class Zipf(_Synthetic):
    """Few pages take most accesses. Spec: nr_pages, theta_permille, write_permille, accesses, seed."""

    def __init__(self, spec: dict[str, Any], resources: Resources) -> None:
        super().__init__(spec, resources)
        self.threshold, self.alias = zipf_table(self.nr_pages, spec["theta_permille"])
        multiplier, offset = scatter(self.nr_pages, spec["seed"])
        self.permutation = np.uint64(multiplier), np.uint64(offset)

    def _generate(self, out: np.ndarray, count: int) -> None:
        table = self.threshold, self.alias
        kernel.fill_zipf(out, count, self.given, self.seed, *table, *self.permutation, self.write_permille)


class Uniform(_Synthetic):
    """All pages alike. Spec: nr_pages, write_permille, accesses, seed."""

    def _generate(self, out: np.ndarray, count: int) -> None:
        kernel.fill_uniform(out, count, self.given, self.seed, self.nr_pages, self.write_permille)


class Scan(_Synthetic):
    """Pages in order, round and round. Spec: nr_pages, stride_pages, write_permille, accesses, seed (of the
    writes).
    """

    def _generate(self, out: np.ndarray, count: int) -> None:
        stride = self.spec["stride_pages"]
        kernel.fill_scan(out, count, self.given, self.seed, self.nr_pages, stride, self.write_permille)


class HotSet(_Synthetic):
    """A hot range that moves. Spec: nr_pages, hot_pages, hot_access_permille, period_accesses, move_pages,
    write_permille, accesses, seed.
    """

    def _generate(self, out: np.ndarray, count: int) -> None:
        s = self.spec
        shape = s["hot_pages"], s["hot_access_permille"], s["period_accesses"], s["move_pages"]
        kernel.fill_hotset(out, count, self.given, self.seed, self.nr_pages, *shape, self.write_permille)


class Replay(_Counted):
    """A recorded program. Spec: nr_pages, accesses (name of the array in the resources), repeat, start.

    `start` accesses of the first round are skipped; every round after it begins at the beginning.
    """

    def __init__(self, spec: dict[str, Any], resources: Resources) -> None:
        self.recorded = resources[spec["accesses"]]
        self.start = min(spec["start"], len(self.recorded))
        super().__init__(spec["nr_pages"], len(self.recorded) * spec["repeat"] - self.start)

    def _generate(self, out: np.ndarray, count: int) -> None:
        done = 0
        while done < count:
            at = (self.start + self.given + done) % len(self.recorded)
            part = self.recorded[at : at + count - done]
            out[done : done + len(part)] = part
            done += len(part)
