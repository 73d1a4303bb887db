#!/bin/sh
# The command line: what each subcommand prints, its errors and exit statuses. Needs ./kvmem, sh, awk, od;
# parts that need ../shared skip without it.
. tests/test.sh
KVMEM=${KVMEM:-./kvmem}
SHARED=../shared
LC_ALL=C
OMP_NUM_THREADS=1 # tiny models: threads only wait for each other
export LC_ALL OMP_NUM_THREADS

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
# prints PATTERN COMMAND...: succeeds with PATTERN on stdout
prints() {
    pattern=$1
    shift
    "$@" > "$TMP/stdout" 2> "$TMP/stderr" < /dev/null || { cat "$TMP/stderr"; return 1; }
    grep -q -- "$pattern" "$TMP/stdout" || { echo "no '$pattern' in:"; head -n 5 "$TMP/stdout"; return 1; }
}
same() { [ "$1" = "$2" ] || { echo "'$1'"; echo "is not '$2'"; return 1; }; }
# json PATH: the number at a dotted path of objects in the JSON on stdin (flat numbers only, first match)
json() { tr -d '\n' | tr '{,' '\n\n' | sed -n "s/.*\"$1\":\([^}]*\).*/\1/p" | sed -n "${2:-1}p" | tr -d ']}"'; }

# ---- the top level and help
COMMANDS="run chat measure eval demo logits tokenize detokenize inspect list codec score estimate cache profile cost memory segment"
check version prints '^kvmem [0-9]*\.[0-9]*\.[0-9]*$' $KVMEM --version
check help_names_every_command sh -c "for c in $COMMANDS; do $KVMEM --help | grep -q \"^  \$c \" || exit 1; done"
for c in $COMMANDS; do
    check "${c}_help_teaches" prints '^examples' $KVMEM $c --help
done
check help_gives_defaults prints 'default 256' $KVMEM run --help
check no_command_is_misuse fails 2 usage $KVMEM
check unknown_command_names_the_nearest fails 2 'did you mean measure' $KVMEM mesure
check unknown_option_names_the_nearest fails 2 'did you mean --shape' $KVMEM estimate --shap L=1
check unknown_short_option fails 2 'unknown option -q' $KVMEM run -q
check missing_value fails 2 'needs a value' $KVMEM run -m
check missing_model fails 2 'is needed' $KVMEM run -p text
check number_with_rest fails 2 "'12x' is not a whole number" $KVMEM run -m x -n 12x
check empty_number fails 2 "is not a whole number" $KVMEM run -m x -n ''
check number_out_of_range fails 2 'outside of 0 to 100' $KVMEM run -m x --temp -1
check huge_number fails 2 'not a whole number' $KVMEM run -m x -n 99999999999999999999
check not_a_number_is_refused fails 2 'not a number' $KVMEM run -m x --temp nan
check flag_takes_no_value fails 2 'takes no value' $KVMEM estimate --json=1
check unexpected_argument fails 2 "unexpected argument 'x'" $KVMEM estimate x
check bad_size fails 2 'is not a size' $KVMEM estimate --max-bytes 12Q

# ---- list
$KVMEM list > "$TMP/list"
keys() { awk '{ print $1 }' "$TMP/list"; }
has_keys() {
    for k in full window streamingllm h2o tova snapkv pyramidkv fixed random recency knorm uniform pyramid drop \
        f32 f16 bf16 q8_0 q4_0 all original cache; do
        keys | grep -qx -- "$k" || { echo "no $k"; return 1; }
    done
}
check list_has_every_key has_keys
check list_has_no_key_twice sh -c "awk '{ print \$1 }' '$TMP/list' | sort | uniq -d | awk 'END { exit NR > 0 }'"
check list_has_four_columns sh -c "awk -F '  +' 'NF != 4 { print; bad = 1 } END { exit bad }' '$TMP/list'"
check list_names_stages_and_presets sh -c "grep -q '^h2o  *preset,score ' '$TMP/list' && grep -q '^q8_0  *codec ' '$TMP/list'"
explains_all() { for k in $(keys); do prints . $KVMEM list "$k" || return 1; done; }
check list_explains_every_key explains_all
check list_expands_a_preset prints 'score=snapkv' $KVMEM list pyramidkv
check list_gives_parameters prints 'kernel' $KVMEM list snapkv
check list_tells_the_bits_of_a_codec prints 'd=64: 4.5, d=128: 4.5' $KVMEM list q4_0
check list_tells_the_formula_of_a_codec prints '^  formula' $KVMEM list q8_0
check list_matrix_asks_every_pair prints '^score with place: all' $KVMEM list --matrix
check list_matrix_takes_no_key fails 2 'no key' $KVMEM list --matrix h2o
check list_unknown_key fails 2 'did you mean snapkv' $KVMEM list snapky

# ---- codec: two rows of two values; tests/codec_tool.c has the rest
header="{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"
printf '\223NUMPY\001\000v\000%-117s\n' "$header" > "$TMP/x.npy"
printf '\000\000\200\077\000\000\000\100\000\000\100\100\000\000\200\100' >> "$TMP/x.npy" # 1 2 3 4
codec() { spec=$1; shift; $KVMEM codec "$spec" -i "$TMP/x.npy" -o "$TMP/y.npy" "$@"; }
check codec_f32_takes_4_bytes_a_value same "$(codec f32 --json | json bytes)" 16
check codec_f32_gives_the_file_back cmp "$TMP/x.npy" "$TMP/y.npy"
check codec_prints_bits prints '^bits per value  16$' codec f16
check codec_help_teaches_specs prints 'kivi(bits=2)' $KVMEM codec --help
check codec_needs_its_input fails 2 '-i X.npy is needed' $KVMEM codec f32
check codec_unknown_word fails 2 "unknown preset 'f23'" codec f23
check codec_is_for_keys_or_values fails 2 'k or v' codec f32 --as x
check codec_scores_need_a_file fails 2 'go together' codec f32 -q "$TMP/x.npy"
check codec_input_must_be_npy fails 1 'no .npy file' $KVMEM codec f32 -i tests/cli.sh -o "$TMP/z.npy"

# ---- estimate: 2 layers, 2 KV heads of 8 channels, 128 tokens: K = 2 * 2 * 128 * 8 * 4 bytes
S="L=2,H=4,G=2,d=8"
estimate_k() { $KVMEM estimate --shape $S --ctx "$1" --kv "$2" --json | json k; }
check estimate_f32_is_the_formula same "$(estimate_k 128 full)" 16384
check estimate_f16_is_half_of_it same "$(estimate_k 128 'full codec=f16')" 8192
check estimate_counts_rows_a_quarter_page_at_a_time same "$(estimate_k 65 full)" 10240
check estimate_budget_is_smaller same "$(estimate_k 1024 'window budget=64')" 8192
check estimate_full_yardstick same "$($KVMEM estimate --shape $S --ctx 100 --json | json full_f16)" 12800
check estimate_table_shows_the_peak prints '^peak' $KVMEM estimate --shape $S --ctx 128 --kv h2o
check estimate_unknown_letter fails 2 "not one of L=" $KVMEM estimate --shape L=2,Q=3 --ctx 1
check estimate_missing_letter fails 2 "d= is missing" $KVMEM estimate --shape L=2,H=3 --ctx 1
check estimate_repeated_letter fails 2 "given twice" $KVMEM estimate --shape L=2,L=3 --ctx 1
check estimate_heads_do_not_divide fails 1 . $KVMEM estimate --shape L=2,H=3,G=2,d=8 --ctx 1
check estimate_needs_ctx fails 2 'ctx' $KVMEM estimate --shape $S
check estimate_needs_a_shape fails 2 'either' $KVMEM estimate --ctx 5
check recipe_errors_name_the_word fails 2 'snapky' $KVMEM estimate --shape $S --ctx 5 --kv snapky
check recipe_errors_come_before_files fails 2 'nonsense' $KVMEM run -m /nowhere --kv "full nonsense=1"
check unknown_backend fails 2 'abacus' $KVMEM run -m /nowhere --backend abacus

# ---- files that are not models
: > "$TMP/empty"
echo "this is no model at all, but it is longer than any header that one could think of" > "$TMP/text"
printf 'GGUF\003\000\000\000' > "$TMP/cut.gguf"
for c in "run -p x" "measure -f $TMP/text" "logits --tokens 1 -o $TMP/never" "tokenize -p x" "detokenize 1" inspect; do
    n=${c%% *}
    check "${n}_missing_file" fails 1 '/nowhere/x: cannot open' $KVMEM $c -m /nowhere/x
    check "${n}_directory" fails 1 '[Ii]s a directory' $KVMEM $c -m tests
    check "${n}_empty_file" fails 1 'is empty' $KVMEM $c -m "$TMP/empty"
    check "${n}_garbage" fails 1 "$TMP/text: ." $KVMEM $c -m "$TMP/text"
    check "${n}_truncated_gguf" fails 1 "$TMP/cut.gguf: ." $KVMEM $c -m "$TMP/cut.gguf"
done
check failed_logits_leave_no_file test ! -e "$TMP/never"
check inspect_garbage_cache fails 1 "$TMP/text: ." $KVMEM inspect --cache "$TMP/text"
check inspect_empty_cache fails 1 "$TMP/empty: ." $KVMEM inspect --cache "$TMP/empty"
check inspect_needs_one_file fails 2 either $KVMEM inspect

# ---- caches in files of few bits
if [ -r examples/models/tiny.gguf ]; then
    { for i in 1 2 3 4 5 6; do echo "Ana: the city of Mia is Paris."; echo "Ben: we often watered the tulip."; done
        echo "Dan: what is the city of Mia?"; } > "$TMP/talk"
    KVS=$TMP/talk.kvs
    next() { $KVMEM cache read "$KVS" --temp 0 -n 6 "$@" 2> "$TMP/stderr"; }
    check cache_write_tells_what_it_wrote prints '^.*talk.kvs: [0-9]* tokens' $KVMEM cache write -f "$TMP/talk" -o "$KVS" --all --chunk 40
    check cache_write_json prints '"file_bytes":' $KVMEM cache write -f "$TMP/talk" -o "$TMP/one.kvs" --level 3 --group 10 --json
    check cache_inspect_shows_chunks_and_bits prints '^layer   K bits a value' $KVMEM cache inspect "$KVS"
    check cache_inspect_json prints '"chunks":\[{"offset":' $KVMEM cache inspect "$KVS" --json
    check inspect_knows_the_file_too prints 'finest level 3' $KVMEM inspect --cache "$KVS"
    finer_is_larger() { $KVMEM cache inspect "$KVS" | awk '$1 == 0 && NF == 9 { exit !($7 < $8 && $8 < $9) }' ; }
    check cache_finer_levels_are_larger finer_is_larger
    $KVMEM run -m examples/models/tiny.gguf -f "$TMP/talk" --temp 0 -n 6 2> /dev/null | tail -n +14 > "$TMP/exact"
    text_is_exact() { next --levels 0 > "$TMP/a" && cat "$TMP/a" "$TMP/exact" && [ "$(cat "$TMP/a")" = "$(cat "$TMP/exact")" ]; }
    check cache_all_text_is_as_if_never_saved text_is_exact
    check cache_read_goes_on_at_chosen_levels next --levels 3,0,2
    check cache_read_takes_any_codec next --kv "full codec=q8_0"
    check cache_read_with_a_prompt prints 'Ana: ' $KVMEM cache read "$KVS" -p "Ana: the" -n 3
    check cache_plan_chooses prints 'level 3' $KVMEM cache plan "$KVS" --gbps 5
    check cache_plan_without_bandwidth_is_text prints '"choice":\[0,' $KVMEM cache plan "$KVS" --gbps 0 --json
    check cache_plan_of_the_paper prints 'asked for: 0.1 s' $KVMEM cache plan "$KVS" --gbps 0.01,0.001 --slo 0.1 --rule paper
    check cache_plan_uniform_is_seeded same "$($KVMEM cache plan "$KVS" --gbps uniform --seed 3)" "$($KVMEM cache plan "$KVS" --gbps uniform --seed 3)"
    check cache_levels_measures_all_forms sh -c "$KVMEM cache levels -f $TMP/talk --json | grep -q '\"form\":\"paper 1\"'"
    check cache_level_0_is_the_plain_save sh -c "$KVMEM cache write -f $TMP/talk --level 0 -o $TMP/zero.kv > /dev/null && $KVMEM cache inspect $TMP/zero.kv | grep -q '^tokens' && $KVMEM cache read $TMP/zero.kv -p x -n 2 2> /dev/null"
    check cache_write_without_text sh -c "$KVMEM cache write -f $TMP/talk --no-text -o $TMP/dumb.kvs > /dev/null"
    check cache_no_text_cannot_be_computed fails 1 'the file has no text' $KVMEM cache read "$TMP/dumb.kvs" --levels 0
    check cache_no_text_says_so fails 1 'has no text' $KVMEM cache read "$TMP/dumb.kvs"
    head -c 3000 "$KVS" > "$TMP/cut.kvs"
    check cache_cut_file fails 1 "$TMP/cut.kvs: saved cache: no index" $KVMEM cache inspect "$TMP/cut.kvs"
    check cache_missing_file fails 1 '/nowhere/x: cannot open' $KVMEM cache read /nowhere/x
    check cache_garbage fails 1 "$TMP/text: not a saved cache" $KVMEM cache inspect "$TMP/text"
    check cache_plan_of_a_plain_save fails 1 'without levels' $KVMEM cache plan "$TMP/zero.kv" --gbps 1
    check cache_level_that_is_not_there fails 1 'not in the file at level 1' $KVMEM cache read "$TMP/one.kvs" --levels 1
    check cache_write_to_a_folder fails 1 'cannot open for writing' $KVMEM cache write -f "$TMP/talk" -o tests
    check cache_other_sum_recipe fails 1 'attention sums' $KVMEM cache read "$KVS" --kv h2o
fi
check cache_unknown_subcommand fails 2 'did you mean inspect' $KVMEM cache inspec x
check cache_needs_a_subcommand fails 2 'argument is missing' $KVMEM cache
check cache_inspect_needs_a_file fails 2 'which FILE' $KVMEM cache inspect
check cache_write_needs_a_file fails 2 '-o FILE is needed' $KVMEM cache write -p x
check cache_plan_needs_bandwidths fails 2 'gbps' $KVMEM cache plan x
check cache_bad_level fails 2 'outside of 0 to 3' $KVMEM cache write --level 4
check cache_bad_models fails 2 'not smaller, channel or layer' $KVMEM cache write -p x -o "$TMP/never" --models some

# ---- a real model
M=$SHARED/models/stories260K.bin T=$SHARED/models/tok512.bin
if [ -r $M ] && [ -r $T ]; then
    MT="-m $M --tokenizer $T"
    # what llama2.c's run prints for these files, -t 0 -n 120 -i "Once upon a time"
    cat > "$TMP/expected" << 'END'
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with your ball, but
END
    ask() { $KVMEM run $MT -p "Once upon a time" --temp 0 -n 120 "$@" 2> "$TMP/stderr"; }
    ask > "$TMP/full"
    cp "$TMP/stderr" "$TMP/summary"
    check run_writes_what_llama2c_writes cmp "$TMP/expected" "$TMP/full"
    check run_summary_counts_tokens grep -q '^generated  116 tokens' "$TMP/summary"
    check run_summary_has_live_and_peak sh -c "grep -q '^live' '$TMP/summary' && grep -q '^peak' '$TMP/summary' && grep -q 'as f16' '$TMP/summary'"
    run_is_full() { ask "$@" > "$TMP/other" || { cat "$TMP/stderr"; return 1; }; cmp "$TMP/full" "$TMP/other"; }
    for r in window h2o tova snapkv pyramidkv "streamingllm budget=100%"; do
        check "a_covering_budget_writes_the_same: ${r%% *}" run_is_full --kv "${r%% *} budget=100%"
    done
    check one_thread_writes_the_same run_is_full --threads 1
    check two_threads_write_the_same run_is_full --threads 2
    check the_plain_twins_write_the_same run_is_full --backend plain
    check an_evicting_run_works prints . $KVMEM run $MT -p "Once upon a time" --kv "h2o budget=32" -n 100
    check same_seed_same_text sh -c "$KVMEM run $MT -p Once -n 40 --seed 3 > $TMP/a 2> /dev/null; $KVMEM run $MT -p Once -n 40 --seed 3 > $TMP/b 2> /dev/null; cmp $TMP/a $TMP/b"
    other_seed() { $KVMEM run $MT -p Once -n 40 --seed 4 2> /dev/null > "$TMP/b"; ! cmp -s "$TMP/a" "$TMP/b"; }
    check other_seed_other_text other_seed
    check run_without_prompt_starts_from_the_begin_token prints . $KVMEM run $MT -n 5
    count_zero() { same "$($KVMEM run $MT -p "Once upon a time" -n 0 2> /dev/null)" "Once upon a time"; }
    check count_zero_prints_the_prompt count_zero
    check run_reads_a_file sh -c "printf 'Once upon a time' > $TMP/prompt; $KVMEM run $MT -f $TMP/prompt --temp 0 -n 120 2> /dev/null | cmp - $TMP/full"
    check run_json_summary sh -c "$KVMEM run $MT -p Once -n 4 --json 2>&1 > /dev/null | grep -q '\"generated_tokens\":3'"
    check prompt_and_file_are_misuse fails 2 together $KVMEM run $MT -p x -f "$TMP/prompt"
    check run_without_tokenizer fails 1 'no tokenizer' $KVMEM run -m $M -p x
    check a_ceiling_too_low_is_said fails 1 . $KVMEM run $MT -p "Once upon a time" --max-bytes 1K
    under_ceiling() { $KVMEM run $MT -p "Once upon a time" -n 200 --temp 0 --kv "streamingllm budget=64" --max-bytes 200K --json 2>&1 > /dev/null | json total 2 | awk '{ exit !($1 > 0 && $1 <= 204800) }'; }
    check the_peak_stays_under_the_ceiling under_ceiling

    # save and load: the same as never having stopped
    saved() {
        $KVMEM run $MT -p "Once upon a time" -n 0 --save "$TMP/kv" > /dev/null 2>&1 &&
            $KVMEM run $MT --load "$TMP/kv" -p "there was" --temp 0 -n 30 > "$TMP/a" 2> /dev/null &&
            $KVMEM run $MT --load "$TMP/kv" -p "there was" --temp 0 -n 30 > "$TMP/b" 2> /dev/null && cmp "$TMP/a" "$TMP/b"
    }
    check a_saved_cache_goes_on saved
    check inspect_cache prints '^tokens  *5 seen' $KVMEM inspect --cache "$TMP/kv"
    check inspect_cache_json prints '"tokens":5' $KVMEM inspect --cache "$TMP/kv" --json
    check a_cache_of_another_recipe_is_refused fails 1 "$TMP/kv: ." $KVMEM run $MT --load "$TMP/kv" --kv "full codec=f16" -p x
    check a_loaded_cache_needs_a_prompt fails 1 prompt $KVMEM run $MT --load "$TMP/kv" --no-bos
    head -c 100 "$TMP/kv" > "$TMP/kv.cut"
    check a_cut_cache_is_refused fails 1 "$TMP/kv.cut: ." $KVMEM run $MT --load "$TMP/kv.cut" -p x
    check save_to_a_folder_fails sh -c "! $KVMEM run $MT -p x -n 1 --save tests > /dev/null 2>&1"

    # tokens
    ids=$($KVMEM tokenize $MT -p "Once upon a time")
    check tokenize_prints_ids same "$ids" "1 403 407 261 378"
    check tokenize_no_bos same "$($KVMEM tokenize $MT -p "Once upon a time" --no-bos)" "403 407 261 378"
    check tokenize_pieces_one_a_line same "$($KVMEM tokenize $MT -p "Once upon a time" --pieces | wc -l | tr -d ' ')" 5
    check tokenize_empty_text same "$($KVMEM tokenize $MT -p "" --no-bos)" ""
    check detokenize_arguments same "$($KVMEM detokenize $MT $ids)" "Once upon a time"
    check detokenize_list same "$($KVMEM detokenize $MT --tokens 1,403,407,261,378)" "Once upon a time"
    check detokenize_stdin same "$(echo "[$ids]" | $KVMEM detokenize $MT)" "Once upon a time"
    check detokenize_unknown_id fails 1 'token id 512' $KVMEM detokenize $MT 1 512
    check detokenize_no_number fails 1 "'x' is not a token id" $KVMEM detokenize $MT 1 x
    printf 'A dog.\n\nN\303\244chster Tag: \346\227\245\346\234\254 \360\237\230\200\n' > "$TMP/utf8"
    check any_text_comes_back sh -c "$KVMEM tokenize $MT -f $TMP/utf8 | $KVMEM detokenize $MT | cmp - $TMP/utf8"

    # logits
    size_of() { wc -c < "$1" | tr -d ' '; }
    $KVMEM logits -m $M --tokens 1,403,407 -o "$TMP/l1"
    check logits_have_a_row_a_token same "$(size_of "$TMP/l1")" $((3 * 512 * 4))
    check logits_need_no_tokenizer test -s "$TMP/l1"
    echo "1 403 407" > "$TMP/idfile"
    check logits_ids_from_a_file sh -c "$KVMEM logits -m $M --tokens-file $TMP/idfile -o $TMP/l2 && cmp $TMP/l1 $TMP/l2"
    argmax() { od -An -v -tf4 -w2048 "$1" | tail -n 1 | awk '{ b = 1; for (i = 2; i <= NF; i++) if ($i > $b) b = i; print b - 1 }'; }
    $KVMEM logits -m $M --tokens "$(echo $ids | tr ' ' ,)" -o "$TMP/l3"
    check logits_are_little_endian_floats same "$($KVMEM detokenize $MT 403 "$(argmax "$TMP/l3")")" "Once,"
    check logits_id_out_of_range fails 1 . $KVMEM logits -m $M --tokens 1,512 -o "$TMP/never"
    check logits_bad_list fails 1 "'b' is not a token id" $KVMEM logits -m $M --tokens 1,b -o "$TMP/never"
    check logits_empty_list fails 1 'no token ids' $KVMEM logits -m $M --tokens , -o "$TMP/never"
    check logits_need_output fails 2 'needed' $KVMEM logits -m $M --tokens 1
    check logits_bad_output fails 1 'cannot write' $KVMEM logits -m $M --tokens 1 -o /nowhere/x
    check failed_rows_are_removed test ! -e "$TMP/never"

    # inspect
    check inspect_shape prints '^attention  *8 heads, 4 KV heads, head size 8' $KVMEM inspect $MT
    check inspect_counts_kv_bytes prints '"f32":1280,"f16":640,' $KVMEM inspect $MT --json
    check inspect_without_tokenizer prints '^tokenizer  *none' $KVMEM inspect -m $M
    check inspect_lists_tensors prints 'blk.4.ffn_down  *f32  *172 x 64' $KVMEM inspect -m $M
    check estimate_of_a_model same "$($KVMEM estimate -m $M --ctx 128 --json | json k)" $((5 * 4 * 128 * 8 * 4))

    # measure
    D=$SHARED/data/tinystories_120k.txt
    if [ -r $D ]; then
        head -c 4000 $D > "$TMP/stories"
        m() { $KVMEM measure $MT -f "$TMP/stories" --ctx 256 "$@"; }
        m --json --block 32 > "$TMP/m1"
        check measure_perplexity_is_that_of_a_story_model sh -c "awk 'BEGIN { p = $(json ppl_full < "$TMP/m1"); exit !(p > 3 && p < 7) }'"
        m --json --block 32 --kv "h2o budget=100%" > "$TMP/m2"
        check measure_covering_budget_has_no_divergence same "$(json kl_max < "$TMP/m2") $(json same_top1 < "$TMP/m2")" "0 1"
        m --json --kv "window budget=16" > "$TMP/m3"
        check measure_sees_what_a_window_costs sh -c "awk 'BEGIN { exit !($(json kl_mean < "$TMP/m3") > 0.01 && $(json ppl < "$TMP/m3") > $(json ppl_full < "$TMP/m3")) }'"
        ordered() { awk -v a="$(json kl_mean < "$TMP/m3")" -v b="$(json kl_p99 < "$TMP/m3")" -v c="$(json kl_max < "$TMP/m3")" 'BEGIN { exit !(a < b && b <= c) }'; }
        check measure_p99_lies_between_mean_and_max ordered
        check measure_table prints '^all ' $KVMEM measure $MT -f "$TMP/stories" --chunk 128 --block 64
        check measure_csv prints '^positions,tokens,' $KVMEM measure $MT -f "$TMP/stories" --chunk --block 64 --csv
        check measure_stream prints '"mode":"stream"' $KVMEM measure $MT -f "$TMP/stories" --stream --ctx 200 --json
        check measure_chunk_and_stream fails 2 together $KVMEM measure $MT -f "$TMP/stories" --stream --chunk
        check measure_needs_text fails 1 'nothing to score' $KVMEM measure $MT -f "$TMP/empty"
    else
        skip measure "$D is not there"
    fi
    check chat_says_that_it_knows_no_format fails 1 'kvmem run' $KVMEM chat $MT
    talks() {
        printf 'Hello\n/bytes\n\n/clear\nOnce more\n/exit\n' | $KVMEM chat $MT --template zephyr -n 8 --temp 0 > "$TMP/a" 2> "$TMP/b" &&
            [ "$(wc -l < "$TMP/a")" -ge 2 ] && grep -q '^live' "$TMP/b"
    }
    check chat_reads_lines_from_a_pipe talks
    feeds_once() { # 3 turns: what the cache saw is what was fed, so nothing was fed twice
        printf 'Hello\nAnd then?\nWhy?\n' | $KVMEM chat $MT --template chatml -n 8 --temp 0 --json 2> "$TMP/a" > /dev/null &&
            same "$(json tokens < "$TMP/a")" "$(($(json prompt_tokens < "$TMP/a") + $(json generated_tokens < "$TMP/a")))"
    }
    check chat_feeds_each_turn_once feeds_once
    check chat_unknown_template fails 2 'chatml' $KVMEM chat $MT --template morse
else
    skip real_model "$M is not there"
fi

# ---- vocabularies without a model
V=$SHARED/vectors/tokenizers/ggml-vocab-llama-spm.gguf
if [ -r $V ]; then
    check tokenize_works_on_a_vocabulary same "$($KVMEM tokenize -m $V -p "Hello world")" "1 15043 3186"
    check detokenize_works_on_a_vocabulary same "$($KVMEM detokenize -m $V 1 15043 3186)" "Hello world"
    check inspect_works_on_a_vocabulary prints 'vocabulary without a model' $KVMEM inspect -m $V
    check inspect_vocabulary_json prints '"kind":"SentencePiece"' $KVMEM inspect -m $V --json
    check run_needs_more_than_a_vocabulary fails 1 "$V: ." $KVMEM run -m $V -p x
    check gguf_takes_no_second_tokenizer fails 1 'tokenizer inside' $KVMEM tokenize -m $V --tokenizer $V -p x
else
    skip vocabulary "$V is not there"
fi
if [ -c /dev/full ]; then
    check a_full_disk_is_an_error sh -c "$KVMEM list > /dev/full 2> $TMP/stderr; [ \$? = 1 ]"
fi
finish cli
