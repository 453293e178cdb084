"""How files say that a model made them: metadata, signed manifests (C2PA), an invisible watermark and its detector."""
