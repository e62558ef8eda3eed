#!/usr/bin/env bash
# Fill a folder with what a machine with a GPU and without a network lacks: wheels by the pins of constraints.txt, and
# the nghttp2 library unpacked. tools/gpu.sh installs from it.
#
# usage: tools/gpu_wheels.sh [FOLDER [HAVE]]
#   FOLDER   default build/gpu-wheels
#   HAVE     what the machine has already, as `pip list --format=freeze` prints it there (tools/gpu.sh --list); that is
#            left out, but for what has to be of our version. PYTHON_VERSION (3.12) is the machine's.
#
# torch, triton, cupy and nvidia's packages are never fetched: they are gigabytes, and the machine has its own.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/gpu-wheels}
have=${2:-/dev/null}
mkdir -p "$folder"
# Names come from what is installed here (tools/setup.sh dev), so that they are what the pins were resolved to.
names=$(.venv/bin/python - "$have" <<'PYTHON'
import importlib.metadata as metadata
import re
import sys

ROOTS = """scikit-build-core pybind11 grpcio-tools mypy-protobuf cmake ninja setuptools
pytest pytest-asyncio hypothesis psutil cryptography hpack
tritonclient python-rapidjson aiohttp geventhttpclient urllib3""".split()
# Fetched even where the machine has one: generated code asks for its own version of grpcio and protobuf or newer, and
# with the others it is known that they work.
ANYWAY = set("grpcio protobuf pybind11 scikit-build-core pytest pytest-asyncio hypothesis".split())
NEVER = re.compile(r"torch|triton|cupy.*|nvidia-.*|cuda-.*|trimtab|sympy|networkx|mpmath")
def plain(name): return re.sub(r"[-_.]+", "-", name).lower()
have = {plain(line.split("==")[0]) for line in open(sys.argv[1]) if "==" in line} - ANYWAY
wanted, todo = {}, [("trimtab", True), *((name, False) for name in ROOTS)]
while todo:
    name, own = todo.pop()
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue  # for another platform, or an extra
    if not own:
        if plain(name) in wanted or NEVER.fullmatch(plain(name)) or plain(name) in have:
            continue
        wanted[plain(name)] = found.version.split("+")[0]
    for line in found.requires or []:
        if "extra ==" not in line:
            todo.append((re.match(r"[A-Za-z0-9._-]+", line).group(), False))
print(" ".join(f"{name}=={version}" for name, version in sorted(wanted.items())))
PYTHON
)
version=${PYTHON_VERSION:-3.12}
for name in $names; do
  .venv/bin/python -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --dest "$folder" \
    --python-version "$version" --implementation cp --abi "cp${version/./}" --abi abi3 --abi none \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
    "$name" || echo "gpu_wheels: there is no wheel of $name for Python $version; the machine goes without" >&2
done
# Optional: without it the server speaks gRPC through grpcio there.
if command -v apt-get >/dev/null; then
  scratch=$(mktemp -d)
  (cd "$scratch" && apt-get download -qq libnghttp2-dev libnghttp2-14) || echo "gpu_wheels: no libnghttp2-dev" >&2
  for package in "$scratch"/*.deb; do
    [ -e "$package" ] && dpkg-deb -x "$package" "$folder/root"
  done
  rm -rf "$scratch"
fi
du -sh "$folder" >&2
