"""From a validated body to the bytes of an answer: prompts, generation, wire format, streaming."""
