# test.sh - the harness of the shell tests; source it, then
#     check a_fact_in_words  command...     passes if the command succeeds
#     skip  a_fact_in_words  "why not"
#     finish section
# Output of a failing command is shown. TMP is a fresh folder in the build folder.
: "${B:=build}" "${CC:=cc}"
test_passed=0 test_failed=0 test_skipped=0
TMP=$B/tmp_$(basename "$0" .sh)
rm -rf "$TMP"
mkdir -p "$TMP"
check() {
    test_name=$1
    shift
    if "$@" > "$TMP/out" 2>&1; then
        test_passed=$((test_passed + 1))
    else
        test_failed=$((test_failed + 1))
        sed 's/^/  /' "$TMP/out" | head -n 12
        echo "FAIL $test_name"
    fi
}
skip() {
    test_skipped=$((test_skipped + 1))
    echo "skip $1: $2"
}
finish() {
    echo "$1: $test_passed passed, $test_failed failed, $test_skipped skipped"
    [ "$test_failed" = 0 ]
    exit
}
