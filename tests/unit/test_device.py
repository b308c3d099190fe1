"""The device participant: what it answers to whom, and when."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from privmem.nodeagent.content import LITERAL
from privmem.nodeagent.device.credits import UNLIMITED_PAGES
from privmem.nodeagent.device.device import Device, initial_credit_pages
from privmem.nodeagent.device.timing import class_timing
from privmem.scheduler import plain
from privmem.scheduler.errors import InvariantError, ProtocolError
from privmem.scheduler.messages import (
    RESULTS,
    AllocExtent,
    Body,
    DeviceReport,
    EpochBegin,
    ExtentGranted,
    ExtentRefused,
    ExtentReleased,
    FreePages,
    LoadPages,
    Message,
    PagesLoaded,
    PagesStored,
    ReleaseExtent,
    Sample,
    StorePages,
    Traffic,
)
from privmem.scheduler.participant import Clock

EPOCH_NS = 1_000_000
GENERATOR = {"kind": "generator", "seed": 1, "zero_permille": 0, "random_bytes": 900, "changed_bytes": 64}
LZ4 = {"codec": "lz4", "level": None, "block": 4096, "granule": 64}


def spec(**more: Any) -> dict[str, Any]:
    """A compressed device of 64 perceived pages in front of 16, whole at boot of host/a."""
    plain_spec = {
        "name": "device/d",
        "device": "d",
        "class": "compressed-ram",
        "capacity_pages": 64,
        "physical_bytes": 16 * 4096,
        "extent_pages": 64,
        "pooled": False,
        "hosts": ["host/a"],
        "boot_extents": [["host/a", 2, 0, 64]],
        "timing": class_timing("compressed-ram", "lz4"),
        "compression": LZ4,
        "stores": True,
        "content": [GENERATOR],
        "scheduler": "scheduler",
        "sample_every": 1,
    }
    return plain_spec | more


def pool(**more: Any) -> dict[str, Any]:
    """A pooled device of four extents of 16 pages, for two hosts."""
    changes = {
        "class": "slow-distributed",
        "pooled": True,
        "physical_bytes": 64 * 4096,
        "extent_pages": 16,
        "hosts": ["host/a", "host/b"],
        "boot_extents": [],
        "timing": class_timing("slow-distributed"),
        "compression": None,
    }
    return spec(**(changes | more))


class Bench:
    """Steps a device, and numbers what is sent to it."""

    def __init__(self, device_spec: dict[str, Any]) -> None:
        self.device = Device(device_spec, {})
        self.seq = 0
        self.waits = False

    def message(self, body: Body, sender: str = "host/a", time_ns: int = 10) -> Message:
        self.seq += 1
        return Message(time_ns, sender, self.seq, "device/d", body)

    def step(
        self, *inbox: Message | Body, horizon_ns: int | None = None, epoch: int = 0
    ) -> list[tuple[str, Body]]:
        """One step; what was sent, as (to, body). Without a horizon, the epoch closes."""
        end_ns = (epoch + 1) * EPOCH_NS
        clock = Clock(epoch, end_ns - EPOCH_NS, end_ns, end_ns if horizon_ns is None else horizon_ns)
        messages = [m if isinstance(m, Message) else self.message(m) for m in inbox]
        outbox = self.device.step(sorted(messages, key=lambda m: (m.time_ns, m.sender, m.seq)), clock)
        self.device.validate()
        self.waits = outbox.waits_for_horizon
        assert outbox.reached_ns == end_ns
        assert [m.sender for m in outbox.messages] == ["device/d"] * len(outbox.messages)
        return [(m.to, m.body) for m in outbox.messages]


def pages(*dpa: int, source: int = 1, version: int = 0) -> StorePages:
    where = np.array(dpa, dtype=np.int32)
    columns = (np.full(len(dpa), source, np.uint16), where.astype(np.uint32))
    return StorePages(where, *columns, np.full(len(dpa), version, np.uint16), np.zeros((0, 4096), np.uint8))


def literal(bodies: dict[int, np.ndarray]) -> StorePages:
    where = np.array(list(bodies), dtype=np.int32)
    columns = (np.full(len(where), LITERAL, np.uint16), np.zeros(len(where), np.uint32))
    return StorePages(where, *columns, np.zeros(len(where), np.uint16), np.stack(list(bodies.values())))


def noise(*dpa: int) -> StorePages:
    """Pages that no codec shrinks."""
    draw = np.random.default_rng(sum(dpa))
    return literal({d: np.frombuffer(draw.bytes(4096), np.uint8) for d in dpa})


def at(*dpa: int) -> np.ndarray:
    return np.array(dpa, dtype=np.int32)


def only(sent: list[tuple[str, Body]], kind: type) -> list[tuple[str, Any]]:
    return [(to, body) for to, body in sent if isinstance(body, kind)]


# -- content and credit


def test_pages_are_taken_acknowledged_and_loaded() -> None:
    bench = Bench(spec())
    bodies = {3: np.arange(4096, dtype=np.uint16).astype(np.uint8), 9: np.full(4096, 5, np.uint8)}
    sent = bench.step(literal(bodies), pages(4, version=2), horizon_ns=10)
    used = bench.device.store.used_bytes
    assert sent == [("host/a", PagesStored(3, 16 - -(-used // 4096)))]
    ((to, loaded),) = bench.step(LoadPages(at(9, 4, 3)), horizon_ns=20)
    assert (to, type(loaded)) == ("host/a", PagesLoaded)
    assert loaded.dpa.tolist() == [9, 4, 3]
    assert loaded.source.tolist() == [LITERAL, 1, LITERAL]
    assert (int(loaded.index[1]), int(loaded.version[1])) == (4, 2)
    assert loaded.literal.tolist() == [bodies[9].tolist(), bodies[3].tolist()]


def test_credit_counts_what_surely_fits() -> None:
    bench = Bench(spec())
    assert initial_credit_pages(spec(), "host/a") == 16
    assert bench.step(noise(*range(10)), horizon_ns=10) == [("host/a", PagesStored(10, 6))]
    # Same-filled pages take nothing.
    zeros = {10: np.zeros(4096, np.uint8), 11: np.ones(4096, np.uint8)}
    assert bench.step(literal(zeros), horizon_ns=10) == [("host/a", PagesStored(2, 6))]
    assert bench.step(noise(0, 1), horizon_ns=10) == [("host/a", PagesStored(2, 6))]
    # Frees are told when the epoch closes.
    assert bench.step(FreePages(at(0, 1, 2)), horizon_ns=10) == []
    assert bench.step()[0] == ("host/a", PagesStored(0, 9))


def test_a_device_can_be_filled_to_the_last_page() -> None:
    bench = Bench(spec())
    bench.step(noise(*range(16)), horizon_ns=10)
    assert bench.device.store.room_pages == 0
    with pytest.raises(ProtocolError, match="host/a stores 1 pages, its credit is 0"):
        bench.step(noise(20), horizon_ns=10)


def test_hosts_share_what_is_left() -> None:
    shared = pool(compression=LZ4, physical_bytes=9 * 4096, boot_extents=[["host/a", 3, 0, 16]])
    assert [initial_credit_pages(shared, host) for host in ("host/a", "host/b")] == [5, 4]
    bench = Bench(shared)
    assert bench.step(noise(*range(5)), horizon_ns=10) == [("host/a", PagesStored(5, 0))]
    bench.step(FreePages(at(0, 1, 2)), horizon_ns=10)
    assert only(bench.step(), PagesStored) == [("host/a", PagesStored(0, 3))]


def test_an_uncompressed_device_limits_nobody() -> None:
    assert initial_credit_pages(pool(), "host/b") == UNLIMITED_PAGES
    bench = Bench(pool(boot_extents=[["host/a", 3, 0, 64]]))
    assert bench.step(noise(*range(64)), horizon_ns=10) == [("host/a", PagesStored(64, UNLIMITED_PAGES))]


@pytest.mark.parametrize(
    "body", [pages(20), pages(5, 20), FreePages(at(20)), LoadPages(at(20)), pages(64), pages(-1), pages(-2)]
)
def test_a_host_may_only_name_pages_of_its_own_extents(body: Body) -> None:
    bench = Bench(pool(boot_extents=[["host/a", 3, 0, 16], ["host/b", 3, 16, 16], ["host/a", 3, 32, 16]]))
    bench.step(pages(15, 32, 47), bench.message(pages(20), "host/b"), horizon_ns=10)
    with pytest.raises(ProtocolError, match="host/a names a page of device/d that is in no extent"):
        bench.step(body)


def test_a_device_that_keeps_no_content_says_so() -> None:
    with pytest.raises(ProtocolError, match="keeps no content"):
        Bench(spec(stores=False, compression=None)).step(pages(1))
    with pytest.raises(ProtocolError, match="cannot handle EpochBegin"):
        Bench(spec()).step(EpochBegin(0))


# -- extents


def test_grants_go_to_host_and_scheduler() -> None:
    bench = Bench(pool())
    asked = bench.message(AllocExtent("host/b", 3, 16), "scheduler", time_ns=50)
    granted = ExtentGranted("d", "host/b", 3, 0, 16)
    assert bench.step(asked, horizon_ns=50) == [("host/b", granted), ("scheduler", granted)]
    assert bench.device.summary()["granted_by_host"] == {"host/b": 16}


def test_refusals_go_to_host_and_scheduler() -> None:
    bench = Bench(pool(boot_extents=[["host/a", 3, 0, 64]]))
    asked = bench.message(AllocExtent("host/b", 3, 16), "scheduler")
    refused = ExtentRefused("d", "host/b", 3, errno.ENOMEM)
    assert bench.step(asked, horizon_ns=10) == [("host/b", refused), ("scheduler", refused)]


def test_a_released_extent_is_wiped_and_granted_again() -> None:
    bench = Bench(pool(boot_extents=[["host/a", 3, 0, 64]]))
    bench.step(pages(1, 63), horizon_ns=10)
    back = bench.message(ReleaseExtent(3, 0, 64), time_ns=20)
    assert bench.step(back, horizon_ns=20) == [("scheduler", ExtentReleased("d", "host/a", 64))]
    assert bench.device.store.stored_pages == 0
    asked = bench.message(AllocExtent("host/b", 3, 16), "scheduler", time_ns=30)
    assert len(only(bench.step(asked, horizon_ns=30), ExtentGranted)) == 2


@pytest.mark.parametrize("wrong", [(0, 32), (8, 16), (16, 16), (32, 16)])
def test_only_the_holder_gives_an_extent_back_and_as_a_whole(wrong: tuple[int, int]) -> None:
    bench = Bench(pool(boot_extents=[["host/a", 3, 0, 16], ["host/b", 3, 16, 16]]))
    with pytest.raises(ProtocolError, match="not its extent"):
        bench.step(ReleaseExtent(3, *wrong))


def test_an_extent_given_back_twice_is_an_error() -> None:
    bench = Bench(pool(boot_extents=[["host/a", 3, 0, 16]]))
    with pytest.raises(ProtocolError, match="twice"):
        bench.step(ReleaseExtent(3, 0, 16), ReleaseExtent(3, 0, 16))


def test_extents_move_in_the_order_of_time() -> None:
    """The return at 40 arrives before the request of 30: that one must not get it."""
    full = pool(boot_extents=[["host/a", 3, 0, 64]])
    bench = Bench(full)
    sent = bench.step(bench.message(ReleaseExtent(3, 0, 64), time_ns=40), horizon_ns=20)
    assert sent == [("scheduler", ExtentReleased("d", "host/a", 64))] and bench.waits
    asked = [bench.message(AllocExtent("host/b", 3, 16), "scheduler", time_ns=t) for t in (30, 50)]
    assert len(only(bench.step(asked[0], horizon_ns=30), ExtentRefused)) == 2
    assert bench.waits
    assert len(only(bench.step(asked[1], horizon_ns=50), ExtentGranted)) == 2
    assert not bench.waits


def test_boot_extents_must_fit() -> None:
    with pytest.raises(InvariantError, match="boot extent of 16 pages at 16"):
        Device(pool(boot_extents=[["host/a", 3, 16, 16]]), {})


# -- time


def test_the_epoch_closes_once_and_sets_the_next_latencies() -> None:
    bench = Bench(pool())
    half = 12_500_000_000 * EPOCH_NS // 10**9 // 2
    traffic = [bench.message(Traffic(0, half // 2, n), f"host/{n}") for n in (0, 0)]
    assert bench.step(*traffic, horizon_ns=EPOCH_NS - 1) == []
    sent = bench.step()
    report = DeviceReport("d", 0, 3150, 3000, 0, 64 * 4096)
    assert only(sent, DeviceReport) == [("host/a", report), ("host/b", report)]
    ((to, sample),) = only(sent, Sample)
    assert (to, sample.table) == (RESULTS, "device")
    assert sample.rows[0] == {
        "epoch": 0, "time_ns": EPOCH_NS, "device": "d", "granted_pages": 0, "stored_pages": 0,
        "same_filled_pages": 0, "incompressible_pages": 0, "logical_bytes": 0, "compressed_bytes": 0,
        "used_bytes": 0, "capacity_bytes": 64 * 4096, "pages_stored": 0, "pages_freed": 0, "pages_loaded": 0,
        "read_bytes": half // 2 * 2, "write_bytes": 0, "read_ns": 3150, "write_ns": 3000,
        "pages_in": 0, "same_filled_pages_in": 0, "incompressible_pages_in": 0, "logical_bytes_in": 0,
        "compressed_bytes_in": 0, "granule_bytes_in": 0,
    }  # fmt: skip
    assert bench.step() == []
    # The same load again, which does not wait for memory: up to the curve, then hosts know already. Then none.
    loaded = [only(bench.step(Traffic(epoch, half, 0), epoch=epoch), DeviceReport) for epoch in range(1, 6)]
    assert [[r.read_ns for _, r in reports][:1] for reports in loaded] == [[3159], [3160], [3161], [3162], []]
    idle = DeviceReport("d", 6, 3000, 3000, 0, 64 * 4096)
    assert only(bench.step(Traffic(6, 0, 0), epoch=6), DeviceReport) == [("host/a", idle), ("host/b", idle)]


def test_a_report_tells_how_full_the_device_is() -> None:
    bench = Bench(spec())
    reports = only(bench.step(noise(1, 2)), DeviceReport)
    assert reports == [("host/a", DeviceReport("d", 0, 1192, 1192, 2 * 4096, 16 * 4096))]


def test_samples_are_taken_every_so_often() -> None:
    bench = Bench(spec(sample_every=3))
    taken = [len(only(bench.step(epoch=epoch), Sample)) for epoch in range(7)]
    assert taken == [0, 0, 1, 0, 0, 1, 0]


def test_what_arrives_after_the_close_is_handled() -> None:
    bench = Bench(spec())
    bench.step()
    assert bench.step(noise(1), Traffic(0, 64, 0)) == [("host/a", PagesStored(1, 15))]
    ((_, sample),) = only(bench.step(epoch=1), Sample)
    assert (sample.rows[0]["stored_pages"], sample.rows[0]["read_bytes"]) == (1, 64)


# -- state


def test_summary_gives_the_ratios() -> None:
    bench = Bench(spec())
    assert (bench.device.summary()["ratio"], bench.device.summary()["codec"]) == (None, "lz4")
    bench.step(pages(*range(8)))
    bench.step(FreePages(at(0, 1, 2, 3)), noise(9))
    summary = bench.device.summary()
    used = bench.device.store.used_bytes
    assert summary["ratio"] == round(5 * 4096 / used, 3) > 1
    assert summary["ratio_in"] == round(9 * 4096 / (summary["granule_bytes_in"]), 3)
    assert summary["class"] == "compressed-ram"
    assert "ratio" not in Bench(pool()).device.summary()


def program(device_spec: dict[str, Any], seed: int, steps: int, cut: int = -1) -> list[str]:
    """A random program on a device; the digest of what it sent and of its state after each step. At `cut` the
    device is packed, unpacked and put back into a fresh one.
    """
    draw = np.random.default_rng(seed)
    bench = Bench(device_spec)
    hosts = device_spec["hosts"]
    credit = {host: initial_credit_pages(device_spec, host) for host in hosts}
    digests = []
    for epoch in range(steps):
        if epoch == cut:
            header, arrays = plain.pack(bench.device.snapshot())
            bench.device = Device(device_spec, {})
            bench.device.restore(plain.unpack(header, [array.copy() for array in arrays]))
        inbox = []
        for host in hosts:
            owned = [range(s, s + nr) for s, (who, nr) in bench.device.extents.held.items() if who == host]
            mine = np.array([p for extent in owned for p in extent], dtype=np.int32)
            if not len(mine):
                continue
            held = mine[bench.device.store.holds(mine)]
            gone = held[draw.random(len(held)) < 0.3]
            picked = draw.permutation(mine)[: min(int(draw.integers(0, 8)), credit[host])]
            store = (noise if draw.random() < 0.3 and len(picked) else pages)(*picked.tolist())
            bodies = [FreePages(gone), store, Traffic(epoch, int(draw.integers(1 << 22)), 0)]
            inbox += [bench.message(body, host, time_ns=epoch * EPOCH_NS + 5) for body in bodies]
            credit[host] -= len(picked)
        if device_spec["pooled"]:
            asked = AllocExtent(hosts[int(draw.integers(len(hosts)))], 3, 16)
            inbox.append(bench.message(asked, "scheduler", time_ns=epoch * EPOCH_NS + 9))
        sent = bench.step(*inbox, horizon_ns=epoch * EPOCH_NS + 9, epoch=epoch) + bench.step(epoch=epoch)
        for to, body in only(sent, PagesStored):
            credit[to] = body.credit_pages
        shown = [[to, type(body).__name__, str(body)] for to, body in sent]
        digests.append(plain.digest([shown, bench.device.snapshot(), bench.device.counters()]))
    return digests


SPECS = {
    "lz4": spec(),
    "kept": spec(keep_bytes=True, compression=LZ4 | {"codec": "zstd", "block": 1024}),
    "pool": pool(),
    "pooled lz4": pool(compression=LZ4, physical_bytes=30 * 4096),
}


@pytest.mark.parametrize("name", list(SPECS))
@pytest.mark.parametrize("cut", [1, 6])
def test_a_restored_device_goes_on_as_the_first(name: str, cut: int) -> None:
    whole = program(SPECS[name], seed=cut, steps=10)
    assert len(set(whole)) == 10
    assert program(SPECS[name], seed=cut, steps=10, cut=cut) == whole


def test_counters_move_with_content_alone() -> None:
    """Two devices that differ in one version number only are told apart by their counters."""
    found = []
    for version in (0, 1):
        bench = Bench(pool(boot_extents=[["host/a", 3, 0, 16]]))
        bench.step(pages(1, version=version))
        found.append(bench.device.counters())
    assert found[0] != found[1]
    assert {k for k in found[0] if found[0][k] != found[1][k]} == {"inbox_crc"}


def test_without_jit_the_answers_are_the_same() -> None:
    """Extents, granules and generated pages, compiled and as plain Python."""
    code = (
        "import importlib.util, sys\n"
        "where = importlib.util.spec_from_file_location('bench', sys.argv[1])\n"
        "bench = importlib.util.module_from_spec(where); where.loader.exec_module(bench)\n"
        "print(*bench.program(bench.SPECS['pooled lz4'], 5, 3))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, __file__],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == program(SPECS["pooled lz4"], 5, 3)
    assert run.stderr == ""
