#!/bin/bash
# Tests the package of a debug build (`make deb-dev`) in a booted Debian with systemd and a real Dovecot.
set -euo pipefail
root=$(readlink -f "$(dirname "$0")/../..")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
package=$(ls -t "$root"/target/packaging/*.deb 2>/dev/null | head -1)
[ -n "$package" ] || { echo "no package in target/packaging: make deb-dev" >&2; exit 2; }
cp "$package" "$folder/first.deb"
# The same package with a higher version, to test an upgrade of the running service and its database.
dpkg-deb -R "$package" "$folder/tree"
sed -i 's/^Version: .*/Version: 99.0-1/' "$folder/tree/DEBIAN/control"
dpkg-deb --root-owner-group -b "$folder/tree" "$folder/second.deb" >/dev/null
rm -rf "$folder/tree"
cp "$root"/tests/systemd/{common.sh,trial.sh,operations.sh,callback.py,mails.py} "$folder/"
mkdir "$folder/mails"
# One mail for each transaction. Two mails that differ about a transaction would end in quarantine.
for json in "$root"/sample-mails/published/*.json; do
    hash=$(grep -o '"transaction_hash": "[^"]*"' "$json") || continue
    grep -qsF "$hash" "$folder/seen" || cp "${json%.json}.eml" "$folder/mails/"
    echo "$hash" >> "$folder/seen"
done
for script in ${SCRIPTS:-trial.sh operations.sh}; do
    "$root/tests/systemd/box.sh" boot "${SECONDS_AT_MOST:-300}" "$folder" "$script"
done
