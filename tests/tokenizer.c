/* tokenizer.c - vocabularies, pre-tokenizers, special tokens, decoding, chat formats. The vectors are
   ../shared/vectors/tokenizers/X.gguf with X.gguf.inp and X.gguf.out of llama.cpp. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* no vectors here: compiles faster */
#endif
#include "test.h"

/* ---- vocabularies: files of ../shared, and small ones built here ---- */

typedef struct vocab {
    unsigned char *bytes;
    size_t size, cap;
    kvmem_gguf gguf;
    kvmem_tokenizer t;
} vocab;

static void vocab_close(vocab *f) {
    kvmem_tokenizer_close(&f->t);
    kvmem_gguf_close(&f->gguf);
    free(f->bytes);
    memset(f, 0, sizeof *f);
}
static kvmem_status vocab_load(vocab *f, const kvmem_allocator *a) {
    const kvmem_status st = kvmem_gguf_open(&f->gguf, f->bytes, f->size, a);
    return st == KVMEM_OK ? kvmem_tokenizer_open_gguf(&f->t, &f->gguf, a) : st;
}
static int vocab_open(vocab *f, const char *name) {
    char path[512];
    memset(f, 0, sizeof *f);
    snprintf(path, sizeof path, "../shared/vectors/tokenizers/ggml-vocab-%s.gguf", name);
    f->bytes = test_file(path, &f->size);
    if (!f->bytes) return 0;
    if (vocab_load(f, NULL) == KVMEM_OK) return 1;
    FAIL_AT("%s: %s%s", path, f->gguf.error.text, f->t.error.text);
    vocab_close(f);
    return 0;
}

static void put(vocab *f, const void *p, size_t n) {
    if (f->size + n > f->cap) {
        f->cap = 2 * (f->size + n);
        f->bytes = (unsigned char *)realloc(f->bytes, f->cap);
    }
    if (n) memcpy(f->bytes + f->size, p, n);
    f->size += n;
}
static void put32(vocab *f, uint32_t v) { unsigned char b[4]; kvmem__put32(b, v); put(f, b, 4); }
static void put64(vocab *f, uint64_t v) { unsigned char b[8]; kvmem__put64(b, v); put(f, b, 8); }
static void put_text(vocab *f, const char *s, size_t n) { put64(f, n); put(f, s, n); }
static void put_key(vocab *f, const char *key, unsigned type) {
    put_text(f, key, strlen(key));
    put32(f, type);
    kvmem__put64(f->bytes + 16, kvmem__le64(f->bytes + 16) + 1);
}
static void put_string(vocab *f, const char *key, const char *s) { put_key(f, key, 8); put_text(f, s, strlen(s)); }
static void put_u32(vocab *f, const char *key, uint32_t v) { put_key(f, key, 4); put32(f, v); }
static void put_array(vocab *f, const char *key, unsigned type, uint64_t n) {
    put_key(f, key, 9);
    put32(f, type);
    put64(f, n);
}
static void put_head(vocab *f) {
    memset(f, 0, sizeof *f);
    put(f, "GGUF", 4);
    put32(f, 3);
    put64(f, 0);
    put64(f, 0);
}
/* words: "a b c", a space between pieces */
static void put_words(vocab *f, const char *key, const char *words) {
    size_t n = 0, i, from = 0;
    for (i = 0; words[i]; i++) n += words[i] == ' ';
    put_array(f, key, 8, *words ? n + 1 : 0);
    for (i = 0; *words; i++) {
        if (words[i] && words[i] != ' ') continue;
        put_text(f, words + from, i - from);
        from = i + 1;
        if (!words[i]) break;
    }
}

/* ---- Unicode ---- */

TEST(unicode_classes_of_all_code_points_are_those_of_15_1) {
    static uint32_t runs[KVMEM__UNICODE_RUNS];
    long count[7] = { 0, 0, 0, 0, 0, 0, 0 };
    uint32_t c;
    kvmem__unicode_unpack(runs);
    for (c = 0; c < 0x110000; c++) count[kvmem__unicode_class(runs, c)]++;
    CHECK(count[KVMEM__U_LETTER] == 136726);
    CHECK(count[KVMEM__U_NUMBER] == 1831);
    CHECK(count[KVMEM__U_PUNCT] == 842);
    CHECK(count[KVMEM__U_SYMBOL] == 7775);
    CHECK(count[KVMEM__U_MARK] == 2450);
    CHECK(count[KVMEM__U_SPACE] == 25);
    CHECK(kvmem__unicode_class(runs, 'a') == KVMEM__U_LETTER && kvmem__unicode_class(runs, '_') == KVMEM__U_PUNCT);
    CHECK(kvmem__unicode_class(runs, '~') == KVMEM__U_SYMBOL && kvmem__unicode_class(runs, 0xb2) == KVMEM__U_NUMBER);
    CHECK(kvmem__unicode_class(runs, 0x301) == KVMEM__U_MARK && kvmem__unicode_class(runs, 0x4e2d) == KVMEM__U_LETTER);
    CHECK(kvmem__unicode_class(runs, 0x3000) == KVMEM__U_SPACE && kvmem__unicode_class(runs, 0x200b) == KVMEM__U_OTHER);
    CHECK(kvmem__unicode_class(runs, 0x10ffff) == KVMEM__U_OTHER && kvmem__unicode_class(runs, 0) == KVMEM__U_OTHER);
}
TEST(utf8_every_code_point_round_trips_and_nothing_else_decodes) {
    uint32_t c, d;
    uint8_t b[4];
    int n, bad = 0;
    for (c = 0; c < 0x110000; c++) {
        n = kvmem__utf8_encode(c, b);
        if (c >= 0xd800 && c < 0xe000) bad += kvmem__utf8_check(b, (size_t)n) != -1;
        else
            bad += kvmem__utf8_decode(b, (size_t)n, &d) != n || d != c ||
                   (n > 1 && kvmem__utf8_check(b, (size_t)n - 1) != 0);
    }
    CHECK(bad == 0);
    CHECK(kvmem__utf8_check((const uint8_t *)"\xc0\x80", 2) == -1);         /* overlong */
    CHECK(kvmem__utf8_check((const uint8_t *)"\xe0\x9f\xbf", 3) == -1);
    CHECK(kvmem__utf8_check((const uint8_t *)"\xf4\x90\x80\x80", 4) == -1); /* beyond U+10FFFF */
    CHECK(kvmem__utf8_check((const uint8_t *)"\x80", 1) == -1);
    CHECK(kvmem__utf8_decode((const uint8_t *)"\xff", 1, &d) == 1 && d == 0xfffd);
}
TEST(byte_characters_are_a_bijection) {
    int b, seen[324], bad = 0;
    memset(seen, 0, sizeof seen);
    for (b = 0; b < 256; b++) {
        const uint32_t c = kvmem__byte_char((unsigned)b);
        bad += c > 323 || seen[c]++ || kvmem__char_byte(c) != b;
    }
    CHECK(bad == 0);
    CHECK(kvmem__byte_char(' ') == 0x120 && kvmem__byte_char('\n') == 0x10a && kvmem__char_byte(324) == -1);
}

/* ---- cutting text into words ---- */

static const char *cut(const char *name, const char *text) { /* "a|b|c" */
    static char out[4096];
    static uint32_t runs[KVMEM__UNICODE_RUNS];
    uint32_t c[1024];
    size_t i, n = 0, len = strlen(text), o = 0;
    int p = 0;
    while (strcmp(kvmem__pres[p].name, name) != 0) p++;
    kvmem__unicode_unpack(runs);
    for (i = 0; i < len; n++) {
        i += (size_t)kvmem__utf8_decode((const uint8_t *)text + i, len - i, &c[n]);
        c[n] |= (uint32_t)kvmem__unicode_class(runs, c[n]) << 21;
    }
    kvmem__split(c, n, kvmem__pres[p].rule);
    for (i = 0; i < n; i++) {
        if (i && (c[i] & KVMEM__WORD)) out[o++] = '|';
        o += (size_t)kvmem__utf8_encode(KVMEM__CP(c[i]), (uint8_t *)out + o);
    }
    out[o] = 0;
    return out;
}
static void cuts(int line, const char *name, const char *text, const char *want) {
    const char *got = cut(name, text);
    if (strcmp(got, want) != 0) FAIL_AT("line %d, %s: \"%s\", not \"%s\"", line, name, got, want);
}
#define CUT(name, text, want) cuts(__LINE__, name, text, want)

TEST(words_gpt2) {
    CUT("gpt-2", "Hello world, it's  me!", "Hello| world|,| it|'s| | me|!");
    CUT("gpt-2", "x 123456 1", "x| 123456| 1");
    CUT("gpt-2", "don'T a'll", "don|'|T| a|'ll");
    CUT("gpt-2", "a\n\n  b \n", "a|\n\n | b| \n");
    CUT("gpt-2", " ", " ");
    CUT("gpt-2", "a   ", "a|   ");
    CUT("gpt-2", "caf\xc3\xa9 \xe4\xb8\xad\xe6\x96\x87!?", "caf\xc3\xa9| \xe4\xb8\xad\xe6\x96\x87|!?");
}
TEST(words_llama3_and_qwen2) {
    CUT("llama-bpe", "Hello World'S 12345 !!\n\nx", "Hello| World|'S| |123|45| !!\n\n|x");
    CUT("qwen2", "Hello World'S 123 !!\n\nx", "Hello| World|'S| |1|2|3| !!\n\n|x");
    CUT("llama-bpe", "(abc) \tdef", "(abc|)| |\tdef");
    CUT("llama-bpe", " \n \n  x", " \n \n| | x");
    CUT("llama-bpe", "a 'RE 've 'M", "a| '|RE| '|ve| '|M");
    CUT("llama-bpe", "$x \xc2\xa0y ", "$x| |\xc2\xa0y| ");
}
TEST(words_starcoder_and_falcon_and_default) {
    CUT("starcoder", "ab 1234 c", "ab| |1|2|3|4| c");
    CUT("smollm", "v2.0", "v|2|.|0");
    CUT("falcon", "ab 12345`c` $5", "ab| |123|45|`|c|`| |$|5");
    CUT("default", "ab 12345`c` $5", "ab| |123|45|`|c|`| |$|5");
    CUT("default", "x`y", "x|`|y");
    CUT("falcon", "a--b  !", "a|--|b|  |!");
}
TEST(words_deepseek) {
    CUT("deepseek-coder", "int  main() {\n\treturn 42;}", "int| | main|()| {|\n|\treturn| |4|2|;}");
    CUT("deepseek-coder", "\xe4\xb8\xad\xe6\x96\x87x", "\xe4\xb8\xad\xe6\x96\x87|x");
    CUT("deepseek-llm", "int  main() {\n\treturn 42;}", "int| | main|()| {|\n|\treturn| |42|;}");
    CUT("deepseek-llm", "\xe4\xb8\xad\xe6\x96\x87x 1\xe3\x80\x82", "\xe4\xb8\xad\xe6\x96\x87|x| |1|\xe3\x80\x82");
    CUT("deepseek-llm", "a   ", "a|   ");
    CUT("deepseek-llm", "a   1", "a|   |1");
}

/* ---- the vectors ---- */

static void vectors(const char *name) {
    static const char mark[] = "\n__ggml_vocab_test__\n";
    char path[512], *file, *in, *out, *line;
    size_t n;
    int ids[4096], count = 0;
    vocab f;
    if (!vocab_open(&f, name)) SKIP("no vectors in ../shared");
    snprintf(path, sizeof path, "../shared/vectors/tokenizers/ggml-vocab-%s.gguf.inp", name);
    file = in = (char *)test_file(path, &n);
    snprintf(path, sizeof path, "../shared/vectors/tokenizers/ggml-vocab-%s.gguf.out", name);
    out = (char *)test_file(path, &n);
    if (in && out)
        for (line = out; *line && in; count++) {
            char *next = strstr(in, mark), *end, *text = (char *)malloc(4096);
            const size_t len = next ? (size_t)(next - in) : strlen(in);
            size_t got = 0, i, back;
            CHECK_OK(kvmem_tokenize(&f.t, in, len, 0, ids, 4096, &got, NULL));
            for (i = 0; *line && *line != '\n'; i++) {
                const long want = strtol(line, &end, 10);
                if (end == line) break;
                if (i >= got || ids[i] != want) { FAIL_AT("%s, text %d, token %d", name, count, (int)i); break; }
                for (line = end; *line == ' ';) line++;
            }
            while (*line && *line != '\n') line++;
            if (*line) line++;
            if (i != got) FAIL_AT("%s, text %d: %d tokens, not %d", name, count, (int)got, (int)i);
            back = kvmem_detokenize(&f.t, ids, got, KVMEM_TEXT_START | KVMEM_SHOW_SPECIAL, text, 4096);
            if (back != len || memcmp(text, in, len) != 0) FAIL_AT("%s, text %d does not come back", name, count);
            free(text);
            in = next ? next + strlen(mark) : NULL;
        }
    CHECK(count == 46);
    free(file);
    free(out);
    vocab_close(&f);
}
TEST(vectors_llama_spm) { vectors("llama-spm"); }
TEST(vectors_phi_3) { vectors("phi-3"); }
TEST(vectors_gpt_2) { vectors("gpt-2"); }
TEST(vectors_deepseek_coder) { vectors("deepseek-coder"); }

/* ids of a text as "1 2 3" */
static const char *ids_of(const kvmem_tokenizer *t, const char *text, unsigned flags) {
    static char out[4096];
    int ids[512], o = 0;
    size_t n = 0, i;
    out[0] = 0;
    if (kvmem_tokenize(t, text, strlen(text), flags, ids, 512, &n, NULL) != KVMEM_OK || n > 512) return "failed";
    for (i = 0; i < n; i++) o += snprintf(out + o, sizeof out - (size_t)o, i ? " %d" : "%d", ids[i]);
    return out;
}
static void same_ids(int line, const kvmem_tokenizer *t, const char *text, unsigned flags, const char *want) {
    const char *got = ids_of(t, text, flags);
    if (strcmp(got, want) != 0) FAIL_AT("line %d, \"%s\": %s, not %s", line, text, got, want);
}
#define IDS(t, text, flags, want) same_ids(__LINE__, t, text, flags, want)

TEST(special_tokens_of_phi_3) {
    vocab f;
    if (!vocab_open(&f, "phi-3")) SKIP("no vectors in ../shared");
    CHECK(f.t.kind == KVMEM_VOCAB_SPM && f.t.n_vocab == 32064 && f.t.bos == 1 && f.t.eos == 32000);
    CHECK(f.t.add_bos && !f.t.add_eos && f.t.add_space_prefix && f.t.cut_words);
    IDS(&f.t, "", KVMEM_ADD_SPECIAL, "1");
    IDS(&f.t, "", 0, "");
    /* control tokens only when asked for; white space behind them is swallowed, the next text gets its prefix */
    IDS(&f.t, "<|user|>\n Hi<|end|>", KVMEM_PARSE_SPECIAL, "32010 6324 32007");
    IDS(&f.t, "<|user|>", 0, "529 29989 1792 29989 29958");
    CHECK(kvmem_token_is_eog(&f.t, 32000) && kvmem_token_is_eog(&f.t, 32007) && !kvmem_token_is_eog(&f.t, 6324));
    CHECK(kvmem_token_is_special(&f.t, 32010) && !kvmem_token_is_special(&f.t, 6324));
    CHECK(kvmem_token_find(&f.t, "<|end|>", 7) == 32007 && kvmem_token_find(&f.t, "<|nope|>", 8) == -1);
    CHECK(!strcmp(kvmem_tokenizer_pre_name(&f.t), "-"));
    vocab_close(&f);
}
TEST(ids_out_of_range_give_nothing) {
    vocab f;
    char out[64];
    if (!vocab_open(&f, "gpt-2")) SKIP("no vectors in ../shared");
    CHECK(kvmem_token_bytes(&f.t, -1, 0, out, 64) == 0 && kvmem_token_bytes(&f.t, 50257, 0, out, 64) == 0);
    CHECK(kvmem_token_piece(&f.t, 50257, NULL) == NULL && kvmem_token_piece(&f.t, INT_MIN, NULL) == NULL);
    CHECK(!kvmem_token_is_eog(&f.t, 50257) && kvmem_token_is_eog(&f.t, 50256));
    CHECK(kvmem_token_bytes(&f.t, 50256, 0, out, 64) == 0);
    CHECK(kvmem_token_bytes(&f.t, 50256, KVMEM_SHOW_SPECIAL, out, 64) == 13 && !memcmp(out, "<|endoftext|>", 13));
    CHECK(!strcmp(kvmem_tokenizer_pre_name(&f.t), "gpt-2"));
    vocab_close(&f);
}
TEST(a_short_buffer_gets_the_first_ids_and_the_full_count) {
    vocab f;
    int a[64], b[64];
    size_t n = 0, m = 0, i;
    const char *s = "The quick brown fox jumps over the lazy dog.";
    if (!vocab_open(&f, "gpt-2")) SKIP("no vectors in ../shared");
    REQUIRE_OK(kvmem_tokenize(&f.t, s, strlen(s), 0, a, 64, &n, NULL));
    for (i = 0; i <= n; i++) {
        memset(b, -1, sizeof b);
        REQUIRE_OK(kvmem_tokenize(&f.t, s, strlen(s), 0, i ? b : NULL, i, &m, NULL));
        CHECK(m == n && !memcmp(a, b, i * sizeof(int)) && b[i] == -1);
    }
    vocab_close(&f);
}

/* ---- decoding ---- */

/* Random text: valid UTF-8 with runs of one script, or any bytes. */
static size_t random_text(char *out, size_t room, int valid) {
    static const uint32_t from[] = { 0x20, 0x20, 0x61, 0xc0, 0x4e00, 0x1f600, 0x3000, 0x400, 0 };
    static const uint32_t span[] = { 95, 95, 26, 100, 3000, 50, 30, 200, 32 };
    const size_t want = 1 + (size_t)(test_unit() * (double)(room - 8));
    size_t n = 0;
    while (n < want) {
        const int k = (int)(test_unit() * 9), len = 1 + (int)(test_unit() * 6);
        int i;
        for (i = 0; i < len && n < want; i++) {
            const uint32_t c = from[k] + (uint32_t)(test_unit() * span[k]);
            if (valid) n += (size_t)kvmem__utf8_encode(c, (uint8_t *)out + n);
            else out[n++] = (char)(unsigned char)(test_unit() * 256);
        }
    }
    return n;
}
/* Tokens through a stream: whole sequences after every push, and the same bytes in the end. */
static void stream_is_whole(const kvmem_tokenizer *t, const int *ids, size_t n, const char *text, size_t len) {
    char *out = (char *)malloc(3 * (t->max_piece + 4) + 1), all[8192];
    size_t i, k, at = 0;
    kvmem_stream s;
    kvmem_stream_init(&s, t, KVMEM_TEXT_START);
    for (i = 0; i <= n && at < 4096; i++) {
        size_t j = 0;
        k = i < n ? kvmem_stream_push(&s, ids[i], out) : kvmem_stream_flush(&s, out);
        while (j < k) {
            const int step = kvmem__utf8_check((const uint8_t *)out + j, k - j);
            if (step < 1) { FAIL_AT("token %d: a broken sequence came out", (int)i); break; }
            j += (size_t)step;
        }
        memcpy(all + at, out, k);
        at += k;
    }
    if (text && (at != len || memcmp(all, text, len) != 0)) FAIL_AT("stream: %d bytes differ from the text", (int)len);
    free(out);
}
static void round_trip(const char *name, int spm) {
    vocab f;
    char text[600], back[4096];
    int ids[4096], i, valid;
    size_t len, n = 0;
    if (!vocab_open(&f, name)) SKIP("no vectors in ../shared");
    for (i = 0; i < 400; i++) {
        valid = i % 4 != 3;
        len = random_text(text, sizeof text, valid);
        /* bytes that are no UTF-8 come back, too, unless a space stands behind a lonely lead byte: it takes
           a part of U+2581 for its own, here as in llama.cpp */
        for (n = 0; !valid && n < len; n++) if (text[n] == '\xe2' || text[n] == ' ') text[n] = 'x';
        REQUIRE_OK(kvmem_tokenize(&f.t, text, len, KVMEM_ADD_SPECIAL, ids, 4096, &n, NULL));
        REQUIRE(n <= 4096);
        if (valid || spm) {
            const size_t k = kvmem_detokenize(&f.t, ids, n, KVMEM_TEXT_START, back, sizeof back);
            if (k != len || memcmp(back, text, len) != 0) { FAIL_AT("%s: text %d does not come back", name, i); break; }
        }
        stream_is_whole(&f.t, ids, n, valid ? text : NULL, len);
    }
    vocab_close(&f);
}
TEST(decoding_gives_the_text_back_spm) { round_trip("llama-spm", 1); }
TEST(decoding_gives_the_text_back_bpe) { round_trip("gpt-2", 0); }
TEST(decoding_gives_the_text_back_deepseek) { round_trip("deepseek-coder", 0); }

static kvmem_tokenizer byte_vocab(void) { /* piece i is byte i, borrowed from a static table */
    static uint8_t bytes[4 + 256 * 9];
    kvmem_tokenizer t;
    int i;
    kvmem__put32(bytes, 1);
    for (i = 0; i < 256; i++) {
        kvmem__putf32(bytes + 4 + 9 * i, 0);
        kvmem__put32(bytes + 8 + 9 * i, 1);
        bytes[12 + 9 * i] = (uint8_t)i;
    }
    CHECK_OK(kvmem_tokenizer_open_llama2c(&t, bytes, sizeof bytes, 256, NULL));
    for (i = 0; i < 3; i++) t.piece[i].type = 1;
    return t;
}
static size_t stream_bytes(const kvmem_tokenizer *t, const char *s, unsigned flags, char *out) {
    kvmem_stream st;
    char piece[64];
    size_t n = 0, k;
    kvmem_stream_init(&st, t, flags);
    for (; *s; s++) {
        k = kvmem_stream_push(&st, (unsigned char)*s, piece);
        memcpy(out + n, piece, k);
        n += k;
    }
    k = kvmem_stream_flush(&st, piece);
    memcpy(out + n, piece, k);
    out[n + k] = 0;
    return n + k;
}
TEST(stream_replaces_what_is_not_utf8_or_keeps_it) {
    kvmem_tokenizer t = byte_vocab();
    char out[256];
    stream_bytes(&t, "a\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80z", 0, out);
    CHECK(!strcmp(out, "a\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80z"));
    stream_bytes(&t, "a\xff" "b\xe4\xb8" "c\xf0\x9f\x98", 0, out); /* one mark for each broken stretch */
    CHECK(!strcmp(out, "a\xef\xbf\xbd" "b\xef\xbf\xbd" "c\xef\xbf\xbd"));
    stream_bytes(&t, "\xe4\xb8\xe4\xb8\xad", 0, out);
    CHECK(!strcmp(out, "\xef\xbf\xbd\xe4\xb8\xad"));
    stream_bytes(&t, "a\xff" "b\xe4\xb8" "c\xf0\x9f\x98", KVMEM_KEEP_BYTES, out);
    CHECK(!strcmp(out, "a\xff" "b\xe4\xb8" "c\xf0\x9f\x98"));
    kvmem_tokenizer_close(&t);
}

/* ---- llama2.c ---- */

TEST(llama2c_ids_are_those_of_run_c) {
    size_t size, k;
    unsigned char *bytes = test_file("../shared/models/tok512.bin", &size);
    kvmem_tokenizer t;
    char out[64];
    if (!bytes) SKIP("no tok512.bin in ../shared");
    REQUIRE_OK(kvmem_tokenizer_open_llama2c(&t, bytes, size, 512, NULL));
    IDS(&t, "Once upon a time", KVMEM_ADD_SPECIAL, "1 403 407 261 378");
    IDS(&t, "", KVMEM_ADD_SPECIAL, "1");
    IDS(&t, "I don't know, Tim\xe2\x80\x99s caf\xc3\xa9\n", KVMEM_ADD_SPECIAL,
        "1 359 279 289 439 413 409 416 327 432 326 468 419 280 412 431 485 13");
    IDS(&t, "  \xff\xfe x", KVMEM_ADD_SPECIAL, "1 410 410 410 258 257 410 444");
    CHECK(kvmem_token_is_eog(&t, 1) && kvmem_token_is_eog(&t, 2) && !kvmem_token_is_eog(&t, 403));
    k = kvmem_token_bytes(&t, 403, KVMEM_TEXT_START, out, 64);
    CHECK(k == 4 && !memcmp(out, "Once", 4));
    k = kvmem_token_bytes(&t, 403, 0, out, 64);
    CHECK(k == 5 && !memcmp(out, " Once", 5));
    CHECK(kvmem_token_bytes(&t, 3 + 0xe2, 0, out, 64) == 1 && out[0] == '\xe2');
    CHECK(kvmem_token_bytes(&t, 1, 0, out, 64) == 0);
    kvmem_tokenizer_close(&t);
    REQUIRE_OK(kvmem_tokenizer_open_llama2c(&t, bytes, size, 0, NULL)); /* counts by itself */
    CHECK(t.n_vocab == 512);
    kvmem_tokenizer_close(&t);
    for (k = 0; k < size; k++) /* every truncation is an error that names the piece */
        if (kvmem_tokenizer_open_llama2c(&t, bytes, k, 512, NULL) == KVMEM_OK || !t.error.text[0]) {
            FAIL_AT("opened with %d bytes", (int)k);
            break;
        }
    free(bytes);
}

/* ---- joining: the heap does what the definition says ---- */

/* The definition, read naively: find the best pair, leftmost among equals, join it, until none is left. */
static size_t naive(const kvmem_tokenizer *t, const char *s, size_t n, int *ids) {
    size_t at[256], len[256], count = 0, i, best;
    for (i = 0; i < n; i++) { at[count] = i; len[count++] = 1; }
    for (;;) {
        double best_rank = -1e300;
        best = count;
        for (i = 0; i + 1 < count; i++) {
            double rank;
            if (t->kind == KVMEM_VOCAB_BPE) {
                const int r = kvmem__tok_rank(t, (const uint8_t *)s + at[i], len[i], len[i + 1]);
                if (r < 0) continue;
                rank = -r;
            } else {
                const int id = kvmem_token_find(t, s + at[i], len[i] + len[i + 1]);
                if (id < 0) continue;
                rank = (double)t->piece[id].score;
            }
            if (rank > best_rank) { best_rank = rank; best = i; }
        }
        if (best == count) break;
        len[best] += len[best + 1];
        for (i = best + 1; i + 1 < count; i++) { at[i] = at[i + 1]; len[i] = len[i + 1]; }
        count--;
    }
    for (i = 0; i < count; i++) ids[i] = kvmem_token_find(t, s + at[i], len[i]);
    return count;
}
static void small_vocab(vocab *f, int bpe, const float *score) {
    static const char words[] = "a b c aa ab ba bb ca abc aab bab abab cc aaaa bca caab abcabc bbb abb";
    int i;
    put_head(f);
    put_string(f, "tokenizer.ggml.model", bpe ? "gpt2" : "llama");
    if (bpe) put_string(f, "tokenizer.ggml.pre", "gpt-2");
    put_words(f, "tokenizer.ggml.tokens", words);
    put_array(f, "tokenizer.ggml.scores", 6, 19);
    for (i = 0; i < 19; i++) { unsigned char b[4]; kvmem__putf32(b, score ? score[i] : (float)-i); put(f, b, 4); }
    if (bpe) {
        put_array(f, "tokenizer.ggml.merges", 8, 16);
        put_text(f, "b c", 3); put_text(f, "a b", 3); put_text(f, "ab c", 4); put_text(f, "a a", 3);
        put_text(f, "b a", 3); put_text(f, "a ab", 4); put_text(f, "b ab", 4); put_text(f, "ab ab", 5);
        put_text(f, "c c", 3); put_text(f, "aa aa", 5); put_text(f, "b ca", 4); put_text(f, "c a", 3);
        put_text(f, "abc abc", 7); put_text(f, "b b", 3); put_text(f, "bb b", 4); put_text(f, "a bb", 4);
    }
    put_u32(f, "tokenizer.ggml.add_space_prefix", 0);
}
TEST(joining_equals_the_naive_definition) {
    int round, i, bpe;
    for (round = 0; round < 300; round++) {
        float score[19];
        vocab f;
        bpe = round & 1;
        for (i = 0; i < 19; i++) score[i] = (float)(int)(test_unit() * 6) - 3; /* with many ties */
        small_vocab(&f, bpe, score);
        REQUIRE_OK(vocab_load(&f, NULL));
        for (i = 0; i < 10; i++) {
            char s[120];
            int a[256], b[256];
            size_t n = 1 + (size_t)(test_unit() * 118), k, m = 0, want;
            for (k = 0; k < n; k++) s[k] = "aaabbc"[(int)(test_unit() * 6)];
            want = naive(&f.t, s, n, a);
            CHECK_OK(kvmem_tokenize(&f.t, s, n, 0, b, 256, &m, NULL));
            for (k = 0; k < want; k++) /* a joined text that is no token falls to its characters */
                if (a[k] < 0) break;
            if (k == want && (m != want || memcmp(a, b, m * sizeof(int)) != 0)) { FAIL_AT("round %d", round); return; }
        }
        vocab_close(&f);
    }
}
TEST(long_runs_end) {
    const size_t n = 100000;
    char *s = (char *)malloc(n);
    int *ids = (int *)malloc(n * 4 * sizeof(int));
    const char *names[] = { "llama-spm", "gpt-2", "deepseek-coder" };
    int i, k, ran = 0;
    for (i = 0; i < 3; i++) {
        vocab f;
        if (!vocab_open(&f, names[i])) continue;
        for (k = 0; k < 3; k++) {
            size_t m = 0;
            memset(s, k == 0 ? 'a' : k == 1 ? ' ' : '\xff', n);
            CHECK_OK(kvmem_tokenize(&f.t, s, n, KVMEM_PARSE_SPECIAL, ids, 4 * n, &m, NULL));
            CHECK(m > 0 && m <= 3 * n);
        }
        ran++;
        vocab_close(&f);
    }
    free(s);
    free(ids);
    if (!ran) SKIP("no vectors in ../shared");
}

/* ---- special tokens in a vocabulary made for it ---- */

static void special_vocab(vocab *f) {
    static const uint32_t type[] = { 2, 3, 3, 4, 4, 3, 1, 1, 1, 1, 1, 1 };
    int i;
    put_head(f);
    put_string(f, "tokenizer.ggml.model", "llama");
    put_words(f, "tokenizer.ggml.tokens", "<unk> <s> </s> <<x>> <x> <x>y x y < > / s");
    put_array(f, "tokenizer.ggml.token_type", 5, 12);
    for (i = 0; i < 12; i++) put32(f, type[i]);
    put_u32(f, "tokenizer.ggml.add_space_prefix", 0);
    put_u32(f, "tokenizer.ggml.add_eos_token", 1);
}
TEST(special_tokens_the_longest_first_takes_all_its_places) {
    vocab f;
    special_vocab(&f);
    REQUIRE_OK(vocab_load(&f, NULL));
    IDS(&f.t, "x<x>y", 0, "6 4 7");                            /* 5 is control */
    IDS(&f.t, "x<x>y", KVMEM_PARSE_SPECIAL, "6 5");
    IDS(&f.t, "<<x>>y<x>", KVMEM_PARSE_SPECIAL, "3 7 4");      /* 3 before 5: it is longer */
    IDS(&f.t, "<<x>y>", KVMEM_PARSE_SPECIAL, "8 5 9");
    IDS(&f.t, "<s></s><s>x", KVMEM_PARSE_SPECIAL, "1 2 1 6");
    IDS(&f.t, "<s></s>", 0, "8 11 9 8 10 11 9");               /* plain text: never a control token */
    IDS(&f.t, "x", KVMEM_ADD_SPECIAL, "1 6 2");
    IDS(&f.t, "q", 0, "0");                                    /* no byte tokens: unknown */
    vocab_close(&f);
}
TEST(nul_bytes_are_text) {
    vocab f;
    int ids[8];
    size_t n = 0;
    if (!vocab_open(&f, "gpt-2")) SKIP("no vectors in ../shared");
    REQUIRE_OK(kvmem_tokenize(&f.t, "a\0b", 3, 0, ids, 8, &n, NULL));
    CHECK(n == 3 && ids[0] == 64 && ids[1] == 188 && ids[2] == 65);
    vocab_close(&f);
}

/* ---- hostile files ---- */

static void refused(int line, vocab *f, kvmem_status want, const char *word) {
    const kvmem_status st = vocab_load(f, NULL);
    const char *text = f->gguf.error.status ? f->gguf.error.text : f->t.error.text;
    if (st != want || !strstr(text, word)) FAIL_AT("line %d: %d \"%s\"", line, (int)st, text);
    CHECK(f->t.block == NULL);
    vocab_close(f);
}
#define REFUSED(f, status, word) refused(__LINE__, f, status, word)
TEST(hostile_vocabularies_are_refused_by_name) {
    static const char *const unknown[] = { "bert", "rwkv", "t5", "", "llama2" };
    vocab f;
    int i;
    put_head(&f); REFUSED(&f, KVMEM_BAD_FILE, "tokenizer.ggml.model");
    for (i = 0; i < 5; i++) {
        put_head(&f); put_string(&f, "tokenizer.ggml.model", unknown[i]);
        REFUSED(&f, KVMEM_UNSUPPORTED, unknown[i]);
    }
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "gpt2"); put_string(&f, "tokenizer.ggml.pre", "nope-7");
    REFUSED(&f, KVMEM_UNSUPPORTED, "nope-7");
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "llama"); REFUSED(&f, KVMEM_BAD_FILE, "tokens");
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "llama"); put_words(&f, "tokenizer.ggml.tokens", "");
    REFUSED(&f, KVMEM_BAD_FILE, "tokens");
    put_head(&f);
    put_string(&f, "tokenizer.ggml.model", "llama");
    put_array(&f, "tokenizer.ggml.tokens", 4, 1);
    put32(&f, 1);
    REFUSED(&f, KVMEM_BAD_FILE, "tokens");
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "llama"); put_u32(&f, "tokenizer.ggml.tokens", 7);
    REFUSED(&f, KVMEM_BAD_FILE, "tokens");
    put_head(&f);
    put_string(&f, "tokenizer.ggml.model", "llama");
    put_array(&f, "tokenizer.ggml.tokens", 8, (uint64_t)1 << 60);
    REFUSED(&f, KVMEM_BAD_FILE, "tokens");
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "llama"); put_words(&f, "tokenizer.ggml.tokens", "a b c");
    put_array(&f, "tokenizer.ggml.scores", 6, 2); put64(&f, 0);
    REFUSED(&f, KVMEM_BAD_FILE, "scores");
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "llama"); put_words(&f, "tokenizer.ggml.tokens", "a b");
    put_array(&f, "tokenizer.ggml.scores", 6, 2); put32(&f, 0); put32(&f, 0x7fc00000u);
    REFUSED(&f, KVMEM_BAD_FILE, "score 1");
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "llama"); put_words(&f, "tokenizer.ggml.tokens", "a b");
    put_words(&f, "tokenizer.ggml.token_type", "x y");
    REFUSED(&f, KVMEM_BAD_FILE, "token_type");
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "gpt2"); put_words(&f, "tokenizer.ggml.tokens", "a b");
    REFUSED(&f, KVMEM_BAD_FILE, "merges");
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "gpt2"); put_words(&f, "tokenizer.ggml.tokens", "a b");
    put_words(&f, "tokenizer.ggml.merges", "ab");
    REFUSED(&f, KVMEM_BAD_FILE, "merge 0");
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "llama"); put_words(&f, "tokenizer.ggml.tokens", "a b");
    put_u32(&f, "tokenizer.ggml.bos_token_id", 2);
    REFUSED(&f, KVMEM_BAD_FILE, "bos_token_id");
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "llama"); put_words(&f, "tokenizer.ggml.tokens", "a b");
    put_u32(&f, "tokenizer.ggml.eos_token_id", 0x80000000u);
    REFUSED(&f, KVMEM_BAD_FILE, "eos_token_id");
}
TEST(one_piece_two_equal_pieces_and_empty_pieces_are_a_vocabulary) {
    vocab f;
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "llama"); put_words(&f, "tokenizer.ggml.tokens", "a");
    REQUIRE_OK(vocab_load(&f, NULL));
    IDS(&f.t, "aa", KVMEM_ADD_SPECIAL, "0 0 0 0 0"); /* the prefix U+2581: three bytes, each unknown (0) */
    vocab_close(&f);
    put_head(&f); put_string(&f, "tokenizer.ggml.model", "llama");
    put_words(&f, "tokenizer.ggml.tokens", "<unk>  b b  c");
    put_u32(&f, "tokenizer.ggml.add_space_prefix", 0);
    REQUIRE_OK(vocab_load(&f, NULL));
    IDS(&f.t, "bc", 0, "2 5");
    vocab_close(&f);
}
TEST(arguments_are_checked) {
    kvmem_tokenizer t;
    kvmem_error e;
    size_t n;
    int id;
    memset(&t, 0, sizeof t);
    CHECK(kvmem_tokenize(&t, "a", 1, 0, &id, 1, &n, &e) == KVMEM_BAD_STATE && e.text[0]);
    CHECK(kvmem_tokenize(NULL, "a", 1, 0, &id, 1, &n, &e) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_tokenizer_open_gguf(&t, NULL, NULL) == KVMEM_BAD_ARGUMENT && t.error.text[0]);
    CHECK(kvmem_tokenizer_open_llama2c(&t, NULL, 4, 1, NULL) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_tokenizer_open_llama2c(&t, "\0\0\0\0", 4, 0, NULL) == KVMEM_BAD_FILE);
    CHECK(kvmem_token_bytes(&t, 0, 0, NULL, 0) == 0 && kvmem_token_find(&t, "a", 1) == -1);
    kvmem_tokenizer_close(&t);
    kvmem_tokenizer_close(NULL);
}
TEST(every_failing_allocation_is_an_error_that_leaks_nothing) {
    vocab f;
    test_heap h;
    int bpe;
    for (bpe = 0; bpe < 3; bpe++) {
        kvmem_allocator a = test_allocator(&h);
        size_t k;
        int ok = 0;
        if (bpe == 2) special_vocab(&f);
        else small_vocab(&f, bpe, NULL);
        for (k = 1; !ok && k < 200; k++) {
            kvmem_error e;
            size_t n = 77;
            kvmem_status st;
            memset(&h, 0, sizeof h);
            memset(&f.t, 0, sizeof f.t);
            memset(&f.gguf, 0, sizeof f.gguf);
            h.fail_at = k;
            st = vocab_load(&f, &a);
            if (st == KVMEM_OK)
                st = kvmem_tokenize(&f.t, "abc abcab<s> aaaaab<x>y", 23, KVMEM_PARSE_SPECIAL, NULL, 0, &n, &e);
            if (st != KVMEM_OK) CHECK(st == KVMEM_NO_MEMORY && n == 77);
            else ok = 1;
            kvmem_tokenizer_close(&f.t);
            kvmem_gguf_close(&f.gguf);
            CHECK(h.live == 0 && h.wrong == 0);
        }
        CHECK(ok && k > 3);
        vocab_close(&f);
    }
}
TEST(mutated_vocabularies_are_refused_or_work) {
    int round, works = 0;
    for (round = 0; round < 3000; round++) {
        vocab f;
        int ids[64], i;
        size_t n;
        char out[64];
        if (round % 3 == 2) special_vocab(&f);
        else small_vocab(&f, round % 3, NULL);
        for (i = 0; i < 1 + round % 4; i++)
            f.bytes[24 + (size_t)(test_unit() * (double)(f.size - 24))] ^= (unsigned char)(1 + test_unit() * 255);
        if (round % 5 == 0) f.size = (size_t)(test_unit() * (double)f.size);
        if (vocab_load(&f, NULL) == KVMEM_OK) {
            kvmem_stream s;
            char *piece = (char *)malloc(3 * (f.t.max_piece + 4));
            works++;
            kvmem_stream_init(&s, &f.t, KVMEM_SHOW_SPECIAL);
            CHECK_OK(kvmem_tokenize(&f.t, "abc<s> abcabbbb\xff\xe2<x>y\n1", 23, 3, ids, 64, &n, NULL));
            for (i = -1; i <= f.t.n_vocab; i++) {
                kvmem_token_bytes(&f.t, i, 16, out, 64);
                kvmem_stream_push(&s, i, piece);
            }
            kvmem_stream_flush(&s, piece);
            free(piece);
        } else CHECK(f.t.error.text[0] || f.gguf.error.text[0]);
        vocab_close(&f);
    }
    CHECK(works > 100);
}

/* ---- chat formats ---- */

static const kvmem_message conversation[] = {
    { "system", "You are a helpful assistant" }, { "user", "Hello" }, { "assistant", "Hi there" },
    { "user", "Who are you" }, { "assistant", "   I am an assistant   " }, { "user", "Another question" } };

static void chat(int line, const char *name, const char *want) {
    kvmem_chat kind;
    char out[2048];
    size_t n = 0, m = 0;
    if (kvmem_chat_detect(name, strlen(name), &kind, NULL) != KVMEM_OK || strcmp(kvmem_chat_name(kind), name) != 0 ||
        kvmem_chat_format(kind, conversation, 6, 1, out, sizeof out, &n, NULL) != KVMEM_OK || n != strlen(want) ||
        strcmp(out, want) != 0) FAIL_AT("line %d, %s: %s", line, name, out);
    CHECK_OK(kvmem_chat_format(kind, conversation, 6, 1, out, 10, &m, NULL)); /* cut as snprintf does */
    CHECK(m == n && strlen(out) == 9 && !strncmp(out, want, 9));
    CHECK_OK(kvmem_chat_format(kind, conversation, 6, 1, NULL, 0, &m, NULL));
    CHECK(m == n);
}
#define CHAT(name, want) chat(__LINE__, name, want)
TEST(chat_formats) { /* what the models' own templates print, white space included */
    CHAT("chatml", "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
         "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n"
         "<|im_start|>assistant\n   I am an assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n"
         "<|im_start|>assistant\n");
    CHAT("llama2", "[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST] Hi "
                   "there </s><s>[INST] Who are "
                   "you [/INST] I am an assistant </s><s>[INST] Another question [/INST]");
    CHAT("llama3",
         "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|"
         "end_header_id|>\n\n"
         "Hi there<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWho are "
         "you<|eot_id|><|start_header_id|>assistant"
         "<|end_header_id|>\n\nI am an "
         "assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnother question"
         "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
    CHAT("mistral", "[INST] You are a helpful assistant\nHello [/INST]Hi there</s>[INST] Who are you [/INST]   I am an "
         "assistant   </s>[INST] Another question [/INST]");
    CHAT("mistral-v1", " [INST] You are a helpful assistant\n\nHello [/INST] Hi there</s> [INST] "
                       "Who are you [/INST]    I "
                       "am an assistant   </s> [INST] Another question [/INST]");
    CHAT("mistral-v3", "[INST] You are a helpful assistant\n\nHello[/INST] Hi there</s>[INST] Who "
                       "are you[/INST] I am an "
                       "assistant</s>[INST] Another question[/INST]");
    CHAT(
        "mistral-v3-tekken",
        "[INST]You are a helpful assistant\n\nHello[/INST]Hi there</s>[INST]Who are you[/INST]   I "
        "am an assistant   </s>[INST]Another question[/INST]");
    CHAT("mistral-v7",
         "[SYSTEM_PROMPT] You are a helpful assistant[/SYSTEM_PROMPT][INST] Hello[/INST] Hi "
         "there</s>[INST] "
         "Who are you[/INST]    I am an assistant   </s>[INST] Another question[/INST]");
    CHAT("mistral-v7-tekken", "[SYSTEM_PROMPT]You are a helpful assistant[/SYSTEM_PROMPT][INST]Hello[/INST]Hi there</s>"
         "[INST]Who are you[/INST]   I am an assistant   </s>[INST]Another question[/INST]");
    CHAT("gemma", "<start_of_turn>user\nYou are a helpful "
                  "assistant\n\nHello<end_of_turn>\n<start_of_turn>model\nHi there"
                  "<end_of_turn>\n<start_of_turn>user\nWho are "
                  "you<end_of_turn>\n<start_of_turn>model\nI am an assistant"
                  "<end_of_turn>\n<start_of_turn>user\nAnother "
                  "question<end_of_turn>\n<start_of_turn>model\n");
    CHAT("phi3", "<|system|>\nYou are a helpful "
                 "assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi there<|end|>\n"
                 "<|user|>\nWho are you<|end|>\n<|assistant|>\n   I am an assistant   "
                 "<|end|>\n<|user|>\nAnother question<|end|>\n"
                 "<|assistant|>\n");
    CHAT("zephyr", "<|system|>\nYou are a helpful assistant</s>\n<|user|>\nHello</s>\n<|assistant|>\nHi there</s>\n"
         "<|user|>\nWho are you</s>\n<|assistant|>\n   I am an assistant   </s>\n<|user|>\nAnother question</s>\n"
         "<|assistant|>\n");
    CHAT("zephyr-eot", "<|system|>\nYou are a helpful "
                       "assistant<|endoftext|>\n<|user|>\nHello<|endoftext|>\n<|assistant|>\n"
                       "Hi there<|endoftext|>\n<|user|>\nWho are you<|endoftext|>\n<|assistant|>\n "
                       "  I am an assistant   <|endoftext|>\n"
                       "<|user|>\nAnother question<|endoftext|>\n<|assistant|>\n");
}
TEST(chat_templates_are_recognized_or_said_to_be_unknown) {
    static const char *const t[][2] = {
        { "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'}}", "chatml" },
        { "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{{ '<<SYS>>' }}", "llama2" },
        { "{{ '[INST] ' + message['content'] + ' [/INST]' }}", "mistral" },
        { "{{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}", "mistral-v1" },
        { "[AVAILABLE_TOOLS] {{- \"[INST] \" + message }}", "mistral-v3" },
        { "[AVAILABLE_TOOLS] {{- \"[INST]\" + message }}", "mistral-v3-tekken" },
        { "{{ '[INST] ' }}{{ '[SYSTEM_PROMPT] ' }}", "mistral-v7" },
        { "{{ '[INST]' }}{{ '[SYSTEM_PROMPT]' }}", "mistral-v7-tekken" },
        { "<start_of_turn>{{ role }}", "gemma" },
        { "<|user|> <|assistant|> <|end|>", "phi3" },
        { "{{ '<|user|>\n' + message['content'] + eos_token }}<|assistant|>", "zephyr" },
        { "<|user|>{{ x }}<|endoftext|><|assistant|>", "zephyr-eot" },
        { "<|start_header_id|>{{ role }}<|end_header_id|>", "llama3" } };
    static const char *const no[] = { "", "x", "{{ messages }}", "[INST] {{ x }}", "<|im_start|>user<|im_sep|>",
                                      "[gMASK]<sop><|user|>", "<<SYS>>[INST]", "none" };
    size_t i;
    kvmem_chat kind;
    kvmem_error e;
    vocab f;
    for (i = 0; i < sizeof t / sizeof t[0]; i++) {
        CHECK_OK(kvmem_chat_detect(t[i][0], strlen(t[i][0]), &kind, &e));
        if (strcmp(kvmem_chat_name(kind), t[i][1]) != 0) FAIL_AT("%s: %s", t[i][0], kvmem_chat_name(kind));
    }
    for (i = 0; i < sizeof no / sizeof no[0]; i++)
        if (kvmem_chat_detect(no[i], strlen(no[i]), &kind, &e) != KVMEM_UNSUPPORTED)
            FAIL_AT("%s was recognized", no[i]);
    CHECK(strstr(e.text, "none"));
    put_head(&f);
    put_string(&f, "tokenizer.chat_template", t[8][0]);
    REQUIRE_OK(kvmem_gguf_open(&f.gguf, f.bytes, f.size, NULL));
    CHECK_OK(kvmem_chat_of_gguf(&f.gguf, &kind, NULL));
    CHECK(kind == KVMEM_CHAT_GEMMA);
    vocab_close(&f);
    put_head(&f);
    REQUIRE_OK(kvmem_gguf_open(&f.gguf, f.bytes, f.size, NULL));
    CHECK(kvmem_chat_of_gguf(&f.gguf, &kind, &e) == KVMEM_UNSUPPORTED && strstr(e.text, "chat_template"));
    vocab_close(&f);
}
TEST(chat_arguments_are_checked) {
    kvmem_message m[2];
    kvmem_error e;
    char out[64];
    size_t n;
    m[0].role = "tool"; m[0].content = "x";
    CHECK(kvmem_chat_format(KVMEM_CHAT_CHATML, m, 1, 1, out, 64, &n, &e) == KVMEM_BAD_ARGUMENT &&
          strstr(e.text, "tool"));
    m[0].role = NULL;
    CHECK(kvmem_chat_format(KVMEM_CHAT_CHATML, m, 1, 1, out, 64, &n, &e) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_chat_format(KVMEM_CHAT_NONE, m, 0, 1, out, 64, &n, &e) == KVMEM_BAD_ARGUMENT);
    CHECK(kvmem_chat_format((kvmem_chat)99, m, 0, 1, out, 64, &n, &e) == KVMEM_BAD_ARGUMENT);
    CHECK_OK(kvmem_chat_format(KVMEM_CHAT_CHATML, NULL, 0, 0, out, 64, &n, &e));
    CHECK(n == 0 && out[0] == 0);
    CHECK(kvmem_chat_name((kvmem_chat)99) == NULL && kvmem_chat_name((kvmem_chat)-1) == NULL);
}

int main(int argc, char **argv) {
    test_begin(argc, argv, "tokenizer");
    RUN(unicode_classes_of_all_code_points_are_those_of_15_1);
    RUN(utf8_every_code_point_round_trips_and_nothing_else_decodes);
    RUN(byte_characters_are_a_bijection);
    RUN(words_gpt2);
    RUN(words_llama3_and_qwen2);
    RUN(words_starcoder_and_falcon_and_default);
    RUN(words_deepseek);
    RUN(vectors_llama_spm);
    RUN(vectors_phi_3);
    RUN(vectors_gpt_2);
    RUN(vectors_deepseek_coder);
    RUN(special_tokens_of_phi_3);
    RUN(ids_out_of_range_give_nothing);
    RUN(a_short_buffer_gets_the_first_ids_and_the_full_count);
    RUN(decoding_gives_the_text_back_spm);
    RUN(decoding_gives_the_text_back_bpe);
    RUN(decoding_gives_the_text_back_deepseek);
    RUN(stream_replaces_what_is_not_utf8_or_keeps_it);
    RUN(llama2c_ids_are_those_of_run_c);
    RUN(joining_equals_the_naive_definition);
    RUN(long_runs_end);
    RUN(special_tokens_the_longest_first_takes_all_its_places);
    RUN(nul_bytes_are_text);
    RUN(hostile_vocabularies_are_refused_by_name);
    RUN(one_piece_two_equal_pieces_and_empty_pieces_are_a_vocabulary);
    RUN(arguments_are_checked);
    RUN(every_failing_allocation_is_an_error_that_leaks_nothing);
    RUN(mutated_vocabularies_are_refused_or_work);
    RUN(chat_formats);
    RUN(chat_templates_are_recognized_or_said_to_be_unknown);
    RUN(chat_arguments_are_checked);
    return test_end();
}
