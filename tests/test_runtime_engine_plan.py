"""Profiles of every family's graphs against numbers worked out by hand, and the commands of a plan."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime import contract, vision
from runtime.bundle import load_bundle
from runtime.decoder import PREFILL_ROWS
from runtime.errors import EngineError
from runtime.layouts import SingleLayout
from runtime.manifest import Manifest
from runtime.tensorrt.plan import (
    MOST_KEPT,
    UNITS_PER_CALL,
    EnginePlan,
    InputProfile,
    Limits,
    plan_engines,
)
from runtime.tensorrt.trtexec import TrtexecPaths, shell_text, trtexec_command

SMALL = Limits(max_images=2, max_prompt=40, max_new_tokens=10)
FAMILIES = ("llava", "llava_next", "smolvlm", "internvl", "qwen2_5_vl")
Bundles = Callable[[str], Path]


def manifest_of(bundle: Path) -> Manifest:
    return load_bundle(bundle, verify=False).manifest


def points(plan: EnginePlan, graph: str, profile: int = 0) -> dict[str, Any]:
    return {name: each.points for name, each in plan.graph(graph).profiles[profile].items()}


def test_llava_by_hand(family_bundle: Bundles) -> None:
    # 16 tokens per image, .3 of them are floor(4.8 + .5) = 5; cache: 2 x 16 + 40 + 10 rows, one block of 256.
    plan = plan_engines(manifest_of(family_bundle("llava")), SMALL, 1 << 30)
    assert plan.capacity == 82
    assert points(plan, contract.VISION_ENCODER_FOPRU) == {
        "pixel_values": ((1, 3, 32, 32), (1, 3, 32, 32), (2, 3, 32, 32)),
        "num_keep": ((1,), (5,), (16,)),
    }
    # Usual prompt: 5 rows of an image and a quarter of the text, 10; the longest: 2 x 16 + 40.
    assert points(plan, contract.EMBED_TOKENS) == {"input_ids": ((1, 1), (1, 15), (1, 72))}
    prefill, decode = (points(plan, contract.DECODER_PORTABLE, at) for at in (0, 1))
    assert prefill == {
        "inputs_embeds": ((1, 1, 32), (1, 15, 32), (1, 72, 32)),
        "attention_mask": ((1, 1), (1, 15), (1, 256 + 72)),
        "position_ids": ((1, 1), (1, 15), (1, 72)),
        "num_logits_to_keep": ((1,), (1,), (1,)),
        "past_key_values.0.key": ((1, 0, 2, 8), (1, 0, 2, 8), (1, 256, 2, 8)),
        "past_key_values.0.value": ((1, 0, 2, 8), (1, 0, 2, 8), (1, 256, 2, 8)),
    }
    assert decode["past_key_values.0.key"] == ((1, 1, 2, 8), (1, 15 + 5, 2, 8), (1, 256, 2, 8))
    assert decode["attention_mask"] == ((1, 2), (1, 21), (1, 257))
    assert decode["inputs_embeds"] == ((1, 1, 32),) * 3
    values = [
        name for name, each in plan.graph(contract.VISION_ENCODER_FOPRU).profiles[0].items() if each.values
    ]
    assert values == ["num_keep"]


def test_llava_next_by_hand(family_bundle: Bundles) -> None:
    # Canvases of 2, 4 and 3 tiles. 1024 x 768 px fits [64, 64]: 5 units, and a grid of 8 x 8 of which 6 rows
    # show the picture. Kept of .3: 5 of the overview; tiles of 4 x 3 valid tokens keep 4 each: 5 + 16 + 6
    # newlines. At most: 16 + 8 x 8 + 8 newlines.
    plan = plan_engines(manifest_of(family_bundle("llava_next")), SMALL, 1 << 30)
    visual = plan.visual
    assert (visual.units, visual.most_units, visual.rows, visual.most_rows) == (5, 5, 27, 88)
    assert plan.capacity == 2 * 88 + 50
    profile = points(plan, contract.VISION_ENCODER_FOPRU)
    assert profile["token_mask"] == ((1, 16), (5, 16), (8, 16))
    assert profile["pixel_values"][2] == (UNITS_PER_CALL, 3, 32, 32)


def test_rows_of_all_tiles_want_every_token(family_bundle: Bundles) -> None:
    # The host compares the rows of all tiles, so that the encoder keeps all of each, whatever the ratio.
    manifest = manifest_of(family_bundle("llava_next"))
    stitched = replace(manifest, pruning=replace(manifest.pruning, strategy="row", row_scope="stitched"))
    plan = plan_engines(stitched, replace(SMALL, max_ratio=0.5), 1 << 30)
    assert points(plan, contract.VISION_ENCODER_FOPRU)["num_keep"] == ((4,), (16,), (16,))
    assert plan.visual.most_rows < 88


def test_smolvlm_by_hand(family_bundle: Bundles) -> None:
    # The longest edge becomes 96 = 3 tiles: a square is 3 x 3 tiles and the overview, 10 units of 16 tokens.
    plan = plan_engines(manifest_of(family_bundle("smolvlm")), SMALL, 1 << 30)
    visual = plan.visual
    assert (visual.most_units, visual.most_rows) == (10, 160)
    assert plan.capacity == 2 * 160 + 50
    assert points(plan, contract.VISION_ENCODER_FOPRU)["pixel_values"][2][0] == UNITS_PER_CALL


def test_internvl_by_hand(family_bundle: Bundles) -> None:
    # 1..6 tiles and the overview; 1024 x 768 px is cut into 3 x 2 tiles, so 7 units that keep 5 each.
    plan = plan_engines(manifest_of(family_bundle("internvl")), replace(SMALL, max_ratio=0.5), 1 << 30)
    visual = plan.visual
    assert (visual.units, visual.most_units, visual.rows, visual.most_rows) == (7, 7, 7 * 5, 7 * 8)
    assert points(plan, contract.VISION_ENCODER_FOPRU)["num_keep"] == ((1,), (5,), (8,))


def test_qwen2_5_vl_by_hand(family_bundle: Bundles) -> None:
    # 9216 px of tokens of 8 x 8 px are 144; a sliver of 200 : 1 keeps a token across and is 169 long.
    # 1024 x 768 px: 768 / sqrt(786432 / 9216) = 83.1 -> 10 tokens, 110.9 -> 13: 130, of which .3 are 39.
    plan = plan_engines(manifest_of(family_bundle("qwen2_5_vl")), SMALL, 1 << 30)
    visual = plan.visual
    assert (visual.tokens, visual.most_tokens, visual.rows, visual.most_rows) == (130, 169, 39, 169)
    # Windows of 2 x 2 tokens: 5 x 7 of the usual picture; of one row of 169 tokens, 85.
    profile = points(plan, contract.VISION_ENCODER_FOPRU)
    assert profile["window_tokens"] == ((1, 4), (35, 4), (85, 4))
    assert profile["pixel_values"] == ((1, 1, 4, 96), (1, 130, 4, 96), (1, 169, 4, 96))
    assert profile["token_positions"] == ((1, 2), (130, 2), (169, 2))
    assert profile["token_slots"] == ((1,), (130,), (169,))
    assert profile["num_keep"] == ((1,), (39,), (169,))
    assert points(plan, contract.DECODER_PORTABLE)["position_ids"] == ((3, 1, 1), (3, 1, 49), (3, 1, 378))
    assert plan.capacity == 2 * 169 + 50


def test_images_in_their_own_size_have_a_limit(family_bundle: Bundles) -> None:
    manifest = manifest_of(family_bundle("qwen2_5_vl"))
    plan = plan_engines(manifest, replace(SMALL, max_image_tokens=60, max_ratio=0.5), 1 << 30)
    assert plan.visual.most_tokens == 60
    assert plan.visual.tokens <= 60
    assert points(plan, contract.VISION_ENCODER_FOPRU)["num_keep"][2] == (30,)
    assert plan.capacity == 2 * 30 + 50


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ratio", [0.05, 0.3, 1.0])
def test_every_point_is_consistent(family: str, ratio: float, family_bundle: Bundles) -> None:
    limits = replace(SMALL, max_ratio=ratio, ratio=ratio / 2, unpruned=True)
    plan = plan_engines(manifest_of(family_bundle(family)), limits, 1 << 30)
    assert [graph.graph for graph in plan.graphs] == [
        *(contract.VISION_ENCODER_FOPRU, contract.VISION_ENCODER),
        *(contract.EMBED_TOKENS, contract.DECODER_PORTABLE),
    ]
    for number in range(2):
        profile = plan.graph(contract.DECODER_PORTABLE).profiles[number]
        past = profile["past_key_values.0.key"].points
        for at in range(3):
            rows = profile["inputs_embeds"].points[at][1]
            assert profile["attention_mask"].points[at][1] == past[at][1] + rows
            assert profile["position_ids"].points[at][-1] == rows
    assert EnginePlan.from_dict(plan.to_dict(), "plan") == plan


@pytest.mark.parametrize("family", FAMILIES)
def test_every_picture_is_inside_the_plan(family: str, family_bundle: Bundles) -> None:
    manifest = manifest_of(family_bundle(family))
    plan = plan_engines(manifest, SMALL, 1 << 30)
    for size in ((32, 32), (33, 500), (700, 61), (96, 96), (768, 1024), (5, 900), (1000, 10)):
        image = manifest.layout.plan(*size)
        assert image.placeholders <= plan.visual.most_rows
        assert len(image.units) <= plan.visual.most_units
        assert max(unit.tokens for unit in image.units) <= plan.visual.most_tokens
        for name, value in image.inputs.items():
            most = points(plan, contract.VISION_ENCODER_FOPRU)[name][2]
            assert all(dim <= limit for dim, limit in zip(value.shape, most, strict=True))


def test_a_lower_greatest_ratio_makes_the_cache_smaller(family_bundle: Bundles) -> None:
    manifest = manifest_of(family_bundle("llava"))
    plan = plan_engines(manifest, replace(SMALL, max_ratio=0.3), 1 << 30)
    assert plan.capacity == 2 * 5 + 50
    assert points(plan, contract.VISION_ENCODER_FOPRU)["num_keep"] == ((1,), (5,), (5,))


def test_the_cache_is_no_longer_than_the_positions(family_bundle: Bundles) -> None:
    manifest = manifest_of(family_bundle("llava"))
    plan = plan_engines(manifest, Limits(), 1 << 30)  # 4 x 16 + 512 + 256 is more than 512
    assert plan.capacity == manifest.decoder.max_positions == 512
    prefill = points(plan, contract.DECODER_PORTABLE)
    assert prefill["inputs_embeds"][2] == (1, PREFILL_ROWS, 32)
    assert prefill["attention_mask"][2] == (1, 512 + PREFILL_ROWS)


def test_whole_rows_and_a_budget_of_tokens(family_bundle: Bundles) -> None:
    manifest = manifest_of(family_bundle("llava"))
    rows = replace(manifest, pruning=replace(manifest.pruning, strategy="row"))
    plan = plan_engines(rows, SMALL, 1 << 30)  # 4 rows of 4; .3 of them is 1
    assert points(plan, contract.VISION_ENCODER_FOPRU)["num_keep"] == ((4,), (4,), (16,))
    budget = replace(manifest.pruning, default_ratio=None, default_tokens=7)
    plan = plan_engines(replace(manifest, pruning=budget), SMALL, 1 << 30)
    assert points(plan, contract.VISION_ENCODER_FOPRU)["num_keep"] == ((1,), (7,), (16,))
    assert plan.visual.rows == 7


def test_the_limit_of_topk_holds(family_bundle: Bundles) -> None:
    manifest = manifest_of(family_bundle("llava"))
    side = {"height": 512, "width": 512}
    large = SingleLayout((64, 64), 4096, side, side, None)
    plan = plan_engines(replace(manifest, layout=large), SMALL, 1 << 30)
    assert points(plan, contract.VISION_ENCODER_FOPRU)["num_keep"][2] == (MOST_KEPT,)
    rows = replace(manifest.pruning, strategy="row")
    plan = plan_engines(replace(manifest, layout=large, pruning=rows), SMALL, 1 << 30)
    assert points(plan, contract.VISION_ENCODER_FOPRU)["num_keep"][2] == (59 * 64,)  # 3776 of whole rows
    line = SingleLayout((1, 4096), 4096, side, side, None)
    with pytest.raises(
        EngineError, match="a grid row has 4096 tokens, but TensorRT's TopK takes 3839 at most"
    ):
        plan_engines(replace(manifest, layout=line, pruning=rows), SMALL, 1 << 30)


def test_units_per_call_are_those_of_the_runtime() -> None:
    assert UNITS_PER_CALL == vision.MOST_UNITS


def test_wrong_limits_are_refused(family_bundle: Bundles) -> None:
    with pytest.raises(EngineError, match="max_images is 0, expected a number from 1 on"):
        Limits(max_images=0)
    with pytest.raises(
        EngineError, match=r"max_ratio is 1\.5, expected the greatest fraction kept, 0\.05\.\.1"
    ):
        Limits(max_ratio=1.5)
    with pytest.raises(EngineError, match=r"ratio is 0\.5, expected a fraction kept in \(0, 0\.3\]"):
        Limits(ratio=0.5, max_ratio=0.3)
    with pytest.raises(
        EngineError, match=r"profile is \(3,\), \(2,\), \(4,\), but minimum <= optimum <= maximum"
    ):
        InputProfile((3,), (2,), (4,))
    manifest = manifest_of(family_bundle("llava"))
    graphs = {name: info for name, info in manifest.graphs.items() if name != contract.DECODER_PORTABLE}
    shared = replace(manifest.decoder, caches={contract.DECODER: contract.SHARED})
    with pytest.raises(EngineError, match='grow their cache as shared, but TensorRT needs "append"'):
        plan_engines(replace(manifest, decoder=shared, graphs=graphs), SMALL, 1 << 30)
    plan = plan_engines(manifest, SMALL, 1 << 30)
    with pytest.raises(
        EngineError, match=r"the plan has no vision_encoder, only .*plan it again with --unpruned"
    ):
        plan.graph(contract.VISION_ENCODER)
    info = manifest.graphs[contract.EMBED_TOKENS]
    odd = replace(info, inputs=(replace(info.inputs[0], shape=("batch", "depth")),))
    with pytest.raises(
        EngineError, match="input input_ids has the dim depth, but sizes are known of batch, seq"
    ):
        plan_engines(replace(manifest, graphs=manifest.graphs | {contract.EMBED_TOKENS: odd}), SMALL, 1 << 30)


def test_a_cache_of_one_row_and_a_damaged_plan_are_refused(family_bundle: Bundles) -> None:
    manifest = manifest_of(family_bundle("llava"))
    short = replace(manifest, decoder=replace(manifest.decoder, max_positions=1))
    with pytest.raises(EngineError, match="the KV cache would have 1 rows, expected 2 or more"):
        plan_engines(short, SMALL, 1 << 30)
    data = plan_engines(manifest, SMALL, 1 << 30).to_dict()
    with pytest.raises(EngineError, match=r'plan has the unknown key "speed".*build the engines again'):
        EnginePlan.from_dict(data | {"speed": 1}, "plan")


def test_trtexec_by_hand(family_bundle: Bundles, tmp_path: Path) -> None:
    plan = plan_engines(manifest_of(family_bundle("llava")), SMALL, 512 << 20)
    paths = TrtexecPaths("trtexec", Path("b"), Path("b/engines/x"), Path("b/t.cache"))
    assert trtexec_command(plan, plan.graph(contract.VISION_ENCODER_FOPRU), paths) == [
        "trtexec",
        "--onnx=b/onnx/vision_encoder_fopru.onnx",
        "--saveEngine=b/engines/x/vision_encoder_fopru.engine",
        "--stronglyTyped",
        "--noTF32",
        "--skipInference",
        "--minShapes=pixel_values:1x3x32x32,num_keep:1",
        "--optShapes=pixel_values:1x3x32x32,num_keep:5",
        "--maxShapes=pixel_values:2x3x32x32,num_keep:16",
        "--memPoolSize=workspace:512M",
        "--builderOptimizationLevel=3",
        "--timingCacheFile=b/t.cache",
    ]
    words = trtexec_command(plan, plan.graph(contract.DECODER_PORTABLE), paths)
    assert words[6:14] == [
        "--profile=0",
        "--minShapes=inputs_embeds:1x1x32,attention_mask:1x1,position_ids:1x1,num_logits_to_keep:1,"
        "past_key_values.*:1x0x2x8",
        "--optShapes=inputs_embeds:1x15x32,attention_mask:1x15,position_ids:1x15,num_logits_to_keep:1,"
        "past_key_values.*:1x0x2x8",
        "--maxShapes=inputs_embeds:1x72x32,attention_mask:1x328,position_ids:1x72,num_logits_to_keep:1,"
        "past_key_values.*:1x256x2x8",
        "--profile=1",
        "--minShapes=inputs_embeds:1x1x32,attention_mask:1x2,position_ids:1x1,num_logits_to_keep:1,"
        "past_key_values.*:1x1x2x8",
        "--optShapes=inputs_embeds:1x1x32,attention_mask:1x21,position_ids:1x1,num_logits_to_keep:1,"
        "past_key_values.*:1x20x2x8",
        "--maxShapes=inputs_embeds:1x1x32,attention_mask:1x257,position_ids:1x1,num_logits_to_keep:1,"
        "past_key_values.*:1x256x2x8",
    ]
    text = shell_text(words)
    assert "'--minShapes=inputs_embeds:1x1x32," in text  # a shell would look for files by the star
    assert len(re.findall(r" \\\n", text)) == len(words) - 1
