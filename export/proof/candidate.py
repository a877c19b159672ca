"""An export as the model that is compared: opened as the server opens it."""

from __future__ import annotations

from pathlib import Path

from artifacts.exported.graph import AdapterInputs, ExportedModel
from artifacts.exported.load import open_export
from artifacts.exported.record import read_record
from export.source import Source


def open_candidate(folder: Path, source: Source) -> ExportedModel:
    """``source`` is for the form ``adapter`` alone, which is no model without its base.

    Raises Corrupt and InvalidInput.
    """
    if read_record(folder).format != "adapter":
        return open_export(folder)
    from peft import PeftModel

    from artifacts.base import load_transformers_model
    from artifacts.exported.slab import ATTENTION
    from artifacts.exported.transformers_model import TransformersModel

    model = load_transformers_model(source.base, "float32", attn_implementation=ATTENTION)
    adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    return TransformersModel(adapted.get_base_model())


def packed_adapter(model: ExportedModel, folder: Path) -> AdapterInputs | None:
    """The file beside the graph, as the graph takes it; None for a model with its own inside.

    Raises Corrupt and AdapterRejected.
    """
    from artifacts.exported.onnx_adapters import adapter_file
    from artifacts.exported.onnx_model import OnnxModel

    if not isinstance(model, OnnxModel) or not model.takes_adapters:
        return None
    return model.read_adapter(adapter_file(folder))
