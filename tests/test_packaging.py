"""What is handed out: the wheel, its version, the Docker files, the citation."""

import fnmatch
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import ul2
from ul2 import cli

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
HEAVY = re.compile(r"tensorflow|seqio|torch|transformers|mkdocs", re.IGNORECASE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that pip would unpack the wheel to."""
    folder = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_version_has_one_source(wheel, capsys):
    assert "version" in PROJECT["dynamic"]
    assert wheel.name.startswith(f"ul2-{ul2.__version__}-")
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"ul2 {ul2.__version__}\n"


def test_changelog_begins_with_this_version():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    dates = r"(Unreleased|20\d\d-\d\d-\d\d)"
    versions = [re.fullmatch(rf"\[(\d+\.\d+\.\d+)\] - {dates}", h) for h in headings]
    assert all(versions), headings
    assert versions[0][1] == ul2.__version__
    # Only what comes next may be without a date.
    assert "Unreleased" not in [one[2] for one in versions[1:]]


def test_citation_is_of_this_version_and_whole():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ul2.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["cff-version"] == "1.2.0"
    for part in (citation, *citation["references"]):
        assert part["title"] and part["authors"]
    assert citation["message"]


def test_wheel_holds_every_config_and_nothing_else_of_the_checkout(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {
        f"ul2/{file.relative_to(ROOT)}" for file in (ROOT / "configs").rglob("*.gin")
    }
    modules = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "ul2").rglob("*")
        if file.suffix in (".py", ".css", ".js")  # a page's, which is one file
    }
    others = {name for name in names if ".dist-info/" not in name}
    assert others == configs | modules


def test_core_needs_no_tensorflow(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
    needed = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), re.M)
    core = [one for one in needed if "extra ==" not in one]
    assert core and not [one for one in core if HEAVY.search(one)]
    assert [one for one in needed if "extra == 'tasks'" in one and HEAVY.search(one)]


def test_wheel_works_outside_of_the_checkout(installed, tmp_path):
    lines = (f"the model reads word {i} of {i * i}\n\n" for i in range(600))
    (tmp_path / "a.txt").write_text("".join(lines))
    program = f"""
import sys
import ul2
from ul2.cli import main
assert ul2.__file__.startswith({str(installed)!r}), ul2.__file__
def run(*arguments):
    code = main([str(one) for one in arguments])
    assert code == 0, (arguments, code)
run("tokenize", "--text=a.txt", "--train_vocab=400", "--num_sentinels=40",
    "--held_out=0.1", "--num_workers=1", "--out=store")
run("check", "--gin_file=configs/recipes/enc_dec_base.gin", "--gin.DATA=store",
    "--gin.MODEL_DIR=run", "--gin.INPUTS_LENGTH=32", "--gin.TARGETS_LENGTH=32",
    "--gin.BATCH_SIZE=14", "--gin.MESH=auto")
assert not [name for name in sys.modules if name.startswith(("tensorflow", "seqio"))]
"""
    variables = {"PYTHONPATH": str(installed), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def instructions(dockerfile):
    """Returns (instruction, rest) of a Docker file, continued lines joined."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.stem)
def test_docker_file_copies_what_is_there_and_all_that_the_wheel_needs(file):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignored if line.startswith("!")]
    copied = [
        source
        for name, rest in instructions(file)
        if name == "COPY"
        for source in rest.split()[:-1]
    ]
    for source in copied:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, one) for one in let_in)
    assert {"ul2", "configs", "pyproject.toml", "README.md", "LICENSE"} <= set(copied)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.stem)
def test_docker_file_installs_what_the_project_is_tested_with(file):
    found = instructions(file)
    (base,) = (rest for name, rest in found if name == "FROM")
    python = base.removeprefix("python:").removesuffix("-slim")
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    (install,) = (rest for name, rest in found if name == "RUN" and "pip" in rest)
    assert "--constraint constraints.txt" in install
    (jax,) = re.findall(r"jax\[\w+\]==([\d.]+)", install)
    assert f"jax=={jax}" in (ROOT / "constraints.txt").read_text().splitlines()
    extras = dict(rest.split("=") for name, rest in found if name == "ARG")["EXTRAS"]
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    for name, rest in found:
        if name in ("ENTRYPOINT", "CMD") and '"ul2"' in rest:
            assert "ul2" in PROJECT["scripts"]
