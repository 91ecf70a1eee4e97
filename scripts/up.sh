#!/usr/bin/env bash
# Makes the broker ready, starts both workers in containers and waits until they are healthy.
# Safe to run again: what runs as it should is left alone.
#
# usage: scripts/up.sh
set -euo pipefail
cd "$(dirname "$0")/.."

readonly services=(worker-a worker-b)
readonly deadline_s=90

say() { printf 'up: %s\n' "$*"; }
fail() { printf 'up: %s\n' "$@" >&2; exit 1; }

# The state of a service's container: healthy, starting, unhealthy or none.
health() {
    local container
    container=$(scripts/compose.sh ps -q "$1")
    if [ -z "$container" ]; then
        echo none
    else
        docker inspect --format '{{.State.Health.Status}}' "$container" 2>/dev/null || echo none
    fi
}

all_healthy() {
    local service
    for service in "${services[@]}"; do
        [ "$(health "$service")" = healthy ] || return 1
    done
}

for binary in hello regatta; do
    [ -x "dist/$binary" ] || fail "dist/$binary is not there" "build it: make build"
done
scripts/docker.sh

scripts/broker.sh
dist/hello setup --broker amqp://dispatcher@127.0.0.1:5672/regatta --password-file secrets/dispatcher

rm -f secrets/up
# An image that is there is not looked for in a registry.
docker build --quiet --target runtime --tag regatta-hello . >/dev/null
scripts/compose.sh up --detach "${services[@]}"

say "waiting until ${services[*]} are healthy"
end=$((SECONDS + deadline_s))
until all_healthy; do
    if [ "$SECONDS" -ge "$end" ]; then
        for service in "${services[@]}"; do
            printf 'up: %s is %s\n' "$service" "$(health "$service")" >&2
        done
        scripts/compose.sh logs --tail 30 "${services[@]}" >&2
        fail "not healthy after $deadline_s s; the logs above say why" \
            "the containers still run, to be looked at: make ps, make logs; make down takes them away"
    fi
    sleep 1
done

: >secrets/up
say "both workers are healthy"
say "now: make run (dispatch), make ps, make logs; at the end: make down"
