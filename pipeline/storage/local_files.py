"""Files of this machine (or of a network filesystem): whole writes, listings without surprises."""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = re.compile(r"^\..{1,100}\.[0-9a-f]{32}\.tmp$", re.DOTALL)
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK})


def replace_file(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, synced, and rename it; a failure leaves no trace."""
    temporary = _written(path, data)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    """Write a file that must not be there yet; return False, and change nothing, if it is."""
    temporary = _written(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network filesystem may answer so to the repetition of a link that it had made.
        return path.exists() and temporary.samefile(path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_in_place(path, data)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


def walk_files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield each file below a folder with its status; links to files count, hidden ones don't.

    Raises:
        ValueError: at a link to a folder, which could lead anywhere, back here too.
        OSError: if a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(parent, name).is_symlink():
                raise ValueError(
                    f"{parent}/{name} is a link to a folder, which is not followed; name that "
                    "folder itself, or copy it here"
                )
        for name in files:
            if name.startswith("."):
                continue
            path = os.path.join(parent, name)  # noqa: PTH118 (Path would drop a leading ./)
            try:
                yield path, Path(path).stat()
            except FileNotFoundError:  # deleted since, or a link to nothing: reading it will say so
                if Path(path).is_symlink():
                    yield path, Path(path).lstat()


def status_identity(status: os.stat_result) -> str:
    """Return what changes when a file is replaced or written to.

    The time of change is in it, since a program can set the time of modification back.
    """
    numbers = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    return "-".join(f"{number:x}" for number in numbers)


def shared_identity(status: os.stat_result) -> str:
    """Return the part of `status_identity` that is the same on every machine."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def first_link(root: Path, relative: str) -> Path | None:
    """Return the first component of `root/relative` below `root` that is a symbolic link."""
    path = root
    for segment in relative.split("/"):
        path = path / segment
        if path.is_symlink():
            return path
    return None


def remove_temporaries(folder: str, older_than_s: float) -> int:
    """Delete the temporary files of killed processes below a folder and return their number."""
    removed = 0
    latest = time.time() - older_than_s
    for parent, _, files in os.walk(folder):
        for name in files:
            path = Path(parent, name)
            try:
                if _TEMPORARY.match(name) and path.lstat().st_mtime <= latest:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:  # its writer lives, and has just finished
                continue
    return removed


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:100]}.{uuid.uuid4().hex}.tmp"
    try:
        _write(temporary, data)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _create_in_place(path: Path, data: bytes) -> bool:
    """Create a file where the filesystem has no hard links; a reader may see it half written."""
    try:
        _write(path, data)
    except FileExistsError:
        return False
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
