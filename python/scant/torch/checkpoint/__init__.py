"""What ties a journal to a training: the class that users know as :class:`scant.Journal`.

It stands on :mod:`scant.torch.gradient`; :mod:`scant.journal` reads the same files without torch.
"""
