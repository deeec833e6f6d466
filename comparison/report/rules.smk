# What others look at and cite: the pages of a scale, and its crate.
rule report:
    input:
        lambda _: [file for part in PARTS for file in RESULTS_OF[part]],
        lambda _: [file for part in PARTS for file in FIGURES_OF[part]],
        rows=f"{COMPARISON_RESULTS}/rows.parquet",
        shards=[
            f"{COMPARED}/batches/{job}-{config['seeds'][0]}.safetensors"
            for job in COMPARED_JOBS
        ],
        data=COMPARED_DATA,
        pages=[
            str(path) for path in sorted(Path("comparison/report/templates").iterdir())
        ],
        captions="comparison/report/captions.yaml",
        reference=sorted(map(str, Path("reference", scale).glob("*.json"))),
        cost=[f"{WORK}/{part}/cost.parquet" for part in PARTS],
        deviations=[
            "comparison/README.md",
            *(f"papers/{part}/README.md" for part in PARTS if part != "comparison"),
        ],
    output:
        f"{RESULTS}/report/index.html",
    log:
        f"{LOGS}/comparison/report.log",
    params:
        src=digest("comparison.report.site"),
        folder=f"{RESULTS}/report",
        scale=scale,
    shell:
        "python -m comparison.report.site --scale {params.scale} --out {params.folder} > {log} 2> >(tee -a {log} >&2)"


rule crate:
    input:
        lambda _: [file for part in PARTS for file in RESULTS_OF[part]],
        lambda _: [file for part in PARTS for file in FIGURES_OF[part]],
        [f"{RESULTS}/{part}/rows.parquet" for part in PARTS],
        sorted(map(str, Path("data").glob("*.dvc"))),
        "CITATION.cff",
        "LICENSE",
        "README.md",
        "Snakefile",
        "dvc.yaml",
        "environment.yml",
        "dvc.lock",
        "requirements.lock",
        f"config/{scale}.yaml",
    output:
        f"{RESULTS}/crate/ro-crate-metadata.json",
    log:
        f"{LOGS}/comparison/crate.log",
    params:
        src=digest("comparison.report.crate"),
        folder=f"{RESULTS}/crate",
        scale=scale,
    shell:
        "python -m comparison.report.crate --scale {params.scale} --out {params.folder} > {log} 2> >(tee -a {log} >&2)"
