"""The embedded default: procedural scenes, their captions, prompts, judges and shipped weights."""
