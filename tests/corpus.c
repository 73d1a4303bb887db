/* The synthetic language: what tools/corpus.h writes is read again here from the text alone, by
   other code, and every answer must be the one that a careful reader would give. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE
#endif
#include "test.h"
#include "../tools/corpus.h"
#include <stddef.h>

typedef struct memory_file { unsigned char *p; size_t n, cap; } memory_file;
static int memory_write(void *user, const void *p, size_t n) {
    memory_file *f = (memory_file *)user;
    if (f->n + n > f->cap) {
        const size_t cap = (f->n + n) * 2;
        unsigned char *q = (unsigned char *)realloc(f->p, cap);
        if (!q) return 1;
        f->p = q;
        f->cap = cap;
    }
    memcpy(f->p + f->n, p, n);
    f->n += n;
    return 0;
}
/* A file of the vocabulary alone, and the library's tokenizer on it. 0 if all went well. */
static int open_vocabulary(memory_file *f, kvmem_tokenizer *tok) {
    gguf_writer w;
    kvmem_gguf g;
    int bad;
    memset(&w, 0, sizeof w);
    memset(f, 0, sizeof *f);
    memset(tok, 0, sizeof *tok);
    strcpy(w.arch, "llama");
    gguf_kv_str(&w, "general.architecture", "llama");
    corpus_write_vocab(&w);
    gguf_head(&w, memory_write, f);
    bad = w.failed;
    gguf_writer_free(&w);
    bad = bad || kvmem_gguf_open(&g, f->p, f->n, NULL);
    if (bad) return 1;
    bad = kvmem_tokenizer_open_gguf(tok, &g, NULL) != KVMEM_OK;
    if (bad) printf("  %s\n", tok->error.text);
    kvmem_gguf_close(&g);
    return bad;
}

/* Parameters that differ widely from seed to seed; every switch is on somewhere. */
static corpus_params some_params(uint64_t seed) {
    const uint64_t r = kvmem__mix(seed * 2 + 1), q = kvmem__mix(r);
    corpus_params p;
    memset(&p, 0, sizeof p);
    p.length = 16 + (int)(r % 1500);
    p.persons = 1 + (int)(r >> 16 & 63);
    p.attrs = 1 + (int)(r >> 24 & 7);
    p.facts = r >> 32 & 1 ? (int)(r >> 33 & 31) : 0;
    p.filler = r >> 38 & 1 ? (int)((r >> 39 & 1023) % 95) : 0;
    p.ask = (int)((r >> 49 & 1023) % 90);
    p.update = (int)(q & 31);
    p.twice = (int)(q >> 5 & 31);
    p.chain = (int)(q >> 10 & 31);
    p.order = (int)(q >> 15 & 31);
    p.copy = (int)(q >> 20 & 31);
    p.distract = q >> 25 & 1 ? (int)(q >> 26 & 31) : 0;
    p.held_out = (int)(q >> 32 & 1);
    p.seed = seed;
    return p;
}

TEST(the_vocabulary_has_768_tokens_and_no_word_twice) {
    int i, j;
    CHECK(corpus_n_vocab() == 768);
    for (i = 258; i < corpus_n_vocab(); i++) {
        REQUIRE(corpus_word(i) != NULL);
        for (j = 258; j < i; j++)
            if (!strcmp(corpus_word(i), corpus_word(j))) FAIL_AT("twice:%s", corpus_word(i));
    }
}
TEST(text_becomes_the_ids_of_the_stream_and_back) {
    memory_file f;
    kvmem_tokenizer tok;
    kvmem_error error;
    corpus_stream s;
    static char text[40000], again[40000];
    static int ids[40000];
    int k, i;
    memset(&s, 0, sizeof s);
    REQUIRE(open_vocabulary(&f, &tok) == 0);
    CHECK(tok.n_vocab == corpus_n_vocab() && tok.bos == CORPUS_BOS && tok.eos == CORPUS_EOT);
    CHECK(kvmem_token_is_eog(&tok, CORPUS_EOT) && !kvmem_token_is_eog(&tok, CORPUS_BOS));
    for (k = 0; k < 200; k++) {
        const corpus_params p = some_params((uint64_t)k);
        size_t len = 0, back, n = 0;
        REQUIRE(corpus_make(&s, &p) == CORPUS_OK && s.n == p.length);
        for (i = 1; i < s.n; i++) len += (size_t)corpus_text(s.ids[i], text + len);
        REQUIRE_OK(kvmem_tokenize(&tok, text, len, KVMEM_ADD_SPECIAL, ids, 40000, &n, &error));
        REQUIRE(n == (size_t)s.n);
        CHECK(!memcmp(ids, s.ids, n * sizeof *ids));
        back = kvmem_detokenize(&tok, s.ids, (size_t)s.n, 0, again, sizeof again);
        CHECK(back == len && !memcmp(text, again, len));
    }
    corpus_free(&s);
    kvmem_tokenizer_close(&tok);
    free(f.p);
}
TEST(a_word_that_is_not_in_the_vocabulary_becomes_bytes_and_the_special_names_are_tokens) {
    memory_file f;
    kvmem_tokenizer tok;
    kvmem_error error;
    const char *text = "<|bos|>Ana: I saw Zyx.\n";
    static const int want[] = { 0, 260, 2 + ':' };
    char out[64];
    int ids[64];
    size_t len, n = 0;
    REQUIRE(open_vocabulary(&f, &tok) == 0);
    REQUIRE_OK(kvmem_tokenize(&tok, text, strlen(text), KVMEM_PARSE_SPECIAL, ids, 64, &n, &error));
    CHECK(n == 10 && !memcmp(ids, want, sizeof want) && ids[5] == 2 + ' ' && ids[8] == 2 + 'x');
    len = kvmem_detokenize(&tok, ids, n, KVMEM_SHOW_SPECIAL, out, sizeof out);
    CHECK(len == strlen(text) && !memcmp(out, text, len));
    kvmem_tokenizer_close(&tok);
    free(f.p);
}

/* --- a reader who knows nothing of the generator but the grammar ---------------------------- */

typedef struct reader_fact {
    char person[16], attr[16], value[16];
    int first, at, told, changed;
} reader_fact;
typedef struct reader {
    reader_fact fact[700];
    char label[16][16], note[16][128];
    int note_at[16], n_fact, n_note;
    int filler, tellings, questions, sessions; /* lines */
    int with_name;                             /* other lines with a person or a value in them */
} reader;
typedef struct reader_answer { char text[128]; int kind, told; } reader_answer;

static reader_fact *reader_find(reader *r, const char *attr, const char *person) {
    int i;
    for (i = 0; i < r->n_fact; i++)
        if (!strcmp(r->fact[i].attr, attr) && !strcmp(r->fact[i].person, person))
            return &r->fact[i];
    return NULL;
}
/* What is right after "?" in this line or prompt: 1, or 0 if it is no question or unanswerable. */
static int reader_asked(reader *r, const char *line, reader_answer *a) {
    char at1[16], p1[16], at2[16], p2[16];
    reader_fact *f, *g;
    int i;
    line = strchr(line, ':');
    if (!line) return 0;
    if (sscanf(line, ": what is the %15s of the %15s of %15[^?]?", at1, at2, p1) == 3) {
        f = reader_find(r, at2, p1);
        g = f ? reader_find(r, at1, f->value) : NULL;
        if (!g) return 0;
        strcpy(a->text, g->value);
        a->kind = CORPUS_CHAIN;
        a->told = g->at;
        return 1;
    }
    if (sscanf(line, ": what is the %15s of %15[^?]?", at1, p1) == 2) {
        f = reader_find(r, at1, p1);
        if (!f) return 0;
        strcpy(a->text, f->value);
        a->kind = f->changed ? CORPUS_UPDATED : f->told > 1 ? CORPUS_TWICE : CORPUS_SINGLE;
        a->told = f->at;
        return 1;
    }
    if (sscanf(line, ": which was first, the %15s of %15s or the %15s of %15[^?]?", at1, p1, at2,
               p2) == 4) {
        f = reader_find(r, at1, p1);
        g = reader_find(r, at2, p2);
        if (!f || !g || !strcmp(at1, at2)) return 0;
        if (g->first < f->first) f = g;
        strcpy(a->text, f->attr);
        a->kind = CORPUS_ORDER;
        a->told = f->first;
        return 1;
    }
    if (sscanf(line, ": read note %15[^?]?", p1) == 1) {
        for (i = 0; i < r->n_note && strcmp(r->label[i], p1); i++) {}
        if (i == r->n_note) return 0;
        strcpy(a->text, r->note[i]);
        a->kind = CORPUS_COPY;
        a->told = r->note_at[i];
        return 1;
    }
    return 0;
}
/* A line that tells something: 1. at: position of its first token, n: its tokens. */
static int reader_told(reader *r, const char *line, int at, int n) {
    char attr[16], person[16], value[16];
    const char *colon = strchr(line, ':');
    reader_fact *f;
    int now = 1;
    if (!colon) return 0;
    if (sscanf(colon, ": note %15s says %120[^.].", attr, r->note[r->n_note]) == 2) {
        strcpy(r->label[r->n_note], attr);
        r->note_at[r->n_note++] = at + 5;
        return 1;
    }
    if (sscanf(colon, ": now the %15s of %15s is %15[^.].", attr, person, value) != 3) {
        now = 0;
        if (sscanf(colon, ": the %15s of %15s is %15[^.].", attr, person, value) != 3) return 0;
    }
    f = reader_find(r, attr, person);
    if (!f) {
        if (now) FAIL_AT("updated before it was told: %s", line);
        f = &r->fact[r->n_fact++];
        memset(f, 0, sizeof *f);
        strcpy(f->attr, attr);
        strcpy(f->person, person);
        f->first = at + n - 2;
    } else if ((strcmp(f->value, value) == 0) == now)
        FAIL_AT("no news, or news without now: %s", line);
    if (now) f->changed = 1;
    strcpy(f->value, value);
    f->at = at + n - 2;
    f->told++;
    return 1;
}
/* Reads a stream line by line; every question must stand in s->q with the reader's answer. */
static void read_stream(reader *r, const corpus_stream *s) {
    static char line[512];
    int i = 1, q = 0, from, marked = 0, k;
    memset(r, 0, sizeof *r);
    REQUIRE(s->ids[0] == CORPUS_BOS);
    while (i < s->n) {
        size_t len = 0;
        reader_answer a;
        char *said;
        int names = 0;
        for (from = i; i < s->n; i++) {
            const char *w = corpus_word(s->ids[i]);
            len += (size_t)corpus_text(s->ids[i], line + len);
            names += s->ids[i] >= corpus_value_id(0, 0) && s->ids[i] <= corpus_value_id(7, 23);
            names += s->ids[i] >= corpus_person_id(0) && s->ids[i] <= corpus_person_id(63);
            if (w && !strcmp(w, ".\n")) break;
        }
        line[len] = 0;
        if (i++ == s->n) break; /* cut */
        if (!strncmp(line, "Session: ", 9)) { r->sessions++; continue; }
        if (reader_told(r, line, from, i - from)) { r->tellings++; continue; }
        said = strchr(line, '?');
        if (!said) { r->filler++; r->with_name += names > 0; continue; }
        r->questions++;
        memset(&a, 0, sizeof a);
        REQUIRE(q < s->n_q);
        if (!reader_asked(r, line, &a)) { FAIL_AT("cannot be known: %s", line); return; }
        line[len - 2] = 0; /* ".\n" */
        if (strcmp(said + 2, a.text)) FAIL_AT("%s, but: %s", line, a.text);
        CHECK(s->q[q].kind == a.kind && s->q[q].told == a.told);
        CHECK(s->q[q].at + s->q[q].n == i - 1 && s->q[q].n == (a.kind == CORPUS_COPY ? 8 : 1));
        for (k = s->q[q].at; k < i - 1; k++) CHECK(s->answer[k] == 1);
        marked += s->q[q].n;
        q++;
    }
    /* in the line that was cut the answer may be whole: only its full stop is missing then */
    CHECK(s->n_q == q || (s->n_q == q + 1 && s->q[q].at + s->q[q].n == s->n));
    if (s->n_q > q) marked += s->q[q].n;
    for (i = 0; i < s->n; i++) marked -= s->answer[i];
    CHECK(marked == 0);
}

static reader the_reader;

TEST(every_answer_is_the_one_that_a_careful_reader_gives) {
    corpus_stream s;
    int kinds[CORPUS_KINDS] = { 0 }, again = 0, k, i;
    memset(&s, 0, sizeof s);
    for (k = 0; k < 1500 && !test_bad; k++) {
        const corpus_params p = some_params((uint64_t)k);
        REQUIRE(corpus_make(&s, &p) == CORPUS_OK && s.n == p.length);
        read_stream(&the_reader, &s);
        if (test_bad) printf("  seed %d\n", k);
        if (!p.distract) CHECK(the_reader.with_name == 0);
        for (i = 0; i < s.n_q; i++) {
            kinds[s.q[i].kind]++;
            again += s.q[i].again;
        }
    }
    for (i = 0; i < CORPUS_KINDS; i++)
        if (kinds[i] < 500) FAIL_AT("%s: %d", corpus_kind_name(i), kinds[i]);
    CHECK(again > 500);
    corpus_free(&s);
}
TEST(the_shares_of_lines_are_those_that_were_asked_for) {
    corpus_stream s;
    corpus_params p;
    int k, lines = 0, filler = 0, named = 0, asked = 0, told = 0, updated = 0, tellings = 0, i;
    memset(&s, 0, sizeof s);
    memset(&p, 0, sizeof p);
    p.length = 4096;
    p.persons = 64;
    p.attrs = 8;
    p.filler = 60;
    p.ask = 40;
    p.update = 20;
    p.distract = 10;
    for (k = 0; k < 30; k++) {
        p.seed = (uint64_t)k;
        REQUIRE(corpus_make(&s, &p) == CORPUS_OK);
        read_stream(&the_reader, &s);
        lines += the_reader.filler + the_reader.tellings + the_reader.questions;
        filler += the_reader.filler;
        named += the_reader.with_name;
        asked += the_reader.questions;
        told += the_reader.questions + the_reader.tellings;
        tellings += the_reader.tellings;
        for (i = 0; i < the_reader.n_fact; i++) updated += the_reader.fact[i].changed;
    }
    CHECK_NEAR((double)named / lines, 0.10, 0.02);
    CHECK_NEAR((double)filler / lines, 0.10 + 0.90 * 0.60, 0.03);
    CHECK_NEAR((double)asked / told, 0.40, 0.03);
    CHECK_NEAR((double)updated / tellings, 0.20, 0.03);
    corpus_free(&s);
}
TEST(questions_reach_back_evenly) {
    corpus_stream s;
    corpus_params p;
    int quarter[4] = { 0 }, n = 0, k, i;
    memset(&s, 0, sizeof s);
    memset(&p, 0, sizeof p);
    p.length = 2048;
    p.persons = 64;
    p.attrs = 8;
    p.filler = 50;
    p.ask = 50;
    for (k = 0; k < 100; k++) {
        p.seed = (uint64_t)k;
        REQUIRE(corpus_make(&s, &p) == CORPUS_OK);
        for (i = 0; i < s.n_q; i++) {
            if (s.q[i].at < 400) continue; /* few facts yet */
            quarter[s.q[i].told * 4 / s.q[i].at]++;
            n++;
        }
    }
    for (i = 0; i < 4; i++) CHECK_NEAR((double)quarter[i] / n, 0.25, 0.04);
    corpus_free(&s);
}
TEST(facts_are_at_most_as_many_as_asked_for_and_spread_evenly) {
    corpus_stream s;
    corpus_params p;
    int k, i, n = 0, half = 0;
    memset(&s, 0, sizeof s);
    memset(&p, 0, sizeof p);
    p.length = 1024;
    p.persons = 32;
    p.attrs = 4;
    p.facts = 12;
    p.filler = 50;
    p.ask = 50;
    for (k = 0; k < 100; k++) {
        p.seed = (uint64_t)k;
        REQUIRE(corpus_make(&s, &p) == CORPUS_OK);
        read_stream(&the_reader, &s);
        CHECK(the_reader.n_fact <= 12);
        n += the_reader.n_fact;
        for (i = 0; i < the_reader.n_fact; i++) half += the_reader.fact[i].first < 512;
    }
    CHECK(n > 1100);
    CHECK_NEAR((double)half / n, 0.52, 0.05);
    corpus_free(&s);
}

/* --- training and evaluation ---------------------------------------------------------------- */

static unsigned char seen[64][8][24];
/* Marks the facts of a text with `bit`; FAILs where a combination is not of the wanted sort. */
static void mark_facts(const corpus_stream *s, int held_out, unsigned bit) {
    int i, v;
    for (i = 4; i + 2 < s->n; i++) {
        const int p = s->ids[i] - corpus_person_id(0), a = s->ids[i - 2] - corpus_attr_id(0);
        const char *is = corpus_word(s->ids[i + 1]);
        if (p < 0 || p > 63 || a < 0 || a > 7 || !is || strcmp(is, " is")) continue;
        v = s->ids[i + 2] - corpus_value_id(a, 0);
        if (v < 0 || v > 23) continue; /* cut */
        seen[p][a][v] |= (unsigned char)bit;
        if (corpus_is_held_out(p, a, v) != held_out) FAIL_AT("%d %d %d", p, a, v);
    }
}
TEST(every_person_and_attribute_has_four_values_held_out) {
    int p, a, v, n;
    for (p = 0; p < 64; p++) {
        for (a = 0; a < 8; a++) {
            for (v = n = 0; v < 24; v++) n += corpus_is_held_out(p, a, v);
            CHECK(n == 4);
        }
    }
}
TEST(training_and_evaluation_share_no_combination) {
    corpus_stream s;
    corpus_test t;
    corpus_eval_params e;
    int k, p, a, v, both = 0, train = 0, eval = 0;
    memset(&s, 0, sizeof s);
    memset(&t, 0, sizeof t);
    memset(&e, 0, sizeof e);
    memset(seen, 0, sizeof seen);
    for (k = 0; k < 3000; k++) {
        corpus_params c = some_params((uint64_t)k);
        c.held_out = 0;
        REQUIRE(corpus_make(&s, &c) == CORPUS_OK);
        mark_facts(&s, 0, 1);
        e.suite = k % CORPUS_SUITES;
        e.ctx = 1024;
        e.seed = (uint64_t)k;
        REQUIRE(corpus_test_make(&t, &e) == CORPUS_OK);
        mark_facts(&t.stream, 1, 2);
    }
    for (p = 0; p < 64; p++) {
        for (a = 0; a < 8; a++) {
            for (v = 0; v < 24; v++) {
                train += seen[p][a][v] & 1;
                eval += seen[p][a][v] >> 1 & 1;
                both += seen[p][a][v] == 3;
            }
        }
    }
    CHECK(both == 0);
    CHECK(train > 64 * 8 * 20 * 95 / 100 && eval == 64 * 8 * 4); /* and nearly all of them occur */
    corpus_free(&s);
    corpus_test_free(&t);
}
TEST(a_seed_has_other_streams_for_training_and_for_evaluation_whatever_its_top_bit) {
    corpus_stream a, b, c;
    corpus_params p = some_params(7);
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    memset(&c, 0, sizeof c);
    p.length = 500;
    p.held_out = 0;
    REQUIRE(corpus_make(&a, &p) == CORPUS_OK);
    p.seed |= UINT64_C(1) << 63;
    REQUIRE(corpus_make(&b, &p) == CORPUS_OK);
    p.held_out = 1;
    REQUIRE(corpus_make(&c, &p) == CORPUS_OK);
    CHECK(!memcmp(a.ids, b.ids, 500 * sizeof *a.ids));
    CHECK(memcmp(a.ids, c.ids, 500 * sizeof *a.ids));
    corpus_free(&a);
    corpus_free(&b);
    corpus_free(&c);
}
TEST(the_streams_of_the_first_seeds_have_a_known_hash) {
    corpus_stream s;
    uint64_t h = CORPUS_HASH_START;
    int k;
    memset(&s, 0, sizeof s);
    for (k = 0; k < 64; k++) {
        const corpus_params p = some_params((uint64_t)k);
        REQUIRE(corpus_make(&s, &p) == CORPUS_OK);
        h = corpus_hash(h, &s);
    }
    if (h != UINT64_C(0x918553783d7a69a0)) FAIL_AT("hash %016llx", (unsigned long long)h);
    corpus_free(&s);
}
TEST(the_same_seed_gives_the_same_stream_in_used_and_in_new_buffers) {
    corpus_stream a, b;
    int k;
    memset(&a, 0, sizeof a);
    for (k = 0; k < 50; k++) {
        const corpus_params p = some_params((uint64_t)k + 1000);
        memset(&b, 0, sizeof b);
        REQUIRE(corpus_make(&a, &p) == CORPUS_OK && corpus_make(&b, &p) == CORPUS_OK);
        CHECK(a.n == b.n && a.n_q == b.n_q);
        CHECK(!memcmp(a.ids, b.ids, (size_t)a.n * sizeof *a.ids));
        CHECK(!memcmp(a.answer, b.answer, (size_t)a.n));
        CHECK(!a.n_q || !memcmp(a.q, b.q, (size_t)a.n_q * sizeof *a.q));
        corpus_free(&b);
    }
    corpus_free(&a);
}

/* --- copies of random words, extremes, bad parameters --------------------------------------- */

/* 1 if the `words` tokens before i stand at an earlier place, too, with the same token behind them */
static int said_before(const corpus_stream *s, int i, int words) {
    int j, k;
    for (j = words + 1; j < i; j++) {
        for (k = 0; k <= words && s->ids[j - k] == s->ids[i - k]; k++) {}
        if (k > words) return 1;
    }
    return 0;
}
TEST(raw_copies_ask_for_what_followed_the_same_words_before) {
    corpus_stream s;
    corpus_params p;
    int words, gram, seed, i, n = 0;
    memset(&s, 0, sizeof s);
    memset(&p, 0, sizeof p);
    p.persons = p.attrs = 1;
    p.length = 129;
    for (words = 1; words < 4; words++)
        for (gram = 0; gram < 24; gram += 12)
            for (seed = 0; seed < 20; seed++) {
                p.raw_copy = words;
                p.raw_gram = gram;
                p.seed = (uint64_t)seed;
                REQUIRE(corpus_make(&s, &p) == CORPUS_OK && s.n == 129 && s.n_q == 0);
                for (i = 0; i < s.n; i++) {
                    n += s.answer[i];
                    if (s.answer[i] && !said_before(&s, i, words)) FAIL_AT("place %d of seed %d", i, seed);
                }
            }
    CHECK(n > 3000);
    corpus_free(&s);
}
TEST(parameters_at_their_extremes_give_whole_streams) {
    static const int lengths[] = { 2, 3, 16, 17, 300 }, persons[] = { 1, 2, 64 };
    static const int shares[] = { 0, 99 };
    corpus_stream s;
    corpus_params p;
    int l, i, mask;
    memset(&s, 0, sizeof s);
    for (l = 0; l < 5; l++) {
        for (i = 0; i < 6; i++) {
            for (mask = 0; mask < 512; mask++) {
                memset(&p, 0, sizeof p);
                p.length = lengths[l];
                p.persons = persons[i % 3];
                p.attrs = i < 3 ? 1 : 8;
                p.facts = mask & 1;
                p.filler = shares[mask >> 1 & 1];
                p.ask = shares[mask >> 2 & 1];
                p.update = shares[mask >> 3 & 1];
                p.twice = shares[mask >> 4 & 1];
                p.chain = shares[mask >> 5 & 1];
                p.order = shares[mask >> 6 & 1];
                p.copy = shares[mask >> 7 & 1];
                p.distract = shares[mask >> 8 & 1];
                p.held_out = mask & 1;
                p.seed = (uint64_t)mask;
                REQUIRE(corpus_make(&s, &p) == CORPUS_OK && s.n == p.length);
                read_stream(&the_reader, &s);
                if (test_bad) return;
            }
        }
    }
    corpus_free(&s);
}
TEST(a_bad_parameter_is_named) {
    static const struct { size_t at; int bad; const char *name; } bad[] = {
        { offsetof(corpus_params, length), 1, "length" },
        { offsetof(corpus_params, length), (1 << 24) + 1, "length" },
        { offsetof(corpus_params, persons), 0, "persons" },
        { offsetof(corpus_params, persons), 65, "persons" },
        { offsetof(corpus_params, attrs), 0, "attrs" },
        { offsetof(corpus_params, attrs), 9, "attrs" },
        { offsetof(corpus_params, facts), -1, "facts" },
        { offsetof(corpus_params, filler), 100, "filler" },
        { offsetof(corpus_params, ask), 100, "ask" },
        { offsetof(corpus_params, update), -1, "update" },
        { offsetof(corpus_params, distract), 101, "distract" },
        { offsetof(corpus_params, raw_gram), 1, "raw_gram" },
        { offsetof(corpus_params, raw_gram), 800, "raw_gram" } };
    corpus_stream s;
    size_t i;
    memset(&s, 0, sizeof s);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        corpus_params p = some_params(1);
        const char *why;
        memcpy((char *)&p + bad[i].at, &bad[i].bad, sizeof(int));
        why = corpus_check(&p);
        if (!why || !strstr(why, bad[i].name)) FAIL_AT("%s: %s", bad[i].name, why ? why : "fine");
        CHECK(corpus_make(&s, &p) == CORPUS_BAD_PARAMETER);
    }
    corpus_free(&s);
}

/* --- evaluation ----------------------------------------------------------------------------- */

TEST(prompts_have_the_answers_that_a_reader_of_the_context_gives) {
    corpus_test t;
    corpus_eval_params e;
    int kinds[CORPUS_KINDS] = { 0 }, k, i, j, asked = 0;
    memset(&t, 0, sizeof t);
    for (k = 0; k < 600 && !test_bad; k++) {
        memset(&e, 0, sizeof e);
        e.suite = k % CORPUS_SUITES;
        e.ctx = 128 + (int)(kvmem__mix((uint64_t)k) % 2000);
        e.depth = k % 11 * 100;
        e.seed = (uint64_t)k;
        if (k & 64) e.persons = 2 + k % 5;
        if (k & 128) e.attrs = 2 + k % 3;
        REQUIRE(corpus_test_check(&e) == NULL);
        REQUIRE(corpus_test_make(&t, &e) == CORPUS_OK && t.n == e.ctx);
        read_stream(&the_reader, &t.stream);
        CHECK(the_reader.with_name == 0);
        if (e.suite == CORPUS_PPL) { CHECK(t.n_q == 0); continue; }
        CHECK(t.n_q > 0);
        CHECK(!strcmp(corpus_word(t.ids[t.n - 1]), ".\n")); /* whole lines */
        for (i = 0; i < t.n_q; i++) {
            const corpus_prompt *q = &t.q[i];
            char line[512], right[256];
            reader_answer a;
            size_t len = 0;
            for (j = 0; j < q->n; j++) len += (size_t)corpus_text(q->ids[j], line + len);
            line[len] = 0;
            for (j = 0, len = 0; j < q->n_answer; j++)
                len += (size_t)corpus_text(q->answer[j], right + len);
            right[len] = 0;
            if (!reader_asked(&the_reader, line, &a)) FAIL_AT("cannot be known: %s", line);
            else if (strcmp(right + 1, a.text)) FAIL_AT("%s%s, but: %s", line, right, a.text);
            CHECK(q->kind == a.kind && q->told == a.told);
            kinds[q->kind]++;
            asked += q->asked > 0;
        }
    }
    for (i = 0; i < CORPUS_KINDS; i++)
        if (kinds[i] < 20) FAIL_AT("%s: %d", corpus_kind_name(i), kinds[i]);
    CHECK(asked > 20);
    corpus_test_free(&t);
}
TEST(a_needle_stands_at_its_depth_and_nothing_else_has_its_name_or_attribute) {
    corpus_test t;
    corpus_eval_params e;
    int depth, k, i;
    memset(&t, 0, sizeof t);
    memset(&e, 0, sizeof e);
    e.suite = CORPUS_NEEDLE;
    e.ctx = 1000;
    for (depth = 0; depth <= 1000; depth += 250) {
        for (k = 0; k < 20; k++) {
            e.depth = depth;
            e.seed = (uint64_t)k;
            REQUIRE(corpus_test_make(&t, &e) == CORPUS_OK && t.n_q == 1);
            CHECK_NEAR(t.q[0].told, depth * 0.95 + 10, 25);
            for (i = 0; i < t.n; i++) {
                if (i >= t.q[0].told - 7 && i <= t.q[0].told) continue;
                CHECK(t.ids[i] != corpus_person_id(t.q[0].person));
                CHECK(t.ids[i] != corpus_attr_id(t.q[0].attr));
            }
        }
    }
    corpus_test_free(&t);
}
TEST(a_conversation_is_mostly_small_talk_and_its_facts_are_everywhere) {
    corpus_test t;
    corpus_eval_params e;
    int k, i, j, quarter[4] = { 0 }, n = 0, talk = 0;
    memset(&t, 0, sizeof t);
    memset(&e, 0, sizeof e);
    e.ctx = 2048;
    for (k = 0; k < 50; k++) {
        e.seed = (uint64_t)k;
        REQUIRE(corpus_test_make(&t, &e) == CORPUS_OK);
        read_stream(&the_reader, &t.stream);
        CHECK(the_reader.n_fact == 32 && the_reader.sessions >= 4 && t.n_q == 22);
        CHECK(the_reader.questions >= 10);
        talk += the_reader.filler;
        n += the_reader.filler + the_reader.tellings + the_reader.questions;
        for (i = 0; i < t.n_q; i++) quarter[t.q[i].told * 4 / t.n]++;
        for (i = 0; i < t.n_q; i++) /* no question twice */
            for (j = 0; j < i; j++)
                CHECK(t.q[i].person != t.q[j].person || t.q[i].attr != t.q[j].attr);
    }
    CHECK_NEAR((double)talk / n, 0.70, 0.08);
    for (i = 0; i < 4; i++) CHECK_NEAR(quarter[i] / (50.0 * 22), 0.25, 0.10);
    corpus_test_free(&t);
}
TEST(evaluation_parameters_at_their_extremes_give_whole_contexts) {
    static const int ctxs[] = { 128, 129, 140, 500 };
    static const int persons[] = { 1, 2, 64 }, attrs[] = { 1, 2, 8 };
    corpus_test t;
    corpus_eval_params e;
    int k, made = 0;
    memset(&t, 0, sizeof t);
    for (k = 0; k < CORPUS_SUITES * 4 * 3 * 3 * 4 * 8; k++) {
        int r = k / CORPUS_SUITES;
        memset(&e, 0, sizeof e);
        e.suite = k % CORPUS_SUITES;
        e.ctx = ctxs[r & 3];
        e.persons = persons[(r >>= 2) % 3];
        e.attrs = attrs[(r /= 3) % 3];
        e.facts = (r /= 3) & 3; /* 0: the suite's choice */
        if (e.facts == 3) e.facts = (e.ctx - 80) / 14;
        e.questions = r >> 2 & 1 ? 1000 : 0;
        e.depth = r >> 3 & 1 ? 1000 : 0;
        e.seed = (uint64_t)k;
        if (corpus_test_check(&e)) continue;
        REQUIRE(corpus_test_make(&t, &e) == CORPUS_OK && t.n == e.ctx);
        read_stream(&the_reader, &t.stream);
        if (test_bad) return;
        CHECK(t.n_q > 0 || e.suite == CORPUS_PPL);
        if (e.facts && e.suite < CORPUS_PPL && e.suite != CORPUS_NEEDLE)
            CHECK(the_reader.n_fact + the_reader.n_note == e.facts);
        made++;
    }
    CHECK(made > 2000);
    corpus_test_free(&t);
}
TEST(evaluation_parameters_out_of_range_are_named) {
    static const struct { corpus_eval_params p; const char *name; } bad[] = {
        { { 9, 1024, 0, 0, 0, 0, 0, 0 }, "suite" },
        { { 0, 127, 0, 0, 0, 0, 0, 0 }, "ctx" },
        { { 0, 1024, -1, 0, 0, 0, 0, 0 }, "questions" },
        { { 0, 1024, 0, 0, 1001, 0, 0, 0 }, "depth" },
        { { 0, 1024, 0, 0, 0, 65, 0, 0 }, "persons" },
        { { 0, 1024, 0, 0, 0, 0, 9, 0 }, "attrs" },
        { { 0, 1024, 0, 90, 0, 0, 0, 0 }, "facts" },
        { { 2, 1024, 0, 9, 0, 2, 4, 0 }, "facts" },
        { { 4, 4096, 0, 17, 0, 0, 0, 0 }, "facts" },
        { { 3, 1024, 0, 0, 0, 0, 1, 0 }, "order" } };
    corpus_test t;
    size_t i;
    memset(&t, 0, sizeof t);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const char *why = corpus_test_check(&bad[i].p);
        if (!why || !strstr(why, bad[i].name)) FAIL_AT("%s: %s", bad[i].name, why ? why : "fine");
        CHECK(corpus_test_make(&t, &bad[i].p) == CORPUS_BAD_PARAMETER);
    }
    corpus_test_free(&t);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "corpus");
    RUN(the_vocabulary_has_768_tokens_and_no_word_twice);
    RUN(text_becomes_the_ids_of_the_stream_and_back);
    RUN(a_word_that_is_not_in_the_vocabulary_becomes_bytes_and_the_special_names_are_tokens);
    RUN(every_answer_is_the_one_that_a_careful_reader_gives);
    RUN(the_shares_of_lines_are_those_that_were_asked_for);
    RUN(questions_reach_back_evenly);
    RUN(facts_are_at_most_as_many_as_asked_for_and_spread_evenly);
    RUN(every_person_and_attribute_has_four_values_held_out);
    RUN(training_and_evaluation_share_no_combination);
    RUN(a_seed_has_other_streams_for_training_and_for_evaluation_whatever_its_top_bit);
    RUN(the_streams_of_the_first_seeds_have_a_known_hash);
    RUN(the_same_seed_gives_the_same_stream_in_used_and_in_new_buffers);
    RUN(raw_copies_ask_for_what_followed_the_same_words_before);
    RUN(parameters_at_their_extremes_give_whole_streams);
    RUN(a_bad_parameter_is_named);
    RUN(prompts_have_the_answers_that_a_reader_of_the_context_gives);
    RUN(a_needle_stands_at_its_depth_and_nothing_else_has_its_name_or_attribute);
    RUN(a_conversation_is_mostly_small_talk_and_its_facts_are_everywhere);
    RUN(evaluation_parameters_at_their_extremes_give_whole_contexts);
    RUN(evaluation_parameters_out_of_range_are_named);
    return test_end();
}
