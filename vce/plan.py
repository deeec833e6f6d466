"""What a scale would do, before it does it: jobs, data to fetch, passes, time and memory."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import yaml

from common.data.registry import ROOT
from common.errors import VceError

JOB_GIB = 0.9  # resident memory of a small-image job, most of it the libraries (measured)
PHOTO_GIB = 2.1  # EfficientNet-Lite0 at 224 px, 12 images in a batch (measured)
START_SECONDS = 6.0  # imports and start of a job
PHOTO_PASS_SECONDS = 0.055  # forward + backward of EfficientNet-Lite0 per image, one core (measured)


@dataclass(frozen=True)
class Target:
    """One kind of job: how many are still to run, forward + backward passes over images, seconds, GiB per job."""

    rule: str
    jobs: int
    passes: int
    seconds: float
    gib: float


def load_scale(scale: str) -> dict:
    """The configuration of a scale. Raises VceError with the known scales."""
    path = ROOT / "config" / f"{scale}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise VceError(f"--scale {scale}: there is no {path.relative_to(ROOT)}; choose one of {known}")
    return yaml.safe_load(path.read_text())


def jobs_to_run(scale: str) -> tuple[Counter, list[str]]:
    """Jobs by rule that Snakemake would run now, and the data files it would fetch.

    Raises VceError when Snakemake cannot read the workflow.
    """
    command = [sys.executable, "-m", "snakemake", "all", "--dry-run", "--config", f"scale={scale}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise VceError(f"Snakefile: {(run.stderr.strip() or run.stdout.strip()).splitlines()[-1]}")
    text = run.stdout + run.stderr
    jobs = Counter(re.findall(r"^(?:local)?rule (\w+):$", text, re.MULTILINE))
    del jobs["all"]
    return jobs, re.findall(r"^(?:local)?rule fetch:\n    input: .*\n    output: (\S+)$", text, re.MULTILINE)


def pass_seconds() -> float:
    """Measured seconds of one forward + backward pass of the small classifier per image, on this machine."""
    import torch

    from common.classifiers.architectures import strided_cnn
    from papers.svce.explain import model_pass_seconds

    torch.set_num_threads(1)
    images = torch.rand(64, 3, 32, 32)
    return model_pass_seconds(strided_cnn(3, 5).eval(), images, torch.zeros(64, dtype=torch.long))


def plan(scale: str) -> tuple[list[Target], list[str]]:
    """The targets of a scale that are still to run, and the data files still to fetch."""
    config = load_scale(scale)
    jobs, fetched = jobs_to_run(scale)
    per_pass = pass_seconds()
    svce = config["svce"]
    training = {
        name: _training_passes(recipe, config["splits"]["systems"]) for name, recipe in config["classifiers"].items()
    }
    oracles = sum(_training_passes(recipe, config["splits"]["oracles"]) for recipe in config["oracles"].values())
    trained = {(shard["world"], shard["classifier"]) for shard in svce["shards"]}
    cells = {
        name: sum(len(cell["radii"]) * (cell["iterations"] + 1) for cell in group)
        for name, group in svce["cells"].items()
    }
    explained = sum(cells[name] for shard in svce["shards"] for name in shard["cells"]) * svce["n_pairs"]
    photos = sum(len(photo["targets"]) for photo in svce["photos"]["images"])
    photos *= len(svce["photos"]["radii"]) * (svce["photos"]["iterations"] + 1)
    full = {
        "classifier": sum(training[kind] for _, kind in trained) * len(config["seeds"]),
        "oracles": oracles,
        "svce_explain": explained * len(config["seeds"]),
        "svce_photos": photos,
    }
    total = {
        "classifier": len(trained) * len(config["seeds"]),
        "svce_explain": len(svce["shards"]) * len(config["seeds"]),
    }
    targets = []
    for rule, count in sorted(jobs.items()):
        passes = full.get(rule, 0) * count // total.get(rule, 1)
        cost = PHOTO_PASS_SECONDS if rule == "svce_photos" else per_pass
        gib = PHOTO_GIB if rule == "svce_photos" else JOB_GIB
        targets.append(Target(rule, count, passes, count * START_SECONDS + 1.4 * passes * cost, gib))
    return targets, fetched


def _training_passes(recipe: dict, images: int) -> int:
    adversary = recipe.get("steps", 2) if recipe.get("epsilon") else 0
    return recipe["epochs"] * (1 + adversary) * images
