/* cache.h - `kvmem cache`: caches in files of few bits a value, chunk by chunk (CacheGen).

       write    text -> cache -> file, at one level or at all three
       inspect  what a file holds: chunks, sizes, bits a value of each layer
       read     file -> cache, chunk by chunk at chosen levels or from its text, and on with the text
       plan     which level of which chunk to fetch under a bandwidth and a deadline
       levels   what each level costs in quality and takes in bytes, beside q8_0 and q4_0
   The format and the rule are sections stream and stream_plan of kvmem.h.
   Included by kvmem.c, whose output, options, files and measure it uses. */
#ifndef KVMEM_CACHE_H
#define KVMEM_CACHE_H

typedef struct cache_bytes { unsigned char *p; size_t n, cap; } cache_bytes;
static int cache_collect(void *user, const void *p, size_t n) {
    cache_bytes *b = (cache_bytes *)user;
    if (n > b->cap - b->n) b->p = (unsigned char *)grow(b->p, b->cap = 2 * (b->n + n), 1);
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return 0;
}
static int cache_to_file(void *user, const void *p, size_t n) {
    return fwrite(p, 1, n, (FILE *)user) != n;
}
static int cache_options_of(const args *a, kvmem_level_options *o) {
    static const char *const way[] = { "smaller", "channel", "layer" };
    *o = kvmem_level_options_default();
    o->level = (int)a->level;
    o->all = a->all;
    o->group = (int)a->group;
    o->chunk = (int)a->chunk;
    for (o->models = 0; o->models < 3 && strcmp(way[o->models], a->models); o->models++) {}
    return o->models < 3 ? OK : misuse("--models %s: not smaller, channel or layer", a->models);
}
static double cache_bits(size_t bytes, double values) { return values > 0 ? 8 * (double)bytes / values : 0; }

/* ---- write */

static void cache_written(const args *a, const kvmem_bytes *b, size_t size, double seconds) {
    if (!a->json) {
        put("%s: %lld tokens, %lu entries, %s in %.2f s; all of them as float16 would be %s\n", a->output,
            (long long)b->tokens, (unsigned long)b->entries, human(size), seconds, human(b->full));
        return;
    }
    json_open(NULL, '{');
    json_text("file", a->output);
    json_int("tokens", b->tokens);
    json_int("entries", (int64_t)b->entries);
    json_int("file_bytes", (int64_t)size);
    json_int("full_f16", (int64_t)b->full);
    json_real("seconds", seconds);
    json_close();
}
static int cache_write(const args *a) {
    kvmem_level_options o;
    writer w;
    ids prompt;
    kvmem_bytes b;
    FILE *f;
    int status;
    if (!a->model) return misuse("write: -m MODEL is needed: it reads the text");
    if (!a->output) return misuse("write: -o FILE is needed: where the cache goes");
    if ((status = cache_options_of(a, &o)) != OK) return status;
    memset(&prompt, 0, sizeof prompt);
    status = writer_open(&w, a);
    if (status == OK) status = tokenize_args(w.l.tokenizer, a, text_flags(a), &prompt);
    if (status == OK && !prompt.n) status = misuse("write: no text; give -p TEXT or -f FILE");
    if (status == OK && a->n && prompt.n > a->n) prompt.n = (int)a->n;
    if (status == OK) status = writer_feed(&w, prompt.id, prompt.n, KVMEM_PROMPT_END);
    if (status == OK && (f = fopen(a->output, "wb")) == NULL)
        status = fail("%s: cannot open for writing: %s", a->output, strerror(errno));
    else if (status == OK) {
        kvmem_cache *c = &w.session.cache;
        const double start = now();
        long size;
        if (!a->no_text) { o.ids = prompt.id; o.n_ids = prompt.n; }
        if (kvmem_cache_save_level(c, &o, cache_to_file, f) != KVMEM_OK)
            status = fail("%s: %s", a->output, c->error.text);
        size = ftell(f);
        if (fclose(f) && status == OK) status = fail("%s: writing failed", a->output);
        if (status != OK) remove(a->output); /* half a file is none */
        else {
            kvmem_cache_bytes(c, &b);
            cache_written(a, &b, (size_t)size, now() - start);
        }
    }
    writer_close(&w);
    free(prompt.id);
    return status;
}

/* ---- inspect */

typedef struct cache_file { file f; kvmem_chunks s; kvmem_cache_info info; } cache_file;
/* Opens a file of chunks; one of kvmem_cache_save is refused by name. */
static int cache_open(cache_file *c, const char *path) {
    kvmem_error error;
    memset(c, 0, sizeof *c);
    if (file_open(&c->f, path)) return FAILED;
    if (kvmem_cache_inspect(c->f.bytes, c->f.size, &c->info, &error) != KVMEM_OK ||
        (c->info.level && kvmem_chunks_open(&c->s, c->f.bytes, c->f.size, &error) != KVMEM_OK))
        return fail("%s: %s", path, error.text);
    return OK;
}
/* Bytes of K (0) and V (1) of each layer at a level, over all chunks: size (n_layers, 2). */
static void cache_layers(const kvmem_chunks *s, int level, size_t *size) {
    kvmem__in in;
    int i, j;
    memset(size, 0, (size_t)s->n_layers * 2 * sizeof *size);
    for (i = 0; i < s->n_chunks; i++) {
        if (kvmem__chunks_part(s, i, 1 + level, &in, NULL) != KVMEM_OK) return;
        for (j = 0; j < 2 * s->n_layers; j++) {
            const uint32_t n = kvmem__in_u32(&in);
            kvmem__in_bytes(&in, n);
            size[j] += n + 4;
        }
    }
}
static void cache_inspect_json(const cache_file *c) {
    kvmem_chunk ch;
    int i, l;
    json_open(NULL, '{');
    json_text("file", c->f.path);
    json_text("recipe", c->info.recipe);
    json_int("layers", c->info.n_layers);
    json_int("kv_heads", c->info.n_kv_heads);
    json_int("head_dim", c->info.head_dim);
    json_int("tokens", c->info.tokens);
    json_int("entries", (int64_t)c->info.entries);
    json_int("level", c->info.level);
    json_int("group", c->s.group);
    json_int("file_bytes", (int64_t)c->info.file_bytes);
    json_int("k_bytes", (int64_t)c->info.k_bytes);
    json_int("v_bytes", (int64_t)c->info.v_bytes);
    json_open("chunks", '[');
    for (i = 0; i < c->s.n_chunks; i++) {
        kvmem_chunks_at(&c->s, i, &ch);
        json_open(NULL, '{');
        json_int("offset", (int64_t)ch.offset);
        json_int("tokens", ch.tokens);
        json_int("first", ch.first);
        json_int("from", ch.from);
        json_int("end", ch.end);
        json_int("entries", (int64_t)ch.entries);
        json_int("text_bytes", (int64_t)ch.text_bytes);
        json_int("place_bytes", (int64_t)ch.place_bytes);
        json_open("level_bytes", '[');
        for (l = 0; l < 3; l++) json_int(NULL, (int64_t)ch.level_bytes[l]);
        json_close();
        json_close();
    }
    json_close();
    json_close();
}
static void cache_inspect_table(const cache_file *c) {
    const double values = (double)c->info.entries * c->info.head_dim; /* of K, and of V */
    size_t *size;
    kvmem_chunk ch;
    int i, l;
    put("file       %s, %s, %d chunks of at most %d tokens, finest level %d\n", c->f.path, human(c->info.file_bytes),
        c->s.n_chunks, c->s.chunk, c->info.level);
    put("recipe     %s\n", c->info.recipe);
    put("coding     %s\n", c->s.group > 1 ? "anchors and differences, as the paper" : "a scale a token, as released");
    put("tokens     %lld seen, %lu entries of %d layers x %d KV heads of %d\n", (long long)c->info.tokens,
        (unsigned long)c->info.entries, c->info.n_layers, c->info.n_kv_heads, c->info.head_dim);
    put("bytes      K %s, V %s: %.2f and %.2f bits a value, whole file %.2f\n\n", human(c->info.k_bytes),
        human(c->info.v_bytes), cache_bits(c->info.k_bytes, values), cache_bits(c->info.v_bytes, values),
        cache_bits(c->info.file_bytes, 2 * values));
    put("chunk     offset   tokens   positions         text   places    level 1    level 2    level 3\n");
    for (i = 0; i < c->s.n_chunks; i++) {
        kvmem_chunks_at(&c->s, i, &ch);
        put("%5d %10lu %8d %7d-%-7d %8lu %8lu", i, (unsigned long)ch.offset, ch.tokens, (int)ch.first, (int)ch.end - 1,
            (unsigned long)ch.text_bytes, (unsigned long)ch.place_bytes);
        for (l = 0; l < 3; l++) {
            if (ch.level_bytes[l]) put(" %10lu", (unsigned long)ch.level_bytes[l]);
            else put(" %10s", "-");
        }
        put("\n");
    }
    size = (size_t *)grow(NULL, (size_t)c->info.n_layers * 2, sizeof *size);
    cache_layers(&c->s, c->info.level, size);
    put("\nlayer   K bits a value   V bits a value   (level %d; all that the strips hold)\n", c->info.level);
    for (i = 0; i < c->info.n_layers; i++)
        put("%5d %16.3f %16.3f\n", i, cache_bits(size[2 * i], values / c->info.n_layers),
            cache_bits(size[2 * i + 1], values / c->info.n_layers));
    free(size);
}
static int cache_show(const args *a) {
    cache_file c;
    int status = cache_open(&c, a->word[1]);
    if (status == OK && !c.info.level) { /* as stored: the table of `kvmem inspect` */
        args b = *a;
        b.cache = a->word[1];
        status = inspect_cache(&b);
    } else if (status == OK && a->json) cache_inspect_json(&c);
    else if (status == OK) cache_inspect_table(&c);
    file_close(&c.f);
    return status;
}

/* ---- read */

/* The i-th of a list of numbers; the last one goes on. */
static int cache_list(const char *name, const char *list, int i, double lo, double hi, double *v) {
    const char *p = list, *next;
    char text[32];
    while (i-- > 0 && (next = strchr(p, ',')) != NULL) p = next + 1;
    snprintf(text, sizeof text, "%.*s", (int)KVMEM__MIN(strcspn(p, ","), 31u), p);
    if (!to_real(text, v) || *v < lo || *v > hi)
        return misuse("%s %s: '%s' is not a number from %g to %g", name, list, text, lo, hi);
    return OK;
}
/* Every chunk at its level, or computed from its text. */
static int cache_load_chunks(writer *w, const cache_file *c, const char *levels) {
    kvmem_error error;
    int i, status = OK, *id = NULL;
    double level;
    for (i = 0; i < c->s.n_chunks && status == OK; i++) {
        kvmem_phase phase = i + 1 < c->s.n_chunks ? KVMEM_PREFILL : KVMEM_PROMPT_END;
        size_t n = 0;
        if ((status = cache_list("--levels", levels, i, 0, 3, &level)) != OK) break;
        if (level >= 1) {
            if (kvmem_cache_load_chunk(&w->session.cache, &c->s, i, (int)level) != KVMEM_OK)
                status = fail("%s: %s", c->f.path, w->session.cache.error.text);
            continue;
        }
        if (kvmem_chunks_text(&c->s, i, NULL, 0, &n, &error) != KVMEM_OK)
            status = fail("%s: %s", c->f.path, error.text);
        else if (!n) status = fail("%s: chunk %d cannot be computed, the file has no text", c->f.path, i);
        else {
            id = (int *)grow(id, n, sizeof *id);
            kvmem_chunks_text(&c->s, i, id, n, &n, &error);
            status = writer_feed(w, id, (int)n, phase);
        }
    }
    free(id);
    return status;
}
/* The last token of the text again, so that there is a next one to draw. */
static int cache_last_token(writer *w, const cache_file *c) {
    kvmem_error error;
    size_t n = 0;
    int *id, last, status;
    if (!c->s.n_chunks || kvmem_chunks_text(&c->s, c->s.n_chunks - 1, NULL, 0, &n, &error) != KVMEM_OK || !n)
        return fail("%s: has no text to go on with; give a prompt with -p TEXT or -f FILE", c->f.path);
    id = (int *)grow(NULL, n, sizeof *id);
    kvmem_chunks_text(&c->s, c->s.n_chunks - 1, id, n, &n, &error);
    last = id[n - 1];
    free(id);
    if (last >= w->l.model.n_vocab) return fail("%s: token %d is not in the model's vocabulary", c->f.path, last);
    if (kvmem_cache_truncate(&w->session.cache, w->session.cache.next_pos - 1) != KVMEM_OK)
        return fail("%s", w->session.cache.error.text);
    status = writer_feed(w, &last, 1, KVMEM_PROMPT_END);
    return status;
}
static int cache_read(const args *a) {
    cache_file c;
    writer w;
    ids prompt;
    int status, i;
    if (!a->model) return misuse("read: -m MODEL is needed: it goes on with the text");
    memset(&prompt, 0, sizeof prompt);
    if ((status = cache_open(&c, a->word[1])) != OK) { file_close(&c.f); return status; }
    status = writer_open(&w, a);
    if (status == OK && a->levels && !c.info.level)
        status = fail("--levels: %s holds entries as stored, without chunks", a->word[1]);
    if (status == OK && a->levels) status = cache_load_chunks(&w, &c, a->levels);
    else if (status == OK && kvmem_session_load(&w.session, c.f.bytes, c.f.size) != KVMEM_OK)
        status = fail("%s: %s", a->word[1], w.session.error.text);
    if (status == OK && (a->prompt || a->file))
        status = tokenize_args(w.l.tokenizer, a, text_flags(a) & ~(unsigned)KVMEM_ADD_SPECIAL, &prompt);
    if (status == OK && !(a->prompt || a->file)) status = cache_last_token(&w, &c);
    else if (status == OK && !prompt.n) status = fail("the prompt has no tokens");
    else if (status == OK) status = writer_feed(&w, prompt.id, prompt.n, KVMEM_PROMPT_END);
    if (status == OK) {
        kvmem_stream_init(&w.stream, w.l.tokenizer, a->special ? (unsigned)KVMEM_SHOW_SPECIAL : 0u);
        for (i = 0; i < prompt.n; i++) put_bytes(w.piece, kvmem_stream_push(&w.stream, prompt.id[i], w.piece));
        status = writer_write(&w, a->n ? a->n : 64);
        put("\n");
    }
    if (status == OK) status = flush_out(stdout);
    if (status == OK) status = writer_summary(&w, a->json);
    writer_close(&w);
    file_close(&c.f);
    free(prompt.id);
    return status;
}

/* ---- plan */

/* Bandwidths of all chunks: a list whose last goes on, or "uniform": .1 to 10, seeded. */
static int cache_bandwidths(const args *a, double *gbps, int n) {
    int i, status = OK;
    for (i = 0; i < n && status == OK; i++) {
        if (strcmp(a->gbps, "uniform")) status = cache_list("--gbps", a->gbps, i, 0, 1e9, &gbps[i]);
        else gbps[i] = 0.1 + 9.9 * kvmem__unit(kvmem__mix((uint64_t)a->seed * 1000003u + (uint64_t)i));
    }
    return status;
}
static void cache_plan_show(const args *a, const kvmem_plan_job *j, const int *choice, double seconds) {
    int i;
    if (a->json) {
        json_open(NULL, '{');
        json_real("seconds", seconds);
        json_real("slo", j->slo);
        json_open("choice", '[');
        for (i = 0; i < j->n; i++) json_int(NULL, choice[i]);
        json_close();
        json_close();
        return;
    }
    put("chunk       Gbit/s   choice        bytes    seconds\n");
    for (i = 0; i < j->n; i++) {
        const size_t bytes = choice[i] ? j->bytes[3 * i + choice[i] - 1] : 0;
        const double s = choice[i] ? (double)bytes * 8e-9 / j->gbps[i] : j->text[i];
        put("%5d %12.4g   %s%-6.0d %11lu %10.4g\n", i, j->gbps[i], choice[i] ? "level " : "text  ", choice[i],
            (unsigned long)bytes, s);
    }
    put("\nall there after %.4g s; asked for: %.4g s%s\n", seconds, j->slo, seconds <= j->slo ? "" : " (missed)");
}
static int cache_plan(const args *a) {
    cache_file c;
    kvmem_plan_job j;
    size_t *bytes = NULL;
    double *gbps = NULL, *text = NULL, seconds;
    int status, i, l, *choice = NULL;
    memset(&j, 0, sizeof j);
    if (!a->gbps) return misuse("plan: --gbps LIST is needed: the bandwidth of each chunk in turn, or uniform");
    if (strcmp(a->rule, "released") && strcmp(a->rule, "paper"))
        return misuse("--rule %s: not released or paper", a->rule);
    status = cache_open(&c, a->word[1]);
    if (status == OK && !c.info.level) status = fail("%s: holds entries as stored, without levels", a->word[1]);
    if (status == OK) {
        j.n = c.s.n_chunks;
        bytes = (size_t *)grow(NULL, (size_t)j.n * 3, sizeof *bytes);
        gbps = (double *)grow(NULL, (size_t)j.n, sizeof *gbps);
        text = (double *)grow(NULL, (size_t)j.n, sizeof *text);
        choice = (int *)grow(NULL, (size_t)j.n, sizeof *choice);
        for (i = 0; i < j.n; i++) {
            kvmem_chunk ch;
            kvmem_chunks_at(&c.s, i, &ch);
            for (l = 0; l < 3; l++) bytes[3 * i + l] = ch.level_bytes[l] ? ch.level_bytes[l] + ch.place_bytes : 0;
            text[i] = a->delay;
        }
        status = cache_bandwidths(a, gbps, j.n);
    }
    if (status == OK) {
        j.bytes = bytes;
        j.gbps = gbps;
        j.text = text;
        j.slo = a->slo;
        j.paper = !strcmp(a->rule, "paper");
        seconds = kvmem_chunks_plan(&j, choice);
        cache_plan_show(a, &j, choice, seconds);
    }
    free(bytes);
    free(gbps);
    free(text);
    free(choice);
    file_close(&c.f);
    return status;
}

/* ---- levels: quality against bytes. The prompt's entries are saved in a form, loaded, and the rest of the
   text is scored beside a cache that kept them whole. */

typedef struct cache_form { const char *name, *codec; int level, group; } cache_form;
static const cache_form cache_forms[] = {
    { "f16", "f16", 0, 0 }, { "q8_0", "q8_0", 0, 0 }, { "q4_0", "q4_0", 0, 0 },
    { "released 3", NULL, 3, 1 }, { "released 2", NULL, 2, 1 }, { "released 1", NULL, 1, 1 },
    { "paper 3", NULL, 3, 10 }, { "paper 2", NULL, 2, 10 }, { "paper 1", NULL, 1, 10 } };
#define N_FORMS ((int)(sizeof cache_forms / sizeof cache_forms[0]))

/* The exact entries in `exact` to m->kv by way of a form; *bytes: of K and V in it. */
static int cache_through(measure *m, const args *a, const cache_form *f, const cache_bytes *exact, size_t *bytes,
                         size_t *layers) {
    kvmem_cache *c = &m->kv.cache;
    kvmem_level_options o;
    kvmem_cache_info info;
    kvmem_chunks s;
    cache_bytes b;
    kvmem_status st;
    memset(&b, 0, sizeof b);
    memset(&info, 0, sizeof info);
    if (cache_options_of(a, &o) != OK) return MISUSED;
    o.all = 0;
    o.level = f->level;
    o.group = f->group;
    st = kvmem_session_load(&m->kv, exact->p, exact->n);
    if (st == KVMEM_OK && f->codec) st = kvmem_cache_recode(c, f->codec, f->codec);
    if (st == KVMEM_OK && f->codec) st = kvmem_cache_save(c, cache_collect, &b);
    else if (st == KVMEM_OK) st = kvmem_cache_save_level(c, &o, cache_collect, &b);
    if (st == KVMEM_OK) st = kvmem_cache_inspect(b.p, b.n, &info, &c->error);
    if (st == KVMEM_OK && f->codec) st = kvmem_cache_recode(c, "f32", "f32");
    else if (st == KVMEM_OK) st = kvmem_session_load(&m->kv, b.p, b.n);
    if (st == KVMEM_OK && !f->codec && kvmem_chunks_open(&s, b.p, b.n, &c->error) == KVMEM_OK)
        cache_layers(&s, f->level, layers);
    *bytes = info.k_bytes + info.v_bytes;
    free(b.p);
    return st == KVMEM_OK ? OK : fail("%s: %s", f->name, m->kv.cache.error.text);
}
/* Variance of rows over that of their differences from the anchor, ten rows a group. */
static double cache_variance_ratio(const kvmem_cache *c, int layer, int values) {
    const int d = c->shape.head_dim;
    float *x = (float *)grow(NULL, (size_t)d, sizeof *x), *anchor = (float *)grow(NULL, (size_t)d, sizeof *anchor);
    double *sum = (double *)grow(NULL, (size_t)d, sizeof *sum), rows = 0, deltas = 0;
    int g, t, i;
    for (g = 0; g < c->shape.n_kv_heads; g++) {
        const int n = kvmem_cache_lane_len(c, layer, g);
        double squares = 0;
        memset(sum, 0, (size_t)d * sizeof *sum);
        for (t = 0; t < n; t++) {
            kvmem_cache_read(c, layer, g, t, 1, values ? NULL : x, values ? x : NULL, NULL);
            if (t % 10 == 0) memcpy(anchor, x, (size_t)d * sizeof *x);
            for (i = 0; i < d; i++) {
                const double e = (double)x[i] - (double)anchor[i];
                sum[i] += (double)x[i];
                squares += (double)x[i] * (double)x[i];
                deltas += t % 10 ? e * e * 10 / 9 : 0;
            }
        }
        for (i = 0; i < d; i++) squares -= n ? sum[i] * sum[i] / n : 0;
        rows += squares;
    }
    free(x);
    free(anchor);
    free(sum);
    return deltas > 0 ? rows / deltas : 0;
}
static void cache_levels_row(const args *a, const cache_form *f, const tally *t, size_t bytes, double values) {
    const double n = (double)t->n;
    if (a->json) {
        json_open(NULL, '{');
        json_text("form", f->name);
        json_int("bytes", (int64_t)bytes);
        json_real("bits", cache_bits(bytes, values));
        json_real("kl", t->kl / n);
        json_real("ppl", exp(t->nll / n));
        json_real("ppl_full", exp(t->nll_full / n));
        json_real("same_top", (double)t->same / n);
        json_close();
    } else
        put("%-11s %10lu %7.2f %10.5f %9.4f %9.4f %8.2f%%\n", f->name, (unsigned long)bytes, cache_bits(bytes, values),
            t->kl / n, exp(t->nll / n), exp(t->nll / n - t->nll_full / n), 100 * (double)t->same / n);
}
static int cache_levels_run(measure *m, const args *a) {
    cache_bytes exact;
    kvmem_bytes b;
    size_t bytes, *layer[N_FORMS];
    double values;
    int status, i, l, at, L;
    memset(&exact, 0, sizeof exact);
    memset(layer, 0, sizeof layer);
    if (kvmem_session_feed(&m->full, m->text.id, m->prompt, KVMEM_PROMPT_END, NULL, NULL) != KVMEM_OK)
        return fail("%s", m->full.error.text);
    kvmem_cache_save(&m->full.cache, cache_collect, &exact);
    kvmem_cache_bytes(&m->full.cache, &b);
    L = m->full.cache.shape.n_layers;
    values = 2 * (double)b.entries * m->full.cache.shape.head_dim;
    if (a->json) {
        json_open(NULL, '{');
        json_int("prompt_tokens", m->prompt);
        json_int("scored_tokens", m->text.n - 1 - m->prompt);
        json_open("forms", '[');
    } else
        put("%d tokens saved and loaded in each form, the next %d scored\n\nform             bytes    bits         "
            "KL       "
            "ppl  vs exact  same top\n",
            m->prompt, m->text.n - 1 - m->prompt);
    for (i = 0, status = OK; i < N_FORMS && status == OK; i++) {
        layer[i] = (size_t *)grow(NULL, (size_t)L * 2, sizeof *layer[i]);
        memset(&m->all, 0, sizeof m->all);
        if (kvmem_session_load(&m->full, exact.p, exact.n) != KVMEM_OK) status = fail("%s", m->full.error.text);
        if (status == OK) status = cache_through(m, a, &cache_forms[i], &exact, &bytes, layer[i]);
        for (at = m->prompt; status == OK && at + 1 < m->text.n; at += m->block) {
            m->at = at;
            m->end = m->text.n;
            status = measure_feed(m, m->text.id + at, KVMEM__MIN(m->block, m->text.n - 1 - at), KVMEM_PREFILL, 1);
        }
        if (status == OK) cache_levels_row(a, &cache_forms[i], &m->all, bytes, values);
    }
    if (status == OK && kvmem_session_load(&m->full, exact.p, exact.n) != KVMEM_OK)
        status = fail("%s", m->full.error.text);
    if (status == OK && a->json) {
        json_close();
        json_open("layers", '[');
    } else if (status == OK)
        put("\n        variance ratio   bits a value at level 3\n"
            "           to anchors       released          paper\nlayer     K      V       K      V       K      V\n");
    for (l = 0; l < L && status == OK; l++) {
        const double k = cache_variance_ratio(&m->full.cache, l, 0), v = cache_variance_ratio(&m->full.cache, l, 1);
        if (a->json) {
            json_open(NULL, '{');
            json_real("ratio_k", k);
            json_real("ratio_v", v);
            for (i = 3; i < N_FORMS; i++) {
                json_open(cache_forms[i].name, '[');
                json_real(NULL, cache_bits(layer[i][2 * l], values / 2 / L));
                json_real(NULL, cache_bits(layer[i][2 * l + 1], values / 2 / L));
                json_close();
            }
            json_close();
        } else
            put("%5d %6.2f %6.2f  %6.2f %6.2f  %6.2f %6.2f\n", l, k, v, cache_bits(layer[3][2 * l], values / 2 / L),
                cache_bits(layer[3][2 * l + 1], values / 2 / L), cache_bits(layer[6][2 * l], values / 2 / L),
                cache_bits(layer[6][2 * l + 1], values / 2 / L));
    }
    if (status == OK && a->json) {
        json_close();
        json_close();
    }
    for (i = 0; i < N_FORMS; i++) free(layer[i]);
    free(exact.p);
    return status;
}
static int cache_levels(const args *a) {
    measure *m = (measure *)grow(NULL, 1, sizeof *m);
    kvmem_session_config cfg;
    int status;
    memset(m, 0, sizeof *m);
    m->two = 1;
    m->block = 64;
    if (!a->model || !a->file) status = misuse("levels: -m MODEL and -f FILE are needed");
    else if (a->kv) status = misuse("levels: compares forms of a whole cache; it takes no --kv");
    else status = parse_recipe("full codec=f32", &m->recipe);
    if (status == OK) status = session_config(a, &m->recipe, &cfg);
    if (status == OK) status = load_model(&m->l, a, 1);
    if (status == OK) status = tokenize_args(m->l.tokenizer, a, text_flags(a), &m->text);
    if (status == OK) {
        m->text.n = (int)KVMEM__MIN((int64_t)m->text.n, a->n ? a->n : 1024);
        m->prompt = a->first > 0 ? (int)a->first : m->text.n / 2;
        if (m->prompt < 1 || m->text.n - 1 - m->prompt < 1)
            status = fail("%s: %d tokens leave nothing to score behind %d", a->file, m->text.n, m->prompt);
    }
    if (status == OK) status = open_session(&m->full, &m->l.model, &cfg);
    if (status == OK) status = open_session(&m->kv, &m->l.model, &cfg);
    if (status == OK) {
        m->row = (float *)grow(NULL, (size_t)m->block * (size_t)m->l.model.n_vocab, sizeof *m->row);
        status = cache_levels_run(m, a);
    }
    measure_close(m);
    return status;
}

/* ---- the command */

static int cmd_cache(const args *given) {
    args own = *given, *a = &own;
    static const struct { const char *name; int (*run)(const args *a); int file; } sub[] = {
        { "write", cache_write, 0 }, { "inspect", cache_show, 1 }, { "read", cache_read, 1 },
        { "plan", cache_plan, 1 }, { "levels", cache_levels, 0 } };
    nearest near = { NULL, 0 };
    int i;
    default_model(a);
    for (i = 0; i < 5; i++) {
        if (!strcmp(sub[i].name, a->word[0])) {
            if (a->n_words < 1 + sub[i].file) return misuse("%s: which FILE?", sub[i].name);
            if (a->n_words > 1 + sub[i].file) return misuse("unexpected argument '%s'", a->word[1 + sub[i].file]);
            return sub[i].run(a);
        }
        consider(&near, a->word[0], sub[i].name);
    }
    if (near.word) return misuse("no subcommand '%s'; did you mean %s?", a->word[0], near.word);
    return misuse("no subcommand '%s'; there are write, inspect, read, plan and levels", a->word[0]);
}
#endif
