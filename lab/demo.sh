#!/usr/bin/env bash
# The cluster end to end: three directors behind two ECMP switches carry 2,000 slow downloads and 200 short requests a
# second, on a DR, an IPIP and an IPv6 service, while one of them is lost, comes back, and another one's daemon is
# killed; and while a real server is added, another one drained and removed. Installs what is missing first.
#
#   lab/demo.sh [--keep] [--reconfigure] [--name LAB] [--connections N] [--rate N] [--json FILE] [--director BINARY]
#               [--profile PROFILE]
#
# --keep leaves the lab up and prints the commands to look around; --reconfigure replaces one that is up; --profile
# is cargo's, release unless given. Exit code 0: no connection of any service was reset, none was lost, no byte was
# wrong.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

keep=no
name=ecmp
director=
profile=release
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --keep) keep=yes; arguments+=("$1") ;;
    --reconfigure) arguments+=("$1") ;;
    --name) name=${2:?--name needs a name}; arguments+=("$1" "$2"); shift ;;
    --director) director=${2:?--director needs a file}; shift ;;
    --profile) profile=${2:?--profile needs a name}; shift ;;
    --connections | --rate | --json) arguments+=("$1" "${2:?$1 needs a value}"); shift ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "demo: unknown argument '$1' (see --help)" >&2; exit 2 ;;
  esac
  shift
done

lab/setup.sh
# All of the workspace, as the tests build it: what one of them built serves the other.
cargo build --workspace --bins --locked --quiet --profile "$profile"
built=target/${profile/#dev/debug}
lab=$built/lab
[ -n "$director" ] || director=$built/director
LAB=$PWD/$lab lab/ecmp/prepare.sh

# A lab that somebody else left up is not ours to remove when the demo refuses to start.
there=$("$lab" inspect | grep -cx "$name" || true)
case "$there ${arguments[*]-}" in
  '1 '*--reconfigure* | '0 '*) ;;
  *) echo "demo: lab $name is up already: $lab down $name, or lab/demo.sh --reconfigure" >&2; exit 2 ;;
esac
# Interrupted or failed: nothing stays, unless asked for.
if [ $keep = no ]; then
  trap '! "$lab" inspect | grep -qx "$name" || "$lab" down "$name"' EXIT
fi
code=0
"$lab" demo --director "$director" ${arguments[@]+"${arguments[@]}"} || code=$?

if [ $keep = yes ]; then
  cat <<TEXT
The lab is still up. To look around:
  $lab inspect $name                                        nodes, processes, addresses
  ip netns exec clab-$name-switch1 ip route show 203.0.113.10   next hops of a switch; ip -6 route show 2001:db8:113::10
  $lab exec --lab $name director1 -- director status                   the same for services, neighbors, peers, connections
  $lab exec --lab $name director1 -- tail -f /var/log/director.log
  $lab exec --lab $name director1 -- vi /etc/director/director.toml    then, in the same way: director reload
  $lab exec --lab $name client -- curl -s -o /dev/null -w '%{http_code}\n' http://203.0.113.10/tiny
  $lab down $name                                           to end it
TEXT
fi
exit $code
