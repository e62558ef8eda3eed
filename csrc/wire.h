// The protobuf wire format: a reader that never leaves its bytes, and writers.
//
// The reader borrows the bytes; what it returns are views into them. It is as lenient as protobuf where messages of
// this protocol may be (unknown fields, overlong varints) and stricter where no writer needs it: groups and varints
// that overflow 64 bits are refused. It never recurses and never allocates.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "errors.h"

namespace trimtab::wire {

static_assert(std::endian::native == std::endian::little, "fixed-width values are copied as they are");

enum class Kind : std::uint8_t { varint = 0, fixed64 = 1, length = 2, fixed32 = 5 };

struct Tag {
    std::uint32_t field;
    Kind kind;
};

[[noreturn]] inline void fail(const char* what) {
    throw WireError(std::string("expected a message in protobuf encoding, came malformed bytes: ") + what);
}

// An unaligned little-endian value.
template <class T>
T load(const char* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
}

class Reader {
  public:
    explicit Reader(std::string_view message) : at_(message.data()), end_(message.data() + message.size()) {}

    bool done() const { return at_ == end_; }
    const char* position() const { return at_; }

    Tag tag() {
        const std::uint64_t tag = varint(5, "a tag longer than 5 bytes");
        const auto field = static_cast<std::uint32_t>(tag >> 3);
        if (tag > 0xFFFFFFFFU || field == 0) fail("a field number out of range");
        switch (tag & 7U) {
            case 0: return {field, Kind::varint};
            case 1: return {field, Kind::fixed64};
            case 2: return {field, Kind::length};
            case 5: return {field, Kind::fixed32};
            case 3:
            case 4: fail("a group");
            default: fail("an unknown wire type");
        }
    }

    std::uint64_t varint() { return varint(10, "a varint longer than 10 bytes"); }
    std::uint32_t fixed32() { return load<std::uint32_t>(take(4)); }
    std::uint64_t fixed64() { return load<std::uint64_t>(take(8)); }

    std::string_view bytes() {
        const std::uint64_t size = varint(5, "a length longer than 5 bytes");
        return {take(size), static_cast<std::size_t>(size)};
    }

    void skip(Kind kind) {
        switch (kind) {
            case Kind::varint: varint(); return;
            case Kind::fixed64: take(8); return;
            case Kind::fixed32: take(4); return;
            case Kind::length: bytes(); return;
        }
    }

  private:
    const char* take(std::uint64_t size) {
        if (size > static_cast<std::uint64_t>(end_ - at_)) fail("a field that goes past the end of its message");
        const char* start = at_;
        at_ += size;
        return start;
    }

    std::uint64_t varint(int limit, const char* too_long) {
        std::uint64_t value = 0;
        for (int i = 0; i < limit; ++i) {
            if (at_ == end_) fail("a varint that goes past the end of its message");
            const auto byte = static_cast<unsigned char>(*at_++);
            if (i == 9 && byte > 1) fail("a varint of more than 64 bits");
            value |= static_cast<std::uint64_t>(byte & 0x7FU) << (7 * i);
            if (byte < 0x80) return value;
        }
        fail(too_long);
    }

    const char* at_;
    const char* end_;
};

// Writers come in pairs with one interface, so that a message is described once: Counter finds its size, Writer writes
// it into memory of that size.
class Counter {
  public:
    std::size_t size() const { return size_; }

    void varint(std::uint64_t value) { size_ += (static_cast<std::size_t>(std::bit_width(value | 1U)) + 6) / 7; }
    void append(std::string_view bytes) { size_ += bytes.size(); }

  private:
    std::size_t size_ = 0;
};

class Writer {
  public:
    explicit Writer(char* out) : at_(out) {}

    void varint(std::uint64_t value) {
        for (; value >= 0x80; value >>= 7) *at_++ = static_cast<char>(value | 0x80U);
        *at_++ = static_cast<char>(value);
    }
    void append(std::string_view bytes) {
        if (!bytes.empty()) std::memcpy(at_, bytes.data(), bytes.size());
        at_ += bytes.size();
    }

  private:
    char* at_;
};

template <class S>
concept Sink = requires(S sink) {
    sink.varint(std::uint64_t{});
    sink.append(std::string_view{});
};

// A field of bytes; as proto3, an empty singular one is not written by callers.
void write_bytes(Sink auto& sink, std::uint32_t field, std::string_view bytes) {
    sink.varint(field << 3 | static_cast<std::uint32_t>(Kind::length));
    sink.varint(bytes.size());
    sink.append(bytes);
}

// A field that is a message: `body` writes it into the sink it is given, twice.
template <Sink S, class Body>
void write_message(S& sink, std::uint32_t field, const Body& body) {
    Counter counter;
    body(counter);
    sink.varint(field << 3 | static_cast<std::uint32_t>(Kind::length));
    sink.varint(counter.size());
    body(sink);
}

}  // namespace trimtab::wire
