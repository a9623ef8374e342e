#!/bin/sh
# Makes the project's virtual environment, once per state of setup.cfg.
#   scripts/setup_venv.sh FOLDER EXTRAS      e.g. .venv "convert,dev"
# With the second word `tflite214` it makes the one in which tflite-runtime 2.14 runs, which needs numpy<2.
set -eu
folder=$1 extras=$2
state=$folder/.stonechat-$(cksum setup.cfg "$0" | cksum | cut -d' ' -f1)
stamp=$state-$(echo "$extras" | tr , -)
[ -e "$stamp" ] && exit 0
[ "$extras" = demo ] && [ -e "$state-dev" ] && exit 0  # which has all that the demo needs

python=$(command -v python3.11 || command -v python3 || true)
[ -n "$python" ] || { echo "setup: there is no python3; install Python 3.11 or newer" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $python is $("$python" -V 2>&1), and stonechat needs Python 3.11 or newer" >&2; exit 2; }

[ -x "$folder/bin/python" ] || echo "setup: making $folder" >&2
if [ ! -x "$folder/bin/pip" ] && ! "$python" -m venv "$folder" 2>/dev/null; then
    # Debian keeps ensurepip in a package of its own.
    if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo -n"; else
        echo "setup: python3 -m venv does not work here; run: sudo apt-get install python3-venv" >&2; exit 2
    fi
    $as_root apt-get update -qq >&2 && $as_root apt-get install -y -qq python3-venv >&2
    rm -rf "$folder" && "$python" -m venv "$folder"
fi

echo "setup: installing packages into $folder (the first time takes a minute or two)" >&2
pip="$folder/bin/python -m pip --disable-pip-version-check -q"
if [ "$extras" = tflite214 ]; then
    # --no-deps: the project itself asks for LiteRT, which this environment must not have.
    # Half of an environment would look like one to the tests.
    { $pip install "tflite-runtime==2.14.0" "numpy<2" tokenizers sentencepiece jinja2 pytest &&
        $pip install --no-deps -e .; } || { rm -rf "$folder"; exit 1; }
else
    $pip install -e ".[$extras]"
fi
rm -f "$folder"/.stonechat-*
touch "$stamp"
