#!/usr/bin/env bash
# scripts/run.sh smoke|cpu|repro: one run of the pipeline at a time in this folder (see the Makefile).
set -euo pipefail
cd "$(dirname "$0")/.."

exec 9>.run.lock
if ! flock -n 9; then
    echo "error: another make runs in this folder; wait for it, or stop it" >&2
    exit 75
fi

export PATH="$PWD/.venv/bin:$PATH"

# we hold the lock above, so a lock of snakemake's was left by a run that was killed
if [ -n "$(ls -A .snakemake/locks 2>/dev/null)" ]; then
    snakemake --unlock
fi

if [ "$1" = repro ]; then
    snakemake data
    # dvc leaves an update check behind in the background, which must not keep our lock
    dvc repro 9>&-
    scale=cpu
else
    scale=$1
    snakemake all --config "scale=$scale"
fi
echo "figures:  figures/$scale/"
echo "verdicts: results/$scale/ (claims.json and tables/ of each paper)"
if [ "$1" = repro ]; then
    echo "report:   vce report --scale $scale"
else
    echo "report:   results/$scale/report/index.html"
fi
