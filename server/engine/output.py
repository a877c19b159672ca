"""From token ids to text that can be sent: whole characters only, stop strings never shown.

No torch and no tokenizer of its own: decoding is a function handed in.
"""

from __future__ import annotations

from collections.abc import Callable

Decode = Callable[[list[int]], str]

REPLACEMENT = "\ufffd"
MAX_HELD_TOKENS = 8  # a UTF-8 character spans at most 4 byte tokens; more is not a character


class OutputText:
    """Incremental detokenisation of one answer.

    New text is the difference between decoding a short window with and without the newest
    tokens, which is right for byte-level and for SentencePiece vocabularies alike: a decoder may
    join tokens, but only neighbours influence each other.
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._hold = max((len(s) for s in stop), default=1) - 1
        self._ids: list[int] = []  # generated tokens of the current window
        self._num_read = 0  # of those, tokens whose text has been taken
        self._pending = ""  # decoded, held back because a stop string may be starting
        self.is_stopped = False

    def push(self, token_id: int, *, check_stop: bool = True) -> str:
        """Text that became safe to send with this token, possibly empty.

        Sets ``is_stopped`` when a stop string was completed; the text then ends before it.
        """
        self._ids.append(token_id)
        self._pending += self._read(force=len(self._ids) - self._num_read > MAX_HELD_TOKENS)
        if self._stop and check_stop and self._cut_at_stop():
            return self._take(len(self._pending))
        return self._take(len(self._pending) - self._hold)

    def finish(self) -> str:
        """Everything still held back, once no more tokens will come."""
        if self.is_stopped:
            return ""
        self._pending += self._read(force=True)
        return self._take(len(self._pending))

    def _read(self, *, force: bool) -> str:
        before = self._decode(self._ids[: self._num_read])
        after = self._decode(self._ids)
        if not force and after.endswith(REPLACEMENT):
            return ""
        text = after[len(before) :] if len(after) > len(before) else ""
        # The tokens read last stay as context for the next ones.
        self._ids = self._ids[self._num_read :]
        self._num_read = len(self._ids)
        return text

    def _cut_at_stop(self) -> bool:
        found = [i for i in (self._pending.find(s) for s in self._stop) if i >= 0]
        if found:
            self._pending = self._pending[: min(found)]
            self.is_stopped = True
        return self.is_stopped

    def _take(self, length: int) -> str:
        length = max(length, 0)
        text, self._pending = self._pending[:length], self._pending[length:]
        return text
