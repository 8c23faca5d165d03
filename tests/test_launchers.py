"""The launchers, dry: what they would run, read back by a shell."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import free_port
from wiring_toys import flags, make_store

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
LAUNCHERS = {
    "local": ["--processes", "2", "--gpus", "4"],
    "slurm": ["--nodes=2", "--gpus_per_node=8", "--setup", ". venv/bin/activate"],
    "xpk": ["--cluster=c", "--tpu_type=v5p-128", "--docker_image=i:1"],
    "tpu_vm": ["--name", "pod", "--zone=us-east5-a", "--setup=cd 'my ul2'"],
}
# Whatever a person may put into a flag, and a shell might read.
AWKWARD = [
    "--gin_file=my configs/a.gin",
    """--gin.ROWS=[('s', 0.5), ("x", 1)]""",
    "--gin.DATA=$HOME/`ls`\\;*?!#",
    "--gin.EMPTY=",
    "--gin.NAME=it's",
    "--",
]


def launch(name, *arguments, **options):
    script = SCRIPTS / f"launch_{name}.sh"
    return subprocess.run(
        ["bash", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def dry(name, *arguments):
    done = launch(name, *LAUNCHERS[name], *arguments, "--dry_run", "--", *AWKWARD)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def echo(tmp_path):
    """A directory of commands that write their arguments, one a line, and fail."""
    for name in ("ul2", "srun", "scontrol", "xpk", "gcloud", "sbatch"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            f'#!/usr/bin/env bash\nfor word in {name} "$@"; do echo "<$word>"; done '
            f'>> {tmp_path}/{name}.txt\nexit "${{CODE:-0}}"\n'
        )
        script.chmod(0o755)
    return tmp_path


def words(echo, name):
    return [line[1:-1] for line in (echo / f"{name}.txt").read_text().splitlines()]


def run_shell(text, echo, **variables):
    path = f"{echo}/bin:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", text],
        cwd=echo,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_explains_itself_and_is_executable(name):
    done = launch(name, "--help")
    assert done.returncode == 0
    assert "--dry_run" in done.stdout and "-- " in done.stdout
    assert os.access(SCRIPTS / f"launch_{name}.sh", os.X_OK)


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gin_file=a"], "is no flag of launch_"),
        (["a"], "come after --"),
        ([], "write them after --"),
        (["--max_restarts"], "needs a value"),
        (["--max_restarts=many", "--", "a"], "--max_restarts=many must be a whole"),
    ],
)
def test_launcher_refuses_in_one_line(name, arguments, message):
    done = launch(name, *LAUNCHERS[name], *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_local_gives_every_process_its_number_and_devices():
    lines = dry("local").splitlines()
    assert [shlex.split(line) for line in lines] == [
        [
            "env",
            "UL2_COORDINATOR=127.0.0.1:8476",
            "UL2_NUM_PROCESSES=2",
            f"UL2_PROCESS_ID={index}",
            f"UL2_LOCAL_DEVICE_IDS={2 * index},{2 * index + 1}",
            "ul2",
            "train",
            *AWKWARD,
        ]
        for index in range(2)
    ]


def test_local_alone_sets_nothing():
    done = launch("local", "--dry_run", "--", "--gin.A=1")
    assert shlex.split(done.stdout) == ["env", "ul2", "train", "--gin.A=1"]


def test_slurm_file_runs_the_flags_as_they_were_given(echo):
    file = dry("slurm")
    lines = file.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    for line in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue"):
        assert f"#SBATCH {line}" in lines
    # Run by bash in place of SLURM: srun's last words are a shell and its text.
    assert run_shell(file, echo, SLURM_JOB_ID="7").returncode == 0
    *_, shell, option, text = words(echo, "srun")
    assert (shell, option) == ("bash", "-c")
    (echo / "venv" / "bin").mkdir(parents=True)
    (echo / "venv" / "bin" / "activate").touch()
    assert run_shell(text, echo).returncode == 0
    assert words(echo, "ul2") == ["ul2", "train", *AWKWARD]
    assert not (echo / "scontrol.txt").exists()


@pytest.mark.parametrize(
    ("code", "count", "queued"),
    [("75", "0", True), ("137", "9", True), ("75", "10", False), ("2", "0", False)],
)
def test_slurm_queues_again_what_may_go_on(echo, code, count, queued):
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": count, "CODE": code}
    done = run_shell(dry("slurm"), echo, **variables)
    assert done.returncode == int(code)
    assert (echo / "scontrol.txt").exists() == queued
    if queued:
        assert words(echo, "scontrol") == ["scontrol", "requeue", "7"]


def test_slurm_submits_the_file_it_shows(echo):
    path = f"{echo}/bin:{os.environ['PATH']}"
    done = launch("slurm", "--", "a", env={**os.environ, "PATH": path})
    assert done.returncode == 0
    assert words(echo, "sbatch") == ["sbatch"]


def test_xpk_runs_the_flags_as_they_were_given(echo):
    assert run_shell(dry("xpk", "--num_slices=2"), echo).returncode == 0
    called = words(echo, "xpk")
    assert called[:3] == ["xpk", "workload", "create"]
    expected = {
        "--cluster=c",
        "--tpu-type=v5p-128",
        "--num-slices=2",
        "--docker-image=i:1",
        "--max-restarts=10",
        "--restart-on-exit-codes=75",
    }
    assert expected <= set(called)
    (command,) = (word for word in called if word.startswith("--command="))
    assert run_shell(command.removeprefix("--command="), echo).returncode == 0
    assert words(echo, "ul2") == ["ul2", "train", *AWKWARD]


@pytest.mark.parametrize(("code", "starts"), [("0", 1), ("2", 1), ("75", 3)])
def test_tpu_vm_runs_the_flags_and_starts_again(echo, code, starts):
    (echo / "my ul2").mkdir()
    assert run_shell(dry("tpu_vm", "--max_restarts=2"), echo).returncode == 0
    called = words(echo, "gcloud")
    assert called[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert "--worker=all" in called
    (command,) = (word for word in called if word.startswith("--command="))
    (echo / "bin" / "sleep").symlink_to("/bin/true")
    done = run_shell(command.removeprefix("--command="), echo, CODE=code)
    assert done.returncode == int(code)
    assert words(echo, "ul2") == ["ul2", "train", *AWKWARD] * starts


def test_flags_that_are_needed_are_named():
    for name, flag in {"xpk": "--cluster", "tpu_vm": "--name"}.items():
        done = launch(name, "--", "a")
        assert done.returncode == 2 and f"{flag} is needed" in done.stderr
    done = launch("local", "--processes=3", "--gpus=8", "--", "a")
    assert "--gpus=8 do not divide over --processes=3" in done.stderr


@pytest.mark.parametrize(
    ("codes", "end"), [(["75", "0"], 0), (["137", "2"], 2), (["1"], 1)]
)
def test_local_starts_again_what_may_go_on(tmp_path, codes, end):
    script = tmp_path / "ul2"
    (tmp_path / "codes").write_text("\n".join(codes) + "\n")
    script.write_text(
        f"#!/usr/bin/env bash\ncd {tmp_path}\ncode=$(head -1 codes)\n"
        'sed -i 1d codes\nexit "$code"\n'
    )
    script.chmod(0o755)
    done = launch("local", f"--ul2={script}", "--", "a")
    assert done.returncode == end
    assert done.stderr.count("starting again (1 of 3)") == len(codes) - 1
    assert (tmp_path / "codes").read_text() == ""


@pytest.mark.slow
def test_local_really_trains_in_two_processes_and_hands_a_signal_on(tmp_path):
    ul2 = tmp_path / "ul2"
    ul2.write_text(
        f"#!{sys.executable}\nimport sys; from ul2.cli import main; sys.exit(main())\n"
    )
    ul2.chmod(0o755)
    recipe = flags(
        make_store(tmp_path),
        MODEL_DIR=tmp_path / "run",
        MESH="data=2",
        TOTAL_STEPS=1000,
        SAVE_EVERY_STEPS=2,
    )
    launcher = subprocess.Popen(
        ["bash", SCRIPTS / "launch_local.sh", "--processes=2", "--cpu=1",
         f"--port={free_port()}", f"--ul2={ul2}", "--", *recipe],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    checkpoints = tmp_path / "run" / "checkpoints"
    while not (checkpoints / "2").is_dir():
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.05)
    launcher.terminate()
    errors = launcher.communicate(timeout=60)[1]
    # Both saved, and said that the run can go on; a person who stops it is obeyed.
    assert launcher.returncode == 75, errors
    assert "starting again" not in errors
    assert errors.count("the same command goes on from here") == 2
