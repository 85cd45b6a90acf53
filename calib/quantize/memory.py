"""What was found before, by the hash of all that it depends on: one small JSON file for each answer."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calib.bundle_writer import is_gone
from calib.errors import RunError, StoreError
from calib.locked import open_locked
from runtime.output import write_whole
from runtime.version import __version__

__all__ = ["Memory", "key_of"]

_FORMAT = 1  # of what is kept: another number forgets it
_LOCK = "lock"
_KINDS = ("awq", "cases", "encodings", "groups", "loss", "parity", "ranges", "trials", "whole")


def key_of(*parts: object) -> str:
    """SHA-256 of what an answer depends on, anything that JSON holds, and of the release that finds it."""
    return hashlib.sha256(json.dumps([_FORMAT, __version__, *parts], sort_keys=True).encode()).hexdigest()


class Memory:
    """Answers in a folder. Each is written beside its place and renamed, so that a killed run leaves whole
    ones alone; floats come back with every bit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def begin(self, *, fresh: bool) -> Generator[None]:
        """Make the folder, and keep it from other runs; `fresh`: without what earlier ones found.

        Raises:
            RunError: it cannot be written.
            StoreError: another run writes to it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        with open_locked(self.folder / _LOCK):
            try:
                self._clean(fresh=fresh)
            except OSError as error:
                raise self._unwritable(error) from error
            yield

    def _clean(self, *, fresh: bool) -> None:
        for path in self.folder.iterdir():
            trial = path.name.startswith("trial-")
            if (trial and (fresh or is_gone(path))) or (fresh and path.name in _KINDS):
                shutil.rmtree(path)  # what else lies there is not ours

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.folder} cannot be written ({error.strerror or error}): give another folder with --work"
        )

    def answer(self, kind: str, key: str, find: Callable[[], Any]) -> Any:
        """What `find` gave for this key, now or earlier: anything that JSON holds.

        Raises:
            StoreError: the file is damaged.
        """
        file = self.folder / kind / f"{key}.json"
        if file.exists():
            try:
                return json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise _damaged(file, error) from error
        found = find()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(found).encode())
        return json.loads(json.dumps(found))

    def arrays(
        self, kind: str, key: str, find: Callable[[], dict[str, npt.NDArray[Any]]]
    ) -> dict[str, npt.NDArray[Any]]:
        """The same for arrays by name.

        Raises:
            StoreError: the file is damaged.
        """
        file = self.folder / kind / f"{key}.npz"
        if not file.exists():
            found = find()
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.stem}.partial.npz")
            try:
                np.savez(partial, **found)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for a tensor
                partial.replace(file)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            return found
        try:
            with np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        except Exception as error:  # a torn zip raises half a dozen classes
            raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> StoreError:
    return StoreError(f"{file} is damaged ({error}): remove the file, or run with --fresh")
