"""Text to tokens: sources, tokenizers and the seqio registry.

TensorFlow and seqio are imported here and nowhere else, and only by the modules that
need them.
"""
