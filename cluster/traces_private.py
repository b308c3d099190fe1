"""Finds in page images what must not leave the machine: paths, names of hosts and users, addresses, keys.

Recording blanks every page that is found here, and a test searches the committed recordings again. The
search reads a page as 8-bit text, and as 16-bit and 32-bit text too, since programs hold file names in wide
characters; strings that run over a page boundary are found because neighbouring pages are searched as one.
A miss is possible (text that is compressed or encrypted); a false find costs one blanked page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

#: Top-level folders of a Linux file system, whoever its user is.
_FOLDERS = (
    rb"home|root|work|tmp|usr|proc|etc|lib|lib32|lib64|bin|sbin|dev|var|opt|sys|run|mnt|media|srv|boot|snap"
    rb"|nix"
)

#: Each begins with a sign of its own where it can (what stands before is looked at afterwards): the search skips
#: quickly over all else, and recordings are tens of megabytes.
PATTERNS: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("path", re.compile(rb"/(?:" + _FOLDERS + rb")(?:/|(?![A-Za-z0-9_]))")),
    ("key block", re.compile(rb"BEGIN [A-Z0-9 ]{0,40}(?:KEY|CERTIFICATE)")),
    ("cloud key", re.compile(rb"(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}")),
    (
        "token",
        re.compile(
            rb"gh[pousr]_[A-Za-z0-9]{30}|xox[abprs]-[A-Za-z0-9-]{10}|sk-[A-Za-z0-9]{32}|eyJ[\w-]{17,400}\.eyJ"
        ),
    ),
    ("ssh key", re.compile(rb"ssh-(?:rsa|ed25519|dss) [A-Za-z0-9+/]{20}|ecdsa-sha2-nistp\d+ A")),
    *(
        ("secret in a variable", re.compile(spelling + rb"[A-Za-z0-9_]{0,20}=."))
        for word in (b"password", b"passwd", b"secret", b"api_key", b"apikey", b"access_key", b"auth_token")
        for spelling in (word, word.upper())
    ),
    (
        "environment variable",
        re.compile(
            rb"(?:HOME|PATH|USER|LOGNAME|SHELL|HOSTNAME|PWD|LANG|LC_[A-Z]+|TERM|DISPLAY|MAIL|EDITOR|LD_PRELOAD"
            rb"|PYTHON[A-Z]+|SSH_[A-Z_]+|XDG_[A-Z_]+|DBUS_[A-Z_]+|VIRTUAL_ENV)=[^\0]"
        ),
    ),
    ("IPv4 address", re.compile(rb"\.(?<=\d\.)\d{1,3}\.\d{1,3}\.\d")),
    ("MAC address", re.compile(rb":(?<=[\dA-Fa-f]:)(?:[\dA-Fa-f]{2}:){4}[\dA-Fa-f]")),
    ("mail address", re.compile(rb"@(?<=[A-Za-z0-9_.+-]@)[A-Za-z0-9-]{2,63}\.[A-Za-z]{2,24}(?![A-Za-z0-9])")),
    (
        "domain of a machine",
        re.compile(rb"\.(?<=[a-z0-9-]\.)(?:local|internal|localdomain|lan|corp)(?![A-Za-z0-9_])"),
    ),
)

#: Runs of ASCII characters in 16 and in 32 bits.
_WIDE = {2: re.compile(rb"(?:[ -~]\0){5,}"), 4: re.compile(rb"(?:[ -~]\0\0\0){5,}")}


def find_private(content: bytes, names: Sequence[str] = ()) -> Iterator[tuple[int, int, str, bytes]]:
    """Each find in `content`: its first byte, the byte after its last, what it is, its text.

    `names` are those of the machine and its user, found as whole words.
    """
    words = (re.escape(name.encode()) for name in names if name)
    patterns = (
        *PATTERNS,
        *(("name", re.compile(word + rb"(?<![A-Za-z0-9_]" + word + rb")(?![A-Za-z0-9_])")) for word in words),
    )
    for what, pattern in patterns:
        for match in pattern.finditer(content):
            yield match.start(), match.end(), what, match[0]
    for width, wide in _WIDE.items():
        for run in wide.finditer(content):
            text = run[0][::width]
            for what, pattern in patterns:
                for match in pattern.finditer(text):
                    start = run.start() + match.start() * width
                    yield start, start + len(match[0]) * width, what, match[0]


def private_pages(images: Sequence[np.ndarray], names: Sequence[str] = ()) -> list[int]:
    """Pages (rows of any image, uint8[nr_pages, page_bytes]) that hold something private, ascending."""
    found: set[int] = set()
    for image in images:
        page_bytes = image.shape[1]
        for start, end, _, _ in find_private(image.tobytes(), names):
            found.update(range(start // page_bytes, (end - 1) // page_bytes + 1))
    return sorted(found)
