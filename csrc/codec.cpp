#include "bindings.h"
namespace trimtab {
void bind_codec(pybind11::module_&) {}
}  // namespace trimtab
