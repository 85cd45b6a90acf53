"""A bundle and a backend, answering requests; every stage can also be called alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime import contract
from runtime.answer import AnswerRun
from runtime.backend import NATIVE_BACKENDS, BackendOptions, Session, create_backend
from runtime.batch import BatchRun, answer_together
from runtime.bundle import Bundle
from runtime.decoder import DecoderGraph, DecoderRun, Room
from runtime.errors import BackendError, RequestError
from runtime.feature_cache import FeatureCache
from runtime.graph_check import check_session
from runtime.layouts import ImagePlan
from runtime.manifest import IMAGE_NEWLINE
from runtime.positions import Positions, prompt_positions
from runtime.prefix import PrefixCache, Start, prompt_rows
from runtime.preprocess import ImageSource, PreparedImage, load_image, prepare
from runtime.prompt import Prompter, expand_images
from runtime.request import Request
from runtime.result import Result
from runtime.reuse import Reuse
from runtime.rows import Rows, space_of
from runtime.stream import Stream
from runtime.vision import EncodedImage, Selection, VisionEncoder

__all__ = ["Generator", "Prompt"]


@dataclass(frozen=True)
class Prompt:
    """`ids` int64 [1, L] with one image id per visual token, and the positions of all."""

    ids: npt.NDArray[np.int64]
    positions: Positions


class Generator:
    """Makes text from images and a prompt.

    Owns the sessions, each opened when first needed, and the tokenizer; keeps the bundle. Requests are
    independent: a chat is its `history`. Not to be used from two threads at once.

    What a request has in common with earlier ones is not computed again: the visual tokens of a picture, and
    the KV cache of a prompt that begins like the last one (system prompt and picture, or a chat so far).
    `reuse` bounds what is kept for that, `forget` lets it go.

    An opened graph stays open, so that requests may alternate between ratios: after a pruned and an unpruned
    request, two vision encoders hold memory. Where that is too much, `release` the one that is done with;
    `loaded_graphs` names them.
    """

    def __new__(
        cls,
        bundle: Bundle,  # noqa: ARG004 what `__init__` takes
        backend: str = "onnxruntime",
        *_: object,
        **__: object,
    ) -> Generator:
        """The C++ runtime has a class of its own, a subclass: `runtime.native.NativeGenerator`."""
        if cls is Generator and backend in NATIVE_BACKENDS:
            from runtime.native import NativeGenerator

            return super().__new__(NativeGenerator)
        return super().__new__(cls)

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "onnxruntime",
        threads: int | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        """Prepare a bundle; `threads` bounds the threads inside one operator, None is the backend's choice.

        `reuse` says what is kept between requests, None is `Reuse()`.

        Raises:
            BackendError: the backend is unknown or not installed.
            BundleError: the tokenizer is missing or damaged.
        """
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.backend = create_backend(backend, BackendOptions(threads))
        self._sessions: dict[str, Session] = {}
        self._prompter = Prompter(bundle)
        self._space = space_of(self.backend)
        newline = bundle.constant(IMAGE_NEWLINE)
        self._vision = VisionEncoder(self.session, bundle.manifest, newline, self._space)
        reuse = reuse or Reuse()
        self.features, self.prefix = FeatureCache(reuse.features), PrefixCache(reuse.prefix)

    def generate(self, request: Request, encoded: Sequence[EncodedImage] = ()) -> Result:
        """Answer a request; see `stream` for the arguments and errors."""
        stream = self.stream(request, encoded)
        deque(stream, maxlen=0)  # reads it to the end
        return stream.result

    def stream(self, request: Request, encoded: Sequence[EncodedImage] = ()) -> Stream:
        """Answer a request piece by piece.

        Args:
            request: what to answer.
            encoded: visual tokens of the first images of `request.all_images`, from `encode_images` of this
                bundle or an earlier stream's `encoded`; these images are not opened again.

        Raises:
            FopruError: while the stream is read, for everything that is wrong with the request, an image or
            the bundle.
        """
        return Stream(AnswerRun(self, request, tuple(encoded)))

    def generate_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Answer several requests together, as `generate` would one by one but for the order of sums.

        Prompts and images may be of any length and number; the answers are decoded side by side, which reads
        the weights once for all of them. With a decoder that cannot do that (`batches`), one after the other.
        What is kept of earlier prompts is not used, and nothing is added to it; `forget` makes room.

        Raises:
            FopruError: something is wrong with a request, an image or the bundle; no request is answered
            then.
        """
        if len(requests) < 2 or not self.batches:
            return [self.generate(request) for request in requests]
        runs = [AnswerRun(self, request, ()) for request in requests]
        for run in runs:
            run.begin(lambda: False)
        return answer_together(self, runs)

    @property
    def batches(self) -> bool:
        """Whether the decoder takes several sequences at once."""
        return self.manifest.decoder.caches[self.decoder_graph] == contract.SHARED

    def batch_run(self, rooms: Sequence[Room]) -> BatchRun:
        """A fresh run of the decoder for one prompt per room; see `batches`."""
        info, name = self.manifest.decoder, self.decoder_graph
        parts = DecoderGraph(self.session(contract.EMBED_TOKENS), self.session(name), info.caches[name])
        return BatchRun(self.backend, parts, info, rooms)

    def preprocess(self, images: Sequence[ImageSource]) -> tuple[PreparedImage, ...]:
        """Open, plan, cut and normalise images."""
        # One at a time: a photograph at full resolution is many times what the model looks at.
        return tuple(
            prepare(load_image(image), self.manifest.layout, self.manifest.preprocess) for image in images
        )

    def encode_images(
        self, images: Sequence[PreparedImage], selection: Selection
    ) -> tuple[EncodedImage, ...]:
        """The visual tokens that the selection keeps."""
        return self._vision.encode(images, selection)

    def encode_unpruned(self, images: Sequence[PreparedImage]) -> tuple[EncodedImage, ...]:
        """All visual tokens."""
        return self._vision.encode_unpruned(images)

    def vision_graph(self, selection: Selection) -> str:
        """The graph that `encode_images` runs for a selection."""
        return self._vision.graph_for(selection)

    def tokenize(self, request: Request, plans: Sequence[ImagePlan]) -> npt.NDArray[np.int64]:
        """Token ids [P] with one image id per run of placeholders; `plans` of all images, in order."""
        return self._prompter.ids(request, plans)

    def prompt(self, plain: npt.NDArray[np.int64], images: Sequence[EncodedImage]) -> Prompt:
        """The pruned prompt: ids from `tokenize`, with as many placeholders as there are visual tokens."""
        image, pruning = self.manifest.tokens.image, self.manifest.pruning
        runs = [run for encoded in images for run in encoded.assembly.runs]
        parts = [(encoded.plan, encoded.assembly) for encoded in images]
        axes = self.manifest.decoder.position_axes
        return Prompt(
            expand_images(plain, image, runs)[None],
            prompt_positions(plain, image, parts, pruning.position_ids, axes),
        )

    def embed(self, input_ids: npt.NDArray[np.int64], images: Sequence[EncodedImage]) -> Rows:
        """Embeddings [1, L, D] of token ids [1, L], visual tokens at their placeholders; on the device of the
        backend, if it has one.

        Raises:
            RequestError: the number of placeholders is not the number of visual tokens.
        """
        places = input_ids == self.manifest.tokens.image
        rows = sum(len(image.features) for image in images)
        if int(places.sum()) != rows:
            raise RequestError(
                f"the prompt has {int(places.sum())} image placeholders for {rows} visual tokens: "
                "make the ids with prompt(tokenize(request, plans), images)"
            )
        # Some checkpoints have no embedding for the placeholder; its value is overwritten, so any id will do.
        feeds = {contract.INPUT_IDS: np.where(places, 0, input_ids)}
        features = [image.features for image in images]
        filled = places, features, self.manifest.decoder.hidden_size
        return self._space.embed(self.session(contract.EMBED_TOKENS), feeds, contract.INPUTS_EMBEDS, filled)

    def warmup(self, request: Request) -> None:
        """Do all that a request of this shape (images, ratio, length of prompt and answer) needs once: graphs
        are opened, memory is asked for, decoding steps are recorded where the backend can.

        A later request like it then asks for no device memory, but for what it leaves behind: the visual
        tokens of each new picture (`Reuse`). What was kept of earlier requests is forgotten.

        Raises:
            FopruError: as of `generate`.
        """
        run = AnswerRun(self, request, ())
        run.begin(lambda: False)
        prompt, embeds, _ = run.prompt()
        decoder = self.decoder_run(run.capacity, prompt.positions)
        decoder.prefill(embeds)
        decoder.warm()
        self.forget()

    def decoder_run(self, capacity: int, positions: Positions, graph: str | None = None) -> DecoderRun:
        """A fresh run of the decoder, with `capacity` rows of KV cache, for a prompt with `positions`.

        `graph` is one of `decoder_graphs`, None the first.
        """
        info, name = self.manifest.decoder, graph or self.decoder_graph
        parts = DecoderGraph(self.session(contract.EMBED_TOKENS), self.session(name), info.caches[name])
        return DecoderRun(self.backend, parts, info, Room(capacity, positions))

    @property
    def decoder_graph(self) -> str:
        """The decoder graph that answers: the first of `decoder_graphs`."""
        return self.decoder_graphs[0]

    @property
    def decoder_graphs(self) -> tuple[str, ...]:
        """The bundle's decoder graphs that the backend can run, the best first.

        Raises:
            BackendError: it can run none.
        """
        caches, by_dtype = self.manifest.decoder.caches, getattr(self.backend, "kinds_for", None)
        # Some engines have the operators of a kind for some dtypes alone.
        kinds = by_dtype(self.manifest.decoder.cache_dtype) if by_dtype else self.backend.cache_kinds
        graphs = tuple(graph for kind in kinds for graph, found in caches.items() if found == kind)
        if not graphs:
            raise BackendError(
                f"backend {self.backend.name} runs decoders with a cache of kind {' or '.join(kinds)}, but "
                f"those of {self.bundle.path} are of kind {', '.join(caches.values())}: "
                "build the bundle again, or use another backend"
            )
        return graphs

    def session(self, graph: str) -> Session:
        """The session of a graph by contract name, opened on first use."""
        if graph not in self._sessions:
            session = self.backend.open(self.bundle.graph(graph))
            check_session(graph, self.manifest.graphs[graph], session)
            self._sessions[graph] = session
        return self._sessions[graph]

    def start_run(self, capacity: int, prompt: Prompt, images: Sequence[EncodedImage]) -> Start:
        """A run for a prompt with `images`: the kept one, where the prompt begins as the last one did, or a
        fresh one."""
        if not self.prefix.on:
            return Start(self.decoder_run(capacity, prompt.positions))
        rows = prompt_rows(prompt.ids, prompt.positions, images, self.manifest.tokens.image)
        room = Room(capacity, prompt.positions)
        return self.prefix.start(rows, room, lambda: self.decoder_run(capacity, prompt.positions))

    def forget(self) -> None:
        """Free what is kept for later requests: visual tokens, and the KV cache of the last answer."""
        self.features.clear()
        self.prefix.forget()

    def release(self, graph: str) -> None:
        """Close the session of a graph, if it is open; it is opened again when needed.

        Raises:
            RequestError: the bundle has no such graph.
        """
        if graph not in self.manifest.graphs:
            raise RequestError(
                f'the bundle has no graph "{graph}": release one of {", ".join(sorted(self.manifest.graphs))}'
            )
        self._sessions.pop(graph, None)
        if graph not in (contract.VISION_ENCODER, contract.VISION_ENCODER_FOPRU):
            self.prefix.forget()  # whose run would hold the session

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._prompter.decode(ids)

    @property
    def loaded_graphs(self) -> tuple[str, ...]:
        """Graphs that are open."""
        return tuple(self._sessions)
