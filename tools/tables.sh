#!/bin/sh
# The measured tables of README.md: what the default model remembers, what recipes leave of it, and
# the claims. `tools/tables.sh write` measures all of them (some minutes) and puts them there, each
# with the command that made it; `... write NAME` one of them; `... print NAME` prints one;
# `... commands` prints the commands. NAME: targets recipes aware claims; codecs
# (bits, errors, speed), eighth and sixteenth (eviction and codecs at the same bytes), ranking (every
# preset that keeps fewer entries; an hour or more, so only by its name: `... write ranking`; ROWS=FILE takes rows
# that build/bench_methods --csv has printed).
# MODEL: another model than the default one; SEEDS: fewer contexts, for a trial.
# KVMEM, B: the program and the build folder.
KVMEM=${KVMEM:-./kvmem}
B=${B:-build}

NAMES="targets recipes aware codecs eighth sixteenth claims"
RECIPES="--kv window --kv streamingllm --kv h2o --kv tova --kv snapkv --kv pyramidkv"
RECIPES="$RECIPES --kv \"score=random when=prompt\""
# The same bytes of K and V, an eighth and a sixteenth of float16: eviction alone, five compositions with a
# codec of b bits a value, which keeps 16 / b times as many entries, and codecs alone (none takes one bit
# a value, a sixteenth of 16: turboquant's 1.25 are the nearest).
each() { for r in "$@"; do printf ' --kv "%s"' "$r"; done; }
EIGHTH=$(each "pyramidkv codec=f16 budget=12.5%" "snapkv codec=f16 budget=12.5%" "h2o codec=f16 budget=12.5%" \
    "pyramidkv codec=q8_0 budget=23.5%" "pyramidkv codec=q4_0(rot=had) budget=44.4%" \
    "snapkv codec=q4_0(rot=had) budget=44.4%" "pyramidkv codec=octopus(bits=3) budget=53.3%" \
    "pyramidkv codec=turboquant(bits=2) budget=88.9%" "full codec=kivi(bits=1) page=32" \
    "full codec=turboquant(bits=1)" "full codec=turboquant(bits=2)/turboquant(bits=1)")
SIXTEENTH=$(each "pyramidkv codec=f16 budget=6.25%" "snapkv codec=f16 budget=6.25%" "h2o codec=f16 budget=6.25%" \
    "pyramidkv codec=q8_0 budget=11.8%" "pyramidkv codec=q4_0(rot=had) budget=22.2%" \
    "snapkv codec=q4_0(rot=had) budget=22.2%" "pyramidkv codec=octopus(bits=3) budget=26.7%" \
    "pyramidkv codec=turboquant(bits=2) budget=44.4%" "full codec=turboquant(bits=1)")
command_of() {
    case $1 in
    targets) echo "./kvmem eval --suite conv,order,copy --ctx 1k,2k,4k --kv full --questions 26 --seeds ${SEEDS:-60} --md" ;;
    recipes) echo "./kvmem eval --suite conv --ctx 2k --budgets 12.5% $RECIPES --seeds ${SEEDS:-20} --md" ;;
    aware) echo "./kvmem eval --suite conv --ctx 2k --budgets 12.5% $RECIPES --seeds ${SEEDS:-20} --question-aware --md" ;;
    eighth) echo "./kvmem eval --suite conv --ctx 2k$EIGHTH --seeds ${SEEDS:-20} --md" ;;
    sixteenth) echo "./kvmem eval --suite conv --ctx 2k$SIXTEENTH --seeds ${SEEDS:-20} --md" ;;
    codecs) echo "build/bench_codecs" ;;
    ranking) echo "build/bench_methods --md --ctx 512 --questions 8 --seeds ${SEEDS:-2}" ;;
    claims) echo "build/bench_claims --md --seeds ${SEEDS:-8}" ;;
    *) echo "tables.sh: no table '$1'; there are $NAMES" >&2; return 1 ;;
    esac
}
run_of() { # the command as written, with the program, the model and more options of this run
    line=$(command_of "$1") || return 1
    case $line in
    ./kvmem\ *) line="\"\$KVMEM\" ${line#./kvmem }" ;;
    *) line="\"\$B/${line#build/}" && line="${line%% *}\" ${line#"${line%% *}"}" ;;
    esac
    # shellcheck disable=SC2086
    [ "$1" = ranking ] && line="$line ${ROWS:+--from \"\$ROWS\"}"
    eval "$line ${MODEL:+-m \"\$MODEL\"} $MORE"
}
print() { # the command, then what it printed
    text=$(run_of "$1") || return 1
    case $1 in
    codecs) printf '```\n%s\n\n%s\n```\n' "$(command_of "$1")" "$text" ;;
    *) printf '```\n%s\n```\n\n%s\n' "$(command_of "$1")" "$text" ;;
    esac
}
put() { # between <!-- NAME --> and <!-- end NAME -->; the file stays as it is if anything failed
    print "$1" > README.part || { rm -f README.part; return 1; }
    awk -v name="$1" -v file=README.part '
        $0 == "<!-- end " name " -->" { on = 0 }
        !on { print }
        $0 == "<!-- " name " -->" { on = 1; while ((getline line < file) > 0) print line }' README.md > README.new &&
        grep -q "^<!-- end $1 -->" README.new && cat README.new > README.md
    status=$?
    rm -f README.new README.part
    return $status
}
case $1 in
commands) for n in $NAMES; do command_of "$n"; done ;;
print) print "$2" ;;
write) for n in ${2:-$NAMES}; do echo "measuring: $n" >&2; put "$n" || exit 1; done ;;
*) sed -n '2,/^[^#]/s/^# //p' "$0" >&2; exit 2 ;;
esac
