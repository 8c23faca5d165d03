"""Every test runs on eight fake devices, and nothing may broadcast or warn silently."""

import os
import sys
from pathlib import Path

# Before jax is imported by anything.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()
# Shared tolerances and fixtures are imported by name.
sys.path.insert(0, str(Path(__file__).parent))
