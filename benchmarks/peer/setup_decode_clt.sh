#!/usr/bin/env bash
# A virtual environment with decode-clt 0.0.1 (imports as clt), the trainer that training_speed.py and training_quality.py run.
# Usage: setup_decode_clt.sh DIR [PYTHON]     PYTHON: a Python 3.11 (default python3.11). Some 6 GB: it wants torchvision too.
set -euo pipefail
dir=${1:?usage: setup_decode_clt.sh DIR [PYTHON]}
python=${2:-python3.11}
"$python" -m venv "$dir"
dir=$(cd "$dir" && pwd) # the last step leaves this folder
"$dir/bin/pip" install --quiet --upgrade pip
"$dir/bin/pip" install --quiet decode-clt==0.0.1
"$dir/bin/python" -c 'import clt; from importlib.metadata import version as v; print("decode-clt", v("decode-clt"), "torch", v("torch"))'
