"""Errors of files, images and batches. See `errors.py`."""

from __future__ import annotations

from shared.errors import RequestError


def batch_not_found(batch: str) -> RequestError:
    """404, as OpenAI has it: no such batch, or somebody else's."""
    return RequestError(404, "not_found", f"No batch found with id '{batch[:64]}'.", param="batch_id")


def batch_not_cancellable(status: str) -> RequestError:
    """409, as OpenAI has it: the batch has ended otherwise."""
    message = f"Cannot cancel a batch with status '{status}'."
    return RequestError(409, "batch_ended", message, should_retry=False)


def range_not_satisfiable(size_bytes: int) -> RequestError:
    """416: the file has no such bytes."""
    message = f"The file has {size_bytes} bytes; the range lies behind them."
    headers = {"Content-Range": f"bytes */{size_bytes}"}
    return RequestError(416, "range_not_satisfiable", message, param="Range", should_retry=False, headers=headers)


def file_too_large(limit_bytes: int, purpose: str = "") -> RequestError:
    """413: the uploaded file is over the limit."""
    what = f"a file of purpose `{purpose}`" if purpose else "a file"
    message = f"The file is too large: {what} may have {limit_bytes} bytes."
    return RequestError(413, "file_too_large", message, param="file", should_retry=False)


def upload_timeout(idle_s: float, least_bytes_per_s: int) -> RequestError:
    """408: nothing came of an upload for so long, or so little in all, that it was given up."""
    message = (
        f"Nothing came of the upload for {idle_s:.0f} s, or it was so far behind {least_bytes_per_s} bytes a second, "
        "so it was given up."
    )
    return RequestError(408, "upload_timeout", message, should_retry=True)


def file_quota_exceeded(what: str) -> RequestError:
    """403: the tenant stores as much as it may. `what` says of what: bytes, files."""
    message = f"You store as many {what} as you may. Delete files that you do not need any more, or let them expire."
    return RequestError(403, "file_quota_exceeded", message, should_retry=False)


def uploads_busy() -> RequestError:
    """503: the replica takes as many uploads as it may, and none of them ended in time."""
    message = "Too many files are being uploaded right now. Retry later."
    return RequestError(503, "uploads_busy", message, retry_after_s=5, should_retry=True)


def no_storage() -> RequestError:
    """501: the replica was started without a place for files."""
    message = "No storage is configured, so there are no files here. Start the replicas with --storage-url."
    return RequestError(501, "no_storage", message, should_retry=False)


def storage_unavailable() -> RequestError:
    """503: the object storage cannot be reached, or refuses."""
    message = "The file storage cannot be used right now. Retry in a moment."
    return RequestError(503, "storage_unavailable", message, retry_after_s=5, should_retry=True)


def storage_full() -> RequestError:
    """507: the object storage takes nothing more."""
    message = "The file storage is full. Delete files, or ask the operator for more room."
    return RequestError(507, "storage_full", message, should_retry=False)


def image_not_fetched(why: str, param: str) -> RequestError:
    """422: an image that the request names by its URL could not be had. `why` completes a sentence about it."""
    message = f"The image could not be fetched: {why}. Check its URL, or send the image itself, as a data URL."
    return RequestError(422, "image_not_fetched", message, param=param, should_retry=False)


def images_busy() -> RequestError:
    """503: the replica fetches as many images as it may, and none of this request's had its turn."""
    message = "Too many images are being fetched right now. Retry later, or send the image itself, as a data URL."
    return RequestError(503, "images_busy", message, retry_after_s=5)
