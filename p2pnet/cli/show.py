"""`p2pnet swarm show`: read a manifest back, from a file, a folder, or from the swarm's own members."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from p2pnet.cli.folders import Json, StateDir, choose_swarm, state_dir_or_default
from p2pnet.cli.terminal import in_bytes, in_time, note, show_fields, write_json
from p2pnet.config import expand_home
from p2pnet.errors import ConfigError, WireError
from p2pnet.identity import peer_id_text, verify
from p2pnet.manifests import FOLDER_CHARS, codec_sizes, swarm_folder
from p2pnet.wire.manifest import MANIFEST_BYTES_MAX, PPM, Link, Manifest, Option, open_manifest, swarm_id
from p2pnet.wire.signing import Signed

SCHEME = "p2pnet:"


def show(
    what: Annotated[
        str | None,
        typer.Argument(metavar="LINK|FILE|DIR", help="Which swarm (default: the only one on this machine)."),
    ] = None,
    state_dir: StateDir = None,
    bootstrap: Annotated[
        list[str] | None, typer.Option(metavar="ADDR", help="Start from this peer too; repeatable.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long to look for members.", min=0.1)
    ] = 30.0,
    json: Json = False,
) -> None:
    """Show what a swarm is, from its signed manifest, which is verified first.

    With a link the manifest is fetched from a member by its hash, unless it is
    on this machine already. Looking leaves no trace: the key is made for the
    occasion, and nothing is announced.

    p2pnet swarm show 'p2pnet://...'
    p2pnet swarm show manifest.bin --json
    """
    place = state_dir_or_default(state_dir)
    if what is not None and what.strip().startswith(SCHEME):
        manifest, source = _from_link(Link.parse(what), place, tuple(bootstrap or ()), timeout_s)
    else:
        path = _find_file(expand_home(Path(what), "swarm") if what is not None else place)
        manifest, source = read_manifest(path), str(path)
    facts = describe_manifest(manifest)
    if json:
        write_json({"source": source, **facts})
        return
    show_fields([*_rows(facts), ("read from", source)])


def read_manifest(path: Path, expected: bytes | None = None) -> Signed[Manifest]:
    """Read and verify a manifest's file; in a swarm's folder it must be that swarm's. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MANIFEST_BYTES_MAX + 1)
        manifest = open_manifest(raw, expected, verify)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}") from error
    except WireError as error:
        raise ConfigError(f"{path}: not a valid manifest: {error}") from error
    named = path.absolute().parent.name
    is_swarm_folder = len(named) == FOLDER_CHARS and set(named) <= set("0123456789abcdef")
    if is_swarm_folder and not swarm_id(manifest).hex().startswith(named):
        found = swarm_id(manifest).hex()
        raise ConfigError(f"{path}: not a valid manifest: its hash is {found}, its folder says {named}")
    return manifest


def describe_manifest(signed: Signed[Manifest]) -> dict[str, Any]:
    """Return what a manifest says, and what follows from it, as JSON's types."""
    manifest, sizes = signed.message, codec_sizes(signed.message)
    policy = {name: getattr(manifest.policy, name) for name in type(manifest.policy).__slots__}
    return {
        "name": manifest.name,
        "swarm": swarm_id(signed).hex(),
        "creator": peer_id_text(signed.peer),
        "created_unix_s": manifest.created_unix_s,
        "access": manifest.access,
        "founders": [peer_id_text(peer) for peer in manifest.founders],
        "task": manifest.task,
        "task_options": _options(manifest.task_options),
        "inner": manifest.inner,
        "inner_options": _options(manifest.inner_options),
        "params": manifest.params,
        "tensors": sum(row.trained for row in manifest.parameters),
        "tensors_frozen": sum(1 - row.trained for row in manifest.parameters),
        "codec": {name: getattr(manifest.codec, name) for name in type(manifest.codec).__slots__},
        "chunks": sizes.chunks,
        "payload_bytes_per_round": sizes.payload_bytes,
        "result_bytes_per_round": sizes.result_bytes,
        "compression_vs_fp32": round(sizes.compression, 3),
        "policy": policy,
        "initial_sha256": manifest.initial.hex(),
        "initial_bytes": manifest.initial_bytes,
    }


def _from_link(link: Link, place: Path, bootstrap: tuple[str, ...], timeout_s: float) -> tuple[Signed[Manifest], str]:
    from p2pnet.node.content import MANIFEST_NAME

    here = swarm_folder(place, link.swarm) / MANIFEST_NAME
    if here.exists():
        return read_manifest(here, link.swarm), str(here)
    import trio

    from p2pnet.cli.fetch import fetch_manifest

    return trio.run(fetch_manifest, Link(link.swarm, (*link.bootstrap, *bootstrap)), timeout_s, note)


def _find_file(path: Path) -> Path:
    from p2pnet.node.content import MANIFEST_NAME

    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"{path}: no such file or folder; a link starts with p2pnet://")
    absent = f"{path}: no swarm there: no folder in it holds {MANIFEST_NAME}"
    return choose_swarm(path, MANIFEST_NAME, "", absent) / MANIFEST_NAME


def _options(options: tuple[Option, ...]) -> dict[str, str]:
    return {option.name: option.value for option in options}


def _rows(facts: dict[str, Any]) -> list[tuple[str, object]]:
    """Return the facts as people read them."""
    policy, codec = facts["policy"], facts["codec"]
    frozen = f", {facts['tensors_frozen']} frozen" if facts["tensors_frozen"] else ""
    seconds = {name: f"{policy[f'{name}_ms'] / 1000:g} s" for name in ("window", "grace", "stall")}
    payload, result = in_bytes(facts["payload_bytes_per_round"]), in_bytes(facts["result_bytes_per_round"])
    steps, window = policy["h_steps"], seconds["window"]
    training = f"{window}, {steps} steps of an ordinary member" if policy["by_window"] else f"{steps} steps or {window}"
    training += f", {policy['round_samples']} samples for the full weight"
    how = {1: "sign only", 2: "two levels", 3: "four levels"}[codec["value_bits"]]
    packing = f"k {codec['k']} of 4096, result {codec['k_result']}, {how}, level bias {codec['level_bias']}"
    packing += ", dense" if codec["coding"] else ""
    smaller = f"{facts['compression_vs_fp32']:.1f}x less than fp32"
    groups = f"groups of up to {policy['group_size_max']}, reducers at least {policy['reducers_min']}"
    voting = f"up to {policy['voters_max']} voters, a vote after {policy['service_rounds']} rounds"
    waiting = f"grace {seconds['grace']}, stalled after {seconds['stall']}"
    return [
        ("name", facts["name"]),
        ("swarm", facts["swarm"]),
        ("access", "open: anyone with the link can join" if facts["access"] == "open" else facts["access"]),
        ("creator", facts["creator"]),
        ("created", in_time(facts["created_unix_s"])),
        ("founders", "\n".join(facts["founders"])),
        ("task", f"{facts['task']}: {_listed(facts['task_options'])}"),
        ("inner optimizer", f"{facts['inner']}: {_listed(facts['inner_options'])}"),
        ("parameters", f"{facts['params']:,} in {facts['tensors']} tensors{frozen}"),
        ("initial", f"{in_bytes(facts['initial_bytes'])}, SHA-256 {facts['initial_sha256']}"),
        ("a round", training + (", exchanged beside the next one's training" if policy["overlap"] else "")),
        ("codec", f"{packing}; {facts['chunks']} chunks"),
        ("payload", f"{payload} per member and round, {smaller}; result {result}"),
        ("outer step", f"alpha {policy['alpha_ppm'] / PPM:g}, beta {policy['beta_ppm'] / PPM:g}"),
        ("policy", f"{groups}\n{voting}\n{waiting}, snapshot every {policy['snapshot_rounds']} rounds"),
    ]


def _listed(options: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
