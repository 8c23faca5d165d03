r"""How long it takes until training trains, on a warm compilation cache.

    python benchmarks/starting.py --scratch /some/empty/folder

`ul2 train` as a person starts it: a process of its own, on a store made here from the
documentation inside Python. A first run fills the compilation cache and saves; then new
runs and runs that go on take turns. Time counts from the start of the process until
the line of its first update is in `metrics.jsonl`; the update itself is taken off, as
the lines after it give it. Beside it `import` of what training needs, and `--help`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

UL2 = [sys.executable, "-c", "from ul2.cli import main; raise SystemExit(main())"]
REPOSITORY = Path(__file__).resolve().parents[1]
SAVED, LINES = 2, 6  # updates of the run that is gone on with; lines that are read


def recipe(options: argparse.Namespace, folder: Path, steps: int) -> list[str]:
    """Returns the command line of a run."""
    files = [
        f"configs/models/{options.model}.gin",
        "configs/objectives/ul2.gin",
        "configs/runs/pretrain.gin",
    ]
    macros = {
        "DATA": options.scratch / "store", "MODEL_DIR": folder, "TOTAL_STEPS": steps,
        "INPUTS_LENGTH": 64, "TARGETS_LENGTH": 64, "BATCH_SIZE": 14,
        "LOG_EVERY_STEPS": 1, "EVAL_EVERY_STEPS": 0, "SAVE_EVERY_STEPS": 0,
        "DTYPE": "float32",
    }  # fmt: skip
    return [
        *UL2, "train",
        *(f"--gin_file={file}" for file in files),
        *(f"--gin.{name}={value}" for name, value in macros.items()),
    ]  # fmt: skip


def lines_of(run: Path) -> int:
    """Returns how many whole lines the metrics of a run have."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def start(options: argparse.Namespace, run: Path) -> tuple[float, float]:
    """Returns seconds until the first update is done, without it, and those of one."""
    before, began = lines_of(run), time.perf_counter()
    seen: list[float] = []
    with subprocess.Popen(
        recipe(options, run, 10**6), cwd=REPOSITORY, env=environment(options),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while len(seen) < LINES:
            if process.poll() is not None:
                raise SystemExit(f"{run}: training ended with {process.returncode}.")
            new = lines_of(run) - before - len(seen)
            seen += [time.perf_counter() - began] * new
            time.sleep(0.002)
        process.kill()
    update = (seen[-1] - seen[0]) / (len(seen) - 1)
    return seen[0] - update, update


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Returns that of every run: one compilation cache."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(options.scratch / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {**os.environ, **cache}


def seconds_of(command: list[str], options: argparse.Namespace) -> float:
    """Returns how long a command takes."""
    began = time.perf_counter()
    subprocess.run(
        command, check=True, cwd=REPOSITORY, env=environment(options),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - began


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--model", default="enc_dec_small", help="in configs/models")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    options.scratch = options.scratch.resolve()
    options.scratch.mkdir(parents=True)
    store = ["--text", "embedded", "--train_vocab", "4096", "--held_out", "0.05"]
    seconds_of(
        [*UL2, "tokenize", *store, "--out", str(options.scratch / "store")], options
    )
    saved = options.scratch / "saved"
    cold = seconds_of(recipe(options, saved, SAVED), options)
    times: dict[str, list[float]] = defaultdict(list)
    updates: list[float] = []
    imports = "import ul2.launch, ul2.inspection, ul2.recipe"
    for turn in range(options.turns):
        new, again = (options.scratch / f"{name}_{turn}" for name in ("new", "again"))
        shutil.copytree(saved, again)
        for name, run in (("new run", new), ("goes on", again)):
            seconds, update = start(options, run)
            times[name].append(seconds)
            updates.append(update)
            shutil.rmtree(run)
        times["imports"].append(seconds_of([sys.executable, "-c", imports], options))
        times["--help"].append(seconds_of([*UL2, "--help"], options))
    result = {
        "model": options.model,
        "seconds": {name: statistics.median(all_) for name, all_ in times.items()},
        "update": statistics.median(updates),
        f"first run of all, {SAVED} updates": cold,
        "times": times,
    }
    print(json.dumps(result, indent=1))
    shutil.rmtree(options.scratch)


if __name__ == "__main__":
    main()
