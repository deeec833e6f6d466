# Sparse VCE: explain → measure → verdicts → figures.
SVCE = config["svce"]
SVCE_SHARDS = f"{WORK}/svce/batches"
SVCE_GROUPS = {
    name: [
        {
            **entry,
            "starts": {"name": entry["starts"], **SVCE["starts"][entry["starts"]]},
            "cells": [
                cell for cells in entry["cells"] for cell in SVCE["cells"][cells]
            ],
        }
        for entry in group
    ]
    for name, group in SVCE["groups"].items()
}
SVCE_ENTRIES = [entry for group in SVCE_GROUPS.values() for entry in group]
SVCE_GRIDS = ["grid", "grid-plain", "grid-mnist", "grid-density", "grid-cues"]
SVCE_FIGURES = ["optimisers", "sparsity-confidence", "radius", "realism", "discovery"]
FIGURES_OF["svce"] = [
    f"{FIGURES}/svce/{name}.png"
    for name in [
        *SVCE_GRIDS,
        *SVCE_FIGURES,
        "sparsity",
        "verdicts",
        "photos",
        "overlay",
    ]
]
RESULTS_OF["svce"] = [
    f"{RESULTS}/svce/{name}"
    for name in ["claims.json", "tables/overlay.csv", "rating/sheet.html"]
]


def svce_shards(entries, seeds="{seed}"):
    """The shards of some entries of the groups."""
    return [
        f"{SVCE_SHARDS}/{entry['starts']['name']}/{entry['world']}/{kind}-{seed}.safetensors"
        for entry in entries
        for kind in entry["classifiers"]
        for seed in ([seeds] if isinstance(seeds, str) else seeds)
    ]


def svce_diffusion(group):
    """The diffusion model, where a method of the group needs it."""
    used = {cell["optimiser"] for entry in group for cell in entry["cells"]}
    needed = used & {"pvce", "blended"}
    return [f"{GENERATORS}/scenes-diffusion.safetensors"] if needed else []


def svce_started(*starts):
    """All shards whose images were chosen by one of these rules."""
    entries = [entry for entry in SVCE_ENTRIES if entry["starts"]["name"] in starts]
    return svce_shards(entries, config["seeds"])


SVCE_ROWS = svce_started("pairs", "ablations", "draws")
SVCE_SETS = svce_started("ID", "OD") + [
    shard
    for shard in svce_started("pairs")
    if shard.split("/")[-2] + "/" + shard.split("/")[-1].rsplit("-", 1)[0]
    in SVCE["realism"]["pairs"]["cells"]
]
SVCE_CUES = svce_started("cues")
SVCE_CUE_NETS = [
    f"{CLASSIFIERS}/{'/'.join(shard.split('/')[-2:])}" for shard in SVCE_CUES
]


for job in SVCE["jobs"]:
    name = "_".join(job)
    group = [entry for part in job for entry in SVCE_GROUPS[part]]

    rule:
        name:
            f"svce_explain_{name}"
        input:
            splits=sorted({f"{SPLITS}/{entry['world']}.parquet" for entry in group}),
            data=sorted({file for entry in group for file in data_of(entry["world"])}),
            checkpoints=sorted(
                {
                    f"{CLASSIFIERS}/{entry.get('trained_on', entry['world'])}/{kind}-{{seed}}.safetensors"
                    for entry in group
                    for kind in entry["classifiers"]
                }
            ),
            diffusion=svce_diffusion(group),
        output:
            svce_shards(group),
            [
                shard.replace(".safetensors", ".cost.json")
                for shard in svce_shards(group)
            ],
        log:
            f"{LOGS}/svce/explain/{name}-{{seed}}.log",
        priority: 4 if "scenes" in job else 1
        params:
            src=digest("papers.svce.shards"),
            group=json.dumps(group),
            splits=SPLITS,
            checkpoints=CLASSIFIERS,
            diffusion=[f"--diffusion {model}" for model in svce_diffusion(group)],
            folder=SVCE_SHARDS,
        shell:
            "python -m papers.svce.shards --group {params.group:q} --splits {params.splits}"
            " --checkpoints {params.checkpoints} {params.diffusion} --seed {wildcards.seed} --out {params.folder}"
            " 2> >(tee {log} >&2)"


rule svce_measure:
    input:
        shards=SVCE_ROWS,
        splits=rules.splits.output,
        data=sorted({file for world in SVCE["panels"] for file in data_of(world)}),
        oracles=expand(
            f"{ORACLES}/{{world}}-{{judge}}.safetensors",
            world=sorted(set(SVCE["panels"].values())),
            judge=PANEL,
        ),
    output:
        rows=f"{RESULTS}/svce/rows.parquet",
        tables=expand(
            f"{RESULTS}/svce/tables/{{name}}.csv",
            name=["oracle_gate", "minimal", "diversity"],
        ),
        cost=f"{WORK}/svce/cost.parquet",
    log:
        f"{LOGS}/svce/measure.log",
    priority: 2
    params:
        src=digest("papers.svce.measure"),
        panels=[f"{world}={panel}" for world, panel in SVCE["panels"].items()],
        ungated=SVCE["ungated"],
        splits=SPLITS,
        oracles=ORACLES,
        tables=f"{RESULTS}/svce/tables",
    shell:
        "python -m papers.svce.measure --shards {input.shards} --splits {params.splits} --oracles {params.oracles}"
        " --panels {params.panels} --ungated {params.ungated} --out {output.rows} --tables {params.tables}"
        " --cost {output.cost} 2> >(tee {log} >&2)"


rule svce_realism:
    input:
        shards=SVCE_SETS,
        splits=rules.splits.output,
        data=sorted({file for world in SVCE["panels"] for file in data_of(world)}),
        oracles=expand(
            f"{ORACLES}/{{world}}-{{judge}}.safetensors",
            world=sorted(set(SVCE["panels"].values())),
            judge=ORACLE_NETS,
        ),
    output:
        rows=f"{RESULTS}/svce/realism.parquet",
        table=f"{RESULTS}/svce/tables/realism.csv",
        proxies=f"{RESULTS}/svce/tables/rating_proxies.csv",
    log:
        f"{LOGS}/svce/realism.log",
    priority: 2
    params:
        src=digest("papers.svce.realism"),
        worlds=[
            f"{world}={panel}" for world, panel in SVCE["realism"]["worlds"].items()
        ],
        methods=SVCE["realism"]["pairs"]["methods"],
        noise=[f"{world}={norm}" for world, norm in SVCE["realism"]["noise"].items()],
        rated=json.dumps(SVCE["rating"]),
        splits=SPLITS,
        oracles=ORACLES,
    shell:
        "python -m papers.svce.realism --shards {input.shards} --worlds {params.worlds} --splits {params.splits}"
        " --oracles {params.oracles} --noise {params.noise} --pairs-methods {params.methods} --rated {params.rated:q}"
        " --out {output.rows} --table {output.table} --proxies {output.proxies} 2> >(tee {log} >&2)"


rule svce_discovery:
    input:
        shards=SVCE_CUES,
        checkpoints=SVCE_CUE_NETS,
        splits=rules.splits.output,
    output:
        rows=f"{RESULTS}/svce/discovery.parquet",
        table=f"{RESULTS}/svce/tables/discovery.csv",
        summary=f"{RESULTS}/svce/tables/discovery_summary.csv",
    log:
        f"{LOGS}/svce/discovery.log",
    priority: 2
    params:
        src=digest("papers.svce.discovery"),
    shell:
        "python -m papers.svce.discovery --shards {input.shards} --checkpoints {input.checkpoints}"
        " --splits {input.splits} --out {output.rows} --table {output.table} --summary {output.summary}"
        " 2> >(tee {log} >&2)"


rule svce_robustness:
    input:
        splits=rules.splits.output,
        data=sorted(
            {
                file
                for world in SVCE["robustness"]["classifiers"]
                for file in data_of(world)
            }
        ),
        checkpoints=[
            file
            for world, kinds in SVCE["robustness"]["classifiers"].items()
            for file in checkpoints(world, kinds, config["seeds"])
        ],
    output:
        rows=f"{RESULTS}/svce/robustness.parquet",
        table=f"{RESULTS}/svce/tables/robustness.csv",
    log:
        f"{LOGS}/svce/robustness.log",
    priority: 2
    params:
        src=digest("common.classifiers.robustness"),
        recipe=json.dumps(SVCE["robustness"]),
        folder=SPLITS,
    shell:
        "python -m common.classifiers.robustness --checkpoints {input.checkpoints} --splits {params.folder}"
        " --recipe {params.recipe:q} --out {output.rows} --table {output.table} 2> >(tee {log} >&2)"


rule svce_exactness:
    output:
        f"{RESULTS}/svce/exactness.parquet",
    log:
        f"{LOGS}/svce/exactness.log",
    priority: 2
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
        gate=f"{RESULTS}/svce/tables/oracle_gate.csv",
        exactness=rules.svce_exactness.output,
        realism=rules.svce_realism.output.rows,
        discovery=rules.svce_discovery.output.rows,
        robustness=rules.svce_robustness.output.rows,
    output:
        claims=f"{RESULTS}/svce/claims.json",
        tables=expand(
            f"{RESULTS}/svce/tables/{{name}}.csv",
            name=["tests", "methods", "strengths", "statuses"],
        ),
    log:
        f"{LOGS}/svce/verdicts.log",
    priority: 2
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
                        "diffusion",
                        "match_at",
                    )
                },
                "svce": SVCE,
                "metrics": [
                    digest(f"papers.svce.{module}")
                    for module in ("measure", "realism", "discovery")
                ],
                "judgement": digest("common.verdicts"),
                "methods": digest("papers.svce.shards"),
                "training": [
                    digest("common.classifiers.train"),
                    digest("common.generators.train"),
                ],
            }
        ),
        level=config["match_at"],
        folder=f"{RESULTS}/svce",
    shell:
        "python -m common.verdicts --claims {input.claims} --rows {input.rows} --gate {input.gate}"
        " --tables exactness={input.exactness} realism={input.realism} discovery={input.discovery}"
        " robustness={input.robustness} --protocol {params.protocol:q} --level {params.level} --out {params.folder}"
        " > {log} 2> >(tee -a {log} >&2)"


rule svce_grids:
    input:
        shards=SVCE_ROWS,
        cues=SVCE_CUES,
        data=sorted({file for world in SVCE["panels"] for file in data_of(world)}),
    output:
        expand(
            f"{FIGURES}/svce/{{name}}.{{suffix}}",
            name=SVCE_GRIDS,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/svce/grids.log",
    params:
        src=digest("papers.svce.grids"),
        shards=SVCE_SHARDS,
        seed=config["seeds"][0],
        folder=f"{FIGURES}/svce",
    shell:
        "python -m papers.svce.grids --shards {params.shards} --seed {params.seed} --out {params.folder}"
        " 2> >(tee {log} >&2)"


rule svce_figures:
    input:
        shards=SVCE_ROWS,
        rows=rules.svce_measure.output.rows,
        realism=rules.svce_realism.output.table,
        discovery=rules.svce_discovery.output.table,
    output:
        expand(
            f"{FIGURES}/svce/{{name}}.{{suffix}}",
            name=SVCE_FIGURES,
            suffix=["png", "svg"],
        ),
    log:
        f"{LOGS}/svce/figures.log",
    priority: 2
    params:
        src=digest("papers.svce.figures"),
        shards=SVCE_SHARDS,
        seeds=config["seeds"],
        results=f"{RESULTS}/svce",
        folder=f"{FIGURES}/svce",
    shell:
        "python -m papers.svce.figures measured --shards {params.shards} --seeds {params.seeds}"
        " --results {params.results} --out {params.folder} 2> >(tee {log} >&2)"


rule svce_judged_figures:
    input:
        f"{RESULTS}/svce/tables/methods.csv",
    output:
        expand(f"{FIGURES}/svce/sparsity.{{suffix}}", suffix=["png", "svg"]),
    log:
        f"{LOGS}/svce/judged_figures.log",
    priority: 2
    params:
        src=digest("papers.svce.figures"),
        results=f"{RESULTS}/svce",
        folder=f"{FIGURES}/svce",
    shell:
        "python -m papers.svce.figures judged --results {params.results} --out {params.folder} 2> >(tee {log} >&2)"


rule svce_rating:
    input:
        shard=f"{SVCE_SHARDS}/pairs/scenes/l2at-{config['seeds'][0]}.safetensors",
    output:
        f"{RESULTS}/svce/rating/sheet.html",
        f"{RESULTS}/svce/rating/key.json",
    log:
        f"{LOGS}/svce/rating.log",
    params:
        src=digest("papers.svce.rating"),
        template=sha256("papers/svce/rating_sheet.html"),
        cfg=SVCE["rating"],
        folder=f"{RESULTS}/svce/rating",
    shell:
        "python -m papers.svce.rating sheet --shard {input.shard} --methods {params.cfg[methods]}"
        " --trials {params.cfg[trials]} --level {params.cfg[level]} --seed {params.cfg[seed]} --out {params.folder}"
        " 2> >(tee {log} >&2)"


rule svce_photos:
    input:
        "data/efficientnet-lite0.pth",
        photos=sorted(
            {f"data/{photo['image']}" for photo in SVCE["photos"]["images"]}
            | {
                str(pointer.with_suffix(""))
                for pointer in sorted(Path("data").glob("imagenet_*.dvc"))[
                    : SVCE["overlay"]["photos"]
                ]
            }
        ),
    output:
        expand(
            f"{FIGURES}/svce/{{name}}.{{suffix}}",
            name=["photos", "overlay"],
            suffix=["png", "svg"],
        ),
        table=f"{RESULTS}/svce/tables/overlay.csv",
    log:
        f"{LOGS}/svce/photos.log",
    params:
        src=digest("papers.svce.photos"),
        photos=json.dumps(SVCE["photos"]),
        overlay=json.dumps(SVCE["overlay"]),
        folder=f"{FIGURES}/svce",
    shell:
        "python -m papers.svce.photos --recipe {params.photos:q} --overlay {params.overlay:q} --out {params.folder}"
        " --table {output.table} 2> >(tee {log} >&2)"


rule svce_results:
    input:
        RESULTS_OF["svce"],
