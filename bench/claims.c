/* claims.c - published claims about KV caches, put to the test on the default model.

   A row of the table `claims` is one claim and how it is measured; its figures and verdict follow
   from the numbers by the rule of its kind, which the output states. To add a claim, add a row.

   Build  make build/bench_claims          Run  make claims, or build/bench_claims --help
   It uses the evaluation of `./kvmem eval` (tools/eval.h): the same contexts, questions and tests.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "../tests/tool.h"
#include "record.h"

/* ==== >>claims : the rows ===================================================================== */

typedef enum claim_kind {
    BETTER,  /* `first` does better than `second`, on the same questions or texts */
    KNOWN,   /* `first` does better if the question is known when it compresses than if not */
    CLOSE,   /* `first` loses little against `second` */
    SMALL,   /* the same, but a loss that its source calls small */
    NEARER,  /* the next-token distribution under `first` is nearer to the full cache's */
    MATCH,   /* `first` always has the full cache's likeliest token, `second` far from always */
    SMALLER, /* a saved cache of level `first` is small beside one coded by `second`, and loses little */
    LOWER,   /* rows coded by `first` have a lower error than by the best of `second` (a|b|c) */
    BOUND,   /* the error of rows coded by `first` is below sqrt(3) pi / 2 4^-bits */
    SINK,    /* position 0 draws far more probability than its even share */
    NOT_HERE /* small scale cannot test it: `first` says why */
} claim_kind;
typedef struct claim {
    const char *what, *source;
    claim_kind kind;
    int suite, aware;          /* aware: the question is known when the context is compressed */
    const char *first, *second;/* recipes; @ stands for --budget */
} claim;
#define ROWS(kind) ((kind) == LOWER || (kind) == BOUND) /* measured on rows, not by an evaluation */

#define STREAMINGLLM "Xiao 2023, 2309.17453"
#define H2O "Zhang 2023, 2306.14048"
#define TOVA "Oren 2024, 2401.06104"
#define SNAPKV "Li 2024, 2404.14469"
#define PYRAMIDKV "Cai 2024, 2406.02069"
#define KNORM "Devoto 2024, 2406.11430"
#define KVDIRECT "Qasim 2026, 2603.19664"
#define FLEXGEN "Sheng 2023, 2303.06865"
#define KIVI "Liu 2024, 2402.02750"
#define TURBOQUANT "Zandieh 2025, 2504.19874"
#define OCTOPUS "Boss 2026, 2605.21226"
#define ROTATEKV "Su 2025, 2501.16383"
#define GEAR "Kang 2024, 2403.05527"
#define CACHEGEN "Liu 2023, 2310.07240"
#define LAZYEVICTION "Zhang 2025, 2506.15969"
#define TREEKV "He 2025, 2501.04987"
#define LACACHE "Shi 2025, 2507.14204"
#define EMS "Li 2024, 2412.08521"
#define RAZOR "Tang 2024, 2407.15891"
#define PREFIXKV "Wang 2024, 2412.03409"
#define COMPRESSKV "Lin 2025, 2508.02401"
#define KVCRUSH "Jha 2025, 2503.00022"
#define WINDOWKV "WindowKV 2025"
#define DAPQ "Tian 2026, 2603.11564"
#define KVZIP "Kim 2025, 2505.23416"
#define EPICACHE "Kim 2025, 2509.17396"
#define TOPICS "budget=@ when=block(128)" /* read in blocks, a hard budget */
#define ADAKV "Feng 2024, 2407.11550"
#define EXPECTED "Devoto 2025, 2510.00636"
#define HEADKV "Fu 2024, 2410.19258"
#define TINY " profile=examples/models/tiny.profile"
#define INFLLM "Xiao 2024, 2402.04617"
#define EMLLM "Fountas 2024, 2407.09450"
#define HELD "init=16,local=256"
#define AFAR " place=far(at=255) page=16"
/* Every other codec of this width that rotates and learns nothing of the rows; and those that do. */
#define ROTATIONS(b)                                                                               \
    "codec=turboquant(bits=" b ")|codec=turboquant(bits=" b ",form=prod)"                          \
    "|codec=polarquant(levels=0,first=" b ",bits=" b ")|codec.k=qjl(m=" b ",mo=" b ")"
#define LEARNED(b)                                                                                 \
    "codec=rotatekv(bits=" b ")|codec.k=polark(angle=" b ",radius=" b ") page=128"
static const claim claims[] = {
    /* sinks */
    {"the first token draws attention far beyond its share", STREAMINGLLM, SINK, EVAL_PPL, 0,
     "full", NULL},
    {"first tokens kept beside a window: better prediction", STREAMINGLLM, BETTER, EVAL_PPL, 0,
     "streamingllm budget=@", "window budget=@"},
    {"the same while a cache of 64 entries streams on", STREAMINGLLM, BETTER, EVAL_PPL, 0,
     "streamingllm budget=64", "window budget=64"},
    {"sinks alone, positions as in the text: better prediction", STREAMINGLLM, BETTER, EVAL_PPL, 0,
     "window budget=@ sink=4", "window budget=@"},
    {"first tokens kept beside a window: better answers", STREAMINGLLM, BETTER, EVAL_CONV, 0,
     "streamingllm budget=@", "window budget=@"},
    {"sinks let a model stream 4 million tokens", STREAMINGLLM, NOT_HERE, EVAL_PPL, 0,
     "the default model knows positions up to 4096 only", NULL},
    /* importance against recency */
    {"accumulated attention keeps old facts, a window loses them", H2O, BETTER, EVAL_CONV, 0,
     "h2o budget=@", "window budget=@"},
    {"the newest query's attention keeps old facts", TOVA, BETTER, EVAL_CONV, 0, "tova budget=@",
     "window budget=@"},
    {"the last queries' attention keeps old facts", SNAPKV, BETTER, EVAL_CONV, 0, "snapkv budget=@",
     "window budget=@"},
    {"accumulated attention keeps what is asked for", H2O, BETTER, EVAL_CONV, 1, "h2o budget=@",
     "window budget=@"},
    {"the newest query's attention keeps what is asked for", TOVA, BETTER, EVAL_CONV, 1,
     "tova budget=@", "window budget=@"},
    {"the last queries' attention keeps what is asked for", SNAPKV, BETTER, EVAL_CONV, 1,
     "snapkv budget=@", "window budget=@"},
    {"heavy hitters predict better than a window", H2O, BETTER, EVAL_PPL, 0, "h2o budget=@",
     "window budget=@"},
    {"half heavy hitters, half recent: better than hitters alone", H2O, BETTER, EVAL_CONV, 0,
     "h2o budget=@", "h2o budget=@ recent=0"},
    {"pooling over neighbours helps", SNAPKV, BETTER, EVAL_CONV, 1, "snapkv budget=@",
     "score=snapkv(kernel=1) budget=@ recent=32 when=prompt"},
    {"generation up to 29 times as fast at the same hardware", H2O, NOT_HERE, EVAL_PPL, 0,
     "the claim is about offloading on a GPU server", NULL},
    /* the question before or after compressing */
    {"h2o needs the question to choose well", H2O, KNOWN, EVAL_CONV, 1, "h2o budget=@", NULL},
    {"tova needs the question to choose well", TOVA, KNOWN, EVAL_CONV, 1, "tova budget=@", NULL},
    {"snapkv needs the question to choose well", SNAPKV, KNOWN, EVAL_CONV, 1, "snapkv budget=@",
     NULL},
    {"pyramidkv needs the question to choose well", PYRAMIDKV, KNOWN, EVAL_CONV, 1,
     "pyramidkv budget=@", NULL},
    /* budgets of layers; only the budget stage differs */
    {"more entries for lower layers help (question unknown)", PYRAMIDKV, BETTER, EVAL_CONV, 0,
     "pyramidkv budget=@", "pyramidkv budget=uniform(@)"},
    {"more entries for lower layers help (question known)", PYRAMIDKV, BETTER, EVAL_CONV, 1,
     "pyramidkv budget=@", "pyramidkv budget=uniform(@)"},
    {"the same with 16 entries", PYRAMIDKV, BETTER, EVAL_CONV, 1, "pyramidkv budget=16",
     "pyramidkv budget=uniform(16)"},
    {"pyramidkv answers better than snapkv", PYRAMIDKV, BETTER, EVAL_CONV, 1, "pyramidkv budget=@",
     "snapkv budget=@"},
    /* floors */
    {"the newest tokens predict better than random ones", "-", BETTER, EVAL_PPL, 0,
     "window budget=@", "score=random budget=@ when=block"},
    {"the newest tokens answer better than random ones", "-", BETTER, EVAL_CONV, 0,
     "window budget=@", "score=random budget=@ when=block"},
    {"keys with a small norm matter: prediction", KNORM, BETTER, EVAL_PPL, 0,
     "score=knorm budget=@ when=prompt", "score=random budget=@ when=prompt"},
    {"keys with a small norm matter: answers", KNORM, BETTER, EVAL_CONV, 0,
     "score=knorm budget=@ when=prompt", "score=random budget=@ when=prompt"},
    /* codecs */
    {"8 bits a value lose little: prediction", FLEXGEN, CLOSE, EVAL_PPL, 0, "full codec=q8_0",
     "full"},
    {"8 bits a value lose little: answers", FLEXGEN, CLOSE, EVAL_CONV, 0, "full codec=q8_0",
     "full"},
    {"4 bits a value lose little: prediction", FLEXGEN, CLOSE, EVAL_PPL, 0, "full codec=q4_0",
     "full"},
    {"4 bits a value lose little: answers", FLEXGEN, CLOSE, EVAL_CONV, 0, "full codec=q4_0",
     "full"},
    /* codecs: channels, rotations, centring */
    {"keys: a scale a channel codes better than a scale a token", KIVI, LOWER, EVAL_PPL, 0,
     "codec.k=kivi(bits=2,axis=channel) page=32", "codec.k=kivi(bits=2,axis=token)"},
    {"a scale a channel of keys: nearer predictions", KIVI, NEARER, EVAL_PPL, 0,
     "full codec.k=kivi(bits=2,axis=channel) page=32", "full codec.k=kivi(bits=2,axis=token)"},
    {"2 bits a code are within the stated bound", TURBOQUANT, BOUND, EVAL_PPL, 0,
     "codec=turboquant(bits=2)", NULL},
    {"4 bits a code are within the stated bound", TURBOQUANT, BOUND, EVAL_PPL, 0,
     "codec=turboquant(bits=4)", NULL},
    {"no rotation codec has a lower error at 2 bits", OCTOPUS, LOWER, EVAL_PPL, 0,
     "codec=octopus(bits=2)", ROTATIONS("2")},
    {"no rotation codec has a lower error at 3 bits", OCTOPUS, LOWER, EVAL_PPL, 0,
     "codec=octopus(bits=3)", ROTATIONS("3")},
    {"no rotation codec has a lower error at 4 bits", OCTOPUS, LOWER, EVAL_PPL, 0,
     "codec=octopus(bits=4)", ROTATIONS("4")},
    {"nor have rotatekv and polark, which fit the rows, at 2 bits", OCTOPUS, LOWER, EVAL_PPL, 0,
     "codec=octopus(bits=2)", LEARNED("2")},
    {"2 bits change the perplexity little", ROTATEKV, SMALL, EVAL_PPL, 0, "full codec=rotatekv(bits=2)",
     "full"},
    {"4 bits are near lossless: prediction", GEAR, CLOSE, EVAL_PPL, 0, "gear-kcvt", "full"},
    {"4 bits are near lossless: answers", GEAR, CLOSE, EVAL_CONV, 0, "gear-kcvt", "full"},
    {"a cache on disk takes a third or less of 8 bits at equal quality", CACHEGEN, SMALLER, EVAL_PPL, 0,
     "level 2", "full codec=q8_0"},
    {"the same at the smallest level", CACHEGEN, SMALLER, EVAL_PPL, 0, "level 1", "full codec=q8_0"},
    {"centring lowers the error of keys", "-", LOWER, EVAL_PPL, 0,
     "codec.k=turboquant(bits=2,center=head)", "codec.k=turboquant(bits=2)"},
    {"centred keys: nearer predictions", "-", NEARER, EVAL_PPL, 0,
     "full codec.k=turboquant(bits=2,center=head)", "full codec.k=turboquant(bits=2)"},
    {"a Hadamard rotation lowers the error of 4 bits", "llama.cpp PR 21038", LOWER, EVAL_PPL, 0,
     "codec=q4_0(rot=had)", "codec=q4_0"},
    {"4 bits with Hadamard: nearer predictions", "llama.cpp PR 21038", NEARER, EVAL_PPL, 0,
     "full codec=q4_0(rot=had)", "full codec=q4_0"},
    /* made again */
    {"rows made again give every token of the full cache", KVDIRECT, MATCH, EVAL_PPL, 0,
     "kvdirect budget=64", "streamingllm budget=64"},
    {"the same beside heavy hitters", KVDIRECT, MATCH, EVAL_PPL, 0, "kvdirect budget=64",
     "h2o budget=64"},
    {"rows made again from token ids lose nothing: prediction", KVDIRECT, CLOSE, EVAL_PPL, 0,
     "kvdirect budget=@ reduce=recompute(hold=1)", "full"},
    {"as many rows, the others made again: better answers than h2o", KVDIRECT, BETTER, EVAL_CONV, 0,
     "kvdirect budget=@ reduce=recompute(hold=1)", "h2o budget=@"},
    /* long streams in a cache of fixed size */
    {"entries whose rests are long are kept: better than heavy hitters", LAZYEVICTION, BETTER, EVAL_PPL, 0,
     "lazyeviction budget=50%", "h2o budget=50%"},
    {"a past that thins out evenly: better than a window with sinks", TREEKV, BETTER, EVAL_PPL, 0,
     "treekv budget=128", "streamingllm budget=128"},
    {"which of two neighbours goes matters little", TREEKV, CLOSE, EVAL_PPL, 0,
     "treekv budget=128 select=tree(side=old)", "treekv budget=128"},
    {"layers that keep other tokens: better than a window with sinks", LACACHE, BETTER, EVAL_PPL, 0,
     "lacache budget=128", "streamingllm budget=128"},
    /* merging */
    {"merging beats dropping at a small budget", EMS, BETTER, EVAL_CONV, 1, "ems budget=64",
     "ems budget=64 reduce=drop"},
    {"global and local attention together beat the local one", EMS, BETTER, EVAL_CONV, 0, "ems budget=@",
     "snapkv budget=@"},
    {"a compensation token beats dropping: prediction", RAZOR, BETTER, EVAL_PPL, 0,
     "window budget=@ sink=4 reduce=compensate", "window budget=@ sink=4"},
    /* budgets of heads and layers; only the budget stage differs */
    {"heads that contest for their layer's budget", ADAKV, BETTER, EVAL_CONV, 1, "adakv budget=@",
     "adakv budget=uniform(@)"},
    {"layers by their share of attention beat equal layers", PREFIXKV, BETTER, EVAL_CONV, 1, "prefixkv budget=@",
     "prefixkv budget=uniform(@)"},
    {"four retrieval heads vote better than all heads", COMPRESSKV, BETTER, EVAL_CONV, 1,
     "compresskv budget=uniform(@)" TINY, "snapkv budget=@"},
    {"layers by their error beat equal layers", COMPRESSKV, BETTER, EVAL_CONV, 1,
     "compresskv budget=@" TINY, "compresskv budget=uniform(@)" TINY},
    {"heads by their retrieval score beat equal heads", HEADKV, BETTER, EVAL_CONV, 1, "headkv budget=@" TINY,
     "snapkv budget=@"},
    /* what is kept beside the best */
    {"pages that stand for the others beat more of the best", KVCRUSH, BETTER, EVAL_CONV, 1, "kvcrush budget=@",
     "kvcrush budget=@ select=topk"},
    {"whole windows beat single tokens", WINDOWKV, BETTER, EVAL_CONV, 1, "windowkv budget=@",
     "windowkv budget=@ select=topk"},
    /* the question is not known */
    {"queries at the answer's positions find more than the prompt's last", DAPQ, BETTER, EVAL_CONV, 0,
     "dapq budget=@", "snapkv budget=@"},
    {"what repeating the prompt needs beats its last queries", KVZIP, BETTER, EVAL_CONV, 0, "kvzip budget=@",
     "snapkv budget=@"},
    {"the same at a half", KVZIP, BETTER, EVAL_CONV, 0, "kvzip budget=50%", "snapkv budget=50%"},
    /* a history read in blocks, a cache for each topic (E=4) or one for all (E=1) */
    {"a cache for each of 4 topics answers better than one for all", EPICACHE, BETTER, EVAL_CONV, 0,
     "epicache score=epicache(episodes=4,medoids=2) " TOPICS, "epicache score=epicache(medoids=2) " TOPICS},
    {"the right topic's cache answers better than a wrong one's", EPICACHE, BETTER, EVAL_CONV, 0,
     "epicache score=epicache(episodes=4,medoids=2) " TOPICS,
     "epicache score=epicache(episodes=4,medoids=2,pick=far) " TOPICS},
    {"typical turns judge a block better than its last tokens (snapkv)", EPICACHE, BETTER, EVAL_CONV, 0,
     "epicache score=epicache(episodes=4,medoids=2) " TOPICS, "epicache score=epicache(patch=last) " TOPICS},
    {"better than repeating the block (kvzip)", EPICACHE, BETTER, EVAL_CONV, 0,
     "epicache score=epicache(episodes=4,medoids=2) " TOPICS, "epicache score=epicache(patch=repeat) " TOPICS},
    {"better than an instruction to summarise (infinipot)", EPICACHE, BETTER, EVAL_CONV, 0,
     "epicache score=epicache(episodes=4,medoids=2) " TOPICS, "epicache score=epicache(patch=summary) " TOPICS},
    {"better than keys unlike the mean key (keydiff)", EPICACHE, BETTER, EVAL_CONV, 0,
     "epicache score=epicache(episodes=4,medoids=2) " TOPICS, "epicache score=keydiff " TOPICS},
    {"expected queries find more than the prompt's last", EXPECTED, BETTER, EVAL_CONV, 0, "expected-attention budget=@",
     "snapkv budget=@"},
    /* nothing is forgotten, a query reads a window and what it needs; equal numbers of entries are read */
    {"blocks that are read back answer what a window has lost", INFLLM, BETTER, EVAL_CONV, 0,
     "infllm retrieve=infllm(" HELD ",block=32,topk=24,repr=4)" AFAR, "streamingllm budget=1040"},
    {"a third of these blocks: still better than a window", INFLLM, BETTER, EVAL_CONV, 0,
     "infllm retrieve=infllm(" HELD ",block=32,topk=8,repr=4)" AFAR, "streamingllm budget=528"},
    {"most watched keys find a block better than the mean of all", INFLLM, BETTER, EVAL_CONV, 0,
     "infllm retrieve=infllm(" HELD ",block=32,topk=8,repr=4)" AFAR,
     "infllm retrieve=infllm(" HELD ",block=32,topk=8,repr=0)" AFAR},
    {"events that begin with a surprise beat fixed blocks", EMLLM, BETTER, EVAL_CONV, 0,
     "em-llm segment=surprise(init=16,local=256) retrieve=em-llm(" HELD ",mem=256,chunk=0,most=64)" AFAR,
     "em-llm segment=fixed(size=32) retrieve=em-llm(" HELD ",mem=256,chunk=0,most=64)" AFAR},
    {"the contiguity buffer helps questions about order", EMLLM, BETTER, EVAL_ORDER, 0,
     "em-llm segment=surprise(init=16,local=256) retrieve=em-llm(" HELD ",mem=256,chunk=0,most=64,contiguity=0.3)" AFAR,
     "em-llm segment=surprise(init=16,local=256) retrieve=em-llm(" HELD ",mem=256,chunk=0,most=64)" AFAR}};
enum { N_CLAIMS = sizeof claims / sizeof *claims };

/* What counts as little, as many and as too few; stated in the output. */
static const double little_accuracy = 0.03, little_nll = 0.01, small_nll = 0.06, times_even = 10,
                    needs = 0.5, far_from_all = 0.95, third = 3;

/* ==== >>claims_measure : one evaluation for each suite, with and without the question ========= */

typedef struct claim_result {
    double first, second, diff, p; /* p < 0: the test is the interval of the difference */
    interval of_first, of_second, of_diff;
    int n;
    char more[160], verdict[200];
} claim_result;
typedef struct claim_run {
    eval e;
    args a;
    char list[2048];
    int used;
} claim_run;
static claim_run runs[EVAL_SUITES][2];
static char filled[N_CLAIMS][2][400]; /* @ filled in */
static int chosen[N_CLAIMS];

static void fill_in(char *to, size_t size, const char *recipe, const char *budget) {
    const char *at = recipe ? strchr(recipe, '@') : NULL;
    if (!at) snprintf(to, size, "%s", recipe ? recipe : "");
    else snprintf(to, size, "%.*s%s%s", (int)(at - recipe), recipe, budget, at + 1);
}
static int add_recipe(claim_run *r, const char *text) {
    int i;
    if (!*text || !strcmp(text, "full")) return OK; /* always runs */
    for (i = 0; i < r->a.kvs.n; i++) if (!strcmp(r->a.kvs.item[i], text)) return OK;
    if (i == MAX_LIST) return fail("more than %d recipes of one suite", MAX_LIST);
    r->a.kvs.item[r->a.kvs.n++] = text;
    return OK;
}
static int contains(const char *text, const char *word) { /* letters of any case */
    size_t i;
    for (; text && *text; text++) {
        for (i = 0; word[i] && tolower((unsigned char)text[i]) == tolower((unsigned char)word[i]);)
            i++;
        if (!word[i]) return 1;
    }
    return 0;
}
static int choose(const args *a) {
    int i, j, any = 0, status;
    for (i = 0; i < N_CLAIMS; i++) {
        const claim *c = claims + i;
        chosen[i] = !a->text || contains(c->what, a->text) || contains(c->source, a->text) ||
                    contains(c->first, a->text) || contains(c->second, a->text);
        any |= chosen[i];
        if (!chosen[i] || c->kind == NOT_HERE) continue;
        for (j = 0; j < 2; j++)
            fill_in(filled[i][j], sizeof *filled[i], j ? c->second : c->first, a->budgets);
        for (j = 0; j < 2 && !ROWS(c->kind); j++) {
            claim_run *r = &runs[c->suite][j];
            if (c->kind != KNOWN && j != c->aware) continue;
            if (!r->used) { r->a = *a; r->a.kvs.n = 0; r->a.text = NULL; r->used = 1; }
            if (c->kind != SMALLER && (status = add_recipe(r, filled[i][0])) != OK) return status;
            if ((status = add_recipe(r, filled[i][1])) != OK) return status;
        }
    }
    return any ? OK : misuse("--only %s: no claim has this word", a->text);
}
static int run_eval(claim_run *r, int suite, int aware) {
    static const char nothing[] = "full";
    int status;
    r->a.suite = eval_suites[suite].word;
    r->a.aware = aware;
    r->a.budgets = "50%"; /* no recipe is without a budget of its own */
    if (!r->a.kvs.n) r->a.kvs.item[r->a.kvs.n++] = nothing;
    eval_begin(&r->e, &r->a);
    if ((status = eval_options(&r->e, r->list, sizeof r->list)) != OK) return status;
    if ((status = eval_open(&r->e)) != OK) return status;
    return eval_streams(&r->e, 0);
}
static const eval_cell *cell_of(const claim_run *r, const char *recipe) {
    int i;
    for (i = 0; i < r->e.r.n_cells; i++)
        if (!strcmp(r->e.r.method[r->e.r.cell[i].method], recipe)) return r->e.r.cell + i;
    return NULL;
}

/* Probability on position 0 from the queries of the second half of each text, mean over heads:
   mean over the lanes (a value for each text), by layer, lanes above 0.3 (Gu 2024, 2410.10781). */
static int measure_sink(eval *e, double *mean, double *layer, int *above, double *even) {
    const int L = e->l.model.n_layers, G = e->l.model.n_kv_heads, n = e->r.group[0].ctx,
              half = n / 2;
    double *lane = (double *)grow(NULL, (size_t)(L * G), sizeof *lane);
    float *acc = (float *)grow(NULL, (size_t)n, sizeof *acc);
    kvmem_recipe recipe;
    kvmem_session s;
    kvmem_view v;
    int i, l, g, part, status = OK;
    memset(lane, 0, (size_t)(L * G) * sizeof *lane);
    memset(&v, 0, sizeof v);
    kvmem_recipe_parse(&recipe, "h2o budget=100%", NULL); /* collects sums of probability */
    e->cfg.recipe = &recipe;
    for (i = 0; i < e->r.group[0].streams && status == OK; i++) {
        mean[i] = 0;
        if ((status = make_stream(e, e->r.group, i)) != OK) break;
        if (kvmem_session_init(&s, &e->l.model, &e->cfg)) return fail("%s", s.error.text);
        for (part = 0; part < 2 && status == OK; part++) {
            if (kvmem_session_feed(&s, e->test.ids + part * half, part ? n - half : half,
                                   KVMEM_PREFILL, NULL, NULL))
                status = fail("%s", s.error.text);
            v.cache = &s.cache;
            for (l = 0; l < L && status == OK; l++)
                for (g = 0; g < G; g++) {
                    v.layer = l;
                    kvmem_view_acc(&v, g, acc);
                    mean[i] += (part ? 1 : -1) * (double)acc[0] / (n - half) / (L * G);
                    lane[l * G + g] += (part ? 1 : -1) * (double)acc[0] / (n - half);
                }
        }
        kvmem_session_free(&s);
    }
    for (*above = 0, l = 0; l < L; l++)
        for (layer[l] = 0, g = 0; g < G; g++) {
            layer[l] += lane[l * G + g] / G / e->r.group[0].streams;
            *above += lane[l * G + g] / e->r.group[0].streams > 0.3;
        }
    for (*even = 0, i = half; i < n; i++) *even += 1.0 / (i + 1) / (n - half);
    free(lane);
    free(acc);
    return status;
}

/* ==== >>claims_verdict : figures and what follows from them =================================== */

KVMEM__PRINTF(2, 3) static void verdict(claim_result *r, const char *f, ...) {
    va_list ap;
    va_start(ap, f);
    vsnprintf(r->verdict, sizeof r->verdict, f, ap);
    va_end(ap);
}
static void judge_sink(claim_result *r, eval *e) {
    double *mean = (double *)grow(NULL, (size_t)e->r.group[0].streams, sizeof *mean), layer[256];
    int above = 0, l, n = 0;
    r->n = e->r.group[0].streams;
    r->p = -1;
    if (e->l.model.n_layers > 256) verdict(r, "failed: more than 256 layers");
    else if (measure_sink(e, mean, layer, &above, &r->second) != OK) verdict(r, "failed");
    else {
        r->first = mean_of(mean, r->n);
        r->of_first = bootstrap(mean, r->n);
        r->of_second.lo = r->of_second.hi = r->second;
        r->diff = r->first - r->second;
        r->of_diff.lo = r->of_first.lo - r->second;
        r->of_diff.hi = r->of_first.hi - r->second;
        n = snprintf(r->more, sizeof r->more, "layers");
        for (l = 0; l < e->l.model.n_layers && n < (int)sizeof r->more - 40; l++)
            n += snprintf(r->more + n, sizeof r->more - (size_t)n, " %.1f", 100 * layer[l]);
        snprintf(r->more + n, sizeof r->more - (size_t)n, " %%; %d of %d KV heads above 30 %%",
                 above, e->l.model.n_layers * e->l.model.n_kv_heads);
        verdict(r, r->of_first.lo > times_even * r->second ? "reproduced"
                   : r->of_first.hi < r->second            ? "reversed"
                                                           : "not seen");
    }
    free(mean);
}
/* The claimed direction is first > second: diff > 0. */
static void judge_answers(claim_result *r, const claim *c, const eval_cell *a, const eval_cell *b,
                          const eval_cell *full) {
    const double whole = full->n_q ? (double)full->n_right / full->n_q : 0;
    int only_a, only_b, both;
    cell_pair(a, b, &only_a, &only_b, &both);
    r->n = a->n_q;
    r->first = a->n_q ? (double)a->n_right / a->n_q : 0;
    r->second = b->n_q ? (double)b->n_right / b->n_q : 0;
    r->of_first = wilson(a->n_right, a->n_q);
    r->of_second = wilson(b->n_right, b->n_q);
    r->diff = r->first - r->second;
    r->of_diff = paired(only_a, only_b, r->n);
    r->p = mcnemar(only_a, only_b);
    if (whole < needs)
        verdict(r, "not testable here: the full cache itself answers only %.0f %%", 100 * whole);
    else if (c->kind == CLOSE)
        verdict(r, r->of_diff.lo > -little_accuracy   ? "reproduced"
                   : r->of_diff.hi < -little_accuracy ? "reversed"
                                                      : "not seen");
    else if (r->p < 0.05) verdict(r, r->diff > 0 ? "reproduced" : "reversed");
    else if (r->first < 0.05 && r->second < 0.05) verdict(r, "not seen (both near 0)");
    else if (r->first > 0.95 && r->second > 0.95) verdict(r, "not seen (both near 100 %%)");
    else verdict(r, "not seen");
}
/* Perplexities; the difference is in nats a token, second - first. */
static void judge_prediction(claim_result *r, const claim *c, const eval_cell *a,
                             const eval_cell *b) {
    const interval w = bootstrap(a->nll, a->n_s), x = bootstrap(b->nll, b->n_s);
    double *d = (double *)grow(NULL, (size_t)a->n_s, sizeof *d);
    int i;
    for (i = 0; i < a->n_s; i++) d[i] = b->nll[i] - a->nll[i];
    r->n = a->n_s;
    r->first = exp(mean_of(a->nll, a->n_s));
    r->second = exp(mean_of(b->nll, b->n_s));
    r->of_first.lo = exp(w.lo);
    r->of_first.hi = exp(w.hi);
    r->of_second.lo = exp(x.lo);
    r->of_second.hi = exp(x.hi);
    r->diff = mean_of(d, r->n);
    r->of_diff = bootstrap(d, r->n);
    r->p = -1;
    if (r->n < 2) verdict(r, "not testable here: one text has no interval");
    else if (c->kind == CLOSE || c->kind == SMALL) {
        const double little = c->kind == CLOSE ? little_nll : small_nll;
        verdict(r, r->of_diff.lo > -little   ? "reproduced"
                   : r->of_diff.hi < -little ? "reversed"
                                             : "not seen");
    }
    else verdict(r, r->of_diff.lo > 0 ? "reproduced" : r->of_diff.hi < 0 ? "reversed" : "not seen");
    free(d);
}
/* Divergences from the full cache; second - first, in nats a token. */
static void judge_nearer(claim_result *r, const eval_cell *a, const eval_cell *b) {
    double *d = (double *)grow(NULL, (size_t)a->n_s, sizeof *d);
    int i;
    for (i = 0; i < a->n_s; i++) d[i] = b->kl[i] - a->kl[i];
    r->n = a->n_s;
    r->first = mean_of(a->kl, a->n_s);
    r->second = mean_of(b->kl, b->n_s);
    r->of_first = bootstrap(a->kl, a->n_s);
    r->of_second = bootstrap(b->kl, b->n_s);
    r->diff = mean_of(d, r->n);
    r->of_diff = bootstrap(d, r->n);
    r->p = -1;
    if (r->n < 2) verdict(r, "not testable here: one text has no interval");
    else verdict(r, r->of_diff.lo > 0 ? "reproduced" : r->of_diff.hi < 0 ? "reversed" : "not seen");
    free(d);
}
static void judge_match(claim_result *r, const eval_cell *a, const eval_cell *b) {
    int i;
    r->n = a->n_s;
    r->first = mean_of(a->top1, a->n_s);
    r->second = mean_of(b->top1, b->n_s);
    r->of_first = bootstrap(a->top1, a->n_s);
    r->of_second = bootstrap(b->top1, b->n_s);
    r->diff = r->first - r->second;
    r->of_diff.lo = r->of_first.lo - r->of_second.hi;
    r->of_diff.hi = r->of_first.hi - r->of_second.lo;
    r->p = -1;
    for (i = 0; i < a->n_s && a->top1[i] == 1;) i++;
    if (i < a->n_s) verdict(r, "not reproduced: %d of %d texts match", i, a->n_s);
    else verdict(r, r->of_second.hi < far_from_all ? "reproduced" : "not seen");
}

/* ---- saved caches */

/* -log of what a row of logits gives token `to`. */
static double logits_nll(const float *x, int n, int to) { return row_log_sum(x, n) - (double)x[to]; }
/* The second half of the text in e->test, after its first half was saved at a level and loaded again:
   bytes of the file and of the cache coded by r->second, loss in nats a token. */
static int one_saved(eval *e, const char *recipe, int level, double *saved, double *coded, double *loss) {
    kvmem_level_options o = kvmem_level_options_default();
    const int n = e->test.n, half = n / 2;
    kvmem_recipe exactly = kvmem_recipe_default(), other;
    kvmem_session s[3];
    eval_base bytes;
    kvmem_bytes count;
    double a = 0, b = 0;
    int i, k, bad = 0;
    memset(s, 0, sizeof s);
    memset(&bytes, 0, sizeof bytes);
    o.level = level;
    if (kvmem_recipe_parse(&other, recipe, NULL) != KVMEM_OK) return 0;
    for (i = 0; i < 3 && !bad; i++) {
        e->cfg.recipe = i == 2 ? &other : &exactly;
        bad = kvmem_session_init(&s[i], &e->l.model, &e->cfg) != KVMEM_OK;
        if (i != 1 && !bad)
            bad = kvmem_session_feed(&s[i], e->test.ids, half, KVMEM_PROMPT_END, NULL, NULL) != KVMEM_OK;
    }
    bad = bad || kvmem_cache_save_level(&s[0].cache, &o, base_write, &bytes) ||
          kvmem_session_load(&s[1], bytes.saved, bytes.size);
    for (i = half; i + 1 < n && !bad; i++) {
        for (k = 0; k < 2 && !bad; k++)
            bad = kvmem_session_feed(&s[k], e->test.ids + i, 1, KVMEM_DECODE, NULL, NULL) != KVMEM_OK;
        a += bad ? 0 : logits_nll(s[0].logits, e->l.model.n_vocab, e->test.ids[i + 1]);
        b += bad ? 0 : logits_nll(s[1].logits, e->l.model.n_vocab, e->test.ids[i + 1]);
    }
    *saved = (double)bytes.size;
    if (!bad) kvmem_cache_bytes(&s[2].cache, &count);
    *coded = bad ? 0 : (double)(count.live.k + count.live.v);
    *loss = (b - a) / (n - 1 - half);
    for (i = 0; i < 3; i++) kvmem_session_free(&s[i]);
    free(bytes.saved);
    return !bad;
}
static void judge_saved(claim_result *r, const claim *c, eval *e) {
    const int n = e->r.group[0].streams, level = atoi(c->first + strcspn(c->first, "0123456789"));
    double *x = (double *)grow(NULL, 4 * (size_t)n, sizeof *x);
    interval loss;
    int i, ok = 1;
    for (i = 0; i < n && ok; i++) {
        ok = make_stream(e, e->r.group, i) == OK &&
             one_saved(e, c->second, level, x + i, x + n + i, x + 2 * n + i);
        x[3 * n + i] = x[n + i] / (x[i] > 0 ? x[i] : 1);
    }
    r->n = n;
    r->p = -1;
    if (!ok) verdict(r, "failed: the cache could not be saved or loaded");
    else {
        r->first = mean_of(x, n);
        r->second = mean_of(x + n, n);
        r->of_first = bootstrap(x, n);
        r->of_second = bootstrap(x + n, n);
        r->diff = mean_of(x + 3 * n, n);
        r->of_diff = bootstrap(x + 3 * n, n);
        loss = bootstrap(x + 2 * n, n);
        snprintf(r->more, sizeof r->more, "loss of the file %+.4f [%+.4f, %+.4f] nats a token",
                 mean_of(x + 2 * n, n), loss.lo, loss.hi);
        verdict(r, loss.hi < little_nll && r->of_diff.lo > third   ? "reproduced"
                   : loss.lo > little_nll || r->of_diff.hi < third ? "reversed"
                                                                   : "not seen");
    }
    free(x);
}

/* ---- rows: errors of each lane's K and V, the same rows for every recipe */

enum { MAX_LANES = 1024 };
static const args *rows_of;
static exact exact_rows; /* of the full cache */
/* err (2 * lanes): K and V of each lane, 0 where nothing is lost. Bits a value of what is coded. */
static int lane_errors(const char *text, double *err, double *bits, char *why, size_t size) {
    kvmem_recipe r;
    kvmem_cache c;
    kvmem_error error;
    exact x;
    double sum = 0, values = 0;
    int g, lanes, bad;
    if (!recorded.n) {
        const kvmem_backend *b;
        const kvmem_recipe exactly = kvmem_recipe_default();
        if (find_backend(rows_of, &b) || record_open(rows_of->model, NULL, NULL, b) ||
            record_run(&exactly, &c, &exact_rows, why, size)) return 0;
        kvmem_cache_free(&c);
    }
    lanes = recorded.shape.n_layers * recorded.shape.n_kv_heads;
    if (lanes > MAX_LANES / 2) { snprintf(why, size, "more than %d lanes", MAX_LANES / 2); return 0; }
    if (kvmem_recipe_parse(&r, text, &error) != KVMEM_OK) {
        snprintf(why, size, "%s", error.text);
        return 0;
    }
    bad = record_run(&r, &c, &x, why, size);
    for (g = 0; g < 2 * lanes && !bad; g++) {
        const size_t n = (size_t)FED * (size_t)recorded.shape.head_dim, at = (size_t)(g / 2) * n;
        err[g] = g % 2 ? squares(exact_rows.v + at, x.v + at, n) : squares(exact_rows.k + at, x.k + at, n);
        if (err[g] <= 0) continue;
        sum += 8.0 * (double)codec_count(&c, g / 2, g % 2).total;
        values += (double)n;
    }
    *bits = values > 0 ? sum / values : 0;
    kvmem_cache_free(&c);
    exact_free(&x);
    return bad ? 0 : 2 * lanes;
}
static void judge_rows(claim_result *r, const claim *c, const char *first, const char *second) {
    static double a[MAX_LANES], b[MAX_LANES], x[MAX_LANES], ratio[MAX_LANES];
    double bits_a, bits = 0, bits_b = 0, width = 4, best = -1;
    char why[256], one[256];
    int n = lane_errors(first, a, &bits_a, why, sizeof why), i, k, m = 0, many = 0;
    double sum;
    const char *at = strstr(first, "bits=");
    if (at) width = atof(at + 5);
    for (i = 0; i < n; i++) b[i] = c->kind == BOUND ? sqrt(3) * 3.14159265358979 / 2 * pow(4, -width) : -1;
    while (n && second && *second) { /* the best of them for each lane */
        const size_t len = strcspn(second, "|");
        snprintf(one, sizeof one, "%.*s", (int)len, second);
        if (lane_errors(one, x, &bits, why, sizeof why) != n) n = 0;
        for (i = 0; i < n; i++) if (x[i] > 0 && (b[i] < 0 || x[i] < b[i])) b[i] = x[i];
        for (sum = 0, k = i = 0; i < n; i++) if (x[i] > 0) { sum += x[i]; k++; }
        if (k && (best < 0 || sum / k < best)) { best = sum / k; bits_b = bits; }
        many++;
        second += len + (second[len] == '|');
    }
    if (!n) { verdict(r, "failed: %.180s", why); return; }
    for (i = 0; i < n; i++)
        if (a[i] > 0 && b[i] > 0) {
            a[m] = a[i];
            b[m] = b[i];
            ratio[m] = log(b[i] / a[i]);
            m++;
        }
    r->n = m;
    if (!m) { verdict(r, "failed: no row loses anything"); return; }
    r->first = mean_of(a, m);
    r->second = mean_of(b, m);
    r->of_first = bootstrap(a, m);
    r->of_second = bootstrap(b, m);
    r->diff = exp(mean_of(ratio, m));
    r->of_diff = bootstrap(ratio, m);
    r->of_diff.lo = exp(r->of_diff.lo);
    r->of_diff.hi = exp(r->of_diff.hi);
    r->p = -1;
    if (many) snprintf(r->more, sizeof r->more, "%.2f bits a value against %.2f", bits_a, bits_b);
    else snprintf(r->more, sizeof r->more, "%.2f bits a value", bits_a);
    verdict(r, r->of_diff.lo > 1 ? "reproduced" : r->of_diff.hi < 1 ? "reversed" : "not seen");
}
static void judge(claim_result *r, int i) {
    const claim *c = claims + i;
    claim_run *run = &runs[c->suite][c->aware];
    const eval_cell *a, *b, *full;
    memset(r, 0, sizeof *r);
    if (c->kind == NOT_HERE) { verdict(r, "not testable here: %s", c->first); return; }
    if (c->kind == SINK) { judge_sink(r, &run->e); return; }
    if (c->kind == SMALLER) { judge_saved(r, c, &run->e); return; }
    if (ROWS(c->kind)) { judge_rows(r, c, filled[i][0], filled[i][1]); return; }
    a = cell_of(run, filled[i][0]);
    b = c->kind == KNOWN ? cell_of(&runs[c->suite][0], filled[i][0]) : cell_of(run, filled[i][1]);
    full = cell_of(&runs[c->suite][c->kind == KNOWN ? 0 : c->aware], "full");
    if (!a || !b || !full) verdict(r, "failed: a recipe was not run");
    else if (a->error[0] || b->error[0])
        verdict(r, "failed: %s", a->error[0] ? a->error : b->error);
    else if (c->kind == NEARER) judge_nearer(r, a, b);
    else if (c->kind == MATCH) judge_match(r, a, b);
    else if (c->suite == EVAL_PPL) judge_prediction(r, c, a, b);
    else judge_answers(r, c, a, b, full);
}

/* ==== >>claims_show =========================================================================== */

/* "snapkv" of "snapkv budget=12.5%": the budget stands in another column if it is --budget. */
static const char *short_name(const claim *c, int second, char *buf, size_t size) {
    const char *text = second ? c->second : c->first, *at;
    size_t n = 0;
    if (c->kind == KNOWN) return second ? "unknown" : "known";
    if (c->kind == SINK) return second ? "even share" : "position 0";
    if (c->kind == BOUND && second) return "bound";
    at = strstr(text, " budget=@");
    for (; *text && n + 1 < size; text++) {
        if (text == at) { text += strlen(" budget=@"); at = NULL; if (!*text) break; }
        buf[n++] = *text;
    }
    buf[n] = 0;
    return buf;
}
static void figure(char *to, size_t size, const claim *c, double x, interval i) {
    if (c->kind == SINK && i.lo >= i.hi) snprintf(to, size, "%.2f %%", 100 * x);
    else if (ROWS(c->kind)) snprintf(to, size, "error %.3g [%.3g, %.3g]", x, i.lo, i.hi);
    else if (c->kind == SMALLER)
        snprintf(to, size, "%.1f KiB [%.1f, %.1f]", x / 1024, i.lo / 1024, i.hi / 1024);
    else if (c->kind == NEARER) snprintf(to, size, "KL %.3g [%.3g, %.3g]", x, i.lo, i.hi);
    else if (c->kind == MATCH)
        snprintf(to, size, "%.1f %% the same [%.1f, %.1f]", 100 * x, 100 * i.lo, 100 * i.hi);
    else if (c->suite == EVAL_PPL && c->kind != SINK)
        snprintf(to, size, "ppl %.3f [%.3f, %.3f]", x, i.lo, i.hi);
    else snprintf(to, size, "%.1f %% [%.1f, %.1f]", 100 * x, 100 * i.lo, 100 * i.hi);
}
static void difference(char *to, size_t size, const claim *c, const claim_result *r) {
    const int nats = c->suite == EVAL_PPL && c->kind != SINK && c->kind != MATCH;
    const double k = nats ? 1 : 100;
    if (ROWS(c->kind) || c->kind == SMALLER)
        snprintf(to, size, "x %.2f [%.2f, %.2f]", r->diff, r->of_diff.lo, r->of_diff.hi);
    else snprintf(to, size, nats ? "%+.4f [%+.4f, %+.4f]" : "%+.1f [%+.1f, %+.1f]", k * r->diff,
             k * r->of_diff.lo, k * r->of_diff.hi);
}
typedef struct claim_texts {
    char where[120], name[2][80], fig[2][80], diff[80], p[40];
} claim_texts;
static void texts_of(claim_texts *t, const args *a, const claim *c, const claim_result *r) {
    char buf[80];
    const int none = c->kind == NOT_HERE || !strncmp(r->verdict, "failed", 6);
    const char *known = c->suite == EVAL_PPL ? ""
                        : c->kind == KNOWN   ? ""
                        : c->aware           ? ", question known"
                                             : ", question unknown";
    memset(t, 0, sizeof *t);
    if (none) return;
    if (ROWS(c->kind))
        snprintf(t->where, sizeof t->where, "K and V of %d tokens, n %d lanes", FED, r->n);
    else snprintf(t->where, sizeof t->where, "%s %s%s%s%s, n %d", eval_suites[c->suite].word, a->lengths,
             strchr(c->first, '@') ? ", " : "", strchr(c->first, '@') ? a->budgets : "", known,
             r->n);
    snprintf(t->name[0], sizeof *t->name, "%s", short_name(c, 0, buf, sizeof buf));
    snprintf(t->name[1], sizeof *t->name, "%s", short_name(c, 1, buf, sizeof buf));
    figure(t->fig[0], sizeof *t->fig, c, r->first, r->of_first);
    figure(t->fig[1], sizeof *t->fig, c, r->second, r->of_second);
    difference(t->diff, sizeof t->diff, c, r);
    if (r->p >= 0) snprintf(t->p, sizeof t->p, "%.2g", r->p);
}
static void show_rule(const args *a, const char *line) {
    int s, k;
    put("%smodel %s; contexts of %s tokens, seeds %lld to %lld; @ = %s of the tokens; [95 %% "
        "intervals]\n",
        line,
        runs[EVAL_CONV][0].used ? runs[EVAL_CONV][0].e.a->model
        : a->model              ? a->model
                                : DEFAULT_MODEL,
        a->lengths, (long long)a->seed, (long long)(a->seed + a->seeds - 1), a->budgets);
    for (s = 0; s < EVAL_SUITES; s++)
        for (k = 0; k < 2; k++) {
            const eval_cell *c = runs[s][k].used ? cell_of(&runs[s][k], "full") : NULL;
            if (!c || c->error[0] || (k && runs[s][0].used)) continue;
            if (s == EVAL_PPL)
                put("%sfull cache, %s: ppl %.3f\n", line, eval_suites[s].word,
                    exp(mean_of(c->nll, c->n_s)));
            else put("%sfull cache, %s: %.1f %% of %d right\n", line, eval_suites[s].word,
                     100.0 * c->n_right / (c->n_q ? c->n_q : 1), c->n_q);
        }
    put("%sreproduced  accuracy: exact McNemar p < 0.05 on the same questions, in the claimed "
        "direction;\n",
        line);
    put("%s            perplexity: 95 %% paired bootstrap interval over texts of the difference "
        "(nats) beyond 0;\n",
        line);
    put("%s            \"lose little\": loss below %.0f points, or %.2f nats, with its whole "
        "interval;\n",
        line, 100 * little_accuracy, little_nll);
    put("%s            \"small\": the same with %.2f nats; KL: paired bootstrap interval over texts;\n",
        line, small_nll);
    put("%s            errors of rows: sum of squares over that of the rows, in each lane; interval\n",
        line);
    put("%s            of the mean ratio over lanes beyond 1; the same token: in all texts, and the\n",
        line);
    put("%s            other recipe's interval below %.0f %%; saved caches: more than %g times smaller,\n",
        line, 100 * far_from_all, third);
    put("%s            and the loss little;\n", line);
    put("%s            first token: interval of its probability above %.0f times the even share\n",
        line, times_even);
    put("%sreversed    the same, in the other direction; not seen: neither\n", line);
    put("%snot testable here: says why; always if the full cache answers less than %.0f %%\n", line,
        100 * needs);
}
static void show_grid(const args *a, const claim_result *r) {
    claim_texts t;
    grid g;
    int i;
    show_rule(a, "");
    put("\n");
    grid_begin(&g, 9, 9);
    grid_head(&g, "claim|source|measured|first|second|difference|McNemar p|verdict|more");
    for (i = 0; i < N_CLAIMS; i++) {
        if (!chosen[i]) continue;
        texts_of(&t, a, claims + i, r + i);
        grid_put(&g, "%s", claims[i].what);
        grid_put(&g, "%s", claims[i].source);
        grid_put(&g, "%s", t.where);
        grid_put(&g, "%s%s%s", t.name[0], *t.name[0] ? ": " : "", t.fig[0]);
        grid_put(&g, "%s%s%s", t.name[1], *t.name[1] ? ": " : "", t.fig[1]);
        grid_put(&g, "%s", t.diff);
        grid_put(&g, "%s", t.p);
        grid_put(&g, "%s", r[i].verdict);
        grid_put(&g, "%s", r[i].more);
    }
    grid_print(&g);
}
static void show_md(const args *a, const claim_result *r) {
    claim_texts t;
    int i;
    put("| claim | source | measured | figures | verdict |\n|---|---|---|---|---|\n");
    for (i = 0; i < N_CLAIMS; i++) {
        if (!chosen[i]) continue;
        texts_of(&t, a, claims + i, r + i);
        put("| %s | %s | %s | ", claims[i].what, claims[i].source, t.where);
        if (*t.diff) put("`%s` %s, `%s` %s", t.name[0], t.fig[0], t.name[1], t.fig[1]);
        if (*t.p) put(", p %s", t.p);
        else if (*t.diff && ROWS(claims[i].kind)) put(", errors %s", t.diff);
        else if (*t.diff && claims[i].kind == SMALLER) put(", bytes %s", t.diff);
        else if (*t.diff && claims[i].kind != SINK && claims[i].kind != MATCH)
            put(", difference %s nats", t.diff);
        if (*r[i].more) put("; %s", r[i].more);
        put(" | %s |\n", r[i].verdict);
    }
    put("\n");
    show_rule(a, "    ");
}
static void show_csv(const args *a, const claim_result *r) {
    claim_texts t;
    int i;
    put("claim,source,suite,ctx,question,first,second,n,first_value,first_lo,first_hi,second_value,"
        "second_lo,second_hi,difference,difference_lo,difference_hi,p,verdict,more\n");
    for (i = 0; i < N_CLAIMS; i++) {
        const claim *c = claims + i;
        const int there = c->kind != NOT_HERE && strncmp(r[i].verdict, "failed", 6);
        if (!chosen[i]) continue;
        texts_of(&t, a, c, r + i);
        csv_text(c->what);
        csv_text(c->source);
        put("%s,%s,%s,", ROWS(c->kind) ? "rows" : eval_suites[c->suite].word, a->lengths,
            c->suite == EVAL_PPL ? "" : c->kind == KNOWN ? "both" : c->aware ? "known" : "unknown");
        csv_text(there ? filled[i][0] : "");
        csv_text(there ? filled[i][1] : "");
        put("%d,", r[i].n);
        csv_real(r[i].first, there);
        csv_real(r[i].of_first.lo, there);
        csv_real(r[i].of_first.hi, there);
        csv_real(r[i].second, there);
        csv_real(r[i].of_second.lo, there);
        csv_real(r[i].of_second.hi, there);
        csv_real(r[i].diff, there);
        csv_real(r[i].of_diff.lo, there);
        csv_real(r[i].of_diff.hi, there);
        csv_real(r[i].p, there && r[i].p >= 0);
        csv_text(r[i].verdict);
        csv_text(r[i].more);
        out.len--; /* the comma at the line's end */
        put("\n");
    }
}

static int cmd_claims(const args *given) {
    static claim_result result[N_CLAIMS];
    args a = *given;
    char list[64];
    int i, s, k, ctx, status;
    default_model(&a);
    rows_of = &a;
    a.depths = 1;
    if (a.csv && a.md) return misuse("--csv and --md cannot be given together");
    if (a.stream) { a.lengths = "512"; a.seeds = 3; } /* --quick */
    snprintf(list, sizeof list, "%s", a.lengths);
    if ((status = parse_ctx(list, &ctx)) != OK) return status;
    if ((status = choose(&a)) != OK) return status;
    for (s = 0; s < EVAL_SUITES && status == OK; s++)
        for (k = 0; k < 2 && status == OK; k++)
            if (runs[s][k].used) status = run_eval(&runs[s][k], s, k);
    for (i = 0; i < N_CLAIMS && status == OK; i++)
        if (chosen[i]) judge(result + i, i);
    if (status == OK) {
        if (a.csv) show_csv(&a, result);
        else if (a.md) show_md(&a, result);
        else show_grid(&a, result);
    }
    for (s = 0; s < EVAL_SUITES; s++)
        for (k = 0; k < 2; k++) if (runs[s][k].used) eval_close(&runs[s][k].e);
    exact_free(&exact_rows);
    record_free();
    return status;
}

static const option claims_options[] = {
    O_DEFAULT_MODEL,
    O_TEXT_OF("--ctx", lengths, "N", "1k", "length of every context in tokens"),
    O_TEXT_OF("--budget", budgets, "AMOUNT", "12.5%",
              "what recipes may keep unless the row says it"),
    O_INT("--seeds", seeds, "N", "16", 1, 100000, "contexts of each suite"),
    O_INT("--questions", questions, "N", "0", 0, 1000, "about each context; 0: the suite's number"),
    O_INT("--seed", seed, "S", "1", 0, 9e15, "the first seed"),
    O_TEXT("--only", text, "WORD", "rows with this word in claim, source or recipe"),
    O_FLAG("--quick", stream, "3 contexts of 512 tokens: does everything run?"),
    O_FLAG("--csv", csv, "print CSV, a line a claim"),
    O_FLAG("--md", md, "print a markdown table"),
    O_READ_BLOCK,
    O_THREADS,
    O_BACKEND,
    O_END};
static const command claims_command = {
    "claims", cmd_claims, claims_options, 0, 0, "[-m MODEL] [options]",
    "published claims about KV caches, measured on a small model",
    "One row a claim: figures with 95 % intervals, and a verdict by the rule printed above the\n"
    "table. The same options print the same table on every run.",
    { "build/bench_claims --only snapkv", "build/bench_claims --ctx 2k --budget 25% --md" } };

int main(int argc, char **argv) {
    const int status = run_command(&claims_command, argc - 1, argv + 1);
    free(out.text);
    return status;
}
