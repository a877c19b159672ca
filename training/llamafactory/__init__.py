"""LLaMA-Factory's YAML files, run as they are. No torch; knows training's keys, not their use."""
