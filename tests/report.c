/* The HTML report: what is written is whole, escaped, free of outside references, and says what the
   data say. `test_report --sample FILE` writes an example with made-up figures, to be looked at. */
#define KVMEM_NO_DECODER
#include "test.h"
#include "../tools/report.h"

/* --- a made-up evaluation --------------------------------------------------------------------- */
static const char *const methods[6] = { "full", "window", "streamingllm", "h2o", "tova", "snapkv" };
static const double skill[6] = { 1, 0.95, 0.9, 2.6, 1.9, 5.2 };

static report_cell blank_cell(void) {
    report_cell c;
    memset(&c, 0, sizeof c);
    c.suite = "conv"; c.method = "full"; c.recipe = "full";
    c.budget = 1; c.ctx = 2048; c.depth = -1;
    c.bytes = c.peak = c.full_bytes = c.entries = c.speed = c.first = c.ppl = c.kl = c.top1 = -1;
    return c;
}
static void sample_cells(report_data *d) {
    static const char *const suites[3] = { "conv", "multi", "needle" };
    static const char *const kinds[4] = { "single", "updated", "twice", "chain" };
    static const double budgets[4] = { 0.5, 0.25, 0.125, 0.0625 };
    int s, m, b, x, k;
    for (s = 0; s < 3; s++)
        for (x = 1024; x <= 4096; x *= 2)
            for (m = 0; m < 6; m++)
                for (b = 0; b < (m ? 4 : 1); b++) {
                    report_cell c = blank_cell();
                    char recipe[64];
                    const double share = m ? budgets[b] : 1,
                                 p = m ? 0.97 * (1 - pow(1 - share, skill[m])) : 0.97;
                    sprintf(recipe, m ? "%s budget=%g%%" : "%s", methods[m], 100 * share);
                    c.suite = suites[s];
                    c.method = methods[m];
                    c.recipe = recipe;
                    c.ctx = x;
                    c.budget = share;
                    c.full_bytes = x * 2048.0;
                    c.bytes = c.full_bytes * share * (m == 3 ? 1.02 : 1) + 9000;
                    c.peak = m > 3 ? c.full_bytes * 1.1 : c.bytes * 1.2;
                    c.entries = share; c.speed = 5400 - 300 * m; c.first = 0.3 + 0.1 * m;
                    if (s < 2) { /* the needle's totals are summed by the report */
                        c.asked = 240;
                        c.right = (int)(240 * fmax(0, p - 0.075 * (s == 0)) + 0.5);
                        report_add(d, &c);
                    }
                    if (s == 1) continue;
                    for (k = 0; k < (s == 0 ? 4 : 6); k++) {
                        const double e =
                            s == 2 ? (m == 1 || m == 2 ? (k / 5.0 > 1 - share ? 0.96 : 0.03)
                                                       : fmin(0.98, p + 0.04 * k))
                                   : p - 0.05 * k;
                        c.kind = s == 0 ? kinds[k] : NULL;
                        c.depth = s == 2 ? 200 * k : -1;
                        c.asked = 60;
                        c.right = (int)(60 * fmax(0, fmin(1, e)) + 0.5);
                        report_add(d, &c);
                    }
                }
    for (m = 1; m < 6; m++) {
        report_cell c = blank_cell();
        c.suite = "ppl"; c.method = methods[m]; c.recipe = methods[m]; c.budget = 0.125;
        c.bytes = 270000 * (m == 5 ? 1.3 : 1);
        c.full_bytes = 2200000;
        c.ppl = 3.2 + 1 / skill[m];
        c.kl = 0.4 / skill[m];
        c.top1 = 1 - 0.3 / skill[m];
        report_add(d, &c);
    }
}
static const char *const people[6] = { "Ana", "Ben", "Cleo", "Dan", "Eva", "Finn" };
static const char *const names[8] = {
    " Mia", " Leo", " Zoe", " Max", " Ida", " Tom", " Eli", " Joy"
};
static const char *const attrs[4] = { " city", " pet", " job", " color" };
static const char *const values[12] = { " Paris", " Rome",  " Oslo",  " cat", " dog",  " owl",
                                        " baker", " pilot", " nurse", " red", " blue", " green" };
static const char *const words[24] = { " the",    " soup", " was",   " warm", " and",  " we",
                                       " put",    " more", " salt",  " in",   " it",   " before",
                                       " dinner", " with", " bread", " then", " a",    " pan",
                                       " of",     " rice", " is",    " on",   " fire", " again" };
static void say(report_audit *a, const char *word) { report_audit_token(a, word, strlen(word)); }
static unsigned pick(unsigned n) { return (unsigned)(test_unit() * n) % n; }
/* A conversation of about n tokens with one telling in four lines; where the values are goes to
 * told. */
static int sample_talk(report_audit *a, int n, int *told, int *person, int *attr, int *value) {
    int facts = 0, line = 0, used[32];
    memset(used, 0, sizeof used);
    while (a->n < n) {
        if (line++ % 40 == 0) {
            say(a, "Session");
            say(a, ":");
            say(a, line % 80 == 1 ? " cooking" : " travel");
            say(a, ".\n");
        }
        say(a, people[pick(6)]);
        say(a, ":");
        if (facts < 32 && pick(9) == 0) {
            const unsigned p = pick(8), t = pick(4), v = 3 * t + pick(3);
            if (used[p * 4 + t]++) { say(a, " yes"); say(a, ".\n"); continue; }
            say(a, " the"); say(a, attrs[t]); say(a, " of"); say(a, names[p]); say(a, " is");
            told[facts] = a->n; person[facts] = (int)p; attr[facts] = (int)t; value[facts] = (int)v;
            say(a, values[v]);
            facts++;
        } else {
            int w = 4 + (int)pick(6);
            while (w--) say(a, words[pick(24)]);
        }
        say(a, ".\n");
    }
    return facts;
}
/* The fates that a method of this kind would cause. */
static void sample_fates(report_run *r, int m, double share) {
    const report_audit *a = r->audit;
    const int n = a->n, keep = (int)(n * share);
    int l, g, p, t;
    for (l = 0; l < a->layers; l++)
        for (g = 0; g < a->kv_heads; g++)
            for (p = 0; p < n; p++) {
                const double u = kvmem__unit(
                    kvmem__random(7, (uint64_t)l, (uint64_t)g, (uint64_t)(m == 5 ? p / 3 : p)));
                report_trace(r, l, g, p, KVMEM_FATE_KEPT, p + 1);
                if (m == 0) continue;
                if (m == 1 || (m == 2 && p >= 4)) {
                    t = (p + keep + 63) / 64 * 64;
                    if (t <= n) report_trace(r, l, g, p, KVMEM_FATE_DROPPED, t);
                } else if (m == 3 && p >= 4 && p < n - keep / 2) {
                    t = p + (int)(keep * (0.5 + 0.5 / (u + 0.02)));
                    t = (t + 63) / 64 * 64;
                    if (t <= n) report_trace(r, l, g, p, KVMEM_FATE_DROPPED, t);
                } else if (m == 5 && p < n - 32 && u > share * (0.6 + 1.4 * (double)l / a->layers))
                    report_trace(r, l, g, p, KVMEM_FATE_DROPPED, n);
            }
}
static void sample_audit(report_data *d, int n) {
    static const int shown[6] = { 0, 1, 2, 3, 5, 5 }; /* the last one keeps more, in fewer bits */
    int told[32], person[32], attr[32], value[32], facts, i, k, l;
    report_audit *a = report_audit_begin(d, 4, 2, 64);
    facts = sample_talk(a, n, told, person, attr, value);
    for (i = 0; i < facts; i++) {
        report_question q;
        char text[80];
        memset(&q, 0, sizeof q);
        sprintf(text, "what is the%s of%s?", attrs[attr[i]], names[person[i]]);
        q.kind = i % 5 ? "single" : "updated";
        q.text = text;
        q.want = values[value[i]] + 1;
        q.at = -1;
        q.told[0] = told[i]; q.n_told = 1;
        if (i % 5 == 0) { q.stale[0] = told[i] > 20 ? told[i] - 9 : 0; q.n_stale = 1; }
        report_audit_question(a, &q);
    }
    for (k = 0; k < 6; k++) {
        char recipe[64];
        const double share = k == 5 ? 0.6 : 0.125;
        const char *codec = k == 5 ? "q4_0" : "f16";
        report_run *r;
        sprintf(recipe, k == 5 ? "%s budget=60%% codec=q4_0" : k ? "%s budget=12.5%%" : "%s",
                methods[shown[k]]);
        r = report_run_begin(a, methods[shown[k]], recipe, codec, codec);
        sample_fates(r, shown[k], share);
        report_run_bytes(r, shown[k] ? 262144 + 9000 : 2097152, n);
        for (i = 0; i < facts; i++) {
            int held = 0, ok;
            for (l = 0; l < 8; l++) held += !r->left[(size_t)l * (size_t)a->n + (size_t)told[i]];
            ok = held >= 2;
            report_run_answer(r, i, ok ? values[value[i]] + 1 : values[(value[i] + 1) % 12] + 1,
                              ok);
        }
    }
}
static void sample(report_data *d) {
    report_pair p;
    report_init(d);
    d->title = "kvmem evaluation";
    d->model = "made-up figures: llama, 4 layers, 4 heads, 2 KV heads of 64, 2.6 M weights";
    d->command = "build/test_report --sample report.html";
    d->machine = "no machine";
    d->date = "2000-01-01";
    sample_cells(d);
    memset(&p, 0, sizeof p);
    p.suite = "conv";
    p.a = "snapkv budget=12.5%";
    p.b = "window budget=12.5%";
    p.ctx = 2048;
    p.asked = 240;
    p.both = 30;
    p.only_a = 88; p.only_b = 3; p.diff = 0.354; p.lo = 0.28; p.hi = 0.42;
    report_add_pair(d, &p);
    sample_audit(d, 2048);
}

/* --- checks ----------------------------------------------------------------------------------- */
static const char *temporary(void) { /* one file name for every test of this process */
    static char name[L_tmpnam + 8];
    const char *b = getenv("B");
    if (!name[0]) sprintf(name, "%s/test_report.html", b && strlen(b) < 3 ? b : "build");
    return name;
}
/* The written page; the caller frees it. */
static char *page_of(report_data *d, size_t *size) {
    const char *why = "";
    char *s = NULL;
    if (report_write(d, temporary(), &why)) printf("  %s: %s\n", temporary(), why);
    else s = (char *)test_file(temporary(), size);
    return s;
}
static int count_of(const char *s, const char *what) {
    int n = 0;
    while ((s = strstr(s, what)) != NULL) { n++; s++; }
    return n;
}
/* Elements that are opened are closed, in order: a small reader of tags, scripts skipped. */
static int balanced(const char *s) {
    static char stack[64][24];
    int depth = 0;
    while ((s = strchr(s, '<')) != NULL) {
        char name[24];
        size_t n = 0;
        const int closes = s[1] == '/';
        const char *p = s + 1 + closes, *end;
        if (s[1] == '!') { s++; continue; }
        while (n < 23 && ((p[n] >= 'a' && p[n] <= 'z') || (p[n] >= '0' && p[n] <= '9'))) {
            name[n] = p[n];
            n++;
        }
        name[n] = 0;
        end = strchr(s, '>');
        if (!n || !end) { printf("  stray <%.20s\n", s + 1); return 0; }
        s = end;
        if (!strcmp(name, "meta") || !strcmp(name, "link") || end[-1] == '/') continue;
        if (closes) {
            if (!depth || strcmp(stack[--depth], name)) {
                printf("  </%s> closes nothing\n", name);
                return 0;
            }
            continue;
        }
        if (depth == 64) return 0;
        strcpy(stack[depth++], name);
        if (!strcmp(name, "script") || !strcmp(name, "style")) {
            s = strstr(s, !strcmp(name, "script") ? "</script" : "</style");
            if (!s) return 0;
            s--;
        }
    }
    return depth == 0;
}
static int sane(const char *s) {
    return balanced(s) && !strstr(s, "http") && !strstr(s, "=\"nan") && !strstr(s, ">nan") &&
           !strstr(s, "inf\"") && !strstr(s, " nan") && !strstr(s, "-nan") && !strstr(s, "src=") &&
           !strstr(s, "@import");
}
TEST(the_sample_is_whole_small_and_refers_to_nothing_outside) {
    report_data d; size_t size = 0; char *s;
    sample(&d);
    s = page_of(&d, &size);
    REQUIRE(s != NULL);
    CHECK(size < 2000000 && strlen(s) == size);
    CHECK(sane(s));
    CHECK(count_of(s, "<figure class=\"life coded\"") == 1);
    CHECK(count_of(s, "<figure class=\"life") == 6 &&
          count_of(s, "<figure class=\"plot big\"") == 1);
    CHECK(count_of(s, "<tr>") == d.n_cells + 2 + d.n_pairs + 1 + d.audit->n_questions + 1);
    CHECK(strstr(s, "With 13 % of the memory, <b>snapkv</b> answers only <b class") != NULL);
    CHECK(strstr(s, "<b>window</b> answers") || strstr(s, "<b>streamingllm</b> answers"));
    CHECK(!d.failed);
    free(s); report_free(&d);
}
TEST(an_html_parser_finds_the_sample_balanced) {
    static const char script[] =
        "import sys,html.parser as h\n"
        "class P(h.HTMLParser):\n"
        "    s=[];ids=set()\n"
        "    def handle_starttag(p,t,a):\n"
        "        i=dict(a).get('id')\n"
        "        assert i is None or i not in p.ids,i\n"
        "        p.ids.add(i)\n"
        "        if t not in('meta','link','br','input'):p.s.append(t)\n"
        "    def handle_startendtag(p,t,a):pass\n"
        "    def handle_endtag(p,t):\n"
        "        assert p.s and p.s.pop()==t,(t,p.getpos())\n"
        "p=P();p.feed(open(sys.argv[1],encoding='utf-8').read());p.close()\n"
        "assert not p.s and 'audit-data' in p.ids\n";
    char command[400], py[300];
    report_data d; size_t size; char *s; FILE *f;
    if (system("python3 -c 'import html.parser' 2>/dev/null")) SKIP("no python3");
    sample(&d);
    s = page_of(&d, &size);
    REQUIRE(s != NULL);
    sprintf(py, "%s.py", temporary());
    f = fopen(py, "w");
    REQUIRE(f != NULL);
    fputs(script, f);
    fclose(f);
    sprintf(command, "python3 %s %s", py, temporary());
    CHECK(system(command) == 0);
    remove(py);
    free(s); report_free(&d);
}
TEST(hostile_text_is_shown_and_not_obeyed) {
    static const char evil[] = "<script>alert('1')</script>\"&'</style>\x01\xff\xc0\xaf";
    report_data d;
    report_cell c = blank_cell();
    report_pair p;
    report_question q;
    report_audit *a;
    report_run *r;
    size_t size; char *s; const char *json;
    report_init(&d);
    memset(&p, 0, sizeof p); memset(&q, 0, sizeof q);
    d.title = d.model = d.command = d.machine = d.date = evil;
    c.suite = c.kind = c.method = c.recipe = evil; c.asked = 3; c.right = 1; c.bytes = 10;
    report_add(&d, &c);
    c.kind = NULL; c.depth = 500;
    report_add(&d, &c);
    p.suite = p.a = p.b = evil;
    report_add_pair(&d, &p);
    a = report_audit_begin(&d, 1, 1, 4);
    report_audit_token(a, evil, sizeof evil - 1);
    report_audit_token(a, "\0\n", 2);
    q.kind = q.text = q.want = evil; q.n_told = 1; q.at = -1;
    report_audit_question(a, &q);
    r = report_run_begin(a, evil, evil, evil, evil);
    report_run_answer(r, 0, evil, 0);
    s = page_of(&d, &size);
    REQUIRE(s != NULL);
    CHECK(strlen(s) == size && sane(s));
    CHECK(!strstr(s, "<script>alert") && !strstr(s, "</style>\x01") && !strchr(s, 1) &&
          !strchr(s, 0xff));
    CHECK(count_of(s, "<script") == 2 && count_of(s, "</script>") == 2 &&
          count_of(s, "</style>") == 1);
    CHECK(strstr(s, "&#60;script&#62;alert(&#39;1&#39;)") != NULL);
    json = strstr(s, "id=\"audit-data\">");
    CHECK(json && strstr(json, "\\u003cscript\\u003ealert('1')\\u003c/"
                               "script\\u003e\\u0022\\u0026'"));
    free(s); report_free(&d);
}
TEST(empty_data_and_one_cell_make_pages) {
    report_data d; report_cell c = blank_cell(); size_t size; char *s; const char *why = "";
    report_init(&d);
    s = page_of(&d, &size);
    REQUIRE(s != NULL);
    CHECK(sane(s) && strstr(s, "Nothing was measured") && !strstr(s, "<table"));
    free(s);
    report_audit_begin(&d, 2, 2, 4); /* a conversation without tokens and runs */
    s = page_of(&d, &size);
    CHECK(s && sane(s) && !strstr(s, "id=\"audit\""));
    free(s);
    c.asked = 10; c.right = 8;
    report_add(&d, &c);
    s = page_of(&d, &size);
    REQUIRE(s != NULL);
    CHECK(sane(s) && strstr(s, "<b>full</b> answers <b class=\"num\">80&nbsp;%</b> of the "
                               "questions"));
    CHECK(strstr(s, "49 to 94") != NULL); /* Wilson: 0.4902 to 0.9433 */
    free(s); report_free(&d);
    report_init(&d); /* one cell, bytes known: a panel with one point */
    c.bytes = 1000; c.full_bytes = 1000;
    report_add(&d, &c);
    s = page_of(&d, &size);
    CHECK(s && sane(s) && strstr(s, "plot big"));
    free(s);
    CHECK(report_write(&d, "build/no/such/folder/report.html", &why) && strstr(why, "opened"));
    d.failed = 1;
    CHECK(report_write(&d, temporary(), &why) && strstr(why, "memory"));
    report_free(&d);
    remove(temporary());
}
TEST(kinds_and_depths_add_up_unless_the_total_is_given) {
    report_data d; report_points P; report_cell c = blank_cell(); int i, k;
    for (k = 0; k < 2; k++) {
        report_init(&d);
        c.kind = "single"; c.asked = 10; c.right = 9; report_add(&d, &c);
        c.kind = "chain"; c.right = 1; report_add(&d, &c);
        c.kind = NULL; c.asked = 30; c.right = 15;
        if (k) report_add(&d, &c);
        c.suite = "needle"; c.depth = 0; c.asked = 4; c.right = 4; report_add(&d, &c);
        c.depth = 500; c.right = 1; report_add(&d, &c);
        REQUIRE(report_points_make(&P, &d, 0) == 0);
        CHECK(P.n == 4 && P.main >= 0 && !strcmp(P.p[P.main].suite, "conv") && !P.p[P.main].kind);
        for (i = 0; i < P.n; i++) {
            if (P.p[i].kind) CHECK(P.p[i].asked == 10);
            else if (!strcmp(P.p[i].suite, "conv"))
                CHECK(P.p[i].asked == (k ? 30 : 20) && P.p[i].right == (k ? 15 : 10));
            else CHECK(P.p[i].asked == 8 && P.p[i].right == 5);
        }
        free(P.p); report_free(&d);
        c = blank_cell();
    }
}
/* The audit's data as the script reads them. */
static int digit64(int c) {
    return c >= 'A' && c <= 'Z'   ? c - 'A'
           : c >= 'a' && c <= 'z' ? c - 'a' + 26
           : c >= '0' && c <= '9' ? c - '0' + 52
           : c == '+'             ? 62
           : c == '/'             ? 63
                                  : -1;
}
static unsigned long next_number(const char *s, size_t *bit, size_t end) {
    unsigned long x = 0, b = 128;
    int shift = 0, i;
    while (b > 127 && *bit + 8 <= end) {
        b = 0;
        for (i = 0; i < 8; i++, (*bit)++)
            b = b << 1 | (unsigned long)(digit64(s[*bit / 6]) >> (5 - *bit % 6) & 1);
        x |= (b & 127) << shift;
        shift += 7;
    }
    return x;
}
TEST(embedded_fates_are_the_traced_ones) {
    report_data d;
    report_audit *a;
    report_run *r;
    size_t size, at, bit;
    char *s;
    const char *p;
    int t, l, wrong = 0;
    long moment[300]; int n_moments = 0;
    report_init(&d);
    a = report_audit_begin(&d, 2, 1, 4);
    for (t = 0; t < 300; t++) report_audit_token(a, "x", 1);
    r = report_run_begin(a, "m", "m", "f16", "f16");
    for (t = 0; t < 600; t++) {
        report_trace(r, t / 300, 0, t % 300, KVMEM_FATE_KEPT, 300);
        if (t % 300 < 150 ? t % 2 : t % 7 == 0)
            report_trace(r, t / 300, 0, t % 300, t % 3 ? KVMEM_FATE_DROPPED : KVMEM_FATE_MERGED,
                         300 + t * t % 97);
        if (t == 10) report_trace(r, 0, 0, 10, KVMEM_FATE_RECODED, 301);
    }
    report_trace(r, 0, 0, 300, KVMEM_FATE_DROPPED, 5); /* behind the conversation, or nowhere */
    report_trace(r, 2, 0, 0, KVMEM_FATE_DROPPED, 5);
    report_trace(r, 0, 1, 0, KVMEM_FATE_DROPPED, 5);
    report_trace(r, 0, 0, -1, KVMEM_FATE_DROPPED, 5);
    s = page_of(&d, &size);
    REQUIRE(s != NULL);
    CHECK(sane(s));
    p = strstr(s, "\"times\":[");
    REQUIRE(p != NULL);
    p += 9;
    while (n_moments < 300 && *p >= '0' && *p <= '9') {
        moment[n_moments++] = strtol(p, NULL, 10);
        p += strcspn(p, ",]");
        if (*p == ',') p++;
    }
    p = strstr(p, "\"lanes\":[\"");
    REQUIRE(p != NULL);
    p += 10;
    for (l = 0; l < 2; l++) {
        const size_t end = strcspn(p, "\"") * 6;
        for (bit = 0, at = 0; at < 300 && bit + 8 <= end;) {
            const unsigned long code = next_number(p, &bit, end), run = next_number(p, &bit, end);
            size_t i;
            for (i = 0; i < run && at < 300; i++, at++) {
                const size_t x = (size_t)l * 300 + at;
                const long left = code ? moment[code / 2 - 1] : 0;
                wrong += left != r->left[x] ||
                         (code && (code & 1) != (unsigned long)(r->how[x] == KVMEM_FATE_MERGED));
            }
        }
        CHECK(at == 300);
        p += end / 6 + 3;
    }
    CHECK(wrong == 0 && strstr(p, "\"rtimes\":[301]"));
    free(s); report_free(&d);
}
TEST(long_audits_show_fewer_layers_and_stay_small) {
    report_data d; report_audit *a; report_run *r; size_t size = 0; char *s; int t, l, k;
    report_init(&d);
    a = report_audit_begin(&d, 32, 2, 4);
    for (t = 0; t < 8192; t++) report_audit_token(a, " word", 5);
    for (k = 0; k < 3; k++) {
        r = report_run_begin(a, "random", "random", "f16", "f16");
        for (l = 0; l < 64; l++)
            for (t = 0; t < 8192; t += 1 + (int)pick(3))
                report_trace(r, l / 2, l % 2, t, KVMEM_FATE_DROPPED, t + 1 + (int)pick(100));
    }
    s = page_of(&d, &size);
    REQUIRE(s != NULL);
    CHECK(size < 2000000 && sane(s) && !strstr(s, "\"step\":1,"));
    free(s); report_free(&d);
}
int main(int argc, char **argv) {
    const char *why;
    report_data d;
    if (argc == 3 && !strcmp(argv[1], "--sample")) {
        int bad;
        sample(&d);
        bad = report_write(&d, argv[2], &why);
        if (bad) printf("%s: %s\n", argv[2], why);
        report_free(&d);
        return bad;
    }
    test_begin(argc, argv, "report");
    RUN(the_sample_is_whole_small_and_refers_to_nothing_outside);
    RUN(an_html_parser_finds_the_sample_balanced);
    RUN(hostile_text_is_shown_and_not_obeyed);
    RUN(empty_data_and_one_cell_make_pages);
    RUN(kinds_and_depths_add_up_unless_the_total_is_given);
    RUN(embedded_fates_are_the_traced_ones);
    RUN(long_audits_show_fewer_layers_and_stay_small);
    return test_end();
}
