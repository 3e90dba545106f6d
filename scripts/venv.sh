# Sourced by the other scripts: makes .venv with this checkout and its extras installed and the extensions compiled.
# Needs: Python >= 3.11 with venv and headers, a C compiler, liblz4 and libzstd with headers. On Debian, as root, what
# is missing is installed.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "$*" >&2; }

debian_install() {
    # $1 = what is missing, the rest = Debian packages that bring it
    local missing=$1
    shift
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        say "installing $* ($missing)"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >/dev/null 2>&1 && return
    fi
    say "error: $missing. Install it first: apt-get install $*"
    exit 1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

# Two lines: where .venv was made and with which interpreter (both are written into its files), and what was
# installed and compiled.
fingerprint() {
    echo "$PWD $(readlink -f .venv/bin/python)"
    find shared storenode \( -name '*.pyx' -o -name '*.pxd' -o -name '*.h' \) -print0 | sort -z |
        xargs -0 cat setup.cfg setup.py pyproject.toml | sha256sum
}

has_compression() { printf '#include <lz4.h>\n#include <zstd.h>\n' | "${CC:-cc}" -E - >/dev/null 2>&1; }

has_pip() { .venv/bin/python -m pip --version >/dev/null 2>&1; }

make_venv() {
    local python
    python=$(find_python)
    if [[ -z $python ]]; then
        debian_install "no Python 3.11 or newer" python3 python3-venv python3-dev
        python=$(find_python)
        [[ -n $python ]] || { say "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
    fi
    "$python" -c 'import ensurepip' 2>/dev/null || debian_install "no venv module" python3-venv
    "$python" -m venv .venv && has_pip && return
    "$python" -m venv --clear .venv
}

# Idempotent and quick when nothing has changed since the last time; one environment for all scripts.
ensure_venv() {
    local stamp=.venv/.installed unfinished=.venv/.unfinished
    [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$(fingerprint)" ]] && return
    if [[ -f $stamp && $(head -n 1 "$stamp") != "$(fingerprint | head -n 1)" ]]; then
        rm -rf .venv # made by us, and the checkout was moved since, or the interpreter replaced
    fi
    has_pip || make_venv
    command -v "${CC:-cc}" >/dev/null || debian_install "no C compiler" gcc libc6-dev
    has_compression || debian_install "no headers of liblz4 and libzstd" liblz4-dev libzstd-dev
    [[ -f $(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] ||
        debian_install "no Python headers (Python.h)" python3-dev
    say "installing into .venv and compiling (a minute or two the first time)"
    [[ ! -f $unfinished ]] || rm -rf build # interrupted: half-written files in there would be taken for good
    touch "$unfinished"
    rm -f "$stamp"
    .venv/bin/python -m pip install -q --disable-pip-version-check -e '.[test,bench,dev]' 2>.venv/install.log || {
        cat .venv/install.log >&2
        say "error: the installation failed; its output is above and in .venv/install.log"
        exit 1
    }
    # An editable install brings no bytecode, and whoever may not write here would compile at every start.
    .venv/bin/python -m compileall -q kvclient shared router storenode
    rm -f "$unfinished"
    fingerprint >"$stamp"
}
