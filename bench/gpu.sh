#!/usr/bin/env bash
# Everything that needs a GPU, in under ten minutes a call and without a network: the build, the GPU tests, the benchmarks of
# GPU and CPU, and compute-sanitizer where it is installed. Goes on after a failure and names what failed at the end.
#
#   bench/gpu.sh [tests] [operators] [benchmarks] [memcheck] [racecheck]      what to do after the build; these by default
#   bench/gpu.sh kernels                                                      two minutes: the benchmarks of the GPU alone
#   bench/gpu.sh search                                                       a call of its own: the search on the GPU
#   bench/gpu.sh train                                                        three minutes: training on the GPU
#
# After the benchmarks, `python -m bench.bars` prints what is asked of the kernels on an H100 beside what was measured, and
# `python -m bench.phases` where the search for thresholds spends its time.
#
# CUB's top-k is one of the peers where nvcc finds headers that have it, or CCCL_INCLUDE names them, or build/bench already holds
# the library (`python -m bench.cub_peer` builds it, on a machine without a GPU as well); FlashInfer's where it is installed.
#
# The search needs Fashion-MNIST (LPK_DATA names its folder) and some three minutes, half a minute of them for tickets, which stay in RUNS
# (default: build/search) for the next call. SEARCH holds more arguments of `python -m bench.search`: SEARCH="--rounds 4" makes
# fewer tickets, SEARCH="--parts rows profile" leaves out what takes long.
#
# Training needs Fashion-MNIST, too; TRAIN holds more arguments of `python -m bench.train`: TRAIN="--parts training --seeds 0"
# takes a minute.
#
# PYTHON names the interpreter (default: python3), which must have the packages of `pip install -e '.[cli,test]'`; the results
# are written to bench/results and, where OUT names a folder, copied there.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
LIMIT=585 # seconds for all of it
failed=()
wanted=" ${*:-tests operators benchmarks memcheck racecheck} "
case $wanted in *" benchmarks "* | *" kernels "*) wanted+="bars phases " ;; esac

# step NAME COMMAND...: an interrupt at the limit, on which pytest still writes what it has measured
step() {
  local name=$1 start=$SECONDS
  shift
  case $name in
    tests | operators | benchmarks | kernels | bars | phases | memcheck | racecheck | search | train) [[ $wanted == *" $name "* ]] || return 0 ;;
  esac
  echo "--- $name"
  if [ "$SECONDS" -ge "$LIMIT" ]; then
    failed+=("$name (no time left)")
  elif timeout --signal=INT --kill-after=15 "$((LIMIT - SECONDS))" "$@"; then
    echo "--- $name: $((SECONDS - start)) s"
  else
    failed+=("$name (exit status $?)")
  fi
}

# Every operator once on vectors of awkward sizes, held against the CPU's bits.
OPERATORS='
import torch
from lpk import ops

for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for n in (1, 1025, 70_001):
        torch.manual_seed(n)
        a, b = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
        for x, y in ((a, b), (a.sign(), a.sign())):
            for keep in {1, n // 5, n}:
                results = []
                for device in ("cpu", "cuda"):
                    u, v = x.to(device), y.to(device)
                    t, j = ops.interpolate_threshold(u, v, [0.05, 0.5, 0.95], keep)
                    pruned = ops.interpolate_prune(u, v, 0.5, keep, threshold=(t[1], j[1]))
                    rows = ops.interpolate_prune_all(u, v, [0.05, 0.5], keep)
                    all_of_them = t, j, pruned, rows, ops.interpolate(u, v, 0.3), ops.magnitude_prune(u, keep)
                    results.append([r.cpu() for r in (*all_of_them, ops.magnitude_mask(u, keep))])
                assert all(map(torch.equal, *results)), (dtype, n, keep)
print("the same bits as on the CPU")
'

# compute-sanitizer sees only what the driver hands out: without PyTorch's cache that is each tensor.
checked() {
  step "$1" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$1" --error-exitcode 1 "$PYTHON" -c "$OPERATORS"
}

export LPK_CUDA=${LPK_CUDA:-1}
step build "$PYTHON" setup.py build_ext --inplace
step "what runs here" "$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "no GPU"; from lpk import ops; print(ops.backends())'
step tests "$PYTHON" -m pytest -q -m gpu tests
step operators "$PYTHON" -c "$OPERATORS"
step benchmarks "$PYTHON" -m pytest -q bench --benchmark-quiet --results bench/results
step kernels "$PYTHON" -m pytest -q bench -k cuda --benchmark-quiet --results bench/results
step bars "$PYTHON" -m bench.bars
step phases "$PYTHON" -m bench.phases
# shellcheck disable=SC2086  # SEARCH holds several arguments
step search "$PYTHON" -m bench.search --device cuda --preset bench/h100.toml --runs "${RUNS:-build/search}" \
  --results bench/results ${SEARCH:-}
# shellcheck disable=SC2086
step train "$PYTHON" -m bench.train --device cuda --results bench/results ${TRAIN:-}
if command -v compute-sanitizer >/dev/null; then
  checked memcheck
  checked racecheck
else
  echo "--- compute-sanitizer is not installed"
fi

if [ -n "${OUT:-}" ]; then
  cp bench/results/*.json "$OUT"/ || failed+=("copy of the results to $OUT")
fi
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
echo "all passed in $SECONDS s"
