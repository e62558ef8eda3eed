// The datatypes of the protocol that this server takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "infer_message.h"

namespace trimtab {

enum class Datatype : std::uint8_t { boolean, int32, int64, fp32, fp64, bytes };

struct DatatypeTraits {
    Datatype datatype;
    std::string_view name;
    std::size_t width;  // of a raw element; 0: behind a length
    List list;          // of typed contents
};

inline constexpr DatatypeTraits kDatatypes[] = {
    {Datatype::boolean, "BOOL", 1, List::booleans}, {Datatype::int32, "INT32", 4, List::int32s},
    {Datatype::int64, "INT64", 8, List::int64s},    {Datatype::fp32, "FP32", 4, List::fp32s},
    {Datatype::fp64, "FP64", 8, List::fp64s},       {Datatype::bytes, "BYTES", 0, List::bytes},
};

// Calls loop(zero) with a zero of the type: the type is chosen once, outside the rows.
template <class Loop>
void with_type(Datatype datatype, const Loop& loop) {
    switch (datatype) {
        case Datatype::boolean: return loop(std::uint8_t{});
        case Datatype::int32: return loop(std::int32_t{});
        case Datatype::int64: return loop(std::int64_t{});
        case Datatype::fp32: return loop(float{});
        case Datatype::fp64: return loop(double{});
        case Datatype::bytes: return;
    }
}

}  // namespace trimtab
