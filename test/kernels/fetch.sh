#!/usr/bin/env bash
# Usage: fetch.sh DIR ARCHIVE SUITES VERSION
# Leaves DIR/vmlinuz-RELEASE: the newest of Debian's cloud kernels in SUITES whose
# version begins with VERSION. ARCHIVE is main or security. The mirror is that of
# the system's own apt sources; apt's configuration and lists are private, those of
# the system stay as they are. What is there already is not asked for again.
set -euo pipefail
dir=$1 archive=$2 suites=$3 version=$4
have() { compgen -G "$dir/vmlinuz-*" >/dev/null; }
if have; then exit; fi
fail() { echo "no kernel $version: $*" >&2; exit 1; }
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "Debian's apt-get and dpkg-deb are not here"

mkdir -p "$dir/apt/lists" "$dir/apt/archives/partial"
dir=$(cd "$dir" && pwd)
cd "$dir"
: >apt/status
apt=(-q -o Dir::State::Lists="$dir/apt/lists" -o Dir::State::status="$dir/apt/status" -o Dir::Cache="$dir/apt"
	-o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User=root -o Acquire::Languages=none
	-o APT::Update::Error-Mode=any -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null)

# The release that the system itself is of names both archives: bookworm-security
# and bookworm. Other suites stand beside them.
sources=$(apt-get "${apt[@]}" update --print-uris | sed -n "s|^'\(.*\)/dists/\([^/]*\)/InRelease'.*|\2 \1|p")
codename=$(sed -n 's/-security .*//p' <<<"$sources" | head -n 1)
[ "$archive" = main ] && suite=$codename || suite=$codename-security
site=$(sed -n "s|^$suite ||p" <<<"$sources" | head -n 1)
[ -n "$codename" ] && [ -n "$site" ] || fail "apt's sources name no mirror of Debian's $archive archive"

for s in $suites; do echo "deb [target=Packages] $site $s main"; done >apt/sources.list
apt+=(-o Dir::Etc::sourcelist="$dir/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null)
apt-get "${apt[@]}" update >apt/log 2>&1 || fail "the mirror does not give $suites: $(tail -n 1 apt/log)"

# Newer kernels have their image in linux-binary-*, the newest of all may not be
# signed yet. Of one version the first in this order is taken.
candidates=$(apt-cache "${apt[@]}" pkgnames linux- | grep -E "^linux-(image|binary)-(unsigned-)?$version[^ ]*-cloud-amd64$" || true)
releases=$(sed -E 's/^linux-(image|binary)-(unsigned-)?//' <<<"$candidates" | sort -Vru | head -n 3)
[ -n "$releases" ] || fail "there is none in $suites"
for release in $releases; do
	for package in "linux-binary-$release" "linux-image-$release" "linux-binary-unsigned-$release"; do
		grep -qx "$package" <<<"$candidates" || continue
		apt-get "${apt[@]}" download "$package" >>apt/log 2>&1 || continue # depends on what is gone
		dpkg-deb --fsys-tarfile "$package"_*.deb | tar -xO --wildcards './boot/vmlinuz-*' './usr/lib/modules/*/vmlinuz*' >apt/vmlinuz 2>>apt/log || true
		rm -f "$package"_*.deb
		[ -s apt/vmlinuz ] || continue
		mv apt/vmlinuz "vmlinuz-$release"
		rm -rf apt
		exit
	done
done
fail "none of $suites could be downloaded: $(tail -n 1 apt/log)"
