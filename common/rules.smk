# What more than one paper needs: data files, split tables, classifiers, oracle panels, generators, class autoencoders,
# the figure of its verdicts.


wildcard_constraints:
    world="[a-z-]+",
    seed="[0-9]+",
    paper="[a-z]+",


SPLITS = f"{WORK}/common/splits"
CLASSIFIERS = f"{WORK}/common/classifiers"
ORACLES = f"{WORK}/common/oracles"
GENERATORS = f"{WORK}/common/generators"
AUTOENCODERS = f"{WORK}/common/autoencoders"
ORACLE_NETS = [*PANEL, "features"]


def data_of(world):
    """The data files behind a world; rendered worlds have none."""
    return [f"data/{name}" for name in config["data"].get(world, [])]


def checkpoints(world, kinds, seeds):
    """The files of trained classifiers."""
    return expand(
        f"{CLASSIFIERS}/{world}/{{kind}}-{{seed}}.safetensors", kind=kinds, seed=seeds
    )


rule fetch:
    input:
        "data/{name}.dvc",
    output:
        "data/{name}",
    wildcard_constraints:
        name=r"[^/]+(?<!\.dvc)",
    priority: 9
    params:
        src=digest("common.data.fetch"),
    shell:
        "python -m common.data.fetch {output}"


rule splits:
    input:
        sorted({file for world in config["splits"] for file in data_of(world)}),
    output:
        expand(f"{SPLITS}/{{world}}.parquet", world=config["splits"]),
    log:
        f"{LOGS}/common/splits.log",
    priority: 9
    params:
        src=digest("common.data.split"),
        sizes=json.dumps(config["splits"]),
        seed=config["split_seed"],
        folder=SPLITS,
    shell:
        "python -m common.data.split --sizes {params.sizes:q} --seed {params.seed} --out {params.folder}"
        " 2> >(tee {log} >&2)"


rule classifiers:
    input:
        splits=rules.splits.output,
        data=sorted(
            {file for world in config["classifiers"] for file in data_of(world)}
            | {
                f"data/{recipe['file']}"
                for kinds in config["classifiers"].values()
                for recipe in kinds.values()
                if "file" in recipe
            }
        ),
    output:
        [
            file
            for world, kinds in config["classifiers"].items()
            for file in checkpoints(world, kinds, ["{seed}"])
        ],
    log:
        f"{LOGS}/common/classifiers-{{seed}}.log",
    priority: 3
    params:
        src=digest("common.classifiers.train"),
        recipes=json.dumps(config["classifiers"]),
        splits=SPLITS,
        folder=CLASSIFIERS,
    shell:
        "python -m common.classifiers.train classifiers --splits {params.splits} --recipes {params.recipes:q}"
        " --seed {wildcards.seed} --out {params.folder} 2> >(tee {log} >&2)"


rule oracles:
    input:
        splits=f"{SPLITS}/{{world}}.parquet",
        data=lambda wildcards: data_of(wildcards.world),
    output:
        [f"{ORACLES}/{{world}}-{judge}.safetensors" for judge in ORACLE_NETS],
    log:
        f"{LOGS}/common/oracles-{{world}}.log",
    priority: 4
    params:
        src=digest("common.classifiers.train"),
        recipes=lambda wildcards: json.dumps(
            {wildcards.world: config["oracles"][wildcards.world]}
        ),
        splits=SPLITS,
        folder=ORACLES,
    shell:
        "python -m common.classifiers.train oracles --splits {params.splits} --recipes {params.recipes:q}"
        " --out {params.folder} 2> >(tee {log} >&2)"


rule diffusion:
    input:
        splits=f"{SPLITS}/{{world}}.parquet",
    output:
        f"{GENERATORS}/{{world}}-diffusion.safetensors",
    log:
        f"{LOGS}/common/generators/{{world}}-diffusion.log",
    priority: 7
    params:
        src=digest("common.generators.train"),
        recipes=lambda wildcards: json.dumps(
            {wildcards.world: config["diffusion"][wildcards.world]}
        ),
        splits=SPLITS,
        folder=GENERATORS,
    shell:
        "python -m common.generators.train diffusion --splits {params.splits} --recipes {params.recipes:q}"
        " --out {params.folder} 2> >(tee {log} >&2)"


for job in config["vae_jobs"]:
    name = "_".join(job)

    rule:
        name:
            f"vae_{name.replace('-', '_')}"
        input:
            splits=sorted(
                {f"{SPLITS}/{config['vae'][vae]['world']}.parquet" for vae in job}
            ),
            data=sorted(
                {file for vae in job for file in data_of(config["vae"][vae]["world"])}
            ),
        output:
            [
                f"{GENERATORS}/{vae}-{seed}.safetensors"
                for vae in job
                for seed in config["vae"][vae]["seeds"]
            ],
        log:
            f"{LOGS}/common/generators/{name}.log",
        priority: 7 if job == config["vae_jobs"][0] else 5
        params:
            src=digest("common.generators.train"),
            recipes=json.dumps({vae: config["vae"][vae] for vae in job}),
            splits=SPLITS,
            folder=GENERATORS,
        shell:
            "python -m common.generators.train vae --splits {params.splits} --recipes {params.recipes:q}"
            " --out {params.folder} 2> >(tee {log} >&2)"


rule infiller:
    input:
        splits=lambda wildcards: (
            f"{SPLITS}/{config['infillers'][wildcards.infiller]['world']}.parquet"
        ),
    output:
        f"{GENERATORS}/{{infiller}}.safetensors",
    log:
        f"{LOGS}/common/generators/{{infiller}}.log",
    wildcard_constraints:
        infiller="|".join(config["infillers"]),
    priority: 7
    params:
        src=digest("common.generators.train_infill"),
        recipes=lambda wildcards: json.dumps(
            {wildcards.infiller: config["infillers"][wildcards.infiller]}
        ),
        splits=SPLITS,
        folder=GENERATORS,
    shell:
        "python -m common.generators.train_infill --splits {params.splits} --recipes {params.recipes:q}"
        " --out {params.folder} 2> >(tee {log} >&2)"


rule class_autoencoders:
    input:
        splits=f"{SPLITS}/{{world}}.parquet",
        data=lambda wildcards: data_of(wildcards.world),
    output:
        f"{AUTOENCODERS}/{{world}}.safetensors",
    log:
        f"{LOGS}/common/autoencoders-{{world}}.log",
    priority: 4
    params:
        src=digest("common.metrics.im1"),
        recipe=lambda wildcards: json.dumps(config["autoencoders"][wildcards.world]),
    shell:
        "python -m common.metrics.im1 --world {wildcards.world} --splits {input.splits} --recipe {params.recipe:q}"
        " --out {output} 2> >(tee {log} >&2)"


rule verdict_figure:
    input:
        f"{RESULTS}/{{paper}}/tables/tests.csv",
    output:
        report(
            f"{FIGURES}/{{paper}}/verdicts.png",
            category="Verdicts",
            labels={"part": "{paper}"},
        ),
        f"{FIGURES}/{{paper}}/verdicts.svg",
    log:
        f"{LOGS}/{{paper}}/verdict_figure.log",
    priority: 2
    params:
        src=digest("common.verdict_figure"),
    shell:
        "python -m common.verdict_figure --tests {input} --out {output[0]} 2> >(tee {log} >&2)"
