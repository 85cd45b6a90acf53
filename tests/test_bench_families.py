"""Families and large pictures: published shapes, tokens by size, refusals, and one small run of each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import families, tiles
from bench.code_lines import code_lines
from bench.encoder_graphs import shape_of
from bench.errors import BenchError
from bench.families import equal_tokens
from bench.family_models import FAMILY_MODELS, Cut, ensure_family_checkpoint
from bench.images import block_image
from bench.results import read_result
from bench.target_checks import graver_findings, rtx_profiles
from bench.tiles import Estimate
from export.families import FAMILIES
from fopru_graph.lint import Finding, LintReport, Severity
from runtime import load_bundle
from runtime.layouts import ImageLayout

TINY = Cut(tiny=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory in which a tiny LLaVA-NeXT has been through the whole measurement."""
    root = tmp_path_factory.mktemp("families")
    arguments = ["--tiny", "--no-build", "--families", "llava_next", "--threads", "1"]
    assert families.main([*arguments, "--work", str(root), "--results", str(root / "results")]) == 0
    return root


def layout_of(name: str) -> ImageLayout:
    config, processor = FAMILY_MODELS[name].build(Cut())
    return FAMILIES[config.model_type].layout(config, processor)


# Tokens by hand: CLIP-L/336 has 24 x 24 of them per tile. At 672 x 672 the picture fills 2 x 2 tiles and each
# of its 48 lines ends with a newline; 640 x 480 leaves 12 lines of padding, 6 of them on each side. SmolVLM
# makes 2048 x 1536 of 640 x 480: 4 x 3 tiles and the whole, 8 x 8 tokens each. A token of Qwen2.5-VL is
# 28 x 28 pixels. InternVL makes 4 x 3 tiles of 640 x 480 and adds the whole, 16 x 16 tokens each; 448 x 448
# is one tile alone.
@pytest.mark.parametrize(
    ("name", "size", "units", "placeholders", "prunable"),
    [
        ("llava", (480, 640), 1, 576, 576),
        ("llava_next", (672, 672), 5, 576 + 48 * 48 + 48, 5 * 576),
        ("llava_next", (480, 640), 5, 576 + 36 * 48 + 36, 576 + 36 * 48),
        ("smolvlm", (480, 640), 13, 13 * 64, 13 * 64),
        ("qwen2_5_vl", (480, 640), 1, 17 * 23, 17 * 23),
        ("qwen2_5_vl", (1288, 1288), 1, 46 * 46, 46 * 46),
        ("internvl", (480, 640), 13, 13 * 256, 13 * 256),
        ("internvl", (448, 896), 3, 3 * 256, 3 * 256),
        ("internvl", (448, 448), 1, 256, 256),
    ],
)
def test_tokens_of_the_published_shapes(
    name: str, size: tuple[int, int], units: int, placeholders: int, prunable: int
) -> None:
    plan = layout_of(name).plan(*size)
    assert (len(plan.units), plan.placeholders, plan.prunable) == (units, placeholders, prunable)


def test_every_figure_of_a_family_is_there(work: Path) -> None:
    result = read_result(work / "results" / "families-llava_next-tiny.json")
    found = result.figures["families"]["llava_next"]
    assert [one["before"] for one in found["tokens"]] == [268, 336]
    # kept of 64: 19 per whole tile; newlines all stay
    assert found["tokens"][1]["after"] == 5 * 19 + 16
    assert found["exactness"]["within"] == found["exactness"]["compared"] == 13
    assert found["exactness"]["tokens_whole"] == found["exactness"]["tokens_pruned"] == 32
    assert set(found["lint"]) == {"jetpack6", "jetpack7", "tensorrt10", "tensorrt11", "tensorrt-rtx", "ort"}
    assert found["lines"]["family"][0] > found["lines"]["family"][1] > 50
    page = (work / "results" / "families-llava_next-tiny.md").read_text()
    assert "| llava_next | 210 x 150 | 13 of 13 | 32/32 | 32/32 |" in page


def test_a_failed_family_is_reported_and_the_others_are_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--families", "llava", "--depth", "99", "--threads", "1", "--work", str(tmp_path)]
    assert families.main([*options, "--results", str(tmp_path)]) == 1
    failed = read_result(tmp_path / "families-llava-depth99.json").figures["failed"]
    assert failed == {"llava": "depth is 99, but the tower has 24 layers: give 1 to that many"}
    assert "llava failed: depth is 99" in capsys.readouterr().out


def test_profiles_are_those_of_real_feeds(work: Path) -> None:
    bundle = load_bundle(work / "family-llava_next-tiny")
    profiles = rtx_profiles(bundle, [(150, 210)], 0.3)
    assert profiles["num_keep"].at("optimum") == (19,)
    assert profiles["num_keep"].at("maximum") == (64,)
    assert profiles["pixel_values"].at("minimum") == (1, 3, 112, 112)
    assert profiles["pixel_values"].at("maximum") == (4, 3, 112, 112)
    assert profiles["token_mask"].at("maximum") == (4, 64)


def test_large_pictures_are_measured_in_processes_of_their_own(work: Path) -> None:
    options = ["--tiny", "--families", "llava_next", "--rounds", "1", "--threads", "1"]
    assert tiles.main([*options, "--work", str(work), "--results", str(work / "results")]) == 0
    result = read_result(work / "results" / "tiles-llava_next-224-tiny.json")
    assert result.figures["shape"] == {
        "side": 224, "units": 5, "rows": 65, "tokens": 64, "heads": 4,
        "weights": result.figures["shape"]["weights"],
    }  # fmt: skip
    assert result.figures["paths"] == {"plain": "one_pass", "chunked": "chunked"}
    assert result.figures["kept"] == 95
    assert result.figures["probabilities_bytes"] == 5 * 4 * 65 * 65 * 4
    for variant in ("plain", "chunked"):
        assert 0 < result.figures["variants"][variant]["score_and_select_share"] < 1
        assert result.figures["variants"][variant]["peak_bytes"] > 1 << 20
    assert len(result.samples["runs"]["unpruned"]["seconds"]) == 1


def test_tiles_with_padding_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tiny", "--families", "llava_next", "--size", "100", "--work", str(work), "--threads", "1"]
    # 100 x 100 pixels fit 112 x 224 and 224 x 112 as well as 224 x 224, and waste least there
    assert tiles.main([*options, "--results", str(work / "results")]) == 2
    said = capsys.readouterr().err
    assert "a picture of 100 x 100 pixels has tiles with padding" in said
    assert "give a --size that fills its tiles" in said


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    # Qwen2.5-VL-3B at 1,288 px: 8,464 patches and 16 heads are 4.27 GiB of probabilities in one layer.
    estimate = Estimate(weights=2 << 30, probabilities=16 * 8464**2 * 4)
    estimate.check(None)
    estimate.check(16 << 30)
    with pytest.raises(
        BenchError,
        match=r"about 13\.8 GiB \(4\.0 GiB for weights, 8\.5 GiB for attention\), but 8\.0 GiB are free",
    ):
        estimate.check(8 << 30)


def test_shape_of_the_published_tower_is_read_without_loading_it() -> None:
    shape = shape_of(FAMILY_MODELS["llava_next"], Cut(width=4096), 672)
    assert (shape.units, shape.rows, shape.tokens, shape.heads) == (5, 577, 576, 16)
    # CLIP-L/336 has 303.5 M parameters, the projector 1024 x 4096 + 4096 x 4096 and biases, the newline 4096
    projector = 1024 * 4096 + 4096 * 4096 + 2 * 4096
    assert shape.weights == 4 * (303_507_456 + projector + 4096)


def test_patches_of_a_merging_tower_are_attention_rows() -> None:
    shape = shape_of(FAMILY_MODELS["qwen2_5_vl"], Cut(width=2048), 1288)
    assert (shape.units, shape.rows, shape.tokens, shape.heads) == (1, 8464, 2116, 16)
    assert shape.weights == 4 * 668_684_288  # the published tower: 668.68 M parameters


@pytest.mark.parametrize("depth", [0, 7])
def test_a_tower_too_short_to_be_scored_is_refused(depth: int) -> None:
    expected = "depth is 7, but the first block that looks at the whole image is number 7: give 8 or more"
    with pytest.raises(BenchError, match=expected if depth else "depth is 0, but the tower has 32 layers"):
        FAMILY_MODELS["qwen2_5_vl"].build(Cut(depth=depth))


def test_a_rule_is_said_once_with_all_its_targets() -> None:
    def report(target: str, *severities: Severity) -> LintReport:
        found = (Finding("a-rule", each, "TopK", "t", "", "too many", "keep less") for each in severities)
        return LintReport(target, tuple(found))

    made = (report("one", "warning", "warning"), report("two", "warning"), report("three", "note"))
    reports = {each.target: each for each in made}
    assert list(graver_findings(reports)) == ["one, two: warning [a-rule] TopK 't': too many; keep less"]


def test_a_checkpoint_is_written_once(tmp_path: Path) -> None:
    model, path = FAMILY_MODELS["llava_next"], tmp_path / "c"
    ensure_family_checkpoint(model, TINY, path)
    written = (path / "config.json").stat().st_mtime_ns
    assert ensure_family_checkpoint(model, TINY, path) == path
    assert (path / "config.json").stat().st_mtime_ns == written
    ensure_family_checkpoint(model, Cut(tiny=True, depth=2), path)
    assert json.loads((path / "config.json").read_text())["vision_config"]["num_hidden_layers"] == 2


def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        BenchError, match="exists and is not a checkpoint of this script: give another --work"
    ):
        ensure_family_checkpoint(FAMILY_MODELS["llava"], TINY, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_tokens_are_equal_up_to_the_first_that_differs() -> None:
    first = np.array([[1, 2, 3, 4]])
    assert equal_tokens(first, first.copy()) == 4
    assert equal_tokens(first, np.array([[1, 2, 9, 4]])) == 2
    assert equal_tokens(first, first[:, :2]) == 0


def test_blocks_fill_a_picture_of_any_size() -> None:
    picture = block_image(20, 33, seed=0)
    assert picture.shape == (20, 33, 3)
    assert (picture[:16, :16] == picture[0, 0]).all()
    assert not np.array_equal(picture[0, 0], picture[0, 16])


def test_comments_docstrings_and_blank_lines_are_no_code(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        '"""Two\nlines."""\n\n# why\nx = 1\n"""About x."""\n\n\ndef f():\n    """Doc."""\n    return "a"\n'
    )
    assert code_lines(file) == (11, 3)
