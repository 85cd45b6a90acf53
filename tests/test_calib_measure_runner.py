"""Samples under many settings: what is measured is what the runtime answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.environment import cpu_name
from calib.data.sample import Sample
from calib.measure.describe import device_name
from calib.measure.encode import seed_of
from calib.measure.runner import RunnerSpec, SampleRunner, check_settings, describe
from calib.record import Record
from calib.settings import REFERENCE, SELECTORS, Setting
from fopru_graph import PruneOptions
from runtime import NO_REUSE, Generator, Request, Result, load_bundle
from runtime.kv_cache import cache_bytes
from runtime.plan import plan_pruning
from runtime.vision import Selection
from tests.measuring import PROMPT, edited, photo, repruned, sample_of, spec_of

FAMILIES = ["llava", "llava_next", "smolvlm", "qwen2_5_vl", "internvl"]
RATIOS = (0.7, 0.3)
Bundles = Callable[[str], Path]


@pytest.fixture(params=FAMILIES)
def bundle(request: pytest.FixtureRequest, family_bundle: Bundles) -> Path:
    return family_bundle(request.param)


def generated(bundle: Path, sample: Sample, tmp_path: Path, **options: object) -> Result:
    """The runtime's own answer."""
    files = []
    for number, image in enumerate(sample.images):
        assert isinstance(image, bytes)
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(image)
    generator = Generator(load_bundle(bundle, verify=False), "onnxruntime", 1, NO_REUSE)
    fields = {"max_new_tokens": 4, **options}
    return generator.generate(Request(sample.prompt, tuple(files), **fields))  # type: ignore[arg-type]  # by name


def assert_same(record: Record, result: Result, bundle: Path) -> None:
    assert record.error is None
    assert record.tokens == result.token_ids
    assert record.text == result.text
    assert (record.before, record.after) == (
        sum(result.visual_tokens_before),
        sum(result.visual_tokens_after),
    )
    if record.setting.selector in ("none", "resize"):
        assert record.kept == ()
    else:
        assert record.kept == tuple(index for image in result.kept_indices for index in image)
    rows = result.prompt_tokens + len(result.token_ids) - 1
    assert record.kv_bytes == cache_bytes(load_bundle(bundle, verify=False).manifest.decoder, rows)


def timeless(record: Record) -> Record:
    return replace(record, vision=0.0, prefill=0.0, ttft=0.0)


def test_every_selector_is_the_runtimes_own(bundle: Path, tmp_path: Path) -> None:
    sample = sample_of(photo(90, 70), photo(33, 80, seed=1))
    runner = SampleRunner(spec_of(tmp_path / "work", bundle))
    settings = [
        REFERENCE,
        *(Setting(name, ratio) for ratio in RATIOS for name in ("rank", "row", "random", "uniform")),
    ]
    records = runner.run(sample, settings)
    assert [record.setting for record in records] == settings
    assert {record.sample for record in records} == {sample.name}
    seed = seed_of(0, sample.digest)
    for record in records:
        setting = record.setting
        if setting == REFERENCE:
            options: dict[str, object] = {"selector": "none"}
        else:
            selector = "graph" if setting.selector == "rank" else setting.selector
            options = {"selector": selector, "ratio": setting.ratio, "seed": seed}
        assert_same(record, generated(bundle, sample, tmp_path, **options), bundle)
        assert min(record.vision, record.prefill) > 0.0
        assert record.ttft > record.vision + record.prefill


def test_a_bundle_that_keeps_rows_runs_its_graph(family_bundle: Bundles, tmp_path: Path) -> None:
    options = PruneOptions("row", "col_mean", 1, special_tokens=1, prefix_tokens=0, grid=(4, 4))
    bundle = repruned(family_bundle("llava"), tmp_path / "row", options)
    sample = sample_of(photo())
    row, rank = SampleRunner(spec_of(tmp_path / "work", bundle)).run(
        sample, [Setting("row", 0.5), Setting("rank", 0.3)]
    )
    assert_same(row, generated(bundle, sample, tmp_path, ratio=0.5), bundle)
    assert_same(rank, generated(bundle, sample, tmp_path, ratio=0.3, selector="rank"), bundle)
    assert (row.after, rank.after) == (8, 5)


def test_ratio_1_is_the_reference(bundle: Path, tmp_path: Path) -> None:
    sample = sample_of(photo(64, 64))
    spec = spec_of(tmp_path / "work", bundle)
    asked = [Setting(name, 1.0) for name in SELECTORS]
    refused = check_settings(spec, asked)
    assert set(refused) <= {Setting("cls", 1.0)}
    settings = [setting for setting in asked if setting not in refused]
    reference, *records = SampleRunner(spec).run(sample, [REFERENCE, *settings])
    assert reference.same_first
    assert reference.same_answer
    for record in records:
        assert record.tokens == reference.tokens
        assert record.same_first
        assert record.same_answer
        assert record.divergence == 0.0  # the same graph on the same numbers
        assert record.before == record.after == reference.before
        expected = 0 if record.setting.selector == "resize" else reference.before
        if bundle.name != "llava_next":  # whose newlines are visual tokens, but none that is kept
            assert len(record.kept) == expected


def test_fewer_tokens_of_a_smaller_picture(bundle: Path, tmp_path: Path) -> None:
    sample = sample_of(photo(112, 112))
    (record,) = SampleRunner(spec_of(tmp_path / "work", bundle)).run(sample, [Setting("resize", 0.5)])
    assert record.error is None
    expected = {"llava": (16, 6), "llava_next": (88, 36), "smolvlm": (160, 80), "qwen2_5_vl": (144, 64)}
    expected["internvl"] = (80, 16)
    assert (record.before, record.after) == expected[bundle.name]
    assert record.kept == ()


def test_what_no_picture_can_be_made_into(family_bundle: Bundles, tmp_path: Path) -> None:
    runner = SampleRunner(spec_of(tmp_path / "work", family_bundle("llava_next")))
    resize, rank = runner.run(sample_of(photo(112, 112)), [Setting("resize", 0.1), Setting("rank", 0.1)])
    assert resize.error is not None
    assert resize.error.startswith("a picture of 112 x 112 pixels has 88 visual tokens and at least 36")
    assert (resize.before, resize.after, resize.tokens, resize.ttft) == (0, 0, (), 0.0)
    assert rank.error is None


def test_random_is_the_same_on_every_worker(family_bundle: Bundles, tmp_path: Path) -> None:
    bundle, setting = family_bundle("llava"), Setting("random", 0.3)
    samples = [sample_of(photo(seed=seed)) for seed in range(3)]

    def kept(order: list[Sample], seed: int) -> dict[str, tuple[int, ...]]:
        runner = SampleRunner(spec_of(tmp_path / "work", bundle, seed=seed))
        return {sample.digest: runner.run(sample, [setting])[0].kept for sample in order}

    first = kept(samples, 0)
    assert kept(samples[::-1], 0) == first
    assert kept(samples, 1) != first
    assert len(set(first.values())) > 1


def test_fidelity_is_against_the_first_bundle(family_bundle: Bundles, tmp_path: Path) -> None:
    bundle = family_bundle("llava")
    other = edited(bundle, tmp_path / "other", preprocess={"mean": [0.1, 0.9, 0.3]})
    sample = sample_of(photo())
    runner = SampleRunner(spec_of(tmp_path / "work", bundle, other, bundle))
    whole = [Setting("none", 1.0, precision=label) for label in ("1", "2")]
    changed, same = runner.run(sample, whole)
    assert_same(changed, generated(other, sample, tmp_path, selector="none"), other)
    assert changed.divergence > 0.0
    assert (same.divergence, same.same_answer, same.same_first) == (0.0, True, True)
    (reference,) = runner.run(sample, [REFERENCE])
    assert changed.same_answer == (changed.tokens == reference.tokens)
    assert changed.same_first == (changed.tokens[0] == reference.tokens[0])
    (pruned,) = runner.run(sample, [Setting("rank", 0.3, precision="1")])
    assert_same(pruned, generated(other, sample, tmp_path, ratio=0.3), other)


def test_the_divergence_is_that_of_the_first_logits(family_bundle: Bundles, tmp_path: Path) -> None:
    bundle = family_bundle("llava")
    sample = sample_of(photo())
    (record,) = SampleRunner(spec_of(tmp_path / "work", bundle)).run(sample, [Setting("rank", 0.3)])
    generator = Generator(load_bundle(bundle), "onnxruntime", 1, NO_REUSE)
    logits = []
    for ratio in (1.0, 0.3):
        file = tmp_path / "photo.png"
        assert isinstance(sample.images[0], bytes)
        file.write_bytes(sample.images[0])
        request = Request(PROMPT, (file,), ratio=ratio)
        prepared = generator.preprocess([file])
        plan = plan_pruning(request, generator.manifest, [image.plan for image in prepared])
        encoded = (
            generator.encode_images(prepared, Selection(plan.counts))
            if plan.pruned
            else generator.encode_unpruned(prepared)
        )
        ids = generator.tokenize(request, [image.plan for image in prepared])
        prompt = generator.prompt(ids, encoded)
        run = generator.decoder_run(prompt.ids.shape[1], prompt.positions)
        logits.append(run.prefill(generator.embed(prompt.ids, encoded)).astype(np.float64))
    p, q = (np.exp(each - each.max()) / np.exp(each - each.max()).sum() for each in logits)
    # float64 sums of some hundred terms
    assert record.divergence == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-9)


def test_a_right_answer_is_counted(family_bundle: Bundles, tmp_path: Path) -> None:
    runner = SampleRunner(spec_of(tmp_path / "work", family_bundle("llava")))
    sample = sample_of(photo())
    (record,) = runner.run(sample, [REFERENCE])
    assert record.correct is None
    labelled = replace(sample, name="b", answer=f" {record.text} ")
    assert [each.correct for each in runner.run(labelled, [REFERENCE, Setting("resize", 1.0)])] == [
        True,
        True,
    ]
    wrong = replace(sample, name="c", answer=record.text + "x")
    assert runner.run(wrong, [REFERENCE])[0].correct is False


def test_unreadable_pictures_are_errors_of_every_setting(family_bundle: Bundles, tmp_path: Path) -> None:
    runner = SampleRunner(spec_of(tmp_path / "work", family_bundle("llava")))
    settings = [REFERENCE, Setting("rank", 0.3)]
    missing = runner.run(sample_of(tmp_path / "no.png"), settings)
    assert [record.setting for record in missing] == settings
    assert [record.error for record in missing] == [
        f"there is no image file at {tmp_path / 'no.png'}: check the path"
    ] * 2
    (damaged,) = runner.run(sample_of(photo(), b"nothing"), [REFERENCE])
    assert damaged == Record(
        "2 images",
        REFERENCE,
        error="7 bytes of the data are not an image that Pillow can read: store a PNG or JPEG",
    )


def test_errors_of_one_setting_leave_the_others(family_bundle: Bundles, tmp_path: Path) -> None:
    runner = SampleRunner(spec_of(tmp_path / "work", family_bundle("llava")))
    settings = [Setting("rank", 0.3, precision="int8"), Setting("rank", 0.3, layer=9), Setting("rank", 0.3)]
    unknown, deep, fine = runner.run(sample_of(photo()), settings)
    assert unknown.error == "precision is 'int8', expected one of '': give a bundle for it"
    assert deep.error is not None
    assert "has no scores of layer 9 by col_mean (" in deep.error
    assert fine.error is None
    assert len(fine.kept) == 5


def test_a_prompt_that_the_model_cannot_hold(family_bundle: Bundles, tmp_path: Path) -> None:
    runner = SampleRunner(spec_of(tmp_path / "work", family_bundle("llava")))
    records = runner.run(sample_of(photo(), prompt="long " * 5000), [REFERENCE, Setting("rank", 0.3)])
    for record in records:
        assert record.error is not None
        assert record.error.startswith("the unpruned model cannot answer 1 images, so there is nothing to co")
        assert record.error.endswith("leave the sample out")
        assert "positions" in record.error


def test_a_reference_is_measured_once(
    family_bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calib.measure import runner as module

    monkeypatch.setattr(module, "_REMEMBERED", 2)
    runner = SampleRunner(spec_of(tmp_path / "work", family_bundle("llava")))
    samples = [sample_of(photo(seed=seed)) for seed in range(3)]
    first = [runner.run(sample, [REFERENCE])[0] for sample in samples]
    again = [runner.run(sample, [REFERENCE])[0] for sample in samples[::-1]]
    # The same row, times included, but for the one that made room.
    assert again[:2] == first[:0:-1]
    assert again[2] != first[0]
    assert timeless(again[2]) == timeless(first[0])


def test_nothing_of_a_sample_stays(family_bundle: Bundles, tmp_path: Path) -> None:
    runner = SampleRunner(spec_of(tmp_path / "work", family_bundle("llava")))
    sample, settings = sample_of(photo()), [Setting("rank", 0.3), Setting("random", 0.3)]
    first = [timeless(record) for record in runner.run(sample, settings)]
    runner.run(sample_of(photo(seed=4)), settings)
    assert [timeless(record) for record in runner.run(sample, settings)] == first
    assert not runner.bundle("").space._made
    assert runner.bundle("").generator.features.keys((), None) in ([], ())  # nothing is kept for reuse


def test_describe(family_bundle: Bundles, tmp_path: Path) -> None:
    facts = describe(spec_of(tmp_path, family_bundle("llava")))
    assert {name: facts[name] for name in ("family", "layout", "tokens", "tokens_of", "strategy")} == {
        "family": "llava",
        "layout": "single",
        "tokens": 16,
        "tokens_of": "every picture",
        "strategy": "rank",
    }
    assert (facts["layer"], facts["aggregation"], facts["default_ratio"]) == (1, "col_mean", 0.3)
    assert facts["precisions"][""]["vision_encoder"] == "fp32"
    assert facts["device"] == cpu_name()
    assert {"fopru-edge", "python", "numpy"} <= set(facts["versions"])
    next_facts = describe(spec_of(tmp_path, family_bundle("llava_next")))
    assert next_facts["tokens_of"] == "a picture of 640 x 480 pixels"
    plan = load_bundle(family_bundle("llava_next")).manifest.layout.plan(480, 640)
    assert next_facts["tokens"] == plan.placeholders
    spec = RunnerSpec((("", family_bundle("qwen2_5_vl")),), "onnxruntime", 1, 4, 0, tmp_path)
    narrow = edited(family_bundle("qwen2_5_vl"), tmp_path / "small", layout={"max_pixels": 4096})
    assert describe(replace(spec, bundles=(("", narrow),)))["tokens"] <= 4096 // 64


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 2\nmodel name\t: Some CPU: fast\nmodel name\t: b\n", "Some CPU: fast"),
        ("processor\t: 0\nmodel name\t:\n\nModel\t\t: Some Board Rev 1.4\n", "Some Board Rev 1.4"),
        ("processor\t: 0\n", "riscv64"),
        (None, "riscv64"),
    ],
)
def test_name_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, name: str
) -> None:
    monkeypatch.setattr("platform.processor", str)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    assert device_name(tmp_path / "cpuinfo") == name
