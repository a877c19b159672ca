"""What an adapter must be before it may answer on this server's base. Knows no engine and no HTTP.

Reading and checking block on the disk and on arithmetic: call them in a thread. A version that no
longer reads as it was registered is ``Corrupt`` (the operator's problem); an adapter that does not
fit the base is ``AdapterRejected`` (the caller's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.errors import AdapterRejected, Corrupt
from artifacts.manifest import AdapterManifest
from artifacts.storage import storage_errors

if TYPE_CHECKING:
    from artifacts.adapter import LoraWeights
    from artifacts.base import Base
    from artifacts.registry import AdapterVersion, Registry

FOREIGN = "foreign"  # made elsewhere: that it was trained on this very base is the user's word
GATE_FAILED = "gate failed"  # answers under its explicit id, and where somebody forced it to


@dataclass(frozen=True, slots=True)
class LoadGate:
    """The base that adapters are held against, and the largest rank that the engine takes."""

    base: Base
    shapes: Mapping[str, tuple[int, int]]  # module path → (out, in)
    max_rank: int

    @classmethod
    def of(cls, base: Base, max_rank: int) -> LoadGate:
        from artifacts.architecture import linear_shapes

        return cls(base, linear_shapes(base.config), max_rank)

    def read(self, version: AdapterVersion) -> LoraWeights:
        """The weights of a registered version, as they were registered.

        Raises AdapterRejected if they do not fit this base, Corrupt if the disk changed them,
        StorageError if the disk itself fails.
        """
        from artifacts.adapter import check_adapter, read_adapter  # needs torch
        from artifacts.importing import check_manifest, check_takes_adapters

        check_takes_adapters(self.base)
        try:
            with storage_errors(version.path):
                weights = read_adapter(version.path)
        except AdapterRejected as error:
            raise _damaged(version, str(error)) from error
        except OSError as error:
            raise _damaged(version, f"{error.strerror}: {error.filename}") from error
        if weights.content_hash != version.content_hash:
            raise _damaged(
                version,
                f"its content hash is {weights.content_hash[:12]}…, it was registered with "
                f"{version.content_hash[:12]}…",
            )
        check_manifest(version.manifest, self.base, weights)
        check_adapter(weights, self.shapes, max_rank=self.max_rank)
        return weights

    def register(
        self, registry: Registry, name: str, folder: Path, roots: Sequence[Path]
    ) -> AdapterVersion:
        """Copy a PEFT folder below ``roots`` in as the next version of ``name``, if it fits."""
        from artifacts.importing import import_adapter

        return import_adapter(
            registry, folder, name, self.base, max_rank=self.max_rank, roots=roots
        )


def marks(manifest: AdapterManifest) -> list[str]:
    """What an operator should know about a version at a glance."""
    is_foreign = manifest.base_fingerprint is None or manifest.template_hash is None
    is_unfit = manifest.gate == "failed"
    return [FOREIGN] * is_foreign + [GATE_FAILED] * is_unfit


def _damaged(version: AdapterVersion, reason: str) -> Corrupt:
    return Corrupt(
        f"Adapter {version.id} is damaged on disk ({reason}): `loraloop adapters verify "
        f"{version.id}` names the file; restore {version.path} from a copy, or remove the version "
        "and train or import it again."
    )
