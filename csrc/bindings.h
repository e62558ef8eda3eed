// Each part of the extension binds its own classes; module.cpp calls these in order.
#pragma once

#include <pybind11/pybind11.h>

namespace trimtab {

void bind_slab(pybind11::module_& module);     // slab_bindings.cpp: Schema, Slab
void bind_codec(pybind11::module_& module);    // codec.cpp: InferRequest, encode_infer_response, WireError
void bind_column_table(pybind11::module_& module);  // column_table.cpp: ColumnTable
void bind_columns(pybind11::module_& module);  // columns.cpp: CompiledProgram, NativeSketch
void bind_summaries(pybind11::module_& module);  // summaries.cpp: HeavyHitters, RowSample, count_quantiles
void bind_hot(pybind11::module_& module);      // hot_bindings.cpp: HotTarget, HAS_FRONT
void bind_tensors(pybind11::module_& module);  // tensor_bindings.cpp: TensorSchema, TensorSlab, TensorRequest
void bind_tracing(pybind11::module_& module);  // tracing_bindings.cpp: Tracing
void bind_hub(pybind11::module_& module);      // hub_bindings.cpp: Hub, Batch, LocalOrigin, BatchPolicy
void bind_batch_queue(pybind11::module_& module);  // batch_queue_bindings.cpp: BatchQueue, for tests
void bind_front(pybind11::module_& module);    // front_bindings.cpp: Front, FrontLimits, EchoTarget; where it was built
void bind_sampling(pybind11::module_& module);  // sampling.cpp: sample_ids
void bind_groups(pybind11::module_& module);  // group_bindings.cpp: GroupQueue, Group
void bind_shared(pybind11::module_& module);   // shared_bindings.cpp: SharedMemory
void bind_crc(pybind11::module_& module);      // crc32c.cpp: crc32c

}  // namespace trimtab
