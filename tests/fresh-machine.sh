#!/bin/bash
# Runs the README's commands on a fresh machine: a minimal Debian with nothing but make, git, ca-certificates and Rust.
# It needs root, mmdebstrap, a network, and a Rust from rustup.
#
#   fresh-machine.sh RELEASE [TARGET...]   RELEASE: 12, 13 or a code name; TARGET: of the Makefile; default: demo test
#
# It tests the last commit. FRESH_FOLDER is where the Debian is installed (about 8 GB). KEEP=1 keeps it, and prints its path.
set -euo pipefail
here=$(readlink -f "$0")
project=$(readlink -f "$(dirname "$0")/..")
home=/root/resmic-mailhook

fail() { echo "fresh-machine.sh: $*" >&2; exit 2; }

# A minimal Debian with the certificate authorities of this machine.
make_root() {
    local suite=$1 root=$2
    mmdebstrap --quiet --mode=root --variant=minbase --include=make,git,ca-certificates --dpkgopt=force-unsafe-io \
        "$suite" "$root"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    printf '127.0.0.1 localhost fresh\n::1 localhost\n' > "$root/etc/hosts"
    find /usr/local/share/ca-certificates -name '*.crt' -exec cp -t "$root/usr/local/share/ca-certificates" {} +
    chroot "$root" update-ca-certificates >/dev/null 2>&1
    git clone --quiet "file://$project" "$root$home"
}

# Rust as rustup installs it: a toolchain, and this machine's settings for crates.io.
add_rust() {
    local root=$1 sysroot cargo=${CARGO_HOME:-$HOME/.cargo} config
    sysroot=$(cd "$project" && rustc --print sysroot) || fail "no Rust here"
    [ "$sysroot" != /usr ] || fail "this Rust is Debian's own; install one from https://rustup.rs"
    mkdir -p "$root/opt/rust" "$root/root/.cargo"
    mount --bind -o ro "$sysroot" "$root/opt/rust"
    for config in "$cargo"/config "$cargo"/config.toml; do
        [ ! -e "$config" ] || cp "$config" "$root/root/.cargo/"
    done
}

# This function runs in new namespaces, so that all mounts and processes end with it.
enter() {
    local root=$1; shift
    add_rust "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=1777 tmp "$root/tmp"
    mount -t tmpfs -o mode=755 run "$root/run"
    mkdir -p "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 pts "$root/dev/pts"
    mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
    ln -sf pts/ptmx "$root/dev/ptmx"
    # From this machine's environment, make gets only the settings for the registries.
    local -a settings=()
    mapfile -t settings < <(env | grep -E '^(CARGO_(HTTP|NET|REGISTRY|REGISTRIES)_[A-Z0-9_]+|npm_config_[a-z_]*|https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY)=' || true)
    exec chroot "$root" env -i HOME=/root TERM=dumb NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt \
        PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${settings[@]}" \
        make -C "$home" "$@" < /dev/null
}

if [ "${1-}" = within ]; then
    shift
    enter "$@"
fi
case ${1-} in
12) suite=bookworm ;;
13) suite=trixie ;;
[a-z]*) suite=$1 ;;
*) sed -n '2,7s/^# \{0,1\}//p' "$here" >&2; exit 2 ;;
esac
shift
[ $# -gt 0 ] || set -- demo test
[ "$(id -u)" = 0 ] || fail "this needs root: namespaces and mounts"
command -v mmdebstrap >/dev/null || fail "no mmdebstrap here: apt-get install mmdebstrap"

folder=$(mktemp -d "${FRESH_FOLDER:-/var/tmp}/fresh-$suite.XXXXXX")
root=$folder/root
[ -n "${KEEP-}" ] && echo "keeping $root" || trap 'rm -rf --one-file-system "$folder"' EXIT
make_root "$suite" "$root"
for target; do
    echo "== Debian $suite: make $target"
    unshare --mount --pid --fork --kill-child --propagation private "$BASH" "$here" within "$root" "$target"
done
echo "== Debian $suite: $* succeeded"
