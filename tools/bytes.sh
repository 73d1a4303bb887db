#!/bin/sh
# The bytes table of README.md: what a cache of Llama-3.2-1B's shape takes after a prompt of 16384 tokens, by
# `./kvmem estimate` (which the tests hold to what the allocator counts). tools/methods.sh write puts it there.
for r in "full" "full codec=f16" "full codec=q8_0" "full codec=q4_0" "streamingllm budget=2048" \
    "snapkv budget=10%" "snapkv budget=10% codec=q8_0" "h2o budget=20% when=block" "h2o budget=64MiB codec=q8_0"; do
    ${KVMEM:-./kvmem} estimate --shape L=16,H=32,G=8,d=64 --ctx 16384 --kv "$r" --threads 1 --backend plain |
        awk -v r="$r" '$1 == "live" { live = $2 " " $3 } $1 == "peak" { peak = $2 " " $3 }
            END { printf "| `%s` | %s | %s |\n", r, live, peak }'
done
