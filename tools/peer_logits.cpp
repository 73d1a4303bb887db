// peer_logits.cpp - logits of a llama.cpp-like library for every token of a list, to compare with
// `kvmem logits`. Not built by the Makefile: it needs the other project's header and libraries.
//
//   c++ -O2 -I PEER/include -I PEER/ggml/include -o peer_logits tools/peer_logits.cpp
//       PEER/build/src/libllama.a PEER/build/ggml/src/libggml.a -fopenmp -lpthread -lm
//   ./peer_logits MODEL 1,2,3 OUT [ctx] [cache type, or K/V types: f16, f32/f16] [flash 0|1]
//       [batch] [threads]
//
// OUT gets raw float32, one row of n_vocab values a token.
#include "llama.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static void quiet(enum ggml_log_level level, const char *text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static ggml_type type_of(const char *s) {
    return !strncmp(s, "f32", 3) ? GGML_TYPE_F32 : !strncmp(s, "q8_0", 4) ? GGML_TYPE_Q8_0
         : !strncmp(s, "q4_0", 4) ? GGML_TYPE_Q4_0 : GGML_TYPE_F16;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "peer_logits MODEL 1,2,3 OUT [ctx] [kv type] [flash] [batch] [threads]\n");
        return 2;
    }
    std::vector<llama_token> ids;
    for (char *p = argv[2]; *p;) { ids.push_back((llama_token)strtol(p, &p, 10)); if (*p) p++; }
    const int n = (int)ids.size(), batch = argc > 7 && atoi(argv[7]) > 0 ? atoi(argv[7]) : n;
    llama_log_set(quiet, nullptr);
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) { fprintf(stderr, "peer_logits: cannot load %s\n", argv[1]); return 1; }
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = argc > 4 ? (uint32_t)atoi(argv[4]) : (uint32_t)n;
    cp.n_batch = cp.n_ubatch = (uint32_t)batch;
    const char *kv = argc > 5 ? argv[5] : "f16", *slash = strchr(kv, '/');
    cp.type_k = type_of(kv);
    cp.type_v = type_of(slash ? slash + 1 : kv);
    cp.flash_attn = argc > 6 && atoi(argv[6]);
    cp.n_threads = cp.n_threads_batch = argc > 8 ? (uint32_t)atoi(argv[8]) : 1;
    llama_context *ctx = llama_init_from_model(model, cp);
    FILE *out = fopen(argv[3], "wb");
    if (!ctx || !out) {
        fprintf(stderr, "peer_logits: no context, or cannot write %s\n", argv[3]);
        return 1;
    }
    const int n_vocab = llama_n_vocab(model);
    llama_batch b = llama_batch_init(batch, 0, 1);
    for (int at = 0; at < n; at += batch) {
        b.n_tokens = n - at < batch ? n - at : batch;
        for (int i = 0; i < b.n_tokens; i++) {
            b.token[i] = ids[(size_t)(at + i)];
            b.pos[i] = at + i;
            b.n_seq_id[i] = 1;
            b.seq_id[i][0] = 0;
            b.logits[i] = 1;
        }
        if (llama_decode(ctx, b)) { fprintf(stderr, "peer_logits: decode failed\n"); return 1; }
        for (int i = 0; i < b.n_tokens; i++)
            fwrite(llama_get_logits_ith(ctx, i), sizeof(float), (size_t)n_vocab, out);
    }
    return fclose(out) ? 1 : 0;
}
