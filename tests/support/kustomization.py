"""A reader of the kustomizations here: as much of `kustomize build` as they use.

It resolves `resources`, gives generated ConfigMaps the suffix of a hash and rewrites the names of
ConfigMaps and images where the manifests use them.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
KNOWN_KEYS = {"apiVersion", "kind", "resources", "configMapGenerator", "images", "configurations"}


def render(folder: Path) -> list[Manifest]:
    """Every object that the kustomization of `folder` stands for."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(kustomization) - KNOWN_KEYS
    assert not unknown, f"{folder}: this reader does not know {unknown}"
    files = [folder / name for name in kustomization["resources"]]
    objects: list[Manifest] = [
        found for file in files for found in yaml.safe_load_all(file.read_text())
    ]
    generated = {one["name"]: config_map(one) for one in kustomization["configMapGenerator"]}
    images = {one["name"]: f"{one['name']}:{one['newTag']}" for one in kustomization["images"]}
    for node in (node for found in objects for node in nodes(found)):
        if "configMapRef" in node:
            node["configMapRef"]["name"] = generated[node["configMapRef"]["name"]]["metadata"][
                "name"
            ]
        if "image" in node:
            node["image"] = images[node["image"]]
    return [*generated.values(), *objects]


def config_map(generator: dict[str, Any]) -> Manifest:
    """The ConfigMap of a generator; its name changes with its content."""
    data = dict(literal.split("=", 1) for literal in generator["literals"])
    suffix = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:10]
    name = f"{generator['name']}-{suffix}"
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def nodes(value: object) -> Iterator[dict[str, Any]]:
    """Every mapping in a manifest."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from nodes(part)
    elif isinstance(value, list):
        for part in value:
            yield from nodes(part)
