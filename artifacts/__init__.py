"""What lies on disk and how it becomes usable: bases, adapters, registry, chat rendering."""
