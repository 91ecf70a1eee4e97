#!/usr/bin/env bash
# Makes the host's RabbitMQ ready: starts it when none answers, and gives it the virtual host `regatta` with the users
# worker-a and worker-b, each with the least rights, and dispatcher, who may do everything there: it declares what the
# workers may not (`hello setup`). Their passwords are made once, into secrets/.
# Safe to run again: it sets the rights anew and changes no password.
#
# A worker may read its own task queue, and make and use its own retry, dead-letter and control queues. It may not touch
# the other worker's queue. What Celery's reply queues force open is the default exchange: who may write to it can
# publish to any queue of the virtual host.
#
# With `remove` it takes all of that away again. RabbitMQ itself stays, and what was not made here too.
#
# usage: scripts/broker.sh [remove]
set -euo pipefail
cd "$(dirname "$0")/.."

readonly vhost=regatta
# Who the containers run as, see the Dockerfile.
readonly container_group=65534

say() { printf 'broker: %s\n' "$*"; }
fail() { printf 'broker: %s\n' "$@" >&2; exit 1; }

sudo=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "RabbitMQ's administration takes root, and there is no sudo; run it again as root"
    sudo=(sudo)
fi
PATH=$PATH:/usr/sbin:/sbin
command -v rabbitmqctl >/dev/null || fail "RabbitMQ is not installed on this host" "install it: make install"

ctl() { "${sudo[@]}" rabbitmqctl --quiet "$@"; }
answers() { ctl ping >/dev/null 2>&1; }
port_taken() { (exec 3<>/dev/tcp/127.0.0.1/5672) 2>/dev/null; }

secrets() {
    mkdir -p secrets
    chmod 0700 secrets
}

start() {
    answers && return
    if port_taken; then
        fail "something else listens on port 5672, and it is not this host's own RabbitMQ" \
            "look what it is (ss -ltnp 'sport = :5672') and stop it, then run it again"
    fi
    say "starting RabbitMQ"
    if [ -d /run/systemd/system ]; then
        "${sudo[@]}" systemctl start rabbitmq-server
    else
        "${sudo[@]}" rabbitmq-server -detached >/dev/null 2>&1
    fi
    for _ in {1..60}; do
        answers && break
        sleep 1
    done
    # For whoever wants to know whose it is. Nothing here ever stops a broker.
    date --utc +%FT%TZ >secrets/started-broker
}

# Makes the password's file unless it is there. A worker's is readable in its container too.
password() {
    local file=secrets/$1
    if [ ! -s "$file" ]; then
        (umask 077 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$file")
    fi
    if [ "$1" = dispatcher ]; then
        chmod 0400 "$file"
    else
        "${sudo[@]}" chgrp "$container_group" "$file"
        chmod 0440 "$file"
    fi
}

# usage: user NAME CONFIGURE WRITE READ (patterns)
user() {
    local name=$1 tags
    password "$name"
    tags=$(awk -F '\t' -v name="$name" '$1 == name { print $2 }' <<<"$users")
    case $tags in
    '')
        ctl add_user "$name" <"secrets/$name" >/dev/null
        ctl set_user_tags "$name" "$vhost"
        ;;
    "[$vhost]")
        # The file is what counts; it may have been made anew.
        ctl authenticate_user "$name" <"secrets/$name" >/dev/null 2>&1 ||
            ctl change_password "$name" <"secrets/$name" >/dev/null
        ;;
    *)
        fail "the broker has a user $name already that was not made here" \
            "if nobody needs it, delete it (rabbitmqctl delete_user $name), then run it again"
        ;;
    esac
    ctl set_permissions -p "$vhost" "$@"
}

# usage: worker NAME QUEUE
worker() {
    # <node name>.<unique>.celery.pidbox; a node's name may end in its host.
    local control="$1(@.*)?\\.[^.]+\\.celery\\.pidbox"
    user "$1" \
        "^($2\\.(retry\\..*|dead)|$control|celeryev|celery\\.pidbox|reply\\.celery\\.pidbox)\$" \
        "^(amq\\.default|celeryev|reply\\.celery\\.pidbox|$control)\$" \
        "^($2(\\.retry\\..*)?|$control|celery\\.pidbox)\$"
}

# usage: remove
remove() {
    local name
    answers || fail "RabbitMQ does not answer" "start it and run it again"
    # Ours are those with our tag.
    for name in $(ctl list_users | awk -F '\t' -v tag="[$vhost]" '$2 == tag { print $1 }'); do
        ctl delete_user "$name"
        say "user $name is gone"
    done
    if ctl list_vhosts name | grep -qx "$vhost"; then
        ctl delete_vhost "$vhost"
        say "virtual host $vhost is gone, with its queues"
    fi
}

if [ "${1:-}" = remove ]; then
    remove
    exit
fi

secrets
start
ctl await_startup --timeout 120 >/dev/null ||
    fail "RabbitMQ did not get ready within two minutes" "its log says why: /var/log/rabbitmq/"

ctl list_vhosts name | grep -qx "$vhost" || ctl add_vhost "$vhost"
users=$(ctl list_users)
user dispatcher '.*' '.*' '.*'
worker worker-a queue_a
worker worker-b queue_b
say "ready: virtual host $vhost, users dispatcher, worker-a and worker-b (passwords in secrets/)"
