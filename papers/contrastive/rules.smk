# Contrastive counterfactuals: worlds → train → measure → cells → verdicts → figures.
CONTRASTIVE = config["contrastive"]
CONTRASTIVE_WORLDS = f"{WORK}/contrastive/worlds"
CONTRASTIVE_SHIFTS = f"{WORK}/contrastive/shifts"
CONTRASTIVE_MEASURED = f"{WORK}/contrastive/measured"
CONTRASTIVE_SWEEPS = f"{WORK}/contrastive/sweeps"
CONTRASTIVE_DATA = [
    f"data/{name}"
    for name in ("face-gan.pt", "expression.hdf5", "gender.onnx", "age.onnx")
]
CONTRASTIVE_TABLES = [
    "scores",
    "validity",
    "leakage",
    "rates",
    "errors",
    "truth",
    "ranking",
    "joint",
    "sweep",
]
CONTRASTIVE_FILES = [
    *[f"{name}.parquet" for name in ("edits", "joint", "local", "frozen")],
    "cost.json",
]
CONTRASTIVE_PLOTS = ["scores", "truth", "errors", "sweep"]
CONTRASTIVE_GRIDS = ["faces", "rendered", "local"]
RESULTS_OF["contrastive"] = [
    f"{RESULTS}/contrastive/claims.json",
    *[f"{RESULTS}/contrastive/tables/{name}.csv" for name in CONTRASTIVE_TABLES],
]
FIGURES_OF["contrastive"] = [
    f"{FIGURES}/contrastive/{name}.png"
    for name in [*CONTRASTIVE_GRIDS, *CONTRASTIVE_PLOTS, "verdicts"]
]


def contrastive_world(system, seed="{seed}"):
    """The file that a system is made of, besides data files."""
    return [] if system == "face-gan" else [f"{CONTRASTIVE_WORLDS}/{seed}.safetensors"]


def contrastive_data(system):
    """The data files that a system is made of."""
    return CONTRASTIVE_DATA if system == "face-gan" else []


CONTRASTIVE_MEASURES = [
    f"{CONTRASTIVE_MEASURED}/{system}-{seed}"
    for job in CONTRASTIVE["train_jobs"]
    for system in job
    for seed in config["seeds"]
]
CONTRASTIVE_SWEPT = [
    f"{CONTRASTIVE_SWEEPS}/{system}-{seed}.parquet"
    for system in CONTRASTIVE["swept"]
    for seed in config["seeds"]
    if seed in CONTRASTIVE["sweeps"][system]["seeds"]
]


rule contrastive_world:
    output:
        contrastive_world("faces"),
    log:
        f"{LOGS}/contrastive/world-{{seed}}.log",
    priority: 8
    params:
        src=digest("papers.contrastive.worlds"),
        recipe=json.dumps(CONTRASTIVE["world"]),
    shell:
        "python -m papers.contrastive.worlds --recipe {params.recipe:q} --seed {wildcards.seed} --out {output}"
        " 2> >(tee {log} >&2)"


for job in CONTRASTIVE["train_jobs"]:
    name = job[0].replace("-", "_")

    rule:
        name:
            f"contrastive_train_{name}"
        input:
            contrastive_data(job[0]),
            world=contrastive_world(job[0]),
        output:
            [f"{CONTRASTIVE_SHIFTS}/{system}-{{seed}}.safetensors" for system in job],
        log:
            f"{LOGS}/contrastive/train-{name}-{{seed}}.log",
        priority: 8 if job == ["face-gan"] else 7
        params:
            src=digest("papers.contrastive.train"),
            recipes=json.dumps(
                {system: CONTRASTIVE["systems"][system]["recipe"] for system in job}
            ),
            folder=CONTRASTIVE_SHIFTS,
        shell:
            "python -m papers.contrastive.train --recipes {params.recipes:q} --seed {wildcards.seed}"
            " $( [ -n '{input.world}' ] && echo --world {input.world} ) --out {params.folder} 2> >(tee {log} >&2)"


for job in CONTRASTIVE["train_jobs"]:
    name = job[0].replace("-", "_")

    rule:
        name:
            f"contrastive_measure_{name}"
        input:
            contrastive_data(job[0]),
            shifts=[
                f"{CONTRASTIVE_SHIFTS}/{system}-{{seed}}.safetensors" for system in job
            ],
            world=contrastive_world(job[0]),
        output:
            [
                f"{CONTRASTIVE_MEASURED}/{system}-{{seed}}/{file}"
                for system in job
                for file in CONTRASTIVE_FILES
            ],
        log:
            f"{LOGS}/contrastive/measure-{name}-{{seed}}.log",
        priority: 7
        params:
            src=digest("papers.contrastive.measure"),
            settings=lambda wildcards, job=job: json.dumps(
                {
                    system: CONTRASTIVE["systems"][system]["settings"][
                        int(wildcards.seed)
                    ]
                    for system in job
                }
            ),
            shifts=CONTRASTIVE_SHIFTS,
            folder=CONTRASTIVE_MEASURED,
        shell:
            "python -m papers.contrastive.measure --settings {params.settings:q} --shifts {params.shifts}"
            " $( [ -n '{input.world}' ] && echo --world {input.world} ) --seed {wildcards.seed} --out {params.folder}"
            " 2> >(tee {log} >&2)"


rule contrastive_sweep:
    input:
        data=lambda wildcards: contrastive_data(wildcards.system),
        world=lambda wildcards: contrastive_world(wildcards.system, wildcards.seed),
    output:
        f"{CONTRASTIVE_SWEEPS}/{{system}}-{{seed}}.parquet",
    log:
        f"{LOGS}/contrastive/sweep-{{system}}-{{seed}}.log",
    wildcard_constraints:
        system="[a-z-]+",
    priority: 8
    params:
        src=digest("papers.contrastive.sweep"),
        recipe=lambda wildcards: json.dumps(
            CONTRASTIVE["sweeps"][wildcards.system]["recipe"]
        ),
        lams=lambda wildcards: CONTRASTIVE["sweeps"][wildcards.system]["lams"],
        n=lambda wildcards: CONTRASTIVE["sweeps"][wildcards.system]["n"],
    shell:
        "python -m papers.contrastive.sweep --system {wildcards.system}"
        " $( [ -n '{input.world}' ] && echo --world {input.world} ) --recipe {params.recipe:q} --lams {params.lams}"
        " --n {params.n} --seed {wildcards.seed} --out {output} 2> >(tee {log} >&2)"


rule contrastive_cells:
    input:
        expand("{folder}/edits.parquet", folder=CONTRASTIVE_MEASURES),
        sweeps=CONTRASTIVE_SWEPT,
        worlds=expand(
            f"{CONTRASTIVE_WORLDS}/{{seed}}.safetensors", seed=config["seeds"]
        ),
    output:
        expand(
            f"{RESULTS}/contrastive/{{name}}.parquet",
            name=[
                "rows",
                "edits",
                "joint",
                "local",
                "frozen",
                "sets",
                "errors",
                "single",
                "units",
                "sweep",
            ],
        ),
        gate=f"{RESULTS}/contrastive/tables/gate.csv",
        cost=f"{WORK}/contrastive/cost.parquet",
    log:
        f"{LOGS}/contrastive/cells.log",
    priority: 3
    params:
        src=digest("papers.contrastive.cells"),
        measured=CONTRASTIVE_MEASURES,
        folder=f"{RESULTS}/contrastive",
    shell:
        "python -m papers.contrastive.cells --measured {params.measured} --sweeps {input.sweeps}"
        " --worlds {input.worlds} --out {params.folder} --cost {output.cost} 2> >(tee {log} >&2)"


rule contrastive_verdicts:
    input:
        rules.contrastive_cells.output,
        claims="papers/contrastive/claims.yaml",
        gate=rules.contrastive_cells.output.gate,
    output:
        claims=f"{RESULTS}/contrastive/claims.json",
        tables=expand(
            f"{RESULTS}/contrastive/tables/{{name}}.csv",
            name=["tests", "methods", "strengths", "statuses"],
        ),
    log:
        f"{LOGS}/contrastive/verdicts.log",
    priority: 2
    params:
        src=digest("common.verdicts"),
        tables=[
            f"{name}={RESULTS}/contrastive/{name}.parquet"
            for name in (
                "edits",
                "frozen",
                "units",
                "errors",
                "sets",
                "local",
                "joint",
                "sweep",
            )
        ],
        protocol=json.dumps(
            {
                "scale": scale,
                "seeds": config["seeds"],
                "match_at": config["match_at"],
                "contrastive": CONTRASTIVE,
                "metrics": [
                    digest(f"papers.contrastive.{module}")
                    for module in ("measure", "sweep", "cells")
                ],
                "judgement": digest("common.verdicts"),
                "training": [
                    digest("papers.contrastive.worlds"),
                    digest("papers.contrastive.train"),
                ],
            }
        ),
        level=config["match_at"],
        rows=f"{RESULTS}/contrastive/rows.parquet",
        folder=f"{RESULTS}/contrastive",
    shell:
        "python -m common.verdicts --claims {input.claims} --rows {params.rows} --gate {input.gate}"
        " --tables {params.tables} --protocol {params.protocol:q} --level {params.level} --out {params.folder}"
        " > {log} 2> >(tee -a {log} >&2)"


rule contrastive_tables:
    input:
        rules.contrastive_cells.output,
    output:
        expand(f"{RESULTS}/contrastive/tables/{{name}}.csv", name=CONTRASTIVE_TABLES),
    log:
        f"{LOGS}/contrastive/tables.log",
    priority: 2
    params:
        src=digest("papers.contrastive.tables"),
        results=f"{RESULTS}/contrastive",
        folder=f"{RESULTS}/contrastive/tables",
    shell:
        "python -m papers.contrastive.tables --results {params.results} --out {params.folder} 2> >(tee {log} >&2)"


rule contrastive_figures:
    input:
        expand(f"{RESULTS}/contrastive/tables/{{name}}.csv", name=CONTRASTIVE_TABLES),
    output:
        expand(
            f"{FIGURES}/contrastive/{{name}}.{{suffix}}",
            name=CONTRASTIVE_PLOTS,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/contrastive/figures.log",
    priority: 2
    params:
        src=digest("papers.contrastive.figures"),
        tables=f"{RESULTS}/contrastive/tables",
        folder=f"{FIGURES}/contrastive",
    shell:
        "python -m papers.contrastive.figures --tables {params.tables} --out {params.folder} 2> >(tee {log} >&2)"


rule contrastive_grids:
    input:
        CONTRASTIVE_DATA,
        gan=f"{CONTRASTIVE_SHIFTS}/face-gan-{config['seeds'][0]}.safetensors",
        shift=f"{CONTRASTIVE_SHIFTS}/faces-{config['seeds'][0]}.safetensors",
        world=contrastive_world("faces", config["seeds"][0]),
    output:
        expand(
            f"{FIGURES}/contrastive/{{name}}.{{suffix}}",
            name=CONTRASTIVE_GRIDS,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/contrastive/grids.log",
    priority: 2
    params:
        src=digest("papers.contrastive.grids"),
        folder=f"{FIGURES}/contrastive",
    shell:
        "python -m papers.contrastive.grids --gan {input.gan} --shift {input.shift} --world {input.world}"
        " --out {params.folder} 2> >(tee {log} >&2)"


rule contrastive_results:
    input:
        RESULTS_OF["contrastive"],
