/* corpus.c - shows the synthetic language of long conversations that kvmem is trained and judged
   on: as text, as token ids, as numbers. The language itself is explained in corpus.h.

       cc -O2 -I. -o corpus tools/corpus.c
       ./corpus                                      a stream as text
       ./corpus --length 300 --filler 0 --persons 4  a dense drill: facts and questions only
       ./corpus --suite conv --ctx 1024              an evaluation: context, questions, answers
       ./corpus --stats --streams 1000               what such streams consist of
       ./corpus --help                               everything, with a lesson */
#include "corpus.h"
#include <stdio.h>

enum { SHOW_TEXT, SHOW_IDS, SHOW_QUESTIONS, SHOW_STATS, SHOW_HASH };

typedef struct corpus_cli {
    corpus_params p;
    corpus_eval_params e;
    int streams, show, suite, width;
    const char *gguf;
} corpus_cli;

typedef struct cli_option { const char *name; int *value; const char *what; } cli_option;
enum { N_OPTIONS = 22 };

static void cli_options(corpus_cli *c, cli_option *o) {
    corpus_params *p = &c->p;
    int n = 0;
#define OPTION(nm, to, text) (o[n].name = nm, o[n].value = to, o[n].what = text, n++)
    OPTION("--length", &p->length, "tokens of a stream");
    OPTION("--persons", &p->persons, "persons in a stream, 1..64; 0: 12, or the suite's choice");
    OPTION("--attrs", &p->attrs, "attributes in a stream, 1..8; 0: 4, or the suite's choice");
    OPTION("--facts", &p->facts, "most facts told; 0: as many as come, or the suite's choice");
    OPTION("--filler", &p->filler, "per cent of lines that are small talk");
    OPTION("--ask", &p->ask, "per cent of the other lines that are questions");
    OPTION("--update", &p->update, "per cent of tellings that change an earlier fact");
    OPTION("--twice", &p->twice, "per cent of tellings that repeat an earlier fact");
    OPTION("--chain", &p->chain, "per cent of tellings that are relations, of two-step questions");
    OPTION("--order", &p->order, "per cent of questions that ask which was first");
    OPTION("--copy", &p->copy, "per cent of tellings that are notes, of questions that read one");
    OPTION("--distract", &p->distract, "per cent of lines that name a person and tell nothing");
    OPTION("--raw-copy", &p->raw_copy, "N: random words and repeats instead of language, asked for after N");
    OPTION("--raw-gram", &p->raw_gram, "with --raw-copy: so many different words only");
    OPTION("--held-out", &p->held_out, "1: combinations (and seeds) that training never sees");
    OPTION("--streams", &c->streams, "how many, from --seed on");
    OPTION("--ctx", &c->e.ctx, "evaluation: tokens of the context");
    OPTION("--questions", &c->e.questions, "evaluation: most questions; 0: the suite's choice");
    OPTION("--depth", &c->e.depth, "needle: where the fact stands, per mille");
    OPTION("--seed", NULL, "of the first stream: a number below 2^63");
    OPTION("--suite", NULL, "evaluation instead of a stream: conv needle multi order copy ppl");
    OPTION("--gguf", NULL, "write the vocabulary alone as a GGUF file, for other programs");
#undef OPTION
}

static void cli_help(corpus_cli *c) {
    cli_option o[N_OPTIONS];
    int i;
    cli_options(c, o);
    printf(
        "corpus: long conversations made by rule, to train and judge memory\n\n"
        "Speakers chat about a topic, and now and then one tells a fact about a person who is not\n"
        "there. Later somebody asks. To answer, a model must find the line again, however far\n"
        "back; if the fact was told anew, the latest line:\n\n"
        "    Ana: the city of Mia is Paris.                 a fact\n"
        "    Ben: we often watered the tulip.               filler\n"
        "    Cleo: now the city of Mia is Rome.             an update\n"
        "    Dan: what is the city of Mia? Rome.            a question; the answer is one token\n"
        "    Eli: the friend of Leo is Mia.                 a relation\n"
        "    Fay: what is the city of the friend of Leo? Rome.        two steps\n"
        "    Gus: which was first, the city of Mia or the pet of Leo? city.\n"
        "    Ivy: note alpha says red tea cat golf pie rum Oslo hen.  to be copied\n\n"
        "One seed, one stream, on every machine. Training and evaluation share neither seeds nor\n"
        "(person, attribute, value) combinations: four values in 24 are held out for each pair.\n\n"
        "Usage: corpus [what] [options]\n"
        "  --text           the stream as text (the default)\n"
        "  --ids            the token ids, one stream a line\n"
        "  --list           the questions: kind, distance in tokens, answer\n"
        "  --stats          lines, questions by kind and by distance, over all streams\n"
        "  --vocab          the vocabulary: id and text\n"
        "  --hash           a checksum over all streams\n"
        "Options (value after a blank; what is in brackets if left out)\n");
    for (i = 0; i < N_OPTIONS; i++) {
        char value[16] = "";
        if (o[i].value) sprintf(value, " [%d]", *o[i].value);
        printf("  %-12s %s%s\n", o[i].name, o[i].what, value);
    }
    printf("\nExamples\n"
           "  corpus --length 300 --filler 0 --persons 4    dense recall drill\n"
           "  corpus --length 64 --raw-copy 1               plain copying, to be learned first\n"
           "  corpus --suite needle --ctx 512 --depth 250   one fact in a quarter of the text\n"
           "  corpus --stats --streams 1000 --length 2048   what a model would be trained on\n");
}

static void print_ids_as_text(const int *ids, int n) {
    char text[16];
    int i;
    for (i = 0; i < n; i++) {
        if (ids[i] < CORPUS_N_SPECIAL) printf("%s", corpus_word(ids[i]));
        else fwrite(text, 1, (size_t)corpus_text(ids[i], text), stdout);
    }
}
static void print_vocabulary(void) {
    int i;
    for (i = 0; i < corpus_n_vocab(); i++) {
        const char *w = corpus_word(i);
        if (!w) printf("%d\tbyte %02x\n", i, (unsigned)(i - CORPUS_BYTES));
        else if (strchr(w, '\n')) printf("%d\t\".\\n\"\n", i);
        else printf("%d\t\"%s\"\n", i, w);
    }
}

/* --- one stream, one evaluation --------------------------------------------------------------- */

static void print_stream(const corpus_stream *s, int show) {
    int i;
    if (show == SHOW_TEXT) {
        print_ids_as_text(s->ids, s->n);
        printf("\n");
    } else if (show == SHOW_IDS) {
        for (i = 0; i < s->n; i++) printf("%s%d", i ? " " : "", s->ids[i]);
        printf("\n");
    } else
        for (i = 0; i < s->n_q; i++) {
            const corpus_question *q = &s->q[i];
            printf("%-8s at %-6d told %-6d distance %-6d%s ", corpus_kind_name(q->kind), q->at,
                   q->told, q->at - q->told, q->again ? " again" : "");
            print_ids_as_text(s->ids + q->at, q->n);
            printf("\n");
        }
}
static void print_test(const corpus_test *t, int show) {
    int i;
    if (show != SHOW_QUESTIONS) print_stream(&t->stream, show);
    if (show == SHOW_IDS) return;
    for (i = 0; i < t->n_q; i++) {
        const corpus_prompt *q = &t->q[i];
        printf("%-8s told %-6d asked %d  ", corpus_kind_name(q->kind), q->told, q->asked);
        print_ids_as_text(q->ids, q->n);
        print_ids_as_text(q->answer, q->n_answer);
        printf("\n");
    }
}

/* --- statistics ------------------------------------------------------------------------------- */

enum { N_DISTANCES = 16 }; /* distance d is counted under the highest bit of d */
typedef struct corpus_stats {
    long tokens, streams, answers, lines, kind[CORPUS_KINDS], distance[CORPUS_KINDS][N_DISTANCES];
    long fact, filler, ask, session, note;
} corpus_stats;

static int is_word(const corpus_stream *s, int i, const char *word) {
    const char *w = i < s->n ? corpus_word(s->ids[i]) : NULL;
    return w && !strcmp(w, word);
}
/* What the line is, from its first words: they stand behind speaker and colon. */
static void count_line(corpus_stats *k, const corpus_stream *s, int at, int end) {
    k->lines++;
    if (is_word(s, at, "Session")) k->session++;
    else if (is_word(s, at + 2, " what") || is_word(s, at + 2, " which") ||
             is_word(s, at + 2, " read"))
        k->ask++;
    else if (is_word(s, at + 2, " note")) k->note++;
    else if (is_word(s, at + 4, " of") && at + 4 < end) k->fact++;
    else k->filler++;
}
static void count_question(corpus_stats *k, int kind, int distance) {
    int b = 0;
    while (b + 1 < N_DISTANCES && distance >> (b + 1)) b++;
    k->kind[kind]++;
    k->distance[kind][b]++;
}
static void count_stream(corpus_stats *k, const corpus_stream *s) {
    int i, from = 1;
    k->streams++;
    k->tokens += s->n;
    for (i = 1; i < s->n; i++) {
        k->answers += s->answer[i];
        if (!is_word(s, i, ".\n")) continue;
        count_line(k, s, from, i);
        from = i + 1;
    }
    for (i = 0; i < s->n_q; i++) count_question(k, s->q[i].kind, s->q[i].at - s->q[i].told);
}
static void print_stats(const corpus_stats *k) {
    const double lines = k->lines ? (double)k->lines / 100 : 1;
    int kind, b, last = 0;
    printf("%ld streams, %ld tokens, %ld answer tokens (%.2f %%)\n", k->streams, k->tokens,
           k->answers, 100.0 * (double)k->answers / (double)(k->tokens ? k->tokens : 1));
    printf("%ld lines: %.1f %% filler, %.1f %% facts, %.1f %% notes, %.1f %% questions, "
           "%.1f %% session heads\n",
           k->lines, (double)k->filler / lines, (double)k->fact / lines, (double)k->note / lines,
           (double)k->ask / lines, (double)k->session / lines);
    for (kind = 0; kind < CORPUS_KINDS; kind++)
        for (b = 0; b < N_DISTANCES; b++) if (k->distance[kind][b] && b > last) last = b;
    printf("questions by tokens back to the value (each column: from so many on)\n%-9s%8s", "",
           "all");
    for (b = 2; b <= last; b++) printf("%8d", 1 << b);
    printf("\n");
    for (kind = 0; kind < CORPUS_KINDS; kind++) {
        printf("%-9s%8ld", corpus_kind_name(kind), k->kind[kind]);
        for (b = 2; b <= last; b++) printf("%8ld", k->distance[kind][b]);
        printf("\n");
    }
}

/* --- the program ------------------------------------------------------------------------------ */

static int write_file(void *user, const void *p, size_t n) {
    return fwrite(p, 1, n, (FILE *)user) != n;
}
/* The vocabulary alone; the shape keys are those that programs want to see. */
static int write_gguf(const char *path) {
    gguf_writer g;
    FILE *f = fopen(path, "wb");
    int bad;
    if (!f) {
        fprintf(stderr, "corpus: cannot write %s\n", path);
        return 1;
    }
    memset(&g, 0, sizeof g);
    strcpy(g.arch, "llama");
    gguf_kv_str(&g, "general.architecture", "llama");
    gguf_kv_str(&g, "general.name", "kvmem corpus vocabulary");
    gguf_kv_u32(&g, ".vocab_size", corpus_n_vocab());
    gguf_kv_u32(&g, ".context_length", 4096);
    gguf_kv_u32(&g, ".embedding_length", 64);
    gguf_kv_u32(&g, ".block_count", 1);
    gguf_kv_u32(&g, ".feed_forward_length", 64);
    gguf_kv_u32(&g, ".attention.head_count", 1);
    gguf_kv_f32(&g, ".attention.layer_norm_rms_epsilon", 1e-5);
    corpus_write_vocab(&g);
    gguf_head(&g, write_file, f);
    bad = g.failed;
    if (fclose(f) && !bad) {
        bad = 1;
        strcpy(g.why, "cannot finish the file");
    }
    if (bad) {
        fprintf(stderr, "corpus: %s: %s\n", path, g.why);
        remove(path);
    }
    gguf_writer_free(&g);
    return bad;
}
static int cli_fail(const char *what, const char *why) {
    fprintf(stderr, "corpus: %s: %s (--help explains)\n", what, why);
    return 2;
}
/* One option; 0, or an exit status. *i moves on to the value. */
static int cli_parse(corpus_cli *c, int argc, char **argv, int *i) {
    static const char *const shows[] = { "--text", "--ids", "--list", "--stats", "--hash" };
    cli_option o[N_OPTIONS];
    const char *name = argv[*i], *value;
    char *end;
    int k;
    for (k = 0; k < 5; k++) {
        if (!strcmp(name, shows[k])) {
            c->show = k;
            return 0;
        }
    }
    cli_options(c, o);
    for (k = 0; k < N_OPTIONS && strcmp(o[k].name, name); k++) {}
    if (k == N_OPTIONS) return cli_fail(name, "unknown option");
    if (*i + 1 == argc) return cli_fail(name, "its value is missing");
    value = argv[++*i];
    if (!strcmp(name, "--gguf")) {
        c->gguf = value;
        return 0;
    }
    if (!strcmp(name, "--suite")) {
        for (c->suite = 0; corpus_suite_name(c->suite); c->suite++)
            if (!strcmp(corpus_suite_name(c->suite), value)) return 0;
        return cli_fail(value, "unknown suite");
    }
    if (o[k].value) {
        const long v = strtol(value, &end, 10);
        if (v < -(1L << 30) || v > 1L << 30) return cli_fail(name, "out of range");
        *o[k].value = (int)v;
    } else c->p.seed = strtoull(value, &end, 0);
    return *end || end == value ? cli_fail(name, "its value is not a number") : 0;
}
static int cli_run(corpus_cli *c) {
    corpus_stream s;
    corpus_test t;
    static corpus_stats stats;
    uint64_t hash = CORPUS_HASH_START;
    const corpus_stream *made = c->suite < 0 ? &s : &t.stream;
    int i, k, bad = 0;
    memset(&s, 0, sizeof s);
    memset(&t, 0, sizeof t);
    for (i = 0; i < c->streams && !bad; i++) {
        corpus_params p = c->p;
        corpus_eval_params e = c->e;
        p.seed = e.seed = c->p.seed + (uint64_t)i;
        bad = c->suite < 0 ? corpus_make(&s, &p) : corpus_test_make(&t, &e);
        if (bad) break;
        if (c->show == SHOW_HASH) hash = corpus_hash(hash, made);
        else if (c->show == SHOW_STATS) {
            count_stream(&stats, made);
            for (k = 0; k < t.n_q; k++) count_question(&stats, t.q[k].kind, t.n - t.q[k].told);
        } else if (c->suite < 0) print_stream(&s, c->show);
        else print_test(&t, c->show);
    }
    corpus_free(&s);
    corpus_test_free(&t);
    if (bad) return cli_fail("stream", corpus_error(bad));
    if (c->show == SHOW_STATS) print_stats(&stats);
    if (c->show == SHOW_HASH)
        printf("%08lx%08lx\n", (unsigned long)(hash >> 32), (unsigned long)(hash & 0xffffffffu));
    return fflush(stdout) || ferror(stdout) ? cli_fail("output", "cannot be written") : 0;
}

int main(int argc, char **argv) {
    corpus_cli c;
    const char *why;
    int i, bad;
    memset(&c, 0, sizeof c);
    c.p.length = 400;
    c.p.filler = 50;
    c.p.ask = 40;
    c.p.update = 15;
    c.p.twice = c.p.chain = c.p.order = c.p.copy = 10;
    c.p.distract = 3;
    c.e.ctx = 1024;
    c.e.depth = 500;
    c.streams = 1;
    c.suite = -1;
    for (i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return cli_help(&c), 0;
        if (!strcmp(argv[i], "--vocab")) return print_vocabulary(), 0;
    }
    for (i = 1; i < argc; i++)
        if ((bad = cli_parse(&c, argc, argv, &i)) != 0) return bad;
    if (c.gguf) return write_gguf(c.gguf);
    c.e.suite = c.suite < 0 ? 0 : c.suite;
    c.e.facts = c.p.facts;
    c.e.persons = c.p.persons;
    c.e.attrs = c.p.attrs;
    if (!c.p.persons) c.p.persons = 12;
    if (!c.p.attrs) c.p.attrs = 4;
    why = c.suite < 0 ? corpus_check(&c.p) : corpus_test_check(&c.e);
    return why ? cli_fail("parameters", why) : cli_run(&c);
}
