"""Levels of a weight that give its products on known inputs, rather than levels near the weight.

`quantize` is GPTQ (Frantar et al., 2022): column by column, what rounding one column does to the
products is taken back by the columns that are still to be rounded. `corrected` comes before it
(after Li et al., 2025, "GPTAQ"): inputs that quantised layers have already bent are answered as the
exact inputs would have been.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from export.block_format import BlockFormat, Quantized

_DAMPING = 0.005  # of the mean square of an input, added to each
_SHRINKAGE = 0.1  # the same, where a weight is changed to answer for others: less is trusted
_COLUMNS = 128  # rounded before the rest hears of it


@dataclass(frozen=True, slots=True)
class Inputs:
    """Sums over the tokens of inputs [tokens, in] that a weight sees in the export."""

    gram: Tensor  # [in, in]: of the products with themselves
    cross: Tensor  # [in, in]: of exact inputs (first axis) with those that it sees


def corrected(weight: Tensor, inputs: Inputs) -> Tensor:
    """The weight [out, in] whose products with what it sees are nearest to the exact ones."""
    gap = weight @ (inputs.cross - inputs.gram)
    change: Tensor = torch.cholesky_solve(gap.T, _cholesky(inputs.gram, _SHRINKAGE)).T
    return weight + change


def quantize(weight: Tensor, gram: Tensor, form: BlockFormat) -> Quantized:
    """Of a weight [out, in] in float32; ``gram`` as in `Inputs`, on any scale."""
    gram = _damped(gram, _DAMPING)
    importance = gram.diagonal()
    _, found = form.search(weight.numpy(), importance.numpy())
    found[found == 0] = 1.0  # a block of zeros
    scales = torch.from_numpy(form.stored(found))
    order = importance.argsort(descending=True)  # while there are columns left to make good
    factor = _cholesky(gram[order][:, order], 0.0)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    each = scales.repeat_interleave(form.size, 1)
    levels = torch.empty_like(weight)
    levels[:, order] = _round(weight.T[order], each.T[order], inverse, form).T
    return form.pack(levels.numpy()), found


def _round(columns: Tensor, scales: Tensor, inverse: Tensor, form: BlockFormat) -> Tensor:
    """Levels [in, out] of a weight's columns, in their order; all of them contiguous.

    ``inverse``: the upper Cholesky factor of the inverse Gram matrix.
    """
    levels = torch.empty_like(columns)
    for start in range(0, len(columns), _COLUMNS):
        end = min(start + _COLUMNS, len(columns))
        errors = torch.empty_like(columns[start:end])
        for i in range(start, end):
            levels[i] = torch.from_numpy(form.nearest((columns[i] / scales[i]).numpy()))
            errors[i - start] = (columns[i] - levels[i] * scales[i]) / inverse[i, i]
            columns[i + 1 : end] -= torch.outer(inverse[i, i + 1 : end], errors[i - start])
        columns[end:] -= inverse[start:end, end:].T @ errors
    return levels


def _damped(gram: Tensor, share: float) -> Tensor:
    damped = gram.clone()
    damped.diagonal().add_(share * (float(gram.diagonal().mean()) or 1.0))
    return damped


def _cholesky(gram: Tensor, share: float) -> Tensor:
    """Of the damped matrix; damped more where float32 does not find it positive."""
    while True:
        factor, failed = torch.linalg.cholesky_ex(_damped(gram, share))
        if not failed:
            found: Tensor = factor
            return found
        if not bool(gram.isfinite().all()):
            raise ValueError("inputs that are not finite")
        share = max(10 * share, 1e-4)


__all__ = ["Inputs", "corrected", "quantize"]
