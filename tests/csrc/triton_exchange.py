"""One call of the unmodified tritonclient to a server that answers with the bytes on stdin.

Prints as JSON the bytes that the client sent and what it made of the answer. Run as a script: tritonclient's
descriptors clash with ours in one process.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput


class Recorder(grpc.GenericRpcHandler):
    """Keeps the last request as it came and gives one answer."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.request = b""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self.respond)

    def respond(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.request = request
        return self.answer


def inputs() -> list[InferInput]:
    """Three rows, one tensor of each kind, in another order than the schema's."""
    columns = {
        "town": ("BYTES", np.array(["Zürich".encode(), b"", "Île".encode()], np.object_)),
        "age": ("FP32", np.array([1.5, np.nan, -0.0], np.float32)),
        "visits": ("INT64", np.array([2**53 + 1, -1, 0], np.int64)),
        "member": ("BOOL", np.array([True, False, True])),
    }
    tensors = []
    for name, (datatype, values) in columns.items():
        tensor = InferInput(name, [3, 1], datatype)
        tensor.set_data_from_numpy(values.reshape(3, 1))
        tensors.append(tensor)
    return tensors


def main() -> None:
    recorder = Recorder(sys.stdin.buffer.read())
    server = grpc.server(ThreadPoolExecutor(1), handlers=[recorder])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with InferenceServerClient(f"127.0.0.1:{port}") as client:
        result = client.infer(
            "flights",
            inputs(),
            model_version="3",
            request_id="é-1",
            outputs=[InferRequestedOutput("probability")],
            parameters={"trimtab_time_us": 1_700_000_000_000_000, "note": "ü"},
        )
    server.stop(None)
    message = result.get_response()
    arrays = {output.name: result.as_numpy(output.name) for output in message.outputs}
    answer = {
        "model_version": message.model_version,
        "parameters": {key: value.string_param for key, value in message.parameters.items()},
        "outputs": {
            name: [str(array.dtype), list(array.shape), array.tobytes().hex()] for name, array in arrays.items()
        },
    }
    print(json.dumps({"request": recorder.request.hex(), "answer": answer}))


if __name__ == "__main__":
    main()
