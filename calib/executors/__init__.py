"""Where samples are measured: in this process, in several, or on a Ray cluster."""

from calib.executors.base import Executor, Runner, RunnerFactory, Work, WorkerError
from calib.executors.make import make_executor

__all__ = ["Executor", "Runner", "RunnerFactory", "Work", "WorkerError", "make_executor"]
