#!/usr/bin/env bash
# `circuit-tracer serve` on 127.0.0.1, and what reaches ADDRESS (the container's own, if it is not said) handed on to it.
# Arguments go to serve. PORT: of both; the server compares it with what the browser asked for.
set -euo pipefail
port=${PORT:-8041}
address=${ADDRESS:-$(hostname -i | cut -d ' ' -f 1)}
socat "TCP-LISTEN:$port,bind=$address,fork,reuseaddr" "TCP:127.0.0.1:$port" &
exec circuit-tracer serve --graph_file_dir "${GRAPHS:-/graphs}" --port "$port" --no-open "$@"
