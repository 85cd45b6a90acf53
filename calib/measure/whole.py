"""Everything an encoder sees in a sample, computed once and chosen from many times."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calib.measure.scorers import Scorers
from calib.measure.ways import Scoring
from runtime import contract
from runtime.assemble import assemble
from runtime.backend import Array, Session
from runtime.bundle import Bundle
from runtime.generator import Generator
from runtime.layouts import ImagePlan
from runtime.manifest import IMAGE_NEWLINE
from runtime.plan import newline_policy
from runtime.preprocess import PreparedImage
from runtime.reuse import NO_REUSE
from runtime.rows import DeviceRows, Output, Part, Rows, Space, space_of
from runtime.vision import EncodedImage, VisionEncoder

__all__ = ["MOST_SCORERS", "WARM_UPS", "LoadedBundle", "RememberingSpace"]

WARM_UPS = 2
"""Untimed runs before the first that counts: ONNX Runtime finds out in the first what memory it needs, and
gets it in the second."""

MOST_SCORERS = 4
"""Graphs of other layers and aggregations that stay open: each holds the weights of the encoder."""


class RememberingSpace:
    """A space that runs a graph on the same inputs once, until `forget`.

    The runtime's host selectors encode everything and choose from it. With this in between they still do, but
    the encoding is that of the first of them. `spared` is what a call's time has to be corrected by, in
    seconds, to be that of a call that runs its graphs once, warm.
    """

    def __init__(self, inner: Space) -> None:
        """Remember what `inner` makes."""
        self.inner = inner
        self.spared = 0.0
        self._made: dict[tuple[int, bytes], tuple[Session, dict[str, Rows], float]] = {}
        self._warm: set[int] = set()

    def forget(self) -> None:
        """Free what is remembered: another sample comes."""
        self._made.clear()

    def run(
        self, session: Session, feeds: Mapping[str, Array], outputs: Mapping[str, Output]
    ) -> Callable[[], dict[str, Rows]]:
        """As of the inner space, but finished when it returns; a graph that only scores takes and gives less
        than the pruned graph in whose place it is."""
        own = {name: array for name, array in feeds.items() if name in session.inputs}
        wanted = {name: output for name, output in outputs.items() if name in session.outputs}
        begun = time.perf_counter()
        key = id(session), _digest(own)
        if key not in self._made:
            if id(session) not in self._warm:
                self._warm.add(id(session))
                for _ in range(WARM_UPS):
                    self.inner.run(session, own, wanted)()
            start = time.perf_counter()
            made = self.inner.run(session, own, wanted)()
            _wait_for(made)
            # With the session, whose id must not be another's while this is remembered.
            self._made[key] = session, made, time.perf_counter() - start
        _, rows, seconds = self._made[key]
        self.spared += seconds - (time.perf_counter() - begun)
        return lambda: rows

    def rows(self, array: Rows) -> Rows:
        """As of the inner space."""
        return self.inner.rows(array)

    def gather(
        self, parts: Sequence[Part], source: npt.NDArray[np.int64], digest: Callable[[], bytes]
    ) -> Rows:
        """As of the inner space."""
        return self.inner.gather(parts, source, digest)

    def embed(
        self,
        session: Session,
        feeds: Mapping[str, Array],
        name: str,
        rows: tuple[npt.NDArray[np.bool_], Sequence[Rows], int],
    ) -> Rows:
        """As of the inner space."""
        return self.inner.embed(session, feeds, name, rows)


class LoadedBundle:
    """A bundle with all that is open of it: the runtime's generator, and encoders that remember.

    Not to be used from two threads at once.
    """

    def __init__(self, bundle: Bundle, backend: str, threads: int | None, work: Path) -> None:
        """Open nothing yet; graphs made on the way go to `work`.

        Raises:
            BackendError: the backend is unknown or not installed.
            BundleError: the tokenizer is missing or damaged.
        """
        self.generator = Generator(bundle, backend, threads, NO_REUSE)
        self.manifest = bundle.manifest
        self.space = RememberingSpace(space_of(self.generator.backend))
        self.warm: set[tuple[object, ...]] = set()
        self._work = work
        self._newline = bundle.constant(IMAGE_NEWLINE)
        self._made = Scorers(bundle)
        self._scorers: dict[Scoring, Session] = {}

    def whole(self, scoring: Scoring | None) -> VisionEncoder:
        """The encoder for host selectors; scores are the bundle's, or those of another layer or aggregation.

        Raises:
            RunError: tokens cannot be scored so.
            BackendError: the backend refuses the graph.
        """
        if scoring is None:
            return VisionEncoder(self.generator.session, self.manifest, self._newline, self.space)
        scorer = self._scorer(scoring)

        def session(graph: str) -> Session:
            return scorer if graph == contract.VISION_ENCODER_FOPRU else self.generator.session(graph)

        return VisionEncoder(session, self.manifest, self._newline, self.space)

    def only(self, image: PreparedImage, kept: npt.NDArray[np.int64], encoder: VisionEncoder) -> EncodedImage:
        """An image of one unit with these tokens of it, int64 [K] ascending."""
        whole = encoder.encode_unpruned([image])[0]
        prefix = self.manifest.layout.prefix_tokens
        policy = newline_policy(image.plan, len(kept), self.manifest.pruning)
        assembly = assemble(image.plan, [kept], prefix, policy)
        rows = np.concatenate([np.arange(prefix), prefix + kept])
        features = self.space.gather([(whole.features, rows)], assembly.source, lambda: kept.tobytes())
        return EncodedImage(image.plan, features, assembly, (kept,), None)

    def visual(self, plan: ImagePlan) -> int:
        """Visual tokens of an unpruned image, newlines included, prefix rows not."""
        return plan.placeholders - self.manifest.layout.prefix_tokens * len(plan.units)

    def _scorer(self, scoring: Scoring) -> Session:
        """The session of a scoring graph; the one that was not needed for longest makes room."""
        session = self._scorers.pop(scoring, None)
        if session is None:
            while len(self._scorers) >= MOST_SCORERS:
                self._scorers.pop(next(iter(self._scorers)))
            with self._made.graph(scoring, self._work) as path:
                session = self.generator.backend.open(path)
        self._scorers[scoring] = session
        return session


def _digest(feeds: Mapping[str, Array]) -> bytes:
    digest = hashlib.blake2b()
    for name, array in feeds.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _wait_for(rows: Mapping[str, Rows]) -> None:
    """A device may still be computing what stays on it; a number of it can be read when it is done."""
    for value in rows.values():
        if isinstance(value, DeviceRows):
            np.asarray(value[0][:1])
