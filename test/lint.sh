#!/usr/bin/env bash
# Formatting, vet, linters, and that what is generated is what is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
unformatted=$(gofmt -l $(git ls-files '*.go'))
[ -z "$unformatted" ] || { echo "gofmt: $unformatted"; exit 1; }
go vet ./...
go vet -tags example ./cmd/zerospan
clang-format-19 --dry-run --Werror $(git ls-files '*.c' '*.h')
mkdir -p .cache/bin
[ -x .cache/bin/golangci-lint ] || GOBIN=$PWD/.cache/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
.cache/bin/golangci-lint run ./...
go mod tidy -diff
# A copy: a lint run changes no file.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$copy"
(cd "$copy" && make -s generate)
changed=0
for f in $(git ls-files '*_bpfel.go' '*_bpfel.o' 'instrumentors/all/all.go' 'docs/coverage.md'); do
	cmp -s "$f" "$copy/$f" || { echo "not what make generate gives: $f"; changed=1; }
done
exit $changed
