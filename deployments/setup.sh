#!/bin/sh
# `make setup`: finds a Python 3.11 to 3.13, the newest that is there, or gets one; then hands over to setup.py.
cd "$(dirname "$0")/.." || exit 2
is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() { # a .venv that is there keeps its Python
    for python in .venv/bin/python python3.13 python3.12 python3.11 python3 .cache/python/*/bin/python3; do
        if is_supported "$python"; then echo "$python"; return; fi
    done
    return 1
}

packages() { # what a bare Debian lacks, in one line
    printf "python3 python3-venv python3-dev"
    while read -r package; do printf " %s" "$package"; done <deployments/debian.txt
}

get_python() { # root: the system's own; otherwise uv fetches one into .cache/python, if there is a uv, or a Python to install it
    mkdir -p .cache
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(packages); } >.cache/python.log 2>&1
        find_python && return
    fi
    uv=$(command -v uv) || { uv=.cache/uv/bin/uv; python3 -m venv .cache/uv && .cache/uv/bin/pip install -q uv; } >.cache/python.log 2>&1
    UV_PYTHON_INSTALL_DIR=.cache/python "$uv" python install -q --no-bin 3.13 >>.cache/python.log 2>&1
    find_python
}

if [ -n "$PYTHON" ]; then
    is_supported "$PYTHON" || { echo "setup: $PYTHON is no Python 3.11, 3.12 or 3.13 that runs here; leave PYTHON out to take the newest that is there" >&2; exit 2; }
    python=$PYTHON
elif ! python=$(find_python); then
    echo "setup   python    none of 3.11 to 3.13 is here, getting one, and a compiler if you are root …"
    python=$(get_python) || {
        echo "setup: no Python 3.11, 3.12 or 3.13 is here and none could be fetched (.cache/python.log); run this as root, then make setup again: apt-get install -y --no-install-recommends $(packages)" >&2
        exit 2
    }
fi
exec "$python" deployments/setup.py "$@"
