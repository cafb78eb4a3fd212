#!/bin/sh
# Looks for published vulnerabilities that code here reaches: in the product, the workshop (test) and the CNI plugins of the
# image (build/plugins). build/tools/vuln/go.mod pins govulncheck; the first run builds it into the cache.
# VULNDB is the URL of the database: https://vuln.go.dev, a mirror, or file:///DIR with a copy.
# Arguments are packages of the product to look at instead of everything.
# Exit code: 0 nothing is reached, 1 a vulnerability is, 2 it is not known, because the database or the code cannot be read.
set -eu
cd "$(dirname "$0")/.."
VULNDB=${VULNDB:-https://vuln.go.dev}

pin=$({ go version; cat build/tools/vuln/go.mod build/tools/vuln/go.sum; } | sha256sum | cut -c1-16)
govulncheck=${WEFT_CACHE:-$HOME/.cache/weft}/tools/govulncheck-$pin
if [ ! -x "$govulncheck" ]; then
	echo "building govulncheck, once, into $govulncheck" >&2
	mkdir -p "$(dirname "$govulncheck")"
	GOFLAGS=-mod=readonly nice go -C build/tools/vuln build -o "$govulncheck.$$" \
		golang.org/x/vuln/cmd/govulncheck || exit 2
	mv "$govulncheck.$$" "$govulncheck"
fi

found=0
check() { # MODULE PACKAGE…
	module=$1
	shift
	code=0
	"$govulncheck" -C "$module" -db "$VULNDB" "$@" || code=$?
	case $code in
	0) ;;
	3) found=1 ;; # govulncheck's code for: it found some
	*)
		echo "build/vuln.sh: module $module was not checked with the database $VULNDB." >&2
		echo "If it cannot be reached from here, give another: VULNDB=URL of a mirror, or VULNDB=file:///DIR of a copy" >&2
		echo "(https://go.dev/doc/security/vuln/database has the format)." >&2
		exit 2
		;;
	esac
}
if [ $# -gt 0 ]; then
	check . "$@"
else
	check . ./...
	check test ./...
	# The module has no package of its own.
	# shellcheck disable=SC2046 # they are a list
	check build/plugins $(go -C build/plugins list tool)
fi
exit $found
