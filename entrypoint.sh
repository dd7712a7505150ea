#!/bin/bash
# Makes model and libraries ready, then becomes the server, a whisperlib command, or any other command.
set -eu

here=$(dirname "$(readlink -f "$0")")
if [ -x "$here/.venv/bin/whisperlib" ]; then
    export PATH="$here/.venv/bin:$PATH"
fi

[ $# -gt 0 ] || set -- serve
case $1 in
    serve)
        case " $* " in *" -h "* | *" --help "*) exec whisperlib "$@" ;; esac
        exec 3< <(exec whisperlib prepare "${@:2}")
        # The first process of a container gets only signals that it handles, and a shell handles them in wait, not in $(…).
        trap 'kill "$!"; exit 143' TERM INT
        wait "$!"
        environment=$(cat <&3)
        exec 3<&-
        trap - TERM INT
        eval "$environment"
        exec whisperlib "$@"
        ;;
    transcribe | detect)
        command=$1
        shift
        exec whisperlib "$command" --download "$@"
        ;;
    models | info | selftest | demo | prepare | -*)
        exec whisperlib "$@"
        ;;
    *)
        exec "$@"
        ;;
esac
