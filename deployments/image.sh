#!/bin/sh
# Sets up a bare Debian or Ubuntu, as root. It is the only step of the Dockerfile, and `make test-fresh` runs it in systems of its own.
# /data is for runs and caches of the user with this id, who needs no account and cannot write to the clone.
set -e
cd "$(dirname "$0")/.."
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends make ca-certificates
make setup # installs the other packages that it needs
rm -rf /var/lib/apt/lists/*
install -d -o "${1:-1000}" -g "${1:-1000}" /data
