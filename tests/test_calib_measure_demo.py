"""Measuring the bundled checkpoint, which can answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from calib.measure.runner import SampleRunner, check_settings, describe
from calib.settings import BASELINES, METHODS, REFERENCE, Setting
from export import build
from runtime import NO_REUSE, Generator, Request, load_bundle
from tests.measuring import sample_of, spec_of

PICTURE = Path(__file__).resolve().parent.parent / "demo" / "images" / "three_digits.png"
READ = "Read the digits from left to right."


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("demo") / "checkpoint"
    assert build.main(["--ratio", "0.3", "--output", str(target)]) == 0
    return target


def test_the_demo_reads_digits_with_a_third_of_its_tokens(bundle: Path, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, bundle, tokens=8)
    settings = [REFERENCE, *(Setting(name, 0.3) for name in (*METHODS, *BASELINES))]
    assert check_settings(spec, settings) == {}
    records = SampleRunner(spec).run(sample_of(PICTURE, prompt=READ, answer="7 5 2"), settings)
    found = {record.setting.selector: record for record in records}
    assert (found["none"].text, found["none"].correct) == ("7 5 2", True)
    assert {name: record.after for name, record in found.items()} == {
        "none": 196,
        "rank": 59,
        "row": 56,
        "cls": 59,
        "random": 59,
        "uniform": 59,
        "resize": 56,
    }
    assert found["rank"].correct
    assert found["rank"].same_answer
    generator = Generator(load_bundle(bundle), "onnxruntime", 1, NO_REUSE)
    result = generator.generate(Request(READ, (PICTURE,), ratio=0.3, max_new_tokens=8))
    assert found["rank"].kept == result.kept_indices[0]
    assert found["rank"].tokens == result.token_ids
    for record in records:
        assert record.same_answer == (record.tokens == found["none"].tokens)
        assert record.correct == (record.text == "7 5 2")
        assert (record.divergence == 0.0) == (record.setting == REFERENCE)


def test_what_a_report_says_of_it(bundle: Path, tmp_path: Path) -> None:
    facts = describe(spec_of(tmp_path, bundle))
    assert (facts["model"], facts["family"], facts["tokens"]) == ("checkpoint", "llava", 196)
