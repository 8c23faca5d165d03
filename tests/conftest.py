"""Every test runs on eight fake devices, and nothing may broadcast silently."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

# Before jax is imported by anything.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()
# Toys take longer to compile than to run: half as long without the costly passes, two
# thirds of that with XLA's older emitters, three quarters of that if a program is not
# cut into parts for threads to share. A flag that XLA lacks ends the process.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
# The tests build a few toy programs again and again, some in processes of their own.
_compiled: tempfile.TemporaryDirectory[str] | None = None
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker shares what its parent made
    _compiled = tempfile.TemporaryDirectory(prefix="ul2-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Tolerances and fixtures that several folders share are imported by name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Frees the programs that a file's tests compiled.

    Each takes some dozens of memory mappings, of which Linux allows a process 65530;
    whoever asks for one more gets a segmentation fault inside XLA.
    """
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
        gc.collect()


def pytest_unconfigure() -> None:
    if _compiled is not None:
        _compiled.cleanup()
