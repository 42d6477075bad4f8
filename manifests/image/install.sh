#!/bin/sh
# install.sh PYTHON PREFIX: Weir in a virtual environment of its own at PREFIX, as the image has it.
# Everything comes by hash from the two locks beside this; our wheel is built here, with hatchling.
set -eu
python=$1 prefix=$2
here=$(dirname "$0")
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

"$python" -m venv "$build/venv"
pip="$build/venv/bin/python -m pip --quiet --disable-pip-version-check"
$pip install --no-cache-dir --require-hashes --requirement "$here/build.lock"
$pip wheel --no-build-isolation --no-deps --wheel-dir "$build" "$here/../.."

"$python" -m venv --without-pip "$prefix"
install="$pip --python $prefix/bin/python install --no-cache-dir --no-deps"
$install --require-hashes --only-binary :all: --requirement "$here/runtime.lock"
$install --no-index "$build"/weir-*.whl
