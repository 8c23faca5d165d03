"""Files of runs, as `ul2 train` writes them."""

import json
import math


def measurement(step, loss=None, names=("r", "s"), **more):
    loss = 10 / math.sqrt(step) if loss is None else loss
    return {
        "step": step,
        "loss": loss,
        "accuracy": 0.1,
        "target_tokens": 100.0,
        "learning_rate": 0.01,
        "grad_norm": 1.0,
        "denoisers": {
            name: {"loss": loss + place, "tokens": 50.0}
            for place, name in enumerate(names)
        },
        "padding_fraction": 0.01,
        "tokens_per_second": 1000.0,
        "data_wait_fraction": 0.0,
        "mfu": None,
        **more,
    }


def scores(step, loss=3.0, **more):
    one = {"loss": loss, "accuracy": 0.2, "unigram_entropy": 5.0}
    return {"step": step, **one, "denoisers": {"r": one, "s": one}, **more}


def write_run(folder, lines=(), *, evaluations=(), events=(), history=(), config=None):
    folder.mkdir(parents=True)
    for name, content in (
        ("metrics", lines),
        ("eval", evaluations),
        ("events", events),
        ("history", history),
    ):
        if content:
            text = "".join(json.dumps(line) + "\n" for line in content)
            (folder / f"{name}.jsonl").write_text(text)
    if config is not None:
        (folder / "config.gin").write_text(config)
    return folder


CONFIG = """
import stuff
# Macros:
LEARNING_RATE = {rate}
SEED = 0
TOTAL_STEPS = 100
loop.TrainSettings.seed = %SEED
loop.TrainSettings.total_steps = %TOTAL_STEPS
schedules.constant.learning_rate = %LEARNING_RATE
"""
