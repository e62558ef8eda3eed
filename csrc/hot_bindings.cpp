// The base class of everything that a transport can hand hot messages to, and whether the native front is there.
#include <pybind11/pybind11.h>

#include <memory>

#include "bindings.h"
#include "hot_request.h"

namespace py = pybind11;

namespace trimtab {

void bind_hot(py::module_& module) {
#ifdef TRIMTAB_FRONT
    module.attr("HAS_FRONT") = true;
#else
    module.attr("HAS_FRONT") = false;
#endif
    py::class_<HotTarget, std::shared_ptr<HotTarget>>(module, "HotTarget", "What serves hot messages; opaque.");
}

}  // namespace trimtab
