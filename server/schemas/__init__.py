"""Bodies of inference requests: OpenAI's fields and vLLM's extensions, one file for each subject.

Honoured fields have a type; fields marked ``neutral(...)`` are known but unsupported and pass only
at a value that changes nothing; every other key is refused. ``null`` always means "not given".
"""
