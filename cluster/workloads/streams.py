"""Access streams: what a process touches, in order. Hosts take them by the protocol of
`nodeagent/host/program.py`.

A stream is made from a plain spec and keeps one number as its state: how many accesses it has given. So what
it gives does not depend on how much is asked for at a time, and a snapshot is that number. What each kind
imitates, and its statistics, are in `docs/workloads.md`.

Left out: system calls, several threads with addresses of their own, sizes of accesses (a page is the unit).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.cluster.errors import ConfigError, ProtocolError, TraceError
from privmem.cluster.workloads import _workload_kernel as kernel
from privmem.cluster.workloads.zipf import zipf_table

Resources = dict[str, np.ndarray]

#: An access is packed as `page << 1 | is_write` in 32 bits.
NR_PAGES_MAX = 1 << 31
_COUNT_MAX = 1 << 62


class Stream:
    """What all streams share: a total, and how many accesses were given. Subclasses write `_generate`."""

    def __init__(self, nr_pages: int, total: int) -> None:
        self.nr_pages = nr_pages
        self.total = total
        self.given = 0

    def fill(self, out: np.ndarray) -> int:
        """Write the next accesses, `page << 1 | is_write` (uint32), and return how many; 0 at the end."""
        count = min(len(out), self.total - self.given)
        if count:
            with np.errstate(over="ignore"):  # the generators wrap on purpose
                self._generate(out[:count])
            self.given += count
        return count

    def _generate(self, out: np.ndarray) -> None:
        raise NotImplementedError

    def snapshot(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"given": self.given}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot of a stream of the same spec."""
        given = snapshot["given"]
        if not 0 <= given <= self.total:
            raise ProtocolError(f"a stream of {self.total} accesses cannot go on from {given}")
        self.given = given


class Synthetic(Stream):
    """A stream of drawn accesses. Spec: nr_pages, write_permille, accesses, seed."""

    def __init__(self, spec: dict[str, Any], _resources: Resources) -> None:
        nr_pages = whole(spec, "nr_pages", 1, NR_PAGES_MAX - 1)
        super().__init__(nr_pages, whole(spec, "accesses", 0, _COUNT_MAX))
        self.key = np.uint64(mixed(whole(spec, "seed", 0, (1 << 63) - 1)))
        self.write_limit = limit_of(whole(spec, "write_permille", 0, 1000))


class Zipf(Synthetic):
    """Few pages take most accesses. Spec: as Synthetic, and theta_permille."""

    def __init__(self, spec: dict[str, Any], resources: Resources) -> None:
        super().__init__(spec, resources)
        theta_permille = whole(spec, "theta_permille", 0, 4000)
        self.table = zipf_table(self.nr_pages, theta_permille, int(self.key))

    def _generate(self, out: np.ndarray) -> None:
        kernel.fill_zipf(out, self.given, self.key, self.table, self.write_limit)


class Uniform(Synthetic):
    """Every page as likely as every other. Spec: as Synthetic."""

    def _generate(self, out: np.ndarray) -> None:
        kernel.fill_uniform(out, self.given, self.key, np.uint64(self.nr_pages), self.write_limit)


class Scan(Synthetic):
    """Pages in order, round and round. Spec: as Synthetic (the seed is that of the writes), and stride_pages."""

    def __init__(self, spec: dict[str, Any], resources: Resources) -> None:
        super().__init__(spec, resources)
        self.stride = whole(spec, "stride_pages", 1, _COUNT_MAX)

    def _generate(self, out: np.ndarray) -> None:
        kernel.fill_scan(out, self.given, self.key, self.nr_pages, self.stride, self.write_limit)


class HotSet(Synthetic):
    """A hot range that moves. Spec: as Synthetic, and hot_pages, hot_access_permille, period_accesses,
    move_pages.
    """

    def __init__(self, spec: dict[str, Any], resources: Resources) -> None:
        super().__init__(spec, resources)
        self.hot_pages = whole(spec, "hot_pages", 1, self.nr_pages)
        share = whole(spec, "hot_access_permille", 0, 1000)
        # Without pages outside the hot range, all accesses go there.
        self.hot_limit = limit_of(share if self.hot_pages < self.nr_pages else 1000)
        self.period = whole(spec, "period_accesses", 1, _COUNT_MAX)
        self.move_pages = whole(spec, "move_pages", 0, _COUNT_MAX) % self.nr_pages

    def _generate(self, out: np.ndarray) -> None:
        shape = (self.nr_pages, self.hot_pages, self.hot_limit, self.period, self.move_pages)
        kernel.fill_hotset(out, self.given, self.key, *shape, self.write_limit)


class Gpu(Synthetic):
    """Launches of kernels, each of which works on the next part of the buffers: the program writes every page of
    it, the kernel accesses pages of it at random, the program reads every page. Spec: window_pages, buffer_pages,
    nr_pages with the DMA buffers behind those, launches, launch_accesses, write_permille, seed.
    """

    def __init__(self, spec: dict[str, Any], resources: Resources) -> None:
        self.window = whole(spec, "window_pages", 1, spec["nr_pages"])
        self.windows = whole(spec, "buffer_pages", self.window, spec["nr_pages"]) // self.window
        self.kernel_accesses = whole(spec, "launch_accesses", 1, _COUNT_MAX)
        self.period = 2 * self.window + self.kernel_accesses
        super().__init__(spec | {"accesses": whole(spec, "launches", 0, _COUNT_MAX) * self.period}, resources)

    def _generate(self, out: np.ndarray) -> None:
        kernel.fill_uniform(out, self.given, self.key, np.uint64(self.window), self.write_limit)
        launch, at = np.divmod(np.arange(self.given, self.given + len(out)), self.period)
        first = (launch % self.windows * self.window).astype(np.uint32)
        after = at - self.window - self.kernel_accesses
        out[at < self.window] = (at[at < self.window] << 1 | 1).astype(np.uint32)
        out[after >= 0] = (after[after >= 0] << 1).astype(np.uint32)
        out += first << np.uint32(1)


class Messages(Uniform):
    """A program's own memory while it makes messages, so many accesses each. Spec: as Uniform, with messages and
    message_accesses for accesses.
    """

    def __init__(self, spec: dict[str, Any], resources: Resources) -> None:
        messages = whole(spec, "messages", 0, _COUNT_MAX)
        each = whole(spec, "message_accesses", 1, _COUNT_MAX)
        super().__init__(spec | {"accesses": messages * each}, resources)


class Replay(Stream):
    """A recorded program. Spec: nr_pages, accesses (name of a uint32 array in the resources), repeat, start.

    The first replay skips `start` accesses; each one after it begins at the beginning.
    """

    def __init__(self, spec: dict[str, Any], resources: Resources) -> None:
        nr_pages = whole(spec, "nr_pages", 1, NR_PAGES_MAX - 1)
        name = spec["accesses"]
        self.recorded = resources[name]
        nr_recorded = len(self.recorded)
        if self.recorded.dtype != np.uint32 or self.recorded.ndim != 1:
            raise TraceError(f"{name}: accesses are {self.recorded.dtype}, not uint32")
        # The compiled access path trusts page numbers.
        if nr_recorded and int(self.recorded.max()) >> 1 >= nr_pages:
            raise TraceError(f"{name}: page {int(self.recorded.max()) >> 1} of {nr_pages} pages")
        self.start = whole(spec, "start", 0, _COUNT_MAX)
        if self.start > nr_recorded:
            raise ConfigError(f"workload replay: start: found {self.start}; the recording has {nr_recorded}")
        super().__init__(nr_pages, nr_recorded * whole(spec, "repeat", 1, _COUNT_MAX) - self.start)

    def _generate(self, out: np.ndarray) -> None:
        done = 0
        while done < len(out):
            at = (self.start + self.given + done) % len(self.recorded)
            part = self.recorded[at : at + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)


def whole(spec: dict[str, Any], name: str, low: int, high: int) -> int:
    """A whole number of the spec, within its limits: the compiled generators trust them."""
    value = spec[name]
    if not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"workload {spec['kind']}: {name}: found {value!r}; allowed: {low} to {high}")
    return value


def limit_of(permille: int) -> np.uint64:
    """The limit under which 32 random bits lie in this share of all draws."""
    return np.uint64((permille << 32) // 1000)


def mixed(seed: int) -> int:
    """64 bits of a seed (splitmix64's output function): seeds that are neighbours give streams that are not."""
    state = seed
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> shift)) * factor & 0xFFFFFFFFFFFFFFFF
    return state ^ (state >> 31)
