"""The isolation audit: every ordinary kernel activity against private nodes, under each design, counted."""

from __future__ import annotations

from privmem.cluster.audit.machine import AuditMachine, machine_of
from privmem.cluster.audit.matrix import Cell, audit, audit_cell, letters_of

__all__ = ["AuditMachine", "Cell", "audit", "audit_cell", "letters_of", "machine_of"]
