"""pytriton serving one ONNX file: `python pytriton_server.py MODEL PORT THREADS`. Its body: V2 bytes."""

import sys

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MODEL, PORT, THREADS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def main():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    image, classes = session.get_inputs()[0].shape[1:], session.get_outputs()[0].shape[1]

    @batch
    def infer(pixels):
        return session.run(["logits"], {"pixels": pixels})

    config = TritonConfig(
        http_address="127.0.0.1", http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2, log_verbose=0
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="net",
            infer_func=infer,
            inputs=[Tensor(name="pixels", dtype=np.float32, shape=tuple(image))],
            outputs=[Tensor(name="logits", dtype=np.float32, shape=(classes,))],
            config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()


if __name__ == "__main__":
    main()
