"""A runner without a model: what it answers depends on sample and setting. Prompts are its orders."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calib.data.sample import Data, Sample
from calib.errors import RunError
from calib.measure.spec import RunnerSpec
from calib.record import Record
from calib.settings import REFERENCE, Setting
from runtime.errors import BackendError, RequestError

SETTINGS = (
    REFERENCE,
    Setting("rank", 0.5),
    Setting("rank", 0.25),
    Setting("rank", 0.25, layer=3),
    Setting("cls", 0.25, aggregation="cls"),
)


@dataclass(frozen=True)
class OrderlyRunner:
    """Obeys the sample's prompt:

    `refuse`, `break`, `mix up`: raises as the runtime does, raises as a fault does, answers something else;
    `die`: is killed; `die once`: is killed if `spec.work` has no file of the sample's name yet;
    `leave`: ends its process with status 3;
    `gate`: waits until `spec.work` has a file `go`.
    Leaves in `spec.work` a file `<sample>.<process>` for every call.
    """

    spec: RunnerSpec

    def run(self, sample: Sample, settings: Sequence[Setting]) -> list[Record]:
        """One record per setting."""
        known = list(self.spec.work.glob(f"{sample.name}.*"))
        (self.spec.work / f"{sample.name}.{os.getpid()}").touch()
        if sample.prompt == "refuse":
            raise RequestError("the prompt is refused: ask something else")
        if sample.prompt == "break":
            raise ZeroDivisionError("nothing by nothing")
        if sample.prompt == "die" or (sample.prompt == "die once" and not known):
            os.kill(os.getpid(), signal.SIGKILL)
        if sample.prompt == "leave":
            os._exit(3)
        while sample.prompt == "gate" and not (self.spec.work / "go").exists():
            time.sleep(0.01)
        records = [self._record(sample, setting) for setting in settings]
        return records[::-1] if sample.prompt == "mix up" else records

    def _record(self, sample: Sample, setting: Setting) -> Record:
        seed = hashlib.sha256(f"{sample.digest} {setting}".encode()).digest()
        return Record(
            sample.name,
            setting,
            before=196,
            after=int(196 * setting.ratio),
            kept=tuple(seed[:8]),
            tokens=tuple(seed[8:12]),
            text=f"{seed.hex()[:6]} ×",
            same_first=seed[0] % 2 == 0,
            same_answer=seed[1] % 2 == 0,
            divergence=int.from_bytes(seed[:6], "big") / 7,
            correct=None if seed[2] % 3 == 0 else seed[2] % 3 == 1,
            vision=time.perf_counter(),
            prefill=time.perf_counter(),
            ttft=time.perf_counter(),
            kv_bytes=self.spec.threads or 0,
        )


def no_backend(spec: RunnerSpec) -> OrderlyRunner:
    """A runner that cannot be made."""
    raise BackendError(f"backend {spec.backend!r} is not there: install it")


def broken(spec: RunnerSpec) -> OrderlyRunner:
    """A runner with a fault in its making."""
    raise KeyError("threads")


def stillborn(spec: RunnerSpec) -> OrderlyRunner:
    """A runner whose making kills the process."""
    (spec.work / f"start.{os.getpid()}").touch()
    os.kill(os.getpid(), signal.SIGKILL)
    raise RunError("unreachable")


def the_spec(work: Path, threads: int | None = None) -> RunnerSpec:
    """A spec whose `work` is the folder of traces."""
    work.mkdir(exist_ok=True)
    return RunnerSpec((("", Path("bundle")),), "onnxruntime", threads, 8, 0, work)


def sample(name: str, prompt: str = "answer") -> Sample:
    """A sample whose picture is never opened."""
    digest = hashlib.sha256(f"{name} {prompt}".encode()).hexdigest()
    return Sample(name, (b"picture",), prompt, None, digest, digest)


def samples(*prompts: str) -> Data:
    """A sample s0, s1, ... for each prompt."""
    return Data("double", tuple(sample(f"s{number}", prompt) for number, prompt in enumerate(prompts)))
