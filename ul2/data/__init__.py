"""Tokens to batches: the token store, the example stream and its packing."""
