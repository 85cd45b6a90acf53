"""From options to an executor."""

from __future__ import annotations

from calib.errors import OptionError
from calib.executors.base import RunnerFactory, sample_runner
from calib.executors.inprocess import InProcessExecutor
from calib.executors.processes import ProcessExecutor
from calib.executors.ray_cluster import RayExecutor
from calib.executors.team import TeamExecutor

__all__ = ["make_executor"]


def make_executor(
    workers: int | None, ray: str | None, runner: RunnerFactory = sample_runner
) -> TeamExecutor:
    """The executor of `--workers` and `--ray`; a `with` block ends its workers.

    Args:
        workers: how many; None: one, or on Ray as many as the cluster has cores for. One without Ray is
            this process.
        ray: address of a cluster, as `ray.init` takes it: `auto`, `host:6379`, `ray://host:10001`, or `local`
            to start one here.
        runner: what each worker makes from the spec.

    Raises:
        OptionError: workers is below 1.
    """
    if workers is not None and workers < 1:
        raise OptionError(f"workers is {workers}: give at least 1")
    if ray is not None:
        return RayExecutor(ray, workers, runner)
    if workers is None or workers == 1:
        return InProcessExecutor(runner)
    return ProcessExecutor(workers, runner)
