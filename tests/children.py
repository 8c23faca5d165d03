"""What tests tell the processes that they start."""

import os
import re
import socket


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def xla_flags(devices: int | None = None) -> str:
    """Returns the flags of this process, for another number of fake devices, or none.

    "--a=1 --xla_force_host_platform_device_count=8", 2  ->  "--a=1 --...=2"
    """
    count = "--xla_force_host_platform_device_count"
    rest = re.sub(rf"{count}=\d+", "", os.environ["XLA_FLAGS"]).strip()
    return rest if devices is None else f"{rest} {count}={devices}"
