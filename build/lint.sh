#!/bin/sh
# Checks the product's module and the workshop's (test): gofmt and words (build/format.sh), go vet and golangci-lint, whose
# version and dependencies build/tools/go.mod pins. The first run builds the linter into the cache.
# Arguments are the packages to check, as seen from the root of the repository; without any, all of them.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- ./... ./test/...

build/format.sh

# Another Go or another pin is another linter.
pin=$({ go version; cat build/tools/go.mod build/tools/go.sum; } | sha256sum | cut -c1-16)
linter=${WEFT_CACHE:-$HOME/.cache/weft}/tools/golangci-lint-$pin
if [ ! -x "$linter" ]; then
	echo "building golangci-lint, once, into $linter" >&2
	mkdir -p "$(dirname "$linter")"
	GOFLAGS=-mod=readonly CGO_ENABLED=0 nice go -C build/tools build -trimpath -o "$linter.$$" \
		github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	mv "$linter.$$" "$linter"
fi

check() { # MODULE PACKAGE…
	module=$1
	shift
	[ $# -eq 0 ] || (cd "$module" && go vet "$@" && "$linter" run "$@")
}
product='' workshop=''
for package; do
	case $package in
	./test/*) workshop="$workshop ./${package#./test/}" ;;
	*) product="$product $package" ;;
	esac
done
# shellcheck disable=SC2086 # they are lists
check . $product
# shellcheck disable=SC2086
check test $workshop
