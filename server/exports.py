"""What a server says, and what it refuses, because its base is an export. Knows no HTTP."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from artifacts.base import require_original

if TYPE_CHECKING:
    from artifacts.base import Base
    from artifacts.manifest import AdapterManifest

log = logging.getLogger("loraloop.server")


def export_facts(base: Base) -> dict[str, dict[str, str]]:
    """``{"export": …}`` for listings, nothing for a base like any other."""
    record = base.record
    if record is None or base.proof is None:
        return {}
    made_of = {"adapter": record.adapter_id, "base": record.base_id}
    return {"export": {"format": record.format, **made_of, "proof": base.proof}}


def warn_of_proof(base: Base) -> None:
    """An export whose answers nobody has compared, or that failed the comparison, is logged."""
    remedy = f"run `loraloop export verify {base.path}`, or export it again"
    if base.proof == "missing":
        log.warning("%s has no proof that it answers as its adapter does: %s", base.id, remedy)
    if base.proof == "failed":
        log.warning("%s failed its proof and was kept all the same: %s", base.id, remedy)


def refuse_training(base: Base) -> None:
    """Raises InvalidInput where the base is an export."""
    require_original(base, "training")


def is_offered(manifest: AdapterManifest, base: Base) -> bool:
    """Whether an adapter may answer on this base, as far as its manifest says."""
    return base.takes_adapters and manifest.base_fingerprint in (None, base.fingerprint)
