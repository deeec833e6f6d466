"""The environment's files agree with each other, and make builds, locks and runs as the README says."""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

spec = importlib.util.spec_from_file_location("environment", ROOT / "scripts" / "environment.py")
environment = importlib.util.module_from_spec(spec)
spec.loader.exec_module(environment)


@pytest.mark.parametrize("name", ["requirements.lock", "data/carriers.lock"])
def test_every_locked_package_has_a_hash_and_no_address(name):
    text = (ROOT / name).read_text()
    entries = re.sub(r" *\\\n *", " ", re.sub(r"(?m)^ *#.*\n", "", text)).splitlines()
    assert entries
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[\w.+!]+( ; [^-\n]*)?( --hash=sha256:[0-9a-f]{64})+", entry), entry[:80]
    assert "://" not in text


def test_the_lock_satisfies_every_dependency_and_override():
    versions = environment.locked(LOCK)
    asked = PYPROJECT["project"]["dependencies"] + PYPROJECT["dependency-groups"]["dev"]
    for requirement in map(Requirement, asked + PYPROJECT["tool"]["uv"]["override-dependencies"]):
        assert requirement.specifier.contains(versions[environment.normal(requirement.name)]), requirement


def test_the_environment_file_is_the_one_its_script_writes():
    written = (ROOT / "environment.yml").read_text()
    assert written == environment.environment(PYPROJECT, LOCK), "run: make lock"
    python, pip, packages = yaml.safe_load(written)["dependencies"]
    assert (python, pip) == ("python=3.11", "pip") and len(packages["pip"]) >= 25


def test_carriers_are_no_dependencies():
    carriers = environment.locked((ROOT / "data" / "carriers.lock").read_text())
    assert not carriers.keys() & environment.locked(LOCK).keys()


def test_git_sees_pointers_and_pins_alone():
    assert (ROOT / "data" / ".gitignore").read_text().split() == ["/*", "!/.gitignore", "!/*.dvc", "!/carriers.lock"]


@pytest.fixture
def house(tmp_path):
    """A folder with our scripts, a lock, and a .venv whose snakemake and dvc only write down how they were called."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").write_text("a==1\n")
    for name in ("snakemake", "dvc"):
        program(tmp_path / ".venv" / "bin" / name, f'echo "{name} $*" >> calls')
    stamp(tmp_path)
    return tmp_path


def program(path, line):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def stamp(house):
    digest = subprocess.run(["sha256sum", "requirements.lock"], cwd=house, capture_output=True, text=True).stdout[:64]
    (house / ".venv" / ".lock-sha256").write_text(digest + "\n")


def make(house, *arguments, **options):
    command = ["make", "--no-print-directory", *arguments]  # the tests themselves may run under make
    return subprocess.run(command, cwd=house, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize(
    ("target", "scale", "calls"),
    [
        ("smoke", "smoke", ["snakemake all --config scale=smoke"]),
        ("all", "cpu", ["snakemake all --config scale=cpu"]),
        ("repro", "cpu", ["snakemake data", "dvc repro"]),
    ],
)
def test_make_runs_the_pipeline_and_says_where_the_results_are(house, target, scale, calls):
    run = make(house, target)
    assert run.returncode == 0, run.stderr
    assert (house / "calls").read_text().splitlines() == calls
    assert f"figures/{scale}/" in run.stdout and f"results/{scale}/" in run.stdout


def test_jobs_run_on_one_thread_with_large_tensors_on_the_heap(tmp_path):
    variables = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    unset = "PYTHONDONTWRITEBYTECODE"
    rule = f'rule environment:\n    output: "{tmp_path}/seen"\n    shell: "env > {{output}}"\n'
    (tmp_path / "Snakefile").write_text(f'include: "{ROOT}/Snakefile"\n{rule}')
    bare = {name: value for name, value in os.environ.items() if name not in variables} | {unset: "1"}
    command = [sys.executable, "-m", "snakemake", f"{tmp_path}/seen", "--snakefile", f"{tmp_path}/Snakefile"]
    command += ["--cores", "1", "--nolock", "--drop-metadata"]
    run = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert variables.items() <= seen.items() and unset not in seen


def test_make_unlocks_what_a_killed_run_left(house):
    (house / ".snakemake" / "locks").mkdir(parents=True)
    make(house, "smoke")
    assert "--unlock" not in (house / "calls").read_text()
    (house / ".snakemake" / "locks" / "0.input.lock").touch()
    make(house, "smoke")
    assert (house / "calls").read_text().splitlines()[1].startswith("snakemake --unlock")


def test_a_second_make_is_refused_with_one_line(house):
    with (house / ".run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = make(house, "smoke")
        assert run.returncode != 0 and not (house / "calls").exists()
        assert run.stderr.startswith("error: another make runs in this folder") and run.stderr.count("error:") == 1
    assert make(house, "smoke").returncode == 0


def test_what_dvc_leaves_in_the_background_does_not_keep_the_lock(house):
    program(house / ".venv" / "bin" / "dvc", "sleep 20 >/dev/null 2>&1 &")
    assert make(house, "repro").returncode == 0
    assert make(house, "repro").returncode == 0


def test_a_failing_run_fails_make_and_names_no_results(house):
    program(house / ".venv" / "bin" / "snakemake", "exit 3")
    run = make(house, "smoke")
    assert run.returncode != 0 and "figures" not in run.stdout


def test_an_interrupted_install_is_not_trusted(house):
    """python3.11 stands in: its venv has a pip that fails the first time, as if it were interrupted."""
    pip = 'test -e .tried || { touch .tried; exit 1; }\\necho "pip $*" >> calls'
    venv = f"mkdir -p .venv/bin; printf '#!/bin/sh\\n{pip}\\n' > .venv/bin/pip; chmod +x .venv/bin/pip"
    program(house / "bin" / "python3.11", f'case "$1" in -m) {venv};; esac')
    environ = {"PATH": f"{house / 'bin'}:/usr/bin:/bin"}
    assert make(house, "venv", env=environ).returncode == 0 and not (house / "calls").exists()
    (house / "requirements.lock").write_text("a==2\n")
    assert make(house, "venv", env=environ).returncode != 0
    assert not (house / ".venv" / ".lock-sha256").exists() and not (house / ".venv" / "bin" / "snakemake").exists()
    assert make(house, "venv", env=environ).returncode == 0
    first, second = (house / "calls").read_text().splitlines()
    assert "--require-hashes" in first and "--no-deps" in first and second.endswith("-e .")
    (house / "calls").unlink()
    assert make(house, "venv", env=environ).returncode == 0 and not (house / "calls").exists()


def test_no_python_311_is_one_line(house):
    (house / "requirements.lock").write_text("a==2\n")
    for name in ("python3.11", "python3"):
        program(house / "bin" / name, "exit 1")
    run = make(house, "venv", env={"PATH": f"{house / 'bin'}:/usr/bin:/bin"})
    assert run.returncode != 0 and "error: Python 3.11" in run.stderr
    assert (house / ".venv" / "bin" / "snakemake").exists(), "the old .venv stays until there is a Python to build anew"


def test_make_alone_explains_every_target(house):
    said = make(house).stdout
    assert [line.split()[1] for line in said.splitlines()] == ["help", "smoke", "all", "repro", "test", "lint", "lock"]
