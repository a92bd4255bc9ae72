#!/usr/bin/env bash
# Runs all tests and prints, at the end, what was skipped and why.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ "$(id -u)" = 0 ]; then
	export ZEROSPAN_REQUIRE_LIVE=${ZEROSPAN_REQUIRE_LIVE-1}
fi
# The live tests measure time and start many processes: after the others, not beside them.
status=0
go test -race -count=1 $(go list ./... | grep -v /test/live) 2>&1 | grep -v 'no test files' | tee -a "$log" || status=1
go test -count=1 -v -timeout 30m ./test/live 2>&1 | grep -E '^\s*(--- |ok|FAIL|PASS|panic|SKIPPED|[a-z_]+_test\.go)' | tee -a "$log" || status=1
if [ "$(id -u)" = 0 ]; then
	go run ./test/bench -role gate 2>&1 | tee -a "$log" || status=1
else
	echo "SKIPPED: the regression gate needs root (probes)" | tee -a "$log"
fi
echo
if grep -qE 'SKIP' "$log"; then
	echo "skipped:"
	grep -E 'SKIP' "$log"
else
	echo "nothing was skipped"
fi
exit $status
