// Target: a compressed message. What comes out is within the limit, and what we compress comes back.
#include <cstdlib>
#include <cstring>

#include "fuzz.h"
#include "grpc_gzip.h"

namespace {

constexpr std::size_t kLimit = 100'000;

trimtab::Gzip& gzip() {
    static trimtab::Gzip kept;  // as an I/O thread keeps it, through damaged streams, too
    return kept;
}

std::string packed(const std::string& text) {
    trimtab::Buffer<char> out;
    gzip().deflate(std::span(text.data(), text.size()), out);
    return {out.data(), out.size()};
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
    std::string noise;
    for (unsigned i = 0; i < 5000; ++i) noise.push_back(static_cast<char>(i * 2654435761U >> 13));
    return {packed(""), packed("some text, some text, some text"), packed(std::string(1'000'000, '\0')), packed(noise)};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::span<const char> in(reinterpret_cast<const char*>(data), size);
    trimtab::Buffer<char> out;
    if (gzip().inflate(in, kLimit, out) == trimtab::Inflated::good && out.size() > kLimit) std::abort();
    trimtab::Buffer<char> there;
    trimtab::Buffer<char> back;
    gzip().deflate(in, there);
    if (gzip().inflate(there, size + 1, back) != trimtab::Inflated::good || back.size() != size ||
        (size > 0 && std::memcmp(back.data(), data, size) != 0))
        std::abort();
    return 0;
}
