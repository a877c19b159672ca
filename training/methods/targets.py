"""Which linear layers an adapter sits on, checked against the base's configuration. No torch."""

from __future__ import annotations

import difflib

from artifacts.architecture import linear_shapes
from artifacts.base import Base
from training.config import TrainingConfig
from training.errors import InvalidConfig


def choose_targets(config: TrainingConfig, base: Base) -> list[str]:
    """Names of linear layers, sorted; each listed one must exist in the base.

    Raises InvalidConfig naming the available modules: PEFT would skip a name that matches nothing.
    """
    paths = linear_shapes(base.config)
    available = sorted({path.rsplit(".", 1)[-1] for path in paths})
    if config.target_modules == "all-linear":
        return available
    for name in config.target_modules:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            near = difflib.get_close_matches(name, available, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InvalidConfig(
                f"target module {name!r} matches nothing in {base.id}; {hint}available: "
                f"{', '.join(available)}",
                param="target_modules",
            )
    return sorted(config.target_modules)


def choose_layers(config: TrainingConfig, base: Base) -> list[int] | None:
    """Indices of the decoder layers that get an adapter, sorted; None: all of them."""
    layers = config.layers_to_transform
    if layers is None:
        return None
    last = base.config.num_hidden_layers - 1
    wrong = [index for index in layers if not 0 <= index <= last]
    if wrong or not layers:
        raise InvalidConfig(
            f"layers_to_transform={list(layers)}: {base.id} has the layers 0 to {last}",
            param="layers_to_transform",
        )
    return sorted(set(layers))


def check_against_base(config: TrainingConfig, base: Base) -> None:
    """What the base decides about a method's keys, before any row is read. Raises InvalidConfig."""
    if config.method in ("lora", "adalora"):
        choose_targets(config, base)
        choose_layers(config, base)
    if config.initialisation in ("pissa", "olora"):
        _check_decomposition(config, base)
    num_layers = base.config.num_hidden_layers
    if config.method == "freeze" and abs(config.trainable_layers) > num_layers:
        raise InvalidConfig(
            f"trainable_layers={config.trainable_layers}: {base.id} has {num_layers} layers",
            param="trainable_layers",
        )


def _check_decomposition(config: TrainingConfig, base: Base) -> None:
    """A matrix has no more singular vectors than its smaller side."""
    names = tuple(f".{name}" for name in choose_targets(config, base))
    shapes = {path: shape for path, shape in linear_shapes(base.config).items()
              if f".{path}".endswith(names)}  # fmt: skip
    path, shape = min(shapes.items(), key=lambda item: min(item[1]))
    if config.rank > min(shape):
        raise InvalidConfig(
            f"rank={config.rank} with initialisation={config.initialisation} exceeds what {path} "
            f"({shape[0]}x{shape[1]}) can be decomposed into; take at most {min(shape)}",
            param="rank",
        )
