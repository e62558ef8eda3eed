// A block's histogram where a value's bin is put aside as a byte. Included by columns_simd_*.h, inside of a level's
// namespace; expects of them search(), store_codes(), scan() and what tells how they count.
#pragma once

constexpr std::uint8_t kNoCode = 255;  // that of NaN

TRIMTAB_INLINE std::size_t whole(std::size_t count, std::size_t of) { return (count + of - 1) / of * of; }

template <int kLevels>
class Bins {
  public:
    TRIMTAB_INLINE void put(std::size_t row, F x, M nan, const Sketch& sketch) {
        store_codes(codes_ + row, search<kLevels>(x, sketch), nan);
    }

    // Adds the `rows` values that were put. Returns how many were no NaN.
    TRIMTAB_INLINE std::size_t count(std::size_t rows, std::size_t bins, std::uint64_t* histogram) {
        std::size_t numbers = 0;
        if (kScanFrom <= kRows && rows >= kScanFrom) {
            const std::size_t size = whole(rows, kScanned);
            for (std::size_t i = rows; i < size; ++i) codes_[i] = kNoCode;
            for (std::size_t bin = 0; bin < bins; ++bin) {
                const std::size_t found = scan(codes_, size, kOrder.code[bin]);
                histogram[bin] += found;
                numbers += found;
            }
        } else if (rows < 64) {
            for (std::size_t i = 0; i < rows; ++i) {
                if (codes_[i] == kNoCode) continue;
                ++histogram[kOrder.code[codes_[i]]];  // a code's code is its bin again
                ++numbers;
            }
        } else {
            numbers = count_in_copies(rows, bins, histogram);
        }
        return numbers;
    }

  private:
    // Four, for an addition waits for the one before it to the same place.
    TRIMTAB_INLINE std::size_t count_in_copies(std::size_t rows, std::size_t bins, std::uint64_t* histogram) {
        std::uint32_t copies[4][256] = {};
        std::size_t numbers = 0;
        for (std::size_t i = rows; i % 4 != 0; ++i) codes_[i] = kNoCode;
        for (std::size_t i = 0; i < rows; i += 4) {
            for (std::size_t j = 0; j < 4; ++j) ++copies[j][codes_[i + j]];
        }
        for (std::size_t bin = 0; bin < bins; ++bin) {
            const std::size_t code = kOrder.code[bin];
            const std::uint64_t found =
                std::uint64_t{copies[0][code]} + copies[1][code] + copies[2][code] + copies[3][code];
            histogram[bin] += found;
            numbers += found;
        }
        return numbers;
    }

    struct Order {
        std::uint8_t code[std::size_t{1} << kLevels];
        constexpr Order() : code{} {
            for (std::size_t bin = 0; bin < sizeof(code); ++bin) {
                std::size_t reversed = 0;
                for (int i = 0; i < kLevels; ++i) reversed |= ((bin >> (kLevels - 1 - i)) & 1U) << i;
                code[bin] = static_cast<std::uint8_t>(kCodesReverse ? reversed : bin);
            }
        }
    };
    static constexpr Order kOrder{};

    alignas(64) std::uint8_t codes_[kRows];
};
