// Answers of a batch, written into the requests that they belong to.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hub.h"
#include "infer_response.h"

namespace trimtab {

// Writes answer after answer of one batch. Most requests of a batch want the same outputs of the same number of rows and
// bring no id: their answers are alike but for the request id and the values, so the first is kept as a template.
class AnswerWriter {
  public:
    AnswerWriter(const TakenBatch& batch, std::string_view weights, std::span<const BatchTensor> outputs);

    // The answer to request `index`, whose rows begin at `first`. Throws std::length_error beyond 2 GiB, WireError where
    // an output does not fit where the request wants it, DeviceError where that is a GPU that is lost.
    void write(std::size_t index, std::size_t first);
    // Returns when what was written into shared memory lies there: no answer may leave before. Throws as write() does;
    // any of the requests that settles() names may then lack an output.
    void settle() { transfers_.settle(); }
    static bool settles(const HubRequest& request);

  private:
    OutputTensor slice(std::size_t output, std::size_t first, std::size_t rows) const;
    // The same in the form that was asked for. Throws WireError where shared memory does not take it.
    OutputTensor shape(std::size_t output, const OutputForm& form, const OutputTensor& plain);
    void write_generic(HubRequest& request, const RequestId& id, std::size_t first, std::size_t rows);
    void learn(const HubRequest& request, std::size_t rows);

    const TakenBatch& batch_;
    std::string version_;
    std::span<const BatchTensor> outputs_;
    ResponseHead head_;
    Response response_;
    std::array<char, kIdText> id_text_{};  // what response_.request_id shows, until the next answer
    // Of classes: the strings, and how many a row; by output.
    std::vector<std::string> classes_;
    std::vector<std::int64_t> class_counts_;
    std::vector<char> template_;
    std::size_t template_rows_ = 0;  // 0: none yet
    std::size_t id_at_ = 0;
    std::vector<std::size_t> raw_at_;  // of each output
    Transfers transfers_;  // goes first: what it copies from is kept by the requests and the batch
};

// A status other than ok as the answer inside a stream: ModelStreamInferResponse.error_message, with the request's id.
void write_stream_error(HubRequest& request);

}  // namespace trimtab
