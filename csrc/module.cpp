// The Python extension trimtab._native. Nothing here but the list of its parts.
#include "bindings.h"

PYBIND11_MODULE(_native, module) {
    module.doc() = "Trimtab's native core: slabs, wire codec, column programs.";
    trimtab::bind_slab(module);
    trimtab::bind_codec(module);
    trimtab::bind_tensors(module);
    trimtab::bind_columns(module);
    trimtab::bind_summaries(module);
    trimtab::bind_hot(module);
    trimtab::bind_shared(module);
    trimtab::bind_tracing(module);
    trimtab::bind_hub(module);
    trimtab::bind_batch_queue(module);
    trimtab::bind_sampling(module);
    trimtab::bind_groups(module);
    trimtab::bind_crc(module);
#ifdef TRIMTAB_FRONT
    trimtab::bind_front(module);
#endif
}
