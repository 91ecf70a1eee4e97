#!/usr/bin/env bash
# Takes away what was built and started: the workers' containers, their image, the virtual host `regatta` with the users
# that were made for it, the secrets, and what was built. RabbitMQ stays, running or not, and so do the packages that
# `make install` installed.
#
# usage: scripts/clean.sh
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'clean: %s\n' "$*"; }

scripts/down.sh || say "the workers' containers could not be stopped (see above)"

if ! command -v docker >/dev/null; then
    say "there is no Docker here, so no image either"
elif ! scripts/docker.sh; then
    say "so the image regatta-hello stays if there is one: docker image rm regatta-hello"
elif docker image inspect regatta-hello >/dev/null 2>&1; then
    docker image rm regatta-hello >/dev/null && say "the image regatta-hello is gone"
fi

PATH=$PATH:/usr/sbin:/sbin
if ! command -v rabbitmqctl >/dev/null; then
    say "there is no RabbitMQ here, so nothing at a broker either"
elif ! scripts/broker.sh remove; then
    say "what is at the broker stays (see above): the virtual host regatta, users dispatcher, worker-a, worker-b"
fi

cargo clean
rm -rf dist results secrets .venv .docker
