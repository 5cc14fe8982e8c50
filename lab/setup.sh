#!/bin/sh
# Makes a fresh Debian machine ready: the programs the lab runs, and .venv with this project.
# Run by `make setup`, `make demo` and the tests; quick and silent when nothing is missing.
#
#   sh lab/setup.sh          what `slash32` and the lab need
#   sh lab/setup.sh dev      and the tools the tests need
#
# PYTHON names the interpreter for .venv (3.11 or later); without it the first that fits is taken.
# Outside the project nothing but Debian packages is installed.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
extra="${1:-}"
venv=.venv
stamp="$venv/.slash32-setup"

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

# It must answer, not only succeed: PYTHON=true succeeds at everything.
fits() { [ "$("$1" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)" = True ]; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" || fail "PYTHON=$PYTHON is not a Python of version 3.11 or later"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.11 python3.12 python3.13 python3.14 /usr/bin/python3; do
        if command -v "$candidate" >/dev/null && fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo none
}

# Program and the Debian package that has it; as in build.py.
missing_packages() {
    while read -r program package; do
        command -v "$program" >/dev/null || echo "$package"
    done <<LIST
ip iproute2
nsenter util-linux
bird bird2
birdc bird2
ping iputils-ping
tcpdump tcpdump
nft nftables
LIST
    if [ "$extra" = dev ]; then
        while read -r program package; do
            command -v "$program" >/dev/null || [ -e "$program" ] || echo "$package"
        done <<LIST
containerd containerd
ctr containerd
runc runc
busybox busybox-static
podman podman
conmon conmon
/usr/lib/cni/portmap containernetworking-plugins
iptables iptables
curl curl
cc gcc
/usr/include/errno.h libc6-dev
strace strace
/usr/lib/frr/bgpd frr
/usr/bin/gobgpd gobgpd
/usr/sbin/bgpd openbgpd
mmdebstrap mmdebstrap
LIST
    fi
    if [ "$python" = none ]; then
        echo python3
        echo python3-venv
    elif [ ! -x "$venv/bin/python" ] && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo python3-venv
    fi
}

# A BIRD that the package started would run on with Debian's sample configuration. The lab starts
# its own; whoever had BIRD before us keeps theirs, since we only get here when it was missing.
quiet_bird() {
    if [ -d /run/systemd/system ]; then
        systemctl disable --now bird.service >/dev/null 2>&1 || true
    elif [ -x /etc/init.d/bird ]; then
        /etc/init.d/bird stop >/dev/null 2>&1 || true
        update-rc.d bird disable >/dev/null 2>&1 || true
    fi
}

# The same for the other routers that `make interop` runs, each with files of its own.
quiet_routers() {
    for pair in frr:frr gobgpd:gobgpd openbgpd:openbgpd openbgpd:bgplgd; do
        package="${pair%:*}" unit="${pair#*:}"
        case " $packages" in *" $package "*) ;; *) continue ;; esac
        if [ -d /run/systemd/system ]; then
            systemctl disable --now "$unit.service" >/dev/null 2>&1 || true
        elif [ -x "/etc/init.d/$unit" ]; then
            "/etc/init.d/$unit" stop >/dev/null 2>&1 || true
            update-rc.d "$unit" disable >/dev/null 2>&1 || true
        fi
    done
}

# The same for the runtimes that the tests drive with a configuration of their own.
quiet_runtimes() {
    [ -d /run/systemd/system ] || return 0
    for unit in containerd.service podman.service podman.socket podman-restart.service \
        podman-auto-update.service podman-auto-update.timer; do
        case "$unit" in containerd*) package=containerd ;; *) package=podman ;; esac
        case " $packages" in *" $package "*) systemctl disable --now "$unit" >/dev/null 2>&1 || true ;; esac
    done
}

install_packages() {
    packages="$(missing_packages | sort -u | tr '\n' ' ')"
    [ -n "$packages" ] || return 0
    command -v apt-get >/dev/null ||
        fail "missing (Debian's names): $packages- and there is no apt-get to install them"
    [ "$(id -u)" = 0 ] || fail "missing: $packages- only root can install them with apt-get"
    say "installing Debian packages: $packages"
    export DEBIAN_FRONTEND=noninteractive
    log="$(mktemp)"
    # shellcheck disable=SC2086  # one word per package is meant
    if ! { apt-get -q update && apt-get -q install -y --no-install-recommends $packages; } \
        >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        fail "apt-get could not install: $packages"
    fi
    rm -f "$log"
    case " $packages" in *" bird2 "*) quiet_bird ;; esac
    quiet_routers
    quiet_runtimes
    python="$(find_python)"
    left="$(missing_packages | sort -u | tr '\n' ' ')"
    [ -z "$left" ] || fail "still missing after apt-get: $left"
}

make_venv() {
    want="$(cat pyproject.toml lab/setup.sh | sha256sum | cut -d' ' -f1)"
    have="$(cat "$stamp" 2>/dev/null || true)"
    # An environment with the tests' tools serves without them too.
    case "$have" in
        "$want $extra" | "$want dev") if fits "$venv/bin/python"; then return 0; fi ;;
    esac
    if ! fits "$venv/bin/python"; then
        say "creating $venv with $("$python" --version) ($python)"
        "$python" -m venv --clear "$venv" || fail "cannot create $venv with $python"
    fi
    say "installing slash32 and its requirements into $venv"
    rm -f "$stamp"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --no-warn-script-location --editable ".${extra:+[$extra]}" ||
        fail "pip could not install the project; the lines above say why"
    echo "$want $extra" >"$stamp"
}

case "$extra" in
    "" | dev) ;;
    *) fail "unknown argument '$extra'; there is only 'dev'" ;;
esac
python="$(find_python)" || exit 1
install_packages
make_venv
