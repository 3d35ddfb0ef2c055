"""Other ways of serving the same weights, for scripts/bench: `python -m benchmarks.servers NAME --port N`.

Each answers POST /caption with the multipart field `image`.
"""

import argparse
import io
from dataclasses import replace
from typing import Any, Literal

import litserve
import numpy as np
import uvicorn
from fastapi import FastAPI, Request, UploadFile
from numpy.typing import NDArray
from PIL import Image

from benchmarks import WEIGHTS
from model.caption import Caption
from model.runtime import CaptionEngine, load_engine


def decode(data: bytes, engine: CaptionEngine) -> NDArray[np.uint8]:
    """A file -> the engine's input, the plain way."""
    return engine.preprocess(Image.open(io.BytesIO(data)))


def best(engine: CaptionEngine, pixels: NDArray[np.uint8], beam: int) -> list[Caption]:
    """The best caption of each picture of a batch."""
    return [found[0] for found in engine.caption(pixels, replace(engine.config.search, beam_size=beam))]


def tutorial(port: int, beam: int) -> None:
    """A FastAPI handler around torch's eager mode: read, decode, caption, one request at a time."""
    engine = load_engine(WEIGHTS, device="cpu", engine="torch")
    app = FastAPI()

    @app.post("/caption")
    async def caption(image: UploadFile) -> dict[str, Any]:
        pixels = decode(await image.read(), engine)
        (found,) = best(engine, pixels[None], beam)
        return {"caption": found.text, "confidence": found.confidence}

    uvicorn.run(app, port=port, log_level="warning")


class LitCaptions(litserve.LitAPI):  # type: ignore[misc]
    """An engine under LitServe's dynamic batching: up to 16 pictures, waiting up to 5 ms for them."""

    def __init__(self, name: Literal["torch", "openvino"], beam: int) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.005, api_path="/caption")
        self.name, self.beam = name, beam

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.engine = load_engine(WEIGHTS, device="cpu", engine=self.name)

    def decode_request(self, request: Request) -> NDArray[np.uint8]:
        """The uploaded file as the engine's input."""
        return decode(request["image"].file.read(), self.engine)

    def predict(self, pixels: NDArray[np.uint8]) -> list[Caption]:
        """The best caption of each picture of a batch."""
        return best(self.engine, pixels, self.beam)

    def unbatch(self, output: list[Caption]) -> list[Caption]:
        """One caption a request."""
        return output

    def encode_response(self, output: Caption) -> dict[str, Any]:
        """The JSON of one answer."""
        return {"caption": output.text, "confidence": output.confidence}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("tutorial", "litserve-torch", "litserve-ours"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--beam", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="of LitServe")
    options = parser.parse_args()
    if options.name == "tutorial":
        tutorial(options.port, options.beam)
    else:
        name: Literal["torch", "openvino"] = "torch" if options.name == "litserve-torch" else "openvino"
        server = litserve.LitServer(LitCaptions(name, options.beam), "cpu", workers_per_device=options.workers)
        server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
