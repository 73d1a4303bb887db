#!/bin/sh
# Builds each fuzz target with libFuzzer, ASan and UBSan (clang) and runs it for FUZZ_TIME seconds (60).
# Corpora grow in build/corpus/NAME. A crash leaves its input in build/ and ends the run.
CLANG=${CLANG:-clang}
mkdir -p build/corpus
if ! echo 'int LLVMFuzzerTestOneInput(const unsigned char *p, unsigned long n); int LLVMFuzzerTestOneInput(const unsigned char *p, unsigned long n) { (void)p; (void)n; return 0; }' |
    $CLANG -fsanitize=fuzzer,address -xc - -o build/fuzz_probe 2> /dev/null; then
    echo "make fuzz needs clang with libFuzzer (Debian: clang and libclang-rt-14-dev)"
    exit 2
fi
rc=0
for src in tools/fuzz_*.c; do
    name=$(basename "$src" .c | sed 's/fuzz_//')
    echo "== $name"
    $CLANG -g -O1 -std=c99 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -I. "$src" -lm \
        -o "build/libfuzz_$name" || exit 1
    mkdir -p "build/corpus/$name"
    if [ -x "build/fuzz_$name" ]; then (cd "build/corpus/$name" && "../../fuzz_$name" --seeds . > /dev/null); fi
    (cd build && "./libfuzz_$name" -max_total_time="${FUZZ_TIME:-60}" -max_len=65536 -rss_limit_mb=2048 -timeout=20 \
        -print_final_stats=0 -verbosity=1 "corpus/$name" 2>&1 | grep -v -E '(NEW|REDUCE|pulse|RELOAD) ' | tail -n 40
    ) || rc=1
done
exit $rc
