"""Makes what QEMU boots: a kernel out of a Debian package, and an initramfs of one static program, the modules that
it needs, and the programs to run.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GUEST_SOURCE = Path(__file__).with_name("guest.c")
#: The nodes of a file in "newc" format: regular file, folder, character device.
_REGULAR, _FOLDER = 0o100755, 0o040755


@dataclass(frozen=True)
class Kernel:
    """An unpacked Debian kernel package."""

    version: str  # upstream's, such as 6.1.176
    image: Path
    modules: dict[str, Path]

    def load_order(self, wanted: list[str]) -> list[str]:
        """The modules of the list with all that they depend on, dependencies first; built-in ones are left out."""
        order: list[str] = []

        def visit(name: str) -> None:
            if name in order or name not in self.modules:
                return
            for needed in _dependencies(self.module(name)):
                visit(needed)
            order.append(name)

        for name in wanted:
            visit(name)
        return order

    def module(self, name: str) -> bytes:
        """The module's content, unpacked."""
        path = self.modules[name]
        content = path.read_bytes()
        return lzma.decompress(content) if path.suffix == ".xz" else content


def _dependencies(content: bytes) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def unpack_kernel(package: Path, folder: Path) -> Kernel:
    """Unpack a `linux-image-*.deb` into a folder."""
    if not package.exists():
        raise SystemExit(f"{package}: no such file; see docs/oracle.md for how to get a kernel")
    folder = folder / package.stem
    if not folder.exists():
        folder.mkdir(parents=True)
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    images = sorted((folder / "boot").glob("vmlinuz-*"))
    if not images:
        raise SystemExit(f"{package}: holds no kernel (boot/vmlinuz-*)")
    modules = {
        path.name.split(".")[0].replace("-", "_"): path
        for path in folder.glob("lib/modules/*/kernel/**/*.ko*")
    }
    field = ["dpkg-deb", "-f", str(package), "Version"]
    version = subprocess.run(field, check=True, capture_output=True, text=True).stdout
    return Kernel(version.strip().partition("-")[0], images[0], modules)


def build_guest(folder: Path) -> Path:
    """Compile the first process."""
    if shutil.which("gcc") is None:
        raise SystemExit("gcc is missing: apt-get install gcc libc6-dev")
    target = folder / "guest"
    subprocess.run(["gcc", "-O1", "-static", "-o", str(target), str(GUEST_SOURCE)], check=True)
    return target


def write_initramfs(target: Path, files: dict[str, bytes]) -> None:
    """A gzipped cpio archive ("newc") of files by their path; folders come by themselves."""
    folders = sorted({str(parent) for name in files for parent in Path(name).parents if str(parent) != "."})
    entries = [(name, _FOLDER, b"") for name in folders]
    entries += [(name, _REGULAR, content) for name, content in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    archive = bytearray()
    for inode, (name, mode, content) in enumerate(entries, 1):
        encoded = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        archive += b"\0" * (-len(archive) % 4)
        archive += content + b"\0" * (-len(content) % 4)
    target.write_bytes(gzip.compress(bytes(archive), 1))


def make_disk(target: Path, size_bytes: int, kind: str) -> None:
    """An empty disk: with an ext4 file system, or a swap area (`mkswap`'s header, version 1)."""
    with target.open("wb") as file:
        file.truncate(size_bytes)
        if kind == "swap":
            header = bytearray(4096)
            header[1024:1032] = (1).to_bytes(4, "little") + (size_bytes // 4096 - 1).to_bytes(4, "little")
            header[4086:] = b"SWAPSPACE2"
            file.write(header)
    if kind == "ext4":
        mkfs = shutil.which("mke2fs") or shutil.which("mke2fs", path="/sbin:/usr/sbin")
        if mkfs is None:
            raise SystemExit("mke2fs is missing: apt-get install e2fsprogs")
        subprocess.run([mkfs, "-q", "-F", "-t", "ext4", "-b", "4096", str(target)], check=True)
