"""What the engine refuses and why. HTTP knows these types; the engine knows no HTTP.

EngineError
├── EngineOverloaded    the bounded queue is full; try again after ``retry_after_s``
├── EngineClosed        the engine is stopping or has died
├── RequestTooLong      prompt + max_tokens exceeds the context or the whole KV cache
├── UnknownAdapter      no adapter with this key was added
├── AdapterInUse        removal without waiting, while requests still run on it
├── UnsupportedModel    the base's configuration asks for something the decoder does not have
├── OutOfMemory         a step, an adapter or a base needs more memory than there is
├── AdapterMemoryFull   host memory for adapters is used up by adapters in use
├── NonFiniteLogits     a request's logits are NaN: only that request ends in error
└── GrammarTooComplex   an answer cannot go on under its grammar within the limits
"""


class EngineError(Exception):
    """Root of the engine's own errors."""


class EngineOverloaded(EngineError):
    """The bounded queue is full."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineClosed(EngineError):
    """The engine is stopping or has died."""


class RequestTooLong(EngineError):
    """Prompt and answer together exceed what the engine can hold."""


class UnknownAdapter(EngineError):
    """No adapter with this key was added."""


class AdapterInUse(EngineError):
    """Requests still run on the adapter."""


class UnsupportedModel(EngineError):
    """The base's configuration asks for something the decoder does not have."""


class OutOfMemory(EngineError):
    """A step, an adapter or a base needs more memory than there is; nothing was changed."""


class AdapterMemoryFull(EngineError):
    """Host memory for adapters is used up, and none of them can be forgotten now."""


class NonFiniteLogits(EngineError):
    """A forward pass produced NaN for at least one of its requests."""


class GrammarTooComplex(EngineError):
    """What may come next under a grammar cannot be said within the limits of a step."""
