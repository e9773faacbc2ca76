#!/usr/bin/env bash
# Installs what building, testing and running the lab needs on Debian 12, as root. Idempotent: with
# everything in place it only looks, and returns at once.
#
#   lab/setup.sh [--check]      --check: say what is missing and exit 1, install nothing
#
# Three groups: Debian packages, a Rust toolchain (kept if one is there), and bpf-linker for the XDP programs.
set -euo pipefail

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

check_only=no
case "${1:-}" in
  '') ;;
  --check) check_only=yes ;;
  *) die "unknown argument '$1' (usage: lab/setup.sh [--check])" ;;
esac

# --- where the set-up works at all -------------------------------------------------------------------
[ "$(uname -s)" = Linux ] || die "needs Linux, this is $(uname -s)"
[ "$(id -u)" = 0 ] || die "needs root (XDP, network namespaces, packages): run it with sudo"
command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
  die "needs Debian 12 or later for its packages; elsewhere install these by hand: a Rust toolchain with rust-src, \
LLVM 22, bpf-linker (cargo install bpf-linker), bird2, frr, nginx, ethtool, tcpdump, bpftool, qemu-system-x86"

# --- Debian packages -----------------------------------------------------------------------------------
packages=(
  # the eBPF toolchain: a rustc with core's source, and the LLVM that bpf-linker links with
  rustc-web cargo-web rust-web-src llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev gcc libc6-dev
  # the lab: switches, real servers, clients and eyes
  bird2 frr nginx-light nftables iproute2 ethtool tcpdump bpftool curl wrk iputils-ping jq openssl
  # the second kernel
  qemu-system-x86 linux-image-amd64 busybox-static cpio kmod ipvsadm
)
have_cargo=$(command -v cargo || true)
# A machine without any cargo builds with Debian's; then its formatter and linter belong to it.
[ -n "$have_cargo" ] && [ "$have_cargo" != /usr/bin/cargo ] || packages+=(rustfmt-web rust-web-clippy)

missing=()
# dpkg-query fails when it has never heard of one of them, which on a fresh machine is so.
installed=$({ dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "${packages[@]}" 2>/dev/null || true; } | sed -n 's/^ii  *//p')
for package in "${packages[@]}"; do
  grep -qx "$package" <<<"$installed" || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "missing Debian packages: ${missing[*]}"
  [ $check_only = no ] || exit 1
  export DEBIAN_FRONTEND=noninteractive
  # Services start in namespaces of the lab, never on the host.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  apt-get update -q
  apt-get install -q -y --no-install-recommends "${missing[@]}"
  if [ -e $policy ]; then rm -f $policy; trap - EXIT; fi
fi

# --- bpf-linker ------------------------------------------------------------------------------------------
# With Debian's rustc the linker must come from the same LLVM: build it against llvm-22.
root=/usr/local/lib/director-toolchain
linker=$root/bin/bpf-linker
if ! "$linker" --version >/dev/null 2>&1; then
  say "building bpf-linker into $root (about a minute)"
  [ $check_only = no ] || exit 1
  LLVM_PREFIX=/usr/lib/llvm-22 RUSTFLAGS="-L /usr/lib/llvm-22/lib" \
    cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22 --root "$root" --quiet
fi

# --- what the kernel must have ------------------------------------------------------------------------------
[ -e /proc/sys/net/core/bpf_jit_enable ] || die "this kernel has no BPF JIT: XDP needs CONFIG_BPF_JIT"
if ! ip netns list >/dev/null 2>&1; then die "this kernel has no network namespaces (CONFIG_NET_NS)"; fi

say "ready: $(cargo --version), $("$linker" --version)"
