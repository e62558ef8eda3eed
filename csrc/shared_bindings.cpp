// SharedMemory for Python: the registry behind the SystemSharedMemory calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>

#include "bindings.h"
#include "errors.h"
#include "shared_memory.h"

namespace py = pybind11;

namespace trimtab {

void bind_shared(py::module_& module) {
    using Released = py::call_guard<py::gil_scoped_release>;
    py::class_<SharedMemory, std::shared_ptr<SharedMemory>>(module, "SharedMemory",
                                                            "Regions of system shared memory, by name.")
        .def(py::init<std::uint64_t>(), py::arg("most_bytes"))
        .def("register", &SharedMemory::add, py::arg("name"), py::arg("key"), py::arg("offset"), py::arg("byte_size"),
             Released())
        .def("unregister", &SharedMemory::remove, py::arg("name"), Released())
        .def("clear", &SharedMemory::clear, Released())
        .def("regions",
             [](const SharedMemory& memory) {
                 py::list regions;
                 for (const auto& region : memory.list())
                     regions.append(py::make_tuple(region->name, region->key, region->offset, region->byte_size));
                 return regions;
             })
        .def(
            "read",
            [](const SharedMemory& memory, const std::string& name, std::uint64_t offset, std::uint64_t size) {
                const auto region = memory.find(name);
                region->check(offset, size);
                if (size > memory.most()) throw WireError("expected at most most_bytes, came more");
                std::string bytes(size, '\0');
                region->read(offset, bytes.size(), bytes.data());
                return py::bytes(bytes);
            },
            py::arg("name"), py::arg("offset"), py::arg("size"))
        .def(
            "write",
            [](const SharedMemory& memory, const std::string& name, std::uint64_t offset, const py::bytes& data) {
                memory.find(name)->write(offset, std::string_view(data));
            },
            py::arg("name"), py::arg("offset"), py::arg("data"));
}

}  // namespace trimtab
