#!/usr/bin/env bash
# Builds the static binaries dist/regatta and dist/hello and, where Docker is, the image of the workers. Where there is no
# Rust, or when asked for it, Docker builds them from the sources, in the image RUST_IMAGE if that is set.
#
# usage: scripts/build.sh [docker]
set -euo pipefail
cd "$(dirname "$0")/.."

readonly binaries=(regatta hello)

say() { printf 'build: %s\n' "$*"; }
fail() { printf 'build: %s\n' "$@" >&2; exit 1; }

if [ "${1:-}" = docker ] || ! command -v cargo >/dev/null; then
    scripts/docker.sh || fail "there is no Rust here either: install it (see rustup's page), or mend that"
    docker=(docker)
    # Docker's own, or what scripts/install.sh unpacked.
    docker buildx version >/dev/null 2>&1 || docker=(docker --config .docker)
    "${docker[@]}" buildx version >/dev/null 2>&1 || fail "Docker's plug-in buildx is missing" "install it: make install"
    say "building in Docker, from the sources"
    DOCKER_BUILDKIT=1 "${docker[@]}" build --target from-source --tag regatta-hello \
        ${RUST_IMAGE:+--build-arg "RUST_IMAGE=$RUST_IMAGE"} .
    container=$(docker create regatta-hello)
    trap 'docker rm "$container" >/dev/null' EXIT
    mkdir -p dist
    for binary in "${binaries[@]}"; do
        docker cp "$container:/$binary" "dist/$binary"
    done
    exit
fi

# With an explicit target, the flag is for the binaries alone and not for the compiler's own plug-ins.
target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$target" -p regatta-cli -p hello
mkdir -p dist
for binary in "${binaries[@]}"; do
    install -m 0755 "${CARGO_TARGET_DIR:-target}/$target/release/$binary" "dist/$binary"
done

if said=$(scripts/docker.sh 2>&1); then
    docker build --quiet --target runtime --tag regatta-hello .
else
    say "the image was left out, which make up needs:"
    printf '%s\n' "$said"
fi
