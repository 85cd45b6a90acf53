"""What a device report holds, field by field: `report.json` is this (docs/device_report.schema.json)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runtime.decode import decode, encode

__all__ = [
    "FORMAT",
    "BackendRecord",
    "BundleRecord",
    "Level",
    "Loop",
    "Machine",
    "Memory",
    "Refusal",
    "Report",
    "Stage",
]

FORMAT = 1


@dataclass(frozen=True)
class Machine:
    """The device; None or empty where it does not say.

    Attributes:
        model: of the board, else the processor.
        jetpack, l4t: of a Jetson.
        power_mode: as `nvpmodel -q` names it.
        memory: bytes by what they are: `total`, `available`, `swap`, `cma`, `cma_free`, `gpu`.
        versions: of packages and libraries.
        temperatures: degrees Celsius by sensor, when the report began.
    """

    model: str
    system: str
    cores: int
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    jetpack: str | None
    l4t: str | None
    cuda: str | None
    tensorrt: str | None
    power_mode: str | None
    memory: dict[str, int]
    versions: dict[str, str]
    temperatures: dict[str, float]


@dataclass(frozen=True)
class BundleRecord:
    """Which bundle: `sha256` is of its bundle.json, which holds those of all files."""

    name: str
    family: str
    architecture: str
    sha256: str
    nbytes: int
    default_ratio: float | None
    precisions: dict[str, str]


@dataclass(frozen=True)
class Memory:
    """Bytes at one moment; None where the system does not tell.

    `rss`, `peak_rss` and `buffers` are of this process: the last are what the runtime itself holds on the
    device, where the backend counts it (tensorrt). `device` is in use on the GPU by everybody, on a Jetson
    with what the CPU uses: what a process has of it, Linux tells root alone there.
    """

    rss: int | None
    peak_rss: int | None
    available: int | None
    device: int | None
    buffers: int | None = None


@dataclass(frozen=True)
class Stage:
    """Seconds of one stage over the measured runs."""

    median: float
    p95: float
    least: float


@dataclass(frozen=True)
class Level:
    """One ratio: the same request `runs` times after `warmups` that are not counted.

    Attributes:
        ratio: fraction kept that was asked for.
        visual_before, visual_after: visual tokens of the prompt.
        stages: `preprocess`, `vision`, `embed`, `prefill`, `ttft` (their sum), `decode`.
        first: seconds of the first request, with the opening of graphs.
        load: of these, what the opening took.
        tokens_per_second: of decoding, median.
        kv, kv_unpruned: bytes of the KV cache, and of the one without pruning.
        same_answer: whether every run gave the same tokens.
    """

    ratio: float
    runs: int
    warmups: int
    visual_before: int
    visual_after: int
    prompt_tokens: int
    new_tokens: int
    stages: dict[str, Stage]
    first: float
    load: float
    tokens_per_second: float | None
    kv: int
    kv_unpruned: int
    same_answer: bool
    memory: Memory


@dataclass(frozen=True)
class Loop:
    """Many requests with changing ratios.

    Growth is in bytes. `growth_rss` and `growth_buffers` are of this process: the most in the second half of
    the requests, less the most in the first half. `growth_device` is of the whole device, which other
    processes share, so it is a rise that goes on (`measure.steady_growth`); `most_device` is the most of all.
    `changed_answers` counts requests that answered otherwise than the first with the same ratio did.
    """

    requests: int
    ratios: int
    seconds: float
    growth_rss: int | None
    growth_buffers: int | None
    growth_device: int | None
    most_device: int | None
    allowed_growth: int
    changed_answers: int
    memory: Memory

    @property
    def ok(self) -> bool:
        """Whether nothing grew beyond what is allowed, and no answer changed."""
        grown = (self.growth_rss, self.growth_buffers, self.growth_device)
        return not self.changed_answers and all((each or 0) <= self.allowed_growth for each in grown)


@dataclass(frozen=True)
class Refusal:
    """What could not be run, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class BackendRecord:
    """One backend. `parity` is what `python -m runtime.check --json` prints of its stages, `kept_agreement`
    the share of the reference's kept tokens that were kept here too; both None where that could not run.
    `placement` counts nodes by graph, provider and operator, where the engine tells."""

    name: str
    graphs: tuple[str, ...] = ()
    placement: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    levels: tuple[Level, ...] = ()
    parity: dict[str, Any] | None = None
    kept_agreement: float | None = None
    loop: Loop | None = None
    refusals: tuple[Refusal, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything ran and agreed."""
        parity = self.parity is not None and bool(self.parity["ok"])
        looped = self.loop is None or self.loop.ok
        return not self.refusals and parity and looped and all(level.same_answer for level in self.levels)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        plain: dict[str, Any] = encode(self)
        return plain

    @classmethod
    def from_dict(cls, data: object, where: str) -> BackendRecord:
        """The inverse of `to_dict`; raises BundleError where it is something else."""
        record: BackendRecord = decode(cls, data, where)
        return record


@dataclass(frozen=True)
class Report:
    """The whole; `not_run` are backends that were not there or not asked for."""

    made: str
    command: str
    machine: Machine
    bundle: BundleRecord
    prompt: str
    backends: tuple[BackendRecord, ...]
    not_run: tuple[Refusal, ...]
    format: int = FORMAT

    @property
    def ok(self) -> bool:
        """Whether at least one backend ran, and everything agreed."""
        return bool(self.backends) and all(backend.ok for backend in self.backends)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        plain: dict[str, Any] = {"ok": self.ok, **encode(self)}
        return plain
