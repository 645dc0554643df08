"""What a server says when it refuses."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

STATUS = {  # by code; docs/serve.md says what each means
    "bad_http": 400,
    "bad_form": 400,
    "token_needed": 401,
    "wrong_host": 403,
    "foreign_origin": 403,
    "not_found": 404,
    "wrong_method": 405,
    "too_slow": 408,
    "length_needed": 411,
    "too_many_bytes": 413,
    "too_many_pixels": 413,
    "path_too_long": 414,
    "unsupported_format": 415,
    "bad_request": 422,
    "bad_style": 422,
    "bad_dimensions": 422,
    "duplicate_field": 422,
    "no_random_styles": 422,
    "undecodable_image": 422,
    "too_many_failures": 429,
    "head_too_long": 431,
    "internal": 500,
    "model_nonfinite": 500,
    "busy": 503,
    "loading": 503,
    "worker_died": 503,
    "out_of_memory": 503,
    "waited_too_long": 504,
    "took_too_long": 504,
}
SENTENCES = {  # where whoever refuses has none of its own
    "internal": "Something went wrong here; the server's log has it under this request_id.",
    "out_of_memory": "There is not enough memory for this: ask for fewer results or a smaller size.",
}


class Refusal(Exception):
    """A code of `STATUS` and one sentence for whoever asked."""

    def __init__(
        self, code: str, message: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message or SENTENCES[code])
        self.code, self.status, self.headers = code, STATUS[code], dict(headers or {})

    def response(self, request_id: str) -> JSONResponse:
        error = {"code": self.code, "message": str(self), "request_id": request_id}
        return JSONResponse({"error": error}, self.status, self.headers)


class ClientGone(Exception):
    """Nobody waits for the answer any more."""
