#!/usr/bin/env bash
# Runs a command as root under Debian's stock 6.1 kernel, in QEMU by software emulation.
#
#   tests/stock-kernel.sh [--timeout SECONDS] [--memory MIB] COMMAND [ARGUMENT…]
#   tests/stock-kernel.sh --check        says what is missing on this machine, runs nothing
#
# The command sees the file system of this machine below an overlay: every program and file is there, and what
# it writes is gone afterwards. /tmp and /run start empty; there is no network. It starts in the current folder,
# with an empty standard input and no environment but PATH, HOME and TERM (`env NAME=value COMMAND` adds to it).
# What it leaves running dies with the machine.
#
# Standard output, standard error and exit code are the command's own. Besides: 124 if the time (300 s by
# default, boot included) was up, 125 if the machine cannot be set up or died.
set -euo pipefail

series=6.1
die() { printf 'stock-kernel: %s\n' "$*" >&2; exit 125; }
number() { [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || die "$1 wants a whole number from 1 to 999999, not '$2'"; }

limit=300 memory=1536 check=no
while [ $# -gt 0 ]; do
  case $1 in
    --timeout) number "$1" "${2-}"; limit=$2; shift 2 ;;
    --memory) number "$1" "${2-}"; memory=$2; shift 2 ;;
    --check) check=yes; shift ;;
    --) shift; break ;;
    -*) die "unknown option '$1' (usage: stock-kernel.sh [--timeout SECONDS] [--memory MIB] COMMAND…)" ;;
    *) break ;;
  esac
done
[ $check = yes ] || [ $# -gt 0 ] || die "no command given (usage: stock-kernel.sh [--timeout SECONDS] COMMAND…)"

# --- what this machine must have ---------------------------------------------------------------------------
need() { command -v "$1" >/dev/null || die "no $1: install the Debian package $2 (lab/setup.sh does)"; }
PATH=$PATH:/usr/sbin:/sbin
need qemu-system-x86_64 qemu-system-x86
need busybox busybox-static
need cpio cpio
need modprobe kmod
# The plain flavour only: the cloud kernel has no 9p, the real-time one is another kernel.
release=$(find /boot -maxdepth 1 -name "vmlinuz-$series.*" -printf '%f\n' | sed 's/^vmlinuz-//' |
  grep -E '^[^-]+-[^-]+-amd64$' | sort -V | tail -n 1) || true
[ -n "$release" ] ||
  die "no kernel image /boot/vmlinuz-$series.*-amd64: install linux-image-amd64 of Debian 12 (lab/setup.sh does)"
[ -r "/boot/vmlinuz-$release" ] || die "/boot/vmlinuz-$release is not readable: run as root"
[ -d "/lib/modules/$release" ] || die "no modules of $release: reinstall linux-image-$release"
[ $check = no ] || exit 0

# --- the initial file system, kept for the next time ---------------------------------------------------------
here=$(cd "$(dirname "$0")" && pwd)
cache=${CARGO_TARGET_DIR:-$here/../target}/stock-kernel
content=$(cat "$0" "$here/stock-kernel/init" "$(command -v busybox)" | sha256sum | cut -c -16)
initrd=$cache/$release-$content.cpio.gz
work=$(mktemp -d)
guest=
trap '[ -z "$guest" ] || kill "$guest" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Compressed, because the kernel takes a further plain archive only at a multiple of four bytes.
pack() { (cd "$1" && find . -mindepth 1 | cpio --quiet -o -H newc -R 0:0) | gzip -1; }
if [ ! -s "$initrd" ]; then
  mkdir -p "$cache" "$work"/base/{bin,dev,host,modules,proc,root,sys,top}
  cp "$(command -v busybox)" "$work/base/bin/busybox"
  install -m 755 "$here/stock-kernel/init" "$work/base/init"
  # In the order of loading, each with what it depends on before it; the number keeps that order in the guest.
  order=100
  modprobe --all --show-depends --set-version "$release" virtio_pci virtio_console 9pnet_virtio 9p overlay \
    >"$work/depends" || die "kernel $release lacks a module that its guest needs: reinstall linux-image-$release"
  while read -r verb path _; do
    name=${path##*/}
    if [ "$verb" != insmod ] || compgen -G "$work/base/modules/*-$name" >/dev/null; then continue; fi
    cp "$path" "$work/base/modules/$order-$name"
    order=$((order + 1))
  done <"$work/depends"
  pack "$work/base" >"$work/initrd"
  # Another run may be doing the same: it must see a whole file or none.
  cp "$work/initrd" "$initrd.$$" && mv "$initrd.$$" "$initrd"
fi

# --- the command, as one more archive behind it -----------------------------------------------------------------
mkdir "$work/job"
{
  printf 'cd %q || exit 125\n' "$PWD"
  printf 'exec env -i PATH=%q HOME=/root TERM=dumb' /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  printf ' %q' "$@"
  echo
} >"$work/job/job"
pack "$work/job" | cat "$initrd" - >"$work/initrd"

# --- the machine ----------------------------------------------------------------------------------------------
# One virtio port each for output, errors and exit code. QEMU truncates what it opens: for the first two, a pipe.
exec 3> >(exec cat); readers=$!
exec 4> >(exec cat >&2); readers+=" $!"
ports=(-device virtio-serial-pci)
for port in stdout:/dev/fd/3 stderr:/dev/fd/4 "status:$work/status"; do
  name=${port%%:*}
  ports+=(-chardev "file,id=$name,path=${port#*:}" -device "virtserialport,chardev=$name,name=$name")
done
# All its work is for the processor: whatever has clocks to keep goes first.
timeout --kill-after=5 "$limit" nice -n 10 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "$memory" \
  -nodefaults -no-user-config -display none -no-reboot -serial "file:$work/console" \
  -kernel "/boot/vmlinuz-$release" -initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1 net.ifnames=0" \
  -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
  "${ports[@]}" </dev/null 2>"$work/qemu" &
guest=$!
rc=0; wait "$guest" || rc=$?
guest=
exec 3>&- 4>&-
# shellcheck disable=SC2086 # two words
wait $readers || true

if [ -s "$work/status" ]; then exit "$(cat "$work/status")"; fi
if [ $rc = 124 ] || [ $rc = 137 ]; then
  printf 'stock-kernel: not done after %s s (--timeout); the end of the console:\n' "$limit" >&2
  tail -n 20 "$work/console" >&2 2>/dev/null || true
  exit 124
fi
cat "$work/qemu" >&2
tail -n 40 "$work/console" >&2 2>/dev/null || true
die "the machine died before the command ended (QEMU's exit code $rc; above, its console)"
