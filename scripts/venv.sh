# Sourced by the other scripts: makes .venv with this checkout and its extras installed and the extensions compiled.
# Needs: Python >= 3.11 with venv and headers, a C compiler. On Debian, as root, what is missing is installed.

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

# ensure_venv EXTRAS: idempotent; does nothing when sources of the build and the extras are those of the last time.
ensure_venv() {
    local extras=$1 stamp=.venv/.installed-$1 wanted python
    wanted=$(cat setup.cfg setup.py pyproject.toml $(git ls-files -co --exclude-standard '*.pyx' '*.h' 2>/dev/null || find shared storenode -name '*.pyx' -o -name '*.h') | sha256sum)
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    python=$(find_python)
    if [[ -z $python ]]; then
        debian_install "no Python 3.11 or newer" python3 python3-venv python3-dev
        python=$(find_python)
        [[ -n $python ]] || { say "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
    fi
    command -v "${CC:-cc}" >/dev/null || debian_install "no C compiler" gcc libc6-dev
    [[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] ||
        debian_install "no Python headers (Python.h)" python3-dev
    if [[ ! -x .venv/bin/pip ]]; then
        "$python" -c 'import ensurepip' 2>/dev/null || debian_install "no venv module" python3-venv
        "$python" -m venv .venv
    fi
    say "installing into .venv and compiling (a minute the first time)"
    .venv/bin/pip install -q --disable-pip-version-check -e ".[$extras]" 2>.venv/install.log || {
        cat .venv/install.log >&2
        say "error: the installation failed; its output is above and in .venv/install.log"
        exit 1
    }
    echo "$wanted" >"$stamp"
}
