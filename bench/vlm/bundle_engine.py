"""Our runtime on a bundle, with one of its backends."""

from __future__ import annotations

from bench.processors import PROMPT
from bench.vlm.base import Answer, Engine, Logits, Task
from runtime import Generator, Request, load_bundle
from runtime.reuse import NO_REUSE

__all__ = ["BundleEngine"]


class BundleEngine(Engine):
    """A generator that keeps nothing between requests."""

    def __init__(self, task: Task, backend: str) -> None:
        """Open the bundle of `task`; graphs are opened by the first request that needs them."""
        assert task.bundle is not None
        bundle = load_bundle(task.bundle, verify=False)
        self._generator = Generator(bundle, backend=backend, threads=task.threads, reuse=NO_REUSE)
        self._picture = task.picture

    def answer(self, ratio: float, new: int) -> Answer:
        """See `Engine.answer`."""
        result = self._generator.generate(self._request(ratio, new))
        timings = result.timings
        return Answer(
            vision=timings.vision,
            embed=timings.embed,
            prefill=timings.prefill,
            decode=timings.decode / (new - 1) if new > 1 else 0.0,
            preprocess=timings.preprocess,
            visual_tokens=sum(result.visual_tokens_after),
            prompt_tokens=result.prompt_tokens,
            kv_bytes=result.kv_bytes,
            kv_allocated=result.kv_bytes_allocated,
            tokens=result.token_ids,
        )

    def logits(self) -> Logits:
        """See `Engine.logits`; stage by stage, as a host would call them."""
        made, request = self._generator, self._request(1.0, 1)
        images = made.encode_unpruned(made.preprocess([self._picture]))
        prompt = made.prompt(made.tokenize(request, [image.plan for image in images]), images)
        run = made.decoder_run(prompt.ids.shape[1], prompt.positions)
        return run.prefill(made.embed(prompt.ids, images)).copy()

    def _request(self, ratio: float, new: int) -> Request:
        return Request(PROMPT, (self._picture,), ratio=ratio, max_new_tokens=new, ignore_eos=True)
