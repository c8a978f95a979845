"""The commands of ``llamafactory-ext``, a file each."""
