"""Load for a Redis under recording: fills it with made-up orders, says `start`, then asks and changes without end.

Speaks to the unix socket `s` in the present folder. The orders that it asks for lie around a centre that
wanders through all of them.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

from made_up import MadeUp

_PIPELINED = 32


class _Client:
    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        for _ in range(600):
            try:
                self._socket.connect(path)
                break
            except OSError:
                time.sleep(0.1)
        self._pending: list[bytes] = []

    def send(self, *words: object) -> None:
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self._pending.append(
            b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)
        )
        if len(self._pending) >= _PIPELINED:
            self.flush()

    def flush(self) -> None:
        """Send what is pending, and read until the last command (an ECHO) has been answered."""
        self._pending.append(b"*2\r\n$4\r\nECHO\r\n$8\r\nend-mark\r\n")
        self._socket.sendall(b"".join(self._pending))
        self._pending = []
        tail = b""
        while not tail.endswith(b"$8\r\nend-mark\r\n"):
            piece = self._socket.recv(1 << 16)
            if not piece:
                sys.exit(0)
            tail = tail[-32:] + piece


def _store(client: _Client, made_up: MadeUp, number: int) -> None:
    record = made_up.record(number)
    client.send("SET", f"order:{number}", json.dumps(record))
    client.send("HSET", f"stock:{number}", "sku", number, "count", number % 97, "place", made_up.words(2))
    client.send("ZADD", "by-total", record["total"], f"order:{number}")


def main() -> None:
    """Fill, then load without end."""
    nr_records, nr_asked_a_lap = int(sys.argv[1]), int(sys.argv[2])
    made_up = MadeUp(1, (20, 160))
    client = _Client("s")
    for number in range(nr_records):
        _store(client, made_up, number)
        if number % 16 == 0:
            client.send("SET", f"picture:{number}", made_up.blob(1500))
    client.flush()
    Path("start").touch()
    asked = 0
    while True:
        number = made_up.hot_number(asked * nr_records / nr_asked_a_lap, nr_records // 24, nr_records)
        chance = made_up.chance()
        asked += 1
        if chance < 0.60:
            client.send("GET", f"order:{number}")
        elif chance < 0.78:
            client.send("HINCRBY", f"stock:{number}", "count", 1)
        elif chance < 0.81:
            _store(client, made_up, number)
        elif chance < 0.91:
            client.send("ZRANGEBYSCORE", "by-total", number % 900, number % 900 + 1, "LIMIT", 0, 10)
        elif chance < 0.97:
            client.send("HGETALL", f"stock:{number}")
        else:
            client.send("GET", f"picture:{number // 16 * 16}")


if __name__ == "__main__":
    main()
