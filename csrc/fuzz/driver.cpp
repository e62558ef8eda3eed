// Runs a target on its seeds and on so many mutations of them: `fuzz_x [ITERATIONS]`. The same ones every time.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "fuzz.h"

namespace {

void run(const std::string& input) {
    // A copy of exactly this size, so that a byte read beyond it is seen.
    const std::vector<std::uint8_t> bytes(input.begin(), input.end());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

std::string mutated(std::string input, const std::vector<std::string>& seeds, std::mt19937& random) {
    const auto below = [&random](std::size_t end) { return end == 0 ? 0 : random() % end; };
    const std::size_t steps = 1 + below(4);
    for (std::size_t i = 0; i < steps; ++i) {
        const std::size_t place = below(input.size() + 1);
        const std::size_t length = std::min(1 + below(9), input.size() - place);
        switch (random() % 7) {
            case 0: input.insert(place, 1 + below(4), static_cast<char>(random())); break;
            case 1: input.erase(place, length); break;
            case 2: input.insert(place, input.substr(below(input.size()), 1 + below(64))); break;
            case 3: input.resize(place); break;
            case 4: {
                const std::string& other = seeds[below(seeds.size())];
                input = input.substr(0, place) + other.substr(below(other.size()));
                break;
            }
            default:
                for (std::size_t j = 0; j < length; ++j) {
                    constexpr unsigned char edges[] = {0, 1, 0x7F, 0x80, 0xFF, 0xFE, 9, 16};
                    input[place + j] = static_cast<char>(random() % 2 == 0 ? edges[random() % 8] : random());
                }
        }
    }
    if (input.size() > (1U << 16)) input.resize(1U << 16);
    return input;
}

}  // namespace

int main(int argc, char** argv) {
    const long iterations = argc > 1 ? std::atol(argv[1]) : 10'000;
    const std::vector<std::string> seeds = fuzz_seeds();
    run("");
    for (const std::string& seed : seeds) {
        run(seed);
        for (std::size_t size = 0; size < std::min<std::size_t>(seed.size(), 400); ++size) run(seed.substr(0, size));
    }
    std::mt19937 random(1);
    for (long i = 0; i < iterations; ++i) run(mutated(seeds[random() % seeds.size()], seeds, random));
    std::printf("%s: %ld mutations of %zu seeds\n", argv[0], iterations, seeds.size());
    return 0;
}
