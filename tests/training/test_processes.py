import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from children import free_port, xla_flags
from tolerances import REORDERED_SUM_RTOL
from training_toys import make_batch, run_train

HERE = Path(__file__).parent


def start(*arguments, **variables):
    path = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1])))
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, one_device):
    port = free_port()
    workers = [
        start(
            HERE / "two_processes.py", port, index, tmp_path,
            XLA_FLAGS=xla_flags(), JAX_PLATFORMS="cpu",
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)

    alone = run_train(
        tmp_path / "alone",
        mesh=one_device,
        eval_batches=lambda: [make_batch(seed=1000)],
    )
    reports = [json.loads((tmp_path / f"report{i}.json").read_text()) for i in (0, 1)]
    for index, report in enumerate(reports):
        assert report["shard"] == [[index], 2]
        assert report["resumed"] == 6
        for name in ("loss", "accuracy", "grad_norm", "target_tokens"):
            np.testing.assert_allclose(
                report["whole"][name], alone.metrics[name], rtol=REORDERED_SUM_RTOL
            )
        for name in ("loss", "tokens", "unigram_entropy"):
            np.testing.assert_allclose(
                report["evaluation"][name],
                alone.evaluation[name],
                rtol=REORDERED_SUM_RTOL,
            )
    # A batch that is bad on one process is bad for both, and known again later.
    for policy, position in (("skip", 7), ("rollback", 9)):
        ours, theirs = (report["bad"][policy] for report in reports)
        assert ours["loss"] == theirs["loss"] and ours["step"] == 7
        assert ours["position"] == theirs["position"] == position
        lines = (tmp_path / policy / "events.jsonl").read_text().splitlines()
        [event] = map(json.loads, lines)
        assert (event["event"], event["step"], event["rows"]) == (policy, 5, [6])
    # Only one process got the signal; both stopped after the same step.
    assert reports[0]["stopped"] == reports[1]["stopped"]
    step, preempted = reports[0]["stopped"]
    assert preempted and step < 6
    assert (tmp_path / "stopped" / "checkpoints" / str(step)).is_dir()
    # A disk that failed one of them failed both, and both did the same about it.
    assert reports[0]["gave_up"] == reports[1]["gave_up"]
    assert "process 1: No space left on device" in reports[0]["gave_up"]
    assert "the last good one is 3" in reports[0]["gave_up"]
    assert sorted(p.name for p in (tmp_path / "ever/checkpoints").iterdir()) == ["3"]
    for report in reports:
        assert report["failed_once"] == 6
        assert report["stepped_over"] == [6, reports[0]["whole"]["loss"]]
    names = sorted(path.name for path in (tmp_path / "whole/checkpoints").iterdir())
    assert names == ["3", "6", "6.damaged"]
    # And so they did where jax itself passed the notice on.
    assert reports[0]["noticed"] == reports[1]["noticed"]
    step, preempted = reports[0]["noticed"]
    assert preempted and step < 400
    assert (tmp_path / "noticed" / "checkpoints" / str(step)).is_dir()


def test_training_imports_no_tensorflow_gin_or_seqio(tmp_path):
    """Trains, too: TensorBoard's own writer would load TensorFlow when first used."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import ul2.training.loop, ul2.training.writers as writers\n"
        f"board = writers.TensorBoard(Path({str(tmp_path)!r}), 'train', 0)\n"
        "board.write({'step': 1, 'loss': 1.0})\n"
        "heavy = {'tensorflow', 'seqio', 'gin', 'clu'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    worker = start(script)
    output, _ = worker.communicate(timeout=100)
    assert worker.returncode == 0, output
