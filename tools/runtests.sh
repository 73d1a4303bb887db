#!/bin/sh
# Runs test programs and scripts, JOBS at a time, adds up their lines `name: N passed, N failed, N skipped`,
# and ends with `N passed, N failed, N skipped` and an exit status. A program that dies, or fails without
# saying so, or says nothing, counts as a failure. RUNNER goes before each program (an emulator, valgrind).
: "${B:=build}"
export B
# Threads that wait by spinning slow each other down when cores are shared.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
if [ "$1" = --one ]; then # run one test and leave `passed failed skipped` in its .result
    t=$2 log=$B/log/$(basename "$2")
    case $t in
    *.sh) sh "$t" > "$log" 2>&1 ;;
    *) $RUNNER "$t" > "$log" 2>&1 ;;
    esac
    rc=$?
    counts=$(sed -n 's/^[A-Za-z0-9_]*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$log" | tail -n 1)
    [ -n "$counts" ] || { counts="0 0 0"; rc="$rc, no result line"; }
    case $counts in *" 0 "*) [ "$rc" = 0 ] || {
        echo "FAIL $t: ended with status $rc" >> "$log"
        counts="${counts%% *} 1 ${counts##* }"
    } ;; esac
    echo "$counts" > "$log.result"
    cat "$log"
    exit 0
fi
rm -rf "$B/log"
mkdir -p "$B/log"
printf '%s\n' "$@" | xargs -P "${JOBS:-1}" -n 1 sh "$0" --one
cat "$B"/log/*.result | awk -v want=$# '{ p += $1; f += $2; s += $3; n++ }
    END { f += want - n; printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 || p == 0 }'
