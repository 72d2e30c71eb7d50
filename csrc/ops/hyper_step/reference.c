#include <math.h>

#include "args.h"

enum { N = FATHOM_N_STREAMS };

static double sigmoid(double x) {
    return 1.0 / (1.0 + exp(-x));
}

static double inverse_rms(const double * x, int32_t n, double eps) {
    double squares = 0.0;
    for (int32_t i = 0; i < n; i++) {
        squares += x[i] * x[i];
    }
    return 1.0 / sqrt(squares / n + eps);
}

static void normalise(double m[N][N], int over_sources, double eps) {
    for (int i = 0; i < N; i++) {
        double sum = eps;
        for (int j = 0; j < N; j++) {
            sum += over_sources ? m[j][i] : m[i][j];
        }
        for (int j = 0; j < N; j++) {
            *(over_sources ? &m[j][i] : &m[i][j]) /= sum;
        }
    }
}

void fathom_hyper_step_reference(const fathom_hyper_step_args * args) {
    const int32_t d = args->n_embd;
    for (int32_t t = 0; t < args->n_tokens; t++) {
        const float * streams = args->streams + (int64_t) t * N * d;
        double all[N * d];
        for (int32_t i = 0; i < N * d; i++) {
            all[i] = streams[i];
        }
        const double factor = inverse_rms(all, N * d, args->norm_eps);
        double m[FATHOM_N_MIXES];
        for (int32_t i = 0; i < args->n_mixes; i++) {
            const double scale = args->scale[i < N ? 0 : i < 2 * N ? 1 : 2];
            m[i] = args->dots[(int64_t) t * args->n_mixes + i] * factor * scale + args->base[i];
        }
        double x[d];
        for (int32_t c = 0; c < d; c++) {
            x[c] = 0.0;
            for (int s = 0; s < N; s++) {
                x[c] += (sigmoid(m[s]) + args->eps) * streams[s * d + c];
            }
        }
        const double norm = inverse_rms(x, d, args->norm_eps);
        for (int32_t c = 0; c < d; c++) {
            args->x[(int64_t) t * d + c] = (float) (x[c] * norm * args->norm[c]);
        }
        if (args->n_mixes == N) {
            continue;
        }

        double comb[N][N];  // [source][destination]
        for (int a = 0; a < N; a++) {
            double sum = 0.0;
            for (int b = 0; b < N; b++) {
                sum += exp(m[2 * N + N * a + b]);
            }
            for (int b = 0; b < N; b++) {
                comb[a][b] = exp(m[2 * N + N * a + b]) / sum + args->eps;
            }
        }
        normalise(comb, 1, args->eps);
        for (int32_t i = 1; i < args->n_iterations; i++) {
            normalise(comb, 0, args->eps);
            normalise(comb, 1, args->eps);
        }
        float * mix = args->mix + (int64_t) t * (N + N * N);
        for (int i = 0; i < N; i++) {
            mix[i] = (float) (2.0 * sigmoid(m[N + i]));
            for (int b = 0; b < N; b++) {
                mix[N + N * i + b] = (float) comb[i][b];
            }
        }
        for (int32_t c = 0; args->y && c < d; c++) {
            double next[N];
            for (int b = 0; b < N; b++) {
                next[b] = 2.0 * sigmoid(m[N + b]) * args->y[(int64_t) t * d + c];
                for (int a = 0; a < N; a++) {
                    next[b] += comb[a][b] * streams[a * d + c];
                }
            }
            for (int b = 0; b < N; b++) {
                args->out[(int64_t) t * N * d + b * d + c] = (float) next[b];
            }
        }
    }
}
