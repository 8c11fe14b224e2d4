/* The practical limit: Langevin on an isotropic Gaussian mixture, fused by hand.
   Particles in lanes of 16 floats, xoshiro128++ per lane, polynomial Box-Muller, OpenMP over blocks.
   Build: cc -O3 -march=native -ffast-math -fopenmp -shared -fPIC fused_langevin.c -o fused_langevin.so -lm */
#include <math.h>
#include <stdint.h>

#define W 16

static inline uint32_t rotl(uint32_t x, int k) { return (x << k) | (x >> (32 - k)); }

static uint64_t splitmix(uint64_t *s) {
    uint64_t z = (*s += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

void langevin(float *x, float *y, long n, long steps, float h, float temperature, const float *mx, const float *my,
              int components, float inverse_variance, uint64_t seed) {
    const float noise = sqrtf(2 * temperature * h);
#pragma omp parallel for schedule(static)
    for (long b = 0; b < n / W; b++) {
        uint32_t s0[W], s1[W], s2[W], s3[W];
        float px[W], py[W];
        for (int i = 0; i < W; i++) {
            uint64_t s = seed * 1000003ull + (uint64_t)(b * W + i);
            uint64_t a = splitmix(&s), c = splitmix(&s);
            s0[i] = a, s1[i] = a >> 32, s2[i] = c, s3[i] = c >> 32;
            px[i] = x[b * W + i], py[i] = y[b * W + i];
        }
        for (long k = 0; k < steps; k++) {
            float u[W], v[W];
            for (int r = 0; r < 2; r++)
#pragma omp simd
                for (int i = 0; i < W; i++) {
                    uint32_t out = rotl(s0[i] + s3[i], 7) + s0[i], t = s1[i] << 9;
                    s2[i] ^= s0[i], s3[i] ^= s1[i], s1[i] ^= s2[i], s0[i] ^= s3[i], s2[i] ^= t, s3[i] = rotl(s3[i], 11);
                    float f = ((float)out + 0.5f) * 2.3283064365386963e-10f;
                    if (r) v[i] = f; else u[i] = f;
                }
#pragma omp simd
            for (int i = 0; i < W; i++) {
                float total = 0, gx = 0, gy = 0, low = 1e30f;
                for (int c = 0; c < components; c++) {
                    float dx = px[i] - mx[c], dy = py[i] - my[c];
                    low = fminf(low, dx * dx + dy * dy);
                }
                for (int c = 0; c < components; c++) {
                    float dx = px[i] - mx[c], dy = py[i] - my[c];
                    float w = expf(0.5f * inverse_variance * (low - dx * dx - dy * dy));
                    total += w, gx += w * dx, gy += w * dy;
                }
                float scale = temperature * inverse_variance / total;
                float radius = noise * sqrtf(-2 * logf(u[i])), angle = 6.2831853f * v[i];
                px[i] += radius * cosf(angle) - h * scale * gx;
                py[i] += radius * sinf(angle) - h * scale * gy;
            }
        }
        for (int i = 0; i < W; i++) x[b * W + i] = px[i], y[b * W + i] = py[i];
    }
}
