"""One graph from two: against both run apart, on real exports; names, weights, and what is refused."""

# ruff: noqa: E501  (one case per line)
from __future__ import annotations

import hashlib
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from fopru_graph import GraphFileError, LocateError, OptionError, UnsupportedGraphError
from fopru_graph import splice as module
from fopru_graph.splice import SpliceOptions, SpliceReport, splice, splice_files
from runtime import contract

Arrays = dict[str, np.ndarray]
DECODER_FILE = f"{contract.DECODER_PORTABLE}.onnx"
VISION_FILE = f"{contract.VISION_ENCODER_FOPRU}.onnx"


def session(path: Path | bytes) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(graph: ort.InferenceSession, feeds: Arrays) -> Arrays:
    return dict(zip([value.name for value in graph.get_outputs()], graph.run(None, feeds), strict=True))


@pytest.fixture(scope="module")
def folder(toy_bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of a real toy export and both spliced forms, in one folder."""
    folder = tmp_path_factory.mktemp("splice") / "onnx"
    shutil.copytree(toy_bundle_dir / "onnx", folder)
    return folder


@pytest.fixture(scope="module")
def before(folder: Path) -> Arrays:
    """Every initializer of both graphs, read before anything is joined."""
    return {
        f"{prefix}{name}": value.const_value.numpy().copy()  # type: ignore[union-attr]
        for prefix, file in (("", VISION_FILE), ("decoder/", DECODER_FILE))
        for name, value in ir.load(folder / file).graph.initializers.items()
    }


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def one(folder: Path, before: Arrays, files: dict[str, str]) -> tuple[Path, SpliceReport]:
    target = folder / "spliced.onnx"
    return target, splice_files(folder / VISION_FILE, folder / DECODER_FILE, target)


@pytest.fixture(scope="module")
def sessions(folder: Path, one: tuple[Path, SpliceReport]) -> dict[str, ort.InferenceSession]:
    names = {"vision": VISION_FILE, "decoder": DECODER_FILE}
    return {name: session(folder / file) for name, file in names.items()} | {"spliced": session(one[0])}


def feeds_of(graph: ort.InferenceSession, batch: int, lengths: tuple[int, int], images: int = 1) -> Arrays:
    rng = np.random.default_rng(batch)
    shapes = {value.name: value.shape for value in graph.get_inputs()}
    pixels, width = shapes[contract.PIXEL_VALUES], shapes[module.PREFIX_EMBEDS][2]
    return {
        contract.PIXEL_VALUES: rng.standard_normal((batch * images, *pixels[1:])).astype(np.float32),
        module.PREFIX_EMBEDS: rng.standard_normal((batch, lengths[0], width)).astype(np.float32),
        module.SUFFIX_EMBEDS: rng.standard_normal((batch, lengths[1], width)).astype(np.float32),
    }


def decoded(decoder: ort.InferenceSession, embeds: np.ndarray, past: Arrays, logits: int = 1) -> Arrays:
    """The plain decoder on rows after a cache (none: empty)."""
    batch, rows, _ = embeds.shape
    caches = {value.name: value.shape for value in decoder.get_inputs() if value.name.startswith("past")}
    if not past:
        past = {name: np.zeros((batch, 0, dims[2], dims[3]), np.float32) for name, dims in caches.items()}
    start = next(iter(past.values())).shape[1]
    positions = np.tile(np.arange(start, start + rows), (batch, 1))
    feeds = {
        contract.INPUTS_EMBEDS: embeds,
        contract.ATTENTION_MASK: np.ones((batch, start + rows), np.int64),
        contract.POSITION_IDS: positions,
        contract.NUM_LOGITS_TO_KEEP: np.array(logits, np.int64),
    }
    return run(decoder, feeds | past)


def apart(sessions: dict[str, ort.InferenceSession], feeds: Arrays, keep: int, logits: int = 1) -> Arrays:
    """Both graphs one after the other, joined by numpy."""
    prefix, suffix = feeds[module.PREFIX_EMBEDS], feeds[module.SUFFIX_EMBEDS]
    pixels = feeds[contract.PIXEL_VALUES]
    seen = run(
        sessions["vision"],
        {contract.PIXEL_VALUES: pixels, contract.NUM_KEEP: np.array([keep], np.int64)},
    )
    rows = seen.pop(contract.IMAGE_FEATURES)
    rows = rows.reshape(len(prefix), -1, rows.shape[2])
    return seen | decoded(sessions["decoder"], np.concatenate([prefix, rows, suffix], axis=1), {}, logits)


def assert_same(made: Arrays, wanted: Arrays) -> None:
    """Bit for bit: the same nodes on the same rows (measured so on the CPU provider)."""
    assert set(made) == set(wanted)
    for name, value in wanted.items():
        assert made[name].shape == value.shape, name
        assert made[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("keep", [1, 5, 16])
@pytest.mark.parametrize("lengths", [(3, 4), (0, 4), (3, 0), (0, 0)])
def test_equals_both_graphs_run_apart(
    sessions: dict[str, ort.InferenceSession], batch: int, keep: int, lengths: tuple[int, int]
) -> None:
    feeds = feeds_of(sessions["spliced"], batch, lengths)
    made = run(sessions["spliced"], feeds | {contract.NUM_KEEP: np.array([keep], np.int64)})
    assert made[contract.LOGITS].shape[:2] == (batch, 1)
    assert made[contract.present_name(0, "key")].shape[1] == keep + sum(lengths)
    assert_same(made, apart(sessions, feeds, keep))


def test_decoding_goes_on_with_the_plain_decoder(sessions: dict[str, ort.InferenceSession]) -> None:
    feeds = feeds_of(sessions["spliced"], 2, (3, 4))
    made = run(sessions["spliced"], feeds | {contract.NUM_KEEP: np.array([5], np.int64)})
    past = {name.replace("present", "past_key_values"): made[name] for name in made if "present" in name}
    token = np.random.default_rng(9).standard_normal((2, 1, feeds[module.PREFIX_EMBEDS].shape[2]))
    step = decoded(sessions["decoder"], token.astype(np.float32), past)
    longer = feeds | {
        module.SUFFIX_EMBEDS: np.concatenate([feeds[module.SUFFIX_EMBEDS], token.astype(np.float32)], axis=1)
    }
    whole = apart(sessions, longer, 5)[contract.LOGITS]
    # One row after a cache against the whole prompt at once: float32 sums of two layers in another order.
    np.testing.assert_allclose(step[contract.LOGITS], whole, rtol=0, atol=2e-5 * np.abs(whole).max())


@pytest.mark.parametrize("batch", [1, 2])
def test_two_images_per_prompt_and_all_logits(
    folder: Path, sessions: dict[str, ort.InferenceSession], batch: int
) -> None:
    target = folder / "two.onnx"
    splice_files(
        folder / VISION_FILE, folder / DECODER_FILE, target, SpliceOptions(images_per_prompt=2, logits=0)
    )
    joined = session(target)
    feeds = feeds_of(joined, batch, (2, 3), images=2)
    made = run(joined, feeds | {contract.NUM_KEEP: np.array([4], np.int64)})
    assert made[contract.LOGITS].shape[:2] == (batch, 13)
    assert made[contract.KEPT_INDICES].shape == (2 * batch, 4)
    assert_same(made, apart(sessions, feeds, 4, logits=0))


def test_no_weight_is_changed_or_copied(
    folder: Path, before: Arrays, files: dict[str, str], one: tuple[Path, SpliceReport]
) -> None:
    target, report = one
    now = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert {name: now[name] for name in files} == files
    assert set(now) - set(files) <= {"spliced.onnx", "two.onnx"}
    assert report.weight_files == ("decoder_model_merged.onnx_data", "vision_encoder.onnx_data")
    after = ir.load(target).graph.initializers
    outside = {
        f"{prefix}{name}"
        for prefix, file in (("", VISION_FILE), ("decoder/", DECODER_FILE))
        for name, value in ir.load(folder / file).graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    kept = {name for name in after if not name.startswith("fopru/") or name in before}
    assert {name for name in before if before[name].size > 64} <= kept
    for name in kept:
        assert after[name].const_value.numpy().tobytes() == before[name].tobytes(), name  # type: ignore[union-attr]
    added = [after[name].const_value for name in set(after) - kept]
    assert sum(tensor.nbytes for tensor in added if tensor is not None) < 1000
    for name in kept:
        assert isinstance(after[name].const_value, ir.ExternalTensor) == (name in outside), name


def test_the_file_is_valid_and_the_report_says_what_it_is(one: tuple[Path, SpliceReport]) -> None:
    target, report = one
    onnx.checker.check_model(str(target), full_check=True)
    graph = session(target)
    assert [name for name, _ in report.inputs] == [value.name for value in graph.get_inputs()]
    assert [name for name, _ in report.outputs] == [value.name for value in graph.get_outputs()]
    assert dict(report.inputs)[module.SUFFIX_EMBEDS] == ("batch", "suffix", 32)
    assert set(report.computed) >= {"attention_mask", "position_ids", "num_logits_to_keep"}
    assert not report.casts
    plain = report.to_dict()
    assert plain["opset"] == 20
    assert plain["nodes"] == len(ir.load(target).graph)
    with pytest.raises(FrozenInstanceError):
        report.nodes = 1  # type: ignore[misc]


def test_names_are_those_of_the_contract() -> None:
    assert SpliceOptions().features == contract.IMAGE_FEATURES
    assert SpliceOptions().embeds == contract.INPUTS_EMBEDS
    assert module.ATTENTION_MASK == contract.ATTENTION_MASK
    assert module.POSITION_IDS == contract.POSITION_IDS
    assert module.NUM_LOGITS_TO_KEEP == contract.NUM_LOGITS_TO_KEEP
    assert module._PAST.fullmatch(contract.past_name(3, "key"))
    assert module._PAST.fullmatch(contract.past_name(12, "value"))


VISION = """<ir_version: 9, opset_import: ["" : 20]>
vision (float[images, 2, 3] pixel_values) => (float[images, 2, 3] image_features)
<float[3] w = {1, 2, 3}> { val_0 = Mul(pixel_values, w) image_features = Identity(val_0) }"""
DECODER = """<ir_version: 10, opset_import: ["" : 20]>
decoder (float[images, n, 3] inputs_embeds, int64[images, n] position_ids) => (float[images, n, 3] logits)
<float[3] w = {10, 20, 30}, int64[1] last = {-1}> {
 val_0 = Mul(inputs_embeds, w) p = Unsqueeze(position_ids, last) q = CastLike(p, w) logits = Add(val_0, q) }"""


def joined(vision: str, decoder: str, options: SpliceOptions | None = None) -> tuple[ir.Model, SpliceReport]:
    model = ir.from_onnx_text(vision)
    return model, splice(model, ir.from_onnx_text(decoder), options)


def test_names_that_clash_stay_apart() -> None:
    model, report = joined(VISION, DECODER)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.ir_version == 10
    assert dict(report.outputs)["logits"][0] != "images", "a size of the encoder"
    pixels, part = np.ones((1, 2, 3), np.float32), np.full((1, 1, 3), 2, np.float32)
    feeds = {"pixel_values": pixels, "prefix_embeds": part, "suffix_embeds": part}
    made = run(session(ir.to_proto(model).SerializeToString()), feeds)["logits"]
    rows = np.array([[2, 2, 2], [1, 2, 3], [1, 2, 3], [2, 2, 2]], np.float32)
    assert made[0].tolist() == (rows * np.array([10, 20, 30]) + np.arange(4)[:, None]).tolist()


def test_another_dtype_is_cast() -> None:
    decoder = DECODER.replace("float", "float16")
    model, report = joined(VISION, decoder)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert report.casts == ("image_features: FLOAT to FLOAT16",)
    assert model.graph.inputs[-1].dtype == ir.DataType.FLOAT16


@pytest.mark.parametrize(("vision", "decoder", "error", "match"), [
    (VISION.replace("image_features", "rows"), DECODER, LocateError, r"no output of the encoder 'image_features', it has rows"),
    (VISION, DECODER.replace("inputs_embeds", "x"), LocateError, r"no input of the decoder 'inputs_embeds', it has x"),
    (VISION.replace("[images, 2, 3]", "[2, 3]"), DECODER, LocateError, r"'image_features' has dims \(2, 3\), but it must be"),
    (VISION, DECODER.replace("[images, n, 3] inputs", "[n, 3] inputs"), LocateError, r"'inputs_embeds' has dims \('n', 3\)"),
    (VISION, DECODER.replace("[images, n, 3] inputs", "[images, n, 4] inputs"), UnsupportedGraphError, r"has width 3 and 'inputs_embeds' 4"),
    (VISION, DECODER.replace("=> (", "=> (float[images, n, 3] inputs_embeds, "), UnsupportedGraphError, "decoder gives its input 'inputs_embeds' out again"),
    (VISION, DECODER.replace("int64[images, n] position_ids", "int64[3, images, n] position_ids"), UnsupportedGraphError, r"'position_ids' is INT64 with dims \(3, "),
    (VISION, DECODER.replace("int64[images, n] position_ids)", "int64[images, n] position_ids, float[images, n] attention_mask)"), UnsupportedGraphError, r"'attention_mask' is FLOAT with dims"),
    (VISION, DECODER.replace("position_ids", "rotary"), UnsupportedGraphError, r"input 'rotary', and nobody knows"),
    (VISION, DECODER.replace(": 20]", ": 21]"), UnsupportedGraphError, r"opset 20 of 'ai.onnx' and the decoder 21: export both"),
    (VISION.replace("pixel_values", "prefix_embeds"), DECODER, UnsupportedGraphError, r"'prefix_embeds' would be twice"),
    (VISION.replace("pixel_values", "logits"), DECODER, UnsupportedGraphError, r"'logits' would be twice .*rename it in the encoder"),
    (VISION, DECODER.replace("position_ids)", "position_ids, float[images, h, past, 4] \"past_key_values.0.key\")"), UnsupportedGraphError, r"a cache is \[batch, heads, past, width\] or"),
])  # fmt: skip
def test_refused(vision: str, decoder: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        joined(vision, decoder)


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="images_per_prompt is 0: give a number >= 1"):
        SpliceOptions(images_per_prompt=0)
    with pytest.raises(OptionError, match="logits is -1: give a number of last positions, or 0 for all"):
        SpliceOptions(logits=-1)


def test_other_domains_are_united() -> None:
    decoder = DECODER.replace('["" : 20]', '["" : 20, "my.ops" : 3]')
    assert joined(VISION, decoder)[0].graph.opset_imports == {"": 20, "my.ops": 3}


def test_files_in_two_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphFileError, match=r"shares the weight file .*: write it there"):
        splice_files(folder / VISION_FILE, folder / DECODER_FILE, tmp_path / "out.onnx")
    with pytest.raises(GraphFileError, match="is one of the sources: name another file"):
        splice_files(folder / VISION_FILE, folder / DECODER_FILE, folder / DECODER_FILE)
    for path in folder.glob("decoder_model_*"):
        shutil.copy(path, tmp_path)
    with pytest.raises(
        GraphFileError, match=r"lie in two folders, with weight files .* under two names, in one"
    ):
        splice_files(folder / VISION_FILE, tmp_path / DECODER_FILE, folder / "far.onnx")
    assert not (folder / "far.onnx").exists()
