/* Fuzz target: vocabularies and text. The first byte chooses:
     0..127   text, by a built-in vocabulary: SentencePiece, llama2.c, or one pre-tokenizer of the BPE kind
     128..191 the rest is a GGUF file with a vocabulary
     192..239 the rest is llama2.c's tokenizer.bin
     240..255 the rest is a chat template, then the text of a message
   Ids are in range, counts do not depend on the room given, text comes back, nothing leaks. */
#ifndef KVMEM_REFERENCE
#define KVMEM_REFERENCE /* text only: compiles faster */
#endif
#include "fuzz.h"
#include "../tests/tiny.h"

static const char *const pre_names[] = { "default", "gpt-2", "llama-bpe", "qwen2", "deepseek-llm",
    "deepseek-coder", "falcon", "starcoder", "refact", "smollm" };
enum { N_PRE = 10, TEXT_MAX = 4096 };

/* Strict UTF-8? */
static int is_utf8(const char *s, size_t n) {
    const unsigned char *p = (const unsigned char *)s;
    size_t i, k, more;
    for (i = 0; i < n; i += more + 1) {
        uint32_t c = p[i];
        more = c < 0x80 ? 0 : c >= 0xC2 && c < 0xE0 ? 1 : (c & 0xF0) == 0xE0 ? 2 : c >= 0xF0 && c < 0xF5 ? 3 : 9;
        if (more > 3 || i + more >= n) return 0;
        c &= more == 0 ? 127u : more == 1 ? 31u : more == 2 ? 15u : 7u;
        for (k = 1; k <= more; k++) {
            if ((p[i + k] & 0xC0) != 0x80) return 0;
            c = c << 6 | (p[i + k] & 63u);
        }
        if (more == 2 && (c < 0x800 || (c >= 0xD800 && c < 0xE000))) return 0;
        if (more == 3 && (c < 0x10000 || c > 0x10FFFF)) return 0;
    }
    return 1;
}
/* Tokenize, detokenize, stream. exact: the vocabulary has every byte and gives the text back. */
static void use(const kvmem_tokenizer *t, const char *text, size_t len, unsigned flags, int exact) {
    kvmem_error err;
    kvmem_stream stream;
    size_t n = 0, few = 0, i, bytes, streamed = 0;
    int *ids = (int *)malloc((len + 8) * sizeof *ids), two[2];
    char *back, *piece = (char *)malloc(3 * (t->max_piece + 4) + 12);
    kvmem_status s;
    memset(&err, 0, sizeof err);
    if (!ids || !piece) { free(ids); free(piece); return; }
    s = kvmem_tokenize(t, text, len, flags, ids, len + 8, &n, &err);
    if (s != KVMEM_OK) { fuzz_explained(s, &err); free(ids); free(piece); return; }
    FUZZ_MUST(kvmem_tokenize(t, text, len, flags, two, 2, &few, NULL) == KVMEM_OK && few == n);
    if (n > len + 8) n = len + 8; /* an empty text with BOS and EOS fits always; odd vocabularies may not */
    for (i = 0; i < n; i++) FUZZ_MUST(ids[i] >= 0 && ids[i] < t->n_vocab);
    for (i = 0; i < n && i < 2; i++) FUZZ_MUST(two[i] == ids[i]);
    bytes = kvmem_detokenize(t, ids, n, flags & KVMEM_ADD_SPECIAL ? KVMEM_TEXT_START : 0, NULL, 0);
    back = (char *)malloc(bytes + 1);
    if (back) {
        FUZZ_MUST(kvmem_detokenize(t, ids, n, flags & KVMEM_ADD_SPECIAL ? KVMEM_TEXT_START : 0, back, bytes) == bytes);
        if (exact && is_utf8(text, len)) FUZZ_MUST(bytes == len && !memcmp(back, text, len));
        kvmem_stream_init(&stream, t, KVMEM_KEEP_BYTES | (flags & KVMEM_ADD_SPECIAL ? KVMEM_TEXT_START : 0));
        for (i = 0; i < n; i++) {
            const size_t k = kvmem_stream_push(&stream, ids[i], piece);
            FUZZ_MUST(k <= 3 * (t->max_piece + 4) && streamed + k <= bytes);
            FUZZ_MUST(!k || !memcmp(piece, back + streamed, k));
            streamed += k;
        }
        i = kvmem_stream_flush(&stream, piece);
        FUZZ_MUST(streamed + i == bytes && !memcmp(piece, back + streamed, i));
    }
    free(back);
    free(ids);
    free(piece);
}
static void open_gguf(const uint8_t *data, size_t size, const char *text, size_t len, int exact) {
    fuzz_heap heap;
    const kvmem_allocator a = fuzz_allocator(&heap, (size_t)64 << 20);
    kvmem_gguf g;
    kvmem_tokenizer t;
    kvmem_status s = kvmem_gguf_open(&g, data, size, &a);
    int id;
    FUZZ_MUST(!exact || s == KVMEM_OK);
    fuzz_explained(s, &g.error);
    if (s == KVMEM_OK) {
        s = kvmem_tokenizer_open_gguf(&t, &g, &a);
        FUZZ_MUST(!exact || s == KVMEM_OK);
        fuzz_explained(s, &t.error);
        if (s == KVMEM_OK) {
            use(&t, text, len, 0, exact == 2);
            use(&t, text, len, KVMEM_ADD_SPECIAL | KVMEM_PARSE_SPECIAL, 0);
            for (id = -2; id < t.n_vocab + 2 && id < 1000; id++) {
                char c[4];
                kvmem_token_bytes(&t, id, KVMEM_SHOW_SPECIAL, c, sizeof c);
                kvmem_token_is_eog(&t, id);
            }
        }
        kvmem_tokenizer_close(&t);
    }
    kvmem_gguf_close(&g);
    FUZZ_MUST(heap.live == 0);
}
static void open_bin(const uint8_t *data, size_t size, int n_vocab, const char *text, size_t len, int exact) {
    fuzz_heap heap;
    const kvmem_allocator a = fuzz_allocator(&heap, (size_t)64 << 20);
    kvmem_tokenizer t;
    const kvmem_status s = kvmem_tokenizer_open_llama2c(&t, data, size, n_vocab, &a);
    FUZZ_MUST(!exact || s == KVMEM_OK);
    fuzz_explained(s, &t.error);
    if (s == KVMEM_OK) {
        use(&t, text, len, 0, 0);
        use(&t, text, len, KVMEM_ADD_SPECIAL, exact);
    }
    kvmem_tokenizer_close(&t);
    FUZZ_MUST(heap.live == 0);
}
static void chat(const char *p, size_t n) {
    kvmem_chat kind = KVMEM_CHAT_NONE;
    kvmem_message m[3];
    kvmem_error err;
    char text[64], out[256], few[3];
    size_t len = 0, again = 0, tail = n < 63 ? n : 63;
    const kvmem_status s = kvmem_chat_detect(p, n, &kind, &err);
    int i;
    fuzz_explained(s, &err);
    memcpy(text, p + n - tail, tail);
    text[tail] = 0;
    m[0].role = "system"; m[1].role = "user"; m[2].role = text;
    m[0].content = m[1].content = m[2].content = text;
    for (i = 1; kvmem_chat_name((kvmem_chat)i); i++) {
        if (s == KVMEM_OK && i != (int)kind) continue;
        if (kvmem_chat_format((kvmem_chat)i, m, 3, 1, out, sizeof out, &len, &err) == KVMEM_OK) {
            FUZZ_MUST(kvmem_chat_format((kvmem_chat)i, m, 3, 1, few, sizeof few, &again, NULL) == KVMEM_OK);
            FUZZ_MUST(again == len);
            if (len < sizeof out) FUZZ_MUST(out[len] == 0);
        }
        FUZZ_MUST(kvmem_chat_format((kvmem_chat)i, m, 2, 0, out, sizeof out, &len, NULL) == KVMEM_OK);
    }
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char sample[] = "The cat's 12345 in\n\n  t\xC3\xA9st <|end|>\xF0\x9F\x98\x80";
    fuzz_input in;
    const char *text;
    size_t n;
    int mode;
    in.p = data;
    in.n = size;
    mode = (int)fuzz_byte(&in);
    text = (const char *)in.p;
    n = in.n < TEXT_MAX ? in.n : TEXT_MAX;
    if (mode < 128) {
        const int kind = mode % (N_PRE + 2);
        uint8_t *file;
        size_t file_size;
        if (kind == N_PRE + 1) {
            file = tiny_llama2c_vocab(&file_size);
            open_bin(file, file_size, TINY_VOCAB, text, n, 1);
        } else {
            tiny_gguf g;
            memset(&g, 0, sizeof g);
            if (kind == N_PRE) tiny_vocab_spm(&g);
            else tiny_vocab_bpe(&g, pre_names[kind]);
            file = tiny_finish(&g, &file_size);
            open_gguf(file, file_size, text, n, kind == N_PRE ? 1 : 2);
        }
        free(file);
    } else if (mode < 192) {
        open_gguf(in.p, in.n, sample, strlen(sample), 0);
    } else if (mode < 240) {
        open_bin(in.p, in.n, mode & 1 ? 0 : TINY_VOCAB, sample, strlen(sample), 0);
    } else chat(text, n);
    return 0;
}
#ifdef KVMEM_FUZZ_MAIN
static size_t fuzz_seed(int i, uint8_t *out, size_t cap) {
    static const char *const texts[] = { "Hello the world, it's 12345 o'clock.\n\n\tthe  end <|end|> in there",
        "na\xC3\xAFve \xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x98\x80 \xD9\xA3\xD9\xA4 "
        "\xE0\xA4\x95\xE0\xA5\x8D\xE0\xA4\xB7 !!!  \r\n x",
        "\xFF\xFE bad \xC3( bytes \xED\xA0\x80 and \xE2\x96\x81 marks" };
    static const char *const templates[] = {
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>",
        "<|start_header_id|>{{ role }}<|end_header_id|>", "[INST] <<SYS>>", "llama3", "none of these" };
    uint8_t *file = NULL;
    size_t n = 0;
    if (i < 12) {
        n = strlen(texts[i % 3]);
        out[0] = (uint8_t)i;
        memcpy(out + 1, texts[i % 3], n);
        return n + 1;
    }
    if (i < 17) {
        n = strlen(templates[i - 12]);
        out[0] = 255;
        memcpy(out + 1, templates[i - 12], n);
        return n + 1;
    }
    if (i < 20) {
        tiny_gguf g;
        memset(&g, 0, sizeof g);
        if (i == 17) tiny_vocab_spm(&g);
        else if (i == 18) tiny_vocab_bpe(&g, "qwen2");
        file = i < 19 ? tiny_finish(&g, &n) : tiny_llama2c_vocab(&n);
        out[0] = i < 19 ? 128 : 193;
        if (n < cap) memcpy(out + 1, file, n);
        free(file);
        return n < cap ? n + 1 : 0;
    }
    return 0;
}
#endif
