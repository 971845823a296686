"""What a trainer learns from substitutes: a small multimodal LM, read on real images."""
