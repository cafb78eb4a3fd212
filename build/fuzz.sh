#!/bin/sh
# Runs the fuzz targets one after the other, FUZZTIME each (default 1m). Arguments are directories of packages; without any, all that have
# targets. An input that fails is kept below the package's testdata/fuzz, where `go test` runs it from then on: commit it.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- $(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u)
failed=
for package; do
	for target in $(go test -C "$package" -list '^Fuzz' . | grep '^Fuzz'); do
		echo "== $package $target"
		go test -C "$package" -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-1m}" -fuzzminimizetime 2s . || failed="$failed $package:$target"
	done
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
