"""Texts for a calibration, written by the model itself, so that no customer's words are needed.

It continues the chat template from where a user's message begins: first it asks, then it answers
(Xu et al., 2024, "Magpie"). What it learned is what it writes about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from artifacts.base import Base
from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidInput

NUM_ROWS = 64
NUM_TOKENS = 160  # of a row
_MARK = "⁂"
_SEED = 0


@torch.no_grad()
def sample_texts(model: Any, base: Base, tell: Callable[[int], None]) -> Tensor:
    """Token ids [`NUM_ROWS`, `NUM_TOKENS` or the context], drawn at temperature 1 and one seed.

    ``tell`` hears how many tokens each row has. Raises as `opening` does.
    """
    start = opening(base)
    draw = torch.Generator().manual_seed(_SEED)
    ids = torch.tensor(start).repeat(NUM_ROWS, 1)
    new, cache = ids, None
    while ids.shape[1] < num_tokens(base):
        out = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        below = out.logits[:, -1].softmax(-1).cumsum(-1)
        point = torch.rand(NUM_ROWS, 1, generator=draw) * below[:, -1:]
        new = torch.searchsorted(below, point, right=True).clamp(max=below.shape[1] - 1)
        ids = torch.cat([ids, new], 1)
        tell(ids.shape[1])
    return ids[:, : num_tokens(base)]


def num_tokens(base: Base) -> int:
    return min(NUM_TOKENS, base.context_length)


def opening(base: Base) -> list[int]:
    """What stands before a user's words; BOS or EOS for a base without a chat template.

    Raises InvalidInput for one that has none of them.
    """
    tokenizer = base.tokenizer
    if base.template_hash is not None:
        text = ChatRenderer(tokenizer).render_text([{"role": "user", "content": _MARK}])
        ids: list[int] = tokenizer.encode(text.partition(_MARK)[0], add_special_tokens=False)
        if ids:
            return ids
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise InvalidInput(
            f"{base.id} has neither chat template nor BOS or EOS for a text to begin with; pass "
            "--no-calibrate",
            param="calibrate",
        )
    return [int(first)]
