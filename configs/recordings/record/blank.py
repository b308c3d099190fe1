"""Searches recordings again and blanks what is found: after a new pattern, or a name that must not travel.

python blank.py redis.pmtrace [NAME ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace

from privmem.cluster.traces import distinct_rows, open_trace, write_trace
from privmem.cluster.traces_private import private_pages


def main() -> int:
    """Blank and write in place; prints how many pages were blanked anew."""
    path, names = sys.argv[1], sys.argv[2:]
    trace = open_trace(path)
    rows, table = trace.images()
    images = [rows[image] for image in table]
    found = private_pages(images, names)
    for image in images:
        image[found] = 0
    if found:
        header = replace(trace.header, blanked_pages=trace.header.blanked_pages + len(found))
        write_trace(path, header, trace.accesses(), distinct_rows(images))
    print(f"{path}: {len(found)} pages blanked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
