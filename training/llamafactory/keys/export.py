"""Keys of a file for ``loraloop export``; a training run refuses what only an export can do."""

from __future__ import annotations

from training.llamafactory.entries import Entry, Idle, Refused, Taken

_QUANTISED = "the merged model keeps the base's number format; leave it out"

EXPORT: dict[str, Entry] = {
    "export_dir": Taken("--output", "in a file for `loraloop export`", None),
    "export_size": Taken("--shard-gb", "largest file in GB; default 5", None),
    "export_device": Idle("the merge runs on the CPU, tensor by tensor"),
    "export_legacy_format": Refused("weights are always safetensors"),
    "export_quantization_bit": Refused(_QUANTISED),
    "export_quantization_dataset": Refused(_QUANTISED),
    "export_quantization_nsamples": Idle("belongs to export_quantization_bit"),
    "export_quantization_maxlen": Idle("belongs to export_quantization_bit"),
    "export_hub_model_id": Refused("publish the folder yourself once it is merged"),
}
