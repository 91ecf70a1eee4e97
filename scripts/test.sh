#!/usr/bin/env bash
# The whole automated sequence: set-up, every Rust test (over the embedded broker, RabbitMQ nodes of the tests' own, and
# Python peers), then the image from source, and the seed's round with containers: up, run, down. Ends with the test
# runner's own sums.
#
# usage: scripts/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."

make --no-print-directory install

log=$(mktemp)
trap 'rm -f "$log"' EXIT

failed=0
cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log" || failed=1
image=passed
scripts/from-source.sh || { failed=1; image=failed; }
round=passed
scripts/round.sh || { failed=1; round=failed; }

awk -v image="$image" -v round="$round" '
    /^test result:/ { ok += $4; bad += $6; ignored += $8 }
    END {
        printf "\nimage from source: %s\n", image
        printf "round (up, run, down): %s\n", round
        printf "test result: %s. %d passed; %d failed; %d ignored\n", (bad ? "FAILED" : "ok"), ok, bad, ignored
    }' "$log"
exit "$failed"
