"""Gradients on their way to the optimizer: ``wrap``, ``ddp_hook``, and what both share.

What users import is in :mod:`scant.torch`. It stands on :mod:`scant.torch.backend`.
"""
