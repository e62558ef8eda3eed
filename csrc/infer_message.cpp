#include "infer_message.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <string>

#include "utf8.h"
#include "wire.h"

namespace trimtab {
namespace {

using wire::Kind;
using wire::Reader;
using wire::Tag;

// Field numbers of inference.proto.
namespace request {
constexpr std::uint32_t model_name = 1, model_version = 2, id = 3, parameters = 4, inputs = 5, outputs = 6,
                        raw_contents = 7;
}
namespace tensor {
constexpr std::uint32_t name = 1, datatype = 2, shape = 3, parameters = 4, contents = 5;
}
namespace requested {
constexpr std::uint32_t name = 1, parameters = 2;
}
namespace entry {
constexpr std::uint32_t key = 1, value = 2;
}
namespace choice {
constexpr std::uint32_t boolean = 1, int64 = 2, string = 3, real = 4, uint64 = 5;
}

[[noreturn]] void fail_limit(const char* what, std::size_t limit) {
    throw WireError("expected at most " + std::to_string(limit) + " " + what + ", came more");
}

template <class T>
T& add(std::vector<T>& items, T item, const char* what) {
    if (items.size() == kMaxTensors) fail_limit(what, kMaxTensors);
    return items.emplace_back(std::move(item));
}

std::string_view text(Reader& reader) {
    const std::string_view bytes = reader.bytes();
    if (!is_utf8(bytes)) wire::fail("a string that is not UTF-8");
    return bytes;
}

// --- parameters ------------------------------------------------------------------------------------------------------

// Two occurrences of `value` in one entry merge, which for a oneof of scalars is: the last one set wins.
void parse_choice(std::string_view message, Parameter& parameter) {
    Reader reader(message);
    while (!reader.done()) {
        const Tag tag = reader.tag();
        if (tag.field == choice::boolean && tag.kind == Kind::varint) {
            parameter.value = reader.varint() != 0;
        } else if (tag.field == choice::int64 && tag.kind == Kind::varint) {
            parameter.value = static_cast<std::int64_t>(reader.varint());
        } else if (tag.field == choice::string && tag.kind == Kind::length) {
            parameter.value = text(reader);
        } else if (tag.field == choice::real && tag.kind == Kind::fixed64) {
            parameter.value = std::bit_cast<double>(reader.fixed64());
        } else if (tag.field == choice::uint64 && tag.kind == Kind::varint) {
            parameter.value = reader.varint();
        } else {
            reader.skip(tag.kind);
        }
    }
}

Parameter parse_entry(std::string_view message) {
    Parameter parameter;
    Reader reader(message);
    while (!reader.done()) {
        const Tag tag = reader.tag();
        if (tag.field == entry::key && tag.kind == Kind::length) {
            parameter.key = text(reader);
        } else if (tag.field == entry::value && tag.kind == Kind::length) {
            parse_choice(reader.bytes(), parameter);
        } else {
            // Protobuf's own implementations disagree whether such an entry is in the map; no writer makes one.
            wire::fail("a map entry with an unknown field");
        }
    }
    return parameter;
}

class MessageParser {
  public:
    explicit MessageParser(InferMessage& message) : message_(message) {}

    void parse(std::string_view body) {
        Reader reader(body);
        while (!reader.done()) {
            const Tag tag = reader.tag();
            if (tag.kind != Kind::length) {  // every field of a request is of this kind; others are unknown
                reader.skip(tag.kind);
                continue;
            }
            switch (tag.field) {
                case request::model_name: message_.model_name = text(reader); break;
                case request::model_version: message_.model_version = text(reader); break;
                case request::id: message_.id = text(reader); break;
                case request::parameters: parse_parameter(reader.bytes(), message_.parameters, 0); break;
                case request::inputs: parse_input(reader.bytes()); break;
                case request::outputs: parse_output(reader.bytes()); break;
                case request::raw_contents: add(message_.raw_contents, reader.bytes(), "raw_input_contents"); break;
                default: reader.skip(tag.kind);
            }
        }
    }

  private:
    // One entry of the map that starts at `first`; an equal key is replaced.
    void parse_parameter(std::string_view bytes, std::vector<Parameter>& all, std::size_t first) {
        if (++parameters_ > kMaxParameters) fail_limit("parameters", kMaxParameters);
        const Parameter parameter = parse_entry(bytes);
        const auto same = std::find_if(all.begin() + static_cast<std::ptrdiff_t>(first), all.end(),
                                       [&](const Parameter& other) { return other.key == parameter.key; });
        if (same != all.end()) {
            *same = parameter;
            return;
        }
        if (all.size() - first == kMaxParametersOfOne)
            fail_limit("parameters of one tensor or request", kMaxParametersOfOne);
        all.push_back(parameter);
    }

    static void add_dimension(Shape& shape, std::uint64_t value) {
        if (shape.rank == kMaxRank) fail_limit("dimensions", kMaxRank);
        shape.dims[shape.rank++] = static_cast<std::int64_t>(value);
    }

    void parse_input(std::string_view bytes) {
        InputTensor& input = add(message_.inputs, {}, "inputs");
        input.parameters.first = message_.tensor_parameters.size();
        input.contents.first = message_.content_pieces.size();
        Reader reader(bytes);
        while (!reader.done()) {
            const Tag tag = reader.tag();
            if (tag.field == tensor::shape && tag.kind == Kind::varint) {
                add_dimension(input.shape, reader.varint());
                continue;
            }
            if (tag.kind != Kind::length) {
                reader.skip(tag.kind);
                continue;
            }
            switch (tag.field) {
                case tensor::name: input.name = text(reader); break;
                case tensor::datatype: input.datatype = text(reader); break;
                case tensor::shape:
                    for (Reader packed(reader.bytes()); !packed.done();) add_dimension(input.shape, packed.varint());
                    break;
                case tensor::parameters:
                    parse_parameter(reader.bytes(), message_.tensor_parameters, input.parameters.first);
                    break;
                case tensor::contents:
                    parse_contents(add(message_.content_pieces, reader.bytes(), "pieces of contents"), input);
                    break;
                default: reader.skip(tag.kind);
            }
        }
        input.parameters.last = message_.tensor_parameters.size();
        input.contents.last = message_.content_pieces.size();
    }

    void parse_output(std::string_view bytes) {
        RequestedOutput output;
        output.parameters.first = message_.tensor_parameters.size();
        Reader reader(bytes);
        while (!reader.done()) {
            const Tag tag = reader.tag();
            if (tag.field == requested::name && tag.kind == Kind::length) {
                output.name = text(reader);
            } else if (tag.field == requested::parameters && tag.kind == Kind::length) {
                parse_parameter(reader.bytes(), message_.tensor_parameters, output.parameters.first);
            } else {
                reader.skip(tag.kind);
            }
        }
        output.parameters.last = message_.tensor_parameters.size();
        add(message_.outputs, output, "requested outputs");
    }

    void parse_contents(std::string_view piece, InputTensor& input);

    InferMessage& message_;
    std::size_t parameters_ = 0;  // entries seen, replaced ones too
};

// --- typed contents --------------------------------------------------------------------------------------------------

Kind kind_of(List list) {
    switch (list) {
        case List::fp32s: return Kind::fixed32;
        case List::fp64s: return Kind::fixed64;
        case List::bytes: return Kind::length;
        default: return Kind::varint;
    }
}

// Calls run(list, bytes) for each run of elements in a piece: the body of a packed list, one unpacked element, or the
// value of one BYTES element.
template <class Run>
void for_each_run(std::string_view piece, const Run& run) {
    Reader reader(piece);
    while (!reader.done()) {
        const Tag tag = reader.tag();
        const auto list = static_cast<List>(tag.field);
        const bool known = tag.field >= 1 && tag.field < kLists;
        if (known && tag.kind == Kind::length) {
            run(list, reader.bytes());
            continue;
        }
        const char* start = reader.position();
        reader.skip(tag.kind);
        if (known && tag.kind == kind_of(list))
            run(list, std::string_view(start, static_cast<std::size_t>(reader.position() - start)));
    }
}

std::size_t count_elements(List list, std::string_view run) {
    const auto fixed = [&](std::size_t width) {
        if (run.size() % width != 0) wire::fail("a packed list whose length is no multiple of its elements'");
        return run.size() / width;
    };
    switch (kind_of(list)) {
        case Kind::length: return 1;
        case Kind::fixed32: return fixed(4);
        case Kind::fixed64: return fixed(8);
        case Kind::varint: break;
    }
    std::size_t count = 0;
    for (Reader reader(run); !reader.done(); ++count) reader.varint();
    return count;
}

void MessageParser::parse_contents(std::string_view piece, InputTensor& input) {
    for_each_run(piece, [&](List list, std::string_view run) {
        const std::size_t count = count_elements(list, run);
        std::uint32_t& total = input.elements[static_cast<std::size_t>(list)];
        if (count > std::numeric_limits<std::uint32_t>::max() - total)
            fail_limit("elements", std::numeric_limits<std::uint32_t>::max());
        total += static_cast<std::uint32_t>(count);
    });
}

template <class T>
void append_value(std::vector<char>& out, T value) {
    const auto* bytes = reinterpret_cast<const char*>(&value);
    out.insert(out.end(), bytes, bytes + sizeof(T));
}

// As protobuf: a bool is any value but zero, narrow integers keep the low bits.
void append_varints(std::vector<char>& out, List list, std::string_view run) {
    for (Reader reader(run); !reader.done();) {
        const std::uint64_t value = reader.varint();
        switch (list) {
            case List::booleans: out.push_back(value != 0 ? 1 : 0); break;
            case List::int32s:
            case List::uint32s: append_value(out, static_cast<std::uint32_t>(value)); break;
            default: append_value(out, value);
        }
    }
}

std::size_t raw_width(List list) {
    switch (list) {
        case List::booleans: return 1;
        case List::int32s:
        case List::uint32s:
        case List::fp32s:
        case List::bytes: return 4;  // of bytes: the length
        default: return 8;
    }
}

}  // namespace

void InferMessage::clear() {
    model_name = model_version = id = {};
    parameters.clear();
    inputs.clear();
    outputs.clear();
    raw_contents.clear();
    tensor_parameters.clear();
    content_pieces.clear();
}

void parse_infer_message(std::string_view body, InferMessage& message) {
    message.clear();
    MessageParser(message).parse(body);
}

InferMessage parse_infer_message(std::string_view body) {
    InferMessage message;
    parse_infer_message(body, message);
    return message;
}

std::string_view raw_elements(const InferMessage& message, const InputTensor& input, List list,
                              std::vector<char>& copy) {
    const std::size_t count = input.elements[static_cast<std::size_t>(list)];
    const Kind kind = kind_of(list);
    const auto each_run = [&](const auto& run) {
        for (std::size_t i = input.contents.first; i < input.contents.last; ++i) {
            for_each_run(message.content_pieces[i], [&](List of, std::string_view bytes) {
                if (of == list) run(bytes);
            });
        }
    };
    if (kind == Kind::fixed32 || kind == Kind::fixed64) {
        std::string_view whole;
        each_run([&](std::string_view bytes) {
            if (bytes.size() == count * raw_width(list)) whole = bytes;
        });
        if (!whole.empty()) return whole;
    }
    copy.clear();
    copy.reserve(count * raw_width(list));
    each_run([&](std::string_view bytes) {
        switch (kind) {
            case Kind::varint: append_varints(copy, list, bytes); break;
            case Kind::length: append_value(copy, static_cast<std::uint32_t>(bytes.size())); [[fallthrough]];
            default: copy.insert(copy.end(), bytes.begin(), bytes.end());
        }
    });
    return {copy.data(), copy.size()};
}

}  // namespace trimtab
