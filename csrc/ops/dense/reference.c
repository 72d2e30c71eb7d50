// The specification of dense: products and sums in double.

#include "args.h"
#include "../numbers.h"

#include <stdlib.h>

void fathom_dense_reference(const fathom_dense_args * a) {
    const int64_t n_cols = a->n_cols, n_rows = a->n_rows;
    double * x = malloc(sizeof(double) * (size_t) n_cols);
    for (int64_t i = 0; i < (int64_t) a->n_tokens * a->n_groups; i++) {
        for (int64_t c = 0; c < n_cols; c++) {
            x[c] = a->x[i * n_cols + c];
        }
        fathom_round_to_bytes(x, a->n_cols);
        for (int64_t r = 0; r < n_rows; r++) {
            const uint8_t * row = (const uint8_t *) a->weights + (i % a->n_groups * n_rows + r) * a->row_bytes;
            double          sum = 0;
            for (int64_t c = 0; c < n_cols; c++) {
                const uint8_t * block = row + 34 * (c / 32);
                uint16_t        step;
                memcpy(&step, block, 2);
                sum += (double) fathom_f32_from_f16(step) * (int8_t) block[2 + c % 32] * x[c];
            }
            a->y[i * n_rows + r] = (float) sum;
        }
    }
    free(x);
}
