// Tensors of a request that are not in its message: inputs that lie in shared memory, outputs that go there; and outputs
// that are asked for as classes. By the parameters of Triton's shared memory and classification extensions.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "infer_message.h"
#include "shared_memory.h"

namespace trimtab {

// How one requested output is to come.
struct OutputForm {
    std::shared_ptr<const SharedRegion> region;  // null: in the answer
    std::uint64_t offset = 0;                    // of the place in the region's window
    std::uint64_t byte_size = 0;                 // most that may be written there
    std::uint32_t classes = 0;                   // 0: the values
};

// Copies the inputs that lie in shared memory into `copy`, which must outlive the message's views; raw_contents has one
// entry for each input then. Does nothing where there are none. `memory` null: shared memory is switched off. Throws
// WireError, and DeviceError where they lie on a GPU that is lost.
void read_shared_inputs(InferMessage& message, const SharedMemory* memory, Buffer<char>& copy);

// The forms of the requested outputs, one each; empty where all of them are to come as they are. Throws WireError.
void read_output_forms(const InferMessage& message, const SharedMemory* memory, std::vector<OutputForm>& forms);

}  // namespace trimtab
