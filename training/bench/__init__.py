"""``make bench-train``: tokens/s and memory of training steps beside plain TRL. A report."""
