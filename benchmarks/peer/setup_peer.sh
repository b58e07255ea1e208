#!/usr/bin/env bash
# A virtual environment with circuit-tracer 0.5.0, which cannot share one with this package (both import as circuit_tracer).
# Usage: setup_peer.sh DIR [PYTHON]     PYTHON: a Python 3.11 (default python3.11)
# TransformerLens 4 removed the class that circuit-tracer 0.5.0 imports, hence the bound. gguf is for the models it may be given.
set -euo pipefail
dir=${1:?usage: setup_peer.sh DIR [PYTHON]}
python=${2:-python3.11}
"$python" -m venv "$dir"
dir=$(cd "$dir" && pwd) # the last step leaves this folder
"$dir/bin/pip" install --quiet --upgrade pip
"$dir/bin/pip" install --quiet torch==2.13.0
"$dir/bin/pip" install --quiet circuit-tracer==0.5.0 transformer-lens==3.2.1 transformers==4.57.3 nnsight==0.8.1 gguf==0.19.0
cd "$dir" # away from any folder that holds a circuit_tracer of its own
"$dir/bin/python" - <<'PY'
from importlib.metadata import version
import circuit_tracer, transformer_lens  # noqa: F401
print("circuit-tracer", version("circuit-tracer"), "transformer-lens", version("transformer-lens"), "torch", version("torch"))
PY
