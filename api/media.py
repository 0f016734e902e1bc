"""The media parts of a request: which of them a worker may see, and which images have to be fetched before.

What reaches an engine holds data URLs and nothing that the engine would load by itself: no URL, no file, no tensors. So
the engine's own fetching is never used. Whatever looks like a URL here and is no data URL is an image to be fetched, or
the request is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from shared.errors import RequestError, invalid_request

Path = tuple[str | int, ...]

_ROOTS = (
    "messages",
    "system",
    "input",
    "query",
    "queries",
    "documents",
    "items",
    "data",
    "data_1",
    "data_2",
    "text_1",
    "text_2",
)
"""Fields in which parts may stand."""
_INSIDE = ("content", "output")
"""Fields of a part or a message in which further ones may stand."""
_FETCHED = "image_url"
_LOADED = frozenset({"image_pil", "prompt_embeds"})
_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that a request names by its URL.

    Attributes:
        path: where in the body the URL stands; of Anthropic's images, where their `source` does.
        source: whether it is one of Anthropic's.
    """

    path: Path
    url: str
    source: bool

    @property
    def param(self) -> str:
        """Its name in an error."""
        return _name(self.path[:-1] if self.path[-1] == "url" else self.path)


@dataclass(frozen=True, slots=True)
class Pictures:
    """A body and the images in it that have to be fetched: at least one.

    Attributes:
        fields: the body. Never changed: others hold it, too.
    """

    fields: dict[str, Any]
    found: tuple[Picture, ...]

    def urls(self) -> dict[str, str]:
        """URLs to fetch, each once, with the first place that names it."""
        places: dict[str, str] = {}
        for picture in self.found:
            places.setdefault(picture.url, picture.param)
        return places

    def filled(self, images: Mapping[str, tuple[str, bytes]]) -> bytes:
        """The body with each image in the place of its URL. `images`: URL → media type and content."""
        coded = {url: (kind, base64.b64encode(content).decode()) for url, (kind, content) in images.items()}
        fields: Any = self.fields
        for picture in self.found:
            kind, text = coded[picture.url]
            image: object = f"data:{kind};base64,{text}"
            if picture.source:
                image = {"type": "base64", "media_type": kind, "data": text}
            fields = _put(fields, picture.path, image)
        return msgspec.json.encode(fields)


def pictures_of(fields: dict[str, Any]) -> Pictures | None:
    """The images to fetch; None when there are none. Raises RequestError (400) for what no worker may be given."""
    found: list[Picture] = []
    for root in _ROOTS:
        given = fields.get(root)
        if isinstance(given, list | dict):
            found += _in(given, (root,))
    _check_plugin(fields.get("data"))
    return Pictures(fields, tuple(found)) if found else None


def _in(given: object, path: Path) -> Iterator[Picture]:
    """The images in a message, a part, or a list of either."""
    level: list[tuple[Any, Path]] = [(given, path)]
    while level:  # not by recursion: no depth is too much
        below: list[tuple[Any, Path]] = []
        for node, at in level:
            if isinstance(node, list):
                below += [
                    (one, (*at, place)) for place, one in enumerate(node) if type(one) is dict or type(one) is list
                ]
            elif isinstance(node, dict):
                yield from _of_part(node, at)
                below += [(node[name], (*at, name)) for name in _INSIDE if isinstance(node.get(name), list | dict)]
        level = below


def _of_part(part: dict[str, Any], path: Path) -> Iterator[Picture]:
    kind = part.get("type")
    if isinstance(kind, str) and (kind in _LOADED or kind.endswith("_embeds")):
        raise _not_for_workers(path, kind)
    media = False
    for name, value in part.items():
        if value is None:
            continue
        if name in _LOADED or name.endswith("_embeds"):
            raise _not_for_workers((*path, name), name)
        if name.endswith("_url"):
            media = True
            yield from _of_url(value, (*path, name))
        elif name == "source" and isinstance(value, dict):
            yield from _of_source(value, (*path, name), image=kind == "image")
    if part.get("uuid") is not None and (media or f"{kind}".endswith(("_url", "_audio", "_image"))):
        # an engine's cache of media goes by it, whoever has sent it: one client could get what another one has sent
        raise invalid_request("`uuid` of a media part is not for clients to set.", param=_name((*path, "uuid")))


def _of_url(value: object, path: Path) -> Iterator[Picture]:
    """What a field `…_url` names: a URL, or an object with one."""
    name = str(path[-1])
    if isinstance(value, dict):
        value, path = value.get("url"), (*path, "url")
    if not isinstance(value, str) or _is_data(value):
        return  # what is no text, the engine refuses in its own words
    if name != _FETCHED:
        message = f"`{name}` must be a data URL here: only images are fetched. Send the content itself, in base64."
        raise invalid_request(message, param=_name(path[:-1] if path[-1] == "url" else path))
    yield Picture(path, value, source=False)


def _of_source(source: dict[str, Any], path: Path, *, image: bool) -> Iterator[Picture]:
    """Anthropic's: `{"type": "url", "url": …}`."""
    url = source.get("url")
    if source.get("type") != "url" or not isinstance(url, str) or _is_data(url):
        return
    if not image:
        raise invalid_request("Only images are fetched. Send the content itself, in base64.", param=_name(path))
    yield Picture(path, url, source=True)


def _check_plugin(data: object) -> None:
    """Plugins of vLLM for pooling take data by reference."""
    if isinstance(data, dict) and data.get("data_format") in {"url", "path"}:
        raise invalid_request("`data` must hold the data itself here: nothing is fetched for it.", param="data")


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _not_for_workers(path: Path, what: str) -> RequestError:
    message = f"`{what[:_SHOWN_CHARS]}` is not taken here: embeddings and loaded images are not for clients to send."
    return invalid_request(message, param=_name(path))


def _name(path: Path) -> str:
    return ".".join(map(str, path))


def _put(node: Any, path: Path, value: object) -> Any:
    """A copy of `node` with another value at `path`; what is not on the way is shared."""
    if not path:
        return value
    copy: Any = list(node) if isinstance(node, list) else dict(node)
    copy[path[0]] = _put(node[path[0]], path[1:], value)
    return copy
