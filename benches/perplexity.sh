#!/bin/sh
# Perplexity of MODEL on TEXT in f32, bf16, int8 and int4, and how far each is from f32, as rows of RESULTS.md's table.
# usage: benches/perplexity.sh MODEL TEXT [WINDOWS]    RVLLM names the program; target/release/rvllm where it does not
set -eu
model=$1 text=$2 windows=${3:-1000000} rvllm=${RVLLM:-target/release/rvllm}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$rvllm" compile "$model" --dtype f32 -o "$dir/f32.rvllm" --quiet >"$dir/log"
"$rvllm" compile "$model" --dtype bf16 -o "$dir/bf16.rvllm" --quiet >"$dir/log"
for scheme in int8 int4; do
    "$rvllm" compile "$model" --dtype bf16 --quantize "$scheme" -o "$dir/$scheme.rvllm" --quiet >"$dir/log"
done
echo '| weights | artifact, MiB | perplexity | of f32 | KL divergence, mean | same most likely token |'
echo '|---|---|---|---|---|---|'
for kind in f32 bf16 int8 int4; do
    "$rvllm" eval perplexity "$dir/$kind.rvllm" "$text" --reference "$dir/f32.rvllm" --chunks "$windows" --json >"$dir/$kind.json"
    python3 - "$kind" "$dir/$kind.rvllm" "$dir/$kind.json" <<'PY'
import json, os, sys
kind, artifact, report = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
r = report["reference"]
size, ratio, kl = os.path.getsize(artifact) / 2**20, r["perplexity_ratio"], r["kl_divergence"]["mean"]
print(f"| {kind} | {size:.1f} | {report['perplexity']:.4f} | {ratio:.5f} | {kl:.6f} | {100 * r['same_top']:.2f} % |")
PY
done
