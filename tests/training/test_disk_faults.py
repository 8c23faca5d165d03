import json
import subprocess
import sys

import pytest
from disk_faults import HERE, build_shim, preloaded

CALLS = 5


@pytest.mark.slow
def test_run_loses_nothing_when_a_call_that_writes_fails(tmp_path):
    """A sample; `scripts/disk_faults.sh` lets every call fail."""
    shim = build_shim(tmp_path)
    if shim is None:
        pytest.skip("needs Linux and a C compiler")
    command = [
        sys.executable, HERE / "disk_faults.py",
        "--calls", str(CALLS), "--seed", "3", "--folder", tmp_path,
    ]  # fmt: skip
    done = subprocess.run(
        [*map(str, command)], env=preloaded(shim), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    reached = CALLS - report["at"].get("not reached", 0)
    assert report["failed"] == CALLS and reached >= CALLS - 1, report
    assert report["gave_up"] >= 1
