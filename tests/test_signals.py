"""SIGTERM to commands that have nothing to save, in processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest
from wiring_toys import write_corpus

from ul2.tasks.tokenizer import train_tokenizer

COMMAND = "import sys; from ul2.cli import main; sys.exit(main())"
# Holds the main thread in C, as a compiler does, and keeps the signal away from it.
COMPILING = """
import ctypes, signal
from ul2.cli import signals
signals.listen()
signals.listen_while_compiling()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("compiling", flush=True)
ctypes.CDLL(None).sleep(60)
"""
# As the loop of training does.
TAKEN_OVER = """
import signal, sys, time
from ul2.cli import signals
signals.listen()
signals.listen_while_compiling()
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
print("training", flush=True)
while not heard:
    time.sleep(0.01)
time.sleep(0.2)
signals.ignore()
signal.raise_signal(signal.SIGTERM)
sys.exit(3)
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("code", "word", "exit_code", "said"),
    [
        (COMPILING, "compiling\n", 75, "stopped by SIGTERM; start the same command"),
        (TAKEN_OVER, "training\n", 3, ""),
    ],
)
def test_sigterm_ends_what_has_nothing_to_save(code, word, exit_code, said):
    process = start(code)
    assert process.stdout.readline() == word
    began = time.monotonic()
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == exit_code
    assert errors.startswith(said)


def test_stopped_tokenizing_leaves_no_store_and_the_same_command_makes_it(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl", num_documents=20_000)
    texts = [line for line in corpus.read_text().splitlines()[:100]]
    model = train_tokenizer(texts, 400, 10, tmp_path / "t.model")
    store = tmp_path / "stores" / "store"
    flags = ["--text", corpus, "--out", store, "--vocab", model, "--num_workers", 1]
    process = start(COMMAND, "tokenize", *flags)
    while not list(tmp_path.glob("stores/.store.partial/*.tokens")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1].splitlines()[-1].startswith("stopped")
    assert process.returncode == 75
    assert not store.exists()
    process = start(COMMAND, "tokenize", *flags)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    assert os.listdir(store.parent) == ["store"]


def test_worker_ends_when_its_parent_is_killed(tmp_path):
    """It would wait for chunks forever: nobody closes its queue."""
    code = (
        "import multiprocessing, time\n"
        "from ul2.tasks import part_encoding\n"
        "def work():\n"
        "    part_encoding.start_worker(None)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    worker = context.Process(target=work)\n"
        "    worker.start()\n"
        "    print(worker.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True
    )
    worker = int(process.stdout.readline())
    process.kill()
    process.communicate()
    for _ in range(300):
        try:
            with open(f"/proc/{worker}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")
