#!/bin/sh
# Make .bench hold the peers that the benchmarks compare with: those of PyPI in .bench/venv, those of npm in .bench/node.
# Do nothing for what is there already. Fails when one of the two cannot be installed; the other is still there then.
# PYTHON names the interpreter to use.
set -eu
cd -- "$(dirname -- "$0")/.."

peers=benchmarks/peers
mkdir -p .bench

# Whether what a list names was installed, and for this place: a virtual environment cannot be moved.
state() {
    cat "$1" | cksum
    pwd
}

installed() {
    [ -f "$1" ] && [ "$(cat "$1")" = "$(state "$2")" ]
}

install_python() {
    "${PYTHON:-python3}" -m venv --clear .bench/venv &&
        .bench/venv/bin/python -m pip install --disable-pip-version-check --no-input -r $peers/requirements.txt
}

install_node() {
    command -v npm >/dev/null || { echo "npm is not installed" >&2; return 1; }
    rm -rf .bench/node
    mkdir .bench/node
    cp $peers/package.json .bench/node/
    (cd .bench/node && npm install --no-package-lock --no-audit --no-fund)
}

failed=
if ! installed .bench/.ready-python $peers/requirements.txt; then
    echo "Installing the peers from PyPI (only now, and when $peers/requirements.txt changes)" >&2
    if install_python >.bench/setup-python.log 2>&1; then state $peers/requirements.txt >.bench/.ready-python; else failed=" PyPI"; fi
fi
if ! installed .bench/.ready-node $peers/package.json; then
    echo "Installing the peers from npm (only now, and when $peers/package.json changes)" >&2
    if install_node >.bench/setup-node.log 2>&1; then state $peers/package.json >.bench/.ready-node; else failed="$failed npm"; fi
fi
[ -z "$failed" ] || { echo "error: the peers from$failed could not be installed; see .bench/setup-*.log" >&2; exit 1; }
