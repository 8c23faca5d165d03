"""UL2: Mixture-of-Denoisers pre-training for any architecture on any mesh."""

import traceback
from pathlib import Path


def is_ours(error: BaseException) -> bool:
    """Returns whether this package raised the error, to tell a person something.

    A ValueError out of a library is a bug of ours: nobody wrote it for the person who
    typed the command, so it keeps its traceback.
    """
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).resolve().is_relative_to(Path(__file__).resolve().parent)
