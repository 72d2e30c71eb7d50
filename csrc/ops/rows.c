// The functions of rows.h for callers outside csrc/ops.
#include "rows.h"

int64_t fathom_row_bytes(int32_t row_type, int32_t d, int32_t n_rot) {
    return fathom_row_bytes_of(row_type, d, n_rot);
}

void fathom_row_store(int32_t row_type, int32_t d, int32_t n_rot, const float * x, void * row) {
    fathom_row_store_of(row_type, d, n_rot, x, row);
}

void fathom_row_load(int32_t row_type, int32_t d, int32_t n_rot, const void * row, float * x) {
    fathom_row_load_of(row_type, d, n_rot, row, x);
}
