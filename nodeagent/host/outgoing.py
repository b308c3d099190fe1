"""What a host has to tell its storing devices, in order, gathered into few messages.

Pages move to and from a storing device in the order in which the kernel moved them: a page number may be
freed and stored again within one step, so stores and frees must not overtake each other. Runs of the same
kind become one message.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from privmem.scheduler.abi import PAGE_SIZE
from privmem.scheduler.messages import Body, FreePages, LoadPages, StorePages

_STORE, _FREE, _LOAD = 0, 1, 2


class Outgoing:
    """Ordered page operations by device."""

    def __init__(self) -> None:
        #: device -> list of [kind, dpa list, source list, index list, version list, bytes of literal pages]
        self._runs: dict[str, list[list[Any]]] = {}

    def store(
        self,
        device: str,
        dpa: np.ndarray,
        source: np.ndarray,
        index: np.ndarray,
        version: np.ndarray,
        literal: list[bytes],
    ) -> None:
        """Queue pages to be kept by `device`; arrays as in messages.StorePages, `literal` page by page."""
        run = self._run(device, _STORE)
        for column, values in zip(run[1:5], (dpa, source, index, version), strict=True):
            column.extend(values.tolist())
        run[5].extend(literal)

    def load(self, device: str, dpa: np.ndarray) -> None:
        """Queue a request for the content of pages."""
        self._run(device, _LOAD)[1].extend(dpa.tolist())

    def free(self, device: str, dpa: np.ndarray) -> None:
        """Queue pages that the device may forget."""
        self._run(device, _FREE)[1].extend(dpa.tolist())

    def _run(self, device: str, kind: int) -> list[Any]:
        runs = self._runs.setdefault(device, [])
        if not runs or runs[-1][0] != kind:
            runs.append([kind, [], [], [], [], []])
        return runs[-1]

    def take(self) -> list[tuple[str, Body]]:
        """All messages, by device name and then in order; the queue is empty afterwards."""
        taken: list[tuple[str, Body]] = []
        for device in sorted(self._runs):
            for kind, dpa, source, index, version, literal in self._runs[device]:
                pages = np.array(dpa, dtype=np.int32)
                if kind != _STORE:
                    taken.append((device, FreePages(pages) if kind == _FREE else LoadPages(pages)))
                    continue
                taken.append(
                    (
                        device,
                        StorePages(
                            pages,
                            np.array(source, dtype=np.uint16),
                            np.array(index, dtype=np.uint32),
                            np.array(version, dtype=np.uint16),
                            np.frombuffer(b"".join(literal), dtype=np.uint8).reshape(-1, PAGE_SIZE),
                        ),
                    )
                )
        self._runs = {}
        return taken

    def snapshot(self) -> dict[str, Any]:
        return _copy(self._runs)

    def restore(self, snapshot: dict[str, Any]) -> None:
        self._runs = _copy(snapshot)


def _copy(runs_by_device: dict[str, list[list[Any]]]) -> dict[str, list[list[Any]]]:
    return {
        device: [[kind, *(list(column) for column in columns)] for kind, *columns in runs]
        for device, runs in runs_by_device.items()
    }
