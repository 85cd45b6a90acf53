"""Qwen2.5-VL from checkpoint to answers: what the family reads, its encoder and reference, and builds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

from export.build import BuildOptions, build
from export.checkpoint import load_model, load_processor, open_checkpoint
from export.errors import CheckpointError
from export.families.base import EncoderInfo, Subgraph
from export.families.qwen2_5_vl import Qwen25VLFamily
from export.native_encoder import NativeVisionEncoder
from export.onnx_from_torch import write_onnx_from_torch
from export.oracle import Oracle, PruningChoice, eager
from export.parity import ParityOptions, compare_with_torch
from export.prompt_template import conversation
from export.steps import quiet_libraries
from fopru_graph import PruneOptions, prune_file
from runtime import contract
from runtime.bundle import load_bundle
from runtime.generator import Generator
from runtime.layouts import Unit
from runtime.layouts.native import NativeLayout, windows_of
from runtime.request import Request
from tests.toy_qwen2_5_vl import SIZE, as_on_the_hub, toy_qwen_model, toy_qwen_processor, write_toy_qwen2_5_vl

FAMILY = Qwen25VLFamily()
LAYOUT = NativeLayout(4, 2, 2, SIZE["shortest_edge"], SIZE["longest_edge"], 2)
# (height, width): 5 x 4 tokens, 3 x 9, and 1 x 11 of a sliver less than a token high
SIZES = ((40, 33), (24, 70), (3, 90))
# Settings of towers: as the toy, as published in small, and one where every window is one token
TOWERS: dict[str, dict[str, Any]] = {
    "toy": {},
    "published in small": {"patch_size": 14, "window_size": 112, "hidden_size": 48, "intermediate_size": 56},
    "windows of one token": {"window_size": 8, "depth": 3, "fullatt_block_indexes": [2]},
    "no windows": {"fullatt_block_indexes": [0, 1, 2, 3]},
    "merger of 3 x 3": {"spatial_merge_size": 3, "window_size": 36, "temporal_patch_size": 1},
}


@pytest.fixture(scope="module")
def model(torch_threads: None) -> Any:
    return toy_qwen_model()


@pytest.fixture(scope="module")
def processor() -> Any:
    return toy_qwen_processor()


def noise(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def chat(processor: Any, *turns: tuple[str, list[Image.Image], str]) -> Any:
    """What transformers makes of (prompt, images, answer) turns, the last one not answered yet."""
    return processor.apply_chat_template(
        conversation(list(turns)),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


# What the family reads


def test_configuration_becomes_a_layout(model: Any, processor: Any) -> None:
    assert FAMILY.encoder_info(model.config) == EncoderInfo(
        layers=4, special_tokens=0, layer=3, score_layers=(1, 3), merge=2, merge_order="packed"
    )
    assert FAMILY.layout(model.config, processor) == LAYOUT
    assert FAMILY.constants(model) == {}
    assert FAMILY.preprocess(processor).resample == 3


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision", {"model_type": "qwen2_vl"}, "the vision tower is 'qwen2_vl', and the supported tower of"),
        (
            "vision",
            {"patch_size": [4, 4]},
            r"has patch_size \[4, 4\], but patches are cubes of the same side",
        ),
        ("vision", {"temporal_patch_size": (2,)}, r"has temporal_patch_size \(2,\), but patches are cubes"),
        ("vision", {"window_size": 7}, "window_size 7, less than a token of 2 x 2 patches of 4 pixels"),
        (
            "vision",
            {"fullatt_block_indexes": []},
            r"has fullatt_block_indexes \[\], but at least one of its 4",
        ),
        ("vision", {"fullatt_block_indexes": [1, 4]}, r"\[1, 4\], but at least .*: give numbers in 0..3"),
        ("vision", {"fullatt_block_indexes": [-1]}, r"has fullatt_block_indexes \[-1\], but at least one"),
        (
            "text",
            {"use_sliding_window": True},
            "use_sliding_window set, which transformers itself leaves out",
        ),
        ("text", {"rope_parameters": {"rope_type": "longrope"}}, "uses 'longrope' rotary scaling"),
    ],
)
def test_configuration_that_cannot_be_exported(
    model: Any, part: str, change: dict[str, Any], message: str
) -> None:
    config = SimpleNamespace(vision_config=model.config.vision_config, text_config=model.config.text_config)
    before = getattr(config, f"{part}_config")
    kind = {"model_type": before.model_type}
    setattr(config, f"{part}_config", SimpleNamespace(**vars(before) | kind | change))
    with pytest.raises(CheckpointError, match=message):
        FAMILY.encoder_info(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 8}, "the image processor has patch_size 8, but the model needs 4: correct"),
        ({"merge_size": 1}, "has merge_size 1, but the model needs 2"),
        ({"temporal_patch_size": 1}, "has temporal_patch_size 1, but the model needs 2"),
        ({"size": {"shortest_edge": 56}}, r"size is \{'shortest_edge': 56\}, but it must have shortest_edge"),
        ({"size": {"shortest_edge": 9, "longest_edge": 8}}, "must have shortest_edge and longest_edge"),
    ],
)
def test_processor_that_contradicts_the_model(model: Any, change: dict[str, Any], message: str) -> None:
    processor = toy_qwen_processor()
    for name, value in change.items():
        setattr(processor.image_processor, name, value)
    with pytest.raises(CheckpointError, match=message):
        FAMILY.layout(model.config, processor)


def test_processor_of_another_kind(model: Any) -> None:
    with pytest.raises(
        CheckpointError, match="its class is SimpleNamespace, but the supported ones are Qwen2VL"
    ):
        FAMILY.layout(model.config, SimpleNamespace(image_processor=SimpleNamespace()))


# The encoder


def tower_inputs(tower: Any, grid: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Inputs of the encoder for random pixels of `grid` tokens."""
    config = tower.config
    merge, patch = config.spatial_merge_size, config.patch_size
    processor = toy_qwen_processor(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=config.temporal_patch_size,
        size={"shortest_edge": 1, "longest_edge": 1 << 26},
    )
    layout = FAMILY.layout(SimpleNamespace(vision_config=config), processor)
    plan = layout.plan(*(side * merge * patch for side in grid))
    assert plan.units[0].grid == grid
    noise = torch.Generator().manual_seed(sum(grid))
    pixels = torch.randn(1, *(plan.placeholders, *layout.pixel_shape[2:]), generator=noise)
    return pixels, *(torch.from_numpy(value) for value in plan.inputs.values())


def of_transformers(tower: Any, pixels: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """float32 [tokens, D] of the model's own tower."""
    thw = torch.tensor([[1, *(side * tower.spatial_merge_size for side in grid)]])
    features: torch.Tensor = tower(pixels.flatten(0, 2), grid_thw=thw).pooler_output
    return features


GRIDS = [(1, 1), (1, 7), (7, 1), (2, 2), (4, 4), (3, 5), (5, 3), (8, 6), (9, 13)]


@pytest.mark.parametrize("name", sorted(TOWERS))
@torch.no_grad()
def test_encoder_gives_the_features_of_transformers(name: str, torch_threads: None) -> None:
    tower = toy_qwen_model(1, vision=TOWERS[name]).model.visual
    encoder = NativeVisionEncoder(tower).eval()
    assert len(tower_inputs(tower, (2, 2))) == (2 if name == "no windows" else 4)
    for grid in GRIDS:
        inputs = tower_inputs(tower, grid)
        wanted = of_transformers(tower, inputs[0], grid)
        # float32 sums in another order: windows come in batches here
        torch.testing.assert_close(encoder(*inputs)[0], wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
@torch.no_grad()
def test_multiply_adds_are_those_that_torch_counts(model: Any, grid: tuple[int, int]) -> None:
    tower = model.model.visual
    inputs = tower_inputs(tower, grid)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        NativeVisionEncoder(tower)(*inputs)
    macs = FAMILY.encoder_macs(model.config, Unit(grid[0] * grid[1], grid))
    assert macs == counter.get_total_flops() // 2
    with FlopCounterMode(display=False) as counter, eager(tower):
        of_transformers(tower, inputs[0], grid)
    # Where windows are full, transformers does the same; else its windows at the edge are smaller.
    same = not windows_of(grid, 2)[0].min() < 0
    assert (macs == counter.get_total_flops() // 2) == same


# The reference


@torch.no_grad()
def test_reference_scores_are_the_attention_of_transformers(
    model: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, seen = chat(processor, ("?", noise(*SIZES), "")), {}
    forward = modeling.eager_attention_forward

    def recorded(module: Any, *args: Any, **kwargs: Any) -> Any:
        made = forward(module, *args, **kwargs)
        seen.setdefault(module, []).append(made[1])
        return made

    reference, tower = FAMILY.reference(model, processor), model.model.visual
    monkeypatch.setattr(modeling, "eager_attention_forward", recorded)
    with eager(tower):
        tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    for layer in (1, 3):
        scores = reference.unit_scores(inputs, layer, "col_mean")
        assert [tuple(image.shape) for image in scores] == [(5, 4), (3, 9), (1, 11)]
        for made, probabilities in zip(scores, seen[tower.blocks[layer].attn], strict=True):
            # The tower's order is that of windows: 2 x 2 tokens of 2 x 2 patches, row by row.
            window = windows_of(tuple(made.shape), 2)[0]
            ordered = made.flatten()[window[window >= 0]]
            wanted = probabilities[0].mean(dim=(0, 1)).view(-1, 4).mean(dim=1)
            # a softmax and two means in float32, of numbers near 1/80
            torch.testing.assert_close(ordered, wanted, rtol=1e-5, atol=0)


def test_reference_sees_the_units_of_the_layout(model: Any, processor: Any) -> None:
    images = noise(*SIZES)
    inputs, reference = chat(processor, ("?", images, "")), FAMILY.reference(model, processor)
    plans = [LAYOUT.plan(*size) for size in SIZES]
    assert [units.count for units in reference.image_units(inputs)] == [1, 1, 1]
    valid = reference.unit_valid(inputs)
    assert [tuple(unit.shape) for unit in valid] == [plan.units[0].grid for plan in plans]
    assert all(bool(unit.all()) for unit in valid)
    tokens = sum(plan.placeholders for plan in plans)
    assert reference.pixel_values(inputs).shape == (1, 4 * tokens, 96)
    with torch.no_grad():
        assert reference.features(inputs).shape == (tokens, 32)


# A planted peak


def planted_tower() -> Any:
    """A tower that looks at white patches of a black picture: every block but the last changes nothing, and
    there each query is the same and meets the keys of white patches."""
    tower = toy_qwen_model().model.visual
    with torch.no_grad():
        for block in tower.blocks:
            for weight in block.parameters():
                weight.zero_()
            block.norm1.weight.fill_(1)
            block.norm2.weight.fill_(1)
        tower.patch_embed.proj.weight.fill_(1 / 96)  # every channel is the mean of the patch
        query = tower.blocks[3].attn.qkv.bias.view(3, 4, 8)[0]
        # The fourth frequency turns slowest: positions hardly matter.
        query[:, 1] = 4
        tower.blocks[3].attn.qkv.weight.view(3, 4, 8, 32)[1, :, 1] = 0.125
    return tower


@pytest.fixture(scope="module")
def planted(
    tmp_path_factory: pytest.TempPathFactory, torch_threads: None
) -> tuple[Any, ort.InferenceSession]:
    folder, tower = tmp_path_factory.mktemp("planted"), planted_tower()
    plain, pruned = folder / "encoder.onnx", folder / "pruned.onnx"
    table = contract.vision_contracts(LAYOUT, 32)[contract.VISION_ENCODER]
    module = NativeVisionEncoder(tower).eval()
    write_onnx_from_torch(Subgraph("vision_encoder", module, tower_inputs(tower, (3, 5)), table), plain, 20)
    info = FAMILY.encoder_info(toy_qwen_model().config)
    prune_file(
        plain,
        pruned,
        PruneOptions(layer=info.layer, special_tokens=0, merge=info.merge, merge_order=info.merge_order),
    )
    return tower, ort.InferenceSession(pruned, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("grid", [(3, 5), (4, 2)])
@torch.no_grad()
def test_planted_peak_is_the_one_token_kept(
    planted: tuple[Any, ort.InferenceSession], grid: tuple[int, int]
) -> None:
    tower, session = planted
    reference = FAMILY.reference(SimpleNamespace(model=SimpleNamespace(visual=tower)), None)
    _, *extra = tower_inputs(tower, grid)
    for patch_y in range(2 * grid[0]):
        for patch_x in range(2 * grid[1]):
            picture = np.full((1, 3, 8 * grid[0], 8 * grid[1]), -1, np.float32)
            picture[:, :, 4 * patch_y : 4 * patch_y + 4, 4 * patch_x : 4 * patch_x + 4] = 1
            pixels = LAYOUT.pack(picture)
            feeds = [pixels, *(value.numpy() for value in extra), np.array([1], np.int64)]
            names = [value.name for value in session.get_inputs()]
            kept = session.run([contract.KEPT_INDICES], dict(zip(names, feeds, strict=True)))[0]
            y, x = patch_y // 2, patch_x // 2
            assert kept.tolist() == [[y * grid[1] + x]]
            inputs = {
                "pixel_values": torch.from_numpy(pixels).flatten(0, 2),
                "image_grid_thw": torch.tensor([[1, 2 * grid[0], 2 * grid[1]]]),
            }
            (scores,) = reference.unit_scores(inputs, 3, "col_mean")
            assert divmod(int(scores.argmax()), grid[1]) == (y, x)


# Whole builds

# The second is also in the form of the hub, its head tied as there.
BUILDS: dict[str, dict[str, Any]] = {
    "rank": {"ratio": 0.3},
    "rows": {"ratio": 0.5, "strategy": "row", "layer": 1, "opset": 23},
}


@dataclass(frozen=True)
class Built:
    """A bundle, and the checkpoint that it was made from as transformers loads it."""

    generator: Generator
    report: dict[str, Any]
    options: dict[str, Any]
    model: Any
    processor: Any


@pytest.fixture(scope="module", params=list(BUILDS))
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, torch_threads: None
) -> Built:
    options, folder = BUILDS[request.param], tmp_path_factory.mktemp("qwen2_5_vl")
    checkpoint = write_toy_qwen2_5_vl(folder / "checkpoint", tied=request.param == "rows")
    if request.param == "rows":
        as_on_the_hub(checkpoint)
    report = build(BuildOptions(model=str(checkpoint), output=folder / "bundle", **options))
    with quiet_libraries(False):
        opened = open_checkpoint(str(checkpoint))
        model, processor = load_model(opened), load_processor(opened)
    return Built(Generator(load_bundle(folder / "bundle")), report.to_dict(), options, model, processor)


def test_every_stage_agrees_with_torch(built: Built) -> None:
    assert built.report["ok"], built.report["parity"]
    assert not any(stage["skipped"] for stage in built.report["parity"]["stages"])
    manifest = built.generator.manifest
    assert (manifest.pruning.position_ids, manifest.decoder.position_axes) == ("original", 3)
    assert manifest.grid_input == (built.options.get("strategy") == "row")


@pytest.mark.parametrize("ratio", [0.3, 0.75])
def test_other_images_and_ratios_agree_with_torch(built: Built, ratio: float, tmp_path: Path) -> None:
    paths = tuple(tmp_path / f"{number}.png" for number in range(len(SIZES)))
    for image, path in zip(noise(*SIZES), paths, strict=True):
        image.save(path)
    options = ParityOptions(images=paths, prompt="And now?", ratio=ratio, new_tokens=32)
    with quiet_libraries(False):
        report = compare_with_torch(built.generator.bundle, options)
    assert report.ok, report.to_dict()
    assert not any(stage.skipped for stage in report.stages)


@pytest.mark.parametrize("sizes", [SIZES, ()], ids=["images", "text"])
def test_ratio_1_answers_as_the_unmodified_model(built: Built, sizes: tuple[tuple[int, int], ...]) -> None:
    images = noise(*sizes)
    inputs = chat(built.processor, ("Which?", images, ""))
    built.model.model.rope_deltas = None  # what is left of the request before
    built.model.generation_config.eos_token_id = None  # answers that end early would compare less
    made = built.model.generate(**inputs, do_sample=False, max_new_tokens=32)
    request = Request(
        "Which?", tuple(images), ratio=1.0 if sizes else None, max_new_tokens=32, ignore_eos=True
    )
    result = built.generator.generate(request)
    assert list(result.token_ids) == made[0, inputs["input_ids"].shape[1] :].tolist()
    assert not result.pruned
    assert result.visual_tokens_before == tuple(LAYOUT.plan(*size).placeholders for size in sizes)


def test_second_turn_answers_as_the_oracle(built: Built) -> None:
    first, second = noise((40, 33)), noise((24, 70), (60, 60))
    inputs = chat(built.processor, ("Which?", first, "That one."), ("And these?", second, ""))

    class TwoTurns(Oracle):
        def _inputs(self, images: Any, prompt: str) -> Any:
            del images, prompt
            return inputs

    choice = PruningChoice(
        layer=built.report["layer"],
        ratio=0.3,
        strategy=built.options.get("strategy", "rank"),
        position_ids="original",
    )
    oracle = TwoTurns(FAMILY.reference(built.model, built.processor), built.model, built.processor)
    wanted = oracle.run([], "", choice, 32)
    request = Request(
        "And these?",
        tuple(second),
        ratio=0.3,
        max_new_tokens=32,
        ignore_eos=True,
        history=(("Which?", tuple(first), "That one."),),
    )
    stream = built.generator.stream(request)
    assert "".join(stream) == stream.result.text
    assert list(stream.result.token_ids) == wanted["tokens"][0].tolist()
    assert stream.result.pruned


def test_positions_are_those_of_the_unpruned_prompt(built: Built) -> None:
    images = noise((40, 33), (24, 70), (60, 60))
    inputs = chat(built.processor, ("Which?", images, ""))
    stream = built.generator.stream(Request("Which?", tuple(images), ratio=0.4, max_new_tokens=1))
    assert "".join(stream) == stream.result.text
    # Which of the unpruned ids are left, by what the result says was kept.
    unpruned = inputs["input_ids"][0]
    stays = torch.ones(len(unpruned), dtype=torch.bool)
    places = torch.where(unpruned == built.model.config.image_token_id)[0]
    stays[places] = False
    for own, kept in zip(places.split([20, 27, 64]), stream.result.kept_indices, strict=True):
        assert 0 < len(kept) < len(own)
        stays[own[list(kept)]] = True
    wanted, deltas = built.model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"]
    )
    plans = [image.plan for image in stream.encoded]
    plain = built.generator.tokenize(Request("Which?", tuple(images)), plans)
    prompt = built.generator.prompt(plain, stream.encoded)
    assert prompt.ids[0].tolist() == unpruned[stays].tolist()
    assert prompt.positions.ids.tolist() == wanted[:, 0, stays].tolist()
    assert prompt.positions.next == int(wanted.max()) + 1 == len(unpruned) + int(deltas)


def test_every_image_is_one_call(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, seen = built.generator, []
    session = generator.session(contract.VISION_ENCODER_FOPRU)
    run = session.run

    def counted(feeds: dict[str, Any]) -> Any:
        seen.append({name: value.shape for name, value in feeds.items()})
        return run(feeds)

    monkeypatch.setattr(session, "run", counted)
    images = noise((40, 33), (24, 70), (40, 33))
    result = generator.generate(Request("?", tuple(images), ratio=0.5, max_new_tokens=1))
    assert [shapes[contract.PIXEL_VALUES] for shapes in seen] == [(1, n, 4, 96) for n in (20, 27, 20)]
    assert [shapes["window_tokens"] for shapes in seen] == [(6, 4), (10, 4), (6, 4)]
    rows = built.options.get("strategy") == "row"
    # half of 5 rows of 4, of 3 rows of 9: halves are rounded up
    assert result.visual_tokens_after == ((12, 18, 12) if rows else (10, 14, 10))
