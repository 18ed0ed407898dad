// Coverage-guided fuzzing of native.cpp, with clang's libFuzzer and sanitizers: README.md here says how it is run.
//
// Four bytes choose formats and what is done with the rest: read and re-code chunks, read a dense frame, reduce slices.

#define P2PNET_SOURCE "fuzz"
#include <cstdlib>

#include "../../p2pnet/numerics/native.cpp"

namespace {

constexpr int KS[] = {8, 9, 13, 64, 100, 300, 512, 1000, 1024, 1025, 1100, 1536, 2048};
constexpr int KS_COUNT = sizeof KS / sizeof *KS;
using Bytes = std::vector<uint8_t>;

int in_bytes(int bits) { return (bits + 7) / 8; }

void expect(bool holds) {
    if (!holds) std::abort();
}

Format format_of(int k, int value_bits) {  // as formats.py
    Format its{};
    its.k = k;
    its.value_bits = value_bits;
    its.upper_bytes = CHUNK / 8;
    for (int low = 12, best = INT32_MAX; low >= 0 && k <= K_WORD_MAX; low--) {
        const int low_bytes = in_bytes(k * low), upper_bytes = in_bytes(k + (1 << (12 - low)));
        if (low_bytes + upper_bytes >= best) continue;
        best = low_bytes + upper_bytes;
        its.low_bits = low;
        its.low_bytes = low_bytes;
        its.upper_bytes = upper_bytes;
    }
    its.sign_bytes = in_bytes(k);
    its.selector_bytes = in_bytes(k * (value_bits - 1));
    its.chunk_bytes = its.low_bytes + its.upper_bytes + its.sign_bytes + its.selector_bytes + its.levels();
    return its;
}

void read_chunks(const uint8_t* data, size_t size, const Format& its) {
    const int64_t chunks = std::min<int64_t>(int64_t(size) / its.chunk_bytes, 4);
    const Bytes payload(data, data + chunks * its.chunk_bytes);
    Bytes again(payload.size());
    for (int64_t c = 0; c < chunks; c++) {  // what is accepted has one encoding
        Values values;
        if (!unpack(&payload[size_t(c * its.chunk_bytes)], its, values)) continue;
        pack(values, its, &again[size_t(c * its.chunk_bytes)]);
        expect(std::memcmp(&again[size_t(c * its.chunk_bytes)], &payload[size_t(c * its.chunk_bytes)], its.chunk_bytes) == 0);
    }
    if (p2pnet_check(payload.data(), chunks, &its, 1) >= 0) return;
    Bytes dense(payload.size() + CHUNK);
    const int64_t written = p2pnet_dense_encode(payload.data(), chunks, &its, dense.data(), int64_t(dense.size()));
    expect(written >= 0);
    dense.resize(size_t(written));
    dense.shrink_to_fit();
    expect(p2pnet_dense_decode(dense.data(), written, chunks, &its, again.data()) == -1 && again == payload);
    std::vector<float> theta(size_t(chunks * CHUNK)), e(theta), values(2 * CODES);
    const std::vector<double> steps(2 * CODES, 0.25);
    const Bytes named(size_t(chunks), 1);
    p2pnet_apply(theta.data(), e.data(), chunks, payload.data(), &its, steps.data(), payload.data(), &its, values.data(),
                 named.data(), 1);
}

void read_dense(const uint8_t* data, size_t size, const Format& its) {
    const int64_t chunks = 1 + int64_t(size % 3);
    const Bytes frame(data, data + size);
    Bytes payload(size_t(chunks * its.chunk_bytes));
    if (p2pnet_dense_decode(frame.data(), int64_t(size), chunks, &its, payload.data()) < 0) {
        p2pnet_check(payload.data(), chunks, &its, 1);
    }
}

void reduce_slices(const uint8_t* data, size_t size, const Format& its, const Format& fmt_out) {
    std::vector<Bytes> slices;
    for (size_t at = 0; at + its.chunk_bytes <= size && slices.size() < 5; at += its.chunk_bytes) {
        slices.emplace_back(data + at, data + at + its.chunk_bytes);
    }
    if (slices.empty()) return;
    std::vector<const uint8_t*> pointers;
    for (const auto& slice : slices) pointers.push_back(slice.data());
    const std::vector<int64_t> factors(slices.size(), 8 * 256);
    const int64_t inputs = int64_t(slices.size());
    Bytes output(size_t(fmt_out.chunk_bytes));
    if (p2pnet_reduce(pointers.data(), factors.data(), inputs, 8 * 256 * inputs, 1, &its, &fmt_out, output.data(), 1) < 0) {
        expect(p2pnet_check(output.data(), 1, &fmt_out, 1) < 0);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 4) return 0;
    const Format its = format_of(KS[data[0] % KS_COUNT], 1 + data[1] % 3);
    const Format fmt_out = format_of(KS[data[2] % KS_COUNT], its.value_bits);
    switch (data[3] % 3) {
        case 0: read_chunks(data + 4, size - 4, its); break;
        case 1: read_dense(data + 4, size - 4, its); break;
        default: reduce_slices(data + 4, size - 4, its, fmt_out);
    }
    return 0;
}
