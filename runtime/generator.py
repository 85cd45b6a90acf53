"""A bundle and a backend, answering requests; every stage can also be called alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime import contract
from runtime.answer import AnswerRun
from runtime.backend import BackendOptions, Session, create_backend
from runtime.bundle import Bundle
from runtime.decoder import DecoderRun
from runtime.errors import RequestError
from runtime.graph_check import check_session
from runtime.preprocess import ImageSource, load_image, preprocess
from runtime.prompt import Prompter
from runtime.request import Request
from runtime.result import Result
from runtime.stream import Stream
from runtime.vision import EncodedImages, Selection, VisionEncoder

__all__ = ["Generator"]

Pixels = npt.NDArray[np.float32]


class Generator:
    """Makes text from images and a prompt.

    Owns the sessions, each opened when first needed, and the tokenizer; keeps the bundle. Requests are
    independent: a chat is its `history`. Not to be used from two threads at once.

    An opened graph stays open, so that requests may alternate between ratios: after a pruned and an unpruned
    request, two vision encoders hold memory. Where that is too much, `release` the one that is done with;
    `loaded_graphs` names them.
    """

    def __init__(self, bundle: Bundle, backend: str = "onnxruntime", threads: int | None = None) -> None:
        """Prepare a bundle; `threads` bounds the threads inside one operator, None is the backend's choice.

        Raises:
            BackendError: the backend is unknown or not installed.
            BundleError: the tokenizer is missing or damaged.
        """
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.backend = create_backend(backend, BackendOptions(threads))
        self._sessions: dict[str, Session] = {}
        self._prompter = Prompter(bundle)
        self._vision = VisionEncoder(self.session, bundle.manifest)

    def generate(self, request: Request, encoded: EncodedImages | None = None) -> Result:
        """Answer a request; see `stream` for the arguments and errors."""
        stream = self.stream(request, encoded)
        deque(stream, maxlen=0)  # reads it to the end
        return stream.result

    def stream(self, request: Request, encoded: EncodedImages | None = None) -> Stream:
        """Answer a request piece by piece.

        Args:
            request: what to answer.
            encoded: visual tokens of the first images of `request.all_images`, from `encode_images` or an
                earlier stream's `encoded`; these images are not opened again, and as many tokens are kept of
                the others.

        Raises:
            FopruError: while the stream is read, for everything that is wrong with the request, an image or
            the bundle.
        """
        return Stream(AnswerRun(self, request, encoded))

    def preprocess(self, images: Sequence[ImageSource]) -> Pixels:
        """Images to pixel values float32 [images, 3, H, W]."""
        # One at a time: a photograph at full resolution is many times what the model looks at.
        return preprocess((load_image(image) for image in images), self.manifest.preprocess)

    def encode_images(self, pixel_values: Pixels, selection: Selection) -> EncodedImages:
        """Pixel values to the visual tokens that the selection keeps."""
        return self._vision.encode(pixel_values, selection)

    def encode_unpruned(self, pixel_values: Pixels) -> npt.NDArray[np.float32]:
        """Pixel values to all visual tokens [images, p + N, D]."""
        return self._vision.encode_unpruned(pixel_values)

    def vision_graph(self, selection: Selection) -> str:
        """The graph that `encode_images` runs for a selection."""
        return self._vision.graph_for(selection)

    def prompt_ids(self, request: Request, image_rows: int) -> npt.NDArray[np.int64]:
        """Token ids [1, L] of a request with `image_rows` = p + K placeholders per image."""
        return self._prompter.ids(request, image_rows)

    def embed(
        self, input_ids: npt.NDArray[np.int64], features: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32]:
        """Embeddings [1, L, D] of token ids [1, L], visual tokens [images, rows, D] at their placeholders.

        Raises:
            RequestError: the number of placeholders is not the number of visual tokens.
        """
        places = input_ids == self.manifest.tokens.image
        width = self.manifest.decoder.hidden_size
        rows = np.empty((0, width), np.float32) if features is None else features.reshape(-1, width)
        if int(places.sum()) != rows.shape[0]:
            raise RequestError(
                f"the prompt has {int(places.sum())} image placeholders for {rows.shape[0]} visual tokens: "
                "make the ids with prompt_ids(request, features.shape[1])"
            )
        # Some checkpoints have no embedding for the placeholder; its value is overwritten, so any id will do.
        outputs = self.session(contract.EMBED_TOKENS).run(
            {contract.INPUT_IDS: np.where(places, 0, input_ids)}
        )
        embeds = outputs[contract.INPUTS_EMBEDS]
        embeds[places] = rows
        return embeds

    def decoder_run(self, capacity: int) -> DecoderRun:
        """A fresh run of the decoder with a KV cache for `capacity` positions."""
        sessions = (self.session(contract.EMBED_TOKENS), self.session(contract.DECODER))
        return DecoderRun(self.backend, sessions, self.manifest.decoder, capacity)

    def session(self, graph: str) -> Session:
        """The session of a graph by contract name, opened on first use."""
        if graph not in self._sessions:
            session = self.backend.open(self.bundle.graph(graph))
            check_session(graph, self.manifest.graphs[graph], session)
            self._sessions[graph] = session
        return self._sessions[graph]

    def release(self, graph: str) -> None:
        """Close the session of a graph, if it is open; it is opened again when needed."""
        self._sessions.pop(graph, None)

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._prompter.decode(ids)

    @property
    def loaded_graphs(self) -> tuple[str, ...]:
        """Graphs that are open."""
        return tuple(self._sessions)
