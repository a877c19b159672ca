"""Base models on disk: open, identify, read. Knows no adapter and runs no model.

``import artifacts.base`` is cheap; transformers and torch come in with the first base opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.architecture import check_config, check_tensors, check_type, effective_config
from artifacts.errors import InvalidInput, NotFound
from artifacts.exported.formats import Format, format_named
from artifacts.exported.record import ExportRecord, check_files, is_export, read_record
from artifacts.exported.verdict import Verdict, read_verdict
from artifacts.storage import storage_errors
from artifacts.tensor_file import MalformedTensorFile, TensorFile

if TYPE_CHECKING:
    import torch

EMBEDDED_BASE = Path(__file__).resolve().parent / "embedded"
EMBEDDED_ID = "loraloop-embedded"
CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]


@dataclass(frozen=True)
class Base:
    """An opened base. ``config`` and ``tokenizer`` are transformers' own; weights stay on disk."""

    path: Path
    id: str  # what the server calls it
    config: Any
    tokenizer: Any
    fingerprint: str
    template_hash: str | None  # None: no chat template, completions only
    eos_token_ids: frozenset[int]
    context_length: int  # tokens
    record: ExportRecord | None = None  # where `loraloop export` wrote the folder
    proof: Verdict | None = None  # of what it wrote

    @property
    def export(self) -> ExportRecord | None:
        """None also for a merged export, which is a base like any other."""
        return self.record if self.record is not None and not _is_plain(self.record) else None

    @property
    def takes_adapters(self) -> bool:
        """False for an export that has its adapter inside."""
        return self.export is None or not format_named(self.export.format).is_merged


def open_base(folder_or_hub_id: str | Path | None = None) -> Base:
    """Open a folder or a hub id; None is the embedded base.

    Raises NotFound (neither a folder nor reachable on the hub) and InvalidInput (a family, a
    setting or a file format that is not supported).
    """
    path = _locate(folder_or_hub_id)
    record = _read_export(path)
    raw = _read_json(path / CONFIG_FILE)
    check_type(raw.get("model_type"), path)
    config = _read_config(path)
    check_config(config, path, is_quantized_export=_is_quantized(record))
    tokenizer = open_tokenizer(path)
    if len(tokenizer) > config.vocab_size:
        raise InvalidInput(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{config.vocab_size}; they do not belong together",
            param="model",
        )
    return Base(
        path=path,
        id=EMBEDDED_ID if path == EMBEDDED_BASE else path_id(folder_or_hub_id, path),
        config=config,
        tokenizer=tokenizer,
        fingerprint=_fingerprint_of(config, path, record),
        template_hash=template_hash(tokenizer),
        eos_token_ids=_eos_token_ids(path, config, tokenizer),
        context_length=int(config.max_position_embeddings),
        record=record,
        proof=None if record is None else read_verdict(path, record),
    )


def _read_export(path: Path) -> ExportRecord | None:
    """The record of an export, None for a folder that none wrote.

    Raises InvalidInput for a form that nothing here runs, Corrupt for files that are not whole.
    """
    if not is_export(path):
        return None
    record = read_record(path)
    form = format_named(record.format)
    if not form.is_servable:
        raise InvalidInput(f"{path} is no base: {_who_runs(form, path)}", param="model")
    if not _is_plain(record):
        check_files(path, record, is_hashed=False)
    return record


def _is_plain(record: ExportRecord) -> bool:
    """Whether what was written are weights as any base has them: those of form ``merged``."""
    return format_named(record.format).runtime == "engine"


def _who_runs(form: Format, path: Path) -> str:
    if form.name == "adapter":
        return (
            "it is an adapter alone, exported as a PEFT folder; serve its base with "
            f"--adapter NAME={path}"
        )
    return (
        f"it is an export of the form {form.name}, which llama.cpp and Ollama run (`ollama create "
        f"NAME -f {path / 'Modelfile'}`); export merged or onnx-int4 to serve it here"
    )


def _is_quantized(record: ExportRecord | None) -> bool:
    return record is not None and format_named(record.format).runtime == "transformers"


def _fingerprint_of(config: Any, path: Path, record: ExportRecord | None) -> str:
    """Adapters fit a graph that has none inside as they fit the base that it was made from."""
    if record is None or _is_plain(record):
        return _fingerprint(config, path)
    is_merged = format_named(record.format).is_merged
    return record.fingerprint if is_merged else record.base_fingerprint


def path_id(source: str | Path | None, path: Path) -> str:
    """The last part of a folder's name or hub id."""
    return path.name if source is None or Path(source).exists() else Path(source).name


def open_tokenizer(path: Path) -> Any:
    """The folder's tokenizer, exactly as its tokenizer.json says where it has one.

    AutoTokenizer would rebuild it for model type qwen2 with that family's own splitting rules and
    <|endoftext|> token, whatever the file says (transformers 5.23). Raises NotFound.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    is_whole = (path / "tokenizer.json").is_file()
    try:
        opener = PreTrainedTokenizerFast if is_whole else AutoTokenizer
        return opener.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise NotFound(
            f"{path} has no usable tokenizer ({type(error).__name__}: {error}); copy its "
            "tokenizer.json and tokenizer_config.json beside the weights"
        ) from error


def template_hash(tokenizer: Any) -> str | None:
    """SHA-256 of the chat template's text; None without a template."""
    template = tokenizer.chat_template
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_files(path: Path) -> list[Path]:
    """The safetensors files of a base, by its index where it has one.

    Raises InvalidInput for pickles and NotFound for missing files.
    """
    index = path / INDEX_FILE
    if index.is_file():
        files = [path / name for name in _shard_names(index)]
    else:
        files = sorted(path.glob("*.safetensors"))
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise NotFound(f"{missing[0]} is missing; copy the whole base again")
    if files:
        return files
    if any(path.glob("*.bin")) or any(path.glob("*.pt")):
        raise InvalidInput(
            f"{path} holds its weights as pickles, which can run code when read; convert them to "
            "safetensors first",
            param="model",
        )
    raise NotFound(f"{path} holds no *.safetensors weights; give the folder of a whole base")


def _shard_names(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    if not (isinstance(weight_map, dict) and all(isinstance(n, str) for n in weight_map.values())):
        raise InvalidInput(f"{index} has no weight_map; copy the whole base again", param="model")
    return sorted(set(weight_map.values()))


class Checkpoint(Mapping[str, "torch.Tensor"]):
    """A base's tensors by name. Each is mapped for itself, so its pages go when it goes.

    Whoever keeps one keeps a copy: the file may change later, and a mapped page that is gone
    kills the process (SIGBUS).
    """

    def __init__(self, base: Base) -> None:
        from safetensors import safe_open

        self._files: dict[str, Path] = {}
        for file in tensor_files(base.path):
            with safe_open(file, framework="pt") as tensors:
                self._files |= dict.fromkeys(tensors.keys(), file)

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def require_original(base: Base, purpose: str) -> None:
    """Raises InvalidInput for an export: ``purpose`` needs the base that it was made from."""
    if base.export is not None:
        raise InvalidInput(
            f"{base.id} is an export ({base.export.format}), and {purpose} needs the original "
            f"base {base.export.base_id}; give that one",
            param="model",
        )


def load_transformers_model(
    base: Base, dtype: str | torch.dtype = "float32", **options: Any
) -> Any:
    """The base as transformers' own model in eval mode: for training, evaluation, references.

    Raises InvalidInput for an export.
    """
    from transformers import AutoModelForCausalLM

    require_original(base, "this")
    model = AutoModelForCausalLM.from_pretrained(
        base.path, dtype=dtype, local_files_only=True, **options
    )
    return model.eval()


def _locate(source: str | Path | None) -> Path:
    path = EMBEDDED_BASE if source is None else Path(source).expanduser()
    if (path / CONFIG_FILE).is_file() or is_export(path):
        return path.resolve()
    if path.exists() or source is None:
        raise NotFound(f"{path} is no base model: it has no {CONFIG_FILE}; give a base's folder")
    if not HUB_ID.fullmatch(str(source)):
        raise NotFound(f"there is no folder {path}; give an existing folder or a hub id")
    return _download(str(source))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise NotFound(
            f"{hub_id!r} is neither a folder here nor reachable on the model hub "
            f"({type(error).__name__}); check the name and the network, or give a local folder"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} is not readable JSON: {error}", param="model") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} is not a JSON object", param="model")
    return content


def _read_config(path: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    # What transformers lets through when a value is of the wrong type or makes no sense.
    bad = (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError)
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except bad as error:
        raise InvalidInput(
            f"{path / CONFIG_FILE} is no usable configuration ({error}); copy the base again",
            param="model",
        ) from error


def _eos_token_ids(path: Path, config: Any, tokenizer: Any) -> frozenset[int]:
    """What ends an answer: as transformers' generate decides it, and the tokenizer's own EOS."""
    generation = path / "generation_config.json"
    declared = _read_json(generation).get("eos_token_id") if generation.is_file() else None
    if declared is None:
        declared = config.eos_token_id
    ids = [*(declared if isinstance(declared, list) else [declared]), tokenizer.eos_token_id]
    if not all(id_ is None or isinstance(id_, int) for id_ in ids):
        raise InvalidInput(
            f"{generation}: eos_token_id is {declared!r}; give a token id or a list of them",
            param="model",
        )
    return frozenset(id_ for id_ in ids if id_ is not None)


def _fingerprint(config: Any, path: Path) -> str:
    """SHA-256 over effective config and all tensors' names, shapes, dtypes and sampled bytes.

    The same for any sharding. Reads at most 64 KiB of each tensor, so 14 GB take well under a
    second from a warm disk cache. Raises InvalidInput if the tensors are not the family's, and
    StorageError.
    """
    digest = hashlib.sha256(b"loraloop-base-1\n")
    digest.update(json.dumps(effective_config(config), sort_keys=True).encode())
    try:
        with storage_errors(path), ExitStack() as stack:
            files = [stack.enter_context(TensorFile(file)) for file in tensor_files(path)]
            found = [(entry, tensors) for tensors in files for entry in tensors.entries.values()]
            check_tensors(config, {entry.name: entry.shape for entry, _ in found}, path)
            for entry, tensors in sorted(found, key=lambda pair: pair[0].name):
                digest.update(json.dumps([entry.name, entry.dtype, entry.shape]).encode())
                digest.update(tensors.sample(entry))
    except MalformedTensorFile as error:
        raise InvalidInput(f"{error}; copy the base again", param="model") from error
    return digest.hexdigest()
