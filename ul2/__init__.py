"""UL2: Mixture-of-Denoisers pre-training for any architecture on any mesh."""
