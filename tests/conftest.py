"""What every test process starts with."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared out already; torch reads this when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
