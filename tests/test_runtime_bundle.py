"""Manifest and bundle loading: what is written can be read, all that is damaged is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from runtime import contract
from runtime.bundle import load_bundle
from runtime.check import check_bundle
from runtime.decode import decode
from runtime.errors import BundleError
from runtime.generator import Generator
from runtime.manifest import FileInfo, Manifest
from runtime.request import Request
from tests.toy_bundle import ToyModel, rehash, write_toy_bundle

ROOT = Path(__file__).resolve().parent
FROZEN = ROOT / "data" / "bundle_v1"
SCHEMA = ROOT.parent / "docs" / "bundle.schema.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "toy")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return (write_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy") / "bundle.json").read_text()


def edited(text: str, path: str, value: object) -> dict[str, Any]:
    """The manifest as an object with the value at a dotted path replaced, or removed by `...`."""
    data: dict[str, Any] = json.loads(text)
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


def test_round_trip(text: str) -> None:
    manifest = Manifest.from_json(text)
    assert manifest.to_json() == text
    assert Manifest.from_json(json.loads(text)) == manifest


def test_parity_may_be_absent(text: str) -> None:
    assert Manifest.from_json(edited(text, "parity", ...)).parity is None
    assert Manifest.from_json(edited(text, "parity", {"ok": True})).parity == {"ok": True}


REBUILD = r"rebuild the bundle with `python -m export.build`"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "colour",
            1,
            r'bundle.json has the unknown key "colour" \(known: format_version, .*\): upgrade the runtime',
        ),
        ("tokens.unk", 1, r'bundle.json.tokens has the unknown key "unk" \(known: image, eos, pad, bos\)'),
        ("vision", ..., f'bundle.json lacks the key "vision": {REBUILD}'),
        ("vision.tokens", ..., 'bundle.json.vision lacks the key "tokens"'),
        ("vision.tokens", "16", f"bundle.json.vision.tokens is '16', expected an integer: {REBUILD}"),
        ("vision.tokens", True, "bundle.json.vision.tokens is True, expected an integer"),
        ("vision.tokens", None, "bundle.json.vision.tokens is None, expected an integer"),
        ("vision.grid", [4], r"bundle.json.vision.grid is \[4\], expected a list of 2"),
        ("vision.grid", 4, "bundle.json.vision.grid is 4, expected a list"),
        ("tokens", [], r"bundle.json.tokens is \[\], expected an object"),
        ("files", [], r"bundle.json.files is \[\], expected an object"),
        ("model.name", ["x" * 90], r"bundle.json.model.name is \['x+\.\.\., expected a string"),
        ("prompt.add_special_tokens", 1, "add_special_tokens is 1, expected true or false"),
        ("preprocess.rescale_factor", "a", "rescale_factor is 'a', expected a number"),
        ("created_by.opset", 2.5, "created_by.opset is 2.5, expected a string or an integer"),
        (
            "graphs.embed_tokens.inputs",
            [{"name": "a", "dtype": "b", "shape": [1.5]}],
            r"shape\[0\] is 1.5, expected",
        ),
        ("format_version", 2, "the bundle has format 2, but this runtime reads up to 1: upgrade the runtime"),
        ("format_version", 0, r"format_version is 0, expected 1\.\.1"),
        ("format_version", ..., "bundle.json: format_version is None, expected an integer"),
        ("vision.tokens", 0, "vision.tokens is 0 and vision.prefix_tokens 0, expected at least 1 and 0"),
        ("vision.grid", [4, 5], r"vision.grid is \[4, 5\], which does not make vision.tokens 16"),
        ("preprocess.resize", {"longest_edge": 3}, r"preprocess.resize is \{'longest_edge': 3\}, expected"),
        ("preprocess.resize", {"height": 0, "width": 4}, "preprocess.resize is "),
        ("preprocess.crop", {"height": 4}, r"preprocess.crop is \{'height': 4\}, expected"),
        ("preprocess.resize", {"shortest_edge": 16}, "preprocess.crop must say the final size"),
        (
            "preprocess.resize",
            {"height": 8, "width": 8},
            r"preprocess makes images of \(8, 8\), but vision.image_size",
        ),
        ("preprocess.resample", 6, r"preprocess.resample is 6, expected PIL's code 0\.\.5"),
        ("preprocess.std", [1.0, 0.0, 1.0], r"preprocess.std is \[1.0, 0.0, 1.0\], but no entry may be 0"),
        ("pruning.strategy", "best", 'pruning.strategy is "best", expected one of rank, row'),
        (
            "pruning.aggregation",
            "max",
            'pruning.aggregation is "max", expected one of col_mean, col_mean_patch, cls',
        ),
        (
            "pruning.score_path",
            "x",
            'pruning.score_path is "x", expected one of one_pass, side_branch, cls_row, chunked',
        ),
        ("pruning.gather", "x", 'pruning.gather is "x", expected one of early, late'),
        ("pruning.position_ids", "original", 'pruning.position_ids is "original", expected one of renumber'),
        (
            "pruning.default_tokens",
            4,
            "pruning has both default_ratio and default_tokens, drop one: rebuild",
        ),
        ("pruning.default_ratio", 1.5, r"pruning.default_ratio is 1.5, expected a number in \(0, 1\]"),
        ("decoder.layers", 0, "decoder.layers is 0, expected at least 1"),
        ("vision.grid", [-4, -4], r"vision.grid is \[-4, -4\], expected numbers from 1 on"),
        ("vision.image_size", [0, 16], r"vision.image_size is \[0, 16\], expected numbers from 1 on"),
        ("preprocess.rescale_factor", 0, "preprocess.rescale_factor is 0.0, expected more than 0"),
        ("tokens.eos", [], r"tokens.eos is \[\], expected at least one token id"),
        ("tokens.eos", [-2], r"tokens.eos is \[-2\], expected at least one token id"),
        (
            "prompt.past_answer",
            "{answer}{answer}",
            r"prompt.past_answer is .*, which must hold \{answer\} exactly once",
        ),
        ("prompt.generation", "B:", "prompt.generation is 'B:', which must end every turn, but one is 'Q: "),
        ("tokens.image", -1, "tokens.image is -1, expected a token id"),
        (
            "graphs.embed_tokens",
            ...,
            r"graphs is \['decoder_model_merged', 'vision_encoder', .*\], expected \[",
        ),
        (
            "graphs.embed_tokens.file",
            "onnx/other.onnx",
            'graphs.embed_tokens.file is "onnx/other.onnx", which files',
        ),
    ],
)
def test_manifest_that_is_refused(text: str, path: str, value: object, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(edited(text, path, value))


def test_a_long_string_is_a_string(text: str) -> None:
    assert Manifest.from_json(edited(text, "model.name", "x" * 81)).model.name == "x" * 81


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\\b", "./a", "a//b", ""])
def test_path_that_leaves_the_bundle(text: str, name: str) -> None:
    data = json.loads(text)
    data["files"][name] = {"bytes": 1, "sha256": "0"}
    with pytest.raises(
        BundleError, match="which is not a plain path inside the bundle: do not use it, or rebuild"
    ):
        Manifest.from_json(data)


@pytest.mark.parametrize(
    ("pruning", "grid", "message"),
    [
        ({"strategy": "row"}, None, 'pruning.strategy is "row", which needs vision.grid, but that is null'),
        (
            {"default_ratio": None, "default_tokens": 17},
            (4, 4),
            "default_tokens is 17, but an image has 16 tokens",
        ),
        (
            {"default_ratio": None, "default_tokens": 0},
            (4, 4),
            "pruning.default_tokens is 0, expected 1 or more",
        ),
    ],
)
def test_pruning_that_does_not_fit(text: str, pruning: dict[str, Any], grid: object, message: str) -> None:
    manifest = Manifest.from_json(text)
    with pytest.raises(BundleError, match=message):
        replace(
            manifest,
            pruning=replace(manifest.pruning, **pruning),
            vision=replace(manifest.vision, grid=grid),
        )


def test_newer_format_is_named_before_its_unknown_keys(text: str) -> None:
    data = edited(text, "format_version", 7)
    data["new"] = {}
    with pytest.raises(BundleError, match="the bundle has format 7"):
        Manifest.from_json(data)


@pytest.mark.parametrize("broken", ["", "{", '{"format_version": 1,}', "\x00"])
def test_not_json(broken: str) -> None:
    with pytest.raises(BundleError, match=r"bundle.json is not JSON \(.*\): rebuild"):
        Manifest.from_json(broken)


def test_json_that_is_too_deep() -> None:
    with pytest.raises(BundleError, match=r"bundle.json is not JSON \(.*recursion.*\): rebuild"):
        Manifest.from_json("[" * 100_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vision.tokens": 4, "vision.grid": [2, 2]},
            r"graph vision_encoder: output image_features has the shape \[images, 16, 8\], but the rest of "
            r"bundle.json makes it \[images, 4, 8\]: rebuild",
        ),
        ({"decoder.hidden_size": 1_000_000}, r"image_features has the shape .* \[images, 16, 1000000\]"),
        ({"decoder.vocab_size": 7}, r"graph decoder_model_merged: output logits has the shape .* 7\]"),
        ({"decoder.head_dim": 5}, r"input past_key_values.0.key has the shape \[batch, 2, past, 4\]"),
        ({"vision.image_size": [8, 8], "preprocess.resize": {"height": 8, "width": 8}}, "input pixel_values"),
        (
            {"graphs.embed_tokens.outputs": [{"name": "inputs_embeds", "dtype": "float32", "shape": [8]}]},
            r"output inputs_embeds has the shape \[8\]",
        ),
    ],
)
def test_numbers_that_contradict_the_graphs(root: Path, changes: dict[str, Any], message: str) -> None:
    text = (root / "bundle.json").read_text()
    for path, value in changes.items():
        text = json.dumps(edited(text, path, value))
    (root / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        load_bundle(root)


def test_tables_that_contradict_the_graph_files(root: Path, tmp_path: Path) -> None:
    """Another model's manifest over these files: consistent in itself, so only the opened graph can tell."""
    other = write_toy_bundle(tmp_path / "other", ToyModel(grid=(2, 2)))
    files = json.loads((root / "bundle.json").read_text())["files"]
    text = json.dumps(edited((other / "bundle.json").read_text(), "files", files))
    (root / "bundle.json").write_text(text)
    generator = Generator(load_bundle(root), threads=1)
    message = (
        r"graph vision_encoder: input pixel_values is \[\?, 3, 16, 16\] in the file, but bundle.json says "
        r"\[images, 3, 8, 8\]: rebuild"
    )
    with pytest.raises(BundleError, match=message):
        generator.session(contract.VISION_ENCODER)
    assert generator.loaded_graphs == ()


def test_graph_file_of_another_graph(root: Path) -> None:
    folder = root / "onnx"
    (folder / "vision_encoder_fopru.onnx").write_bytes((folder / "vision_encoder.onnx").read_bytes())
    rehash(root)
    message = (
        r"graph vision_encoder_fopru has no input num_keep, which bundle.json lists \(it has pixel_values\)"
    )
    with pytest.raises(BundleError, match=message):
        Generator(load_bundle(root), threads=1).session(contract.VISION_ENCODER_FOPRU)


def test_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the bundle .* cannot be opened \(.*too long.*\): check the path"):
        load_bundle(tmp_path / ("x" * 300))


def test_json_that_is_no_object() -> None:
    with pytest.raises(BundleError, match=r"bundle.json holds a list, expected an object"):
        Manifest.from_json("[]")


def test_infinity_is_no_number() -> None:
    with pytest.raises(BundleError, match="x is inf, expected a number"):
        decode(float, float("inf"), "x")


def test_load_and_paths(root: Path) -> None:
    bundle = load_bundle(str(root))
    assert bundle.path == root
    assert bundle.file("tokenizer.json") == root / "tokenizer.json"
    assert bundle.graph(contract.DECODER) == root / "onnx" / "decoder_model_merged.onnx"
    with pytest.raises(BundleError, match=r"bundle .*toy has no config.json: rebuild"):
        bundle.file("config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "bundle.json").unlink(),
            "has no bundle.json, so it is not a bundle or was only half wr",
        ),
        (lambda root: (root / "bundle.json").write_text("{"), "bundle.json is not JSON"),
        (
            lambda root: (root / "bundle.json").write_bytes(b"\xff\xfe\x00"),
            r"bundle.json cannot be read \(.*\): copy",
        ),
        (
            lambda root: (root / "tokenizer.json").unlink(),
            "lacks tokenizer.json, so it was only copied in part: copy",
        ),
        (
            lambda root: (root / "onnx/embed_tokens.onnx").write_bytes(b"short"),
            r"embed_tokens.onnx has 5 bytes, but bundle.json says \d+: copy the bundle again, it is damaged",
        ),
    ],
)
def test_damaged_bundle(root: Path, change: Callable[[Path], object], message: str) -> None:
    change(root)
    with pytest.raises(BundleError, match=message):
        load_bundle(root)


def test_flipped_bit_is_found_by_the_hash_alone(root: Path) -> None:
    file = root / "onnx" / "embed_tokens.onnx"
    data = bytearray(file.read_bytes())
    data[2000] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        BundleError, match=r"embed_tokens.onnx does not have the SHA-256 of bundle.json: copy the"
    ):
        load_bundle(root)
    assert load_bundle(root, verify=False).path == root


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=r"there is no bundle at .*nowhere: build one with `python -m export.build"
    ):
        load_bundle(tmp_path / "nowhere")


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="file is a file, but a bundle is a directory: give the directory"):
        load_bundle(tmp_path / "file")


def test_graph_tables_must_keep_the_contract(tmp_path: Path) -> None:
    def edit(manifest: Manifest) -> Manifest:
        info = manifest.graphs[contract.VISION_ENCODER_FOPRU]
        short = replace(info, outputs=info.outputs[:1])
        return replace(manifest, graphs={**manifest.graphs, contract.VISION_ENCODER_FOPRU: short})

    root = write_toy_bundle(tmp_path / "toy", edit=edit)
    with pytest.raises(
        BundleError,
        match="graph vision_encoder_fopru: output kept_indices is absent, expected int64: rebuild",
    ):
        load_bundle(root)


def test_schema_accepts_the_toy_and_the_frozen_bundle(text: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    validator.check_schema(validator.schema)
    for manifest in (text, (FROZEN / "bundle.json").read_text()):
        assert [error.message for error in validator.iter_errors(json.loads(manifest))] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("colour", 1),
        ("vision", ...),
        ("vision.tokens", "16"),
        ("format_version", 2),
        ("preprocess.resize", {"longest_edge": 3}),
        ("pruning.strategy", "best"),
        ("prompt.first_turn", "no slots"),
        ("prompt.past_answer", "no slot"),
        ("preprocess.std", [1, 0, 1]),
        ("preprocess.rescale_factor", 0),
        ("tokens.eos", []),
        ("files.onnx/x", {"bytes": 1}),
        ("files", {"../x": {"bytes": 1, "sha256": "0" * 64}}),
        ("files", {"/x": {"bytes": 1, "sha256": "0" * 64}}),
        ("files", {"a/./x": {"bytes": 1, "sha256": "0" * 64}}),
    ],
)
def test_schema_refuses_what_the_loader_refuses(text: str, path: str, value: object) -> None:
    data = edited(text, path, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json.loads(SCHEMA.read_text()))
    with pytest.raises(BundleError, match=r"bundle|files|preprocess|pruning|prompt|tokens.eos"):
        Manifest.from_json(data)


def test_frozen_bundle_of_version_1_still_answers() -> None:
    """The promise of the format: never regenerate this bundle for a new version, add another."""
    bundle = load_bundle(FROZEN)
    assert bundle.manifest.format_version == 1
    assert sum(file.stat().st_size for file in FROZEN.rglob("*") if file.is_file()) < 100_000
    assert check_bundle(bundle, threads=1).ok
    photo = np.zeros((16, 16, 3), np.uint8)
    assert Generator(bundle, threads=1).generate(Request("?", (photo,), max_new_tokens=2)).token_ids


def test_file_info_is_what_is_on_disk(root: Path) -> None:
    info = load_bundle(root).manifest.files["tokenizer.json"]
    assert isinstance(info, FileInfo)
    assert info.bytes == (root / "tokenizer.json").stat().st_size
