#!/usr/bin/env bash
# bash run.sh OUT [options of just gpu]: run the GPU checks of this folder without a network; OUT gets gpu.json and gpu.log.
# PYTHON names the Python that has torch, timm and transformers (default: python3). Nothing is installed into it: what it lacks
# goes into a folder of its own, which PYTHONPATH names.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: bash run.sh OUT [--device cpu] [--minutes 9.5] [--only PART ...]}
shift
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT

offline=(--no-index --find-links "$here/wheels" --quiet --disable-pip-version-check)
"$python" -m pip install "${offline[@]}" --dry-run --report "$packages/report.json" --requirement "$here/requirements.txt"
missing=$("$python" - "$packages/report.json" <<'END'
import json, sys
for one in json.load(open(sys.argv[1]))["install"]:
    print(one["metadata"]["name"] + "==" + one["metadata"]["version"])
END
)
if [ -n "$missing" ]; then
    echo "carried along:" $missing
    "$python" -m pip install "${offline[@]}" --no-deps --target "$packages/site" $missing
fi
export PYTHONPATH=$here/project:$packages/site HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=disabled PYTHONDONTWRITEBYTECODE=1
cd "$here/project"
"$python" -m benchmarks.gpu --out "$out" "$@"
