"""Which block sizes a kernel gets: chosen from its shape, so that no call waits for a tuner and every run is the same.

How fast a size is, is a rough figure for the whole family (`rate`); what decides is how evenly the tiles fall on the
multiprocessors. `benchmarks/gpu.py` measures every size beside the one that is chosen.
"""

from dataclasses import dataclass

# What a program may hold on the smallest of the supported GPUs (compute capabilities 8.6, 8.9 and 12.0), and on 9.0.
SHARED_BYTES = 99 * 1024
SHARED_BYTES_HOPPER = 227 * 1024


@dataclass(frozen=True)
class Tile:
    """A program's share of a product, rows x columns in steps of `depth`; rate: its speed beside the best tile's.

    With `flat` a program loads the first step of its next tile while it stores the last one. That costs registers, with
    which two programs no longer fit on a multiprocessor, where the second one's work would hide the first one's stores.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    rate: float
    hopper: bool = False
    flat: bool = False

    def shared_bytes(self, row_bytes: int, column_bytes: int) -> int:
        """Bytes of shared memory that its stages fill, for operands of so many bytes an element."""
        return self.stages * self.depth * (self.rows * row_bytes + self.columns * column_bytes)

    @property
    def constants(self) -> dict[str, int]:
        """As the kernels call them."""
        return {"BLOCK_M": self.rows, "BLOCK_N": self.columns, "BLOCK_K": self.depth}


# A Hopper tensor core reads both operands from shared memory: the narrower the tile, the more it waits for them.
TILES = (
    Tile(128, 256, 64, 8, 3, 1.0, hopper=True),
    Tile(128, 128, 64, 8, 3, 0.94, hopper=True, flat=True),
    Tile(128, 128, 64, 8, 3, 0.95),
    Tile(128, 64, 64, 4, 4, 0.8),
    Tile(64, 128, 64, 4, 4, 0.8),
    Tile(64, 64, 64, 4, 4, 0.6),
    Tile(128, 64, 32, 4, 3, 0.5),
    Tile(64, 64, 32, 4, 3, 0.45),
)
# The interpreter gets small blocks, so that small tensors span several.
INTERPRETED_TILE = Tile(16, 16, 16, 4, 1, 1.0)


def candidates(row_bytes: int, column_bytes: int, hopper: bool) -> list[Tile]:
    """The tiles whose stages fit into shared memory, for operands of so many bytes an element: the deepest of them."""
    fitting = [
        tile for tile in TILES
        if (hopper or not tile.hopper)
        and tile.shared_bytes(row_bytes, column_bytes) <= (SHARED_BYTES_HOPPER if tile.hopper else SHARED_BYTES)
    ]  # fmt: skip
    return [tile for tile in fitting if tile.depth == max(other.depth for other in fitting)]


def choose(
    rows: int, columns: int, row_bytes: int, column_bytes: int, processors: int, hopper: bool, splits: int = 1
) -> Tile:
    """The tile that finishes a product of rows x columns first.

    The busiest multiprocessor decides: it has the tiles, rounded up, that fall on it, and their edges count whole.
    """

    def cost(tile: Tile) -> float:
        tiles = -(-rows // tile.rows) * -(-columns // tile.columns) * splits
        return -(-tiles // processors) * tile.rows * tile.columns / tile.rate

    return min(candidates(row_bytes, column_bytes, hopper), key=cost)


def channel_block(channels: int) -> int:
    """Channels of one program of a pair kernel: the largest power of two up to 256 that divides them, if any serves."""
    divisor = channels & -channels
    return min(divisor, 256) if divisor >= 32 else min(max(1 << (channels - 1).bit_length(), 16), 256)
