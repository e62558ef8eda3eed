// SharedMemory and CudaDriver for Python: the registry behind the SystemSharedMemory and CudaSharedMemory calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>

#include "bindings.h"
#include "cuda_driver.h"
#include "errors.h"
#include "shared_memory.h"

namespace py = pybind11;

namespace trimtab {
namespace {

std::string_view bytes_of(const py::bytes& data) {
    return {PyBytes_AS_STRING(data.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(data.ptr()))};
}

py::bytes read(const SharedMemory& memory, const std::string& name, std::uint64_t offset, std::uint64_t size) {
    const auto region = memory.find(name);
    region->check(offset, size);
    if (size > memory.most()) throw WireError("expected at most most_bytes, came more");
    std::string bytes(size, '\0');
    {
        py::gil_scoped_release released;
        Transfers transfers;
        region->read(offset, bytes.size(), bytes.data(), transfers);
        transfers.settle();
    }
    return py::bytes(bytes);
}

void write(const SharedMemory& memory, const std::string& name, std::uint64_t offset, const py::bytes& data) {
    const std::string_view bytes = bytes_of(data);
    py::gil_scoped_release released;
    const auto region = memory.find(name);
    Transfers transfers;
    region->write(offset, bytes, transfers);
    transfers.settle();
}

}  // namespace

void bind_shared(py::module_& module) {
    using Released = py::call_guard<py::gil_scoped_release>;
    py::register_exception<DeviceError>(module, "DeviceError", PyExc_RuntimeError).attr("code") = "UNAVAILABLE";

    py::class_<CudaDriver, std::shared_ptr<CudaDriver>>(module, "CudaDriver", "NVIDIA's driver, where there is one.")
        .def(py::init<const std::string&>(), py::arg("library") = "libcuda.so.1", Released())
        .def_property_readonly("devices", &CudaDriver::devices)
        .def_property_readonly("missing", &CudaDriver::missing)
        .def_property_readonly("fault", &CudaDriver::fault)
        .def("fileno", &CudaDriver::descriptor);

    py::class_<SharedMemory, std::shared_ptr<SharedMemory>>(module, "SharedMemory",
                                                            "Regions of shared memory, by name.")
        .def(py::init([](std::uint64_t most, const std::shared_ptr<CudaDriver>& driver) {
                 return std::make_shared<SharedMemory>(most, driver);
             }),
             py::arg("most_bytes"), py::arg("driver") = nullptr)
        .def("register", &SharedMemory::add, py::arg("name"), py::arg("key"), py::arg("offset"), py::arg("byte_size"),
             Released())
        .def(
            "register_cuda",
            [](SharedMemory& memory, const std::string& name, const py::bytes& handle, std::int64_t device,
               std::uint64_t byte_size) {
                const std::string_view bytes = bytes_of(handle);
                py::gil_scoped_release released;
                return memory.add_cuda(name, bytes, device, byte_size);
            },
            py::arg("name"), py::arg("handle"), py::arg("device"), py::arg("byte_size"))
        .def("unregister", &SharedMemory::remove<SystemRegion>, py::arg("name"), Released())
        .def("unregister_cuda", &SharedMemory::remove<CudaRegion>, py::arg("name"), Released())
        .def("clear", &SharedMemory::clear<SystemRegion>, Released())
        .def("clear_cuda", &SharedMemory::clear<CudaRegion>, Released())
        .def("regions",
             [](const SharedMemory& memory) {
                 py::list regions;
                 for (const auto& region : memory.list<SystemRegion>())
                     regions.append(py::make_tuple(region->name, region->key, region->offset, region->byte_size));
                 return regions;
             })
        .def("cuda_regions",
             [](const SharedMemory& memory) {
                 py::list regions;
                 for (const auto& region : memory.list<CudaRegion>())
                     regions.append(py::make_tuple(region->name, region->device(), region->byte_size));
                 return regions;
             })
        .def("read", &read, py::arg("name"), py::arg("offset"), py::arg("size"))
        .def("write", &write, py::arg("name"), py::arg("offset"), py::arg("data"));
}

}  // namespace trimtab
