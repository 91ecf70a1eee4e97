#!/usr/bin/env bash
# The seed's round, checked: build, up, run, down. The output's first lines are exact, and the record says that each
# task ran on the worker of its own queue.
#
# usage: scripts/round.sh
set -euo pipefail
cd "$(dirname "$0")/.."

make build up
trap 'make down' EXIT
out=$(make --no-print-directory run)
printf '%s\n' "$out"
expected=$'Dispatching tasks...\nResult from task_a: Hello from Task A\nResult from task_b: Hello from Task B'
if [ "$(head -n 3 <<<"$out")" != "$expected" ]; then
    echo "round: the first lines are not the seed's" >&2
    exit 1
fi
for worker in worker-a worker-b; do
    grep -qw "$worker" <<<"$out" || { echo "round: nothing ran on $worker" >&2; exit 1; }
done
make ps
