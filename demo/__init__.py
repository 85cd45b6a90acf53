"""The bundled checkpoint: a small LLaVA really trained on handwritten digits over photographs.

Modules, in the order data flows through them:

- ``scenes``        digits over photographs, with the ink of each patch (numpy only)
- ``questions``     questions about a scene, with exact-string answers
- ``model``         tokenizer, processor and configuration of the checkpoint
- ``oracle``        FoPru on the PyTorch model, for training and for measuring
- ``pretrain``      stage one: the vision tower
- ``tune``          stage two: projector and language model
- ``train``         the command line that runs both stages
- ``evaluate``      accuracy against ratio, through the deployed runtime
- ``make_samples``  the sample pictures
- ``write_data``    pictures and questions for `calib`
"""

from __future__ import annotations

__all__: list[str] = []
