#!/usr/bin/env bash
# Build the native extension with AddressSanitizer and UndefinedBehaviorSanitizer and run its tests on it. Then, without
# Python: the fuzz targets of csrc/fuzz on a fixed set of inputs under the same, and the front's threads under
# ThreadSanitizer (which CPython and grpcio, built without it, would fill with false alarms).
#
# usage: tools/sanitize.sh [PYTEST ARGUMENTS]     with arguments: only those tests. Default: native code, kernels, hub, transports
#
# The build has a folder and an import tree of its own (build/sanitize); the installed extension is not touched. Leaks are not
# looked for: the interpreter and NumPy leave memory behind on purpose.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
build=$PWD/build/sanitize
tree=$build/tree

mkdir -p build
export PATH=$PWD/.venv/bin:$PATH  # cmake and ninja of .venv
cmake -S . -B "$build" -G Ninja -DTRIMTAB_SANITIZE=ON -DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF -DPython_EXECUTABLE="$python" -DSKBUILD_STATE=sanitize \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$build.log" 2>&1 || { cat "$build.log" >&2; exit 1; }
cmake --build "$build" >>"$build.log" 2>&1 || { tail -n 50 "$build.log" >&2; exit 1; }
cmake --install "$build" --prefix "$tree/trimtab" >>"$build.log"

# The package as a plain tree: rooms by link, the sanitized extension and the stubs beside them.
echo '__version__ = "sanitized"' >"$tree/trimtab/__init__.py"
for room in kernels models store server trainer client cli; do ln -sfn "$PWD/$room" "$tree/trimtab/$room"; done

# -S: without site, the import hook of the editable install is not there and the tree is what gets imported.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
library() {
  local path
  path=$("${CXX:-c++}" -print-file-name="$1")
  [ -f "$path" ] || { echo "sanitize: the compiler has no $1; install its sanitizer libraries" >&2; exit 1; }
  echo "$path"
}
preload="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so)"  # libstdc++: ASan looks for __cxa_throw at once
all=
if [ $# -eq 0 ]; then
  all=1
  set -- tests/csrc tests/kernels
  # What runs in PyTorch, Triton or a compiler has none of our native code to look at.
  # CUDA on the CPU takes long under sanitizers: `tools/sanitize.sh tests/kernels/test_cuda_parity.py` asks for it.
  for suite in triton_interpreter triton_compile predictions embeddings images tensors gpu_docs cuda_gates sass \
    cuda_parity cuda_staging cuda_compile; do
    set -- "$@" "--ignore=tests/kernels/test_$suite.py"
  done
  for suite in hub hub_cuda group_queue batching transport; do set -- "$@" "tests/server/test_$suite.py"; done
fi

# pytest takes what a test writes to stderr, and an abort would lose it: the sanitizers write to files, shown below.
reports=$build/reports
rm -rf "$reports" && mkdir "$reports"
sanitized() {
  env PYTHONPATH="$tree:$site" \
    LD_PRELOAD="$preload" \
    ASAN_OPTIONS=quarantine_size_mb=16:detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1:log_path="$reports/address" \
    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:log_path="$reports/undefined" \
    "$python" -S -c '
import sys, pytest, trimtab._native as native
assert native.__file__.startswith(sys.argv[1]), native.__file__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
' "$tree" "$@" || { rc=$?; tail -n +1 "$reports"/* >&2 2>/dev/null || true; return "$rc"; }
}
if [ -z "$all" ]; then
  sanitized "$@"
  exit
fi

# pytest has one core; the fuzz targets are built and run on another meanwhile.
sanitized "$@" & pytest=$!
trap 'kill $pytest 2>/dev/null || true' EXIT
tested() {  # the end: that of pytest, too
  wait $pytest || { rc=$?; trap - EXIT; exit $rc; }
  trap - EXIT
}
if ! grep -q '^NGHTTP2_LIBRARY:.*libnghttp2' "$build/CMakeCache.txt"; then
  echo "sanitize: no nghttp2, so no fuzz targets of the front" >&2
  tested
  exit 0
fi
fuzz() {  # NAME SANITIZER TARGETS...
  local name=$1 sanitizer=$2
  shift 2
  cmake -S csrc/fuzz -B "build/$name" -G Ninja -DSANITIZER="$sanitizer" >"build/$name.log" 2>&1 &&
    cmake --build "build/$name" --target "$@" >>"build/$name.log" 2>&1 || { tail -n 50 "build/$name.log" >&2; exit 1; }
}
fuzz fuzz-address address,undefined fuzz_infer fuzz_gzip fuzz_http2
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 TSAN_OPTIONS=halt_on_error=1
build/fuzz-address/fuzz_infer 100000
build/fuzz-address/fuzz_gzip 10000
build/fuzz-address/fuzz_http2 3000
fuzz fuzz-thread thread race
build/fuzz-thread/race 30
tested
