#include "hub_answer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "errors.h"
#include "infer_classes.h"
#include "wire.h"

namespace trimtab {
namespace {

using wire::Sink;
using wire::write_bytes;
using wire::write_message;

// Fields of ModelStreamInferResponse.
constexpr std::uint32_t kErrorMessage = 1;
constexpr std::uint32_t kInferResponse = 2;

std::size_t checked(std::size_t size) {
    if (size > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
        throw std::length_error("a protobuf message holds at most 2 GiB, the answer has " + std::to_string(size) +
                                " bytes");
    }
    return size;
}

}  // namespace

AnswerWriter::AnswerWriter(const TakenBatch& batch, std::string_view weights, std::span<const BatchTensor> outputs)
    : batch_(batch),
      version_(std::to_string(batch.version)),
      outputs_(outputs),
      head_{batch.model->name, version_, weights} {
    response_.head = &head_;
}

OutputTensor AnswerWriter::slice(std::size_t output, std::size_t first, std::size_t rows) const {
    const OutputSpec& spec = batch_.model->outputs[output];
    const BatchTensor& tensor = outputs_[output];
    std::size_t begin = first * tensor.row_bytes;
    std::size_t end = begin + rows * tensor.row_bytes;
    if (!tensor.ends.empty()) {
        begin = first == 0 ? 0 : tensor.ends[first - 1];
        end = rows == 0 ? begin : tensor.ends[first + rows - 1];
    }
    return {spec.name, spec.datatype, static_cast<std::int64_t>(rows), tensor.row_shape,
            tensor.raw.substr(begin, end - begin)};
}

OutputTensor AnswerWriter::shape(std::size_t output, const OutputForm& form, const OutputTensor& plain) {
    OutputTensor shaped = plain;
    if (form.region) {
        if (plain.raw.size() > form.byte_size) {
            throw WireError("output " + quote(plain.name) + ": expected at least " + std::to_string(plain.raw.size()) +
                            " bytes of shared memory for it (shared_memory_byte_size), came " +
                            std::to_string(form.byte_size));
        }
        form.region->write(form.offset, plain.raw, transfers_);
        shaped.region = form.region->name;
        shaped.region_bytes = plain.raw.size();
        shaped.region_offset = form.offset;
        shaped.raw = {};
    }
    if (form.classes != 0) {
        classes_.resize(outputs_.size());
        class_counts_.resize(outputs_.size());
        const std::size_t per_row = outputs_[output].row_bytes / width_of(plain.datatype);
        const std::size_t count = std::min<std::size_t>(form.classes, per_row);
        classes_[output].clear();
        classify(plain.raw, plain.datatype, per_row, count, batch_.model->outputs[output].labels, classes_[output]);
        class_counts_[output] = static_cast<std::int64_t>(count);
        shaped.datatype = "BYTES";
        shaped.row_shape = {&class_counts_[output], 1};
        shaped.raw = classes_[output];
    }
    return shaped;
}

void AnswerWriter::write_generic(HubRequest& request, const RequestId& id, std::size_t first, std::size_t rows) {
    write_request_id(id, id_text_.data());
    response_.id = request.parsed.id;
    response_.request_id = {id_text_.data(), kIdText};
    response_.final_response = request.in_stream;
    response_.outputs.clear();
    const std::vector<OutputSpec>& specs = batch_.model->outputs;
    if (request.parsed.outputs.empty()) {
        for (std::size_t i = 0; i < specs.size(); ++i) response_.outputs.push_back(slice(i, first, rows));
    }
    for (std::size_t i = 0; i < request.parsed.outputs.size(); ++i) {
        // That the model has it was checked when the request came.
        const auto found = std::find_if(specs.begin(), specs.end(), [&](const OutputSpec& spec) {
            return spec.name == request.parsed.outputs[i].name;
        });
        const auto output = static_cast<std::size_t>(found - specs.begin());
        const OutputTensor plain = slice(output, first, rows);
        response_.outputs.push_back(request.forms.empty() ? plain : shape(output, request.forms[i], plain));
    }
    const std::size_t size = checked(response_size(response_));
    if (!request.in_stream) {
        request.answer.resize(size);
        write_response(response_, request.answer.data());
        return;
    }
    const auto head = [&](Sink auto& sink) {
        sink.varint(kInferResponse << 3 | static_cast<std::uint32_t>(wire::Kind::length));
        sink.varint(size);
    };
    wire::Counter counter;
    head(counter);
    request.answer.resize(checked(counter.size() + size));
    wire::Writer writer(request.answer.data());
    head(writer);
    write_response(response_, request.answer.data() + counter.size());
}

// Finds where the id and the values lie in an answer just written: the id behind the only text of its length that equals
// it, the values at the end, one behind the other with their tags and sizes between.
void AnswerWriter::learn(const HubRequest& request, std::size_t rows) {
    template_rows_ = 0;
    for (const BatchTensor& tensor : outputs_) {
        if (!tensor.ends.empty()) return;  // sizes differ from answer to answer
    }
    const Buffer<char>& answer = request.answer;
    const char* id = response_.request_id.data();
    const auto found = std::search(answer.begin(), answer.end(), id, id + kIdText);
    if (found == answer.end()) return;
    id_at_ = static_cast<std::size_t>(found - answer.begin());
    raw_at_.assign(outputs_.size(), 0);
    std::size_t end = answer.size();
    for (std::size_t i = outputs_.size(); i-- > 0;) {
        const std::size_t bytes = rows * outputs_[i].row_bytes;
        raw_at_[i] = end - bytes;
        wire::Counter head;
        head.varint(6U << 3 | static_cast<std::uint32_t>(wire::Kind::length));
        head.varint(bytes);
        end = raw_at_[i] - head.size();
    }
    template_.assign(answer.begin(), answer.end());
    template_rows_ = rows;
}

void AnswerWriter::write(std::size_t index, std::size_t first) {
    HubRequest& request = *batch_.requests[index];
    const std::size_t rows = batch_.counts[index];
    const bool plain = request.parsed.outputs.empty() && request.parsed.id.empty() && !request.in_stream;
    // Large answers are copied once either way; a template of them would be copied twice.
    constexpr std::size_t most = 4096;
    if (!plain || template_rows_ != rows) {
        write_generic(request, batch_.ids[index], first, rows);
        if (plain && request.answer.size() <= most) learn(request, rows);
        return;
    }
    request.answer.resize(template_.size());
    char* out = request.answer.data();
    std::memcpy(out, template_.data(), template_.size());
    write_request_id(batch_.ids[index], out + id_at_);
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
        const std::size_t bytes = outputs_[i].row_bytes;
        std::memcpy(out + raw_at_[i], outputs_[i].raw.data() + first * bytes, rows * bytes);
    }
}

bool AnswerWriter::settles(const HubRequest& request) {
    return std::any_of(request.forms.begin(), request.forms.end(),
                       [](const OutputForm& form) { return form.region != nullptr && form.region->settles(); });
}

void write_stream_error(HubRequest& request) {
    if (request.span) request.span->status = request.status;
    const auto write = [&](Sink auto& sink) {
        write_bytes(sink, kErrorMessage, request.message);
        if (!request.parsed.id.empty())
            write_message(sink, kInferResponse, [&](Sink auto& inner) { write_bytes(inner, 3, request.parsed.id); });
    };
    wire::Counter counter;
    write(counter);
    request.answer.resize(counter.size());
    wire::Writer writer(request.answer.data());
    write(writer);
    request.status = StatusCode::ok;
    request.message.clear();
}

}  // namespace trimtab
