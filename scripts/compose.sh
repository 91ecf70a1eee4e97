#!/usr/bin/env bash
# Docker Compose, whichever is here: v2 as Docker's plug-in, or else the command docker-compose. COMPOSE names another,
# as a command with its arguments: make up COMPOSE=docker-compose
#
# usage: scripts/compose.sh [arguments of Compose]
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -n "${COMPOSE:-}" ]; then
    read -ra compose <<<"$COMPOSE"
elif docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
else
    echo "compose: there is no Docker Compose here; install it: make install" >&2
    exit 127
fi
exec "${compose[@]}" "$@"
