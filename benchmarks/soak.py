"""Does a run grow? Memory, file descriptors and threads of `ul2 train` over its steps.

    python benchmarks/soak.py --scratch /some/empty/folder --steps 2000

Trains a toy of the tiny encoder-decoder with an evaluation every 100 steps and a
checkpoint every 20, looks at the process whenever a line of metrics appears, and fits
a line to what it used. The first 1,000 steps are left out: Python collects what the
compilers left at about step 850. The rest is cut into twenty blocks of consecutive
samples, and the line goes through the least of each (other samples depend on what
is just being written); its 95 % confidence interval is that of independent points.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMAND = "import sys; from ul2.cli import main; sys.exit(main())"
FILES = ("models/enc_dec_tiny", "objectives/ul2", "runs/pretrain")
MACROS = {
    "EMBED_DIM": 16,
    "NUM_HEADS": 2,
    "HEAD_DIM": 8,
    "MLP_DIM": 32,
    "NUM_ENCODER_LAYERS": 1,
    "NUM_DECODER_LAYERS": 1,
    "INPUTS_LENGTH": 64,
    "TARGETS_LENGTH": 64,
    "BATCH_SIZE": 28,
    "MESH": "data=1",
    "LOG_EVERY_STEPS": 4,
    "EVAL_BATCHES": 2,
    "KEEP_CHECKPOINTS": 3,
    "BEST_METRIC": "loss",
}
# glibc then gives back what is freed, instead of keeping it for later: what is measured
# is what is in use.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
WARM_UP_STEPS = 1000
BLOCKS = 20
# Of Student's t with 18 degrees of freedom.
T_95 = 2.101
VOCAB_SIZE, SENTINELS = 1000, 64


def command(*arguments: object) -> list[str]:
    """Returns the command line of a `ul2` command."""
    return [sys.executable, "-c", COMMAND, *map(str, arguments)]


def look(pid: int) -> dict[str, int]:
    """Returns the bytes of memory, the descriptors and the threads of a process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    return {
        "bytes": int(fields["RssAnon"].split()[0]) * 1024,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(fields["Threads"]),
    }


def watch(process: subprocess.Popen, metrics: Path) -> list[dict[str, int]]:
    """Returns what a run used at every line of its metrics, until it ends."""
    samples: list[dict[str, int]] = []
    while process.poll() is None:
        lines = metrics.read_text().split("\n")[:-1] if metrics.is_file() else []
        step = json.loads(lines[-1])["step"] if lines else 0
        if step > (samples[-1]["step"] if samples else 0):
            try:
                samples.append({"step": step, **look(process.pid)})
            except (OSError, KeyError):  # It has just ended.
                break
        time.sleep(0.02)
    return samples


def fit(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Returns the slope through points, and half of its 95 % confidence interval.

    (0, 1) (1, 3) (2, 5)  ->  2.0, 0.0
    """
    xs, ys = zip(*points, strict=True)
    slope, start = statistics.linear_regression(xs, ys)
    rest = [y - start - slope * x for x, y in points]
    mean = statistics.fmean(xs)
    spread = math.sqrt(sum((x - mean) ** 2 for x in xs))
    error = math.sqrt(sum(r * r for r in rest) / max(len(points) - 2, 1))
    return slope, T_95 * error / spread


def floors(samples: list[dict[str, int]], name: str) -> list[tuple[float, float]]:
    """Returns the least value of every block of samples, at its middle step."""
    size = len(samples) // BLOCKS
    blocks = [samples[i * size : (i + 1) * size] for i in range(BLOCKS)]
    return [
        (
            statistics.median(one["step"] for one in block),
            min(one[name] for one in block),
        )
        for block in blocks
    ]


def main() -> None:
    """Trains, and prints slopes."""
    parser = argparse.ArgumentParser(description="Measure whether a run grows.")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save_every", type=int, default=20)
    parser.add_argument("--eval_every", type=int, default=100)
    options = parser.parse_args()
    store, run = options.scratch / "store", options.scratch / "run"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **MALLOC}
    if not store.exists():
        flags = ("--train_vocab", VOCAB_SIZE, "--num_sentinels", SENTINELS)
        flags = (*flags, "--held_out", 0.05, "--out", store)
        subprocess.run(
            command("tokenize", "--text", "embedded", *flags),
            check=True,
            env=environment,
        )
    macros = {
        "DATA": store,
        "MODEL_DIR": run,
        "TOTAL_STEPS": options.steps,
        "SAVE_EVERY_STEPS": options.save_every,
        "EVAL_EVERY_STEPS": options.eval_every,
        **MACROS,
    }
    flags = [f"--gin_file=configs/{name}.gin" for name in FILES]
    flags += [f"--gin.{name}={value}" for name, value in macros.items()]
    began = time.monotonic()
    process = subprocess.Popen(
        command("train", *flags), env=environment, stderr=subprocess.DEVNULL
    )
    samples = watch(process, run / "metrics.jsonl")
    if process.returncode:
        raise SystemExit(f"ul2 train ended with {process.returncode}.")
    late = [one for one in samples if one["step"] > WARM_UP_STEPS]
    print(f"{len(samples)} samples in {time.monotonic() - began:.0f} s")
    for name, unit in (("bytes", "KiB"), ("descriptors", ""), ("threads", "")):
        scale = 1024 if unit else 1
        slope, half = fit(floors(late, name))
        values = [one[name] / scale for one in late]
        print(
            f"{name}: {slope / scale:+.4f} +- {half / scale:.4f} {unit} per step; "
            f"from {min(values):.0f} to {max(values):.0f} {unit}, "
            f"last {values[-1]:.0f}"
        )
    for step, value in floors(late, "bytes"):
        print(f"  step {step:6.0f}  {value / 2**20:8.2f} MiB")


if __name__ == "__main__":
    main()
