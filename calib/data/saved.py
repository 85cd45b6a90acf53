"""A Hugging Face dataset that `save_to_disk` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from calib.data.folder import printable
from calib.data.row import ANSWERS, IMAGES, PROMPTS, Question, Row, RowError, Rows, first_of, read_question
from calib.errors import DataError
from runtime.lazy import require

__all__ = ["is_saved_dataset", "saved_rows"]

ONE, MANY = "dataset_info.json", "dataset_dict.json"
SPLITS = ("test", "validation")


def is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return (folder / MANY).is_file() or ((folder / ONE).is_file() and (folder / "state.json").is_file())


def saved_rows(folder: Path, prompts: Sequence[str]) -> Rows:
    """A row for each row of the dataset; a row without prompt is asked every one of `prompts`.

    Columns: `image` or `images` (Image features, bytes or paths; lists of them too), `prompt` or `question`,
    `answer` or `answers` (the first of a list). Of several splits, `test` is taken, else `validation`, else
    the only one. Pictures stay encoded; they are read when a row is.

    Raises:
        DataError: it cannot be read, has no column of pictures, or several splits of other names.
        runtime.BackendError: the package datasets is not installed.
    """
    datasets = require("datasets", "datasets", "calib")
    found = Rows()
    try:
        loaded = datasets.load_from_disk(str(folder))
    # Of a damaged dataset, the library raises what its parsers happen to raise.
    except Exception as error:
        raise DataError(f"{folder} cannot be read as a saved dataset ({error}): save it again") from error
    split = folder.resolve().name
    if isinstance(loaded, datasets.DatasetDict):
        split = _split(folder, sorted(loaded))
        others = ", ".join(name for name in sorted(loaded) if name != split)
        if others:
            found.notes.append(
                f"split {split} is used, not {others}: --data {folder / '<split>'} takes another"
            )
        folder, loaded = folder / split, loaded[split]
    if not any(name in loaded.column_names for name in IMAGES):
        columns = ", ".join(loaded.column_names)
        raise DataError(
            f"the dataset {folder} has the columns {columns}, expected image or images: "
            "rename the one with pictures"
        )
    own = [name for name in PROMPTS if name in loaded.column_names]
    # Labels are stored as numbers; their names are what a model would say.
    names = {
        name: feature.int2str for name, feature in loaded.features.items() if hasattr(feature, "int2str")
    }
    used = [name for name in (*IMAGES, *PROMPTS, *ANSWERS) if name in loaded.column_names]
    table = loaded.select_columns(used).with_format("arrow")  # as stored: nothing is decoded
    asks = _asks(table, own, len(prompts))
    for index, count in enumerate(asks):
        where = f"{printable(split)}:{index}"
        for ask in range(count):
            read = partial(_question, _Reader(table, names, folder), index, prompts[ask], len(prompts))
            found.rows.append(Row(where if ask == 0 else f"{where}#{ask + 1}", where, read))
    return found


def _split(folder: Path, splits: list[str]) -> str:
    for name in SPLITS:
        if name in splits:
            return name
    if len(splits) == 1:
        return splits[0]
    raise DataError(
        f"the dataset {folder} has the splits {', '.join(splits) or 'none'}, and no {' or '.join(SPLITS)}: "
        f"name one, as --data {folder / splits[0] if splits else folder}"
    )


def _asks(table: Any, own: list[str], prompts: int) -> list[int]:
    """How often each row is asked: once if it has a prompt of its own."""
    counts = [prompts] * len(table)
    for name in own:
        column = table.select_columns([name])[:][name].to_pylist()
        counts = [1 if value is not None else count for value, count in zip(column, counts, strict=True)]
    return counts


class _Reader:
    """One row of the table as plain Python values."""

    def __init__(self, table: Any, names: Mapping[str, Any], folder: Path) -> None:
        self._table, self._names, self.folder = table, names, folder

    def row(self, index: int) -> dict[str, Any]:
        fields: dict[str, Any] = self._table[index : index + 1].to_pylist()[0]
        for name, text_of in self._names.items():
            if fields.get(name) is not None:
                # Test sets without labels have -1 there, which has no name.
                fields[name] = text_of(fields[name]) if fields[name] >= 0 else None
        return fields


def _question(reader: _Reader, index: int, prompt: str, prompts: int) -> Question:
    fields = reader.row(index)
    name, value = first_of(fields, IMAGES)
    images = [_image(name, one, reader.folder) for one in (value if isinstance(value, list) else [value])]
    if not images:
        raise RowError(f"its {name} is an empty list, expected a picture")
    return read_question(fields, images, prompt, prompts)


def _image(name: str, value: Any, folder: Path) -> Path | bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return folder / value
    raise RowError(f"its {name} is of type {type(value).__name__}, expected a picture, its bytes or its path")
