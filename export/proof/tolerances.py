"""How far the figures of each form may lie from the reference. One table; knows no torch.

- float32 forms add up the same numbers in another order: logits within 1e-4, and the same greedy
  token wherever the reference's best two are further apart than that error could turn round.
- 16-bit forms round at each of some 9 places of each layer, by u = 2^-8 (bfloat16) or 2^-11
  (float16) of the value. Independent errors add up as sqrt(9 · layers) · u: with 24 layers 5.7 %
  and 0.7 % of the largest logit. Rounding has no direction: perplexity stays within 0.5 %.
- Quantised forms are judged by what they cost: perplexity within 3 %. That is taken in prefill
  alone, so decode steps are held to it: the same answers, read at once, are as far from the
  reference. A cache or a position that goes wrong changes one of the two distances.
- Perplexity alone would let a weak adapter go: half of it, or twice, may be less than 3 %. So what
  the adapter changes is held to 30 %, where that is more than rounding changes.

Perplexity counts in both directions. An export is a copy: one that is 3 % better on these rows has
changed as much as one that is 3 % worse, and on other rows the change may go the other way. A
scaling that was forgotten is better than its reference wherever the adapter does harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

NEAR_TIE = 2e-4  # the best two logits of the reference: closer than this, float32 may swap them
_EXACT_FORMS = {"onnx", "onnx-adapters", "torchscript", "adapter"}
_FLOAT16_FORMS = {"onnx-fp16", "gguf"}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """``figure`` must be at most / at least ``limit``, or ``within`` it of zero."""

    figure: str
    limit: float
    kind: Literal["at most", "at least", "within ±"]
    meaning: str

    def is_kept(self, value: float) -> bool:
        """False for NaN."""
        if self.kind == "at least":
            return value >= self.limit
        return (abs(value) if self.kind == "within ±" else value) <= self.limit


_FINITE = Tolerance("num_not_finite", 0, "at most", "logits that are NaN or infinite")
_TOKENIZER = Tolerance(
    "num_texts_tokenized_otherwise", 0, "at most", "texts that the folder's tokenizer splits anew"
)
_ALWAYS = (_FINITE, _TOKENIZER)
_MAX_DIFF = Tolerance("max_logit_diff", 1e-4, "at most", "the largest difference of a logit")
_GREEDY = Tolerance(
    "greedy_agreement", 1.0, "at least", "the share of greedy tokens that are the same"
)
_EXACT = (*_ALWAYS, _MAX_DIFF, _GREEDY)


def _rounded(share: float) -> tuple[Tolerance, ...]:
    diff = "the largest difference of a logit, as a share of the largest logit,"
    return (*_ALWAYS, Tolerance("max_logit_diff_share", share, "at most", diff), _perplexity(0.5))


def _perplexity(percent: float) -> Tolerance:
    meaning = "the change of perplexity in percent"
    return Tolerance("perplexity_change_percent", percent, "within ±", meaning)


_BFLOAT16, _FLOAT16 = _rounded(5e-2), _rounded(1e-2)
_DECODE = Tolerance(
    "decode_kl_factor",
    1.5,
    "at most",
    "the factor between the divergence of decode steps and that of the same tokens read at once",
)
_EFFECT = Tolerance(
    "adapter_effect_change_percent",
    30.0,
    "within ±",
    "the change of the adapter's effect in percent",
)
_QUANTIZED = (*_ALWAYS, _perplexity(3.0), _DECODE, _EFFECT)

_REMEDIES = {
    "onnx-int4": "try --keep-head or a smaller --block-size",
    "onnx-int8": "try --keep-head, or onnx-fp16",
    "onnx-fp16": "export onnx, which is float32",
    "nf4": "export int8, which is closer",
    "int8": "export merged",
    "gguf-q4_0": "export gguf-q8_0, which is closer",
    "gguf-q8_0": "export gguf, which is F16",
}
_WRONG = "what was exported does not compute what the adapter does; do not use it"


def tolerances_of(form: str, base_dtype: str) -> tuple[Tolerance, ...]:
    """``base_dtype``: "float32", "bfloat16" or "float16", in which ``merged`` is written."""
    if form in _EXACT_FORMS or (form == "merged" and base_dtype == "float32"):
        return _EXACT
    if form == "merged":
        return _BFLOAT16 if base_dtype == "bfloat16" else _FLOAT16
    return _FLOAT16 if form in _FLOAT16_FORMS else _QUANTIZED


def judge(form: str, figures: Mapping[str, float], rules: tuple[Tolerance, ...]) -> list[str]:
    """A sentence for each figure that is out of bounds; the last one says what to try."""
    failures = [
        f"{rule.meaning} is {figures[rule.figure]:.4g} (allowed: {rule.kind} {rule.limit:g})"
        for rule in rules
        if rule.figure in figures and not rule.is_kept(figures[rule.figure])
    ]
    if failures:
        failures[-1] += f"; {_REMEDIES.get(form, _WRONG)}"
    return failures
