"""What a scale would do, before it does it: jobs, data to fetch, passes, time and memory."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from common.data.registry import ROOT
from common.errors import VceError
from common.scales import load_scale
from papers.clarity.names import cell_of, system_names

JOB_GIB = 0.9  # resident memory of a small-image job, most of it the libraries (measured)
PHOTO_GIB = 2.1  # EfficientNet-Lite0 at 224 px, 12 images in a batch (measured)
START_SECONDS = 3.5  # imports and start of a job
OVERHEAD = 1.4  # wall time of a small-image job ÷ its passes (measured)
ROUNDS = 7  # of `papers.svce.explain.explain_minimal`, at most
DENSITY_PASSES = {"pvce": 500, "blended": 220}  # per image and strength (measured: 125 and 55 ms)
UNET_PASS_SECONDS = 0.0035  # training pass of the diffusion model per image, one core (measured)
PHOTO_PASS_SECONDS = 0.055  # forward + backward of EfficientNet-Lite0 per image, one core (measured)
VAE_PASS_SECONDS = 0.0002  # training pass of a VAE per image, one core (measured, MLP and convolutions together)
MEMBER_PASS_SECONDS = 0.00012  # pass of one ensemble member, through the decoder where it reads pixels (measured)
INVERSION_PASS_SECONDS = 0.0008  # iteration of one query: prior, classifier and step, one core (measured)
INFILL_PASS_SECONDS = 0.0015  # training pass of an in-filler per image, one core (measured)
AUTOENCODER_PASS_SECONDS = 0.0004  # training pass of a class autoencoder per image, one core (measured)
SEARCH_STEPS = {
    "direction": 40,
    "search": 150,
    "revise-plain": 500,
    "revise-adam": 1001,
    "latent-ascent": 800,
    "schut": 250,
    "pixel-ascent": 104,
}  # of papers.clarity per image: measured means, or all there are


CROPS = 3  # images that FIDO's classifiers see per training image
INFILL_BATCH = 16
SHIFT_BATCH = 32
EDITED, NUISANCES = {"face-gan": 4, "faces": 11}, 3  # edits of every latent, and what few of them are asked without one
COMPARED = 150  # passes of all baselines per latent and label
RENDERED_PASS_SECONDS = 0.0004  # a rendered face through decoder and classifiers, one core (measured)
GAN_TRAINED, GAN_LABELLED = 25, 58  # of those a face of the GAN counts as: there and back, and under eight transforms
COMPARISON_PASS_SECONDS = 0.0005  # of the comparison: generator or classifier, one core (measured, all jobs together)
CUES, SEALED = 3, 8  # of the zoo
LATENT_STEPS = 20  # of Clarity's search there, on average
CURVE, MAP_PASSES = 14, 40  # in-filled images per map and judging in-fill, and for all other measures


@dataclass(frozen=True)
class Target:
    """One kind of job: how many are still to run, forward + backward passes over images, seconds, GiB per job."""

    rule: str
    jobs: int
    passes: int
    seconds: float
    gib: float


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


def small_pass() -> float:
    """Measured seconds of one forward + backward pass of the small classifier per image, on this machine."""
    import torch

    from common.classifiers.architectures import strided_cnn
    from common.explain import log_confidence
    from common.shards import pass_seconds

    torch.set_num_threads(1)
    objective = log_confidence(strided_cnn(3, 5).eval(), torch.zeros(64, dtype=torch.long))
    return pass_seconds(objective, torch.rand(64, 3, 32, 32))


def plan(scale: str) -> tuple[list[Target], list[str]]:
    """The targets of a scale that are still to run, and the data files still to fetch."""
    config = load_scale(scale)
    jobs, fetched = jobs_to_run(scale)
    small = small_pass()
    costs = {
        "svce_photos": (PHOTO_PASS_SECONDS, PHOTO_GIB),
        "diffusion": (UNET_PASS_SECONDS, JOB_GIB),
        "fido_photos": (2 * PHOTO_PASS_SECONDS, PHOTO_GIB),  # the in-fill costs as much again
        "infiller": (INFILL_PASS_SECONDS, JOB_GIB),
        "class_autoencoders": (AUTOENCODER_PASS_SECONDS, JOB_GIB),
        **{rule: (VAE_PASS_SECONDS, JOB_GIB) for rule in jobs if rule.startswith("vae_")},
        **{rule: (MEMBER_PASS_SECONDS, JOB_GIB) for rule in jobs if rule.startswith("clarity_")},
        **{rule: (RENDERED_PASS_SECONDS, JOB_GIB) for rule in jobs if rule.startswith("contrastive_")},
        **{rule: (INVERSION_PASS_SECONDS, JOB_GIB) for rule in jobs if rule.startswith("disc_")},
        **{rule: (COMPARISON_PASS_SECONDS, JOB_GIB) for rule in jobs if rule.startswith("comparison_")},
    }
    targets = []
    for rule, count in sorted(jobs.items()):
        passes = passes_of(rule, config) * count
        seconds, gib = costs.get(rule, (small, JOB_GIB))
        targets.append(Target(rule, count, passes, count * START_SECONDS + OVERHEAD * passes * seconds, gib))
    return targets, fetched


def passes_of(rule: str, config: dict) -> int:
    """Forward + backward passes over single images in one job of a rule, at most; 0 for jobs that make none."""
    if rule.startswith("clarity_"):
        return _clarity_passes(rule, config)
    if rule.startswith("disc_"):
        return _disc_passes(rule, config)
    if rule.startswith("fido_"):
        return _fido_passes(rule, config)
    if rule.startswith("contrastive_"):
        return _contrastive_passes(rule, config["contrastive"], config["seeds"])
    if rule.startswith("comparison_"):
        return _comparison_passes(rule, config["comparison"], config["splits"])
    if rule == "infiller":
        recipes = config["infillers"].values()
        return sum(recipe["steps"] * INFILL_BATCH for recipe in recipes) // len(recipes)  # one job each
    svce = config["svce"]
    if rule in ("classifiers", "oracles"):
        split = "systems" if rule == "classifiers" else "oracles"
        passes = sum(
            _training_passes(recipe, config["splits"][world][split])
            for world, recipes in config[rule].items()
            for recipe in recipes.values()
        )
        return passes if rule == "classifiers" else passes // len(config[rule])  # one job per world
    if rule == "diffusion":
        return sum(
            recipe["epochs"] * config["splits"][world]["systems"] for world, recipe in config["diffusion"].items()
        )
    if rule == "class_autoencoders":
        return sum(
            recipe["epochs"] * config["splits"][world]["oracles"] for world, recipe in config["autoencoders"].items()
        )
    if rule.startswith("vae_"):
        (names,) = (job for job in config["vae_jobs"] if rule == rule_of("vae", job))
        return sum(
            len(vae["seeds"]) * vae["epochs"] * config["splits"][vae["world"]]["systems"]
            for vae in (config["vae"][name] for name in names)
        )
    if rule.startswith("svce_explain_"):
        return sum(
            len(entry["classifiers"]) * svce["starts"][entry["starts"]]["n"] * _cell_passes(cell)
            for group in rule.removeprefix("svce_explain_").split("_")
            for entry in svce["groups"][group]
            for cells in entry["cells"]
            for cell in svce["cells"][cells]
        )
    if rule == "svce_robustness":
        recipe, seeds = svce["robustness"], len(config["seeds"])
        nets = sum(len(kinds) * len(recipe["radii"][world]) for world, kinds in recipe["classifiers"].items())
        return nets * seeds * recipe["n"] * (recipe["iterations"] + 1)
    if rule == "svce_photos":
        photos = sum(len(photo["targets"]) for photo in svce["photos"]["images"])
        return photos * len(svce["photos"]["radii"]) * (svce["photos"]["iterations"] + 1)
    return 0


def rule_of(prefix: str, job: list[str]) -> str:
    """What the workflow calls the rule of one list of a config file's jobs."""
    return f"{prefix}_{'_'.join(job)}".replace("-", "_")


def _clarity_passes(rule: str, config: dict) -> int:
    """Passes of single ensemble members over single images in one job of Clarity."""
    clarity = config["clarity"]
    for job in clarity["train_jobs"]:
        if rule == rule_of("clarity_train", job):
            return sum(
                space["members"] * space["epochs"] * config["splits"][systems["world"]]["systems"]
                for systems in (clarity["systems"][name] for name in job)
                for space in systems["spaces"].values()
            )
    for job in clarity["jobs"]:
        if rule == rule_of("clarity_explain", job):
            return sum(_entry_passes(entry, clarity) for group in job for entry in clarity["groups"][group])
    return 0


def _entry_passes(entry: dict, clarity: dict) -> int:
    starts, singles = clarity["starts"][entry["starts"]], clarity["systems"][entry["systems"]]["singles"]
    passes = 0
    for cell in entry["cells"]:
        spaces, sizes, suffix = cell.get("spaces", []), cell.get("sizes", []), cell.get("suffix", "")
        names = [*cell.get("names", []), *system_names(spaces, sizes, singles, suffix)]
        passes += SEARCH_STEPS[cell["method"]] * sum(cell_of(name)[1] for name in names)
    return passes * (starts["n"] - starts.get("first", 0))


def _disc_passes(rule: str, config: dict) -> int:
    """Iterations of single queries in one job of DISC, at most; of training and students, passes over single images."""
    disc, splits = config["disc"], config["splits"]
    systems = disc["companions"] | disc["regressors"]
    for job in disc["train_jobs"]:
        if rule == rule_of("disc_train", job):
            return sum(systems[name]["epochs"] * splits.get(name, splits["faces-old"])["systems"] for name in job)
    for job in disc["jobs"]:
        if rule == rule_of("disc_explain", job):
            return _job_passes(job, disc, _inversion_passes)
    if rule == "disc_hypotheses":
        return sum(
            entry["n"] * (recipe["fit"] + len(entry["levels"]) * recipe["steer"])
            for entry, recipe in ((entry, disc["recipes"][entry["world"]]) for entry in disc["hypotheses"])
        )
    if rule == "disc_students":
        students, (ladder,) = disc["students"], disc["groups"]["ladder"]
        sets = len(students["methods"]) + 2 * len(students["both"])
        return sets * len(students["seeds"]) * students["recipe"]["epochs"] * ladder["n"]
    return 0


def _fido_passes(rule: str, config: dict) -> int:
    """Classifier passes over single images in one job of FIDO, at most; an in-fill counts as one more."""
    fido = config["fido"]
    if rule.startswith("fido_train_"):
        return sum(
            CROPS * _training_passes(recipe, config["splits"][world]["systems"])
            for world, kinds in fido["classifiers"].items()
            for recipe in kinds.values()
        )
    suppress = fido["measure"]["suppress"]
    for job in fido["jobs"]:
        if rule == rule_of("fido_explain", job):
            return _job_passes(job, fido, _map_passes)
        if rule == rule_of("fido_measure", job):
            return sum(
                entry["n"] * len(entry["cells"]) * (CURVE * len(suppress.get(entry["starts"], [])) + MAP_PASSES)
                for group in job
                for entry in fido["groups"][group]
            )
    if rule == "fido_photos":
        photos = fido["photos"]
        return 2 * len(photos["images"]) * photos["steps"] * photos["masks"]
    return 0


def _contrastive_passes(rule: str, contrastive: dict, seeds: list[int]) -> int:
    """Rendered faces through decoder and classifiers in one job of the contrastive method; a face of the GAN counts as
    `GAN_TRAINED` or `GAN_LABELLED` of them. Jobs of one rule that differ count as their mean."""
    systems, jobs = contrastive["systems"], contrastive["train_jobs"]
    if rule == "contrastive_world":
        world = contrastive["world"]
        epochs = 6 * world["epochs"] + world["audit_epochs"]  # seven classifiers, one of them the auditor
        return world["faces"] * world["vae"]["epochs"] + world["images"] * epochs
    for job in jobs:
        if rule == rule_of("contrastive_train", job[:1]):
            return sum(_shift_passes(name, systems[name]["recipe"]) for name in job)
        if rule == rule_of("contrastive_measure", job[:1]):
            asked = [(name, systems[name]["settings"][seed]) for name in job for seed in seeds]
            return sum(_edit_passes(name, settings) for name, settings in asked) // len(seeds)
    if rule == "contrastive_sweep":
        entries = [(name, contrastive["sweeps"][name]) for name in contrastive["swept"]]
        runs = [(name, entry, len(set(entry["seeds"]) & set(seeds))) for name, entry in entries]
        passes = sum(count * len(entry["lams"]) * _shift_passes(name, entry["recipe"]) for name, entry, count in runs)
        return passes // max(sum(count for _, _, count in runs), 1)
    return 0


def _comparison_passes(rule: str, comparison: dict, splits: dict) -> int:
    """Images through a generator or a classifier in one job of the comparison, at most; a step of Clarity's search is
    one pass."""
    worlds, methods = comparison["worlds"], comparison["methods"]
    if rule.startswith("comparison_classifiers"):
        seed = int(rule.rpartition("_")[2])
        return sum(
            _training_passes(recipe, splits[world]["systems"])
            for world, kinds in comparison["classifiers"].items()
            for kind, recipe in kinds.items()
            if seed in worlds[world]["classifiers"][kind]
        )
    if rule == "comparison_prepare":
        passes = 0
        for world, settings in worlds.items():
            vae = settings.get("vae")
            passes += vae["images"] * vae["epochs"] if isinstance(vae, dict) else 0
            recipes = [method["prepare"].get(world, {}) for method in methods.values() if "prepare" in method]
            passes += sum(INFILL_BATCH * recipe["steps"] for recipe in recipes if "steps" in recipe)
            shifts = [recipe["shift"] for recipe in recipes if "shift" in recipe]
            passes += sum(len(settings["classifiers"]) * _shift_passes(world, shift) for shift in shifts)
        return passes
    zoo, sanity = comparison["zoo"], comparison["sanity"]
    nets = zoo["recipe"]["clean"] + CUES * zoo["recipe"]["planted"] + SEALED
    if rule == "comparison_zoo":
        return nets * zoo["recipe"]["images"] * zoo["recipe"]["epochs"]
    if rule == "comparison_shortcuts":
        shown = [method for method in methods.values() if "zoo" in method["strengths"]]
        return nets * zoo["n"] * sum(_method_passes(method, "zoo") for method in shown)
    if rule == "comparison_sanity":  # two nets that know nothing, and the way back
        shown = [method for method in methods.values() if sanity["world"] in method["strengths"]]
        return 3 * sanity["n"] * sum(_method_passes(method, sanity["world"]) for method in shown)
    for job in comparison["jobs"]:
        if rule == rule_of("comparison_explain", job[:1]):
            return sum(
                (sum(settings["n"].values()) + sum(settings.get("runner_up", {}).values()))
                * _method_passes(methods[name], world)
                for name in job
                for world, settings in worlds.items()
                if world in methods[name]["strengths"]
            )
    return 0


def _method_passes(method: dict, world: str) -> int:
    """Passes per image of one method of the comparison, at most."""
    settings = method.get("settings", {})
    if "iterations" in settings:
        return len(method["strengths"][world]) * (settings["iterations"] + 1)
    if "steer" in settings:
        return settings["fit"] + settings["steer"]
    return settings["steps"] * settings["masks"] if "masks" in settings else LATENT_STEPS


def _shift_passes(system: str, recipe: dict) -> int:
    return recipe["steps"] * recipe.get("batch_size", SHIFT_BATCH) * (GAN_TRAINED if system == "face-gan" else 1)


def _edit_passes(system: str, settings: dict) -> int:
    kind, labels = ("face-gan", 2) if system == "face-gan" else ("faces", 5)
    images = settings["n"] * (1 + EDITED[kind]) + settings["floor"] * (labels + 1)
    images += settings["floor"] * NUISANCES if settings.get("nuisances") else 0
    images += settings.get("joint", 0) + settings.get("local", 0) * settings.get("neighbours", 8) * (1 + labels)
    images += settings["floor"] * COMPARED * labels if settings.get("compared") else 0
    return images * (GAN_LABELLED if labels == 2 else 1)


def _job_passes(job: list[str], paper: dict, passes: Callable[[dict, dict], int]) -> int:
    """Passes of all cells of the groups that one job explains; `passes` per image, of a cell with its recipe."""
    return sum(
        entry["n"] * passes(cell, paper["recipes"][entry["world"]])
        for group in job
        for entry in paper["groups"][group]
        for cell in entry["cells"]
    )


def _map_passes(cell: dict, recipe: dict) -> int:
    """Passes per image of one map of FIDO, of BBMP, or of a baseline."""
    if cell["method"] in ("ssr", "sdr"):
        return 2 * recipe["search"]["steps"] * recipe["search"]["masks"]
    if cell["method"].startswith("bbmp"):
        return 2 * recipe["bbmp"]["steps"]
    return {"rise": 250, "extremal": 100}.get(cell["method"], 1)


def _inversion_passes(cell: dict, recipe: dict) -> int:
    """Iterations per query of one cell of DISC; a fit that cells share counts once per cell."""
    if cell["method"] == "pixel-ascent":
        return 26 * len(cell["strengths"])
    return recipe["fit"] + recipe["steer"]


def _training_passes(recipe: dict, images: int) -> int:
    adversary = recipe.get("steps", 2) if recipe.get("adversary") else 0
    return recipe.get("epochs", 0) * (1 + adversary) * images


def _cell_passes(cell: dict) -> int:
    """Passes per image of one cell; those of a diffusion model count as so many of the small classifier."""
    if cell["optimiser"] in DENSITY_PASSES:
        return len(cell["strengths"]) * DENSITY_PASSES[cell["optimiser"]]
    rounds = ROUNDS if cell["optimiser"] == "minimal" else 1
    return len(cell["strengths"]) * rounds * (cell.get("iterations", 75) + 1)
