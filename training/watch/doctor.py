"""The live doctor: from the losses of a run to a symptom, its cause and its remedy. No torch.

It reads the history alone, so a resumed run comes to the same diagnoses. Each symptom is told once,
and again only after it was gone. Losses are compared as means over windows: single steps are noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median, pstdev

WINDOW = 20  # steps that are compared with the steps before them
MIN_STEPS = 3 * WINDOW
_EXPLOSION = 20.0  # gradient norms above this many medians
_SWING = 0.35  # spread of a window's losses, as a share of their mean
_LEARNED = 0.3  # of the loss at the start
_FLAT = 0.002  # relative gain of a window over the two before it
_RISES = 2  # evaluations in a row with a rising validation loss


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding, in words for the person who started the run."""

    symptom: str
    seen: str
    cause: str
    remedy: str


@dataclass(slots=True)
class History:
    """What the run has shown so far; one entry per optimizer step or evaluation."""

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    train_at_validation: list[float] = field(default_factory=list)  # the window's mean loss then
    learning_rate_is_falling: bool = False

    def add_step(self, loss: float, gradient_norm: float | None) -> None:
        self.losses.append(loss)
        if gradient_norm is not None:
            self.gradient_norms.append(gradient_norm)

    def add_evaluation(self, loss: float) -> None:
        self.validation.append(loss)
        self.train_at_validation.append(fmean(self.losses[-WINDOW:]) if self.losses else math.nan)


def not_a_number(history: History) -> Diagnosis | None:
    if not history.losses or math.isfinite(history.losses[-1]):
        return None
    return Diagnosis(
        "not_a_number",
        f"the loss became {history.losses[-1]} at step {len(history.losses)}",
        "the learning rate is too high, or float16 overflowed",
        "halve learning_rate or raise warmup_ratio; with float16 take dtype=bfloat16",
    )


def everything_masked(history: History) -> Diagnosis | None:
    recent = history.losses[-3:]
    if len(recent) < 3 or any(loss != 0.0 for loss in recent):
        return None
    return Diagnosis(
        "everything_masked",
        "the loss is exactly 0 for three steps",
        "no token of these rows is learned: the mask leaves nothing of the replies",
        "look at the rendered rows with `loraloop data check FILE --preview 3`",
    )


def exploding_gradient(history: History) -> Diagnosis | None:
    norms = history.gradient_norms
    if len(norms) < WINDOW + 3:
        return None
    usual = median(norms[-WINDOW - 3 : -3])
    now = norms[-3:]
    if not usual > 0 or min(now) < _EXPLOSION * usual:
        return None
    return Diagnosis(
        "exploding_gradient",
        f"gradient norms of {now[-1]:.3g} where {usual:.3g} was usual",
        "the learning rate is too high for these rows, or some rows are unlike the rest",
        "halve learning_rate, keep max_grad_norm at 1, look for broken rows",
    )


def oscillation(history: History) -> Diagnosis | None:
    """Large swings that do not come down, while the mean does not fall either.

    What has been learned swings too, by shares of next to nothing: that is no finding.
    """
    if len(history.losses) < MIN_STEPS:
        return None
    if fmean(history.losses[-WINDOW:]) < _LEARNED * fmean(history.losses[:WINDOW]):
        return None
    before, now = history.losses[-2 * WINDOW : -WINDOW], history.losses[-WINDOW:]
    if fmean(now) < 0.98 * fmean(before):
        return None
    if min(_spread(before), _spread(now)) < _SWING:
        return None
    return Diagnosis(
        "oscillation",
        f"losses swing by {_spread(now):.0%} of their mean, which does not fall",
        "the learning rate is too high, or a step sees too few rows",
        "halve learning_rate, or double gradient_accumulation",
    )


def plateau(history: History) -> Diagnosis | None:
    """Flat from early on. At the end of a decaying schedule that is as it should be."""
    if len(history.losses) < MIN_STEPS or history.learning_rate_is_falling:
        return None
    windows = _windows(history.losses)
    first, (earlier, before, now) = windows[0], windows[-3:]
    is_flat = now > (1 - _FLAT) * min(earlier, before)
    if not is_flat or now < 0.7 * first or _spread(history.losses[-WINDOW:]) >= _SWING:
        return None
    return Diagnosis(
        "plateau",
        f"the loss stays at {now:.3g}, from {first:.3g} at the start",
        "the learning rate is too low, or the adapter too small for the task",
        "double learning_rate; then try twice the rank; check that replies follow from questions",
    )


def overfitting(history: History) -> Diagnosis | None:
    held_out, train = history.validation, history.train_at_validation
    if len(held_out) <= _RISES:
        return None
    recent = held_out[-_RISES - 1 :]
    rises = all(later > earlier for earlier, later in pairwise(recent))
    if not rises or not train[-1] < train[-_RISES - 1]:
        return None
    return Diagnosis(
        "overfitting",
        f"validation loss {min(held_out):.4g} → {held_out[-1]:.4g} while the training loss falls",
        "the run learns its rows by heart",
        "fewer epochs, more rows, dropout=0.05 or a smaller rank; the best weights so far are kept",
    )


RULES: tuple[Callable[[History], Diagnosis | None], ...] = (
    not_a_number,
    everything_masked,
    exploding_gradient,
    oscillation,
    plateau,
    overfitting,
)


class Doctor:
    """Applies every rule to a history; tells a symptom when it begins."""

    def __init__(self) -> None:
        self.history = History()
        self._num_looks = 0
        self._seen: dict[str, int] = {}  # symptom → the look at which it was last there

    def look(self) -> list[Diagnosis]:
        """New findings: symptoms that were not there for a window's time."""
        self._num_looks += 1
        found = [d for rule in RULES if (d := rule(self.history)) is not None]
        forgotten = self._num_looks - WINDOW
        new = [d for d in found if self._seen.get(d.symptom, -math.inf) <= forgotten]
        self._seen |= {d.symptom: self._num_looks for d in found}
        return new


def _spread(losses: Sequence[float]) -> float:
    mean = fmean(losses)
    return pstdev(losses) / mean if mean > 0 else 0.0


def _windows(losses: Sequence[float]) -> list[float]:
    """Means of whole windows, the last one ending with the last step."""
    begin = len(losses) % WINDOW
    return [fmean(losses[i : i + WINDOW]) for i in range(begin, len(losses), WINDOW)]
