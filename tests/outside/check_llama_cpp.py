"""Do the GGUF files that export writes answer in llama.cpp as base and adapter do in PEFT?

``python check_llama_cpp.py OUT``, by the Python of an environment with llama-cpp-python and nothing
of this project; OUT is what `write_expected.py` wrote. Exits with 1 and a line for each
disagreement.
"""
# mypy: ignore-errors
# What it imports is not there where the types are checked.

import json
import sys
import unicodedata
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

# Root mean square of the logits' differences, as a share of the logits' standard deviation. Found:
# at most 0.0047, 0.105 and 0.67; 0.11 to 1.3 without the adapter, 0.1 to 0.9 without rope scaling.
LIMITS = {"f16": 0.008, "q8_0": 0.15, "q4_0": 0.8}
NEAR_TIE = 0.02  # of the standard deviation: tokens so near may change places in 16 bits

DEFAULTS = llama_cpp.llama_model_default_params

problems = []


def check(is_right, what):
    if not is_right:
        problems.append(what)
        print(f"WRONG {what}")


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def tokenize(model, text, special):
    return model.tokenize(text.encode(), add_bos=False, special=special)


def check_tokens(model, said, name):
    """Where llama.cpp knows the tokenizer's rule every id is the same; else the share is told."""
    is_known = said["rule_is"].startswith("the same rule")
    for key, special in (("ids", True), ("raw", False)):
        equal = 0
        for each in said["texts"]:
            found, wanted = tokenize(model, each["text"], special), each[key]
            equal += found == wanted
            is_marked = any(map(unicodedata.combining, each["text"]))
            if is_known and not (is_marked and "combining marks" in said["rule_is"]):
                check(found == wanted, f"{name}: {each['text']!r} is {found}, should be {wanted}")
            text = model.detokenize(found, special=True).decode(errors="replace")
            check(text == each["text"], f"{name}: {each['text']!r} comes back as {text!r}")
        print(f"  {equal} of {len(said['texts'])} texts have the same tokens, special={special}")


def template_text(model, messages):
    """The prompt by the template in the file, and what ends an answer there."""
    token = lambda i: model._model.token_get_text(i)  # noqa: E731
    formatter = Jinja2ChatFormatter(
        model.metadata["tokenizer.chat_template"],
        eos_token=token(model.token_eos()),
        bos_token=token(model.token_bos()),
    )
    return formatter(messages=messages).prompt


def compare_logits(model, data, chat, number):
    """Reads the reference's own answer, so differences do not pile up.

    Returns the differences as `LIMITS` has them, the mean KL per token, and how many greedy tokens
    are others though the reference is sure of them.
    """
    wanted = data[f"logits{number}"]
    model.reset()
    model.eval(chat["ids"])
    found = model.scores[: len(chat["ids"])]
    spread = wanted.std()
    off = np.sqrt(np.square(found - wanted).mean()) / spread
    sure, said = log_softmax(wanted.astype(np.float64)), log_softmax(found.astype(np.float64))
    kl = (np.exp(sure) * (sure - said)).sum(-1).mean()
    top = np.sort(wanted, -1)
    is_clear = top[:, -1] - top[:, -2] > NEAR_TIE * spread
    differs = (found.argmax(-1) != wanted.argmax(-1)) & is_clear
    return off, kl, int(differs[chat["num_prompt"] - 1 :].sum())


def greedy(model, chat):
    """Prompt and answer, as long as the reference's, token by token on llama.cpp's own cache."""
    model.reset()
    new = chat["ids"][: chat["num_prompt"]]
    ids = list(new)
    while len(ids) < len(chat["ids"]):
        model.eval(new)
        new = [int(model.scores[model.n_tokens - 1].argmax())]
        ids += new
    return ids


def check_answers(model, data, said, name, kind):
    figures, num_equal = [], 0
    for number, chat in enumerate(said["chats"]):
        off, kl, differing = compare_logits(model, data, chat, number)
        figures.append((off, kl))
        check(off <= LIMITS[kind], f"{name}: logits of chat {number} are off by {off:.4f}")
        num_equal += greedy(model, chat) == chat["ids"]
        if kind == "f16":
            check(differing == 0, f"{name}: {differing} greedy tokens differ in chat {number}")
    off, kl = np.max(figures, 0)
    print(
        f"  logits off by {off:.5f} at most, KL {kl:.2e} per token; "
        f"{num_equal} of {len(said['chats'])} greedy answers equal"
    )


def check_chats(model, said, name):
    """The whole way: messages in, an answer out that ends where ours does."""
    for chat in said["chats"]:
        text = template_text(model, chat["messages"])
        check(text == chat["text"], f"{name}: the template gives {text!r}, not {chat['text']!r}")
        prompt, answer = chat["ids"][: chat["num_prompt"]], chat["ids"][chat["num_prompt"] :]
        if tokenize(model, text, True) != prompt or greedy(model, chat) != chat["ids"]:
            continue  # told by check_tokens and check_answers
        num_new = next((i for i, each in enumerate(answer) if each in said["ends"]), None)
        wanted = model.detokenize(answer[:num_new], special=False).decode(errors="replace")
        if "\ufffd" in wanted:
            continue  # of random weights; llama-cpp-python would wait for the rest of a character
        done = model.create_chat_completion(
            chat["messages"], temperature=0, repeat_penalty=1.0, max_tokens=len(answer)
        )
        found = done["choices"][0]["message"]["content"]
        reason = "length" if num_new is None else "stop"
        print(f"  {found!r}")
        check(done["choices"][0]["finish_reason"] == reason, f"{name}: did not end by {reason}")
        check(found.strip() == wanted.strip(), f"{name}: said {found!r}, not {wanted!r}")


def without_repacking():
    """llama.cpp's kernels for AMX crash on blocks of 8 bits."""
    parameters = DEFAULTS()
    parameters.use_extra_bufts = False
    return parameters


def opened(path, lora=None):
    options = {"n_ctx": 256, "n_batch": 256, "logits_all": True, "verbose": False, "seed": 0}
    return Llama(str(path), lora_path=lora and str(lora), n_threads=1, **options)


def check_case(folder):
    data = np.load(folder / "expected.npz")
    said = json.loads(str(data["said"]))
    for kind in LIMITS:
        name = f"{folder.name} {kind}"
        print(name)
        model = opened(folder / f"model-{kind}.gguf")
        check_tokens(model, said, name)
        check_answers(model, data, said, name, kind)
        if kind == "f16":
            check_chats(model, said, name)
    print(f"{folder.name} base and LoRA")
    beside = opened(folder / "base.gguf", folder / "adapter.gguf")
    check_answers(beside, data, said, f"{folder.name} base and LoRA", "f16")


def main():
    llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    folders = sorted(path.parent for path in Path(sys.argv[1]).glob("*/expected.npz"))
    if not folders:
        sys.exit(f"{sys.argv[1]} holds nothing that write_expected.py wrote")
    for folder in folders:
        check_case(folder)
    print(f"{len(folders)} models, {len(problems)} disagreements")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
