#!/bin/sh
# Says, one line each, what this machine lacks to build whisperlib and how to get it.
# "compiler" checks what the native build needs, no argument everything.

status=0
missing() {
    echo "missing: $1" >&2
    status=1
}

command -v git >/dev/null || missing "git: apt-get install git"
command -v "${CXX:-g++}" >/dev/null || missing "C++ compiler ${CXX:-g++}: apt-get install g++"
command -v "${CC:-gcc}" >/dev/null || missing "C compiler ${CC:-gcc}: apt-get install gcc"

if [ "$1" != compiler ]; then
    python=${PYTHON:-python3}
    if ! command -v "$python" >/dev/null; then
        missing "$python: apt-get install python3 python3-venv"
    elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        missing "Python 3.10 or later: $python is older; make PYTHON=python3.x with another"
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        missing "Python's venv module: apt-get install python3-venv"
    fi
fi

exit $status
