#include "bindings.h"
namespace trimtab {
void bind_slab(pybind11::module_&) {}
}  // namespace trimtab
