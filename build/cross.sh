#!/bin/sh
# Compiles weftctl for every system that operators use. It writes no program; the build cache makes the next run a matter
# of seconds.
set -eu
cd "$(dirname "$0")/.."

for os in linux darwin windows; do
	for arch in amd64 arm64; do
		CGO_ENABLED=0 GOOS=$os GOARCH=$arch go build -trimpath -o /dev/null ./cmd/weftctl ||
			{ echo "weftctl does not build for $os/$arch" >&2; exit 1; }
	done
done
