"""Models as files: packed from Hugging Face folders and GGUF, unpacked to both, run; without torch.

What users run is ``scant pack``, ``scant unpack`` and ``scant ls`` (docs/packed.md). :class:`Model`
and :class:`Decoder` run a file step by step (docs/serve.md).
"""

from scant.serve.decoding import Decoder, Model, Piece, kv_page_bytes

__all__ = ["Decoder", "Model", "Piece", "kv_page_bytes"]
