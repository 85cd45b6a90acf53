"""Each exported graph against the PyTorch module it comes from, and what must and must not be in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from export.errors import ExportError, TraceError
from export.families import FAMILIES, ImageUnits, Subgraph
from export.golden import open_images
from export.onnx_from_torch import write_onnx_from_torch
from export.oracle import Oracle, PruningChoice
from export.prompt_template import conversation
from export.selection import Budget, kept_tokens
from runtime import contract
from runtime.contract import GraphContract, TensorSpec
from tests.toy_llava import COMBINATIONS, ToySpec, toy_model, toy_processor

LLAVA = FAMILIES["llava"]
FLOAT = "float32"
CHOICE = PruningChoice(layer=1, tokens=4)


def subgraph(model: Any, name: str) -> Subgraph:
    images = "siglip" if "siglip" in model.config.vision_config.model_type else "clip"
    layout = LLAVA.layout(model.config, toy_processor(ToySpec(tower=images)))
    found = LLAVA.subgraphs(model, layout, LLAVA.decoder_info(model))
    return next(graph for graph in found if graph.name == name)


def oracle_of(model: Any, spec: ToySpec) -> Oracle:
    processor = toy_processor(spec)
    return Oracle(LLAVA.reference(model, processor), model, processor)


def written(model: Any, name: str, folder: Path, opset: int = 20) -> Path:
    graph = subgraph(model, name)
    target = folder / f"{name}.onnx"
    write_onnx_from_torch(graph, target, opset)
    return target


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def assert_close(measured: npt.NDArray[Any], reference: npt.NDArray[Any], *, of_max: float) -> None:
    assert measured.shape == reference.shape
    assert np.abs(measured - reference).max() <= of_max * np.abs(reference).max()


def assert_only_names(path: Path) -> None:
    """No axis is called s29; every tensor at the border has its contract's name and shape."""
    model = onnx.load(path, load_external_data=False)
    dims = {
        dim.dim_param
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
        for dim in value.type.tensor_type.shape.dim
        if dim.dim_param
    }
    assert not [dim for dim in dims if any(part[:1] in "su" and part[1:].isdigit() for part in dim.split())]


@pytest.fixture(scope="module")
def siglip(torch_threads: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """SigLIP whose `default` strategy drops the first patch."""
    model = toy_model(COMBINATIONS["siglip-default"])
    return model, written(model, contract.VISION_ENCODER, tmp_path_factory.mktemp("siglip"))


@pytest.mark.parametrize("images", [1, 2, 3])
def test_vision_encoder(siglip: tuple[Any, Path], images: int) -> None:
    model, path = siglip
    pixels = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(images))
    with torch.no_grad():
        wanted = torch.stack(list(model.get_image_features(pixels).pooler_output)).numpy()
    (made,) = session(path).run(None, {"pixel_values": pixels.numpy()})
    assert made.shape == (images, 15, 32)
    # float32 sums in another order through two layers
    assert_close(made, wanted, of_max=1e-5)


def test_layers_after_the_feature_layer_are_not_exported(siglip: tuple[Any, Path]) -> None:
    _, path = siglip
    graph = onnx.load(path, load_external_data=False).graph
    scopes = " ".join(p.value for node in graph.node for p in node.metadata_props)
    names = " ".join(tensor.name for tensor in graph.initializer)
    for text in (scopes, names):
        assert "encoder.layers.1" in text
        assert "encoder.layers.2" not in text
        assert "head" not in text
        assert "post_layernorm" not in text


def test_files_keep_name_scopes_and_nothing_of_the_machine(siglip: tuple[Any, Path]) -> None:
    _, path = siglip
    content = path.read_bytes()
    assert b"pkg.torch.onnx.name_scopes" in content
    assert b"stack_trace" not in content
    assert str(Path(torch.__file__).parent.parent).encode() not in content
    assert str(Path(__file__).parent.parent).encode() not in content


def test_linear_weights_are_transposed_in_the_file(siglip: tuple[Any, Path]) -> None:
    # A Transpose of a weight left in the graph is folded by every runtime at every start, with a second copy.
    graph = onnx.load(siglip[1], load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    assert not [node.name for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]
    assert any("q_proj.weight" in name for name in weights)


def test_axes_have_names(siglip: tuple[Any, Path]) -> None:
    assert_only_names(siglip[1])


def test_embed_tokens(torch_threads: None, tmp_path: Path) -> None:
    model = toy_model(COMBINATIONS["clip-full-gemma-tied"])
    path = written(model, contract.EMBED_TOKENS, tmp_path)
    for shape in ((1, 1), (2, 5)):
        ids = torch.randint(6, 200, shape, generator=torch.Generator().manual_seed(0))
        (made,) = session(path).run(None, {"input_ids": ids.numpy()})
        np.testing.assert_array_equal(made, model.get_input_embeddings()(ids).detach().numpy())


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def spec(name: str, *shape: int | str, dtype: str = FLOAT) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


X, Y = spec("x", "batch", 4), spec("y", "batch", 4)


@pytest.mark.parametrize(
    ("module", "io", "message"),
    [
        (
            Branching(),
            GraphContract((X,), (Y,)),
            r"torch cannot export Branching \(.*\): this architecture needs a wrapper",
        ),
        (Doubled(), GraphContract((X, Y), (Y,)), r"Doubled got 1 example inputs for 2 contract inputs"),
        (Doubled(), GraphContract((X,), (Y, Y)), r"the traced graph has 1 outputs, but its contract has 2"),
        (
            Doubled(),
            GraphContract((X,), (spec("y", "batch", 4, dtype="int64"),)),
            r"y was traced as float32 \[.*\], but its contract is int64 \[batch, 4\]",
        ),
        (
            Doubled(),
            GraphContract((X,), (spec("y", "batch", 5),)),
            r"y was traced with shape \[.*4\], but its contract is \[batch, 5\]: the model does something",
        ),
    ],
)
def test_graphs_that_are_not_their_contract(
    module: nn.Module, io: GraphContract, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TraceError, match=message):
        write_onnx_from_torch(Subgraph("x", module, (torch.ones(2, 4),), io), tmp_path / "x.onnx", 20)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_oracle_refuses_attention_that_is_no_number(torch_threads: None) -> None:
    model = toy_model(ToySpec())
    with torch.no_grad():
        model.model.vision_tower.encoder.layers[1].self_attn.q_proj.weight.fill_(float("nan"))
    oracle = oracle_of(model, ToySpec())
    with pytest.raises(ExportError, match="the attention of the scoring layer is not finite on this image"):
        oracle.run(open_images([]), "What?", CHOICE, 1)


def test_oracle_leaves_the_model_as_it_was(torch_threads: None) -> None:
    model = toy_model(ToySpec())
    before = model.model.vision_tower.config._attn_implementation
    first, again = (oracle_of(model, ToySpec()).run(open_images([]), "What?", CHOICE, 3) for _ in range(2))
    assert model.model.vision_tower.config._attn_implementation == before
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)


def test_oracle_without_a_chat_template(torch_threads: None) -> None:
    with_template, without = (
        oracle_of(toy_model(ToySpec()), found).run(open_images([]), "What?", CHOICE, 2)
        for found in (ToySpec(), ToySpec(template=None))
    )
    # The default is the template of LLaVA-1.5, which the toy checkpoints have.
    np.testing.assert_array_equal(with_template["input_ids"], without["input_ids"])


def test_oracle_positions(torch_threads: None) -> None:
    model, images = toy_model(ToySpec()), open_images([]) * 2
    renumbered, original = (
        oracle_of(model, ToySpec()).run(images, "What?", PruningChoice(1, tokens=4, position_ids=policy), 2)
        for policy in ("renumber", "original")
    )
    length = renumbered["input_ids"].shape[1]
    np.testing.assert_array_equal(renumbered["position_ids"], np.arange(length)[None])
    # 16 places per image of which the kept ones are taken; what follows the images is 24 later
    kept = np.split(original["kept_indices"], 2)
    start = original["input_ids"][0].tolist().index(3)
    assert original["position_ids"][0, start : start + 4].tolist() == (start + kept[0]).tolist()
    assert original["position_ids"][0, -1] == length - 1 + 24
    for name in ("kept_indices", "pruned_features", "input_ids", "inputs_embeds"):
        np.testing.assert_array_equal(renumbered[name], original[name], err_msg=name)


def test_oracle_at_ratio_1_is_the_model_itself(torch_threads: None) -> None:
    model, processor = toy_model(ToySpec()), toy_processor(ToySpec())
    made = oracle_of(model, ToySpec()).run(open_images([]), "What?", PruningChoice(1, ratio=1.0), 8)
    inputs = processor.apply_chat_template(
        conversation([("What?", open_images([]), "")]),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=8, min_new_tokens=8)
    assert made["tokens"][0].tolist() == answer[0, inputs["input_ids"].shape[1] :].tolist()
    np.testing.assert_array_equal(made["image_features"], made["pruned_features"])


def kept(scores: torch.Tensor, budget: Budget, valid: torch.Tensor | None = None) -> list[int]:
    shown = torch.ones(scores.shape, dtype=torch.bool) if valid is None else valid
    (mask,) = kept_tokens(ImageUnits(1), [scores], [shown], budget)
    return mask.flatten().nonzero()[:, 0].tolist()


def test_ties_go_to_the_lower_position() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0, 3.0, 0.0, 0.0])
    assert kept(scores, Budget(None, 4)) == [1, 2, 3, 6]
    rows = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0], [0.0, 5.0, 0.0]])
    assert kept(rows, Budget(None, 6, "row")) == [0, 1, 2, 6, 7, 8]


def test_padding_is_neither_counted_nor_kept() -> None:
    scores, valid = torch.arange(16.0).view(4, 4), torch.zeros(4, 4, dtype=torch.bool)
    valid[1:3, 1:] = True  # 2 rows of 3
    assert kept(scores, Budget(0.5, None), valid) == [9, 10, 11]
    assert kept(scores, Budget(0.5, None, "row"), valid) == [9, 10, 11]
    assert kept(scores, Budget(None, 5, "row"), valid) == [9, 10, 11]
    assert kept(scores, Budget(None, None), valid) == [5, 6, 7, 9, 10, 11]
    assert kept(scores, Budget(0.5, None), torch.zeros(4, 4, dtype=torch.bool)) == []


def tiled(budget: Budget) -> list[list[int]]:
    """An overview and 1 x 2 tiles of 2 x 2 tokens, the last of which shows one column; scores count on."""
    scores = [torch.arange(4.0 * n, 4.0 * n + 4).view(2, 2) for n in range(3)]
    valid = [torch.ones(2, 2, dtype=torch.bool) for _ in range(3)]
    valid[2][:, 1] = False
    units = ImageUnits(3, overview=0, mosaic=(1, 2))
    return [mask.flatten().nonzero()[:, 0].tolist() for mask in kept_tokens(units, scores, valid, budget)]


def test_budget_is_shared_and_the_overview_gets_the_rest() -> None:
    assert tiled(Budget(None, 5)) == [[1, 2, 3], [3], [2]]
    assert tiled(Budget(None, 10)) == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2]]
    assert tiled(Budget(0.5, None)) == [[2, 3], [2, 3], [2]]


def test_rows_of_a_tile_and_of_the_stitched_picture() -> None:
    assert tiled(Budget(0.5, None, "row")) == [[2, 3], [2, 3], [2]]
    assert tiled(Budget(0.5, None, "row", "stitched")) == [[2, 3], [2, 3], [2]]
    # 7 tokens: 2 for each unit and 1 more for the overview, whose row takes 2; of the other 4, a row of 3
    assert tiled(Budget(None, 7, "row", "stitched")) == [[2, 3], [2, 3], [2]]
    assert tiled(Budget(None, 10, "row", "stitched")) == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2]]
