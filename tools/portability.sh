#!/bin/sh
# Builds the tests with other compilers and for other machines and runs them, by qemu where need be:
# tcc, musl, 32 bit, arm64 (NEON), big-endian s390x, unsigned char; and compiles the memory layer for bare metal.
# What is missing is named with its Debian package and left out. Usage: portability.sh [PART...]
# Debian: tcc musl-tools gcc-12-multilib libc6-dev-i386 gcc-aarch64-linux-gnu gcc-s390x-linux-gnu qemu-user
#         gcc-arm-none-eabi libnewlib-arm-none-eabi
# (gcc-multilib itself refuses to stand beside the cross compilers; gcc-12-multilib does not.)
B=build/port
QEMU_S390X=$(command -v qemu-s390x || command -v qemu-s390x-static)
WARN="-Wall -Wextra"
rc=0 done_parts=0 missing=
mkdir -p $B
wanted() { # name: asked for, or nothing was asked for
    [ -z "$PARTS" ] && return 0
    case " $PARTS " in *" $1 "*) return 0 ;; esac
    return 1
}
tests() { # name, package, runner, limit in seconds for each test, compiler and flags
    name=$1 package=$2 runner=$3 limit=$4
    shift 4
    wanted "$name" || return
    if ! command -v "$1" > /dev/null 2>&1 || { [ -n "$runner" ] && ! command -v "${runner%% *}" > /dev/null 2>&1; } ||
        ! { echo '#include <math.h>
#include <stdlib.h>
int main(void) { return sqrt((double)rand()) < 0; }' > $B/probe.c && "$@" $B/probe.c -o $B/probe -lm 2> /dev/null &&
            $runner $B/probe; }; then
        echo "-- $name: left out, needs $package"
        missing="$missing $name"
        return
    fi
    echo "== $name: $*"
    mkdir -p "$B/$name"
    bins=
    for t in tests/*.c; do
        out=$B/$name/test_$(basename "$t" .c)
        if [ ! -e "$out" ] || [ kvmem.h -nt "$out" ] || [ "$t" -nt "$out" ]; then
            # shellcheck disable=SC2086
            "$@" -std=c99 $WARN -I. "$t" -o "$out" -lm || { rc=1; echo "FAIL $name: $t does not compile"; continue; }
        fi
        bins="$bins $out"
    done
    # shellcheck disable=SC2086
    B=$B RUNNER="timeout $limit $runner" KVMEM_TEST_SMALL=1 sh tools/runtests.sh $bins || rc=1
    done_parts=$((done_parts + 1))
}
exchange() { # caches saved here, loaded and continued on a big-endian machine, and the other way round
    wanted exchange || return
    if ! command -v s390x-linux-gnu-gcc > /dev/null 2>&1 || [ -z "$QEMU_S390X" ]; then
        echo "-- exchange: left out, needs gcc-s390x-linux-gnu qemu-user"
        missing="$missing exchange"
        return
    fi
    echo "== exchange: saved here, loaded by s390x; saved by s390x, loaded here"
    rm -rf $B/here $B/there
    mkdir -p $B/here $B/there
    gcc -std=c99 -O1 $WARN -I. tools/exchange.c -o $B/exchange -lm &&
        s390x-linux-gnu-gcc -std=c99 -O1 -static -I. tools/exchange.c -o $B/exchange390 -lm &&
        $B/exchange save $B/here > /dev/null && $QEMU_S390X $B/exchange390 load $B/here &&
        $QEMU_S390X $B/exchange390 save $B/there > /dev/null && $B/exchange load $B/there || rc=1
    done_parts=$((done_parts + 1))
}
bare_metal() { # the memory layer without stdio, malloc, decoder: libc's string.h and libm only
    wanted arm-none-eabi || return
    if ! command -v arm-none-eabi-gcc > /dev/null 2>&1; then
        echo "-- arm-none-eabi: left out, needs gcc-arm-none-eabi libnewlib-arm-none-eabi"
        missing="$missing arm-none-eabi"
        return
    fi
    printf '#define KVMEM_IMPLEMENTATION\n#define KVMEM_ASSERT(x) ((void)0)\n#include "kvmem.h"\n' > $B/bare.c
    for mode in "" -ffreestanding; do
        # shellcheck disable=SC2086
        arm-none-eabi-gcc -std=c99 -Os -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 $mode $WARN -Werror \
            -DKVMEM_NO_STDIO -DKVMEM_NO_MALLOC -DKVMEM_NO_DECODER -ffunction-sections -I. -c $B/bare.c -o $B/bare.o ||
            { rc=1; return; }
    done
    echo "== arm-none-eabi: cortex-m4 -Os, memory layer alone"
    arm-none-eabi-size $B/bare.o
    echo "   calls outside: $(arm-none-eabi-nm -u $B/bare.o | awk '{print $2}' | tr '\n' ' ')"
    if arm-none-eabi-nm -u $B/bare.o | grep -E ' (malloc|free|printf|fopen|abort|exit)$'; then
        echo "FAIL arm-none-eabi: these must not be called"
        rc=1
    fi
    done_parts=$((done_parts + 1))
}
PARTS="$*"
tests unsigned-char gcc "" 120 gcc -O1 -funsigned-char -ffp-contract=off
tests tcc tcc "" 120 tcc
tests musl musl-tools "" 120 musl-gcc -O1 -static -ffp-contract=off
tests m32 "gcc-12-multilib libc6-dev-i386" "" 120 gcc -m32 -O1 -msse2 -mfpmath=sse -ffp-contract=off
tests aarch64 "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" qemu-aarch64 300 \
    aarch64-linux-gnu-gcc -O1 -static -ffp-contract=off
tests s390x "gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user" qemu-s390x 300 \
    s390x-linux-gnu-gcc -O1 -static -ffp-contract=off
exchange
bare_metal
echo "$done_parts parts done${missing:+, left out:$missing}"
[ $rc = 0 ] && [ $done_parts != 0 ]
