"""`python -m tests.support.forgetful MOUNT AFTER`: a file system that keeps what was synced, and forgets the rest.

It lives in memory. Unmounting it is the power loss: what a careful disk would still hold is then written to the folder AFTER.
A file's bytes are kept as of its last fsync; a name (made, renamed, linked, removed) only when its folder was synced.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mfusepy as fuse


@dataclass(eq=False)
class Node:
    """One file or folder, as it is and as it would be after a power loss."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    kept: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)
    kept_names: dict[str, Node] = field(default_factory=dict)
    links: int = 1
    changed: float = field(default_factory=time.time)

    def dump(self, place: Path) -> None:
        """Write what is kept to a real place."""
        if stat.S_ISDIR(self.mode):
            place.mkdir(mode=self.mode & 0o777, exist_ok=True)
            for name, node in self.kept_names.items():
                node.dump(place / name)
        else:
            place.write_bytes(self.kept)
            place.chmod(self.mode & 0o777)


class Forgetful(fuse.Operations):  # type: ignore[misc]
    """The file system; single-threaded."""

    use_ns = True

    def __init__(self) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self._open: dict[int, Node] = {}
        self._numbers = itertools.count(1)

    def _node(self, path: str) -> Node:
        node = self.root
        for part in path.split("/"):
            if part:
                found = node.names.get(part)
                if found is None:
                    raise fuse.FuseOSError(errno.ENOENT)
                node = found
        return node

    def _place(self, path: str) -> tuple[Node, str]:
        folder, _, name = path.rpartition("/")
        return self._node(folder), name

    def _handle(self, node: Node) -> int:
        number = next(self._numbers)
        self._open[number] = node
        return number

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        node = self._open[fh] if fh and fh in self._open else self._node(path)
        at = int(node.changed * 1e9)
        return {
            "st_mode": node.mode,
            "st_nlink": node.links,
            "st_size": len(node.data),
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            "st_mtime": at,
            "st_atime": at,
            "st_ctime": at,
        }

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._node(path).names]

    def statfs(self, path: str) -> dict[str, int]:
        return {
            "f_bsize": 4096,
            "f_blocks": 1 << 20,
            "f_bfree": 1 << 20,
            "f_bavail": 1 << 20,
            "f_namemax": 255,
        }

    # ------------------------------------------------------------ names

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        folder, name = self._place(path)
        folder.names[name] = Node(stat.S_IFREG | mode)
        return self._handle(folder.names[name])

    def mkdir(self, path: str, mode: int) -> int:
        folder, name = self._place(path)
        folder.names[name] = Node(stat.S_IFDIR | mode)
        return 0

    def link(self, target: str, source: str) -> int:
        node = self._node(source)
        folder, name = self._place(target)
        folder.names[name] = node
        node.links += 1
        return 0

    def unlink(self, path: str) -> int:
        folder, name = self._place(path)
        folder.names.pop(name).links -= 1
        return 0

    def rmdir(self, path: str) -> int:
        folder, name = self._place(path)
        if folder.names[name].names:
            raise fuse.FuseOSError(errno.ENOTEMPTY)
        del folder.names[name]
        return 0

    def rename(self, old: str, new: str) -> int:
        folder, name = self._place(old)
        target, fresh = self._place(new)
        if target.names.get(fresh) is folder.names[name]:
            return 0  # two names of one file: POSIX does nothing
        target.names[fresh] = folder.names.pop(name)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        node = self._node(path)
        node.kept_names = dict(node.names)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        self._node(path).mode = mode
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        return 0

    # ------------------------------------------------------------ bytes

    def open(self, path: str, flags: int) -> int:
        return self._handle(self._node(path))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._open[fh].data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        node = self._open[fh]
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        node.changed = time.time()
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        node = self._open[fh] if fh and fh in self._open else self._node(path)
        del node.data[length:]
        node.data.extend(bytes(length - len(node.data)))
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        node = self._open[fh]
        node.kept = bytes(node.data)
        return 0

    def release(self, path: str, fh: int) -> int:
        self._open.pop(fh, None)
        return 0


def main(mount: str, after: str) -> None:
    """Mount, tell so, serve until unmounted, then write what is kept."""

    class Telling(Forgetful):
        def init(self, path: str) -> None:
            print("mounted", flush=True)

    system = Telling()
    options = {"attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}
    fuse.FUSE(system, mount, foreground=True, nothreads=True, **options)
    system.root.dump(Path(after))


if __name__ == "__main__":
    main(*sys.argv[1:3])
