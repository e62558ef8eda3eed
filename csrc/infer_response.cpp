#include "infer_response.h"

#include "wire.h"

namespace trimtab {
namespace {

using wire::Sink;
using wire::write_bytes;
using wire::write_message;

void write_text(Sink auto& sink, std::uint32_t field, std::string_view text) {
    if (!text.empty()) write_bytes(sink, field, text);
}

void write_parameter(Sink auto& sink, std::string_view key, std::string_view value) {
    write_message(sink, 4, [&](Sink auto& entry) {
        write_bytes(entry, 1, key);
        write_message(entry, 2, [&](Sink auto& choice) { write_bytes(choice, 3, value); });
    });
}

void write_parameter(Sink auto& sink, std::string_view key, std::uint64_t value) {
    write_message(sink, 4, [&](Sink auto& entry) {
        write_bytes(entry, 1, key);
        write_message(entry, 2, [&](Sink auto& choice) {
            choice.varint(2U << 3 | static_cast<std::uint32_t>(wire::Kind::varint));
            choice.varint(value);
        });
    });
}

void write_output(Sink auto& sink, const OutputTensor& output) {
    write_message(sink, 5, [&](Sink auto& tensor) {
        write_text(tensor, 1, output.name);
        write_text(tensor, 2, output.datatype);
        write_message(tensor, 3, [&](Sink auto& shape) {
            shape.varint(static_cast<std::uint64_t>(output.rows));
            for (const std::int64_t dim : output.row_shape) shape.varint(static_cast<std::uint64_t>(dim));
        });
        if (output.region.empty()) return;
        write_parameter(tensor, "shared_memory_region", output.region);
        write_parameter(tensor, "shared_memory_byte_size", output.region_bytes);
        if (output.region_offset != 0) write_parameter(tensor, "shared_memory_offset", output.region_offset);
    });
}

// Field numbers are those of ModelInferResponse in inference.proto.
void write(Sink auto& sink, const Response& response) {
    write_text(sink, 1, response.head->model_name);
    write_text(sink, 2, response.head->model_version);
    write_text(sink, 3, response.id);
    write_parameter(sink, "trimtab_weights", response.head->weights);
    write_parameter(sink, "trimtab_request_id", response.request_id);
    if (response.final_response) {
        write_message(sink, 4, [&](Sink auto& entry) {
            write_bytes(entry, 1, "triton_final_response");
            write_message(entry, 2, [&](Sink auto& choice) {
                choice.varint(1U << 3 | static_cast<std::uint32_t>(wire::Kind::varint));
                choice.varint(1);
            });
        });
    }
    for (const OutputTensor& output : response.outputs) write_output(sink, output);
    for (const OutputTensor& output : response.outputs) write_bytes(sink, 6, output.raw);
}

}  // namespace

std::size_t response_size(const Response& response) {
    wire::Counter counter;
    write(counter, response);
    return counter.size();
}

void write_response(const Response& response, char* out) {
    wire::Writer writer(out);
    write(writer, response);
}

}  // namespace trimtab
