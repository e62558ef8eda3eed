"""A session of tritonclient.http, unmodified, against a server: `triton_http_session.py ADDRESS`. Prints what it saw as
JSON. Blocking, asynchronous (gevent) and asyncio clients, both forms of tensors, both compressions."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio

COLUMNS = {
    "x": np.array([[0.5], [np.nan]], np.float32),
    "flag": np.array([[True], [False]]),
    "code": np.array([[3], [99]], np.int64),
    "city": np.array([["Riga"], ["Ålesund"]], np.object_),
    "order": np.array([["a"], ["b"]], np.object_),
}
TYPES = {"x": "FP32", "flag": "BOOL", "code": "INT64", "city": "BYTES", "order": "BYTES"}


def inputs(binary: bool = True, leave_out: str = "", rename: str = "") -> list[triton.InferInput]:
    made = []
    for name, values in COLUMNS.items():
        if name != leave_out:
            tensor = triton.InferInput(f"{name}_" if name == rename else name, list(values.shape), TYPES[name])
            tensor.set_data_from_numpy(values, binary_data=binary)
            made.append(tensor)
    return made


def refusal(client: Any, model: str, **wrong: Any) -> list[str]:
    try:
        client.infer(model, inputs(**wrong))
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]
    return ["200", ""]


def answers(client: triton.InferenceServerClient) -> dict[str, Any]:
    """The same rows in every form."""
    wanted = {
        "binary": [triton.InferRequestedOutput("probability", binary_data=True)],
        "json": [triton.InferRequestedOutput("probability", binary_data=False)],
    }
    made: dict[str, Any] = {"default": client.infer("tiny", inputs())}
    for form, outputs in wanted.items():
        for binary in (True, False):
            made[f"{form}_of_{'binary' if binary else 'json'}"] = client.infer("tiny", inputs(binary), outputs=outputs)
    for algorithm in ("gzip", "deflate"):
        made[algorithm] = client.infer(
            "tiny", inputs(), request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
        )
    made["async"] = client.async_infer("tiny", inputs()).get_result()
    made["version"] = client.infer("tiny", inputs(), model_version="1")
    return {name: result.as_numpy("probability").tolist() for name, result in made.items()}


async def aio(address: str) -> dict[str, Any]:
    async with triton_aio.InferenceServerClient(address) as client:
        results = await asyncio.gather(*(client.infer("tiny", inputs()) for _ in range(8)))
        # (request_compression_algorithm fails inside this version of the client.)
        packed = await client.infer("tiny", inputs(), response_compression_algorithm="gzip")
        return {
            "live": await client.is_server_live(),
            "metadata": await client.get_model_metadata("tiny"),
            "answers": [result.as_numpy("probability").tolist() for result in [*results, packed]],
        }


def main(address: str) -> None:
    with triton.InferenceServerClient(address, concurrency=4) as client:
        result = client.infer("tiny", inputs(), request_id="mine", timeout=20_000_000)
        seen = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready("tiny"),
            "other_ready": client.is_model_ready("tiny", "7"),
            "server": client.get_server_metadata(),
            "metadata": client.get_model_metadata("tiny"),
            "config": client.get_model_config("tiny"),
            "index": client.get_model_repository_index(),
            "response": result.get_response(),
            "answers": answers(client),
            "statistics": client.get_inference_statistics("tiny"),
            "all_statistics": client.get_inference_statistics(),
            "unknown_model": refusal(client, "other"),
            "missing_input": refusal(client, "tiny", leave_out="code"),
            "wrong_name": refusal(client, "tiny", binary=False, rename="city"),
        }
    seen["aio"] = asyncio.run(aio(address))
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
