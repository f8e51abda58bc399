/* Continues a prompt greedily with the two files of format=llama2c, and prints the ids after the first.

   llama2c MODEL.BIN TOKENIZER.BIN STEPS PROMPT: an independent reading of the format. No space is put before the prompt.
   Unlike in slm, neighbours are rotated, ids are found by their texts, and merges are searched in the whole text. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BORDER = 1, FIRST_BYTE = 3 };

static int width, hidden, depth, heads, kv_heads, vocab, context;
static float *numbers, *score;
static char **text;

static void *read_all(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) exit(2);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *bytes = malloc(size);
    if (fread(bytes, 1, size, file) != (size_t)size) exit(2);
    fclose(file);
    return bytes;
}

static void norm(float *out, const float *x, const float *gain) {
    double sum = 0;
    for (int i = 0; i < width; i++) sum += (double)x[i] * x[i];
    for (int i = 0; i < width; i++) out[i] = gain[i] * x[i] / sqrt(sum / width + 1e-5);
}

static void times(float *out, const float *matrix, const float *x, int rows, int columns) {
    for (int r = 0; r < rows; r++) {
        double sum = 0;
        for (int c = 0; c < columns; c++) sum += (double)matrix[(size_t)r * columns + c] * x[c];
        out[r] = sum;
    }
}

static void rotate(float *x, int size, int head, int position) {
    for (int i = 0; i < size; i += 2) {
        double angle = position * pow(10000.0, -(double)(i % head) / head), a = x[i], b = x[i + 1];
        x[i] = a * cos(angle) - b * sin(angle);
        x[i + 1] = a * sin(angle) + b * cos(angle);
    }
}

static void attend(float *out, const float *query, const float *keys, const float *values, int position) {
    int head = width / heads, kv = head * kv_heads;
    for (int h = 0; h < heads; h++) {
        int shared = h / (heads / kv_heads) * head;
        double weights[4096], total = 0, largest = -1e30;
        for (int t = 0; t <= position; t++) {
            weights[t] = 0;
            for (int i = 0; i < head; i++) weights[t] += query[h * head + i] * keys[t * kv + shared + i] / sqrt(head);
            largest = fmax(largest, weights[t]);
        }
        for (int t = 0; t <= position; t++) total += weights[t] = exp(weights[t] - largest);
        for (int i = 0; i < head; i++) {
            double sum = 0;
            for (int t = 0; t <= position; t++) sum += weights[t] * values[t * kv + shared + i];
            out[h * head + i] = sum / total;
        }
    }
}

static const float *take(size_t count) {
    const float *found = numbers;
    numbers += count;
    return found;
}

int main(int count, char **words) {
    if (count != 5) return 2;
    int *header = read_all(words[1]);
    width = header[0], hidden = header[1], depth = header[2], heads = header[3], kv_heads = header[4];
    vocab = abs(header[5]), context = header[6];
    numbers = (float *)(header + 7);
    size_t square = (size_t)depth * width * width, kv = width / heads * kv_heads, narrow = depth * kv * width;
    size_t wide = (size_t)depth * hidden * width;
    const float *embedding = take((size_t)vocab * width), *norm1 = take(depth * width), *q = take(square);
    const float *k = take(narrow), *v = take(narrow), *o = take(square), *norm2 = take(depth * width);
    const float *gate = take(wide), *down = take(wide), *up = take(wide), *last = take(width);
    take((size_t)context * (width / heads));
    const float *head = header[5] > 0 ? embedding : take((size_t)vocab * width);

    char *entry = (char *)read_all(words[2]) + 4;
    text = calloc(vocab, sizeof *text), score = calloc(vocab, sizeof *score);
    for (int i = 0; i < vocab; i++) {
        int length;
        memcpy(&score[i], entry, 4), memcpy(&length, entry + 4, 4);
        text[i] = calloc(length + 1, 1);
        memcpy(text[i], entry + 8, length);
        entry += 8 + length;
    }

    int ids[4096] = {BORDER}, length = 1, steps = atoi(words[3]);
    for (char *c = words[4]; *c;) { /* characters, or their bytes */
        int size = 1, found = -1;
        while ((c[size] & 0xC0) == 0x80) size++;
        for (int i = 0; i < vocab && found < 0; i++)
            if (strlen(text[i]) == (size_t)size && !memcmp(text[i], c, size)) found = i;
        for (int i = 0; found < 0 && i < size; i++) ids[length++] = FIRST_BYTE + (unsigned char)c[i];
        if (found >= 0) ids[length++] = found;
        c += size;
    }
    for (int place = 0; place >= 0;) { /* the merge of the highest score first */
        int merged = -1;
        place = -1;
        for (int i = 1; i + 1 < length; i++) {
            char joined[512];
            snprintf(joined, sizeof joined, "%s%s", text[ids[i]], text[ids[i + 1]]);
            for (int j = 0; j < vocab; j++)
                if (!strcmp(text[j], joined) && (merged < 0 || score[j] > score[merged])) merged = j, place = i;
        }
        if (place < 0) break;
        ids[place] = merged;
        memmove(ids + place + 1, ids + place + 2, (--length - place - 1) * sizeof *ids);
    }

    float *keys = calloc(depth * (size_t)context * kv, 4), *values = calloc(depth * (size_t)context * kv, 4);
    float *x = calloc(width, 4), *y = calloc(width, 4), *z = calloc(width, 4), *query = calloc(width, 4);
    float *a = calloc(hidden, 4), *b = calloc(hidden, 4), *logits = calloc(vocab, 4);
    for (int t = 0; t < steps && t < context; t++) {
        memcpy(x, embedding + (size_t)ids[t] * width, width * 4);
        for (int l = 0; l < depth; l++) {
            float *own_keys = keys + (size_t)l * context * kv, *own_values = values + (size_t)l * context * kv;
            norm(y, x, norm1 + l * width);
            times(query, q + (size_t)l * width * width, y, width, width);
            times(own_keys + t * kv, k + l * kv * width, y, kv, width);
            times(own_values + t * kv, v + l * kv * width, y, kv, width);
            rotate(query, width, width / heads, t), rotate(own_keys + t * kv, kv, width / heads, t);
            attend(y, query, own_keys, own_values, t);
            times(z, o + (size_t)l * width * width, y, width, width);
            for (int i = 0; i < width; i++) x[i] += z[i];
            norm(y, x, norm2 + l * width);
            times(a, gate + (size_t)l * hidden * width, y, hidden, width);
            times(b, up + (size_t)l * hidden * width, y, hidden, width);
            for (int i = 0; i < hidden; i++) a[i] = a[i] / (1 + exp(-a[i])) * b[i];
            times(z, down + (size_t)l * hidden * width, a, width, hidden);
            for (int i = 0; i < width; i++) x[i] += z[i];
        }
        norm(y, x, last);
        times(logits, head, y, vocab, width);
        int next = 0;
        for (int i = 1; i < vocab; i++)
            if (logits[i] > logits[next]) next = i;
        if (t + 1 >= length) ids[length++] = next;
        printf("%d\n", ids[t + 1]);
    }
    return 0;
}
