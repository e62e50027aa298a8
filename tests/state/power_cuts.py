"""Power cuts: what a run does to its files is recorded, and the file system as a cut may leave it is made again from that.

What was fsynced is there, contents by the fsync of a file, names by the fsync of its directory. What was not is, by mode:

- lost: gone;
- torn: there up to some byte of what was written last, with all names;
- holed: there or not, each page of 4 KiB by itself, with all names;
- reordered: there or not, each write and each name by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import stat
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

Mode = Literal["lost", "torn", "holed", "reordered"]
_PAGE = 4096


class _Write(NamedTuple):
    """data: None cuts the file, or extends it, to `offset`."""

    file: int
    offset: int
    data: bytes | None


class _Names(NamedTuple):
    """Changed names in one directory. What each is then: a file's number, where a link leads to, a directory, or nothing."""

    names: dict[str, int | str | None]


class _Sync(NamedTuple):
    """file: its number, or the name of a directory."""

    file: int | str


_DIRECTORY = -1


class Recorder:
    """Records what this process does below a directory. operations: in their order, so far.

    What is there at first is surely on disk; the first operations make it.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.operations: list[_Write | _Names | _Sync] = []
        self._numbers: dict[int, int] = {}  # by inode
        self._contents: dict[int, bytes] = {}
        self._next = itertools.count()
        for path in [root, *sorted(root.rglob("*"))] if root.is_dir() else []:
            self._found(path, os.path.relpath(path, root))

    def _found(self, path: Path, name: str) -> None:
        what: int | str = _DIRECTORY
        if path.is_symlink():
            what = os.readlink(path)
        elif path.is_file():
            what = next(self._next)
            self._numbers[path.stat().st_ino] = what
            self._contents[what] = path.read_bytes()
            self.operations += [_Write(what, 0, self._contents[what]), _Sync(what)]
        self.operations += [_Names({name: what}), _Sync(os.path.dirname(name) or ".")]

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        names = (
            "open", "pwrite", "write", "ftruncate", "fsync", "replace", "rename", "unlink", "link", "symlink", "mkdir", "rmdir",
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(mock.patch.object(os, name, self._recorded(getattr(os, name), getattr(self, f"_{name}"))))
            yield

    @staticmethod
    def _recorded(real: Any, record: Any) -> Any:
        return lambda *arguments, **options: record(real, *arguments, **options)

    def _name(self, path: Any, dir_fd: int | None = None) -> str | None:
        """A path below the root."""
        folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        name = os.path.relpath(os.path.join(folder, path), self.root)
        return None if name.startswith("..") else name

    def _number(self, descriptor: int) -> int | None:
        return self._numbers.get(os.fstat(descriptor).st_ino)

    def _look(self, number: int, descriptor: int) -> None:
        """What was written through a buffer is seen here."""
        with contextlib.closing(_Reader(descriptor)) as reader:
            now, before = reader.read(), self._contents[number]
        if now != before:
            same = next(
                (at for at, (one, other) in enumerate(zip(now, before, strict=False)) if one != other),
                min(len(now), len(before)),
            )
            if len(now) < len(before):
                self.operations.append(_Write(number, len(now), None))
            if now[same:]:
                self.operations.append(_Write(number, same, now[same:]))
            self._contents[number] = now

    def _open(self, real: Any, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        name = self._name(path, **options)
        new = name is not None and flags & os.O_CREAT and not os.path.lexists(path)
        descriptor: int = real(path, flags, *rest, **options)
        if new:
            assert name is not None
            number = next(self._next)
            self._numbers[os.fstat(descriptor).st_ino] = number
            self._contents[number] = b""
            self.operations.append(_Names({name: number}))
        return descriptor

    def _pwrite(self, real: Any, descriptor: int, data: Any, *rest: Any) -> int:
        written: int = real(descriptor, data, *rest)
        if (number := self._number(descriptor)) is not None:
            self._look(number, descriptor)
        return written

    _write = _pwrite

    def _ftruncate(self, real: Any, descriptor: int, size: int) -> None:
        real(descriptor, size)
        if (number := self._number(descriptor)) is not None:
            self._look(number, descriptor)

    def _fsync(self, real: Any, descriptor: int) -> None:
        about = os.fstat(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if stat.S_ISDIR(about.st_mode):
            if (name := self._name(path)) is not None:
                self.operations.append(_Sync(name))
        elif (number := self._numbers.get(about.st_ino)) is not None:
            self._look(number, descriptor)
            self.operations.append(_Sync(number))

    def _replace(self, real: Any, source: Any, target: Any, **options: Any) -> None:
        about = os.lstat(source)
        what = os.readlink(source) if stat.S_ISLNK(about.st_mode) else self._numbers.get(about.st_ino)
        real(source, target, **options)
        one, other = self._name(source), self._name(target)
        if one is not None and other is not None:
            self.operations.append(_Names({one: None, other: what}))

    _rename = _replace

    def _unlink(self, real: Any, path: Any, **options: Any) -> None:
        name = self._name(path, **options)
        real(path, **options)
        if name is not None:
            self.operations.append(_Names({name: None}))

    _rmdir = _unlink

    def _link(self, real: Any, source: Any, target: Any, **options: Any) -> None:
        real(source, target, **options)
        if (name := self._name(target)) is not None:
            self.operations.append(_Names({name: self._numbers[os.stat(source).st_ino]}))

    def _symlink(self, real: Any, target: Any, path: Any, *rest: Any, **options: Any) -> None:
        real(target, path, *rest, **options)
        if (name := self._name(path)) is not None:
            self.operations.append(_Names({name: os.fspath(target)}))

    def _mkdir(self, real: Any, path: Any, *rest: Any, **options: Any) -> None:
        real(path, *rest, **options)
        if (name := self._name(path)) is not None:
            self.operations.append(_Names({name: _DIRECTORY}))


class _Reader:
    """A file's bytes by any descriptor of it, also one that is only for writing."""

    def __init__(self, descriptor: int) -> None:
        self._stream = open(f"/proc/self/fd/{descriptor}", "rb")  # noqa: SIM115

    def read(self) -> bytes:
        return self._stream.read()

    def close(self) -> None:
        self._stream.close()


class _File:
    def __init__(self) -> None:
        self.durable = b""
        self.pending: list[_Write] = []

    def sync(self) -> None:
        self.durable, self.pending = _applied(self.durable, self.pending), []

    def after(self, mode: Mode, chance: random.Random) -> bytes:
        if mode == "lost" or not self.pending:
            return self.durable
        if mode == "torn":
            count = chance.randrange(len(self.pending) + 1)
            kept, rest = self.pending[:count], self.pending[count:]
            if rest and rest[0].data:
                kept = [*kept, rest[0]._replace(data=rest[0].data[: chance.randrange(len(rest[0].data))])]
            return _applied(self.durable, kept)
        if mode == "reordered":
            return _applied(self.durable, [each for each in self.pending if chance.random() < 0.5])
        now = _applied(self.durable, self.pending)
        size = len(now) if chance.random() < 0.8 else min(len(self.durable), len(now))
        content = bytearray(self.durable[:size].ljust(size, b"\0"))
        for start in range(0, size, _PAGE):
            if chance.random() < 0.6:
                content[start : start + _PAGE] = now[start : min(size, start + _PAGE)]
        return bytes(content)


def _applied(content: bytes, writes: list[_Write]) -> bytes:
    after = bytearray(content)
    for _, offset, data in writes:
        after.extend(bytes(max(0, offset - len(after))))
        if data is None:
            del after[offset:]
        else:
            after[offset : offset + len(data)] = data
    return bytes(after)


def make_again(recorder: Recorder, operations: int, mode: Mode, chance: random.Random, root: Path) -> None:
    """Fill an empty directory with what a cut after so many operations leaves."""
    files: dict[int, _File] = defaultdict(_File)
    durable: dict[str, int | str | None] = {".": _DIRECTORY}
    pending: dict[str, list[_Names]] = defaultdict(list)  # by directory
    for operation in recorder.operations[:operations]:
        match operation:
            case _Write():
                files[operation.file].pending.append(operation)
            case _Names(names):
                pending[os.path.dirname(next(iter(names))) or "."].append(operation)
            case _Sync(str(name)):
                for each in pending.pop(name, []):
                    durable.update(each.names)
            case _Sync(int(number)):
                files[number].sync()
    for changes in pending.values():
        for each in _kept(changes, mode, chance):
            durable.update(each.names)
    root.mkdir()
    for name, what in sorted(durable.items(), key=lambda item: item[0].count("/")):
        path = root / name
        if what is None or not path.parent.is_dir() or name == ".":
            continue
        if what == _DIRECTORY:
            path.mkdir()
        elif isinstance(what, str):
            path.symlink_to(what)
        else:
            path.write_bytes(files[what].after(mode, chance))


def _kept(changes: list[_Names], mode: Mode, chance: random.Random) -> list[_Names]:
    """Of the same name, no change is there without those before it."""
    if mode == "lost":
        return []
    if mode != "reordered":
        return changes
    kept, gone = list[_Names](), set[str]()
    for each in changes:
        if gone.isdisjoint(each.names) and chance.random() < 0.6:
            kept.append(each)
        else:
            gone.update(each.names)
    return kept
