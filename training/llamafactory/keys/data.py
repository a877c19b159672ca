"""What is learned from (data_args.py)."""

from __future__ import annotations

from training.llamafactory.entries import Entry, Idle, Refused, Taken, flag

DATA: dict[str, Entry] = {
    "template": Idle(
        "the base's own chat template renders training and serving alike; another one in training "
        "is the best known way to a model that answers nonsense"
    ),
    "dataset": Taken("data", "`a,b`: entries of dataset_info.json", None),
    "dataset_dir": Taken(
        "data", "the folder of dataset_info.json (default `data`); `ONLINE`: names of the hub", None
    ),
    "eval_dataset": Taken(
        "validation_data", "with eval_strategy no: `test_data`, measured once at the end", None
    ),
    "val_size": Taken(
        "split", "share or number of rows; with eval_strategy no: measured once, at the end", None
    ),
    "cutoff_len": Taken(
        "max_length",
        "2048 means: at most, where the base sees less; longer rows lose their tail",
        None,
    ),
    "max_samples": Taken("data.num_samples", "a seeded sample, not the first rows", None),
    "mix_strategy": Taken("data.weight", "with interleave_probs and the numbers of rows", None),
    "interleave_probs": Taken("data.weight", "", None),
    "packing": Taken("packing", "rows in one sequence never see each other, as neat_packing", None),
    "neat_packing": Taken("packing", "", None),
    "streaming": Taken("streaming", "", flag),
    "buffer_size": Idle("the order of rows is drawn over the whole file"),
    "media_dir": Idle("text only"),
    "train_on_prompt": Refused("the loss falls on the replies alone"),
    "mask_history": Refused("the loss falls on every reply of a chat"),
    "default_system": Refused("write the system text into the rows, so that it serves as trained"),
    "enable_thinking": Idle("the base's own chat template decides"),
    "preserve_thinking": Idle("the base's own chat template decides"),
    "tool_format": Idle("the base's own chat template decides"),
    "tokenized_path": Refused("rows are rendered at each start; name the data itself"),
    "data_shared_file_system": Idle("one process reads the data"),
    "eval_on_each_dataset": Refused("one validation loss decides; evaluate others with `eval`"),
    "ignore_pad_token_for_loss": Idle("the loss never falls on padding"),
    "overwrite_cache": Idle("there is no cache of rows"),
    "preprocessing_batch_size": Idle("rows are prepared one by one"),
    "preprocessing_num_workers": Idle("rows are prepared in one process"),
}
