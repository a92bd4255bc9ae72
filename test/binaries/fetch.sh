#!/usr/bin/env bash
# Fetches programs that nobody here wrote: Debian's Go packages, unpacked into
# .cache/binaries. A package that is there already is not fetched again.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .cache/binaries
cd .cache/binaries
for p in prometheus caddy containerd docker.io rclone gh etcd-server podman hugo; do
	[ -d "$p" ] && continue
	if ! apt-get download -qq "$p"; then
		echo "SKIPPED: package $p can't be had here"
		continue
	fi
	dpkg -x "$p"_*.deb "$p.part"
	mv "$p.part" "$p"
	rm -f "$p"_*.deb
done
