#!/usr/bin/env bash
# Whether Docker can be used here; otherwise it says why, and what to do.
#
# usage: scripts/docker.sh
set -euo pipefail

if ! command -v docker >/dev/null; then
    printf 'docker: %s\n' "Docker is not installed" "install it: make install" >&2
elif said=$(docker info 2>&1 >/dev/null); then
    exit 0
elif grep -qi 'permission denied' <<<"$said"; then
    printf 'docker: %s\n' "this user may not use Docker" \
        "become a member of its group and log in anew (sudo usermod -aG docker \"\$USER\"), or do all of it as root" >&2
else
    printf 'docker: %s\n' "Docker does not answer: $(tail -n 1 <<<"$said")" \
        "start it (systemctl start docker, or dockerd)" >&2
fi
exit 1
