#!/usr/bin/env bash
# Proves zerospan on other kernels, under qemu. Arguments go to go test. As root on
# Debian it installs qemu; kernels come into .cache/kernels once: remove a folder
# there to get a newer one.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v qemu-system-x86_64 >/dev/null; then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "SKIPPED: other kernels: qemu-system-x86_64 is not installed, and this is not root on Debian"
		[ -z "${ZEROSPAN_REQUIRE_LIVE-}" ]
		exit
	fi
	echo "installing qemu-system-x86"
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-system-x86 >/dev/null
fi
ZEROSPAN_KERNELS=1 go test -count=1 -v -timeout 60m "$@" ./test/kernels
