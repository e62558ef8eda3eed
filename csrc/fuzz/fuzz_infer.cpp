// Target: a ModelInferRequest's bytes, from the wire to the rows of a slab.
#include <cstdlib>
#include <exception>

#include "errors.h"
#include "fuzz.h"
#include "infer_message.h"
#include "infer_rows.h"
#include "slab.h"

namespace {

using namespace trimtab;

std::shared_ptr<const Schema> mixed() {
    static const auto schema = Schema::make(
        {{"r", Type::real}, {"b", Type::boolean}, {"i", Type::integer}, {"s", Type::string}, {"k", Type::string}}, 1);
    return schema;
}

std::shared_ptr<const Schema> reals() {
    static const auto schema = Schema::make({{"x", Type::real}, {"y", Type::real}}, 0);
    return schema;
}

void decode(std::string_view body, const std::shared_ptr<const Schema>& schema) {
    try {
        const InferMessage message = parse_infer_message(body);
        InferRows rows(message, schema);
        Slab slab(schema);
        const std::size_t half = rows.rows() / 2;
        rows.append_to(slab, 0, half);
        rows.append_to(slab, half, rows.rows());
        if (slab.rows() != rows.rows()) std::abort();
    } catch (const std::exception&) {
        return;  // an error is an answer
    }
}

// --- protobuf by hand

std::string varint(std::uint64_t value) {
    std::string out;
    for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>((value & 0x7F) | 0x80));
    out.push_back(static_cast<char>(value));
    return out;
}

std::string field(unsigned number, const std::string& bytes) { return varint(number << 3 | 2) + varint(bytes.size()) + bytes; }
std::string number(unsigned field_number, std::uint64_t value) { return varint(field_number << 3) + varint(value); }

std::string input(const char* name, const char* type, std::uint64_t rows, const std::string& contents) {
    std::string made = field(1, name) + field(2, type) + number(3, rows) + number(3, 1);
    if (!contents.empty()) made += field(5, contents);
    return field(5, made);
}

std::string raw(const std::string& bytes) { return field(7, bytes); }

}  // namespace

std::vector<std::string> fuzz_seeds() {
    const std::string head = field(1, "model") + field(2, "3") + field(3, "id");
    const std::string parameters = field(4, field(1, "priority") + field(2, number(2, 7)));
    std::string typed = head + parameters;
    typed += input("r", "FP32", 2, field(6, std::string(8, '\x3f')));
    typed += input("b", "BOOL", 2, field(1, std::string("\0\1", 2)));
    typed += input("i", "INT64", 2, field(3, varint(5) + varint(~0ULL)));
    typed += input("s", "BYTES", 2, field(8, "one") + field(8, ""));
    typed += input("k", "BYTES", 2, field(8, "key") + field(8, "\xc3\xa4"));
    std::string raws = head;
    for (const char* name : {"r", "b", "i", "s", "k"}) {
        const char* type = *name == 'r' ? "FP64" : *name == 'b' ? "BOOL" : *name == 'i' ? "INT32" : "BYTES";
        raws += input(name, type, 1, "");
    }
    raws += raw(std::string(8, '\1')) + raw("\1") + raw(std::string(4, '\2'));
    raws += raw(std::string("\2\0\0\0ab", 6)) + raw(std::string("\0\0\0\0", 4));
    const std::string packed = field(5, field(1, "features") + field(2, "FP32") + field(3, varint(2) + varint(2)));
    const std::string output = field(6, field(1, "p") + field(2, field(1, "classification") + field(2, number(2, 3))));
    return {typed, raws + output, head + packed + raw(std::string(16, '\3')), head};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view body(reinterpret_cast<const char*>(data), size);
    decode(body, mixed());
    decode(body, reals());
    return 0;
}
