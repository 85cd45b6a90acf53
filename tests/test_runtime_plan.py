"""Counts of one picture per image, requests, host selectors; tests/test_runtime_units.py has the tiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.counts import kept_count, kept_rows
from runtime.errors import BackendError, RequestError
from runtime.manifest import Manifest
from runtime.plan import Amount, PruningPlan, plan_pruning
from runtime.request import Request, Turn
from runtime.selectors import SELECTORS, Choice, allowed_selectors, select
from tests.toy_bundle import ToyModel, toy_files, toy_manifest

GOLDEN = [
    (576, 0.3, 173), (576, 0.25, 144), (576, 0.05, 29), (576, 0.002, 1), (2880, 0.3, 864), (729, 0.3, 219),
    (256, 0.3, 77), (64, 0.3, 19), (1, 0.3, 1), (2, 0.25, 1), (10, 0.25, 3), (25, 0.58, 14), (50, 0.29, 14),
    (50, 0.53, 27), (150, 0.21, 32), (150, 0.41, 61), (1250, 0.57, 712), (196, 0.3, 59), (196, 1.0, 196),
]  # fmt: skip


def manifest(grid: tuple[int, int] = (4, 4), strategy: str = "rank", **pruning: object) -> Manifest:
    base = toy_manifest(ToyModel(grid=grid, strategy=strategy), toy_files())
    return replace(base, pruning=replace(base.pruning, **pruning))


def planned(request: Request, bundle: Manifest) -> PruningPlan:
    return plan_pruning(request, bundle, [bundle.layout.plan(40, 30) for _ in request.all_images])


@pytest.mark.parametrize(("tokens", "ratio", "kept"), GOLDEN)
def test_kept_count_golden_table(tokens: int, ratio: float, kept: int) -> None:
    assert kept_count(tokens, ratio) == kept


@pytest.mark.parametrize(("ratio", "rows"), [(0.75, 18), (0.5, 12), (0.3, 7), (0.25, 6), (0.01, 1)])
def test_kept_rows(ratio: float, rows: int) -> None:
    assert kept_rows(24, ratio) == rows


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_ratio_out_of_range(ratio: float) -> None:
    message = rf"ratio is {ratio}, but it is the fraction of tokens kept: give a number in \(0, 1\]"
    with pytest.raises(RequestError, match=message):
        kept_count(576, ratio)
    with pytest.raises(RequestError, match=message):
        Request("?", ratio=ratio)


def test_no_tokens_to_prune() -> None:
    with pytest.raises(RequestError, match="cannot prune 0 tokens: an image has at least 1 visual token"):
        kept_count(0, 0.5)


IMAGE = ("photo.png",)


def pruned(keep: int, ratio: float | None = None, tokens: int | None = None) -> PruningPlan:
    return PruningPlan(Amount(ratio, tokens), ((keep,),), True, None)


def whole(reason: str) -> PruningPlan:
    return PruningPlan(Amount(), ((16,),), False, reason)


@pytest.mark.parametrize(
    ("changes", "bundle", "expected"),
    [
        ({"ratio": 0.3}, manifest(), pruned(5, 0.3)),
        ({"tokens": 7}, manifest(), pruned(7, tokens=7)),
        ({}, manifest(default_ratio=0.25), pruned(4, 0.25)),
        ({}, manifest(default_ratio=None, default_tokens=9), pruned(9, tokens=9)),
        ({"ratio": 0.5}, manifest(default_ratio=None, default_tokens=9), pruned(8, 0.5)),
        ({"tokens": 16}, manifest(), whole("tokens 16 keeps every token")),
        ({"ratio": 1.0}, manifest(), whole("ratio 1.0 keeps every token")),
        ({"ratio": 0.99}, manifest(), whole("ratio 0.99 keeps every token")),
        ({}, manifest(default_ratio=None), whole("neither the request nor the bundle gives a ratio")),
        ({"selector": "none", "ratio": 0.3}, manifest(), whole('selector "none" keeps every token')),
        ({"ratio": 0.3}, manifest((5, 3), "row"), pruned(6, 0.3)),
        ({"tokens": 8}, manifest((5, 3), "row"), pruned(6, tokens=8)),
        ({"tokens": 3}, manifest((5, 3), "row"), pruned(3, tokens=3)),
        ({"tokens": 8, "selector": "rank"}, manifest((5, 3), "row"), pruned(8, tokens=8)),
        ({"ratio": 0.3, "selector": "row"}, manifest((5, 3)), pruned(6, 0.3)),
        ({"images": ()}, manifest(), PruningPlan(Amount(), (), False, "the prompt has no image")),
        (
            {"images": IMAGE * 2, "ratio": 0.3},
            manifest(),
            PruningPlan(Amount(0.3), ((5,), (5,)), True, None),
        ),
    ],
)
def test_plan(changes: dict[str, object], bundle: Manifest, expected: PruningPlan) -> None:
    assert planned(Request("?", **{"images": IMAGE, **changes}), bundle) == expected


@pytest.mark.parametrize("tokens", [0, -3, 17])
def test_tokens_out_of_range(tokens: int) -> None:
    with pytest.raises(RequestError, match=rf"tokens is {tokens}, but an image has 16: give 1\.\.16"):
        planned(Request("?", IMAGE, tokens=tokens), manifest())


def test_fewer_tokens_than_a_row() -> None:
    with pytest.raises(
        RequestError, match=r'tokens is 2, but strategy "row" keeps whole rows of 3: give 3\.\.15'
    ):
        planned(Request("?", IMAGE, tokens=2), manifest((5, 3), "row"))


@pytest.mark.parametrize("how", [{"ratio": 0.5}, {"tokens": 4}])
def test_row_without_a_grid(how: dict[str, float]) -> None:
    ragged = manifest()
    ragged = replace(ragged, layout=replace(ragged.layout, grid=None))
    with pytest.raises(
        RequestError, match='selector "row" needs a full grid of tokens, which this model lacks'
    ):
        planned(Request("?", IMAGE, selector="row", **how), ragged)


def test_history_images_count() -> None:
    request = Request("?", history=(("a", IMAGE, "b"),), ratio=0.5)
    assert request.history == (Turn("a", IMAGE, "b"),)
    assert request.all_images == IMAGE
    assert planned(request, manifest()).counts == ((8,),)


def test_lists_become_tuples() -> None:
    request = Request("?", ["photo.png"], stop=["x", "y"])  # type: ignore[arg-type]
    assert (request.images, request.stop) == (IMAGE, ("x", "y"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0.5, "tokens": 8}, "got both ratio 0.5 and tokens 8: give one of the two"),
        ({"selector": "best"}, 'selector is "best", expected one of graph, none, rank, row, random, uniform'),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"temperature": -1.0}, r"temperature is -1.0, expected 0 \(greedy\) or a positive number"),
        ({"temperature": float("nan")}, "temperature is nan, expected 0"),
        ({"top_p": 0.0}, r"top_p is 0.0, expected a number in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, r"top_k is -1, expected 0 \(off\) or a positive integer"),
        ({"top_k": 2.5}, "top_k is 2.5, expected a whole number, 0 is off"),
        ({"min_p": 1.5}, r"min_p is 1.5, expected a number in \[0, 1\], where 0 is off"),
        ({"min_p": -0.1}, "min_p is -0.1, expected"),
        ({"min_p": "low"}, r"min_p is 'low', expected a number in \[0, 1\]"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, expected a number from 0.01 to 100, where 1"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan, expected"),
        ({"repetition_penalty": None}, "repetition_penalty is None, expected a number"),
        ({"stop": "x"}, r"stop is 'x', expected a tuple or list of strings: write \(text,\)"),
        ({"stop": ("x", 3)}, "a string of stop is 3, expected a string"),
        ({"stop": ("x", "")}, "a string of stop is empty, expected text: leave it out"),
        ({"stop": ("\udcff",)}, r"the stop string '\\udcff' is not valid Unicode at character 0"),
        ({"seed": -1}, "seed is -1, expected 0 or a positive integer"),
        ({"images": "a.png"}, r"images is a str, expected a tuple or list of images: write \(image,\)"),
        ({"images": Path("a.png")}, "images is a PosixPath, expected"),
        ({"images": np.zeros((2, 2))}, "images is a ndarray, expected"),
        ({"history": (("a", "b.png", "c"),)}, "images is a str, expected"),
        ({"ratio": "0.3"}, r"ratio is '0.3', expected a number in \(0, 1\] or None"),
        ({"ratio": True}, "ratio is True, expected a number"),
        ({"tokens": "3"}, "tokens is '3', expected a whole number or None"),
        ({"tokens": 3.5}, "tokens is 3.5, expected a whole number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5, expected a whole number"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ({"top_p": None}, r"top_p is None, expected a number in \(0, 1\]"),
        ({"seed": 1.5}, "seed is 1.5, expected a whole number"),
        ({"selector": 3}, "selector is 3, expected one of graph, none"),
        ({"ignore_eos": 1}, "ignore_eos is 1, expected True or False"),
        ({"history": "abc"}, "history is 'abc', expected a tuple or list of turns"),
        ({"history": [("a",)]}, r"a turn of history is \('a',\), expected \(prompt, images, answer\)"),
        ({"history": [("a", (), 3)]}, "the answer of a turn of history is 3, expected a string"),
        (
            {"history": [("a" * 99, (), "\udcff")]},
            r"the prompt '\\udcff' is not valid Unicode at character 0",
        ),
    ],
)
def test_request_out_of_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request("?", **changes)


@pytest.mark.parametrize("prompt", [3, None, b"what?"])
def test_prompt_that_is_no_string(prompt: object) -> None:
    with pytest.raises(RequestError, match=r"prompt is .*, expected a string"):
        Request(prompt)  # type: ignore[arg-type]


def test_prompt_that_is_no_unicode() -> None:
    with pytest.raises(RequestError, match="is not valid Unicode at character 2: write it in UTF-8"):
        Request("ab\udcff")


def test_numbers_of_numpy_are_numbers() -> None:
    request = Request("?", ratio=np.float32(0.5), seed=np.int64(3), max_new_tokens=np.int32(2))  # type: ignore[arg-type]
    assert planned(replace(request, images=IMAGE), manifest()).counts == ((8,),)


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_rank_takes_the_best_and_lower_places_of_equals() -> None:
    assert select("rank", Choice(scores(1, 5, 2, 5, 3), None, 3)).tolist() == [1, 3, 4]
    assert select("rank", Choice(scores(1, 1, 1, 1), None, 2)).tolist() == [0, 1]


def test_row_takes_whole_rows_by_mean() -> None:
    grid = scores(9, 0, 0, 4, 4, 4, 3, 3, 4)
    assert select("row", Choice(grid, (3, 3), 6)).tolist() == [3, 4, 5, 6, 7, 8]
    assert select("row", Choice(scores(1, 1, 1, 1), (2, 2), 2)).tolist() == [0, 1]


def test_uniform_spreads() -> None:
    assert select("uniform", Choice(np.zeros(10, np.float32), None, 3)).tolist() == [1, 5, 8]


def test_random_follows_the_seed() -> None:
    def draw(seed: int) -> list[int]:
        return select("random", Choice(np.zeros(100, np.float32), None, 10, seed)).tolist()

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_is_increasing_unique_and_in_range(name: str) -> None:
    rng = np.random.default_rng(5)
    for total, grid, keep in [(12, (3, 4), 4), (12, (3, 4), 8), (12, (3, 4), 12), (1, (1, 1), 1)]:
        keep = total if name == "none" else keep
        kept = select(name, Choice(rng.random(total, np.float32), grid, keep, 3))
        assert kept.dtype == np.int64
        assert kept.shape == (keep,)
        assert (np.diff(kept) > 0).all()
        assert 0 <= kept[0] <= kept[-1] < total
    assert name in allowed_selectors()


@pytest.mark.parametrize(
    ("name", "choice", "message"),
    [
        (
            "best",
            Choice(scores(1), None, 1),
            'selector is "best", expected one of none, rank, row, random, uniform',
        ),
        ("rank", Choice(scores(1, 2), None, 0), r"cannot keep 0 tokens: the image has 2, give 1\.\.2"),
        ("rank", Choice(scores(1, 2), None, 3), "cannot keep 3 tokens"),
        (
            "none",
            Choice(scores(1, 2), None, 1),
            'selector "none" keeps all 2 tokens, not 1: drop ratio and tokens',
        ),
        ("row", Choice(scores(1, 2), None, 1), 'selector "row" needs a full grid of tokens'),
        (
            "row",
            Choice(scores(1, 2), (1, 2), 1),
            'selector "row" keeps whole rows of 2 tokens, not 1: give a mul',
        ),
    ],
)
def test_selection_that_is_refused(name: str, choice: Choice, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        select(name, choice)


def test_scores_that_are_not_finite() -> None:
    with pytest.raises(BackendError, match="the vision encoder gave a token score that is not finite"):
        select("rank", Choice(scores(1, np.nan), None, 1))
