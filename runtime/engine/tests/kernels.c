/* Kernels of a toy model: its KV cache holds token ids, its logits are a hash of the history that the cache gives. */
#include <math.h>
#include <stdint.h>

enum { BLOCK_SIZE = 4, VOCAB = 300, RUN = 256, DRAWS = 8 };

/* token_ids, slot_mapping, keys, values; one program per token. */
void store(const uint64_t *a, uint64_t begin, uint64_t end) {
  const int32_t *token_ids = (const int32_t *)a[0], *slots = (const int32_t *)a[1];
  float *keys = (float *)a[2], *values = (float *)a[3];
  for (uint64_t t = begin; t < end; t++) {
    keys[slots[t]] = (float)token_ids[t];
    values[slots[t]] = (float)token_ids[t] * 2;
  }
}

/* keys, values, block_table, logits_indices, query_start_loc, positions, bias, logits; M; one program per row. */
void head(const uint64_t *a, uint64_t begin, uint64_t end) {
  const float *keys = (const float *)a[0], *values = (const float *)a[1], *bias = (const float *)a[6];
  const int32_t *table = (const int32_t *)a[2], *indices = (const int32_t *)a[3];
  const int32_t *starts = (const int32_t *)a[4], *positions = (const int32_t *)a[5];
  float *logits = (float *)a[7];
  for (uint64_t row = begin; row < end; row++) {
    int32_t token = indices[row], seq = 0;
    while (starts[seq + 1] <= token) seq++;
    uint32_t h = 1;
    for (int32_t p = 0; p <= positions[token]; p++) {
      int32_t slot = table[seq * a[8] + p / BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE;
      h = h * 31 + (uint32_t)keys[slot] + (uint32_t)values[slot];
    }
    for (uint32_t v = 0; v < VOCAB; v++) {
      uint32_t x = h ^ (v * 2654435761u);
      x = (x ^ (x >> 15)) * 2246822519u;
      logits[row * VOCAB + v] = (float)((x ^ (x >> 13)) % 1000) / 100 + bias[v];
    }
  }
}

/* Which of n weights lies at a fraction of them all. */
static int place(const float *weights, int n, float fraction) {
  float target = 0;
  for (int i = 0; i < n; i++) target += fraction * weights[i];
  for (int i = 0; i < n; i++)
    if ((target -= weights[i]) < 0) return i;
  return n - 1;
}

/* logits, temperature, uniform, max, logsumexp, block_max, block_sum, draws; one program per row. */
void stats(const uint64_t *a, uint64_t begin, uint64_t end) {
  const float *temperature = (const float *)a[1];
  float *max = (float *)a[3], *logsumexp = (float *)a[4], *block_max = (float *)a[5], *block_sum = (float *)a[6];
  for (uint64_t row = begin; row < end; row++) {
    const float *logits = (const float *)a[0] + row * VOCAB;
    float *blocks = block_max + row * 2, *sums = block_sum + row * 2, sum = 0;
    blocks[0] = blocks[1] = -INFINITY;
    for (int v = 0; v < VOCAB; v++) blocks[v / RUN] = fmaxf(blocks[v / RUN], logits[v]);
    max[row] = fmaxf(blocks[0], blocks[1]);
    for (int v = 0; v < VOCAB; v++) sum += expf(logits[v] - max[row]);
    logsumexp[row] = max[row] + logf(sum);
    sums[0] = sums[1] = 0;
    for (int v = 0; v < VOCAB; v++) sums[v / RUN] += expf((logits[v] - blocks[v / RUN]) / temperature[row]);
    float runs[2], tokens[RUN];
    for (int b = 0; b < 2; b++) runs[b] = sums[b] * expf((blocks[b] - max[row]) / temperature[row]);
    for (int d = 0; d < DRAWS; d++) {
      const float *uniform = (const float *)a[2] + (row * DRAWS + d) * 2;
      int first = place(runs, 2, uniform[0]) * RUN, n = first + RUN < VOCAB ? RUN : VOCAB - first;
      for (int i = 0; i < n; i++) tokens[i] = expf((logits[first + i] - max[row]) / temperature[row]);
      ((float *)a[7])[row * DRAWS + d] = first + place(tokens, n, uniform[1]);
    }
  }
}
