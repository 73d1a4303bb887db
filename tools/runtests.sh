#!/bin/sh
# Runs test programs and scripts, adds up their lines `name: N passed, N failed, N skipped`, and ends
# with `N passed, N failed, N skipped` and an exit status. A program that dies, or fails without saying
# so, or runs nothing, counts as a failure.
: "${B:=build}"
export B
# Threads that wait by spinning slow each other down when cores are shared.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
mkdir -p "$B"
passed=0 failed=0 skipped=0
for t in "$@"; do
    case $t in
    *.sh) sh "$t" > "$B/log" 2>&1 ;;
    *) $RUNNER "$t" > "$B/log" 2>&1 ;;
    esac
    rc=$?
    line=$(sed -n 's/^[A-Za-z0-9_]*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$B/log" | tail -n 1)
    cat "$B/log"
    # shellcheck disable=SC2086
    set -- $line
    if [ $# -ne 3 ]; then
        set -- 0 0 0
        rc="$rc, no result line"
    fi
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    if [ "$rc" != 0 ] && [ "$2" = 0 ]; then
        failed=$((failed + 1))
        echo "FAIL $t: ended with status $rc"
    fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
