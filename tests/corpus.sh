#!/bin/sh
# The corpus program: what it prints, its errors and exit statuses.
. tests/test.sh
CORPUS=$B/corpus
KVMEM=${KVMEM:-./kvmem}

# fails PATTERN OPTION...: status 2, nothing on stdout, PATTERN in the message
fails() {
    pattern=$1
    shift
    "$CORPUS" "$@" > "$TMP/stdout" 2> "$TMP/stderr"
    [ $? = 2 ] && [ ! -s "$TMP/stdout" ] && grep -q -- "$pattern" "$TMP/stderr"
}
prints() {
    pattern=$1
    shift
    "$CORPUS" "$@" > "$TMP/stdout" 2> "$TMP/stderr" && grep -q -- "$pattern" "$TMP/stdout"
}
same() { [ "$1" = "$2" ] || { echo "'$1'"; echo "is not '$2'"; return 1; }; }

check help_teaches prints 'what is the city of Mia? Rome' --help
check a_stream_is_text prints '^<|bos|>Session: ' --seed 1
check no_filler_no_session sh -c "! $CORPUS --filler 0 --distract 0 | grep -q Session"
check ids_are_as_many_as_asked_for same "$("$CORPUS" --ids --length 77 | wc -w | tr -d ' ')" 77
check questions_are_listed prints 'distance' --list --length 500
check the_vocabulary_has_768_tokens same "$("$CORPUS" --vocab | wc -l | tr -d ' ')" 768
check statistics_count_all_streams prints '^50 streams, 20000 tokens' --stats --streams 50
check the_hash_is_known same "$("$CORPUS" --hash --streams 64)" 40a14637a0b7c05b
check an_evaluation_has_answers prints '^copy .*read note .*? ' --suite copy
check a_needle_uses_its_pool prints '^single .*what is the ' --suite needle --depth 0 --persons 3
check unknown_option_is_named fails --foo --foo
check a_value_must_follow fails missing --length
check a_value_must_be_a_number fails 'not a number' --length 12x
check a_range_is_explained fails 'length: 2 to' --length 1
check a_suite_must_be_known fails 'unknown suite' --suite foo
check a_context_may_be_too_small fails 'do not fit' --suite multi --facts 100 --ctx 512
check the_vocabulary_is_written "$CORPUS" --gguf "$TMP/vocab.gguf"
printf '%s' "$("$CORPUS" --length 200)" > "$TMP/text" # ends within a line
check text_becomes_the_same_ids same \
    "$("$KVMEM" tokenize -m "$TMP/vocab.gguf" -f "$TMP/text" --special --no-bos)" \
    "$("$CORPUS" --length 200 --ids)"
finish corpus_program
