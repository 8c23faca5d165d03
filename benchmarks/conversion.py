"""Peak memory and time of `ul2 convert` on a checkpoint of several gigabytes.

Makes a T5 1.1 large (783 million parameters, 3.1 GB in float32) as a T5X checkpoint out
of numbers that need no memory, then converts it through every format, each in a process
of its own, and reports what that process took at most.

    python benchmarks/conversion.py --scratch /some/empty/disk
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ul2.interop import presets, t5x_writing, vocabulary
from ul2.interop.checkpoint import Checkpoint
from ul2.interop.model import param_shapes
from ul2.interop.staging import Staging
from ul2.interop.tensors import Region, Tensor, by_rows
from ul2.models.config import ModelConfig

ROUTE = (
    ("t5x", "ul2"),
    ("ul2", "huggingface"),
    ("huggingface", "t5x"),
    ("huggingface", "ul2"),
    ("ul2", "stablehlo"),
)


def synthetic(name: str, shape: tuple[int, ...]) -> Tensor:
    """Returns a tensor whose every element is a function of its place."""
    dtype = np.dtype(np.float32)
    strides = (7919, 104729, 1299709)

    def read(region: Region) -> np.ndarray:
        places = np.ogrid[region]
        mixed = sum(p * s for p, s in zip(places, strides, strict=False))
        values = np.broadcast_to(mixed, [s.stop - s.start for s in region])
        return ((values % 65521) / 65521 - 0.5).astype(dtype) * dtype.type(0.1)

    return Tensor(name, shape, dtype, by_rows(shape, dtype), read)


def write_source(out: Path, preset: str) -> int:
    """Writes the checkpoint to start from, and returns its bytes."""
    config = ModelConfig(
        **presets.get(preset).fields(),
        positions="relative",
        tied_embeddings=False,
        dropout_rate=0.0,
        dtype="float32",
        remat="none",
    )
    shapes = param_shapes("encoder_decoder", config)
    params = {path: synthetic(path, shape) for path, shape in shapes.items()}
    source = Checkpoint(
        path=out,
        format="synthetic",
        layout="t5",
        architecture="encoder_decoder",
        config=config,
        preset=preset,
        vocab=vocabulary.T5_VOCAB,
        tokenizer=None,
        step=1000,
        params=params,
    )
    staging = Staging(out, {})
    t5x_writing.write(source, staging, None)
    staging.commit()
    return sum(tensor.nbytes for tensor in params.values())


def measure(source: Path, to: str, out: Path) -> dict[str, object]:
    """Runs one conversion in a process of its own."""
    program = str(Path(sys.executable).with_name("ul2"))
    command = [program, "convert", str(source), "--to", to, "--out", str(out)]
    started = time.perf_counter()
    with (out.parent / "report.json").open("w") as report_file:
        process = subprocess.Popen([*command, "--json"], stdout=report_file)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    report = json.loads((out.parent / "report.json").read_text().splitlines()[-1])
    return {
        "seconds": round(time.perf_counter() - started),
        "peak_mib": usage.ru_maxrss // 2**10,
        "max_logit_difference": report["max_logit_difference"],
        "preset": report["source"]["preset"],
    }


def main() -> None:
    """Prints a line per conversion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--preset", default="t5_1_1_large")
    options = parser.parse_args()
    folder = options.scratch
    size = write_source(folder / "t5x", options.preset)
    print(f"{options.preset}: {size / 1e9:.2f} GB of parameters")
    for number, (begin, to) in enumerate(ROUTE):
        out = folder / (to if not (folder / to).exists() else f"{to}_{number}")
        print(f"{begin} -> {to}: {measure(folder / begin, to, out)}", flush=True)


if __name__ == "__main__":
    main()
