#!/bin/sh
# Runs the fuzz targets one after the other, FUZZTIME each (default 1m). Arguments are packages; without any, all that have
# targets. An input that fails is kept below the package's testdata/fuzz, where `go test` runs it from then on: commit it.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- $(git grep -l '^func Fuzz' -- 'pkg/*_test.go' 'cmd/*_test.go' | xargs -n1 dirname | sort -u | sed 's|^|./|')
failed=
for package; do
	for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz'); do
		echo "== $package $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-1m}" -fuzzminimizetime 2s "$package" || failed="$failed $package:$target"
	done
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
