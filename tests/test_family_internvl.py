"""InternVL from checkpoint to answers: what the family reads, its reference, whole builds."""

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
from export.families.internvl import InternVLFamily
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
from runtime.layouts.aspect import AspectLayout
from runtime.request import Request
from tests.toy_internvl import internvl_processor, published_internvl, toy_internvl_model, write_toy_internvl

FAMILY = InternVLFamily()
IMAGE = "<IMG_CONTEXT>"
# (height, width): three tiles in one row, two by two, one row of two, a single tile
SIZES = ((30, 96), (96, 96), (50, 90), (20, 20))
UNITS = (4, 5, 3, 1)


@pytest.fixture(scope="module")
def model(torch_threads: None) -> Any:
    return toy_internvl_model()


@pytest.fixture(scope="module")
def processor() -> Any:
    return internvl_processor()


def noise(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def inputs(processor: Any) -> Any:
    text = "a".join([IMAGE] * len(SIZES))
    return processor(text=text, images=noise(*SIZES), return_tensors="pt")


# What the family reads


def test_configuration_becomes_a_layout(model: Any) -> None:
    info = FAMILY.encoder_info(model.config)
    assert (info.layers, info.special_tokens, info.layer) == (3, 1, None)
    assert (info.merge, info.merge_order, info.token_order) == (2, "row_major", None)
    wanted = AspectLayout(tile=32, grid=(4, 4), tiles=(1, 6), text=f"<img>{IMAGE_SLOT}</img>")
    assert FAMILY.layout(model.config, internvl_processor()) == wanted
    assert FAMILY.layout(model.config, internvl_processor(min_patches=2, max_patches=9)).tiles == (2, 9)
    assert FAMILY.layout(model.config, internvl_processor(min_patches=2, max_patches=1)).tiles == (1, 1)


def test_the_processor_decides_whether_pictures_are_cut(model: Any) -> None:
    # transformers' own says yes whatever the image processor says
    theirs = internvl_processor(crop_to_patches=False)
    assert len(theirs(text=IMAGE, images=noise((96, 96)), return_tensors="pt")["pixel_values"]) == 5
    assert FAMILY.layout(model.config, theirs).tiles == (1, 6)
    theirs.images_kwargs = {"crop_to_patches": False}
    assert len(theirs(text=IMAGE, images=noise((96, 96)), return_tensors="pt")["pixel_values"]) == 1
    assert FAMILY.layout(model.config, theirs).tiles == (1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tower.model_type": "clip"},
            "the vision tower is 'clip', and the supported tower of an internvl checkpoint is: internvl_visi",
        ),
        (
            {"tower.image_size": (32, 48)},
            r"has image_size \[32, 48\], but the towers of this family are square: give the same number",
        ),
        ({"tower.patch_size": [4, 8]}, r"has patch_size \[4, 8\], but the towers"),
        (
            {"tower.image_size": (36, 36)},
            "image_size 36, which makes 9 patches of 4 pixels along an edge, but downsample_ratio 0.5 ne",
        ),
        ({"tower.image_size": 3}, "image_size 3, which makes 0 patches of 4 pixels along an edge"),
        ({"downsample_ratio": 1 / 3}, "downsample_ratio is 0.33.*, but pixel shuffle needs one of 1, 0.5, 0"),
        ({"downsample_ratio": 0.0}, "downsample_ratio is 0.0, but pixel shuffle needs"),
        (
            {"vision_feature_layer": [-1, -2]},
            r"vision_feature_layer is \[-1, -2\], but this family takes the",
        ),
        ({"vision_feature_layer": 4}, "vision_feature_layer is 4, but the tower has 3 layers: give"),
        (
            {"vision_feature_select_strategy": "full"},
            "vision_feature_select_strategy is 'full', but only 'default' leaves whole groups",
        ),
    ],
)
def test_model_that_cannot_be_exported(model: Any, change: dict[str, Any], message: str) -> None:
    config = SimpleNamespace(**vars(model.config))
    config.vision_config = SimpleNamespace(**vars(model.config.vision_config), model_type="internvl_vision")
    for name, value in change.items():
        owner, _, field = name.rpartition(".")
        setattr(config.vision_config if owner else config, field, value)
    with pytest.raises(CheckpointError, match=message):
        FAMILY.encoder_info(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_seq_length": 256},
            "the processor has image_seq_length 256, but tiles of 32 x 32 pixels make 16 tokens: correct",
        ),
        (
            {"images.size": {"height": 32, "width": 48}},
            "makes images of {'height': 32, 'width': 48}, but the vision tower takes 32 x 32",
        ),
        ({"images.min_patches": 9}, "min_patches is 9, max_patches 6, but 1 <= min <= max must hold"),
    ],
)
def test_processor_that_contradicts_the_model(model: Any, change: dict[str, Any], message: str) -> None:
    processor = internvl_processor()
    for name, value in change.items():
        owner, _, field = name.rpartition(".")
        setattr(processor.image_processor if owner else processor, field, value)
    with pytest.raises(CheckpointError, match=message):
        FAMILY.layout(model.config, processor)


def test_processor_of_another_family(model: Any) -> None:
    processor = SimpleNamespace(image_processor=object())
    with pytest.raises(CheckpointError, match="class is object, but the supported ones are GotOcr2ImagePro"):
        FAMILY.layout(model.config, processor)


@pytest.mark.parametrize(
    "settings",
    [{}, {"downsample_ratio": 0.25}, {"downsample_ratio": 1.0}, {"vision_feature_layer": -2}],
    ids=str,
)
def test_multiply_adds_are_those_that_torch_counts(settings: dict[str, Any]) -> None:
    model = toy_internvl_model(**settings)
    config, tower = model.config, model.model.vision_tower
    tower.encoder.layer = tower.encoder.layer[: FAMILY.encoder_info(config).layers]
    config.vision_feature_layer = -1  # of those that are left
    tower.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.get_image_features(torch.zeros(4, 3, 32, 32))
    config.vision_feature_layer = settings.get("vision_feature_layer", -1)
    side = int(8 * config.downsample_ratio)
    macs = FAMILY.encoder_macs(config, Unit(side**2, (side, side)))
    assert 4 * macs == counter.get_total_flops() // 2


def test_nothing_but_graphs_is_needed(model: Any) -> None:
    assert FAMILY.constants(model) == {}


def test_published_sizes(tmp_path: Path) -> None:
    published_internvl(tmp_path, depth=1)
    with quiet_libraries(False):
        opened = open_checkpoint(str(tmp_path))
        model, processor = load_model(opened), load_processor(opened)
    assert opened.family.model_type == FAMILY.model_type
    layout = FAMILY.layout(model.config, processor)
    assert layout == AspectLayout(tile=448, grid=(16, 16), tiles=(1, 12), text="<img>{image}</img>")
    assert FAMILY.preprocess(processor).mean == (0.485, 0.456, 0.406)
    decoder = FAMILY.decoder_info(model)
    assert (decoder.kv_heads, decoder.head_dim, decoder.hidden_size) == (2, 64, 896)


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


@pytest.mark.parametrize("tiles", range(2, 13))
def test_reference_sees_how_the_tiles_lie(model: Any, tiles: int) -> None:
    processor = internvl_processor(min_patches=tiles, max_patches=tiles)
    layout = FAMILY.layout(model.config, processor)
    sizes = [(rows * 25, tiles // rows * 21) for rows in range(1, tiles + 1) if tiles % rows == 0]
    rows, columns = np.mgrid[:20, :30]
    smooth = np.stack([9 * rows, 8 * columns, 5 * rows + 4 * columns], axis=-1).astype(np.uint8)
    pictures = [*noise(*sizes), *(Image.fromarray(smooth).resize(size[::-1]) for size in sizes)]
    found = processor(text=IMAGE * len(pictures), images=pictures, return_tensors="pt")
    wanted = [layout.plan(*size).mosaic for size in sizes] * 2
    assert len(set(wanted)) == len(sizes)
    runs = FAMILY.reference(model, processor).image_units(found)
    assert [units.mosaic for units in runs] == wanted


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.25])
def test_reference_scores_are_means_over_groups_of_patches(ratio: float) -> None:
    model, side = toy_internvl_model(downsample_ratio=ratio), int(8 * ratio)
    inputs = internvl_processor(tokens=side**2)(text=IMAGE, images=noise((30, 96)), return_tensors="pt")
    reference, tower = FAMILY.reference(model, None), model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        attention = tower(inputs["pixel_values"], output_attentions=True).attentions
        assert len(attention) == 3
        received = attention[2].mean(dim=1)
        for aggregation, rows in (
            ("cls", received[:, 0]),
            ("col_mean", received.mean(dim=1)),
            ("col_mean_patch", received[:, 1:].mean(dim=1)),
        ):
            scores = reference.unit_scores(inputs, 2, aggregation)
            wanted = torch.nn.functional.avg_pool2d(rows[:, 1:].view(-1, 1, 8, 8), int(1 / ratio))[:, 0]
            # the same means, summed in another order: a few roundings of numbers near 1/65
            torch.testing.assert_close(torch.stack(scores), wanted, rtol=1e-6, atol=1e-8)


# One graph


@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_one_bright_patch_survives_alone(ratio: float, tmp_path: Path, torch_threads: None) -> None:
    model, merge = toy_internvl_model(downsample_ratio=ratio, layers=1), int(1 / ratio)
    _look_at_brightness(model.model.vision_tower)
    layout = FAMILY.layout(model.config, internvl_processor(tokens=(8 // merge) ** 2))
    graph = next(FAMILY.subgraphs(model, layout, FAMILY.decoder_info(model)))
    plain, pruned = tmp_path / "plain.onnx", tmp_path / "pruned.onnx"
    write_onnx_from_torch(graph, plain, 20)

    patches = np.arange(64)
    tiles = np.full((64, 3, 8, 4, 8, 4), -1.0, np.float32)
    tiles[patches, :, patches // 8, :, patches % 8] = 1.0
    pixels = tiles.reshape(64, 3, 32, 32)
    y, x = patches // 8 // merge, patches % 8 // merge
    bright = y * (8 // merge) + x
    with torch.no_grad():
        made = model.model.get_image_features(torch.from_numpy(pixels)).pooler_output.numpy()
    # The model's own pixel shuffle puts the bright patch there: the token is unlike all others.
    unlike = np.abs(made - np.median(made, axis=1, keepdims=True)).max(axis=-1)
    assert unlike.argmax(axis=1).tolist() == bright.tolist()

    info, feeds = FAMILY.encoder_info(model.config), {contract.PIXEL_VALUES: pixels}
    feeds[contract.NUM_KEEP] = np.array([1], np.int64)
    for aggregation in ("cls", "col_mean", "col_mean_patch"):
        options = PruneOptions(
            special_tokens=info.special_tokens,
            grid=layout.unit_grid,
            merge=info.merge,
            aggregation=aggregation,
        )
        prune_file(plain, pruned, options)
        session = onnxruntime.InferenceSession(pruned, providers=["CPUExecutionProvider"])
        kept, features = session.run([contract.KEPT_INDICES, contract.IMAGE_FEATURES], feeds)
        assert kept[:, 0].tolist() == bright.tolist()
        # float32 sums in another order, of features near 1
        np.testing.assert_allclose(features[:, 0], made[patches, bright], rtol=0, atol=1e-5)


@torch.no_grad()
def _look_at_brightness(tower: Any) -> None:
    """Make every row attend to bright patches: channel 0 is the brightness, and all queries ask for it."""
    embeddings, layer = tower.embeddings, tower.encoder.layer[0]
    for parameter in (*embeddings.parameters(), *layer.attention.parameters()):
        parameter.zero_()
    embeddings.patch_embeddings.projection.weight[0] = 1.0
    layer.layernorm_before.weight.fill_(1.0)
    layer.layernorm_before.bias.zero_()
    layer.attention.k_proj.weight[:, 0] = 1.0
    layer.attention.q_proj.bias.fill_(1.0)


# Whole builds

# options of the build, options of the checkpoint
BUILDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rank": ({"ratio": 0.3}, {}),
    "rows of the picture by CLS": (
        {"ratio": 0.5, "strategy": "row", "row_scope": "stitched", "aggregation": "cls", "opset": 23},
        {
            "model": {
                "downsample_ratio": 0.25,
                "vision": {"use_mean_pooling": False, "use_qk_norm": True, "norm_type": "rms_norm"},
            }
        },
    ),
    "rows of whole pictures": (
        {
            "ratio": 0.4,
            "strategy": "row",
            "position_ids": "original",
            "layer": 0,
            "aggregation": "col_mean_patch",
        },
        {"seed": 1, "max_patches": 1, "model": {"vision_feature_layer": -2}},
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

    @property
    def cut(self) -> bool:
        """Whether pictures are cut into tiles."""
        return bool(self.processor.image_processor.max_patches > 1)

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
    options, toy = BUILDS[request.param]
    folder = tmp_path_factory.mktemp("internvl")
    checkpoint = write_toy_internvl(folder / "checkpoint", **toy)
    report = build(BuildOptions(model=str(checkpoint), output=folder / "bundle", **options))
    with quiet_libraries(False):
        opened = open_checkpoint(str(checkpoint))
        model, processor = load_model(opened), load_processor(opened)
    return Built(Generator(load_bundle(folder / "bundle")), report.to_dict(), options, model, processor)


def test_every_stage_agrees_with_torch(built: Built) -> None:
    assert built.report["ok"], built.report["parity"]
    assert not any(stage["skipped"] for stage in built.report["parity"]["stages"])
    assert built.report["prune"]["gather"] == "late"


@pytest.mark.parametrize(
    ("sizes", "amount"),
    [(SIZES, {"ratio": 0.6}), (((1, 500), (500, 1), (30, 96)), {"tokens": 16})],
    ids=["mixed", "slivers"],
)
def test_other_images_and_amounts_agree_with_torch(
    built: Built, sizes: tuple[tuple[int, int], ...], amount: dict[str, Any], tmp_path: Path
) -> None:
    if not built.cut and "tokens" in amount:
        amount = {"tokens": 12}  # of 16
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
    assert len(result.token_ids) == 32
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
    # Pruning takes image tokens alone: everything else stays as it was.
    plain = inputs["input_ids"][0]
    assert prompt.ids[prompt.ids != token].tolist() == plain[plain != token].tolist()
    text = built.processor.tokenizer.decode(prompt.ids[0].tolist(), skip_special_tokens=False)
    assert text.count(f"<img>{IMAGE}") == text.count(f"{IMAGE}</img>\n") == 3
    assert text.startswith("<|im_start|>user\n<img>")
    assert text.endswith("And these?<|im_end|>\n<|im_start|>assistant\n")


def test_counts_are_those_of_the_units(built: Built) -> None:
    result = built.generator.generate(Request("?", tuple(noise(*SIZES)), ratio=0.5, max_new_tokens=1))
    units = UNITS if built.cut else (1, 1, 1, 1)
    tokens = built.generator.manifest.layout.unit_tokens
    assert tokens is not None
    assert result.visual_tokens_before == tuple(count * tokens for count in units)
    assert result.visual_tokens_after == tuple(count * tokens // 2 for count in units)
