"""One model asked a whole suite: losses of rows, and answers by greedy decoding. The torch half.

Whose model it is (base, adapter) is the caller's business: the same function asks them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from artifacts.base import Base
from training.batches import collate
from training.data.examples import Example
from training.errors import GateFailed
from training.evaluate.answers import Answers
from training.evaluate.questions import Prepared, PreparedSuite
from training.evaluation import target_logits, to_device

_MAX_LOGITS = 1 << 26  # float32 logits that exist at once: 256 MB
_MAX_TOKENS = 1 << 15  # of a batch

_Row = TypeVar("_Row")
_Found = TypeVar("_Found")
Tell = Callable[[str, int], None]  # a task's name, and how many more of its answers are there


@torch.no_grad()
def ask(
    model: Any, base: Base, suite: PreparedSuite, batch_size: int, tell: Tell = lambda *_: None
) -> Answers:
    """Leaves the model in the mode it was in."""
    was_training = model.training
    model.eval()
    answers = Answers()
    for task in suite.all:
        if task.kind == "perplexity":
            answers.losses[task.name] = _losses(model, task, batch_size, tell)
        else:
            answers.texts[task.name] = _texts(model, base, task, batch_size, tell)
    model.train(was_training)
    return answers


def _losses(model: Any, task: Prepared, batch_size: int, tell: Tell) -> list[float]:
    found = [0.0] * len(task.examples)
    for places in _batches([e.input_ids for e in task.examples], batch_size):
        rows = [task.examples[place] for place in places]
        losses = _in_halves(lambda some: _row_losses(model, some), rows)
        for place, loss in zip(places, losses, strict=True):
            found[place] = loss
        tell(task.name, len(places))
    if not math.isfinite(sum(found)):
        raise GateFailed(
            f"the model's loss on task {task.name!r} is {sum(found)}: the weights or their number "
            "format are at fault; try float32"
        )
    return found


def _row_losses(model: Any, rows: Sequence[Example]) -> list[float]:
    batch = to_device(collate(rows), next(model.parameters()).device)
    logits, targets = target_logits(model, batch)
    at_once = max(1, _MAX_LOGITS // logits.shape[1])
    pieces = zip(logits.split(at_once), targets.split(at_once), strict=True)
    losses = torch.cat([cross_entropy(x.float(), y, reduction="none") for x, y in pieces])
    by_row = losses.double().split([row.num_targets for row in rows])
    return [float(row.sum()) for row in by_row]


def _texts(
    model: Any, base: Base, task: Prepared, batch_size: int, tell: Tell
) -> dict[str, list[str]]:
    """Equal prompts are asked once: noise leaves many a question as it was."""
    distinct = list(dict.fromkeys(tuple(p) for each in task.prompts.values() for p in each))
    said: dict[tuple[int, ...], str] = {}
    tell(task.name, task.num_answers - len(distinct))
    for places in _batches(distinct, batch_size, task.max_new_tokens):
        prompts = [distinct[place] for place in places]
        texts = _in_halves(lambda some: _generate(model, base, some, task.max_new_tokens), prompts)
        said |= zip(prompts, texts, strict=True)
        tell(task.name, len(places))
    return {
        variant: [said[tuple(prompt)] for prompt in prompts]
        for variant, prompts in task.prompts.items()
    }


def _generate(
    model: Any, base: Base, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    """The likeliest token after token, to the base's EOS."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    padding = min(base.eos_token_ids)
    ids = torch.full((len(prompts), longest), padding, device=device)  # [batch, longest]
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(base.eos_token_ids),
        pad_token_id=padding,
        use_cache=True,
    )
    out: Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
    return [
        base.tokenizer.decode(_until_end(answer, base), skip_special_tokens=True).strip()
        for answer in out[:, longest:].tolist()
    ]


def _in_halves(work: Callable[[Sequence[_Row]], list[_Found]], rows: list[_Row]) -> list[_Found]:
    """``work`` on all rows at once, or on fewer where memory is too small for them: at the end of
    a long run nobody is there to lower a batch size."""
    try:
        return work(rows)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(rows) // 2
    return _in_halves(work, rows[:half]) + _in_halves(work, rows[half:])


def _until_end(ids: list[int], base: Base) -> list[int]:
    end = next((place for place, id_ in enumerate(ids) if id_ in base.eos_token_ids), len(ids))
    return ids[:end]


def _batches(
    rows: Sequence[Sequence[int]], batch_size: int, num_new: int = 0
) -> Iterator[list[int]]:
    """Places of rows of like length, so that little is padded; longest first, for their memory.
    A batch of long rows holds fewer of them; each grows by ``num_new`` tokens."""
    order = sorted(range(len(rows)), key=lambda place: (-len(rows[place]), place))
    while order:
        fitting = _MAX_TOKENS // (len(rows[order[0]]) + num_new)
        size = max(1, min(batch_size, fitting))
        yield order[:size]
        order = order[size:]
