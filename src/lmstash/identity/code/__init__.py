"""Code: its digests, and all that code of your own leads to: functions, modules, files, texts, settings."""
