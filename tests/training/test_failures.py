import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ul2.training.failures import buffers, explain, lost_process

MESSAGES = Path(__file__).parent / "messages"


class JaxRuntimeError(RuntimeError):
    """What jax raises; its text is all that is read."""


def read(name):
    return (MESSAGES / f"{name}.txt").read_text()


def test_tpu_compile_error_names_the_largest_buffers():
    report = explain(JaxRuntimeError(read("tpu_compile_buffers")))
    first, *rest = report.splitlines()
    assert first == "out of device memory: 63.80 GiB needed, 30.75 GiB there."
    assert rest[0].split("  ")[1:] == [
        "2.00 GiB", "attention", "f32[32,4096,4096]", "attention_module.py:1059",
    ]  # fmt: skip
    assert rest[1].split("  ")[1:3] == ["1.00 GiB", "logits of the loss"]
    assert rest[2].split("  ")[1:3] == ["512.00 MiB", "parameters, optimizer or batch"]


def test_gpu_error_names_the_largest_buffers():
    report = explain(JaxRuntimeError(read("gpu_buffers")))
    first, *rest = report.splitlines()
    assert first == "out of device memory: 27.94 GiB asked for at once."
    assert [line.split("  ")[2] for line in rest[:3]] == [
        "logits of the loss", "attention", "parameters, optimizer or batch",
    ]  # fmt: skip
    assert "losses.py:139" in rest[0]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("tpu_compile", "out of device memory: 30.00 GiB needed, 15.75 GiB there."),
        ("tpu_run", "out of device memory: 6.00 GiB asked for at once."),
        ("gpu_run", "out of device memory: 2.99 GiB asked for at once."),
        ("gpu_bytes", "out of device memory: 4.44 GiB asked for at once."),
        ("cpu", "out of device memory: 16384.00 GiB asked for at once."),
    ],
)
def test_memory_that_does_not_suffice_is_said_with_knobs_in_order(name, first):
    report = explain(JaxRuntimeError(read(name)))
    assert report.splitlines()[0] == first
    knobs = ["MICROBATCHES", "REMAT", "LOSS_CHUNK", "MESH", "EXAMPLES_PER_ROW"]
    places = [report.index(knob) for knob in [*knobs, "ul2 plan --search"]]
    assert places == sorted(places)


def test_cause_of_an_error_is_read_too():
    error = RuntimeError("the step failed")
    error.__cause__ = JaxRuntimeError(read("cpu"))
    assert explain(error).startswith("out of device memory")


def test_memory_of_a_kernel_and_of_the_host_have_other_knobs():
    report = explain(JaxRuntimeError(read("tpu_vmem")))
    assert "(vmem)" in report and "HEAD_DIM" in report
    with pytest.raises(MemoryError) as error:
        np.zeros(1 << 50, np.int8)
    assert explain(error.value).startswith("out of host memory: 1.00 PiB more were")


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)",
        "INVALID_ARGUMENT: dot_general requires equal sizes",
        "batch_size=96 does not divide",
    ],
)
def test_other_errors_are_left_alone(text):
    assert explain(JaxRuntimeError(text)) is None
    assert lost_process(JaxRuntimeError(text)) is None


def test_message_without_a_list_has_no_buffers():
    assert list(buffers(read("cpu"))) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/"
            "pair.cc:547] Connection closed by peer [10.0.0.3]:34691",
            "Gloo all-reduce failed: Connection closed by peer [10.0.0.3]",
        ),
        (
            "INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or "
            "there was a network error. Last NCCL warning(error) log entry (may be "
            "unrelated) ''.",
            "NCCL operation ncclGroupEnd() failed: remote process exited or there was "
            "a network error. Last NCCL warning(error) log entry (may be unrelated) ''",
        ),
        (
            "UNAVAILABLE: The following tasks are unhealthy (stopped sending "
            "heartbeats):\n1\nThe tasks have crashed.",
            "The following tasks are unhealthy (stopped sending heartbeats):",
        ),
    ],
)
def test_lost_process_is_told_from_other_errors(text, said):
    assert lost_process(ValueError(text)) == said
    assert explain(ValueError(text)) is None


def test_cpu_really_says_what_the_test_data_say():
    code = "import jax.numpy as jnp; jnp.zeros(1 << 44, jnp.uint8).block_until_ready()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert read("cpu").strip() in done.stderr
