#!/usr/bin/env python3
"""Packs a directory into a container image: one uncompressed layer in an OCI archive, without a daemon or a registry.

The archive is also a `docker save` archive, so `ctr images import`, `docker load`, `kind load image-archive` and
`skopeo copy oci-archive:` all read it. Its bytes depend only on the directory's contents and the arguments: entries are
sorted, owned by root and dated 1970. It never runs what it packs. It refuses device nodes and sockets.
"""

import argparse
import hashlib
import io
import json
import os
import stat
import sys
import tarfile

OCI = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def header(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, size
    return info  # TarInfo's own defaults are uid 0, gid 0, mtime 0


def layer(root: str) -> bytes:
    """The directory as a tar stream."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder, folders, files in os.walk(root):
            folders.sort()
            links = [f for f in folders if os.path.islink(os.path.join(folder, f))]
            for name in sorted(files + [f for f in folders if f not in links] + links):
                path = os.path.join(folder, name)
                entry = os.path.relpath(path, root)
                meta = os.lstat(path)
                mode = stat.S_IMODE(meta.st_mode)
                if stat.S_ISLNK(meta.st_mode):
                    info = header(entry, tarfile.SYMTYPE, 0o777)
                    info.linkname = os.readlink(path)
                    tar.addfile(info)
                elif stat.S_ISDIR(meta.st_mode):
                    tar.addfile(header(entry, tarfile.DIRTYPE, mode))
                elif stat.S_ISREG(meta.st_mode):
                    with open(path, "rb") as content:
                        tar.addfile(header(entry, tarfile.REGTYPE, mode, meta.st_size), content)
                else:
                    sys.exit(f"error: {path} is neither a file, a directory nor a symbolic link; remove it from the image")
    return out.getvalue()


def reference(name: str) -> str:
    """The full name, as containerd looks images up: with a registry and a tag."""
    first, slash, _ = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        name = f"docker.io/{name if slash else 'library/' + name}"
    return name if ":" in name.rsplit("/", 1)[1] else f"{name}:latest"


def encode(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parse.add_argument("--name", required=True, help="reference, for example caddy-cache:dev")
    parse.add_argument("--root", required=True, help="the directory to pack")
    parse.add_argument("--out", required=True, help="the archive to write")
    parse.add_argument("--entrypoint", nargs="*", default=[], help="command that always runs")
    parse.add_argument("--cmd", nargs=argparse.REMAINDER, default=[], help="its default arguments; takes all that follows")
    parse.add_argument("--user", default="65532:65532", help="UID:GID")
    parse.add_argument("--env", action="append", default=[], help="NAME=VALUE")
    args = parse.parse_args()

    name, blobs = reference(args.name), {}

    def blob(data: bytes, media: str) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    content = blob(layer(args.root), f"{OCI}.layer.v1.tar")
    settings = {
        "User": args.user,
        "WorkingDir": "/",
        "Env": ["PATH=/usr/local/bin:/usr/bin:/usr/sbin", *args.env],
    }
    if args.entrypoint:
        settings["Entrypoint"] = args.entrypoint
    if args.cmd:
        settings["Cmd"] = args.cmd
    config = blob(
        encode(
            {
                "architecture": ARCHITECTURES.get(os.uname().machine, os.uname().machine),
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": settings,
                "rootfs": {"type": "layers", "diff_ids": [content["digest"]]},
                "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tests/kube/oci.py"}],
            }
        ),
        f"{OCI}.config.v1+json",
    )
    manifest = blob(
        encode({"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": [content]}),
        f"{OCI}.manifest.v1+json",
    )
    annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rsplit(":", 1)[1]}
    files = {
        "oci-layout": encode({"imageLayoutVersion": "1.0.0"}),
        "index.json": encode(
            {
                "schemaVersion": 2,
                "mediaType": f"{OCI}.index.v1+json",
                "manifests": [{**manifest, "annotations": annotations}],
            }
        ),
        # what `docker load` reads
        "manifest.json": encode(
            [
                {
                    "Config": "blobs/sha256/" + config["digest"].removeprefix("sha256:"),
                    "RepoTags": [name.removeprefix("docker.io/").removeprefix("library/")],
                    "Layers": ["blobs/sha256/" + content["digest"].removeprefix("sha256:")],
                }
            ]
        ),
        **{f"blobs/sha256/{digest}": data for digest, data in blobs.items()},
    }
    part = f"{args.out}.part"
    with tarfile.open(part, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder in ("blobs", "blobs/sha256"):
            tar.addfile(header(folder, tarfile.DIRTYPE, 0o755))
        for path in sorted(files):
            tar.addfile(header(path, size=len(files[path])), io.BytesIO(files[path]))
    os.replace(part, args.out)
    print(f"{name} {manifest['digest']} {os.path.getsize(args.out) / 1e6:.1f} MB {args.out}")


if __name__ == "__main__":
    main()
