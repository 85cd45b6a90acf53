"""Whole vision-language models, by our runtime and by others: time, memory and KV cache at each ratio.

`engines` says what is compared, `rig` opens each engine in a process of its own, `figures` is what came out.
"""
