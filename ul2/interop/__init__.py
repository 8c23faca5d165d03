"""Checkpoints of others, in and out: T5X, Hugging Face, StableHLO.

    model, vocab = ul2.interop.load("google/ul2/checkpoint_2650000")

Read `tensors.py` first (arrays that are read piece by piece), then `checkpoint.py`
(what every reader makes and every writer takes), one format, then `conversion.py`.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from ul2.vocab import Vocab


def load(
    path: str | Path,
    *,
    mesh: "Mesh | None" = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    **options: Any,
) -> tuple[Any, "Vocab"]:
    """Loads a model, whatever the format.

    Args:
        path: a run of ours, a T5X checkpoint, or a directory of Hugging Face.
        mesh: where to put the parameters; all devices by default.
        dtype: of the computation.
        **options: those of `opening.open_checkpoint`: `step`, `preset`, `activation`,
            `vocab_file`, `mode_convention`.

    Returns:
        The model, with float32 parameters, and the vocab contract.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    # Nothing heavy is imported before it is needed: parsing flags must be quick.
    from ul2.interop.model import build
    from ul2.interop.opening import open_checkpoint
    from ul2.sharding.mesh import make_mesh

    checkpoint = open_checkpoint(path, **options)
    config = dataclasses.replace(checkpoint.config, dtype=dtype)
    checkpoint = dataclasses.replace(checkpoint, config=config)
    return build(checkpoint, mesh or make_mesh("auto")), checkpoint.vocab
