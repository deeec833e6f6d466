#!/usr/bin/env bash
# Resolve pyproject.toml into requirements.lock (every package with hashes, no index address) and environment.yml.
# Versions already in requirements.lock are kept where they still fit.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3.11 -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check uv
"$tools/bin/uv" pip compile pyproject.toml --group dev --generate-hashes --no-emit-index-url --no-header --no-annotate \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --quiet -o requirements.lock
"$tools/bin/python" scripts/environment.py
echo "requirements.lock and environment.yml are up to date" >&2
