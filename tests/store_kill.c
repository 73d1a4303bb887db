/* A program that writes to an episode store is killed a hundred times, at any moment: what it was told to be done is
   there after reopening, and nothing is there by half. And a disk that is full, and a second program that writes. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L /* fork, kill, nanosleep */
#endif
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* setrlimit, SIGXFSZ */
#endif
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#define KVMEM_NO_DECODER
#include "test.h"
#if defined(__unix__) || (defined(__APPLE__) && defined(__MACH__))
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define PATH "build/test_store_kill.kve"
enum { MOST = 150, ROWS = 48, D = 16, TEXT = 16000 };

static char text_of[TEXT + 1], read_back[TEXT + 1];
static float rows_k[ROWS * D], rows_v[ROWS * D], got_k[ROWS * D], got_v[ROWS * D];

/* Content made of a seed. */
static size_t make(uint64_t seed, kvmem_episode *e, kvmem_content *c) {
    const size_t n = (size_t)(kvmem__mix(seed) % TEXT);
    size_t i;
    for (i = 0; i < n; i++) text_of[i] = (char)('a' + (seed + i * i) % 26);
    for (i = 0; i < ROWS * D; i++) { rows_k[i] = (float)((seed + i) % 1000); rows_v[i] = -rows_k[i]; }
    memset(e, 0, sizeof *e);
    memset(c, 0, sizeof *c);
    e->n = ROWS;
    e->created = (int64_t)seed;
    c->text = text_of;
    c->text_bytes = n;
    return n;
}
static int whole(kvmem_store *s, uint64_t id) {
    kvmem_episode e, want;
    kvmem_content c;
    size_t n = 0, m;
    int rows = 0;
    if (kvmem_store_get(s, id, 0, &e) || kvmem_store_text(s, id, 0, read_back, sizeof read_back, &n) ||
        kvmem_store_rows(s, id, 0, 0, 0, got_k, got_v, NULL, ROWS, &rows)) return 0;
    m = make((uint64_t)e.created, &want, &c);
    return n == m && !memcmp(text_of, read_back, n) && rows == ROWS && !memcmp(rows_v, got_v, sizeof got_v) &&
           (e.version > 1 || !memcmp(rows_k, got_k, sizeof got_k));
}
static kvmem_store_options options(kvmem_shape *x) {
    kvmem_store_options o = kvmem_store_options_default();
    memset(x, 0, sizeof *x);
    x->n_layers = x->n_heads = x->n_kv_heads = 1;
    x->head_dim = D;
    o.shape = x;
    o.model_id = 3;
    o.codec_k = o.codec_v = "f32";
    return o;
}
typedef struct note { uint64_t id, seed; } note; /* seed 0: deleted */

/* The program that is killed: it changes the store and tells what is done, only then. */
static void child(int out, uint64_t seed, int no_sync) {
    kvmem_shape x;
    kvmem_store_options o = options(&x);
    kvmem_store s;
    kvmem_episode e;
    kvmem_content c;
    note told;
    o.no_sync = no_sync;
    if (kvmem_store_open(&s, PATH, &o) != KVMEM_OK) _exit(9);
    for (;; seed++) {
        const uint64_t r = kvmem__mix(seed * 31) % 16;
        told.seed = 0;
        told.id = s.n ? s.kept[kvmem__mix(seed) % (uint64_t)s.n].meta.id : 0;
        if (r == 0) {
            if (kvmem_store_compact(&s, 0) != KVMEM_OK) _exit(8);
            continue;
        }
        if (r < 3 && s.n > 3) {
            if (kvmem_store_delete(&s, told.id) != KVMEM_OK) _exit(7);
        } else if (s.n >= MOST - 2) _exit(6);
        else {
            make(seed, &e, &c);
            told.seed = seed;
            if (kvmem_store_add_rows(&s, &e, &c, rows_k, rows_v, &told.id) != KVMEM_OK) _exit(5);
        }
        if (write(out, &told, sizeof told) != (ssize_t)sizeof told) _exit(4);
    }
}
static void rest(long microseconds) {
    struct timespec t;
    t.tv_sec = 0;
    t.tv_nsec = microseconds * 1000;
    nanosleep(&t, NULL);
}
/* What should be there: seed[id], 0 for nothing. */
static uint64_t should[1 << 16];

TEST(a_hundred_kills_lose_nothing_that_was_acknowledged) {
    kvmem_shape x;
    kvmem_store_options o = options(&x);
    kvmem_store s;
    int round, told = 0, torn = 0, i;
    uint64_t id;
    remove(PATH);
    memset(should, 0, sizeof should);
    for (round = 0; round < 100; round++) {
        int fd[2], status, wrong = 0, seen = 0, all = 0;
        note n;
        pid_t pid;
        REQUIRE(pipe(fd) == 0);
        fflush(stdout);
        pid = fork();
        REQUIRE(pid >= 0);
        if (pid == 0) {
            close(fd[0]);
            child(fd[1], (uint64_t)test_seed * 1000003u + (uint64_t)(round + 1) * 10007u, round % 4 != 0);
        }
        close(fd[1]);
        rest((long)(500 + test_unit() * (round % 4 ? 5000 : 20000)));
        kill(pid, SIGKILL);
        while (read(fd[0], &n, sizeof n) == (ssize_t)sizeof n) { /* all that it has told */
            REQUIRE(n.id < sizeof should / sizeof should[0]);
            should[n.id] = n.seed;
            told++;
        }
        close(fd[0]);
        REQUIRE(waitpid(pid, &status, 0) == pid);
        if (!WIFSIGNALED(status) && WEXITSTATUS(status) != 6) FAIL_AT("the child ended by itself: %d", status);
        REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
        torn += s.torn != 0;
        if (s.lost || s.damaged) FAIL_AT("round %d: %d damaged, %d bytes lost", round, s.damaged, (int)s.lost);
        for (i = 0; i < s.n; i++) {
            id = s.kept[i].meta.id;
            if (!whole(&s, id)) FAIL_AT("round %d: episode %d is not whole: %s", round, (int)id, s.error.text);
            seen += should[id] == (uint64_t)s.kept[i].meta.created;
        }
        for (id = 0; id < sizeof should / sizeof should[0]; id++) all += should[id] != 0;
        /* one change may have been written and not yet told: an episode more, or one less */
        wrong = (all - seen) + (s.n - seen);
        if (wrong > 1) FAIL_AT("round %d: %d told, %d there, %d of them as told", round, all, s.n, seen);
        memset(should, 0, sizeof should);
        if (s.n > MOST / 3) { /* begin anew */
            kvmem_store_close(&s);
            remove(PATH);
            continue;
        }
        for (i = 0; i < s.n; i++) should[s.kept[i].meta.id] = (uint64_t)s.kept[i].meta.created;
        kvmem_store_close(&s);
    }
    if (told < 100) FAIL_AT("only %d changes were told", told);
    if (getenv("VERBOSE")) printf("  %d changes told, %d torn tails\n", told, torn);
    remove(PATH);
    remove(PATH ".new");
}
TEST(a_full_disk_is_an_error_and_the_store_stays_whole) {
    kvmem_shape x;
    kvmem_store_options o = options(&x);
    kvmem_store s;
    int status, i;
    pid_t pid;
    remove(PATH);
    fflush(stdout);
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) { /* no file may grow beyond 100000 bytes */
        struct rlimit limit;
        kvmem_episode e;
        kvmem_content c;
        uint64_t id, seed = 1, n = 0;
        signal(SIGXFSZ, SIG_IGN);
        limit.rlim_cur = limit.rlim_max = 100000;
        if (setrlimit(RLIMIT_FSIZE, &limit) || kvmem_store_open(&s, PATH, &o) != KVMEM_OK) _exit(100);
        for (i = 0; i < 200; i++, seed++) {
            make(seed, &e, &c);
            if (kvmem_store_add_rows(&s, &e, &c, rows_k, rows_v, &id) == KVMEM_OK) n++;
            else if (s.error.status != KVMEM_IO || !strstr(s.error.text, "disk full")) _exit(101);
        }
        for (i = 0; i < s.n; i++)
            if (!whole(&s, s.kept[i].meta.id)) _exit(102);
        _exit(n == (uint64_t)s.n ? (int)n : 103);
    }
    REQUIRE(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
    CHECK(WEXITSTATUS(status) == s.n && s.n > 2 && s.n < 100);
    for (i = 0; i < s.n; i++) CHECK(whole(&s, s.kept[i].meta.id));
    CHECK_OK(kvmem_store_verify(&s, NULL, NULL, NULL));
    kvmem_store_close(&s);
    remove(PATH);
    if (access("/dev/full", W_OK) == 0) CHECK(kvmem_store_open(&s, "/dev/full", &o) != KVMEM_OK && s.error.text[0]);
}
TEST(a_second_program_that_writes_is_refused_and_may_read) {
    kvmem_shape x;
    kvmem_store_options o = options(&x), ro = o;
    kvmem_store s, t;
    kvmem_episode e;
    kvmem_content c;
    int status;
    pid_t pid;
    remove(PATH);
    REQUIRE_OK(kvmem_store_open(&s, PATH, &o));
    make(5, &e, &c);
    CHECK_OK(kvmem_store_add_rows(&s, &e, &c, rows_k, rows_v, NULL));
    ro.read_only = 1;
    fflush(stdout);
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        if (kvmem_store_open(&t, PATH, &o) != KVMEM_BAD_STATE || !strstr(t.error.text, "another program")) _exit(1);
        if (kvmem_store_open(&t, PATH, &ro) != KVMEM_OK || t.n != 1 || !whole(&t, 1)) _exit(2);
        _exit(0);
    }
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    make(6, &e, &c);
    CHECK_OK(kvmem_store_add_rows(&s, &e, &c, rows_k, rows_v, NULL));
    kvmem_store_close(&s);
    remove(PATH);
}
int main(int argc, char **argv) {
    test_begin(argc, argv, "store_kill");
    RUN(a_hundred_kills_lose_nothing_that_was_acknowledged);
    RUN(a_full_disk_is_an_error_and_the_store_stays_whole);
    RUN(a_second_program_that_writes_is_refused_and_may_read);
    return test_end();
}
#else
TEST(processes) { SKIP("this machine has no fork"); }
int main(int argc, char **argv) {
    test_begin(argc, argv, "store_kill");
    RUN(processes);
    return test_end();
}
#endif
