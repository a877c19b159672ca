"""What the adapter answers on its base: transformers and PEFT, float32, their own cache and masks.

Shares no code with what is exported: neither its attention nor its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from artifacts.base import Checkpoint, load_transformers_model
from artifacts.errors import Corrupt, InvalidInput
from artifacts.heldout import HeldOutRow
from export.proof.logits_file import LogitsFile
from export.proof.prompts import BATCH_SIZE, DECODE_STEPS, Questions
from export.quantized_base import is_quantized
from export.source import MergedTensors, Source

_CHUNK = 64  # places of a prefill at once: logits of more would not fit
_STEPS = DECODE_STEPS + 1  # logits of a decode: behind the prompt, and behind each token fed
_COPIES = 4  # of a chunk's logits that are in memory at once

Tell = Callable[[str], None]  # one unit of work is done


@dataclass(frozen=True, slots=True)
class Answers:
    """The reference on one batch. Its logits lie in the file, one vector a token."""

    rows: tuple[HeldOutRow, ...]
    first: tuple[int, ...]  # where each row's own begin
    decode_first: int  # where those of the answers begin: step 0 of all rows, step 1, …
    greedy: Tensor  # [num_rows, DECODE_STEPS + 1]
    is_answer: Tensor  # the same shape: up to the token that ends the answer, itself included

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [row.token_ids[: row.num_prompt] for row in self.rows]


def num_vectors(questions: Questions, *, has_plain: bool) -> int:
    """Logits of the adapter's answers and of the base's: all of these, or of its rows alone."""
    num_tokens = sum(len(row.token_ids) for row in questions.rows)
    return 2 * num_tokens + (1 + has_plain) * _STEPS * len(questions.rows)


def check_memory(source: Source) -> None:
    """Raises InvalidInput where the reference does not fit into what is free."""
    import psutil

    num_weights = sum(tensor.numel() for tensor in Checkpoint(source.base).values())
    num_logits = _COPIES * BATCH_SIZE * _CHUNK * source.base.config.vocab_size
    wanted, free = 4 * (num_weights + num_logits), psutil.virtual_memory().available
    if free < wanted:
        raise InvalidInput(
            f"a proof computes {source.base.id} in float32, which takes {wanted / 1e9:.1f} GB of "
            f"memory; {free / 1e9:.1f} GB are free. Free some, or prove it on another machine"
        )


def load_reference(source: Source) -> Any:
    """PEFT's model in eval mode; the base's weights dequantised where ``source.merge`` says so."""
    from peft import PeftModel

    model = load_transformers_model(source.base, "float32")
    if source.merge == "dequantized":
        _dequantize(model, source)
    return PeftModel.from_pretrained(model, str(source.folder)).eval()


@torch.no_grad()
def _dequantize(model: Any, source: Source) -> None:
    tensors = MergedTensors(source)
    for name in tensors:
        if is_quantized(name, source):  # old checkpoints hold frequencies, too, which no model has
            model.get_parameter(name).copy_(tensors.base_tensor(name))


@torch.no_grad()
def answer_all(
    model: Any, questions: Questions, ends: frozenset[int], file: LogitsFile, tell: Tell
) -> list[Answers]:
    """Batches of ragged rows, padded on the left. Raises Corrupt where a logit is not finite."""
    answers = []
    for batch in _batches(questions):
        first = file.reserve(sum(len(row.token_ids) + _STEPS for row in batch))
        answers.append(_answer(model, batch, ends, file, first))
        tell("reference")
    return answers


@torch.no_grad()
def read_all(model: Any, questions: Questions, file: LogitsFile, tell: Tell) -> list[list[int]]:
    """The rows alone, batch by batch: where the logits of each begin. Raises as `answer_all`."""
    firsts = []
    for batch in _batches(questions):
        rows = [row.token_ids for row in batch]
        first = file.reserve(sum(map(len, rows)))
        *starts, _ = accumulate(map(len, rows), initial=first)
        _read_rows(model, rows, starts, file)
        firsts.append(starts)
        tell("reference")
    return firsts


def _batches(questions: Questions) -> list[tuple[HeldOutRow, ...]]:
    rows = questions.rows
    return [rows[i : i + BATCH_SIZE] for i in range(0, len(rows), BATCH_SIZE)]


def _answer(
    model: Any, rows: tuple[HeldOutRow, ...], ends: frozenset[int], file: LogitsFile, first: int
) -> Answers:
    *starts, decode_first = accumulate((len(row.token_ids) for row in rows), initial=first)
    _read_rows(model, [row.token_ids for row in rows], starts, file)
    prompts = [row.token_ids[: row.num_prompt] for row in rows]
    greedy = _decode(model, prompts, decode_first, file)
    has_ended = torch.isin(greedy, torch.tensor(sorted(ends))).cumsum(1)
    is_answer = torch.cat([torch.ones_like(greedy[:, :1]), has_ended[:, :-1] == 0], 1).bool()
    return Answers(rows, tuple(starts), decode_first, greedy, is_answer)


def _read_rows(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], file: LogitsFile
) -> None:
    ids, mask = _padded(rows)
    cache, width = _new_cache(model), ids.shape[1]
    for begin in range(0, width, _CHUNK):
        end = min(begin + _CHUNK, width)
        logits = _forward(model, ids[:, begin:end], mask[:, :end], cache)
        for i, row in enumerate(rows):
            padding = width - len(row)
            found = logits[i, max(padding - begin, 0) :]
            if len(found):
                file.write(starts[i] + max(begin - padding, 0), _finite(found))


def _decode(model: Any, prompts: Sequence[Sequence[int]], first: int, file: LogitsFile) -> Tensor:
    ids, mask = _padded(prompts)
    cache, tokens = _new_cache(model), []
    for step in range(_STEPS):
        logits = _forward(model, ids, mask, cache, num_wanted=1)[:, 0]
        file.write(first + step * len(prompts), _finite(logits))
        ids = logits.argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        tokens.append(ids)
    return torch.cat(tokens, 1)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask [num_rows, width], as transformers' tokenizers pad on the left."""
    width = max(len(row) for row in rows)
    padded = [[0] * (width - len(row)) + list(row) for row in rows]
    masks = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(padded), torch.tensor(masks)


def _forward(model: Any, ids: Tensor, mask: Tensor, cache: Any, num_wanted: int = 0) -> Tensor:
    """Logits of the last ``num_wanted`` tokens, 0: of all; positions as in ``generate``."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=num_wanted,
    ).logits
    return logits


def _new_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _finite(logits: Tensor) -> Tensor:
    if not bool(torch.isfinite(logits).all()):
        raise Corrupt(
            "base and adapter themselves answer NaN or infinity in float32: there is nothing to "
            "compare with; check the adapter"
        )
    return logits
