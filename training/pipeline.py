"""One run after its inputs are read: load the model, train, evaluate, gate, publish.

The heavy half: importing this takes seconds (torch, transformers' Trainer, PEFT).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from artifacts.adapter import LoraWeights, check_adapter, read_adapter
from artifacts.architecture import linear_shapes
from artifacts.errors import AdapterRejected
from artifacts.manifest import GateResult, ManifestDraft
from artifacts.results import Results
from artifacts.scratch import scratch_folder
from training.batches import num_batches
from training.checkpoints import KeptCheckpoints
from training.combinations import MAX_RANK
from training.config import TrainingConfig
from training.data.examples import lengths_of
from training.data.mixing import training_mix
from training.errors import GateFailed
from training.evaluate.beside import SuiteBeside
from training.evaluation import HeldOutLoss, held_out_loss
from training.events import Reporter
from training.gate import Probe, check_gate, probe_adapter, probe_logits
from training.heldout import keep_heldout
from training.inputs import Inputs
from training.loop import MethodTrainer, Session, build_trainer, run_training
from training.methods.method import choose_method
from training.objectives.objective import choose_objective
from training.outcome import Outcome
from training.plan import Device, identity, make_plan, max_batch_tokens, settle_max_length
from training.run_folder import RunFolder
from training.signals import StopRequest
from training.verdict import held_out_gates, suite_gates
from training.watch.account import Account
from training.watch.forecast import make_forecast
from training.watch.plot import plot_losses
from training.whole_model import ready_model

SUITE_BATCH_SIZE = 64  # questions; nothing is learned from them, so they cost little memory


def quiet_libraries() -> None:
    """Progress bars and notes of libraries that would stand between the lines of our own."""
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Base and adapter on the test part, and the saved adapter as the server will read it."""

    base: HeldOutLoss
    start: HeldOutLoss | None  # of the adapter that the run started from
    adapter: HeldOutLoss
    own: dict[str, float]  # the objective's figures beyond the loss per token
    validation_loss: float | None  # the best one, of the weights that are published
    num_steps: int
    probe: Probe
    weights: LoraWeights
    suite: Results | None

    @property
    def metrics(self) -> dict[str, float | str | None]:
        return {
            "base_loss": self.base.loss,
            **({} if self.start is None else {"start_loss": self.start.loss}),
            "adapter_loss": self.adapter.loss,
            "base_perplexity": self.base.perplexity,
            "adapter_perplexity": self.adapter.perplexity,
            "num_test_tokens": self.base.num_tokens,
            "validation_loss": self.validation_loss,
            "num_steps": self.num_steps,
            "effect": self.probe.effect,
            "merge_difference": self.probe.difference,
            "merged_logits_hash": self.probe.logits_hash,
            **self.own,
        }

    @property
    def judged(self) -> tuple[float, float]:
        """What was to be improved: before the run, and by the adapter."""
        if "preference_loss" in self.own:
            return self.own["reference_preference_loss"], self.own["preference_loss"]
        return self.base.loss, self.adapter.loss


def run_pipeline(
    inputs: Inputs, folder: RunFolder, reporter: Reporter, stop: StopRequest
) -> Outcome:
    """Raises GateFailed, Interrupted and what a configuration can get wrong about the base."""
    quiet_libraries()
    session = open_session(inputs, folder, reporter, stop)
    account = Account()
    trainer = load_trainer(inputs, session)
    start = None if inputs.start is None else _test_loss(trainer, session)
    _train(trainer, session, account)
    with scratch_folder(inputs.home.tmp, "train-") as scratch:
        publish = _ready(trainer, inputs, session, scratch, start)
        settings = _settings(inputs, session)
        stop.ignore()
        stop.check()
        # Said before: a server that freezes its children must not freeze one that holds the
        # database's lock.
        session.reporter.emit({"event": "used", **account.usage})
        session.reporter.emit({"event": "publishing"})
        return publish(settings)


def _ready(
    trainer: MethodTrainer,
    inputs: Inputs,
    session: Session,
    scratch: Path,
    start: HeldOutLoss | None,
) -> Callable[[dict[str, Any]], Outcome]:
    """Saves and judges; what comes back publishes with the settings it is given."""
    if not session.method.makes_adapter:
        return ready_model(trainer, inputs, session, scratch)
    evaluation = _evaluate(trainer, inputs, session, scratch, start)
    gates = _judge(session.config, evaluation)

    def publish(settings: dict[str, Any]) -> Outcome:
        draft = _draft(inputs, evaluation, gates, settings)
        version = inputs.registry.publish(inputs.config.name, scratch, draft)
        test = session.objective.supervised_rows(trainer.split.test)
        keep_heldout(inputs.home, version.content_hash, test)
        return Outcome(
            kind="adapter",
            id=version.id,
            path=version.path,
            content_hash=version.content_hash,
            metrics=version.manifest.metrics,
            gate=version.manifest.gate,
            failed_gates=tuple(str(gate) for gate in version.manifest.failed_gates),
        )

    return publish


def _train(trainer: MethodTrainer, session: Session, account: Account) -> None:
    """Says before what it will take, and keeps a plot of its losses however it ends."""
    forecast = make_forecast(trainer, session.first_step, account.mark)
    session.reporter.emit(forecast.as_event())
    account.begin(forecast)
    try:
        run_training(trainer, session)
    finally:
        plot_losses(trainer.state.log_history, session.config.name, session.folder.plot)
    account.end()


def open_session(
    inputs: Inputs, folder: RunFolder, reporter: Reporter, stop: StopRequest
) -> Session:
    """Plan, method, objective and the checkpoint to go on from, if any."""
    config, base = inputs.config, inputs.base
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    plan = make_plan(config, base.config, _num_batches(inputs), _device())
    hashes = {
        "base_fingerprint": base.fingerprint,
        "template_hash": base.template_hash,
        "data_hash": inputs.data.data_hash,
        "start_hash": None if inputs.start is None else inputs.start.weights.content_hash,
    }
    checkpoint = folder.checkpoint_for(config.resume, identity(config, plan, hashes))
    return Session(
        config=config,
        plan=plan,
        method=choose_method(config, base, plan, inputs.start),
        objective=choose_objective(config),
        folder=folder,
        checkpoint=checkpoint,
        reporter=reporter,
        stop=stop,
    )


def _device() -> Device:
    if torch.cuda.is_available():
        return "cuda"
    return "amx" if torch.cpu.get_capabilities().get("amx_bf16", False) else "cpu"


def _num_batches(inputs: Inputs) -> int:
    config, rows = inputs.config, inputs.data.split.train
    max_length = settle_max_length(config, inputs.base.context_length)
    max_tokens = max_batch_tokens(config, max_length)
    return num_batches(lengths_of(rows), config.batch_size, max_tokens, training_mix(config, rows))


def load_trainer(inputs: Inputs, session: Session) -> MethodTrainer:
    """The model with what is to be trained of it, ready for the first step."""
    model = session.method.build()
    if torch.cuda.is_available() and session.config.quantization == "none":
        model.to("cuda")  # as the trainer does later; a reference is taken before
    split = session.objective.prepare(model, inputs.data.split, session.config.batch_size)
    trainer = build_trainer(model, split, session)
    if session.config.kept_checkpoints and session.method.makes_adapter:
        trainer.add_callback(_kept_checkpoints(inputs, session))
    session.reporter.emit({
        "event": "started",
        "pid": os.getpid(),
        "num_train": len(split.train),
        "num_validation": len(split.validation),
        "num_test": len(split.test),
        "total_steps": session.plan.total_steps,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "resumed_from": None if session.checkpoint is None else session.checkpoint.name,
        **inputs.data.counts,
    })  # fmt: skip
    return trainer


def _test_loss(trainer: MethodTrainer, session: Session) -> HeldOutLoss:
    rows = session.objective.supervised_rows(trainer.split.test)
    return held_out_loss(trainer.model, rows, session.config.batch_size)


def _kept_checkpoints(inputs: Inputs, session: Session) -> KeptCheckpoints:
    folder = session.folder.path / "checkpoints"
    return KeptCheckpoints(folder, session.config, inputs.base, inputs.data.data_hash)


def _evaluate(
    trainer: MethodTrainer,
    inputs: Inputs,
    session: Session,
    scratch: Path,
    start: HeldOutLoss | None,
) -> Evaluation:
    """Compares on the test part, which nothing was chosen by."""
    model: Any = trainer.model
    test = session.objective.supervised_rows(trainer.split.test)
    adapter = _test_loss(trainer, session)
    own = session.objective.held_out(model, trainer.split.test, session.config.batch_size)
    adapted = probe_logits(model, test)
    suite = SuiteBeside(inputs.suite, inputs.base, SUITE_BATCH_SIZE, session.reporter)
    suite.ask("adapter", model)
    session.method.save(model, scratch)
    weights = _read_back(inputs, scratch)
    session.method.restore_base(model)
    with model.disable_adapter():
        base = _test_loss(trainer, session)
        suite.ask("base", model)
    return Evaluation(
        base=base,
        start=start,
        adapter=adapter,
        own=own,
        validation_loss=trainer.state.best_metric,
        num_steps=trainer.state.global_step,
        probe=probe_adapter(model, adapted, weights, test),
        weights=weights,
        suite=suite.results,
    )


def _read_back(inputs: Inputs, scratch: Path) -> LoraWeights:
    """The server's own gate on what was written: a refusal here is ours, not the caller's."""
    try:
        weights = read_adapter(scratch)
        shapes = linear_shapes(inputs.base.config)
        check_adapter(weights, shapes, max_rank=MAX_RANK)
    except AdapterRejected as error:
        raise GateFailed(f"the adapter cannot be served ({error.reason}): {error}") from error
    return weights


def _draft(
    inputs: Inputs,
    evaluation: Evaluation,
    gates: tuple[GateResult, ...],
    settings: dict[str, Any],
) -> ManifestDraft:
    weights, base = evaluation.weights, inputs.base
    return ManifestDraft(
        content_hash=weights.content_hash,
        base_id=base.id,
        base_fingerprint=base.fingerprint,
        template_hash=base.template_hash,
        data_hash=inputs.data.data_hash,
        origin="trained",
        rank=weights.rank,
        alpha=weights.alpha,
        target_modules=weights.target_modules,
        num_parameters=weights.num_parameters,
        num_bytes=weights.num_bytes,
        settings=settings,
        metrics=evaluation.metrics,
        gates=gates,
        evaluation=evaluation.suite,
    )


def _judge(config: TrainingConfig, evaluation: Evaluation) -> tuple[GateResult, ...]:
    """Raises GateFailed for what must not be registered at all."""
    passed = check_gate(evaluation.adapter, evaluation.probe)
    gates = [*passed, *held_out_gates(config.gate, *evaluation.judged, config.objective)]
    return tuple(gates + (suite_gates(evaluation.suite) if config.gate == "strict" else []))


def _settings(inputs: Inputs, session: Session) -> dict[str, Any]:
    """Everything needed to make this version again, but no path of this machine."""
    local = {"home", "output_dir", "resume", "base", "suite", "validation_data", "test_data"}
    asked = session.config.model_dump(mode="json", exclude=local)
    return {
        **asked,
        **asdict(session.plan),
        "start_from": None if inputs.start is None else inputs.start.id,
        "data": inputs.data.sources,
        "data_weights": [source.weight for source in session.config.data],
        "data_report": inputs.data.report.totals(),
        **inputs.data.counts,
        "num_threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
