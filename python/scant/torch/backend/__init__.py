"""The process group of ``torch.distributed``: its collectives on the runtime, CPU and GPU tensors.

What users import is in :mod:`scant.torch`. Nothing here knows of gradients or checkpoints.
"""
