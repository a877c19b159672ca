"""The training loop: transformers' Trainer with our loss, our batches and our callbacks.

Resume is exact on CPU with the same number of threads: weights, optimizer, schedule, random state,
batch order, patience and best checkpoint all continue where the checkpoint left them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from training.batches import ExampleDataset, ShuffledBatches
from training.callbacks import AfterStep, Checkpoints, ProgressEvents
from training.config import TrainingConfig
from training.data.mixing import training_mix
from training.data.split import Split
from training.early_stopping import EarlyStopping, had_stopped_early
from training.events import Reporter
from training.methods.method import Method
from training.methods.state import load_state, save_state
from training.objectives.objective import Objective
from training.plan import Plan, max_batch_tokens
from training.run_folder import RunFolder, read_state
from training.signals import StopRequest
from training.watch.callbacks import LiveDoctor
from training.watch.trackers import tracker_callbacks

_SCHEDULERS = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant_with_warmup",
    "plateau": "reduce_lr_on_plateau",
}
# Half the rate after two evaluations without improvement: torch's ten are more than a run has.
_PLATEAU = {"factor": 0.5, "patience": 1}
_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}


@dataclass(frozen=True, slots=True)
class Session:
    """What one process of a run works with; ``checkpoint`` is where it continues, if anywhere."""

    config: TrainingConfig
    plan: Plan
    method: Method
    objective: Objective
    folder: RunFolder
    checkpoint: Path | None
    reporter: Reporter
    stop: StopRequest

    @property
    def first_step(self) -> int:
        """Steps that are done already."""
        return 0 if self.checkpoint is None else int(read_state(self.checkpoint)["global_step"])


class MethodTrainer(Trainer):  # type: ignore[misc]
    """Trainer with a method's parameters, an objective's loss and unpadded batches.

    Its checkpoints hold the trained parameters alone, and beside them what can be published.
    """

    control: TrainerControl
    optimizer: Any

    def __init__(self, model: Any, args: TrainingArguments, split: Split, session: Session) -> None:
        self._method = session.method
        self.objective = session.objective
        self.split = split
        self.config = session.config
        self._max_tokens = max_batch_tokens(session.config, session.plan.max_length)
        super().__init__(
            model=model,
            args=args,
            data_collator=session.objective.collate,
            train_dataset=ExampleDataset(split.train),
            eval_dataset=ExampleDataset(split.validation) if split.validation else None,
        )
        self.num_tokens = 0  # trained on in this process
        # Both tell the Trainer that compute_loss divides by the items of the whole step.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def get_train_dataloader(self) -> Any:
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.make_batches(),
            collate_fn=self.objective.collate,
        )
        return self.accelerator.prepare(loader)

    def make_batches(self) -> ShuffledBatches:
        """The order of the rows, from the first epoch on."""
        config = self.config
        rows = self.split.train
        mix = training_mix(config, rows)
        return ShuffledBatches(rows, config.batch_size, config.seed, self._max_tokens, mix)

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = self._method.make_optimizer(self.model, kind, options)
        return super().create_optimizer(model)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Tensor | None:
        """Trainer's hook: what the loss of the whole step, all its batches, is divided by."""
        return self.objective.num_items(batch_samples).to(device) if batch_samples else None

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        assert not return_outputs
        assert num_items_in_batch is not None
        self.num_tokens += inputs["input_ids"].numel()
        loss = self.objective.summed_loss(model, inputs) / num_items_in_batch
        penalty = self._method.penalty(model)
        return (
            loss if penalty is None else loss + penalty / self.current_gradient_accumulation_steps
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The objective's own mean; the Trainer's depends on the batches."""
        loss = self.objective.validation_loss(
            self.model, self.split.validation, self.args.per_device_eval_batch_size
        )
        metrics = {"eval_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self.state.global_step < self._method.first_publishable_step:
            return False
        return bool(super()._determine_best_metric(metrics, trial))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_state(self._method, self.model, folder)
        if self._method.makes_adapter:
            self._method.save(self.model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_state(self._method, self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_state(self._method, self.model, Path(self.state.best_model_checkpoint))

    def take_best_of(self, checkpoint: Path) -> None:
        """The end of a run that needs no further step: its state and its best weights."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._load_best_model()


def build_trainer(model: Any, split: Split, session: Session) -> MethodTrainer:
    """A trainer for ``run_training``; draws no random numbers of its own before that."""
    trainer = MethodTrainer(model, _arguments(session), split, session)
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to the events
    config, plan = session.config, session.plan
    trainer.add_callback(LiveDoctor(session.reporter))
    trainer.add_callback(ProgressEvents(session.reporter, trainer, plan.logging_steps))
    trainer.add_callback(AfterStep(session.method.after_step))
    trainer.add_callback(Checkpoints(session.stop, config.save_steps))
    if config.early_stopping_patience is not None and plan.eval_steps is not None:
        trainer.add_callback(
            EarlyStopping(
                config.early_stopping_patience,
                config.early_stopping_unit,
                config.early_stopping_threshold,
                session.method.first_publishable_step,
            )
        )
    for callback in tracker_callbacks(config, session.folder.logs, session.first_step):
        trainer.add_callback(callback)
    return trainer


def run_training(trainer: MethodTrainer, session: Session) -> None:
    """Trains to the end, to early stopping or to a stop request.

    Afterwards the model holds the weights with the lowest validation loss (the last ones without a
    validation part). A stop request leaves a checkpoint and raises Interrupted.
    """
    checkpoint = session.checkpoint
    if checkpoint is not None and had_stopped_early(checkpoint):
        trainer.take_best_of(checkpoint)
        return
    with session.stop.noted():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    session.stop.check()


def _arguments(session: Session) -> TrainingArguments:
    config, plan = session.config, session.plan
    evaluates = plan.eval_steps is not None
    return TrainingArguments(
        output_dir=str(session.folder.path),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        max_steps=plan.total_steps,
        learning_rate=plan.learning_rate,
        optim=_OPTIMIZERS[config.optimizer],
        lr_scheduler_type=_SCHEDULERS[config.lr_scheduler],
        lr_scheduler_kwargs=_PLATEAU if config.lr_scheduler == "plateau" else None,
        neftune_noise_alpha=config.neftune_alpha,
        warmup_steps=plan.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=plan.dtype == "bfloat16",
        fp16=plan.dtype == "float16",
        use_cpu=not torch.cuda.is_available(),  # without it, bf16 is refused on a CPU
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps" if evaluates else "no",
        eval_steps=plan.eval_steps,
        save_strategy="steps",
        save_steps=plan.total_steps if plan.eval_steps is None else plan.eval_steps,
        save_total_limit=2,  # the last and the best
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        logging_steps=1,  # see ProgressEvents
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        remove_unused_columns=False,
    )
