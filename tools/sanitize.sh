#!/bin/sh
# All tests under AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer, then a short session
# under valgrind. Ends like `make test`.
CC=${CC:-cc}
FLAGS="-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo 2)}
make --no-print-directory -j"$JOBS" B=build/sanitize CC="$CC" CFLAGS="$FLAGS" OMP= testbins || exit 1
# shellcheck disable=SC2046
B=build/sanitize KVMEM=build/sanitize/kvmem CC="$CC" sh tools/runtests.sh $(make -s B=build/sanitize list-tests) tests/cli.sh tests/mutate.sh
rc=$?
if command -v valgrind > /dev/null 2>&1; then
    echo "== valgrind"
    make --no-print-directory B=build/valgrind CC="$CC" CFLAGS="-O1 -g" OMP= build/valgrind/test_oom build/valgrind/kvmem || exit 1
    V="valgrind -q --error-exitcode=9 --leak-check=full --show-leak-kinds=all"
    $V build/valgrind/test_oom session || rc=1
    model=../shared/models/stories260K.bin
    if [ -f $model ]; then
        $V build/valgrind/kvmem run -m $model --tokenizer ../shared/models/tok512.bin -p "Once upon a time" -n 12 --temp 0 \
            --kv "snapkv budget=50% codec=q8_0" || rc=1
    fi
    [ $rc = 0 ] && echo "valgrind: clean"
else
    echo "valgrind is not installed: its part is left out"
fi
exit $rc
