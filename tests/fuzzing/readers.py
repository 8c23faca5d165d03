"""Every reader of foreign bytes."""

from fuzzing import readers_of_data, readers_of_models
from fuzzing.reader_table import READERS, Reader

__all__ = ["READERS", "Reader", "readers_of_data", "readers_of_models"]
