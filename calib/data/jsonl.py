"""A JSONL file: one object {image, prompt?, answer?} per line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from calib.data.folder import printable
from calib.data.row import IMAGES, PROMPTS, Question, Row, RowError, Rows, first_of, read_question
from calib.data.sample import Skipped
from calib.errors import DataError

__all__ = ["jsonl_rows"]


def jsonl_rows(path: Path, prompts: Sequence[str]) -> Rows:
    """A row for each line; a line without prompt is asked every one of `prompts`. Blank lines do not count.

    Raises:
        DataError: the file cannot be read.
    """
    found = Rows()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    _add(found, line, path, number, prompts)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check --data") from error
    return found


def _add(found: Rows, line: bytes, path: Path, number: int, prompts: Sequence[str]) -> None:
    where = f"{printable(path.name)}:{number}"
    try:
        fields = _object(line)
        images = _images(fields, path.parent)
    except RowError as reason:
        found.skipped.append(Skipped(where, str(reason)))
        return
    picture = "\n".join(map(str, images))
    own = first_of(fields, PROMPTS)[1] is not None
    for ask, prompt in enumerate(prompts[:1] if own else prompts, 1):
        read = partial(_question, fields, images, prompt, len(prompts))
        found.rows.append(Row(where if ask == 1 else f"{where}#{ask}", picture, read))


def _question(fields: Mapping[str, Any], images: Sequence[Path], prompt: str, prompts: int) -> Question:
    return read_question(fields, images, prompt, prompts)


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise RowError("it is not UTF-8: save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"it is not JSON ({error}): write one object per line") from None
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        raise RowError(f'it is of type {kind}, expected an object such as {{"image": "photo.jpg"}}')
    return fields


def _images(fields: Mapping[str, Any], folder: Path) -> list[Path]:
    name, value = first_of(fields, IMAGES)
    if value is None:
        raise RowError("it has no image: give a path relative to the JSONL file, or a list of paths")
    paths = value if isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise RowError(f"its {name} is {json.dumps(value)[:80]}, expected a path or a list of paths")
    for path in paths:
        if "://" in path:
            raise RowError(f"its {name} is the address {path[:80]}: download the picture, and give its path")
    return [folder / path for path in paths]
