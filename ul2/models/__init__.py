"""Batches to logits.

Legend of the shapes, valid in every file here:

    B  rows of a batch              D  model width
    N  examples packed in a row     H  query heads
    T  columns of a packed row      G  key/value heads (H of them unless grouped)
    L  longest example, as queries  K  width per head
    S  longest example, as keys     F  feed-forward width
    R  relative position buckets    V  padded vocabulary

    and in decoding (`cache.py`):

    E  examples                     P  positions of a prompt
    J  hypotheses of an example     W  columns written behind it
    Y  layers

Read `attention.py` first (packed rows, and how examples are cut out of them), then
`blocks.py` (layers and the scan over them), then the two architectures.
"""
