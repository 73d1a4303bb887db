#!/bin/sh
# What the texts promise: the sample of README.md and of kvmem.h is that of examples/minimal.c, compiles and
# tells a story; the examples run; the method table of README.md is what `./kvmem list` prints; the commands
# exist. MODEL: examples/models/tiny.gguf if it is there, else ../shared/models/stories260K.bin.
. tests/test.sh
SHARED=../shared/models
[ -n "$FULL" ] && QUICK=-O1 || QUICK="-O0 -DKVMEM_REFERENCE"
cut_c_block() { awk '/^```c$/ { on = 1; next } /^```$/ { on = 0 } on' README.md; }
cut_header_sample() { sed -n '/^   SAMPLE/,/^   DOES NOT/p' kvmem.h | sed '1d;$d' | sed 's/^     //'; }
cut_minimal() { sed -n '/---- sample ----/,/---- end of sample ----/p' examples/minimal.c | sed '1d;$d'; }
without_blank() { grep -v '^[[:space:]]*$' "$1"; }
same_sample() { # README's block and the header's text are the example's, blank lines and comments aside
    cut_minimal > "$TMP/minimal"
    [ -s "$TMP/minimal" ] || return 1
    "$1" > "$TMP/cut"
    without_blank "$TMP/minimal" > "$TMP/a"
    without_blank "$TMP/cut" > "$TMP/b"
    diff "$TMP/a" "$TMP/b"
}
build_sample() { # the cut text with the rest of minimal.c behind it
    (cut_c_block; sed '1,/---- end of sample ----/d' examples/minimal.c) > "$TMP/sample.c"
    # shellcheck disable=SC2086
    $CC $QUICK -std=c99 -Wall -Wextra -Wpedantic -Werror -I. "$TMP/sample.c" -lm -o "$TMP/sample"
}
tells() { # program model [tokenizer]: begins with the prompt and goes on
    prog=$1 model=$2
    shift 2
    "$prog" "$model" "Once upon a time" "$@" > "$TMP/story" && grep -q '^Once upon a time.' "$TMP/story" &&
        grep -q ' bytes of keys and values' "$TMP/story"
}
table_rows() { # | `word` | stage | ... -> words of a stage or preset, in the order of the list
    sed -n '/<!-- methods -->/,/<!-- end methods -->/p' README.md | grep '^|' | sed '1,2d'
}
methods_match() { sh tools/methods.sh > "$TMP/methods" && table_rows > "$TMP/rows" && diff "$TMP/methods" "$TMP/rows"; }
bytes_match() {
    sed -n '/<!-- bytes -->/,/<!-- end bytes -->/p' README.md | grep '^|' | sed '1,2d' > "$TMP/rows"
    sh tools/bytes.sh > "$TMP/bytes" && diff "$TMP/bytes" "$TMP/rows"
}
targets_exist() {
    grep -oE '(^|`)make [a-z-]+' README.md | tr -d '`' | sort -u | while read -r _ t; do
        make -n "$t" > /dev/null 2>&1 || { echo "no make $t"; exit 1; }
    done
}
example_prints() { # name, pattern
    "$B/example_$1" > "$TMP/printed" && grep -q "$2" "$TMP/printed"
}
# ---- measured tables: `make tables` fills them; here only their form is looked at, with few seeds
between() { sed -n "/^<!-- $1 -->\$/,/^<!-- end $1 -->\$/p" README.md; }
marked() { [ "$(between "$1" | grep -c '^<!--')" = 2 ]; }
command_stands_there() {
    between "$1" | grep '^\./kvmem\|^build/bench_claims' > "$TMP/stands"
    sh tools/tables.sh commands | grep -Fxf "$TMP/stands" > "$TMP/known"
    [ -s "$TMP/stands" ] && diff "$TMP/stands" "$TMP/known"
}
table_recipes() { sh tools/tables.sh commands | grep -oE -- '--kv ("[^"]*"|[^ ]*)' | sed 's/^--kv //' | tr -d '"' | sort -u; }
recipes_parse() {
    table_recipes | while read -r r; do
        "${KVMEM:-./kvmem}" estimate --shape L=2,H=2,G=1,d=32 --ctx 64 --kv "$r" > /dev/null || exit 1
    done
}
form() { grep '^|' | sed -n '1,2p' | sed 's/ *| */|/g'; }
same_form() { # NAME MODEL: the first lines of the table, made again from one context a cell
    MODEL=$2 SEEDS=1 MORE="--ctx 256 --threads 1" sh tools/tables.sh print "$1" | form > "$TMP/made"
    between "$1" | form > "$TMP/there"
    [ -s "$TMP/made" ] && awk -F '|' -v n=0 '{ if (n && NF != n) exit 1; n = NF }' "$TMP/made" &&
        [ "$(sed 1q "$TMP/made" | cut -d '|' -f 1-4)" = "$(sed 1q "$TMP/there" | cut -d '|' -f 1-4)" ]
}
check recipes_of_the_tables_parse recipes_parse
"$B/mkgguf" --preset tiny --vocab-kind corpus --ctx 512 -o "$TMP/noise.gguf"
for t in targets recipes aware claims; do
    check "table_${t}_is_marked" marked $t
    if [ -z "$(between $t | grep '^|')" ]; then skip "table_$t" "not measured yet: make tables"; continue; fi
    check "table_${t}_has_its_command" command_stands_there $t
    if [ "$t" = claims ] && [ ! -x "$B/bench_claims" ]; then skip "table_${t}_form" "make claims was not run"; continue; fi
    check "table_${t}_has_the_form_of_its_command" same_form $t "$TMP/noise.gguf"
done
check sample_of_readme_is_the_example same_sample cut_c_block
check sample_of_header_is_the_example same_sample cut_header_sample
check sample_compiles build_sample
if [ -f examples/models/tiny.gguf ]; then
    check sample_tells_a_story tells "$TMP/sample" examples/models/tiny.gguf
elif [ -f $SHARED/stories260K.bin ]; then
    check sample_tells_a_story tells "$TMP/sample" $SHARED/stories260K.bin $SHARED/tok512.bin
    check example_minimal tells "$B/example_minimal" $SHARED/stories260K.bin $SHARED/tok512.bin
else # random weights tell a story, too
    check mkgguf_writes_a_model "$B/mkgguf" --arch llama --preset tiny --type q8_0 -o "$TMP/random.gguf"
    check sample_tells_a_story tells "$TMP/sample" "$TMP/random.gguf"
fi
[ ! -f examples/models/tiny.gguf ] || check example_episodic_memory example_prints episodic_memory '^Ben: what is the city of Mia? Rome'
check example_own_transformer example_prints own_transformer '^snapkv budget=25%'
check example_custom_score example_prints custom_score '^32 of 32 marked tokens kept by .*valuenorm'
check example_visual_scales example_prints visual_scales '^hack, half  .*kept 51 51 361 361 of 413'
check example_diffusion_window example_prints diffusion_window '^gamma 0.95 .*rows  45.5 %.*right 80 of 80'
check example_train example_prints train '^[67][0-9][0-9] of 704 repeated letters right'
check method_table_is_the_list methods_match
check bytes_table_is_what_the_command_prints bytes_match
check make_targets_of_readme_exist targets_exist
finish readme
