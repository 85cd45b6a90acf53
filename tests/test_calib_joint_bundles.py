"""Bundles side by side: that they are one model, what they are called, what they need."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from calib.errors import OptionError
from calib.joint.bundles import check_same_model, labels_of, precision_text, variants_of, weight_bytes
from runtime import contract
from runtime.bundle import Bundle, load_bundle
from runtime.errors import BundleError
from runtime.golden import GOLDEN_RECORD, GOLDEN_TENSORS
from runtime.manifest import Manifest
from tests.calib_joint import with_precisions
from tests.measuring import edited
from tests.toy_bundle import ToyModel, write_toy_bundle


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "toy", ToyModel())


def manifest_with(manifest: Manifest, **precisions: str) -> Manifest:
    return replace(
        manifest,
        graphs={
            name: replace(graph, precision=precisions.get(name, "fp32"))
            for name, graph in manifest.graphs.items()
        },
    )


@pytest.mark.parametrize(
    ("precisions", "text"),
    [
        ({}, "fp32"),
        ({"decoder_model_merged": "int4"}, "decoder=int4"),
        ({"decoder_model_merged": "int4", "embed_tokens": "int4"}, "decoder=int4"),
        (dict.fromkeys(("vision_encoder", "vision_encoder_fopru"), "w8a8"), "vision=int8"),
        ({"embed_tokens": "fp16"}, "embed=fp16"),
        (
            dict.fromkeys(("vision_encoder", "vision_encoder_fopru", "decoder_model_merged"), "int8"),
            "int8",
        ),
        (
            {
                **dict.fromkeys(("vision_encoder", "vision_encoder_fopru"), "w8a8"),
                "decoder_model_merged": "int4",
            },
            "vision=int8, decoder=int4",
        ),
        ({"vision_encoder": "fp16"}, "vision=fp16/fp32"),
    ],
)
def test_precisions_in_words(toy: Path, precisions: dict[str, str], text: str) -> None:
    assert precision_text(manifest_with(load_bundle(toy).manifest, **precisions)) == text


def test_labels_are_precisions_else_folders_else_paths(toy: Path, tmp_path: Path) -> None:
    float32, int4 = load_bundle(toy), with_precisions(toy, tmp_path / "a", decoder="int4")
    assert labels_of([float32, int4]) == ["fp32", "decoder=int4"]
    again = with_precisions(toy, tmp_path / "b", decoder="int4")
    assert labels_of([float32, int4, again]) == ["toy", "a", "b"]
    far = with_precisions(toy, tmp_path / "far" / "a", decoder="int4")
    assert labels_of([float32, int4, far]) == [str(toy), str(tmp_path / "a"), str(tmp_path / "far" / "a")]


def test_variants_are_keyed_by_label_the_float_model_by_nothing(toy: Path, tmp_path: Path) -> None:
    first, second = variants_of(
        [load_bundle(toy), with_precisions(toy, tmp_path / "a", decoder="int4")], "onnxruntime"
    )
    assert (first.key, first.label, second.key, second.label) == ("", "fp32", "decoder=int4", "decoder=int4")
    assert first.weights(1.0) == first.whole
    assert first.weights(0.3) == first.pruned


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"architecture": "B"}}, "its model.architecture is B, not "),
        ({"preprocess": {"resample": 2}}, "its preprocess.resample is 2, not 3"),
        ({"tokens": {"eos": [7]}}, "its tokens.eos is (7,), not (2,)"),
        ({"prompt": {"image": "<image>"}}, "its prompt.image is <image>, not "),
        ({"decoder": {"max_positions": 128}}, "its decoder.max_positions is 128, not 256"),
        (
            {"layout": {"resize": {"shortest_edge": 16}, "crop": {"height": 16, "width": 16}}},
            "its layout.resize is {'shortest_edge': 16}, not {'height'",
        ),
    ],
)
def test_another_model_is_refused_by_what_differs(
    toy: Path, tmp_path: Path, changes: dict[str, dict[str, Any]], sentence: str
) -> None:
    other = edited(toy, tmp_path / "other", **changes)
    whole = re.escape(f"{other} is not the model of {toy}: ") + ".*" + re.escape(sentence)
    with pytest.raises(OptionError, match=whole):
        check_same_model([load_bundle(toy), load_bundle(other)])


def test_another_tokenizer_is_refused_another_strategy_is_not(toy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(toy, other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    sentence = (
        r"its tokenizer is that of SHA-256 [0-9a-f]{12}, not that of SHA-256 [0-9a-f]{12}: build both "
        "of one checkpoint, and quantise with `python -m calib.quantize`"
    )
    with pytest.raises(OptionError, match=sentence):
        check_same_model([load_bundle(toy), load_bundle(edited(other, other))])
    strategy = edited(toy, tmp_path / "row", pruning={"strategy": "row"})
    check_same_model([load_bundle(toy), load_bundle(strategy)])


@pytest.mark.parametrize("tensor", ["pixel_values", "image_features", "logits"])
def test_another_checkpoint_is_refused_by_its_golden_tensors(toy: Path, tmp_path: Path, tensor: str) -> None:
    """A fine-tune may have the name, the tokenizer and every size of the model that it comes from."""
    other = tmp_path / "other"
    shutil.copytree(toy, other)
    change_golden(other, tensor, 1.01)
    sentence = re.escape(
        f"{other} is not the model of {toy}: its golden {tensor}, of PyTorch in float32, are "
    )
    with pytest.raises(OptionError, match=sentence + "others: build both of one checkpoint, and quantise wi"):
        check_same_model([load_bundle(toy), load_bundle(other)])
    change_golden(other, tensor, 1.00001 / 1.01)  # as other machines have it
    check_same_model([load_bundle(toy), load_bundle(other)])


def test_logits_of_another_golden_request_say_nothing(toy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(toy, other)
    record = json.loads((other / GOLDEN_RECORD).read_text())
    (other / GOLDEN_RECORD).write_text(json.dumps(record | {"prompt": "another"}))
    change_golden(other, "logits", 2.0)
    check_same_model([load_bundle(toy), load_bundle(other)])


def test_the_folder_of_a_checkpoint_says_nothing_where_golden_tensors_do(toy: Path, tmp_path: Path) -> None:
    renamed = edited(toy, tmp_path / "renamed", model={"name": "llava"})
    check_same_model([load_bundle(toy), load_bundle(renamed)])
    record = json.loads((renamed / "bundle.json").read_text())
    for name in (GOLDEN_RECORD, GOLDEN_TENSORS):
        del record["files"][name]
        (renamed / name).unlink()
    (renamed / "bundle.json").write_text(json.dumps(record))
    with pytest.raises(OptionError, match=r"is not the model of .*: its model.name is llava, not toy: build"):
        check_same_model([load_bundle(toy), load_bundle(renamed)])


def change_golden(bundle: Path, tensor: str, factor: float) -> None:
    with np.load(bundle / GOLDEN_TENSORS) as stored:
        tensors = dict(stored)
    tensors[tensor] = (tensors[tensor] * factor).astype(np.float32)
    np.savez(bundle / GOLDEN_TENSORS, **tensors)
    edited(bundle, bundle)


def test_a_bundle_that_the_backend_cannot_open_is_refused_before_anything_is_measured(
    toy: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(toy, other)
    graph = other / contract.graph_file(contract.DECODER)
    model = onnx.load(graph)
    model.graph.node[0].op_type = "OfTensorRT"
    onnx.save(model, graph)
    edited(other, other)
    sentence = (
        re.escape(f"{other} cannot be measured with the backend onnxruntime (")
        + r".*OfTensorRT.*\): leave it out, or give --backend what it was built for"
    )
    with pytest.raises(OptionError, match=sentence):
        variants_of([load_bundle(toy), load_bundle(other)], "onnxruntime")


def test_what_all_are_compared_with_is_a_float_model(toy: Path, tmp_path: Path) -> None:
    float32, half = load_bundle(toy), with_precisions(toy, tmp_path / "half", vision="fp16", decoder="bf16")
    check_same_model([half, float32])
    few = with_precisions(toy, tmp_path / "few", vision="w8a8", decoder="int4")
    sentence = (
        f"{few.path} is in vision=int8, decoder=int4, and all others are compared with the first bundle: "
        "give the float one first"
    )
    with pytest.raises(OptionError, match=re.escape(sentence)):
        check_same_model([few, float32])


def test_a_bundle_given_twice_is_refused(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(toy)
    with pytest.raises(OptionError, match=re.escape(f"{tmp_path / 'link'} is given twice: give each bundle")):
        check_same_model([load_bundle(toy), load_bundle(tmp_path / "link")])


def test_weights_are_those_of_the_graphs_that_run_shared_files_once(toy_bundle_dir: Path) -> None:
    bundle = load_bundle(toy_bundle_dir)
    sizes = {name: info.bytes for name, info in bundle.manifest.files.items()}
    text = (
        "embed_tokens.onnx",
        "embed_tokens.onnx_data",
        "decoder_model_merged.onnx",
        "decoder_model_merged.onnx_data",
    )
    both = sum(sizes[f"onnx/{name}"] for name in (*text, "vision_encoder.onnx_data"))
    pruned, whole = weight_bytes(bundle, "onnxruntime")
    assert pruned == both + sizes["onnx/vision_encoder_fopru.onnx"]
    assert whole == both + sizes["onnx/vision_encoder.onnx"]
    assert contract.data_file(contract.VISION_ENCODER_FOPRU) == "onnx/vision_encoder.onnx_data"  # shared


def test_a_file_that_the_manifest_does_not_list_is_refused(toy_bundle_dir: Path) -> None:
    bundle = load_bundle(toy_bundle_dir)
    files = {
        name: info for name, info in bundle.manifest.files.items() if "embed_tokens.onnx_data" not in name
    }
    with pytest.raises(
        BundleError, match=r"embed_tokens of .* reads onnx/embed_tokens.onnx_data, which bundle"
    ):
        weight_bytes(Bundle(bundle.path, replace(bundle.manifest, files=files)), "onnxruntime")
