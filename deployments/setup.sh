#!/bin/sh
# `make setup`: finds the Python, and says so in a sentence where it is not one that setup.py can even be read by.
python=${PYTHON:-python3.11}
hint="Debian 12: apt-get install python3.11 python3.11-venv python3.11-dev, or name one: make setup PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || {
    echo "setup: $python is not there or does not run, Python 3.11 is needed; $hint" >&2
    exit 2
}
if [ "$version" != 3.11 ]; then
    echo "setup: Python $version ($python) is not supported, 3.11 is; $hint" >&2
    exit 2
fi
exec "$python" "$(dirname "$0")/setup.py"
