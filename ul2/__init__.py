"""UL2: Mixture-of-Denoisers pre-training for any architecture on any mesh.

model = ul2.load("runs/one")                        a run of ours, T5X, Hugging Face
model.infill("A ___ walks into a ___.")
model.generate(["question: ..."], modes=["S"])
model.score(["question: ..."], ["an answer"], modes=["S"])
"""

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ul2.decoding.text_model import TextModel

# The one place of it: the wheel, `ul2 --version` and CHANGELOG.md follow.
__version__ = "0.1.0"


def load(path: str | Path, **options: Any) -> "TextModel":
    """Opens a trained model that reads and writes text, whatever its format.

    Args:
        path: a run of ours, a T5X checkpoint, or a directory of Hugging Face.
        **options: those of `ul2.inference.opening.open_model`: `step`, `mesh`,
            `dtype`, `preset`, `activation`, `vocab_file`, `mode_convention`.

    Raises:
        ValueError: there is no checkpoint, it is damaged, or no tokenizer is known.
    """
    # Nothing heavy is imported before it is needed: parsing flags must be quick.
    from ul2.inference.opening import open_model

    return open_model(path, **options)


def is_ours(error: BaseException) -> bool:
    """Returns whether this package raised the error, to tell a person something.

    A ValueError out of a library is a bug of ours: nobody wrote it for the person who
    typed the command, so it keeps its traceback.
    """
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).resolve().is_relative_to(Path(__file__).resolve().parent)
