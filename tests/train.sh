#!/bin/sh
# The training program end to end, on a tiny shape: the model it writes, the same bits again, resuming,
# damaged checkpoints, files that cannot be written, wrong options. Needs ./kvmem and build/train.
. tests/test.sh
TRAIN=$B/train
KVMEM=${KVMEM:-./kvmem}
LC_ALL=C
OMP_WAIT_POLICY=passive # threads that spin slow each other down
export LC_ALL OMP_WAIT_POLICY
SHAPE="--embd 32 --layers 2 --heads 2 --kv-heads 1 --head-dim 8 --ff 32 --init random"

# train FILE OPTION...: two stages of some steps, a checkpoint every fourth
train() {
    file=$1
    shift
    # shellcheck disable=SC2086
    "$TRAIN" -o "$file" $SHAPE --every 4 --stage "len=24 seqs=2 raw_copy=1 most=8 least=4" \
        --stage "len=32 seqs=2 persons=4 attrs=1 ask=60 most=10 mix=0.3" "$@"
}
# fails PATTERN COMMAND...: status 2, nothing on stdout, PATTERN in the message, no model
fails() {
    pattern=$1
    shift
    rm -f "$TMP/no.gguf"
    "$@" > "$TMP/stdout" 2> "$TMP/stderr"
    got=$?
    if [ "$got" != 2 ]; then echo "status $got, not 2"; cat "$TMP/stderr"; return 1; fi
    if [ -s "$TMP/stdout" ] || [ -e "$TMP/no.gguf" ]; then echo "it trained"; return 1; fi
    grep -q -- "$pattern" "$TMP/stderr" || { echo "no '$pattern' in:"; cat "$TMP/stderr"; return 1; }
}
prints() {
    pattern=$1
    shift
    "$@" > "$TMP/stdout" 2> "$TMP/stderr" || { cat "$TMP/stderr"; return 1; }
    grep -q -- "$pattern" "$TMP/stdout" || { echo "no '$pattern' in:"; head -n 5 "$TMP/stdout"; return 1; }
}
differ() { ! cmp -s "$1" "$2"; }
nothing_left() { [ -z "$(find "$TMP" -name '*.tmp')" ]; }

# ---- the model
check help_teaches prints '^usage: train -o MODEL.gguf' "$TRAIN" --help
check help_names_every_option sh -c "for o in \$(grep -o '{ \"--[a-z0-9-]*' tools/train.c | tr -d '{ \"'); do
    $TRAIN --help | grep -q -e \"\$o\" || { echo \"\$o\"; exit 1; }; done"
check speed_prints_the_peak prints '^speed (.*): the peak of .* GMAC/s (.* a thread x [0-9]*)$' "$TRAIN" --speed
check a_model_is_trained train "$TMP/a.gguf" --threads 1 --checkpoint "$TMP/a.ckpt" --snapshot "$TMP/snap.gguf"
cp "$TMP/out" "$TMP/lines"
check it_prints_its_steps grep -q '^stage 2/2 step 10 (.*) .* recall .* tok/s .* GMAC/s' "$TMP/lines"
check its_last_line_tells_the_speed sh -c "tail -n 1 $TMP/lines |
    grep -q '^speed .*GMAC/s in training, [0-9]* % of the peak of .* GMAC/s (.* a thread x 1)$'"
check kvmem_inspects_it prints 'llama' $KVMEM inspect -m "$TMP/a.gguf"
check kvmem_runs_it $KVMEM run -m "$TMP/a.gguf" -p 'Ana: the city of' -n 4 --temp 0
check kvmem_runs_a_snapshot $KVMEM run -m "$TMP/snap.gguf" -p 'Ana: the city of' -n 4 --temp 0
quiet() { [ -z "$(train "$TMP/q.gguf" --quiet)" ]; }
check quiet_prints_nothing quiet
for t in f32 q8_0; do
    check "weights_as_$t" train "$TMP/$t.gguf" --threads 1 --type $t
    check "kvmem_runs_weights_as_$t" $KVMEM run -m "$TMP/$t.gguf" -p 'Ana: the city of' -n 4 --temp 0
done
check an_untied_qwen3_is_trained train "$TMP/qwen3.gguf" --untied --qk-norm
check kvmem_inspects_a_qwen3 prints 'qwen3' $KVMEM inspect -m "$TMP/qwen3.gguf"
check kvmem_runs_a_qwen3 $KVMEM run -m "$TMP/qwen3.gguf" -p 'Ana: the city of' -n 4 --temp 0
check batches_without_a_question_are_passed_over train "$TMP/short.gguf" --stage 'len=8 raw_copy=1 most=10'
check the_induction_start_trains \
    "$TRAIN" -o "$TMP/i.gguf" --embd 128 --layers 2 --ff 32 --stage 'len=16 raw_copy=1 most=1'

# ---- the same bits
train "$TMP/b.gguf" --threads 1 --quiet
check one_seed_one_file cmp "$TMP/a.gguf" "$TMP/b.gguf"
train "$TMP/b.gguf" --threads 2 --quiet
check two_threads_give_the_same_file cmp "$TMP/a.gguf" "$TMP/b.gguf"
train "$TMP/b.gguf" --threads 2 --recompute --quiet
check recomputing_gives_the_same_file cmp "$TMP/a.gguf" "$TMP/b.gguf"
train "$TMP/b.gguf" --seed 2 --quiet
check another_seed_another_file differ "$TMP/a.gguf" "$TMP/b.gguf"

# ---- resuming. The second line of a run whose reader went away after the first ends it.
train "$TMP/c.gguf" --checkpoint "$TMP/c.ckpt" 2> "$TMP/stderr" | head -n 1 > "$TMP/first"
if [ -e "$TMP/c.gguf" ]; then skip a_run_is_interrupted "it outran its reader, or SIGPIPE is ignored here"
else check a_run_is_interrupted test -s "$TMP/c.ckpt"; fi
printf 'half a checkp' > "$TMP/c.ckpt.tmp" # as a crash would leave it
check an_interrupted_run_goes_on train "$TMP/c.gguf" --checkpoint "$TMP/c.ckpt" --resume --threads 2
check the_break_left_no_trace cmp "$TMP/a.gguf" "$TMP/c.gguf"
check a_finished_run_goes_on_at_its_end train "$TMP/d.gguf" --checkpoint "$TMP/a.ckpt" --resume
check it_writes_the_same_file cmp "$TMP/a.gguf" "$TMP/d.gguf"
size=$(wc -c < "$TMP/a.ckpt")
resume() { cp "$TMP/damaged" "$TMP/r.ckpt"; train "$TMP/no.gguf" --checkpoint "$TMP/r.ckpt" --resume "$@"; }
for n in 0 7 100 5000 $((size - 1)); do
    head -c "$n" "$TMP/a.ckpt" > "$TMP/damaged"
    check "a_checkpoint_of_${n}_bytes_is_refused" fails 'r.ckpt: is ' resume
done
{ cat "$TMP/a.ckpt"; echo; } > "$TMP/damaged"
check a_checkpoint_with_a_tail_is_refused fails 'r.ckpt: is cut or has a tail' resume
for at in 9 60 2000 $((size / 2)) $((size - 2)); do
    { head -c "$at" "$TMP/a.ckpt"; tail -c +$((at + 1)) "$TMP/a.ckpt" | head -c 1 | tr '\000-\377' '\001-\377\000'
        tail -c +$((at + 2)) "$TMP/a.ckpt"; } > "$TMP/damaged"
    check "a_checkpoint_with_byte_${at}_changed_is_refused" fails 'r.ckpt: is damaged' resume
done
cp "$TMP/a.ckpt" "$TMP/damaged"
check a_checkpoint_of_another_seed_is_refused fails 'belongs to another command' resume --seed 2
check a_checkpoint_of_other_stages_is_refused fails 'belongs to another command' resume --stage 'len=8'
check a_checkpoint_of_another_rate_is_refused fails 'belongs to another command' resume --lr 0.5
check a_checkpoint_of_another_shape_is_refused fails 'belongs to another command' resume --ff 16
cp "$TMP/a.gguf" "$TMP/damaged"
check a_model_is_no_checkpoint fails 'is no checkpoint' resume
check a_missing_checkpoint_is_refused fails 'No such file' train "$TMP/no.gguf" --checkpoint "$TMP/none" --resume
check resuming_needs_a_checkpoint fails 'needs --checkpoint' train "$TMP/no.gguf" --resume

# ---- another model's weights: a step of rate 0 gives them back
check a_run_starts_from_a_model train "$TMP/e.gguf" --from "$TMP/f32.gguf" --type f32 --lr 0 --floor 0 --threads 1
check it_has_that_models_weights cmp "$TMP/f32.gguf" "$TMP/e.gguf"
check from_another_shape fails "shape is not the configuration" train "$TMP/no.gguf" --from "$TMP/a.gguf" --ff 16
check from_a_qwen3 fails 'only llama and qwen3' train "$TMP/no.gguf" --from "$TMP/qwen3.gguf"
check from_something_else fails 'ckpt: ' train "$TMP/no.gguf" --from "$TMP/a.ckpt"
check from_a_missing_file fails 'No such file' train "$TMP/no.gguf" --from "$TMP/none"
check from_a_folder fails 'directory' train "$TMP/no.gguf" --from "$TMP"

# ---- what cannot be written is found out before the first step
mkdir "$TMP/folder"
check model_in_a_missing_folder fails 'No such file' train "$TMP/none/m.gguf"
check model_that_is_a_folder fails 'directory' train "$TMP/folder"
check checkpoint_in_a_missing_folder fails 'No such file' train "$TMP/no.gguf" --checkpoint "$TMP/none/c"
check snapshot_that_is_a_folder fails 'directory' train "$TMP/no.gguf" --snapshot "$TMP/folder"
check one_file_for_two_things fails 'two different files' train "$TMP/no.gguf" --snapshot "$TMP/no.gguf"
check no_half_file_is_left nothing_left

# ---- wrong options
check no_model_named fails 'name the model' "$TRAIN"
check unknown_option fails 'unknown option' train "$TMP/no.gguf" --learn
check missing_value fails 'needs a value' train "$TMP/no.gguf" --stage
check not_a_number fails 'is not a number' train "$TMP/no.gguf" --embd 12x
check not_a_whole_number fails 'is not a whole number' train "$TMP/no.gguf" --embd 12.5
check no_number fails 'is not a number' train "$TMP/no.gguf" --lr nan
check negative_rate fails 'must be 0 or more' train "$TMP/no.gguf" --lr -1
check bad_beta fails 'beta2' train "$TMP/no.gguf" --beta2 1
check bad_seed fails 'is not a seed' train "$TMP/no.gguf" --seed -1
check bad_type fails 'q8_0' train "$TMP/no.gguf" --type q4_0
check bad_start fails 'induction or random' train "$TMP/no.gguf" --init zero
check bad_shape fails 'head_dim' train "$TMP/no.gguf" --head-dim 7
check bad_heads fails 'evenly' train "$TMP/no.gguf" --heads 3 --kv-heads 2
check bad_threads fails 'threads' train "$TMP/no.gguf" --threads -1
check no_context fails 'ctx' train "$TMP/no.gguf" --ctx 0
check no_lines fails 'every' train "$TMP/no.gguf" --every 0
check induction_needs_a_shape fails 'induction' train "$TMP/no.gguf" --init induction
check unknown_stage_word fails 'not a word of a stage' train "$TMP/no.gguf" --stage 'len=8 colour=3'
check stage_without_numbers fails 'words like len=128' train "$TMP/no.gguf" --stage 'len'
check stage_with_a_bad_number fails 'needs a number' train "$TMP/no.gguf" --stage 'len=x'
check stage_with_a_rest fails 'needs a number' train "$TMP/no.gguf" --stage 'len=8x'
check stage_with_half_a_token fails 'whole number' train "$TMP/no.gguf" --stage 'len=8.5'
check stage_too_short fails 'length' train "$TMP/no.gguf" --stage 'len=1'
check stage_without_steps fails 'most' train "$TMP/no.gguf" --stage 'len=8 most=0'
check stage_without_sequences fails 'seqs' train "$TMP/no.gguf" --stage 'len=8 seqs=0'
check stage_of_too_many_tokens fails '10 million' train "$TMP/no.gguf" --stage 'len=8192 seqs=8192'
check stage_that_mixes_too_much fails 'mix' train "$TMP/no.gguf" --stage 'len=8 mix=2'
finish train
