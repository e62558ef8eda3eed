// What a request asks for beside its rows. Anything that this server does not do is refused: ignored, it would give a
// wrong answer silently.
#pragma once

#include <cstdint>
#include <optional>

#include "infer_message.h"

namespace trimtab {

// The request's own data time in microseconds (parameter trimtab_time_us), if it has one. Throws WireError on a
// parameter that is reserved, of another type, or asks for what is not supported. `timeout` and `priority` are for the
// server to honour; so are shared memory and classification with `forms` (infer_forms.h), which are refused without.
std::optional<std::int64_t> check_parameters(const InferMessage& message, bool forms = false);

// Throws WireError where an output is asked for twice: a small request must not get a large answer. Whether the model
// has such outputs is for others to say.
void check_requested_outputs(const InferMessage& message);

}  // namespace trimtab
