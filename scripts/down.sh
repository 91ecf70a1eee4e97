#!/usr/bin/env bash
# Stops the workers' containers and takes them away; running tasks may finish first. RabbitMQ, its virtual host and the
# secrets stay, so that the next `make up` is quick.
#
# usage: scripts/down.sh
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'down: %s\n' "$*"; }

if [ -d secrets ] && ! [ -x secrets ]; then
    say "secrets/ is another user's: make up was called as $(stat -c %U secrets), and so must make down be" >&2
    exit 1
fi
rm -f secrets/up
if scripts/compose.sh version >/dev/null 2>&1; then
    scripts/compose.sh down
else
    say "there is no Docker Compose here, so no worker in a container either"
    exit 0
fi
if [ -e secrets/started-broker ]; then
    say "RabbitMQ, which make up started, still runs; to stop it too: rabbitmqctl stop"
fi
