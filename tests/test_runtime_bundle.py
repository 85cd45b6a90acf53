"""Manifest and bundle loading: what is written can be read, all that is damaged is refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
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
from runtime.layouts import LAYOUTS
from runtime.manifest import (
    FORMAT_VERSION,
    IMAGE_NEWLINE,
    ConstantInfo,
    DecoderInfo,
    FileInfo,
    Manifest,
    PromptTemplate,
    PruningInfo,
)
from runtime.request import Request
from tests.toy_bundle import (
    NEWLINE_FILE,
    TILES,
    WIDTH,
    ToyModel,
    rehash,
    toy_files,
    toy_manifest,
    write_toy_bundle,
)

ROOT = Path(__file__).resolve().parent
FROZEN = {
    name: ROOT / "data" / name for name in sorted(path.name for path in (ROOT / "data").glob("bundle_v*"))
}
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
        ("layout", ..., f'bundle.json lacks the key "layout": {REBUILD}'),
        ("layout", [4], r"bundle.json.layout is \[4\], expected an object"),
        ("layout.kind", ..., r"bundle.json.layout.kind is None, expected one of single, "),
        ("layout.kind", 3, r"bundle.json.layout.kind is 3, expected one of single, "),
        (
            "layout.kind",
            "spiral",
            r"bundle.json.layout.kind is 'spiral', expected one of single, anyres.*: "
            "upgrade the runtime, or build the bundle with an exporter of this version",
        ),
        ("layout.colour", 1, r'bundle.json.layout has the unknown key "colour" \(known: grid, tokens, .*\)'),
        ("layout.tokens", ..., 'bundle.json.layout lacks the key "tokens"'),
        ("layout.prefix_tokens", -1, "layout.tokens is 16 and layout.prefix_tokens -1, expected at least 1"),
        ("vision", {}, 'bundle.json has the unknown key "vision"'),
        ("layout.tokens", "16", f"bundle.json.layout.tokens is '16', expected an integer: {REBUILD}"),
        ("layout.tokens", True, "bundle.json.layout.tokens is True, expected an integer"),
        ("layout.tokens", None, "bundle.json.layout.tokens is None, expected an integer"),
        ("layout.grid", [4], r"bundle.json.layout.grid is \[4\], expected a list of 2"),
        ("layout.grid", 4, "bundle.json.layout.grid is 4, expected a list"),
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
        ("format_version", 4, "the bundle has format 4, but this runtime reads up to 3: upgrade the runtime"),
        ("format_version", 0, r"format_version is 0, expected 1\.\.3"),
        ("format_version", ..., "bundle.json: format_version is None, expected an integer"),
        ("layout.tokens", 0, "layout.tokens is 0 and layout.prefix_tokens 0, expected at least 1 and 0"),
        ("layout.grid", [4, 5], r"layout.grid is \[4, 5\], which does not make layout.tokens 16"),
        ("layout.resize", {"longest_edge": 3}, r"layout.resize is \{'longest_edge': 3\}, expected"),
        ("layout.resize", {"height": 0, "width": 4}, "layout.resize is "),
        ("layout.crop", {"height": 4}, r"layout.crop is \{'height': 4\}, expected"),
        ("layout.resize", {"shortest_edge": 16}, "layout.crop must say the final size"),
        ("layout.pad_to_square", [1, 2], r"layout.pad_to_square is \[1, 2\], expected a list of 3"),
        ("preprocess.resample", 6, r"preprocess.resample is 6, expected PIL's code 0\.\.5"),
        ("preprocess.std", [1.0, 0.0, 1.0], r"preprocess.std is \[1.0, 0.0, 1.0\], expected more than 0"),
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
        ("pruning.position_ids", "x", 'pruning.position_ids is "x", expected one of renumber, original'),
        ("pruning.row_scope", "x", 'pruning.row_scope is "x", expected one of tile, stitched'),
        ("pruning.row_scope", "stitched", 'is "stitched", which is for strategy "row", but that is "rank"'),
        (
            "pruning.newline",
            "x",
            'pruning.newline is "x", expected one of keep_all, keep_nonempty, drop: rebuild',
        ),
        ("decoder.position_axes", 0, "decoder.position_axes is 0, expected at least 1"),
        (
            "decoder.position_axes",
            3,
            "decoder.position_axes is 3, but the layout single has 1: rebuild",
        ),
        (
            "constants",
            {"image_newline": {"file": "x.bin", "shape": [8]}},
            'constants.image_newline.file is "x.bin", which files does not list: rebuild',
        ),
        (
            "pruning.default_tokens",
            4,
            "pruning has both default_ratio and default_tokens, drop one: rebuild",
        ),
        ("pruning.default_ratio", 1.5, r"pruning.default_ratio is 1.5, expected a number in \(0, 1\]"),
        ("decoder.layers", 0, "decoder.layers is 0, expected at least 1"),
        ("layout.grid", [-4, -4], r"layout.grid is \[-4, -4\], expected numbers from 1 on"),
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
        (
            {"strategy": "row"},
            None,
            'pruning.strategy is "row", which needs a grid of tokens, but layout.grid is null',
        ),
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
            layout=replace(manifest.layout, grid=grid),
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
            {"layout.tokens": 4, "layout.grid": [2, 2]},
            r"graph vision_encoder: output image_features has the shape \[images, 16, 8\], but the rest of "
            r"bundle.json makes it \[images, 4, 8\]: rebuild",
        ),
        ({"decoder.hidden_size": 1_000_000}, r"image_features has the shape .* \[images, 16, 1000000\]"),
        ({"decoder.vocab_size": 7}, r"graph decoder_model_merged: output logits has the shape .* 7\]"),
        ({"decoder.head_dim": 5}, r"input past_key_values.0.key has the shape \[batch, 2, past, 4\]"),
        ({"layout.resize": {"height": 8, "width": 8}}, "input pixel_values"),
        (
            {"graphs.vision_encoder_fopru.inputs": []},
            "graph vision_encoder_fopru: input pixel_values is absent",
        ),
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


def test_schema_accepts_the_toys(text: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    validator.check_schema(validator.schema)
    frozen = [(FROZEN[name] / "bundle.json").read_text() for name in ("bundle_v3", "bundle_v3_q4")]
    for manifest in (text, *frozen):
        assert [error.message for error in validator.iter_errors(json.loads(manifest))] == []


@pytest.mark.parametrize("kind", LAYOUTS)
def test_schema_has_every_layout_with_its_fields(kind: str) -> None:
    schema = json.loads(SCHEMA.read_text())
    assert {"$ref": f"#/$defs/layout_{kind}"} in schema["properties"]["layout"]["oneOf"]
    record, own = schema["$defs"][f"layout_{kind}"], fields(LAYOUTS[kind])  # type: ignore[arg-type]
    assert record["properties"]["kind"] == {"const": kind}
    assert list(record["properties"]) == ["kind", *(field.name for field in own)]
    required = [field.name for field in own if field.default is MISSING]
    assert record["required"] == ["kind", *required]


def test_schema_has_every_optional_key() -> None:
    properties = json.loads(SCHEMA.read_text())["properties"]
    for key, record in (("prompt", PromptTemplate), ("pruning", PruningInfo), ("decoder", DecoderInfo)):
        own = fields(record)
        assert set(properties[key]["properties"]) == {field.name for field in own}
        needed = {f.name for f in own if f.default is MISSING and f.default_factory is MISSING}
        assert set(properties[key]["required"]) == needed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("colour", 1),
        ("layout", ...),
        ("layout.kind", ...),
        ("layout.kind", "spiral"),
        ("layout.colour", 1),
        ("layout.pad_to_square", [1, 2]),
        ("pruning.newline", "some"),
        ("pruning.row_scope", "image"),
        ("decoder.position_axes", 0),
        ("constants", {"image_newline": {"file": "x.bin"}}),
        ("layout.tokens", "16"),
        ("format_version", 4),
        ("decoder.caches", {}),
        ("decoder.caches", {"decoder_model_merged": "paged"}),
        ("decoder.caches", {"decoder": "concat"}),
        ("decoder.cache_dtype", "float64"),
        ("layout.resize", {"longest_edge": 3}),
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
    with pytest.raises(
        BundleError, match=r"bundle|files|layout|preprocess|pruning|prompt|tokens.eos|decoder"
    ):
        Manifest.from_json(data)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_bundles_still_answer(name: str) -> None:
    """The promise of the format: never regenerate these bundles for a new version, add another."""
    frozen = FROZEN[name]
    bundle = load_bundle(frozen)
    written = json.loads((frozen / "bundle.json").read_text())["format_version"]
    assert (written, bundle.manifest.format_version) == (int(name[len("bundle_v")]), FORMAT_VERSION)
    assert sum(file.stat().st_size for file in frozen.rglob("*") if file.is_file()) < 500_000
    report = check_bundle(bundle, threads=1)
    assert report.ok
    assert not any(stage.skipped for stage in report.stages)
    photo = np.zeros((16, 16, 3), np.uint8)
    assert Generator(bundle, threads=1).generate(Request("?", (photo,), max_new_tokens=2)).token_ids


def test_every_version_has_a_frozen_bundle() -> None:
    versions = {int(name.removeprefix("bundle_v")[0]) for name in FROZEN}
    assert versions == set(range(1, FORMAT_VERSION + 1))


def test_file_info_is_what_is_on_disk(root: Path) -> None:
    info = load_bundle(root).manifest.files["tokenizer.json"]
    assert isinstance(info, FileInfo)
    assert info.bytes == (root / "tokenizer.json").stat().st_size


def test_newline_vector_is_read(tmp_path: Path) -> None:
    model = ToyModel(pinpoints=TILES)
    bundle = load_bundle(write_toy_bundle(tmp_path / "toy", model))
    vector = bundle.constant(IMAGE_NEWLINE)
    assert vector is not None
    assert (vector.dtype, vector.shape) == (np.float32, (WIDTH,))
    np.testing.assert_array_equal(vector, model.weights["newline"])
    assert bundle.constant("another") is None


def test_constant_of_another_size_than_its_shape(tmp_path: Path) -> None:
    root = write_toy_bundle(tmp_path / "toy", ToyModel(pinpoints=TILES))
    (root / NEWLINE_FILE).write_bytes(np.zeros(WIDTH - 1, "<f4").tobytes())
    rehash(root)
    message = r"image_newline.bin has 28 bytes, but bundle.json says float32 \[8\]: copy the bundle again"
    with pytest.raises(BundleError, match=message):
        Generator(load_bundle(root), threads=1)


def test_tiles_without_a_newline_vector() -> None:
    manifest = toy_manifest(ToyModel(pinpoints=TILES), toy_files())
    assert manifest.constants == {IMAGE_NEWLINE: ConstantInfo(NEWLINE_FILE, (WIDTH,))}
    with pytest.raises(
        BundleError, match="constants lacks image_newline, which the layout anyres needs: rebuild"
    ):
        replace(manifest, constants={})


def test_default_tokens_of_tiles_are_for_the_whole_image() -> None:
    manifest = toy_manifest(ToyModel(pinpoints=TILES), toy_files())
    # More than one tile has, but an image has several: only its size can tell.
    many = replace(manifest.pruning, default_ratio=None, default_tokens=17)
    assert replace(manifest, pruning=many).pruning.default_tokens == 17
