/* list.h - `kvmem list`: the methods, all there is to say about one, and what goes with what.

   Everything printed comes from the library's own tables and from the function that refuses a recipe
   (kvmem_recipe_check); what a codec stores is counted by the codec itself. Only the formulas are
   written here, a line or two a codec. Included by kvmem.c, whose output and options it uses. */
#ifndef KVMEM_LIST_H
#define KVMEM_LIST_H

/* ==== >>list : the methods ==================================================================== */

static const kvmem_preset *find_preset(const char *word) {
    const kvmem_preset *p;
    int i;
    for (i = 0; (p = kvmem_preset_at(i)) != NULL; i++) if (!strcmp(p->word, word)) return p;
    return NULL;
}
static const kvmem_entry *find_entry(int stage, const char *word) {
    const kvmem_entry *e;
    int i;
    for (i = 0; (e = kvmem_stage_entry((kvmem_stage)stage, i)) != NULL; i++)
        if (!strcmp(e->word, word)) return e;
    return NULL;
}
/* K and V have one table of codecs, so codec.v is passed over. */
static int next_stage(int stage) { return stage + 1 == (int)KVMEM_CODEC_V ? stage + 2 : stage + 1; }
static const char *stage_name(int stage) {
    return stage == (int)KVMEM_CODEC_K ? "codec" : kvmem_stage_word((kvmem_stage)stage);
}
/* One line of four columns, two blanks or more between them, so that programs can read it (tools/methods.sh): key,
   what it is (a word may be a preset and an entry of stages), paper, sentence. */
#define LIST_LINE "%-18s  %-19s  %-40s  %s\n"
static void list_line(const char *word, const char *cite, const char *what) {
    char kind[96];
    int stage;
    size_t n = 0;
    kind[0] = 0;
    if (find_preset(word)) n += (size_t)snprintf(kind, sizeof kind, "preset");
    for (stage = 0; stage < (int)KVMEM_N_STAGES; stage = next_stage(stage))
        if (n < sizeof kind && find_entry(stage, word))
            n += (size_t)snprintf(kind + n, sizeof kind - n, n ? ",%s" : "%s", stage_name(stage));
    put(LIST_LINE, word, kind, cite, what);
}
static void list_all(void) {
    const kvmem_preset *p;
    const kvmem_method *m;
    const kvmem_entry *e;
    int i, stage, before;
    for (i = 0; (p = kvmem_preset_at(i)) != NULL; i++) list_line(p->word, p->cite, p->what);
    for (stage = 0; stage < (int)KVMEM_N_STAGES; stage = next_stage(stage))
        for (i = 0; (e = kvmem_stage_entry((kvmem_stage)stage, i)) != NULL; i++) {
            int seen = find_preset(e->word) != NULL;
            for (before = 0; before < stage && !seen; before = next_stage(before))
                seen = find_entry(before, e->word) != NULL;
            if (!seen) list_line(e->word, e->cite, e->what);
        }
    for (i = 0; (m = kvmem_method_at(i)) != NULL; i++)
        put(LIST_LINE, m->word, m->kind, m->cite, m->what);
}
static void put_params(const kvmem_entry *e) {
    const kvmem_param *p = e->params;
    for (; p && p->name; p++) {
        put("  %-10s ", p->name);
        if (kvmem__is_text(p)) {
            put("a text");
        } else if (p->choices) {
            const char *c = p->choices;
            int i, n;
            for (i = 0; i < (int)p->def && strchr(c, '|'); i++) c = strchr(c, '|') + 1;
            n = (int)strcspn(c, "|");
            put("%s, default %.*s", p->choices, n, c);
        } else {
            put("%g to %g, default %g", p->lo, p->hi, p->def);
        }
        put(": %s\n", p->what);
    }
}
static void put_reads(unsigned reads, int queries) {
    static const struct { unsigned bit; const char *what;
    } what[] = { { KVMEM_READS_KEYS, "keys" },
                 { KVMEM_READS_VALUES, "values" },
                 { KVMEM_READS_QUERIES, "the last queries" },
                 { KVMEM_READS_ACC, "accumulated attention" },
                 { KVMEM_READS_LAST, "the newest query's attention" },
                 { KVMEM_READS_SCORES, "scores of all lanes" },
                 { KVMEM_READS_LAYERS, "all layers" },
                 { KVMEM_READS_PROFILE, "a profile of the model" } };
    size_t i;
    int n = 0;
    put("  reads      ");
    for (i = 0; i < sizeof what / sizeof *what; i++)
        if (reads & what[i].bit) put(n++ ? ", %s" : "%s", what[i].what);
    if (queries) put(n++ ? ", queries as they attend" : "queries as they attend");
    put(n ? "\n" : "nothing but positions\n");
}
/* ---- codecs: formula, bits, presets */

/* How a row x (d values of one token and KV head) is stored and read back. */
static const struct { const char *word, *formula; } codec_formulas[] = {
    { "f32", "x as it is, little-endian" },
    { "f16", "x rounded to float16 (nearest even)" },
    { "f16_pre", "x before RoPE rounded to float16; RoPE is applied when the row is read" },
    { "key", "v^ = k^ before RoPE: the row that codec.k=f16_pre keeps serves both, V takes no bits" },
    { "bf16", "the upper 16 bits of x, rounded to nearest even" },
    { "q8_0", "32 channels share s = max|x| / 127; code = round(x / s), x^ = s code" },
    { "q4_0", "32 channels share s = m / -8, m the value of largest |x|; "
              "code = floor(x / s + 8.5) in 0..15, x^ = s (code - 8)" },
    { "q4_1", "32 channels share m = min, s = (max - min) / 15; code = round((x - m) / s), x^ = s code + m" },
    { "q5_0", "as q4_0 with 5 bits: s = m / -16, code = floor(x / s + 16.5) in 0..31, x^ = s (code - 16)" },
    { "q5_1", "as q4_1 with 5 bits: s = (max - min) / 31" },
    { "iq4_nl", "32 channels share s; code = nearest of 16 fixed uneven levels t to x / s, x^ = s t[code]; "
                "s is fitted again with weights x^2" },
    { "kivi", "code = round((x - m) / s), x^ = s code + m, m and s from min and max: of each channel over the "
              "rows of a page (axis=channel), or of each row over groups of channels (axis=token)" },
    { "kvquant", "z = (x - off_c) / rg_c with channel ranges from quantiles; code = nearest of 2^bits levels "
                 "placed by k-means; |z| > 1: an outlier, kept as a half in a list" },
    { "kvquant_post", "as kvquant, on keys after RoPE" },
    { "kvquant_v", "as kvquant with a range for each token, its largest and smallest values in the row" },
    { "lowrank", "y = U_r x, U_r (r, d) the leading eigenvectors of the lane's x^T x; y in the format `store`, "
                 "x^ = U_r^T y; <q, x^> = <U_r q, y>" },
    { "think", "k^ = k without the (int)(d ratio) channels of the least mean(q_c^2) mean(k_c^2) over the prompt's last "
               "`window` queries and its keys; the rest in the format `store`" },
    { "polarquant", "y = H (s * x); pairs to angle and length, lengths again in pairs, `levels` times: codes of "
                    "the angles by fixed books, the lengths on top as halves" },
    { "turboquant", "gamma = |x|, y = R x / gamma (R: random signs and Hadamard), code_j = nearest Lloyd-Max level "
                    "to y_j; x^ = gamma R^T c[code]; form=prod adds the signs of a sketch of the rest" },
    { "octopus", "gamma = |x|, y = R x / gamma; triplets of y: octahedral coordinates xi, eta (bits + 1 each) and "
                 "length rho (bits - 1), the best of 9 neighbours" },
    { "polark", "pairs of key channels to angle and length; codes of `angle` and `radius` bits in the ranges that "
                "both have for each pair over a page" },
    { "qjl", "sign(S x), a bit for each row of a random orthogonal S, and |x|; <q, x^> = sqrt(pi/2)/m |x| <S q, sign>; "
             "the largest channels of a page apart" },
    { "gear", "X^ = D + Q P^T + outliers: D affine codes of `bits` by channel or token, Q P^T of low rank by power "
              "iteration on what is left, the largest and smallest values in a list" },
    { "zip", "each channel divided by c_j = sqrt(max |x_j|) of the page, then one affine range a token" },
    { "mikv", "keys times a balancer b_j = sqrt(max |q_j| / max |k_j|), then affine codes in groups; demoted rows "
              "take fewer bits" },
    { "rotatekv", "y = H x before RoPE, channels of y in learned order; code = round(y / s) + z, s and z from min and "
                  "max of `group` channels, both times `clip`" },
    { "vq", "pieces of a row: index of the nearest vector of a learned codebook, in the metric of the queries" } };

static const char *codec_formula(const char *word) {
    size_t i;
    for (i = 0; i < sizeof codec_formulas / sizeof *codec_formulas; i++)
        if (!strcmp(codec_formulas[i].word, word)) return codec_formulas[i].formula;
    return NULL;
}
static const kvmem_codec *codec_of(const kvmem_entry *e) { /* a codec row begins with its entry */
    return (const kvmem_codec *)(const void *)e;
}
/* Bits a value of rows of d in full pages of that many rows, heads included. */
static double codec_bits(const kvmem_codec *codec, const double *par, int d, int page) {
    kvmem_codec_use u;
    kvmem_coded b;
    size_t bytes;
    if (codec->flags & KVMEM_CODEC_SHARED) return 0; /* the key's row */
    kvmem__use_init(&u, codec, par, d, 0);
    b = kvmem__coded_of(&u, NULL, NULL, 0, NULL, page);
    bytes = u.row_bytes * (size_t)page + (u.fn.head_bytes ? u.fn.head_bytes(&b, NULL) : 0);
    return 8.0 * (double)bytes / ((double)page * d);
}
static const kvmem_param *find_param(const kvmem_entry *e, const char *name) {
    const kvmem_param *p;
    for (p = e->params; p && p->name; p++) if (!strcmp(p->name, name)) return p;
    return NULL;
}
/* A label, then the text in lines of at most 100 columns under each other; NULL: nothing. */
static void put_wrapped(const char *label, const char *text) {
    const int room = 100 - (int)strlen(label);
    for (; text && *text; label = "") {
        int n = (int)strlen(text);
        if (n > room) for (n = room; n > 1 && text[n] != ' ';) n--;
        put("%-*s%.*s\n", 100 - room, label, n, text);
        text += n + (text[n] == ' ');
    }
}
static void put_codec_bits(const kvmem_entry *e, const char *label, const double *par, int page) {
    put("  %-10s d=64: %.4g, d=128: %.4g\n", label, codec_bits(codec_of(e), par, 64, page),
        codec_bits(codec_of(e), par, 128, page));
}
static void put_codec(const kvmem_entry *e) {
    const kvmem_codec *c = codec_of(e);
    const kvmem_param *bits = find_param(e, "bits");
    const int page = kvmem_recipe_default().page;
    double par[KVMEM_MAX_PARAMS] = { 0 };
    const kvmem_preset *p;
    char label[32];
    kvmem_codec_use u;
    kvmem_coded b;
    int i, n = 0;
    for (i = 0; e->params && e->params[i].name && i < KVMEM_MAX_PARAMS; i++)
        par[i] = e->params[i].def;
    kvmem__use_init(&u, c, par, 128, 0);
    b = kvmem__coded_of(&u, NULL, NULL, 0, NULL, page);
    put_wrapped("  formula    ", codec_formula(e->word));
    put("  stores     %s, %s%s%s\n",
        c->flags & KVMEM_CODEC_KEYS     ? "keys only"
        : c->flags & KVMEM_CODEC_VALUES ? "values only"
                                        : "keys and values",
        c->head_bytes && c->head_bytes(&b, NULL) ? "a page at a time (its rows share a head)"
                                                 : "row by row",
        c->flags & KVMEM_CODEC_PRE_ROPE ? ", keys before RoPE" : "",
        u.state_floats ? "; learns from the lane's rows" : "");
    put("  bits       a value, all metadata of a page of %d rows counted\n", page);
    put_codec_bits(e, bits ? "usual" : "", par, page);
    for (i = 2; bits && i <= 4; i++) {
        if (i < bits->lo || i > bits->hi || (bits->choices != NULL)) continue;
        par[bits - e->params] = i;
        snprintf(label, sizeof label, "bits=%d", i);
        put_codec_bits(e, label, par, page);
    }
    if (u.state_floats)
        put("  learns     %d bytes a lane at d=128, once\n", 4 * u.state_floats);
    if (u.table_bytes)
        put("  constants  %lu bytes at d=128, one copy for all lanes\n", (unsigned long)u.table_bytes);
    for (i = 0; (p = kvmem_preset_at(i)) != NULL; i++) {
        kvmem_recipe r;
        if (kvmem_recipe_parse(&r, p->word, NULL) != KVMEM_OK) continue;
        if (r.stage[KVMEM_CODEC_K].entry != e && r.stage[KVMEM_CODEC_V].entry != e) continue;
        put(n++ ? ", %s" : "  presets    %s", p->word);
    }
    if (n) put("\n");
}
static int list_preset(const kvmem_preset *p) {
    kvmem_recipe r;
    kvmem_error error;
    size_t n;
    char *text;
    if (kvmem_recipe_parse(&r, p->word, &error) != KVMEM_OK)
        return fail("%s: %s", p->word, error.text);
    n = kvmem_recipe_explain(&r, NULL, 0);
    text = (char *)grow(NULL, n + 1, 1);
    kvmem_recipe_explain(&r, text, n + 1);
    put_bytes(text, n);
    if (n && text[n - 1] != '\n') put("\n");
    free(text);
    return OK;
}
/* Does the entry see the queries of every block? */
static int watches(const kvmem_entry *e, int stage) {
    const kvmem_memory *m = stage == (int)KVMEM_SCORE ? ((const kvmem_score_entry *)(const void *)e)->memory
                          : stage == (int)KVMEM_SELECT ? ((const kvmem_select_entry *)(const void *)e)->memory : NULL;
    return m && m->watch;
}
static int list_word(const char *word) {
    const kvmem_preset *p = find_preset(word);
    const kvmem_entry *e;
    nearest near = { NULL, 0 };
    int stage, i, found = 0, status;
    if (p && (status = list_preset(p)) != OK) return status;
    found = p != NULL;
    for (stage = 0; stage < (int)KVMEM_N_STAGES; stage = next_stage(stage)) {
        if ((e = find_entry(stage, word)) == NULL) continue;
        put("%s%s: an entry of the stage %s\n  %s\n  paper      %s\n", found ? "\n" : "", word,
            stage_name(stage), e->what, e->cite);
        if (stage == (int)KVMEM_CODEC_K) put_codec(e);
        else put_reads(e->reads, watches(e, stage));
        put_params(e);
        found = 1;
    }
    for (i = 0; kvmem_method_at(i); i++) {
        const kvmem_method *m = kvmem_method_at(i);
        consider(&near, word, m->word);
        if (strcmp(m->word, word) != 0) continue;
        put("%s: a method of its own (%s)\n  %s\n  paper      %s\n  where      %s\n", m->word, m->kind, m->what,
            m->cite, m->where);
        found = 1;
    }
    if (found) return OK;
    for (i = 0; kvmem_preset_at(i); i++) consider(&near, word, kvmem_preset_at(i)->word);
    for (stage = 0; stage < (int)KVMEM_N_STAGES; stage++)
        for (i = 0; (e = kvmem_stage_entry((kvmem_stage)stage, i)) != NULL; i++)
            consider(&near, word, e->word);
    if (near.word)
        return misuse("'%s' is no preset and no entry; did you mean %s?", word, near.word);
    return misuse("'%s' is no preset and no entry; `kvmem list` names all", word);
}

/* ---- the matrix: what the checks refuse */

/* One column: the term that is put beside a codec, or the shape of the rows. */
typedef struct matrix_column {
    char term[64];
    const char *head, *sub;
    int d, rope; /* of the rows; d 0: any */
} matrix_column;
enum { MATRIX_COLUMNS = 48, MATRIX_REASONS = 64 };
typedef struct matrix {
    matrix_column column[MATRIX_COLUMNS];
    int n_columns;
    char reason[MATRIX_REASONS][256];
    int n_reasons;
} matrix;

static void matrix_add(matrix *m, const char *head, const char *sub, const char *term, int d, int rope) {
    matrix_column *c = m->column + m->n_columns;
    if (m->n_columns == MATRIX_COLUMNS) return;
    m->n_columns++;
    snprintf(c->term, sizeof c->term, "%s", term);
    c->head = head;
    c->sub = sub;
    c->d = d;
    c->rope = rope;
}
/* "reduce=drop", with what it needs to be asked about: parameters without a default, a budget. */
static void matrix_term(char *to, size_t size, int stage, const kvmem_entry *e) {
    const int cuts = stage == (int)KVMEM_REDUCE;
    snprintf(to, size, "%s%s=%.30s%s", cuts ? "budget=50% " : "", kvmem_stage_word((kvmem_stage)stage),
             e->word, !strcmp(e->word, "demote") ? "(q4_0)" : "");
}
static void matrix_stage(matrix *m, int stage) {
    const kvmem_entry *e;
    char term[64];
    int i;
    for (i = 0; (e = kvmem_stage_entry((kvmem_stage)stage, i)) != NULL; i++) {
        matrix_term(term, sizeof term, stage, e);
        matrix_add(m, stage_name(stage), e->word, term, 0, 1);
    }
}
static void matrix_columns(matrix *m) {
    matrix_stage(m, KVMEM_PLACE);
    matrix_stage(m, KVMEM_REDUCE);
    matrix_stage(m, KVMEM_RETRIEVE);
    matrix_add(m, "when", "prompt", "budget=50% when=prompt", 0, 1);
    matrix_add(m, "when", "step", "budget=50% when=step", 0, 1);
    matrix_add(m, "when", "block", "budget=50% when=block", 0, 1);
    matrix_add(m, "when", "every", "budget=50% when=every(16)", 0, 1);
    matrix_add(m, "page", "1", "page=1", 64, 1);
    matrix_add(m, "page", "1024", "page=1024", 64, 1);
    matrix_add(m, "bytes", "limit", "budget=1MiB", 64, 1);
    matrix_add(m, "d", "128", "", 128, 1);
    matrix_add(m, "d", "80", "", 80, 1);
    matrix_add(m, "d", "33", "", 33, 1);
    matrix_add(m, "d", "1", "", 1, 1);
    matrix_add(m, "RoPE", "none", "", 64, 0);
}
/* Do the entries fit together, and (d not 0) to rows of d? Asked of the parser, whose check every cache
   makes again, and of the estimate, whose plan is that of init. */
static kvmem_status matrix_ask(const char *text, int d, int rope, kvmem_error *error) {
    kvmem_config cfg = kvmem_config_default();
    kvmem_recipe r;
    kvmem_rope turn;
    float freq[64];
    kvmem_bytes bytes;
    kvmem_status status = kvmem_recipe_parse(&r, text, error);
    if (status != KVMEM_OK || !d) return status;
    memset(freq, 0, sizeof freq);
    turn.n_rot = d & ~1;
    turn.neox = 0;
    turn.mscale = 1;
    turn.inv_freq = freq;
    cfg.shape.n_layers = cfg.shape.n_heads = cfg.shape.n_kv_heads = 1;
    cfg.shape.head_dim = d;
    cfg.shape.rope = rope ? &turn : NULL;
    cfg.recipe = &r;
    return kvmem_estimate(&cfg, 256, 0, &bytes, error);
}
/* 0: they fit; else the number of the reason, from 1 on. */
static int matrix_cell(matrix *m, const char *text, int d, int rope) {
    kvmem_error error;
    int i;
    if (matrix_ask(text, d, rope, &error) == KVMEM_OK) return 0;
    for (i = 0; i < m->n_reasons; i++) if (!strcmp(m->reason[i], error.text)) return i + 1;
    if (m->n_reasons == MATRIX_REASONS) return MATRIX_REASONS;
    snprintf(m->reason[m->n_reasons++], sizeof *m->reason, "%s", error.text);
    return m->n_reasons;
}
static int matrix_width(const matrix_column *c) {
    return (int)(strlen(c->sub) > strlen(c->head) ? strlen(c->sub) : strlen(c->head));
}
static int other_side(const kvmem_entry *e, int is_v) { /* is it for the other side alone? */
    return (codec_of(e)->flags & (is_v ? KVMEM_CODEC_KEYS : KVMEM_CODEC_VALUES)) != 0;
}
static void matrix_line(matrix *m, const kvmem_entry *e, int is_v) {
    char text[160];
    int i, bad;
    put("%-14s %-2s", e->word, is_v ? "v" : "k");
    if (other_side(e, is_v)) {
        put(" for %s only\n", is_v ? "keys" : "values");
        return;
    }
    for (i = 0; i < m->n_columns; i++) {
        const matrix_column *c = m->column + i;
        snprintf(text, sizeof text, "codec.%s=%.40s %.60s", is_v ? "v" : "k", e->word, c->term);
        bad = matrix_cell(m, text, c->d, c->rope);
        if (bad) put(" %*d", matrix_width(c), bad);
        else put(" %*s", matrix_width(c), "+");
    }
    snprintf(text, sizeof text, "codec.%s=f16 budget=50%% reduce=demote(%.40s)", is_v ? "v" : "k", e->word);
    bad = matrix_cell(m, text, 0, 1);
    if (bad) put(" %10d\n", bad);
    else put(" %10s\n", "+");
}
static void matrix_head(const matrix *m, int sub) {
    int i;
    put("%-14s %-2s", sub ? "codec" : "", sub ? "of" : "");
    for (i = 0; i < m->n_columns; i++) {
        const matrix_column *c = m->column + i;
        const int again = i && !strcmp(m->column[i - 1].head, c->head);
        put(" %*s", matrix_width(c), sub ? c->sub : again ? "" : c->head);
    }
    put(" %10s\n", sub ? "to it" : "demoted");
}
/* Every entry of one stage beside every entry of another; what is for the other side alone, or
   refused without a certain partner, is left out. */
static void matrix_pairs(matrix *m, int a, int b) {
    const kvmem_entry *x, *y;
    char one[64], two[64], text[160];
    int i, j, asked = 0, bad = 0, why;
    for (i = 0; (x = kvmem_stage_entry((kvmem_stage)a, i)) != NULL; i++)
        for (j = 0; (y = kvmem_stage_entry((kvmem_stage)b, j)) != NULL; j++) {
            if (a == (int)KVMEM_CODEC_K && other_side(x, 0)) continue;
            if (a == (int)KVMEM_CODEC_V && other_side(x, 1)) continue;
            if (b == (int)KVMEM_CODEC_K && other_side(y, 0)) continue;
            if (b == (int)KVMEM_CODEC_V && other_side(y, 1)) continue;
            matrix_term(one, sizeof one, a, x);
            matrix_term(two, sizeof two, b, y);
            if (matrix_cell(m, one, 0, 1) || matrix_cell(m, two, 0, 1)) continue; /* needs a partner */
            snprintf(text, sizeof text, "%s %s", one, two);
            asked++;
            if ((why = matrix_cell(m, text, 0, 1)) == 0) continue;
            if (!bad++) put("%s with %s, all but", kvmem_stage_word((kvmem_stage)a),
                            kvmem_stage_word((kvmem_stage)b));
            put(" %s+%s (%d)", x->word, y->word, why);
        }
    if (bad) put("\n");
    else put("%s with %s: all %d pairs\n", kvmem_stage_word((kvmem_stage)a),
             kvmem_stage_word((kvmem_stage)b), asked);
}
static int list_matrix(void) {
    matrix *m = (matrix *)grow(NULL, 1, sizeof *m);
    const kvmem_entry *e;
    int i, a, b;
    memset(m, 0, sizeof *m);
    matrix_columns(m);
    put("What goes together, asked of the checks that refuse a recipe: + it does; a number: the\n"
        "reason below why not. A row is a codec with its usual parameters for K or for V alone.\n\n");
    matrix_head(m, 0);
    matrix_head(m, 1);
    for (i = 0; (e = kvmem_stage_entry(KVMEM_CODEC_K, i)) != NULL; i++) {
        matrix_line(m, e, 0);
        matrix_line(m, e, 1);
    }
    put("\nEntries of two stages together:\n");
    for (a = 0; a < (int)KVMEM_N_STAGES; a++)
        for (b = a + 1; b < (int)KVMEM_N_STAGES; b++) matrix_pairs(m, a, b);
    put(m->n_reasons ? "\nReasons\n" : "\nNothing is refused.\n");
    for (i = 0; i < m->n_reasons; i++) put("%4d  %s\n", i + 1, m->reason[i]);
    free(m);
    return OK;
}
static int cmd_list(const args *a) {
    if (a->matrix && a->n_words) return misuse("--matrix takes no key");
    if (a->matrix) return list_matrix();
    if (a->n_words) return list_word(a->word[0]);
    list_all();
    return OK;
}
#endif
