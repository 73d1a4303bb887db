/* kvmem.h - v0.1.0 - the memory of a transformer in one C header - public domain or MIT, at your choice

   A transformer remembers by keeping a key and a value for every token it has read, per layer and
   KV head. kvmem keeps that memory for you: in pages that can be compressed, evicted, quantized,
   copied, saved and audited, under a hard byte limit, by a method that one line of text names.
   On top of it sits a decoder that runs real checkpoints (GGUF, llama2.c), built only from the
   memory layer's public calls, and, behind KVMEM_TRAIN, a trainer for small models. No dependency but
   libc and libm; OpenMP is used where the compiler has it switched on.

   QUICK START
     Do this in exactly one C or C++ file:
         #define KVMEM_IMPLEMENTATION
         #include "kvmem.h"
     and #include "kvmem.h" wherever else you need it. Link with -lm; add -fopenmp for threads.

   SAMPLE (examples/minimal.c has the main that reads the files)
     #include <stdio.h>
     #define KVMEM_IMPLEMENTATION
     #include "kvmem.h"

     static kvmem_model m;
     static kvmem_session s;
     static kvmem_sampler pick;

     // file: GGUF bytes, or a llama2.c model's with its tokenizer.bin as vocab. Returns 0 if all went well.
     static int tell(const void *file, size_t size, const void *vocab, size_t vocab_size, const char *text) {
         kvmem_session_config cfg = kvmem_session_config_default();
         kvmem_recipe recipe = kvmem_recipe_default();
         int ids[256], i;
         size_t n;
         char out[1024];
         cfg.recipe = &recipe;
         if (kvmem_recipe_parse(&recipe, "snapkv budget=50% codec=q8_0", NULL)
             || kvmem_model_open(&m, file, size, vocab, vocab_size, NULL)
             || kvmem_session_init(&s, &m, &cfg)
             || kvmem_sampler_init(&pick, NULL, m.n_vocab, NULL)
             || kvmem_tokenize(&m.tokenizer, text, strlen(text), KVMEM_ADD_SPECIAL, ids, 256, &n, &m.error)
             || n > 256 || kvmem_session_feed(&s, ids, (int)n, KVMEM_PROMPT_END, NULL, NULL)) return 1;
         for (i = 0; i < 100 && !kvmem_sample(&pick, s.logits, ids); i++) {
             if (kvmem_token_is_eog(&m.tokenizer, ids[0])) break;
             fwrite(out, 1, kvmem_token_bytes(&m.tokenizer, ids[0], 0, out, sizeof out), stdout);
             if (kvmem_session_feed(&s, ids, 1, KVMEM_DECODE, NULL, NULL)) return 1;
         }
         return 0;
     }

   DOES NOT
     - batch several sequences in one call, run encoders, vision towers, mixtures of experts or MLA;
     - keep the cache on a GPU (the backend table is there for it, only the CPU fills it yet);
     - trust files: every model, tokenizer, recipe and cache file is checked before it is used, but a
       model that passes the checks can still compute nonsense.

   CONTENTS (search for the tag)
     >>api_base           status, errors, allocator
     >>api_recipe         stages, entries and the one line of text that composes them
     >>api_cache          the memory layer
     >>api_gguf           tensors and the GGUF container
     >>api_tokenizer      text to token ids and back
     >>api_model          model files
     >>api_session        decoder, sampling
     >>api_flash          neurons of a feed-forward layer on flash
     >>api_train          training
     >>platform           compiler, libc, SIMD detection
     >>errors             status texts, formatted detail, allocation
     >>numerics           half floats, exp, random numbers, top-k, checksums
     >>blocks             up to 32 values in one piece of bytes, for tensors and for caches
     >>quants             tensor types, their block layouts, decoding and encoding
     >>kernels            vectors, norms, rotations
     >>matmul             out = x . transposed W, for every tensor type
     >>kernels_x86        the vectors by AVX2 and AVX-512
     >>matmul_x86         the matrix product by AVX2 and AVX-512
     >>kernels_neon       the vectors by NEON
     >>matmul_neon        the matrix product by NEON
     >>linear             rotations, signs and packed codes, shared by codecs
     >>calibrate          k-means, eigenvectors, Cholesky: what codecs learn with
     >>codecs             how the rows of K and V are stored
     >>affine             a scale and a minimum for a group of values, shared by codecs
     >>codec_kivi         keys by channel, values by token, 2 or 4 bits
     >>codec_kvquant      non-uniform levels from calibration, per-channel keys, sparse outliers
     >>codec_lowrank      the leading principal directions of a lane, then any row codec
     >>codec_rotatekv     Hadamard rotation, channels in learned order, clipped ranges, 2 bits
     >>codec_polarquant   a rotated row as a tree of angles
     >>codec_turboquant   one codebook for all rotated coordinates
     >>codec_octopus      triplets of rotated coordinates by direction and length
     >>codec_polark       a pair of channels as radius and angle, by table
     >>codec_qjl          the signs of a random sketch of a key, and its norm
     >>codec_table        all codecs, and what every codec may leave out
     >>cache              arena, pages, lanes
     >>attention          causal attention that reads the coded pages
     >>tiles              causal attention of many queries at once
     >>observe            what attention shows of the entries
     >>backend            the CPU's tables and the choice at run time
     >>score              how much will an entry matter?
     >>score_random       the floor that every method must beat
     >>score_recency      newer is better
     >>score_knorm        keys with a small norm attract attention
     >>score_h2o          attention received so far
     >>score_tova         attention of the newest query, one set for the layer
     >>score_snapkv       entries the last queries looked at
     >>budget             how many entries may each lane keep?
     >>budget_uniform     every lane the same
     >>budget_pyramid     much for the lower layers, little for the upper
     >>reduce             what becomes of the rest?
     >>reduce_drop        forget the rest
     >>reduce_recompute   the rest is made again when it is read
     >>segment            where does the stream break into events?
     >>segment_fixed      an event every `size` tokens
     >>retrieve           which stored entries does this query read?
     >>place              at which RoPE position is a kept key read?
     >>commit             the end of a block: segment, score, budget, reduce
     >>persistence        save, load, inspect
     >>entropy            arithmetic coding of symbols under 16-bit models
     >>stream             a cache in a few bits a value, in chunks, at three levels
     >>stream_plan        which level of which chunk comes in time
     >>recipes            one line of text composes the seven stages
     >>gguf               the GGUF container
     >>unicode            UTF-8 and general categories
     >>pretokenize        cutting text into words
     >>tokenizer          vocabularies
     >>tokenize           joining the best pair of neighbours
     >>detokenize         ids back to bytes
     >>chat               the text of a conversation
     >>model              architectures, llama2.c checkpoints
     >>decoder            the forward pass and the session
     >>direct             a session that makes evicted keys and values again
     >>flash              neurons of a ReLU layer read when they fire
     >>sampling           from logits to a token
     >>train              the llama family learns

   OPTIONS (macros; define them in every file that includes the header, or in none)
     name                  default     effect
     KVMEM_IMPLEMENTATION  not set     this file gets the function bodies (one file only)
     KVMEM_API             extern      linkage of the public functions
     KVMEM_STATIC          not set     all functions static: several private copies in one program
     KVMEM_NO_STDIO        not set     no file functions, no <stdio.h>: bytes in, bytes out
     KVMEM_NO_MALLOC       not set     no malloc/free: every config must bring an allocator
     KVMEM_NO_DECODER      not set     memory layer alone: no model files, tokenizer, decoder
     KVMEM_REFERENCE       not set     plain C twins only: no SIMD paths are compiled
     KVMEM_TRAIN           not set     training: gradients of the llama family, AdamW
     KVMEM_ASSERT(x)       assert(x)   checks of the library's own invariants; off under NDEBUG

   METHODS: `./kvmem list` prints the table; README.md has it with papers.

   ERRORS     Every call that can fail returns kvmem_status (0 is success). The sentence that names the
              cause is in the object's `error.text`, or in the kvmem_error you pass.
   MEMORY     Everything is taken through one allocator hook. Weights and file bytes are borrowed, a
              cache is owned, outputs are the caller's.
   THREADS    No mutable globals. Distinct objects may be used from distinct threads; a cache and the
              copies made of it share pages and an arena and belong to one thread at a time.
   NUMERICS   Same input, recipe and seed give the same bits for any thread count on one code path.
              Fast paths (AVX2, AVX-512, NEON) agree with the plain C twins within rounding. */
#ifndef KVMEM_H
#define KVMEM_H

#include <stddef.h>
#include <stdint.h>

#define KVMEM_VERSION_MAJOR 0
#define KVMEM_VERSION_MINOR 1
#define KVMEM_VERSION_PATCH 0
#define KVMEM_VERSION 100 /* major * 10000 + minor * 100 + patch */

#ifdef KVMEM_STATIC
#if defined(__GNUC__) || defined(__clang__)
#define KVMEM_API static __attribute__((unused))
#else
#define KVMEM_API static
#endif
#endif
#ifndef KVMEM_API
#define KVMEM_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ==== >>api_base : status, errors, allocator ==================================================== */

/* One list makes the enum and the texts. Numbers never change their meaning; new ones are appended. */
#define KVMEM_STATUS_LIST(X)                                                                        \
    X(KVMEM_OK, 0, "ok")                                                                            \
    X(KVMEM_BAD_ARGUMENT, -1, "an argument is out of range or missing")                             \
    X(KVMEM_NO_MEMORY, -2, "the allocator returned no memory")                                      \
    X(KVMEM_OVER_BUDGET, -3, "the byte limit of the cache would be passed")                         \
    X(KVMEM_BAD_RECIPE, -4, "the recipe text cannot be used")                                       \
    X(KVMEM_BAD_FILE, -5, "the file's bytes are not what its format allows")                        \
    X(KVMEM_UNSUPPORTED, -6, "valid, but this library does not do it")                              \
    X(KVMEM_MISMATCH, -7, "two objects do not belong together")                                     \
    X(KVMEM_IO, -8, "reading or writing failed")                                                    \
    X(KVMEM_BAD_VALUE, -9, "a number is not finite")                                                \
    X(KVMEM_BAD_STATE, -10, "the call does not fit the object's present state")

typedef enum kvmem_status {
#define KVMEM__X(name, number, text) name = number,
    KVMEM_STATUS_LIST(KVMEM__X)
#undef KVMEM__X
    KVMEM__STATUS_END = 1
} kvmem_status;

/* Detail of the last failure: status and one sentence that names the thing and the reason. */
typedef struct kvmem_error {
    kvmem_status status;
    char text[256]; /* NUL-terminated; empty when status is KVMEM_OK */
} kvmem_error;

/* Where all memory comes from. alloc returns memory aligned for any type (64 bytes are not assumed)
   or NULL; release gets the size that was asked for. A zeroed struct means malloc and free. */
typedef struct kvmem_allocator {
    void *user;
    void *(*alloc)(void *user, size_t size);
    void (*release)(void *user, void *ptr, size_t size);
} kvmem_allocator;

KVMEM_API int kvmem_version(void);                             /* KVMEM_VERSION of the compiled bodies */
KVMEM_API const char *kvmem_status_string(kvmem_status status); /* short English text, never NULL */

/* ==== >>api_recipe : stages, entries and the one line of text that composes them ================= */

/* The seven stages; the codec stage has one choice for K and one for V. */
typedef enum kvmem_stage {
    KVMEM_SEGMENT, KVMEM_SCORE, KVMEM_BUDGET, KVMEM_REDUCE,
    KVMEM_CODEC_K, KVMEM_CODEC_V, KVMEM_RETRIEVE, KVMEM_PLACE,
    KVMEM_N_STAGES
} kvmem_stage;

#define KVMEM_MAX_PARAMS 12

/* One parameter of an entry: `name=value` in the brackets. A list ends with name == NULL. */
typedef struct kvmem_param {
    const char *name;
    double def, lo, hi;      /* default and inclusive range */
    const char *choices;     /* NULL: a number; else "avg|max": value is the index */
    int is_int;              /* 1: whole numbers, 2: odd ones */
    const char *what;        /* one line for the help text */
} kvmem_param;

/* What an entry reads: the cache collects only what the recipe in force declares. */
enum {
    KVMEM_READS_KEYS    = 1,  /* decoded keys */
    KVMEM_READS_VALUES  = 2,  /* decoded values */
    KVMEM_READS_QUERIES = 4,  /* the ring of the last queries; the entry's parameter "window" gives w */
    KVMEM_READS_ACC     = 8,  /* per entry: probability summed over all queries so far (group mean) */
    KVMEM_READS_LAST    = 16, /* per entry: probability given by the newest query (group mean) */
    KVMEM_READS_SCORES  = 32, /* budget only: the scores of all lanes of the layer */
    KVMEM_READS_LAYERS  = 64, /* budget only: compares layers, so no layer can be committed alone */
    KVMEM_READS_LANES   = 128 /* score only: looks at the layer's other lanes, so all lanes are scored
                                 before the first is reduced */
};

/* The head that every stage entry begins with: what the parser, the printer and `list` need. */
typedef struct kvmem_entry {
    const char *word;          /* the entry's word in a recipe */
    const char *what;          /* one line */
    const char *cite;          /* paper and arXiv id, or "-" */
    const kvmem_param *params; /* ends with name == NULL; may be NULL */
    unsigned reads;            /* KVMEM_READS_* */
} kvmem_entry;

struct kvmem_cache;

/* What a score, budget or segment function sees of one layer at commit. All fields read-only. */
typedef struct kvmem_view {
    struct kvmem_cache *cache;
    int layer;
    const double *par; /* the entry's parameters in table order */
    void *user;        /* the pointer given with the entry */
    uint64_t seed;     /* the recipe's */
} kvmem_view;

/* score: how much will entry t of lane (layer, g) matter? Higher is kept. score (n) is to be filled,
   n = kvmem_view_count(v, g). May hold -INFINITY, not NaN. */
typedef kvmem_status (*kvmem_score_fn)(const kvmem_view *v, int g, float *score);
typedef struct kvmem_score_entry { kvmem_entry e; kvmem_score_fn fn; } kvmem_score_entry;

/* budget: how many entries may each lane of this layer keep? mean: the mean number per lane over the
   whole cache, window and sinks included; n (G) entries there now; score (G pointers) only if the entry
   declares KVMEM_READS_SCORES; keep (G) is to be filled, 0..n[g] (the caller clamps). */
typedef kvmem_status (*kvmem_budget_fn)(const kvmem_view *v, int mean, const int *n,
                                        const float *const *score, int *keep);
typedef struct kvmem_budget_entry { kvmem_entry e; kvmem_budget_fn fn; } kvmem_budget_entry;

/* reduce: lane (layer, g) keeps the n_kept entries whose rising indices are in kept; the rest is merged,
   demoted or dropped. Ends with exactly n_kept entries in the lane. */
typedef kvmem_status (*kvmem_reduce_fn)(const kvmem_view *v, int g, const int *kept, int n_kept,
                                        const float *score);
typedef struct kvmem_reduce_entry { kvmem_entry e; kvmem_reduce_fn fn; } kvmem_reduce_entry;

/* segment: the stream grew by the tokens at positions [from, to). Call kvmem_view_cut(v, p) for each
   position p at which a new event starts. */
typedef kvmem_status (*kvmem_segment_fn)(const kvmem_view *v, int32_t from, int32_t to);
typedef struct kvmem_segment_entry { kvmem_entry e; kvmem_segment_fn fn; } kvmem_segment_entry;

/* place: the RoPE position at which the key in slot `slot` of its lane, told at position pos, is read.
   The query is placed by the same rule at its own slot. NULL fn: at pos. */
typedef int32_t (*kvmem_place_fn)(const double *par, int slot, int32_t pos);
typedef struct kvmem_place_entry { kvmem_entry e; kvmem_place_fn fn; } kvmem_place_entry;

/* retrieve: which pages of lane (layer, g) do these queries read? q (n, r, d) are the queries of the
   lane's group; read (n_pages) is preset to 1; set 0 to leave a page out. NULL fn: all. */
typedef kvmem_status (*kvmem_retrieve_fn)(const kvmem_view *v, int g, const float *q, int n,
                                          unsigned char *read, int n_pages);
typedef struct kvmem_retrieve_entry { kvmem_entry e; kvmem_retrieve_fn fn; } kvmem_retrieve_entry;

/* codec: how are the rows of K or V stored? A row is one token's d values of one KV head, a block the
   rows of one page: n rows of row_bytes each and a head with what they share. All bytes are little-endian
   and need no alignment. */
typedef struct kvmem_coded {
    const double *par;       /* the entry's parameters in table order */
    int d, n;                /* values of a row; rows of the block */
    const void *table;       /* constants that `build` made, or NULL */
    const float *state;      /* what `learn` found for this lane (state_floats), or NULL */
    uint8_t *head, *rows;    /* head_bytes; row t is at rows + t * row_bytes */
    size_t head_bytes, row_bytes;
    float *scratch;          /* (scratch_floats), in encode and learn only */
} kvmem_coded;

enum {
    KVMEM_CODEC_PRE_ROPE = 1, /* keys come and are read before RoPE: attention rotates each row it reads */
    KVMEM_CODEC_KEYS = 2,     /* for K only */
    KVMEM_CODEC_VALUES = 4    /* for V only */
};

/* A codec reads and writes blocks. It may have a space of its own (rotated, latent) of `width` floats in
   which rows are expanded, queries prepared and outputs summed, so that the way there and back is gone once
   a query and once an output, never once a row:
       decoded row = finish(expanded row),   <prepared query, expanded row> = <query, decoded row>. */
typedef struct kvmem_codec {
    kvmem_entry e;
    unsigned flags;                                       /* KVMEM_CODEC_* */
    size_t (*row_bytes)(const double *par, int d);
    /* bytes of the head of a block of b->n rows x (n, d), x NULL: the usual number, for estimates. NULL: no
       head, as 0 for NULL: rows are then coded one at a time, in any order */
    size_t (*head_bytes)(const kvmem_coded *b, const float *x);
    size_t (*table_bytes)(const double *par, int d);      /* NULL: no table */
    void (*build)(const double *par, int d, void *table); /* zeroed, aligned to 16 bytes */
    int (*state_floats)(const double *par, int d);        /* NULL: nothing is learned */
    /* the queries x (n, d) of the lane's group as they come, before learn; zeroed state at first; or NULL */
    void (*watch)(const kvmem_coded *b, float *state, const float *x, int n);
    /* n rows x (n, d), at most KVMEM_LEARN_ROWS, evenly taken from the lane, before its first block is coded */
    void (*learn)(const kvmem_coded *b, float *state, const float *x, int n);
    int (*scratch_floats)(const double *par, int d, int n); /* for a block or a lesson of n rows; NULL: 0 */
    int (*width)(const double *par, int d);               /* at most KVMEM_MAX_WIDTH; NULL: d */
    int (*q_floats)(const double *par, int d);            /* floats of a prepared query; NULL: width */
    /* x (n, d) -> rows t0, t0 + 1, ...; with a head: t0 = 0, n = b->n, and the head */
    void (*encode)(const kvmem_coded *b, const float *x, int t0, int n);
    void (*expand)(const kvmem_coded *b, float *out, int t0, int n);     /* out (n, width) */
    void (*finish)(const kvmem_coded *b, float *out, const float *acc);  /* linear; reads no block; NULL: copy */
    void (*q_prepare)(const kvmem_coded *b, float *out, const float *q); /* reads no block; NULL: copy */
    /* s[i*ld + t] = <q_i, row t0 + t> for nq prepared queries, q_floats apart; NULL: by expand */
    void (*dot)(const kvmem_coded *b, float *s, int ld, int t0, int n, const float *q, int nq);
    /* acc (nq, width): acc_i += sum_t w[i*ld + t] * expanded row t0 + t; NULL: by expand */
    void (*axpy)(const kvmem_coded *b, float *acc, int t0, int n, const float *w, int ld, int nq);
    /* the to->n rows kept (rising) of block from, nothing coded again; NULL: head and rows are copied */
    void (*cut)(const kvmem_coded *to, const kvmem_coded *from, const int *kept);
    void (*fast)(struct kvmem_codec *c, int isa);         /* puts in the twins for backend->isa; or NULL */
} kvmem_codec;
#define KVMEM_LEARN_ROWS 1024
#define KVMEM_MAX_WIDTH 4096

/* One stage's choice inside a recipe. `user` is handed to the entry's function. */
typedef struct kvmem_choice {
    const kvmem_entry *entry;
    double par[KVMEM_MAX_PARAMS];
    void *user;
} kvmem_choice;

/* An amount of memory: everything, entries per KV head, a share (0..1) of the tokens seen, bytes. */
typedef enum kvmem_amount_kind { KVMEM_ALL, KVMEM_COUNT, KVMEM_SHARE, KVMEM_BYTES } kvmem_amount_kind;
typedef struct kvmem_amount { kvmem_amount_kind kind; double value; } kvmem_amount;

/* When a commit reduces. */
typedef enum kvmem_when {
    KVMEM_WHEN_PROMPT, /* once, when the prompt ends */
    KVMEM_WHEN_STEP,   /* when the prompt ends and after every decoded token */
    KVMEM_WHEN_BLOCK,  /* after every block, prompt blocks included */
    KVMEM_WHEN_EVERY   /* when the prompt ends and then every `every` tokens */
} kvmem_when;

typedef struct kvmem_recipe {
    char preset[32];                    /* the preset's word, or "" */
    kvmem_choice stage[KVMEM_N_STAGES];
    kvmem_amount amount;                /* of the budget stage */
    int sink;                           /* first tokens that are always kept */
    kvmem_amount recent;                /* newest tokens always kept: a count or a share of the budget */
    kvmem_when when;
    int every;                          /* tokens, for KVMEM_WHEN_EVERY */
    int page;                           /* entries in a page, 1..1024 */
    uint64_t seed;
} kvmem_recipe;

KVMEM_API kvmem_recipe kvmem_recipe_default(void); /* "full": everything kept, exact float32 */
/* Parse one line of text. On failure r is unchanged and err (may be NULL) says which word and why. */
KVMEM_API kvmem_status kvmem_recipe_parse(kvmem_recipe *r, const char *text, kvmem_error *err);
/* Do the chosen stages fit together? Called by parse and by kvmem_cache_init. */
KVMEM_API kvmem_status kvmem_recipe_check(const kvmem_recipe *r, kvmem_error *err);
/* Canonical text: parses back to the same recipe. Returns its length without the NUL, as snprintf does. */
KVMEM_API size_t kvmem_recipe_print(const kvmem_recipe *r, char *out, size_t size);
/* The expansion over the seven stages with what each entry does and its citation, several lines. */
KVMEM_API size_t kvmem_recipe_explain(const kvmem_recipe *r, char *out, size_t size);
/* Tables, for listings: entry i of a stage, or NULL past the end. */
KVMEM_API const kvmem_entry *kvmem_stage_entry(kvmem_stage stage, int i);
KVMEM_API const char *kvmem_stage_word(kvmem_stage stage); /* "score", "codec.k", ... */
/* A preset: a word, the recipe text that it stands for, and where it comes from. */
typedef struct kvmem_preset { const char *word, *text, *what, *cite; } kvmem_preset;
KVMEM_API const kvmem_preset *kvmem_preset_at(int i); /* preset i, or NULL past the end */

/* ==== >>api_cache : the memory layer ============================================================= */

/* Rotary positions of one layer: channel pair i turns by pos * inv_freq[i] radians. */
typedef struct kvmem_rope {
    int n_rot;             /* rotated channels: even, 0..head_dim; 0: none */
    int neox;              /* 0: pairs (2i, 2i+1); 1: pairs (i, i + n_rot/2) */
    float mscale;          /* factor on rotated channels (YaRN attention factor); 1 if none */
    const float *inv_freq; /* (n_rot/2) */
} kvmem_rope;

/* What the cache must know of the model. Arrays are copied by kvmem_cache_init. */
typedef struct kvmem_shape {
    int n_layers, n_heads, n_kv_heads, head_dim; /* n_heads is a multiple of n_kv_heads */
    float scale;            /* on q.k; 0 means 1/sqrt(head_dim) */
    float softcap;          /* s = cap * tanh(s / cap); 0: none */
    const int *window;      /* (n_layers) sliding windows in tokens, 0: none; or NULL */
    const kvmem_rope *rope; /* (n_layers): rows come before RoPE and the cache rotates them;
                               NULL: rows come as they are to be stored and read */
    const float *sink_bias; /* (n_layers, n_heads) extra logit in every softmax, or NULL */
} kvmem_shape;

typedef struct kvmem_backend kvmem_backend;

/* KVMEM_EXPERIMENTAL: the table through which everything that computes goes. All members may still
   change. Results do not depend on `threads`. The decoder's members are NULL in builds that define
   KVMEM_NO_DECODER. Pointers may be unaligned for float vectors; out may be x where noted. */
typedef enum kvmem_act { KVMEM_SILU, KVMEM_GELU_TANH } kvmem_act;
struct kvmem_tensor;
struct kvmem_cache;
struct kvmem_backend {
    const char *name; /* "plain", "neon", "avx2", "avx512" */
    int isa;          /* 0 plain, 1 neon, 2 avx2, 3 avx512 */
    /* vectors, used by attention and codecs; n may be 0 */
    float (*dot)(const float *a, const float *b, int n);
    void (*axpy)(float *y, float a, const float *x, int n);         /* y += a x */
    void (*scale)(float *y, float a, int n);                        /* y *= a */
    float (*max)(const float *x, int n);                            /* -INFINITY for n = 0 */
    float (*exp_sum)(float *p, const float *s, float m, int n);     /* p = exp(s - m), returns the sum; p may be s */
    /* the cache's own work */
    kvmem_status (*encode)(struct kvmem_cache *c, int layer, int n, const float *k, const float *v);
    kvmem_status (*attend)(struct kvmem_cache *c, int layer, int n, const float *q, float *out,
                           float *lse /* (n, n_heads) or NULL */);
    kvmem_status (*observe)(struct kvmem_cache *c, int layer, int n, const float *q, const float *lse);
    kvmem_status (*gather)(const struct kvmem_cache *c, int layer, int g, int i0, int n, float *k,
                           float *v);
    /* rotation of rows x (n, heads, d), row i by pos[i]; out may be x. with_mscale 0: a pure rotation,
       1: rotated channels are multiplied by r->mscale, too */
    void (*rope)(float *out, const float *x, int n, int heads, int d, const kvmem_rope *r,
                 const int32_t *pos, int with_mscale, int threads);
    /* decoder: out (n, rows) = x (n, cols) . W^T, W (rows, cols) of any tensor type. scratch: that many
       bytes (no fewer for a larger n), any alignment; may be NULL if 0 */
    size_t (*matmul_scratch)(const kvmem_backend *b, const struct kvmem_tensor *w, int n, int threads);
    void (*matmul)(const kvmem_backend *b, float *out, const struct kvmem_tensor *w, const float *x,
                   int n, void *scratch, int threads);
    /* out (n, cols) = rows ids[i] of W as float32: embeddings. ids are in range */
    void (*rows)(const kvmem_backend *b, float *out, const struct kvmem_tensor *w, const int *ids, int n,
                 int threads);
    /* out_i = x_i / sqrt(mean(x_i^2) + eps) * w over rows of d; w (d) or NULL; out may be x */
    void (*rmsnorm)(float *out, const float *x, const float *w, int n, int d, float eps, int threads);
    /* out = act(gate) * up; out may be gate or up */
    void (*glu)(float *out, const float *gate, const float *up, size_t count, kvmem_act act, int threads);
    void (*add)(float *y, const float *x, size_t count);            /* y += x */
    /* y = cap tanh(y / cap); always there: attention uses it, too */
    void (*softcap)(float *y, float cap, size_t count);
};
/* The CPU's table by name: "plain" (always there), "avx2", "avx512", "neon"; NULL: the best that this
   machine has, found now. NULL is returned for a path that this machine or this build lacks. */
KVMEM_API const kvmem_backend *kvmem_backend_cpu(const char *name);
KVMEM_API const char *kvmem_backend_name(const kvmem_backend *b); /* its name; NULL gives the best one's */

typedef struct kvmem_config {
    kvmem_shape shape;
    const kvmem_recipe *recipe;   /* copied; NULL: full */
    kvmem_allocator allocator;
    size_t max_bytes;             /* hard ceiling of everything this cache allocates; 0: none. A byte
                                     budget in the recipe is a ceiling too; the lower one holds */
    uint64_t model_id;            /* any number that tells models apart; kept in saved files */
    int max_block;                /* most tokens in one append, 1..65536; default 512 */
    int threads;                  /* 0: as OpenMP decides */
    const kvmem_backend *backend; /* NULL: the best CPU path */
} kvmem_config;

/* Counted bytes. live: now; peak: at the moment when the total was highest. Equal to what the allocator
   hook has seen. k and v are the coded bytes of whole pages, unused rows included. */
typedef struct kvmem_bytes_part { size_t k, v, meta, stats, scratch, total; } kvmem_bytes_part;
typedef struct kvmem_bytes {
    kvmem_bytes_part live, peak;
    size_t limit;          /* hard ceiling, 0: none */
    size_t entries;        /* entries over all lanes now */
    size_t full;           /* K and V of all tokens seen, as float16 without eviction: the yardstick */
    int64_t tokens;        /* tokens seen */
} kvmem_bytes;

typedef struct kvmem_cache kvmem_cache;

typedef enum kvmem_phase {
    KVMEM_PREFILL,    /* a block of the prompt; more follow */
    KVMEM_PROMPT_END, /* the last block of the prompt */
    KVMEM_DECODE      /* a generated token */
} kvmem_phase;

KVMEM_API kvmem_config kvmem_config_default(void);
/* On failure c->error tells why and c is zeroed otherwise (freeing it is allowed). */
KVMEM_API kvmem_status kvmem_cache_init(kvmem_cache *c, const kvmem_config *cfg);
KVMEM_API void kvmem_cache_free(kvmem_cache *c); /* NULL and zeroed structs are fine */

/* One block of n tokens: for every layer append, then attend; after the last layer commit.
   k, v (n, n_kv_heads, head_dim); pos (n) rising positions, the same for every layer of a block, all
   above those of earlier blocks; NULL: the next n. On failure nothing of this layer was appended. */
KVMEM_API kvmem_status kvmem_cache_append(kvmem_cache *c, int layer, int n, const float *k,
                                          const float *v, const int32_t *pos);
/* q, out (n, n_heads, head_dim): causal attention of the n tokens just appended to this layer. */
KVMEM_API kvmem_status kvmem_cache_attend(kvmem_cache *c, int layer, int n, const float *q, float *out);
/* End of the block: segment, score, budget, reduce. */
KVMEM_API kvmem_status kvmem_cache_commit(kvmem_cache *c, kvmem_phase phase);
/* The same for one layer, right after its attend, so that a long one-shot prompt never holds more than
   one full layer. KVMEM_UNSUPPORTED if the recipe compares layers. kvmem_cache_commit still ends the
   block. */
KVMEM_API kvmem_status kvmem_cache_commit_layer(kvmem_cache *c, int layer, kvmem_phase phase);
/* How many tokens the next block may have: at most max_block, and so that the byte limit holds. */
KVMEM_API int kvmem_cache_room(const kvmem_cache *c);
KVMEM_API void kvmem_cache_bytes(const kvmem_cache *c, kvmem_bytes *out);
/* Bytes after a prompt of n tokens and more_n decoded ones, counted without allocating anything. */
KVMEM_API kvmem_status kvmem_estimate(const kvmem_config *cfg, int64_t prompt, int64_t decoded,
                                      kvmem_bytes *out, kvmem_error *err);
KVMEM_API kvmem_status kvmem_cache_truncate(kvmem_cache *c, int64_t n_tokens); /* forget positions >= n */
KVMEM_API void kvmem_cache_clear(kvmem_cache *c);                              /* forget all, free pages */
/* dst becomes a copy of src that shares its pages until one of them changes. dst is not initialized. */
KVMEM_API kvmem_status kvmem_cache_copy(kvmem_cache *dst, const kvmem_cache *src);
/* Store K and V by other codecs from now on and recode what is there, page by page. NULL: unchanged. */
KVMEM_API kvmem_status kvmem_cache_recode(kvmem_cache *c, const char *codec_k, const char *codec_v);
KVMEM_API int kvmem_cache_lane_len(const kvmem_cache *c, int layer, int g);
/* Decode entries [i0, i0+n) of a lane. Outputs may be NULL: k, v (n, head_dim), pos (n). Keys come as
   stored: after RoPE when the shape has RoPE. */
KVMEM_API kvmem_status kvmem_cache_read(const kvmem_cache *c, int layer, int g, int i0, int n, float *k,
                                        float *v, int32_t *pos);

/* Audit: every change of an entry's fate, told as it happens: in layer and KV head, the entry of position
   pos; tokens: how many the cache has taken then, those of the block in flight included. Entries of a
   lane come with rising pos; KEPT is told when a layer's append has succeeded (or a load), the others
   as the change is made, also by truncate and clear. fn is called by the thread that called the cache
   and must not call it back. NULL (as after init) switches the trace off and costs one comparison an
   operation. It is not saved; kvmem_cache_copy gives the copy none (set its own), and
   kvmem_cache_free tells nothing. */
typedef enum kvmem_fate {
    KVMEM_FATE_KEPT,     /* it is in the lane now */
    KVMEM_FATE_DROPPED,  /* it has left the lane */
    KVMEM_FATE_MERGED,   /* it has left the lane and other entries carry its sum; no stage does so yet */
    KVMEM_FATE_RECODED,  /* it stays and is stored by other codecs */
    KVMEM_FATE_DEMOTED   /* it stays in a slower or smaller store; no stage does so yet */
} kvmem_fate;
typedef void (*kvmem_trace_fn)(void *user, int layer, int g, int32_t pos, kvmem_fate fate, int64_t tokens);
KVMEM_API void kvmem_cache_trace(kvmem_cache *c, kvmem_trace_fn fn, void *user);

/* Saving: any sink of bytes; return 0 to go on. Loading: from bytes, into an initialized cache of the
   same shape, model_id and recipe, whose content is replaced; on failure it is left empty. */
typedef int (*kvmem_write_fn)(void *user, const void *bytes, size_t size);
KVMEM_API kvmem_status kvmem_cache_save(kvmem_cache *c, kvmem_write_fn write, void *user);
KVMEM_API kvmem_status kvmem_cache_load(kvmem_cache *c, const void *bytes, size_t size);
#ifndef KVMEM_NO_STDIO
KVMEM_API kvmem_status kvmem_cache_save_file(kvmem_cache *c, const char *path);
KVMEM_API kvmem_status kvmem_cache_load_file(kvmem_cache *c, const char *path);
#endif
/* What a saved cache holds, read from its bytes; the checksum is verified. */
typedef struct kvmem_cache_info {
    int version, n_layers, n_heads, n_kv_heads, head_dim, page;
    uint64_t model_id;
    int64_t tokens;
    size_t entries, k_bytes, v_bytes, file_bytes;
    char recipe[512];
    /* 0 where entries are as stored; else, of what kvmem_cache_save_level wrote: the finest level in the file,
       to which k_bytes and v_bytes belong (page is 0), bit l - 1 for each level l, chunks */
    int level, chunks;
    unsigned levels;
} kvmem_cache_info;
KVMEM_API kvmem_status kvmem_cache_inspect(const void *bytes, size_t size, kvmem_cache_info *out,
                                           kvmem_error *err);

/* A cache in a few bits a value, for disks and networks: chunks of tokens, each at one of three levels of
   loss or at all of them (CacheGen; section stream). kvmem_cache_load and kvmem_cache_inspect know these
   bytes, too; loading codes the entries again by the loading cache's own recipe, which may be another one. */
typedef struct kvmem_level_options {
    int level;      /* 1 smallest, 2, 3 finest; 0: entries as stored, what kvmem_cache_save writes */
    int all;        /* 1: every chunk at all three levels, level is ignored */
    int group;      /* 1: every token has a scale of its own (as released); 2..255: the paper's anchors, one in
                       so many tokens, the others are differences. Default 10 */
    int models;     /* distributions: 0 the smaller, 1 per channel, 2 per layer */
    int chunk;      /* tokens of a chunk, 1..65536; default 1000 */
    const int *ids; /* (n_ids) token ids by position, for those who rather compute a chunk; NULL: no text */
    int n_ids;
} kvmem_level_options;
KVMEM_API kvmem_level_options kvmem_level_options_default(void); /* level 2 */
KVMEM_API kvmem_status kvmem_cache_save_level(kvmem_cache *c, const kvmem_level_options *options,
                                              kvmem_write_fn write, void *user);
/* Such a file, opened: its head and index are checked. bytes are borrowed. On failure s is zeroed. */
typedef struct kvmem_chunks {
    int version, n_layers, n_heads, n_kv_heads, head_dim, group, chunk, n_chunks;
    unsigned levels;        /* bit l - 1: level l is there */
    uint64_t model_id;
    int64_t tokens;
    size_t entries;
    const char *recipe;     /* borrowed, not NUL-terminated */
    int recipe_len;
    /* private */
    const uint8_t *bytes;
    size_t size, index_at;
    uint64_t shape_hash;
    int64_t since_reduce;
    int32_t next_pos;
    unsigned stats, ring_n, n_events;
} kvmem_chunks;
typedef struct kvmem_chunk {
    size_t offset;          /* of its first byte */
    int tokens;             /* positions that some lane has entries of */
    int32_t first;          /* the first of them */
    int32_t from, end;      /* the text: tokens from, ..., end - 1 */
    size_t entries, text_bytes, place_bytes, level_bytes[3]; /* they follow each other in this order */
} kvmem_chunk;
KVMEM_API kvmem_status kvmem_chunks_open(kvmem_chunks *s, const void *bytes, size_t size, kvmem_error *err);
KVMEM_API kvmem_status kvmem_chunks_at(const kvmem_chunks *s, int i, kvmem_chunk *out);
/* Token ids of chunk i's text: *n, as snprintf; 0 if the file has no text. */
KVMEM_API kvmem_status kvmem_chunks_text(const kvmem_chunks *s, int i, int *ids, size_t cap, size_t *n,
                                         kvmem_error *err);
/* Put the entries of chunk i, at a level that the file has, behind what is there. Its first position must not
   be below the cache's next one. On failure the cache's entries are as before. */
KVMEM_API kvmem_status kvmem_cache_load_chunk(kvmem_cache *c, const kvmem_chunks *s, int i, int level);
/* Which level (1..3) of each chunk to fetch, or 0: compute it from its text; section stream_plan. Returns
   the seconds that all of it takes. Pure. */
typedef struct kvmem_plan_job {
    int n;               /* chunks */
    const size_t *bytes; /* (n, 3) of each chunk at level 1, 2, 3; 0: not there */
    const double *gbps;  /* (n) 10^9 bits a second while chunk i is on its way */
    const double *text;  /* (n) seconds to compute chunk i from its text; NULL: 0.2 each */
    double slo;          /* seconds in which all should be there; INFINITY: any time */
    int paper;           /* 0: the rule of the released code; 1: the paper's */
} kvmem_plan_job;
KVMEM_API double kvmem_chunks_plan(const kvmem_plan_job *job, int *choice);

/* What stage functions call. Counts and positions of lane (v->layer, g), decoded rows, statistics. */
KVMEM_API int kvmem_view_count(const kvmem_view *v, int g);
KVMEM_API void kvmem_view_positions(const kvmem_view *v, int g, int32_t *out);
KVMEM_API void kvmem_view_keys(const kvmem_view *v, int g, int i0, int n, float *out);
KVMEM_API void kvmem_view_values(const kvmem_view *v, int g, int i0, int n, float *out);
KVMEM_API void kvmem_view_acc(const kvmem_view *v, int g, float *out);  /* needs KVMEM_READS_ACC */
KVMEM_API void kvmem_view_last(const kvmem_view *v, int g, float *out); /* needs KVMEM_READS_LAST */
/* Probability that the last w observed queries (all, if fewer) give each entry, summed over them, mean
   over the group: out (n). Rows are causal. Needs KVMEM_READS_QUERIES. */
KVMEM_API kvmem_status kvmem_view_attention(const kvmem_view *v, int g, int w, float *out);
KVMEM_API kvmem_status kvmem_view_cut(const kvmem_view *v, int32_t pos); /* an event starts at pos */

/* --- the cache's own fields: read-only for users --- */
typedef struct kvmem_page kvmem_page;
typedef struct kvmem_lane { kvmem_page **pages; int n_pages, cap_pages, n; } kvmem_lane;
typedef struct kvmem_arena kvmem_arena;

/* A codec chosen for this cache: table entry with fast functions put in, parameters, sizes, constants. */
typedef struct kvmem_codec_use {
    kvmem_codec fn;
    double par[KVMEM_MAX_PARAMS];
    int d, width, q_floats, state_floats;
    size_t row_bytes, table_bytes;
    void *table;                /* made by fn.build, or NULL */
    int center, residual, flush, sinks; /* the parameters every codec takes */
} kvmem_codec_use;

struct kvmem_cache {
    kvmem_error error;          /* of the last failed call */
    kvmem_shape shape;          /* arrays owned by the cache */
    kvmem_recipe recipe;
    kvmem_arena *arena;         /* shared by copies */
    const kvmem_backend *backend;
    const kvmem_codec_use *k, *v; /* codecs of new pages */
    kvmem_lane *lane;           /* (n_layers * n_kv_heads) */
    unsigned reads;             /* what the recipe's entries read */
    int n_stats;                /* per-entry floats kept in pages */
    int threads, max_block;
    uint64_t model_id;
    int64_t tokens;             /* seen, committed */
    int32_t next_pos;
    int lane_cap;               /* entries a lane may have under the byte limit; 0: no limit */
    /* the block in flight */
    int block_n;                /* tokens of the block, 0: none */
    unsigned char *layer_state; /* (n_layers) 0 waiting, 1 appended, 2 attended, 3 committed */
    int32_t *block_pos;         /* (max_block) */
    int64_t since_reduce;
    /* observation: ring of the last `ring` queries per layer, before RoPE when the shape has RoPE */
    int ring, ring_n, ring_at;
    float *ring_q;              /* (n_layers, ring, n_heads, head_dim) */
    int32_t *ring_pos;          /* (ring) */
    int64_t *event;             /* starts of events (n_events) */
    int n_events, cap_events;
    void *scratch;              /* grows on demand, counted */
    size_t scratch_size, worker_bytes, tile_bytes;
    float *row;                 /* (head_dim) */
    void *tmp[8];               /* what a stage function has asked for; freed when it returns */
    size_t tmp_size[8];
    int n_tmp;
    void *block;                /* the fixed arrays above, one allocation */
    size_t block_size;
    kvmem_trace_fn trace;       /* kvmem_cache_trace; NULL: none */
    void *trace_user;
};

#ifndef KVMEM_NO_DECODER
/* ==== >>api_gguf : tensors and the GGUF container ================================================ */

/* Tensor types, numbered as in GGUF. KVMEM_Q8_SPLIT is llama2.c version 2: all int8 values, then one
   float32 scale per `group` values. */
typedef enum kvmem_type {
    KVMEM_F32 = 0, KVMEM_F16 = 1, KVMEM_Q4_0 = 2, KVMEM_Q4_1 = 3, KVMEM_Q5_0 = 6, KVMEM_Q5_1 = 7,
    KVMEM_Q8_0 = 8, KVMEM_Q2_K = 10, KVMEM_Q3_K = 11, KVMEM_Q4_K = 12, KVMEM_Q5_K = 13,
    KVMEM_Q6_K = 14, KVMEM_BF16 = 30, KVMEM_Q8_SPLIT = 1000
} kvmem_type;

/* A matrix or vector inside borrowed file bytes (little-endian, any alignment). Row r has ne[0] values. */
typedef struct kvmem_tensor {
    const char *name; /* borrowed, not NUL-terminated */
    int name_len;
    kvmem_type type;
    int n_dims;
    int64_t ne[4];         /* ne[0]: values in a row (inputs), ne[1]: rows (outputs); 1 where unused */
    const uint8_t *data;   /* borrowed */
    size_t size;           /* bytes at data */
    const uint8_t *scales; /* KVMEM_Q8_SPLIT only */
    int group;             /* KVMEM_Q8_SPLIT only */
} kvmem_tensor;

KVMEM_API const char *kvmem_type_name(kvmem_type type);                /* "q4_0"; NULL if unknown */
KVMEM_API int kvmem_type_block(kvmem_type type, size_t *block_bytes);  /* values in a block; 0 if unknown */
/* Decode n values (a multiple of the block) / encode them (F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1). */
KVMEM_API kvmem_status kvmem_dequantize(kvmem_type type, float *out, const void *in, size_t n);
KVMEM_API kvmem_status kvmem_quantize(kvmem_type type, void *out, const float *in, size_t n);

/* GGUF container: metadata and tensor table over borrowed bytes. */
typedef struct kvmem_gguf_kv {
    const char *key; int key_len;
    int type;              /* GGUF value type; 9 is an array */
    int item_type;         /* of an array */
    uint64_t n;            /* items of an array, else 1 */
    const uint8_t *data;   /* borrowed, inside the file: the number, the characters of a string, or the
                              items of an array (each string item: u64 length, then its characters) */
    size_t size;           /* bytes at data */
} kvmem_gguf_kv;
typedef struct kvmem_gguf {
    kvmem_error error;
    kvmem_allocator allocator;
    const uint8_t *bytes; size_t size;
    int version;
    kvmem_gguf_kv *kv; int n_kv;
    kvmem_tensor *tensor; int n_tensors;
} kvmem_gguf;
KVMEM_API kvmem_status kvmem_gguf_open(kvmem_gguf *g, const void *bytes, size_t size,
                                       const kvmem_allocator *allocator); /* bytes borrowed until close */
KVMEM_API void kvmem_gguf_close(kvmem_gguf *g);
KVMEM_API const kvmem_gguf_kv *kvmem_gguf_find(const kvmem_gguf *g, const char *key); /* or NULL */
KVMEM_API const kvmem_tensor *kvmem_gguf_tensor(const kvmem_gguf *g, const char *name); /* or NULL */
/* Typed reads; any integer type, float type or bool converts. Return 0 and leave *out if absent/other. */
KVMEM_API int kvmem_gguf_int(const kvmem_gguf *g, const char *key, int64_t *out);
KVMEM_API int kvmem_gguf_float(const kvmem_gguf *g, const char *key, double *out);
KVMEM_API int kvmem_gguf_string(const kvmem_gguf *g, const char *key, const char **s, size_t *len);


/* ==== >>api_tokenizer : text to token ids and back ================================================= */
typedef enum kvmem_vocab_kind {
    KVMEM_VOCAB_NONE,
    KVMEM_VOCAB_SPM,    /* SentencePiece: pieces have scores, the best pair is joined first */
    KVMEM_VOCAB_BPE,    /* byte-level BPE: text is cut into words, pairs are joined by merge rank */
    KVMEM_VOCAB_LLAMA2C /* llama2.c tokenizer.bin: as SPM, without whitespace escape */
} kvmem_vocab_kind;

/* flags of kvmem_tokenize */
enum {
    KVMEM_ADD_SPECIAL = 1,  /* BOS in front and EOS behind, where the vocabulary wants them */
    KVMEM_PARSE_SPECIAL = 2 /* text like "<|im_end|>" becomes the control token of that name; without the
                               flag only user-defined tokens are found in text */
};
/* flags of kvmem_token_bytes, kvmem_detokenize, kvmem_stream_init */
enum {
    KVMEM_SHOW_SPECIAL = 16, /* control tokens give their names; without the flag nothing */
    KVMEM_TEXT_START = 32,   /* the first token begins a text: the space that kvmem_tokenize put in front
                                is taken away again */
    KVMEM_KEEP_BYTES = 64    /* stream: bytes that are not UTF-8 go out as they are, not as U+FFFD */
};

/* One piece of the vocabulary; its bytes are at base + at. */
typedef struct kvmem_piece {
    uint32_t at, len;
    float score;
    unsigned char type;  /* as in GGUF: 1 normal 2 unknown 3 control 4 user-defined 5 unused 6 byte */
    unsigned char strip; /* white space right of it in a text is swallowed */
    unsigned char eog;   /* generation ends here */
    unsigned char closed; /* control or unknown by the file: never made from plain text */
} kvmem_piece;

/* A vocabulary. Read-only after open, so threads may share it. Pieces and merges stay in the borrowed
   file bytes; the tables beside them are owned. */
typedef struct kvmem_tokenizer {
    kvmem_error error; /* of open */
    kvmem_allocator allocator;
    kvmem_vocab_kind kind;
    int pre;                             /* pre-tokenizer, kvmem_tokenizer_pre_name */
    int n_vocab, n_merges;
    int bos, eos, eot, unk;              /* ids, -1: none */
    int add_bos, add_eos;                /* what KVMEM_ADD_SPECIAL adds */
    int add_space_prefix;                /* a text begins with a space that is not in it */
    size_t max_piece;                    /* no result of kvmem_token_bytes is longer */
    /* tables */
    const uint8_t *base;                 /* of piece[].at, borrowed */
    const uint8_t *merge_base;           /* of merge_at[], borrowed */
    kvmem_piece *piece;                  /* (n_vocab) */
    uint32_t *table;                     /* (table_mask + 1) pairs: id + 1 (0: free), hash */
    uint32_t *merge_at;                  /* (n_merges) */
    uint32_t *merge_table;               /* (merge_mask + 1) pairs: rank + 1 (0: free), hash */
    uint32_t *runs;                      /* Unicode classes, BPE only */
    uint32_t table_mask, merge_mask, max_merge;
    int ignore_merges;                   /* BPE: a word that is a token is taken whole */
    int cut_words;                       /* SPM: nothing joins across the start of a word */
    int n_special;
    int *special;                        /* (n_special) tokens looked for in text, sorted by bytes */
    int special_first[257];              /* where those with a first byte begin */
    int byte_id[256];                    /* token of a byte, -1: none */
    void *block; size_t block_size;      /* the owned tables, one allocation */
} kvmem_tokenizer;

/* From GGUF metadata (a vocabulary-only file will do): tokenizer.ggml.model "llama" or "gpt2". The
   file's bytes are borrowed until close, g itself is not kept. An unknown model or pre-tokenizer is
   KVMEM_UNSUPPORTED. On failure t->error tells why and t may be closed. allocator NULL: malloc. */
KVMEM_API kvmem_status kvmem_tokenizer_open_gguf(kvmem_tokenizer *t, const kvmem_gguf *g,
                                                 const kvmem_allocator *allocator);
/* From llama2.c's tokenizer.bin, which does not say its own size: n_vocab comes from the model; 0: as
   many pieces as there are. Bytes borrowed until close. */
KVMEM_API kvmem_status kvmem_tokenizer_open_llama2c(kvmem_tokenizer *t, const void *bytes, size_t size,
                                                    int n_vocab, const kvmem_allocator *allocator);
KVMEM_API void kvmem_tokenizer_close(kvmem_tokenizer *t);             /* NULL and zeroed are fine */
KVMEM_API const char *kvmem_tokenizer_pre_name(const kvmem_tokenizer *t); /* "llama-bpe"; "-" for SPM */

/* Text (len bytes, any bytes, NUL included) to ids. As snprintf: *n is the number of ids of the whole
   text; the first cap of them are in ids (may be NULL when cap is 0), so compare *n with cap. err may be
   NULL. Time grows as len log len. Working memory, about 60 bytes per text byte in the worst case (one
   word), is returned before the call ends; threads that share t share its allocator. Bytes that are not
   UTF-8 never fail: SPM writes them as byte tokens, BPE reads them as U+FFFD. */
KVMEM_API kvmem_status kvmem_tokenize(const kvmem_tokenizer *t, const char *text, size_t len,
                                      unsigned flags, int *ids, size_t cap, size_t *n, kvmem_error *err);
/* The piece as the vocabulary spells it (a space is U+2581 or U+0120), borrowed, not NUL-terminated; NULL
   if id is out of range. For listings; for text use the functions below. */
KVMEM_API const char *kvmem_token_piece(const kvmem_tokenizer *t, int id, size_t *len);
/* The bytes of text that a token stands for; they may be a part of a UTF-8 sequence. Returns their
   number (0 if id is out of range) and writes as many as cap allows. */
KVMEM_API size_t kvmem_token_bytes(const kvmem_tokenizer *t, int id, unsigned flags, char *out,
                                   size_t cap);
/* All bytes of n ids. Returns their number, as snprintf does, but adds no NUL. */
KVMEM_API size_t kvmem_detokenize(const kvmem_tokenizer *t, const int *ids, size_t n, unsigned flags,
                                  char *out, size_t cap);
KVMEM_API int kvmem_token_is_eog(const kvmem_tokenizer *t, int id);     /* generation ends with it */
KVMEM_API int kvmem_token_is_special(const kvmem_tokenizer *t, int id); /* control or unknown token */
KVMEM_API int kvmem_token_find(const kvmem_tokenizer *t, const char *piece, size_t len); /* id or -1 */

/* Tokens to text while they are generated: whole UTF-8 sequences only. What may still be completed is
   held back; what cannot be becomes U+FFFD (or goes out as it is with KVMEM_KEEP_BYTES). */
typedef struct kvmem_stream {
    const kvmem_tokenizer *tokenizer; /* borrowed */
    unsigned flags;
    unsigned char held[4];
    int n_held;
} kvmem_stream;
KVMEM_API void kvmem_stream_init(kvmem_stream *s, const kvmem_tokenizer *t, unsigned flags);
/* Bytes to print after this token: returns their number; out must have room for
   3 * (tokenizer->max_piece + 4). No NUL is added. kvmem_stream_flush gives what was still held (room: 12). */
KVMEM_API size_t kvmem_stream_push(kvmem_stream *s, int id, char *out);
KVMEM_API size_t kvmem_stream_flush(kvmem_stream *s, char *out);

/* Chat formats: recognized from the model's template text, written by hand for each family. */
typedef enum kvmem_chat {
    KVMEM_CHAT_NONE,
    KVMEM_CHAT_CHATML,     /* Qwen 2/3, SmolLM2 */
    KVMEM_CHAT_LLAMA2,     /* [INST] with <<SYS>> */
    KVMEM_CHAT_LLAMA3,
    KVMEM_CHAT_MISTRAL,    /* "[INST] ", the first 7B files, no system message */
    KVMEM_CHAT_MISTRAL_V1, /* " [INST] " */
    KVMEM_CHAT_MISTRAL_V3, /* "[INST] " */
    KVMEM_CHAT_MISTRAL_V3_TEKKEN, /* "[INST]" */
    KVMEM_CHAT_MISTRAL_V7, /* [SYSTEM_PROMPT] */
    KVMEM_CHAT_MISTRAL_V7_TEKKEN,
    KVMEM_CHAT_GEMMA,
    KVMEM_CHAT_PHI3,
    KVMEM_CHAT_ZEPHYR,     /* turns end with </s>: TinyLlama */
    KVMEM_CHAT_ZEPHYR_EOT  /* turns end with <|endoftext|> */
} kvmem_chat;
typedef struct kvmem_message { const char *role, *content; } kvmem_message; /* "system" "user" "assistant" */
KVMEM_API const char *kvmem_chat_name(kvmem_chat kind); /* "chatml", NULL past the last */
/* By a template's text, or by its family's name. KVMEM_UNSUPPORTED if it is neither. */
KVMEM_API kvmem_status kvmem_chat_detect(const char *text, size_t len, kvmem_chat *out, kvmem_error *err);
/* By the file's tokenizer.chat_template. KVMEM_UNSUPPORTED if there is none or it is not known. */
KVMEM_API kvmem_status kvmem_chat_of_gguf(const kvmem_gguf *g, kvmem_chat *out, kvmem_error *err);
/* The text of a conversation, to be tokenized with ADD_SPECIAL | PARSE_SPECIAL (BOS is not in it).
   assistant: end with the head of the answer to come (families with [INST] have none and ignore it).
   *len as snprintf; a NUL is added if it fits. */
KVMEM_API kvmem_status kvmem_chat_format(kvmem_chat kind, const kvmem_message *m, size_t n, int assistant,
                                         char *out, size_t size, size_t *len, kvmem_error *err);

/* ==== >>api_model : model files ================================================================== */

typedef enum kvmem_arch {
    KVMEM_ARCH_LLAMA, /* Llama 2/3.x, Mistral, SmolLM, TinyLlama; llama2.c checkpoints */
    KVMEM_ARCH_QWEN2, KVMEM_ARCH_QWEN3, KVMEM_ARCH_GEMMA2, KVMEM_ARCH_GEMMA3, KVMEM_ARCH_PHI3,
    KVMEM_N_ARCHS
} kvmem_arch;

/* One transformer block. Matrices point into the file; a fused q/k/v or gate/up matrix of the file is
   three or two row ranges here. Vectors are float copies. NULL: this model has none. */
typedef struct kvmem_layer {
    const float *attn_norm;                        /* (n_embd) before attention */
    kvmem_tensor q, k, v, o;                       /* rows: heads*d, kv heads*d twice, n_embd */
    const float *q_bias, *k_bias, *v_bias, *o_bias;
    const float *q_norm, *k_norm;                  /* (head_dim) RMS norm of every head, before RoPE */
    const float *attn_post_norm;                   /* (n_embd) of attention's output, before it is added */
    const float *ffn_norm;                         /* (n_embd) before the feed-forward part */
    kvmem_tensor gate, up, down;                   /* rows: n_ff, n_ff, n_embd */
    const float *gate_bias, *up_bias, *down_bias;
    const float *ffn_post_norm;                    /* (n_embd) */
    int window;                                    /* sliding window, the query's token included; 0: none */
    int local;                                     /* 1: this layer's RoPE uses base_local and scale_local */
} kvmem_layer;

/* RoPE as the file describes it; a session turns it into kvmem_rope once it knows n_ctx. */
typedef struct kvmem_rope_spec {
    int n_rot, neox;
    double base, base_local;        /* of the angles: position * base^(-2i/n_rot) * scale */
    double scale, scale_local;      /* 1 / (linear or YaRN factor) */
    double ext_factor;              /* YaRN: 1 mixes extrapolation in, 0: plain interpolation */
    double attn_factor;             /* factor on rotated channels */
    double beta_fast, beta_slow;    /* YaRN's correction range in turns */
    int n_ctx_orig;                 /* context before the stretching */
    const float *factors;           /* (n_rot/2) divisors of the angles (llama3), or NULL */
    const float *factors_long, *factors_short; /* (n_rot/2) longrope: long when n_ctx > n_ctx_orig */
} kvmem_rope_spec;

/* A model: shape, tensors, tokenizer. Read-only after open, so threads and sessions may share it. */
typedef struct kvmem_model {
    kvmem_error error;              /* of open */
    kvmem_allocator allocator;
    kvmem_gguf gguf;                /* the container; no keys and tensors for a llama2.c file */
    int llama2c;                    /* -1: GGUF; 0: llama2.c legacy; 1, 2: its versions */
    kvmem_arch arch;
    const char *arch_name;          /* "llama", as in general.architecture */
    uint64_t id;                    /* fingerprint of the shape and a sample of the weights */
    int n_vocab, n_embd, n_layers, n_heads, n_kv_heads, head_dim, n_ff;
    int n_ctx_train;                /* training context; longer ones are allowed */
    int gelu;                       /* 0: silu(gate) * up; 1: gelu(gate) * up, tanh form */
    int tied;                       /* head is embd */
    float norm_eps, embd_scale;
    float attn_scale;               /* on q.k */
    float attn_softcap, logit_softcap; /* 0: none */
    kvmem_rope_spec rope;
    kvmem_tensor embd, head;        /* (n_vocab rows of n_embd) */
    const float *out_norm;          /* (n_embd) */
    const float *head_bias;         /* (n_vocab) or NULL */
    kvmem_layer *layer;             /* (n_layers) */
    size_t weight_bytes;            /* of all matrices and vectors in the file */
    /* kind KVMEM_VOCAB_NONE: no tokenizer was given, or tokenizer.error says why it is not usable */
    kvmem_tokenizer tokenizer;
    void *block; size_t block_size; /* layers and vectors, one allocation */
} kvmem_model;

/* Opens GGUF or llama2.c bytes (borrowed until close). For llama2.c the tokenizer is a second file and
   may be NULL; for GGUF it is inside and the two arguments are ignored. A tokenizer of an unsupported kind
   does not fail the call (ids can be fed without one): see m->tokenizer. allocator NULL: malloc. On
   failure m->error tells why and m may be closed. */
KVMEM_API kvmem_status kvmem_model_open(kvmem_model *m, const void *bytes, size_t size,
                                        const void *tokenizer_bin, size_t tokenizer_size,
                                        const kvmem_allocator *allocator);
KVMEM_API void kvmem_model_close(kvmem_model *m); /* NULL and zeroed structs are fine */

/* ==== >>api_session : decoder, sampling =========================================================== */

typedef struct kvmem_session_config {
    const kvmem_recipe *recipe;   /* copied; NULL: full */
    size_t max_bytes;             /* ceiling of the cache, 0: none */
    int n_ctx;                    /* longest context meant to be used; 0: the model's training context */
    int threads, max_block;       /* 0: default */
    kvmem_allocator allocator;    /* zero: malloc */
    const kvmem_backend *backend; /* NULL: best */
} kvmem_session_config;
typedef struct kvmem_session {
    kvmem_error error;            /* of the last failed call */
    const kvmem_model *model;     /* borrowed */
    const kvmem_backend *backend;
    kvmem_allocator allocator;
    kvmem_cache cache;            /* cache.tokens: tokens fed; its own error text is copied into `error` */
    int n_ctx, threads, max_block;
    int has_logits;               /* 0 before the first token and after truncate, clear, load */
    float *logits;                /* (n_vocab) of the last fed token */
    /* scratch, one allocation made by init */
    float *x, *h, *q, *k, *v, *att, *gate, *up; /* activations of one block */
    float *rows; int rows_cap;    /* logits of rows_cap tokens, for the row callback */
    void *scratch; size_t scratch_size; /* of the backend's matmul */
    void *block; size_t block_size;
    struct kvmem_direct *direct;  /* of a recipe with reduce=recompute, else NULL */
} kvmem_session;
KVMEM_API kvmem_session_config kvmem_session_config_default(void);
KVMEM_API kvmem_status kvmem_session_init(kvmem_session *s, const kvmem_model *m,
                                          const kvmem_session_config *cfg);
KVMEM_API void kvmem_session_free(kvmem_session *s);
/* kvmem_cache_bytes of the session's cache and, for reduce=recompute, of what stands for the rows that
   left it: checkpoints are counted as meta; the peak is taken whenever a layer attends
   and has the rows that were made again. */
KVMEM_API void kvmem_session_bytes(const kvmem_session *s, kvmem_bytes *out);
/* The turn is over: frees what reduce=recompute(hold=1) keeps until then. Else it does nothing. */
KVMEM_API void kvmem_session_end_turn(kvmem_session *s);
/* Forget the tokens from n_tokens on; forget all. The next feed gives logits again. */
KVMEM_API kvmem_status kvmem_session_truncate(kvmem_session *s, int64_t n_tokens);
KVMEM_API void kvmem_session_clear(kvmem_session *s);
/* dst becomes a second session on the same model whose cache shares the pages of src until one of them
   changes. dst is not initialized. Both belong to one thread at a time. */
KVMEM_API kvmem_status kvmem_session_copy(kvmem_session *dst, const kvmem_session *src);
/* The cache's content as bytes, see kvmem_cache_save and kvmem_cache_load. */
KVMEM_API kvmem_status kvmem_session_save(kvmem_session *s, kvmem_write_fn write, void *user);
KVMEM_API kvmem_status kvmem_session_load(kvmem_session *s, const void *bytes, size_t size);
/* kvmem_estimate for the cache that a session of this configuration would have. */
KVMEM_API kvmem_status kvmem_session_estimate(const kvmem_model *m, const kvmem_session_config *cfg,
                                              int64_t prompt, int64_t decoded, kvmem_bytes *out,
                                              kvmem_error *err);
/* Logits of one fed token: index in the call, logits (n_vocab). Return 0 to go on. */
typedef int (*kvmem_row_fn)(void *user, int index, const float *logits);
/* Feed n tokens. phase KVMEM_PROMPT_END: the prompt is complete with these; KVMEM_PREFILL: more follows;
   KVMEM_DECODE: a generated token. Splits into blocks that respect the byte limit; the last block has the
   phase. Ids are checked before anything is fed; n = 0 does nothing. The last token's logits are in
   s->logits (n_vocab) afterwards. row (may be NULL) is called for every token in order, at most rows_cap
   rows being held; if it returns non-zero, no further rows are given and feeding ends after the block in
   flight (cache.tokens says how far). On failure the blocks before the failing one stay fed. Contexts
   longer than the model was trained for are allowed. */
KVMEM_API kvmem_status kvmem_session_feed(kvmem_session *s, const int *ids, int n, kvmem_phase phase,
                                          kvmem_row_fn row, void *user);
/* Sampling. The order is fixed: repetition penalty, temperature 0 ends here with the highest logit;
   top-k, softmax at the temperature, top-p, min-p, one draw. Ties go to the lower id. */
typedef struct kvmem_sampler_config {
    float temperature;    /* 0: greedy; default 0.8 */
    int top_k;            /* 0: all; default 40 */
    float top_p;          /* 1: all; default 0.95 */
    float min_p;          /* of the highest probability, 0: all; default 0.05 */
    float repeat_penalty; /* logits of recent tokens: l / p if l > 0, l * p otherwise; 1: none; default 1 */
    int repeat_last;      /* how many accepted tokens are recent; default 64 */
    uint64_t seed;
} kvmem_sampler_config;
typedef struct kvmem_sampler {
    kvmem_error error;
    kvmem_allocator allocator;
    kvmem_sampler_config config;
    int n_vocab;
    uint64_t draws;         /* numbers drawn so far: the next is a function of seed and draws */
    int *recent;            /* (repeat_last) ring of accepted tokens */
    int n_recent, recent_at;
    float *value;           /* (n_vocab) */
    int *index, *order;     /* (n_vocab) each */
    void *block; size_t block_size;
} kvmem_sampler;
KVMEM_API kvmem_sampler_config kvmem_sampler_config_default(void);
/* All memory is taken here. cfg NULL: the default. */
KVMEM_API kvmem_status kvmem_sampler_init(kvmem_sampler *s, const kvmem_sampler_config *cfg, int n_vocab,
                                          const kvmem_allocator *allocator);
KVMEM_API void kvmem_sampler_free(kvmem_sampler *s);
/* A token became part of the text (prompt or answer): the repetition penalty will see it. */
KVMEM_API void kvmem_sampler_accept(kvmem_sampler *s, int id);
/* Choose from logits (n_vocab). -INFINITY is never chosen; NaN is KVMEM_BAD_VALUE. Does not accept. */
KVMEM_API kvmem_status kvmem_sample(kvmem_sampler *s, const float *logits, int *id);

/* ==== >>api_flash : neurons of a feed-forward layer on flash ===================================== */

/* KVMEM_EXPERIMENTAL: one ReLU layer out = down relu(up x + bias) whose F neurons lie in a file and
   are read when they fire, see >>flash. Neuron i is a record of 2 D values, the row of up and the
   column of down that belong to it, so that one read brings both. Models with SwiGLU have no such
   sparsity. */
typedef int (*kvmem_read_fn)(void *user, size_t offset, void *out, size_t size); /* 0 to go on */
typedef struct kvmem_flash_config {
    int n_embd, n_ff;         /* D, F */
    kvmem_type type;          /* of the values in the file: KVMEM_F32, KVMEM_F16 or KVMEM_BF16 */
    int split;                /* 1: no records: all of up, then all of down, two reads a neuron */
    const float *bias;        /* (F) of up, borrowed; or NULL */
    int window;               /* k: a neuron stays k tokens from its last use on; 0: for ever */
    int max_rows;             /* neurons there is memory for, 1..F; 0: F */
    int gap;                  /* neurons that nobody needs are read along to bridge so wide a gap */
    kvmem_read_fn read;       /* NULL: nothing is read, only counted */
    void *user;
    kvmem_allocator allocator; /* zero: malloc */
} kvmem_flash_config;
typedef struct kvmem_flash_counts {
    int64_t tokens, loaded, dropped; /* neurons */
    int64_t early;                   /* of those dropped: before their window was over */
    int64_t reads;                   /* calls of read */
    uint64_t bytes_read;             /* from the file */
    uint64_t bytes_moved;            /* into rows, and to fill holes */
    uint64_t products;               /* multiply-adds */
} kvmem_flash_counts;
typedef struct kvmem_flash {
    kvmem_error error;
    kvmem_flash_config config;
    kvmem_flash_counts count;
    int n_rows;               /* num_used: neurons in memory, in the rows 0.. of the table */
    float *rows;              /* (max_rows, 2 D) */
    int *pointer;             /* (max_rows) neuron of a row */
    int *row_of;              /* (F) row of a neuron, -1: not here */
    int64_t *last;            /* (F) token at which it was last used, from 1 on; 0: never */
    uint8_t *chunk;           /* what one read brings, at most chunk_rows records */
    int chunk_rows;
    void *block;
    size_t block_size;
} kvmem_flash;
/* What a machine takes: seconds = (reads * latency + bytes_read / flash) / threads
   + bytes_moved / memory + products / compute. */
typedef struct kvmem_flash_machine {
    double latency, flash, threads, memory, compute;
} kvmem_flash_machine;

KVMEM_API kvmem_status kvmem_flash_init(kvmem_flash *f, const kvmem_flash_config *cfg);
KVMEM_API void kvmem_flash_free(kvmem_flash *f);
/* One token: the n neurons in active (rising) are brought in if they are not here, those whose window
   is over leave, and out (D) = down relu(up x + bias) over all neurons in memory. x, out (D); with
   read NULL they may be NULL. On failure of a read the neurons read so far stay. */
KVMEM_API kvmem_status kvmem_flash_step(kvmem_flash *f, const int *active, int n, const float *x,
                                        float *out);
KVMEM_API double kvmem_flash_seconds(const kvmem_flash_counts *c, const kvmem_flash_machine *m);
/* Predictors: which neurons fire? Those with a score above the threshold into active (F), rising;
   returns their number. Scores are pre-activations, up (F, D): the oracle, with threshold 0; or
   b (F, r) (transposed a (D, r) x), r <= 256: two small matrices that stay in memory, trained, or made
   by low_rank. A sigmoid's threshold p is log(p / (1 - p)) here. -1: r is out of range. */
KVMEM_API int kvmem_flash_oracle(const float *up, const float *bias, int n_ff, int n_embd,
                                 const float *x, float threshold, int *active);
KVMEM_API int kvmem_flash_predict(const float *a, const float *b, const float *bias, int n_ff,
                                  int n_embd, int r, const float *x, float threshold, int *active);
/* a (D, r), b (F, r) whose product b a^T is the nearest to up (F, D), r <= D, F: a predictor without
   training. */
KVMEM_API void kvmem_flash_low_rank(float *a, float *b, const float *up, int n_ff, int n_embd, int r);
/* The file of a layer: records (or, with split, up and then down), n_ff * 2 * D values of cfg->type
   into out. up (F, D), down (D, F), as a matrix product's weights. */
KVMEM_API kvmem_status kvmem_flash_write(const kvmem_flash_config *cfg, const float *up,
                                         const float *down, void *out);
/* The window 1..most with the fewest seconds for recorded sets of active neurons (n_tokens, rising,
   one after the other in active, count[t] each), such that the table of max_rows suffices and none
   leaves early; 0: none. *seconds: its time. */
KVMEM_API int kvmem_flash_best_window(const kvmem_flash_config *cfg, const kvmem_flash_machine *m,
                                      const int *active, const int *count, int n_tokens, int most,
                                      double *seconds);

#ifdef KVMEM_TRAIN
/* ==== >>api_train : training ====================================================================== */

/* The models that can be trained: the llama family in float32. */
typedef struct kvmem_train_config {
    int n_vocab, n_embd, n_layers, n_heads, n_kv_heads, head_dim, n_ff;
    int tied;             /* 1: the head is the embedding */
    int qk_norm;          /* 1: RMS norm of every head of q and k before RoPE */
    int neox;             /* RoPE pairs: 0 neighbours (llama), 1 halves (qwen3) */
    float norm_eps;
    double rope_base;
    int prefix;           /* trained rows of K and V in front of every sequence, 0: none. Tokens then have
                             positions from `prefix` on; prefix keys are as attention reads them (no RoPE) */
    int max_tokens;       /* most tokens of one batch */
    int max_len;          /* longest sequence */
    int recompute;        /* 1: keep only the residual stream between layers and run each layer's forward
                             pass again in the backward one: memory for a third more time */
    int threads;          /* 0: as OpenMP decides. Bits do not depend on it */
    const kvmem_backend *backend; /* NULL: the best CPU path */
    kvmem_allocator allocator;    /* zero: malloc */
} kvmem_train_config;

/* One trained tensor: `name` as in GGUF; w, grad (rows, cols) row-major inside the trainer. */
typedef struct kvmem_weight {
    char name[40];
    int rows, cols;       /* a vector has rows 1 */
    int decay;            /* 1: weight decay applies */
    float *w, *grad;
} kvmem_weight;

typedef struct kvmem_train_layer { /* indices into param[]; -1: not there */
    int attn_norm, q, k, v, q_norm, k_norm, o, ffn_norm, gate, up, down, prefix_k, prefix_v;
} kvmem_train_layer;

/* Sequences of one length. weight 0: the token's prediction is not asked for. */
typedef struct kvmem_batch {
    int n_seq, len;
    const int *ids;       /* (n_seq, len) */
    const int *target;    /* (n_seq, len): what each position predicts */
    const float *weight;  /* (n_seq, len) >= 0; NULL: all 1 */
} kvmem_batch;

/* AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) with clipping of the gradient's norm. */
typedef struct kvmem_adamw {
    float lr, beta1, beta2, eps, weight_decay;
    float clip;           /* largest norm of the whole gradient; 0: none */
} kvmem_adamw;

typedef struct kvmem_trainer {
    kvmem_error error;
    kvmem_train_config config;
    kvmem_weight *param; int n_params;
    kvmem_train_layer *layer;    /* (n_layers) */
    int embd, head, out_norm;    /* indices into param[]; head equals embd when tied */
    size_t n_values;             /* of all parameters */
    float *w, *grad, *m, *v;     /* (n_values) each: weights, gradient, AdamW's moments */
    int64_t updates;             /* done so far */
    /* of the last batch */
    float *nll;                  /* (n_seq, len) -ln p(target); 0 where the weight is 0 */
    int *best;                   /* (n_seq, len) the most likely token; -1 where the weight is 0 */
    /* scratch, see >>train */
    int threads;
    size_t act_floats;           /* of one layer's activations */
    float *act, *stream, *turn, *big[10];
    float *job; size_t job_floats;
    int *rows;
    void *block, *mm; size_t block_size, mm_size;
} kvmem_trainer;

KVMEM_API kvmem_train_config kvmem_train_config_default(void); /* shape of the default model */
/* All memory is taken here; weights are zero until kvmem_trainer_random or kvmem_trainer_load. On failure
   t->error tells why and t may be freed. Big-endian hosts: KVMEM_UNSUPPORTED. */
KVMEM_API kvmem_status kvmem_trainer_init(kvmem_trainer *t, const kvmem_train_config *cfg);
KVMEM_API void kvmem_trainer_free(kvmem_trainer *t); /* NULL and zeroed structs are fine */
KVMEM_API void kvmem_trainer_random(kvmem_trainer *t, uint64_t seed);
/* Weights of a model of the same shape, whatever their types; AdamW starts anew. A prefix is left as it is. */
KVMEM_API kvmem_status kvmem_trainer_load(kvmem_trainer *t, const kvmem_model *m);
/* Forward pass: *loss = sum weight nll / sum weight. with_grad: backward pass, too; the gradient of *loss
   is ADDED to t->grad (kvmem_trainer_zero clears it). */
KVMEM_API kvmem_status kvmem_trainer_run(kvmem_trainer *t, const kvmem_batch *b, int with_grad, double *loss);
KVMEM_API void kvmem_trainer_zero(kvmem_trainer *t);
/* One step of AdamW with t->grad; *norm (may be NULL) is the gradient's norm before clipping. A gradient
   that is not finite is KVMEM_BAD_VALUE and changes nothing. */
KVMEM_API kvmem_status kvmem_trainer_update(kvmem_trainer *t, const kvmem_adamw *a, double *norm);
/* Learning rate of step i: rises linearly over `warmup` steps, then falls as half a cosine from `peak` to
   `floor` at step `total`. */
KVMEM_API float kvmem_cosine(int64_t i, int64_t warmup, int64_t total, float peak, float floor);
#endif /* KVMEM_TRAIN */
#endif /* KVMEM_NO_DECODER */

#ifdef __cplusplus
}
#endif
#endif /* KVMEM_H */

/* ################################################################################################
   Implementation, in the order in which data flows. A section uses only sections above it.
   ################################################################################################ */
#if defined(KVMEM_IMPLEMENTATION) && !defined(KVMEM_IMPLEMENTATION_DONE)
#define KVMEM_IMPLEMENTATION_DONE

/* ==== >>platform : compiler, libc, SIMD detection ================================================
   What differs between machines stands here and nowhere else. */
#if defined(__FAST_MATH__) || defined(_M_FP_FAST)
#error "kvmem needs IEEE arithmetic (infinities, ordered sums): build without -ffast-math, /fp:fast"
#endif
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#ifndef KVMEM_NO_MALLOC
#include <stdlib.h>
#endif
#ifndef KVMEM_NO_STDIO
#include <stdio.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#ifndef KVMEM_ASSERT
#include <assert.h>
#define KVMEM_ASSERT(x) assert(x)
#endif
#ifndef KVMEM_RESTRICT
#if defined(__GNUC__) || defined(__clang__)
#define KVMEM_RESTRICT __restrict__
#elif defined(_MSC_VER)
#define KVMEM_RESTRICT __restrict
#else
#define KVMEM_RESTRICT
#endif
#endif
#if defined(__GNUC__) || defined(__clang__)
#define KVMEM__UNUSED __attribute__((unused))
#define KVMEM__PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define KVMEM__UNUSED
#define KVMEM__PRINTF(f, a)
#endif

/* SIMD paths that can be compiled here. x86 picks one at run time, ARM at compile time. */
#if !defined(KVMEM_REFERENCE) && (defined(__x86_64__) || defined(_M_X64)) &&                        \
    (defined(__GNUC__) || defined(__clang__)) && !defined(__TINYC__)
#define KVMEM__X86 1
#include <cpuid.h>
#include <immintrin.h>
#define KVMEM__AVX2 __attribute__((target("avx2,fma,f16c")))
#define KVMEM__AVX512                                                                               \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#else
#define KVMEM__X86 0
#endif
#if !defined(KVMEM_REFERENCE) && defined(__ARM_NEON) && defined(__aarch64__) &&                     \
    !defined(__AARCH64EB__)
#define KVMEM__NEON 1
#include <arm_neon.h>
#else
#define KVMEM__NEON 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#define KVMEM__INLINE static inline __attribute__((always_inline))
#else
#define KVMEM__INLINE static
#endif
#if KVMEM__X86 || KVMEM__NEON
/* Loops of a few rounds whose arrays must become registers. gcc needs to be told at -O2; clang does it by
   itself, and its own pragma keeps the arrays in memory (three times slower). */
#if !defined(__clang__) && __GNUC__ >= 8
#define KVMEM__UNROLL _Pragma("GCC unroll 16")
#else
#define KVMEM__UNROLL
#endif
#endif

/* Size checks of what file formats and packed rows rely on. */
typedef char kvmem__check_float[sizeof(float) == 4 ? 1 : -1];
typedef char kvmem__check_int[sizeof(int) >= 4 ? 1 : -1];

#define KVMEM__MIN(a, b) ((a) < (b) ? (a) : (b))
#define KVMEM__MAX(a, b) ((a) > (b) ? (a) : (b))
#define KVMEM__TRY(expr)                                                                            \
    do {                                                                                            \
        kvmem_status kvmem__s = (expr);                                                             \
        if (kvmem__s != KVMEM_OK) return kvmem__s;                                                  \
    } while (0)

/* Checked size arithmetic: 0 and *out untouched on overflow. */
KVMEM__UNUSED static int kvmem__mul(size_t a, size_t b, size_t *out) {
    if (b != 0 && a > SIZE_MAX / b) return 0;
    *out = a * b;
    return 1;
}
KVMEM__UNUSED static int kvmem__add(size_t a, size_t b, size_t *out) {
    if (a > SIZE_MAX - b) return 0;
    *out = a + b;
    return 1;
}

/* Little-endian loads and stores by bytes: any alignment, any host. */
KVMEM__UNUSED static uint16_t kvmem__le16(const void *p) {
    const uint8_t *b = (const uint8_t *)p;
    return (uint16_t)(b[0] | (unsigned)b[1] << 8);
}
KVMEM__UNUSED static uint32_t kvmem__le32(const void *p) {
    const uint8_t *b = (const uint8_t *)p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}
KVMEM__UNUSED static uint64_t kvmem__le64(const void *p) {
    return (uint64_t)kvmem__le32(p) | (uint64_t)kvmem__le32((const uint8_t *)p + 4) << 32;
}
KVMEM__UNUSED static float kvmem__lef32(const void *p) {
    const uint32_t u = kvmem__le32(p);
    float f;
    memcpy(&f, &u, 4);
    return f;
}
KVMEM__UNUSED static void kvmem__put16(void *p, uint16_t v) {
    uint8_t *b = (uint8_t *)p;
    b[0] = (uint8_t)(v & 255);
    b[1] = (uint8_t)(v >> 8);
}
KVMEM__UNUSED static void kvmem__put32(void *p, uint32_t v) {
    kvmem__put16(p, (uint16_t)(v & 0xffff));
    kvmem__put16((uint8_t *)p + 2, (uint16_t)(v >> 16));
}
KVMEM__UNUSED static void kvmem__put64(void *p, uint64_t v) {
    kvmem__put32(p, (uint32_t)(v & 0xffffffffu));
    kvmem__put32((uint8_t *)p + 4, (uint32_t)(v >> 32));
}
KVMEM__UNUSED static void kvmem__putf32(void *p, float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    kvmem__put32(p, u);
}

KVMEM__UNUSED static int kvmem__threads(int wanted) {
#ifdef _OPENMP
    return wanted > 0 ? wanted : omp_get_max_threads();
#else
    (void)wanted;
    return 1;
#endif
}
/* The same for a job of so many multiply-adds: starting threads costs some microseconds, so a small job
   runs on one. Results never depend on the number of threads. */
#define KVMEM__SMALL_JOB 131072.0
KVMEM__UNUSED static int kvmem__threads_for(int wanted, double work) {
    return work < KVMEM__SMALL_JOB ? 1 : kvmem__threads(wanted);
}

/* ==== >>errors : status texts, formatted detail, allocation ======================================
   A small printf that needs no stdio: %s %d %ld (int64_t) %zu %g %c %.*s, so that errors read the same
   on a microcontroller. Text that does not fit is cut. */
KVMEM_API int kvmem_version(void) { return KVMEM_VERSION; }

KVMEM_API const char *kvmem_status_string(kvmem_status status) {
    switch (status) {
#define KVMEM__X(name, number, text)                                                                \
    case name: return text;
        KVMEM_STATUS_LIST(KVMEM__X)
#undef KVMEM__X
    default: return "unknown status";
    }
}

typedef struct kvmem__text { char *out; size_t size, len; } kvmem__text; /* len counts what is cut, too */

KVMEM__UNUSED static void kvmem__put_char(kvmem__text *t, char ch) {
    if (t->len + 1 < t->size) t->out[t->len] = ch;
    if (t->size) t->out[t->len + 1 < t->size ? t->len + 1 : t->size - 1] = 0;
    t->len++;
}
KVMEM__UNUSED static void kvmem__put_bytes(kvmem__text *t, const char *s, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) kvmem__put_char(t, s[i]);
}
KVMEM__UNUSED static void kvmem__put_u64(kvmem__text *t, uint64_t v) {
    char b[24];
    int n = 0;
    do { b[n++] = (char)('0' + (int)(v % 10)); v /= 10; } while (v);
    while (n) kvmem__put_char(t, b[--n]);
}
/* Shortest decimal with at most `digits` significant digits (1..9), as %.{digits}g would print it for
   magnitudes 1e-5..1e15; exact for the short decimals that recipes hold. */
KVMEM__UNUSED static void kvmem__put_double(kvmem__text *t, double v, int digits) {
    int exp10 = 0, i, n = 0;
    char b[20];
    double m;
    uint64_t u, lim = 1;
    if (v != v) { kvmem__put_bytes(t, "nan", 3); return; }
    if (v < 0) { kvmem__put_char(t, '-'); v = -v; }
    if (v > DBL_MAX) { kvmem__put_bytes(t, "inf", 3); return; }
    if (v == 0) { kvmem__put_char(t, '0'); return; }
    for (i = 0; i < digits; i++) lim *= 10;
    m = v;
    while (m >= (double)lim) { m /= 10; exp10++; }
    while (m < (double)(lim / 10)) { m *= 10; exp10--; }
    u = (uint64_t)(m + 0.5);
    if (u >= lim) { u /= 10; exp10++; }
    while (u % 10 == 0) { u /= 10; exp10++; }
    while (u) { b[n++] = (char)('0' + (int)(u % 10)); u /= 10; }
    if (exp10 >= 0 && n + exp10 <= 15) {
        for (i = n - 1; i >= 0; i--) kvmem__put_char(t, b[i]);
        for (i = 0; i < exp10; i++) kvmem__put_char(t, '0');
    } else if (exp10 < 0 && -exp10 < n) {
        for (i = n - 1; i >= 0; i--) {
            if (i == -exp10 - 1) kvmem__put_char(t, '.');
            kvmem__put_char(t, b[i]);
        }
    } else if (exp10 < 0 && -exp10 - n < 5) {
        kvmem__put_bytes(t, "0.", 2);
        for (i = 0; i < -exp10 - n; i++) kvmem__put_char(t, '0');
        for (i = n - 1; i >= 0; i--) kvmem__put_char(t, b[i]);
    } else {
        const int e = exp10 + n - 1;
        kvmem__put_char(t, b[n - 1]);
        if (n > 1) kvmem__put_char(t, '.');
        for (i = n - 2; i >= 0; i--) kvmem__put_char(t, b[i]);
        kvmem__put_char(t, 'e');
        if (e < 0) kvmem__put_char(t, '-');
        kvmem__put_u64(t, (uint64_t)(e < 0 ? -e : e));
    }
}
KVMEM__UNUSED static void kvmem__vformat(kvmem__text *t, const char *f, va_list ap) {
    for (; *f; f++) {
        int prec = -1, is_long = 0;
        if (*f != '%') { kvmem__put_char(t, *f); continue; }
        f++;
        if (*f == '.') {
            f++;
            if (*f == '*') { prec = va_arg(ap, int); f++; }
            else for (prec = 0; *f >= '0' && *f <= '9'; f++) prec = prec * 10 + (*f - '0');
        }
        while (*f == 'l' || *f == 'z') { is_long = *f == 'z' ? 3 : is_long + 1; f++; }
        switch (*f) {
        case 'd': {
            const int64_t v = is_long == 0 ? (int64_t)va_arg(ap, int)
                            : is_long == 1 ? (int64_t)va_arg(ap, long) : va_arg(ap, long long);
            if (v < 0) kvmem__put_char(t, '-');
            kvmem__put_u64(t, v < 0 ? (uint64_t)0 - (uint64_t)v : (uint64_t)v);
            break;
        }
        case 'u': kvmem__put_u64(t, is_long == 3 ? (uint64_t)va_arg(ap, size_t)
                                  : is_long == 2 ? (uint64_t)va_arg(ap, unsigned long long)
                                                 : (uint64_t)va_arg(ap, unsigned)); break;
        case 'g': kvmem__put_double(t, va_arg(ap, double), prec > 0 ? prec : 6); break;
        case 'c': kvmem__put_char(t, (char)va_arg(ap, int)); break;
        case 's': {
            const char *s = va_arg(ap, const char *);
            size_t i;
            for (i = 0; (prec < 0 || i < (size_t)prec) && (prec >= 0 || s[i]); i++) {
                if (prec >= 0 && !s[i]) break;
                kvmem__put_char(t, s[i]);
            }
            break;
        }
        case '%': kvmem__put_char(t, '%'); break;
        default: KVMEM_ASSERT(0 && "kvmem__vformat: unknown conversion"); return;
        }
    }
}
KVMEM__PRINTF(2, 3) KVMEM__UNUSED static void kvmem__format(kvmem__text *t, const char *f, ...) {
    va_list ap;
    va_start(ap, f);
    kvmem__vformat(t, f, ap);
    va_end(ap);
}
/* Set err (may be NULL) and hand the status back: `return kvmem__fail(e, KVMEM_BAD_FILE, "...", ...)`. */
KVMEM__PRINTF(3, 4)
KVMEM__UNUSED static kvmem_status kvmem__fail(kvmem_error *err, kvmem_status status, const char *f, ...) {
    if (err) {
        kvmem__text t;
        va_list ap;
        t.out = err->text;
        t.size = sizeof err->text;
        t.len = 0;
        err->text[0] = 0;
        err->status = status;
        va_start(ap, f);
        kvmem__vformat(&t, f, ap);
        va_end(ap);
    }
    return status;
}

#ifndef KVMEM_NO_MALLOC
static void *kvmem__malloc(void *user, size_t size) { (void)user; return malloc(size); }
static void kvmem__mfree(void *user, void *ptr, size_t size) { (void)user; (void)size; free(ptr); }
#endif
/* The allocator to use: the given one, or malloc and free for NULL or a zeroed struct. With
   KVMEM_NO_MALLOC a missing one leaves alloc NULL, and every allocation fails. */
KVMEM__UNUSED static kvmem_allocator kvmem__allocator(const kvmem_allocator *a) {
    kvmem_allocator r;
    memset(&r, 0, sizeof r);
    if (a && a->alloc && a->release) return *a;
#ifndef KVMEM_NO_MALLOC
    r.alloc = kvmem__malloc;
    r.release = kvmem__mfree;
#endif
    return r;
}
KVMEM__UNUSED static void *kvmem__alloc(const kvmem_allocator *a, size_t size) {
    return a->alloc ? a->alloc(a->user, size ? size : 1) : NULL;
}
KVMEM__UNUSED static void kvmem__release(const kvmem_allocator *a, void *p, size_t size) {
    if (p && a->release) a->release(a->user, p, size ? size : 1);
}

/* ==== >>numerics : half floats, exp, random numbers, top-k, checksums ============================
   Plain C, the same bits everywhere. Vectors and matrices follow in the kernels section. */

/* IEEE half to float: exact, NaN payloads kept. */
KVMEM__UNUSED static float kvmem__f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3ffu;
    uint32_t u;
    float f;
    if (e == 31) u = sign | 0x7f800000u | m << 13;
    else if (e) u = sign | (e + 112) << 23 | m << 13;
    else {
        f = (float)m * (1.0f / 16777216.0f); /* subnormal: m * 2^-24 */
        memcpy(&u, &f, 4);
        u |= sign;
    }
    memcpy(&f, &u, 4);
    return f;
}
/* Float to IEEE half: round to nearest, ties to even; overflow to infinity. */
KVMEM__UNUSED static uint16_t kvmem__f32_to_f16(float f) {
    uint32_t u, sign, m;
    int e;
    memcpy(&u, &f, 4);
    sign = (u >> 16) & 0x8000u;
    e = (int)((u >> 23) & 255) - 112;
    m = u & 0x7fffffu;
    if (e >= 143) return (uint16_t)(sign | 0x7c00u | (m ? 0x200u | m >> 13 : 0)); /* inf, NaN */
    if (e >= 31) return (uint16_t)(sign | 0x7c00u);
    if (e <= 0) {
        uint32_t r, rest, half;
        if (e < -10) return (uint16_t)sign;
        m |= 0x800000u;
        r = m >> (14 - e);
        rest = m & ((1u << (14 - e)) - 1);
        half = 1u << (13 - e);
        if (rest > half || (rest == half && (r & 1))) r++;
        return (uint16_t)(sign | r);
    }
    u = (uint32_t)e << 10 | m >> 13;
    if ((m & 0x1fffu) > 0x1000u || ((m & 0x1fffu) == 0x1000u && (u & 1))) u++;
    return (uint16_t)(sign | u);
}
KVMEM__UNUSED static float kvmem__bf16_to_f32(uint16_t h) {
    const uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
KVMEM__UNUSED static uint16_t kvmem__f32_to_bf16(float f) { /* nearest, ties to even; NaN stays NaN */
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 64);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

/* exp(x) for attention: one polynomial used by every path, so that plain and SIMD twins differ by
   rounding only. exp(x) = 2^n * 2^f, f in [-0.5, 0.5]; relative error below 2e-7; 0 below -87.3. */
#define KVMEM__EXP_C0 1.0f
#define KVMEM__EXP_C1 0.69314718056f
#define KVMEM__EXP_C2 0.24022650696f
#define KVMEM__EXP_C3 0.05550410866f
#define KVMEM__EXP_C4 0.00961812911f
#define KVMEM__EXP_C5 0.00133335581f
#define KVMEM__EXP_C6 0.00015403530f
KVMEM__UNUSED static float kvmem__expf(float x) {
    float t, n, f, p;
    uint32_t u;
    if (!(x > -87.3f)) return x != x ? x : 0.0f;
    if (x > 88.7f) return INFINITY;
    t = x * 1.44269504089f;
    n = t >= 0 ? (float)(int)(t + 0.5f) : (float)(int)(t - 0.5f);
    f = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* two-part ln 2 */
    f *= 1.44269504089f;
    p = KVMEM__EXP_C6;
    p = p * f + KVMEM__EXP_C5;
    p = p * f + KVMEM__EXP_C4;
    p = p * f + KVMEM__EXP_C3;
    p = p * f + KVMEM__EXP_C2;
    p = p * f + KVMEM__EXP_C1;
    p = p * f + KVMEM__EXP_C0;
    if (n > 127) { p *= 2; n -= 1; }
    u = (uint32_t)((int)n + 127) << 23;
    memcpy(&t, &u, 4);
    return p * t;
}

/* The total of the eight partial sums that long sums are kept in. */
#define KVMEM__LANES 8
static float kvmem__sum8(const float *s) {
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/* Counter-based random numbers: the value depends on (seed, a, b, c) alone, never on the order of
   calls. splitmix64 finalizer; kvmem__mix(0) = 0xe220a8397b1dcdaf. */
KVMEM__UNUSED static uint64_t kvmem__mix(uint64_t z) {
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
KVMEM__UNUSED static uint64_t kvmem__random(uint64_t seed, uint64_t a, uint64_t b, uint64_t c) {
    return kvmem__mix(kvmem__mix(kvmem__mix(kvmem__mix(seed) ^ a) ^ b) ^ c);
}
KVMEM__UNUSED static double kvmem__unit(uint64_t r) { return (double)(r >> 11) * (1.0 / 9007199254740992.0); }

/* The k largest of score (n) as rising indices in out (k); ties go to the lower index. -INFINITY is a
   legal score. Quickselect on (score, index) pairs held as an index array: idx (n) is scratch.
   Expected O(n) time, then O(k log k) by heap sort of the kept indices. Returns k clamped to n. */
KVMEM__UNUSED static int kvmem__before(const float *s, int a, int b) { /* a ranks above b */
    return s[a] > s[b] || (s[a] == s[b] && a < b);
}
KVMEM__UNUSED static void kvmem__sort_ints(int *a, int n) { /* heap sort, rising */
    int i, end;
    for (i = n / 2 - 1, end = n; end > 1;) {
        int root, child, v;
        if (i >= 0) root = i--;
        else { end--; v = a[0]; a[0] = a[end]; a[end] = v; root = 0; }
        for (v = a[root]; (child = 2 * root + 1) < end; root = child) {
            if (child + 1 < end && a[child + 1] > a[child]) child++;
            if (a[child] <= v) break;
            a[root] = a[child];
        }
        a[root] = v;
    }
}
KVMEM__UNUSED static int kvmem__topk(int *out, const float *score, int n, int k, int *idx) {
    int lo = 0, hi, i;
    if (k > n) k = n;
    if (k <= 0) return 0;
    for (i = 0; i < n; i++) idx[i] = i;
    hi = n - 1;
    while (lo < hi) { /* after this the first k of idx are the top k */
        const int p = idx[lo + (hi - lo) / 2];
        int a = lo, b = hi;
        while (a <= b) {
            while (kvmem__before(score, idx[a], p)) a++;
            while (kvmem__before(score, p, idx[b])) b--;
            if (a <= b) { const int t = idx[a]; idx[a] = idx[b]; idx[b] = t; a++; b--; }
        }
        if (k - 1 <= b) hi = b;
        else if (k - 1 >= a) lo = a;
        else break;
    }
    for (i = 0; i < k; i++) out[i] = idx[i];
    kvmem__sort_ints(out, k);
    return k;
}

/* FNV-1a over 64 bits: fingerprints. CRC-32 (polynomial 0xEDB88320): checksums of files, computed with a
   16-entry table so that it stays small; crc32("123456789") = 0xCBF43926. */
KVMEM__UNUSED static uint64_t kvmem__fnv(uint64_t h, const void *p, size_t n) {
    const uint8_t *b = (const uint8_t *)p;
    size_t i;
    for (i = 0; i < n; i++) h = (h ^ b[i]) * 0x100000001b3u;
    return h;
}
KVMEM__UNUSED static uint32_t kvmem__crc32(uint32_t crc, const void *p, size_t n) {
    static const uint32_t t[16] = {
        0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu, 0x76dc4190u, 0x6b6b51f4u, 0x4db26158u,
        0x5005713cu, 0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu, 0x9b64c2b0u, 0x86d3d2d4u,
        0xa00ae278u, 0xbdbdf21cu };
    const uint8_t *b = (const uint8_t *)p;
    size_t i;
    crc = ~crc;
    for (i = 0; i < n; i++) {
        crc = t[(crc ^ b[i]) & 15] ^ (crc >> 4);
        crc = t[(crc ^ (uint32_t)(b[i] >> 4)) & 15] ^ (crc >> 4);
    }
    return ~crc;
}

/* ==== >>blocks : up to 32 values in one piece of bytes, for tensors and for caches ================
   A row of values is a chain of pieces of b = min(32, rest) values. Little-endian bytes, so that files can
   be read anywhere. The six coded kinds keep a scale, two of them a minimum, for every piece; where b = 32
   they are GGUF's blocks bit for bit, and tensors of those types are coded and decoded here, too.
     kind    bytes of a piece             bits/value   a value is
     f32     4 b                          32           itself
     f16     2 b                          16           IEEE half, nearest even; finite values stop at +-65504
     bf16    2 b                          16           the upper half of a float, nearest even
     q8_0    h s, b bytes                 8.5          q s,         s = max|x| / 127, q = roundf(x / s)
     q4_0    h s, nibbles                 4.5          (q - 8) s,   s = M / -8,  q = min(15, trunc(x / s + 8.5))
     q5_0    h s, fifth bits, nibbles     5.5          (q - 16) s,  s = M / -16, q = min(31, trunc(x / s + 16.5))
     q4_1    h s, h m, nibbles            5            q s + m,     m = min x, s = (max x - m) / 15,
                                                                    q = min(15, trunc((x - m) / s + 0.5))
     q5_1    h s, h m, fifth bits, nibb.  6            the same with 31
     iq4_nl  h s, nibbles                 4.5          level[q] s,  q the level nearest to x / s0, s0 = M / -127
   h is a float16. M is the signed value of the first largest |x|, so it maps to code 0 exactly and the other
   sign of q4_0 is clipped at 7/8 of it. Codes come from the unrounded 1 / s (and m). Nibbles: byte j holds
   code j low and code j + (b + 1) / 2 high. Fifth bits: bit j % 8 of byte j / 8 for code j, (b + 7) / 8 bytes.
   iq4_nl has 16 levels, closer together near 0, as Gaussian values are; of two levels equally near it takes
   the upper one. Its codes stay, its scale is fitted once more to them by least squares with weights x^2:
       s = sum(w level[q] x) / sum(w level[q]^2),  w = x^2.
   ggml also tries other first scales; a cache writes each row once and soon, so that search is left out.
   Guards: a constant or zero piece has scale 0; a scale or minimum too large for a half stays at +-65504;
   NaN counts as 0; an infinity takes the last code on its side and is left out of the scale.
   Code: ggml-org/ggml src/ggml-quants.c (quantize_row_*_ref), src/ggml-common.h. test: tests/codec_block.c,
   tests/quants.c */
typedef enum kvmem__rows {
    KVMEM__ROWS_F32, KVMEM__ROWS_F16, KVMEM__ROWS_BF16, KVMEM__ROWS_Q8_0, KVMEM__ROWS_Q4_0, KVMEM__ROWS_Q4_1,
    KVMEM__ROWS_Q5_0, KVMEM__ROWS_Q5_1, KVMEM__ROWS_IQ4_NL
} kvmem__rows;
#define KVMEM__PIECE 32
#define KVMEM__IQ4_LEVELS -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113

/* What the coded kinds have, and where; the compiler folds these in the fast paths. */
KVMEM__INLINE int kvmem__is_coded(kvmem__rows kind) { return kind >= KVMEM__ROWS_Q8_0; }
KVMEM__INLINE int kvmem__has_min(kvmem__rows kind) {
    return kind == KVMEM__ROWS_Q4_1 || kind == KVMEM__ROWS_Q5_1;
}
KVMEM__INLINE int kvmem__has_fifth(kvmem__rows kind) {
    return kind == KVMEM__ROWS_Q5_0 || kind == KVMEM__ROWS_Q5_1;
}
KVMEM__INLINE int kvmem__fifth_at(kvmem__rows kind) { return kvmem__has_min(kind) ? 4 : 2; }
KVMEM__INLINE int kvmem__codes_at(kvmem__rows kind, int b) {
    return kvmem__fifth_at(kind) + (kvmem__has_fifth(kind) ? (b + 7) / 8 : 0);
}
/* What is subtracted from a code that is not negative (iq4_nl: from level + 128). */
KVMEM__INLINE int kvmem__code_zero(kvmem__rows kind) {
    return kind == KVMEM__ROWS_Q4_0 ? 8 : kind == KVMEM__ROWS_Q5_0 ? 16 : kvmem__has_min(kind) ? 0 : 128;
}
/* Bytes of a piece of b values. */
KVMEM__UNUSED static size_t kvmem__piece_bytes(kvmem__rows kind, int b) {
    if (kind == KVMEM__ROWS_F32) return (size_t)b * 4;
    if (!kvmem__is_coded(kind)) return (size_t)b * 2;
    return (size_t)(kvmem__codes_at(kind, b) + (kind == KVMEM__ROWS_Q8_0 ? b : (b + 1) / 2));
}
KVMEM__UNUSED static size_t kvmem__row_bytes(kvmem__rows kind, int d) {
    return (size_t)(d / KVMEM__PIECE) * kvmem__piece_bytes(kind, KVMEM__PIECE) +
           (d % KVMEM__PIECE ? kvmem__piece_bytes(kind, d % KVMEM__PIECE) : 0);
}

/* A half that is finite when f is. */
KVMEM__UNUSED static uint16_t kvmem__half_sat(float f) {
    return kvmem__f32_to_f16(f > 65504.0f && f <= FLT_MAX ? 65504.0f
                             : f < -65504.0f && f >= -FLT_MAX ? -65504.0f : f);
}
/* 1 / s, or 0 where s is 0 or so small that the quotient would not be finite: all codes are then 0. */
KVMEM__UNUSED static float kvmem__inverse(float s) {
    const float r = s != 0 ? 1.0f / s : 0.0f;
    return r <= FLT_MAX && r >= -FLT_MAX ? r : 0.0f;
}
/* The signed value of the first largest finite |x|, 0 if there is none. */
static float kvmem__extreme(const float *x, int b) {
    float most = 0, m = 0;
    int j;
    for (j = 0; j < b; j++) {
        const float a = x[j] < 0 ? -x[j] : x[j];
        if (a > most && a <= FLT_MAX) { most = a; m = x[j]; }
    }
    return m;
}
/* Scale s, minimum m (of the kinds that have one) and codes (b, a byte each) -> one piece at out. 0 if s or
   m was too large for a half and was cut. */
static int kvmem__piece_put(kvmem__rows kind, uint8_t *out, float s, float m, const uint8_t *code, int b) {
    const int half = (b + 1) / 2;
    uint8_t *fifth = out + kvmem__fifth_at(kind), *o = out + kvmem__codes_at(kind, b);
    int j;
    kvmem__put16(out, kvmem__half_sat(s));
    if (kvmem__has_min(kind)) kvmem__put16(out + 2, kvmem__half_sat(m));
    if (kind == KVMEM__ROWS_Q8_0) memcpy(o, code, (size_t)b);
    else {
        for (j = 0; j < half; j++) o[j] = (uint8_t)((code[j] & 15) | (half + j < b ? code[half + j] & 15 : 0) << 4);
        memset(fifth, 0, (size_t)(o - fifth));
        for (j = 0; j < b && o > fifth; j++) fifth[j / 8] = (uint8_t)(fifth[j / 8] | (code[j] >> 4) << j % 8);
    }
    return s < 65520.0f && s > -65520.0f && m < 65520.0f && m > -65520.0f;
}
/* One piece -> codes (b, none negative), scale and minimum (or 0). */
static void kvmem__piece_get(kvmem__rows kind, uint8_t *code, float *s, float *m, const uint8_t *in, int b) {
    const int half = (b + 1) / 2;
    const uint8_t *fifth = in + kvmem__fifth_at(kind), *p = in + kvmem__codes_at(kind, b);
    int j;
    *s = kvmem__f16_to_f32(kvmem__le16(in));
    *m = kvmem__has_min(kind) ? kvmem__f16_to_f32(kvmem__le16(in + 2)) : 0.0f;
    if (kind == KVMEM__ROWS_Q8_0) {
        for (j = 0; j < b; j++) code[j] = (uint8_t)(p[j] ^ 128);
        return;
    }
    for (j = 0; j < half; j++) {
        code[j] = p[j] & 15;
        if (half + j < b) code[half + j] = p[j] >> 4;
    }
    for (j = 0; j < b && p > fifth; j++) code[j] = (uint8_t)(code[j] | (fifth[j / 8] >> j % 8 & 1) << 4);
}
static int kvmem__encode_q8_0(uint8_t *out, const float *x, int b) {
    const float most = fabsf(kvmem__extreme(x, b)), id = kvmem__inverse(most / 127.0f);
    uint8_t code[KVMEM__PIECE];
    int j;
    for (j = 0; j < b; j++) { /* half away from zero; v - n is exact */
        const float v = x[j] * id;
        int n = v > 127 ? 127 : v < -127 ? -127 : v == v ? (int)v : 0;
        const float rest = v - (float)n;
        if (rest >= 0.5f && n < 127) n++;
        if (rest <= -0.5f && n > -127) n--;
        code[j] = (uint8_t)(n & 255);
    }
    return kvmem__piece_put(KVMEM__ROWS_Q8_0, out, most / 127.0f, 0, code, b);
}
static int kvmem__encode_signed(kvmem__rows kind, uint8_t *out, const float *x, int b) { /* q4_0, q5_0 */
    const int zero = kvmem__code_zero(kind), top = 2 * zero - 1;
    const float s = kvmem__extreme(x, b) / (float)-zero, id = kvmem__inverse(s);
    uint8_t code[KVMEM__PIECE];
    int j;
    for (j = 0; j < b; j++) {
        const float v = x[j] * id + ((float)zero + 0.5f);
        code[j] = (uint8_t)(v >= (float)top ? top : v > 0 ? (int)v : v == v ? 0 : zero);
    }
    return kvmem__piece_put(kind, out, s, 0, code, b);
}
/* The step that leads from *lo to hi in `top` steps. lo > hi: nothing was finite. */
static float kvmem__min_scale(float *lo, float hi, float top) {
    if (*lo > hi) *lo = hi = 0;
    if (*lo == 0) *lo = 0; /* one zero, whatever its sign was */
    return hi - *lo <= FLT_MAX ? (hi - *lo) / top : hi / top - *lo / top;
}
static int kvmem__encode_min(kvmem__rows kind, uint8_t *out, const float *x, int b) { /* q4_1, q5_1 */
    const float top = kind == KVMEM__ROWS_Q5_1 ? 31.0f : 15.0f;
    float lo = INFINITY, hi = -INFINITY, s, id;
    uint8_t code[KVMEM__PIECE];
    int j;
    for (j = 0; j < b; j++) {
        if (x[j] < lo && x[j] >= -FLT_MAX) lo = x[j];
        if (x[j] > hi && x[j] <= FLT_MAX) hi = x[j];
    }
    s = kvmem__min_scale(&lo, hi, top);
    id = kvmem__inverse(s);
    for (j = 0; j < b; j++) {
        const float v = ((x[j] == x[j] ? x[j] : 0.0f) - lo) * id + 0.5f;
        code[j] = (uint8_t)(v >= top ? (int)top : v > 0 ? (int)v : 0);
    }
    return kvmem__piece_put(kind, out, s, lo, code, b);
}
/* The scale that fits levels to values best, from sums over lanes. */
static float kvmem__fit_scale(float s0, const float *num, const float *den) {
    const float bottom = kvmem__sum8(den);
    return bottom > 0 ? s0 * (kvmem__sum8(num) / bottom) : 0.0f;
}
static int kvmem__encode_iq4_nl(uint8_t *out, const float *x, int b) {
    static const float level[16] = { KVMEM__IQ4_LEVELS };
    const float s0 = kvmem__extreme(x, b) / -127.0f, id = kvmem__inverse(s0);
    float num[8] = { 0, 0, 0, 0, 0, 0, 0, 0 }, den[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    uint8_t code[KVMEM__PIECE];
    int j, k, n;
    for (j = 0; j < b; j++) {
        const float v = x[j] * id == x[j] * id ? x[j] * id : 0.0f;
        for (k = 1, n = 0; k < 16; k++) n += v >= (level[k - 1] + level[k]) * 0.5f;
        code[j] = (uint8_t)n;
        if (v > 128 || v < -128) continue; /* an infinity */
        num[j % 8] += v * v * level[n] * v; /* in units of s0, eight partial sums */
        den[j % 8] += v * v * level[n] * level[n];
    }
    return kvmem__piece_put(KVMEM__ROWS_IQ4_NL, out, kvmem__fit_scale(s0, num, den), 0, code, b);
}
/* x (b) -> one piece at out. 0 if its scale or minimum was too large for a half. */
KVMEM__UNUSED static int kvmem__encode_piece(kvmem__rows kind, uint8_t *out, const float *x, int b) {
    int j;
    switch (kind) {
    case KVMEM__ROWS_F32: for (j = 0; j < b; j++) kvmem__putf32(out + 4 * j, x[j]); return 1;
    case KVMEM__ROWS_F16: for (j = 0; j < b; j++) kvmem__put16(out + 2 * j, kvmem__half_sat(x[j])); return 1;
    case KVMEM__ROWS_BF16: for (j = 0; j < b; j++) kvmem__put16(out + 2 * j, kvmem__f32_to_bf16(x[j])); return 1;
    case KVMEM__ROWS_Q8_0: return kvmem__encode_q8_0(out, x, b);
    case KVMEM__ROWS_IQ4_NL: return kvmem__encode_iq4_nl(out, x, b);
    case KVMEM__ROWS_Q4_0:
    case KVMEM__ROWS_Q5_0: return kvmem__encode_signed(kind, out, x, b);
    default: return kvmem__encode_min(kind, out, x, b);
    }
}
/* One piece at in -> out (b). */
KVMEM__UNUSED static void kvmem__decode_piece(kvmem__rows kind, float *out, const uint8_t *in, int b) {
    static const float level[16] = { KVMEM__IQ4_LEVELS };
    uint8_t code[KVMEM__PIECE];
    float s, m;
    int j;
    if (kind == KVMEM__ROWS_F32) {
        for (j = 0; j < b; j++) out[j] = kvmem__lef32(in + 4 * j);
        return;
    }
    if (!kvmem__is_coded(kind)) {
        for (j = 0; j < b; j++) {
            const uint16_t h = kvmem__le16(in + 2 * j);
            out[j] = kind == KVMEM__ROWS_F16 ? kvmem__f16_to_f32(h) : kvmem__bf16_to_f32(h);
        }
        return;
    }
    kvmem__piece_get(kind, code, &s, &m, in, b);
    for (j = 0; j < b; j++) {
        const int n = (int)code[j] - kvmem__code_zero(kind);
        out[j] = (kind == KVMEM__ROWS_IQ4_NL ? level[code[j]] : (float)n) * s;
        if (kvmem__has_min(kind)) out[j] += m;
    }
}

#ifndef KVMEM_NO_DECODER
/* ==== >>quants : tensor types, their block layouts, decoding and encoding ========================
   A quantized tensor is a sequence of blocks of 32 or 256 values. Every type here is one formula,

       value = s * (code - off) + m       code: 2 to 8 bits, unsigned; off: a constant of the type

   with s and m constant over at least 16 neighbours. So one function, kvmem__unpack, turns any type into
   codes (one byte each), s and m (one each per 16 values), and everything else - decoding, plain matrix
   product, panels of the fast product - is written once on top of it.

   Layouts, as in ggml (ggml-org/ggml, src/ggml-common.h); h is a little-endian float16, {a|b} are the low
   and high bits of a byte. "nibbles": byte j holds code j low, code j + half high.
     q4_0   h d, 16 B nibbles                                   s = d, off 8
     q4_1   h d, h m, 16 B nibbles                              s = d
     q5_0   h d, u32 fifth bits (bit i: code i), 16 B nibbles   s = d, off 16
     q5_1   h d, h m, u32 fifth bits, 16 B nibbles              s = d
     q8_0   h d, 32 B int8                                      s = d, off 128 (stored without offset)
     q2_K   16 B {scale|min}, 64 B codes, h d, h dmin           s = d scale, m = -dmin min, per 16
     q3_K   32 B high bits, 64 B codes, 12 B scales, h d        s = d (scale - 32), per 16, off 4
     q4_K   h d, h dmin, 12 B scales and mins, 128 B nibbles    s = d scale, m = -dmin min, per 32
     q5_K   as q4_K with 32 B fifth bits before the nibbles
     q6_K   128 B nibbles, 64 B high bits, 16 B int8 scales, h d  s = d scale, per 16, off 32
   The K types have blocks of 256; block of 32 number b (0..7) sits, for 2-bit codes, in bytes
   32 (b / 4) + l at bit 2 (b % 4), for nibbles in bytes 32 (b / 2) + l at bit 4 (b % 2); single high bits
   are bit b of byte l. Bit-exact with ggml's scalar decoder, which multiplies in this order. */
typedef struct kvmem__quant {
    kvmem_type type;
    const char *name;
    int block, bytes; /* values and bytes of a block */
    int off;          /* -1: not codes but floats */
    int has_min, per16;
} kvmem__quant;

static const kvmem__quant *kvmem__quant_of(kvmem_type type) {
    static const kvmem__quant table[] = {
        { KVMEM_F32, "f32", 1, 4, -1, 0, 0 },      { KVMEM_F16, "f16", 1, 2, -1, 0, 0 },
        { KVMEM_BF16, "bf16", 1, 2, -1, 0, 0 },    { KVMEM_Q8_0, "q8_0", 32, 34, 128, 0, 0 },
        { KVMEM_Q4_0, "q4_0", 32, 18, 8, 0, 0 },   { KVMEM_Q4_1, "q4_1", 32, 20, 0, 1, 0 },
        { KVMEM_Q5_0, "q5_0", 32, 22, 16, 0, 0 },  { KVMEM_Q5_1, "q5_1", 32, 24, 0, 1, 0 },
        { KVMEM_Q2_K, "q2_K", 256, 84, 0, 1, 1 },  { KVMEM_Q3_K, "q3_K", 256, 110, 4, 0, 1 },
        { KVMEM_Q4_K, "q4_K", 256, 144, 0, 1, 0 }, { KVMEM_Q5_K, "q5_K", 256, 176, 0, 1, 0 },
        { KVMEM_Q6_K, "q6_K", 256, 210, 32, 0, 1 } };
    static const kvmem__quant split = { KVMEM_Q8_SPLIT, "q8_split", 1, 1, 128, 0, 1 };
    size_t i;
    for (i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].type == type) return &table[i];
    return type == KVMEM_Q8_SPLIT ? &split : NULL;
}
KVMEM_API const char *kvmem_type_name(kvmem_type type) {
    const kvmem__quant *t = kvmem__quant_of(type);
    return t ? t->name : NULL;
}
KVMEM_API int kvmem_type_block(kvmem_type type, size_t *block_bytes) {
    const kvmem__quant *t = type == KVMEM_Q8_SPLIT ? NULL : kvmem__quant_of(type);
    if (block_bytes) *block_bytes = t ? (size_t)t->bytes : 0;
    return t ? t->block : 0;
}

/* 6-bit scales of q4_K and q5_K, number j of 8: low bits of j < 4 fill whole bytes, the others are split. */
static void kvmem__scale6(const uint8_t *p, int j, int *scale, int *min) {
    if (j < 4) {
        *scale = p[j] & 63;
        *min = p[j + 4] & 63;
    } else {
        *scale = (p[j + 4] & 15) | (p[j - 4] >> 6) << 4;
        *min = p[j + 4] >> 4 | (p[j] >> 6) << 4;
    }
}
/* 6-bit scale of q3_K, number j of 16, as stored (0..63). */
static int kvmem__scale3(const uint8_t *p, int j) {
    return ((p[j % 8] >> (j < 8 ? 0 : 4)) & 15) | ((p[8 + j % 4] >> (2 * (j / 4))) & 3) << 4;
}

/* The rows of this name: types with blocks of 32. */
static kvmem__rows kvmem__rows_of(kvmem_type type) {
    return type == KVMEM_Q8_0 ? KVMEM__ROWS_Q8_0 : type == KVMEM_Q4_0 ? KVMEM__ROWS_Q4_0
         : type == KVMEM_Q4_1 ? KVMEM__ROWS_Q4_1 : type == KVMEM_Q5_0 ? KVMEM__ROWS_Q5_0 : KVMEM__ROWS_Q5_1;
}
/* One block of the 256-value types. code (256), s (16), m (16). */
static void kvmem__unpack256(kvmem_type type, const uint8_t *p, uint8_t *code, float *s, float *m) {
    float d, dmin = 0;
    int b, i, sc, mn;
    for (i = 0; i < 16; i++) m[i] = 0;
    switch (type) {
    case KVMEM_Q2_K:
        d = kvmem__f16_to_f32(kvmem__le16(p + 80));
        dmin = kvmem__f16_to_f32(kvmem__le16(p + 82));
        for (i = 0; i < 16; i++) {
            s[i] = d * (float)(p[i] & 15);
            m[i] = -(dmin * (float)(p[i] >> 4));
        }
        for (b = 0; b < 8; b++)
            for (i = 0; i < 32; i++) code[b * 32 + i] = (p[16 + b / 4 * 32 + i] >> (b % 4 * 2)) & 3;
        break;
    case KVMEM_Q3_K:
        d = kvmem__f16_to_f32(kvmem__le16(p + 108));
        for (i = 0; i < 16; i++) s[i] = d * (float)(kvmem__scale3(p + 96, i) - 32);
        for (b = 0; b < 8; b++)
            for (i = 0; i < 32; i++)
                code[b * 32 + i] = (uint8_t)(((p[32 + b / 4 * 32 + i] >> (b % 4 * 2)) & 3) |
                                             ((p[i] >> b) & 1) << 2);
        break;
    case KVMEM_Q4_K:
    case KVMEM_Q5_K:
        d = kvmem__f16_to_f32(kvmem__le16(p));
        dmin = kvmem__f16_to_f32(kvmem__le16(p + 2));
        for (b = 0; b < 8; b++) {
            kvmem__scale6(p + 4, b, &sc, &mn);
            s[2 * b] = s[2 * b + 1] = d * (float)sc;
            m[2 * b] = m[2 * b + 1] = -(dmin * (float)mn);
        }
        for (b = 0; b < 8; b++) {
            const uint8_t *q = p + (type == KVMEM_Q4_K ? 16 : 48) + b / 2 * 32;
            for (i = 0; i < 32; i++) {
                code[b * 32 + i] = (q[i] >> (b % 2 * 4)) & 15;
                if (type == KVMEM_Q5_K) code[b * 32 + i] |= (uint8_t)(((p[16 + i] >> b) & 1) << 4);
            }
        }
        break;
    default: /* KVMEM_Q6_K */
        d = kvmem__f16_to_f32(kvmem__le16(p + 208));
        for (i = 0; i < 16; i++) s[i] = d * (float)((int)(p[192 + i] ^ 128) - 128);
        for (b = 0; b < 8; b++)
            for (i = 0; i < 32; i++) {
                const int low = p[b / 4 * 64 + b % 2 * 32 + i] >> (b % 4 / 2 * 4) & 15;
                code[b * 32 + i] = (uint8_t)(low | ((p[128 + b / 4 * 32 + i] >> (b % 4 * 2)) & 3) << 4);
            }
    }
}
/* Where values [c0, ...) of a row start, and its n values as codes. n and c0 are multiples of the type's
   block, at most 256. code (n), s and m (n / 16). For KVMEM_Q8_SPLIT the group is a multiple of 16 and
   scale points at the row's scales; other types ignore both. */
static void kvmem__unpack(kvmem_type type, const uint8_t *row, const uint8_t *scale, int group, int c0,
                          int n, uint8_t *code, float *s, float *m) {
    int i;
    if (type == KVMEM_Q8_SPLIT) {
        for (i = 0; i < n; i++) code[i] = (uint8_t)(row[c0 + i] ^ 128);
        for (i = 0; i < n / 16; i++) {
            s[i] = kvmem__lef32(scale + (size_t)((c0 + i * 16) / group) * 4);
            m[i] = 0;
        }
        return;
    }
    {
        const kvmem__quant *t = kvmem__quant_of(type);
        const uint8_t *p = row + (size_t)(c0 / t->block) * (size_t)t->bytes;
        for (i = 0; i < n; i += t->block, p += t->bytes) {
            if (t->block == 256) kvmem__unpack256(type, p, code + i, s + i / 16, m + i / 16);
            else {
                float *si = s + i / 16, *mi = m + i / 16;
                kvmem__piece_get(kvmem__rows_of(type), code + i, si, mi, p, 32);
                si[1] = si[0];
                mi[1] = mi[0];
            }
        }
    }
}

static void kvmem__decode(const kvmem__quant *t, float *out, const uint8_t *in, size_t n) {
    uint8_t code[256];
    float s[16], m[16];
    size_t i;
    int j;
    for (i = 0; i < n; i += (size_t)t->block, in += t->bytes) {
        if (t->off < 0) {
            if (t->type == KVMEM_F32) out[i] = kvmem__lef32(in);
            else if (t->type == KVMEM_F16) out[i] = kvmem__f16_to_f32(kvmem__le16(in));
            else out[i] = kvmem__bf16_to_f32(kvmem__le16(in));
            continue;
        }
        kvmem__unpack(t->type, in, NULL, 0, 0, t->block, code, s, m);
        for (j = 0; j < t->block; j++) {
            const float v = s[j / 16] * (float)((int)code[j] - t->off);
            out[i + (size_t)j] = t->has_min ? v + m[j / 16] : v;
        }
    }
}
KVMEM_API kvmem_status kvmem_dequantize(kvmem_type type, float *out, const void *in, size_t n) {
    const kvmem__quant *t = type == KVMEM_Q8_SPLIT ? NULL : kvmem__quant_of(type);
    if (!t) return KVMEM_UNSUPPORTED;
    if (n % (size_t)t->block != 0 || (n != 0 && (!out || !in))) return KVMEM_BAD_ARGUMENT;
    kvmem__decode(t, out, (const uint8_t *)in, n);
    return KVMEM_OK;
}

/* KVMEM_BAD_VALUE: a number is not finite, or a scale passes float16's range (block types only). */
KVMEM_API kvmem_status kvmem_quantize(kvmem_type type, void *out, const float *in, size_t n) {
    const kvmem__quant *t = kvmem__quant_of(type);
    uint8_t *o = (uint8_t *)out;
    size_t i;
    int j;
    if (!t || t->block == 256 || type == KVMEM_Q8_SPLIT) return KVMEM_UNSUPPORTED;
    if (n % (size_t)t->block != 0 || (n != 0 && (!out || !in))) return KVMEM_BAD_ARGUMENT;
    for (i = 0; i < n; i += (size_t)t->block, o += t->bytes) {
        if (type == KVMEM_F32) kvmem__putf32(o, in[i]);
        else if (type == KVMEM_F16) kvmem__put16(o, kvmem__f32_to_f16(in[i]));
        else if (type == KVMEM_BF16) kvmem__put16(o, kvmem__f32_to_bf16(in[i]));
        else {
            for (j = 0; j < 32; j++)
                if (!(fabsf(in[i + (size_t)j]) <= FLT_MAX)) return KVMEM_BAD_VALUE;
            if (!kvmem__encode_piece(kvmem__rows_of(type), o, in + i, 32)) return KVMEM_BAD_VALUE;
        }
    }
    return KVMEM_OK;
}

/* Bytes of a row of a tensor (without the scales of KVMEM_Q8_SPLIT). */
KVMEM__UNUSED static size_t kvmem__tensor_row_bytes(const kvmem_tensor *w) {
    const kvmem__quant *t = kvmem__quant_of(w->type);
    return (size_t)(w->ne[0] / t->block) * (size_t)t->bytes;
}
/* Row `row` of a tensor as float32: out (ne[0]). The tensor was checked by whoever opened the file:
   ne[0] is a multiple of the block, or of the group, and data holds all rows. */
KVMEM__UNUSED static void kvmem__tensor_row(float *out, const kvmem_tensor *w, int64_t row) {
    const uint8_t *p = w->data + (size_t)row * kvmem__tensor_row_bytes(w);
    if (w->type == KVMEM_Q8_SPLIT) {
        const uint8_t *sp = w->scales + (size_t)(row * (w->ne[0] / w->group)) * 4;
        int64_t i;
        for (i = 0; i < w->ne[0]; i++)
            out[i] = kvmem__lef32(sp + (size_t)(i / w->group) * 4) * (float)((int)(p[i] ^ 128) - 128);
    } else kvmem__decode(kvmem__quant_of(w->type), out, p, (size_t)w->ne[0]);
}
#endif /* KVMEM_NO_DECODER */

/* ==== >>kernels : vectors, norms, rotations ======================================================
   The few loops in which all time goes. Each has a plain C twin (name ends in _plain) that is the
   definition, and fast ones beside it (_avx2, _avx512, _neon) that a test compares with the twin. Sums
   are kept in eight partial sums, so that the plain twins vectorize, too; nothing here depends on the
   number of threads. */

static float kvmem__dot_plain(const float *a, const float *b, int n) {
    float s[KVMEM__LANES] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    int i, j;
    for (i = 0; i + KVMEM__LANES <= n; i += KVMEM__LANES)
        for (j = 0; j < KVMEM__LANES; j++) s[j] += a[i + j] * b[i + j];
    for (j = 0; i < n; i++, j++) s[j] += a[i] * b[i];
    return kvmem__sum8(s);
}
static void kvmem__axpy_plain(float *y, float a, const float *x, int n) {
    int i;
    for (i = 0; i < n; i++) y[i] += a * x[i];
}
static void kvmem__scale_plain(float *y, float a, int n) {
    int i;
    for (i = 0; i < n; i++) y[i] *= a;
}
static float kvmem__max_plain(const float *x, int n) {
    float m = -INFINITY;
    int i;
    for (i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}
static float kvmem__exp_sum_plain(float *p, const float *s, float m, int n) {
    float sum[KVMEM__LANES] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    int i;
    for (i = 0; i < n; i++) {
        p[i] = kvmem__expf(s[i] - m);
        sum[i % KVMEM__LANES] += p[i];
    }
    return kvmem__sum8(sum);
}

/* cap tanh(y / cap). tanh t = 1 - 2 / (e^2t + 1) loses digits near 0, where a series takes over. */
static float kvmem__tanhf(float t) {
    const float a = fabsf(t), q = t * t;
    float r;
    if (a < 0.25f)
        return t + t * q * (-0.33333333f + q * (0.13333333f + q * (-0.05396825f + q * 0.02186949f)));
    r = 1 - 2 / (kvmem__expf(2 * a) + 1);
    return t < 0 ? -r : r;
}
static void kvmem__softcap_plain(float *y, float cap, size_t count) {
    size_t i;
    for (i = 0; i < count; i++) y[i] = cap * kvmem__tanhf(y[i] / cap);
}

/* Rotary positions (Su 2021, arXiv 2104.09864): channel pair i of a row at position p turns by the angle
   p inv_freq[i]. Angles are computed in double, since float32 loses them at long contexts. */
static void kvmem__rope_row(float *out, const float *x, int heads, int d, const kvmem_rope *r, int32_t pos,
                            float mscale) {
    const int half = r->n_rot / 2, apart = r->neox ? half : 1, step = r->neox ? 1 : 2;
    float c[64], s[64];
    int h, i, i0, n;
    if (out != x) memcpy(out, x, sizeof(float) * (size_t)heads * (size_t)d);
    for (i0 = 0; i0 < half; i0 += 64) {
        n = KVMEM__MIN(64, half - i0);
        for (i = 0; i < n; i++) {
            const double angle = (double)pos * (double)r->inv_freq[i0 + i];
            c[i] = (float)cos(angle) * mscale;
            s[i] = (float)sin(angle) * mscale;
        }
        for (h = 0; h < heads; h++) {
            float *a = out + (size_t)h * (size_t)d + (size_t)i0 * (size_t)step;
            for (i = 0; i < n; i++, a += step) {
                const float u = a[0], v = a[apart];
                a[0] = u * c[i] - v * s[i];
                a[apart] = u * s[i] + v * c[i];
            }
        }
    }
}
static void kvmem__rope(float *out, const float *x, int n, int heads, int d, const kvmem_rope *r,
                        const int32_t *pos, int with_mscale, int threads) {
    const float mscale = with_mscale ? r->mscale : 1.0f;
    const size_t row = (size_t)heads * (size_t)d;
    int i;
    if (n < 8) threads = 1;
    threads = kvmem__threads(threads);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (i = 0; i < n; i++)
        kvmem__rope_row(out + (size_t)i * row, x + (size_t)i * row, heads, d, r, pos[i], mscale);
}

#ifndef KVMEM_NO_DECODER
static void kvmem__add_plain(float *y, const float *x, size_t count) {
    size_t i;
    for (i = 0; i < count; i++) y[i] += x[i];
}
typedef void (*kvmem__rmsnorm_fn)(float *out, const float *x, const float *w, int d, float eps);
static void kvmem__rmsnorm_run(kvmem__rmsnorm_fn row, float *out, const float *x, const float *w, int n,
                               int d, float eps, int threads) {
    int i;
    threads = (double)n * (double)d < 65536.0 ? 1 : kvmem__threads(threads);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (i = 0; i < n; i++) row(out + (size_t)i * (size_t)d, x + (size_t)i * (size_t)d, w, d, eps);
}
static void kvmem__rmsnorm_row_plain(float *out, const float *x, const float *w, int d, float eps) {
    const float a = 1 / sqrtf(kvmem__dot_plain(x, x, d) / (float)d + eps);
    int j;
    for (j = 0; j < d; j++) out[j] = w ? x[j] * a * w[j] : x[j] * a;
}
static void kvmem__rmsnorm_plain(float *out, const float *x, const float *w, int n, int d, float eps,
                                 int threads) {
    kvmem__rmsnorm_run(kvmem__rmsnorm_row_plain, out, x, w, n, d, eps, threads);
}
/* silu(g) = g / (1 + e^-g). gelu by tanh is g / (1 + e^-2u), u = sqrt(2 / pi) (g + 0.044715 g^3). */
typedef void (*kvmem__glu_fn)(float *out, const float *gate, const float *up, size_t count, kvmem_act act);
static void kvmem__glu_run(kvmem__glu_fn piece, float *out, const float *gate, const float *up, size_t count,
                           kvmem_act act, int threads) {
    const long pieces = (long)((count + 8191) / 8192);
    long i;
    threads = pieces < 8 ? 1 : kvmem__threads(threads);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (i = 0; i < pieces; i++) {
        const size_t at = (size_t)i * 8192;
        piece(out + at, gate + at, up + at, KVMEM__MIN((size_t)8192, count - at), act);
    }
}
static void kvmem__glu_piece_plain(float *out, const float *gate, const float *up, size_t count, kvmem_act act) {
    size_t i;
    for (i = 0; i < count; i++) {
        const float g = gate[i];
        const float u = act == KVMEM_SILU ? g : 1.5957691216f * (g + 0.044715f * g * g * g);
        out[i] = g / (1 + kvmem__expf(-u)) * up[i];
    }
}
static void kvmem__glu_plain(float *out, const float *gate, const float *up, size_t count, kvmem_act act,
                             int threads) {
    kvmem__glu_run(kvmem__glu_piece_plain, out, gate, up, count, act, threads);
}
static void kvmem__embed_rows(const kvmem_backend *b, float *out, const kvmem_tensor *w, const int *ids, int n,
                        int threads) {
    int i;
    (void)b;
    (void)threads;
    for (i = 0; i < n; i++) kvmem__tensor_row(out + (size_t)i * (size_t)w->ne[0], w, ids[i]);
}

/* ==== >>matmul : out = x . transposed W, for every tensor type ===================================
   out[i][r] = sum_k x[i][k] W[r][k]. With quantized weights the activations are quantized, too, in
   blocks of 32 of a row: x = d q, d = max|x| / 127, q rounded to nearest even. A block of weights and a
   block of activations meet in integers, exactly, and blocks are added in float in rising order:

       out = sum over blocks  d (s sum q (code - off) + m sum q)

   The fast paths have two shapes. Few rows of x (decoding): every weight is used once or thrice, memory is the
   limit, so rows of W stream through registers. Many (a prompt): a tile of 32 rows of W is unpacked once
   into two panels (four values of each of 16 rows side by side, which is what the integer dot instructions
   eat), stays in the first-level cache, and all rows of x pass by it in groups of 8. */
enum { KVMEM__HALVES = 1, KVMEM__EVEN = 2 };
enum { KVMEM__FEW = 3, KVMEM__TILE = 32, KVMEM__GROUP = 8, KVMEM__KC = 512, KVMEM__KC_FLOAT = 128 };

typedef struct kvmem__mm {
    const kvmem_tensor *w;
    const kvmem__quant *t;
    const float *x;
    float *out;
    int n, rows, cols;
    size_t row_bytes;
    int integers;  /* activations are quantized */
    int per;       /* scales in a block of 32: 1 or 2 */
    int blocks, padded; /* blocks of 32 in a row, and rounded up to 8 */
    /* activations, lane u of group g, block b, half h (per of them): q[(g padded + b) G + u][32],
       d[(g padded + b) G + u]; start = -off * sum q and fsum = d * sum q (times -off for types without
       mins) at [((g padded + b) per + h) G + u]. Padding is zero. */
    int group;     /* G: 8, or 1 for few rows */
    int order;     /* of codes when G is 1: 0, KVMEM__HALVES: of four blocks first all first halves, then
                      all second ones; KVMEM__EVEN: of four blocks the first, third, second, fourth */
    int8_t *q;
    float *d, *fsum;
    int32_t *start;
    uint8_t *panel; /* scratch of the threads, kvmem__mm_part bytes each */
} kvmem__mm;

#define KVMEM__PANEL_BYTES ((size_t)KVMEM__KC * 24) /* of 16 rows */
/* Each thread's part: two panels, then sums [n][32] of the tile, kept together because rows of out are
   far apart. */
static size_t kvmem__mm_part(const kvmem__mm *m) {
    const size_t lanes = ((size_t)m->n + 7) / 8 * 8;
    return m->n > KVMEM__FEW ? 2 * KVMEM__PANEL_BYTES + lanes * KVMEM__TILE * sizeof(float) : 0;
}

static void kvmem__mm_shape(kvmem__mm *m, const kvmem_tensor *w, int n) {
    memset(m, 0, sizeof *m);
    m->w = w;
    m->t = kvmem__quant_of(w->type);
    m->n = n;
    m->rows = (int)w->ne[1];
    m->cols = (int)w->ne[0];
    m->row_bytes = kvmem__tensor_row_bytes(w);
    m->integers = m->t->off >= 0;
    if (w->type == KVMEM_Q8_SPLIT && (m->cols % 32 != 0 || w->group % 16 != 0)) m->integers = 0;
    m->per = m->t->per16 && !(w->type == KVMEM_Q8_SPLIT && w->group % 32 == 0) ? 2 : 1;
    m->blocks = m->cols / 32;
    m->padded = (m->blocks + 7) / 8 * 8;
    m->group = n <= KVMEM__FEW ? 1 : KVMEM__GROUP;
}
/* Carves the scratch up; p NULL only counts. Every array is a multiple of 64 bytes. */
static size_t kvmem__mm_carve(kvmem__mm *m, void *p, int threads) {
    const size_t rows = ((size_t)m->n + (size_t)m->group - 1) / (size_t)m->group * (size_t)m->group;
    const size_t blocks = m->integers ? (rows * (size_t)m->padded + 7) / 8 * 8 : 0;
    const size_t sums = (blocks * (size_t)m->per * 4 + 63) / 64 * 64, ds = (blocks * 4 + 63) / 64 * 64;
    const size_t panels = (size_t)kvmem__threads(threads) * kvmem__mm_part(m);
    const double about = (double)m->n * ((double)m->cols * 2 + 2048) +
                         (double)kvmem__threads(threads) * (65536.0 + (double)m->n * 128);
    if (about > (double)SIZE_MAX / 4) return SIZE_MAX; /* more than an address can tell: no such memory */
    if (p) {
        uint8_t *at = (uint8_t *)p + (64 - (size_t)((uintptr_t)p & 63)) % 64;
        m->q = (int8_t *)at;
        m->d = (float *)(void *)(at + blocks * 32);
        m->fsum = (float *)(void *)(at + blocks * 32 + ds);
        m->start = (int32_t *)(void *)(at + blocks * 32 + ds + sums);
        m->panel = at + blocks * 32 + ds + 2 * sums;
    }
    return blocks * 32 + ds + 2 * sums + panels + 64;
}
static size_t kvmem__mm_scratch(const kvmem_backend *b, const kvmem_tensor *w, int n, int threads) {
    kvmem__mm m;
    (void)b;
    kvmem__mm_shape(&m, w, n);
    return kvmem__mm_carve(&m, NULL, threads);
}

/* Nearest integer, ties to even, of |v| < 2^22: adding 1.5 * 2^23 leaves it in the low mantissa bits. */
static int kvmem__nearest(float v) {
    uint32_t u;
    v += 12582912.0f;
    memcpy(&u, &v, 4);
    return (int)(u & 0x7fffff) - 0x400000;
}
/* One block of activations. Infinite and NaN values give d infinite or NaN with codes 0, so that the
   product is NaN; blocks below 1e-36 count as zero. sum (2): sums of the codes of the halves. */
static float kvmem__quantize32_plain(int8_t *q, const float *x, int32_t *sum) {
    uint32_t big = 0, u;
    float top, inv;
    int i;
    for (i = 0; i < 32; i++) { /* the largest magnitude by its bits: NaN is above infinity */
        memcpy(&u, &x[i], 4);
        u &= 0x7fffffffu;
        if (u > big) big = u;
    }
    memcpy(&top, &big, 4);
    inv = top >= 1e-36f && top <= FLT_MAX ? 127 / top : 0;
    sum[0] = sum[1] = 0;
    for (i = 0; i < 32; i++) {
        q[i] = inv > 0 ? (int8_t)kvmem__nearest(x[i] * inv) : (int8_t)0;
        sum[i / 16] += q[i];
    }
    return top >= 1e-36f || top != top ? top * (1.0f / 127) : 0;
}
typedef float (*kvmem__quantize32_fn)(int8_t *q, const float *x, int32_t *sum);

/* Row i of x. Inlined with a constant quantize32, so that each path gets one loop. */
KVMEM__INLINE void kvmem__quantize_row(const kvmem__mm *m, int i, kvmem__quantize32_fn quantize32) {
    const size_t G = (size_t)m->group, u = (size_t)i % G, first = (size_t)i / G * (size_t)m->padded;
    const float *x = m->x + (size_t)i * (size_t)m->cols;
    const float times = m->t->has_min ? 1.0f : (float)-m->t->off;
    size_t at;
    int8_t q[32];
    int32_t sum[2];
    int b, h;
    for (b = 0; b < m->padded; b++) {
        at = (first + (size_t)b) * G + u;
        if (b < m->blocks && i < m->n) m->d[at] = quantize32(q, x + (size_t)b * 32, sum);
        else {
            memset(q, 0, 32);
            m->d[at] = 0;
            sum[0] = sum[1] = 0;
        }
        if (m->order == KVMEM__HALVES) {
            memcpy(m->q + (first + (size_t)(b & ~3)) * 32 + b % 4 * 16, q, 16);
            memcpy(m->q + (first + (size_t)(b & ~3)) * 32 + b % 4 * 16 + 64, q + 16, 16);
        } else if (m->order == KVMEM__EVEN)
            memcpy(m->q + (first + (size_t)((b & ~3) + (b % 4 & 1) * 2 + b % 4 / 2)) * 32, q, 32);
        else memcpy(m->q + at * 32, q, 32);
        if (m->per == 1) sum[0] += sum[1];
        for (h = 0; h < m->per; h++) {
            const size_t s = ((first + (size_t)b) * (size_t)m->per + (size_t)h) * G + u;
            m->start[s] = -m->t->off * sum[h];
            m->fsum[s] = m->d[at] * (float)sum[h] * times;
        }
    }
}
static void kvmem__quantize_row_plain(const kvmem__mm *m, int i) {
    kvmem__quantize_row(m, i, kvmem__quantize32_plain);
}
static const uint8_t *kvmem__mm_row(const kvmem__mm *m, int r) { return m->w->data + (size_t)r * m->row_bytes; }
/* The scales of a row of KVMEM_Q8_SPLIT. */
static const uint8_t *kvmem__mm_scales(const kvmem__mm *m, int r) {
    if (m->w->type != KVMEM_Q8_SPLIT) return NULL;
    return m->w->scales + (size_t)r * (size_t)(m->cols / m->w->group) * 4;
}

/* Row r of W against all rows of x, plain twin. Activations come with G = 1 or 8. */
static void kvmem__mm_row_plain(const kvmem__mm *m, int r) {
    uint8_t code[256];
    float s[16], mn[16];
    int c0, b, i, j, h;
    for (i = 0; i < m->n; i++) m->out[(size_t)i * (size_t)m->rows + (size_t)r] = 0;
    for (c0 = 0; c0 < m->cols; c0 += 256) {
        const int n = KVMEM__MIN(256, m->cols - c0);
        kvmem__unpack(m->w->type, kvmem__mm_row(m, r), kvmem__mm_scales(m, r), m->w->group, c0, n, code, s, mn);
        for (i = 0; i < m->n; i++) {
            const size_t G = (size_t)m->group, first = (size_t)i / G * (size_t)m->padded + (size_t)c0 / 32;
            float acc = m->out[(size_t)i * (size_t)m->rows + (size_t)r];
            for (b = 0; b < n / 32; b++) {
                const size_t at = (first + (size_t)b) * G + (size_t)i % G;
                const int8_t *q = m->q + at * 32;
                int32_t dot[2] = { 0, 0 }, sum[2] = { 0, 0 };
                for (h = 0; h < 2; h++)
                    for (j = 16 * h; j < 16 * h + 16; j++) {
                        dot[h] += ((int)code[32 * b + j] - m->t->off) * q[j];
                        sum[h] += q[j];
                    }
                if (m->per == 1) acc += m->d[at] * (s[2 * b] * (float)(dot[0] + dot[1]));
                else acc += m->d[at] * (s[2 * b] * (float)dot[0] + s[2 * b + 1] * (float)dot[1]);
                if (m->t->has_min)
                    acc += m->d[at] * (mn[2 * b] * (float)sum[0] + mn[2 * b + 1] * (float)sum[1]);
            }
            m->out[(size_t)i * (size_t)m->rows + (size_t)r] = acc;
        }
    }
}
/* Row r of a float tensor, or of a split one with a group that blocks of 32 cannot follow. */
static void kvmem__mm_row_float_plain(const kvmem__mm *m, int r) {
    float w[256];
    int c0, i, j;
    for (i = 0; i < m->n; i++) m->out[(size_t)i * (size_t)m->rows + (size_t)r] = 0;
    for (c0 = 0; c0 < m->cols; c0 += 256) {
        const int n = KVMEM__MIN(256, m->cols - c0);
        if (m->w->type == KVMEM_Q8_SPLIT) {
            const uint8_t *p = kvmem__mm_row(m, r), *s = kvmem__mm_scales(m, r);
            for (j = 0; j < n; j++)
                w[j] = kvmem__lef32(s + (size_t)((c0 + j) / m->w->group) * 4) *
                       (float)((int)(p[c0 + j] ^ 128) - 128);
        } else kvmem__decode(m->t, w, kvmem__mm_row(m, r) + (size_t)c0 * (size_t)m->t->bytes, (size_t)n);
        for (i = 0; i < m->n; i++)
            m->out[(size_t)i * (size_t)m->rows + (size_t)r] +=
                kvmem__dot_plain(w, m->x + (size_t)i * (size_t)m->cols + (size_t)c0, n);
    }
}
/* Rows [r0, r1) of W. */
static void kvmem__mm_rows_plain(const kvmem__mm *m, int r0, int r1, uint8_t *panel) {
    int r;
    (void)panel;
    for (r = r0; r < r1; r++) {
        if (m->integers) kvmem__mm_row_plain(m, r);
        else kvmem__mm_row_float_plain(m, r);
    }
}

/* The frame of every path: quantize x, then tiles of W's rows in parallel. */
typedef void (*kvmem__mm_rows_fn)(const kvmem__mm *m, int r0, int r1, uint8_t *panel);
typedef void (*kvmem__mm_quantize_fn)(const kvmem__mm *m, int i);
static void kvmem__mm_run(kvmem__mm *m, kvmem__mm_quantize_fn quantize, kvmem__mm_rows_fn rows, int threads) {
    const int tile = KVMEM__TILE, tiles = (m->rows + tile - 1) / tile;
    const int lanes = (m->n + m->group - 1) / m->group * m->group; /* zeros fill the last group */
    const int many = m->integers && m->n > KVMEM__FEW, step = KVMEM__MAX(1, tiles / (8 * kvmem__threads(threads)));
    int i;
    threads = kvmem__threads(threads);
    if ((double)m->rows * (double)m->cols * (double)m->n < 65536.0) threads = 1; /* not worth waking */
    (void)step;
    if (m->integers && !many)
        for (i = 0; i < lanes; i++) quantize(m, i);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        uint8_t *panel = m->panel + (size_t)omp_get_thread_num() * kvmem__mm_part(m);
        int k;
        if (many) {
#pragma omp for schedule(static)
            for (k = 0; k < lanes; k++) quantize(m, k);
        }
        /* dynamic: a thread that the system has put aside does not hold up the others */
#pragma omp for schedule(dynamic, step)
        for (k = 0; k < tiles; k++) rows(m, k * tile, KVMEM__MIN(m->rows, (k + 1) * tile), panel);
    }
#else
    if (many)
        for (i = 0; i < lanes; i++) quantize(m, i);
    for (i = 0; i < tiles; i++) rows(m, i * tile, KVMEM__MIN(m->rows, (i + 1) * tile), m->panel);
#endif
}
static void kvmem__mm_start(float *out, const kvmem_tensor *w, const float *x, int n, void *scratch,
                            int threads, int order, kvmem__mm_quantize_fn quantize, kvmem__mm_rows_fn rows) {
    kvmem__mm m;
    if (n <= 0) return;
    kvmem__mm_shape(&m, w, n);
    kvmem__mm_carve(&m, scratch, threads);
    m.order = n <= KVMEM__FEW ? order : 0;
    m.x = x;
    m.out = out;
    kvmem__mm_run(&m, quantize, rows, threads);
}
static void kvmem__matmul_plain(const kvmem_backend *b, float *out, const kvmem_tensor *w, const float *x,
                                int n, void *scratch, int threads) {
    (void)b;
    kvmem__mm_start(out, w, x, n, scratch, threads, 0, kvmem__quantize_row_plain, kvmem__mm_rows_plain);
}
#endif /* KVMEM_NO_DECODER */

#if KVMEM__X86
/* ==== >>kernels_x86 : the vectors by AVX2 and AVX-512 ============================================
   The AVX-512 table uses most of the AVX2 ones, too: at these lengths memory is the limit. */
#define KVMEM__LDI(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))

KVMEM__AVX2 KVMEM__INLINE float kvmem__hsum_avx2(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
KVMEM__AVX2 static float kvmem__dot_avx2(const float *a, const float *b, int n) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    float tail = 0;
    int i;
    for (i = 0; i + 32 <= n; i += 32) {
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
        s2 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 16), _mm256_loadu_ps(b + i + 16), s2);
        s3 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 24), _mm256_loadu_ps(b + i + 24), s3);
    }
    for (; i + 8 <= n; i += 8) s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
    for (; i < n; i++) tail += a[i] * b[i];
    return kvmem__hsum_avx2(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3))) + tail;
}
KVMEM__AVX2 static void kvmem__axpy_avx2(float *y, float a, const float *x, int n) {
    const __m256 va = _mm256_set1_ps(a);
    int i;
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_fmadd_ps(va, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++) y[i] += a * x[i];
}
KVMEM__AVX2 static void kvmem__scale_avx2(float *y, float a, int n) {
    const __m256 va = _mm256_set1_ps(a);
    int i;
    for (i = 0; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_mul_ps(va, _mm256_loadu_ps(y + i)));
    for (; i < n; i++) y[i] *= a;
}
KVMEM__AVX2 static float kvmem__max_avx2(const float *x, int n) {
    __m256 v = _mm256_set1_ps(-INFINITY);
    float m = -INFINITY, lane[8];
    int i;
    for (i = 0; i + 8 <= n; i += 8) v = _mm256_max_ps(_mm256_loadu_ps(x + i), v);
    for (; i < n; i++) m = x[i] > m ? x[i] : m;
    _mm256_storeu_ps(lane, v);
    for (i = 0; i < 8; i++) m = lane[i] > m ? lane[i] : m;
    return m;
}
/* kvmem__expf's polynomial; 2^n is applied in two halves, so that n = 128 needs no case. */
KVMEM__AVX2 KVMEM__INLINE __m256 kvmem__exp_avx2(__m256 x) {
    const __m256 log2e = _mm256_set1_ps(1.44269504089f);
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i e = _mm256_cvtps_epi32(n), e0 = _mm256_srai_epi32(e, 1), e1 = _mm256_sub_epi32(e, e0);
    const __m256i bias = _mm256_set1_epi32(127);
    __m256 f = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x), p;
    f = _mm256_mul_ps(_mm256_fmadd_ps(n, _mm256_set1_ps(2.12194440e-4f), f), log2e);
    p = _mm256_fmadd_ps(_mm256_set1_ps(KVMEM__EXP_C6), f, _mm256_set1_ps(KVMEM__EXP_C5));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(KVMEM__EXP_C4));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(KVMEM__EXP_C3));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(KVMEM__EXP_C2));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(KVMEM__EXP_C1));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(KVMEM__EXP_C0));
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e0, bias), 23)));
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e1, bias), 23)));
    p = _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(-87.3f), _CMP_LE_OQ), p);
    return _mm256_blendv_ps(p, _mm256_set1_ps(INFINITY), _mm256_cmp_ps(x, _mm256_set1_ps(88.7f), _CMP_GT_OQ));
}
KVMEM__AVX2 static float kvmem__exp_sum_avx2(float *p, const float *s, float m, int n) {
    const __m256 vm = _mm256_set1_ps(m);
    __m256 sum = _mm256_setzero_ps(), e;
    float tail = 0;
    int i;
    for (i = 0; i + 8 <= n; i += 8) {
        e = kvmem__exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(s + i), vm));
        _mm256_storeu_ps(p + i, e);
        sum = _mm256_add_ps(sum, e);
    }
    for (; i < n; i++) tail += p[i] = kvmem__expf(s[i] - m);
    return kvmem__hsum_avx2(sum) + tail;
}
KVMEM__AVX512 static float kvmem__max_avx512(const float *x, int n) {
    __m512 v = _mm512_set1_ps(-INFINITY);
    int i;
    for (i = 0; i < n; i += 16) {
        const __mmask16 some = (__mmask16)(n - i >= 16 ? 0xffffu : (1u << (n - i)) - 1);
        v = _mm512_max_ps(_mm512_mask_loadu_ps(v, some, x + i), v);
    }
    return _mm512_reduce_max_ps(v);
}
/* The same polynomial; 2^n by one instruction. */
KVMEM__AVX512 KVMEM__INLINE __m512 kvmem__exp_avx512(__m512 x) {
    const __m512 log2e = _mm512_set1_ps(1.44269504089f);
    const __mmask16 some = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3f), _CMP_NLE_UQ);
    const __m512 y = _mm512_min_ps(_mm512_set1_ps(100), x); /* infinity from 88.7 on, NaN stays */
    const __m512 n = _mm512_cvtepi32_ps(_mm512_cvtps_epi32(_mm512_mul_ps(y, log2e))); /* nearest */
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), y), p;
    f = _mm512_mul_ps(_mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), f), log2e);
    p = _mm512_fmadd_ps(_mm512_set1_ps(KVMEM__EXP_C6), f, _mm512_set1_ps(KVMEM__EXP_C5));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(KVMEM__EXP_C4));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(KVMEM__EXP_C3));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(KVMEM__EXP_C2));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(KVMEM__EXP_C1));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(KVMEM__EXP_C0));
    return _mm512_maskz_scalef_ps(some, p, n);
}
KVMEM__AVX512 static float kvmem__exp_sum_avx512(float *p, const float *s, float m, int n) {
    const __m512 vm = _mm512_set1_ps(m);
    __m512 a = _mm512_setzero_ps(), b = a, e;
    int i;
    for (i = 0; i + 32 <= n; i += 32) {
        e = kvmem__exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(s + i), vm));
        _mm512_storeu_ps(p + i, e);
        a = _mm512_add_ps(a, e);
        e = kvmem__exp_avx512(_mm512_sub_ps(_mm512_loadu_ps(s + i + 16), vm));
        _mm512_storeu_ps(p + i + 16, e);
        b = _mm512_add_ps(b, e);
    }
    for (; i < n; i += 16) {
        const __mmask16 some = (__mmask16)(n - i >= 16 ? 0xffffu : (1u << (n - i)) - 1);
        e = _mm512_maskz_mov_ps(some, kvmem__exp_avx512(_mm512_sub_ps(_mm512_maskz_loadu_ps(some, s + i), vm)));
        _mm512_mask_storeu_ps(p + i, some, e);
        if (i % 32) b = _mm512_add_ps(b, e);
        else a = _mm512_add_ps(a, e);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}
KVMEM__AVX2 static void kvmem__softcap_avx2(float *y, float cap, size_t count) {
    const __m256 one = _mm256_set1_ps(1), two = _mm256_set1_ps(2), vcap = _mm256_set1_ps(cap);
    const __m256 sign = _mm256_set1_ps(-0.0f);
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        const __m256 t = _mm256_div_ps(_mm256_loadu_ps(y + i), vcap), q = _mm256_mul_ps(t, t);
        const __m256 a = _mm256_andnot_ps(sign, t);
        __m256 s = _mm256_fmadd_ps(q, _mm256_set1_ps(0.02186949f), _mm256_set1_ps(-0.05396825f)), r;
        s = _mm256_fmadd_ps(q, s, _mm256_set1_ps(0.13333333f));
        s = _mm256_fmadd_ps(q, s, _mm256_set1_ps(-0.33333333f));
        s = _mm256_fmadd_ps(_mm256_mul_ps(t, q), s, t);
        r = _mm256_div_ps(two, _mm256_add_ps(kvmem__exp_avx2(_mm256_mul_ps(two, a)), one));
        r = _mm256_or_ps(_mm256_sub_ps(one, r), _mm256_and_ps(sign, t));
        s = _mm256_blendv_ps(r, s, _mm256_cmp_ps(a, _mm256_set1_ps(0.25f), _CMP_LT_OQ));
        _mm256_storeu_ps(y + i, _mm256_mul_ps(vcap, s));
    }
    kvmem__softcap_plain(y + i, cap, count - i);
}
#ifndef KVMEM_NO_DECODER
KVMEM__AVX2 static void kvmem__add_avx2(float *y, const float *x, size_t count) {
    size_t i;
    for (i = 0; i + 8 <= count; i += 8)
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    for (; i < count; i++) y[i] += x[i];
}
KVMEM__AVX2 static void kvmem__rmsnorm_row_avx2(float *out, const float *x, const float *w, int d, float eps) {
    const float a = 1 / sqrtf(kvmem__dot_avx2(x, x, d) / (float)d + eps);
    const __m256 va = _mm256_set1_ps(a);
    int j;
    for (j = 0; j + 8 <= d; j += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + j), va);
        if (w) v = _mm256_mul_ps(v, _mm256_loadu_ps(w + j));
        _mm256_storeu_ps(out + j, v);
    }
    for (; j < d; j++) out[j] = w ? x[j] * a * w[j] : x[j] * a;
}
KVMEM__AVX2 static void kvmem__glu_piece_avx2(float *out, const float *gate, const float *up, size_t count,
                                              kvmem_act act) {
    const __m256 one = _mm256_set1_ps(1);
    size_t i;
    for (i = 0; i + 8 <= count; i += 8) {
        const __m256 g = _mm256_loadu_ps(gate + i);
        __m256 u = g;
        if (act == KVMEM_GELU_TANH) {
            u = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_mul_ps(g, g), g), _mm256_set1_ps(0.044715f), g);
            u = _mm256_mul_ps(u, _mm256_set1_ps(1.5957691216f));
        }
        u = kvmem__exp_avx2(_mm256_sub_ps(_mm256_setzero_ps(), u));
        u = _mm256_div_ps(g, _mm256_add_ps(one, u));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(u, _mm256_loadu_ps(up + i)));
    }
    kvmem__glu_piece_plain(out + i, gate + i, up + i, count - i, act);
}
static void kvmem__rmsnorm_avx2(float *out, const float *x, const float *w, int n, int d, float eps,
                                int threads) {
    kvmem__rmsnorm_run(kvmem__rmsnorm_row_avx2, out, x, w, n, d, eps, threads);
}
static void kvmem__glu_avx2(float *out, const float *gate, const float *up, size_t count, kvmem_act act,
                            int threads) {
    kvmem__glu_run(kvmem__glu_piece_avx2, out, gate, up, count, act, threads);
}

/* ==== >>matmul_x86 : the matrix product by AVX2 and AVX-512 ======================================
   Codes and scales of 256 weights are read by the same AVX2 functions on both; `type` is a constant where
   they are inlined, so that each type gets its own loop. */
KVMEM__AVX2 KVMEM__INLINE __m256i kvmem__nibbles(const uint8_t *p) { /* codes 0..15 low, 16..31 high */
    const __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(v), _mm_srli_epi16(v, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}
KVMEM__AVX2 KVMEM__INLINE __m256i kvmem__fifth_bits(const uint8_t *p) { /* bit i of 32 as 16 in byte i */
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2,
                                            2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    __m256i v;
    int32_t u;
    memcpy(&u, p, 4);
    v = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(u), spread), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(v, bit), _mm256_set1_epi8(16));
}
KVMEM__AVX2 KVMEM__INLINE __m256i kvmem__bits(__m256i v, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(v, shift), _mm256_set1_epi8((char)mask));
}
/* Block b (0..7) of 256 codes at p, as unsigned bytes. Twin: kvmem__unpack. */
KVMEM__AVX2 KVMEM__INLINE __m256i kvmem__codes(const int type, const uint8_t *p, int b) {
    const __m256i top = _mm256_set1_epi8((char)-128);
    const uint8_t *half = p + b / 4 * 32, *pair = p + b / 2 * 32;
    switch (type) {
    case KVMEM_Q8_SPLIT: return _mm256_xor_si256(KVMEM__LDI(p + b * 32), top);
    case KVMEM_Q8_0: return _mm256_xor_si256(KVMEM__LDI(p + b * 34 + 2), top);
    case KVMEM_Q4_0: return kvmem__nibbles(p + b * 18 + 2);
    case KVMEM_Q4_1: return kvmem__nibbles(p + b * 20 + 4);
    case KVMEM_Q5_0: return _mm256_or_si256(kvmem__nibbles(p + b * 22 + 6), kvmem__fifth_bits(p + b * 22 + 2));
    case KVMEM_Q5_1: return _mm256_or_si256(kvmem__nibbles(p + b * 24 + 8), kvmem__fifth_bits(p + b * 24 + 4));
    case KVMEM_Q2_K: return kvmem__bits(KVMEM__LDI(half + 16), b % 4 * 2, 3);
    case KVMEM_Q3_K:
        return _mm256_or_si256(kvmem__bits(KVMEM__LDI(half + 32), b % 4 * 2, 3),
                               _mm256_slli_epi16(kvmem__bits(KVMEM__LDI(p), b, 1), 2));
    case KVMEM_Q4_K: return kvmem__bits(KVMEM__LDI(pair + 16), b % 2 * 4, 15);
    case KVMEM_Q5_K:
        return _mm256_or_si256(kvmem__bits(KVMEM__LDI(pair + 48), b % 2 * 4, 15),
                               _mm256_slli_epi16(kvmem__bits(KVMEM__LDI(p + 16), b, 1), 4));
    default: /* KVMEM_Q6_K */
        return _mm256_or_si256(
            kvmem__bits(KVMEM__LDI(p + b / 4 * 64 + b % 2 * 32), b % 4 / 2 * 4, 15),
            _mm256_slli_epi16(kvmem__bits(KVMEM__LDI(half + 128), b % 4 * 2, 3), 4));
    }
}
KVMEM__AVX2 KVMEM__INLINE float kvmem__half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
}
/* The float16 at p, p + step, ... (8 of them). */
KVMEM__AVX2 KVMEM__INLINE __m256 kvmem__halves(const uint8_t *p, int step) {
    uint16_t h[8];
    __m128i v;
    int i;
    for (i = 0; i < 8; i++) memcpy(&h[i], p + i * step, 2);
    v = _mm_cvtsi32_si128(h[0]);
    v = _mm_insert_epi16(v, (short)h[1], 1);
    v = _mm_insert_epi16(v, (short)h[2], 2);
    v = _mm_insert_epi16(v, (short)h[3], 3);
    v = _mm_insert_epi16(v, (short)h[4], 4);
    v = _mm_insert_epi16(v, (short)h[5], 5);
    v = _mm_insert_epi16(v, (short)h[6], 6);
    v = _mm_insert_epi16(v, (short)h[7], 7);
    return _mm256_cvtph_ps(v);
}
KVMEM__AVX2 KVMEM__INLINE __m256 kvmem__bytes_ps(__m128i v) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
}
/* Scales of KVMEM_Q8_SPLIT. group: blocks (per 1) or half blocks (per 2) that share one; the negative of
   its logarithm if it is a power of two, which is the fast case. */
KVMEM__AVX2 KVMEM__INLINE void kvmem__split_scales(const int per, const uint8_t *gs, int b0, int group, int blocks,
                                                   __m256 *s) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int last = blocks * per - 1;
    float f[8];
    int h, i;
    for (h = 0; h < per; h++) {
        const int at = b0 * per + 8 * h;
        if (group <= 0) {
            const int i0 = KVMEM__MIN(at, last) >> -group, n = (last >> -group) - i0 + 1;
            const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
            const __m256 v = _mm256_maskload_ps((const float *)(const void *)(gs + (size_t)i0 * 4), mask);
            s[h] = _mm256_permutevar8x32_ps(v, _mm256_srl_epi32(lane, _mm_cvtsi32_si128(-group)));
            continue;
        }
        for (i = 0; i < 8; i++) memcpy(&f[i], gs + (size_t)(KVMEM__MIN(at + i, last) / group) * 4, 4);
        s[h] = _mm256_loadu_ps(f);
    }
}
static int kvmem__group(const kvmem__mm *m, int per) {
    const int group = m->w->group / (32 / per);
    int log2 = 0;
    while (group >> log2 > 1) log2++;
    return group == 1 << log2 ? -log2 : group;
}
/* Scales and mins of 256 weights: s[0], m[0] one a block, or s[0..1], m[0..1] one a half block.
   gs: scales of KVMEM_Q8_SPLIT, b0 the chunk's first block. */
KVMEM__AVX2 KVMEM__INLINE void kvmem__scales(const int type, const int per, const uint8_t *p,
                                             const uint8_t *gs, int b0, int group, int blocks, __m256 *s,
                                             __m256 *m) {
    __m256 d, dmin;
    __m128i v, u;
    __m128 h;
    int32_t head;
    switch (type) {
    case KVMEM_Q8_SPLIT:
        kvmem__split_scales(per, gs, b0, group, blocks, s);
        break;
    case KVMEM_Q8_0: s[0] = kvmem__halves(p, 34); break;
    case KVMEM_Q4_0: s[0] = kvmem__halves(p, 18); break;
    case KVMEM_Q5_0: s[0] = kvmem__halves(p, 22); break;
    case KVMEM_Q4_1: s[0] = kvmem__halves(p, 20); m[0] = kvmem__halves(p + 2, 20); break;
    case KVMEM_Q5_1: s[0] = kvmem__halves(p, 24); m[0] = kvmem__halves(p + 2, 24); break;
    case KVMEM_Q2_K:
        d = _mm256_set1_ps(kvmem__half(p + 80));
        dmin = _mm256_set1_ps(-kvmem__half(p + 82));
        v = _mm_loadu_si128((const __m128i *)(const void *)p);
        {
            const __m128i low = _mm_and_si128(v, _mm_set1_epi8(15));
            const __m128i high = _mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15));
            s[0] = _mm256_mul_ps(d, kvmem__bytes_ps(low));
            s[1] = _mm256_mul_ps(d, kvmem__bytes_ps(_mm_srli_si128(low, 8)));
            m[0] = _mm256_mul_ps(dmin, kvmem__bytes_ps(high));
            m[1] = _mm256_mul_ps(dmin, kvmem__bytes_ps(_mm_srli_si128(high, 8)));
        }
        break;
    case KVMEM_Q3_K: /* words a0 a1 a2: low bits in both nibbles of a0 a1, high bits in pairs of a2 */
        d = _mm256_set1_ps(kvmem__half(p + 108));
        v = _mm_loadu_si128((const __m128i *)(const void *)(p + 94)); /* two bytes early: not past the block */
        v = _mm_srli_si128(v, 2);
        u = _mm_srlv_epi32(_mm_sllv_epi32(_mm_shuffle_epi32(v, 0xaa), _mm_setr_epi32(4, 2, 0, 0)),
                           _mm_setr_epi32(0, 0, 0, 2));
        v = _mm_srlv_epi32(_mm_shuffle_epi32(v, 0x44), _mm_setr_epi32(0, 0, 4, 4));
        v = _mm_or_si128(_mm_and_si128(v, _mm_set1_epi8(15)), _mm_and_si128(u, _mm_set1_epi8(48)));
        v = _mm_sub_epi8(v, _mm_set1_epi8(32));
        s[0] = _mm256_mul_ps(d, kvmem__bytes_ps(v));
        s[1] = _mm256_mul_ps(d, kvmem__bytes_ps(_mm_srli_si128(v, 8)));
        break;
    case KVMEM_Q4_K:
    case KVMEM_Q5_K: /* words: scales 0-3, mins 0-3, {scale|min} 4-7; two high bits each of the latter in the former */
        memcpy(&head, p, 4);
        h = _mm_cvtph_ps(_mm_cvtsi32_si128(head));
        d = _mm256_broadcastss_ps(h);
        dmin = _mm256_broadcastss_ps(_mm_xor_ps(_mm_movehdup_ps(h), _mm_set1_ps(-0.0f)));
        v = _mm_loadu_si128((const __m128i *)(const void *)(p + 4));
        u = _mm_and_si128(_mm_srlv_epi32(_mm_shuffle_epi32(v, 0xaa), _mm_setr_epi32(0, 4, 0, 0)), _mm_set1_epi8(15));
        u = _mm_or_si128(u, _mm_and_si128(_mm_srli_epi32(v, 2), _mm_set1_epi8(48)));
        v = _mm_unpacklo_epi32(_mm_and_si128(v, _mm_set1_epi8(63)), u);
        s[0] = _mm256_mul_ps(d, kvmem__bytes_ps(v));
        m[0] = _mm256_mul_ps(dmin, kvmem__bytes_ps(_mm_srli_si128(v, 8)));
        break;
    default: /* KVMEM_Q6_K */
        d = _mm256_set1_ps(kvmem__half(p + 208));
        v = _mm_loadu_si128((const __m128i *)(const void *)(p + 192));
        s[0] = _mm256_mul_ps(d, kvmem__bytes_ps(v));
        s[1] = _mm256_mul_ps(d, kvmem__bytes_ps(_mm_srli_si128(v, 8)));
    }
}
/* Where the 256 weights of chunk c of a row start. A last chunk of fewer than 8 blocks is copied into tail
   (KVMEM__TAIL zeroed bytes), so that nothing past the row is read; activations there are zero. */
#define KVMEM__TAIL 272
KVMEM__INLINE const uint8_t *kvmem__chunk(const kvmem__mm *m, const uint8_t *row, int c, uint8_t *tail) {
    const size_t size = (size_t)(256 / m->t->block) * (size_t)m->t->bytes;
    const uint8_t *p = row + (size_t)c * size;
    if (8 * c + 8 <= m->blocks) return p;
    memset(tail, 0, KVMEM__TAIL);
    memcpy(tail, p, m->row_bytes - (size_t)c * size);
    return tail;
}

KVMEM__AVX2 static float kvmem__quantize32_avx2(int8_t *q, const float *x, int32_t *sum) {
    const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8), c = _mm256_loadu_ps(x + 16);
    const __m256 d = _mm256_loadu_ps(x + 24);
    const __m256i mask = _mm256_set1_epi32(0x7fffffff), ones = _mm256_set1_epi16(1);
    __m256i big = _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(a), mask),
                                   _mm256_and_si256(_mm256_castps_si256(b), mask));
    __m256i v;
    __m128i t;
    __m256 vi;
    float top, inv;
    int32_t u;
    big = _mm256_max_epi32(big, _mm256_and_si256(_mm256_castps_si256(c), mask));
    big = _mm256_max_epi32(big, _mm256_and_si256(_mm256_castps_si256(d), mask));
    t = _mm_max_epi32(_mm256_castsi256_si128(big), _mm256_extracti128_si256(big, 1));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_max_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    u = _mm_cvtsi128_si32(t);
    memcpy(&top, &u, 4);
    if (!(top >= 1e-36f && top <= FLT_MAX)) return kvmem__quantize32_plain(q, x, sum);
    inv = 127 / top;
    vi = _mm256_set1_ps(inv);
    v = _mm256_packs_epi16(
        _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(a, vi)), _mm256_cvtps_epi32(_mm256_mul_ps(b, vi))),
        _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(c, vi)), _mm256_cvtps_epi32(_mm256_mul_ps(d, vi))));
    v = _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)q, v);
    v = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), v), ones);
    v = _mm256_add_epi32(v, _mm256_shuffle_epi32(v, 0x4e));
    v = _mm256_add_epi32(v, _mm256_shuffle_epi32(v, 0xb1));
    sum[0] = _mm256_extract_epi32(v, 0);
    sum[1] = _mm256_extract_epi32(v, 4);
    return top * (1.0f / 127);
}
KVMEM__AVX2 static void kvmem__quantize_row_avx2(const kvmem__mm *m, int i) {
    kvmem__quantize_row(m, i, kvmem__quantize32_avx2);
}

/* Every quantized type with its constants: type, scales a block, offset, whether it has mins. */
#define KVMEM__QUANT_LIST(X)                                                                        \
    X(KVMEM_Q8_0, 1, 128, 0) X(KVMEM_Q4_0, 1, 8, 0) X(KVMEM_Q4_1, 1, 0, 1) X(KVMEM_Q5_0, 1, 16, 0)  \
    X(KVMEM_Q5_1, 1, 0, 1) X(KVMEM_Q2_K, 2, 0, 1) X(KVMEM_Q3_K, 2, 4, 0) X(KVMEM_Q4_K, 1, 0, 1)     \
    X(KVMEM_Q5_K, 1, 0, 1) X(KVMEM_Q6_K, 2, 32, 0)

/* Codes times activations, four neighbours a lane: an integer dot of unsigned and signed bytes. 8-bit
   codes would overflow the 16-bit pairs of vpmaddubsw, so their sign moves to the other side; these
   sums are then without offset. */
KVMEM__AVX2 KVMEM__INLINE __m256i kvmem__dot4_avx2(__m256i start, __m256i code, __m256i x, const int off) {
    __m256i p;
    if (off == 128) {
        const __m256i w = _mm256_xor_si256(code, _mm256_set1_epi8((char)-128));
        p = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        return _mm256_add_epi32(start, _mm256_madd_epi16(p, _mm256_set1_epi16(1)));
    }
    p = _mm256_maddubs_epi16(code, x);
    return _mm256_add_epi32(start, _mm256_madd_epi16(p, _mm256_set1_epi16(1)));
}
/* Row r of W against row i of x; sums stay in lanes until the row ends. One row at a time: memory is then
   read as one stream, which the processor fetches ahead (two rows at once ran at a third of the speed as soon
   as W did not lie in a cache: 8 against 21 GB/s, EPYC 9004, gcc 12 -O2). kvmem__ahead asks for what comes
   16 KiB later, into the second-level cache (q8_0 then reads at 90 % of what a plain sum over memory does;
   4 KiB ahead into the first level: 75 %). */
KVMEM__AVX2 KVMEM__INLINE void kvmem__ahead(const uint8_t *p, size_t bytes) {
    size_t i;
    KVMEM__UNROLL
    for (i = 0; i < 5; i++)
        if (i * 64 < bytes) _mm_prefetch((const char *)((uintptr_t)p + 16384 + 64 * i), _MM_HINT_T1);
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__row_avx2(const kvmem__mm *m, int r, int i, const int type, const int per,
                                               const int off, const int has_min) {
    const int8_t *q = m->q + (size_t)i * (size_t)m->padded * 32;
    const float *d = m->d + (size_t)i * (size_t)m->padded, *fs = m->fsum + (size_t)i * (size_t)(m->padded * per);
    const int group = type == KVMEM_Q8_SPLIT ? kvmem__group(m, per) : 1;
    const uint8_t *row = kvmem__mm_row(m, r), *gs = kvmem__mm_scales(m, r), *p;
    const size_t bytes = (size_t)(256 / m->t->block) * (size_t)m->t->bytes; /* of a chunk */
    __m256 acc = _mm256_setzero_ps(), mins = acc, s[2], mn[2];
    uint8_t tail[KVMEM__TAIL];
    int c, b;
    for (c = 0; c < m->padded / 8; c++, q += 256, d += 8, fs += 8 * per) {
        const __m256 dx = _mm256_loadu_ps(d);
        p = kvmem__chunk(m, row, c, tail);
        kvmem__ahead(row + (size_t)c * bytes, bytes);
        kvmem__scales(type, per, p, gs, c * 8, group, m->blocks, s, mn);
        if (has_min) mins = _mm256_fmadd_ps(mn[0], _mm256_loadu_ps(fs), mins);
        if (has_min && per == 2) mins = _mm256_fmadd_ps(mn[1], _mm256_loadu_ps(fs + 8), mins);
        if (off % 128 != 0) mins = _mm256_fmadd_ps(s[0], _mm256_loadu_ps(fs), mins);
        if (off % 128 != 0 && per == 2) mins = _mm256_fmadd_ps(s[1], _mm256_loadu_ps(fs + 8), mins);
        if (per == 1) s[0] = _mm256_mul_ps(s[0], dx);
        else {
            const __m256i low = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
            const __m256i high = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
            s[0] = _mm256_mul_ps(s[0], _mm256_permutevar8x32_ps(dx, low));
            s[1] = _mm256_mul_ps(s[1], _mm256_permutevar8x32_ps(dx, high));
        }
        KVMEM__UNROLL
        for (b = 0; b < 8; b++) {
            const int at = per == 1 ? b : b % 4 * 2, next = per == 1 ? b : at + 1;
            const __m256i lanes = _mm256_setr_epi32(at, at, at, at, next, next, next, next);
            const __m256i dot = kvmem__dot4_avx2(_mm256_setzero_si256(), kvmem__codes(type, p, b),
                                                 KVMEM__LDI(q + b * 32), off);
            acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot),
                                  _mm256_permutevar8x32_ps(s[per == 1 ? 0 : b / 4], lanes), acc);
        }
    }
    m->out[(size_t)i * (size_t)m->rows + (size_t)r] = kvmem__hsum_avx2(_mm256_add_ps(acc, mins));
}
/* 16 bytes at p and at p + step. */
KVMEM__AVX2 KVMEM__INLINE __m256i kvmem__pair128(const uint8_t *p, int step) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)p)),
                                   _mm_loadu_si128((const __m128i *)(const void *)(p + step)), 1);
}
/* Blocks 4 h .. 4 h + 3 of the 256 codes at p, in the order that is cheapest to unpack. */
KVMEM__INLINE int kvmem__order(int type) {
    if (type == KVMEM_Q4_0 || type == KVMEM_Q4_1 || type == KVMEM_Q5_0 || type == KVMEM_Q5_1) return KVMEM__HALVES;
    return type == KVMEM_Q4_K || type == KVMEM_Q5_K ? KVMEM__EVEN : 0;
}
KVMEM__AVX512 KVMEM__INLINE __m512i kvmem__both(__m256i a, __m256i b) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}
KVMEM__AVX512 KVMEM__INLINE __m512i kvmem__twice(const uint8_t *p) { return _mm512_broadcast_i64x4(KVMEM__LDI(p)); }
KVMEM__AVX512 KVMEM__INLINE __m512i kvmem__counts(int a, int b) { /* a in the low 32 bytes, b in the high */
    return kvmem__both(_mm256_set1_epi16((short)a), _mm256_set1_epi16((short)b));
}
/* Bit a of the low and b of the high 32 bytes adds 1 << to. Shifting it there was 7 % slower on Zen 4. */
KVMEM__AVX512 KVMEM__INLINE __m512i kvmem__bit(__m512i code, __m512i high, int a, int b, int to) {
    const __m512i which = kvmem__both(_mm256_set1_epi8((char)(1 << a)), _mm256_set1_epi8((char)(1 << b)));
    return _mm512_mask_add_epi8(code, _mm512_test_epi8_mask(high, which), code, _mm512_set1_epi8((char)(1 << to)));
}
KVMEM__AVX512 KVMEM__INLINE void kvmem__codes128(const int type, const uint8_t *p, int h, __m512i *w) {
    const __m512i nibble = _mm512_set1_epi8(15), two = _mm512_set1_epi8(3), high = _mm512_set1_epi8(48);
    __m512i v;
    switch (type) {
    case KVMEM_Q8_SPLIT:
    case KVMEM_Q8_0: {
        const __m512i top = _mm512_set1_epi8((char)-128);
        const int step = type == KVMEM_Q8_0 ? 34 : 32, skip = type == KVMEM_Q8_0 ? 2 : 0;
        p += 4 * h * step + skip;
        w[0] = _mm512_xor_si512(kvmem__both(KVMEM__LDI(p), KVMEM__LDI(p + step)), top);
        w[1] = _mm512_xor_si512(kvmem__both(KVMEM__LDI(p + 2 * step), KVMEM__LDI(p + 3 * step)), top);
        break;
    }
    case KVMEM_Q4_0:
    case KVMEM_Q4_1:
    case KVMEM_Q5_0:
    case KVMEM_Q5_1: {
        const int five = type == KVMEM_Q5_0 || type == KVMEM_Q5_1;
        const int head = (type == KVMEM_Q4_0 || type == KVMEM_Q5_0 ? 2 : 4), skip = head + 4 * five, step = skip + 16;
        p += 4 * h * step;
        v = kvmem__both(kvmem__pair128(p + skip, step), kvmem__pair128(p + 2 * step + skip, step));
        w[0] = _mm512_and_si512(v, nibble);
        w[1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
        if (five) {
            const __m512i sixteen = _mm512_set1_epi8(16);
            uint64_t low = 0, top = 0;
            uint32_t u;
            int i;
            KVMEM__UNROLL
            for (i = 0; i < 4; i++) {
                memcpy(&u, p + i * step + head, 4);
                low |= (uint64_t)(u & 0xffff) << (16 * i);
                top |= (uint64_t)(u >> 16) << (16 * i);
            }
            w[0] = _mm512_mask_add_epi8(w[0], low, w[0], sixteen);
            w[1] = _mm512_mask_add_epi8(w[1], top, w[1], sixteen);
        }
        break;
    }
    case KVMEM_Q4_K:
    case KVMEM_Q5_K:
        v = _mm512_loadu_si512(p + (type == KVMEM_Q4_K ? 16 : 48) + 64 * h);
        w[0] = _mm512_and_si512(v, nibble);
        w[1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
        if (type == KVMEM_Q5_K) {
            w[0] = kvmem__bit(w[0], kvmem__twice(p + 16), 4 * h, 4 * h + 2, 4);
            w[1] = kvmem__bit(w[1], kvmem__twice(p + 16), 4 * h + 1, 4 * h + 3, 4);
        }
        break;
    case KVMEM_Q2_K:
    case KVMEM_Q3_K:
        v = kvmem__twice(p + (type == KVMEM_Q2_K ? 16 : 32) + 32 * h);
        w[0] = _mm512_and_si512(_mm512_srlv_epi16(v, kvmem__counts(0, 2)), two);
        w[1] = _mm512_and_si512(_mm512_srlv_epi16(v, kvmem__counts(4, 6)), two);
        if (type == KVMEM_Q3_K) {
            w[0] = kvmem__bit(w[0], kvmem__twice(p), 4 * h, 4 * h + 1, 2);
            w[1] = kvmem__bit(w[1], kvmem__twice(p), 4 * h + 2, 4 * h + 3, 2);
        }
        break;
    default: /* KVMEM_Q6_K */
        v = _mm512_loadu_si512(p + 64 * h);
        w[0] = _mm512_and_si512(_mm512_sllv_epi16(kvmem__twice(p + 128 + 32 * h), kvmem__counts(4, 2)), high);
        w[1] = _mm512_and_si512(_mm512_srlv_epi16(kvmem__twice(p + 128 + 32 * h), kvmem__counts(0, 2)), high);
        w[0] = _mm512_or_si512(w[0], _mm512_and_si512(v, nibble));
        w[1] = _mm512_or_si512(w[1], _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble));
    }
}
KVMEM__AVX512 KVMEM__INLINE void kvmem__row_avx512(const kvmem__mm *m, int r, int i, const int type, const int per,
                                                   const int off, const int has_min) {
    const int8_t *q = m->q + (size_t)i * (size_t)m->padded * 32;
    const float *d = m->d + (size_t)i * (size_t)m->padded, *fs = m->fsum + (size_t)i * (size_t)(m->padded * per);
    const int order = kvmem__order(type), group = type == KVMEM_Q8_SPLIT ? kvmem__group(m, per) : 1;
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i quarter = _mm512_srli_epi32(lane, 2), half = _mm512_srli_epi32(lane, 3);
    const uint8_t *row = kvmem__mm_row(m, r), *gs = kvmem__mm_scales(m, r), *p;
    const size_t bytes = (size_t)(256 / m->t->block) * (size_t)m->t->bytes; /* of a chunk */
    __m512 acc = _mm512_setzero_ps(), acc2 = acc, s;
    __m256 mins = _mm256_setzero_ps(), sh[2], mn[2];
    uint8_t tail[KVMEM__TAIL];
    int c, h;
    for (c = 0; c < m->padded / 8; c++, q += 256, d += 8, fs += 8 * per) {
        const __m256 dx = _mm256_loadu_ps(d);
        p = kvmem__chunk(m, row, c, tail);
        kvmem__ahead(row + (size_t)c * bytes, bytes);
        kvmem__scales(type, per, p, gs, c * 8, group, m->blocks, sh, mn);
        if (has_min || off) mins = _mm256_fmadd_ps(has_min ? mn[0] : sh[0], _mm256_loadu_ps(fs), mins);
        if ((has_min || off) && per == 2)
            mins = _mm256_fmadd_ps(has_min ? mn[1] : sh[1], _mm256_loadu_ps(fs + 8), mins);
        if (per == 1) s = _mm512_castps256_ps512(_mm256_mul_ps(sh[0], dx));
        else {
            s = _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(sh[0])),
                                                    _mm256_castps_pd(sh[1]), 1));
            s = _mm512_mul_ps(s, _mm512_permutexvar_ps(_mm512_srli_epi32(lane, 1), _mm512_castps256_ps512(dx)));
        }
        KVMEM__UNROLL
        for (h = 0; h < 2; h++) {
            const __m512i x0 = _mm512_loadu_si512(q + h * 128), x1 = _mm512_loadu_si512(q + h * 128 + 64);
            __m512i at0, at1, w[2], dot; /* at: the scale of each lane */
            if (order == KVMEM__HALVES) at0 = _mm512_add_epi32(quarter, _mm512_set1_epi32(4 * h));
            else if (order == KVMEM__EVEN) at0 = _mm512_add_epi32(_mm512_slli_epi32(half, 1), _mm512_set1_epi32(4 * h));
            else at0 = _mm512_add_epi32(per == 1 ? half : quarter, _mm512_set1_epi32(4 * per * h));
            at1 = _mm512_add_epi32(at0, _mm512_set1_epi32(order == KVMEM__EVEN ? 1 : 2 * per));
            kvmem__codes128(type, p, h, w);
            dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w[0], x0);
            if (order != KVMEM__HALVES) {
                acc2 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(at0, s), acc2);
                dot = _mm512_setzero_si512();
            }
            dot = _mm512_dpbusd_epi32(dot, w[1], x1);
            acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                                  _mm512_permutexvar_ps(order == KVMEM__HALVES ? at0 : at1, s), acc);
        }
    }
    m->out[(size_t)i * (size_t)m->rows + (size_t)r] =
        _mm512_reduce_add_ps(_mm512_add_ps(acc, acc2)) + kvmem__hsum_avx2(mins);
}
/* Eight values of a float type from value k on; k + 8 is inside the row. */
KVMEM__AVX2 KVMEM__INLINE __m256 kvmem__floats8(const int type, const uint8_t *row, int k) {
    if (type == KVMEM_F32) return _mm256_loadu_ps((const float *)(const void *)(row + (size_t)k * 4));
    {
        const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(row + (size_t)k * 2));
        if (type == KVMEM_F16) return _mm256_cvtph_ps(h);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
    }
}
/* A row's last values, n < 8, padded with zeros. */
static void kvmem__floats_tail(const kvmem__mm *m, const uint8_t *row, int k, int n, float *out) {
    memset(out, 0, 32);
    kvmem__decode(m->t, out, row + (size_t)k * (size_t)m->t->bytes, (size_t)n);
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__row_float_avx2(const kvmem__mm *m, int r, int i, const int type) {
    const uint8_t *row = kvmem__mm_row(m, r);
    const float *x = m->x + (size_t)i * (size_t)m->cols;
    __m256 a[4];
    float tail[8], sum = 0;
    int k, j;
    KVMEM__UNROLL
    for (j = 0; j < 4; j++) a[j] = _mm256_setzero_ps();
    for (k = 0; k + 32 <= m->cols; k += 32)
        KVMEM__UNROLL
        for (j = 0; j < 4; j++)
            a[j] = _mm256_fmadd_ps(kvmem__floats8(type, row, k + 8 * j), _mm256_loadu_ps(x + k + 8 * j), a[j]);
    for (; k + 8 <= m->cols; k += 8)
        a[0] = _mm256_fmadd_ps(kvmem__floats8(type, row, k), _mm256_loadu_ps(x + k), a[0]);
    if (k < m->cols) {
        kvmem__floats_tail(m, row, k, m->cols - k, tail);
        for (j = 0; k + j < m->cols; j++) sum += tail[j] * x[k + j];
    }
    sum += kvmem__hsum_avx2(_mm256_add_ps(_mm256_add_ps(a[0], a[1]), _mm256_add_ps(a[2], a[3])));
    m->out[(size_t)i * (size_t)m->rows + (size_t)r] = sum;
}
/* Few rows of x. */
#define KVMEM__ROWS(isa, type, per, off, has_min)                                                   \
    for (r = r0; r < r1; r++)                                                                       \
        for (i = 0; i < m->n; i++) kvmem__row_##isa(m, r, i, type, per, off, has_min);
#define KVMEM__FEW_CASE_AVX2(type, per, off, has_min)                                               \
    case type: KVMEM__ROWS(avx2, type, per, off, has_min) break;
#define KVMEM__FEW_CASE_AVX512(type, per, off, has_min)                                             \
    case type: KVMEM__ROWS(avx512, type, per, off, has_min) break;
#define KVMEM__FEW_CASE_FLOAT(type)                                                                 \
    case type:                                                                                      \
        for (r = r0; r < r1; r++)                                                                   \
            for (i = 0; i < m->n; i++) kvmem__row_float_avx2(m, r, i, type);                        \
        break;
KVMEM__AVX2 static void kvmem__few_float_avx2(const kvmem__mm *m, int r0, int r1) {
    int r, i;
    switch (m->w->type) {
    KVMEM__FEW_CASE_FLOAT(KVMEM_F32)
    KVMEM__FEW_CASE_FLOAT(KVMEM_F16)
    default:
    KVMEM__FEW_CASE_FLOAT(KVMEM_BF16)
    }
}
KVMEM__AVX2 static void kvmem__few_avx2(const kvmem__mm *m, int r0, int r1) {
    int r, i;
    switch (m->w->type) {
    KVMEM__QUANT_LIST(KVMEM__FEW_CASE_AVX2)
    default:
        if (m->per == 1) { KVMEM__ROWS(avx2, KVMEM_Q8_SPLIT, 1, 128, 0) }
        else { KVMEM__ROWS(avx2, KVMEM_Q8_SPLIT, 2, 128, 0) }
    }
}
KVMEM__AVX512 static void kvmem__few_avx512(const kvmem__mm *m, int r0, int r1) {
    int r, i;
    switch (m->w->type) {
    KVMEM__QUANT_LIST(KVMEM__FEW_CASE_AVX512)
    default:
        if (m->per == 1) { KVMEM__ROWS(avx512, KVMEM_Q8_SPLIT, 1, 128, 0) }
        else { KVMEM__ROWS(avx512, KVMEM_Q8_SPLIT, 2, 128, 0) }
    }
}

/* ---- Panels. Rows r0.. of W (at most 16, the rest zero), blocks [b0, b0 + nb), as
        codes   [nb][8][16][4]   four neighbours of each of 16 rows side by side
        scales  [nb * per][16]   at KVMEM__PANEL_S;   mins likewise at KVMEM__PANEL_M */
#define KVMEM__PANEL_S ((size_t)KVMEM__KC * 16)
#define KVMEM__PANEL_M ((size_t)KVMEM__KC * 20)

KVMEM__AVX2 KVMEM__INLINE void kvmem__transpose8(__m256 *v) { /* 8 x 8 words */
    __m256 t[8], u[8];
    int i;
    KVMEM__UNROLL
    for (i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    KVMEM__UNROLL
    for (i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}
/* One chunk of 256 columns: codes of each row by its type, then the rows are interleaved. */
KVMEM__AVX2 KVMEM__INLINE void kvmem__panel_chunk(const kvmem__mm *m, uint8_t *panel, int r0, int r1, int c,
                                                  int at, int nb, const int type, const int per,
                                                  const int has_min) {
    const int group = type == KVMEM_Q8_SPLIT ? kvmem__group(m, per) : 1;
    float *s = (float *)(void *)(panel + KVMEM__PANEL_S) + at * per * 16;
    float *mn = (float *)(void *)(panel + KVMEM__PANEL_M) + at * per * 16;
    __m256i code[16][8];
    __m256 v[8], vs[2], vm[2];
    uint8_t tail[KVMEM__TAIL];
    float fs[16], fm[16];
    int r, b, j, k;
    for (r = 0; r < 16; r++) {
        if (r0 + r < r1) {
            const uint8_t *p = kvmem__chunk(m, kvmem__mm_row(m, r0 + r), c, tail);
            KVMEM__UNROLL
            for (b = 0; b < 8; b++) code[r][b] = kvmem__codes(type, p, b);
            kvmem__scales(type, per, p, kvmem__mm_scales(m, r0 + r), c * 8, group, m->blocks, vs, vm);
            _mm256_storeu_ps(fs, vs[0]);
            if (per == 2) _mm256_storeu_ps(fs + 8, vs[1]);
            if (has_min) _mm256_storeu_ps(fm, vm[0]);
            if (has_min && per == 2) _mm256_storeu_ps(fm + 8, vm[1]);
        } else {
            KVMEM__UNROLL
            for (b = 0; b < 8; b++) code[r][b] = _mm256_setzero_si256();
            for (j = 0; j < 16; j++) fs[j] = fm[j] = 0;
        }
        for (j = 0; j < nb * per; j++) s[j * 16 + r] = fs[j];
        if (has_min) for (j = 0; j < nb * per; j++) mn[j * 16 + r] = fm[j];
    }
    for (b = 0; b < nb; b++)
        KVMEM__UNROLL
        for (j = 0; j < 2; j++) {
            uint8_t *o = panel + (size_t)(at + b) * 512 + j * 32;
            KVMEM__UNROLL
            for (k = 0; k < 8; k++) v[k] = _mm256_castsi256_ps(code[8 * j + k][b]);
            kvmem__transpose8(v);
            KVMEM__UNROLL
            for (k = 0; k < 8; k++) _mm256_storeu_ps((float *)(void *)(o + k * 64), v[k]);
        }
}
#define KVMEM__PANEL_CASE(type, per, off, has_min)                                                  \
    case type: kvmem__panel_chunk(m, panel, r0, r1, c, at, left, type, per, has_min); break;
KVMEM__AVX2 static void kvmem__panel_avx2(const kvmem__mm *m, uint8_t *panel, int r0, int r1, int b0, int nb) {
    int at;
    for (at = 0; at < nb; at += 8) {
        const int c = (b0 + at) / 8, left = KVMEM__MIN(8, nb - at);
        switch (m->w->type) {
        KVMEM__QUANT_LIST(KVMEM__PANEL_CASE)
        default:
            if (m->per == 1) kvmem__panel_chunk(m, panel, r0, r1, c, at, left, KVMEM_Q8_SPLIT, 1, 0);
            else kvmem__panel_chunk(m, panel, r0, r1, c, at, left, KVMEM_Q8_SPLIT, 2, 0);
        }
    }
}
/* Two panels against activations u0 .. u0 + 3 of group g: 32 rows x 4. Panels after the first (b0 > 0) add to
   the sums of those before, the last one writes out. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__tile_avx512(const kvmem__mm *m, uint8_t *panel, int r0, int r1,
                                                    int b0, int nb, int g, int u0, const int per) {
    const size_t first = (size_t)g * (size_t)m->padded + (size_t)b0;
    const int8_t *q = m->q + first * 256 + u0 * 32;
    const float *d = m->d + first * 8 + u0, *fs = m->fsum + first * (size_t)per * 8 + u0;
    const int32_t *start = m->start + first * (size_t)per * 8 + u0;
    const float *s = (const float *)(const void *)(panel + KVMEM__PANEL_S);
    const float *mn = (const float *)(const void *)(panel + KVMEM__PANEL_M);
    const size_t next = KVMEM__PANEL_BYTES / 4; /* the other panel, in floats */
    const __mmask16 mask0 = (__mmask16)((1u << KVMEM__MIN(16, r1 - r0)) - 1);
    const __mmask16 mask1 = (__mmask16)((1u << KVMEM__MAX(0, r1 - r0 - 16)) - 1);
    const int n = KVMEM__MIN(4, m->n - g * 8 - u0);
    float *out = m->out + (size_t)(g * 8 + u0) * (size_t)m->rows + (size_t)r0;
    float *sum = (float *)(void *)(panel + 2 * KVMEM__PANEL_BYTES) + (g * 8 + u0) * KVMEM__TILE;
    __m512 acc0[4], acc1[4], f0[4], f1[4];
    __m512i dot0[4], dot1[4];
    int b, h, k, u;
    if (n <= 0) return;
    KVMEM__UNROLL
    for (u = 0; u < 4; u++) {
        acc0[u] = b0 ? _mm512_loadu_ps(sum + u * KVMEM__TILE) : _mm512_setzero_ps();
        acc1[u] = b0 ? _mm512_loadu_ps(sum + u * KVMEM__TILE + 16) : _mm512_setzero_ps();
    }
    for (b = 0; b < nb; b++, q += 256, d += 8) {
        KVMEM__UNROLL
        for (h = 0; h < per; h++, start += 8, fs += 8, s += 16, mn += 16) {
            KVMEM__UNROLL
            for (u = 0; u < 4; u++) dot0[u] = dot1[u] = _mm512_set1_epi32(start[u]);
            KVMEM__UNROLL
            for (k = 0; k < 8 / per; k++, panel += 64) {
                const __m512i code0 = _mm512_loadu_si512(panel);
                const __m512i code1 = _mm512_loadu_si512(panel + KVMEM__PANEL_BYTES);
                KVMEM__UNROLL
                for (u = 0; u < 4; u++) {
                    int32_t x;
                    memcpy(&x, q + u * 32 + (h * (8 / per) + k) * 4, 4);
                    dot0[u] = _mm512_dpbusd_epi32(dot0[u], code0, _mm512_set1_epi32(x));
                    dot1[u] = _mm512_dpbusd_epi32(dot1[u], code1, _mm512_set1_epi32(x));
                }
            }
            { /* first the scales of weights, one or two a block, then those of activations; short loops,
                 since clang 14 keeps arrays in memory when it meets a long one */
                const __m512 s0 = _mm512_loadu_ps(s), s1 = _mm512_loadu_ps(s + next);
                KVMEM__UNROLL
                for (u = 0; u < 4; u++)
                    f0[u] = h == 0 ? _mm512_mul_ps(_mm512_cvtepi32_ps(dot0[u]), s0)
                                   : _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot0[u]), s0, f0[u]);
                KVMEM__UNROLL
                for (u = 0; u < 4; u++)
                    f1[u] = h == 0 ? _mm512_mul_ps(_mm512_cvtepi32_ps(dot1[u]), s1)
                                   : _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot1[u]), s1, f1[u]);
            }
            if (h == per - 1) {
                KVMEM__UNROLL
                for (u = 0; u < 4; u++) acc0[u] = _mm512_fmadd_ps(f0[u], _mm512_set1_ps(d[u]), acc0[u]);
                KVMEM__UNROLL
                for (u = 0; u < 4; u++) acc1[u] = _mm512_fmadd_ps(f1[u], _mm512_set1_ps(d[u]), acc1[u]);
            }
            if (m->t->has_min)
                KVMEM__UNROLL
                for (u = 0; u < 4; u++) {
                    acc0[u] = _mm512_fmadd_ps(_mm512_loadu_ps(mn), _mm512_set1_ps(fs[u]), acc0[u]);
                    acc1[u] = _mm512_fmadd_ps(_mm512_loadu_ps(mn + next), _mm512_set1_ps(fs[u]), acc1[u]);
                }
        }
    }
    KVMEM__UNROLL
    for (u = 0; u < 4; u++) {
        if (b0 + nb < m->blocks) {
            _mm512_storeu_ps(sum + u * KVMEM__TILE, acc0[u]);
            _mm512_storeu_ps(sum + u * KVMEM__TILE + 16, acc1[u]);
        } else if (u < n) {
            _mm512_mask_storeu_ps(out + (size_t)u * (size_t)m->rows, mask0, acc0[u]);
            _mm512_mask_storeu_ps(out + (size_t)u * (size_t)m->rows + 16, mask1, acc1[u]);
        }
    }
}
/* Stores 8 lanes, of which n are rows of W. */
KVMEM__AVX2 KVMEM__INLINE void kvmem__store8(float *out, __m256 v, int n) {
    float lane[8];
    if (n >= 8) _mm256_storeu_ps(out, v);
    else if (n > 0) {
        _mm256_storeu_ps(lane, v);
        memcpy(out, lane, (size_t)n * 4);
    }
}
/* The same with half a panel (side 0 to 3) and half a group (activations u0..u0 + 3). */
KVMEM__AVX2 KVMEM__INLINE void kvmem__tile_avx2(const kvmem__mm *m, uint8_t *panel, int r0, int r1,
                                                int b0, int nb, int g, int side, int u0, const int per,
                                                const int off) {
    const size_t first = (size_t)g * (size_t)m->padded + (size_t)b0;
    const int8_t *q = m->q + first * 256 + u0 * 32;
    const float *d = m->d + first * 8 + u0, *fs = m->fsum + first * (size_t)per * 8 + u0;
    const int32_t *start = m->start + first * (size_t)per * 8 + u0;
    uint8_t *mine = panel + (size_t)(side / 2) * KVMEM__PANEL_BYTES;
    const float *s = (const float *)(const void *)(mine + KVMEM__PANEL_S) + side % 2 * 8;
    const float *mn = (const float *)(const void *)(mine + KVMEM__PANEL_M) + side % 2 * 8;
    const int n = KVMEM__MIN(4, m->n - g * 8 - u0), rows = r1 - r0 - side * 8;
    float *out = m->out + (size_t)(g * 8 + u0) * (size_t)m->rows + (size_t)(r0 + side * 8);
    float *sum = (float *)(void *)(panel + 2 * KVMEM__PANEL_BYTES) + (g * 8 + u0) * KVMEM__TILE + side * 8;
    __m256 acc[4];
    __m256i dot[4];
    int b, h, k, u;
    if (n <= 0 || rows <= 0) return;
    panel = mine + side % 2 * 32;
    KVMEM__UNROLL
    for (u = 0; u < 4; u++)
        acc[u] = b0 ? _mm256_loadu_ps(sum + u * KVMEM__TILE) : _mm256_setzero_ps();
    for (b = 0; b < nb; b++, q += 256, d += 8) {
        for (h = 0; h < per; h++, start += 8, fs += 8, s += 16, mn += 16) {
            KVMEM__UNROLL
            for (u = 0; u < 4; u++) dot[u] = off == 128 ? _mm256_setzero_si256() : _mm256_set1_epi32(start[u]);
            KVMEM__UNROLL
            for (k = 0; k < 8 / per; k++, panel += 64) {
                const __m256i code = KVMEM__LDI(panel);
                KVMEM__UNROLL
                for (u = 0; u < 4; u++) {
                    int32_t x;
                    memcpy(&x, q + u * 32 + (h * 4 + k) * 4, 4);
                    dot[u] = kvmem__dot4_avx2(dot[u], code, _mm256_set1_epi32(x), off);
                }
            }
            KVMEM__UNROLL
            for (u = 0; u < 4; u++)
                acc[u] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dot[u]), _mm256_set1_ps(d[u])),
                                         _mm256_loadu_ps(s), acc[u]);
            if (m->t->has_min)
                KVMEM__UNROLL
                for (u = 0; u < 4; u++)
                    acc[u] = _mm256_fmadd_ps(_mm256_loadu_ps(mn), _mm256_set1_ps(fs[u]), acc[u]);
        }
    }
    KVMEM__UNROLL
    for (u = 0; u < 4; u++) {
        if (b0 + nb < m->blocks) _mm256_storeu_ps(sum + u * KVMEM__TILE, acc[u]);
        else if (u < n) kvmem__store8(out + (size_t)u * (size_t)m->rows, acc[u], rows);
    }
}
KVMEM__AVX512 static void kvmem__many_avx512(const kvmem__mm *m, uint8_t *panel, int r0, int r1, int b0,
                                             int nb) {
    int i;
    for (i = 0; i < m->n; i += 4) {
        if (m->per == 1) kvmem__tile_avx512(m, panel, r0, r1, b0, nb, i / 8, i % 8, 1);
        else kvmem__tile_avx512(m, panel, r0, r1, b0, nb, i / 8, i % 8, 2);
    }
}
KVMEM__AVX2 static void kvmem__many_avx2(const kvmem__mm *m, uint8_t *panel, int r0, int r1, int b0,
                                         int nb) {
    int g, j;
    for (g = 0; g * 8 < m->n; g++)
        KVMEM__UNROLL
        for (j = 0; j < 8; j++) {
            const int side = j % 4, u0 = j / 4 * 4;
            if (m->t->off == 128 && m->per == 1) kvmem__tile_avx2(m, panel, r0, r1, b0, nb, g, side, u0, 1, 128);
            else if (m->t->off == 128) kvmem__tile_avx2(m, panel, r0, r1, b0, nb, g, side, u0, 2, 128);
            else if (m->per == 1) kvmem__tile_avx2(m, panel, r0, r1, b0, nb, g, side, u0, 1, 0);
            else kvmem__tile_avx2(m, panel, r0, r1, b0, nb, g, side, u0, 2, 0);
        }
}

/* Float tensors: [k][32] of columns [k0, k0 + nk). */
KVMEM__AVX2 KVMEM__INLINE void kvmem__panel_float(const kvmem__mm *m, float *panel, int r0, int r1, int k0,
                                                  int nk, const int type) {
    __m256 v[8];
    float tail[8];
    int side, k, j;
    for (side = 0; side < 4; side++)
        for (k = 0; k < nk; k += 8) {
            KVMEM__UNROLL
            for (j = 0; j < 8; j++) {
                const int r = r0 + side * 8 + j;
                if (r >= r1) v[j] = _mm256_setzero_ps();
                else if (k + 8 <= nk) v[j] = kvmem__floats8(type, kvmem__mm_row(m, r), k0 + k);
                else {
                    kvmem__floats_tail(m, kvmem__mm_row(m, r), k0 + k, nk - k, tail);
                    v[j] = _mm256_loadu_ps(tail);
                }
            }
            kvmem__transpose8(v);
            KVMEM__UNROLL
            for (j = 0; j < 8; j++) _mm256_storeu_ps(panel + (k + j) * 32 + side * 8, v[j]);
        }
}
KVMEM__AVX2 static void kvmem__panel_float_avx2(const kvmem__mm *m, float *panel, int r0, int r1, int k0, int nk) {
    if (m->w->type == KVMEM_F32) kvmem__panel_float(m, panel, r0, r1, k0, nk, KVMEM_F32);
    else if (m->w->type == KVMEM_F16) kvmem__panel_float(m, panel, r0, r1, k0, nk, KVMEM_F16);
    else kvmem__panel_float(m, panel, r0, r1, k0, nk, KVMEM_BF16);
}
KVMEM__AVX512 static void kvmem__many_float_avx512(const kvmem__mm *m, float *panel, int r0, int r1, int k0,
                                                   int nk) {
    const __mmask16 mask0 = (__mmask16)((1u << KVMEM__MIN(16, r1 - r0)) - 1);
    const __mmask16 mask1 = (__mmask16)((1u << KVMEM__MAX(0, r1 - r0 - 16)) - 1);
    int i, k, u;
    for (i = 0; i < m->n; i += 8) {
        float *out = m->out + (size_t)i * (size_t)m->rows + (size_t)r0;
        float *sum = panel + KVMEM__PANEL_BYTES / 2 + i * KVMEM__TILE; /* behind both panels */
        const float *x[8];
        __m512 acc0[8], acc1[8];
        KVMEM__UNROLL
        for (u = 0; u < 8; u++) {
            x[u] = m->x + (size_t)KVMEM__MIN(i + u, m->n - 1) * (size_t)m->cols + (size_t)k0;
            acc0[u] = k0 ? _mm512_loadu_ps(sum + u * KVMEM__TILE) : _mm512_setzero_ps();
            acc1[u] = k0 ? _mm512_loadu_ps(sum + u * KVMEM__TILE + 16) : _mm512_setzero_ps();
        }
        for (k = 0; k < nk; k++) {
            const __m512 w0 = _mm512_loadu_ps(panel + k * 32), w1 = _mm512_loadu_ps(panel + k * 32 + 16);
            KVMEM__UNROLL
            for (u = 0; u < 8; u++) {
                const __m512 v = _mm512_set1_ps(x[u][k]);
                acc0[u] = _mm512_fmadd_ps(w0, v, acc0[u]);
                acc1[u] = _mm512_fmadd_ps(w1, v, acc1[u]);
            }
        }
        KVMEM__UNROLL
        for (u = 0; u < 8; u++) {
            if (k0 + nk < m->cols) {
                _mm512_storeu_ps(sum + u * KVMEM__TILE, acc0[u]);
                _mm512_storeu_ps(sum + u * KVMEM__TILE + 16, acc1[u]);
            } else if (i + u < m->n) {
                _mm512_mask_storeu_ps(out + (size_t)u * (size_t)m->rows, mask0, acc0[u]);
                _mm512_mask_storeu_ps(out + (size_t)u * (size_t)m->rows + 16, mask1, acc1[u]);
            }
        }
    }
}
KVMEM__AVX2 static void kvmem__many_float_avx2(const kvmem__mm *m, float *panel, int r0, int r1, int k0,
                                               int nk) {
    int i, k, u, side;
    for (i = 0; i < m->n; i += 8)
        for (side = 0; side < 4; side++) {
            const int rows = r1 - r0 - side * 8;
            float *out = m->out + (size_t)i * (size_t)m->rows + (size_t)(r0 + side * 8);
            float *sum = panel + KVMEM__PANEL_BYTES / 2 + i * KVMEM__TILE + side * 8;
            const float *x[8], *p = panel + side * 8;
            __m256 acc[8];
            if (rows <= 0) break;
            KVMEM__UNROLL
            for (u = 0; u < 8; u++) {
                x[u] = m->x + (size_t)KVMEM__MIN(i + u, m->n - 1) * (size_t)m->cols + (size_t)k0;
                acc[u] = k0 ? _mm256_loadu_ps(sum + u * KVMEM__TILE) : _mm256_setzero_ps();
            }
            for (k = 0; k < nk; k++) {
                const __m256 w = _mm256_loadu_ps(p + k * 32);
                KVMEM__UNROLL
                for (u = 0; u < 8; u++) acc[u] = _mm256_fmadd_ps(w, _mm256_set1_ps(x[u][k]), acc[u]);
            }
            KVMEM__UNROLL
            for (u = 0; u < 8; u++) {
                if (k0 + nk < m->cols) _mm256_storeu_ps(sum + u * KVMEM__TILE, acc[u]);
                else if (i + u < m->n) kvmem__store8(out + (size_t)u * (size_t)m->rows, acc[u], rows);
            }
        }
}
/* Rows [r0, r1) of W, at most 32 of them. */
#define KVMEM__MM_ROWS(isa, order)                                                                         \
    static void kvmem__mm_rows_##isa(const kvmem__mm *m, int r0, int r1, uint8_t *panel) {          \
        int at, n;                                                                                  \
        if (!m->integers && m->t->off >= 0) kvmem__mm_rows_plain(m, r0, r1, panel);                 \
        else if (m->n <= KVMEM__FEW && m->integers) kvmem__few_##isa(m, r0, r1);                    \
        else if (m->n <= KVMEM__FEW) kvmem__few_float_avx2(m, r0, r1);                              \
        else if (m->integers) {                                                                     \
            for (at = 0; at < m->blocks; at += n) {                                                 \
                n = KVMEM__MIN(KVMEM__KC / 32, m->blocks - at);                                     \
                kvmem__panel_avx2(m, panel, r0, KVMEM__MIN(r1, r0 + 16), at, n);                    \
                kvmem__panel_avx2(m, panel + KVMEM__PANEL_BYTES, r0 + 16, r1, at, n);               \
                kvmem__many_##isa(m, panel, r0, r1, at, n);                                         \
            }                                                                                       \
        } else {                                                                                    \
            for (at = 0; at < m->cols; at += n) {                                                   \
                float *p = (float *)(void *)panel; /* 32 KC_FLOAT 4 = 16 KiB */                     \
                n = KVMEM__MIN(KVMEM__KC_FLOAT, m->cols - at);                                      \
                kvmem__panel_float_avx2(m, p, r0, r1, at, n);                                       \
                kvmem__many_float_##isa(m, p, r0, r1, at, n);                                       \
            }                                                                                       \
        }                                                                                           \
    }                                                                                               \
    static void kvmem__matmul_##isa(const kvmem_backend *b, float *out, const kvmem_tensor *w,      \
                                    const float *x, int n, void *scratch, int threads) {            \
        (void)b;                                                                                    \
        kvmem__mm_start(out, w, x, n, scratch, threads, order, kvmem__quantize_row_avx2,            \
                        kvmem__mm_rows_##isa);                                                      \
    }
KVMEM__MM_ROWS(avx2, 0)
KVMEM__MM_ROWS(avx512, kvmem__order((int)w->type))
#endif /* KVMEM_NO_DECODER */
#endif /* KVMEM__X86 */
#if KVMEM__NEON
/* ==== >>kernels_neon : the vectors by NEON ======================================================= */
#define KVMEM__LDB(p) vreinterpretq_s8_u8(vld1q_u8((const uint8_t *)(const void *)(p))) /* 16 signed bytes */

static float kvmem__dot_neon(const float *a, const float *b, int n) {
    float32x4_t s0 = vdupq_n_f32(0), s1 = s0, s2 = s0, s3 = s0;
    float tail = 0;
    int i;
    for (i = 0; i + 16 <= n; i += 16) {
        s0 = vfmaq_f32(s0, vld1q_f32(a + i), vld1q_f32(b + i));
        s1 = vfmaq_f32(s1, vld1q_f32(a + i + 4), vld1q_f32(b + i + 4));
        s2 = vfmaq_f32(s2, vld1q_f32(a + i + 8), vld1q_f32(b + i + 8));
        s3 = vfmaq_f32(s3, vld1q_f32(a + i + 12), vld1q_f32(b + i + 12));
    }
    for (; i + 4 <= n; i += 4) s0 = vfmaq_f32(s0, vld1q_f32(a + i), vld1q_f32(b + i));
    for (; i < n; i++) tail += a[i] * b[i];
    return vaddvq_f32(vaddq_f32(vaddq_f32(s0, s1), vaddq_f32(s2, s3))) + tail;
}
static void kvmem__axpy_neon(float *y, float a, const float *x, int n) {
    int i;
    for (i = 0; i + 4 <= n; i += 4) vst1q_f32(y + i, vfmaq_n_f32(vld1q_f32(y + i), vld1q_f32(x + i), a));
    for (; i < n; i++) y[i] += a * x[i];
}
static void kvmem__scale_neon(float *y, float a, int n) {
    int i;
    for (i = 0; i + 4 <= n; i += 4) vst1q_f32(y + i, vmulq_n_f32(vld1q_f32(y + i), a));
    for (; i < n; i++) y[i] *= a;
}
static float kvmem__max_neon(const float *x, int n) {
    float32x4_t v = vdupq_n_f32(-INFINITY);
    float m;
    int i;
    for (i = 0; i + 4 <= n; i += 4) v = vmaxnmq_f32(v, vld1q_f32(x + i));
    m = vmaxnmvq_f32(v);
    for (; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}
/* kvmem__expf's polynomial; 2^n is applied in two halves, so that n = 128 needs no case. */
KVMEM__INLINE float32x4_t kvmem__exp_neon(float32x4_t x) {
    const float32x4_t log2e = vdupq_n_f32(1.44269504089f), n = vrndnq_f32(vmulq_f32(x, log2e));
    const int32x4_t e = vcvtq_s32_f32(n), e0 = vshrq_n_s32(e, 1), e1 = vsubq_s32(e, e0), bias = vdupq_n_s32(127);
    float32x4_t f = vfmsq_n_f32(x, n, 0.693359375f), p;
    f = vmulq_f32(vfmaq_n_f32(f, n, 2.12194440e-4f), log2e);
    p = vfmaq_f32(vdupq_n_f32(KVMEM__EXP_C5), vdupq_n_f32(KVMEM__EXP_C6), f);
    p = vfmaq_f32(vdupq_n_f32(KVMEM__EXP_C4), p, f);
    p = vfmaq_f32(vdupq_n_f32(KVMEM__EXP_C3), p, f);
    p = vfmaq_f32(vdupq_n_f32(KVMEM__EXP_C2), p, f);
    p = vfmaq_f32(vdupq_n_f32(KVMEM__EXP_C1), p, f);
    p = vfmaq_f32(vdupq_n_f32(KVMEM__EXP_C0), p, f);
    p = vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e0, bias), 23)));
    p = vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e1, bias), 23)));
    p = vbslq_f32(vcleq_f32(x, vdupq_n_f32(-87.3f)), vdupq_n_f32(0), p);
    return vbslq_f32(vcgtq_f32(x, vdupq_n_f32(88.7f)), vdupq_n_f32(INFINITY), p);
}
static float kvmem__exp_sum_neon(float *p, const float *s, float m, int n) {
    const float32x4_t vm = vdupq_n_f32(m);
    float32x4_t sum = vdupq_n_f32(0), e;
    float tail = 0;
    int i;
    for (i = 0; i + 4 <= n; i += 4) {
        e = kvmem__exp_neon(vsubq_f32(vld1q_f32(s + i), vm));
        vst1q_f32(p + i, e);
        sum = vaddq_f32(sum, e);
    }
    for (; i < n; i++) tail += p[i] = kvmem__expf(s[i] - m);
    return vaddvq_f32(sum) + tail;
}
#ifndef KVMEM_NO_DECODER
#define kvmem__add_neon kvmem__add_plain
static void kvmem__rmsnorm_row_neon(float *out, const float *x, const float *w, int d, float eps) {
    const float a = 1 / sqrtf(kvmem__dot_neon(x, x, d) / (float)d + eps);
    int j;
    for (j = 0; j + 4 <= d; j += 4) {
        float32x4_t v = vmulq_n_f32(vld1q_f32(x + j), a);
        if (w) v = vmulq_f32(v, vld1q_f32(w + j));
        vst1q_f32(out + j, v);
    }
    for (; j < d; j++) out[j] = w ? x[j] * a * w[j] : x[j] * a;
}
static void kvmem__rmsnorm_neon(float *out, const float *x, const float *w, int n, int d, float eps,
                                int threads) {
    kvmem__rmsnorm_run(kvmem__rmsnorm_row_neon, out, x, w, n, d, eps, threads);
}
static void kvmem__glu_piece_neon(float *out, const float *gate, const float *up, size_t count, kvmem_act act) {
    const float32x4_t one = vdupq_n_f32(1);
    size_t i;
    for (i = 0; i + 4 <= count; i += 4) {
        const float32x4_t g = vld1q_f32(gate + i);
        float32x4_t u = g;
        if (act == KVMEM_GELU_TANH) {
            u = vfmaq_n_f32(g, vmulq_f32(vmulq_f32(g, g), g), 0.044715f);
            u = vmulq_n_f32(u, 1.5957691216f);
        }
        u = vdivq_f32(g, vaddq_f32(one, kvmem__exp_neon(vnegq_f32(u))));
        vst1q_f32(out + i, vmulq_f32(u, vld1q_f32(up + i)));
    }
    kvmem__glu_piece_plain(out + i, gate + i, up + i, count - i, act);
}
static void kvmem__glu_neon(float *out, const float *gate, const float *up, size_t count, kvmem_act act,
                            int threads) {
    kvmem__glu_run(kvmem__glu_piece_neon, out, gate, up, count, act, threads);
}

/* ==== >>matmul_neon : the matrix product by NEON =================================================
   The shapes of the x86 paths; codes are made signed (code - off), so that activations need no start
   values. With the dot product instructions (__ARM_FEATURE_DOTPROD) a step is one instruction, else four. */
static float kvmem__quantize32_neon(int8_t *q, const float *x, int32_t *sum) {
    const uint32x4_t mask = vdupq_n_u32(0x7fffffffu);
    uint32x4_t big = vdupq_n_u32(0);
    float top, inv;
    uint32_t u;
    int i;
    for (i = 0; i < 32; i += 4) big = vmaxq_u32(big, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), mask));
    u = vmaxvq_u32(big);
    memcpy(&top, &u, 4);
    if (!(top >= 1e-36f && top <= FLT_MAX)) return kvmem__quantize32_plain(q, x, sum);
    inv = 127 / top;
    for (i = 0; i < 32; i += 16) {
        const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), inv));
        const int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), inv));
        const int32x4_t c = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 8), inv));
        const int32x4_t d = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 12), inv));
        const int8x16_t v = vcombine_s8(vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b))),
                                        vmovn_s16(vcombine_s16(vmovn_s32(c), vmovn_s32(d))));
        vst1q_s8(q + i, v);
        sum[i / 16] = vaddlvq_s8(v);
    }
    return top * (1.0f / 127);
}
static void kvmem__quantize_row_neon(const kvmem__mm *m, int i) {
    kvmem__quantize_row(m, i, kvmem__quantize32_neon);
}
/* Lane j gains the products of bytes 4 j .. 4 j + 3. */
KVMEM__INLINE int32x4_t kvmem__dot4_neon(int32x4_t sum, int8x16_t a, int8x16_t b) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(sum, a, b);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
/* At most 256 weights of a row as signed codes, s and mn one each per 16. Twin: kvmem__unpack. */
static void kvmem__unpack_neon(const kvmem__mm *m, int r, int c0, int n, int8_t *code, float *s, float *mn) {
    const uint8_t *p = kvmem__mm_row(m, r);
    const uint8x16_t off = vdupq_n_u8((uint8_t)m->t->off), nibble = vdupq_n_u8(15);
    int i;
    if (m->w->type == KVMEM_Q8_0 || m->w->type == KVMEM_Q4_0) {
        p += (size_t)(c0 / 32) * (size_t)m->t->bytes;
        for (i = 0; i < n; i += 32, p += m->t->bytes) {
            s[i / 16] = s[i / 16 + 1] = kvmem__f16_to_f32(kvmem__le16(p));
            if (m->w->type == KVMEM_Q8_0) memcpy(code + i, p + 2, 32);
            else {
                const uint8x16_t v = vld1q_u8(p + 2);
                vst1q_s8(code + i, vreinterpretq_s8_u8(vsubq_u8(vandq_u8(v, nibble), off)));
                vst1q_s8(code + i + 16, vreinterpretq_s8_u8(vsubq_u8(vshrq_n_u8(v, 4), off)));
            }
        }
        return;
    }
    kvmem__unpack(m->w->type, p, kvmem__mm_scales(m, r), m->w->group, c0, n, (uint8_t *)code, s, mn);
    for (i = 0; i < n; i += 16)
        vst1q_s8(code + i, vreinterpretq_s8_u8(vsubq_u8(vld1q_u8((const uint8_t *)code + i), off)));
}
static void kvmem__row_neon(const kvmem__mm *m, int r) {
    int8_t code[256];
    float s[16], mn[16], mins[KVMEM__FEW];
    float32x4_t acc[KVMEM__FEW];
    int c0, b, i;
    for (i = 0; i < m->n; i++) { acc[i] = vdupq_n_f32(0); mins[i] = 0; }
    for (c0 = 0; c0 < m->cols; c0 += 256) {
        const int n = KVMEM__MIN(256, m->cols - c0);
        kvmem__unpack_neon(m, r, c0, n, code, s, mn);
        for (i = 0; i < m->n; i++) {
            const size_t first = (size_t)i * (size_t)m->padded + (size_t)(c0 / 32);
            for (b = 0; b < n / 32; b++) {
                const int8_t *q = m->q + (first + (size_t)b) * 32;
                const float d = m->d[first + (size_t)b], *fs = m->fsum + (first + (size_t)b) * (size_t)m->per;
                int32x4_t dot = kvmem__dot4_neon(vdupq_n_s32(0), KVMEM__LDB(code + b * 32), KVMEM__LDB(q));
                if (m->per == 2) {
                    acc[i] = vfmaq_n_f32(acc[i], vcvtq_f32_s32(dot), s[2 * b] * d);
                    dot = vdupq_n_s32(0);
                }
                dot = kvmem__dot4_neon(dot, KVMEM__LDB(code + b * 32 + 16), KVMEM__LDB(q + 16));
                acc[i] = vfmaq_n_f32(acc[i], vcvtq_f32_s32(dot), s[2 * b + 1] * d);
                if (m->t->has_min) mins[i] += mn[2 * b] * fs[0] + (m->per == 2 ? mn[2 * b + 1] * fs[1] : 0);
            }
        }
    }
    for (i = 0; i < m->n; i++) m->out[(size_t)i * (size_t)m->rows + (size_t)r] = vaddvq_f32(acc[i]) + mins[i];
}
/* Four values of a float type from value k on. */
KVMEM__INLINE float32x4_t kvmem__floats4(kvmem_type type, const uint8_t *row, int k) {
    float32x4_t v;
    if (type == KVMEM_F32) memcpy(&v, row + (size_t)k * 4, 16);
    else {
        uint16x4_t h;
        memcpy(&h, row + (size_t)k * 2, 8);
        if (type == KVMEM_F16) v = vcvt_f32_f16(vreinterpret_f16_u16(h));
        else v = vreinterpretq_f32_u32(vshll_n_u16(h, 16));
    }
    return v;
}
static void kvmem__row_float_neon(const kvmem__mm *m, int r, int i) {
    const uint8_t *row = kvmem__mm_row(m, r);
    const float *x = m->x + (size_t)i * (size_t)m->cols;
    float32x4_t a[4];
    float tail[4], sum = 0;
    int k, j;
    for (j = 0; j < 4; j++) a[j] = vdupq_n_f32(0);
    for (k = 0; k + 16 <= m->cols; k += 16)
        for (j = 0; j < 4; j++)
            a[j] = vfmaq_f32(a[j], kvmem__floats4(m->w->type, row, k + 4 * j), vld1q_f32(x + k + 4 * j));
    for (; k + 4 <= m->cols; k += 4) a[0] = vfmaq_f32(a[0], kvmem__floats4(m->w->type, row, k), vld1q_f32(x + k));
    if (k < m->cols) {
        kvmem__decode(m->t, tail, row + (size_t)k * (size_t)m->t->bytes, (size_t)(m->cols - k));
        for (j = 0; k + j < m->cols; j++) sum += tail[j] * x[k + j];
    }
    m->out[(size_t)i * (size_t)m->rows + (size_t)r] =
        sum + vaddvq_f32(vaddq_f32(vaddq_f32(a[0], a[1]), vaddq_f32(a[2], a[3])));
}
/* Panel of 16 rows: codes [nb][8][16][4], then scales and mins [nb * per][16], as on x86. */
#define KVMEM__PANEL_S ((size_t)KVMEM__KC * 16)
#define KVMEM__PANEL_M ((size_t)KVMEM__KC * 20)
static void kvmem__panel_neon(const kvmem__mm *m, uint8_t *panel, int r0, int r1, int b0, int nb) {
    float *s = (float *)(void *)(panel + KVMEM__PANEL_S), *mn = (float *)(void *)(panel + KVMEM__PANEL_M);
    int8_t code[256];
    float rs[16], rm[16];
    int r, at, b, k, j, n;
    memset(rm, 0, sizeof rm);
    for (at = 0; at < nb; at += n) {
        n = KVMEM__MIN(8, nb - at);
        for (r = 0; r < 16; r++) {
            if (r0 + r < r1) kvmem__unpack_neon(m, r0 + r, (b0 + at) * 32, n * 32, code, rs, rm);
            else {
                memset(code, 0, sizeof code);
                memset(rs, 0, sizeof rs);
                memset(rm, 0, sizeof rm);
            }
            for (b = 0; b < n; b++)
                for (k = 0; k < 8; k++) memcpy(panel + ((at + b) * 8 + k) * 64 + r * 4, code + b * 32 + k * 4, 4);
            for (j = 0; j < n * m->per; j++) {
                s[(at * m->per + j) * 16 + r] = rs[m->per == 1 ? 2 * j : j];
                mn[(at * m->per + j) * 16 + r] = rm[m->per == 1 ? 2 * j : j];
            }
        }
    }
}
/* One step of k: eight rows by four activations, the word `lane` of each of these. */
#ifdef __ARM_FEATURE_DOTPROD
#define KVMEM__STEP(lane)                                                                           \
    for (u = 0; u < 4; u++) {                                                                       \
        dot[u][0] = vdotq_laneq_s32(dot[u][0], KVMEM__LDB(panel), x[u], lane);                      \
        dot[u][1] = vdotq_laneq_s32(dot[u][1], KVMEM__LDB(panel + 16), x[u], lane);                 \
    }                                                                                               \
    panel += 64;
#else
#define KVMEM__STEP(lane)                                                                           \
    for (u = 0; u < 4; u++) {                                                                       \
        const int8x16_t v = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x[u]), lane)); \
        dot[u][0] = kvmem__dot4_neon(dot[u][0], KVMEM__LDB(panel), v);                              \
        dot[u][1] = kvmem__dot4_neon(dot[u][1], KVMEM__LDB(panel + 16), v);                         \
    }                                                                                               \
    panel += 64;
#endif
/* Stores the n <= 8 first lanes. */
KVMEM__INLINE void kvmem__store8(float *out, float32x4_t a, float32x4_t b, int n) {
    float lane[8];
    vst1q_f32(lane, a);
    vst1q_f32(lane + 4, b);
    memcpy(out, lane, (size_t)n * 4);
}
/* Eight rows (side 0 to 3 of the tile) against activations u0 .. u0 + 3 of group g. */
KVMEM__INLINE void kvmem__tile_neon(const kvmem__mm *m, uint8_t *panel, int r0, int r1, int b0, int nb, int g,
                                    int side, int u0, const int per) {
    const size_t first = (size_t)g * (size_t)m->padded + (size_t)b0;
    const int8_t *q = m->q + first * 256 + u0 * 32;
    const float *d = m->d + first * 8 + u0, *fs = m->fsum + first * (size_t)per * 8 + u0;
    uint8_t *mine = panel + (size_t)(side / 2) * KVMEM__PANEL_BYTES;
    const float *s = (const float *)(const void *)(mine + KVMEM__PANEL_S) + side % 2 * 8;
    const float *mn = (const float *)(const void *)(mine + KVMEM__PANEL_M) + side % 2 * 8;
    const int n = KVMEM__MIN(4, m->n - g * 8 - u0), rows = KVMEM__MIN(8, r1 - r0 - side * 8);
    float *out = m->out + (size_t)(g * 8 + u0) * (size_t)m->rows + (size_t)(r0 + side * 8);
    float *sum = (float *)(void *)(panel + 2 * KVMEM__PANEL_BYTES) + (g * 8 + u0) * KVMEM__TILE + side * 8;
    float32x4_t acc[4][2];
    int32x4_t dot[4][2];
    int8x16_t x[4];
    int b, h, u, half;
    if (n <= 0 || rows <= 0) return;
    panel = mine + side % 2 * 32;
    for (u = 0; u < 4; u++)
        for (h = 0; h < 2; h++)
            acc[u][h] = b0 ? vld1q_f32(sum + u * KVMEM__TILE + 4 * h) : vdupq_n_f32(0);
    for (b = 0; b < nb; b++, q += 256, d += 8)
        for (half = 0; half < 2; half++) {
            if (half == 0 || per == 2)
                for (u = 0; u < 4; u++) dot[u][0] = dot[u][1] = vdupq_n_s32(0);
            for (u = 0; u < 4; u++) x[u] = KVMEM__LDB(q + u * 32 + half * 16);
            KVMEM__STEP(0)
            KVMEM__STEP(1)
            KVMEM__STEP(2)
            KVMEM__STEP(3)
            if (half == 0 && per == 1) continue;
            for (u = 0; u < 4; u++)
                for (h = 0; h < 2; h++) {
                    acc[u][h] = vfmaq_f32(acc[u][h], vmulq_n_f32(vcvtq_f32_s32(dot[u][h]), d[u]), vld1q_f32(s + 4 * h));
                    if (m->t->has_min) acc[u][h] = vfmaq_n_f32(acc[u][h], vld1q_f32(mn + 4 * h), fs[u]);
                }
            s += 16;
            mn += 16;
            fs += 8;
        }
    for (u = 0; u < 4; u++) {
        if (b0 + nb < m->blocks) kvmem__store8(sum + u * KVMEM__TILE, acc[u][0], acc[u][1], 8);
        else if (u < n) kvmem__store8(out + (size_t)u * (size_t)m->rows, acc[u][0], acc[u][1], rows);
    }
}
static void kvmem__many_neon(const kvmem__mm *m, uint8_t *panel, int r0, int r1, int b0, int nb) {
    int i, side;
    for (i = 0; i < m->n; i += 4)
        for (side = 0; side < 4; side++) {
            if (m->per == 1) kvmem__tile_neon(m, panel, r0, r1, b0, nb, i / 8, side, i % 8, 1);
            else kvmem__tile_neon(m, panel, r0, r1, b0, nb, i / 8, side, i % 8, 2);
        }
}
/* Float tensors: [k][32] of columns [k0, k0 + nk). */
static void kvmem__panel_float_neon(const kvmem__mm *m, float *panel, int r0, int r1, int k0, int nk) {
    float row[KVMEM__KC_FLOAT];
    int r, k;
    for (r = 0; r < KVMEM__TILE; r++) {
        memset(row, 0, sizeof row);
        if (r0 + r < r1) {
            const uint8_t *p = kvmem__mm_row(m, r0 + r);
            for (k = 0; k + 4 <= nk; k += 4) vst1q_f32(row + k, kvmem__floats4(m->w->type, p, k0 + k));
            if (k < nk) kvmem__decode(m->t, row + k, p + (size_t)(k0 + k) * (size_t)m->t->bytes, (size_t)(nk - k));
        }
        for (k = 0; k < nk; k++) panel[k * KVMEM__TILE + r] = row[k];
    }
}
static void kvmem__many_float_neon(const kvmem__mm *m, float *panel, int r0, int r1, int k0, int nk) {
    int i, k, u, side;
    for (i = 0; i < m->n; i += 8)
        for (side = 0; side < 4; side++) {
            const int rows = KVMEM__MIN(8, r1 - r0 - side * 8);
            float *out = m->out + (size_t)i * (size_t)m->rows + (size_t)(r0 + side * 8);
            float *sum = panel + KVMEM__PANEL_BYTES / 2 + i * KVMEM__TILE + side * 8;
            const float *x[8], *p = panel + side * 8;
            float32x4_t a[8], b[8];
            if (rows <= 0) break;
            KVMEM__UNROLL
            for (u = 0; u < 8; u++) {
                x[u] = m->x + (size_t)KVMEM__MIN(i + u, m->n - 1) * (size_t)m->cols + (size_t)k0;
                a[u] = k0 ? vld1q_f32(sum + u * KVMEM__TILE) : vdupq_n_f32(0);
                b[u] = k0 ? vld1q_f32(sum + u * KVMEM__TILE + 4) : vdupq_n_f32(0);
            }
            for (k = 0; k < nk; k++) {
                const float32x4_t w0 = vld1q_f32(p + k * KVMEM__TILE), w1 = vld1q_f32(p + k * KVMEM__TILE + 4);
                KVMEM__UNROLL
                for (u = 0; u < 8; u++) {
                    a[u] = vfmaq_n_f32(a[u], w0, x[u][k]);
                    b[u] = vfmaq_n_f32(b[u], w1, x[u][k]);
                }
            }
            KVMEM__UNROLL
            for (u = 0; u < 8; u++) {
                if (k0 + nk < m->cols) kvmem__store8(sum + u * KVMEM__TILE, a[u], b[u], 8);
                else if (i + u < m->n) kvmem__store8(out + (size_t)u * (size_t)m->rows, a[u], b[u], rows);
            }
        }
}
/* Rows [r0, r1) of W, at most 32 of them. */
static void kvmem__mm_rows_neon(const kvmem__mm *m, int r0, int r1, uint8_t *panel) {
    int at, n, r, i;
    if (!m->integers && m->t->off >= 0) kvmem__mm_rows_plain(m, r0, r1, panel);
    else if (m->n <= KVMEM__FEW) {
        for (r = r0; r < r1; r++) {
            if (m->integers) kvmem__row_neon(m, r);
            else for (i = 0; i < m->n; i++) kvmem__row_float_neon(m, r, i);
        }
    } else if (m->integers) {
        for (at = 0; at < m->blocks; at += n) {
            n = KVMEM__MIN(KVMEM__KC / 32, m->blocks - at);
            kvmem__panel_neon(m, panel, r0, r1, at, n);
            kvmem__panel_neon(m, panel + KVMEM__PANEL_BYTES, r0 + 16, r1, at, n);
            kvmem__many_neon(m, panel, r0, r1, at, n);
        }
    } else {
        for (at = 0; at < m->cols; at += n) {
            float *p = (float *)(void *)panel;
            n = KVMEM__MIN(KVMEM__KC_FLOAT, m->cols - at);
            kvmem__panel_float_neon(m, p, r0, r1, at, n);
            kvmem__many_float_neon(m, p, r0, r1, at, n);
        }
    }
}
static void kvmem__matmul_neon(const kvmem_backend *b, float *out, const kvmem_tensor *w, const float *x, int n,
                               void *scratch, int threads) {
    (void)b;
    kvmem__mm_start(out, w, x, n, scratch, threads, 0, kvmem__quantize_row_neon, kvmem__mm_rows_neon);
}
#endif /* KVMEM_NO_DECODER */
#endif /* KVMEM__NEON */

/* ==== >>linear : rotations, signs and packed codes, shared by codecs ==============================
   Hadamard. H of n = 2^k values in natural (Sylvester) order, H[i][j] = (-1)^(bits of i & j), made by k
   rounds of butterflies (a, b) -> (a + b, a - b); times 1 / sqrt(n) it is orthonormal, symmetric and its
   own inverse. O(n log n).
   Randomized Hadamard (RHT). y = H (s * x) with random signs s; back x = s * (H y). It spreads a few large
   channels over all of them, so that one scale fits a block, and keeps every inner product: <y, y'> =
   <x, x'>. Rows whose d is no power of two are cut into blocks of the largest power of two that divides d;
   blocks do not mix. An odd d has blocks of one value: only the signs are left.
   Signs. s_i = +1 if the top bit of mix(seed * 1000003 + i) is 0, else -1 (kvmem__mix of >>numerics):
   seed 1 gives + + - + + - + + for i = 0..7.
   Packed codes. n codes of 1..8 bits follow each other from the lowest bit of the first byte on; a row of
   codes begins at a byte and ends with zero bits. Eight codes of b bits are b bytes, so they are packed
   eight at a time: three steps that halve the groups inside a 64-bit word, the same on any host.
   Columns. Gram-Schmidt makes them orthonormal; power iteration finds the few that carry most of a matrix.
   Levels. Lloyd-Max finds the best levels for a known density; see there.
   test: tests/linear.c */
KVMEM__UNUSED static void kvmem__fwht(float *x, int n) { /* in place; n a power of two */
    const float scale = 1.0f / sqrtf((float)n);
    int h, i, j;
    for (h = 1; h < n; h *= 2) {
        for (i = 0; i < n; i += 2 * h) {
            for (j = i; j < i + h; j++) {
                const float a = x[j], b = x[j + h];
                x[j] = a + b;
                x[j + h] = a - b;
            }
        }
    }
    for (i = 0; i < n && n > 1; i++) x[i] *= scale;
}
KVMEM__UNUSED static float kvmem__sign(uint64_t seed, uint64_t i) {
    return kvmem__mix(seed * 1000003u + i) >> 63 ? -1.0f : 1.0f;
}
KVMEM__UNUSED static void kvmem__signs(float *s, int n, uint64_t seed) { /* s (n) */
    int i;
    for (i = 0; i < n; i++) s[i] = kvmem__sign(seed, (uint64_t)i);
}
KVMEM__UNUSED static int kvmem__pow2_in(int d) { return d & -d; } /* the largest power of two dividing d >= 1 */

/* x (d) in place: signs (d; NULL: none), then H of each block. block: a power of two that divides d. */
KVMEM__UNUSED static void kvmem__rht(float *x, const float *signs, int d, int block) {
    int i;
    for (i = 0; i < d && signs; i++) x[i] *= signs[i];
    for (i = 0; i < d; i += block) kvmem__fwht(x + i, block);
}
KVMEM__UNUSED static void kvmem__rht_back(float *x, const float *signs, int d, int block) {
    int i;
    for (i = 0; i < d; i += block) kvmem__fwht(x + i, block);
    for (i = 0; i < d && signs; i++) x[i] *= signs[i];
}

/* Columns i and j of a (n rows, r apart): <i, j>; and a_j += by a_i. */
KVMEM__UNUSED static double kvmem__col_dot(const float *a, int n, int r, int i, int j) {
    double dot = 0;
    int t;
    for (t = 0; t < n; t++, a += r) dot += (double)a[i] * (double)a[j];
    return dot;
}
KVMEM__UNUSED static void kvmem__col_add(float *a, int n, int r, int j, double by, int i) {
    int t;
    for (t = 0; t < n; t++, a += r) a[j] = (float)((double)a[j] + by * (double)a[i]);
}
/* Orthonormal columns: a (n, r) in place, rows ld apart. Gram-Schmidt, every column twice against those before it (once
   loses orthogonality where columns are nearly parallel), sums in double. A column that depends on those
   before it, as any past the n-th does, becomes 0. */
KVMEM__UNUSED static void kvmem__orthonormal(float *a, int n, int r, int ld) {
    int i, j, round;
    for (j = 0; j < r; j++) {
        const double before = kvmem__col_dot(a, n, ld, j, j);
        double after;
        for (round = 0; round < 2; round++)
            for (i = 0; i < j; i++) kvmem__col_add(a, n, ld, j, -kvmem__col_dot(a, n, ld, i, j), i);
        after = kvmem__col_dot(a, n, ld, j, j);
        kvmem__col_add(a, n, ld, j, (after > 1e-12 * before && after > 0 ? 1 / sqrt(after) : 0) - 1, j);
    }
}
/* out (n, k) += a (n, d) . b (d, k). */
KVMEM__UNUSED static void kvmem__mul_add(float *out, const float *a, const float *b, int n, int d, int k) {
    int t, c, i;
    for (t = 0; t < n; t++, out += k, a += d)
        for (c = 0; c < d; c++)
            for (i = 0; i < k; i++) out[i] += a[c] * b[(size_t)c * (size_t)k + (size_t)i];
}
/* out (d, k) += transposed a (n, d) . b (n, k). */
KVMEM__UNUSED static void kvmem__mul_add_t(float *out, const float *a, const float *b, int n, int d, int k) {
    int t, c, i;
    for (t = 0; t < n; t++, a += d, b += k)
        for (c = 0; c < d; c++)
            for (i = 0; i < k; i++) out[(size_t)c * (size_t)k + (size_t)i] += a[c] * b[i];
}
/* Low rank by power iteration: e (n, d) ~ q p^T, q (n, r), p (d, r). From a p that is uniform in [0, 1) by
   the seed, `loops` rounds of q = e p, p = e^T q; q is made orthonormal in the last one, so that q p^T is e
   projected on the columns of q. p is made orthonormal in every round: that leaves its span as it is, and
   without it float32 loses all but the largest directions. */
KVMEM__UNUSED static void kvmem__low_rank(float *q, float *p, const float *e, int n, int d, int r, int loops,
                                          uint64_t seed) {
    int i;
    for (i = 0; i < d * r; i++) p[i] = (float)kvmem__unit(kvmem__random(seed, (uint64_t)i, 0, 0));
    for (i = 0; i < loops; i++) {
        kvmem__orthonormal(p, d, r, r);
        memset(q, 0, (size_t)n * (size_t)r * sizeof *q);
        kvmem__mul_add(q, e, p, n, d, r);
        if (i == loops - 1) kvmem__orthonormal(q, n, r, r);
        memset(p, 0, (size_t)d * (size_t)r * sizeof *p);
        kvmem__mul_add_t(p, e, q, n, d, r);
    }
}

/* Spin: an orthonormal rotation for every d, that mixes all channels. d a power of two: RHT. Else with P
   the largest power of two below d: RHT of the first P channels, then of the last P; signs (2 d). */
KVMEM__UNUSED static int kvmem__pow2_to(int d) { /* the largest power of two <= d */
    int p = 1;
    while (p <= d / 2) p *= 2;
    return p;
}
KVMEM__UNUSED static void kvmem__spin(float *x, const float *signs, int d) {
    const int p = kvmem__pow2_to(d);
    kvmem__rht(x, signs, p, p);
    if (p < d) kvmem__rht(x + d - p, signs + d, p, p);
}
KVMEM__UNUSED static void kvmem__spin_back(float *x, const float *signs, int d) {
    const int p = kvmem__pow2_to(d);
    if (p < d) kvmem__rht_back(x + d - p, signs + d, p, p);
    kvmem__rht_back(x, signs, p, p);
}
/* Number i of a stream of independent normal numbers: Box and Muller. */
KVMEM__UNUSED static float kvmem__gauss(uint64_t seed, uint64_t i) {
    const double u = 1 - kvmem__unit(kvmem__random(seed, i, 0, 0)), v = kvmem__unit(kvmem__random(seed, i, 1, 0));
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

/* Bytes of n codes. */
KVMEM__UNUSED static size_t kvmem__bits_bytes(int n, int bits) { return ((size_t)n * (size_t)bits + 7) / 8; }
/* Eight codes, one in each byte, to 8 * bits bits and back. */
KVMEM__UNUSED static uint64_t kvmem__bits_join(uint64_t x, int bits) {
    const uint64_t one = (1u << bits) - 1u, two = (1u << 2 * bits) - 1u, four = ((uint64_t)1 << 4 * bits) - 1u;
    x = (x & one * 0x0001000100010001u) | (x >> (8 - bits) & (one << bits) * 0x0001000100010001u);
    x = (x & two * 0x0000000100000001u) | (x >> (16 - 2 * bits) & (two << 2 * bits) * 0x0000000100000001u);
    return (x & four) | (x >> (32 - 4 * bits) & four << 4 * bits);
}
KVMEM__UNUSED static uint64_t kvmem__bits_split(uint64_t x, int bits) {
    const uint64_t one = (1u << bits) - 1u, two = (1u << 2 * bits) - 1u, four = ((uint64_t)1 << 4 * bits) - 1u;
    x = (x & four) | (x & four << 4 * bits) << (32 - 4 * bits);
    x = (x & two * 0x0000000100000001u) | (x & (two << 2 * bits) * 0x0000000100000001u) << (16 - 2 * bits);
    return (x & one * 0x0001000100010001u) | (x & (one << bits) * 0x0001000100010001u) << (8 - bits);
}
/* code (n), each below 2^bits -> out (bits_bytes). */
KVMEM__UNUSED static void kvmem__bits_put(uint8_t *out, const uint8_t *code, int n, int bits) {
    for (; n > 0; n -= 8, code += 8, out += bits) {
        uint8_t last[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
        uint64_t x;
        int j;
        if (n < 8) memcpy(last, code, (size_t)n);
        x = kvmem__bits_join(kvmem__le64(n < 8 ? last : code), bits);
        kvmem__put64(last, x);
        j = n < 8 ? (int)kvmem__bits_bytes(n, bits) : bits;
        memcpy(out, last, (size_t)j);
    }
}
/* Codes i0 .. i0 + n of a row at in -> code (n). Reads only bytes that hold bits of these codes. */
KVMEM__UNUSED static void kvmem__bits_get(uint8_t *code, const uint8_t *in, int i0, int n, int bits) {
    int i = 0, j, k;
    while (i < n) {
        const int first = (i0 + i) % 8, m = KVMEM__MIN(8 - first, n - i);
        const uint8_t *p = in + (size_t)((i0 + i) / 8) * (size_t)bits;
        uint64_t x = 0;
        if (m == 8 && n - i >= 64 / bits) x = kvmem__le64(p); /* 8 bytes hold wanted codes only */
        else
            for (j = first * bits / 8, k = (first + m) * bits; 8 * j < k; j++) x |= (uint64_t)p[j] << 8 * j;
        x = kvmem__bits_split(x, bits);
        if (m == 8) kvmem__put64(code + i, x);
        else
            for (j = 0; j < m; j++) code[i + j] = (uint8_t)(x >> 8 * (first + j) & 255);
        i += m;
    }
}

/* A finite number that a half can hold: NaN becomes 0, the rest stops at +-65504. */
KVMEM__UNUSED static float kvmem__finite(float x) {
    return x != x ? 0.0f : x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
}

/* Lloyd-Max. The n levels that code a random number with the least mean squared error: every level is the
   mean of its cell, every border the middle of two levels. f is the density on [lo, hi] up to a factor, a
   its parameter; keep lo and hi to where the mass is. Start: quantiles of f^(1/3), the density of levels
   for large n. Then Newton's method for level = mean(cell), a tridiagonal system, as
       d mean / d border = f(border) |border - mean| / mass;
   a step that breaks the order of the levels or does not help is replaced by Lloyd's own, level <- mean.
   Integrals: 8-point Gauss-Legendre on pieces of a cell. Standard normal, n = 4: -+.4528, -+1.5104. */
#define KVMEM__MAX_LEVELS 256
typedef double (*kvmem__density)(double x, double a);
/* The mean of f on [from, to] (the middle, if there is no mass), and the mass. */
static double kvmem__cell_mean(kvmem__density f, double a, double from, double to, int pieces,
                               double *mass) {
    static const double x[4] = { 0.1834346424956498, 0.5255324099163290, 0.7966664774136267,
                                 0.9602898564975363 };
    static const double w[4] = { 0.3626837833783620, 0.3137066458778873, 0.2223810344533745,
                                 0.1012285362903763 };
    const double h = (to - from) / (2 * pieces), mid = (from + to) / 2;
    double m0 = 0, m1 = 0;
    int i, j;
    for (i = 0; i < pieces; i++) {
        for (j = 0; j < 4; j++) {
            const double c = from + (2 * i + 1) * h;
            const double f0 = w[j] * f(c - x[j] * h, a), f1 = w[j] * f(c + x[j] * h, a);
            m0 += f0 + f1;
            m1 += f0 * (c - x[j] * h - mid) + f1 * (c + x[j] * h - mid);
        }
    }
    *mass = m0 * h;
    return m0 > 0 ? mid + m1 / m0 : mid;
}
KVMEM__UNUSED static void kvmem__lloyd_max(double *level, int n, kvmem__density f, double a, double lo,
                                           double hi) {
    const int steps = 4096, pieces = 4 + 128 / n;
    const double dx = (hi - lo) / steps;
    double mean[KVMEM__MAX_LEVELS], up[KVMEM__MAX_LEVELS], rhs[KVMEM__MAX_LEVELS];
    double sum = 0, run = 0, best = DBL_MAX;
    int i, k, round;
    for (i = 0; i < steps; i++) sum += cbrt(f(lo + (i + 0.5) * dx, a));
    for (i = k = 0; i < steps && k < n; i++) {
        const double part = cbrt(f(lo + (i + 0.5) * dx, a));
        for (; k < n && run + part >= (k + 0.5) / n * sum; k++)
            level[k] = lo + (i + ((k + 0.5) / n * sum - run) / part) * dx;
        run += part;
    }
    for (; k < n; k++) level[k] = hi; /* rounding may leave the last one */
    for (round = 0; round < 1000; round++) {
        double worst = 0, step = 0, before = 0;
        int good = 1;
        for (k = 0; k < n; k++) {
            const double from = k ? (level[k - 1] + level[k]) / 2 : lo;
            const double to = k < n - 1 ? (level[k] + level[k + 1]) / 2 : hi;
            double mass, l, r, diag;
            mean[k] = kvmem__cell_mean(f, a, from, to, pieces, &mass);
            l = k && mass > 0 ? 0.5 * f(from, a) * (mean[k] - from) / mass : 0;
            r = k < n - 1 && mass > 0 ? 0.5 * f(to, a) * (to - mean[k]) / mass : 0;
            worst = KVMEM__MAX(worst, fabs(mean[k] - level[k]));
            diag = 1 - l - r + (k ? l * up[k - 1] : 0); /* up holds minus the upper diagonal, eliminated */
            up[k] = r / -diag;
            rhs[k] = (mean[k] - level[k] + (k ? l * rhs[k - 1] : 0)) / diag;
        }
        if (worst <= 1e-13 * (hi - lo)) break;
        for (k = n - 1; k >= 0 && good; k--) {
            step = rhs[k] - (k < n - 1 ? up[k] * step : 0);
            rhs[k] = level[k] + step;
            good = rhs[k] > lo && rhs[k] < hi && (k == n - 1 || rhs[k] < before);
            before = rhs[k];
        }
        memcpy(level, good && worst < best ? rhs : mean, (size_t)n * sizeof *level);
        best = worst;
    }
}
/* The cell of x among n levels whose n - 1 rising borders are mid; a border belongs to the upper cell. */
KVMEM__UNUSED static int kvmem__cell_of(const float *mid, int n, float x) {
    int lo = 0, hi = n - 1;
    while (lo < hi) {
        const int m = (lo + hi) / 2;
        if (x >= mid[m]) lo = m + 1;
        else hi = m;
    }
    return lo;
}

/* ==== >>calibrate : k-means, eigenvectors, Cholesky: what codecs learn with ========================
   Levels of a scalar quantizer are k-means on a line, codebooks of vectors k-means in d dimensions, the
   best low-rank basis the eigenvectors of a covariance; a metric H = L L^T turns a weighted distance into
   a plain one: (k - c) H (k - c)^T = |k L - c L|^2 for rows k, c. All of it is deterministic (seeds are
   given) and wants finite values. It runs once a lane, on at most KVMEM_LEARN_ROWS rows: plain loops.
   test: tests/calibrate.c */
/* Sorts x (n) rising by heap sort; w (n), unless NULL, moves along. */
KVMEM__UNUSED static void kvmem__sort_floats(float *x, float *w, int n) {
    int i = n / 2 - 1, end = n;
    while (end > 1) {
        int root, child;
        float v, u = 0;
        if (i >= 0) root = i--;
        else {
            end--;
            root = 0;
            v = x[0]; x[0] = x[end]; x[end] = v;
            if (w) { u = w[0]; w[0] = w[end]; w[end] = u; }
        }
        v = x[root];
        if (w) u = w[root];
        for (; (child = 2 * root + 1) < end; root = child) {
            if (child + 1 < end && x[child + 1] > x[child]) child++;
            if (x[child] <= v) break;
            x[root] = x[child];
            if (w) w[root] = w[child];
        }
        x[root] = v;
        if (w) w[root] = u;
    }
}
/* The level (k of them, rising) nearest to v; the upper one on a tie. */
KVMEM__UNUSED static int kvmem__nearest_level(const float *level, int k, float v) {
    int lo = 0, hi = k - 1;
    while (lo < hi) {
        const int mid = (lo + hi) / 2;
        if (v >= 0.5f * level[mid] + 0.5f * level[mid + 1]) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}
/* The value at share p (0..1) of x (n, rising), linear between neighbours. */
KVMEM__UNUSED static float kvmem__percentile(const float *x, int n, double p) {
    const double at = p * (n - 1);
    const int i = at < n - 1 ? (int)at : n - 1;
    const double part = at - i;
    return part > 0 && i + 1 < n ? (float)((1 - part) * (double)x[i] + part * (double)x[i + 1]) : x[i];
}

/* One round of k-means on a line: every level moves to the weighted mean of the values nearest to it; one
   without values goes to the worst served value. Returns the largest move. */
static double kvmem__kmeans1_round(float *level, int k, const float *x, const float *w, int n) {
    double most = 0, worst = 0;
    int j, i = 0, empty = -1, at = 0;
    for (j = 0; j < k; j++) {
        const float old = level[j], to = j + 1 < k ? 0.5f * old + 0.5f * level[j + 1] : FLT_MAX;
        double sum = 0, weight = 0;
        for (; i < n && (x[i] < to || j + 1 == k); i++) {
            const double u = w ? (double)w[i] : 1.0, far = (double)x[i] - (double)old;
            sum += u * (double)x[i];
            weight += u;
            if (u * far * far > worst) { worst = u * far * far; at = i; }
        }
        if (weight > 0) {
            level[j] = (float)(sum / weight);
            most = KVMEM__MAX(most, fabs((double)level[j] - (double)old));
        } else empty = j;
    }
    if (empty >= 0 && worst > 0) { /* out of its place and in again at its rank */
        const float v = x[at];
        for (j = empty; j + 1 < k; j++) level[j] = level[j + 1];
        for (j = k - 1; j > 0 && level[j - 1] > v; j--) level[j] = level[j - 1];
        level[j] = v;
        most = KVMEM__MAX(most, sqrt(worst));
    }
    return most;
}
/* k-means on a line (Lloyd 1957; MacQueen 1967): k rising levels for the finite values x (n) with weights
   w >= 0 (NULL: all 1), both sorted here in place. It starts at the (j + 1/2) / k quantiles, so nothing is
   random, and ends when no level moves by more than 1e-6 of the range, or after so many rounds. */
KVMEM__UNUSED static void kvmem__kmeans1(float *level, int k, float *x, float *w, int n, int rounds) {
    double total = 0, sum = 0, range;
    int i, j;
    kvmem__sort_floats(x, w, n);
    for (i = 0; i < n; i++) total += w ? (double)w[i] : 1.0;
    for (i = 0, j = 0; j < k; j++) {
        const double to = (j + 0.5) / k * total;
        for (; i + 1 < n && sum + (w ? (double)w[i] : 1.0) <= to; i++) sum += w ? (double)w[i] : 1.0;
        level[j] = n ? x[i] : 0.0f;
    }
    if (!n) return;
    range = (double)x[n - 1] - (double)x[0];
    for (i = 0; i < rounds && kvmem__kmeans1_round(level, k, x, w, n) > 1e-6 * range; i++) {}
}

/* |a - b|^2 */
KVMEM__UNUSED static float kvmem__distance2(const float *a, const float *b, int d) {
    float s[KVMEM__LANES] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    int i, j;
    for (i = 0; i + KVMEM__LANES <= d; i += KVMEM__LANES)
        for (j = 0; j < KVMEM__LANES; j++) s[j] += (a[i + j] - b[i + j]) * (a[i + j] - b[i + j]);
    for (j = 0; i < d; i++, j++) s[j] += (a[i] - b[i]) * (a[i] - b[i]);
    return kvmem__sum8(s);
}
/* The row of c (k, d) nearest to x, the lower one on a tie; its squared distance in *far, unless NULL. */
KVMEM__UNUSED static int kvmem__nearest_row(const float *c, int k, const float *x, int d, float *far) {
    float least = INFINITY;
    int j, best = 0;
    for (j = 0; j < k; j++) {
        const float s = kvmem__distance2(c + (size_t)j * (size_t)d, x, d);
        if (s < least) { least = s; best = j; }
    }
    if (far) *far = least;
    return best;
}
/* k-means++ (Arthur, Vassilvitskii 2007): the first row is drawn evenly, each next one with a chance that
   grows with its squared distance to the rows drawn before. far (n) is scratch. */
static void kvmem__kmeans_start(float *c, int k, const float *x, int n, int d, uint64_t seed, float *far) {
    const size_t row = (size_t)d;
    int i, j, at = (int)(kvmem__unit(kvmem__random(seed, 0, 0, 0)) * n);
    for (i = 0; i < n; i++) far[i] = INFINITY;
    for (j = 0;; j++) {
        double sum = 0, draw;
        memcpy(c + (size_t)j * row, x + (size_t)at * row, row * sizeof(float));
        if (j + 1 == k) return;
        for (i = 0; i < n; i++) {
            const float s = kvmem__distance2(c + (size_t)j * row, x + (size_t)i * row, d);
            far[i] = KVMEM__MIN(far[i], s);
            sum += (double)far[i];
        }
        draw = kvmem__unit(kvmem__random(seed, (uint64_t)j + 1, 0, 0)) * sum;
        for (at = 0; at + 1 < n && (draw -= (double)far[at]) >= 0; at++) {}
    }
}
/* k-means of the rows x (n, d): c (k, d) by k-means++ and at most `rounds` rounds of Lloyd; stops when no row
   changes its centre. A centre that loses all rows moves to the row that is farthest from its own.
   scratch: kvmem__kmeans_floats. With k >= n every row is a centre. */
KVMEM__UNUSED static int kvmem__kmeans_floats(int k, int n) { return 2 * n + k; }
KVMEM__UNUSED static void kvmem__kmeans(float *c, int k, const float *x, int n, int d, int rounds,
                                        uint64_t seed, float *scratch) {
    const size_t row = (size_t)d;
    float *far = scratch, *own = far + n, *count = own + n; /* own: the row's centre */
    int i, j, m, changed = 1;
    if (k >= n) {
        for (j = 0; j < k; j++) memcpy(c + (size_t)j * row, x + (size_t)(j % n) * row, row * sizeof(float));
        return;
    }
    kvmem__kmeans_start(c, k, x, n, d, seed, far);
    for (i = 0; i < n; i++) own[i] = -1;
    while (rounds-- > 0 && changed) {
        changed = 0;
        for (i = 0; i < n; i++) {
            const float best = (float)kvmem__nearest_row(c, k, x + (size_t)i * row, d, far + i);
            if (best != own[i]) { own[i] = best; changed = 1; }
        }
        if (!changed) break;
        memset(c, 0, (size_t)k * row * sizeof(float));
        memset(count, 0, (size_t)k * sizeof(float));
        for (i = 0; i < n; i++) {
            float *to = c + (size_t)own[i] * row;
            for (m = 0; m < d; m++) to[m] += x[(size_t)i * row + (size_t)m];
            count[(int)own[i]]++;
        }
        for (j = 0; j < k; j++) {
            float *to = c + (size_t)j * row;
            if (count[j] > 0) { for (m = 0; m < d; m++) to[m] /= count[j]; continue; }
            for (m = 0, i = 1; i < n; i++) if (far[i] > far[m]) m = i;
            memcpy(to, x + (size_t)m * row, row * sizeof(float));
            far[m] = 0;
        }
    }
}

/* One rotation of Jacobi's method: makes a[p][q] zero by turning axes p and q of a (d, d) and vec. */
static void kvmem__jacobi_turn(float *a, float *vec, int d, int p, int q) {
    const size_t row = (size_t)d;
    float *ap = a + (size_t)p * row, *aq = a + (size_t)q * row;
    float *vp = vec + (size_t)p * row, *vq = vec + (size_t)q * row;
    const double h = ((double)aq[q] - (double)ap[p]) / (2 * (double)ap[q]);
    const double t = (h < 0 ? -1 : 1) / (fabs(h) + sqrt(h * h + 1));
    const float c = (float)(1 / sqrt(t * t + 1)), s = (float)(t / sqrt(t * t + 1));
    const float pp = (float)((double)ap[p] - t * (double)ap[q]);
    const float qq = (float)((double)aq[q] + t * (double)ap[q]);
    int i;
    for (i = 0; i < d; i++) {
        const float u = ap[i], v = aq[i], x = vp[i], y = vq[i];
        ap[i] = c * u - s * v;
        aq[i] = s * u + c * v;
        vp[i] = c * x - s * y;
        vq[i] = s * x + c * y;
    }
    for (i = 0; i < d; i++) {
        a[(size_t)i * row + (size_t)p] = ap[i];
        a[(size_t)i * row + (size_t)q] = aq[i];
    }
    ap[p] = pp;
    aq[q] = qq;
    ap[q] = aq[p] = 0;
}
/* Eigenvalues val (d), falling, and unit eigenvectors, the rows of vec (d, d), of a symmetric finite matrix
   a (d, d), which is destroyed. Cyclic Jacobi (1846): sweeps of plane rotations until what is off the
   diagonal is 1e-7 of the whole; O(d^3) a sweep, 6 to 10 sweeps. A vector's largest component is positive. */
KVMEM__UNUSED static void kvmem__eigen(float *vec, float *val, float *a, int d) {
    const size_t row = (size_t)d;
    double all = 0;
    int sweep, p, q, i;
    memset(vec, 0, row * row * sizeof(float));
    for (p = 0; p < d; p++) vec[(size_t)p * row + (size_t)p] = 1;
    for (p = 0; p < d * d; p++) all += (double)a[p] * (double)a[p];
    for (sweep = 0; sweep < 40; sweep++) {
        double off = 0;
        for (p = 0; p < d; p++) {
            for (q = p + 1; q < d; q++) {
                const double v = (double)a[(size_t)p * row + (size_t)q];
                off += 2 * v * v;
            }
        }
        if (off <= 1e-14 * all) break;
        for (p = 0; p < d; p++) {
            for (q = p + 1; q < d; q++) {
                const double v = (double)a[(size_t)p * row + (size_t)q];
                if (v * v * d * d > 1e-16 * all) kvmem__jacobi_turn(a, vec, d, p, q);
            }
        }
    }
    for (p = 0; p < d; p++) val[p] = a[(size_t)p * row + (size_t)p];
    for (p = 0; p < d; p++) { /* the largest that is left comes to p */
        float *v = vec + (size_t)p * row, *u, t;
        int best = p;
        for (q = p + 1; q < d; q++) if (val[q] > val[best]) best = q;
        u = vec + (size_t)best * row;
        t = val[p]; val[p] = val[best]; val[best] = t;
        for (i = 0; i < d; i++) { t = v[i]; v[i] = u[i]; u[i] = t; }
        for (i = 0, best = 0; i < d; i++) if (fabsf(v[i]) > fabsf(v[best])) best = i;
        if (v[best] < 0) for (i = 0; i < d; i++) v[i] = -v[i];
    }
}

/* Cholesky: lower triangular l (d, d) with l l^T = a + jitter I for a symmetric a (d, d) that has no negative
   eigenvalue but for rounding; the jitter is raised tenfold until every pivot is positive. Returns it. */
KVMEM__UNUSED static double kvmem__cholesky(float *l, const float *a, int d, double jitter) {
    const size_t row = (size_t)d;
    int i = 0, j, k;
    while (i < d) {
        for (i = 0; i < d; i++) {
            float *li = l + (size_t)i * row;
            for (j = 0; j <= i; j++) {
                const float *lj = l + (size_t)j * row;
                double s = (double)a[(size_t)i * row + (size_t)j] + (i == j ? jitter : 0);
                for (k = 0; k < j; k++) s -= (double)li[k] * (double)lj[k];
                if (i == j && !(s > 0)) break;
                li[j] = i == j ? (float)sqrt(s) : (float)(s / (double)lj[j]);
            }
            if (j <= i || !(li[i] > 0)) break;
            for (j = i + 1; j < d; j++) li[j] = 0;
        }
        if (i < d) jitter = jitter > 0 ? jitter * 10 : 1e-6;
    }
    return jitter;
}
/* With a lower triangular l (d, d): y = x l; x with x l = y; x with x l^T = y (each may be in place). */
KVMEM__UNUSED static void kvmem__lower_mul(float *y, const float *x, const float *l, int d) {
    int i, j;
    for (j = 0; j < d; j++) {
        float s = 0;
        for (i = j; i < d; i++) s += x[i] * l[(size_t)i * (size_t)d + (size_t)j];
        y[j] = s;
    }
}
KVMEM__UNUSED static void kvmem__lower_solve(float *x, const float *y, const float *l, int d) {
    int i, j;
    for (j = d - 1; j >= 0; j--) {
        float s = y[j];
        for (i = j + 1; i < d; i++) s -= x[i] * l[(size_t)i * (size_t)d + (size_t)j];
        x[j] = s / l[(size_t)j * (size_t)d + (size_t)j];
    }
}
KVMEM__UNUSED static void kvmem__lower_solve_t(float *x, const float *y, const float *l, int d) {
    int i, j;
    for (j = 0; j < d; j++) {
        const float *lj = l + (size_t)j * (size_t)d;
        float s = y[j];
        for (i = 0; i < j; i++) s -= lj[i] * x[i];
        x[j] = s / lj[j];
    }
}

/* ==== >>codecs : how the rows of K and V are stored ==============================================
   A codec turns a row (one token's d values of one KV head) into bytes, and attention works on those
   bytes: `dot` gives the scores of nq queries against n rows, `axpy` adds weighted rows to nq outputs.
   Nothing is decoded into a big scratch; a piece of at most 32 values on the stack is all.

   The codecs f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 iq4_nl are chains of pieces (see >>blocks) and share
   everything below. The plain twins are the definition. Sums run left to right inside a piece, then over
   pieces. test: tests/codecs.c */
/* n rows of d values, each cut into pieces: x (n, d) -> rows. */
KVMEM__UNUSED static void kvmem__encode_rows(kvmem__rows kind, void *rows, const float *x, int n, int d) {
    uint8_t *out = (uint8_t *)rows;
    int t, c;
    for (t = 0; t < n; t++, x += d) {
        for (c = 0; c < d; c += KVMEM__PIECE) {
            const int b = KVMEM__MIN(KVMEM__PIECE, d - c);
            kvmem__encode_piece(kind, out, x + c, b);
            out += kvmem__piece_bytes(kind, b);
        }
    }
}
KVMEM__UNUSED static void kvmem__decode_rows(kvmem__rows kind, float *x, const void *rows, int n, int d) {
    const uint8_t *in = (const uint8_t *)rows;
    int t, c;
    for (t = 0; t < n; t++, x += d) {
        for (c = 0; c < d; c += KVMEM__PIECE) {
            const int b = KVMEM__MIN(KVMEM__PIECE, d - c);
            kvmem__decode_piece(kind, x + c, in, b);
            in += kvmem__piece_bytes(kind, b);
        }
    }
}
/* s[i*ld + t] = <q_i, row_t>: q (nq, d), n rows, s (nq, ld). */
KVMEM__UNUSED static void kvmem__dot_rows(kvmem__rows kind, float *s, int ld, const void *rows, int n,
                                          const float *q, int nq, int d) {
    const uint8_t *in = (const uint8_t *)rows;
    float v[KVMEM__PIECE];
    int t, c, i, j;
    for (t = 0; t < n; t++) {
        for (i = 0; i < nq; i++) s[(size_t)i * (size_t)ld + (size_t)t] = 0;
        for (c = 0; c < d; c += KVMEM__PIECE) {
            const int b = KVMEM__MIN(KVMEM__PIECE, d - c);
            kvmem__decode_piece(kind, v, in, b);
            in += kvmem__piece_bytes(kind, b);
            for (i = 0; i < nq; i++) {
                const float *qc = q + (size_t)i * (size_t)d + c;
                float sum = 0;
                for (j = 0; j < b; j++) sum += qc[j] * v[j];
                s[(size_t)i * (size_t)ld + (size_t)t] += sum;
            }
        }
    }
}
/* acc[i*d + c] += sum_t w[i*ld + t] * row_t[c]: acc (nq, d), w (nq, ld). */
KVMEM__UNUSED static void kvmem__axpy_rows(kvmem__rows kind, float *acc, const void *rows, int n,
                                           const float *w, int ld, int nq, int d) {
    const uint8_t *in = (const uint8_t *)rows;
    float v[KVMEM__PIECE];
    int t, c, i, j;
    for (t = 0; t < n; t++) {
        for (c = 0; c < d; c += KVMEM__PIECE) {
            const int b = KVMEM__MIN(KVMEM__PIECE, d - c);
            kvmem__decode_piece(kind, v, in, b);
            in += kvmem__piece_bytes(kind, b);
            for (i = 0; i < nq; i++) {
                const float wt = w[(size_t)i * (size_t)ld + (size_t)t];
                float *a = acc + (size_t)i * (size_t)d + c;
                for (j = 0; j < b; j++) a[j] += wt * v[j];
            }
        }
    }
}

/* What stands in for a codec's dot and axpy where it has none, or none for this shape: rows of `width` floats
   are expanded, KVMEM_MAX_WIDTH floats at a time. qf: floats of a prepared query. */
typedef void (*kvmem__expand_fn)(const kvmem_coded *b, float *out, int t0, int n);
KVMEM__UNUSED static void kvmem__dot_by_expand(kvmem__expand_fn expand, const kvmem_coded *b, int width, int qf, float *s,
                                               int ld, int t0, int n, const float *q, int nq) {
    float v[KVMEM_MAX_WIDTH];
    const int m = KVMEM_MAX_WIDTH / width;
    int t, i, j, k;
    for (t = 0; t < n; t += m) {
        k = KVMEM__MIN(m, n - t);
        expand(b, v, t0 + t, k);
        for (i = 0; i < nq; i++) {
            for (j = 0; j < k; j++)
                s[(size_t)i * (size_t)ld + (size_t)(t + j)] = kvmem__dot_plain(q + (size_t)i * (size_t)qf, v + j * width,
                                                                               width);
        }
    }
}
KVMEM__UNUSED static void kvmem__axpy_by_expand(kvmem__expand_fn expand, const kvmem_coded *b, int width, float *acc,
                                                int t0, int n, const float *w, int ld, int nq) {
    float v[KVMEM_MAX_WIDTH];
    const int m = KVMEM_MAX_WIDTH / width;
    int t, i, j, k;
    for (t = 0; t < n; t += m) {
        k = KVMEM__MIN(m, n - t);
        expand(b, v, t0 + t, k);
        for (i = 0; i < nq; i++) {
            for (j = 0; j < k; j++)
                kvmem__axpy_plain(acc + (size_t)i * (size_t)width, w[(size_t)i * (size_t)ld + (size_t)(t + j)],
                                  v + j * width, width);
        }
    }
}

/* Parameters that every codec of fewer bits takes; the cache does what they say. */
#define KVMEM__CODEC_COMMON                                                                         \
    { "center", 0, 0, 2, "off|head|block", 1, "mean that is subtracted before coding: none, of the KV head, of the page" }, \
    { "residual", 0, 0, 65536, NULL, 1, "newest rows that stay float16" },                          \
    { "flush", 0, 0, 1, NULL, 1, "1: they are coded all at once when they are so many; 0: a page at a time" }, \
    { "sinks", 0, 0, 64, NULL, 1, "first tokens whose rows stay float16" },                         \
    { NULL, 0, 0, 0, NULL, 0, NULL }
static const kvmem_param kvmem__codec_common[] = { KVMEM__CODEC_COMMON };
/* The value of an entry's parameter, `none` if it has no such one. */
static double kvmem__param_of(const kvmem_entry *e, const double *par, const char *name, double none) {
    int i;
    for (i = 0; e->params && e->params[i].name; i++)
        if (!strcmp(e->params[i].name, name)) return par[i];
    return none;
}

static uint8_t *kvmem__row_at(const kvmem_coded *b, int t) { return b->rows + (size_t)t * b->row_bytes; }

/* --- rotation -------------------------------------------------------------------------------------
   The six coded kinds can turn every row by a Hadamard matrix before it is coded (rot=had), after random
   signs if wanted (rot=signs, see >>linear). Queries are turned once, outputs are turned back once, so
   dot and axpy know nothing of it: <H q, H k> = <q, k>, and H (sum w H v) = sum w v. A row with a few large
   channels, which would cost the other 31 of their piece all precision, becomes a row of equals; the bits
   stay the same. Blocks of `block` channels are turned apart; `whole` is the largest power of two in d. Rows
   that are not whole blocks, or whose block would be smaller than `least`, stay as they are.
     presets had, khad, vhad: ikawrakow/ik_llama.cpp -khad -vhad (src/llama-build-context.cpp; fast_ht of
     ggml/src/iqk/iqk_cpu_ops.cpp): keys after RoPE, queries and values, one block if d is a power of two. It
     cuts other d into 512..64; here blocks go on down to the power of two in d.
     preset attn_rot: ggml-org/llama.cpp pull request 21038, on there whenever the cache is quantized: only if
     64 divides d; keys in the largest power of two, values in blocks of 64.
   Signs are ours (the transforms above have none): without them a row that is itself like a line of the
   Hadamard matrix becomes a single spike. stage: codec. cost: O(d log d) a row, a query and an output. */
enum { KVMEM__ROT, KVMEM__ROT_BLOCK, KVMEM__ROT_LEAST, KVMEM__ROT_SEED };
static const kvmem_param kvmem__rot_params[] = {
    { "rot", 0, 0, 2, "none|had|signs", 1, "rows are turned by a Hadamard matrix, with random signs first" },
    { "block", 0, 0, 6, "whole|32|64|128|256|512|1024", 1, "channels turned together; whole: the power of two in d" },
    { "least", 1, 1, 4096, NULL, 1, "rows are not turned in smaller blocks than this" },
    { "seed", 1, 0, 65535, NULL, 1, "of the signs" },
    KVMEM__CODEC_COMMON
};
/* Channels turned together, or 0: the row stays as it is. */
static int kvmem__rot_block(const kvmem_coded *b) {
    const int block = b->par[KVMEM__ROT_BLOCK] > 0 ? 16 << (int)b->par[KVMEM__ROT_BLOCK] : kvmem__pow2_in(b->d);
    return b->par[KVMEM__ROT] > 0 && b->d % block == 0 && block >= (int)b->par[KVMEM__ROT_LEAST] ? block : 0;
}
static void kvmem__rot_row(const kvmem_coded *b, float *out, const float *x) {
    const int block = kvmem__rot_block(b);
    memcpy(out, x, (size_t)b->d * sizeof *x);
    if (block) kvmem__rht(out, (const float *)b->table, b->d, block);
}
static void kvmem__rot_finish(const kvmem_coded *b, float *out, const float *acc) {
    const int block = kvmem__rot_block(b);
    memcpy(out, acc, (size_t)b->d * sizeof *acc);
    if (block) kvmem__rht_back(out, (const float *)b->table, b->d, block);
}
static size_t kvmem__rot_table_bytes(const double *par, int d) {
    return par[KVMEM__ROT] > 1 ? (size_t)d * sizeof(float) : 0;
}
static void kvmem__rot_build(const double *par, int d, void *table) {
    kvmem__signs((float *)table, d, (uint64_t)par[KVMEM__ROT_SEED]);
}
typedef void (*kvmem__encode_fn)(kvmem__rows kind, void *rows, const float *x, int n, int d);
/* n rows x (n, d), turned one by one if the codec turns them. */
static void kvmem__rot_encode(const kvmem_coded *b, kvmem__encode_fn fn, kvmem__rows kind, const float *x, int t0,
                              int n) {
    float row[KVMEM_MAX_WIDTH];
    int t, c;
    for (t = 0; t < n; t++, x += b->d) {
        for (c = 0; c < b->d; c++) /* one bad value must not spoil the block: no NaN, no sum past FLT_MAX */
            row[c] = x[c] == x[c] ? KVMEM__MIN(KVMEM__MAX(x[c], -3e34f), 3e34f) : 0.0f;
        kvmem__rht(row, (const float *)b->table, b->d, kvmem__rot_block(b));
        fn(kind, kvmem__row_at(b, t0 + t), row, 1, b->d);
    }
}
#define KVMEM__ENCODE(name, fn, kind, attr)                                                         \
    attr static void name(const kvmem_coded *b, const float *x, int t0, int n) {                    \
        if (kvmem__is_coded(kind) && kvmem__rot_block(b)) kvmem__rot_encode(b, fn, kind, x, t0, n); \
        else fn(kind, kvmem__row_at(b, t0), x, n, b->d);                                            \
    }

/* The functions of one codec: the loops above with the kind bound. */
#define KVMEM__CODEC(word, kind)                                                                    \
    static size_t kvmem__##word##_bytes(const double *par, int d) {                                 \
        (void)par;                                                                                  \
        return kvmem__row_bytes(kind, d);                                                           \
    }                                                                                               \
    KVMEM__ENCODE(kvmem__##word##_encode, kvmem__encode_rows, kind, )                               \
    static void kvmem__##word##_expand(const kvmem_coded *b, float *out, int t0, int n) {           \
        kvmem__decode_rows(kind, out, kvmem__row_at(b, t0), n, b->d);                               \
    }                                                                                               \
    static void kvmem__##word##_dot(const kvmem_coded *b, float *s, int ld, int t0, int n, const float *q, \
                                    int nq) {                                                       \
        kvmem__dot_rows(kind, s, ld, kvmem__row_at(b, t0), n, q, nq, b->d);                         \
    }                                                                                               \
    static void kvmem__##word##_axpy(const kvmem_coded *b, float *acc, int t0, int n, const float *w, int ld, \
                                     int nq) {                                                      \
        kvmem__axpy_rows(kind, acc, kvmem__row_at(b, t0), n, w, ld, nq, b->d);                      \
    }
#define KVMEM__EACH_CODED(X)                                                                        \
    X(q8_0, KVMEM__ROWS_Q8_0)                                                                       \
    X(q4_0, KVMEM__ROWS_Q4_0)                                                                       \
    X(q4_1, KVMEM__ROWS_Q4_1)                                                                       \
    X(q5_0, KVMEM__ROWS_Q5_0)                                                                       \
    X(q5_1, KVMEM__ROWS_Q5_1)                                                                       \
    X(iq4_nl, KVMEM__ROWS_IQ4_NL)
#define KVMEM__EACH_ROWS(X)                                                                         \
    X(f32, KVMEM__ROWS_F32)                                                                         \
    X(f16, KVMEM__ROWS_F16)                                                                         \
    X(bf16, KVMEM__ROWS_BF16)                                                                       \
    KVMEM__EACH_CODED(X)
KVMEM__EACH_ROWS(KVMEM__CODEC)
#undef KVMEM__CODEC

/* --- fast twins -----------------------------------------------------------------------------------
   Two shapes of `dot`:
   - lanes are channels (f32, f16, bf16; the coded kinds where there are no byte dot products): a block of
     rows times up to 4 queries is kept in registers, each piece of a row is converted once for all
     queries, and the partial sums of 16 (8) pairs are folded together by a transposing tree instead of
     one horizontal sum a pair;
   - lanes are rows (the coded kinds on AVX-512 VNNI, d a multiple of 32): 4 code bytes of each of 16 rows
     stand in one register, and one instruction multiplies them with 4 bytes of the query and adds. The
     query is prepared as 16-bit numbers, one scale per 32 channels, split in two signed bytes; that
     rounding is the only error, at most 1.6e-5 max|q| sum|k| a piece; sums of integers are exact. Fifth
     bits come in by mask, the levels of iq4_nl by a byte permute, minima by the sum of the query.
   `axpy` keeps up to 4 outputs x 64 channels in registers over all rows of the call. On AVX-512 VNNI the
   weights times the scales of the coded kinds become 16-bit numbers, too, one step for 64 rows and a piece:
   an error of at most 1.6e-5 max w max|v| a row.
   A score does not depend on the queries and rows that share its call, an output not on the queries.
   All this is for d a multiple of 16; other rows take the plain twins. */

#if KVMEM__X86
/* The scale in front of a piece. */
KVMEM__AVX2 KVMEM__INLINE float kvmem__scale_f16c(const uint8_t *piece) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128((int)kvmem__le16(piece))));
}

/* ---- AVX-512 ---- */

/* 16 values at channel c of a row of f32, f16 or bf16. */
KVMEM__AVX512 KVMEM__INLINE __m512 kvmem__load_avx512(kvmem__rows kind, const uint8_t *row, int c) {
    if (kind == KVMEM__ROWS_F32) return _mm512_loadu_ps((const void *)(row + 4 * (size_t)c));
    if (kind == KVMEM__ROWS_F16)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * (size_t)c)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(
        _mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * (size_t)c))), 16));
}

/* Lane k of the result is the sum of a[k]; every a[k] is added up in the same order. */
KVMEM__AVX512 KVMEM__INLINE __m512 kvmem__fold_avx512(const __m512 *a) {
    __m512 v[4], x, y;
    int j;
    KVMEM__UNROLL
    for (j = 0; j < 4; j++) {
        x = _mm512_add_ps(_mm512_shuffle_f32x4(a[j], a[4 + j], 0x44), _mm512_shuffle_f32x4(a[j], a[4 + j], 0xee));
        y = _mm512_add_ps(_mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x44),
                          _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xee));
        v[j] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    }
    x = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    y = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    return _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x44), _mm512_shuffle_ps(x, y, 0xee));
}

/* nq (1 to 4) queries against n rows, 16 / nq (4 for 3) rows at a time. Rows past the end repeat the
   last. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__dot_avx512_nq(kvmem__rows kind, int nq, float *s, size_t ld,
                                                      const uint8_t *rows, size_t rb, int n,
                                                      const float *q, int d) {
    const int nr = nq == 3 ? 4 : 16 / nq;
    int t, c, i, r;
    for (t = 0; t < n; t += nr) {
        const int m = KVMEM__MIN(nr, n - t);
        const uint8_t *row[16];
        __m512 a[16], y[4], x;
        KVMEM__UNROLL
        for (r = 0; r < nr; r++) row[r] = rows + rb * (size_t)(t + KVMEM__MIN(r, m - 1));
        KVMEM__UNROLL
        for (i = 0; i < 16; i++) a[i] = _mm512_setzero_ps();
        for (c = 0; c < d; c += 16) {
            KVMEM__UNROLL
            for (i = 0; i < nq; i++) y[i] = _mm512_loadu_ps(q + (size_t)i * (size_t)d + c);
            KVMEM__UNROLL
            for (r = 0; r < nr; r++) {
                x = kvmem__load_avx512(kind, row[r], c);
                KVMEM__UNROLL
                for (i = 0; i < nq; i++) a[i * nr + r] = _mm512_fmadd_ps(x, y[i], a[i * nr + r]);
            }
        }
        x = kvmem__fold_avx512(a);
        if (nq == 1) _mm512_mask_storeu_ps(s + t, (__mmask16)((1u << m) - 1), x);
        else if (nq == 2) { /* the scores of query i stand in lanes i nr .. */
            const __mmask8 some = (__mmask8)((1u << m) - 1);
            _mm256_mask_storeu_ps(s + t, some, _mm512_castps512_ps256(x));
            _mm256_mask_storeu_ps(s + ld + t, some, _mm512_extractf32x8_ps(x, 1));
        } else {
            const __mmask8 some = (__mmask8)((1u << m) - 1);
            _mm_mask_storeu_ps(s + t, some, _mm512_castps512_ps128(x));
            _mm_mask_storeu_ps(s + ld + t, some, _mm512_extractf32x4_ps(x, 1));
            _mm_mask_storeu_ps(s + 2 * ld + t, some, _mm512_extractf32x4_ps(x, 2));
            if (nq == 4) _mm_mask_storeu_ps(s + 3 * ld + t, some, _mm512_extractf32x4_ps(x, 3));
        }
    }
}
/* acc (nq, d) at channels c .. c + 16 nc, over n rows; nq 1, 2 or 4; nc 1, 2 or 4. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__axpy_avx512_nq(kvmem__rows kind, int nq, int nc, float *acc,
                                                       const uint8_t *rows, size_t rb, int n,
                                                       const float *w, size_t ld, int c, int d) {
    __m512 a[16], x[4], y;
    int t, i, k;
    KVMEM__UNROLL
    for (i = 0; i < nq; i++) {
        KVMEM__UNROLL
        for (k = 0; k < nc; k++) a[i * nc + k] = _mm512_loadu_ps(acc + (size_t)i * (size_t)d + c + 16 * k);
    }
    for (t = 0; t < n; t++, rows += rb) {
        KVMEM__UNROLL
        for (k = 0; k < nc; k++) x[k] = kvmem__load_avx512(kind, rows, c + 16 * k);
        KVMEM__UNROLL
        for (i = 0; i < nq; i++) {
            y = _mm512_set1_ps(w[(size_t)i * ld + (size_t)t]);
            KVMEM__UNROLL
            for (k = 0; k < nc; k++) a[i * nc + k] = _mm512_fmadd_ps(x[k], y, a[i * nc + k]);
        }
    }
    KVMEM__UNROLL
    for (i = 0; i < nq; i++) {
        KVMEM__UNROLL
        for (k = 0; k < nc; k++) _mm512_storeu_ps(acc + (size_t)i * (size_t)d + c + 16 * k, a[i * nc + k]);
    }
}
KVMEM__AVX512 KVMEM__INLINE void kvmem__axpy_avx512_q(kvmem__rows kind, int nq, float *acc,
                                                      const uint8_t *rows, size_t rb, int n,
                                                      const float *w, size_t ld, int d) {
    int c = 0;
    for (; d - c >= 64; c += 64) kvmem__axpy_avx512_nq(kind, nq, 4, acc, rows, rb, n, w, ld, c, d);
    for (; d - c >= 32; c += 32) kvmem__axpy_avx512_nq(kind, nq, 2, acc, rows, rb, n, w, ld, c, d);
    for (; d - c >= 16; c += 16) kvmem__axpy_avx512_nq(kind, nq, 1, acc, rows, rb, n, w, ld, c, d);
}
/* Rows to floats, equal to the plain twin bit for bit. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__decode_avx512(kvmem__rows kind, float *out, const void *rows, int n,
                                                      int d) {
    const uint8_t *in = (const uint8_t *)rows;
    const size_t rb = kvmem__row_bytes(kind, d);
    int t, c;
    for (t = 0; t < n; t++, in += rb, out += d) {
        for (c = 0; c < d; c += 16) _mm512_storeu_ps(out + c, kvmem__load_avx512(kind, in, c));
    }
}

/* A query for the byte dot products, 18 words per 32 channels: 8 words of high bytes, 8 of low bytes
   (q ~ (256 high + low) * scale, both signed, 4 channels a word), -zero * sum(q), the scale. zero is what
   the codes carry so that they are not negative (kvmem__code_zero); kinds with a minimum carry nothing and
   need sum(q) itself: zero = -1. */
#define KVMEM__QWORDS 18
KVMEM__AVX512 KVMEM__INLINE void kvmem__q_bytes(float *out, const float *q, int d, int zero) {
    int c;
    for (c = 0; c < d; c += 32, out += KVMEM__QWORDS) {
        const __m512 x = _mm512_loadu_ps(q + c), y = _mm512_loadu_ps(q + c + 16);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x), _mm512_abs_ps(y)));
        const __m512 inv = _mm512_set1_ps(kvmem__inverse(most / 32639.0f));
        const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(x, inv)), b = _mm512_cvtps_epi32(_mm512_mul_ps(y, inv));
        const __m512i half = _mm512_set1_epi32(128);
        const float scale = most / 32639.0f;
        const int sum = -zero * _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
        __m128i *o = (__m128i *)(void *)out;
        _mm_storeu_si128(o, _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(a, half), 8)));
        _mm_storeu_si128(o + 1, _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(b, half), 8)));
        _mm_storeu_si128(o + 2, _mm512_cvtepi32_epi8(a)); /* the low byte of q - 256 high */
        _mm_storeu_si128(o + 3, _mm512_cvtepi32_epi8(b));
        memcpy(out + 16, &sum, 4);
        out[17] = scale;
    }
}
/* acc += products, in place: from the intrinsic gcc 12 makes copies and spills inside the loop of
   kvmem__axpy_pairs, a fifth of its time. */
#define KVMEM__DPWSSD(acc, x, y) __asm__("vpdpwssd {%2, %1, %0|%0, %1, %2}" : "+v"(acc) : "v"(x), "v"(y))
/* Ask for the line at p + n. The byte kernels touch many rows at once, which the processor's own prefetch
   does not follow, so they ask for the row 64 further on: in the cache's pages V follows K, and the lane's
   next page most often follows V. Any address may be asked for. */
#define KVMEM__AHEAD(p, n) _mm_prefetch((const char *)((uintptr_t)(p) + (n)), _MM_HINT_T0)
/* 16 bytes of each of 16 rows: lane i of z[j] is row 4 i + j. KVMEM__HIDE keeps the compiler from giving
   every load a pointer of its own (they would not fit into registers). */
#define KVMEM__HIDE(p) __asm__("" : "+r"(p))
KVMEM__AVX512 KVMEM__INLINE void kvmem__rows16(__m512i *z, const uint8_t *p0, size_t rb) {
    const uint8_t *p4 = p0 + 4 * rb, *p8 = p4 + 4 * rb, *p12 = p8 + 4 * rb;
    int j;
    KVMEM__HIDE(p0);
    KVMEM__HIDE(p4);
    KVMEM__HIDE(p8);
    KVMEM__HIDE(p12);
    KVMEM__UNROLL
    for (j = 0; j < 4; j++) {
        const size_t at = rb * (size_t)j;
        z[j] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(p0 + at)));
        z[j] = _mm512_inserti32x4(z[j], _mm_loadu_si128((const __m128i *)(const void *)(p4 + at)), 1);
        z[j] = _mm512_inserti32x4(z[j], _mm_loadu_si128((const __m128i *)(const void *)(p8 + at)), 2);
        z[j] = _mm512_inserti32x4(z[j], _mm_loadu_si128((const __m128i *)(const void *)(p12 + at)), 3);
    }
}
/* What stands in front of the codes of one piece of 16 rows: scales, minima, fifth bits (a word a row). */
KVMEM__AVX512 KVMEM__INLINE __m512 kvmem__heads16(kvmem__rows kind, __m512 *min, __m512i *fifth, const uint8_t *p,
                                                  size_t rb) {
    __m512i z[4], a, b, w0, w1;
    kvmem__rows16(z, p, rb);
    a = _mm512_unpacklo_epi32(z[0], z[1]);
    b = _mm512_unpacklo_epi32(z[2], z[3]);
    w0 = _mm512_unpacklo_epi64(a, b);
    w1 = _mm512_unpackhi_epi64(a, b);
    if (kvmem__has_min(kind)) *min = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(w0, 16)));
    else *min = _mm512_setzero_ps();
    *fifth = kvmem__has_min(kind) ? w1 : _mm512_or_si512(_mm512_srli_epi32(w0, 16), _mm512_slli_epi32(w1, 16));
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(w0));
}
/* z -> w[c]: word c (4 bytes) of rows 0..15. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__words16(__m512i *w, const __m512i *z) {
    const __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpacklo_epi32(z[2], z[3]);
    const __m512i e = _mm512_unpackhi_epi32(z[0], z[1]), f = _mm512_unpackhi_epi32(z[2], z[3]);
    w[0] = _mm512_unpacklo_epi64(a, b);
    w[1] = _mm512_unpackhi_epi64(a, b);
    w[2] = _mm512_unpacklo_epi64(e, f);
    w[3] = _mm512_unpackhi_epi64(e, f);
}
/* w[c] (4 words of raw codes of 16 rows, channels 16 half + 4 c ..) -> codes that are not negative. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__codes16(kvmem__rows kind, __m512i *y, const __m512i *w, int half, __m512i fifth) {
    const __m512i level = _mm512_broadcast_i32x4(_mm_xor_si128(_mm_setr_epi8(KVMEM__IQ4_LEVELS),
                                                               _mm_set1_epi8((char)-128)));
    const __m512i first = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    int c;
    KVMEM__UNROLL
    for (c = 0; c < 4; c++) {
        if (kind == KVMEM__ROWS_Q8_0) y[c] = _mm512_xor_si512(w[c], _mm512_set1_epi8((char)-128));
        else y[c] = _mm512_and_si512(half ? _mm512_srli_epi16(w[c], 4) : w[c], _mm512_set1_epi8(15));
        if (kind == KVMEM__ROWS_IQ4_NL) y[c] = _mm512_shuffle_epi8(level, y[c]);
        if (kvmem__has_fifth(kind)) { /* byte 2 half + c / 2 of a row's bits, for each of its 4 codes */
            const __m512i byte = _mm512_shuffle_epi8(fifth, _mm512_add_epi8(first, _mm512_set1_epi8((char)(2 * half + c / 2))));
            const __m512i bit = _mm512_set1_epi32(c % 2 ? (int)0x80402010u : 0x08040201);
            y[c] = _mm512_mask_add_epi8(y[c], _mm512_test_epi8_mask(byte, bit), y[c], _mm512_set1_epi8(16));
        }
    }
}
/* One piece of 16 rows (rb apart, first at p) against nq queries (qf floats apart): tot[i] gains the
   scores of query i, lane = row. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__piece_vnni(kvmem__rows kind, int nq, __m512 *tot, const uint8_t *p,
                                                   size_t rb, const float *q, size_t qf) {
    __m512i z[4], w[4], y[4], hi[4], lo[4], fifth;
    __m512 min, scale = kvmem__heads16(kind, &min, &fifth, p, rb);
    const float *qi[4];
    int i, c, half;
    KVMEM__UNROLL
    for (i = 0; i < nq; i++) {
        int corr;
        qi[i] = q + (size_t)i * qf;
        KVMEM__HIDE(qi[i]);
        memcpy(&corr, qi[i] + 16, 4);
        hi[i] = _mm512_setzero_si512();
        lo[i] = _mm512_set1_epi32(kvmem__has_min(kind) ? 0 : corr);
    }
    KVMEM__UNROLL
    for (half = 0; half < 2; half++) { /* 16 channels: turning the next half overlaps with multiplying this one */
        if (kind == KVMEM__ROWS_Q8_0 || half == 0) {
            kvmem__rows16(z, p + kvmem__codes_at(kind, 32) + 16 * half, rb);
            kvmem__words16(w, z);
        }
        kvmem__codes16(kind, y, w, half, fifth);
        KVMEM__UNROLL
        for (c = 0; c < 4; c++) {
            KVMEM__UNROLL
            for (i = 0; i < nq; i++) {
                int a, b;
                memcpy(&a, qi[i] + 4 * half + c, 4);
                memcpy(&b, qi[i] + 8 + 4 * half + c, 4);
                hi[i] = _mm512_dpbusd_epi32(hi[i], y[c], _mm512_set1_epi32(a));
                lo[i] = _mm512_dpbusd_epi32(lo[i], y[c], _mm512_set1_epi32(b));
            }
        }
    }
    KVMEM__UNROLL
    for (i = 0; i < nq; i++) {
        __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(hi[i], 8), lo[i]));
        sum = _mm512_mul_ps(sum, scale);
        if (kvmem__has_min(kind)) {
            int all;
            memcpy(&all, qi[i] + 16, 4);
            sum = _mm512_fmadd_ps(min, _mm512_set1_ps((float)all), sum);
        }
        tot[i] = _mm512_fmadd_ps(sum, _mm512_set1_ps(qi[i][17]), tot[i]);
    }
}
KVMEM__AVX512 KVMEM__INLINE void kvmem__dot_vnni_nq(kvmem__rows kind, int nq, float *s, size_t ld,
                                                    const uint8_t *rows, size_t rb, int n, const float *q,
                                                    int d) {
    const size_t pb = kvmem__piece_bytes(kind, 32), qf = (size_t)(d / 32) * KVMEM__QWORDS;
    uint8_t tail[16 * 34];
    int t, c, i, r;
    for (t = 0; t < n; t += 16) {
        const int m = KVMEM__MIN(16, n - t);
        const uint8_t *p = rows + rb * (size_t)t;
        __m512 tot[4];
        size_t ahead;
        for (ahead = 0; ahead < 16 * rb; ahead += 64) KVMEM__AHEAD(p, 64 * rb + ahead);
        KVMEM__UNROLL
        for (i = 0; i < nq; i++) tot[i] = _mm512_setzero_ps();
        for (c = 0; c < d / 32; c++, p += pb) {
            if (m == 16) kvmem__piece_vnni(kind, nq, tot, p, rb, q + KVMEM__QWORDS * (size_t)c, qf);
            else {
                for (r = 0; r < 16; r++) memcpy(tail + pb * (size_t)r, p + rb * (size_t)KVMEM__MIN(r, m - 1), pb);
                kvmem__piece_vnni(kind, nq, tot, tail, pb, q + KVMEM__QWORDS * (size_t)c, qf);
            }
        }
        for (i = 0; i < nq; i++)
            _mm512_mask_storeu_ps(s + (size_t)i * ld + t, (__mmask16)((1u << m) - 1), tot[i]);
    }
}
KVMEM__AVX512 KVMEM__INLINE void kvmem__dot_vnni(kvmem__rows kind, float *s, int ld, const void *rows, int n,
                                                 const float *q, int nq, int d) {
    const uint8_t *in = (const uint8_t *)rows;
    const size_t rb = kvmem__row_bytes(kind, d), l = (size_t)ld, qf = (size_t)(d / 32) * KVMEM__QWORDS;
    for (; nq >= 4; nq -= 4, s += 4 * l, q += 4 * qf) kvmem__dot_vnni_nq(kind, 4, s, l, in, rb, n, q, d);
    if (nq == 3) kvmem__dot_vnni_nq(kind, 3, s, l, in, rb, n, q, d);
    else if (nq == 2) kvmem__dot_vnni_nq(kind, 2, s, l, in, rb, n, q, d);
    else if (nq == 1) kvmem__dot_vnni_nq(kind, 1, s, l, in, rb, n, q, d);
}

/* What is subtracted from the codes of a piece where they are summed with weights: minima grow by as many
   scales, so that 16 bits of weight are worth the same in all kinds. */
KVMEM__INLINE int kvmem__sum_zero(kvmem__rows kind) {
    return kvmem__has_min(kind) ? (kvmem__has_fifth(kind) ? 16 : 8) : kvmem__code_zero(kind);
}
/* Weighted sums of integers, at most 64 rows of one piece: w (nq, 64) are the weights over their largest,
   zero past row m. Times the scales over their largest they become 16-bit numbers u (nq, 64); the largest
   scale / 32767 is returned. bias (nq): the weighted sum of the minima. */
KVMEM__AVX512 KVMEM__INLINE float kvmem__weigh_vnni(kvmem__rows kind, int16_t *u, float *bias, const uint8_t *p,
                                                    size_t rb, int m, const float *w, int nq) {
    __m512 scale[4], min[4], most = _mm512_setzero_ps(), inv;
    __m512i fifth;
    float step;
    int i, j;
    KVMEM__UNROLL
    for (j = 0; j < 4; j++) {
        min[j] = scale[j] = _mm512_setzero_ps();
        if (m >= 16 * j + 16) scale[j] = kvmem__heads16(kind, &min[j], &fifth, p + rb * (size_t)(16 * j), rb);
        else if (m > 16 * j) {
            uint32_t head[16] = { 0 };
            for (i = 16 * j; i < m; i++) head[i - 16 * j] = kvmem__le32(p + rb * (size_t)i);
            fifth = _mm512_loadu_si512((const void *)head);
            scale[j] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(fifth));
            if (kvmem__has_min(kind)) min[j] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(fifth, 16)));
        }
        most = _mm512_max_ps(most, _mm512_abs_ps(scale[j]));
        if (kvmem__has_min(kind))
            min[j] = _mm512_fmadd_ps(scale[j], _mm512_set1_ps((float)kvmem__sum_zero(kind)), min[j]);
    }
    step = _mm512_reduce_max_ps(most) / 32767.0f;
    inv = _mm512_set1_ps(kvmem__inverse(step));
    for (i = 0; i < nq; i++) {
        most = _mm512_setzero_ps();
        KVMEM__UNROLL
        for (j = 0; j < 4; j++) {
            const __m512 x = _mm512_loadu_ps(w + 64 * i + 16 * j);
            _mm256_storeu_si256((__m256i *)(void *)(u + 64 * i + 16 * j), _mm512_cvtsepi32_epi16(
                _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_mul_ps(scale[j], inv), x))));
            if (kvmem__has_min(kind)) most = _mm512_fmadd_ps(min[j], x, most);
        }
        bias[i] = kvmem__has_min(kind) ? _mm512_reduce_add_ps(most) : 0.0f;
    }
    return step;
}
/* The codes of one piece of a row as 16-bit numbers. */
KVMEM__AVX512 KVMEM__INLINE __m512i kvmem__codes_avx512(kvmem__rows kind, const uint8_t *p) {
    __m256i x;
    if (kind == KVMEM__ROWS_Q8_0) x = _mm256_loadu_si256((const __m256i *)(const void *)(p + 2));
    else {
        x = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(p + kvmem__codes_at(kind, 32))));
        x = _mm256_and_si256(_mm256_srlv_epi64(x, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15));
        if (kvmem__has_fifth(kind))
            x = _mm256_mask_add_epi8(x, kvmem__le32(p + kvmem__fifth_at(kind)), x, _mm256_set1_epi8(16));
        if (kind == KVMEM__ROWS_IQ4_NL)
            x = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_setr_epi8(KVMEM__IQ4_LEVELS)), x);
        else x = _mm256_sub_epi8(x, _mm256_set1_epi8((char)kvmem__sum_zero(kind)));
    }
    return _mm512_cvtepi8_epi16(x);
}
/* acc (nq, d) at the 32 channels of a piece: sums over pairs of rows and bias[i], then times top[i]. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__axpy_pairs(kvmem__rows kind, int nq, float *acc, int d, const uint8_t *p,
                                                   size_t rb, int m, const int16_t *u, float step, const float *top,
                                                   const float *bias, int fetch) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    __m512i a[8], x, y, z;
    int i, t;
    KVMEM__UNROLL
    for (i = 0; i < 2 * nq; i++) a[i] = _mm512_setzero_si512();
    for (t = 0; t < m; t += 2, p += 2 * rb) { /* an odd last row pairs with itself, at weight 0 */
        if (fetch) {
            KVMEM__AHEAD(p, 64 * rb);
            KVMEM__AHEAD(p, 65 * rb);
        }
        x = kvmem__codes_avx512(kind, p);
        z = kvmem__codes_avx512(kind, t + 1 < m ? p + rb : p);
        y = _mm512_unpackhi_epi16(x, z);
        x = _mm512_unpacklo_epi16(x, z);
        KVMEM__UNROLL
        for (i = 0; i < nq; i++) {
            int pair;
            memcpy(&pair, u + 64 * i + t, 4);
            KVMEM__DPWSSD(a[2 * i], x, _mm512_set1_epi32(pair));
            KVMEM__DPWSSD(a[2 * i + 1], y, _mm512_set1_epi32(pair));
        }
    }
    KVMEM__UNROLL
    for (i = 0; i < nq; i++) {
        float *o = acc + (size_t)i * (size_t)d;
        const __m512 s = _mm512_set1_ps(step * top[i]), more = _mm512_set1_ps(bias[i] * top[i]);
        x = _mm512_permutex2var_epi32(a[2 * i], first, a[2 * i + 1]);
        y = _mm512_permutex2var_epi32(a[2 * i], second, a[2 * i + 1]);
        a[2 * i] = _mm512_castps_si512(_mm512_loadu_ps(o));
        a[2 * i + 1] = _mm512_castps_si512(_mm512_loadu_ps(o + 16));
        if (kvmem__has_min(kind)) {
            a[2 * i] = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a[2 * i]), more));
            a[2 * i + 1] = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a[2 * i + 1]), more));
        }
        _mm512_storeu_ps(o, _mm512_fmadd_ps(s, _mm512_cvtepi32_ps(x), _mm512_castsi512_ps(a[2 * i])));
        _mm512_storeu_ps(o + 16, _mm512_fmadd_ps(s, _mm512_cvtepi32_ps(y), _mm512_castsi512_ps(a[2 * i + 1])));
    }
}
KVMEM__AVX512 KVMEM__INLINE void kvmem__axpy_vnni_q(kvmem__rows kind, int nq, float *acc, const uint8_t *rows,
                                                    size_t rb, int n, const float *w, size_t ld, int d) {
    const size_t pb = kvmem__piece_bytes(kind, 32);
    int16_t u[4 * 256];
    float v[256], top[4], step[4], bias[16];
    int t, c, i, j;
    for (t = 0; t < n; t += 64) {
        const int m = KVMEM__MIN(64, n - t);
        for (i = 0; i < nq; i++) {
            __m512 x[4], most = _mm512_setzero_ps(), inv;
            KVMEM__UNROLL
            for (j = 0; j < 4; j++) {
                const int left = m - 16 * j;
                const __mmask16 some = (__mmask16)(left >= 16 ? 0xffffu : left > 0 ? (1u << left) - 1 : 0u);
                x[j] = _mm512_maskz_loadu_ps(some, w + (size_t)i * ld + t + 16 * j);
                most = _mm512_max_ps(most, _mm512_abs_ps(x[j]));
            }
            top[i] = _mm512_reduce_max_ps(most);
            inv = _mm512_set1_ps(kvmem__inverse(top[i]));
            KVMEM__UNROLL
            for (j = 0; j < 4; j++) _mm512_storeu_ps(v + 64 * i + 16 * j, _mm512_mul_ps(x[j], inv));
        }
        for (c = 0; c < d / 32; c += 4) { /* 4 pieces at a time, so that the preparations overlap */
            const uint8_t *p = rows + rb * (size_t)t + pb * (size_t)c;
            const int pieces = KVMEM__MIN(4, d / 32 - c);
            for (j = 0; j < pieces; j++)
                step[j] = kvmem__weigh_vnni(kind, u + 256 * j, bias + 4 * j, p + pb * (size_t)j, rb, m, v, nq);
            for (j = 0; j < pieces; j++)
                kvmem__axpy_pairs(kind, nq, acc + 32 * (c + j), d, p + pb * (size_t)j, rb, m, u + 256 * j, step[j], top,
                                  bias + 4 * j, c + j == 0);
        }
    }
}
/* ---- AVX2: as above with 8 lanes; codes are multiplied as floats ---- */
/* 8 values at channel c (a multiple of 8) of a row; codes come without scale and minimum. */
KVMEM__AVX2 KVMEM__INLINE __m256 kvmem__load_avx2(kvmem__rows kind, const uint8_t *row, int c, int d) {
    if (kind == KVMEM__ROWS_F32) return _mm256_loadu_ps((const float *)(const void *)(row + 4 * (size_t)c));
    if (kind == KVMEM__ROWS_F16)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * (size_t)c)));
    if (kind == KVMEM__ROWS_BF16)
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(
            _mm_loadu_si128((const __m128i *)(const void *)(row + 2 * (size_t)c))), 16));
    row += (size_t)(c / 32) * kvmem__piece_bytes(kind, 32);
    if (kind == KVMEM__ROWS_Q8_0)
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
            _mm_loadl_epi64((const __m128i *)(const void *)(row + 2 + c % 32))));
    else { /* the high nibbles start at channel 16 of a piece, at 8 in a last piece of 16 */
        const int j = c % 32, b = d - c + j < 32 ? 16 : 32;
        __m128i x = _mm_loadl_epi64((const __m128i *)(const void *)(row + kvmem__codes_at(kind, b) + j % (b / 2)));
        if (j >= b / 2) x = _mm_srli_epi16(x, 4);
        x = _mm_and_si128(x, _mm_set1_epi8(15));
        if (kvmem__has_fifth(kind)) {
            const __m128i bit = _mm_set1_epi64x((int64_t)0x8040201008040201u);
            const __m128i y = _mm_set1_epi8((char)row[kvmem__fifth_at(kind) + j / 8]);
            x = _mm_or_si128(x, _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(y, bit), bit), _mm_set1_epi8(16)));
        }
        if (kind == KVMEM__ROWS_IQ4_NL) x = _mm_shuffle_epi8(_mm_setr_epi8(KVMEM__IQ4_LEVELS), x);
        else if (!kvmem__has_min(kind)) x = _mm_sub_epi8(x, _mm_set1_epi8((char)kvmem__code_zero(kind)));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
    }
}
KVMEM__AVX2 KVMEM__INLINE __m256 kvmem__fold_avx2(const __m256 *a) {
    const __m256 u = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    const __m256 v = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(u, v, 0x20), _mm256_permute2f128_ps(u, v, 0x31));
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__dot_avx2_nq(kvmem__rows kind, int nq, float *s, size_t ld,
                                                  const uint8_t *rows, size_t rb, int n, const float *q,
                                                  int d) {
    const int nr = nq == 3 ? 2 : 8 / nq;
    int t, c, j, i, r;
    for (t = 0; t < n; t += nr) {
        const int m = KVMEM__MIN(nr, n - t);
        const uint8_t *row[8];
        __m256 a[8], y[4], x, scale[8], min[8];
        float out[8];
        KVMEM__UNROLL
        for (r = 0; r < nr; r++) row[r] = rows + rb * (size_t)(t + KVMEM__MIN(r, m - 1));
        KVMEM__UNROLL
        for (i = 0; i < 8; i++) a[i] = _mm256_setzero_ps();
        for (c = 0; c < d; c += 32) {
            const int b = KVMEM__MIN(32, d - c);
            KVMEM__UNROLL
            for (r = 0; r < nr; r++) {
                const uint8_t *p = row[r] + (size_t)(c / 32) * kvmem__piece_bytes(kind, 32);
                scale[r] = kvmem__is_coded(kind) ? _mm256_set1_ps(kvmem__scale_f16c(p)) : _mm256_setzero_ps();
                min[r] = kvmem__has_min(kind) ? _mm256_set1_ps(kvmem__scale_f16c(p + 2)) : _mm256_setzero_ps();
            }
            for (j = 0; j < b; j += 8) {
                KVMEM__UNROLL
                for (i = 0; i < nq; i++) y[i] = _mm256_loadu_ps(q + (size_t)i * (size_t)d + c + j);
                KVMEM__UNROLL
                for (r = 0; r < nr; r++) {
                    x = kvmem__load_avx2(kind, row[r], c + j, d);
                    if (kvmem__has_min(kind)) x = _mm256_fmadd_ps(x, scale[r], min[r]);
                    else if (kvmem__is_coded(kind)) x = _mm256_mul_ps(x, scale[r]);
                    KVMEM__UNROLL
                    for (i = 0; i < nq; i++) a[i * nr + r] = _mm256_fmadd_ps(x, y[i], a[i * nr + r]);
                }
            }
        }
        _mm256_storeu_ps(out, kvmem__fold_avx2(a));
        for (i = 0; i < nq; i++) {
            for (r = 0; r < m; r++) s[(size_t)i * ld + (size_t)(t + r)] = out[i * nr + r];
        }
    }
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__axpy_avx2_nq(kvmem__rows kind, int nq, float *acc, const uint8_t *rows,
                                                   size_t rb, int n, const float *w, size_t ld,
                                                   const float *bias, int c, int d) {
    __m256 a[8], x[2], y;
    int t, i, k;
    KVMEM__UNROLL
    for (i = 0; i < 2 * nq; i++) {
        a[i] = _mm256_loadu_ps(acc + (size_t)(i / 2) * (size_t)d + c + 8 * (i % 2));
        if (kvmem__has_min(kind)) a[i] = _mm256_add_ps(a[i], _mm256_set1_ps(bias[i / 2]));
    }
    for (t = 0; t < n; t++, rows += rb) {
        KVMEM__UNROLL
        for (k = 0; k < 2; k++) x[k] = kvmem__load_avx2(kind, rows, c + 8 * k, d);
        KVMEM__UNROLL
        for (i = 0; i < nq; i++) {
            y = _mm256_set1_ps(w[(size_t)i * ld + (size_t)t]);
            KVMEM__UNROLL
            for (k = 0; k < 2; k++) a[2 * i + k] = _mm256_fmadd_ps(x[k], y, a[2 * i + k]);
        }
    }
    KVMEM__UNROLL
    for (i = 0; i < 2 * nq; i++) _mm256_storeu_ps(acc + (size_t)(i / 2) * (size_t)d + c + 8 * (i % 2), a[i]);
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__axpy_avx2_q(kvmem__rows kind, int nq, float *acc, const uint8_t *rows,
                                                  size_t rb, int n, const float *w, size_t ld, int d) {
    float ws[4 * 64], bias[4] = { 0, 0, 0, 0 };
    int t, c, r, i;
    if (!kvmem__is_coded(kind)) {
        for (c = 0; c < d; c += 16) kvmem__axpy_avx2_nq(kind, nq, acc, rows, rb, n, w, ld, bias, c, d);
        return;
    }
    for (t = 0; t < n; t += 64) {
        const int m = KVMEM__MIN(64, n - t);
        const uint8_t *in = rows + rb * (size_t)t;
        for (c = 0; c < d; c += 16) {
            if (c % 32 == 0) { /* weights times the scales of this piece, and the weighted sum of its minima */
                for (i = 0; i < nq; i++) bias[i] = 0;
                for (r = 0; r < m; r++) {
                    const uint8_t *p = in + rb * (size_t)r + (size_t)(c / 32) * kvmem__piece_bytes(kind, 32);
                    const float scale = kvmem__scale_f16c(p), min = kvmem__has_min(kind) ? kvmem__scale_f16c(p + 2) : 0.0f;
                    for (i = 0; i < nq; i++) {
                        const float wt = w[(size_t)i * ld + (size_t)(t + r)];
                        ws[64 * i + r] = scale * wt;
                        if (kvmem__has_min(kind)) bias[i] += min * wt;
                    }
                }
            }
            kvmem__axpy_avx2_nq(kind, nq, acc, in, rb, m, ws, 64, bias, c, d);
        }
    }
}
/* KVMEM__KEEP stops the compiler from contracting a product and a sum into one rounding. */
#define KVMEM__KEEP(x) __asm__("" : "+x"(x))
KVMEM__AVX2 KVMEM__INLINE void kvmem__decode_avx2(kvmem__rows kind, float *out, const void *rows, int n, int d) {
    const uint8_t *in = (const uint8_t *)rows;
    const size_t rb = kvmem__row_bytes(kind, d);
    int t, c;
    for (t = 0; t < n; t++, in += rb, out += d) {
        for (c = 0; c < d; c += 8) {
            const uint8_t *p = in + (size_t)(c / 32) * kvmem__piece_bytes(kind, 32);
            __m256 x = kvmem__load_avx2(kind, in, c, d);
            if (kvmem__is_coded(kind)) x = _mm256_mul_ps(x, _mm256_set1_ps(kvmem__scale_f16c(p)));
            KVMEM__KEEP(x);
            if (kvmem__has_min(kind)) x = _mm256_add_ps(x, _mm256_set1_ps(kvmem__scale_f16c(p + 2)));
            _mm256_storeu_ps(out + c, x);
        }
    }
}
/* Encoding, equal to the plain twin bit for bit; a short last piece is encoded by it. */
KVMEM__AVX2 KVMEM__INLINE __m256i kvmem__half_avx2(const float *x) { /* 16 halves */
    __m256 v[2];
    __m128i h[2];
    int i;
    KVMEM__UNROLL
    for (i = 0; i < 2; i++) { /* finite values stop at +-65504 */
        const __m256 sign = _mm256_set1_ps(-0.0f), most = _mm256_set1_ps(65504.0f);
        __m256 a, big;
        v[i] = _mm256_loadu_ps(x + 8 * i);
        a = _mm256_andnot_ps(sign, v[i]);
        big = _mm256_and_ps(_mm256_cmp_ps(a, most, _CMP_GT_OQ), _mm256_cmp_ps(a, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
        v[i] = _mm256_blendv_ps(v[i], _mm256_or_ps(most, _mm256_and_ps(sign, v[i])), big);
        h[i] = _mm256_cvtps_ph(v[i], _MM_FROUND_TO_NEAREST_INT);
    }
    return _mm256_inserti128_si256(_mm256_castsi128_si256(h[0]), h[1], 1);
}
KVMEM__AVX2 KVMEM__INLINE __m256i kvmem__bf16_avx2(const float *x) { /* 16 bfloats */
    __m256i u[2];
    int i;
    KVMEM__UNROLL
    for (i = 0; i < 2; i++) {
        const __m256i v = _mm256_castps_si256(_mm256_loadu_ps(x + 8 * i));
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(v, 16), _mm256_set1_epi32(1));
        const __m256i size = _mm256_and_si256(v, _mm256_set1_epi32(0x7fffffff));
        const __m256i nan = _mm256_cmpgt_epi32(size, _mm256_set1_epi32(0x7f800000));
        u[i] = _mm256_srli_epi32(_mm256_add_epi32(v, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
        u[i] = _mm256_blendv_epi8(u[i], _mm256_or_si256(_mm256_srli_epi32(v, 16), _mm256_set1_epi32(64)), nan);
    }
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(u[0], u[1]), 0xd8);
}
/* Largest finite |x| of 32 values and, in *at, the first value that has it (0 if all are 0). */
KVMEM__AVX2 KVMEM__INLINE float kvmem__most_avx2(const __m256 *v, float *at, const float *x) {
    const __m256 sign = _mm256_set1_ps(-0.0f), limit = _mm256_set1_ps(FLT_MAX);
    __m256 m = _mm256_setzero_ps(), a[4];
    __m128 h;
    float most;
    unsigned hit = 0;
    int i;
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) {
        a[i] = _mm256_andnot_ps(sign, v[i]);
        a[i] = _mm256_and_ps(a[i], _mm256_cmp_ps(a[i], limit, _CMP_LE_OQ));
        m = _mm256_max_ps(m, a[i]);
    }
    h = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    most = _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
    m = _mm256_set1_ps(most);
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) hit |= (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a[i], m, _CMP_EQ_OQ)) << (8 * i);
    *at = most > 0 ? x[__builtin_ctz(hit)] : 0.0f;
    return most;
}
/* 32 numbers of at most 8 bits as bytes. */
KVMEM__AVX2 KVMEM__INLINE __m256i kvmem__bytes_avx2(const __m256i *n) {
    const __m256i x = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    return _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__put_avx2(kvmem__rows kind, uint8_t *out, float s, float m, __m256i code) {
    kvmem__put16(out, kvmem__half_sat(s));
    if (kvmem__has_min(kind)) kvmem__put16(out + 2, kvmem__half_sat(m));
    if (kvmem__has_fifth(kind))
        kvmem__put32(out + kvmem__fifth_at(kind), (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(code, 3)));
    out += kvmem__codes_at(kind, 32);
    if (kind == KVMEM__ROWS_Q8_0) _mm256_storeu_si256((__m256i *)(void *)out, code);
    else {
        code = _mm256_and_si256(code, _mm256_set1_epi8(15));
        _mm_storeu_si128((__m128i *)(void *)out, _mm_or_si128(_mm256_castsi256_si128(code),
                         _mm_slli_epi16(_mm256_extracti128_si256(code, 1), 4)));
    }
}
/* x / s of one vector, NaN as 0. */
KVMEM__AVX2 KVMEM__INLINE __m256 kvmem__times_avx2(__m256 x, float id) {
    x = _mm256_mul_ps(x, _mm256_set1_ps(id));
    KVMEM__KEEP(x);
    return _mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q));
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__q8_0_avx2(uint8_t *out, const float *x, const __m256 *v) {
    float at;
    const float s = kvmem__most_avx2(v, &at, x) / 127.0f, id = kvmem__inverse(s);
    __m256i n[4];
    int i;
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) { /* half away from zero */
        const __m256 top = _mm256_set1_ps(127);
        __m256 w = kvmem__times_avx2(v[i], id), rest;
        w = _mm256_max_ps(_mm256_min_ps(w, top), _mm256_sub_ps(_mm256_setzero_ps(), top));
        n[i] = _mm256_cvttps_epi32(w);
        rest = _mm256_sub_ps(w, _mm256_cvtepi32_ps(n[i]));
        n[i] = _mm256_sub_epi32(n[i], _mm256_castps_si256(_mm256_cmp_ps(rest, _mm256_set1_ps(0.5f), _CMP_GE_OQ)));
        n[i] = _mm256_add_epi32(n[i], _mm256_castps_si256(_mm256_cmp_ps(rest, _mm256_set1_ps(-0.5f), _CMP_LE_OQ)));
    }
    kvmem__put_avx2(KVMEM__ROWS_Q8_0, out, s, 0, kvmem__bytes_avx2(n));
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__signed_avx2(kvmem__rows kind, uint8_t *out, const float *x, const __m256 *v) {
    const int zero = kvmem__code_zero(kind);
    __m256i n[4];
    float s, id;
    int i;
    kvmem__most_avx2(v, &s, x);
    s /= (float)-zero;
    id = kvmem__inverse(s);
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) {
        const __m256 w = _mm256_add_ps(kvmem__times_avx2(v[i], id), _mm256_set1_ps((float)zero + 0.5f));
        n[i] = _mm256_cvttps_epi32(_mm256_max_ps(_mm256_min_ps(w, _mm256_set1_ps((float)(2 * zero - 1))),
                                                 _mm256_setzero_ps()));
    }
    kvmem__put_avx2(kind, out, s, 0, kvmem__bytes_avx2(n));
}
KVMEM__AVX2 KVMEM__INLINE float kvmem__least_avx2(__m256 x) {
    __m128 h = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    h = _mm_min_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_min_ss(h, _mm_movehdup_ps(h)));
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__min_avx2(kvmem__rows kind, uint8_t *out, const __m256 *v) {
    const __m256 sign = _mm256_set1_ps(-0.0f), inf = _mm256_set1_ps(INFINITY);
    const float top = kind == KVMEM__ROWS_Q5_1 ? 31.0f : 15.0f;
    __m256 least = inf, most = inf, w; /* most: of -x */
    __m256i n[4];
    float lo, s, id;
    int i;
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) {
        const __m256 finite = _mm256_cmp_ps(_mm256_andnot_ps(sign, v[i]), _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ);
        least = _mm256_min_ps(least, _mm256_blendv_ps(inf, v[i], finite));
        most = _mm256_min_ps(most, _mm256_blendv_ps(inf, _mm256_xor_ps(sign, v[i]), finite));
    }
    lo = kvmem__least_avx2(least);
    s = kvmem__min_scale(&lo, -kvmem__least_avx2(most), top);
    id = kvmem__inverse(s);
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) { /* the maximum of NaN and 0 is 0 */
        w = _mm256_and_ps(v[i], _mm256_cmp_ps(v[i], v[i], _CMP_ORD_Q));
        w = _mm256_mul_ps(_mm256_sub_ps(w, _mm256_set1_ps(lo)), _mm256_set1_ps(id));
        KVMEM__KEEP(w);
        w = _mm256_max_ps(_mm256_add_ps(w, _mm256_set1_ps(0.5f)), _mm256_setzero_ps());
        n[i] = _mm256_cvttps_epi32(_mm256_min_ps(w, _mm256_set1_ps(top)));
    }
    kvmem__put_avx2(kind, out, s, lo, kvmem__bytes_avx2(n));
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__iq4_nl_avx2(uint8_t *out, const float *x, const __m256 *v) {
    static const float level[16] = { KVMEM__IQ4_LEVELS };
    const __m128i levels = _mm_setr_epi8(KVMEM__IQ4_LEVELS);
    __m256 num = _mm256_setzero_ps(), den = _mm256_setzero_ps(), w[4];
    __m256i n[4];
    float sums[16], s0, id;
    int i, k;
    kvmem__most_avx2(v, &s0, x);
    s0 /= -127.0f;
    id = kvmem__inverse(s0);
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) {
        w[i] = kvmem__times_avx2(v[i], id);
        n[i] = _mm256_setzero_si256();
    }
    for (k = 1; k < 16; k++) {
        const __m256 middle = _mm256_set1_ps((level[k - 1] + level[k]) * 0.5f);
        KVMEM__UNROLL
        for (i = 0; i < 4; i++)
            n[i] = _mm256_sub_epi32(n[i], _mm256_castps_si256(_mm256_cmp_ps(w[i], middle, _CMP_GE_OQ)));
    }
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) {
        const __m256 big = _mm256_cmp_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), w[i]), _mm256_set1_ps(128), _CMP_LE_OQ);
        const __m256i at = _mm256_packs_epi32(n[i], n[i]); /* words 0..3 in each half */
        const __m128i code = _mm_packs_epi16(_mm_unpacklo_epi64(_mm256_castsi256_si128(at),
                                             _mm256_extracti128_si256(at, 1)), _mm_setzero_si128());
        const __m256 y = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_shuffle_epi8(levels, code)));
        __m256 a, b;
        w[i] = _mm256_and_ps(w[i], big);
        a = _mm256_mul_ps(_mm256_mul_ps(w[i], w[i]), y);
        b = _mm256_mul_ps(a, y);
        a = _mm256_mul_ps(a, w[i]);
        KVMEM__KEEP(a);
        KVMEM__KEEP(b);
        num = _mm256_add_ps(num, a);
        den = _mm256_add_ps(den, b);
    }
    _mm256_storeu_ps(sums, num);
    _mm256_storeu_ps(sums + 8, den);
    kvmem__put_avx2(KVMEM__ROWS_IQ4_NL, out, kvmem__fit_scale(s0, sums, sums + 8), 0, kvmem__bytes_avx2(n));
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__piece_avx2(kvmem__rows kind, uint8_t *out, const float *x) {
    __m256 v[4];
    int i;
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + 8 * i);
    if (kind == KVMEM__ROWS_Q8_0) kvmem__q8_0_avx2(out, x, v);
    else if (kvmem__has_min(kind)) kvmem__min_avx2(kind, out, v);
    else if (kind == KVMEM__ROWS_IQ4_NL) kvmem__iq4_nl_avx2(out, x, v);
    else kvmem__signed_avx2(kind, out, x, v);
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__encode_avx2(kvmem__rows kind, void *rows, const float *x, int n, int d) {
    uint8_t *out = (uint8_t *)rows;
    int t, c;
    if (kind == KVMEM__ROWS_F32) { memcpy(rows, x, sizeof *x * (size_t)n * (size_t)d); return; }
    for (t = 0; t < n; t++, x += d) {
        for (c = 0; c < d; c += KVMEM__PIECE) {
            const int b = KVMEM__MIN(KVMEM__PIECE, d - c);
            if (b < 32) kvmem__encode_piece(kind, out, x + c, b);
            else if (kvmem__is_coded(kind)) kvmem__piece_avx2(kind, out, x + c);
            else {
                const int half = kind == KVMEM__ROWS_F16;
                __m256i *o = (__m256i *)(void *)out;
                _mm256_storeu_si256(o, half ? kvmem__half_avx2(x + c) : kvmem__bf16_avx2(x + c));
                _mm256_storeu_si256(o + 1, half ? kvmem__half_avx2(x + c + 16) : kvmem__bf16_avx2(x + c + 16));
            }
            out += kvmem__piece_bytes(kind, b);
        }
    }
}
#undef KVMEM__KEEP
#endif /* KVMEM__X86 */

#if KVMEM__NEON
/* ---- NEON: as above with 4 lanes ---- */
KVMEM__INLINE float32x4_t kvmem__load_neon(kvmem__rows kind, const uint8_t *row, int c, int d) {
    if (kind == KVMEM__ROWS_F32) return vreinterpretq_f32_u8(vld1q_u8(row + 4 * (size_t)c));
    if (kind == KVMEM__ROWS_F16) return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(row + 2 * (size_t)c)));
    if (kind == KVMEM__ROWS_BF16)
        return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(row + 2 * (size_t)c)), 16));
    row += (size_t)(c / 32) * kvmem__piece_bytes(kind, 32);
    {
        const int j = c % 32, b = d - c + j < 32 ? 16 : 32, half = kind == KVMEM__ROWS_Q8_0 ? b : b / 2;
        uint32_t u = kvmem__le32(row + kvmem__codes_at(kind, b) + j % half);
        int8x8_t x;
        if (kind != KVMEM__ROWS_Q8_0) u = (j >= half ? u >> 4 : u) & 0x0f0f0f0fu;
        if (kvmem__has_fifth(kind)) { /* bits 0..3 to bits 4, 12, 20, 28 */
            const uint32_t bits = row[kvmem__fifth_at(kind) + j / 8] >> j % 8 & 15u;
            u |= (bits * 0x00204081u & 0x01010101u) << 4;
        }
        x = vcreate_s8((uint64_t)u);
        if (kind == KVMEM__ROWS_IQ4_NL) {
            static const int8_t level[16] = { KVMEM__IQ4_LEVELS };
            x = vqtbl1_s8(vld1q_s8(level), vreinterpret_u8_s8(x));
        } else if (kind != KVMEM__ROWS_Q8_0 && !kvmem__has_min(kind)) x = vsub_s8(x, vdup_n_s8((int8_t)kvmem__code_zero(kind)));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(x))));
    }
}
KVMEM__INLINE float kvmem__piece_scale_neon(const uint8_t *piece) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(kvmem__le16(piece)))), 0);
}
KVMEM__INLINE void kvmem__dot_neon_nq(kvmem__rows kind, int nq, float *s, size_t ld, const uint8_t *rows,
                                      size_t rb, int n, const float *q, int d) {
    const int nr = nq == 3 ? 4 : 16 / nq;
    int t, c, i, r;
    for (t = 0; t < n; t += nr) {
        const int m = KVMEM__MIN(nr, n - t);
        const uint8_t *row[16];
        float32x4_t a[16], y[4], x;
        float scale[16], min[16], out[16];
        KVMEM__UNROLL
        for (r = 0; r < nr; r++) row[r] = rows + rb * (size_t)(t + KVMEM__MIN(r, m - 1));
        KVMEM__UNROLL
        for (i = 0; i < 16; i++) { a[i] = vdupq_n_f32(0); scale[i] = min[i] = 0; }
        for (c = 0; c < d; c += 4) {
            if (kvmem__is_coded(kind) && c % 32 == 0) {
                for (r = 0; r < nr; r++) {
                    const uint8_t *p = row[r] + (size_t)(c / 32) * kvmem__piece_bytes(kind, 32);
                    scale[r] = kvmem__piece_scale_neon(p);
                    if (kvmem__has_min(kind)) min[r] = kvmem__piece_scale_neon(p + 2);
                }
            }
            KVMEM__UNROLL
            for (i = 0; i < nq; i++) y[i] = vld1q_f32(q + (size_t)i * (size_t)d + c);
            KVMEM__UNROLL
            for (r = 0; r < nr; r++) {
                x = kvmem__load_neon(kind, row[r], c, d);
                if (kvmem__has_min(kind)) x = vfmaq_n_f32(vdupq_n_f32(min[r]), x, scale[r]);
                else if (kvmem__is_coded(kind)) x = vmulq_n_f32(x, scale[r]);
                KVMEM__UNROLL
                for (i = 0; i < nq; i++) a[i * nr + r] = vfmaq_f32(a[i * nr + r], x, y[i]);
            }
        }
        KVMEM__UNROLL
        for (i = 0; i < 16; i += 4)
            vst1q_f32(out + i, vpaddq_f32(vpaddq_f32(a[i], a[i + 1]), vpaddq_f32(a[i + 2], a[i + 3])));
        for (i = 0; i < nq; i++) {
            for (r = 0; r < m; r++) s[(size_t)i * ld + (size_t)(t + r)] = out[i * nr + r];
        }
    }
}
KVMEM__INLINE void kvmem__axpy_neon_nq(kvmem__rows kind, int nq, float *acc, const uint8_t *rows, size_t rb,
                                       int n, const float *w, size_t ld, const float *bias, int c, int d) {
    float32x4_t a[16], x[4];
    int t, i, k;
    KVMEM__UNROLL
    for (i = 0; i < 4 * nq; i++) {
        a[i] = vld1q_f32(acc + (size_t)(i / 4) * (size_t)d + c + 4 * (i % 4));
        if (kvmem__has_min(kind)) a[i] = vaddq_f32(a[i], vdupq_n_f32(bias[i / 4]));
    }
    for (t = 0; t < n; t++, rows += rb) {
        KVMEM__UNROLL
        for (k = 0; k < 4; k++) x[k] = kvmem__load_neon(kind, rows, c + 4 * k, d);
        KVMEM__UNROLL
        for (i = 0; i < nq; i++) {
            const float y = w[(size_t)i * ld + (size_t)t];
            KVMEM__UNROLL
            for (k = 0; k < 4; k++) a[4 * i + k] = vfmaq_n_f32(a[4 * i + k], x[k], y);
        }
    }
    KVMEM__UNROLL
    for (i = 0; i < 4 * nq; i++) vst1q_f32(acc + (size_t)(i / 4) * (size_t)d + c + 4 * (i % 4), a[i]);
}
KVMEM__INLINE void kvmem__axpy_neon_q(kvmem__rows kind, int nq, float *acc, const uint8_t *rows, size_t rb,
                                      int n, const float *w, size_t ld, int d) {
    float ws[4 * 64], bias[4] = { 0, 0, 0, 0 };
    int t, c, r, i;
    if (!kvmem__is_coded(kind)) {
        for (c = 0; c < d; c += 16) kvmem__axpy_neon_nq(kind, nq, acc, rows, rb, n, w, ld, bias, c, d);
        return;
    }
    for (t = 0; t < n; t += 64) {
        const int m = KVMEM__MIN(64, n - t);
        const uint8_t *in = rows + rb * (size_t)t;
        for (c = 0; c < d; c += 16) {
            if (c % 32 == 0) { /* weights times the scales of this piece, and the weighted sum of its minima */
                for (i = 0; i < nq; i++) bias[i] = 0;
                for (r = 0; r < m; r++) {
                    const uint8_t *p = in + rb * (size_t)r + (size_t)(c / 32) * kvmem__piece_bytes(kind, 32);
                    const float scale = kvmem__piece_scale_neon(p);
                    const float min = kvmem__has_min(kind) ? kvmem__piece_scale_neon(p + 2) : 0.0f;
                    for (i = 0; i < nq; i++) {
                        const float wt = w[(size_t)i * ld + (size_t)(t + r)];
                        ws[64 * i + r] = scale * wt;
                        bias[i] += min * wt;
                    }
                }
            }
            kvmem__axpy_neon_nq(kind, nq, acc, in, rb, m, ws, 64, bias, c, d);
        }
    }
}
KVMEM__INLINE void kvmem__decode_neon(kvmem__rows kind, float *out, const void *rows, int n, int d) {
    const uint8_t *in = (const uint8_t *)rows;
    const size_t rb = kvmem__row_bytes(kind, d);
    int t, c;
    for (t = 0; t < n; t++, in += rb, out += d) {
        for (c = 0; c < d; c += 4) {
            const uint8_t *p = in + (size_t)(c / 32) * kvmem__piece_bytes(kind, 32);
            float32x4_t x = kvmem__load_neon(kind, in, c, d);
            if (kvmem__is_coded(kind)) x = vmulq_n_f32(x, kvmem__piece_scale_neon(p));
            __asm__("" : "+w"(x)); /* product and sum are rounded each */
            if (kvmem__has_min(kind)) x = vaddq_f32(x, vdupq_n_f32(kvmem__piece_scale_neon(p + 2)));
            vst1q_f32(out + c, x);
        }
    }
}
#endif /* KVMEM__NEON */


/* The fast functions by path and codec: the loops above with the kind bound, for d a multiple of 16. */
#define KVMEM__SPLIT(isa, word, kind, attr)                                                         \
    attr static void kvmem__##word##_dot_##isa(const kvmem_coded *b, float *s, int ld, int t0, int n, \
                                               const float *q, int nq) {                            \
        const uint8_t *in = kvmem__row_at(b, t0);                                                   \
        const int d = b->d;                                                                         \
        const size_t rb = kvmem__row_bytes(kind, d), l = (size_t)ld, f = (size_t)d;                 \
        int i = 0;                                                                                  \
        if (d % 16) { kvmem__dot_rows(kind, s, ld, in, n, q, nq, d); return; }                      \
        for (; nq - i >= 4; i += 4)                                                                 \
            kvmem__dot_##isa##_nq(kind, 4, s + l * (size_t)i, l, in, rb, n, q + f * (size_t)i, d);  \
        switch (nq - i) {                                                                           \
        case 3: kvmem__dot_##isa##_nq(kind, 3, s + l * (size_t)i, l, in, rb, n, q + f * (size_t)i, d); break; \
        case 2: kvmem__dot_##isa##_nq(kind, 2, s + l * (size_t)i, l, in, rb, n, q + f * (size_t)i, d); break; \
        case 1: kvmem__dot_##isa##_nq(kind, 1, s + l * (size_t)i, l, in, rb, n, q + f * (size_t)i, d); break; \
        default: break;                                                                             \
        }                                                                                           \
    }                                                                                               \
    attr static void kvmem__##word##_axpy_##isa(const kvmem_coded *b, float *acc, int t0, int n,    \
                                                const float *w, int ld, int nq) {                   \
        const uint8_t *in = kvmem__row_at(b, t0);                                                   \
        const int d = b->d;                                                                         \
        const size_t rb = kvmem__row_bytes(kind, d), l = (size_t)ld, f = (size_t)d;                 \
        int i = 0;                                                                                  \
        if (d % 16) { kvmem__axpy_rows(kind, acc, in, n, w, ld, nq, d); return; }                   \
        for (; nq - i >= 4; i += 4)                                                                 \
            kvmem__axpy_##isa##_q(kind, 4, acc + f * (size_t)i, in, rb, n, w + l * (size_t)i, l, d); \
        switch (nq - i) {                                                                           \
        case 3: kvmem__axpy_##isa##_q(kind, 3, acc + f * (size_t)i, in, rb, n, w + l * (size_t)i, l, d); break; \
        case 2: kvmem__axpy_##isa##_q(kind, 2, acc + f * (size_t)i, in, rb, n, w + l * (size_t)i, l, d); break; \
        case 1: kvmem__axpy_##isa##_q(kind, 1, acc + f * (size_t)i, in, rb, n, w + l * (size_t)i, l, d); break; \
        default: break;                                                                             \
        }                                                                                           \
    }                                                                                               \
    attr static void kvmem__##word##_expand_##isa(const kvmem_coded *b, float *out, int t0, int n) { \
        if (b->d % 16) kvmem__decode_rows(kind, out, kvmem__row_at(b, t0), n, b->d);                \
        else kvmem__decode_##isa(kind, out, kvmem__row_at(b, t0), n, b->d);                         \
    }
#if KVMEM__X86
#define KVMEM__SPLIT_AVX2(word, kind)                                                               \
    KVMEM__SPLIT(avx2, word, kind, KVMEM__AVX2)                                                     \
    KVMEM__AVX2 static void kvmem__##word##_rows_avx2(kvmem__rows k, void *rows, const float *x, int n, int d) { \
        (void)k;                                                                                    \
        kvmem__encode_avx2(kind, rows, x, n, d);                                                    \
    }                                                                                               \
    KVMEM__ENCODE(kvmem__##word##_encode_avx2, kvmem__##word##_rows_avx2, kind, KVMEM__AVX2)
KVMEM__EACH_ROWS(KVMEM__SPLIT_AVX2)
KVMEM__SPLIT(avx512, f32, KVMEM__ROWS_F32, KVMEM__AVX512)
KVMEM__SPLIT(avx512, f16, KVMEM__ROWS_F16, KVMEM__AVX512)
KVMEM__SPLIT(avx512, bf16, KVMEM__ROWS_BF16, KVMEM__AVX512)
/* The byte dot products where a row is whole pieces, else floats. */
static int kvmem__q_words(const double *par, int d) {
    (void)par;
    return d % 32 ? d : d / 32 * KVMEM__QWORDS;
}
KVMEM__AVX512 static void kvmem__prepare_vnni(const kvmem_coded *b, float *out, const float *q, int zero) {
    float row[KVMEM_MAX_WIDTH];
    kvmem__rot_row(b, b->d % 32 ? out : row, q);
    if (b->d % 32 == 0) kvmem__q_bytes(out, row, b->d, zero);
}
#define KVMEM__VNNI(word, kind)                                                                     \
    static void kvmem__##word##_prepare_vnni(const kvmem_coded *b, float *out, const float *q) {    \
        kvmem__prepare_vnni(b, out, q, kvmem__has_min(kind) ? -1 : kvmem__code_zero(kind));         \
    }                                                                                               \
    KVMEM__AVX512 static void kvmem__##word##_dot_vnni(const kvmem_coded *b, float *s, int ld, int t0, int n, \
                                                       const float *q, int nq) {                    \
        if (b->d % 32) kvmem__##word##_dot_avx2(b, s, ld, t0, n, q, nq);                            \
        else kvmem__dot_vnni(kind, s, ld, kvmem__row_at(b, t0), n, q, nq, b->d);                    \
    }                                                                                               \
    KVMEM__AVX512 static void kvmem__##word##_axpy_vnni(const kvmem_coded *b, float *acc, int t0, int n, \
                                                        const float *w, int ld, int nq) {           \
        const uint8_t *in = kvmem__row_at(b, t0);                                                   \
        const int d = b->d;                                                                         \
        const size_t rb = kvmem__row_bytes(kind, d), l = (size_t)ld, f = (size_t)d;                 \
        if (d % 32) { kvmem__##word##_axpy_avx2(b, acc, t0, n, w, ld, nq); return; }                \
        for (; nq >= 4; nq -= 4, acc += 4 * f, w += 4 * l) kvmem__axpy_vnni_q(kind, 4, acc, in, rb, n, w, l, d); \
        if (nq == 3) kvmem__axpy_vnni_q(kind, 3, acc, in, rb, n, w, l, d);                          \
        if (nq == 2) kvmem__axpy_vnni_q(kind, 2, acc, in, rb, n, w, l, d);                          \
        if (nq == 1) kvmem__axpy_vnni_q(kind, 1, acc, in, rb, n, w, l, d);                          \
    }
KVMEM__EACH_CODED(KVMEM__VNNI)
#undef KVMEM__SPLIT_AVX2
#undef KVMEM__VNNI
#endif
#if KVMEM__NEON
#define KVMEM__SPLIT_NEON(word, kind) KVMEM__SPLIT(neon, word, kind, )
KVMEM__EACH_ROWS(KVMEM__SPLIT_NEON)
#undef KVMEM__SPLIT_NEON
#endif
#undef KVMEM__SPLIT
#undef KVMEM__ENCODE

/* Put the fast twins into a copy of one of these codecs. */
#define KVMEM__USE(word, isa)                                                                       \
    c->dot = kvmem__##word##_dot_##isa;                                                             \
    c->axpy = kvmem__##word##_axpy_##isa;                                                           \
    c->expand = kvmem__##word##_expand_##isa;
#if KVMEM__X86
#define KVMEM__FAST(word)                                                                           \
    static void kvmem__##word##_fast(kvmem_codec *c, int isa) {                                     \
        if (isa >= 2) c->encode = kvmem__##word##_encode_avx2;                                      \
        if (isa == 2) { KVMEM__USE(word, avx2) }                                                    \
        if (isa == 3) { KVMEM__USE(word, avx512) }                                                  \
    }
#define KVMEM__FAST_CODED(word, kind)                                                               \
    static void kvmem__##word##_fast(kvmem_codec *c, int isa) {                                     \
        if (isa < 2) return;                                                                        \
        c->encode = kvmem__##word##_encode_avx2;                                                    \
        KVMEM__USE(word, avx2)                                                                      \
        if (isa < 3) return;                                                                        \
        c->q_floats = kvmem__q_words;                                                               \
        c->q_prepare = kvmem__##word##_prepare_vnni;                                                \
        c->dot = kvmem__##word##_dot_vnni;                                                          \
        c->axpy = kvmem__##word##_axpy_vnni;                                                        \
    }
#elif KVMEM__NEON
#define KVMEM__FAST(word)                                                                           \
    static void kvmem__##word##_fast(kvmem_codec *c, int isa) {                                     \
        if (isa == 1) { KVMEM__USE(word, neon) }                                                    \
    }
#define KVMEM__FAST_CODED(word, kind) KVMEM__FAST(word)
#else
#define KVMEM__FAST(word)                                                                           \
    static void kvmem__##word##_fast(kvmem_codec *c, int isa) { (void)c; (void)isa; }
#define KVMEM__FAST_CODED(word, kind) KVMEM__FAST(word)
#endif
KVMEM__FAST(f32)
KVMEM__FAST(f16)
KVMEM__FAST(bf16)
KVMEM__EACH_CODED(KVMEM__FAST_CODED)
#undef KVMEM__USE
#undef KVMEM__FAST
#undef KVMEM__FAST_CODED
#undef KVMEM__EACH_CODED
#undef KVMEM__EACH_ROWS

#define KVMEM__ROW(word, what)                                                                      \
    static const kvmem_codec kvmem__codec_##word = { { #word, what, "-", NULL, 0 }, 0,              \
        kvmem__##word##_bytes, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, kvmem__##word##_encode, \
        kvmem__##word##_expand, NULL, NULL, kvmem__##word##_dot, kvmem__##word##_axpy, NULL, kvmem__##word##_fast };
#define KVMEM__ROW_CODED(word, what)                                                                \
    static const kvmem_codec kvmem__codec_##word = {                                                \
        { #word, what, "ggml (ggml-org/ggml src/ggml-quants.c)", kvmem__rot_params, 0 }, 0,         \
        kvmem__##word##_bytes, NULL, kvmem__rot_table_bytes, kvmem__rot_build, NULL, NULL, NULL, NULL, NULL, NULL, \
        kvmem__##word##_encode, kvmem__##word##_expand, kvmem__rot_finish, kvmem__rot_row, kvmem__##word##_dot, \
        kvmem__##word##_axpy, NULL, kvmem__##word##_fast };
KVMEM__ROW(f32, "exact float32, 32 bits a value")
KVMEM__ROW(f16, "IEEE half floats, 16 bits a value")
KVMEM__ROW(bf16, "bfloat16, 16 bits a value")
KVMEM__ROW_CODED(q8_0, "8-bit codes, one scale per 32 channels, 8.5 bits a value")
KVMEM__ROW_CODED(q4_0, "4-bit codes, one scale per 32 channels, 4.5 bits a value")
KVMEM__ROW_CODED(q4_1, "4-bit codes, scale and minimum per 32 channels, 5 bits a value")
KVMEM__ROW_CODED(q5_0, "5-bit codes, one scale per 32 channels, 5.5 bits a value")
KVMEM__ROW_CODED(q5_1, "5-bit codes, scale and minimum per 32 channels, 6 bits a value")
KVMEM__ROW_CODED(iq4_nl, "4-bit codes of 16 uneven levels, one scale per 32 channels, 4.5 bits a value")
#undef KVMEM__ROW
#undef KVMEM__ROW_CODED

/* ==== >>affine : a scale and a minimum for a group of values, shared by codecs ====================
   A group of values is stored as half(s), half(m) and codes of b bits; s = (max - min) / (2^b - 1), m = min:
       code = round((x - m) / s) clamped to 0 .. 2^b - 1 (half to even),      x^ = code s + m
   with s and m as they are stored, so that their rounding is no error of its own. |x - x^| <= s / 2 plus the
   rounding of m. Two shapes of group:
   - cols: channel c over all rows of a block. The head holds s (d), then m (d); rows hold codes alone. With
     q' = q * s and beta = <q, m>, which are made once a block, <q, row_t> = <q', code_t> + beta;
   - rows: `group` channels of one row. A row holds its groups' (s, m), then the codes. With Q_g the sum of q
     over group g, <q, row> = sum_g (s_g <q, code>_g + m_g Q_g).
   Codes of a row are packed as in >>linear: d b bits from the lowest bit on, whole bytes a row.
   Guards: values that are not finite do not count for min and max; infinities then take the nearest end, NaN
   code 0. Values beyond +-65504 are clipped there. A constant group has s = 0, all codes 0 and is exact up to
   the rounding of m. A range below 2^-25 gives s = 0: all values become m.
   test: tests/codec_kivi.c affine_* */
KVMEM__UNUSED static int kvmem__affine_groups(int group, int d) { return group < d ? (d + group - 1) / group : 1; }
KVMEM__UNUSED static size_t kvmem__affine_row_bytes(int bits, int group, int d) {
    return 4 * (size_t)kvmem__affine_groups(group, d) + kvmem__bits_bytes(d, bits);
}
/* Widen [lo, hi] by x if x is finite. */
KVMEM__UNUSED static void kvmem__affine_range(float x, float *lo, float *hi) {
    if (x < *lo && x >= -FLT_MAX) *lo = x;
    if (x > *hi && x <= FLT_MAX) *hi = x;
}
/* [lo, hi] (lo > hi: nothing was finite) -> the stored halves and what they say: scale s, minimum m. */
KVMEM__UNUSED static void kvmem__affine_fit(uint8_t *scale, uint8_t *min, float *s, float *m, float lo, float hi,
                                            int bits) {
    const float most = 65504.0f;
    uint16_t hs, hm;
    if (lo > hi) lo = hi = 0;
    lo = KVMEM__MAX(KVMEM__MIN(lo, most), -most);
    hi = KVMEM__MAX(KVMEM__MIN(hi, most), -most);
    hs = kvmem__half_sat((hi - lo) / (float)((1 << bits) - 1));
    hm = kvmem__half_sat(lo);
    kvmem__put16(scale, hs);
    kvmem__put16(min, hm);
    *s = kvmem__f16_to_f32(hs);
    *m = kvmem__f16_to_f32(hm);
}
/* inverse: of s, 0 for s = 0; top = 2^b - 1. */
KVMEM__UNUSED static uint8_t kvmem__affine_code(float x, float m, float inverse, int top) {
    const float v = (x - m) * inverse;
    int n;
    float rest;
    if (!(v > 0)) return 0;
    if (v >= (float)top) return (uint8_t)top;
    n = (int)v;
    rest = v - (float)n;
    return (uint8_t)(n + (rest > 0.5f || (rest == 0.5f && (n & 1))));
}

/* One row by groups: x (d) -> out (affine_row_bytes), and back. */
KVMEM__UNUSED static void kvmem__affine_row_put(uint8_t *out, const float *x, int d, int bits, int group) {
    const int groups = kvmem__affine_groups(group, d), top = (1 << bits) - 1;
    uint8_t *codes = out + 4 * (size_t)groups, code[64];
    float s, m, lo, hi;
    int g, c, c1, at = 0;
    for (g = 0; g < groups; g++) {
        const int from = g * group, to = g + 1 < groups ? from + group : d;
        lo = INFINITY;
        hi = -INFINITY;
        for (c = from; c < to; c++) kvmem__affine_range(x[c], &lo, &hi);
        kvmem__affine_fit(out + 4 * g, out + 4 * g + 2, &s, &m, lo, hi, bits);
        s = kvmem__inverse(s);
        for (c = from; c < to; c = c1) { /* codes leave in eights, across the ends of groups */
            for (c1 = c; c1 < to && at < 64; c1++) code[at++] = kvmem__affine_code(x[c1], m, s, top);
            if (at == 64 || c1 == d) {
                kvmem__bits_put(codes, code, at, bits);
                codes += 8 * bits;
                at = 0;
            }
        }
    }
}
KVMEM__UNUSED static void kvmem__affine_row_get(float *x, const uint8_t *in, int d, int bits, int group) {
    const int groups = kvmem__affine_groups(group, d);
    const uint8_t *codes = in + 4 * (size_t)groups;
    uint8_t code[64];
    int g, c, i;
    for (g = 0; g < groups; g++, in += 4) {
        const int to = g + 1 < groups ? (g + 1) * group : d;
        const float s = kvmem__f16_to_f32(kvmem__le16(in)), m = kvmem__f16_to_f32(kvmem__le16(in + 2));
        for (c = g * group; c < to; c += 64) {
            const int n = KVMEM__MIN(64, to - c);
            kvmem__bits_get(code, codes, c, n, bits);
            for (i = 0; i < n; i++) x[c + i] = (float)code[i] * s + m;
        }
    }
}

/* n rows by channels: x (n, d), rows `stride` values apart -> head (4 d bytes), rows (row_bytes apart).
   scratch: 2 d floats. */
KVMEM__UNUSED static void kvmem__affine_cols_put(uint8_t *head, uint8_t *rows, size_t row_bytes, const float *x,
                                                 int n, int d, int bits, float *scratch) {
    float *lo = scratch, *hi = scratch + d, s;
    uint8_t code[64];
    const int top = (1 << bits) - 1;
    int t, c, i;
    for (c = 0; c < d; c++) { lo[c] = INFINITY; hi[c] = -INFINITY; }
    for (t = 0; t < n; t++)
        for (c = 0; c < d; c++) kvmem__affine_range(x[(size_t)t * (size_t)d + (size_t)c], &lo[c], &hi[c]);
    for (c = 0; c < d; c++) {
        kvmem__affine_fit(head + 2 * c, head + 2 * (d + c), &s, &lo[c], lo[c], hi[c], bits);
        hi[c] = kvmem__inverse(s);
    }
    for (t = 0; t < n; t++, rows += row_bytes, x += d) {
        for (c = 0; c < d; c += 64) {
            const int m = KVMEM__MIN(64, d - c);
            for (i = 0; i < m; i++) code[i] = kvmem__affine_code(x[c + i], lo[c + i], hi[c + i], top);
            kvmem__bits_put(rows + c / 8 * bits, code, m, bits);
        }
    }
}
KVMEM__UNUSED static void kvmem__affine_cols_get(float *x, const uint8_t *head, const uint8_t *rows,
                                                 size_t row_bytes, int n, int d, int bits) {
    float s[64], m[64];
    uint8_t code[64];
    int t, c, i;
    for (c = 0; c < d; c += 64) {
        const int w = KVMEM__MIN(64, d - c);
        for (i = 0; i < w; i++) {
            s[i] = kvmem__f16_to_f32(kvmem__le16(head + 2 * (c + i)));
            m[i] = kvmem__f16_to_f32(kvmem__le16(head + 2 * (d + c + i)));
        }
        for (t = 0; t < n; t++) {
            float *o = x + (size_t)t * (size_t)d + c;
            kvmem__bits_get(code, rows + row_bytes * (size_t)t, c, w, bits);
            for (i = 0; i < w; i++) o[i] = (float)code[i] * s[i] + m[i];
        }
    }
}

/* --- fast twins of >>affine ------------------------------------------------------------------------
   Codes of 2, 4 and 8 bits are multiplied as integers; whatever they are multiplied with becomes a 16-bit
   number first, one step for a query (and group) or for 64 rows. That rounding is the only error: at most
   1.6e-5 max|q s| sum(code) a score, 1.6e-5 max|w s| 2^b a row and output. F = 8 / bits codes share a byte.
   - dot: lanes are rows. One dword of 16 rows holds 4 code bytes, that is F times 4 codes: field f of the
     bytes are channels f, F + f, 2F + f, 3F + f of the dword's 4F, and the query's bytes (16 bits as a signed
     high and a low one) are put in this order, so that one instruction multiplies 4 codes of 16 rows. By
     column the query is folded with the scales first, once a call; by row every group ends with a multiply-add
     of its scale and minimum.
   - axpy: lanes are channels. The 16-bit words of two rows are interleaved; field f of a dword is then code f
     of both rows, one instruction adds the two products. Weights times scales of a group, two rows in a dword,
     are made for 64 rows at a time.
   Other shapes (odd bits, rows that are no whole 16 bytes) go through `expand`. */
#if KVMEM__X86
/* Code bytes that one register takes of a row: they divide a row, and four groups (the rest of the row is
   whole registers, too); 0: no such number. */
static int kvmem__affine_width(int bits, int d, int group) {
    const int F = 8 / bits, four = group && group < d ? 4 * group : d, rest = d % four;
    int W = 64;
    while (W >= 16 && (d % (W * F) || four % (W * F) || rest % (W * F))) W /= 2;
    return W >= 16 ? W : 0;
}
/* May the twins be used? group 0: by column. */
static int kvmem__affine_fits(int bits, int group, int d) {
    if ((bits != 2 && bits != 4 && bits != 8) || d > 512 || (group && group < d && group % 32)) return 0;
    return kvmem__affine_width(bits, d, group) > 0;
}
/* A prepared query: d high bytes, d low bytes, then for every group its step and its sum (by column: the step
   and <q, m>). */
static int kvmem__affine_q_size(int group, int d) {
    return d / 2 + 2 * (group ? kvmem__affine_groups(group, d) : 1);
}
/* x (d0 .. d1), multiples of 16 but for the last -> bytes at out, out + d. Returns the step. */
KVMEM__AVX512 KVMEM__INLINE float kvmem__affine_bytes(int bits, uint8_t *out, const float *x, int d0, int d1, int d) {
    const __m128i order = bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                        : bits == 2 ? _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
                        : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 most = _mm512_setzero_ps(), inv;
    float step;
    int c;
    for (c = d0; c < d1; c += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + c)));
    step = _mm512_reduce_max_ps(most) / 32639.0f;
    inv = _mm512_set1_ps(kvmem__inverse(step));
    for (c = d0; c < d1; c += 16) {
        const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + c), inv));
        const __m128i hi = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(128)), 8));
        _mm_storeu_si128((__m128i *)(void *)(out + c), _mm_shuffle_epi8(hi, order));
        _mm_storeu_si128((__m128i *)(void *)(out + d + c), _mm_shuffle_epi8(_mm512_cvtepi32_epi8(a), order));
    }
    return step;
}
/* By column: fold q (d) with the head. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_fold(int bits, float *out, const uint8_t *head, const float *q, int d) {
    __m512 beta = _mm512_setzero_ps();
    float x[512];
    int c;
    for (c = 0; c < d; c += 16) {
        const __m256i *s = (const __m256i *)(const void *)(head + 2 * c);
        const __m256i *m = (const __m256i *)(const void *)(head + 2 * (d + c));
        const __m512 v = _mm512_loadu_ps(q + c);
        _mm512_storeu_ps(x + c, _mm512_mul_ps(v, _mm512_cvtph_ps(_mm256_loadu_si256(s))));
        beta = _mm512_fmadd_ps(v, _mm512_cvtph_ps(_mm256_loadu_si256(m)), beta);
    }
    out[d / 2] = kvmem__affine_bytes(bits, (uint8_t *)out, x, 0, d, d);
    out[d / 2 + 1] = _mm512_reduce_add_ps(beta);
}
/* By row: group by group. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_split(int bits, float *out, const float *q, int d, int group) {
    const int groups = kvmem__affine_groups(group, d);
    int g, c;
    for (g = 0; g < groups; g++) {
        const int from = g * group, to = g + 1 < groups ? from + group : d;
        __m512 sum = _mm512_setzero_ps();
        for (c = from; c < to; c += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(q + c));
        out[d / 2 + 2 * g] = kvmem__affine_bytes(bits, (uint8_t *)out, q, from, to, d);
        out[d / 2 + 2 * g + 1] = _mm512_reduce_add_ps(sum);
    }
}
/* 16 bytes at `at` of m <= 16 rows as words of 16 rows (the last row stands in for missing ones). */
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_load(__m512i *w, const uint8_t *rows, size_t rb, int m, size_t at) {
    __m512i z[4];
    uint8_t tail[256];
    int r;
    if (m == 16) kvmem__rows16(z, rows + at, rb);
    else {
        for (r = 0; r < 16; r++) memcpy(tail + 16 * r, rows + at + rb * (size_t)KVMEM__MIN(r, m - 1), 16);
        kvmem__rows16(z, tail, 16);
    }
    kvmem__words16(w, z);
}
/* Field at bit n of the 16-bit words; the compilers do not agree on the type of a shift. */
KVMEM__AVX512 KVMEM__INLINE __m512i kvmem__down_512(__m512i x, int n) {
    switch (n) {
    case 0: return x;
    case 2: return _mm512_srli_epi16(x, 2);
    case 4: return _mm512_srli_epi16(x, 4);
    case 6: return _mm512_srli_epi16(x, 6);
    case 8: return _mm512_srli_epi16(x, 8);
    case 10: return _mm512_srli_epi16(x, 10);
    case 12: return _mm512_srli_epi16(x, 12);
    default: return _mm512_srli_epi16(x, 14);
    }
}
/* Half a chunk (8 code bytes) of 16 rows: hi and lo gain the products, na sums a query. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_mul(int bits, int nq, int na, __m512i *hi, __m512i *lo,
                                                   const __m512i *w, const uint8_t *q, size_t qf, int d) {
    const int F = 8 / bits;
    int k, f, i;
    KVMEM__UNROLL
    for (k = 0; k < 2; k++) {
        KVMEM__UNROLL
        for (f = 0; f < F; f++) {
            const __m512i mask = _mm512_set1_epi8((char)((1 << bits) - 1));
            const __m512i y = bits == 8 ? w[k] : _mm512_and_si512(kvmem__down_512(w[k], f * bits), mask);
            KVMEM__UNROLL
            for (i = 0; i < nq; i++) {
                const uint8_t *p = q + qf * (size_t)i + 4 * (k * F + f);
                const int j = i * na + (k * F + f) % na;
                int a, b;
                memcpy(&a, p, 4);
                memcpy(&b, p + d, 4);
                hi[j] = _mm512_dpbusd_epi32(hi[j], y, _mm512_set1_epi32(a));
                lo[j] = _mm512_dpbusd_epi32(lo[j], y, _mm512_set1_epi32(b));
            }
        }
    }
}
/* End of group g: tot gains its part. meta: the group's (s, m) of 16 rows; by column these are 1 and 1. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_flush(int nq, int na, __m512 *tot, __m512i *hi, __m512i *lo,
                                                     const float *step, size_t qf, int by_row, __m512i meta) {
    __m512 s = _mm512_setzero_ps(), m = s;
    int i, j;
    if (by_row) {
        s = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(meta));
        m = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(meta, 16)));
    }
    KVMEM__UNROLL
    for (i = 0; i < nq; i++) {
        const float *p = step + (qf / 4) * (size_t)i;
        __m512i a = hi[i * na], b = lo[i * na];
        __m512 sum;
        KVMEM__UNROLL
        for (j = 1; j < na; j++) {
            a = _mm512_add_epi32(a, hi[i * na + j]);
            b = _mm512_add_epi32(b, lo[i * na + j]);
        }
        sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(a, 8), b));
        if (by_row) {
            tot[i] = _mm512_fmadd_ps(sum, _mm512_mul_ps(s, _mm512_set1_ps(p[0])), tot[i]);
            tot[i] = _mm512_fmadd_ps(m, _mm512_set1_ps(p[1]), tot[i]);
        } else tot[i] = _mm512_fmadd_ps(sum, _mm512_set1_ps(p[0]), _mm512_set1_ps(p[1]));
        KVMEM__UNROLL
        for (j = 0; j < na; j++) hi[i * na + j] = lo[i * na + j] = _mm512_setzero_si512();
    }
}
/* m <= 16 rows against nq prepared queries, qf bytes apart. group 0: by column. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_dot16(int bits, int nq, float *s, size_t ld, const uint8_t *rows,
                                                     size_t rb, int m, const uint8_t *q, size_t qf, int d, int group) {
    const int F = 8 / bits, na = nq == 1 ? 4 : nq == 2 ? 2 : 1, by_row = group > 0;
    const int groups = by_row ? kvmem__affine_groups(group, d) : 1, every = by_row ? KVMEM__MIN(group, d) : d;
    const float *step = (const float *)(const void *)(q + 2 * d);
    __m512i hi[4], lo[4], w[4], meta[4];
    __m512 tot[4];
    int c, g = 0, i, h;
    KVMEM__UNROLL
    for (i = 0; i < 4; i++) {
        hi[i] = lo[i] = meta[i] = _mm512_setzero_si512();
        tot[i] = _mm512_setzero_ps();
    }
    for (c = 0; c < d; c += 16 * F) {
        kvmem__affine_load(w, rows + (by_row ? 4 * groups : 0), rb, m, (size_t)(c / F));
        KVMEM__UNROLL
        for (h = 0; h < 2; h++) {
            const int to = c + 8 * F * (h + 1);
            kvmem__affine_mul(bits, nq, na, hi, lo, w + 2 * h, q + c + 8 * F * h, qf, d);
            if (to == d || to == (g + 1) * every) {
                if (by_row && g % 4 == 0) kvmem__affine_load(meta, rows, rb, m, 4 * (size_t)g);
                kvmem__affine_flush(nq, na, tot, hi, lo, step + 2 * g, qf, by_row, meta[0]);
                meta[0] = meta[1];
                meta[1] = meta[2];
                meta[2] = meta[3];
                g++;
            }
        }
    }
    for (i = 0; i < nq; i++) _mm512_mask_storeu_ps(s + (size_t)i * ld, (__mmask16)((1u << m) - 1), tot[i]);
}
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_dot_bits(int bits, float *s, int ld, const uint8_t *rows, size_t rb,
                                                        int n, const float *q, size_t qf, int nq, int d, int group) {
    const uint8_t *qb = (const uint8_t *)q;
    size_t ahead;
    int t;
    for (t = 0; t < n; t += 16) {
        const uint8_t *p = rows + rb * (size_t)t;
        const int m = KVMEM__MIN(16, n - t);
        for (ahead = 0; ahead < 16 * rb; ahead += 64) KVMEM__AHEAD(p, 64 * rb + ahead);
        if (nq == 4) kvmem__affine_dot16(bits, 4, s + t, (size_t)ld, p, rb, m, qb, 4 * qf, d, group);
        else if (nq == 3) kvmem__affine_dot16(bits, 3, s + t, (size_t)ld, p, rb, m, qb, 4 * qf, d, group);
        else if (nq == 2) kvmem__affine_dot16(bits, 2, s + t, (size_t)ld, p, rb, m, qb, 4 * qf, d, group);
        else kvmem__affine_dot16(bits, 1, s + t, (size_t)ld, p, rb, m, qb, 4 * qf, d, group);
    }
}
/* n rows, rb apart, against nq <= 4 prepared queries, qf floats apart. */
KVMEM__AVX512 static void kvmem__affine_dot_512(int bits, float *s, int ld, const uint8_t *rows, size_t rb, int n,
                                                const float *q, size_t qf, int nq, int d, int group) {
    if (bits == 2) kvmem__affine_dot_bits(2, s, ld, rows, rb, n, q, qf, nq, d, group);
    else if (bits == 4) kvmem__affine_dot_bits(4, s, ld, rows, rb, n, q, qf, nq, d, group);
    else kvmem__affine_dot_bits(8, s, ld, rows, rb, n, q, qf, nq, d, group);
}
/* By column: s[i*ld + t] = <q_i, row t>, q (nq, d). */
KVMEM__AVX512 static void kvmem__affine_cols_dot_512(int bits, float *s, int ld, const uint8_t *head,
                                                     const uint8_t *rows, size_t rb, int n, const float *q, int nq,
                                                     int d) {
    float f[4 * (256 + 2)];
    const size_t qf = (size_t)(d / 2 + 2);
    int i, k, j;
    for (i = 0; i < nq; i += k) {
        k = KVMEM__MIN(4, nq - i);
        for (j = 0; j < k; j++) {
            const float *x = q + (size_t)(i + j) * (size_t)d;
            if (bits == 2) kvmem__affine_fold(2, f + qf * (size_t)j, head, x, d);
            else if (bits == 4) kvmem__affine_fold(4, f + qf * (size_t)j, head, x, d);
            else kvmem__affine_fold(8, f + qf * (size_t)j, head, x, d);
        }
        kvmem__affine_dot_512(bits, s + (size_t)i * (size_t)ld, ld, rows, rb, n, f, qf, k, d, 0);
    }
}
KVMEM__AVX512 static void kvmem__affine_split_512(int bits, float *out, const float *q, int d, int group) {
    if (bits == 2) kvmem__affine_split(2, out, q, d, group);
    else if (bits == 4) kvmem__affine_split(4, out, q, d, group);
    else kvmem__affine_split(8, out, q, d, group);
}
/* By row: the queries are prepared (affine_split). */
KVMEM__AVX512 static void kvmem__affine_rows_dot_512(int bits, float *s, int ld, const uint8_t *rows, size_t rb, int n,
                                                     const float *q, int nq, int d, int group) {
    const size_t qf = (size_t)kvmem__affine_q_size(group, d);
    int i;
    for (i = 0; i < nq; i += 4)
        kvmem__affine_dot_512(bits, s + (size_t)i * (size_t)ld, ld, rows, rb, n, q + qf * (size_t)i, qf,
                              KVMEM__MIN(4, nq - i), d, group);
}

/* Weights of m <= 64 rows as 16-bit numbers: dword 4 p + g of pair (32, 4) is (w s_g) of rows 2p and 2p + 1
   over the step, which is returned; zero past row m. bias[g] = sum w m_g. meta: (s, m) of up to 4 groups. */
KVMEM__AVX512 KVMEM__INLINE float kvmem__affine_weigh(int32_t *pair, float *bias, const float *w, const uint8_t *meta,
                                                      size_t rb, int m, int groups) {
    const __mmask16 some = (__mmask16)(((1u << 2 * groups) - 1) * 0x101u);
    /* words of two pairs: lanes are s, m of four groups of a row, then of the next row */
    const __m512i order = _mm512_setr_epi32(0x100000, 0x140004, 0x180008, 0x1c000c, 0x300020, 0x340024, 0x380028,
                                            0x3c002c, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512 most = _mm512_setzero_ps(), sum = most, inv;
    float u[32 * 16], step;
    int t, k;
    for (t = 0; t < m; t += 2, meta += 2 * rb) {
        const __m128i h0 = _mm_loadu_si128((const __m128i *)(const void *)meta);
        const __m128i h1 = _mm_loadu_si128((const __m128i *)(const void *)(t + 1 < m ? meta + rb : meta));
        const __m256i h = _mm256_inserti128_si256(_mm256_castsi128_si256(h0), h1, 1);
        const float next = t + 1 < m ? w[t + 1] : 0;
        const __m512 ws = _mm512_mask_broadcastss_ps(_mm512_set1_ps(w[t]), 0xff00, _mm_set_ss(next));
        const __m512 x = _mm512_maskz_mul_ps(some, _mm512_cvtph_ps(h), ws);
        sum = _mm512_add_ps(sum, x);
        most = _mm512_mask_max_ps(most, 0x5555, most, _mm512_abs_ps(x));
        _mm512_storeu_ps(u + 8 * t, x);
    }
    for (; t < 64 && t % 8; t += 2) _mm512_storeu_ps(u + 8 * t, _mm512_setzero_ps());
    m = t;
    step = _mm512_reduce_max_ps(most) / 32767.0f;
    inv = _mm512_set1_ps(kvmem__inverse(step));
    for (t = 0; t < m; t += 8) {
        __m512i a[4];
        KVMEM__UNROLL
        for (k = 0; k < 4; k++) a[k] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(u + 8 * t + 16 * k), inv));
        a[0] = _mm512_permutex2var_epi16(a[0], order, a[1]);
        a[2] = _mm512_permutex2var_epi16(a[2], order, a[3]);
        _mm512_storeu_si512((void *)(pair + 2 * t), _mm512_inserti64x4(a[0], _mm512_castsi512_si256(a[2]), 1));
    }
    for (; t < 64; t += 8) _mm512_storeu_si512((void *)(pair + 2 * t), _mm512_setzero_si512());
    sum = _mm512_add_ps(sum, _mm512_shuffle_f32x4(sum, sum, 0x4e));
    _mm512_storeu_ps(u, sum);
    for (k = 0; k < groups; k++) bias[k] = u[2 * k + 1];
    return step;
}
/* By column: the weights alone, as those of one group. bias[0] = sum w. */
KVMEM__AVX512 KVMEM__INLINE float kvmem__affine_weigh_cols(int32_t *pair, float *bias, const float *w, int m) {
    __m512 x[4], most = _mm512_setzero_ps(), sum = most, inv;
    __m512i at = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    float step;
    int j, k;
    KVMEM__UNROLL
    for (j = 0; j < 4; j++) {
        const int left = m - 16 * j;
        const __mmask16 some = (__mmask16)(left >= 16 ? 0xffffu : left > 0 ? (1u << left) - 1 : 0u);
        x[j] = _mm512_maskz_loadu_ps(some, w + 16 * j);
        most = _mm512_max_ps(most, _mm512_abs_ps(x[j]));
        sum = _mm512_add_ps(sum, x[j]);
    }
    bias[0] = _mm512_reduce_add_ps(sum);
    step = _mm512_reduce_max_ps(most) / 32767.0f;
    inv = _mm512_set1_ps(kvmem__inverse(step));
    KVMEM__UNROLL
    for (j = 0; j < 4; j++) {
        const __m256i h = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(x[j], inv)));
        KVMEM__UNROLL
        for (k = 0; k < 2; k++) /* 4 pairs a store */
            _mm512_storeu_si512((void *)(pair + 32 * j + 16 * k), _mm512_permutexvar_epi32(
                _mm512_add_epi32(at, _mm512_set1_epi32(4 * k)), _mm512_castsi256_si512(h)));
    }
    return step;
}
/* The dwords of the 64 / W pairs that begin at p. */
KVMEM__AVX512 KVMEM__INLINE __m512i kvmem__affine_pairs(int W, const int32_t *p) {
    if (W == 64) return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)p));
    if (W == 32) return _mm512_broadcast_i32x8(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_loadu_si512((const void *)p);
}
/* W code bytes of 64 / W pairs of rows from row t on: the first rows of the pairs, then the second ones. */
KVMEM__AVX512 KVMEM__INLINE __m512i kvmem__affine_units(int W, const uint8_t *p, size_t rb, int t, int m) {
    const uint8_t *a = p + rb * (size_t)KVMEM__MIN(t, m - 1), *b = p + rb * (size_t)KVMEM__MIN(t + 2, m - 1), *c, *e;
    __m512i x;
    if (W == 64) return _mm512_loadu_si512((const void *)a);
    if (W == 32)
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)a)),
                                  _mm256_loadu_si256((const __m256i *)(const void *)b), 1);
    c = p + rb * (size_t)KVMEM__MIN(t + 4, m - 1);
    e = p + rb * (size_t)KVMEM__MIN(t + 6, m - 1);
    x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)a));
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(const void *)b), 1);
    x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(const void *)c), 2);
    return _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)(const void *)e), 3);
}
/* Four registers of four lanes each: lane l of x[j] -> lane j of x[l]. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__lanes4(__m512i *x) {
    const __m512i a = _mm512_shuffle_i32x4(x[0], x[1], 0x44), b = _mm512_shuffle_i32x4(x[0], x[1], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(x[2], x[3], 0x44), e = _mm512_shuffle_i32x4(x[2], x[3], 0xee);
    x[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    x[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    x[2] = _mm512_shuffle_i32x4(b, e, 0x88);
    x[3] = _mm512_shuffle_i32x4(b, e, 0xdd);
}
/* x: four registers whose lane l holds 4 neighbouring channels of 16 of them: acc at c0 + every * l gains
   scale times their sums over the pairs that share a register. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_gain(int W, float *acc, int every, __m512i *x, __m512 scale) {
    int l;
    kvmem__lanes4(x);
    if (W <= 32) {
        x[0] = _mm512_add_epi32(x[0], x[2]);
        x[1] = _mm512_add_epi32(x[1], x[3]);
    }
    if (W <= 16) x[0] = _mm512_add_epi32(x[0], x[1]);
    KVMEM__UNROLL
    for (l = 0; l < W / 16; l++)
        _mm512_storeu_ps(acc + every * l, _mm512_fmadd_ps(_mm512_cvtepi32_ps(x[l]), scale,
                                                          _mm512_loadu_ps(acc + every * l)));
}
/* dword i, field f of lane l -> dword f of x[i]: 4 x 4 in every lane. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__fields4(__m512i *x, const __m512i *a, int stride) {
    __m512i z[4];
    z[0] = a[0];
    z[1] = a[stride];
    z[2] = a[2 * stride];
    z[3] = a[3 * stride];
    kvmem__words16(x, z);
}
/* One unit of W code bytes of m <= 64 rows: acc (nq, d) at its channels gains the sums. pair (nq, 32, 4), idx:
   for each half k of a lane, which of the dwords that begin at a pair belong to which lane. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_unit(int bits, int W, int nq, float *acc, size_t ld, const uint8_t *p,
                                                    size_t rb, int m, const int32_t *pair, const __m512i *idx,
                                                    const float *step) {
    const int F = 8 / bits, nf = 2 * F, nk = bits == 2 ? 1 : 2, pairs = 64 / W;
    __m512i a[24], x[8];
    int t, i, k, k0, f;
    for (k0 = 0; k0 < 2; k0 += nk) {
        KVMEM__UNROLL
        for (i = 0; i < nk * nf * nq; i++) a[i] = _mm512_setzero_si512();
        for (t = 0; t < m; t += 2 * pairs) {
            const __m512i u = kvmem__affine_units(W, p, rb, t, m), v = kvmem__affine_units(W, p, rb, t + 1, m);
            if (k0 == 0) {
                KVMEM__AHEAD(p + rb * (size_t)t, 64 * rb);
                if (W == 64) KVMEM__AHEAD(p + rb * (size_t)t, 65 * rb);
            }
            KVMEM__UNROLL
            for (k = 0; k < nk; k++) {
                const __m512i z = k + k0 ? _mm512_unpackhi_epi16(u, v) : _mm512_unpacklo_epi16(u, v);
                __m512i ws[3];
                KVMEM__UNROLL
                for (i = 0; i < nq; i++)
                    ws[i] = _mm512_permutexvar_epi32(idx[k + k0], kvmem__affine_pairs(W, pair + 128 * i + 2 * t));
                KVMEM__UNROLL
                for (f = 0; f < nf; f++) {
                    const __m512i mask = _mm512_set1_epi16((short)((1 << bits) - 1));
                    __m512i y = kvmem__down_512(z, f * bits);
                    if (f < nf - 1) y = _mm512_and_si512(y, mask);
                    KVMEM__UNROLL
                    for (i = 0; i < nq; i++) KVMEM__DPWSSD(a[(k * nf + f) * nq + i], y, ws[i]);
                }
            }
        }
        KVMEM__UNROLL
        for (i = 0; i < nq; i++) {
            const __m512 scale = _mm512_set1_ps(step[i]);
            float *o = acc + ld * (size_t)i;
            if (bits == 8) {
                x[0] = _mm512_unpacklo_epi32(a[i], a[nq + i]);
                x[1] = _mm512_unpackhi_epi32(a[i], a[nq + i]);
                x[2] = _mm512_unpacklo_epi32(a[2 * nq + i], a[3 * nq + i]);
                x[3] = _mm512_unpackhi_epi32(a[2 * nq + i], a[3 * nq + i]);
                kvmem__affine_gain(W, o, 16, x, scale);
            } else if (bits == 4) {
                KVMEM__UNROLL
                for (k = 0; k < 2; k++) {
                    kvmem__fields4(x, a + 4 * nq * k + i, nq);
                    kvmem__affine_gain(W, o + 16 * k, 32, x, scale);
                }
            } else {
                __m512i y[8];
                kvmem__fields4(x, a + i, nq);
                kvmem__fields4(x + 4, a + 4 * nq + i, nq);
                y[0] = x[0]; y[1] = x[4]; y[2] = x[1]; y[3] = x[5];
                y[4] = x[2]; y[5] = x[6]; y[6] = x[3]; y[7] = x[7];
                kvmem__affine_gain(W, o + 32 * k0, 64, y, scale);
                kvmem__affine_gain(W, o + 32 * k0 + 16, 64, y + 4, scale);
            }
        }
    }
}
/* Channels c0 .. c1 of whole units, in four groups at most. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_sum(int bits, int W, int nq, float *acc, size_t ld, const uint8_t *p,
                                                   size_t rb, int m, const int32_t *pair, const float *step, int c0,
                                                   int c1, int group) {
    const int F = 8 / bits;
    int c, l, k;
    for (c = c0; c < c1; c += W * F) {
        int32_t at[2][16];
        __m512i idx[2];
        KVMEM__UNROLL
        for (k = 0; k < 2; k++) { /* lane l: 16 bytes of pair l / (W / 16), half k of them */
            for (l = 0; l < 16; l++)
                at[k][l] = l / 4 / (W / 16) * 4 + (group ? (c - c0 + F * (l / 4 % (W / 16) * 16 + 8 * k)) / group : 0);
            idx[k] = _mm512_loadu_si512((const void *)at[k]);
        }
        kvmem__affine_unit(bits, W, nq, acc + c, ld, p + c / F, rb, m, pair, idx, step);
    }
}
/* acc (nq <= 3, ld apart) += the sums of codes times weights of n rows, and of m by row; bias[i] += sum w_i.
   codes: the first code byte of row 0, meta: the first byte of its groups, NULL: by column. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__affine_axpy_512(int bits, int nq, float *acc, size_t ld, float *bias,
                                                        const uint8_t *codes, const uint8_t *meta, size_t rb, int n,
                                                        const float *w, size_t wl, int d, int group) {
    const int W = kvmem__affine_width(bits, d, group), each = meta ? group : 0, every = meta ? KVMEM__MIN(4 * group, d) : d;
    int32_t pair[3 * 128];
    float step[3], more[4];
    int t, i, c, k, x;
    for (t = 0; t < n; t += 64) {
        const int m = KVMEM__MIN(64, n - t);
        const size_t at = rb * (size_t)t;
        for (c = 0; c < d; c += every) {
            const int to = KVMEM__MIN(c + every, d), groups = meta ? (to - c + group - 1) / group : 1;
            for (i = 0; i < nq; i++) {
                const float *wi = w + wl * (size_t)i + t;
                if (!meta) {
                    step[i] = kvmem__affine_weigh_cols(pair + 128 * i, more, wi, m);
                    bias[i] += more[0];
                    continue;
                }
                step[i] = kvmem__affine_weigh(pair + 128 * i, more, wi, meta + at + c / group * 4, rb, m, groups);
                for (k = 0; k < groups; k++)
                    for (x = c + k * group; x < KVMEM__MIN(c + (k + 1) * group, to); x += 16) {
                        float *o = acc + ld * (size_t)i + x;
                        _mm512_storeu_ps(o, _mm512_add_ps(_mm512_loadu_ps(o), _mm512_set1_ps(more[k])));
                    }
            }
            if (W == 64) kvmem__affine_sum(bits, 64, nq, acc, ld, codes + at, rb, m, pair, step, c, to, each);
            else if (W == 32) kvmem__affine_sum(bits, 32, nq, acc, ld, codes + at, rb, m, pair, step, c, to, each);
            else kvmem__affine_sum(bits, 16, nq, acc, ld, codes + at, rb, m, pair, step, c, to, each);
        }
    }
}
#define KVMEM__AFFINE_AXPY(bits)                                                                    \
    KVMEM__AVX512 static void kvmem__affine_axpy##bits##_512(float *acc, size_t ld, float *bias, const uint8_t *codes, \
                                                             const uint8_t *meta, size_t rb, int n, const float *w, \
                                                             size_t wl, int nq, int d, int group) { \
        if (nq == 3) kvmem__affine_axpy_512(bits, 3, acc, ld, bias, codes, meta, rb, n, w, wl, d, group); \
        else if (nq == 2) kvmem__affine_axpy_512(bits, 2, acc, ld, bias, codes, meta, rb, n, w, wl, d, group); \
        else kvmem__affine_axpy_512(bits, 1, acc, ld, bias, codes, meta, rb, n, w, wl, d, group);   \
    }
KVMEM__AFFINE_AXPY(2)
KVMEM__AFFINE_AXPY(4)
KVMEM__AFFINE_AXPY(8)
#undef KVMEM__AFFINE_AXPY
static void kvmem__affine_axpy_any_512(int bits, float *acc, size_t ld, float *bias, const uint8_t *codes,
                                       const uint8_t *meta, size_t rb, int n, const float *w, size_t wl, int nq, int d,
                                       int group) {
    if (bits == 2) kvmem__affine_axpy2_512(acc, ld, bias, codes, meta, rb, n, w, wl, nq, d, group);
    else if (bits == 4) kvmem__affine_axpy4_512(acc, ld, bias, codes, meta, rb, n, w, wl, nq, d, group);
    else kvmem__affine_axpy8_512(acc, ld, bias, codes, meta, rb, n, w, wl, nq, d, group);
}
/* acc (nq, d): acc_i += sum_t w[i*ld + t] row t. */
static void kvmem__affine_rows_axpy_512(int bits, float *acc, const uint8_t *rows, size_t rb, int n, const float *w,
                                        int ld, int nq, int d, int group) {
    const int groups = kvmem__affine_groups(group, d);
    float none[3];
    int i, k;
    for (i = 0; i < nq; i += k) {
        k = nq - i == 4 ? 2 : KVMEM__MIN(3, nq - i);
        kvmem__affine_axpy_any_512(bits, acc + (size_t)i * (size_t)d, (size_t)d, none, rows + 4 * groups, rows, rb, n,
                                   w + (size_t)i * (size_t)ld, (size_t)ld, k, d, KVMEM__MIN(group, d));
    }
}
KVMEM__AVX512 static void kvmem__affine_cols_axpy_512(int bits, float *acc, const uint8_t *head, const uint8_t *rows,
                                                      size_t rb, int n, const float *w, int ld, int nq, int d) {
    float sum[2 * 512];
    int i, k, j, c;
    for (i = 0; i < nq; i += k) {
        float bias[3] = { 0, 0, 0 };
        k = KVMEM__MIN(2, nq - i);
        memset(sum, 0, sizeof(float) * (size_t)(k * d));
        kvmem__affine_axpy_any_512(bits, sum, (size_t)d, bias, rows, NULL, rb, n, w + (size_t)i * (size_t)ld,
                                   (size_t)ld, k, d, 0);
        for (j = 0; j < k; j++) {
            float *a = acc + (size_t)(i + j) * (size_t)d;
            for (c = 0; c < d; c += 16) {
                const __m512 s = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(head + 2 * c)));
                const uint8_t *mins = head + 2 * (d + c);
                const __m512 m = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)mins));
                const __m512 x = _mm512_fmadd_ps(s, _mm512_loadu_ps(sum + j * d + c), _mm512_loadu_ps(a + c));
                _mm512_storeu_ps(a + c, _mm512_fmadd_ps(m, _mm512_set1_ps(bias[j]), x));
            }
        }
    }
}
#endif /* KVMEM__X86 */

/* ==== >>codec_kivi : keys by channel, values by token, 2 or 4 bits. stage: codec; prefill and decode ====
   Liu et al. KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache. 2024. arXiv 2402.02750.
   Code: jy-yuan/KIVI models/llama_kivi.py (LlamaAttention_KIVI.forward), quant/new_pack.py.
   Keys have channels that are large in every token, values have none that matter. So a key channel gets its
   own scale over the tokens of a block, where its size cancels, and a value row gets its own over groups of
   G channels, so that one token's error stays in that token's share of the output. Newest tokens stay float16.
     axis=channel  s_c, m_c over the T tokens of the block (a page): K of the paper
     axis=token    s_tg, m_tg over G channels of one row: V of the paper; rows are coded one at a time
   with s, m, code of >>affine, x (T, d).
   bits a value: b + 32/T by channel, b + 32/G by token: with T = G = 32: b + 1.
   reads: K after RoPE, V.   state: none.   cost: O(n d) on codes.
   defaults: bits=2 axis=channel group=32. Preset kivi: page=32, K by channel with residual=128 flush=1 (a
   buffer of 128 rows is coded at once when full), V by token with residual=128 (always the last 128 exact).
   Another common setting is page=128 group=128: b + .25 bits.
   departs: the code packs 16 or 32 codes in an int and keeps float16 arithmetic; here codes come from float32
   arithmetic on the halves. The code divides 0/0 in a constant group; here it is exact.
   test: tests/codec_kivi.c */
enum { KVMEM__KIVI_BITS, KVMEM__KIVI_AXIS, KVMEM__KIVI_GROUP };
static const kvmem_param kvmem__params_kivi[] = {
    { "bits", 2, 1, 8, NULL, 1, "bits of a code" },
    { "axis", 0, 0, 1, "channel|token", 1, "a scale for each channel of a block, or for groups of a row" },
    { "group", 32, 1, 4096, NULL, 1, "axis=token: channels that share a scale" },
    KVMEM__CODEC_COMMON };
static int kvmem__kivi_token(const double *par) { return par[KVMEM__KIVI_AXIS] > 0; }
static size_t kvmem__kivi_row_bytes(const double *par, int d) {
    const int bits = (int)par[KVMEM__KIVI_BITS];
    return kvmem__kivi_token(par) ? kvmem__affine_row_bytes(bits, (int)par[KVMEM__KIVI_GROUP], d)
                                  : kvmem__bits_bytes(d, bits);
}
static size_t kvmem__kivi_head_bytes(const kvmem_coded *b, const float *x) {
    (void)x;
    return kvmem__kivi_token(b->par) ? 0 : 4 * (size_t)b->d;
}
static int kvmem__kivi_scratch(const double *par, int d, int n) {
    (void)n;
    return kvmem__kivi_token(par) ? 0 : 2 * d;
}
static void kvmem__kivi_encode(const kvmem_coded *b, const float *x, int t0, int n) {
    const int bits = (int)b->par[KVMEM__KIVI_BITS];
    int t;
    if (!kvmem__kivi_token(b->par))
        kvmem__affine_cols_put(b->head, b->rows, b->row_bytes, x, n, b->d, bits, b->scratch);
    else
        for (t = 0; t < n; t++)
            kvmem__affine_row_put(kvmem__row_at(b, t0 + t), x + (size_t)t * (size_t)b->d, b->d, bits,
                                  (int)b->par[KVMEM__KIVI_GROUP]);
}
static void kvmem__kivi_expand(const kvmem_coded *b, float *out, int t0, int n) {
    const int bits = (int)b->par[KVMEM__KIVI_BITS];
    int t;
    if (!kvmem__kivi_token(b->par))
        kvmem__affine_cols_get(out, b->head, kvmem__row_at(b, t0), b->row_bytes, n, b->d, bits);
    else
        for (t = 0; t < n; t++)
            kvmem__affine_row_get(out + (size_t)t * (size_t)b->d, kvmem__row_at(b, t0 + t), b->d, bits,
                                  (int)b->par[KVMEM__KIVI_GROUP]);
}
#if KVMEM__X86
static int kvmem__kivi_group(const double *par) { return kvmem__kivi_token(par) ? (int)par[KVMEM__KIVI_GROUP] : 0; }
static int kvmem__kivi_fits(const double *par, int d) {
    return kvmem__affine_fits((int)par[KVMEM__KIVI_BITS], kvmem__kivi_group(par), d);
}
static int kvmem__kivi_q_floats_512(const double *par, int d) {
    return kvmem__kivi_token(par) && kvmem__kivi_fits(par, d) ? kvmem__affine_q_size(kvmem__kivi_group(par), d) : d;
}
static void kvmem__kivi_prepare_512(const kvmem_coded *b, float *out, const float *q) {
    if (kvmem__kivi_token(b->par) && kvmem__kivi_fits(b->par, b->d))
        kvmem__affine_split_512((int)b->par[KVMEM__KIVI_BITS], out, q, b->d, kvmem__kivi_group(b->par));
    else memcpy(out, q, (size_t)b->d * sizeof(float));
}
static void kvmem__kivi_dot_512(const kvmem_coded *b, float *s, int ld, int t0, int n, const float *q, int nq) {
    const int bits = (int)b->par[KVMEM__KIVI_BITS], d = b->d;
    const uint8_t *rows = kvmem__row_at(b, t0);
    if (!kvmem__kivi_fits(b->par, d)) kvmem__dot_by_expand(kvmem__kivi_expand, b, d, d, s, ld, t0, n, q, nq);
    else if (kvmem__kivi_token(b->par))
        kvmem__affine_rows_dot_512(bits, s, ld, rows, b->row_bytes, n, q, nq, d, kvmem__kivi_group(b->par));
    else kvmem__affine_cols_dot_512(bits, s, ld, b->head, rows, b->row_bytes, n, q, nq, d);
}
static void kvmem__kivi_axpy_512(const kvmem_coded *b, float *acc, int t0, int n, const float *w, int ld, int nq) {
    const int bits = (int)b->par[KVMEM__KIVI_BITS], d = b->d;
    const uint8_t *rows = kvmem__row_at(b, t0);
    if (!kvmem__kivi_fits(b->par, d)) kvmem__axpy_by_expand(kvmem__kivi_expand, b, d, acc, t0, n, w, ld, nq);
    else if (kvmem__kivi_token(b->par))
        kvmem__affine_rows_axpy_512(bits, acc, rows, b->row_bytes, n, w, ld, nq, d, kvmem__kivi_group(b->par));
    else kvmem__affine_cols_axpy_512(bits, acc, b->head, rows, b->row_bytes, n, w, ld, nq, d);
}
#endif
static void kvmem__kivi_fast(kvmem_codec *c, int isa) {
#if KVMEM__X86
    if (isa == 3) {
        c->q_floats = kvmem__kivi_q_floats_512;
        c->q_prepare = kvmem__kivi_prepare_512;
        c->dot = kvmem__kivi_dot_512;
        c->axpy = kvmem__kivi_axpy_512;
    }
#else
    (void)c;
    (void)isa;
#endif
}
static const kvmem_codec kvmem__codec_kivi = {
    { "kivi", "keys by channel over a page, values by token over groups of channels, bits + 1",
      "Liu 2024, arXiv 2402.02750", kvmem__params_kivi, 0 }, 0, kvmem__kivi_row_bytes, kvmem__kivi_head_bytes,
    NULL, NULL, NULL, NULL, NULL, kvmem__kivi_scratch, NULL, NULL, kvmem__kivi_encode, kvmem__kivi_expand, NULL,
    NULL, NULL, NULL, NULL, kvmem__kivi_fast };

/* ==== >>codec_kvquant : non-uniform levels from calibration, per-channel keys, sparse outliers =====
   Hooper, Kim, Mohammadzadeh, Mahoney, Shao, Keutzer, Gholami. KVQuant: Towards 10 Million Context Length
   LLM Inference with KV Cache Quantization. 2024. arXiv 2401.18079.
   Code: SqueezeAILab/KVQuant quant/kvquant/simquant_module_quantizer.py (SimQuant, quant_fn_nuq_recon).
   A few channels of a key are large in every token: they get ranges of their own. The other values of a
   model are not spread evenly over their range: their 2^bits levels are placed by k-means. What lies
   outside the range, about 1 % of the values, would stretch it: those are kept as they are, in a list.
     lesson   keys: lo_c, hi_c = the s/2 and 1 - s/2 quantiles of channel c over the lane's rows x (n, d)
              off = (hi + lo) / 2, rg = (hi - lo) / 2, z = (x - off) / rg
              levels lut (2^bits) = k-means on a line of all z in [-1, 1], at most 50 rounds
     keys     |z| > 1: an outlier, value in the list; else code = nearest level (upper on a tie)
     values   the same with the token's own lo, hi: the m largest and m smallest of its d values are
              outliers, m = d - 1 - floor((1 - s/2) (d - 1)), off and rg come from the others
     decode   lut'[code] rg + off, outliers overwrite; lut' = lut, with qnorm: lut ns + no, so that mean
              and deviation of the lesson's z survive: ns = std z / std lut[code],
              no = mean z - ns mean lut[code]
   stage: both.   reads: keys before RoPE (kvquant), after it (kvquant_post), values (kvquant_v).
   state: keys 2^(bits+1) + 2 d floats, values 2^(bits+1): once a lane, not a row.
   bits/value: keys bits + 32 s' + 32 / (page d), s' the share of outliers found (16-bit index in the
   block, half value); values bits + 32 / d (two halves) + 2 m (8, d > 256: 16, + 16) / d. E.g. 3 bits,
   s = 1 %, d = 64: 3.33 and 4.25.
   cost: a table look-up a value; keys before RoPE are rotated at every read.
   defaults: bits=3 sparse=1 (percent) qnorm=0 cap=0 (outliers of a key at either end, 0: all; released:
   21 of 4096).   preset: keys and values, first 4 tokens exact.   ties: lower index.
   guards: a channel that was constant in the lesson has rg = 0, any other value of it is an outlier;
   without outliers (sparse=0) values stop at lo, hi; NaN is 0, what no half can hold is +-65504.
   departs: one lane is one KV head, so levels are a head's, and quantiles of values are over d, not H_kv d
   (that is 2 m / d = 3.1 % outliers at d = 64); the lesson is the lane's own rows, levels come from at most
   16384 z; no Fisher weights (no gradients here). What a codec may store (keys before RoPE, after, values)
   is fixed for a word of the recipe: hence three words.                      test: tests/codec_kvquant.c */
enum { KVMEM__KVQUANT_POOL = 16384 };
static int kvmem__kvquant_bits(const double *par) { return (int)par[0]; }
static double kvmem__kvquant_top(const double *par) { return 1 - par[1] / 200; } /* 1 - s/2 */

/* The state: levels to choose by, levels to decode by, and for keys a range of each channel. */
static int kvmem__kvquant_v_state(const double *par, int d) {
    (void)d;
    return 2 << kvmem__kvquant_bits(par);
}
static int kvmem__kvquant_state(const double *par, int d) { return kvmem__kvquant_v_state(par, d) + 2 * d; }
static int kvmem__kvquant_scratch(const double *par, int d, int n) {
    (void)par;
    return (int)KVMEM__MIN((double)n * d, (double)KVMEM__KVQUANT_POOL) + KVMEM__MAX(n, d);
}
/* What a codec works with: finite, small enough for a half. NaN becomes 0. */
static float kvmem__tame(float x) {
    return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x == x ? x : 0.0f;
}
/* A value as a share of its range; beyond +-1 for an outlier. */
static float kvmem__kvquant_z(float x, float off, float rg) {
    const float z = rg > 0 ? (x - off) / rg : 0.0f;
    if (rg > 0 && z <= FLT_MAX && z >= -FLT_MAX) return z;
    return x > off ? FLT_MAX : x < off ? -FLT_MAX : 0.0f;
}

/* Levels from m values z, which are reordered, and the levels to decode by. */
static void kvmem__kvquant_levels(const double *par, float *state, float *z, int m) {
    const int k = 1 << kvmem__kvquant_bits(par);
    float *lut = state, *out = state + k;
    double zs = 0, zz = 0, ls = 0, ll = 0, ns;
    int i;
    if (m) kvmem__kmeans1(lut, k, z, NULL, m, 50);
    else
        for (i = 0; i < k; i++) lut[i] = (float)(2 * i - (k - 1)) / (float)(k - 1);
    memcpy(out, lut, sizeof(float) * (size_t)k);
    if (par[2] == 0 || !m) return;
    for (i = 0; i < m; i++) {
        const double v = (double)z[i], l = (double)lut[kvmem__nearest_level(lut, k, z[i])];
        zs += v; zz += v * v; ls += l; ll += l * l;
    }
    zs /= m; zz = zz / m - zs * zs; ls /= m; ll = ll / m - ls * ls;
    ns = zz > 0 && ll > 0 ? sqrt(zz / ll) : 1;
    for (i = 0; i < k; i++) out[i] = (float)((double)lut[i] * ns + zs - ls * ns);
}
/* Value i of a pool of values drawn from `count`: all of them if they are few, else at random. */
static size_t kvmem__kvquant_pick(size_t i, size_t count) {
    return count <= KVMEM__KVQUANT_POOL ? i : (size_t)(kvmem__mix(i) % count);
}

/* --- keys --- */
static void kvmem__kvquant_learn(const kvmem_coded *b, float *state, const float *x, int n) {
    const int d = b->d, pool = (int)KVMEM__MIN((double)n * d, (double)KVMEM__KVQUANT_POOL);
    const double top = kvmem__kvquant_top(b->par);
    float *off = state + kvmem__kvquant_v_state(b->par, d), *rg = off + d;
    float *z = b->scratch, *sorted = z + pool;
    int c, t, i, m = 0;
    for (c = 0; c < d; c++) {
        float lo, hi;
        for (t = 0; t < n; t++) sorted[t] = kvmem__tame(x[(size_t)t * (size_t)d + (size_t)c]);
        kvmem__sort_floats(sorted, NULL, n);
        hi = n ? kvmem__percentile(sorted, n, top) : 0;
        lo = n ? kvmem__percentile(sorted, n, 1 - top) : 0;
        off[c] = (hi + lo) / 2;
        rg[c] = (hi - lo) / 2;
    }
    for (i = 0; i < pool; i++) {
        const size_t at = kvmem__kvquant_pick((size_t)i, (size_t)n * (size_t)d);
        const float v = kvmem__kvquant_z(kvmem__tame(x[at]), off[at % (size_t)d], rg[at % (size_t)d]);
        if (v >= -1 && v <= 1) z[m++] = v;
    }
    kvmem__kvquant_levels(b->par, state, z, m);
}
/* Is channel c of key x an outlier that the list keeps? */
static int kvmem__kvquant_listed(const kvmem_coded *b, const float *x, int c) {
    const float *off = b->state + kvmem__kvquant_v_state(b->par, b->d), *rg = off + b->d;
    const float z = kvmem__kvquant_z(kvmem__tame(x[c]), off[c], rg[c]);
    int i, above = 0;
    if (b->par[1] == 0 || (z >= -1 && z <= 1)) return 0;
    if (b->par[3] == 0) return 1;
    for (i = 0; i < b->d; i++) { /* how many stand before it at its end */
        const float y = kvmem__kvquant_z(kvmem__tame(x[i]), off[i], rg[i]);
        above += z > 0 ? y > z || (y == z && i < c) : y < z || (y == z && i < c);
    }
    return above < (int)b->par[3];
}
/* The head: how many outliers there are (32 bits; the top one: indices are wide), then for each, rising,
   its index t d + c (16 bits, wide: 32) and its value as a half. */
static int kvmem__kvquant_wide(const kvmem_coded *b) { return (double)b->n * b->d > 65536.0; }
static size_t kvmem__kvquant_head_bytes(const kvmem_coded *b, const float *x) {
    const size_t each = kvmem__kvquant_wide(b) ? 6 : 4;
    size_t count = 0;
    int t, c;
    if (!x) return 4 + each * (size_t)(b->par[1] / 100 * b->n * b->d + 0.5);
    for (t = 0; t < b->n; t++, x += b->d)
        for (c = 0; c < b->d; c++) count += (size_t)kvmem__kvquant_listed(b, x, c);
    return 4 + each * count;
}
/* Outliers of the list of b (never more than its bytes hold), and bytes of one. */
static size_t kvmem__kvquant_count(const kvmem_coded *b, size_t *each) {
    const uint32_t first = b->head_bytes >= 4 ? kvmem__le32(b->head) : 0;
    *each = first >> 31 ? 6 : 4;
    return KVMEM__MIN((size_t)(first & 0x7fffffffu), b->head_bytes < 4 ? 0 : (b->head_bytes - 4) / *each);
}
static size_t kvmem__kvquant_index(const kvmem_coded *b, size_t i, size_t each) {
    const uint8_t *p = b->head + 4 + i * each;
    return each == 6 ? kvmem__le32(p) : kvmem__le16(p);
}
static void kvmem__kvquant_put(const kvmem_coded *b, size_t i, size_t each, size_t index, uint16_t half) {
    uint8_t *p = b->head + 4 + i * each;
    if (each == 6) kvmem__put32(p, (uint32_t)index);
    else kvmem__put16(p, (uint16_t)index);
    kvmem__put16(p + each - 2, half);
}
static size_t kvmem__kvquant_row_bytes(const double *par, int d) {
    return kvmem__bits_bytes(d, kvmem__kvquant_bits(par));
}
static void kvmem__kvquant_encode(const kvmem_coded *b, const float *x, int t0, int n) {
    const int d = b->d, bits = kvmem__kvquant_bits(b->par), wide = kvmem__kvquant_wide(b);
    const float *off = b->state + kvmem__kvquant_v_state(b->par, d), *rg = off + d;
    uint8_t code[64];
    size_t count = 0;
    int t, c, j;
    for (t = t0; t < t0 + n; t++, x += d) {
        for (c = 0; c < d; c += 64) {
            const int m = KVMEM__MIN(64, d - c);
            for (j = 0; j < m; j++) {
                const float v = kvmem__tame(x[c + j]);
                code[j] = (uint8_t)kvmem__nearest_level(b->state, 1 << bits,
                                                        kvmem__kvquant_z(v, off[c + j], rg[c + j]));
                if (!kvmem__kvquant_listed(b, x, c + j)) continue;
                kvmem__kvquant_put(b, count++, wide ? 6 : 4, (size_t)t * (size_t)d + (size_t)(c + j),
                                   kvmem__f32_to_f16(v));
            }
            kvmem__bits_put(kvmem__row_at(b, t) + c / 8 * bits, code, m, bits);
        }
    }
    kvmem__put32(b->head, (uint32_t)count | (uint32_t)wide << 31);
}
/* Outliers overwrite rows t0 .. t0 + n of out (n, d). */
static void kvmem__kvquant_overwrite(const kvmem_coded *b, float *out, int t0, int n) {
    const size_t from = (size_t)t0 * (size_t)b->d, to = from + (size_t)n * (size_t)b->d;
    size_t each, hi = kvmem__kvquant_count(b, &each), end = hi, lo = 0;
    while (lo < hi) {
        const size_t mid = (lo + hi) / 2;
        if (kvmem__kvquant_index(b, mid, each) < from) lo = mid + 1;
        else hi = mid;
    }
    for (; lo < end; lo++) {
        const size_t at = kvmem__kvquant_index(b, lo, each);
        if (at < from || at >= to) break;
        out[at - from] = kvmem__f16_to_f32(kvmem__le16(b->head + 4 + lo * each + each - 2));
    }
}
static void kvmem__kvquant_expand(const kvmem_coded *b, float *out, int t0, int n) {
    const int d = b->d, bits = kvmem__kvquant_bits(b->par);
    const float *lut = b->state + (1 << bits), *off = lut + (1 << bits), *rg = off + d;
    uint8_t code[64];
    int t, c, j;
    for (t = 0; t < n; t++) {
        for (c = 0; c < d; c += 64) {
            const int m = KVMEM__MIN(64, d - c);
            float *y = out + (size_t)t * (size_t)d + c;
            kvmem__bits_get(code, kvmem__row_at(b, t0 + t), c, m, bits);
            for (j = 0; j < m; j++) y[j] = lut[code[j]] * rg[c + j] + off[c + j];
        }
    }
    kvmem__kvquant_overwrite(b, out, t0, n);
}
/* Rows that stay bring their outliers along; the head keeps its size. */
static void kvmem__kvquant_cut(const kvmem_coded *to, const kvmem_coded *from, const int *kept) {
    const size_t d = (size_t)from->d;
    size_t each, count = kvmem__kvquant_count(from, &each), i, m = 0;
    int t = 0;
    memset(to->head, 0, to->head_bytes);
    for (i = 0; i < count; i++) {
        const size_t at = kvmem__kvquant_index(from, i, each);
        while (t < to->n && (size_t)kept[t] < at / d) t++;
        if (t < to->n && (size_t)kept[t] == at / d && to->head_bytes >= 4 + (m + 1) * each)
            kvmem__kvquant_put(to, m++, each, (size_t)t * d + at % d,
                               kvmem__le16(from->head + 4 + i * each + each - 2));
    }
    if (to->head_bytes >= 4) kvmem__put32(to->head, (uint32_t)m | (each == 6 ? 1u << 31 : 0));
    for (t = 0; t < to->n; t++) memcpy(kvmem__row_at(to, t), kvmem__row_at(from, kept[t]), from->row_bytes);
}

/* --- values: a row is off and rg (halves), 2 m outliers (index of 8 bits, 16 if d > 256; half), codes --- */
static int kvmem__kvquant_v_m(const double *par, int d) { /* outliers at either end */
    return par[1] == 0 ? 0 : d - 1 - (int)(kvmem__kvquant_top(par) * (d - 1));
}
static size_t kvmem__kvquant_v_codes(const double *par, int d) { /* where the codes begin */
    return 4 + 2 * (size_t)kvmem__kvquant_v_m(par, d) * (d > 256 ? 4 : 3);
}
static size_t kvmem__kvquant_v_row_bytes(const double *par, int d) {
    return kvmem__kvquant_v_codes(par, d) + kvmem__kvquant_row_bytes(par, d);
}
/* One value row: outliers are marked in mark (d), off and rg are the range of the rest. */
static void kvmem__kvquant_v_range(const double *par, const float *x, int d, uint8_t *mark, float *off,
                                   float *rg) {
    const int m = kvmem__kvquant_v_m(par, d);
    float lo = 0, hi = 0;
    int i, c, left = 0;
    memset(mark, 0, (size_t)d);
    for (i = 0; i < 2 * m; i++) { /* m times the largest that is left, then the smallest */
        float best = 0;
        int at = -1;
        for (c = 0; c < d; c++) {
            const float v = kvmem__tame(x[c]);
            if (mark[c] || (at >= 0 && (i < m ? v <= best : v >= best))) continue;
            best = v;
            at = c;
        }
        mark[at] = 1;
    }
    for (c = 0; c < d; c++) {
        const float v = kvmem__tame(x[c]);
        if (mark[c]) continue;
        lo = left ? KVMEM__MIN(lo, v) : v;
        hi = left ? KVMEM__MAX(hi, v) : v;
        left = 1;
    }
    *off = kvmem__f16_to_f32(kvmem__f32_to_f16((hi + lo) / 2));
    *rg = kvmem__f16_to_f32(kvmem__f32_to_f16((hi - lo) / 2));
}
static void kvmem__kvquant_v_learn(const kvmem_coded *b, float *state, const float *x, int n) {
    const int d = b->d, rows = KVMEM__MIN(n, KVMEM__MAX(1, KVMEM__KVQUANT_POOL / d));
    uint8_t mark[KVMEM_MAX_WIDTH];
    float *z = b->scratch, off, rg;
    int t, c, m = 0;
    for (t = 0; t < rows; t++) { /* evenly taken from the lesson */
        const float *row = x + (size_t)((double)t * n / rows) * (size_t)d;
        kvmem__kvquant_v_range(b->par, row, d, mark, &off, &rg);
        for (c = 0; c < d; c++) {
            const float v = kvmem__kvquant_z(kvmem__tame(row[c]), off, rg);
            if (!mark[c] && v >= -1 && v <= 1) z[m++] = v;
        }
    }
    kvmem__kvquant_levels(b->par, state, z, m);
}
static void kvmem__kvquant_v_encode(const kvmem_coded *b, const float *x, int t0, int n) {
    const int d = b->d, bits = kvmem__kvquant_bits(b->par);
    uint8_t mark[KVMEM_MAX_WIDTH];
    float off, rg;
    int t, c;
    for (t = t0; t < t0 + n; t++, x += d) {
        uint8_t *out = kvmem__row_at(b, t), *at = out + 4;
        kvmem__kvquant_v_range(b->par, x, d, mark, &off, &rg);
        kvmem__put16(out, kvmem__f32_to_f16(off));
        kvmem__put16(out + 2, kvmem__f32_to_f16(rg));
        for (c = 0; c < d; c++) {
            const float v = kvmem__tame(x[c]);
            if (mark[c]) {
                *at++ = (uint8_t)(c & 255);
                if (d > 256) *at++ = (uint8_t)(c >> 8);
                kvmem__put16(at, kvmem__f32_to_f16(v));
                at += 2;
            }
            mark[c] = (uint8_t)kvmem__nearest_level(b->state, 1 << bits, kvmem__kvquant_z(v, off, rg));
        }
        kvmem__bits_put(at, mark, d, bits);
    }
}
static void kvmem__kvquant_v_expand(const kvmem_coded *b, float *out, int t0, int n) {
    const int d = b->d, bits = kvmem__kvquant_bits(b->par), wide = d > 256;
    const int m = kvmem__kvquant_v_m(b->par, d);
    const size_t codes = kvmem__kvquant_v_codes(b->par, d);
    const float *lut = b->state + (1 << bits);
    uint8_t code[64];
    int t, c, j;
    for (t = t0; t < t0 + n; t++, out += d) {
        const uint8_t *in = kvmem__row_at(b, t), *at = in + 4;
        const float off = kvmem__f16_to_f32(kvmem__le16(in)), rg = kvmem__f16_to_f32(kvmem__le16(in + 2));
        for (c = 0; c < d; c += 64) {
            const int k = KVMEM__MIN(64, d - c);
            kvmem__bits_get(code, in + codes, c, k, bits);
            for (j = 0; j < k; j++) out[c + j] = lut[code[j]] * rg + off;
        }
        for (j = 0; j < 2 * m; j++, at += wide ? 4 : 3) {
            c = wide ? kvmem__le16(at) : *at;
            if (c < d) out[c] = kvmem__f16_to_f32(kvmem__le16(at + (wide ? 2 : 1)));
        }
    }
}

#define KVMEM__KVQUANT_CITE "Hooper 2024, arXiv 2401.18079"
#define KVMEM__KVQUANT_PARAMS                                                                       \
    { "bits", 3, 1, 8, NULL, 1, "bits of a code" },                                                 \
    { "sparse", 1, 0, 100, NULL, 0, "percent of the values that are outliers, half at either end" }, \
    { "qnorm", 0, 0, 1, NULL, 1, "1: levels are moved so that mean and deviation survive" }
static const kvmem_param kvmem__kvquant_params[] = {
    KVMEM__KVQUANT_PARAMS,
    { "cap", 0, 0, 4096, NULL, 1, "outliers of a key at either end, 0: as many as there are" },
    KVMEM__CODEC_COMMON
};
static const kvmem_param kvmem__kvquant_v_params[] = { KVMEM__KVQUANT_PARAMS, KVMEM__CODEC_COMMON };
#undef KVMEM__KVQUANT_PARAMS
static const kvmem_codec kvmem__codec_kvquant = {
    { "kvquant", "keys before RoPE, per channel: learned levels, a list of outliers; bits + 0.33 bits a value",
      KVMEM__KVQUANT_CITE, kvmem__kvquant_params, 0 },
    KVMEM_CODEC_PRE_ROPE | KVMEM_CODEC_KEYS, kvmem__kvquant_row_bytes, kvmem__kvquant_head_bytes,
    NULL, NULL, kvmem__kvquant_state, NULL, kvmem__kvquant_learn, kvmem__kvquant_scratch, NULL, NULL,
    kvmem__kvquant_encode, kvmem__kvquant_expand, NULL, NULL, NULL, NULL, kvmem__kvquant_cut, NULL
};
static const kvmem_codec kvmem__codec_kvquant_post = {
    { "kvquant_post", "the same for keys after RoPE: no rotation at a read, ranges less tight",
      KVMEM__KVQUANT_CITE, kvmem__kvquant_params, 0 },
    KVMEM_CODEC_KEYS, kvmem__kvquant_row_bytes, kvmem__kvquant_head_bytes,
    NULL, NULL, kvmem__kvquant_state, NULL, kvmem__kvquant_learn, kvmem__kvquant_scratch, NULL, NULL,
    kvmem__kvquant_encode, kvmem__kvquant_expand, NULL, NULL, NULL, NULL, kvmem__kvquant_cut, NULL
};
static const kvmem_codec kvmem__codec_kvquant_v = {
    { "kvquant_v", "values by token: learned levels, outliers in the row; bits + 1.25 bits a value at d = 64",
      KVMEM__KVQUANT_CITE, kvmem__kvquant_v_params, 0 },
    KVMEM_CODEC_VALUES, kvmem__kvquant_v_row_bytes, NULL, NULL, NULL,
    kvmem__kvquant_v_state, NULL, kvmem__kvquant_v_learn, kvmem__kvquant_scratch, NULL, NULL,
    kvmem__kvquant_v_encode, kvmem__kvquant_v_expand, NULL, NULL, NULL, NULL, NULL, NULL
};
#undef KVMEM__KVQUANT_CITE

/* ==== >>codec_lowrank : the leading principal directions of a lane, then any row codec ==============
   Principal components: Pearson 1901; for KV caches: Lin, Zeng, Xiao, Kou, Hou, Gao, Zhang, Deng.
   MatryoshkaKV: Adaptive KV Compression via Trainable Orthogonal Projection. 2024. arXiv 2410.14731.
   Code: The-kamisato/MatryoshkaKV-cache eigenvalues_decomposition.py (the untrained form).
   The keys of one head do not fill their d dimensions: most of their energy lies in a few directions.
     lesson   C = x^T x / n over the lane's rows x (n, d) = U^T diag(e) U, e falling; U_r: the first r rows of U
     store    y = U_r x (r values), in the format `store`
     read     <q, x'> = <U_r q, y>: q is contracted once; sum_t w_t x'_t = U_r^T sum_t w_t y_t: once an output
   The error over the lesson is the sum of the e that are left out; no other r directions do better.
   With center=head the rows come without their mean, as in the paper (covariance instead of C).
   state: r d floats a lane, rows of U_r: what trained projections will fill in, too.
   stage: both.   reads: keys after RoPE, values.   bits/value: bits of `store` r / d (q8_0 and q4_0: pieces of 32
   of the r values, so r / d times 8.5 and 4.5 where 32 divides r).   cost: lesson O(n d^2 + 10 d^3); then r / d of
   the plain row codec's work, and O(r d) a query head.
   defaults: rank=0.5 (up to 1: a share of d, above: a count) store=f16.   preset: center=head residual=32.
   guards: fewer rows than r in the lesson: the rest of the basis is orthonormal, too.   departs: nowhere.
   test: tests/codec_lowrank.c */
static int kvmem__lowrank_rank(const double *par, int d) {
    const double r = par[0] <= 1 ? floor(par[0] * d + 0.5) : par[0];
    return r < 1 ? 1 : r > d ? d : (int)r;
}
static kvmem__rows kvmem__lowrank_kind(const double *par) { return (kvmem__rows)(int)par[1]; }
static size_t kvmem__lowrank_row_bytes(const double *par, int d) {
    return kvmem__row_bytes(kvmem__lowrank_kind(par), kvmem__lowrank_rank(par, d));
}
static int kvmem__lowrank_state(const double *par, int d) { return kvmem__lowrank_rank(par, d) * d; }
static int kvmem__lowrank_scratch(const double *par, int d, int n) {
    (void)par;
    (void)n;
    return 2 * d * d + d;
}
static void kvmem__lowrank_learn(const kvmem_coded *b, float *state, const float *x, int n) {
    const int d = b->d;
    const size_t row = (size_t)d;
    float *c = b->scratch, *u = c + row * row, *e = u + row * row, most = 0;
    int t, i, j;
    memset(c, 0, row * row * sizeof(float));
    for (i = 0; i < n * d; i++) most = KVMEM__MAX(most, fabsf(kvmem__tame(x[i])));
    for (t = 0; t < n && most > 0; t++) { /* scaled, so that no square overflows */
        for (i = 0; i < d; i++) e[i] = kvmem__tame(x[(size_t)t * row + (size_t)i]) / most;
        for (i = 0; i < d; i++) kvmem__axpy_plain(c + (size_t)i * row, e[i], e, i + 1);
    }
    for (i = 0; i < d; i++) for (j = 0; j < i; j++) c[(size_t)j * row + (size_t)i] = c[(size_t)i * row + (size_t)j];
    kvmem__eigen(u, e, c, d);
    memcpy(state, u, (size_t)kvmem__lowrank_state(b->par, d) * sizeof(float));
}
/* The row codec of the coefficients with its fast functions, and the block of r values as it sees it. */
static kvmem_codec kvmem__lowrank_store(const double *par, int isa) {
    static const kvmem_codec *const stores[] = { /* in the order of kvmem__rows */
        &kvmem__codec_f32, &kvmem__codec_f16, &kvmem__codec_bf16, &kvmem__codec_q8_0, &kvmem__codec_q4_0,
        &kvmem__codec_q4_1, &kvmem__codec_q5_0, &kvmem__codec_q5_1, &kvmem__codec_iq4_nl
    };
    kvmem_codec c = *stores[(int)par[1]];
    c.fast(&c, isa);
    return c;
}
static kvmem_coded kvmem__lowrank_inner(const kvmem_coded *b) {
    static const double no_par[KVMEM_MAX_PARAMS] = { 0 };
    kvmem_coded in = *b;
    in.d = kvmem__lowrank_rank(b->par, b->d);
    in.par = no_par;
    return in;
}
static void kvmem__lowrank_project(const kvmem_coded *b, float *y, const float *x) { /* y (r) = U_r x */
    const int r = kvmem__lowrank_rank(b->par, b->d);
    int i;
    for (i = 0; i < r; i++) y[i] = kvmem__dot_plain(b->state + (size_t)i * (size_t)b->d, x, b->d);
}
static void kvmem__lowrank_finish(const kvmem_coded *b, float *out, const float *acc) { /* out (d) = U_r^T acc */
    const int r = kvmem__lowrank_rank(b->par, b->d);
    int i;
    memset(out, 0, (size_t)b->d * sizeof(float));
    for (i = 0; i < r; i++) kvmem__axpy_plain(out, acc[i], b->state + (size_t)i * (size_t)b->d, b->d);
}
/* The functions that hand on to the row codec's, for each instruction set that has its own. */
#define KVMEM__LOWRANK(isa)                                                                         \
    static int kvmem__lowrank_q_floats##isa(const double *par, int d) {                             \
        const kvmem_codec c = kvmem__lowrank_store(par, isa);                                       \
        const int r = kvmem__lowrank_rank(par, d);                                                  \
        return c.q_floats ? c.q_floats(par, r) : r;                                                 \
    }                                                                                               \
    static void kvmem__lowrank_prepare##isa(const kvmem_coded *b, float *out, const float *q) {     \
        const kvmem_codec c = kvmem__lowrank_store(b->par, isa);                                    \
        const kvmem_coded in = kvmem__lowrank_inner(b);                                             \
        float y[KVMEM_MAX_WIDTH];                                                                   \
        kvmem__lowrank_project(b, c.q_prepare ? y : out, q);                                        \
        if (c.q_prepare) c.q_prepare(&in, out, y);                                                  \
    }                                                                                               \
    static void kvmem__lowrank_encode##isa(const kvmem_coded *b, const float *x, int t0, int n) {   \
        const kvmem_codec c = kvmem__lowrank_store(b->par, isa);                                    \
        const kvmem_coded in = kvmem__lowrank_inner(b);                                             \
        float *tame = b->scratch, *y = tame + b->d;                                                 \
        int t, i;                                                                                   \
        for (t = t0; t < t0 + n; t++, x += b->d) {                                                  \
            for (i = 0; i < b->d; i++) tame[i] = kvmem__tame(x[i]);                                 \
            kvmem__lowrank_project(b, y, tame);                                                     \
            c.encode(&in, y, t, 1);                                                                 \
        }                                                                                           \
    }                                                                                               \
    static void kvmem__lowrank_expand##isa(const kvmem_coded *b, float *out, int t0, int n) {       \
        const kvmem_coded in = kvmem__lowrank_inner(b);                                             \
        kvmem__lowrank_store(b->par, isa).expand(&in, out, t0, n);                                  \
    }                                                                                               \
    static void kvmem__lowrank_dot##isa(const kvmem_coded *b, float *s, int ld, int t0, int n, const float *q, \
                                        int nq) {                                                   \
        const kvmem_coded in = kvmem__lowrank_inner(b);                                             \
        kvmem__lowrank_store(b->par, isa).dot(&in, s, ld, t0, n, q, nq);                            \
    }                                                                                               \
    static void kvmem__lowrank_axpy##isa(const kvmem_coded *b, float *acc, int t0, int n, const float *w, int ld, \
                                         int nq) {                                                  \
        const kvmem_coded in = kvmem__lowrank_inner(b);                                             \
        kvmem__lowrank_store(b->par, isa).axpy(&in, acc, t0, n, w, ld, nq);                         \
    }
#define KVMEM__LOWRANK_USE(isa)                                                                     \
    do {                                                                                            \
        c->q_floats = kvmem__lowrank_q_floats##isa;                                                 \
        c->q_prepare = kvmem__lowrank_prepare##isa;                                                 \
        c->encode = kvmem__lowrank_encode##isa;                                                     \
        c->expand = kvmem__lowrank_expand##isa;                                                     \
        c->dot = kvmem__lowrank_dot##isa;                                                           \
        c->axpy = kvmem__lowrank_axpy##isa;                                                         \
    } while (0)
KVMEM__LOWRANK(0)
#if KVMEM__X86
KVMEM__LOWRANK(2)
KVMEM__LOWRANK(3)
#elif KVMEM__NEON
KVMEM__LOWRANK(1)
#endif
static void kvmem__lowrank_fast(kvmem_codec *c, int isa) {
#if KVMEM__X86
    if (isa == 2) KVMEM__LOWRANK_USE(2);
    if (isa == 3) KVMEM__LOWRANK_USE(3);
#elif KVMEM__NEON
    if (isa == 1) KVMEM__LOWRANK_USE(1);
#else
    (void)c;
    (void)isa;
#endif
}
#undef KVMEM__LOWRANK
#undef KVMEM__LOWRANK_USE
static const kvmem_param kvmem__lowrank_params[] = {
    { "rank", 0.5, 0, 4096, NULL, 0, "directions kept: up to 1 a share of the head size, above a count" },
    { "store", KVMEM__ROWS_F16, 0, 8, "f32|f16|bf16|q8_0|q4_0|q4_1|q5_0|q5_1|iq4_nl", 1,
      "how the coefficients are stored" },
    KVMEM__CODEC_COMMON
};
static const kvmem_codec kvmem__codec_lowrank = {
    { "lowrank", "principal directions of the lane's rows, half of them in float16: 8 bits a value",
      "Lin 2024 (MatryoshkaKV, untrained), arXiv 2410.14731", kvmem__lowrank_params, 0 },
    0, kvmem__lowrank_row_bytes, NULL, NULL, NULL, kvmem__lowrank_state, NULL, kvmem__lowrank_learn,
    kvmem__lowrank_scratch, kvmem__lowrank_rank, kvmem__lowrank_q_floats0, kvmem__lowrank_encode0,
    kvmem__lowrank_expand0, kvmem__lowrank_finish, kvmem__lowrank_prepare0, kvmem__lowrank_dot0,
    kvmem__lowrank_axpy0, NULL, kvmem__lowrank_fast
};

/* ==== >>codec_rotatekv : Hadamard rotation, channels in learned order, clipped ranges, 2 bits =======
   Su, Zhou, Zhang, Wang, Zhang, Zhao, Yu, Yuan. RotateKV: Accurate and Robust 2-Bit KV Cache Quantization
   for LLMs via Outlier-Aware Adaptive Rotations. 2025. arXiv 2501.16383.
   Code: ZunhaiSu/RotateKV fuse_weights.py, k_reordering_calibration.py, RotateKV_fake_quant/fake_quant.py.
   A rotation spreads the few large channels over all; keys are taken before RoPE, where those channels are
   the same in every token. Channels that stay large after it stand next to each other, so that a group of
   channels with one range is of one kind. A range a little too small costs its ends and gains elsewhere.
     turn     y = H x, blocks of the largest power of two in d, no signs
     lesson   order = channels by their sum of y over the lane's rows, rising (signed sums, as released)
     group    mx = clip max y, mn = clip min y over `group` channels of one token in that order
              sc = (mx - mn) / (2^bits - 1) as a half, z = round(-mn / sc)
     code     clamp(round(y / sc) + z, 0, 2^bits - 1), half to even;    decode sc (code - z), turned back
   In its own space a row is turned and ordered: for values the way back is gone once an output. Keys before
   RoPE must be turned back one by one, since RoPE stands between: O(d log d) a row and read.
   stage: both.   reads: keys before RoPE, values.   state: d floats a lane (order).
   bits/value: bits + 32 / min(group, d) (half scale, 16-bit zero point): 2.5 at d = 64, 2.25 at d = 128.
   defaults: bits=2 group=128 clip=0 (0.8 up to 2 bits, 1 above) order=1 zero=whole.
   preset: values without order, 20 sinks.   ties: lower channel.
   guards: a group whose range is 0, or so small that z would not fit, gets one that includes 0; NaN is 0.
   departs: the paper turns 4 KV heads at once; a lane here is one head and may lose entries that the next
   one keeps, so heads are turned apart (head group 1). 2^bits - 1 stands for the released bits^2 - 1, which
   is its error at 3 bits. Tokens with massive activations are taken to be the first ones (`sinks`): the
   layer's input is not the memory's to see. zero=half, ours, keeps the minimum as a half instead of z in
   the same bytes: the rounding of z costs 3 to 9 % of the error at 2 bits.  test: tests/codec_rotatekv.c */
enum { KVMEM__ROTATEKV_BITS, KVMEM__ROTATEKV_GROUP, KVMEM__ROTATEKV_CLIP, KVMEM__ROTATEKV_ORDER,
       KVMEM__ROTATEKV_ZERO };
static int kvmem__rotatekv_bits(const double *par) { return (int)par[KVMEM__ROTATEKV_BITS]; }
static int kvmem__rotatekv_group(const double *par, int d) {
    return KVMEM__MIN((int)par[KVMEM__ROTATEKV_GROUP], d);
}
static size_t kvmem__rotatekv_codes(const double *par, int d) { /* where the codes begin: 4 bytes a group */
    const int group = kvmem__rotatekv_group(par, d);
    return 4 * (size_t)((d + group - 1) / group);
}
static size_t kvmem__rotatekv_row_bytes(const double *par, int d) {
    return kvmem__rotatekv_codes(par, d) + kvmem__bits_bytes(d, kvmem__rotatekv_bits(par));
}
static int kvmem__rotatekv_state(const double *par, int d) { return par[KVMEM__ROTATEKV_ORDER] > 0 ? d : 0; }
static int kvmem__rotatekv_scratch(const double *par, int d, int n) {
    (void)par;
    (void)n;
    return 2 * d;
}
/* The channel that stands at place i; always one of the row's. */
static int kvmem__rotatekv_channel(const kvmem_coded *b, int i) {
    const float c = b->par[KVMEM__ROTATEKV_ORDER] > 0 ? b->state[i] : (float)i;
    return c >= 0 && c < (float)b->d ? (int)c : i;
}
static void kvmem__rotatekv_turn(float *y, const float *x, int d) {
    int c;
    for (c = 0; c < d; c++) y[c] = kvmem__tame(x[c]);
    kvmem__rht(y, NULL, d, kvmem__pow2_in(d));
}
static void kvmem__rotatekv_learn(const kvmem_coded *b, float *state, const float *x, int n) {
    float *sum = b->scratch, *y = sum + b->d;
    int t, c, i;
    if (!kvmem__rotatekv_state(b->par, b->d)) return;
    memset(sum, 0, (size_t)b->d * sizeof(float));
    for (t = 0; t < n; t++) {
        kvmem__rotatekv_turn(y, x + (size_t)t * (size_t)b->d, b->d);
        for (c = 0; c < b->d; c++) sum[c] += y[c];
    }
    for (c = 0; c < b->d; c++) { /* insertion keeps equal sums in the order of their channels */
        for (i = c; i > 0 && sum[(int)state[i - 1]] > sum[c]; i--) state[i] = state[i - 1];
        state[i] = (float)c;
    }
}
/* A group as it is stored, a half and 16 bits: decoded values are sc (code + base) + add. */
typedef struct kvmem__rotatekv_scale { float sc, base, add; } kvmem__rotatekv_scale;
static kvmem__rotatekv_scale kvmem__rotatekv_read(const double *par, const uint8_t *in) {
    const uint16_t place = kvmem__le16(in + 2);
    kvmem__rotatekv_scale s;
    s.sc = kvmem__f16_to_f32(kvmem__le16(in));
    s.base = par[KVMEM__ROTATEKV_ZERO] > 0 ? 0.0f : (float)(0x8000 - (place ^ 0x8000));
    s.add = par[KVMEM__ROTATEKV_ZERO] > 0 ? kvmem__f16_to_f32(place) : 0.0f;
    return s;
}
/* The range of a group x (n), stored at out. */
static void kvmem__rotatekv_range(const double *par, const float *x, int n, uint8_t *out) {
    const float top = (float)((1 << kvmem__rotatekv_bits(par)) - 1);
    const double auto_clip = kvmem__rotatekv_bits(par) > 2 ? 1.0 : 0.8;
    const float clip = (float)(par[KVMEM__ROTATEKV_CLIP] > 0 ? par[KVMEM__ROTATEKV_CLIP] : auto_clip);
    float lo = x[0], hi = x[0], sc, z;
    int i;
    for (i = 1; i < n; i++) { lo = KVMEM__MIN(lo, x[i]); hi = KVMEM__MAX(hi, x[i]); }
    sc = kvmem__f16_to_f32(kvmem__half_sat((hi * clip - lo * clip) / top));
    z = sc > 0 ? rintf(-(lo * clip) / sc) : 65536.0f;
    if (z > 32767 || z < -32767) { /* too narrow for its place: a range from 0 on */
        lo = KVMEM__MIN(lo, 0.0f) / clip;
        hi = KVMEM__MAX(hi, 0.0f) / clip;
        sc = kvmem__f16_to_f32(kvmem__half_sat((hi * clip - lo * clip) / top));
        z = sc > 0 ? rintf(-(lo * clip) / sc) : 0.0f;
    }
    kvmem__put16(out, kvmem__f32_to_f16(sc));
    kvmem__put16(out + 2, par[KVMEM__ROTATEKV_ZERO] > 0 ? kvmem__half_sat(lo * clip)
                                                         : (uint16_t)((int)KVMEM__MIN(z, 32767.0f) & 0xffff));
}
static void kvmem__rotatekv_encode(const kvmem_coded *b, const float *x, int t0, int n) {
    const int d = b->d, bits = kvmem__rotatekv_bits(b->par), group = kvmem__rotatekv_group(b->par, d);
    const float top = (float)((1 << bits) - 1);
    float *turned = b->scratch, *y = turned + d;
    uint8_t code[KVMEM_MAX_WIDTH];
    int t, i, j;
    for (t = t0; t < t0 + n; t++, x += d) {
        uint8_t *out = kvmem__row_at(b, t);
        kvmem__rotatekv_turn(turned, x, d);
        for (i = 0; i < d; i++) y[i] = turned[kvmem__rotatekv_channel(b, i)];
        for (i = 0; i < d; i += group) {
            const int m = KVMEM__MIN(group, d - i);
            kvmem__rotatekv_scale s;
            kvmem__rotatekv_range(b->par, y + i, m, out + i / group * 4);
            s = kvmem__rotatekv_read(b->par, out + i / group * 4);
            for (j = 0; j < m; j++) {
                const float q = s.sc > 0 ? rintf((y[i + j] - s.add) / s.sc) - s.base : 0.0f;
                code[i + j] = (uint8_t)(q > 0 ? KVMEM__MIN(q, top) : 0.0f);
            }
        }
        kvmem__bits_put(out + kvmem__rotatekv_codes(b->par, d), code, d, bits);
    }
}
static void kvmem__rotatekv_expand(const kvmem_coded *b, float *out, int t0, int n) {
    const int d = b->d, bits = kvmem__rotatekv_bits(b->par), group = kvmem__rotatekv_group(b->par, d);
    const size_t codes = kvmem__rotatekv_codes(b->par, d);
    uint8_t code[64];
    int t, i, j, k;
    for (t = t0; t < t0 + n; t++, out += d) {
        const uint8_t *in = kvmem__row_at(b, t);
        for (i = 0; i < d; i += group) {
            const int end = KVMEM__MIN(i + group, d);
            const kvmem__rotatekv_scale s = kvmem__rotatekv_read(b->par, in + i / group * 4);
            for (j = i; j < end; j += 64) {
                const int m = KVMEM__MIN(64, end - j);
                kvmem__bits_get(code, in + codes, j, m, bits);
                for (k = 0; k < m; k++) out[j + k] = s.sc * ((float)code[k] + s.base) + s.add;
            }
        }
    }
}
static void kvmem__rotatekv_prepare(const kvmem_coded *b, float *out, const float *q) {
    float y[KVMEM_MAX_WIDTH];
    int i;
    memcpy(y, q, (size_t)b->d * sizeof(float));
    kvmem__rht(y, NULL, b->d, kvmem__pow2_in(b->d));
    for (i = 0; i < b->d; i++) out[i] = y[kvmem__rotatekv_channel(b, i)];
}
static void kvmem__rotatekv_finish(const kvmem_coded *b, float *out, const float *acc) {
    int i;
    for (i = 0; i < b->d; i++) out[kvmem__rotatekv_channel(b, i)] = acc[i];
    kvmem__rht_back(out, NULL, b->d, kvmem__pow2_in(b->d));
}
static const kvmem_param kvmem__rotatekv_params[] = {
    { "bits", 2, 1, 8, NULL, 1, "bits of a code" },
    { "group", 128, 1, 4096, NULL, 1, "channels with one range" },
    { "clip", 0, 0, 1, NULL, 0, "share of the range that codes cover; 0: 0.8 up to 2 bits, 1 above" },
    { "order", 1, 0, 1, NULL, 1, "1: channels in the learned order" },
    { "zero", 0, 0, 1, "whole|half", 1, "a range begins at a whole number of steps, or at any half float" },
    KVMEM__CODEC_COMMON
};
static const kvmem_codec kvmem__codec_rotatekv = {
    { "rotatekv", "rows turned by Hadamard, keys before RoPE, channels in learned order; 2.25 bits a value at d = 128",
      "Su 2025, arXiv 2501.16383", kvmem__rotatekv_params, 0 },
    KVMEM_CODEC_PRE_ROPE, kvmem__rotatekv_row_bytes, NULL, NULL, NULL, kvmem__rotatekv_state, NULL,
    kvmem__rotatekv_learn, kvmem__rotatekv_scratch, NULL, NULL, kvmem__rotatekv_encode, kvmem__rotatekv_expand,
    kvmem__rotatekv_finish, kvmem__rotatekv_prepare, NULL, NULL, NULL, NULL
};

/* ==== >>codec_polarquant : a rotated row as a tree of angles. stage: codec.k, codec.v ============
   Insu Han, Praneeth Kacham, Amin Karbasi, Vahab Mirrokni, Amir Zandieh. PolarQuant: Quantizing KV
   Caches with Polar Transformation. 2025. arXiv 2502.02617.        Code: none found.
   Another paper of the same name is >>codec_polark.
   Idea: after a random rotation y = H (s * x) the values of a row look Gaussian, and the angles of
   such values have known laws, so they can be coded by fixed books, without a scale for any group.
     level 1   pairs (y_2j, y_2j+1):  psi = atan2(y_2j+1, y_2j) in [0, 2 pi),  r = their length
     level l   pairs of lengths:      psi = atan2(r_2j+1, r_2j) in [0, pi/2],  r = their length
   and so on up a tree of `levels` levels; the ceil(d / 2^levels) lengths at its top are kept as
   halves. Down again: r_2j = r cos psi, r_2j+1 = r sin psi; only the coding of the angles errs.
   Laws for Gaussian y, all angles independent: level 1 is uniform, level l has the density
   sin(2 psi)^(2^(l-1) - 1), which narrows round pi/4. Books: level 1 the midpoints
   (k + 1/2) 2 pi / 2^b, above it the Lloyd-Max levels of the law (book=law), or k-means of the
   angles of the lane's own rows (book=learnt: the lane's state).
   row: top lengths (halves) | codes of level 1 | codes of the levels above, one level after another.
   bits/value: (first d/2 + bits (d/4 + d/8 + ..) + 16 d / 2^levels) / d, both streams of codes in
   whole bytes: 3.875 for the defaults; (bits (d - 1) + 16) / d for levels=0.
   defaults: levels=4 first=4 bits=2, the paper's.  seed: of the signs s.
   reads: K after RoPE, V.   state: book=learnt only.
   cost: d times the bits of a code to encode, d products to decode, d / 2 2^first a query.
   choices: the rotation is the spin of >>linear, H (s * x) for d = 2^k (paper: any orthogonal
   matrix). Cells are found by the signs of cross products with the cells' edges, the upper one on a
   tie, so no atan2 is needed. A number without a partner at a level (d not a multiple of 2^levels)
   goes up as it is; at level 1 it leaves its sign in a code of its own. Level 1 keeps its uniform
   book when the others are learnt.
   guards: NaN counts as 0, values stop at +-65504; rows of zeros decode to zeros.
   test: tests/codec_polarquant.c */
enum { KVMEM__PQ_LEVELS, KVMEM__PQ_FIRST, KVMEM__PQ_BITS, KVMEM__PQ_BOOK, KVMEM__PQ_SEED };

/* How a row of d values is cut. count[l] numbers enter level l + 1, the last are the lengths kept.
   */
#define KVMEM__PQ_MAX_LEVELS 12 /* d <= 4096 */
typedef struct kvmem__polar {
    int d, levels, first, bits, upper; /* upper: codes above level 1 */
    int count[KVMEM__PQ_MAX_LEVELS + 1];
    size_t at_first, at_upper, bytes;  /* of a row: where the streams begin, its size */
} kvmem__polar;
static kvmem__polar kvmem__polar_of(const double *par, int d) {
    const int wanted = (int)par[KVMEM__PQ_LEVELS];
    kvmem__polar p;
    int n = d;
    p.d = d;
    p.first = (int)par[KVMEM__PQ_FIRST];
    p.bits = (int)par[KVMEM__PQ_BITS];
    p.levels = p.upper = 0;
    p.count[0] = d;
    while (n > 1 && (wanted == 0 || p.levels < wanted)) {
        if (p.levels) p.upper += n / 2;
        n = (n + 1) / 2;
        p.count[++p.levels] = n;
    }
    p.at_first = (size_t)n * 2;
    p.at_upper = p.at_first + (p.levels ? kvmem__bits_bytes((d + 1) / 2, p.first) : 0);
    p.bytes = p.at_upper + kvmem__bits_bytes(p.upper, p.bits);
    return p;
}
static size_t kvmem__polarquant_bytes(const double *par, int d) { return kvmem__polar_of(par, d).bytes; }

/* The books of all levels, 4 * 2^bits floats each: cosines of the cells' upper edges, their sines,
   cosines of the levels, their sines. The edges of level 1 are those of the upper half plane. */
static size_t kvmem__polar_book(const kvmem__polar *p, int level) { /* floats in front of a level's book */
    return level ? ((size_t)4 << p->first) + (size_t)(level - 1) * ((size_t)4 << p->bits) : 0;
}
static void kvmem__polar_set_book(float *book, int k, const double *angle, int uniform) {
    int i;
    for (i = 0; i < k; i++) {
        const double edge = uniform ? angle[i] + angle[0] : i + 1 < k ? (angle[i] + angle[i + 1]) / 2 : angle[i];
        book[i] = (float)cos(edge);
        book[k + i] = (float)sin(edge);
        book[2 * k + i] = (float)cos(angle[i]);
        book[3 * k + i] = (float)sin(angle[i]);
    }
}
/* Density of an angle of a level above the first, up to a factor. */
static double kvmem__polar_density(double psi, double power) { return pow(sin(2 * psi), power); }
#define KVMEM__PI 3.14159265358979323846
static size_t kvmem__polarquant_table_bytes(const double *par, int d) {
    const kvmem__polar p = kvmem__polar_of(par, d);
    return (kvmem__polar_book(&p, KVMEM__MAX(p.levels, 1)) + 2 * (size_t)d) * sizeof(float);
}
/* table: books of all levels | signs (2 d). */
static void kvmem__polarquant_build(const double *par, int d, void *table) {
    const kvmem__polar p = kvmem__polar_of(par, d);
    float *t = (float *)table;
    double angle[256];
    int l, i;
    for (i = 0; i < 1 << p.first; i++) angle[i] = (i + 0.5) * 2 * KVMEM__PI / (1 << p.first);
    kvmem__polar_set_book(t, 1 << p.first, angle, 1);
    for (l = 1; l < p.levels; l++) {
        const double power = (double)(1 << l) - 1, far = KVMEM__MIN(KVMEM__PI / 4, 4.5 / sqrt(power));
        kvmem__lloyd_max(angle, 1 << p.bits, kvmem__polar_density, power, KVMEM__PI / 4 - far,
                         KVMEM__PI / 4 + far); /* nine deviations */
        kvmem__polar_set_book(t + kvmem__polar_book(&p, l), 1 << p.bits, angle, 0);
    }
    kvmem__signs(t + kvmem__polar_book(&p, KVMEM__MAX(p.levels, 1)), 2 * d, (uint64_t)par[KVMEM__PQ_SEED]);
}

static const float *kvmem__polar_signs(const kvmem__polar *p, const kvmem_coded *b) {
    return (const float *)b->table + kvmem__polar_book(p, KVMEM__MAX(p->levels, 1));
}
/* y (d) = the rotated row x. */
static void kvmem__polar_rotate(const kvmem__polar *p, const kvmem_coded *b, float *y, const float *x) {
    int i;
    for (i = 0; i < p->d; i++) y[i] = kvmem__finite(x[i]);
    kvmem__spin(y, kvmem__polar_signs(p, b), p->d);
}
/* The cell of (x, y): the last edge that is not to its left, among the first k - 1. k: a power of
   two. */
static int kvmem__polar_cell(const float *book, int k, int stride, float x, float y) {
    int cell = 0, step;
    for (step = k / 2; step; step /= 2) {
        const int e = cell + step - 1;
        if (y * book[e] - x * book[stride + e] >= 0) cell += step;
    }
    return cell;
}
/* One level up: y (n) -> lengths in y (n + 1) / 2, the cells of their angles in code. */
static void kvmem__polar_up(float *y, uint8_t *code, int n, const float *book, int k, int first) {
    int j;
    for (j = 0; j < n / 2; j++) {
        const float a = y[2 * j], b = y[2 * j + 1];
        if (!first) code[j] = (uint8_t)kvmem__polar_cell(book, k, k, a, b);
        else if (b < 0) code[j] = (uint8_t)(k / 2 + kvmem__polar_cell(book, k / 2, k, -a, -b));
        else code[j] = (uint8_t)kvmem__polar_cell(book, k / 2, k, a, b);
        y[j] = sqrtf(a * a + b * b);
    }
    if (n % 2 == 0) return;
    y[j] = y[n - 1];
    if (!first) return;
    code[j] = (uint8_t)(y[j] < 0 ? k / 2 : 0);
    if (y[j] < 0) y[j] = -y[j];
}
/* One level down: lengths in y -> y (n). */
static void kvmem__polar_down(float *y, const uint8_t *code, int n, const float *book, int k, int first) {
    int j = n / 2;
    if (n % 2) y[n - 1] = first && code[j] ? -y[j] : y[j];
    for (j--; j >= 0; j--) {
        const float r = y[j];
        y[2 * j + 1] = r * book[3 * k + code[j]];
        y[2 * j] = r * book[2 * k + code[j]];
    }
}
static void kvmem__polarquant_encode(const kvmem_coded *b, const float *x, int t0, int n) {
    const kvmem__polar p = kvmem__polar_of(b->par, b->d);
    const float *book = b->state ? b->state : (const float *)b->table;
    float y[KVMEM_MAX_WIDTH];
    uint8_t code[KVMEM_MAX_WIDTH], *row = kvmem__row_at(b, t0);
    int t, l, at;
    for (t = 0; t < n; t++, row += b->row_bytes, x += b->d) {
        kvmem__polar_rotate(&p, b, y, x);
        for (l = at = 0; l < p.levels; l++) {
            const int bits = l ? p.bits : p.first;
            kvmem__polar_up(y, code + at, p.count[l], book + kvmem__polar_book(&p, l), 1 << bits, l == 0);
            at += l ? p.count[l] / 2 : 0;
            if (l == 0) kvmem__bits_put(row + p.at_first, code, p.count[1], bits);
        }
        kvmem__bits_put(row + p.at_upper, code, p.upper, p.bits);
        for (l = 0; l < p.count[p.levels]; l++) kvmem__put16(row + 2 * l, kvmem__half_sat(y[l]));
    }
}
static void kvmem__polarquant_expand(const kvmem_coded *b, float *out, int t0, int n) {
    const kvmem__polar p = kvmem__polar_of(b->par, b->d);
    const float *book = b->state ? b->state : (const float *)b->table;
    const uint8_t *row = kvmem__row_at(b, t0);
    uint8_t code[KVMEM_MAX_WIDTH];
    int t, l, at;
    for (t = 0; t < n; t++, row += b->row_bytes, out += b->d) {
        for (l = 0; l < p.count[p.levels]; l++) out[l] = kvmem__f16_to_f32(kvmem__le16(row + 2 * l));
        kvmem__bits_get(code, row + p.at_upper, 0, p.upper, p.bits);
        for (l = p.levels - 1, at = p.upper; l >= 0; l--) {
            const int bits = l ? p.bits : p.first;
            if (l == 0) kvmem__bits_get(code, row + p.at_first, 0, p.count[1], bits);
            at -= l ? p.count[l] / 2 : at;
            kvmem__polar_down(out, code + at, p.count[l], book + kvmem__polar_book(&p, l), 1 << bits, l == 0);
        }
    }
}
static void kvmem__polarquant_q(const kvmem_coded *b, float *out, const float *q) {
    const kvmem__polar p = kvmem__polar_of(b->par, b->d);
    memcpy(out, q, (size_t)b->d * sizeof *out);
    kvmem__spin(out, kvmem__polar_signs(&p, b), b->d);
}
static void kvmem__polarquant_finish(const kvmem_coded *b, float *out, const float *acc) {
    const kvmem__polar p = kvmem__polar_of(b->par, b->d);
    memcpy(out, acc, (size_t)b->d * sizeof *out);
    kvmem__spin_back(out, kvmem__polar_signs(&p, b), b->d);
}

/* --- book=learnt: k-means of the angles of the lane's first rows. A level with few angles (8 a
   cell) keeps the law's book. --- */
static int kvmem__polarquant_state(const double *par, int d) {
    const kvmem__polar p = kvmem__polar_of(par, d);
    return par[KVMEM__PQ_BOOK] > 0 ? (int)kvmem__polar_book(&p, KVMEM__MAX(p.levels, 1)) : 0;
}
static int kvmem__polarquant_scratch(const double *par, int d, int n) {
    return par[KVMEM__PQ_BOOK] > 0 ? n * d + n * (d / 4 + 1) : 0; /* rotated rows, angles of one level */
}
static void kvmem__polarquant_learn(const kvmem_coded *b, float *state, const float *x, int n) {
    const kvmem__polar p = kvmem__polar_of(b->par, b->d);
    float *y = b->scratch, *angle = y + (size_t)n * (size_t)b->d;
    int t, l, j;
    if (!kvmem__polarquant_state(b->par, b->d)) return;
    memcpy(state, b->table, kvmem__polar_book(&p, KVMEM__MAX(p.levels, 1)) * sizeof *state);
    for (t = 0; t < n; t++) kvmem__polar_rotate(&p, b, y + (size_t)t * (size_t)b->d, x + (size_t)t * (size_t)b->d);
    for (l = 0; l < p.levels; l++) {
        const int bits = l ? p.bits : p.first, k = 1 << bits;
        const float *book = (const float *)b->table + kvmem__polar_book(&p, l);
        double level[256];
        float centre[256];
        uint8_t code[KVMEM_MAX_WIDTH];
        int m = 0;
        for (t = 0; t < n; t++) {
            float *r = y + (size_t)t * (size_t)b->d;
            for (j = 0; l && j < p.count[l] / 2; j++)
                if (r[2 * j] > 0 || r[2 * j + 1] > 0)
                    angle[m++] = (float)atan2((double)r[2 * j + 1], (double)r[2 * j]);
            kvmem__polar_up(r, code, p.count[l], book, k, l == 0);
        }
        if (m < 8 * k) continue;
        kvmem__kmeans1(centre, k, angle, NULL, m, 50);
        for (j = 0; j < k; j++) level[j] = (double)centre[j];
        kvmem__polar_set_book(state + kvmem__polar_book(&p, l), k, level, 0);
    }
}
static const kvmem_param kvmem__polarquant_params[] = {
    { "levels", 4, 0, 12, NULL, 1, "levels of angles above a pair's values; 0: up to one length a row" },
    { "first", 4, 1, 8, NULL, 1, "bits of an angle of level 1" },
    { "bits", 2, 1, 8, NULL, 1, "bits of an angle of the levels above" },
    { "book", 0, 0, 1, "law|learnt", 1, "of those angles: the Gaussian law's levels; k-means of the lane's rows" },
    { "seed", 1, 0, 1e9, NULL, 1, "of the rotation's signs" },
    KVMEM__CODEC_COMMON
};
static const kvmem_codec kvmem__codec_polarquant = {
    { "polarquant", "rotated row as a tree of polar angles, 3.875 bits a value",
      "Han et al. 2025, arXiv 2502.02617", kvmem__polarquant_params, 0 }, 0,
    kvmem__polarquant_bytes, NULL, kvmem__polarquant_table_bytes, kvmem__polarquant_build,
    kvmem__polarquant_state, NULL, kvmem__polarquant_learn, kvmem__polarquant_scratch, NULL, NULL,
    kvmem__polarquant_encode, kvmem__polarquant_expand, kvmem__polarquant_finish, kvmem__polarquant_q,
    NULL, NULL, NULL, NULL
};

/* ==== >>codec_turboquant : one codebook for all rotated coordinates. stage: codec; both ==========
   Amir Zandieh and others. TurboQuant: Online Vector Quantization with Near-optimal Distortion Rate. 2025.
   arXiv 2504.19874.                                             Code: no official one found.
   A row is cut into its length and its direction. A random rotation R makes every coordinate of the
   direction look alike: whatever x was, (R x)_j / |x| has the density of one coordinate of a random point of
   the sphere, f(y) ~ (1 - y^2)^((d - 3) / 2) on [-1, 1]. So one Lloyd-Max codebook c of 2^b levels for f is
   near the best for every coordinate of every row, and nothing has to be learned or stored but
       gamma = |x|,  y = R x / gamma,  idx_j = nearest of c to y_j,       x^ = gamma R^T c[idx].
   Keys and queries never meet in x: <q, x^> = gamma <R q, c[idx]>; a query is rotated once, an output once.
   form=mse   as above. Relative error D(b) = .358 .1145 .0334 .0091 (b = 1..4, d = 64; the paper's bound is
              2.72 / 4^b, no code of b bits can be below 1 / 4^b). Scores shrink by 1 - D: softmax softens.
              rescale=1 divides gamma by <y, c[idx]>, which takes that bias away row by row for a larger
              error (.128 for .116 at b = 2, d = 128).
   form=prod  b - 1 bits as above, then one bit a coordinate for what is left, r = x / gamma - u^:
                  g = |r|, z = sign(S r),      x^ = gamma (u^ + sqrt(pi/2) / d g S^T z),   S (d, d)
              makes <q, x^> unbiased for a random S. sketch=gauss: S of independent N(0,1), as in the paper;
              sketch=rht: S = sqrt(d) times a second rotation (our option): a third of the error, O(d log d)
              and no matrix. As an estimate of scores both are worse than form=mse with rescale=1.
   R  random signs and Hadamard blocks (>>linear); the paper takes the Q of a random matrix, which costs
      O(d^2). d no power of two: two overlapping blocks (kvmem__spin), so that all channels mix.
   row: b d bits of codes, gamma as a half; prod besides: d bits of signs, g as a half. Bits a value: mse b +
      16/d, prod b + 32/d (4.25 and 4.5 for b = 4, d = 64); for d no multiple of 64 codes end at 16 bits.
   reads: keys after RoPE, values.   state: none.   cost: O(d log d + b d) a row; attention in table look-ups.
   defaults: bits=4 form=mse sketch=rht rescale=0 seed=1 (signs of the sketch: seed + 1).
   ties: the upper level.   guards: a row of zeros decodes to zeros; NaN counts as 0, values beyond +-65504 as
   those; gamma below 2^-25 is 0.
   departs: levels of up to 4 bits are whole multiples of 1/8191 of the largest (changes nothing in the error;
   attention can then multiply whole numbers). The levels satisfy Lloyd-Max to 1e-13; at 4 bits they differ
   from published lists in the fourth digit, which stopped earlier.          test: tests/codec_turboquant.c */

/* Woven codes: n codes of 1..8 bits, laid out for look-ups in registers. A piece is 64 codes (the last one
   may be shorter); bits 1..8 are split in parts of 4, 2 and 1 bits from the low end, a part of p bits is
   w = ceil(m p / 16) little-endian words, and code j of m stands in word j % w at bit p (j / w). A full
   piece of a part so repeats as 4 p words; shifting copies of it by 0, p, 2p .. gives all codes in order. */
static int kvmem__weave_part(int bits) { return bits >= 4 ? 4 : bits >= 2 ? 2 : 1; }
static size_t kvmem__weave_bytes(int n, int bits) {
    size_t bytes = (size_t)(n / 64) * 8 * (size_t)bits;
    int part;
    for (; n % 64 && bits > 0; bits -= part) {
        part = kvmem__weave_part(bits);
        bytes += (size_t)(n % 64 * part + 15) / 16 * 2;
    }
    return bytes;
}
/* One piece: m <= 64 codes. Both return the next piece. */
static uint8_t *kvmem__weave_put(uint8_t *out, const uint8_t *code, int m, int bits) {
    int part, at, w, i, j;
    for (at = 0; at < bits; at += part) {
        part = kvmem__weave_part(bits - at);
        w = (m * part + 15) / 16;
        for (i = 0; i < w; i++, out += 2) {
            unsigned v = 0;
            for (j = i; j < m; j += w) v |= (unsigned)(code[j] >> at & ((1 << part) - 1)) << part * (j / w);
            kvmem__put16(out, (uint16_t)v);
        }
    }
    return out;
}
static const uint8_t *kvmem__weave_get(uint8_t *code, const uint8_t *in, int m, int bits) {
    int part, at, w, i, j;
    memset(code, 0, (size_t)m);
    for (at = 0; at < bits; at += part) {
        part = kvmem__weave_part(bits - at);
        w = (m * part + 15) / 16;
        for (i = 0; i < w; i++, in += 2) {
            const unsigned v = kvmem__le16(in);
            for (j = i; j < m; j += w)
                code[j] = (uint8_t)(code[j] | (v >> part * (j / w) & ((1u << part) - 1)) << at);
        }
    }
    return in;
}

#define KVMEM__ROOT_HALF_PI 1.2533141373155f /* sqrt(pi / 2): 1 / E|N(0,1)| */

/* What build makes: the codebook, the signs of R (2 d) and of the sketch (2 d) or its matrix (d, d). */
typedef struct kvmem__turbo {
    float level[256], mid[256]; /* 2^bits levels, the borders between them */
    float step;                 /* level = word * step, where there are words */
    int16_t word[32];           /* up to 4 bits: repeated, so that an index may carry bits of its neighbour */
    float pad[15];
} kvmem__turbo;
enum { KVMEM__TQ_BITS, KVMEM__TQ_FORM, KVMEM__TQ_SKETCH, KVMEM__TQ_RESCALE, KVMEM__TQ_SEED };
static int kvmem__tq_prod(const double *par) { return par[KVMEM__TQ_FORM] > 0; }
static int kvmem__tq_bits(const double *par) { return (int)par[KVMEM__TQ_BITS] - kvmem__tq_prod(par); }
static int kvmem__tq_gauss(const double *par) { return kvmem__tq_prod(par) && par[KVMEM__TQ_SKETCH] > 0; }
static const float *kvmem__tq_signs(const void *table) {
    return (const float *)(const void *)((const kvmem__turbo *)table + 1);
}
/* A row's own space holds R x and S x side by side; where that is wider than KVMEM_MAX_WIDTH, R x alone. */
static int kvmem__tq_wide(const double *par, int d) { return kvmem__tq_prod(par) && 2 * d <= KVMEM_MAX_WIDTH; }
static int kvmem__tq_width(const double *par, int d) { return kvmem__tq_wide(par, d) ? 2 * d : d; }
static size_t kvmem__tq_row_bytes(const double *par, int d) {
    const size_t prod = kvmem__tq_prod(par) ? kvmem__weave_bytes(d, 1) + 2 : 0;
    return kvmem__weave_bytes(d, kvmem__tq_bits(par)) + 2 + prod;
}
static size_t kvmem__tq_table_bytes(const double *par, int d) {
    const size_t n = (size_t)d, sketch = kvmem__tq_gauss(par) ? n * n : kvmem__tq_prod(par) ? 2 * n : 0;
    return sizeof(kvmem__turbo) + (2 * n + sketch) * sizeof(float);
}
static double kvmem__sphere_density(double x, double d) { return pow(1 - x * x, (d - 3) / 2); }
/* The levels of a coordinate of a random unit vector; d = 1: it is -1 or 1. */
static void kvmem__sphere_levels(double *level, int n, int d) {
    const double most = KVMEM__MIN(1.0, 12 / sqrt((double)d));
    int k;
    if (d > 1) kvmem__lloyd_max(level, n, kvmem__sphere_density, d, -most, most);
    for (k = 0; k < n && d == 1; k++) level[k] = n > 1 ? 2.0 * k / (n - 1) - 1 : 1;
}
static void kvmem__tq_build(const double *par, int d, void *table) {
    kvmem__turbo *t = (kvmem__turbo *)table;
    float *signs = (float *)(void *)(t + 1);
    const int bits = kvmem__tq_bits(par), n = 1 << bits;
    const uint64_t seed = (uint64_t)par[KVMEM__TQ_SEED];
    double level[256];
    int k;
    if (bits) kvmem__sphere_levels(level, n, d);
    t->step = bits ? (float)(level[n - 1] / 8191) : 0.0f;
    for (k = 0; k < n && bits; k++) {
        if (bits <= 4) { /* both halves alike */
            const double half = floor(0.5 * (level[KVMEM__MAX(k, n - 1 - k)] - level[KVMEM__MIN(k, n - 1 - k)]) *
                                      8191 / level[n - 1] + 0.5);
            t->word[k] = (int16_t)(2 * k < n ? -half : half);
            t->level[k] = (float)t->word[k] * t->step;
        } else t->level[k] = (float)level[k];
        if (k) t->mid[k - 1] = 0.5f * (t->level[k - 1] + t->level[k]);
    }
    for (k = n; k < 32 && bits <= 4; k++) t->word[k] = t->word[k % n];
    kvmem__signs(signs, 2 * d, seed);
    if (kvmem__tq_gauss(par))
        for (k = 0; k < d * d; k++) signs[2 * d + k] = kvmem__gauss(seed + 1, (uint64_t)k);
    else if (kvmem__tq_prod(par)) kvmem__signs(signs + 2 * d, 2 * d, seed + 1);
}
/* One bit a coordinate for what codes leave of a unit vector (form=prod; octopus with qjl=1): the signs of
   its sketch S r and |r|. spin: signs of R; s: the matrix S (d, d) if gauss, else signs of its spin. */
typedef struct kvmem__rest { const float *spin, *s; int d, gauss; } kvmem__rest;
/* out (d) = S x, or S^T x. */
static void kvmem__rest_sketch(const kvmem__rest *r, float *out, const float *x, int back) {
    const float *s = r->s, root = sqrtf((float)r->d);
    const int d = r->d;
    int i, j;
    if (r->gauss) {
        memset(out, 0, (size_t)d * sizeof *out);
        for (i = 0; i < d; i++, s += d) {
            for (j = 0; j < d; j++)
                if (back) out[j] += s[j] * x[i];
                else out[i] += s[j] * x[j];
        }
        return;
    }
    for (j = 0; j < d; j++) out[j] = root * x[j];
    if (back) kvmem__spin_back(out, s, d);
    else kvmem__spin(out, s, d);
}
/* u (d) = x / |x|, |x| returned; 0 and u = 0 where |x| is too small for a half. Sums of squares run over
   channels j % 8 apart, so that eight lanes can do the same; squares of floats are exact as doubles. */
static float kvmem__unit_row(float *u, const float *x, int d) {
    double sum[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };
    float norm, inv;
    int j;
    for (j = 0; j < d; j++) {
        u[j] = x[j] != x[j] ? 0.0f : x[j] > 65504.0f ? 65504.0f : x[j] < -65504.0f ? -65504.0f : x[j];
        sum[j % 8] += (double)u[j] * (double)u[j];
    }
    norm = (float)sqrt(((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7])));
    inv = norm < 2.98e-8f ? 0.0f : 1.0f / norm;
    for (j = 0; j < d; j++) u[j] *= inv;
    return inv > 0 ? norm : 0.0f;
}
/* Signs of the sketch to out, |r| returned: u (d) is coded, y (d) holds R u^; both are overwritten. */
static float kvmem__rest_encode(const kvmem__rest *r, uint8_t *out, float *u, float *y) {
    const int d = r->d;
    uint8_t code[64];
    double sum = 0;
    int c, j;
    kvmem__spin_back(y, r->spin, d);
    for (j = 0; j < d; j++) {
        u[j] -= y[j];
        sum += (double)u[j] * (double)u[j];
    }
    kvmem__rest_sketch(r, y, u, 0);
    for (c = 0; c < d; c += 64) {
        const int m = KVMEM__MIN(64, d - c);
        for (j = 0; j < m; j++) code[j] = y[c + j] < 0;
        out = kvmem__weave_put(out, code, m, 1);
    }
    return (float)sqrt(sum);
}
static kvmem__rest kvmem__tq_rest(const kvmem_coded *b) {
    kvmem__rest r;
    r.spin = kvmem__tq_signs(b->table);
    r.s = r.spin + 2 * b->d;
    r.d = b->d;
    r.gauss = kvmem__tq_gauss(b->par);
    return r;
}
static void kvmem__tq_encode(const kvmem_coded *b, const float *x, int t0, int n) {
    const kvmem__turbo *tq = (const kvmem__turbo *)b->table;
    const int d = b->d, bits = kvmem__tq_bits(b->par), prod = kvmem__tq_prod(b->par);
    const kvmem__rest rest = kvmem__tq_rest(b);
    float *u = b->scratch, *y = u + d;
    uint8_t code[64];
    int t, c, j;
    for (t = 0; t < n; t++, x += d) {
        uint8_t *out = kvmem__row_at(b, t0 + t);
        float gamma = kvmem__unit_row(u, x, d), along = 0;
        memset(out, 0, b->row_bytes);
        if (gamma <= 0) continue;
        memcpy(y, u, (size_t)d * sizeof *y);
        kvmem__spin(y, kvmem__tq_signs(tq), d);
        for (c = 0; c < d; c += 64) {
            const int m = KVMEM__MIN(64, d - c);
            for (j = 0; j < m; j++) {
                code[j] = (uint8_t)kvmem__cell_of(tq->mid, 1 << bits, y[c + j]);
                along += y[c + j] * tq->level[code[j]];
                y[c + j] = tq->level[code[j]];
            }
            out = kvmem__weave_put(out, code, m, bits);
        }
        if (b->par[KVMEM__TQ_RESCALE] > 0 && !prod && along > 0) gamma /= along;
        kvmem__put16(prod ? out + kvmem__weave_bytes(d, 1) : out, kvmem__half_sat(gamma));
        if (prod) kvmem__put16(out + kvmem__weave_bytes(d, 1) + 2,
                               kvmem__f32_to_f16(kvmem__rest_encode(&rest, out, u, y)));
    }
}
/* The signs of one row as +-g: z (d). */
static void kvmem__rest_signs(float *z, const uint8_t *in, int d, float g) {
    uint8_t code[64];
    int c, j;
    for (c = 0; c < d; c += 64) {
        const int m = KVMEM__MIN(64, d - c);
        in = kvmem__weave_get(code, in, m, 1);
        for (j = 0; j < m; j++) z[c + j] = code[j] ? -g : g;
    }
}
/* out (d) += R S^T z, for rows too wide to keep both apart. */
static void kvmem__rest_fold(const kvmem__rest *r, float *out, const uint8_t *in, float g) {
    float z[KVMEM_MAX_WIDTH], x[KVMEM_MAX_WIDTH];
    int j;
    kvmem__rest_signs(z, in, r->d, g);
    kvmem__rest_sketch(r, x, z, 1);
    kvmem__spin(x, r->spin, r->d);
    for (j = 0; j < r->d; j++) out[j] += x[j];
}
/* The rest of an expanded row: out (d) holds its codes; wide: +-g beside them, else added. */
static void kvmem__rest_expand(const kvmem__rest *r, float *out, const uint8_t *in, float g, int wide) {
    g *= KVMEM__ROOT_HALF_PI / (float)r->d;
    if (wide) kvmem__rest_signs(out + r->d, in, r->d, g);
    else kvmem__rest_fold(r, out, in, g);
}
/* R q, and S q beside it if wide; back: R^T acc + S^T of the wide half. */
static void kvmem__rest_prepare(const kvmem__rest *r, float *out, const float *q, int wide) {
    memcpy(out, q, (size_t)r->d * sizeof *q);
    kvmem__spin(out, r->spin, r->d);
    if (wide) kvmem__rest_sketch(r, out + r->d, q, 0);
}
static void kvmem__rest_finish(const kvmem__rest *r, float *out, const float *acc, int wide) {
    float y[KVMEM_MAX_WIDTH];
    int j;
    memcpy(y, acc, (size_t)r->d * sizeof *y);
    kvmem__spin_back(y, r->spin, r->d);
    if (wide) kvmem__rest_sketch(r, out, acc + r->d, 1);
    else memset(out, 0, (size_t)r->d * sizeof *out);
    for (j = 0; j < r->d; j++) out[j] += y[j];
}
static void kvmem__tq_expand(const kvmem_coded *b, float *out, int t0, int n) {
    const kvmem__turbo *tq = (const kvmem__turbo *)b->table;
    const int d = b->d, bits = kvmem__tq_bits(b->par), prod = kvmem__tq_prod(b->par);
    const int width = kvmem__tq_width(b->par, d);
    const kvmem__rest rest = kvmem__tq_rest(b);
    uint8_t code[64];
    int t, c, j;
    for (t = 0; t < n; t++, out += width) {
        const uint8_t *in = kvmem__row_at(b, t0 + t), *end = in + b->row_bytes;
        const float gamma = kvmem__f16_to_f32(kvmem__le16(end - (prod ? 4 : 2)));
        for (c = 0; c < d; c += 64) {
            const int m = KVMEM__MIN(64, d - c);
            in = kvmem__weave_get(code, in, m, bits);
            for (j = 0; j < m; j++) out[c + j] = gamma * tq->level[code[j]];
        }
        if (prod) {
            const float g = gamma * kvmem__f16_to_f32(kvmem__le16(end - 2));
            kvmem__rest_expand(&rest, out, in, g, width > d);
        }
    }
}
static void kvmem__tq_prepare(const kvmem_coded *b, float *out, const float *q) {
    const kvmem__rest rest = kvmem__tq_rest(b);
    kvmem__rest_prepare(&rest, out, q, kvmem__tq_wide(b->par, b->d));
}
static void kvmem__tq_finish(const kvmem_coded *b, float *out, const float *acc) {
    const kvmem__rest rest = kvmem__tq_rest(b);
    kvmem__rest_finish(&rest, out, acc, kvmem__tq_wide(b->par, b->d));
}
static int kvmem__tq_scratch(const double *par, int d, int n) {
    (void)par;
    (void)n;
    return 2 * d;
}
static const kvmem_param kvmem__tq_params[] = {
    { "bits", 4, 1, 8, NULL, 1, "bits a coordinate" },
    { "form", 0, 0, 1, "mse|prod", 1, "prod: one of the bits is the sign of a sketch of the rest" },
    { "sketch", 0, 0, 1, "rht|gauss", 1, "of form=prod: a second rotation, or independent normal numbers" },
    { "rescale", 0, 0, 1, NULL, 1, "1: form=mse without bias in <q, x>" },
    { "seed", 1, 0, 1e9, NULL, 1, "of the signs" },
    KVMEM__CODEC_COMMON };
static const kvmem_codec kvmem__codec_turboquant = {
    { "turboquant", "length, and direction rotated and coded by one codebook; b + 16/d bits a value (prod: b + 32/d)",
      "Zandieh 2025, arXiv 2504.19874", kvmem__tq_params, 0 }, 0,
    kvmem__tq_row_bytes, NULL, kvmem__tq_table_bytes, kvmem__tq_build, NULL, NULL, NULL, kvmem__tq_scratch,
    kvmem__tq_width, NULL, kvmem__tq_encode, kvmem__tq_expand, kvmem__tq_finish, kvmem__tq_prepare, NULL, NULL,
    NULL, NULL };

/* ==== >>codec_octopus : triplets of rotated coordinates by direction and length. stage: codec; both
   Mark Boss. OCTOPUS: Optimized KV Cache for Transformers via Octahedral Parametrization Under optimal
   Squared error quantization. 2026. arXiv 2605.21226.           Code: no official one found.
   As in turboquant a row is cut into gamma = |x| and a rotated direction y = R x / gamma. Its coordinates
   are then taken three at a time (the last triplet padded with zeros, d=64: 22, d=128: 43 triplets t), and
   a triplet again is cut into a length rho = |t| and a direction. The direction is laid on the octahedron
   |x| + |y| + |z| = 1 and unfolded to the square [-1, 1]^2:
       p = t / (|x| + |y| + |z|);   p_z >= 0: (xi, eta) = (p_x, p_y), else
                                    (sg(p_x) (1 - |p_y|), sg(p_y) (1 - |p_x|)),  sg(0) = 1.
   Of 3 b + 1 bits xi and eta get b + 1 each, rho b - 1. Back: z = 1 - |xi| - |eta|; z < 0: fold again;
   normalize, times rho, R^T, times gamma.
   Codebooks are Lloyd-Max of exact densities. rho^2 of a random direction is Beta(3/2, (d - 3) / 2):
       f(rho) ~ rho^2 (1 - rho^2)^((d - 5) / 2);
   xi and eta of a random direction, with a = |xi|, L = 1 - a:
       f(xi) = [ L / (L^2 + 2 a^2) + a / (a^2 + 2 L^2) ] / (pi sqrt(a^2 + L^2)).
   rounding=joint: of the up to 9 code pairs around the nearest one the encoder takes the direction n with
   the largest <t, n>, and for rho the level nearest to that <t, n>. plain: nearest xi, eta, and |t|.
   qjl=1: one bit a coordinate for the rest, as in turboquant form=prod (sketch: a second rotation).
   At matched index bits it is no better than a scalar codec: at b = 2 a triplet has 7 bits, 2.33 a value,
   error .0833 (d = 128); 5 Lloyd-Max levels a value, 2.32 bits, give .0790. Compare by bytes.
   row: triplets of 3 b + 1 bits (xi lowest, then eta, then rho) from the lowest bit on, gamma as a half. Bits
   a value (n_t (3 b + 1) + 16) / d, codes up to whole bytes: 2.75 3.75 4.75 (d=64), 2.5 3.5 4.5 (d=128) for
   b = 2 3 4; qjl: 1 + 16/d more.
   reads: keys after RoPE, values.   state: none.   cost: 9 products a triplet to code, one look-up to decode.
   defaults: bits=3 rounding=joint qjl=0 seed=1.   ties: lower pair, upper level.
   guards: as turboquant; a zero triplet has direction (0, 0, 1); d <= 3: rho is 1.
   departs: gamma is a half (paper: a float).                               test: tests/codec_octopus.c */

/* What build makes: levels of xi (= of eta) and rho, the unit vector of each pair i + j n, signs of R (2 d)
   and of the sketch (2 d). */
enum { KVMEM__OCT_BITS, KVMEM__OCT_ROUNDING, KVMEM__OCT_QJL, KVMEM__OCT_SEED };
typedef struct kvmem__octo {
    float xi[64], xi_mid[64], rho[16], rho_mid[16];
} kvmem__octo;
static int kvmem__oct_bits(const double *par) { return (int)par[KVMEM__OCT_BITS]; }
static int kvmem__oct_triplets(int d) { return (d + 2) / 3; }
/* The unit vectors x, y, z (n n each) of the pairs, behind the levels. */
static float *kvmem__oct_unit(const void *table) {
    return (float *)(uintptr_t)((const kvmem__octo *)table + 1);
}
static kvmem__rest kvmem__oct_rest(const kvmem_coded *b) {
    kvmem__rest r;
    r.spin = kvmem__oct_unit(b->table) + 3 * ((size_t)4 << 2 * kvmem__oct_bits(b->par));
    r.s = r.spin + 2 * b->d;
    r.d = b->d;
    r.gauss = 0;
    return r;
}
static size_t kvmem__oct_codes(const double *par, int d) { /* bytes of the triplets */
    return ((size_t)kvmem__oct_triplets(d) * (size_t)(3 * kvmem__oct_bits(par) + 1) + 7) / 8;
}
static size_t kvmem__oct_row_bytes(const double *par, int d) {
    return kvmem__oct_codes(par, d) + 2 + (par[KVMEM__OCT_QJL] > 0 ? kvmem__weave_bytes(d, 1) + 2 : 0);
}
static int kvmem__oct_wide(const double *par, int d) { return par[KVMEM__OCT_QJL] > 0 && 2 * d <= KVMEM_MAX_WIDTH; }
static int kvmem__oct_width(const double *par, int d) { return kvmem__oct_wide(par, d) ? 2 * d : d; }
static size_t kvmem__oct_table_bytes(const double *par, int d) {
    return sizeof(kvmem__octo) + (3 * ((size_t)4 << 2 * kvmem__oct_bits(par)) + 4 * (size_t)d) * sizeof(float);
}
static double kvmem__oct_xi_density(double x, double unused) {
    const double a = fabs(x), l = 1 - a;
    (void)unused;
    return (l / (l * l + 2 * a * a) + a / (a * a + 2 * l * l)) / sqrt(a * a + l * l);
}
static double kvmem__oct_rho_density(double r, double d) { return r * r * pow(1 - r * r, (d - 5) / 2); }
/* t (3) on the octahedron's square. */
static void kvmem__oct_fold(const float *t, float *xi, float *eta) {
    const float ax = fabsf(t[0]), ay = fabsf(t[1]), sum = ax + ay + fabsf(t[2]);
    const float x = sum > 0 ? t[0] / sum : 0.0f, y = sum > 0 ? t[1] / sum : 0.0f;
    *xi = x;
    *eta = y;
    if (t[2] < 0) {
        *xi = x < 0 ? fabsf(y) - 1 : 1 - fabsf(y);
        *eta = y < 0 ? fabsf(x) - 1 : 1 - fabsf(x);
    }
}
/* And back to a unit vector. */
static void kvmem__oct_unfold(double xi, double eta, double *t) {
    const double ax = fabs(xi), ay = fabs(eta), z = 1 - ax - ay, in = z < 0 ? -z : 0;
    const double x = (ax - in) * (xi < 0 ? -1 : 1), y = (ay - in) * (eta < 0 ? -1 : 1);
    const double norm = sqrt(x * x + y * y + z * z);
    t[0] = x / norm;
    t[1] = y / norm;
    t[2] = z / norm;
}
/* n levels of a density to floats, and the borders between them. */
static void kvmem__oct_levels(float *to, float *mid, int n, kvmem__density f, double d, double lo, double hi) {
    double level[64];
    int k;
    kvmem__lloyd_max(level, n, f, d, lo, hi);
    for (k = 0; k < n; k++) {
        if (lo < 0 && 2 * k < n) level[k] = -level[n - 1 - k];
        to[k] = (float)level[k];
        if (k) mid[k - 1] = (float)((level[k - 1] + level[k]) / 2);
    }
}
static void kvmem__oct_build(const double *par, int d, void *table) {
    kvmem__octo *o = (kvmem__octo *)table;
    const int bits = kvmem__oct_bits(par), n = 2 << bits, lengths = 1 << (bits - 1);
    float *unit = kvmem__oct_unit(table), *signs = unit + 3 * n * n;
    double t[3];
    int i, k;
    kvmem__oct_levels(o->xi, o->xi_mid, n, kvmem__oct_xi_density, 0, -1, 1);
    if (d > 3)
        kvmem__oct_levels(o->rho, o->rho_mid, lengths, kvmem__oct_rho_density, d, 0,
                          KVMEM__MIN(1.0, 12 / sqrt((double)d)));
    for (i = 0; i < lengths && d <= 3; i++) o->rho[i] = o->rho_mid[i] = 1;
    for (i = 0; i < n * n; i++) {
        kvmem__oct_unfold((double)o->xi[i % n], (double)o->xi[i / n], t);
        for (k = 0; k < 3; k++) unit[k * n * n + i] = (float)t[k];
    }
    kvmem__signs(signs, 2 * d, (uint64_t)par[KVMEM__OCT_SEED]);
    kvmem__signs(signs + 2 * d, 2 * d, (uint64_t)par[KVMEM__OCT_SEED] + 1);
}
/* The code of a triplet: pair of directions, level of the length above it. */
static int kvmem__oct_code(const kvmem__octo *o, const float *unit, int bits, int joint, const float *t) {
    const int n = 2 << bits, lengths = 1 << (bits - 1);
    const float *x = unit, *y = x + n * n, *z = y + n * n;
    float xi, eta, most;
    int i, j, k, best;
    kvmem__oct_fold(t, &xi, &eta);
    i = kvmem__cell_of(o->xi_mid, n, xi);
    j = kvmem__cell_of(o->xi_mid, n, eta);
    best = i + j * n;
    if (!joint) most = sqrtf(t[0] * t[0] + t[1] * t[1] + t[2] * t[2]);
    else {
        const int i0 = i > 0 ? i - 1 : 0, i1 = i < n - 1 ? i + 1 : i, j1 = j < n - 1 ? j + 1 : j;
        most = t[0] * x[best] + t[1] * y[best] + t[2] * z[best];
        for (j = j > 0 ? j - 1 : 0; j <= j1; j++) {
            for (k = i0 + j * n; k <= i1 + j * n; k++) {
                const float along = t[0] * x[k] + t[1] * y[k] + t[2] * z[k];
                if (along > most) { most = along; best = k; }
            }
        }
    }
    return best + kvmem__cell_of(o->rho_mid, lengths, most) * n * n;
}
/* Triplet k of a row of codes of `bits` bits; three bytes are read, the last ones may be gamma's. */
static unsigned kvmem__oct_get(const uint8_t *row, int k, int bits) {
    const size_t at = (size_t)k * (size_t)bits;
    row += at / 8;
    return ((unsigned)row[0] | (unsigned)row[1] << 8 | (unsigned)row[2] << 16) >> at % 8 & ((1u << bits) - 1);
}
static void kvmem__oct_encode(const kvmem_coded *b, const float *x, int t0, int n) {
    const kvmem__octo *o = (const kvmem__octo *)b->table;
    const float *unit = kvmem__oct_unit(o);
    const int d = b->d, bits = kvmem__oct_bits(b->par), width = 3 * bits + 1, pairs = 4 << 2 * bits;
    const int qjl = b->par[KVMEM__OCT_QJL] > 0, joint = b->par[KVMEM__OCT_ROUNDING] <= 0;
    const kvmem__rest rest = kvmem__oct_rest(b);
    float *u = b->scratch, *y = u + d;
    int t, c, k;
    for (t = 0; t < n; t++, x += d) {
        uint8_t *out = kvmem__row_at(b, t0 + t), *p = out;
        const float gamma = kvmem__unit_row(u, x, d);
        unsigned long hold = 0;
        int held = 0;
        memset(out, 0, b->row_bytes);
        if (gamma <= 0) continue;
        memcpy(y, u, (size_t)d * sizeof *y);
        kvmem__spin(y, rest.spin, d);
        for (c = 0; c < d; c += 3) {
            float v[3] = { 0, 0, 0 };
            int code, m = KVMEM__MIN(3, d - c);
            memcpy(v, y + c, (size_t)m * sizeof *v);
            code = kvmem__oct_code(o, unit, bits, joint, v);
            for (k = 0; k < m; k++) y[c + k] = o->rho[code / pairs] * unit[k * pairs + code % pairs];
            hold |= (unsigned long)code << held;
            for (held += width; held >= 8; held -= 8, hold >>= 8) *p++ = (uint8_t)(hold & 255);
        }
        if (held) *p = (uint8_t)hold;
        p = out + kvmem__oct_codes(b->par, d);
        kvmem__put16(p, kvmem__half_sat(gamma));
        if (qjl) {
            const float g = kvmem__rest_encode(&rest, p + 2, u, y);
            kvmem__put16(out + b->row_bytes - 2, kvmem__f32_to_f16(g));
        }
    }
}
static void kvmem__oct_expand(const kvmem_coded *b, float *out, int t0, int n) {
    const kvmem__octo *o = (const kvmem__octo *)b->table;
    const int d = b->d, bits = kvmem__oct_bits(b->par), pairs = 4 << 2 * bits, width = kvmem__oct_width(b->par, d);
    const float *unit = kvmem__oct_unit(o);
    const kvmem__rest rest = kvmem__oct_rest(b);
    int t, c, k;
    for (t = 0; t < n; t++, out += width) {
        const uint8_t *in = kvmem__row_at(b, t0 + t), *p = in + kvmem__oct_codes(b->par, d);
        const float gamma = kvmem__f16_to_f32(kvmem__le16(p));
        for (c = 0; c < d; c += 3) {
            const int code = (int)kvmem__oct_get(in, c / 3, 3 * bits + 1);
            const float r = gamma * o->rho[code / pairs];
            for (k = 0; k < 3 && c + k < d; k++) out[c + k] = r * unit[k * pairs + code % pairs];
        }
        if (b->par[KVMEM__OCT_QJL] > 0) {
            const float g = gamma * kvmem__f16_to_f32(kvmem__le16(in + b->row_bytes - 2));
            kvmem__rest_expand(&rest, out, p + 2, g, width > d);
        }
    }
}
static void kvmem__oct_prepare(const kvmem_coded *b, float *out, const float *q) {
    const kvmem__rest rest = kvmem__oct_rest(b);
    kvmem__rest_prepare(&rest, out, q, kvmem__oct_wide(b->par, b->d));
}
static void kvmem__oct_finish(const kvmem_coded *b, float *out, const float *acc) {
    const kvmem__rest rest = kvmem__oct_rest(b);
    kvmem__rest_finish(&rest, out, acc, kvmem__oct_wide(b->par, b->d));
}
static const kvmem_param kvmem__oct_params[] = {
    { "bits", 3, 1, 5, NULL, 1, "nominal bits: 3 bits + 1 for three coordinates" },
    { "rounding", 0, 0, 1, "joint|plain", 1, "joint: the best of the nine code pairs around the nearest" },
    { "qjl", 0, 0, 1, NULL, 1, "1: one more bit a coordinate, the sign of a sketch of the rest" },
    { "seed", 1, 0, 1e9, NULL, 1, "of the signs" },
    KVMEM__CODEC_COMMON };
static const kvmem_codec kvmem__codec_octopus = {
    { "octopus", "rotated coordinates in triplets, direction and length; b + (b + 1) / 3 + 16/d bits a value",
      "Boss 2026, arXiv 2605.21226", kvmem__oct_params, 0 }, 0,
    kvmem__oct_row_bytes, NULL, kvmem__oct_table_bytes, kvmem__oct_build, NULL, NULL, NULL, kvmem__tq_scratch,
    kvmem__oct_width, NULL, kvmem__oct_encode, kvmem__oct_expand, kvmem__oct_finish, kvmem__oct_prepare, NULL, NULL,
    NULL, NULL };

/* ==== >>codec_polark : a pair of channels as radius and angle, by table. stage: codec.k ==========
   Songhao Wu et al. Leveraging Polar Transformation for Key Cache Quantization and Decoding
   Acceleration. 2025 (NeurIPS). arXiv 2502.00527.   Code: ericshwu/PolarQuant
   models/modeling_llama_polar.py (quantize_and_pack_nbit). Not the PolarQuant of
   >>codec_polarquant.
   Idea: RoPE turns pairs of channels, so a pair with a large constant part lies on a ring: its
   radius hardly varies and its angle is what the position made of it. Both are coded by pair over
   the tokens of a page:
     phi = atan2(k_j+d/2, k_j) in [0, 2 pi),  rho = length        (pairs=norm: k_2j+1, k_2j)
     sc = (max - min) / 2^b,  code = floor((v - min) / sc),  v^ = min + sc (code + 1/2)
   Score by table: tp_j[i] = q_j cos(phi_i) + q_j+d/2 sin(phi_i) for the 2^angle angles of pair j,
   once a page and query; then <q, row t> = sum_j rho_tj tp_j[code_tj].
   head: sc, min of rho and of phi, halves, by pair.  row: codes of all angles | codes of all radii,
   each a stream of its own.   bits/value: (angle + radius) / 2 + 32 / page; 4.25 for the defaults.
   defaults: angle=4 radius=4, page 128, the newest 128 rows exact: preset polark.   reads: K after
   RoPE.
   state: none.   cost: d/2 2^angle products a page and query, d/2 look-ups a row; pays when 2^angle
   << page.
   choices: cut=gap, the angles of a pair are cut at their widest gap, where phi_min is put, so that
   a ring round 0 does not span 2 pi; cut=zero is the released code's plain min and max (on keys
   with large constant channels its error is four times larger). min is rounded down and sc up to a
   half, codes come from what is stored: |phi - phi^| <= sc / 2 and |rho - rho^| <= sc / 2 up to
   rounding. A pair of zeros has no say in the range of phi. Odd d: the last channel's partner is 0.
   guards: NaN counts as 0, values stop at +-65504, so do radii; sc = 0 where all are equal.
   test: tests/codec_polark.c */
enum { KVMEM__PK_ANGLE, KVMEM__PK_RADIUS, KVMEM__PK_PAIRS, KVMEM__PK_CUT };
#define KVMEM__PK_HEAD 8 /* bytes a pair */
#define KVMEM__PK_ROOM 256 /* angles in a table on the stack */

typedef struct kvmem__polark { int d, pairs, angle, radius, norm, zero; size_t at_radius; } kvmem__polark;
static kvmem__polark kvmem__polark_of(const double *par, int d) {
    kvmem__polark p;
    p.d = d;
    p.pairs = (d + 1) / 2;
    p.angle = (int)par[KVMEM__PK_ANGLE];
    p.radius = (int)par[KVMEM__PK_RADIUS];
    p.norm = (int)par[KVMEM__PK_PAIRS];
    p.zero = (int)par[KVMEM__PK_CUT];
    p.at_radius = kvmem__bits_bytes(p.pairs, p.angle);
    return p;
}
static size_t kvmem__polark_bytes(const double *par, int d) {
    const kvmem__polark p = kvmem__polark_of(par, d);
    return p.at_radius + kvmem__bits_bytes(p.pairs, p.radius);
}
static size_t kvmem__polark_head_bytes(const kvmem_coded *b, const float *x) {
    (void)x;
    return (size_t)KVMEM__PK_HEAD * (size_t)((b->d + 1) / 2);
}
/* The channels of pair j; *y = -1: none. */
static void kvmem__polark_channels(const kvmem__polark *p, int j, int *x, int *y) {
    const int half = p->d / 2;
    if (j == half) { *x = p->d - 1; *y = -1; }
    else if (p->norm) { *x = 2 * j; *y = 2 * j + 1; }
    else { *x = j; *y = half + j; }
}

/* sin and cos of 0 <= x < 16, error below 2e-7: one polynomial for all paths. */
KVMEM__UNUSED static void kvmem__sincos(float x, float *s, float *c) {
    const int k = (int)(x * 0.63661977237f + 0.5f);
    const float n = (float)k, r = ((x - n * 1.5703125f) - n * 4.837512969970703e-4f) - n * 7.549789948768648e-8f;
    const float z = r * r;
    const float u = r + r * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
    const float v = 1 - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f +
                    z * 2.443315711809948e-5f));
    *s = k & 1 ? v : u;
    *c = k & 1 ? u : v;
    if (k & 2) *s = -*s;
    if ((k + 1) & 2) *c = -*c;
}
/* Halves that do not exceed, that are not below a number 0 .. 65504. */
static uint16_t kvmem__half_down(float x) {
    const uint16_t h = kvmem__half_sat(x);
    return (uint16_t)(h - (h && kvmem__f16_to_f32(h) > x));
}
static uint16_t kvmem__half_up(float x) {
    const uint16_t h = kvmem__half_sat(x);
    return (uint16_t)(h + (kvmem__f16_to_f32(h) < x && h < 0x7bff));
}

/* Where the n angles (in [0, 2 pi)) begin after their widest gap. lo, hi (n): the smallest and the
   largest angle of each of n equal parts of the circle; the widest gap is never inside a part.
   Ties: the later. */
static float kvmem__polark_start(const float *phi, int n, float *lo, float *hi) {
    const float turn = (float)(2 * KVMEM__PI);
    float last = -1, widest = -1, start = 0, first = -1;
    int t, i;
    for (i = 0; i < n; i++) lo[i] = hi[i] = -1;
    for (t = 0; t < n; t++) {
        i = (int)(phi[t] / turn * (float)n);
        i = KVMEM__MIN(i, n - 1);
        if (lo[i] < 0 || phi[t] < lo[i]) lo[i] = phi[t];
        if (phi[t] > hi[i]) hi[i] = phi[t];
    }
    for (i = 0; i < n; i++) {
        if (lo[i] < 0) continue;
        if (first < 0) first = lo[i];
        else if (lo[i] - last >= widest) { widest = lo[i] - last; start = lo[i]; }
        last = hi[i];
    }
    return first + turn - last >= widest ? KVMEM__MAX(first, 0.0f) : start;
}
/* Range lo..hi of values >= 0 in 2^bits steps -> stored at out; returns min and step as they read.
   */
static void kvmem__polark_fit(uint8_t *out, float lo, float hi, int bits, float *min, float *step) {
    const uint16_t m = kvmem__half_down(lo);
    *min = kvmem__f16_to_f32(m);
    kvmem__put16(out + 2, m);
    kvmem__put16(out, kvmem__half_up((hi - *min) / (float)(1 << bits)));
    *step = kvmem__f16_to_f32(kvmem__le16(out));
}
static uint8_t kvmem__polark_code(float v, float step, int bits) {
    const float c = step > 0 ? v / step : 0;
    const int top = (1 << bits) - 1;
    return (uint8_t)(c >= (float)top ? top : c > 0 ? (int)c : 0);
}
/* Pair j of n rows: its part of the head, and its codes (n, apart by `pairs`). */
static void kvmem__polark_pair(const kvmem__polark *p, int j, const float *x, int n, uint8_t *head, uint8_t *angle,
                               uint8_t *radius, float *room) {
    float *phi = room, *rho = room + n, *some = rho + n, *lo = some + n, *hi = lo + n;
    const float turn = (float)(2 * KVMEM__PI);
    float start, min, step, most = 0, least = 65504, far = 0;
    int t, m = 0, cx, cy;
    kvmem__polark_channels(p, j, &cx, &cy);
    for (t = 0; t < n; t++, x += p->d) {
        const float a = kvmem__finite(x[cx]), b = cy < 0 ? 0.0f : kvmem__finite(x[cy]);
        const float f = (float)atan2((double)b, (double)a);
        phi[t] = f < 0 ? f + turn : f;
        if (phi[t] >= turn) phi[t] = 0;
        rho[t] = KVMEM__MIN(sqrtf(a * a + b * b), 65504.0f);
        most = KVMEM__MAX(most, rho[t]);
        least = KVMEM__MIN(least, rho[t]);
        if (rho[t] > 0) some[m++] = phi[t];
    }
    kvmem__polark_fit(head, least, most, p->radius, &min, &step);
    for (t = 0; t < n; t++) radius[(size_t)t * (size_t)p->pairs] = kvmem__polark_code(rho[t] - min, step, p->radius);
    start = m == 0 ? 0 : p->zero ? some[0] : kvmem__polark_start(some, m, lo, hi);
    for (t = 1; t < m && p->zero; t++) start = KVMEM__MIN(start, some[t]);
    for (t = 0; t < n; t++) { /* from now on measured from the cut */
        phi[t] = phi[t] >= start ? phi[t] - start : phi[t] + turn - start;
        if (rho[t] > 0) far = KVMEM__MAX(far, phi[t]);
    }
    kvmem__polark_fit(head + 4, start, start + far, p->angle, &min, &step);
    for (t = 0; t < n; t++)
        angle[(size_t)t * (size_t)p->pairs] = kvmem__polark_code(phi[t] + (start - min), step, p->angle);
}
static int kvmem__polark_scratch(const double *par, int d, int n) { /* numbers of one pair, codes of all */
    const kvmem__polark p = kvmem__polark_of(par, d);
    return 5 * n + (2 * n * p.pairs + 3) / 4;
}
static void kvmem__polark_encode(const kvmem_coded *b, const float *x, int t0, int n) {
    const kvmem__polark p = kvmem__polark_of(b->par, b->d);
    const size_t all = (size_t)n * (size_t)p.pairs;
    uint8_t *angle = (uint8_t *)(b->scratch + 5 * n), *radius = angle + all, *row = kvmem__row_at(b, t0);
    int j, t;
    for (j = 0; j < p.pairs; j++)
        kvmem__polark_pair(&p, j, x, n, b->head + KVMEM__PK_HEAD * j, angle + j, radius + j, b->scratch);
    for (t = 0; t < n; t++, row += b->row_bytes, angle += p.pairs, radius += p.pairs) {
        kvmem__bits_put(row, angle, p.pairs, p.angle);
        kvmem__bits_put(row + p.at_radius, radius, p.pairs, p.radius);
    }
}

/* Pairs j0 .. j0 + n of a head: cos and sin of their angles (n, 2^angle), radius of code 0 and step
   (n, 2). */
static void kvmem__polark_table(const kvmem__polark *p, const uint8_t *head, int j0, int n, float *c, float *s,
                                float *r) {
    int j, i;
    for (j = 0, head += KVMEM__PK_HEAD * j0; j < n; j++, head += KVMEM__PK_HEAD) {
        const float step = kvmem__f16_to_f32(kvmem__le16(head + 4)), min = kvmem__f16_to_f32(kvmem__le16(head + 6));
        r[2 * j + 1] = kvmem__f16_to_f32(kvmem__le16(head));
        r[2 * j] = kvmem__f16_to_f32(kvmem__le16(head + 2)) + 0.5f * r[2 * j + 1];
        for (i = 0; i < 1 << p->angle; i++) kvmem__sincos(min + step * ((float)i + 0.5f), s++, c++);
    }
}
static void kvmem__polark_expand(const kvmem_coded *b, float *out, int t0, int n) {
    const kvmem__polark p = kvmem__polark_of(b->par, b->d);
    const int k = 1 << p.angle, most = KVMEM__PK_ROOM / k;
    float c[KVMEM__PK_ROOM], s[KVMEM__PK_ROOM], r[KVMEM__PK_ROOM];
    uint8_t angle[KVMEM__PK_ROOM], radius[KVMEM__PK_ROOM];
    int j0, j, m, t, cx, cy;
    for (j0 = 0; j0 < p.pairs; j0 += m) {
        m = KVMEM__MIN(most, p.pairs - j0);
        kvmem__polark_table(&p, b->head, j0, m, c, s, r);
        for (t = 0; t < n; t++) {
            const uint8_t *row = kvmem__row_at(b, t0 + t);
            float *o = out + (size_t)t * (size_t)b->d;
            kvmem__bits_get(angle, row, j0, m, p.angle);
            kvmem__bits_get(radius, row + p.at_radius, j0, m, p.radius);
            for (j = 0; j < m; j++) {
                const float rho = r[2 * j] + r[2 * j + 1] * (float)radius[j];
                kvmem__polark_channels(&p, j0 + j, &cx, &cy);
                o[cx] = rho * c[j * k + angle[j]];
                if (cy >= 0) o[cy] = rho * s[j * k + angle[j]];
            }
        }
    }
}
/* tp (m, 2^angle) of pairs j0 .. j0 + m for one query. */
static void kvmem__polark_query(const kvmem__polark *p, int j0, int m, const float *c, const float *s, const float *q,
                                float *tp) {
    const int k = 1 << p->angle;
    int j, i, cx, cy;
    for (j = 0; j < m; j++, c += k, s += k, tp += k) {
        float a, b;
        kvmem__polark_channels(p, j0 + j, &cx, &cy);
        a = q[cx];
        b = cy < 0 ? 0.0f : q[cy];
        for (i = 0; i < k; i++) tp[i] = a * c[i] + b * s[i];
    }
}
static void kvmem__polark_dot(const kvmem_coded *b, float *out, int ld, int t0, int n, const float *q, int nq) {
    const kvmem__polark p = kvmem__polark_of(b->par, b->d);
    const int k = 1 << p.angle, most = KVMEM__PK_ROOM / k;
    float c[KVMEM__PK_ROOM], s[KVMEM__PK_ROOM], r[KVMEM__PK_ROOM], tp[KVMEM__PK_ROOM];
    uint8_t angle[KVMEM__PK_ROOM], radius[KVMEM__PK_ROOM];
    int j0, j, m, t, i;
    for (j0 = 0; j0 < p.pairs; j0 += m) {
        m = KVMEM__MIN(most, p.pairs - j0);
        kvmem__polark_table(&p, b->head, j0, m, c, s, r);
        for (i = 0; i < nq; i++) {
            float *o = out + (size_t)i * (size_t)ld;
            kvmem__polark_query(&p, j0, m, c, s, q + (size_t)i * (size_t)b->d, tp);
            for (t = 0; t < n; t++) {
                const uint8_t *row = kvmem__row_at(b, t0 + t);
                float sum = 0;
                kvmem__bits_get(angle, row, j0, m, p.angle);
                kvmem__bits_get(radius, row + p.at_radius, j0, m, p.radius);
                for (j = 0; j < m; j++)
                    sum += (r[2 * j] + r[2 * j + 1] * (float)radius[j]) * tp[j * k + angle[j]];
                o[t] = j0 ? o[t] + sum : sum;
            }
        }
    }
}
static const kvmem_param kvmem__params_polark[] = {
    { "angle", 4, 1, 8, NULL, 1, "bits of an angle" },
    { "radius", 4, 1, 8, NULL, 1, "bits of a radius" },
    { "pairs", 0, 0, 1, "neox|norm", 1, "channels that RoPE turns together: j and j + d/2; 2j and 2j + 1" },
    { "cut", 0, 0, 1, "gap|zero", 1, "where angles begin: after their widest gap; at 0, as in the released code" },
    KVMEM__CODEC_COMMON
};
static const kvmem_codec kvmem__codec_polark = {
    { "polark", "RoPE pairs as radius and angle over a page, (angle + radius) / 2 + 32 / page bits a value",
      "Wu et al. 2025, arXiv 2502.00527", kvmem__params_polark, 0 }, KVMEM_CODEC_KEYS,
    kvmem__polark_bytes, kvmem__polark_head_bytes, NULL, NULL, NULL, NULL, NULL, kvmem__polark_scratch, NULL, NULL,
    kvmem__polark_encode, kvmem__polark_expand, NULL, NULL, kvmem__polark_dot, NULL, NULL, NULL
};

/* ==== >>codec_qjl : the signs of a random sketch of a key, and its norm. stage: codec.k ==========
   Amir Zandieh, Majid Daliri, Insu Han. QJL: 1-Bit Quantized JL Transform for KV Cache Quantization
   with Zero Overhead. 2024. arXiv 2406.03482.   Code: amirzandieh/QJL models/llama2_utils_qjl.py,
   qjl_kernel/csrc/qjl_quant_kernel.cu, qjl_score_kernel.cu.
   Idea: of the sketch k S only the signs and |k| are kept; with the whole sketch of the query the
   score comes out right on average over S, and no group needs a scale or a zero.
     S (d, m)      d columns at a time a random orthogonal matrix times sqrt(d)    (sketch=orth)
     score         sqrt(pi/2) / m |k| sum_j sign((k S)_j) (q S)_j,     E[score] = <q, k>
   The `outliers` channels of largest norm over a page have a sketch of their own, of mo columns of
   S: with q_out = q on the page's outlier channels, q_in the rest of q, and k likewise,
     score = sqrt(pi/2) ( |k_in| <sign(k_in S), q_in S> / m + |k_out| <sign(k_out S), q_out S> / mo )
   E (score - <q, k>)^2 = D |q|^2 |k|^2 / d with D = pi/2 d/m for sketch=gauss, (pi/2 - 1) d/m for
   sketch=orth. m and mo are given as bits a channel: m=2 is a sketch of 2 d bits.
   head: the outlier channels, a byte each (two for d > 256).  row: |k_in|, |k_out| (halves) | m
   signs, each 1 for > 0 | mo signs.   bits/value: m + mo + (32 + 8 outliers / page) / d; 4.27 for
   the defaults at d=128; outliers=0: m + 16 / d.
   defaults: m=2 mo=2 outliers=8, the code's for d=128 (its first 15 layers: m=4 mo=1), page 32, the
   newest 128 rows exact, V by kivi at 2 bits: preset qjl.   reads: K after RoPE.   state: none; S
   is shared by all heads.
   cost: d m products to code a key and to sketch a query, m + mo additions a key and query.
   choices: |k_in| is stored, not |k| (same bytes; the difference of two large squares would lose
   it). A page is the code's group of 32. Above d=256 the blocks of S are randomized Hadamard
   rotations (sketch=rht; orthogonalising would take too long). The code's second rotation of S
   changes nothing: its blocks are uniform already.
   guards: NaN counts as 0, values and norms stop at +-65504; a row of zeros scores 0.
   test: tests/codec_qjl.c */
enum { KVMEM__QJL_M, KVMEM__QJL_MO, KVMEM__QJL_OUTLIERS, KVMEM__QJL_SKETCH, KVMEM__QJL_SEED };
enum { KVMEM__QJL_ORTH, KVMEM__QJL_GAUSS, KVMEM__QJL_RHT };
#define KVMEM__QJL_CHUNK 256 /* columns of S at a time; a multiple of 16 */

typedef struct kvmem__qjl {
    int d, m, mo, outliers;          /* columns of both sketches; channels of the second */
    size_t at_in, at_out, bytes;     /* of a row: where the signs begin, its size */
    float scale, scale_o;            /* sqrt(pi/2) / m, / mo */
} kvmem__qjl;
static kvmem__qjl kvmem__qjl_of(const double *par, int d) {
    const double half = sqrt(KVMEM__PI / 2);
    kvmem__qjl p;
    p.d = d;
    p.m = KVMEM__MAX((int)(par[KVMEM__QJL_M] * d + 0.5), 1);
    p.mo = KVMEM__MIN((int)(par[KVMEM__QJL_MO] * d + 0.5), p.m);
    p.outliers = p.mo ? KVMEM__MIN((int)par[KVMEM__QJL_OUTLIERS], d / 2) : 0;
    if (!p.outliers) p.mo = 0;
    p.at_in = p.outliers ? 4 : 2;
    p.at_out = p.at_in + kvmem__bits_bytes(p.m, 1);
    p.bytes = p.at_out + kvmem__bits_bytes(p.mo, 1);
    p.scale = (float)(half / p.m);
    p.scale_o = p.mo ? (float)(half / p.mo) : 0;
    return p;
}
static size_t kvmem__qjl_bytes(const double *par, int d) { return kvmem__qjl_of(par, d).bytes; }
static size_t kvmem__qjl_head_bytes(const kvmem_coded *b, const float *x) {
    (void)x;
    return (size_t)kvmem__qjl_of(b->par, b->d).outliers * (b->d > 256 ? 2 : 1);
}
static int kvmem__qjl_channel(const kvmem_coded *b, int i) { /* outlier i of the block */
    return b->d > 256 ? (int)kvmem__le16(b->head + 2 * i) : b->head[i];
}
static size_t kvmem__qjl_table_bytes(const double *par, int d) {
    return (size_t)d * (size_t)kvmem__qjl_of(par, d).m * sizeof(float);
}
static int kvmem__qjl_q_floats(const double *par, int d) { return d + kvmem__qjl_of(par, d).m; }

/* table: S (d, m), d columns at a time. */
static void kvmem__qjl_build(const double *par, int d, void *table) {
    const kvmem__qjl p = kvmem__qjl_of(par, d);
    const uint64_t seed = (uint64_t)par[KVMEM__QJL_SEED];
    const int sketch = (int)par[KVMEM__QJL_SKETCH];
    const int rht = sketch == KVMEM__QJL_RHT || (sketch == KVMEM__QJL_ORTH && d > 256);
    const float scale = sqrtf((float)d);
    float *s = (float *)table, unit[KVMEM_MAX_WIDTH], signs[2 * KVMEM_MAX_WIDTH];
    int j0, c, j;
    for (j0 = 0; j0 < p.m; j0 += d) {
        const int n = KVMEM__MIN(d, p.m - j0);
        float *block = s + j0;
        if (rht) kvmem__signs(signs, 2 * d, seed + (uint64_t)(j0 / d));
        for (c = 0; c < d; c++) {
            memset(unit, 0, sizeof unit);
            unit[c] = 1;
            if (rht) kvmem__spin(unit, signs, d);
            for (j = 0; j < n; j++)
                block[(size_t)c * (size_t)p.m + (size_t)j] =
                    rht ? unit[j] : kvmem__gauss(seed, (uint64_t)c * (uint64_t)p.m + (uint64_t)(j0 + j));
        }
        if (sketch == KVMEM__QJL_GAUSS) continue;
        if (!rht) kvmem__orthonormal(block, d, n, p.m);
        for (c = 0; c < d; c++)
            for (j = 0; j < n; j++) block[(size_t)c * (size_t)p.m + (size_t)j] *= scale;
    }
}

/* out (n) = columns j0 .. j0 + n of x S. */
static void kvmem__qjl_sketch(const kvmem_coded *b, const kvmem__qjl *p, const float *x, int j0, int n, float *out) {
    const float *s = (const float *)b->table + j0;
    int c, j;
    for (j = 0; j < n; j++) out[j] = 0;
    for (c = 0; c < p->d; c++, s += p->m)
        for (j = 0; j < n && x[c] != 0; j++) out[j] += x[c] * s[j];
}
/* The same of x on the block's outlier channels. */
static void kvmem__qjl_sketch_out(const kvmem_coded *b, const kvmem__qjl *p, const float *x, int j0, int n,
                                  float *out) {
    int i, j;
    for (j = 0; j < n; j++) out[j] = 0;
    for (i = 0; i < p->outliers; i++) {
        const int c = kvmem__qjl_channel(b, i);
        const float *s = (const float *)b->table + (size_t)c * (size_t)p->m + (size_t)j0;
        for (j = 0; j < n; j++) out[j] += x[c] * s[j];
    }
}
/* sum of v (n), those whose bit is 0 with a minus. */
static float kvmem__sign_sum(const uint8_t *bits, const float *v, int n) {
    float sum = 0;
    int j;
    for (j = 0; j < n; j++) sum += bits[j / 8] >> (j % 8) & 1 ? v[j] : -v[j];
    return sum;
}
/* The channels of largest norm over the rows, lower ones first where equal, into the head. */
static void kvmem__qjl_find(const kvmem_coded *b, const kvmem__qjl *p, const float *x) {
    float energy[KVMEM_MAX_WIDTH];
    int t, c, i;
    for (c = 0; c < p->d; c++) energy[c] = 0;
    for (t = 0; t < b->n; t++, x += p->d)
        for (c = 0; c < p->d; c++) energy[c] += kvmem__finite(x[c]) * kvmem__finite(x[c]);
    for (i = 0; i < p->outliers; i++) {
        int best = 0;
        for (c = 1; c < p->d; c++)
            if (energy[c] > energy[best]) best = c;
        energy[best] = -1;
        if (p->d > 256) kvmem__put16(b->head + 2 * i, (uint16_t)best);
        else b->head[i] = (uint8_t)best;
    }
}
/* Norm of x (d) as a half at `norm`, signs of its sketch of m columns at bits. */
static void kvmem__qjl_put(const kvmem_coded *b, const kvmem__qjl *p, const float *x, int m, uint8_t *norm,
                           uint8_t *bits) {
    float y[KVMEM__QJL_CHUNK];
    uint8_t bit[KVMEM__QJL_CHUNK];
    int j0, j;
    kvmem__put16(norm, kvmem__half_sat(sqrtf(kvmem__dot_plain(x, x, p->d))));
    for (j0 = 0; j0 < m; j0 += KVMEM__QJL_CHUNK) {
        const int n = KVMEM__MIN(KVMEM__QJL_CHUNK, m - j0);
        kvmem__qjl_sketch(b, p, x, j0, n, y);
        for (j = 0; j < n; j++) bit[j] = y[j] > 0;
        kvmem__bits_put(bits + j0 / 8, bit, n, 1);
    }
}
static void kvmem__qjl_encode(const kvmem_coded *b, const float *x, int t0, int n) {
    const kvmem__qjl p = kvmem__qjl_of(b->par, b->d);
    float in[KVMEM_MAX_WIDTH], out[KVMEM_MAX_WIDTH];
    int t, c, i;
    if (p.outliers) kvmem__qjl_find(b, &p, x);
    for (t = 0; t < n; t++, x += b->d) {
        uint8_t *row = kvmem__row_at(b, t0 + t);
        for (c = 0; c < b->d; c++) { in[c] = kvmem__finite(x[c]); out[c] = 0; }
        for (i = 0; i < p.outliers; i++) {
            c = kvmem__qjl_channel(b, i);
            out[c] = in[c];
            in[c] = 0;
        }
        kvmem__qjl_put(b, &p, in, p.m, row, row + p.at_in);
        if (p.outliers) kvmem__qjl_put(b, &p, out, p.mo, row + 2, row + p.at_out);
    }
}
/* Norms of a row times the factors of the estimate. */
static void kvmem__qjl_norms(const kvmem__qjl *p, const uint8_t *row, float *in, float *out) {
    *in = p->scale * kvmem__f16_to_f32(kvmem__le16(row));
    *out = p->outliers ? p->scale_o * kvmem__f16_to_f32(kvmem__le16(row + 2)) : 0;
}
/* The vector whose products with queries the scores are: sqrt(pi/2)/m |k| S sign(k S) by channel.
   */
static void kvmem__qjl_expand(const kvmem_coded *b, float *out, int t0, int n) {
    const kvmem__qjl p = kvmem__qjl_of(b->par, b->d);
    float in_norm, out_norm;
    int t, c, i;
    for (t = 0; t < n; t++, out += b->d) {
        const uint8_t *row = kvmem__row_at(b, t0 + t);
        const float *s = (const float *)b->table;
        kvmem__qjl_norms(&p, row, &in_norm, &out_norm);
        for (c = 0; c < b->d; c++, s += p.m) out[c] = in_norm * kvmem__sign_sum(row + p.at_in, s, p.m);
        for (i = 0; i < p.outliers; i++) {
            c = kvmem__qjl_channel(b, i);
            s = (const float *)b->table + (size_t)c * (size_t)p.m;
            out[c] = out_norm * kvmem__sign_sum(row + p.at_out, s, p.mo);
        }
    }
}
/* A query and its sketch: out (d + m). */
static void kvmem__qjl_q(const kvmem_coded *b, float *out, const float *q) {
    const kvmem__qjl p = kvmem__qjl_of(b->par, b->d);
    memcpy(out, q, (size_t)b->d * sizeof *out);
    kvmem__qjl_sketch(b, &p, q, 0, p.m, out + b->d);
}
/* Columns j0 .. j0 + n of both sketches of a prepared query: in (n), out (n; zeros past mo). */
static void kvmem__qjl_split(const kvmem_coded *b, const kvmem__qjl *p, const float *q, int j0, int n, float *in,
                             float *out) {
    int j;
    kvmem__qjl_sketch_out(b, p, q, j0, n, out);
    for (j = 0; j < n; j++) in[j] = q[p->d + j0 + j] - out[j];
}
static void kvmem__qjl_dot(const kvmem_coded *b, float *s, int ld, int t0, int n, const float *q, int nq) {
    const kvmem__qjl p = kvmem__qjl_of(b->par, b->d);
    float in[KVMEM__QJL_CHUNK], out[KVMEM__QJL_CHUNK], in_norm, out_norm;
    int i, j0, t;
    for (i = 0; i < nq; i++, s += ld, q += p.d + p.m) {
        for (j0 = 0; j0 < p.m; j0 += KVMEM__QJL_CHUNK) {
            const int m = KVMEM__MIN(KVMEM__QJL_CHUNK, p.m - j0);
            const int mo = KVMEM__MAX(KVMEM__MIN(KVMEM__QJL_CHUNK, p.mo - j0), 0);
            kvmem__qjl_split(b, &p, q, j0, m, in, out);
            for (t = 0; t < n; t++) {
                const uint8_t *row = kvmem__row_at(b, t0 + t);
                float sum;
                kvmem__qjl_norms(&p, row, &in_norm, &out_norm);
                sum = in_norm * kvmem__sign_sum(row + p.at_in + j0 / 8, in, m);
                if (mo) sum += out_norm * kvmem__sign_sum(row + p.at_out + j0 / 8, out, mo);
                s[t] = j0 ? s[t] + sum : sum;
            }
        }
    }
}
static const kvmem_param kvmem__params_qjl[] = {
    { "m", 2, 0.125, 16, NULL, 0, "bits of the sketch, a channel" },
    { "mo", 2, 0, 16, NULL, 0, "bits of the outlier channels' sketch, a channel; at most m" },
    { "outliers", 8, 0, 64, NULL, 1, "channels of largest norm over a page that have a sketch of their own" },
    { "sketch", 0, 0, 2, "orth|gauss|rht", 1, "S: random orthogonal; independent normal; randomized Hadamard" },
    { "seed", 1, 0, 1e9, NULL, 1, "of S" },
    KVMEM__CODEC_COMMON
};
static const kvmem_codec kvmem__codec_qjl = {
    { "qjl", "signs of a random sketch and the norm, m + mo + 32 / d bits a value and the page's outlier channels",
      "Zandieh et al. 2024, arXiv 2406.03482", kvmem__params_qjl, 0 }, KVMEM_CODEC_KEYS,
    kvmem__qjl_bytes, kvmem__qjl_head_bytes, kvmem__qjl_table_bytes, kvmem__qjl_build, NULL, NULL, NULL, NULL, NULL,
    kvmem__qjl_q_floats, kvmem__qjl_encode, kvmem__qjl_expand, NULL, kvmem__qjl_q, kvmem__qjl_dot, NULL, NULL, NULL
};

/* ==== >>codec_table : all codecs, and what every codec may leave out ===============================
   Both codec stages choose from this table. f32, the exact one, is first. The loops below stand in for
   what a codec leaves NULL; they go through `expand`, KVMEM_MAX_WIDTH floats at a time. */
static const kvmem_codec *kvmem__codec_table(int i) {
    static const kvmem_codec *const table[] = {
        &kvmem__codec_f32, &kvmem__codec_f16, &kvmem__codec_bf16, &kvmem__codec_q8_0, &kvmem__codec_q4_0,
        &kvmem__codec_qjl,
        &kvmem__codec_polark,
        &kvmem__codec_q4_1, &kvmem__codec_q5_0, &kvmem__codec_q5_1, &kvmem__codec_iq4_nl,
        &kvmem__codec_polarquant,
        &kvmem__codec_kivi,
        &kvmem__codec_kvquant,
        &kvmem__codec_kvquant_post,
        &kvmem__codec_kvquant_v, &kvmem__codec_turboquant,
        &kvmem__codec_lowrank, &kvmem__codec_octopus,
        &kvmem__codec_rotatekv
    };
    return i >= 0 && i < (int)(sizeof table / sizeof table[0]) ? table[i] : NULL;
}
/* Without a head rows know nothing of each other. */
KVMEM__UNUSED static int kvmem__is_block_codec(const kvmem_codec *c) { return c->head_bytes != NULL; }
/* A codec chosen for a cache: fast functions put in, parameters, sizes for rows of d values. The table is
   the caller's to build. */
static void kvmem__use_init(kvmem_codec_use *u, const kvmem_codec *codec, const double *par, int d, int isa) {
    memset(u, 0, sizeof *u);
    u->fn = *codec;
    memcpy(u->par, par, sizeof u->par);
    if (u->fn.finish == kvmem__rot_finish && par[KVMEM__ROT] == 0) u->fn.finish = NULL; /* rows stay as they are */
    u->d = d;
    if (u->fn.head_bytes) { /* a codec whose parameters say that it needs no head has none */
        kvmem_coded b;
        memset(&b, 0, sizeof b);
        b.par = u->par;
        b.d = d;
        b.n = 1;
        if (!u->fn.head_bytes(&b, NULL)) u->fn.head_bytes = NULL;
    }
    if (u->fn.fast) u->fn.fast(&u->fn, isa);
    u->row_bytes = u->fn.row_bytes(u->par, d);
    u->width = u->fn.width ? u->fn.width(u->par, d) : d;
    u->q_floats = u->fn.q_floats ? u->fn.q_floats(u->par, d) : u->width;
    u->state_floats = u->fn.state_floats ? u->fn.state_floats(u->par, d) : 0;
    u->table_bytes = u->fn.table_bytes ? u->fn.table_bytes(u->par, d) : 0;
    u->center = (int)kvmem__param_of(&codec->e, par, "center", 0);
    u->residual = (int)kvmem__param_of(&codec->e, par, "residual", 0);
    u->flush = (int)kvmem__param_of(&codec->e, par, "flush", 0);
    u->sinks = (int)kvmem__param_of(&codec->e, par, "sinks", 0);
}
/* A block of n rows: head and rows NULL where a function reads no block. */
static kvmem_coded kvmem__coded_of(const kvmem_codec_use *u, const float *state, uint8_t *head, size_t head_bytes,
                                   uint8_t *rows, int n) {
    kvmem_coded b;
    b.par = u->par;
    b.d = u->d;
    b.n = n;
    b.table = u->table;
    b.state = state;
    b.head = head;
    b.rows = rows;
    b.head_bytes = head_bytes;
    b.row_bytes = u->row_bytes;
    b.scratch = NULL;
    return b;
}
/* The to->n rows kept of a block, in a block of their own. */
KVMEM__UNUSED static void kvmem__coded_cut(const kvmem_codec_use *u, const kvmem_coded *to, const kvmem_coded *from,
                             const int *kept) {
    int t;
    if (u->fn.cut) { u->fn.cut(to, from, kept); return; }
    if (from->head_bytes) memcpy(to->head, from->head, from->head_bytes);
    for (t = 0; t < to->n; t++) memcpy(kvmem__row_at(to, t), kvmem__row_at(from, kept[t]), from->row_bytes);
}
static void kvmem__coded_prepare(const kvmem_codec_use *u, const kvmem_coded *b, float *out, const float *q) {
    if (u->fn.q_prepare) u->fn.q_prepare(b, out, q);
    else memcpy(out, q, (size_t)u->q_floats * sizeof(float));
}
/* Rows t0 .. t0 + n as they were before coding, up to its error: out (n, d). */
static void kvmem__coded_decode(const kvmem_codec_use *u, const kvmem_coded *b, float *out, int t0, int n) {
    float v[KVMEM_MAX_WIDTH];
    const int m = KVMEM_MAX_WIDTH / u->width;
    int t, i;
    if (!u->fn.finish) { u->fn.expand(b, out, t0, n); return; }
    for (t = 0; t < n; t += m) {
        const int k = KVMEM__MIN(m, n - t);
        u->fn.expand(b, v, t0 + t, k);
        for (i = 0; i < k; i++) u->fn.finish(b, out + (size_t)(t + i) * (size_t)b->d, v + i * u->width);
    }
}
static void kvmem__coded_dot(const kvmem_codec_use *u, const kvmem_coded *b, float *s, int ld, int t0, int n,
                             const float *q, int nq) {
    if (u->fn.dot) u->fn.dot(b, s, ld, t0, n, q, nq);
    else kvmem__dot_by_expand(u->fn.expand, b, u->width, u->q_floats, s, ld, t0, n, q, nq);
}
static void kvmem__coded_axpy(const kvmem_codec_use *u, const kvmem_coded *b, float *acc, int t0, int n,
                              const float *w, int ld, int nq) {
    if (u->fn.axpy) u->fn.axpy(b, acc, t0, n, w, ld, nq);
    else kvmem__axpy_by_expand(u->fn.expand, b, u->width, acc, t0, n, w, ld, nq);
}

/* ==== >>cache : arena, pages, lanes ===============================================================
   The cache is n_layers * n_kv_heads lanes. A lane is a table of pages; every page but the last is full,
   so entry t of a lane is row t % P of page t / P, and entries lie in rising position order.

       lane (layer l, KV head g):   [page 0: P rows][page 1: P rows][page 2: n % P rows]
       page:   header | pos (cap) int32 | stats (n_stats, cap) float | K rows (cap) coded | V rows (cap) coded

   The last page of a lane has room for a quarter of P at a time (cap), so that short lanes are cheap.
   All memory comes from the arena, which counts it by kind and enforces the byte ceiling: what would pass
   it is not allocated. Pages are freed one by one, so an evicted page is memory the allocator has back.
   Copies of a cache share pages (refs > 1); a shared page is copied before it is written.
   Uses: platform, errors, numerics, backend, codecs. */
struct kvmem_arena {
    kvmem_allocator a;
    size_t limit;               /* 0: none */
    kvmem_bytes_part live, peak;
    int refs;                   /* caches that use it */
    struct kvmem__use *uses;    /* codecs in use, freed with the arena */
};
typedef struct kvmem__use {
    kvmem_codec_use use;
    const kvmem_entry *entry;   /* the table row it came from */
    void *user;
    struct kvmem__use *next;
} kvmem__use;

struct kvmem_page {
    int refs, cap;              /* owners; rows there is room for */
    const kvmem_codec_use *kc, *vc;
    int32_t *pos;               /* (cap) */
    float *stats;               /* (n_stats, cap) or NULL */
    uint8_t *k, *v;             /* (cap) coded rows */
};

/* A page's K or V as its codec sees it; rows: those in use. */
static kvmem_coded kvmem__page_k(const kvmem_page *p, int rows) {
    return kvmem__coded_of(p->kc, NULL, NULL, 0, p->k, rows);
}
static kvmem_coded kvmem__page_v(const kvmem_page *p, int rows) {
    return kvmem__coded_of(p->vc, NULL, NULL, 0, p->v, rows);
}

static void kvmem__set_cap(kvmem_cache *c);
static int kvmem__recomputes(const kvmem_recipe *r);
static kvmem_status kvmem__add_event(kvmem_cache *c, int64_t pos);
static void kvmem__view_scratch_end(kvmem_cache *c);
static float *kvmem__view_scratch(const kvmem_view *v, size_t floats);

/* --- arena --- */
static size_t kvmem__part_total(const kvmem_bytes_part *p) {
    return p->k + p->v + p->meta + p->stats + p->scratch;
}
/* Allocate part->total bytes, counted by kind. NULL: over the limit (*over = 1) or no memory. */
static void *kvmem__arena_take(kvmem_arena *ar, const kvmem_bytes_part *part, int *over) {
    void *p;
    *over = 0;
    if (ar->limit && (part->total > ar->limit || ar->live.total > ar->limit - part->total)) {
        *over = 1;
        return NULL;
    }
    p = kvmem__alloc(&ar->a, part->total);
    if (!p) return NULL;
    ar->live.k += part->k;
    ar->live.v += part->v;
    ar->live.meta += part->meta;
    ar->live.stats += part->stats;
    ar->live.scratch += part->scratch;
    ar->live.total += part->total;
    if (ar->live.total > ar->peak.total) ar->peak = ar->live;
    return p;
}
static void kvmem__arena_give(kvmem_arena *ar, void *p, const kvmem_bytes_part *part) {
    if (!p) return;
    kvmem__release(&ar->a, p, part->total);
    ar->live.k -= part->k;
    ar->live.v -= part->v;
    ar->live.meta -= part->meta;
    ar->live.stats -= part->stats;
    ar->live.scratch -= part->scratch;
    ar->live.total -= part->total;
}
/* One kind of bytes: which is 2 meta, 3 stats, 4 scratch. */
static kvmem_bytes_part kvmem__part(int which, size_t size) {
    kvmem_bytes_part p;
    memset(&p, 0, sizeof p);
    if (which == 2) p.meta = size;
    if (which == 3) p.stats = size;
    if (which == 4) p.scratch = size;
    p.total = size;
    return p;
}
static kvmem_status kvmem__no_room(kvmem_cache *c, int over, size_t size, const char *what) {
    if (over) return kvmem__fail(&c->error, KVMEM_OVER_BUDGET,
        "%s needs %zu bytes more; %zu of the limit of %zu bytes are in use", what, size,
        c->arena->live.total, c->arena->limit);
    return kvmem__fail(&c->error, KVMEM_NO_MEMORY, "%s: the allocator gave no %zu bytes", what, size);
}

/* --- sizes that follow from shape and recipe: shared by init and by kvmem_estimate --- */
#define KVMEM__ALIGN16(x) (((x) + 15) & ~(size_t)15)
#define KVMEM__CHUNK 1024      /* entries whose attention is summed in one go; partial sums are merged in
                                  order, so that any number of threads gives the same bits */

typedef struct kvmem__plan {
    kvmem_codec_use k, v;
    unsigned reads;
    int n_stats, ring, page, lanes;
    size_t head, page_bytes;              /* page header with positions; whole page */
    size_t block_bytes, ring_bytes;       /* fixed arrays; ring of queries (counted as statistics) */
    size_t worker_floats;                 /* scratch of one attention worker */
    size_t limit;
    int lane_cap;
} kvmem__plan;

static size_t kvmem__page_head(int page) {
    return KVMEM__ALIGN16(sizeof(kvmem_page)) + KVMEM__ALIGN16((size_t)page * sizeof(int32_t));
}
static size_t kvmem__page_size(int page, int n_stats, const kvmem_codec_use *k, const kvmem_codec_use *v) {
    return kvmem__page_head(page) + KVMEM__ALIGN16((size_t)n_stats * (size_t)page * sizeof(float)) +
           KVMEM__ALIGN16((size_t)page * k->row_bytes) + KVMEM__ALIGN16((size_t)page * v->row_bytes);
}
/* Slots of a lane's page table that hold n pages: powers of two from 4 on. */
static int kvmem__table_cap(int n) {
    int cap = 4;
    while (cap < n) cap *= 2;
    return cap;
}
/* Scratch of reducing one layer whose lanes hold at most n entries: scores of all lanes, selection
   indices, and two arrays that a score function may ask for. */
static size_t kvmem__commit_bytes(int G, size_t n) { return ((size_t)G + 5) * n * sizeof(float); }
/* Scratch of append and attend for a block of n tokens with one worker of w1 bytes. */
static size_t kvmem__attend_bytes(const kvmem_shape *s, int n, size_t w1) {
    return (size_t)n * (size_t)s->n_heads * (size_t)(s->head_dim + 1) * sizeof(float) + w1;
}
/* Floats of one attention worker: r queries rotated and prepared, logits of a page, and twice (this
   chunk, all chunks so far) maximum, sum and weighted values per query. */
static size_t kvmem__worker_floats(const kvmem_shape *s, const kvmem__plan *p) {
    const size_t r = (size_t)(s->n_heads / s->n_kv_heads), d = (size_t)s->head_dim;
    return r * (d + (size_t)p->k.q_floats + (size_t)p->page + 2 * (d + 2));
}
/* Scratch of kvmem_view_attention on one lane: four partial sums and the logits of one group. */
#define KVMEM__VIEW_PARTS 4
static size_t kvmem__view_bytes(int r, size_t n) {
    return (size_t)KVMEM__VIEW_PARTS * ((size_t)r + 1) * n * sizeof(float);
}
static void kvmem__resolve_codec(kvmem_codec_use *u, const kvmem_choice *ch, const kvmem_backend *b, int d) {
    kvmem__use_init(u, (const kvmem_codec *)(const void *)ch->entry, ch->par, d, b->isa);
}
static kvmem_status kvmem__check_shape(const kvmem_shape *s, const kvmem_recipe *r, kvmem_error *e) {
    int l, i;
    if (s->n_layers < 1 || s->n_layers > 4096 || s->n_kv_heads < 1 || s->n_kv_heads > 4096 ||
        s->n_heads < 1 || s->n_heads > 65536 || s->head_dim < 1 || s->head_dim > 4096)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT,
            "shape: n_layers %d, n_heads %d, n_kv_heads %d, head_dim %d: each must be positive, at most 4096 "
            "(n_heads 65536)", s->n_layers, s->n_heads, s->n_kv_heads, s->head_dim);
    if (s->n_heads % s->n_kv_heads)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "shape: n_heads %d is not a multiple of n_kv_heads %d",
                           s->n_heads, s->n_kv_heads);
    if (!(s->scale >= 0 && s->scale <= FLT_MAX) || !(s->softcap >= 0 && s->softcap <= FLT_MAX))
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "shape: scale %g and softcap %g must be finite and >= 0",
                           (double)s->scale, (double)s->softcap);
    for (l = 0; s->window && l < s->n_layers; l++)
        if (s->window[l] < 0)
            return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "shape: window of layer %d is %d", l,
                               s->window[l]);
    for (l = 0; s->rope && l < s->n_layers; l++) {
        const kvmem_rope *p = &s->rope[l];
        if (p->n_rot < 0 || p->n_rot > s->head_dim || p->n_rot % 2 || (p->n_rot && !p->inv_freq))
            return kvmem__fail(e, KVMEM_BAD_ARGUMENT,
                "shape: rope of layer %d rotates %d channels of %d; it must be even, in range, with inv_freq", l,
                p->n_rot, s->head_dim);
        for (i = 0; i < p->n_rot / 2; i++)
            if (!(fabs((double)p->inv_freq[i]) <= DBL_MAX))
                return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "shape: rope of layer %d, inv_freq[%d] is not finite", l, i);
    }
    if (!s->rope && ((const kvmem_place_entry *)(const void *)r->stage[KVMEM_PLACE].entry)->fn)
        return kvmem__fail(e, KVMEM_BAD_RECIPE,
            "place=%s moves keys to other RoPE positions: the shape must have rope, so that the cache rotates",
            r->stage[KVMEM_PLACE].entry->word);
    return KVMEM_OK;
}
/* Attention of many queries (section tiles) works on units of KVMEM__TILE_ROWS (token, query head) rows
   of one KV head, if the block has KVMEM__TILE_MIN tokens. */
#define KVMEM__TILE_MIN 8
#define KVMEM__TILE_ROWS 64
typedef struct kvmem__tile {
    float *q;       /* (rows, d) rotated and scaled */
    float *s;       /* (rows, w) logits, then weights */
    float *o;       /* (rows, dp) */
    float *m, *l;   /* (rows) */
    float *k;       /* (d, w) */
    float *v;       /* (w, dp): V, and before that K as decoded */
    int rows, w, dp, tokens;
    int32_t shift;  /* q is rotated for each token's own place plus this */
    int ready;
} kvmem__tile;

#define KVMEM__UP16(x) (((x) + 15) & ~15)
/* Sizes of a unit that follow from the shape. */
static void kvmem__tile_sizes(kvmem__tile *x, int r, int d, int page) {
    memset(x, 0, sizeof *x);
    x->tokens = KVMEM__MAX(1, KVMEM__TILE_ROWS / r);
    x->rows = x->tokens * r;
    x->w = KVMEM__MIN(64, KVMEM__UP16(page));
    x->dp = KVMEM__UP16(d);
}
static size_t kvmem__tile_bytes(int r, int d, int page) {
    kvmem__tile x;
    kvmem__tile_sizes(&x, r, d, page);
    return ((size_t)x.rows * (size_t)(d + x.w + x.dp + 2) + (size_t)x.w * (size_t)(d + x.dp)) * sizeof(float);
}
/* Scratch of tiles and of further workers under a byte limit: a fixed share, so that what fits into the
   cache does not depend on the number of threads. */
static size_t kvmem__more_scratch(size_t limit) { return limit / 16; }
/* How many workers take a block of n tokens by tiles; 0: none, the block goes token by token. Under a byte
   limit the tiles may take a sixteenth of it, which kvmem__plan_cap keeps free. */
static int kvmem__tile_workers(const kvmem_cache *c, size_t limit, int n, int G) {
    const int per = KVMEM__MAX(1, KVMEM__TILE_ROWS * G / c->shape.n_heads), units = G * ((n + per - 1) / per);
    int workers = KVMEM__MIN(kvmem__threads(c->threads), units);
    if (n < KVMEM__TILE_MIN || !c->backend->isa) return 0;
    if (limit && kvmem__more_scratch(limit) / c->tile_bytes < (size_t)workers)
        workers = (int)(kvmem__more_scratch(limit) / c->tile_bytes);
    return workers;
}
/* With fewer (token, lane) pairs than would keep the threads busy, each chunk of a lane is a unit of its
   own; the floats that hold their partial results, 0 if the lanes are not cut. longest: entries of the
   longest lane. */
static size_t kvmem__split_floats(const kvmem_cache *c, size_t limit, int n, int G, int threads, int longest) {
    const size_t r = (size_t)(c->shape.n_heads / G), d = (size_t)c->shape.head_dim;
    if (limit || n * G >= 2 * threads || longest <= KVMEM__CHUNK) return 0;
    return (size_t)(n * G) * (size_t)((longest + KVMEM__CHUNK - 1) / KVMEM__CHUNK) * r * (d + 2);
}
/* How many entries fit into every lane beside the fixed parts, in whole pages. */
static int kvmem__plan_cap(const kvmem__plan *p, const kvmem_shape *s, size_t fixed) {
    const size_t w1 = p->worker_floats * sizeof(float);
    size_t reserve = fixed + kvmem__attend_bytes(s, p->page, w1) + kvmem__more_scratch(p->limit), per_page, n;
    const int r = s->n_heads / s->n_kv_heads;
    /* of one page more in every lane: pages, table slots (doubling: up to twice, old and new at once in
       one lane), commit scratch */
    per_page = (size_t)p->lanes * (p->page_bytes + 2 * sizeof(void *)) +
               kvmem__commit_bytes(s->n_kv_heads, 2 * (size_t)p->page) +
               (p->ring ? kvmem__view_bytes(r, (size_t)p->page) : 0);
    reserve += (size_t)p->lanes * 4 * sizeof(void *) + 4096;
    if (reserve >= p->limit) return 0;
    n = (p->limit - reserve) / per_page;
    if (n > (size_t)(INT_MAX / 2 / p->page)) n = (size_t)(INT_MAX / 2 / p->page);
    return (int)n * p->page;
}
static kvmem_status kvmem__make_plan(kvmem__plan *p, const kvmem_config *cfg, const kvmem_recipe *r,
                                     const kvmem_backend *b, kvmem_error *e) {
    const kvmem_shape *s = &cfg->shape;
    size_t floats = 0, ints = 0, bytes = 0, fixed, x;
    int i, l, d, L, H, ok = 1;
    memset(p, 0, sizeof *p);
    KVMEM__TRY(kvmem_recipe_check(r, e));
    if (kvmem__recomputes(r) && !r->stage[KVMEM_REDUCE].user)
        return kvmem__fail(e, KVMEM_UNSUPPORTED, "reduce=recompute: the memory layer alone cannot run the "
                           "model again; a session can");
    KVMEM__TRY(kvmem__check_shape(s, r, e));
    if (cfg->max_block < 1 || cfg->max_block > 65536)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "config: max_block %d is not in 1..65536", cfg->max_block);
    if (cfg->threads < 0) return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "config: threads %d is negative", cfg->threads);
    d = s->head_dim;
    L = s->n_layers;
    H = s->n_heads;
    p->page = r->page;
    p->lanes = L * s->n_kv_heads;
    for (i = 0; i < KVMEM_N_STAGES; i++) p->reads |= r->stage[i].entry->reads;
    p->n_stats = !!(p->reads & KVMEM_READS_ACC) + !!(p->reads & KVMEM_READS_LAST);
    if (p->reads & KVMEM_READS_QUERIES)
        for (i = 0; i < KVMEM_N_STAGES; i++)
            if (r->stage[i].entry->reads & KVMEM_READS_QUERIES) {
                const int w = (int)kvmem__param_of(r->stage[i].entry, r->stage[i].par, "window", 64);
                p->ring = KVMEM__MAX(p->ring, w);
            }
    kvmem__resolve_codec(&p->k, &r->stage[KVMEM_CODEC_K], b, d);
    kvmem__resolve_codec(&p->v, &r->stage[KVMEM_CODEC_V], b, d);
    /* fixed arrays: ropes, windows, sink biases, a row, layer states, block and ring positions, lanes */
    for (l = 0; s->rope && l < L; l++) floats += (size_t)(s->rope[l].n_rot / 2);
    floats += (size_t)d;
    bytes += s->rope ? (size_t)L * sizeof(kvmem_rope) : 0;
    ints += (s->window ? (size_t)L : 0) + (size_t)cfg->max_block + (size_t)p->ring;
    ok = ok && (!s->sink_bias || kvmem__mul((size_t)L, (size_t)H, &x));
    if (s->sink_bias) floats += (size_t)L * (size_t)H;
    p->block_bytes = KVMEM__ALIGN16(bytes) + KVMEM__ALIGN16(floats * sizeof(float)) +
                     KVMEM__ALIGN16(ints * sizeof(int32_t)) + KVMEM__ALIGN16((size_t)L) +
                     KVMEM__ALIGN16((size_t)p->lanes * sizeof(kvmem_lane));
    x = (size_t)H * (size_t)d;
    ok = ok && kvmem__mul(x, (size_t)L, &x) && kvmem__mul(x, (size_t)p->ring, &x) &&
         kvmem__mul(x, sizeof(float), &p->ring_bytes);
    if (!ok) return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "shape: the ring of %d queries is too large", p->ring);
    p->worker_floats = kvmem__worker_floats(s, p);
    p->limit = cfg->max_bytes;
    if (r->amount.kind == KVMEM_BYTES) {
        const size_t lim = r->amount.value >= (double)SIZE_MAX ? SIZE_MAX : (size_t)r->amount.value;
        if (!p->limit || lim < p->limit) p->limit = lim;
    }
    fixed = p->block_bytes + p->ring_bytes + sizeof(kvmem_arena) + 2 * sizeof(kvmem__use);
    for (;;) {
        p->head = kvmem__page_head(p->page);
        p->page_bytes = kvmem__page_size(p->page, p->n_stats, &p->k, &p->v);
        if (!p->limit) return KVMEM_OK;
        p->lane_cap = kvmem__plan_cap(p, s, fixed);
        if (p->lane_cap >= 4 * p->page || p->page <= 8) break;
        p->page = (p->page + 1) / 2; /* few pages a lane: smaller ones waste less */
    }
    if (p->lane_cap < 3 * p->page)
        return kvmem__fail(e, KVMEM_OVER_BUDGET,
            "a limit of %zu bytes is too small: fixed parts and scratch take %zu, and three pages of %d entries in "
            "each of %d lanes %zu more", p->limit,
            fixed + kvmem__attend_bytes(s, p->page, p->worker_floats * sizeof(float)), p->page, p->lanes,
            3 * (size_t)p->lanes * p->page_bytes);
    return KVMEM_OK;
}

/* --- pages --- */
static kvmem_bytes_part kvmem__page_part(int page, int n_stats, const kvmem_codec_use *k,
                                         const kvmem_codec_use *v) {
    kvmem_bytes_part p;
    memset(&p, 0, sizeof p);
    p.total = kvmem__page_size(page, n_stats, k, v);
    p.k = (size_t)page * k->row_bytes;
    p.v = (size_t)page * v->row_bytes;
    p.stats = (size_t)n_stats * (size_t)page * sizeof(float);
    p.meta = p.total - p.k - p.v - p.stats;
    return p;
}
/* Room that a page with so many rows has: quarters of P. */
static int kvmem__page_cap(int P, int rows) {
    const int unit = (P + 3) / 4;
    return KVMEM__MIN(P, (rows + unit - 1) / unit * unit);
}
static kvmem_page *kvmem__page_new(kvmem_cache *c, int rows, const kvmem_codec_use *kc, const kvmem_codec_use *vc) {
    const int P = kvmem__page_cap(c->recipe.page, rows);
    const kvmem_bytes_part part = kvmem__page_part(P, c->n_stats, kc, vc);
    int over;
    uint8_t *m = (uint8_t *)kvmem__arena_take(c->arena, &part, &over);
    kvmem_page *p;
    if (!m) {
        kvmem__no_room(c, over, part.total, "a page");
        return NULL;
    }
    p = (kvmem_page *)(void *)m;
    p->refs = 1;
    p->cap = P;
    p->kc = kc;
    p->vc = vc;
    m += KVMEM__ALIGN16(sizeof(kvmem_page));
    p->pos = (int32_t *)(void *)m;
    m += KVMEM__ALIGN16((size_t)P * sizeof(int32_t));
    p->stats = c->n_stats ? (float *)(void *)m : NULL;
    m += KVMEM__ALIGN16((size_t)c->n_stats * (size_t)P * sizeof(float));
    p->k = m;
    p->v = m + KVMEM__ALIGN16((size_t)P * kc->row_bytes);
    return p;
}
static void kvmem__page_drop(kvmem_cache *c, kvmem_page *p) {
    kvmem_bytes_part part;
    if (!p || --p->refs > 0) return;
    part = kvmem__page_part(p->cap, c->n_stats, p->kc, p->vc);
    kvmem__arena_give(c->arena, p, &part);
}
/* Rows in use of page i of a lane. */
static int kvmem__page_rows(const kvmem_cache *c, const kvmem_lane *ln, int i) {
    return KVMEM__MIN(c->recipe.page, ln->n - i * c->recipe.page);
}
/* Put a copy with room for `rows` in place of page i, which has `used` rows. */
static kvmem_status kvmem__page_resize(kvmem_cache *c, kvmem_lane *ln, int i, int used, int rows) {
    kvmem_page *old = ln->pages[i], *p = kvmem__page_new(c, rows, old->kc, old->vc);
    const size_t n = (size_t)used;
    int s;
    if (!p) return c->error.status;
    memcpy(p->pos, old->pos, n * sizeof(int32_t));
    for (s = 0; s < c->n_stats; s++) memcpy(p->stats + s * p->cap, old->stats + s * old->cap, n * sizeof(float));
    memcpy(p->k, old->k, n * old->kc->row_bytes);
    memcpy(p->v, old->v, n * old->vc->row_bytes);
    ln->pages[i] = p;
    kvmem__page_drop(c, old);
    return KVMEM_OK;
}
/* Make page i of a lane this cache's own before it is written. */
static kvmem_status kvmem__page_own(kvmem_cache *c, kvmem_lane *ln, int i) {
    if (ln->pages[i]->refs == 1) return KVMEM_OK;
    return kvmem__page_resize(c, ln, i, kvmem__page_rows(c, ln, i), ln->pages[i]->cap);
}
/* Copy entry (src, i) to (dst, j); recodes when the pages' codecs differ: tmp (head_dim) is scratch. */
static void kvmem__row_move(kvmem_cache *c, kvmem_page *dst, int j, const kvmem_page *src, int i, float *tmp) {
    int s;
    dst->pos[j] = src->pos[i];
    for (s = 0; s < c->n_stats; s++) dst->stats[s * dst->cap + j] = src->stats[s * src->cap + i];
    if (dst->kc == src->kc)
        memmove(dst->k + (size_t)j * dst->kc->row_bytes, src->k + (size_t)i * src->kc->row_bytes, src->kc->row_bytes);
    else {
        const kvmem_coded from = kvmem__page_k(src, src->cap), to = kvmem__page_k(dst, dst->cap);
        kvmem__coded_decode(src->kc, &from, tmp, i, 1);
        dst->kc->fn.encode(&to, tmp, j, 1);
    }
    if (dst->vc == src->vc)
        memmove(dst->v + (size_t)j * dst->vc->row_bytes, src->v + (size_t)i * src->vc->row_bytes, src->vc->row_bytes);
    else {
        const kvmem_coded from = kvmem__page_v(src, src->cap), to = kvmem__page_v(dst, dst->cap);
        kvmem__coded_decode(src->vc, &from, tmp, i, 1);
        dst->vc->fn.encode(&to, tmp, j, 1);
    }
}

/* --- lanes --- */
static kvmem_lane *kvmem__lane_at(const kvmem_cache *c, int layer, int g) {
    return &c->lane[layer * c->shape.n_kv_heads + g];
}
/* Room for n pages in the table. */
static kvmem_status kvmem__lane_table(kvmem_cache *c, kvmem_lane *ln, int n) {
    const int cap = kvmem__table_cap(n);
    kvmem_bytes_part part, old;
    kvmem_page **t;
    int over;
    if (n <= ln->cap_pages) return KVMEM_OK;
    part = kvmem__part(2, (size_t)cap * sizeof *t);
    old = kvmem__part(2, (size_t)ln->cap_pages * sizeof *t);
    t = (kvmem_page **)kvmem__arena_take(c->arena, &part, &over);
    if (!t) return kvmem__no_room(c, over, part.total, "a page table");
    if (ln->n_pages) memcpy(t, ln->pages, (size_t)ln->n_pages * sizeof *t);
    kvmem__arena_give(c->arena, ln->pages, &old);
    ln->pages = t;
    ln->cap_pages = cap;
    return KVMEM_OK;
}
/* Tell the trace that entries [a, b) of lane i have met this fate. */
static void kvmem__tell(const kvmem_cache *c, int i, int a, int b, kvmem_fate fate) {
    const int P = c->recipe.page, G = c->shape.n_kv_heads;
    const kvmem_lane *ln = &c->lane[i];
    int t;
    for (t = a; c->trace && t < b; t++)
        c->trace(c->trace_user, i / G, i % G, ln->pages[t / P]->pos[t % P], fate, c->tokens + c->block_n);
}
static void kvmem__tell_all(const kvmem_cache *c, kvmem_fate fate) {
    int i;
    for (i = 0; c->trace && i < c->shape.n_layers * c->shape.n_kv_heads; i++)
        kvmem__tell(c, i, 0, c->lane[i].n, fate);
}
KVMEM_API void kvmem_cache_trace(kvmem_cache *c, kvmem_trace_fn fn, void *user) {
    c->trace = fn;
    c->trace_user = user;
}
/* Before entries kept (n_kept) of lane i move together: the others are dropped, and those that come to a
   page of other codecs are recoded. */
static void kvmem__tell_keep(const kvmem_cache *c, int i, const int *kept, int n_kept) {
    const int P = c->recipe.page;
    const kvmem_lane *ln = &c->lane[i];
    int t, j = 0;
    for (t = 0; c->trace && t < ln->n; t++) {
        const kvmem_page *from = ln->pages[t / P], *to;
        if (j >= n_kept || kept[j] != t) {
            kvmem__tell(c, i, t, t + 1, KVMEM_FATE_DROPPED);
            continue;
        }
        to = ln->pages[j++ / P];
        if (to->kc != from->kc || to->vc != from->vc) kvmem__tell(c, i, t, t + 1, KVMEM_FATE_RECODED);
    }
}
static void kvmem__lane_cut(kvmem_cache *c, kvmem_lane *ln, int n) { /* keep the first n entries */
    const int P = c->recipe.page, keep = (n + P - 1) / P;
    while (ln->n_pages > keep) kvmem__page_drop(c, ln->pages[--ln->n_pages]);
    ln->n = n;
    if (n == 0 && ln->pages) {
        const kvmem_bytes_part part = kvmem__part(2, (size_t)ln->cap_pages * sizeof *ln->pages);
        kvmem__arena_give(c->arena, ln->pages, &part);
        ln->pages = NULL;
        ln->cap_pages = 0;
    }
}
/* Space for n more entries behind the lane: pages are added; a last page that is shared or too small is
   replaced. Rows are not filled and ln->n stays. On failure the lane's entries are as before. */
static kvmem_status kvmem__lane_grow(kvmem_cache *c, kvmem_lane *ln, int n) {
    const int P = c->recipe.page, had = ln->n_pages, want = (ln->n + n + P - 1) / P;
    KVMEM__TRY(kvmem__lane_table(c, ln, want));
    if (ln->n % P) {
        const int rows = KVMEM__MIN(P, ln->n % P + n);
        const kvmem_page *p = ln->pages[had - 1];
        if (p->refs > 1 || p->cap < rows)
            KVMEM__TRY(kvmem__page_resize(c, ln, had - 1, ln->n % P, KVMEM__MAX(rows, p->cap)));
    }
    while (ln->n_pages < want) {
        kvmem_page *p = kvmem__page_new(c, KVMEM__MIN(P, ln->n + n - ln->n_pages * P), c->k, c->v);
        if (!p) {
            while (ln->n_pages > had) kvmem__page_drop(c, ln->pages[--ln->n_pages]);
            return c->error.status;
        }
        ln->pages[ln->n_pages++] = p;
    }
    return KVMEM_OK;
}
/* The lane keeps the n_kept entries whose rising indices are in kept; pages that become empty are freed.
   Rows move toward the front in place: no memory is needed unless pages are shared. */
static kvmem_status kvmem__lane_keep(kvmem_cache *c, int layer, int g, const int *kept, int n_kept) {
    kvmem_lane *ln = kvmem__lane_at(c, layer, g);
    const int P = c->recipe.page, gone = ln->n - n_kept, last = (n_kept - 1) / P;
    int j, first = 0;
    KVMEM_ASSERT(n_kept >= 0 && n_kept <= ln->n);
    while (first < n_kept && kept[first] == first) first++; /* these stay where they are */
    for (j = first / P; first < n_kept && j <= last; j++) KVMEM__TRY(kvmem__page_own(c, ln, j));
    if (c->trace) kvmem__tell_keep(c, layer * c->shape.n_kv_heads + g, kept, n_kept);
    for (j = first; j < n_kept; j++)
        kvmem__row_move(c, ln->pages[j / P], j % P, ln->pages[kept[j] / P], kept[j] % P, c->row);
    kvmem__lane_cut(c, ln, n_kept);
    j = n_kept - last * P; /* rows of the last page; it shrinks when much went, not at every step */
    if (n_kept && gone >= (P + 3) / 4 && kvmem__page_cap(P, j) < ln->pages[last]->cap)
        return kvmem__page_resize(c, ln, last, j, j);
    return KVMEM_OK;
}

/* --- scratch: one buffer of the cache, grown on demand --- */
static kvmem_status kvmem__scratch(kvmem_cache *c, size_t size) {
    kvmem_bytes_part part = kvmem__part(4, size), old = kvmem__part(4, c->scratch_size);
    int over;
    if (size <= c->scratch_size) return KVMEM_OK;
    kvmem__arena_give(c->arena, c->scratch, &old);
    c->scratch_size = 0;
    c->scratch = kvmem__arena_take(c->arena, &part, &over);
    if (!c->scratch) return kvmem__no_room(c, over, size, "scratch");
    c->scratch_size = size;
    return KVMEM_OK;
}
static void kvmem__scratch_free(kvmem_cache *c) {
    const kvmem_bytes_part old = kvmem__part(4, c->scratch_size);
    kvmem__arena_give(c->arena, c->scratch, &old);
    c->scratch = NULL;
    c->scratch_size = 0;
}

/* --- life of a cache --- */
KVMEM_API kvmem_config kvmem_config_default(void) {
    kvmem_config cfg;
    memset(&cfg, 0, sizeof cfg);
    cfg.max_block = 512;
    return cfg;
}
/* The arena's copy of a codec choice, so that pages can point to it; found again if it is there. */
static const kvmem_codec_use *kvmem__use_codec(kvmem_cache *c, const kvmem_choice *ch) {
    kvmem__use *u;
    const kvmem_bytes_part part = kvmem__part(2, sizeof *u);
    int over, i;
    for (u = c->arena->uses; u; u = u->next) {
        int same = u->entry == ch->entry && u->user == ch->user;
        for (i = 0; same && i < KVMEM_MAX_PARAMS; i++)
            same = !(u->use.par[i] < ch->par[i]) && !(u->use.par[i] > ch->par[i]);
        if (same) return &u->use;
    }
    u = (kvmem__use *)kvmem__arena_take(c->arena, &part, &over);
    if (!u) {
        kvmem__no_room(c, over, part.total, "a codec");
        return NULL;
    }
    kvmem__resolve_codec(&u->use, ch, c->backend, c->shape.head_dim);
    u->entry = ch->entry;
    u->user = ch->user;
    u->next = c->arena->uses;
    c->arena->uses = u;
    return &u->use;
}
static void kvmem__arena_free(kvmem_arena *ar) {
    const kvmem_allocator a = ar->a;
    while (ar->uses) {
        kvmem__use *u = ar->uses;
        const kvmem_bytes_part part = kvmem__part(2, sizeof *u);
        ar->uses = u->next;
        kvmem__arena_give(ar, u, &part);
    }
    kvmem__release(&a, ar, sizeof *ar);
}
/* Carve the fixed arrays out of c->block and fill them from the shape s. */
static void kvmem__carve(kvmem_cache *c, const kvmem_shape *s) {
    const int L = s->n_layers;
    uint8_t *m = (uint8_t *)c->block;
    kvmem_rope *rope = (kvmem_rope *)(void *)m;
    float *f;
    int32_t *w;
    int l;
    m += KVMEM__ALIGN16(s->rope ? (size_t)L * sizeof(kvmem_rope) : 0);
    f = (float *)(void *)m;
    for (l = 0; s->rope && l < L; l++) {
        const size_t half = (size_t)(s->rope[l].n_rot / 2);
        rope[l] = s->rope[l];
        rope[l].inv_freq = f;
        if (half) memcpy(f, s->rope[l].inv_freq, half * sizeof(float));
        f += half;
    }
    if (s->rope) c->shape.rope = rope;
    if (s->sink_bias) {
        const size_t n = (size_t)L * (size_t)s->n_heads;
        memcpy(f, s->sink_bias, n * sizeof(float));
        c->shape.sink_bias = f;
        f += n;
    }
    c->row = f;
    f += s->head_dim;
    m += KVMEM__ALIGN16((size_t)(f - (float *)(void *)m) * sizeof(float));
    w = (int32_t *)(void *)m;
    if (s->window) {
        memcpy(w, s->window, (size_t)L * sizeof(int32_t));
        c->shape.window = (const int *)(const void *)w; /* int32_t may be long, of the same size */
        w += L;
    }
    c->block_pos = w;
    w += c->max_block;
    c->ring_pos = w;
    w += c->ring;
    memset(c->block_pos, 0, (size_t)(c->max_block + c->ring) * sizeof(int32_t));
    m += KVMEM__ALIGN16((size_t)(w - (int32_t *)(void *)m) * sizeof(int32_t));
    c->layer_state = m;
    m += KVMEM__ALIGN16((size_t)L);
    c->lane = (kvmem_lane *)(void *)m;
    memset(c->layer_state, 0, (size_t)L);
    memset(c->lane, 0, (size_t)L * (size_t)s->n_kv_heads * sizeof *c->lane);
}
static kvmem_status kvmem__take_fixed(kvmem_cache *c, const kvmem_shape *s, size_t ring_bytes) {
    kvmem_bytes_part part = kvmem__part(2, c->block_size);
    int over;
    c->block = kvmem__arena_take(c->arena, &part, &over);
    if (!c->block) {
        c->block_size = 0;
        return kvmem__no_room(c, over, part.total, "the cache's fixed arrays");
    }
    kvmem__carve(c, s);
    if (c->ring) {
        part = kvmem__part(3, ring_bytes);
        c->ring_q = (float *)kvmem__arena_take(c->arena, &part, &over);
        if (!c->ring_q) return kvmem__no_room(c, over, part.total, "the ring of queries");
        memset(c->ring_q, 0, ring_bytes);
    }
    return KVMEM_OK;
}
static size_t kvmem__ring_bytes(const kvmem_cache *c) {
    return (size_t)c->ring * (size_t)c->shape.n_layers * (size_t)c->shape.n_heads *
           (size_t)c->shape.head_dim * sizeof(float);
}
KVMEM_API kvmem_status kvmem_cache_init(kvmem_cache *c, const kvmem_config *cfg) {
    kvmem_recipe full = kvmem_recipe_default();
    kvmem_allocator a;
    kvmem_arena *ar;
    kvmem__plan plan;
    kvmem_error e;
    kvmem_status st;
    memset(c, 0, sizeof *c);
    if (!cfg) return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "kvmem_cache_init: config is NULL");
    if (cfg->recipe) full = *cfg->recipe;
    c->backend = cfg->backend ? cfg->backend : kvmem_backend_cpu(NULL);
    KVMEM__TRY(kvmem__make_plan(&plan, cfg, &full, c->backend, &c->error));
    a = kvmem__allocator(&cfg->allocator);
    ar = (kvmem_arena *)kvmem__alloc(&a, sizeof *ar);
    if (!ar) return kvmem__fail(&c->error, KVMEM_NO_MEMORY, "no memory for the cache's arena");
    memset(ar, 0, sizeof *ar);
    ar->a = a;
    ar->limit = plan.limit;
    ar->refs = 1;
    ar->live = ar->peak = kvmem__part(2, sizeof *ar);
    c->arena = ar;
    c->shape = cfg->shape;
    if (!(c->shape.scale > 0)) c->shape.scale = (float)(1.0 / sqrt((double)c->shape.head_dim));
    c->recipe = full;
    c->recipe.page = plan.page;
    c->reads = plan.reads;
    c->n_stats = plan.n_stats;
    c->ring = plan.ring;
    c->lane_cap = plan.lane_cap;
    c->threads = cfg->threads;
    c->max_block = cfg->max_block;
    c->model_id = cfg->model_id;
    c->block_size = plan.block_bytes;
    c->worker_bytes = plan.worker_floats * sizeof(float);
    c->tile_bytes = kvmem__tile_bytes(c->shape.n_heads / c->shape.n_kv_heads, c->shape.head_dim, plan.page);
    st = kvmem__take_fixed(c, &cfg->shape, plan.ring_bytes);
    if (st == KVMEM_OK) {
        c->k = kvmem__use_codec(c, &c->recipe.stage[KVMEM_CODEC_K]);
        c->v = c->k ? kvmem__use_codec(c, &c->recipe.stage[KVMEM_CODEC_V]) : NULL;
        if (!c->v) st = c->error.status;
    }
    if (st != KVMEM_OK) {
        e = c->error;
        kvmem_cache_free(c);
        c->error = e;
    }
    return st;
}
KVMEM_API void kvmem_cache_clear(kvmem_cache *c) {
    int i;
    kvmem_bytes_part part;
    if (!c || !c->arena) return;
    if (c->trace && c->lane) kvmem__tell_all(c, KVMEM_FATE_DROPPED);
    for (i = 0; c->lane && i < c->shape.n_layers * c->shape.n_kv_heads; i++)
        kvmem__lane_cut(c, &c->lane[i], 0);
    part = kvmem__part(2, (size_t)c->cap_events * sizeof *c->event);
    kvmem__arena_give(c->arena, c->event, &part);
    c->event = NULL;
    c->n_events = c->cap_events = 0;
    kvmem__scratch_free(c);
    if (c->layer_state) memset(c->layer_state, 0, (size_t)c->shape.n_layers);
    c->tokens = c->since_reduce = 0;
    c->next_pos = 0;
    c->block_n = c->ring_n = c->ring_at = 0;
}
KVMEM_API void kvmem_cache_free(kvmem_cache *c) {
    kvmem_bytes_part part;
    if (!c) return;
    if (c->arena) {
        c->trace = NULL;
        kvmem_cache_clear(c);
        part = kvmem__part(3, kvmem__ring_bytes(c));
        kvmem__arena_give(c->arena, c->ring_q, &part);
        part = kvmem__part(2, c->block_size);
        kvmem__arena_give(c->arena, c->block, &part);
        if (--c->arena->refs == 0) kvmem__arena_free(c->arena);
    }
    memset(c, 0, sizeof *c);
}
KVMEM_API kvmem_status kvmem_cache_copy(kvmem_cache *dst, const kvmem_cache *src) {
    kvmem_status st;
    kvmem_error e;
    int i, j;
    if (!src || !src->arena) {
        memset(dst, 0, sizeof *dst);
        return kvmem__fail(&dst->error, KVMEM_BAD_ARGUMENT, "kvmem_cache_copy: the source is not initialized");
    }
    *dst = *src;
    dst->trace = NULL;
    dst->trace_user = NULL;
    dst->arena->refs++;
    dst->block = NULL;
    dst->lane = NULL;
    dst->layer_state = NULL;
    dst->ring_q = NULL;
    dst->scratch = NULL;
    dst->scratch_size = 0;
    dst->event = NULL;
    dst->n_events = dst->cap_events = 0;
    st = src->block_n ? kvmem__fail(&dst->error, KVMEM_BAD_STATE, "kvmem_cache_copy in the middle of a block")
                      : kvmem__take_fixed(dst, &src->shape, kvmem__ring_bytes(src));
    if (st == KVMEM_OK && dst->ring) {
        memcpy(dst->ring_q, src->ring_q, kvmem__ring_bytes(src));
        memcpy(dst->ring_pos, src->ring_pos, (size_t)src->ring * sizeof *src->ring_pos);
    }
    for (i = 0; st == KVMEM_OK && i < src->n_events; i++) st = kvmem__add_event(dst, src->event[i]);
    for (i = 0; st == KVMEM_OK && i < src->shape.n_layers * src->shape.n_kv_heads; i++) {
        kvmem_lane *to = &dst->lane[i];
        const kvmem_lane *from = &src->lane[i];
        if (!from->n_pages) continue;
        st = kvmem__lane_table(dst, to, from->n_pages);
        for (j = 0; st == KVMEM_OK && j < from->n_pages; j++) {
            to->pages[j] = from->pages[j];
            to->pages[j]->refs++;
            to->n_pages++;
        }
        if (st == KVMEM_OK) to->n = from->n;
    }
    if (st != KVMEM_OK) {
        e = dst->error;
        kvmem_cache_free(dst);
        dst->error = e;
    }
    return st;
}

/* --- append, truncate, read --- */
static kvmem_status kvmem__check_layer(kvmem_cache *c, int layer, const char *call) {
    if (!c->arena) return kvmem__fail(&c->error, KVMEM_BAD_STATE, "%s: the cache is not initialized", call);
    if (layer < 0 || layer >= c->shape.n_layers)
        return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "%s: layer %d is not in 0..%d", call, layer,
                           c->shape.n_layers - 1);
    return KVMEM_OK;
}
static kvmem_status kvmem__check_finite(kvmem_cache *c, const float *x, int n, int heads, const char *what,
                                        int layer) {
    const size_t d = (size_t)c->shape.head_dim, total = (size_t)n * (size_t)heads * d;
    size_t i;
    float sum = 0;
    for (i = 0; i < total; i++) sum += x[i] * 0.0f; /* NaN as soon as one value is not finite */
    if (sum == 0.0f) return KVMEM_OK;
    for (i = 0; i < total; i++)
        if (!(x[i] - x[i] == 0.0f)) break;
    return kvmem__fail(&c->error, KVMEM_BAD_VALUE, "%s of layer %d, token %d of the block, head %d, channel %d is "
        "not finite", what, layer, (int)(i / d / (size_t)heads), (int)(i / d % (size_t)heads), (int)(i % d));
}
/* Write the block's rows behind every lane of the layer; pages are there. */
static kvmem_status kvmem__cpu_encode(kvmem_cache *c, int layer, int n, const float *k, const float *v) {
    const int G = c->shape.n_kv_heads, d = c->shape.head_dim, P = c->recipe.page;
    const int threads = n >= 16 ? kvmem__threads(c->threads) : 1;
    int g;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (g = 0; g < G; g++) {
        kvmem_lane *ln = kvmem__lane_at(c, layer, g);
        int t, s;
        for (t = 0; t < n; t++) {
            kvmem_page *p = ln->pages[(ln->n + t) / P];
            kvmem_coded kc, vc;
            const size_t row = (size_t)((ln->n + t) % P), from = ((size_t)t * (size_t)G + (size_t)g) * (size_t)d;
            p->pos[row] = c->block_pos[t];
            for (s = 0; s < c->n_stats; s++) p->stats[(size_t)(s * p->cap) + row] = 0;
            kc = kvmem__page_k(p, p->cap);
            vc = kvmem__page_v(p, p->cap);
            p->kc->fn.encode(&kc, k + from, (int)row, 1);
            p->vc->fn.encode(&vc, v + from, (int)row, 1);
        }
    }
    return KVMEM_OK;
}
/* The block's positions: set by the first layer, repeated by the others. */
static kvmem_status kvmem__block_begin(kvmem_cache *c, int n, const int32_t *pos) {
    int t;
    if (c->block_n) {
        if (n != c->block_n)
            return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "append: %d tokens, but the block has %d", n, c->block_n);
        for (t = 0; pos && t < n; t++)
            if (pos[t] != c->block_pos[t])
                return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "append: token %d has position %d here and %d in "
                                   "the layer before", t, (int)pos[t], (int)c->block_pos[t]);
        return KVMEM_OK;
    }
    if (n < 1 || n > c->max_block)
        return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "append: a block of %d tokens; 1..%d (max_block) are allowed",
                           n, c->max_block);
    if (!pos && c->next_pos > INT32_MAX - n)
        return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "append: positions pass %d", (int)INT32_MAX);
    for (t = 0; pos && t < n; t++)
        if (pos[t] < (t ? pos[t - 1] + 1 : c->next_pos) || pos[t] == INT32_MAX)
            return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT,
                               "append: position %d of token %d; positions rise and "
                               "this one must be at least %d",
                               (int)pos[t], t, t ? (int)pos[t - 1] + 1 : (int)c->next_pos);
    for (t = 0; t < n; t++) c->block_pos[t] = pos ? pos[t] : c->next_pos + t;
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_cache_append(kvmem_cache *c, int layer, int n, const float *k, const float *v,
                                          const int32_t *pos) {
    const int G = c->shape.n_kv_heads, d = c->shape.head_dim;
    int g;
    KVMEM__TRY(kvmem__check_layer(c, layer, "append"));
    if (!k || !v) return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "append: k or v is NULL");
    if (c->layer_state[layer])
        return kvmem__fail(&c->error, KVMEM_BAD_STATE,
                           "append: layer %d has its rows of this block; commit first", layer);
    KVMEM__TRY(kvmem__block_begin(c, n, pos));
    KVMEM__TRY(kvmem__check_finite(c, k, n, G, "k", layer));
    KVMEM__TRY(kvmem__check_finite(c, v, n, G, "v", layer));
    if (c->shape.rope) {
        float *kr;
        KVMEM__TRY(kvmem__scratch(c, (size_t)n * (size_t)G * (size_t)d * sizeof(float)));
        kr = (float *)c->scratch;
        c->backend->rope(kr, k, n, G, d, &c->shape.rope[layer], c->block_pos, 1, c->threads);
        k = kr;
    }
    for (g = 0; g < G; g++) {
        if (kvmem__lane_grow(c, kvmem__lane_at(c, layer, g), n) != KVMEM_OK) {
            while (g--) kvmem__lane_cut(c, kvmem__lane_at(c, layer, g), kvmem__lane_at(c, layer, g)->n);
            return c->error.status;
        }
    }
    KVMEM__TRY(c->backend->encode(c, layer, n, k, v));
    c->block_n = n;
    c->layer_state[layer] = 1;
    for (g = 0; g < G; g++) {
        kvmem_lane *ln = kvmem__lane_at(c, layer, g);
        ln->n += n;
        if (c->trace) kvmem__tell(c, layer * G + g, ln->n - n, ln->n, KVMEM_FATE_KEPT);
    }
    return KVMEM_OK;
}
/* First entry of a lane whose position is at least pos. */
static int kvmem__lane_find(const kvmem_cache *c, const kvmem_lane *ln, int32_t pos) {
    const int P = c->recipe.page;
    int lo = 0, hi = ln->n;
    while (lo < hi) {
        const int mid = lo + (hi - lo) / 2;
        if (ln->pages[mid / P]->pos[mid % P] < pos) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}
KVMEM_API kvmem_status kvmem_cache_truncate(kvmem_cache *c, int64_t n_tokens) {
    const int32_t n = (int32_t)KVMEM__MIN(n_tokens, (int64_t)INT32_MAX);
    int i;
    KVMEM__TRY(kvmem__check_layer(c, 0, "truncate"));
    if (n_tokens < 0)
        return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "truncate: %lld tokens is negative", (long long)n_tokens);
    for (i = 0; i < c->shape.n_layers * c->shape.n_kv_heads; i++) {
        const int keep = kvmem__lane_find(c, &c->lane[i], n);
        if (keep == c->lane[i].n) continue;
        if (c->trace) kvmem__tell(c, i, keep, c->lane[i].n, KVMEM_FATE_DROPPED);
        kvmem__lane_cut(c, &c->lane[i], keep);
    }
    while (c->n_events && c->event[c->n_events - 1] >= n) c->n_events--;
    while (c->ring_n && c->ring_pos[(c->ring_at + c->ring - 1) % c->ring] >= n) {
        c->ring_at = (c->ring_at + c->ring - 1) % c->ring;
        c->ring_n--;
    }
    memset(c->layer_state, 0, (size_t)c->shape.n_layers); /* a block in flight is forgotten */
    c->block_n = 0;
    if (c->next_pos > n) c->next_pos = n;
    if (c->tokens > n) c->tokens = n;
    return KVMEM_OK;
}
KVMEM_API int kvmem_cache_lane_len(const kvmem_cache *c, int layer, int g) {
    if (!c->arena || layer < 0 || layer >= c->shape.n_layers || g < 0 || g >= c->shape.n_kv_heads) return 0;
    return kvmem__lane_at(c, layer, g)->n;
}
/* Decode entries [i0, i0+n) of a lane, page by page. */
static kvmem_status kvmem__cpu_gather(const kvmem_cache *c, int layer, int g, int i0, int n, float *k, float *v) {
    const kvmem_lane *ln = kvmem__lane_at(c, layer, g);
    const int P = c->recipe.page, d = c->shape.head_dim;
    int t = 0;
    while (t < n) {
        const kvmem_page *p = ln->pages[(i0 + t) / P];
        const int row = (i0 + t) % P, m = KVMEM__MIN(n - t, P - row);
        const size_t at = (size_t)t * (size_t)d;
        const kvmem_coded kc = kvmem__page_k(p, p->cap), vc = kvmem__page_v(p, p->cap);
        if (k) kvmem__coded_decode(p->kc, &kc, k + at, row, m);
        if (v) kvmem__coded_decode(p->vc, &vc, v + at, row, m);
        t += m;
    }
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_cache_read(const kvmem_cache *c, int layer, int g, int i0, int n, float *k,
                                        float *v, int32_t *pos) {
    const kvmem_lane *ln;
    int t;
    if (!c->arena || layer < 0 || layer >= c->shape.n_layers || g < 0 || g >= c->shape.n_kv_heads)
        return KVMEM_BAD_ARGUMENT;
    ln = kvmem__lane_at(c, layer, g);
    if (i0 < 0 || n < 0 || i0 > ln->n || n > ln->n - i0) return KVMEM_BAD_ARGUMENT;
    for (t = 0; pos && t < n; t++) pos[t] = ln->pages[(i0 + t) / c->recipe.page]->pos[(i0 + t) % c->recipe.page];
    return c->backend->gather(c, layer, g, i0, n, k, v);
}
KVMEM_API void kvmem_cache_bytes(const kvmem_cache *c, kvmem_bytes *out) {
    int i;
    memset(out, 0, sizeof *out);
    if (!c->arena) return;
    out->live = c->arena->live;
    out->peak = c->arena->peak;
    out->limit = c->arena->limit;
    for (i = 0; i < c->shape.n_layers * c->shape.n_kv_heads; i++) out->entries += (size_t)c->lane[i].n;
    out->tokens = c->tokens;
    out->full = (size_t)c->tokens * (size_t)c->shape.n_layers * (size_t)c->shape.n_kv_heads *
                (size_t)c->shape.head_dim * 4;
}
/* Recode the pages of every lane to c->k and c->v, one at a time. */
static kvmem_status kvmem__recode_pages(kvmem_cache *c) {
    int i, j, t;
    for (i = 0; i < c->shape.n_layers * c->shape.n_kv_heads; i++)
        for (j = 0; j < c->lane[i].n_pages; j++) {
            kvmem_page *old = c->lane[i].pages[j], *p;
            if (old->kc == c->k && old->vc == c->v) continue;
            p = kvmem__page_new(c, old->cap, c->k, c->v);
            if (!p) return c->error.status;
            for (t = 0; t < kvmem__page_rows(c, &c->lane[i], j); t++) kvmem__row_move(c, p, t, old, t, c->row);
            c->lane[i].pages[j] = p;
            kvmem__page_drop(c, old);
            t = j * c->recipe.page;
            if (c->trace) kvmem__tell(c, i, t, t + kvmem__page_rows(c, &c->lane[i], j), KVMEM_FATE_RECODED);
        }
    return KVMEM_OK;
}
/* One entry from its own text, "q8_0". Section recipes. */
static kvmem_status kvmem__parse_choice(kvmem_choice *out, kvmem_stage stage, const char *text, kvmem_error *err);
KVMEM_API kvmem_status kvmem_cache_recode(kvmem_cache *c, const char *codec_k, const char *codec_v) {
    const char *text[2];
    int i;
    kvmem_choice ch[2];
    KVMEM__TRY(kvmem__check_layer(c, 0, "recode"));
    if (c->block_n) return kvmem__fail(&c->error, KVMEM_BAD_STATE, "recode in the middle of a block");
    text[0] = codec_k;
    text[1] = codec_v;
    for (i = 0; i < 2; i++) {
        ch[i] = c->recipe.stage[KVMEM_CODEC_K + i];
        if (text[i])
            KVMEM__TRY(kvmem__parse_choice(&ch[i], (kvmem_stage)(KVMEM_CODEC_K + i), text[i], &c->error));
    }
    {
        const kvmem_codec_use *k = kvmem__use_codec(c, &ch[0]), *v = k ? kvmem__use_codec(c, &ch[1]) : NULL;
        if (!v) return c->error.status;
        c->k = k;
        c->v = v;
        c->recipe.stage[KVMEM_CODEC_K] = ch[0];
        c->recipe.stage[KVMEM_CODEC_V] = ch[1];
        kvmem__set_cap(c);
    }
    return kvmem__recode_pages(c);
}

/* ==== >>attention : causal attention that reads the coded pages ==================================
   One query against one lane, page by page (online softmax, Milakov and Gimelshein 2018):
       s = scale * q.k            over the rows of a page, by the codec's own dot
       m' = max(m, max s), l = l e^(m-m') + sum e^(s-m'), o = o e^(m-m') + sum e^(s-m') v
   and o / l at the end; nothing is decoded into a big buffer. The queries of a group share every row
   that is read. Entries are summed in chunks of KVMEM__CHUNK whose (m, l, o) are merged in order:
       m = max(ma, mb), l = la e^(ma-m) + lb e^(mb-m), o likewise;   l = 0 is the neutral element.

   Where a key is read (stage place): keys are stored rotated for their own position. RoPE turns add up,
   so reading the key of slot s at position p' instead of pos is the same as turning the query by
   pos - p' more. Neighbouring entries share that difference, so a query is turned once per run, not a
   key per entry. With place=original there is one run and the difference is 0.
   Uses: backend (rope, vectors), codecs, cache. */

/* What one worker needs beside the pages; carved out of the cache's scratch. */
typedef struct kvmem__worker {
    float *q;                  /* (r, d) rotated queries */
    float *qp;                 /* (r, q_floats) prepared by the K codec */
    float *s;                  /* (r, P) logits of a page */
    float *m, *l, *o;          /* (r) (r) (r, d): this chunk */
    float *tm, *tl, *to;       /* the same over all chunks so far */
    int32_t at;                /* position for which q and qp are prepared */
    const kvmem_codec_use *kc; /* codec for which qp is prepared; NULL: nothing prepared */
} kvmem__worker;

static void kvmem__worker_init(kvmem__worker *w, const kvmem_cache *c, float *f) {
    const size_t r = (size_t)(c->shape.n_heads / c->shape.n_kv_heads), d = (size_t)c->shape.head_dim;
    const size_t P = (size_t)c->recipe.page;
    w->q = f;
    f += r * d;
    w->s = f;
    f += r * P;
    w->m = f;
    f += r;
    w->l = f;
    f += r;
    w->o = f;
    f += r * d;
    w->tm = f;
    f += r;
    w->tl = f;
    f += r;
    w->to = f;
    f += r * d;
    w->qp = f;
    w->kc = NULL;
    w->at = 0;
}
/* The queries of one token for one lane: q (r, d) as the caller gave them, rotated for position `at`
   and scaled, then prepared for the codec kc. */
static void kvmem__worker_query(kvmem__worker *w, const kvmem_cache *c, int layer, const float *q, int32_t at,
                                const kvmem_codec_use *kc) {
    const int r = c->shape.n_heads / c->shape.n_kv_heads, d = c->shape.head_dim;
    int j;
    if (w->kc == kc && w->at == at) return;
    if (!w->kc || w->at != at) {
        if (c->shape.rope) c->backend->rope(w->q, q, 1, r, d, &c->shape.rope[layer], &at, 1, 1);
        else memcpy(w->q, q, (size_t)r * (size_t)d * sizeof(float));
        c->backend->scale(w->q, c->shape.scale, r * d);
    }
    for (j = 0; j < r; j++) {
        const kvmem_coded b = kvmem__coded_of(kc, NULL, NULL, 0, NULL, 0);
        kvmem__coded_prepare(kc, &b, w->qp + j * kc->q_floats, w->q + j * d);
    }
    w->at = at;
    w->kc = kc;
}
/* Where are entry t's key and the query read? The query sits in slot qslot at position qpos. The result
   is the position for which the query is rotated so that its distance to the stored key is right. */
static int32_t kvmem__query_at(const kvmem_cache *c, int slot, int32_t pos, int qslot, int32_t qpos) {
    const kvmem_choice *ch = &c->recipe.stage[KVMEM_PLACE];
    const kvmem_place_fn fn = ((const kvmem_place_entry *)(const void *)ch->entry)->fn;
    return fn ? fn(ch->par, qslot, qpos) - (fn(ch->par, slot, pos) - pos) : qpos;
}
/* Logits w->s (r, rows t0..t1 of page i) of the query in (qslot, qpos). s[j * P + t]. */
static void kvmem__page_logits(kvmem__worker *w, const kvmem_cache *c, int layer, const kvmem_lane *ln, int i,
                               int t0, int t1, const float *q, int qslot, int32_t qpos) {
    const kvmem_page *p = ln->pages[i];
    const int P = c->recipe.page, r = c->shape.n_heads / c->shape.n_kv_heads;
    const kvmem_coded kc = kvmem__page_k(p, p->cap);
    const int moves = ((const kvmem_place_entry *)(const void *)c->recipe.stage[KVMEM_PLACE].entry)->fn != NULL;
    int a, b, j;
    for (a = t0; a < t1; a = b) { /* runs of entries that see the query at the same position */
        const int32_t at = kvmem__query_at(c, i * P + a, p->pos[a], qslot, qpos);
        for (b = a + 1; moves && b < t1; b++)
            if (kvmem__query_at(c, i * P + b, p->pos[b], qslot, qpos) != at) break;
        if (!moves) b = t1;
        kvmem__worker_query(w, c, layer, q, at, p->kc);
        kvmem__coded_dot(p->kc, &kc, w->s + a, P, a, b - a, w->qp, r);
    }
    if (c->shape.softcap > 0)
        for (j = 0; j < r; j++) c->backend->softcap(w->s + j * P + t0, c->shape.softcap, (size_t)(t1 - t0));
}
/* Entries [a, b) of the lane that a query at qpos in slot qslot may see: causal, inside the window. */
static void kvmem__visible(const kvmem_cache *c, int layer, const kvmem_lane *ln, int qslot, int32_t qpos, int *a,
                           int *b) {
    const int window = c->shape.window ? c->shape.window[layer] : 0;
    *b = KVMEM__MIN(qslot + 1, ln->n);
    *a = window && qpos >= window ? kvmem__lane_find(c, ln, qpos - window + 1) : 0;
    if (*a > *b) *a = *b;
}
/* One chunk [a, b) of entries into w->m, w->l, w->o. skip (n_pages) or NULL: pages not read. */
static void kvmem__attend_chunk(kvmem__worker *w, const kvmem_cache *c, int layer, const kvmem_lane *ln, int a,
                                int b, const float *q, int qslot, int32_t qpos, const unsigned char *read) {
    const int P = c->recipe.page, r = c->shape.n_heads / c->shape.n_kv_heads, d = c->shape.head_dim;
    const kvmem_backend *be = c->backend;
    int i, j;
    for (j = 0; j < r; j++) { w->m[j] = -INFINITY; w->l[j] = 0; }
    memset(w->o, 0, (size_t)r * (size_t)d * sizeof(float));
    for (i = a / P; i * P < b; i++) {
        const kvmem_page *p = ln->pages[i];
        const int t0 = KVMEM__MAX(a - i * P, 0), t1 = KVMEM__MIN(b - i * P, P);
        kvmem_coded vc;
        if (read && !read[i]) continue;
        kvmem__page_logits(w, c, layer, ln, i, t0, t1, q, qslot, qpos);
        for (j = 0; j < r; j++) {
            float *s = w->s + j * P + t0;
            const float mx = be->max(s, t1 - t0);
            if (mx > w->m[j]) {
                const float f = kvmem__expf(w->m[j] - mx);
                w->l[j] *= f;
                be->scale(w->o + j * d, f, d);
                w->m[j] = mx;
            }
            w->l[j] += be->exp_sum(s, s, w->m[j], t1 - t0);
        }
        vc = kvmem__page_v(p, p->cap);
        kvmem__coded_axpy(p->vc, &vc, w->o, t0, t1 - t0, w->s + t0, P, r);
    }
}
/* Merge the chunk into the total. */
static void kvmem__attend_merge(kvmem__worker *w, const kvmem_cache *c) {
    const int r = c->shape.n_heads / c->shape.n_kv_heads, d = c->shape.head_dim;
    int j;
    for (j = 0; j < r; j++) {
        const float m = KVMEM__MAX(w->tm[j], w->m[j]);
        float fa, fb;
        if (!(w->l[j] > 0)) continue;
        fa = w->tl[j] > 0 ? kvmem__expf(w->tm[j] - m) : 0;
        fb = kvmem__expf(w->m[j] - m);
        c->backend->scale(w->to + j * d, fa, d);
        c->backend->axpy(w->to + j * d, fb, w->o + j * d, d);
        w->tl[j] = w->tl[j] * fa + w->l[j] * fb;
        w->tm[j] = m;
    }
}
static void kvmem__attend_begin(kvmem__worker *w, const kvmem_cache *c) {
    const int r = c->shape.n_heads / c->shape.n_kv_heads, d = c->shape.head_dim;
    int j;
    for (j = 0; j < r; j++) { w->tm[j] = -INFINITY; w->tl[j] = 0; }
    memset(w->to, 0, (size_t)r * (size_t)d * sizeof(float));
}
/* The total as out (r, d) and lse (r) or NULL. */
static void kvmem__attend_end(kvmem__worker *w, const kvmem_cache *c, int layer, int g, float *out, float *lse) {
    const int r = c->shape.n_heads / c->shape.n_kv_heads, d = c->shape.head_dim;
    int i, j;
    for (j = 0; j < r; j++) {
        if (c->shape.sink_bias) { /* an extra logit with no value */
            const float s = c->shape.sink_bias[layer * c->shape.n_heads + g * r + j], m = KVMEM__MAX(w->tm[j], s);
            const float f = w->tl[j] > 0 ? kvmem__expf(w->tm[j] - m) : 0;
            c->backend->scale(w->to + j * d, f, d);
            w->tl[j] = w->tl[j] * f + kvmem__expf(s - m);
            w->tm[j] = m;
        }
        for (i = 0; i < d; i++) out[j * d + i] = w->tl[j] > 0 ? w->to[j * d + i] / w->tl[j] : 0;
        if (lse) lse[j] = w->tl[j] > 0 ? w->tm[j] + logf(w->tl[j]) : -INFINITY;
    }
}
/* Token t of the block (n tokens) for KV head g, chunks [from, to) of the lane, merged into the total. */
static void kvmem__attend_some(kvmem__worker *w, const kvmem_cache *c, int layer, int g, int t, int n, int from, int to,
                               const float *q, const unsigned char *read) {
    const kvmem_lane *ln = kvmem__lane_at(c, layer, g);
    int a, b, e;
    kvmem__visible(c, layer, ln, ln->n - n + t, c->block_pos[t], &a, &b);
    a = KVMEM__MAX(a, from * KVMEM__CHUNK);
    if (to < ln->n / KVMEM__CHUNK + 1) b = KVMEM__MIN(b, to * KVMEM__CHUNK);
    w->kc = NULL;
    for (; a < b; a = e) {
        e = KVMEM__MIN(b, (a / KVMEM__CHUNK + 1) * KVMEM__CHUNK);
        kvmem__attend_chunk(w, c, layer, ln, a, e, q, ln->n - n + t, c->block_pos[t], read);
        kvmem__attend_merge(w, c);
    }
}
/* How many workers the scratch can hold: the wanted number, fewer if the byte limit leaves no room. */
static kvmem_status kvmem__workers(kvmem_cache *c, size_t fixed, int wanted, int *workers) {
    if (c->arena->limit) {
        const size_t fit = 1 + kvmem__more_scratch(c->arena->limit) / c->worker_bytes;
        if (fit < (size_t)wanted) wanted = (int)fit;
    }
    *workers = wanted;
    return kvmem__scratch(c, fixed + (size_t)wanted * c->worker_bytes);
}
/* Ask the retrieve stage which pages of lane g are read; pages of the block itself always are. */
static kvmem_status kvmem__retrieve(kvmem_cache *c, int layer, int g, int n, const float *q, unsigned char *read) {
    const kvmem_choice *ch = &c->recipe.stage[KVMEM_RETRIEVE];
    const kvmem_lane *ln = kvmem__lane_at(c, layer, g);
    const int r = c->shape.n_heads / c->shape.n_kv_heads, d = c->shape.head_dim, P = c->recipe.page;
    kvmem_view v;
    float *qg;
    kvmem_status st;
    int t, i;
    v.cache = c;
    v.layer = layer;
    v.par = ch->par;
    v.user = ch->user;
    v.seed = c->recipe.seed;
    qg = kvmem__view_scratch(&v, (size_t)n * (size_t)r * (size_t)d);
    if (!qg) return c->error.status;
    for (t = 0; t < n; t++)
        memcpy(qg + (size_t)t * (size_t)(r * d),
               q + ((size_t)t * (size_t)c->shape.n_heads + (size_t)(g * r)) * (size_t)d,
               (size_t)(r * d) * sizeof(float));
    memset(read, 1, (size_t)ln->n_pages);
    st = ((const kvmem_retrieve_entry *)(const void *)ch->entry)->fn(&v, g, qg, n, read, ln->n_pages);
    for (i = (ln->n - n) / P; i < ln->n_pages; i++) read[i] = 1;
    kvmem__view_scratch_end(c);
    return st;
}
/* ==== >>tiles : causal attention of many queries at once =========================================
   A block of prompt tokens reads the same pages again and again, so here a page is decoded once for all
   queries of a unit: KVMEM__TILE_ROWS rows, that is (token, query head) pairs of one KV head. Per tile of
   w <= 64 entries, with Q (rows, d) rotated and scaled, K and V the decoded tile:
       S (rows, w) = Q K^T      masked to what each token may see
       m' = max(m, max_w S),  P = e^(S - m'),  l = l e^(m - m') + sum_w P,  O = O e^(m - m') + P V
   and out = O / l at the end (FlashAttention's loop, Dao 2023, arXiv 2307.08691, on a CPU cache). The two
   products are small matrix products whose operands stay in the first caches.
   A masked entry has P = 0 and adds nothing, so a token's result depends on the pages alone, not on the
   tokens that share its unit: blocks of KVMEM__TILE_MIN tokens or more give the same bits for any way of
   cutting a prompt. Shorter blocks, and the plain backend, take the loop above; the results differ by
   rounding.      test: tests/attention.c */

/* --- C (m, n) = or += A (m, k) B (k, n), n a multiple of 16; sums over k run in rising order --- */
KVMEM__UNUSED static void kvmem__product_plain(float *c, size_t ldc, const float *a, size_t lda,
                                               const float *b, size_t ldb, int m, int k, int n, int add) {
    int i, j, x;
    for (i = 0; i < m; i++) {
        float *ci = c + (size_t)i * ldc;
        for (j = 0; !add && j < n; j++) ci[j] = 0;
        for (x = 0; x < k; x++) {
            const float f = a[(size_t)i * lda + (size_t)x], *bx = b + (size_t)x * ldb;
            for (j = 0; j < n; j++) ci[j] += f * bx[j];
        }
    }
}
#if KVMEM__X86
/* mr (1, 2, 4) rows x nv vectors of C in registers. */
KVMEM__AVX512 KVMEM__INLINE void kvmem__product_avx512_at(int mr, int nv, float *c, size_t ldc,
                                                          const float *a, size_t lda, const float *b,
                                                          size_t ldb, int k, int add) {
    __m512 s[16], y[4], f;
    int i, j, x;
    KVMEM__UNROLL
    for (i = 0; i < mr; i++) {
        KVMEM__UNROLL
        for (j = 0; j < nv; j++)
            s[i * nv + j] = add ? _mm512_loadu_ps(c + (size_t)i * ldc + 16 * j) : _mm512_setzero_ps();
    }
    for (x = 0; x < k; x++) {
        KVMEM__UNROLL
        for (j = 0; j < nv; j++) y[j] = _mm512_loadu_ps(b + (size_t)x * ldb + 16 * j);
        KVMEM__UNROLL
        for (i = 0; i < mr; i++) {
            f = _mm512_set1_ps(a[(size_t)i * lda + (size_t)x]);
            KVMEM__UNROLL
            for (j = 0; j < nv; j++) s[i * nv + j] = _mm512_fmadd_ps(f, y[j], s[i * nv + j]);
        }
    }
    KVMEM__UNROLL
    for (i = 0; i < mr; i++) {
        KVMEM__UNROLL
        for (j = 0; j < nv; j++) _mm512_storeu_ps(c + (size_t)i * ldc + 16 * j, s[i * nv + j]);
    }
}
KVMEM__AVX512 static void kvmem__product_avx512(float *c, size_t ldc, const float *a, size_t lda,
                                                const float *b, size_t ldb, int m, int k, int n, int add) {
    int i, j;
    for (j = 0; j < n;) {
        const int nv = n - j >= 64 ? 4 : n - j >= 32 ? 2 : 1;
        for (i = 0; i < m;) {
            const int mr = m - i >= 4 ? 4 : 1;
            float *ci = c + (size_t)i * ldc + j;
            const float *ai = a + (size_t)i * lda;
            if (mr == 4 && nv == 4) kvmem__product_avx512_at(4, 4, ci, ldc, ai, lda, b + j, ldb, k, add);
            else if (mr == 4 && nv == 2) kvmem__product_avx512_at(4, 2, ci, ldc, ai, lda, b + j, ldb, k, add);
            else if (mr == 4) kvmem__product_avx512_at(4, 1, ci, ldc, ai, lda, b + j, ldb, k, add);
            else if (nv == 4) kvmem__product_avx512_at(1, 4, ci, ldc, ai, lda, b + j, ldb, k, add);
            else if (nv == 2) kvmem__product_avx512_at(1, 2, ci, ldc, ai, lda, b + j, ldb, k, add);
            else kvmem__product_avx512_at(1, 1, ci, ldc, ai, lda, b + j, ldb, k, add);
            i += mr;
        }
        j += 16 * nv;
    }
}
KVMEM__AVX2 KVMEM__INLINE void kvmem__product_avx2_at(int mr, float *c, size_t ldc, const float *a,
                                                      size_t lda, const float *b, size_t ldb, int k, int add) {
    __m256 s[12], y[2], f;
    int i, x;
    KVMEM__UNROLL
    for (i = 0; i < 2 * mr; i++)
        s[i] = add ? _mm256_loadu_ps(c + (size_t)(i / 2) * ldc + 8 * (i % 2)) : _mm256_setzero_ps();
    for (x = 0; x < k; x++) {
        y[0] = _mm256_loadu_ps(b + (size_t)x * ldb);
        y[1] = _mm256_loadu_ps(b + (size_t)x * ldb + 8);
        KVMEM__UNROLL
        for (i = 0; i < mr; i++) {
            f = _mm256_set1_ps(a[(size_t)i * lda + (size_t)x]);
            s[2 * i] = _mm256_fmadd_ps(f, y[0], s[2 * i]);
            s[2 * i + 1] = _mm256_fmadd_ps(f, y[1], s[2 * i + 1]);
        }
    }
    KVMEM__UNROLL
    for (i = 0; i < 2 * mr; i++) _mm256_storeu_ps(c + (size_t)(i / 2) * ldc + 8 * (i % 2), s[i]);
}
KVMEM__AVX2 static void kvmem__product_avx2(float *c, size_t ldc, const float *a, size_t lda, const float *b,
                                            size_t ldb, int m, int k, int n, int add) {
    int i, j;
    for (j = 0; j < n; j += 16) {
        for (i = 0; m - i >= 6; i += 6)
            kvmem__product_avx2_at(6, c + (size_t)i * ldc + j, ldc, a + (size_t)i * lda, lda, b + j, ldb, k, add);
        for (; i < m; i++)
            kvmem__product_avx2_at(1, c + (size_t)i * ldc + j, ldc, a + (size_t)i * lda, lda, b + j, ldb, k, add);
    }
}
/* out (d, 64) = rows (n, d) transposed, n <= 64, 8 x 8 at a time; whole eights of rows and channels. */
KVMEM__AVX2 static void kvmem__turn_avx2(float *out, size_t ldo, const float *rows, int n, int d) {
    int t, c, i;
    for (t = 0; t < n; t += 8) {
        for (c = 0; c < d; c += 8) {
            const float *p = rows + (size_t)t * (size_t)d + c;
            __m256 a[8], b[8];
            KVMEM__UNROLL
            for (i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(p + (size_t)i * (size_t)d);
            KVMEM__UNROLL
            for (i = 0; i < 8; i += 2) {
                b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
                b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
            }
            KVMEM__UNROLL
            for (i = 0; i < 8; i += 4) {
                a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
                a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
                a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
                a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
            }
            KVMEM__UNROLL
            for (i = 0; i < 4; i++) {
                _mm256_storeu_ps(out + (size_t)(c + i) * ldo + t, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
                _mm256_storeu_ps(out + (size_t)(c + i + 4) * ldo + t, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
            }
        }
    }
}
#endif
#if KVMEM__NEON
KVMEM__INLINE void kvmem__product_neon_at(int mr, float *c, size_t ldc, const float *a, size_t lda,
                                          const float *b, size_t ldb, int k, int add) {
    float32x4_t s[16], y[4];
    int i, x;
    KVMEM__UNROLL
    for (i = 0; i < 4 * mr; i++) s[i] = add ? vld1q_f32(c + (size_t)(i / 4) * ldc + 4 * (i % 4)) : vdupq_n_f32(0);
    for (x = 0; x < k; x++) {
        KVMEM__UNROLL
        for (i = 0; i < 4; i++) y[i] = vld1q_f32(b + (size_t)x * ldb + 4 * i);
        KVMEM__UNROLL
        for (i = 0; i < 4 * mr; i++) s[i] = vfmaq_n_f32(s[i], y[i % 4], a[(size_t)(i / 4) * lda + (size_t)x]);
    }
    KVMEM__UNROLL
    for (i = 0; i < 4 * mr; i++) vst1q_f32(c + (size_t)(i / 4) * ldc + 4 * (i % 4), s[i]);
}
static void kvmem__product_neon(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb,
                                int m, int k, int n, int add) {
    int i, j;
    for (j = 0; j < n; j += 16) {
        for (i = 0; m - i >= 4; i += 4)
            kvmem__product_neon_at(4, c + (size_t)i * ldc + j, ldc, a + (size_t)i * lda, lda, b + j, ldb, k, add);
        for (; i < m; i++)
            kvmem__product_neon_at(1, c + (size_t)i * ldc + j, ldc, a + (size_t)i * lda, lda, b + j, ldb, k, add);
    }
}
#endif
static void kvmem__product(const kvmem_backend *b, float *c, size_t ldc, const float *a, size_t lda,
                           const float *x, size_t ldx, int m, int k, int n, int add) {
#if KVMEM__X86
    if (b->isa == 3) { kvmem__product_avx512(c, ldc, a, lda, x, ldx, m, k, n, add); return; }
    if (b->isa == 2) { kvmem__product_avx2(c, ldc, a, lda, x, ldx, m, k, n, add); return; }
#endif
#if KVMEM__NEON
    if (b->isa == 1) { kvmem__product_neon(c, ldc, a, lda, x, ldx, m, k, n, add); return; }
#endif
    (void)b;
    kvmem__product_plain(c, ldc, a, lda, x, ldx, m, k, n, add);
}
/* out (d, ldo) = rows (n, d) transposed. */
static void kvmem__turn(const kvmem_backend *b, float *out, size_t ldo, const float *rows, int n, int d) {
    int t, c;
#if KVMEM__X86
    if (b->isa >= 2 && n % 8 == 0 && d % 8 == 0) { kvmem__turn_avx2(out, ldo, rows, n, d); return; }
#endif
    (void)b;
    for (c = 0; c < d; c++)
        for (t = 0; t < n; t++) out[(size_t)c * ldo + (size_t)t] = rows[(size_t)t * (size_t)d + (size_t)c];
}

/* --- one unit: tn tokens of the block, one KV head --- */
static void kvmem__tile_init(kvmem__tile *x, const kvmem_cache *c, float *f) {
    const int d = c->shape.head_dim;
    kvmem__tile_sizes(x, c->shape.n_heads / c->shape.n_kv_heads, d, c->recipe.page);
    x->q = f;
    f += x->rows * d;
    x->s = f;
    f += x->rows * x->w;
    x->o = f;
    f += x->rows * x->dp;
    x->k = f;
    f += d * x->w;
    x->v = f;
    f += x->w * x->dp;
    x->m = f;
    x->l = f + x->rows;
}
/* Rotate the unit's queries: token i is read at its own place plus shift. */
static void kvmem__tile_queries(kvmem__tile *x, const kvmem_cache *c, int layer, int g, int t0, int tn, const float *q,
                                const int32_t *at, int32_t shift) {
    const int r = c->shape.n_heads / c->shape.n_kv_heads, d = c->shape.head_dim;
    int i;
    if (x->ready && x->shift == shift) return;
    for (i = 0; i < tn; i++) {
        const float *from = q + ((size_t)(t0 + i) * (size_t)c->shape.n_heads + (size_t)(g * r)) * (size_t)d;
        const int32_t pos = at[i] + shift;
        if (c->shape.rope) c->backend->rope(x->q + i * r * d, from, 1, r, d, &c->shape.rope[layer], &pos, 1, 1);
        else memcpy(x->q + i * r * d, from, (size_t)(r * d) * sizeof(float));
    }
    c->backend->scale(x->q, c->shape.scale, tn * r * d);
    x->shift = shift;
    x->ready = 1;
}
/* Rows e0 .. e0 + w of page p as x->k (d, w) and x->v (w, dp); what is past the rows is zero. */
static void kvmem__tile_load(kvmem__tile *x, const kvmem_cache *c, const kvmem_page *p, int e0, int w) {
    const int d = c->shape.head_dim;
    const kvmem_coded kc = kvmem__page_k(p, p->cap), vc = kvmem__page_v(p, p->cap);
    int i;
    kvmem__coded_decode(p->kc, &kc, x->v, e0, w);
    memset(x->v + w * d, 0, (size_t)((x->w - w) * d) * sizeof(float));
    kvmem__turn(c->backend, x->k, (size_t)x->w, x->v, x->w, d);
    if (x->dp == d) kvmem__coded_decode(p->vc, &vc, x->v, e0, w);
    else {
        memset(x->v, 0, (size_t)(w * x->dp) * sizeof(float));
        for (i = 0; i < w; i++) kvmem__coded_decode(p->vc, &vc, x->v + i * x->dp, e0 + i, 1);
    }
}
/* Entries [e, e + w) of the lane, already in x->k and x->v, for tokens [i0, i1) of the unit; token i sees
   [from[i], to[i]) of the lane. */
static void kvmem__tile_step(kvmem__tile *x, const kvmem_cache *c, int e, int w, int i0, int i1, const int *from,
                             const int *to) {
    const int r = c->shape.n_heads / c->shape.n_kv_heads, d = c->shape.head_dim, rows = (i1 - i0) * r;
    const kvmem_backend *be = c->backend;
    float *s = x->s, *o = x->o + i0 * r * x->dp;
    int i, j, y;
    kvmem__product(be, s, (size_t)x->w, x->q + i0 * r * d, (size_t)d, x->k, (size_t)x->w, rows, d, x->w, 0);
    if (c->shape.softcap > 0) be->softcap(s, c->shape.softcap, (size_t)rows * (size_t)x->w);
    for (i = i0; i < i1; i++) {
        const int a = KVMEM__MAX(from[i] - e, 0), b = KVMEM__MIN(to[i] - e, w);
        for (j = 0; j < r; j++, s += x->w) {
            const int row = i * r + j;
            float mx;
            for (y = 0; y < a; y++) s[y] = -INFINITY;
            for (y = b; y < x->w; y++) s[y] = -INFINITY;
            mx = be->max(s, x->w);
            if (mx > x->m[row]) {
                const float f = kvmem__expf(x->m[row] - mx);
                x->l[row] *= f;
                be->scale(x->o + row * x->dp, f, x->dp);
                x->m[row] = mx;
            }
            x->l[row] += be->exp_sum(s, s, x->m[row], x->w);
        }
    }
    kvmem__product(be, o, (size_t)x->dp, x->s, (size_t)x->w, x->v, (size_t)x->dp, rows, w, x->dp, 1);
}
/* out (r, d) and lse (r) of the tokens from O, m and l. */
static void kvmem__tile_finish(kvmem__tile *x, const kvmem_cache *c, int layer, int g, int t0, int tn,
                               float *out, float *lse) {
    const int H = c->shape.n_heads, r = H / c->shape.n_kv_heads, d = c->shape.head_dim;
    int i, y;
    for (i = 0; i < tn * r; i++) {
        const int h = g * r + i % r;
        const size_t row = (size_t)(t0 + i / r) * (size_t)H + (size_t)h;
        float m = x->m[i], l = x->l[i], f;
        if (c->shape.sink_bias) { /* an extra logit with no value */
            const float s = c->shape.sink_bias[layer * H + h];
            m = KVMEM__MAX(x->m[i], s);
            f = l > 0 ? kvmem__expf(x->m[i] - m) : 0;
            c->backend->scale(x->o + i * x->dp, f, d);
            l = l * f + kvmem__expf(s - m);
        }
        for (y = 0; y < d; y++) out[row * (size_t)d + (size_t)y] = l > 0 ? x->o[i * x->dp + y] / l : 0;
        if (lse) lse[row] = l > 0 ? m + logf(l) : -INFINITY;
    }
}
/* Tokens [t0, t0 + tn) of a block of n, KV head g. read (n_pages) or NULL: pages not read are 0. */
static void kvmem__tile_unit(kvmem__tile *x, const kvmem_cache *c, int layer, int g, int t0, int tn, int n,
                             const float *q, float *out, float *lse, const unsigned char *read) {
    const kvmem_lane *ln = kvmem__lane_at(c, layer, g);
    const int P = c->recipe.page, r = c->shape.n_heads / c->shape.n_kv_heads;
    const kvmem_place_fn fn = ((const kvmem_place_entry *)(const void *)c->recipe.stage[KVMEM_PLACE].entry)->fn;
    const double *par = c->recipe.stage[KVMEM_PLACE].par;
    int from[KVMEM__TILE_ROWS], to[KVMEM__TILE_ROWS], i, e, w, y, i0, i1;
    int32_t at[KVMEM__TILE_ROWS];
    for (i = 0; i < tn; i++) {
        const int slot = ln->n - n + t0 + i;
        kvmem__visible(c, layer, ln, slot, c->block_pos[t0 + i], &from[i], &to[i]);
        at[i] = fn ? fn(par, slot, c->block_pos[t0 + i]) : c->block_pos[t0 + i];
    }
    x->ready = 0;
    for (i = 0; i < tn * r; i++) { x->m[i] = -INFINITY; x->l[i] = 0; }
    memset(x->o, 0, (size_t)(tn * r * x->dp) * sizeof(float));
    /* tiles start at whole multiples of 64 rows of a page, and where keys move by another distance */
    for (e = from[0] / P * P; e < to[tn - 1]; e += w) {
        const kvmem_page *p = ln->pages[e / P];
        const int32_t shift = fn ? p->pos[e % P] - fn(par, e, p->pos[e % P]) : 0;
        w = KVMEM__MIN(ln->n - e, P - e % P);
        w = KVMEM__MIN(w, 64 - e % P % 64);
        for (y = 1; fn && y < w; y++)
            if (p->pos[e % P + y] - fn(par, e + y, p->pos[e % P + y]) != shift) w = y;
        for (i0 = 0; i0 < tn && to[i0] <= e; i0++) {}
        for (i1 = tn; i1 > i0 && from[i1 - 1] >= e + w; i1--) {}
        if (i0 == i1 || (read && !read[e / P])) continue;
        kvmem__tile_queries(x, c, layer, g, t0, tn, q, at, shift);
        kvmem__tile_load(x, c, p, e % P, w);
        kvmem__tile_step(x, c, e, w, i0, i1, from, to);
    }
    kvmem__tile_finish(x, c, layer, g, t0, tn, out, lse);
}
/* What one parallel loop over units shares. A unit is a stretch of `per` tokens of one KV head by tiles, or
   one token, or one chunk of one token's lane with its result in parts. */
typedef struct kvmem__job {
    kvmem_cache *c;
    int layer, n, tiles, per, blocks, chunks;
    const float *q;
    float *out, *lse, *parts;
    const unsigned char *read; /* (G, max_pages) or NULL */
    int max_pages;
} kvmem__job;

static void kvmem__attend_unit(const kvmem__job *job, int u, kvmem__worker *w, kvmem__tile *x) {
    const kvmem_cache *c = job->c;
    const int H = c->shape.n_heads, r = H / c->shape.n_kv_heads, d = c->shape.head_dim, b = u / job->chunks;
    const int g = b / job->blocks, t = job->tiles ? (job->blocks - 1 - b % job->blocks) * job->per : b % job->blocks;
    const size_t row = (size_t)t * (size_t)H + (size_t)(g * r), at = row * (size_t)d;
    const unsigned char *read = job->read ? job->read + (size_t)g * (size_t)job->max_pages : NULL;
    float *lse = job->lse ? job->lse + row : NULL;
    if (job->tiles) {
        kvmem__tile_unit(x, c, job->layer, g, t, KVMEM__MIN(job->per, job->n - t), job->n, job->q, job->out,
                         job->lse, read);
        return;
    }
    if (!job->parts) {
        kvmem__attend_begin(w, c);
        kvmem__attend_some(w, c, job->layer, g, t, job->n, 0, INT_MAX, job->q + at, read);
        kvmem__attend_end(w, c, job->layer, g, job->out + at, lse);
    } else {
        float *p = job->parts + (size_t)u * (size_t)(r * (d + 2));
        w->m = p;
        w->l = p + r;
        w->o = p + 2 * r;
        memset(w->l, 0, (size_t)r * sizeof(float));
        kvmem__attend_begin(w, c);
        kvmem__attend_some(w, c, job->layer, g, t, job->n, u % job->chunks, u % job->chunks + 1, job->q + at, read);
    }
}
/* Merge the chunks' parts in their order: the same operations as without cutting. */
static void kvmem__attend_parts(const kvmem__job *job, kvmem__worker *w) {
    const kvmem_cache *c = job->c;
    const int G = c->shape.n_kv_heads, H = c->shape.n_heads, r = H / G, d = c->shape.head_dim;
    int b, i;
    for (b = 0; b < G * job->n; b++) {
        const int g = b / job->n, t = b % job->n;
        const size_t row = (size_t)t * (size_t)H + (size_t)(g * r);
        kvmem__attend_begin(w, c);
        for (i = 0; i < job->chunks; i++) {
            w->m = job->parts + (size_t)(b * job->chunks + i) * (size_t)(r * (d + 2));
            w->l = w->m + r;
            w->o = w->l + r;
            kvmem__attend_merge(w, c);
        }
        kvmem__attend_end(w, c, job->layer, g, job->out + row * (size_t)d, job->lse ? job->lse + row : NULL);
    }
}
static kvmem_status kvmem__cpu_attend(kvmem_cache *c, int layer, int n, const float *q, float *out, float *lse) {
    const int G = c->shape.n_kv_heads, r = c->shape.n_heads / G, d = c->shape.head_dim;
    const int picks = ((const kvmem_retrieve_entry *)(const void *)c->recipe.stage[KVMEM_RETRIEVE].entry)->fn != NULL;
    kvmem__job job;
    int units, u, workers, longest = 0, g;
    double work = 0;
    float *f;
    size_t mask, parts = 0;
    memset(&job, 0, sizeof job);
    job.c = c;
    job.layer = layer;
    job.n = n;
    job.q = q;
    job.out = out;
    job.lse = lse;
    for (g = 0; g < G; g++) {
        const kvmem_lane *ln = kvmem__lane_at(c, layer, g);
        job.max_pages = KVMEM__MAX(job.max_pages, ln->n_pages);
        longest = KVMEM__MAX(longest, ln->n);
        work += (double)n * ln->n * 2 * r * d;
    }
    mask = picks ? KVMEM__ALIGN16((size_t)G * (size_t)job.max_pages) : 0;
    job.tiles = workers = kvmem__tile_workers(c, c->arena->limit, n, G);
    job.per = job.tiles ? KVMEM__MAX(1, KVMEM__TILE_ROWS / r) : 1;
    job.blocks = (n + job.per - 1) / job.per;
    job.chunks = 1;
    if (job.tiles) KVMEM__TRY(kvmem__scratch(c, mask + (size_t)job.tiles * c->tile_bytes));
    else {
        const int threads = kvmem__threads_for(c->threads, work);
        parts = kvmem__split_floats(c, c->arena->limit, n, G, threads, longest);
        if (parts) job.chunks = (longest + KVMEM__CHUNK - 1) / KVMEM__CHUNK;
        KVMEM__TRY(kvmem__workers(c, mask + parts * sizeof(float), KVMEM__MIN(threads,
                   G * job.blocks * job.chunks), &workers));
    }
    units = G * job.blocks * job.chunks;
    f = (float *)(void *)((uint8_t *)c->scratch + mask);
    if (parts) job.parts = f;
    f += parts;
    if (picks) {
        unsigned char *read = (unsigned char *)c->scratch;
        job.read = read;
        for (g = 0; g < G; g++)
            KVMEM__TRY(kvmem__retrieve(c, layer, g, n, q, read + (size_t)g * (size_t)job.max_pages));
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(workers)
#endif
    {
        kvmem__worker w;
        kvmem__tile x;
        int id = 0;
#ifdef _OPENMP
        id = omp_get_thread_num();
#endif
        if (job.tiles) kvmem__tile_init(&x, c, f + (size_t)id * (c->tile_bytes / sizeof(float)));
        else kvmem__worker_init(&w, c, f + (size_t)id * (c->worker_bytes / sizeof(float)));
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 1)
#endif
        for (u = 0; u < units; u++) kvmem__attend_unit(&job, u, &w, &x); /* those of one lane are neighbours */
    }
    if (job.parts) {
        kvmem__worker w;
        kvmem__worker_init(&w, c, f);
        kvmem__attend_parts(&job, &w);
    }
    return KVMEM_OK;
}

/* ==== >>observe : what attention shows of the entries ============================================
   Collected only when an entry of the recipe declares it: per entry, the probability mass that queries
   put on it, averaged over the query heads of the group,
       acc[t] += sum_i mean_h P[h][i][t]   (all queries)      last[t] = mean_h P[h][newest][t]
   and a ring of the newest queries, from which kvmem_view_attention computes any window's rows again.
   P is recovered from the logits and the log-sum-exp that attend returns: P = e^(s - lse). */
static float *kvmem__stat(const kvmem_cache *c, const kvmem_page *p, unsigned which) {
    const int second = which == KVMEM_READS_LAST && (c->reads & KVMEM_READS_ACC);
    return p->stats + (second ? p->cap : 0);
}
/* Add the rows of token t to acc and, for the newest token, set last. */
static void kvmem__observe_one(kvmem__worker *w, kvmem_cache *c, int layer, int g, int t, int n, const float *q,
                               const float *lse) {
    const kvmem_lane *ln = kvmem__lane_at(c, layer, g);
    const int r = c->shape.n_heads / c->shape.n_kv_heads, P = c->recipe.page, qslot = ln->n - n + t;
    const float share = 1.0f / (float)r;
    int a, b, i, j, x;
    kvmem__visible(c, layer, ln, qslot, c->block_pos[t], &a, &b);
    w->kc = NULL;
    for (i = a / P; i * P < b; i++) {
        const kvmem_page *p = ln->pages[i];
        const int t0 = KVMEM__MAX(a - i * P, 0), t1 = KVMEM__MIN(b - i * P, P);
        kvmem__page_logits(w, c, layer, ln, i, t0, t1, q, qslot, c->block_pos[t]);
        for (j = 0; j < r; j++) {
            float *s = w->s + j * P;
            c->backend->exp_sum(s + t0, s + t0, lse[j], t1 - t0);
            if (c->reads & KVMEM_READS_ACC) {
                float *acc = kvmem__stat(c, p, KVMEM_READS_ACC);
                for (x = t0; x < t1; x++) acc[x] += share * s[x];
            }
            if ((c->reads & KVMEM_READS_LAST) && t == n - 1) {
                float *last = kvmem__stat(c, p, KVMEM_READS_LAST);
                for (x = t0; x < t1; x++) last[x] += share * s[x];
            }
        }
    }
}
static kvmem_status kvmem__cpu_observe(kvmem_cache *c, int layer, int n, const float *q, const float *lse) {
    const int G = c->shape.n_kv_heads, H = c->shape.n_heads, d = c->shape.head_dim, r = H / G;
    int g, i, t, workers;
    double work = 0;
    float *f;
    for (g = 0; g < G; g++) {
        kvmem_lane *ln = kvmem__lane_at(c, layer, g);
        work += (double)((c->reads & KVMEM_READS_ACC) ? n : 1) * ln->n * r * d;
        for (i = 0; i < ln->n_pages; i++) {
            KVMEM__TRY(kvmem__page_own(c, ln, i));
            if (c->reads & KVMEM_READS_LAST)
                memset(kvmem__stat(c, ln->pages[i], KVMEM_READS_LAST), 0, (size_t)ln->pages[i]->cap * sizeof(float));
        }
    }
    KVMEM__TRY(kvmem__workers(c, 0, KVMEM__MIN(kvmem__threads_for(c->threads, work), G), &workers));
    f = (float *)c->scratch;
#ifdef _OPENMP
#pragma omp parallel num_threads(workers) private(t)
#endif
    {
        kvmem__worker w;
        int id = 0;
#ifdef _OPENMP
        id = omp_get_thread_num();
#endif
        kvmem__worker_init(&w, c, f + (size_t)id * (c->worker_bytes / sizeof(float)));
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (g = 0; g < G; g++) /* a lane's statistics are summed by one thread, in order of the tokens */
            for (t = (c->reads & KVMEM_READS_ACC) ? 0 : n - 1; t < n; t++) {
                const size_t row = (size_t)t * (size_t)H + (size_t)(g * r);
                kvmem__observe_one(&w, c, layer, g, t, n, q + row * (size_t)d, lse + row);
            }
    }
    return KVMEM_OK;
}
/* The newest queries of a layer go into its ring; the ring's place moves on when the block ends. */
static void kvmem__ring_push(kvmem_cache *c, int layer, int n, const float *q) {
    const size_t row = (size_t)c->shape.n_heads * (size_t)c->shape.head_dim;
    const int m = KVMEM__MIN(n, c->ring);
    int t;
    for (t = 0; t < m; t++) {
        const int slot = (c->ring_at + t) % c->ring;
        memcpy(c->ring_q + ((size_t)layer * (size_t)c->ring + (size_t)slot) * row, q + (size_t)(n - m + t) * row,
               row * sizeof(float));
        c->ring_pos[slot] = c->block_pos[n - m + t];
    }
}
/* Queries in the ring as layer sees it: those of the block in flight count once it has attended. */
static int kvmem__ring_count(const kvmem_cache *c, int layer, int *first) {
    const int more = c->block_n && c->layer_state[layer] == 2 ? KVMEM__MIN(c->block_n, c->ring) : 0;
    const int n = KVMEM__MIN(c->ring, c->ring_n + more);
    *first = c->ring ? (c->ring_at + more - n + 2 * c->ring) % c->ring : 0;
    return n;
}
KVMEM_API kvmem_status kvmem_cache_attend(kvmem_cache *c, int layer, int n, const float *q, float *out) {
    float *lse = NULL;
    KVMEM__TRY(kvmem__check_layer(c, layer, "attend"));
    if (!q || !out) return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "attend: q or out is NULL");
    if (c->layer_state[layer] != 1 || n != c->block_n)
        return kvmem__fail(&c->error, KVMEM_BAD_STATE, "attend: layer %d, %d tokens: append these tokens first, then "
                           "attend once", layer, n);
    KVMEM__TRY(kvmem__check_finite(c, q, n, c->shape.n_heads, "q", layer));
    if (c->reads & (KVMEM_READS_ACC | KVMEM_READS_LAST)) {
        const kvmem_bytes_part part = kvmem__part(4, (size_t)n * (size_t)c->shape.n_heads * sizeof(float));
        kvmem_status st;
        int over;
        lse = (float *)kvmem__arena_take(c->arena, &part, &over);
        if (!lse) return kvmem__no_room(c, over, part.total, "the observation of attention");
        st = c->backend->attend(c, layer, n, q, out, lse);
        if (st == KVMEM_OK) st = c->backend->observe(c, layer, n, q, lse);
        kvmem__arena_give(c->arena, lse, &part);
        KVMEM__TRY(st);
    } else
        KVMEM__TRY(c->backend->attend(c, layer, n, q, out, NULL));
    if (c->ring) kvmem__ring_push(c, layer, n, q);
    c->layer_state[layer] = 2;
    return KVMEM_OK;
}

/* --- what stage functions see --- */
#define KVMEM__VIEW_BLOCKS 8
/* Floats that live until the stage function returns; NULL with the cache's error set when there is no
   room. At most KVMEM__VIEW_BLOCKS a call. */
static float *kvmem__view_scratch(const kvmem_view *v, size_t floats) {
    kvmem_cache *c = v->cache;
    kvmem_bytes_part part = kvmem__part(4, floats * sizeof(float) + 1);
    int over;
    void *p;
    if (c->n_tmp == KVMEM__VIEW_BLOCKS || floats > SIZE_MAX / sizeof(float) - 1) {
        kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "a stage function asks for too much scratch");
        return NULL;
    }
    p = kvmem__arena_take(c->arena, &part, &over);
    if (!p) {
        kvmem__no_room(c, over, part.total, "scratch of a stage function");
        return NULL;
    }
    c->tmp[c->n_tmp] = p;
    c->tmp_size[c->n_tmp++] = part.total;
    return (float *)p;
}
static void kvmem__view_scratch_end(kvmem_cache *c) {
    while (c->n_tmp) {
        kvmem_bytes_part part;
        c->n_tmp--;
        part = kvmem__part(4, c->tmp_size[c->n_tmp]);
        kvmem__arena_give(c->arena, c->tmp[c->n_tmp], &part);
    }
}
KVMEM_API int kvmem_view_count(const kvmem_view *v, int g) { return kvmem__lane_at(v->cache, v->layer, g)->n; }
KVMEM_API void kvmem_view_positions(const kvmem_view *v, int g, int32_t *out) {
    kvmem_cache_read(v->cache, v->layer, g, 0, kvmem_view_count(v, g), NULL, NULL, out);
}
KVMEM_API void kvmem_view_keys(const kvmem_view *v, int g, int i0, int n, float *out) {
    kvmem_cache_read(v->cache, v->layer, g, i0, n, out, NULL, NULL);
}
KVMEM_API void kvmem_view_values(const kvmem_view *v, int g, int i0, int n, float *out) {
    kvmem_cache_read(v->cache, v->layer, g, i0, n, NULL, out, NULL);
}
static void kvmem__view_stat(const kvmem_view *v, int g, unsigned which, float *out) {
    const kvmem_lane *ln = kvmem__lane_at(v->cache, v->layer, g);
    const int P = v->cache->recipe.page;
    int i;
    if (!(v->cache->reads & which)) {
        memset(out, 0, (size_t)ln->n * sizeof(float));
        return;
    }
    for (i = 0; i * P < ln->n; i++)
        memcpy(out + i * P, kvmem__stat(v->cache, ln->pages[i], which),
               (size_t)kvmem__page_rows(v->cache, ln, i) * sizeof(float));
}
KVMEM_API void kvmem_view_acc(const kvmem_view *v, int g, float *out) { kvmem__view_stat(v, g, KVMEM_READS_ACC, out); }
KVMEM_API void kvmem_view_last(const kvmem_view *v, int g, float *out) {
    kvmem__view_stat(v, g, KVMEM_READS_LAST, out);
}

/* Add the softmax row of one ring query, mean over the group, to out (n); logits: (r, n). */
static void kvmem__view_row(kvmem__worker *w, const kvmem_cache *c, int layer, int g, const float *q, int32_t qpos,
                            float *logits, float *out) {
    const kvmem_lane *ln = kvmem__lane_at(c, layer, g);
    const int P = c->recipe.page, r = c->shape.n_heads / c->shape.n_kv_heads, n = ln->n;
    const int qslot = kvmem__lane_find(c, ln, qpos + 1) - 1; /* its own slot, or the last before it */
    int a, b, i, j, t;
    kvmem__visible(c, layer, ln, qslot, qpos, &a, &b);
    w->kc = NULL;
    for (i = a / P; i * P < b; i++) {
        const int t0 = KVMEM__MAX(a - i * P, 0), t1 = KVMEM__MIN(b - i * P, P);
        kvmem__page_logits(w, c, layer, ln, i, t0, t1, q, qslot, qpos);
        for (j = 0; j < r; j++)
            memcpy(logits + (size_t)j * (size_t)n + (size_t)(i * P + t0), w->s + j * P + t0,
                   (size_t)(t1 - t0) * sizeof(float));
    }
    for (j = 0; j < r && a < b; j++) {
        float *s = logits + (size_t)j * (size_t)n + a;
        const float m = c->backend->max(s, b - a), l = c->backend->exp_sum(s, s, m, b - a);
        const float f = 1.0f / (l * (float)r);
        for (t = 0; t < b - a; t++) out[a + t] += f * s[t];
    }
}
KVMEM_API kvmem_status kvmem_view_attention(const kvmem_view *v, int g, int w, float *out) {
    kvmem_cache *c = v->cache;
    const int H = c->shape.n_heads, d = c->shape.head_dim, r = H / c->shape.n_kv_heads, n = kvmem_view_count(v, g);
    int first, have = kvmem__ring_count(c, v->layer, &first), part, t, threads;
    float *parts, *logits, *work;
    if (!c->ring) return kvmem__fail(&c->error, KVMEM_BAD_STATE, "kvmem_view_attention: the entry does not declare "
                                     "KVMEM_READS_QUERIES");
    if (w > have) w = have;
    first = (first + have - w) % c->ring;
    memset(out, 0, (size_t)n * sizeof(float));
    parts = kvmem__view_scratch(v, (size_t)KVMEM__VIEW_PARTS * (size_t)n);
    logits = parts ? kvmem__view_scratch(v, (size_t)KVMEM__VIEW_PARTS * (size_t)r * (size_t)n) : NULL;
    work = logits ? kvmem__view_scratch(v, (size_t)KVMEM__VIEW_PARTS * (c->worker_bytes / sizeof(float))) : NULL;
    if (!work) return c->error.status;
    memset(parts, 0, (size_t)KVMEM__VIEW_PARTS * (size_t)n * sizeof(float));
    threads = KVMEM__MIN(kvmem__threads_for(c->threads, (double)w * n * r * d), KVMEM__VIEW_PARTS);
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) private(t)
#endif
    for (part = 0; part < KVMEM__VIEW_PARTS; part++) { /* fixed shares of the rows: any thread count agrees */
        kvmem__worker wk;
        kvmem__worker_init(&wk, c, work + (size_t)part * (c->worker_bytes / sizeof(float)));
        for (t = part * w / KVMEM__VIEW_PARTS; t < (part + 1) * w / KVMEM__VIEW_PARTS; t++) {
            const int slot = (first + t) % c->ring;
            const float *q = c->ring_q + (((size_t)v->layer * (size_t)c->ring + (size_t)slot) * (size_t)H +
                                          (size_t)(g * r)) * (size_t)d;
            kvmem__view_row(&wk, c, v->layer, g, q, c->ring_pos[slot], logits + (size_t)part * (size_t)r * (size_t)n,
                            parts + (size_t)part * (size_t)n);
        }
    }
    for (part = 0; part < KVMEM__VIEW_PARTS; part++)
        for (t = 0; t < n; t++) out[t] += parts[(size_t)part * (size_t)n + (size_t)t];
    return KVMEM_OK;
}
static kvmem_status kvmem__add_event(kvmem_cache *c, int64_t pos) {
    if (c->n_events == c->cap_events) {
        const int cap = c->cap_events ? 2 * c->cap_events : 16;
        const kvmem_bytes_part part = kvmem__part(2, (size_t)cap * sizeof *c->event);
        const kvmem_bytes_part old = kvmem__part(2, (size_t)c->cap_events * sizeof *c->event);
        int over;
        int64_t *e = (int64_t *)kvmem__arena_take(c->arena, &part, &over);
        if (!e) return kvmem__no_room(c, over, part.total, "the list of events");
        if (c->n_events) memcpy(e, c->event, (size_t)c->n_events * sizeof *e);
        kvmem__arena_give(c->arena, c->event, &old);
        c->event = e;
        c->cap_events = cap;
    }
    c->event[c->n_events++] = pos;
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_view_cut(const kvmem_view *v, int32_t pos) {
    kvmem_cache *c = v->cache;
    if (c->n_events && c->event[c->n_events - 1] >= pos)
        return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT,
                           "kvmem_view_cut: %d does not rise above the last start", (int)pos);
    return kvmem__add_event(c, pos);
}

/* ==== >>backend : the CPU's tables and the choice at run time =====================================
   One table a path. The choice is a pure function of the processor, so there is nothing to initialize. */
#define KVMEM__CACHE_OPS                                                                            \
    kvmem__cpu_encode, kvmem__cpu_attend, kvmem__cpu_observe, kvmem__cpu_gather, kvmem__rope
#ifndef KVMEM_NO_DECODER
#define KVMEM__DECODER_OPS(mm, isa)                                                                 \
    kvmem__mm_scratch, kvmem__matmul_##mm, kvmem__embed_rows, kvmem__rmsnorm_##isa,                 \
    kvmem__glu_##isa, kvmem__add_##isa
#else
#define KVMEM__DECODER_OPS(mm, isa) NULL, NULL, NULL, NULL, NULL, NULL
#endif
#define KVMEM__VECTOR_OPS(isa)                                                                      \
    kvmem__dot_##isa, kvmem__axpy_##isa, kvmem__scale_##isa, kvmem__max_##isa, kvmem__exp_sum_##isa

static const kvmem_backend kvmem__plain = { "plain", 0, KVMEM__VECTOR_OPS(plain), KVMEM__CACHE_OPS,
                                            KVMEM__DECODER_OPS(plain, plain), kvmem__softcap_plain };

#if KVMEM__NEON
static const kvmem_backend kvmem__neon = { "neon", 1, KVMEM__VECTOR_OPS(neon), KVMEM__CACHE_OPS,
                                           KVMEM__DECODER_OPS(neon, neon), kvmem__softcap_plain };
#endif
#if KVMEM__X86
static const kvmem_backend kvmem__avx2 = { "avx2", 2, KVMEM__VECTOR_OPS(avx2), KVMEM__CACHE_OPS,
                                           KVMEM__DECODER_OPS(avx2, avx2), kvmem__softcap_avx2 };
static const kvmem_backend kvmem__avx512 = { "avx512", 3, kvmem__dot_avx2, kvmem__axpy_avx2,
                                             kvmem__scale_avx2, kvmem__max_avx512,
                                             kvmem__exp_sum_avx512, KVMEM__CACHE_OPS,
                                             KVMEM__DECODER_OPS(avx512, avx2), kvmem__softcap_avx2 };
/* What processor and operating system allow: 0, 2 (AVX2, FMA, F16C) or 3 (AVX-512 F, BW, VL, DQ and
   VNNI besides). Registers count only if the system saves them: XCR0 bits 1, 2 and 5, 6, 7. */
static int kvmem__x86_level(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if ((c & (1u << 27)) == 0 || (c & (1u << 12)) == 0 || (c & (1u << 29)) == 0) return 0;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 6) != 6) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & (1u << 5)) == 0) return 0;
    if ((low & 0xe0) != 0xe0 || (c & (1u << 11)) == 0) return 2;
    return (b & (1u << 16)) && (b & (1u << 17)) && (b & (1u << 30)) && (b & (1u << 31)) ? 3 : 2;
}
#endif

KVMEM_API const kvmem_backend *kvmem_backend_cpu(const char *name) {
#if KVMEM__X86
    const int level = kvmem__x86_level();
    if (level >= 3 && (!name || !strcmp(name, "avx512"))) return &kvmem__avx512;
    if (level >= 2 && (!name || !strcmp(name, "avx2"))) return &kvmem__avx2;
#endif
#if KVMEM__NEON
    if (!name || !strcmp(name, "neon")) return &kvmem__neon;
#endif
    if (!name || !strcmp(name, "plain")) return &kvmem__plain;
    return NULL;
}
KVMEM_API const char *kvmem_backend_name(const kvmem_backend *b) {
    return (b ? b : kvmem_backend_cpu(NULL))->name;
}

/* ==== >>score : how much will an entry matter? ===================================================
   A score function sees one lane (layer, g) of n >= 1 entries, fills score (n); higher is kept. It reads
   the cache only through kvmem_view_* and only what its row declares, so that a recipe whose score reads
   no probabilities costs none. Sinks and the recent window are protected by the commit, not here; so is
   the selection: the top B scores, ties to the lower index. Letters: n entries of the lane, w window,
   B budget, G KV heads, d head size.

       entry      t:   0    1    2    3    4        B = 3, one recent entry protected:
       score           .9   .1   .4   .2   .3       keep {0, 2, 4} = top 2 of the first four + entry 4 */

#define KVMEM__END_PARAMS { NULL, 0, 0, 0, NULL, 0, NULL }

/* Memory for n floats that lasts until the stage function returns; NULL: none, and the cache's error says
   why. */
static float *kvmem__view_scratch(const kvmem_view *v, size_t floats);
/* Lane (layer, g) keeps the entries kept (n_kept), statistics and positions with them. */
static kvmem_status kvmem__lane_keep(kvmem_cache *c, int layer, int g, const int *kept, int n_kept);

/* ==== >>score_random : the floor that every method must beat. stage: score ====
   Random eviction, a baseline of NVIDIA/kvpress.     Code: kvpress/presses/random_press.py (score).
   s[t] = u(seed, layer, g, position of t), uniform in [0, 1) with 24 bits; a pure function of its four
   arguments, so that the choice depends neither on the order of calls nor on threads, and a token keeps
   its number from step to step (the survivors of a stream are a uniform sample of it).
   reads: positions.   state: none.   cost: O(n) time.   defaults: seed=0.   ties: lower index.
   departs: the code draws from one generator in call order.            test: tests/stages.c random_* */
static kvmem_status kvmem__score_random(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g);
    int32_t *pos = (int32_t *)(void *)kvmem__view_scratch(v, (size_t)n);
    int t;
    if (!pos) return v->cache->error.status;
    kvmem_view_positions(v, g, pos);
    for (t = 0; t < n; t++) {
        const uint64_t u = kvmem__random(v->seed, (uint64_t)v->layer, (uint64_t)g, (uint64_t)pos[t]);
        score[t] = (float)(u >> 40) * (1.0f / 16777216.0f);
    }
    return KVMEM_OK;
}

/* ==== >>score_recency : newer is better. stage: score ====
   Sliding window; with sinks StreamingLLM. Xiao et al. Efficient Streaming Language Models with Attention
   Sinks. 2023. arXiv 2309.17453.   Code: mit-han-lab/streaming-llm (StartRecentKVCache.__call__).
   s[t] = position of t - position of the newest entry (0 or negative, so that float32 tells neighbours
   apart near the end of a stream of any length). Keeps the newest B; with sink=S the first S tokens and
   the newest B - S: capacity S + R of the code, reached after every block, as the code does after every
   forward pass (when=block), so that a long prompt never lies in memory as a whole.
   reads: positions.   state: none.   cost: O(n) time.   ties: none nearer than 2^24 tokens.
   departs: nowhere; positions in the cache are the place stage's part.  test: tests/stages.c streamingllm_* */
static kvmem_status kvmem__score_recency(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g);
    int32_t *pos = (int32_t *)(void *)kvmem__view_scratch(v, (size_t)n);
    int t;
    if (!pos) return v->cache->error.status;
    kvmem_view_positions(v, g, pos);
    for (t = 0; t < n; t++) score[t] = (float)(pos[t] - pos[n - 1]);
    return KVMEM_OK;
}

/* ==== >>score_knorm : keys with a small norm attract attention. stage: score ====
   Devoto et al. A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression. 2024.
   arXiv 2406.11430.                           Code: NVIDIA/kvpress knorm_press.py (KnormPress.score).
   s[t] = -|K_t|, the Euclidean norm of the stored key (RoPE turns a key and leaves its norm). Reads no
   query and no probability: fit for streams. Protects nothing; give it recent=... when decoding.
   reads: keys (n, d).   state: none.   cost: O(n d) time, 32 d floats.   ties: lower index.
   departs: nowhere; sums in double.                                     test: tests/stages.c knorm_* */
static kvmem_status kvmem__score_knorm(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g), d = v->cache->shape.head_dim, rows = 32;
    float *k = kvmem__view_scratch(v, (size_t)rows * (size_t)d);
    int t, i, c;
    if (!k) return v->cache->error.status;
    for (t = 0; t < n; t += rows) {
        const int m = KVMEM__MIN(rows, n - t);
        kvmem_view_keys(v, g, t, m, k);
        for (i = 0; i < m; i++) {
            double sum = 0;
            for (c = 0; c < d; c++) {
                const double x = (double)k[(size_t)i * (size_t)d + (size_t)c];
                sum += x * x;
            }
            score[t + i] = (float)-sqrt(sum);
        }
    }
    return KVMEM_OK;
}

/* ==== >>score_h2o : attention received so far. stage: score; prefill and decode ====
   Zhang et al. H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models.
   2023. arXiv 2306.14048.  Code: FMInference/H2O h2o_hf/utils_real_drop (H2OKVCache_LayerWise.__call__).
   acc[t] += sum over the new queries i and mean over the heads of the group of P[i][t]; s[t] = acc[t].
   The sum follows its entry through every move; a dropped entry's sum is gone. The layer's output is
   computed before the eviction. Old entries have been seen by more queries: normalize=1 divides by the
   number of queries that could see t, newest position - position of t + 1 (kvpress ObservedAttention).
   reads: ACC.   state: one float an entry.   cost: O(n) here; the sums need every attention row.
   defaults: normalize=0; preset: half the budget recent.   ties: lower index.
   departs: group mean (the code has one KV head per query head).        test: tests/stages.c h2o_* */
static const kvmem_param kvmem__params_h2o[] = {
    { "normalize", 0, 0, 1, NULL, 1, "1: divide by the number of queries that could see the entry" },
    KVMEM__END_PARAMS };
static kvmem_status kvmem__score_h2o(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g);
    kvmem_view_acc(v, g, score);
    if (v->par[0] > 0) {
        int32_t *pos = (int32_t *)(void *)kvmem__view_scratch(v, (size_t)n);
        int t;
        if (!pos) return v->cache->error.status;
        kvmem_view_positions(v, g, pos);
        for (t = 0; t < n; t++) score[t] /= (float)(pos[n - 1] - pos[t] + 1);
    }
    return KVMEM_OK;
}

/* ==== >>score_tova : attention of the newest query, one set for the layer. stage: score ====
   Oren et al. Transformers are Multi-State RNNs. 2024. arXiv 2401.06104.
   Code: schwartz-lab-NLP/TOVA src/tova_cache.py (TOVACache.reduce).
   s[t] = mean over all H query heads of the layer of P[h][newest][t]: the mean over its lanes of the
   group means. Every lane gets the same scores and so keeps the same tokens; each decode step drops the
   argmin. Where another stage made the lanes differ, only lanes that hold the same tokens vote together.
   reads: LAST, LANES.   state: one float an entry.   cost: O(G n) a lane.   always kept: nothing (recent=1
   protects the newest token, as kvpress does).   ties: lower index.
   departs: nowhere for equal lanes.                                     test: tests/stages.c tova_* */
static kvmem_status kvmem__score_tova(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g), n_lanes = v->cache->shape.n_kv_heads;
    const size_t un = (size_t)n;
    float *last = kvmem__view_scratch(v, 3 * un);
    int32_t *pos, *other;
    int g2, t, voters = 0;
    if (!last) return v->cache->error.status;
    pos = (int32_t *)(void *)(last + un);
    other = pos + un;
    kvmem_view_positions(v, g, pos);
    for (t = 0; t < n; t++) score[t] = 0;
    for (g2 = 0; g2 < n_lanes; g2++) {
        if (kvmem_view_count(v, g2) != n) continue;
        if (g2 != g) {
            kvmem_view_positions(v, g2, other);
            if (memcmp(pos, other, un * sizeof *pos)) continue;
        }
        kvmem_view_last(v, g2, last);
        for (t = 0; t < n; t++) score[t] += last[t];
        voters++;
    }
    for (t = 0; t < n; t++) score[t] /= (float)voters;
    return KVMEM_OK;
}

/* out[t] = mean or maximum of x over [t - k/2, t + k/2] cut to [0, n); k odd. The mean always divides by
   k, as pooling with zeros beside the ends does. Summed left to right. */
static void kvmem__pool(float *out, const float *x, int n, int k, int use_max) {
    int t, i;
    for (t = 0; t < n; t++) {
        const int from = KVMEM__MAX(0, t - k / 2), to = KVMEM__MIN(n, t + k / 2 + 1);
        float a = use_max ? x[from] : 0;
        for (i = from; i < to; i++) {
            if (!use_max) a += x[i];
            else if (x[i] > a) a = x[i];
        }
        out[t] = use_max ? a : a / (float)k;
    }
}

/* ==== >>score_snapkv : entries the last queries looked at. stage: score; end of prefill ====
   Li et al. SnapKV: LLM Knows What You are Looking for Before Generation. 2024. arXiv 2404.14469.
   Code: FasterDecoding/SnapKV snapkv/monkeypatch/snapkv_utils.py (SnapKVCluster.update_kv).
   The last w queries vote for the entries before them; neighbours of a winner come along.
   a[t] = sum_{i in the last w queries} mean over the group of softmax_i(q_i . k_t / sqrt d), each softmax
   over all entries visible to i; s[t] = pool_k(a)[t] for t < n - w, zeros beside the ends, divided by k.
   The w newest entries score w + 1, w + 2, ... : above every a (<= w), and the newest last to go.
   reads: QUERIES (w).   state: the ring.   cost: O(H w n d + n k) time, n floats.
   defaults: window=32 kernel=5 pool=avg (init_snapkv; the class itself says window=64, and kvpress).
   ties: lower index.   departs: scores are averaged over the group, one set for a KV head, as kvpress
   does; the code keeps one set for every query head.                     test: tests/stages.c snapkv_* */
static const kvmem_param kvmem__params_snapkv[] = {
    { "window", 32, 1, 4096, NULL, 1, "how many of the last queries vote" },
    { "kernel", 5, 1, 255, NULL, 2, "entries that one pooled score covers" },
    { "pool", 0, 0, 1, "avg|max", 1, "mean or maximum over the kernel" },
    KVMEM__END_PARAMS };
static kvmem_status kvmem__score_snapkv(const kvmem_view *v, int g, float *score) {
    const int n = kvmem_view_count(v, g), w = (int)v->par[0], m = KVMEM__MAX(0, n - w);
    int t;
    if (m > 0) { /* steps 2, 3: votes; step 4: pooling */
        float *votes;
        KVMEM__TRY(kvmem_view_attention(v, g, w, score));
        votes = kvmem__view_scratch(v, (size_t)m);
        if (!votes) return v->cache->error.status;
        memcpy(votes, score, (size_t)m * sizeof *votes);
        kvmem__pool(score, votes, m, (int)v->par[1], v->par[2] > 0);
    }
    for (t = m; t < n; t++) score[t] = (float)(w + 1 + t - m);
    return KVMEM_OK;
}

static const kvmem_score_entry kvmem__scores[] = {
    { { "recency", "newest entries; with sinks and place=cache StreamingLLM",
        "Xiao 2023, arXiv 2309.17453", NULL, 0 }, kvmem__score_recency },
    { { "random", "a uniform number per token from the seed: the floor", "-", NULL, 0 },
      kvmem__score_random },
    { { "knorm", "keys with a small norm", "Devoto 2024, arXiv 2406.11430", NULL, KVMEM_READS_KEYS },
      kvmem__score_knorm },
    { { "h2o", "attention received from all queries so far", "Zhang 2023, arXiv 2306.14048",
        kvmem__params_h2o, KVMEM_READS_ACC }, kvmem__score_h2o },
    { { "tova", "attention of the newest query, mean over the layer's heads",
        "Oren 2024, arXiv 2401.06104", NULL, KVMEM_READS_LAST | KVMEM_READS_LANES }, kvmem__score_tova },
    { { "snapkv", "pooled attention of the last queries", "Li 2024, arXiv 2404.14469",
        kvmem__params_snapkv, KVMEM_READS_QUERIES }, kvmem__score_snapkv } };

/* ==== >>budget : how many entries may each lane keep? ============================================
   A budget function maps the mean over the whole cache to keep[g] of one layer. The mean comes from the
   recipe's amount (count, share, bytes) and contains sinks and the recent window; the caller clamps
   keep[g] to [1, n[g]]. An allocation moves memory, it does not make any: over all layers the sum
   stays layers * G * mean. */

/* ==== >>budget_uniform : every lane the same. stage: budget ====
   keep[g] = mean.   reads: nothing.   cost: O(G). */
static kvmem_status kvmem__budget_uniform(const kvmem_view *v, int mean, const int *n,
                                          const float *const *score, int *keep) {
    int g;
    (void)n;
    (void)score;
    for (g = 0; g < v->cache->shape.n_kv_heads; g++) keep[g] = mean;
    return KVMEM_OK;
}

/* Sinks and recent entries that are set apart in a lane that keeps `keep` entries. Section commit. */
static void kvmem__protect(const kvmem_recipe *r, int keep, int *sink, int *recent);

/* Layer l's share of the pyramid: k_l entries besides the protected ones, for B such entries in the mean,
   m = n - w candidates and L layers. exact = 0: the code's floored step. exact = 1: the real ramp from mx
   to mn, floors plus one for the largest remainders (lower layer first), so that sum_l k_l = L * B. */
static int kvmem__pyramid(int l, int L, int B, int m, int beta, int exact) {
    int64_t mn = B / beta, mx = 2 * (int64_t)B - mn, num, sum = 0, rest;
    int i, ahead = 0;
    if (mx >= m) { mx = m; mn = 2 * (int64_t)B - mx; }
    if (L < 2) return B;
    if (!exact) return (int)(mx - l * ((mx - mn) / (L - 1)));
    num = mx * (L - 1) - l * (mx - mn);
    rest = num % (L - 1);
    for (i = 0; i < L; i++) {
        const int64_t other = mx * (L - 1) - i * (mx - mn), r = other % (L - 1);
        sum += other / (L - 1);
        ahead += r > rest || (r == rest && i < l);
    }
    return (int)(num / (L - 1) + (ahead < (int64_t)L * B - sum));
}

/* ==== >>budget_pyramid : much for the lower layers, little for the upper. stage: budget ====
   Cai et al. PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling. 2024.
   arXiv 2406.02069.   Code: Zefan-Cai/KVCache-Factory pyramidkv_utils.py (PyramidKVCluster.update_kv).
   cap = mean, w = protected entries (sinks and recent), B = cap - w, N = tokens seen. Integer division:
     mn = B / beta; mx = 2B - mn; if mx >= N - w then mx = N - w, mn = 2B - mx
     N < cap: all;   N < 2B: cap;   else k_l = mx - l (mx - mn) / (L - 1), and the layer keeps k_l + w.
   Example L=4 cap=72 w=8 beta=20: mn=3 mx=125, exact=0: k = 125, 85, 45, 5 (260 for a total of 256);
   exact=1: 125, 84, 44, 3 (256).
   reads: nothing.   cost: O(L) a lane.   defaults: beta=20 exact=1.
   departs: exact=1 by default, since a byte budget is a ceiling and the code's floored step passes it by
   up to L(L-1)/2 entries. N counts tokens seen, not entries left, which is the same at the end of a
   prompt and keeps the pyramid upright when the recipe reduces again later. Sinks count as protected.
   kvpress works with real numbers and falls back to uniform when mn < w.  test: tests/stages.c pyramid_* */
static const kvmem_param kvmem__params_pyramid[] = {
    { "beta", 20, 1, 1000000, NULL, 1, "steepness: the top layer gets 1/beta of the mean; 1 is uniform" },
    { "exact", 1, 0, 1, NULL, 1, "1: the layers' sum is the budget; 0: the code's floored step" },
    KVMEM__END_PARAMS };
static kvmem_status kvmem__budget_pyramid(const kvmem_view *v, int mean, const int *n,
                                          const float *const *score, int *keep) {
    const kvmem_cache *c = v->cache;
    const int seen = (int)KVMEM__MIN(c->tokens + c->block_n, (int64_t)INT_MAX);
    int g, sink, recent, w, B;
    (void)n;
    (void)score;
    kvmem__protect(&c->recipe, mean, &sink, &recent);
    w = sink + recent;
    B = mean - w;
    for (g = 0; g < c->shape.n_kv_heads; g++) {
        if (seen < mean || (int64_t)seen < 2 * (int64_t)B || B < 1) keep[g] = mean;
        else keep[g] = w + kvmem__pyramid(v->layer, c->shape.n_layers, B, seen - w, (int)v->par[0],
                                          v->par[1] > 0);
        if (keep[g] < 1) keep[g] = 1;
    }
    return KVMEM_OK;
}

static const kvmem_budget_entry kvmem__budgets[] = {
    { { "uniform", "every lane the same number", "-", NULL, 0 }, kvmem__budget_uniform },
    { { "pyramid", "falls linearly from the first layer to the last", "Cai 2024, arXiv 2406.02069",
        kvmem__params_pyramid, 0 }, kvmem__budget_pyramid } };

/* ==== >>reduce : what becomes of the rest? =======================================================
   Gets the rising indices of what is kept; the lane has exactly these entries afterwards. */

/* ==== >>reduce_drop : forget the rest. stage: reduce ====
   Kept entries move together, with positions and statistics, in rising order; pages that become empty
   return to the arena.   cost: O(n_kept) rows moved. */
static kvmem_status kvmem__reduce_drop(const kvmem_view *v, int g, const int *kept, int n_kept,
                                       const float *score) {
    (void)score;
    return kvmem__lane_keep(v->cache, v->layer, g, kept, n_kept);
}

/* ==== >>reduce_recompute : the rest is made again when it is read. stage: reduce ====
   Qasim. The Residual Stream Is All You Need: On the Redundancy of the KV Cache in Transformer
   Inference. 2026. arXiv 2603.19664.   Code: none published.
   K and V are functions of the residual stream: what leaves the cache is not lost as long as something
   is kept from which it can be computed again. Here the rows leave just as with drop; >>direct has the
   other half, and only a session of the decoder can do it, so a cache without one refuses the entry.
   What is made again is a prefix, the same for all lanes.               test: tests/direct.c */
static const kvmem_param kvmem__params_recompute[] = {
    { "checkpoint", 0, 0, 2, "tokens|f32|f16", 1, "kept of a token: its id, or residual vectors" },
    { "every", 0, 0, 4096, NULL, 1, "a vector every so many layers; 0: only the embedding" },
    { "hold", 0, 0, 1, NULL, 1, "1: what was made again stays until the turn ends" },
    KVMEM__END_PARAMS };
static kvmem_status kvmem__reduce_recompute(const kvmem_view *v, int g, const int *kept, int n_kept,
                                            const float *score) {
    return kvmem__reduce_drop(v, g, kept, n_kept, score);
}

static const kvmem_reduce_entry kvmem__reduces[] = {
    { { "drop", "the rest is forgotten, its pages are freed", "-", NULL, 0 }, kvmem__reduce_drop },
    { { "recompute", "the rest is made again from checkpoints, bit for bit",
        "Qasim 2026, arXiv 2603.19664", kvmem__params_recompute, 0 }, kvmem__reduce_recompute } };

/* Is this a recipe whose session makes rows again? */
static int kvmem__recomputes(const kvmem_recipe *r) {
    const kvmem_entry *e = r->stage[KVMEM_REDUCE].entry;
    return e && ((const kvmem_reduce_entry *)(const void *)e)->fn == kvmem__reduce_recompute;
}
/* What has left must be a prefix, equal in all lanes; what stays must be copied without loss. */
static kvmem_status kvmem__check_recompute(const kvmem_recipe *r, kvmem_error *err) {
    const double *par = r->stage[KVMEM_REDUCE].par;
    const char *k = r->stage[KVMEM_CODEC_K].entry->word, *v = r->stage[KVMEM_CODEC_V].entry->word;
    const int exact_k = !strcmp(k, "f32") || !strcmp(k, "f16") || !strcmp(k, "bf16");
    const int exact_v = !strcmp(v, "f32") || !strcmp(v, "f16") || !strcmp(v, "bf16");
    const char *why = NULL;
    if (strcmp(r->stage[KVMEM_SCORE].entry->word, "recency"))
        why = "the oldest leave: score=recency";
    else if (r->sink) why = "nothing is lost, so no sinks: sink=0";
    else if (strcmp(r->stage[KVMEM_BUDGET].entry->word, "uniform"))
        why = "lanes are equal: budget=uniform";
    else if (r->amount.kind == KVMEM_BYTES) why = "the budget is a number of tokens, not bytes";
    else if (((const kvmem_place_entry *)(const void *)r->stage[KVMEM_PLACE].entry)->fn)
        why = "every token has its own position: place=original";
    else if (((const kvmem_retrieve_entry *)(const void *)r->stage[KVMEM_RETRIEVE].entry)->fn)
        why = "all entries are read: retrieve=all";
    else if (!exact_k || !exact_v) why = "rows are copied without loss: codec=f32, f16 or bf16";
    else if (par[0] < 1 && par[1] > 0) why = "tokens are ids: every= needs checkpoint=f32 or f16";
    return why ? kvmem__fail(err, KVMEM_BAD_RECIPE, "reduce=recompute: %s", why) : KVMEM_OK;
}

/* ==== >>segment : where does the stream break into events? =======================================
   Called once a block with the positions [from, to) that it brought; marks the starts of events. */

/* ==== >>segment_fixed : an event every `size` tokens. stage: segment ====
   Starts at the positions 0, size, 2 size, ...; size=0: no event is ever marked. */
static const kvmem_param kvmem__params_fixed[] = {
    { "size", 0, 0, 1000000000, NULL, 1, "tokens in an event; 0: the stream is never cut" },
    KVMEM__END_PARAMS };
static kvmem_status kvmem__segment_fixed(const kvmem_view *v, int32_t from, int32_t to) {
    const int64_t size = (int64_t)v->par[0];
    int64_t p;
    if (size < 1) return KVMEM_OK;
    for (p = (from + size - 1) / size * size; p < to; p += size)
        KVMEM__TRY(kvmem_view_cut(v, (int32_t)p));
    return KVMEM_OK;
}

static const kvmem_segment_entry kvmem__segments[] = {
    { { "fixed", "an event every `size` tokens", "-", kvmem__params_fixed, 0 }, kvmem__segment_fixed } };

/* ==== >>retrieve : which stored entries does this query read? ====================================
   all: every page of the lane (no function: the attention loop asks nobody). */
static const kvmem_retrieve_entry kvmem__retrieves[] = {
    { { "all", "every stored entry", "-", NULL, 0 }, NULL } };

/* ==== >>place : at which RoPE position is a kept key read? =======================================
   original: at the position that the token had in the text; gaps stay gaps.
   cache: at its slot 0, 1, ..., n-1 in the lane, the query at its own slot: distances are distances in the
   cache, so a stream of any length stays inside the trained context (StreamingLLM, see >>score_recency).
   Needs a cache that applies RoPE itself; kvmem_cache_init says so if the shape has none. */
static int32_t kvmem__place_cache(const double *par, int slot, int32_t pos) {
    (void)par;
    (void)pos;
    return (int32_t)slot;
}

static const kvmem_place_entry kvmem__places[] = {
    { { "original", "at its position in the text", "-", NULL, 0 }, NULL },
    { { "cache", "at its slot in the cache", "Xiao 2023, arXiv 2309.17453", NULL, 0 },
      kvmem__place_cache } };

/* ==== >>commit : the end of a block: segment, score, budget, reduce ===============================
   For each layer:  mean B from the amount  ->  keep[g] by the budget stage  ->  sinks and recent window
   set apart  ->  the best of the rest by the score stage  ->  the reduce stage.
   An amount is entries per lane, mean over the cache: a count; a share of the tokens seen; bytes: what
   fits. A lane that needs nothing removed is not scored. NaN scores are an error that names the entry.
   Ties go to the lower index. Uses: cache, observe. */

/* Under a byte limit: the mean that leaves every lane room for the next block of up to a page, and for a
   page that is only partly full when lanes differ in length. */
static int kvmem__keep_cap(const kvmem_cache *c) {
    const int P = c->recipe.page;
    return KVMEM__MAX(c->lane_cap - P - 2 * ((P + 3) / 4), 1);
}
/* Entries per lane, mean over the cache, that the recipe allows now; INT_MAX: all. */
static int kvmem__mean_budget(const kvmem_cache *c) {
    const kvmem_amount *am = &c->recipe.amount;
    const double seen = (double)(c->tokens + c->block_n);
    double b = (double)INT_MAX;
    if (am->kind == KVMEM_COUNT) b = am->value;
    if (am->kind == KVMEM_SHARE) b = am->value >= 1 ? seen : floor(am->value * seen + 1e-9);
    if (c->lane_cap) b = KVMEM__MIN(b, (double)kvmem__keep_cap(c));
    if (b < 1) b = 1;
    return b < (double)INT_MAX ? (int)b : INT_MAX;
}
/* Does the recipe ever remove entries? */
static int kvmem__evicts(const kvmem_cache *c) { return c->recipe.amount.kind != KVMEM_ALL; }

/* Does this commit reduce by the recipe's own rule, and if not, must it because the next block would not
   fit under the byte limit? */
static int kvmem__reduce_due(const kvmem_cache *c, kvmem_phase phase) {
    const kvmem_recipe *r = &c->recipe;
    if (!kvmem__evicts(c)) return 0;
    if (phase == KVMEM_PROMPT_END || r->when == KVMEM_WHEN_BLOCK) return 1;
    if (phase == KVMEM_DECODE && r->when == KVMEM_WHEN_STEP) return 1;
    if (phase == KVMEM_DECODE && r->when == KVMEM_WHEN_EVERY && c->since_reduce + c->block_n >= r->every) return 1;
    if (!c->lane_cap) return 0;
    return kvmem_cache_room(c) < (phase == KVMEM_DECODE ? 1 : KVMEM__MIN(r->page, c->max_block));
}
/* Sinks and recent entries of a lane that keeps `keep` of n. The newest entry outranks the sinks. */
static void kvmem__protect(const kvmem_recipe *r, int keep, int *sink, int *recent) {
    const double want = r->recent.kind == KVMEM_SHARE ? floor(r->recent.value * keep + 1e-9) : r->recent.value;
    int w = want < (double)keep ? (int)want : keep;
    int s = KVMEM__MIN(r->sink, keep);
    if (w > 0 && s == keep) s = keep - 1;
    if (w > keep - s) w = keep - s;
    *sink = s;
    *recent = w;
}
static kvmem_view kvmem__view_of(kvmem_cache *c, int layer, kvmem_stage stage) {
    kvmem_view v;
    v.cache = c;
    v.layer = layer;
    v.par = c->recipe.stage[stage].par;
    v.user = c->recipe.stage[stage].user;
    v.seed = c->recipe.seed;
    return v;
}
static kvmem_status kvmem__score_lane(kvmem_cache *c, int layer, int g, float *score) {
    const kvmem_score_entry *e = (const kvmem_score_entry *)(const void *)c->recipe.stage[KVMEM_SCORE].entry;
    const kvmem_view v = kvmem__view_of(c, layer, KVMEM_SCORE);
    const int n = kvmem_view_count(&v, g);
    kvmem_status st;
    int t;
    c->error.status = KVMEM_OK;
    st = e->fn(&v, g, score);
    kvmem__view_scratch_end(c);
    if (st != KVMEM_OK && c->error.status == KVMEM_OK)
        kvmem__fail(&c->error, st, "score=%s failed in layer %d, KV head %d", e->e.word, layer, g);
    for (t = 0; st == KVMEM_OK && t < n; t++)
        if (score[t] != score[t])
            st = kvmem__fail(&c->error, KVMEM_BAD_VALUE, "score=%s gives NaN for entry %d of layer %d, KV head %d",
                             e->e.word, t, layer, g);
    return st;
}
/* Select keep entries of a lane by score and reduce it. kept (n), idx (n) are scratch. */
static kvmem_status kvmem__reduce_lane(kvmem_cache *c, int layer, int g, int keep, const float *score, int *kept,
                                       int *idx) {
    const kvmem_reduce_entry *e = (const kvmem_reduce_entry *)(const void *)c->recipe.stage[KVMEM_REDUCE].entry;
    const kvmem_view v = kvmem__view_of(c, layer, KVMEM_REDUCE);
    const int n = kvmem_view_count(&v, g);
    int s, w, m = 0, t;
    kvmem_status st;
    kvmem__protect(&c->recipe, keep, &s, &w);
    for (t = 0; t < s; t++) kept[m++] = t;
    m += kvmem__topk(kept + m, score + s, n - w - s, keep - s - w, idx);
    for (t = s; t < m; t++) kept[t] += s;
    for (t = n - w; t < n; t++) kept[m++] = t;
    c->error.status = KVMEM_OK;
    st = e->fn(&v, g, kept, m, score);
    kvmem__view_scratch_end(c);
    if (st == KVMEM_OK && kvmem_view_count(&v, g) != keep)
        return kvmem__fail(&c->error, KVMEM_BAD_STATE, "reduce=%s left %d entries instead of %d", e->e.word,
                           kvmem_view_count(&v, g), keep);
    if (st != KVMEM_OK && c->error.status == KVMEM_OK)
        kvmem__fail(&c->error, st, "reduce=%s failed in layer %d, KV head %d", e->e.word, layer, g);
    return st;
}
/* Ask the budget stage for keep (G); 1 in *any if some lane must shrink. */
static kvmem_status kvmem__ask_budget(kvmem_cache *c, int layer, int mean, int *len, int *keep,
                                      const float *const *score, int *any) {
    const kvmem_budget_entry *e = (const kvmem_budget_entry *)(const void *)c->recipe.stage[KVMEM_BUDGET].entry;
    const kvmem_view v = kvmem__view_of(c, layer, KVMEM_BUDGET);
    kvmem_status st;
    int g;
    *any = 0;
    for (g = 0; g < c->shape.n_kv_heads; g++) len[g] = keep[g] = kvmem_view_count(&v, g);
    c->error.status = KVMEM_OK;
    st = e->fn(&v, mean, len, score, keep);
    kvmem__view_scratch_end(c);
    if (st != KVMEM_OK) {
        if (c->error.status == KVMEM_OK) kvmem__fail(&c->error, st, "budget=%s failed in layer %d", e->e.word, layer);
        return st;
    }
    for (g = 0; g < c->shape.n_kv_heads; g++) {
        keep[g] = KVMEM__MIN(KVMEM__MAX(keep[g], KVMEM__MIN(1, len[g])), len[g]);
        *any |= keep[g] < len[g];
    }
    return KVMEM_OK;
}
static kvmem_status kvmem__reduce_layer(kvmem_cache *c, int layer, int mean) {
    const int G = c->shape.n_kv_heads;
    const int all = (c->recipe.stage[KVMEM_BUDGET].entry->reads & KVMEM_READS_SCORES) ||
                    (c->recipe.stage[KVMEM_SCORE].entry->reads & KVMEM_READS_LANES);
    const float **score;
    int *len, *keep, *kept, *idx, g, longest = 0, any = 1;
    size_t stride, bytes;
    float *f;
    for (g = 0; g < G; g++) longest = KVMEM__MAX(longest, kvmem_cache_lane_len(c, layer, g));
    if (c->tokens + c->block_n <= mean || !longest) return KVMEM_OK;
    stride = (size_t)longest;
    bytes = (size_t)G * sizeof *score + (2 * (size_t)G + 2 * stride + (all ? (size_t)G : 1) * stride) * 4;
    KVMEM__TRY(kvmem__scratch(c, bytes));
    score = (const float **)c->scratch;
    len = (int *)(void *)(score + G);
    keep = len + G;
    kept = keep + G;
    idx = kept + stride;
    f = (float *)(void *)(idx + stride);
    for (g = 0; g < G; g++) score[g] = f + (all ? (size_t)g * stride : 0);
    for (g = 0; all && g < G; g++) KVMEM__TRY(kvmem__score_lane(c, layer, g, f + (size_t)g * stride));
    KVMEM__TRY(kvmem__ask_budget(c, layer, mean, len, keep, all ? score : NULL, &any));
    for (g = 0; any && g < G; g++) {
        if (keep[g] >= len[g]) continue;
        if (!all) KVMEM__TRY(kvmem__score_lane(c, layer, g, f));
        KVMEM__TRY(kvmem__reduce_lane(c, layer, g, keep[g], score[g], kept, idx));
    }
    return KVMEM_OK;
}

/* Let the segment stage see the tokens of the block. */
static kvmem_status kvmem__segment(kvmem_cache *c) {
    const kvmem_segment_entry *e = (const kvmem_segment_entry *)(const void *)c->recipe.stage[KVMEM_SEGMENT].entry;
    const kvmem_view v = kvmem__view_of(c, 0, KVMEM_SEGMENT);
    kvmem_status st;
    if (!e->fn) return KVMEM_OK;
    st = e->fn(&v, c->block_pos[0], c->block_pos[c->block_n - 1] + 1);
    kvmem__view_scratch_end(c);
    return st;
}
/* How many layers are in this state? */
static int kvmem__layers_in(const kvmem_cache *c, int state) {
    int l, n = 0;
    for (l = 0; l < c->shape.n_layers; l++) n += c->layer_state[l] == state;
    return n;
}
KVMEM_API kvmem_status kvmem_cache_commit_layer(kvmem_cache *c, int layer, kvmem_phase phase) {
    KVMEM__TRY(kvmem__check_layer(c, layer, "commit_layer"));
    if (c->reads & KVMEM_READS_LAYERS)
        return kvmem__fail(&c->error, KVMEM_UNSUPPORTED, "commit_layer: budget=%s compares layers",
                           c->recipe.stage[KVMEM_BUDGET].entry->word);
    if (c->lane_cap)
        return kvmem__fail(&c->error, KVMEM_UNSUPPORTED, "commit_layer: a byte limit is shared by all layers");
    if (c->layer_state[layer] != 2)
        return kvmem__fail(&c->error, KVMEM_BAD_STATE, "commit_layer: layer %d has not attended in this block", layer);
    if (kvmem__reduce_due(c, phase)) KVMEM__TRY(kvmem__reduce_layer(c, layer, kvmem__mean_budget(c)));
    c->layer_state[layer] = 3;
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_cache_commit(kvmem_cache *c, kvmem_phase phase) {
    int l, due, mean, waiting, appended, pushed;
    KVMEM__TRY(kvmem__check_layer(c, 0, "commit"));
    if (!c->block_n) return kvmem__fail(&c->error, KVMEM_BAD_STATE, "commit: no block was appended");
    waiting = kvmem__layers_in(c, 0);
    appended = kvmem__layers_in(c, 1);
    if (waiting)
        return kvmem__fail(&c->error, KVMEM_BAD_STATE,
                           "commit: %d of %d layers have not got this block's rows", waiting,
                           c->shape.n_layers);
    if (c->ring && appended && appended < c->shape.n_layers)
        return kvmem__fail(&c->error, KVMEM_BAD_STATE, "commit: the recipe reads queries, and %d of %d layers have not "
                           "attended in this block", appended, c->shape.n_layers);
    KVMEM__TRY(kvmem__segment(c));
    due = kvmem__reduce_due(c, phase);
    mean = due ? kvmem__mean_budget(c) : 0;
    for (l = 0; due && l < c->shape.n_layers; l++) {
        if (c->layer_state[l] == 3) continue;
        KVMEM__TRY(kvmem__reduce_layer(c, l, mean));
    }
    pushed = c->ring && !appended ? KVMEM__MIN(c->block_n, c->ring) : 0;
    if (c->ring) {
        c->ring_at = (c->ring_at + pushed) % c->ring;
        c->ring_n = KVMEM__MIN(c->ring_n + pushed, c->ring);
    }
    c->tokens += c->block_n;
    c->next_pos = c->block_pos[c->block_n - 1] + 1;
    c->since_reduce = due ? 0 : c->since_reduce + c->block_n;
    c->block_n = 0;
    memset(c->layer_state, 0, (size_t)c->shape.n_layers);
    if (phase == KVMEM_PROMPT_END || c->lane_cap) kvmem__scratch_free(c); /* its size was for this block */
    return KVMEM_OK;
}

/* --- what fits --- */
/* Bytes that a block of b tokens needs beside what is live now, scratch not counted in either. */
static size_t kvmem__block_need(const kvmem_cache *c, int b) {
    const int P = c->recipe.page, G = c->shape.n_kv_heads, r = c->shape.n_heads / G;
    const size_t page = kvmem__page_size(P, c->n_stats, c->k, c->v);
    size_t need = 1024 + page, longest = 0, i, a, m; /* a page is there twice while it is replaced */
    for (i = 0; i < (size_t)(c->shape.n_layers * G); i++) {
        const kvmem_lane *ln = &c->lane[i];
        const int want = (ln->n + b + P - 1) / P, rest = ln->n % P;
        const kvmem_page *p = rest ? ln->pages[ln->n_pages - 1] : NULL;
        if (p && p->cap < KVMEM__MIN(P, rest + b))
            need += kvmem__page_size(kvmem__page_cap(P, KVMEM__MIN(P, rest + b)), c->n_stats, p->kc, p->vc) -
                    kvmem__page_size(p->cap, c->n_stats, p->kc, p->vc);
        if (p && p->refs > 1) need += page;
        if (want > ln->n_pages) need += (size_t)(want - ln->n_pages - 1) * page +
            kvmem__page_size(kvmem__page_cap(P, ln->n + b - (want - 1) * P), c->n_stats, c->k, c->v);
        if (want > ln->cap_pages) need += (size_t)kvmem__table_cap(want) * sizeof(void *);
        longest = KVMEM__MAX(longest, (size_t)ln->n + (size_t)b);
    }
    a = kvmem__attend_bytes(&c->shape, b, c->worker_bytes) + kvmem__more_scratch(c->arena->limit);
    m = kvmem__evicts(c) ? kvmem__commit_bytes(G, longest) + (c->ring ? kvmem__view_bytes(r, longest) : 0) : 0;
    return need + KVMEM__MAX(a, m);
}
KVMEM_API int kvmem_cache_room(const kvmem_cache *c) {
    size_t free_bytes;
    int lo = 0, hi;
    if (!c->arena) return 0;
    if (!c->arena->limit) return c->max_block;
    free_bytes = c->arena->limit - (c->arena->live.total - c->scratch_size);
    hi = KVMEM__MIN(c->max_block, c->recipe.page);
    while (lo < hi) {
        const int mid = hi - (hi - lo) / 2;
        if (kvmem__block_need(c, mid) <= free_bytes) lo = mid;
        else hi = mid - 1;
    }
    return lo;
}
/* After the codecs changed: worker scratch and the lanes' capacity under the limit. */
static void kvmem__set_cap(kvmem_cache *c) {
    kvmem__plan p;
    memset(&p, 0, sizeof p);
    p.k = *c->k;
    p.v = *c->v;
    p.page = c->recipe.page;
    p.lanes = c->shape.n_layers * c->shape.n_kv_heads;
    p.ring = c->ring;
    p.n_stats = c->n_stats;
    p.page_bytes = kvmem__page_size(p.page, p.n_stats, &p.k, &p.v);
    p.worker_floats = kvmem__worker_floats(&c->shape, &p);
    c->worker_bytes = KVMEM__MAX(c->worker_bytes, p.worker_floats * sizeof(float));
    p.limit = c->arena->limit;
    if (p.limit)
        c->lane_cap = KVMEM__MAX(kvmem__plan_cap(&p, &c->shape, c->block_size + kvmem__ring_bytes(c) +
                                 sizeof(kvmem_arena) + 4 * sizeof(kvmem__use)), p.page);
}

/* --- estimate --- */
/* Counted like a real run: every block appends, attends and commits. Lengths are followed per layer; a
   budget that reads scores is taken at its mean. */
#define KVMEM__EST_LAYERS 1024
typedef struct kvmem__est {
    kvmem__plan p;
    kvmem_cache c;      /* shape (with one KV head), recipe and counters only: nothing is allocated */
    int G, n_uses;
    kvmem_bytes *out;
    int len[KVMEM__EST_LAYERS], cap[KVMEM__EST_LAYERS]; /* of each layer's lanes: entries, table slots, */
    int last[KVMEM__EST_LAYERS];                        /* rows the last page has room for */
} kvmem__est;

/* Bytes now, with `more` transient scratch, and, if higher than before, at the peak. */
static void kvmem__est_count(kvmem__est *e, size_t more) {
    const int P = e->p.page;
    const kvmem_bytes_part page = kvmem__page_part(P, e->p.n_stats, &e->p.k, &e->p.v);
    const size_t G = (size_t)e->G;
    kvmem_bytes_part *b = &e->out->live;
    int l;
    memset(b, 0, sizeof *b);
    b->stats = e->p.ring_bytes;
    b->meta = e->p.block_bytes + sizeof(kvmem_arena) + (size_t)e->n_uses * sizeof(kvmem__use);
    b->scratch = e->c.scratch_size + more;
    e->out->entries = 0;
    for (l = 0; l < e->c.shape.n_layers; l++) {
        const size_t n = e->len[l] ? G * (size_t)((e->len[l] - 1) / P) : 0; /* full pages before the last */
        const kvmem_bytes_part last = kvmem__page_part(e->last[l], e->p.n_stats, &e->p.k, &e->p.v);
        const size_t m = e->len[l] ? G : 0;
        b->k += n * page.k + m * last.k;
        b->v += n * page.v + m * last.v;
        b->stats += n * page.stats + m * last.stats;
        b->meta += n * page.meta + m * last.meta + G * (size_t)e->cap[l] * sizeof(void *);
        e->out->entries += (size_t)e->G * (size_t)e->len[l];
    }
    b->total = kvmem__part_total(b);
    if (b->total > e->out->peak.total) e->out->peak = *b;
}
static void kvmem__est_reduce(kvmem__est *e, int layer, int mean) {
    const kvmem_budget_entry *be = (const kvmem_budget_entry *)(const void *)e->c.recipe.stage[KVMEM_BUDGET].entry;
    const kvmem_view v = kvmem__view_of(&e->c, layer, KVMEM_BUDGET);
    const int r = e->c.shape.n_heads / e->G, P = e->p.page;
    int len = e->len[layer], keep = KVMEM__MIN(mean, len);
    size_t bytes, more = 0;
    if (e->c.tokens + e->c.block_n <= mean) return;
    bytes = (size_t)e->G * sizeof(float *) + (2 * (size_t)e->G + 3 * (size_t)len) * 4;
    e->c.scratch_size = KVMEM__MAX(e->c.scratch_size, bytes);
    if (e->c.ring) /* what kvmem_view_attention takes, and the votes of one lane */
        more = kvmem__view_bytes(r, (size_t)len) + KVMEM__VIEW_PARTS * e->c.worker_bytes + (size_t)len * sizeof(float);
    kvmem__est_count(e, more);
    if (!(be->e.reads & (KVMEM_READS_SCORES | KVMEM_READS_LAYERS))) be->fn(&v, mean, &len, NULL, &keep);
    keep = KVMEM__MAX(KVMEM__MIN(keep, len), KVMEM__MIN(1, len));
    if ((keep - 1) / P < (len - 1) / P) e->last[layer] = P;
    if (len - keep >= (P + 3) / 4) e->last[layer] = kvmem__page_cap(P, keep - (keep - 1) / P * P);
    e->len[layer] = keep;
}
static void kvmem__est_block(kvmem__est *e, int n, kvmem_phase phase) {
    const int P = e->p.page, G = e->G, threads = kvmem__threads(e->c.threads);
    size_t rows = e->c.shape.rope ? (size_t)n * (size_t)G * (size_t)e->c.shape.head_dim * sizeof(float) : 0;
    int l, due, mean, tiles, longest = 0;
    tiles = kvmem__tile_workers(&e->c, e->p.limit, n, G);
    rows = KVMEM__MAX(rows, tiles ? (size_t)tiles * e->c.tile_bytes
                                  : (size_t)KVMEM__MIN(threads, n * G) * e->c.worker_bytes);
    for (l = 0; !tiles && l < e->c.shape.n_layers; l++) longest = KVMEM__MAX(longest, e->len[l] + n);
    if (longest) {
        const size_t parts = kvmem__split_floats(&e->c, e->p.limit, n, G, threads, longest) * sizeof(float);
        if (parts) rows = KVMEM__MAX(rows, parts + (size_t)threads * e->c.worker_bytes);
    }
    e->c.block_n = n;
    e->c.scratch_size = KVMEM__MAX(e->c.scratch_size, rows);
    for (l = 0; l < e->c.shape.n_layers; l++) {
        const int had = e->len[l], used = (had + n - 1) % P + 1; /* of the last page afterwards */
        e->len[l] += n;
        if (had == 0 || had % P == 0 || (had - 1) / P < (had + n - 1) / P) e->last[l] = 0;
        e->last[l] = KVMEM__MAX(e->last[l], kvmem__page_cap(P, used));
        e->cap[l] = KVMEM__MAX(e->cap[l], kvmem__table_cap((e->len[l] + P - 1) / P));
    }
    kvmem__est_count(e, (e->p.reads & (KVMEM_READS_ACC | KVMEM_READS_LAST)) ? /* log-sum-exps for the observers */
                     (size_t)n * (size_t)e->c.shape.n_heads * sizeof(float) : 0);
    due = kvmem__evicts(&e->c) &&
          (phase == KVMEM_PROMPT_END || e->c.recipe.when == KVMEM_WHEN_BLOCK ||
           (phase == KVMEM_DECODE && e->c.recipe.when == KVMEM_WHEN_STEP) ||
           (phase == KVMEM_DECODE && e->c.recipe.when == KVMEM_WHEN_EVERY &&
            e->c.since_reduce + n >= e->c.recipe.every) ||
           (e->c.lane_cap && e->len[0] + KVMEM__MIN(P, e->c.max_block) > e->c.lane_cap));
    mean = due ? kvmem__mean_budget(&e->c) : 0;
    for (l = 0; due && l < e->c.shape.n_layers; l++) kvmem__est_reduce(e, l, mean);
    e->c.since_reduce = due ? 0 : e->c.since_reduce + n;
    e->c.tokens += n;
    if (phase == KVMEM_PROMPT_END) e->c.scratch_size = 0;
    kvmem__est_count(e, 0);
}
KVMEM_API kvmem_status kvmem_estimate(const kvmem_config *cfg, int64_t prompt, int64_t decoded, kvmem_bytes *out,
                                      kvmem_error *err) {
    kvmem__est e;
    kvmem_recipe r = kvmem_recipe_default();
    int64_t left = prompt;
    int block;
    memset(&e, 0, sizeof e);
    memset(out, 0, sizeof *out);
    if (!cfg || prompt < 0 || decoded < 0 || prompt > INT32_MAX - 1 || decoded > INT32_MAX - 1 - prompt)
        return kvmem__fail(err, KVMEM_BAD_ARGUMENT,
                           "estimate: a prompt of %lld and %lld decoded tokens: at most %d in all",
                           (long long)prompt, (long long)decoded, (int)INT32_MAX - 1);
    if (cfg->recipe) r = *cfg->recipe;
    KVMEM__TRY(kvmem__make_plan(&e.p, cfg, &r, cfg->backend ? cfg->backend : kvmem_backend_cpu(NULL), err));
    if (cfg->shape.n_layers > KVMEM__EST_LAYERS)
        return kvmem__fail(err, KVMEM_UNSUPPORTED, "estimate: more than %d layers", KVMEM__EST_LAYERS);
    e.c.shape = cfg->shape;
    e.G = cfg->shape.n_kv_heads;
    e.c.shape.n_kv_heads = 1;
    e.c.recipe = r;
    e.c.recipe.page = e.p.page;
    e.c.lane_cap = e.p.lane_cap;
    e.c.max_block = cfg->max_block;
    e.c.ring = e.p.ring;
    e.c.threads = cfg->threads;
    e.c.worker_bytes = e.p.worker_floats * sizeof(float);
    e.c.tile_bytes = kvmem__tile_bytes(cfg->shape.n_heads / e.G, cfg->shape.head_dim, e.p.page);
    e.c.backend = cfg->backend ? cfg->backend : kvmem_backend_cpu(NULL);
    e.n_uses = r.stage[KVMEM_CODEC_K].entry == r.stage[KVMEM_CODEC_V].entry &&
               !memcmp(r.stage[KVMEM_CODEC_K].par, r.stage[KVMEM_CODEC_V].par, sizeof r.stage[0].par) ? 1 : 2;
    e.out = out;
    kvmem__est_count(&e, 0);
    block = KVMEM__MIN(cfg->max_block, e.p.limit ? e.p.page : cfg->max_block);
    while (left > 0 || decoded > 0) {
        const int n = left > 0 ? (int)KVMEM__MIN(left, (int64_t)block) : 1;
        const kvmem_phase phase = left > n ? KVMEM_PREFILL : left > 0 ? KVMEM_PROMPT_END : KVMEM_DECODE;
        kvmem__est_block(&e, n, phase);
        if (e.p.limit && out->live.total > e.p.limit)
            return kvmem__fail(err, KVMEM_OVER_BUDGET, "after %lld tokens the cache needs %zu bytes, the limit is %zu",
                               (long long)e.c.tokens, out->live.total, e.p.limit);
        if (left > 0) left -= n;
        else decoded--;
    }
    out->limit = e.p.limit;
    out->tokens = e.c.tokens;
    out->full = (size_t)e.c.tokens * (size_t)cfg->shape.n_layers * (size_t)e.G * (size_t)cfg->shape.head_dim * 4;
    return KVMEM_OK;
}

/* ==== >>persistence : save, load, inspect ========================================================
   One container, little-endian, whatever the host:

       "kvmem-c\n"  u32 version  u32 page  u32 layers  u32 heads  u32 kv_heads  u32 head_dim  u32 n_stats
       u32 ring  u64 model_id  u64 shape_hash  u64 tokens  u32 next_pos  u64 since_reduce
       u32 ring_n  u32 ring_at  u32 n_events  u32 n_codecs  u32 recipe_len  recipe text
       codecs:  u32 word_len  word  u32 row_bytes  12 x f64 bits of the parameters
       events (n_events) u64;  ring positions (ring) u32;  ring queries (layers, ring, heads, d) f32
       lanes:   u32 n, then for each page: u32 K codec  u32 V codec  pos (rows) u32  stats (n_stats, rows) f32
                K rows  V rows
       u32 CRC-32 of everything before it

   Coded rows are stored as they are, so loading restores the cache bit for bit. A file is refused unless
   shape, model and recipe are the cache's own, and nothing is used before the checksum has been verified. */
#define KVMEM__SAVE_VERSION 2u
#define KVMEM__SAVE_HEAD 96 /* bytes before the recipe text */

typedef struct kvmem__out { kvmem_write_fn write; void *user; uint32_t crc; int failed; } kvmem__out;
static void kvmem__out_bytes(kvmem__out *o, const void *p, size_t n) {
    if (o->failed || !n) return;
    o->crc = kvmem__crc32(o->crc, p, n);
    if (o->write(o->user, p, n)) o->failed = 1;
}
static void kvmem__out_u32(kvmem__out *o, uint32_t v) {
    uint8_t b[4];
    kvmem__put32(b, v);
    kvmem__out_bytes(o, b, 4);
}
static void kvmem__out_u64(kvmem__out *o, uint64_t v) {
    kvmem__out_u32(o, (uint32_t)(v & 0xffffffffu));
    kvmem__out_u32(o, (uint32_t)(v >> 32));
}
static void kvmem__out_f32s(kvmem__out *o, const float *f, size_t n) {
    uint8_t b[256];
    size_t i, m;
    while (n) {
        m = KVMEM__MIN(n, sizeof b / 4);
        for (i = 0; i < m; i++) kvmem__putf32(b + 4 * i, f[i]);
        kvmem__out_bytes(o, b, 4 * m);
        f += m;
        n -= m;
    }
}
/* Everything of the shape that changes what stored rows mean. */
static uint64_t kvmem__shape_hash(const kvmem_shape *s) {
    uint64_t h = 0xcbf29ce484222325u;
    uint8_t b[4];
    int l, i;
#define KVMEM__HASH32(x) (kvmem__put32(b, (uint32_t)(x)), h = kvmem__fnv(h, b, 4))
#define KVMEM__HASHF(x) (kvmem__putf32(b, (x)), h = kvmem__fnv(h, b, 4))
    KVMEM__HASHF(s->scale);
    KVMEM__HASHF(s->softcap);
    for (l = 0; l < s->n_layers; l++) {
        KVMEM__HASH32(s->window ? s->window[l] : 0);
        if (!s->rope) continue;
        KVMEM__HASH32(s->rope[l].n_rot * 2 + s->rope[l].neox);
        KVMEM__HASHF(s->rope[l].mscale);
        for (i = 0; i < s->rope[l].n_rot / 2; i++) KVMEM__HASHF(s->rope[l].inv_freq[i]);
    }
    for (i = 0; s->sink_bias && i < s->n_layers * s->n_heads; i++) KVMEM__HASHF(s->sink_bias[i]);
#undef KVMEM__HASH32
#undef KVMEM__HASHF
    return h;
}
static uint32_t kvmem__use_index(const kvmem_cache *c, const kvmem_codec_use *u) {
    const kvmem__use *x;
    uint32_t i = 0;
    for (x = c->arena->uses; x && &x->use != u; x = x->next) i++;
    return i;
}
static void kvmem__save_head(const kvmem_cache *c, kvmem__out *o, const char *recipe) {
    const kvmem_shape *s = &c->shape;
    const kvmem__use *u;
    uint32_t n_uses = 0;
    for (u = c->arena->uses; u; u = u->next) n_uses++;
    kvmem__out_bytes(o, "kvmem-c\n", 8);
    kvmem__out_u32(o, KVMEM__SAVE_VERSION);
    kvmem__out_u32(o, (uint32_t)c->recipe.page);
    kvmem__out_u32(o, (uint32_t)s->n_layers);
    kvmem__out_u32(o, (uint32_t)s->n_heads);
    kvmem__out_u32(o, (uint32_t)s->n_kv_heads);
    kvmem__out_u32(o, (uint32_t)s->head_dim);
    kvmem__out_u32(o, (uint32_t)c->n_stats);
    kvmem__out_u32(o, (uint32_t)c->ring);
    kvmem__out_u64(o, c->model_id);
    kvmem__out_u64(o, kvmem__shape_hash(s));
    kvmem__out_u64(o, (uint64_t)c->tokens);
    kvmem__out_u32(o, (uint32_t)c->next_pos);
    kvmem__out_u64(o, (uint64_t)c->since_reduce);
    kvmem__out_u32(o, (uint32_t)c->ring_n);
    kvmem__out_u32(o, (uint32_t)c->ring_at);
    kvmem__out_u32(o, (uint32_t)c->n_events);
    kvmem__out_u32(o, n_uses);
    kvmem__out_u32(o, (uint32_t)strlen(recipe));
    kvmem__out_bytes(o, recipe, strlen(recipe));
    for (u = c->arena->uses; u; u = u->next) {
        int i;
        kvmem__out_u32(o, (uint32_t)strlen(u->entry->word));
        kvmem__out_bytes(o, u->entry->word, strlen(u->entry->word));
        kvmem__out_u32(o, (uint32_t)u->use.row_bytes);
        for (i = 0; i < KVMEM_MAX_PARAMS; i++) {
            uint64_t bits;
            memcpy(&bits, &u->use.par[i], 8);
            kvmem__out_u64(o, bits);
        }
    }
}
static void kvmem__save_lane(const kvmem_cache *c, kvmem__out *o, const kvmem_lane *ln) {
    int i, t, s;
    kvmem__out_u32(o, (uint32_t)ln->n);
    for (i = 0; i < ln->n_pages; i++) {
        const kvmem_page *p = ln->pages[i];
        const int rows = kvmem__page_rows(c, ln, i);
        kvmem__out_u32(o, kvmem__use_index(c, p->kc));
        kvmem__out_u32(o, kvmem__use_index(c, p->vc));
        for (t = 0; t < rows; t++) kvmem__out_u32(o, (uint32_t)p->pos[t]);
        for (s = 0; s < c->n_stats; s++) kvmem__out_f32s(o, p->stats + s * p->cap, (size_t)rows);
        kvmem__out_bytes(o, p->k, (size_t)rows * p->kc->row_bytes);
        kvmem__out_bytes(o, p->v, (size_t)rows * p->vc->row_bytes);
    }
}
#define KVMEM__RECIPE_TEXT 1024
KVMEM_API kvmem_status kvmem_cache_save(kvmem_cache *c, kvmem_write_fn write, void *user) {
    char text[KVMEM__RECIPE_TEXT];
    kvmem__out o;
    int i;
    size_t row;
    KVMEM__TRY(kvmem__check_layer(c, 0, "save"));
    if (!write) return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "save: no function to write with");
    if (c->block_n) return kvmem__fail(&c->error, KVMEM_BAD_STATE, "save in the middle of a block: commit first");
    if (kvmem_recipe_print(&c->recipe, text, sizeof text) >= sizeof text)
        return kvmem__fail(&c->error, KVMEM_UNSUPPORTED, "save: the recipe's text is too long");
    o.write = write;
    o.user = user;
    o.crc = 0;
    o.failed = 0;
    kvmem__save_head(c, &o, text);
    for (i = 0; i < c->n_events; i++) kvmem__out_u64(&o, (uint64_t)c->event[i]);
    for (i = 0; i < c->ring; i++)
        kvmem__out_u32(
            &o, i < c->ring_n || c->ring_n == c->ring || c->ring_at ? (uint32_t)c->ring_pos[i] : 0);
    row = (size_t)c->ring * (size_t)c->shape.n_layers * (size_t)c->shape.n_heads * (size_t)c->shape.head_dim;
    if (row) kvmem__out_f32s(&o, c->ring_q, row);
    for (i = 0; i < c->shape.n_layers * c->shape.n_kv_heads; i++) kvmem__save_lane(c, &o, &c->lane[i]);
    kvmem__out_u32(&o, o.crc);
    return o.failed ? kvmem__fail(&c->error, KVMEM_IO, "save: the writer refused bytes") : KVMEM_OK;
}

/* A reader that cannot pass the end: after a short read everything reads as zero and `bad` is set. */
typedef struct kvmem__in { const uint8_t *p; size_t left; int bad; } kvmem__in;
static const uint8_t *kvmem__in_bytes(kvmem__in *in, size_t n) {
    const uint8_t *p = in->p;
    if (in->bad || n > in->left) {
        in->bad = 1;
        return NULL;
    }
    in->p += n;
    in->left -= n;
    return p;
}
static uint32_t kvmem__in_u32(kvmem__in *in) {
    const uint8_t *p = kvmem__in_bytes(in, 4);
    return p ? kvmem__le32(p) : 0;
}
static uint64_t kvmem__in_u64(kvmem__in *in) {
    const uint8_t *p = kvmem__in_bytes(in, 8);
    return p ? kvmem__le64(p) : 0;
}
static int kvmem__in_f32s(kvmem__in *in, float *f, size_t n) {
    const uint8_t *p;
    size_t i;
    if (n > in->left / 4) {
        in->bad = 1;
        return 0;
    }
    p = kvmem__in_bytes(in, 4 * n);
    for (i = 0; p && i < n; i++) f[i] = kvmem__lef32(p + 4 * i);
    return p != NULL;
}
typedef struct kvmem__saved {
    unsigned version, page, layers, heads, kv_heads, head_dim, n_stats, ring, next_pos, ring_n, ring_at;
    unsigned n_events, n_codecs, recipe_len;
    uint64_t model_id, shape_hash, tokens, since_reduce;
    const char *recipe;
} kvmem__saved;

/* Header of a saved cache, after the checksum was verified; in is left at the codecs. */
static kvmem_status kvmem__load_head(kvmem__in *in, kvmem__saved *h, const void *bytes, size_t size, kvmem_error *e) {
    const uint8_t *b = (const uint8_t *)bytes;
    memset(h, 0, sizeof *h);
    if (!b || size < 8 || memcmp(b, "kvmem-c\n", 8))
        return kvmem__fail(e, KVMEM_BAD_FILE, "not a saved cache: the first bytes are not \"kvmem-c\"");
    if (size < 12) return kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: cut off after %zu bytes", size);
    h->version = kvmem__le32(b + 8);
    if (h->version != KVMEM__SAVE_VERSION)
        return kvmem__fail(e, KVMEM_UNSUPPORTED, "saved cache: format version %u, this library reads %u", h->version,
                           KVMEM__SAVE_VERSION);
    if (size < KVMEM__SAVE_HEAD + 4 || kvmem__crc32(0, b, size - 4) != kvmem__le32(b + size - 4))
        return kvmem__fail(
            e, KVMEM_BAD_FILE,
            "saved cache: the checksum over %zu bytes does not fit; the file is cut or "
            "changed",
            size);
    in->p = b + 12;
    in->left = size - 16;
    in->bad = 0;
    h->page = kvmem__in_u32(in);
    h->layers = kvmem__in_u32(in);
    h->heads = kvmem__in_u32(in);
    h->kv_heads = kvmem__in_u32(in);
    h->head_dim = kvmem__in_u32(in);
    h->n_stats = kvmem__in_u32(in);
    h->ring = kvmem__in_u32(in);
    h->model_id = kvmem__in_u64(in);
    h->shape_hash = kvmem__in_u64(in);
    h->tokens = kvmem__in_u64(in);
    h->next_pos = kvmem__in_u32(in);
    h->since_reduce = kvmem__in_u64(in);
    h->ring_n = kvmem__in_u32(in);
    h->ring_at = kvmem__in_u32(in);
    h->n_events = kvmem__in_u32(in);
    h->n_codecs = kvmem__in_u32(in);
    h->recipe_len = kvmem__in_u32(in);
    h->recipe = (const char *)kvmem__in_bytes(in, h->recipe_len);
    if (in->bad || h->page < 1 || h->page > 1024 || h->layers < 1 || h->layers > 4096 || h->kv_heads < 1 ||
        h->kv_heads > 4096 || h->heads < 1 || h->heads > 65536 || h->head_dim < 1 || h->head_dim > 4096 ||
        h->n_stats > 2 || h->ring > 65536 || h->ring_n > h->ring || (h->ring && h->ring_at >= h->ring) ||
        (!h->ring && h->ring_at) || h->next_pos > INT32_MAX || h->tokens > INT64_MAX || h->since_reduce > INT64_MAX ||
        h->n_codecs > 4096 || h->recipe_len >= KVMEM__RECIPE_TEXT || h->n_events > in->left / 8)
        return kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: a header field is out of range");
    return KVMEM_OK;
}
static kvmem_status kvmem__load_shape(kvmem_cache *c, const kvmem__saved *h) {
    const kvmem_shape *s = &c->shape;
    if ((int)h->layers != s->n_layers || (int)h->heads != s->n_heads || (int)h->kv_heads != s->n_kv_heads ||
        (int)h->head_dim != s->head_dim)
        return kvmem__fail(&c->error, KVMEM_MISMATCH,
                           "saved cache: %u layers, %u heads, %u KV heads of %u; this cache has "
                           "%d, %d, %d of %d",
                           h->layers, h->heads, h->kv_heads, h->head_dim, s->n_layers, s->n_heads,
                           s->n_kv_heads, s->head_dim);
    if (h->shape_hash != kvmem__shape_hash(s))
        return kvmem__fail(&c->error, KVMEM_MISMATCH,
                           "saved cache: its scale, windows or RoPE differ from this cache's");
    if (h->model_id != c->model_id)
        return kvmem__fail(&c->error, KVMEM_MISMATCH, "saved cache: it was made with another model");
    return KVMEM_OK;
}
static kvmem_status kvmem__load_match(kvmem_cache *c, const kvmem__saved *h) {
    char text[KVMEM__RECIPE_TEXT];
    const size_t n = kvmem_recipe_print(&c->recipe, text, sizeof text);
    KVMEM__TRY(kvmem__load_shape(c, h));
    if (n != h->recipe_len || memcmp(text, h->recipe, n))
        return kvmem__fail(&c->error, KVMEM_MISMATCH, "saved cache: its recipe is \"%.*s\"",
                           (int)h->recipe_len, h->recipe);
    if ((int)h->page != c->recipe.page || (int)h->n_stats != c->n_stats || (int)h->ring != c->ring)
        return kvmem__fail(&c->error, KVMEM_MISMATCH,
                           "saved cache: pages of %u entries, %u statistics, a ring of %u; this "
                           "cache has %d, %d, %d",
                           h->page, h->n_stats, h->ring, c->recipe.page, c->n_stats, c->ring);
    return KVMEM_OK;
}
/* Codec i of the file, as this cache's arena knows it; NULL with the error set. */
static const kvmem_codec_use *kvmem__load_codec(kvmem_cache *c, kvmem__in *in) {
    const uint32_t len = kvmem__in_u32(in);
    const char *word = (const char *)kvmem__in_bytes(in, len);
    const unsigned row = (unsigned)kvmem__in_u32(in);
    const kvmem_codec_use *u;
    kvmem_choice ch;
    int i;
    memset(&ch, 0, sizeof ch);
    for (i = 0; i < KVMEM_MAX_PARAMS; i++) {
        const uint64_t bits = kvmem__in_u64(in);
        memcpy(&ch.par[i], &bits, 8);
    }
    if (in->bad || len > 64) {
        kvmem__fail(&c->error, KVMEM_BAD_FILE, "saved cache: its list of codecs is cut off");
        return NULL;
    }
    for (i = 0; i < 2; i++) {
        const kvmem_choice *own = &c->recipe.stage[KVMEM_CODEC_K + i];
        if (strlen(own->entry->word) == len && !memcmp(own->entry->word, word, len)) {
            ch.entry = own->entry;
            ch.user = own->user;
        }
    }
    for (i = 0; !ch.entry && kvmem_stage_entry(KVMEM_CODEC_K, i); i++) {
        const kvmem_entry *e = kvmem_stage_entry(KVMEM_CODEC_K, i);
        if (strlen(e->word) == len && !memcmp(e->word, word, len)) ch.entry = e;
    }
    if (!ch.entry) {
        kvmem__fail(&c->error, KVMEM_UNSUPPORTED, "saved cache: unknown codec \"%.*s\"", (int)len, word);
        return NULL;
    }
    for (i = 0; ch.entry->params && ch.entry->params[i].name; i++)
        if (!(ch.par[i] >= ch.entry->params[i].lo && ch.par[i] <= ch.entry->params[i].hi)) {
            kvmem__fail(&c->error, KVMEM_BAD_FILE, "saved cache: parameter %s of codec %s is out of range",
                        ch.entry->params[i].name, ch.entry->word);
            return NULL;
        }
    u = kvmem__use_codec(c, &ch);
    if (u && u->row_bytes != row) {
        kvmem__fail(&c->error, KVMEM_BAD_FILE,
                    "saved cache: rows of codec %s have %u bytes, not %zu", ch.entry->word, row,
                    u->row_bytes);
        return NULL;
    }
    return u;
}
static kvmem_status kvmem__load_lane(kvmem_cache *c, kvmem__in *in, kvmem_lane *ln, const kvmem_codec_use *const *codec,
                                     unsigned n_codecs, int32_t next_pos) {
    const unsigned n = (unsigned)kvmem__in_u32(in);
    const int P = c->recipe.page;
    int32_t last = -1;
    int i, t, s, pages;
    if (in->bad || n > in->left / 4 || n > INT32_MAX / 2)
        return kvmem__fail(&c->error, KVMEM_BAD_FILE,
                           "saved cache: a lane of %u entries passes the end of the file", n);
    pages = ((int)n + P - 1) / P;
    if (pages) KVMEM__TRY(kvmem__lane_table(c, ln, pages));
    for (i = 0; i < pages; i++) {
        const unsigned kc = (unsigned)kvmem__in_u32(in), vc = (unsigned)kvmem__in_u32(in);
        const int rows = KVMEM__MIN(P, (int)n - i * P);
        const uint8_t *k, *v;
        kvmem_page *p;
        if (in->bad || kc >= n_codecs || vc >= n_codecs)
            return kvmem__fail(&c->error, KVMEM_BAD_FILE,
                               "saved cache: a page names codec %u or %u of %u", kc, vc, n_codecs);
        p = kvmem__page_new(c, rows, codec[kc], codec[vc]);
        if (!p) return c->error.status;
        ln->pages[ln->n_pages++] = p;
        ln->n += rows;
        for (t = 0; t < rows; t++) {
            const uint32_t pos = kvmem__in_u32(in);
            if (in->bad || pos >= (uint32_t)next_pos || (int32_t)pos <= last)
                return kvmem__fail(&c->error, KVMEM_BAD_FILE, "saved cache: positions of a lane do not rise below %d",
                                   (int)next_pos);
            p->pos[t] = last = (int32_t)pos;
        }
        for (s = 0; s < c->n_stats; s++) kvmem__in_f32s(in, p->stats + s * p->cap, (size_t)rows);
        k = kvmem__in_bytes(in, (size_t)rows * p->kc->row_bytes);
        v = kvmem__in_bytes(in, (size_t)rows * p->vc->row_bytes);
        if (!k || !v) return kvmem__fail(&c->error, KVMEM_BAD_FILE, "saved cache: a page passes the end of the file");
        memcpy(p->k, k, (size_t)rows * p->kc->row_bytes);
        memcpy(p->v, v, (size_t)rows * p->vc->row_bytes);
    }
    return KVMEM_OK;
}
static kvmem_status kvmem__load_body(kvmem_cache *c, kvmem__in *in, const kvmem__saved *h,
                                     const kvmem_codec_use **codec) {
    const size_t row = (size_t)c->shape.n_heads * (size_t)c->shape.head_dim;
    uint32_t i;
    for (i = 0; i < h->n_codecs; i++) {
        codec[i] = kvmem__load_codec(c, in);
        if (!codec[i]) return c->error.status;
    }
    for (i = 0; i < h->n_events; i++) KVMEM__TRY(kvmem__add_event(c, (int64_t)kvmem__in_u64(in)));
    for (i = 0; i < h->ring; i++) c->ring_pos[i] = (int32_t)(kvmem__in_u32(in) & 0x7fffffffu);
    if (h->ring && !kvmem__in_f32s(in, c->ring_q, (size_t)h->ring * (size_t)c->shape.n_layers * row))
        return kvmem__fail(&c->error, KVMEM_BAD_FILE, "saved cache: the ring of queries passes the end of the file");
    for (i = 0; i < h->layers * h->kv_heads; i++)
        KVMEM__TRY(kvmem__load_lane(c, in, &c->lane[i], codec, h->n_codecs, (int32_t)h->next_pos));
    if (in->bad || in->left)
        return kvmem__fail(&c->error, KVMEM_BAD_FILE, "saved cache: %zu bytes too many or too few",
                           in->left);
    c->tokens = (int64_t)h->tokens;
    c->next_pos = (int32_t)h->next_pos;
    c->since_reduce = (int64_t)h->since_reduce;
    c->ring_n = (int)h->ring_n;
    c->ring_at = (int)h->ring_at;
    return KVMEM_OK;
}
/* The other container, section stream. */
static int kvmem__is_chunks(const void *bytes, size_t size);
static kvmem_status kvmem__chunks_load(kvmem_cache *c, const void *bytes, size_t size);
static kvmem_status kvmem__chunks_inspect(const void *bytes, size_t size, kvmem_cache_info *out, kvmem_error *err);
KVMEM_API kvmem_status kvmem_cache_load(kvmem_cache *c, const void *bytes, size_t size) {
    const kvmem_codec_use **codec;
    kvmem_bytes_part part;
    kvmem__saved h;
    kvmem__in in;
    kvmem_status st;
    int over;
    KVMEM__TRY(kvmem__check_layer(c, 0, "load"));
    if (kvmem__is_chunks(bytes, size)) return kvmem__chunks_load(c, bytes, size);
    kvmem_cache_clear(c);
    KVMEM__TRY(kvmem__load_head(&in, &h, bytes, size, &c->error));
    KVMEM__TRY(kvmem__load_match(c, &h));
    part = kvmem__part(4, ((size_t)h.n_codecs + 1) * sizeof *codec);
    codec = (const kvmem_codec_use **)kvmem__arena_take(c->arena, &part, &over);
    if (!codec) return kvmem__no_room(c, over, part.total, "load");
    st = kvmem__load_body(c, &in, &h, codec);
    kvmem__arena_give(c->arena, (void *)codec, &part);
    if (st != KVMEM_OK) { /* nothing was told of the entries that go again */
        const kvmem_error e = c->error;
        const kvmem_trace_fn trace = c->trace;
        c->trace = NULL;
        kvmem_cache_clear(c);
        c->trace = trace;
        c->error = e;
    } else if (c->trace)
        kvmem__tell_all(c, KVMEM_FATE_KEPT);
    return st;
}
KVMEM_API kvmem_status kvmem_cache_inspect(const void *bytes, size_t size, kvmem_cache_info *out, kvmem_error *err) {
    kvmem__saved h;
    kvmem__in in;
    uint32_t i, row[64];
    if (kvmem__is_chunks(bytes, size)) return kvmem__chunks_inspect(bytes, size, out, err);
    memset(out, 0, sizeof *out);
    KVMEM__TRY(kvmem__load_head(&in, &h, bytes, size, err));
    out->version = (int)h.version;
    out->n_layers = (int)h.layers;
    out->n_heads = (int)h.heads;
    out->n_kv_heads = (int)h.kv_heads;
    out->head_dim = (int)h.head_dim;
    out->page = (int)h.page;
    out->model_id = h.model_id;
    out->tokens = (int64_t)h.tokens;
    out->file_bytes = size;
    memcpy(out->recipe, h.recipe, KVMEM__MIN((size_t)h.recipe_len, sizeof out->recipe - 1));
    for (i = 0; i < h.n_codecs; i++) {
        kvmem__in_bytes(&in, kvmem__in_u32(&in));
        row[i % 64] = kvmem__in_u32(&in);
        kvmem__in_bytes(&in, 8 * KVMEM_MAX_PARAMS);
    }
    kvmem__in_bytes(&in, 8 * (size_t)h.n_events + 4 * (size_t)h.ring);
    for (i = 0; i < h.ring && !in.bad; i++)
        kvmem__in_bytes(&in, 4 * (size_t)h.layers * (size_t)h.heads * (size_t)h.head_dim);
    for (i = 0; i < h.layers * h.kv_heads && !in.bad; i++) {
        uint32_t n = kvmem__in_u32(&in);
        out->entries += n;
        while (n && !in.bad) {
            const uint32_t rows = KVMEM__MIN(n, h.page), kc = kvmem__in_u32(&in), vc = kvmem__in_u32(&in);
            const size_t kb = kc < h.n_codecs && kc < 64 ? (size_t)row[kc] * rows : 0;
            const size_t vb = vc < h.n_codecs && vc < 64 ? (size_t)row[vc] * rows : 0;
            kvmem__in_bytes(&in, 4 * (size_t)rows * (1 + h.n_stats));
            kvmem__in_bytes(&in, kb);
            kvmem__in_bytes(&in, vb);
            out->k_bytes += kb;
            out->v_bytes += vb;
            n -= rows;
        }
    }
    if (in.bad || in.left)
        return kvmem__fail(err, KVMEM_BAD_FILE,
                           "saved cache: pages do not add up to the file's size");
    return KVMEM_OK;
}
#ifndef KVMEM_NO_STDIO
static int kvmem__write_file(void *user, const void *bytes, size_t size) {
    return fwrite(bytes, 1, size, (FILE *)user) != size;
}
KVMEM_API kvmem_status kvmem_cache_save_file(kvmem_cache *c, const char *path) {
    FILE *f;
    kvmem_status st;
    KVMEM__TRY(kvmem__check_layer(c, 0, "save"));
    f = path ? fopen(path, "wb") : NULL;
    if (!f) return kvmem__fail(&c->error, KVMEM_IO, "%s: cannot be opened for writing", path ? path : "(no path)");
    st = kvmem_cache_save(c, kvmem__write_file, f);
    if (fclose(f) != 0 || st == KVMEM_IO) return kvmem__fail(&c->error, KVMEM_IO, "%s: writing failed", path);
    return st;
}
KVMEM_API kvmem_status kvmem_cache_load_file(kvmem_cache *c, const char *path) {
    kvmem_bytes_part part;
    kvmem_status st = KVMEM_OK;
    FILE *f;
    long size;
    void *bytes;
    KVMEM__TRY(kvmem__check_layer(c, 0, "load"));
    f = path ? fopen(path, "rb") : NULL;
    if (!f) return kvmem__fail(&c->error, KVMEM_IO, "%s: cannot be opened", path ? path : "(no path)");
    if (fseek(f, 0, SEEK_END) || (size = ftell(f)) < 0 || fseek(f, 0, SEEK_SET)) {
        fclose(f);
        return kvmem__fail(&c->error, KVMEM_IO, "%s: its size cannot be read", path);
    }
    /* the file's bytes are the caller's business, not the cache's: they do not count against its limit */
    memset(&part, 0, sizeof part);
    part.total = (size_t)size;
    bytes = kvmem__alloc(&c->arena->a, part.total);
    if (!bytes) st = kvmem__fail(&c->error, KVMEM_NO_MEMORY, "%s: no memory for its %zu bytes", path, part.total);
    else if (fread(bytes, 1, part.total, f) != part.total)
        st = kvmem__fail(&c->error, KVMEM_IO, "%s: reading failed", path);
    else st = kvmem_cache_load(c, bytes, part.total);
    kvmem__release(&c->arena->a, bytes, part.total);
    fclose(f);
    return st;
}
#endif

/* ==== >>entropy : arithmetic coding of symbols under 16-bit models ================================
   A coder narrows an interval [low, high] of 32-bit numbers, once a symbol, to the part that the model
   gives it; bits on which both ends agree are written and the interval is widened again. A symbol of
   probability p costs -log2 p bits, fractions of a bit included (Witten, Neal and Cleary 1987; the order
   of operations is that of torchac, which CacheGen's released code runs on a GPU).
   A model of n symbols is n + 1 rising numbers of 16 bits, made from counts whose sum is T:
       cdf_i = floor((65535 - n) * (count_0 + ... + count_{i-1}) / T) + i
   The `+ i` gives every symbol a width of 1 or more, so that one that was never counted can be coded. The
   last symbol's upper end is read as 65536.
       span = high - low + 1,   high = low - 1 + (span * c_hi >> 16),   low = low + (span * c_lo >> 16)
   Worked example, also a test: symbols 1 0 1 1 2 1 0 1 have counts 2 5 1, cdf 0 0x4000 0xdffe 0xffff, and
   become the bytes 5e 80: 10.39 bits of information, 9 bits of code and the end.
   A model is stored as its counts, each plus one in Elias gamma code (as many zeros as there are bits behind
   its first, then the bits): an absent symbol takes one bit, so 31 symbols of 256 values take near 120 bits
   instead of the 480 of their cdf.
   test: tests/stream.c */

/* Bytes that grow, counted as the cache's scratch. After a failure nothing more is added. */
typedef struct kvmem__bytes { kvmem_arena *arena; uint8_t *p; size_t n, cap; int failed, over; } kvmem__bytes;

static void kvmem__bytes_init(kvmem__bytes *b, kvmem_arena *arena) {
    memset(b, 0, sizeof *b);
    b->arena = arena;
}
static void kvmem__bytes_free(kvmem__bytes *b) {
    const kvmem_bytes_part part = kvmem__part(4, b->cap);
    kvmem__arena_give(b->arena, b->p, &part);
    kvmem__bytes_init(b, b->arena);
}
/* Room for n bytes more; 0 if there is none. */
static int kvmem__bytes_room(kvmem__bytes *b, size_t n) {
    size_t cap = b->cap ? b->cap : 256;
    kvmem_bytes_part part, old = kvmem__part(4, b->cap);
    uint8_t *p;
    if (b->failed || n > SIZE_MAX / 4 - b->n) { b->failed = 1; return 0; }
    if (n <= b->cap - b->n) return 1;
    while (cap < b->n + n) cap += cap / 2;
    part = kvmem__part(4, cap);
    p = (uint8_t *)kvmem__arena_take(b->arena, &part, &b->over);
    if (!p) { b->failed = 1; return 0; }
    if (b->n) memcpy(p, b->p, b->n);
    kvmem__arena_give(b->arena, b->p, &old);
    b->p = p;
    b->cap = cap;
    return 1;
}
static void kvmem__bytes_add(kvmem__bytes *b, const void *p, size_t n) {
    if (!n || !kvmem__bytes_room(b, n)) return;
    memcpy(b->p + b->n, p, n);
    b->n += n;
}
static void kvmem__bytes_u16(kvmem__bytes *b, unsigned v) {
    uint8_t x[2];
    kvmem__put16(x, (uint16_t)v);
    kvmem__bytes_add(b, x, 2);
}
static void kvmem__bytes_u32(kvmem__bytes *b, uint32_t v) {
    uint8_t x[4];
    kvmem__put32(x, v);
    kvmem__bytes_add(b, x, 4);
}
static void kvmem__bytes_f32(kvmem__bytes *b, float v) {
    uint8_t x[4];
    kvmem__putf32(x, v);
    kvmem__bytes_add(b, x, 4);
}
/* 7 bits a byte, the lowest first; the top bit says that more follow. */
static void kvmem__bytes_var(kvmem__bytes *b, uint32_t v) {
    uint8_t x[5];
    size_t n = 0;
    for (; v > 127; v >>= 7) x[n++] = (uint8_t)(128u | (v & 127u));
    x[n++] = (uint8_t)v;
    kvmem__bytes_add(b, x, n);
}
static uint32_t kvmem__in_var(kvmem__in *in) {
    uint32_t v = 0;
    int i;
    for (i = 0; i < 5; i++) {
        const uint8_t *p = kvmem__in_bytes(in, 1);
        if (!p || (i == 4 && *p > 15)) break;
        v |= (uint32_t)(*p & 127u) << (7 * i);
        if (*p < 128) return v;
    }
    in->bad = 1;
    return 0;
}
static unsigned kvmem__in_u16(kvmem__in *in) {
    const uint8_t *p = kvmem__in_bytes(in, 2);
    return p ? kvmem__le16(p) : 0;
}

/* Bits, the first in a byte's highest place. */
typedef struct kvmem__bit_out { kvmem__bytes *b; unsigned byte; int n; } kvmem__bit_out;
typedef struct kvmem__bit_in { const uint8_t *p; size_t left; unsigned byte; int n, bad; } kvmem__bit_in;

static void kvmem__bit_put(kvmem__bit_out *o, unsigned bit) {
    o->byte = o->byte << 1 | bit;
    if (++o->n < 8) return;
    if (kvmem__bytes_room(o->b, 1)) o->b->p[o->b->n++] = (uint8_t)o->byte;
    o->byte = 0;
    o->n = 0;
}
static void kvmem__bit_end(kvmem__bit_out *o) { while (o->n) kvmem__bit_put(o, 0); }
static unsigned kvmem__bit_get(kvmem__bit_in *in) { /* zeros past the end, and bad is set */
    if (!in->n) {
        in->byte = 0;
        in->n = 8;
        if (in->left) { in->byte = *in->p++; in->left--; }
        else in->bad = 1;
    }
    return in->byte >> --in->n & 1u;
}
/* Elias gamma code of v >= 1. */
static void kvmem__gamma_put(kvmem__bit_out *o, uint64_t v) {
    int n = 0;
    while (v >> n > 1) n++;
    { int i; for (i = 0; i < n; i++) kvmem__bit_put(o, 0); }
    for (; n >= 0; n--) kvmem__bit_put(o, (unsigned)(v >> n & 1));
}
static uint64_t kvmem__gamma_get(kvmem__bit_in *in) {
    uint64_t v = 1;
    int n = 0;
    while (!kvmem__bit_get(in)) {
        if (in->bad || ++n > 48) { in->bad = 1; return 1; }
    }
    for (; n > 0; n--) v = v << 1 | kvmem__bit_get(in);
    return v;
}
static int kvmem__gamma_bits(uint64_t v) {
    int n = 0;
    while (v >> n > 1) n++;
    return 2 * n + 1;
}

#define KVMEM__SYMBOLS 255 /* most symbols of a model */
typedef struct kvmem__model { int n; uint32_t cdf[KVMEM__SYMBOLS + 1]; } kvmem__model;

/* cdf (n + 1) of counts (n) whose sum is positive; cdf_n is read as 65536 by the coder. */
static void kvmem__model_make(kvmem__model *m, const uint64_t *count, int n) {
    uint64_t sum = 0, cum = 0;
    int i;
    for (i = 0; i < n; i++) sum += count[i];
    m->n = n;
    for (i = 0; i <= n; i++) {
        m->cdf[i] = (uint32_t)((65535u - (unsigned)n) * cum / (sum ? sum : 1)) + (uint32_t)i;
        if (i < n) cum += count[i];
    }
    m->cdf[n] = 65536;
}
static void kvmem__counts_put(kvmem__bit_out *o, const uint64_t *count, int n) {
    int i;
    for (i = 0; i < n; i++) kvmem__gamma_put(o, count[i] + 1);
}
/* Counts (n); 0 unless their sum is `sum`. */
static int kvmem__counts_get(kvmem__bit_in *in, uint64_t *count, int n, uint64_t sum) {
    uint64_t have = 0;
    int i;
    for (i = 0; i < n; i++) {
        count[i] = kvmem__gamma_get(in) - 1;
        have += count[i];
    }
    return !in->bad && have == sum;
}
/* Bits that symbols with these counts take under their own model, and the model as it is stored. */
static double kvmem__counts_bits(const uint64_t *count, int n) {
    kvmem__model m;
    double bits = 0;
    int i;
    kvmem__model_make(&m, count, n);
    for (i = 0; i < n; i++) {
        bits += kvmem__gamma_bits(count[i] + 1);
        if (count[i]) bits += (double)count[i] * (16 - log((double)(m.cdf[i + 1] - m.cdf[i])) / log(2.0));
    }
    return bits;
}

typedef struct kvmem__coder { uint32_t low, high, pending; kvmem__bit_out out; } kvmem__coder;

static void kvmem__coder_begin(kvmem__coder *k, kvmem__bytes *b) {
    memset(k, 0, sizeof *k);
    k->high = 0xffffffffu;
    k->out.b = b;
}
static void kvmem__coder_bit(kvmem__coder *k, unsigned bit) { /* and the ones that waited for it */
    kvmem__bit_put(&k->out, bit);
    for (; k->pending; k->pending--) kvmem__bit_put(&k->out, !bit);
}
static void kvmem__coder_put(kvmem__coder *k, const kvmem__model *m, int symbol) {
    const uint64_t span = (uint64_t)k->high - k->low + 1;
    k->high = k->low - 1 + (uint32_t)(span * m->cdf[symbol + 1] >> 16);
    k->low += (uint32_t)(span * m->cdf[symbol] >> 16);
    for (;;) {
        if (k->high < 0x80000000u || k->low >= 0x80000000u) {
            kvmem__coder_bit(k, k->low >> 31);
            k->low <<= 1;
            k->high = k->high << 1 | 1;
        } else if (k->low >= 0x40000000u && k->high < 0xc0000000u) {
            k->pending++; /* 01.. and 10..: the next differing bit decides */
            k->low = k->low << 1 & 0x7fffffffu;
            k->high = k->high << 1 | 0x80000001u;
        } else return;
    }
}
static void kvmem__coder_end(kvmem__coder *k) {
    k->pending++;
    kvmem__coder_bit(k, k->low >= 0x40000000u);
    kvmem__bit_end(&k->out);
}

typedef struct kvmem__uncoder { uint32_t low, high, value; kvmem__bit_in in; } kvmem__uncoder;

static void kvmem__uncoder_begin(kvmem__uncoder *k, const uint8_t *p, size_t n) {
    int i;
    memset(k, 0, sizeof *k);
    k->high = 0xffffffffu;
    k->in.p = p;
    k->in.left = n;
    for (i = 0; i < 32; i++) k->value = k->value << 1 | kvmem__bit_get(&k->in);
}
static int kvmem__uncoder_get(kvmem__uncoder *k, const kvmem__model *m) {
    const uint64_t span = (uint64_t)k->high - k->low + 1;
    const uint32_t at = (uint32_t)((((uint64_t)k->value - k->low + 1) * 65536u - 1) / span);
    int s = 0, hi = m->n;
    while (hi - s > 1) { /* the last symbol whose lower end is not above `at` */
        const int mid = (s + hi) / 2;
        if (m->cdf[mid] <= at) s = mid;
        else hi = mid;
    }
    k->high = k->low - 1 + (uint32_t)(span * m->cdf[s + 1] >> 16);
    k->low += (uint32_t)(span * m->cdf[s] >> 16);
    for (;;) {
        if (k->high < 0x80000000u || k->low >= 0x80000000u) {
            k->value = k->value << 1 | kvmem__bit_get(&k->in);
            k->low <<= 1;
            k->high = k->high << 1 | 1;
        } else if (k->low >= 0x40000000u && k->high < 0xc0000000u) {
            k->value = (k->value - 0x40000000u) << 1 | kvmem__bit_get(&k->in);
            k->low = k->low << 1 & 0x7fffffffu;
            k->high = k->high << 1 | 0x80000001u;
        } else return s;
    }
}

/* ==== >>stream : a cache in a few bits a value, in chunks, at three levels ========================
   cachegen: CacheGen, Yuhan Liu et al. 2023 (SIGCOMM 2024), 2310.07240. Official code: UChi-JCL/CacheGen.
   A cache that is stored or sent is not read by attention, so it may be coded more tightly than any page:
   few levels a value, then arithmetic coding under the distribution of each channel. Not a codec but a
   save format; loading codes the entries again by the recipe of the cache that they come to.

   A chunk is the entries of `chunk` successive positions. K and V of a layer in a chunk are a strip: rows
   (tokens) times C = n_kv_heads * head_dim channels; lanes that have lost entries have fewer rows.
     as released (group = 1)
         m_t = max_c |x_tc|,   C_Q = Q / 2 - 1,   symbol = round(x C_Q / m_t) + C_Q in 0..2 C_Q
         back: x = (symbol - C_Q) / C_Q * m_t
     as in the paper (group = 10): of ten rows of a lane the first is the anchor, coded as above with
         Q = 256 (8 bits); the others are their difference from the decoded anchor (not from the row
         before, so that an error stays where it is made):
         symbol = round((x - anchor) / step_c) + 15, cut to 0..30,   step_c = b * sqrt(mean difference^2)
         Anchors and differences have distributions of their own. The released code has no anchors.
   Levels, by layer l of L (the published thirds of 32 layers, by l * 32 / L):
             Q of K: < 10  < 20  rest    Q of V: < 2  rest    b: first, middle, last third of the layers
     level 1         16    16    12              16   12         1    1.5   2
     level 2         32    16    16              32   16         .5   1     1.5  (the paper's)
     level 3         32    32    32              32   32         .5   .5    .5
   Distributions are counted in the strip, for each channel or for all together: per channel fits better,
   together is smaller in short chunks; models = 0 takes the smaller for each strip.
   Bits a value: entropy + 16 / C (m_t) + the models. As 16-bit cdfs, one a channel, models would take
   16 (Q + 1) / T: at T = 1500 .35, at T = 256 2.06. Counts in gamma code are a quarter of that.

   Where this differs from the released code: one coded stream for all channels of a lane instead of one for
   each channel and 256 tokens (that is for a GPU's threads and costs 16 bits of length each); m_t is a half
   relative to the strip's largest, so that no size of value overflows it; steps and levels of the paper's
   way are our choice, the paper gives b = .5, 1, 1.5.

   The file, little-endian:
     head    "kvmem-s\n"  u32 version  layers  heads  kv_heads  head_dim  statistics (1 acc, 2 last)  levels
             (bit l - 1: level l)  group  chunk  ring_n  n_events  recipe_len  u64 model_id  shape_hash
             recipe text  events u64  ring: positions u32 (ring_n), queries f16 (layers, ring_n, heads, d)
             u32 CRC-32 of all this
     chunks  text:   ids of the tokens from the end of the chunk before to this one's, 7 bits a byte
             places: positions as (gap, length) runs, then for each layer the lanes' masks over them (the
                     bits that say which are there, arithmetic-coded given the bit before) and statistics
             levels: for each level of the file the strips K, V of layer 0, K, V of layer 1, ...
             each part ends with its CRC-32; a text of no ids is no bytes
     strip   u32 bytes of what follows  u16 Q  u16 flags (1: model per channel of scaled values, 2: of
             differences)  f32 unit  m_t / unit f16 (tokens that have one)  step_c / unit f16 (if group > 1)
             shared models  for each lane: u32 model bytes  u32 code bytes  models  code
     index   for each chunk: u64 offset  u32 tokens  first position  end  entries  bytes of text, places,
             level 1, 2, 3;  u64 tokens seen  entries  since_reduce  u32 next_pos  CRC-32
             u64 offset of the index  u32 chunks
   Each chunk can be decoded without the others, so that a sender can pick a level for each as it goes
   (kvmem_chunks_plan) and compute from its text what would come too late.
   Random access needs the last 12 bytes first, as in a zip file; the writer needs no seeking, and memory for
   one chunk.  test: tests/stream.c */
#define KVMEM__STREAM_VERSION 1u
#define KVMEM__STREAM_HEAD 72  /* bytes before the recipe text */
#define KVMEM__STREAM_ROW 44   /* bytes of an index row */
#define KVMEM__STREAM_END 44   /* bytes behind the rows */
#define KVMEM__DELTA 15        /* differences are cut to +-15 steps */
#define KVMEM__UNIT_MAX 1e36f  /* larger values are cut, so that nothing decodes to infinity */

static int kvmem__level_bins(int level, int values, int l, int L) {
    static const int k[3][3] = { { 16, 16, 12 }, { 32, 16, 16 }, { 32, 32, 32 } };
    static const int v[3][2] = { { 16, 12 }, { 32, 16 }, { 32, 32 } };
    const int at = l * 32 / L;
    if (values) return v[level - 1][at >= 2];
    return k[level - 1][at < 10 ? 0 : at < 20 ? 1 : 2];
}
static float kvmem__level_step(int level, int l, int L) {
    static const float b[3][3] = { { 1.0f, 1.5f, 2.0f }, { 0.5f, 1.0f, 1.5f }, { 0.5f, 0.5f, 0.5f } };
    return b[level - 1][l * 3 / L];
}
static int kvmem__is_finite(float x) { return x - x == 0.0f; }
static int kvmem__rounded(float x, int most) { /* to the nearest, ties to even, within +-most; NaN: 0 */
    if (!(x < (float)most)) return x >= (float)most ? most : 0;
    return x > (float)-most ? (int)rintf(x) : -most;
}
static int kvmem__scaled_symbol(float x, float scale, int half) { /* half: C_Q */
    return half + (scale > 0 && kvmem__is_finite(x) ? kvmem__rounded(x / scale * (float)half, half) : 0);
}
static float kvmem__scaled_value(int symbol, float scale, int half) {
    return (float)(symbol - half) / (float)half * scale;
}

/* Scratch of one save or load. U: most tokens of a chunk. */
typedef struct kvmem__work {
    kvmem_cache *c;
    int U, n;          /* room for tokens; those of this chunk */
    int group;
    int *start, *rows; /* (lanes) the chunk's entries: first index in the lane, number */
    int32_t *pos;      /* (U) positions of the tokens, rising */
    int *token;        /* (G, U) row r of lane g of the layer at hand is token[g * U + r] */
    uint8_t *mark;     /* (U) the token has a scale */
    float *x, *y;      /* (U, d) rows of a lane */
    float *scale[2];   /* (U) of K, V */
    float *step[2];    /* (G * d) */
    uint8_t *symbol;   /* (G, d, U) rows of a channel side by side; NULL when loading */
    void *mem;
    size_t size;
} kvmem__work;

/* Two rounds: the first counts, the second hands out. */
static void *kvmem__work_slice(uint8_t *mem, size_t *at, size_t count, size_t item, int *ok) {
    void *p = mem ? mem + *at : NULL;
    size_t bytes = 0;
    *ok = *ok && kvmem__mul(count, item, &bytes) && bytes < SIZE_MAX / 2 && kvmem__add(*at, bytes + 15, at);
    *at &= ~(size_t)15;
    return p;
}
static kvmem_status kvmem__work_init(kvmem__work *w, kvmem_cache *c, int U, int group, int saving) {
    const size_t G = (size_t)c->shape.n_kv_heads, d = (size_t)c->shape.head_dim, u = (size_t)U;
    const size_t lanes = G * (size_t)c->shape.n_layers;
    int round, ok = 1, i, over;
    memset(w, 0, sizeof *w);
    for (round = 0; round < 2 && ok; round++) {
        uint8_t *m = (uint8_t *)w->mem;
        size_t at = 0;
        w->start = (int *)kvmem__work_slice(m, &at, lanes, sizeof(int), &ok);
        w->rows = (int *)kvmem__work_slice(m, &at, lanes, sizeof(int), &ok);
        w->pos = (int32_t *)kvmem__work_slice(m, &at, u, sizeof(int32_t), &ok);
        w->token = (int *)kvmem__work_slice(m, &at, G * u, sizeof(int), &ok);
        w->mark = (uint8_t *)kvmem__work_slice(m, &at, u, 1, &ok);
        w->x = (float *)kvmem__work_slice(m, &at, u * d, sizeof(float), &ok);
        if (!saving) w->y = (float *)kvmem__work_slice(m, &at, u * d, sizeof(float), &ok);
        for (i = 0; i < 2; i++) {
            w->scale[i] = (float *)kvmem__work_slice(m, &at, u, sizeof(float), &ok);
            w->step[i] = (float *)kvmem__work_slice(m, &at, G * d, sizeof(float), &ok);
        }
        if (saving) w->symbol = (uint8_t *)kvmem__work_slice(m, &at, u * d, G, &ok);
        if (!round && ok) {
            const kvmem_bytes_part part = kvmem__part(4, at);
            w->size = at;
            w->mem = kvmem__arena_take(c->arena, &part, &over);
            if (!w->mem) {
                w->size = 0;
                return kvmem__no_room(c, over, at, saving ? "saving a chunk (a shorter one needs less)"
                                                          : "loading a chunk of the stream");
            }
        }
    }
    w->c = c;
    w->U = U;
    w->group = group;
    if (!ok) return kvmem__fail(&c->error, KVMEM_NO_MEMORY, "a chunk of %d tokens is too large here", U);
    memset(w->mem, 0, w->size);
    return KVMEM_OK;
}
static void kvmem__work_free(kvmem__work *w) {
    const kvmem_bytes_part part = kvmem__part(4, w->size);
    if (w->c) kvmem__arena_give(w->c->arena, w->mem, &part);
    memset(w, 0, sizeof *w);
}
static int32_t kvmem__pos_at(const kvmem_cache *c, const kvmem_lane *ln, int i) {
    return ln->pages[i / c->recipe.page]->pos[i % c->recipe.page];
}
/* The next positions, at most U, that any lane has from start + rows on; 0: none is left. */
static int kvmem__next_chunk(kvmem__work *w) {
    kvmem_cache *c = w->c;
    const int lanes = c->shape.n_layers * c->shape.n_kv_heads;
    int i;
    for (i = 0; i < lanes; i++) {
        w->start[i] += w->rows[i];
        w->rows[i] = 0;
    }
    for (w->n = 0; w->n < w->U; w->n++) {
        int32_t least = INT32_MAX;
        for (i = 0; i < lanes; i++) {
            const int at = w->start[i] + w->rows[i];
            if (at < c->lane[i].n) least = KVMEM__MIN(least, kvmem__pos_at(c, &c->lane[i], at));
        }
        if (least == INT32_MAX) break;
        w->pos[w->n] = least;
        for (i = 0; i < lanes; i++) {
            const int at = w->start[i] + w->rows[i];
            if (at < c->lane[i].n && kvmem__pos_at(c, &c->lane[i], at) == least) w->rows[i]++;
        }
    }
    return w->n;
}
/* Which token each row of the layer's lanes is, from the positions in the cache. */
static void kvmem__find_tokens(kvmem__work *w, int layer) {
    const int G = w->c->shape.n_kv_heads;
    int g, r, t;
    for (g = 0; g < G; g++) {
        const kvmem_lane *ln = kvmem__lane_at(w->c, layer, g);
        const int i = layer * G + g;
        for (r = t = 0; r < w->rows[i]; r++, t++) {
            const int32_t p = kvmem__pos_at(w->c, ln, w->start[i] + r);
            while (w->pos[t] < p) t++;
            w->token[(size_t)g * (size_t)w->U + (size_t)r] = t;
        }
    }
}
/* Tokens of which some lane has a scaled row. */
static int kvmem__mark_scaled(kvmem__work *w, int layer) {
    const int G = w->c->shape.n_kv_heads;
    int g, r, t, n = 0;
    memset(w->mark, 0, (size_t)w->n);
    for (g = 0; g < G; g++)
        for (r = 0; r < w->rows[layer * G + g]; r += w->group)
            w->mark[w->token[(size_t)g * (size_t)w->U + (size_t)r]] = 1;
    for (t = 0; t < w->n; t++) n += w->mark[t];
    return n;
}

/* --- a strip: K (values 0) or V (1) of one layer in one chunk --- */
typedef struct kvmem__strip {
    int values, layer, half;     /* half: C_Q */
    unsigned flags;              /* bit p: models per channel of plane p: 0 scaled values, 1 differences */
    float unit, *scale, *step;   /* of the tokens; of the channels */
    kvmem__model model[2];       /* shared ones */
    kvmem__in in;                /* at the next lane, when reading */
} kvmem__strip;

static int kvmem__plane_symbols(const kvmem__strip *s, int plane) {
    return plane ? 2 * KVMEM__DELTA + 1 : 2 * s->half + 1;
}
/* Rows of a lane of n rows that plane 0 or 1 has. */
static int kvmem__plane_rows(int n, int group, int plane) {
    const int anchors = (n + group - 1) / group;
    return plane ? n - anchors : anchors;
}
static int kvmem__in_plane(int r, int group, int plane) { return (r % group != 0) == plane; }

static kvmem_status kvmem__strip_read(kvmem__work *w, const kvmem__strip *s, int g) { /* lane g's rows to x */
    const int i = s->layer * w->c->shape.n_kv_heads + g;
    const kvmem_status st = kvmem_cache_read(w->c, s->layer, g, w->start[i], w->rows[i], s->values ? NULL : w->x,
                                             s->values ? w->x : NULL, NULL);
    if (st == KVMEM_OK) return st;
    return kvmem__fail(&w->c->error, st, "save: layer %d, KV head %d cannot be read", s->layer, g);
}
/* unit and the scales m_t, as they are stored; both are written to b. */
static kvmem_status kvmem__strip_scales(kvmem__work *w, kvmem__strip *s, kvmem__bytes *b) {
    const int G = w->c->shape.n_kv_heads, d = w->c->shape.head_dim;
    int g, r, i, t;
    memset(s->scale, 0, (size_t)w->n * sizeof(float));
    s->unit = 0;
    for (g = 0; g < G; g++) {
        KVMEM__TRY(kvmem__strip_read(w, s, g));
        for (r = 0; r < w->rows[s->layer * G + g]; r += w->group) {
            const float *x = w->x + (size_t)r * (size_t)d;
            float *m = &s->scale[w->token[(size_t)g * (size_t)w->U + (size_t)r]];
            for (i = 0; i < d; i++)
                if (kvmem__is_finite(x[i])) *m = KVMEM__MAX(*m, fabsf(x[i]));
            s->unit = KVMEM__MAX(s->unit, *m);
        }
    }
    s->unit = KVMEM__MIN(s->unit, KVMEM__UNIT_MAX);
    kvmem__bytes_f32(b, s->unit);
    for (t = 0; t < w->n; t++) {
        uint16_t code;
        if (!w->mark[t]) continue;
        code = kvmem__f32_to_f16(s->unit > 0 ? KVMEM__MIN(s->scale[t] / s->unit, 1.0f) : 0.0f);
        s->scale[t] = kvmem__f16_to_f32(code) * s->unit;
        kvmem__bytes_u16(b, code);
    }
    return KVMEM_OK;
}
/* Differences of channel i of the lane whose rows are in x: their step to b, their symbols to col (n). */
static void kvmem__strip_deltas(kvmem__work *w, kvmem__strip *s, kvmem__bytes *b, int g, int i, float beta,
                                uint8_t *col, int n) {
    const int d = w->c->shape.head_dim, *token = w->token + (size_t)g * (size_t)w->U;
    double sum = 0;
    float step, a = 0;
    uint16_t code;
    int r;
    for (r = 0; r < n; r++) {
        const float x = w->x[(size_t)r * (size_t)d + (size_t)i];
        if (r % w->group == 0) a = kvmem__scaled_value(col[r], s->scale[token[r]], s->half);
        else if (kvmem__is_finite(x)) sum += (double)(x - a) * (double)(x - a);
    }
    step = beta * (float)sqrt(sum / KVMEM__MAX(1, kvmem__plane_rows(n, w->group, 1)));
    code = kvmem__f32_to_f16(s->unit > 0 ? KVMEM__MIN(step / s->unit, 4.0f) : 0.0f);
    kvmem__bytes_u16(b, code);
    step = kvmem__f16_to_f32(code) * s->unit;
    s->step[g * d + i] = step;
    for (r = 0; r < n; r++) {
        const float x = w->x[(size_t)r * (size_t)d + (size_t)i];
        if (r % w->group == 0) a = kvmem__scaled_value(col[r], s->scale[token[r]], s->half);
        else col[r] = (uint8_t)(KVMEM__DELTA + (step > 0 && kvmem__is_finite(x)
                                                    ? kvmem__rounded((x - a) / step, KVMEM__DELTA) : 0));
    }
}
/* Symbols of all lanes; the steps are written to b. */
static kvmem_status kvmem__strip_symbols(kvmem__work *w, kvmem__strip *s, kvmem__bytes *b, float beta) {
    const int G = w->c->shape.n_kv_heads, d = w->c->shape.head_dim;
    int g, i, r;
    for (g = 0; g < G; g++) {
        const int n = w->rows[s->layer * G + g], *token = w->token + (size_t)g * (size_t)w->U;
        KVMEM__TRY(kvmem__strip_read(w, s, g));
        for (i = 0; i < d && n; i++) {
            uint8_t *col = w->symbol + ((size_t)g * (size_t)d + (size_t)i) * (size_t)w->U;
            for (r = 0; r < n; r += w->group)
                col[r] = (uint8_t)kvmem__scaled_symbol(w->x[(size_t)r * (size_t)d + (size_t)i],
                                                       s->scale[token[r]], s->half);
            if (w->group > 1) kvmem__strip_deltas(w, s, b, g, i, beta, col, n);
        }
    }
    return KVMEM_OK;
}
/* Counts of the symbols of one channel (i >= 0) or of all channels of all lanes, added to count. */
static void kvmem__strip_count(const kvmem__work *w, const kvmem__strip *s, int plane, int g, int i,
                               uint64_t *count) {
    const int d = w->c->shape.head_dim, n = w->rows[s->layer * w->c->shape.n_kv_heads + g];
    const uint8_t *col = w->symbol + ((size_t)g * (size_t)d + (size_t)i) * (size_t)w->U;
    int r;
    memset(count, 0, KVMEM__SYMBOLS * sizeof *count);
    for (r = 0; r < n; r++) count[col[r]] += (unsigned)kvmem__in_plane(r, w->group, plane);
}
/* Per channel or shared, as `models` says (0: the smaller); a shared model is written to o. */
static void kvmem__strip_models(kvmem__work *w, kvmem__strip *s, int plane, int models, kvmem__bit_out *o) {
    const int G = w->c->shape.n_kv_heads, d = w->c->shape.head_dim, n = kvmem__plane_symbols(s, plane);
    uint64_t one[KVMEM__SYMBOLS], all[KVMEM__SYMBOLS];
    double bits = 0;
    int g, i, j, any = 0;
    memset(all, 0, sizeof all);
    for (g = 0; g < G; g++)
        for (i = 0; i < d && kvmem__plane_rows(w->rows[s->layer * G + g], w->group, plane); i++) {
            kvmem__strip_count(w, s, plane, g, i, one);
            if (!models) bits += kvmem__counts_bits(one, n);
            for (j = 0; j < n; j++) all[j] += one[j];
            any = 1;
        }
    if (models == 1 || (!models && any && bits < kvmem__counts_bits(all, n))) s->flags |= 1u << plane;
    else if (any) {
        kvmem__model_make(&s->model[plane], all, n);
        kvmem__counts_put(o, all, n);
    }
}
/* The lane's models, if they are its own, and its code. */
static void kvmem__strip_lane(kvmem__work *w, const kvmem__strip *s, kvmem__bytes *b, int g) {
    const int d = w->c->shape.head_dim, n = w->rows[s->layer * w->c->shape.n_kv_heads + g];
    const size_t at = b->n;
    uint64_t count[KVMEM__SYMBOLS];
    kvmem__model own;
    kvmem__bit_out o;
    kvmem__coder k;
    int i, plane, r;
    size_t mid;
    if (!n) return;
    kvmem__bytes_u32(b, 0);
    kvmem__bytes_u32(b, 0);
    memset(&o, 0, sizeof o);
    o.b = b;
    for (i = 0; i < 2 * d; i++) {
        plane = i % 2;
        if (!(s->flags >> plane & 1) || !kvmem__plane_rows(n, w->group, plane)) continue;
        kvmem__strip_count(w, s, plane, g, i / 2, count);
        kvmem__counts_put(&o, count, kvmem__plane_symbols(s, plane));
    }
    kvmem__bit_end(&o);
    mid = b->n;
    kvmem__coder_begin(&k, b);
    for (i = 0; i < 2 * d; i++) {
        const uint8_t *col = w->symbol + ((size_t)g * (size_t)d + (size_t)(i / 2)) * (size_t)w->U;
        const kvmem__model *m = &own;
        plane = i % 2;
        if (!kvmem__plane_rows(n, w->group, plane)) continue;
        if (s->flags >> plane & 1) {
            kvmem__strip_count(w, s, plane, g, i / 2, count);
            kvmem__model_make(&own, count, kvmem__plane_symbols(s, plane));
        } else m = &s->model[plane];
        for (r = 0; r < n; r++)
            if (kvmem__in_plane(r, w->group, plane)) kvmem__coder_put(&k, m, col[r]);
    }
    kvmem__coder_end(&k);
    if (b->failed) return;
    kvmem__put32(b->p + at, (uint32_t)(mid - at - 8));
    kvmem__put32(b->p + at + 4, (uint32_t)(b->n - mid));
}
static kvmem_status kvmem__strip_save(kvmem__work *w, kvmem__bytes *b, int layer, int values, int level, int models) {
    const int L = w->c->shape.n_layers;
    const size_t at = b->n;
    kvmem__bit_out o;
    kvmem__strip s;
    int bins = w->group > 1 ? 256 : kvmem__level_bins(level, values, layer, L), g;
    memset(&s, 0, sizeof s);
    s.values = values;
    s.layer = layer;
    s.half = bins / 2 - 1;
    s.scale = w->scale[0];
    s.step = w->step[0];
    kvmem__bytes_u32(b, 0);
    kvmem__bytes_u16(b, (unsigned)bins);
    kvmem__bytes_u16(b, 0);
    KVMEM__TRY(kvmem__strip_scales(w, &s, b));
    KVMEM__TRY(kvmem__strip_symbols(w, &s, b, kvmem__level_step(level, layer, L)));
    memset(&o, 0, sizeof o);
    o.b = b;
    kvmem__strip_models(w, &s, 0, models, &o);
    if (w->group > 1) kvmem__strip_models(w, &s, 1, models, &o);
    kvmem__bit_end(&o);
    for (g = 0; g < w->c->shape.n_kv_heads; g++) kvmem__strip_lane(w, &s, b, g);
    if (b->failed) return KVMEM_OK; /* told by the caller */
    if (b->n - at > 0xffffffffu)
        return kvmem__fail(&w->c->error, KVMEM_UNSUPPORTED, "save: a strip of %zu bytes; take shorter chunks", b->n - at);
    kvmem__put32(b->p + at, (uint32_t)(b->n - at - 4));
    kvmem__put16(b->p + at + 6, (uint16_t)s.flags);
    return KVMEM_OK;
}

/* --- places: positions, which lane has which, statistics --- */
static void kvmem__mask_save(const kvmem__work *w, kvmem__bytes *b, int g, int n) {
    uint64_t count[2][2];
    kvmem__model m[2];
    kvmem__bytes one;
    kvmem__bit_out o;
    kvmem__coder k;
    int round, t, r, last;
    kvmem__bytes_init(&one, b->arena);
    memset(count, 0, sizeof count);
    memset(&o, 0, sizeof o);
    o.b = &one;
    for (round = 0; round < 2 && n; round++) {
        if (round) {
            for (t = 0; t < 2; t++) {
                kvmem__model_make(&m[t], count[t], 2);
                kvmem__counts_put(&o, count[t], 2);
            }
            kvmem__bit_end(&o);
            kvmem__coder_begin(&k, &one);
        }
        for (t = r = 0, last = 1; t < w->n; t++) {
            const int here = r < n && w->token[(size_t)g * (size_t)w->U + (size_t)r] == t;
            if (round) kvmem__coder_put(&k, &m[last], here);
            else count[last][here]++;
            r += here;
            last = here;
        }
        if (round) kvmem__coder_end(&k);
    }
    kvmem__bytes_var(b, (uint32_t)one.n);
    kvmem__bytes_add(b, one.p, one.n);
    if (one.failed) {
        b->failed = 1;
        b->over = one.over;
    }
    kvmem__bytes_free(&one);
}
static void kvmem__stats_save(const kvmem__work *w, kvmem__bytes *b, int layer, int g, unsigned which) {
    const kvmem_cache *c = w->c;
    const int i = layer * c->shape.n_kv_heads + g, P = c->recipe.page;
    float most = 0;
    int round, r;
    if (!(c->reads & which) || !w->rows[i]) return;
    for (round = 0; round < 2; round++) {
        for (r = w->start[i]; r < w->start[i] + w->rows[i]; r++) {
            const float x = kvmem__stat(c, c->lane[i].pages[r / P], which)[r % P];
            if (!round) most = x > most && kvmem__is_finite(x) ? x : most;
            else kvmem__bytes_u16(b, kvmem__f32_to_f16(most > 0 && x > 0 ? KVMEM__MIN(x / most, 1.0f) : 0.0f));
        }
        if (!round) kvmem__bytes_f32(b, most);
    }
}
static void kvmem__places_save(kvmem__work *w, kvmem__bytes *b) {
    const int G = w->c->shape.n_kv_heads;
    int32_t end = 0;
    int l, g, t, m;
    for (t = 0; t < w->n; t += m) {
        for (m = 1; t + m < w->n && w->pos[t + m] == w->pos[t] + m;) m++;
        kvmem__bytes_var(b, (uint32_t)(w->pos[t] - end));
        kvmem__bytes_var(b, (uint32_t)m);
        end = w->pos[t] + m;
    }
    for (l = 0; l < w->c->shape.n_layers; l++) {
        uint8_t full = 1;
        kvmem__find_tokens(w, l);
        for (g = 0; g < G; g++) full = full && w->rows[l * G + g] == w->n;
        kvmem__bytes_add(b, &full, 1);
        for (g = 0; g < G && !full; g++) kvmem__mask_save(w, b, g, w->rows[l * G + g]);
        for (g = 0; g < G; g++) kvmem__stats_save(w, b, l, g, KVMEM_READS_ACC);
        for (g = 0; g < G; g++) kvmem__stats_save(w, b, l, g, KVMEM_READS_LAST);
    }
}

/* --- saving --- */
KVMEM_API kvmem_level_options kvmem_level_options_default(void) {
    kvmem_level_options o;
    memset(&o, 0, sizeof o);
    o.level = 2;
    o.group = 10;
    o.chunk = 1000;
    return o;
}
static kvmem_status kvmem__chunks_check(kvmem_cache *c, const kvmem_level_options *o) {
    kvmem_error *e = &c->error;
    int i;
    if (o->level < 0 || o->level > 3)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "save: level %d; 1, 2, 3, or 0 for entries as stored", o->level);
    if (o->group < 1 || o->group > 255)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "save: group %d; 1 (no anchors) to 255 tokens", o->group);
    if (o->chunk < 1 || o->chunk > 65536)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "save: chunk %d; 1 to 65536 tokens", o->chunk);
    if (o->models < 0 || o->models > 2)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "save: models %d; 0 the smaller, 1 per channel, 2 shared", o->models);
    if (o->n_ids < 0 || (o->ids && o->n_ids < c->next_pos))
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "save: %d token ids for positions below %d", o->n_ids, (int)c->next_pos);
    for (i = 0; o->ids && i < o->n_ids; i++)
        if (o->ids[i] < 0) return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "save: token id %d of position %d", o->ids[i], i);
    return KVMEM_OK;
}
/* Bytes of the head with its checksum; row: floats of one token's queries in a layer. */
static uint64_t kvmem__chunks_head_bytes(int L, int row, unsigned ring_n, unsigned n_events, size_t recipe_len) {
    return KVMEM__STREAM_HEAD + (uint64_t)recipe_len + 8 * (uint64_t)n_events +
           (uint64_t)ring_n * (4 + 2 * (uint64_t)L * (uint64_t)row) + 4;
}
static void kvmem__part_end(kvmem__bytes *b, size_t from) { /* the part's checksum */
    if (!b->failed) kvmem__bytes_u32(b, kvmem__crc32(0, b->p + from, b->n - from));
}
static void kvmem__chunks_head(const kvmem_cache *c, const kvmem_level_options *o, kvmem__out *out, const char *recipe) {
    const kvmem_shape *s = &c->shape;
    const size_t row = (size_t)s->n_heads * (size_t)s->head_dim;
    uint8_t h[2];
    size_t x;
    int i, l;
    kvmem__out_bytes(out, "kvmem-s\n", 8);
    kvmem__out_u32(out, KVMEM__STREAM_VERSION);
    kvmem__out_u32(out, (uint32_t)s->n_layers);
    kvmem__out_u32(out, (uint32_t)s->n_heads);
    kvmem__out_u32(out, (uint32_t)s->n_kv_heads);
    kvmem__out_u32(out, (uint32_t)s->head_dim);
    kvmem__out_u32(out, !!(c->reads & KVMEM_READS_ACC) + 2u * !!(c->reads & KVMEM_READS_LAST));
    kvmem__out_u32(out, o->all ? 7u : 1u << (o->level - 1));
    kvmem__out_u32(out, (uint32_t)o->group);
    kvmem__out_u32(out, (uint32_t)o->chunk);
    kvmem__out_u32(out, (uint32_t)c->ring_n);
    kvmem__out_u32(out, (uint32_t)c->n_events);
    kvmem__out_u32(out, (uint32_t)strlen(recipe));
    kvmem__out_u64(out, c->model_id);
    kvmem__out_u64(out, kvmem__shape_hash(s));
    kvmem__out_bytes(out, recipe, strlen(recipe));
    for (i = 0; i < c->n_events; i++) kvmem__out_u64(out, (uint64_t)c->event[i]);
    for (i = 0; i < c->ring_n; i++)
        kvmem__out_u32(out, (uint32_t)c->ring_pos[(c->ring_at + c->ring - c->ring_n + i) % c->ring]);
    for (l = 0; l < s->n_layers; l++)
        for (i = 0; i < c->ring_n; i++) {
            const int slot = (c->ring_at + c->ring - c->ring_n + i) % c->ring;
            const float *q = c->ring_q + ((size_t)l * (size_t)c->ring + (size_t)slot) * row;
            for (x = 0; x < row; x++) {
                kvmem__put16(h, kvmem__f32_to_f16(KVMEM__MAX(-65504.0f, KVMEM__MIN(q[x], 65504.0f))));
                kvmem__out_bytes(out, h, 2);
            }
        }
    kvmem__out_u32(out, out->crc);
}
/* The parts of one chunk to b, its row to index. from: where the text of the chunk before ended. */
static kvmem_status kvmem__chunks_add(kvmem__work *w, const kvmem_level_options *o, kvmem__bytes *b,
                                        kvmem__bytes *index, uint64_t offset, int32_t from, int32_t end) {
    const kvmem_cache *c = w->c;
    uint32_t size[5];
    uint64_t entries = 0;
    uint8_t x[8];
    size_t at = b->n;
    int i, l;
    memset(size, 0, sizeof size);
    for (; o->ids && from < end; from++) kvmem__bytes_var(b, (uint32_t)o->ids[from]);
    if (b->n > at) kvmem__part_end(b, at);
    size[0] = (uint32_t)(b->n - at);
    at = b->n;
    kvmem__places_save(w, b);
    kvmem__part_end(b, at);
    size[1] = (uint32_t)(b->n - at);
    for (i = 1; i <= 3; i++) {
        if (!o->all && o->level != i) continue;
        at = b->n;
        for (l = 0; l < c->shape.n_layers; l++) {
            kvmem__find_tokens(w, l);
            kvmem__mark_scaled(w, l);
            KVMEM__TRY(kvmem__strip_save(w, b, l, 0, i, o->models));
            KVMEM__TRY(kvmem__strip_save(w, b, l, 1, i, o->models));
        }
        kvmem__part_end(b, at);
        size[1 + i] = (uint32_t)(b->n - at);
    }
    if (b->n > 0x7fffffffu)
        return kvmem__fail(&w->c->error, KVMEM_UNSUPPORTED, "save: a chunk of %zu bytes; take shorter ones", b->n);
    for (i = 0; i < c->shape.n_layers * c->shape.n_kv_heads; i++) entries += (uint64_t)w->rows[i];
    kvmem__put64(x, offset);
    kvmem__bytes_add(index, x, 8);
    kvmem__bytes_u32(index, (uint32_t)w->n);
    kvmem__bytes_u32(index, (uint32_t)w->pos[0]);
    kvmem__bytes_u32(index, (uint32_t)end);
    kvmem__bytes_u32(index, (uint32_t)entries);
    for (i = 0; i < 5; i++) kvmem__bytes_u32(index, size[i]);
    return KVMEM_OK;
}
static int kvmem__more_entries(const kvmem__work *w) {
    int i, more = 0;
    for (i = 0; i < w->c->shape.n_layers * w->c->shape.n_kv_heads; i++)
        more = more || w->start[i] + w->rows[i] < w->c->lane[i].n;
    return more;
}
/* Chunks, one at a time in b, and the index. */
static kvmem_status kvmem__chunks_save(kvmem__work *w, const kvmem_level_options *o, kvmem__out *out, uint64_t at) {
    kvmem_cache *c = w->c;
    kvmem__bytes b, index;
    kvmem_status st = KVMEM_OK;
    uint64_t entries = 0;
    int32_t from = 0;
    uint32_t n = 0;
    int i;
    kvmem__bytes_init(&b, c->arena);
    kvmem__bytes_init(&index, c->arena);
    while (st == KVMEM_OK && !out->failed && !b.failed && !index.failed && kvmem__next_chunk(w)) {
        const int32_t end = kvmem__more_entries(w) ? w->pos[w->n - 1] + 1 : c->next_pos;
        b.n = 0;
        st = kvmem__chunks_add(w, o, &b, &index, at, from, end);
        if (st == KVMEM_OK && !b.failed) kvmem__out_bytes(out, b.p, b.n);
        at += b.n;
        from = end;
        n++;
    }
    if (st == KVMEM_OK && (b.failed || index.failed)) st = kvmem__no_room(c, b.over || index.over, 2 * b.cap,
                                                                          "the bytes of a chunk (a shorter one has fewer)");
    if (st == KVMEM_OK) {
        for (i = 0; i < c->shape.n_layers * c->shape.n_kv_heads; i++) entries += (uint64_t)c->lane[i].n;
        out->crc = 0;
        kvmem__out_bytes(out, index.p, index.n);
        kvmem__out_u64(out, (uint64_t)c->tokens);
        kvmem__out_u64(out, entries);
        kvmem__out_u64(out, (uint64_t)c->since_reduce);
        kvmem__out_u32(out, (uint32_t)c->next_pos);
        kvmem__out_u32(out, out->crc);
        kvmem__out_u64(out, at);
        kvmem__out_u32(out, n);
    }
    kvmem__bytes_free(&b);
    kvmem__bytes_free(&index);
    return st;
}
KVMEM_API kvmem_status kvmem_cache_save_level(kvmem_cache *c, const kvmem_level_options *options,
                                              kvmem_write_fn write, void *user) {
    const kvmem_level_options o = options ? *options : kvmem_level_options_default();
    char text[KVMEM__RECIPE_TEXT];
    kvmem__work w;
    kvmem__out out;
    kvmem_status st;
    uint64_t at;
    KVMEM__TRY(kvmem__check_layer(c, 0, "save"));
    if (!write) return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "save: no function to write with");
    if (c->block_n) return kvmem__fail(&c->error, KVMEM_BAD_STATE, "save in the middle of a block: commit first");
    KVMEM__TRY(kvmem__chunks_check(c, &o));
    if (!o.level && !o.all) return kvmem_cache_save(c, write, user);
    if (kvmem_recipe_print(&c->recipe, text, sizeof text) >= sizeof text)
        return kvmem__fail(&c->error, KVMEM_UNSUPPORTED, "save: the recipe's text is too long");
    at = kvmem__chunks_head_bytes(c->shape.n_layers, c->shape.n_heads * c->shape.head_dim, (unsigned)c->ring_n,
                                  (unsigned)c->n_events, strlen(text));
    out.write = write;
    out.user = user;
    out.crc = 0;
    out.failed = 0;
    KVMEM__TRY(kvmem__work_init(&w, c, KVMEM__MIN(o.chunk, KVMEM__MAX(1, c->next_pos)), o.group, 1));
    kvmem__chunks_head(c, &o, &out, text);
    st = kvmem__chunks_save(&w, &o, &out, at);
    kvmem__work_free(&w);
    if (st != KVMEM_OK) return st;
    return out.failed ? kvmem__fail(&c->error, KVMEM_IO, "save: the writer refused bytes") : KVMEM_OK;
}

/* --- reading: nothing is believed before its checksum fits, and hostile numbers are checked after it --- */
KVMEM_API kvmem_status kvmem_chunks_at(const kvmem_chunks *s, int i, kvmem_chunk *out) {
    const uint8_t *p;
    int l;
    memset(out, 0, sizeof *out);
    if (!s->bytes || i < 0 || i >= s->n_chunks) return KVMEM_BAD_ARGUMENT;
    p = s->bytes + s->index_at + (size_t)i * KVMEM__STREAM_ROW;
    out->offset = (size_t)kvmem__le64(p);
    out->tokens = (int)kvmem__le32(p + 8);
    out->first = (int32_t)kvmem__le32(p + 12);
    out->from = i ? (int32_t)kvmem__le32(p - KVMEM__STREAM_ROW + 16) : 0;
    out->end = (int32_t)kvmem__le32(p + 16);
    out->entries = kvmem__le32(p + 20);
    out->text_bytes = kvmem__le32(p + 24);
    out->place_bytes = kvmem__le32(p + 28);
    for (l = 0; l < 3; l++) out->level_bytes[l] = kvmem__le32(p + 32 + 4 * l);
    return KVMEM_OK;
}
static int kvmem__in_int(kvmem__in *in) { /* what is above INT32_MAX cannot be meant */
    const uint32_t v = kvmem__in_u32(in);
    if (v > INT32_MAX) in->bad = 1;
    return v > INT32_MAX ? 0 : (int)v;
}
static kvmem_status kvmem__chunks_cut(size_t size, kvmem_error *e) {
    return kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: cut off or changed: a file of %zu bytes has no room for what "
                       "its head says", size);
}
/* The head and its checksum; *at is set to its end. */
static kvmem_status kvmem__chunks_open_head(kvmem_chunks *s, kvmem__in *in, size_t *at, kvmem_error *e) {
    uint64_t end;
    unsigned version, recipe_len;
    kvmem__in_bytes(in, 8);
    version = (unsigned)kvmem__in_u32(in);
    if (version != KVMEM__STREAM_VERSION)
        return kvmem__fail(e, KVMEM_UNSUPPORTED, "saved cache: stream format version %u, this library reads %u",
                           version, KVMEM__STREAM_VERSION);
    s->version = (int)version;
    s->n_layers = kvmem__in_int(in);
    s->n_heads = kvmem__in_int(in);
    s->n_kv_heads = kvmem__in_int(in);
    s->head_dim = kvmem__in_int(in);
    s->stats = (unsigned)kvmem__in_u32(in);
    s->levels = (unsigned)kvmem__in_u32(in);
    s->group = kvmem__in_int(in);
    s->chunk = kvmem__in_int(in);
    s->ring_n = (unsigned)kvmem__in_u32(in);
    s->n_events = (unsigned)kvmem__in_u32(in);
    recipe_len = (unsigned)kvmem__in_u32(in);
    s->model_id = kvmem__in_u64(in);
    s->shape_hash = kvmem__in_u64(in);
    if (in->bad || s->n_layers < 1 || s->n_layers > 4096 || s->n_kv_heads < 1 || s->n_kv_heads > 4096 ||
        s->n_heads < 1 || s->n_heads > 65536 || s->head_dim < 1 || s->head_dim > 4096 || s->stats > 3 ||
        !s->levels || s->levels > 7 || s->group < 1 || s->group > 255 || s->chunk < 1 || s->chunk > 65536 ||
        s->ring_n > 65536 || recipe_len >= KVMEM__RECIPE_TEXT)
        return kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: a header field is out of range");
    end = kvmem__chunks_head_bytes(s->n_layers, s->n_heads * s->head_dim, s->ring_n, s->n_events, recipe_len);
    if (end > s->size) return kvmem__chunks_cut(s->size, e);
    *at = (size_t)end;
    if (kvmem__crc32(0, s->bytes, *at - 4) != kvmem__le32(s->bytes + *at - 4))
        return kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: the head's checksum does not fit; the file is changed");
    s->recipe = (const char *)s->bytes + KVMEM__STREAM_HEAD;
    s->recipe_len = (int)recipe_len;
    return KVMEM_OK;
}
/* Chunks must follow each other from the head's end to the index, with rising positions. */
static kvmem_status kvmem__chunks_check_rows(const kvmem_chunks *s, size_t at, kvmem_error *e) {
    uint64_t entries = 0;
    int i, l;
    for (i = 0; i < s->n_chunks; i++) {
        uint64_t bytes;
        kvmem_chunk ch;
        int bad;
        kvmem_chunks_at(s, i, &ch);
        bytes = (uint64_t)ch.text_bytes + ch.place_bytes;
        bad = ch.offset != at || ch.tokens < 1 || ch.tokens > s->chunk || ch.first < ch.from ||
              ch.end > s->next_pos || ch.end - ch.first < ch.tokens || ch.place_bytes < 4 ||
              (ch.text_bytes && ch.text_bytes < 5);
        for (l = 0; l < 3; l++) {
            bad = bad || !!ch.level_bytes[l] != (int)(s->levels >> l & 1) || (ch.level_bytes[l] && ch.level_bytes[l] < 4);
            bytes += ch.level_bytes[l];
        }
        if (bad || bytes > s->index_at - at)
            return kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: the index says of chunk %d what cannot be", i);
        at += (size_t)bytes;
        entries += ch.entries;
    }
    if (at != s->index_at || entries != s->entries)
        return kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: its chunks do not add up to the whole");
    return KVMEM_OK;
}
static int kvmem__is_chunks(const void *bytes, size_t size) {
    return bytes && size >= 8 && !memcmp(bytes, "kvmem-s\n", 8);
}
KVMEM_API kvmem_status kvmem_chunks_open(kvmem_chunks *s, const void *bytes, size_t size, kvmem_error *e) {
    const uint8_t *p;
    kvmem__in in;
    kvmem_status st;
    uint64_t at, rows, v[3];
    size_t head = 0;
    memset(s, 0, sizeof *s);
    if (!kvmem__is_chunks(bytes, size))
        return kvmem__fail(e, KVMEM_BAD_FILE, "not a cache saved in chunks: the first bytes are not \"kvmem-s\"");
    s->bytes = (const uint8_t *)bytes;
    s->size = size;
    in.p = s->bytes;
    in.left = size;
    in.bad = 0;
    st = size < KVMEM__STREAM_HEAD ? kvmem__chunks_cut(size, e) : kvmem__chunks_open_head(s, &in, &head, e);
    if (st == KVMEM_OK && size - head < KVMEM__STREAM_END) st = kvmem__chunks_cut(size, e);
    if (st == KVMEM_OK) {
        p = s->bytes + size - KVMEM__STREAM_END;
        at = kvmem__le64(p + 32);
        rows = (uint64_t)kvmem__le32(p + 40) * KVMEM__STREAM_ROW;
        if (at < head || at > size - KVMEM__STREAM_END || rows != size - KVMEM__STREAM_END - at ||
            kvmem__crc32(0, s->bytes + at, (size_t)rows + 28) != kvmem__le32(p + 28))
            st = kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: no index at its end; the file is cut or changed");
        v[0] = kvmem__le64(p);
        v[1] = kvmem__le64(p + 8);
        v[2] = kvmem__le64(p + 16);
        if (st == KVMEM_OK && (v[0] > INT64_MAX || v[1] > SIZE_MAX || v[2] > INT64_MAX ||
                               kvmem__le32(p + 24) > INT32_MAX || rows / KVMEM__STREAM_ROW > INT32_MAX))
            st = kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: a number behind its index is out of range");
        if (st == KVMEM_OK) {
            s->index_at = (size_t)at;
            s->n_chunks = (int)(rows / KVMEM__STREAM_ROW);
            s->tokens = (int64_t)v[0];
            s->entries = (size_t)v[1];
            s->since_reduce = (int64_t)v[2];
            s->next_pos = (int32_t)kvmem__le32(p + 24);
            st = kvmem__chunks_check_rows(s, head, e);
        }
    }
    if (st != KVMEM_OK) memset(s, 0, sizeof *s);
    return st;
}
/* A part of chunk i, without its checksum, which is verified: 0 text, 1 places, 1 + l level l. */
static kvmem_status kvmem__chunks_part(const kvmem_chunks *s, int i, int part, kvmem__in *in, kvmem_error *e) {
    static const char *const name[] = { "text", "places", "level 1", "level 2", "level 3" };
    kvmem_chunk ch;
    size_t at, size[5];
    int j;
    memset(in, 0, sizeof *in);
    if (kvmem_chunks_at(s, i, &ch) != KVMEM_OK)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "chunk %d: the file has %d", i, s->n_chunks);
    size[0] = ch.text_bytes;
    size[1] = ch.place_bytes;
    for (j = 0; j < 3; j++) size[2 + j] = ch.level_bytes[j];
    for (at = ch.offset, j = 0; j < part; j++) at += size[j];
    if (!size[part]) return KVMEM_OK;
    in->p = s->bytes + at;
    in->left = size[part] - 4;
    if (kvmem__crc32(0, in->p, in->left) == kvmem__le32(in->p + in->left)) return KVMEM_OK;
    return kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: chunk %d, %s: the checksum over %zu bytes does not fit", i,
                       name[part], in->left);
}
/* The checksums of all parts. */
static kvmem_status kvmem__chunks_verify(const kvmem_chunks *s, kvmem_error *e) {
    kvmem__in in;
    int i, part;
    for (i = 0; i < s->n_chunks; i++)
        for (part = 0; part < 5; part++) KVMEM__TRY(kvmem__chunks_part(s, i, part, &in, e));
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_chunks_text(const kvmem_chunks *s, int i, int *ids, size_t cap, size_t *n,
                                         kvmem_error *err) {
    kvmem_chunk ch;
    kvmem__in in;
    *n = 0;
    KVMEM__TRY(kvmem__chunks_part(s, i, 0, &in, err));
    kvmem_chunks_at(s, i, &ch);
    while (in.left) {
        const uint32_t id = kvmem__in_var(&in);
        if (in.bad || id > INT32_MAX || *n >= (size_t)(ch.end - ch.from))
            return kvmem__fail(err, KVMEM_BAD_FILE, "saved cache: chunk %d: its text is not %d token ids", i,
                               (int)(ch.end - ch.from));
        if (*n < cap) ids[*n] = (int)id;
        ++*n;
    }
    if (!*n) return KVMEM_OK;
    return *n == (size_t)(ch.end - ch.from) ? KVMEM_OK
        : kvmem__fail(err, KVMEM_BAD_FILE, "saved cache: chunk %d: %zu token ids for %d positions", i, *n,
                      (int)(ch.end - ch.from));
}

static kvmem_status kvmem__chunk_bad(const kvmem__work *w, const char *what, int layer) {
    return kvmem__fail(&w->c->error, KVMEM_BAD_FILE, "saved cache: %s of layer %d cannot be as the chunk says", what,
                       layer);
}
/* Positions of the chunk's tokens. */
static kvmem_status kvmem__places_open(kvmem__work *w, const kvmem_chunk *ch, kvmem__in *in) {
    int64_t end = 0;
    for (w->n = 0; w->n < ch->tokens && !in->bad;) {
        const int64_t gap = kvmem__in_var(in), m = kvmem__in_var(in);
        int64_t i;
        if (m < 1 || m > ch->tokens - w->n || end + gap + m > ch->end) break;
        for (i = 0; i < m; i++) w->pos[w->n++] = (int32_t)(end + gap + i);
        end += gap + m;
    }
    if (in->bad || w->n != ch->tokens || w->pos[0] != ch->first)
        return kvmem__fail(&w->c->error, KVMEM_BAD_FILE, "saved cache: positions of the chunk at %d are not %d rising ones",
                           (int)ch->first, ch->tokens);
    return KVMEM_OK;
}
/* Which tokens lane g has: its rows, or -1. */
static int kvmem__mask_load(kvmem__work *w, kvmem__in *in, int g) {
    int *token = w->token + (size_t)g * (size_t)w->U;
    const uint32_t bytes = kvmem__in_var(in);
    const uint8_t *p = kvmem__in_bytes(in, bytes);
    uint64_t count[4], sum = 0;
    kvmem__model m[2];
    kvmem__bit_in b;
    kvmem__uncoder k;
    int i, t, r = 0, last = 1;
    if (!bytes || !p) return in->bad ? -1 : 0;
    memset(&b, 0, sizeof b);
    b.p = p;
    b.left = bytes;
    for (i = 0; i < 4; i++) sum += count[i] = kvmem__gamma_get(&b) - 1;
    if (b.bad || sum != (uint64_t)w->n) return -1;
    for (i = 0; i < 2; i++) kvmem__model_make(&m[i], count + 2 * i, 2);
    kvmem__uncoder_begin(&k, b.p, b.left);
    for (t = 0; t < w->n; t++) {
        last = kvmem__uncoder_get(&k, &m[last]);
        if (last) token[r++] = t;
    }
    return r;
}
static kvmem_status kvmem__places_layer(kvmem__work *w, kvmem__in *in, int layer) {
    const int G = w->c->shape.n_kv_heads;
    const uint8_t *full = kvmem__in_bytes(in, 1);
    int g, t;
    if (!full || *full > 1) return kvmem__chunk_bad(w, "entries", layer);
    for (g = 0; g < G; g++) {
        int *n = &w->rows[layer * G + g];
        if (*full) {
            *n = w->n;
            for (t = 0; t < w->n; t++) w->token[(size_t)g * (size_t)w->U + (size_t)t] = t;
        } else if ((*n = kvmem__mask_load(w, in, g)) < 0) return kvmem__chunk_bad(w, "entries", layer);
    }
    return KVMEM_OK;
}
/* The layer's statistics: passed over, or put into the rows that were just added to its lanes. */
static kvmem_status kvmem__stats_load(kvmem__work *w, kvmem__in *in, unsigned stats, int layer, int put) {
    kvmem_cache *c = w->c;
    const int G = c->shape.n_kv_heads, P = c->recipe.page;
    int s, g, r;
    for (s = 0; s < 2; s++) {
        const unsigned which = s ? KVMEM_READS_LAST : KVMEM_READS_ACC;
        for (g = 0; g < G && (stats >> s & 1); g++) {
            const kvmem_lane *ln = kvmem__lane_at(c, layer, g);
            const int n = w->rows[layer * G + g];
            float most = 0;
            if (!n) continue;
            kvmem__in_f32s(in, &most, 1);
            if (!(most >= 0) || !kvmem__is_finite(most)) return kvmem__chunk_bad(w, "statistics", layer);
            for (r = 0; r < n; r++) {
                const unsigned code = kvmem__in_u16(in);
                const int t = ln->n - n + r;
                if (in->bad || code > 0x3c00u) return kvmem__chunk_bad(w, "statistics", layer);
                if (put && (c->reads & which))
                    kvmem__stat(c, ln->pages[t / P], which)[t % P] = kvmem__f16_to_f32((uint16_t)code) * most;
            }
        }
    }
    return KVMEM_OK;
}
/* A strip up to its lanes. */
static kvmem_status kvmem__strip_open(kvmem__work *w, kvmem__strip *s, kvmem__in *in, int layer, int values) {
    const int G = w->c->shape.n_kv_heads, d = w->c->shape.head_dim;
    const char *const what = values ? "values" : "keys";
    const uint32_t size = kvmem__in_u32(in);
    uint64_t count[KVMEM__SYMBOLS];
    kvmem__bit_in b;
    unsigned bins, code;
    int g, i, t, plane;
    memset(s, 0, sizeof *s);
    s->values = values;
    s->layer = layer;
    s->scale = w->scale[values];
    s->step = w->step[values];
    s->in.p = kvmem__in_bytes(in, size);
    if (!s->in.p) return kvmem__chunk_bad(w, what, layer);
    s->in.left = size;
    bins = kvmem__in_u16(&s->in);
    s->flags = kvmem__in_u16(&s->in);
    kvmem__in_f32s(&s->in, &s->unit, 1);
    if (bins < 4 || bins > 256 || s->flags > 3 || !(s->unit >= 0 && s->unit <= KVMEM__UNIT_MAX))
        return kvmem__chunk_bad(w, what, layer);
    s->half = (int)bins / 2 - 1;
    for (t = 0; t < w->n; t++) {
        code = w->mark[t] ? kvmem__in_u16(&s->in) : 0;
        if (code > 0x3c00u) return kvmem__chunk_bad(w, what, layer); /* at most 1 */
        s->scale[t] = kvmem__f16_to_f32((uint16_t)code) * s->unit;
    }
    for (g = 0; g < G && w->group > 1; g++)
        for (i = 0; i < d && w->rows[layer * G + g]; i++) {
            code = kvmem__in_u16(&s->in);
            if (code > 0x4400u) return kvmem__chunk_bad(w, what, layer); /* at most 4 */
            s->step[g * d + i] = kvmem__f16_to_f32((uint16_t)code) * s->unit;
        }
    memset(&b, 0, sizeof b);
    b.p = s->in.p;
    b.left = s->in.left;
    for (plane = 0; plane < 2; plane++) {
        uint64_t n = 0;
        for (g = 0; g < G; g++) n += (uint64_t)kvmem__plane_rows(w->rows[layer * G + g], w->group, plane) * (unsigned)d;
        if ((s->flags >> plane & 1) || !n) continue;
        if (!kvmem__counts_get(&b, count, kvmem__plane_symbols(s, plane), n)) return kvmem__chunk_bad(w, what, layer);
        kvmem__model_make(&s->model[plane], count, kvmem__plane_symbols(s, plane));
    }
    s->in.p = b.p;
    s->in.left = b.left;
    return s->in.bad ? kvmem__chunk_bad(w, what, layer) : KVMEM_OK;
}
/* Rows of lane g to x (rows, d). */
static kvmem_status kvmem__strip_rows(kvmem__work *w, kvmem__strip *s, int g, float *x) {
    const int d = w->c->shape.head_dim, n = w->rows[s->layer * w->c->shape.n_kv_heads + g];
    const int *token = w->token + (size_t)g * (size_t)w->U;
    const char *const what = s->values ? "values" : "keys";
    uint64_t count[KVMEM__SYMBOLS];
    uint32_t model_bytes, code_bytes;
    const uint8_t *code;
    kvmem__model own;
    kvmem__bit_in b;
    kvmem__uncoder k;
    int i, r;
    if (!n) return KVMEM_OK;
    model_bytes = kvmem__in_u32(&s->in);
    code_bytes = kvmem__in_u32(&s->in);
    memset(&b, 0, sizeof b);
    b.p = kvmem__in_bytes(&s->in, model_bytes);
    b.left = model_bytes;
    code = kvmem__in_bytes(&s->in, code_bytes);
    if (s->in.bad) return kvmem__chunk_bad(w, what, s->layer);
    kvmem__uncoder_begin(&k, code, code_bytes);
    for (i = 0; i < 2 * d; i++) {
        const int plane = i % 2, rows = kvmem__plane_rows(n, w->group, plane);
        const kvmem__model *m = &s->model[plane];
        float *y = x + i / 2;
        if (!rows) continue;
        if (s->flags >> plane & 1) {
            if (!kvmem__counts_get(&b, count, kvmem__plane_symbols(s, plane), (uint64_t)rows))
                return kvmem__chunk_bad(w, what, s->layer);
            kvmem__model_make(&own, count, kvmem__plane_symbols(s, plane));
            m = &own;
        }
        for (r = 0; r < n; r++) {
            if (!kvmem__in_plane(r, w->group, plane)) continue;
            if (!plane) y[(size_t)r * (size_t)d] = kvmem__scaled_value(kvmem__uncoder_get(&k, m), s->scale[token[r]], s->half);
            else y[(size_t)r * (size_t)d] = y[(size_t)(r - r % w->group) * (size_t)d] +
                    (float)(kvmem__uncoder_get(&k, m) - KVMEM__DELTA) * s->step[g * d + i / 2];
        }
    }
    return KVMEM_OK;
}
/* Entries with these rows and the tokens' positions behind lane (layer, g); statistics zero. */
static kvmem_status kvmem__lane_put(kvmem__work *w, int layer, int g, const float *k, const float *v) {
    kvmem_cache *c = w->c;
    kvmem_lane *ln = kvmem__lane_at(c, layer, g);
    const int d = c->shape.head_dim, P = c->recipe.page, n = w->rows[layer * c->shape.n_kv_heads + g];
    int r, s;
    if (!n) return KVMEM_OK;
    KVMEM__TRY(kvmem__lane_grow(c, ln, n));
    for (r = 0; r < n; r++) {
        kvmem_page *p = ln->pages[(ln->n + r) / P];
        const int row = (ln->n + r) % P;
        const kvmem_coded kc = kvmem__page_k(p, p->cap), vc = kvmem__page_v(p, p->cap);
        p->pos[row] = w->pos[w->token[(size_t)g * (size_t)w->U + (size_t)r]];
        for (s = 0; s < c->n_stats; s++) p->stats[s * p->cap + row] = 0;
        p->kc->fn.encode(&kc, k + (size_t)r * (size_t)d, row, 1);
        p->vc->fn.encode(&vc, v + (size_t)r * (size_t)d, row, 1);
    }
    ln->n += n;
    return KVMEM_OK;
}
static kvmem_status kvmem__chunk_load(kvmem__work *w, const kvmem_chunks *s, int i, int level) {
    const int G = w->c->shape.n_kv_heads;
    kvmem_error *const e = &w->c->error;
    uint64_t entries = 0;
    kvmem__in places, strips, stats;
    kvmem__strip k, v;
    kvmem_chunk ch;
    int l, g;
    KVMEM__TRY(kvmem__chunks_part(s, i, 1, &places, e));
    KVMEM__TRY(kvmem__chunks_part(s, i, 1 + level, &strips, e));
    kvmem_chunks_at(s, i, &ch);
    KVMEM__TRY(kvmem__places_open(w, &ch, &places));
    for (l = 0; l < s->n_layers; l++) {
        KVMEM__TRY(kvmem__places_layer(w, &places, l));
        stats = places;
        KVMEM__TRY(kvmem__stats_load(w, &places, s->stats, l, 0));
        kvmem__mark_scaled(w, l);
        KVMEM__TRY(kvmem__strip_open(w, &k, &strips, l, 0));
        KVMEM__TRY(kvmem__strip_open(w, &v, &strips, l, 1));
        for (g = 0; g < G; g++) {
            KVMEM__TRY(kvmem__strip_rows(w, &k, g, w->x));
            KVMEM__TRY(kvmem__strip_rows(w, &v, g, w->y));
            KVMEM__TRY(kvmem__lane_put(w, l, g, w->x, w->y));
            entries += (uint64_t)w->rows[l * G + g];
        }
        KVMEM__TRY(kvmem__stats_load(w, &stats, s->stats, l, 1));
        if (k.in.left || v.in.left) return kvmem__chunk_bad(w, "bytes", l);
    }
    if (places.bad || places.left || strips.left || entries != ch.entries)
        return kvmem__fail(e, KVMEM_BAD_FILE, "saved cache: chunk %d has bytes or entries too many or too few", i);
    return KVMEM_OK;
}
static kvmem_status kvmem__chunks_match(kvmem_cache *c, const kvmem_chunks *s) {
    kvmem__saved h;
    memset(&h, 0, sizeof h);
    h.layers = (unsigned)s->n_layers;
    h.heads = (unsigned)s->n_heads;
    h.kv_heads = (unsigned)s->n_kv_heads;
    h.head_dim = (unsigned)s->head_dim;
    h.shape_hash = s->shape_hash;
    h.model_id = s->model_id;
    KVMEM__TRY(kvmem__load_shape(c, &h));
    if (((c->reads & KVMEM_READS_ACC) && !(s->stats & 1)) || ((c->reads & KVMEM_READS_LAST) && !(s->stats & 2)))
        return kvmem__fail(&c->error, KVMEM_MISMATCH,
                           "saved cache: it has not the attention sums that this recipe reads; it was saved by \"%.*s\"",
                           s->recipe_len, s->recipe);
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_cache_load_chunk(kvmem_cache *c, const kvmem_chunks *s, int i, int level) {
    kvmem_chunk ch;
    kvmem__work w;
    kvmem_status st;
    kvmem_error e;
    int j, lanes;
    KVMEM__TRY(kvmem__check_layer(c, 0, "load"));
    if (c->block_n) return kvmem__fail(&c->error, KVMEM_BAD_STATE, "load in the middle of a block: commit first");
    if (!s || kvmem_chunks_at(s, i, &ch) != KVMEM_OK)
        return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "load: there is no chunk %d", i);
    if (level < 1 || level > 3 || !(s->levels >> (level - 1) & 1))
        return kvmem__fail(&c->error, KVMEM_BAD_ARGUMENT, "load: chunk %d is not in the file at level %d", i, level);
    if (ch.first < c->next_pos)
        return kvmem__fail(&c->error, KVMEM_BAD_STATE, "load: chunk %d begins at position %d, the cache goes on at %d", i,
                           (int)ch.first, (int)c->next_pos);
    KVMEM__TRY(kvmem__chunks_match(c, s));
    KVMEM__TRY(kvmem__work_init(&w, c, ch.tokens, s->group, 0));
    lanes = s->n_layers * s->n_kv_heads;
    for (j = 0; j < lanes; j++) w.start[j] = c->lane[j].n;
    st = kvmem__chunk_load(&w, s, i, level);
    if (st == KVMEM_OK) {
        c->tokens += ch.end - ch.from;
        c->since_reduce += ch.end - ch.from;
        c->next_pos = ch.end;
    }
    for (j = 0; j < lanes; j++) {
        if (st != KVMEM_OK) kvmem__lane_cut(c, &c->lane[j], w.start[j]);
        else kvmem__tell(c, j, w.start[j], c->lane[j].n, KVMEM_FATE_KEPT);
    }
    e = c->error;
    kvmem__work_free(&w);
    if (st != KVMEM_OK) c->error = e;
    return st;
}
/* What is not in the chunks: events, the newest queries, counters. */
static kvmem_status kvmem__chunks_state(kvmem_cache *c, const kvmem_chunks *s) {
    const size_t row = (size_t)s->n_heads * (size_t)s->head_dim;
    const unsigned m = KVMEM__MIN(s->ring_n, (unsigned)c->ring), skip = s->ring_n - m;
    const uint8_t *p = s->bytes + KVMEM__STREAM_HEAD + s->recipe_len, *q;
    unsigned i;
    size_t x;
    int l;
    for (i = 0; i < s->n_events; i++, p += 8) KVMEM__TRY(kvmem__add_event(c, (int64_t)kvmem__le64(p)));
    q = p + 4 * (size_t)s->ring_n;
    for (i = 0; i < m; i++) c->ring_pos[i] = (int32_t)(kvmem__le32(p + 4 * (size_t)(skip + i)) & 0x7fffffffu);
    for (l = 0; l < s->n_layers; l++)
        for (i = 0; i < m; i++) {
            const uint8_t *from = q + 2 * row * ((size_t)l * s->ring_n + skip + i);
            float *to = c->ring_q + ((size_t)l * (size_t)c->ring + i) * row;
            for (x = 0; x < row; x++) {
                to[x] = kvmem__f16_to_f32(kvmem__le16(from + 2 * x));
                if (!kvmem__is_finite(to[x])) to[x] = 0;
            }
        }
    c->ring_n = (int)m;
    c->ring_at = c->ring ? (int)m % c->ring : 0;
    c->tokens = s->tokens;
    c->next_pos = s->next_pos;
    c->since_reduce = s->since_reduce;
    return KVMEM_OK;
}
static kvmem_status kvmem__chunks_load(kvmem_cache *c, const void *bytes, size_t size) {
    kvmem_chunks s;
    kvmem_status st;
    int i, level;
    kvmem_cache_clear(c);
    KVMEM__TRY(kvmem_chunks_open(&s, bytes, size, &c->error));
    level = s.levels & 4 ? 3 : s.levels & 2 ? 2 : 1;
    st = kvmem__chunks_match(c, &s);
    if (st == KVMEM_OK) st = kvmem__chunks_verify(&s, &c->error);
    for (i = 0; st == KVMEM_OK && i < s.n_chunks; i++) st = kvmem_cache_load_chunk(c, &s, i, level);
    if (st == KVMEM_OK) st = kvmem__chunks_state(c, &s);
    if (st != KVMEM_OK) {
        const kvmem_error e = c->error;
        kvmem_cache_clear(c);
        c->error = e;
    }
    return st;
}
/* Checksums of all parts; bytes of K and V at the finest level. */
static kvmem_status kvmem__chunks_inspect(const void *bytes, size_t size, kvmem_cache_info *out, kvmem_error *err) {
    kvmem_chunks s;
    kvmem__in in;
    int i, j;
    memset(out, 0, sizeof *out);
    KVMEM__TRY(kvmem_chunks_open(&s, bytes, size, err));
    out->level = s.levels & 4 ? 3 : s.levels & 2 ? 2 : 1;
    KVMEM__TRY(kvmem__chunks_verify(&s, err));
    for (i = 0; i < s.n_chunks; i++) {
        KVMEM__TRY(kvmem__chunks_part(&s, i, 1 + out->level, &in, err));
        for (j = 0; j < 2 * s.n_layers; j++) {
            const uint32_t n = kvmem__in_u32(&in);
            if (!kvmem__in_bytes(&in, n))
                return kvmem__fail(err, KVMEM_BAD_FILE, "saved cache: chunk %d has not K and V of %d layers", i,
                                   s.n_layers);
            *(j % 2 ? &out->v_bytes : &out->k_bytes) += n + 4u;
        }
    }
    out->version = s.version;
    out->n_layers = s.n_layers;
    out->n_heads = s.n_heads;
    out->n_kv_heads = s.n_kv_heads;
    out->head_dim = s.head_dim;
    out->model_id = s.model_id;
    out->tokens = s.tokens;
    out->entries = s.entries;
    out->chunks = s.n_chunks;
    out->levels = s.levels;
    out->file_bytes = size;
    memcpy(out->recipe, s.recipe, KVMEM__MIN((size_t)s.recipe_len, sizeof out->recipe - 1));
    return KVMEM_OK;
}

/* ==== >>stream_plan : which level of which chunk comes in time =====================================
   The controller of cachegen. n chunks are to be there after `slo` seconds; chunk i is fetched while the
   bandwidth is gbps_i (10^9 bits a second), or its text is, which is next to nothing, and the model computes
   it: text_i seconds, without loss.
     as released: chunk i has slo / n seconds. From level 3 down the first with bytes * 8 / 10^9 / gbps_i
         below that; none: text.
     paper: the bandwidth of chunk i - 1 is all that is known. In order of quality (text, level 3, 2, 1) the
         first way in which *all* chunks still to come would be there in time; the first chunk, of which
         nothing is known, comes at level 2 unless text is in time. If nothing is: what is quickest.
   A chunk that would never come (bandwidth 0) is computed from its text. With slo = INFINITY the released
   rule takes level 3 throughout, the paper's takes the text. */
static double kvmem__fetch_seconds(const kvmem_plan_job *j, int i, int level, double gbps) {
    size_t bytes;
    if (!level) return j->text ? j->text[i] : 0.2;
    bytes = j->bytes[3 * (size_t)i + (size_t)level - 1];
    if (!bytes || !(gbps > 0)) return (double)INFINITY; /* not in the file, or never */
    return (double)bytes * 8e-9 / gbps;
}
static int kvmem__choose_as_released(const kvmem_plan_job *j, int i) {
    int level;
    for (level = 3; level; level--)
        if (kvmem__fetch_seconds(j, i, level, j->gbps[i]) < j->slo / j->n) break;
    return level;
}
static int kvmem__choose_as_paper(const kvmem_plan_job *j, int i, double left) {
    static const int order[4] = { 0, 3, 2, 1 };
    int o, k, best = 0;
    for (o = 0; o < 4; o++) {
        const int level = order[o];
        double sum = 0;
        if (!i && level) break;
        for (k = i; k < j->n; k++) sum += kvmem__fetch_seconds(j, k, level, i ? j->gbps[i - 1] : 0);
        if (sum <= left) return level;
    }
    if (!i) {
        for (o = 0; o < 3; o++) if (j->bytes[(o + 1) % 3]) return (o + 1) % 3 + 1; /* 2, 3, 1 */
        return 0;
    }
    for (o = 1; o < 4; o++)
        if (kvmem__fetch_seconds(j, i, o, j->gbps[i - 1]) < kvmem__fetch_seconds(j, i, best, j->gbps[i - 1])) best = o;
    return best;
}
KVMEM_API double kvmem_chunks_plan(const kvmem_plan_job *job, int *choice) {
    double elapsed = 0;
    int i;
    for (i = 0; i < job->n; i++) {
        choice[i] = job->paper ? kvmem__choose_as_paper(job, i, job->slo - elapsed) : kvmem__choose_as_released(job, i);
        if (!(kvmem__fetch_seconds(job, i, choice[i], job->gbps[i]) < (double)INFINITY)) choice[i] = 0;
        elapsed += kvmem__fetch_seconds(job, i, choice[i], job->gbps[i]);
    }
    return elapsed;
}

/* ==== >>recipes : one line of text composes the seven stages =====================================
   recipe  = [preset] { term }                       words are separated by white space
   term    = stage "=" entry                         segment score budget reduce codec retrieve place
           | "codec=" entry "/" entry                K and V apart; also codec.k= and codec.v=
           | "budget=" amount                        all | 512 | 25% | 8MiB
           | "sink=" count | "recent=" (count | share) | "page=" count | "seed=" number
           | "when=" ("prompt" | "step" | "block" | "every(" count ")")
   entry   = word [ "(" [ name "=" value { "," name "=" value } ] ")" ]
             budget entries take an amount as first value: budget=pyramid(25%,beta=20)
   A term replaces the preset's whole choice for its stage: parameters it does not name get the entry's
   defaults. budget=512 changes the amount alone and budget=pyramid the allocation alone. Saying the same
   thing twice is an error, as is any word, name or value that is not understood: nothing is ignored.

   The stage tables above feed the parser, the printer, the help and the tests. A user's own entry is put
   into recipe.stage[...].entry by the program; it prints as its word, which the parser cannot know. */

enum { KVMEM__RECIPE_CHARS = 4096, KVMEM__SHOWN = 44, KVMEM__BIG_COUNT = 1000000000 };

static const kvmem_preset kvmem__presets[] = {
    { "full", "budget=all codec=f32 when=step place=original", "everything kept, exact float32", "-" },
    { "window", "score=recency budget=512 when=block place=original",
      "the newest tokens only: the baseline that fails without sinks", "Xiao 2023, arXiv 2309.17453" },
    { "streamingllm", "score=recency budget=516 sink=4 when=block place=cache",
      "a few first tokens and a sliding window, numbered inside the cache",
      "Xiao 2023, arXiv 2309.17453" },
    { "h2o", "score=h2o budget=20% recent=50% when=step place=original",
      "half heavy hitters by accumulated attention, half newest tokens", "Zhang 2023, arXiv 2306.14048" },
    { "tova", "score=tova budget=512 when=step place=original",
      "drops what the newest query looks at least, one set for a layer", "Oren 2024, arXiv 2401.06104" },
    { "snapkv", "score=snapkv(window=32,kernel=5,pool=avg) budget=2048 recent=32 when=prompt place=original",
      "when the prompt ends its last queries choose what stays", "Li 2024, arXiv 2404.14469" },
    { "pyramidkv",
      "score=snapkv(window=8,kernel=7,pool=avg) budget=pyramid(2048,beta=20) recent=8 when=prompt "
      "place=original",
      "snapkv with more entries for lower layers than for upper ones", "Cai 2024, arXiv 2406.02069" },
    { "had", "codec=q4_0(rot=had)", "keys, queries and values turned by a Hadamard matrix before 4-bit coding",
      "ikawrakow/ik_llama.cpp -khad -vhad" },
    { "khad", "codec.k=q4_0(rot=had) codec.v=q4_0", "had for keys and queries only", "ikawrakow/ik_llama.cpp -khad" },
    { "vhad", "codec.k=q4_0 codec.v=q4_0(rot=had)", "had for values only", "ikawrakow/ik_llama.cpp -vhad" },
    { "attn_rot", "codec.k=q4_0(rot=had,least=64) codec.v=q4_0(rot=had,block=64)",
      "had where 64 divides the head size; values in blocks of 64", "ggml-org/llama.cpp pull request 21038" },
    { "kvdirect", "score=recency budget=256 reduce=recompute when=block place=original",
      "newest tokens as rows, older ones as checkpoints from which rows are made again, bit for bit",
      "Qasim 2026, arXiv 2603.19664" },
    { "turboquant", "codec=turboquant(bits=4)",
      "rotated rows and one codebook: 4.25 bits a value at d = 64, nothing learned", "Zandieh 2025, arXiv 2504.19874" },
    { "turboquant-prod",
      "codec.k=turboquant(bits=4,form=prod,sketch=gauss) codec.v=turboquant(bits=4)",
      "turboquant whose scores are unbiased by a bit a coordinate of sketch", "Zandieh 2025, arXiv 2504.19874" },
    { "polark",
      "codec.k=polark(angle=4,radius=4,residual=128,flush=1) codec.v=f16 page=128",
      "keys as radius and angle of RoPE pairs, 4.25 bits, the last 128 exact; values as halves",
      "Wu 2025, arXiv 2502.00527" },
    { "qjl",
      "codec.k=qjl(m=2,mo=2,outliers=8,residual=128,flush=1) codec.v=kivi(bits=2,axis=token,group=32,residual=128) "
      "page=32", "signs of a sketch of every key, 2-bit values by token, the last 128 rows exact",
      "Zandieh 2024, arXiv 2406.03482" },
    { "kivi",
      "codec.k=kivi(bits=2,axis=channel,residual=128,flush=1) codec.v=kivi(bits=2,axis=token,group=32,residual=128) "
      "page=32", "2-bit keys by channel and values by token, the last 128 rows exact",
      "Liu 2024, arXiv 2402.02750" } };

#define KVMEM__COUNT(table) ((int)(sizeof(table) / sizeof((table)[0])))

KVMEM_API const kvmem_preset *kvmem_preset_at(int i) {
    return i >= 0 && i < KVMEM__COUNT(kvmem__presets) ? &kvmem__presets[i] : NULL;
}

KVMEM_API const char *kvmem_stage_word(kvmem_stage stage) {
    static const char *const words[KVMEM_N_STAGES] = { "segment", "score", "budget", "reduce", "codec.k",
                                                       "codec.v", "retrieve", "place" };
    return (unsigned)stage < KVMEM_N_STAGES ? words[(int)stage] : NULL;
}

KVMEM_API const kvmem_entry *kvmem_stage_entry(kvmem_stage stage, int i) {
    if (i < 0) return NULL;
    switch (stage) {
    case KVMEM_SEGMENT: return i < KVMEM__COUNT(kvmem__segments) ? &kvmem__segments[i].e : NULL;
    case KVMEM_SCORE: return i < KVMEM__COUNT(kvmem__scores) ? &kvmem__scores[i].e : NULL;
    case KVMEM_BUDGET: return i < KVMEM__COUNT(kvmem__budgets) ? &kvmem__budgets[i].e : NULL;
    case KVMEM_REDUCE: return i < KVMEM__COUNT(kvmem__reduces) ? &kvmem__reduces[i].e : NULL;
    case KVMEM_RETRIEVE: return i < KVMEM__COUNT(kvmem__retrieves) ? &kvmem__retrieves[i].e : NULL;
    case KVMEM_PLACE: return i < KVMEM__COUNT(kvmem__places) ? &kvmem__places[i].e : NULL;
    case KVMEM_CODEC_K:
    case KVMEM_CODEC_V: {
        const kvmem_codec *codec = kvmem__codec_table(i);
        return codec ? &codec->e : NULL;
    }
    case KVMEM_N_STAGES: break;
    }
    return NULL;
}

/* Words that are not part of a stage. Their index is the number of their bit in `given`. */
enum { KVMEM__T_CODEC = KVMEM_N_STAGES, KVMEM__T_SINK, KVMEM__T_RECENT, KVMEM__T_WHEN, KVMEM__T_PAGE,
       KVMEM__T_SEED, KVMEM__N_TERMS, KVMEM__T_AMOUNT = KVMEM__N_TERMS };
static const char *kvmem__term_word(int i) {
    static const char *const words[] = { "codec", "sink", "recent", "when", "page", "seed" };
    return i < KVMEM_N_STAGES ? kvmem_stage_word((kvmem_stage)i)
         : i < KVMEM__N_TERMS ? words[i - KVMEM_N_STAGES] : NULL;
}
static const char *const kvmem__when_words[] = { "prompt", "step", "block", "every" };

static void kvmem__choose(kvmem_choice *c, const kvmem_entry *e) { /* e with its defaults */
    int i;
    memset(c, 0, sizeof *c);
    c->entry = e;
    for (i = 0; e && e->params && e->params[i].name && i < KVMEM_MAX_PARAMS; i++)
        c->par[i] = e->params[i].def;
}

/* Every stage begins with the first entry of its table. */
KVMEM_API kvmem_recipe kvmem_recipe_default(void) {
    kvmem_recipe r;
    int s;
    memset(&r, 0, sizeof r);
    memcpy(r.preset, "full", 5);
    for (s = 0; s < KVMEM_N_STAGES; s++) kvmem__choose(&r.stage[s], kvmem_stage_entry((kvmem_stage)s, 0));
    r.amount.kind = KVMEM_ALL;
    r.recent.kind = KVMEM_COUNT;
    r.when = KVMEM_WHEN_STEP;
    r.page = 64;
    return r;
}

/* ---- reading words and numbers ---- */

typedef struct kvmem__scan {
    const char *p;      /* rest of the text, NUL-terminated */
    kvmem_error *err;
    unsigned given;     /* bits KVMEM__T_*: what the text has said so far */
    kvmem_recipe r;     /* what has been understood so far */
} kvmem__scan;
typedef struct kvmem__word { const char *s; int n; } kvmem__word;

static void kvmem__scan_space(kvmem__scan *s) {
    while (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r') s->p++;
}
static kvmem__word kvmem__scan_word(kvmem__scan *s) {
    kvmem__word w;
    kvmem__scan_space(s);
    w.s = s->p;
    while (*s->p && !strchr(" \t\r\n()=,/", *s->p)) s->p++;
    w.n = (int)(s->p - w.s);
    return w;
}
static int kvmem__scan_take(kvmem__scan *s, char ch) {
    kvmem__scan_space(s);
    if (*s->p != ch) return 0;
    s->p++;
    return 1;
}
static int kvmem__is(kvmem__word w, const char *word) {
    return strlen(word) == (size_t)w.n && !memcmp(w.s, word, (size_t)w.n);
}

/* The word as it may stand in a message: printable, at most 40 characters. Returns buf. */
static const char *kvmem__word_shown(kvmem__word w, char *buf) {
    int i, n = w.n > 40 ? 37 : w.n;
    for (i = 0; i < n; i++) buf[i] = w.s[i] > ' ' && w.s[i] < 127 ? w.s[i] : '?';
    while (w.n > 40 && i < 40) buf[i++] = '.';
    buf[i] = 0;
    return buf;
}
/* What stands at p, for messages about something that is missing. */
static const char *kvmem__rest_shown(const char *p, char *buf) {
    kvmem__word w;
    if (!*p) return "the end";
    w.s = p;
    w.n = 0;
    while (w.n < 12 && p[w.n] && p[w.n] != ' ') w.n++;
    if (!w.n) w.n = 1;
    buf[0] = '\'';
    kvmem__word_shown(w, buf + 1);
    w.n = (int)strlen(buf);
    buf[w.n] = '\'';
    buf[w.n + 1] = 0;
    return buf;
}

/* Edit distance of two words of at most 31 characters (insert, delete, replace); 99 for longer ones. */
static int kvmem__distance(kvmem__word a, const char *b) {
    int row[33], i, j, n = (int)strlen(b);
    if (a.n > 31 || n > 31) return 99;
    for (j = 0; j <= n; j++) row[j] = j;
    for (i = 1; i <= a.n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (j = 1; j <= n; j++) {
            const int up = row[j], replace = diagonal + (a.s[i - 1] != b[j - 1]);
            row[j] = KVMEM__MIN(replace, 1 + KVMEM__MIN(up, row[j - 1]));
            diagonal = up;
        }
    }
    return row[n];
}

/* Lists of words for the message about an unknown one: word i, or NULL past the end. */
typedef const char *(*kvmem__word_fn)(const void *list, int i);
static const char *kvmem__preset_word(const void *list, int i) {
    (void)list;
    return kvmem_preset_at(i) ? kvmem_preset_at(i)->word : NULL;
}
static const char *kvmem__any_term(const void *list, int i) {
    (void)list;
    return kvmem__term_word(i);
}
static const char *kvmem__entry_word(const void *list, int i) {
    const kvmem_entry *e = kvmem_stage_entry(*(const kvmem_stage *)list, i);
    return e ? e->word : NULL;
}
static const char *kvmem__param_word(const void *list, int i) {
    const kvmem_param *p = (const kvmem_param *)list;
    return p ? p[i].name : NULL;
}
static const char *kvmem__when_word(const void *list, int i) {
    (void)list;
    return i < KVMEM__COUNT(kvmem__when_words) ? kvmem__when_words[i] : NULL;
}

/* "unknown WHAT 'w'; did you mean 'x'? known: a b c" */
static kvmem_status kvmem__unknown_word(kvmem__scan *s, const char *what, kvmem__word w, kvmem__word_fn at,
                                   const void *list) {
    char shown[KVMEM__SHOWN], known[160];
    const char *word, *nearest = NULL;
    int i, best = 3;
    kvmem__text t;
    t.out = known;
    t.size = sizeof known;
    t.len = 0;
    known[0] = 0;
    for (i = 0; (word = at(list, i)) != NULL; i++) {
        const int distance = kvmem__distance(w, word);
        if (distance < best && distance < w.n) { best = distance; nearest = word; }
        kvmem__format(&t, " %s", word);
    }
    if (!i) kvmem__format(&t, " none");
    return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "unknown %s '%s'%s%s%s; known:%s", what,
                       kvmem__word_shown(w, shown), nearest ? "; did you mean '" : "", nearest ? nearest : "",
                       nearest ? "'?" : "", known);
}

/* Decimal text to double, times 10^shift: [+-]digits[.digits][e[+-]digits]. Whole numbers are exact up to
   2^53; others have at most 9 significant digits, so that printing gives the same text and value back.
   Returns 0, or 1: not a number, 2: too large, or too many digits to be held exactly. */
static int kvmem__decimal(kvmem__word w, int shift, double *out) {
    int i = 0, neg = 0, digits = 0, point = 0, e10 = shift, e = 0, eneg = 0;
    uint64_t m = 0;
    double v, p = 1;
    if (i < w.n && (w.s[i] == '+' || w.s[i] == '-')) neg = w.s[i++] == '-';
    for (; i < w.n; i++) {
        if (w.s[i] == '.' && !point) { point = 1; continue; }
        if (w.s[i] < '0' || w.s[i] > '9') break;
        digits++;
        if (m > (UINT64_MAX - 9) / 10) return 2;
        m = m * 10 + (uint64_t)(w.s[i] - '0');
        e10 -= point;
    }
    if (!digits) return 1;
    if (i < w.n && (w.s[i] == 'e' || w.s[i] == 'E')) {
        i++;
        if (i < w.n && (w.s[i] == '+' || w.s[i] == '-')) eneg = w.s[i++] == '-';
        if (i == w.n) return 1;
        for (; i < w.n && w.s[i] >= '0' && w.s[i] <= '9'; i++)
            if (e < 1000) e = e * 10 + (w.s[i] - '0');
    }
    if (i < w.n) return 1;
    if (!m) { *out = 0; return 0; }
    e10 += eneg ? -e : e;
    while (m % 10 == 0) { m /= 10; e10++; }
    if (e10 < -22 || e10 > 22) return 2;
    if (m > (uint64_t)1 << 53 || (e10 < 0 && m > 999999999)) return 2;
    for (i = e10 < 0 ? -e10 : e10; i > 0; i--) p *= 10; /* exact up to 10^22 */
    v = e10 < 0 ? (double)m / p : (double)m * p;
    if (e10 > 0 && v > 9007199254740992.0) return 2;
    *out = neg ? -v : v;
    return 0;
}
static kvmem_status kvmem__bad_number(kvmem__scan *s, const char *name, kvmem__word w, int why) {
    char shown[KVMEM__SHOWN];
    if (!w.n) return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s has no value", name);
    return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s=%s: %s", name, kvmem__word_shown(w, shown),
                       why == 1 ? "not a number" : "more digits than can be held exactly");
}
/* A whole number in lo..hi. */
static kvmem_status kvmem__read_count(kvmem__scan *s, const char *name, kvmem__word w, int lo, int hi,
                                      int *out) {
    char shown[KVMEM__SHOWN];
    double v = 0;
    const int why = kvmem__decimal(w, 0, &v);
    if (why) return kvmem__bad_number(s, name, w, why);
    if (v != floor(v))
        return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s=%s: must be a whole number", name,
                           kvmem__word_shown(w, shown));
    if (v < lo || v > hi)
        return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s=%s: allowed are %d to %d", name,
                           kvmem__word_shown(w, shown), lo, hi);
    *out = (int)v;
    return KVMEM_OK;
}
static kvmem_status kvmem__read_seed(kvmem__scan *s, kvmem__word w, uint64_t *out) {
    uint64_t v = 0;
    int i;
    for (i = 0; i < w.n && w.s[i] >= '0' && w.s[i] <= '9'; i++) {
        const unsigned digit = (unsigned)(w.s[i] - '0');
        if (v > (UINT64_MAX - digit) / 10) {
            char shown[KVMEM__SHOWN];
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "seed=%s: allowed are 0 to 18446744073709551615",
                               kvmem__word_shown(w, shown));
        }
        v = v * 10 + digit;
    }
    if (!w.n || i < w.n) return kvmem__bad_number(s, "seed", w, 1);
    *out = v;
    return KVMEM_OK;
}

static const struct kvmem__unit { const char *word; double bytes; } kvmem__units[] = {
    { "GiB", 1073741824.0 }, { "MiB", 1048576.0 }, { "KiB", 1024.0 },
    { "GB", 1e9 }, { "MB", 1e6 }, { "KB", 1e3 }, { "B", 1.0 } };

/* budget: all, a count, a share, bytes. recent (is_recent): a count or a share, zero allowed. */
static kvmem_status kvmem__read_amount(kvmem__scan *s, const char *name, kvmem__word w, int is_recent,
                                       kvmem_amount *out) {
    char shown[KVMEM__SHOWN];
    kvmem_amount a;
    kvmem__word number = w, unit;
    int i, why, count = 0;
    a.kind = KVMEM_ALL;
    a.value = 0;
    if (!is_recent && kvmem__is(w, "all")) { *out = a; return KVMEM_OK; }
    for (i = 0; i < w.n; i++) { /* the unit begins at the first % or letter that is no exponent */
        const char ch = w.s[i];
        if ((ch == 'e' || ch == 'E') && i + 1 < w.n && strchr("+-0123456789", w.s[i + 1])) { i++; continue; }
        if (ch == '%' || (ch >= 'A' && ch <= 'Z') || (ch >= 'a' && ch <= 'z')) break;
    }
    number.n = i;
    unit.s = w.s + i;
    unit.n = w.n - i;
    if (!number.n && w.n && *w.s != '%')
        return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s=%s: neither %s", name, kvmem__word_shown(w, shown),
                           is_recent ? "a count nor a share" : "an amount (all, 512, 25%, 8MiB) nor an entry");
    if (!unit.n) {
        KVMEM__TRY(kvmem__read_count(s, name, w, 0, INT_MAX, &count));
        a.kind = KVMEM_COUNT;
        a.value = count;
    } else if (kvmem__is(unit, "%")) {
        why = kvmem__decimal(number, -2, &a.value);
        if (why) return kvmem__bad_number(s, name, w, why);
        a.kind = KVMEM_SHARE;
        if (a.value < 0 || a.value > 1)
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s=%s: a share lies between 0%% and 100%%", name,
                               kvmem__word_shown(w, shown));
    } else {
        const int n_units = is_recent ? 0 : KVMEM__COUNT(kvmem__units);
        for (i = 0; i < n_units && !kvmem__is(unit, kvmem__units[i].word); i++) {}
        if (i >= n_units)
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s=%s: unknown unit; known: %%%s", name,
                               kvmem__word_shown(w, shown), is_recent ? "" : " KiB MiB GiB KB MB GB B");
        why = kvmem__decimal(number, 0, &a.value);
        if (why) return kvmem__bad_number(s, name, w, why);
        a.kind = KVMEM_BYTES;
        a.value = floor(a.value * kvmem__units[i].bytes);
        if (a.value < 0 || a.value > 9007199254740992.0)
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s=%s: bytes are between 1 and 2^53", name,
                               kvmem__word_shown(w, shown));
    }
    if (!is_recent && a.value <= 0)
        return kvmem__fail(s->err, KVMEM_BAD_RECIPE,
                           "%s=%s: a budget keeps at least 1 entry; budget=all keeps everything", name,
                           kvmem__word_shown(w, shown));
    *out = a;
    return KVMEM_OK;
}

/* ---- entries with their parameters ---- */

/* Is v allowed for parameter p of entry e? shown: the value as it is to stand in the message. */
static kvmem_status kvmem__check_param(kvmem_error *err, const kvmem_entry *e, const kvmem_param *p,
                                       double v, const char *shown) {
    char range[80];
    kvmem__text t;
    if (v >= p->lo && v <= p->hi && (!p->is_int || v == floor(v)) &&
        (p->is_int != 2 || fmod(v, 2) != 0)) return KVMEM_OK;
    t.out = range;
    t.size = sizeof range;
    t.len = 0;
    kvmem__format(&t, "%.9g to %.9g", p->lo, p->hi);
    return kvmem__fail(err, KVMEM_BAD_RECIPE, "%s(%s=%s): allowed are %s%s", e->word, p->name, shown,
                       p->is_int == 2 ? "odd whole numbers from " : p->is_int ? "whole numbers from " : "",
                       range);
}

/* The index of w in "a|b|c", or -1. */
static int kvmem__choice_index(const char *choices, kvmem__word w) {
    int i = 0;
    for (;;) {
        const char *end = strchr(choices, '|');
        const size_t n = end ? (size_t)(end - choices) : strlen(choices);
        if (n == (size_t)w.n && !memcmp(choices, w.s, n)) return i;
        if (!end) return -1;
        choices = end + 1;
        i++;
    }
}

/* name=value for entry e; w is the name, the equals sign has been taken. */
static kvmem_status kvmem__read_param(kvmem__scan *s, const kvmem_entry *e, kvmem__word w,
                                      kvmem_choice *choice, unsigned *seen) {
    char shown[KVMEM__SHOWN], what[64];
    const kvmem_param *p = e->params;
    kvmem__word value;
    kvmem__text t;
    double v = 0;
    int i, why;
    t.out = what;
    t.size = sizeof what;
    t.len = 0;
    kvmem__format(&t, "parameter of %s", e->word);
    for (i = 0; p && p[i].name && !kvmem__is(w, p[i].name); i++) {}
    if (!p || !p[i].name) return kvmem__unknown_word(s, what, w, kvmem__param_word, p);
    if (*seen & 1u << i)
        return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s: parameter %s is given twice", e->word, p[i].name);
    *seen |= 1u << i;
    value = kvmem__scan_word(s);
    if (!value.n)
        return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s: parameter %s has no value", e->word, p[i].name);
    kvmem__word_shown(value, shown);
    if (p[i].choices) {
        const int index = kvmem__choice_index(p[i].choices, value);
        if (index < 0)
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s(%s=%s): allowed are %s", e->word, p[i].name,
                               shown, p[i].choices);
        v = index;
    } else if ((why = kvmem__decimal(value, 0, &v)) != 0) {
        return kvmem__bad_number(s, p[i].name, value, why);
    }
    KVMEM__TRY(kvmem__check_param(s->err, e, &p[i], v, shown));
    choice->par[i] = v;
    return KVMEM_OK;
}

/* word [ "(" ... ")" ] into choice; w is the word. amount: of a budget entry, else NULL; *has_amount says
   whether the brackets held one. */
static kvmem_status kvmem__read_entry(kvmem__scan *s, kvmem_stage stage, kvmem__word w,
                                      kvmem_choice *choice, kvmem_amount *amount, int *has_amount) {
    char what[32], shown[KVMEM__SHOWN];
    const kvmem_entry *e;
    kvmem__text t;
    unsigned seen = 0;
    int i;
    t.out = what;
    t.size = sizeof what;
    t.len = 0;
    kvmem__format(&t, "%s entry", kvmem_stage_word(stage));
    if (!w.n)
        return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s= has no value before %s", kvmem_stage_word(stage),
                           kvmem__rest_shown(s->p, shown));
    for (i = 0; (e = kvmem_stage_entry(stage, i)) != NULL && !kvmem__is(w, e->word); i++) {}
    if (!e) return kvmem__unknown_word(s, what, w, kvmem__entry_word, &stage);
    kvmem__choose(choice, e);
    if (!kvmem__scan_take(s, '(') || kvmem__scan_take(s, ')')) return KVMEM_OK;
    for (i = 0;; i++) {
        const kvmem__word name = kvmem__scan_word(s);
        if (name.n && kvmem__scan_take(s, '=')) {
            KVMEM__TRY(kvmem__read_param(s, e, name, choice, &seen));
        } else if (name.n && amount && i == 0) {
            KVMEM__TRY(kvmem__read_amount(s, "budget", name, 0, amount));
            *has_amount = 1;
        } else if (name.n) {
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s: '%s' is not of the form name=value", e->word,
                               kvmem__word_shown(name, shown));
        } else {
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s: a parameter is missing before %s", e->word,
                               kvmem__rest_shown(s->p, shown));
        }
        if (kvmem__scan_take(s, ')')) return KVMEM_OK;
        if (!kvmem__scan_take(s, ','))
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s: ')' is missing before %s", e->word,
                               kvmem__rest_shown(s->p, shown));
    }
}

/* ---- terms ---- */

static kvmem_status kvmem__once(kvmem__scan *s, int term, const char *word) {
    if (s->given & 1u << term)
        return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "%s is given twice", word);
    s->given |= 1u << term;
    return KVMEM_OK;
}

static kvmem_status kvmem__read_codec(kvmem__scan *s) { /* codec=ENTRY or codec=ENTRY/ENTRY */
    kvmem_choice *k = &s->r.stage[KVMEM_CODEC_K], *v = &s->r.stage[KVMEM_CODEC_V];
    KVMEM__TRY(kvmem__once(s, KVMEM_CODEC_K, "codec.k"));
    KVMEM__TRY(kvmem__once(s, KVMEM_CODEC_V, "codec.v"));
    KVMEM__TRY(kvmem__read_entry(s, KVMEM_CODEC_K, kvmem__scan_word(s), k, NULL, NULL));
    *v = *k;
    if (!kvmem__scan_take(s, '/')) return KVMEM_OK;
    return kvmem__read_entry(s, KVMEM_CODEC_V, kvmem__scan_word(s), v, NULL, NULL);
}

static kvmem_status kvmem__read_budget(kvmem__scan *s) {
    const kvmem__word w = kvmem__scan_word(s);
    kvmem_amount amount = s->r.amount;
    int has_amount = 1;
    if (w.n && (strchr("0123456789.+-%", *w.s) || kvmem__is(w, "all"))) {
        KVMEM__TRY(kvmem__read_amount(s, "budget", w, 0, &amount));
    } else {
        KVMEM__TRY(kvmem__once(s, KVMEM_BUDGET, "the allocation of budget"));
        has_amount = 0;
        KVMEM__TRY(kvmem__read_entry(s, KVMEM_BUDGET, w, &s->r.stage[KVMEM_BUDGET], &amount, &has_amount));
    }
    if (has_amount) KVMEM__TRY(kvmem__once(s, KVMEM__T_AMOUNT, "the amount of budget"));
    s->r.amount = amount;
    return KVMEM_OK;
}

static kvmem_status kvmem__read_when(kvmem__scan *s) {
    const kvmem__word w = kvmem__scan_word(s);
    char shown[KVMEM__SHOWN];
    int i;
    if (!w.n) return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "when has no value");
    for (i = 0; i < 4 && !kvmem__is(w, kvmem__when_words[i]); i++) {}
    if (i == 4) return kvmem__unknown_word(s, "value of when", w, kvmem__when_word, NULL);
    s->r.when = (kvmem_when)i;
    s->r.every = 0;
    if (s->r.when != KVMEM_WHEN_EVERY) return KVMEM_OK;
    if (!kvmem__scan_take(s, '('))
        return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "when=every needs a number of tokens: when=every(64)");
    KVMEM__TRY(kvmem__read_count(s, "every", kvmem__scan_word(s), 1, KVMEM__BIG_COUNT, &s->r.every));
    if (!kvmem__scan_take(s, ')'))
        return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "when=every: ')' is missing before %s",
                           kvmem__rest_shown(s->p, shown));
    return KVMEM_OK;
}

static kvmem_status kvmem__read_term(kvmem__scan *s, kvmem__word w) { /* the equals sign has been taken */
    int i;
    for (i = 0; i < KVMEM__N_TERMS && !kvmem__is(w, kvmem__term_word(i)); i++) {}
    if (i == KVMEM__T_CODEC) return kvmem__read_codec(s);
    if (i == KVMEM_BUDGET) return kvmem__read_budget(s);
    if (i == KVMEM__N_TERMS) return kvmem__unknown_word(s, "term", w, kvmem__any_term, NULL);
    KVMEM__TRY(kvmem__once(s, i, kvmem__term_word(i)));
    switch (i) {
    case KVMEM__T_SINK:
        return kvmem__read_count(s, "sink", kvmem__scan_word(s), 0, KVMEM__BIG_COUNT, &s->r.sink);
    case KVMEM__T_RECENT: return kvmem__read_amount(s, "recent", kvmem__scan_word(s), 1, &s->r.recent);
    case KVMEM__T_WHEN: return kvmem__read_when(s);
    case KVMEM__T_PAGE: return kvmem__read_count(s, "page", kvmem__scan_word(s), 1, 1024, &s->r.page);
    case KVMEM__T_SEED: return kvmem__read_seed(s, kvmem__scan_word(s), &s->r.seed);
    default:
        return kvmem__read_entry(s, (kvmem_stage)i, kvmem__scan_word(s), &s->r.stage[i], NULL, NULL);
    }
}

static kvmem_status kvmem__read_terms(kvmem__scan *s, int preset_allowed);

/* A word without an equals sign: the preset, if it stands first. */
static kvmem_status kvmem__read_preset(kvmem__scan *s, kvmem__word w, int allowed) {
    char shown[KVMEM__SHOWN];
    int i, stage, k;
    for (i = 0; kvmem_preset_at(i); i++) {
        kvmem__scan inner;
        if (!kvmem__is(w, kvmem_preset_at(i)->word)) continue;
        if (!allowed)
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "preset '%s' must be the first word, and the only one",
                               kvmem_preset_at(i)->word);
        inner.p = kvmem_preset_at(i)->text;
        inner.err = s->err;
        inner.given = 0;
        inner.r = s->r;
        KVMEM__TRY(kvmem__read_terms(&inner, 0));
        s->r = inner.r;
        memcpy(s->r.preset, w.s, (size_t)w.n);
        s->r.preset[w.n] = 0;
        return KVMEM_OK;
    }
    for (stage = 0; stage < KVMEM_N_STAGES; stage++) {
        const kvmem_entry *e;
        for (k = 0; (e = kvmem_stage_entry((kvmem_stage)stage, k)) != NULL; k++) {
            if (!kvmem__is(w, e->word)) continue;
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "'%s' is not a preset but an entry: write %s=%s",
                               e->word, stage == KVMEM_CODEC_K ? "codec" : kvmem__term_word(stage), e->word);
        }
    }
    for (k = 0; kvmem__term_word(k); k++)
        if (kvmem__is(w, kvmem__term_word(k)))
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "'%s' needs '=' and a value, found %s",
                               kvmem__term_word(k), kvmem__rest_shown(s->p, shown));
    return allowed ? kvmem__unknown_word(s, "preset", w, kvmem__preset_word, NULL)
                   : kvmem__fail(s->err, KVMEM_BAD_RECIPE, "'%s' is not a term of the form stage=entry",
                                 kvmem__word_shown(w, shown));
}

static kvmem_status kvmem__read_terms(kvmem__scan *s, int preset_allowed) {
    char shown[KVMEM__SHOWN];
    int i;
    for (i = 0;; i++) {
        kvmem__word w;
        kvmem__scan_space(s);
        if (!*s->p) return KVMEM_OK;
        w = kvmem__scan_word(s);
        if (!w.n)
            return kvmem__fail(s->err, KVMEM_BAD_RECIPE, "a term should begin where %s stands",
                               kvmem__rest_shown(s->p, shown));
        if (kvmem__scan_take(s, '=')) KVMEM__TRY(kvmem__read_term(s, w));
        else KVMEM__TRY(kvmem__read_preset(s, w, preset_allowed && i == 0));
    }
}

static kvmem_status kvmem__scan_begin(kvmem__scan *s, const char *text, kvmem_error *err) {
    size_t n = 0;
    while (n <= KVMEM__RECIPE_CHARS && text[n]) n++;
    if (n > KVMEM__RECIPE_CHARS)
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "recipe: longer than %d characters", KVMEM__RECIPE_CHARS);
    s->p = text;
    s->err = err;
    s->given = 0;
    return KVMEM_OK;
}

KVMEM_API kvmem_status kvmem_recipe_parse(kvmem_recipe *r, const char *text, kvmem_error *err) {
    kvmem__scan s;
    if (!r || !text) return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "recipe: %s is NULL", r ? "text" : "r");
    KVMEM__TRY(kvmem__scan_begin(&s, text, err));
    s.r = kvmem_recipe_default();
    memset(s.r.preset, 0, sizeof s.r.preset);
    KVMEM__TRY(kvmem__read_terms(&s, 1));
    KVMEM__TRY(kvmem_recipe_check(&s.r, err));
    *r = s.r;
    return KVMEM_OK;
}

/* One entry of a stage from its own text, "q8_0" or "snapkv(window=16)", as it stands after the '='. */
static kvmem_status kvmem__parse_choice(kvmem_choice *out, kvmem_stage stage, const char *text,
                                        kvmem_error *err) {
    char shown[KVMEM__SHOWN];
    kvmem__scan s;
    kvmem_choice choice;
    KVMEM__TRY(kvmem__scan_begin(&s, text, err));
    KVMEM__TRY(kvmem__read_entry(&s, stage, kvmem__scan_word(&s), &choice, NULL, NULL));
    kvmem__scan_space(&s);
    if (*s.p)
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "%s: the text should end where %s stands",
                           kvmem_stage_word(stage), kvmem__rest_shown(s.p, shown));
    *out = choice;
    return KVMEM_OK;
}

/* ---- check ---- */

/* Has the entry of this stage the functions that the cache will call? */
static int kvmem__has_functions(kvmem_stage stage, const kvmem_entry *e) {
    const void *head = e;
    switch (stage) {
    case KVMEM_SEGMENT: return ((const kvmem_segment_entry *)head)->fn != NULL;
    case KVMEM_SCORE: return ((const kvmem_score_entry *)head)->fn != NULL;
    case KVMEM_BUDGET: return ((const kvmem_budget_entry *)head)->fn != NULL;
    case KVMEM_REDUCE: return ((const kvmem_reduce_entry *)head)->fn != NULL;
    case KVMEM_CODEC_K:
    case KVMEM_CODEC_V: {
        const kvmem_codec *c = (const kvmem_codec *)head;
        return c->row_bytes && c->encode && c->expand;
    }
    case KVMEM_RETRIEVE:
    case KVMEM_PLACE:
    case KVMEM_N_STAGES: break;
    }
    return 1;
}

static kvmem_status kvmem__check_choice(const kvmem_choice *c, kvmem_stage stage, kvmem_error *err) {
    const char *word = kvmem_stage_word(stage);
    const kvmem_entry *e = c->entry;
    int i, has_window = 0;
    if (!e || !e->word || !*e->word)
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "%s: no entry, or one without a word", word);
    if (!kvmem__has_functions(stage, e))
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "%s=%s: the entry lacks a function", word, e->word);
    for (i = 0; e->params && e->params[i].name; i++) {
        char shown[32];
        kvmem__text t;
        if (i == KVMEM_MAX_PARAMS)
            return kvmem__fail(err, KVMEM_BAD_RECIPE, "%s=%s: more than %d parameters", word, e->word,
                               KVMEM_MAX_PARAMS);
        t.out = shown;
        t.size = sizeof shown;
        t.len = 0;
        kvmem__format(&t, "%.9g", c->par[i]);
        KVMEM__TRY(kvmem__check_param(err, e, &e->params[i], c->par[i], shown));
        if (!strcmp(e->params[i].name, "window")) has_window = 1;
    }
    if ((e->reads & KVMEM_READS_QUERIES) && !has_window)
        return kvmem__fail(err, KVMEM_BAD_RECIPE,
                           "%s=%s reads queries, so it needs a parameter 'window' that says how many", word,
                           e->word);
    if ((e->reads & KVMEM_READS_LANES) && stage != KVMEM_SCORE)
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "%s=%s: only a score entry can look at other lanes", word,
                           e->word);
    if ((e->reads & (KVMEM_READS_SCORES | KVMEM_READS_LAYERS)) && stage != KVMEM_BUDGET)
        return kvmem__fail(err, KVMEM_BAD_RECIPE,
                           "%s=%s: only a budget entry can read the layer's scores or compare layers", word,
                           e->word);
    return KVMEM_OK;
}

/* Amounts and counts by themselves: a program may have filled the struct by hand. */
static kvmem_status kvmem__check_fields(const kvmem_recipe *r, kvmem_error *err) {
    const double budget = r->amount.value, recent = r->recent.value;
    if (!memchr(r->preset, 0, sizeof r->preset))
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "preset: the word does not end");
    if ((unsigned)r->amount.kind > KVMEM_BYTES)
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "budget: unknown kind of amount %d", (int)r->amount.kind);
    if (r->amount.kind != KVMEM_ALL && !(budget > 0))
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "budget=%g: a budget keeps at least 1 entry", budget);
    if ((r->amount.kind == KVMEM_COUNT && (budget > INT_MAX || budget != floor(budget))) ||
        (r->amount.kind == KVMEM_SHARE && budget > 1) ||
        (r->amount.kind == KVMEM_BYTES && (budget > 9007199254740992.0 || budget != floor(budget))))
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "budget: the amount %g is out of range", budget);
    if ((r->recent.kind != KVMEM_COUNT && r->recent.kind != KVMEM_SHARE) || !(recent >= 0) ||
        (r->recent.kind == KVMEM_COUNT && (recent > INT_MAX || recent != floor(recent))) ||
        (r->recent.kind == KVMEM_SHARE && recent > 1))
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "recent=%g: a count, or a share between 0 and 1", recent);
    if (r->sink < 0 || r->sink > KVMEM__BIG_COUNT)
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "sink=%d: allowed are 0 to %d", r->sink, KVMEM__BIG_COUNT);
    if (r->page < 1 || r->page > 1024)
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "page=%d: allowed are 1 to 1024", r->page);
    if ((unsigned)r->when > KVMEM_WHEN_EVERY)
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "when: unknown value %d", (int)r->when);
    if (r->when == KVMEM_WHEN_EVERY && (r->every < 1 || r->every > KVMEM__BIG_COUNT))
        return kvmem__fail(err, KVMEM_BAD_RECIPE, "when=every(%d): allowed are 1 to %d", r->every,
                           KVMEM__BIG_COUNT);
    return KVMEM_OK;
}

KVMEM_API kvmem_status kvmem_recipe_check(const kvmem_recipe *r, kvmem_error *err) {
    const kvmem_entry *score;
    int s, i;
    if (!r) return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "recipe: r is NULL");
    for (s = 0; s < KVMEM_N_STAGES; s++)
        KVMEM__TRY(kvmem__check_choice(&r->stage[s], (kvmem_stage)s, err));
    KVMEM__TRY(kvmem__check_fields(r, err));
    if (kvmem__recomputes(r)) KVMEM__TRY(kvmem__check_recompute(r, err));
    if (r->amount.kind == KVMEM_COUNT) { /* the parts of a count budget must fit into it */
        const double recent = r->recent.kind == KVMEM_SHARE ? floor(r->recent.value * r->amount.value + 1e-9)
                                                            : r->recent.value;
        if (recent + r->sink > r->amount.value)
            return kvmem__fail(err, KVMEM_BAD_RECIPE,
                               "budget=%.9g is less than sink=%d and recent=%.9g together protect",
                               r->amount.value, r->sink, recent);
        score = r->stage[KVMEM_SCORE].entry;
        for (i = 0; (score->reads & KVMEM_READS_QUERIES) && score->params[i].name; i++) {
            if (strcmp(score->params[i].name, "window") || r->stage[KVMEM_SCORE].par[i] <= r->amount.value)
                continue;
            return kvmem__fail(err, KVMEM_BAD_RECIPE,
                               "%s(window=%.9g): the window is longer than budget=%.9g keeps", score->word,
                               r->stage[KVMEM_SCORE].par[i], r->amount.value);
        }
    }
    return KVMEM_OK;
}

/* ---- print, explain ---- */

static void kvmem__put_number(kvmem__text *t, double v) { /* whole numbers exactly, others with 9 digits */
    if (v >= 0 && v <= 9007199254740992.0 && v == floor(v)) kvmem__put_u64(t, (uint64_t)v);
    else kvmem__format(t, "%.9g", v);
}
static void kvmem__put_amount(kvmem__text *t, kvmem_amount a) {
    int i = 0;
    switch (a.kind) {
    case KVMEM_ALL: kvmem__format(t, "all"); break;
    case KVMEM_COUNT: kvmem__put_number(t, a.value); break;
    case KVMEM_SHARE: kvmem__format(t, "%.9g%%", a.value * 100); break;
    case KVMEM_BYTES: /* the largest binary unit that divides it */
        while (i < 3 && fmod(a.value, kvmem__units[i].bytes) != 0) i++;
        if (i == 3) i = KVMEM__COUNT(kvmem__units) - 1;
        kvmem__put_number(t, a.value / kvmem__units[i].bytes);
        kvmem__format(t, "%s", kvmem__units[i].word);
        break;
    }
}
static void kvmem__put_param(kvmem__text *t, const kvmem_param *p, double v) {
    kvmem__format(t, "%s=", p->name);
    if (p->choices) {
        const char *word = p->choices, *end;
        int i;
        for (i = (int)v; i > 0 && strchr(word, '|'); i--) word = strchr(word, '|') + 1;
        end = strchr(word, '|');
        kvmem__put_bytes(t, word, end ? (size_t)(end - word) : strlen(word));
    } else kvmem__put_number(t, v);
}
/* word(a=1,b=2); for the budget stage word(amount,a=1). */
static void kvmem__put_choice(kvmem__text *t, const kvmem_choice *c, const kvmem_amount *amount) {
    const kvmem_param *p = c->entry ? c->entry->params : NULL;
    int i, open = 0;
    kvmem__format(t, "%s", c->entry && c->entry->word ? c->entry->word : "?");
    if (amount) {
        kvmem__put_char(t, '(');
        kvmem__put_amount(t, *amount);
        open = 1;
    }
    for (i = 0; p && i < KVMEM_MAX_PARAMS && p[i].name; i++) {
        kvmem__put_char(t, open ? ',' : '(');
        kvmem__put_param(t, &p[i], c->par[i]);
        open = 1;
    }
    if (open) kvmem__put_char(t, ')');
}
/* All terms in fixed order, without the preset's word: equal text means equal behaviour. */
static void kvmem__put_terms(kvmem__text *t, const kvmem_recipe *r) {
    int s;
    for (s = 0; s < KVMEM_N_STAGES; s++) {
        kvmem__format(t, "%s=", kvmem_stage_word((kvmem_stage)s));
        kvmem__put_choice(t, &r->stage[s], s == KVMEM_BUDGET ? &r->amount : NULL);
        kvmem__put_char(t, ' ');
    }
    kvmem__format(t, "sink=%d recent=", r->sink);
    kvmem__put_amount(t, r->recent);
    kvmem__format(t, " when=%s", kvmem__when_words[(int)r->when & 3]);
    if (r->when == KVMEM_WHEN_EVERY) kvmem__format(t, "(%d)", r->every);
    kvmem__format(t, " page=%d seed=", r->page);
    kvmem__put_u64(t, r->seed);
}
static kvmem__text kvmem__text_into(char *out, size_t size) {
    kvmem__text t;
    t.out = out;
    t.size = out ? size : 0;
    t.len = 0;
    if (t.size) out[0] = 0;
    return t;
}

KVMEM_API size_t kvmem_recipe_print(const kvmem_recipe *r, char *out, size_t size) {
    kvmem__text t = kvmem__text_into(out, size);
    if (*r->preset) kvmem__format(&t, "%s ", r->preset);
    kvmem__put_terms(&t, r);
    return t.len;
}

static void kvmem__pad_to(kvmem__text *t, size_t column, size_t line) { /* line: len where the line began */
    while (t->len - line < column) kvmem__put_char(t, ' ');
}
static void kvmem__explain_stage(kvmem__text *t, const kvmem_recipe *r, kvmem_stage stage) {
    const kvmem_choice *c = &r->stage[(int)stage];
    const kvmem_entry *e = c->entry;
    const kvmem_param *p = e ? e->params : NULL;
    size_t line = t->len;
    int i;
    kvmem__format(t, "%s", kvmem_stage_word(stage));
    kvmem__pad_to(t, 10, line);
    kvmem__format(t, "%s: %s", e && e->word ? e->word : "?", e && e->what ? e->what : "no entry");
    if (e && e->cite && strcmp(e->cite, "-")) kvmem__format(t, " [%s]", e->cite);
    kvmem__put_char(t, '\n');
    for (i = 0; p && i < KVMEM_MAX_PARAMS && p[i].name; i++) {
        line = t->len;
        kvmem__pad_to(t, 12, line);
        kvmem__put_param(t, &p[i], c->par[i]);
        kvmem__pad_to(t, 26, line);
        kvmem__format(t, " %s (", p[i].what ? p[i].what : "");
        if (p[i].choices) kvmem__format(t, "%s", p[i].choices);
        else kvmem__format(t, "%.9g to %.9g", p[i].lo, p[i].hi);
        kvmem__format(t, ")\n");
    }
}
static void kvmem__explain_common(kvmem__text *t, const kvmem_recipe *r) {
    static const char *const when[4] = { "once, when the prompt ends",
        "when the prompt ends and after every decoded token", "after every block, prompt blocks included",
        "when the prompt ends and then every so many tokens" };
    static const char *const amount[4] = { "everything", "entries per KV head, mean over all lanes",
        "of the tokens seen, mean over all lanes", "of memory in all, never passed" };
    kvmem__format(t, "amount    ");
    kvmem__put_amount(t, r->amount);
    kvmem__format(t, ": %s\nsink      %d: first tokens always kept\nrecent    ",
                  amount[(int)r->amount.kind & 3], r->sink);
    kvmem__put_amount(t, r->recent);
    kvmem__format(t, ": newest tokens always kept%s\nwhen      %s",
                  r->recent.kind == KVMEM_SHARE ? ", as a share of the budget" : "",
                  kvmem__when_words[(int)r->when & 3]);
    if (r->when == KVMEM_WHEN_EVERY) kvmem__format(t, "(%d)", r->every);
    kvmem__format(t, ": reduces %s\npage      %d: entries in a page\nseed      ", when[(int)r->when & 3],
                  r->page);
    kvmem__put_u64(t, r->seed);
    kvmem__format(t, ": of every random choice\n");
}

KVMEM_API size_t kvmem_recipe_explain(const kvmem_recipe *r, char *out, size_t size) {
    kvmem__text t = kvmem__text_into(out, size);
    int i;
    for (i = 0; *r->preset && kvmem_preset_at(i); i++) {
        const kvmem_preset *p = kvmem_preset_at(i);
        if (strcmp(p->word, r->preset)) continue;
        kvmem__format(&t, "preset    %s: %s", p->word, p->what);
        if (strcmp(p->cite, "-")) kvmem__format(&t, " [%s]", p->cite);
        kvmem__format(&t, "\nmeans     %s\n", p->text);
    }
    kvmem__format(&t, "recipe    ");
    kvmem__put_terms(&t, r);
    kvmem__put_char(&t, '\n');
    for (i = 0; i < KVMEM_N_STAGES; i++) kvmem__explain_stage(&t, r, (kvmem_stage)i);
    kvmem__explain_common(&t, r);
    return t.len;
}

#ifndef KVMEM_NO_DECODER
/* ==== >>gguf : the GGUF container =================================================================
   A GGUF file is little-endian and holds, in this order:
       "GGUF", version u32, n_tensors u64, n_kv u64
       n_kv times:      key string, value type u32, value
       n_tensors times: name string, n_dims u32, ne u64[n_dims], type u32, offset u64
       padding to general.alignment (32 unless the key says otherwise), then the tensors' data
   A string is a u64 length and that many bytes; an array is item type u32, count u64 and the items.
   Version 2 and 3 read alike. Tensor offsets count from the start of the data and are multiples of the
   alignment. Format: github.com/ggml-org/ggml docs/gguf.md.

   Nothing here is believed. A cursor that knows how many bytes are left does every read, counts are
   compared with what the rest of the file could hold before anything is allocated, and keys, names and
   data ranges are sorted to find duplicates and overlaps. */
enum {
    KVMEM__GGUF_U8 = 0, KVMEM__GGUF_I8 = 1, KVMEM__GGUF_U16 = 2, KVMEM__GGUF_I16 = 3,
    KVMEM__GGUF_U32 = 4, KVMEM__GGUF_I32 = 5, KVMEM__GGUF_F32 = 6, KVMEM__GGUF_BOOL = 7,
    KVMEM__GGUF_STRING = 8, KVMEM__GGUF_ARRAY = 9, KVMEM__GGUF_U64 = 10, KVMEM__GGUF_I64 = 11,
    KVMEM__GGUF_F64 = 12
};
#define KVMEM__GGUF_MAX_NAME 65535 /* bytes of a key or tensor name */

/* Bytes of one value of a fixed-size type; 0 for strings, arrays and unknown types. */
KVMEM__UNUSED static size_t kvmem__gguf_width(int type) {
    static const uint8_t width[13] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
    return type >= 0 && type < 13 ? width[type] : 0;
}
KVMEM__UNUSED static const char *kvmem__gguf_type_word(int type) {
    static const char *const word[13] = { "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32",
                                          "bool", "string", "array", "uint64", "int64", "float64" };
    return type >= 0 && type < 13 ? word[type] : "unknown";
}

/* A name from the file made fit for a message: unprintable bytes become '?', at most 63 are kept. */
typedef struct kvmem__shown { char text[64]; } kvmem__shown;
KVMEM__UNUSED static kvmem__shown kvmem__show(const char *s, size_t len) {
    kvmem__shown r;
    size_t i, n = len < sizeof r.text - 1 ? len : sizeof r.text - 1;
    for (i = 0; i < n; i++) r.text[i] = s[i] >= 32 && s[i] < 127 ? s[i] : '?';
    r.text[n] = 0;
    return r;
}
KVMEM__UNUSED static int kvmem__same_text(const char *a, size_t a_len, const char *b, size_t b_len) {
    return a_len == b_len && (a_len == 0 || memcmp(a, b, a_len) == 0);
}

/* The cursor. take() hands out n bytes and moves on, or NULL when fewer are left. */
typedef struct kvmem__cursor { const uint8_t *p; size_t left; } kvmem__cursor;

KVMEM__UNUSED static const uint8_t *kvmem__take(kvmem__cursor *c, uint64_t n) {
    const uint8_t *p = c->p;
    if (n > c->left) return NULL;
    c->p += (size_t)n;
    c->left -= (size_t)n;
    return p;
}
KVMEM__UNUSED static int kvmem__take_u32(kvmem__cursor *c, uint32_t *out) {
    const uint8_t *p = kvmem__take(c, 4);
    if (p) *out = kvmem__le32(p);
    return p != NULL;
}
KVMEM__UNUSED static int kvmem__take_u64(kvmem__cursor *c, uint64_t *out) {
    const uint8_t *p = kvmem__take(c, 8);
    if (p) *out = kvmem__le64(p);
    return p != NULL;
}
/* Returns the characters, which may be none, or NULL. */
KVMEM__UNUSED static const char *kvmem__take_string(kvmem__cursor *c, uint64_t *len) {
    return kvmem__take_u64(c, len) ? (const char *)kvmem__take(c, *len) : NULL;
}

/* Moves the cursor over the items of kv (type, item_type and n are set) and checks each. */
static kvmem_status kvmem__gguf_items(kvmem_gguf *g, kvmem__cursor *c, kvmem_gguf_kv *kv) {
    const kvmem__shown name = kvmem__show(kv->key, (size_t)kv->key_len);
    const int type = kv->type == KVMEM__GGUF_ARRAY ? kv->item_type : kv->type;
    const size_t width = kvmem__gguf_width(type);
    uint64_t i, len;
    kv->data = c->p;
    if (width) {
        if (kv->n > c->left / width)
            return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the value of key '%s' runs past the end "
                               "of the file", name.text);
        for (i = 0; type == KVMEM__GGUF_BOOL && i < kv->n; i++)
            if (c->p[i] > 1)
                return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: key '%s' is a bool of value %d",
                                   name.text, (int)c->p[i]);
        (void)kvmem__take(c, kv->n * width);
    } else if (type == KVMEM__GGUF_STRING) {
        for (i = 0; i < kv->n; i++)
            if (!kvmem__take_string(c, &len))
                return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: a string of key '%s' runs past the "
                                   "end of the file", name.text);
        if (kv->type == KVMEM__GGUF_STRING) kv->data += 8;
    } else if (type == KVMEM__GGUF_ARRAY) {
        return kvmem__fail(&g->error, KVMEM_UNSUPPORTED, "gguf: key '%s' is an array of arrays", name.text);
    } else {
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: key '%s' has the unknown value type %d",
                           name.text, type);
    }
    kv->size = (size_t)(c->p - kv->data);
    return KVMEM_OK;
}

static kvmem_status kvmem__gguf_read_kv(kvmem_gguf *g, kvmem__cursor *c, kvmem_gguf_kv *kv, int i) {
    uint64_t len;
    uint32_t type = 0, item = 0;
    const char *key = kvmem__take_string(c, &len);
    if (!key || !kvmem__take_u32(c, &type))
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the file ends inside key %d of %d", i, g->n_kv);
    if (len == 0 || len > KVMEM__GGUF_MAX_NAME)
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the name of key %d has %llu bytes, not 1..%d",
                           i, (unsigned long long)len, KVMEM__GGUF_MAX_NAME);
    kv->key = key;
    kv->key_len = (int)len;
    kv->type = type < 13 ? (int)type : 13;
    kv->n = 1;
    if (type == KVMEM__GGUF_ARRAY) {
        if (!kvmem__take_u32(c, &item) || !kvmem__take_u64(c, &kv->n))
            return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the file ends inside the array of key '%s'",
                               kvmem__show(key, (size_t)len).text);
        kv->item_type = item < 13 ? (int)item : 13;
    }
    return kvmem__gguf_items(g, c, kv);
}

/* One row of the tensor table. t->size receives the checked byte count, *offset the file's word. */
static kvmem_status kvmem__gguf_read_tensor(kvmem_gguf *g, kvmem__cursor *c, kvmem_tensor *t, int i,
                                            uint64_t *offset) {
    kvmem__shown name;
    uint64_t len, ne;
    uint32_t n_dims = 0, type = 0, d;
    size_t values = 1, block_bytes = 0;
    int block;
    const char *s = kvmem__take_string(c, &len);
    if (!s || !kvmem__take_u32(c, &n_dims))
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the file ends inside tensor %d of %d", i,
                           g->n_tensors);
    if (len == 0 || len > KVMEM__GGUF_MAX_NAME)
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the name of tensor %d has %llu bytes, not "
                           "1..%d", i, (unsigned long long)len, KVMEM__GGUF_MAX_NAME);
    name = kvmem__show(s, (size_t)len);
    if (n_dims < 1 || n_dims > 4)
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: tensor '%s' has %u dimensions, not 1..4",
                           name.text, (unsigned)n_dims);
    t->name = s;
    t->name_len = (int)len;
    t->n_dims = (int)n_dims;
    for (d = 0; d < 4; d++) t->ne[d] = 1;
    for (d = 0; d < n_dims; d++) {
        if (!kvmem__take_u64(c, &ne))
            return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the file ends inside tensor '%s'",
                               name.text);
        if (ne == 0 || ne > INT_MAX || !kvmem__mul(values, (size_t)ne, &values))
            return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: tensor '%s' has %llu values along "
                               "dimension %u", name.text, (unsigned long long)ne, (unsigned)d);
        t->ne[d] = (int64_t)ne;
    }
    if (!kvmem__take_u32(c, &type) || !kvmem__take_u64(c, offset))
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the file ends inside tensor '%s'", name.text);
    block = type < 1000 ? kvmem_type_block((kvmem_type)type, &block_bytes) : 0;
    if (!block)
        return kvmem__fail(&g->error, KVMEM_UNSUPPORTED, "gguf: tensor '%s' has type %u, which is not "
                           "one of those that kvmem reads", name.text, (unsigned)type);
    t->type = (kvmem_type)type;
    if (t->ne[0] % block != 0)
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: tensor '%s' has rows of %lld values, not a "
                           "multiple of the %d of a %s block", name.text, (long long)t->ne[0], block,
                           kvmem_type_name(t->type));
    if (!kvmem__mul(values / (size_t)block, block_bytes, &t->size))
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the size of tensor '%s' overflows", name.text);
    return KVMEM_OK;
}

/* Heap sort of order (n) by before(g, a, b); names and offsets are sorted with it. */
typedef int (*kvmem__gguf_less)(const kvmem_gguf *g, int a, int b);
static int kvmem__text_less(const char *a, int a_len, const char *b, int b_len) {
    const int d = memcmp(a, b, (size_t)KVMEM__MIN(a_len, b_len));
    return d ? d < 0 : a_len < b_len;
}
static int kvmem__gguf_key_less(const kvmem_gguf *g, int a, int b) {
    return kvmem__text_less(g->kv[a].key, g->kv[a].key_len, g->kv[b].key, g->kv[b].key_len);
}
static int kvmem__gguf_name_less(const kvmem_gguf *g, int a, int b) {
    return kvmem__text_less(g->tensor[a].name, g->tensor[a].name_len, g->tensor[b].name,
                            g->tensor[b].name_len);
}
static int kvmem__gguf_data_less(const kvmem_gguf *g, int a, int b) {
    return g->tensor[a].data < g->tensor[b].data;
}
static void kvmem__gguf_sort(const kvmem_gguf *g, int *order, int n, kvmem__gguf_less less) {
    int i, end, root, child, v;
    for (i = 0; i < n; i++) order[i] = i;
    for (i = n / 2 - 1, end = n; end > 1;) {
        if (i >= 0) root = i--;
        else { end--; v = order[0]; order[0] = order[end]; order[end] = v; root = 0; }
        for (v = order[root]; (child = 2 * root + 1) < end; root = child) {
            if (child + 1 < end && less(g, order[child], order[child + 1])) child++;
            if (!less(g, v, order[child])) break;
            order[root] = order[child];
        }
        order[root] = v;
    }
}

/* No key and no tensor name twice, no byte of data in two tensors. order: scratch for sorting. */
static kvmem_status kvmem__gguf_unique(kvmem_gguf *g, int *order) {
    int i;
    kvmem__gguf_sort(g, order, g->n_kv, kvmem__gguf_key_less);
    for (i = 1; i < g->n_kv; i++)
        if (!kvmem__gguf_key_less(g, order[i - 1], order[i])) {
            const kvmem_gguf_kv *kv = &g->kv[order[i]];
            return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: key '%s' appears twice",
                               kvmem__show(kv->key, (size_t)kv->key_len).text);
        }
    kvmem__gguf_sort(g, order, g->n_tensors, kvmem__gguf_name_less);
    for (i = 1; i < g->n_tensors; i++)
        if (!kvmem__gguf_name_less(g, order[i - 1], order[i])) {
            const kvmem_tensor *t = &g->tensor[order[i]];
            return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: tensor '%s' appears twice",
                               kvmem__show(t->name, (size_t)t->name_len).text);
        }
    kvmem__gguf_sort(g, order, g->n_tensors, kvmem__gguf_data_less);
    for (i = 1; i < g->n_tensors; i++) {
        const kvmem_tensor *a = &g->tensor[order[i - 1]], *b = &g->tensor[order[i]];
        if ((size_t)(b->data - a->data) < a->size)
            return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the data of tensors '%s' and '%s' overlap",
                               kvmem__show(a->name, (size_t)a->name_len).text,
                               kvmem__show(b->name, (size_t)b->name_len).text);
    }
    return KVMEM_OK;
}

/* Header up to the counts. 14 and 33 are the fewest bytes of a key and of a tensor's row. */
static kvmem_status kvmem__gguf_header(kvmem_gguf *g, kvmem__cursor *c) {
    uint64_t n_tensors = 0, n_kv = 0;
    uint32_t version = 0;
    const uint8_t *magic = kvmem__take(c, 4);
    if (!magic || memcmp(magic, "GGUF", 4) != 0)
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the file does not begin with the letters GGUF");
    if (!kvmem__take_u32(c, &version))
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the file ends inside its header");
    if ((version & 0xffffu) == 0 && version != 0)
        return kvmem__fail(&g->error, KVMEM_UNSUPPORTED, "gguf: a big-endian file; only little-endian ones "
                           "are read");
    if (version != 2 && version != 3)
        return kvmem__fail(&g->error, KVMEM_UNSUPPORTED, "gguf: version %u of the format; 2 and 3 are read",
                           (unsigned)version);
    if (!kvmem__take_u64(c, &n_tensors) || !kvmem__take_u64(c, &n_kv))
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the file ends inside its header");
    if (n_kv > c->left / 14 || n_kv > INT_MAX)
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the header announces %llu keys, more than "
                           "the file can hold", (unsigned long long)n_kv);
    if (n_tensors > c->left / 33 || n_tensors > INT_MAX)
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the header announces %llu tensors, more than "
                           "the file can hold", (unsigned long long)n_tensors);
    g->version = (int)version;
    g->n_kv = (int)n_kv;
    g->n_tensors = (int)n_tensors;
    return KVMEM_OK;
}

/* Turns file offsets into pointers. offset (n_tensors). */
static kvmem_status kvmem__gguf_place(kvmem_gguf *g, const kvmem__cursor *c, const uint64_t *offset) {
    const size_t at = (size_t)(c->p - g->bytes);
    const kvmem_gguf_kv *kv = kvmem_gguf_find(g, "general.alignment");
    int64_t alignment = 32;
    size_t base;
    int i;
    if (kv && (kv->type != KVMEM__GGUF_U32 || !kvmem_gguf_int(g, "general.alignment", &alignment) ||
               alignment < 1 || (alignment & (alignment - 1)) != 0))
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: general.alignment is not a uint32 power of two");
    base = (size_t)(alignment - 1);
    if (!kvmem__add(at, base, &base))
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: general.alignment overflows");
    base &= ~(size_t)(alignment - 1);
    for (i = 0; i < g->n_tensors; i++) {
        kvmem_tensor *t = &g->tensor[i];
        const kvmem__shown name = kvmem__show(t->name, (size_t)t->name_len);
        if (offset[i] % (uint64_t)alignment != 0)
            return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the data of tensor '%s' is not aligned to "
                               "%d bytes", name.text, (int)alignment);
        if (base > g->size || offset[i] > g->size - base || t->size > g->size - base - (size_t)offset[i])
            return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the data of tensor '%s' (%zu bytes) runs "
                               "past the end of the file", name.text, t->size);
        t->data = g->bytes + base + (size_t)offset[i];
    }
    return KVMEM_OK;
}

/* Everything after the header. offset (n_tensors) and order (larger count) are scratch. */
static kvmem_status kvmem__gguf_tables(kvmem_gguf *g, kvmem__cursor *c, uint64_t *offset, int *order) {
    int i;
    for (i = 0; i < g->n_kv; i++) KVMEM__TRY(kvmem__gguf_read_kv(g, c, &g->kv[i], i));
    for (i = 0; i < g->n_tensors; i++)
        KVMEM__TRY(kvmem__gguf_read_tensor(g, c, &g->tensor[i], i, &offset[i]));
    KVMEM__TRY(kvmem__gguf_place(g, c, offset));
    return kvmem__gguf_unique(g, order);
}

static void kvmem__gguf_release(kvmem_gguf *g) {
    kvmem__release(&g->allocator, g->kv, (size_t)g->n_kv * sizeof *g->kv);
    kvmem__release(&g->allocator, g->tensor, (size_t)g->n_tensors * sizeof *g->tensor);
    g->kv = NULL;
    g->tensor = NULL;
    g->n_kv = g->n_tensors = 0;
}

KVMEM_API kvmem_status kvmem_gguf_open(kvmem_gguf *g, const void *bytes, size_t size,
                                       const kvmem_allocator *allocator) {
    kvmem__cursor c;
    kvmem_status status;
    uint64_t *offset = NULL;
    int *order = NULL;
    size_t kv_size, tensor_size, offset_size, order_size;
    memset(g, 0, sizeof *g);
    g->allocator = kvmem__allocator(allocator);
    if (!bytes) return kvmem__fail(&g->error, KVMEM_BAD_ARGUMENT, "gguf: bytes is NULL");
    g->bytes = c.p = (const uint8_t *)bytes;
    g->size = c.left = size;
    status = kvmem__gguf_header(g, &c);
    if (status != KVMEM_OK) {
        g->n_kv = g->n_tensors = 0;
        return status;
    }
    if (!kvmem__mul((size_t)g->n_kv, sizeof *g->kv, &kv_size) ||
        !kvmem__mul((size_t)g->n_tensors, sizeof *g->tensor, &tensor_size)) {
        g->n_kv = g->n_tensors = 0;
        return kvmem__fail(&g->error, KVMEM_BAD_FILE, "gguf: the tables do not fit the address space");
    }
    offset_size = (size_t)g->n_tensors * sizeof *offset;
    order_size = (size_t)KVMEM__MAX(g->n_kv, g->n_tensors) * sizeof *order;
    g->kv = (kvmem_gguf_kv *)kvmem__alloc(&g->allocator, kv_size);
    g->tensor = (kvmem_tensor *)kvmem__alloc(&g->allocator, tensor_size);
    offset = (uint64_t *)kvmem__alloc(&g->allocator, offset_size);
    order = (int *)kvmem__alloc(&g->allocator, order_size);
    if (g->kv && g->tensor && offset && order) {
        memset(g->kv, 0, kv_size);
        memset(g->tensor, 0, tensor_size);
        status = kvmem__gguf_tables(g, &c, offset, order);
    } else {
        status = kvmem__fail(&g->error, KVMEM_NO_MEMORY, "gguf: no memory for tables of %d keys and %d "
                             "tensors", g->n_kv, g->n_tensors);
    }
    kvmem__release(&g->allocator, order, order_size);
    kvmem__release(&g->allocator, offset, offset_size);
    if (status != KVMEM_OK) kvmem__gguf_release(g);
    return status;
}

KVMEM_API void kvmem_gguf_close(kvmem_gguf *g) {
    if (!g) return;
    kvmem__gguf_release(g);
    memset(g, 0, sizeof *g);
}

KVMEM_API const kvmem_gguf_kv *kvmem_gguf_find(const kvmem_gguf *g, const char *key) {
    const size_t len = strlen(key);
    int i;
    for (i = 0; i < g->n_kv; i++)
        if (kvmem__same_text(g->kv[i].key, (size_t)g->kv[i].key_len, key, len)) return &g->kv[i];
    return NULL;
}
KVMEM_API const kvmem_tensor *kvmem_gguf_tensor(const kvmem_gguf *g, const char *name) {
    const size_t len = strlen(name);
    int i;
    for (i = 0; i < g->n_tensors; i++)
        if (kvmem__same_text(g->tensor[i].name, (size_t)g->tensor[i].name_len, name, len))
            return &g->tensor[i];
    return NULL;
}

/* Item i of a number or of an array of numbers. 0 if the type is none, i past the end or no int64. */
KVMEM__UNUSED static int kvmem__gguf_item_float(const kvmem_gguf_kv *kv, uint64_t i, double *out) {
    const int type = kv->type == KVMEM__GGUF_ARRAY ? kv->item_type : kv->type;
    const uint8_t *p;
    uint64_t u;
    if (!kvmem__gguf_width(type) || i >= kv->n) return 0;
    p = kv->data + (size_t)i * kvmem__gguf_width(type);
    switch (type) {
    case KVMEM__GGUF_I8: *out = (double)(int8_t)p[0]; return 1;
    case KVMEM__GGUF_U16: *out = (double)kvmem__le16(p); return 1;
    case KVMEM__GGUF_I16: *out = (double)(int16_t)kvmem__le16(p); return 1;
    case KVMEM__GGUF_U32: *out = (double)kvmem__le32(p); return 1;
    case KVMEM__GGUF_I32: *out = (double)(int32_t)kvmem__le32(p); return 1;
    case KVMEM__GGUF_F32: *out = (double)kvmem__lef32(p); return 1;
    case KVMEM__GGUF_U64: *out = (double)kvmem__le64(p); return 1;
    case KVMEM__GGUF_I64: *out = (double)(int64_t)kvmem__le64(p); return 1;
    case KVMEM__GGUF_F64: u = kvmem__le64(p); memcpy(out, &u, 8); return 1;
    default: *out = (double)p[0]; return 1; /* uint8 and bool */
    }
}
KVMEM__UNUSED static int kvmem__gguf_item_int(const kvmem_gguf_kv *kv, uint64_t i, int64_t *out) {
    const int type = kv->type == KVMEM__GGUF_ARRAY ? kv->item_type : kv->type;
    double d;
    if (!kvmem__gguf_item_float(kv, i, &d)) return 0;
    if (type == KVMEM__GGUF_I64 || type == KVMEM__GGUF_U64) {
        const uint64_t u = kvmem__le64(kv->data + (size_t)i * 8);
        if (type == KVMEM__GGUF_U64 && u > (uint64_t)INT64_MAX) return 0;
        *out = (int64_t)u;
        return 1;
    }
    if (!(d > -9.2e18 && d < 9.2e18)) return 0;
    *out = (int64_t)d;
    return 1;
}
/* Walks an array of strings: *at begins as kv->data; returns the characters, moves *at to the next. The
   lengths were checked by kvmem_gguf_open; call it kv->n times at most. */
KVMEM__UNUSED static const char *kvmem__gguf_next_string(const uint8_t **at, size_t *len) {
    const uint8_t *s = *at + 8;
    *len = (size_t)kvmem__le64(*at);
    *at = s + *len;
    return (const char *)s;
}

KVMEM_API int kvmem_gguf_int(const kvmem_gguf *g, const char *key, int64_t *out) {
    const kvmem_gguf_kv *kv = kvmem_gguf_find(g, key);
    return kv && kv->type != KVMEM__GGUF_ARRAY && kvmem__gguf_item_int(kv, 0, out);
}
KVMEM_API int kvmem_gguf_float(const kvmem_gguf *g, const char *key, double *out) {
    const kvmem_gguf_kv *kv = kvmem_gguf_find(g, key);
    return kv && kv->type != KVMEM__GGUF_ARRAY && kvmem__gguf_item_float(kv, 0, out);
}
KVMEM_API int kvmem_gguf_string(const kvmem_gguf *g, const char *key, const char **s, size_t *len) {
    const kvmem_gguf_kv *kv = kvmem_gguf_find(g, key);
    if (!kv || kv->type != KVMEM__GGUF_STRING) return 0;
    *s = (const char *)kv->data;
    *len = kv->size;
    return 1;
}

/* ==== >>unicode : UTF-8 and general categories ====================================================
   A byte-level BPE vocabulary was trained on words that a regular expression cut out, and those ask for
   Unicode categories: letters (L), numbers (N), punctuation (P), symbols (S), marks (M), white space.
   The table is a run-length code of all code points, printed by tools/unicode_table.py (which explains
   the digits); opening a tokenizer unpacks it into sorted run starts (start * 8 + class) for a binary
   search. */
enum {
    KVMEM__U_OTHER, KVMEM__U_LETTER, KVMEM__U_NUMBER, KVMEM__U_PUNCT, KVMEM__U_SYMBOL, KVMEM__U_MARK,
    KVMEM__U_SPACE /* White_Space, taken out of OTHER */
};
/* Unicode 15.1.0: 2244 runs in 3295 characters */
#define KVMEM__UNICODE_RUNS 2244
static const char *const kvmem__unicode_runs[] = {
    "*<=C@C>:%<E<25=C;C25;C;C*=;G;D+;C#F4C+<C3+;5;22C2:C2E1F2'J)/I+C+J,RK&/C,$.;+&D+;-#+#2/#2N%C2",
    "F'CQ2a'#2A$+@2D$<$E#RH$;K;L;L;K*#26&.<*,E<C<DR&;#=2F$R0:%>,K2^%;+Q#CP,LCN,:%-D+B)$+K29R6$2T%",
    "R&+*):%2<R$,C=+$KD21N+R$+M+O$B*#24M$;#2&'23C0*$R#2E$R3#R<2Q$M+R-+Q2%L<:%;2+M#2#$,$21#1#+%.$K",
    "+Q$L$M+*#K&,#-L$:%,D8D+;K$M#0&,$21#1#,#,#,$K#O&L$M%K).#+):%L-K;*%M#2$#-#21#1#,#/$K+R##M#M$+*",
    "*,L$:%;C)+P#M#2#$,$21#1#,#/$K+Q$L$M)M&,#-L$:%C+8*%K+#0%-#.%,#+#,%,%-%2'&O%M#N$+(K*):(J#'O2##",
    "-#22#2+$K+Q#M#N)L#-$+$,L$:%);9C+M;2##-#22#2%#/$K+Q#M#N)L(,#,L$:%#,K*'N2$#-#2D$L+Q#M#N+C&-K9-",
    "L$:.C0#M#2-%23#2$#+$1%K&P#K#R#(:%$L;*'2K$K,Q&C1R#;:%<*@,#+#/#23#+#2%K,R$+$/#+#Q#:%$.*;+EB*C;",
    "ELH:/CKCKCK>L2##2c&R/;L/R&#Rc#J#KH#DcF<*@2F$R/+:%@0N.M+M,Q-N2(R'+K:%ND2A#+'+$2F$;2H-#.$1#+#.",
    "$2D$#.$2<#.$1#+#.$2*#2T$#.$2^$$MB$:/%2+J%(2Q%$0$;2G6C;2,#25<%2F%=52#)2-N*$2.M<*$2-L*'2(#-#L*",
    "'2O$R;=+=C+K$:%(:%(B&M#K:%(2T%)/L2=K+'2a$*%2:#R'&R'&C%<:%29$/*&2G$&25(:&%J=22O$<2P$R%#R8$K:%",
    "(:%(A+@$R:*L$O2J$R,2#%:%AJ%R$J$<#M29R(,:%2G$R)*#>2cR/%c:%%-:%2c<2$)2F$$-B#*#M;R0.K0K,M+'2[(R",
    "[$2Q+$0$2A$0$2##+#+#+#2:$2P$#1C+E-#1E.$0#E2(E$-#1D*,B3*#B/CB(CB'*,3+$8E<+:%E<#2(%J<**R<**D+F",
    "+D2%C+E/H+C+C+C.C2&D.G/F+C:N$,7D&JS.>J8<JW**4J&*0:W$JI%:1JC6B):9JL$<J:B%JN/B1JZ$>J;<JQ.$J;#J",
    "D&2`)H.M,'>3<2A#+'+$2S$)+;*)K22*$1#1#1#1#1#1#1#1#R;BJ$+B;DB'*=J5#JT%*'JQ)*5J+#=C,3B%DB'C:$P;",
    "/D5,;D#2Q%$LD-;2U%;.'2F$#2Y%#D6J%2;Jc*&C2+J:#:%J9:#C:*J;:%JB:*J[,2[P)J[$2HW8%JR$*$2I$<2H+=2+",
    ":%,*/2J$N;R%;2:L2a$:%L@*#J22$D2b%D2[$',#+#/*32+K-K.K22OFK%8F(2O$>*#L2M$R-*#<:%(R-0=+;,K:%27R",
    "#<22R(*&;28%N2J$R)B(#+:%&</K2%:%/#2D$R)*$-K2#L$:%$>22E+M2M$K+M,L/L+K+*3-<2&O<-L*%0$0$0*$1#1#",
    "2F$C2)D&2N&R#;L$:%(2__-*'22&2L$*_J+2I.$2E&*A1*'/'+K2%C2(#/#+#,#,#2G&J,*+2F.<J+2[$$2Q$)C*;2'F",
    "R+B%(R+B>#B)C;E#;C<&/#2b&&=C@C>:%<E<25=C;C25;C;CA2T%%0$0$0$-%I#I*(D$2'#25#2.#,#2*$2)*=2V&'=&",
    ":H$%J$:T$J,4E#J(%C*J$JH$K*]&28%2L$**K:6&2;6*$2/32#3'2AO'29#;2c&2#;7*E$2Y'$:%(2c&2c&2C$*#2O$*",
    "&;2&#2*#1#,#2&#2*#1#,*^$2R,*$21*%2#*30#2E$#2$*`$0$+#2G$#,%+$22#;:#22D92:*#:$*K$2.#,'7218%;25",
    "';*[$2S$&4,:+$:I$+M#L'N.#-#28$M&K:$)B$)284;285*;2#C27L&7A*$2Q$%A21$:#2.':#2-)>*'9*K%2D%*R$2N",
    "$*(2N$)82cN*#:%*a+::#2E$#L;$,*F%M28:%+*#21R&6c*12-N>*A209*/22*$M2P$R*A&:9K,L+*$N2H$R&<#>K*(2",
    "4):%(M2cR)#:%>+L+*#2>K<+*$M2K$R).>N;L:%+;+=#:/*&2-#24R'@K,K*Y$1#+#.#2*#2%;(2J$R'':%(N#2#$,$2",
    "1#1#,#/#L+Q$L$M$+(K'/L$Q%O*F'2P$R-.c:%<#;K-*92K$R/,;+*#:%*a'2J$Q$R$B2.L*=2K$R,=+*&:%(B(*.2F$",
    "R(+;(:%*Q$26$R*&:'=C1*T(2G$R*;*_%2[$:.*'2#$+$2##,#23P#L$N+K+L=*$:%*a$2#$2BQ$Q+;+K*6+R%2C$Q+N",
    "B#K*#+R&2I$R+=+c*(2D%)B%*Q*2$#2@R##R#+c*%:8%<29$R1#R)*D%1#,#2AP%K#L#Q+K*#:%(0#,#2;O#L#O+):%*",
    "Q,2.N<)L+K2(#2=Q%OB(:%*Q%+**:0J8*(;2Uc*a%:J&#c*&2_(*GU%2d%<*(2KD$*+K0R**E`&2b4*TP+2T4)2:#:%&",
    "<2J%#:%(29$O;*%2K$QcF.;C*%:%#9#20'2.*K82[$:2>*`%2F%&K+RR$)N2(*[$,;+K*&L*)2Sb(*#2QI$*E$2$*bY+",
    ".#1#,#2^+**+*8-$+*).*#2G/*_J%2F&'2(%2$)2%$CL;*[U'RI$$R2*$JO&*W$JQ**%JB$JW$OEP*#R#DQJ9NJX$*0J",
    "]$MC*U&:/*':/*'JR%*$:4*b&2P%#2b$#,$+$,$.#2'#+#1#2d$#.$2##1#27#.#/#+%1#2O-$24C24C2:C24C2:C24C",
    "2:C24C2:C24C2#$:M$J[2RR$FRM$J#KJ)KDc**O#R**KE$2:(0*P)Q#R,$Q#L#O'2Y$*<K*K&2H$%Q1$:%&+C*[,29K*",
    ",2G$N:%'C*K127N:%*a91#.#,#2*#2`($:$Q*D$2_$Q+&:%&<*L;:V$C5C6*G%:H$C:**](.#26#,#+$+#2%#.#+#+(+",
    "&+#+#+#-#,#+$+#+#+#+#+#,#+$.#1#.#.#+#2%#2,'-#/#2,*O$D*I+JG$&J_%*'J*$J*#J*#J@*%:(Jd'*S$J8*(JG",
    "$&J$)D*)H*U'JSA&J,%J(%JR&&JZ%(J'&C**J'&JS$*#J%(JC$*#J9$D*I%JO-*'J)$J(%J$)JI$#I*#J)&J$)J$)JN'",
    "#JR$*@:%*aB2[YL$*;2UD'(2Y)$2]V(*)2LL***2I6*]O%2Y3*]Q$2F]''2[E'*KMZ8RK**KSb(",
    NULL
};

static int kvmem__unicode_digit(char c) { return c == 'c' ? 28 : c == 'd' ? 57 : c - 35; }

/* Unpack the table into runs (KVMEM__UNICODE_RUNS). */
static void kvmem__unicode_unpack(uint32_t *runs) {
    uint32_t start = 0;
    int line, i, n = 0;
    uint32_t len = 0, cls = 0;
    int shift = -1; /* -1: a run begins; else digits of its length follow */
    for (line = 0; kvmem__unicode_runs[line]; line++)
        for (i = 0; kvmem__unicode_runs[line][i]; i++) {
            const uint32_t v = (uint32_t)kvmem__unicode_digit(kvmem__unicode_runs[line][i]);
            if (shift < 0) {
                cls = v >> 3;
                len = (v & 7) + 1;
                if (len == 8) { shift = 0; continue; }
            } else {
                len += (v & 31) << shift;
                shift += 5;
                if (v & 32) continue;
                shift = -1;
            }
            KVMEM_ASSERT(n < KVMEM__UNICODE_RUNS);
            runs[n++] = start << 3 | cls;
            start += len;
        }
    KVMEM_ASSERT(n == KVMEM__UNICODE_RUNS && start == 0x110000);
}
static int kvmem__unicode_space(uint32_t c) {
    if (c < 0x80) return (c >= 9 && c <= 13) || c == ' ';
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}
static int kvmem__unicode_class(const uint32_t *runs, uint32_t c) {
    int lo = 0, hi = KVMEM__UNICODE_RUNS;
    if (kvmem__unicode_space(c)) return KVMEM__U_SPACE;
    while (hi - lo > 1) {
        const int mid = lo + (hi - lo) / 2;
        if (runs[mid] >> 3 <= c) lo = mid;
        else hi = mid;
    }
    return (int)(runs[lo] & 7);
}

/* Length of the sequence that s (n > 0 bytes) begins with: 1..4 when complete; 0 when it is a part of a
   sequence that may still be completed; -1 when it is no UTF-8 (stray or overlong bytes, surrogates,
   beyond U+10FFFF). */
static int kvmem__utf8_check(const uint8_t *s, size_t n) {
    const unsigned a = s[0];
    unsigned lo = 0x80, hi = 0xbf;
    int len, i;
    if (a < 0x80) return 1;
    if (a < 0xc2 || a > 0xf4) return -1;
    len = a < 0xe0 ? 2 : a < 0xf0 ? 3 : 4;
    if (a == 0xe0) lo = 0xa0;
    else if (a == 0xed) hi = 0x9f;
    else if (a == 0xf0) lo = 0x90;
    else if (a == 0xf4) hi = 0x8f;
    for (i = 1; i < len; i++) {
        if ((size_t)i == n) return 0;
        if (s[i] < lo || s[i] > hi) return -1;
        lo = 0x80;
        hi = 0xbf;
    }
    return len;
}
/* One code point; a byte that begins none counts as U+FFFD. Returns the bytes taken. */
static int kvmem__utf8_decode(const uint8_t *s, size_t n, uint32_t *c) {
    const int len = kvmem__utf8_check(s, n);
    switch (len) {
    case 1: *c = s[0]; return 1;
    case 2: *c = (uint32_t)(s[0] & 31) << 6 | (s[1] & 63); return 2;
    case 3: *c = (uint32_t)(s[0] & 15) << 12 | (uint32_t)(s[1] & 63) << 6 | (s[2] & 63); return 3;
    case 4:
        *c = (uint32_t)(s[0] & 7) << 18 | (uint32_t)(s[1] & 63) << 12 | (uint32_t)(s[2] & 63) << 6 |
             (s[3] & 63);
        return 4;
    default: *c = 0xfffd; return 1;
    }
}
static int kvmem__utf8_encode(uint32_t c, uint8_t *out) {
    if (c < 0x80) { out[0] = (uint8_t)c; return 1; }
    if (c < 0x800) {
        out[0] = (uint8_t)(0xc0 | c >> 6);
        out[1] = (uint8_t)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xe0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 63));
        out[2] = (uint8_t)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 63));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 63));
    out[3] = (uint8_t)(0x80 | (c & 63));
    return 4;
}

/* ==== >>pretokenize : cutting text into words =====================================================
   Byte-level BPE never joins across words, and what a word is was a regular expression at training time.
   Each expression is a hand-written matcher here: given position p inside the piece that ends at e, it
   returns the end of the match that begins at p, or p for none. A rule is up to six such stages; each
   stage cuts every piece that the stages before it left, matches and the gaps between them alike.
   A text is an array c (n) of code point | class << 21; bit 31 marks the first of a word.
   Expressions: the tokenizer.json files of the models, as llama.cpp reads them (src/llama-vocab.cpp). */
#define KVMEM__WORD 0x80000000u
#define KVMEM__CP(x) ((x) & 0x1fffffu)
#define KVMEM__CLS(x) ((int)((x) >> 21 & 7))

typedef size_t (*kvmem__match_fn)(const uint32_t *c, size_t p, size_t e);

static int kvmem__crlf(uint32_t x) { return KVMEM__CP(x) == '\r' || KVMEM__CP(x) == '\n'; }

/* 's 't 'm 'd 're 've 'll : length of the contraction at p, 0 for none */
static size_t kvmem__contraction(const uint32_t *c, size_t p, size_t e, int any_case) {
    uint32_t a, b;
    if (KVMEM__CP(c[p]) != '\'' || p + 1 >= e) return 0;
    a = KVMEM__CP(c[p + 1]);
    if (any_case && a >= 'A' && a <= 'Z') a += 32;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (p + 2 >= e) return 0;
    b = KVMEM__CP(c[p + 2]);
    if (any_case && b >= 'A' && b <= 'Z') b += 32;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}
/* \s+(?!\S)|\s+ : a run of white space leaves its last character to the word that follows */
static size_t kvmem__spaces(const uint32_t *c, size_t p, size_t e) {
    size_t q = p;
    while (q < e && KVMEM__CLS(c[q]) == KVMEM__U_SPACE) q++;
    return q < e && q - p > 1 ? q - 1 : q;
}
/* letter, number, white space, or the rest */
static int kvmem__kind(uint32_t x) {
    const int k = KVMEM__CLS(x);
    return k == KVMEM__U_LETTER || k == KVMEM__U_NUMBER || k == KVMEM__U_SPACE ? k : KVMEM__U_OTHER;
}
/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t kvmem__pre_gpt2(const uint32_t *c, size_t p, size_t e) {
    size_t q = p + kvmem__contraction(c, p, e, 0);
    int kind;
    if (q > p) return q;
    if (KVMEM__CP(c[p]) == ' ' && p + 1 < e) q++;
    kind = kvmem__kind(c[q]);
    if (kind == KVMEM__U_SPACE) return kvmem__spaces(c, p, e);
    while (q < e && kvmem__kind(c[q]) == kind) q++;
    return q;
}
/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|
   \s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t kvmem__pre_llama3_digits(const uint32_t *c, size_t p, size_t e, size_t digits) {
    const int kind = kvmem__kind(c[p]);
    size_t q = p + kvmem__contraction(c, p, e, 1), end;
    if (q > p) return q;
    if (kind == KVMEM__U_LETTER || (kind != KVMEM__U_NUMBER && !kvmem__crlf(c[p]) && p + 1 < e &&
                                    KVMEM__CLS(c[p + 1]) == KVMEM__U_LETTER)) {
        for (q = p + 1; q < e && KVMEM__CLS(c[q]) == KVMEM__U_LETTER;) q++;
        return q;
    }
    if (kind == KVMEM__U_NUMBER) {
        while (q < e && q - p < digits && KVMEM__CLS(c[q]) == KVMEM__U_NUMBER) q++;
        return q;
    }
    if (KVMEM__CP(c[p]) == ' ' && p + 1 < e) q++;
    if (kvmem__kind(c[q]) == KVMEM__U_OTHER) {
        while (q < e && kvmem__kind(c[q]) == KVMEM__U_OTHER) q++;
        while (q < e && kvmem__crlf(c[q])) q++;
        return q;
    }
    for (q = p, end = p; q < e && KVMEM__CLS(c[q]) == KVMEM__U_SPACE; q++)
        if (kvmem__crlf(c[q])) end = q + 1;
    return end > p ? end : kvmem__spaces(c, p, e);
}
static size_t kvmem__pre_llama3(const uint32_t *c, size_t p, size_t e) {
    return kvmem__pre_llama3_digits(c, p, e, 3);
}
static size_t kvmem__pre_qwen2(const uint32_t *c, size_t p, size_t e) {
    return kvmem__pre_llama3_digits(c, p, e, 1);
}
/* \p{N}+ and \p{N} */
static size_t kvmem__pre_numbers(const uint32_t *c, size_t p, size_t e) {
    while (p < e && KVMEM__CLS(c[p]) == KVMEM__U_NUMBER) p++;
    return p;
}
static size_t kvmem__pre_number(const uint32_t *c, size_t p, size_t e) {
    (void)e;
    return KVMEM__CLS(c[p]) == KVMEM__U_NUMBER ? p + 1 : p;
}
/* [0-9][0-9][0-9] */
static size_t kvmem__pre_3digits(const uint32_t *c, size_t p, size_t e) {
    size_t q;
    for (q = p; q < e && q < p + 3; q++)
        if (KVMEM__CP(c[q]) < '0' || KVMEM__CP(c[q]) > '9') return p;
    return q == p + 3 ? q : p;
}
/* [\p{P}\$\+<=>\^~\|]+ (default) and the same with ` (falcon) */
static size_t kvmem__punctuation(const uint32_t *c, size_t p, size_t e, uint32_t also) {
    for (; p < e; p++) {
        const uint32_t x = KVMEM__CP(c[p]);
        if (KVMEM__CLS(c[p]) != KVMEM__U_PUNCT && x != '$' && x != '+' && x != '<' && x != '=' &&
            x != '>' && x != '^' && x != '~' && x != '|' && x != also) break;
    }
    return p;
}
static size_t kvmem__pre_default_punct(const uint32_t *c, size_t p, size_t e) {
    return kvmem__punctuation(c, p, e, '$');
}
static size_t kvmem__pre_falcon_punct(const uint32_t *c, size_t p, size_t e) {
    return kvmem__punctuation(c, p, e, '`');
}
/* deepseek: [\r\n]   \s?\p{L}+   \s?\p{P}+   and the ranges U+0800..9FA5, U+AC00..D7FF
   deepseek-llm spells its letters as a list of ranges (cased scripts), and its punctuation too */
static const uint16_t kvmem__deepseek_letters[] = {
    0x41, 0x5A, 0x61, 0x7A, 0xB5, 0xB5, 0xC0, 0xD6, 0xD8, 0xF6, 0xF8, 0x1BA, 0x1BC, 0x1BF, 0x1C4, 0x293,
    0x295, 0x2AF, 0x370, 0x373, 0x376, 0x377, 0x37B, 0x37D, 0x37F, 0x37F, 0x386, 0x386, 0x388, 0x38A,
    0x38C, 0x38C, 0x38E, 0x3A1, 0x3A3, 0x3F5, 0x3F7, 0x481, 0x48A, 0x52F, 0x531, 0x556, 0x10A0, 0x10C5,
    0x13A0, 0x13F5, 0x13F8, 0x13FD, 0x1C90, 0x1CBA, 0x1CBD, 0x1CBF, 0x1D00, 0x1D2B, 0x1D6B, 0x1D77,
    0x1D79, 0x1D9A, 0x1E00, 0x1F15, 0x1F18, 0x1F1D, 0x1F20, 0x1F45, 0x1F48, 0x1F4D, 0x1F50, 0x1F57,
    0x1F59, 0x1F59, 0x1F5B, 0x1F5B, 0x1F5D, 0x1F5D, 0x1F5F, 0x1F7D, 0x1F80, 0x1FB4, 0x1FB6, 0x1FBC,
    0x1FBE, 0x1FBE, 0x1FC2, 0x1FC4, 0x1FC6, 0x1FCC, 0x1FD0, 0x1FD3, 0x1FD6, 0x1FDB, 0x1FE0, 0x1FEC,
    0x1FF2, 0x1FF4, 0x1FF6, 0x1FFC, 0x2102, 0x2102, 0x2107, 0x2107, 0x210A, 0x2113, 0x2115, 0x2115,
    0x2119, 0x211D, 0x2124, 0x2124, 0x2126, 0x2126, 0x2128, 0x2128, 0x212A, 0x212D, 0x212F, 0x2134,
    0x2139, 0x2139, 0x213C, 0x213F, 0x2145, 0x2149, 0x214E, 0x214E, 0x2183, 0x2184, 0x2C00, 0x2C7B,
    0x2C7E, 0x2CE4, 0x2CEB, 0x2CEE, 0x2CF2, 0x2CF3, 0xA640, 0xA66D, 0xA680, 0xA69B, 0xA722, 0xA76F,
    0xA771, 0xA787, 0xA78B, 0xA78E, 0xAB70, 0xABBF, 0xFB00, 0xFB06, 0xFB13, 0xFB17, 0xFF21, 0xFF3A,
    0xFF41, 0xFF5A };
static const uint32_t kvmem__deepseek_letters2[] = {
    0x10400, 0x1044F, 0x104B0, 0x104D3, 0x104D8, 0x104FB, 0x10C80, 0x10CB2, 0x10CC0, 0x10CF2, 0x118A0,
    0x118DF, 0x1E900, 0x1E943 };
static int kvmem__deepseek_letter(uint32_t x) {
    int lo = 0, hi = (int)(sizeof kvmem__deepseek_letters / sizeof kvmem__deepseek_letters[0] / 2), i;
    x = KVMEM__CP(x);
    if (x > 0xffff) {
        for (i = 0; i < 14; i += 2)
            if (x >= kvmem__deepseek_letters2[i] && x <= kvmem__deepseek_letters2[i + 1]) return 1;
        return 0;
    }
    while (hi - lo > 1) {
        const int mid = lo + (hi - lo) / 2;
        if (kvmem__deepseek_letters[2 * mid] <= x) lo = mid;
        else hi = mid;
    }
    return x >= kvmem__deepseek_letters[2 * lo] && x <= kvmem__deepseek_letters[2 * lo + 1];
}
static int kvmem__deepseek_punct(uint32_t x) { /* white space (U+3000) never matches */
    if (KVMEM__CLS(x) == KVMEM__U_SPACE) return 0;
    x = KVMEM__CP(x);
    return (x >= '!' && x <= '/') || (x >= ':' && x <= '~') || (x >= 0xff01 && x <= 0xff0f) ||
           (x >= 0xff1a && x <= 0xff5e) || (x >= 0x2018 && x <= 0x201f) || (x >= 0x3000 && x <= 0x3002);
}
static size_t kvmem__pre_newline(const uint32_t *c, size_t p, size_t e) {
    (void)e;
    return kvmem__crlf(c[p]) ? p + 1 : p;
}
static size_t kvmem__pre_deepseek_letters(const uint32_t *c, size_t p, size_t e) {
    size_t q = p + (KVMEM__CLS(c[p]) == KVMEM__U_SPACE ? 1 : 0);
    if (q >= e || !kvmem__deepseek_letter(c[q])) return p;
    while (q < e && kvmem__deepseek_letter(c[q])) q++;
    return q;
}
static size_t kvmem__pre_deepseek_punct(const uint32_t *c, size_t p, size_t e) {
    size_t q = p + (KVMEM__CLS(c[p]) == KVMEM__U_SPACE ? 1 : 0);
    if (q >= e || !kvmem__deepseek_punct(c[q])) return p;
    while (q < e && kvmem__deepseek_punct(c[q])) q++;
    return q;
}
static size_t kvmem__pre_space_class(const uint32_t *c, size_t p, size_t e, int cls) {
    size_t q = p + (KVMEM__CLS(c[p]) == KVMEM__U_SPACE ? 1 : 0);
    if (q >= e || KVMEM__CLS(c[q]) != cls) return p;
    while (q < e && KVMEM__CLS(c[q]) == cls) q++;
    return q;
}
static size_t kvmem__pre_space_letters(const uint32_t *c, size_t p, size_t e) {
    return kvmem__pre_space_class(c, p, e, KVMEM__U_LETTER);
}
static size_t kvmem__pre_space_punct(const uint32_t *c, size_t p, size_t e) {
    return kvmem__pre_space_class(c, p, e, KVMEM__U_PUNCT);
}
static size_t kvmem__pre_cjk(const uint32_t *c, size_t p, size_t e) {
    for (; p < e; p++) {
        const uint32_t x = KVMEM__CP(c[p]);
        if (KVMEM__CLS(c[p]) == KVMEM__U_SPACE) break;
        if (!((x >= 0x800 && x <= 0x9fa5) || (x >= 0xac00 && x <= 0xd7ff))) break;
    }
    return p;
}
/* \s+$ : called at the first of a run only (a later start could not match either) */
static size_t kvmem__pre_tail(const uint32_t *c, size_t p, size_t e) {
    size_t q = p;
    if (KVMEM__CLS(c[p]) != KVMEM__U_SPACE || KVMEM__CLS(c[e - 1]) != KVMEM__U_SPACE) return p;
    if (!(c[p] & KVMEM__WORD) && KVMEM__CLS(c[p - 1]) == KVMEM__U_SPACE) return p;
    while (q < e && KVMEM__CLS(c[q]) == KVMEM__U_SPACE) q++;
    return q == e ? e : p;
}

typedef enum kvmem__rule {
    KVMEM__RULE_DEFAULT, KVMEM__RULE_GPT2, KVMEM__RULE_LLAMA3, KVMEM__RULE_QWEN2, KVMEM__RULE_STARCODER,
    KVMEM__RULE_FALCON, KVMEM__RULE_DEEPSEEK_LLM, KVMEM__RULE_DEEPSEEK_CODER, KVMEM__N_RULES
} kvmem__rule;
static const kvmem__match_fn kvmem__rules[KVMEM__N_RULES][6] = {
    {kvmem__pre_default_punct, kvmem__pre_gpt2, kvmem__pre_numbers, kvmem__pre_3digits, NULL, NULL},
    {kvmem__pre_gpt2, NULL, NULL, NULL, NULL, NULL},
    {kvmem__pre_llama3, NULL, NULL, NULL, NULL, NULL},
    {kvmem__pre_qwen2, NULL, NULL, NULL, NULL, NULL},
    {kvmem__pre_number, kvmem__pre_gpt2, NULL, NULL, NULL, NULL},
    {kvmem__pre_falcon_punct, kvmem__pre_gpt2, kvmem__pre_3digits, NULL, NULL, NULL},
    {kvmem__pre_newline, kvmem__pre_deepseek_letters, kvmem__pre_deepseek_punct, kvmem__pre_tail,
     kvmem__pre_cjk, kvmem__pre_numbers},
    {kvmem__pre_newline, kvmem__pre_space_letters, kvmem__pre_space_punct, kvmem__pre_cjk,
     kvmem__pre_number, NULL} };

/* Names that tokenizer.ggml.pre may have. whole: a word that is a token is taken without merging. */
typedef struct kvmem__pre { const char *name; unsigned char rule, whole, add_bos; } kvmem__pre;
static const kvmem__pre kvmem__pres[] = {
    {"default", KVMEM__RULE_DEFAULT, 0, 0},          {"gpt-2", KVMEM__RULE_GPT2, 0, 0},
    {"phi-2", KVMEM__RULE_GPT2, 0, 0},               {"mpt", KVMEM__RULE_GPT2, 0, 0},
    {"olmo", KVMEM__RULE_GPT2, 0, 0},                {"jais", KVMEM__RULE_GPT2, 0, 0},
    {"trillion", KVMEM__RULE_GPT2, 0, 0},            {"mellum", KVMEM__RULE_GPT2, 0, 0},
    {"gigachat", KVMEM__RULE_GPT2, 0, 0},            {"exaone4", KVMEM__RULE_GPT2, 0, 0},
    {"granite-docling", KVMEM__RULE_GPT2, 0, 0},     {"llama-bpe", KVMEM__RULE_LLAMA3, 1, 1},
    {"llama3", KVMEM__RULE_LLAMA3, 1, 1},            {"llama-v3", KVMEM__RULE_LLAMA3, 1, 1},
    {"falcon3", KVMEM__RULE_LLAMA3, 1, 1},           {"falcon-h1", KVMEM__RULE_LLAMA3, 1, 1},
    {"pixtral", KVMEM__RULE_LLAMA3, 1, 1},           {"midm-2.0", KVMEM__RULE_LLAMA3, 1, 1},
    {"lfm2", KVMEM__RULE_LLAMA3, 1, 1},              {"dbrx", KVMEM__RULE_LLAMA3, 0, 0},
    {"smaug-bpe", KVMEM__RULE_LLAMA3, 0, 0},         {"glm4", KVMEM__RULE_LLAMA3, 0, 0},
    {"chatglm-bpe", KVMEM__RULE_LLAMA3, 0, 0},       {"qwen2", KVMEM__RULE_QWEN2, 0, 0},
    {"deepseek-r1-qwen", KVMEM__RULE_QWEN2, 0, 0},   {"stablelm2", KVMEM__RULE_QWEN2, 0, 0},
    {"megrez", KVMEM__RULE_QWEN2, 0, 0},             {"hunyuan", KVMEM__RULE_QWEN2, 0, 0},
    {"solar-open", KVMEM__RULE_QWEN2, 0, 0},         {"grok-2", KVMEM__RULE_QWEN2, 0, 0},
    {"starcoder", KVMEM__RULE_STARCODER, 0, 0},      {"refact", KVMEM__RULE_STARCODER, 0, 0},
    {"smollm", KVMEM__RULE_STARCODER, 0, 0},         {"command-r", KVMEM__RULE_STARCODER, 0, 0},
    {"codeshell", KVMEM__RULE_STARCODER, 0, 0},      {"exaone", KVMEM__RULE_STARCODER, 0, 0},
    {"minerva-7b", KVMEM__RULE_STARCODER, 0, 0},     {"falcon", KVMEM__RULE_FALCON, 0, 0},
    {"deepseek-llm", KVMEM__RULE_DEEPSEEK_LLM, 0, 0},
    {"deepseek-coder", KVMEM__RULE_DEEPSEEK_CODER, 0, 0} };

/* Mark the words of c (n > 0). */
static void kvmem__split(uint32_t *c, size_t n, int rule) {
    int stage;
    c[0] |= KVMEM__WORD;
    for (stage = 0; stage < 6 && kvmem__rules[rule][stage]; stage++) {
        const kvmem__match_fn match = kvmem__rules[rule][stage];
        size_t a, b, p, q;
        for (a = 0; a < n; a = b) {
            for (b = a + 1; b < n && !(c[b] & KVMEM__WORD);) b++;
            for (p = a; p < b; p = q > p ? q : p + 1) {
                q = match(c, p, b);
                if (q == p) continue;
                c[p] |= KVMEM__WORD;
                if (q < b) c[q] |= KVMEM__WORD;
            }
        }
    }
}

/* ==== >>tokenizer : vocabularies ==================================================================
   A vocabulary is a list of pieces. Text becomes ids in three steps: special tokens are cut out; BPE cuts
   the rest into words; inside a word the best pair of neighbours is joined again and again (see
   tokenize). SentencePiece writes a space as U+2581 and ranks a pair by the score of the piece it makes;
   byte-level BPE writes each byte as one printable character and ranks a pair by its line in the list of
   merges. Pieces and merges stay where they are, in the file's bytes; hash tables find them by text. */
#define KVMEM__TOK_MAX 0x1000000 /* most pieces or merges */

/* FNV-1a over 32 bits, folded so that low bits make a table index. */
#define KVMEM__TOK_HASH 2166136261u
static uint32_t kvmem__tok_hash(uint32_t h, const uint8_t *s, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) h = (h ^ s[i]) * 16777619u;
    return h;
}
static uint32_t kvmem__tok_fold(uint32_t h) { return h ^ h >> 15; }

/* Piece of exactly these bytes, or -1; the second never finds what plain text must not become. */
static int kvmem__tok_find(const kvmem_tokenizer *t, const uint8_t *s, size_t n) {
    uint32_t h, i;
    if (n == 0 || n > t->max_piece) return -1;
    h = kvmem__tok_fold(kvmem__tok_hash(KVMEM__TOK_HASH, s, n));
    for (i = h & t->table_mask; t->table[2 * i]; i = (i + 1) & t->table_mask) {
        const kvmem_piece *p;
        if (t->table[2 * i + 1] != h) continue;
        p = &t->piece[t->table[2 * i] - 1];
        if (p->len == n && !memcmp(t->base + p->at, s, n)) return (int)(t->table[2 * i] - 1);
    }
    return -1;
}
static int kvmem__tok_find_plain(const kvmem_tokenizer *t, const uint8_t *s, size_t n) {
    const int id = kvmem__tok_find(t, s, n);
    return id >= 0 && t->piece[id].closed ? -1 : id;
}
static void kvmem__tok_enter(kvmem_tokenizer *t, int id) { /* equal texts: the lowest id is found */
    const kvmem_piece *p = &t->piece[id];
    uint32_t h, i;
    if (p->len == 0 || kvmem__tok_find(t, t->base + p->at, p->len) >= 0) return;
    h = kvmem__tok_fold(kvmem__tok_hash(KVMEM__TOK_HASH, t->base + p->at, p->len));
    for (i = h & t->table_mask; t->table[2 * i];) i = (i + 1) & t->table_mask;
    t->table[2 * i] = (uint32_t)id + 1;
    t->table[2 * i + 1] = h;
}

/* Rank of the merge of two neighbouring symbols (la and lb bytes at s), or -1. A merge is the text
   "left right"; symbols hold no space, so comparing around the space is enough. */
static int kvmem__tok_rank(const kvmem_tokenizer *t, const uint8_t *s, size_t la, size_t lb) {
    uint32_t h, i;
    if (la + lb + 1 > t->max_merge) return -1;
    h = kvmem__tok_hash(KVMEM__TOK_HASH, s, la);
    h = (h ^ ' ') * 16777619u;
    h = kvmem__tok_fold(kvmem__tok_hash(h, s + la, lb));
    for (i = h & t->merge_mask; t->merge_table[2 * i]; i = (i + 1) & t->merge_mask) {
        const uint8_t *m;
        if (t->merge_table[2 * i + 1] != h) continue;
        m = t->merge_base + t->merge_at[t->merge_table[2 * i] - 1];
        if (kvmem__le64(m) == la + lb + 1 && !memcmp(m + 8, s, la) && m[8 + la] == ' ' &&
            !memcmp(m + 9 + la, s + la, lb)) return (int)(t->merge_table[2 * i] - 1);
    }
    return -1;
}
static kvmem_status kvmem__tok_enter_merge(kvmem_tokenizer *t, int rank) { /* the first of equals wins */
    const uint8_t *m = t->merge_base + t->merge_at[rank] + 8;
    const size_t len = (size_t)kvmem__le64(m - 8);
    size_t la;
    uint32_t h, i;
    for (la = 1; la < len && m[la] != ' ';) la++;
    if (la + 1 >= len)
        return kvmem__fail(&t->error, KVMEM_BAD_FILE,
                           "tokenizer.ggml.merges: merge %d is not two parts with a space between", rank);
    h = kvmem__tok_fold(kvmem__tok_hash(KVMEM__TOK_HASH, m, len));
    for (i = h & t->merge_mask; t->merge_table[2 * i]; i = (i + 1) & t->merge_mask) {
        const uint8_t *o = t->merge_base + t->merge_at[t->merge_table[2 * i] - 1];
        if (t->merge_table[2 * i + 1] == h && kvmem__le64(o) == len && !memcmp(o + 8, m, len))
            return KVMEM_OK;
    }
    t->merge_table[2 * i] = (uint32_t)rank + 1;
    t->merge_table[2 * i + 1] = h;
    return KVMEM_OK;
}

/* Orders of special tokens: the longest first (then the lower id), or by their bytes. */
static int kvmem__tok_before(const kvmem_tokenizer *t, int a, int b, int by_bytes) {
    const kvmem_piece *p = &t->piece[a], *q = &t->piece[b];
    int c;
    if (!by_bytes) return p->len != q->len ? p->len > q->len : a < b;
    c = memcmp(t->base + p->at, t->base + q->at, KVMEM__MIN(p->len, q->len));
    if (c == 0 && p->len != q->len) c = p->len < q->len ? -1 : 1;
    return c ? c < 0 : a < b;
}
static void kvmem__tok_sort(const kvmem_tokenizer *t, int *id, int n, int by_bytes) { /* heap sort */
    int i, end;
    for (i = n / 2 - 1, end = n; end > 1;) {
        int root, child, v;
        if (i >= 0) { root = i--; v = id[root]; }
        else { end--; v = id[end]; id[end] = id[0]; root = 0; }
        for (; (child = 2 * root + 1) < end; root = child) {
            if (child + 1 < end && kvmem__tok_before(t, id[child], id[child + 1], by_bytes)) child++;
            if (!kvmem__tok_before(t, v, id[child], by_bytes)) break;
            id[root] = id[child];
        }
        id[root] = v;
    }
}

static size_t kvmem__tok_slots(int n) { /* a power of two with room for n entries at 2/3 load or less */
    size_t s = 16;
    while (s < (size_t)n + (size_t)n / 2) s *= 2;
    return s;
}
/* One allocation for all tables. n_special tokens are looked for in text. */
static kvmem_status kvmem__tok_alloc(kvmem_tokenizer *t, int n_special) {
    const size_t pieces = (size_t)t->n_vocab * sizeof(kvmem_piece), slots = kvmem__tok_slots(t->n_vocab);
    const size_t m_slots = t->n_merges ? kvmem__tok_slots(t->n_merges) : 0;
    const size_t runs = t->kind == KVMEM_VOCAB_BPE ? KVMEM__UNICODE_RUNS : 0;
    const size_t ints = 2 * slots + 2 * m_slots + (size_t)t->n_merges + (size_t)n_special + runs;
    uint32_t *u; /* counts are at most KVMEM__TOK_MAX: no sum here can overflow 32 bits */
    t->block_size = pieces + 4 * ints;
    t->block = kvmem__alloc(&t->allocator, t->block_size);
    if (!t->block)
        return kvmem__fail(&t->error, KVMEM_NO_MEMORY, "no memory for a vocabulary of %d pieces (%zu bytes)",
                           t->n_vocab, t->block_size);
    memset(t->block, 0, t->block_size);
    t->piece = (kvmem_piece *)t->block;
    u = (uint32_t *)(void *)(t->piece + t->n_vocab);
    t->table = u;
    t->table_mask = (uint32_t)slots - 1;
    u += 2 * slots;
    t->merge_table = u;
    t->merge_mask = m_slots ? (uint32_t)m_slots - 1 : 0;
    u += 2 * m_slots;
    t->merge_at = u;
    u += t->n_merges;
    t->special = (int *)(void *)u;
    u += n_special;
    t->runs = runs ? u : NULL;
    if (runs) kvmem__unicode_unpack(t->runs);
    return KVMEM_OK;
}

KVMEM_API void kvmem_tokenizer_close(kvmem_tokenizer *t) {
    kvmem_error e;
    if (!t) return;
    kvmem__release(&t->allocator, t->block, t->block_size);
    e = t->error;
    memset(t, 0, sizeof *t);
    t->error = e; /* still tells why an open failed */
}
KVMEM_API const char *kvmem_tokenizer_pre_name(const kvmem_tokenizer *t) {
    return t->kind == KVMEM_VOCAB_BPE ? kvmem__pres[t->pre].name : "-";
}

static int kvmem__same(const char *name, const uint8_t *s, size_t n) {
    return strlen(name) == n && !memcmp(name, s, n);
}
/* The byte that a piece "<0xAB>" names, or -1. */
static int kvmem__tok_hex(const uint8_t *s, size_t n) {
    int v = 0, i;
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    for (i = 3; i < 5; i++) {
        if (s[i] >= '0' && s[i] <= '9') v = v * 16 + s[i] - '0';
        else if (s[i] >= 'A' && s[i] <= 'F') v = v * 16 + s[i] - 'A' + 10;
        else if (s[i] >= 'a' && s[i] <= 'f') v = v * 16 + s[i] - 'a' + 10;
        else return -1;
    }
    return v;
}

/* Control tokens that files do not always mark as such, known by name. 1: ends a turn; 2: ends the
   generation, too; 4: neither (fill-in-the-middle marks). In order of preference as end of turn. */
typedef struct kvmem__known { const char *name; int what; } kvmem__known;
static const kvmem__known kvmem__knowns[] = {
    {"<|eot_id|>", 1}, {"<|im_end|>", 1}, {"<|end|>", 1}, {"<end_of_turn>", 1}, {"<|endoftext|>", 1},
    {"<|end_of_text|>", 1}, {"<EOT>", 1}, {"_<EOT>", 1}, {"[EOT]", 1}, {"<end_of_utterance>", 1},
    {"<\xef\xbd\x9c" "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>", 1}, {"<|eom_id|>", 2},
    {"<|return|>", 2}, {"<|call|>", 2}, {"</s>", 2}, {"[EOS]", 2}, {"<eos>", 2}, {"<|fim_pad|>", 2},
    {"<fim-pad>", 2}, {"<fim_pad>", 2}, {"<|fim_repo|>", 2}, {"<|repo_name|>", 2}, {"<fim-repo>", 2},
    {"<reponame>", 2}, {"<|file_sep|>", 2}, {"<|fim_prefix|>", 4}, {"<fim-prefix>", 4},
    {"<fim_prefix>", 4}, {"<|fim_suffix|>", 4}, {"<fim-suffix>", 4}, {"<fim_suffix>", 4},
    {"<|fim_middle|>", 4}, {"<fim-middle>", 4}, {"<fim_middle>", 4},
    {"\xe2\x96\x81<PRE>", 4}, {"\xe2\x96\x81<SUF>", 4}, {"\xe2\x96\x81<MID>", 4},
    {"<\xef\xbd\x9c" "fim\xe2\x96\x81" "begin\xef\xbd\x9c>", 4},
    {"<\xef\xbd\x9c" "fim\xe2\x96\x81hole\xef\xbd\x9c>", 4},
    {"<\xef\xbd\x9c" "fim\xe2\x96\x81" "end\xef\xbd\x9c>", 4} };

static void kvmem__tok_known(kvmem_tokenizer *t) {
    size_t i;
    for (i = 0; i < sizeof kvmem__knowns / sizeof kvmem__knowns[0]; i++) {
        const kvmem__known *k = &kvmem__knowns[i];
        const int id = kvmem__tok_find(t, (const uint8_t *)k->name, strlen(k->name));
        if (id < 0) continue;
        t->piece[id].type = 3;
        if (k->what & 3) t->piece[id].eog = 1;
        if (k->what == 1 && t->eot < 0) t->eot = id;
    }
    if (t->eos >= 0) t->piece[t->eos].eog = 1;
    if (t->eot >= 0) t->piece[t->eot].eog = 1;
}
/* The tokens looked for in text: control, user-defined, unknown. */
static int kvmem__tok_is_special_type(int type) { return type >= 2 && type <= 4; }
static void kvmem__tok_specials(kvmem_tokenizer *t, int room) {
    int i, n = 0, k;
    for (i = 0; i < t->n_vocab && n < room; i++)
        if (kvmem__tok_is_special_type(t->piece[i].type) && t->piece[i].len) t->special[n++] = i;
    t->n_special = n;
    kvmem__tok_sort(t, t->special, n, 1);
    for (i = k = 0; i <= 256; i++) {
        while (k < n && t->base[t->piece[t->special[k]].at] < i) k++;
        t->special_first[i] = k;
    }
}
/* After all pieces are in: byte tokens, and may SPM text be cut before each U+2581 that follows another
   character? Not if a piece has one inside. */
static void kvmem__tok_finish(kvmem_tokenizer *t) {
    int i, b;
    for (b = 0; b < 256; b++) {
        static const char hex[] = "0123456789ABCDEF";
        uint8_t name[6];
        memcpy(name, "<0x00>", 6);
        name[3] = (uint8_t)hex[b >> 4];
        name[4] = (uint8_t)hex[b & 15];
        t->byte_id[b] = kvmem__tok_find(t, name, 6);
        name[0] = (uint8_t)b;
        if (t->byte_id[b] < 0) t->byte_id[b] = kvmem__tok_find(t, name, 1);
    }
    t->cut_words = t->kind == KVMEM_VOCAB_SPM;
    for (i = 0; i < t->n_vocab && t->cut_words; i++) {
        const kvmem_piece *p = &t->piece[i];
        const uint8_t *s = t->base + p->at;
        uint32_t j, other = 0;
        for (j = 0; j < p->len; j++) {
            const int mark = p->len - j >= 3 && !memcmp(s + j, "\xe2\x96\x81", 3);
            if (mark && other) t->cut_words = 0;
            if (mark) j += 2;
            else other = 1;
        }
    }
    if (t->bos < 0) t->add_bos = 0;
    if (t->eos < 0) t->add_eos = 0;
}

static kvmem_status kvmem__tok_id(kvmem_tokenizer *t, const kvmem_gguf *g, const char *key, int *out) {
    int64_t v;
    if (!kvmem_gguf_int(g, key, &v)) return KVMEM_OK;
    if (v == -1 || v == 0xffffffff) { *out = -1; return KVMEM_OK; }
    if (v < 0 || v >= t->n_vocab)
        return kvmem__fail(&t->error, KVMEM_BAD_FILE, "%s is %lld, but the vocabulary has %d pieces", key,
                           (long long)v, t->n_vocab);
    *out = (int)v;
    return KVMEM_OK;
}
/* An array of the metadata with items of one type; NULL and an error if it is something else. */
static const kvmem_gguf_kv *kvmem__tok_array(kvmem_tokenizer *t, const kvmem_gguf *g, const char *key,
                                             int item_type, uint64_t least, int needed, kvmem_status *st) {
    const kvmem_gguf_kv *kv = kvmem_gguf_find(g, key);
    *st = KVMEM_OK;
    if (!kv && !needed) return NULL;
    if (!kv) *st = kvmem__fail(&t->error, KVMEM_BAD_FILE, "the file has no %s", key);
    else if (kv->type != KVMEM__GGUF_ARRAY || kv->item_type != item_type)
        *st = kvmem__fail(&t->error, KVMEM_BAD_FILE, "%s is not an array of the right type", key);
    else if (kv->n < least)
        *st = kvmem__fail(&t->error, KVMEM_BAD_FILE, "%s has %lld items, fewer than %lld", key,
                          (long long)kv->n, (long long)least);
    else if (kv->n > KVMEM__TOK_MAX || kv->size > 0xffffffffu)
        *st = kvmem__fail(&t->error, KVMEM_UNSUPPORTED, "%s has more than 2^24 items or 4 GiB", key);
    return *st == KVMEM_OK ? kv : NULL;
}
static kvmem_status kvmem__tok_kind(kvmem_tokenizer *t, const kvmem_gguf *g) {
    const char *s;
    size_t n;
    if (!kvmem_gguf_string(g, "tokenizer.ggml.model", &s, &n))
        return kvmem__fail(&t->error, KVMEM_BAD_FILE, "the file has no tokenizer.ggml.model");
    if (kvmem__same("llama", (const uint8_t *)s, n)) {
        t->kind = KVMEM_VOCAB_SPM;
        t->add_bos = t->add_space_prefix = 1;
        t->bos = 1;
        t->eos = 2;
        t->unk = 0;
        return KVMEM_OK;
    }
    if (!kvmem__same("gpt2", (const uint8_t *)s, n))
        return kvmem__fail(&t->error, KVMEM_UNSUPPORTED, "tokenizer.ggml.model \"%.*s\": only llama and gpt2",
                           (int)KVMEM__MIN(n, 64), s);
    t->kind = KVMEM_VOCAB_BPE;
    t->pre = 0; /* files from before this key: default */
    if (kvmem_gguf_string(g, "tokenizer.ggml.pre", &s, &n)) {
        const int count = (int)(sizeof kvmem__pres / sizeof kvmem__pres[0]);
        while (t->pre < count && !kvmem__same(kvmem__pres[t->pre].name, (const uint8_t *)s, n)) t->pre++;
        if (t->pre == count) {
            t->pre = 0;
            return kvmem__fail(&t->error, KVMEM_UNSUPPORTED, "tokenizer.ggml.pre \"%.*s\" is not known",
                               (int)KVMEM__MIN(n, 64), s);
        }
    }
    t->ignore_merges = kvmem__pres[t->pre].whole;
    t->add_bos = kvmem__pres[t->pre].add_bos;
    return KVMEM_OK;
}
/* Phi-3 swallows white space after its special tokens; the file says so only by the model's name. */
static void kvmem__tok_phi3(kvmem_tokenizer *t, const kvmem_gguf *g) {
    static const char *const keep[] = {"<unk>", "<s>", "<|endoftext|>"};
    const char *s;
    size_t n, i, j;
    int phi3 = 0, id;
    if (!kvmem_gguf_string(g, "general.name", &s, &n)) return;
    for (i = 0; i + 4 <= n && !phi3; i++) {
        char low[5];
        for (j = 0; j < 5; j++) {
            low[j] = i + j < n ? s[i + j] : 0;
            if (low[j] >= 'A' && low[j] <= 'Z') low[j] = (char)(low[j] + 32);
        }
        phi3 = !memcmp(low, "phi3", 4) || !memcmp(low, "phi-3", 5);
    }
    if (!phi3) return;
    for (i = 0; i < (size_t)t->n_special; i++) t->piece[t->special[i]].strip = 1;
    if ((id = kvmem_token_find(t, "</s>", 4)) >= 0) t->piece[id].strip = 1;
    for (i = 0; i < 3; i++)
        if ((id = kvmem_token_find(t, keep[i], strlen(keep[i]))) >= 0) t->piece[id].strip = 0;
}
static kvmem_status kvmem__tok_pieces(kvmem_tokenizer *t, const kvmem_gguf_kv *tokens,
                                      const kvmem_gguf_kv *scores, const kvmem_gguf_kv *types) {
    const uint8_t *at = tokens->data;
    int i;
    t->base = tokens->data;
    for (i = 0; i < t->n_vocab; i++) {
        kvmem_piece *p = &t->piece[i];
        size_t len;
        const char *s = kvmem__gguf_next_string(&at, &len);
        int64_t type = 1;
        double score = 0;
        if (types && (!kvmem__gguf_item_int(types, (uint64_t)i, &type) || type < 0 || type > 6)) type = 0;
        if (scores) kvmem__gguf_item_float(scores, (uint64_t)i, &score);
        if (score != score)
            return kvmem__fail(&t->error, KVMEM_BAD_FILE, "tokenizer.ggml.scores: score %d is not a number", i);
        p->at = (uint32_t)((const uint8_t *)s - t->base);
        p->len = (uint32_t)len;
        p->score = (float)score;
        p->type = (unsigned char)type;
        p->closed = type == 2 || type == 3;
        if (len > t->max_piece) t->max_piece = len;
        kvmem__tok_enter(t, i);
    }
    return KVMEM_OK;
}
static kvmem_status kvmem__tok_merges(kvmem_tokenizer *t, const kvmem_gguf_kv *merges) {
    const uint8_t *at = merges->data;
    int i;
    t->merge_base = merges->data;
    for (i = 0; i < t->n_merges; i++) {
        size_t len;
        t->merge_at[i] = (uint32_t)(at - merges->data);
        kvmem__gguf_next_string(&at, &len);
        if (len > t->max_merge) t->max_merge = (uint32_t)len;
        KVMEM__TRY(kvmem__tok_enter_merge(t, i));
    }
    return KVMEM_OK;
}
static kvmem_status kvmem__tok_open(kvmem_tokenizer *t, const kvmem_gguf *g) {
    const kvmem_gguf_kv *tokens, *scores, *types, *merges = NULL;
    kvmem_status st;
    int64_t v;
    int i, n_special = (int)(sizeof kvmem__knowns / sizeof kvmem__knowns[0]);
    KVMEM__TRY(kvmem__tok_kind(t, g));
    tokens = kvmem__tok_array(t, g, "tokenizer.ggml.tokens", KVMEM__GGUF_STRING, 1, 1, &st);
    KVMEM__TRY(st);
    t->n_vocab = (int)tokens->n;
    scores = kvmem__tok_array(t, g, "tokenizer.ggml.scores", KVMEM__GGUF_F32, tokens->n, 0, &st);
    KVMEM__TRY(st);
    types = kvmem__tok_array(t, g, "tokenizer.ggml.token_type", KVMEM__GGUF_I32, tokens->n, 0, &st);
    KVMEM__TRY(st);
    if (t->kind == KVMEM_VOCAB_BPE) {
        merges = kvmem__tok_array(t, g, "tokenizer.ggml.merges", KVMEM__GGUF_STRING, 0, 1, &st);
        KVMEM__TRY(st);
        t->n_merges = (int)merges->n;
    }
    if (t->bos >= t->n_vocab) t->bos = -1; /* defaults of SPM */
    if (t->eos >= t->n_vocab) t->eos = -1;
    KVMEM__TRY(kvmem__tok_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos));
    KVMEM__TRY(kvmem__tok_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos));
    KVMEM__TRY(kvmem__tok_id(t, g, "tokenizer.ggml.eot_token_id", &t->eot));
    KVMEM__TRY(kvmem__tok_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unk));
    if (kvmem_gguf_int(g, "tokenizer.ggml.add_bos_token", &v)) t->add_bos = v != 0;
    if (kvmem_gguf_int(g, "tokenizer.ggml.add_eos_token", &v)) t->add_eos = v != 0;
    if (kvmem_gguf_int(g, "tokenizer.ggml.add_space_prefix", &v)) t->add_space_prefix = v != 0;
    for (i = 0; types && i < t->n_vocab; i++)
        if (kvmem__gguf_item_int(types, (uint64_t)i, &v) && v >= 2 && v <= 4) n_special++;
    KVMEM__TRY(kvmem__tok_alloc(t, n_special));
    KVMEM__TRY(kvmem__tok_pieces(t, tokens, scores, types));
    if (merges) KVMEM__TRY(kvmem__tok_merges(t, merges));
    kvmem__tok_known(t);
    kvmem__tok_specials(t, n_special);
    kvmem__tok_finish(t);
    kvmem__tok_phi3(t, g);
    return KVMEM_OK;
}
static void kvmem__tok_begin(kvmem_tokenizer *t, const kvmem_allocator *allocator) {
    memset(t, 0, sizeof *t);
    t->allocator = kvmem__allocator(allocator);
    t->bos = t->eos = t->eot = t->unk = -1;
}
static kvmem_status kvmem__tok_end(kvmem_tokenizer *t, kvmem_status st) {
    if (st != KVMEM_OK) kvmem_tokenizer_close(t);
    return st;
}
KVMEM_API kvmem_status kvmem_tokenizer_open_gguf(kvmem_tokenizer *t, const kvmem_gguf *g,
                                                 const kvmem_allocator *allocator) {
    if (!t) return KVMEM_BAD_ARGUMENT;
    kvmem__tok_begin(t, allocator);
    if (!g) return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "no GGUF was given");
    return kvmem__tok_end(t, kvmem__tok_open(t, g));
}

/* llama2.c's tokenizer.bin: int32 longest piece, then per piece float32 score, int32 length, bytes. */
static kvmem_status kvmem__tok_open_bin(kvmem_tokenizer *t, const uint8_t *b, size_t size, int n_vocab) {
    size_t at = 4;
    int i;
    if (size < 4) return kvmem__fail(&t->error, KVMEM_BAD_FILE, "tokenizer.bin has only %zu bytes", size);
    if (size > 0xffffffffu) return kvmem__fail(&t->error, KVMEM_UNSUPPORTED, "tokenizer.bin passes 4 GiB");
    for (i = 0; n_vocab ? i < n_vocab : at < size; i++) { /* count and check */
        if (i == KVMEM__TOK_MAX)
            return kvmem__fail(&t->error, KVMEM_UNSUPPORTED, "tokenizer.bin has more than 2^24 pieces");
        if (size - at < 8 || size - at - 8 < kvmem__le32(b + at + 4))
            return kvmem__fail(&t->error, KVMEM_BAD_FILE, "tokenizer.bin ends inside piece %d", i);
        if (kvmem__lef32(b + at) != kvmem__lef32(b + at))
            return kvmem__fail(&t->error, KVMEM_BAD_FILE, "tokenizer.bin: score %d is not a number", i);
        at += 8 + (size_t)kvmem__le32(b + at + 4);
    }
    if (i == 0) return kvmem__fail(&t->error, KVMEM_BAD_FILE, "tokenizer.bin has no pieces");
    t->n_vocab = i;
    KVMEM__TRY(kvmem__tok_alloc(t, 3));
    t->base = b;
    for (i = 0, at = 4; i < t->n_vocab; i++) {
        kvmem_piece *p = &t->piece[i];
        p->score = kvmem__lef32(b + at);
        p->len = kvmem__le32(b + at + 4);
        p->at = (uint32_t)(at + 8);
        p->type = i == 0 ? 2 : i < 3 ? 3 : kvmem__tok_hex(b + at + 8, p->len) >= 0 ? 6 : 1;
        p->closed = i < 3;
        at += 8 + (size_t)p->len;
        if (p->len > t->max_piece) t->max_piece = p->len;
        kvmem__tok_enter(t, i);
    }
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_tokenizer_open_llama2c(kvmem_tokenizer *t, const void *bytes, size_t size,
                                                    int n_vocab, const kvmem_allocator *allocator) {
    kvmem_status st;
    int b;
    if (!t) return KVMEM_BAD_ARGUMENT;
    kvmem__tok_begin(t, allocator);
    t->kind = KVMEM_VOCAB_LLAMA2C;
    if (!bytes || n_vocab < 0)
        return kvmem__tok_end(t, kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "no bytes, or n_vocab below 0"));
    st = kvmem__tok_open_bin(t, (const uint8_t *)bytes, size, n_vocab);
    if (st != KVMEM_OK) return kvmem__tok_end(t, st);
    t->unk = 0;
    t->bos = t->n_vocab > 1 ? 1 : -1; /* run.c stops at BOS: its models learned it as the end of a story */
    t->eos = t->n_vocab > 2 ? 2 : -1;
    if (t->bos >= 0) t->piece[t->bos].eog = 1;
    if (t->eos >= 0) t->piece[t->eos].eog = 1;
    t->add_bos = t->add_space_prefix = 1;
    kvmem__tok_specials(t, 3);
    kvmem__tok_finish(t);
    for (b = 0; b < 256; b++) t->byte_id[b] = b + 3 < t->n_vocab ? b + 3 : -1;
    return KVMEM_OK;
}

/* ==== >>tokenize : joining the best pair of neighbours =============================================
   A word starts as its characters. Of all neighbouring pairs that may be joined, the best is joined: by
   merge rank (BPE), by score of the joined piece (SPM, llama2.c); among equals the leftmost. A heap holds
   the pairs; one that has changed since it was pushed is recognized by its length and dropped. Each join
   takes one pair out and puts at most two in, so n characters never need more than 2n places, and a run
   of any length costs n log n. */
typedef struct kvmem__tok_sym { uint32_t at, len; int32_t prev, next; } kvmem__tok_sym;
typedef struct kvmem__tok_pair { uint64_t key; uint32_t len; } kvmem__tok_pair; /* rank << 32 | left */
typedef struct kvmem__tok_held { size_t from, to; int k, id; } kvmem__tok_held;

typedef struct kvmem__tok_buf { void *p; size_t size; } kvmem__tok_buf;

typedef struct kvmem__tok {
    const kvmem_tokenizer *t;
    kvmem_error *err;
    int *ids;
    size_t cap, n;
    /* scratch, grown on demand */
    kvmem__tok_buf text;                     /* escaped text, or one byte-encoded word */
    kvmem__tok_buf chars;                    /* BPE: code points with classes */
    kvmem__tok_buf syms, pairs, special;
    kvmem__tok_sym *sym;                     /* of the word at hand */
    kvmem__tok_pair *heap;
    size_t n_heap;
    size_t head; /* bytes that stay a character of their own at the front: llama2.c's space prefix */
} kvmem__tok;

static void kvmem__tok_put(kvmem__tok *w, int id) {
    if (w->n < w->cap) w->ids[w->n] = id;
    w->n++;
}
/* Room for n items; what was there is lost. */
static kvmem_status kvmem__tok_room(kvmem__tok *w, kvmem__tok_buf *b, size_t n, size_t item) {
    size_t need;
    if (!kvmem__mul(n, item, &need)) need = SIZE_MAX;
    if (need <= b->size) return KVMEM_OK;
    kvmem__release(&w->t->allocator, b->p, b->size);
    b->size = need < 0x8000 ? 2 * need : need;
    b->p = kvmem__alloc(&w->t->allocator, b->size);
    if (b->p) return KVMEM_OK;
    b->size = 0;
    return kvmem__fail(w->err, KVMEM_NO_MEMORY, "no memory (%zu bytes) to tokenize", need);
}

static void kvmem__tok_push(kvmem__tok *w, uint64_t key, uint32_t len) {
    kvmem__tok_pair *h = w->heap;
    size_t i = w->n_heap++;
    for (; i > 0 && h[(i - 1) / 2].key > key; i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i].key = key;
    h[i].len = len;
}
static kvmem__tok_pair kvmem__tok_pop(kvmem__tok *w) {
    kvmem__tok_pair *h = w->heap;
    const kvmem__tok_pair top = h[0], v = h[--w->n_heap];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && h[child + 1].key < h[child].key) child++;
        if (h[child].key >= v.key) break;
        h[i] = h[child];
    }
    h[i] = v;
    return top;
}

/* Bytes of the character at s: by its first byte (SPM and BPE, as llama.cpp), or a byte with the
   continuation bytes behind it (llama2.c); never more than n or 4. */
static size_t kvmem__tok_char(const kvmem_tokenizer *t, const uint8_t *s, size_t n) {
    size_t len = 1;
    if (t->kind == KVMEM_VOCAB_LLAMA2C) {
        while (len < n && len < 4 && (s[len] & 0xc0) == 0x80) len++;
        return len;
    }
    if (s[0] >= 0xc0) len = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    return KVMEM__MIN(len, n);
}
/* Push the pair of symbols left and its next, if they may be joined. Smaller keys are joined first. */
static void kvmem__tok_try(kvmem__tok *w, const uint8_t *s, int32_t left) {
    const kvmem_tokenizer *t = w->t;
    const kvmem__tok_sym *a = &w->sym[left], *b;
    const uint8_t *at = s + a->at;
    uint32_t rank;
    int id;
    if (a->next < 0) return;
    b = &w->sym[a->next];
    if (t->kind == KVMEM_VOCAB_BPE) {
        id = kvmem__tok_rank(t, at, a->len, b->len);
        if (id < 0) return;
        rank = (uint32_t)id;
    } else {
        float score;
        id = kvmem__tok_find_plain(t, at, (size_t)a->len + b->len);
        if (id < 0) return;
        score = t->piece[id].score + 0.0f; /* no -0 */
        if (t->kind == KVMEM_VOCAB_LLAMA2C && /* run.c: scores above -1e10; byte tokens do not join */
            (!(score > -1e10f) || kvmem__tok_find_plain(t, at, a->len) < 0 ||
             kvmem__tok_find_plain(t, at + a->len, b->len) < 0)) return;
        memcpy(&rank, &score, 4);
        rank = rank & 0x80000000u ? rank : ~rank & 0x7fffffffu; /* falls as the score rises */
    }
    kvmem__tok_push(w, (uint64_t)rank << 32 | (uint32_t)left, a->len + b->len);
}
/* The token of a finished symbol; if there is none, its bytes (SPM) or characters (BPE). */
static void kvmem__tok_emit(kvmem__tok *w, const uint8_t *s, size_t n) {
    const kvmem_tokenizer *t = w->t;
    const int id = kvmem__tok_find_plain(t, s, n);
    size_t i, len;
    if (id >= 0) { kvmem__tok_put(w, id); return; }
    for (i = 0; i < n; i += len) {
        int part;
        len = 1;
        if (t->kind == KVMEM_VOCAB_BPE) {
            len = kvmem__tok_char(t, s + i, n - i);
            part = kvmem__tok_find_plain(t, s + i, len);
        } else part = t->byte_id[s[i]];
        if (part < 0) part = t->unk;
        if (part >= 0) kvmem__tok_put(w, part);
    }
}
/* One word, n > 0 bytes. */
static kvmem_status kvmem__tok_word(kvmem__tok *w, const uint8_t *s, size_t n) {
    int32_t i, count = 0;
    size_t at, len, most = 1;
    for (at = w->head; at < n; at += kvmem__tok_char(w->t, s + at, n - at)) most++;
    KVMEM__TRY(kvmem__tok_room(w, &w->syms, most, sizeof(kvmem__tok_sym)));
    KVMEM__TRY(kvmem__tok_room(w, &w->pairs, 2 * most, sizeof(kvmem__tok_pair)));
    w->sym = (kvmem__tok_sym *)w->syms.p;
    w->heap = (kvmem__tok_pair *)w->pairs.p;
    for (at = 0; at < n; at += len, count++) {
        len = at == 0 && w->head ? w->head : kvmem__tok_char(w->t, s + at, n - at);
        w->sym[count].at = (uint32_t)at;
        w->sym[count].len = (uint32_t)len;
        w->sym[count].prev = count - 1;
        w->sym[count].next = at + len < n ? count + 1 : -1;
    }
    w->n_heap = 0;
    for (i = 0; i + 1 < count; i++) kvmem__tok_try(w, s, i);
    while (w->n_heap) {
        const kvmem__tok_pair p = kvmem__tok_pop(w);
        kvmem__tok_sym *a = &w->sym[p.key & 0xffffffffu], *b;
        if (a->len == 0 || a->next < 0) continue;
        b = &w->sym[a->next];
        if (a->len + b->len != p.len) continue;
        a->len = p.len;
        b->len = 0;
        a->next = b->next;
        if (b->next >= 0) w->sym[b->next].prev = (int32_t)(a - w->sym);
        if (a->prev >= 0) kvmem__tok_try(w, s, a->prev);
        kvmem__tok_try(w, s, (int32_t)(a - w->sym));
    }
    for (i = 0; i >= 0; i = w->sym[i].next) kvmem__tok_emit(w, s + w->sym[i].at, w->sym[i].len);
    return KVMEM_OK;
}

/* SPM and llama2.c: spaces become U+2581 (SPM), then the text is one word. Where no piece has U+2581
   behind another character nothing joins across such a place, so words can be done one by one: the same
   ids from a heap that stays small. */
static kvmem_status kvmem__tok_spm(kvmem__tok *w, const uint8_t *s, size_t n, int prefix) {
    const int escape = w->t->kind == KVMEM_VOCAB_SPM;
    size_t i, len = 0, from, at, step;
    int was_mark = 1;
    uint8_t *text;
    KVMEM__TRY(kvmem__tok_room(w, &w->text, n + 1, escape ? 3 : 1));
    text = (uint8_t *)w->text.p;
    for (i = prefix ? 0 : 1; i <= n; i++) {
        const uint8_t b = i ? s[i - 1] : (uint8_t)' ';
        if (b == ' ' && escape) { memcpy(text + len, "\xe2\x96\x81", 3); len += 3; }
        else text[len++] = b;
    }
    for (from = at = 0; at < len; at += step) {
        const int mark = len - at >= 3 && !memcmp(text + at, "\xe2\x96\x81", 3);
        step = kvmem__tok_char(w->t, text + at, len - at);
        if (w->t->cut_words && mark && !was_mark && at > from) {
            KVMEM__TRY(kvmem__tok_word(w, text + from, at - from));
            from = at;
        }
        was_mark = mark;
    }
    w->head = prefix && !escape ? 1 : 0;
    return len > from ? kvmem__tok_word(w, text + from, len - from) : KVMEM_OK;
}

/* The character that stands for a byte in a byte-level vocabulary: itself if it is printable in Latin-1,
   else the next free code point from U+0100 on; and back (-1: no byte). */
static uint32_t kvmem__byte_char(unsigned b) {
    if (b < 33) return 256 + b;
    if (b >= 127 && b <= 160) return 256 + 33 + b - 127;
    return b == 173 ? 256 + 67 : b;
}
static int kvmem__char_byte(uint32_t c) {
    if (c < 256) return kvmem__byte_char(c) == c ? (int)c : -1;
    if (c < 256 + 33) return (int)(c - 256);
    if (c < 256 + 67) return (int)(c - 256 - 33 + 127);
    return c == 256 + 67 ? 173 : -1;
}
static kvmem_status kvmem__tok_bpe(kvmem__tok *w, const uint8_t *s, size_t n) {
    size_t i, count = 0, from, to;
    uint32_t *chars;
    KVMEM__TRY(kvmem__tok_room(w, &w->chars, n, sizeof(uint32_t)));
    chars = (uint32_t *)w->chars.p;
    for (i = 0; i < n; count++) {
        uint32_t c;
        i += (size_t)kvmem__utf8_decode(s + i, n - i, &c);
        chars[count] = c | (uint32_t)kvmem__unicode_class(w->t->runs, c) << 21;
    }
    kvmem__split(chars, count, kvmem__pres[w->t->pre].rule);
    for (from = 0; from < count; from = to) {
        size_t len = 0;
        uint8_t *text;
        for (to = from + 1; to < count && !(chars[to] & KVMEM__WORD);) to++;
        KVMEM__TRY(kvmem__tok_room(w, &w->text, to - from, 8));
        text = (uint8_t *)w->text.p;
        for (i = from; i < to; i++) {
            uint8_t b[4];
            const int k = kvmem__utf8_encode(KVMEM__CP(chars[i]), b);
            int j;
            for (j = 0; j < k; j++) len += (size_t)kvmem__utf8_encode(kvmem__byte_char(b[j]), text + len);
        }
        if (w->t->ignore_merges) {
            const int id = kvmem__tok_find_plain(w->t, text, len);
            if (id >= 0) { kvmem__tok_put(w, id); continue; }
        }
        KVMEM__TRY(kvmem__tok_word(w, text, len));
    }
    return KVMEM_OK;
}
static kvmem_status kvmem__tok_text(kvmem__tok *w, const uint8_t *s, size_t n, int after_special) {
    if (n == 0) return KVMEM_OK;
    if (w->t->kind == KVMEM_VOCAB_BPE) return kvmem__tok_bpe(w, s, n);
    return kvmem__tok_spm(w, s, n, w->t->add_space_prefix && after_special);
}

/* Which special tokens stand somewhere in s? found[rank in special] = 1. At each position the
   sorted list is narrowed byte by byte to the tokens that agree with the text so far. */
static void kvmem__tok_scan(const kvmem_tokenizer *t, const uint8_t *s, size_t n, uint8_t *found) {
    size_t i, depth;
    for (i = 0; i < n; i++) {
        int lo = t->special_first[s[i]], hi = t->special_first[s[i] + 1];
        for (depth = 1; lo < hi; depth++) {
            int a, b, end;
            uint8_t next;
            while (lo < hi && t->piece[t->special[lo]].len == depth) found[lo++] = 1;
            if (lo == hi || i + depth == n) break;
            next = s[i + depth];
            for (a = lo, b = hi; a < b;) { /* first with a byte >= next */
                const int mid = a + (b - a) / 2;
                if (t->base[t->piece[t->special[mid]].at + depth] < next) a = mid + 1;
                else b = mid;
            }
            for (end = a, b = hi; end < b;) { /* first with a byte > next */
                const int mid = end + (b - end) / 2;
                if (t->base[t->piece[t->special[mid]].at + depth] <= next) end = mid + 1;
                else b = mid;
            }
            lo = a;
            hi = end;
        }
    }
}
static size_t kvmem__tok_search(const uint8_t *s, size_t from, size_t to, const uint8_t *what, size_t n) {
    while (to - from >= n) {
        const uint8_t *p = (const uint8_t *)memchr(s + from, what[0], to - from - n + 1);
        if (!p) break;
        if (!memcmp(p, what, n)) return (size_t)(p - s);
        from = (size_t)(p - s) + 1;
    }
    return SIZE_MAX;
}
/* Cut out special tokens: the longest first takes all its places, the shorter ones what is left between.
   use (n_use) are the tokens that occur; held (n_use) are the stretches right of a token found, waiting
   while the stretch left of it is searched for the shorter tokens. */
static kvmem_status kvmem__tok_parts(kvmem__tok *w, const uint8_t *s, size_t n, const int *use, int n_use,
                                     kvmem__tok_held *held) {
    size_t from = 0, to = n;
    int k = 0, depth = 0, after = 1;
    for (;;) {
        const kvmem_piece *p;
        size_t at = SIZE_MAX, right;
        for (; k < n_use && from < to; k++) {
            p = &w->t->piece[use[k]];
            at = kvmem__tok_search(s, from, to, w->t->base + p->at, p->len);
            if (at != SIZE_MAX) break;
        }
        if (at != SIZE_MAX) { /* the left side now, token and right side later */
            p = &w->t->piece[use[k]];
            right = at + p->len;
            while (p->strip && right < to && (s[right] == ' ' || (s[right] >= 9 && s[right] <= 13))) right++;
            held[depth].from = right;
            held[depth].to = to;
            held[depth].k = k;
            held[depth++].id = use[k];
            to = at;
            k++;
            continue;
        }
        KVMEM__TRY(kvmem__tok_text(w, s + from, to - from, after));
        if (to > from) after = 0;
        if (depth == 0) return KVMEM_OK;
        depth--;
        kvmem__tok_put(w, held[depth].id);
        after = 1;
        from = held[depth].from;
        to = held[depth].to;
        k = held[depth].k;
    }
}
static kvmem_status kvmem__tok_run(kvmem__tok *w, const uint8_t *s, size_t n, int parse) {
    const kvmem_tokenizer *t = w->t;
    const size_t ns = (size_t)t->n_special;
    kvmem__tok_held *held;
    int *use, i, n_use = 0;
    uint8_t *found;
    if (t->n_special == 0) return kvmem__tok_text(w, s, n, 1);
    KVMEM__TRY(kvmem__tok_room(w, &w->special, ns, sizeof(kvmem__tok_held) + sizeof(int) + 1));
    held = (kvmem__tok_held *)w->special.p;
    use = (int *)(void *)(held + ns);
    found = (uint8_t *)(use + ns);
    memset(found, 0, ns);
    kvmem__tok_scan(t, s, n, found);
    for (i = 0; i < t->n_special; i++)
        if (found[i] && (parse || t->piece[t->special[i]].type == 4))
            use[n_use++] = t->special[i];
    kvmem__tok_sort(t, use, n_use, 0);
    return kvmem__tok_parts(w, s, n, use, n_use, held);
}
KVMEM_API kvmem_status kvmem_tokenize(const kvmem_tokenizer *t, const char *text, size_t len,
                                      unsigned flags, int *ids, size_t cap, size_t *n, kvmem_error *err) {
    kvmem_status st = KVMEM_OK;
    kvmem__tok w;
    if (!t || !n || (!text && len) || (!ids && cap))
        return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "tokenize: a pointer is missing");
    if (t->kind == KVMEM_VOCAB_NONE)
        return kvmem__fail(err, KVMEM_BAD_STATE, "tokenize: the tokenizer is not open");
    if (len > 0x10000000u)
        return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "tokenize: %zu bytes of text, more than 256 MiB", len);
    memset(&w, 0, sizeof w);
    w.t = t;
    w.err = err;
    w.ids = ids;
    w.cap = cap;
    if ((flags & KVMEM_ADD_SPECIAL) && t->add_bos) kvmem__tok_put(&w, t->bos);
    if (len) st = kvmem__tok_run(&w, (const uint8_t *)text, len, (flags & KVMEM_PARSE_SPECIAL) != 0);
    if ((flags & KVMEM_ADD_SPECIAL) && t->add_eos) kvmem__tok_put(&w, t->eos);
    kvmem__release(&t->allocator, w.text.p, w.text.size);
    kvmem__release(&t->allocator, w.chars.p, w.chars.size);
    kvmem__release(&t->allocator, w.syms.p, w.syms.size);
    kvmem__release(&t->allocator, w.pairs.p, w.pairs.size);
    kvmem__release(&t->allocator, w.special.p, w.special.size);
    if (st == KVMEM_OK) *n = w.n;
    return st;
}

/* ==== >>detokenize : ids back to bytes ============================================================
   A piece gives its bytes: SPM reads U+2581 as a space and "<0x0A>" as a byte; byte-level BPE reads its
   characters as bytes; user-defined tokens are plain text; control tokens show only when asked for. */
static int kvmem__tok_valid(const kvmem_tokenizer *t, int id) { return t && id >= 0 && id < t->n_vocab; }

KVMEM_API const char *kvmem_token_piece(const kvmem_tokenizer *t, int id, size_t *len) {
    if (!kvmem__tok_valid(t, id)) return NULL;
    if (len) *len = t->piece[id].len;
    return (const char *)t->base + t->piece[id].at;
}
KVMEM_API int kvmem_token_find(const kvmem_tokenizer *t, const char *piece, size_t len) {
    return t && t->table && piece ? kvmem__tok_find(t, (const uint8_t *)piece, len) : -1;
}
KVMEM_API int kvmem_token_is_eog(const kvmem_tokenizer *t, int id) {
    return kvmem__tok_valid(t, id) && t->piece[id].eog;
}
KVMEM_API int kvmem_token_is_special(const kvmem_tokenizer *t, int id) {
    return kvmem__tok_valid(t, id) && (t->piece[id].type == 2 || t->piece[id].type == 3);
}
KVMEM_API size_t kvmem_token_bytes(const kvmem_tokenizer *t, int id, unsigned flags, char *out, size_t cap) {
    const kvmem_piece *p;
    const uint8_t *s;
    size_t i, n = 0;
    int plain, hex;
    if (!kvmem__tok_valid(t, id)) return 0;
    p = &t->piece[id];
    s = t->base + p->at;
    if (p->type == 2 || p->type == 3) {
        if (!(flags & KVMEM_SHOW_SPECIAL)) return 0;
    } else if (p->type == 5) return 0;
    plain = p->type >= 2 && p->type <= 4;
    hex = p->type == 6 ? kvmem__tok_hex(s, p->len) : -1;
    if (hex >= 0) {
        if (cap) out[0] = (char)(unsigned char)hex;
        return 1;
    }
    for (i = 0; i < p->len;) {
        uint8_t b[4];
        int k = 1, j;
        b[0] = s[i];
        if (plain || t->kind == KVMEM_VOCAB_LLAMA2C) i++;
        else if (t->kind == KVMEM_VOCAB_SPM) {
            const int mark = p->len - i >= 3 && !memcmp(s + i, "\xe2\x96\x81", 3);
            if (mark) b[0] = ' ';
            i += mark ? 3 : 1;
        } else {
            uint32_t c;
            int byte;
            k = kvmem__utf8_decode(s + i, p->len - i, &c);
            byte = kvmem__char_byte(c);
            memcpy(b, s + i, (size_t)k);
            i += (size_t)k;
            if (byte >= 0) { b[0] = (uint8_t)byte; k = 1; }
        }
        if (n == 0 && b[0] == ' ' && (flags & KVMEM_TEXT_START) && t->add_space_prefix && !plain) {
            flags &= ~(unsigned)KVMEM_TEXT_START; /* one space, the prefix, is taken away */
            continue;
        }
        for (j = 0; j < k; j++, n++) if (n < cap) out[n] = (char)b[j];
    }
    return n;
}
/* After this token text has begun: the space prefix can no longer come. */
static unsigned kvmem__tok_flags_after(const kvmem_tokenizer *t, int id, unsigned flags) {
    if (kvmem_token_is_special(t, id) || !kvmem__tok_valid(t, id)) return flags;
    return flags & ~(unsigned)KVMEM_TEXT_START;
}
KVMEM_API size_t kvmem_detokenize(const kvmem_tokenizer *t, const int *ids, size_t n, unsigned flags,
                                  char *out, size_t cap) {
    size_t i, len = 0;
    for (i = 0; i < n; i++) {
        len += kvmem_token_bytes(t, ids[i], flags, len < cap ? out + len : NULL, len < cap ? cap - len : 0);
        flags = kvmem__tok_flags_after(t, ids[i], flags);
    }
    return len;
}

KVMEM_API void kvmem_stream_init(kvmem_stream *s, const kvmem_tokenizer *t, unsigned flags) {
    memset(s, 0, sizeof *s);
    s->tokenizer = t;
    s->flags = flags;
}
/* Give out the first n held bytes, which are no UTF-8. */
static size_t kvmem__stream_bad(const kvmem_stream *s, int n, char *out) {
    if (s->flags & KVMEM_KEEP_BYTES) { memcpy(out, s->held, (size_t)n); return (size_t)n; }
    memcpy(out, "\xef\xbf\xbd", 3);
    return 3;
}
static size_t kvmem__stream_byte(kvmem_stream *s, uint8_t b, char *out) {
    size_t n = 0;
    int len;
    s->held[s->n_held++] = b;
    len = kvmem__utf8_check(s->held, (size_t)s->n_held);
    if (len < 0 && s->n_held > 1) { /* what was held cannot go on with b: b begins anew */
        n = kvmem__stream_bad(s, s->n_held - 1, out);
        s->held[0] = b;
        s->n_held = 1;
        len = kvmem__utf8_check(s->held, 1);
    }
    if (len == 0) return n;
    if (len < 0) n += kvmem__stream_bad(s, 1, out + n);
    else { memcpy(out + n, s->held, (size_t)len); n += (size_t)len; }
    s->n_held = 0;
    return n;
}
KVMEM_API size_t kvmem_stream_push(kvmem_stream *s, int id, char *out) {
    /* the piece is put behind the place where its text can reach before it is read: a byte gives at most
       3, except that one more byte may also give out what was held (3) */
    const size_t room = s->tokenizer->max_piece + 4;
    char *piece = out + 2 * room;
    const size_t len = kvmem_token_bytes(s->tokenizer, id, s->flags, piece, room);
    size_t i, n = 0;
    s->flags = kvmem__tok_flags_after(s->tokenizer, id, s->flags);
    for (i = 0; i < len; i++) n += kvmem__stream_byte(s, (uint8_t)piece[i], out + n);
    return n;
}
KVMEM_API size_t kvmem_stream_flush(kvmem_stream *s, char *out) {
    const size_t n = s->n_held ? kvmem__stream_bad(s, s->n_held, out) : 0;
    s->n_held = 0;
    return n;
}

/* ==== >>chat : the text of a conversation =========================================================
   A chat model was trained on conversations written in one exact form. Files carry that form as a Jinja
   program; here each family is written by hand, and a program is recognized by marks that only its family
   has. What is not recognized is an error, never a guess. System messages: families without one put the
   text in front of the first question. Default system prompts and dates of some templates are left out.
   Marks and forms: the models' templates; names as in llama.cpp (src/llama.cpp). */
static const char *const kvmem__chat_names[] = {
    "none", "chatml", "llama2", "llama3", "mistral", "mistral-v1", "mistral-v3", "mistral-v3-tekken",
    "mistral-v7", "mistral-v7-tekken", "gemma", "phi3", "zephyr", "zephyr-eot" };
#define KVMEM__N_CHATS ((int)(sizeof kvmem__chat_names / sizeof kvmem__chat_names[0]))

KVMEM_API const char *kvmem_chat_name(kvmem_chat kind) {
    return (int)kind >= 0 && (int)kind < KVMEM__N_CHATS ? kvmem__chat_names[kind] : NULL;
}
static int kvmem__has(const char *text, size_t len, const char *what) {
    return kvmem__tok_search((const uint8_t *)text, 0, len, (const uint8_t *)what, strlen(what)) != SIZE_MAX;
}
static kvmem_chat kvmem__chat_inst(const char *s, size_t n) { /* templates with [INST] */
    if (kvmem__has(s, n, "[SYSTEM_PROMPT]"))
        return kvmem__has(s, n, "[SYSTEM_PROMPT] ") ? KVMEM_CHAT_MISTRAL_V7 : KVMEM_CHAT_MISTRAL_V7_TEKKEN;
    if (kvmem__has(s, n, "' [INST] ' + system_message") || kvmem__has(s, n, "[AVAILABLE_TOOLS]"))
        return kvmem__has(s, n, " [INST]")       ? KVMEM_CHAT_MISTRAL_V1
               : kvmem__has(s, n, "\"[INST]\"") ? KVMEM_CHAT_MISTRAL_V3_TEKKEN
                                                 : KVMEM_CHAT_MISTRAL_V3;
    if (kvmem__has(s, n, "<<SYS>>"))
        return kvmem__has(s, n, "content.strip()") && kvmem__has(s, n, "bos_token + '[INST]")
                   ? KVMEM_CHAT_LLAMA2 : KVMEM_CHAT_NONE;
    return kvmem__has(s, n, "'[INST] ' + message['content'] + ' [/INST]'") ? KVMEM_CHAT_MISTRAL
                                                                           : KVMEM_CHAT_NONE;
}
static kvmem_chat kvmem__chat_guess(const char *s, size_t n) {
    int i;
    for (i = 1; i < KVMEM__N_CHATS; i++)
        if (kvmem__same(kvmem__chat_names[i], (const uint8_t *)s, n)) return (kvmem_chat)i;
    if (kvmem__has(s, n, "<|im_start|>"))
        return kvmem__has(s, n, "<|im_end|>") && !kvmem__has(s, n, "<|im_sep|>") &&
                       !kvmem__has(s, n, "<|im_middle|>") ? KVMEM_CHAT_CHATML : KVMEM_CHAT_NONE;
    if (kvmem__has(s, n, "[INST]")) return kvmem__chat_inst(s, n);
    if (kvmem__has(s, n, "<|assistant|>") && kvmem__has(s, n, "<|end|>")) return KVMEM_CHAT_PHI3;
    if (kvmem__has(s, n, "<|user|>\n' + message['content'] + eos_token") ||
        kvmem__has(s, n, "<|user|>\\n' + message['content'] + eos_token")) return KVMEM_CHAT_ZEPHYR;
    if (kvmem__has(s, n, "<|user|>") && kvmem__has(s, n, "<|endoftext|>")) return KVMEM_CHAT_ZEPHYR_EOT;
    if (kvmem__has(s, n, "<start_of_turn>")) return KVMEM_CHAT_GEMMA;
    if (kvmem__has(s, n, "<|start_header_id|>") && kvmem__has(s, n, "<|end_header_id|>"))
        return KVMEM_CHAT_LLAMA3;
    return KVMEM_CHAT_NONE;
}
KVMEM_API kvmem_status kvmem_chat_detect(const char *text, size_t len, kvmem_chat *out, kvmem_error *err) {
    kvmem_chat kind;
    if (!text || !out) return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "chat template: a pointer is missing");
    kind = kvmem__chat_guess(text, len);
    if (kind == KVMEM_CHAT_NONE)
        return kvmem__fail(err, KVMEM_UNSUPPORTED, "chat template not recognized; it begins \"%.*s\"",
                           (int)KVMEM__MIN(len, 120), text);
    *out = kind;
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_chat_of_gguf(const kvmem_gguf *g, kvmem_chat *out, kvmem_error *err) {
    const char *s;
    size_t n;
    if (!g || !out) return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "chat template: a pointer is missing");
    if (!kvmem_gguf_string(g, "tokenizer.chat_template", &s, &n))
        return kvmem__fail(err, KVMEM_UNSUPPORTED, "the file has no tokenizer.chat_template");
    return kvmem_chat_detect(s, n, out, err);
}

static void kvmem__chat_put(kvmem__text *t, const char *s) { kvmem__put_bytes(t, s, strlen(s)); }
static int kvmem__chat_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static void kvmem__chat_trim(kvmem__text *t, const char *s) { /* without the white space around */
    size_t n;
    while (kvmem__chat_space(*s)) s++;
    n = strlen(s);
    while (n && kvmem__chat_space(s[n - 1])) n--;
    kvmem__put_bytes(t, s, n);
}
/* Families whose messages have a head and a tail: head role middle content tail. */
static void kvmem__chat_headed(kvmem__text *t, kvmem_chat kind, const kvmem_message *m, size_t n, int open) {
    const char *head = "<|", *mid = "|>\n", *tail = "<|end|>\n", *system = NULL;
    size_t i;
    if (kind == KVMEM_CHAT_CHATML) { head = "<|im_start|>"; mid = "\n"; tail = "<|im_end|>\n"; }
    if (kind == KVMEM_CHAT_LLAMA3) {
        head = "<|start_header_id|>";
        mid = "<|end_header_id|>\n\n";
        tail = "<|eot_id|>";
    }
    if (kind == KVMEM_CHAT_ZEPHYR) tail = "</s>\n";
    if (kind == KVMEM_CHAT_ZEPHYR_EOT) tail = "<|endoftext|>\n";
    if (kind == KVMEM_CHAT_GEMMA) { head = "<start_of_turn>"; mid = "\n"; tail = "<end_of_turn>\n"; }
    for (i = 0; i < n; i++) {
        const char *role = m[i].role;
        if (kind == KVMEM_CHAT_GEMMA && !strcmp(role, "system")) { system = m[i].content; continue; }
        if (kind == KVMEM_CHAT_GEMMA && !strcmp(role, "assistant")) role = "model";
        kvmem__chat_put(t, head);
        kvmem__chat_put(t, role);
        kvmem__chat_put(t, mid);
        if (system && strcmp(role, "model") != 0) { /* gemma: in front of the question */
            kvmem__chat_trim(t, system);
            kvmem__chat_put(t, "\n\n");
            system = NULL;
        }
        if (kind == KVMEM_CHAT_GEMMA || kind == KVMEM_CHAT_LLAMA3) kvmem__chat_trim(t, m[i].content);
        else kvmem__chat_put(t, m[i].content);
        kvmem__chat_put(t, tail);
    }
    if (!open) return;
    kvmem__chat_put(t, head);
    kvmem__chat_put(t, kind == KVMEM_CHAT_GEMMA ? "model" : "assistant");
    kvmem__chat_put(t, mid);
}
/* Families with [INST] question [/INST] answer</s>; the question's tail opens the answer. */
static void kvmem__chat_bracketed(kvmem__text *t, kvmem_chat kind, const kvmem_message *m, size_t n) {
    const int v7 = kind == KVMEM_CHAT_MISTRAL_V7 || kind == KVMEM_CHAT_MISTRAL_V7_TEKKEN;
    const int tekken = kind == KVMEM_CHAT_MISTRAL_V3_TEKKEN || kind == KVMEM_CHAT_MISTRAL_V7_TEKKEN;
    const int llama2 = kind == KVMEM_CHAT_LLAMA2;
    const char *before = kind == KVMEM_CHAT_MISTRAL_V1 ? " " : "", *after = tekken ? "" : " ";
    const char *close = kind == KVMEM_CHAT_MISTRAL_V1 || kind == KVMEM_CHAT_MISTRAL || llama2 ? " " : "";
    int inside = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        const char *text = m[i].content;
        if (!strcmp(m[i].role, "assistant")) {
            if (kind != KVMEM_CHAT_MISTRAL) kvmem__chat_put(t, after);
            if (llama2 || kind == KVMEM_CHAT_MISTRAL_V3) kvmem__chat_trim(t, text);
            else kvmem__chat_put(t, text);
            kvmem__chat_put(t, llama2 ? " </s>" : "</s>");
            inside = 0;
            continue;
        }
        if (v7 && !strcmp(m[i].role, "system")) {
            kvmem__format(t, "[SYSTEM_PROMPT]%s%s[/SYSTEM_PROMPT]", after, text);
            continue;
        }
        if (!inside) kvmem__format(t, "%s%s[INST]%s", llama2 && i ? "<s>" : "", before, after);
        inside = !v7;
        if (!strcmp(m[i].role, "system")) {
            if (llama2) kvmem__format(t, "<<SYS>>\n%s\n<</SYS>>\n\n", text);
            else kvmem__format(t, "%s%s", text, kind == KVMEM_CHAT_MISTRAL ? "\n" : "\n\n");
            continue;
        }
        if (llama2) kvmem__chat_trim(t, text);
        else kvmem__chat_put(t, text);
        kvmem__format(t, "%s[/INST]", close);
    }
}
KVMEM_API kvmem_status kvmem_chat_format(kvmem_chat kind, const kvmem_message *m, size_t n, int assistant,
                                         char *out, size_t size, size_t *len, kvmem_error *err) {
    const int bracketed = kind == KVMEM_CHAT_LLAMA2 ||
                          (kind >= KVMEM_CHAT_MISTRAL && kind <= KVMEM_CHAT_MISTRAL_V7_TEKKEN);
    kvmem__text t;
    size_t i;
    if (!kvmem_chat_name(kind) || kind == KVMEM_CHAT_NONE)
        return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "chat format %d does not exist", (int)kind);
    if ((!m && n) || (!out && size) || !len)
        return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "chat format: a pointer is missing");
    for (i = 0; i < n; i++) {
        if (!m[i].role || !m[i].content)
            return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "message %zu has no role or no content", i);
        if (strcmp(m[i].role, "system") != 0 && strcmp(m[i].role, "user") != 0 &&
            strcmp(m[i].role, "assistant") != 0)
            return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "message %zu: role \"%s\" is not system, user or "
                               "assistant", i, m[i].role);
    }
    t.out = out;
    t.size = size;
    t.len = 0;
    if (size) out[0] = 0;
    if (bracketed) kvmem__chat_bracketed(&t, kind, m, n);
    else kvmem__chat_headed(&t, kind, m, n, assistant);
    *len = t.len;
    return KVMEM_OK;
}

/* ==== >>model : architectures, llama2.c checkpoints ===============================================
   Opening a model means: read the shape from the metadata, find every tensor by its name, check its
   shape against the metadata's, and note what the architecture does besides plain Llama. After that the
   decoder knows no architecture, only which of the optional parts a layer has:

       x += post( O attention( rope(qnorm(Q n)), rope(knorm(K n)), V n ) ),  n = rmsnorm(x)
       x += post( Down( act(Gate m) * Up m ) ),                             m = rmsnorm(x)

                 act   RoPE   norms of q,k  post norms  soft caps  windows            embeddings
       llama     silu  pairs  -             -           -          -                  x 1
       qwen2     silu  halves -             -           -          -                  x 1
       qwen3     silu  halves yes           -           -          -                  x 1
       gemma2    gelu  halves -             yes         yes        even layers        x sqrt(n_embd)
       gemma3    gelu  halves yes           yes         -          all but every 6th  x sqrt(n_embd)
       phi3      silu  halves -             -           -          all layers         x 1

   Matrices stay in the file. Vectors (norms, biases, RoPE factors) are few and become floats.
   Names and meanings are those that llama.cpp gives them. A tensor that nothing asked for is an error:
   running without it would be running another model. */
#define KVMEM__MAX_LAYERS 1024

static const char *const kvmem__arch_names[KVMEM_N_ARCHS] = { "llama", "qwen2", "qwen3", "gemma2",
                                                              "gemma3", "phi3" };

/* State of the search for tensors. The first pass (pool NULL) checks and counts, the second fills. */
typedef struct kvmem__loader {
    kvmem_model *m;
    kvmem_layer *layer;   /* first pass: one scratch layer */
    float *pool;          /* floats of all vectors */
    size_t used;          /* of pool */
    unsigned char *mark;  /* (n_tensors) 1: somebody asked for it */
    char name[80];        /* of the tensor or key looked for */
} kvmem__loader;

KVMEM__PRINTF(2, 3) static const char *kvmem__loader_name(kvmem__loader *ld, const char *f, ...) {
    kvmem__text t;
    va_list ap;
    t.out = ld->name;
    t.size = sizeof ld->name;
    t.len = 0;
    va_start(ap, f);
    kvmem__vformat(&t, f, ap);
    va_end(ap);
    return ld->name;
}

/* ---- metadata: numbers of the architecture, checked for range ---- */

/* out is untouched if the key is absent; then a required one is an error. An array must hold the same
   value everywhere: layers of different shapes are not supported. */
static kvmem_status kvmem__hparam_int(kvmem__loader *ld, const char *part, int required, int lo, int hi,
                                      int *out) {
    kvmem_model *m = ld->m;
    const char *key = kvmem__loader_name(ld, "%s.%s", m->arch_name, part);
    const kvmem_gguf_kv *kv = kvmem_gguf_find(&m->gguf, key);
    int64_t v = 0, w;
    uint64_t i;
    if (!kv) {
        if (!required) return KVMEM_OK;
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: key '%s' is missing", key);
    }
    if (!kvmem__gguf_item_int(kv, 0, &v))
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: key '%s' holds no number (%s)", key,
                           kvmem__gguf_type_word(kv->type));
    for (i = 1; i < kv->n; i++)
        if (!kvmem__gguf_item_int(kv, i, &w) || w != v)
            return kvmem__fail(&m->error, KVMEM_UNSUPPORTED, "model: key '%s' differs from layer to layer",
                               key);
    if (v < lo || v > hi)
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: key '%s' is %lld, not %d..%d", key,
                           (long long)v, lo, hi);
    *out = (int)v;
    return KVMEM_OK;
}
static kvmem_status kvmem__hparam_float(kvmem__loader *ld, const char *part, int required, double lo,
                                        double hi, double *out) {
    kvmem_model *m = ld->m;
    const char *key = kvmem__loader_name(ld, "%s.%s", m->arch_name, part);
    const kvmem_gguf_kv *kv = kvmem_gguf_find(&m->gguf, key);
    double v;
    if (!kv) {
        if (!required) return KVMEM_OK;
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: key '%s' is missing", key);
    }
    if (kv->type == KVMEM__GGUF_ARRAY || !kvmem__gguf_item_float(kv, 0, &v))
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: key '%s' holds no number (%s)", key,
                           kvmem__gguf_type_word(kv->type));
    if (!(v >= lo && v <= hi))
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: key '%s' is %g, not %g..%g", key, v, lo, hi);
    *out = v;
    return KVMEM_OK;
}

static kvmem_status kvmem__model_arch(kvmem_model *m) {
    const char *s = NULL;
    size_t len = 0;
    int64_t n = 0;
    int i;
    if (!kvmem_gguf_string(&m->gguf, "general.architecture", &s, &len))
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: key 'general.architecture' is missing");
    if (kvmem_gguf_int(&m->gguf, "split.count", &n) && n > 1)
        return kvmem__fail(&m->error, KVMEM_UNSUPPORTED, "model: one of %lld parts (split.count); join "
                           "them first", (long long)n);
    for (i = 0; i < KVMEM_N_ARCHS; i++)
        if (kvmem__same_text(s, len, kvmem__arch_names[i], strlen(kvmem__arch_names[i]))) {
            m->arch = (kvmem_arch)i;
            m->arch_name = kvmem__arch_names[i];
            return KVMEM_OK;
        }
    return kvmem__fail(&m->error, KVMEM_UNSUPPORTED, "model: architecture '%s' is not supported (llama, "
                       "qwen2, qwen3, gemma2, gemma3, phi3 are)", kvmem__show(s, len).text);
}

static kvmem_status kvmem__model_shape(kvmem__loader *ld) {
    kvmem_model *m = ld->m;
    int value_len, experts = 0;
    double eps = 0;
    KVMEM__TRY(kvmem__hparam_int(ld, "expert_count", 0, 0, INT_MAX, &experts));
    if (experts > 0)
        return kvmem__fail(&m->error, KVMEM_UNSUPPORTED, "model: %d experts (%s.expert_count): mixtures of "
                           "experts are not supported", experts, m->arch_name);
    KVMEM__TRY(kvmem__hparam_int(ld, "block_count", 1, 1, KVMEM__MAX_LAYERS, &m->n_layers));
    KVMEM__TRY(kvmem__hparam_int(ld, "context_length", 1, 1, INT_MAX, &m->n_ctx_train));
    KVMEM__TRY(kvmem__hparam_int(ld, "embedding_length", 1, 1, 1 << 20, &m->n_embd));
    KVMEM__TRY(kvmem__hparam_int(ld, "feed_forward_length", 1, 1, 1 << 24, &m->n_ff));
    KVMEM__TRY(kvmem__hparam_int(ld, "attention.head_count", 1, 1, 1 << 14, &m->n_heads));
    m->n_kv_heads = m->n_heads;
    KVMEM__TRY(kvmem__hparam_int(ld, "attention.head_count_kv", 0, 1, m->n_heads, &m->n_kv_heads));
    if (m->n_heads % m->n_kv_heads != 0)
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: %d heads cannot share %d KV heads "
                           "(%s.attention.head_count_kv)", m->n_heads, m->n_kv_heads, m->arch_name);
    m->head_dim = m->n_embd / m->n_heads;
    KVMEM__TRY(kvmem__hparam_int(ld, "attention.key_length", m->head_dim < 1, 1, 1 << 14, &m->head_dim));
    value_len = m->head_dim;
    KVMEM__TRY(kvmem__hparam_int(ld, "attention.value_length", 0, 1, 1 << 14, &value_len));
    if (value_len != m->head_dim)
        return kvmem__fail(&m->error, KVMEM_UNSUPPORTED, "model: keys of %d values beside values of %d "
                           "(%s.attention.value_length)", m->head_dim, value_len, m->arch_name);
    KVMEM__TRY(kvmem__hparam_float(ld, "attention.layer_norm_rms_epsilon", 1, 0, 1, &eps));
    m->norm_eps = (float)eps;
    return KVMEM_OK;
}

static kvmem_status kvmem__model_rope(kvmem__loader *ld) {
    kvmem_model *m = ld->m;
    kvmem_rope_spec *r = &m->rope;
    const char *s = "linear";
    size_t len = 6;
    double factor = 0, attn = 1;
    int none, yarn;
    r->n_rot = m->head_dim;
    KVMEM__TRY(kvmem__hparam_int(ld, "rope.dimension_count", 0, 0, m->head_dim, &r->n_rot));
    if (r->n_rot % 2 != 0)
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: an odd number of rotated channels, %d "
                           "(%s.rope.dimension_count)", r->n_rot, m->arch_name);
    r->neox = m->arch != KVMEM_ARCH_LLAMA;
    r->base = 10000;
    KVMEM__TRY(kvmem__hparam_float(ld, "rope.freq_base", 0, 1, 1e18, &r->base));
    (void)kvmem_gguf_string(&m->gguf, kvmem__loader_name(ld, "%s.rope.scaling.type", m->arch_name), &s, &len);
    none = kvmem__same_text(s, len, "none", 4);
    yarn = kvmem__same_text(s, len, "yarn", 4);
    if (!none && !yarn && !kvmem__same_text(s, len, "linear", 6) && !kvmem__same_text(s, len, "longrope", 8))
        return kvmem__fail(&m->error, KVMEM_UNSUPPORTED, "model: RoPE scaling '%s' (%s) is not one of none, "
                           "linear, yarn, longrope", kvmem__show(s, len).text, ld->name);
    KVMEM__TRY(kvmem__hparam_float(ld, "rope.scale_linear", 0, 0, 1e6, &factor));
    KVMEM__TRY(kvmem__hparam_float(ld, "rope.scaling.factor", 0, 0, 1e6, &factor));
    r->scale = none || factor < 1e-6 ? 1 : 1 / factor;
    r->ext_factor = yarn ? 1 : 0;
    r->attn_factor = 1;
    r->beta_fast = 32;
    r->beta_slow = 1;
    r->n_ctx_orig = m->n_ctx_train;
    KVMEM__TRY(kvmem__hparam_int(ld, "rope.scaling.original_context_length", 0, 1, INT_MAX, &r->n_ctx_orig));
    KVMEM__TRY(kvmem__hparam_float(ld, "rope.scaling.yarn_ext_factor", 0, 0, 1e3, &r->ext_factor));
    KVMEM__TRY(kvmem__hparam_float(ld, "rope.scaling.yarn_beta_fast", 0, 1e-3, 1e6, &r->beta_fast));
    KVMEM__TRY(kvmem__hparam_float(ld, "rope.scaling.yarn_beta_slow", 0, 1e-3, 1e6, &r->beta_slow));
    KVMEM__TRY(kvmem__hparam_float(ld, "rope.scaling.yarn_attn_factor", 0, 1e-3, 1e3, &r->attn_factor));
    KVMEM__TRY(kvmem__hparam_float(ld, "rope.scaling.attn_factor", 0, 1e-3, 1e3, &attn));
    r->attn_factor *= attn;
    r->base_local = r->base;
    r->scale_local = r->scale;
    if (m->arch == KVMEM_ARCH_GEMMA3) {
        r->base_local = 10000;
        r->scale_local = 1;
        KVMEM__TRY(kvmem__hparam_float(ld, "rope.freq_base_swa", 0, 1, 1e18, &r->base_local));
    }
    return KVMEM_OK;
}

/* The window of phi3 files written before they had the key: by the size of the model. */
static int kvmem__phi3_window(const kvmem_model *m) {
    if ((m->n_layers == 32 || m->n_layers == 40) && m->n_ctx_train == 4096) return 2047;
    if (m->n_layers == 32 && m->n_kv_heads == 32 && m->n_ctx_train == 131072) return 262144;
    if (m->n_layers == 40 && m->n_ctx_train == 131072) return 131072;
    return 0;
}

/* Windows, caps and scales. Sets *window and *pattern: layer l is global if pattern > 0 and
   (l + 1) % pattern == 0, else it has the window. */
static kvmem_status kvmem__model_attention(kvmem__loader *ld, int *window, int *pattern) {
    kvmem_model *m = ld->m;
    const int gemma = m->arch == KVMEM_ARCH_GEMMA2 || m->arch == KVMEM_ARCH_GEMMA3;
    double cap = 0, final_cap = 0, scale = 0;
    *window = *pattern = 0;
    m->embd_scale = gemma ? sqrtf((float)m->n_embd) : 1.0f;
    m->gelu = gemma;
    if (m->arch == KVMEM_ARCH_GEMMA2) {
        cap = 50;
        final_cap = 30;
        *window = 4096;
        *pattern = 2;
    }
    if (m->arch == KVMEM_ARCH_GEMMA3) *pattern = 6;
    if (m->arch == KVMEM_ARCH_PHI3) *window = kvmem__phi3_window(m);
    if (gemma || m->arch == KVMEM_ARCH_PHI3) {
        KVMEM__TRY(kvmem__hparam_int(ld, "attention.sliding_window", m->arch == KVMEM_ARCH_GEMMA3, 0,
                                     INT_MAX, window));
        KVMEM__TRY(kvmem__hparam_float(ld, "attn_logit_softcapping", 0, 0, 1e6, &cap));
        KVMEM__TRY(kvmem__hparam_float(ld, "final_logit_softcapping", 0, 0, 1e6, &final_cap));
    }
    m->attn_softcap = (float)cap;
    m->logit_softcap = (float)final_cap;
    /* the 27B models of gemma divide by the embedding's share of a head, not by the head's size */
    if ((m->arch == KVMEM_ARCH_GEMMA2 && m->n_layers == 46) ||
        (m->arch == KVMEM_ARCH_GEMMA3 && m->n_layers == 62))
        scale = 1.0 / sqrt((double)(m->n_embd / m->n_heads));
    else
        scale = 1.0 / sqrt((double)m->head_dim);
    KVMEM__TRY(kvmem__hparam_float(ld, "attention.scale", 0, 0, 1e6, &scale));
    m->attn_scale = scale > 0 ? (float)scale : (float)(1.0 / sqrt((double)m->head_dim));
    return KVMEM_OK;
}

/* ---- tensors by name ---- */

static const kvmem_tensor *kvmem__loader_find(kvmem__loader *ld, int layer, const char *part) {
    const kvmem_gguf *g = &ld->m->gguf;
    const kvmem_tensor *t;
    if (layer < 0) (void)kvmem__loader_name(ld, "%s", part);
    else (void)kvmem__loader_name(ld, "blk.%d.%s", layer, part);
    t = kvmem_gguf_tensor(g, ld->name);
    if (t) ld->mark[t - g->tensor] = 1;
    return t;
}
static kvmem_status kvmem__loader_missing(kvmem__loader *ld) {
    return kvmem__fail(&ld->m->error, KVMEM_BAD_FILE, "model: tensor '%s' is missing", ld->name);
}
/* A matrix of `rows` rows of `cols`. Absent: an error if required, else out->data is NULL. */
static kvmem_status kvmem__load_matrix(kvmem__loader *ld, int layer, const char *part, int64_t cols,
                                       int64_t rows, int required, kvmem_tensor *out) {
    const kvmem_tensor *t = kvmem__loader_find(ld, layer, part);
    memset(out, 0, sizeof *out);
    if (!t) return required ? kvmem__loader_missing(ld) : KVMEM_OK;
    if (t->ne[0] != cols || t->ne[1] != rows || t->ne[2] != 1 || t->ne[3] != 1)
        return kvmem__fail(&ld->m->error, KVMEM_BAD_FILE, "model: tensor '%s' is %lld x %lld%s, not %lld x "
                           "%lld", ld->name, (long long)t->ne[0], (long long)t->ne[1],
                           t->ne[2] * t->ne[3] != 1 ? " x ..." : "", (long long)cols, (long long)rows);
    *out = *t;
    return KVMEM_OK;
}
/* A vector of n values as floats; more_ok: the file may have more, the first n are taken. */
static kvmem_status kvmem__load_vector(kvmem__loader *ld, int layer, const char *part, int64_t n,
                                       int required, int more_ok, const float **out) {
    const kvmem_tensor *t = kvmem__loader_find(ld, layer, part);
    *out = NULL;
    if (!t) return required ? kvmem__loader_missing(ld) : KVMEM_OK;
    if ((more_ok ? t->ne[0] < n : t->ne[0] != n) || t->ne[1] != 1 || t->ne[2] != 1 || t->ne[3] != 1)
        return kvmem__fail(&ld->m->error, KVMEM_BAD_FILE, "model: tensor '%s' is no vector of %lld values",
                           ld->name, (long long)n);
    if (ld->pool) {
        float *p = ld->pool + ld->used;
        const kvmem_status status = kvmem_dequantize(t->type, p, t->data, (size_t)t->ne[0]);
        if (status != KVMEM_OK)
            return kvmem__fail(&ld->m->error, status, "model: tensor '%s' cannot be decoded", ld->name);
        *out = p;
    }
    if (!kvmem__add(ld->used, (size_t)t->ne[0], &ld->used))
        return kvmem__fail(&ld->m->error, KVMEM_BAD_FILE, "model: tensor '%s' overflows", ld->name);
    return KVMEM_OK;
}
/* Rows [from, from + n) of a matrix: rows of every type are contiguous. */
static kvmem_tensor kvmem__row_range(const kvmem_tensor *t, int64_t from, int64_t n) {
    const size_t row = t->size / (size_t)t->ne[1];
    kvmem_tensor r = *t;
    r.data = t->data + row * (size_t)from;
    r.size = row * (size_t)n;
    r.ne[1] = n;
    return r;
}

static kvmem_status kvmem__load_qkv(kvmem__loader *ld, int l, kvmem_layer *layer) {
    const kvmem_model *m = ld->m;
    const int64_t e = m->n_embd, d = m->head_dim, nq = d * m->n_heads, nk = d * m->n_kv_heads;
    kvmem_tensor all;
    const float *bias;
    KVMEM__TRY(kvmem__load_matrix(ld, l, "attn_qkv.weight", e, nq + 2 * nk, 0, &all));
    if (all.data) {
        layer->q = kvmem__row_range(&all, 0, nq);
        layer->k = kvmem__row_range(&all, nq, nk);
        layer->v = kvmem__row_range(&all, nq + nk, nk);
        KVMEM__TRY(kvmem__load_vector(ld, l, "attn_qkv.bias", nq + 2 * nk, 0, 0, &bias));
        layer->q_bias = bias;
        layer->k_bias = bias ? bias + nq : NULL;
        layer->v_bias = bias ? bias + nq + nk : NULL;
    } else {
        KVMEM__TRY(kvmem__load_matrix(ld, l, "attn_q.weight", e, nq, 1, &layer->q));
        KVMEM__TRY(kvmem__load_matrix(ld, l, "attn_k.weight", e, nk, 1, &layer->k));
        KVMEM__TRY(kvmem__load_matrix(ld, l, "attn_v.weight", e, nk, 1, &layer->v));
        KVMEM__TRY(kvmem__load_vector(ld, l, "attn_q.bias", nq, 0, 0, &layer->q_bias));
        KVMEM__TRY(kvmem__load_vector(ld, l, "attn_k.bias", nk, 0, 0, &layer->k_bias));
        KVMEM__TRY(kvmem__load_vector(ld, l, "attn_v.bias", nk, 0, 0, &layer->v_bias));
    }
    if (m->arch == KVMEM_ARCH_QWEN3 || m->arch == KVMEM_ARCH_GEMMA3) {
        KVMEM__TRY(kvmem__load_vector(ld, l, "attn_q_norm.weight", d, 1, 0, &layer->q_norm));
        KVMEM__TRY(kvmem__load_vector(ld, l, "attn_k_norm.weight", d, 1, 0, &layer->k_norm));
    }
    KVMEM__TRY(kvmem__load_matrix(ld, l, "attn_output.weight", nq, e, 1, &layer->o));
    return kvmem__load_vector(ld, l, "attn_output.bias", e, 0, 0, &layer->o_bias);
}

static kvmem_status kvmem__load_layer(kvmem__loader *ld, int l, kvmem_layer *layer) {
    const kvmem_model *m = ld->m;
    const int64_t e = m->n_embd, f = m->n_ff;
    const int post = m->arch == KVMEM_ARCH_GEMMA2 || m->arch == KVMEM_ARCH_GEMMA3;
    kvmem_tensor both;
    KVMEM__TRY(kvmem__load_vector(ld, l, "attn_norm.weight", e, 1, 0, &layer->attn_norm));
    KVMEM__TRY(kvmem__load_qkv(ld, l, layer));
    KVMEM__TRY(kvmem__load_vector(ld, l, "ffn_norm.weight", e, 1, 0, &layer->ffn_norm));
    if (post) {
        KVMEM__TRY(kvmem__load_vector(ld, l, "post_attention_norm.weight", e, 1, 0, &layer->attn_post_norm));
        KVMEM__TRY(kvmem__load_vector(ld, l, "post_ffw_norm.weight", e, 1, 0, &layer->ffn_post_norm));
    }
    if (m->arch == KVMEM_ARCH_PHI3) { /* gate and up in one matrix, gate first */
        KVMEM__TRY(kvmem__load_matrix(ld, l, "ffn_up.weight", e, 2 * f, 1, &both));
        layer->gate = kvmem__row_range(&both, 0, f);
        layer->up = kvmem__row_range(&both, f, f);
    } else {
        KVMEM__TRY(kvmem__load_matrix(ld, l, "ffn_gate.weight", e, f, 1, &layer->gate));
        KVMEM__TRY(kvmem__load_matrix(ld, l, "ffn_up.weight", e, f, 1, &layer->up));
        KVMEM__TRY(kvmem__load_vector(ld, l, "ffn_gate.bias", f, 0, 0, &layer->gate_bias));
        KVMEM__TRY(kvmem__load_vector(ld, l, "ffn_up.bias", f, 0, 0, &layer->up_bias));
    }
    KVMEM__TRY(kvmem__load_matrix(ld, l, "ffn_down.weight", f, e, 1, &layer->down));
    return kvmem__load_vector(ld, l, "ffn_down.bias", e, 0, 0, &layer->down_bias);
}

static kvmem_status kvmem__check_factors(kvmem__loader *ld, const float *f, const char *name) {
    int i;
    if (f)
        for (i = 0; i < ld->m->rope.n_rot / 2; i++)
            if (!(f[i] > 0 && f[i] < FLT_MAX))
                return kvmem__fail(&ld->m->error, KVMEM_BAD_VALUE, "model: tensor '%s' holds %g, but RoPE "
                                   "factors are positive", name, (double)f[i]);
    return KVMEM_OK;
}

static kvmem_status kvmem__load_tensors(kvmem__loader *ld) {
    kvmem_model *m = ld->m;
    const kvmem_tensor *t = kvmem__loader_find(ld, -1, "token_embd.weight");
    const int64_t half = m->rope.n_rot / 2;
    int l;
    if (!t) return kvmem__loader_missing(ld);
    m->n_vocab = (int)t->ne[1]; /* the container allows no more than INT_MAX */
    ld->used = 0;
    KVMEM__TRY(kvmem__load_matrix(ld, -1, "token_embd.weight", m->n_embd, m->n_vocab, 1, &m->embd));
    KVMEM__TRY(kvmem__load_matrix(ld, -1, "output.weight", m->n_embd, m->n_vocab, 0, &m->head));
    m->tied = m->head.data == NULL;
    if (m->tied) m->head = m->embd;
    KVMEM__TRY(kvmem__load_vector(ld, -1, "output.bias", m->n_vocab, 0, 0, &m->head_bias));
    KVMEM__TRY(kvmem__load_vector(ld, -1, "output_norm.weight", m->n_embd, 1, 0, &m->out_norm));
    if (m->arch == KVMEM_ARCH_LLAMA)
        KVMEM__TRY(kvmem__load_vector(ld, -1, "rope_freqs.weight", half, 0, 1, &m->rope.factors));
    if (m->arch == KVMEM_ARCH_PHI3) {
        KVMEM__TRY(kvmem__load_vector(ld, -1, "rope_factors_long.weight", half, 0, 1, &m->rope.factors_long));
        KVMEM__TRY(kvmem__load_vector(ld, -1, "rope_factors_short.weight", half, 0, 1,
                                      &m->rope.factors_short));
    }
    for (l = 0; l < m->n_layers; l++) {
        memset(&ld->layer[ld->pool ? l : 0], 0, sizeof *ld->layer);
        KVMEM__TRY(kvmem__load_layer(ld, l, &ld->layer[ld->pool ? l : 0]));
    }
    KVMEM__TRY(kvmem__check_factors(ld, m->rope.factors, "rope_freqs.weight"));
    KVMEM__TRY(kvmem__check_factors(ld, m->rope.factors_long, "rope_factors_long.weight"));
    return kvmem__check_factors(ld, m->rope.factors_short, "rope_factors_short.weight");
}

/* Old converters wrote RoPE's frequencies into every layer; nobody reads them. */
static kvmem_status kvmem__check_unused(kvmem__loader *ld) {
    static const char legacy[] = ".attn_rot_embd";
    const kvmem_gguf *g = &ld->m->gguf;
    int i;
    for (i = 0; i < g->n_tensors; i++) {
        const kvmem_tensor *t = &g->tensor[i];
        const size_t len = (size_t)t->name_len, tail = sizeof legacy - 1;
        if (ld->mark[i] || (len > tail && memcmp(t->name + len - tail, legacy, tail) == 0)) continue;
        return kvmem__fail(&ld->m->error, KVMEM_UNSUPPORTED, "model: tensor '%s' has no place in "
                           "architecture '%s'", kvmem__show(t->name, len).text, ld->m->arch_name);
    }
    return KVMEM_OK;
}

/* One block for the layers and the floats of all vectors. */
static kvmem_status kvmem__model_block(kvmem_model *m, size_t floats, float **pool) {
    const size_t head = (size_t)m->n_layers * sizeof(kvmem_layer);
    size_t bytes;
    if (!kvmem__mul(floats, sizeof(float), &bytes) || !kvmem__add(bytes, head, &bytes))
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: the vectors do not fit the address space");
    m->block = kvmem__alloc(&m->allocator, bytes);
    if (!m->block)
        return kvmem__fail(&m->error, KVMEM_NO_MEMORY, "model: no memory for %zu bytes of vectors", bytes);
    m->block_size = bytes;
    memset(m->block, 0, bytes);
    m->layer = (kvmem_layer *)m->block;
    *pool = (float *)(void *)((char *)m->block + head);
    return KVMEM_OK;
}

static kvmem_status kvmem__open_gguf_marked(kvmem__loader *ld) {
    kvmem_model *m = ld->m;
    kvmem_layer probe;
    float *pool = NULL;
    int l, window, pattern;
    KVMEM__TRY(kvmem__model_shape(ld));
    KVMEM__TRY(kvmem__model_rope(ld));
    KVMEM__TRY(kvmem__model_attention(ld, &window, &pattern));
    ld->layer = &probe;
    KVMEM__TRY(kvmem__load_tensors(ld));
    KVMEM__TRY(kvmem__check_unused(ld));
    KVMEM__TRY(kvmem__model_block(m, ld->used, &pool));
    ld->pool = pool;
    ld->layer = m->layer;
    KVMEM__TRY(kvmem__load_tensors(ld));
    for (l = 0; l < m->n_layers; l++) {
        const int global = pattern > 0 && (l + 1) % pattern == 0;
        m->layer[l].window = global ? 0 : window;
        m->layer[l].local = pattern > 0 && !global;
    }
    for (l = 0; l < m->gguf.n_tensors; l++) m->weight_bytes += m->gguf.tensor[l].size;
    return KVMEM_OK;
}

static kvmem_status kvmem__open_gguf(kvmem_model *m, const void *bytes, size_t size) {
    kvmem__loader ld;
    kvmem_status status = kvmem_gguf_open(&m->gguf, bytes, size, &m->allocator);
    if (status != KVMEM_OK) {
        m->error = m->gguf.error;
        return status;
    }
    m->llama2c = -1;
    KVMEM__TRY(kvmem__model_arch(m));
    memset(&ld, 0, sizeof ld);
    ld.m = m;
    ld.mark = (unsigned char *)kvmem__alloc(&m->allocator, (size_t)m->gguf.n_tensors);
    if (!ld.mark)
        return kvmem__fail(&m->error, KVMEM_NO_MEMORY, "model: no memory for %d marks", m->gguf.n_tensors);
    memset(ld.mark, 0, (size_t)m->gguf.n_tensors);
    status = kvmem__open_gguf_marked(&ld);
    kvmem__release(&m->allocator, ld.mark, (size_t)m->gguf.n_tensors);
    return status;
}

/* ---- llama2.c checkpoints ----
   legacy:    int32 dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab (negative: own head), seq_len, then
              float32 embeddings, norms and matrices of all layers kind by kind, final norm, two tables of
              seq_len * head_dim / 2 (RoPE, not used), head
   version 1: "ak42" as a uint32, version, the seven numbers, a byte "head is shared", zeros up to byte 256;
              float32 attention norms, ffn norms, final norm, embeddings, wq wk wv wo w1 w2 w3, head
   version 2: the same with int32 group size behind the byte; norms float32, every matrix int8 values
              followed by one float32 scale per group
   The sum of all parts must be the size of the file. */
typedef struct kvmem__l2c {
    kvmem__cursor c;
    float *pool;
    kvmem_type type;
    int group;
} kvmem__l2c;

static int kvmem__l2c_vector(kvmem__l2c *f, int n, const float **out) {
    const uint8_t *p = kvmem__take(&f->c, (uint64_t)n * 4);
    int i;
    if (!p) return 0;
    for (i = 0; i < n; i++) f->pool[i] = kvmem__lef32(p + (size_t)i * 4);
    *out = f->pool;
    f->pool += n;
    return 1;
}
static int kvmem__l2c_matrix(kvmem__l2c *f, const char *name, int cols, int rows, kvmem_tensor *t) {
    const uint64_t values = (uint64_t)cols * (uint64_t)rows;
    const int split = f->type == KVMEM_Q8_SPLIT;
    memset(t, 0, sizeof *t);
    t->name = name;
    t->name_len = (int)strlen(name);
    t->type = f->type;
    t->n_dims = 2;
    t->ne[0] = cols;
    t->ne[1] = rows;
    t->ne[2] = t->ne[3] = 1;
    t->data = kvmem__take(&f->c, split ? values : values * 4);
    if (!t->data) return 0;
    t->size = (size_t)(split ? values : values * 4);
    if (split) {
        t->group = f->group;
        t->scales = kvmem__take(&f->c, values / (uint64_t)f->group * 4);
    }
    return !split || t->scales != NULL;
}

/* The numbers of the header; *header: its bytes, *shared: head is the embeddings, *group: of version 2. */
static kvmem_status kvmem__l2c_header(kvmem_model *m, const uint8_t *b, size_t size, size_t *header,
                                      int *shared, int *group) {
    static const char *const word[7] = { "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads",
                                         "vocab_size", "seq_len" };
    static const int limit[7] = { 1 << 20, 1 << 24, KVMEM__MAX_LAYERS, 1 << 14, 1 << 14, INT_MAX, INT_MAX };
    const int named = size >= 8 && kvmem__le32(b) == 0x616b3432u;
    const uint32_t said = named ? kvmem__le32(b + 4) : 0;
    const int version = said <= 2 ? (int)said : 0;
    int32_t p[7];
    int i;
    if (named && version == 0)
        return kvmem__fail(&m->error, KVMEM_UNSUPPORTED, "model: llama2.c version %u; legacy, 1 and 2 are "
                           "read", (unsigned)said);
    *header = version ? 256 : 28;
    if (size < *header)
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: neither GGUF nor llama2.c: %zu bytes", size);
    for (i = 0; i < 7; i++) p[i] = (int32_t)kvmem__le32(b + (version ? 8 : 0) + 4 * i);
    *shared = version ? b[36] != 0 : p[5] > 0;
    if (!version && p[5] < 0 && p[5] > INT32_MIN) p[5] = -p[5];
    for (i = 0; i < 7; i++)
        if (p[i] < 1 || p[i] > limit[i])
            return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: neither GGUF nor a sound llama2.c file: "
                               "its %s would be %d", word[i], (int)p[i]);
    if (p[0] % p[3] != 0 || p[3] % p[4] != 0 || (p[0] / p[3]) % 2 != 0)
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: llama2.c file with dim %d, n_heads %d, "
                           "n_kv_heads %d, which do not fit each other", (int)p[0], (int)p[3], (int)p[4]);
    m->n_embd = p[0];
    m->n_ff = p[1];
    m->n_layers = p[2];
    m->n_heads = p[3];
    m->n_kv_heads = p[4];
    m->head_dim = p[0] / p[3];
    m->n_vocab = p[5];
    m->n_ctx_train = p[6];
    m->llama2c = version;
    if (version == 2) {
        const int32_t g = (int32_t)kvmem__le32(b + 37);
        if (g < 1 || p[0] % g != 0 || p[1] % g != 0)
            return kvmem__fail(&m->error, g < 1 ? KVMEM_BAD_FILE : KVMEM_UNSUPPORTED, "model: llama2.c group "
                               "size %d does not divide the rows of %d and %d values", (int)g, (int)p[0],
                               (int)p[1]);
        *group = g;
    }
    return KVMEM_OK;
}

/* Bytes of the whole file in double first: the products may pass 64 bits, and a file of more than 2^52
   bytes does not exist. */
static double kvmem__l2c_size(const kvmem_model *m, size_t header, int shared, int group) {
    const double e = m->n_embd, f = m->n_ff, layers = m->n_layers, kv = (double)m->n_kv_heads * m->head_dim;
    const double vectors = layers * 2 * e + e;
    const double matrices = (double)m->n_vocab * e * (shared ? 1 : 2) +
                            layers * (2 * e * e + 2 * e * kv + 3 * e * f);
    const double tables = m->llama2c == 0 ? (double)m->n_ctx_train * m->head_dim : 0;
    return (double)header + 4 * (vectors + tables) + (group ? matrices + matrices / group * 4 : matrices * 4);
}

/* Matrices of one kind lie together for all layers; `at` is the member's offset in kvmem_layer. */
static int kvmem__l2c_kind(kvmem_model *m, kvmem__l2c *f, const char *name, int cols, int rows, size_t at) {
    int l;
    for (l = 0; l < m->n_layers; l++)
        if (!kvmem__l2c_matrix(f, name, cols, rows, (kvmem_tensor *)(void *)((char *)&m->layer[l] + at)))
            return 0;
    return 1;
}
static int kvmem__l2c_norms(kvmem_model *m, kvmem__l2c *f, int ffn) {
    int l;
    for (l = 0; l < m->n_layers; l++)
        if (!kvmem__l2c_vector(f, m->n_embd, ffn ? &m->layer[l].ffn_norm : &m->layer[l].attn_norm)) return 0;
    return 1;
}
#define KVMEM__L2C_KIND(name, cols, rows, member)                                                   \
    kvmem__l2c_kind(m, f, name, cols, rows, offsetof(kvmem_layer, member))
static int kvmem__l2c_parts(kvmem_model *m, kvmem__l2c *f, int shared) {
    const int e = m->n_embd, kv = m->n_kv_heads * m->head_dim, legacy = m->llama2c == 0;
    if (!legacy && (!kvmem__l2c_norms(m, f, 0) || !kvmem__l2c_norms(m, f, 1) ||
                    !kvmem__l2c_vector(f, e, &m->out_norm))) return 0;
    if (!kvmem__l2c_matrix(f, "token_embd.weight", e, m->n_vocab, &m->embd)) return 0;
    if (legacy && !kvmem__l2c_norms(m, f, 0)) return 0;
    if (!KVMEM__L2C_KIND("attn_q.weight", e, e, q) || !KVMEM__L2C_KIND("attn_k.weight", e, kv, k) ||
        !KVMEM__L2C_KIND("attn_v.weight", e, kv, v) ||
        !KVMEM__L2C_KIND("attn_output.weight", e, e, o)) return 0;
    if (legacy && !kvmem__l2c_norms(m, f, 1)) return 0;
    if (!KVMEM__L2C_KIND("ffn_gate.weight", e, m->n_ff, gate) ||
        !KVMEM__L2C_KIND("ffn_down.weight", m->n_ff, e, down) ||
        !KVMEM__L2C_KIND("ffn_up.weight", e, m->n_ff, up)) return 0;
    if (legacy && (!kvmem__l2c_vector(f, e, &m->out_norm) ||
                   !kvmem__take(&f->c, (uint64_t)m->n_ctx_train * (uint64_t)m->head_dim * 4))) return 0;
    m->head = m->embd;
    return shared || kvmem__l2c_matrix(f, "output.weight", e, m->n_vocab, &m->head);
}
#undef KVMEM__L2C_KIND

static kvmem_status kvmem__open_llama2c(kvmem_model *m, const uint8_t *bytes, size_t size) {
    kvmem__l2c f;
    size_t header = 0;
    double need;
    int shared = 0, group = 0;
    KVMEM__TRY(kvmem__l2c_header(m, bytes, size, &header, &shared, &group));
    need = kvmem__l2c_size(m, header, shared, group);
    if (need > (double)size || need < (double)size)
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: as a llama2.c file with this header it would "
                           "have %.15g bytes, not %zu", need, size);
    m->arch = KVMEM_ARCH_LLAMA;
    m->arch_name = kvmem__arch_names[0];
    m->tied = shared;
    m->norm_eps = 1e-5f;
    m->embd_scale = 1.0f;
    m->attn_scale = (float)(1.0 / sqrt((double)m->head_dim));
    m->rope.n_rot = m->head_dim;
    m->rope.base = m->rope.base_local = 10000;
    m->rope.scale = m->rope.scale_local = m->rope.attn_factor = 1;
    m->rope.n_ctx_orig = m->n_ctx_train;
    m->weight_bytes = size - header;
    f.c.p = bytes + header;
    f.c.left = size - header;
    f.type = group ? KVMEM_Q8_SPLIT : KVMEM_F32;
    f.group = group;
    KVMEM__TRY(kvmem__model_block(m, ((size_t)m->n_layers * 2 + 1) * (size_t)m->n_embd, &f.pool));
    if (!kvmem__l2c_parts(m, &f, shared))
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: the llama2.c file ends inside its weights");
    return KVMEM_OK;
}

/* ---- open, close ---- */

static uint64_t kvmem__id_number(uint64_t h, int64_t v) {
    uint8_t b[8];
    kvmem__put64(b, (uint64_t)v);
    return kvmem__fnv(h, b, 8);
}
/* Type, shape and 96 bytes from begin, middle and end. */
static uint64_t kvmem__id_tensor(uint64_t h, const kvmem_tensor *t) {
    const size_t n = t->size < 32 ? t->size : 32;
    h = kvmem__id_number(kvmem__id_number(kvmem__id_number(h, t->type), t->ne[0]), t->ne[1]);
    h = kvmem__fnv(h, t->data, n);
    h = kvmem__fnv(h, t->data + (t->size - n) / 2, n);
    return kvmem__fnv(h, t->data + t->size - n, n);
}
static uint64_t kvmem__model_id(const kvmem_model *m) {
    uint64_t h = 0xcbf29ce484222325u;
    int l;
    h = kvmem__fnv(h, m->arch_name, strlen(m->arch_name));
    h = kvmem__id_number(kvmem__id_number(h, m->n_vocab), m->n_embd);
    h = kvmem__id_number(kvmem__id_number(h, m->n_layers), m->n_ff);
    h = kvmem__id_number(kvmem__id_number(h, m->n_heads), m->n_kv_heads);
    h = kvmem__id_number(kvmem__id_number(h, m->head_dim), m->rope.n_rot);
    h = kvmem__id_number(kvmem__id_number(h, (int64_t)m->rope.base), (int64_t)(m->rope.scale * 1e6));
    h = kvmem__id_tensor(kvmem__id_tensor(h, &m->embd), &m->head);
    for (l = 0; l < m->n_layers; l++) {
        const kvmem_layer *y = &m->layer[l];
        h = kvmem__id_tensor(kvmem__id_tensor(h, &y->q), &y->k);
        h = kvmem__id_tensor(kvmem__id_tensor(h, &y->v), &y->o);
        h = kvmem__id_tensor(kvmem__id_tensor(kvmem__id_tensor(h, &y->gate), &y->up), &y->down);
    }
    return h;
}

/* A tokenizer that cannot be used leaves the model usable with ids; broken bytes and lack of memory fail. */
static kvmem_status kvmem__model_tokenizer(kvmem_model *m, const void *bin, size_t bin_size) {
    kvmem_tokenizer *t = &m->tokenizer;
    kvmem_status status = KVMEM_OK;
    if (m->llama2c >= 0) {
        if (bin) status = kvmem_tokenizer_open_llama2c(t, bin, bin_size, m->n_vocab, &m->allocator);
    } else if (kvmem_gguf_find(&m->gguf, "tokenizer.ggml.model")) {
        status = kvmem_tokenizer_open_gguf(t, &m->gguf, &m->allocator);
    }
    if (status != KVMEM_OK) {
        const kvmem_error e = t->error;
        kvmem_tokenizer_close(t);
        memset(t, 0, sizeof *t);
        t->error = e;
        if (status == KVMEM_UNSUPPORTED) return KVMEM_OK;
        m->error = e;
        return status;
    }
    if (t->kind != KVMEM_VOCAB_NONE && t->n_vocab > m->n_vocab)
        return kvmem__fail(&m->error, KVMEM_BAD_FILE, "model: the tokenizer has %d tokens, the embeddings "
                           "only %d rows", t->n_vocab, m->n_vocab);
    return KVMEM_OK;
}

static void kvmem__model_release(kvmem_model *m) {
    kvmem_tokenizer_close(&m->tokenizer);
    kvmem_gguf_close(&m->gguf);
    kvmem__release(&m->allocator, m->block, m->block_size);
}

KVMEM_API kvmem_status kvmem_model_open(kvmem_model *m, const void *bytes, size_t size,
                                        const void *tokenizer_bin, size_t tokenizer_size,
                                        const kvmem_allocator *allocator) {
    kvmem_status status;
    memset(m, 0, sizeof *m);
    m->allocator = kvmem__allocator(allocator);
    if (!bytes || size == 0)
        status = kvmem__fail(&m->error, KVMEM_BAD_ARGUMENT, "model: no bytes were given");
    else if (size >= 4 && memcmp(bytes, "GGUF", 4) == 0)
        status = kvmem__open_gguf(m, bytes, size);
    else
        status = kvmem__open_llama2c(m, (const uint8_t *)bytes, size);
    if (status == KVMEM_OK) status = kvmem__model_tokenizer(m, tokenizer_bin, tokenizer_size);
    if (status == KVMEM_OK) {
        m->id = kvmem__model_id(m);
    } else {
        const kvmem_error e = m->error;
        kvmem__model_release(m);
        memset(m, 0, sizeof *m);
        m->error = e;
    }
    return status;
}

KVMEM_API void kvmem_model_close(kvmem_model *m) {
    if (!m) return;
    kvmem__model_release(m);
    memset(m, 0, sizeof *m);
}

/* ==== >>decoder : the forward pass and the session ================================================
   A block of n tokens goes through the model as n rows. Names below are the file's; shapes are rows x
   values of row-major float32:

       x (n, E)         the residual stream, begins as the embeddings
       h (n, E)         normed input of a part, then its output
       q (n, H, d)      k, v (n, G, d)      att (n, H, d)      gate, up (n, F)

   The cache does the rest: it rotates and keeps k and v, and returns each token's attention over what it
   still has. The last layer's rows that nobody will read are not computed, and the head only runs for
   rows whose logits were asked for. Everything that computes goes through the backend's table. */

/* ---- rotary angles ----
   Channel pair i of n_rot/2 turns by pos * inv[i]:
       inv[i] = base^(-2i / n_rot) / factor[i] * (scale * (1 - mix[i]) + mix[i])
   factor: llama3 and longrope divisors. mix is 0 but for YaRN (arXiv:2309.00071), where pairs that turn
   more than beta_fast times within the original context are kept as they are (mix 1), pairs that turn
   less than beta_slow times are stretched (mix 0), with a linear ramp between, and where queries and keys
   are multiplied by mscale = attn_factor * (1 + 0.1 ln(1/scale)) each. */
static double kvmem__yarn_dim(const kvmem_rope_spec *r, double base, double turns) {
    const double pi = 3.14159265358979323846;
    return r->n_rot * log((double)r->n_ctx_orig / (turns * 2 * pi)) / (2 * log(base));
}
static float kvmem__rope_angles(const kvmem_rope_spec *r, int n_ctx, int local, float *inv) {
    const double base = local ? r->base_local : r->base, scale = local ? r->scale_local : r->scale;
    const float *factor = r->factors ? r->factors
                        : n_ctx > r->n_ctx_orig ? r->factors_long : r->factors_short;
    const int half = r->n_rot / 2;
    double low = 0, high = 0;
    int i;
    if (r->ext_factor > 0 && base > 1) {
        low = floor(kvmem__yarn_dim(r, base, r->beta_fast));
        high = ceil(kvmem__yarn_dim(r, base, r->beta_slow));
        low = low > 0 ? low : 0;
        high = high < r->n_rot - 1 ? high : r->n_rot - 1;
    }
    for (i = 0; i < half; i++) {
        double angle = pow(base, -2.0 * i / r->n_rot), mix = 0;
        if (r->ext_factor > 0) {
            const double y = (i - low) / (high - low > 0.001 ? high - low : 0.001);
            mix = (1 - (y < 0 ? 0 : y > 1 ? 1 : y)) * r->ext_factor;
        }
        if (factor) angle /= (double)factor[i];
        inv[i] = (float)(angle * (scale * (1 - mix) + mix));
    }
    return (float)(r->attn_factor * (r->ext_factor > 0 ? 1 + 0.1 * log(1 / scale) : 1));
}

/* What the cache must know of a model. window, rope (n_layers) and inv (n_rot) are the caller's and must
   outlive out. */
static void kvmem__model_config(const kvmem_model *m, const kvmem_session_config *cfg, kvmem_config *out,
                                int *window, kvmem_rope *rope, float *inv) {
    const int n_ctx = cfg->n_ctx > 0 ? cfg->n_ctx : m->n_ctx_train, half = m->rope.n_rot / 2;
    const float mscale[2] = { kvmem__rope_angles(&m->rope, n_ctx, 0, inv),
                              kvmem__rope_angles(&m->rope, n_ctx, 1, inv + half) };
    int l;
    for (l = 0; l < m->n_layers; l++) {
        const int local = m->layer[l].local;
        window[l] = m->layer[l].window;
        rope[l].n_rot = m->rope.n_rot;
        rope[l].neox = m->rope.neox;
        rope[l].mscale = mscale[local];
        rope[l].inv_freq = inv + (local ? half : 0);
    }
    *out = kvmem_config_default();
    out->shape.n_layers = m->n_layers;
    out->shape.n_heads = m->n_heads;
    out->shape.n_kv_heads = m->n_kv_heads;
    out->shape.head_dim = m->head_dim;
    out->shape.scale = m->attn_scale;
    out->shape.softcap = m->attn_softcap;
    out->shape.window = window;
    out->shape.rope = rope;
    out->shape.sink_bias = NULL;
    out->recipe = cfg->recipe;
    out->allocator = cfg->allocator;
    out->max_bytes = cfg->max_bytes;
    out->model_id = m->id;
    if (cfg->max_block > 0) out->max_block = cfg->max_block;
    out->threads = cfg->threads;
    out->backend = cfg->backend;
}

/* Section direct, for recipes with reduce=recompute. A block of n tokens: begin, for every layer rows
   and attend, and end, also when something has failed. n in cut is the number of tokens left. */
static kvmem_status kvmem__direct_init(kvmem_session *s);
static void kvmem__direct_free(kvmem_session *s);
static kvmem_status kvmem__direct_copy(kvmem_session *dst, const kvmem_session *src);
static kvmem_status kvmem__direct_begin(kvmem_session *s, const int *ids, int n, kvmem_phase phase);
static kvmem_status kvmem__direct_rows(kvmem_session *s, int l, int n);
static kvmem_status kvmem__direct_attend(kvmem_session *s, int l, int n);
static kvmem_status kvmem__direct_end(kvmem_session *s, int n, kvmem_status status);
static void kvmem__direct_cut(kvmem_session *s, int64_t n);
static size_t kvmem__direct_estimate(const kvmem_model *m, const kvmem_config *cfg, int64_t n,
                                     size_t *working);

/* Calls fn with the cache's configuration while its arrays live in one temporary block. */
typedef kvmem_status (*kvmem__config_fn)(void *user, const kvmem_config *cfg);
static kvmem_status kvmem__with_config(const kvmem_model *m, const kvmem_session_config *cfg,
                                       kvmem__config_fn fn, void *user, kvmem_error *err) {
    const kvmem_allocator a = kvmem__allocator(&cfg->allocator);
    const size_t layers = (size_t)m->n_layers;
    const size_t size = layers * (sizeof(kvmem_rope) + sizeof(int)) + (size_t)m->rope.n_rot * sizeof(float);
    kvmem_config c;
    kvmem_recipe again;
    kvmem_status status;
    char *p = (char *)kvmem__alloc(&a, size);
    kvmem_rope *rope = (kvmem_rope *)(void *)p;
    float *inv;
    int *window;
    if (!p) return kvmem__fail(err, KVMEM_NO_MEMORY, "session: no memory for %zu bytes of RoPE tables", size);
    inv = (float *)(void *)(p + layers * sizeof(kvmem_rope));
    window = (int *)(void *)(inv + m->rope.n_rot);
    kvmem__model_config(m, cfg, &c, window, rope, inv);
    if (cfg->recipe && cfg->recipe->stage[KVMEM_REDUCE].entry && kvmem__recomputes(cfg->recipe)) {
        again = *cfg->recipe;
        again.stage[KVMEM_REDUCE].user = user; /* any pointer: a session stands behind this cache */
        c.recipe = &again;
    }
    status = fn(user, &c);
    kvmem__release(&a, p, size);
    return status;
}

/* ---- forward ---- */

/* out (n, rows) = x (n, cols) . w^T + bias */
static void kvmem__linear(kvmem_session *s, float *out, const kvmem_tensor *w, const float *bias,
                          const float *x, int n) {
    const size_t rows = (size_t)w->ne[1];
    int i;
    s->backend->matmul(s->backend, out, w, x, n, s->scratch, s->threads);
    for (i = 0; bias && i < n; i++) s->backend->add(out + (size_t)i * rows, bias, rows);
}

/* Keys and values of layer l for n rows h, before RoPE; queries, too, if they are wanted. */
static void kvmem__project(kvmem_session *s, int l, int n, int queries) {
    const kvmem_model *m = s->model;
    const kvmem_backend *b = s->backend;
    const kvmem_layer *y = &m->layer[l];
    const int d = m->head_dim;
    kvmem__linear(s, s->k, &y->k, y->k_bias, s->h, n);
    kvmem__linear(s, s->v, &y->v, y->v_bias, s->h, n);
    if (y->k_norm) b->rmsnorm(s->k, s->k, y->k_norm, n * m->n_kv_heads, d, m->norm_eps, s->threads);
    if (!queries) return;
    kvmem__linear(s, s->q, &y->q, y->q_bias, s->h, n);
    if (y->q_norm) b->rmsnorm(s->q, s->q, y->q_norm, n * m->n_heads, d, m->norm_eps, s->threads);
}

/* Keys, queries and values of layer l for rows h, handed to the cache; s->att receives attention's
   result. by_layer: commit this layer at once. */
static kvmem_status kvmem__attention_part(kvmem_session *s, int l, int n, int by_layer, kvmem_phase phase) {
    kvmem_status status;
    kvmem__project(s, l, n, 1);
    if (s->direct) KVMEM__TRY(kvmem__direct_attend(s, l, n));
    else {
        KVMEM__TRY(kvmem_cache_append(&s->cache, l, n, s->k, s->v, NULL));
        KVMEM__TRY(kvmem_cache_attend(&s->cache, l, n, s->q, s->att));
    }
    if (!by_layer) return KVMEM_OK;
    status = kvmem_cache_commit_layer(&s->cache, l, phase);
    return status == KVMEM_UNSUPPORTED ? KVMEM_OK : status; /* the recipe compares layers: at the end */
}

/* The rest of layer l for n rows of x and att. */
static void kvmem__mixing_part(kvmem_session *s, int l, int n, float *x, const float *att) {
    const kvmem_model *m = s->model;
    const kvmem_backend *b = s->backend;
    const kvmem_layer *y = &m->layer[l];
    const size_t count = (size_t)n * (size_t)m->n_embd;
    kvmem__linear(s, s->h, &y->o, y->o_bias, att, n);
    if (y->attn_post_norm) b->rmsnorm(s->h, s->h, y->attn_post_norm, n, m->n_embd, m->norm_eps, s->threads);
    b->add(x, s->h, count);
    b->rmsnorm(s->h, x, y->ffn_norm, n, m->n_embd, m->norm_eps, s->threads);
    kvmem__linear(s, s->gate, &y->gate, y->gate_bias, s->h, n);
    kvmem__linear(s, s->up, &y->up, y->up_bias, s->h, n);
    b->glu(s->gate, s->gate, s->up, (size_t)n * (size_t)m->n_ff, m->gelu ? KVMEM_GELU_TANH : KVMEM_SILU,
           s->threads);
    kvmem__linear(s, s->h, &y->down, y->down_bias, s->gate, n);
    if (y->ffn_post_norm) b->rmsnorm(s->h, s->h, y->ffn_post_norm, n, m->n_embd, m->norm_eps, s->threads);
    b->add(x, s->h, count);
}

/* Logits of n rows of x into out (n, n_vocab). h is overwritten. */
static void kvmem__head_part(kvmem_session *s, float *out, const float *x, int n) {
    const kvmem_model *m = s->model;
    s->backend->rmsnorm(s->h, x, m->out_norm, n, m->n_embd, m->norm_eps, s->threads);
    kvmem__linear(s, out, &m->head, m->head_bias, s->h, n);
    if (m->logit_softcap > 0)
        s->backend->softcap(out, m->logit_softcap, (size_t)n * (size_t)m->n_vocab);
}

/* One block through all layers. want: rows whose final x is needed, counted from the end; they lie in
   the last `want` rows of s->x afterwards. */
static kvmem_status kvmem__block(kvmem_session *s, const int *ids, int n, int want, int by_layer,
                                 kvmem_phase phase) {
    const kvmem_model *m = s->model;
    const kvmem_backend *b = s->backend;
    const size_t e = (size_t)m->n_embd, heads = (size_t)m->n_heads * (size_t)m->head_dim;
    int l;
    b->rows(b, s->x, &m->embd, ids, n, s->threads);
    for (l = 0; l < n && m->embd_scale > 1.0f; l++) b->scale(s->x + (size_t)l * e, m->embd_scale, m->n_embd);
    for (l = 0; l < m->n_layers; l++) {
        const int rows = l + 1 < m->n_layers ? n : want;
        const size_t skip = (size_t)(n - rows);
        if (s->direct) KVMEM__TRY(kvmem__direct_rows(s, l, n));
        b->rmsnorm(s->h, s->x, m->layer[l].attn_norm, n, m->n_embd, m->norm_eps, s->threads);
        KVMEM__TRY(kvmem__attention_part(s, l, n, by_layer, phase));
        if (rows > 0) kvmem__mixing_part(s, l, rows, s->x + skip * e, s->att + skip * heads);
    }
    return kvmem_cache_commit(&s->cache, phase);
}

/* ---- session ---- */

KVMEM_API kvmem_session_config kvmem_session_config_default(void) {
    kvmem_session_config c;
    memset(&c, 0, sizeof c);
    return c;
}

/* Scratch of matmul: the most that any matrix of the model asks for. */
static size_t kvmem__matmul_scratch(const kvmem_session *s, const kvmem_tensor *w, int n, size_t most) {
    const size_t many = s->backend->matmul_scratch(s->backend, w, n, s->threads);
    const size_t one = s->backend->matmul_scratch(s->backend, w, 1, s->threads);
    return KVMEM__MAX(most, KVMEM__MAX(many, one));
}
static size_t kvmem__session_scratch(const kvmem_session *s) {
    const kvmem_model *m = s->model;
    size_t most = kvmem__matmul_scratch(s, &m->head, s->rows_cap, 0);
    int l;
    for (l = 0; l < m->n_layers; l++) {
        const kvmem_layer *y = &m->layer[l];
        const kvmem_tensor *const w[7] = { &y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down };
        int i;
        for (i = 0; i < 7; i++) most = kvmem__matmul_scratch(s, w[i], s->max_block, most);
    }
    return most;
}

/* All activations in one allocation, each array on a multiple of 64 bytes from its start. */
static kvmem_status kvmem__session_block(kvmem_session *s) {
    const kvmem_model *m = s->model;
    const size_t n = (size_t)s->max_block, e = (size_t)m->n_embd, f = (size_t)m->n_ff;
    const size_t q = (size_t)m->n_heads * (size_t)m->head_dim;
    const size_t k = (size_t)m->n_kv_heads * (size_t)m->head_dim;
    const size_t vocab = (size_t)m->n_vocab;
    const size_t width[11] = { e, e, q, k, k, q, f, f, vocab, vocab, 1 };
    float **const slot[10] = { &s->x, &s->h, &s->q, &s->k, &s->v, &s->att, &s->gate, &s->up, &s->rows,
                               &s->logits };
    size_t size[11], total = 0;
    char *p;
    int i;
    for (i = 0; i < 11; i++) {
        const size_t rows = i < 8 ? n : i == 8 ? (size_t)s->rows_cap : 1;
        int ok = kvmem__mul(width[i], rows, &size[i]) && kvmem__mul(size[i], sizeof(float), &size[i]);
        if (i == 10) size[i] = s->scratch_size;
        ok = ok && kvmem__add(size[i], 63, &size[i]);
        size[i] &= ~(size_t)63;
        if (!ok || !kvmem__add(total, size[i], &total))
            return kvmem__fail(&s->error, KVMEM_BAD_ARGUMENT, "session: blocks of %d tokens overflow",
                               s->max_block);
    }
    p = (char *)kvmem__alloc(&s->allocator, total);
    if (!p)
        return kvmem__fail(&s->error, KVMEM_NO_MEMORY, "session: no memory for %zu bytes of activations",
                           total);
    s->block = p;
    s->block_size = total;
    for (i = 0; i < 10; i++) {
        *slot[i] = (float *)(void *)p;
        p += size[i];
    }
    s->scratch = p;
    return KVMEM_OK;
}

/* Everything but the cache. */
static kvmem_status kvmem__session_begin(kvmem_session *s, const kvmem_model *m,
                                         const kvmem_session_config *cfg) {
    const size_t row = (size_t)m->n_vocab * sizeof(float), fit = ((size_t)16 << 20) / row;
    s->model = m;
    s->allocator = kvmem__allocator(&cfg->allocator);
    s->backend = cfg->backend ? cfg->backend : kvmem_backend_cpu(NULL);
    s->threads = kvmem__threads(cfg->threads);
    s->max_block = cfg->max_block > 0 ? cfg->max_block : kvmem_config_default().max_block;
    s->n_ctx = cfg->n_ctx > 0 ? cfg->n_ctx : m->n_ctx_train;
    s->rows_cap = fit > 64 ? 64 : fit < 16 ? 16 : (int)fit; /* 16 rows amortize reading the head once */
    s->rows_cap = KVMEM__MIN(s->rows_cap, s->max_block);
    s->scratch_size = kvmem__session_scratch(s);
    return kvmem__session_block(s);
}
static kvmem_status kvmem__session_check(const kvmem_model *m, const kvmem_session_config *cfg,
                                         kvmem_error *err) {
    if (!m || !m->layer || !cfg)
        return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "session: no open model or no configuration");
    if (cfg->max_block < 0 || cfg->max_block > 65536)
        return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "session: max_block is %d, not 0..65536", cfg->max_block);
    if (cfg->n_ctx < 0 || cfg->threads < 0)
        return kvmem__fail(err, KVMEM_BAD_ARGUMENT, "session: n_ctx %d or threads %d is negative", cfg->n_ctx,
                           cfg->threads);
    return KVMEM_OK;
}

static kvmem_status kvmem__session_cache(void *user, const kvmem_config *cfg) {
    kvmem_session *s = (kvmem_session *)user;
    const kvmem_status status = kvmem_cache_init(&s->cache, cfg);
    if (status != KVMEM_OK) s->error = s->cache.error;
    return status;
}

KVMEM_API kvmem_status kvmem_session_init(kvmem_session *s, const kvmem_model *m,
                                          const kvmem_session_config *cfg) {
    kvmem_status status;
    memset(s, 0, sizeof *s);
    status = kvmem__session_check(m, cfg, &s->error);
    if (status == KVMEM_OK) status = kvmem__session_begin(s, m, cfg);
    if (status == KVMEM_OK) status = kvmem__with_config(m, cfg, kvmem__session_cache, s, &s->error);
    if (status == KVMEM_OK && kvmem__recomputes(&s->cache.recipe)) status = kvmem__direct_init(s);
    if (status != KVMEM_OK) {
        const kvmem_error e = s->error;
        kvmem_session_free(s);
        s->error = e;
    }
    return status;
}

KVMEM_API void kvmem_session_free(kvmem_session *s) {
    if (!s) return;
    if (s->direct) kvmem__direct_free(s);
    kvmem_cache_free(&s->cache);
    kvmem__release(&s->allocator, s->block, s->block_size);
    memset(s, 0, sizeof *s);
}

/* Hands on a status of the cache, with its sentence. */
static kvmem_status kvmem__from_cache(kvmem_session *s, kvmem_status status) {
    if (status != KVMEM_OK) s->error = s->cache.error;
    return status;
}

/* Rows [first, n) of the block in s->x go to the callback in chunks of rows_cap; *stop is set when it
   asked to end. The last row's logits are kept. */
static void kvmem__emit_rows(kvmem_session *s, int n, int at, kvmem_row_fn row, void *user, int *stop) {
    const size_t e = (size_t)s->model->n_embd, vocab = (size_t)s->model->n_vocab;
    int i, j, c;
    for (i = 0; i < n && !*stop; i += c) {
        c = KVMEM__MIN(s->rows_cap, n - i);
        kvmem__head_part(s, s->rows, s->x + (size_t)i * e, c);
        for (j = 0; j < c && !*stop; j++) *stop = row(user, at + i + j, s->rows + (size_t)j * vocab) != 0;
        if (i + c == n) memcpy(s->logits, s->rows + (size_t)(c - 1) * vocab, vocab * sizeof(float));
    }
}

static kvmem_status kvmem__feed_checked(kvmem_session *s, const int *ids, int n, kvmem_phase phase,
                                        kvmem_row_fn row, void *user) {
    int at = 0, stop = 0;
    while (at < n && !stop) {
        const int room = kvmem_cache_room(&s->cache), fit = KVMEM__MIN(room, s->max_block);
        const int c = KVMEM__MIN(fit, n - at), last = at + c == n;
        const int whole = last && at == 0 && phase == KVMEM_PROMPT_END && s->cache.tokens == 0;
        const kvmem_phase now = last || phase == KVMEM_DECODE ? phase : KVMEM_PREFILL;
        const int64_t before = s->cache.tokens;
        kvmem_status status = KVMEM_OK;
        if (c < 1)
            return kvmem__fail(&s->error, KVMEM_OVER_BUDGET, "session: the byte limit leaves no room for "
                               "token %lld", (long long)before);
        s->has_logits = 0;
        if (s->direct) status = kvmem__direct_begin(s, ids + at, c, now);
        if (status == KVMEM_OK)
            status = kvmem__block(s, ids + at, c, row ? c : last, whole || s->direct, now);
        if (s->direct) status = kvmem__direct_end(s, c, status);
        if (status != KVMEM_OK) {
            (void)kvmem__from_cache(s, status);
            (void)kvmem_cache_truncate(&s->cache, before); /* layers that had the block already */
            return status;
        }
        if (row) kvmem__emit_rows(s, c, at, row, user, &stop);
        else if (last) kvmem__head_part(s, s->logits, s->x + (size_t)(c - 1) * (size_t)s->model->n_embd, 1);
        s->has_logits = last && !stop;
        at += c;
    }
    return KVMEM_OK;
}

KVMEM_API kvmem_status kvmem_session_feed(kvmem_session *s, const int *ids, int n, kvmem_phase phase,
                                          kvmem_row_fn row, void *user) {
    int i;
    if (!s || !s->model) return KVMEM_BAD_STATE;
    if (n < 0 || (n > 0 && !ids))
        return kvmem__fail(&s->error, KVMEM_BAD_ARGUMENT, "session: feed of %d tokens%s", n,
                           ids ? "" : " at NULL");
    if (phase != KVMEM_PREFILL && phase != KVMEM_PROMPT_END && phase != KVMEM_DECODE)
        return kvmem__fail(&s->error, KVMEM_BAD_ARGUMENT, "session: phase %d is none", (int)phase);
    for (i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= s->model->n_vocab)
            return kvmem__fail(&s->error, KVMEM_BAD_ARGUMENT, "session: token id %d at index %d is outside "
                               "the vocabulary of %d", ids[i], i, s->model->n_vocab);
    return kvmem__feed_checked(s, ids, n, phase, row, user);
}

KVMEM_API kvmem_status kvmem_session_truncate(kvmem_session *s, int64_t n_tokens) {
    const int whole = n_tokens >= s->cache.tokens;
    const kvmem_status status = kvmem__from_cache(s, kvmem_cache_truncate(&s->cache, n_tokens));
    if (status == KVMEM_OK && !whole) s->has_logits = 0;
    if (status == KVMEM_OK && s->direct) kvmem__direct_cut(s, s->cache.tokens);
    return status;
}
KVMEM_API void kvmem_session_clear(kvmem_session *s) {
    kvmem_cache_clear(&s->cache);
    if (s->direct) kvmem__direct_cut(s, 0);
    s->has_logits = 0;
}

KVMEM_API kvmem_status kvmem_session_copy(kvmem_session *dst, const kvmem_session *src) {
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_status status;
    cfg.n_ctx = src->n_ctx;
    cfg.threads = src->threads;
    cfg.max_block = src->max_block;
    cfg.allocator = src->allocator;
    cfg.backend = src->backend;
    memset(dst, 0, sizeof *dst);
    status = kvmem__session_check(src->model, &cfg, &dst->error);
    if (status == KVMEM_OK) status = kvmem__session_begin(dst, src->model, &cfg);
    if (status == KVMEM_OK) status = kvmem__from_cache(dst, kvmem_cache_copy(&dst->cache, &src->cache));
    if (status == KVMEM_OK && src->direct) status = kvmem__direct_copy(dst, src);
    if (status != KVMEM_OK) {
        const kvmem_error e = dst->error;
        kvmem_session_free(dst);
        dst->error = e;
        return status;
    }
    dst->has_logits = src->has_logits;
    if (src->has_logits) memcpy(dst->logits, src->logits, (size_t)src->model->n_vocab * sizeof(float));
    return KVMEM_OK;
}

static kvmem_status kvmem__no_checkpoints(kvmem_session *s) {
    return kvmem__fail(&s->error, KVMEM_UNSUPPORTED, "session: a saved cache has no checkpoints, without "
                       "which reduce=recompute cannot go on; save the token ids instead");
}
KVMEM_API kvmem_status kvmem_session_save(kvmem_session *s, kvmem_write_fn write, void *user) {
    if (s->direct) return kvmem__no_checkpoints(s);
    return kvmem__from_cache(s, kvmem_cache_save(&s->cache, write, user));
}
KVMEM_API kvmem_status kvmem_session_load(kvmem_session *s, const void *bytes, size_t size) {
    if (s->direct) return kvmem__no_checkpoints(s);
    s->has_logits = 0;
    return kvmem__from_cache(s, kvmem_cache_load(&s->cache, bytes, size));
}

typedef struct kvmem__estimate_args {
    const kvmem_model *model;
    int64_t prompt, decoded;
    kvmem_bytes *out;
    kvmem_error *err;
} kvmem__estimate_args;
static kvmem_status kvmem__session_estimate(void *user, const kvmem_config *cfg) {
    const kvmem__estimate_args *a = (const kvmem__estimate_args *)user;
    size_t kept, working;
    KVMEM__TRY(kvmem_estimate(cfg, a->prompt, a->decoded, a->out, a->err));
    if (!cfg->recipe || !kvmem__recomputes(cfg->recipe)) return KVMEM_OK;
    kept = kvmem__direct_estimate(a->model, cfg, a->prompt + a->decoded, &working);
    a->out->live.meta += kept;
    a->out->live.total += kept;
    a->out->peak.meta += kept;
    a->out->peak.scratch += working;
    a->out->peak.total += kept + working;
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_session_estimate(const kvmem_model *m, const kvmem_session_config *cfg,
                                              int64_t prompt, int64_t decoded, kvmem_bytes *out,
                                              kvmem_error *err) {
    kvmem__estimate_args a;
    a.model = m;
    a.prompt = prompt;
    a.decoded = decoded;
    a.out = out;
    a.err = err;
    KVMEM__TRY(kvmem__session_check(m, cfg, err));
    return kvmem__with_config(m, cfg, kvmem__session_estimate, &a, err);
}

/* ==== >>direct : a session that makes evicted keys and values again ==============================
   Qasim. The Residual Stream Is All You Need: On the Redundancy of the KV Cache in Transformer
   Inference. 2026. arXiv 2603.19664.   Code: Kaleemullahqasim/KV-Direct announces it, none is there.
   With h^l_t the residual stream that enters layer l at token t,
       K^l_t = RoPE(W_k norm(h^l_t), t)      V^l_t = W_v norm(h^l_t)
   so h is a checkpoint from which rows can be made again. The cache holds the rows of the newest B
   tokens (budget=B; nothing is lost, so no sinks); of n tokens the first n - B have left. Per layer:
     1. a working cache of this one layer gets the rows of the first n - B tokens, made again
     2. and a copy of the B rows that the session's cache has;
     3. the new block's rows are appended and its queries attend there; the working cache is freed.
   Step 1 by the entry's parameter every=s, with E values in h, e bytes each, L layers:
     s = 1 (resid-layer)  h^l of every layer is kept: norm, two products, RoPE. L E e bytes a token
     s > 1 (resid-s)      kept at the layers 0, s, 2s ..: the prefix runs through the layers between,
                          with causal attention among its own tokens. ceil(L/s) E e bytes a token
     s = 0 (resid-0)      only h^0: a full run of the prefix. E e bytes, or 4 with checkpoint=tokens
   Bytes: B rows, n checkpoints (one can only be taken when its token is read, so the newest B have
   one, too, which the card's B rows + (n - B) checkpoints leaves out), 8 for every run of blocks of
   one kind, and while a block is in flight one layer's rows of all n tokens and, if s is not 1, n - B
   residual vectors; with hold=1 all layers' rows until kvmem_session_end_turn or the next prompt, so
   that a turn runs the prefix once. kvmem_session_bytes counts all of it. Under GQA with 2 G d < E,
   s = 1 keeps more than it saves: Gemma 3 4B, bf16: rows 34 * 2 * 4 * 256 * 2 = 139264 bytes a token,
   one h 5120 (27.2 times less), 34 of them 174080.
   Bit identity: logits equal those of the full cache with the same codec, bit for bit, on every path,
   for any B and s with tokens or f32. The fast matrix products and attention have three kinds of
   blocks (up to KVMEM__FEW rows, less than KVMEM__TILE_MIN, more), and a row's bits depend on the kind
   alone, not on its block's length. The session keeps the runs of equal kind and makes a row again in
   a block of its own kind, filled up with copies of its last row where the run was cut. f16
   checkpoints round h, and it shows.
   reads: nothing.   cost: 4 E G d products a token and layer that has left (s = 1); a prompt of n - B
   tokens a block (s = 0).   defaults: budget=256, tokens, every=0, hold=0.
   departs: see bytes; modes and flags are our reading of the abstract.     test: tests/direct.c */
enum { KVMEM__DIRECT_ROWS = 64 }; /* most rows of a block that is made again */
typedef struct kvmem__direct_run { int32_t start, kind; } kvmem__direct_run;
struct kvmem_direct {
    int as, every, hold;       /* parameters of the entry: 0 tokens, 1 f32, 2 f16; s; hold */
    size_t row_bytes;          /* of a token: an id, or its checkpoints */
    int per, n_chunks, cap_chunks;
    uint8_t **chunk;           /* (n_chunks) checkpoints of `per` tokens each */
    kvmem__direct_run *run;    /* (n_runs) tokens from start on came in blocks of this kind */
    int n_runs, cap_runs;
    kvmem_cache *work;         /* (1), or (L) with hold */
    float *front;              /* (evicted, E) the prefix before the layer in hand, or NULL */
    float *piece;              /* (max_piece, E) */
    int32_t *pos;              /* (max_block) */
    int64_t evicted;           /* tokens that have left, in the block in flight */
    int max_piece, answering;  /* the last block was a generated token */
    size_t live;               /* bytes of all arrays above and of this */
    kvmem_bytes_part peak;
};

/* Rows per block of each kind. */
static int kvmem__direct_kind(int n) { return n > KVMEM__FEW ? n < KVMEM__TILE_MIN ? 1 : 2 : 0; }
static int kvmem__direct_least(int kind) {
    return kind == 2 ? KVMEM__TILE_MIN : kind ? KVMEM__FEW + 1 : 1;
}
static int kvmem__direct_most(int kind) {
    return kind == 2 ? KVMEM__DIRECT_ROWS : kind ? KVMEM__TILE_MIN - 1 : KVMEM__FEW;
}

static void *kvmem__direct_take(kvmem_session *s, size_t count, size_t size) {
    void *p = NULL;
    size_t bytes;
    if (kvmem__mul(count, size, &bytes)) p = kvmem__alloc(&s->allocator, bytes);
    if (!p) {
        kvmem__fail(&s->error, KVMEM_NO_MEMORY, "recompute: no memory for %zu times %zu bytes", count,
                    size);
        s->cache.error = s->error;
    } else if (s->direct) s->direct->live += bytes;
    return p;
}
static void kvmem__direct_give(kvmem_session *s, void *p, size_t count, size_t size) {
    if (!p) return;
    kvmem__release(&s->allocator, p, count * size);
    s->direct->live -= count * size;
}
static int kvmem__direct_works(const kvmem_session *s) {
    return s->direct->hold ? s->model->n_layers : 1;
}
/* Does layer l begin with a checkpoint? */
static int kvmem__direct_level(const struct kvmem_direct *d, int l) {
    return d->every ? l % d->every == 0 : l == 0;
}
static size_t kvmem__direct_row_bytes(const kvmem_model *m, const double *par) {
    const int every = (int)par[1];
    const size_t levels = every ? (size_t)((m->n_layers + every - 1) / every) : 1;
    return par[0] > 0 ? levels * (size_t)m->n_embd * (par[0] > 1 ? 2 : 4) : 4;
}

/* Room in a growing list for one more item: its slots double from 4 on. */
static kvmem_status kvmem__direct_room(kvmem_session *s, void **list, int n, int *cap,
                                       size_t item) {
    const int more = *cap ? *cap * 2 : 4;
    void *p;
    if (n < *cap) return KVMEM_OK;
    p = kvmem__direct_take(s, (size_t)more, item);
    if (!p) return s->error.status;
    if (n) memcpy(p, *list, (size_t)n * item);
    kvmem__direct_give(s, *list, (size_t)*cap, item);
    *list = p;
    *cap = more;
    return KVMEM_OK;
}

static kvmem_status kvmem__direct_init(kvmem_session *s) {
    const double *par = s->cache.recipe.stage[KVMEM_REDUCE].par;
    struct kvmem_direct *d;
    if (s->cache.arena->limit)
        return kvmem__fail(&s->error, KVMEM_UNSUPPORTED, "reduce=recompute: a byte limit cannot hold "
                           "while a layer is made again; give the budget in tokens");
    d = (struct kvmem_direct *)kvmem__direct_take(s, 1, sizeof *d);
    if (!d) return s->error.status;
    memset(d, 0, sizeof *d);
    s->direct = d;
    d->live = sizeof *d;
    d->as = (int)par[0];
    d->every = (int)par[1];
    d->hold = (int)par[2];
    d->per = s->cache.recipe.page;
    d->row_bytes = kvmem__direct_row_bytes(s->model, par);
    d->max_piece = KVMEM__MIN(s->max_block, (int)KVMEM__DIRECT_ROWS);
    d->pos = (int32_t *)kvmem__direct_take(s, (size_t)s->max_block, sizeof *d->pos);
    d->piece = (float *)kvmem__direct_take(s, (size_t)d->max_piece * (size_t)s->model->n_embd,
                                           sizeof(float));
    d->work = (kvmem_cache *)kvmem__direct_take(s, (size_t)kvmem__direct_works(s), sizeof *d->work);
    if (d->work) memset(d->work, 0, (size_t)kvmem__direct_works(s) * sizeof *d->work);
    return d->pos && d->piece && d->work ? KVMEM_OK : KVMEM_NO_MEMORY;
}
static void kvmem__direct_release_work(kvmem_session *s) {
    kvmem_cache *work = s->direct->work;
    int i;
    for (i = 0; work && i < kvmem__direct_works(s); i++) kvmem_cache_free(&work[i]);
}
static void kvmem__direct_release_front(kvmem_session *s) {
    struct kvmem_direct *d = s->direct;
    kvmem__direct_give(s, d->front, (size_t)d->evicted * (size_t)s->model->n_embd, sizeof(float));
    d->front = NULL;
}
static void kvmem__direct_cut(kvmem_session *s, int64_t n) {
    struct kvmem_direct *d = s->direct;
    const int chunks = (int)((n + d->per - 1) / d->per);
    while (d->n_chunks > chunks)
        kvmem__direct_give(s, d->chunk[--d->n_chunks], (size_t)d->per, d->row_bytes);
    while (d->n_runs && d->run[d->n_runs - 1].start >= n) d->n_runs--;
    kvmem__direct_release_work(s);
    d->answering = 0;
}
static void kvmem__direct_free(kvmem_session *s) {
    struct kvmem_direct *d = s->direct;
    kvmem__direct_release_front(s);
    kvmem__direct_cut(s, 0);
    kvmem__direct_give(s, d->chunk, (size_t)d->cap_chunks, sizeof *d->chunk);
    kvmem__direct_give(s, d->run, (size_t)d->cap_runs, sizeof *d->run);
    kvmem__direct_give(s, d->work, (size_t)kvmem__direct_works(s), sizeof *d->work);
    kvmem__direct_give(s, d->piece, (size_t)d->max_piece * (size_t)s->model->n_embd, sizeof(float));
    kvmem__direct_give(s, d->pos, (size_t)s->max_block, sizeof *d->pos);
    kvmem__release(&s->allocator, d, sizeof *d);
    s->direct = NULL;
}
KVMEM_API void kvmem_session_end_turn(kvmem_session *s) {
    if (s && s->direct) kvmem__direct_release_work(s);
}

/* Room for the checkpoints of n tokens. */
static kvmem_status kvmem__direct_grow(kvmem_session *s, int64_t n) {
    struct kvmem_direct *d = s->direct;
    while ((int64_t)d->n_chunks * d->per < n) {
        void *list = d->chunk, *p;
        KVMEM__TRY(kvmem__direct_room(s, &list, d->n_chunks, &d->cap_chunks, sizeof *d->chunk));
        d->chunk = (uint8_t **)list;
        p = kvmem__direct_take(s, (size_t)d->per, d->row_bytes);
        if (!p) return s->error.status;
        d->chunk[d->n_chunks++] = (uint8_t *)p;
    }
    return KVMEM_OK;
}
static kvmem_status kvmem__direct_copy(kvmem_session *dst, const kvmem_session *src) {
    const struct kvmem_direct *from = src->direct;
    struct kvmem_direct *d;
    int i;
    KVMEM__TRY(kvmem__direct_init(dst));
    d = dst->direct;
    KVMEM__TRY(kvmem__direct_grow(dst, (int64_t)from->n_chunks * from->per));
    for (i = 0; i < d->n_chunks; i++)
        memcpy(d->chunk[i], from->chunk[i], (size_t)d->per * d->row_bytes);
    for (i = 0; i < from->n_runs; i++) {
        void *list = d->run;
        KVMEM__TRY(kvmem__direct_room(dst, &list, i, &d->cap_runs, sizeof *d->run));
        d->run = (kvmem__direct_run *)list;
        d->run[d->n_runs++] = from->run[i];
    }
    d->answering = from->answering;
    return KVMEM_OK;
}

/* The checkpoint of token t that belongs to layer l. */
static uint8_t *kvmem__direct_at(const struct kvmem_direct *d, int64_t t, int l, int n_embd) {
    const size_t level = d->every ? (size_t)(l / d->every) : 0;
    return d->chunk[t / d->per] + (size_t)(t % d->per) * d->row_bytes +
           level * (size_t)n_embd * (d->as == 2 ? 2 : 4);
}
/* x (n, E) = h^l of tokens t.. */
static void kvmem__direct_load(const kvmem_session *s, int l, int64_t t, int n, float *x) {
    const kvmem_model *m = s->model;
    const kvmem_backend *b = s->backend;
    const size_t e = (size_t)m->n_embd;
    int i;
    for (i = 0; i < n; i++, x += e) {
        const uint8_t *p = kvmem__direct_at(s->direct, t + i, l, m->n_embd);
        if (s->direct->as == 0) {
            const int id = (int)kvmem__le32(p);
            b->rows(b, x, &m->embd, &id, 1, 1);
            if (m->embd_scale > 1.0f) b->scale(x, m->embd_scale, m->n_embd);
        } else if (s->direct->as == 1) memcpy(x, p, e * sizeof(float));
        else kvmem_dequantize(KVMEM_F16, x, p, e);
    }
}
static void kvmem__direct_store(const kvmem_session *s, int l, int64_t t, int n, const float *x) {
    const size_t e = (size_t)s->model->n_embd;
    int i;
    for (i = 0; i < n; i++, x += e) {
        uint8_t *p = kvmem__direct_at(s->direct, t + i, l, s->model->n_embd);
        if (s->direct->as == 1) memcpy(p, x, e * sizeof(float));
        else if (s->direct->as == 2) kvmem_quantize(KVMEM_F16, p, x, e);
    }
}

static kvmem_status kvmem__direct_begin(kvmem_session *s, const int *ids, int n,
                                        kvmem_phase phase) {
    struct kvmem_direct *d = s->direct;
    const int64_t t0 = s->cache.tokens;
    void *list = d->run;
    int i;
    if (phase != KVMEM_DECODE && d->answering) kvmem_session_end_turn(s);
    KVMEM__TRY(kvmem__direct_room(s, &list, d->n_runs, &d->cap_runs, sizeof *d->run));
    d->run = (kvmem__direct_run *)list;
    KVMEM__TRY(kvmem__direct_grow(s, t0 + n));
    for (i = 0; d->as == 0 && i < n; i++)
        kvmem__put32(kvmem__direct_at(d, t0 + i, 0, 0), (uint32_t)ids[i]);
    d->answering = phase == KVMEM_DECODE;
    d->evicted = t0 - kvmem_cache_lane_len(&s->cache, 0, 0);
    if (!d->evicted || d->every == 1) return KVMEM_OK;
    if (d->hold && d->work[0].arena && d->work[0].tokens == t0) return KVMEM_OK; /* all is there */
    d->front = (float *)kvmem__direct_take(s, (size_t)d->evicted * (size_t)s->model->n_embd,
                                           sizeof(float));
    return d->front ? KVMEM_OK : s->error.status;
}
static kvmem_status kvmem__direct_end(kvmem_session *s, int n, kvmem_status status) {
    struct kvmem_direct *d = s->direct;
    const int kind = kvmem__direct_kind(n);
    kvmem__direct_release_front(s);
    if (status != KVMEM_OK) { /* layers differ in what has left them now: all rows leave */
        const int64_t t = s->cache.tokens;
        kvmem__direct_release_work(s);
        (void)kvmem_cache_truncate(&s->cache, 0);
        s->cache.tokens = t;
        s->cache.next_pos = (int32_t)t;
    } else if (!d->n_runs || d->run[d->n_runs - 1].kind != kind) {
        d->run[d->n_runs].start = (int32_t)(s->cache.tokens - n);
        d->run[d->n_runs++].kind = kind;
    }
    return status;
}

/* An empty cache for layer l, whose rows come rotated. */
static kvmem_status kvmem__direct_open(kvmem_session *s, kvmem_cache *w, int l) {
    const kvmem_cache *c = &s->cache;
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe r = kvmem_recipe_default();
    kvmem_cache_free(w);
    r.stage[KVMEM_CODEC_K] = c->recipe.stage[KVMEM_CODEC_K];
    r.stage[KVMEM_CODEC_V] = c->recipe.stage[KVMEM_CODEC_V];
    r.page = c->recipe.page;
    cfg.shape = c->shape;
    cfg.shape.n_layers = 1;
    cfg.shape.window = c->shape.window ? c->shape.window + l : NULL;
    cfg.shape.rope = NULL;
    cfg.recipe = &r;
    cfg.allocator = s->allocator;
    cfg.max_block = s->max_block;
    cfg.threads = s->threads;
    cfg.backend = s->backend;
    return kvmem_cache_init(w, &cfg);
}
/* Rotates heads of n rows at the positions t, t + 1, ... of layer l. */
static void kvmem__direct_rope(kvmem_session *s, float *x, int l, int64_t t, int n, int heads) {
    int i;
    for (i = 0; i < n; i++) s->direct->pos[i] = (int32_t)(t + i);
    s->backend->rope(x, x, n, heads, s->model->head_dim, &s->cache.shape.rope[l], s->direct->pos, 1,
                     s->threads);
}
/* Tokens t.. t + m of the prefix, in a block of p >= m rows: their rows of layer l go to w; on: the
   block also runs through the layer and is the next one's front. */
static kvmem_status kvmem__direct_piece(kvmem_session *s, kvmem_cache *w, int l, int64_t t, int m,
                                        int p, int on) {
    struct kvmem_direct *d = s->direct;
    const kvmem_model *o = s->model;
    const size_t e = (size_t)o->n_embd;
    float *x = d->piece;
    int i;
    if (kvmem__direct_level(d, l)) kvmem__direct_load(s, l, t, m, x);
    else memcpy(x, d->front + (size_t)t * e, (size_t)m * e * sizeof(float));
    for (i = m; i < p; i++) memcpy(x + (size_t)i * e, x + (size_t)(m - 1) * e, e * sizeof(float));
    s->backend->rmsnorm(s->h, x, o->layer[l].attn_norm, p, o->n_embd, o->norm_eps, s->threads);
    kvmem__project(s, l, p, on);
    kvmem__direct_rope(s, s->k, l, t, p, o->n_kv_heads);
    KVMEM__TRY(kvmem_cache_append(w, 0, p, s->k, s->v, NULL));
    if (on) {
        kvmem__direct_rope(s, s->q, l, t, p, o->n_heads);
        KVMEM__TRY(kvmem_cache_attend(w, 0, p, s->q, s->att));
    }
    KVMEM__TRY(kvmem_cache_commit(w, KVMEM_PREFILL));
    if (p > m) KVMEM__TRY(kvmem_cache_truncate(w, t + m));
    if (!on) return KVMEM_OK;
    kvmem__mixing_part(s, l, p, x, s->att);
    memcpy(d->front + (size_t)t * e, x, (size_t)m * e * sizeof(float));
    return KVMEM_OK;
}
/* The rows that the session's cache has, from token t on. */
static kvmem_status kvmem__direct_recent(kvmem_session *s, kvmem_cache *w, int l, int64_t t) {
    const int G = s->model->n_kv_heads, n = kvmem_cache_lane_len(&s->cache, l, 0);
    const size_t d = (size_t)s->model->head_dim;
    int i, j, g, c;
    for (i = 0; i < n; i += c) {
        c = KVMEM__MIN(s->max_block, n - i);
        for (g = 0; g < G; g++) {
            KVMEM__TRY(kvmem_cache_read(&s->cache, l, g, i, c, s->q, s->att, NULL));
            for (j = 0; j < c; j++) {
                const size_t to = ((size_t)j * (size_t)G + (size_t)g) * d;
                memcpy(s->k + to, s->q + (size_t)j * d, d * sizeof(float));
                memcpy(s->v + to, s->att + (size_t)j * d, d * sizeof(float));
            }
        }
        KVMEM__TRY(kvmem_cache_append(w, 0, c, s->k, s->v, NULL));
        KVMEM__TRY(kvmem_cache_commit(w, KVMEM_PREFILL));
    }
    return w->tokens == t + n ? KVMEM_OK : kvmem__fail(&w->error, KVMEM_BAD_STATE,
        "recompute: the prefix has %lld tokens, not %lld", (long long)(w->tokens - n), (long long)t);
}
/* Steps 1 and 2 for layer l. First keeps the checkpoints of the block in flight, n rows of s->x. */
static kvmem_status kvmem__direct_rows(kvmem_session *s, int l, int n) {
    struct kvmem_direct *d = s->direct;
    const int on = l + 1 < s->model->n_layers && !kvmem__direct_level(d, l + 1);
    kvmem_cache *w = &d->work[d->hold ? l : 0];
    kvmem_status status = KVMEM_OK;
    int64_t t = 0;
    int i, m;
    if (kvmem__direct_level(d, l)) kvmem__direct_store(s, l, s->cache.tokens, n, s->x);
    if (w->arena && w->tokens == s->cache.tokens && d->hold) return KVMEM_OK;
    status = kvmem__direct_open(s, w, l);
    for (i = 0; status == KVMEM_OK && t < d->evicted; t += m) {
        int kind;
        int64_t end;
        while (i + 1 < d->n_runs && d->run[i + 1].start <= t) i++;
        kind = d->run[i].kind;
        end = i + 1 < d->n_runs ? KVMEM__MIN((int64_t)d->run[i + 1].start, d->evicted) : d->evicted;
        m = KVMEM__MIN(kvmem__direct_most(kind), d->max_piece);
        m = (int)KVMEM__MIN((int64_t)m, end - t);
        status = kvmem__direct_piece(s, w, l, t, m, KVMEM__MAX(m, kvmem__direct_least(kind)), on);
    }
    if (status == KVMEM_OK) status = kvmem__direct_recent(s, w, l, d->evicted);
    if (status != KVMEM_OK) s->cache.error = w->error;
    return status;
}

static void kvmem__add_part(kvmem_bytes_part *to, const kvmem_bytes_part *from) {
    to->k += from->k;
    to->v += from->v;
    to->meta += from->meta;
    to->stats += from->stats;
    to->scratch += from->scratch;
    to->total += from->total;
}
/* Everything that is there now beside the session's cache; of working cache `peak` its own peak. */
static kvmem_bytes_part kvmem__direct_live(const kvmem_session *s, int peak) {
    const struct kvmem_direct *d = s->direct;
    kvmem_bytes_part part = kvmem__part(2, d->live);
    int i;
    for (i = 0; i < kvmem__direct_works(s); i++)
        if (d->work[i].arena)
            kvmem__add_part(&part, i == peak ? &d->work[i].arena->peak : &d->work[i].arena->live);
    return part;
}
/* Step 3, with s->k, s->v, s->q of n tokens as they are before RoPE; s->att receives the result. */
static kvmem_status kvmem__direct_attend(kvmem_session *s, int l, int n) {
    struct kvmem_direct *d = s->direct;
    const int64_t t = s->cache.tokens;
    kvmem_cache *w = &d->work[d->hold ? l : 0];
    kvmem_bytes_part now;
    kvmem_status status;
    KVMEM__TRY(kvmem_cache_append(&s->cache, l, n, s->k, s->v, NULL));
    kvmem__direct_rope(s, s->k, l, t, n, s->model->n_kv_heads);
    kvmem__direct_rope(s, s->q, l, t, n, s->model->n_heads);
    status = kvmem_cache_append(w, 0, n, s->k, s->v, NULL);
    if (status == KVMEM_OK) status = kvmem_cache_attend(w, 0, n, s->q, s->att);
    if (status == KVMEM_OK) status = kvmem_cache_commit(w, KVMEM_PREFILL);
    if (status != KVMEM_OK) {
        s->cache.error = w->error;
        return status;
    }
    now = kvmem__direct_live(s, d->hold ? l : 0);
    kvmem__add_part(&now, &s->cache.arena->live);
    if (now.total > d->peak.total) d->peak = now;
    if (!d->hold) kvmem_cache_free(w);
    s->cache.layer_state[l] = 2; /* attended, though not there */
    return KVMEM_OK;
}

KVMEM_API void kvmem_session_bytes(const kvmem_session *s, kvmem_bytes *out) {
    kvmem_bytes_part now;
    kvmem_cache_bytes(&s->cache, out);
    if (!s->direct) return;
    now = kvmem__direct_live(s, -1);
    kvmem__add_part(&out->live, &now);
    if (s->direct->peak.total > out->peak.total) out->peak = s->direct->peak;
    if (out->live.total > out->peak.total) out->peak = out->live;
}
/* Bytes of n tokens' checkpoints; *working: of one layer's rows and of the front while a block is
   in flight, all layers' with hold. */
static size_t kvmem__direct_estimate(const kvmem_model *m, const kvmem_config *cfg, int64_t n,
                                     size_t *working) {
    const kvmem_recipe *r = cfg->recipe;
    const double *par = r->stage[KVMEM_REDUCE].par;
    const size_t all = (size_t)n, page = (size_t)r->page;
    const size_t d = (size_t)m->head_dim, e = (size_t)m->n_embd;
    const kvmem_codec *k = (const kvmem_codec *)(const void *)r->stage[KVMEM_CODEC_K].entry;
    const kvmem_codec *v = (const kvmem_codec *)(const void *)r->stage[KVMEM_CODEC_V].entry;
    const size_t row = k->row_bytes(r->stage[KVMEM_CODEC_K].par, (int)d) +
                       v->row_bytes(r->stage[KVMEM_CODEC_V].par, (int)d);
    const size_t layers = par[2] > 0 ? (size_t)m->n_layers : 1;
    *working = layers * (size_t)m->n_kv_heads * all * row;
    if (par[1] != 1.0) *working += all * e * sizeof(float);
    return (all + page - 1) / page * page * kvmem__direct_row_bytes(m, par) +
           sizeof(struct kvmem_direct) + layers * sizeof(kvmem_cache) + (size_t)cfg->max_block * sizeof(int32_t) +
           (size_t)KVMEM__MIN(cfg->max_block, (int)KVMEM__DIRECT_ROWS) * e * sizeof(float);
}

/* ==== >>flash : neurons of a ReLU layer read when they fire ======================================
   Alizadeh et al. LLM in a flash: Efficient Large Language Model Inference with Limited Memory.
   2023. arXiv 2312.11514.   Code: none found.
   In a ReLU layer out = sum_i down_i relu(up_i x + bias_i) most neurons i are 0 for a given x (97 %
   in OPT 6.7B). So the layer can stay in a file, and memory holds the union of what fired lately:
     1. predict the active set A_t           oracle, or two small matrices in memory
     2. window U_t = A_(t-k+1) + ... + A_t   neurons whose last use is k tokens ago leave
     3. load A_t \ U_(t-1)                   bundled: row of up | column of down, one read each;
                                             neighbours (and gaps up to `gap`) come in one read
     4. compute over the rows in memory; a neuron there that does not fire adds relu(..) = 0
   Memory is one table of max_rows rows, never resized: row r holds neuron pointer[r]; a neuron
   leaves by moving the last row into its place and comes by taking the next row, so pointer stays a
   bijection onto 0..n_rows-1 and the work is that of the rows that change.
   Example F=6, k=2: A = {0,1}, {1,2}, {2,5} loads 2, 1, 1 neurons; {1,2,5} are left.
   reads: nothing of the cache; weights, not K and V, so it is no recipe entry.
   SwiGLU and GeGLU models (every architecture of >>model) have no such zeros: about half of their
   neurons would count as active, and leaving the others out changes the result.
   cost: |A_t \ U_(t-1)| records read, 2 D n_rows products a token.   defaults of the paper: k=5 (4
   in its memory budget), reads of 32 KiB and more, several threads, no cache of the system's.
   departs: a full table drops the neurons used longest ago early instead of growing (counted);
   training a predictor is the caller's, low_rank makes one without.        test: tests/flash.c */
enum { KVMEM__FLASH_RANK = 256 };
static size_t kvmem__flash_value(const kvmem_flash_config *c) {
    return c->type == KVMEM_F32 ? 4 : 2;
}

static kvmem_status kvmem__flash_check(const kvmem_flash_config *c, kvmem_error *e) {
    if (c->n_embd < 1 || c->n_embd > 1 << 20 || c->n_ff < 1 || c->n_ff > 1 << 24)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "flash: a layer of %d times %d values", c->n_ff,
                           c->n_embd);
    if (c->type != KVMEM_F32 && c->type != KVMEM_F16 && c->type != KVMEM_BF16)
        return kvmem__fail(e, KVMEM_UNSUPPORTED, "flash: values of type %d; f32, f16 or bf16",
                           (int)c->type);
    if (c->window < 0 || c->gap < 0 || c->max_rows < 0 || c->max_rows > c->n_ff)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT,
                           "flash: window %d, gap %d or max_rows %d of %d neurons", c->window,
                           c->gap, c->max_rows, c->n_ff);
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_flash_init(kvmem_flash *f, const kvmem_flash_config *cfg) {
    const size_t d = (size_t)cfg->n_embd, n = (size_t)cfg->n_ff;
    size_t rows, table, chunk, size;
    kvmem_allocator a;
    char *p;
    int i;
    memset(f, 0, sizeof *f);
    KVMEM__TRY(kvmem__flash_check(cfg, &f->error));
    f->config = *cfg;
    if (!cfg->max_rows) f->config.max_rows = cfg->n_ff;
    rows = (size_t)f->config.max_rows;
    chunk = 2 * d * kvmem__flash_value(cfg);
    f->chunk_rows = (int)KVMEM__MIN(rows, 65536 / chunk + 1);
    chunk *= (size_t)f->chunk_rows;
    if (!kvmem__mul(cfg->read ? rows : 0, 2 * d * sizeof(float), &table) ||
        !kvmem__add(table, chunk, &size) ||
        !kvmem__add(size, n * (sizeof *f->last + sizeof *f->row_of) + rows * sizeof *f->pointer,
                    &size))
        return kvmem__fail(&f->error, KVMEM_BAD_ARGUMENT, "flash: the table overflows");
    a = kvmem__allocator(&cfg->allocator);
    f->config.allocator = a;
    p = (char *)kvmem__alloc(&a, size);
    if (!p) return kvmem__fail(&f->error, KVMEM_NO_MEMORY, "flash: no memory for %zu bytes", size);
    f->block = p;
    f->block_size = size;
    f->last = (int64_t *)(void *)p;
    f->rows = (float *)(void *)(p + n * sizeof *f->last);
    f->row_of = (int *)(void *)((char *)f->rows + table);
    f->pointer = f->row_of + n;
    f->chunk = (uint8_t *)(f->pointer + rows);
    memset(f->last, 0, n * sizeof *f->last);
    for (i = 0; i < cfg->n_ff; i++) f->row_of[i] = -1;
    return KVMEM_OK;
}
KVMEM_API void kvmem_flash_free(kvmem_flash *f) {
    if (!f) return;
    kvmem__release(&f->config.allocator, f->block, f->block_size);
    memset(f, 0, sizeof *f);
}

/* The neuron of row r leaves; the last row takes its place. */
static void kvmem__flash_drop(kvmem_flash *f, int r) {
    const size_t width = 2 * (size_t)f->config.n_embd;
    const int end = --f->n_rows;
    f->row_of[f->pointer[r]] = -1;
    f->count.dropped++;
    if (r == end) return;
    f->count.bytes_moved += width * sizeof(float);
    if (f->config.read)
        memcpy(f->rows + (size_t)r * width, f->rows + (size_t)end * width, width * sizeof(float));
    f->pointer[r] = f->pointer[end];
    f->row_of[f->pointer[r]] = r;
}
/* Those whose window is over leave; then, while `more` do not fit, those used longest ago. */
static void kvmem__flash_expire(kvmem_flash *f, int more) {
    const int64_t now = f->count.tokens;
    int r;
    for (r = f->n_rows - 1; r >= 0 && f->config.window; r--)
        if (f->last[f->pointer[r]] <= now - f->config.window) kvmem__flash_drop(f, r);
    while (f->n_rows + more > f->config.max_rows) {
        int oldest = 0;
        for (r = 1; r < f->n_rows; r++)
            if (f->last[f->pointer[r]] < f->last[f->pointer[oldest]]) oldest = r;
        kvmem__flash_drop(f, oldest);
        f->count.early++;
    }
}
/* n neighbours from neuron i0 on come in one read, or two if split; want[] of them get rows. */
static kvmem_status kvmem__flash_read(kvmem_flash *f, int i0, int n, const int *want, int n_want) {
    const kvmem_flash_config *c = &f->config;
    const size_t d = (size_t)c->n_embd, value = kvmem__flash_value(c);
    const size_t width = (c->split ? d : 2 * d) * value, all = (size_t)c->n_ff * width;
    int part, j;
    for (part = 0; part <= c->split; part++) {
        f->count.reads++;
        f->count.bytes_read += (size_t)n * width;
        f->count.bytes_moved += (size_t)n_want * (width / value) * sizeof(float);
        if (!c->read) continue;
        if (c->read(c->user, (size_t)part * all + (size_t)i0 * width, f->chunk, (size_t)n * width))
            return kvmem__fail(&f->error, KVMEM_IO, "flash: neurons %d to %d cannot be read", i0,
                               i0 + n - 1);
        for (j = 0; j < n_want; j++) {
            float *to = f->rows + (size_t)(f->n_rows + j) * 2 * d + (size_t)part * d;
            kvmem_dequantize(c->type, to, f->chunk + (size_t)(want[j] - i0) * width, width / value);
        }
    }
    for (j = 0; j < n_want; j++) {
        f->pointer[f->n_rows] = want[j];
        f->row_of[want[j]] = f->n_rows++;
        f->count.loaded++;
    }
    return KVMEM_OK;
}
/* The active neurons that are missing, in runs with gaps of at most config.gap. */
static kvmem_status kvmem__flash_load(kvmem_flash *f, const int *active, int n) {
    int want[64], m = 0, i;
    for (i = 0; i <= n; i++) {
        const int id = i < n ? active[i] : INT_MAX;
        if (i < n && f->row_of[id] >= 0) continue;
        if (m && (i == n || m == 64 || id - want[m - 1] - 1 > f->config.gap ||
                  id - want[0] >= f->chunk_rows)) {
            KVMEM__TRY(kvmem__flash_read(f, want[0], want[m - 1] - want[0] + 1, want, m));
            m = 0;
        }
        if (i < n) want[m++] = id;
    }
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_flash_step(kvmem_flash *f, const int *active, int n, const float *x,
                                        float *out) {
    const kvmem_flash_config *c = &f->config;
    const kvmem_backend *b = kvmem_backend_cpu(NULL);
    const size_t d = (size_t)c->n_embd;
    int i, missing = 0;
    if (!f->block) return KVMEM_BAD_STATE;
    if (n < 0 || (n && !active) || (c->read && (!x || !out)))
        return kvmem__fail(&f->error, KVMEM_BAD_ARGUMENT,
                           "flash: %d neurons, or an array is missing", n);
    for (i = 0; i < n; i++)
        if (active[i] < 0 || active[i] >= c->n_ff || (i && active[i] <= active[i - 1]))
            return kvmem__fail(&f->error, KVMEM_BAD_ARGUMENT,
                               "flash: neuron %d at index %d is out of range or "
                               "order",
                               active[i], i);
    if (n > c->max_rows)
        return kvmem__fail(&f->error, KVMEM_OVER_BUDGET, "flash: %d active neurons and room for %d",
                           n, c->max_rows);
    f->count.tokens++;
    for (i = 0; i < n; i++) {
        f->last[active[i]] = f->count.tokens;
        missing += f->row_of[active[i]] < 0;
    }
    kvmem__flash_expire(f, missing);
    KVMEM__TRY(kvmem__flash_load(f, active, n));
    f->count.products += (uint64_t)f->n_rows * 2 * d;
    if (!c->read) return KVMEM_OK;
    memset(out, 0, d * sizeof(float));
    for (i = 0; i < f->n_rows; i++) {
        const float *row = f->rows + (size_t)i * 2 * d;
        float v = b->dot(row, x, c->n_embd);
        if (c->bias) v += c->bias[f->pointer[i]];
        if (v > 0) b->axpy(out, v, row + d, c->n_embd);
    }
    return KVMEM_OK;
}
KVMEM_API double kvmem_flash_seconds(const kvmem_flash_counts *c, const kvmem_flash_machine *m) {
    return ((double)c->reads * m->latency + (double)c->bytes_read / m->flash) / m->threads +
           (double)c->bytes_moved / m->memory + (double)c->products / m->compute;
}

KVMEM_API int kvmem_flash_oracle(const float *up, const float *bias, int n_ff, int n_embd,
                                 const float *x, float threshold, int *active) {
    const kvmem_backend *b = kvmem_backend_cpu(NULL);
    int i, n = 0;
    for (i = 0; i < n_ff; i++)
        if (b->dot(up + (size_t)i * (size_t)n_embd, x, n_embd) + (bias ? bias[i] : 0) > threshold)
            active[n++] = i;
    return n;
}
KVMEM_API int kvmem_flash_predict(const float *a, const float *b, const float *bias, int n_ff,
                                  int n_embd, int r, const float *x, float threshold, int *active) {
    const kvmem_backend *be = kvmem_backend_cpu(NULL);
    float z[KVMEM__FLASH_RANK];
    int i;
    if (r < 1 || r > KVMEM__FLASH_RANK) return -1;
    memset(z, 0, sizeof z);
    for (i = 0; i < n_embd; i++) be->axpy(z, x[i], a + (size_t)i * (size_t)r, r);
    return kvmem_flash_oracle(b, bias, n_ff, r, z, threshold, active);
}
KVMEM_API void kvmem_flash_low_rank(float *a, float *b, const float *up, int n_ff, int n_embd,
                                    int r) {
    kvmem__low_rank(b, a, up, n_ff, n_embd, r, 20, 1);
}
KVMEM_API kvmem_status kvmem_flash_write(const kvmem_flash_config *cfg, const float *up,
                                         const float *down, void *out) {
    const size_t d = (size_t)cfg->n_embd, n = (size_t)cfg->n_ff, value = kvmem__flash_value(cfg);
    size_t i, j;
    KVMEM__TRY(kvmem__flash_check(cfg, NULL));
    for (i = 0; i < n; i++) {
        uint8_t *p = (uint8_t *)out + i * (cfg->split ? d : 2 * d) * value;
        uint8_t *second = p + (cfg->split ? n : 1) * d * value;
        KVMEM__TRY(kvmem_quantize(cfg->type, p, up + i * d, d));
        for (j = 0; j < d; j++)
            KVMEM__TRY(kvmem_quantize(cfg->type, second + j * value, down + j * n + i, 1));
    }
    return KVMEM_OK;
}
KVMEM_API int kvmem_flash_best_window(const kvmem_flash_config *cfg, const kvmem_flash_machine *m,
                                      const int *active, const int *count, int n_tokens, int most,
                                      double *seconds) {
    int k, t, best = 0;
    for (k = 1; k <= most; k++) {
        kvmem_flash_config c = *cfg;
        kvmem_flash f;
        const int *at = active;
        kvmem_status status;
        double took;
        c.window = k;
        c.read = NULL;
        status = kvmem_flash_init(&f, &c);
        for (t = 0; t < n_tokens && status == KVMEM_OK; at += count[t++])
            status = kvmem_flash_step(&f, at, count[t], NULL, NULL);
        took = kvmem_flash_seconds(&f.count, m);
        if (status == KVMEM_OK && !f.count.early && (!best || took < *seconds)) {
            best = k;
            *seconds = took;
        }
        kvmem_flash_free(&f);
    }
    return best;
}

/* ==== >>sampling : from logits to a token =========================================================
   l (n_vocab) logits. 1. Repetition penalty: a token among the last `repeat_last` accepted ones has l/p if
   l > 0, else l*p (Keskar et al. CTRL. 2019. 1909.05858). 2. Temperature 0: the highest l, ties to the
   lower id. 3. top-k: the k highest. 4. p = softmax(l / T). 5. top-p: the fewest of the highest whose sum
   reaches top_p (Holtzman et al. 2019. 1904.09751). 6. min-p: of those, p >= min_p * max p (Nguyen et al.
   2024. 2407.01082). 7. One draw u in [0,1) walks the rest in rising id. u is a function of the seed and
   of the number of draws before it; the arithmetic is plain C, so equal logits give equal tokens
   everywhere. Nothing is sorted: top-k and top-p are quickselects, so a token costs O(n_vocab). */
KVMEM_API kvmem_sampler_config kvmem_sampler_config_default(void) {
    kvmem_sampler_config c;
    memset(&c, 0, sizeof c);
    c.temperature = 0.8f;
    c.top_k = 40;
    c.top_p = 0.95f;
    c.min_p = 0.05f;
    c.repeat_penalty = 1;
    c.repeat_last = 64;
    return c;
}
static kvmem_status kvmem__sampler_check(kvmem_error *e, const kvmem_sampler_config *c, int n_vocab) {
    const double inf = (double)INFINITY;
    if (n_vocab < 1) return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "sampler: n_vocab %d is below 1", n_vocab);
    if (!(c->temperature >= 0 && (double)c->temperature < inf))
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "sampler: temperature %g is not 0 or more",
                           (double)c->temperature);
    if (c->top_k < 0) return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "sampler: top_k %d is below 0", c->top_k);
    if (!(c->top_p >= 0 && c->top_p <= 1))
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "sampler: top_p %g is not in 0..1", (double)c->top_p);
    if (!(c->min_p >= 0 && c->min_p <= 1))
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "sampler: min_p %g is not in 0..1", (double)c->min_p);
    if (!(c->repeat_penalty > 0 && (double)c->repeat_penalty < inf))
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "sampler: repeat_penalty %g is not above 0",
                           (double)c->repeat_penalty);
    if (c->repeat_last < 0 || c->repeat_last > 1 << 24)
        return kvmem__fail(e, KVMEM_BAD_ARGUMENT, "sampler: repeat_last %d is not in 0..2^24", c->repeat_last);
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_sampler_init(kvmem_sampler *s, const kvmem_sampler_config *cfg, int n_vocab,
                                          const kvmem_allocator *allocator) {
    const kvmem_sampler_config c = cfg ? *cfg : kvmem_sampler_config_default();
    size_t items;
    if (!s) return KVMEM_BAD_ARGUMENT;
    memset(s, 0, sizeof *s);
    KVMEM__TRY(kvmem__sampler_check(&s->error, &c, n_vocab));
    s->allocator = kvmem__allocator(allocator);
    if (!kvmem__mul((size_t)n_vocab, 3, &items) || !kvmem__add(items, (size_t)c.repeat_last, &items) ||
        !kvmem__mul(items, 4, &s->block_size)) s->block_size = SIZE_MAX;
    s->block = s->block_size < SIZE_MAX ? kvmem__alloc(&s->allocator, s->block_size) : NULL;
    if (!s->block)
        return kvmem__fail(&s->error, KVMEM_NO_MEMORY, "sampler: no memory for %d logits", n_vocab);
    s->config = c;
    s->n_vocab = n_vocab;
    s->value = (float *)s->block;
    s->index = (int *)(void *)(s->value + n_vocab);
    s->order = s->index + n_vocab;
    s->recent = s->order + n_vocab;
    return KVMEM_OK;
}
KVMEM_API void kvmem_sampler_free(kvmem_sampler *s) {
    if (!s) return;
    kvmem__release(&s->allocator, s->block, s->block_size);
    memset(s, 0, sizeof *s);
}
KVMEM_API void kvmem_sampler_accept(kvmem_sampler *s, int id) {
    if (!s || !s->block || s->config.repeat_last == 0 || id < 0 || id >= s->n_vocab) return;
    s->recent[s->recent_at] = id;
    s->recent_at = (s->recent_at + 1) % s->config.repeat_last;
    if (s->n_recent < s->config.repeat_last) s->n_recent++;
}

static float kvmem__sampler_weight(const kvmem_sampler *s, int id, float max) {
    return kvmem__expf((s->value[id] - max) / s->config.temperature);
}
/* How many of the ids a (n), best first, have weights that add up to target (at least one). They end up in
   front, in no order: quickselect that weighs the better side of each pivot, expected O(n). */
static int kvmem__sampler_mass(const kvmem_sampler *s, int *a, int n, float max, double target) {
    int lo = 0, hi = n - 1, i, j, k;
    double sum = 0; /* of a[0..lo) */
    while (lo < hi) {
        const int p = a[lo + (hi - lo) / 2];
        double more = 0;
        for (i = lo, j = hi; i <= j;) {
            while (kvmem__before(s->value, a[i], p)) i++;
            while (kvmem__before(s->value, p, a[j])) j--;
            if (i <= j) { k = a[i]; a[i] = a[j]; a[j] = k; i++; j--; }
        }
        for (k = lo; k <= j; k++) more += (double)kvmem__sampler_weight(s, a[k], max);
        if (sum + more >= target) { hi = j; continue; }
        if (j + 2 == i) { /* the pivot alone between the sides */
            more += (double)kvmem__sampler_weight(s, p, max);
            if (sum + more >= target) return i;
        }
        sum += more;
        lo = i;
    }
    return KVMEM__MIN(lo + 1, n);
}
/* Copy the logits, penalize what was said; *best is the highest. */
static kvmem_status kvmem__sampler_load(kvmem_sampler *s, const float *logits, int *best) {
    int i, top = 0;
    for (i = 0; i < s->n_vocab; i++) {
        if (!(logits[i] <= FLT_MAX))
            return kvmem__fail(&s->error, KVMEM_BAD_VALUE, "sampler: logit %d is not a number or infinite", i);
        s->value[i] = logits[i];
    }
    for (i = 0; i < s->n_recent; i++) { /* from the given logit: a token twice in the ring counts once */
        const float l = logits[s->recent[i]], p = s->config.repeat_penalty;
        s->value[s->recent[i]] = l > 0 ? l / p : l * p;
    }
    for (i = 1; i < s->n_vocab; i++) if (s->value[i] > s->value[top]) top = i;
    if (!(s->value[top] >= -FLT_MAX && s->value[top] <= FLT_MAX))
        return kvmem__fail(&s->error, KVMEM_BAD_VALUE, "sampler: the highest logit is infinite");
    *best = top;
    return KVMEM_OK;
}
/* The tokens that top-k and top-p leave: s->order (returned number), rising ids. */
static int kvmem__sampler_keep(kvmem_sampler *s, float max) {
    const kvmem_sampler_config *c = &s->config;
    double total = 0;
    int n = s->n_vocab, i, m, worst;
    if (c->top_k > 0 && c->top_k < n) n = kvmem__topk(s->order, s->value, n, c->top_k, s->index);
    else for (i = 0; i < n; i++) s->order[i] = i;
    if (c->top_p >= 1) return n;
    for (i = 0; i < n; i++) total += (double)kvmem__sampler_weight(s, s->order[i], max);
    memcpy(s->index, s->order, (size_t)n * sizeof(int));
    m = kvmem__sampler_mass(s, s->index, n, max, total * (double)c->top_p);
    for (worst = s->index[0], i = 1; i < m; i++)
        if (kvmem__before(s->value, worst, s->index[i])) worst = s->index[i];
    for (i = m = 0; i < n; i++) /* the same tokens, by rising id */
        if (!kvmem__before(s->value, worst, s->order[i])) s->order[m++] = s->order[i];
    return m;
}
KVMEM_API kvmem_status kvmem_sample(kvmem_sampler *s, const float *logits, int *id) {
    int best = 0, n, i, m = 0;
    double sum = 0, u;
    float max, least;
    if (!s || !s->block) return KVMEM_BAD_STATE;
    if (!logits || !id) return kvmem__fail(&s->error, KVMEM_BAD_ARGUMENT, "sampler: a pointer is missing");
    KVMEM__TRY(kvmem__sampler_load(s, logits, &best));
    if (!(s->config.temperature > 0)) { *id = best; return KVMEM_OK; }
    max = s->value[best];
    n = kvmem__sampler_keep(s, max);
    least = s->config.min_p; /* the best token weighs exp(0) = 1 */
    for (i = 0; i < n; i++) {
        const float w = kvmem__sampler_weight(s, s->order[i], max);
        if (!(w > 0) || w < least) continue;
        s->order[m++] = s->order[i];
        sum += (double)w;
    }
    u = kvmem__unit(kvmem__random(s->config.seed, s->draws++, 0, 0)) * sum;
    for (i = 0, sum = 0; i < m - 1; i++) {
        sum += (double)kvmem__sampler_weight(s, s->order[i], max);
        if (u < sum) break;
    }
    *id = s->order[i];
    return KVMEM_OK;
}

#ifdef KVMEM_TRAIN
/* ==== >>train : the llama family learns ===========================================================
   Forward pass with kept activations, backward pass, AdamW. n = n_seq * len tokens pass as n rows; names and
   shapes are the decoder's (E n_embd, H heads, G KV heads, d head_dim, F n_ff). One layer:

       h   = rmsnorm(x) w_attn            q, k, v = h Wq', h Wk', h Wv'     q, k: (norm and) RoPE
       att = softmax(q k' / sqrt d) v     mid = x + att Wo'
       h2  = rmsnorm(mid) w_ffn           a   = silu(h2 Wgate') * (h2 Wup')
       x'  = mid + a Wdown'

   The backward pass walks the same lines from below. For y = x W' it is  dx = dy W,  dW += dy' x, and the
   backend's matmul (out = x times a transposed matrix) does all three once W, dy and x are transposed. So
   training runs on the kernels of inference, and every sum has an order that the number of threads does not
   change. Attention is computed in blocks of queries and keys and only its log-sum-exp is kept (Dao 2022,
   arXiv 2205.14135); its backward pass recomputes the probabilities. With `recompute` only x is kept of
   every layer (Chen 2016, arXiv 1604.06174). */
enum { KVMEM__TRAIN_KEYS = 128, KVMEM__TRAIN_ROWS = 128, KVMEM__TRAIN_CHUNK = 256, KVMEM__TRAIN_PIECE = 4096,
       KVMEM__TRAIN_GROUP = 464 };
#ifdef _OPENMP
#define KVMEM__TRAIN_WORKER omp_get_thread_num()
#else
#define KVMEM__TRAIN_WORKER 0
#endif

/* What is kept of a layer. */
typedef struct kvmem__acts {
    float *h, *q0, *k0, *q, *k, *v, *att, *lse, *mid, *h2, *gate, *up, *a; /* q0, k0: before qk_norm */
} kvmem__acts;

KVMEM_API kvmem_train_config kvmem_train_config_default(void) {
    kvmem_train_config c;
    memset(&c, 0, sizeof c);
    c.n_vocab = 1024;
    c.n_embd = 256;
    c.n_layers = 4;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.head_dim = 64;
    c.n_ff = 512;
    c.tied = 1;
    c.norm_eps = 1e-5f;
    c.rope_base = 10000;
    c.max_tokens = c.max_len = 1024;
    return c;
}
KVMEM_API float kvmem_cosine(int64_t i, int64_t warmup, int64_t total, float peak, float floor) {
    if (i < warmup) return peak * (float)(i + 1) / (float)warmup;
    if (i >= total) return floor;
    return floor + (peak - floor) * 0.5f *
                       (1 + (float)cos(3.14159265358979323846 * (double)(i - warmup) / (double)(total - warmup)));
}

/* ---- parameters ---- */
static int kvmem__train_add(kvmem_trainer *t, int layer, const char *name, int rows, int cols, int decay) {
    kvmem_weight *p = &t->param[t->n_params];
    kvmem__text out;
    out.out = p->name;
    out.size = sizeof p->name;
    out.len = 0;
    if (layer >= 0) kvmem__format(&out, "blk.%d.%s", layer, name);
    else kvmem__format(&out, "%s", name);
    p->rows = rows;
    p->cols = cols;
    p->decay = decay;
    t->n_values += (size_t)rows * (size_t)cols; /* may wrap on 32 bit: kvmem__train_carve counts again */
    return t->n_params++;
}
static void kvmem__train_params(kvmem_trainer *t) {
    const kvmem_train_config *c = &t->config;
    const int E = c->n_embd, Q = c->n_heads * c->head_dim, K = c->n_kv_heads * c->head_dim, F = c->n_ff;
    int l;
    t->embd = t->head = kvmem__train_add(t, -1, "token_embd.weight", c->n_vocab, E, 1);
    for (l = 0; l < c->n_layers; l++) {
        kvmem_train_layer *y = &t->layer[l];
        y->attn_norm = kvmem__train_add(t, l, "attn_norm.weight", 1, E, 0);
        y->q = kvmem__train_add(t, l, "attn_q.weight", Q, E, 1);
        y->k = kvmem__train_add(t, l, "attn_k.weight", K, E, 1);
        y->v = kvmem__train_add(t, l, "attn_v.weight", K, E, 1);
        y->o = kvmem__train_add(t, l, "attn_output.weight", E, Q, 1);
        y->q_norm = c->qk_norm ? kvmem__train_add(t, l, "attn_q_norm.weight", 1, c->head_dim, 0) : -1;
        y->k_norm = c->qk_norm ? kvmem__train_add(t, l, "attn_k_norm.weight", 1, c->head_dim, 0) : -1;
        y->ffn_norm = kvmem__train_add(t, l, "ffn_norm.weight", 1, E, 0);
        y->gate = kvmem__train_add(t, l, "ffn_gate.weight", F, E, 1);
        y->up = kvmem__train_add(t, l, "ffn_up.weight", F, E, 1);
        y->down = kvmem__train_add(t, l, "ffn_down.weight", E, F, 1);
        y->prefix_k = c->prefix ? kvmem__train_add(t, l, "prefix_k", c->prefix, K, 0) : -1;
        y->prefix_v = c->prefix ? kvmem__train_add(t, l, "prefix_v", c->prefix, K, 0) : -1;
    }
    t->out_norm = kvmem__train_add(t, -1, "output_norm.weight", 1, E, 0);
    if (!c->tied) t->head = kvmem__train_add(t, -1, "output.weight", c->n_vocab, E, 1);
}
/* ---- memory: one block, carved up ---- */
static size_t kvmem__train_take(size_t *at, double floats) { /* offset of so many floats, in floats */
    const size_t here = *at;
    if (floats > (double)(SIZE_MAX / 16) || *at > SIZE_MAX / 16) { *at = SIZE_MAX / 8; return 0; }
    *at += ((size_t)floats + 15) / 16 * 16;
    return here;
}
/* Queries of a block (tokens) for attention: about TRAIN_ROWS rows with the group's heads. */
static int kvmem__train_block(const kvmem_train_config *c) {
    const int rep = c->n_heads / c->n_kv_heads;
    return KVMEM__MAX(16, KVMEM__TRAIN_ROWS / rep);
}
static int kvmem__train_span(const kvmem_train_config *c, int len) { /* keys of a sequence, whole blocks */
    return (len + c->prefix + KVMEM__TRAIN_KEYS - 1) / KVMEM__TRAIN_KEYS * KVMEM__TRAIN_KEYS;
}
static double kvmem__train_job_floats(const kvmem_train_config *c) {
    const double T = kvmem__train_span(c, c->max_len), d = c->head_dim;
    const double R = (double)kvmem__train_block(c) * (c->n_heads / c->n_kv_heads);
    return 5 * T * d + 8 * R * d + R * T + (3 * R + d) * (double)KVMEM__TRAIN_KEYS + 4 * R + 256;
}
static double kvmem__train_act_floats(const kvmem_train_config *c) {
    const double n = c->max_tokens, E = c->n_embd, Q = (double)c->n_heads * c->head_dim;
    const double K = (double)c->n_kv_heads * c->head_dim;
    return n * (3 * E + (2 + c->qk_norm) * Q + (2 + c->qk_norm) * K + c->n_heads + 3.0 * c->n_ff) + 256;
}
static void kvmem__train_acts(const kvmem_trainer *t, int l, kvmem__acts *a) {
    const kvmem_train_config *c = &t->config;
    const size_t n = (size_t)c->max_tokens, E = n * (size_t)c->n_embd, F = n * (size_t)c->n_ff;
    const size_t Q = n * (size_t)c->n_heads * (size_t)c->head_dim, K = Q / (size_t)c->n_heads * (size_t)c->n_kv_heads;
    float *p = t->act + (c->recompute ? 0 : (size_t)l * t->act_floats);
    a->h = p; p += E;
    a->mid = p; p += E;
    a->h2 = p; p += E;
    a->q = p; p += Q;
    a->k = p; p += K;
    a->v = p; p += K;
    a->att = p; p += Q;
    a->q0 = p; p += c->qk_norm ? Q : 0;
    a->k0 = p; p += c->qk_norm ? K : 0;
    a->gate = p; p += F;
    a->up = p; p += F;
    a->a = p; p += F;
    a->lse = p;
}
static double kvmem__train_wide(const kvmem_train_config *c) { /* the widest row of activations, logits apart */
    return KVMEM__MAX(KVMEM__MAX((double)c->n_embd, (double)c->n_ff), (double)c->n_heads * c->head_dim);
}
static double kvmem__train_prefix_floats(const kvmem_train_config *c) { /* a sequence's gradients of prefix K and V */
    return 2.0 * c->prefix * c->n_kv_heads * c->head_dim;
}
static double kvmem__train_big_floats(const kvmem_train_config *c) {
    const double wide = kvmem__train_wide(c);
    const double chunk = (double)KVMEM__TRAIN_CHUNK * KVMEM__MAX((double)c->n_vocab, wide);
    return KVMEM__MAX(KVMEM__MAX(c->max_tokens * wide, chunk), kvmem__train_prefix_floats(c));
}
/* Offsets of everything in the block; base NULL only counts. Returns floats, SIZE_MAX/8 if too many. Sizes
   are counted in double first: no product of this configuration can wrap. */
static size_t kvmem__train_carve(kvmem_trainer *t, float *base) {
    const kvmem_train_config *c = &t->config;
    const double n = c->max_tokens, E = c->n_embd, V = c->n_vocab;
    const double matrix = E * KVMEM__MAX(kvmem__train_wide(c), V), jobs = kvmem__train_job_floats(c);
    double values = 0;
    size_t at = 0, i, o;
    float **big = t->big;
    for (i = 0; i < (size_t)t->n_params; i++) values += (double)t->param[i].rows * t->param[i].cols;
    if (KVMEM__MAX(KVMEM__MAX(values, jobs), kvmem__train_act_floats(c)) > (double)(SIZE_MAX / 16)) return SIZE_MAX / 8;
    for (i = 0; i < 4; i++) {
        float **p[4];
        p[0] = &t->w; p[1] = &t->grad; p[2] = &t->m; p[3] = &t->v;
        o = kvmem__train_take(&at, values);
        *p[i] = base ? base + o : NULL;
    }
    t->act_floats = (size_t)kvmem__train_act_floats(c);
    o = kvmem__train_take(&at, kvmem__train_act_floats(c) * (c->recompute ? 1 : c->n_layers));
    t->act = base ? base + o : NULL;
    o = kvmem__train_take(&at, n * E * (c->n_layers + 1));
    t->stream = base ? base + o : NULL;
    o = kvmem__train_take(&at, ((double)c->max_len + c->prefix) * c->head_dim);
    t->turn = base ? base + o : NULL;
    for (i = 0; i < 10; i++) { /* 0..5 rows of activations and their gradients, 6, 7 transposed, 8, 9 matrices */
        o = kvmem__train_take(&at, i < 8 ? kvmem__train_big_floats(c) : matrix);
        big[i] = base ? base + o : NULL;
    }
    t->job_floats = (size_t)jobs / 16 * 16 + 16;
    o = kvmem__train_take(&at, (double)t->job_floats * t->threads);
    t->job = base ? base + o : NULL;
    o = kvmem__train_take(&at, n);
    t->nll = base ? base + o : NULL;
    o = kvmem__train_take(&at, n);
    t->best = base ? (int *)(void *)(base + o) : NULL;
    o = kvmem__train_take(&at, n);
    t->rows = base ? (int *)(void *)(base + o) : NULL;
    return at;
}

static kvmem_status kvmem__train_check(kvmem_trainer *t) {
    const kvmem_train_config *c = &t->config;
    const uint32_t one = 1;
    const struct { const char *name; int value, lo, hi; } range[] = {
        { "n_vocab", c->n_vocab, 2, 1 << 20 },     { "n_embd", c->n_embd, 1, 1 << 16 },
        { "n_layers", c->n_layers, 1, 1024 },      { "n_heads", c->n_heads, 1, 1024 },
        { "n_kv_heads", c->n_kv_heads, 1, 1024 },  { "head_dim", c->head_dim, 2, 1024 },
        { "n_ff", c->n_ff, 1, 1 << 18 },           { "max_tokens", c->max_tokens, 1, 1 << 24 },
        { "max_len", c->max_len, 1, 1 << 20 },     { "prefix", c->prefix, 0, 1 << 16 },
        { "threads", c->threads, 0, 1024 },
    };
    size_t i;
    if (*(const unsigned char *)&one != 1)
        return kvmem__fail(&t->error, KVMEM_UNSUPPORTED, "trainer: this host is big-endian, weights here are "
                                                         "little-endian as in files");
    for (i = 0; i < sizeof range / sizeof *range; i++)
        if (range[i].value < range[i].lo || range[i].value > range[i].hi)
            return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: %s is %d, not in %d..%d", range[i].name,
                               range[i].value, range[i].lo, range[i].hi);
    if (c->n_heads % c->n_kv_heads)
        return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: %d heads do not share %d KV heads evenly",
                           c->n_heads, c->n_kv_heads);
    if (c->head_dim % 2)
        return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: head_dim %d is odd", c->head_dim);
    if (c->max_tokens > INT_MAX / c->n_heads)
        return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: %d tokens of %d heads are too many for one batch",
                           c->max_tokens, c->n_heads);
    if (!(c->norm_eps > 0 && c->norm_eps <= 1) || !(c->rope_base > 1 && c->rope_base <= (double)FLT_MAX))
        return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: norm_eps %g or rope_base %g is out of range",
                           (double)c->norm_eps, c->rope_base);
    return KVMEM_OK;
}
static void kvmem__train_place(kvmem_trainer *t) { /* parameters into the block, RoPE's table */
    const int half = t->config.head_dim / 2, span = t->config.max_len + t->config.prefix;
    size_t at = 0;
    int i, p;
    for (i = 0; i < t->n_params; i++) {
        t->param[i].w = t->w + at;
        t->param[i].grad = t->grad + at;
        at += (size_t)t->param[i].rows * (size_t)t->param[i].cols;
    }
    for (p = 0; p < span; p++)
        for (i = 0; i < half; i++) {
            const float inv = (float)pow(t->config.rope_base, -2.0 * i / t->config.head_dim);
            float *cs = t->turn + ((size_t)p * (size_t)half + (size_t)i) * 2;
            cs[0] = (float)cos((double)p * (double)inv);
            cs[1] = (float)sin((double)p * (double)inv);
        }
}
KVMEM_API kvmem_status kvmem_trainer_init(kvmem_trainer *t, const kvmem_train_config *cfg) {
    kvmem_allocator a;
    kvmem_tensor w;
    size_t params, layers, floats, bytes, mm;
    if (!t) return KVMEM_BAD_ARGUMENT;
    memset(t, 0, sizeof *t);
    if (!cfg) return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: no configuration");
    t->config = *cfg;
    KVMEM__TRY(kvmem__train_check(t));
    t->config.allocator = a = kvmem__allocator(&cfg->allocator);
    if (!t->config.backend) t->config.backend = kvmem_backend_cpu(NULL);
    t->threads = kvmem__threads(cfg->threads);
    /* scratch of matmul: one part for every worker of the attention, or one for all threads together;
       kvmem__train_mm passes at most TRAIN_GROUP rows at once */
    memset(&w, 0, sizeof w);
    w.type = KVMEM_F32;
    w.ne[0] = w.ne[1] = w.ne[2] = w.ne[3] = 1;
    mm = t->config.backend->matmul_scratch(t->config.backend, &w, KVMEM__TRAIN_GROUP, t->threads) +
         (size_t)t->threads * (t->config.backend->matmul_scratch(t->config.backend, &w, KVMEM__TRAIN_GROUP, 1) + 64);
    params = (size_t)(12 * cfg->n_layers + 3 + 2 * cfg->n_layers) * sizeof *t->param;
    layers = (size_t)cfg->n_layers * sizeof *t->layer;
    t->param = (kvmem_weight *)kvmem__alloc(&a, params + layers);
    if (!t->param) return kvmem__fail(&t->error, KVMEM_NO_MEMORY, "trainer: no memory for the list of parameters");
    memset(t->param, 0, params + layers);
    t->layer = (kvmem_train_layer *)(void *)((uint8_t *)t->param + params);
    kvmem__train_params(t);
    floats = kvmem__train_carve(t, NULL);
    bytes = floats >= SIZE_MAX / 8 ? SIZE_MAX : floats * sizeof(float) + 64;
    t->block = bytes == SIZE_MAX ? NULL : kvmem__alloc(&a, bytes);
    t->block_size = bytes;
    t->mm = t->block ? kvmem__alloc(&a, mm) : NULL;
    t->mm_size = mm;
    if (!t->mm) {
        kvmem__release(&a, t->block, bytes);
        kvmem__release(&a, t->param, params + layers);
        memset(t, 0, sizeof *t);
        return kvmem__fail(&t->error, KVMEM_NO_MEMORY, "trainer: no memory for %zu bytes of weights, gradients and "
                           "activations (fewer tokens a batch or recompute need less)", bytes);
    }
    memset(t->block, 0, bytes);
    memset(t->mm, 0, mm);
    kvmem__train_carve(t, (float *)(void *)((uint8_t *)t->block + (64 - (size_t)((uintptr_t)t->block & 63)) % 64));
    kvmem__train_place(t);
    return KVMEM_OK;
}
KVMEM_API void kvmem_trainer_free(kvmem_trainer *t) {
    kvmem_allocator a;
    if (!t) return;
    a = t->config.allocator;
    if (t->param)
        kvmem__release(&a, t->param, (size_t)(14 * t->config.n_layers + 3) * sizeof *t->param +
                                         (size_t)t->config.n_layers * sizeof *t->layer);
    kvmem__release(&a, t->block, t->block_size);
    kvmem__release(&a, t->mm, t->mm_size);
    memset(t, 0, sizeof *t);
}
static kvmem_status kvmem__train_ready(kvmem_trainer *t) {
    if (!t) return KVMEM_BAD_ARGUMENT;
    return t->block ? KVMEM_OK : kvmem__fail(&t->error, KVMEM_BAD_STATE, "trainer: not initialized");
}
static void kvmem__train_anew(kvmem_trainer *t) { /* no step was taken yet */
    memset(t->m, 0, t->n_values * sizeof *t->m);
    memset(t->v, 0, t->n_values * sizeof *t->v);
    t->updates = 0;
}
/* Matrices are normal with deviation 1/sqrt(inputs), those that write into the residual stream by
   1/sqrt(2 n_layers) less (Radford 2019); embedding rows have length 1; norms are 1; prefixes small. */
KVMEM_API void kvmem_trainer_random(kvmem_trainer *t, uint64_t seed) {
    int i, l;
    if (!t || !t->block) return;
    for (i = 0; i < t->n_params; i++) {
        kvmem_weight *p = &t->param[i];
        const size_t n = (size_t)p->rows * (size_t)p->cols;
        double dev = 1 / sqrt((double)p->cols);
        size_t j;
        for (l = 0; l < t->config.n_layers; l++) {
            const kvmem_train_layer *y = &t->layer[l];
            if (i == y->o || i == y->down) dev /= sqrt(2.0 * t->config.n_layers);
            if (i == y->prefix_k || i == y->prefix_v) dev = 0.1;
        }
        for (j = 0; j < n; j++) {
            const double u = kvmem__unit(kvmem__random(seed, (uint64_t)i, j, 0)) + 1e-17;
            const double angle = 6.283185307179586 * kvmem__unit(kvmem__random(seed, (uint64_t)i, j, 1));
            const int matrix = p->decay || !strcmp(p->name + strlen(p->name) - 2, "_k") ||
                               !strcmp(p->name + strlen(p->name) - 2, "_v");
            p->w[j] = matrix ? (float)(dev * sqrt(-2 * log(u)) * cos(angle)) : 1.0f;
        }
    }
    kvmem__train_anew(t);
}

static kvmem_status kvmem__train_load_one(kvmem_trainer *t, int i, const kvmem_tensor *w, const float *vector) {
    kvmem_weight *p = &t->param[i];
    int r;
    if (vector) { memcpy(p->w, vector, (size_t)p->cols * sizeof *p->w); return KVMEM_OK; }
    if (w->ne[0] != p->cols || w->ne[1] != p->rows)
        return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: %s of the model is %ld x %ld, not %d x %d", p->name,
                           (long)w->ne[1], (long)w->ne[0], p->rows, p->cols);
    for (r = 0; r < p->rows; r++) kvmem__tensor_row(p->w + (size_t)r * (size_t)p->cols, w, r);
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_trainer_load(kvmem_trainer *t, const kvmem_model *m) {
    const kvmem_train_config *c;
    int l;
    KVMEM__TRY(kvmem__train_ready(t));
    c = &t->config;
    if (!m || !m->layer) return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: the model is not open");
    if ((m->arch != KVMEM_ARCH_LLAMA && m->arch != KVMEM_ARCH_QWEN3) || m->rope.n_rot != c->head_dim ||
        (m->rope.neox != 0) != (c->neox != 0) || (float)m->rope.base != (float)c->rope_base || m->rope.factors ||
        m->rope.scale != 1 || m->layer[0].q_bias || m->layer[0].gate_bias || m->head_bias || m->layer[0].window ||
        m->attn_scale != (float)(1 / sqrt((double)c->head_dim)))
        return kvmem__fail(&t->error, KVMEM_UNSUPPORTED, "trainer: only llama and qwen3 models without biases, windows "
                                                         "and scaling, with this configuration's RoPE, can be trained");
    if (m->n_vocab != c->n_vocab || m->n_embd != c->n_embd || m->n_layers != c->n_layers || m->n_heads != c->n_heads ||
        m->n_kv_heads != c->n_kv_heads || m->head_dim != c->head_dim || m->n_ff != c->n_ff ||
        (m->tied != 0) != (c->tied != 0) || (m->layer[0].q_norm != NULL) != (c->qk_norm != 0) ||
        m->norm_eps != c->norm_eps)
        return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: the model's shape is not the configuration's");
    KVMEM__TRY(kvmem__train_load_one(t, t->embd, &m->embd, NULL));
    if (!c->tied) KVMEM__TRY(kvmem__train_load_one(t, t->head, &m->head, NULL));
    KVMEM__TRY(kvmem__train_load_one(t, t->out_norm, NULL, m->out_norm));
    for (l = 0; l < c->n_layers; l++) {
        const kvmem_train_layer *y = &t->layer[l];
        const kvmem_layer *x = &m->layer[l];
        KVMEM__TRY(kvmem__train_load_one(t, y->attn_norm, NULL, x->attn_norm));
        KVMEM__TRY(kvmem__train_load_one(t, y->ffn_norm, NULL, x->ffn_norm));
        if (c->qk_norm) KVMEM__TRY(kvmem__train_load_one(t, y->q_norm, NULL, x->q_norm));
        if (c->qk_norm) KVMEM__TRY(kvmem__train_load_one(t, y->k_norm, NULL, x->k_norm));
        KVMEM__TRY(kvmem__train_load_one(t, y->q, &x->q, NULL));
        KVMEM__TRY(kvmem__train_load_one(t, y->k, &x->k, NULL));
        KVMEM__TRY(kvmem__train_load_one(t, y->v, &x->v, NULL));
        KVMEM__TRY(kvmem__train_load_one(t, y->o, &x->o, NULL));
        KVMEM__TRY(kvmem__train_load_one(t, y->gate, &x->gate, NULL));
        KVMEM__TRY(kvmem__train_load_one(t, y->up, &x->up, NULL));
        KVMEM__TRY(kvmem__train_load_one(t, y->down, &x->down, NULL));
    }
    kvmem__train_anew(t);
    return KVMEM_OK;
}

/* ---- matrices ---- */
/* out (n, rows) = x (n, cols) w' for w (rows, cols) in memory. */
static void kvmem__train_mm(const kvmem_trainer *t, float *out, const float *w, int rows, int cols, const float *x,
                            int n, void *scratch, int threads) {
    kvmem_tensor a;
    int i, m;
    memset(&a, 0, sizeof a);
    a.type = KVMEM_F32;
    a.n_dims = 2;
    a.ne[0] = cols;
    a.ne[1] = rows;
    a.ne[2] = a.ne[3] = 1;
    a.data = (const uint8_t *)(const void *)w;
    a.size = (size_t)rows * (size_t)cols * sizeof(float);
    for (i = 0; i < n; i += m) { /* in groups of rows that stay in the second-level cache */
        m = KVMEM__MIN((int)KVMEM__TRAIN_GROUP, n - i);
        t->config.backend->matmul(t->config.backend, out + (size_t)i * (size_t)rows, &a,
                                  x + (size_t)i * (size_t)cols, m, scratch, threads);
    }
}
/* out (cols, rows) = transposed in (rows, cols), in tiles that stay in the cache. */
static void kvmem__train_transpose_some(float *out, const float *in, int rows, int cols, int r0, int r1) {
    int c0, r, c, r8;
    for (c0 = 0; c0 < cols; c0 += 16) {
        const int c1 = KVMEM__MIN(c0 + 16, cols);
        for (r8 = r0; r8 < r1; r8 += 16) {
            const int e = KVMEM__MIN(r8 + 16, r1);
            for (c = c0; c < c1; c++)
                for (r = r8; r < e; r++)
                    out[(size_t)c * (size_t)rows + (size_t)r] = in[(size_t)r * (size_t)cols + (size_t)c];
        }
    }
}
static void kvmem__train_transpose(float *out, const float *in, int rows, int cols, int threads) {
    const int tiles = (rows + 63) / 64;
    int i;
    threads = kvmem__threads_for(threads, (double)rows * cols);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
    for (i = 0; i < tiles; i++)
        kvmem__train_transpose_some(out, in, rows, cols, i * 64, KVMEM__MIN(rows, i * 64 + 64));
}
static void kvmem__train_linear(const kvmem_trainer *t, float *out, int param, const float *x, int n) {
    const kvmem_weight *p = &t->param[param];
    kvmem__train_mm(t, out, p->w, p->rows, p->cols, x, n, t->mm, t->threads);
}
/* Backward pass of y = x W':  grad(W) += dy' x,  and unless dx is NULL dx (n, cols) = dy W, or += it with add.
   Tokens go in groups: their transposed rows then lie apart by an odd number of cache lines. */
static void kvmem__train_linear_back(const kvmem_trainer *t, int param, const float *x, const float *dy, int n,
                                     float *dx, int add) {
    const kvmem_weight *p = &t->param[param];
    const size_t size = (size_t)p->rows * (size_t)p->cols;
    int i, m;
    for (i = 0; i < n; i += m) {
        m = KVMEM__MIN((int)KVMEM__TRAIN_GROUP, n - i);
        kvmem__train_transpose(t->big[6], dy + (size_t)i * (size_t)p->rows, m, p->rows, t->threads);
        kvmem__train_transpose(t->big[7], x + (size_t)i * (size_t)p->cols, m, p->cols, t->threads);
        kvmem__train_mm(t, t->big[8], t->big[7], p->cols, m, t->big[6], p->rows, t->mm, t->threads);
        t->config.backend->add(p->grad, t->big[8], size);
    }
    if (!dx) return;
    kvmem__train_transpose(t->big[9], p->w, p->rows, p->cols, t->threads);
    kvmem__train_mm(t, add ? t->big[6] : dx, t->big[9], p->cols, p->rows, dy, n, t->mm, t->threads);
    if (add) t->config.backend->add(dx, t->big[6], (size_t)n * (size_t)p->cols);
}

/* ---- RMS norm ----
   y = r x w with r = 1/sqrt(mean x^2 + eps):  dx = r (w dy) - r^3/d x sum(x w dy),  dw = sum over rows r x dy. */
static void kvmem__train_norm_row(const float *x, const float *w, const float *dy, float *dx, int d, int add, float r) {
    float s = 0;
    int j;
    for (j = 0; j < d; j++) s += x[j] * w[j] * dy[j];
    s *= r * r * r / (float)d;
    if (add)
        for (j = 0; j < d; j++) dx[j] += r * w[j] * dy[j] - s * x[j];
    else
        for (j = 0; j < d; j++) dx[j] = r * w[j] * dy[j] - s * x[j];
}
/* Rows x, dy, dx (n, d). dx += (add) or =; dx may be dy. inv (n): scratch. */
static void kvmem__train_norm_back(const kvmem_trainer *t, int param, const float *x, const float *dy, float *dx, int n,
                                   int d, int add, float *inv) {
    const kvmem_weight *p = &t->param[param];
    const int threads = kvmem__threads_for(t->threads, (double)n * d * 4), parts = (d + 31) / 32;
    int i;
    (void)threads;
    /* the weights first: dx may overwrite dy */
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
    for (i = 0; i < n; i++)
        inv[i] = 1 / sqrtf(t->config.backend->dot(x + (size_t)i * (size_t)d, x + (size_t)i * (size_t)d, d) / (float)d +
                           t->config.norm_eps);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
    for (i = 0; i < parts; i++) {
        const int j0 = i * 32, j1 = KVMEM__MIN(d, j0 + 32);
        float sum[32] = { 0 };
        int k, j;
        for (k = 0; k < n; k++) {
            const size_t at = (size_t)k * (size_t)d;
            for (j = j0; j < j1; j++) sum[j - j0] += inv[k] * x[at + (size_t)j] * dy[at + (size_t)j];
        }
        for (j = j0; j < j1; j++) p->grad[j] += sum[j - j0];
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
    for (i = 0; i < n; i++) {
        const size_t at = (size_t)i * (size_t)d;
        kvmem__train_norm_row(x + at, p->w, dy + at, dx + at, d, add, inv[i]);
    }
}

/* ---- RoPE: sign 1 turns forward, -1 back ---- */
static void kvmem__train_rope(const kvmem_trainer *t, float *x, int n, int len, int heads, float sign) {
    const int d = t->config.head_dim, half = d / 2;
    const int apart = t->config.neox ? half : 1, step = t->config.neox ? 1 : 2;
    const int threads = kvmem__threads_for(t->threads, (double)n * heads * d);
    int i;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
    for (i = 0; i < n; i++) {
        const float *cs = t->turn + (size_t)(i % len + t->config.prefix) * (size_t)d;
        int h, j;
        for (h = 0; h < heads; h++) {
            float *a = x + ((size_t)i * (size_t)heads + (size_t)h) * (size_t)d;
            for (j = 0; j < half; j++, a += step) {
                const float u = a[0], v = a[apart], s = sign * cs[2 * j + 1];
                a[0] = u * cs[2 * j] - v * s;
                a[apart] = u * s + v * cs[2 * j];
            }
        }
    }
}

/* ---- gated unit: a = silu(g) u ----  s = 1/(1+e^-g):  du = da g s,  dg = da u s (1 + g (1 - s)) */
static void kvmem__train_glu_back(const kvmem_trainer *t, const float *gate, const float *up, const float *da,
                                  float *dg, float *du, size_t count) {
    const long pieces = (long)((count + 255) / 256);
    const int threads = kvmem__threads_for(t->threads, (double)count * 8);
    long i;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
    for (i = 0; i < pieces; i++) {
        const size_t at = (size_t)i * 256;
        const int n = (int)KVMEM__MIN((size_t)256, count - at);
        float e[256];
        int j;
        for (j = 0; j < n; j++) e[j] = -gate[at + (size_t)j];
        t->config.backend->exp_sum(e, e, 0, n);
        for (j = 0; j < n; j++) {
            const float g = gate[at + (size_t)j], s = 1 / (1 + e[j]), y = da[at + (size_t)j] * s;
            du[at + (size_t)j] = y * g;
            dg[at + (size_t)j] = y * up[at + (size_t)j] * (1 + g * (1 - s));
        }
    }
}

/* ---- attention ----
   One job is one sequence and one KV head. Its `rep` query heads go together: row r = i rep + h of a block is
   query head h of token i. A block of queries meets blocks of TRAIN_KEYS keys; keys past the sequence's end are
   zeros that no query may see. */
typedef struct kvmem__train_job {
    int s, g, len, span, block, rep, d;     /* span: keys with prefix, whole blocks; block: query tokens */
    float scale;
    float *k, *v, *turned, *dk, *dv;        /* (span, d); turned: blocks of V (forward) or K transposed (d, KEYS) */
    float *q, *qt, *o, *dout, *dot, *sum;   /* (rows, d), transposed (d, rows) */
    float *p;                               /* forward: blocks of (rows, KEYS) side by side */
    float *st, *dpt, *ds;                   /* (KEYS, rows) twice, (rows, KEYS) */
    float *tmp;                             /* (KEYS or rows, d) */
    float *lse, *mean;                      /* (rows), negative */
    void *mm;
} kvmem__train_job;

static void kvmem__train_job_start(const kvmem_trainer *t, kvmem__train_job *j, int index, int len, int worker) {
    const kvmem_train_config *c = &t->config;
    const size_t part = t->mm_size / (size_t)t->threads / 64 * 64;
    size_t kv, rows;
    float *p = t->job + (size_t)worker * t->job_floats;
    j->d = c->head_dim;
    j->rep = c->n_heads / c->n_kv_heads;
    j->s = index / c->n_kv_heads;
    j->g = index % c->n_kv_heads;
    j->len = len;
    j->span = kvmem__train_span(c, len);
    j->block = kvmem__train_block(c);
    j->scale = 1 / sqrtf((float)j->d);
    kv = (size_t)j->span * (size_t)j->d;
    rows = (size_t)j->block * (size_t)j->rep;
    j->k = p; p += kv;
    j->v = p; p += kv;
    j->turned = p; p += kv;
    j->dk = p; p += kv;
    j->dv = p; p += kv;
    j->q = p; p += rows * (size_t)j->d;
    j->qt = p; p += rows * (size_t)j->d;
    j->o = p; p += rows * (size_t)j->d;
    j->dout = p; p += rows * (size_t)j->d;
    j->dot = p; p += rows * (size_t)j->d;
    j->sum = p; p += rows * (size_t)j->d;
    j->tmp = p; p += KVMEM__MAX(rows, (size_t)KVMEM__TRAIN_KEYS) * (size_t)j->d;
    j->lse = p; p += rows;
    j->mean = p; p += rows;
    j->st = p; p += rows * KVMEM__TRAIN_KEYS;
    j->dpt = p; p += rows * KVMEM__TRAIN_KEYS;
    j->ds = p; p += rows * KVMEM__TRAIN_KEYS;
    j->p = p;
    j->mm = (uint8_t *)t->mm + (size_t)worker * part;
}
/* Rows of one KV head of the sequence, prefix in front, zeros behind. */
static void kvmem__train_gather(const kvmem_trainer *t, const kvmem__train_job *j, float *out, const float *x,
                                int prefix_param) {
    const size_t d = (size_t)j->d, row = (size_t)t->config.n_kv_heads * d, size = d * sizeof *out;
    const int p = t->config.prefix;
    int i;
    for (i = 0; i < p; i++)
        memcpy(out + (size_t)i * d, t->param[prefix_param].w + (size_t)i * row + (size_t)j->g * d, size);
    x += (size_t)j->s * (size_t)j->len * row + (size_t)j->g * d;
    for (i = 0; i < j->len; i++) memcpy(out + (size_t)(p + i) * d, x + (size_t)i * row, size);
    memset(out + (size_t)(p + j->len) * d, 0, (size_t)(j->span - p - j->len) * size);
}
/* Rows of the block's query heads from or to (n, H, d). */
static float *kvmem__train_query(const kvmem_trainer *t, const kvmem__train_job *j, float *x, int token, int h) {
    const size_t H = (size_t)t->config.n_heads, at = (size_t)j->s * (size_t)j->len + (size_t)token;
    return x + (at * H + (size_t)(j->g * j->rep + h)) * (size_t)j->d;
}
static void kvmem__train_rows(const kvmem_trainer *t, const kvmem__train_job *j, float *block, float *x, int t0, int n,
                              float scale, int out) {
    int i, h, c;
    for (i = 0; i < n; i++)
        for (h = 0; h < j->rep; h++) {
            float *a = block + (size_t)(i * j->rep + h) * (size_t)j->d, *b = kvmem__train_query(t, j, x, t0 + i, h);
            if (out) memcpy(b, a, (size_t)j->d * sizeof *a);
            else
                for (c = 0; c < j->d; c++) a[c] = b[c] * scale;
        }
}
static void kvmem__train_attend(const kvmem_trainer *t, int l, const kvmem__acts *a, int index, int len, int worker) {
    const kvmem_backend *b = t->config.backend;
    enum { KEYS = KVMEM__TRAIN_KEYS };
    kvmem__train_job j;
    int t0, k0, r;
    size_t d;
    kvmem__train_job_start(t, &j, index, len, worker);
    d = (size_t)j.d;
    kvmem__train_gather(t, &j, j.k, a->k, t->layer[l].prefix_k);
    kvmem__train_gather(t, &j, j.v, a->v, t->layer[l].prefix_v);
    for (k0 = 0; k0 < j.span; k0 += KEYS)
        kvmem__train_transpose_some(j.turned + (size_t)k0 * d, j.v + (size_t)k0 * d, KEYS, j.d, 0, KEYS);
    for (t0 = 0; t0 < len; t0 += j.block) {
        const int n = KVMEM__MIN(j.block, len - t0), rows = n * j.rep, seen = t->config.prefix + t0 + n;
        const size_t square = (size_t)rows * KEYS;
        kvmem__train_rows(t, &j, j.q, a->q, t0, n, j.scale, 0);
        for (k0 = 0; k0 < seen; k0 += KEYS)
            kvmem__train_mm(t, j.p + (size_t)(k0 / KEYS) * square, j.k + (size_t)k0 * d, KEYS, j.d, j.q, rows, j.mm, 1);
        for (r = 0; r < rows; r++) {
            const int limit = t->config.prefix + t0 + r / j.rep + 1;
            float m = -INFINITY, sum = 0;
            for (k0 = 0; k0 < limit; k0 += KEYS) {
                const float *p = j.p + (size_t)(k0 / KEYS) * square + (size_t)r * KEYS;
                const float x = b->max(p, KVMEM__MIN(KEYS, limit - k0));
                m = x > m ? x : m;
            }
            for (k0 = 0; k0 < seen; k0 += KEYS) {
                float *p = j.p + (size_t)(k0 / KEYS) * square + (size_t)r * KEYS;
                const int in = KVMEM__MAX(0, KVMEM__MIN(KEYS, limit - k0));
                if (in) sum += b->exp_sum(p, p, m, in);
                memset(p + in, 0, (size_t)(KEYS - in) * sizeof *p);
            }
            j.mean[r] = 1 / sum;
            a->lse[((size_t)j.s * (size_t)len + (size_t)(t0 + r / j.rep)) * (size_t)t->config.n_heads +
                   (size_t)(j.g * j.rep + r % j.rep)] = m + (float)log((double)sum);
        }
        for (k0 = 0; k0 < seen; k0 += KEYS) {
            const float *p = j.p + (size_t)(k0 / KEYS) * square;
            kvmem__train_mm(t, k0 ? j.tmp : j.o, j.turned + (size_t)k0 * d, j.d, KEYS, p, rows, j.mm, 1);
            if (k0) b->add(j.o, j.tmp, (size_t)rows * d);
        }
        for (r = 0; r < rows; r++) b->scale(j.o + (size_t)r * d, j.mean[r], j.d);
        kvmem__train_rows(t, &j, j.o, a->att, t0, n, 1, 1);
    }
}
/* With P = exp(S - lse) and D = rowsum(dO * O):  dV = P' dO,  dS = P * (dO V' - D),  dQ = dS K,  dK = dS' Q.
   S' = K Q' is computed transposed, keys as rows, so that P' and dS' come as they are needed. */
static void kvmem__train_attend_back(const kvmem_trainer *t, int l, const kvmem__acts *a, const float *datt, float *dq,
                                     float *dk, float *dv, float *dprefix, int index, int len, int worker) {
    const kvmem_backend *b = t->config.backend;
    const int pre = t->config.prefix;
    enum { KEYS = KVMEM__TRAIN_KEYS };
    kvmem__train_job j;
    int t0, k0, r, i;
    size_t d, row;
    kvmem__train_job_start(t, &j, index, len, worker);
    d = (size_t)j.d;
    row = (size_t)t->config.n_kv_heads * d;
    kvmem__train_gather(t, &j, j.k, a->k, t->layer[l].prefix_k);
    kvmem__train_gather(t, &j, j.v, a->v, t->layer[l].prefix_v);
    memset(j.dk, 0, (size_t)j.span * d * sizeof *j.dk);
    memset(j.dv, 0, (size_t)j.span * d * sizeof *j.dv);
    for (k0 = 0; k0 < j.span; k0 += KEYS)
        kvmem__train_transpose_some(j.turned + (size_t)k0 * d, j.k + (size_t)k0 * d, KEYS, j.d, 0, KEYS);
    for (t0 = 0; t0 < len; t0 += j.block) {
        const int n = KVMEM__MIN(j.block, len - t0), rows = n * j.rep, seen = pre + t0 + n;
        const size_t R = (size_t)rows;
        kvmem__train_rows(t, &j, j.q, a->q, t0, n, j.scale, 0);
        kvmem__train_rows(t, &j, j.o, a->att, t0, n, 1, 0);
        for (r = 0; r < rows; r++) {
            const float *from = datt + (kvmem__train_query(t, &j, a->att, t0 + r / j.rep, r % j.rep) - a->att);
            memcpy(j.dout + (size_t)r * d, from, d * sizeof *from);
            j.mean[r] = -b->dot(j.dout + (size_t)r * d, j.o + (size_t)r * d, j.d);
            j.lse[r] = -a->lse[((size_t)j.s * (size_t)len + (size_t)(t0 + r / j.rep)) * (size_t)t->config.n_heads +
                               (size_t)(j.g * j.rep + r % j.rep)];
        }
        kvmem__train_transpose_some(j.qt, j.q, rows, j.d, 0, rows);
        kvmem__train_transpose_some(j.dot, j.dout, rows, j.d, 0, rows);
        memset(j.sum, 0, R * d * sizeof *j.sum);
        for (k0 = 0; k0 < seen; k0 += KEYS) {
            kvmem__train_mm(t, j.st, j.q, rows, j.d, j.k + (size_t)k0 * d, KEYS, j.mm, 1);
            kvmem__train_mm(t, j.dpt, j.dout, rows, j.d, j.v + (size_t)k0 * d, KEYS, j.mm, 1);
            for (i = 0; i < KEYS; i++) {
                float *s = j.st + (size_t)i * R, *dp = j.dpt + (size_t)i * R;
                const int hidden = KVMEM__MAX(0, KVMEM__MIN(rows, (k0 + i - pre - t0) * j.rep)); /* before the key */
                memset(s, 0, (size_t)hidden * sizeof *s);
                memset(dp, 0, (size_t)hidden * sizeof *dp);
                if (hidden == rows) continue;
                b->add(s + hidden, j.lse + hidden, R - (size_t)hidden);
                b->exp_sum(s + hidden, s + hidden, 0, rows - hidden);
                b->add(dp + hidden, j.mean + hidden, R - (size_t)hidden);
                for (r = hidden; r < rows; r++) dp[r] *= s[r];
            }
            kvmem__train_mm(t, j.tmp, j.dot, j.d, rows, j.st, KEYS, j.mm, 1);
            b->add(j.dv + (size_t)k0 * d, j.tmp, KEYS * d);
            kvmem__train_mm(t, j.tmp, j.qt, j.d, rows, j.dpt, KEYS, j.mm, 1);
            b->add(j.dk + (size_t)k0 * d, j.tmp, KEYS * d);
            kvmem__train_transpose_some(j.ds, j.dpt, KEYS, rows, 0, KEYS);
            kvmem__train_mm(t, j.tmp, j.turned + (size_t)k0 * d, j.d, KEYS, j.ds, rows, j.mm, 1);
            b->add(j.sum, j.tmp, R * d);
        }
        for (r = 0; r < rows; r++) b->scale(j.sum + (size_t)r * d, j.scale, j.d);
        kvmem__train_rows(t, &j, j.sum, dq, t0, n, 1, 1);
    }
    for (i = 0; i < len; i++) {
        const size_t to = ((size_t)j.s * (size_t)len + (size_t)i) * row + (size_t)j.g * d;
        memcpy(dk + to, j.dk + (size_t)(pre + i) * d, d * sizeof *dk);
        memcpy(dv + to, j.dv + (size_t)(pre + i) * d, d * sizeof *dv);
    }
    for (i = 0; i < pre; i++) { /* of this sequence: (2, prefix, G, d) */
        float *to = dprefix + (size_t)i * row + (size_t)j.g * d;
        memcpy(to, j.dk + (size_t)i * d, d * sizeof *to);
        memcpy(to + (size_t)pre * row, j.dv + (size_t)i * d, d * sizeof *to);
    }
}

/* ---- a layer ---- */
static void kvmem__train_heads_norm(const kvmem_trainer *t, float *out, float *keep, int param, int n, int heads) {
    const size_t count = (size_t)n * (size_t)heads * (size_t)t->config.head_dim;
    memcpy(keep, out, count * sizeof *out);
    t->config.backend->rmsnorm(out, keep, t->param[param].w, n * heads, t->config.head_dim, t->config.norm_eps,
                               t->threads);
}
static void kvmem__train_forward(kvmem_trainer *t, int l, int n_seq, int len, int last) {
    const kvmem_train_config *c = &t->config;
    const kvmem_backend *b = c->backend;
    const kvmem_train_layer *y = &t->layer[l];
    const int n = n_seq * len, E = c->n_embd, jobs = n_seq * c->n_kv_heads, threads = t->threads;
    const size_t row = (size_t)c->max_tokens * (size_t)E, count = (size_t)n * (size_t)E;
    float *x = t->stream + (size_t)l * row, *next = x + row;
    kvmem__acts a;
    int i;
    kvmem__train_acts(t, l, &a);
    b->rmsnorm(a.h, x, t->param[y->attn_norm].w, n, E, c->norm_eps, threads);
    kvmem__train_linear(t, a.q, y->q, a.h, n);
    kvmem__train_linear(t, a.k, y->k, a.h, n);
    kvmem__train_linear(t, a.v, y->v, a.h, n);
    if (c->qk_norm) {
        kvmem__train_heads_norm(t, a.q, a.q0, y->q_norm, n, c->n_heads);
        kvmem__train_heads_norm(t, a.k, a.k0, y->k_norm, n, c->n_kv_heads);
    }
    kvmem__train_rope(t, a.q, n, len, c->n_heads, 1);
    kvmem__train_rope(t, a.k, n, len, c->n_kv_heads, 1);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
#endif
    for (i = 0; i < jobs; i++) kvmem__train_attend(t, l, &a, i, len, KVMEM__TRAIN_WORKER);
    kvmem__train_linear(t, a.mid, y->o, a.att, n);
    b->add(a.mid, x, count);
    b->rmsnorm(a.h2, a.mid, t->param[y->ffn_norm].w, n, E, c->norm_eps, threads);
    kvmem__train_linear(t, a.gate, y->gate, a.h2, n);
    kvmem__train_linear(t, a.up, y->up, a.h2, n);
    b->glu(a.a, a.gate, a.up, (size_t)n * (size_t)c->n_ff, KVMEM_SILU, threads);
    if (!last) return; /* recomputing: x' is there already */
    kvmem__train_linear(t, next, y->down, a.a, n);
    b->add(next, a.mid, count);
}
static void kvmem__train_attention_back(kvmem_trainer *t, int l, const kvmem__acts *a, int n_seq, int len,
                                        const float *datt, float *dq, float *dk, float *dv, float *dprefix) {
    const kvmem_train_config *c = &t->config;
    const kvmem_train_layer *y = &t->layer[l];
    const int n = n_seq * len, G = c->n_kv_heads, threads = t->threads;
    const size_t part = (size_t)c->prefix * (size_t)c->n_kv_heads * (size_t)c->head_dim;
    const double room = part ? kvmem__train_big_floats(c) / kvmem__train_prefix_floats(c) : n_seq;
    const int some = room < n_seq ? (int)room : n_seq; /* sequences whose prefix gradients fit into dprefix */
    int s0, i;
    for (s0 = 0; s0 < n_seq; s0 += some) {
        const int jobs = KVMEM__MIN(some, n_seq - s0) * G;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
#endif
        for (i = 0; i < jobs; i++)
            kvmem__train_attend_back(t, l, a, datt, dq, dk, dv, dprefix + (size_t)(i / G) * 2 * part, s0 * G + i, len,
                                     KVMEM__TRAIN_WORKER);
        for (i = 0; i < jobs / G && part; i++) { /* summed in the order of sequences */
            c->backend->add(t->param[y->prefix_k].grad, dprefix + (size_t)i * 2 * part, part);
            c->backend->add(t->param[y->prefix_v].grad, dprefix + (size_t)i * 2 * part + part, part);
        }
    }
    (void)threads;
    kvmem__train_rope(t, dq, n, len, c->n_heads, -1);
    kvmem__train_rope(t, dk, n, len, c->n_kv_heads, -1);
    if (c->qk_norm) {
        float *inv = t->big[6];
        kvmem__train_norm_back(t, y->q_norm, a->q0, dq, dq, n * c->n_heads, c->head_dim, 0, inv);
        kvmem__train_norm_back(t, y->k_norm, a->k0, dk, dk, n * c->n_kv_heads, c->head_dim, 0, inv);
    }
}
/* dx (n, E), big[0]: the gradient of x' on entry, of x on return. */
static void kvmem__train_backward(kvmem_trainer *t, int l, int n_seq, int len) {
    const kvmem_train_config *c = &t->config;
    const kvmem_train_layer *y = &t->layer[l];
    const int n = n_seq * len, E = c->n_embd, F = c->n_ff;
    float *x = t->stream + (size_t)l * (size_t)c->max_tokens * (size_t)E, *dx = t->big[0];
    kvmem__acts a;
    kvmem__train_acts(t, l, &a);
    if (c->recompute) kvmem__train_forward(t, l, n_seq, len, 0);
    kvmem__train_linear_back(t, y->down, a.a, dx, n, t->big[1], 0);                      /* big[1] = da */
    kvmem__train_glu_back(t, a.gate, a.up, t->big[1], t->big[2], t->big[3], (size_t)n * (size_t)F);
    kvmem__train_linear_back(t, y->gate, a.h2, t->big[2], n, t->big[1], 0);               /* big[1] = dh2 */
    kvmem__train_linear_back(t, y->up, a.h2, t->big[3], n, t->big[1], 1);
    kvmem__train_norm_back(t, y->ffn_norm, a.mid, t->big[1], dx, n, E, 1, t->big[6]);     /* dx = dmid */
    kvmem__train_linear_back(t, y->o, a.att, dx, n, t->big[1], 0);                         /* big[1] = datt */
    kvmem__train_attention_back(t, l, &a, n_seq, len, t->big[1], t->big[2], t->big[3], t->big[4], t->big[5]);
    kvmem__train_linear_back(t, y->q, a.h, t->big[2], n, t->big[1], 0);                  /* big[1] = dh */
    kvmem__train_linear_back(t, y->k, a.h, t->big[3], n, t->big[1], 1);
    kvmem__train_linear_back(t, y->v, a.h, t->big[4], n, t->big[1], 1);
    kvmem__train_norm_back(t, y->attn_norm, x, t->big[1], dx, n, E, 1, t->big[6]);
}

/* ---- loss ----
   Rows whose weight is not 0, TRAIN_CHUNK at a time: logits z = h Whead', nll = lse(z) - z[target],
   dz = weight / sum weight (softmax(z) - onehot(target)). */
static void kvmem__train_logit_row(const kvmem_trainer *t, float *z, int target, float weight, int at) {
    const int V = t->config.n_vocab;
    int v, best = 0;
    float m, sum;
    for (v = 1; v < V; v++) best = z[v] > z[best] ? v : best;
    m = z[best];
    t->best[at] = best;
    t->nll[at] = m - z[target];
    sum = t->config.backend->exp_sum(z, z, m, V);
    t->nll[at] += (float)log((double)sum);
    t->config.backend->scale(z, weight / sum, V);
    z[target] -= weight;
}
static void kvmem__train_loss(kvmem_trainer *t, const kvmem_batch *b, int n_rows, double weights, int with_grad) {
    const kvmem_train_config *c = &t->config;
    const int E = c->n_embd, V = c->n_vocab;
    const float *h = t->big[1]; /* the final norm's output */
    float *dh = t->big[2], *chunk = t->big[3], *z = t->big[4];
    const size_t size = (size_t)E * sizeof *chunk;
    int r0, i;
    for (r0 = 0; r0 < n_rows; r0 += KVMEM__TRAIN_CHUNK) {
        const int n = KVMEM__MIN(KVMEM__TRAIN_CHUNK, n_rows - r0), threads = t->threads;
        for (i = 0; i < n; i++) memcpy(chunk + (size_t)i * (size_t)E, h + (size_t)t->rows[r0 + i] * (size_t)E, size);
        kvmem__train_linear(t, z, t->head, chunk, n);
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
        for (i = 0; i < n; i++) {
            const int at = t->rows[r0 + i];
            kvmem__train_logit_row(t, z + (size_t)i * (size_t)V, b->target[at],
                                   (float)((b->weight ? (double)b->weight[at] : 1.0) / weights), at);
        }
        (void)threads;
        if (!with_grad) continue;
        kvmem__train_linear_back(t, t->head, chunk, z, n, t->big[5], 0);
        for (i = 0; i < n; i++)
            memcpy(dh + (size_t)t->rows[r0 + i] * (size_t)E, t->big[5] + (size_t)i * (size_t)E, size);
    }
}
static kvmem_status kvmem__train_batch_check(kvmem_trainer *t, const kvmem_batch *b, int *n_rows, double *weights) {
    int i;
    KVMEM__TRY(kvmem__train_ready(t));
    if (!b || !b->ids || !b->target)
        return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: the batch lacks ids or targets");
    if (b->n_seq < 1 || b->len < 1 || b->len > t->config.max_len || b->n_seq > t->config.max_tokens / b->len)
        return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: a batch of %d x %d tokens; the trainer was made "
                           "for %d tokens, sequences up to %d", b->n_seq, b->len, t->config.max_tokens,
                           t->config.max_len);
    *n_rows = 0;
    *weights = 0;
    for (i = 0; i < b->n_seq * b->len; i++) {
        const double w = b->weight ? (double)b->weight[i] : 1.0;
        if (b->ids[i] < 0 || b->ids[i] >= t->config.n_vocab || b->target[i] < 0 || b->target[i] >= t->config.n_vocab)
            return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: id %d or target %d at place %d is not in 0..%d",
                               b->ids[i], b->target[i], i, t->config.n_vocab - 1);
        if (!(w >= 0) || w > 1e30)
            return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: weight %g at place %d", w, i);
        t->nll[i] = 0;
        t->best[i] = -1;
        if (w > 0) t->rows[(*n_rows)++] = i;
        *weights += w;
    }
    if (!*n_rows) return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: no token of the batch has a weight");
    return KVMEM_OK;
}
KVMEM_API kvmem_status kvmem_trainer_run(kvmem_trainer *t, const kvmem_batch *b, int with_grad, double *loss) {
    const kvmem_train_config *c;
    const float *embd;
    int n, l, i, n_rows = 0;
    size_t E, row;
    double weights = 0, sum = 0;
    KVMEM__TRY(kvmem__train_batch_check(t, b, &n_rows, &weights));
    c = &t->config;
    n = b->n_seq * b->len;
    E = (size_t)c->n_embd;
    row = (size_t)c->max_tokens * E;
    embd = t->param[t->embd].w;
    for (i = 0; i < n; i++) memcpy(t->stream + (size_t)i * E, embd + (size_t)b->ids[i] * E, E * sizeof(float));
    for (l = 0; l < c->n_layers; l++) kvmem__train_forward(t, l, b->n_seq, b->len, 1);
    c->backend->rmsnorm(t->big[1], t->stream + (size_t)c->n_layers * row, t->param[t->out_norm].w, n, c->n_embd,
                        c->norm_eps, t->threads);
    if (with_grad) memset(t->big[2], 0, (size_t)n * E * sizeof(float));
    kvmem__train_loss(t, b, n_rows, weights, with_grad);
    for (i = 0; i < n_rows; i++)
        sum += (double)t->nll[t->rows[i]] * (b->weight ? (double)b->weight[t->rows[i]] : 1.0);
    if (loss) *loss = sum / weights;
    if (!with_grad) return KVMEM_OK;
    kvmem__train_norm_back(t, t->out_norm, t->stream + (size_t)c->n_layers * row, t->big[2], t->big[0], n, c->n_embd, 0,
                           t->big[6]);
    for (l = c->n_layers - 1; l >= 0; l--) kvmem__train_backward(t, l, b->n_seq, b->len);
    for (i = 0; i < n; i++)
        c->backend->add(t->param[t->embd].grad + (size_t)b->ids[i] * E, t->big[0] + (size_t)i * E, E);
    return KVMEM_OK;
}

/* ---- AdamW ----
   At step s, counted from 1:  m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
   w -= lr (m / (1 - b1^s) / (sqrt(v / (1 - b2^s)) + eps) + decay w) */
KVMEM_API void kvmem_trainer_zero(kvmem_trainer *t) {
    if (t && t->block) memset(t->grad, 0, t->n_values * sizeof *t->grad);
}
static double kvmem__train_norm(const kvmem_trainer *t) { /* pieces of fixed size, summed in order */
    double sum = 0;
    size_t at, i;
    for (at = 0; at < t->n_values; at += KVMEM__TRAIN_PIECE) {
        const size_t n = KVMEM__MIN((size_t)KVMEM__TRAIN_PIECE, t->n_values - at);
        for (i = 0; i < n; i += 256) {
            const int k = (int)KVMEM__MIN((size_t)256, n - i);
            sum += (double)t->config.backend->dot(t->grad + at + i, t->grad + at + i, k);
        }
    }
    return sqrt(sum);
}
static void kvmem__train_adam(kvmem_trainer *t, const kvmem_weight *p, const kvmem_adamw *a, float shrink) {
    const size_t base = (size_t)(p->w - t->w), count = (size_t)p->rows * (size_t)p->cols;
    const float c1 = (float)(1 / (1 - pow((double)a->beta1, (double)t->updates)));
    const float c2 = (float)(1 / (1 - pow((double)a->beta2, (double)t->updates)));
    const float decay = p->decay ? a->lr * a->weight_decay : 0, b1 = a->beta1, b2 = a->beta2, rate = a->lr * c1;
    const long pieces = (long)((count + KVMEM__TRAIN_PIECE - 1) / KVMEM__TRAIN_PIECE);
    const int threads = kvmem__threads_for(t->threads, (double)count * 8);
    long i;
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
    for (i = 0; i < pieces; i++) {
        const size_t at = base + (size_t)i * KVMEM__TRAIN_PIECE;
        const size_t n = KVMEM__MIN((size_t)KVMEM__TRAIN_PIECE, count - (size_t)i * KVMEM__TRAIN_PIECE);
        float *w = t->w + at, *m = t->m + at, *v = t->v + at;
        const float *g = t->grad + at;
        size_t j;
        for (j = 0; j < n; j++) {
            const float x = g[j] * shrink;
            m[j] = b1 * m[j] + (1 - b1) * x;
            v[j] = b2 * v[j] + (1 - b2) * x * x;
            w[j] -= rate * m[j] / (sqrtf(v[j] * c2) + a->eps) + decay * w[j];
        }
    }
}
KVMEM_API kvmem_status kvmem_trainer_update(kvmem_trainer *t, const kvmem_adamw *a, double *norm) {
    double n;
    int i;
    KVMEM__TRY(kvmem__train_ready(t));
    if (!a || !(a->lr >= 0) || !(a->beta1 >= 0 && a->beta1 < 1) || !(a->beta2 >= 0 && a->beta2 < 1) || !(a->eps > 0))
        return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: lr and eps must be positive, betas in 0..1");
    if (!(a->lr <= FLT_MAX) || !(a->eps <= FLT_MAX) || !(a->weight_decay >= 0 && a->weight_decay <= FLT_MAX) ||
        !(a->clip >= 0 && a->clip <= FLT_MAX))
        return kvmem__fail(&t->error, KVMEM_BAD_ARGUMENT, "trainer: weight_decay and clip must not be negative, and "
                                                          "nothing may be infinite");
    n = kvmem__train_norm(t);
    if (norm) *norm = n;
    if (!(n <= (double)FLT_MAX))
        return kvmem__fail(&t->error, KVMEM_BAD_VALUE, "trainer: the gradient of update %ld is not finite",
                           (long)t->updates + 1);
    t->updates++;
    for (i = 0; i < t->n_params; i++)
        kvmem__train_adam(t, &t->param[i], a, a->clip > 0 && n > (double)a->clip ? (float)((double)a->clip / n) : 1.0f);
    return KVMEM_OK;
}
#endif /* KVMEM_TRAIN */
#endif /* KVMEM_NO_DECODER */

#endif /* KVMEM_IMPLEMENTATION */
