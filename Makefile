# kvmem: `make run` plays the main job, `make test` proves it, `make help` lists the rest.
# Honours CC CXX CFLAGS CPPFLAGS LDFLAGS LDLIBS. No -march is needed: fast paths are picked at run time.
CC ?= cc
CFLAGS ?= -O2
TEST_CFLAGS ?= $(if $(filter file,$(origin CFLAGS)),-O1,$(CFLAGS)) # compiling is most of a test run
B ?= build
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
OMP ?= $(shell echo 'int main(void) { return 0; }' | $(CC) -fopenmp -xc - -o /dev/null 2>/dev/null && echo -fopenmp)
WARN = -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wcast-qual -Wdouble-promotion -Wvla -Wundef \
       -Wstrict-prototypes -Wmissing-prototypes
STD = -std=c99
LIBS = $(LDLIBS) -lm
OMPFLAGS := $(OMP)
COMPILE = $(CC) $(CPPFLAGS) $(CFLAGS) $(STD) $(WARN) $(OMPFLAGS)
COMPILE_TEST = $(CC) $(CPPFLAGS) $(TEST_CFLAGS) $(STD) $(WARN) $(OMPFLAGS)

TESTS    = $(patsubst tests/%.c,$(B)/test_%,$(wildcard tests/*.c))
SCRIPTS  = $(filter-out tests/test.sh,$(wildcard tests/*.sh))
EXAMPLES = $(patsubst examples/%.c,$(B)/example_%,$(wildcard examples/*.c))
FUZZ     = $(patsubst tools/fuzz_%.c,$(B)/fuzz_%,$(wildcard tools/fuzz_*.c))
TOOLS    = $(patsubst tools/%.c,$(B)/%,$(filter-out tools/fuzz_%.c,$(wildcard tools/*.c)))
BENCHES  = $(patsubst bench/%.c,$(B)/bench_%,$(wildcard bench/*.c))

MODEL  ?= examples/models/tiny.gguf
REPORT ?= report.html

all: kvmem ## build the command line ./kvmem
kvmem: $(B)/kvmem
	cp $(B)/kvmem $@

run: kvmem ## play the main job: one long conversation, four memories of it; writes report.html (MODEL= REPORT=)
	./kvmem demo -m $(MODEL) --report $(REPORT)

train-tiny: $(B)/train ## train the default model anew from its seed (TINY= the file to write; estimated at an hour on two cores)
	$(B)/train -o $(TINY) --checkpoint $(B)/tiny.ckpt --every 100
TINY ?= build/tiny.gguf

test: ## build and run every test; the last line is `N passed, N failed`
	@$(MAKE) --no-print-directory -j$(JOBS) testbins
	@B=$(B) KVMEM=$(B)/kvmem CC="$(CC)" JOBS=$(JOBS) sh tools/runtests.sh $(LONGEST) \
	    $(filter-out $(LONGEST),$(SCRIPTS) $(TESTS))
LONGEST = tests/mutate.sh tests/readme.sh tests/header.sh $(B)/test_oom $(B)/test_train $(B)/test_universal
list-tests:
	@echo $(TESTS)
testbins: $(if $(filter build,$(B)),kvmem) $(B)/kvmem $(TESTS) $(EXAMPLES) $(FUZZ) $(TOOLS)

check: kvmem $(EXAMPLES) $(TOOLS) $(B)/bench_claims ## every way to include the header, gcc and clang, C and C++, all options; symbols, contents, tables
	@B=$(B) CC="$(CC)" FULL=1 JOBS=$(JOBS) sh tools/runtests.sh tests/header.sh tests/projects.sh tests/readme.sh

sanitize: ## the tests under ASan and UBSan with leak checks, then a short session under valgrind
	@sh tools/sanitize.sh

portability: ## other compilers and machines: tcc, musl, 32 bit, arm64 and big-endian under qemu, bare metal
	@sh tools/portability.sh

FUZZ_TIME ?= 60
fuzz: ## each fuzz target with libFuzzer for FUZZ_TIME seconds (clang)
	@FUZZ_TIME=$(FUZZ_TIME) sh tools/fuzz.sh

bench: $(BENCHES) $(B)/mkgguf ## speed and memory tables of this machine
	@B=$(B) sh bench/run.sh

bench-methods: $(B)/bench_methods ## every preset that keeps fewer entries: answers, nearness, bytes, times; ranked (long; METHODS=options)
	@$(B)/bench_methods $(METHODS)
bench-overhead: $(B)/bench_overhead ## what choosing costs: share of prefill, a decode step from 1k to 100k tokens (OVERHEAD=options)
	@$(B)/bench_overhead $(OVERHEAD)

claims: $(B)/bench_claims ## published claims about KV caches, measured on the default model, with verdicts (CLAIMS=options)
	@$(B)/bench_claims $(CLAIMS)

picture: $(B)/bench_codecs $(B)/picture ## measure every codec's quality and draw it: bench/codecs.svg (some minutes)
	$(B)/bench_codecs --csv --no-speed > $(B)/codecs.csv
	$(B)/picture $(B)/codecs.csv > $(B)/codecs.svg && cp $(B)/codecs.svg bench/codecs.svg

long: $(B)/bench_longstream ## what six memories still know of a long stream, and what they cost: bench/longstream.svg (LONG=options)
	$(B)/bench_longstream --svg bench/longstream.svg --length 16k --stops 8 --ask 12 $(LONG)

tables: kvmem $(B)/bench_claims ## measure the tables of README.md again and put them there (some minutes)
	@KVMEM=./kvmem B=$(B) sh tools/tables.sh write

clean: ## remove everything that was built
	rm -rf build kvmem

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' Makefile

# Tests, benches and tools, ./kvmem too, are compiled against kvmem.h taken apart: the bodies of its functions once,
# with and without fast paths, and each program in a second. `make SPLIT= ...` compiles the whole header into each.
SPLIT ?= 1
FACE = $(if $(SPLIT),-I$(B)/face)
BODY = $(if $(SPLIT),$(B)/body/fast.o)
$(B)/face/kvmem.h $(B)/body/kvmem.h: $(B)/%/kvmem.h: kvmem.h tools/split.awk
	@mkdir -p $(@D)
	@awk -v part=$* -f tools/split.awk kvmem.h > $@
$(B)/body/%.o: $(B)/body/kvmem.h
	@printf '#define KVMEM_IMPLEMENTATION\n#define KVMEM_TRAIN\n#include "kvmem.h"\n' > $(B)/body/$*.c
	$(CC) $(CPPFLAGS) $(CFLAGS) $(STD) -w $(OMPFLAGS) -ffp-contract=off $(if $(filter plain,$*),-DKVMEM_REFERENCE) \
	    -c -o $@ $(B)/body/$*.c
TAKEN = $(if $(SPLIT),$(B)/face/kvmem.h)

# These do not look at fast paths: those that say so themselves, and others.
PLAIN = $(sort $(patsubst tests/%.c,%,$(shell grep -l '^.define KVMEM_REFERENCE' tests/*.c)) \
        corpus mkgguf flash npy report stream peer calibrate transform codec_tool score_tool)
PLAINS = $(foreach t,$(PLAIN),$(B)/test_$(t)) $(FUZZ) $(B)/mkgguf $(B)/corpus $(B)/picture $(B)/transform $(B)/exchange \
         $(EXAMPLES)
$(PLAINS): BODY = $(if $(SPLIT),$(B)/body/plain.o)
$(PLAINS): CPPFLAGS += -DKVMEM_REFERENCE
ifneq ($(SPLIT),)
$(PLAINS): $(B)/body/plain.o
$(filter-out $(PLAINS),$(TESTS) $(TOOLS) $(BENCHES)): $(B)/body/fast.o
endif
$(B)/test_%: tests/%.c $(wildcard tests/*.h) $(wildcard tools/*.h) tools/kvmem.c tools/mkgguf.c tools/transform.c $(TAKEN)
	@mkdir -p $(B)
	$(COMPILE_TEST) -ffp-contract=off $(FACE) -I. -o $@ $< $(BODY) $(LDFLAGS) $(LIBS)
$(B)/example_%: examples/%.c $(TAKEN)
	@mkdir -p $(B)
	$(COMPILE_TEST) $(FACE) -I. -o $@ $< $(BODY) $(LDFLAGS) $(LIBS)
$(B)/fuzz_%: tools/fuzz_%.c $(wildcard tools/*.h) $(TAKEN)
	@mkdir -p $(B)
	$(COMPILE_TEST) -DKVMEM_FUZZ_MAIN $(FACE) -I. -o $@ $< $(BODY) $(LDFLAGS) $(LIBS)
$(B)/bench_claims $(B)/bench_codecs $(B)/bench_methods: $(B)/kvmem
$(B)/bench_%: bench/%.c bench/bench.h $(wildcard tools/*.h) $(TAKEN)
	@mkdir -p $(B)
	$(COMPILE) '-DBENCH_FLAGS="$(CFLAGS) $(OMPFLAGS)"' $(FACE) -I. -o $@ $< $(BODY) $(LDFLAGS) $(LIBS)
$(B)/kvmem: tools/kvmem.c $(wildcard tools/*.h) $(TAKEN)
	@mkdir -p $(B)
	$(COMPILE) $(FACE) -I. -o $@ $< $(BODY) $(LDFLAGS) $(LIBS)
$(B)/%: tools/%.c $(wildcard tools/*.h) $(TAKEN)
	@mkdir -p $(B)
	$(COMPILE_TEST) $(FACE) -I. -o $@ $< $(BODY) $(LDFLAGS) $(LIBS)

.SECONDARY: $(B)/body/fast.o $(B)/body/plain.o $(B)/face/kvmem.h $(B)/body/kvmem.h
.PHONY: all run train-tiny test testbins list-tests check sanitize portability bench bench-methods bench-overhead claims picture long tables fuzz clean help
