"""A network lab in one machine: hosts as namespaces, shaped links, any command as ranks.

>>> from scant.lab import Lab, LinkOptions
>>> with Lab(hosts=4, link=LinkOptions(rate_bits_per_second=10**9)) as lab:  # doctest: +SKIP
...     processes = lab.run(["python", "train.py"])
...     codes = [process.wait(timeout=60) for process in processes]
...     print(lab.bytes())
"""

from __future__ import annotations

from scant.lab.errors import LabError, UsageError
from scant.lab.lab import Lab, RankProcess
from scant.lab.network import LinkCounters
from scant.lab.options import LinkOptions, Loss

__all__ = ["Lab", "LabError", "LinkCounters", "LinkOptions", "Loss", "RankProcess", "UsageError"]
