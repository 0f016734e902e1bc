"""`make download MODEL=Qwen/Qwen3-0.6B`: a model from Hugging Face into `models/`, for `make up` and `stack-up`.

HF_TOKEN is used for models that want it; HF_ENDPOINT names another hub. What is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from huggingface_hub import errors, snapshot_download

ROOT = Path(__file__).resolve().parent.parent
_WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "LICENSE*", "README.md")


def fetch(model: str, folder: Path, revision: str, *, everything: bool) -> str:
    """Fetches it into the folder. Returns an empty text, or why it cannot be had and what to do."""
    patterns = None if everything else list(_WEIGHTS)
    try:
        snapshot_download(model, revision=revision or None, local_dir=folder, allow_patterns=patterns)
    except errors.GatedRepoError:
        return f"{model} wants its terms accepted on its page, and HF_TOKEN of who did."
    except errors.RepositoryNotFoundError:
        return f"the hub has no model {model}, or shows it to nobody without HF_TOKEN. Names are owner/name."
    except errors.RevisionNotFoundError:
        return f"{model} has no revision {revision}."
    except errors.HFValidationError as error:
        return f"{model!r} is no name of a model: {error}"
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        hub = os.environ.get("HF_ENDPOINT", "Hugging Face")
        return (
            f"{hub} cannot be reached from here, or the disk is full ({str(error).splitlines()[0]}). "
            "On a machine without a hub, copy the model's folder and name it: make up MODEL=/path/to/it"
        )
    if not list(folder.glob("*.safetensors")) and not everything:
        return f"{model} has no safetensors. Its other files come with ARGS=--everything."
    return ""


def main(argv: list[str]) -> int:
    """Returns 0 when the model is there."""
    parser = argparse.ArgumentParser(prog="make download MODEL=… ARGS=…", description=__doc__)
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL_NAME", ""), help="owner/name at the hub")
    parser.add_argument("--revision", default="", help="branch, tag or commit")
    parser.add_argument("--into", type=Path, default=None, help="folder; default: models/<name>")
    parser.add_argument("--everything", action="store_true", help="all files, not only what vLLM needs")
    options = parser.parse_args(argv)
    if not options.model:
        sys.stderr.write("download: which model? make download MODEL=Qwen/Qwen3-0.6B\n")
        return 2
    folder = options.into or ROOT / "models" / options.model.rpartition("/")[2]
    if problem := fetch(options.model, folder, options.revision, everything=options.everything):
        sys.stderr.write(f"download: {problem}\n")
        return 1
    shown = os.path.relpath(folder)
    print(f"{options.model} is in {shown}. Next: make up MODEL={shown}, or make stack-up MODEL={shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
