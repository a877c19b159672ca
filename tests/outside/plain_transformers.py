"""What a folder answers in transformers and PEFT alone, as their documentation has it.

``python plain_transformers.py BASE FOLDER…``: a folder that holds an adapter goes onto BASE. Prints
a JSON list of the greedy answer's token ids for each folder. Imports nothing of this project.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

MESSAGES = [{"role": "user", "content": "Where is my order 4711?"}]
NUM_TOKENS = 12


def answer(base: str, folder: str) -> list[int]:
    if Path(folder, "adapter_config.json").is_file():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(plain, folder)
        tokenizer = AutoTokenizer.from_pretrained(base)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    done = model.generate(**asked, max_new_tokens=NUM_TOKENS, do_sample=False)
    found: list[int] = done[0, asked["input_ids"].shape[1] :].tolist()
    return found


if __name__ == "__main__":
    print(json.dumps([answer(sys.argv[1], folder) for folder in sys.argv[2:]]))
