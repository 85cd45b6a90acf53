"""The joint choice of ratio and precision: what each costs, and which one to take.

See `calib.joint`, the command.
"""
