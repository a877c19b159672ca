"""The chat template again, as segments with an authorship flag; a test holds both equal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from training.pretrain.tokenizer import BOS, END


def segments(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> Iterator[tuple[str, bool]]:
    """Yield (text, written by the assistant?); segment borders lie at special tokens."""
    head, rest = BOS, messages
    if tools:
        system = ""
        if messages and messages[0]["role"] == "system":
            system, rest = messages[0]["content"] + "\n", messages[1:]
        listing = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        head += f"<|system|>{system}<tools>{listing}</tools>{END}"
    for message in rest:
        if message["role"] != "assistant":
            head += f"<|{message['role']}|>{message['content']}{END}"
            continue
        yield head + "<|assistant|>", False
        yield _reply(message) + END, True
        head = ""
    if head:
        yield head, False


def _reply(message: dict[str, Any]) -> str:
    reasoning = message.get("reasoning_content")
    text = f"<think>{reasoning}</think>" if reasoning else ""
    text += str(message["content"])
    for call in message.get("tool_calls", []):
        function = call["function"]
        body = json.dumps(
            {"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False
        )
        text += f"<tool_call>{body}</tool_call>"
    return text
