"""Series in LLaMA-Factory's API and in its chat: ``api`` and ``terminal`` hold the seams, the rest is theirs alike."""
