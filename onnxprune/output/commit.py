"""Files that appear whole or not at all, together or not at all.

Everything is first stored, and synced to the disk, under temporary names in the folders where it belongs. Then come
renames alone, in the order in which the files were put; the last one is the commit. Where one fails, or an interrupt
comes between, those before it are taken back. Where the process is killed between two, each file is whole: an old one
or a new one. A target that is a link is replaced, not followed; what it led to stays as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from onnxprune.errors import RunError
from onnxprune.process.room import why_not

Content = bytes | Callable[[IO[bytes]], None]
# How temporaries beside an output end. Only a process that was killed leaves one behind.
TEMPORARY = ".onnxprune-tmp"
# So many characters of the target's name stand in a temporary's: the longest ones take four bytes, of 255.
_NAME = 40
_APPEARED = "{} has appeared during the run, so it stays as it is; use --overwrite to replace it, or name another file"


class Stage:
    """Files that shall appear: each is stored by `put` under a temporary name, and given its own by `commit`.

    On exit what is temporary is removed.
    """

    def __init__(self, *, overwrite: bool = True) -> None:
        """overwrite: whether what is put may take the place of a file that is there by then."""
        self._overwrite = overwrite
        self._temporaries: dict[Path, Path] = {}
        self._new: set[Path] = set()
        # What the targets were, by a second name; None for those that were not there.
        self._old: dict[Path, Path | None] = {}
        self._loose: list[Path] = []

    def __enter__(self) -> Stage:
        """Enter with nothing stored yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._close()
        finally:
            self._close()  # again, since an interrupt may have cut it short

    def put(self, target: Path, content: Content) -> None:
        """Store a file that shall be called `target`. Raises RunError."""
        self._temporaries[target] = self._stored(target, content, lambda _: None)
        if not self._overwrite:
            self._new.add(target)

    @property
    def targets(self) -> tuple[Path, ...]:
        """The names that files shall have, in the order in which they were put."""
        return tuple(self._temporaries)

    def put_by_content(self, near: Path, name: Callable[[str], Path], content: Content) -> Path:
        """Store a file whose name depends on the sha256 of its bytes, in the folder of `near`; the name.

        Raises RunError.
        """
        digest = hashlib.sha256()
        temporary = self._stored(near, content, digest.update)
        target = name(digest.hexdigest())
        self._temporaries[target] = temporary
        return target

    def commit(self) -> None:
        """Give every file its name, in the order in which they were put: all, or none and RunError."""
        if not self._temporaries:
            return
        *others, last = self._temporaries
        try:
            for target in others:
                self._remember(target)
                self._rename(target)
            self._rename(last)
        finally:
            if not self._has_appeared(last):
                self._take_back()
        for folder in {t.parent for t in self._temporaries}:
            _sync_folder(folder)

    def _stored(self, target: Path, content: Content, seen: Callable[[Any], object]) -> Path:
        temporary = self._loosely_named(target)
        try:
            # Not by `tempfile`, whose files are their owner's alone: this one gets the permissions of any new file.
            with _Watched(io.FileIO(temporary, "xb"), seen) as f:
                if isinstance(content, bytes):
                    f.write(content)
                else:
                    content(f)
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise RunError(f"{target} cannot be written: {why_not(e)}") from e
        return temporary

    def _loosely_named(self, target: Path) -> Path:
        """A name beside `target` for something that goes in the end."""
        path = target.with_name(f".{target.name[:_NAME]}.{secrets.token_hex(6)}{TEMPORARY}")
        self._loose.append(path)  # before it is there: an interrupt may come at any time
        return path

    def _remember(self, target: Path) -> None:
        """Give the present file a second name, under which it lives on in case that it has to come back.

        Where the file system knows no second names it cannot.
        """
        if target in self._new:
            self._old[target] = None
            return
        old = self._loosely_named(target)
        try:
            os.link(target, old, follow_symlinks=False)
        except FileNotFoundError:
            self._old[target] = None
        except (OSError, NotImplementedError):
            return
        else:
            self._old[target] = old

    def _rename(self, target: Path) -> None:
        try:
            if target in self._new and self._named_anew(target):
                return
            self._temporaries[target].replace(target)
        except OSError as e:
            raise RunError(f"{target} cannot be written: {why_not(e)}") from e

    def _named_anew(self, target: Path) -> bool:
        """Give a file its name unless another one has it, in one step where the file system knows second names.

        False where it has not been done: the name is free, or it is that of a link that leads nowhere.
        """
        try:
            os.link(self._temporaries[target], target)
        except FileExistsError as e:
            if target.exists():
                raise RunError(_APPEARED.format(target)) from e
            return False
        except (OSError, NotImplementedError):
            if target.exists():
                raise RunError(_APPEARED.format(target)) from None
            return False
        return True

    def _has_appeared(self, target: Path) -> bool:
        """Whether what was put is there under its name."""
        try:
            return target.samefile(self._temporaries[target])
        except OSError:
            return not self._temporaries[target].exists()

    def _take_back(self) -> None:
        for target, old in self._old.items():
            with contextlib.suppress(OSError):
                if old is not None:
                    old.replace(target)
                elif self._has_appeared(target):
                    target.unlink(missing_ok=True)

    def _close(self) -> None:
        for path in self._loose:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


class _Watched(io.BufferedWriter):
    """A file that shows `seen` every byte on its way there."""

    def __init__(self, raw: io.FileIO, seen: Callable[[Any], object]) -> None:
        super().__init__(raw)
        self._seen = seen

    def write(self, part: Any, /) -> int:
        """Write bytes, as to any file."""
        self._seen(part)
        return super().write(part)


def _sync_folder(folder: Path) -> None:
    """Have the names survive a loss of power, where the system can; they are there for everybody else already."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_atomically(path: str | os.PathLike[str], blob: bytes) -> None:
    """Write one file. Raises RunError."""
    with Stage() as stage:
        stage.put(Path(path), blob)
        stage.commit()
