"""Engines on a GPU: parity with PyTorch, kept tokens, many requests in a row, replayed steps.

`make test-gpu`, with `GPU_BUNDLE=path` for a bundle of your own. Never run by CI, which has no GPU.
"""

from __future__ import annotations

import numpy as np
import pytest

from runtime.backend import BackendOptions, CapturingBackend, create_backend
from runtime.bundle import Bundle
from runtime.check import check_bundle
from runtime.device_report.machine import MemoryReader
from runtime.device_report.measure import Plan, measure_backend, request_of
from runtime.device_report.record import BackendRecord
from runtime.generator import Generator
from runtime.parity import TIE_WINDOW, format_report
from runtime.request import Request
from runtime.reuse import NO_REUSE

pytestmark = pytest.mark.gpu

REQUESTS = 1000
IMAGES = 32
STEPS = 24


def test_every_stage_agrees_with_the_golden_tensors(backend: str, bundle: Bundle) -> None:
    report = check_bundle(bundle, backend)
    assert report.ok, format_report(report)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_kept_tokens_are_those_of_the_cpu_but_for_near_ties(backend: str, toy: Bundle, ratio: float) -> None:
    """A token may be another one only where its score, on the CPU, is as far from the one at the boundary as
    float32 cannot tell: `TIE_WINDOW` of it. docs/gpu.md states this rule."""
    generators = [Generator(toy, name, reuse=NO_REUSE) for name in ("onnxruntime", backend)]
    rng, swapped = np.random.default_rng(0), 0
    for _ in range(IMAGES):
        photo = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        request = Request("a?", (photo,), ratio=ratio, max_new_tokens=1, ignore_eos=True)
        streams = [generator.stream(request) for generator in generators]
        for stream in streams:
            list(stream)
        (expected,), (found,) = (stream.encoded for stream in streams)
        assert expected.scores is not None
        for scores, kept, other in zip(expected.scores, expected.kept, found.kept, strict=True):
            assert len(kept) == len(other)
            boundary = scores[kept].min()
            moved = np.setxor1d(kept, other)
            swapped += len(moved) // 2
            assert (np.abs(scores[moved] - boundary) <= TIE_WINDOW * abs(boundary)).all()
    print(f"{backend}, ratio {ratio:g}: {swapped} near-ties swapped in {IMAGES} images")


def test_a_thousand_requests_with_changing_ratios(backend: str, bundle: Bundle) -> None:
    saved: list[BackendRecord] = []
    plan = Plan(ratios=(), requests=REQUESTS)
    record = measure_backend(bundle, backend, plan, saved.append)
    assert record.loop is not None, record.refusals
    assert record.loop.requests == REQUESTS
    assert record.loop.growth_device is not None, "the memory of the device cannot be read"
    assert record.loop.ok, record.loop


def test_the_same_request_gives_the_same_answer(backend: str, bundle: Bundle) -> None:
    prompt, images = request_of(bundle)
    generator = Generator(bundle, backend, reuse=NO_REUSE)
    request = Request(prompt, images, max_new_tokens=STEPS, ignore_eos=True)
    answers = {generator.generate(request).token_ids for _ in range(20)}
    assert len(answers) == 1


def test_replayed_steps_equal_those_that_are_run(backend: str, toy: Bundle) -> None:
    if not isinstance(create_backend(backend, BackendOptions()), CapturingBackend):
        pytest.skip(f"{backend} records no CUDA graphs: the mask of its decoder grows with every token")
    generator = Generator(toy, backend, reuse=NO_REUSE)
    info = toy.manifest.decoder
    plain = np.arange(8, 30, dtype=np.int64)
    made = generator.prompt(plain, [])
    embeds = generator.embed(made.ids, [])
    runs = [generator.decoder_run(len(plain) + STEPS, made.positions) for _ in range(2)]
    assert runs[0]._padded is not None
    runs[1]._padded = None  # every step runs as it is
    for run in runs:
        run.prefill(embeds)
    for step in range(STEPS):
        replayed, plain_run = (run.step(9 + step % (info.vocab_size - 9)).copy() for run in runs)
        assert replayed.argmax() == plain_run.argmax()
        # Rows of padding add zeros to the sums, in another order: 1e-5 of the largest in float32.
        np.testing.assert_allclose(replayed, plain_run, rtol=0, atol=1e-5 * np.abs(plain_run).max())


def test_warmup_leaves_nothing_to_allocate(backend: str, toy: Bundle) -> None:
    generator = Generator(toy, backend, reuse=NO_REUSE)
    prompt, images = request_of(toy)
    request = Request(prompt, images, ratio=0.3, max_new_tokens=8, ignore_eos=True)
    generator.warmup(request)
    opened = generator.loaded_graphs
    before = MemoryReader().read().device
    answers = {generator.generate(request).token_ids for _ in range(3)}
    after = MemoryReader().read().device
    assert generator.loaded_graphs == opened
    assert len(answers) == 1
    assert before is not None
    assert after is not None
    assert after - before < 1 << 20  # other programs on the GPU would show here too
