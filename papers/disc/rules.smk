# DISC: train → explain → measure → verdicts → figures.
DISC = config["disc"]
DISC_SYSTEMS = f"{WORK}/disc/systems"
DISC_BATCHES = f"{WORK}/disc/batches"
DISC_MEASURED = f"{WORK}/disc/measured"
DISC_TABLES = ["ladder", "progressive", "students", "robustness", "hypotheses"]
DISC_GRIDS = [
    "fig1-ladder",
    "iterates",
    "progressive",
    "progressive-bald",
    "digits",
    "ages",
]
DISC_PLOTS = ["equal-change", "students", "robustness", "realism"]
FIGURES_OF["disc"] = [
    f"{FIGURES}/disc/{name}.png" for name in [*DISC_GRIDS, *DISC_PLOTS, "verdicts"]
]
RESULTS_OF["disc"] = [
    f"{RESULTS}/disc/claims.json",
    *[f"{RESULTS}/disc/tables/{name}.csv" for name in DISC_TABLES],
]


def disc_system(name):
    """The recipe of a companion or regressor."""
    return DISC["companions"].get(name) or DISC["regressors"][name]


def disc_entries(job):
    """The entries of the groups that one job explains."""
    return [entry for group in job for entry in DISC["groups"][group]]


def disc_seeds(parts):
    """The training seeds that all of some entries or recipes have."""
    return [
        seed
        for seed in config["seeds"]
        if all(seed in part.get("seeds", config["seeds"]) for part in parts)
    ]


def disc_worlds(parts):
    """The worlds of some entries."""
    return sorted({part["world"] for part in parts})


def disc_shards(seed, jobs=None):
    """The files of shards of one training seed."""
    return [
        f"{DISC_BATCHES}/{'_'.join(job)}-{seed}.safetensors"
        for job in jobs or DISC["jobs"]
        if int(seed) in disc_seeds(disc_entries(job))
    ]


DISC_ALL = [entry for job in DISC["jobs"] for entry in disc_entries(job)]
DISC_LADDER = next(job for job in DISC["jobs"] if "ladder" in job)
DISC_HYPOTHETICAL = disc_seeds([DISC["regressors"]["age"]])


for job in DISC["train_jobs"]:
    name = "_".join(job)
    companions = [entry for entry in job if entry in DISC["companions"]]
    regressors = [entry for entry in job if entry in DISC["regressors"]]
    worlds = [*companions, *(["faces-old"] if regressors else [])]

    rule:
        name:
            f"disc_train_{name.replace('-', '_')}"
        input:
            splits=[f"{SPLITS}/{world}.parquet" for world in worlds],
            data=sorted({file for world in worlds for file in data_of(world)}),
        output:
            [f"{DISC_SYSTEMS}/{entry}-{{seed}}.safetensors" for entry in job],
        log:
            f"{LOGS}/disc/train/{name}-{{seed}}.log",
        priority: 6
        params:
            src=digest("papers.disc.train"),
            recipes=json.dumps(
                {
                    kind: {
                        entry: {
                            key: value
                            for key, value in disc_system(entry).items()
                            if key != "seeds"
                        }
                        for entry in entries
                    }
                    for kind, entries in (
                        ("companions", companions),
                        ("regressors", regressors),
                    )
                }
            ),
            splits=SPLITS,
            folder=DISC_SYSTEMS,
        shell:
            "python -m papers.disc.train --recipes {params.recipes:q} --splits {params.splits} --seed {wildcards.seed}"
            " --out {params.folder} 2> >(tee {log} >&2)"


for job in DISC["jobs"]:
    name = "_".join(job)
    entries = disc_entries(job)
    worlds = disc_worlds(entries)

    rule:
        name:
            f"disc_explain_{name}"
        input:
            splits=[f"{SPLITS}/{world}.parquet" for world in worlds],
            data=sorted({file for world in worlds for file in data_of(world)}),
            systems=[f"{DISC_SYSTEMS}/{world}-{{seed}}.safetensors" for world in worlds],
        output:
            f"{DISC_BATCHES}/{name}-{{seed}}.safetensors",
            f"{DISC_BATCHES}/{name}-{{seed}}.cost.json",
        log:
            f"{LOGS}/disc/explain/{name}-{{seed}}.log",
        priority: 5
        params:
            src=digest("papers.disc.shards"),
            entries=json.dumps(entries),
            recipes=json.dumps({world: DISC["recipes"][world] for world in worlds}),
            level=config["match_at"],
            systems=DISC_SYSTEMS,
            splits=SPLITS,
        shell:
            "python -m papers.disc.shards --entries {params.entries:q} --recipes {params.recipes:q}"
            " --level {params.level} --systems {params.systems} --splits {params.splits} --seed {wildcards.seed} --out {output[0]}"
            " 2> >(tee {log} >&2)"


rule disc_hypotheses:
    input:
        splits=[
            f"{SPLITS}/{world}.parquet" for world in disc_worlds(DISC["hypotheses"])
        ],
        systems=[
            f"{DISC_SYSTEMS}/{entry['regressor'] if 'regressor' in entry else entry['world']}-{{seed}}.safetensors"
            for entry in DISC["hypotheses"]
        ],
    output:
        f"{DISC_BATCHES}/hypotheses-{{seed}}.safetensors",
    log:
        f"{LOGS}/disc/explain/hypotheses-{{seed}}.log",
    priority: 4
    params:
        src=digest("papers.disc.hypotheses"),
        entries=json.dumps(DISC["hypotheses"]),
        recipes=json.dumps(
            {
                world: DISC["recipes"][world]
                for world in disc_worlds(DISC["hypotheses"])
            }
        ),
        systems=DISC_SYSTEMS,
        splits=SPLITS,
    shell:
        "python -m papers.disc.hypotheses --entries {params.entries:q} --recipes {params.recipes:q}"
        " --systems {params.systems} --splits {params.splits} --seed {wildcards.seed} --out {output}"
        " 2> >(tee {log} >&2)"


rule disc_students:
    input:
        shards=lambda wildcards: disc_shards(wildcards.seed, [DISC_LADDER]),
        companion=f"{DISC_SYSTEMS}/faces-smile-{{seed}}.safetensors",
        splits=f"{SPLITS}/faces-smile.parquet",
    output:
        f"{DISC_MEASURED}/{{seed}}/students.parquet",
    log:
        f"{LOGS}/disc/students-{{seed}}.log",
    priority: 4
    params:
        src=digest("papers.disc.students"),
        recipe=json.dumps(DISC["students"]["recipe"]),
        seeds=DISC["students"]["seeds"],
        methods=DISC["students"]["methods"],
        levels=DISC["students"]["levels"],
        both=DISC["students"]["both"],
        test=DISC["students"]["test"],
        systems=DISC_SYSTEMS,
        splits=SPLITS,
    shell:
        "python -m papers.disc.students --shards {input.shards} --companions {params.systems} --splits {params.splits}"
        " --recipe {params.recipe:q} --seeds {params.seeds} --methods {params.methods} --levels {params.levels}"
        " --both {params.both} --test {params.test} --out {output} 2> >(tee {log} >&2)"


rule disc_corruptions:
    input:
        shards=lambda wildcards: disc_shards(wildcards.seed, [DISC_LADDER]),
        companion=f"{DISC_SYSTEMS}/faces-smile-{{seed}}.safetensors",
    output:
        f"{DISC_MEASURED}/{{seed}}/survival.parquet",
    log:
        f"{LOGS}/disc/corruptions-{{seed}}.log",
    priority: 4
    params:
        src=digest("papers.disc.corruptions"),
        systems=DISC_SYSTEMS,
    shell:
        "python -m papers.disc.corruptions --shards {input.shards} --companions {params.systems} --out {output}"
        " 2> >(tee {log} >&2)"


rule disc_measure:
    input:
        shards=lambda wildcards: disc_shards(wildcards.seed),
        hypotheses=lambda wildcards: (
            f"{DISC_BATCHES}/hypotheses-{wildcards.seed}.safetensors"
            if int(wildcards.seed) in DISC_HYPOTHETICAL
            else []
        ),
        systems=lambda wildcards: (
            [
                f"{DISC_SYSTEMS}/{name}-{wildcards.seed}.safetensors"
                for name in (*DISC["companions"], *DISC["regressors"])
                if int(wildcards.seed) in disc_seeds([disc_system(name)])
            ]
        ),
        splits=rules.splits.output,
        data=sorted(
            {file for world in disc_worlds(DISC_ALL) for file in data_of(world)}
        ),
        oracles=expand(
            f"{ORACLES}/{{world}}-{{judge}}.safetensors",
            world=disc_worlds(DISC_ALL),
            judge=ORACLE_NETS,
        ),
    output:
        expand(
            f"{DISC_MEASURED}/{{{{seed}}}}/{{name}}.parquet",
            name=["rows", "corrupted", "kid", "gate", "hypotheses"],
        ),
    log:
        f"{LOGS}/disc/measure-{{seed}}.log",
    priority: 4
    params:
        src=digest("papers.disc.measure"),
        systems=DISC_SYSTEMS,
        splits=SPLITS,
        oracles=ORACLES,
        folder=DISC_MEASURED,
    shell:
        "python -m papers.disc.measure --shards {input.shards} --hypotheses {input.hypotheses}"
        " --systems {params.systems} --splits {params.splits} --oracles {params.oracles}"
        " --out {params.folder}/{wildcards.seed} 2> >(tee {log} >&2)"


rule disc_cells:
    input:
        expand(
            f"{DISC_MEASURED}/{{seed}}/{{name}}.parquet",
            seed=config["seeds"],
            name=[
                "rows",
                "corrupted",
                "kid",
                "gate",
                "hypotheses",
                "students",
                "survival",
            ],
        ),
        costs=[
            shard.replace(".safetensors", ".cost.json")
            for seed in config["seeds"]
            for shard in disc_shards(seed)
        ],
    output:
        expand(
            f"{RESULTS}/disc/{{name}}.parquet",
            name=[
                "rows",
                "cells",
                "survival",
                "corrupted",
                "students",
                "hypotheses",
                "kid_sets",
                "kid",
                "premise",
            ],
        ),
        gate=f"{RESULTS}/disc/tables/oracle_gate.csv",
        cost=f"{WORK}/disc/cost.parquet",
    log:
        f"{LOGS}/disc/cells.log",
    priority: 3
    params:
        src=digest("papers.disc.cells"),
        measured=[f"{DISC_MEASURED}/{seed}" for seed in config["seeds"]],
        level=config["match_at"],
        folder=f"{RESULTS}/disc",
    shell:
        "python -m papers.disc.cells --measured {params.measured} --costs {input.costs} --level {params.level}"
        " --out {params.folder} --cost {output.cost} 2> >(tee {log} >&2)"


rule disc_verdicts:
    input:
        rules.disc_cells.output,
        claims="papers/disc/claims.yaml",
        gate=rules.disc_cells.output.gate,
    output:
        claims=f"{RESULTS}/disc/claims.json",
        tables=expand(
            f"{RESULTS}/disc/tables/{{name}}.csv",
            name=["tests", "methods", "strengths", "statuses"],
        ),
    log:
        f"{LOGS}/disc/verdicts.log",
    priority: 2
    params:
        src=digest("common.verdicts"),
        tables=[
            f"{name}={RESULTS}/disc/{name}.parquet"
            for name in (
                "cells",
                "survival",
                "corrupted",
                "students",
                "hypotheses",
                "kid_sets",
                "premise",
            )
        ],
        protocol=json.dumps(
            {
                "scale": scale,
                **{
                    key: config[key]
                    for key in ("seeds", "splits", "split_seed", "oracles", "match_at")
                },
                "disc": DISC,
                "metrics": [
                    digest(f"papers.disc.{module}")
                    for module in ("measure", "cells", "corruptions", "students")
                ],
                "judgement": digest("common.verdicts"),
                "methods": [
                    digest("papers.disc.shards"),
                    digest("papers.disc.hypotheses"),
                ],
                "training": [
                    digest("papers.disc.train"),
                    digest("common.classifiers.train"),
                ],
            }
        ),
        level=config["match_at"],
        rows=f"{RESULTS}/disc/rows.parquet",
        folder=f"{RESULTS}/disc",
    shell:
        "python -m common.verdicts --claims {input.claims} --rows {params.rows} --gate {input.gate}"
        " --tables {params.tables} --protocol {params.protocol:q} --level {params.level} --out {params.folder}"
        " > {log} 2> >(tee -a {log} >&2)"


rule disc_tables:
    input:
        rules.disc_cells.output,
    output:
        expand(f"{RESULTS}/disc/tables/{{name}}.csv", name=DISC_TABLES),
    log:
        f"{LOGS}/disc/tables.log",
    priority: 2
    params:
        src=digest("papers.disc.tables"),
        results=f"{RESULTS}/disc",
        folder=f"{RESULTS}/disc/tables",
    shell:
        "python -m papers.disc.tables --results {params.results} --out {params.folder}"
        " 2> >(tee {log} >&2)"


rule disc_grids:
    input:
        shards=disc_shards(config["seeds"][0]),
        hypotheses=f"{DISC_BATCHES}/hypotheses-{config['seeds'][0]}.safetensors",
        splits=rules.splits.output,
        data=sorted(
            {file for world in disc_worlds(DISC_ALL) for file in data_of(world)}
        ),
    output:
        expand(
            f"{FIGURES}/disc/{{name}}.{{suffix}}",
            name=DISC_GRIDS,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/disc/grids.log",
    priority: 2
    params:
        src=digest("papers.disc.grids"),
        folder=f"{FIGURES}/disc",
    shell:
        "python -m papers.disc.grids --shards {input.shards} --hypotheses {input.hypotheses} --out {params.folder}"
        " 2> >(tee {log} >&2)"


rule disc_figures:
    input:
        rules.disc_cells.output,
    output:
        expand(
            f"{FIGURES}/disc/{{name}}.{{suffix}}",
            name=DISC_PLOTS,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/disc/figures.log",
    priority: 2
    params:
        src=digest("papers.disc.figures"),
        results=f"{RESULTS}/disc",
        folder=f"{FIGURES}/disc",
    shell:
        "python -m papers.disc.figures --results {params.results} --out {params.folder} 2> >(tee {log} >&2)"


rule disc_results:
    input:
        RESULTS_OF["disc"],
