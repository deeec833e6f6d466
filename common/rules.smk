# What more than one paper needs: data files, split tables, classifiers, oracle panels.


wildcard_constraints:
    world="[a-z-]+",
    kind="[a-z0-9]+",
    seed="[0-9]+",


rule fetch:
    input:
        "data/{name}.dvc",
    output:
        "data/{name}",
    wildcard_constraints:
        name=r"[^/]+(?<!\.dvc)",
    params:
        src=digest("common.data.fetch"),
    shell:
        "python -m common.data.fetch {output}"


rule splits:
    output:
        f"{WORK}/common/splits/{{world}}.parquet",
    log:
        f"{LOGS}/common/splits/{{world}}.log",
    params:
        src=digest("common.data.split"),
        sizes=json.dumps(config["splits"]),
        seed=config["split_seed"],
    shell:
        "python -m common.data.split --world {wildcards.world} --sizes {params.sizes:q} --seed {params.seed}"
        " --out {output} 2> >(tee {log} >&2)"


rule classifier:
    input:
        splits=rules.splits.output,
    output:
        f"{WORK}/common/classifiers/{{world}}/{{kind}}-{{seed}}.safetensors",
    log:
        f"{LOGS}/common/classifiers/{{world}}/{{kind}}-{{seed}}.log",
    priority: 2
    params:
        src=digest("common.classifiers.train"),
        recipe=lambda wildcards: json.dumps(config["classifiers"][wildcards.kind]),
    shell:
        "python -m common.classifiers.train classifier --world {wildcards.world} --splits {input.splits}"
        " --recipe {params.recipe:q} --seed {wildcards.seed} --out {output} 2> >(tee {log} >&2)"


rule oracles:
    input:
        splits=rules.splits.output,
    output:
        augmented=f"{WORK}/common/oracles/{{world}}-augmented.safetensors",
        svm=f"{WORK}/common/oracles/{{world}}-svm.safetensors",
        l2at=f"{WORK}/common/oracles/{{world}}-l2at.safetensors",
    log:
        f"{LOGS}/common/oracles/{{world}}.log",
    params:
        src=digest("common.classifiers.train"),
        recipe=json.dumps(config["oracles"]),
        folder=f"{WORK}/common/oracles",
    shell:
        "python -m common.classifiers.train oracles --world {wildcards.world} --splits {input.splits}"
        " --recipe {params.recipe:q} --out {params.folder} 2> >(tee {log} >&2)"
