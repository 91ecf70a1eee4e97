#!/usr/bin/env bash
# The seed's round, checked, with Compose v2 and, where it is, docker-compose 1.29: build, up, run, down. The output's
# first lines are exact, the record says that each task ran on the worker of its own queue and both at the same time, the
# broker refuses each worker at the other's queue, the dispatcher finds both well, regatta runs a test in the image from
# scratch, and clean leaves nothing of it.
#
# usage: scripts/round.sh
set -euo pipefail
cd "$(dirname "$0")/.."

# Both workers up, with the Compose that COMPOSE names, and the seed's lines from them.
up_and_run() {
    printf 'round: %s\n' "$(scripts/compose.sh version | head -n 1)"
    make up
    local out expected worker
    out=$(make --no-print-directory run)
    printf '%s\n' "$out"
    expected=$'Dispatching tasks...\nResult from task_a: Hello from Task A\nResult from task_b: Hello from Task B'
    if [ "$(head -n 3 <<<"$out")" != "$expected" ]; then
        echo "round: the first lines are not the seed's" >&2
        exit 1
    fi
    for worker in worker-a worker-b; do
        grep -qw "$worker" <<<"$out" || { echo "round: nothing ran on $worker" >&2; exit 1; }
        make --no-print-directory ps | grep "$worker" >/dev/null || { echo "round: make ps lacks $worker" >&2; exit 1; }
        make --no-print-directory logs | grep "$worker" >/dev/null || { echo "round: make logs lacks $worker" >&2; exit 1; }
    done
}

make build
trap 'make down' EXIT
if [[ $(docker-compose version --short 2>/dev/null) = 1.* ]]; then
    export COMPOSE=docker-compose
    up_and_run
    make down
else
    echo "round: NOT CHECKED: docker-compose 1.29, which this system has no package of"
fi
export COMPOSE="docker compose"
$COMPOSE version >/dev/null 2>&1 || COMPOSE="docker --config .docker compose"
up_and_run

scripts/isolation.sh
dist/hello status --broker amqp://dispatcher@127.0.0.1:5672/regatta --password-file secrets/dispatcher
# Two tasks of a second each are done in about one: the containers work at the same time.
record=$(scripts/run.sh --wait 1 --format json)
python3 - "$record" <<'END'
import json, sys
record = json.loads(sys.argv[1])
wall = record["statistics"]["wall_s"]
a, b = record["tasks"]
together = a["started"] < b["finished"] and b["started"] < a["finished"]
print(f"round: two tasks of 1 s in {wall:.2f} s")
sys.exit(0 if together and 1 <= wall < 1.9 else "round: they did not run at the same time")
END
make help >/dev/null

# Regatta itself runs on nothing: no shell, no libraries, no network, a tree that it can't write to.
tree=$(mktemp -d)
chmod 755 "$tree"
cat >"$tree/regatta.toml" <<'END'
[suite.scratch]
adapter = "commands"
[[suite.scratch.test]]
name = "hello"
run = "/hello --version"
END
docker run --rm --network none --read-only --tmpfs /tmp:mode=1777 --cap-drop ALL --volume "$tree:/tree:ro" \
    --workdir /tree --entrypoint /regatta regatta-hello run --results /tmp/results
rm -r "$tree"

# A copy is cleaned, since what was built here may be wanted again; the image and what is at the broker are the same.
copy=$(mktemp -d)
tar --create --exclude=./target --exclude=./.venv --exclude=./.git . | tar --extract --directory "$copy"
env --unset=CARGO_TARGET_DIR make --no-print-directory -C "$copy" clean
left=$(docker images --quiet regatta-hello
    find "$copy" -maxdepth 1 \( -name dist -o -name secrets -o -name results \))
[ -z "$left" ] || { printf 'round: clean left %s\n' "$left" >&2; exit 1; }
if said=$(dist/hello status --broker amqp://dispatcher@127.0.0.1:5672/regatta --password-file secrets/dispatcher 2>&1); then
    printf 'round: clean left the dispatcher at the broker:\n%s\n' "$said" >&2
    exit 1
fi
rm -r "$copy"
