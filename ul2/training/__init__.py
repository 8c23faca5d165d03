"""Batches to a trained state: loss, optimizer, step, checkpoints and the loop."""
