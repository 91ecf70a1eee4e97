#!/usr/bin/env bash
# Puts in place what the tests need: RabbitMQ, Docker with Compose, debootstrap, openssl, cargo-nextest, a Python
# environment in .venv with the peers, and Docker's plug-ins compose and buildx. Debian 12 has no packages of these two:
# there they come from Debian 13's, into .docker, and what the system has stays as it is.
# Safe to run again; quick when all is there.
#
# usage: scripts/install.sh
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'install: %s\n' "$*"; }

has() { command -v "$1" >/dev/null 2>&1; }
has_plugin() { docker "$1" version >/dev/null 2>&1 || docker --config .docker "$1" version >/dev/null 2>&1; }

# Makes ready to install what is named, or ends with what to do instead.
prepare() {
    if ! has apt-get; then
        say "missing: $*. This is not Debian or Ubuntu: install what is called so by your own package manager,"
        say "then run it again."
        exit 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || { say "missing: $*; run it again as root"; exit 1; }
        sudo=(sudo)
    fi
    "${sudo[@]}" apt-get update -qq
}

install_packages() {
    say "installing $*"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
}

missing=()
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing+=(rabbitmq-server)
has docker || missing+=(docker.io)
docker compose version >/dev/null 2>&1 || has docker-compose || missing+=(docker-compose)
has openssl || missing+=(openssl)
has setpriv || missing+=(util-linux)
[ -x /usr/sbin/debootstrap ] || missing+=(debootstrap)
# Debian's python3 can't make environments by itself.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)

if [ ${#missing[@]} -gt 0 ]; then
    prepare "${missing[@]}"
    install_packages "${missing[@]}"
fi

# The package that brings a plug-in of Docker here; nothing where there is none.
plugin_package() {
    local package version least=0
    # Up to Debian 12, docker-compose was 1.29.
    [ "$1" != compose ] || least=2
    for package in "docker-$1-v2" "docker-$1"; do
        version=$(apt-cache show --no-all-versions "$package" 2>/dev/null | sed -n 's/^Version: //p' || true)
        if [ -n "$version" ] && dpkg --compare-versions "$version" ge "$least"; then
            printf '%s' "$package"
            return
        fi
    done
}

# Unpacks plug-ins from Debian 13's packages, which the archive signs, into .docker. Lists and packages lie in a folder
# of their own: the system's sources and packages stay as they are.
unpack_plugins() {
    local archive folder apt package plugin
    say "unpacking Docker's plug-ins $* into .docker"
    archive=$(apt-get indextargets --format '$(REPO_URI)' 'Release: bookworm' 2>/dev/null | head -n 1 || true)
    if [ -z "$archive" ]; then
        say "missing: Docker's plug-ins $*, and there is no package of them here: install them as Docker's own pages say,"
        say "then run it again."
        exit 1
    fi
    folder=$(mktemp -d)
    mkdir -p "$folder"/{lists/partial,archives/partial} .docker/cli-plugins
    echo "deb $archive trixie main" >"$folder/sources.list"
    apt=(apt-get -qq -o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder" -o Debug::NoLocking=1 -o APT::Sandbox::User=root)
    "${apt[@]}" update
    (cd "$folder" && "${apt[@]}" download "${@/#/docker-}")
    for package in "$folder"/*.deb; do
        dpkg-deb --extract "$package" "$folder/unpacked"
    done
    for plugin in "$@"; do
        install -m 0755 "$folder/unpacked/usr/libexec/docker/cli-plugins/docker-$plugin" .docker/cli-plugins/
    done
    rm -r "$folder"
}

plugins=()
has_plugin compose || plugins+=(compose)
has_plugin buildx || plugins+=(buildx)
if [ ${#plugins[@]} -gt 0 ]; then
    prepare "${plugins[@]/#/docker-}"
    unpackaged=()
    for plugin in "${plugins[@]}"; do
        package=$(plugin_package "$plugin")
        if [ -n "$package" ]; then install_packages "$package"; else unpackaged+=("$plugin"); fi
    done
    [ ${#unpackaged[@]} -eq 0 ] || unpack_plugins "${unpackaged[@]}"
fi

if ! cmp -s scripts/peers.txt .venv/peers.txt; then
    say "making the peers' Python environment in .venv"
    python3 -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/peers.txt
    # Last, so that an interrupted installation is made anew.
    cp scripts/peers.txt .venv/peers.txt
fi
if ! has cargo; then
    say "there is no Rust here, so no cargo-nextest either: make build builds in Docker, make test does nothing without it"
elif ! cargo nextest --version >/dev/null 2>&1; then
    say "building cargo-nextest"
    cargo install --quiet --locked cargo-nextest
fi
say "all is there"
