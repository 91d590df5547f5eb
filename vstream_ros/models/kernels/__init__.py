"""Parts of a model computed in another way, in the engine's own calls only: native inference runs stock."""
