#!/usr/bin/env bash
# Set up everything that the project needs on a Debian or Ubuntu machine: system libraries, .venv, Python packages.
# The Makefile calls it; running it again is safe and quick.
#
#   PYTHON=/path/to/python3   the Python to make .venv with (default: python3 where it suits)
#   SYSTEM_PACKAGES=no        leave apt-get alone, only say what is missing
set -eu

cd "$(dirname "$0")/.."

say() { printf '%s\n' "install: $*"; }
warn() { printf '%s\n' "install: $*" >&2; }

# Print the version of a Python as two numbers ("3 12"). Fails for names that cannot be run, pyenv's shims among them.
python_version() { "$1" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null; }

candidates=(python3 python3.12 python3.11 python3.10 python3.13)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")

# Print the first Python 3 whose minor version is at least 10 and at most $1.
find_python() {
    for candidate in "${candidates[@]}"; do
        version=$(python_version "$candidate") || continue
        minor=${version#3 }
        [ "$minor" != "$version" ] && [ "$minor" -ge 10 ] && [ "$minor" -le "$1" ] && echo "$candidate" && return
    done
    return 1
}

# Print the Debian packages that are missing, in one line.
missing_packages() {
    missing=
    # Off-screen rendering of the simulators (EGL first, OSMesa as the other way).
    for package in libosmesa6 libegl1 libgl1 libgl1-mesa-dri libgles2; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $package"
    done
    # robosuite depends on pynput and that on evdev, which is built from source.
    command -v cc >/dev/null && command -v c++ >/dev/null || missing="$missing build-essential"
    [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] \
        || missing="$missing python3.$python_minor-dev"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3.$python_minor-venv"
    echo "${missing# }"
}

# Run a command as root; fails where that would need a password.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
}

install_system_packages() {
    packages=$(missing_packages)
    [ -n "$packages" ] || return 0
    if [ "${SYSTEM_PACKAGES:-yes}" != no ] && as_root true 2>/dev/null; then
        say "system packages: $packages"
        as_root apt-get -qq update || warn "apt-get update failed, trying with the lists that are there"
        # One at a time where the whole list is refused: one name that a release does not have must not stop the others.
        # shellcheck disable=SC2086  # a list of words
        apt_install $packages || for package in $packages; do apt_install "$package" || true; done
        packages=$(missing_packages)
        [ -n "$packages" ] || return 0
    fi
    warn "these system packages are missing. Going on without them; if a later step fails, run"
    warn "    sudo apt-get install -y --no-install-recommends $packages"
    warn "and then this again."
}

if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then have_apt=yes; else have_apt=no; fi

# Up to 3.12 everything can be installed; later ones lack robosuite, because there is no numpy<2 for them.
if python=$(find_python 12); then :
elif python=$(find_python 99); then warn "$python is newer than 3.12: robosuite and its environments are left out."
elif [ -n "${PYTHON:-}" ]; then
    if version=$(python_version "$PYTHON"); then version="it is ${version/ /.}"; else version="it cannot be run"; fi
    warn "PYTHON=$PYTHON is not Python 3.10 or newer ($version). Name another one, or leave PYTHON out."
    exit 1
else
    warn "no Python 3.10 or newer was found. Install one (sudo apt-get install -y python3 python3-venv python3-dev),"
    warn "or name one: make install PYTHON=/path/to/python3"
    exit 1
fi
version=$(python_version "$python")
python_minor=${version#3 }

if [ "$have_apt" = yes ]; then
    install_system_packages
else
    warn "no apt-get here: see to a C compiler, Python's headers, EGL or OSMesa yourself."
fi

# A .venv without a working pip is the rest of an attempt that was interrupted, or made without python3-venv.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "making .venv with $python (3.$python_minor)"
    "$python" -m venv --clear .venv
fi

# torch first and pinned, see constraints.txt.
say "Python packages (some minutes the first time)"
.venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
.venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[sim,analysis,dev]"
# Only for tests: its own loader reads our files. It depends on torchvision, and so on CUDA, which that part does not need.
.venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps --no-build-isolation robomimic \
    || warn "robomimic could not be installed: the tests that need it will be skipped"
say "done"
