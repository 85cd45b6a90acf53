"""One deserialised engine, run through execution contexts that share one block of scratch memory.

A context belongs to one optimisation profile, and is made when a shape first needs it. Runs that are recorded
have contexts of their own: a recorded run is only valid as long as its context keeps its shapes.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from runtime.backend import Array, View
from runtime.dtypes import BFLOAT16, storage_dtype
from runtime.errors import BackendError
from runtime.kv_cache import ALIGNMENT
from runtime.tensorrt.buffers import Buffer, Pool, address_of, elements_of
from runtime.tensorrt.cuda import Cuda

__all__ = ["Context", "Engine", "Messages", "Scratch", "TrtBinding", "TrtSession", "upload"]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": BFLOAT16,
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}

_MOST_WORDS = 300
_HOST_VALUES = 256  # bytes: shape tensors are a few numbers


class Messages:
    """The last errors of TensorRT, which returns False and tells the reason to its logger."""

    def __init__(self) -> None:
        """Start with none."""
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Note an error."""
        self._lines.append(" ".join(line.split()))

    def take(self) -> str:
        """What was noted since the last call, for the end of a sentence."""
        text, self._lines = " ".join(self._lines)[:_MOST_WORDS], []
        return text or "TensorRT gave no reason"


class Scratch:
    """Device memory for the intermediate results of one run, used by all contexts in turn: as much as the
    largest of them needs."""

    def __init__(self, pool: Pool) -> None:
        """Hold none yet."""
        self._pool = pool
        self._buffer: Buffer | None = None
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()

    @property
    def address(self) -> int:
        """Of the block, 0 where none was needed; another one after it has grown."""
        return 0 if self._buffer is None else self._buffer.address

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return 0 if self._buffer is None else self._buffer.size

    def attach(self, context: Context, nbytes: int) -> None:
        """Let a context use the block, which grows for it if need be."""
        self._contexts.add(context)
        if nbytes > self.nbytes:
            before = self.nbytes
            self._buffer = None  # back to the pool before the larger one is taken
            try:
                self._buffer = self._pool.take_buffer(nbytes, "int8")
            except BackendError:
                self._contexts.discard(context)
                self._buffer = self._pool.take_buffer(before, "int8") if before else None
                raise
            finally:
                for other in self._contexts:
                    other.use_scratch(self.address, self.nbytes)
        elif self.nbytes:
            context.use_scratch(self.address, self.nbytes)


class Engine:
    """An engine and what TensorRT says of its tensors."""

    def __init__(self, trt: Any, engine: Any, name: str, messages: Messages) -> None:
        """Read names, shapes and dtypes; `name` is for messages.

        Raises:
            BackendError: a tensor has a dtype that the runtime does not know.
        """
        self.trt, self.engine, self.name, self.messages = trt, engine, name, messages
        names = [str(engine.get_tensor_name(place)) for place in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.inputs = {own: _dims(engine.get_tensor_shape(own)) for own in inputs}
        self.outputs = {own: _dims(engine.get_tensor_shape(own)) for own in names if own not in inputs}
        self.dtypes = {own: self._dtype(own) for own in names}
        # These are read on the host, when a run is enqueued: they size other tensors.
        self.on_host = {own for own in inputs if engine.is_shape_inference_io(own)}
        self.profiles = [self._profile(index) for index in range(engine.num_optimization_profiles)]
        self.values = [self._values(index) for index in range(engine.num_optimization_profiles)]
        # The tightest first: a decoding step fits the prefill profile, too.
        self._order = sorted(range(len(self.profiles)), key=self._volume)

    @property
    def greatest(self) -> dict[str, tuple[int, ...]]:
        """Dims of every input that some profile takes at most."""
        return {
            name: tuple(max(dims) for dims in zip(*(own[name][1] for own in self.profiles), strict=True))
            for name in self.inputs
        }

    def profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The tightest profile that takes these input shapes.

        Raises:
            BackendError: none does.
        """
        for index in self._order:
            if all(self._fits(name, shape, index) for name, shape in shapes.items()):
                return index
        for name, shape in shapes.items():
            if not any(self._fits(name, shape, index) for index in self._order):
                ranges = " or ".join(
                    f"{list(least)}..{list(most)}" for least, most in (own[name] for own in self.profiles)
                )
                raise BackendError(
                    f"the engine of {self.name} was not built for {name} of shape {list(shape)}, only for "
                    f"{ranges}: ask for less, or build engines for more with `python -m runtime.engine`"
                )
        given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise BackendError(
            f"the engine of {self.name} was not built for these shapes together ({given}): ask for less, or "
            "build engines for more with `python -m runtime.engine`"
        )

    def check_values(self, name: str, values: Array, profile: int) -> None:
        """Refuse values of a shape tensor that a profile does not take.

        Raises:
            BackendError: they are too small or too large.
        """
        least, most = self.values[profile].get(name, ((), ()))
        if any(not low <= value <= high for low, value, high in zip(least, values.flat, most, strict=False)):
            raise BackendError(
                f"the engine of {self.name} was not built for {name} {values.tolist()}, only for "
                f"{list(least)}..{list(most)}: ask for less with the graph's own selector, or build engines "
                "for more with `python -m runtime.engine`"
            )

    def refuse(self, what: str) -> BackendError:
        """The error of a call that TensorRT refused."""
        return BackendError(f"tensorrt {what} {self.name}: {self.messages.take()}")

    def _fits(self, name: str, shape: tuple[int, ...], index: int) -> bool:
        least, most = self.profiles[index][name]
        return len(least) == len(shape) and all(
            low <= dim <= high for low, dim, high in zip(least, shape, most, strict=True)
        )

    def _profile(self, index: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Least and greatest dims of every input."""
        found = {}
        for name, dims in self.inputs.items():
            if None in dims:
                least, _, most = self.engine.get_tensor_profile_shape(name, index)
                found[name] = tuple(least), tuple(most)
            else:
                fixed = tuple(dim for dim in dims if dim is not None)
                found[name] = fixed, fixed
        return found

    def _values(self, index: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Least and greatest content of every shape tensor, where the profile names one."""
        found = {}
        for name in self.on_host:
            # The binding takes the profile first, whatever its documentation calls the two.
            points = self.engine.get_tensor_profile_values(index, name)
            if points:
                found[name] = tuple(map(int, points[0])), tuple(map(int, points[-1]))
        return found

    def _volume(self, index: int) -> int:
        return sum(elements_of(most) for _, most in self.profiles[index].values())

    def _dtype(self, name: str) -> str:
        found = str(self.engine.get_tensor_dtype(name)).rpartition(".")[2]
        if found not in _DTYPES:
            raise BackendError(
                f"tensor {name} of {self.name} is {found}, expected one of {', '.join(_DTYPES)}: build the "
                "bundle with inputs and outputs of these"
            )
        return _DTYPES[found]


class Context:
    """One execution context with one profile. Remembers what is bound, and passes on only what changes."""

    def __init__(self, engine: Engine, profile: int, cuda: Cuda, scratch: Scratch) -> None:
        """Make it without memory of its own, and let it use the scratch block.

        Raises:
            BackendError: TensorRT refuses.
        """
        self._engine, self._cuda, self._profile = engine, cuda, profile
        trt = engine.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = engine.engine.create_execution_context(strategy)
        if self._context is None:
            raise engine.refuse("cannot make an execution context for")
        try:  # it returns True, or raises RuntimeError
            taken = self._context.set_optimization_profile_async(profile, cuda.stream)
        except RuntimeError:
            taken = False
        if not taken:
            raise engine.refuse(f"cannot take profile {profile} of")
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}
        scratch.attach(self, int(engine.engine.device_memory_size_v2))

    def use_scratch(self, address: int, nbytes: int) -> None:
        """Keep intermediate results there from now on."""
        self._context.set_device_memory(address, nbytes)

    def bind(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> None:
        """Bind all tensors of a run.

        Raises:
            BackendError: TensorRT refuses a shape or an address, or an output has another size.
        """
        engine, context = self._engine, self._context
        for name, view in inputs.items():
            if name in engine.on_host:
                address = self._host_address(name, view)
            else:
                address = _aligned(engine, name, view)
            wanted = address, view.shape
            # What is on the host may have new values at the old address.
            if self._bound.get(name) == wanted and name not in engine.on_host:
                continue
            if not (context.set_input_shape(name, view.shape) and context.set_tensor_address(name, address)):
                raise engine.refuse(f"does not take {name} of shape {list(view.shape)} in")
            self._bound[name] = wanted
        for name, view in outputs.items():
            got = tuple(context.get_tensor_shape(name))
            if got != view.shape:
                raise BackendError(
                    f"tensorrt failed in {engine.name}: {name} comes out as {list(got)}, but a view of "
                    f"{list(view.shape)} is bound"
                )
            address = _aligned(engine, name, view)
            if self._bound.get(name) == (address, view.shape):
                continue
            if not context.set_tensor_address(name, address):
                raise engine.refuse(f"does not take an address for {name} in")
            self._bound[name] = address, view.shape

    def _host_address(self, name: str, view: View) -> int:
        """Of values that are read when a run is enqueued."""
        engine, size = self._engine, elements_of(view.shape)
        address_of(view)
        host = view.buffer.host
        if host is None:
            raise BackendError(
                f"{name} of {engine.name} sizes other tensors and is read on the host, but its values are on "
                "the device: bind what `upload` returned"
            )
        engine.check_values(name, host[view.offset : view.offset + size], self._profile)
        return int(host.ctypes.data) + view.offset * int(host.itemsize)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of an output for the inputs that are bound."""
        return tuple(self._context.get_tensor_shape(name))

    def enqueue(self) -> None:
        """Run after what is on the stream."""
        if not self._context.execute_async_v3(self._cuda.stream):
            raise self._engine.refuse("failed in")


class TrtSession:
    """One engine. Not to be run from two threads at once."""

    def __init__(self, engine: Engine, cuda: Cuda, pool: Pool, scratch: Scratch) -> None:
        """Use an engine; contexts are made when a shape first needs one."""
        self.engine = engine
        self._cuda, self._pool, self._scratch = cuda, pool, scratch
        self._contexts: dict[int, Context] = {}
        self.recorded: OrderedDict[object, Callable[[], None]] = OrderedDict()
        """Recorded runs by what they are bound to (see `graph_capture`)."""
        self.inputs, self.outputs, self.greatest = engine.inputs, engine.outputs, engine.greatest

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run with host arrays, copied to the device and back."""
        absent = [name for name in self.inputs if name not in feeds]
        if absent:
            raise BackendError(f"tensorrt cannot run {self.engine.name} without {', '.join(absent)}")
        unknown = [name for name in feeds if name not in self.inputs]
        if unknown:
            raise self._unknown(unknown[0])
        inputs = {name: upload(self._pool, self._cuda, array) for name, array in feeds.items()}
        context = self.context(inputs)
        context.bind(inputs, {})
        outputs = {}
        for name in self.outputs:
            shape = context.shape_of(name)
            outputs[name] = View(self._pool.allocate(elements_of(shape), self.engine.dtypes[name]), shape)
        self.bind(inputs, outputs).run()
        fetched = {name: self._pool.fetch(view) for name, view in outputs.items()}
        return {name: own.result() for name, own in fetched.items()}

    def bind(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> TrtBinding:
        """Bind device buffers."""
        binding = TrtBinding(self)
        binding.update(inputs, outputs)
        return binding

    def context(self, inputs: Mapping[str, View]) -> Context:
        """The context whose profile takes these shapes."""
        profile = self.engine.profile_for({name: view.shape for name, view in inputs.items()})
        if profile not in self._contexts:
            self._contexts[profile] = Context(self.engine, profile, self._cuda, self._scratch)
        return self._contexts[profile]

    def own_context(self, inputs: Mapping[str, View]) -> Context:
        """A new context for these shapes, for a run that is recorded."""
        profile = self.engine.profile_for({name: view.shape for name, view in inputs.items()})
        return Context(self.engine, profile, self._cuda, self._scratch)

    def check(self, name: str, view: View, role: Mapping[str, Any]) -> None:
        """Refuse a view that cannot be bound to a tensor.

        Raises:
            BackendError: no such tensor, or another dtype; or the view goes past its buffer.
        """
        if name not in role:
            raise self._unknown(name)
        dtype = self.engine.dtypes[name]
        if view.buffer.dtype != storage_dtype(dtype):
            raise BackendError(
                f"{name} of {self.engine.name} is {dtype}, but a buffer of {view.buffer.dtype} is bound: "
                "convert it"
            )
        address_of(view)

    def _unknown(self, name: str) -> BackendError:
        names = ", ".join([*self.inputs, *self.outputs])
        return BackendError(f"{self.engine.name} has no tensor {name}, only {names}")


class TrtBinding:
    """Views for an engine's tensors, which it keeps alive. Many may share a context."""

    def __init__(self, session: TrtSession) -> None:
        """Bind nothing yet."""
        self.session = session
        self.inputs: dict[str, View] = {}
        self.outputs: dict[str, View] = {}

    def update(self, inputs: Mapping[str, View], outputs: Mapping[str, View]) -> None:
        """Bind these tensors anew."""
        for name, view in inputs.items():
            self.session.check(name, view, self.session.inputs)
        for name, view in outputs.items():
            self.session.check(name, view, self.session.outputs)
        self.inputs.update(inputs)
        self.outputs.update(outputs)

    def complete(self) -> None:
        """Refuse a run that lacks a tensor."""
        session = self.session
        wanted = [*session.inputs, *session.outputs]
        absent = [name for name in wanted if name not in self.inputs and name not in self.outputs]
        if absent:
            raise BackendError(
                f"tensorrt cannot run {session.engine.name} without {', '.join(absent)}: bind them"
            )

    def run(self) -> None:
        """Enqueue a run; later work on the same backend sees its outputs."""
        self.complete()
        context = self.session.context(self.inputs)
        context.bind(self.inputs, self.outputs)
        context.enqueue()

    @property
    def places(self) -> tuple[object, ...]:
        """The engine, and address and shape of every tensor: equal places, the same run."""
        both = {**self.inputs, **self.outputs}
        own = tuple((name, address_of(both[name]), both[name].shape) for name in sorted(both))
        return (id(self.session.engine), own)


def upload(pool: Pool, cuda: Cuda, array: Array) -> View:
    """A copy of a host array on the device."""
    flat = np.ascontiguousarray(array)
    buffer = pool.take_buffer(flat.size, flat.dtype.name)
    if flat.size:
        cuda.to_device(buffer.address, int(flat.ctypes.data), flat.nbytes)
    if flat.nbytes <= _HOST_VALUES:
        buffer.host = flat.reshape(-1).copy()
    return View(buffer, array.shape)


def _aligned(engine: Engine, name: str, view: View) -> int:
    """The address of a tensor, which TensorRT documents to be a multiple of 256."""
    address = address_of(view)
    if address % ALIGNMENT:
        raise BackendError(
            f"{name} of {engine.name} begins {address % ALIGNMENT} bytes behind a multiple of {ALIGNMENT}, "
            "where TensorRT takes no tensor: bind a view that begins at one"
        )
    return address


def _dims(shape: Any) -> tuple[int | None, ...]:
    return tuple(None if int(dim) < 0 else int(dim) for dim in shape)
