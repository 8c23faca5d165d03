"""`ul2 convert`: from any format that is read to any that is written.

    open the source -> write it elsewhere, array by array -> open what was written,
    compare -> write the card -> put it in its place

Nothing is visible at the destination before the last step.
"""

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ul2.interop import certificate, huggingface, own, stablehlo, t5x_writing
from ul2.interop.checkpoint import Checkpoint
from ul2.interop.opening import open_checkpoint
from ul2.interop.staging import Staging, claimed

DTYPES: Final = ("float32", "bfloat16")
Writer = Callable[[Checkpoint, Staging, str | None], None]
WRITERS: Final[dict[str, Writer]] = {
    "ul2": own.write,
    "t5x": t5x_writing.write,
    "huggingface": huggingface.write,
    "stablehlo": lambda checkpoint, staging, dtype: stablehlo.write(
        checkpoint, staging.directory, dtype=dtype
    ),
}
# A StableHLO export runs whole or not at all, so a larger one is not run here.
_MAX_RUN_BYTES: Final = 2**27


def convert(
    source: Checkpoint, to: str, out: Path, *, dtype: str | None = None
) -> dict[str, Any]:
    """Writes a checkpoint in another format.

    Args:
        source: what to convert; see `open_checkpoint`.
        to: a key of `WRITERS`.
        out: the directory to make.
        dtype: of the parameters; None keeps what they are.

    Returns:
        A report, as JSON values; `max_logit_difference` among them.

    Raises:
        ValueError: the format has no such model, an array cannot be read, or `out`
            exists. Then there is no `out`.
    """
    _give_freed_memory_back()
    certificate.check_card(source)
    plan = {"to": to, "dtype": dtype, "source": certificate.describe(source)}
    with claimed(out):
        staging = Staging(out, plan)
        try:
            WRITERS[to](source, staging, dtype)
            report = _certified(source, to, staging.directory)
            report |= {"dtype": dtype or "kept", "resumed": staging.resumed}
            staging.commit()
        except ValueError:
            staging.discard()
            raise
        except OSError as error:
            staging.discard()
            raise ValueError(f"cannot write to {out}: {error.strerror}.") from None
    return {**report, "path": str(out)}


def _give_freed_memory_back() -> None:
    """Lets glibc return freed pieces to the system at once.

    It would rather keep blocks of this size for later, scattered over the arenas of
    all threads: converting 3 GB then took 880 MiB instead of 525.
    """
    mmap_threshold, bytes_from = -3, 2**20
    # Other C libraries have no such function, and no such habit.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(mmap_threshold, bytes_from)


def _certified(source: Checkpoint, to: str, directory: Path) -> dict[str, Any]:
    """Compares an export with its source, and writes its card.

    Raises:
        ValueError: they are not the same model.
    """
    report: dict[str, Any] = {
        "to": to,
        "source": certificate.describe(source),
        "parameters": sum(tensor.size for tensor in source.params.values()),
        "vocab": source.vocab.to_json(),
        "max_logit_difference": None,
    }
    size = sum(tensor.nbytes for tensor in source.params.values())
    if to == "stablehlo" and size <= _MAX_RUN_BYTES:
        report["max_logit_difference"] = stablehlo.max_logit_difference(
            source, directory
        )
        report["compared_with"] = "the exported functions"
        certificate.write_card(directory, report, None)
        return report
    if to == "stablehlo":
        report["compared_with"] = "the exported parameters, read again"
        export = stablehlo.with_exported_params(source, directory)
    else:
        report["compared_with"] = "the export, read again"
        export = open_checkpoint(directory)
    certificate.compare(source, export)
    difference = certificate.max_logit_difference(source, export)
    report["max_logit_difference"] = difference
    certificate.write_card(directory, report, export)
    return report
