#!/usr/bin/env bash
# Shows that Docker alone is enough: a copy of the tree, without what was built, becomes the image from scratch and
# dist/ by the Dockerfile's stage from-source, and the binaries run. Where the stage's own image of Rust is not to be had,
# a Debian base with this machine's toolchain stands in for it (that takes root).
#
# usage: scripts/from-source.sh
set -euo pipefail
cd "$(dirname "$0")/.."

readonly stand_in=regatta-rust

say() { printf 'from-source: %s\n' "$*"; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"; docker image rm "$stand_in" >/dev/null 2>&1 || true' EXIT

rust_image=$(sed -n 's/^ARG RUST_IMAGE=//p' Dockerfile)
if ! docker image inspect "$rust_image" >/dev/null 2>&1 && ! docker pull --quiet "$rust_image" >/dev/null 2>&1; then
    say "$rust_image can't be pulled; a stand-in with $(rustc --version) is made"
    rust_image=$stand_in
    base=$folder/base
    . /etc/os-release
    /usr/sbin/debootstrap --variant=minbase --include=gcc,libc6-dev,ca-certificates "$VERSION_CODENAME" "$base" \
        >"$folder/log" 2>&1 || { tail -n 20 "$folder/log" >&2; exit 1; }
    sysroot=$(rustc --print sysroot)
    # Its documentation and other targets are as large again.
    (cd "$sysroot" && cp --parents -r bin/cargo bin/rustc lib/*.so* "lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')" \
        "$base/usr/local/")
    # The authorities that this machine trusts, which may be more than Debian's.
    cp /etc/ssl/certs/ca-certificates.crt "$base/etc/ssl/certs/"
    tar -C "$base" -c . | docker import - "$rust_image" >/dev/null
    rm -r "$base"
fi

mkdir "$folder/tree"
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -c | tar -C "$folder/tree" -x
# Docker's plug-ins, where they aren't the system's own.
[ ! -d .docker ] || ln -s "$PWD/.docker" "$folder/tree/.docker"
RUST_IMAGE=$rust_image "$folder/tree/scripts/build.sh" docker >"$folder/log" 2>&1 ||
    { tail -n 40 "$folder/log" >&2; exit 1; }

out=$(docker run --rm --network none --read-only --tmpfs /results:mode=1777 regatta-hello dispatch --results /results)
printf '%s\n' "$out"
expected=$'Dispatching tasks...\nResult from task_a: Hello from Task A\nResult from task_b: Hello from Task B'
if [ "$(head -n 3 <<<"$out")" != "$expected" ]; then
    echo "from-source: the first lines are not the seed's" >&2
    exit 1
fi
docker run --rm --network none --read-only --entrypoint /regatta regatta-hello --version
"$folder/tree/dist/regatta" --version
[ -x "$folder/tree/dist/hello" ] || { echo "from-source: dist/hello was not left" >&2; exit 1; }
docker image rm regatta-hello >/dev/null
