"""Checkpoints in 16 bits: every number is that of the same weights in float32."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from calib.precision import parse_precision
from calib.precision.widened import Widened, fold_casts, numbers_of, write_as_casts
from export.build import BuildOptions, build
from export.checkpoint import load_model, open_checkpoint
from export.steps import quiet_libraries
from export.stored_weights import StoredEmbedding, StoredLinear, stored_dtype, weight_count, weight_names
from tests.conftest import Maker
from tests.toy_families import TOYS

DTYPES = (torch.float16, torch.bfloat16)


def saved_as(source: Path, target: Path, dtype: torch.dtype, through: torch.dtype | None = None) -> Path:
    """A copy of a checkpoint in another dtype, its values rounded to `through` before that."""
    shutil.copytree(source, target)
    for file in target.glob("*.safetensors"):
        tensors = {name: value.to(through or dtype).to(dtype) for name, value in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return target


def loaded(folder: Path) -> Any:
    with quiet_libraries(False):
        return load_model(open_checkpoint(str(folder)))


def in_float32(folder: Path) -> Any:
    """What transformers makes of a checkpoint that it is told to widen as a whole."""
    import transformers

    architecture = getattr(transformers, open_checkpoint(str(folder)).family.architecture)
    with quiet_libraries(False):
        return architecture.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(params=sorted(TOYS))
def family_checkpoint(request: pytest.FixtureRequest, tmp_path: Path, torch_threads: None) -> Path:
    with quiet_libraries(False):
        return TOYS[request.param](tmp_path / "float32")


def kept(model: nn.Module) -> Iterator[StoredLinear | StoredEmbedding]:
    return (part for part in model.modules() if isinstance(part, StoredLinear | StoredEmbedding))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_and_logits_are_those_of_a_float32_model(
    family_checkpoint: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = saved_as(family_checkpoint, tmp_path / "narrow", dtype)
    model, plain = loaded(folder), in_float32(folder)
    assert type(model) is type(plain)
    assert model.dtype == torch.float32
    # Graphs list weights in this order.
    assert weight_names(model) == [name for name, _ in plain.named_parameters(remove_duplicate=False)]
    assert weight_count(model) == sum(value.numel() for value in plain.parameters())
    found = dict(model.named_modules())
    for name, part in plain.named_modules():
        for own in (*part._parameters, *part._buffers):  # the rotary frequencies are buffers, for example
            wanted, got = getattr(part, own), getattr(found[name], own)
            assert (wanted is None) == (got is None)
            assert wanted is None or (got.dtype == wanted.dtype and torch.equal(got, wanted)), f"{name}.{own}"
    ids = torch.arange(7)[None]
    with torch.no_grad():
        wanted, got = plain(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.equal(got, wanted)


def test_matrices_stay_in_16_bits_and_the_rest_is_float32(toy_checkpoint: Maker, tmp_path: Path) -> None:
    folder = saved_as(toy_checkpoint("clip-llama"), tmp_path / "narrow", torch.float16)
    model = loaded(folder)
    parts = list(kept(model))
    assert {part.stored.dtype for part in parts} == {torch.float16}
    assert not any(type(part) in (nn.Linear, nn.Embedding) for part in model.modules())
    assert sum(part.stored.numel() for part in parts) > 0.8 * weight_count(model)  # a toy has many vectors
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_a_shared_matrix_stays_one(toy_checkpoint: Maker, tmp_path: Path) -> None:
    folder = saved_as(toy_checkpoint("clip-full-gemma-tied"), tmp_path / "narrow", torch.bfloat16)
    model = loaded(folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.lm_head.weight.dtype == torch.float32


def test_every_matrix_multiplies_as_in_float32(family_checkpoint: Path, tmp_path: Path) -> None:
    """Also those that no text reaches: the tower's and the projector's."""
    folder = saved_as(family_checkpoint, tmp_path / "narrow", torch.bfloat16)
    model, plain = loaded(folder), dict(in_float32(folder).named_modules())
    random, seen = torch.Generator().manual_seed(0), 0
    for name, part in model.named_modules():
        if isinstance(part, StoredLinear):
            given = torch.randn(2, 3, part.in_features, generator=random)
        elif isinstance(part, StoredEmbedding):
            given = torch.arange(part.num_embeddings)[None]
        else:
            continue
        with torch.no_grad():
            # Products of rows that start at odd places sum in another order.
            torch.testing.assert_close(part(given), plain[name](given), rtol=1e-6, atol=1e-6, msg=name)
        seen += 1
    assert seen > 10


def test_tied_matrices_that_the_files_hold_twice_stay_float32(toy_checkpoint: Maker, tmp_path: Path) -> None:
    folder = saved_as(toy_checkpoint("clip-full-gemma-tied"), tmp_path / "narrow", torch.bfloat16)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    (table,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    save_file(tensors | {"lm_head.weight": 2 * tensors[table]}, file, metadata={"format": "pt"})
    model, plain = loaded(folder), in_float32(folder)
    torch.testing.assert_close(model.lm_head.weight, plain.lm_head.weight, rtol=0, atol=0)
    assert {part.stored.dtype for part in kept(model)} == {torch.bfloat16}


def test_a_model_runs_in_inference_mode_and_outside_of_it(toy_checkpoint: Maker, tmp_path: Path) -> None:
    model = loaded(saved_as(toy_checkpoint("clip-llama"), tmp_path / "narrow", torch.float16))
    ids = torch.arange(7)[None]
    with torch.inference_mode():
        first = model(input_ids=ids).logits
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, first, rtol=0, atol=0)


def test_a_float32_checkpoint_is_loaded_as_ever(toy_checkpoint: Maker) -> None:
    model = loaded(toy_checkpoint("clip-llama"))
    assert not list(kept(model))


@pytest.mark.parametrize(
    ("dtypes", "wanted"),
    [
        ((torch.float16, torch.float32), torch.float16),
        ((torch.bfloat16, torch.bfloat16), torch.bfloat16),
        ((torch.float32, torch.float16), None),
        ((torch.int8, torch.float16), None),
    ],
)
def test_matrices_alone_decide(
    dtypes: tuple[torch.dtype, torch.dtype], wanted: torch.dtype | None, tmp_path: Path
) -> None:
    matrix, vector = dtypes
    save_file({"a": torch.zeros(2, 2, dtype=matrix), "b": torch.zeros(2, dtype=vector)}, tmp_path / "x")
    assert stored_dtype([tmp_path / "x"]) is wanted


def test_position_ids_of_old_checkpoints_are_no_matrix(tmp_path: Path) -> None:
    ids = torch.arange(4)[None]
    save_file({"a": torch.zeros(2, 2, dtype=torch.float16), "position_ids": ids}, tmp_path / "x")
    assert stored_dtype([tmp_path / "x"]) is torch.float16


def test_files_of_two_dtypes_are_loaded_as_ever(tmp_path: Path) -> None:
    for number, dtype in enumerate(DTYPES):
        save_file({"a": torch.zeros(2, 2, dtype=dtype)}, tmp_path / str(number))
    assert stored_dtype([tmp_path / "0", tmp_path / "1"]) is None


@pytest.mark.parametrize(
    ("name", "dtype", "precision"),
    [
        ("clip-llama", torch.float16, "fp32"),
        ("clip-llama", torch.bfloat16, "decoder=int4"),
        ("clip-full-gemma-tied", torch.float16, "fp16"),
    ],
)
def test_bundles_are_the_same(
    name: str, dtype: torch.dtype, precision: str, toy_checkpoint: Maker, tmp_path: Path
) -> None:
    source, bundles = toy_checkpoint(name), {}
    for folder, stored in (("narrow", dtype), ("full", torch.float32)):
        checkpoint = saved_as(source, tmp_path / folder / "same", stored, dtype)
        options = BuildOptions(
            str(checkpoint), tmp_path / folder / "bundle", precision=parse_precision(precision)
        )
        report = build(options)
        assert report.ok, report.to_dict()["parity"]
        bundles[folder] = report.bundle
    files = sorted(path.relative_to(bundles["full"]) for path in bundles["full"].rglob("*.*"))
    assert files == sorted(path.relative_to(bundles["narrow"]) for path in bundles["narrow"].rglob("*.*"))
    graphs = [file for file in files if file.suffix in (".onnx", ".onnx_data")]
    for file in graphs:
        assert (bundles["narrow"] / file).read_bytes() == (bundles["full"] / file).read_bytes(), file
    golden = [np.load(bundles[folder] / "golden" / "golden.npz") for folder in ("narrow", "full")]
    for stage in golden[1].files:
        # A float32 file lies in memory as it lies on disk, and products of rows that start at odd places sum
        # in another order.
        np.testing.assert_allclose(golden[0][stage], golden[1][stage], rtol=0, atol=1e-5, err_msg=stage)


def graph_over(tensor: ir.TensorProtocol, *, also_in_16_bits: bool = False) -> ir.Model:
    """x + Cast(weight), and the weight itself as an output on request."""
    weight = ir.Value(name="w", const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape([2, 3]))
    given = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 3]))
    cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT})
    total = ir.node("Add", [given, cast.outputs[0]])
    nodes, outputs = [cast, total], [total.outputs[0]]
    if also_in_16_bits:
        nodes.append(ir.node("Identity", [weight]))
        outputs.append(nodes[-1].outputs[0])
    graph = ir.Graph([given], outputs, nodes=nodes, initializers=[weight], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_casts_of_weights_are_folded_and_written_again(dtype: ir.DataType) -> None:
    values = np.array([[6.1e-5, -1.5, 3e4], [0.1, 0, 6e-8]]).astype(dtype.numpy())
    model = graph_over(ir.Tensor(values))
    assert fold_casts(model) == 1
    weight = model.graph.initializers["w"]
    assert [node.op_type for node in model.graph] == ["Add"]
    assert isinstance(weight.const_value, Widened)
    assert weight.dtype == weight.const_value.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(weight.const_value.numpy(), values.astype(np.float32))
    assert numbers_of(weight.const_value).dtype == dtype.numpy()
    write_as_casts(model)
    assert [node.op_type for node in model.graph] == ["Cast", "Add"]
    assert weight.dtype == dtype
    assert weight.const_value.numpy().tobytes() == values.tobytes()


@pytest.mark.parametrize("which", ["weight", "cast"])
def test_an_output_of_the_graph_keeps_its_dtype(which: str) -> None:
    model = graph_over(ir.Tensor(np.ones((2, 3), np.float16)))
    found = model.graph.initializers["w"] if which == "weight" else model.graph[0].outputs[0]
    model.graph.outputs.append(found)
    assert fold_casts(model) == 0
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    assert [node.op_type for node in model.graph] == ["Cast", "Add"]


def test_a_cast_in_a_subgraph_is_left_alone() -> None:
    weight = ir.Value(
        name="w",
        const_value=ir.Tensor(np.ones((2, 3), np.float16)),
        type=ir.TensorType(ir.DataType.FLOAT16),
        shape=ir.Shape([2, 3]),
    )
    branches = {}
    for name in ("then_branch", "else_branch"):
        cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT})
        inner = ir.node("Identity", cast.outputs)
        branches[name] = ir.Graph([], inner.outputs, nodes=[cast, inner], name=name)
    choice = ir.Value(name="c", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    node = ir.node("If", [choice], branches)
    graph = ir.Graph([choice], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20})
    assert fold_casts(ir.Model(graph, ir_version=10)) == 0
    assert weight.dtype == ir.DataType.FLOAT16


def test_a_weight_used_in_16_bits_is_left_alone() -> None:
    model = graph_over(ir.Tensor(np.ones((2, 3), np.float16)), also_in_16_bits=True)
    assert fold_casts(model) == 0
    assert [node.op_type for node in model.graph] == ["Cast", "Add", "Identity"]
