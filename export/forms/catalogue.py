"""Which form is written by what. Imported when wanted: onnx, bitsandbytes and gguf are optional."""

from __future__ import annotations

from importlib import import_module

from artifacts.errors import InvalidInput
from artifacts.exported.formats import format_named
from export.forms.form import Form

# format → (module, attribute); an attribute is a Form.
_FORMS = {
    "merged": ("export.forms.merged", "MERGED"),
    "adapter": ("export.forms.adapter", "ADAPTER"),
    "onnx": ("export.forms.onnx", "FLOAT32"),
    "onnx-fp16": ("export.forms.onnx", "FLOAT16"),
    "onnx-int8": ("export.forms.onnx_blocks", "INT8"),
    "onnx-int4": ("export.forms.onnx_blocks", "INT4"),
    "onnx-adapters": ("export.forms.onnx_adapters", "ADAPTERS"),
    "torchscript": ("export.forms.torchscript", "TORCHSCRIPT"),
    "nf4": ("export.forms.bitsandbytes", "NF4"),
    "int8": ("export.forms.bitsandbytes", "INT8"),
    "gguf": ("export.forms.gguf", "F16"),
    "gguf-q8_0": ("export.forms.gguf", "Q8_0"),
    "gguf-q4_0": ("export.forms.gguf", "Q4_0"),
}


def form_of(name: str) -> Form:
    """Raises InvalidInput for an unknown format and for one whose library is not installed."""
    format_named(name)
    module, attribute = _FORMS[name]
    try:
        form: Form = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("export"):
            raise
        raise InvalidInput(
            f"format {name} needs {error.name}; install it with: pip install 'loraloop[export]'",
            param="format",
        ) from error
    return form
