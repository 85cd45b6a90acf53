"""One backend on this machine: latencies by ratio, parity with the golden tensors, many requests in a row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime.backend import Array
from runtime.bundle import Bundle
from runtime.costs import judged
from runtime.device_report.machine import MemoryReader
from runtime.device_report.record import BackendRecord, Level, Loop, Memory, Refusal, Stage
from runtime.errors import BundleError, FopruError
from runtime.generator import Generator
from runtime.golden import load_golden, load_record
from runtime.parity import compare, measure
from runtime.plan import Amount
from runtime.preprocess import ImageSource
from runtime.request import Request
from runtime.result import Result
from runtime.reuse import NO_REUSE

__all__ = [
    "ALLOWED_GROWTH",
    "RATIOS",
    "WINDOWS",
    "Plan",
    "growth",
    "kept_agreement",
    "loop_ratios",
    "measure_backend",
    "stage_of",
    "steady_growth",
]

RATIOS = (1.0, 0.5, 0.3, 0.1)

ALLOWED_GROWTH = 16 << 20
"""Bytes that memory may grow in the loop: allocators round up, and a leak of one request's rows alone is more
than this over hundreds of requests."""

WINDOWS = 8
"""Parts of the loop whose least use of the device is compared."""

_LOOP_RATIOS = 16
_LOOP_TOKENS = 4
_STAGES = ("preprocess", "vision", "embed", "prefill", "ttft", "decode")


@dataclass(frozen=True)
class Plan:
    """What is run: `runs` of a request at each of `ratios` after `warmups`, each answer `new_tokens` long;
    then `requests` with changing ratios, 0 for none."""

    ratios: tuple[float, ...] = RATIOS
    runs: int = 10
    warmups: int = 2
    new_tokens: int = 64
    requests: int = 1000
    threads: int | None = None


Save = Callable[[BackendRecord], None]


def measure_backend(bundle: Bundle, name: str, plan: Plan, save: Save) -> BackendRecord:
    """Run everything with one backend; what fails becomes a refusal, and the rest goes on.

    Args:
        bundle: what to run.
        name: of the backend.
        plan: how much of it.
        save: is given the record after each part, so that a crash leaves what came before.

    Raises:
        BackendError: the backend is not there at all.
    """
    generator = Generator(bundle, name, plan.threads, NO_REUSE)
    prompt, images = request_of(bundle)
    memory = MemoryReader(pool=getattr(generator.backend, "pool", None))
    record = BackendRecord(name)
    for ratio in plan.ratios:
        request = Request(prompt, images, ratio=ratio, max_new_tokens=plan.new_tokens, ignore_eos=True)
        try:
            level = _level(generator, request, plan, memory)
        except FopruError as error:
            record = _refused(record, f"ratio {ratio:g}", error)
        else:
            record = replace(record, levels=(*record.levels, level))
        save(record)
    record = replace(record, graphs=generator.loaded_graphs, placement=_placement(generator))
    if plan.requests:
        try:
            loop, left = _loop(generator, Request(prompt, images, ignore_eos=True), plan, memory)
        except FopruError as error:
            record = _refused(record, f"{plan.requests} requests in a row", error)
        else:
            refusals = record.refusals if left is None else (*record.refusals, left)
            record = replace(record, loop=loop, refusals=refusals)
        save(record)
    del generator, memory  # parity opens every graph of the bundle
    try:
        record = _with_parity(record, bundle, plan)
    except FopruError as error:
        record = _refused(record, "parity with the golden tensors", error)
    save(record)
    return record


def request_of(bundle: Bundle) -> tuple[str, tuple[ImageSource, ...]]:
    """Prompt and images of the golden request; a drawn picture where the bundle has none."""
    try:
        golden = load_record(bundle)
        return golden.prompt, tuple(bundle.file(name) for name in golden.images)
    except BundleError:
        rows, columns = np.mgrid[0:480, 0:640]
        picture = np.stack([rows * 255 // 479, columns * 255 // 639, (rows ^ columns) & 255], axis=-1)
        return "What is in the picture?", (picture.astype(np.uint8),)


def stage_of(seconds: Sequence[float]) -> Stage:
    """Median, 95th percentile (between the two nearest) and least of some runs."""
    return Stage(float(np.median(seconds)), float(np.percentile(seconds, 95)), float(min(seconds)))


def growth(samples: Sequence[int | None]) -> int | None:
    """The most of the second half less the most of the first; None where one is not known, or for fewer than
    two."""
    known = [each for each in samples if each is not None]
    if len(known) != len(samples) or len(known) < 2:
        return None
    half = len(known) // 2
    return max(known[half:]) - max(known[:half])


def steady_growth(samples: Sequence[int | None]) -> int | None:
    """A rise that goes on: the median step between the least of successive windows, times the steps.

    For what other processes use, too: what they take or give back once is one step among many, and what they
    take for a moment is no least. Eight windows, fewer where one would have less than a round of the ratios.
    None where one is not known, or for fewer than two.
    """
    known = [each for each in samples if each is not None]
    if len(known) != len(samples) or len(known) < 2:
        return None
    count = min(WINDOWS, max(2, len(known) // _LOOP_RATIOS))
    least = [int(window.min()) for window in np.array_split(np.array(known, np.int64), count)]
    return round(float(np.median(np.diff(least))) * (count - 1))


def kept_agreement(reference: Mapping[str, Array], measured: Mapping[str, Array]) -> float | None:
    """Share of the reference's kept tokens that are kept in `measured` too; None for other counts."""
    counts = reference.get("kept_counts"), measured.get("kept_counts")
    kept = reference.get("kept_indices"), measured.get("kept_indices")
    if counts[0] is None or counts[1] is None or kept[0] is None or kept[1] is None:
        return None
    if not np.array_equal(counts[0], counts[1]):
        return None
    ends = np.cumsum(counts[0])[:-1]
    pairs = zip(np.split(kept[0], ends), np.split(kept[1], ends), strict=True)
    return sum(np.intersect1d(one, other).size for one, other in pairs) / max(1, kept[0].size)


def loop_ratios(requests: int) -> list[float]:
    """Fractions kept of the requests in a row: 16 from 0.05 to 1, shuffled again and again."""
    rng = np.random.default_rng(0)
    choice = np.linspace(0.05, 1.0, _LOOP_RATIOS).round(3)
    rounds = [rng.permutation(choice) for _ in range(-(-requests // _LOOP_RATIOS))]
    return [float(ratio) for own in rounds for ratio in own][:requests]


def _level(generator: Generator, request: Request, plan: Plan, memory: MemoryReader) -> Level:
    start = time.perf_counter()
    first = generator.generate(request)
    seconds = time.perf_counter() - start
    for _ in range(plan.warmups - 1):
        generator.generate(request)
    results = [generator.generate(request) for _ in range(plan.runs)]
    taken = [result.timings.to_dict() for result in results]
    speeds = [result.tokens_per_second for result in results]
    known = [speed for speed in speeds if speed is not None]
    return Level(
        ratio=1.0 if request.ratio is None else request.ratio,
        runs=plan.runs,
        warmups=max(1, plan.warmups),
        visual_before=sum(first.visual_tokens_before),
        visual_after=sum(first.visual_tokens_after),
        prompt_tokens=first.prompt_tokens,
        new_tokens=len(first.token_ids),
        stages={name: stage_of([each[name] for each in taken]) for name in _STAGES},
        first=seconds,
        load=first.timings.load,
        tokens_per_second=float(np.median(known)) if known else None,
        kv=first.kv_bytes,
        kv_unpruned=first.kv_bytes_unpruned,
        same_answer=all(result.token_ids == first.token_ids for result in results),
        memory=memory.read(),
    )


def _loop(
    generator: Generator, request: Request, plan: Plan, memory: MemoryReader
) -> tuple[Loop, Refusal | None]:
    """Ratios that the backend does not run at all are left out, and named.

    A first round opens what is missing; it is not looked at, but its answers are what later ones are compared
    with.
    """
    answers: dict[float, tuple[int, ...]] = {}
    failed: list[tuple[float, FopruError]] = []
    for ratio in loop_ratios(_LOOP_RATIOS):
        try:
            answers[ratio] = _short_answer(generator, request, ratio).token_ids
        except FopruError as error:
            failed.append((ratio, error))
    if not answers:
        raise failed[0][1]
    samples: list[Memory] = []
    changed, start = 0, time.perf_counter()
    asked = loop_ratios(plan.requests * _LOOP_RATIOS)  # one of them at least is in `answers`
    ratios = [ratio for ratio in asked if ratio in answers][: plan.requests]
    for ratio in ratios:
        changed += _short_answer(generator, request, ratio).token_ids != answers[ratio]
        samples.append(memory.read())
    loop = Loop(
        requests=len(ratios),
        ratios=len(answers),
        seconds=time.perf_counter() - start,
        growth_rss=growth([each.rss for each in samples]),
        growth_buffers=growth([each.buffers for each in samples]),
        growth_device=steady_growth([each.device for each in samples]),
        most_device=max((each.device for each in samples if each.device is not None), default=None),
        allowed_growth=ALLOWED_GROWTH,
        changed_answers=changed,
        memory=samples[-1],
    )
    if not failed:
        return loop, None
    left = ", ".join(f"{ratio:g}" for ratio, _ in sorted(failed, key=lambda pair: pair[0]))
    return loop, Refusal(f"ratios {left} among {len(ratios)} requests in a row", str(failed[0][1]))


def _short_answer(generator: Generator, request: Request, ratio: float) -> Result:
    return generator.generate(replace(request, ratio=ratio, max_new_tokens=_LOOP_TOKENS))


def _with_parity(record: BackendRecord, bundle: Bundle, plan: Plan) -> BackendRecord:
    golden, reference = load_golden(bundle)
    generator = Generator(bundle, record.name, plan.threads, NO_REUSE)
    images = [bundle.file(name) for name in golden.images]
    amount = Amount(golden.ratio, golden.tokens)
    found, units = measure(generator, images, golden.prompt, amount, golden.new_tokens)
    measured = {name: np.asarray(array) for name, array in found.items()}  # some may be on the device
    precisions = {name: graph.precision for name, graph in bundle.manifest.graphs.items()}
    report = judged(compare(reference, measured, units), precisions, bundle.manifest.parity)
    return replace(record, parity=report.to_dict(), kept_agreement=kept_agreement(reference, measured))


def _placement(generator: Generator) -> dict[str, dict[str, dict[str, int]]]:
    """Nodes by graph, provider and operator, where the engine says who runs them."""
    found = {}
    for name in generator.loaded_graphs:
        placement = getattr(generator.session(name), "placement", None)
        if placement is not None:
            found[name] = placement
    return found


def _refused(record: BackendRecord, what: str, error: FopruError) -> BackendRecord:
    return replace(record, refusals=(*record.refusals, Refusal(what, str(error))))
