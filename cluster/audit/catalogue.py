"""All rows of the audit, in the order of the matrix."""

from __future__ import annotations

from privmem.cluster.audit.activities import MOVING
from privmem.cluster.audit.in_place import IN_PLACE

ACTIVITIES = (*MOVING, *IN_PLACE)
