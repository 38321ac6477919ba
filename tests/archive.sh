#!/bin/bash
# Runs the program of an archive (`make dist`) in a root directory that has nothing but the files of the archive, certificate
# authorities and a resolv.conf. Needs root.
#
#   archive.sh ARCHIVE.tar.gz [EMULATOR]   EMULATOR: qemu-aarch64-static for an archive of arm64
set -euo pipefail
archive=$(readlink -f "$1") emulator=${2:+$(command -v "$2")}
project=$(readlink -f "$(dirname "$0")/..")
root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT

fail() { echo "archive.sh: $*" >&2; exit 1; }
step() { echo "== $*"; }
[ -z "$emulator" ] || install -D "$emulator" "$root/emulator"
# Runs the program in that root directory, without a network.
mailhook() { unshare --net chroot "$root" ${emulator:+/emulator} /usr/bin/resmic-mailhook "$@"; }

step "unpacked as docs/install.md says"
tar -xzf "$archive" -C "$root" --strip-components=1
(cd "$root" && sha256sum --quiet --check SHA256SUMS)
[ "$(cd "$root" && find usr -type f | sort)" = "$(sed 's/^[0-9a-f]*  //' "$root/SHA256SUMS" | sort)" ] || fail "SHA256SUMS is not complete"
for file in bin/resmic-mailhook lib/systemd/system/resmic-mailhook.service share/man/man1/resmic-mailhook.1.gz \
    share/bash-completion/completions/resmic-mailhook share/doc/resmic-mailhook/docs/install.md share/doc/resmic-mailhook/config.toml; do
    [ -s "$root/usr/$file" ] || fail "no usr/$file"
done
! tar -tzf "$archive" | grep '/$' || fail "an entry for a folder"
file --brief "$root/usr/bin/resmic-mailhook" | grep -E 'static(-pie|ally) linked' || fail "not static"

step "--version and check"
mailhook --version
install -D -m 0644 /etc/ssl/certs/ca-certificates.crt -t "$root/etc/ssl/certs"
echo 'nameserver 127.0.0.1' > "$root/etc/resolv.conf"
mkdir -p "$root/etc/resmic-mailhook" "$root/var/lib/resmic-mailhook"
sed 's/^accept = .*/accept = ["none"]/' "$root/usr/share/doc/resmic-mailhook/config.toml" > "$root/etc/resmic-mailhook/config.toml"
for secret in imap-password webhook-secret; do
    install -m 0600 <(echo a-secret) "$root/etc/resmic-mailhook/$secret"
done
mailhook check

step "a mail becomes an event in a database, and back"
install -D "$project/sample-mails/published/"*.eml -t "$root/mails"
mailhook import /mails > "$root/printed" || fail "import: $(cat "$root/printed")"
[ -n "$(mailhook events --json)" ] || fail "no event"
mailhook backup /copy.db
[ -s "$root/copy.db" ] || fail "no backup"
step "the archive works: $(basename "$archive")"
