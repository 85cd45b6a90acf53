"""What every kind of data is made of before a picture is opened: rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calib.data.sample import Skipped

__all__ = ["Question", "Row", "RowError", "Rows", "read_question"]

IMAGES = ("image", "images")
PROMPTS = ("prompt", "question")
ANSWERS = ("answer", "answers")


class RowError(Exception):
    """A row cannot be used; the text says why."""


@dataclass(frozen=True)
class Question:
    """The content of a row: pictures (one at least), what is asked, and the right answer or None."""

    images: tuple[Path | bytes, ...]
    prompt: str
    answer: str | None


@dataclass(frozen=True)
class Row:
    """One row that may become a sample.

    Attributes:
        name: the sample's name, unique in the data.
        picture: rows with the same text here are known to have the same pictures.
        read: gives the content, or raises `RowError`. Not called for rows that `limit` leaves out.
    """

    name: str
    picture: str
    read: Callable[[], Question]


@dataclass
class Rows:
    """All rows of a source in order, what is already known to be unusable, and notes for the user."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_question(
    fields: Mapping[str, Any], images: Sequence[Path | bytes], prompt: str, prompts: int
) -> Question:
    """A row's own prompt and answer beside its pictures; other fields are ignored.

    Args:
        fields: the row; of two names of one thing (`prompt`, `question`) the first that is there counts.
        images: its pictures.
        prompt: what to ask if the row does not say.
        prompts: how many such prompts there are.

    Raises:
        RowError: a wrong type, no text, or a right answer to nobody knows which prompt.
    """
    name, own = first_of(fields, PROMPTS)
    answer = _answer(*first_of(fields, ANSWERS))
    if own is None and answer is not None and prompts > 1:
        raise RowError(
            f"it has an answer but no prompt, and there are {prompts} prompts it may belong to: "
            "give it a prompt"
        )
    asked = prompt if own is None else _text(name, own)
    if not asked.strip():
        raise RowError(f"its {name} is empty: write one, or leave {name} out to ask the default")
    return Question(tuple(images), asked, answer)


def first_of(fields: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """The first of `names` that has a value, and the value; (the first name, None) if none has."""
    for name in names:
        if fields.get(name) is not None:
            return name, fields[name]
    return names[0], None


def _answer(name: str, value: Any) -> str | None:
    """None, also for a blank: public test sets leave their answers out that way."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = _text(name, value)
    return text if text.strip() else None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RowError(f"its {name} is of type {type(value).__name__}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(
            f"its {name} has half a surrogate pair, which is no character: repair the text"
        ) from None
    return value
