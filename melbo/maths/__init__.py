"""Mathematics of tensors and numbers: linear algebra, the transcoder, geometry, statistics."""
