"""Journals from outside, without torch: tensor files and ``scant journal``.

What a training program uses is :class:`scant.Journal`.
"""
