"""SmolVLM and Idefics3 from checkpoint to answers: what the family reads, its reference, whole builds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from export.build import BuildOptions, build
from export.checkpoint import load_model, load_processor, open_checkpoint
from export.errors import CheckpointError
from export.families.base import ImageUnits
from export.families.smolvlm import Idefics3Family, SmolVLMFamily
from export.onnx_from_torch import write_onnx_from_torch
from export.oracle import Oracle, PruningChoice
from export.parity import ParityOptions, compare_with_torch
from export.prompt_template import conversation
from export.steps import quiet_libraries
from fopru_graph import PruneOptions, prune_file
from runtime import contract
from runtime.bundle import load_bundle
from runtime.generator import Generator
from runtime.layouts import IMAGE_SLOT, Unit
from runtime.layouts.split import SplitLayout
from runtime.request import Request
from tests.toy_smolvlm import (
    smolvlm_processor,
    toy_idefics3_processor,
    toy_split_model,
    write_toy_idefics3,
    write_toy_smolvlm,
)

FAMILIES = {"smolvlm": SmolVLMFamily(), "idefics3": Idefics3Family()}
FAMILY = FAMILIES["smolvlm"]
# (height, width): three tiles in one row, three by three, two by three
SIZES = ((30, 96), (96, 96), (50, 90))
UNITS = (4, 10, 7)


@pytest.fixture(scope="module")
def model(torch_threads: None) -> Any:
    return toy_split_model()


@pytest.fixture(scope="module")
def processor() -> Any:
    return smolvlm_processor()


def noise(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def inputs(processor: Any) -> Any:
    return processor(text="<image>a<image>b<image>", images=noise(*SIZES), return_tensors="pt")


# What the family reads


@pytest.mark.parametrize(
    ("kind", "make"), [("smolvlm", smolvlm_processor), ("idefics3", toy_idefics3_processor)]
)
def test_configuration_becomes_a_layout(kind: str, make: Any) -> None:
    config, family = toy_split_model(kind).config, FAMILIES[kind]
    info = family.encoder_info(config)
    assert (info.layers, info.special_tokens, info.layer, info.merge, info.merge_order) == (
        3,
        0,
        None,
        2,
        "row_major",
    )
    fake, whole = "<fake_token_around_image>", "<global-img>"
    assert family.layout(config, make()) == SplitLayout(
        tile=32,
        grid=(4, 4),
        resize={"longest_edge": 96},
        splitting=True,
        tile_text=f"{fake}<row_{{row}}_col_{{column}}>{IMAGE_SLOT}",
        row_end="\n",
        overview_text=f"\n{fake}{whole}{IMAGE_SLOT}{fake}",
        single_text=f"{fake}{whole}{IMAGE_SLOT}{fake}",
    )
    whole_only = family.layout(config, make(do_image_splitting=False, size={"height": 40, "width": 50}))
    assert not whole_only.splitting
    assert whole_only.resize == {"height": 40, "width": 50}


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        (
            {"image_size": [32, 48]},
            r"has image_size \[32, 48\] and patch_size 4, but the towers of this family are square: give",
        ),
        ({"patch_size": [4, 4]}, r"image_size 32 and patch_size \[4, 4\], but the towers"),
    ],
)
def test_tower_that_cannot_be_exported(model: Any, tower: dict[str, Any], message: str) -> None:
    config = SimpleNamespace(**vars(model.config))
    config.vision_config = SimpleNamespace(**vars(model.config.vision_config) | tower)
    with pytest.raises(CheckpointError, match=message):
        FAMILY.encoder_info(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_seq_len": 64},
            "the processor has image_seq_len 64, but tiles of 32 x 32 pixels make 16 tokens",
        ),
        (
            {"images.max_image_size": {"longest_edge": 36}},
            "max_image_size 36, which makes 9 patches of 4 pixels",
        ),
        (
            {"images.max_image_size": {}},
            "max_image_size None, which makes 0 patches of 4 pixels along an edge",
        ),
        (
            {"images.size": {"shortest_edge": 9}},
            r"size is {'shortest_edge': 9}, but it must have longest_edge, or",
        ),
    ],
)
def test_processor_that_contradicts_the_model(model: Any, change: dict[str, Any], message: str) -> None:
    processor = smolvlm_processor()
    for name, value in change.items():
        owner, _, field = name.rpartition(".")
        setattr(processor.image_processor if owner else processor, field, value)
    with pytest.raises(CheckpointError, match=message):
        FAMILY.layout(model.config, processor)


def test_processor_of_another_family(model: Any) -> None:
    processor = SimpleNamespace(image_processor=object())
    with pytest.raises(
        CheckpointError, match="its class is object, but the supported ones are Idefics3Image"
    ):
        FAMILY.layout(model.config, processor)


def test_levels_that_make_a_picture_look_like_padding(model: Any) -> None:
    # transformers leaves out pictures of zeros: an all-black one without normalisation
    with pytest.raises(
        CheckpointError, match=r"with image_mean \[0\.0, 0\.0, 0\.0\] a picture of one colour becom"
    ):
        FAMILY.preprocess(smolvlm_processor(do_normalize=False))
    mean = [0.0, 0.5, 0.5]  # a level of one channel alone does not make it
    assert FAMILY.preprocess(smolvlm_processor(image_mean=mean)).mean == (0.0, 0.5, 0.5)
    black = Image.new("RGB", (96, 32))  # three tiles and the whole, of which transformers leaves one
    plain = smolvlm_processor(do_normalize=False)(text="<image>", images=black, return_tensors="pt")
    with torch.no_grad():
        assert model.model.get_image_features(plain["pixel_values"]).pooler_output[0].shape[0] == 16


@pytest.mark.parametrize("scale_factor", [2, 4])
def test_multiply_adds_are_those_that_torch_counts(scale_factor: int) -> None:
    model, processor = (
        toy_split_model(scale_factor=scale_factor),
        smolvlm_processor(scale_factor=scale_factor),
    )
    model.model.vision_model.set_attn_implementation("eager")
    inputs = processor(text="<image>", images=noise((30, 96)), return_tensors="pt")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.get_image_features(inputs["pixel_values"])
    side = 8 // scale_factor
    unit = Unit(side**2, (side, side))
    assert 4 * FAMILY.encoder_macs(model.config, unit) == counter.get_total_flops() // 2


def test_nothing_but_graphs_is_needed(model: Any) -> None:
    assert FAMILY.constants(model) == {}


# The reference


def test_reference_sees_the_units_of_the_layout(model: Any, processor: Any, inputs: Any) -> None:
    reference, layout = FAMILY.reference(model, processor), FAMILY.layout(model.config, processor)
    plans = [layout.plan(*size) for size in SIZES]
    assert reference.image_units(inputs) == [
        ImageUnits(len(plan.units), plan.overview, plan.mosaic) for plan in plans
    ]
    assert tuple(len(plan.units) for plan in plans) == UNITS
    assert reference.pixel_values(inputs).shape == (sum(UNITS), 3, 32, 32)
    assert [tuple(valid.shape) for valid in reference.unit_valid(inputs)] == [(4, 4)] * sum(UNITS)
    assert all(valid.all() for valid in reference.unit_valid(inputs))
    with torch.no_grad():
        assert reference.features(inputs).shape == (sum(UNITS) * 16, 32)
    assert reference.positions(inputs).tolist() == [list(range(inputs["input_ids"].shape[1]))]
    kept = [torch.rand(4, 4) < 0.5 for _ in range(sum(UNITS))]
    assert torch.equal(reference.keep_mask(inputs, kept, "keep_all"), torch.stack(kept).flatten())


def test_reference_counts_single_pictures(model: Any) -> None:
    processor = smolvlm_processor(do_image_splitting=False)
    text = "<row_1_col_1><image><row_2_col_2><image>"  # what a question says about tiles means nothing
    inputs = processor(text=text, images=noise(*SIZES[:2]), return_tensors="pt")
    assert FAMILY.reference(model, processor).image_units(inputs) == [ImageUnits(1)] * 2


@pytest.mark.parametrize("scale_factor", [2, 4])
def test_reference_scores_are_means_over_groups_of_patches(scale_factor: int) -> None:
    model, processor = (
        toy_split_model(scale_factor=scale_factor),
        smolvlm_processor(scale_factor=scale_factor),
    )
    inputs = processor(text="<image>", images=noise((30, 96)), return_tensors="pt")
    reference = FAMILY.reference(model, processor)
    tower = model.model.vision_model
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        scores = reference.unit_scores(inputs, 2, "col_mean")
        assert all(
            torch.equal(a, b)
            for a, b in zip(scores, reference.unit_scores(inputs, 2, "col_mean_patch"), strict=True)
        )
        attention = tower(inputs["pixel_values"][0], output_attentions=True).attentions
    assert len(attention) == 3
    received = attention[2].mean(dim=(1, 2)).view(-1, 1, 8, 8)
    wanted = torch.nn.functional.avg_pool2d(received, scale_factor)[:, 0]
    # the same means, summed in another order: a few roundings of numbers near 1/64
    torch.testing.assert_close(torch.stack(scores), wanted, rtol=1e-6, atol=1e-8)
    # every query gives away 1 in all
    sums = torch.stack(scores).sum(dim=(1, 2)) * scale_factor**2
    torch.testing.assert_close(sums, torch.ones(4), rtol=0, atol=1e-6)


# One graph


@pytest.mark.parametrize("tile", [32, 40, 64, 35])  # 35: three pixels more than whole patches
def test_positions_of_patches_are_those_of_transformers(model: Any, tile: int) -> None:
    # The tower has positions for 8 x 8 patches; other tiles share them out among their patches.
    processor = smolvlm_processor(max_image_size={"longest_edge": tile})
    layout = FAMILY.layout(model.config, processor)
    inputs = processor(text="<image>", images=noise((50, 90)), return_tensors="pt")
    encoder = next(FAMILY.subgraphs(model, layout, FAMILY.decoder_info(model))).module
    with torch.no_grad():
        made = encoder(inputs["pixel_values"][0])
        wanted = FAMILY.reference(model, processor).features(inputs)
    assert made.shape[1] == (tile // 4 // 2) ** 2
    # the same sums by another kernel: rounding of features near 1
    torch.testing.assert_close(made.flatten(0, 1), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale_factor", [2, 4])
def test_one_bright_patch_survives_alone(scale_factor: int, tmp_path: Path, torch_threads: None) -> None:
    model = toy_split_model(scale_factor=scale_factor, layers=1)
    _look_at_brightness(model.model.vision_model)
    layout = FAMILY.layout(model.config, smolvlm_processor(scale_factor=scale_factor))
    graph = next(FAMILY.subgraphs(model, layout, FAMILY.decoder_info(model)))
    plain, pruned = tmp_path / "plain.onnx", tmp_path / "pruned.onnx"
    write_onnx_from_torch(graph, plain, 20)
    prune_file(plain, pruned, PruneOptions(special_tokens=0, grid=layout.unit_grid, merge=scale_factor))
    session = onnxruntime.InferenceSession(pruned, providers=["CPUExecutionProvider"])

    patches = np.arange(64)
    tiles = np.full((64, 3, 8, 4, 8, 4), -1.0, np.float32)
    tiles[patches, :, patches // 8, :, patches % 8] = 1.0
    feeds = {contract.PIXEL_VALUES: tiles.reshape(64, 3, 32, 32), contract.NUM_KEEP: np.array([1], np.int64)}
    (kept,) = session.run([contract.KEPT_INDICES], feeds)
    y, x = patches // 8 // scale_factor, patches % 8 // scale_factor
    assert kept[:, 0].tolist() == (y * (8 // scale_factor) + x).tolist()


@torch.no_grad()
def _look_at_brightness(tower: Any) -> None:
    """Make every patch attend to bright ones: channel 0 is the brightness, and all queries ask for it."""
    embeddings, layer = tower.embeddings, tower.encoder.layers[0]
    for parameter in (*embeddings.parameters(), *layer.self_attn.parameters()):
        parameter.zero_()
    embeddings.patch_embedding.weight[0] = 1.0
    layer.layer_norm1.weight.fill_(1.0)
    layer.layer_norm1.bias.zero_()
    layer.self_attn.k_proj.weight[:, 0] = 1.0
    layer.self_attn.q_proj.bias.fill_(1.0)


# Whole builds

# options of the build, checkpoint
BUILDS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "rank": ({"ratio": 0.3}, write_toy_smolvlm, {}),
    "rows of the picture": (
        {"ratio": 0.5, "strategy": "row", "row_scope": "stitched", "opset": 23},
        write_toy_idefics3,
        {"scale_factor": 4},
    ),
    "rows of whole pictures": (
        {"ratio": 0.4, "strategy": "row", "position_ids": "original", "layer": 1},
        write_toy_smolvlm,
        {"seed": 1, "do_image_splitting": False},
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
    options, write, toy = BUILDS[request.param]
    folder = tmp_path_factory.mktemp("smolvlm")
    checkpoint = write(folder / "checkpoint", **toy)
    report = build(BuildOptions(model=str(checkpoint), output=folder / "bundle", **options))
    with quiet_libraries(False):
        opened = open_checkpoint(str(checkpoint))
        model, processor = load_model(opened), load_processor(opened)
    return Built(Generator(load_bundle(folder / "bundle")), report.to_dict(), options, model, processor)


def test_every_stage_agrees_with_torch(built: Built) -> None:
    assert built.report["ok"], built.report["parity"]
    assert not any(stage["skipped"] for stage in built.report["parity"]["stages"])


@pytest.mark.parametrize(
    ("sizes", "amount"),
    [(SIZES, {"ratio": 0.6}), (((1, 500), (500, 1), (20, 20)), {"tokens": 12})],
    ids=["mixed", "slivers"],
)
def test_other_images_and_amounts_agree_with_torch(
    built: Built, sizes: tuple[tuple[int, int], ...], amount: dict[str, Any], tmp_path: Path
) -> None:
    paths = tuple(tmp_path / f"{number}.png" for number in range(len(sizes)))
    for image, path in zip(noise(*sizes), paths, strict=True):
        image.save(path)
    options = ParityOptions(images=paths, prompt="And now?", new_tokens=32, **amount)
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
    first, second = noise((30, 96)), noise((96, 96), (50, 90))
    inputs = built.inputs(("Which?", first, "That one."), ("And these?", second, ""))

    class TwoTurns(Oracle):
        def _inputs(self, *_: Any) -> Any:
            return inputs

    options = {**built.options, "ratio": 0.3, "layer": built.report["layer"]}
    choice = PruningChoice(**{key: value for key, value in options.items() if key != "opset"})
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
    assert stream.result.visual_tokens_after == tuple(len(image.features) for image in stream.encoded)
    assert sum(stream.result.visual_tokens_after) == int((prompt.ids == token).sum())
    # Pruning takes image tokens alone: the names of the tiles and everything else stay as they were.
    plain = inputs["input_ids"][0]
    assert prompt.ids[prompt.ids != token].tolist() == plain[plain != token].tolist()
    text = built.processor.tokenizer.decode(prompt.ids[0].tolist(), skip_special_tokens=False)
    tiled = built.processor.image_processor.do_image_splitting
    assert text.count("<row_1_col_3>") == (3 if tiled else 0)
    assert text.count("<global-img><image>") == 3


def test_counts_are_those_of_the_units(built: Built) -> None:
    result = built.generator.generate(Request("?", tuple(noise(*SIZES)), ratio=0.5, max_new_tokens=1))
    units = UNITS if built.processor.image_processor.do_image_splitting else (1, 1, 1)
    tokens = built.generator.manifest.layout.unit_tokens
    assert tokens is not None
    assert result.visual_tokens_before == tuple(count * tokens for count in units)
    assert result.visual_tokens_after == tuple(count * tokens // 2 for count in units)
