import pytest

from ul2.sharding import processes
from ul2.sharding.processes import Cluster, join, may_be_several, read_environment

OWN = {"UL2_COORDINATOR": "a:1234", "UL2_NUM_PROCESSES": "4", "UL2_PROCESS_ID": "3"}
STEP = {
    "SLURM_JOB_ID": "70007",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[003-005,009]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
POD = {"TPU_WORKER_HOSTNAMES": "w-0,w-1", "TPU_WORKER_ID": "1"}


@pytest.fixture(autouse=True)
def _no_tpu_here(monkeypatch):
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: [])


def test_own_variables_say_who_a_process_is():
    assert read_environment(OWN) == Cluster("a:1234", 4, 3, None, "the environment")
    devices = {**OWN, "UL2_LOCAL_DEVICE_IDS": "2,3"}
    assert read_environment(devices).local_device_ids == (2, 3)


def test_variables_of_jax_are_read_too():
    names = {
        "JAX_COORDINATOR_ADDRESS": "a:1234",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "3",
    }
    assert read_environment(names) == read_environment(OWN)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"UL2_NUM_PROCESSES": "1"},
        {**OWN, "UL2_NUM_PROCESSES": "1", "UL2_PROCESS_ID": "0"},
        # The shell of an allocation, and a batch script: their tasks never come.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {**STEP, "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        # A TPU of one host, and a pod of Kubernetes without one.
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
    ],
)
def test_a_process_alone_waits_for_nobody(environment):
    assert read_environment(environment) is None
    assert not may_be_several(environment)
    assert join(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"UL2_COORDINATOR": "a:1"}, "UL2_NUM_PROCESSES and UL2_PROCESS_ID are not"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "set all three, or none"),
        ({"UL2_NUM_PROCESSES": "2"}, "UL2_COORDINATOR and UL2_PROCESS_ID must be set"),
        ({**OWN, "UL2_PROCESS_ID": "4"}, "process 4 of 4 .* numbered from 0 to 3"),
        ({**OWN, "UL2_PROCESS_ID": "two"}, "UL2_PROCESS_ID.*'two' must be a whole"),
        ({**OWN, "UL2_COORDINATOR": "a"}, "UL2_COORDINATOR='a' must be HOST:PORT"),
        ({**OWN, "UL2_NUM_PROCESSES": "0"}, "process 3 of 0"),
    ],
)
def test_half_an_environment_is_refused_in_one_line(environment, message):
    with pytest.raises(ValueError, match=message) as error:
        may_be_several(environment)
    assert "\n" not in str(error.value)


def test_heartbeat_must_leave_time_for_a_sign_of_life():
    with pytest.raises(ValueError, match="UL2_HEARTBEAT_SECONDS=1 must be at least 2"):
        join({**OWN, "UL2_HEARTBEAT_SECONDS": "1"})


def test_slurm_step_meets_on_its_first_node():
    port = 61440 + 70007 % 4096
    assert read_environment(STEP) == Cluster(f"gpu003:{port}", 4, 2, None, "SLURM")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[003-005,009],login1", "gpu003"),
        ("gpu[7,9]", "gpu7"),
        ("rack-a[01-04]-ib", "rack-a01-ib"),
    ],
)
def test_first_host_of_a_node_list(nodes, first):
    found = read_environment({**STEP, "SLURM_STEP_NODELIST": nodes})
    assert found.coordinator.split(":")[0] == first


@pytest.mark.parametrize(
    ("visible", "devices"), [("0,1", (1,)), ("1", None), (None, None)]
)
def test_slurm_tasks_of_one_node_share_its_devices(visible, devices):
    step = {**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"}
    if visible:
        step["CUDA_VISIBLE_DEVICES"] = visible
    assert read_environment(step).local_device_ids == devices


def test_slurm_takes_a_coordinator_that_is_named():
    found = read_environment({**STEP, "JAX_COORDINATOR_ADDRESS": "b:1"})
    assert (found.coordinator, found.source) == ("b:1", "SLURM")


def test_gke_pod_of_one_slice_and_of_several():
    assert read_environment(POD) == Cluster("w-0:8482", 2, 1, None, "GKE")
    slices = {
        "MEGASCALE_NUM_SLICES": "3",
        "MEGASCALE_SLICE_ID": "2",
        "MEGASCALE_COORDINATOR_ADDRESS": "job-0-0.job:8080",
    }
    found = read_environment({**POD, **slices})
    assert found == Cluster("job-0-0.job:8482", 6, 5, None, "GKE")


@pytest.fixture
def tpu_vm(monkeypatch):
    """A machine with TPUs, and metadata that jax can read."""
    from jax._src.clusters import cloud_tpu_cluster as cluster

    endpoints = "unused:0:10.0.0.2,unused:1:10.0.0.3"
    metadata = {
        "agent-worker-number": "1",
        "worker-network-endpoints": endpoints,
        "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'",
    }
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cluster, "get_metadata", lambda key: (metadata[key], 200))
    return metadata


def test_tpu_vm_is_asked_for_its_metadata(tpu_vm):
    assert may_be_several({})
    found = processes._ask_metadata({})
    assert found == Cluster("10.0.0.2:8482", 2, 1, None, "TPU VM")
    tpu_vm["worker-network-endpoints"] = "unused:0:10.0.0.2"
    tpu_vm["agent-worker-number"] = "0"
    assert join({}) is None


def test_metadata_are_not_asked_where_the_environment_has_said(tpu_vm):
    tpu_vm.clear()
    alone = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    for environment in ({"TPU_SKIP_MDS_QUERY": "1"}, {"UL2_NUM_PROCESSES": "1"}, alone):
        assert not may_be_several(environment)
        assert join(environment) is None
