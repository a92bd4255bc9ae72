#!/usr/bin/env bash
# Runs every fuzzer for a while: test/fuzz.sh 30s
set -euo pipefail
cd "$(dirname "$0")/.."
for pkg in $(go list ./...); do
	for f in $(go test -list '^Fuzz' "$pkg" 2>/dev/null | grep '^Fuzz' || true); do
		echo "$pkg $f"
		go test -run '^$' -fuzz "^$f\$" -fuzztime "${1:-30s}" "$pkg"
	done
done
