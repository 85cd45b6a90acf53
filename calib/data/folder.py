"""A folder of pictures, each asked every prompt."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from calib.data.pictures import picture_suffixes
from calib.data.row import Question, Row, Rows, read_question
from calib.data.sample import Skipped

__all__ = ["folder_rows", "printable"]


def folder_rows(folder: Path, prompts: Sequence[str], prompts_file: Path | None) -> Rows:
    """A row for each picture below `folder` and each prompt, by relative path, then prompt.

    Links are followed. What begins with a dot is left out, as file managers leave their own files there; any
    other file that is no picture by its suffix is listed as skipped.
    """
    found = Rows()
    suffixes = picture_suffixes()
    for path in sorted(_files(folder, found.skipped), key=lambda path: path.relative_to(folder).parts):
        name = printable(path.relative_to(folder).as_posix())
        if path.suffix.lower() in suffixes:
            found.rows += _picture_rows(path, name, prompts)
        elif prompts_file is None or not path.samefile(prompts_file):
            kind = f"the suffix {path.suffix}" if path.suffix else "a name without suffix"
            reason = f"{kind} is not that of a picture that Pillow reads: convert it to PNG or JPEG"
            found.skipped.append(Skipped(name, reason))
    return found


def printable(path: str) -> str:
    """The same path, with bytes of a file name that are not UTF-8 written as escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _picture_rows(path: Path, name: str, prompts: Sequence[str]) -> Iterator[Row]:
    for number, prompt in enumerate(prompts, 1):
        read = partial(_question, path, prompt)
        yield Row(name if number == 1 else f"{name}#{number}", str(path), read)


def _question(path: Path, prompt: str) -> Question:
    return read_question({}, [path], prompt, 1)


def _files(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        reason = f"the folder cannot be read ({error.strerror}): check its permissions"
        skipped.append(Skipped(printable(str(error.filename)), reason))

    seen = set()
    for here, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above, or to one already read
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in files if not name.startswith("."))
