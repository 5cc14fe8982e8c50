#!/bin/sh
# Draws the pictures of concepts.md anew, in labs of its own: sh docs/pictures.sh (root; `make docs-pictures`).
# Each is what `slash32 topology` prints there; nothing is retouched.
set -eu
cd "$(dirname "$0")/.."
slash32="${SLASH32:-.venv/bin/slash32}"
out="$PWD/docs/pictures"
name="pictures-$$"
mkdir -p "$out"

lab() { verb="$1"; shift; "$slash32" lab "$verb" --name "$name" "$@"; }
end() { lab down >/dev/null 2>&1 || true; }
trap end EXIT INT TERM

# topology FILE [OPTIONS]: drawn on node1, which hears every node. Exit 1 is a finding, and drawn.
topology() {
    file="$1"; shift
    lab exec node1 -- slash32 topology "$@" >"$out/$file" 2>/dev/null || [ $? -eq 1 ]
    echo "docs/pictures/$file" >&2
}

# until_down NODE: its session over uplink0 is gone, within 60 s.
until_down() {
    tries=0
    while lab exec "$1" -- slash32 peers --local >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || { echo "the session of $1 did not go down" >&2; exit 1; }
        sleep 1
    done
}

lab up --nodes 3 --tors 2 --pods 3 --families v4 >/dev/null
topology 1-cluster.svg
topology 2-blocks.svg --pool lab-v4
lab exec node2 -- ip link set uplink0 down
until_down node2
topology 3-failure.svg
end
lab up --topology mesh --nodes 4 --families v4 >/dev/null
topology 4-mesh.svg
end
lab up --topology rr --nodes 3 --tors 2 --families v4 >/dev/null
topology 5-reflectors.svg
