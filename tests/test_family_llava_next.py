"""LLaVA-NeXT from checkpoint to answers: what the family reads, its reference, and builds against it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from export.build import BuildOptions, build
from export.checkpoint import load_model, load_processor, open_checkpoint
from export.errors import CheckpointError
from export.families.llava_next import LlavaNextFamily
from export.oracle import Oracle, PruningChoice
from export.parity import ParityOptions, compare_with_torch
from export.prompt_template import conversation
from export.steps import quiet_libraries
from runtime import contract
from runtime.bundle import load_bundle
from runtime.generator import Generator
from runtime.layouts import Unit
from runtime.layouts.anyres import AnyresLayout
from runtime.plan import plan_pruning
from runtime.request import Request
from runtime.vision import Selection
from tests.toy_llava_next import PINPOINTS, toy_next_model, toy_next_processor, write_toy_llava_next

FAMILY = LlavaNextFamily()
# (height, width): one tile high and two wide, two by two with padding, a sliver
SIZES = ((30, 70), (90, 70), (9, 100))


@pytest.fixture(scope="module")
def model(torch_threads: None) -> Any:
    return toy_next_model()


@pytest.fixture(scope="module")
def processor() -> Any:
    return toy_next_processor()


def noise(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def inputs(processor: Any) -> Any:
    return processor(text="<image>a<image>b<image>", images=noise(*SIZES), return_tensors="pt")


# What the family reads


def test_configuration_becomes_a_layout(model: Any, processor: Any) -> None:
    info = FAMILY.encoder_info(model.config)
    assert (info.layers, info.special_tokens, info.layer, info.merge) == (3, 1, None, 1)
    assert FAMILY.layout(model.config, processor) == AnyresLayout((32, 32), (4, 4), PINPOINTS)


def test_siglip_tower_has_no_cls() -> None:
    config = toy_next_model(tower="siglip", feature_layer=-1).config
    info = FAMILY.encoder_info(config)
    assert (info.layers, info.special_tokens) == (4, 0)
    assert FAMILY.layout(config, toy_next_processor(tower="siglip")).unit_tokens == 16


@pytest.mark.parametrize(
    ("tower", "top", "message"),
    [
        (
            {"model_type": "pixtral"},
            {},
            "the vision tower is 'pixtral', and the supported towers of a llava",
        ),
        (
            {},
            {"vision_feature_select_strategy": "full"},
            "vision_feature_select_strategy is 'full', but only 'default' makes full tiles of the rows of a "
            "clip_vision_model: correct config.json",
        ),
        (
            {"model_type": "siglip_vision_model"},
            {},
            "vision_feature_select_strategy is 'default', but only 'full' makes full tiles",
        ),
        (
            {"image_size": [32, 48]},
            {},
            r"has image_size \[32, 48\] and patch_size 8, but the towers of this family are square: give",
        ),
        ({}, {"vision_feature_layer": 9}, "vision_feature_layer is 9, but the tower has 4 layers"),
    ],
)
def test_tower_that_cannot_be_exported(
    model: Any, tower: dict[str, Any], top: dict[str, Any], message: str
) -> None:
    config = SimpleNamespace(**vars(model.config) | top)
    config.vision_config = SimpleNamespace(
        **vars(model.config.vision_config) | {"model_type": "clip_vision_model"} | tower
    )
    with pytest.raises(CheckpointError, match=message):
        FAMILY.encoder_info(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"patch_size": 4},
            "the processor has patch_size 4, but the model needs 8: correct",
        ),
        ({"num_additional_image_tokens": 0}, "has num_additional_image_tokens 0, but the model needs 1"),
        ({"vision_feature_select_strategy": "full"}, "strategy full, but the model needs default"),
        ({"images.size": {"shortest_edge": 40}}, r"has size \(40, 40\), but the model needs \(32, 32\)"),
        ({"images.crop_size": {"height": 32, "width": 40}}, r"crop_size \(32, 40\), but the model needs"),
        ({"images.image_grid_pinpoints": [[32, 64]]}, r"image_grid_pinpoints \(\(32, 64\),\), but the model"),
        ({"images.image_grid_pinpoints": None}, r"has image_grid_pinpoints \(\), but the model needs"),
    ],
)
def test_processor_that_contradicts_the_model(model: Any, change: dict[str, Any], message: str) -> None:
    processor = toy_next_processor()
    for name, value in change.items():
        owner, _, field = name.rpartition(".")
        setattr(processor.image_processor if owner else processor, field, value)
    with pytest.raises(CheckpointError, match=message):
        FAMILY.layout(model.config, processor)


def test_pinpoints_that_are_no_whole_tiles() -> None:
    pinpoints = ((32, 48),)
    with pytest.raises(
        CheckpointError,
        match=r"image_grid_pinpoints has \[32, 48\], but both must be multiples of the tower's",
    ):
        FAMILY.layout(toy_next_model(pinpoints=pinpoints).config, toy_next_processor(pinpoints=pinpoints))


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_multiply_adds_are_those_that_torch_counts(tower: str) -> None:
    model = toy_next_model(tower=tower, feature_layer=[2, -1])  # -1: every layer of the tower counts
    model.model.vision_tower.set_attn_implementation("eager")
    model.model.vision_tower.use_head = (
        False  # SigLIP's pools for classifiers, and never reaches the features
    )
    inputs = toy_next_processor(tower=tower)(text="<image>", images=noise((32, 64)), return_tensors="pt")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
    unit = Unit(16, (4, 4))
    assert 3 * FAMILY.encoder_macs(model.config, unit) == counter.get_total_flops() // 2  # base and two tiles


def test_newline_vector_is_a_constant(model: Any) -> None:
    constants = FAMILY.constants(model)
    assert list(constants) == ["image_newline"]
    assert constants["image_newline"].dtype == np.float32
    np.testing.assert_array_equal(constants["image_newline"], model.model.image_newline.detach().numpy())


# The reference


def test_reference_sees_the_units_of_the_layout(model: Any, processor: Any, inputs: Any) -> None:
    reference, layout = FAMILY.reference(model, processor), FAMILY.layout(model.config, processor)
    plans = [layout.plan(*size) for size in SIZES]
    units = [unit for plan in plans for unit in plan.units]
    assert inputs["pixel_values"].shape[:2] == (3, 5)  # padded to the most tiles
    assert reference.pixel_values(inputs).shape == (len(units), 3, 32, 32)
    valid = reference.unit_valid(inputs)
    assert [torch.where(own.flatten())[0].tolist() for own in valid] == [
        unit.valid_indices.tolist() for unit in units
    ]
    assert not all(own.all() for own in valid)
    assert len(reference.features(inputs)) == sum(plan.placeholders for plan in plans)
    length = inputs["input_ids"].shape[1]
    assert reference.positions(inputs).tolist() == [list(range(length))]


@pytest.mark.parametrize(("tower", "special"), [("clip", 1), ("siglip", 0)])
def test_reference_scores_are_shares_of_attention(tower: str, special: int) -> None:
    model, processor = toy_next_model(tower=tower), toy_next_processor(tower=tower)
    inputs = processor(text="<image>", images=noise((90, 70)), return_tensors="pt")
    reference = FAMILY.reference(model, processor)
    received = reference.unit_scores(inputs, 2, "col_mean")
    assert [score.shape for score in received] == [(4, 4)] * 5
    sums = torch.stack(received).sum(dim=(1, 2))
    # Each query gives away 1 in all; what is not received by patches is received by CLS.
    assert (sums < 1).all() if special else torch.allclose(sums, torch.ones(5), atol=1e-6)
    patches = torch.stack(reference.unit_scores(inputs, 2, "col_mean_patch"))
    if special:
        cls = torch.stack(reference.unit_scores(inputs, 2, "cls"))
        # 17 queries: CLS and 16 patches; float32 sums of 17 numbers
        assert torch.allclose(cls + 16 * patches, 17 * torch.stack(received), atol=1e-6)
    else:
        assert torch.equal(patches, torch.stack(received))


@pytest.mark.parametrize(
    ("newline", "wanted"),
    [("keep_all", [3, 4, 8, 13]), ("keep_nonempty", [3, 4, 8]), ("drop", [3, 4])],
)
def test_reference_keeps_newlines_by_policy(newline: str, wanted: list[int]) -> None:
    # Two tiles of 2 x 2 tokens: 0..3 the overview, then the lines 4..7 with newline 8, 9..12 with newline 13
    model = toy_next_model(pinpoints=((32, 64),))
    model.config.vision_config.patch_size = 16
    processor = toy_next_processor(patch=16, pinpoints=((32, 64),))
    inputs = {"image_sizes": torch.tensor([[32, 64]])}
    kept = [torch.tensor(grid).bool() for grid in ([[0, 0], [0, 1]], [[1, 0], [0, 0]], [[0, 0], [0, 0]])]
    mask = FAMILY.reference(model, processor).keep_mask(inputs, kept, newline)
    assert mask.shape == (14,)
    assert torch.where(mask)[0].tolist() == wanted


# Whole builds

# options of the build, tower
BUILDS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"ratio": 0.3}, "clip"),
    "rows of tiles": ({"ratio": 0.5, "strategy": "row", "newline": "keep_nonempty", "opset": 23}, "clip"),
    "rows of the picture": (
        {"ratio": 0.4, "strategy": "row", "row_scope": "stitched", "newline": "drop"},
        "clip",
    ),
    "original positions": (
        {
            "tokens": 20,
            "aggregation": "col_mean_patch",
            "newline": "keep_nonempty",
            "position_ids": "original",
        },
        "siglip",
    ),
}


@dataclass(frozen=True)
class Built:
    """A bundle, and the checkpoint that it was made from as transformers loads it."""

    generator: Generator
    report: dict[str, Any]
    options: dict[str, Any]
    model: Any
    processor: Any

    def inputs(self, *turns: tuple[str, list[Image.Image], str]) -> Any:
        """What transformers makes of (prompt, images, answer) turns, the last one not answered yet."""
        return self.processor.apply_chat_template(
            conversation(list(turns)),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )


@pytest.fixture(scope="module", params=list(BUILDS))
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, torch_threads: None
) -> Built:
    options, tower = BUILDS[request.param]
    folder = tmp_path_factory.mktemp("llava_next")
    checkpoint = write_toy_llava_next(folder / "checkpoint", tower=tower)
    report = build(BuildOptions(model=str(checkpoint), output=folder / "bundle", **options))
    with quiet_libraries(False):
        opened = open_checkpoint(str(checkpoint))
        model, processor = load_model(opened), load_processor(opened)
    return Built(Generator(load_bundle(folder / "bundle")), report.to_dict(), options, model, processor)


def test_every_stage_agrees_with_torch(built: Built) -> None:
    assert built.report["ok"], built.report["parity"]
    assert not any(stage["skipped"] for stage in built.report["parity"]["stages"])


# Padding on both sides, tiles of several shapes; slivers of which the tiles show nothing, or newlines alone.
@pytest.mark.parametrize("sizes", [SIZES, ((1, 5000), (60, 61), (5000, 1))], ids=["mixed", "slivers"])
def test_other_images_and_ratios_agree_with_torch(
    built: Built, sizes: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    paths = tuple(tmp_path / f"{number}.png" for number in range(len(sizes)))
    for image, path in zip(noise(*sizes), paths, strict=True):
        image.save(path)
    options = ParityOptions(images=paths, prompt="And now?", ratio=0.6, new_tokens=32)
    with quiet_libraries(False):
        report = compare_with_torch(built.generator.bundle, options)
    assert report.ok, report.to_dict()
    assert not any(stage.skipped for stage in report.stages)


def test_ratio_1_answers_as_the_unmodified_model(built: Built) -> None:
    images = noise(*SIZES)
    inputs = built.inputs(("Which?", images, ""))
    no_token = built.model.config.text_config.vocab_size  # as the end of the answer: it goes on
    made = built.model.generate(**inputs, do_sample=False, max_new_tokens=32, eos_token_id=no_token)
    request = Request("Which?", tuple(images), ratio=1.0, max_new_tokens=32, ignore_eos=True)
    result = built.generator.generate(request)
    assert list(result.token_ids) == made[0, inputs["input_ids"].shape[1] :].tolist()
    assert not result.pruned
    assert result.visual_tokens_before == result.visual_tokens_after


def test_second_turn_answers_as_the_oracle(built: Built) -> None:
    first, second = noise((30, 70)), noise((90, 70), (64, 64))
    inputs = built.inputs(("Which?", first, "That one."), ("And these?", second, ""))

    class TwoTurns(Oracle):
        def _inputs(self, *_: Any) -> Any:
            return inputs

    options = {"tokens": None, **built.options, "ratio": 0.3, "layer": built.report["layer"]}
    choice = PruningChoice(**{key: value for key, value in options.items() if key not in ("opset", "tokens")})
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
    # As many placeholders as visual tokens, where the oracle has them.
    plans = [image.plan for image in stream.encoded]
    prompt = built.generator.prompt(built.generator.tokenize(request, plans), stream.encoded)
    assert prompt.ids.tolist() == wanted["input_ids"].tolist()
    assert prompt.positions.ids.tolist() == wanted["position_ids"].tolist()
    token = built.model.config.image_token_id
    assert sum(len(image.features) for image in stream.encoded) == int((prompt.ids == token).sum())
    assert stream.result.visual_tokens_after == tuple(len(image.features) for image in stream.encoded)


def test_newlines_follow_the_policy(built: Built) -> None:
    # 2 x 2 tiles without padding: 8 lines; one row of each tile, or one token of each unit
    amount = {"ratio": 0.25} if built.options.get("strategy") == "row" else {"tokens": 5}
    result = built.generator.generate(Request("?", tuple(noise((64, 64))), max_new_tokens=1, **amount))
    units = [divmod(index, 16) for index in result.kept_indices[0]]
    lines = {((unit - 1) // 2, place // 4) for unit, place in units if unit}
    assert 0 < len(lines) < 8
    newlines = {"keep_all": 8, "keep_nonempty": len(lines), "drop": 0}
    policy = built.options.get("newline", "keep_all")
    assert result.visual_tokens_before == (16 + 64 + 8,)
    assert result.visual_tokens_after == (len(units) + newlines[policy],)


def test_tiles_in_one_call_do_not_see_each_other(built: Built) -> None:
    generator = built.generator
    prepared = generator.preprocess(noise((90, 70), (64, 64)))
    counts = plan_pruning(Request("?", ratio=0.5), generator.manifest, [image.plan for image in prepared])
    together = generator.encode_images(prepared, Selection(counts.counts))
    session, alone = generator.session(contract.VISION_ENCODER_FOPRU), []
    for image in prepared:
        for index, unit in enumerate(image.plan.units):
            mask = np.zeros((1, 16), np.bool_)
            mask[0, unit.valid_indices] = True
            feeds = {
                contract.PIXEL_VALUES: image.pixel_values[index : index + 1],
                contract.NUM_KEEP: np.array([16], np.int64),
                contract.TOKEN_MASK: mask,
            }
            alone.append(session.run(feeds))
    scores = [own for image in together for own in image.scores or ()]
    for got, wanted in zip(scores, alone, strict=True):
        # the same sums, blocked otherwise for another batch
        np.testing.assert_allclose(got, wanted[contract.TOKEN_SCORES][0], rtol=1e-5)
