"""One thread per test process: several run side by side, and bits may depend on the number."""

from __future__ import annotations

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before anything imports torch; the programs that tests start inherit it
