"""The trained parameters of a checkpoint, whatever the method: one safetensors file.

Not PEFT's own files: those of AdaLoRA change the model's shape when they are read, those of PiSSA
the base, and neither holds what the allocation of ranks has counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from training.methods.method import Method

STATE_FILE = "trained.safetensors"
_EXTRA = "extra."


def save_state(method: Method, model: Any, folder: Path) -> None:
    """Writes every parameter that is trained and the method's extra state."""
    tensors = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    extra = {_EXTRA + name: tensor for name, tensor in method.extra_state(model).items()}
    whole = {name: tensor.cpu().contiguous() for name, tensor in (tensors | extra).items()}
    save_file(whole, folder / STATE_FILE)


@torch.no_grad()
def load_state(method: Method, model: Any, folder: Path) -> None:
    """Takes them back; the model was built by the same method."""
    stored = load_file(folder / STATE_FILE)
    extra = {name.removeprefix(_EXTRA): stored.pop(name) for name in list(stored)
             if name.startswith(_EXTRA)}  # fmt: skip
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == stored.keys(), "the checkpoint is of another model"
    for name, parameter in trained.items():
        parameter.copy_(stored[name])
    method.load_extra_state(model, extra)
