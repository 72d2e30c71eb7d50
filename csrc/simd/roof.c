// What this processor can do at most with one instruction set: benches print their numbers beside it.
#include "vec.h"

enum { CHAINS = 12 };  // enough to hide the latency of a multiply-add, few enough for 16 registers

int64_t FATHOM_KERNEL(roof_fma)(int64_t n, float * sink) {
    vf chains[CHAINS];
    for (int i = 0; i < CHAINS; i++) {
        chains[i] = vf_set1((float) i);
    }
    const vf factor = vf_set1(sink[0]);
    const vf term = vf_set1(sink[1]);
    for (int64_t at = 0; at < n; at++) {
        for (int i = 0; i < CHAINS; i++) {
            chains[i] = vf_fma(chains[i], factor, term);
        }
    }
    for (int i = 0; i < CHAINS; i++) {
        sink[0] += vf_sum(chains[i]);
    }
    return n * CHAINS * VF_LANES;
}

int64_t FATHOM_KERNEL(roof_dot4)(int64_t n, float * sink) {
    vi chains[CHAINS];
    for (int i = 0; i < CHAINS; i++) {
        chains[i] = vi_set1(i);
    }
    const vi a = vi_set1((int32_t) sink[0]);
    const vi b = vi_set1((int32_t) sink[1]);
    for (int64_t at = 0; at < n; at++) {
        for (int i = 0; i < CHAINS; i++) {
            chains[i] = vi_dot4(chains[i], a, b);
        }
    }
    for (int i = 0; i < CHAINS; i++) {
        sink[0] += vf_sum(vf_of_vi(chains[i]));
    }
    return n * CHAINS * VF_LANES * 4;
}

void FATHOM_KERNEL(roof_read)(const float * data, int64_t n, float * sink) {
    vf sums[8];
    for (int i = 0; i < 8; i++) {
        sums[i] = vf_set1(0.0f);
    }
    for (int64_t at = 0; at + 8 * VF_LANES <= n; at += 8 * VF_LANES) {
        for (int i = 0; i < 8; i++) {
            sums[i] = vf_max(sums[i], vf_load(data + at + i * VF_LANES));
        }
    }
    for (int i = 0; i < 8; i++) {
        sink[0] += vf_sum(sums[i]);
    }
}
