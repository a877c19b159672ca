"""Quantises a model from its embedding upwards, each weight on what reaches it by then.

Two streams of hidden states go up the layers: what the exact model computes, and what the export
does. A group of weights that read the same input is settled at once, and the layer runs again for
the next: its memory is the model in float32 and the inputs of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from artifacts.architecture import EMBEDDING, HEAD
from artifacts.base import Checkpoint
from artifacts.errors import Corrupt, InvalidInput
from export.block_format import BlockFormat, Quantized
from export.calibration.samples import NUM_ROWS, num_tokens, opening, sample_texts
from export.calibration.solve import Inputs, corrected, quantize
from export.forms.form import Progress
from export.source import Source, merged_model

FormOf = Callable[[str], BlockFormat | None]
Options = dict[str, Any]  # what the model gives a layer beside hidden states, for one batch
_ROWS = 8  # that run at once
# Weights of a layer by the order in which they are used; those of a group read the same input.
_GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
# A tied weight is the embedding too: an error there, in shares of the mean square of an input.
_LOOKUP = 0.25


@torch.no_grad()
def calibrate(source: Source, form_of: FormOf, progress: Progress) -> dict[str, Quantized]:
    """Every weight that ``form_of`` wants in blocks, by name. Loads the whole model in float32.

    Raises as `check_calibration` does, and Corrupt for weights that compute no numbers.
    """
    check_calibration(source)
    length = num_tokens(source.base)
    total = length + source.base.config.num_hidden_layers
    model = merged_model(source)
    texts = sample_texts(
        model, source.base, lambda done: progress(done, total, "writing calibration texts")
    )
    return _Calibration(model, form_of).run(
        texts, lambda i: progress(length + i, total, "calibrating")
    )


def check_calibration(source: Source) -> None:
    """Raises InvalidInput where there is no memory for it, or nothing for a text to begin with."""
    opening(source.base)
    config = source.base.config
    weights = sum(tensor.numel() for tensor in Checkpoint(source.base).values())
    wide = 5 * config.hidden_size + config.intermediate_size
    wanted = 4 * (weights + wide * NUM_ROWS * num_tokens(source.base))
    free = psutil.virtual_memory().available
    if free < wanted:
        raise InvalidInput(
            f"calibrating {source.base.id} takes {wanted / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; free some, or pass --no-calibrate",
            param="calibrate",
        )


class _Calibration:
    def __init__(self, model: Any, form_of: FormOf) -> None:
        self._model = model
        self._form_of = form_of
        self._found: dict[str, Quantized] = {}

    def run(self, texts: Tensor, tell: Callable[[int], None]) -> dict[str, Quantized]:
        body = self._model.model
        batches = list(texts.split(_ROWS))
        exact = [body.embed_tokens(batch) for batch in batches]
        arguments, last = self._read(batches)
        is_tied = self._model.config.tie_word_embeddings
        self._settle_embedding(last if is_tied else None)
        seen = [body.embed_tokens(batch) for batch in batches]
        for i, options in enumerate(arguments):
            exact, seen = self._settle_layer(i, options, exact, seen)
            tell(i + 1)
        if not is_tied:
            pairs = zip(exact, seen, strict=True)
            inputs = _sums([(body.norm(a), body.norm(b)) for a, b in pairs])
            self._settle(HEAD, self._model.lm_head, inputs)
        return self._found

    def _read(self, batches: list[Tensor]) -> tuple[list[list[Options]], Tensor]:
        """What the model gives each of its layers beside hidden states, and the head's Gram."""
        body = self._model.model
        given: list[list[Options]] = [[] for _ in body.layers]

        def keep(index: int, _layer: Any, _args: Any, options: Options) -> None:
            given[index].append(options | {"past_key_values": None, "use_cache": False})

        hooks = [
            layer.register_forward_pre_hook(partial(keep, i), with_kwargs=True)
            for i, layer in enumerate(body.layers)
        ]
        try:
            last = [_flat(body(batch, use_cache=False).last_hidden_state) for batch in batches]
        finally:
            for hook in hooks:
                hook.remove()
        return given, _sums([(x, x) for x in last]).gram

    def _settle_embedding(self, head_gram: Tensor | None) -> None:
        """``head_gram``: of what the head reads, where the embedding is the head as well."""
        form = self._form_of(EMBEDDING)
        weight = self._model.model.embed_tokens.weight
        if form is None:
            return
        if head_gram is None:
            quantized = form.quantize(weight.numpy())
        else:
            lookup = _LOOKUP * head_gram.diagonal().mean() * torch.eye(len(head_gram))
            quantized = quantize(weight, head_gram + lookup, form)
        self._put(EMBEDDING, weight, quantized, form)

    def _settle_layer(
        self, index: int, options: list[Options], exact: list[Tensor], seen: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Takes and returns both streams, a tensor for each batch."""
        layer = self._model.model.layers[index]
        with _inputs(layer, [group[0] for group in _GROUPS]) as wanted:
            exact = _run(layer, options, exact)
        for group in _GROUPS:
            found = _reaching(layer, options, seen, group[0])
            inputs = _sums(list(zip(wanted.pop(group[0]), found, strict=True)))
            for name in group:
                whole = f"model.layers.{index}.{name}.weight"
                self._settle(whole, layer.get_submodule(name), inputs)
        return exact, _run(layer, options, seen)

    def _settle(self, name: str, linear: nn.Module, inputs: Inputs) -> None:
        form = self._form_of(name)
        if form is None:
            return
        weight = linear.get_parameter("weight")
        wanted = corrected(weight, inputs)
        quantized = quantize(wanted, inputs.gram, form)
        self._put(name, weight, quantized, form)

    def _put(self, name: str, weight: Tensor, quantized: Quantized, form: BlockFormat) -> None:
        self._found[name] = quantized
        weight.copy_(torch.from_numpy(form.dequantize(quantized)))


def _run(layer: nn.Module, options: list[Options], hidden: list[Tensor]) -> list[Tensor]:
    return [layer(x, **more) for x, more in zip(hidden, options, strict=True)]


class _Reached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _reaching(
    layer: nn.Module, options: list[Options], hidden: list[Tensor], name: str
) -> list[Tensor]:
    """What reaches the module of that name; what comes after it in the layer is not computed."""

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _Reached(args[0])

    found = []
    hook = layer.get_submodule(name).register_forward_pre_hook(stop)
    try:
        for x, more in zip(hidden, options, strict=True):
            try:
                layer(x, **more)
            except _Reached as reached:
                found.append(reached.hidden)
    finally:
        hook.remove()
    return found


@contextmanager
def _inputs(layer: nn.Module, names: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What reaches the modules of these names inside, a tensor for each batch."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[name].append(args[0])

    hooks = [
        layer.get_submodule(name).register_forward_pre_hook(partial(keep, name)) for name in names
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _sums(pairs: list[tuple[Tensor, Tensor]]) -> Inputs:
    """Of batches of (exact, seen) inputs. Raises Corrupt where they are not finite."""
    flat = [(_flat(exact), _flat(seen)) for exact, seen in pairs]
    gram = sum((seen.T @ seen for _, seen in flat), torch.zeros(()))
    cross = sum((exact.T @ seen for exact, seen in flat), torch.zeros(()))
    if not bool((gram.isfinite() & cross.isfinite()).all()):
        raise Corrupt("base and adapter compute NaN or infinity in float32; check the adapter")
    return Inputs(gram, cross)


def _flat(hidden: Tensor) -> Tensor:
    return hidden.reshape(-1, hidden.shape[-1])


__all__ = ["calibrate"]
