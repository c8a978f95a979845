"""From an entry of ``dataset_info.json`` to tokens: formats, series, template."""
