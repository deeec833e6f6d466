"""Job: a finished scale as a Workflow Run RO-Crate: rows, verdicts, tables and figures, the workflow with its settings
and locks, and of every figure and table the job that made it.

python -m comparison.report.crate --scale cpu --out results/cpu/crate

The same results give the same bytes: dates come from the citation, times are left out.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import yaml
from rocrate.model import ContextEntity, Entity
from rocrate.rocrate import ROCrate

from common.errors import VceError, one_line_errors
from common.files import ROOT, sha256
from common.parts import PARTS
from comparison.report.folders import check_ours, fresh_beside, put_in_place
from comparison.report.provenance import Made, made

METADATA = "ro-crate-metadata.json"
PROFILES = {  # name and version by what w3id.org calls them
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
SETTINGS = (
    "config/{scale}.yaml", "config/cpu.yaml", "dvc.yaml", "dvc.lock", "requirements.lock", "environment.yml",
    "CITATION.cff", "LICENSE", "README.md",
)  # fmt: skip
FORMATS = {
    ".png": "image/png", ".csv": "text/csv", ".json": "application/json", ".parquet": "application/vnd.apache.parquet",
    ".yaml": "application/yaml", ".html": "text/html",
}  # fmt: skip


def results(root: Path, scale: str) -> list[Path]:
    """Everything that a scale's parts wrote, and their figures. Raises VceError for a part that is not finished."""
    found = []
    for part in PARTS:
        folder = root / "results" / scale / part
        if not (folder / "claims.json").is_file():
            raise VceError(f"results/{scale}/{part}: no claims.json; run snakemake all --config scale={scale} first")
        found += [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        found += (root / "figures" / scale / part).glob("*.png")
    return sorted(found)


def build(root: Path, scale: str, out: Path) -> Path:
    """Write the crate into a new folder and put it in the place of the old one; the path of its metadata."""
    out = out.resolve()
    check_ours(out)
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    crate = ROCrate()
    crate.name = f"{citation['title']}: the {scale} scale"
    crate.description = "Rows, verdicts, tables and figures of one run of the workflow, with the job that made each."
    crate.datePublished = str(citation["date-released"])
    crate.license = citation["license"]
    author = crate.add(
        ContextEntity(crate, "#authors", {"@type": "Organization", "name": citation["authors"][0]["name"]})
    )
    crate.creator = author
    workflow = crate.add_workflow(
        root / "Snakefile", "Snakefile", main=True, lang="snakemake",
        properties={
            "name": "Snakefile", "version": citation["version"], "creator": author, "license": citation["license"],
        },
    )  # fmt: skip
    rules = sorted(path for folder in ("common", "papers", "comparison") for path in (root / folder).rglob("rules.smk"))
    workflow["hasPart"] = [_file(crate, root, path) for path in rules]
    named = sorted({name.format(scale=scale) for name in SETTINGS})
    settings = [_file(crate, root, root / name) for name in named if (root / name).is_file()]
    files = {path: _file(crate, root, path) for path in results(root, scale)}
    pointers = [_file(crate, root, path) for path in sorted((root / "data").glob("*.dvc"))]
    crate.add_action(
        workflow, "#run", object=[*settings, *pointers], result=list(files.values()),
        properties={
            "name": f"snakemake all --config scale={scale}", "agent": {"@id": author.id},
            "actionStatus": {"@id": "http://schema.org/CompletedActionStatus"},
        },
    )  # fmt: skip
    _jobs(crate, root, files)
    _conforms(crate)
    fresh = fresh_beside(out)
    crate.write(fresh)
    put_in_place(fresh, out)
    return out / METADATA


def _file(crate: ROCrate, root: Path, path: Path) -> Entity:
    name = path.relative_to(root).as_posix()
    about = {"name": name, "sha256": sha256(path), "contentSize": str(path.stat().st_size)}
    if path.suffix in FORMATS:
        about["encodingFormat"] = FORMATS[path.suffix]
    return crate.add_file(path, name, properties=about)


def _jobs(crate: ROCrate, root: Path, files: dict[Path, Entity]) -> None:
    """An action for every job that wrote some of the files: its module, its command, what it read and what it wrote.
    What it read beyond the crate, trained nets and explained batches, is named with its hash."""
    jobs: dict[tuple[str, str], tuple[Made, list[Entity]]] = {}
    for path, entity in files.items():
        record = made(path, root)
        if record:
            jobs.setdefault((record.command, record.rule), (record, []))[1].append(entity)
    if not jobs:
        raise VceError("nothing is recorded of the jobs that wrote these results; run snakemake where they were made")
    inside = {path.relative_to(root).as_posix(): entity for path, entity in files.items()}
    counts: dict[str, int] = defaultdict(int)
    for (command, _), (record, written) in sorted(jobs.items()):
        counts[record.rule] += 1
        module = record.module or "the workflow"
        tool = crate.get(f"#{module}") or crate.add(
            ContextEntity(crate, f"#{module}", {"@type": "SoftwareApplication", "name": module})
        )
        read = [inside.get(name) or _outside(crate, name, digest) for name, digest in record.inputs.items()]
        crate.add_action(
            tool, f"#job-{record.rule}-{counts[record.rule]}", object=read, result=written,
            properties={"name": record.rule, "description": command, "agent": {"@id": "#authors"}},
        )  # fmt: skip


def _outside(crate: ROCrate, name: str, digest: str) -> Entity:
    about = {"@type": "CreativeWork", "name": name} | ({"sha256": digest} if digest else {})
    return crate.get(f"#{name}") or crate.add(ContextEntity(crate, f"#{name}", about))


def _conforms(crate: ROCrate) -> None:
    for identifier, (name, version) in PROFILES.items():
        about = {"@type": ["CreativeWork", "Profile"], "name": name, "version": version}
        if crate.get(identifier) is None:
            crate.add(ContextEntity(crate, identifier, about))
    crate.root_dataset["conformsTo"] = [{"@id": identifier} for identifier in PROFILES]


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the crate")
    args = parser.parse_args()
    path = build(ROOT, args.scale, args.out)
    entities = json.loads(path.read_text())["@graph"]
    print(f"{path}: {len(entities)} entities")


if __name__ == "__main__":
    main()
