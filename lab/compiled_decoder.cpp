// Decoding on a CPU, the everyday architecture only: see compiled_decoder.py, which fills in the structs below.
//
// Letters as in model.py: B texts, D dim, H query heads, G key/value heads, K head_dim, F hidden, V vocabulary.
// "Item": one token of one text at one position. A forward pass takes any items, so that a prompt (many items of one
// text) and a step of a batch (one item of each text) are the same code.
//
// A matrix (N outputs from M inputs) is stored in panels of PANEL outputs: the M inputs one after the other, each with
// its weights to the PANEL outputs side by side, the last panel filled up with zeros. So neighbouring outputs lie in
// one vector, and no sum runs across a vector. Keys are stored like such a matrix, positions being the outputs.
// Vectors are the compiler's own (GCC's and clang's vector_size), so that the same code serves every processor.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 4, SUMS = 16;  // floats in a vector; items in a tile; sums that the registers hold
#elif defined(__AVX__)
constexpr int WIDTH = 8, ROWS = 2, SUMS = 8;
#else
constexpr int WIDTH = 4, ROWS = 4, SUMS = 16;
#endif
constexpr int VECTORS = 4, PANEL = VECTORS * WIDTH, ITEMS = 32;  // ITEMS: at most so many pass through at once

#define UNROLL _Pragma("GCC unroll 16")  // of loops over what lies in registers

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));
typedef double dvec __attribute__((vector_size(4 * WIDTH)));  // half as many
typedef float halfvec __attribute__((vector_size(2 * WIDTH)));
typedef int64_t livec __attribute__((vector_size(4 * WIDTH)));

struct Norm { const float *scale, *shift; };    // scale null: no norm here
struct Matrix { const float *panels, *bias; };  // bias filled up to whole panels; null: none
struct Conv {                                   // y_t = bias + sum over k < width of taps[k] * x_(t-k), (D,) each
    const float *taps, *bias;
    int32_t width;  // 0: no convolution here
};
struct Layer {
    Norm attn_norm, q_norm, k_norm, attn_post_norm, mlp_norm, mlp_post_norm;
    Conv attn_conv, mlp_conv;   // between a block's norm and the block
    Matrix qkv, out, up, down;  // up: the gate's outputs first, where there is a gate
    const float *value_mix;     // values become [0] times their own and [1] times the first layer's; null: their own
    int32_t window;             // positions that attention reaches back, its own among them; 0: all
};
struct Model {
    int32_t dim, layers, heads, groups, head_dim, hidden, vocab, max_len, head_inputs;
    int32_t rope_pairs, interleaved, gated, nonlinearity;
    int32_t centred, conv_width;  // whether the norms over D are LayerNorms; the width of the widest convolution
    float eps, logit_cap;         // logit_cap 0: none
    const float *embed, *positions, *cos, *sin;  // (V, D), (max_len, D) or null, (max_len, rope_pairs)
    const float *slopes;                         // ALiBi's, (H,); null: not used
    Norm final_norm;
    Matrix narrow, head;  // narrow: from D to head_inputs, in front of the head; null: none, head_inputs being D
    const Layer *layer;
};
struct Choice { double temperature, top_p, min_p; int32_t top_k; };  // 0: not used

namespace {

int padded(int n, int to = PANEL) { return (n + to - 1) / to * to; }

vec load(const float *p) { vec v; std::memcpy(&v, p, sizeof v); return v; }
void store(float *p, vec v) { std::memcpy(p, &v, sizeof v); }
vec splat(float x) { return x - vec{}; }

// Sum or maximum over the lanes of a vector, half of it against the other half until one is left.
template <typename Vector, typename Join>
auto fold(Vector v, Join join) {
    constexpr int lanes = sizeof(Vector) / sizeof(v[0]);
UNROLL
    for (int half = lanes / 2; half; half /= 2) {
UNROLL
        for (int i = 0; i < half; i++) v[i] = join(v[i], v[i + half]);
    }
    return v[0];
}
template <typename Vector>
auto total(Vector v) { return fold(v, [](auto a, auto b) { return a + b; }); }

// e^x by 2^n * e^r with |r| <= ln(2)/2 and a polynomial for e^r; x below -87 gives e^-87, above 88 gives e^88.
vec exponential(vec x) {
    const vec low = splat(-87.0f), high = splat(88.0f), shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds
    x = x < low ? low : x;
    x = x > high ? high : x;
    vec n = x * 1.44269504f + shift - shift;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = ((((1.9875691e-4f * r + 1.3981999e-3f) * r + 8.3334519e-3f) * r + 4.1665796e-2f) * r + 1.6666666e-1f) * r;
    y = (y + 0.5f) * r * r + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return y * (vec)power;
}

// The same in double precision, for x <= 0; below -708 it is 0.
dvec exponential(dvec x) {
    const dvec low = dvec{} - 708.0, shift = dvec{} + 6755399441055744.0;  // 1.5 * 2^52
    dvec bounded = x < low ? low : x;
    dvec n = bounded * 1.4426950408889634 + shift - shift;
    dvec r = bounded - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10;
    dvec y = dvec{} + 1.0 / 6227020800.0;  // 1/13!, and on to 1/0!
    const double inverse[] = {1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0,
                              1 / 720.0, 1 / 120.0, 1 / 24.0, 1 / 6.0, 0.5, 1.0, 1.0};
    for (double coefficient : inverse) y = y * r + coefficient;
    livec power = (__builtin_convertvector(n, livec) + 1023) << 52;
    return x < low ? dvec{} : y * (dvec)power;
}

vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

// By the exponential where x is large, by its series where that would cancel. Source: Cephes, tanhf.
vec hyperbolic_tangent(vec x) {
    vec z = x * x, large = 1.0f - 2.0f / (1.0f + exponential(2.0f * x));
    vec series = ((((-5.70498872745e-3f * z + 2.06390887954e-2f) * z - 5.37397155531e-2f) * z + 1.33314422036e-1f) * z -
                  3.33332819422e-1f) * z * x + x;
    return z < 0.390625f ? series : large;  // |x| < 0.625
}

vec erf_each(vec x) { for (int i = 0; i < WIDTH; i++) x[i] = std::erf(x[i]); return x; }

// In the order of config.NONLINEARITIES.
vec nonlinear(int kind, vec x) {
    vec positive = x > vec{} ? x : vec{};
    switch (kind) {
        case 0: return x * sigmoid(x);
        case 1: return 0.5f * x * (1.0f + erf_each(x * 0.70710678f));
        case 2: return 0.5f * x * (1.0f + hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x)));
        case 3: return positive;
        case 4: return positive * positive;
        case 5: return hyperbolic_tangent(x);
        default: return sigmoid(x);
    }
}

// out[r][0..vectors*WIDTH) = sum over i of x[r][i] * w[i][...], for `rows` rows. A sum that waits for its last addition
// would idle the processor: where there are few, each is made in several parts, over every parts-th input.
template <int rows, int vectors>
void tile(const float *x, int64_t x_stride, const float *w, int64_t w_stride, int64_t inputs, float *out,
          int64_t stride) {
    constexpr int parts = std::max(1, SUMS / (rows * vectors));
    vec sum[parts][rows][vectors];
UNROLL
    for (int n = 0; n < parts * rows * vectors; n++) sum[n / (rows * vectors)][n / vectors % rows][n % vectors] = vec{};
    int64_t i = 0;
    for (; i + parts <= inputs; i += parts) {
UNROLL
        for (int part = 0; part < parts; part++) {
UNROLL
            for (int v = 0; v < vectors; v++) {
                vec weight = load(w + (i + part) * w_stride + v * WIDTH);
UNROLL
                for (int r = 0; r < rows; r++) sum[part][r][v] += x[r * x_stride + i + part] * weight;
            }
        }
    }
    for (; i < inputs; i++) {
UNROLL
        for (int v = 0; v < vectors; v++) {
            vec weight = load(w + i * w_stride + v * WIDTH);
UNROLL
            for (int r = 0; r < rows; r++) sum[0][r][v] += x[r * x_stride + i] * weight;
        }
    }
UNROLL
    for (int v = 0; v < vectors; v++) {
UNROLL
        for (int r = 0; r < rows; r++) {
UNROLL
            for (int part = 1; part < parts; part++) sum[0][r][v] += sum[part][r][v];
            store(out + r * stride + v * WIDTH, sum[0][r][v]);
        }
    }
}

template <int vectors>
void tiles(int rows, const float *x, int64_t x_stride, const float *w, int64_t w_stride, int64_t inputs, float *out,
           int64_t stride) {
    for (; rows >= ROWS; rows -= ROWS, x += ROWS * x_stride, out += ROWS * stride)
        tile<ROWS, vectors>(x, x_stride, w, w_stride, inputs, out, stride);
    if (ROWS > 2 && rows >= 2) {
        tile<2, vectors>(x, x_stride, w, w_stride, inputs, out, stride);
        rows -= 2, x += 2 * x_stride, out += 2 * stride;
    }
    if (rows) tile<1, vectors>(x, x_stride, w, w_stride, inputs, out, stride);
}

// out (rows, N padded) = x (rows, M) times the matrix, plus its bias.
void multiply(int rows, const float *x, int64_t x_stride, int inputs, Matrix matrix, int outputs, float *out,
              int64_t stride) {
    for (int start = 0; start < outputs; start += PANEL)
        tiles<VECTORS>(rows, x, x_stride, matrix.panels + (int64_t)start * inputs, PANEL, inputs, out + start, stride);
    if (!matrix.bias) return;
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < padded(outputs, WIDTH); i += WIDTH)
            store(out + r * stride + i, load(out + r * stride + i) + load(matrix.bias + i));
}

// The largest of n numbers.
float largest(const float *x, int n) {
    vec most = splat(x[0]);
    int i = 0;
    for (; i + WIDTH <= n; i += WIDTH) most = load(x + i) > most ? load(x + i) : most;
    float found = fold(most, [](float a, float b) { return a > b ? a : b; });
    for (; i < n; i++) found = std::max(found, x[i]);
    return found;
}

// The sum of each(x) over n numbers.
template <typename Each>
float sum_over(const float *x, int n, Each each) {
    vec sum = {};
    int i = 0;
    for (; i + WIDTH <= n; i += WIDTH) sum += each(load(x + i));
    float rest = total(sum);
    for (; i < n; i++) rest += each(x[i]);
    return rest;
}

// RMSNorm of n channels, or, centred, LayerNorm; out may be x.
void normalise(const float *x, Norm norm, int n, float eps, float *out, bool centred = false) {
    if (centred) {
        float mean = sum_over(x, n, [](auto v) { return v; }) / n;
        for (int i = 0; i < n; i++) out[i] = x[i] - mean;
        x = out;
    }
    float factor = 1.0f / std::sqrt(sum_over(x, n, [](auto v) { return v * v; }) / n + eps);
    for (int i = 0; i < n; i++) out[i] = x[i] * factor * norm.scale[i] + norm.shift[i];
}

void rotate(float *x, const float *cos, const float *sin, int pairs, bool interleaved) {
    int far = interleaved ? 1 : pairs, step = interleaved ? 2 : 1;
    for (int i = 0; i < pairs; i++) {
        float *first = x + i * step, *second = first + far, a = *first, b = *second;
        *first = a * cos[i] - b * sin[i];
        *second = b * cos[i] + a * sin[i];
    }
}

// Room for floats that begins at the start of a cache line, so that no vector lies across two.
struct Floats {
    struct Free { void operator()(float *p) const { ::operator delete(p, std::align_val_t(64)); } };
    std::unique_ptr<float, Free> room;
    void resize(int64_t n) { room.reset((float *)::operator new(n * sizeof(float), std::align_val_t(64))); }
    void clear(int64_t n) { resize(n), std::memset(room.get(), 0, n * sizeof(float)); }
    operator float *() const { return room.get(); }
};

struct Text {
    std::vector<int32_t> window;  // the tokens that the model sees
    int cached = 0;               // of them in the cache
    bool ended = false;
    int row = 0;  // where its logits stand: texts that have ended have none
    Floats keys, values;  // (layers, G, panels, K, PANEL) and (layers, G, positions, K padded)
    Floats inputs;        // what convolutions saw last: (layers, 2, conv_width, D), position t in row t % conv_width
};
struct Item { Text *text; int position; };

}  // namespace

// A batch of texts and room to work in. One thread at a time.
struct Decoder {
    const Model &model;
    std::vector<Text> texts;
    int D, QKV, F, V, K, positions;  // padded widths
    Floats x, normed, qkv, first_values, heads, added, hidden, active, scores, sums, mixed;
    Floats last, ends, narrowed, logits;
    std::vector<float> order;
    std::vector<double> weights;
    std::vector<std::pair<double, int>> candidates;

    Decoder(const Model &m, int num_texts) : model(m), texts(num_texts) {
        D = padded(m.dim), QKV = padded((m.heads + 2 * m.groups) * m.head_dim), V = padded(m.vocab);
        F = padded(m.hidden * (m.gated ? 2 : 1)), K = padded(m.head_dim, WIDTH), positions = padded(m.max_len);
        x.clear(ITEMS * D), normed.clear(ITEMS * D), added.clear(ITEMS * D), qkv.clear(ITEMS * QKV);
        first_values.clear(ITEMS * m.groups * m.head_dim);
        heads.clear(ITEMS * m.heads * m.head_dim), hidden.clear(ITEMS * F + PANEL);
        active.clear(ITEMS * padded(m.hidden)), scores.clear((int64_t)m.heads / m.groups * positions);
        sums.clear(m.heads / m.groups), mixed.clear(m.heads / m.groups * K);
        last.clear(num_texts * D), ends.clear(num_texts * D), narrowed.clear(num_texts * D);
        logits.clear((int64_t)num_texts * V), weights.resize(V);
        for (Text &text : texts) {
            text.keys.resize((int64_t)m.layers * m.groups * positions * m.head_dim);
            text.values.resize((int64_t)m.layers * m.groups * positions * K);
            text.inputs.resize((int64_t)m.layers * 2 * m.conv_width * D);
        }
    }

    // Cuts the window to its last half when it is full; the cache then starts anew.
    void cut(Text &text) {
        int length = text.window.size(), keep = std::max(1, model.max_len / 2);
        if (length <= model.max_len) return;
        text.window.erase(text.window.begin(), text.window.end() - keep);
        text.cached = 0;
    }

    // Logits (B, V) after the last token of each text that has not ended.
    void step() {
        Item items[ITEMS];
        int count = 0, rows = 0;
        for (Text &text : texts) {
            if (text.ended) continue;
            text.row = rows++;
            cut(text);
            for (; text.cached < (int)text.window.size(); text.cached++) {
                items[count++] = {&text, text.cached};
                if (count == ITEMS) forward(items, count), count = 0;
            }
        }
        forward(items, count);
        for (int r = 0; r < rows; r++) normalise(&last[r * D], model.final_norm, &ends[r * D]);
        bool narrow = model.narrow.panels;
        if (narrow) multiply(rows, ends, D, model.dim, model.narrow, model.head_inputs, narrowed, D);
        multiply(rows, narrow ? narrowed : ends, D, model.head_inputs, model.head, model.vocab, logits, V);
        if (!model.logit_cap) return;
        for (int64_t i = 0; i < (int64_t)rows * V; i += WIDTH)
            store(&logits[i], model.logit_cap * hyperbolic_tangent(load(&logits[i]) / model.logit_cap));
    }

    // The residual stream behind the last layer, kept in `last` for the items that end their text.
    void forward(const Item *items, int count) {
        for (int i = 0; i < count; i++) {
            int token = items[i].text->window[items[i].position];
            const float *place = model.positions ? model.positions + (int64_t)items[i].position * model.dim : nullptr;
            for (int d = 0; d < model.dim; d++)
                x[i * D + d] = model.embed[(int64_t)token * model.dim + d] + (place ? place[d] : 0.0f);
        }
        for (int l = 0; l < model.layers; l++) {
            const Layer &layer = model.layer[l];
            attention(layer, l, items, count);
            add(layer.attn_post_norm, count);
            mlp(layer, l, items, count);
            add(layer.mlp_post_norm, count);
        }
        for (int i = 0; i < count; i++)
            if (items[i].position + 1 == (int)items[i].text->window.size())
                std::copy_n(&x[i * D], model.dim, &last[items[i].text->row * D]);
    }

    void normalise(const float *from, Norm norm, float *out) {
        ::normalise(from, norm, model.dim, model.eps, out, model.centred);
    }

    // What the first or second block of a layer sees (`place` counts blocks): normed = the norm of x, then convolved.
    void read(Norm norm, Conv conv, int place, const Item *items, int count) {
        for (int i = 0; i < count; i++) {
            normalise(&x[i * D], norm, &normed[i * D]);
            float *rows = &items[i].text->inputs[(int64_t)place * model.conv_width * D];
            if (conv.width) convolve(conv, rows, items[i].position, &normed[i * D]);
        }
    }

    // y (D,), the input at `position`, becomes the output there; `rows` are those before, as in Text::inputs.
    void convolve(Conv conv, float *rows, int position, float *y) {
        std::copy_n(y, model.dim, rows + position % model.conv_width * D);
        std::copy_n(conv.bias, model.dim, y);
        for (int k = 0; k < std::min(conv.width, position + 1); k++) {
            const float *tap = conv.taps + k * model.dim, *before = rows + (position - k) % model.conv_width * D;
            for (int d = 0; d < model.dim; d++) y[d] += tap[d] * before[d];
        }
    }

    // x += what a block returned, normalised once more with `post_norm`.
    void add(Norm norm, int count) {
        for (int i = 0; i < count; i++) {
            if (norm.scale) normalise(&added[i * D], norm, &added[i * D]);
            for (int d = 0; d < model.dim; d++) x[i * D + d] += added[i * D + d];
        }
    }

    void attention(const Layer &layer, int l, const Item *items, int count) {
        int H = model.heads, G = model.groups, width = model.head_dim;
        read(layer.attn_norm, layer.attn_conv, 2 * l, items, count);
        multiply(count, normed, D, model.dim, layer.qkv, (H + 2 * G) * width, qkv, QKV);
        for (int i = 0; i < count; i++) {
            if (layer.value_mix) mix_values(layer, l, i, &qkv[i * QKV + (H + G) * width]);
            prepare(layer, l, items[i], &qkv[i * QKV]);
        }
        for (int i = 0; i < count; i++)
            for (int g = 0; g < G; g++) {
                int at = g * (H / G) * width;
                attend(layer, l, g, items[i], &qkv[i * QKV + at], &heads[i * H * width + at]);
            }
        multiply(count, heads, H * width, H * width, layer.out, model.dim, added, D);
    }

    // An item's values (G, K) become what value_mix says. The first layer keeps its own for the layers behind it.
    void mix_values(const Layer &layer, int l, int i, float *v) {
        int size = model.groups * model.head_dim;
        float *first = &first_values[i * size];
        if (l == 0) std::copy_n(v, size, first);
        for (int d = 0; d < size; d++) v[d] = layer.value_mix[0] * v[d] + layer.value_mix[1] * first[d];
    }

    // Norms and rotates an item's queries and keys, and writes keys and values into its text's cache.
    void prepare(const Layer &layer, int l, Item item, float *q) {
        int H = model.heads, G = model.groups, width = model.head_dim, pairs = model.rope_pairs;
        for (int h = 0; h < H + G; h++) {
            Norm norm = h < H ? layer.q_norm : layer.k_norm;
            if (norm.scale) ::normalise(q + h * width, norm, width, model.eps, q + h * width);
            int64_t at = (int64_t)item.position * pairs;
            if (pairs) rotate(q + h * width, model.cos + at, model.sin + at, pairs, model.interleaved);
        }
        for (int g = 0; g < G; g++) {
            const float *k = q + (H + g) * width, *v = k + G * width;
            float *keys = &item.text->keys[(int64_t)(l * G + g) * positions * width];
            keys += item.position / PANEL * PANEL * width + item.position % PANEL;
            for (int d = 0; d < width; d++) keys[d * PANEL] = k[d];
            std::copy_n(v, width, &item.text->values[((int64_t)(l * G + g) * positions + item.position) * K]);
        }
    }

    // softmax(q k^T / sqrt(K)) v for the H/G query heads that share one group: q and out (H/G, K).
    void attend(const Layer &layer, int l, int g, Item item, const float *q, float *out) {
        int rows = model.heads / model.groups, width = model.head_dim, end = item.position + 1;
        int first = layer.window ? std::max(0, end - layer.window) : 0;
        const float *keys = &item.text->keys[(int64_t)(l * model.groups + g) * positions * width];
        const float *values = &item.text->values[(int64_t)(l * model.groups + g) * positions * K];
        for (int start = first / PANEL * PANEL; start < end; start += PANEL)
            tiles<VECTORS>(rows, q, width, keys + start * width, PANEL, width, &scores[start], positions);
        const float *value = values + (int64_t)first * K, *weight = &scores[first];
        float scale = 1.0f / std::sqrt((float)width);
        for (int r = 0; r < rows; r++) {
            float *score = &scores[r * positions], slope = model.slopes ? model.slopes[g * rows + r] / scale : 0;
            if (slope) for (int s = first; s < end; s++) score[s] -= slope * (end - 1 - s);
            sums[r] = softmax(score, first, end, scale);
        }
        for (int start = 0, vectors; start < K; start += vectors * WIDTH) {
            int left = (K - start) / WIDTH;
            vectors = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            auto sum = vectors == 4 ? tiles<4> : vectors == 2 ? tiles<2> : tiles<1>;
            sum(rows, weight, positions, value + start, K, end - first, &mixed[start], K);
        }
        for (int r = 0; r < rows; r++)
            for (int d = 0; d < width; d++) out[r * width + d] = mixed[r * K + d] / sums[r];
    }

    // Scores first..end-1 -> e^(scale * (score - largest)); returns their sum. The rest of their vectors becomes 0.
    float softmax(float *score, int first, int end, float scale) {
        float top = largest(score + first, end - first);
        vec sum = {};
        ivec lanes;
        for (int i = 0; i < WIDTH; i++) lanes[i] = i;
        for (int s = first / WIDTH * WIDTH; s < end; s += WIDTH) {
            vec e = exponential((load(score + s) - top) * scale);
            e = (lanes >= first - s) & (lanes < end - s) ? e : vec{};
            store(score + s, e);
            sum += e;
        }
        return total(sum);
    }

    void mlp(const Layer &layer, int l, const Item *items, int count) {
        int F1 = model.hidden, stride = padded(F1);
        read(layer.mlp_norm, layer.mlp_conv, 2 * l + 1, items, count);
        multiply(count, normed, D, model.dim, layer.up, F1 * (model.gated ? 2 : 1), hidden, F);
        for (int i = 0; i < count; i++)
            for (int f = 0; f < F1; f += WIDTH) {
                vec y = nonlinear(model.nonlinearity, load(&hidden[i * F + f]));
                store(&active[i * stride + f], model.gated ? y * load(&hidden[i * F + F1 + f]) : y);
            }
        multiply(count, active, stride, F1, layer.down, model.dim, added, D);
    }

    // ---- choosing a token: the same rules, in the same order, as inference.Choice

    bool finite(const float *logit) {
        vec sum = {};
        for (int i = 0; i < V; i += WIDTH) sum += load(logit + i) - load(logit + i);
        return total(sum) == 0;
    }

    int pick(const float *logit, const Choice &choice, double draw) {
        float top = largest(logit, model.vocab);
        if (choice.temperature == 0) return std::find(logit, logit + model.vocab, top) - logit;
        double sum = weigh(logit, top, choice);
        if (choice.top_p) sum = keep_nucleus(choice.top_p * sum);
        if (choice.min_p) {
            for (double &weight : weights) weight = weight < choice.min_p ? 0 : weight;  // the likeliest token's is 1
            sum = sum_of(0, V);
        }
        return under(draw * sum);
    }

    // weights = e^((logit - top) / temperature) for the top_k likeliest tokens, 0 for the others; returns their sum.
    double weigh(const float *logit, double top, const Choice &choice) {
        double lowest = -INFINITY;
        if (choice.top_k && choice.top_k < model.vocab) {
            order.assign(logit, logit + model.vocab);
            std::nth_element(order.begin(), order.begin() + choice.top_k - 1, order.end(), std::greater<float>());
            lowest = (order[choice.top_k - 1] - top) / choice.temperature;
        }
        for (int i = 0; i < model.vocab; i += WIDTH / 2) {
            halfvec some;
            std::memcpy(&some, logit + i, sizeof some);
            dvec scaled = (__builtin_convertvector(some, dvec) - top) / choice.temperature;
            dvec e = exponential(scaled);
            e = scaled < dvec{} + lowest ? dvec{} : e;
            std::memcpy(&weights[i], &e, sizeof e);
        }
        std::fill(weights.begin() + model.vocab, weights.end(), 0.0);
        return sum_of(0, V);
    }

    // Sum of weights start..stop-1, whole vectors.
    double sum_of(int start, int stop) {
        dvec sum = {}, some;
        for (int i = start; i < stop; i += WIDTH / 2) std::memcpy(&some, &weights[i], sizeof some), sum += some;
        return total(sum);
    }

    // Keeps the likeliest tokens until those before add up to `enough`, and of equal ones the first; returns their sum.
    // No sort: the likelier half holds the end or it doesn't, then a half of that half, and so on.
    double keep_nucleus(double enough) {
        candidates.clear();
        for (int i = 0; i < model.vocab; i++)
            if (weights[i] > 0) candidates.push_back({weights[i], -i});
        auto first = candidates.begin(), last = candidates.end();
        double before = 0;
        while (last - first > 1) {
            auto middle = first + (last - first) / 2;
            std::nth_element(first, middle, last, std::greater<>());
            double upper = before;
            for (auto one = first; one != middle; ++one) upper += one->first;
            if (upper >= enough) last = middle;
            else before = upper, first = middle;
        }
        std::fill(weights.begin(), weights.end(), 0.0);
        for (auto one = candidates.begin(); one != last; ++one) weights[-one->second] = one->first;
        return before + first->first;
    }

    // The token under `point` of the line that the tokens share in order of their ids, each as long as its weight.
    int under(double point) {
        double end = 0;
        int i = 0;
        for (double next; i + PANEL < V; i += PANEL, end = next)  // whole panels first
            if ((next = end + sum_of(i, i + PANEL)) > point) break;
        for (; i < model.vocab; i++)
            if ((end += weights[i]) > point) return i;
        do i--; while (i > 0 && weights[i] == 0);  // rounding has left the point behind the end: the last token kept
        return i;
    }
};

// ---------------------------------------------------------------- what Python calls

extern "C" {

int panel_width() { return PANEL; }

Decoder *decoder_new(const Model *model, int num_texts) { return new Decoder(*model, num_texts); }

void decoder_free(Decoder *decoder) { delete decoder; }

void decoder_set(Decoder *decoder, int text, const int32_t *tokens, int count) {
    decoder->texts[text].window.assign(tokens, tokens + count);
    decoder->texts[text].cached = 0;
}

void decoder_step(Decoder *decoder) { decoder->step(); }

// The logits of a text from the latest step: V numbers.
const float *decoder_logits(Decoder *decoder, int text) {
    return &decoder->logits[(int64_t)decoder->texts[text].row * decoder->V];
}

int decoder_length(Decoder *decoder, int text) { return decoder->texts[text].window.size(); }

int decoder_pick(Decoder *decoder, const float *logits, const Choice *choice, double draw) {
    return decoder->pick(logits, *choice, draw);
}

// Writes `steps` tokens of each text to out (steps, B), -1 where it has ended, by draws (steps, B) from [0, 1).
// Returns the number of a text whose logits are not finite, or -1.
int decoder_run(Decoder *decoder, int steps, const double *draws, const Choice *choice, int stop_id, int32_t *out) {
    int count = decoder->texts.size();
    for (int s = 0; s < steps; s++) {
        decoder->step();
        for (int b = 0; b < count; b++) {
            Text &text = decoder->texts[b];
            out[s * count + b] = -1;
            if (text.ended) continue;
            const float *logits = decoder_logits(decoder, b);
            if (!decoder->finite(logits)) return b;
            int id = decoder->pick(logits, *choice, draws[s * count + b]);
            text.window.push_back(id);
            text.ended = id == stop_id;
            if (!text.ended) out[s * count + b] = id;
        }
    }
    return -1;
}
}
