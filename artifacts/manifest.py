"""What a stored adapter version says about itself: ``manifest.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts.errors import Corrupt
from artifacts.results import Results

MANIFEST_FILE = "manifest.json"
CHECKPOINT_FILE = "checkpoint.json"  # a ManifestDraft, beside an adapter that no gate has seen
CARD_FILE = "README.md"
CARD_MARK = "<!-- written by loraloop -->"

Metric = float | str | None


class GateResult(BaseModel):
    """What one gate found. ``passed`` None: not measured, and ``detail`` says why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # perplexity_drop, bleu4:chats, …
    value: float | None  # None also where a figure is not finite
    threshold: float | None
    passed: bool | None
    detail: str = ""

    def __str__(self) -> str:
        figure = "" if self.value is None else f" is {self.value:.4g}"
        wanted = "" if self.threshold is None else f" (threshold {self.threshold:.4g})"
        return f"{self.name}{figure}{wanted}" + (f": {self.detail}" if self.detail else "")


class ManifestDraft(BaseModel):
    """Everything about a new version but what the registry adds: name, number, time, hashes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content_hash: str  # of weights + normalised config, see artifacts.adapter
    base_id: str
    base_fingerprint: str | None = None  # None: made elsewhere, the base is the user's word
    template_hash: str | None = None
    data_hash: str | None = None
    origin: Literal["trained", "imported"]
    rank: int  # the largest of all modules
    alpha: float
    target_modules: tuple[str, ...]
    num_parameters: int
    num_bytes: int  # of the weights file
    settings: dict[str, Any] = {}
    metrics: dict[str, Metric] = {}  # base_loss, adapter_loss, base_perplexity, …
    gates: tuple[GateResult, ...] = ()
    evaluation: Results | None = None  # None: no suite was asked

    @property
    def gate(self) -> Literal["passed", "failed", "none"]:
        """``failed`` answers under its explicit id only; what was not measured fails nobody."""
        if not self.gates:
            return "none"
        return "failed" if self.failed_gates else "passed"

    @property
    def failed_gates(self) -> list[GateResult]:
        return [gate for gate in self.gates if gate.passed is False]


class AdapterManifest(ManifestDraft):
    """The record of one immutable version."""

    name: str
    version: int
    created_at: str  # ISO 8601, UTC
    files: dict[str, str] = {}  # relative path → SHA-256, without manifest and card

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


def read_manifest(folder: Path) -> AdapterManifest | None:
    """The folder's manifest, None if it has none; Corrupt if it cannot be read as one."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        return AdapterManifest.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise Corrupt(
            f"{path} is not a readable adapter manifest ({type(error).__name__}); restore it from "
            "a copy, or delete it to import the weights as an adapter made elsewhere"
        ) from error
