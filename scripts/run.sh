#!/usr/bin/env bash
# Dispatches the two tasks: to the workers that `make up` started, or else on the embedded broker.
#
# usage: scripts/run.sh [arguments of hello dispatch]
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -d secrets ] && ! [ -x secrets ]; then
    printf 'run: %s\n' "secrets/ is another user's: make up was called as $(stat -c %U secrets), and so must make run be" >&2
    exit 1
fi
if [ -e secrets/up ]; then
    exec dist/hello dispatch --broker amqp://dispatcher@127.0.0.1:5672/regatta \
        --password-file secrets/dispatcher "$@"
fi
if ! command -v cargo >/dev/null && [ -x dist/hello ]; then
    exec dist/hello dispatch "$@"
fi
exec cargo run --quiet --locked -p hello -- dispatch "$@"
