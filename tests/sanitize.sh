#!/usr/bin/env bash
# The kernel tests on builds with sanitizers: `tests/sanitize.sh [build] [address,undefined] [thread]`, both by default.
#
# With `build` the builds are made, one after the other, and not tested; they are there then. Each is a copy of the tree
# under build/, so that the ordinary extension stays where it is. PYTHON names the interpreter; CXX must be GCC.
# Arguments for pytest may be given in PYTEST_ARGS.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=$(command -v "${PYTHON:-python3}")
case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
export PATH="$(dirname "$PYTHON"):$PATH" LPK_CUDA=0
unset LPK_WERROR  # sanitizers make GCC suspect what it otherwise sees through
CXX=${CXX:-g++}

# The sanitizers' runtimes must be there before Python; libstdc++ with them, so that they see exceptions thrown.
runtimes() { for name in "$@"; do "$CXX" -print-file-name="$name"; done | paste -sd:; }

# What is left out takes minutes under a sanitizer and reaches no code of ours that the others do not reach: histograms call
# of each instruction set what the direct selection calls on memory as long as the vector, two threads on three chunks do
# what one or three do, and how work is cut into chunks does not depend on the dtype, whose loads are tried at all small
# sizes. Races need several threads, so ThreadSanitizer sees only those tests, of one dtype each; of vectors as long as a
# chunk, the selection `auto` is `bracket`.
KERNELS='not more_entries_than_float32 and not opcheck and not torch_compile and not one_openmp_runtime'
KERNELS+=' and not (histogram and avx and (test_sizes[ or distributions)) and not (several_chunks and 2])'
KERNELS+=' and not ((misleads or several_chunks or cache) and float16) and not (around_chunks and -float16)'
KERNELS+=' and not flushing_denormals'
# With few optimizations GCC makes no FMAs of the loops' sums, whose bits compiled filters have else.
KERNELS+=' and not bits_of_the_loops'
THREADED='(several_chunks and float32 and 3]) or around_chunks or (misleads and -float16 and 3]) or cache'
THREADED+=' or from_several or (errors_of_values and not -1]) or test_linear or residual_may_be or same_bits or attention'
THREADED="($THREADED) and not (_chunks and histogram and avx) and not (around_chunks and bracket)"
THREADED+=' and not ((around_chunks or cache) and (-float16 or float32)) and not (misleads and avx2)'
FILES='tests/ops/test_bits.py tests/ops/test_arguments.py tests/ops/test_checks.py tests/ops/test_operators.py'
FILES+=' tests/ops/test_backends.py tests/ops/test_pack.py tests/sparse/test_blocks.py tests/sparse/test_packing.py'
FILES+=' tests/sparse/test_convolutions.py tests/sparse/test_kernels.py tests/sparse/test_attention.py'
FILES+=' tests/sparse/test_patches.py::test_few_images'
FILES+=' tests/sparse/test_network.py::test_the_same_bits_for_any_number_of_threads'

compile() {  # sanitizer, copy of the tree
  mkdir -p "$2"
  rm -rf "$2"/{lpk,csrc,kernels,tests}
  for part in lpk csrc kernels tests setup.py CMakeLists.txt pyproject.toml README.md LICENSE; do
    if [ -e "$part" ]; then cp -Rp "$part" "$2/"; fi
  done
  rm -f "$2"/lpk/_core*.so
  (
    cd "$2"
    LPK_SANITIZE=$1 "$PYTHON" setup.py --quiet build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }
  )
}

sanitize() {
  local name=$1 copy=build/sanitize-${1//,/-} tests=$KERNELS workers=2
  compile "$name" "$copy"
  (
    cd "$copy"
    case $name in
      thread)
        # libgomp's barriers are invisible to ThreadSanitizer; our own threads are std::thread in this build.
        printf '%s\n' 'race:libtorch_' 'race:libgomp' >suppressions
        tests=$THREADED workers=0
        export LD_PRELOAD=$(runtimes libtsan.so libstdc++.so)
        export TSAN_OPTIONS="halt_on_error=1 exitcode=66 ignore_noninstrumented_modules=1 suppressions=$PWD/suppressions"
        ;;
      *)
        # Python and PyTorch keep memory until the end on purpose.
        export LD_PRELOAD=$(runtimes libasan.so libubsan.so libstdc++.so)
        export ASAN_OPTIONS=detect_leaks=0
        export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
        ;;
    esac
    "$PYTHON" -c 'import os, torch, lpk._core; assert lpk._core.__file__.startswith(os.getcwd())'
    # A sanitizer ends the process with its report on file descriptor 2, which pytest must leave alone. The tests that
    # take longest are shared out among two: a processor is free once ThreadSanitizer has seen its own.
    "$PYTHON" -m pytest -q -p no:cacheprovider --capture=sys --numprocesses "$workers" --dist worksteal \
      $FILES -k "$tests" ${PYTEST_ARGS:-}
  )
}

only=
if [ "${1:-}" = build ]; then only=build && shift; fi
names=("$@")
[ $# -gt 0 ] || names=(address,undefined thread)
if [ -n "$only" ]; then
  for name in "${names[@]}"; do compile "$name" "build/sanitize-${name//,/-}"; done
  exit
fi

# Both at once: most of the time one processor is enough for each.
jobs=()
for name in "${names[@]}"; do
  mkdir -p "build/sanitize-${name//,/-}"
  sanitize "$name" >"build/sanitize-${name//,/-}/log" 2>&1 &
  jobs+=($!)
done
failed=0
for i in "${!names[@]}"; do
  verdict=passed
  wait "${jobs[i]}" || verdict=FAILED failed=1
  echo "--- ${names[i]}"
  cat "build/sanitize-${names[i]//,/-}/log"
  echo "--- ${names[i]}: $verdict after $SECONDS s"
done
exit $failed
