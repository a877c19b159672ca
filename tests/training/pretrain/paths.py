"""Where the shipped base and its recipe lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]
EMBEDDED = ROOT / "artifacts" / "embedded"
CONFIG = ROOT / "training" / "configs" / "embedded.yaml"
