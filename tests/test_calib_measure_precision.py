"""A bundle in another precision beside the one that is calibrated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from calib.measure.runner import SampleRunner, check_settings
from calib.measure.scorers import Scorers
from calib.measure.ways import Scoring
from calib.precision import parse_precision
from calib.settings import REFERENCE, Setting
from export.build import BuildOptions, build
from runtime import NO_REUSE, Generator, Request, contract, load_bundle
from tests.measuring import PROMPT, noise, sample_of, spec_of


@pytest.fixture(scope="module")
def half(toy_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("half") / "bundle"
    checkpoint = str(toy_checkpoint("clip-llama"))
    precision = parse_precision("vision=fp16")
    return build(BuildOptions(checkpoint, target, ratio=0.3, precision=precision)).bundle


def test_each_precision_runs_its_own_graphs(half: Path, toy_bundle_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    noise(60, 80).save(file)
    runner = SampleRunner(spec_of(tmp_path / "work", toy_bundle_dir, half))
    settings = [REFERENCE, Setting("none", 1.0, precision="1"), Setting("rank", 0.3, precision="1")]
    reference, whole, pruned = runner.run(sample_of(file), settings)
    assert reference.divergence == 0.0
    # Rounded to 11 bits, which moves the logits of the toy by less than a hundredth.
    assert 0.0 < whole.divergence < 1e-4
    generator = Generator(load_bundle(half), "onnxruntime", 1, NO_REUSE)
    result = generator.generate(Request(PROMPT, (file,), ratio=0.3, max_new_tokens=4))
    assert pruned.kept == result.kept_indices[0]
    assert pruned.tokens == result.token_ids
    assert pruned.same_answer == (result.token_ids == reference.tokens)


def test_a_converted_encoder_is_scored_in_float32(half: Path, toy_bundle_dir: Path, tmp_path: Path) -> None:
    scoring = Scoring(0, "cls")
    spec = spec_of(tmp_path, toy_bundle_dir, half)
    assert check_settings(spec, [Setting("cls", 0.3, layer=0, precision="1")]) == {}
    pixels = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    scores = []
    for bundle in (toy_bundle_dir, half):
        with Scorers(load_bundle(bundle)).graph(scoring, tmp_path) as graph:
            session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        feeds = {contract.PIXEL_VALUES: pixels.reshape(1, *session.get_inputs()[0].shape[1:])}
        scores.append(session.run([contract.TOKEN_SCORES], feeds)[0])
    assert scores[0].dtype == scores[1].dtype == np.float32
    # Q and K have 11 bits, the rest is float32.
    np.testing.assert_allclose(scores[1], scores[0], rtol=5e-3)
    assert not np.array_equal(scores[1], scores[0])
