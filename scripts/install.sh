#!/usr/bin/env bash
# Puts in place what the tests need: RabbitMQ, Docker with Compose, debootstrap, openssl, cargo-nextest, and a Python
# environment in .venv with the peers. Safe to run again; quick when all is there.
#
# usage: scripts/install.sh
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'install: %s\n' "$*"; }

missing=()
has() { command -v "$1" >/dev/null 2>&1; }
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing+=(rabbitmq-server)
has docker || missing+=(docker.io)
docker compose version >/dev/null 2>&1 || has docker-compose || missing+=(docker-compose)
has openssl || missing+=(openssl)
has setpriv || missing+=(util-linux)
[ -x /usr/sbin/debootstrap ] || missing+=(debootstrap)
# Debian's python3 can't make environments by itself.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)

if [ ${#missing[@]} -gt 0 ]; then
    if ! has apt-get; then
        say "missing: ${missing[*]}. This is not Debian or Ubuntu: install the packages of these names by your own"
        say "package manager, then run it again."
        exit 1
    fi
    sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || { say "missing: ${missing[*]}; run it again as root"; exit 1; }
        sudo=(sudo)
    fi
    say "installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
fi

if ! cmp -s scripts/peers.txt .venv/peers.txt; then
    say "making the peers' Python environment in .venv"
    python3 -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/peers.txt
    # Last, so that an interrupted installation is made anew.
    cp scripts/peers.txt .venv/peers.txt
fi
if ! cargo nextest --version >/dev/null 2>&1; then
    say "building cargo-nextest"
    cargo install --quiet --locked cargo-nextest
fi
say "all is there"
