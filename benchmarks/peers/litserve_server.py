"""LitServe serving one ONNX file: `python litserve_server.py MODEL PORT THREADS`. Its body: JSON with base64 pixels."""

import base64
import sys

import litserve
import numpy as np
import onnxruntime

MODEL, PORT, THREADS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


class Api(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.shape = self.session.get_inputs()[0].shape[1:]

    def decode_request(self, request):
        return np.frombuffer(base64.b64decode(request["pixels"]), "<f4").reshape(self.shape)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return self.session.run(["logits"], {"pixels": x})[0]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"logits": output.tolist()}


if __name__ == "__main__":
    # No wait for a fuller batch, as in our server; `batch_timeout` must be above 0 for batches at all.
    api = Api(max_batch_size=32, batch_timeout=0.001)
    litserve.LitServer(api, accelerator="cpu", fast_queue=True).run(
        host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False, num_api_servers=1
    )
