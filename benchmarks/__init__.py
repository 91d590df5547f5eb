"""Figures. Run them as modules from the repository's root: ``python -m benchmarks.latency``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "test"))  # for support/, which the tests use too
