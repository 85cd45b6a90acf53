"""The course of one request: plan, prompt, vision, prefill, then token by token."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime import contract
from runtime.errors import RequestError
from runtime.kv_cache import cache_bytes
from runtime.layouts import ImagePlan
from runtime.plan import PruningPlan, kept_placeholders, newline_policy, plan_pruning
from runtime.positions import unpruned_end
from runtime.preprocess import PreparedImage, load_pillow
from runtime.request import Request
from runtime.result import Result, Stopwatch, peak_rss_bytes
from runtime.rows import Rows
from runtime.token_loop import TokenLoop, Vocabulary
from runtime.vision import EncodedImage, Selection

if TYPE_CHECKING:
    from runtime.generator import Generator as TextGenerator
    from runtime.generator import Prompt

__all__ = ["AnswerRun"]


def _listed(counts: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join(str(sum(own)) for own in counts)


class AnswerRun:
    """One request on its way, holding what is known so far; `pieces` may be called once."""

    def __init__(self, generator: TextGenerator, request: Request, encoded: tuple[EncodedImage, ...]) -> None:
        """Take a request, and the visual tokens of its first images as far as they are there already."""
        self._generator = generator
        self._manifest = generator.manifest
        self._request = request
        self.encoded = encoded
        self.prepared: tuple[PreparedImage, ...] = ()
        self.watch = Stopwatch()
        self._plans: list[ImagePlan] = []
        self._loop: TokenLoop | None = None  # unless cancelled before
        self.kv_allocated = 0
        self._prompt_tokens = 0
        self._reused_tokens = 0
        self._reused_images = len(encoded)

    def pieces(self, cancelled: Callable[[], bool]) -> Generator[str, None, Result]:
        """Yield pieces of text, return the result; `cancelled` is asked before each stage and each token."""
        self.begin(cancelled)
        if len(self.encoded) == len(self._plans) and not cancelled():
            yield from self._decode(cancelled)
        return self.result()

    def begin(self, cancelled: Callable[[], bool]) -> None:
        """All that comes before the decoder: plan, prompt, visual tokens."""
        given, images = len(self.encoded), len(self._request.all_images)
        if given > images:
            raise RequestError(
                f"got visual tokens of {given} images for a request with {images}: "
                "they belong to the first images of history and turn, in order"
            )
        if given < images:
            self._prepare(given)
        plans = [image.plan for image in self.encoded] + [image.plan for image in self.prepared]
        self._plans, self._pruning = plans, self._plan(plans, given)
        with self.watch.stage("embed"):
            self._plain = self._generator.tokenize(self._request, plans)
        self._prompt_tokens = self._check_length(self._plain.size, plans, self._pruning)
        if self.prepared and not cancelled():
            self._encode(self._pruning, given)

    def prompt(self) -> tuple[Prompt, Rows, TokenLoop]:
        """After `begin`: the pruned prompt, its embeddings [1, L, D], and the loop that takes the logits."""
        with self.watch.stage("embed"):
            made = self._generator.prompt(self._plain, self.encoded)
            embeds = self._generator.embed(made.ids, self.encoded)
        self._prompt_tokens = made.ids.shape[1]
        self._loop = TokenLoop(self._request, self._vocabulary(), made.ids[0])
        return made, embeds, self._loop

    @property
    def capacity(self) -> int:
        """Rows of the KV cache: the last token of an answer is never fed back."""
        return self._prompt_tokens + self._request.max_new_tokens - 1

    def _prepare(self, done: int) -> None:
        """Open and cut the images after the first `done`."""
        with self.watch.stage("load"):
            load_pillow()
        with self.watch.stage("preprocess"):
            self.prepared = self._generator.preprocess(self._request.all_images[done:])

    def _plan(self, plans: list[ImagePlan], given: int) -> PruningPlan:
        request = self._request
        pruning = plan_pruning(request, self._manifest, plans)
        if not given:
            return pruning
        counts = tuple(image.counts for image in self.encoded)
        planned = pruning.counts[:given]
        asked = request.ratio is not None or request.tokens is not None
        if asked and (tuple(map(sum, counts)) != tuple(map(sum, planned))):
            raise RequestError(
                f"got {_listed(counts)} visual tokens of the images, but the request asks for "
                f"{_listed(planned)}: "
                "encode the images again, or leave ratio and tokens out"
            )
        everything = sum(plan.prunable for plan in plans)
        joined = counts + pruning.counts[given:]
        if sum(map(sum, joined)) < everything:
            return replace(pruning, counts=joined, pruned=True, reason=None)
        reason = pruning.reason or "the visual tokens given are not pruned"
        return replace(pruning, counts=joined, pruned=False, reason=reason)

    def _check_length(self, text: int, plans: list[ImagePlan], pruning: PruningPlan) -> int:
        """Tokens of the pruned prompt (the most, where images decide); refused if they are too many."""
        layout, rules = self._manifest.layout, self._manifest.pruning
        rows = [
            kept_placeholders(
                plan, sum(counts), layout.prefix_tokens, newline_policy(plan, sum(counts), rules)
            )
            for plan, counts in zip(plans, pruning.counts, strict=True)
        ]
        prompt = text - sum(len(plan.runs) for plan in plans) + sum(rows)
        original = rules.position_ids == "original"
        end = unpruned_end(text, plans) if original else prompt
        limit, new = self._manifest.decoder.max_positions, self._request.max_new_tokens
        if end + new <= limit:
            return prompt
        what, unit = ("reaches position", ",") if original and plans else ("has", " tokens")
        prunable = any(count > 1 for counts in pruning.counts for count in counts)
        way_out = "lower the ratio or max_new_tokens" if prunable else "lower max_new_tokens"
        if original and plans:
            way_out = "use fewer or smaller images (pruning keeps positions), or lower max_new_tokens"
        if not plans:
            way_out = "shorten the prompt or lower max_new_tokens"
        raise RequestError(
            f"the prompt {what} {end}{unit} and the answer up to {new}, "
            f"but the model has {limit} positions: {way_out}"
        )

    def _encode(self, pruning: PruningPlan, given: int) -> None:
        """Visual tokens of what was prepared, kept or new."""
        generator, request = self._generator, self._request
        # As if all images were encoded now: each unit has a seed of its own.
        done = sum(len(image.kept) for image in self.encoded)
        selection = Selection(pruning.counts[given:], request.selector, request.seed + done)
        # Images may be pruned although the given ones are not, and the other way round.
        pruned = any(
            sum(counts) < image.plan.prunable
            for counts, image in zip(selection.counts, self.prepared, strict=True)
        )
        chosen = selection if pruned else None
        with self.watch.stage("preprocess"):
            keys = generator.features.keys(self.prepared, chosen)
        new, found = generator.features.encode(self.prepared, chosen, keys, self._run_encoder)
        self._reused_images += found
        self.encoded = (*self.encoded, *new)

    def _run_encoder(
        self, images: Sequence[PreparedImage], selection: Selection | None
    ) -> tuple[EncodedImage, ...]:
        """Encode images of which no visual tokens are kept; None: unpruned."""
        generator = self._generator
        graph = contract.VISION_ENCODER if selection is None else generator.vision_graph(selection)
        with self.watch.stage("load"):
            generator.session(graph)
        with self.watch.stage("vision"):
            if selection is None:
                return generator.encode_unpruned(images)
            return generator.encode_images(images, selection)

    def _decode(self, cancelled: Callable[[], bool]) -> Generator[str, None, None]:
        generator, watch = self._generator, self.watch
        with watch.stage("load"):
            generator.session(contract.EMBED_TOKENS)
            generator.session(generator.decoder_graph)
        prompt, embeds, loop = self.prompt()
        with watch.stage("prefill"):
            start = generator.start_run(self.capacity, prompt, self.encoded)
            self._reused_tokens = start.reused
            self.kv_allocated = start.run.cache.allocated_bytes
            piece = loop.push(start.run.prefill(embeds[:, start.reused :]))
        while True:
            if piece:
                yield piece
            if loop.finished:
                break
            if cancelled():
                piece = loop.cancel()
                continue
            with watch.stage("decode"):
                piece = loop.push(start.run.step(loop.token_ids[-1]))
        generator.prefix.keep(start, loop.token_ids[:-1])

    def _vocabulary(self) -> Vocabulary:
        manifest = self._manifest
        return Vocabulary(manifest.decoder.vocab_size, manifest.tokens.eos, self._generator.decode_text)

    def result(self) -> Result:
        """What has come of it so far, after `begin`."""
        pruning, plans, layout, rows = self._pruning, self._plans, self._manifest.layout, self.capacity
        prefix = [layout.prefix_tokens * len(plan.units) for plan in plans]
        before = [plan.placeholders - rest for plan, rest in zip(plans, prefix, strict=True)]
        after = [
            kept_placeholders(plan, sum(counts), 0, newline_policy(plan, sum(counts), self._manifest.pruning))
            for plan, counts in zip(plans, pruning.counts, strict=True)
        ]
        if len(self.encoded) == len(plans):  # what went on, where the count depends on the image
            after = [len(image.features) - rest for image, rest in zip(self.encoded, prefix, strict=True)]
        loop = self._loop
        return Result(
            text="" if loop is None else loop.text,
            token_ids=() if loop is None else tuple(loop.token_ids),
            finish_reason="cancelled" if loop is None else loop.finish_reason or "cancelled",
            prompt_tokens=self._prompt_tokens,
            visual_tokens_before=tuple(before),
            visual_tokens_after=tuple(after),
            kept_indices=tuple(tuple(image.kept_indices.tolist()) for image in self.encoded),
            pruned=pruning.pruned,
            reason=pruning.reason,
            timings=self.watch.timings(),
            kv_bytes=cache_bytes(self._manifest.decoder, rows),
            kv_bytes_unpruned=cache_bytes(self._manifest.decoder, rows + sum(before) - sum(after)),
            kv_bytes_allocated=self.kv_allocated,
            peak_rss_bytes=peak_rss_bytes(),
            reused_tokens=self._reused_tokens,
            reused_images=self._reused_images,
        )
