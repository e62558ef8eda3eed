#!/usr/bin/env bash
# Make .venv and install Trimtab into it, editable, with the pinned versions of constraints.txt.
#
# usage: tools/setup.sh demo|dev     demo: what `make demo` needs; dev: also the tests and linters
#
# What is installed is remembered by the hash of everything that decides it; when nothing changed this ends at once.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?usage: tools/setup.sh demo|dev}
case $kind in demo) extras=demo ;; dev) extras=dev,demo ;; *) echo "setup: expected demo or dev, got $kind" >&2; exit 2 ;; esac

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Debian and Ubuntu leave these out of a minimal python3; install them where we may, else say how.
system_packages() {
  local run=()
  if ! command -v apt-get >/dev/null; then fail "please install $* with your package manager, then run this again"; fi
  if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then run=(sudo -n); else fail "please run: sudo apt-get install $*"; fi
  fi
  say "installing $*"
  "${run[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${run[@]}" apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

python=${TRIMTAB_PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3 python3.13; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      python=$candidate; break
    fi
  done
fi
[ -n "$python" ] || fail "Trimtab needs Python 3.11 or newer and found none (set TRIMTAB_PYTHON to name one)"

tag=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
wanted=$( { echo "$tag $PWD"; cat constraints.txt pyproject.toml CMakeLists.txt tools/setup.sh protos/v1/*.proto csrc/*.*; } | sha256sum | cut -d' ' -f1)
for installed in .venv/.trimtab-$kind .venv/.trimtab-dev; do  # dev holds all that demo needs
  if [ -f "$installed" ] && [ "$(cat "$installed")" = "$wanted" ]; then exit 0; fi
done

# From here on what is installed is none of those: another set-up of this folder would take an older hash for its own.
rm -f .venv/.trimtab-demo .venv/.trimtab-dev

missing=()
command -v c++ >/dev/null || command -v g++ >/dev/null || missing+=(g++)
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=("python$tag-venv")
"$python" -c 'import sys, sysconfig, pathlib; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' || missing+=("python$tag-dev")
[ ${#missing[@]} = 0 ] || system_packages "${missing[@]}"

# The native HTTP/2 front is optional: without its libraries the server speaks gRPC through grpcio.
compiler=$(command -v c++ || command -v g++)
has_header() { echo "#include <$1>" | "$compiler" -E -x c++ - >/dev/null 2>&1; }
optional=()
has_header nghttp2/nghttp2.h || optional+=(libnghttp2-dev)
has_header openssl/ssl.h || optional+=(libssl-dev)
has_header zlib.h || optional+=(zlib1g-dev)
if [ ${#optional[@]} != 0 ]; then
  (system_packages "${optional[@]}") || say "the native front is left out; to have it, install ${optional[*]} (or your system's names for them) and run this again"
fi

if ! [ -x .venv/bin/python ] || [ "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$tag" ]; then
  say "making .venv with $python ($tag)"
  rm -rf .venv
  "$python" -m venv .venv
fi
# A torch built for CUDA brings the Triton that it was built with, so no step but our own may pin another.
grep -v '^triton==' constraints.txt >.venv/constraints.txt
pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint .venv/constraints.txt)
say "installing the pinned dependencies (a few minutes the first time)"
# torch goes first and by its exact version, so that nothing else can choose another build.
"${pip[@]}" "torch==$(sed -n 's/^torch==//p' constraints.txt)"
if [ $kind = dev ] && ! .venv/bin/python -c 'from importlib.metadata import version; version("triton")' 2>/dev/null; then  # what the tests compile GPU kernels with
  "${pip[@]}" --no-deps "triton==$(sed -n 's/^triton==//p' constraints.txt)"
fi
"${pip[@]}" scikit-build-core pybind11 grpcio-tools mypy-protobuf cmake ninja setuptools
say "building the native extension and the protocol stubs, and installing the other dependencies meanwhile"
# A wheel whose modules are those of this folder, as `pip install --editable` makes; pip does one thing after another.
mkdir -p build
rm -rf build/editable
.venv/bin/python -c 'from scikit_build_core.build import build_editable; build_editable("build/editable")' >build/editable.log 2>&1 &
building=$!
.venv/bin/python - "$extras" >.venv/requirements.txt <<'END'
import sys
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *(line for extra in sys.argv[1].split(",") for line in extras[extra]), sep="\n")
END
"${pip[@]}" --requirement .venv/requirements.txt || { kill $building 2>/dev/null || true; fail "the dependencies could not be installed"; }
wait $building || { tail -n 50 build/editable.log >&2; fail "the native extension could not be built"; }
"${pip[@]}" --force-reinstall --no-deps build/editable/*.whl
echo "$wanted" >.venv/.trimtab-$kind
say "ready"
