"""Data: a folder of pictures or a JSONL file; what cannot be used is listed, and why."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calib.data import Data, Sample, open_data, pictures
from calib.data.pictures import Pictures
from calib.data.row import RowError
from calib.errors import DataError
from calib.measure.pictures import open_picture
from runtime.errors import BackendError

Paint = Callable[[str], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "photos"
    made.mkdir()
    return made


@pytest.fixture
def paint(folder: Path) -> Paint:
    """Makes a picture below the folder, each of its own colour."""
    made: list[str] = []

    def picture(name: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made.append(name)
        Image.new("RGB", (9, 7), (len(made), 60, 90)).save(path)
        return path

    return picture


def opened(source: Path, prompts: Path | None = None, limit: int | None = None, seed: int = 0) -> Data:
    return open_data(source, prompts, "What is it?", limit, seed)


def names(data: Data) -> list[str]:
    return [sample.name for sample in data.samples]


def reasons(data: Data) -> dict[str, str]:
    return {skipped.where: skipped.reason for skipped in data.skipped}


def lines_file(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_folder_is_read_in_order_of_paths(folder: Path, paint: Paint) -> None:
    for name in ("b.png", "a.JPG", "b/c.webp", "a/z.png", "a/b/c.bmp"):
        paint(name)
    data = opened(folder)
    assert names(data) == ["a/b/c.bmp", "a/z.png", "a.JPG", "b/c.webp", "b.png"]
    assert data.samples[4] == Sample(
        "b.png",
        (folder / "b.png",),
        "What is it?",
        None,
        data.samples[4].digest,
        data.samples[4].group,
    )
    assert data.source == str(folder)
    assert (data.skipped, data.notes, data.labelled) == ((), (), False)
    assert len({sample.digest for sample in data.samples}) == 5


def test_digests_say_what_they_are_of(folder: Path, paint: Paint, tmp_path: Path) -> None:
    content = hashlib.sha256(paint("a.png").read_bytes()).hexdigest()
    group = hashlib.sha256(json.dumps([content]).encode()).hexdigest()
    (sample,) = opened(folder).samples
    assert sample.group == group
    assert sample.digest == hashlib.sha256(json.dumps([group, "What is it?", None]).encode()).hexdigest()
    moved = shutil.move(folder, tmp_path / "moved")
    assert opened(Path(moved)).digest == opened(Path(moved)).digest == opened(Path(moved)).digest
    assert opened(Path(moved)).samples[0].digest == sample.digest


def test_a_pipe_is_listed_and_not_waited_for(folder: Path, paint: Paint) -> None:
    paint("a.png")
    os.mkfifo(folder / "pipe.png")
    data = opened(folder)
    assert names(data) == ["a.png"]
    assert reasons(data) == {
        "pipe.png": f"{folder / 'pipe.png'} is no file, but a pipe or a device: store the picture in a file"
    }


def test_every_picture_is_asked_every_prompt(folder: Path, paint: Paint) -> None:
    paint("a.png"), paint("b.png")
    prompts = folder / "prompts.txt"
    prompts.write_bytes("\ufeffWhat?\r\n\r\n  Où?  \n \nWhat?\n".encode())
    data = opened(folder, prompts)
    assert [(sample.name, sample.prompt) for sample in data.samples] == [
        ("a.png", "What?"),
        ("a.png#2", "Où?"),
        ("b.png", "What?"),
        ("b.png#2", "Où?"),
    ]
    assert data.samples[0].group == data.samples[1].group != data.samples[2].group
    assert reasons(data) == {"prompts.txt:5": "it is the same as line 1: delete it"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"prompts.txt cannot be read \(No such file or directory\): check --prompts"),
        (b"caf\xe9", r"prompts.txt is not UTF-8 \(.*\): save it as UTF-8"),
        (b" \n\n", "prompts.txt has no prompt: write one per line"),
    ],
)
def test_a_prompts_file_that_cannot_be_used(
    folder: Path, paint: Paint, tmp_path: Path, content: bytes | None, said: str
) -> None:
    paint("a.png")
    prompts = tmp_path / "prompts.txt"
    if content is not None:
        prompts.write_bytes(content)
    with pytest.raises(DataError, match=f"^the prompts file .*{said}$"):
        opened(folder, prompts)


def test_what_is_no_picture_is_listed(folder: Path, paint: Paint) -> None:
    whole = paint("good.png")
    torn = paint("torn.jpg")
    torn.write_bytes(torn.read_bytes()[:-200])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.jpg").touch()
    (folder / "photo.heic").write_bytes(b"heic")
    (folder / "LICENSE").write_text("free")
    shutil.copy(whole, folder / "copy.png")
    data = opened(folder)
    assert names(data) == ["copy.png"]
    found = reasons(data)
    assert list(found) == ["LICENSE", "photo.heic", "empty.jpg", "good.png", "text.png", "torn.jpg"]
    assert found["LICENSE"].startswith("a name without suffix is not that of a picture that Pillow reads")
    assert found["photo.heic"] == (
        "the suffix .heic is not that of a picture that Pillow reads: convert it to PNG or JPEG"
    )
    assert found["good.png"] == "it asks the same of the same picture as copy.png: delete one of them"
    assert "text.png is not an image that Pillow can read" in found["text.png"]
    assert "empty.jpg is not an image that Pillow can read" in found["empty.jpg"]
    assert "torn.jpg cannot be read as an image" in found["torn.jpg"]


def test_hidden_files_are_left_out(folder: Path, paint: Paint) -> None:
    paint("a.png"), paint(".thumbnails/a.png"), paint("sub/._a.png")
    (folder / ".DS_Store").touch()
    assert (names(opened(folder)), reasons(opened(folder))) == (["a.png"], {})


def test_links_are_followed_once(folder: Path, paint: Paint, tmp_path: Path) -> None:
    paint("a.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("L", (4, 4)).save(elsewhere / "b.png")
    (folder / "more").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(folder)
    (folder / "nowhere.png").symlink_to(tmp_path / "missing.png")
    data = opened(folder)
    assert names(data) == ["a.png", "more/b.png"]
    assert "there is no image file at" in reasons(data)["nowhere.png"]


def test_a_name_that_is_no_text(folder: Path, paint: Paint) -> None:
    os.rename(paint("a.png"), os.fsencode(folder) + b"/caf\xe9.png")  # noqa: PTH104
    assert names(opened(folder)) == ["caf\\xe9.png"]


def test_a_folder_that_cannot_be_read(folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch) -> None:
    paint("a.png"), paint("closed/b.png")
    scandir = os.scandir

    def refuse(path: Any) -> Any:  # root may read everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    data = opened(folder)
    assert names(data) == ["a.png"]
    assert reasons(data) == {
        str(folder / "closed"): "the folder cannot be read (Permission denied): check its permissions"
    }


def test_jsonl(folder: Path, paint: Paint) -> None:
    a, b = paint("a.png"), paint("sub/b.png")
    rows = lines_file(
        folder / "rows.jsonl",
        {"image": "a.png", "prompt": "Colour?", "answer": "red", "id": 7},
        "",
        {"images": ["a.png", "sub/b.png"], "question": "Same?", "answers": ["no", "not at all"]},
        {"image": str(b), "answer": 7},
        {"image": "a.png", "prompt": None, "answer": None},
        {"image": "sub/b.png", "prompt": " Blank answer? ", "answer": " "},
        {"image": "sub/b.png", "prompt": "None?", "answers": []},
    )
    data = opened(rows)
    assert [(sample.name, sample.images, sample.prompt, sample.answer) for sample in data.samples] == [
        ("rows.jsonl:1", (a,), "Colour?", "red"),
        ("rows.jsonl:3", (a, b), "Same?", "no"),
        ("rows.jsonl:4", (b,), "What is it?", "7"),
        ("rows.jsonl:5", (a,), "What is it?", None),
        ("rows.jsonl:6", (b,), " Blank answer? ", None),
        ("rows.jsonl:7", (b,), "None?", None),
    ]
    assert data.skipped == ()
    assert data.labelled


def test_rows_without_prompt_are_asked_every_prompt(folder: Path, paint: Paint) -> None:
    paint("a.png")
    prompts = lines_file(folder / "prompts.txt", "One?", "Two?")
    rows = lines_file(
        folder / "rows.jsonl",
        {"image": "a.png", "prompt": "Own?", "answer": "yes"},
        {"image": "a.png"},
        {"image": "a.png", "answer": "yes"},
    )
    data = opened(rows, prompts)
    assert [(sample.name, sample.prompt) for sample in data.samples] == [
        ("rows.jsonl:1", "Own?"),
        ("rows.jsonl:2", "One?"),
        ("rows.jsonl:2#2", "Two?"),
    ]
    reason = "it has an answer but no prompt, and there are 2 prompts it may belong to: give it a prompt"
    assert reasons(data) == {"rows.jsonl:3": reason, "rows.jsonl:3#2": reason}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"image": ', r"it is not JSON \(.*\): write one object per line"),
        ("[" * 100_000, r"it is not JSON \(.*\): write one object per line"),
        ("caf\udce9", r"it is not UTF-8: save the file as UTF-8"),
        (["a.png"], r'it is of type list, expected an object such as \{"image": "photo.jpg"\}'),
        ({"prompt": "x"}, "it has no image: give a path relative to the JSONL file, or a list of paths"),
        ({"image": 3}, "its image is 3, expected a path or a list of paths"),
        ({"image": []}, r"its image is \[\], expected a path or a list of paths"),
        ({"images": ["a.png", None]}, r'its images is \["a.png", null\], expected a path or a list of paths'),
        (
            {"image": "https://x/y.png"},
            "its image is the address https://x/y.png: download the picture, and .*",
        ),
        ({"image": "missing.png"}, "there is no image file at .*missing.png: check the path"),
        ({"image": "a.png\0"}, "the image file .* cannot be opened .*"),
        ({"image": "."}, "photos is a directory, expected an image file: check the path"),
        ({"image": "a.png", "prompt": " "}, "its prompt is empty: write one, or leave prompt out to ask .*"),
        ({"image": "a.png", "question": ["x"]}, "its question is of type list, expected text"),
        ({"image": "a.png", "answer": 0.5}, "its answer is of type float, expected text"),
        ({"image": "a.png", "answer": True}, "its answer is of type bool, expected text"),
        ({"image": "a.png", "answers": [{}]}, "its answers is of type dict, expected text"),
        ('{"image": "a.png", "prompt": "\\ud800"}', "its prompt has half a surrogate pair, which is no .*"),
        (
            {"image": "a.png", "prompt": "Same?", "answer": "no"},
            "it asks the same of the same picture as rows.jsonl:1, but says 'no', not 'yes': delete one .*",
        ),
    ],
)
def test_a_bad_row_is_listed_and_the_others_are_used(
    folder: Path, paint: Paint, row: Any, reason: str
) -> None:
    import re

    paint("a.png")
    text = row if isinstance(row, str) else json.dumps(row)
    good = json.dumps({"image": "a.png", "prompt": "Same?", "answer": "yes"})
    rows = folder / "rows.jsonl"
    rows.write_bytes(f"{good}\n{text}\n".encode("utf-8", "surrogateescape"))
    data = opened(rows)
    assert names(data) == ["rows.jsonl:1"]
    (skipped,) = data.skipped
    assert skipped.where == "rows.jsonl:2"
    assert re.search(f"{reason}$", skipped.reason), skipped.reason


def test_nothing_to_use(folder: Path, paint: Paint, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"there is nothing at .*none: give a folder, a JSONL file or a saved"
    ):
        opened(tmp_path / "none")
    with pytest.raises(DataError, match=r"photos is empty: give pictures, or rows that name pictures$"):
        opened(folder)
    with pytest.raises(DataError, match=r"a.png is one picture: give the folder it is in, or a JSONL file$"):
        opened(paint("a.png"))
    rows = lines_file(folder / "rows.jsonl", {"image": "b.png"}, "{")
    with pytest.raises(
        DataError,
        match=r"none of the 2 rows of .*rows.jsonl can be used; the first, rows.jsonl:2: it is not JSON",
    ):
        opened(rows)
    with pytest.raises(DataError, match=r"^limit is 0, expected 1 or more samples: leave it out to use all$"):
        opened(folder, limit=0)
    rows.unlink()
    with pytest.raises(DataError, match=r"the first, a.png: its prompt is empty"):
        open_data(folder, None, "", None, 0)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = lines_file(tmp_path / "rows.jsonl", {})

    def refuse(self: Path, mode: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"rows.jsonl cannot be read \(Permission denied\): check --data$"):
        opened(rows)


def test_a_limit_keeps_order_and_only_grows(folder: Path, paint: Paint) -> None:
    for number in range(12):
        paint(f"{number:02}.png")
    every = names(opened(folder))
    draws = {
        seed: [names(opened(folder, limit=limit, seed=seed)) for limit in (1, 5, 12, 99)]
        for seed in (0, 1, 2)
    }
    for drawn in draws.values():
        assert [len(chosen) for chosen in drawn] == [1, 5, 12, 12]
        assert set(drawn[0]) < set(drawn[1]) < set(every)
        assert drawn[1] == sorted(drawn[1])
        assert drawn[2] == drawn[3] == every
    assert len({tuple(drawn[1]) for drawn in draws.values()}) == 3


def test_a_limit_takes_pictures_before_questions(folder: Path, paint: Paint) -> None:
    for number in range(4):
        paint(f"{number}.png")
    prompts = lines_file(folder / "prompts.txt", "One?", "Two?", "Three?")
    four, six = opened(folder, prompts, limit=4), opened(folder, prompts, limit=6)
    assert len({sample.group for sample in four.samples}) == 4
    assert sorted(names(six)) == names(six)
    assert len({sample.group for sample in six.samples}) == 4
    assert len({sample.prompt for sample in six.samples}) > 1


def test_a_limit_is_met_beside_bad_rows_which_it_opens_only_when_drawn(folder: Path, paint: Paint) -> None:
    for number in range(10):
        paint(f"{number}.png")
    for number in range(10, 20):
        (folder / f"{number}.png").write_text("no picture")
    few = opened(folder, limit=2)
    assert len(few.samples) == 2
    assert len(few.skipped) < 10
    all_of_them = opened(folder, limit=20)
    assert (len(all_of_them.samples), len(all_of_them.skipped)) == (10, 10)
    assert set(few.skipped) <= set(all_of_them.skipped)


def test_a_decoder_that_raises_anything_costs_its_picture_only(
    folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png"), paint("b.png")
    load = open_picture

    def odd(source: Path | bytes) -> Any:  # as Pillow's AVIF does
        if str(source).endswith("a.png"):
            raise RuntimeError("no image item")
        return load(source)

    monkeypatch.setattr(pictures, "open_picture", odd)
    data = opened(folder)
    assert names(data) == ["b.png"]
    assert reasons(data) == {"a.png": "its picture cannot be read (no image item): the file is damaged"}


def test_a_missing_package_is_not_the_pictures_fault(
    folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(source: Path | bytes) -> Any:
        raise BackendError("install pillow")

    paint("a.png")
    monkeypatch.setattr(pictures, "open_picture", missing)
    with pytest.raises(BackendError, match=r"^install pillow$"):
        opened(folder)


def test_a_file_is_opened_once_however_many_ask(paint: Paint) -> None:
    path = paint("a.png")
    known = Pictures()
    digest = known.digest(path)
    path.unlink()
    assert known.digest(path) == digest
    for _ in range(2):
        with pytest.raises(RowError, match="there is no image file at"):
            known.digest(path.with_name("b.png"))
