#!/bin/sh
# kvmem eval and kvmem demo: errors, forms of output, determinism. Needs ./kvmem and build/mkgguf, which
# makes a model of noise with the vocabulary of tools/corpus.h.
. tests/test.sh
KVMEM=${KVMEM:-./kvmem}
SHARED=../shared
LC_ALL=C
OMP_NUM_THREADS=1 # tiny models: threads only wait for each other
OMP_WAIT_POLICY=passive
export LC_ALL OMP_NUM_THREADS OMP_WAIT_POLICY

# fails STATUS PATTERN COMMAND...: that exit status, nothing on stdout, PATTERN in the message
fails() {
    want=$1 pattern=$2
    shift 2
    "$@" > "$TMP/stdout" 2> "$TMP/stderr" < /dev/null
    got=$?
    if [ "$got" != "$want" ]; then echo "status $got, not $want"; cat "$TMP/stderr"; return 1; fi
    if [ -s "$TMP/stdout" ]; then echo "stdout is not empty"; return 1; fi
    grep -q -- "$pattern" "$TMP/stderr" || { echo "no '$pattern' in:"; cat "$TMP/stderr"; return 1; }
}
# prints PATTERN COMMAND...: succeeds with PATTERN on stdout and nothing on stderr
prints() {
    pattern=$1
    shift
    "$@" > "$TMP/stdout" 2> "$TMP/stderr" < /dev/null || { cat "$TMP/stderr"; return 1; }
    if [ -s "$TMP/stderr" ]; then echo "stderr is not empty"; cat "$TMP/stderr"; return 1; fi
    grep -q -- "$pattern" "$TMP/stdout" || { echo "no '$pattern' in:"; head -n 12 "$TMP/stdout"; return 1; }
}

# ---- options, before any model is read
E="$KVMEM eval -m /nowhere"
check unknown_suite_names_the_nearest fails 2 "'needel' is not one of .* did you mean needle" $E --suite needel
check suite_twice fails 2 'conv is there twice' $E --suite conv,conv
check empty_suite fails 2 'is empty' $E --suite conv,
check unknown_recipe fails 2 "snapky" $E --kv snapky
check recipe_twice fails 2 'same recipe' $E --kv "h2o" --kv "h2o budget=20%"
check budget_zero fails 2 'budget' $E --budgets 50%,0
check budget_zero_share fails 2 'budget' $E --budgets 0%
check budget_above_all fails 2 'budget' $E --budgets 101%
check budget_twice fails 2 'there twice' $E --budgets 50%,50%
check budget_is_no_term fails 2 'is not an amount' $E --budgets "50% when=step"
check bad_length fails 2 "'2x' is not a length" $E --ctx 1k,2x
check zero_length fails 2 "'0' is not a length" $E --ctx 0
check length_twice fails 2 'there twice' $E --ctx 1k,1024
check two_forms fails 2 'together' $E --json --csv
check unwritable_report fails 2 '/nowhere/r.html: cannot be written' $E --report /nowhere/r.html
check report_is_a_folder fails 2 'tests: cannot be written' $E --report tests
check audit_without_report fails 2 'goes with --report' $E --audit h2o
check bad_audit fails 2 'h20' $E --audit h20 --report "$TMP/no.html"
check failed_eval_leaves_no_report test ! -e "$TMP/no.html"
check missing_model fails 1 '/nowhere: cannot open' $E
check demo_plays_one_budget fails 2 'one budget' $KVMEM demo -m /nowhere --budget 50%,25%

# ---- a model of noise
MKGGUF=$B/mkgguf
if [ -x "$MKGGUF" ]; then
    M=$TMP/noise.gguf
    "$MKGGUF" --preset tiny --vocab-kind corpus --ctx 512 -o "$M"
    "$MKGGUF" --preset tiny --ctx 512 -o "$TMP/other.gguf"
    E="$KVMEM eval -m $M --seeds 2 --questions 4"
    check context_beyond_the_model fails 2 'beyond the 512 tokens' $E --ctx 1k
    check context_too_short fails 2 'ctx 64' $E --ctx 64
    check another_vocabulary fails 1 'vocabulary is not that of' $KVMEM eval -m "$TMP/other.gguf" --ctx 256
    check text_without_ppl fails 2 'only used by --suite ppl' $E --ctx 256 --text tests/eval.sh
    check text_too_short fails 1 'need more' $E --ctx 512 --suite ppl --seeds 9999 --text tests/eval.sh
    check missing_text fails 1 '/nowhere: cannot open' $E --ctx 256 --suite ppl --text /nowhere
    check any_text_will_do prints '^ppl  *256  *h2o  *25%' \
        $KVMEM eval -m "$TMP/other.gguf" --ctx 256 --suite ppl --kv h2o --budgets 25% --text tests/eval.sh
    check budget_of_one prints '^conv  *256  *h2o  *1  *[0-9]*/8' $E --ctx 256 --kv h2o --budgets 1
    check budget_above_the_context prints 'note: h2o budget=1000 .*keeps all' $E --ctx 256 --kv h2o --budgets 1000
    check all_kept_is_as_right_as_full sh -c \
        "awk '\$1 == \"conv\" { print \$5 }' '$TMP/stdout' | uniq | awk 'END { exit NR != 1 }'"
    check full_is_the_reference prints '^conv  *256  *full  *-  *[0-9]*/8' $E --ctx 256 --kv full
    check own_budgets_run_once prints '^conv  *256  *h2o budget=16  *16' $E --ctx 256 --kv "h2o budget=16"
    check codecs_run_once prints '^conv  *256  *full codec=q8_0  *-' $E --ctx 256 --kv "full codec=q8_0"
    check bytes_are_a_budget prints '^conv  *256  *h2o  *64.0 KiB' $E --ctx 256 --kv h2o --budgets 64KiB
    impossible() { # said in its cell; the others run; the status tells
        $E --ctx 256 --kv snapkv --kv h2o --budgets 16 > "$TMP/a" 2> "$TMP/b"
        [ $? = 1 ] && grep -q '^conv .* snapkv .* failed' "$TMP/a" && grep -q '^failed: snapkv budget=16' "$TMP/a" &&
            grep -q '^conv .* h2o  *16  *[0-9]*/8' "$TMP/a" && grep -q '1 of 3 cells' "$TMP/b"
    }
    check an_impossible_cell_is_said_and_the_rest_runs impossible
    check a_degenerate_cell_is_noted prints 'note: snapkv budget=6.25% .*window' $E --ctx 256 --kv snapkv --budgets 6.25%
    ALL="$E --suite all --ctx 256 --kv snapkv --kv streamingllm --budgets 12.5%"
    counted() { cut -d, -f1-29; } # without bytes (scratch is per thread) and speeds
    $ALL --csv 2> /dev/null | counted > "$TMP/c1"
    check every_suite_runs sh -c "for s in conv needle multi order copy ppl; do grep -q \"^\$s,256,.snapkv\" '$TMP/c1' || exit 1; done"
    again() { "$@" --csv 2> /dev/null | counted | cmp - "$TMP/c1"; }
    check the_same_seeds_count_the_same again $ALL
    check threads_count_the_same again $ALL --threads 2
    check other_seeds_are_other_conversations sh -c "$ALL --seed 5 --json | grep -o 'told.:[0-9]*' | head -n 20 > $TMP/t5; $ALL --json | grep -o 'told.:[0-9]*' | head -n 20 | cmp -s - $TMP/t5; [ \$? = 1 ]"
    aware() { $ALL --question-aware --csv > "$TMP/c2" 2> /dev/null && [ "$(wc -l < "$TMP/c1")" = "$(wc -l < "$TMP/c2")" ]; }
    check question_aware_runs_every_suite aware
    csv_shape() { sed 's/"[^"]*"/text/g' "$1" | awk -F, 'NR == 1 { n = NF } NF != n { print NR ": " NF " fields, not " n; bad = 1 } END { exit bad || NR != 19 }'; }
    $ALL --csv > "$TMP/c3" 2> /dev/null
    check csv_has_a_line_a_cell csv_shape "$TMP/c3"
    if command -v python3 > /dev/null 2>&1; then
        $ALL --json > "$TMP/j" 2> /dev/null
        cat > "$TMP/check.py" << 'END'
import json, sys
d = json.load(open(sys.argv[1]))
assert d["seeds"] == 2 and not d["question_aware"] and len(d["suites"]) == 6
for s in d["suites"]:
    for c in s["cells"]:
        if s["suite"] == "ppl":
            assert c["ppl_lo"] <= c["ppl"] <= c["ppl_hi"] and c["kl"] >= 0
            continue
        assert c["asked"] == len(c["answers"]) == len(s["questions"]) > 0
        assert c["right"] == c["answers"].count("1") == sum(k["right"] for k in c["kinds"].values())
        assert c["lo"] <= c["accuracy"] <= c["hi"] and 0 < c["live_bytes"] <= c["peak_bytes"]
    assert s["suite"] == "ppl" or len(s["pairs"]) == 3
    for q in s["questions"]: assert 0 < q["told"] < s["ctx"]
END
        check json_is_valid_and_adds_up python3 "$TMP/check.py" "$TMP/j"
    else
        skip json_is_valid_and_adds_up "no python3"
    fi
    check pairs_are_printed prints 'McNemar p' $E --ctx 256 --kv h2o --kv window --budgets 25% --pairs
    check ranking_is_printed prints '^conv 256, 25%: ' $E --ctx 256 --kv h2o --kv window --budgets 25%
    check report_is_written sh -c "$E --ctx 256 --suite conv,needle --kv h2o --report '$TMP/r.html' > /dev/null && grep -qi '<!doctype html' '$TMP/r.html'"
    check demo_plays prints '^h2o budget=25%  *[0-9]*/4' \
        $KVMEM demo -m "$M" --ctx 512 --questions 4 --kv h2o --budget 25% --report "$TMP/d.html"
    check demo_says_where_its_report_is grep -q "^report: $TMP/d.html" "$TMP/stdout"
    check demo_has_no_colours_in_a_file sh -c "! grep -q '\[' '$TMP/stdout'"
    check demo_without_a_report prints '^full ' $KVMEM demo -m "$M" --ctx 256 --questions 2 --report ""
else
    skip model_of_noise "$MKGGUF is not there"
fi
M=$SHARED/models/stories260K.bin
if [ -r $M ]; then
    check model_without_a_tokenizer fails 1 'has no tokenizer' $KVMEM eval -m $M --ctx 256
else
    skip model_without_a_tokenizer "$M is not there"
fi
finish eval
