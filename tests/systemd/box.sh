#!/bin/bash
# A Debian with a real systemd as its first process, to test the package. It is built once, and each test boots a copy that
# is discarded afterwards. It needs root, mmdebstrap and systemd-container. The machine itself does not need systemd.
#
#   box.sh make                        builds the file system (about a minute; once)
#   box.sh boot SECONDS FOLDER SCRIPT  boots a copy with FOLDER at /box, runs SCRIPT there (a path in FOLDER), prints
#                                      its output and exits with its code; 124: timeout
#   box.sh clean                       removes the file system
set -euo pipefail
here=$(readlink -f "$0")
store=${MAILHOOK_BOX:-/var/cache/resmic-mailhook-box}
packages=systemd-sysv,dbus,libnss-systemd,ca-certificates,dovecot-imapd,nsd,openssl,python3,curl,sqlite3,procps

fail() { echo "box.sh: $*" >&2; exit 2; }
[ "$(id -u)" = 0 ] || fail "this needs root: namespaces and mounts"
for tool in mmdebstrap systemd-nspawn; do
    command -v $tool >/dev/null || fail "no $tool here: apt-get install mmdebstrap systemd-container"
done

make_box() {
    local suite; suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # Build the box again if its Debian release or its list of packages has changed.
    [ "$(cat "$store/complete" 2>/dev/null)" != "$suite $packages" ] || return 0
    rm -rf --one-file-system "$store"
    mkdir -p "$store"
    # Documents and translations are half of the size. Only the documents of this package are needed.
    mmdebstrap --quiet --mode=root --variant=apt --include="$packages" --dpkgopt=force-unsafe-io \
        --dpkgopt=path-exclude='/usr/share/doc/*' --dpkgopt=path-include='/usr/share/doc/resmic-mailhook*' \
        --dpkgopt=path-exclude='/usr/share/locale/*' "$suite" "$store/root"
    local units=$store/root/etc/systemd/system
    # Units that need a network or a terminal would delay the boot.
    local unit
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
        console-getty.service systemd-networkd-wait-online.service; do
        ln -sf /dev/null "$units/$unit"
    done
    # The test is a unit. When it ends, the container ends with its exit code.
    cat > "$units/trial.service" <<'UNIT'
[Unit]
After=multi-user.target
SuccessAction=exit
FailureAction=exit
[Service]
Type=exec
WorkingDirectory=/box
ExecStart=/bin/bash /box/.script
StandardOutput=append:/box/.output
StandardError=inherit
UNIT
    printf '[Unit]\nRequires=multi-user.target\nWants=trial.service\nAfter=multi-user.target\nAllowIsolate=yes\n' \
        > "$units/trial.target"
    echo trial > "$store/root/etc/hostname"
    printf '127.0.0.1 localhost trial\n::1 localhost\n' > "$store/root/etc/hosts"
    : > "$store/root/etc/machine-id"
    echo "$suite $packages" > "$store/complete"
}

# This function runs in a new mount namespace, so that all mounts end with it.
boot_box() {
    local limit=$1 folder=$2 script=$3
    work=$(mktemp -d) group=/sys/fs/cgroup/trial.$$ show=
    trap leave EXIT
    mount -t tmpfs trial "$work"
    mkdir "$work"/{upper,work,root,box}
    mount -t overlay -o "lowerdir=$store/root,upperdir=$work/upper,workdir=$work/work" trial "$work/root"
    cp -rL "$folder/." "$work/box/"
    printf 'export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive SYSTEMD_PAGER=cat\nexec bash /box/%s\n' "$script" \
        > "$work/box/.script"
    : > "$work/box/.output"
    # systemd-nspawn needs the unified cgroup hierarchy, a separate cgroup and a tmpfs at /run. Without bpf(2), the unit's
    # IPAddressDeny= would silently have no effect.
    umount -R /sys/fs/cgroup 2>/dev/null || true
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir "$group"
    mount -t tmpfs -o mode=755 run /run
    (
        echo "$BASHPID" > "$group/cgroup.procs"
        exec timeout -k 10 "$limit" systemd-nspawn --quiet --boot --directory="$work/root" --machine="trial-$$" \
            --register=no --keep-unit --link-journal=no --timezone=off --bind="$work/box:/box" --private-network \
            --capability=CAP_BPF,CAP_NET_ADMIN --system-call-filter=bpf --console=pipe systemd.unit=trial.target
    ) < /dev/null > "$work/console" 2>&1 &
    local container=$! code=0
    tail -n +1 -s 0.2 -f --pid=$container "$work/box/.output" & show=$!
    wait $container || code=$?
    wait $show || true
    [ $code != 124 ] || echo "box.sh: not done after $limit s" >&2
    exit $code
}

leave() {
    [ -z "$show" ] || kill "$show" 2>/dev/null || true
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    umount -l "$work/root" "$work" 2>/dev/null || true
    rmdir "$work" 2>/dev/null || true
}

case ${1-} in
make) make_box ;;
clean) rm -rf --one-file-system "$store" ;;
boot) make_box; shift; exec unshare --mount --propagation private "$BASH" "$here" within "$@" ;;
within) shift; boot_box "$@" ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$here" >&2; exit 2 ;;
esac
