"""Checkpoints of others, in and out: T5X, Hugging Face, StableHLO."""
