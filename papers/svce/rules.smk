# Sparse VCE: explain → measure → verdicts → figures.
SVCE = config["svce"]
SVCE_SHARDS = {
    f"{shard['world']}/{shard['classifier']}": shard for shard in SVCE["shards"]
}
SVCE_BATCHES = [
    f"{WORK}/svce/batches/{name}-{seed}.safetensors"
    for name in SVCE_SHARDS
    for seed in config["seeds"]
]
SVCE_FIGURES = [
    "grid",
    "grid-plain",
    "optimisers",
    "sparsity",
    "sparsity-confidence",
    "radius",
    "verdicts",
]
FIGURES_OF["svce"] = [
    f"{FIGURES}/svce/{name}.png" for name in [*SVCE_FIGURES, "photos"]
]


def svce_recipe(wildcards):
    shard = SVCE_SHARDS[f"{wildcards.world}/{wildcards.kind}"]
    cells = [cell for group in shard["cells"] for cell in SVCE["cells"][group]]
    recipe = {
        key: SVCE[key] for key in ("n_pairs", "random_radii", "traced", "thresholded")
    }
    return json.dumps({**recipe, "cells": cells})


rule svce_explain:
    input:
        splits=f"{WORK}/common/splits/{{world}}.parquet",
        checkpoint=rules.classifier.output,
    output:
        f"{WORK}/svce/batches/{{world}}/{{kind}}-{{seed}}.safetensors",
        f"{WORK}/svce/batches/{{world}}/{{kind}}-{{seed}}.cost.json",
    log:
        f"{LOGS}/svce/explain/{{world}}/{{kind}}-{{seed}}.log",
    priority: 1
    params:
        src=digest("papers.svce.explain"),
        recipe=svce_recipe,
    shell:
        "python -m papers.svce.explain --world {wildcards.world} --splits {input.splits} --checkpoint {input.checkpoint}"
        " --kind {wildcards.kind} --seed {wildcards.seed} --recipe {params.recipe:q} --out {output[0]} 2> >(tee {log} >&2)"


rule svce_measure:
    input:
        shards=SVCE_BATCHES,
        splits=sorted(
            {
                f"{WORK}/common/splits/{shard['world']}.parquet"
                for shard in SVCE["shards"]
            }
        ),
        augmented=f"{WORK}/common/oracles/{config['panel']}-augmented.safetensors",
        svm=f"{WORK}/common/oracles/{config['panel']}-svm.safetensors",
        l2at=f"{WORK}/common/oracles/{config['panel']}-l2at.safetensors",
    output:
        rows=f"{RESULTS}/svce/rows.parquet",
        gate=f"{RESULTS}/svce/tables/oracle_gate.csv",
        cost=f"{WORK}/svce/cost.parquet",
    log:
        f"{LOGS}/svce/measure.log",
    params:
        src=digest("papers.svce.measure"),
    shell:
        "python -m papers.svce.measure --shards {input.shards} --splits {input.splits} --out {output.rows} --gate {output.gate} --cost {output.cost}"
        " --panel augmented={input.augmented} svm={input.svm} l2at={input.l2at} 2> >(tee {log} >&2)"


rule svce_exactness:
    output:
        f"{WORK}/svce/exactness.parquet",
    log:
        f"{LOGS}/svce/exactness.log",
    params:
        src=digest("papers.svce.exactness"),
        cfg=SVCE["exactness"],
    shell:
        "python -m papers.svce.exactness --problems {params.cfg[problems]} --dimension {params.cfg[dimension]} --seed 0"
        " --out {output} 2> >(tee {log} >&2)"


rule svce_verdicts:
    input:
        claims="papers/svce/claims.yaml",
        rows=rules.svce_measure.output.rows,
        exactness=rules.svce_exactness.output,
        gate=rules.svce_measure.output.gate,
    output:
        claims=f"{RESULTS}/svce/claims.json",
        tables=expand(
            f"{RESULTS}/svce/tables/{{name}}.csv",
            name=["tests", "methods", "strengths", "statuses"],
        ),
    log:
        f"{LOGS}/svce/verdicts.log",
    params:
        src=digest("common.verdicts"),
        protocol=json.dumps(
            {
                "scale": scale,
                **{
                    key: config[key]
                    for key in (
                        "seeds",
                        "splits",
                        "split_seed",
                        "classifiers",
                        "oracles",
                        "match_at",
                    )
                },
                "svce": SVCE,
                "metrics": digest("papers.svce.measure"),
                "judgement": digest("common.verdicts"),
                "methods": digest("papers.svce.explain"),
                "training": digest("common.classifiers.train"),
            }
        ),
        level=config["match_at"],
        folder=f"{RESULTS}/svce",
    shell:
        "python -m common.verdicts --claims {input.claims} --rows {input.rows} --exactness {input.exactness} --gate {input.gate}"
        " --protocol {params.protocol:q} --level {params.level} --out {params.folder} > {log} 2> >(tee -a {log} >&2)"


rule svce_figures:
    input:
        robust=[
            f"{WORK}/svce/batches/scenes/l2at-{seed}.safetensors"
            for seed in config["seeds"]
        ],
        plain=f"{WORK}/svce/batches/scenes/standard-{config['seeds'][0]}.safetensors",
        rows=rules.svce_measure.output.rows,
        methods=f"{RESULTS}/svce/tables/methods.csv",
        tests=f"{RESULTS}/svce/tables/tests.csv",
    output:
        expand(
            f"{FIGURES}/svce/{{name}}.{{suffix}}",
            name=SVCE_FIGURES,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/svce/figures.log",
    params:
        src=digest("papers.svce.figures"),
        folder=f"{FIGURES}/svce",
    shell:
        "python -m papers.svce.figures --robust {input.robust} --plain {input.plain} --rows {input.rows}"
        " --methods {input.methods} --tests {input.tests} --out {params.folder} 2> >(tee {log} >&2)"


rule svce_photos:
    input:
        "data/efficientnet-lite0.pth",
        photos=[f"data/{photo['image']}" for photo in SVCE["photos"]["images"]],
    output:
        f"{FIGURES}/svce/photos.png",
        f"{FIGURES}/svce/photos.svg",
    log:
        f"{LOGS}/svce/photos.log",
    params:
        src=digest("papers.svce.photos"),
        cfg=json.dumps(SVCE["photos"]),
    shell:
        "python -m papers.svce.photos --recipe {params.cfg:q} --out {output[0]} 2> >(tee {log} >&2)"
