#!/bin/bash
# Builds the container image from the static program, in both formats:
#
#   build.sh ARCH PROGRAM   ARCH: amd64 or arm64; writes target/image/resmic-mailhook-VERSION-ARCH.oci.tar and .docker.tar
#
# It needs buildah, skopeo, jq, and Debian's ca-certificates. Only Docker's format has a health check. SOURCE_DATE_EPOCH is the
# time of everything in the image, so that two builds of the same program are the same. The build uses no other
# image, and leaves no image in the storage of this machine.
set -euo pipefail
arch=$1 program=$2
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=localhost/resmic-mailhook:$version
folder=target/image
context=$folder/$arch
archive=$folder/resmic-mailhook-$version-$arch

rm -rf "$context" "$archive".*
install -D -m 0755 "$program" "$context/root/usr/bin/resmic-mailhook"
# Debian's certificate authorities, without those that somebody added to this machine.
install -d "$context/root/etc/ssl/certs"
(LC_ALL=C; cat /usr/share/ca-certificates/mozilla/*.crt) > "$context/root/etc/ssl/certs/ca-certificates.crt"
chmod 0644 "$context/root/etc/ssl/certs/ca-certificates.crt"
install -d -m 0700 "$context/state"

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
image() { buildah --root "$temporary/root" --runroot "$temporary/run" --storage-driver vfs "$@"; }
# build FORMAT DESTINATION: builds the image, and writes it to a destination of `buildah push`.
build() {
    image build --quiet --no-cache --format "$1" --arch "$arch" --timestamp "$SOURCE_DATE_EPOCH" --build-arg VERSION="$version" \
        --tag "$name" --file packaging/image/Containerfile "$context" >/dev/null
    image push --quiet "$name" "$2"
}

# An oci-archive of buildah would contain the time at which buildah wrote its files.
build oci "oci:$temporary/oci:$name"
tar -c -C "$temporary/oci" --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    blobs index.json oci-layout > "$archive.oci.tar"

# buildah writes the random name of its working container into the settings of Docker's format.
build docker "dir:$temporary/docker"
cd "$temporary/docker"
jq --compact-output 'del(.container, .container_config, .config.Hostname)' "$(jq -r '.config.digest[7:]' manifest.json)" > settings
digest=$(sha256sum settings | cut -d' ' -f1)
jq --arg digest "sha256:$digest" --argjson size "$(stat -c %s settings)" '.config += {digest: $digest, size: $size}' manifest.json > manifest
mv settings "$digest"
mv manifest manifest.json
cd "$OLDPWD"
skopeo copy --quiet "dir:$temporary/docker" "docker-archive:$archive.docker.tar:$name"
sha256sum "$archive".*
