#!/bin/sh
# Seeded mutations of valid inputs through every fuzz target: a few seconds each, the same every time.
. tests/test.sh
for t in recipe:2000 tokenizer:300 model:400 cache:1500 stream:1200 store:100 ops:60; do
    name=${t%:*}
    check "${name}_survives_mutations" "$B/fuzz_$name" --mutate "${t#*:}" --seed 1
done
printf 'garbage' > "$TMP/garbage"
: > "$TMP/empty"
for name in recipe tokenizer model cache stream store ops; do
    check "${name}_survives_garbage_and_nothing" "$B/fuzz_$name" "$TMP/garbage" "$TMP/empty"
done
finish mutate
