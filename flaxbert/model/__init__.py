"""The encoder, its heads and the models made of them. flax.linen lives here alone."""
