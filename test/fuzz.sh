#!/usr/bin/env bash
# Runs every fuzzer for a while: test/fuzz.sh 30s
set -euo pipefail
cd "$(dirname "$0")/.."
for pkg in $(go list ./...); do
	listed=$(go test -list '^Fuzz' "$pkg") # a package that does not build ends the run
	for f in $(sed -n '/^Fuzz/p' <<<"$listed"); do
		echo "$pkg $f"
		go test -run '^$' -fuzz "^$f\$" -fuzztime "${1:-30s}" "$pkg"
	done
done
