"""`Generator(bundle, backend="native")`: the C++ runtime behind the Python interface.

Images, tokenizer, graphs and sampling are all C++ (`runtime/cpp`), so Pillow and tokenizers are not needed,
nor onnxruntime's Python side: the library loads libonnxruntime by itself. The extension module
`_fopru_native` is made by `make cpp-python`, and lies beside this file or anywhere on the path.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import os
import queue
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from runtime.backend import NATIVE_BACKENDS
from runtime.bundle import Bundle
from runtime.errors import BackendError, FopruError, ImageError, RequestError
from runtime.generator import Generator as PythonGenerator
from runtime.preprocess import ImageSource, PreparedImage, check_image_array, load_image
from runtime.request import Request
from runtime.result import Result, Timings
from runtime.reuse import Reuse
from runtime.stream import Stream
from runtime.vision import EncodedImage

__all__ = ["NativeGenerator", "load_native", "result_of"]

_MOST_INTEGER, _MOST_SEED = 2**63 - 1, 2**64 - 1
_STAGES = "is a stage of its own in C++: use `encode`, `generate` or `stream`, or another backend"


def load_native() -> Any:
    """The extension module.

    Raises:
        BackendError: it has not been built.
    """
    for name in ("runtime._fopru_native", "_fopru_native"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            raise BackendError(
                f"the C++ runtime cannot be imported ({error}): build it again with `make cpp-python`"
            ) from error
    raise BackendError("the C++ runtime has not been built for this Python: run `make cpp-python`")


class NativeGenerator(PythonGenerator):
    """Answers requests as its base does, token for token, in C++.

    `encode` and the arrays of `native` are its stages; those of the base that hand Python objects from one to
    the next raise. `generate_batch` answers one request after the other. Not to be used from two threads at
    once; while C++ works, other Python threads run.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "native",
        threads: int | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        """As the base; `backend` is one of `NATIVE_BACKENDS`."""
        if backend not in NATIVE_BACKENDS:
            raise BackendError(f'backend is "{backend}", expected one of {", ".join(NATIVE_BACKENDS)}')
        self.bundle, self.manifest = bundle, bundle.manifest
        reuse = reuse or Reuse()
        options = {
            "backend": NATIVE_BACKENDS[backend],
            "threads": threads or 0,
            "engines": "",
            "reuse_features": reuse.features,
            "reuse_prefix": reuse.prefix,
        }
        module = load_native()
        _name_onnxruntime()
        # The files were checked when the bundle was loaded.
        self.turn = threading.Lock()  # of whoever is in `native` with more than a look
        self.native = module.Generator(module.open_bundle(str(bundle.path), verify=False), options)

    def stream(self, request: Request, encoded: Sequence[EncodedImage] = ()) -> Stream:
        """As the base; `encoded` of Python cannot be used, which `Reuse` makes up for. An answer begun before
        another one has ended waits for it."""
        if encoded:
            raise RequestError('visual tokens of another backend cannot go into "native": leave encoded out')
        return Stream(_NativeRun(self, request))

    def encode(self, request: Request) -> Any:
        """Visual tokens of a request's images, pruned as it says: an object with `features` float32 [rows, D]
        and `kept(image)` int64 [K]."""
        fields_ = self.fields_of(request)
        with self.turn:
            return self.native.encode(fields_)

    def fields_of(self, request: Request) -> dict[str, Any]:
        """A request as the extension module takes it, its images opened."""
        record = {field.name: getattr(request, field.name) for field in fields(request)}
        _check_for_c(request)
        for name in ("tokens", "max_new_tokens", "top_k"):  # far beyond what any model has
            if record[name] is not None:
                record[name] = max(-_MOST_INTEGER, min(record[name], _MOST_INTEGER))
        record["images"] = [self._image(image) for image in request.images]
        record["history"] = [
            (turn.prompt, [self._image(image) for image in turn.images], turn.answer)
            for turn in request.history
        ]
        return record

    def warmup(self, request: Request) -> None:
        fields_ = self.fields_of(request)
        with self.turn:
            self.native.warmup(fields_)
            text: str = self.native.warning
        if text:
            warnings.warn(text, stacklevel=2)

    @property
    def batches(self) -> bool:
        return False

    def forget(self) -> None:
        with self.turn:
            self.native.forget()

    def release(self, graph: str) -> None:
        with self.turn:
            self.native.release(graph)

    def decode_text(self, ids: Sequence[int]) -> str:
        text: str = self.native.detokenize(np.asarray(ids, np.int64))
        return text

    @property
    def loaded_graphs(self) -> tuple[str, ...]:
        return ()

    @property
    def decoder_graphs(self) -> tuple[str, ...]:
        raise BackendError(f"decoder_graphs {_STAGES}")

    def encode_images(self, *_: Any, **__: Any) -> NoReturn:
        raise BackendError(f"encode_images {_STAGES}")

    def encode_unpruned(self, *_: Any, **__: Any) -> NoReturn:
        raise BackendError(f"encode_unpruned {_STAGES}")

    def decoder_run(self, *_: Any, **__: Any) -> NoReturn:
        raise BackendError(f"decoder_run {_STAGES}")

    def session(self, graph: str) -> NoReturn:
        raise BackendError(f"the session of {graph} {_STAGES}")

    def _image(self, source: ImageSource) -> Any:
        if isinstance(source, (str, Path)):
            _check_text("the image file", str(source), ImageError, "check the path")
            return self.native.image_from_file(str(source))
        if isinstance(source, np.ndarray):
            check_image_array(source)
            return self.native.image_from_array(np.ascontiguousarray(source))
        return self.native.image_from_array(np.asarray(load_image(source)))


class _NativeRun:
    """The part of `AnswerRun` that a `Stream` needs: pieces from a thread that is in C++."""

    prepared: tuple[PreparedImage, ...] = ()
    encoded: tuple[EncodedImage, ...] = ()

    def __init__(self, generator: NativeGenerator, request: Request) -> None:
        self._generator, self._request = generator, request

    def pieces(self, cancelled: Callable[[], bool]) -> Generator[str, None, Result]:
        """Yield pieces of text, return the result."""
        answer = _Answer(self._generator, self._generator.fields_of(self._request), cancelled)
        try:
            yield from answer.pieces()
        finally:  # Ctrl-C, too: it must not wait for the rest of the answer
            answer.leave()
        result = result_of(json.loads(answer.result()))
        if answer.warning:
            warnings.warn(answer.warning, stacklevel=2)
        return result


class _Answer:
    """An answer from a thread that is in C++; it begins when those before it have ended.

    Text is not waited for: the thread goes on while nobody reads, so a stream that is read in part is in
    nobody's way for longer than its answer takes.
    """

    def __init__(
        self, generator: NativeGenerator, fields_: dict[str, Any], cancelled: Callable[[], bool]
    ) -> None:
        self._native, self._turn = generator.native, generator.turn
        self._fields, self._cancelled = fields_, cancelled
        self._told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.warning = ""  # why it was slower than it could be, after `leave`
        self._left = False  # nobody reads on
        self._running, self._border = False, threading.Lock()
        self._found: list[str | BaseException] = []
        # A thread that still is in C++ when the interpreter has ended would end the process with a crash.
        atexit.register(self.leave)
        self._thread = threading.Thread(target=self._work, name="fopru-native", daemon=True)
        self._thread.start()

    def pieces(self) -> Iterator[str]:
        """As they come; a cancellation is looked for now and then, as a prompt may take long."""
        while True:
            try:
                piece = self._told.get(timeout=0.05)
            except queue.Empty:
                self._pass_on()
                continue
            if piece is None:
                return
            yield piece
            self._pass_on()

    def leave(self) -> None:
        """Read no more: an answer under way ends before its next token."""
        self._left = True
        while self._thread.is_alive():
            self._pass_on()
            self._thread.join(timeout=0.05)
        atexit.unregister(self.leave)

    def result(self) -> str:
        """JSON, after `leave`.

        Raises:
            FopruError: what C++ refused.
        """
        (found,) = self._found
        if isinstance(found, BaseException):
            raise found
        return found

    def _ends(self) -> bool:
        return self._left or self._cancelled()

    def _pass_on(self) -> None:
        # Not an answer that has begun behind this one.
        with self._border:
            if self._running and self._ends():
                self._native.cancel()

    def _tell(self, piece: str) -> bool:
        self._told.put(piece)
        return self._ends()

    def _work(self) -> None:
        try:
            with self._turn:
                if self._left:
                    return
                with self._border:
                    self._running = True
                try:
                    self._found.append(self._native.generate(self._fields, self._tell))
                    self.warning = self._native.warning  # the next answer writes another
                finally:
                    with self._border:
                        self._running = False
        except BaseException as error:  # raised again where the stream is read
            self._found.append(error)
        finally:
            self._told.put(None)


def result_of(record: dict[str, Any]) -> Result:
    """A result from the JSON of the C++ runtime, whose keys are those of `Result.to_dict`."""
    own = {field.name for field in fields(Result)}
    values = {key: _tuple(value) for key, value in record.items() if key in own}
    times = {field.name for field in fields(Timings)}
    values["timings"] = Timings(**{key: value for key, value in record["timings"].items() if key in times})
    return Result(**values)


def _name_onnxruntime() -> None:
    """Let the C++ runtime load the library of the installed package, unless somebody names another one."""
    spec = importlib.util.find_spec("onnxruntime")
    if "FOPRU_ORT_LIB" in os.environ or spec is None or spec.origin is None:
        return
    for library in sorted(Path(spec.origin).parent.glob("capi/libonnxruntime.so*")):
        os.environ["FOPRU_ORT_LIB"] = str(library)


def _check_for_c(request: Request) -> None:
    """Refuse what Python's `Request` allows, but C would read as something else."""
    if request.tokens == 0 and request.all_images:
        raise RequestError("tokens is 0, expected at least 1, or None for the bundle's default")
    if request.seed > _MOST_SEED:
        raise RequestError(f"seed is {request.seed}, expected one below 2^64 with the C++ runtime")
    for text in (request.prompt, *(part for turn in request.history for part in (turn.prompt, turn.answer))):
        _check_text("the prompt", text, RequestError, "leave it out")
    for text in request.stop:
        _check_text("the stop string", text, RequestError, "leave it out")


def _check_text(name: str, text: str, error: type[FopruError], way_out: str) -> None:
    """Refuse the character 0, with which strings of C end."""
    place = text.find("\0")
    if place >= 0:
        raise error(f"{name} has the character 0 at {place}, where texts of the C++ runtime end: {way_out}")


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value
