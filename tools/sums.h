/* sums.h - what `kvmem profile` adds up, as functions of rows of attention and of lists of numbers,
   apart from the model. Include after kvmem.h's implementation. */
#ifndef SUMS_H
#define SUMS_H

/* Echo and induction of one row: the query at u of a text that repeats itself after `period` tokens; row[0] is the
   begin token, row[1 + t] token t. Adds the probability on earlier occurrences of its token, and on what followed. */
static void sums_repeat(const float *row, int u, int period, double *echo, double *induction) {
    int t;
    for (t = u % period; t < u; t += period) {
        *echo += (double)row[t + 1];
        *induction += (double)row[t + 2];
    }
}
/* One step of an answer that gave token x, with row (n) over the text id; the needle is [a, b). Adds 1 / m to
   retrieval if the highest entry (ties: the first) lies in it and is x, and to semantic the probability on the
   whole needle, once for each of its entries that is x. */
static void sums_needle(const float *row, int n, const int *id, int a, int b, int x, double *retrieval,
                        double *semantic) {
    double mass = 0;
    int j, top = 0, many = 0;
    for (j = 1; j < n; j++)
        if (row[j] > row[top]) top = j;
    for (j = a; j < b; j++) {
        mass += (double)row[j];
        many += id[j] == x;
    }
    if (top >= a && top < b && id[top] == x) *retrieval += 1.0 / (b - a);
    *semantic += many * mass;
}
/* Mean over positions of the sums of p up to each, p the softmax of s (n): (n + 1) / 2n for a flat one. */
static double sums_far(const double *s, int n) {
    double top = s[0], sum = 0, up = 0, mean = 0;
    int t;
    for (t = 0; t < n; t++) top = s[t] > top ? s[t] : top;
    for (t = 0; t < n; t++) sum += exp(s[t] - top);
    for (t = 0; t < n; t++) {
        up += exp(s[t] - top) / sum;
        mean += up / n;
    }
    return mean;
}
/* Slopes (n) of the upper hull of the sums of u (n) in the order idx; they never rise. sum and at: (n + 1). */
static void sums_hull(const double *u, const int *idx, int n, double *sum, int *at, float *slope) {
    int i, t, m = 1;
    sum[0] = 0;
    for (i = 0; i < n; i++) sum[i + 1] = sum[i] + u[idx[i]];
    at[0] = 0;
    for (i = 1; i <= n; i++) { /* points of the hull so far: at[0..m) */
        while (m > 1 && (sum[at[m - 1]] - sum[at[m - 2]]) * (i - at[m - 2]) <=
                            (sum[i] - sum[at[m - 2]]) * (at[m - 1] - at[m - 2])) m--;
        at[m++] = i;
    }
    for (i = 1; i < m; i++)
        for (t = at[i - 1]; t < at[i]; t++) slope[t] = (float)((sum[at[i]] - sum[at[i - 1]]) / (at[i] - at[i - 1]));
}
/* Falling order of score (n); the first `sink` and the last one in front of all. Ties: lower index. */
static void sums_order(const float *score, int n, int sink, int *idx) {
    int i, j, k;
    for (i = 0; i < n; i++) {
        const int lead = i < sink || i == n - 1;
        for (j = i; j > 0; j--) {
            const int o = idx[j - 1], before = o < sink || o == n - 1;
            if (before > lead || (before == lead && score[o] >= score[i])) break;
        }
        for (k = i; k > j; k--) idx[k] = idx[k - 1];
        idx[j] = i;
    }
}
#endif
