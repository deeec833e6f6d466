"""Every way into the pipeline, tried in a throw-away clone at a tiny scale.

Prints one line per door and stops at the first that does not open.

    .venv/bin/python scripts/doors.py

Doors: `kill -9` in the middle and then make finishes without repeating what had finished; a second make does nothing;
a make beside a running one is refused; `dvc repro` after make runs no job, and again leaves dvc.lock alone; an edited
module rebuilds exactly what imports it, through Snakemake and through DVC; the same command gives the same bits.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import yaml

from common.files import ROOT
from common.scales import load_scale

SCALE = "doors"


def tiny(config: dict) -> dict:
    """What a scale says that builds on smoke, with every number as small as the rules allow."""

    def brief(recipes: dict) -> dict:
        return {
            world: {
                kind: {"epochs": 1, "steps": 1, "batch_size": 128}
                for kind, recipe in kinds.items()
                if "packaged" not in recipe
            }
            for world, kinds in recipes.items()
        }

    few = {"systems": 200, "calibration": 60, "oracles": 150, "tuning": 70, "pairs": 50}
    return {
        "base": "smoke",
        "scale": SCALE,
        "splits": {
            world: {split: min(size, few[split]) for split, size in sizes.items()}
            for world, sizes in config["splits"].items()
        },
        "classifiers": brief(config["classifiers"]),
        "oracles": brief(config["oracles"]),
        "svce": {
            "exactness": {"problems": 5, "dimension": 64},
            "robustness": {"n": 5, "iterations": 2},
            "starts": {name: {"n": 4} for name in config["svce"]["starts"]},
            "photos": {"radii": [50], "iterations": 1},
            "overlay": {"photos": 3},
            "rating": {"trials": 2},
        },
        "vae": {name: {"epochs": 1, "batch_size": 128} for job in config["vae_jobs"] for name in job},
        # enough to learn something: a dead one is refused
        "autoencoders": {world: {"epochs": 40} for world in config["autoencoders"]},
        "clarity": {
            "systems": {
                name: {"copies": 1, "spaces": {space: {"epochs": 1, "batch_size": 128} for space in systems["spaces"]}}
                for name, systems in config["clarity"]["systems"].items()
            },
            "starts": {
                **{name: {"n": 4} for name in ("pairs", "screening", "scenes")},
                **{name: {"first": 4, "n": 6} for name in ("coverage", "coverage-pixels")},
            },
        },
        "disc": {
            "companions": {world: {"epochs": 1, "batch_size": 100} for world in config["disc"]["companions"]},
            "regressors": {name: {"epochs": 1} for name in config["disc"]["regressors"]},
            "recipes": {world: {"fit": 20, "steer": 10} for world in config["disc"]["recipes"]},
            "groups": {
                name: [{**entry, "n": 4} for entry in entries] for name, entries in config["disc"]["groups"].items()
            },
            "hypotheses": [{**entry, "n": 4} for entry in config["disc"]["hypotheses"]],
            "students": {"recipe": {"epochs": 1}, "test": 20},
        },
        "infillers": {name: {"steps": 30} for name in config["infillers"]},
        "fido": {
            "classifiers": brief(config["fido"]["classifiers"]),
            "maskers": {world: {"epochs": 1} for world in config["fido"]["maskers"]},
            "recipes": {world: {"search": {"steps": 4}, "bbmp": {"steps": 4}} for world in config["fido"]["recipes"]},
            "groups": {
                name: [{**entry, "n": 4} for entry in entries] for name, entries in config["fido"]["groups"].items()
            },
            "photos": {"steps": 2, "masks": 1},
        },
        "comparison": {
            "classifiers": brief(config["comparison"]["classifiers"]),
            "worlds": {
                "faces-smile": {"n": {"l2at": 4, "standard": 4}, "vae": {"images": 100, "epochs": 1}},
                "mnist": {"n": {"l2at": 4}, "runner_up": {"l2at": 4}},
                "scenes": {"n": {"l2at": 4}, "runner_up": {"l2at": 4}},
            },
            "sanity": {"n": 2},
            "zoo": {"recipe": {"images": 100, "epochs": 1}, "n": 2},
            "methods": {
                "disc": {"settings": {"fit": 10, "steer": 10}},
                "contrastive": {"prepare": {world: {"shift": {"steps": 10}} for world in ("faces-smile", "mnist")}},
                "fido": {"prepare": {world: {"steps": 10} for world in ("faces-smile", "scenes")}},
            },
        },
    }


class Doors:
    """A clone of the committed tree and what can be done to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.run("git", "clone", "--quiet", str(ROOT), str(folder), cwd=ROOT)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        config = tiny(load_scale("smoke"))
        (folder / f"config/{SCALE}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        dvc = folder / "dvc.yaml"
        dvc.write_text(dvc.read_text().replace("scale: cpu", f"scale: {SCALE}"))
        self.commit("scale for the doors")

    def run(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        """Standard output and error of a command; stops the whole script when it fails."""
        path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            command, cwd=cwd or self.folder, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if check and done.returncode:
            sys.exit(f"{done.stdout[-6000:]}\nerror: {' '.join(command)} failed with {done.returncode}")
        return done.stdout

    def make(self, check: bool = True) -> str:
        return self.run("scripts/run.sh", SCALE, check=check)

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=doors", "-c", "user.email=doors@localhost", "commit", "--quiet", "-m", message)

    def jobs(self, output: str) -> list[str]:
        """Rules that Snakemake started, in order, the target rules left out."""
        rules = re.findall(r"^(?:local)?rule (\w+):$", output, re.MULTILINE)
        return [rule for rule in rules if rule != "all" and not rule.endswith("_results")]

    def pending(self) -> set[str]:
        """Rules that Snakemake would run now."""
        return set(self.jobs(self.run("snakemake", "all", "--dry-run", "--config", f"scale={SCALE}")))

    def results(self) -> dict[str, str]:
        """sha256 of everything that must be the same bits."""
        files = sorted(file for top in ("results", "figures") for file in (self.folder / top / SCALE).rglob("*.*"))
        return {str(file.relative_to(self.folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def opened(door: str, holds: bool, detail: object = "") -> None:
    print(f"{'ok' if holds else 'FAILED':<7}{door} {detail if not holds else ''}", flush=True)
    if not holds:
        sys.exit(1)


def kill_in_the_middle(doors: Doors) -> None:
    """Start a make, refuse a second one beside it, kill the first with its children, and let another finish."""
    todo = Counter(doors.jobs(doors.run("snakemake", "all", "--dry-run", "--config", f"scale={SCALE}")))
    log = doors.folder / "killed.log"
    with log.open("w") as out:
        started = subprocess.Popen(["scripts/run.sh", SCALE], cwd=doors.folder, stdout=out, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 300
    while _work(_finished(log)) < 3 and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    refused = doors.make(check=False)
    opened("a make beside a running one is refused", "another make runs" in refused, refused[-300:])
    tree = [*psutil.Process(started.pid).children(recursive=True), psutil.Process(started.pid)]
    for process in tree:
        process.kill()
    started.wait()
    psutil.wait_procs(tree)
    finished = _finished(log)
    log.unlink()
    again = Counter(doors.jobs(doors.make()))
    holds = _work(finished) > 0 and finished + again == todo
    opened("after kill -9 make finishes, and repeats nothing that had finished", holds, (todo, finished, again))


def _finished(log: Path) -> Counter:
    """How many jobs of every rule have ended, by the log of a make."""
    return Counter(re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)$", log.read_text(), re.MULTILINE))


def _work(finished: Counter) -> int:
    """Jobs that computed something; fetching a file is none."""
    return sum(finished.values()) - finished["fetch"]


def idle(doors: Doors) -> None:
    start = time.monotonic()
    output = doors.make()
    seconds = time.monotonic() - start
    opened(
        f"a second make does nothing ({seconds:.1f} s)", "Nothing to be done" in output and seconds < 10, output[-800:]
    )


def through_dvc(doors: Doors) -> None:
    doors.run("snakemake", "data", "--config", f"scale={SCALE}")
    output = doors.run("dvc", "repro")
    opened("dvc repro after make runs no job", not doors.jobs(output), output[-2000:])
    doors.commit("dvc.lock of the doors")
    output = doors.run("dvc", "repro")
    changed = doors.run("git", "status", "--porcelain")
    opened("dvc repro again leaves dvc.lock and pointers unchanged", not doors.jobs(output) and not changed, changed)


def edited_modules(doors: Doors) -> None:
    """A comment rebuilds nothing; a change of code rebuilds exactly its importers and what follows from them."""
    expected = {
        "common/figures.py": {
            "svce_figures",
            "svce_judged_figures",
            "svce_grids",
            "svce_photos",
            "clarity_figures",
            "clarity_grids",
            "disc_figures",
            "disc_grids",
            "fido_figures",
            "fido_grids",
            "fido_photos",
            "contrastive_figures",
            "contrastive_grids",
            "comparison_figures",
            "comparison_grids",
            "verdict_figure",
            "report",
        },
        "papers/svce/exactness.py": {
            "svce_exactness",
            "svce_verdicts",
            "svce_judged_figures",
            "verdict_figure",
            "report",
        },
        "papers/clarity/tables.py": {"clarity_tables", "report"},
        "papers/disc/tables.py": {"disc_tables", "report"},
        "papers/fido/pictures.py": {"fido_grids", "fido_photos", "report"},
        "common/verdicts.py": {
            "svce_verdicts",
            "svce_judged_figures",
            "clarity_verdicts",
            "disc_verdicts",
            "fido_verdicts",
            "contrastive_verdicts",
            "comparison_verdicts",
            "comparison_tables",
            "comparison_figures",
            "verdict_figure",
            "report",
        },
        "comparison/methods/svce.py": {
            "comparison_explain_pixel_ascent",
            "comparison_measure",
            "comparison_sanity",
            "comparison_shortcuts",
            "comparison_cells",
            "comparison_verdicts",
            "comparison_tables",
            "comparison_figures",
            "comparison_grids",
            "verdict_figure",
            "report",
        },
    }
    for name, rules in expected.items():
        file = doors.folder / name
        text = file.read_text()
        file.write_text(text + "\n# a comment\n")
        opened(f"a comment in {name} rebuilds nothing", not doors.pending(), doors.pending())
        file.write_text(text + "\nUNUSED = 1\n")
        opened(f"code in {name} rebuilds exactly {', '.join(sorted(rules))}", doors.pending() == rules, doors.pending())
        file.write_text(text)
    before = doors.results()
    file = doors.folder / "common/verdicts.py"
    text = file.read_text()
    file.write_text(text + "\nUNUSED = 1\n")
    jobs = doors.jobs(doors.run("dvc", "repro"))
    opened(
        "through DVC the edited module rebuilds too",
        sorted(jobs)
        == ["clarity_verdicts", "comparison_tables"]
        + [f"{part}_verdicts" for part in ("comparison", "contrastive", "disc", "fido", "svce")],
        jobs,
    )
    file.write_text(text)  # the verdicts name the code that judged, so the same bits need the same code
    doors.make()
    after = doors.results()
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    opened("results rebuilt from the same code have the same bits", not changed, changed)


def main() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="doors-"))
    try:
        doors = Doors(scratch / "clone")
        kill_in_the_middle(doors)
        idle(doors)
        through_dvc(doors)
        edited_modules(doors)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
