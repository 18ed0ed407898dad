// codec-1 and reduce-1 on a CPU: the same bytes as the torch code, which is the reference and takes over where this
// library is missing. C++17 behind a C interface, called through ctypes (native.py): no headers of Python or torch.
//
// The caller has checked shapes, limits and parameters. What comes from a peer, the bytes of payloads, is checked here
// before it is used. A function that returns int64_t returns -1 when all is well, else a chunk that it refuses; the
// caller then lets the torch code say which rule it breaks. Floating-point operations are rounded one by one: built with
// -ffp-contract=off, never with -ffast-math.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

namespace {

constexpr int CHUNK = 4096;
constexpr int CHUNK_BITS = 12;
constexpr int K_MAX = 2048;
constexpr int K_WORD_MAX = 1024;
constexpr int LEVELS_MAX = 4;
constexpr int CODES = 256;
constexpr int LLOYD_PASSES = 4;
constexpr int SHIFT_MIN = -25, SHIFT_MAX = 36;  // codec.py says why
constexpr uint32_t INFINITY_BITS = 0x7F800000;
constexpr int BLOCK = 16;  // chunks that a thread takes at a time: a leaf

struct Format {  // ChunkFormat, in the order in which native.py has it
    int32_t k, value_bits, low_bits, low_bytes, upper_bytes, sign_bytes, selector_bytes, chunk_bytes;

    bool is_map() const { return k > K_WORD_MAX; }
    int selector_bits() const { return value_bits - 1; }
    int levels() const { return 1 << selector_bits(); }
};

// What one chunk carries: n values at rising places.
struct Values {
    int n;
    uint16_t places[K_MAX + 1];  // one more, for loops that write before they know
    uint8_t codes[K_MAX];
    uint8_t negative[K_MAX];
};

// --- threads

// work(first, last) over blocks of chunks, by so many threads. Returns -1, or the least that a call returned but -1.
template <typename Work>
int64_t each_block(int64_t chunks, int threads, const Work& work) {
    const int64_t blocks = (chunks + BLOCK - 1) / BLOCK;
    std::atomic<int64_t> next{0}, refused{-1};
    auto run = [&] {
        for (int64_t block; (block = next++) < blocks;) {
            const int64_t bad = work(block * BLOCK, std::min(chunks, (block + 1) * BLOCK));
            if (bad < 0) continue;
            int64_t seen = refused;
            while ((seen < 0 || bad < seen) && !refused.compare_exchange_weak(seen, bad)) {
            }
        }
    };
    std::vector<std::thread> helpers;
    for (int i = 1; i < std::min<int64_t>(threads, blocks); i++) helpers.emplace_back(run);
    run();
    for (auto& helper : helpers) helper.join();
    return refused;
}

// --- levels

inline uint64_t level_of(int code) { return code ? uint64_t(8 + (code & 7)) << (code >> 3) : 0; }

// The code nearest to a level: of ceil(2 v) in level units, as levels.nearest_codes.
int nearest_code(uint64_t doubled) {
    int low = 0, high = CODES - 1;  // the least code whose midpoint with the next is not under it
    while (low < high) {
        const int middle = (low + high) / 2;
        if (level_of(middle) + level_of(middle + 1) < doubled) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

template <typename Word>
uint64_t mean_of_some(const Word* magnitudes, int k) {
    uint64_t total = 0, some = 0;
    for (int i = 0; i < k; i++) {
        total += magnitudes[i];
        some += magnitudes[i] > 0;
    }
    return some ? total / some : 0;
}

template <typename Word>
void lloyd_passes(const Word* magnitudes, int k, uint64_t* levels, int count, bool some_zero) {
    uint64_t total = 0;
    for (int i = 0; i < k; i++) total += magnitudes[i];
    for (int pass = 0; pass < LLOYD_PASSES; pass++) {
        uint64_t totals[LEVELS_MAX + 1] = {total}, counts[LEVELS_MAX + 1] = {uint64_t(k)};  // of what is over each edge
        for (int j = 1; j < count; j++) {
            const Word edge = Word((levels[j - 1] + levels[j]) / 2);  // 2 v > the sum where v > this, rounded down
            uint64_t over_total = 0, over = 0;
            for (int i = 0; i < k; i++) {
                const bool is_over = magnitudes[i] > edge;
                over_total += is_over ? magnitudes[i] : 0;
                over += is_over;
            }
            totals[j] = over_total;
            counts[j] = over;
        }
        for (int j = 0; j < count; j++) {
            const uint64_t here = counts[j] - counts[j + 1];
            if (here > 0) levels[j] = (totals[j] - totals[j + 1]) / here;
        }
        if (some_zero) levels[0] = 0;
    }
}

// selection.levels_of
template <typename Word>
void levels_of(const Word* magnitudes, int k, int count, uint64_t* levels) {
    if (count == 1) {
        levels[0] = mean_of_some(magnitudes, k);
        return;
    }
    uint64_t least = magnitudes[0], most = 0;
    for (int i = 0; i < k; i++) {
        least = std::min<uint64_t>(least, magnitudes[i]);
        most = std::max<uint64_t>(most, magnitudes[i]);
    }
    const bool some_zero = least == 0;
    levels[0] = least;
    levels[1] = some_zero ? mean_of_some(magnitudes, k) : most;
    lloyd_passes(magnitudes, k, levels, 2, some_zero);
    if (count == 2) return;
    const uint64_t low = levels[0], high = levels[1];
    levels[0] = some_zero ? 0 : (least + low) / 2;
    levels[1] = some_zero ? high / 2 : low;
    levels[2] = high;
    levels[3] = (high + most) / 2;
    lloyd_passes(magnitudes, k, levels, count, some_zero);
}

// codec.nearest_levels: codes of magnitudes, given twice, at the coded levels; scaled makes sums of levels comparable.
template <typename Doubled, typename Scaled>
void nearest_levels(int k, const int* table, int count, const Doubled& doubled, const Scaled& scaled, uint8_t* codes) {
    if (count == 1) {
        for (int i = 0; i < k; i++) codes[i] = doubled(i) > 0 ? uint8_t(table[0]) : 0;
        return;
    }
    uint64_t edges[LEVELS_MAX] = {};
    for (int j = 1; j < count; j++) edges[j] = scaled(level_of(table[j - 1]) + level_of(table[j]));
    for (int i = 0; i < k; i++) {
        int code = table[0];
        for (int j = 1; j < count; j++) code = doubled(i) > edges[j] ? table[j] : code;
        codes[i] = uint8_t(code);
    }
}

// --- choosing

// Classes in the order of the values, eight to an octave, and the least value of a class.
inline uint32_t class_of(uint32_t value) { return value >> 20; }
inline uint32_t class_of(uint64_t value) {
    if (value < 8) return uint32_t(value);
    const int top = 63 - __builtin_clzll(value);
    return uint32_t(top - 2) << 3 | ((value >> (top - 3)) & 7);
}
inline void least_of_class(uint32_t number, uint32_t& value) { value = number << 20; }
inline void least_of_class(uint32_t number, uint64_t& value) {
    value = number < 8 ? number : uint64_t(8 + (number & 7)) << ((number >> 3) - 1);
}

constexpr int CLASSES = 256;  // counted from the largest value's down; the last one holds all that are smaller
constexpr int GROUPS = 512;
constexpr int K_GROUPS = 128;  // up to it, a look at the maxima of groups saves counting all values

template <typename Word>
struct Scratch {
    Word values[CHUNK];
    uint16_t places[CHUNK];
    uint8_t marks[CHUNK];
};

// Where the k-th largest of some values is: bound <= it, and it < ceiling unless ceiling is 0; `above` reach the ceiling.
template <typename Word>
struct Range {
    Word bound, ceiling;
    int above;
};

template <typename Word>
Range<Word> range_of(const Word* values, int n, int k, uint8_t* classes) {
    Word top = 0;
    for (int i = 0; i < n; i++) top = std::max(top, values[i]);
    const uint32_t first = class_of(top);
    for (int i = 0; i < n; i++) classes[i] = uint8_t(std::min<uint32_t>(first - class_of(values[i]), CLASSES - 1));
    uint16_t counts[4][CLASSES] = {};  // four, since a counter that is raised twice in a row waits for itself
    for (int i = 0; i < n; i += 4) {
        for (int lane = 0; lane < 4; lane++) counts[lane][classes[i + lane]]++;
    }
    Range<Word> range{0, 0, 0};
    uint32_t edge = 0;
    for (;; edge++) {
        const int here = counts[0][edge] + counts[1][edge] + counts[2][edge] + counts[3][edge];
        if (range.above + here >= k) break;
        range.above += here;
    }
    if (edge < CLASSES - 1) least_of_class(first - edge, range.bound);
    if (edge > 0) least_of_class(first - edge + 1, range.ceiling);
    return range;
}

// The places of the k largest of a chunk's values, rising; among equal ones the lower place counts as larger.
template <typename Word>
void choose(const Word* values, int k, uint16_t* places, Scratch<Word>& scratch) {
    Range<Word> range;
    if (k <= K_GROUPS) {  // the k-th largest of more than k groups' maxima is a lower bound of the k-th largest value
        Word* maxima = scratch.values;
        std::memcpy(maxima, values, sizeof(Word) * GROUPS);
        for (int row = GROUPS; row < CHUNK; row += GROUPS) {
            for (int g = 0; g < GROUPS; g++) maxima[g] = std::max(maxima[g], values[row + g]);
        }
        range = {range_of(maxima, GROUPS, k, scratch.marks).bound, 0, 0};
    } else {
        range = range_of(values, CHUNK, k, scratch.marks);
    }
    for (int i = 0; i < CHUNK; i++) scratch.marks[i] = values[i] >= range.bound;
    int some = 0, open = 0;
    for (int i = 0; i < CHUNK; i += 8) {
        uint64_t word;
        std::memcpy(&word, scratch.marks + i, 8);
        for (; word; word &= word - 1) scratch.places[some++] = uint16_t(i + __builtin_ctzll(word) / 8);
    }
    if (some == k) {
        std::memcpy(places, scratch.places, sizeof(uint16_t) * k);
        return;
    }
    const Word span = range.ceiling - range.bound - 1;  // of what is undecided; all that reaches the bound if no ceiling
    for (int i = 0; i < some; i++) {
        const Word value = values[scratch.places[i]];
        scratch.values[open] = value;
        open += Word(value - range.bound) <= span;
    }
    const int wanted = k - range.above;
    std::nth_element(scratch.values, scratch.values + (wanted - 1), scratch.values + open, std::greater<Word>());
    const Word last = scratch.values[wanted - 1];
    int room = wanted;  // for those that equal the last one
    for (int i = 0; i < wanted; i++) room -= scratch.values[i] > last;
    int found = 0;
    for (int i = 0; i < some; i++) {
        const Word value = values[scratch.places[i]];
        const bool is_equal = value == last;
        places[found] = scratch.places[i];
        found += value > last || (is_equal && room > 0);
        room -= is_equal;
    }
}

// --- one chunk's bytes

struct Sections {
    uint8_t *low, *upper, *signs, *selectors, *levels;

    Sections(uint8_t* chunk, const Format& its)
        : low(chunk),
          upper(low + its.low_bytes),
          signs(upper + its.upper_bytes),
          selectors(signs + its.sign_bytes),
          levels(selectors + its.selector_bytes) {}
};

// Fields of a section, one after the other, the least significant bit first.
struct Writer {
    uint8_t* at;
    int width;
    uint64_t held = 0;
    int bits = 0;

    void put(uint32_t field) {
        held |= uint64_t(field) << bits;
        for (bits += width; bits >= 8; bits -= 8, held >>= 8) *at++ = uint8_t(held);
    }
    void end() {
        if (bits > 0) *at = uint8_t(held);
    }
};

struct Reader {
    const uint8_t* at;
    int width;
    uint64_t held = 0;
    int bits = 0;

    uint32_t get() {
        for (; bits < width; bits += 8) held |= uint64_t(*at++) << bits;
        const uint32_t field = uint32_t(held & ((1u << width) - 1));
        held >>= width;
        bits -= width;
        return field;
    }
    // Whether all that is left before `end` is zero.
    bool ends(const uint8_t* end) {
        uint64_t rest = held;
        for (; at < end; at++) rest |= *at;
        return rest == 0;
    }
};

// codec.pack: the values of a chunk, k of them in the order of their places, as the one encoding that is accepted.
void pack(const Values& values, const Format& its, uint8_t* chunk) {
    const Sections to(chunk, its);
    const int k = its.k, low_bits = its.low_bits;
    std::memset(chunk, 0, size_t(its.chunk_bytes));
    const bool has_zeros = its.value_bits == 1;  // which do not travel
    uint8_t table[LEVELS_MAX];  // the codes that occur, rising, the last one again in what is left
    table[0] = *std::min_element(values.codes, values.codes + k);
    if (its.value_bits == 1) table[0] = *std::max_element(values.codes, values.codes + k);
    for (int j = 1; j < its.levels(); j++) {
        int next = CODES;
        for (int i = 0; i < k; i++) next = values.codes[i] > table[j - 1] ? std::min<int>(next, values.codes[i]) : next;
        table[j] = next < CODES ? uint8_t(next) : table[j - 1];
    }
    std::memcpy(to.levels, table, size_t(its.levels()));
    Writer low{to.low, low_bits}, signs{to.signs, 1}, selectors{to.selectors, its.selector_bits()};
    int sent = 0;
    for (int i = 0; i < k; i++) {
        if (has_zeros && values.codes[i] == 0) continue;
        const uint32_t place = values.places[i], bit = (place >> low_bits) + uint32_t(its.is_map() ? 0 : sent);
        to.upper[bit >> 3] |= uint8_t(1u << (bit & 7));
        low.put(place & ((1u << low_bits) - 1));
        signs.put(values.negative[i]);
        uint32_t selector = 0;
        for (int j = 0; j + 1 < its.levels(); j++) selector += values.codes[i] > table[j];
        selectors.put(selector);
        sent++;
    }
    low.end();
    signs.end();
    selectors.end();
}

// codec.decode: whether a chunk's bytes are well formed, and what they say. With one bit for a value that is n <= k
// values, none at level zero: the zeros with which codec.decode fills up move nothing.
bool unpack(const uint8_t* chunk, const Format& its, Values& values) {
    const Sections from(const_cast<uint8_t*>(chunk), its);
    const int k = its.k, low_bits = its.low_bits, levels = its.levels();
    int n = 0;
    for (int at = 0; at < its.upper_bytes; at += 8) {
        uint64_t word = 0;
        std::memcpy(&word, from.upper + at, size_t(std::min(8, its.upper_bytes - at)));
        if (n + __builtin_popcountll(word) > k) return false;  // R2
        for (; word; word &= word - 1, n++) {
            values.places[n] = uint16_t(8 * at + __builtin_ctzll(word) - (its.is_map() ? 0 : n));
        }
    }
    if (n != k && its.value_bits > 1) return false;  // R2
    if (n > 0 && values.places[n - 1] > (CHUNK - 1) >> low_bits) return false;  // R3
    Reader low{from.low, low_bits}, signs{from.signs, 1}, selectors{from.selectors, its.selector_bits()};
    bool rises = true;
    if (low_bits > 0) {
        int before = -1;
        for (int i = 0; i < n; i++) {
            const int place = values.places[i] << low_bits | int(low.get());
            values.places[i] = uint16_t(place);
            rises &= place > before;
            before = place;
        }
    }
    for (int i = 0; i < n; i++) values.negative[i] = uint8_t(signs.get());
    unsigned used = 0;
    bool fine = true;
    for (int i = 0; i < n; i++) {
        const uint32_t selector = selectors.get();
        used |= 1u << selector;
        values.codes[i] = from.levels[selector];
        fine &= values.codes[i] > 0 || !values.negative[i];  // R6
    }
    fine &= rises && low.ends(from.upper) && signs.ends(from.selectors) && selectors.ends(from.levels);  // R3, R4
    values.n = n;
    if (its.value_bits == 1) return fine && (from.levels[0] > 0) == (n > 0);  // R5
    bool is_last = false;  // the codes that are used rise, and the last one is said again
    for (int j = 1; j < levels; j++) {
        const bool higher = from.levels[j] > from.levels[j - 1];
        fine &= from.levels[j] >= from.levels[j - 1] && higher == bool(used >> j & 1) && !(is_last && higher);
        is_last |= !higher;
    }
    return fine && (used & 1);  // R5
}

// --- from numbers to what a chunk carries

// codec._quantise, of the values at `places`. bits: the chunk's patterns.   top: its largest magnitude's.
void quantise(const uint32_t* bits, uint32_t top, const Format& its, int level_bias, Values& values) {
    uint32_t magnitudes[K_MAX];
    const int top_exponent = std::max<int>(int(top >> 23), 1);
    for (int i = 0; i < its.k; i++) {
        const uint32_t pattern = bits[values.places[i]];
        const int exponent = std::max<int>(int(pattern >> 23 & 0xFF), 1);
        const uint32_t mantissa = (pattern & 0x7FFFFF) | uint32_t((pattern & 0x7FFFFFFF) >= 1u << 23) << 23;
        magnitudes[i] = mantissa >> std::min(31, top_exponent - exponent);
        values.negative[i] = uint8_t(pattern >> 31);
    }
    const int shift = std::clamp(top_exponent - 150 + level_bias, SHIFT_MIN, SHIFT_MAX);
    const int up = std::max(shift, 0), down = std::max(-shift, 0);
    uint64_t levels[LEVELS_MAX];
    int table[LEVELS_MAX];
    levels_of(magnitudes, its.k, its.levels(), levels);
    for (int j = 0; j < its.levels(); j++) {
        table[j] = nearest_code(((levels[j] * 2 << up) + (1ull << down) - 1) >> down);
    }
    auto doubled = [&](int i) { return uint64_t(magnitudes[i]) * 2 << up; };
    auto scaled = [&](uint64_t sum) { return sum << down; };
    nearest_levels(its.k, table, its.levels(), doubled, scaled, values.codes);
    for (int i = 0; i < its.k; i++) values.negative[i] &= values.codes[i] > 0;
    values.n = its.k;
}

struct Encoder {
    uint32_t magnitudes[CHUNK];
    Scratch<uint32_t> scratch;
    Values values;

    // Whether the chunk holds finite numbers only.
    bool encode(const float* a, const Format& its, int level_bias, uint8_t* chunk) {
        const uint32_t* bits = reinterpret_cast<const uint32_t*>(a);
        uint32_t top = 0;
        for (int i = 0; i < CHUNK; i++) magnitudes[i] = bits[i] & 0x7FFFFFFF;
        for (int i = 0; i < CHUNK; i++) top = std::max(top, magnitudes[i]);
        if (top >= INFINITY_BITS) return false;
        choose(magnitudes, its.k, values.places, scratch);
        quantise(bits, top, its, level_bias, values);
        pack(values, its, chunk);
        return true;
    }
};

// reduce._encode_sums, of one chunk.
struct Reducer {
    int64_t sums[CHUNK];
    uint64_t magnitudes[CHUNK];
    Scratch<uint64_t> scratch;
    Values values;

    void encode(const Format& its, uint64_t divisor, uint8_t* chunk) {
        for (int i = 0; i < CHUNK; i++) magnitudes[i] = uint64_t(sums[i] < 0 ? -sums[i] : sums[i]);
        choose(magnitudes, its.k, values.places, scratch);
        uint64_t* chosen = scratch.values;
        for (int i = 0; i < its.k; i++) chosen[i] = magnitudes[values.places[i]];
        uint64_t levels[LEVELS_MAX];
        int table[LEVELS_MAX];
        levels_of(chosen, its.k, its.levels(), levels);
        for (int j = 0; j < its.levels(); j++) table[j] = nearest_code((levels[j] * 2 + divisor - 1) / divisor);
        auto doubled = [&](int i) { return chosen[i] * 2; };
        auto scaled = [&](uint64_t sum) { return sum * divisor; };
        nearest_levels(its.k, table, its.levels(), doubled, scaled, values.codes);
        for (int i = 0; i < its.k; i++) values.negative[i] = sums[values.places[i]] < 0 && values.codes[i] > 0;
        values.n = its.k;
        pack(values, its, chunk);
    }
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int p2pnet_abi() { return 1; }

const char* p2pnet_source() { return P2PNET_SOURCE; }

// a = beta * e + (theta - local) * scale into e. scale: 1 leaves the product out, which changes no bit.
void p2pnet_accumulate(float* e, const float* theta, const float* local, int64_t n, float beta, float scale, int threads) {
    each_block((n + CHUNK - 1) / CHUNK, threads, [=](int64_t first, int64_t last) -> int64_t {
        const int64_t end = std::min(n, last * CHUNK);
        for (int64_t i = first * CHUNK; i < end; i++) e[i] = beta * e[i] + (theta[i] - local[i]) * scale;
        return -1;
    });
}

// payload: chunks * chunk_bytes. returns: a chunk that holds a NaN or infinity, or -1.
int64_t p2pnet_encode(const float* a, int64_t chunks, const Format* fmt, int level_bias, uint8_t* payload, int threads) {
    return each_block(chunks, threads, [=](int64_t first, int64_t last) -> int64_t {
        Encoder encoder;
        for (int64_t c = first; c < last; c++) {
            if (!encoder.encode(a + c * CHUNK, *fmt, level_bias, payload + c * fmt->chunk_bytes)) return c;
        }
        return -1;
    });
}

// returns: a malformed chunk, or -1.
int64_t p2pnet_check(const uint8_t* payload, int64_t chunks, const Format* fmt, int threads) {
    return each_block(chunks, threads, [=](int64_t first, int64_t last) -> int64_t {
        Values values;
        for (int64_t c = first; c < last; c++) {
            if (!unpack(payload + c * fmt->chunk_bytes, *fmt, values)) return c;
        }
        return -1;
    });
}

// slices: payloads of the same chunks.   factors: weight * clip of each.   divisor: 256 * total weight.   returns: as above.
int64_t p2pnet_reduce(
    const uint8_t* const* slices,
    const int64_t* factors,
    int64_t inputs,
    int64_t divisor,
    int64_t chunks,
    const Format* fmt,
    const Format* fmt_out,
    uint8_t* output,
    int threads
) {
    return each_block(chunks, threads, [=](int64_t first, int64_t last) -> int64_t {
        Reducer reducer;
        for (int64_t c = first; c < last; c++) {
            std::memset(reducer.sums, 0, sizeof reducer.sums);
            for (int64_t j = 0; j < inputs; j++) {
                Values& its = reducer.values;
                if (!unpack(slices[j] + c * fmt->chunk_bytes, *fmt, its)) return c;
                for (int i = 0; i < its.n; i++) {
                    const int64_t value = int64_t(level_of(its.codes[i])) * factors[j];
                    reducer.sums[its.places[i]] += its.negative[i] ? -value : value;
                }
            }
            reducer.encode(*fmt_out, uint64_t(divisor), output + c * fmt_out->chunk_bytes);
        }
        return -1;
    });
}

// Learner: theta moves by a checked result; e, which holds a, loses what of `sent` it took in.
// sent: my payload, or null.   named: for each chunk whether its part names me.   steps: 512 doubles.   table: 512 floats.
void p2pnet_apply(
    float* theta,
    float* e,
    int64_t chunks,
    const uint8_t* result,
    const Format* fmt_result,
    const double* steps,
    const uint8_t* sent,
    const Format* fmt,
    const float* table,
    const uint8_t* named,
    int threads
) {
    each_block(chunks, threads, [=](int64_t first, int64_t last) -> int64_t {
        Values decided, mine;
        for (int64_t c = first; c < last; c++) {
            unpack(result + c * fmt_result->chunk_bytes, *fmt_result, decided);
            float* to = theta + c * CHUNK;
            for (int i = 0; i < decided.n; i++) {
                float& value = to[decided.places[i]];
                value = float(double(value) - steps[decided.codes[i] + CODES * decided.negative[i]]);
            }
            if (sent == nullptr || !named[c]) continue;
            uint8_t taken[CHUNK] = {};
            for (int i = 0; i < decided.n; i++) taken[decided.places[i]] = decided.codes[i] > 0;
            unpack(sent + c * fmt->chunk_bytes, *fmt, mine);
            float* left = e + c * CHUNK;
            for (int i = 0; i < mine.n; i++) {
                if (taken[mine.places[i]]) left[mine.places[i]] -= table[mine.codes[i] + CODES * mine.negative[i]];
            }
        }
        return -1;
    });
}

}  // extern "C"
#pragma GCC visibility pop
