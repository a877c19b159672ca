"""The end of a run that trained a whole model: evaluate, reload, gate, publish.

What is judged is what lies on disk, opened as the server would: rounding to the base's number
format is part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.base import Base, Checkpoint, load_transformers_model, open_base
from artifacts.errors import InvalidInput, NotFound
from artifacts.manifest import Metric
from artifacts.models import ModelDraft, publish_model
from training.errors import GateFailed
from training.evaluation import HeldOutLoss, held_out_loss
from training.gate import TOLERANCE, probe_logits
from training.inputs import Inputs
from training.loop import MethodTrainer, Session
from training.outcome import Outcome


@dataclass(frozen=True, slots=True)
class ModelEvaluation:
    """Base and reloaded model on the test part; shares are of the base's largest probe logit."""

    base: HeldOutLoss
    model: HeldOutLoss
    effect: float  # model against base
    difference: float  # reloaded against live
    tolerance: float


def ready_model(
    trainer: MethodTrainer, inputs: Inputs, session: Session, scratch: Path
) -> Callable[[dict[str, Any]], Outcome]:
    """Saves and judges the model; what comes back publishes it with the settings it is given.

    Raises GateFailed.
    """
    session.method.save(trainer.model, scratch)
    reloaded = _reopen(scratch)
    evaluation = _evaluate(trainer, inputs, session, reloaded)
    _check(evaluation)
    metrics = _metrics(evaluation, trainer)

    def publish(settings: dict[str, Any]) -> Outcome:
        draft = ModelDraft(
            fingerprint=reloaded.fingerprint,
            base_id=inputs.base.id,
            base_fingerprint=inputs.base.fingerprint,
            template_hash=reloaded.template_hash,
            data_hash=inputs.data.data_hash,
            num_parameters=sum(p.numel() for p in trainer.model.parameters()),
            settings=settings,
            metrics=metrics,
        )
        model = publish_model(inputs.home, inputs.config.name, scratch, draft)
        return Outcome("model", model.manifest.id, model.path, reloaded.fingerprint, metrics)

    return publish


def _reopen(scratch: Path) -> Base:
    """The server's own gate for bases: a refusal here is ours, not the caller's."""
    try:
        return open_base(scratch)
    except (InvalidInput, NotFound) as error:
        raise GateFailed(f"the model cannot be opened as a base: {error}") from error


def _evaluate(
    trainer: MethodTrainer, inputs: Inputs, session: Session, reloaded: Base
) -> ModelEvaluation:
    """One model beside the live one at a time."""
    live: Any = trainer.model
    test, batch_size = trainer.split.test, session.config.batch_size
    live_logits = probe_logits(live, test)
    computed = getattr(torch, session.plan.dtype)
    device = next(live.parameters()).device
    figures = []
    for source in (inputs.base, reloaded):
        model = load_transformers_model(source, session.plan.dtype).to(device)
        figures.append((held_out_loss(model, test, batch_size), probe_logits(model, test)))
        del model
    (base, base_logits), (saved, saved_logits) = figures
    scale = base_logits.abs().max().item()
    return ModelEvaluation(
        base=base,
        model=saved,
        effect=(saved_logits - base_logits).abs().max().item() / scale,
        difference=(saved_logits - live_logits).abs().max().item() / scale,
        tolerance=max(TOLERANCE[kind] for kind in {_stored_dtype(reloaded), computed}),
    )


def _stored_dtype(base: Base) -> Any:
    checkpoint = Checkpoint(base)
    return checkpoint[next(iter(checkpoint))].dtype


def _check(evaluation: ModelEvaluation) -> None:
    if not evaluation.effect > 0:
        raise GateFailed("the model changes no logit of the probe rows; it has no effect")
    if not evaluation.difference <= evaluation.tolerance:
        raise GateFailed(
            f"logits before saving and after reading back differ by {evaluation.difference:.1e} of "
            f"the base's largest (allowed: {evaluation.tolerance:.0e}); the saved model is not the "
            "trained one"
        )
    if not evaluation.model.loss < evaluation.base.loss:  # also true for NaN
        raise GateFailed(
            f"the held-out loss of the model ({evaluation.model.loss:.4f}) is not below the base's "
            f"({evaluation.base.loss:.4f}); train longer, on more rows, or with another "
            "learning_rate"
        )


def _metrics(evaluation: ModelEvaluation, trainer: MethodTrainer) -> dict[str, Metric]:
    return {
        "base_loss": evaluation.base.loss,
        "model_loss": evaluation.model.loss,
        "base_perplexity": evaluation.base.perplexity,
        "model_perplexity": evaluation.model.perplexity,
        "num_test_tokens": evaluation.base.num_tokens,
        "validation_loss": trainer.state.best_metric,
        "num_steps": trainer.state.global_step,
        "effect": evaluation.effect,
        "reload_difference": evaluation.difference,
    }
