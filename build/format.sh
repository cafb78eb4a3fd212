#!/bin/sh
# Checks gofmt and words (build/words.sh) of all files: what takes a second. build/lint.sh and `make check` call it.
set -eu
cd "$(dirname "$0")/.."
files=$(git ls-files --cached --others --exclude-standard -- '*.go') # apart, so that git's failure is one
unformatted=$(printf '%s\n' "$files" | xargs -r gofmt -l)
if [ -n "$unformatted" ]; then
	printf 'gofmt would change these files; run gofmt -w on them:\n%s\n' "$unformatted" >&2
	exit 1
fi
build/words.sh
