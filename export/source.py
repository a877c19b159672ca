"""What is exported: a base, an adapter on it, and how they are added. Locates and checks both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from artifacts.database import Database
from artifacts.errors import InvalidInput, InvalidName, NotFound
from artifacts.home import Home
from artifacts.manifest import ManifestDraft, read_manifest
from artifacts.names import parse_ref
from artifacts.registry import Registry

if TYPE_CHECKING:
    import torch

    from artifacts.adapter import LoraWeights
    from artifacts.base import Base

MAX_RANK = 256  # as training makes them at most
Quantization = Literal["none", "nf4", "int8"]
MergeChoice = Literal["original", "dequantized"]


@dataclass(frozen=True, slots=True)
class Source:
    """A base and an adapter that fits it."""

    base: Base
    base_source: str | None  # as it was asked for
    adapter_id: str
    adapter_source: str  # opens the same again
    folder: Path  # of the adapter
    weights: LoraWeights
    manifest: ManifestDraft | None
    merge: MergeChoice  # "original" or "dequantized"

    @property
    def quantization(self) -> Quantization:
        """Of the base while the adapter was trained; what nobody recorded counts as none."""
        settings = {} if self.manifest is None else self.manifest.settings
        found: Quantization = settings.get("quantization") or "none"
        return found

    @property
    def license(self) -> str | None:
        settings = {} if self.manifest is None else self.manifest.settings
        return settings.get("license")


def open_source(adapter: str, base: str | None = None, merge: MergeChoice | None = None) -> Source:
    """``adapter`` is ``name@version`` or a PEFT folder; ``base`` as for serving.

    ``merge`` None: into the base as the adapter saw it while it was trained, so dequantised where
    that was quantised. Raises NotFound, InvalidInput, AdapterRejected for another base or
    template, Corrupt and StorageError.
    """
    from artifacts.adapter import check_adapter, read_adapter
    from artifacts.architecture import linear_shapes
    from artifacts.base import open_base
    from artifacts.importing import check_manifest

    adapter_id, folder, manifest = _locate(adapter)
    opened = open_base(base)
    if opened.export is not None:
        raise InvalidInput(
            f"{opened.path} is an export ({opened.export.format}); give the base it was made from",
            param="model",
        )
    weights = read_adapter(folder)
    check_adapter(weights, linear_shapes(opened.config), max_rank=MAX_RANK)
    if manifest is not None:
        check_manifest(manifest, opened, weights)
    # Folders by their whole path, names by their version: a proof may be asked for from elsewhere,
    # and later, when the name means a newer one.
    asked = str(folder) if Path(adapter).expanduser().is_dir() else adapter_id
    where = None if base is None else str(opened.path) if Path(base).expanduser().exists() else base
    source = Source(opened, where, adapter_id, asked, folder, weights, manifest, "original")
    return _with_merge(source, merge)


def _with_merge(source: Source, merge: MergeChoice | None) -> Source:
    from dataclasses import replace

    is_quantized = source.quantization != "none"
    if merge == "dequantized" and not is_quantized:
        raise InvalidInput(
            f"{source.adapter_id} was not trained on a quantised base, so there is nothing to "
            "dequantise; leave --merge out",
            param="merge",
        )
    return replace(source, merge=merge or ("dequantized" if is_quantized else "original"))


def _locate(adapter: str) -> tuple[str, Path, ManifestDraft | None]:
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        return folder.name, folder.resolve(), read_manifest(folder)
    try:
        ref = parse_ref(adapter)
    except InvalidName as error:
        raise NotFound(
            f"{adapter!r} is neither a folder here nor an adapter such as name@3; {error}"
        ) from error
    home = Home.open()
    database = Database(home.database_url)
    try:
        version = Registry(home, database).resolve(ref)
    finally:
        database.close()
    return version.id, version.path, version.manifest


class MergedTensors(Mapping[str, "torch.Tensor"]):
    """Every tensor of the base by name, in float32, the adapter's update added; made when asked."""

    def __init__(self, source: Source) -> None:
        from artifacts.base import Checkpoint

        self._checkpoint = Checkpoint(source.base)
        self._source = source

    def is_changed(self, name: str) -> bool:
        """Whether it is another than the one in the base's files."""
        from export.quantized_base import is_quantized

        is_updated = name.removesuffix(".weight") in self._source.weights.pairs
        is_dequantized = self._source.merge == "dequantized" and is_quantized(name, self._source)
        return is_updated or is_dequantized

    def stored(self, name: str) -> torch.Tensor:
        """In the base's own number format, rounded once; mapped from its file if not changed."""
        mapped = self._checkpoint[name]
        return self[name].to(mapped.dtype) if self.is_changed(name) else mapped

    def __getitem__(self, name: str) -> torch.Tensor:
        pair = self._source.weights.pairs.get(name.removesuffix(".weight"))
        weight = self.base_tensor(name)
        if pair is None:
            return weight
        return weight.addmm_(pair.b.float(), pair.a.float(), alpha=pair.scaling)

    def base_tensor(self, name: str) -> torch.Tensor:
        """Without the update, as ``merge`` wants the base: float32, memory of its own."""
        import torch

        weight = self._checkpoint[name].to(torch.float32, copy=True)
        if self._source.merge == "dequantized":
            from export.quantized_base import dequantized

            return dequantized(name, weight, self._source)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint)

    def __len__(self) -> int:
        return len(self._checkpoint)


def merged_model(source: Source, dtype: Any = None, attention: str | None = None) -> Any:
    """transformers' model in eval mode with the merged weights, in ``dtype`` (None: float32)."""
    import torch

    from artifacts.base import load_transformers_model

    options = {} if attention is None else {"attn_implementation": attention}
    model = load_transformers_model(source.base, dtype or torch.float32, **options)
    merged = MergedTensors(source)
    with torch.no_grad():
        for name in filter(merged.is_changed, merged):
            model.get_parameter(name).copy_(merged[name])
    return model
