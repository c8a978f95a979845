"""Learning from scores, offline: several answers to each record are scored, and the better ones are trained on."""
