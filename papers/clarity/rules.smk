# Clarity: train → explain → measure → verdicts → figures.
CLARITY = config["clarity"]
CLARITY_SYSTEMS = f"{WORK}/clarity/systems"
CLARITY_BATCHES = f"{WORK}/clarity/batches"
CLARITY_MEASURED = f"{WORK}/clarity/measured"
CLARITY_DIAGNOSTICS = f"{RESULTS}/clarity/diagnostics"
CLARITY_GRIDS = [
    "rf3-grid",
    "rf3-grid-scenes",
    "rf4-latent-map",
    "reconstructions",
    "samples",
]
CLARITY_FIGURES = [
    "rf1-matched-distance",
    "rf2-convergence",
    "rf5-confidence-realism",
    "plateau",
]
CLARITY_TABLES = ["rt1-grid", "rt2-baselines", "rt3-gradients"]
FIGURES_OF["clarity"] = [
    f"{FIGURES}/clarity/{name}.png"
    for name in [*CLARITY_GRIDS, *CLARITY_FIGURES, "verdicts"]
]
RESULTS_OF["clarity"] = [
    f"{RESULTS}/clarity/claims.json",
    *[f"{RESULTS}/clarity/tables/{name}.csv" for name in CLARITY_TABLES],
]


def clarity_entries(job):
    """The start sets and cells of the groups that one job explains, with what their systems know."""
    return [
        {
            **entry,
            **CLARITY["starts"][entry["starts"]],
            "singles": CLARITY["systems"][entry["systems"]]["singles"],
        }
        for group in job
        for entry in CLARITY["groups"][group]
    ]


def clarity_seeds(names):
    """The training seeds that all systems of these names have."""
    return [
        seed
        for seed in config["seeds"]
        if all(seed in config["vae"][name]["seeds"] for name in names)
    ]


def clarity_systems(names, seed="{seed}"):
    """The files of some systems."""
    return [f"{CLARITY_SYSTEMS}/{name}-{seed}.safetensors" for name in names]


def clarity_files(names):
    """The files of some systems, of every training seed that each has."""
    return [
        file
        for name in names
        for seed in clarity_seeds([name])
        for file in clarity_systems([name], seed)
    ]


CLARITY_NAMES = sorted(
    {entry["systems"] for job in CLARITY["jobs"] for entry in clarity_entries(job)}
)
CLARITY_MAIN = [name for name in CLARITY_NAMES if name in config["splits"]]


def clarity_shards(seed):
    """The files of shards of one training seed."""
    return [
        f"{CLARITY_BATCHES}/{'_'.join(job)}-{seed}.safetensors"
        for job in CLARITY["jobs"]
        if int(seed)
        in clarity_seeds([entry["systems"] for entry in clarity_entries(job)])
    ]


for job in CLARITY["train_jobs"]:
    name = "_".join(job)

    rule:
        name:
            f"clarity_train_{name.replace('-', '_')}"
        input:
            splits=sorted(
                {
                    f"{SPLITS}/{CLARITY['systems'][entry]['world']}.parquet"
                    for entry in job
                }
            ),
            data=sorted(
                {
                    file
                    for entry in job
                    for file in data_of(CLARITY["systems"][entry]["world"])
                }
            ),
            vaes=[f"{GENERATORS}/{entry}-{{seed}}.safetensors" for entry in job],
        output:
            clarity_systems(job),
        log:
            f"{LOGS}/clarity/train/{name}-{{seed}}.log",
        priority: 6
        params:
            src=digest("papers.clarity.train"),
            entries=json.dumps({entry: CLARITY["systems"][entry] for entry in job}),
            vaes=GENERATORS,
            splits=SPLITS,
            folder=CLARITY_SYSTEMS,
        shell:
            "python -m papers.clarity.train --entries {params.entries:q} --vaes {params.vaes} --splits {params.splits}"
            " --seed {wildcards.seed} --out {params.folder} 2> >(tee {log} >&2)"


for job in CLARITY["jobs"]:
    name = "_".join(job)
    entries = clarity_entries(job)

    rule:
        name:
            f"clarity_explain_{name}"
        input:
            splits=rules.splits.output,
            data=sorted(
                {
                    file
                    for entry in entries
                    for file in data_of(CLARITY["systems"][entry["systems"]]["world"])
                }
            ),
            systems=clarity_systems(sorted({entry["systems"] for entry in entries})),
        output:
            f"{CLARITY_BATCHES}/{name}-{{seed}}.safetensors",
            f"{CLARITY_BATCHES}/{name}-{{seed}}.cost.json",
        log:
            f"{LOGS}/clarity/explain/{name}-{{seed}}.log",
        priority: 5 if "baselines" in job else 4
        params:
            src=digest("papers.clarity.shards"),
            group=json.dumps(entries),
            systems=CLARITY_SYSTEMS,
            splits=SPLITS,
        shell:
            "python -m papers.clarity.shards --group {params.group:q} --systems {params.systems} --splits {params.splits}"
            " --seed {wildcards.seed} --out {output[0]} 2> >(tee {log} >&2)"


rule clarity_diagnostics:
    input:
        splits=rules.splits.output,
        data=sorted({file for world in CLARITY_MAIN for file in data_of(world)}),
        systems=clarity_files(CLARITY_MAIN),
        variants=clarity_files(sorted(set(CLARITY_NAMES) - set(CLARITY_MAIN))),
    output:
        expand(
            f"{CLARITY_DIAGNOSTICS}/{{name}}.parquet",
            name=[
                "accuracy",
                "gradients",
                "agreement",
                "convergence",
                "reconstruction_gate",
            ],
        ),
    log:
        f"{LOGS}/clarity/diagnostics.log",
    priority: 3
    params:
        src=digest("papers.clarity.diagnostics"),
        sizes=json.dumps(CLARITY["diagnosed"]),
        n=CLARITY["starts"]["pairs"]["n"],
        splits=SPLITS,
        folder=CLARITY_DIAGNOSTICS,
    shell:
        "python -m papers.clarity.diagnostics --systems {input.systems} --variants {input.variants}"
        " --diagnosed {params.sizes:q} --n {params.n}"
        " --splits {params.splits} --out {params.folder} 2> >(tee {log} >&2)"


rule clarity_measure:
    input:
        shards=lambda wildcards: clarity_shards(wildcards.seed),
        systems=lambda wildcards: [
            file
            for name in CLARITY_NAMES
            if int(wildcards.seed) in clarity_seeds([name])
            for file in clarity_systems([name], wildcards.seed)
        ],
        splits=rules.splits.output,
        data=sorted({file for world in CLARITY_MAIN for file in data_of(world)}),
        autoencoders=[
            f"{AUTOENCODERS}/{world}.safetensors" for world in config["autoencoders"]
        ],
        oracles=expand(
            f"{ORACLES}/{{world}}-{{judge}}.safetensors",
            world=CLARITY_MAIN,
            judge=ORACLE_NETS,
        ),
    output:
        expand(
            f"{CLARITY_MEASURED}/{{{{seed}}}}/{{name}}.parquet",
            name=["rows", "kid", "gate"],
        ),
    log:
        f"{LOGS}/clarity/measure-{{seed}}.log",
    priority: 4
    params:
        src=digest("papers.clarity.measure"),
        autoencoders=[
            f"{world}={AUTOENCODERS}/{world}.safetensors"
            for world in config["autoencoders"]
        ],
        systems=CLARITY_SYSTEMS,
        splits=SPLITS,
        oracles=ORACLES,
        folder=CLARITY_MEASURED,
    shell:
        "python -m papers.clarity.measure --shards {input.shards} --systems {params.systems}"
        " --autoencoders {params.autoencoders} --splits {params.splits} --oracles {params.oracles}"
        " --out {params.folder}/{wildcards.seed} 2> >(tee {log} >&2)"


rule clarity_cells:
    input:
        expand(
            f"{CLARITY_MEASURED}/{{seed}}/{{name}}.parquet",
            seed=config["seeds"],
            name=["rows", "kid", "gate"],
        ),
        costs=[
            shard.replace(".safetensors", ".cost.json")
            for seed in config["seeds"]
            for shard in clarity_shards(seed)
        ],
        diagnostics=rules.clarity_diagnostics.output,
    output:
        expand(
            f"{RESULTS}/clarity/{{name}}.parquet",
            name=["rows", "cells", "coverage", "factors", "plateau", "kid"],
        ),
        gate=f"{RESULTS}/clarity/tables/oracle_gate.csv",
        cost=f"{WORK}/clarity/cost.parquet",
    log:
        f"{LOGS}/clarity/cells.log",
    priority: 3
    params:
        src=digest("papers.clarity.cells"),
        measured=[f"{CLARITY_MEASURED}/{seed}" for seed in config["seeds"]],
        diagnostics=CLARITY_DIAGNOSTICS,
        level=config["match_at"],
        changes=json.dumps(CLARITY["changes"]),
        folder=f"{RESULTS}/clarity",
    shell:
        "python -m papers.clarity.cells --measured {params.measured} --costs {input.costs}"
        " --diagnostics {params.diagnostics} --level {params.level} --changes {params.changes:q}"
        " --out {params.folder} --cost {output.cost} 2> >(tee {log} >&2)"


rule clarity_verdicts:
    input:
        rules.clarity_cells.output,
        rules.clarity_diagnostics.output,
        claims="papers/clarity/claims.yaml",
        gate=rules.clarity_cells.output.gate,
    output:
        claims=f"{RESULTS}/clarity/claims.json",
        tables=expand(
            f"{RESULTS}/clarity/tables/{{name}}.csv",
            name=["tests", "methods", "strengths", "statuses"],
        ),
    log:
        f"{LOGS}/clarity/verdicts.log",
    priority: 2
    params:
        src=digest("common.verdicts"),
        tables=[
            *[
                f"{name}={RESULTS}/clarity/{name}.parquet"
                for name in ("cells", "coverage", "factors", "plateau")
            ],
            *[
                f"{name}={CLARITY_DIAGNOSTICS}/{name}.parquet"
                for name in ("accuracy", "gradients")
            ],
        ],
        protocol=json.dumps(
            {
                "scale": scale,
                **{
                    key: config[key]
                    for key in (
                        "seeds",
                        "splits",
                        "split_seed",
                        "oracles",
                        "vae",
                        "autoencoders",
                        "match_at",
                    )
                },
                "clarity": CLARITY,
                "metrics": [
                    digest(f"papers.clarity.{module}")
                    for module in ("measure", "cells", "diagnostics")
                ],
                "judgement": digest("common.verdicts"),
                "methods": digest("papers.clarity.shards"),
                "training": [
                    digest("papers.clarity.train"),
                    digest("common.generators.train"),
                    digest("common.classifiers.train"),
                    digest("common.metrics.im1"),
                ],
            }
        ),
        level=config["match_at"],
        rows=f"{RESULTS}/clarity/rows.parquet",
        folder=f"{RESULTS}/clarity",
    shell:
        "python -m common.verdicts --claims {input.claims} --rows {params.rows} --gate {input.gate}"
        " --tables {params.tables} --protocol {params.protocol:q} --level {params.level} --out {params.folder}"
        " > {log} 2> >(tee -a {log} >&2)"


rule clarity_tables:
    input:
        rules.clarity_cells.output,
        rules.clarity_diagnostics.output,
    output:
        expand(f"{RESULTS}/clarity/tables/{{name}}.csv", name=CLARITY_TABLES),
    log:
        f"{LOGS}/clarity/tables.log",
    priority: 2
    params:
        src=digest("papers.clarity.tables"),
        level=config["match_at"],
        diagnostics=CLARITY_DIAGNOSTICS,
        results=f"{RESULTS}/clarity",
        folder=f"{RESULTS}/clarity/tables",
    shell:
        "python -m papers.clarity.tables --results {params.results} --diagnostics {params.diagnostics}"
        " --level {params.level} --out {params.folder} 2> >(tee {log} >&2)"


rule clarity_grids:
    input:
        shards=clarity_shards(config["seeds"][0]),
        systems=clarity_systems([*CLARITY_MAIN, "toy"], config["seeds"][0]),
        splits=rules.splits.output,
        data=sorted({file for world in CLARITY_MAIN for file in data_of(world)}),
    output:
        expand(
            f"{FIGURES}/clarity/{{name}}.{{suffix}}",
            name=CLARITY_GRIDS,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/clarity/grids.log",
    priority: 2
    params:
        src=digest("papers.clarity.grids"),
        systems=CLARITY_SYSTEMS,
        splits=SPLITS,
        seed=config["seeds"][0],
        digits=CLARITY["systems"]["toy"]["classes"],
        folder=f"{FIGURES}/clarity",
    shell:
        "python -m papers.clarity.grids --batches {input.shards} --systems {params.systems} --splits {params.splits}"
        " --seed {params.seed} --digits {params.digits} --out {params.folder} 2> >(tee {log} >&2)"


rule clarity_figures:
    input:
        rules.clarity_cells.output,
        rules.clarity_diagnostics.output,
    output:
        expand(
            f"{FIGURES}/clarity/{{name}}.{{suffix}}",
            name=CLARITY_FIGURES,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/clarity/figures.log",
    priority: 2
    params:
        src=digest("papers.clarity.figures"),
        results=f"{RESULTS}/clarity",
        folder=f"{FIGURES}/clarity",
    shell:
        "python -m papers.clarity.figures --results {params.results} --out {params.folder} 2> >(tee {log} >&2)"


rule clarity_results:
    input:
        RESULTS_OF["clarity"],
