"""Data: Hugging Face datasets that were saved to disk."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calib.data import Data, open_data
from calib.errors import DataError
from runtime.errors import BackendError

datasets = pytest.importorskip("datasets")


def png(level: int) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (6, 5), (level, 0, 0)).save(made, "PNG")
    return made.getvalue()


def opened(source: Path, prompts: Path | None = None, limit: int | None = None) -> Data:
    return open_data(source, prompts, "What is it?", limit, 0)


def saved(folder: Path, columns: dict[str, list[Any]], features: dict[str, Any] | None = None) -> Path:
    made = datasets.Dataset.from_dict(columns)
    for name, feature in (features or {}).items():
        made = made.cast_column(name, feature)
    made.save_to_disk(str(folder))
    return folder


def table(data: Data) -> list[tuple[str, int, str, str | None]]:
    return [(sample.name, len(sample.images), sample.prompt, sample.answer) for sample in data.samples]


def test_pictures_prompts_and_answers(tmp_path: Path) -> None:
    folder = saved(
        tmp_path / "vqa",
        {
            "id": [7, 8, 9],
            "image": [{"bytes": png(level), "path": None} for level in (1, 2, 3)],
            "question": ["One?", "Two?", None],
            "answers": [["one", "1"], [], ["three"]],
        },
        {"image": datasets.Image()},
    )
    data = opened(folder)
    assert table(data) == [
        ("vqa:0", 1, "One?", "one"),
        ("vqa:1", 1, "Two?", None),
        ("vqa:2", 1, "What is it?", "three"),
    ]
    assert [sample.images for sample in data.samples] == [
        (png(1),),
        (png(2),),
        (png(3),),
    ]  # as they were stored
    assert (data.skipped, data.notes) == ((), ())


def test_rows_without_prompt_are_asked_every_prompt(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("One?\nTwo?\n")
    folder = saved(tmp_path / "own", {"image": [png(1), png(2)], "prompt": ["Own?", None]})
    assert table(opened(folder, prompts)) == [
        ("own:0", 1, "Own?", None),
        ("own:1", 1, "One?", None),
        ("own:1#2", 1, "Two?", None),
    ]


def test_several_pictures_per_row_and_paths(tmp_path: Path) -> None:
    one, two = tmp_path / "1.png", tmp_path / "2.png"
    one.write_bytes(png(1))
    two.write_bytes(png(2))
    lists = saved(
        tmp_path / "lists",
        {"images": [[str(one), str(two)], [str(two)]]},
        {"images": datasets.List(datasets.Image())},
    )
    assert [sample.images for sample in opened(lists).samples] == [(png(1), png(2)), (png(2),)]
    paths = saved(tmp_path / "paths", {"image": [str(one), "../2.png"]})
    assert [sample.images for sample in opened(paths).samples] == [(one,), (tmp_path / "paths" / "../2.png",)]


def test_a_selection_of_rows_is_the_one_that_was_saved(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"image": [png(level) for level in range(5)], "prompt": list("abcde")})
    made.select([4, 1]).save_to_disk(str(tmp_path / "two"))
    assert [(sample.prompt, sample.images) for sample in opened(tmp_path / "two").samples] == [
        ("e", (png(4),)),
        ("b", (png(1),)),
    ]


def test_class_labels_are_their_names(tmp_path: Path) -> None:
    folder = saved(
        tmp_path / "labels",
        {"image": [png(level) for level in range(4)], "answer": [1, 0, None, -1]},  # -1: of a test set
        {"answer": datasets.ClassLabel(names=["cat", "dog"])},
    )
    assert [sample.answer for sample in opened(folder).samples] == ["dog", "cat", None, None]


def test_bad_rows_are_listed(tmp_path: Path) -> None:
    whole = png(1)
    folder = saved(
        tmp_path / "bad",
        {
            "image": [whole, whole[:-30], b"no picture", None, whole, png(2)],
            "prompt": ["a", "a", "a", "a", "a", " "],
        },
    )
    data = opened(folder)
    assert [sample.name for sample in data.samples] == ["bad:0"]
    found = {skipped.where: skipped.reason for skipped in data.skipped}
    assert list(found) == ["bad:1", "bad:2", "bad:3", "bad:4", "bad:5"]
    assert "cannot be read as an image" in found["bad:1"]
    assert "are not an image that Pillow can read" in found["bad:2"]
    assert found["bad:3"] == "its image is of type NoneType, expected a picture, its bytes or its path"
    assert found["bad:4"] == "it asks the same of the same picture as bad:0: delete one of them"
    assert found["bad:5"].startswith("its prompt is empty")


def test_a_row_with_an_empty_list_of_pictures(tmp_path: Path) -> None:
    folder = saved(tmp_path / "empty", {"images": [[png(1)], []]})
    assert opened(folder).skipped[0].reason == "its images is an empty list, expected a picture"


def splits(folder: Path, **rows: int) -> Path:
    made = {
        name: datasets.Dataset.from_dict({"image": [png(level) for level in range(count)]})
        for name, count in rows.items()
    }
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


def test_the_test_split_is_taken_and_it_is_said(tmp_path: Path) -> None:
    folder = splits(tmp_path / "both", train=3, validation=2, test=1)
    data = opened(folder)
    assert [sample.name for sample in data.samples] == ["test:0"]
    assert data.notes == (
        f"split test is used, not train, validation: --data {folder}/<split> takes another",
    )
    assert [sample.name for sample in opened(folder / "train").samples] == ["train:0", "train:1", "train:2"]


def test_validation_or_the_only_split_is_taken(tmp_path: Path) -> None:
    assert len(opened(splits(tmp_path / "a", train=3, validation=2)).samples) == 2
    alone = opened(splits(tmp_path / "b", train=3))
    assert (len(alone.samples), alone.notes) == (3, ())


def test_splits_of_other_names_must_be_named(tmp_path: Path) -> None:
    folder = splits(tmp_path / "c", train=1, dev=1)
    with pytest.raises(
        DataError,
        match=r"has the splits dev, train, and no test or validation: name one, as --data .*c/dev$",
    ):
        opened(folder)


def test_no_column_of_pictures(tmp_path: Path) -> None:
    folder = saved(tmp_path / "text", {"prompt": ["a"], "picture": [png(1)]})
    with pytest.raises(
        DataError,
        match=r"has the columns prompt, picture, expected image or images: rename the one with pictures$",
    ):
        opened(folder)


def test_a_damaged_dataset(tmp_path: Path) -> None:
    folder = saved(tmp_path / "damaged", {"image": [png(1)]})
    (folder / "state.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match=r"damaged cannot be read as a saved dataset \(.*\): save it again$"):
        opened(folder)


def test_a_limit_reads_no_more_rows_than_it_needs(tmp_path: Path) -> None:
    folder = saved(tmp_path / "many", {"image": [png(level) for level in range(40)]})
    few = opened(folder, limit=6)
    assert len(few.samples) == 6
    assert {sample.name for sample in few.samples} < {sample.name for sample in opened(folder).samples}


def test_without_the_package_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "vqa", {"image": [png(1)]})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BackendError, match=r"needs the package datasets.*pip install 'fopru-edge\[calib\]'"):
        opened(folder)
