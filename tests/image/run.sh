#!/bin/bash
# Starts the image with compose.yml, and sends mails through it (tools/src/bin/image.rs has the steps).
#
#   run.sh ARCHIVE PROGRAM   ARCHIVE: the image, as `make image` writes it; PROGRAM: the built target/debug/image
#
# It needs root, podman, crun and podman-compose. Network, mounts and processes are in new namespaces, and podman's storage is in
# a temporary folder. So the machine's own containers, ports and /etc/resolv.conf stay as they are.
set -euo pipefail
here=$(readlink -f "$0")

fail() { echo "run.sh: $*" >&2; exit 2; }

# Runs inside the namespaces. The DNS server of the test listens on port 53 of their loopback.
within() {
    local folder=$1 archive=$2 program=$3
    ip link set lo up
    echo 'nameserver 127.0.0.1' > "$folder/resolv.conf"
    mount --bind "$folder/resolv.conf" /etc/resolv.conf
    # podman has its lock files in /dev/shm. Without this mount, the test would use those of the machine's podman.
    mount -t tmpfs -o mode=1777 shm /dev/shm
    # crun refuses a mixture of cgroup v1 and v2, so this namespace has only v2.
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    cat > "$folder/storage.conf" <<CONF
[storage]
driver = "vfs"
graphroot = "$folder/storage"
runroot = "$folder/run"
CONF
    # Without systemd, podman can neither create control groups nor timers for health checks; the test starts each check.
    cat > "$folder/containers.conf" <<CONF
[containers]
cgroups = "disabled"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = "$folder/libpod"
CONF
    export CONTAINERS_CONF=$folder/containers.conf CONTAINERS_STORAGE_CONF=$folder/storage.conf DISABLE_HC_SYSTEMD=true
    exec "$program" "$archive"
}

if [ "${1-}" = within ]; then
    shift
    within "$@"
fi
[ $# = 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$here" >&2; exit 2; }
[ "$(id -u)" = 0 ] || fail "this needs root: namespaces and mounts"
for tool in podman crun podman-compose ip; do
    command -v $tool >/dev/null || fail "no $tool here; make test-image installs it"
done
folder=$(mktemp -d /var/tmp/image.XXXXXX)
trap 'rm -rf --one-file-system "$folder"' EXIT
unshare --net --mount --pid --fork --kill-child --mount-proc --propagation private \
    "$BASH" "$here" within "$folder" "$(readlink -f "$1")" "$(readlink -f "$2")"
