/* Arithmetic in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11D), and the matrices of the code.
 *
 * The code is systematic: shard n is row n of a matrix times the column of data shards, and
 * the first K rows are the identity.  docs/erasure-code.md has the definition.
 */
#ifndef TORUS_ERASURE_FIELD_H
#define TORUS_ERASURE_FIELD_H

#include <stdint.h>
#include <string.h>

#define TORUS_ERASURE_DATA_MAX 16
#define TORUS_ERASURE_PARITY_MAX 6
#define TORUS_ERASURE_SHARDS_MAX (TORUS_ERASURE_DATA_MAX + TORUS_ERASURE_PARITY_MAX)
#define TORUS_ERASURE_FACTORS_MAX (TORUS_ERASURE_DATA_MAX * TORUS_ERASURE_PARITY_MAX)

/* A product a * b is torus_field_product[a][b]: 64 KiB, of which a factor uses 256 bytes. */
static uint8_t torus_field_product[256][256];
static uint8_t torus_field_inverse[256];
static uint8_t torus_field_power[255]; /* of the generator, 2 */

static uint8_t torus_field_double(uint8_t a) {
    return (uint8_t)((a << 1) ^ ((a & 0x80) ? 0x1D : 0));
}

static void torus_field_init(void) {
    for (int a = 0; a < 256; a++)
        for (int b = 1; b < 256; b++) {
            uint8_t half = torus_field_double(torus_field_product[a][b >> 1]);
            torus_field_product[a][b] = half ^ ((b & 1) ? (uint8_t)a : 0);
            if (torus_field_product[a][b] == 1) torus_field_inverse[a] = (uint8_t)b;
        }
    torus_field_power[0] = 1;
    for (int n = 1; n < 255; n++)
        torus_field_power[n] = torus_field_double(torus_field_power[n - 1]);
}

typedef uint8_t torus_field_row[TORUS_ERASURE_DATA_MAX];

/* Multiply a row of k factors by a matrix of k rows. */
static void torus_field_row_times(
    torus_field_row result, const torus_field_row row, const torus_field_row *matrix, int k) {
    torus_field_row sum = {0};
    for (int i = 0; i < k; i++)
        for (int j = 0; j < k; j++) sum[j] ^= torus_field_product[row[i]][matrix[i][j]];
    memcpy(result, sum, sizeof sum);
}

/* Add `factor` times a row of k factors to another. */
static void torus_field_row_add(
    torus_field_row to, const torus_field_row row, uint8_t factor, int k) {
    for (int j = 0; j < k; j++) to[j] ^= torus_field_product[factor][row[j]];
}

/* Invert k rows by elimination; `from` is used up.  Return -1 when they do not span the space. */
static int torus_field_invert(torus_field_row *from, torus_field_row *inverse, int k) {
    memset(inverse, 0, (size_t)k * sizeof *inverse);
    for (int i = 0; i < k; i++) inverse[i][i] = 1;
    for (int column = 0; column < k; column++) {
        int pivot = column;
        while (pivot < k && !from[pivot][column]) pivot++;
        if (pivot == k) return -1;
        if (pivot != column) { /* a row that is added need not be swapped */
            torus_field_row_add(from[column], from[pivot], 1, k);
            torus_field_row_add(inverse[column], inverse[pivot], 1, k);
        }
        uint8_t scale = torus_field_inverse[from[column][column]];
        for (int j = 0; j < k; j++) {
            from[column][j] = torus_field_product[scale][from[column][j]];
            inverse[column][j] = torus_field_product[scale][inverse[column][j]];
        }
        for (int row = 0; row < k; row++) {
            uint8_t factor = from[row][column];
            if (row == column || !factor) continue;
            torus_field_row_add(from[row], from[column], factor, k);
            torus_field_row_add(inverse[row], inverse[column], factor, k);
        }
    }
    return 0;
}

/* Fill the k + m rows of the code: a Vandermonde matrix over the points 0, 1, 2, 4, 8, ..
 * (0 and the powers of the generator) times the inverse of its own first k rows. */
static int torus_erasure_matrix(torus_field_row *matrix, int k, int m) {
    torus_field_row top[TORUS_ERASURE_DATA_MAX], inverse[TORUS_ERASURE_DATA_MAX];
    memset(matrix, 0, (size_t)(k + m) * sizeof *matrix);
    matrix[0][0] = 1;
    for (int row = 1; row < k + m; row++)
        for (int j = 0; j < k; j++) matrix[row][j] = torus_field_power[(row - 1) * j % 255];
    memcpy(top, matrix, (size_t)k * sizeof *top);
    if (torus_field_invert(top, inverse, k)) return -1;
    for (int row = 0; row < k + m; row++)
        torus_field_row_times(matrix[row], matrix[row], (const torus_field_row *)inverse, k);
    return 0;
}

/* Fill a row for each wanted shard: what each of the k shards in `have` contributes to it.
 *
 * Only what is lost of the data is unknown: as many equations as there are parity shards in
 * `have`, which is as many as data shards are not.  Return -1 when they have no solution.
 */
static int torus_erasure_solve(torus_field_row *sums, const torus_field_row *matrix, int k,
                               const uint8_t *have, const uint8_t *wanted, int wanted_count) {
    torus_field_row left[TORUS_ERASURE_PARITY_MAX], inverse[TORUS_ERASURE_PARITY_MAX];
    torus_field_row solved[TORUS_ERASURE_PARITY_MAX] = {{0}};
    int place[TORUS_ERASURE_SHARDS_MAX]; /* of a shard in `have`; -1 - n: the nth lost one */
    int lost[TORUS_ERASURE_PARITY_MAX], parity[TORUS_ERASURE_PARITY_MAX], losses = 0, given = 0;
    for (int shard = 0; shard < k; shard++) place[shard] = -1;
    for (int i = 0; i < k; i++) {
        place[have[i]] = i;
        if (have[i] >= k) parity[given++] = i;
    }
    for (int shard = 0; shard < k; shard++)
        if (place[shard] < 0) {
            lost[losses] = shard;
            place[shard] = -1 - losses++;
        }
    for (int a = 0; a < given; a++)
        for (int b = 0; b < losses; b++) left[a][b] = matrix[have[parity[a]]][lost[b]];
    if (given != losses || torus_field_invert(left, inverse, losses)) return -1;
    for (int b = 0; b < losses; b++)
        for (int a = 0; a < losses; a++) {
            const uint8_t *row = matrix[have[parity[a]]];
            const uint8_t *products = torus_field_product[inverse[b][a]];
            solved[b][parity[a]] ^= inverse[b][a];
            for (int shard = 0; shard < k; shard++)
                if (place[shard] >= 0) solved[b][place[shard]] ^= products[row[shard]];
        }
    memset(sums, 0, (size_t)wanted_count * sizeof *sums);
    for (int i = 0; i < wanted_count; i++)
        for (int shard = 0; shard < k; shard++) {
            uint8_t factor = matrix[wanted[i]][shard];
            if (place[shard] >= 0) sums[i][place[shard]] ^= factor;
            else if (factor) torus_field_row_add(sums[i], solved[-1 - place[shard]], factor, k);
        }
    return 0;
}

#endif
