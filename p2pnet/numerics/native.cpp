// codec-1 and reduce-1 on a CPU: the same bytes as the torch code, which is the reference and takes over where this
// library is missing. C++17 behind a C interface, called through ctypes (native.py): no headers of Python or torch.
//
// The caller has checked shapes, limits and parameters. What comes from a peer, the bytes of payloads, is checked here
// before it is used. A function that returns int64_t returns -1 when all is well, else a chunk that it refuses; the
// caller then lets the torch code say which rule it breaks. Floating-point operations are rounded one by one: built with
// -ffp-contract=off, never with -ffast-math.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

namespace {

constexpr int CHUNK = 4096;
constexpr int K_MAX = 2048;
constexpr int K_WORD_MAX = 1024;
constexpr int LEVELS_MAX = 4;
constexpr int SHORT = 128;  // values whose 24 bits sum up to no more than 32
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

// What one chunk carries: n values at rising places, each at one of its levels.
struct Values {
    int n;
    uint8_t table[LEVELS_MAX];  // codes of the levels, never falling
    alignas(64) uint16_t places[K_MAX + 8];  // a few more, for loops that write before they know
    alignas(64) uint8_t selectors[K_MAX + 8];
    alignas(64) uint8_t negative[K_MAX + 8];  // 0 or 1
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
            for (int first = 0; first < k; first += SHORT) {  // so few that sums of 24 bits fit their own type
                Word some = 0, count = 0;
                for (int i = first; i < std::min(k, first + SHORT); i++) {
                    const bool is_over = magnitudes[i] > edge;
                    some += is_over ? magnitudes[i] : 0;
                    count += is_over;
                }
                over_total += some;
                over += count;
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

constexpr int SECTION_MAX = 4096 / 8 + 1024;  // bytes; of any section, with room to write and read a word too much

// Where the sections of a chunk begin; the last one ends the chunk.
struct Sections {
    int low, upper, signs, selectors, levels;

    explicit Sections(const Format& its)
        : low(0),
          upper(its.low_bytes),
          signs(upper + its.upper_bytes),
          selectors(signs + its.sign_bytes),
          levels(selectors + its.selector_bytes) {}
};

struct Spread {
    uint64_t of[256];  // the bits of a byte, one in each byte of a word

    constexpr Spread() : of() {
        for (int byte = 0; byte < 256; byte++) {
            for (int bit = 0; bit < 8; bit++) of[byte] |= uint64_t(byte >> bit & 1) << (8 * bit);
        }
    }
};
constexpr Spread SPREAD;

// Bytes of 0 and 1 to bits, eight at a time; what follows the n-th must be there and be 0.
void pack_bits(const uint8_t* bytes, int n, uint8_t* to) {
    for (int i = 0; i < n; i += 8) {
        uint64_t word;
        std::memcpy(&word, bytes + i, 8);
        to[i / 8] = uint8_t(word * 0x0102040810204080u >> 56);  // byte j goes to bit 56 + j, and no two meet
    }
}

// The other way round. returns: whether the bits that fill up the last byte are 0.
bool unpack_bits(const uint8_t* from, int n, uint8_t* bytes) {
    for (int i = 0; i < n; i += 8) std::memcpy(bytes + i, &SPREAD.of[from[i / 8]], 8);
    return n % 8 == 0 || from[n / 8] >> n % 8 == 0;
}

// n fields of so many bits, back to back. field(i): under 2^width.
template <typename Field>
void pack_fields(int n, int width, uint8_t* to, int bytes, const Field& field) {
    uint8_t held[SECTION_MAX] = {};
    uint64_t word = 0;
    int bits = 0, at = 0;
    for (int i = 0; i < n; i++) {
        word |= uint64_t(field(i)) << bits;
        bits += width;
        if (bits < 32) continue;
        std::memcpy(held + at, &word, 4);
        at += 4;
        word >>= 32;
        bits -= 32;
    }
    std::memcpy(held + at, &word, 8);
    std::memcpy(to, held, size_t(bytes));
}

// returns: whether what follows the n-th field is 0.
template <typename Put>
bool unpack_fields(const uint8_t* from, int bytes, int n, int width, const Put& put) {
    uint8_t held[SECTION_MAX];
    std::memcpy(held, from, size_t(bytes));
    std::memset(held + bytes, 0, 8);
    const uint32_t mask = (1u << width) - 1;
    for (int i = 0; i < n; i++) {
        uint32_t word;
        std::memcpy(&word, held + (i * width >> 3), 4);
        put(i, word >> (i * width & 7) & mask);
    }
    uint32_t rest = 0;
    for (int at = (n * width + 7) / 8; at < bytes; at++) rest |= held[at];
    if (n * width % 8) rest |= uint32_t(held[n * width >> 3]) >> (n * width & 7);
    return rest == 0;
}

// Say levels as codec-1 wants them: those that occur, each once, the last one again in what is left.
void use_levels(Values& values, const Format& its) {
    uint8_t table[LEVELS_MAX] = {}, number[LEVELS_MAX] = {};
    int count = 0;
    bool moves = false;
    for (int j = 0; j < its.levels(); j++) {
        bool is_used = false;
        for (int i = 0; i < values.n; i++) is_used |= values.selectors[i] == j;
        if (is_used && (count == 0 || values.table[j] != table[count - 1])) table[count++] = values.table[j];
        number[j] = uint8_t(std::max(count - 1, 0));
        moves |= is_used && number[j] != j;
    }
    for (int j = count; j < its.levels(); j++) table[j] = table[std::max(count - 1, 0)];
    std::memcpy(values.table, table, sizeof table);
    if (!moves) return;
    for (int i = 0; i < values.n; i++) values.selectors[i] = number[values.selectors[i]];
}

// codec.pack: the values, signs still of those at level zero too, as the one encoding that is accepted.
void pack(Values& values, const Format& its, uint8_t* chunk) {
    const Sections at(its);
    const int low_bits = its.low_bits;
    use_levels(values, its);
    int n = values.n;
    if (its.value_bits == 1 && values.table[0] == 0) n = 0;
    if (n > 0 && values.table[0] == 0) {
        for (int i = 0; i < n; i++) values.negative[i] &= values.selectors[i] > 0;
    }
    std::memset(values.negative + n, 0, 8);
    alignas(64) uint8_t marks[CHUNK + 8] = {};
    const int width = 8 * its.upper_bytes;
    if (its.is_map()) {
        for (int i = 0; i < n; i++) marks[values.places[i]] = 1;
    } else {
        for (int i = 0; i < n; i++) marks[(values.places[i] >> low_bits) + i] = 1;
    }
    const uint32_t mask = (1u << low_bits) - 1;
    if (low_bits > 0) {
        pack_fields(n, low_bits, chunk + at.low, its.low_bytes, [&](int i) { return values.places[i] & mask; });
    }
    pack_bits(marks, width, chunk + at.upper);
    std::memset(chunk + at.signs, 0, size_t(its.sign_bytes + its.selector_bytes));
    pack_bits(values.negative, n, chunk + at.signs);
    if (its.value_bits == 2) {
        std::memset(values.selectors + n, 0, 8);
        pack_bits(values.selectors, n, chunk + at.selectors);
    } else if (its.value_bits > 2) {
        const auto selector = [&](int i) { return values.selectors[i]; };
        pack_fields(n, its.selector_bits(), chunk + at.selectors, its.selector_bytes, selector);
    }
    std::memcpy(chunk + at.levels, values.table, size_t(its.levels()));
}

// codec.decode: whether a chunk's bytes are well formed, and what they say. With one bit for a value that is n <= k
// values, none at level zero: the zeros with which codec.decode fills up move nothing.
bool unpack(const uint8_t* chunk, const Format& its, Values& values) {
    const Sections at(its);
    const int k = its.k, low_bits = its.low_bits, levels = its.levels();
    int n = 0;
    for (int byte = 0; byte < its.upper_bytes; byte += 8) {
        uint64_t word = 0;
        std::memcpy(&word, chunk + at.upper + byte, size_t(std::min(8, its.upper_bytes - byte)));
        if (n + __builtin_popcountll(word) > k) return false;  // R2
        for (; word; word &= word - 1) values.places[n++] = uint16_t(8 * byte + __builtin_ctzll(word));
    }
    if (n != k && its.value_bits > 1) return false;  // R2
    if (!its.is_map()) {
        for (int i = 0; i < n; i++) values.places[i] = uint16_t(values.places[i] - i);
    }
    if (n > 0 && values.places[n - 1] > (CHUNK - 1) >> low_bits) return false;  // R3
    bool fine = true;
    if (low_bits > 0) {
        fine &= unpack_fields(chunk + at.low, its.low_bytes, n, low_bits, [&](int i, uint32_t field) {
            values.places[i] = uint16_t(values.places[i] << low_bits | field);
        });  // R3
        for (int i = 1; i < n; i++) fine &= values.places[i] > values.places[i - 1];  // R4
    }
    fine &= unpack_bits(chunk + at.signs, n, values.negative);  // R3
    for (int byte = (n + 7) / 8; byte < its.sign_bytes; byte++) fine &= chunk[at.signs + byte] == 0;
    values.n = n;
    std::memcpy(values.table, chunk + at.levels, size_t(levels));
    if (its.value_bits == 1) {
        std::memset(values.selectors, 0, size_t(n));
        return fine && (values.table[0] > 0) == (n > 0);  // R5
    }
    if (its.value_bits == 2) {
        fine &= unpack_bits(chunk + at.selectors, n, values.selectors);
    } else {
        const auto put = [&](int i, uint32_t field) { values.selectors[i] = uint8_t(field); };
        fine &= unpack_fields(chunk + at.selectors, its.selector_bytes, n, its.selector_bits(), put);
    }
    int count = 0;  // of levels that are used
    for (int j = 0; j < levels; j++) {
        bool is_used = false;
        for (int i = 0; i < n; i++) is_used |= values.selectors[i] == j;
        if (is_used) fine &= count++ == j;
    }
    for (int j = 1; j < levels; j++) {
        fine &= j < count ? values.table[j] > values.table[j - 1] : values.table[j] == values.table[j - 1];
    }  // R5
    if (values.table[0] == 0) {
        for (int i = 0; i < n; i++) fine &= values.selectors[i] > 0 || !values.negative[i];  // R6
    }
    return fine;
}

// --- from numbers to what a chunk carries

// The levels of k chosen magnitudes and which one each is at. code(level): the nearest code.   edge(sum): the largest
// magnitude that is not over half of a sum of two levels.
template <typename Word, typename Code, typename Edge>
void quantise(const Word* magnitudes, const Format& its, Values& values, const Code& code, const Edge& edge) {
    uint64_t levels[LEVELS_MAX];
    const int k = its.k, count = its.levels();
    levels_of(magnitudes, k, count, levels);
    for (int j = 0; j < count; j++) values.table[j] = uint8_t(code(levels[j]));
    std::memset(values.selectors, 0, size_t(k));
    values.n = k;
    for (int j = 1; j < count; j++) {
        const Word over = edge(level_of(values.table[j - 1]) + level_of(values.table[j]));
        for (int i = 0; i < k; i++) values.selectors[i] = uint8_t(values.selectors[i] + (magnitudes[i] > over));
    }
}

// With one bit for a value: leave out those that are zero.
template <typename Word>
void leave_out_zeros(const Word* magnitudes, Values& values) {
    int n = 0;
    for (int i = 0; i < values.n; i++) {
        values.places[n] = values.places[i];
        values.negative[n] = values.negative[i];
        n += magnitudes[i] > 0;
    }
    values.n = n;
}

struct Encoder {
    uint32_t magnitudes[CHUNK];
    uint32_t chosen[K_MAX];
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
        // In units of 2^(exponent - 150), rounded down: exact in float64, and under 2^24.
        const int exponent = std::max<int>(int(top >> 23), 1);
        const double scale = std::ldexp(1.0, 150 - exponent);
        for (int i = 0; i < its.k; i++) {
            const float value = a[values.places[i]];
            chosen[i] = uint32_t(int32_t(std::fabs(double(value)) * scale));
            values.negative[i] = std::signbit(value);
        }
        const int shift = std::clamp(exponent - 150 + level_bias, SHIFT_MIN, SHIFT_MAX);
        const int up = std::max(shift, 0), down = std::max(-shift, 0);
        const auto code = [&](uint64_t level) { return nearest_code(((level * 2 << up) + (1ull << down) - 1) >> down); };
        const auto edge = [&](uint64_t sum) {
            return uint32_t(std::min<uint64_t>((sum << down) >> (up + 1), UINT32_MAX));
        };
        quantise(chosen, its, values, code, edge);
        if (its.value_bits == 1) leave_out_zeros(chosen, values);
        pack(values, its, chunk);
        return true;
    }
};

// reduce._encode_sums, of one chunk.
struct Reducer {
    int64_t sums[CHUNK];
    uint64_t magnitudes[CHUNK];
    uint64_t chosen[K_MAX];
    Scratch<uint64_t> scratch;
    Values values;

    void encode(const Format& its, uint64_t divisor, uint8_t* chunk) {
        for (int i = 0; i < CHUNK; i++) magnitudes[i] = uint64_t(sums[i] < 0 ? -sums[i] : sums[i]);
        choose(magnitudes, its.k, values.places, scratch);
        for (int i = 0; i < its.k; i++) {
            chosen[i] = magnitudes[values.places[i]];
            values.negative[i] = sums[values.places[i]] < 0;
        }
        const auto code = [&](uint64_t level) { return nearest_code((level * 2 + divisor - 1) / divisor); };
        quantise(chosen, its, values, code, [&](uint64_t sum) { return sum * divisor / 2; });
        if (its.value_bits == 1) leave_out_zeros(chosen, values);
        pack(values, its, chunk);
    }
};

// --- dense-1: the same content as a stream of bits whose probabilities both sides work out. See protocols/dense-1.md.

struct Model {  // of a bit: how likely a one is, of 2^16, and how often it was looked at
    uint16_t one = 1 << 15;
    uint16_t seen = 0;

    void learn(bool bit) {
        const int step = (int(bit) << 16) - int(bit) - int(one);
        one = uint16_t(std::clamp(int(one) + step * 2 / (2 * int(seen) + 3), 32, (1 << 16) - 32));
        seen = uint16_t(std::min(seen + 1, SEEN_MAX));
    }
    static constexpr int SEEN_MAX = 255;
};

// A range coder with carry, as LZMA has it (Martin 1979; Subbotin; Pavlov).
struct BitEncoder {
    std::vector<uint8_t> out;
    uint64_t low = 0;
    uint32_t range = 0xFFFFFFFF;
    uint8_t held = 0;
    int64_t pending = 0;
    bool has_held = false;

    void shift() {
        if (low < 0xFF000000 || low >> 32) {
            const uint8_t carry = uint8_t(low >> 32);
            if (has_held) out.push_back(uint8_t(held + carry));
            for (; pending > 0; pending--) out.push_back(uint8_t(0xFF + carry));
            held = uint8_t(low >> 24);
            has_held = true;
        } else {
            pending++;
        }
        low = (low & 0x00FFFFFF) << 8;
    }
    bool code(bool bit, uint32_t one) {
        const uint32_t bound = (range >> 16) * one;
        if (bit) {
            range = bound;
        } else {
            low += bound;
            range -= bound;
        }
        for (; range < 1u << 24; range <<= 8) shift();
        return bit;
    }
    void end() {
        for (int i = 0; i < 5; i++) shift();
    }
};

struct BitDecoder {
    const uint8_t* at;
    const uint8_t* end;
    uint32_t value = 0, range = 0xFFFFFFFF;
    bool is_short = false;  // whether more was asked for than there is

    BitDecoder(const uint8_t* data, int64_t size) : at(data), end(data + size) {
        for (int i = 0; i < 4; i++) value = value << 8 | next();
    }
    uint8_t next() {
        if (at < end) return *at++;
        is_short = true;
        return 0;
    }
    bool code(bool, uint32_t one) {
        const uint32_t bound = (range >> 16) * one;
        const bool bit = value < bound;
        if (bit) {
            range = bound;
        } else {
            value -= bound;
            range -= bound;
        }
        for (; range < 1u << 24; range <<= 8) value = value << 8 | next();
        return bit;
    }
};

// One slice, chunk by chunk; what is learnt from a chunk counts for the next. `Coder` says or asks.
template <typename Coder>
struct Dense {
    Coder& coder;
    Model is_full, selector[LEVELS_MAX], level[LEVELS_MAX][CODES];
    uint8_t before[LEVELS_MAX] = {};  // the levels of the chunk before

    bool code(bool bit, Model& model) {
        bit = coder.code(bit, model.one);
        model.learn(bit);
        return bit;
    }
    uint32_t code(uint32_t field, int width, Model* tree) {  // the highest bit first, each under those before it
        uint32_t node = 1;
        for (int i = width - 1; i >= 0; i--) node = node << 1 | uint32_t(code(field >> i & 1, tree[node]));
        return node & ((1u << width) - 1);
    }
    // returns: false where a decoder met what no encoder says.
    bool chunk(Values& values, const Format& its) {
        int n = values.n;
        if (its.value_bits == 1 && !code(n == its.k, is_full)) {
            int said = 0;
            for (int i = 11; i >= 0; i--) said = said << 1 | int(coder.code(n >> i & 1, 1 << 15));
            n = said;
            if (n >= its.k) return false;
        } else {
            n = its.k;
        }
        values.n = n;
        for (int place = 0, found = 0; found < n; place++) {
            if (place == CHUNK) return false;
            const uint32_t one = std::min(uint32_t(uint64_t(n - found) << 16) / uint32_t(CHUNK - place), 0xFFFFu);
            if (coder.code(values.places[found] == place, one)) values.places[found++] = uint16_t(place);
        }
        for (int i = 0; i < n; i++) values.negative[i] = coder.code(values.negative[i], 1 << 15);
        if (its.value_bits > 1) {
            for (int i = 0; i < n; i++) {
                values.selectors[i] = uint8_t(code(values.selectors[i], its.selector_bits(), selector));
            }
        } else {
            std::memset(values.selectors, 0, size_t(n));
        }
        for (int j = 0; j < its.levels(); j++) {
            const uint32_t change = code(uint8_t(values.table[j] - before[j]), 8, level[j]);
            values.table[j] = before[j] = uint8_t(before[j] + change);
        }
        return true;
    }
};

// The entries of a chunk's levels in a table of 512: by level, then by level negated.
template <typename Entry>
void look_up(const Values& values, const Format& its, const Entry* table, Entry* found) {
    for (int level = 0; level < LEVELS_MAX; level++) {
        const int code = values.table[level % its.levels()];
        found[level] = table[code];
        found[LEVELS_MAX + level] = table[CODES + code];
    }
}

// theta' = float32(float64(theta) - step), of one chunk.
void move(const Values& decided, const Format& its, const double* steps, float* theta) {
    double moves[2 * LEVELS_MAX];
    look_up(decided, its, steps, moves);
    for (int i = 0; i < decided.n; i++) {
        float& value = theta[decided.places[i]];
        value = float(double(value) - moves[decided.selectors[i] + LEVELS_MAX * decided.negative[i]]);
    }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int p2pnet_abi() { return 1; }

// Whether this machine runs what was compiled for x86-64-v3 (2013 and later).
int p2pnet_has_v3() {
#ifdef __x86_64__
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

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
                int64_t moves[2 * LEVELS_MAX];  // by level, then by level negated
                for (int level = 0; level < LEVELS_MAX; level++) {
                    moves[level] = int64_t(level_of(its.table[level % fmt->levels()])) * factors[j];
                    moves[LEVELS_MAX + level] = -moves[level];
                }
                for (int i = 0; i < its.n; i++) {
                    reducer.sums[its.places[i]] += moves[its.selectors[i] + LEVELS_MAX * its.negative[i]];
                }
            }
            reducer.encode(*fmt_out, uint64_t(divisor), output + c * fmt_out->chunk_bytes);
        }
        return -1;
    });
}

// Learner: theta, unless null, moves by a checked result; e, which holds a, loses what of `sent` it took in.
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
            if (theta != nullptr) move(decided, *fmt_result, steps, theta + c * CHUNK);
            if (sent == nullptr || !named[c]) continue;
            uint8_t taken[CHUNK] = {};
            for (int i = 0; i < decided.n; i++) taken[decided.places[i]] = decided.table[decided.selectors[i]] > 0;
            unpack(sent + c * fmt->chunk_bytes, *fmt, mine);
            float* left = e + c * CHUNK;
            float values[2 * LEVELS_MAX];
            look_up(mine, *fmt, table, values);
            for (int i = 0; i < mine.n; i++) {
                const float value = values[mine.selectors[i] + LEVELS_MAX * mine.negative[i]];
                left[mine.places[i]] -= taken[mine.places[i]] ? value : 0.0f;
            }
        }
        return -1;
    });
}

// Re-code chunks as dense-1. out: room for `room` bytes. returns: how many it takes, -1 for malformed chunks, -2 for more.
int64_t p2pnet_dense_encode(const uint8_t* payload, int64_t chunks, const Format* fmt, uint8_t* out, int64_t room) {
    BitEncoder coder;
    Dense<BitEncoder> dense{coder, {}, {}, {}};
    Values values;
    for (int64_t c = 0; c < chunks; c++) {
        if (!unpack(payload + c * fmt->chunk_bytes, *fmt, values)) return -1;
        values.places[values.n] = CHUNK;
        dense.chunk(values, *fmt);
        if (int64_t(coder.out.size()) > room) return -2;
    }
    coder.end();
    if (int64_t(coder.out.size()) > room) return -2;
    std::memcpy(out, coder.out.data(), coder.out.size());
    return int64_t(coder.out.size());
}

// Undo it. payload: chunks * chunk_bytes. returns: -1, or a chunk at which the bytes are not what an encoder says.
int64_t p2pnet_dense_decode(const uint8_t* data, int64_t size, int64_t chunks, const Format* fmt, uint8_t* payload) {
    BitDecoder coder(data, size);
    Dense<BitDecoder> dense{coder, {}, {}, {}};
    Values values;
    for (int64_t c = 0; c < chunks; c++) {
        values.n = 0;
        std::memset(values.places, 0, sizeof values.places);
        if (!dense.chunk(values, *fmt) || coder.is_short) return c;
        pack(values, *fmt, payload + c * fmt->chunk_bytes);
    }
    return coder.at == coder.end ? -1 : chunks;
}

}  // extern "C"
#pragma GCC visibility pop
