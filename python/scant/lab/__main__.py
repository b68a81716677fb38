"""``python -m scant.lab`` is ``scant lab``."""

from __future__ import annotations

import sys

from scant.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
