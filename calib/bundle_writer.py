"""Bundles appear whole or not at all: written beside their place, renamed into it at the end.

For a bundle `bundles/x`, work happens in `bundles/.x.building-<pid>`; for the moment of the swap the
previous bundle is `bundles/.x.old-<pid>`. What a killed build left behind is found by these names: a
half-written folder is removed, a previous bundle that never got its place back is put back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType

from calib.errors import OutputError
from runtime.bundle import MANIFEST_FILE
from runtime.manifest import FileInfo

__all__ = ["BundleWriter", "file_infos", "is_gone"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class BundleWriter:
    """Context manager around one build: fill `path`, then call `commit`; leaving without it removes
    everything.

    Owns `path` from `__enter__` to `commit`. Not for concurrent use; two builds of one bundle do not disturb
    each other, the later commit wins.
    """

    def __init__(self, target: Path) -> None:
        """`target` is the bundle directory, there or not.

        Raises:
            OutputError: it is a file, or a directory that is neither empty nor a bundle.
        """
        self.target = target.resolve()  # a link to a bundle stays a link
        _check_replaceable(self.target)
        self.path = self._beside("building")
        self._committed = False

    def __enter__(self) -> BundleWriter:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._recover()
            self.path.mkdir()
        except OSError as error:
            raise self._output_error(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            shutil.rmtree(self.path, ignore_errors=True)
        full = _no_space(error)
        if full is not None and not self._committed:
            raise self._output_error(full) from error

    def commit(self) -> None:
        """Put the finished bundle in place of the old one; on failure the old one is back.

        Raises:
            OutputError: the target changed into something that is no bundle, or cannot be renamed.
        """
        _check_replaceable(self.target)
        old = self._beside("old")
        had_old = self.target.exists()
        try:
            if had_old:
                self.target.rename(old)
            try:
                self.path.rename(self.target)
            except BaseException:
                if had_old:
                    old.rename(self.target)
                raise
        except OSError as error:
            raise self._output_error(error) from error
        self._committed = True
        if had_old:
            shutil.rmtree(old, ignore_errors=True)

    def _beside(self, purpose: str) -> Path:
        return self.target.with_name(f".{self.target.name}.{purpose}-{os.getpid()}")

    def _recover(self) -> None:
        """Clean up after builds whose process is gone."""
        for leftover in self.target.parent.glob(f".{self.target.name}.old-*"):
            if is_gone(leftover):
                if self.target.exists():
                    shutil.rmtree(leftover)
                else:
                    leftover.rename(self.target)
        for leftover in self.target.parent.glob(f".{self.target.name}.building-*"):
            if is_gone(leftover):
                shutil.rmtree(leftover)

    def _output_error(self, error: OSError) -> OutputError:
        if _is_full_disk(error):
            free = _free_megabytes(self.target.parent)
            return OutputError(
                f"the disk is full while writing {self.target} ({free} MB free): free some space or give "
                "--output on another disk; what was there before is untouched"
            )
        return OutputError(
            f"cannot write {self.target} ({error.strerror or error}): give --output a place where you may "
            "write"
        )


def file_infos(root: Path) -> dict[str, FileInfo]:
    """Size and SHA-256 of every file under `root` except `bundle.json`, by forward-slashed relative path."""
    infos = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and name != MANIFEST_FILE:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            infos[name] = FileInfo(path.stat().st_size, digest)
    return infos


def _check_replaceable(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file, but a bundle is a directory: give --output another name")
    if target.is_dir() and not (target / MANIFEST_FILE).is_file() and any(target.iterdir()):
        raise OutputError(
            f"{target} exists, is not empty and is not a bundle (it has no {MANIFEST_FILE}): give --output "
            "another directory, or remove this one yourself"
        )


def _no_space(error: BaseException | None) -> OSError | None:
    """The full disk behind an error, however many libraries have wrapped it."""
    while error is not None and not (isinstance(error, OSError) and _is_full_disk(error)):
        error = error.__cause__ or error.__context__
    return error


def _is_full_disk(error: OSError) -> bool:
    """numpy's `tofile` says "N requested and M written" and leaves the error number out."""
    return error.errno in _NO_SPACE or (error.errno is None and "requested and" in str(error))


def is_gone(leftover: Path) -> bool:
    """Whether the process that made a leftover, whose id its name ends with, has ended."""
    pid = leftover.name.rpartition("-")[2]
    if not pid.isdigit():
        return False
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _free_megabytes(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free // 1_000_000
    return 0
