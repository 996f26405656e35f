"""``python -m analysis.verify DIR``: whether an exported folder still is, byte for byte, what was exported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from study.command import Parser, expanded, refuse_empty, run_command
from study.errors import ArtifactError


def parser() -> argparse.ArgumentParser:
    parse = Parser(
        prog="python -m analysis.verify",
        description="Compare every file of an exported folder with the SHA-256 in its manifest. Nothing is loaded.",
    )
    parse.add_argument("folder", metavar="DIR", help="folder that analysis.export wrote")
    parse.add_argument(
        "--manifest-hash", metavar="HEX", help="what the manifest itself must hash to, as the export printed it"
    )
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    folder = expanded(args.folder, "DIR")
    from analysis.export.manifest import MANIFEST_FILE, sha256_of, verify

    manifest = verify(folder)
    digest = sha256_of(folder / MANIFEST_FILE)
    if args.manifest_hash is not None and args.manifest_hash.lower() != digest:
        raise ArtifactError(f"{folder / MANIFEST_FILE}: its SHA-256 is {digest}, not the one that was asked for")
    n = len(manifest["files"])
    print(f"{folder}: intact, {n} files of study {manifest['study']}, manifest SHA-256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
