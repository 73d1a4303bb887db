/* picture - quality against bits a value for all codecs: the CSV of build/bench_codecs as one SVG
   that needs nothing else and is read in light and in dark.

       build/bench_codecs --csv --no-speed > codecs.csv
       build/picture codecs.csv > codecs.svg          (or: make picture)

   Across: bits a value, all metadata counted, the mean of K and V where both are coded. Up: KL
   divergence to the full cache in nats a token; lower is better. Both axes are logarithmic. Points
   of one codec at several bits are joined; a line below which nothing lies is the best that is
   measured. A name stands at a point of its curve where it hides the least. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_POINTS = 256,
    MAX_CURVES = 64,
    MAX_COLUMNS = 40,
    W = 920,
    H = 616,
    X0 = 64,
    X1 = 890,
    Y0 = 60,
    Y1 = 540
};

typedef struct point { double bits, kl, x, y; int curve, hollow, best; } point;
typedef struct curve { char name[64]; int family; double lx, ly; int right, placed; } curve;
static point points[MAX_POINTS];
static curve curves[MAX_CURVES];
static int n_points, n_curves;
static double bits_lo = 1e9, bits_hi, kl_lo = 1e9, kl_hi;

/* Families share a colour: one for light, one for dark paper. */
static const struct { const char *name, *light, *dark, *words;
} families[] = { { "blocks of 32", "#1f6fb4", "#6db3f2",
                   " q8_0 q4_0 q4_1 q5_0 q5_1 iq4_nl had khad vhad attn_rot f16 bf16 " },
                 { "affine, by channel or token", "#b3541e", "#f0985a",
                   " kivi kvquant mikv zip zipcache gear gear-l gear-kcvt " },
                 { "rotations", "#1d7a46", "#5fcf8e",
                   " turboquant octopus polarquant polark qjl rotatekv rht " },
                 { "vectors and rank", "#8a3fa0", "#d08ae6", " vq a2ats lowrank think " },
                 { "others", "#666666", "#aaaaaa", "" } };
enum { FAMILIES = 5 };

static int family_of(const char *name) {
    const char *const stop[2] = { " (", " (_-" };
    char word[80];
    int i, k;
    for (k = 0; k < 2;
         k++) /* the word; then what stands before a '_' or '-' in it, as in kvquant_v */
        for (i = 0; i + 1 < FAMILIES; i++) {
            snprintf(word, sizeof word, " %.*s ", (int)strcspn(name, stop[k]), name);
            if (strlen(word) < 70 && strstr(families[i].words, word)) return i;
        }
    return FAMILIES - 1;
}
/* The curve of a row: its label without "bits=N" and "preset", "centred" for center=head. A preset of
   the name of a codec is left out: the codec's curve is there. -1: no curve. */
static int curve_of(const char *label) {
    const int preset = !strncmp(label, "preset ", 7);
    char name[64];
    const char *s;
    size_t n = 0;
    int i;
    for (s = label + (preset ? 7 : 0); *s && n + 1 < sizeof name; s++) {
        if (!strncmp(s, "bits=", 5)) { s += 5 + strspn(s + 5, "0123456789,") - 1; continue; }
        name[n++] = *s;
    }
    name[n] = 0;
    if (n > 13 && !strcmp(name + n - 13, "(center=head)")) {
        strcpy(name + n - 13, " centred");
        n -= 5;
    }
    if (n > 2 && !strcmp(name + n - 2, "()")) name[n - 2] = 0;
    for (i = 0; i < n_curves; i++) if (!strcmp(curves[i].name, name)) return preset ? -1 : i;
    if (n_curves == MAX_CURVES) return -1;
    memset(curves + n_curves, 0, sizeof *curves);
    snprintf(curves[n_curves].name, sizeof curves[n_curves].name, "%s", name);
    curves[n_curves].family = family_of(name);
    return n_curves++;
}

/* ---- reading */

static int split(char *line, char **cell) {
    int n = 0;
    char *s = line;
    line[strcspn(line, "\r\n")] = 0;
    for (;;) {
        if (n < MAX_COLUMNS) cell[n++] = s;
        if (*s == '"') { /* a quoted cell: commas inside */
            cell[n - 1] = ++s;
            while (*s && *s != '"') s++;
            if (*s) *s++ = 0;
        }
        s += strcspn(s, ",");
        if (!*s) return n;
        *s++ = 0;
    }
}
static double number(const char *s) {
    char *end;
    const double v = strtod(s, &end);
    return end != s ? v : -1;
}
static int read_csv(FILE *f, const char *path) {
    char line[2048], *cell[MAX_COLUMNS];
    int name = -1, k = -1, v = -1, kl = -1, n, i;
    while (fgets(line, sizeof line, f)) {
        point p;
        double bk, bv;
        if (*line == '#') continue;
        n = split(line, cell);
        if (name < 0) { /* the header */
            for (i = 0; i < n; i++) {
                if (!strcmp(cell[i], "codec")) name = i;
                if (!strcmp(cell[i], "bits K")) k = i;
                if (!strcmp(cell[i], "bits V")) v = i;
                if (!strcmp(cell[i], "KL")) kl = i;
            }
            if (name < 0 || k < 0 || v < 0 || kl < 0) {
                fprintf(stderr, "picture: %s: the first line lacks codec, bits K, bits V or KL\n",
                        path);
                return 1;
            }
            continue;
        }
        if (n <= name || n <= k || n <= v || n <= kl || n_points == MAX_POINTS) continue;
        memset(&p, 0, sizeof p);
        bk = number(cell[k]);
        bv = number(cell[v]);
        p.kl = number(cell[kl]);
        p.hollow = bk < 0 || bv < 0;
        p.bits = p.hollow ? (bk > bv ? bk : bv) : 0.5 * (bk + bv);
        if (!(p.kl > 0) || !(p.bits > 0) || p.bits > 10) continue;
        for (i = 0; i < n_points && (points[i].bits != p.bits || points[i].kl != p.kl);) i++;
        if (i < n_points || (p.curve = curve_of(cell[name])) < 0) continue; /* the same under two names */
        if (p.bits < bits_lo) bits_lo = p.bits;
        if (p.bits > bits_hi) bits_hi = p.bits;
        if (p.kl < kl_lo) kl_lo = p.kl;
        if (p.kl > kl_hi) kl_hi = p.kl;
        points[n_points++] = p;
    }
    if (!n_points) fprintf(stderr, "picture: %s: no row has bits and KL\n", path);
    return !n_points;
}

/* ---- where things stand */

static double x_of(double bits) {
    return X0 + (X1 - X0) * log(bits / bits_lo) / log(bits_hi / bits_lo);
}
static double y_of(double kl) { return Y1 - (Y1 - Y0) * log(kl / kl_lo) / log(kl_hi / kl_lo); }

static int by_bits(const void *a, const void *b) {
    const point *p = (const point *)a, *q = (const point *)b;
    if (p->curve != q->curve) return p->curve < q->curve ? -1 : 1;
    return p->bits < q->bits ? -1 : p->bits > q->bits;
}
static void place_points(void) {
    int i, j;
    bits_lo *= 0.93;
    bits_hi *= 1.06;
    kl_lo /= 1.5;
    kl_hi *= 1.5;
    qsort(points, (size_t)n_points, sizeof *points, by_bits);
    for (i = 0; i < n_points; i++) {
        points[i].x = x_of(points[i].bits);
        points[i].y = y_of(points[i].kl);
        points[i].best = !points[i].hollow;
        for (j = 0; j < n_points; j++)
            if (!points[j].hollow && points[j].bits <= points[i].bits &&
                points[j].kl < points[i].kl)
                points[i].best = 0;
    }
}
/* How much of a box is hidden by points, lines and other names. */
static double hidden(double x, double y, double w, double h, int own) {
    double sum = 0;
    int i;
    if (x < X0 || x + w > W - 4 || y < Y0 - 10 || y + h > Y1) sum += 500;
    for (i = 0; i < n_points; i++) {
        int k;
        if (points[i].x > x - 6 && points[i].x < x + w + 6 && points[i].y > y - 6 &&
            points[i].y < y + h + 6)
            sum += 20;
        if (i + 1 == n_points || points[i + 1].curve != points[i].curve) continue;
        for (k = 1; k < 24; k++) { /* the line to the next point */
            const double px = points[i].x + (points[i + 1].x - points[i].x) * k / 24,
                         py = points[i].y + (points[i + 1].y - points[i].y) * k / 24;
            if (px > x && px < x + w && py > y && py < y + h)
                sum += points[i].curve == own ? 0.7 : 1;
        }
    }
    for (i = 0; i < n_curves; i++) {
        const curve *c = curves + i;
        const double cw = 6.4 * (double)strlen(c->name), cx = c->right ? c->lx : c->lx - cw;
        if (c->placed && cx < x + w && x < cx + cw && c->ly - 11 < y + h && y < c->ly + 3)
            sum += 100;
    }
    return sum;
}
static void place_name(int at) {
    static const double step[][2] = { { 8, 4 },   { 8, -6 },   { 8, 14 },  { 4, -10 },
                                      { 4, 20 },  { 12, -18 }, { 12, 28 }, { 16, -30 },
                                      { 16, 40 }, { 24, -44 }, { 24, 54 } };
    curve *c = curves + at;
    const double w = 6.4 * (double)strlen(c->name);
    double best = 1e9;
    int i, right;
    size_t k;
    for (i = 0; i < n_points; i++) {
        if (points[i].curve != at) continue;
        for (k = 0; k < sizeof step / sizeof *step; k++)
            for (right = 0; right < 2; right++) {
                const double x = points[i].x + (right ? step[k][0] : -step[k][0] - w),
                             y = points[i].y + step[k][1];
                const double bad = hidden(x, y - 10, w, 13, at) + 1.2 * (double)k;
                if (bad >= best) continue;
                best = bad;
                c->lx = right ? x : x + w;
                c->ly = y;
                c->right = right;
            }
    }
    c->placed = 1;
}

/* ---- writing */

static void text_of(const char *s) {
    for (; *s; s++) {
        if (*s == '<') printf("&lt;");
        else if (*s == '&') printf("&amp;");
        else putchar(*s);
    }
}
static void put_style(void) {
    int i;
    printf("<style>\n:root{color-scheme:light dark}\n"
           "text{font:12px system-ui,-apple-system,Segoe UI,sans-serif;fill:#333}\n"
           ".paper{fill:#fff}.grid{stroke:#e4e4e4}.tick{fill:#666}.head{font-size:15px;font-weight:"
           "600;fill:#111}\n"
           ".best{stroke:#999;stroke-width:7;stroke-opacity:.28;fill:none;stroke-linejoin:round}\n"
           ".halo{stroke:#fff;stroke-width:3;paint-order:stroke;stroke-linejoin:round}\n");
    for (i = 0; i < FAMILIES; i++)
        printf(".c%d{stroke:%s}.f%d{fill:%s}\n", i, families[i].light, i, families[i].light);
    printf(".line{fill:none;stroke-width:1.3;stroke-opacity:.55}.open{stroke-width:1.6}.open{fill:#"
           "fff}\n"
           "@media "
           "(prefers-color-scheme:dark){\ntext{fill:#d6d6d6}.paper{fill:#0d1117}.grid{stroke:#"
           "2b3138}\n"
           ".tick{fill:#9aa4ae}.head{fill:#f0f0f0}.halo{stroke:#0d1117}.open{fill:#0d1117}\n");
    for (i = 0; i < FAMILIES; i++)
        printf(".c%d{stroke:%s}.f%d{fill:%s}\n", i, families[i].dark, i, families[i].dark);
    printf("}\n</style>\n");
}
static void put_axes(void) {
    static const double bits[] = { 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9 };
    size_t i;
    int e, k;
    for (i = 0; i < sizeof bits / sizeof *bits; i++) {
        if (bits[i] < bits_lo || bits[i] > bits_hi) continue;
        printf("<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>"
               "<text class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n",
               x_of(bits[i]), x_of(bits[i]), Y0, Y1, x_of(bits[i]), Y1 + 18, bits[i]);
    }
    for (e = -9; e < 4; e++)
        for (k = 1; k <= 3; k += 2) { /* 1 and 3 of each decade */
            const double v = k * pow(10, e);
            if (v < kl_lo || v > kl_hi) continue;
            printf("<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                   "<text class=\"tick\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                   X0, X1, y_of(v), y_of(v), X0 - 8, y_of(v) + 4, v);
        }
    printf(
        "<text class=\"head\" x=\"%d\" y=\"24\">Quality against bits a value, every codec</text>\n",
        X0);
    printf("<text class=\"tick\" x=\"%d\" y=\"42\">KL divergence to the full cache, nats a token "
           "(lower is better)</text>\n", X0);
    printf("<text class=\"tick\" x=\"%d\" y=\"%d\" text-anchor=\"end\">bits a value, all metadata "
           "counted"
           " (float16: 16)</text>\n",
           X1, Y1 + 36);
}
static void put_best(void) { /* the lower envelope, from few bits to many */
    double after = 0;
    int i, at, first = 1;
    printf("<path class=\"best\" d=\"");
    for (;;) {
        for (at = -1, i = 0; i < n_points; i++)
            if (points[i].best && points[i].bits > after &&
                (at < 0 || points[i].bits < points[at].bits))
                at = i;
        if (at < 0) break;
        printf("%c%.1f %.1f", first ? 'M' : 'L', points[at].x, points[at].y);
        first = 0;
        after = points[at].bits;
    }
    printf("\"/>\n");
}
static void put_points(void) {
    int i;
    for (i = 0; i < n_points; i++) {
        const point *p = points + i;
        const int f = curves[p->curve].family,
                  next = i + 1 < n_points && points[i + 1].curve == p->curve;
        if (next)
            printf("<path class=\"line c%d\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", f, p->x, p->y,
                   points[i + 1].x, points[i + 1].y);
    }
    for (i = 0; i < n_points; i++) {
        const point *p = points + i;
        const int f = curves[p->curve].family;
        printf(p->hollow ? "<circle class=\"open c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.6\"><title>"
                         : "<circle class=\"f%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.8\"><title>",
               f, p->x, p->y);
        text_of(curves[p->curve].name);
        printf(": %.2f bits, KL %.3g</title></circle>\n", p->bits, p->kl);
    }
}
static void put_names(void) {
    int i, x = X0 + 4;
    for (i = 0; i < n_curves; i++) {
        const curve *c = curves + i;
        printf("<text class=\"halo f%d\" x=\"%.1f\" y=\"%.1f\"%s>", c->family, c->lx, c->ly,
               c->right ? "" : " text-anchor=\"end\"");
        text_of(c->name);
        printf("</text>\n");
    }
    for (i = 0; i < FAMILIES; i++) {
        int j, has = 0;
        for (j = 0; j < n_curves; j++) has |= curves[j].family == i;
        if (!has) continue;
        printf("<circle class=\"f%d\" cx=\"%d\" cy=\"%d\" r=\"4\"/>"
               "<text class=\"f%d\" x=\"%d\" y=\"%d\">%s</text>\n",
               i, x, H - 16, i, x + 10, H - 12, families[i].name);
        x += 36 + (int)(6.6 * (double)strlen(families[i].name));
    }
    printf("<text class=\"tick\" x=\"%d\" y=\"42\" text-anchor=\"end\">open circle: only K or only "
           "V is coded; grey"
           " band: the best at its size</text>\n",
           X1);
}

int main(int argc, char **argv) {
    FILE *f = argc == 2 && strcmp(argv[1], "-") ? fopen(argv[1], "r") : stdin;
    int i, bad;
    if (argc != 2) { fprintf(stderr, "usage: picture CODECS.csv > PICTURE.svg\n"); return 2; }
    if (!f) { fprintf(stderr, "picture: %s: cannot open\n", argv[1]); return 1; }
    bad = read_csv(f, argv[1]);
    if (f != stdin) fclose(f);
    if (bad) return 1;
    place_points();
    for (i = 0; i < n_curves; i++) place_name(i);
    printf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
           "height=\"%d\" role=\"img\" "
           "aria-label=\"KL divergence to the full cache against bits a value, for all codecs\">\n",
           W, H, W, H);
    put_style();
    printf("<rect class=\"paper\" width=\"%d\" height=\"%d\"/>\n", W, H);
    put_axes();
    put_best();
    put_points();
    put_names();
    printf("</svg>\n");
    return fflush(stdout) != 0;
}
