/* The plain float loop that the C engine is held against: a llama2.c checkpoint (legacy format, shared classifier) read
 * where it lies at MODEL_AT, in the simplest loops that compute it. Generates TOKENS tokens greedily from token 1 and
 * prints the instructions that all of them took, and the sum of the tokens, so that nothing is left out. */
#include <math.h>
#include <stdint.h>

#include "measure.h"

enum { WIDTH = 64, HIDDEN = 172, LAYERS = 5, HEADS = 8, KV_HEADS = 4, VOCABULARY = 512, CONTEXT = 512 };
enum { HEAD = WIDTH / HEADS, KV_WIDTH = HEAD * KV_HEADS };

static float keys[LAYERS][TOKENS][KV_WIDTH], values[LAYERS][TOKENS][KV_WIDTH];
static float x[WIDTH], normed[WIDTH], query[WIDTH], mixed[WIDTH], gate[HIDDEN], up[HIDDEN], scores[TOKENS];
static float logits[VOCABULARY];

/* out (rows) = w (rows, columns) @ v (columns) */
static void matmul(float *out, const float *w, const float *v, int rows, int columns) {
    for (int r = 0; r < rows; r++) {
        float sum = 0.0f;
        for (int c = 0; c < columns; c++) {
            sum += w[r * columns + c] * v[c];
        }
        out[r] = sum;
    }
}

static void norm(float *out, const float *v, const float *gain) {
    float square = 0.0f;
    for (int i = 0; i < WIDTH; i++) {
        square += v[i] * v[i];
    }
    square = 1.0f / sqrtf(square / WIDTH + 1e-5f);
    for (int i = 0; i < WIDTH; i++) {
        out[i] = gain[i] * (square * v[i]);
    }
}

static void rotate(float *v, int width, const float *cosines, const float *sines) {
    for (int i = 0; i < width; i += 2) {
        float c = cosines[i % HEAD / 2], s = sines[i % HEAD / 2], a = v[i], b = v[i + 1];
        v[i] = a * c - b * s;
        v[i + 1] = a * s + b * c;
    }
}

static void attend(int layer, int position) {
    for (int head = 0; head < HEADS; head++) {
        const float *q = query + head * HEAD;
        int shared = head * KV_HEADS / HEADS * HEAD;
        float most = -1e30f, sum = 0.0f;
        for (int t = 0; t <= position; t++) {
            float score = 0.0f;
            for (int i = 0; i < HEAD; i++) {
                score += q[i] * keys[layer][t][shared + i];
            }
            scores[t] = score / sqrtf(HEAD);
            most = scores[t] > most ? scores[t] : most;
        }
        for (int t = 0; t <= position; t++) {
            scores[t] = expf(scores[t] - most);
            sum += scores[t];
        }
        for (int i = 0; i < HEAD; i++) {
            mixed[head * HEAD + i] = 0.0f;
        }
        for (int t = 0; t <= position; t++) {
            float share = scores[t] / sum;
            for (int i = 0; i < HEAD; i++) {
                mixed[head * HEAD + i] += share * values[layer][t][shared + i];
            }
        }
    }
}

static void add(float *to, const float *v) {
    for (int i = 0; i < WIDTH; i++) {
        to[i] += v[i];
    }
}

static int step(int token, int position) {
    const float *embedding = (const float *)MODEL_AT + 7; /* after the seven numbers of the header */
    const float *attention_gain = embedding + VOCABULARY * WIDTH;
    const float *wq = attention_gain + LAYERS * WIDTH, *wk = wq + LAYERS * WIDTH * WIDTH;
    const float *wv = wk + LAYERS * KV_WIDTH * WIDTH, *wo = wv + LAYERS * KV_WIDTH * WIDTH;
    const float *ffn_gain = wo + LAYERS * WIDTH * WIDTH, *w1 = ffn_gain + LAYERS * WIDTH;
    const float *w2 = w1 + LAYERS * HIDDEN * WIDTH, *w3 = w2 + LAYERS * HIDDEN * WIDTH;
    const float *last_gain = w3 + LAYERS * HIDDEN * WIDTH;
    const float *cosines = last_gain + WIDTH + position * (HEAD / 2), *sines = cosines + CONTEXT * (HEAD / 2);
    int best = 0;
    for (int i = 0; i < WIDTH; i++) {
        x[i] = embedding[token * WIDTH + i];
    }
    for (int l = 0; l < LAYERS; l++) {
        norm(normed, x, attention_gain + l * WIDTH);
        matmul(query, wq + l * WIDTH * WIDTH, normed, WIDTH, WIDTH);
        matmul(keys[l][position], wk + l * KV_WIDTH * WIDTH, normed, KV_WIDTH, WIDTH);
        matmul(values[l][position], wv + l * KV_WIDTH * WIDTH, normed, KV_WIDTH, WIDTH);
        rotate(query, WIDTH, cosines, sines);
        rotate(keys[l][position], KV_WIDTH, cosines, sines);
        attend(l, position);
        matmul(normed, wo + l * WIDTH * WIDTH, mixed, WIDTH, WIDTH);
        add(x, normed);
        norm(normed, x, ffn_gain + l * WIDTH);
        matmul(gate, w1 + l * HIDDEN * WIDTH, normed, HIDDEN, WIDTH);
        matmul(up, w3 + l * HIDDEN * WIDTH, normed, HIDDEN, WIDTH);
        for (int i = 0; i < HIDDEN; i++) {
            gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
        }
        matmul(normed, w2 + l * WIDTH * HIDDEN, gate, WIDTH, HIDDEN);
        add(x, normed);
    }
    norm(normed, x, last_gain);
    matmul(logits, embedding, normed, VOCABULARY, WIDTH);
    for (int i = 1; i < VOCABULARY; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

int main(void) {
    uint64_t taken = 0, sum = 0;
    int token = 1;
    start_clock();
    for (int position = 0; position < TOKENS; position++) {
        uint32_t from = now();
        token = step(token, position);
        taken += instructions(from, now());
        sum = sum * 31 + (uint64_t)token;
    }
    print_number(taken);
    semi_print(" ");
    print_number(sum);
    return 0;
}
