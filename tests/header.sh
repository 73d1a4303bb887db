#!/bin/sh
# Every way to include the header: alone, twice, in two units, as C and C++, static twice, each option
# alone and all together, silent under the strict warnings. FULL=1 (make check) takes every standard, every
# option and both compilers; else C99 and C++11, few options, and tests/projects.sh does the linking.
. tests/test.sh
WARN="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wcast-qual -Wdouble-promotion -Wvla -Wundef -Wsign-conversion -Werror"
WARN_C="$WARN -Wstrict-prototypes -Wmissing-prototypes"
OPTIONS="KVMEM_STATIC KVMEM_NO_STDIO KVMEM_NO_MALLOC KVMEM_NO_DECODER KVMEM_REFERENCE KVMEM_TRAIN NDEBUG"
ALL="-DKVMEM_TRAIN -DKVMEM_NO_STDIO -DKVMEM_NO_MALLOC -DKVMEM_NO_DECODER -DKVMEM_REFERENCE -DNDEBUG"
have() { command -v "$1" > /dev/null 2>&1; }

printf '#define KVMEM_IMPLEMENTATION\n#include "kvmem.h"\n' > "$TMP/impl.c"
printf '#include "kvmem.h"\nint user(void);\nint user(void) { return kvmem_version() != KVMEM_VERSION; }\n' > "$TMP/user.c"
printf '#include "kvmem.h"\n#include "kvmem.h"\n#define KVMEM_IMPLEMENTATION\n#include "kvmem.h"\n#include "kvmem.h"\nint main(void) { return kvmem_version() != KVMEM_VERSION; }\n' > "$TMP/twice.c"
printf '#define KVMEM_STATIC\n#define KVMEM_IMPLEMENTATION\n#include "kvmem.h"\nint other(void);\nint other(void) { return kvmem_version() != KVMEM_VERSION; }\n' > "$TMP/static1.c"
printf '#define KVMEM_STATIC\n#define KVMEM_IMPLEMENTATION\n#include "kvmem.h"\nint other(void);\nint main(void) { return kvmem_version() != KVMEM_VERSION || other(); }\n' > "$TMP/static2.c"
printf 'int user(void);\nint main(void) { return user(); }\n' > "$TMP/main.c"
for f in impl user twice; do cp "$TMP/$f.c" "$TMP/$f.cc"; done

compiles() { "$@" -fsyntax-only; }
two_units() { # compiler, suffix, flags: implementation here, use there, both linked and run
    cc=$1 x=$2
    shift 2
    $cc "$@" -I. -c "$TMP/impl.$x" -o "$TMP/impl.o" && $cc "$@" -I. -c "$TMP/user.$x" -o "$TMP/user.o" &&
        if [ "$x" = c ]; then $cc "$TMP/main.c" "$TMP/impl.o" "$TMP/user.o" -lm -o "$TMP/two"
        else cp "$TMP/main.c" "$TMP/main.$x" && $cc "$TMP/main.$x" "$TMP/impl.o" "$TMP/user.o" -lm -o "$TMP/two"; fi &&
        "$TMP/two"
}
runs() { # compiler, flags, sources: build and run
    "$@" -I. -lm -o "$TMP/a.out" && "$TMP/a.out"
}
only_kvmem_symbols() { # no global name without the prefix, none with two underscores
    # shellcheck disable=SC2086
    $CC $SYMBOLS -fno-pic -DKVMEM_TRAIN -I. -c "$TMP/impl.c" -o "$TMP/impl.o" || return 1
    nm -g --defined-only "$TMP/impl.o" | awk '{print $NF}' | grep -v -E '^_?kvmem_[a-z]' && return 1
    return 0
}
no_changing_globals() { # data and bss hold nothing of ours: no mutable globals
    nm "$TMP/impl.o" | awk '$2 ~ /^[bBdDcC]$/ {print}' | grep . && return 1
    return 0
}
contents_match() { # CONTENTS is what tools/contents.sh makes of the banners (its argument `write` puts it there)
    sh tools/contents.sh > "$TMP/banners"
    sed -n '/^   CONTENTS /,/^ *$/p' kvmem.h | sed '1d;$d' > "$TMP/contents"
    [ -s "$TMP/banners" ] && diff "$TMP/contents" "$TMP/banners"
}
plain_text() { # ASCII, no tabs, at most 120 columns, no marker left
    LC_ALL=C grep -n '[^ -~]' kvmem.h && return 1
    awk 'length($0) > 120 { print FILENAME ":" FNR ": " length($0) " columns"; bad = 1 } END { exit bad }' \
        kvmem.h $(ls tools/*.[ch] examples/*.c tests/*.[ch] 2> /dev/null) || return 1
    grep -nE '<<(IMPL|api_|sample|contents)' kvmem.h && return 1
    return 0
}
columns_hold() { # what tools/split.awk relies on: a function's head and its last brace stand in column 1
    awk -v part=face -f tools/split.awk kvmem.h > "$TMP/face.h"
    [ "$(wc -l < "$TMP/face.h")" -gt "$(wc -l < kvmem.h)" ] || return 1
    awk '/^#if.*KVMEM_IMPLEMENTATION/ { on = 1 }
        within && /^(static|KVMEM_|typedef|struct|enum)/ { print FNR ": inside a function? " $0; bad = 1 }
        /^}/ { within = 0 }
        on && /^(KVMEM__[A-Z0-9]+ )*(static|KVMEM_API) [^={]*\) *\{/ && !/\\$/ && !/}[^}]*$/ { within = 1 }
        END { exit bad || !on }' kvmem.h || return 1
    printf '#define KVMEM_IMPLEMENTATION\n#include "face.h"\n' > "$TMP/face.c"
    $CC -std=c99 -Werror=implicit-function-declaration -fsyntax-only -I"$TMP" "$TMP/face.c"
}

if [ -n "$FULL" ]; then
    std_c="c99 c11 c17" std_cxx="c++11 c++17" compilers="gcc clang" options=$OPTIONS SMALL=$WARN_C SYMBOLS=-O1
else
    std_c="c99" std_cxx="c++11" compilers=$CC options=
    SMALL="-DKVMEM_NO_DECODER -DKVMEM_REFERENCE" SYMBOLS="-O0 -DKVMEM_REFERENCE"
fi
for cc in $compilers; do
    if ! have "$cc"; then skip "silent_with_$cc" "no $cc here"; continue; fi
    name=$(basename "$cc" | tr -c 'a-z0-9\n' _)
    for s in $std_c; do
        # shellcheck disable=SC2086
        check "${name}_${s}_is_silent" compiles $cc -std=$s -O1 $WARN_C -I. "$TMP/impl.c"
        check "${name}_${s}_without_implementation" compiles $cc -std=$s $WARN_C -I. "$TMP/user.c"
    done
    # shellcheck disable=SC2086
    check "${name}_static_twice_in_one_program" runs $cc -std=c99 $SMALL "$TMP/static1.c" "$TMP/static2.c"
    for o in $options; do
        check "${name}_${o}_is_silent" compiles $cc -std=c99 -O1 $WARN_C -D$o -I. "$TMP/impl.c"
    done
    check "${name}_all_options_are_silent" compiles $cc -std=c99 -O1 $WARN_C $ALL -I. "$TMP/impl.c"
    if [ -n "$FULL" ]; then
        check "${name}_openmp_is_silent" compiles $cc -std=c99 -O1 $WARN_C -fopenmp -DKVMEM_TRAIN -I. "$TMP/impl.c"
        check "${name}_twice_in_one_file" runs $cc -std=c99 $WARN_C "$TMP/twice.c"
        check "${name}_two_units" two_units $cc c -std=c99 $WARN_C
        check "${name}_unsigned_char_is_silent" compiles $cc -std=c99 -O1 $WARN_C -funsigned-char -I. "$TMP/impl.c"
    fi
    case $cc in *gcc) cxx=g++ ;; *clang) cxx=clang++ ;; *) cxx=c++ ;; esac
    if ! have $cxx; then skip "silent_with_$cxx" "no $cxx here"; continue; fi
    for s in $std_cxx; do
        check "${name}_${s}_is_silent" compiles $cxx -std=$s -O1 $WARN -DKVMEM_TRAIN -I. "$TMP/impl.cc"
    done
    if [ -n "$FULL" ]; then
        check "${name}_cxx_two_units" two_units $cxx cc -std=c++11 $WARN
        check "${name}_cxx_twice_in_one_file" runs $cxx -std=c++11 $WARN "$TMP/twice.cc"
        check "${name}_cxx_all_options_are_silent" compiles $cxx -std=c++11 -O1 $WARN $ALL -I. "$TMP/impl.cc"
    fi
done
check only_kvmem_symbols_are_global only_kvmem_symbols
check no_mutable_globals no_changing_globals
check contents_name_every_section contents_match
check sources_are_plain_text plain_text
check functions_stand_where_split_awk_looks columns_hold
finish header
