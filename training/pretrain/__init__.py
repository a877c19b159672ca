"""The recipe that makes the embedded base model: corpus, tokenizer, training, evaluation."""
