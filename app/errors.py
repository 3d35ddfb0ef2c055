"""What can go wrong in the service: each error knows its HTTP status, and is sent as an RFC 9457 problem."""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import Any

from model import errors as model_errors

PROBLEM_TYPE = "application/problem+json"


class ServiceError(Exception):
    """Base of every error a client is told about; the message becomes the problem's `detail`."""

    status = 500
    code = "internal_error"  # stable, for programs
    retry_after: int | None = None  # seconds

    def __init__(self, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if retry_after is not None:
            self.retry_after = retry_after


class BadRequest(ServiceError):
    """What arrived is not HTTP."""

    status, code = 400, "bad_request"


class BadMultipart(ServiceError):
    """The form cannot be parsed."""

    status, code = 400, "bad_multipart"


class BadJson(ServiceError):
    """The JSON cannot be parsed, or is not of the documented shape."""

    status, code = 400, "bad_json"


class Unauthorized(ServiceError):
    """An API key is needed and was not given, or is wrong."""

    status, code = 401, "unauthorized"


class BodyTimeout(ServiceError):
    """The client sent its body too slowly."""

    status, code = 408, "body_timeout"


class HeaderTimeout(ServiceError):
    """The client sent its headers too slowly."""

    status, code = 408, "header_timeout"


class TooLarge(ServiceError):
    """The body, or the picture's number of pixels, is over the limit."""

    status, code = 413, "too_large"


class UnsupportedMedia(ServiceError):
    """The content is not a picture in a format that is read here."""

    status, code = 415, "unsupported_media_type"


class UnsupportedVariant(ServiceError):
    """The picture is in a format that is read here, but in a variant of it that is not."""

    status, code = 415, "unsupported_variant"


class UnknownHost(ServiceError):
    """The request was sent to a name that is not the service's."""

    status, code = 421, "unknown_host"


class BadParameter(ServiceError):
    """A parameter or a field of the body is missing, unknown or out of range."""

    status, code = 422, "bad_parameter"


class NotSupported(BadParameter):
    """Another service's protocol has this, and it cannot be done here."""

    status, code = 400, "not_supported"


class UnknownModel(BadParameter):
    """The request names a model that is not the one that is served."""

    status, code = 404, "unknown_model"


class UrlRefused(ServiceError):
    """Pictures are not fetched from there."""

    status, code = 422, "url_refused"


class FetchFailed(ServiceError):
    """The picture could not be fetched from the host that its URL names."""

    status, code = 422, "fetch_failed"


class BrokenImage(ServiceError):
    """The picture is empty, truncated or damaged."""

    status, code = 422, "broken_image"


class TooCostly(ServiceError):
    """Decoding the picture takes more processor time or memory than one picture may have."""

    status, code = 422, "too_costly"


class ClientGone(ServiceError):
    """The client hung up before its answer; nobody reads this, the log and the metrics count it."""

    status, code = 499, "client_gone"  # nginx's number


class InferenceFailed(ServiceError):
    """The engine failed on this picture."""

    status, code = 500, "inference_failed"


class HeadersTooLarge(ServiceError):
    """The headers are over the limit."""

    status, code = 431, "headers_too_large"


class DecoderFailed(ServiceError):
    """The process that decodes pictures could not be started or was ended, and not by what the picture did."""

    status, code, retry_after = 503, "decoder_failed", 1


class Overloaded(ServiceError):
    """Too much work is waiting already."""

    status, code, retry_after = 503, "overloaded", 1


class NotReady(ServiceError):
    """The service is stopping."""

    status, code, retry_after = 503, "not_ready", 1


class EngineHangs(ServiceError):
    """The engine is busy with one batch for far too long."""

    status, code, retry_after = 503, "engine_hangs", 1


class DeadlineExceeded(ServiceError):
    """The answer was not ready in time."""

    status, code = 504, "deadline_exceeded"


OF_IMAGES: dict[type[model_errors.ImageError], type[ServiceError]] = {
    model_errors.BrokenImage: BrokenImage,
    model_errors.TooCostly: TooCostly,
    model_errors.TooLarge: TooLarge,
    model_errors.UnsupportedMedia: UnsupportedMedia,
    model_errors.UnsupportedVariant: UnsupportedVariant,
}


def clear_frames(error: BaseException | None) -> None:
    """Empty the frames that an error came through, which hold the pictures of its request.

    An error that has been a task's is often in a circle with them. Python looks for circles after so many objects,
    not bytes: a hundred refused files of 20 MB would stay in memory.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def of_image(error: model_errors.ImageError) -> ServiceError:
    """What a client is told of a picture that `model.images` cannot read."""
    return OF_IMAGES[type(error)](str(error))


def problem(status: int, code: str, detail: str, request_id: str) -> dict[str, Any]:
    """The RFC 9457 members; `type` is about:blank (the status says it all), `code` is for programs."""
    title = "Client Closed Request" if status == ClientGone.status else HTTPStatus(status).phrase
    return {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
