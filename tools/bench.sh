#!/usr/bin/env bash
# Run every benchmark in its quick form, one after the other, and leave the results in build/bench/.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build/bench
for script in benchmarks/*.py; do
  case $(basename "$script") in test_*|_*|gpu_*) continue ;; esac  # gpu_*: tools/gpu.sh
  echo "== $script"
  .venv/bin/python "$script" --quick --json "build/bench/$(basename "$script" .py).json"
done
if ls benchmarks/test_*.py >/dev/null 2>&1; then
  .venv/bin/python -m pytest benchmarks --benchmark-only --benchmark-json=build/bench/micro.json -q
fi
