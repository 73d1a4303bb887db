#!/bin/sh
# Projects as users make them, written here and built outside the repository's flags: C in two files, C++
# in two files, C and C++ mixed, the memory layer alone, one unit that is all static. FULL=1 (make check) takes
# the fast paths into the libraries; else the plain loops, which compile in half the time.
. tests/test.sh
CXX=${CXX:-$(case $CC in *clang) echo clang++ ;; *) command -v g++ || command -v c++ ;; esac)}
cat > "$TMP/lib.c" << 'EOF'
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
EOF
cat > "$TMP/app.c" << 'EOF'
#include "kvmem.h"
#include <stdio.h>
#ifdef __cplusplus
#include <vector>
#include <cmath>
#endif
int main(void) { /* two tokens through one layer; attention over equal values gives that value */
    kvmem_config cfg = kvmem_config_default();
    kvmem_cache c;
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_error err;
    float k[2 * 4] = { 1, 2, 3, 4, 4, 3, 2, 1 }, v[2 * 4] = { 5, 6, 7, 8, 5, 6, 7, 8 }, out[2 * 4];
    int i, bad = 0;
    cfg.shape.n_layers = cfg.shape.n_heads = cfg.shape.n_kv_heads = 1;
    cfg.shape.head_dim = 4;
    cfg.recipe = &r;
    if (kvmem_recipe_parse(&r, "window budget=8", &err) || kvmem_cache_init(&c, &cfg)) return 2;
    bad |= kvmem_cache_append(&c, 0, 2, k, v, NULL) || kvmem_cache_attend(&c, 0, 2, k, out) ||
           kvmem_cache_commit(&c, KVMEM_PROMPT_END);
    for (i = 0; i < 8; i++) bad |= out[i] < v[i] - 1e-5f || out[i] > v[i] + 1e-5f;
    bad |= kvmem_cache_lane_len(&c, 0, 0) != 2 || kvmem_version() != KVMEM_VERSION;
    kvmem_cache_free(&c);
    printf("%s\n", bad ? "bad" : "good");
    return bad;
}
EOF
cp "$TMP/app.c" "$TMP/app.cc"
cp "$TMP/lib.c" "$TMP/lib.cc"
(echo '#define KVMEM_STATIC'; echo '#define KVMEM_IMPLEMENTATION'; cat "$TMP/app.c") > "$TMP/one.c"
library() { # compiler, lib, flags: build/lib.o
    l=$1 lib=$2
    shift 2
    $l "$@" -I. -c "$TMP/$lib" -o "$TMP/lib.o"
}
program() { # compiler, app, flags: build with the library and run
    a=$1 app=$2
    shift 2
    $a "$@" -I. -c "$TMP/$app" -o "$TMP/app.o" && ${LINK:-$a} "$TMP/app.o" "$TMP/lib.o" -lm -o "$TMP/a.out" && "$TMP/a.out"
}
[ -n "$FULL" ] && QUICK= || QUICK=-DKVMEM_REFERENCE
# shellcheck disable=SC2086
builds() { library "$1" "$2" $QUICK && program "$1" "$3"; }
alone() { library "$CC" lib.c -DKVMEM_NO_DECODER -DKVMEM_NO_STDIO -DKVMEM_REFERENCE && program "$CC" app.c -DKVMEM_NO_DECODER -DKVMEM_NO_STDIO; }
one_static() { $CC -DKVMEM_NO_DECODER -DKVMEM_REFERENCE -Wall -Wextra -Werror -I. "$TMP/one.c" -lm -o "$TMP/a.out" && "$TMP/a.out"; }
[ -z "$FULL" ] || check one_static_file one_static
check memory_layer_alone alone
check two_file_c_project builds "$CC" lib.c app.c
if [ -n "$CXX" ] && command -v "$CXX" > /dev/null 2>&1; then
    check cxx_program_with_c_library program "$CXX" app.cc
    check two_file_cxx_project builds "$CXX" lib.cc app.cc
    LINK=$CXX
    check c_program_with_cxx_library program "$CC" app.c
else
    skip cxx_projects "no C++ compiler here"
fi
finish projects
