"""What lies on disk and how it becomes usable: bases, adapter versions, registry, chat rendering."""
