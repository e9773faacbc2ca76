#!/usr/bin/env bash
# Makes what lab/ecmp.clab.yml needs beside itself: a certificate authority with one certificate per director, and the
# files that the web servers serve. Idempotent: what is there and valid for another day stays.
#
#   lab/ecmp/prepare.sh [FOLDER]      FOLDER: default lab/ecmp/generated
#
# LAB names the lab command (default: target/release/lab).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=${1:-$here/generated}
lab=${LAB:-$here/../../target/release/lab}
content_bytes=$((64 * 1024 * 1024))

command -v openssl >/dev/null || { echo "prepare: openssl is missing: apt-get install openssl" >&2; exit 1; }
mkdir -p "$data/tls" "$data/www"

key() { (umask 077; openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null); }

if ! openssl x509 -checkend 86400 -noout -in "$data/tls/director3/node.pem" >/dev/null 2>&1; then
  ca=$data/tls/authority
  mkdir -p "$ca"
  key "$ca/ca.key"
  openssl req -x509 -new -key "$ca/ca.key" -days 30 -subj "/CN=ecmp lab" -out "$ca/ca.pem" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
  for n in 1 2 3; do
    node=$data/tls/director$n
    mkdir -p "$node"
    key "$node/node.key"
    openssl req -new -key "$node/node.key" -subj "/CN=director$n" -out "$node/node.csr"
    openssl x509 -req -in "$node/node.csr" -CA "$ca/ca.pem" -CAkey "$ca/ca.key" -CAcreateserial -days 30 \
      -out "$node/node.pem" 2>/dev/null -extfile <(
        printf 'subjectAltName=DNS:director%s,IP:10.0.2.%s,IP:10.255.0.%s,URI:director:ecmp:10.255.0.%s\n' $n $n $n $n
        printf 'basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n'
        printf 'extendedKeyUsage=serverAuth,clientAuth\n')
    rm "$node/node.csr"
    cp "$ca/ca.pem" "$node/ca.pem"
  done
fi

if [ "$(stat -c %s "$data/www/content" 2>/dev/null)" != $content_bytes ]; then
  "$lab" content "$data/www/content" --bytes $content_bytes
fi
[ -e "$data/www/tiny" ] || "$lab" content "$data/www/tiny" --bytes 64
