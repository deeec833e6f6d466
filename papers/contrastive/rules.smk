# Contrastive counterfactuals: train → measure → tables → figures. No claims yet, and so no part of `all`.
CONTRASTIVE = config["contrastive"]
CONTRASTIVE_SHIFTS = f"{WORK}/contrastive/shifts"
CONTRASTIVE_UNITS = f"{WORK}/contrastive/units"
CONTRASTIVE_DATA = [
    f"data/{name}"
    for name in ("face-gan.pt", "expression.hdf5", "gender.onnx", "age.onnx")
]
CONTRASTIVE_TABLES = ["scores", "validity", "leakage", "rates"]
RESULTS_OF["contrastive"] = [
    f"{RESULTS}/contrastive/tables/{name}.csv" for name in CONTRASTIVE_TABLES
]
FIGURES_OF["contrastive"] = [
    f"{FIGURES}/contrastive/{name}.png" for name in ("faces", "scores")
]


rule contrastive_train:
    input:
        CONTRASTIVE_DATA,
    output:
        f"{CONTRASTIVE_SHIFTS}/{{seed}}.safetensors",
    log:
        f"{LOGS}/contrastive/train-{{seed}}.log",
    priority: 7
    params:
        src=digest("papers.contrastive.train"),
        recipe=json.dumps(CONTRASTIVE["recipe"]),
    shell:
        "python -m papers.contrastive.train --recipe {params.recipe:q} --seed {wildcards.seed} --out {output}"
        " 2> >(tee {log} >&2)"


rule contrastive_measure:
    input:
        CONTRASTIVE_DATA,
        shift=f"{CONTRASTIVE_SHIFTS}/{{seed}}.safetensors",
    output:
        f"{CONTRASTIVE_UNITS}/{{seed}}.parquet",
    log:
        f"{LOGS}/contrastive/measure-{{seed}}.log",
    priority: 6
    params:
        src=digest("papers.contrastive.measure"),
        settings=lambda wildcards: json.dumps(
            {
                "n": CONTRASTIVE["n"][int(wildcards.seed)],
                "floor": CONTRASTIVE["floor"],
            }
        ),
    shell:
        "python -m papers.contrastive.measure --shift {input.shift} --settings {params.settings:q}"
        " --seed {wildcards.seed} --out {output} 2> >(tee {log} >&2)"


rule contrastive_tables:
    input:
        expand(f"{CONTRASTIVE_UNITS}/{{seed}}.parquet", seed=config["seeds"]),
    output:
        RESULTS_OF["contrastive"],
    log:
        f"{LOGS}/contrastive/tables.log",
    priority: 2
    params:
        src=digest("papers.contrastive.tables"),
        folder=f"{RESULTS}/contrastive/tables",
    shell:
        "python -m papers.contrastive.tables --units {input} --out {params.folder} 2> >(tee {log} >&2)"


rule contrastive_figures:
    input:
        f"{RESULTS}/contrastive/tables/scores.csv",
    output:
        expand(f"{FIGURES}/contrastive/scores.{{suffix}}", suffix=["png", "svg"]),
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
        shift=f"{CONTRASTIVE_SHIFTS}/{config['seeds'][0]}.safetensors",
    output:
        expand(f"{FIGURES}/contrastive/faces.{{suffix}}", suffix=["png", "svg"]),
    log:
        f"{LOGS}/contrastive/grids.log",
    priority: 2
    params:
        src=digest("papers.contrastive.grids"),
        folder=f"{FIGURES}/contrastive",
    shell:
        "python -m papers.contrastive.grids --shift {input.shift} --out {params.folder} 2> >(tee {log} >&2)"


rule contrastive_results:
    input:
        RESULTS_OF["contrastive"],
