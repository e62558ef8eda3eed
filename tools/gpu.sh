#!/usr/bin/env bash
# Build on a machine with a GPU and run everything that needs one; one JSON with all of it, $OUT/gpu.json.
#
# usage: tools/gpu.sh [--quick] [--only PART]... [--wheels FOLDER] [--seconds N]      (tools/gpu.py --help)
#
# No network is needed: torch, triton and cupy are taken from the Python that is there (TRIMTAB_PYTHON, else python3), and
# what it lacks from a folder of wheels that tools/gpu_wheels.sh has filled on another machine.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${TRIMTAB_PYTHON:-python3}" tools/gpu.py "$@"
