"""Manifests of format 1 become those of format 2; a broken one still names its place."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from runtime.decode import decode, encode
from runtime.errors import BundleError
from runtime.layouts import LAYOUTS, ImageLayout
from runtime.layouts.single import SingleLayout
from runtime.manifest import FORMAT_VERSION, Manifest
from runtime.upgrade import upgraded

FROZEN = Path(__file__).parent / "data" / "bundle_v1" / "bundle.json"


@pytest.fixture
def old() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FROZEN.read_text())
    assert data["format_version"] == 1
    return data


def test_vision_and_geometry_become_the_layout(old: dict[str, Any]) -> None:
    before = copy.deepcopy(old)
    new = upgraded(old, 1)
    assert old == before  # not written into
    assert new["format_version"] == FORMAT_VERSION == 3
    assert new["layout"] == {
        "kind": "single",
        "grid": [4, 4],
        "tokens": 16,
        "prefix_tokens": 0,
        "resize": {"height": 16, "width": 16},
        "crop": None,
        "pad_to_square": None,
    }
    assert new["preprocess"] == {
        "resample": 3,
        "rescale_factor": 0.0078125,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    }
    same = set(new) - {"layout", "preprocess", "format_version"}
    assert {key: new[key] for key in same} == {key: old[key] for key in same}
    assert "vision" not in new


def test_what_format_1_meant_is_the_default_now(old: dict[str, Any]) -> None:
    manifest = Manifest.from_json(old)
    pruning = manifest.pruning
    assert (pruning.row_scope, pruning.newline, pruning.position_ids) == ("tile", "keep_all", "renumber")
    assert manifest.decoder.position_axes == 1
    assert manifest.constants == {}
    assert manifest.layout == SingleLayout((4, 4), 16, {"height": 16, "width": 16}, None, None)
    # Written again, it is of the new format, and reads the same.
    assert json.loads(manifest.to_json())["format_version"] == 3
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_the_newest_format_is_left_alone(old: dict[str, Any]) -> None:
    new = upgraded(old, 1)
    assert upgraded(new, FORMAT_VERSION) is new


def test_format_2_differs_by_its_number_alone(old: dict[str, Any]) -> None:
    second = {**upgraded(old, 1), "format_version": 2}
    assert upgraded(second, 2) == {**second, "format_version": FORMAT_VERSION}
    decoder = Manifest.from_json(second).decoder
    assert (decoder.caches, decoder.cache_dtype) == ({"decoder_model_merged": "concat"}, "float32")


def test_every_geometry_of_format_1(old: dict[str, Any]) -> None:
    old["preprocess"] |= {
        "resize": {"shortest_edge": 20},
        "crop": {"height": 16, "width": 16},
        "pad_to_square": [1, 2, 3],
    }
    old["vision"] |= {"grid": None, "prefix_tokens": 1}
    layout = Manifest.from_json(old).layout
    crop = {"height": 16, "width": 16}
    assert layout == SingleLayout(None, 16, {"shortest_edge": 20}, crop, (1, 2, 3), 1)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("vision", None, ..., 'bundle.json lacks the key "layout"'),
        ("vision", None, 3, 'bundle.json has the unknown key "vision"'),
        ("preprocess", None, [], 'bundle.json has the unknown key "vision"'),
        ("vision", "tokens", ..., 'bundle.json.layout lacks the key "tokens": rebuild'),
        ("vision", "tokens", "16", "bundle.json.layout.tokens is '16', expected an integer"),
        ("vision", "colour", 1, 'bundle.json.layout has the unknown key "colour"'),
        ("vision", "grid", [4, 5], r"layout.grid is \[4, 5\], which does not make layout.tokens 16"),
        ("preprocess", "resize", ..., 'bundle.json.layout lacks the key "resize"'),
        ("preprocess", "resize", {"longest_edge": 3}, r"layout.resize is \{'longest_edge': 3\}, expected"),
        ("preprocess", "crop", 4, "bundle.json.layout.crop is 4, expected an object"),
        ("preprocess", "mean", ..., 'bundle.json.preprocess lacks the key "mean"'),
        ("preprocess", "colour", 1, 'bundle.json.preprocess has the unknown key "colour"'),
    ],
)
def test_a_broken_manifest_of_format_1_names_its_place(
    old: dict[str, Any], section: str, key: str | None, value: object, message: str
) -> None:
    place, name = (old, section) if key is None else (old[section], key)
    if value is ...:
        del place[name]
    else:
        place[name] = value
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(old)


@dataclass(frozen=True)
class CornerLayout(SingleLayout):
    """A layout that another package brings: its own name, one more field."""

    kind: ClassVar[str] = "corner"

    corner: str = "left"


def test_a_layout_is_found_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = CornerLayout((2, 3), 6, {"height": 4, "width": 6}, None, None, corner="right")
    data = json.loads(json.dumps(encode(layout)))
    assert data["kind"] == "corner"
    assert next(iter(data)) == "kind"
    with pytest.raises(BundleError, match=r"here.kind is 'corner', expected one of single, .*: upgrade the"):
        decode(ImageLayout, data, "here")
    monkeypatch.setitem(LAYOUTS, "corner", CornerLayout)
    assert decode(ImageLayout, data, "here") == layout
    assert data["kind"] == "corner"  # the caller's object stays as it is
    with pytest.raises(BundleError, match=r'here has the unknown key "colour" .*corner'):
        decode(ImageLayout, {**data, "colour": 1}, "here")
    with pytest.raises(BundleError, match=r"here\.corner is 3, expected a string"):
        decode(ImageLayout, {**data, "corner": 3}, "here")
    for missing in ("grid", "tokens", "resize"):
        short = {key: value for key, value in data.items() if key != missing}
        with pytest.raises(BundleError, match=f'here lacks the key "{missing}"'):
            decode(ImageLayout, short, "here")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_kinds_are_their_own_names(kind: str) -> None:
    assert LAYOUTS[kind].kind == kind
    assert ImageLayout.concrete(kind, "layout") is LAYOUTS[kind]


@pytest.mark.parametrize("value", [None, 3, [], "single"])
def test_a_layout_that_is_no_object(value: object) -> None:
    with pytest.raises(BundleError, match=r"here is .*, expected an object"):
        decode(ImageLayout, value, "here")
