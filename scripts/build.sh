#!/usr/bin/env bash
# Builds the static binaries dist/regatta and dist/hello and, where Docker is, the image of the workers.
#
# usage: scripts/build.sh
set -euo pipefail
cd "$(dirname "$0")/.."

# With an explicit target, the flag is for the binaries alone and not for the compiler's own plug-ins.
target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$target" -p regatta-cli -p hello
mkdir -p dist
for binary in regatta hello; do
    install -m 0755 "${CARGO_TARGET_DIR:-target}/$target/release/$binary" "dist/$binary"
done

if docker info >/dev/null 2>&1; then
    docker build --quiet --target runtime --tag regatta-hello .
else
    printf 'build: Docker is not there or does not answer: the image was left out (make up needs it)\n'
fi
