#!/usr/bin/env bash
# Proves the rights that scripts/broker.sh gives: a worker with its own credentials is refused by the broker at the other
# worker's queue. `make up` comes first.
#
# usage: scripts/isolation.sh [HOST:PORT]
set -euo pipefail
cd "$(dirname "$0")/.."

readonly broker=${1:-127.0.0.1:5672}
readonly hello=${HELLO:-dist/hello}
readonly deadline_s=30

fail() { printf 'isolation: %s\n' "$@" >&2; exit 1; }

# usage: refused WORKER QUEUE
refused() {
    local said code=0
    said=$(timeout "$deadline_s" "$hello" worker --queue "$2" --name "$1" \
        --broker "amqp://$1@$broker/regatta" --password-file "secrets/$1" 2>&1) || code=$?
    case $code in
    0 | 124) fail "$1 was not refused at $2 (exit status $code):" "$said" ;;
    esac
    # The broker's own words: any other failure proves nothing.
    grep -qF "ACCESS_REFUSED - access to queue '$2' in vhost 'regatta' refused for user '$1'" <<<"$said" ||
        fail "$1 failed at $2 (exit status $code), but not since the broker refused it:" "$said"
    printf 'isolation: the broker refuses %s at %s\n' "$1" "$2"
}

refused worker-a queue_b
refused worker-b queue_a
