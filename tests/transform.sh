#!/bin/sh
# The transform program on the default model: files that kvmem runs, errors and exit statuses.
. tests/test.sh
T=$B/transform
KVMEM=${KVMEM:-./kvmem}
MODEL=examples/models/tiny.gguf

fails() { # PATTERN OPTION...: status 1, nothing on stdout, PATTERN in the message
    pattern=$1
    shift
    "$T" "$@" > "$TMP/stdout" 2> "$TMP/stderr"
    [ $? = 1 ] && [ ! -s "$TMP/stdout" ] && grep -q -- "$pattern" "$TMP/stderr"
}
prints() {
    pattern=$1
    shift
    "$@" > "$TMP/stdout" 2>&1 && grep -q -- "$pattern" "$TMP/stdout" || { cat "$TMP/stdout"; return 1; }
}
"$B/corpus" --text --length 300 > "$TMP/text"
check heads_merge_by_the_text prints '1 KV heads instead of 2, svd-a' \
    "$T" kvheads -m $MODEL -o "$TMP/a.gguf" --text "$TMP/text"
check the_merged_model_runs prints '.' \
    "$KVMEM" run -m "$TMP/a.gguf" -p "Ana: the city of Mia is" -n 4 --temp 0
check the_mean_needs_no_text prints 'energy of the weights' \
    "$T" kvheads -m $MODEL -o "$TMP/m.gguf" --by mean
check projections_are_shared prints 'kv share one projection' "$T" share -m $MODEL -o "$TMP/s.gguf"
check text_is_asked_for fails 'needs calibration text' kvheads -m $MODEL -o "$TMP/x.gguf"
check groups_must_divide fails 'does not divide 2 KV heads' kvheads -m $MODEL -o "$TMP/x.gguf" --group 3
check a_way_must_be_known fails 'svd-a, svd-w or mean' kvheads -m $MODEL -o "$TMP/x.gguf" --by pca
check an_option_must_be_known fails 'unknown option' share -m $MODEL --foo x
check a_model_must_be_there fails 'cannot be read' share -m "$TMP/none" -o "$TMP/x.gguf"
check a_model_must_be_one fails '' share -m Makefile -o "$TMP/x.gguf"
check usage_is_told fails 'usage' kvheads -m
finish transform_program
