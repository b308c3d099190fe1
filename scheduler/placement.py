"""The Scheduler participant: admission of extent requests on devices that several hosts share.

No host may decide alone how a pooled device is divided, so hosts ask here. A request is admitted when the
device has the pages and the host is within its quota there; the device then picks the extent. Requests are
contended: one is settled only when no host can still send an earlier one (`Clock.horizon_ns`), in the order
of (time, sender, seq), so rounds never reorder time.

The policy is first come, first served in virtual time. A request that cannot be admitted is refused at once
and never queued behind others' returns: nobody waits for ever, and a host that wants more than others is
held by its quota. Weights and reclaim from other hosts are left out.

There is no kernel counterpart; the split of roles follows CXL's fabric manager (dynamic capacity devices,
CXL 3.0), which decides and lets the device offer the extent.
"""

from __future__ import annotations

import errno
from typing import Any

from privmem.scheduler.errors import InvariantError, ProtocolError
from privmem.scheduler.messages import (
    RESULTS,
    AllocExtent,
    EpochBegin,
    ExtentGranted,
    ExtentRefused,
    ExtentReleased,
    Message,
    RequestExtent,
    Sample,
)
from privmem.scheduler.participant import Clock, Mailer, Outbox

_DEVICE_PREFIX = "device/"


class DeviceAccount:
    """What the scheduler knows of one device: who holds how much, and what was promised."""

    def __init__(self, name: str, spec: dict[str, Any], hosts: list[str]) -> None:
        self.name = name
        self.capacity_pages = int(spec["capacity_pages"])
        self.extent_pages = int(spec["extent_pages"])
        self.pooled = bool(spec["pooled"])
        self.quota_pages: dict[str, int] = dict(spec.get("quota_pages") or {})
        boot: dict[str, int] = dict(spec.get("granted") or {})
        for host in [*boot, *self.quota_pages]:
            if host not in hosts:
                raise ProtocolError(f"device {name} names the unknown host {host!r}")
        self.boot_pages = sum(boot.values())
        #: Hosts that may ask: all for a pooled device, else those that have a share from the start.
        self.members = (
            list(hosts) if self.pooled else [h for h in hosts if h in boot or h in self.quota_pages]
        )
        self.granted = {host: int(boot.get(host, 0)) for host in self.members}
        #: Admitted, not yet answered by the device: [host, nid, pages], in the order of admission.
        self.promised: list[list[Any]] = []
        self.refused = dict.fromkeys(hosts, 0)
        self.admitted_pages = 0
        self.confirmed_pages = 0
        self.failed_pages = 0
        self.released_pages = 0

    @property
    def promised_pages(self) -> int:
        """Pages of requests that the device has not answered yet."""
        return sum(int(pages) for _, _, pages in self.promised)

    def round_up(self, nr_pages: int) -> int:
        """Whole extents that hold `nr_pages`."""
        return -(-nr_pages // self.extent_pages) * self.extent_pages

    def admit(self, host: str, nid: int, nr_pages: int) -> int:
        """Promise pages to a host: 0, or the positive errno of the refusal."""
        if host not in self.granted:
            return errno.EPERM
        if nr_pages <= 0:
            return errno.EINVAL
        held = self.granted[host] + sum(int(pages) for h, _, pages in self.promised if h == host)
        quota = self.quota_pages.get(host)
        if quota is not None and held + nr_pages > quota:
            return errno.EDQUOT
        if sum(self.granted.values()) + self.promised_pages + nr_pages > self.capacity_pages:
            return errno.ENOMEM
        self.promised.append([host, nid, nr_pages])
        self.admitted_pages += nr_pages
        return 0

    def settle(self, host: str, nid: int) -> int:
        """Take the oldest promise to this host and node off the list; how many pages it was."""
        for position, (promised_host, promised_nid, pages) in enumerate(self.promised):
            if (promised_host, promised_nid) == (host, nid):
                del self.promised[position]
                return int(pages)
        raise ProtocolError(f"{self.name} answered {host} node {nid}, to whom nothing was promised")

    def validate(self) -> None:
        """Raise InvariantError unless the sums agree with the pages counted on the way."""
        granted, promised = sum(self.granted.values()), self.promised_pages
        if granted != self.boot_pages + self.confirmed_pages - self.released_pages:
            raise InvariantError(f"{self.name}: {granted} pages granted, but the counters say otherwise")
        if promised != self.admitted_pages - self.confirmed_pages - self.failed_pages:
            raise InvariantError(f"{self.name}: {promised} pages promised, but the counters say otherwise")
        if min(self.granted.values(), default=0) < 0 or granted + promised > self.capacity_pages:
            raise InvariantError(f"{self.name}: {granted} + {promised} pages of {self.capacity_pages}")
        for host, quota in self.quota_pages.items():
            if self.granted[host] > quota:
                raise InvariantError(f"{self.name}: {host} holds {self.granted[host]} of its {quota} pages")

    _NUMBERS = ("admitted_pages", "confirmed_pages", "failed_pages", "released_pages")

    def snapshot(self) -> dict[str, Any]:
        """The account as plain data."""
        numbers = {name: getattr(self, name) for name in self._NUMBERS}
        return numbers | {
            "granted": dict(self.granted),
            "promised": [list(row) for row in self.promised],
            "refused": dict(self.refused),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take over a snapshot."""
        for name in self._NUMBERS:
            setattr(self, name, snapshot[name])
        self.granted = {host: int(snapshot["granted"][host]) for host in self.members}
        self.promised = [list(row) for row in snapshot["promised"]]
        self.refused = {host: int(count) for host, count in snapshot["refused"].items()}


class Scheduler:
    """The participant. Spec, as plain data:

    `{"name": "scheduler", "hosts": [addresses], "devices": {NAME: {"capacity_pages", "extent_pages",
    "pooled", "quota_pages": {host: pages} (optional), "granted": {host: pages online at boot}
    (optional)}}}`
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name: str = spec.get("name", "scheduler")
        hosts = list(spec["hosts"])
        self.devices = {
            name: DeviceAccount(name, device, hosts) for name, device in sorted(spec["devices"].items())
        }
        #: Requests and returns that wait for the horizon: [time_ns, sender, seq, device, host, nid, pages];
        #: a return has nid -1. Kept sorted, so that the head is the next to be settled.
        self.queue: list[list[Any]] = []
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
                self.queue.append([*envelope, account.name, message.sender, body.nid, pages])
                self.requests += 1
            case ExtentReleased():
                account = self._account(body.device, message)
                self.queue.append([*envelope, account.name, body.host, -1, body.nr_pages])
            case ExtentGranted():
                account = self._account(body.device, message)
                if account.settle(body.host, body.nid) != body.nr_pages:
                    raise ProtocolError(f"{message.sender} granted {body.nr_pages} pages, not those promised")
                account.confirmed_pages += body.nr_pages
                account.granted[body.host] += body.nr_pages
            case ExtentRefused():
                account = self._account(body.device, message)
                account.failed_pages += account.settle(body.host, body.nid)
                account.refused[body.host] += 1
            case _:
                raise ProtocolError(f"{self.name} cannot handle {type(body).__name__} from {message.sender}")

    def _account(self, device: str, message: Message) -> DeviceAccount:
        account = self.devices.get(device.removeprefix(_DEVICE_PREFIX))
        if account is None:
            raise ProtocolError(f"{message.sender} speaks of the unknown device {device!r}")
        return account

    def _settle(self, row: list[Any]) -> None:
        time_ns, _, _, device, host, nid, pages = row
        account = self.devices[device]
        if nid < 0:
            if account.granted.get(host, 0) < pages:
                raise ProtocolError(f"{host} gave back {pages} pages of {device}, more than it holds")
            account.granted[host] -= pages
            account.released_pages += pages
            return
        error = account.admit(host, nid, pages)
        if error:
            account.refused[host] += 1
            self.mail.send(host, time_ns, ExtentRefused(_DEVICE_PREFIX + device, host, nid, error))
        else:
            self.mail.send(_DEVICE_PREFIX + device, time_ns, AllocExtent(host, nid, pages))

    def _sample(self, clock: Clock) -> None:
        """One row a device and host, when the epoch is over; an epoch without requests has none."""
        rows = [
            {
                "epoch": clock.epoch,
                "time_ns": clock.end_ns,
                "device": name,
                "host": host,
                "granted_pages": account.granted[host],
                "refused": account.refused[host],
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
        """By device: capacity, and what each host holds and was refused."""
        devices = {
            name: {
                "capacity_pages": account.capacity_pages,
                "granted_pages": dict(account.granted),
                "granted_since_boot_pages": account.confirmed_pages,
                "released_pages": account.released_pages,
                "refused": dict(account.refused),
            }
            for name, account in self.devices.items()
        }
        return {"requests": self.requests, "devices": devices}

    def validate(self) -> None:
        """All accounts; and the queue is in order."""
        for account in self.devices.values():
            account.validate()
        keys = [row[:3] for row in self.queue]
        if keys != sorted(keys):
            raise InvariantError("the scheduler's queue is out of order")
