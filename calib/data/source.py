"""`open_data`: from what `--data` names to samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from calib.data.folder import folder_rows, printable
from calib.data.jsonl import jsonl_rows
from calib.data.pictures import Pictures, picture_suffixes
from calib.data.row import Question, Row, RowError, Rows
from calib.data.sample import Data, Sample, Skipped
from calib.data.saved import is_saved_dataset, saved_rows
from calib.errors import DataError

__all__ = ["open_data"]


def open_data(source: Path, prompts: Path | None, default_prompt: str, limit: int | None, seed: int) -> Data:
    """Samples from a folder of pictures, a JSONL file, or a Hugging Face dataset saved to disk.

    Args:
        source: which of the three it is, is seen from what is there.
        prompts: a UTF-8 text file with one prompt per line; blank lines do not count. Asked of every picture
            that has no prompt of its own.
        default_prompt: asked instead, where `prompts` is None.
        limit: use so many samples, in the source's order; None: all. Pictures are drawn before questions: a
            second question about a picture comes only after every picture has one, since answers about one
            picture are not independent. The draw depends on `seed` and on the names of the rows, so that a
            larger limit only adds samples. Rows that are not drawn are not opened.
        seed: of that draw.

    Returns:
        samples whose pictures were decoded to the end, and each row that was looked at and cannot be used. A
        row that asks the same as an earlier one is skipped.

    Raises:
        DataError: source or prompts cannot be read, or no row can be used.
        runtime.BackendError: a package is missing that this kind of data needs.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}, expected 1 or more samples: leave it out to use all")
    asked, repeated = ([default_prompt], []) if prompts is None else _read_prompts(prompts)
    rows = _rows(source, asked, prompts)
    chosen = _Chosen(limit)
    order = range(len(rows.rows)) if limit is None else _drawn(rows.rows, seed)
    for index in order:
        if chosen.full:
            break
        chosen.add(index, rows.rows[index])
    skipped = (*repeated, *rows.skipped, *(chosen.skipped[index] for index in sorted(chosen.skipped)))
    if not chosen.samples:
        raise DataError(_nothing(source, skipped))
    samples = tuple(chosen.samples[index] for index in sorted(chosen.samples))
    return Data(str(source), samples, skipped, tuple(rows.notes))


def _rows(source: Path, prompts: Sequence[str], prompts_file: Path | None) -> Rows:
    if not source.exists():
        raise DataError(f"there is nothing at {source}: give a folder, a JSONL file or a saved dataset")
    if not source.is_dir():
        if source.suffix.lower() in picture_suffixes():
            raise DataError(f"{source} is one picture: give the folder it is in, or a JSONL file")
        return jsonl_rows(source, prompts)
    if is_saved_dataset(source):
        return saved_rows(source, prompts)
    return folder_rows(source, prompts, prompts_file)


def _read_prompts(path: Path) -> tuple[list[str], list[Skipped]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"the prompts file {path} cannot be read ({error.strerror}): check --prompts"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"the prompts file {path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    lines: dict[str, int] = {}
    repeated = []
    for number, line in enumerate(text.split("\n"), 1):
        prompt = line.strip()
        if prompt in lines:
            reason = f"it is the same as line {lines[prompt]}: delete it"
            repeated.append(Skipped(f"{printable(path.name)}:{number}", reason))
        elif prompt:
            lines[prompt] = number
    if not lines:
        raise DataError(f"the prompts file {path} has no prompt: write one per line")
    return list(lines), repeated


class _Chosen:
    """Samples and skipped rows by their index in the source."""

    def __init__(self, limit: int | None) -> None:
        self.samples: dict[int, Sample] = {}
        self.skipped: dict[int, Skipped] = {}
        self._limit = limit
        self._pictures = Pictures()
        self._asked: dict[tuple[str, str], Sample] = {}

    @property
    def full(self) -> bool:
        return self._limit is not None and len(self.samples) >= self._limit

    def add(self, index: int, row: Row) -> None:
        try:
            sample = self._sample(row.name, row.read())
        except RowError as reason:
            self.skipped[index] = Skipped(row.name, str(reason))
        else:
            self.samples[index] = sample

    def _sample(self, name: str, question: Question) -> Sample:
        group = _sha256([self._pictures.digest(image) for image in question.images])
        digest = _sha256([group, question.prompt, question.answer])
        sample = Sample(name, question.images, question.prompt, question.answer, digest, group)
        first = self._asked.setdefault((group, question.prompt), sample)
        if first is not sample:
            other = (
                "" if first.answer == sample.answer else f", but says {sample.answer!r}, not {first.answer!r}"
            )
            raise RowError(f"it asks the same of the same picture as {first.name}{other}: delete one of them")
        return sample


def _drawn(rows: Sequence[Row], seed: int) -> list[int]:
    """All rows in the order in which they are drawn: one of each picture, then a second one, and so on."""
    shuffled = sorted(range(len(rows)), key=lambda index: _sha256([seed, rows[index].name]))
    before: dict[str, int] = {}
    turns = {}
    for index in shuffled:
        picture = rows[index].picture
        turns[index] = before[picture] = before.get(picture, -1) + 1
    return sorted(shuffled, key=turns.__getitem__)  # stable: shuffled within a turn


def _sha256(value: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _nothing(source: Path, skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return f"{source} is empty: give pictures, or rows that name pictures"
    first = skipped[0]
    return (
        f"none of the {len(skipped)} rows of {source} can be used; the first, {first.where}: {first.reason}"
    )
