"""The joint choice of ratio and precision: see `calib.joint`, the command."""

__all__: list[str] = []
