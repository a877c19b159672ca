"""From conversations to batches: tokens, which of them the assistant wrote, and buckets by length.

The text is assembled segment by segment instead of through the template engine, which would cost
more than the training step; a test holds the two equal, token for token.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from training.pretrain.corpus import Conversation, Corpus
from training.pretrain.template import segments
from training.pretrain.tokenizer import PAD, SPECIAL_TOKENS

PAD_ID = SPECIAL_TOKENS.index(PAD)


@dataclass(frozen=True)
class Position:
    """Where the stream stands: the next batch is number `batch` of pool `pool`."""

    pool: int
    batch: int


@dataclass(frozen=True)
class Batch:
    """Right-padded conversations; the causal mask alone keeps padding out of real tokens."""

    tokens: torch.Tensor  # [num_rows, length] int64
    rows: torch.Tensor  # [num_targets] row of each position that predicts a target
    columns: torch.Tensor  # [num_targets]
    num_tokens: int  # without padding
    following: Position


def encode(tokenizer: Tokenizer, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and for each whether the assistant wrote it."""
    ids: list[int] = []
    mask: list[bool] = []
    for text, is_assistant in segments(conversation.messages, conversation.tools):
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        mask += [is_assistant] * len(piece)
    return ids, mask


@dataclass(frozen=True)
class Stream:
    """The training stream of a recipe; `batches(position)` starts anywhere."""

    corpus: Corpus
    tokenizer: Tokenizer
    seed: int
    pool_size: int
    batch_tokens: int
    prompt_weight: float
    context: int

    def batches(self, start: Position) -> Iterator[Batch]:
        """Endless batches from `start` on; each says where the next one stands."""
        pool, batch = start.pool, start.batch
        while True:
            plan, encoded = self._plan(pool)
            for number in range(batch, len(plan)):
                last = number + 1 == len(plan)
                following = Position(pool + 1, 0) if last else Position(pool, number + 1)
                rng = random.Random(f"{self.seed}/{pool}/{number}")
                yield self._collate([encoded[i] for i in plan[number]], rng, following)
            pool, batch = pool + 1, 0

    def _plan(self, pool: int) -> tuple[list[list[int]], list[tuple[list[int], list[bool]]]]:
        conversations = self.corpus.pool(pool, self.pool_size)
        encoded = [encode(self.tokenizer, conversation) for conversation in conversations]
        encoded = [item for item in encoded if len(item[0]) <= self.context]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))
        plan: list[list[int]] = [[]]
        for index in order:
            if (len(plan[-1]) + 1) * len(encoded[index][0]) > self.batch_tokens and plan[-1]:
                plan.append([])
            plan[-1].append(index)
        random.Random(f"{self.seed}/{pool}/order").shuffle(plan)
        return plan, encoded

    def _collate(
        self, items: list[tuple[list[int], list[bool]]], rng: random.Random, following: Position
    ) -> Batch:
        """Pad, and pick the targets: all assistant tokens, `prompt_weight` of the others.

        Sampling the prompt's targets equals weighting them, and spares their output logits.
        """
        length = max(len(ids) for ids, _ in items)
        tokens = torch.full((len(items), length), PAD_ID, dtype=torch.int64)
        rows: list[int] = []
        columns: list[int] = []
        for row, (ids, mask) in enumerate(items):
            tokens[row, : len(ids)] = torch.tensor(ids)
            for column in range(len(ids) - 1):
                if mask[column + 1] or rng.random() < self.prompt_weight:
                    rows.append(row)
                    columns.append(column)
        num_tokens = sum(len(ids) for ids, _ in items)
        return Batch(tokens, torch.tensor(rows), torch.tensor(columns), num_tokens, following)
