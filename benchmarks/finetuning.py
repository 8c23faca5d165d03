"""Fine-tuning in every mode against training from scratch, at equal steps.

The task is `docstring_to_name`: real text that the installed libraries bring. Starts
from the checkpoint that scripts/quickstart.sh leaves; every run is one `ul2 train`.

    scripts/quickstart.sh
    python benchmarks/finetuning.py --checkpoint runs/quickstart_enc_dec_tiny \
        --scratch /some/empty/folder

What is done is not done twice: a run that was stopped goes on.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ul2.training.best import best_step

MODES = ("R", "S", "X", "none")
# From scratch: the rate of all runs, and that of T5's fine-tuning.
SCRATCH_RATES = (1e-2, 1e-3)
TASK = "docstring_to_name"
MODULE = "ul2.tasks.code_names"
COMMAND = "import sys; from ul2.cli import main; sys.exit(main())"
INPUTS_LENGTH, TARGETS_LENGTH = 64, 16
MEASURES = ("loss", "accuracy", "sequence_accuracy")
DECODED = ("exact_match", "word_f1")


def recipe(options: argparse.Namespace, name: str, seed: int, **macros: object) -> list:
    """Returns the arguments of one `ul2 train`."""
    shared = {
        "TASK": TASK,
        "TOTAL_STEPS": options.steps,
        "INPUTS_LENGTH": INPUTS_LENGTH,
        "TARGETS_LENGTH": TARGETS_LENGTH,
        "BATCH_SIZE": 64,
        "LEARNING_RATE": 1e-2,
        "EVAL_EVERY_STEPS": options.steps // 3,
        "SAVE_EVERY_STEPS": options.steps // 3,
        "LOG_EVERY_STEPS": 50,
        "KEEP_CHECKPOINTS": 1,
        "EXAMPLES_DIR": options.scratch / "examples",
        "MODEL_DIR": run_dir(options, name, seed),
        "SEED": seed,
    }
    return [
        "train",
        "--gin_file=configs/runs/finetune.gin",
        f"--import_module={MODULE}",
        *(f"--gin.{key}={value}" for key, value in {**shared, **macros}.items()),
    ]


def run_dir(options: argparse.Namespace, name: str, seed: int) -> Path:
    """Returns where a run keeps everything."""
    return options.scratch / f"{name}-{seed}"


def runs(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Returns the macros of every kind of run, by name."""
    pretrained = {"INITIAL_CHECKPOINT": options.checkpoint}
    tokenizer = options.checkpoint / "tokenizer.model"
    found = {mode: {**pretrained, "MODE": mode} for mode in MODES}
    for rate in SCRATCH_RATES:
        found[f"scratch_{rate}"] = {
            "VOCAB": tokenizer,
            "MODE": "none",
            "LEARNING_RATE": rate,
        }
    return found


def train(options: argparse.Namespace, name: str, seed: int, macros: dict) -> float:
    """Trains one run in a process of its own; returns the seconds it took."""
    arguments = recipe(options, name, seed, **macros)
    if "VOCAB" in macros:
        arguments.insert(1, f"--gin_file=configs/models/{options.model}.gin")
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.monotonic() - began


def decode(options: argparse.Namespace, name: str, seed: int, mode: str) -> dict:
    """Decodes held-out examples from the best checkpoint; returns the scores."""
    arguments = [
        "eval",
        "--json",
        f"--import_module={MODULE}",
        f"--checkpoint={run_dir(options, name, seed)}",
        "--step=best",
        f"--task={TASK}",
        f"--mode={mode}",
        "--method=generate",
        f"--inputs_length={INPUTS_LENGTH}",
        f"--max_tokens={TARGETS_LENGTH}",
        f"--limit={options.decode}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    (result,) = json.loads(done.stdout.splitlines()[-1])["results"]
    return result["scores"]


def measure(options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Returns the evaluation of the best checkpoint of a run."""
    folder = run_dir(options, name, seed)
    step = best_step(folder)
    lines = map(json.loads, (folder / "eval.jsonl").read_text().splitlines())
    (line,) = [line for line in lines if line["step"] == step]
    return {"step": step, **{key: line[key] for key in MEASURES}}


def main() -> None:
    """Trains what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--model", default="enc_dec_tiny")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--decode", type=int, default=256, help="examples; 0: none")
    options = parser.parse_args()
    print("| run | best step | loss | tokens | names | exact match | word F1 | time |")
    print("|---|---|---|---|---|---|---|---|")
    for name, macros in runs(options).items():
        rows, seconds = [], []
        for seed in range(options.seeds):
            seconds.append(train(options, name, seed, macros))
            row = measure(options, name, seed)
            if options.decode:
                row |= decode(options, name, seed, str(macros["MODE"]))
            rows.append(row)
        means = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
        decoded = (f"{means.get(key, float('nan')):.1f}" for key in DECODED)
        print(
            f"| {name} | {means['step']:.0f} | {means['loss']:.3f} | "
            f"{means['accuracy']:.1%} | {means['sequence_accuracy']:.1%} | "
            f"{' | '.join(decoded)} | {statistics.mean(seconds):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
