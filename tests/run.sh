#!/usr/bin/env bash
# Runs every check and every test, as root on Debian 12 or later; installs what is missing first.
#
#   tests/run.sh [FILTER…]     FILTER: passed to the test runner (names of tests)
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step "set-up"
lab/setup.sh
# What is installed now may not be missing in a test: a skip becomes a failure.
export DIRECTOR_TESTS_REQUIRE=1

step "formatting"
cargo fmt --all --check
(cd director/ebpf && cargo fmt --check)

step "clippy, warnings are errors"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "build"
cargo build --workspace --bins --locked

step "tests"
suites=(director-common director-proto routing syncd director lab cluster-tests)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace --locked --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?
  ran() { grep -qE "(PASS|FAIL|SLOW|TIMEOUT) .* $1(::| )" "$log"; }
else
  # One package at a time, and within the ones that own namespaces one test at a time.
  for suite in "${suites[@]}"; do
    threads=(); case $suite in director | lab | cluster-tests) threads=(--test-threads=1) ;; esac
    echo "suite $suite" | tee -a "$log"
    cargo test --locked --no-fail-fast -p "$suite" -- "${threads[@]}" "$@" 2>&1 | tee -a "$log" || status=$?
  done
  ran() { sed -n "/^suite $1\$/,/^suite /p" "$log" | grep -qE '^test .* \.\.\. (ok|FAILED)'; }
fi
if [ $# = 0 ]; then
  for suite in "${suites[@]}"; do
    ran "$suite" || { echo "no test of $suite ran" >&2; status=1; }
  done
fi

# The runner's own count, as the last line in either case.
tr '\r' '\n' <"$log" | sed 's/\x1b\[[0-9;]*m//g' | awk '
  /^ *Summary \[/ { for (i = 1; i <= NF; i++) { if ($i ~ /^passed/) p = $(i-1); if ($i ~ /^failed/) f = $(i-1); if ($i ~ /^timed/) f += $(i-1) } }
  /^test result:/ { p += $4; f += $6 }
  END { printf "\n%d passed, %d failed\n", p, f; exit (p == 0) }'
exit "$status"
