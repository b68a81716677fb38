"""Models as files: packed from Hugging Face folders and GGUF, unpacked to both, without torch.

What users run is ``scant pack``, ``scant unpack`` and ``scant ls`` (docs/packed.md).
"""
