"""An adapter as llama.cpp takes it beside a base: ``y += (alpha / rank) * (x @ a.T) @ b.T``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, Keys
from gguf.constants import GGUFType

from artifacts.adapter import LoraPair
from export.gguf.metadata import architecture
from export.gguf.tensors import TensorNames, permuted
from export.source import Source


def write_adapter(path: Path, source: Source) -> None:
    """Float32. One alpha holds for the file, so what differs of a module's scaling goes into B."""
    config, pairs = source.base.config, source.weights.pairs
    alpha = common_alpha(pairs)
    writer = GGUFWriter(path, architecture(config))
    writer.add_type(GGUFType.ADAPTER)
    writer.add_name(source.adapter_id)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    names = TensorNames(config)
    for module, pair in pairs.items():
        weight = f"{module}.weight"
        factor = pair.scaling * pair.rank / alpha
        b = permuted(weight, pair.b.float(), config) * factor
        writer.add_tensor(f"{names(weight)}.lora_a", pair.a.float().contiguous().numpy())
        writer.add_tensor(f"{names(weight)}.lora_b", b.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def common_alpha(pairs: dict[str, LoraPair]) -> float:
    """The largest, so never 0, which llama.cpp would take for "no scaling"; exact in float32."""
    return float(np.float32(max((p.scaling * p.rank for p in pairs.values()), key=abs)))
