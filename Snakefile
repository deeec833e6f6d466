# Rebuilds every figure, table and verdict: `snakemake all`, or `snakemake all --config scale=smoke` for a first look.
import json
import os
import sys
from pathlib import Path

from common.digest import digest
from common.errors import VceError
from common.files import sha256
from common.parts import PARTS, in_order
from common.results import PANEL
from common.scales import load_scale

# jobs run in the environment that runs snakemake, activated or not; two single-threaded jobs beat one with two threads
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# large tensors stay in the heap: glibc otherwise maps and zeroes them anew for every batch
os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**34))
# jobs share compiled modules: without them each compiles torch, pandas and scikit-learn anew, 3 to 4 s a job
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

scale = config.get("scale", "cpu")
try:
    config = {**load_scale(scale), **config}
except VceError as error:
    sys.exit(f"error: {error}")

WORK, RESULTS, FIGURES, LOGS = (
    f"{folder}/{scale}" for folder in ("work", "results", "figures", "logs")
)


localrules:
    all,
    data,
    fetch,
    svce_results,
    clarity_results,
    disc_results,
    fido_results,
    contrastive_results,
    comparison_results,


rule all:
    default_target: True
    input:
        lambda _: [file for part in PARTS for file in RESULTS_OF[part]],
        lambda _: [file for part in PARTS for file in FIGURES_OF[part]],
        f"{RESULTS}/report/index.html",


rule data:
    input:
        [str(pointer.with_suffix("")) for pointer in Path("data").glob("*.dvc")],


RESULTS_OF, FIGURES_OF = {}, {}


include: "common/rules.smk"
include: "papers/svce/rules.smk"
include: "papers/clarity/rules.smk"
include: "papers/disc/rules.smk"
include: "papers/fido/rules.smk"
include: "papers/contrastive/rules.smk"
include: "comparison/rules.smk"
include: "comparison/report/rules.smk"


onsuccess:
    for part in PARTS:
        verdicts = Path(RESULTS, part, "claims.json")
        if verdicts.is_file():
            claims = json.loads(verdicts.read_text())["claims"]
            for name, claim in in_order(claims).items():
                print(
                    f"{part} {name:>3}  {claim['verdict']:<13} {claim['statement']}"
                )
    report = Path(RESULTS, "report", "index.html")
    if report.is_file():
        print(f"report: {report}")
