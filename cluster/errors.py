"""Exceptions about the user's files and the machines under us; re-exports those of the rules and models."""

from __future__ import annotations

from privmem.scheduler.errors import InvariantError, PrivmemError, ProtocolError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "InvariantError",
    "ParticipantLost",
    "PrivmemError",
    "ProtocolError",
    "TraceError",
]


class ConfigError(PrivmemError):
    """The user's configuration or command line is wrong. `problems` holds one line for each mistake."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class TraceError(PrivmemError):
    """A trace or recording is damaged or not of the stated format. The text names the file and the byte
    offset.
    """


class CheckpointError(PrivmemError):
    """A checkpoint is damaged, of another schema version, or of another run."""


class ParticipantLost(PrivmemError):
    """An actor, worker or machine that carried a participant died."""
