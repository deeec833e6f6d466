# The comparison: classifiers and generators → explain → measure → cells → verdicts → figures.
COMPARISON = config["comparison"]
COMPARED = f"{WORK}/comparison"
COMPARISON_RESULTS = f"{RESULTS}/comparison"
COMPARISON_TABLES = [
    "outcomes",
    "areas",
    "reliance",
    "causes",
    "realism",
    "audit",
    "sanity",
]
COMPARISON_PLOTS = ["outcomes", "paths", "areas", "audit"]
RESULTS_OF["comparison"] = [
    f"{COMPARISON_RESULTS}/claims.json",
    *[
        f"{COMPARISON_RESULTS}/tables/{name}.csv"
        for name in [
            *COMPARISON_TABLES,
            "shortcut_nets",
            "shortcuts",
            "shortcut_refused",
        ]
    ],
]
FIGURES_OF["comparison"] = [
    f"{FIGURES}/comparison/{name}.png"
    for name in ["side_by_side", *COMPARISON_PLOTS, "verdicts"]
]


def compared_classifiers(world):
    """The folder of a world's classifiers: the comparison's own, or those that papers share."""
    return (
        f"{COMPARED}/classifiers/{world}"
        if world in COMPARISON["classifiers"]
        else f"{CLASSIFIERS}/{world}"
    )


def compared_kinds(world, seed):
    """The classifiers of a world that are explained in a training seed."""
    kinds = COMPARISON["worlds"][world]["classifiers"]
    return [kind for kind, seeds in kinds.items() if int(seed) in seeds]


def compared_checkpoints(worlds, seed):
    """The files of the explained classifiers of a training seed."""
    return [
        f"{compared_classifiers(world)}/{kind}-{seed}.safetensors"
        for world in worlds
        for kind in compared_kinds(world, seed)
    ]


def compared_worlds(seed):
    """What every world asks for in a training seed; the runner-up class in the first alone."""
    first = int(seed) == config["seeds"][0]
    return {
        world: {
            **settings,
            "classifiers": compared_kinds(world, seed),
            "runner_up": settings.get("runner_up", {}) if first else {},
        }
        for world, settings in COMPARISON["worlds"].items()
    }


def compared_methods(names):
    """Methods by name, as the config file has them."""
    return {name: COMPARISON["methods"][name] for name in names}


def comparison_mistakes():
    """What a config file says of the methods that cannot be meant."""
    methods, jobs = COMPARISON["methods"], sum(COMPARISON["jobs"], [])
    places = {*COMPARISON["worlds"], "zoo"}
    yield from (
        f"job of {name}: no such method" for name in jobs if name not in methods
    )
    yield from (
        f"{name}: in {jobs.count(name)} jobs"
        for name in methods
        if jobs.count(name) != 1
    )
    for name, method in methods.items():
        strange = {*method["strengths"], *method.get("prepare", {})} - places
        yield from (
            f"{name}: {world} is none of {', '.join(sorted(places))}"
            for world in sorted(strange)
        )


if mistakes := list(comparison_mistakes()):
    sys.exit(f"error: config/{scale}.yaml, comparison: {'; '.join(mistakes)}")

COMPARED_FOLDERS = [
    f"{world}={compared_classifiers(world)}" for world in COMPARISON["worlds"]
]
COMPARED_DATA = sorted(
    {file for world in COMPARISON["worlds"] for file in data_of(world)}
)
PREPARED_METHODS = [
    name for name, method in COMPARISON["methods"].items() if "prepare" in method
]


def comparison_source(module, names):
    """The digest of a job and of the modules of the methods that it imports by name."""
    modules = sorted({method["module"] for method in compared_methods(names).values()})
    return [digest(name) for name in [module, *modules]]


for seed in config["seeds"]:

    rule:
        name:
            f"comparison_classifiers_{seed}"
        input:
            splits=[f"{SPLITS}/{world}.parquet" for world in COMPARISON["classifiers"]],
        output:
            [
                f"{COMPARED}/classifiers/{world}/{kind}-{seed}.safetensors"
                for world in COMPARISON["classifiers"]
                for kind in compared_kinds(world, seed)
            ],
        log:
            f"{LOGS}/comparison/classifiers-{seed}.log",
        # explaining waits for it
        priority: 6
        params:
            src=digest("common.classifiers.train"),
            recipes=json.dumps(
                {
                    world: {kind: kinds[kind] for kind in compared_kinds(world, seed)}
                    for world, kinds in COMPARISON["classifiers"].items()
                }
            ),
            splits=SPLITS,
            seed=seed,
            folder=f"{COMPARED}/classifiers",
        shell:
            "python -m common.classifiers.train classifiers --splits {params.splits} --recipes {params.recipes:q}"
            " --seed {params.seed} --out {params.folder} 2> >(tee {log} >&2)"


def compared_vae(world, seed):
    """The file of a VAE that papers share, the recipe of one, or nothing."""
    vae = COMPARISON["worlds"][world].get("vae")
    return f"{GENERATORS}/{vae}-{seed}.safetensors" if isinstance(vae, str) else vae


PREPARED = [f"{COMPARED}/prepared/{world}-{{seed}}" for world in COMPARISON["worlds"]]


rule comparison_prepare:
    input:
        lambda wildcards: compared_checkpoints(COMPARISON["worlds"], wildcards.seed),
        COMPARED_DATA,
        vae=[
            vae
            for world in COMPARISON["worlds"]
            for vae in [compared_vae(world, "{seed}")]
            if isinstance(vae, str)
        ],
        splits=[f"{SPLITS}/{world}.parquet" for world in COMPARISON["worlds"]],
    output:
        [directory(folder) for folder in PREPARED],
    log:
        f"{LOGS}/comparison/prepare-{{seed}}.log",
    priority: 6
    params:
        src=comparison_source("comparison.train", PREPARED_METHODS),
        worlds=lambda wildcards: json.dumps(
            {
                world: {
                    "classifiers": compared_kinds(world, wildcards.seed),
                    "vae": compared_vae(world, wildcards.seed),
                }
                for world in COMPARISON["worlds"]
            }
        ),
        methods=json.dumps(compared_methods(PREPARED_METHODS)),
        checkpoints=COMPARED_FOLDERS,
        splits=SPLITS,
        folder=f"{COMPARED}/prepared",
    shell:
        "python -m comparison.train --worlds {params.worlds:q} --methods {params.methods:q}"
        " --checkpoints {params.checkpoints} --splits {params.splits} --seed {wildcards.seed} --out {params.folder}"
        " 2> >(tee {log} >&2)"


for job in COMPARISON["jobs"]:
    name = job[0].replace("-", "_")

    rule:
        name:
            f"comparison_explain_{name}"
        input:
            lambda wildcards: compared_checkpoints(COMPARISON["worlds"], wildcards.seed),
            COMPARED_DATA,
            prepared=PREPARED,
            splits=[f"{SPLITS}/{world}.parquet" for world in COMPARISON["worlds"]],
        output:
            f"{COMPARED}/batches/{name}-{{seed}}.safetensors",
            f"{COMPARED}/batches/{name}-{{seed}}.cost.json",
        log:
            f"{LOGS}/comparison/explain-{name}-{{seed}}.log",
        priority: 5
        params:
            src=comparison_source("comparison.explain", job),
            methods=json.dumps(compared_methods(job)),
            worlds=lambda wildcards: json.dumps(compared_worlds(wildcards.seed)),
            anchors="--anchors" if job == COMPARISON["jobs"][0] else "",
            checkpoints=COMPARED_FOLDERS,
            prepared=f"{COMPARED}/prepared",
            splits=SPLITS,
        shell:
            "python -m comparison.explain --methods {params.methods:q} --worlds {params.worlds:q} {params.anchors}"
            " --checkpoints {params.checkpoints} --prepared {params.prepared} --splits {params.splits}"
            " --seed {wildcards.seed} --out {output[0]} > {log} 2> >(tee -a {log} >&2)"


COMPARED_JOBS = [job[0].replace("-", "_") for job in COMPARISON["jobs"]]
COMPARED_MEASURES = ["rows", "points", "finals", "cuts", "drawings", "kid", "gate"]


rule comparison_measure:
    input:
        lambda wildcards: compared_checkpoints(COMPARISON["worlds"], wildcards.seed),
        COMPARED_DATA,
        shards=[
            f"{COMPARED}/batches/{job}-{{seed}}.safetensors" for job in COMPARED_JOBS
        ],
        oracles=[
            f"{ORACLES}/{world}-{judge}.safetensors"
            for world in COMPARISON["worlds"]
            for judge in ORACLE_NETS
        ],
        autoencoders=[
            f"{AUTOENCODERS}/{world}.safetensors"
            for world in COMPARISON["worlds"]
            if world in config["autoencoders"]
        ],
        splits=[f"{SPLITS}/{world}.parquet" for world in COMPARISON["worlds"]],
    output:
        [f"{COMPARED}/measured/{{seed}}/{name}.parquet" for name in COMPARED_MEASURES],
    log:
        f"{LOGS}/comparison/measure-{{seed}}.log",
    priority: 4
    params:
        src=digest("comparison.measure"),
        checkpoints=COMPARED_FOLDERS,
        oracles=ORACLES,
        autoencoders=[
            f"{world}={AUTOENCODERS}/{world}.safetensors"
            for world in COMPARISON["worlds"]
            if world in config["autoencoders"]
        ],
        splits=SPLITS,
        level=config["match_at"],
        untargeted=[
            name
            for name, method in COMPARISON["methods"].items()
            if method.get("untargeted")
        ],
        folder=f"{COMPARED}/measured/{{seed}}",
    shell:
        "python -m comparison.measure --shards {input.shards} --checkpoints {params.checkpoints}"
        " --oracles {params.oracles} --autoencoders {params.autoencoders} --splits {params.splits}"
        " --untargeted {params.untargeted} --level {params.level} --seed {wildcards.seed} --out {params.folder} 2> >(tee {log} >&2)"


rule comparison_cells:
    input:
        [
            f"{COMPARED}/measured/{seed}/{name}.parquet"
            for seed in config["seeds"]
            for name in COMPARED_MEASURES
        ],
        costs=[
            f"{COMPARED}/batches/{job}-{seed}.cost.json"
            for seed in config["seeds"]
            for job in COMPARED_JOBS
        ],
    output:
        [
            f"{COMPARISON_RESULTS}/{name}.parquet"
            for name in ("rows", "paths", "points", "cuts", "kid")
        ],
        tables=[
            f"{COMPARISON_RESULTS}/tables/{name}.csv"
            for name in ("gate", "drawings", "facts", "refused")
        ],
        cost=f"{COMPARED}/cost.parquet",
    log:
        f"{LOGS}/comparison/cells.log",
    priority: 3
    params:
        src=digest("comparison.cells"),
        measured=[f"{COMPARED}/measured/{seed}" for seed in config["seeds"]],
        level=config["match_at"],
        folder=COMPARISON_RESULTS,
    shell:
        "python -m comparison.cells --measured {params.measured} --costs {input.costs} --level {params.level}"
        " --out {params.folder} --cost {output.cost} 2> >(tee {log} >&2)"


rule comparison_verdicts:
    input:
        rules.comparison_cells.output,
        claims="comparison/claims.yaml",
    output:
        f"{COMPARISON_RESULTS}/claims.json",
        [
            f"{COMPARISON_RESULTS}/tables/{name}.csv"
            for name in ("tests", "methods", "strengths", "statuses")
        ],
    log:
        f"{LOGS}/comparison/verdicts.log",
    priority: 2
    params:
        src=digest("comparison.verdicts"),
        protocol=json.dumps(
            {
                "scale": scale,
                "seeds": config["seeds"],
                "split_seed": config["split_seed"],
                "splits": {
                    world: config["splits"][world] for world in COMPARISON["worlds"]
                },
                "oracles": {
                    world: config["oracles"][world] for world in COMPARISON["worlds"]
                },
                "match_at": config["match_at"],
                "classifiers": {
                    world: config["classifiers"][world]
                    for world in COMPARISON["worlds"]
                    if world not in COMPARISON["classifiers"]
                },
                "vae": {
                    settings["vae"]: config["vae"][settings["vae"]]
                    for settings in COMPARISON["worlds"].values()
                    if isinstance(settings.get("vae"), str)
                },
                "autoencoders": config["autoencoders"],
                "comparison": COMPARISON,
                "metrics": [
                    digest(f"comparison.{module}")
                    for module in ("measure", "cells", "sanity", "shortcuts")
                ],
                "judgement": digest("comparison.verdicts"),
                "explaining": comparison_source(
                    "comparison.explain", COMPARISON["methods"]
                ),
                "training": [
                    digest(module)
                    for module in (
                        "comparison.train",
                        "comparison.zoo",
                        "common.classifiers.train",
                        "common.generators.train",
                        "common.metrics.im1",
                    )
                ],
            }
        ),
        level=config["match_at"],
        folder=COMPARISON_RESULTS,
    shell:
        "python -m comparison.verdicts --claims {input.claims} --results {params.folder}"
        " --protocol {params.protocol:q} --level {params.level} > {log} 2> >(tee -a {log} >&2)"


rule comparison_sanity:
    input:
        compared_checkpoints(
            [COMPARISON["sanity"]["world"]], COMPARISON["sanity"]["seed"]
        ),
        shards=[
            f"{COMPARED}/batches/{job}-{COMPARISON['sanity']['seed']}.safetensors"
            for job in COMPARED_JOBS
        ],
        prepared=f"{COMPARED}/prepared/{COMPARISON['sanity']['world']}-{COMPARISON['sanity']['seed']}",
        splits=f"{SPLITS}/{COMPARISON['sanity']['world']}.parquet",
    output:
        f"{COMPARISON_RESULTS}/sanity.parquet",
        folder=directory(f"{COMPARED}/sanity"),
    log:
        f"{LOGS}/comparison/sanity.log",
    # as long as measuring takes; the tables wait for both
    priority: 5
    params:
        src=comparison_source("comparison.sanity", COMPARISON["methods"]),
        world=COMPARISON["sanity"]["world"],
        kind=COMPARISON["sanity"]["kind"],
        n=COMPARISON["sanity"]["n"],
        seed=COMPARISON["sanity"]["seed"],
        methods=json.dumps(COMPARISON["methods"]),
        checkpoints=compared_classifiers(COMPARISON["sanity"]["world"]),
        splits=SPLITS,
        level=config["match_at"],
    shell:
        "python -m comparison.sanity --world {params.world} --kind {params.kind} --n {params.n}"
        " --methods {params.methods:q} --shards {input.shards} --checkpoints {params.checkpoints}"
        " --prepared {input.prepared} --splits {params.splits} --level {params.level} --seed {params.seed}"
        " --folder {output.folder} --out {output[0]} 2> >(tee {log} >&2)"


rule comparison_zoo:
    input:
        key="comparison/zoo.key",
    output:
        f"{COMPARED}/zoo.safetensors",
    log:
        f"{LOGS}/comparison/zoo.log",
    priority: 5
    params:
        src=digest("comparison.zoo"),
        recipe=json.dumps(COMPARISON["zoo"]["recipe"]),
        seal=COMPARISON["zoo"]["seal"],
    shell:
        "python -m comparison.zoo --recipe {params.recipe:q} --key {input.key} --seal {params.seal} --out {output}"
        " 2> >(tee {log} >&2)"


rule comparison_shortcuts:
    input:
        zoo=rules.comparison_zoo.output,
        key="comparison/zoo.key",
    output:
        [
            f"{COMPARISON_RESULTS}/tables/{name}.csv"
            for name in ("shortcut_nets", "shortcuts", "shortcut_refused")
        ],
    log:
        f"{LOGS}/comparison/shortcuts.log",
    # nothing waits for it: it fills the second core while the last seed is measured
    priority: 3
    params:
        src=comparison_source("comparison.shortcuts", COMPARISON["methods"]),
        methods=json.dumps(COMPARISON["methods"]),
        seal=COMPARISON["zoo"]["seal"],
        n=COMPARISON["zoo"]["n"],
        seed=COMPARISON["zoo"]["recipe"]["seed"],
        level=config["match_at"],
        folder=f"{COMPARISON_RESULTS}/tables",
    shell:
        "python -m comparison.shortcuts --zoo {input.zoo} --methods {params.methods:q} --key {input.key}"
        " --seal {params.seal} --n {params.n} --level {params.level} --seed {params.seed} --out {params.folder}"
        " 2> >(tee {log} >&2)"


rule comparison_tables:
    input:
        rules.comparison_cells.output,
        rules.comparison_sanity.output,
    output:
        [f"{COMPARISON_RESULTS}/tables/{name}.csv" for name in COMPARISON_TABLES],
    log:
        f"{LOGS}/comparison/tables.log",
    priority: 2
    params:
        src=comparison_source("comparison.tables", []),
        methods=json.dumps(COMPARISON["methods"]),
        results=COMPARISON_RESULTS,
        folder=f"{COMPARISON_RESULTS}/tables",
    shell:
        "python -m comparison.tables --results {params.results} --methods {params.methods:q} --out {params.folder}"
        " 2> >(tee {log} >&2)"


rule comparison_figures:
    input:
        points=f"{COMPARISON_RESULTS}/points.parquet",
        paths=f"{COMPARISON_RESULTS}/paths.parquet",
        tables=[
            f"{COMPARISON_RESULTS}/tables/{name}.csv"
            for name in ("outcomes", "areas", "audit")
        ],
    output:
        [
            f"{FIGURES}/comparison/{name}.{suffix}"
            for name in COMPARISON_PLOTS
            for suffix in ("png", "svg")
        ],
    log:
        f"{LOGS}/comparison/figures.log",
    priority: 2
    params:
        src=digest("comparison.figures"),
        results=COMPARISON_RESULTS,
        folder=f"{FIGURES}/comparison",
    shell:
        "python -m comparison.figures --results {params.results} --out {params.folder} 2> >(tee {log} >&2)"


rule comparison_grids:
    input:
        shards=[
            f"{COMPARED}/batches/{job}-{config['seeds'][0]}.safetensors"
            for job in COMPARED_JOBS
        ],
        data=COMPARED_DATA,
    output:
        report(
            f"{FIGURES}/comparison/side_by_side.png",
            category="Side by side",
            labels={"part": "comparison"},
        ),
        f"{FIGURES}/comparison/side_by_side.svg",
    log:
        f"{LOGS}/comparison/grids.log",
    priority: 2
    params:
        src=digest("comparison.grids"),
        level=config["match_at"],
    shell:
        "python -m comparison.grids --shards {input.shards} --level {params.level} --out {output[0]}"
        " 2> >(tee {log} >&2)"


rule comparison_results:
    input:
        RESULTS_OF["comparison"],
