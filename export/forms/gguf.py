"""``model.gguf`` for llama.cpp, merged; ``adapter.gguf`` beside it, and Ollama's ``Modelfile``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, LlamaFileType

from artifacts.safe_write import write_bytes
from export.block_format import Blocks, Quantized
from export.calibration.calibrate import calibrate, check_calibration
from export.forms.form import Options, Progress, Workshop
from export.gguf.lora import write_adapter
from export.gguf.metadata import add_sizes, architecture, check_model
from export.gguf.ollama import modelfile
from export.gguf.tensors import BLOCK, content_of, plan, write_tensors
from export.gguf.tokenizer import add_tokenizer, check_tokenizer
from export.source import MergedTensors, Source

MODEL_FILE = "model.gguf"  # as `artifacts.exported.transformers_model` opens it
ADAPTER_FILE = "adapter.gguf"
MODELFILE = "Modelfile"
_QUANTIZATION_VERSION = 2  # of the layout of Q8_0 and Q4_0
_TOKENIZER_BYTES = 32  # of a token in the file, about


@dataclass(frozen=True, slots=True)
class Gguf:
    """An ``export.forms.form.Form``: one number format of the matrices."""

    kind: Kind
    file_type: LlamaFileType
    options: frozenset[str] = frozenset()

    def check(self, source: Source, options: Options) -> None:
        check_model(source.base.config)
        check_tokenizer(source.base)
        if self._is_calibrated(options):
            check_calibration(source)

    def num_bytes(self, source: Source, options: Options) -> int:
        config = source.base.config
        model = sum(entry.num_bytes for entry in plan(config, self.kind))
        pairs = source.weights.pairs.values()
        adapter = sum(4 * (pair.a.numel() + pair.b.numel()) for pair in pairs)
        return model + adapter + _TOKENIZER_BYTES * int(config.vocab_size)

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        source, progress = workshop.source, workshop.progress
        given = self._calibrate(source, progress) if self._is_calibrated(options) else {}
        chosen = self.write_model(source, folder / MODEL_FILE, progress, given)
        write_adapter(folder / ADAPTER_FILE, source)
        write_bytes(folder / MODELFILE, modelfile(source.base, source.adapter_id).encode())
        return chosen

    def _is_calibrated(self, options: Options) -> bool:
        return self.kind == Kind.Q4_0 and options.calibrate

    def _calibrate(self, source: Source, progress: Progress) -> dict[str, Quantized]:
        entries = plan(source.base.config, self.kind)
        ours = {entry.source for entry in entries if entry.kind == Kind.Q4_0}
        blocks = Blocks(4, BLOCK)
        return calibrate(source, lambda name: blocks if name in ours else None, progress)

    def write_model(
        self, source: Source, path: Path, progress: Progress, given: Mapping[str, Quantized]
    ) -> dict[str, Any]:
        """``given``: weights that are in blocks already; each other is rounded by itself."""
        config, tensors = source.base.config, MergedTensors(source)
        entries = plan(config, self.kind)
        writer = GGUFWriter(path, architecture(config))
        chosen = self._add_metadata(writer, source)
        for number, name in enumerate(
            write_tensors(writer, entries, lambda e: content_of(e, tensors, config, given)), start=1
        ):
            progress(number, len(entries), name)
        writer.close()
        wider = {e.name: e.kind.name for e in entries if len(e.shape) > 1 and e.kind != self.kind}
        how = {"is_calibrated": bool(given)} if "calibrate" in self.options else {}
        return chosen | how | ({"wider": wider} if wider else {})

    def _add_metadata(self, writer: GGUFWriter, source: Source) -> dict[str, Any]:
        writer.add_type("model")
        writer.add_name(source.adapter_id)
        if source.license is not None:
            writer.add_license(source.license)
        writer.add_file_type(self.file_type)
        writer.add_quantization_version(_QUANTIZATION_VERSION)
        add_sizes(writer, source.base.config)
        return add_tokenizer(writer, source.base)


F16 = Gguf(Kind.F16, LlamaFileType.MOSTLY_F16)
Q8_0 = Gguf(Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0)
Q4_0 = Gguf(Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0, frozenset({"calibrate"}))
