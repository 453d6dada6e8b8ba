"""What can be removed from a network, and what it costs. Knows torch modules; no data, no accuracy, no evolution."""

from search_spaces.errors import EvoPruneError
from search_spaces.genome import genome_digest, pack_genome, unpack_genome
from search_spaces.groups import ChannelGroup, FrozenChannels
from search_spaces.masking import masked
from search_spaces.space import SearchSpace
from search_spaces.stages import STAGINGS, Stage, stages_of
from search_spaces.subspace import SubSpace
from search_spaces.surgery import prune_model
from search_spaces.verification import count_macs

__all__ = [
    "STAGINGS",
    "ChannelGroup",
    "EvoPruneError",
    "FrozenChannels",
    "SearchSpace",
    "Stage",
    "SubSpace",
    "count_macs",
    "genome_digest",
    "masked",
    "pack_genome",
    "prune_model",
    "stages_of",
    "unpack_genome",
]
