"""Multiply-add counts against numbers worked out by hand from the published shapes."""

from __future__ import annotations

import pytest

from bench.configurations import configuration, hf_config
from bench.costs import DecoderShape, ModelShape, VisionShape, gmac, model_shape
from bench.processors import special_token_ids


def shape_of(name: str, decoder_layers: int | None = None) -> ModelShape:
    return model_shape(hf_config(configuration(name, decoder_layers), special_token_ids()))


def test_clip_l_336_is_read_from_its_configuration() -> None:
    vision = shape_of("llava-1.5-7b").vision
    # feature layer -2 of 24 layers: 23 are used, and the CLS row is an attention row that is not fed on
    assert (vision.layers, vision.rows, vision.patches, vision.prefix) == (23, 577, 576, 0)


def test_siglip_full_has_no_special_row_and_uses_every_layer() -> None:
    vision = shape_of("llava-onevision-0.5b").vision
    assert (vision.layers, vision.rows, vision.patches, vision.prefix) == (26, 729, 729, 0)


def test_one_clip_l_336_layer_is_7_94_gmac() -> None:
    by_hand = 577 * (4 * 1024 * 1024 + 2 * 1024 * 4096) + 2 * 577 * 577 * 1024
    layer = shape_of("clip-l-336").vision.layer()
    assert layer == by_hand
    assert round(gmac(layer), 2) == 7.94


@pytest.mark.parametrize(("kept", "saved"), [(288, 2.90), (173, 4.05), (144, 4.34), (58, 5.20)])
def test_rows_saved_by_the_early_gather(kept: int, saved: float) -> None:
    # The figures of the FoPru specification, section 6.2: ratios .5, .3, .25, .1 of 576 tokens.
    vision = shape_of("clip-l-336").vision
    assert round(gmac(vision.layer() - vision.layer(kept)), 2) == saved


def test_second_qk_for_the_kept_rows_is_a_tenth_of_a_gmac() -> None:
    assert round(gmac(shape_of("clip-l-336").vision.second_qk(173)), 2) == 0.10


def test_encoder_prunes_the_last_used_layer_only() -> None:
    vision = shape_of("clip-l-336").vision
    embedding = 576 * 3 * 14 * 14 * 1024
    assert vision.encoder() == embedding + 23 * vision.layer()
    assert vision.encoder() - vision.encoder(173) == vision.layer() - vision.layer(173)


def test_prefix_rows_are_kept_besides_the_tokens() -> None:
    tower = VisionShape(width=8, mlp=16, layers=2, patches=4, patch_inputs=12, special=1, prefix=1)
    assert tower.encoder(2) == 4 * 12 * 8 + tower.layer() + tower.layer(3)


def test_prefill_by_hand() -> None:
    decoder = DecoderShape(width=8, mlp=16, layers=2, heads=4, kv_heads=2, head_dim=3, vocabulary=100)
    projections = 5 * 8 * (12 + 6 + 6 + 12)  # Q, K, V, output
    attention = 2 * 5 * 5 * 12  # QK^T and PV over the full square
    gated_mlp = 3 * 5 * 8 * 16
    head = 8 * 100  # last position only
    assert decoder.prefill(5) == 2 * (projections + attention + gated_mlp) + head
    assert decoder.kv_bytes(5) == 2 * 2 * 2 * 3 * 5 * 4


def test_kv_cache_of_llava_1_5_7b() -> None:
    # The FoPru specification, section 9: half a MiB per token in float16, 288 MiB for 576 tokens.
    decoder = shape_of("llava-1.5-7b").decoder
    assert decoder.kv_bytes(576, item_bytes=2) == 288 * 2**20


def test_stages_project_and_prefill_kept_rows_only() -> None:
    model = shape_of("llava-onevision-0.5b")
    per_row = 1152 * 896 + 896 * 896
    assert model.vision_stage(219) == model.vision.encoder(219) + 219 * per_row
    assert model.prefill_stage(20, 219) == model.decoder.prefill(239)
    # without CLS, keeping every token saves nothing
    assert model.vision_stage() == model.vision_stage(729)
    assert model.prefill_stage(20) == model.prefill_stage(20, 729)
