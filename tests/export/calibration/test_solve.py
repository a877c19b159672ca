"""The rounding that looks at products: less wrong than the nearest level, on known inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from export.block_format import Blocks
from export.calibration.solve import Inputs, corrected, quantize

FORM = Blocks(4, 16)


def inputs_of(num_tokens: int, width: int) -> Tensor:
    """Columns that go together, some far larger than others, as in a transformer."""
    torch.manual_seed(0)
    mixed = torch.randn(num_tokens, width) @ (torch.randn(width, width) / width**0.5)
    scaled: Tensor = mixed * torch.logspace(-1, 1, width)[torch.randperm(width)]
    return scaled


def meant(weight: Tensor, gram: Tensor, form: Blocks = FORM) -> Tensor:
    return torch.from_numpy(form.dequantize(quantize(weight, gram, form)))


def nearest(weight: Tensor, form: Blocks = FORM) -> Tensor:
    return torch.from_numpy(form.dequantize(form.quantize(weight.numpy())))


def error(weight: Tensor, exact: Tensor, seen: Tensor, wanted: Tensor) -> float:
    return float((seen @ weight.T - exact @ wanted.T).square().sum())


@pytest.mark.parametrize("width", [64, 192])  # within one run of columns, and beyond it
def test_products_err_far_less_than_by_rounding_to_nearest(width: int) -> None:
    x, weight = inputs_of(2000, width), torch.randn(24, width)
    found = meant(weight, x.T @ x)
    assert error(found, x, x, weight) < 0.35 * error(nearest(weight), x, x, weight)


def test_every_level_is_one_of_the_form() -> None:
    x, weight = inputs_of(500, 64), torch.randn(8, 64)
    packed, scales = quantize(weight, x.T @ x, FORM)
    assert (packed.shape, scales.shape) == ((8, 4, 8), (8, 4))
    levels = torch.from_numpy(FORM.dequantize((packed, scales))).reshape(8, 4, 16)
    levels /= torch.from_numpy(scales)[:, :, None]
    assert (levels - levels.round()).abs().max() < 1e-3
    assert set(levels.round().unique().tolist()) <= set(range(-8, 8))


def test_without_correlation_it_is_rounding_to_nearest() -> None:
    weight = torch.randn(8, 64)
    found = meant(weight, torch.eye(64))
    levels, scales = FORM.search(weight.numpy())
    expected = FORM.dequantize((FORM.pack(levels), scales))
    # But for the last step of the search, which fits scales to levels that are rounded by then.
    assert (found - torch.from_numpy(expected)).abs().max() < abs(scales).max()
    assert (found - weight).square().sum() < 1.05 * (
        torch.from_numpy(expected) - weight
    ).square().sum()


def test_inputs_that_never_vary_and_rows_of_zeros_do_no_harm() -> None:
    x, weight = inputs_of(300, 64), torch.randn(8, 64)
    x[:, 5:30], weight[3] = 0, 0
    found = meant(weight, x.T @ x)
    assert torch.isfinite(found).all()
    assert (found[3] == 0).all()
    assert error(found, x, x, weight) < error(nearest(weight), x, x, weight)


def test_fewer_tokens_than_inputs_are_enough() -> None:
    x, weight = inputs_of(20, 64), torch.randn(8, 64)
    found = meant(weight, x.T @ x)
    assert error(found, x, x, weight) < error(nearest(weight), x, x, weight)
    # The rest of the weight is not given up for it.
    assert (found - weight).norm() < 3 * (nearest(weight) - weight).norm()


def test_bent_inputs_are_answered_as_the_exact_ones() -> None:
    exact, weight = inputs_of(3000, 64), torch.randn(24, 64)
    seen = exact + 0.2 * exact.roll(1, 1)
    inputs = Inputs(seen.T @ seen, exact.T @ seen)
    better = corrected(weight, inputs)
    assert error(better, exact, seen, weight) < 0.3 * error(weight, exact, seen, weight)
    worse = corrected(weight, Inputs(inputs.gram, inputs.cross.T))
    assert error(worse, exact, seen, weight) > error(better, exact, seen, weight)


def test_exact_inputs_need_no_correction() -> None:
    x, weight = inputs_of(500, 64), torch.randn(8, 64)
    gram = x.T @ x
    assert torch.allclose(corrected(weight, Inputs(gram, gram.clone())), weight, atol=1e-6)


def test_inputs_that_are_not_finite_are_an_error_and_no_endless_search() -> None:
    with pytest.raises(ValueError, match="not finite"):
        quantize(torch.randn(4, 16), torch.full((16, 16), float("nan")), FORM)
