"""Where the shipped base and its recipe lie, and what its model card confesses."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]
EMBEDDED = ROOT / "artifacts" / "embedded"
CONFIG = ROOT / "training" / "configs" / "embedded.yaml"

# The full check over the run's stream found these two above the limit of 0.5 (0.56 and 0.53), so
# they do not count towards the pass rate.
TOO_CLOSE = ("I can't remember my password", "Have you still got a white rice cooker?")
