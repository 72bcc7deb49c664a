# Shared by the scripts of this folder: sourced, not run.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # used by those who source this
target=${CARGO_TARGET_DIR:-$top/target}

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

# seconds SINCE: whole seconds since the moment SINCE, which $SECONDS gave.
seconds() { printf '%d s' $((SECONDS - $1)); }

# as_root COMMAND…: runs a command with the rights to install packages, or fails.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        return 1
    fi
}

# with_progress TITLE LOG COMMAND…: runs a command with its output in LOG, and shows that it is alive.
with_progress() {
    local title=$1 log=$2 since=$SECONDS pid
    shift 2
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        if [ -t 2 ]; then
            printf '\r\033[K%s … %s  %s' "$title" "$(seconds "$since")" "$(last_line "$log")" >&2
        elif [ $(((SECONDS - since) % 60)) = 59 ]; then
            say "$title … $(seconds "$since")  $(last_line "$log")"
            sleep 1
        fi
        sleep 0.5
    done
    [ -t 2 ] && printf '\r\033[K' >&2
    wait "$pid"
}

last_line() { tail -c 400 "$1" | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 | cut -c 1-60; }

# The build needs Rust, a C compiler (aws-lc, zstd, liburing), make (jemalloc) and git (glommio's build script).
need_build_tools() {
    command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null || fail "there is no Rust here; get it from https://rustup.rs and run this again"
    local missing=()
    command -v cc >/dev/null || missing+=(gcc)
    command -v make >/dev/null || missing+=(make)
    command -v git >/dev/null || missing+=(git)
    has_c_headers || missing+=(libc6-dev)
    [ ${#missing[@]} = 0 ] && return
    say "installing what the build needs: ${missing[*]}"
    command -v apt-get >/dev/null || fail "please install ${missing[*]}: this is no Debian, the script cannot"
    as_root apt-get -qq update >&2 || fail "please install these packages as root: ${missing[*]}"
    install_packages "${missing[@]}" >&2 || fail "installing ${missing[*]} failed"
}

install_packages() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@"
}

has_c_headers() {
    command -v cc >/dev/null && printf '#include <stdio.h>\n#include <linux/io_uring.h>\n' | cc -E - >/dev/null 2>&1
}
