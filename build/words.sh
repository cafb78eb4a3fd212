#!/bin/sh
# Fails when a Go file or a document uses a word of build/words.txt, and names the line and the words to use instead.
# Paths in build/words-unpassed.txt are not checked; it notes those that have no such words any more. Generated files and
# test data are never checked. build/lint.sh calls it.
set -eu
cd "$(dirname "$0")/.."
files=$(git ls-files --cached --others --exclude-standard -- '*.go' '*.md' | grep -v '/testdata/')
unpassed=$(grep -v '^#' build/words-unpassed.txt | cut -f1)
checked=$files
for path in $unpassed; do
	checked=$(printf '%s\n' "$checked" | awk -v p="$path" 'index($0, p) != 1')
done

# found FILES PATTERN: prints the matching lines of these files. xargs makes one status of "no match" and "error", so the
# pattern and the files are tried first.
found() {
	[ -n "$1" ] || return 0
	grep -qPi -- "$2" /dev/null || [ $? -eq 1 ] || { echo "build/words.txt: invalid pattern: $2" >&2; exit 1; }
	printf '%s\n' "$1" | xargs grep -nPis -- "$2" /dev/null || [ $? -eq 123 ]
}

failed=false
all=
while IFS="$(printf '\t')" read -r pattern instead; do
	case $pattern in '' | '#'*) continue ;; esac
	all="${all:+$all|}$pattern"
	lines=$(found "$checked" "$pattern")
	if [ -n "$lines" ]; then
		printf '%s\n  say instead: %s\n' "$lines" "$instead" >&2
		failed=true
	fi
done <build/words.txt

for path in $unpassed; do
	there=$(printf '%s\n' "$files" | awk -v p="$path" 'index($0, p) == 1')
	if [ -z "$(found "$there" "$all")" ]; then
		echo "note: $path is clean; remove it from build/words-unpassed.txt" >&2
	fi
done
if $failed; then
	echo "words that the project does not use (build/words.txt); if a line is right, narrow the pattern" >&2
	exit 1
fi
