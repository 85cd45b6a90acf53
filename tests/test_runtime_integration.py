"""The runtime on a bundle that the exporter built from a (toy) LLaVA checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from runtime.bundle import Bundle, load_bundle
from runtime.check import check_bundle
from runtime.generator import Generator
from runtime.parity import format_report
from runtime.positions import Positions
from runtime.request import Request, Turn
from runtime.vision import Selection
from tests.toy_bundle import toy_photo


@pytest.fixture(scope="module")
def bundle(toy_bundle_dir: Path) -> Bundle:
    return load_bundle(toy_bundle_dir)


@pytest.fixture(scope="module")
def generator(bundle: Bundle) -> Generator:
    return Generator(bundle, threads=1)


def photos(bundle: Bundle, count: int = 1) -> tuple[np.ndarray, ...]:
    return tuple(toy_photo(bundle.manifest.layout.image_size, seed) for seed in range(count))


def test_golden_tensors_of_pytorch_are_replayed(bundle: Bundle) -> None:
    report = check_bundle(bundle, threads=1)
    assert report.ok, format_report(report)
    assert not any(stage.skipped for stage in report.stages)


def test_exported_manifest_follows_the_schema(bundle: Bundle) -> None:
    schema = json.loads((Path(__file__).parent.parent / "docs" / "bundle.schema.json").read_text())
    jsonschema.validate(json.loads((bundle.path / "bundle.json").read_text()), schema)


def test_ratio_one_is_bit_identical_to_the_unpruned_graph(bundle: Bundle, generator: Generator) -> None:
    prepared = generator.preprocess(photos(bundle, 3))
    everything = tuple((image.plan.units[0].tokens,) for image in prepared)
    whole = generator.encode_images(prepared, Selection(everything))
    # The architecture promises this of ONNX Runtime CPU: the attention stays in its form.
    for pruned, plain in zip(whole, generator.encode_unpruned(prepared), strict=True):
        np.testing.assert_array_equal(pruned.features, plain.features)


@pytest.mark.parametrize("keep", [1, 5, 15])
def test_pruned_features_are_rows_of_the_unpruned(bundle: Bundle, generator: Generator, keep: int) -> None:
    prepared = generator.preprocess(photos(bundle))
    unpruned = generator.encode_unpruned(prepared)[0].features
    prefix = bundle.manifest.layout.prefix_tokens
    (graph,) = generator.encode_images(prepared, Selection(((keep,),)))
    rows = np.concatenate([np.arange(prefix), prefix + graph.kept_indices])
    # Fewer rows may take another blocking of the same float32 sums: a few units in the last place.
    limit = 1e-5 * float(np.abs(unpruned).max())
    np.testing.assert_allclose(graph.features, unpruned[rows], rtol=0, atol=limit)
    (host,) = generator.encode_images(prepared, Selection(((keep,),), "rank"))
    np.testing.assert_array_equal(host.kept_indices, graph.kept_indices)


def test_cached_steps_equal_a_whole_prefill(bundle: Bundle, generator: Generator) -> None:
    request = Request("hi", photos(bundle), tokens=4, max_new_tokens=6, ignore_eos=True)
    result = generator.generate(request)
    encoded = generator.encode_images(generator.preprocess(request.images), Selection(((4,),)))
    prompt = generator.prompt(generator.tokenize(request, [image.plan for image in encoded]), encoded)
    for taken in range(6):
        extended = np.concatenate([prompt.ids, np.array([result.token_ids[:taken]], np.int64)], axis=1)
        length = extended.shape[1]
        counted = Positions(np.arange(length, dtype=np.int64)[None], length)
        logits = generator.decoder_run(length, counted).prefill(generator.embed(extended, encoded))
        assert int(np.argmax(logits)) == result.token_ids[taken]


def test_several_images_and_a_second_turn(bundle: Bundle, generator: Generator) -> None:
    first, second = photos(bundle, 2)
    one = generator.generate(Request("hi", (first, second), ratio=0.5, max_new_tokens=3))
    kept = generator.manifest.layout.unit_tokens // 2
    assert one.visual_tokens_after == (kept, kept)
    turn = Turn("hi", (first,), one.text.replace("<image>", ""))
    two = generator.generate(Request("and?", (second,), ratio=0.5, max_new_tokens=3, history=(turn,)))
    assert two.visual_tokens_after == (kept, kept)
    assert two.kept_indices == one.kept_indices


def test_answers_stream_whole(bundle: Bundle, generator: Generator) -> None:
    stream = generator.stream(Request("hi", photos(bundle), max_new_tokens=20, ignore_eos=True))
    assert "".join(stream) == stream.result.text == generator.decode_text(stream.result.token_ids).lstrip()
