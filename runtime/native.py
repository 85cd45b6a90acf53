"""`Generator(bundle, backend="native")`: the C++ runtime behind the Python interface.

Images, tokenizer, graphs and sampling are all C++ (`runtime/cpp`), so Pillow and tokenizers are not needed,
nor onnxruntime's Python side: the library loads libonnxruntime by itself. The extension module
`_fopru_native` is made by `make cpp-python`, and lies beside this file or anywhere on the path.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from runtime.backend import NATIVE_BACKENDS
from runtime.bundle import Bundle
from runtime.errors import BackendError, ImageError, RequestError
from runtime.generator import Generator as PythonGenerator
from runtime.preprocess import ImageSource, PreparedImage, load_image
from runtime.request import Request
from runtime.result import Result, Timings
from runtime.reuse import Reuse
from runtime.stream import Stream
from runtime.vision import EncodedImage

__all__ = ["NativeGenerator", "load_native", "result_of"]

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
        self.native = module.Generator(module.open_bundle(str(bundle.path), verify=False), options)

    def stream(self, request: Request, encoded: Sequence[EncodedImage] = ()) -> Stream:
        """As the base; `encoded` of Python cannot be used, which `Reuse` makes up for."""
        if encoded:
            raise RequestError('visual tokens of another backend cannot go into "native": leave encoded out')
        return Stream(_NativeRun(self, request))

    def encode(self, request: Request) -> Any:
        """Visual tokens of a request's images, pruned as it says: an object with `features` float32 [rows, D]
        and `kept(image)` int64 [K]."""
        return self.native.encode(self.fields_of(request))

    def fields_of(self, request: Request) -> dict[str, Any]:
        """A request as the extension module takes it, its images opened."""
        record = {field.name: getattr(request, field.name) for field in fields(request)}
        record["images"] = [self._image(image) for image in request.images]
        record["history"] = [
            (turn.prompt, [self._image(image) for image in turn.images], turn.answer)
            for turn in request.history
        ]
        return record

    def warmup(self, request: Request) -> None:
        self.native.warmup(self.fields_of(request))

    @property
    def batches(self) -> bool:
        return False

    def forget(self) -> None:
        self.native.forget()

    def release(self, graph: str) -> None:
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
            return self.native.image_from_file(str(source))
        if isinstance(source, np.ndarray):
            return self.native.image_from_array(_checked(source))
        return self.native.image_from_array(np.asarray(load_image(source)))


class _NativeRun:
    """The part of `AnswerRun` that a `Stream` needs: pieces from a thread that is in C++."""

    prepared: tuple[PreparedImage, ...] = ()
    encoded: tuple[EncodedImage, ...] = ()

    def __init__(self, generator: NativeGenerator, request: Request) -> None:
        self._generator, self._request = generator, request

    def pieces(self, cancelled: Callable[[], bool]) -> Generator[str, None, Result]:
        """Yield pieces of text, return the result."""
        told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        answer: list[str | BaseException] = []
        fields_ = self._generator.fields_of(self._request)
        native, abandoned = self._generator.native, threading.Event()

        def on_text(piece: str) -> bool:
            told.put(piece)
            return abandoned.is_set() or cancelled()

        def work() -> None:
            try:
                answer.append(native.generate(fields_, on_text))
            except BaseException as error:  # raised again where the stream is read
                answer.append(error)
            finally:
                told.put(None)

        thread = threading.Thread(target=work, name="fopru-native", daemon=True)
        thread.start()
        try:
            yield from _until_none(told, lambda: native.cancel() if cancelled() else None)
        except BaseException:  # the reader is gone, or Ctrl-C came: do not wait for the whole answer
            abandoned.set()
            native.cancel()
            raise
        finally:
            thread.join()
        if isinstance(answer[0], BaseException):
            raise answer[0]
        return result_of(json.loads(answer[0]))


def _until_none(told: queue.SimpleQueue[str | None], ask: Callable[[], None]) -> Iterable[str]:
    """Pieces as they come; `ask` now and then, because a prompt may take long before there is one."""
    while True:
        try:
            piece = told.get(timeout=0.05)
        except queue.Empty:
            ask()
            continue
        if piece is None:
            return
        yield piece
        ask()


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


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value


def _checked(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        raise ImageError(
            f"an image array is {array.dtype} {list(array.shape)}, expected uint8 [H, W] or [H, W, 1, 3 or 4]"
        )
    return np.ascontiguousarray(array)
