"""GGUF, the format of llama.cpp: a model's sizes, tokenizer and tensors in one file; LoRA files."""
