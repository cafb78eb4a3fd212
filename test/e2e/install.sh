#!/usr/bin/env bash
# The outsider's path on a cluster of two nodes without Open vSwitch, from the folders of two releases of this tree
# (test/e2e/install). Releases that exist already are taken: RELEASES=DIR.
set -euo pipefail
cd "$(dirname "$0")/../.."

DIR=$(mktemp -d /tmp/weft-install.XXXXXX)
NAME=path$(($$ % 1000)) # at most 8 characters
RELEASES=${RELEASES:-$PWD/dist/install}
OLDER=v0.2.0 NEWER=v0.2.1

mkdir -p bin "$RELEASES"
go build -C test -o ../bin/ ./cluster ./image
for version in $OLDER $NEWER; do
	[ -e "$RELEASES/$version/SHA256SUMS" ] || bin/image release -only linux/amd64 -version "$version" -o "$RELEASES/$version"
done
trap 'bin/cluster down --dir "$DIR" --name "$NAME" >/dev/null; rm -rf "$DIR"' EXIT
bin/cluster up --dir "$DIR" --name "$NAME" --nodes 2 --no-weft --dns --agnhost=false --openvswitch daemonset
WEFT_CLUSTER_DIR=$DIR WEFT_RELEASES=$RELEASES go test -C test -tags e2e -count=1 -v -timeout 15m ./e2e/install
