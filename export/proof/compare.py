"""The figures of an export beside its reference, batch by batch: never are all logits in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from artifacts.exported.graph import AdapterInputs, ExportedModel
from export.proof.logits_file import LogitsFile
from export.proof.reference import Answers, Tell
from export.proof.stream import Padding, Stream
from export.proof.tolerances import NEAR_TIE

_CHUNK = 32  # places of a prefill: another size than the reference's, so borders fall elsewhere
_MAX_NLL = 700.0  # exp of more is no float
_KL_FLOOR = 1e-6  # nats: below it, a ratio of two of them is a ratio of rounding errors


@dataclass(slots=True)
class Differences:
    """Sums over the tokens of one pass; those whose logits are not finite are only counted."""

    num_tokens: int = 0
    num_not_finite: int = 0
    num_logits: int = 0
    max_diff: float = 0.0
    sum_diff: float = 0.0
    max_logit: float = 0.0
    sum_kl: float = 0.0
    max_kl: float = 0.0
    num_same: int = 0

    def add(self, reference: Tensor, found: Tensor) -> Tensor:
        """Both [num_tokens, vocab_size]. Returns which of the tokens have finite logits."""
        is_finite = torch.isfinite(found)
        self.num_not_finite += int((~is_finite).sum())
        is_whole = is_finite.all(1)
        self._add(reference[is_whole], found[is_whole])
        return is_whole

    def _add(self, reference: Tensor, found: Tensor) -> None:
        if not len(reference):
            return
        diff = (found - reference).abs()
        divergence = kl(reference, found)
        self.num_tokens += len(reference)
        self.num_logits += reference.numel()
        self.max_diff = max(self.max_diff, float(diff.max()))
        self.sum_diff += float(diff.sum(dtype=torch.float64))
        self.max_logit = max(self.max_logit, float(reference.abs().max()))
        self.sum_kl += float(divergence.sum(dtype=torch.float64))
        self.max_kl = max(self.max_kl, float(divergence.max()))
        self.num_same += int((reference.argmax(1) == found.argmax(1)).sum())

    @property
    def mean_kl(self) -> float:
        return self.sum_kl / max(self.num_tokens, 1)


@dataclass(slots=True)
class Perplexity:
    """Negative log-likelihoods of known tokens under both."""

    num_tokens: int = 0
    reference: float = 0.0
    found: float = 0.0

    def add(self, reference: Tensor, found: Tensor, targets: Tensor) -> None:
        index = targets[:, None]
        self.num_tokens += len(targets)
        for name, logits in (("reference", reference), ("found", found)):
            loss = -logits.log_softmax(1).gather(1, index).sum(dtype=torch.float64)
            setattr(self, name, getattr(self, name) + float(loss))

    def figures(self) -> dict[str, float]:
        if not self.num_tokens:
            return {}
        before, after = (
            math.exp(min(total / self.num_tokens, _MAX_NLL))
            for total in (self.reference, self.found)
        )
        return {
            "perplexity_reference": before,
            "perplexity": after,
            "perplexity_change_percent": 100 * (after / before - 1),
            "num_perplexity_tokens": float(self.num_tokens),
        }


@dataclass(slots=True)
class Greedy:
    """Greedy tokens under the reference's own, so that one that differs does not spoil the next."""

    num_tokens: int = 0
    num_near_ties: int = 0
    num_same: int = 0
    num_answers: int = 0
    num_equal_answers: int = 0

    def add(self, tokens: Tensor, found: Tensor, is_tie: Tensor, is_answer: Tensor) -> None:
        """All [num_rows, num_steps]."""
        is_same = tokens == found
        counted = is_answer & ~is_tie
        self.num_tokens += int(counted.sum())
        self.num_near_ties += int((is_answer & is_tie).sum())
        self.num_same += int((is_same & counted).sum())
        self.num_answers += len(tokens)
        self.num_equal_answers += int((is_same | ~is_answer).all(1).sum())


@dataclass(slots=True)
class Effect:
    """How much of what the adapter changes the export changes too.

    The slope of (export - base) on (adapter - base), over all logits of all tokens: 1 where the
    adapter is whole, 0 where it is missing. Rounding has little to do with the adapter and bends it
    little, unless it outweighs the adapter: then the slope says nothing and is not told.
    """

    num_tokens: int = 0
    sum_kl: float = 0.0
    sum_both: float = 0.0
    sum_own: float = 0.0
    sum_found: float = 0.0

    def add(self, base: Tensor, reference: Tensor, found: Tensor) -> None:
        """All [num_tokens, vocab_size]."""
        own, changed = reference - base, found - base
        own -= own.mean(1, keepdim=True)  # what all logits share changes no answer
        changed -= changed.mean(1, keepdim=True)
        self.num_tokens += len(base)
        self.sum_kl += float(kl(reference, base).sum(dtype=torch.float64))
        self.sum_both += float((own * changed).sum(dtype=torch.float64))
        self.sum_own += float((own * own).sum(dtype=torch.float64))
        self.sum_found += float((changed * changed).sum(dtype=torch.float64))

    def figures(self) -> dict[str, float]:
        if not self.sum_own:
            return {}
        found = {"adapter_kl": self.sum_kl / self.num_tokens}
        rest = self.sum_found - self.sum_both**2 / self.sum_own
        if rest < self.sum_own:
            found["adapter_effect_change_percent"] = 100 * (self.sum_both / self.sum_own - 1)
        return found


def kl(reference: Tensor, found: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each token's distribution, nats [num_tokens]."""
    before, after = reference.log_softmax(1), found.log_softmax(1)
    return (before.exp() * (before - after)).sum(1).clamp(min=0)


class Comparison:
    """One export, or one export with one adapter, against the answers of its reference."""

    def __init__(
        self,
        model: ExportedModel,
        file: LogitsFile,
        adapter: AdapterInputs | None = None,
        base_first: Sequence[Sequence[int]] = (),
    ) -> None:
        """``base_first``: where the rows' logits without an adapter begin; empty: not compared."""
        self._model, self._file, self._adapter = model, file, adapter
        self._base_first, self._effect = base_first, Effect()
        self._prefill, self._decode, self._reread = Differences(), Differences(), Differences()
        self._perplexity, self._greedy = Perplexity(), Greedy()

    def run(self, batches: Sequence[Answers], tell: Tell) -> dict[str, float]:
        """The figures. Rows are padded on the left; every other batch decodes padded on the right,
        where the rows go on at places of their own."""
        has_replies = any(len(r.token_ids) > r.num_prompt for each in batches for r in each.rows)
        for i, answers in enumerate(batches):
            self._read(answers, has_replies, self._base_first[i] if self._base_first else ())
            self._answer(answers, "right" if i % 2 else "left")
            self._reread_answer(answers)
            tell("comparing")
        return self._figures()

    def _read(self, answers: Answers, has_replies: bool, base_first: Sequence[int]) -> None:
        """Whole rows in chunks: the logits of every token."""
        rows = [row.token_ids for row in answers.rows]
        stream = Stream(self._model, rows, adapter=self._adapter)
        for start in range(0, stream.width, _CHUNK):
            end = min(start + _CHUNK, stream.width)
            logits = stream.prefill(start, end)
            for i, row in enumerate(answers.rows):
                places, (begin, stop) = stream.span(i, start, end), stream.tokens(i, start, end)
                if begin == stop:
                    continue
                reference = self._file.read(answers.first[i] + begin, stop - begin)
                found = logits[i, places[0] - start : places[1] - start]
                is_whole = self._prefill.add(reference, found)
                if base_first:
                    base = self._file.read(base_first[i] + begin, stop - begin)
                    self._effect.add(base[is_whole], reference[is_whole], found[is_whole])
                # A token is judged by the logits before it.
                known = row.num_prompt if has_replies else 1
                targets = torch.tensor(row.token_ids[begin + 1 : stop + 1])
                judged = torch.arange(begin + 1, begin + 1 + len(targets)) >= known
                judged &= is_whole[: len(targets)]
                at = judged.nonzero()[:, 0]
                self._perplexity.add(reference[at], found[at], targets[at])

    def _answer(self, answers: Answers, padding: Padding) -> None:
        """Prompts at once, then a step for each token of the reference's greedy answer."""
        num_rows, num_steps = answers.greedy.shape
        stream = Stream(
            self._model, answers.prompts, room=num_steps, padding=padding, adapter=self._adapter
        )
        found_tokens, ties = [], []
        logits = stream.prefill_last()
        for step in range(num_steps):
            if step:
                logits = stream.feed(answers.greedy[:, step - 1])
            reference = self._file.read(answers.decode_first + step * num_rows, num_rows)
            self._decode.add(reference, logits)
            found_tokens.append(logits.nan_to_num(-math.inf).argmax(1))
            best = reference.topk(2, dim=1).values
            ties.append(best[:, 0] - best[:, 1] < NEAR_TIE)
        self._greedy.add(
            answers.greedy, torch.stack(found_tokens, 1), torch.stack(ties, 1), answers.is_answer
        )

    def _reread_answer(self, answers: Answers) -> None:
        """Prompts and greedy answers, read as rows: what decoding has to agree with."""
        replies = answers.greedy[:, :-1].tolist()
        rows = [[*p, *reply] for p, reply in zip(answers.prompts, replies, strict=True)]
        stream = Stream(self._model, rows, adapter=self._adapter)
        num_rows, num_steps = answers.greedy.shape
        first = stream.width - num_steps  # place of every prompt's last token: they end together
        for start in range(0, stream.width, _CHUNK):
            end = min(start + _CHUNK, stream.width)
            logits = stream.prefill(start, end)
            for place in range(max(start, first), end):
                number = answers.decode_first + (place - first) * num_rows
                self._reread.add(self._file.read(number, num_rows), logits[:, place - start])

    def _figures(self) -> dict[str, float]:
        prefill, decode, greedy = self._prefill, self._decode, self._greedy
        found = {
            "num_not_finite": float(
                prefill.num_not_finite + decode.num_not_finite + self._reread.num_not_finite
            ),
            "num_prefill_tokens": float(prefill.num_tokens),
            "num_decode_tokens": float(decode.num_tokens),
            "greedy_agreement": greedy.num_same / max(greedy.num_tokens, 1),
            "num_near_ties": float(greedy.num_near_ties),
            "equal_answers": greedy.num_equal_answers / max(greedy.num_answers, 1),
            **self._perplexity.figures(),
        }
        if not (prefill.num_tokens and decode.num_tokens):
            return found  # nothing but NaN
        once, steps = (max(each.mean_kl, _KL_FLOOR) for each in (self._reread, decode))
        largest = max(prefill.max_diff, decode.max_diff)
        return {
            "max_logit_diff": largest,
            "max_logit_diff_share": largest / max(prefill.max_logit, decode.max_logit),
            "prefill_max_logit_diff": prefill.max_diff,
            "prefill_mean_logit_diff": prefill.sum_diff / prefill.num_logits,
            "decode_max_logit_diff": decode.max_diff,
            "decode_mean_logit_diff": decode.sum_diff / decode.num_logits,
            "prefill_kl": prefill.mean_kl,
            "decode_kl": decode.mean_kl,
            "max_kl": max(prefill.max_kl, decode.max_kl),
            "decode_kl_factor": max(once, steps) / min(once, steps),
            "top1_agreement": prefill.num_same / prefill.num_tokens,
            **self._effect.figures(),
            **found,
        }
