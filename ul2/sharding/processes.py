"""Several processes that train as one: who they are, and how they find each other.

A run on many hosts is one program that is started once per host (or per device). Which
of them a process is, is read off what started it, in this order:

    own variables   UL2_COORDINATOR=host:port  UL2_NUM_PROCESSES=4  UL2_PROCESS_ID=0
                    (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID)
    SLURM           a step of several tasks: `srun ul2 train ...`
    GKE (XPK)       a TPU job: TPU_WORKER_HOSTNAMES, TPU_WORKER_ID, MEGASCALE_*
    TPU VM          the metadata of the machine, as jax reads them

Whoever finds none of these is alone and waits for nobody: a laptop, a login node, a
shell inside a SLURM allocation, a machine with any number of devices of its own.

Further variables, for all of them:

    UL2_LOCAL_DEVICE_IDS     0,1: the devices that are this process's alone
    UL2_HEARTBEAT_SECONDS    after so long without a sign of life a process is dead (60)
    UL2_JOIN_SECONDS         how long to wait for the others at the start (300)

Nothing here imports jax before `join`, so that a command can find out first whether it
is one of several (`read_environment`).
"""

import contextlib
import dataclasses
import glob
import importlib.util
import itertools
import os
import re
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any, Final

Environment = Mapping[str, str]

_COORDINATOR: Final = ("UL2_COORDINATOR", "JAX_COORDINATOR_ADDRESS")
_COUNT: Final = ("UL2_NUM_PROCESSES", "JAX_NUM_PROCESSES")
_INDEX: Final = ("UL2_PROCESS_ID", "JAX_PROCESS_ID")
_DEVICES: Final = ("UL2_LOCAL_DEVICE_IDS", "JAX_LOCAL_DEVICE_IDS")
_HEARTBEAT: Final = "UL2_HEARTBEAT_SECONDS"
_PATIENCE: Final = "UL2_JOIN_SECONDS"
# What a job's port is taken from where nobody names one: jax's ranges.
_SLURM_FIRST_PORT, _SLURM_PORTS = 61440, 4096
_TPU_PORT: Final = 8482
# A week: whether others stand still is for the watchdog to judge.
_FOREVER_MS: Final = 7 * 24 * 3600 * 1000
# Longer than process 0 may wait for a lock.
_SAID_MILLISECONDS: Final = 600_000
_EMPTY: Final = "-"
# jax keeps what was said under a key for as long as the job lives.
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train together, seen from one of them.

    Attributes:
        coordinator: `host:port` of process 0, where all meet.
        count: how many there are.
        index: which of them this one is.
        local_device_ids: the devices of this machine that it drives; None for all.
        source: what said so.
    """

    coordinator: str
    count: int
    index: int
    local_device_ids: tuple[int, ...] | None
    source: str


def read_environment(environment: Environment = os.environ) -> Cluster | None:
    """Returns which of several processes this one is; None for the only one.

    Looks at the environment alone; see `join` for machines that only their metadata
    know.

        UL2_COORDINATOR=a:1234 UL2_NUM_PROCESSES=2 UL2_PROCESS_ID=1
        ->  Cluster('a:1234', count=2, index=1, None, 'environment')

    Raises:
        ValueError: half of it is missing, or it makes no sense.
    """
    readers = (_read_own, _read_slurm, _read_gke)
    found = next(filter(None, (read(environment) for read in readers)), None)
    if found is None:
        # It may say where the processes of SLURM or of a TPU meet, but not how many.
        coordinator = _first(environment, _COORDINATOR)
        if coordinator and not _asks_metadata(environment):
            raise ValueError(
                f"the coordinator {coordinator} is set, but {_COUNT[0]} and "
                f"{_INDEX[0]} are not; set all three, or none."
            )
        return None
    if not 0 <= found.index < found.count:
        raise ValueError(
            f"process {found.index} of {found.count} ({found.source}): the processes "
            f"are numbered from 0 to {found.count - 1}; set {_INDEX[0]} or "
            f"{_COUNT[0]}."
        )
    return None if found.count == 1 else found


def may_be_several(environment: Environment = os.environ) -> bool:
    """Returns whether `join` may find other processes.

    Raises:
        ValueError: the environment makes no sense.
    """
    return read_environment(environment) is not None or _asks_metadata(environment)


@dataclasses.dataclass(frozen=True)
class Joined:
    """A process among those that it has met.

    Attributes:
        index: which of them this is.
        count: how many there are.
        hosts: the name of each one's machine.
        devices: one line that says which devices.
    """

    index: int
    count: int
    hosts: tuple[str, ...]
    devices: str

    @property
    def name(self) -> str:
        """What a message calls this process."""
        return f"process {self.index} of {self.count} on {self.hosts[self.index]}"


def join(environment: Environment = os.environ) -> Joined | None:
    """Joins the other processes, if there are any; call it before any device is used.

    Returns:
        What was joined; None for a process that is alone.

    Raises:
        ValueError: the environment makes no sense, or the others did not come.
    """
    # Before jax: libtpu writes into the environment.
    cluster = read_environment(environment) or _ask_metadata(environment)
    if cluster is None:
        return None
    import jax

    heartbeat = _read_seconds(environment, _HEARTBEAT, 60)
    patience = _read_seconds(environment, _PATIENCE, 300)
    # Only read where the devices are CPUs.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    listens = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.count,
            cluster.index,
            local_device_ids=cluster.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=patience,
            heartbeat_timeout_seconds=heartbeat,
        )
    except RuntimeError as error:
        raise ValueError(
            f"process {cluster.index} of {cluster.count} ({cluster.source}) did not "
            f"meet the others at {cluster.coordinator} within {patience} seconds: "
            f"{_first_line(error)}; look whether all of them run, and whether that "
            f"address can be reached ({_COORDINATOR[0]}, {_PATIENCE})."
        ) from None
    # jax's preemption service takes SIGTERM for itself, and would keep it until the
    # loop asks for it: minutes, in which there is nothing to save.
    signal.signal(signal.SIGTERM, listens or signal.SIG_DFL)
    local, total = jax.local_device_count(), jax.device_count()
    return Joined(
        cluster.index,
        cluster.count,
        _exchange_hosts(cluster),
        f"{local} of {total} devices ({jax.devices()[0].device_kind}), met at "
        f"{cluster.coordinator} by {cluster.source}",
    )


def _exchange_hosts(cluster: Cluster) -> tuple[str, ...]:
    """Tells the others the name of this machine, and returns those of all."""
    client = _client()
    client.key_value_set(f"ul2/host/{cluster.index}", socket.gethostname())
    client.wait_at_barrier("ul2 hosts are known", 60_000)
    hosts = dict(client.key_value_dir_get("ul2/host/"))
    return tuple(hosts[f"ul2/host/{index}"] for index in range(cluster.count))


def _client() -> Any:
    """Returns jax's line to process 0; None for a process that is alone."""
    # jax has no public name for what needs no device.
    from jax._src import distributed

    return distributed.global_state.client


def wait_briefly(what: str, seconds: float) -> bool:
    """Returns whether all processes came here within some seconds."""
    client = _client()
    if client is None:
        return True
    try:
        client.wait_at_barrier(what, int(seconds * 1000))
    except RuntimeError:  # jax's own errors are RuntimeErrors
        return False
    return True


class Exchange:
    """Points of a program at which every process tells all others something.

    They meet through process 0's coordination service, not on the devices, so a thread
    may exchange while another trains. All processes must come to the same points of a
    series, in the same order; each waits until the last has come.

    Args:
        series: names the points; each series is used by one thread at a time.
    """

    def __init__(self, series: str) -> None:
        self._client = _client()
        self._series, self._point = f"ul2/exchange/{series}", 0
        self._said: str | None = None

    def __call__(self, message: str) -> list[str]:
        """Returns the messages of all processes, in their order.

        Raises:
            RuntimeError: another process did not come; jax ends this one soon.
        """
        if self._client is None:
            return [message]
        import jax

        self._point += 1
        folder = f"{self._series}/{self._point}/"
        key = f"{folder}{jax.process_index():06d}"
        self._client.key_value_set(key, message)
        self._client.wait_at_barrier(folder, _FOREVER_MS)
        answers = sorted(self._client.key_value_dir_get(folder))
        # Whoever came to this point has read what was said at the one before.
        if self._said is not None:
            self._client.key_value_delete(self._said)
        self._said = key
        return [answer for _, answer in answers]


def said_by_first(about: str, text: str) -> str:
    """Returns what process 0 gives, on every process; all must call it.

    Args:
        about: what it is about; asked equally often by all.
        text: of process 0, which alone counts.
    """
    client = _client()
    if client is None:
        return text
    import jax

    key = f"ul2/said/{about}/{next(_numbers)}"
    if jax.process_index() == 0:
        client.key_value_set(key, text or _EMPTY)
        return text
    said: str = client.blocking_key_value_get(key, _SAID_MILLISECONDS)
    return "" if said == _EMPTY else said


def exchange(about: str, text: str, seconds: float) -> dict[str, str | None]:
    """Tells the other processes something, and returns what each has told so far.

    Waits for nobody, and never for longer than some seconds: process 0, where all is
    kept, may be the one that hangs.

    Returns:
        By name of each other process; None for one that has told nothing, or last "".
    """
    client = _client()
    if client is None:
        return {}
    import jax

    index, found = jax.process_index(), dict[str, str]()

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # jax's own errors are RuntimeErrors
            key = f"ul2/{about}/{index}"
            client.key_value_set(key, text or _EMPTY, allow_overwrite=True)
            found.update(client.key_value_dir_get(f"ul2/{about}/"))
            found.update(client.key_value_dir_get("ul2/host/"))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    told: dict[str, str | None] = {}
    for other in range(jax.process_count()):
        if other != index:
            host = found.get(f"ul2/host/{other}")
            name = f"process {other}" + (f" on {host}" if host else "")
            said = found.get(f"ul2/{about}/{other}")
            told[name] = None if said == _EMPTY else said
    return told


def _first(environment: Environment, names: tuple[str, ...]) -> str | None:
    """Returns the first variable that is set and not empty."""
    return next((environment[name] for name in names if environment.get(name)), None)


def _whole(text: str, names: tuple[str, ...] | str) -> int:
    """Reads a number, or says which variable holds none."""
    if not text.strip().isdecimal():
        name = names if isinstance(names, str) else " or ".join(names)
        raise ValueError(f"{name}={text!r} must be a whole number, 0 or more.")
    return int(text)


def _read_seconds(environment: Environment, name: str, default: int) -> int:
    """Reads a number of seconds.

    Raises:
        ValueError: it is none, or too few for a network.
    """
    seconds = _whole(environment.get(name) or str(default), name)
    if seconds < 2:
        raise ValueError(f"{name}={seconds} must be at least 2 seconds.")
    return seconds


def _read_own(environment: Environment) -> Cluster | None:
    """Reads the variables that a person or a launcher sets."""
    coordinator = _first(environment, _COORDINATOR)
    count, index = _first(environment, _COUNT), _first(environment, _INDEX)
    if count is None and index is None:
        return None
    if count is not None and _whole(count, _COUNT) == 1:
        return Cluster(coordinator or "", 1, 0, None, "the environment")
    values = {_COORDINATOR[0]: coordinator, _COUNT[0]: count, _INDEX[0]: index}
    missing = [name for name, value in values.items() if value is None]
    if missing:
        present = ", ".join(
            f"{name}={value}" for name, value in values.items() if value
        )
        raise ValueError(
            f"{' and '.join(missing)} must be set, too ({present}); set all three, or "
            "none to train on this machine alone."
        )
    assert coordinator is not None and count is not None and index is not None
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"{_COORDINATOR[0]}={coordinator!r} must be HOST:PORT.")
    devices = _read_devices(environment)
    return Cluster(
        coordinator,
        _whole(count, _COUNT),
        _whole(index, _INDEX),
        devices,
        "the environment",
    )


def _read_devices(environment: Environment) -> tuple[int, ...] | None:
    """Returns the devices that are this process's alone; None for all."""
    listed = _first(environment, _DEVICES)
    if listed is None:
        return None
    return tuple(_whole(part, _DEVICES) for part in listed.split(","))


def _read_slurm(environment: Environment) -> Cluster | None:
    """Reads what srun tells the tasks of a step.

    The number is that of the step: SLURM_NTASKS is the job's, and is set as well in
    the shell of an allocation, whose other tasks never come.
    """
    count = environment.get("SLURM_STEP_NUM_TASKS")
    nodes = environment.get("SLURM_STEP_NODELIST")
    index, job = environment.get("SLURM_PROCID"), environment.get("SLURM_JOB_ID")
    if not (count and nodes and index and job):
        return None
    coordinator = _first(environment, _COORDINATOR)
    if coordinator is None:
        port = _SLURM_FIRST_PORT + _whole(job, "SLURM_JOB_ID") % _SLURM_PORTS
        coordinator = f"{_first_host(nodes)}:{port}"
    return Cluster(
        coordinator,
        _whole(count, "SLURM_STEP_NUM_TASKS"),
        _whole(index, "SLURM_PROCID"),
        _read_devices(environment) or _slurm_devices(environment),
        "SLURM",
    )


def _first_host(nodes: str) -> str:
    """Returns the first of SLURM's list of hosts.

    gpu[003-005,009],login1 -> gpu003
    """
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\])?([^,\[]*)", nodes)
    assert match is not None, nodes
    return "".join(part or "" for part in match.groups())


def _slurm_devices(environment: Environment) -> tuple[int, ...] | None:
    """Returns the device of a task that shares its node with others.

    Where srun has bound each task to devices of its own, it sees no others anyway.
    """
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    seen = _first(environment, ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"))
    tasks = _whole(re.split(r"[(,]", per_node)[0], "SLURM_STEP_TASKS_PER_NODE")
    if tasks == 1 or seen is None or len(seen.split(",")) < tasks:
        return None
    return (_whole(environment.get("SLURM_LOCALID", "0"), "SLURM_LOCALID"),)


def _read_gke(environment: Environment) -> Cluster | None:
    """Reads what GKE tells the pods of a TPU job, of one slice or several."""
    hosts = _first(environment, ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"))
    worker = environment.get("TPU_WORKER_ID")
    if not hosts or not worker:
        return None
    names = [host.rpartition("//")[2].split(":")[0] for host in hosts.split(",")]
    slices = _whole(environment.get("MEGASCALE_NUM_SLICES") or "1", "NUM_SLICES")
    index = _whole(environment.get("MEGASCALE_SLICE_ID") or "0", "MEGASCALE_SLICE_ID")
    coordinator = _first(environment, _COORDINATOR)
    if coordinator is None:
        first = environment.get("MEGASCALE_COORDINATOR_ADDRESS") or names[0]
        coordinator = f"{first.split(':')[0]}:{_TPU_PORT}"
    return Cluster(
        coordinator,
        len(names) * slices,
        index * len(names) + _whole(worker, "TPU_WORKER_ID"),
        None,
        "GKE",
    )


def _asks_metadata(environment: Environment) -> bool:
    """Returns whether this is a machine with TPUs, whose metadata may know of others.

    A metadata server is asked on no other machine: it would be waited for.
    """
    if any(_first(environment, names) for names in (_COUNT, ("TPU_WORKER_ID",))):
        return False  # The environment has said.
    return (
        "TPU_SKIP_MDS_QUERY" not in environment
        and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
        and importlib.util.find_spec("libtpu") is not None
    )


def _ask_metadata(environment: Environment) -> Cluster | None:
    """Asks the metadata of a TPU VM, through jax; None for a machine that has none."""
    if not _asks_metadata(environment):
        return None
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    try:
        if not GceTpuCluster.is_env_present():
            return None
        count, index = GceTpuCluster.get_process_count(), GceTpuCluster.get_process_id()
        if count == 1:
            return None
        coordinator = _first(environment, _COORDINATOR)
        coordinator = coordinator or GceTpuCluster.get_coordinator_address(
            timeout_secs=_read_seconds(environment, _PATIENCE, 300),
            override_coordinator_port=None,
        )
    except OSError:  # requests' errors are OSErrors: nobody answers
        return None
    return Cluster(coordinator, count, index, None, "TPU VM")


def _first_line(error: BaseException) -> str:
    """Returns the first line of a message of jax."""
    return str(error).strip().splitlines()[0].rstrip(".")
