# kvmem: make run | make test | make help
CC ?= cc
CFLAGS ?= -O2
WARN = -Wall -Wextra -Wpedantic -Wconversion -Wshadow
OMP := $(shell printf 'int main(void){return 0;}' | $(CC) -fopenmp -xc - -o /dev/null 2>/dev/null && echo -fopenmp)
LDLIBS += -lm
TESTS = $(patsubst tests/%.c,build/test_%,$(wildcard tests/*.c))

all: kvmem
kvmem: tools/kvmem.c kvmem.h
	$(CC) $(CFLAGS) $(OMP) -o $@ $< $(LDFLAGS) $(LDLIBS)
build/test_%: tests/%.c tests/test.h kvmem.h
	@mkdir -p build
	$(CC) $(CFLAGS) -std=c99 $(WARN) -Wno-unused-function -ffp-contract=off $(OMP) -o $@ $< $(LDFLAGS) $(LDLIBS)
test: $(TESTS)
	@fail=0; : > build/results; for t in $(TESTS); do $$t | tee -a build/results || fail=1; done; \
	awk '/^[a-z0-9_]+: [0-9]+ passed, [0-9]+ failed/ {p+=$$2; f+=$$4; s+=$$6} \
	     END {printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f>0 || p==0}' build/results
clean:
	rm -rf build kvmem
.PHONY: all test clean
