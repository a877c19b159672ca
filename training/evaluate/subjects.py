"""Who is asked: the base, an adapter version, a PEFT folder or a whole model, found and loaded.

Finding is light and says what is wrong before a model is loaded. Base and adapters share one
loaded model; a whole model (of full fine-tuning) is loaded when its turn comes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.base import Base, load_transformers_model, open_base
from artifacts.errors import InvalidInput, NotFound
from artifacts.manifest import read_manifest
from artifacts.names import parse_ref
from artifacts.registry import Registry
from training.errors import InvalidConfig

MAX_RANK = 512


@dataclass(frozen=True, slots=True)
class Candidate:
    """``folder`` None is the base itself; ``whole`` is a model of its own."""

    id: str
    folder: Path | None
    hash: str
    whole: Base | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it: no path of this machine."""
        return {"id": self.id, "hash": self.hash}


def find_candidate(text: str, registry: Registry, base: Base) -> Candidate:
    """``name``, ``name@3``, ``name@alias``, a whole model's ``name@3``, a folder (with a path
    separator in it), or the base.

    Raises NotFound, InvalidConfig and AdapterRejected for what does not fit ``base``.
    """
    if text in (base.id, "base"):
        return the_base(base)
    if os.sep in text or text.startswith("."):
        return _of_folder(Path(text).expanduser(), base)
    try:
        version = registry.resolve(parse_ref(text))
    except (NotFound, InvalidInput) as error:
        if (whole := registry.home.models / text).is_dir():
            return _of_folder(whole, base)
        hint = f"; the folder here is ./{text}" if Path(text).is_dir() else ""
        raise NotFound(f"{error}{hint}") from error
    return _of_adapter(version.id, version.path, base)


def the_base(base: Base) -> Candidate:
    return Candidate(base.id, None, base.fingerprint)


def _of_folder(folder: Path, base: Base) -> Candidate:
    if (folder / "adapter_config.json").is_file():
        return _of_adapter(folder.name, folder, base)
    if not (folder / "config.json").is_file():
        raise NotFound(f"{folder} holds neither a PEFT adapter nor a whole model")
    whole = open_base(folder)
    if whole.template_hash != base.template_hash or len(whole.tokenizer) != len(base.tokenizer):
        raise InvalidConfig(
            f"{folder} has another chat template or tokenizer than the base {base.id}, so both "
            "cannot be asked the same questions; name its base with --base",
            param="base",
        )
    return Candidate(whole.id, folder, whole.fingerprint, whole)


def _of_adapter(name: str, folder: Path, base: Base) -> Candidate:
    from artifacts.adapter import check_adapter, linear_shapes, read_adapter  # needs torch
    from artifacts.importing import check_manifest

    weights = read_adapter(folder)
    check_adapter(weights, linear_shapes(base.config), max_rank=MAX_RANK)
    if (manifest := read_manifest(folder)) is not None:
        check_manifest(manifest, base, weights)
    return Candidate(name, folder, weights.content_hash)


class Models:
    """The loaded models of ``candidates``, keyed by base, adapter and against."""

    def __init__(self, base: Base, candidates: Mapping[str, Candidate], dtype: str) -> None:
        self._candidates = candidates
        import torch

        usual = "bfloat16" if torch.cuda.is_available() else "float32"
        self._dtype = usual if dtype == "auto" else dtype
        self._model = _on_device(load_transformers_model(base, self._dtype))
        adapters = {who: c for who, c in candidates.items() if c.folder and c.whole is None}
        for who, candidate in adapters.items():
            self._add(who, candidate)
        self._has_adapters = bool(adapters)

    @contextmanager
    def turn_of(self, who: str) -> Iterator[Any]:
        """The model that answers as ``who``."""
        candidate = self._candidates[who]
        if candidate.whole is not None:
            yield _on_device(load_transformers_model(candidate.whole, self._dtype))
        elif candidate.folder is not None:
            self._model.set_adapter(who)
            yield self._model
        elif self._has_adapters:
            with self._model.disable_adapter():
                yield self._model
        else:
            yield self._model

    def _add(self, who: str, candidate: Candidate) -> None:
        from peft import PeftModel

        if isinstance(self._model, PeftModel):
            self._model.load_adapter(str(candidate.folder), adapter_name=who)
        else:
            self._model = PeftModel.from_pretrained(
                self._model, str(candidate.folder), adapter_name=who
            ).eval()


def _on_device(model: Any) -> Any:
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model
