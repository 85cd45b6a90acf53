"""Other people's engines on the same decoder, weights, prompts and threads as ours: `python -m bench.peers`.

One file per engine; what an engine has to offer is in `bench.peers.base`. All of them are optional packages.
"""

__all__: list[str] = []
