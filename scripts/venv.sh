#!/usr/bin/env bash
# Build .venv from requirements.lock, unless it already is what the lock says.
# The stamp is written last, so an interrupted install is not trusted and the next call builds anew.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(sha256sum <requirements.lock | cut -d' ' -f1)
stamp=.venv/.lock-sha256
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

exec 9>.run.lock
if ! flock -n 9; then
    echo "error: another make runs in this folder and .venv must be rebuilt; wait for it, or stop it" >&2
    exit 75
fi

for python in python3.11 python3; do
    if "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        break
    fi
    python=
done
if [ -z "$python" ]; then
    echo "error: Python 3.11 with venv is needed and neither python3.11 nor python3 is that; install it and run make again" >&2
    exit 69
fi

echo "building .venv from requirements.lock: some minutes, several GB" >&2
rm -rf .venv
"$python" -m venv .venv
export PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/pip install --no-deps --require-hashes --no-compile -r requirements.lock
.venv/bin/pip install --no-deps --no-build-isolation -e .
echo "$wanted" >"$stamp"
