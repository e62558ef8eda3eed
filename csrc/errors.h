// What the native core throws of its own; everything else is of the standard library (invalid_argument, out_of_range,
// length_error become ValueError, IndexError, ValueError).
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace trimtab {

// A request that is not what the protocol or the model asks for: INVALID_ARGUMENT. The text says what was expected and
// what came.
class WireError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// A GPU that this process cannot use, for now or ever again: UNAVAILABLE. Nothing is wrong with the request.
class DeviceError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// A client's text for use in a message: in double quotes, control characters escaped, cut after about 80 bytes. `text`
// is UTF-8.
std::string quote(std::string_view text);

}  // namespace trimtab
