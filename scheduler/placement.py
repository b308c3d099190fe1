"""The Scheduler participant: admission of extent requests on devices that several hosts share.

No host may decide alone how a pooled device is divided, so hosts ask here. How much a request gets is settled by
the device's account (`pool_account.py`); the device then picks the extents. Requests are contended: one is settled
only when no host can still send an earlier one (`Clock.horizon_ns`), in the order of (time, sender, seq), so rounds
never reorder time.

A request that gets nothing is refused at once and never queued behind others' returns: nobody waits for ever. It is
remembered as demand, and in a pool with a policy for giving back the hosts above their share are asked for extents,
so that the next request finds them. Removals that the configuration plans are forced: the host must give back.

There is no kernel counterpart; the split of roles follows CXL's fabric manager (dynamic capacity devices,
CXL 3.0), which decides and lets the device offer the extent.
"""

from __future__ import annotations

from typing import Any

from privmem.scheduler.errors import InvariantError, ProtocolError
from privmem.scheduler.messages import (
    RESULTS,
    AllocExtent,
    EpochBegin,
    ExtentGranted,
    ExtentRefused,
    ExtentReleased,
    ExtentUse,
    Message,
    ReclaimAnswered,
    ReclaimExtent,
    RequestExtent,
    Sample,
)
from privmem.scheduler.participant import Clock, Mailer, Outbox
from privmem.scheduler.pool_account import DeviceAccount

_DEVICE_PREFIX = "device/"


class Scheduler:
    """The participant. Spec, as plain data:

    `{"name": "scheduler", "hosts": [addresses], "devices": {NAME: {"capacity_pages", "extent_pages",
    "pooled"; and optional: "quota_pages", "reserved_pages" {host: pages}, "weights" {host: weight}, "give_back"
    (see pool_shares.py), "removals" [[time_ns, host, pages]], "granted" {host: pages online at boot}}}}`
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name: str = spec.get("name", "scheduler")
        hosts = list(spec["hosts"])
        self.devices = {
            name: DeviceAccount(name, device, hosts) for name, device in sorted(spec["devices"].items())
        }
        #: What waits for the horizon: [time_ns, sender, seq, kind, device, host, numbers of the kind ...]. Kept
        #: sorted, so that the head is the next to be settled. Planned removals wait there from the start.
        self.queue: list[list[Any]] = [
            [int(time_ns), self.name, -1 - number, "remove", name, host, int(pages)]
            for name, device in sorted(spec["devices"].items())
            for number, (time_ns, host, pages) in enumerate(device.get("removals") or [])
        ]
        self.mail = Mailer(self.name)
        #: The last epoch that was sampled.
        self.epoch = -1
        self.requests = 0

    def step(self, inbox: list[Message], clock: Clock) -> Outbox:
        """Book what devices report, then settle all requests up to the horizon."""
        for message in inbox:
            self._receive(message)
        self.queue.sort(key=lambda row: row[:3])
        while self.queue and self.queue[0][0] <= clock.horizon_ns:
            self._settle(self.queue.pop(0))
        if clock.horizon_ns >= clock.end_ns and clock.epoch > self.epoch:
            self._sample(clock)
            self.epoch = clock.epoch
        return Outbox(self.mail.take(), clock.end_ns, waits_for_horizon=bool(self.queue), finished=True)

    def _receive(self, message: Message) -> None:
        body = message.body
        envelope = [message.time_ns, message.sender, message.seq]
        match body:
            case EpochBegin():
                pass
            case RequestExtent():
                account = self._account(body.device, message)
                pages = account.round_up(body.nr_pages)
                self.queue.append([*envelope, "ask", account.name, message.sender, body.nid, pages])
                self.requests += 1
            case ExtentReleased():
                account = self._account(body.device, message)
                self.queue.append([*envelope, "return", account.name, body.host, body.nr_pages])
            case ReclaimAnswered():
                account = self._account(body.device, message)
                numbers = [body.asked_pages, body.released_pages, body.lost_pages]
                self.queue.append([*envelope, "answer", account.name, message.sender, *numbers])
            case ExtentUse():
                account = self._account(body.device, message)
                self.queue.append([*envelope, "use", account.name, message.sender, body.accesses])
            case ExtentGranted():
                account = self._account(body.device, message)
                account.confirm(body.host, body.nid, body.nr_pages, body.more_pages)
            case ExtentRefused():
                self._account(body.device, message).fail(body.host, body.nid)
            case _:
                raise ProtocolError(f"{self.name} cannot handle {type(body).__name__} from {message.sender}")

    def _account(self, device: str, message: Message) -> DeviceAccount:
        account = self.devices.get(device.removeprefix(_DEVICE_PREFIX))
        if account is None:
            raise ProtocolError(f"{message.sender} speaks of the unknown device {device!r}")
        return account

    def _settle(self, row: list[Any]) -> None:
        time_ns, _, _, kind, device, host, *numbers = row
        account = self.devices[device]
        match kind:
            case "ask":
                self._answer(account, host, numbers[0], numbers[1], time_ns)
            case "return":
                account.release(host, numbers[0])
            case "answer":
                account.answered(host, numbers[0], numbers[1], numbers[2], time_ns)
            case "use":
                account.accesses[host] = numbers[0]
            case "remove":
                account.note_asked(host, numbers[0])
                self.mail.send(host, time_ns, ReclaimExtent(_DEVICE_PREFIX + device, numbers[0], True))

    def _answer(self, account: DeviceAccount, host: str, nid: int, nr_pages: int, time_ns: int) -> None:
        address = _DEVICE_PREFIX + account.name
        pages = account.admit(host, nid, nr_pages, time_ns)
        if pages < 0:
            account.refused[host] += 1
            self.mail.send(host, time_ns, ExtentRefused(address, host, nid, -pages))
        else:
            self.mail.send(address, time_ns, AllocExtent(host, nid, pages))
        for holder, back_pages in account.ask_back(time_ns):
            self.mail.send(holder, time_ns, ReclaimExtent(address, back_pages, False))

    def _sample(self, clock: Clock) -> None:
        """One row a device and host, when the epoch is over; an epoch without requests has none."""
        entitled = {name: account.entitled_pages() for name, account in self.devices.items()}
        rows = [
            {
                "epoch": clock.epoch,
                "time_ns": clock.end_ns,
                "device": name,
                "host": host,
                "granted_pages": account.granted[host],
                "refused": account.refused[host],
                "entitled_pages": entitled[name][host],
                "wanted_pages": account.wants.get(host, [0])[0],
                "asked_back_pages": account.asked_back[host],
                "peak_pages": account.peak_pages[host],
            }
            for name, account in self.devices.items()
            for host in account.members
        ]
        if rows:
            self.mail.send(RESULTS, clock.end_ns, Sample("scheduler", rows))

    def snapshot(self) -> dict[str, Any]:
        """The whole state."""
        return {
            "seq": self.mail.seq,
            "epoch": self.epoch,
            "requests": self.requests,
            "queue": [list(row) for row in self.queue],
            "devices": {name: account.snapshot() for name, account in self.devices.items()},
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot of a scheduler with the same spec."""
        self.mail = Mailer(self.name, int(snapshot["seq"]))
        self.epoch = int(snapshot["epoch"])
        self.requests = int(snapshot["requests"])
        self.queue = [list(row) for row in snapshot["queue"]]
        for name, account in self.devices.items():
            account.restore(snapshot["devices"][name])

    def counters(self) -> dict[str, int]:
        """Totals over all devices."""
        accounts = self.devices.values()
        return {
            "seq": self.mail.seq,
            "queued": len(self.queue),
            "requests": self.requests,
            "granted_pages": sum(sum(a.granted.values()) for a in accounts),
            "promised_pages": sum(a.promised_pages for a in accounts),
            "released_pages": sum(a.released_pages for a in accounts),
            "refused": sum(sum(a.refused.values()) for a in accounts),
        }

    def summary(self) -> dict[str, Any]:
        """By device, see `DeviceAccount.summary`."""
        devices = {name: account.summary() for name, account in self.devices.items()}
        return {"requests": self.requests, "devices": devices}

    def validate(self) -> None:
        """All accounts; and the queue is in order."""
        for account in self.devices.values():
            account.validate()
        keys = [row[:3] for row in self.queue]
        if keys != sorted(keys):
            raise InvariantError("the scheduler's queue is out of order")
