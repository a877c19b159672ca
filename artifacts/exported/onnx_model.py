"""ONNX graphs in ONNX Runtime: the cache is bound as input and output at once, never copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from artifacts.adapter import LoraWeights
from artifacts.errors import Corrupt, InvalidInput
from artifacts.exported.graph import INPUT_NAMES, AdapterInputs, GraphBatch, GraphShape
from artifacts.exported.onnx_adapters import adapter_shapes, pack_adapter, read_onnx_adapter

MODEL_FILE = "model.onnx"
_CACHE_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
_NUMPY = {torch.int64: np.int64, torch.float32: np.float32, torch.float16: np.float16}


class OnnxModel:
    """One session. Logits lie in a buffer of their own, which the next call writes again."""

    def __init__(self, session: Any, shape: GraphShape) -> None:
        self.shape = shape
        self._session = session
        self._adapter_shapes = adapter_shapes(session)
        self.takes_adapters = bool(self._adapter_shapes)
        self._past = [f"past_key_values.{name}" for name in shape.cache_names]
        self._present = [f"present.{name}" for name in shape.cache_names]
        self._logits_dtype = _CACHE_TYPES[session.get_outputs()[0].type]
        self._logits = torch.empty(0, dtype=self._logits_dtype)

    def run(
        self, batch: GraphBatch, cache: Sequence[Tensor], adapter: AdapterInputs | None = None
    ) -> Tensor:
        """See `ExportedModel`. The logits are valid until the next call.

        Every call binds anew, so nothing of the adapter before it is left. Bound, because
        RunOptions' active adapters do nothing in ``run_with_iobinding``.
        """
        if adapter is not None and not self.takes_adapters:
            raise self._takes_none()
        logits = self._room(*batch.logits_rows.shape)
        binding = self._session.io_binding()
        for name in INPUT_NAMES:
            _bind(binding.bind_input, name, getattr(batch, name))
        for past, present, tensor in zip(self._past, self._present, cache, strict=True):
            _bind(binding.bind_input, past, tensor)
            _bind(binding.bind_output, present, tensor)
        for name, tensor in (adapter or {}).items():
            _bind(binding.bind_input, name, tensor)
        _bind(binding.bind_output, "logits", logits)
        self._session.run_with_iobinding(binding)
        return logits.float()

    def pack(self, weights: LoraWeights) -> AdapterInputs:
        """Raises AdapterRejected for one that does not fit, InvalidInput where none is taken."""
        if not self.takes_adapters:
            raise self._takes_none()
        return pack_adapter(weights, self._adapter_shapes)

    def read_adapter(self, path: Path) -> AdapterInputs:
        """A ``.onnx_adapter`` file. Raises what `pack` raises, NotFound and Corrupt."""
        if not self.takes_adapters:
            raise self._takes_none()
        return read_onnx_adapter(path, self._adapter_shapes)

    @staticmethod
    def _takes_none() -> InvalidInput:
        return InvalidInput("this export takes no adapter: its own is merged", param="adapter")

    def _room(self, num_rows: int, num_wanted: int) -> Tensor:
        """The buffer's first part as [num_rows, num_wanted, vocab_size]; grows where it must."""
        size = (num_rows, num_wanted, self.shape.vocab_size)
        needed = num_rows * num_wanted * self.shape.vocab_size
        if self._logits.numel() < needed:
            self._logits = torch.empty(needed, dtype=self._logits_dtype)
        return self._logits[:needed].view(size)


def load_onnx(folder: Path, *, num_threads: int | None = None) -> OnnxModel:
    """Raises Corrupt for a file that is no graph of ours, InvalidInput without onnxruntime."""
    session = open_session(folder / MODEL_FILE, num_threads=num_threads)
    return OnnxModel(session, graph_shape(session))


def open_session(path: Path, *, num_threads: int | None = None) -> Any:
    """``num_threads`` None: as torch has it."""
    try:
        import onnxruntime as ort
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"{path} needs onnxruntime; install it with: pip install 'loraloop[onnx]'",
            param="model",
        ) from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each status and no common base
        raise Corrupt(f"{path} cannot be loaded ({error}); export it again") from error


def graph_shape(session: Any) -> GraphShape:
    """Read from the graph's own inputs and outputs. Raises Corrupt for a graph of another kind."""
    inputs = {entry.name: entry for entry in session.get_inputs()}
    outputs = {entry.name: entry for entry in session.get_outputs()}
    try:
        key = inputs["past_key_values.0.key"]
        return GraphShape(
            num_layers=sum(name.startswith("past_key_values.") for name in inputs) // 2,
            num_kv_heads=int(key.shape[1]),
            head_dim=int(key.shape[3]),
            vocab_size=int(outputs["logits"].shape[2]),
            cache_dtype=_CACHE_TYPES[key.type],
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Corrupt(
            f"the ONNX graph has not the inputs and outputs that export writes ({error!r}); "
            "export it again"
        ) from error


def _bind(bind: Any, name: str, tensor: Tensor) -> None:
    bind(name, "cpu", 0, _NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
