"""One replica of one shard: its log, its points, its segments and the search over them. Knows neither gRPC nor asyncio.

The data's way in: `replica` → `store` (log, synced) → `buffer` → `segment` (sealed, encoded by `index`). The way out:
`replica` → `view` (an immutable snapshot) → `search` → `index` (candidates) → `scoring` (exact scores, final order).
"""
