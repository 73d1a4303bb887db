/* memory.h - `kvmem memory`: an episodic memory of texts that a person can use.

   add cuts texts into episodes of whole lines, reads each by itself and stores its keys and values; ask finds the best
   episodes for a question, puts them one behind the other into a small cache and lets the model answer from there.
   Nothing of the text is read again. Included by kvmem.c, whose output and options it uses. */
#ifndef KVMEM_MEMORY_H
#define KVMEM_MEMORY_H
#include <time.h>

/* ==== >>memory : texts kept as episodes, read back by what a question needs =================== */

#define MEMORY_KV "full codec=f16 page=16" /* of the working set; small pages waste little of a small limit */
enum { MEMORY_DAY = 86400, MEMORY_TOP = 64 };

typedef struct memory {
    const args *a;
    loaded l;
    kvmem_recipe recipe;
    kvmem_session session;
    kvmem_store store;
    int bos;                /* 1: texts begin with a begin token */
    int min, max;           /* tokens of an episode */
    char rule[64];          /* other rule of cutting: an entry of the segment stage; "": lines */
    int embed;              /* kvmem_embed_kind, or KVMEM_N_EMBEDS: bag and input fused by rank */
    int layer;
} memory;

static int memory_fail(memory *m) { /* some of the store's sentences begin with its name */
    const char *text = m->store.error.text;
    return strncmp(text, m->a->store, strlen(m->a->store)) ? fail("%s: %s", m->a->store, text) : fail("%s", text);
}

/* name(key=value,...) into numbers; names of keys end with NULL. Returns OK or complains about `what`. */
static int memory_spec(const char *what, const char *spec, const char *const *key, double *value) {
    const char *p = spec + strcspn(spec, "(");
    while (*p && *p != ')') {
        size_t n;
        char *end;
        int i;
        p++;
        if (*p == ')' ) break;
        n = strcspn(p, "=,)");
        for (i = 0; key[i] && (strlen(key[i]) != n || memcmp(key[i], p, n)); i++) {}
        if (!key[i] || p[n] != '=') return misuse("%s %s: what is '%.*s'?", what, spec, (int)n, p);
        value[i] = strtod(p + n + 1, &end);
        if (end == p + n + 1 || (*end != ',' && *end != ')') || !(value[i] - value[i] == 0))
            return misuse("%s %s: %s needs a number", what, spec, key[i]);
        p = end;
    }
    if (*p == ')' && p[1]) return misuse("%s %s: text behind the bracket", what, spec);
    return strchr(spec, '(') && *p != ')' ? misuse("%s %s: a bracket is open", what, spec) : OK;
}
static int memory_is(const char *spec, const char *word) { /* word or word(...) */
    const size_t n = strlen(word);
    return !strncmp(spec, word, n) && (!spec[n] || spec[n] == '(');
}
static int memory_plan(memory *m) {
    static const char *const keys[] = { "min", "max", NULL };
    static const char *const layer[] = { "layer", NULL };
    const char *e = m->a->embed;
    double size[2] = { 32, 256 }, at = -1;
    int k, status;
    if (memory_is(m->a->segment, "lines")) {
        if ((status = memory_spec("--segment", m->a->segment, keys, size)) != OK) return status;
        if (size[0] < 1 || size[1] < size[0] || size[1] > 65536)
            return misuse("--segment %s: 1 <= min <= max <= 65536 tokens", m->a->segment);
    } else {
        if (strlen(m->a->segment) >= sizeof m->rule) return misuse("--segment %s: too long", m->a->segment);
        strcpy(m->rule, m->a->segment);
        size[0] = 8;
    }
    m->min = (int)size[0];
    m->max = (int)size[1];
    for (k = 0; k < KVMEM_EMBED_USER; k++) if (memory_is(e, kvmem_embed_name((kvmem_embed_kind)k))) break;
    if (k == KVMEM_EMBED_USER) {
        if (strcmp(e, "fusion")) return misuse("--embed %s: not bag, input, hidden, keys or fusion", e);
        k = KVMEM_N_EMBEDS;
    }
    m->embed = k;
    if ((status = memory_spec("--embed", e, layer, &at)) != OK) return status;
    m->layer = (int)at;
    return OK;
}
/* The model, its session and the store. writes 0: read only; the file must then be there. */
static int memory_open(memory *m, const args *a, int writes) {
    kvmem_session_config cfg;
    kvmem_store_options o;
    FILE *f;
    int status;
    memset(m, 0, sizeof *m);
    m->a = a;
    if ((status = memory_plan(m)) != OK) return status;
    if ((status = parse_recipe(writes == 2 ? NULL : a->kv ? a->kv : MEMORY_KV, &m->recipe)) != OK) return status;
    if ((status = session_config(a, &m->recipe, &cfg)) != OK) return status;
    if (writes == 2) cfg.max_bytes = 0; /* add reads and stores all of an episode */
    if (writes < 2) { /* only add begins a store */
        f = fopen(a->store, "rb");
        if (!f) return fail("%s: there is no memory yet; begin one with: kvmem memory add FILE", a->store);
        fclose(f);
    }
    if (!a->model) return fail("which model? give -m FILE (%s is not here)", DEFAULT_MODEL);
    if ((status = load_model(&m->l, a, 1)) != OK) return status;
    if ((status = open_session(&m->session, &m->l.model, &cfg)) != OK) return status;
    o = kvmem_store_options_of(&m->session.cache);
    o.codec_k = o.codec_v = a->codec;
    o.ram_bytes = a->ram;
    o.read_only = !writes;
    if (kvmem_store_open(&m->store, a->store, &o) != KVMEM_OK) return memory_fail(m);
    if (m->store.torn)
        fprintf(stderr, "%s: a torn tail of %lu bytes, left by a program that was stopped, is dropped\n", a->store,
                (unsigned long)m->store.torn);
    m->bos = m->l.tokenizer->add_bos && m->l.tokenizer->bos >= 0;
    return OK;
}
static void memory_close(memory *m) {
    kvmem_store_close(&m->store);
    kvmem_session_free(&m->session);
    unload(&m->l);
}
static size_t memory_token_bytes(const memory *m) { /* K and V of a token as float16 */
    const kvmem_model *x = &m->l.model;
    return (size_t)4 * (size_t)x->n_layers * (size_t)x->n_kv_heads * (size_t)x->head_dim;
}
/* The session's cache holds the begin token alone, if there is one. */
static int memory_begin(memory *m) {
    kvmem_session *s = &m->session;
    kvmem_session_clear(s);
    if (!m->bos || kvmem_session_feed(s, &m->l.tokenizer->bos, 1, KVMEM_PREFILL, NULL, NULL) == KVMEM_OK) return OK;
    if (s->error.status == KVMEM_OVER_BUDGET)
        return fail("--limit %s: too small; not even one token fits: %s", human(m->a->max_bytes), s->error.text);
    return fail("%s", s->error.text);
}
/* An episode's source is "file:from-to": its lines. */
static void memory_source(char *to, const char *path, long first, long last) {
    char lines[48];
    const int n = snprintf(lines, sizeof lines, ":%ld-%ld", first, last);
    const size_t room = KVMEM_MAX_SOURCE - 1 - (size_t)n, len = strlen(path), skip = len > room ? len - room : 0;
    snprintf(to, KVMEM_MAX_SOURCE, "%s%s", path + skip, lines);
    if (skip) memcpy(to, "...", 3);
}
static void memory_lines(const kvmem_episode *e, char *path, long *first, long *last) {
    const char *colon = strrchr(e->source, ':');
    *first = *last = 0;
    snprintf(path, KVMEM_MAX_SOURCE, "%.*s", colon ? (int)(colon - e->source) : KVMEM_MAX_SOURCE, e->source);
    if (colon && sscanf(colon + 1, "%ld-%ld", first, last) != 2) *first = *last = 0;
}

/* ---- add */

typedef struct memory_piece { size_t from, to; long first, last; int part; } memory_piece; /* bytes, lines */

/* Where a stage-entry cuts the text: token positions of events in a cache that sees all of it through a window. */
static int memory_events(memory *m, const ids *text, ids *cut) {
    char kv[160];
    kvmem_recipe r;
    kvmem_session_config cfg;
    kvmem_session s;
    int i, status;
    snprintf(kv, sizeof kv, "streamingllm budget=1024 when=block segment=%s", m->rule);
    if (kvmem_recipe_parse(&r, kv, &s.error) != KVMEM_OK) return misuse("--segment %s: %s", m->rule, s.error.text);
    if ((status = session_config(m->a, &r, &cfg)) != OK) return status;
    cfg.max_bytes = 0;
    if ((status = open_session(&s, &m->l.model, &cfg)) != OK) return status;
    status = kvmem_session_feed(&s, text->id, text->n, KVMEM_PREFILL, NULL, NULL) == KVMEM_OK ? OK
             : fail("--segment %s: %s", m->rule, s.error.text);
    for (i = 0; status == OK && i < s.cache.n_events; i++) {
        if (cut->n == cut->cap) cut->id = (int *)grow(cut->id, (size_t)(cut->cap = 2 * cut->cap + 256), sizeof(int));
        cut->id[cut->n++] = (int)s.cache.event[i];
    }
    kvmem_session_free(&s);
    return status;
}
static int memory_count(memory *m, const char *text, size_t n, int *tokens) {
    kvmem_error error;
    size_t count;
    if (kvmem_tokenize(m->l.tokenizer, text, n, 0, NULL, 0, &count, &error) != KVMEM_OK) return fail("%s", error.text);
    *tokens = count > INT_MAX ? INT_MAX : (int)count;
    return OK;
}
static int memory_cut(memory *m, const file *f, memory_piece **piece, int *n) {
    const char *text = (const char *)f->bytes;
    memory_piece p = { 0, 0, 1, 0, 0 };
    ids all = { NULL, 0, 0 }, cut = { NULL, 0, 0 };
    size_t at = 0, end;
    long line = 1;
    int tokens = 0, more = 0, status = OK, seen = 0, next = 0, cap = 0, i;
    if (m->rule[0]) {
        status = tokenize(m->l.tokenizer, text, f->size, 0, &all);
        if (status == OK) status = memory_events(m, &all, &cut);
    }
    for (; at < f->size && status == OK; at = end, line++) {
        int full;
        for (end = at; end < f->size && text[end] != '\n'; end++) {}
        end += end < f->size;
        if ((status = memory_count(m, text + at, end - at, &more)) != OK) break;
        seen += more;
        full = tokens && tokens + more > m->max; /* the line before ends a piece */
        for (i = next; i < cut.n && cut.id[i] <= seen - more; i++) {}
        if (m->rule[0] && i > next && tokens >= m->min) { full = 1; next = i; } /* an event begins at or before it */
        if (!m->rule[0] && tokens >= m->min) full = 1;
        if (full) {
            if (*n == cap) *piece = (memory_piece *)grow(*piece, (size_t)(cap = 2 * cap + 64), sizeof **piece);
            (*piece)[(*n)++] = p;
            p.from = at;
            p.first = line;
            tokens = 0;
        }
        tokens += more;
        p.to = end;
        p.last = line;
    }
    if (status == OK && p.to > p.from) {
        *piece = (memory_piece *)grow(*piece, (size_t)*n + 1, sizeof **piece);
        (*piece)[(*n)++] = p;
    }
    free(all.id);
    free(cut.id);
    return status;
}
static int memory_blank(const char *s, size_t n) {
    while (n && isspace((unsigned char)s[n - 1])) n--;
    return !n;
}
/* One episode of `list`: read by itself behind the begin token, then stored. */
static int memory_store(memory *m, const file *f, const memory_piece *p, const ids *list, int from, int n, int place) {
    const char *text = (const char *)f->bytes + p->from;
    kvmem_session *s = &m->session;
    kvmem_embedder e;
    kvmem_vector v[2];
    kvmem_content c;
    kvmem_episode meta;
    float *x[2] = { NULL, NULL };
    int i, status = OK;
    memset(&e, 0, sizeof e);
    memset(&c, 0, sizeof c);
    memset(&meta, 0, sizeof meta);
    memset(v, 0, sizeof v);
    for (i = 0; i < (m->embed == KVMEM_EMBED_HIDDEN || m->embed == KVMEM_EMBED_KEYS ? 2 : 1) && status == OK; i++) {
        e.kind = i ? (kvmem_embed_kind)m->embed : KVMEM_EMBED_INPUT;
        e.layer = m->layer;
        v[i].dim = kvmem_embed_dim(&m->l.model, &e);
        if (!v[i].dim) {
            status = misuse("--embed %s: the model has %d layers", m->a->embed, m->l.model.n_layers);
            break;
        }
        x[i] = (float *)grow(NULL, (size_t)v[i].dim, sizeof(float));
        strcpy(v[i].name, kvmem_embed_name(e.kind));
        v[i].x = x[i];
        if (kvmem_embed(s, &e, list->id + from, n, x[i]) != KVMEM_OK) status = fail("%s", s->error.text);
    }
    if (status == OK && kvmem_session_feed(s, list->id + from, n, KVMEM_PREFILL, NULL, NULL) != KVMEM_OK)
        status = fail("%s", s->error.text);
    memory_source(meta.source, f->path, p->first, p->last);
    meta.origin = KVMEM_FROM_USER;
    meta.created = meta.last_used = (int64_t)time(NULL);
    meta.strength = 1;
    meta.place = place;
    c.ids = list->id + from;
    c.n_ids = n;
    c.text = text;
    c.text_bytes = p->to - p->from;
    c.vector = v;
    c.n_vectors = i;
    if (status == OK && kvmem_store_add(&m->store, &meta, &c, &s->cache, m->bos, m->bos + n, NULL) != KVMEM_OK)
        status = memory_fail(m);
    if (status == OK && kvmem_session_truncate(s, m->bos) != KVMEM_OK) status = fail("%s", s->error.text);
    free(x[0]);
    free(x[1]);
    return status;
}
/* The number of a source: that of its episodes so far, else the next. */
static int memory_place(memory *m, const char *path) {
    char want[KVMEM_MAX_SOURCE], is[KVMEM_MAX_SOURCE];
    kvmem_episode e;
    long first, last;
    int i, next = 0;
    memory_source(e.source, path, 1, 1);
    memory_lines(&e, want, &first, &last);
    for (i = 0; i < m->store.n; i++) {
        if (kvmem_store_at(&m->store, i, &e) != KVMEM_OK) continue;
        memory_lines(&e, is, &first, &last);
        if (!strcmp(is, want)) return e.place;
        if (e.place >= next) next = e.place + 1;
    }
    return next;
}
typedef struct memory_sum { int64_t episodes, tokens, lines; } memory_sum;
static int memory_add_file(memory *m, const char *path, memory_sum *sum) {
    memory_piece *piece = NULL;
    file f;
    ids list = { NULL, 0, 0 };
    int n = 0, i, at, place, status;
    if (file_open(&f, path)) return FAILED;
    if (!f.size || memory_blank((const char *)f.bytes, f.size)) status = fail("%s: is empty", f.path);
    else if (memchr(f.bytes, 0, f.size)) status = fail("%s: holds NUL bytes, so it is no text", f.path);
    else status = memory_cut(m, &f, &piece, &n);
    place = status == OK ? memory_place(m, f.path) : 0;
    for (i = 0; i < n && status == OK; i++) {
        if (memory_blank((const char *)f.bytes + piece[i].from, piece[i].to - piece[i].from)) continue;
        list.n = 0;
        status = tokenize(m->l.tokenizer, (const char *)f.bytes + piece[i].from, piece[i].to - piece[i].from, 0, &list);
        for (at = 0; at < list.n && status == OK; at += m->max) { /* one line may be longer than an episode */
            const int part = list.n - at < m->max ? list.n - at : m->max;
            status = memory_store(m, &f, &piece[i], &list, at, part, place);
            sum->episodes += status == OK;
            sum->tokens += status == OK ? part : 0;
        }
        sum->lines += status == OK ? piece[i].last - piece[i].first + 1 : 0;
        if (is_terminal(stderr) && (i % 16 == 0 || i + 1 == n))
            fprintf(stderr, "\r%s: %d of %d episodes%s", f.path, i + 1, n, i + 1 == n ? "\n" : "");
    }
    free(piece);
    free(list.id);
    file_close(&f);
    return status;
}
static int memory_add(memory *m) {
    memory_sum sum = { 0, 0, 0 };
    kvmem_store_usage u;
    const double start = now();
    int i, status = OK;
    status = memory_begin(m);
    for (i = 1; i < m->a->n_words && status == OK; i++) status = memory_add_file(m, m->a->word[i], &sum);
    kvmem_store_bytes(&m->store, &u);
    if (sum.episodes && m->a->json) {
        json_open(NULL, '{');
        json_int("episodes", sum.episodes);
        json_int("lines", sum.lines);
        json_int("tokens", sum.tokens);
        json_int("file_bytes", (int64_t)u.file);
        json_int("full_f16_bytes", sum.tokens * (int64_t)memory_token_bytes(m));
        json_real("seconds", now() - start);
        json_close();
    } else if (sum.episodes)
        put("%lld episodes of %lld lines, %lld tokens, in %.1f s; %s holds %d episodes in %s\n",
            (long long)sum.episodes, (long long)sum.lines, (long long)sum.tokens, now() - start, m->a->store,
            m->store.n, human((size_t)u.file));
    if (status != OK && sum.episodes) flush_out(stdout); /* what was stored stays */
    return status;
}

/* ---- find */

typedef struct memory_hit { kvmem_episode e; float score; int why; } memory_hit; /* why 1: a neighbour */

/* "Ana: " of the line that begins a text, or 0 bytes. */
static size_t memory_speaker(const char *s, size_t n) {
    size_t i;
    for (i = 0; i < n && i < 32 && (isalnum((unsigned char)s[i]) || s[i] == '_'); i++) {}
    return i && i + 1 < n && s[i] == ':' && s[i + 1] == ' ' ? i + 2 : 0;
}
/* Scores of all episodes by counts of tokens (BM25): score (n), -1 where one is not to be found. */
static int memory_bag(memory *m, const ids *q, float *score, int64_t when) {
    kvmem_bag bag;
    kvmem_episode e;
    int *id = NULL, cap = 0, i, n, pass, status = OK;
    if (kvmem_bag_init(&bag, 1 << 16, NULL) != KVMEM_OK) return fail("no memory");
    for (pass = 0; pass < 2; pass++)
        for (i = 0; i < m->store.n && status == OK; i++) {
            if (!pass) score[i] = -1;
            else if (score[i] < 0) continue;
            if (kvmem_store_at(&m->store, i, &e) != KVMEM_OK || !kvmem_store_findable(&m->store, &e, when)) continue;
            if (e.n_ids > cap) id = (int *)grow(id, (size_t)(cap = e.n_ids), sizeof *id);
            if (kvmem_store_ids(&m->store, e.id, 0, id, cap, &n) != KVMEM_OK) {
                if (m->store.error.status != KVMEM_BAD_FILE) status = memory_fail(m);
                continue; /* damaged: verify names it */
            }
            if (!pass) { kvmem_bag_count(&bag, id, n, 1); score[i] = 0; }
            else /* what is newer may be an update: recency 0.2 gives the last episode 20 % more than the first */
                score[i] = (float)(kvmem_bag_score(&bag, id, n, q->id, q->n) * (1 + m->a->recency * i / m->store.n));
        }
    free(id);
    kvmem_bag_free(&bag);
    return status;
}
/* The same by cosine of stored vectors. */
static int memory_dense(memory *m, const ids *q, int kind, float *score, int64_t when) {
    const char *name = kvmem_embed_name((kvmem_embed_kind)kind);
    kvmem_embedder e;
    kvmem_episode ep;
    float *x, *y;
    int i, j, dim, got, any = 0, status = OK;
    memset(&e, 0, sizeof e);
    e.kind = (kvmem_embed_kind)kind;
    e.layer = m->layer;
    dim = kvmem_embed_dim(&m->l.model, &e);
    if (!dim) return misuse("--embed %s: the model has %d layers", m->a->embed, m->l.model.n_layers);
    x = (float *)grow(NULL, 2 * (size_t)dim, sizeof *x);
    y = x + dim;
    if (memory_begin(m) != OK) status = FAILED;
    else if (kvmem_embed(&m->session, &e, q->id, q->n, x) != KVMEM_OK) status = fail("%s", m->session.error.text);
    for (i = 0; i < m->store.n && status == OK; i++) {
        score[i] = -1;
        if (kvmem_store_at(&m->store, i, &ep) != KVMEM_OK || !kvmem_store_findable(&m->store, &ep, when)) continue;
        if (kvmem_store_vector(&m->store, ep.id, 0, name, y, dim, &got) != KVMEM_OK || got != dim) continue;
        for (score[i] = 1, j = 0; j < dim; j++) score[i] += x[j] * y[j]; /* 1 + cosine: 0 or more */
        any = 1;
    }
    if (status == OK && !any)
        status = fail("%s: no episode has a vector '%s'; add the texts with --embed %s", m->a->store, name,
                      m->a->embed);
    free(x);
    return status;
}
static int memory_better(const float *s, int a, int b) { /* the newer one on a tie */
    return s[a] > s[b] || (!(s[a] < s[b]) && a > b);
}
/* The k best of score (n) that are above 0, best first. */
static int memory_top(const float *s, int n, int k, int *best) {
    int i, j, count = 0;
    for (i = 0; i < n; i++) {
        if (!(s[i] > 0) || (count == k && !memory_better(s, i, best[k - 1]))) continue;
        for (j = count < k ? count++ : k - 1; j > 0 && memory_better(s, i, best[j - 1]); j--) best[j] = best[j - 1];
        best[j] = i;
    }
    return count;
}
/* Reciprocal ranks (Cormack 2009): 1 / (60 + rank) of each list, summed. */
static void memory_fuse(float *to, const float *a, const float *b, int n) {
    const float *list[2];
    int i, k, side, best[MEMORY_TOP];
    list[0] = a;
    list[1] = b;
    for (i = 0; i < n; i++) to[i] = -1;
    for (side = 0; side < 2; side++)
        for (k = memory_top(list[side], n, MEMORY_TOP, best), i = 0; i < k; i++)
            to[best[i]] = (to[best[i]] > 0 ? to[best[i]] : 0) + 1.0f / (float)(61 + i);
}
/* The best episodes for q, then neighbours in their source, best first: hit (at most MEMORY_TOP). */
static int memory_find(memory *m, const ids *q, memory_hit *hit, int *n) {
    const int64_t when = (int64_t)time(NULL);
    const int all = m->store.n, k = (int)m->a->top, near = (int)m->a->neighbours;
    float *s = (float *)grow(NULL, 3 * (size_t)all + 1, sizeof *s);
    int best[MEMORY_TOP], i, j, t, status = OK, found;
    if (m->embed == KVMEM_EMBED_BAG) status = memory_bag(m, q, s, when);
    else if (m->embed < KVMEM_EMBED_USER) status = memory_dense(m, q, m->embed, s, when);
    else {
        status = memory_bag(m, q, s + all, when);
        if (status == OK) status = memory_dense(m, q, KVMEM_EMBED_INPUT, s + 2 * all, when);
        if (status == OK) memory_fuse(s, s + all, s + 2 * all, all);
    }
    found = status == OK ? memory_top(s, all, k, best) : 0;
    for (*n = i = 0; i < found; i++, (*n)++) {
        (void)kvmem_store_at(&m->store, best[i], &hit[*n].e);
        hit[*n].score = s[best[i]];
        hit[*n].why = 0;
    }
    for (i = 0; i < found; i++) /* as they stand: after, then before (contiguity) */
        for (j = 1; j <= near; j++)
            for (t = 1; t >= -1 && *n < MEMORY_TOP; t -= 2) {
                const int at = best[i] + t * j;
                kvmem_episode e;
                int there = 0, x;
                if (at < 0 || at >= all || s[at] < 0 || kvmem_store_at(&m->store, at, &e) != KVMEM_OK) continue;
                for (x = 0; x < *n; x++) there |= hit[x].e.id == e.id;
                if (there || e.place != hit[i].e.place) continue;
                hit[*n].e = e;
                hit[*n].score = s[at];
                hit[(*n)++].why = 1;
            }
    free(s);
    return status;
}

/* ---- ask */

/* How many entries the cache holds under its byte limit before it drops some: pages need room to be rewritten. */
static int memory_room(const kvmem_cache *c) {
    return c->lane_cap ? c->lane_cap - c->recipe.page - 2 * ((c->recipe.page + 3) / 4) : INT_MAX;
}
/* Puts the episodes of hit into the emptied cache in the order of their ids, behind a begin token. Returns how many:
   the best that fit under the byte limit together with `more` tokens. -1: an error. */
static int memory_load(memory *m, const memory_hit *hit, int n, int more) {
    kvmem_session *s = &m->session;
    int i, j, kept;
    for (kept = n;; kept--) { /* the worst leave until the rest fits */
        uint64_t done = 0;
        if (memory_begin(m) != OK) return -1;
        for (i = 0; i < kept; i++) { /* by rising id: what is newer stands nearer to the question */
            const memory_hit *next = NULL;
            for (j = 0; j < kept; j++)
                if (hit[j].e.id > done && (!next || hit[j].e.id < next->e.id)) next = hit + j;
            if (!next || kvmem_store_load(&m->store, next->e.id, &s->cache, KVMEM_STORE_PACKED, NULL) != KVMEM_OK)
                break;
            done = next->e.id;
        }
        if (i == kept && (!kept || s->cache.next_pos + more <= memory_room(&s->cache))) return kept;
        if (i < kept && m->store.error.status != KVMEM_OVER_BUDGET) {
            memory_fail(m);
            return -1;
        }
    }
}
static int memory_argmax(const float *x, int n) {
    int i, best = 0;
    for (i = 1; i < n; i++) if (x[i] > x[best]) best = i;
    return best;
}
/* Feeds the question and writes the answer to text, until a line ends. */
static int memory_answer(memory *m, const ids *q, char *text, size_t size) {
    kvmem_session *s = &m->session;
    kvmem_stream stream;
    char *piece = (char *)grow(NULL, 3 * (m->l.tokenizer->max_piece + 4), 1);
    size_t len = 0, n, i;
    int64_t t;
    int status = OK, id = 0, ended = 0;
    kvmem_stream_init(&stream, m->l.tokenizer, 0);
    if (kvmem_session_feed(s, q->id, q->n, KVMEM_PROMPT_END, NULL, NULL) != KVMEM_OK)
        status = fail(s->error.status == KVMEM_OVER_BUDGET ? "--limit is too small for the question: %s" : "%s",
                      s->error.text);
    for (t = 0; t < m->a->n && status == OK && !ended; t++) {
        id = memory_argmax(s->logits, m->l.model.n_vocab);
        if (kvmem_token_is_eog(m->l.tokenizer, id) || id == m->l.tokenizer->bos) break;
        n = kvmem_stream_push(&stream, id, piece);
        for (i = 0; i < n && !ended; i++) {
            if (piece[i] == '\n' && len) ended = 1;
            else if (len + 1 < size && (len || !isspace((unsigned char)piece[i]))) text[len++] = piece[i];
        }
        if (!ended && t + 1 < m->a->n && kvmem_session_feed(s, &id, 1, KVMEM_DECODE, NULL, NULL) != KVMEM_OK) {
            if (s->error.status != KVMEM_OVER_BUDGET || !len) status = fail("%s", s->error.text);
            break; /* the limit ends the answer */
        }
    }
    text[len] = 0;
    free(piece);
    return status;
}
/* memguard: what each memory alone would answer; those that disagree with most leave hit. */
static int memory_guard(memory *m, memory_hit *hit, int *n, const ids *q) {
    const int vocab = m->l.model.n_vocab;
    const kvmem_guard g = kvmem_guard_default();
    float *p = (float *)grow(NULL, (size_t)*n * (size_t)vocab + 1, sizeof *p);
    unsigned char believed[MEMORY_TOP];
    int label[MEMORY_TOP], i, j, kept = 0, status = OK;
    for (i = 0; i < *n && status == OK; i++) {
        memory_hit one = hit[i];
        float *row = p + (size_t)i * (size_t)vocab, most;
        if (memory_load(m, &one, 1, q->n) < 1) status = FAILED;
        else if (kvmem_session_feed(&m->session, q->id, q->n, KVMEM_PROMPT_END, NULL, NULL) != KVMEM_OK)
            status = fail("%s", m->session.error.text);
        else {
            most = m->session.logits[memory_argmax(m->session.logits, vocab)];
            for (j = 0; j < vocab; j++) row[j] = (float)exp((double)(m->session.logits[j] - most));
        }
    }
    if (status == OK && kvmem_consensus(&g, p, *n, vocab, believed, label)) { /* none believed: all stay */
        for (i = 0; i < *n; i++) if (believed[i]) hit[kept++] = hit[i];
        *n = kept;
    }
    free(p);
    return status;
}
static void memory_text(memory *m, uint64_t id, char **text, size_t *n) {
    size_t cap = 0;
    *n = 0;
    *text = NULL;
    if (kvmem_store_text(&m->store, id, 0, NULL, 0, &cap) != KVMEM_OK) return;
    *text = (char *)grow(NULL, cap + 1, 1);
    if (kvmem_store_text(&m->store, id, 0, *text, cap + 1, n) != KVMEM_OK) *n = 0;
}
static void memory_show_hit(const memory_hit *h, int json) {
    char path[KVMEM_MAX_SOURCE];
    long first, last;
    memory_lines(&h->e, path, &first, &last);
    if (json) {
        json_open(NULL, '{');
        json_int("id", (int64_t)h->e.id);
        json_text("file", path);
        json_int("first_line", first);
        json_int("last_line", last);
        json_real("score", h->score);
        json_bool("neighbour", h->why);
        json_int("tokens", h->e.n);
        json_close();
        return;
    }
    put("  #%-6llu %s:%ld-%ld  %d tokens  ", (unsigned long long)h->e.id, path, first, last, h->e.n);
    if (h->why) put("neighbour\n");
    else put("score %.2f\n", (double)h->score);
}
static int64_t memory_all_tokens(memory *m) {
    kvmem_episode e;
    int64_t sum = 0;
    int i;
    for (i = 0; i < m->store.n; i++) if (kvmem_store_at(&m->store, i, &e) == KVMEM_OK) sum += e.n;
    return sum;
}
static void memory_show_answer(memory *m, const char *question, const char *answer, const memory_hit *hit, int n) {
    const size_t full = (size_t)memory_all_tokens(m) * memory_token_bytes(m);
    kvmem_bytes b;
    kvmem_store_usage u;
    int i;
    kvmem_session_bytes(&m->session, &b);
    kvmem_store_bytes(&m->store, &u);
    if (m->a->json) {
        json_open(NULL, '{');
        json_text("question", question);
        json_text("answer", answer);
        json_open("sources", '[');
        for (i = 0; i < n; i++) memory_show_hit(hit + i, 1);
        json_close();
        json_open("bytes", '{');
        json_int("working_set", (int64_t)b.live.total);
        json_int("working_set_peak", (int64_t)b.peak.total);
        json_int("limit", (int64_t)m->a->max_bytes);
        json_int("ram", (int64_t)u.total);
        json_int("file", (int64_t)u.file);
        json_int("full_f16", (int64_t)full);
        json_close();
        json_int("tokens", b.tokens);
        json_int("tokens_stored", memory_all_tokens(m));
        json_close();
        return;
    }
    put("%s\n\nfrom %d of %d episodes:\n", answer, n, m->store.n);
    for (i = 0; i < n; i++) memory_show_hit(hit + i, 0);
    put("\nbytes: working set %s, peak %s", human(b.live.total), human(b.peak.total));
    if (m->a->max_bytes) put(" (limit %s)", human(m->a->max_bytes));
    put("; store in RAM %s; file %s\n", human(u.total), human((size_t)u.file));
    put("       %lld tokens were read by attention; a full cache of all %lld would take %s as f16\n",
        (long long)b.tokens, (long long)memory_all_tokens(m), human(full));
}
/* The question as a line of the conversation: with a speaker where the memory's lines have one. */
static char *memory_question(memory *m, const char *text) {
    char *line = NULL, *q;
    size_t n = 0, speaker = 0, i, at;
    kvmem_episode e;
    int t;
    if (!memory_speaker(text, strlen(text)) && !m->a->no_speaker)
        for (t = 0; t < m->store.n && t < 8 && !speaker; t++) {
            if (kvmem_store_at(&m->store, t, &e) != KVMEM_OK) continue;
            free(line);
            memory_text(m, e.id, &line, &n);
            for (at = 0; at < n && !speaker; at = i + 1) { /* not a heading such as "Session: ": two lines agree */
                for (i = at; i < n && line[i] != '\n'; i++) {}
                speaker = at ? memory_speaker(line + at, i - at) : 0;
                if (speaker) memmove(line, line + at, speaker);
            }
        }
    q = (char *)grow(NULL, speaker + strlen(text) + 1, 1);
    if (speaker) memcpy(q, line, speaker);
    strcpy(q + speaker, text);
    free(line);
    return q;
}
static int memory_ask(memory *m) {
    memory_hit hit[MEMORY_TOP];
    char answer[4096], *line;
    ids q = { NULL, 0, 0 };
    uint64_t used[MEMORY_TOP];
    int n = 0, i, status;
    if (!m->store.n) return fail("%s: is empty: nothing was told yet; kvmem memory add FILE", m->a->store);
    if (memory_blank(m->a->word[1], strlen(m->a->word[1]))) return misuse("ask: the question is empty");
    line = memory_question(m, m->a->word[1]);
    status = tokenize(m->l.tokenizer, line, strlen(line), 0, &q);
    if (status == OK) status = memory_find(m, &q, hit, &n);
    if (status == OK && !n) fprintf(stderr, "kvmem memory: no episode shares a word with the question\n");
    if (status == OK && m->a->guard && n > 1) status = memory_guard(m, hit, &n, &q);
    if (status == OK && n) {
        const int found = n;
        n = memory_load(m, hit, n, q.n + (m->a->n < 8 ? (int)m->a->n : 8));
        if (n < 0) status = FAILED;
        else if (!n)
            status = fail("--limit %s: too small for any of the %d episodes found and the question of %d tokens (a "
                          "token takes %s as f16)", human(m->a->max_bytes), found, q.n, human(memory_token_bytes(m)));
    } else if (status == OK && memory_load(m, hit, 0, q.n) < 0) status = FAILED;
    if (status == OK) status = memory_answer(m, &q, answer, sizeof answer);
    if (status == OK) memory_show_answer(m, line, answer, hit, n);
    for (i = 0; i < n && status == OK; i++) used[i] = hit[i].e.id;
    if (status == OK && n > 0 && !m->store.read_only &&
        kvmem_store_touch(&m->store, used, n, (int64_t)time(NULL)) != KVMEM_OK)
        fprintf(stderr, "kvmem memory: that these episodes were used could not be noted: %s\n", m->store.error.text);
    free(q.id);
    free(line);
    return status;
}

/* ---- list, show, verify, compact */

/* The first line of a text, at most width characters. */
static void put_first_line(const char *s, size_t n, int width) {
    size_t i;
    for (i = 0; i < n && i < (size_t)width && s[i] != '\n'; i++) put("%c", (unsigned char)s[i] < 32 ? ' ' : s[i]);
}
static void memory_row(memory *m, const kvmem_episode *e, const char *note) {
    char path[KVMEM_MAX_SOURCE], *text;
    long first, last;
    size_t n;
    memory_lines(e, path, &first, &last);
    memory_text(m, e->id, &text, &n);
    if (m->a->json) {
        json_open(NULL, '{');
        json_int("id", (int64_t)e->id);
        json_text("file", path);
        json_int("first_line", first);
        json_int("last_line", last);
        json_int("tokens", e->n);
        json_int("bytes", (int64_t)e->bytes);
        json_int("uses", e->uses);
        json_int("created", e->created);
        json_int("last_used", e->last_used);
        json_int("version", e->version);
        json_int("place", e->place);
        json_bool("damaged", e->damaged);
        json_close();
    } else {
        put("%-7llu %-24s %5d tokens %10s %4d uses  %s", (unsigned long long)e->id, e->source, e->n,
            human((size_t)e->bytes), e->uses, e->damaged ? "[damaged] " : note);
        if (!e->damaged) put_first_line(text, n, 40);
        put("\n");
    }
    free(text);
}
static int memory_list(memory *m) {
    kvmem_store_usage u;
    kvmem_episode e;
    int i;
    kvmem_store_bytes(&m->store, &u);
    if (m->a->json) json_open(NULL, '[');
    for (i = 0; i < m->store.n; i++)
        if (kvmem_store_at(&m->store, i, &e) == KVMEM_OK) memory_row(m, &e, "");
    if (m->a->json) json_close();
    else put("%d episodes, %lld tokens; file %s, of which %s is in use\n", m->store.n, (long long)memory_all_tokens(m),
             human((size_t)u.file), human((size_t)u.live));
    return OK;
}
static int memory_id(const char *word, uint64_t *id) {
    int64_t v;
    if (!to_integer(*word == '#' ? word + 1 : word, &v) || v < 1)
        return misuse("'%s' is not an episode's number", word);
    *id = (uint64_t)v;
    return OK;
}
static int memory_show(memory *m) {
    kvmem_episode e;
    uint64_t id = 0;
    char *text;
    size_t n;
    int status = memory_id(m->a->word[1], &id);
    if (status != OK) return status;
    if (kvmem_store_get(&m->store, id, 0, &e) != KVMEM_OK) return memory_fail(m);
    if (m->a->json) { memory_row(m, &e, ""); return OK; }
    put("episode    %llu, version %d of %d\nsource     %s\n", (unsigned long long)e.id, e.version, e.n_versions,
        e.source);
    put("tokens     %d; record %s, keys and values %s (%s as f16)\n", e.n, human((size_t)e.bytes),
        human((size_t)e.row_bytes), human((size_t)e.n * memory_token_bytes(m)));
    put("used       %d times; strength %d\n", e.uses, 1 + e.uses);
    if (e.quarantine) put("quarantine %d\n", e.quarantine);
    memory_text(m, id, &text, &n);
    if (!text) return memory_fail(m);
    put("\n");
    put_bytes(text, n);
    if (n && text[n - 1] != '\n') put("\n");
    free(text);
    return OK;
}
static void memory_tell(void *user, uint64_t id, const char *fault) {
    (void)user;
    if (id) fprintf(stderr, "episode %llu: %s\n", (unsigned long long)id, fault);
    else fprintf(stderr, "%s\n", fault);
}
static int memory_verify(memory *m) {
    kvmem_store_check c;
    const kvmem_status status = kvmem_store_verify(&m->store, &c, m->a->json ? NULL : memory_tell, NULL);
    if (status != KVMEM_OK && status != KVMEM_BAD_FILE) return memory_fail(m);
    if (m->a->json) {
        json_open(NULL, '{');
        json_int("episodes", c.episodes);
        json_int("versions", c.versions);
        json_int("faults", c.faults);
        json_int("bytes", (int64_t)c.bytes);
        json_int("torn", (int64_t)c.torn);
        json_int("lost", (int64_t)c.lost);
        json_close();
        if (c.faults) flush_out(stdout);
    } else if (!c.faults)
        put("%d episodes in %d versions, %s read: no fault%s\n", c.episodes, c.versions, human((size_t)c.bytes),
            c.torn ? "; a torn tail was dropped" : "");
    if (status == KVMEM_OK) return OK;
    return fail("%s: is damaged: %d faults in %d episodes", m->a->store, c.faults, c.episodes);
}
static int memory_compact(memory *m) {
    kvmem_store_usage before, after;
    kvmem_store_bytes(&m->store, &before);
    if (kvmem_store_compact(&m->store, 0) != KVMEM_OK) return memory_fail(m);
    kvmem_store_bytes(&m->store, &after);
    if (m->a->json) {
        json_open(NULL, '{');
        json_int("before", (int64_t)before.file);
        json_int("after", (int64_t)after.file);
        json_close();
    } else put("%s: %s before, %s now\n", m->a->store, human((size_t)before.file), human((size_t)after.file));
    return OK;
}

/* ---- forget */

/* How many episodes were there at a time: a turn is an episode. */
static double memory_turn(const kvmem_episode *e, int n, int64_t when) {
    int i, count = 0;
    for (i = 0; i < n; i++) count += e[i].created <= when;
    return count;
}
/* Episodes as items: time in days for a curve, in episodes for salience. */
static void memory_items(const kvmem_episode *e, int n, int turns, kvmem_item *item) {
    int i;
    for (i = 0; i < n; i++) {
        item[i] = kvmem_item_new(e[i].id, turns ? i + 1 : (double)e[i].created / MEMORY_DAY, e[i].place);
        item[i].strength = 1 + e[i].uses;
        item[i].recalled = e[i].uses;
        if (e[i].uses) item[i].used = turns ? memory_turn(e, n, e[i].last_used) : (double)e[i].last_used / MEMORY_DAY;
        item[i].pinned = (e[i].access & KVMEM_ACCESS_FROZEN) != 0;
    }
}
static int memory_policy(memory *m, const kvmem_episode *e, int n, unsigned char *gone) {
    static const char *const fade_keys[] = { "unit", "theta", "bug_compat", "seed", "after", NULL };
    static const char *const hema_keys[] = { "lambda", "gamma", "beta", "recent", "printed", "share", NULL };
    static const char *const place_keys[] = { "keep", NULL };
    const char *spec = m->a->policy;
    kvmem_item *item = (kvmem_item *)grow(NULL, (size_t)n, sizeof *item);
    double *w = (double *)grow(NULL, (size_t)n, sizeof *w), v[6] = { 5, 0.1, 0, 1, 0, 0 };
    kvmem_fade f = kvmem_fade_default();
    kvmem_salience s = kvmem_salience_default();
    int r, status;
    for (r = 0; r < KVMEM_N_PLACE_RULES; r++) if (memory_is(spec, kvmem_place_rule_name((kvmem_place_rule)r))) break;
    if (r < KVMEM_N_PLACE_RULES) {
        v[0] = -1;
        status = memory_spec("--policy", spec, place_keys, v);
        if (status == OK && v[0] < 0) status = misuse("--policy %s: how many stay? %s(keep=N)", spec, spec);
        memory_items(e, n, 1, item);
        if (status == OK) kvmem_forget_places((kvmem_place_rule)r, item, n, v[0] < n ? (int)v[0] : n, gone);
    } else if (memory_is(spec, "memorybank")) {
        status = memory_spec("--policy", spec, fade_keys, v);
        f.unit = v[0];
        f.theta = v[1];
        f.bug_compat = v[2] > 0;
        f.seed = (uint64_t)v[3];
        if (status == OK && !(f.unit > 0)) status = misuse("--policy %s: unit must be above 0", spec);
        memory_items(e, n, 0, item);
        if (status == OK) kvmem_forget_fade(&f, item, n, (double)time(NULL) / MEMORY_DAY + v[4], gone);
    } else if (memory_is(spec, "hema")) {
        v[0] = s.lambda; v[1] = s.gamma; v[2] = s.beta; v[3] = s.recent; v[4] = 0; v[5] = s.share;
        status = memory_spec("--policy", spec, hema_keys, v);
        s.lambda = v[0]; s.gamma = v[1]; s.beta = v[2]; s.recent = v[3]; s.printed = v[4] > 0; s.share = v[5];
        if (status == OK && !(s.share >= 0 && s.share <= 1)) status = misuse("--policy %s: share is 0 to 1", spec);
        memory_items(e, n, 1, item);
        if (status == OK) kvmem_forget_salience(&s, item, n, n, gone, w);
    } else status = misuse("--policy %s: not memorybank, hema, fifo, lifo, lvfo or mvfo", spec);
    free(item);
    free(w);
    return status;
}
static int memory_forget(memory *m) {
    const int all = m->store.n;
    kvmem_episode *e = (kvmem_episode *)grow(NULL, (size_t)all, sizeof *e);
    unsigned char *gone = (unsigned char *)grow(NULL, (size_t)all, 1);
    int i, j, n = 0, count = 0, status = OK;
    for (i = 0; i < all; i++) if (kvmem_store_at(&m->store, i, &e[n]) == KVMEM_OK) n++;
    memset(gone, 0, (size_t)all);
    if (m->a->policy) status = memory_policy(m, e, n, gone);
    for (j = 1; j < m->a->n_words && status == OK; j++) {
        uint64_t id = 0;
        if ((status = memory_id(m->a->word[j], &id)) != OK) break;
        for (i = 0; i < n && e[i].id != id; i++) {}
        if (i == n) status = fail("%s: there is no episode %s", m->a->store, m->a->word[j]);
        else gone[i] = 1;
    }
    if (status == OK && m->a->json) json_open(NULL, '[');
    for (i = 0; i < n && status == OK; i++) {
        if (!gone[i]) continue;
        memory_row(m, &e[i], m->a->dry_run ? "would go: " : "gone: ");
        if (!m->a->dry_run && kvmem_store_delete(&m->store, e[i].id) != KVMEM_OK) status = memory_fail(m);
        else count++;
    }
    if (status == OK && m->a->json) json_close();
    else if (status == OK)
        put("%d of %d episodes %s%s\n", count, n, m->a->dry_run ? "would be forgotten" : "forgotten",
            count && !m->a->dry_run ? "; kvmem memory compact gives the room back" : "");
    free(e);
    free(gone);
    return status;
}

static int cmd_memory(const args *given) {
    static const struct { const char *word; int (*run)(memory *); int writes, lo, hi; } verbs[] = {
        { "add", memory_add, 2, 1, INT_MAX }, { "ask", memory_ask, 1, 1, 1 }, { "list", memory_list, 0, 0, 0 },
        { "show", memory_show, 0, 1, 1 }, { "forget", memory_forget, 1, 0, INT_MAX },
        { "verify", memory_verify, 0, 0, 0 }, { "compact", memory_compact, 1, 0, 0 } };
    args a = *given;
    nearest near = { NULL, 0 };
    memory m;
    size_t i;
    int n, status;
    for (i = 0; i < sizeof verbs / sizeof *verbs && strcmp(verbs[i].word, a.word[0]); i++)
        consider(&near, a.word[0], verbs[i].word);
    if (i == sizeof verbs / sizeof *verbs) {
        if (near.word) return misuse("what is '%s'? did you mean %s?", a.word[0], near.word);
        return misuse("what is '%s'? add, ask, list, show, forget, verify or compact", a.word[0]);
    }
    n = a.n_words - 1;
    if (n < verbs[i].lo)
        return misuse("%s needs %s", verbs[i].word, i == 0 ? "files" : i == 1 ? "a question" : "an episode's number");
    if (n > verbs[i].hi) return misuse("%s: unexpected argument '%s'%s", verbs[i].word, a.word[verbs[i].hi + 1],
                                       i == 1 ? "; put the question in quotes" : "");
    if (verbs[i].run == memory_forget && !n && !a.policy)
        return misuse("forget what? numbers of episodes, or --policy");
    default_model(&a);
    status = memory_open(&m, &a, verbs[i].writes);
    if (status == OK) status = verbs[i].run(&m);
    memory_close(&m);
    return status;
}
#endif
