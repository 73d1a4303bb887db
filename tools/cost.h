/* cost.h - `kvmem cost`: what the size of the cache costs a server (the method costmodel).

   Yao Fu. Challenges in Deploying Long-Context Transformers: A Theoretical Peak Performance Analysis.
   2024. arXiv 2405.08944. Four numbers decide, and the cache is in all of them:
     model     L layers, G KV heads, d head size, Dm = H d, P parameters, Wb bytes of weights
     machine   F operations a second, R bytes a second and M bytes of its memory, X bytes a second of
               the link to the host's memory
     job       n tokens of context, D decoded tokens a round, S users, r rounds of questions
   1. KV(n)  = 2 L G d n by                bytes of keys and values; a recipe keeps the share c of them
   2. T_pre  = n (2P + 2 L n Dm) / F       operations decide; c does not help, the prompt is read whole
   3. T_dec  = D (Wb + c KV) / R           bytes decide, as long as fewer than F / R users share a read
   4. U      = floor((M - Wb) / (c KV))    users whose cache fits beside the weights
   5. T_sw   = 2 c KV / X                  one user's cache out, another's in
   6. a round of all u = min(U, S) takes T_pre / r + D (Wb + u c KV) / R, and T_sw if S > U;
      rounds a second = u / that.
   The paper states no closed form for 6; this one joins its four terms, with one reading of the weights for
   all u. Its own figures do not all follow from 1 to 5 (Yi-34B on an A100: 14.1 s to read 50 000 tokens where
   2 gives 14.84, 20 users at 4 000 tokens where 4 gives 12), so the constants are options.
   Included by kvmem.c, whose output, options and files it uses. test: tests/cost.c */
#ifndef KVMEM_COST_H
#define KVMEM_COST_H

typedef struct cost_model {
    double layers, kv_heads, head_dim, hidden, params, weight_bytes, value_bytes; /* L G d Dm P Wb by */
} cost_model;
typedef struct cost_machine {
    const char *word, *what;
    double flops, bandwidth, memory, link; /* F R M X */
} cost_machine;
typedef struct cost_job { double decode, users, rounds; } cost_job; /* D S r */
typedef struct cost_answer {
    double kv;                            /* c KV, bytes */
    double prefill, decode, swap;         /* seconds of one user */
    double users;                         /* U; INFINITY if a cache has no bytes */
    double batch, round, throughput;      /* u; seconds of a round; rounds a second of all users */
} cost_answer;

/* Dense peaks of half floats with float32 sums, from the vendors' data sheets; the link of the A100 is what the
   paper reckons with, the others are the peak of their bus. */
static const cost_machine cost_machines[] = {
    { "a100", "NVIDIA A100, 80 GB; the paper's", 312e12, 2e12, 80e9, 20e9 },
    { "h100", "NVIDIA H100 SXM, 80 GB; PCIe 5", 989e12, 3.35e12, 80e9, 64e9 },
    { "h200", "NVIDIA H200, 141 GB; PCIe 5", 989e12, 4.8e12, 141e9, 64e9 },
    { "rtx4090", "NVIDIA RTX 4090, 24 GB; PCIe 4", 165e12, 1.008e12, 24e9, 32e9 } };
#define COST_MACHINES ((int)(sizeof cost_machines / sizeof *cost_machines))

static double cost_kv(const cost_model *m, double n) {
    return 2 * m->layers * m->kv_heads * m->head_dim * n * m->value_bytes;
}
/* A context of n tokens whose cache has kv bytes. */
static cost_answer cost_of(const cost_model *m, const cost_machine *x, const cost_job *j, double n, double kv) {
    const double room = x->memory - m->weight_bytes;
    cost_answer a;
    a.kv = kv;
    a.prefill = n * (2 * m->params + 2 * m->layers * n * m->hidden) / x->flops;
    a.decode = j->decode * (m->weight_bytes + kv) / x->bandwidth;
    a.swap = 2 * kv / x->link;
    a.users = room < 0 ? 0 : kv > 0 ? floor(room / kv) : (double)INFINITY;
    a.batch = a.users < j->users ? a.users : j->users;
    a.round = a.prefill / j->rounds + j->decode * (m->weight_bytes + a.batch * kv) / x->bandwidth;
    if (j->users > a.users) a.round += a.swap;
    a.throughput = a.round > 0 ? a.batch / a.round : 0;
    return a;
}

/* ---- reading the options */

typedef struct cost_run {
    const args *a;
    loaded l;
    cost_model m;
    cost_machine x;
    cost_job j;
    int heads;                 /* H, for estimates */
    kvmem_recipe recipe;       /* if a->kv */
    int ctx[MAX_LIST], n_ctx;
} cost_run;

static double cost_values(const kvmem_tensor *t) {
    return t->data ? (double)t->ne[0] * (double)t->ne[1] : 0;
}
static void cost_of_file(cost_model *m, const kvmem_model *f) {
    int i;
    m->layers = f->n_layers;
    m->kv_heads = f->n_kv_heads;
    m->head_dim = f->head_dim;
    m->hidden = (double)f->n_heads * f->head_dim;
    m->weight_bytes = (double)f->weight_bytes;
    m->params = cost_values(&f->embd) + (f->tied ? 0 : cost_values(&f->head));
    for (i = 0; i < f->n_layers; i++) {
        const kvmem_layer *y = f->layer + i;
        m->params += cost_values(&y->q) + cost_values(&y->k) + cost_values(&y->v) + cost_values(&y->o) +
                     cost_values(&y->gate) + cost_values(&y->up) + cost_values(&y->down);
    }
}
static void cost_take(double *to, double given) { if (given > 0) *to = given; }
static int cost_shape(cost_run *r) {
    const args *a = r->a;
    cost_model *m = &r->m;
    int status;
    if (a->model) {
        if ((status = load_model(&r->l, a, 0)) != OK) return status;
        cost_of_file(m, &r->l.model);
        r->heads = r->l.model.n_heads;
    }
    cost_take(&m->layers, (double)a->layers);
    cost_take(&m->kv_heads, (double)a->kv_heads);
    cost_take(&m->head_dim, (double)a->head_dim);
    cost_take(&m->hidden, (double)a->hidden);
    cost_take(&m->params, a->params);
    cost_take(&m->weight_bytes, a->weight_bytes);
    m->value_bytes = a->value_bytes;
    if (m->params > 0 && !(m->weight_bytes > 0)) m->weight_bytes = 2 * m->params;
    if (m->weight_bytes > 0 && !(m->params > 0)) m->params = m->weight_bytes / 2;
    if (!(m->layers > 0 && m->kv_heads > 0 && m->head_dim > 0))
        return misuse("give -m MODEL, or --layers, --kv-heads and --head-dim");
    if (!(m->hidden > 0)) return misuse("--hidden is missing: query heads times head size");
    if (!(m->params > 0)) return misuse("--params or --weight-bytes is missing");
    if (!a->model || a->hidden || a->head_dim || a->kv_heads) { /* whole groups of query heads */
        const double group = floor(m->hidden / (m->head_dim * m->kv_heads));
        r->heads = (int)(m->kv_heads * (group < 1 ? 1 : group));
    }
    return OK;
}
static int cost_machine_of(cost_run *r) {
    const args *a = r->a;
    nearest near = { NULL, 0 };
    int i;
    for (i = 0; i < COST_MACHINES && strcmp(a->machine, cost_machines[i].word); i++)
        consider(&near, a->machine, cost_machines[i].word);
    if (i == COST_MACHINES && near.word)
        return misuse("--machine: unknown word '%s'; did you mean %s?", a->machine, near.word);
    if (i == COST_MACHINES) return misuse("--machine: unknown word '%s'; a100, h100, h200 or rtx4090", a->machine);
    r->x = cost_machines[i];
    if (a->flops > 0 || a->bandwidth > 0 || a->memory > 0 || a->link > 0) r->x.what = "with the numbers given";
    cost_take(&r->x.flops, a->flops);
    cost_take(&r->x.bandwidth, a->bandwidth);
    cost_take(&r->x.memory, a->memory);
    cost_take(&r->x.link, a->link);
    return OK;
}
static int cost_lengths(cost_run *r) {
    const char *s = r->a->lengths ? r->a->lengths : r->a->measure ? "512,1024,2048,4096" : "4000,50000";
    int status;
    for (;;) {
        const size_t len = strcspn(s, ",");
        char word[16];
        snprintf(word, sizeof word, "%.*s", (int)(len < 15 ? len : 15), s);
        if (r->n_ctx == MAX_LIST) return misuse("--ctx: more than %d lengths", MAX_LIST);
        if ((status = parse_ctx(word, &r->ctx[r->n_ctx])) != OK) return status;
        r->n_ctx++;
        s += len;
        if (!*s++) return OK;
    }
}
static int cost_begin(cost_run *r) {
    int status;
    r->j.decode = (double)r->a->decode;
    r->j.users = (double)r->a->users;
    r->j.rounds = (double)r->a->rounds;
    if (r->a->kv && r->a->share != 1) return misuse("--kv and --share: give one of them");
    if ((status = cost_machine_of(r)) != OK || (status = cost_lengths(r)) != OK) return status;
    if ((status = parse_recipe(r->a->kv, &r->recipe)) != OK) return status;
    return cost_shape(r);
}
/* Bytes of the recipe's cache after a prompt of n tokens, all that stays allocated. */
static int cost_estimate(const cost_run *r, int n, double *bytes) {
    kvmem_config cfg = kvmem_config_default();
    const int L = (int)r->m.layers, d = (int)r->m.head_dim;
    kvmem_rope *rope = (kvmem_rope *)grow(NULL, (size_t)L, sizeof *rope);
    float *freq = (float *)grow(NULL, (size_t)d, sizeof *freq); /* only counted, never used */
    kvmem_error error;
    kvmem_bytes b;
    kvmem_status s;
    int i;
    memset(freq, 0, (size_t)d * sizeof *freq);
    for (i = 0; i < L; i++) {
        rope[i].n_rot = d & ~1;
        rope[i].neox = 0;
        rope[i].mscale = 1;
        rope[i].inv_freq = freq;
    }
    cfg.shape.n_layers = L;
    cfg.shape.n_heads = r->heads;
    cfg.shape.n_kv_heads = (int)r->m.kv_heads;
    cfg.shape.head_dim = d;
    cfg.shape.rope = rope;
    cfg.recipe = &r->recipe;
    s = kvmem_estimate(&cfg, n, 0, &b, &error);
    *bytes = (double)b.live.total;
    free(rope);
    free(freq);
    return s == KVMEM_OK ? OK : fail("%s", error.text);
}

/* ---- this machine: does a token of the cache cost what its bytes say? */

typedef struct cost_measured {
    int n[MAX_LIST];
    double seconds[MAX_LIST]; /* of a decoded token with n tokens cached */
    int count;
    double bandwidth;         /* bytes a second of reading as many floats as the longest cache has */
    double token_bytes, predicted, slope; /* of a cached token: bytes; seconds by them and as measured */
} cost_measured;

/* Least squares through (n, seconds). */
static double cost_slope(const int *n, const double *seconds, int count) {
    double mx = 0, my = 0, xy = 0, xx = 0;
    int i;
    for (i = 0; i < count; i++) { mx += n[i]; my += seconds[i]; }
    mx /= count;
    my /= count;
    for (i = 0; i < count; i++) {
        xy += (n[i] - mx) * (seconds[i] - my);
        xx += (n[i] - mx) * (n[i] - mx);
    }
    return xx > 0 ? xy / xx : 0;
}
static double cost_bandwidth(const kvmem_backend *be, size_t floats) {
    float *x = (float *)grow(NULL, floats, sizeof *x), sum = 0;
    volatile float sink;
    double best = (double)INFINITY;
    int round;
    size_t i;
    for (i = 0; i < floats; i++) x[i] = 1;
    for (round = 0; round < 9; round++) {
        const double start = now();
        for (i = 0; i + 4096 <= floats; i += 4096) sum += be->dot(x + i, x + i + 2048, 2048);
        if (now() - start < best) best = now() - start;
    }
    sink = sum;
    (void)sink;
    free(x);
    return (double)(floats / 4096 * 4096 * sizeof *x) / best;
}
/* One thread reads token after token; the shortest of `tries` steps at each length counts. */
static int cost_measure(cost_run *r, cost_measured *o) {
    const int tries = 12;
    kvmem_session_config cfg = kvmem_session_config_default();
    kvmem_recipe full = kvmem_recipe_default();
    kvmem_session s;
    kvmem_bytes b;
    int i, t, at = 0, status;
    int *id;
    memset(o, 0, sizeof *o);
    cfg.recipe = &full;
    cfg.threads = 1;
    if ((status = open_session(&s, &r->l.model, &cfg)) != OK) { kvmem_session_free(&s); return status; }
    for (i = 0; i < r->n_ctx && status == OK; i++) {
        const int n = r->ctx[i] - at;
        id = (int *)grow(NULL, (size_t)(n > 1 ? n : 1), sizeof *id);
        for (t = 0; t < n; t++) id[t] = (at + t) * 7 % r->l.model.n_vocab;
        if (n < 1) status = misuse("--measure: lengths must rise by more than %d", tries);
        else if (kvmem_session_feed(&s, id, n, KVMEM_PROMPT_END, NULL, NULL)) status = fail("%s", s.error.text);
        at = r->ctx[i];
        o->n[i] = at;
        o->seconds[i] = (double)INFINITY;
        for (t = 0; t < tries && status == OK; t++, at++) {
            const double start = now();
            if (kvmem_session_feed(&s, id, 1, KVMEM_DECODE, NULL, NULL)) status = fail("%s", s.error.text);
            if (now() - start < o->seconds[i]) o->seconds[i] = now() - start;
        }
        free(id);
    }
    o->count = r->n_ctx;
    kvmem_session_bytes(&s, &b);
    if (status == OK) {
        o->token_bytes = 2.0 * r->l.model.n_layers * r->l.model.n_kv_heads * r->l.model.head_dim * sizeof(float);
        o->bandwidth = cost_bandwidth(s.backend, (b.live.k + b.live.v) / sizeof(float) + 8192);
        o->predicted = o->token_bytes / o->bandwidth;
        o->slope = cost_slope(o->n, o->seconds, o->count);
    }
    kvmem_session_free(&s);
    return status;
}

/* ---- showing */

/* "1.23 s", "45 ms", "2.1 h". */
static const char *cost_time(double s) {
    static char text[8][24];
    static int at;
    char *t = text[at++ & 7];
    if (!(s < 7200)) snprintf(t, 24, "%.3g h", s / 3600);
    else if (s >= 999.5) snprintf(t, 24, "%.0f s", s);
    else if (s >= 0.9995) snprintf(t, 24, "%.3g s", s);
    else if (s >= 1e-3) snprintf(t, 24, "%.3g ms", 1e3 * s);
    else snprintf(t, 24, "%.3g us", 1e6 * s);
    return t;
}
static const char *cost_bytes(double b) { return b < 1e18 ? human((size_t)b) : "too many"; }
static void cost_put_line(const char *name, int n, double share, const cost_answer *c) {
    char users[24] = "any";
    if (c->users < 1e9) snprintf(users, sizeof users, "%.0f", c->users);
    put("%9d  %-8.8s %6.3g %11s %9s", n, name, share, cost_bytes(c->kv), cost_time(c->prefill));
    put(" %9s %6s %9s %9.3g\n", cost_time(c->decode), users, cost_time(c->swap), 60 * c->throughput);
}
static void cost_put_head(const cost_run *r) {
    const cost_model *m = &r->m;
    put("model      %g layers, %g KV heads of %g, hidden %g, %.4g parameters, weights %s, %g bytes a value\n",
        m->layers, m->kv_heads, m->head_dim, m->hidden, m->params, cost_bytes(m->weight_bytes), m->value_bytes);
    put("machine    %s, %s: %.4g operations/s, %.4g bytes/s, %.4g bytes, link %.4g bytes/s\n", r->x.word, r->x.what,
        r->x.flops, r->x.bandwidth, r->x.memory, r->x.link);
    put("job        %g decoded tokens a round, %g users, %g rounds a context\n", r->j.decode, r->j.users, r->j.rounds);
    put("           decoding is bound by bytes below %.0f users a batch (operations/s over bytes/s)\n",
        r->x.flops / r->x.bandwidth);
    if (r->a->kv) put("recipe     %s\n", recipe_text(&r->recipe));
    put("\n%9s  %-8s %6s %11s %9s %9s %6s %9s %9s\n", "context", "cache", "kept", "bytes", "prefill", "decode",
        "users", "swap", "rounds/min");
}
static void cost_json_line(const char *name, int n, double share, const cost_answer *c) {
    json_open(NULL, '{');
    json_text("cache", name);
    json_int("context", n);
    json_real("kept_share", share);
    json_real("kv_bytes", c->kv);
    json_real("prefill_seconds", c->prefill);
    json_real("decode_seconds", c->decode);
    json_real("users", c->users);
    json_real("swap_seconds", c->swap);
    json_real("batch", c->batch);
    json_real("round_seconds", c->round);
    json_real("rounds_per_second", c->throughput);
    json_close();
}
static void cost_json_head(const cost_run *r) {
    json_open(NULL, '{');
    json_open("model", '{');
    json_real("layers", r->m.layers);
    json_real("kv_heads", r->m.kv_heads);
    json_real("head_dim", r->m.head_dim);
    json_real("hidden", r->m.hidden);
    json_real("params", r->m.params);
    json_real("weight_bytes", r->m.weight_bytes);
    json_real("value_bytes", r->m.value_bytes);
    json_close();
    json_open("machine", '{');
    json_text("name", r->x.word);
    json_real("flops", r->x.flops);
    json_real("bandwidth", r->x.bandwidth);
    json_real("memory", r->x.memory);
    json_real("link", r->x.link);
    json_real("critical_intensity", r->x.flops / r->x.bandwidth);
    json_close();
    if (r->a->kv) json_text("recipe", recipe_text(&r->recipe));
    json_open("lines", '[');
}
static int cost_show(cost_run *r) {
    const char *name = r->a->kv ? (r->recipe.preset[0] ? r->recipe.preset : "recipe") : "share";
    const int compressed = r->a->kv || r->a->share != 1;
    int i, k, status;
    if (r->a->json) cost_json_head(r);
    else cost_put_head(r);
    for (i = 0; i < r->n_ctx; i++) {
        const double whole = cost_kv(&r->m, r->ctx[i]);
        for (k = 0; k < 1 + compressed; k++) {
            double kv = whole * (k ? r->a->share : 1);
            cost_answer c;
            if (k && r->a->kv && (status = cost_estimate(r, r->ctx[i], &kv)) != OK) return status;
            c = cost_of(&r->m, &r->x, &r->j, r->ctx[i], kv);
            if (r->a->json) cost_json_line(k ? name : "whole", r->ctx[i], kv / whole, &c);
            else cost_put_line(k ? name : "whole", r->ctx[i], kv / whole, &c);
        }
    }
    if (r->a->json) json_close();
    return OK;
}
static int cost_show_measured(cost_run *r) {
    cost_measured o;
    int i, status;
    if ((status = cost_measure(r, &o)) != OK) return status;
    if (r->a->json) {
        json_open("measured", '{');
        json_open("cached", '[');
        for (i = 0; i < o.count; i++) json_int(NULL, o.n[i]);
        json_close();
        json_open("seconds", '[');
        for (i = 0; i < o.count; i++) json_real(NULL, o.seconds[i]);
        json_close();
        json_real("read_bandwidth", o.bandwidth);
        json_real("token_bytes", o.token_bytes);
        json_real("predicted_slope", o.predicted);
        json_real("measured_slope", o.slope);
        json_close();
        return OK;
    }
    put("\nmeasured here, %s, full float32 cache, one thread\n", r->a->model);
    for (i = 0; i < o.count; i++) put("  %7d tokens cached   %s a decoded token\n", o.n[i], cost_time(o.seconds[i]));
    put("  a cached token costs %s each time; its %.0f bytes at the %.3g bytes/s that this machine reads say %s\n",
        cost_time(o.slope), o.token_bytes, o.bandwidth, cost_time(o.predicted));
    return OK;
}
static int cmd_cost(const args *given) {
    args a = *given;
    cost_run r;
    int status;
    if (a.measure) default_model(&a);
    memset(&r, 0, sizeof r);
    r.a = &a;
    status = cost_begin(&r);
    if (status == OK && a.measure && !a.model) status = misuse("--measure needs a model: -m FILE");
    if (status == OK) status = cost_show(&r);
    if (status == OK && a.measure) status = cost_show_measured(&r);
    if (status == OK && a.json) json_close();
    unload(&r.l);
    return status;
}
#endif
