"""Every call of a run that writes fails once; afterwards nothing may be lost.

python tests/training/disk_faults.py [--calls N] [--seed S] [--kill]

Trains the smallest run again and again in this process, with saves, evaluations, a best
checkpoint and removals of old ones. `disk_faults.c`, which is preloaded, counts the
calls that write (of Python and of C++) and lets the k-th fail: a full disk, a quota, a
right that is gone, an I/O error. The run must go on by itself and end with the bits and
the lines of one that nothing disturbed. Every fifth time all later calls fail as well,
until the run gives up; started again, it must end the same. With --kill the process is
killed there instead, and started again.

Without --calls it is every call; with it so many, drawn by the seed. Prints JSON.
"""

import argparse
import ctypes
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS)
KILL = -1
# The evaluation after each update; the second is best.
SCORES = (1.0, 9.0, 4.0, 2.0, 3.0, 1.0)


def build_shim(folder):
    """Compiles the library to preload; None where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    shim = Path(folder) / "disk_faults.so"
    command = [compiler, "-O1", "-fPIC", "-shared", "-o", shim, HERE / "disk_faults.c"]
    subprocess.run([*map(str, command), "-ldl"], check=True)
    return shim


def preloaded(shim):
    """Returns the environment of a process that the shim stands in."""
    places = (HERE, HERE.parent, HERE.parents[1], os.environ.get("PYTHONPATH", ""))
    return {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": "",
    }


def steps_of(model_dir):
    folder = model_dir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


class Runs:
    """Trains below one folder, under the shim."""

    def __init__(self, folder):
        from training_toys import make_programs, make_run, make_settings

        from ul2.training import run_checkpoints

        run_checkpoints.FIRST_PAUSE = 0.01
        self.folder = Path(folder)
        self.settings = make_settings(
            eval_every_steps=1,
            save_every_steps=2,
            keep_checkpoints=1,
            best_metric="score",
            save_retry_seconds=1.0,
        )
        self.programs = make_programs(make_run("unused"))
        self.shim = ctypes.CDLL(None)
        self.shim.faults_hit.restype = ctypes.c_char_p
        self.shim.faults_count.restype = ctypes.c_long

    def arm(self, name="", at=0, error=0, *, sticky=False):
        """Lets call `at` below a run's folder fail; none without a name."""
        path = str(self.folder / name) if name else ""
        self.shim.faults_arm(path.encode(), ctypes.c_long(at), error, int(sticky))

    def train(self, name):
        from training_toys import make_run

        from ul2.training.loop import train

        done = max(steps_of(self.folder / name), default=0)
        scores = iter(SCORES[done:])
        run = make_run(
            self.folder / name,
            score_params=lambda params, check: {"score": next(scores)},
        )
        return train(run, self.settings, programs=self.programs, clock=lambda: 0.0)

    def arrays(self, name):
        from training_toys import read_state

        return read_state(self.folder / name, self.programs)

    def lines(self, name):
        files = ("metrics.jsonl", "eval.jsonl")
        return [(self.folder / name / file).read_text() for file in files]

    def check(self, name):
        """Compares a run that was disturbed with one that was not."""
        import jax
        import numpy as np

        jax.tree.map(
            np.testing.assert_array_equal, self.arrays(name), self.arrays("whole")
        )
        assert self.lines(name) == self.lines("whole")
        model_dir = self.folder / name
        names = {path.name for path in (model_dir / "checkpoints").iterdir()}
        assert all(name.isdecimal() for name in names), names
        # A best state whose save failed is gone; the record names one that is there.
        best = json.loads((model_dir / "best.json").read_text())
        assert {str(best["step"]), "6"} <= names, (best, names)
        assert best["value"] == SCORES[best["step"] - 1]


def choose(runs, calls, seed):
    """Returns how many calls a run makes, and the numbers of those to disturb.

    Threads join what they write, so a run makes up to a tenth more or fewer calls than
    another. A sample is of those that every run reaches.
    """
    runs.train("whole")
    runs.arm("count")
    runs.train("count")
    total = runs.shim.faults_count()
    runs.arm()
    runs.check("count")
    if calls is None:
        return total, range(1, total + 1)
    reached = range(1, total * 4 // 5)
    return total, sorted(random.Random(seed).sample(reached, min(calls, len(reached))))


def sweep(runs, calls, seed):
    """Lets calls fail one after another; returns where."""
    from ul2.training.failures import StorageError

    total, chosen = choose(runs, calls, seed)
    hit, gave_up = Counter(), 0
    threads = threading.active_count()
    files = len(os.listdir("/proc/self/fd"))
    for number, at in enumerate(chosen):
        sticky = number % 5 == 4
        runs.arm("run", at, ERRORS[number % len(ERRORS)], sticky=sticky)
        try:
            runs.train("run")
        except (StorageError, ValueError) as error:
            assert sticky or "cannot write to" in str(error), (at, error)
            assert "\n" not in str(error), error
            gave_up += 1
        where = runs.shim.faults_hit().decode()
        hit[where.split()[0] if where else "not reached"] += 1
        runs.arm()
        runs.train("run")
        runs.check("run")
        for _ in range(50):  # One that has ended may still be listed.
            if threading.active_count() <= threads:
                break
            time.sleep(0.1)
        assert threading.active_count() <= threads, threading.enumerate()
        shutil.rmtree(runs.folder / "run")
    assert len(os.listdir("/proc/self/fd")) <= files + 4
    return {"calls": total, "failed": len(chosen), "gave_up": gave_up, "at": dict(hit)}


def kill(runs, calls, seed):
    """Kills processes at calls of theirs; returns where."""
    total, chosen = choose(runs, calls, seed)
    killed = 0
    for at in chosen:
        command = [sys.executable, __file__, "--folder", runs.folder, "--at", str(at)]
        code = subprocess.run([*map(str, command)]).returncode
        assert code in (0, -signal.SIGKILL), code
        killed += code != 0
        runs.train("run")
        runs.check("run")
        shutil.rmtree(runs.folder / "run")
    return {"calls": total, "killed": killed}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--at", type=int)
    options = parser.parse_args()
    if "faults" not in os.environ.get("LD_PRELOAD", ""):
        # In memory where that can be: a run syncs some hundred times.
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryDirectory(dir=place) as folder:
            shim = build_shim(folder)
            if shim is None:
                sys.exit("needs Linux and a C compiler (cc).")
            command = [sys.executable, *sys.argv, "--folder", folder]
            sys.exit(subprocess.run(command, env=preloaded(shim)).returncode)
    runs = Runs(options.folder)
    if options.at is not None:
        runs.arm("run", options.at, KILL)
        runs.train("run")
        return
    what = kill if options.kill else sweep
    report = what(runs, options.calls, options.seed)
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
