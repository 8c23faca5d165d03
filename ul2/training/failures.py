"""What went wrong in a run, in the words of the person who started it.

`explain` is a function of the error alone. It knows memory that did not suffice, on
TPU, GPU and CPU, when compiling and when running, and says which buffers are the
largest, as far as the message lists them, and which knobs help, the cheapest first:

    error: out of device memory: 63.80 GiB needed, 30.75 GiB there
      2.00 GiB  attention  f32[32,4096,4096]  attention.py:102
      1.50 GiB  logits of the loss  f32[16,1024,32128]  losses.py:88
    What helps, the cheapest first:
      MICROBATCHES   twice as many halve the activations ...

`lost_process` knows the errors of a collective whose other end has gone; `StorageError`
says itself what it is.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_GIB: Final = 2.0**30
_UNITS: Final = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": _GIB, "T": 2.0**40}
_SIZE: Final = r"([\d.]+) ?([KMGT]?)(?:iB|B)?"
_SHOWN: Final = 5

_OUT_OF_MEMORY: Final = re.compile(
    r"ran out of memory|out of memory|failed to allocate (?:request|memory)"
    r"|CUDA_ERROR_OUT_OF_MEMORY|exceeds available HBM",
    re.IGNORECASE,
)
# (needed, there), each in the words of one runtime; `there` may be missing.
_AMOUNTS: Final = (
    # XLA:TPU, until 2025 and since.
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    # GPU: the allocator, when a program is started or makes room while it runs.
    re.compile(rf"(?:allocate|allocating) (?:request for )?{_SIZE}(?: bytes)?(?!\w)"),
)
_ON_CHIP: Final = re.compile(r"out of memory in memory space (vmem|smem|sflag)", re.I)
_HOST: Final = re.compile(r"Unable to allocate ([\d.]+ \wiB) for an array")

# Where a buffer comes from, by the place in the program that makes it.
_CAUSES: Final = (
    (r"optimizers?\.py|adafactor|adam", "the optimizer's update"),
    (r"losses\.py|unembed|logits", "logits of the loss"),
    (r"attention|softmax|positions\.py", "attention"),
    (r"feed_forward|mlp", "feed-forward"),
    (r"embedder|embed", "embedding"),
    (r"all.gather|all.reduce|reduce.scatter|collective", "what devices exchange"),
)
_PARAMETERS: Final = "parameters, optimizer or batch"

_KNOBS: Final = """\
What helps, the cheapest first:
  MICROBATCHES      twice as many halve the activations; the update stays the same
  REMAT             'full' keeps one activation a layer, and computes the others again
  LOSS_CHUNK        fewer columns of logits at once
  MESH              more fsdp splits parameters and optimizer further, more tensor the
                    activations, too
  EXAMPLES_PER_ROW  shorter rows; BATCH_SIZE is next, but it changes the run
`ul2 plan --search` with the same flags finds a setting that fits."""

_LOST: Final = re.compile(
    r"Gloo \S+ failed|Gloo context initialization failed|Connection closed by peer"
    r"|Connection reset by peer|remote process exited|ncclRemoteError"
    r"|stopped sending heartbeats|coordination service|Socket closed"
    r"|Barrier (?:failed|timed out)",
    re.IGNORECASE,
)


class StorageError(Exception):
    """Nothing could be saved for too long; says where, why and what to do."""


class Buffer(NamedTuple):
    """An array in a program that did not fit."""

    gib: float
    cause: str
    shape: str
    place: str


def explain(error: BaseException) -> str | None:
    """Returns what an error means and which knobs help; None where nobody knows.

    RESOURCE_EXHAUSTED: Out of memory while trying to allocate 29995136128 bytes. ...
    ->  out of device memory: 27.93 GiB needed
          1.96 GiB  logits of the loss  f32[128,128,32128]  losses.py:139
        What helps, the cheapest first: ...
    """
    text = _text(error)
    if isinstance(error, MemoryError) or _HOST.search(text):
        return _of_host(text)
    if not _OUT_OF_MEMORY.search(text):
        return None
    if match := _ON_CHIP.search(text):
        return (
            f"a kernel needs more of the chip's own memory ({match[1]}) than there is: "
            "shorter INPUTS_LENGTH and TARGETS_LENGTH or a smaller HEAD_DIM help, more "
            "MICROBATCHES or REMAT do not."
        )
    needed, there = gib_needed(text)
    lines = ["out of device memory" + _sentence(needed, there)]
    largest = sorted(buffers(text), reverse=True)[:_SHOWN]
    lines += ["  " + "  ".join(_columns(buffer)) for buffer in largest]
    return "\n".join([*lines, _KNOBS])


def lost_process(error: BaseException) -> str | None:
    """Returns how the other end of a collective was lost; None for any other error.

    UNKNOWN: Gloo all-reduce failed: [...] Connection closed by peer [10.0.0.3]:34691
    ->  Gloo all-reduce failed: Connection closed by peer [10.0.0.3]
    """
    text = _text(error)
    if not _LOST.search(text):
        return None
    first = next(line for line in text.splitlines() if _LOST.search(line))
    first = re.sub(r"^[A-Z_]+: ", "", first)
    first = re.sub(r"\[\S*\.cc:\d+\] ", "", first)
    return re.sub(r"(\[[\d.:a-f]+\]):\d+", r"\1", first).strip().rstrip(".")


def buffers(text: str) -> Iterator[Buffer]:
    """Yields the allocations that a message lists: XLA's for TPU and GPU.

        Buffer 1:
            Size: 1.96GiB
            Operator: op_name="jit(train_step)/.../mul" source_file="/a/losses.py" ...
            Shape: f32[128,128,32128]
    ->  Buffer(1.96, 'logits of the loss', 'f32[128,128,32128]', 'losses.py:139')
    """
    starts = r"(?m)^\s*(?:Buffer \d+:\s*|\d+\. )(?=Size: )"
    for block in re.split(starts, text)[1:]:
        size = re.match(rf"Size: {_SIZE}", block)
        if size is None:
            continue
        shape = re.search(r"(?:Shape|Subshape): ([^\s{]+)", block)
        file = re.search(r'source_file="([^"]+)"(?: source_line=(\d+))?', block)
        operator = re.search(r'op_name="([^"]+)"', block)
        parameter = "Entry Parameter" in block or "type: arguments" in block.lower()
        made_by = f"{operator[1] if operator else ''} {file[1] if file else ''}"
        yield Buffer(
            _gib(size[1], size[2]),
            _PARAMETERS if parameter else _cause(made_by),
            shape[1] if shape else "",
            ":".join(filter(None, (file[1].rpartition("/")[2], file[2])))
            if file
            else "",
        )


def _text(error: BaseException) -> str:
    """Returns the message of an error and of what caused it."""
    texts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(texts) < 5:
        texts.append(str(seen))
        seen = seen.__cause__
    return "\n".join(texts)


def _of_host(text: str) -> str:
    """Returns what to do about the memory of the machine itself."""
    match = _HOST.search(text)
    wanted = f": {match[1]} more were asked for" if match else ""
    return (
        f"out of host memory{wanted}; run fewer processes per machine, or lower "
        "BATCH_SIZE, EVAL_BATCHES or KEEP_CHECKPOINTS."
    )


def gib_needed(text: str) -> tuple[float | None, float | None]:
    """Returns the GiB needed and the GiB there are, as far as a message says.

    ... memory required (97.04G) exceeds available HBM (95.74G).  ->  97.04, 95.74
    """
    for pattern in _AMOUNTS:
        if match := pattern.search(text):
            number, unit, *rest = match.groups()
            return _gib(number, unit), _gib(rest[0], rest[1]) if rest else None
    return None, None


def _gib(number: str, unit: str) -> float:
    return float(number.rstrip(".")) * _UNITS[unit] / _GIB


def _sentence(needed: float | None, there: float | None) -> str:
    if needed is None:
        return "."
    have = "" if there is None else f", {_shown(there)} there"
    what = "asked for at once" if there is None else "needed"
    return f": {_shown(needed)} {what}{have}."


def _shown(gib: float) -> str:
    """1.957 -> 1.96 GiB; 0.00586 -> 6.00 MiB."""
    return f"{gib:.2f} GiB" if gib >= 1 else f"{gib * 1024:.2f} MiB"


def _cause(made_by: str) -> str:
    """Returns a person's word for what makes a buffer."""
    for pattern, cause in _CAUSES:
        if re.search(pattern, made_by, re.IGNORECASE):
            return cause
    return "activations"


def _columns(buffer: Buffer) -> list[str]:
    columns = [_shown(buffer.gib), buffer.cause, buffer.shape, buffer.place]
    return [column for column in columns if column]
