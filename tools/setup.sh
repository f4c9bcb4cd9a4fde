#!/bin/sh
# Make .venv hold what `runtime` (the demo) or `dev` (tests, lint, types) needs; do nothing when it does already.
# PYTHON names the interpreter to use. With uv on PATH it takes seconds, else venv and pip do it.
set -eu
cd -- "$(dirname -- "$0")/.."

what=${1:-runtime}
case $what in
    runtime) lock=requirements.lock ;;
    dev) lock=requirements-dev.lock ;;
    *) echo "usage: tools/setup.sh [runtime|dev]" >&2; exit 2 ;;
esac
python=.venv/bin/python

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        found=$PYTHON
        return
    fi
    for found in python3 python3.14 python3.13 python3.12 python3.11 python; do
        ! new_enough "$found" || return 0
    done
    found=
}

# What was installed, and for which place: an editable install points at the folder, which may have been moved.
state() {
    cat pyproject.toml "$1" | cksum
    pwd
    "$python" -V 2>&1 || true
}

ready() {
    [ -x "$python" ] && [ -f ".venv/.ready-$1" ] && [ "$(cat ".venv/.ready-$1")" = "$(state "$2")" ]
}

# Whether .venv can be used as it is: made with the interpreter that PYTHON names, if it names one.
usable() {
    [ -x "$python" ] && new_enough "$python" || return 1
    [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" -V 2>&1)" = "$("$python" -V 2>&1)" ]
}

[ -z "${PYTHON:-}" ] || new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python of version 3.11 or newer."
if usable; then
    ! ready dev requirements-dev.lock || exit 0
    ! ready "$what" "$lock" || exit 0
fi

uv=$(command -v uv || true)
if ! usable; then
    find_python
    if [ -n "$uv" ]; then
        echo "Making .venv with uv"
        "$uv" venv --quiet --clear --python "${found:->=3.11}" .venv
    elif [ -n "$found" ]; then
        echo "Making .venv with $("$found" -V)"
        "$found" -m venv --clear .venv || fail "no virtual environment could be made: install the venv module" \
            "(Debian, Ubuntu: apt install python3-venv) or uv, and try again."
    else
        fail "queue-pg needs Python 3.11 or newer, and there is $(python3 -V 2>/dev/null || echo 'no python3') here." \
            "Install it, or name one: make PYTHON=/path/to/python3.12 ..."
    fi
fi

echo "Installing what $lock lists (only now, and when it changes)"
if [ -n "$uv" ]; then
    "$uv" pip install --quiet --python "$python" --require-hashes -r "$lock"
    "$uv" pip install --quiet --python "$python" --no-deps --no-build-isolation -e .
else
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null ||
        fail ".venv has no pip: remove it (rm -r .venv), or put uv on PATH."
    pip="$python -m pip install --quiet --disable-pip-version-check --no-input"
    $pip --require-hashes -r "$lock"
    $pip --no-deps --no-build-isolation -e .
fi
state "$lock" >".venv/.ready-$what"
