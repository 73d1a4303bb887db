/* kvmem - the command line of kvmem.h: run, measure and look at transformers and their memory.

   A thin user of the public API. Each subcommand is a function and one row in `commands`; its
   options are one table that the parser fills `args` from and that --help is printed from. Results
   are written to memory first and reach stdout only when the command has succeeded (run and chat
   stream instead), so a failure leaves stdout empty, one sentence on stderr and a status of 1, or 2
   for wrong usage.

   Build: cc -O2 -fopenmp -I. -o kvmem tools/kvmem.c -lm */
#if (defined(__unix__) || defined(__APPLE__)) && !defined(KVMEM_TOOL_PLAIN)
#define POSIX 1 /* mmap, stat, a monotonic clock, isatty; without them: read, clock() */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#else
#define POSIX 0
#endif
#define KVMEM_IMPLEMENTATION
#include "kvmem.h"
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "corpus.h"
#include "report.h"
#include "stats.h"
#if POSIX
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

enum { OK = 0, FAILED = 1, MISUSED = 2 };

/* ==== >>output : what goes to stdout, and what to stderr ====================================== */

static const char *command_name = ""; /* for messages */

static void complain(const char *f, va_list ap) {
    fflush(stdout);
    fprintf(stderr, *command_name ? "kvmem %s: " : "kvmem%s: ", command_name);
    vfprintf(stderr, f, ap);
    fputc('\n', stderr);
}
/* One sentence that names the thing and the reason. Both return the exit status. */
KVMEM__PRINTF(1, 2) static int fail(const char *f, ...) {
    va_list ap;
    va_start(ap, f);
    complain(f, ap);
    va_end(ap);
    return FAILED;
}
KVMEM__PRINTF(1, 2) static int misuse(const char *f, ...) {
    va_list ap;
    va_start(ap, f);
    complain(f, ap);
    va_end(ap);
    fprintf(stderr, "try: kvmem %s%s--help\n", command_name, *command_name ? " " : "");
    return MISUSED;
}
static void *grow(void *p, size_t count, size_t item) { /* realloc or leave with a message */
    void *q = NULL;
    if (!item || count <= SIZE_MAX / item) q = realloc(p, count && item ? count * item : 1);
    if (!q) {
        fprintf(stderr, "kvmem %s: no memory for %lu items of %lu bytes\n", command_name,
                (unsigned long)count, (unsigned long)item);
        exit(FAILED);
    }
    return q;
}

/* Text that is still to be printed. */
static struct { char *text; size_t len, cap; } out;

static void put_bytes(const char *s, size_t n) {
    if (n + 1 > out.cap - out.len) {
        out.cap = 2 * (out.len + n) + 4096;
        out.text = (char *)grow(out.text, out.cap, 1);
    }
    memcpy(out.text + out.len, s, n);
    out.len += n;
}
KVMEM__PRINTF(1, 2) static void put(const char *f, ...) {
    va_list ap;
    int n;
    va_start(ap, f);
    n = vsnprintf(NULL, 0, f, ap);
    va_end(ap);
    if (n < 0) return;
    if ((size_t)n + 1 > out.cap - out.len) {
        out.cap = 2 * (out.len + (size_t)n) + 4096;
        out.text = (char *)grow(out.text, out.cap, 1);
    }
    va_start(ap, f);
    vsnprintf(out.text + out.len, (size_t)n + 1, f, ap);
    va_end(ap);
    out.len += (size_t)n;
}
static int flush_out(FILE *to) {
    const size_t n = out.len;
    out.len = 0;
    if ((n && fwrite(out.text, 1, n, to) != n) || fflush(to))
        return fail("cannot write the output: %s", strerror(errno));
    return OK;
}

/* JSON: keys in the order of the calls; key NULL inside an array. */
static struct { int depth; char close[16]; int many[16]; } js;

static void json_string(const char *s, size_t n) {
    size_t i;
    put_bytes("\"", 1);
    for (i = 0; i < n; i++) {
        const unsigned char ch = (unsigned char)s[i];
        if (ch == '"' || ch == '\\') put("\\%c", ch);
        else if (ch < 32 || ch == 127) put("\\u%04x", (unsigned)ch);
        else put_bytes(s + i, 1);
    }
    put_bytes("\"", 1);
}
static void json_key(const char *key) {
    if (js.depth && js.many[js.depth]++) put_bytes(",", 1);
    if (key) { json_string(key, strlen(key)); put_bytes(":", 1); }
}
static void json_open(const char *key, char bracket) {
    json_key(key);
    put_bytes(&bracket, 1);
    js.depth++;
    js.close[js.depth] = bracket == '{' ? '}' : ']';
    js.many[js.depth] = 0;
}
static void json_close(void) {
    put_bytes(&js.close[js.depth--], 1);
    if (!js.depth) put_bytes("\n", 1);
}
static void json_text(const char *key, const char *s) { json_key(key); json_string(s, strlen(s)); }
static void json_int(const char *key, int64_t v) { json_key(key); put("%lld", (long long)v); }
static void json_bool(const char *key, int v) { json_key(key); put(v ? "true" : "false"); }
static void json_real(const char *key, double v) {
    json_key(key);
    if (v - v == 0) put("%.9g", v);
    else put("null");
}

/* "12.3 MiB"; up to four calls in one printf. */
static const char *human(size_t bytes) {
    static char text[4][32];
    static int at;
    static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    char *t = text[at++ & 3];
    double v = (double)bytes;
    int u = 0;
    while (v >= 1024 && u < 4) { v /= 1024; u++; }
    snprintf(t, 32, u && v < 10 ? "%.2f %s" : u && v < 100 ? "%.1f %s" : "%.0f %s", v, unit[u]);
    return t;
}
static double now(void) { /* seconds */
#if POSIX
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#else
    return (double)clock() / CLOCKS_PER_SEC;
#endif
}
static int is_terminal(FILE *f) {
#if POSIX
    return isatty(fileno(f));
#else
    (void)f;
    return 0;
#endif
}

/* ==== >>files : whole files, mapped where the system can ====================================== */

typedef struct file { const char *path; unsigned char *bytes; size_t size; int mapped; } file;

static void file_close(file *f) {
#if POSIX
    if (f->mapped) munmap(f->bytes, f->size);
    else
#endif
        free(f->bytes);
    memset(f, 0, sizeof *f);
}
static int read_rest(file *f, FILE *from) { /* any stream, until its end */
    size_t cap = 0, n;
    do {
        if (f->size == cap) f->bytes = (unsigned char *)grow(f->bytes, cap = 2 * cap + 65536, 1);
        n = fread(f->bytes + f->size, 1, cap - f->size, from);
        f->size += n;
    } while (n);
    return ferror(from) ? fail("%s: cannot read: %s", f->path, strerror(errno)) : OK;
}
/* path "-" is stdin. An empty file is not an error here. */
static int file_open(file *f, const char *path) {
    FILE *from;
    int status;
    memset(f, 0, sizeof *f);
    f->path = path;
    if (!strcmp(path, "-")) { f->path = "stdin"; return read_rest(f, stdin); }
#if POSIX
    {
        struct stat st;
        int fd;
        if (stat(path, &st) != 0) return fail("%s: cannot open: %s", path, strerror(errno));
        if (S_ISDIR(st.st_mode)) return fail("%s: is a directory, not a file", path);
        if (S_ISREG(st.st_mode) && st.st_size > 0 && (uint64_t)st.st_size <= SIZE_MAX &&
            (fd = open(path, O_RDONLY)) >= 0) {
            void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
            close(fd);
            if (p != MAP_FAILED) {
                f->bytes = (unsigned char *)p;
                f->size = (size_t)st.st_size;
                f->mapped = 1;
                return OK;
            }
        }
    }
#endif
    from = fopen(path, "rb");
    if (!from) return fail("%s: cannot open: %s", path, strerror(errno));
    status = read_rest(f, from);
    fclose(from);
    if (status) file_close(f);
    return status;
}

/* ==== >>options : one table a subcommand, for the parser and for --help ======================= */

typedef struct ids { int *id; int n, cap; } ids;
enum { MAX_LIST = 64 };
/* Values of an option that may be given many times. */
typedef struct texts { const char *item[MAX_LIST]; int n; } texts;

/* Everything that an option can set. NULL and -1 mean "not given" where no default is listed. */
typedef struct args {
    const char *model, *tokenizer, *prompt, *file, *kv, *save, *load, *backend, *output, *tokens,
        *tokens_file, *cache, *shape, *system, *chat_template, *suite, *lengths, *budgets, *text,
        *report, *input, *as, *query, *positions, *dots, *models, *levels, *gbps, *rule;
    texts kvs, audits;
    int64_t n, ctx, threads, top_k, repeat_last, chunk, first, block, decode, seed, seeds,
        questions, depths, level, group;
    double temp, top_p, min_p, repeat, rope_base, slo, delay;
    const char *machine; /* kvmem cost */
    const char *evo; /* kvmem profile */
    const char *store, *segment, *embed, *policy, *codec; /* kvmem memory */
    int64_t top, neighbours;
    size_t ram;
    double recency;
    int dry_run, guard, no_speaker;
    int64_t generations;
    int64_t layers, kv_heads, head_dim, hidden, users, rounds;
    const char *keys, *values, *hidden_rows, *projection, *rope; /* kvmem score */
    const char *vectors, *surprise, *truth, *turn_ends, *turn_begins; /* kvmem segment */
    int64_t tolerance, draws;
    double from_layer;
    int64_t heads, question, probe, probe_from, probe_to;
    int kept;
    double params, weight_bytes, value_bytes, flops, bandwidth, memory, link, share;
    int measure;
    size_t max_bytes;
    int json, csv, md, stream, no_bos, pieces, special, use_chunk, aware, turns, beyond, pairs, matrix, pre_rope,
        neox, all, no_text;
    char line[1024];  /* the whole command, for reports */
    const char **word; /* what is no option */
    int n_words;
} args;

typedef enum option_kind { TEXT, TEXTS, INTEGER, REAL, SIZE, FLAG, MAYBE_INTEGER } option_kind;
typedef struct option {
    const char *name, *longer; /* "-m", "--model"; either may be NULL */
    option_kind kind;
    size_t at;                 /* offset in args */
    const char *value;         /* its name in the help */
    const char *def;           /* parsed like a given value; NULL: none */
    double lo, hi;
    int needed;
    const char *what;
} option;
#define AT(field) offsetof(args, field)
#define BIG 2147483647.0

/* One row by its kind, then the rows that several subcommands share. */
#define O_FLAG(longer, field, what)                                                                \
    { NULL, longer, FLAG, AT(field), NULL, NULL, 0, 0, 0, what }
#define O_TEXT(longer, field, value, what)                                                         \
    { NULL, longer, TEXT, AT(field), value, NULL, 0, 0, 0, what }
#define O_TEXTS(longer, field, value, what)                                                        \
    { NULL, longer, TEXTS, AT(field), value, NULL, 0, 0, 0, what }
#define O_INT(longer, field, value, def, lo, hi, what)                                             \
    { NULL, longer, INTEGER, AT(field), value, def, lo, hi, 0, what }
#define O_REAL(longer, field, value, def, lo, hi, what)                                            \
    { NULL, longer, REAL, AT(field), value, def, lo, hi, 0, what }
#define O_END { NULL, NULL, FLAG, 0, NULL, NULL, 0, 0, 0, NULL }

#define O_MODEL(needed)                                                                            \
    { "-m", "--model", TEXT, AT(model), "FILE", NULL, 0, 0, needed,                                \
      "the model: GGUF, or a llama2.c checkpoint" }
#define O_TOKENIZER                                                                                \
    O_TEXT("--tokenizer", tokenizer, "FILE", "tokenizer.bin of a llama2.c checkpoint")
#define O_PROMPT { "-p", "--prompt", TEXT, AT(prompt), "TEXT", NULL, 0, 0, 0, "the text" }
#define O_FILE(needed, what)                                                                       \
    { "-f", "--file", TEXT, AT(file), "FILE", NULL, 0, 0, needed, what }
#define O_COUNT(def, lo, what)                                                                     \
    { "-n", "--count", INTEGER, AT(n), "N", def, lo, BIG, 0, what }
#define O_KV O_TEXT("--kv", kv, "RECIPE", "what the cache keeps; see kvmem list (default full)")
#define O_CTX(what) O_INT("--ctx", ctx, "N", NULL, 1, BIG, what)
#define O_ROPE_CTX O_CTX("context that RoPE is set up for (default the model's)")
#define O_THREADS                                                                                  \
    { "-t", "--threads", INTEGER, AT(threads), "N", "0", 0, 1024, 0, "threads; 0: all processors" }
#define O_MAX_BYTES                                                                                \
    { NULL, "--max-bytes", SIZE, AT(max_bytes), "SIZE", NULL, 1, 1e18, 0,                          \
      "hard ceiling of the cache's memory, as 64MiB (default none)" }
#define O_BACKEND                                                                                  \
    O_TEXT("--backend", backend, "NAME", "plain, avx2, avx512 or neon (default the best here)")
#define O_JSON O_FLAG("--json", json, "print JSON")
#define O_JSON_SUMMARY O_FLAG("--json", json, "the summary on stderr as JSON")
#define O_NO_BOS O_FLAG("--no-bos", no_bos, "add no begin or end token")
#define O_SPECIAL                                                                                  \
    O_FLAG("--special", special, "names in the text such as <|im_end|> are control tokens")
#define O_TOKENS O_TEXT("--tokens", tokens, "IDS", "token ids: 1,2,3")
#define O_TOKENS_FILE                                                                              \
    O_TEXT("--tokens-file", tokens_file, "FILE", "token ids from a file; - is stdin")
#define O_SAMPLING                                                                                 \
    O_REAL("--temp", temp, "T", "0.8", 0, 100, "temperature; 0: always the likeliest token"),      \
    O_INT("--top-k", top_k, "K", "40", 0, BIG, "draw from the K likeliest; 0: all"),               \
    O_REAL("--top-p", top_p, "P", "0.95", 0, 1, "draw from the likeliest that sum to P"),          \
    O_REAL("--min-p", min_p, "P", "0.05", 0, 1, "drop tokens below P of the likeliest"),           \
    O_REAL("--repeat-penalty", repeat, "R", "1", 0.01, 100, "divide logits of recent tokens"),     \
    O_INT("--repeat-last", repeat_last, "N", "64", 0, 65536, "how many tokens are recent"),        \
    O_INT("--seed", seed, "S", "0", 0, 9e15, "same seed, same text")

typedef struct command {
    const char *name;
    int (*run)(const args *a);
    const option *options;
    int min_words, max_words;
    const char *usage, *what, *help, *example[2];
} command;

/* Whole text to number; 0 if anything is left over. */
static int to_integer(const char *s, int64_t *v) {
    char *end;
    errno = 0;
    *v = strtoll(s, &end, 10);
    return !isspace((unsigned char)*s) && end != s && !*end && !errno;
}
static int to_real(const char *s, double *v) {
    char *end;
    errno = 0;
    *v = strtod(s, &end);
    return !isspace((unsigned char)*s) && end != s && !*end && *v - *v == 0;
}
static int to_size(const char *s, double *v) { /* 1048576, 1024K, 1KiB, 1.5MiB, 2G */
    static const char letters[] = "KMGT";
    char *end;
    const char *u;
    errno = 0;
    *v = strtod(s, &end);
    if (isspace((unsigned char)*s) || end == s || !(*v - *v == 0)) return 0;
    if (*end && (u = strchr(letters, toupper((unsigned char)*end))) != NULL) {
        int i;
        for (i = 0; i <= (int)(u - letters); i++) *v *= 1024;
        end++;
        if (end[0] == 'i' && end[1] == 'B') end += 2;
        else if (*end == 'B') end++;
    } else if (*end == 'B') {
        end++;
    }
    return !*end;
}

/* The number of edits between two words, for "did you mean". */
static int distance(const char *a, const char *b) {
    int row[40], i, j, n = (int)strlen(b);
    if (n > 38 || strlen(a) > 38) return 99;
    for (j = 0; j <= n; j++) row[j] = j;
    for (i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (j = 1; j <= n; j++) {
            const int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
            if (change < row[j]) row[j] = change;
        }
    }
    return row[n];
}
typedef struct nearest { const char *word; int distance; } nearest;
static void consider(nearest *best, const char *typed, const char *known) {
    const int d = distance(typed, known);
    if (d <= 1 + (int)strlen(known) / 3 && (!best->word || d < best->distance)) {
        best->word = known;
        best->distance = d;
    }
}

static int set_option(args *a, const option *o, const char *name, const char *value) {
    void *field = (char *)a + o->at;
    double v = 0;
    int64_t i = 0;
    switch (o->kind) {
    case TEXT: *(const char **)field = value; return OK;
    case TEXTS: {
        texts *t = (texts *)field;
        if (t->n == MAX_LIST) return misuse("%s: given more than %d times", name, MAX_LIST);
        t->item[t->n++] = value;
        return OK;
    }
    case FLAG: *(int *)field = 1; return OK;
    case INTEGER:
    case MAYBE_INTEGER:
        if (!to_integer(value, &i)) return misuse("%s: '%s' is not a whole number", name, value);
        v = (double)i;
        break;
    case REAL:
        if (!to_real(value, &v)) return misuse("%s: '%s' is not a number", name, value);
        break;
    case SIZE:
        if (!to_size(value, &v))
            return misuse("%s: '%s' is not a size such as 1048576, 512KiB or 1.5GiB", name, value);
        break;
    }
    if (!(v >= o->lo && v <= o->hi) || (o->kind == SIZE && v >= (double)SIZE_MAX))
        return misuse("%s: %s is outside of %g to %g", name, value, o->lo, o->hi);
    if (o->kind == REAL) *(double *)field = v;
    else if (o->kind == SIZE) *(size_t *)field = (size_t)v;
    else *(int64_t *)field = i;
    return OK;
}

static const option *find_option(const command *c, const char *name, size_t len) {
    const option *o;
    for (o = c->options; o->what; o++) {
        if (o->name && strlen(o->name) == len && !memcmp(o->name, name, len)) return o;
        if (o->longer && strlen(o->longer) == len && !memcmp(o->longer, name, len)) return o;
    }
    return NULL;
}

static void print_help(const command *c) {
    const option *o;
    put("kvmem %s - %s\n\nusage: kvmem %s %s\n\n%s\n\noptions\n", c->name, c->what, c->name,
        c->usage, c->help);
    for (o = c->options; o->what; o++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s%s%s", o->name ? o->name : "   ",
                 o->name && o->longer ? ", " : o->longer ? " " : "", o->longer ? o->longer : "",
                 o->value ? " " : "", o->value ? o->value : "");
        put("  %-26s %s%s", left, o->what, o->needed ? " (needed)" : "");
        if (o->def) put(" (default %s)", o->def);
        put("\n");
    }
    put("  %-26s %s\n\nexamples\n  %s\n  %s\n", "    --help", "this text", c->example[0],
        c->example[1]);
}

/* "kvmem eval --kv 'h2o budget=64'": what was typed, words with spaces in quotes. */
static void command_line(char *line, size_t size, const char *name, int argc, char **argv) {
    size_t n;
    int i;
    snprintf(line, size, "kvmem %s", name);
    for (i = 0; i < argc; i++) {
        const char *quote = argv[i][strcspn(argv[i], " '\"$*?;&|<>()")] ? "\"" : "";
        n = strlen(line);
        snprintf(line + n, size - n, " %s%s%s", quote, argv[i], quote);
    }
}
/* Fills a. Returns OK, MISUSED, or -1 when only the help was wanted (it is in `out`). */
static int parse_args(const command *c, args *a, int argc, char **argv) {
    const option *o;
    int i, only_words = 0, status;
    memset(a, 0, sizeof *a);
    a->ctx = a->chunk = a->first = -1;
    command_line(a->line, sizeof a->line, c->name, argc, argv);
    a->word = (const char **)grow(NULL, (size_t)argc + 1, sizeof *a->word);
    for (o = c->options; o->what; o++)
        if (o->def && (status = set_option(a, o, o->longer ? o->longer : o->name, o->def)) != OK)
            return status;
    for (i = 0; i < argc; i++) {
        const char *t = argv[i], *equals = strchr(t, '='), *value = NULL;
        if (only_words || t[0] != '-' || !t[1]) { a->word[a->n_words++] = t; continue; }
        if (!strcmp(t, "--")) { only_words = 1; continue; }
        if (!strcmp(t, "--help") || !strcmp(t, "-h")) { print_help(c); return -1; }
        o = find_option(c, t, t[1] == '-' && equals ? (size_t)(equals - t) : strlen(t));
        if (!o) {
            nearest near = { NULL, 0 };
            for (o = c->options; o->what; o++) if (o->longer) consider(&near, t, o->longer);
            if (near.word) return misuse("unknown option %s; did you mean %s?", t, near.word);
            return misuse("unknown option %s", t);
        }
        if (t[1] == '-' && equals) {
            value = equals + 1;
            if (o->kind == FLAG) return misuse("%s takes no value", o->longer);
        } else if (o->kind == MAYBE_INTEGER) {
            if (i + 1 < argc && isdigit((unsigned char)argv[i + 1][0])) value = argv[++i];
        } else if (o->kind != FLAG) {
            if (i + 1 == argc) return misuse("%s needs a value: %s", t, o->value);
            value = argv[++i];
        }
        if (o->kind == MAYBE_INTEGER) a->use_chunk = 1;
        if ((value || o->kind == FLAG) && (status = set_option(a, o, t, value)) != OK)
            return status;
    }
    for (o = c->options; o->what; o++)
        if (o->needed && !*(const char *const *)((const char *)a + o->at))
            return misuse("%s %s is needed: %s", o->name ? o->name : o->longer, o->value, o->what);
    if (a->n_words < c->min_words)
        return misuse("an argument is missing; usage: kvmem %s %s", c->name, c->usage);
    if (a->n_words > c->max_words) return misuse("unexpected argument '%s'", a->word[c->max_words]);
    return OK;
}

/* Ids separated by commas or white space, in brackets or not. */
static int parse_ids(ids *list, const char *what, const char *s, size_t len) {
    size_t i = 0, k;
    while (i < len) {
        char digits[16];
        int64_t v;
        if (isspace((unsigned char)s[i]) || strchr(",[]", s[i]) || !s[i]) {
            if (!s[i]) return fail("%s: holds a NUL byte", what);
            i++;
            continue;
        }
        for (k = i; k < len && s[k] && !isspace((unsigned char)s[k]) && !strchr(",[]", s[k]);)
            k++;
        snprintf(digits, sizeof digits, "%.*s", (int)(k - i < 15 ? k - i : 15), s + i);
        if (!to_integer(digits, &v) || v < 0 || v > INT_MAX)
            return fail("%s: '%s' is not a token id", what, digits);
        if (list->n == INT_MAX) return fail("%s: too many token ids", what);
        if (list->n == list->cap) {
            list->cap = list->cap > INT_MAX / 2 ? INT_MAX : 2 * list->cap + 256;
            list->id = (int *)grow(list->id, (size_t)list->cap, sizeof *list->id);
        }
        list->id[list->n++] = (int)v;
        i = k;
    }
    return OK;
}

/* ==== >>loading : models, tokenizers, recipes, sessions ======================================= */

/* A model and the files that it borrows. For vocabularies alone only `gguf` and `own` are open. */
typedef struct loaded {
    file file, tokenizer_file;
    kvmem_model model;
    kvmem_gguf gguf;
    kvmem_tokenizer own;
    const kvmem_tokenizer *tokenizer; /* NULL: none */
} loaded;

static void unload(loaded *l) {
    kvmem_tokenizer_close(&l->own);
    kvmem_gguf_close(&l->gguf);
    kvmem_model_close(&l->model);
    file_close(&l->tokenizer_file);
    file_close(&l->file);
}
static int is_gguf(const file *f) { return f->size >= 4 && !memcmp(f->bytes, "GGUF", 4); }

static int load_files(loaded *l, const args *a) {
    memset(l, 0, sizeof *l);
    if (file_open(&l->file, a->model)) return FAILED;
    if (!l->file.size) return fail("%s: is empty, not a model", a->model);
    if (!a->tokenizer) return OK;
    if (is_gguf(&l->file))
        return fail("--tokenizer %s: %s is a GGUF file, which has its tokenizer inside",
                    a->tokenizer, a->model);
    if (file_open(&l->tokenizer_file, a->tokenizer)) return FAILED;
    return l->tokenizer_file.size ? OK : fail("%s: is empty, not a tokenizer", a->tokenizer);
}
/* A whole model. wants_text: its tokenizer must be usable, too. */
static int load_model(loaded *l, const args *a, int wants_text) {
    const kvmem_tokenizer *t = &l->model.tokenizer;
    if (load_files(l, a)) return FAILED;
    if (kvmem_model_open(&l->model, l->file.bytes, l->file.size, l->tokenizer_file.bytes,
                         l->tokenizer_file.size, NULL) != KVMEM_OK)
        return fail("%s: %s", a->model, l->model.error.text);
    if (t->kind != KVMEM_VOCAB_NONE) l->tokenizer = t;
    else if (wants_text && t->error.status != KVMEM_OK)
        return fail("%s: %s", a->tokenizer ? a->tokenizer : a->model, t->error.text);
    else if (wants_text)
        return fail("%s: has no tokenizer; give one with --tokenizer FILE", a->model);
    return OK;
}
/* Only what text needs: works on GGUF files that hold nothing but a vocabulary. */
static int load_tokenizer(loaded *l, const args *a) {
    if (load_files(l, a)) return FAILED;
    if (!is_gguf(&l->file)) { unload(l); return load_model(l, a, 1); }
    if (kvmem_gguf_open(&l->gguf, l->file.bytes, l->file.size, NULL) != KVMEM_OK)
        return fail("%s: %s", a->model, l->gguf.error.text);
    if (kvmem_tokenizer_open_gguf(&l->own, &l->gguf, NULL) != KVMEM_OK)
        return fail("%s: %s", a->model, l->own.error.text);
    l->tokenizer = &l->own;
    return OK;
}

static int tokenize(const kvmem_tokenizer *t, const char *text, size_t len, unsigned flags,
                    ids *list) {
    kvmem_error error;
    size_t n = 0, i;
    int *more;
    if (kvmem_tokenize(t, text, len, flags, NULL, 0, &n, &error) != KVMEM_OK)
        return fail("%s", error.text);
    if (n > (size_t)INT_MAX) return fail("the text has too many tokens");
    more = (int *)grow(NULL, n, sizeof *more);
    if (n && kvmem_tokenize(t, text, len, flags, more, n, &n, &error) != KVMEM_OK) {
        free(more);
        return fail("%s", error.text);
    }
    for (i = 0; i < n && i < (size_t)INT_MAX; i++) { /* the list may hold earlier tokens */
        if (list->n == list->cap) {
            list->cap = list->cap + (int)(n - i < 256 ? 256 : n - i);
            list->id = (int *)grow(list->id, (size_t)list->cap, sizeof *list->id);
        }
        list->id[list->n++] = more[i];
    }
    free(more);
    return OK;
}
static unsigned text_flags(const args *a) {
    return (a->no_bos ? 0u : (unsigned)KVMEM_ADD_SPECIAL) |
           (a->special ? (unsigned)KVMEM_PARSE_SPECIAL : 0u);
}
/* The ids of -p TEXT or -f FILE. */
static int tokenize_args(const kvmem_tokenizer *t, const args *a, unsigned flags, ids *list) {
    file f;
    int status;
    if (a->prompt && a->file) return misuse("-p and -f cannot be given together");
    if (!a->file)
        return tokenize(t, a->prompt ? a->prompt : "", a->prompt ? strlen(a->prompt) : 0, flags,
                        list);
    if (file_open(&f, a->file)) return FAILED;
    status = tokenize(t, f.bytes ? (const char *)f.bytes : "", f.size, flags, list);
    file_close(&f);
    return status;
}

static int parse_recipe(const char *kv, kvmem_recipe *r) {
    kvmem_error error;
    *r = kvmem_recipe_default();
    if (kv && kvmem_recipe_parse(r, kv, &error) != KVMEM_OK)
        return misuse("--kv \"%s\": %s", kv, error.text);
    return OK;
}
static int find_backend(const args *a, const kvmem_backend **b) {
    *b = kvmem_backend_cpu(a->backend);
    if (!*b)
        return misuse("--backend %s: not one of plain, avx2, avx512, neon, or not on this machine",
                      a->backend);
    return OK;
}
/* The session's configuration from the options; r must outlive it. */
static int session_config(const args *a, const kvmem_recipe *r, kvmem_session_config *cfg) {
    *cfg = kvmem_session_config_default();
    cfg->recipe = r;
    cfg->max_bytes = a->max_bytes;
    cfg->n_ctx = a->ctx > 0 ? (int)a->ctx : 0;
    cfg->threads = (int)a->threads;
    return find_backend(a, &cfg->backend);
}
static int open_session(kvmem_session *s, const kvmem_model *m, const kvmem_session_config *cfg) {
    if (kvmem_session_init(s, m, cfg) != KVMEM_OK) return fail("%s", s->error.text);
    return OK;
}
static const char *recipe_text(const kvmem_recipe *r) {
    static char text[1024];
    kvmem_recipe_print(r, text, sizeof text);
    return text;
}
static void json_part(const char *key, const kvmem_bytes_part *p) {
    json_open(key, '{');
    json_int("total", (int64_t)p->total);
    json_int("k", (int64_t)p->k);
    json_int("v", (int64_t)p->v);
    json_int("meta", (int64_t)p->meta);
    json_int("stats", (int64_t)p->stats);
    json_int("scratch", (int64_t)p->scratch);
    json_close();
}
static void json_bytes(const char *key, const kvmem_bytes *b) {
    json_open(key, '{');
    json_part("live", &b->live);
    json_part("peak", &b->peak);
    json_int("limit", (int64_t)b->limit);
    json_int("entries", (int64_t)b->entries);
    json_int("tokens", b->tokens);
    json_int("full_f16", (int64_t)b->full);
    json_int("full_f32", 2 * (int64_t)b->full);
    json_close();
}
/* What a full cache would have taken beside what this one took. */
static void put_bytes_table(const kvmem_bytes *b) {
    const kvmem_bytes_part *part[2];
    int i;
    part[0] = &b->live;
    part[1] = &b->peak;
    put("%-10s %12s %12s %12s %12s %12s %12s\n", "cache", "total", "K", "V", "metadata",
        "statistics", "scratch");
    for (i = 0; i < 2; i++) {
        put("%-10s %12s", i ? "peak" : "live", human(part[i]->total));
        put(" %12s %12s", human(part[i]->k), human(part[i]->v));
        put(" %12s %12s %12s\n", human(part[i]->meta), human(part[i]->stats),
            human(part[i]->scratch));
    }
    put("%-10s %12s as f16, %s as f32 for %lld tokens", "full", human(b->full), human(2 * b->full),
        (long long)b->tokens);
    if (b->full)
        put("; K and V here are %.1f%% of f16",
            100.0 * (double)(b->live.k + b->live.v) / (double)b->full);
    put("\n%-10s %12s\n", "limit", b->limit ? human(b->limit) : "none");
}

/* ==== >>run : continue a text ================================================================= */

/* A model that writes: what run and chat share. */
typedef struct writer {
    loaded l;
    kvmem_recipe recipe;
    kvmem_session session;
    kvmem_sampler sampler;
    kvmem_stream stream;
    char *piece;             /* room for one token's text */
    ids reply;               /* tokens of the last reply */
    int64_t prompt_tokens, generated;
    double prefill, decode;  /* seconds */
    int ended;               /* the model ended its text itself */
} writer;

static void writer_close(writer *w) {
    free(w->piece);
    free(w->reply.id);
    kvmem_sampler_free(&w->sampler);
    kvmem_session_free(&w->session);
    unload(&w->l);
}
static int writer_open(writer *w, const args *a) {
    kvmem_session_config cfg;
    kvmem_sampler_config draw = kvmem_sampler_config_default();
    int status;
    memset(w, 0, sizeof *w);
    if ((status = parse_recipe(a->kv, &w->recipe)) != OK) return status;
    if ((status = session_config(a, &w->recipe, &cfg)) != OK) return status;
    if ((status = load_model(&w->l, a, 1)) != OK) return status;
    if ((status = open_session(&w->session, &w->l.model, &cfg)) != OK) return status;
    draw.temperature = (float)a->temp;
    draw.top_k = (int)a->top_k;
    draw.top_p = (float)a->top_p;
    draw.min_p = (float)a->min_p;
    draw.repeat_penalty = (float)a->repeat;
    draw.repeat_last = (int)a->repeat_last;
    draw.seed = (uint64_t)a->seed;
    if (kvmem_sampler_init(&w->sampler, &draw, w->l.model.n_vocab, NULL) != KVMEM_OK)
        return fail("%s", w->sampler.error.text);
    w->piece = (char *)grow(NULL, 3 * (w->l.tokenizer->max_piece + 4), 1);
    return OK;
}
static int writer_feed(writer *w, const int *id, int n, kvmem_phase phase) {
    const double start = now();
    int i;
    if (n && kvmem_session_feed(&w->session, id, n, phase, NULL, NULL) != KVMEM_OK)
        return fail("%s", w->session.error.text);
    for (i = 0; i < n; i++) kvmem_sampler_accept(&w->sampler, id[i]);
    if (phase == KVMEM_DECODE) w->decode += now() - start;
    else { w->prefill += now() - start; w->prompt_tokens += n; }
    return OK;
}
/* Writes up to n tokens to stdout as they come and feeds all of them; the token that ends the text
   is neither printed nor fed. */
static int writer_write(writer *w, int64_t n) {
    int64_t i;
    int status, id;
    w->reply.n = 0;
    w->ended = 0;
    for (i = 0; i < n; i++) {
        const double start = now();
        if (kvmem_sample(&w->sampler, w->session.logits, &id) != KVMEM_OK)
            return fail("%s", w->sampler.error.text);
        w->decode += now() - start;
        if (kvmem_token_is_eog(w->l.tokenizer, id) || id == w->l.tokenizer->bos) {
            w->ended = 1;
            break;
        }
        put_bytes(w->piece, kvmem_stream_push(&w->stream, id, w->piece));
        if ((status = flush_out(stdout)) != OK) return status;
        if (w->reply.n == w->reply.cap)
            w->reply.id = (int *)grow(w->reply.id, (size_t)(w->reply.cap = 2 * w->reply.cap + 256),
                                      sizeof(int));
        w->reply.id[w->reply.n++] = id;
        w->generated++;
        if ((status = writer_feed(w, &id, 1, KVMEM_DECODE)) != OK) return status;
    }
    put_bytes(w->piece, kvmem_stream_flush(&w->stream, w->piece));
    return flush_out(stdout);
}
static double rate(int64_t tokens, double seconds) {
    return seconds > 0 ? (double)tokens / seconds : 0;
}

/* After the text, on stderr. */
static int writer_summary(const writer *w, int as_json) {
    kvmem_bytes b;
    kvmem_session_bytes(&w->session, &b);
    if (as_json) {
        json_open(NULL, '{');
        json_text("recipe", recipe_text(&w->recipe));
        json_int("prompt_tokens", w->prompt_tokens);
        json_int("generated_tokens", w->generated);
        json_real("prefill_seconds", w->prefill);
        json_real("decode_seconds", w->decode);
        json_real("prefill_tokens_per_second", rate(w->prompt_tokens, w->prefill));
        json_real("decode_tokens_per_second", rate(w->generated, w->decode));
        json_text("stop", w->ended ? "end of text" : "count");
        json_bytes("cache", &b);
        json_close();
        return flush_out(stderr);
    }
    put("\nrecipe     %s\n", recipe_text(&w->recipe));
    put("prompt     %lld tokens, %.3f s, %.1f tokens/s\n", (long long)w->prompt_tokens, w->prefill,
        rate(w->prompt_tokens, w->prefill));
    put("generated  %lld tokens, %.3f s, %.1f tokens/s%s\n", (long long)w->generated, w->decode,
        rate(w->generated, w->decode), w->ended ? ", ended by the model" : "");
    if (w->session.cache.tokens > w->session.n_ctx)
        put("note       %lld tokens are more than the context of %d\n",
            (long long)w->session.cache.tokens, w->session.n_ctx);
    put_bytes_table(&b);
    return flush_out(stderr);
}

static int load_cache(kvmem_session *s, const char *path) {
    file f;
    int status = OK;
    if (file_open(&f, path)) return FAILED;
    if (kvmem_session_load(s, f.bytes, f.size) != KVMEM_OK)
        status = fail("%s: %s", path, s->error.text);
    file_close(&f);
    return status;
}
/* Tokens to generate. For llama2.c checkpoints -n counts as llama2.c's run does, prompt included, so
   that both print the same text. */
static int64_t run_count(const writer *w, int64_t n, int prompt) {
    if (w->l.model.llama2c >= 0) n -= prompt > 0 ? prompt - 1 : 0;
    return n > 0 ? n : 0;
}
static int run_writer(writer *w, const args *a, ids *prompt) {
    const int loaded_before = a->load != NULL;
    unsigned flags = text_flags(a);
    int i, status;
    if (loaded_before && (status = load_cache(&w->session, a->load)) != OK) return status;
    if (loaded_before && w->session.cache.tokens > 0) flags &= ~(unsigned)KVMEM_ADD_SPECIAL;
    if ((status = tokenize_args(w->l.tokenizer, a, flags, prompt)) != OK) return status;
    if (!prompt->n)
        return fail(
            loaded_before
                ? "a loaded cache needs a prompt to go on with: -p TEXT or -f FILE"
                : "the prompt has no tokens, and this model has no begin token to start from");
    if ((status = writer_feed(w, prompt->id, prompt->n, KVMEM_PROMPT_END)) != OK) return status;
    kvmem_stream_init(&w->stream, w->l.tokenizer,
                      (loaded_before ? 0u : (unsigned)KVMEM_TEXT_START) |
                          (a->special ? (unsigned)KVMEM_SHOW_SPECIAL : 0u));
    for (i = 0; i < prompt->n; i++)
        put_bytes(w->piece, kvmem_stream_push(&w->stream, prompt->id[i], w->piece));
    if ((status = flush_out(stdout)) != OK) return status;
    if ((status = writer_write(w, run_count(w, a->n, prompt->n))) != OK) return status;
    put("\n");
    if ((status = flush_out(stdout)) != OK) return status;
    if (a->save && kvmem_cache_save_file(&w->session.cache, a->save) != KVMEM_OK)
        return fail("%s: %s", a->save, w->session.cache.error.text);
    return writer_summary(w, a->json);
}
static int cmd_run(const args *a) {
    writer w;
    ids prompt;
    int status;
    memset(&prompt, 0, sizeof prompt);
    status = writer_open(&w, a);
    if (status == OK) status = run_writer(&w, a, &prompt);
    writer_close(&w);
    free(prompt.id);
    return status;
}

/* ==== >>chat : a conversation that stays in the cache ========================================= */

typedef struct talk {
    kvmem_chat kind;
    kvmem_message *message;
    size_t n, cap;
    char *fed;      /* the conversation as far as it was fed, replies apart */
    char *reply;    /* the last reply, trimmed; it stands behind `fed` in the cache */
} talk;

static char *copy_text(const char *s, size_t n) {
    char *t = (char *)grow(NULL, n + 1, 1);
    memcpy(t, s, n);
    t[n] = 0;
    return t;
}
static void talk_add(talk *t, const char *role, char *content) { /* takes content */
    if (t->n == t->cap)
        t->message = (kvmem_message *)grow(t->message, t->cap = 2 * t->cap + 8, sizeof *t->message);
    t->message[t->n].role = role;
    t->message[t->n++].content = content;
}
static void talk_clear(talk *t) {
    size_t i;
    for (i = 0; i < t->n; i++) { /* contents are ours */
        union { const char *c; char *p; } u;
        u.c = t->message[i].content;
        free(u.p);
    }
    t->n = 0;
    free(t->fed);
    free(t->reply);
    t->fed = t->reply = NULL;
}
static int talk_format(const talk *t, char **text) {
    kvmem_error error;
    size_t len = 0;
    kvmem_status s = kvmem_chat_format(t->kind, t->message, t->n, 1, NULL, 0, &len, &error);
    *text = NULL;
    if (s == KVMEM_OK) {
        *text = (char *)grow(NULL, len + 1, 1);
        s = kvmem_chat_format(t->kind, t->message, t->n, 1, *text, len + 1, &len, &error);
    }
    if (s == KVMEM_OK) return OK;
    free(*text);
    *text = NULL;
    return fail("%s", error.text);
}
/* What of the conversation's text is not in the cache yet: text behind `fed` and the reply. NULL if
   the format rewrites what was said before, so that all must be fed again. */
static const char *talk_rest(const talk *t, const char *text) {
    const char *p = text;
    if (!t->fed || strncmp(text, t->fed, strlen(t->fed)) != 0) return NULL;
    p += strlen(t->fed);
    while (isspace((unsigned char)*p) && isspace((unsigned char)*t->reply) == 0 && *p) p++;
    return strncmp(p, t->reply, strlen(t->reply)) ? NULL : p + strlen(t->reply);
}
/* One turn: the user's line is told, the answer is written. */
static int talk_turn(talk *t, writer *w, const args *a) {
    ids list;
    char *text;
    const char *rest;
    size_t from, to;
    int status;
    memset(&list, 0, sizeof list);
    if ((status = talk_format(t, &text)) != OK) return status;
    rest = talk_rest(t, text);
    if (!rest) kvmem_session_clear(&w->session);
    status =
        tokenize(w->l.tokenizer, rest ? rest : text, strlen(rest ? rest : text),
                 (unsigned)KVMEM_PARSE_SPECIAL | (rest ? 0u : (unsigned)KVMEM_ADD_SPECIAL), &list);
    if (status == OK && kvmem_cache_mark(&w->session.cache, KVMEM_MARK_TURN) != KVMEM_OK) /* for segment=turn */
        status = fail("%s", w->session.cache.error.text);
    if (status == OK) status = writer_feed(w, list.id, list.n, KVMEM_PROMPT_END);
    free(list.id);
    free(t->fed);
    t->fed = text;
    if (status != OK) return status;
    kvmem_stream_init(&w->stream, w->l.tokenizer, 0);
    if ((status = writer_write(w, a->n)) != OK) return status;
    put("\n");
    if ((status = flush_out(stdout)) != OK) return status;
    to = kvmem_detokenize(w->l.tokenizer, w->reply.id, (size_t)w->reply.n, 0, NULL, 0);
    text = (char *)grow(NULL, to + 1, 1);
    kvmem_detokenize(w->l.tokenizer, w->reply.id, (size_t)w->reply.n, 0, text, to);
    for (from = 0; from < to && isspace((unsigned char)text[from]); from++) {}
    while (to > from && isspace((unsigned char)text[to - 1])) to--;
    free(t->reply);
    t->reply = copy_text(text + from, to - from);
    free(text);
    talk_add(t, "assistant", copy_text(t->reply, strlen(t->reply)));
    return OK;
}
/* A line without its end, or NULL at the end of the input. The caller frees it. */
static char *read_line(void) {
    size_t len = 0, cap = 0;
    char *s = NULL;
    int ch;
    while ((ch = getchar()) != EOF && ch != '\n') {
        if (len + 2 > cap) s = (char *)grow(s, cap = 2 * cap + 256, 1);
        if (ch) s[len++] = (char)ch;
    }
    if (ch == EOF && !len) { free(s); return NULL; }
    while (len && s[len - 1] == '\r') len--;
    if (!s) s = (char *)grow(NULL, 1, 1);
    s[len] = 0;
    return s;
}
static void talk_system(talk *t, const args *a) {
    if (a->system) talk_add(t, "system", copy_text(a->system, strlen(a->system)));
}
/* Lines that begin with a slash. 1: go on, 0: leave. */
static int talk_command(talk *t, writer *w, const args *a, const char *line) {
    kvmem_bytes b;
    if (!strcmp(line, "/exit")) return 0;
    if (!strcmp(line, "/bytes")) {
        kvmem_session_bytes(&w->session, &b);
        put_bytes_table(&b);
    } else if (!strcmp(line, "/clear")) {
        kvmem_session_clear(&w->session);
        talk_clear(t);
        talk_system(t, a);
    } else {
        put("/bytes: what the cache takes   /clear: forget everything   /exit: leave\n");
    }
    flush_out(stderr);
    return 1;
}
static int talk_loop(talk *t, writer *w, const args *a) {
    const int prompts = is_terminal(stdin) && is_terminal(stderr);
    int status = OK, more = 1;
    talk_system(t, a);
    while (status == OK && more) {
        char *line;
        if (prompts) { fputs("> ", stderr); fflush(stderr); }
        line = read_line();
        if (!line) break;
        if (line[0] == '/') more = talk_command(t, w, a, line);
        if (line[0] == '/' || !line[0]) { free(line); continue; }
        talk_add(t, "user", line);
        status = talk_turn(t, w, a);
    }
    return status == OK ? writer_summary(w, a->json) : status;
}
static int find_chat(const args *a, const writer *w, kvmem_chat *kind) {
    kvmem_error error;
    const char *name;
    int i;
    if (!a->chat_template) {
        if (kvmem_chat_of_gguf(&w->l.model.gguf, kind, &error) == KVMEM_OK) return OK;
        return fail("%s: %s; give one with --template NAME, or use kvmem run", a->model,
                    error.text);
    }
    for (i = 1; (name = kvmem_chat_name((kvmem_chat)i)) != NULL; i++)
        if (!strcmp(name, a->chat_template)) { *kind = (kvmem_chat)i; return OK; }
    put("--template: '%s' is not one of", a->chat_template);
    for (i = 1; (name = kvmem_chat_name((kvmem_chat)i)) != NULL; i++) put(" %s", name);
    return misuse("%.*s", (int)out.len, out.text);
}
static int cmd_chat(const args *a) {
    writer w;
    talk t;
    int status;
    memset(&t, 0, sizeof t);
    status = writer_open(&w, a);
    if (status == OK) status = find_chat(a, &w, &t.kind);
    if (status == OK) status = talk_loop(&t, &w, a);
    talk_clear(&t);
    free(t.message);
    writer_close(&w);
    return status;
}

/* ==== >>measure : what a recipe costs in quality ============================================== */

/* Divergences are counted in bins of 1/16 octave from 2^-40 to 2^16, so a percentile is known
   to 4.5 % without keeping the values. */
#define KL_BINS (56 * 16 + 1)
typedef struct tally {
    int64_t n, same;        /* predictions; how many have the same likeliest token */
    double nll_full, nll, kl, kl_max;
    int64_t bin[KL_BINS];   /* bin 0: below 2^-40 */
} tally;
#define BUCKETS 26          /* [0,64), [64,128), [128,256), ... */

typedef struct measure {
    loaded l;
    kvmem_recipe recipe;
    kvmem_session full, kv;  /* kv is not opened when the recipe is full */
    int two;
    ids text;
    float *row;              /* (block, n_vocab) of the full cache, the block in flight */
    int at, end;             /* rows of the block predict tokens at + 1 + i, up to end */
    int chunk, chunks, prompt, block;
    const char *bad;         /* why a row could not be used */
    tally all, bucket[BUCKETS];
    int base;                /* first token of the chunk: positions count from it */
    double shown;            /* when progress was printed */
} measure;

static double percentile(const tally *t, double p) {
    const double rank = p * (double)t->n;
    double seen = 0;
    int i;
    for (i = 0; i < KL_BINS; i++) {
        seen += (double)t->bin[i];
        if (seen >= rank && t->n) {
            const double edge = ldexp(exp2((double)i / 16), -40); /* upper edge */
            return edge < t->kl_max ? edge : t->kl_max;
        }
    }
    return t->kl_max;
}
static void tally_add(tally *t, double nll_full, double nll, double kl, int same) {
    int i = 0;
    t->n++;
    t->same += same;
    t->nll_full += nll_full;
    t->nll += nll;
    t->kl += kl;
    if (kl > t->kl_max) t->kl_max = kl;
    if (kl > ldexp(1.0, -40)) i = 1 + (int)(16 * (log2(kl) + 40));
    t->bin[i < KL_BINS ? i : KL_BINS - 1]++;
}
/* log of the sum of exp(logits), in doubles, and the likeliest token. */
static double log_sum(const float *logits, int n, int *top) {
    double sum = 0;
    int i;
    *top = 0;
    for (i = 1; i < n; i++) if (logits[i] > logits[*top]) *top = i;
    for (i = 0; i < n; i++) sum += exp((double)logits[i] - (double)logits[*top]);
    return (double)logits[*top] + log(sum);
}
/* Row i of the block: p from the full cache, q from the recipe's.
   KL(p || q) = sum p (log p - log q). */
static int measure_row(void *user, int i, const float *q) {
    measure *m = (measure *)user;
    const int n = m->l.model.n_vocab, to = m->at + 1 + i;
    const float *p = m->row + (size_t)i * (size_t)n;
    double sum_p, sum_q, kl = 0;
    int t, b = 0, top_p, top_q;
    if (to >= m->end) return 0;
    sum_p = log_sum(p, n, &top_p);
    sum_q = log_sum(q, n, &top_q);
    if (!(sum_p - sum_p == 0) || !(sum_q - sum_q == 0)) {
        m->bad = "the logits are not finite";
        return 1;
    }
    for (t = 0; t < n && m->two; t++) {
        const double lp = (double)p[t] - sum_p;
        if (lp > -745) kl += exp(lp) * (lp - ((double)q[t] - sum_q));
    }
    if (kl < 0) kl = 0; /* rounding */
    for (t = (to - m->base) / 64; t; t /= 2) b++;
    if (b >= BUCKETS) b = BUCKETS - 1;
    t = m->text.id[to];
    tally_add(&m->all, sum_p - (double)p[t], sum_q - (double)q[t], kl, top_p == top_q);
    tally_add(&m->bucket[b], sum_p - (double)p[t], sum_q - (double)q[t], kl, top_p == top_q);
    return 0;
}
static int keep_row(void *user, int i, const float *p) {
    measure *m = (measure *)user;
    const size_t n = (size_t)m->l.model.n_vocab;
    memcpy(m->row + (size_t)i * n, p, n * sizeof *p);
    return m->two ? 0 : measure_row(m, i, p);
}
/* The same n tokens to both caches; rows are scored when `scored`. */
static int measure_feed(measure *m, const int *id, int n, kvmem_phase phase, int scored) {
    kvmem_session *s = &m->full;
    kvmem_status status = kvmem_session_feed(s, id, n, phase, scored ? keep_row : NULL, m);
    if (status == KVMEM_OK && m->two) {
        s = &m->kv;
        status = kvmem_session_feed(s, id, n, phase, scored ? measure_row : NULL, m);
    }
    if (m->bad) return fail("at token %d: %s", m->at, m->bad);
    return status == KVMEM_OK ? OK : fail("at token %d: %s", m->at, s->error.text);
}
static void progress(measure *m, int force) {
    if (!is_terminal(stderr) || (!force && now() - m->shown < 0.2)) return;
    m->shown = now();
    if (force) fprintf(stderr, "\r%40s\r", "");
    else fprintf(stderr, "\r%d of %d tokens", m->at, m->text.n);
    fflush(stderr);
}
/* Tokens [from, end) in fresh caches: the prompt, then the scored rest in blocks. */
static int measure_chunk(measure *m, int from, int end, int bos) {
    const int scored_from = from + m->prompt;
    int status, first = m->text.id[from];
    m->base = m->at = from;
    m->end = end;
    kvmem_session_clear(&m->full);
    if (m->two) kvmem_session_clear(&m->kv);
    if (bos) m->text.id[from] = m->l.tokenizer->bos;
    status = measure_feed(m, m->text.id + from, m->prompt, KVMEM_PROMPT_END, 0);
    m->text.id[from] = first;
    for (m->at = scored_from; status == OK && m->at + 1 < end; m->at += m->block) {
        const int left = end - 1 - m->at; /* the last token predicts nothing */
        progress(m, 0);
        status =
            measure_feed(m, m->text.id + m->at, left < m->block ? left : m->block, KVMEM_DECODE, 1);
    }
    return status;
}
/* The text, cut as the options say: chunks of `chunk` tokens with `prompt` unscored ones ahead. */
static int measure_plan(measure *m, const args *a) {
    int64_t chunk;
    int status;
    if (a->stream && a->use_chunk) return misuse("--chunk and --stream cannot be given together");
    if ((status = tokenize_args(m->l.tokenizer, a, text_flags(a), &m->text)) != OK) return status;
    if (a->n && m->text.n > a->n) m->text.n = (int)a->n;
    if (a->stream) chunk = a->ctx > 0 ? a->ctx : m->text.n;
    else
        chunk = a->chunk > 0                   ? a->chunk
                : a->ctx > 0                   ? a->ctx
                : m->l.model.n_ctx_train < 512 ? m->l.model.n_ctx_train
                                               : 512;
    if (chunk > m->text.n) chunk = m->text.n;
    m->chunk = (int)chunk;
    m->prompt = a->first > 0 ? (int)a->first : a->stream ? 1 : m->chunk / 2;
    if (m->prompt < 1) m->prompt = 1;
    if (m->chunk < m->prompt + 2)
        return fail("%s: %d tokens in one piece leave nothing to score behind a prompt of %d",
                    a->file, m->chunk, m->prompt);
    m->chunks = a->stream ? 1 : m->text.n / m->chunk;
    m->block = (int)a->block;
    if (m->block > m->chunk) m->block = m->chunk;
    return OK;
}
static int measure_run(measure *m, const args *a) {
    kvmem_session_config cfg;
    kvmem_recipe full = kvmem_recipe_default();
    int status, i;
    if ((status = parse_recipe(a->kv, &m->recipe)) != OK) return status;
    if ((status = session_config(a, &m->recipe, &cfg)) != OK) return status;
    if ((status = load_model(&m->l, a, 1)) != OK) return status;
    if ((status = measure_plan(m, a)) != OK) return status;
    cfg.n_ctx = a->ctx > 0 ? (int)a->ctx : m->chunk > m->l.model.n_ctx_train ? m->chunk : 0;
    m->two = a->kv != NULL;
    if (m->two && (status = open_session(&m->kv, &m->l.model, &cfg)) != OK) return status;
    cfg.recipe = &full;
    if (m->two) cfg.max_bytes = 0;
    if ((status = open_session(&m->full, &m->l.model, &cfg)) != OK) return status;
    m->row = (float *)grow(NULL, (size_t)m->block * (size_t)m->l.model.n_vocab, sizeof(float));
    for (i = 0; i < m->chunks && status == OK; i++)
        status = measure_chunk(m, i * m->chunk, (i + 1) * m->chunk,
                               !a->no_bos && m->l.tokenizer->add_bos);
    progress(m, 1);
    return status;
}
static void measure_json_tally(const measure *m, const tally *t) {
    const double n = (double)t->n;
    json_int("tokens", t->n);
    json_real("nll_full", t->nll_full / n);
    json_real("ppl_full", exp(t->nll_full / n));
    if (!m->two) return;
    json_real("nll", t->nll / n);
    json_real("ppl", exp(t->nll / n));
    json_real("kl_mean", t->kl / n);
    json_real("kl_p99", percentile(t, 0.99));
    json_real("kl_max", t->kl_max);
    json_real("same_top1", (double)t->same / n);
}
static void bucket_range(const measure *m, int b, int *lo, int *hi) {
    *lo = b ? 32 << b : 0;
    *hi = b < 25 ? 64 << b : INT_MAX;
    if (*hi > m->chunk) *hi = m->chunk;
}
static void measure_json(const measure *m, const args *a, const kvmem_bytes *full,
                         const kvmem_bytes *kv) {
    int b, lo, hi;
    json_open(NULL, '{');
    json_text("model", a->model);
    json_text("file", a->file);
    json_text("recipe", recipe_text(&m->recipe));
    json_text("mode", a->stream ? "stream" : "chunk");
    json_int("text_tokens", m->text.n);
    json_int("chunk", m->chunk);
    json_int("chunks", m->chunks);
    json_int("prompt_tokens", m->prompt);
    json_int("block", m->block);
    measure_json_tally(m, &m->all);
    json_bytes("cache_full", full);
    if (m->two) json_bytes("cache", kv);
    json_open("positions", '[');
    for (b = 0; b < BUCKETS; b++) {
        if (!m->bucket[b].n) continue;
        bucket_range(m, b, &lo, &hi);
        json_open(NULL, '{');
        json_int("from", lo);
        json_int("to", hi);
        measure_json_tally(m, &m->bucket[b]);
        json_close();
    }
    json_close();
    json_close();
}
static void measure_row_text(const measure *m, const char *label, const tally *t, int csv) {
    const double n = (double)t->n;
    const char *const last =
        csv ? "%s,%lld,%.6f,%.6f,%.6f,%.6f,%.6g,%.6g,%.6g,%.6f\n"
            : "%-14s %8lld %9.4f %10.5g %9.4f %10.5g %10.3g %10.3g %10.3g %9.4f\n";
    const char *const one = csv ? "%s,%lld,%.6f,%.6f\n" : "%-14s %8lld %9.4f %10.5g\n";
    char line[256];
    if (m->two)
        snprintf(line, sizeof line, last, label, (long long)t->n, t->nll_full / n,
                 exp(t->nll_full / n), t->nll / n, exp(t->nll / n), t->kl / n, percentile(t, 0.99),
                 t->kl_max, (double)t->same / n);
    else
        snprintf(line, sizeof line, one, label, (long long)t->n, t->nll_full / n,
                 exp(t->nll_full / n));
    put("%s", line);
}
static void measure_table(const measure *m, const args *a, const kvmem_bytes *full,
                          const kvmem_bytes *kv) {
    char label[32];
    int b, lo, hi;
    if (!a->csv) {
        put("text     %s: %d tokens, %d %s of %d, %d of each as prompt, scored in blocks of %d\n",
            a->file, m->text.n, m->chunks, m->chunks == 1 ? "piece" : "pieces", m->chunk, m->prompt,
            m->block);
        put("recipe   %s\n", recipe_text(&m->recipe));
        put("memory   full f32 cache peak %s", human(full->peak.total));
        if (m->two)
            put(", this recipe peak %s (%.1f%%)", human(kv->peak.total),
                100.0 * (double)kv->peak.total / (double)full->peak.total);
        put("\n\n");
    }
    if (m->two)
        put(a->csv ? "%s,%s,%s,%s,%s,%s,%s,%s,%s,%s\n"
                   : "%-14s %8s %9s %10s %9s %10s %10s %10s %10s %9s\n",
            "positions", "tokens", "nll_full", "ppl_full", "nll", "ppl", "kl_mean", "kl_p99",
            "kl_max", "same_top1");
    else
        put(a->csv ? "%s,%s,%s,%s\n" : "%-14s %8s %9s %10s\n", "positions", "tokens", "nll_full",
            "ppl_full");
    for (b = 0; b < BUCKETS; b++) {
        if (!m->bucket[b].n) continue;
        bucket_range(m, b, &lo, &hi);
        snprintf(label, sizeof label, "%d-%d", lo, hi - 1);
        measure_row_text(m, label, &m->bucket[b], a->csv);
    }
    measure_row_text(m, "all", &m->all, a->csv);
}
static void measure_close(measure *m) {
    kvmem_session_free(&m->full);
    kvmem_session_free(&m->kv);
    unload(&m->l);
    free(m->row);
    free(m->text.id);
    free(m);
}
static int cmd_measure(const args *a) {
    measure *m = (measure *)grow(NULL, 1, sizeof *m);
    kvmem_bytes full, kv;
    int status;
    memset(m, 0, sizeof *m);
    status = measure_run(m, a);
    if (status == OK) {
        kvmem_session_bytes(&m->full, &full);
        if (m->two) kvmem_session_bytes(&m->kv, &kv);
        else kv = full;
        if (a->json) measure_json(m, a, &full, &kv);
        else measure_table(m, a, &full, &kv);
    }
    measure_close(m);
    return status;
}

/* ==== >>logits : raw rows for other programs ================================================== */

typedef struct row_file { FILE *f; int n_vocab, failed; unsigned char *bytes; } row_file;

static int write_row(void *user, int index, const float *logits) {
    row_file *r = (row_file *)user;
    int i;
    (void)index;
    for (i = 0; i < r->n_vocab; i++) {
        uint32_t u;
        memcpy(&u, logits + i, 4);
        r->bytes[4 * i] = (unsigned char)(u & 255);
        r->bytes[4 * i + 1] = (unsigned char)(u >> 8 & 255);
        r->bytes[4 * i + 2] = (unsigned char)(u >> 16 & 255);
        r->bytes[4 * i + 3] = (unsigned char)(u >> 24);
    }
    r->failed = fwrite(r->bytes, 4, (size_t)r->n_vocab, r->f) != (size_t)r->n_vocab;
    return r->failed;
}
/* The first `prompt` tokens as a prompt, the others one by one as if they had been generated. */
static int logits_feed(kvmem_session *s, const ids *list, int prompt, row_file *rows) {
    kvmem_status status =
        kvmem_session_feed(s, list->id, prompt, KVMEM_PROMPT_END, write_row, rows);
    int i;
    for (i = prompt; i < list->n && status == KVMEM_OK; i++)
        status = kvmem_session_feed(s, list->id + i, 1, KVMEM_DECODE, write_row, rows);
    if (rows->failed) return fail("cannot write the rows: %s", strerror(errno));
    return status == KVMEM_OK ? OK : fail("%s", s->error.text);
}
static int ids_of_args(const args *a, ids *list) {
    file f;
    int status = OK, i;
    if (a->tokens && (status = parse_ids(list, "--tokens", a->tokens, strlen(a->tokens))) != OK)
        return status;
    for (i = 0; i < a->n_words; i++)
        if ((status = parse_ids(list, "the command line", a->word[i], strlen(a->word[i]))) != OK)
            return status;
    if (!a->tokens_file) return OK;
    if (file_open(&f, a->tokens_file)) return FAILED;
    status = parse_ids(list, f.path, f.bytes ? (const char *)f.bytes : "", f.size);
    file_close(&f);
    return status;
}
static int logits_run(const args *a, loaded *l, kvmem_session *s, ids *list) {
    kvmem_session_config cfg;
    kvmem_recipe recipe;
    row_file rows;
    int status, prompt;
    if ((status = parse_recipe(a->kv, &recipe)) != OK) return status;
    if ((status = session_config(a, &recipe, &cfg)) != OK) return status;
    if (!a->tokens && !a->tokens_file)
        return misuse("--tokens LIST or --tokens-file FILE is needed");
    if ((status = ids_of_args(a, list)) != OK) return status;
    if (!list->n) return fail("no token ids were given");
    if ((status = load_model(l, a, 0)) != OK) return status;
    if ((status = open_session(s, &l->model, &cfg)) != OK) return status;
    prompt = a->first > 0 && a->first < list->n ? (int)a->first : list->n;
    rows.n_vocab = l->model.n_vocab;
    rows.failed = 0;
    rows.f = fopen(a->output, "wb");
    if (!rows.f) return fail("%s: cannot write: %s", a->output, strerror(errno));
    rows.bytes = (unsigned char *)grow(NULL, (size_t)rows.n_vocab, 4);
    status = logits_feed(s, list, prompt, &rows);
    free(rows.bytes);
    if (fclose(rows.f) && status == OK)
        status = fail("%s: cannot write: %s", a->output, strerror(errno));
    if (status != OK) remove(a->output);
    return status;
}
static int cmd_logits(const args *a) {
    loaded l;
    kvmem_session s;
    ids list;
    int status;
    memset(&l, 0, sizeof l);
    memset(&s, 0, sizeof s);
    memset(&list, 0, sizeof list);
    status = logits_run(a, &l, &s, &list);
    kvmem_session_free(&s);
    unload(&l);
    free(list.id);
    return status;
}

/* ==== >>tokens : text to ids and back ========================================================= */

static void put_piece(const char *s, size_t n) { /* quoted, on one line */
    size_t i;
    put_bytes("'", 1);
    for (i = 0; i < n; i++) {
        const unsigned char ch = (unsigned char)s[i];
        if (ch == '\'' || ch == '\\') put("\\%c", ch);
        else if (ch < 32 || ch == 127) put("\\x%02x", (unsigned)ch);
        else put_bytes(s + i, 1);
    }
    put_bytes("'", 1);
}
static void put_plain(const char *s, size_t n) { /* a piece of text on one line */
    size_t i;
    for (i = 0; i < n; i++) put_bytes((unsigned char)s[i] < 32 || s[i] == 127 ? " " : s + i, 1);
}
static int cmd_tokenize(const args *a) {
    loaded l;
    ids list;
    size_t len;
    int status, i;
    memset(&list, 0, sizeof list);
    if (!a->prompt && !a->file) return misuse("-p TEXT or -f FILE is needed");
    status = load_tokenizer(&l, a);
    if (status == OK) status = tokenize_args(l.tokenizer, a, text_flags(a), &list);
    for (i = 0; i < list.n && status == OK; i++) {
        const char *s = kvmem_token_piece(l.tokenizer, list.id[i], &len);
        put(a->pieces ? "%7d  " : i ? " %d" : "%d", list.id[i]);
        if (!a->pieces) continue;
        put_piece(s ? s : "", s ? len : 0);
        put("\n");
    }
    if (status == OK && !a->pieces) put("\n");
    unload(&l);
    free(list.id);
    return status;
}
static int detokenize_run(const args *a, loaded *l, ids *list) {
    const unsigned flags =
        (unsigned)KVMEM_TEXT_START | (a->special ? (unsigned)KVMEM_SHOW_SPECIAL : 0u);
    args from = *a;
    char *text;
    size_t len;
    int status, i;
    if (!a->tokens && !a->tokens_file && !a->n_words) from.tokens_file = "-";
    if ((status = ids_of_args(&from, list)) != OK) return status;
    if ((status = load_tokenizer(l, a)) != OK) return status;
    for (i = 0; i < list->n; i++)
        if (list->id[i] >= l->tokenizer->n_vocab)
            return fail("token id %d is outside of the vocabulary of %d", list->id[i],
                        l->tokenizer->n_vocab);
    len = kvmem_detokenize(l->tokenizer, list->id, (size_t)list->n, flags, NULL, 0);
    text = (char *)grow(NULL, len, 1);
    kvmem_detokenize(l->tokenizer, list->id, (size_t)list->n, flags, text, len);
    put_bytes(text, len);
    if (is_terminal(stdout)) put("\n");
    free(text);
    return OK;
}
static int cmd_detokenize(const args *a) {
    loaded l;
    ids list;
    int status;
    memset(&l, 0, sizeof l);
    memset(&list, 0, sizeof list);
    status = detokenize_run(a, &l, &list);
    unload(&l);
    free(list.id);
    return status;
}

/* ==== >>inspect : what a file holds =========================================================== */

static const char *const common_codecs[] = { "f32", "f16", "q8_0", "q4_0" };

/* Bytes that one token's K and V take in all layers, coded by the entry of that word; 0: none. */
static size_t token_bytes(const char *word, const kvmem_model *m) {
    const kvmem_entry *e;
    int i, j;
    for (i = 0; (e = kvmem_stage_entry(KVMEM_CODEC_K, i)) != NULL; i++) {
        double par[KVMEM_MAX_PARAMS] = { 0 };
        const kvmem_codec *codec;
        if (strcmp(e->word, word) != 0) continue;
        codec = (const kvmem_codec *)(const void *)e; /* every codec row begins with its entry */
        for (j = 0; e->params && e->params[j].name; j++) par[j] = e->params[j].def;
        return 2 * (size_t)m->n_layers * (size_t)m->n_kv_heads * codec->row_bytes(par, m->head_dim);
    }
    return 0;
}
static void dims_text(char *s, size_t size, const kvmem_tensor *t) {
    int i, n = 0;
    s[0] = 0;
    for (i = 0; i < t->n_dims && i < 4 && n >= 0 && (size_t)n < size; i++)
        n += snprintf(s + n, size - (size_t)n, i ? " x %lld" : "%lld", (long long)t->ne[i]);
}
static void put_tensor(const kvmem_tensor *t, const char *name, int name_len, int json) {
    const char *type = kvmem_type_name(t->type);
    char dims[96];
    int i;
    if (!t->data) return;
    if (json) {
        json_open(NULL, '{');
        json_key("name");
        json_string(name, (size_t)name_len);
        json_text("type", type ? type : "?");
        json_open("shape", '[');
        for (i = 0; i < t->n_dims && i < 4; i++) json_int(NULL, t->ne[i]);
        json_close();
        json_int("bytes", (int64_t)t->size);
        json_close();
        return;
    }
    dims_text(dims, sizeof dims, t);
    put("  %-34.*s %-8s %-20s %12lu\n", name_len, name, type ? type : "?", dims,
        (unsigned long)t->size);
}
/* GGUF lists its tensors; for a llama2.c checkpoint the model's matrices are named here. */
static void put_tensors(const loaded *l, int json) {
    const kvmem_gguf *g = l->gguf.bytes ? &l->gguf : &l->model.gguf;
    const kvmem_model *m = &l->model;
    static const char *const part[] = { "attn_q",   "attn_k", "attn_v",  "attn_output",
                                        "ffn_gate", "ffn_up", "ffn_down" };
    char name[64];
    int i, j;
    for (i = 0; i < g->n_tensors; i++)
        put_tensor(&g->tensor[i], g->tensor[i].name, g->tensor[i].name_len, json);
    if (is_gguf(&l->file)) return;
    put_tensor(&m->embd, "token_embd", 10, json);
    for (i = 0; i < m->n_layers; i++) {
        const kvmem_layer *w = &m->layer[i];
        const kvmem_tensor *t[7];
        t[0] = &w->q; t[1] = &w->k; t[2] = &w->v; t[3] = &w->o;
        t[4] = &w->gate; t[5] = &w->up; t[6] = &w->down;
        for (j = 0; j < 7; j++) {
            snprintf(name, sizeof name, "blk.%d.%s", i, part[j]);
            put_tensor(t[j], name, (int)strlen(name), json);
        }
    }
    if (!m->tied) put_tensor(&m->head, "output", 6, json);
}
static const char *vocab_name(kvmem_vocab_kind k) {
    switch (k) {
    case KVMEM_VOCAB_SPM: return "SentencePiece";
    case KVMEM_VOCAB_BPE: return "byte-level BPE";
    case KVMEM_VOCAB_LLAMA2C: return "llama2.c";
    default: return "none";
    }
}
static void inspect_json(const args *a, const loaded *l, const kvmem_tokenizer *t,
                         const char *chat) {
    const kvmem_model *m = &l->model;
    size_t i;
    json_open(NULL, '{');
    json_text("file", a->model);
    json_int("file_bytes", (int64_t)l->file.size);
    if (m->n_layers) {
        json_text("format", m->llama2c >= 0 ? "llama2.c" : "GGUF");
        json_int("version", m->llama2c >= 0 ? m->llama2c : m->gguf.version);
        json_text("architecture", m->arch_name);
        json_int("layers", m->n_layers);
        json_int("heads", m->n_heads);
        json_int("kv_heads", m->n_kv_heads);
        json_int("head_dim", m->head_dim);
        json_int("embedding", m->n_embd);
        json_int("feed_forward", m->n_ff);
        json_int("vocabulary", m->n_vocab);
        json_int("context", m->n_ctx_train);
        json_bool("tied", m->tied);
        json_int("weight_bytes", (int64_t)m->weight_bytes);
        json_open("kv_bytes_per_token", '{');
        for (i = 0; i < sizeof common_codecs / sizeof *common_codecs; i++)
            json_int(common_codecs[i], (int64_t)token_bytes(common_codecs[i], m));
        json_close();
    } else {
        json_text("format", "GGUF, vocabulary only");
    }
    if (t) {
        json_open("tokenizer", '{');
        json_text("kind", vocab_name(t->kind));
        json_text("pre", kvmem_tokenizer_pre_name(t));
        json_int("tokens", t->n_vocab);
        json_int("merges", t->n_merges);
        json_int("bos", t->bos);
        json_int("eos", t->eos);
        json_bool("add_bos", t->add_bos);
        json_bool("add_eos", t->add_eos);
        if (chat) json_text("chat", chat);
        json_close();
    }
    json_open("tensors", '[');
    put_tensors(l, 1);
    json_close();
    json_close();
}
static void inspect_table(const args *a, const loaded *l, const kvmem_tokenizer *t,
                          const char *chat) {
    const kvmem_model *m = &l->model;
    size_t i;
    put("file          %s, %s\n", a->model, human(l->file.size));
    if (m->n_layers) {
        if (m->llama2c >= 0) put("format        llama2.c version %d\n", m->llama2c);
        else put("format        GGUF version %d\n", m->gguf.version);
        put("architecture  %s, %d layers, embedding %d, feed-forward %d, %s\n", m->arch_name,
            m->n_layers, m->n_embd, m->n_ff,
            m->tied ? "output tied to the embedding" : "own output matrix");
        put("attention     %d heads, %d KV heads, head size %d\n", m->n_heads, m->n_kv_heads,
            m->head_dim);
        put("vocabulary    %d\ncontext       %d tokens in training\n", m->n_vocab, m->n_ctx_train);
        put("weights       %s\n", human(m->weight_bytes));
        put("KV a token   ");
        for (i = 0; i < sizeof common_codecs / sizeof *common_codecs; i++)
            put("%s %s %s", i ? "," : "", common_codecs[i],
                human(token_bytes(common_codecs[i], m)));
        put("\n");
    } else {
        put("format        GGUF version %d, a vocabulary without a model\n", l->gguf.version);
    }
    if (t) {
        put("tokenizer     %s, pre-tokenizer %s, %d tokens, %d merges\n", vocab_name(t->kind),
            kvmem_tokenizer_pre_name(t), t->n_vocab, t->n_merges);
        put("              begin token %d (%s), end token %d (%s)\n", t->bos,
            t->add_bos ? "added" : "not added", t->eos, t->add_eos ? "added" : "not added");
        put("chat format   %s\n", chat ? chat : "none known");
    } else {
        put("tokenizer     %s\n",
            m->tokenizer.error.status != KVMEM_OK ? m->tokenizer.error.text : "none in this file");
    }
    put("\ntensors\n  %-34s %-8s %-20s %12s\n", "name", "type", "shape", "bytes");
    put_tensors(l, 0);
}
static int inspect_model(const args *a, loaded *l) {
    kvmem_error error;
    kvmem_chat kind;
    const char *chat = NULL;
    int status;
    if ((status = load_files(l, a)) != OK) return status;
    if (is_gguf(&l->file) &&
        kvmem_gguf_open(&l->gguf, l->file.bytes, l->file.size, NULL) != KVMEM_OK)
        return fail("%s: %s", a->model, l->gguf.error.text);
    if (is_gguf(&l->file) && !l->gguf.n_tensors) {
        unload(l);
        if ((status = load_tokenizer(l, a)) != OK) return status;
    } else {
        unload(l);
        if ((status = load_model(l, a, 0)) != OK) return status;
    }
    if (is_gguf(&l->file) &&
        kvmem_chat_of_gguf(l->gguf.bytes ? &l->gguf : &l->model.gguf, &kind, &error) == KVMEM_OK)
        chat = kvmem_chat_name(kind);
    if (a->json) inspect_json(a, l, l->tokenizer, chat);
    else inspect_table(a, l, l->tokenizer, chat);
    return OK;
}
static int inspect_cache(const args *a) {
    kvmem_cache_info c;
    kvmem_error error;
    file f;
    int bad;
    if (file_open(&f, a->cache)) return FAILED;
    bad = kvmem_cache_inspect(f.bytes, f.size, &c, &error) != KVMEM_OK;
    file_close(&f);
    if (bad) return fail("%s: %s", a->cache, error.text);
    if (a->json) {
        json_open(NULL, '{');
        json_text("file", a->cache);
        json_int("version", c.version);
        json_int("layers", c.n_layers);
        json_int("heads", c.n_heads);
        json_int("kv_heads", c.n_kv_heads);
        json_int("head_dim", c.head_dim);
        json_int("page", c.page);
        json_int("level", c.level);
        json_int("chunks", c.chunks);
        json_key("model_id");
        put("\"%08lx%08lx\"", (unsigned long)(c.model_id >> 32),
            (unsigned long)(c.model_id & 0xffffffffu));
        json_int("tokens", c.tokens);
        json_int("entries", (int64_t)c.entries);
        json_int("k_bytes", (int64_t)c.k_bytes);
        json_int("v_bytes", (int64_t)c.v_bytes);
        json_int("file_bytes", (int64_t)c.file_bytes);
        json_text("recipe", c.recipe);
        json_close();
        return OK;
    }
    put("file       %s, %s, saved cache version %d\n", a->cache, human(c.file_bytes), c.version);
    if (c.level) put("chunks     %d, finest level %d: kvmem cache inspect says more\n", c.chunks, c.level);
    put("recipe     %s\n", c.recipe);
    put("shape      %d layers, %d heads, %d KV heads, head size %d\n", c.n_layers, c.n_heads,
        c.n_kv_heads, c.head_dim);
    put("model      %08lx%08lx\n", (unsigned long)(c.model_id >> 32),
        (unsigned long)(c.model_id & 0xffffffffu));
    put("tokens     %lld seen, %lu entries kept (%.1f a lane)", (long long)c.tokens,
        (unsigned long)c.entries, (double)c.entries / ((double)c.n_layers * (double)c.n_kv_heads));
    if (c.page) put(", pages of %d", c.page);
    put("\n");
    put("bytes      K %s, V %s\n", human(c.k_bytes), human(c.v_bytes));
    return OK;
}
static int cmd_inspect(const args *a) {
    loaded l;
    int status;
    if (!a->model == !a->cache) return misuse("give either -m MODEL or --cache FILE");
    if (a->cache) return inspect_cache(a);
    memset(&l, 0, sizeof l);
    status = inspect_model(a, &l);
    unload(&l);
    return status;
}

#include "list.h"
#include "codec.h"
#include "score.h"
#include "retrieve.h"

/* ==== >>estimate : bytes before anything is allocated ========================================= */

/* "L=16,H=32,G=8,d=64": layers, heads, KV heads, head size; w= a sliding window in every layer. */
static int parse_shape(const char *text, kvmem_shape *shape, int *window) {
    const char *s = text;
    static const char letters[] = "LHGdw";
    int64_t v[5] = { 0, 0, 0, 0, 0 };
    int i;
    while (*s) {
        const char *comma = strchr(s, ','), *at = strchr(letters, *s);
        const size_t n = comma ? (size_t)(comma - s) : strlen(s);
        char number[24];
        if (!at || n < 3 || s[1] != '=')
            return misuse("--shape %s: '%.*s' is not one of L= H= G= d= w=", text,
                          (int)(n < 40 ? n : 40), s);
        snprintf(number, sizeof number, "%.*s", (int)(n - 2 < 20 ? n - 2 : 20), s + 2);
        i = (int)(at - letters);
        if (v[i]) return misuse("--shape %s: %c is given twice", text, letters[i]);
        if (!to_integer(number, &v[i]) || v[i] < 1 || v[i] > 1 << 20)
            return misuse("--shape %s: '%s' is not a number from 1 to %d", text, number, 1 << 20);
        s += n;
        if (*s == ',') {
            s++;
            if (!*s) return misuse("--shape %s: ends with a comma", text);
        }
    }
    if (!v[2]) v[2] = v[1];
    for (i = 0; i < 4; i++)
        if (!v[i]) return misuse("--shape %s: %c= is missing", text, letters[i]);
    shape->n_layers = (int)v[0];
    shape->n_heads = (int)v[1];
    shape->n_kv_heads = (int)v[2];
    shape->head_dim = (int)v[3];
    *window = (int)v[4];
    return OK;
}
static int estimate_shape(const args *a, const kvmem_recipe *r, kvmem_bytes *b) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_error error;
    int window = 0, i, *windows = NULL, status;
    kvmem_rope *rope;
    float *freq; /* only counted, never used: any values will do */
    kvmem_status s;
    if ((status = parse_shape(a->shape, &cfg.shape, &window)) != OK) return status;
    if ((status = find_backend(a, &cfg.backend)) != OK) return status;
    rope = (kvmem_rope *)grow(NULL, (size_t)cfg.shape.n_layers, sizeof *rope);
    freq = (float *)grow(NULL, (size_t)cfg.shape.head_dim, sizeof *freq);
    memset(freq, 0, (size_t)cfg.shape.head_dim * sizeof *freq);
    for (i = 0; i < cfg.shape.n_layers; i++) {
        rope[i].n_rot = cfg.shape.head_dim & ~1;
        rope[i].neox = 0;
        rope[i].mscale = 1;
        rope[i].inv_freq = freq;
    }
    cfg.shape.rope = rope;
    if (window) {
        windows = (int *)grow(NULL, (size_t)cfg.shape.n_layers, sizeof *windows);
        for (i = 0; i < cfg.shape.n_layers; i++) windows[i] = window;
        cfg.shape.window = windows;
    }
    cfg.recipe = r;
    cfg.max_bytes = a->max_bytes;
    cfg.threads = (int)a->threads;
    s = kvmem_estimate(&cfg, a->ctx, a->decode, b, &error);
    free(windows);
    free(rope);
    free(freq);
    return s == KVMEM_OK ? OK : fail("%s", error.text);
}
static int estimate_model(const args *a, const kvmem_recipe *r, kvmem_bytes *b) {
    kvmem_session_config cfg;
    kvmem_error error;
    loaded l;
    int status;
    memset(&l, 0, sizeof l);
    status = session_config(a, r, &cfg);
    if (status == OK) status = load_model(&l, a, 0);
    if (status == OK &&
        kvmem_session_estimate(&l.model, &cfg, a->ctx, a->decode, b, &error) != KVMEM_OK)
        status = fail("%s", error.text);
    unload(&l);
    return status;
}
static int cmd_estimate(const args *a) {
    kvmem_recipe r;
    kvmem_bytes b;
    int status;
    if (!a->model == !a->shape)
        return misuse("give either -m MODEL or --shape L=..,H=..,G=..,d=..");
    if (a->ctx < 0) return misuse("--ctx N is needed: the tokens of the prompt");
    if ((status = parse_recipe(a->kv, &r)) != OK) return status;
    status = a->model ? estimate_model(a, &r, &b) : estimate_shape(a, &r, &b);
    if (status != OK) return status;
    if (a->json) {
        json_open(NULL, '{');
        json_text("recipe", recipe_text(&r));
        json_int("prompt_tokens", a->ctx);
        json_int("decoded_tokens", a->decode);
        json_bytes("cache", &b);
        json_close();
        return OK;
    }
    put("recipe     %s\n", recipe_text(&r));
    put("tokens     %lld of prompt, %lld decoded; %lu entries kept over all lanes\n\n",
        (long long)a->ctx, (long long)a->decode, (unsigned long)b.entries);
    put_bytes_table(&b);
    return OK;
}

/* ==== >>default : the model that this repository trains and ships =========================== */

#define DEFAULT_MODEL "examples/models/tiny.gguf"
/* -m if it was given, else the default model if it is there. */
static void default_model(args *a) {
    FILE *f = a->model ? NULL : fopen(DEFAULT_MODEL, "rb");
    if (!f) return;
    fclose(f);
    a->model = DEFAULT_MODEL;
}

/* What `kvmem demo` plays beside streamingllm and snapkv: the best in README's table of eval. */
#define DEMO_BEST "pyramidkv budget=85% codec=q4_0"
#include "eval.h"
#include "eval_show.h"
#include "demo.h"
#include "cache.h"
#include "cost.h"
#include "memory.h"
#include "profile.h"
#include "segment.h"

/* ==== >>commands : the table, the top level =================================================== */

static const option run_options[] = {
    O_MODEL(1), O_TOKENIZER, O_PROMPT, O_FILE(0, "the text, from a file; - is stdin"),
    O_COUNT("256", 0, "tokens to write at most; llama2.c files: prompt included, as its run counts"),
    O_KV, O_ROPE_CTX, O_MAX_BYTES, O_SAMPLING,
    O_TEXT("--save", save, "FILE", "save the cache when the text is done"),
    O_TEXT("--load", load, "FILE", "go on from a saved cache of this model and recipe"),
    O_NO_BOS, O_SPECIAL, O_THREADS, O_BACKEND, O_JSON_SUMMARY, O_END };
static const option chat_options[] = {
    O_MODEL(1), O_TOKENIZER,
    O_TEXT("--system", system, "TEXT", "what the model is told first"),
    O_TEXT("--template", chat_template, "NAME", "chatml, llama3, ... (default by the file)"),
    O_COUNT("512", 0, "tokens of an answer at most"),
    O_KV, O_ROPE_CTX, O_MAX_BYTES, O_SAMPLING, O_THREADS, O_BACKEND, O_JSON_SUMMARY, O_END };
static const option measure_options[] = {
    O_MODEL(1), O_TOKENIZER, O_FILE(1, "the text; - is stdin"), O_KV,
    { NULL, "--chunk", MAYBE_INTEGER, AT(chunk), "[N]", NULL, 4, BIG, 0,
      "pieces of N tokens, scored in their second half; the default way" },
    O_FLAG("--stream", stream, "one cache for the whole text, never cleared"),
    O_CTX("size of a piece (default at most 512); with --stream how much is read"),
    O_INT("--prompt-tokens", first, "N", NULL, 1, BIG,
          "unscored tokens at a piece's start (default half; with --stream 1)"),
    O_INT("--block", block, "N", "1", 1, 65536,
          "scored tokens fed at a time; 1: as generation does"),
    O_COUNT(NULL, 1, "use only the first N tokens of the text"),
    O_MAX_BYTES, O_NO_BOS, O_SPECIAL, O_THREADS, O_BACKEND, O_JSON,
    O_FLAG("--csv", csv, "print the table as CSV"), O_END };
static const option logits_options[] = {
    O_MODEL(1), O_TOKENIZER, O_TOKENS, O_TOKENS_FILE,
    { "-o", "--output", TEXT, AT(output), "FILE", NULL, 0, 0, 1, "where the rows go" },
    O_KV, O_ROPE_CTX,
    O_INT("--prompt-tokens", first, "N", NULL, 1, BIG,
          "ids that are the prompt, the rest is fed one by one (default all)"),
    O_MAX_BYTES, O_THREADS, O_BACKEND, O_END };
static const option tokenize_options[] = {
    O_MODEL(1), O_TOKENIZER, O_PROMPT, O_FILE(0, "the text, a file to its last byte; - is stdin"),
    O_NO_BOS, O_SPECIAL, O_FLAG("--pieces", pieces, "one line a token: id and piece"), O_END };
static const option detokenize_options[] = {
    O_MODEL(1), O_TOKENIZER, O_TOKENS, O_TOKENS_FILE,
    O_FLAG("--special", special, "show control tokens by their names"), O_END };
static const option inspect_options[] = {
    O_MODEL(0), O_TOKENIZER, O_TEXT("--cache", cache, "FILE", "a saved cache"), O_JSON, O_END };
static const option list_options[] = {
    O_FLAG("--matrix", matrix, "which entries go together, and why the others do not"), O_END };
static const option codec_options[] = {
    { "-i", "--input", TEXT, AT(input), "X.npy", NULL, 0, 0, 1, "the rows, float32 (n, d)" },
    { "-o", "--output", TEXT, AT(output), "Y.npy", NULL, 0, 0, 1, "the decoded rows, (n, d)" },
    { NULL, "--as", TEXT, AT(as), "k|v", "k", 0, 0, 0, "are they keys or values?" },
    { "-q", "--query", TEXT, AT(query), "Q.npy", NULL, 0, 0, 0, "queries, (m, d)" },
    O_TEXT("--dots", dots, "D.npy", "their scores on the coded rows, (m, n)"),
    O_TEXT("--pos", positions, "P.npy", "positions of the rows, whole and rising (default 0, 1, ...)"),
    O_REAL("--rope-base", rope_base, "BASE", NULL, 1, 1e12,
           "keys are rotated by RoPE of this base (10000 for codecs that store them before it)"),
    O_FLAG("--neox", neox, "RoPE pairs channels i and i + d/2, not 2i and 2i + 1"),
    O_FLAG("--pre-rope", pre_rope, "the rows given are keys before RoPE (default after it)"),
    { NULL, "--backend", TEXT, AT(backend), "NAME", "plain", 0, 0, 0,
      "plain, avx2, avx512 or neon: the last three may round queries to 16 bits" },
    O_JSON, O_END };
static const option score_options[] = {
    { NULL, "--kv", TEXT, AT(kv), "RECIPE", NULL, 0, 0, 1, "whose score, budget, select and reduce stages are asked" },
    O_INT("--heads", heads, "H", "1", 1, 65536, "query heads"),
    O_INT("--kv-heads", kv_heads, "G", "1", 1, 65536, "KV heads; divides H"),
    O_INT("--dim", head_dim, "d", "0", 0, 65536, "head size; 0: as -k has it"),
    { "-k", "--keys", TEXT, AT(keys), "K.npy", NULL, 0, 0, 1, "keys, float32 (n, G, d), one layer's" },
    { "-v", "--values", TEXT, AT(values), "V.npy", NULL, 0, 0, 0, "values (n, G, d); zeros where no stage reads them" },
    { "-q", "--query", TEXT, AT(query), "Q.npy", NULL, 0, 0, 0, "queries (n, H, d)" },
    O_TEXT("--hidden", hidden_rows, "X.npy", "hidden states after the input norm (n, D)"),
    O_TEXT("--output-weights", projection, "W.npy", "the output projection (D, H * d)"),
    { "-o", "--output", TEXT, AT(output), "OUT.npy", NULL, 0, 0, 1, "scores (G, n), or with --kept indices (G, most)" },
    O_FLAG("--kept", kept, "the whole selection: indices of the rows that stay, int32, -1 behind the last"),
    O_TEXT("--rope", rope, "norm|neox", "RoPE pairs channels 2i and 2i + 1, or i and i + d/2; the cache rotates"),
    O_REAL("--rope-base", rope_base, "BASE", NULL, 1, 1e12, "of RoPE (default 10000)"),
    O_FLAG("--pre-rope", pre_rope, "queries and keys are given before RoPE (default after it)"),
    O_TEXT("--pos", positions, "P.npy", "positions of the rows, whole and rising (default 0, 1, ...)"),
    O_INT("--prompt-tokens", first, "N", NULL, 1, BIG, "rows that are the prompt; the others are decoded one by one"),
    O_INT("--question", question, "N", "-1", -1, BIG, "the prompt's question begins at row N (default: there is none)"),
    O_INT("--block", block, "N", "0", 0, 65536, "rows of the prompt in one block; 0: all (for when=block)"),
    O_INT("--probe", probe, "N", "0", 0, 65536, "the last N rows are probe tokens on top of the prompt"),
    O_INT("--probe-from", probe_from, "A", "0", 0, BIG, "they are asked for the entries from A on, as kvzip does ..."),
    O_INT("--probe-to", probe_to, "B", "0", 0, BIG, "... to B - 1; 0: for all, as kvcompose and dapq do"),
    O_THREADS,
    { NULL, "--backend", TEXT, AT(backend), "NAME", "plain", 0, 0, 0, "plain, avx2, avx512 or neon" },
    O_JSON, O_END };
static const option retrieve_options[] = {
    O_INT("--top", top_k, "N", "10", 1, BIG, "the exact best N entries of each query are looked for"),
    O_INT("--heads", heads, "H", "1", 1, 65536, "query heads"),
    O_INT("--kv-heads", kv_heads, "G", "1", 1, 65536, "KV heads; divides H"),
    O_INT("--dim", head_dim, "d", "0", 0, 65536, "head size; 0: as -k has it"),
    { "-k", "--keys", TEXT, AT(keys), "K.npy", NULL, 0, 0, 1, "keys, float32 (n, G, d), one layer's" },
    { "-q", "--query", TEXT, AT(query), "Q.npy", NULL, 0, 0, 1, "queries that ask (m, H, d)" },
    { "-v", "--values", TEXT, AT(values), "V.npy", NULL, 0, 0, 0, "values (n, G, d), for the error of the output" },
    O_TEXT("--prompt-queries", input, "P.npy", "queries of the rows themselves (n, H, d), for what learns from them"),
    O_TEXT("--surprise", surprise, "S.npy", "how surprising each row is (n), for recipes with segment=surprise"),
    O_INT("--prompt-tokens", first, "N", NULL, 1, BIG,
          "-q are the queries of the rows: N are the prompt, the others ask in turn"),
    O_INT("--layers", layers, "L", "4", 1, 4096, "equal layers; the last one is looked at"),
    O_TEXT("--rope", rope, "norm|neox", "RoPE pairs channels 2i and 2i + 1, or i and i + d/2; the cache rotates"),
    O_REAL("--rope-base", rope_base, "BASE", NULL, 1, 1e12, "of RoPE (default 10000)"),
    O_FLAG("--pre-rope", pre_rope, "queries and keys are given before RoPE (default after it)"),
    O_TEXT("--pos", positions, "P.npy", "positions of the rows, whole and rising (default 0, 1, ...)"),
    O_FLAG("--all", all, "print the heads of every query (default of the first; JSON has all)"),
    O_THREADS,
    { NULL, "--backend", TEXT, AT(backend), "NAME", "plain", 0, 0, 0, "plain, avx2, avx512 or neon" },
    O_JSON, O_END };
static const option estimate_options[] = {
    O_MODEL(0),
    O_TEXT("--shape", shape, "SHAPE",
           "L=16,H=32,G=8,d=64: layers, heads, KV heads, head size; w= a window"),
    O_CTX("tokens of the prompt"),
    O_INT("--decode", decode, "N", "0", 0, BIG, "tokens decoded after it"),
    O_KV, O_MAX_BYTES, O_THREADS, O_BACKEND, O_JSON, O_END };

#define O_DEFAULT_MODEL                                                                            \
    { "-m", "--model", TEXT, AT(model), "FILE", NULL, 0, 0, 0,                                     \
      "the model (default " DEFAULT_MODEL ")" }
#define O_TEXT_OF(longer, field, value, def, what)                                                 \
    { NULL, longer, TEXT, AT(field), value, def, 0, 0, 0, what }
#define O_READ_BLOCK                                                                               \
    O_INT("--block", block, "N", "128", 1, 65536, "tokens of the context that are read at a time")

static const option segment_options[] = {
    { "-k", "--keys", TEXT, AT(keys), "K.npy", NULL, 0, 0, 0, "keys, float32 (n, G, d), one layer's" },
    O_TEXT("--vectors", vectors, "X.npy", "instead of keys: vectors (n, d) of any stream, as frames"),
    { "-q", "--query", TEXT, AT(query), "Q.npy", NULL, 0, 0, 0, "queries (n, H, d)" },
    O_TEXT("--surprise", surprise, "S.npy", "-ln p of each token (n), nats; the first token's is not used"),
    O_TEXT("--tokens", tokens, "T.npy", "token ids (n), for turns"),
    O_INT("--heads", heads, "H", "0", 0, 65536, "query heads; 0: as KV heads"),
    O_INT("--kv-heads", kv_heads, "G", "1", 1, 65536, "KV heads; divides H"),
    O_TEXT("--rope", rope, "norm|neox", "arrays are after RoPE of this kind (default: taken as they come)"),
    O_REAL("--rope-base", rope_base, "BASE", NULL, 1, 1e12, "of RoPE (default 10000)"),
    O_TEXT("--text", text, "FILE", "instead of arrays: a text, read by the model"),
    O_TEXT("--suite", suite, "NAME",
        "instead: conversations of kvmem's language: conv, needle, multi, order, copy, ppl"),
    O_DEFAULT_MODEL,
    O_TOKENIZER, O_NO_BOS, O_SPECIAL,
    O_INT("--ctx", ctx, "N", "2048", 128, 16777216, "tokens of a conversation"),
    O_INT("--seeds", seeds, "N", "1", 1, 100000, "conversations"),
    O_INT("--seed", seed, "S", "1", 0, 9e15, "the first seed"),
    O_TEXT("--truth", truth, "B.npy", "true starts, whole numbers"),
    O_TEXT("--turn-ends", turn_ends, "TOKEN",
        "turns begin behind this token: an id, or its text as \\n; true starts, too"),
    O_TEXT("--turn-begins", turn_begins, "TOKEN", "turns begin with this token"),
    O_TEXT_OF("--true", rule, "KIND", "turns", "of --suite: turns or topics are the true starts"),
    O_INT("--tolerance", tolerance, "T", "1", 0, 1000000, "tokens by which a start may miss"),
    O_INT("--draws", draws, "N", "20", 1, 10000, "random partitions beside it"),
    O_REAL("--from", from_layer, "L", "0.625", 0, 4096, "first layer whose keys judge: a share below 1, or its number"),
    O_INT("--block", block, "N", "512", 1, 65536, "tokens in a block, for which one threshold holds"),
    { "-o", "--output", TEXT, AT(output), "S.npy", NULL, 0, 0, 0, "write the surprises that the model found" },
    O_THREADS, O_BACKEND, O_JSON, O_FLAG("--csv", csv, "print CSV, a line for each kind of cuts"), O_END };
static const option eval_options_table[] = {
    O_DEFAULT_MODEL, O_TOKENIZER,
    O_TEXT_OF("--suite", suite, "LIST", "conv", "conv, needle, multi, order, copy, ppl or all"),
    O_TEXT_OF("--ctx", lengths, "LIST", "2k", "lengths of the context in tokens: 1k,2k,4k"),
    O_TEXTS("--kv", kvs, "RECIPE", "any number of times (default the presets); full always runs"),
    O_TEXT_OF("--budgets", budgets, "LIST", "50%,25%,12.5%,6.25%",
              "for recipes that name none: shares of the tokens seen, entries, or bytes"),
    O_INT("--seeds", seeds, "N", "13", 1, 100000,
          "contexts of each suite and length (needle: at each depth)"),
    O_INT("--questions", questions, "N", "0", 0, 1000, "about each context; 0: the suite's number"),
    O_INT("--depths", depths, "N", "5", 1, 101, "needle: places of the fact, from first to last"),
    O_INT("--seed", seed, "S", "1", 0, 9e15, "the first seed"),
    O_FLAG("--question-aware", aware, "compress when the question is known, not before"),
    O_FLAG("--multi-turn", turns, "the questions are one conversation, each after the model's earlier answers"),
    O_FLAG("--beyond", beyond, "allow contexts longer than the model was trained for"),
    O_TEXT("--text", text, "FILE", "ppl on this text, with any model that has a tokenizer"),
    O_READ_BLOCK,
    O_FLAG("--pairs", pairs, "the table of all paired comparisons, too"),
    O_JSON, O_FLAG("--csv", csv, "print CSV, a line a cell"),
    O_FLAG("--md", md, "print a markdown table, the same on every machine"),
    O_TEXT("--report", report, "FILE", "write an HTML report"),
    O_TEXTS("--audit", audits, "RECIPE", "show in the report what it keeps (default all, at 1/8)"),
    O_THREADS, O_BACKEND, O_END };
static const option demo_options[] = {
    O_DEFAULT_MODEL,
    O_TEXT_OF("--ctx", lengths, "N", "4k", "length of the conversation in tokens"),
    O_TEXTS("--kv", kvs, "RECIPE", "beside full (default: streamingllm, snapkv, " DEMO_BEST ")"),
    O_TEXT_OF("--budget", budgets, "AMOUNT", "12.5%", "what they may keep"),
    O_INT("--questions", questions, "N", "16", 1, 1000, "how many questions"),
    O_INT("--seed", seed, "S", "1", 0, 9e15, "which conversation"),
    O_READ_BLOCK,
    O_TEXT_OF("--report", report, "FILE", "report.html", "the HTML report; \"\": none"),
    O_THREADS, O_BACKEND, O_END };

static const option cache_options[] = {
    O_DEFAULT_MODEL, O_TOKENIZER, O_PROMPT, O_FILE(0, "the text, from a file; - is stdin"),
    O_TEXT("-o", output, "FILE", "write: where the cache goes"),
    O_INT("--level", level, "L", "2", 0, 3, "write: 1 smallest, 3 finest, 0 entries as stored"),
    O_FLAG("--all", all, "write: every chunk at all three levels, to choose from"),
    O_INT("--group", group, "N", "1", 1, 255, "1: as released; 10: an anchor in 10 tokens, the paper's"),
    O_TEXT_OF("--models", models, "WAY", "smaller", "distributions: per channel, per layer, or the smaller"),
    O_INT("--chunk", chunk, "N", "1000", 1, 65536, "tokens of a chunk"),
    O_FLAG("--no-text", no_text, "write: leave the token ids out"),
    O_TEXT("--levels", levels, "LIST", "read: level of each chunk, 0: from its text; the last goes on"),
    O_TEXT("--gbps", gbps, "LIST", "plan: 10^9 bits a second for each chunk, or uniform (.1 to 10)"),
    O_REAL("--slo", slo, "S", "2", 0, 1e9, "plan: seconds in which all should be there"),
    O_REAL("--text-seconds", delay, "S", "0.2", 0, 1e9, "plan: to compute a chunk from its text"),
    O_TEXT_OF("--rule", rule, "NAME", "released", "plan: released, or paper (looks ahead)"),
    { "-n", "--count", INTEGER, AT(n), "N", NULL, 1, BIG, 0,
      "tokens: of the text (levels: default 1024), to write (read: default 64)" },
    O_INT("--prompt-tokens", first, "N", NULL, 1, BIG, "levels: tokens that are saved (default half)"),
    O_KV, O_ROPE_CTX, O_MAX_BYTES, O_SAMPLING, O_NO_BOS, O_SPECIAL, O_THREADS, O_BACKEND, O_JSON, O_END };

static const option profile_options[] = {
    O_DEFAULT_MODEL, O_TOKENIZER,
    O_TEXT("-o", output, "FILE", "where the profile goes (default stdout)"),
    O_FILE(0, "the text to measure on (default: the testbed's, for the default model)"),
    { "-n", "--count", INTEGER, AT(n), "N", "512", 160, 1 << 20, 0, "tokens of a text; longer ones show more" },
    O_TEXT("--evo", evo, "AMOUNT", "also evolve layer budgets under this mean: 12.5%, 64"),
    O_INT("--generations", generations, "N", "12", 1, 10000, "of the evolution"),
    O_INT("--seed", seed, "S", "1", 0, 9e15, "same seed, same profile"),
    O_THREADS, O_BACKEND, O_END };
static const option cost_options[] = {
    { "-m", "--model", TEXT, AT(model), "FILE", NULL, 0, 0, 0, "a model whose shape and weights count" },
    O_INT("--layers", layers, "L", NULL, 1, 1 << 20, "layers"),
    O_INT("--kv-heads", kv_heads, "G", NULL, 1, 1 << 20, "KV heads"),
    O_INT("--head-dim", head_dim, "d", NULL, 1, KVMEM_MAX_WIDTH, "size of a head"),
    O_INT("--hidden", hidden, "Dm", NULL, 1, 1 << 24, "query heads times head size"),
    O_REAL("--params", params, "P", NULL, 1, 1e18, "parameters (default: weights at 2 bytes)"),
    O_REAL("--weight-bytes", weight_bytes, "Wb", NULL, 1, 1e18, "bytes of all weights (default 2 P)"),
    O_REAL("--bytes-per-value", value_bytes, "by", "2", 0.01, 16, "bytes of a number in K and V"),
    O_TEXT_OF("--machine", machine, "NAME", "a100", "a100, h100, h200, rtx4090; the next four change it"),
    O_REAL("--flops", flops, "F", NULL, 1, 1e24, "operations a second"),
    O_REAL("--bandwidth", bandwidth, "R", NULL, 1, 1e18, "bytes a second from its memory"),
    O_REAL("--memory", memory, "M", NULL, 1, 1e18, "bytes of its memory"),
    O_REAL("--link", link, "X", NULL, 1, 1e18, "bytes a second to the host"),
    O_TEXT("--ctx", lengths, "LIST", "n: tokens, a line each (default 4000,50000; to measure 512 to 4096)"),
    O_INT("--decode", decode, "D", "250", 1, BIG, "tokens decoded in a round"),
    O_INT("--users", users, "S", "20", 1, BIG, "users who share the machine"),
    O_INT("--rounds", rounds, "r", "5", 1, BIG, "questions about a context once it is read"),
    O_TEXT("--kv", kv, "RECIPE", "a second line: bytes of this recipe's cache, as kvmem estimate says"),
    O_REAL("--share", share, "c", "1", 0, 1, "a second line: this share of the bytes"),
    O_FLAG("--measure", measure, "and what a cached token costs on this machine (default model: " DEFAULT_MODEL ")"),
    O_JSON, O_END };

static const option memory_options[] = {
    O_TEXT_OF("--store", store, "FILE", "memory.kvm", "where the memory is kept"),
    O_DEFAULT_MODEL, O_TOKENIZER,
    O_TEXT_OF("--segment", segment, "SPEC", "lines(min=32,max=256)",
              "add: an episode is whole lines of so many tokens; or a segment entry (kvmem list)"),
    O_TEXT_OF("--codec", codec, "CODEC", "q8_0", "add: how keys and values are stored: f32, f16, q8_0, q4_0 ..."),
    O_TEXT_OF("--embed", embed, "KIND", "bag",
              "find by: bag (BM25), input, fusion (both); hidden(layer=L), keys(layer=L) where added so"),
    O_INT("--top", top, "K", "16", 1, 32, "ask: the best K episodes"),
    O_REAL("--recency", recency, "R", "0.2", 0, 10, "ask: bag counts the newest episode (1 + R) times the oldest"),
    O_INT("--neighbours", neighbours, "N", "0", 0, 4, "ask: with N episodes after and before each of them"),
    { NULL, "--limit", SIZE, AT(max_bytes), "BYTES", NULL, 1, 1e18, 0,
      "ask: hard ceiling of the working set, as 2MiB; fewer episodes are read then (default none)" },
    { NULL, "--ram", SIZE, AT(ram), "BYTES", NULL, 1, 1e18, 0,
      "hard ceiling of what the store keeps in RAM (default none)" },
    { NULL, "--kv", TEXT, AT(kv), "RECIPE", NULL, 0, 0, 0, "the working set's cache (default " MEMORY_KV ")" },
    O_FLAG("--guard", guard, "ask: pass over episodes whose answer disagrees with most (memguard)"),
    O_FLAG("--no-speaker", no_speaker, "ask: the question as it is, not as a line of a speaker of the text"),
    O_COUNT("32", 1, "ask: tokens of the answer at most"),
    O_TEXT("--policy", policy, "POLICY",
           "forget: memorybank(unit=5,theta=.1), hema(share=.005), fifo|lifo|lvfo|mvfo(keep=N)"),
    O_FLAG("--dry-run", dry_run, "forget: only say what would go"),
    O_THREADS, O_BACKEND, O_JSON, O_END };

static const command commands[] = {
    { "run", cmd_run, run_options, 0, 0, "-m MODEL (-p TEXT | -f FILE) [options]",
      "continue a text, remembering it as a recipe says",
      "Reads the prompt into the KV cache and writes the text that follows, token by token, whole\n"
      "UTF-8 characters only. Afterwards stderr has the speed and what the cache took, live and\n"
      "at its peak, beside what a full cache would have taken.",
      { "kvmem run -m model.gguf -p \"Once upon a time\" -n 120 --temp 0",
        "kvmem run -m model.gguf -f book.txt --kv \"snapkv budget=10% codec=q8_0\"" } },
    { "chat", cmd_chat, chat_options, 0, 0, "-m MODEL [options]",
      "talk, with the conversation kept in the cache",
      "Each line of input is a turn; only what is new is fed. The model's own chat format is used\n"
      "if kvmem knows it; otherwise kvmem says so. /bytes shows the cache, /clear forgets, /exit\n"
      "leaves.",
      { "kvmem chat -m model.gguf --system \"Answer in one sentence.\"",
        "kvmem chat -m model.gguf --kv \"streamingllm budget=1024\"" } },
    { "measure", cmd_measure, measure_options, 0, 0, "-m MODEL -f FILE [--kv RECIPE] [options]",
      "what a recipe costs in quality",
      "Feeds the text to a full float32 cache and to the recipe's in lock-step and compares each\n"
      "next-token distribution: negative log-likelihood and perplexity of both, KL divergence\n"
      "(mean, 99th percentile within 4.5 %, maximum) and how often the likeliest token is the\n"
      "same; by position and over all. Memory beside the caches is one row of logits. By default,\n"
      "and with --chunk, as llama.cpp's perplexity does it: the text is cut into independent pieces, each\n"
      "begins with the begin token, and the tokens of its second half are scored; the first half\n"
      "is the recipe's prompt. Positions count from a piece's start.",
      { "kvmem measure -m model.gguf -f text.txt --kv \"h2o budget=64\"",
        "kvmem measure -m model.gguf -f text.txt --kv \"streamingllm budget=256\" --stream" } },
    { "eval", cmd_eval, eval_options_table, 0, 0,
      "[-m MODEL] [--suite LIST] [--kv RECIPE]... [options]",
      "what recipes remember: accuracy against memory",
      "Tells the model seeded conversations, compresses the cache when the context ends, before\n"
      "any question is known, then asks many questions about the same compressed context. A cell\n"
      "is one recipe at one budget; `full` is the reference. Accuracies have 95 % intervals\n"
      "(Wilson; questions about one context are not quite independent), means over seeds have\n"
      "bootstrap intervals, and recipes are compared on the same questions by exact McNemar tests.",
      { "kvmem eval --suite conv --ctx 2k --budgets 12.5% --kv window --kv snapkv --seeds 13",
        "kvmem eval --suite all --ctx 1k,2k,4k --report report.html" } },
    { "demo", cmd_demo, demo_options, 0, 0, "[-m MODEL] [options]",
      "one conversation under several recipes, side by side",
      "Plays one long conversation, compresses the cache under each recipe, and asks: a line for\n"
      "each question with the right answer and theirs. Ends with a table and writes the report.",
      { "kvmem demo", "kvmem demo --budget 6.25% --kv h2o --kv tova --seed 7" } },
    { "logits", cmd_logits, logits_options, 0, 0, "-m MODEL --tokens IDS -o FILE [options]",
      "raw logits of given tokens",
      "Writes little-endian float32, one row of the vocabulary's size for each token.",
      { "kvmem logits -m model.gguf --tokens 1,403,407 -o rows.f32",
        "kvmem logits -m model.gguf --tokens-file ids.txt --kv \"full codec=q8_0\" -o rows.f32" } },
    { "tokenize", cmd_tokenize, tokenize_options, 0, 0, "-m MODEL (-p TEXT | -f FILE) [options]",
      "text to token ids",
      "Prints the ids on one line, separated by spaces. A GGUF file with nothing but a vocabulary\n"
      "will do.",
      { "kvmem tokenize -m vocab.gguf -p \"Hello world\"",
        "kvmem tokenize -m vocab.gguf -f text.txt --no-bos --pieces" } },
    { "detokenize", cmd_detokenize, detokenize_options, 0, INT_MAX, "-m MODEL [IDS...] [options]",
      "token ids to text",
      "Ids come as arguments, by --tokens or --tokens-file, or from stdin. Writes the text's\n"
      "bytes alone.",
      { "kvmem detokenize -m vocab.gguf 9906 1917",
        "kvmem tokenize -m vocab.gguf -f text.txt | kvmem detokenize -m vocab.gguf" } },
    { "inspect", cmd_inspect, inspect_options, 0, 0, "-m MODEL | --cache FILE",
      "what a model file or a saved cache holds",
      "Shape, tokenizer, what a token's keys and values take as f32, f16, q8_0 and q4_0, and the\n"
      "table of tensors; for a saved cache its recipe, shape, tokens and bytes.",
      { "kvmem inspect -m model.gguf", "kvmem inspect --cache story.kv --json" } },
    { "cache", cmd_cache, cache_options, 1, 2,
      "write -o FILE (-p TEXT | -f FILE) | inspect FILE | read FILE | plan FILE --gbps LIST | levels -f FILE",
      "caches in files: few bits a value, in chunks, at three levels",
      "A context that was read once can be stored and loaded instead of read again (CacheGen). Values\n"
      "are quantized by layer and level, then arithmetic-coded with a distribution for each channel.\n"
      "A file has chunks of tokens that load one by one, each at its own level or computed from its\n"
      "text. write reads a text and saves its cache; inspect shows chunks and bits a value; read loads\n"
      "a file, under any codec, and goes on with the text; plan says which level of each chunk to\n"
      "fetch so that all is there in time; levels measures what each level costs beside q8_0.",
      { "kvmem cache write -f book.txt -o book.kvs --all --chunk 256",
        "kvmem cache plan book.kvs --gbps 0.01,0.002 --slo 0.5 --rule paper" } },
    { "memory", cmd_memory, memory_options, 1, INT_MAX,
      "add FILE... | ask TEXT | list | show ID | forget [ID...] | verify | compact",
      "an episodic memory: texts kept in a file, read back by what a question needs",
      "add cuts texts into episodes of whole lines, reads each once and stores its keys and values. ask\n"
      "finds the episodes that fit the question, puts them one behind the other into a small cache,\n"
      "and lets the model answer: nothing is read again, and the cache stays under --limit however\n"
      "long the texts are. Printed are the answer, its sources (episode, file, lines) and bytes. forget\n"
      "deletes episodes by number, or those that a policy gives up: a forgetting curve in days\n"
      "(memorybank; after=N looks N days ahead), salience by age and use (hema), or so many stay (fifo,\n"
      "lifo; lvfo, mvfo: from the file that has the fewest, the most). verify reads everything; compact\n"
      "gives room back. What add has stored is safe even if the program is killed.",
      { "kvmem memory add talk.txt", "kvmem memory ask \"what is the city of Mia?\" --limit 2MiB" } },
    { "list", cmd_list, list_options, 0, 1, "[KEY | --matrix]",
      "presets and the entries of the seven stages",
      "One line each: key, what it is, paper, sentence. With a key, all there is to say about it:\n"
      "the expansion of a preset over the stages, the parameters of an entry; of a codec also\n"
      "formula and bits a value. --matrix asks for every pair whether it may stand in one recipe.",
      { "kvmem list snapkv", "kvmem list --matrix" } },
    { "codec", cmd_codec, codec_options, 1, 1, "SPEC -i X.npy -o Y.npy [options]",
      "arrays in, arrays out: what a codec makes of given rows",
      "SPEC is a codec as in recipes, q4_0 or kivi(bits=2), more terms may follow (page=32); or a\n"
      "preset. The rows go through a lane of a real cache, so centring, residual window, sinks and\n"
      "RoPE act as they do there. Prints exact bytes, bits a value and the relative error\n"
      "(sum of squares of x - y over that of x), and writes the decoded rows.",
      { "kvmem codec q4_0 -i keys.npy -o back.npy",
        "kvmem codec \"q8_0\" -i keys.npy -o back.npy -q queries.npy --dots scores.npy --json" } },
    { "score", cmd_score, score_options, 0, 0,
      "--kv RECIPE --heads H --kv-heads G --dim d -k K.npy [-v V.npy] [-q Q.npy] -o OUT.npy [options]",
      "arrays in, arrays out: how a method scores one layer's entries and which it keeps",
      "Q, K and V of one layer, dumped from any program, go through a real cache as a prompt. Written are\n"
      "the scores before anything is reduced, float32 (G, n), higher is kept; with --kept what the whole\n"
      "recipe leaves, by score, budget, select and reduce: int32 indices (G, most), rising, -1 behind\n"
      "the last. Rows are after RoPE unless --pre-rope; with --rope the cache knows them before it, too.",
      { "kvmem score --kv \"snapkv budget=25%\" --heads 8 --kv-heads 2 --dim 64 -k k.npy -q q.npy -o s.npy",
        "kvmem score --kv \"tova budget=64\" --heads 8 --kv-heads 2 -k k.npy -q q.npy -v v.npy --kept -o i.npy" } },
    { "retrieve", cmd_retrieve, retrieve_options, 1, 1,
      "SPEC -k K.npy -q Q.npy [--heads H --kv-heads G] [-v V.npy] [--top N] [options]",
      "arrays in, arrays out: which entries a method reads for a query, beside the exact best",
      "SPEC is a preset, a recipe or a retrieve entry with its parameters. Keys of one layer go through a\n"
      "cache as a prompt; then each query asks what it reads. Printed for each head: the entries, how many\n"
      "of the exact top N are among them, the share of the softmax they cover; and the share of keys read.",
      { "kvmem retrieve \"quest(budget=256)\" -k k.npy -q q.npy --heads 8 --kv-heads 2 --top 32",
        "kvmem retrieve tidal -k k.npy -q q.npy -v v.npy --heads 8 --kv-heads 2 --prompt-tokens 500 --json" } },
    { "segment", cmd_segment, segment_options, 1, 16, "SPEC... [--text FILE | --suite NAME | arrays] [options]",
      "where a stream breaks into events, and how good the places are",
      "SPEC is a segmenter as in recipes: surprise(gamma=1,refine=modularity), tdc(n=24), turn,\n"
      "louis(tau=0.7), or segment=... with more terms. One SPEC and one stream: the starts are printed,\n"
      "with a text what stands there (* a true one). Then, where there are true starts: precision, recall\n"
      "and F1 within +-T tokens; where there are keys: mean key similarity inside events over that across,\n"
      "modularity and conductance of the partition. Beside each as many cuts at equal distances and at\n"
      "random. Surprise is -ln p of a token: an event begins where it passes mean + gamma deviations.",
      { "kvmem segment \"surprise(gamma=1,min=4)\" --text book.txt -m model.gguf --turn-ends \"\\n\"",
        "kvmem segment surprise \"surprise(refine=modularity)\" tdc --suite conv --true topics --seeds 8" } },
    { "estimate", cmd_estimate, estimate_options, 0, 0,
      "(-m MODEL | --shape SHAPE) --ctx N [options]",
      "bytes of a cache before anything is allocated",
      "Counts what a prompt of N tokens and then --decode tokens would take under the recipe.",
      { "kvmem estimate --shape L=16,H=32,G=8,d=64 --ctx 16384 --kv \"snapkv budget=10%\"",
        "kvmem estimate -m model.gguf --ctx 4096 --decode 1000 --kv \"full codec=q8_0\"" } },
    { "profile", cmd_profile, profile_options, 0, 0, "[-m MODEL] [-o FILE] [-f TEXT] [--evo AMOUNT]",
      "what a model's heads and layers are like, for budgets that go by it",
      "Measures which heads repeat what they saw (echo, induction), which find what is copied\n"
      "(retrieval, semantic), which look far (duo), how layers bear a block mask (keysim) and a tiny\n"
      "cache (error), and what each head needs of its past (lukv). Writes a small text file that recipes\n"
      "name: --kv \"duo profile=FILE\". --evo searches layer budgets by the model's own loss.",
      { "kvmem profile -m model.gguf -f book.txt -o model.profile",
        "kvmem profile -o tiny.profile --evo 12.5% --generations 10" } },
    { "cost", cmd_cost, cost_options, 0, 0,
      "(-m MODEL | --layers L --kv-heads G --head-dim d --hidden Dm --params P) [options]",
      "what the size of the cache costs a server: time, users, answers",
      "Four numbers decide what long contexts cost, and the cache is in all of them (Fu 2024,\n"
      "arXiv 2405.08944). With the letters of the options below and c, the share that is kept:\n"
      "  bytes    KV = 2 L G d n by\n"
      "  prefill  n (2 P + 2 L n Dm) / F   operations decide; a smaller cache does not help\n"
      "  decode   D (Wb + c KV) / R        every token reads all weights and the whole cache\n"
      "  users    floor((M - Wb) / (c KV)) whose caches fit beside the weights\n"
      "  swap     2 c KV / X               one user's cache goes out, another's comes in\n"
      "  rounds   u / (prefill / r + D (Wb + u c KV) / R + swap), u = min(users, S); swap if S > users\n"
      "So twice the bandwidth halves decode alone, and half the cache halves swap and doubles users.\n"
      "A formula knows peaks, not kernels: --measure sets a real decode beside it.",
      { "kvmem cost --layers 60 --kv-heads 8 --head-dim 128 --hidden 4096 --params 34e9 --kv \"snapkv codec=f16\"",
        "kvmem cost --measure -m model.gguf --ctx 512,1024,2048 --machine h100" } } };
#define N_COMMANDS ((int)(sizeof commands / sizeof *commands))

static void print_commands(void) {
    int i;
    put("kvmem %d.%d.%d - the memory of a transformer\n\nusage: kvmem COMMAND [options]\n\n",
        KVMEM_VERSION_MAJOR, KVMEM_VERSION_MINOR, KVMEM_VERSION_PATCH);
    for (i = 0; i < N_COMMANDS; i++) put("  %-11s %s\n", commands[i].name, commands[i].what);
    put("\n  kvmem COMMAND --help says more; kvmem --version names the version.\n");
}
static int run_command(const command *c, int argc, char **argv) {
    args a;
    int status;
    command_name = c->name;
    status = parse_args(c, &a, argc, argv);
    if (status == OK) status = c->run(&a);
    else if (status < 0) status = OK;
    free(a.word);
    return status == OK ? flush_out(stdout) : status;
}
int main(int argc, char **argv) {
    nearest near = { NULL, 0 };
    static char help[] = "-h";
    int i, status = -1;
    if (argc < 2) {
        print_commands();
        flush_out(stderr);
        return MISUSED;
    }
    if (!strcmp(argv[1], "help") && argc > 2) { /* kvmem help COMMAND */
        argv[1] = argv[2];
        argv[2] = help;
    } else if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_commands();
        status = flush_out(stdout);
    } else if (!strcmp(argv[1], "--version")) {
        const int v = kvmem_version();
        put("kvmem %d.%d.%d\n", v / 10000, v / 100 % 100, v % 100);
        status = flush_out(stdout);
    }
    for (i = 0; i < N_COMMANDS && status < 0; i++) {
        if (!strcmp(commands[i].name, argv[1]))
            status = run_command(&commands[i], argc - 2, argv + 2);
        else consider(&near, argv[1], commands[i].name);
    }
    if (status < 0 && near.word)
        status = misuse("unknown command '%s'; did you mean %s?", argv[1], near.word);
    if (status < 0) status = misuse("unknown command '%s'", argv[1]);
    free(out.text);
    return status;
}
