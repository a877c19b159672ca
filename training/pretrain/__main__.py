"""Make the embedded base model again: tokenizer, training, export.

    python -m training.pretrain training/configs/embedded.yaml

The same command resumes an interrupted run. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from training.pretrain import loop
from training.pretrain.corpus import Corpus
from training.pretrain.model import build_model, export_model
from training.pretrain.recipe import Recipe, load_recipe
from training.pretrain.stream import Position, Stream
from training.pretrain.tokenizer import save_tokenizer, train_tokenizer

MALLOPT_M_TRIM_THRESHOLD, MALLOPT_M_MMAP_MAX = -1, -4  # from glibc's malloc.h
HELDOUT_SEED_OFFSET = 1_000_003
EVALUATION_BATCHES = 12


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks instead of returning them to the kernel after every step.

    Page faults on fresh activations otherwise cost a third of the training time.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(MALLOPT_M_MMAP_MAX, 0)
        libc.mallopt(MALLOPT_M_TRIM_THRESHOLD, 2**31 - 1)


def make_tokenizer(recipe: Recipe) -> Tokenizer:
    """The tokenizer of an earlier start of this run, or a newly trained one."""
    path = recipe.output / "tokenizer.json"
    if not path.exists():
        tokenizer = train_tokenizer(
            recipe.seed, recipe.shape.vocab_size, recipe.tokenizer_conversations
        )
        save_tokenizer(tokenizer, recipe.output, recipe.shape.context)
    return Tokenizer.from_file(str(path))


def make_stream(recipe: Recipe, tokenizer: Tokenizer, seed: int) -> Stream:
    """The recipe's stream under a seed (the held-out stream has its own)."""
    return Stream(
        corpus=Corpus(seed),
        tokenizer=tokenizer,
        seed=seed,
        pool_size=recipe.pool_size,
        batch_tokens=recipe.batch_tokens,
        prompt_weight=0.0 if seed != recipe.seed else recipe.prompt_weight,
        context=recipe.shape.context,
    )


@torch.no_grad()
def heldout_loss(run: loop.Run, tokenizer: Tokenizer) -> float:
    """Loss on assistant tokens of conversations that another seed wrote."""
    run.model.eval()
    stream = make_stream(run.recipe, tokenizer, run.recipe.seed + HELDOUT_SEED_OFFSET)
    total, count = 0.0, 0
    for _, batch in zip(range(EVALUATION_BATCHES), stream.batches(Position(1, 0)), strict=False):
        total += float(loop.batch_loss(run.model, batch)) * len(batch.rows)
        count += len(batch.rows)
    return total / count


def show(bar: Progress, recipe: Recipe) -> Callable[[loop.Progress, float], None]:
    """A reporter that moves the bar and leaves a plain line every 50 steps."""
    task = bar.add_task("pre-training", total=recipe.steps)

    def report(progress: loop.Progress, loss: float) -> None:
        bar.update(task, completed=progress.step, description=f"loss {loss:.3f}")
        if progress.step % 50 == 0:
            rate = progress.num_tokens / max(progress.elapsed_s, 1e-9)
            bar.console.print(
                f"step {progress.step}/{recipe.steps} loss {loss:.4f} tokens "
                f"{progress.num_tokens} {rate:.0f} tokens/s {progress.elapsed_s:.0f} s"
            )

    return report


def main() -> None:
    """Train, export and say how it went."""
    parser = argparse.ArgumentParser(prog="python -m training.pretrain", description=main.__doc__)
    parser.add_argument("config", type=Path, help="for example training/configs/embedded.yaml")
    recipe = load_recipe(parser.parse_args().config)
    keep_freed_memory()
    tokenizer = make_tokenizer(recipe)
    run = loop.start_run(recipe, build_model(recipe.shape, recipe.seed))
    run.restore()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as bar:
        is_finished = loop.train(
            run, make_stream(recipe, tokenizer, recipe.seed), show(bar, recipe)
        )
    loss = heldout_loss(run, tokenizer)
    export_model(run.model, recipe.output)
    result = {
        "finished": is_finished,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.progress.step,
        "tokens": run.progress.num_tokens,
        "pools": run.progress.position.pool + 1,
        "wall_s": round(run.progress.elapsed_s),
        "heldout_loss": round(loss, 4),
        "heldout_perplexity": round(math.exp(loss), 4),
        "output": str(recipe.output),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
