"""Exceptions that the rules and models raise; `cluster/errors.py` adds those about files and machines.

Failures of the emulated kernel (ENOMEM, EBUSY, EINVAL ...) are return values, never exceptions. An exception
here is about us: it says whose fault it is.
"""

from __future__ import annotations


class PrivmemError(Exception):
    """Base of every exception that privmem raises on purpose; never raised itself."""


class ProtocolError(PrivmemError):
    """A participant received a message that its sender must not send, or bytes that are not a message."""


class InvariantError(PrivmemError):
    """privmem itself is wrong: an invariant that the code promises does not hold."""
