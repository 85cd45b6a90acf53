"""Images in tiles, and positions of three axes, end to end on toys whose every answer numpy predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import load_bundle
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.layouts import LAYOUTS, NEWLINE
from runtime.manifest import Manifest
from runtime.request import Request, Turn
from runtime.summary import summary_lines
from runtime.vision import Selection
from tests.toy_bundle import (
    BOS,
    IMAGE,
    TILES,
    WIDTH,
    AxesLayout,
    ToyModel,
    byte_ids,
    packed,
    toy_photo,
    write_toy_bundle,
)

MODEL = ToyModel(pinpoints=TILES)
SQUARE, LYING = toy_photo((32, 32)), toy_photo((16, 32), 9)  # 88 and 52 placeholders
PADDED = toy_photo((20, 32), 5)  # 6 of 8 lines


def generator_for(folder: Path, model: ToyModel = MODEL, **pruning: object) -> Generator:
    def edit(manifest: Manifest) -> Manifest:
        return replace(manifest, pruning=replace(manifest.pruning, **pruning))

    return Generator(load_bundle(write_toy_bundle(folder / "toy", model, edit)), threads=1)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return generator_for(tmp_path_factory.mktemp("bundles"))


def rows_of(generator: Generator, photo: np.ndarray, ratio: float, newline: str = "keep_all") -> list[int]:
    """Kept rows of the image, counted through all units, NEWLINE between: what is left of its sequence."""
    (image,) = generator.preprocess([photo])
    stays: set[int] = set()
    for number, unit in enumerate(image.plan.units):
        scores = MODEL.scores(image.pixel_values)[number]
        count = int(np.floor(unit.prunable * ratio + 0.5))
        best = sorted(unit.valid_indices.tolist(), key=lambda token: (-scores[token], token))[:count]
        stays |= {16 * number + token for token in best}
    lines = image.plan.lines
    assert lines is not None
    filled = {int(line) for row, line in zip(image.plan.sequence, lines, strict=True) if int(row) in stays}
    rows = []
    for row, line in zip(image.plan.sequence.tolist(), lines.tolist(), strict=True):
        if row in stays or (
            row == NEWLINE and (newline == "keep_all" or (newline == "keep_nonempty" and line in filled))
        ):
            rows.append(row)
    return rows


def features_of(generator: Generator, photo: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    (image,) = generator.preprocess([photo])
    whole = MODEL.features(image.pixel_values).reshape(-1, WIDTH)
    return np.stack([MODEL.weights["newline"] if row == NEWLINE else whole[row] for row in rows])


def prompt_ids(counts: Sequence[int], question: str) -> list[int]:
    images = [token for count in counts for token in (*[IMAGE] * count, *byte_ids("\n"))]
    return [BOS, *byte_ids("Q: "), *images, *byte_ids(f"{question} A:")]


def test_answer_about_four_tiles_and_an_overview(generator: Generator) -> None:
    result = generator.generate(Request("what?", (SQUARE,), ratio=0.3, max_new_tokens=16, ignore_eos=True))
    pixels = generator.preprocess([SQUARE])[0].pixel_values
    features = packed(MODEL, pixels, MODEL.kept(pixels, 5))
    ids = prompt_ids([len(features)], "what?")
    assert list(result.token_ids) == MODEL.greedy(MODEL.merged(np.array([ids]), features), 16)
    # 80 tokens and 8 newlines; 5 of 16 tokens of each unit.
    assert (result.visual_tokens_before, result.visual_tokens_after) == ((88,), (25 + 8,))
    assert result.prompt_tokens == len(ids)
    kept = (16 * np.arange(5)[:, None] + MODEL.kept(pixels, 5)).reshape(-1)
    assert result.kept_indices == (tuple(kept.tolist()),)
    assert result.kv_bytes_unpruned - result.kv_bytes == 2 * 2 * 2 * 4 * 4 * (88 - 33)
    assert summary_lines(result)[0] == "visual tokens   88 → 33"


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0])
def test_answer_about_images_of_different_sizes(generator: Generator, ratio: float) -> None:
    photos = (SQUARE, PADDED, LYING)
    request = Request("what?", photos, ratio=ratio, max_new_tokens=6, ignore_eos=True)
    result = generator.generate(request)
    rows = [rows_of(generator, photo, ratio) for photo in photos]
    parts = [features_of(generator, photo, own) for photo, own in zip(photos, rows, strict=True)]
    ids = prompt_ids([len(own) for own in rows], "what?")
    embeds = MODEL.merged(np.array([ids]), np.concatenate(parts))
    assert list(result.token_ids) == MODEL.greedy(embeds, 6)
    assert result.visual_tokens_before == (88, 70, 52)
    assert result.visual_tokens_after == tuple(len(own) for own in rows)
    assert result.pruned is (ratio < 1)
    expected = [tuple(sorted(row for row in own if row != NEWLINE)) for own in rows]
    assert list(result.kept_indices) == expected


@pytest.mark.parametrize("newline", ["keep_all", "keep_nonempty", "drop"])
def test_newline_policies(tmp_path: Path, newline: str) -> None:
    generator = generator_for(tmp_path, newline=newline)
    result = generator.generate(Request("what?", (SQUARE,), ratio=0.07, max_new_tokens=8, ignore_eos=True))
    rows = rows_of(generator, SQUARE, 0.07, newline)
    newlines = rows.count(NEWLINE)
    assert {"keep_all": newlines == 8, "keep_nonempty": 0 < newlines < 8, "drop": newlines == 0}[newline]
    features = features_of(generator, SQUARE, rows)
    ids = prompt_ids([len(rows)], "what?")
    assert list(result.token_ids) == MODEL.greedy(MODEL.merged(np.array([ids]), features), 8)
    assert result.visual_tokens_after == (5 + newlines,)  # 1 token of each unit
    assert result.prompt_tokens == len(ids)


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_is_not_pruned_keeps_its_newlines(tmp_path: Path, cancelled: bool) -> None:
    generator = generator_for(tmp_path, newline="drop")
    stream = generator.stream(Request("what?", (SQUARE,), ratio=1.0, max_new_tokens=8, ignore_eos=True))
    if cancelled:
        stream.cancel()
    else:
        list(stream)
    result = stream.result
    assert (result.pruned, result.visual_tokens_after) == (False, (88,))
    assert result.prompt_tokens == len(prompt_ids([88], "what?"))
    if not cancelled:
        features = features_of(generator, SQUARE, rows_of(generator, SQUARE, 1.0))
        embeds = MODEL.merged(np.array([prompt_ids([88], "what?")]), features)
        assert list(result.token_ids) == MODEL.greedy(embeds, 8)


def test_original_positions_of_tiles(tmp_path: Path) -> None:
    generator = generator_for(tmp_path, position_ids="original")
    request = Request("what?", (SQUARE, LYING), ratio=0.3, max_new_tokens=12, ignore_eos=True)
    stream = generator.stream(request)
    list(stream)
    whole, rows, parts = [], [], []
    for photo in (SQUARE, LYING):
        sequence = generator.preprocess([photo])[0].plan.sequence.tolist()
        own = rows_of(generator, photo, 0.3)
        stays = [row == NEWLINE or row in own for row in sequence]
        whole.append(stays)
        rows.append(own)
        parts.append(features_of(generator, photo, own))
    unpruned = prompt_ids([len(own) for own in whole], "what?")
    visual = iter([stay for own in whole for stay in own])
    positions = [place for place, token in enumerate(unpruned) if token != IMAGE or next(visual)]
    embeds = MODEL.merged(np.array([prompt_ids([len(own) for own in rows], "what?")]), np.concatenate(parts))
    expected = MODEL.greedy(embeds, 12, np.array([positions]), len(unpruned))
    assert list(stream.result.token_ids) == expected
    plain = generator.tokenize(request, [image.plan for image in stream.encoded])
    made = generator.prompt(plain, stream.encoded)
    assert made.positions.ids.tolist() == [positions]
    assert made.positions.next == len(unpruned)
    logits = generator.decoder_run(len(positions), made.positions).prefill(embeds)
    # Sums of eighths, but their mean over the prompt rounds, and so does the head's sum of eight of them.
    limit = 1e-5 * float(np.abs(logits).max())
    np.testing.assert_allclose(logits, MODEL.logits(embeds, made.positions.ids), rtol=0, atol=limit)
    assert np.abs(logits - MODEL.logits(embeds)).max() > 100 * limit  # positions matter to the toy


def test_too_long_with_original_positions(tmp_path: Path) -> None:
    generator = generator_for(tmp_path, position_ids="original")
    # 4 + 88 + 9 positions, whatever is kept.
    request = Request("what?", (SQUARE,), ratio=0.1, max_new_tokens=156)
    message = (
        "the prompt reaches position 101, and the answer up to 156, but the model has 256 positions: "
        r"use fewer or smaller images \(pruning keeps positions\), or lower max_new_tokens"
    )
    with pytest.raises(RequestError, match=message):
        generator.generate(request)
    assert generator.generate(replace(request, max_new_tokens=155)).token_ids
    renumbered = generator_for(tmp_path / "renumbered")
    assert renumbered.generate(request).token_ids


def test_rows_of_the_stitched_picture(tmp_path: Path) -> None:
    model = replace(MODEL, strategy="row", weights={})
    generator = generator_for(tmp_path, model, row_scope="stitched")
    result = generator.generate(Request("what?", (SQUARE,), ratio=0.5, max_new_tokens=1))
    scores = MODEL.scores(generator.preprocess([SQUARE])[0].pixel_values)
    canvas = scores[1:].reshape(2, 2, 4, 4).transpose(0, 2, 1, 3).reshape(8, 8).mean(axis=1)
    best = sorted(np.argsort(-canvas)[:4].tolist())
    overview = sorted(np.argsort(-scores[0].reshape(4, 4).mean(axis=1))[:2].tolist())
    kept = {4 * y + x for y in overview for x in range(4)}
    for y in best:
        for tile in (1 + y // 4 * 2, 2 + y // 4 * 2):
            kept |= {16 * tile + y % 4 * 4 + x for x in range(4)}
    assert set(result.kept_indices[0]) == kept
    assert result.visual_tokens_after == (8 + 4 * 8 + 8,)
    # Visual tokens may go to a second question: their sum is what was asked for.
    stream = generator.stream(Request("what?", (SQUARE,), ratio=0.5, max_new_tokens=1))
    list(stream)
    again = generator.generate(Request("more?", (SQUARE,), ratio=0.5, max_new_tokens=1), stream.encoded)
    assert again.kept_indices == result.kept_indices


def test_second_turn_about_tiles(generator: Generator) -> None:
    turn = Turn("what?", (LYING,), "it is")
    request = Request("more?", (PADDED,), ratio=0.5, max_new_tokens=6, ignore_eos=True, history=(turn,))
    result = generator.generate(request)
    rows = [rows_of(generator, photo, 0.5) for photo in (LYING, PADDED)]
    parts = [features_of(generator, photo, own) for photo, own in zip((LYING, PADDED), rows, strict=True)]
    first = [BOS, *byte_ids("Q: "), *[IMAGE] * len(rows[0]), *byte_ids("\nwhat? A:it is\nQ: ")]
    ids = [*first, *[IMAGE] * len(rows[1]), *byte_ids("\nmore? A:")]
    assert list(result.token_ids) == MODEL.greedy(MODEL.merged(np.array([ids]), np.concatenate(parts)), 6)


def test_cancelled_answer_reports_planned_counts(generator: Generator) -> None:
    stream = generator.stream(Request("what?", (SQUARE,), ratio=0.3))
    stream.cancel()
    assert stream.result.visual_tokens_after == (33,)
    assert stream.encoded == ()


@pytest.fixture
def three_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator:
    monkeypatch.setitem(LAYOUTS, AxesLayout.kind, AxesLayout)
    return generator_for(tmp_path, ToyModel(grid=(2, 4), axes=3))


@pytest.mark.parametrize("keep", [3, 8])
def test_answer_with_positions_of_three_axes(three_axes: Generator, keep: int) -> None:
    model = ToyModel(grid=(2, 4), axes=3)
    photos = (toy_photo(model.size), toy_photo(model.size, 9))
    result = three_axes.generate(Request("what?", photos, tokens=keep, max_new_tokens=10, ignore_eos=True))
    pixels = np.stack([photo.transpose(2, 0, 1) / 128 for photo in photos]).astype(np.float32)
    kept = model.kept(pixels, keep)
    # Text counts on every axis; a picture is (0, row, column) from its start, and as long as its longer side.
    columns: list[list[int]] = [[place] * 3 for place in range(4)]
    start = 4
    for own in kept.tolist():
        columns += [[start, start + token // 4, start + token % 4] for token in own]
        start += 4
        columns.append([start] * 3)
        start += 1
    columns += [[start + place] * 3 for place in range(8)]
    ids = prompt_ids([keep, keep], "what?")
    assert len(columns) == len(ids)
    embeds = model.merged(np.array([ids]), model.pruned(pixels, keep))
    expected = model.greedy(embeds, 10, np.array(columns).T, start + 8)
    assert list(result.token_ids) == expected
    encoded = three_axes.encode_images(three_axes.preprocess(photos), Selection(((keep,), (keep,))))
    plain = three_axes.tokenize(Request("what?", photos), [image.plan for image in encoded])
    positions = three_axes.prompt(plain, encoded).positions
    assert positions.ids.T.tolist() == columns
    assert positions.next == start + 8
    assert result.kv_bytes == 2 * 2 * 2 * 4 * 4 * (len(ids) + 9)
