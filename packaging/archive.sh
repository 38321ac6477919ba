#!/bin/bash
# Packs the files of a Debian package as an archive for other distributions:
#
#   archive.sh PACKAGE.deb NAME   writes target/dist/NAME.tar.gz, and adds it to target/dist/SHA256SUMS
#
# The archive has the paths of the package below NAME/, and SHA256SUMS of all its files. It has no entries for folders, so that tar
# changes no owner and no mode of a folder that exists. SOURCE_DATE_EPOCH is the time of each file.
set -euo pipefail
package=$(readlink -f "$1") name=$2
cd "$(dirname "$0")/.."
export LC_ALL=C
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/$name" target/dist
dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder/$name"
(cd "$folder/$name" && find . -type f -printf '%P\0' | sort -z | xargs -0 sha256sum > "$folder/sums")
mv "$folder/sums" "$folder/$name/SHA256SUMS"
(cd "$folder" && find "$name" -type f -print0 | sort -z \
    | tar -c --null --files-from=- --format=ustar --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX) \
    | gzip -9 -n > "target/dist/$name.tar.gz"
cd target/dist
sha256sum -- *.tar.gz > SHA256SUMS
cat SHA256SUMS
