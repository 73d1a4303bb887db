#!/bin/sh
# Runs the benchmarks that are built: tables on stdout. Options go to each of them: --csv, --threads N,
# --repeat N. MODELS="a.gguf b.gguf" measures other files; else random-weight models of two published
# shapes are written to $BENCH_DIR (/tmp: 2.3 GB) once.
set -e
B=${B:-build}
DIR=${BENCH_DIR:-/tmp}
for b in "$B"/bench_*; do
    [ -x "$b" ] || continue
    # one runs below, the others are no timings
    case $b in */bench_decode | */bench_claims | */bench_direct | */bench_methods | */bench_overhead) continue ;; esac
    "$b" "$@"
    echo
done
[ -x "$B/bench_decode" ] || exit 0
if [ -z "$MODELS" ]; then
    for shape in smollm2-135m llama-3.2-1b; do
        for type in q8_0 q4_0; do
            f=$DIR/bench-$shape-$type.gguf
            [ -f "$f" ] || "$B/mkgguf" --preset $shape --type $type -o "$f"
            MODELS="$MODELS $f"
        done
    done
fi
# shellcheck disable=SC2086
"$B/bench_decode" "$@" $MODELS
