"""A session of tritonclient, unmodified, against a server: `triton_session.py ADDRESS`. A process of its own, since its
protobufs and ours register the same names. Prints what it saw as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc as triton

COLUMNS = {
    "x": np.array([[0.5], [np.nan]], np.float32),
    "flag": np.array([[True], [False]]),
    "code": np.array([[3], [99]], np.int64),
    "city": np.array([["Riga"], ["Ålesund"]], np.object_),
    "order": np.array([["a"], ["b"]], np.object_),
}
TYPES = {"x": "FP32", "flag": "BOOL", "code": "INT64", "city": "BYTES", "order": "BYTES"}


def inputs(leave_out: str = "", rename: str = "", reshape: str = "", retype: str = "") -> list[triton.InferInput]:
    made = []
    for name, values in COLUMNS.items():
        if name == leave_out:
            continue
        data, datatype = values, TYPES[name]
        if name == retype:
            data, datatype = np.array([["a"], ["b"]], np.object_), "BYTES"
        if name == reshape:
            data = np.zeros((2, 3), np.float32)
        tensor = triton.InferInput(f"{name}_" if name == rename else name, list(data.shape), datatype)
        tensor.set_data_from_numpy(data)
        made.append(tensor)
    return made


def refusal(client: triton.InferenceServerClient, model: str, **wrong: str) -> list[str]:
    try:
        client.infer(model, inputs(**wrong))
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]
    return ["OK", ""]


def main(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        result = client.infer("tiny", inputs(), request_id="mine", outputs=[triton.InferRequestedOutput("probability")])
        response = result.get_response()
        seen = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready("tiny"),
            "other_ready": client.is_model_ready("tiny", "7"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata("tiny", as_json=True),
            "config": client.get_model_config("tiny", as_json=True),
            "index": client.get_model_repository_index(as_json=True),
            "answer": result.as_numpy("probability").tolist(),
            "version": response.model_version,
            "id": response.id,
            "parameters": {key: value.string_param for key, value in response.parameters.items()},
            "unknown_model": refusal(client, "other"),
            "wrong_dtype": refusal(client, "tiny", retype="x"),
            "wrong_shape": refusal(client, "tiny", reshape="x"),
            "wrong_name": refusal(client, "tiny", rename="city"),
            "missing_input": refusal(client, "tiny", leave_out="code"),
            "statistics": client.get_inference_statistics("tiny", as_json=True),
        }
        for name, call in {
            "load": lambda: client.load_model("tiny"),
            "cuda_shared_memory": lambda: client.register_cuda_shared_memory("r", b"eA==", 0, 1),
            "trace": lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
            "log": lambda: client.update_log_settings({"log_info": False}),
        }.items():
            try:
                call()
            except triton.InferenceServerException as error:
                seen[name] = error.status()
        print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
