# FIDO: train → explain → measure → verdicts → figures.
FIDO = config["fido"]
FIDO_SYSTEMS = f"{WORK}/fido/systems"
FIDO_BATCHES = f"{WORK}/fido/batches"
FIDO_MEASURED = f"{WORK}/fido/measured"
FIDO_PANEL = "scenes"
FIDO_TABLES = [
    "table1",
    "maps",
    "map_statuses",
    "circularity",
    "recovery",
    "likeness",
    "sweeps",
    "trends",
]
FIDO_GRIDS = [
    "fig2-7-infills",
    "fig3-holes",
    "fig4-16-sufficiency",
    "fig6-ssr-sdr",
    "fig9-architectures",
    "baselines",
    "fig13-draws",
    "fig11-lambda",
    "fig12-grid",
    "fig14-variation",
    "tied",
]
FIDO_PLOTS = [
    "fig8-overflow",
    "fig10-suppression",
    "circularity",
    "fig11-12-14-sweeps",
    "fig15-recovery",
]
FIGURES_OF["fido"] = [
    f"{FIGURES}/fido/{name}.png"
    for name in [*FIDO_GRIDS, *FIDO_PLOTS, "photos", "verdicts"]
]
RESULTS_OF["fido"] = [
    f"{RESULTS}/fido/claims.json",
    *[f"{RESULTS}/fido/tables/{name}.csv" for name in FIDO_TABLES],
]


def fido_seeds(parts):
    """The training seeds that all of some entries or recipes have."""
    return [
        seed
        for seed in config["seeds"]
        if all(seed in part.get("seeds", config["seeds"]) for part in parts)
    ]


def fido_classifiers(seed):
    """The recipes of the classifiers of one training seed, by world and kind."""
    found = {}
    for world, kinds in FIDO["classifiers"].items():
        for kind, recipe in kinds.items():
            if int(seed) in fido_seeds([recipe]):
                fields = {key: value for key, value in recipe.items() if key != "seeds"}
                found.setdefault(world, {})[kind] = fields
    return found


def fido_systems(seed):
    """The files of classifiers and maskers of one training seed."""
    return [
        f"{FIDO_SYSTEMS}/{seed}/{world}-{kind}.safetensors"
        for world, kinds in fido_classifiers(seed).items()
        for kind in [*kinds, *(["masker"] if world in FIDO["maskers"] else [])]
    ]


def fido_entries(job):
    """The entries of the groups that one job explains."""
    return [entry for group in job for entry in FIDO["groups"][group]]


def fido_worlds(parts):
    """The worlds of some entries."""
    return sorted({part["world"] for part in parts})


def fido_infillers(worlds):
    """The files of the learned in-fillers of some worlds."""
    return [
        f"{GENERATORS}/{name}.safetensors"
        for name, recipe in config["infillers"].items()
        if recipe["world"] in worlds
    ]


def fido_shards(seed):
    """The files of shards of one training seed."""
    return [
        f"{FIDO_BATCHES}/{'_'.join(job)}-{seed}.safetensors"
        for job in FIDO["jobs"]
        if int(seed) in fido_seeds(fido_entries(job))
    ]


FIDO_SHARDS = [shard for seed in config["seeds"] for shard in fido_shards(seed)]
FIDO_FOLDERS = [
    shard.replace(FIDO_BATCHES, FIDO_MEASURED).removesuffix(".safetensors")
    for shard in FIDO_SHARDS
]
FIDO_ALL = fido_worlds([entry for job in FIDO["jobs"] for entry in fido_entries(job)])


for seed in config["seeds"]:

    rule:
        name:
            f"fido_train_{seed}"
        input:
            splits=[f"{SPLITS}/{world}.parquet" for world in fido_classifiers(seed)],
        output:
            fido_systems(seed),
        log:
            f"{LOGS}/fido/train-{seed}.log",
        priority: 7
        params:
            src=digest("papers.fido.train"),
            recipes=json.dumps(fido_classifiers(seed)),
            maskers=json.dumps(FIDO["maskers"]),
            seed=seed,
            splits=SPLITS,
            folder=f"{FIDO_SYSTEMS}/{seed}",
        shell:
            "python -m papers.fido.train --recipes {params.recipes:q} --maskers {params.maskers:q}"
            " --splits {params.splits} --seed {params.seed} --out {params.folder} 2> >(tee {log} >&2)"


for job in FIDO["jobs"]:
    name = "_".join(job)
    entries = fido_entries(job)
    worlds = fido_worlds(entries)

    rule:
        name:
            f"fido_explain_{name}"
        input:
            splits=[f"{SPLITS}/{world}.parquet" for world in worlds],
            systems=lambda wildcards: fido_systems(wildcards.seed),
            infillers=fido_infillers(worlds),
        output:
            f"{FIDO_BATCHES}/{name}-{{seed}}.safetensors",
            f"{FIDO_BATCHES}/{name}-{{seed}}.cost.json",
        log:
            f"{LOGS}/fido/explain/{name}-{{seed}}.log",
        # before anything is measured: the shortest jobs, measures of what one training seed has alone, come last
        priority: 6
        params:
            src=digest("papers.fido.shards"),
            entries=json.dumps(entries),
            recipes=json.dumps({world: FIDO["recipes"][world] for world in worlds}),
            systems=FIDO_SYSTEMS,
            infillers=GENERATORS,
            splits=SPLITS,
        shell:
            "python -m papers.fido.shards --entries {params.entries:q} --recipes {params.recipes:q}"
            " --systems {params.systems}/{wildcards.seed} --infillers {params.infillers} --splits {params.splits}"
            " --seed {wildcards.seed} --out {output[0]} 2> >(tee {log} >&2)"

    rule:
        name:
            f"fido_measure_{name}"
        input:
            shards=f"{FIDO_BATCHES}/{name}-{{seed}}.safetensors",
            systems=lambda wildcards: fido_systems(wildcards.seed),
            infillers=fido_infillers(worlds),
            diffusion=f"{GENERATORS}/scenes-diffusion.safetensors",
            splits=[f"{SPLITS}/{world}.parquet" for world in worlds],
            oracles=expand(
                f"{ORACLES}/{FIDO_PANEL}-{{judge}}.safetensors", judge=ORACLE_NETS
            ),
        output:
            expand(
                f"{FIDO_MEASURED}/{name}-{{{{seed}}}}/{{table}}.parquet",
                table=["rows", "maps", "suppression", "recovery", "gate"],
            ),
        log:
            f"{LOGS}/fido/measure/{name}-{{seed}}.log",
        priority: 5 if fido_seeds(entries) == config["seeds"] else 4
        params:
            src=digest("papers.fido.measure"),
            settings=json.dumps(FIDO["measure"]),
            systems=FIDO_SYSTEMS,
            infillers=GENERATORS,
            splits=SPLITS,
            oracles=ORACLES,
            panel=FIDO_PANEL,
            folder=f"{FIDO_MEASURED}/{name}",
        shell:
            "python -m papers.fido.measure --shards {input.shards} --settings {params.settings:q}"
            " --systems {params.systems}/{wildcards.seed} --infillers {params.infillers} --splits {params.splits}"
            " --oracles {params.oracles} --panel {params.panel} --out {params.folder}-{wildcards.seed}"
            " 2> >(tee {log} >&2)"


rule fido_likeness:
    input:
        FIDO_SHARDS,
    output:
        f"{FIDO_MEASURED}/likeness.parquet",
    log:
        f"{LOGS}/fido/likeness.log",
    priority: 3
    params:
        src=digest("papers.fido.likeness"),
    shell:
        "python -m papers.fido.likeness --shards {input} --out {output} 2> >(tee {log} >&2)"


rule fido_cells:
    input:
        expand(
            "{folder}/{name}.parquet",
            folder=FIDO_FOLDERS,
            name=["rows", "maps", "suppression", "recovery", "gate"],
        ),
        likeness=f"{FIDO_MEASURED}/likeness.parquet",
        costs=[shard.replace(".safetensors", ".cost.json") for shard in FIDO_SHARDS],
    output:
        expand(
            f"{RESULTS}/fido/{{name}}.parquet",
            name=[
                "rows",
                "maps",
                "suppression",
                "recovery",
                "likeness",
                "sweeps",
                "trends",
            ],
        ),
        infills=f"{RESULTS}/fido/tables/infills.csv",
        gate=f"{RESULTS}/fido/tables/oracle_gate.csv",
        cost=f"{WORK}/fido/cost.parquet",
    log:
        f"{LOGS}/fido/cells.log",
    priority: 3
    params:
        src=digest("papers.fido.cells"),
        measured=FIDO_FOLDERS,
        recipe=json.dumps(FIDO["recipes"][FIDO_PANEL]),
        folder=f"{RESULTS}/fido",
    shell:
        "python -m papers.fido.cells --measured {params.measured} --likeness {input.likeness} --costs {input.costs} --recipe {params.recipe:q}"
        " --out {params.folder} --cost {output.cost} 2> >(tee {log} >&2)"


rule fido_verdicts:
    input:
        rules.fido_cells.output,
        claims="papers/fido/claims.yaml",
        gate=rules.fido_cells.output.gate,
    output:
        claims=f"{RESULTS}/fido/claims.json",
        tables=expand(
            f"{RESULTS}/fido/tables/{{name}}.csv",
            name=["tests", "methods", "strengths", "statuses"],
        ),
    log:
        f"{LOGS}/fido/verdicts.log",
    priority: 2
    params:
        src=digest("common.verdicts"),
        tables=[
            f"{name}={RESULTS}/fido/{name}.parquet"
            for name in ("maps", "suppression", "recovery", "likeness", "trends")
        ],
        protocol=json.dumps(
            {
                "scale": scale,
                **{
                    key: config[key]
                    for key in ("seeds", "split_seed", "match_at", "infillers")
                },
                "splits": {world: config["splits"][world] for world in FIDO_ALL},
                "oracles": config["oracles"][FIDO_PANEL],
                "diffusion": config["diffusion"],
                "fido": {key: FIDO[key] for key in FIDO if key != "photos"},
                "metrics": [
                    digest(f"papers.fido.{module}")
                    for module in ("measure", "likeness", "cells")
                ],
                "judgement": digest("common.verdicts"),
                "methods": [digest("papers.fido.shards")],
                "training": [
                    digest("papers.fido.train"),
                    digest("common.generators.train_infill"),
                    digest("common.generators.train"),
                    digest("common.classifiers.train"),
                ],
            }
        ),
        level=config["match_at"],
        rows=f"{RESULTS}/fido/rows.parquet",
        folder=f"{RESULTS}/fido",
    shell:
        "python -m common.verdicts --claims {input.claims} --rows {params.rows} --gate {input.gate}"
        " --tables {params.tables} --protocol {params.protocol:q} --level {params.level} --out {params.folder}"
        " > {log} 2> >(tee -a {log} >&2)"


rule fido_tables:
    input:
        rules.fido_cells.output,
    output:
        expand(f"{RESULTS}/fido/tables/{{name}}.csv", name=FIDO_TABLES),
    log:
        f"{LOGS}/fido/tables.log",
    priority: 2
    params:
        src=digest("papers.fido.tables"),
        results=f"{RESULTS}/fido",
        folder=f"{RESULTS}/fido/tables",
    shell:
        "python -m papers.fido.tables --results {params.results} --out {params.folder} 2> >(tee {log} >&2)"


rule fido_grids:
    input:
        shards=fido_shards(config["seeds"][0]),
        systems=fido_systems(config["seeds"][0]),
        infillers=fido_infillers(FIDO_ALL),
        splits=[f"{SPLITS}/{world}.parquet" for world in FIDO_ALL],
    output:
        expand(
            f"{FIGURES}/fido/{{name}}.{{suffix}}",
            name=FIDO_GRIDS,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/fido/grids.log",
    priority: 2
    params:
        src=digest("papers.fido.grids"),
        systems=f"{FIDO_SYSTEMS}/{config['seeds'][0]}",
        splits=SPLITS,
        infillers=GENERATORS,
        recipe=json.dumps(FIDO["recipes"][FIDO_PANEL]),
        folder=f"{FIGURES}/fido",
    shell:
        "python -m papers.fido.grids --shards {input.shards} --systems {params.systems} --splits {params.splits}"
        " --infillers {params.infillers} --recipe {params.recipe:q} --out {params.folder} 2> >(tee {log} >&2)"


rule fido_figures:
    input:
        rules.fido_cells.output,
    output:
        expand(
            f"{FIGURES}/fido/{{name}}.{{suffix}}",
            name=FIDO_PLOTS,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/fido/figures.log",
    priority: 2
    params:
        src=digest("papers.fido.figures"),
        results=f"{RESULTS}/fido",
        folder=f"{FIGURES}/fido",
    shell:
        "python -m papers.fido.figures --results {params.results} --out {params.folder} 2> >(tee {log} >&2)"


rule fido_photos:
    input:
        "data/efficientnet-lite0.pth",
        photos=[f"data/{name}" for name in FIDO["photos"]["images"]],
    output:
        expand(f"{FIGURES}/fido/photos.{{suffix}}", suffix=["png", "svg"]),
    log:
        f"{LOGS}/fido/photos.log",
    priority: 1
    params:
        src=digest("papers.fido.photos"),
        recipe=json.dumps(FIDO["photos"]),
        folder=f"{FIGURES}/fido",
    shell:
        "python -m papers.fido.photos --recipe {params.recipe:q} --out {params.folder} 2> >(tee {log} >&2)"


rule fido_results:
    input:
        RESULTS_OF["fido"],
