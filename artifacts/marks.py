"""Special tokens that are part of what a model says: they mark its thoughts and calls.

All other special tokens (ends of turns, roles, padding) are control and never shown.
"""

from __future__ import annotations

import re
from typing import Any

_MARK = re.compile(r"</?(think|tool_call)>|<\|python_tag\|>|<｜tool▁.*｜>")


def hidden_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of special tokens that are no marks: an answer's text leaves them out."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(
        i for i, token in added if token.special and not _MARK.fullmatch(token.content)
    )
