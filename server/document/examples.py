"""Requests that work, for each operation with a body. A test sends them.

``BASE`` in them stands for the id of the server's base.
"""

from __future__ import annotations

from typing import Any

BASE = "BASE"
_QUESTION = [{"role": "user", "content": "Where is my order?"}]
_TOOL = {
    "name": "find_order",
    "description": "Where an order is now.",
    "parameters": {
        "type": "object",
        "properties": {"number": {"type": "integer"}},
        "required": ["number"],
    },
}
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}

_CHATS: dict[str, Any] = {
    "chat": {"model": BASE, "messages": _QUESTION, "max_tokens": 40},
    "stream": {
        "model": BASE,
        "messages": _QUESTION,
        "max_tokens": 40,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "tools": {
        "model": BASE,
        "messages": _QUESTION,
        "tools": [{"type": "function", "function": _TOOL}],
        "tool_choice": "auto",
        "max_tokens": 40,
    },
    "structured output": {
        "model": BASE,
        "messages": _QUESTION,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "weather", "schema": _SCHEMA, "strict": True},
        },
        "max_tokens": 40,
    },
}
_TEXTS: dict[str, Any] = {
    "text": {"model": BASE, "prompt": "Once upon a time", "max_tokens": 20},
    "score a prompt": {
        "model": BASE,
        "prompt": "Once upon a time",
        "max_tokens": 0,
        "echo": True,
        "logprobs": 1,
    },
}
_RESPONSES: dict[str, Any] = {
    "text": {"model": BASE, "input": "Where is my order?", "max_output_tokens": 40},
    "tools": {
        "model": BASE,
        "input": _QUESTION,
        "tools": [{"type": "function", "strict": True, **_TOOL}],
        "max_output_tokens": 40,
    },
    "structured output": {
        "model": BASE,
        "input": "Where is my order?",
        "text": {"format": {"type": "json_schema", "name": "weather", "schema": _SCHEMA}},
        "max_output_tokens": 40,
    },
}

# Operation id → what the example shows → body.
EXAMPLES: dict[str, dict[str, Any]] = {
    "create_chat_completion": _CHATS,
    "create_completion": _TEXTS,
    "create_response": _RESPONSES,
    "count_input_tokens": {"text": {"model": BASE, "input": "Where is my order?"}},
    "tokenize": {
        "text": {"model": BASE, "prompt": "Where is my order?", "return_token_strs": True},
        "chat": {"model": BASE, "messages": _QUESTION},
    },
    "detokenize": {"ids": {"model": BASE, "tokens": [10, 20, 30]}},
    "create_job": {
        "a version of tea": {
            "model": BASE,
            "training_file": "file-0123456789abcdef01234567",
            "suffix": "tea",
            "hyperparameters": {"n_epochs": 1},
            "loraloop": {"rank": 8},
        }
    },
    "train_adapter": {
        "from examples": {
            "name": "tea",
            "examples": [{"messages": [*_QUESTION, {"role": "assistant", "content": "Here."}]}],
            "epochs": 1,
        }
    },
    "load_adapter": {
        "a folder": {"name": "tea", "path": "incoming/tea"},
        "a version": {"id": "tea@1"},
    },
    "unload_adapter": {"a version": {"id": "tea@1", "wait": True}},
    "load_lora_adapter": {"a folder": {"lora_name": "tea", "lora_path": "incoming/tea"}},
    "unload_lora_adapter": {"a name": {"lora_name": "tea"}},
    "put_alias": {"a version": {"version": 2}},
    "put_experiment": {
        "70 to 30": {"arms": [{"model": "tea@1", "weight": 70}, {"model": "tea@2", "weight": 30}]}
    },
    "give_feedback": {"a good answer": {"id": "chatcmpl-0123", "score": 1, "comment": "Right."}},
}
INFERENCE = (
    "create_chat_completion",
    "create_completion",
    "create_response",
    "count_input_tokens",
    "tokenize",
    "detokenize",
)


def examples_for(base_id: str) -> dict[str, dict[str, Any]]:
    """The same for a server of that base."""
    return {
        name: {shown: _named(body, base_id) for shown, body in bodies.items()}
        for name, bodies in EXAMPLES.items()
    }


def _named(body: dict[str, Any], base_id: str) -> dict[str, Any]:
    return {**body, "model": base_id} if body.get("model") == BASE else body
