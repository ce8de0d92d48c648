"""The living index: placement, movement, removal, beam search, snapshots, health. No optimizer steps."""
