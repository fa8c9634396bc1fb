/* Kernels of a toy model: its KV cache holds token ids, its logits are a hash of the history that the cache gives. */
#include <math.h>
#include <stdint.h>

enum { BLOCK_SIZE = 4, VOCAB = 300, RUN = 256 };

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

/* logits, temperature, max, logsumexp, block_max, block_sum; one program per row. */
void stats(const uint64_t *a, uint64_t begin, uint64_t end) {
  const float *temperature = (const float *)a[1];
  float *max = (float *)a[2], *logsumexp = (float *)a[3], *block_max = (float *)a[4], *block_sum = (float *)a[5];
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
  }
}
