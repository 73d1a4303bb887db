#!/bin/sh
# `kvmem profile` on the default model: every row is there and shows what is known of the model; recipes that go by
# the profile run, and say what is wrong where they cannot.
. tests/test.sh
: "${KVMEM:=./kvmem}"
P=examples/models/tiny.profile
IDS=0,300,301,302,303,304,305,306,307,308,309,310,311,312,313,314

# shellcheck disable=SC2086
$KVMEM profile -t 1 -o "$TMP/p" --evo 12.5% --generations 1 > "$TMP/shown" 2> "$TMP/said"
row() { awk -v r="$2" '$1 ~ /^(layer|kv|head|curve)$/ { on = $2 == r; if (on) { for (i = 3; i <= NF; i++) print $i }; next }
    on { for (i = 1; i <= NF; i++) print $i }' "$1"; }
rows() { awk '$1 ~ /^(layer|kv|head|curve)$/ { printf "%s %s ", $1, $2 }' "$1"; }
has_rows() { [ "$(rows "$1")" = "kv echo kv induction head retrieval head semantic layer keysim layer error kv duo curve lukv layer evo " ]; }
facts() { # layer 0 does not see the mask; errors sum to 1; heads are between 0 and 1; budgets sum to 4 times 56 of 448
    row "$1" keysim | awk 'NR == 1 && $1 != 1 { exit 1 } $1 > 1.00001 { exit 1 }' &&
        row "$1" error | awk '{ s += $1 } END { exit !(s > 0.999 && s < 1.001 && NR == 4) }' &&
        row "$1" retrieval | awk '$1 < 0 || $1 > 1.00001 { exit 1 } END { if (NR != 16) exit 1 }' &&
        row "$1" evo | awk '{ s += $1 } END { exit s != 224 }' &&
        row "$1" lukv | awk 'NR == 1 { if ($1 != 99) exit 1; next } $1 < 0 || $1 > 1 { exit 1 } END { exit NR != 793 }'
}
finds_in_layer_1() { row "$1" induction | sort -g | tail -n 1 | awk '$1 < 0.5 { exit 1 }' &&
    row "$1" induction | awk '$1 > top { top = $1; at = NR } END { exit !(at == 3 || at == 4) }'; }
near_committed() { # what was measured here is what the repository has, but for rounding
    for r in retrieval keysim duo; do
        row "$1" $r > "$TMP/a"
        row $P $r > "$TMP/b"
        paste "$TMP/a" "$TMP/b" | awk '{ d = $1 - $2; if (d < -0.02 || d > 0.02) exit 1 }' || return 1
    done
    [ "$(sed -n 2p "$1")" = "$(sed -n 2p $P)" ]
}
check writes_every_row has_rows "$TMP/p"
check committed_profile_has_every_row has_rows $P
check numbers_keep_to_their_meaning facts "$TMP/p"
check finds_the_heads_that_repeat finds_in_layer_1 "$TMP/p"
check agrees_with_the_committed_profile near_committed "$TMP/p"
check shows_the_best_heads grep -q 'induction  layer 1 head' "$TMP/shown"
check says_what_evolution_reached grep -q 'equal budgets' "$TMP/said"

runs() { $KVMEM logits --tokens $IDS --kv "$1" -m examples/models/tiny.gguf -t 1 -o "$TMP/rows"; }
refuses() { # recipe, what stderr says
    runs "$1" > "$TMP/o" 2>&1 && return 1
    grep -q "$2" "$TMP/o"
}
for k in razor duo headkv compresskv epicache_layers lukv evobudget; do
    check "${k}_runs_by_the_profile" runs "$k budget=50% sink=1 recent=2 profile=$P"
done
check no_profile_says_how_to_make_one refuses "duo" 'make one by `./kvmem profile'
check a_missing_row_is_named refuses "rlkv profile=$P" 'no row rlkv'
sed 's/^model .*/model 1/' $P > "$TMP/other"
check another_model_is_refused refuses "duo profile=$TMP/other" 'another model of the same shape'
sed 's/^layer keysim 1 /layer keysim one /' $P > "$TMP/bad"
check bad_numbers_name_their_line refuses "duo profile=$TMP/bad" "line [0-9]*: 'one': number 1 of the 4 of row keysim"
finish profile_tool
