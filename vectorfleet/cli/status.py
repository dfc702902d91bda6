"""`status`: nodes, collections, shards and replicas, as the cluster sees itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from vectorfleet._client import Client
from vectorfleet._models import ClusterInfo, Collection, ShardState
from vectorfleet.cli.connection import connected
from vectorfleet.cli.output import human_bytes, show_json, show_table, warn_of_gaps
from vectorfleet.cli.watching import watch
from vectorfleet.errors import NotFound


@click.command()
@click.argument("name", required=False)
@click.option("--watch", "watching", is_flag=True, help="Show all of it again and again, with rates, until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(0.2), default=2.0, show_default=True, metavar="SECONDS", help="Of --watch."
)
@connected
def status(client: Client, name: str | None, watching: bool, interval: float, as_json: bool) -> None:
    """Show nodes, collections, shards and replicas: all, or those of the collection NAME."""
    if watching:
        if as_json or name is not None:
            raise click.UsageError("--watch shows the whole cluster, for people: it takes no NAME and no --json")
        watch(client, interval)
        return
    names = [name] if name is not None else [one.name for one in client.list_collections()]
    collections = []
    for listed in names:
        try:
            collections.append(client.get_collection(listed))
        except NotFound:
            if name is not None:
                raise
            # It was removed between the two calls.
    info = client.cluster()
    shards = [shard for shard in info.shards if name is None or shard.collection == name]
    if as_json:
        told = asdict(info)
        told["collections"] = [asdict(one) for one in collections]
        told["shards"] = [asdict(shard) for shard in shards]
        show_json(told)
        return
    _show_cluster(info)
    _show_collections(collections)
    if shards:
        click.echo()
        rows = [
            (
                shard.collection,
                shard.shard,
                replica.node,
                "primary" if replica.primary else "replica",
                replica.status,
                replica.points,
                replica.buffered_points,
                replica.segments,
                replica.tombstones,
                replica.codebook_version,
                human_bytes(replica.index_bytes + replica.memory_bytes),
                human_bytes(replica.disk_bytes),
            )
            for shard in shards
            for replica in shard.replicas
        ]
        headers = ["collection", "shard", "node", "role", "status", "points", "buffered", "segments", "tombstones"]
        show_table([*headers, "codebook", "memory", "disk"], rows)
    _warn(info, shards)
    for one in collections:
        warn_of_gaps(one.coverage)


def _warn(info: ClusterInfo, shards: Sequence[ShardState]) -> None:
    for node in info.nodes:
        if node.unknown_collections:
            click.echo(
                f"warning: {node.id} holds replicas of {', '.join(node.unknown_collections)} on disk, of which the shard map "
                "knows nothing: was etcd's data lost? Stop the cluster and bring it back, or restore a backup",
                err=True,
            )
    for shard in shards:
        for replica in shard.replicas:
            if replica.message:
                click.echo(f"warning: {shard.collection}/{shard.shard} on {replica.node}: {replica.message}", err=True)


def _show_cluster(info: ClusterInfo) -> None:
    etcd = "connected" if info.coordinator_connected else "NOT REACHABLE (the map below is the last one known)"
    click.echo(f"etcd {etcd}, epoch {info.epoch}, controller {info.controller or 'none'}")
    click.echo()
    if not info.nodes:
        click.echo("no nodes")
        return
    rows = [
        (
            node.id,
            node.address,
            node.live,
            node.replicas,
            human_bytes(node.resident_bytes),
            human_bytes(node.mapped_resident_bytes),
            f"{human_bytes(node.memory_used_bytes)} of {human_bytes(node.memory_limit_bytes)}",
            human_bytes(node.disk_free_bytes),
            node.version,
        )
        for node in info.nodes
    ]
    show_table(
        ["node", "address", "live", "replicas", "resident", "of it mapped", "promised", "disk free", "version"], rows
    )


def _show_collections(collections: list[Collection]) -> None:
    click.echo()
    if not collections:
        click.echo("no collections: `vectorfleet create` makes one")
        return
    rows = []
    for one in collections:
        progress = one.progress
        points = (progress.points, progress.indexed_points, progress.buffered_points) if progress else ("-", "-", "-")
        codebook = progress.codebook if progress else None
        trained = (
            f"v{codebook.version}, {codebook.nlist} lists, m {codebook.m}" if codebook and codebook.version else "none"
        )
        state = "settled" if progress and progress.settled else "indexing"
        rows.append((one.name, one.dim, one.metric, one.shards, *points, trained, state, one.embedding_model or "-"))
    headers = ["collection", "dim", "metric", "shards", "points", "indexed", "buffered", "codebook", "state", "model"]
    show_table(headers, rows)
