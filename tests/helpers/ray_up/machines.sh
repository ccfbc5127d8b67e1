#!/usr/bin/env bash
# A laptop and machines that it reaches by ssh, each a set of namespaces of this machine with an address of its own.
#
#     unshare --net --mount --pid --ipc --uts --fork --kill-child --mount-proc bash machines.sh FOLDER KEPT...
#
# is the laptop, 10.77.0.254: it starts head (10.77.0.1), worker-1 and worker-2, writes "ready" and ends with its
# standard input, and everything in it with it. FOLDER/authorized_keys opens every machine; FOLDER/NAME.pid (as the
# laptop counts) holds a machine up; FOLDER/NAME.log is its sshd's. The home of all is /tmp/home. KEPT: folders that
# stay in sight where they lie below /tmp.
set -euo pipefail
script=$(readlink -f "$0")

privacy() { # an own /tmp, /run, /dev/shm and home, so that two Rays, two sshds and two users never meet
    local path stage=$folder/stage
    mkdir -p "$stage"
    mount -t tmpfs -o mode=1777 tmpfs "$stage"
    for path in "${kept[@]}"; do
        if [[ $path == /tmp/* ]]; then
            mkdir -p "$stage/${path#/tmp/}"
            mount --bind "$path" "$stage/${path#/tmp/}"
        fi
    done
    mount --move "$stage" /tmp
    mount -t tmpfs tmpfs /run
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mkdir -m 700 -p /tmp/home/.ssh
    # Not over the home itself: Python may be installed in it.
    awk -F: -v OFS=: '$3 == 0 { $6 = "/tmp/home" } 1' /etc/passwd >/tmp/passwd
    mount --bind /tmp/passwd /etc/passwd
}

if [[ $1 == --machine ]]; then
    name=$2 folder=$3 kept=("${@:3}")
    hostname "$name"
    privacy
    install -m 600 "$folder/authorized_keys" /tmp/home/.ssh/
    ssh-keygen -q -t ed25519 -N '' -f /tmp/host_key
    mkdir /run/sshd
    exec "$(command -v sshd)" -D -e -f /dev/null -o HostKey=/tmp/host_key -o PidFile=none # the machine's init
fi

folder=$1 kept=("$@")
privacy
hostname laptop
mkdir /run/netns
ip link set lo up
ip link add bridge type bridge
ip address add 10.77.0.254/24 dev bridge
ip link set bridge up
number=0
for name in head worker-1 worker-2; do
    number=$((number + 1))
    ip netns add "$name"
    ip link add "to-$name" type veth peer name eth0 netns "$name"
    ip link set "to-$name" master bridge up
    ip -n "$name" link set lo up
    ip -n "$name" address add "10.77.0.$number/24" dev eth0
    ip -n "$name" link set eth0 up
    ip netns exec "$name" unshare --mount --pid --ipc --uts --fork --kill-child --mount-proc \
        bash "$script" --machine "$name" "${kept[@]}" >"$folder/$name.log" 2>&1 </dev/null &
    echo $! >"$folder/$name.pid"
done
for number in 1 2 3; do
    timeout 60 bash -c "until (: </dev/tcp/10.77.0.$number/22) 2>/dev/null; do sleep 0.1; done"
done
echo ready
read -r || true
