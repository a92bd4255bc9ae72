#!/usr/bin/env bash
# Installs what the tests need that Go can't fetch. As root on Debian; elsewhere
# it says what is missing. Nothing is installed twice.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(clang-19 llvm-19 clang-format-19 libbpf-dev linux-libc-dev gcc libc6-dev util-linux)
missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "SKIPPED: not installed, and this is not root on Debian: ${missing[*]}"
	else
		echo "installing ${missing[*]}"
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
	fi
fi

# A real Jaeger, built once (a few minutes) from the Go proxy.
if [ "$(id -u)" = 0 ] && [ ! -x .cache/jaeger ]; then
	echo "building Jaeger into .cache (once)"
	mkdir -p .cache
	(cd test/backends/jaeger && go build -o ../../../.cache/jaeger github.com/jaegertracing/jaeger/cmd/all-in-one)
fi
