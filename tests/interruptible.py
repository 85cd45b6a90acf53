"""How a test starts a program that it will interrupt.

What a shell starts in the background is deaf to Ctrl-C, as are its children: a program whose tests run there
would never stop. `env` mends that, and becomes the program, with its process id.
"""

from __future__ import annotations

__all__ = ["INTERRUPTIBLE"]

INTERRUPTIBLE = ("env", "--default-signal=INT")
